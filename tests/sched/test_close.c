/* SPDX-License-Identifier: MIT */
/*
 * test_close.c - a full backlog: what is taken is answered once, what is not taken is not
 * touched
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void close__answers_a_full_backlog(void **state)
{
    enum {
        MOST = 3000
    };
    struct item *items = items_new(MOST);
    struct weir_job *jobs[MOST];
    struct rig rig;

    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        struct weir_queue_options options = {
            .depth = kind % 2 ? 1 : 64,
            .backlog = 1500,
            .flags = kind % 3 ? 0 : WEIR_QUEUE_NO_MERGE,
        };
        unsigned done = 0;
        int taken;

        rig_open(&rig, NULL, &options);
        rig.device.width = 4;
        for (uint32_t i = 0; i < MOST; i++) {
            item_read(&rig, &items[i], i % WEIR_CLASSES, i * 6 * KIB, 4096);
            items[i].probe.job.sequence = i % 3 ? 0 : MOST - i;
            if (i % 11 == 0)
                items[i].probe.job.timeout_ns = 100 * TEST_MS;
            jobs[i] = &items[i].probe.job;
        }
        taken = weir_queue_submit(rig.queue, jobs, MOST);
        check_code(taken, (int)options.depth + 1500);
        check_code(weir_queue_submit(rig.queue, jobs + taken, (size_t)(MOST - taken)), -EBUSY);
        if (kind > 1)
            check(weir_queue_run(rig.queue) >= 0);
        if (kind > 3)
            check(weir_queue_wait(rig.queue, 20, WEIR_FOREVER) >= 20);
        check_code(weir_queue_close(rig.queue, TEST_LONG), 0);
        for (int i = 0; i < MOST; i++) {
            int64_t result = items[i].probe.result;

            check_code(items[i].probe.done, i < taken ? 1 : 0);
            if (i >= taken)
                continue;
            check(result == -ECANCELED || result == 4096);
            if (result == 4096)
                check_pattern(items[i].buf, 4096, rig.device.seed, items[i].offset);
            done += result == 4096;
        }
        if (kind > 3)
            check(done >= 20);
        else if (kind < 2)
            check_code(done, 0);
        check_code((int64_t)rig.device.ops, 0);
        rig.queue = NULL;
        rig_close(&rig);
    }
    items_free(items, MOST);
}

/* What hangs keeps the queue open; once it has ended the rest goes. */
static bool hangs(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset % DEVICE_REGION < 40 * KIB;
}

static void close__cancels_what_hangs(void **state)
{
    struct item *items = items_new(100);
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.hangs = hangs;
    for (uint32_t i = 0; i < 100; i++)
        item_read(&rig, &items[i], i % WEIR_CLASSES, i * 10 * KIB, 4096);
    items_submit(rig.queue, items, 100);
    check(weir_queue_run(rig.queue) >= 0);
    check_code(weir_queue_close(rig.queue, TEST_LONG), 0);
    for (uint32_t i = 0; i < 100; i++) {
        check_code(items[i].probe.done, 1);
        check(items[i].probe.result == -ECANCELED || items[i].probe.result == 4096);
    }
    rig.queue = NULL;
    rig_close(&rig);
    items_free(items, 100);
}

/* The array is taken piece by piece, as the queue has room. */
static void submit__an_array_larger_than_the_backlog(void **state)
{
    enum {
        MOST = 5000
    };
    struct weir_queue_options options = { .depth = 4, .backlog = 100 };
    struct item *items = items_new(MOST);
    struct weir_job *jobs[MOST];
    size_t taken = 0;
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, &options);
    rig.device.width = 4;
    for (uint32_t i = 0; i < MOST; i++) {
        item_read(&rig, &items[i], i % WEIR_CLASSES, i * 6 * KIB, 512);
        jobs[i] = &items[i].probe.job;
    }
    while (taken < MOST) {
        int rc = weir_queue_submit(rig.queue, jobs + taken, MOST - taken);

        check(rc > 0 || rc == -EBUSY);
        check(rc <= 104);
        taken += rc > 0 ? (size_t)rc : 0;
        for (size_t i = taken; i < MOST; i++)
            check(items[i].probe.done == 0);
        check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
    }
    rig_drain(rig.queue);
    items_check(&rig, items, MOST);
    rig_close(&rig);
    items_free(items, MOST);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(close__answers_a_full_backlog),
        cmocka_unit_test(close__cancels_what_hangs),
        cmocka_unit_test(submit__an_array_larger_than_the_backlog),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_close", 100);
    return cmocka_run_group_tests_name("sched_close", tests, NULL, NULL);
}
