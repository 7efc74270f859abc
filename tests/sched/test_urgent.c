/* SPDX-License-Identifier: MIT */
/*
 * test_urgent.c - the rule for urgent work: while somebody waits, the others have one small
 * operation at the device, all queues together; ten milliseconds later they have it all
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOW_BYTES (64 * KIB)
/* Queues look at the stamp of urgent work by a quarter of a millisecond. */
#define SURELY_NS (9 * TEST_MS + 700 * TEST_US)
#define AGAIN_NS  (10 * TEST_MS + 300 * TEST_US)

static bool is_low(const struct device_op *entry)
{
    return entry->region == WEIR_CLASS_BATCH || entry->region == WEIR_CLASS_BACKGROUND;
}

static bool is_urgent(const struct device_op *entry)
{
    return entry->region == WEIR_CLASS_SYNC || entry->region == WEIR_CLASS_FOREGROUND;
}

/* What the device saw, checked at every start. */
struct law {
    uint64_t urgent_ns; /* when urgent work was last at the device, or started or ended */
    uint64_t low_starts_urgent;
    uint64_t low_starts_calm;
    uint64_t low_most; /* at the device, in calm */
    uint64_t full_ns;  /* first time that more than one was, since urgent_ns */
};

static void law_watch(struct test_device *device, const struct device_op *entry)
{
    struct law *law = device->context;
    uint64_t low_ops = 0;
    bool urgent = law->urgent_ns != 0 && device->now_ns < law->urgent_ns + SURELY_NS;

    for (size_t i = 0; i < device->log_count; i++) {
        const struct device_op *other = &device->log[i];

        if (is_urgent(other) && other != entry)
            law->urgent_ns = other->end_ns > law->urgent_ns ? other->end_ns : law->urgent_ns;
    }
    for (size_t i = 0; i < device->ops; i++) {
        const struct device_op *other = &device->log[device->open[i]];

        if (is_urgent(other)) {
            urgent = true;
            law->urgent_ns = device->now_ns;
        }
        if (is_low(other))
            low_ops++;
    }
    if (law->urgent_ns != 0 && device->now_ns < law->urgent_ns + SURELY_NS)
        urgent = true;
    if (!is_low(entry))
        return;
    if (!urgent) {
        law->low_starts_calm++;
        law->low_most = low_ops > law->low_most ? low_ops : law->low_most;
        if (low_ops > 1 && law->full_ns == 0)
            law->full_ns = device->now_ns;
        return;
    }
    law->low_starts_urgent++;
    if (low_ops > 1)
        fail_msg("%zu operations that give way at the device, %llu us after urgent work",
                 (size_t)low_ops, (unsigned long long)(device->now_ns - law->urgent_ns) / 1000);
    if (entry->bytes > LOW_BYTES)
        fail_msg("%zu bytes that give way at the device", (size_t)entry->bytes);
}

/* A reader that always has one read at the device until told to stop. */
struct steady {
    struct weir_job job;
    struct weir_queue *queue;
    struct rig *rig;
    unsigned left;
    uint8_t buf[4096];
};

static void steady_submit(struct steady *steady, uint32_t io_class);

static void steady_done(struct weir_job *job)
{
    struct steady *steady = job->arg;

    check_code(job->result, 4096);
    if (--steady->left > 0)
        steady_submit(steady, job->io_class);
}

static void steady_submit(struct steady *steady, uint32_t io_class)
{
    struct weir_job *job = &steady->job;

    weir_job_read(job, steady->rig->file, steady->buf, 4096,
                  region_of(io_class) + steady->left * 8192, steady_done, steady);
    job->io_class = (uint8_t)io_class;
    check_code(weir_queue_submit(steady->queue, &job, 1), 1);
}

static void steady_start(struct rig *rig, struct steady *steady, struct weir_queue *queue,
                         uint32_t io_class, unsigned count)
{
    memset(steady, 0, sizeof(*steady));
    steady->rig = rig;
    steady->queue = queue;
    steady->left = count;
    steady_submit(steady, io_class);
}

static void law_rig(struct rig *rig, struct law *law, uint32_t flags)
{
    struct weir_queue_options options = { .depth = 32, .flags = flags };

    memset(law, 0, sizeof(*law));
    rig_init(rig);
    rig->device.width = 64;
    rig->device.watch = law_watch;
    rig->device.context = law;
    rig_start(rig, NULL, &options);
}

/* --- one queue ------------------------------------------------------------------------ */

static void urgent__lower_classes_have_one_small_operation(void **state)
{
    static const uint32_t urgent_classes[] = { WEIR_CLASS_FOREGROUND, WEIR_CLASS_SYNC };
    static const uint32_t low_classes[] = { WEIR_CLASS_BATCH, WEIR_CLASS_BACKGROUND };
    enum {
        COUNT_ = 600
    };
    struct steady steady;
    struct law law;
    struct rig rig;

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct item *items = items_new(COUNT_);

        law_rig(&rig, &law, i < 2 ? WEIR_QUEUE_NO_MERGE : 0);
        steady_start(&rig, &steady, rig.queue, urgent_classes[i % 2], 200);
        for (uint32_t j = 0; j < COUNT_; j++)
            item_read(&rig, &items[j], low_classes[j % 2], j * 20 * KIB, 16 * KIB);
        items_submit(rig.queue, items, COUNT_);
        while (steady.left > 0)
            check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
        check(law.low_starts_urgent > 50);
        rig_drain(rig.queue);
        items_check(&rig, items, COUNT_);
        if (i < 2)
            check(law.low_most == 32);
        rig_close(&rig);
        items_free(items, COUNT_);
    }
}

/* The urgent work itself takes its time: it is under way for as long as it is at the device,
 * and that is what matters on a slow one. */
static void urgent__is_under_way_until_it_has_ended(void **state)
{
    enum {
        COUNT_ = 400
    };
    struct item *items = items_new(COUNT_);
    struct weir_queue *queues[2];
    struct item *urgent = items_new(1);
    struct law law;
    struct rig rig;

    (void)state;
    for (int other = 0; other < 2; other++) {
        law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
        queues[0] = rig.queue;
        queues[1] = rig_queue(&rig, NULL);
        rig.device.latency_ns = 60 * TEST_MS;
        item_read(&rig, urgent, WEIR_CLASS_FOREGROUND, 0, 4096);
        items_submit(queues[other], urgent, 1);
        check(weir_queue_run(queues[other]) >= 0);
        rig.device.latency_ns = 500 * TEST_US;
        for (uint32_t i = 0; i < COUNT_; i++)
            item_read(&rig, &items[i], WEIR_CLASS_BACKGROUND, i * 80 * KIB, 4096);
        items_submit(queues[0], items, COUNT_);
        while (urgent->probe.done == 0)
            (void)test_device_step(&rig.device, queues, 2);
        check(law.low_starts_urgent > 20);
        check_code((int64_t)law.low_starts_calm, 0);
        rig_drain(queues[0]);
        items_check(&rig, items, COUNT_);
        check_code(weir_queue_close(queues[1], 0), 0);
        rig_close(&rig);
    }
    items_free(items, COUNT_);
    items_free(urgent, 1);
}

/* Nothing happens any more, and yet the queue goes on by itself when the time has come. */
static void urgent__full_depth_again_after_ten_milliseconds(void **state)
{
    enum {
        COUNT_ = 120
    };
    struct item *items = items_new(COUNT_);
    struct item urgent = { .len = 0 };
    struct law law;
    struct rig rig;
    uint64_t end_ns;

    (void)state;
    for (int other = 0; other < 2; other++) {
        struct weir_queue *queue;

        law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
        /* Of what gives way only one gets through meanwhile. */
        rig.device.latency_ns = 8 * TEST_MS;
        queue =
            other ? rig_queue(&rig, &(struct weir_queue_options){ .depth = 32 }) : rig.queue;
        item_read(&rig, &urgent, WEIR_CLASS_FOREGROUND, 0, 4096);
        items_submit(queue, &urgent, 1);
        check_code(weir_queue_wait(queue, 1, WEIR_FOREVER), 1);
        end_ns = rig.device.now_ns;
        for (uint32_t i = 0; i < COUNT_; i++)
            item_read(&rig, &items[i], WEIR_CLASS_BACKGROUND, i * 40 * KIB, 4096);
        items_submit(rig.queue, items, COUNT_);
        while (law.full_ns == 0)
            check(weir_queue_wait(rig.queue, COUNT_, WEIR_FOREVER) >= 0);
        check(law.low_starts_urgent >= 1 && law.low_starts_urgent <= 2);
        if (law.full_ns > end_ns + AGAIN_NS)
            fail_msg("full depth only after %llu us",
                     (unsigned long long)(law.full_ns - end_ns) / 1000);
        rig_drain(rig.queue);
        items_check(&rig, items, COUNT_);
        check(law.low_most == 32);
        if (other)
            check_code(weir_queue_close(queue, 0), 0);
        rig_close(&rig);
    }
    items_free(items, COUNT_);
    items_free(memcpy(items_new(1), &urgent, sizeof(urgent)), 1);
}

static void urgent__large_reads_and_writes_are_cut(void **state)
{
    struct item *items = items_new(2);
    struct steady steady;
    struct law law;
    struct rig rig;

    (void)state;
    for (int write = 0; write < 2; write++) {
        law_rig(&rig, &law, 0);
        test_device_disk(&rig.device, 4 * MIB, 4 * MIB);
        steady_start(&rig, &steady, rig.queue, WEIR_CLASS_FOREGROUND, 200);
        /* Odd sizes too. */
        if (write) {
            item_write(&rig, &items[0], WEIR_CLASS_BACKGROUND, 4096, MIB, 99);
            item_write(&rig, &items[1], WEIR_CLASS_BATCH, 2 * MIB + 7, MIB + 13, 98);
        } else {
            item_read(&rig, &items[0], WEIR_CLASS_BACKGROUND, 4096, MIB);
            item_read(&rig, &items[1], WEIR_CLASS_BATCH, 2 * MIB + 7, MIB + 13);
        }
        items_submit(rig.queue, items, 2);
        while (items[0].probe.done == 0 || items[1].probe.done == 0)
            check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
        check(steady.left > 0);
        check_code((int64_t)law.low_starts_urgent, 16 + 17);
        items_check(&rig, items, 2);
        if (write) {
            check_pattern(rig.device.disk + 4096, MIB, 99, 4096);
            check_pattern(rig.device.disk + 2 * MIB + 7, MIB + 13, 98, 2 * MIB + 7);
        }
        rig_drain(rig.queue);
        /* In calm they are given whole. */
        test_device_pass(&rig.device, 20 * TEST_MS);
        test_device_forget(&rig.device);
        memset(&law, 0, sizeof(law));
        item_read(&rig, &items[0], WEIR_CLASS_BACKGROUND, 4096, MIB);
        items_submit(rig.queue, items, 1);
        rig_drain(rig.queue);
        check_code((int64_t)rig.device.log_count, 1);
        rig_close(&rig);
    }
    items_free(items, 2);
}

/* --- several queues ------------------------------------------------------------------- */

static void urgent__counts_across_queues(void **state)
{
    enum {
        COUNT_ = 800
    };
    struct item *items = items_new(COUNT_);
    struct weir_queue *queues[2];
    struct steady steady;
    struct law law;
    struct rig rig;

    (void)state;
    law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
    queues[0] = rig.queue;
    queues[1] = rig_queue(&rig, NULL);
    steady_start(&rig, &steady, queues[1], WEIR_CLASS_FOREGROUND, 300);
    for (uint32_t i = 0; i < COUNT_; i++)
        item_read(&rig, &items[i], i % 2 ? WEIR_CLASS_BACKGROUND : WEIR_CLASS_BATCH,
                  i * 80 * KIB, i % 5 ? 32 * KIB : 64 * KIB);
    items_submit(queues[0], items, COUNT_);
    while (steady.left > 0)
        (void)test_device_step(&rig.device, queues, 2);
    check(law.low_starts_urgent > 50);
    while (items[COUNT_ - 1].probe.done == 0)
        (void)test_device_step(&rig.device, queues, 2);
    check(law.low_most > 16);
    rig_drain(queues[0]);
    items_check(&rig, items, COUNT_);
    check_code(weir_queue_close(queues[1], 0), 0);
    rig_close(&rig);
    items_free(items, COUNT_);
}

static unsigned count_done(const struct item *items, size_t count)
{
    unsigned done = 0;

    for (size_t i = 0; i < count; i++)
        done += items[i].probe.done;
    return done;
}

static void urgent__two_lower_queues_both_go_on(void **state)
{
    enum {
        COUNT_ = 600
    };
    struct item *items = items_new(2 * COUNT_);
    struct weir_queue *queues[3];
    struct steady steady;
    struct law law;
    struct rig rig;
    unsigned first;
    unsigned second;

    (void)state;
    law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
    queues[0] = rig.queue;
    queues[1] = rig_queue(&rig, &(struct weir_queue_options){ .flags = WEIR_QUEUE_NO_MERGE });
    queues[2] = rig_queue(&rig, NULL);
    steady_start(&rig, &steady, queues[2], WEIR_CLASS_FOREGROUND, 1000);
    for (uint32_t i = 0; i < 2 * COUNT_; i++)
        item_read(&rig, &items[i], WEIR_CLASS_BACKGROUND, i * 80 * KIB, 4096);
    items_submit(queues[0], items, COUNT_);
    items_submit(queues[1], items + COUNT_, COUNT_);
    while (steady.left > 0)
        (void)test_device_step(&rig.device, queues, 3);
    first = count_done(items, COUNT_);
    second = count_done(items + COUNT_, COUNT_);
    if (first + second < 300 || first < (first + second) / 4 || second < (first + second) / 4)
        fail_msg("%u and %u in 1000 times as long", first, second);
    rig_drain(queues[0]);
    rig_drain(queues[1]);
    items_check(&rig, items, 2 * COUNT_);
    check_code(weir_queue_close(queues[1], 0), 0);
    check_code(weir_queue_close(queues[2], 0), 0);
    rig_close(&rig);
    items_free(items, 2 * COUNT_);
}

/* Two waiting owners, one a thread, would be woken; here the one that ran last only left word
 * that it waits, and nobody ever runs it again. */
static void urgent__a_queue_that_nobody_runs_does_not_stop_another(void **state)
{
    enum {
        COUNT_ = 100
    };
    struct item *items = items_new(2 * COUNT_);
    struct weir_queue *queues[3];
    struct steady steady;
    struct law law;
    struct rig rig;

    (void)state;
    law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
    queues[0] = rig.queue;
    queues[1] = rig_queue(&rig, NULL);
    queues[2] = rig_queue(&rig, NULL);
    steady_start(&rig, &steady, queues[0], WEIR_CLASS_FOREGROUND, 1000);
    for (uint32_t i = 0; i < 2 * COUNT_; i++)
        item_read(&rig, &items[i], WEIR_CLASS_BACKGROUND, i * 80 * KIB, 4096);
    items_submit(queues[1], items, COUNT_);
    items_submit(queues[2], items + COUNT_, COUNT_);
    /* The second takes the one place, and the third waits for it, and is left alone. */
    check(weir_queue_run(queues[0]) >= 0);
    check(weir_queue_run(queues[1]) >= 0);
    check(weir_queue_run(queues[2]) >= 0);
    while (steady.left > 0)
        (void)test_device_step(&rig.device, queues, 2);
    check_code(count_done(items + COUNT_, COUNT_), 0);
    if (count_done(items, COUNT_) < COUNT_)
        fail_msg("only %u done", count_done(items, COUNT_));
    rig_drain(queues[2]);
    items_check(&rig, items, 2 * COUNT_);
    check_code(weir_queue_close(queues[1], 0), 0);
    check_code(weir_queue_close(queues[2], 0), 0);
    rig_close(&rig);
    items_free(items, 2 * COUNT_);
}

/* The worse case: it holds the place itself, since its completion is never looked at. */
static void urgent__a_completion_that_nobody_reaps_does_not_stop_another(void **state)
{
    enum {
        COUNT_ = 100
    };
    struct item *items = items_new(2 * COUNT_);
    struct weir_queue *queues[3];
    struct steady steady;
    struct law law;
    struct rig rig;
    unsigned done;

    (void)state;
    law_rig(&rig, &law, WEIR_QUEUE_NO_MERGE);
    rig.device.watch = NULL;
    queues[0] = rig.queue;
    queues[1] = rig_queue(&rig, NULL);
    queues[2] = rig_queue(&rig, NULL);
    steady_start(&rig, &steady, queues[0], WEIR_CLASS_FOREGROUND, 2000);
    for (uint32_t i = 0; i < 2 * COUNT_; i++)
        item_read(&rig, &items[i], WEIR_CLASS_BACKGROUND, i * 80 * KIB, 4096);
    items_submit(queues[1], items, COUNT_);
    items_submit(queues[2], items + COUNT_, COUNT_);
    check(weir_queue_run(queues[0]) >= 0);
    check(weir_queue_run(queues[2]) >= 0);
    while (steady.left > 0)
        (void)test_device_step(&rig.device, queues, 2);
    done = count_done(items, COUNT_);
    if (done == 0)
        fail_msg("nothing was done in 200 ms");
    rig_drain(queues[1]);
    rig_drain(queues[2]);
    items_check(&rig, items, 2 * COUNT_);
    check_code(weir_queue_close(queues[1], 0), 0);
    check_code(weir_queue_close(queues[2], 0), 0);
    rig_close(&rig);
    items_free(items, 2 * COUNT_);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urgent__lower_classes_have_one_small_operation),
        cmocka_unit_test(urgent__is_under_way_until_it_has_ended),
        cmocka_unit_test(urgent__full_depth_again_after_ten_milliseconds),
        cmocka_unit_test(urgent__large_reads_and_writes_are_cut),
        cmocka_unit_test(urgent__counts_across_queues),
        cmocka_unit_test(urgent__two_lower_queues_both_go_on),
        cmocka_unit_test(urgent__a_queue_that_nobody_runs_does_not_stop_another),
        cmocka_unit_test(urgent__a_completion_that_nobody_reaps_does_not_stop_another),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_urgent", 100);
    return cmocka_run_group_tests_name("sched_urgent", tests, NULL, NULL);
}
