/* SPDX-License-Identifier: MIT */
/*
 * test_trouble.c - devices that hang, and devices where everything fails
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- what hangs ----------------------------------------------------------------------- */

struct lines {
    unsigned count;
    char last[400];
    int level;
};

static void note_line(void *arg, int level, const char *text)
{
    struct lines *lines = arg;

    lines->count++;
    lines->level = level;
    (void)snprintf(lines->last, sizeof(lines->last), "%s", text);
}

static bool hangs(struct test_device *device, const struct device_op *entry)
{
    return entry->offset == *(uint64_t *)device->context;
}

/* Run the queue as a busy owner would, every 10 ms. */
static void pass(struct rig *rig, uint64_t ms)
{
    for (uint64_t i = 0; i < ms; i += 10) {
        test_device_pass(&rig->device, 10 * TEST_MS);
        check(weir_queue_run(rig->queue) >= 0);
    }
}

static void stall__is_said_once_and_again_when_it_has_doubled(void **state)
{
    struct lines lines = { 0 };
    uint64_t bad = 1 * MIB;
    struct item *items = items_new(4);
    struct rig rig;

    (void)state;
    for (int short_limit = 0; short_limit < 2; short_limit++) {
        uint64_t unit = short_limit ? 100 : 1000; /* ms: stall_ns is five of these */
        struct weir_engine_options options = {
            .log = note_line,
            .log_arg = &lines,
            .stall_ns = short_limit ? 500 * TEST_MS : 0,
        };

        rig_init(&rig);
        rig.device.hangs = hangs;
        rig.device.context = &bad;
        rig_start(&rig, &options, NULL);
        memset(&lines, 0, sizeof(lines));
        for (uint32_t i = 0; i < 4; i++)
            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * MIB, 4096);
        items_submit(rig.queue, items, 4);
        pass(&rig, 4 * unit);
        check_code(lines.count, 0);
        check_code((int64_t)rig_stats(&rig).stalled, 0);
        pass(&rig, 4 * unit); /* 8: past 5, and at most half of that late */
        check_code(lines.count, 1);
        check_code((int64_t)rig_stats(&rig).stalled, 1);
        check_code((int64_t)rig_stats(&rig).stalls, 1);
        check(strstr(lines.last, "read") != NULL);
        pass(&rig, 7 * unit); /* 15: past 10, before 20 */
        check_code(lines.count, 2);
        pass(&rig, 8 * unit); /* 23: past 20 */
        check_code(lines.count, 3);
        check_code((int64_t)rig_stats(&rig).stalled, 1);
        check_code((int64_t)rig_stats(&rig).stalls, 1);
        check_code(weir_queue_cancel(rig.queue, items[1].probe.job.id), 0);
        rig_drain(rig.queue);
        check_code(items[1].probe.result, -ECANCELED);
        check_code((int64_t)rig_stats(&rig).stalled, 0);
        check_code((int64_t)rig_stats(&rig).stalls, 1);
        rig_close(&rig);
    }
    items_free(items, 4);
}

static void stall__can_be_switched_off(void **state)
{
    struct lines lines = { 0 };
    uint64_t bad = 0;
    struct weir_engine_options options = { .log = note_line,
                                           .log_arg = &lines,
                                           .stall_ns = WEIR_NEVER };
    struct item *items = items_new(1);
    struct rig rig;

    (void)state;
    rig_init(&rig);
    rig.device.hangs = hangs;
    rig.device.context = &bad;
    rig_start(&rig, &options, NULL);
    item_read(&rig, &items[0], WEIR_CLASS_FOREGROUND, 0, 4096);
    items_submit(rig.queue, items, 1);
    pass(&rig, 30000);
    check_code(lines.count, 0);
    check_code((int64_t)rig_stats(&rig).stalls, 0);
    rig_close(&rig); /* cancels it */
    check_code(items[0].probe.result, -ECANCELED);
    items_free(items, 1);
}

/* What merely waits for the device is not at it. */
static void stall__is_not_said_of_what_waits(void **state)
{
    struct lines lines = { 0 };
    uint64_t bad = 0;
    struct weir_engine_options options = { .log = note_line, .log_arg = &lines };
    struct weir_queue_options queue_options = { .depth = 1, .flags = WEIR_QUEUE_NO_MERGE };
    struct item *items = items_new(50);
    struct rig rig;

    (void)state;
    rig_init(&rig);
    rig.device.hangs = hangs;
    rig.device.context = &bad;
    rig_start(&rig, &options, &queue_options);
    for (uint32_t i = 0; i < 50; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * MIB, 4096);
    items_submit(rig.queue, items, 50);
    pass(&rig, 9000);
    check_code(lines.count, 1);
    check_code((int64_t)rig_stats(&rig).stalled, 1);
    rig_close(&rig);
    items_free(items, 50);
}

/* --- where everything fails ----------------------------------------------------------- */

static int64_t always(struct test_device *device, const struct device_op *entry)
{
    (void)entry;
    return *(int *)device->context;
}

/*
 * With a few failures each read is tried three times. With nothing but failures the tries run
 * out: a burst of 256, and one for ten completions.
 */
static void retry__has_a_budget(void **state)
{
    enum {
        COUNT_ = 20000,
        LOT = 1000
    };
    static const int codes[] = { -EIO, -EAGAIN, -EBUSY };
    struct item *items = items_new(LOT);
    struct rig rig;

    (void)state;
    for (size_t c = 0; c < COUNT(codes); c++) {
        struct weir_queue_options options = { .flags = WEIR_QUEUE_NO_MERGE };
        int code = codes[c];
        struct weir_stats stats;

        rig_init(&rig);
        rig.device.width = 16;
        rig.device.latency_ns = 10 * TEST_US;
        rig.device.fault = always;
        rig.device.context = &code;
        rig_start(&rig, NULL, &options);
        for (uint32_t i = 0; i < COUNT_; i += LOT) {
            for (uint32_t j = 0; j < LOT; j++)
                item_read(&rig, &items[j], WEIR_CLASS_FOREGROUND, j * MIB, 512);
            items_submit(rig.queue, items, LOT);
            rig_drain(rig.queue);
            for (uint32_t j = 0; j < LOT; j++) {
                check_code(items[j].probe.done, 1);
                check_code(items[j].probe.result, code);
            }
        }
        stats = rig_stats(&rig);
        check_code((int64_t)stats.retries, (int64_t)rig.device.log_count - COUNT_);
        /* EAGAIN is tried once at once, which needs no budget. */
        if (code == -EAGAIN)
            stats.retries -= COUNT_;
        check(stats.retries >= 256);
        if (stats.retries > 256 + rig.device.log_count / 10 + 64)
            fail_msg("%zu retries for %zu operations", (size_t)stats.retries,
                     rig.device.log_count);
        check(stats.retries_refused > COUNT_ / 2);
        rig_close(&rig);
    }
    items_free(items, LOT);
}

/* One in a hundred fails once: each is tried again, none is refused. */
static int64_t now_and_then(struct test_device *device, const struct device_op *entry)
{
    struct test_rng *rng = device->context;

    (void)entry;
    return rng_below(rng, 100) == 0 ? -EIO : INT64_MAX;
}

static void retry__is_not_refused_where_little_fails(void **state)
{
    enum {
        LOT = 1000,
        LOTS = 30
    };
    struct test_rng rng = { test_seed() + 10 };
    struct item *items = items_new(LOT);
    struct weir_stats stats;
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, &(struct weir_queue_options){ .flags = WEIR_QUEUE_NO_MERGE });
    rig.device.width = 16;
    rig.device.fault = now_and_then;
    rig.device.context = &rng;
    for (uint32_t i = 0; i < LOTS; i++) {
        for (uint32_t j = 0; j < LOT; j++)
            item_read(&rig, &items[j], WEIR_CLASS_FOREGROUND, j * MIB, 512);
        items_submit(rig.queue, items, LOT);
        rig_drain(rig.queue);
    }
    stats = rig_stats(&rig);
    check(stats.retries > LOT * LOTS / 150);
    check_code((int64_t)stats.retries_refused, 0);
    rig_close(&rig);
    items_free(items, LOT);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stall__is_said_once_and_again_when_it_has_doubled),
        cmocka_unit_test(stall__can_be_switched_off),
        cmocka_unit_test(stall__is_not_said_of_what_waits),
        cmocka_unit_test(retry__has_a_budget),
        cmocka_unit_test(retry__is_not_refused_where_little_fails),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_trouble", 100);
    return cmocka_run_group_tests_name("sched_trouble", tests, NULL, NULL);
}
