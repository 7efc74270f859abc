/* SPDX-License-Identifier: MIT */
/*
 * test_budget.c - what may be at the device, of a queue and of an engine, in bytes and
 * operations: never more, and never so little that somebody waits for ever
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct limits {
    uint64_t engine_bytes;
    uint64_t engine_ops;
    uint64_t queue_bytes; /* of every queue; 0: none of its own */
    uint64_t over;        /* starts beyond a limit, each a queue's only one */
};

/* Operations of this one's queue at the device. */
static uint64_t ops_of(const struct test_device *device, const struct device_op *entry)
{
    uint64_t ops = 0;

    for (size_t i = 0; i < device->ops; i++)
        ops += device->log[device->open[i]].backend == entry->backend;
    return ops;
}

/* At every start: within all limits, but for the one operation that each queue may have. */
static void limits_watch(struct test_device *device, const struct device_op *entry)
{
    struct limits *limits = device->context;
    uint64_t ops = entry->ops_then;
    uint64_t bytes = entry->bytes_then;

    if (limits->queue_bytes != 0 && entry->own_bytes_then > limits->queue_bytes)
        bytes = UINT64_MAX;
    for (size_t i = 0; i < device->ops && bytes != UINT64_MAX; i++) {
        const struct device_op *other = &device->log[device->open[i]];

        if (other->backend != entry->backend && ops_of(device, other) == 1) {
            ops--;
            bytes -= other->bytes;
        }
    }
    if (entry->ops_then > limits->engine_ops || entry->bytes_then > limits->engine_bytes ||
        bytes == UINT64_MAX)
        limits->over++;
    if ((ops > limits->engine_ops || bytes > limits->engine_bytes) && entry->own_ops_then > 1)
        fail_msg("%zu operations, %zu of the queue; %zu bytes, %zu of the queue",
                 (size_t)entry->ops_then, (size_t)entry->own_ops_then,
                 (size_t)entry->bytes_then, (size_t)entry->own_bytes_then);
}

static void limits_rig(struct rig *rig, struct limits *limits, uint64_t engine_bytes,
                       uint32_t engine_ops, uint64_t queue_bytes, uint32_t flags)
{
    struct weir_engine_options engine_options = { .device_bytes = engine_bytes,
                                                  .device_ops = engine_ops };
    struct weir_queue_options options = { .device_bytes = queue_bytes,
                                          .backlog = 4000,
                                          .flags = flags };

    *limits = (struct limits){
        .engine_bytes = engine_bytes ? engine_bytes : 64 * MIB,
        .engine_ops = engine_ops ? engine_ops : 1024,
        .queue_bytes = queue_bytes,
    };
    rig_init(rig);
    rig->device.width = 64;
    rig->device.watch = limits_watch;
    rig->device.context = limits;
    rig_start(rig, &engine_options, &options);
}

static void read_some(struct rig *rig, struct item *items, size_t count, struct test_rng *rng,
                      size_t most)
{
    for (size_t i = 0; i < count; i++)
        item_read(rig, &items[i], WEIR_CLASS_FOREGROUND, rng_below(rng, 4096) * 16384,
                  1 + rng_below(rng, most));
}

static bool all_done(const struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (items[i].probe.done == 0)
            return false;
    }
    return true;
}

/* --- never more ----------------------------------------------------------------------- */

static void run_limits(uint64_t engine_bytes, uint32_t engine_ops, uint64_t queue_bytes,
                       uint32_t flags)
{
    enum {
        EACH = 400,
        QUEUES = 3
    };
    struct item *items = items_new(QUEUES * EACH);
    struct test_rng rng = { test_seed() + 3 };
    struct weir_queue *queues[QUEUES];
    struct limits limits;
    struct rig rig;

    limits_rig(&rig, &limits, engine_bytes, engine_ops, queue_bytes, flags);
    queues[0] = rig.queue;
    for (int i = 1; i < QUEUES; i++)
        queues[i] =
            rig_queue(&rig, &(struct weir_queue_options){
                                .device_bytes = queue_bytes, .backlog = 4000, .flags = flags });
    read_some(&rig, items, QUEUES * EACH, &rng, 200 * KIB);
    for (int i = 0; i < QUEUES; i++)
        items_submit(queues[i], items + i * EACH, EACH);
    while (!all_done(items, QUEUES * EACH))
        (void)test_device_step(&rig.device, queues, QUEUES);
    items_check(&rig, items, QUEUES * EACH);
    /* The room was used, too. */
    if (engine_ops != 0)
        check(rig.device.ops_most >= engine_ops);
    else
        check(rig.device.bytes_most >= (queue_bytes ? queue_bytes : engine_bytes) * 8 / 10);
    check(rig_stats(&rig).budget_waits > 0);
    for (int i = 1; i < QUEUES; i++)
        check_code(weir_queue_close(queues[i], 0), 0);
    rig_close(&rig);
    items_free(items, QUEUES * EACH);
}

static void budget__engine_bytes_are_never_exceeded(void **state)
{
    (void)state;
    run_limits(MIB, 0, 0, WEIR_QUEUE_NO_MERGE);
    run_limits(3 * MIB + 1234, 0, 0, 0);
}

static void budget__engine_operations_are_never_exceeded(void **state)
{
    (void)state;
    run_limits(0, 8, 0, WEIR_QUEUE_NO_MERGE);
    run_limits(0, 40, 0, WEIR_QUEUE_NO_MERGE);
}

static void budget__queue_bytes_are_never_exceeded(void **state)
{
    (void)state;
    run_limits(0, 0, MIB, WEIR_QUEUE_NO_MERGE);
    run_limits(0, 0, 512 * KIB + 1, 0);
}

/* Those that have one each still have it when the engine allows fewer than there are queues. */
static void budget__one_operation_a_queue_is_always_allowed(void **state)
{
    enum {
        QUEUES = 5,
        EACH = 50
    };
    struct item *items = items_new(QUEUES * EACH);
    struct test_rng rng = { test_seed() + 4 };
    struct weir_queue *queues[QUEUES];
    struct limits limits;
    struct rig rig;

    (void)state;
    limits_rig(&rig, &limits, 64 * KIB, 2, 0, 0);
    queues[0] = rig.queue;
    for (int i = 1; i < QUEUES; i++)
        queues[i] = rig_queue(&rig, NULL);
    read_some(&rig, items, QUEUES * EACH, &rng, 100 * KIB);
    for (int i = 0; i < QUEUES; i++)
        items_submit(queues[i], items + i * EACH, EACH);
    while (!all_done(items, QUEUES * EACH))
        (void)test_device_step(&rig.device, queues, QUEUES);
    items_check(&rig, items, QUEUES * EACH);
    check(limits.over > 0);
    /* One of them may hold what the engine allows, each of the others one of its own. */
    check(rig.device.ops_most <= 2 + QUEUES - 1);
    for (int i = 1; i < QUEUES; i++)
        check_code(weir_queue_close(queues[i], 0), 0);
    rig_close(&rig);
    items_free(items, QUEUES * EACH);
}

/* --- never for ever ------------------------------------------------------------------- */

static void budget__an_operation_larger_than_all_of_it_runs_alone(void **state)
{
    struct item *items = items_new(60);
    struct limits limits;
    struct rig rig;

    (void)state;
    for (int own = 0; own < 2; own++) {
        limits_rig(&rig, &limits, own ? 0 : 64 * KIB, 0, own ? 64 * KIB : 0, 0);
        for (uint32_t i = 0; i < 60; i++)
            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4 * MIB,
                      i % 10 == 5 ? 2 * MIB : 8 * KIB);
        items_submit(rig.queue, items, 60);
        rig_drain(rig.queue);
        items_check(&rig, items, 60);
        check_code((int64_t)limits.over, 6);
        for (size_t i = 0; i < rig.device.log_count; i++) {
            const struct device_op *entry = &rig.device.log[i];

            for (size_t j = i + 1; entry->bytes == 2 * MIB && j < rig.device.log_count; j++)
                check(rig.device.log[j].start_ns >= entry->end_ns);
        }
        check_code((int64_t)rig.device.ops_most, 8);
        rig_close(&rig);
    }
    items_free(items, 60);
}

/* One queue fills the device up to the engine's limit, and its owner never comes back. */
static void budget__a_queue_that_nobody_runs_does_not_stop_others(void **state)
{
    enum {
        EACH = 200
    };
    struct item *items = items_new(2 * EACH);
    struct test_rng rng = { test_seed() + 5 };
    struct weir_queue *left_alone;
    struct limits limits;
    struct rig rig;
    size_t taken;

    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        limits_rig(&rig, &limits, kind ? 0 : MIB, kind ? 8 : 0, 0, WEIR_QUEUE_NO_MERGE);
        left_alone =
            rig_queue(&rig, &(struct weir_queue_options){ .flags = WEIR_QUEUE_NO_MERGE });
        read_some(&rig, items, 2 * EACH, &rng, 60 * KIB);
        items_submit(left_alone, items + EACH, EACH);
        check(weir_queue_run(left_alone) >= 0);
        taken = rig.device.ops;
        check(taken >= 8);
        items_submit(rig.queue, items, EACH);
        rig_drain(rig.queue);
        items_check(&rig, items, EACH);
        check(rig.device.ops == taken);
        rig_drain(left_alone);
        items_check(&rig, items + EACH, EACH);
        check_code(weir_queue_close(left_alone, 0), 0);
        rig_close(&rig);
    }
    items_free(items, 2 * EACH);
}

/* Room comes back when an operation completes, not when somebody does something with what it
 * read: these are done and nobody takes them, and the others go on at full depth. */
static void budget__is_given_back_at_completion(void **state)
{
    enum {
        EACH = 100
    };
    struct item *items = items_new(2 * EACH);
    struct weir_queue *second;
    struct limits limits;
    struct rig rig;
    size_t first_log;

    (void)state;
    limits_rig(&rig, &limits, 256 * KIB, 0, 0, WEIR_QUEUE_NO_MERGE);
    second = rig_queue(&rig, &(struct weir_queue_options){ .flags = WEIR_QUEUE_NO_MERGE });
    for (uint32_t i = 0; i < 2 * EACH; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 64 * KIB, 16 * KIB);
    items_submit(rig.queue, items, EACH);
    rig_drain(rig.queue);
    first_log = rig.device.log_count;
    items_submit(second, items + EACH, EACH);
    check(weir_queue_run(second) >= 0);
    check_code((int64_t)(rig.device.log_count - first_log), 16);
    rig_drain(second);
    items_check(&rig, items, 2 * EACH);
    check_code(weir_queue_close(second, 0), 0);
    rig_close(&rig);
    items_free(items, 2 * EACH);
}

/* Cancelled, failed and short operations give back what they had as well. */
static int64_t half_fail(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset / 65536 % 3 == 0   ? -EIO
           : entry->offset / 65536 % 3 == 1 ? (int64_t)entry->bytes / 2
                                            : INT64_MAX;
}

static void budget__nothing_is_lost_by_failures(void **state)
{
    enum {
        EACH = 300
    };
    struct item *items = items_new(EACH);
    struct weir_queue *second;
    struct limits limits;
    struct rig rig;
    size_t before;

    (void)state;
    limits_rig(&rig, &limits, 256 * KIB, 0, 0, 0);
    rig.device.fault = half_fail;
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < EACH; i++) {
            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 32 * KIB, 16 * KIB);
            if (i % 7 == 0)
                items[i].probe.job.timeout_ns = (1 + i) * 10 * TEST_US;
        }
        items_submit(rig.queue, items, EACH);
        check(weir_queue_run(rig.queue) >= 0);
        for (uint32_t i = 0; i < EACH; i += 5)
            (void)weir_queue_cancel(rig.queue, items[i].probe.job.id);
        rig_drain(rig.queue);
    }
    /* The whole of it is there again. */
    rig.device.fault = NULL;
    second = rig_queue(&rig, &(struct weir_queue_options){ .flags = WEIR_QUEUE_NO_MERGE });
    for (uint32_t i = 0; i < EACH; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 32 * KIB, 16 * KIB);
    items_submit(second, items, EACH);
    before = rig.device.log_count;
    check(weir_queue_run(second) >= 0);
    check_code((int64_t)(rig.device.log_count - before), 16);
    rig_drain(second);
    items_check(&rig, items, EACH);
    check_code(weir_queue_close(second, 0), 0);
    rig_close(&rig);
    items_free(items, EACH);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budget__engine_bytes_are_never_exceeded),
        cmocka_unit_test(budget__engine_operations_are_never_exceeded),
        cmocka_unit_test(budget__queue_bytes_are_never_exceeded),
        cmocka_unit_test(budget__one_operation_a_queue_is_always_allowed),
        cmocka_unit_test(budget__an_operation_larger_than_all_of_it_runs_alone),
        cmocka_unit_test(budget__a_queue_that_nobody_runs_does_not_stop_others),
        cmocka_unit_test(budget__is_given_back_at_completion),
        cmocka_unit_test(budget__nothing_is_lost_by_failures),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_budget", 100);
    return cmocka_run_group_tests_name("sched_budget", tests, NULL, NULL);
}
