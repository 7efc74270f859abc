/* SPDX-License-Identifier: MIT */
/*
 * test_order.c - which job goes next: classes and their shares, sequence, FIFO, what comes back
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Operations one at a time, in the order in which they start, and never merged. */
static const struct weir_queue_options one_by_one = {
    .depth = 1,
    .backlog = 10000,
    .flags = WEIR_QUEUE_NO_MERGE,
};

/* --- inside a class ------------------------------------------------------------------- */

static void order__is_first_come_inside_a_class(void **state)
{
    enum {
        COUNT_ = 2000
    };
    struct weir_queue_options options = one_by_one;
    struct test_rng rng = { test_seed() };
    struct rig rig;

    (void)state;
    for (options.depth = 1; options.depth <= 16; options.depth *= 16) {
        struct item *items = items_new(COUNT_);

        rig_open(&rig, NULL, &options);
        rig.device.width = 16;
        for (size_t i = 0; i < COUNT_; i++)
            item_read(&rig, &items[i], WEIR_CLASS_BATCH, rng_below(&rng, 100000) * 4096, 512);
        items_submit(rig.queue, items, COUNT_);
        check(rig.device.log_count == 0); /* submitting only stages */
        rig_drain(rig.queue);
        items_check(&rig, items, COUNT_);
        check_code((int64_t)rig.device.log_count, COUNT_);
        for (size_t i = 0; i < COUNT_; i++)
            check_code((int64_t)(rig.device.log[i].offset - region_of(WEIR_CLASS_BATCH)),
                       (int64_t)items[i].offset);
        check_code((int64_t)rig.device.ops_most, options.depth);
        rig_close(&rig);
        items_free(items, COUNT_);
    }
}

struct expected {
    uint32_t sequence;
    uint32_t number;
};

static int by_sequence(const void *left, const void *right)
{
    const struct expected *a = left;
    const struct expected *b = right;

    if (a->sequence != b->sequence)
        return a->sequence < b->sequence ? -1 : 1;
    return a->number < b->number ? -1 : a->number > b->number;
}

enum sequence_kind {
    SEQUENCE_RANDOM,
    SEQUENCE_FALLING,
    SEQUENCE_RISING,
    SEQUENCE_SAW,
    SEQUENCES
};

static void order__follows_the_sequence_and_then_first_come(void **state)
{
    enum {
        COUNT_ = 6000
    };
    static struct expected expected[COUNT_];
    struct test_rng rng = { test_seed() + 1 };
    struct rig rig;

    (void)state;
    for (int kind = 0; kind < SEQUENCES; kind++) {
        struct item *items = items_new(COUNT_);

        rig_open(&rig, NULL, &one_by_one);
        for (uint32_t i = 0; i < COUNT_; i++) {
            uint32_t sequence = kind == SEQUENCE_RANDOM    ? (uint32_t)rng_below(&rng, 50)
                                : kind == SEQUENCE_FALLING ? UINT32_MAX - i
                                : kind == SEQUENCE_RISING  ? i
                                                           : i % 7 * 1000 + i / 7;

            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 8192, 512);
            items[i].probe.job.sequence = sequence;
            expected[i] = (struct expected){ sequence, i };
        }
        items_submit(rig.queue, items, COUNT_);
        rig_drain(rig.queue);
        items_check(&rig, items, COUNT_);
        qsort(expected, COUNT_, sizeof(expected[0]), by_sequence);
        for (size_t i = 0; i < COUNT_; i++)
            check_code((int64_t)(rig.device.log[i].offset / 8192), expected[i].number);
        rig_close(&rig);
        items_free(items, COUNT_);
    }
}

/* Which item an entry of the log is, where they are 8 KiB apart. */
static int64_t number_of(const struct rig *rig, size_t at)
{
    return (int64_t)(rig->device.log[at].offset % DEVICE_REGION / 8192);
}

/* What comes while others wait is put in its place among them. */
static void order__a_late_job_with_a_low_number_goes_before_those_that_wait(void **state)
{
    struct rig rig;
    struct item *items = items_new(40);

    (void)state;
    rig_open(&rig, NULL, &one_by_one);
    for (uint32_t i = 0; i < 40; i++) {
        item_read(&rig, &items[i], WEIR_CLASS_BATCH, i * 8192, 512);
        items[i].probe.job.sequence = i < 20 ? 1000 + i : 100 - i;
    }
    items_submit(rig.queue, items, 20);
    check_code(weir_queue_wait(rig.queue, 5, WEIR_FOREVER), 5);
    items_submit(rig.queue, items + 20, 20);
    rig_drain(rig.queue);
    items_check(&rig, items, 40);
    /* Item 5 may have been given to the device by the turn that ended item 4. */
    for (size_t i = 0, at = number_of(&rig, 5) == 5 ? 6 : 5; i < 20; i++)
        check_code(number_of(&rig, at + i), (int64_t)(39 - i));
    rig_close(&rig);
    items_free(items, 40);
}

static void order__cancelled_and_expired_jobs_leave_the_rest_in_order(void **state)
{
    enum {
        COUNT_ = 600
    };
    struct rig rig;
    struct item *items = items_new(COUNT_);
    size_t at = 0;

    (void)state;
    rig_open(&rig, NULL, &one_by_one);
    for (uint32_t i = 0; i < COUNT_; i++) {
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 8192, 512);
        /* Half of them stand in the heap. */
        items[i].probe.job.sequence = i % 2 == 0 ? i : COUNT_ - i;
        if (i % 3 == 1)
            items[i].probe.job.timeout_ns = 5 * TEST_MS; /* 50 operations */
    }
    items_submit(rig.queue, items, COUNT_);
    for (uint32_t i = 0; i < COUNT_; i += 3)
        check_code(weir_queue_cancel(rig.queue, items[i].probe.job.id), 0);
    rig_drain(rig.queue);
    for (uint32_t i = 0, last = 0; i < COUNT_; i++) {
        uint32_t number;

        check_code(items[i].probe.done, 1);
        if (i % 3 == 0)
            check_code(items[i].probe.result, -ECANCELED);
        else if (i % 3 == 2)
            check_code(items[i].probe.result, 512);
        if (at == rig.device.log_count)
            continue;
        number = (uint32_t)(rig.device.log[at++].offset / 8192);
        check(items[number].probe.job.sequence >= last);
        check(number % 3 != 0);
        last = items[number].probe.job.sequence;
    }
    /* Some were in time, and some were not; those never came to the device later. */
    for (size_t i = 0; i < rig.device.log_count; i++) {
        uint32_t number = (uint32_t)(rig.device.log[i].offset / 8192);

        if (items[number].probe.result == -ETIMEDOUT)
            check(rig.device.log[i].start_ns <= rig.device.log[0].start_ns + 6 * TEST_MS);
    }
    check(rig_stats(&rig).ops[WEIR_STATS_READ].expired > 100);
    rig_close(&rig);
    items_free(items, COUNT_);
}

/* --- what comes back ------------------------------------------------------------------ */

static int64_t fail_first_once(struct test_device *device, const struct device_op *entry)
{
    int *left = device->context;

    return entry->offset == 0 && (*left)-- > 0 ? -EIO : INT64_MAX;
}

static void order__a_retry_goes_before_those_of_its_class_that_wait(void **state)
{
    struct rig rig;
    struct item *items = items_new(60);
    int left = 1;
    size_t second = 0;

    (void)state;
    rig_open(&rig, NULL, &one_by_one);
    rig.device.fault = fail_first_once;
    rig.device.context = &left;
    for (uint32_t i = 0; i < 60; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 8192, 512);
    items_submit(rig.queue, items, 60);
    rig_drain(rig.queue);
    items_check(&rig, items, 60);
    for (size_t i = 1; i < rig.device.log_count; i++) {
        if (rig.device.log[i].offset == 0)
            second = i;
    }
    /* It waited its millisecond and the rest of the wheel's tick (10 to 21 operations), and
     * then went before all others. */
    if (second < 10 || second > 24)
        fail_msg("it went as number %zu", second);
    rig_close(&rig);
    items_free(items, 60);
}

static int64_t halve_first(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->bytes > 1024 ? (int64_t)entry->bytes / 2 : INT64_MAX;
}

static void order__the_rest_of_a_short_read_goes_first(void **state)
{
    struct rig rig;
    struct item *items = items_new(10);

    (void)state;
    rig_open(&rig, NULL, &one_by_one);
    rig.device.fault = halve_first;
    for (uint32_t i = 0; i < 10; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 8192, 4096);
    items_submit(rig.queue, items, 10);
    rig_drain(rig.queue);
    items_check(&rig, items, 10);
    /* 4096 in 2048, 1024 and 1024. */
    check_code((int64_t)rig.device.log_count, 30);
    for (size_t i = 0; i < 30; i++)
        check_code((int64_t)(rig.device.log[i].offset / 8192), (int64_t)(i / 3));
    rig_close(&rig);
    items_free(items, 10);
}

/* --- classes -------------------------------------------------------------------------- */

static const uint32_t weights[WEIR_CLASSES] = {
    [WEIR_CLASS_SYNC] = 64,    [WEIR_CLASS_FOREGROUND] = 32, [WEIR_CLASS_BATCH] = 8,
    [WEIR_CLASS_PREFETCH] = 4, [WEIR_CLASS_BACKGROUND] = 2,
};

/* Jobs that submit themselves again until enough was read. */
struct load {
    struct rig *rig;
    struct weir_queue *queue;
    struct test_rng rng;
    uint64_t bytes[WEIR_CLASSES];
    uint64_t left;
    size_t size; /* of each, 0: up to 64 KiB */
};
struct load_job {
    struct weir_job job;
    struct load *load;
    uint8_t buf[64 * 1024];
};

static void load_submit(struct load_job *self, uint32_t io_class);

static void load_done(struct weir_job *job)
{
    struct load_job *self = job->arg;
    struct load *load = self->load;

    check_code(job->result, (int64_t)job->len);
    load->bytes[job->io_class] += (uint64_t)job->result;
    load->left -= load->left > job->len ? job->len : load->left;
    if (load->left > 0)
        load_submit(self, job->io_class);
}

static void load_submit(struct load_job *self, uint32_t io_class)
{
    struct load *load = self->load;
    size_t len = load->size ? load->size : 512 * (1 + rng_below(&load->rng, 128));
    struct weir_job *job = &self->job;

    weir_job_read(job, load->rig->file, self->buf, len,
                  region_of(io_class) + rng_below(&load->rng, 1 << 20) * 4096, load_done, self);
    job->io_class = (uint8_t)io_class;
    check_code(weir_queue_submit(load->queue, &job, 1), 1);
}

/* `low_tolerance`: how much less than their share BATCH and BACKGROUND may get. */
static void run_shares(uint32_t depth, uint32_t classes, size_t size, double tolerance,
                       double low_tolerance)
{
    enum {
        EACH = 24
    };
    struct weir_queue_options options = one_by_one;
    struct load_job *jobs = calloc(EACH * WEIR_CLASSES, sizeof(*jobs));
    struct load load = { .rng = { test_seed() + 2 }, .left = 256 * MIB, .size = size };
    uint64_t last[WEIR_CLASSES] = { 0 };
    uint64_t started = 0;
    uint64_t all = 0;
    uint32_t sum = 0;
    struct rig rig;

    check(jobs != NULL);
    options.depth = depth;
    rig_open(&rig, NULL, &options);
    rig.device.width = depth;
    rig.device.bytes_per_sec = 1000 * MIB;
    load.rig = &rig;
    load.queue = rig.queue;
    for (uint32_t i = 0; i < EACH * WEIR_CLASSES; i++) {
        jobs[i].load = &load;
        if ((classes >> i % WEIR_CLASSES & 1) != 0)
            load_submit(&jobs[i], i % WEIR_CLASSES);
    }
    while (load.left > 0)
        check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
    for (uint32_t c = 0; c < WEIR_CLASSES; c++) {
        if ((classes >> c & 1) == 0)
            continue;
        sum += weights[c];
        all += load.bytes[c];
    }
    for (uint32_t c = 0; c < WEIR_CLASSES; c++) {
        double want = (double)weights[c] / sum;
        double got = (double)load.bytes[c] / (double)all;

        bool low = c == WEIR_CLASS_BATCH || c == WEIR_CLASS_BACKGROUND;

        if ((classes >> c & 1) == 0)
            continue;
        if (got < want * (1 - (low ? low_tolerance : tolerance)) ||
            got > want * (1 + tolerance)) {
            print_error("depth %u, class %s: share %.4f, not %.4f\n", depth, weir_class_name(c),
                        got, want);
            fail();
        }
    }
    /* And nobody waits for longer than the others' shares of two rounds. */
    for (size_t i = 0; i < rig.device.log_count; i++) {
        uint32_t c = rig.device.log[i].region;

        if (started - last[c] > 2 * 110 * 64 * KIB + 128 * KIB && last[c] != 0) {
            print_error("depth %u, class %s: nothing for %llu KiB\n", depth, weir_class_name(c),
                        (unsigned long long)(started - last[c]) / 1024);
            fail();
        }
        started += rig.device.log[i].bytes;
        last[c] = started;
    }
    rig_drain(rig.queue);
    rig_close(&rig);
    free(jobs);
}

static void shares__are_64_32_8_4_2_of_the_bytes(void **state)
{
    (void)state;
    run_shares(1, 0x1f, 0, 0.05, 0.05);
    run_shares(1, 0x1f, 4096, 0.05, 0.05);
    run_shares(1, 0x1f, 65536, 0.05, 0.05);
}

/* Those that give way have one operation at the device, and yet come to something. */
static void shares__lower_classes_do_not_starve_at_depth(void **state)
{
    (void)state;
    run_shares(4, 0x1f, 0, 0.15, 0.5);
    run_shares(8, 0x1f, 0, 0.15, 0.5);
}

static void shares__are_kept_among_those_that_wait(void **state)
{
    (void)state;
    run_shares(1, 1u << WEIR_CLASS_BATCH | 1u << WEIR_CLASS_BACKGROUND, 0, 0.05, 0.05);
    run_shares(8, 1u << WEIR_CLASS_BATCH | 1u << WEIR_CLASS_BACKGROUND, 0, 0.05, 0.05);
    run_shares(8, 1u << WEIR_CLASS_SYNC | 1u << WEIR_CLASS_FOREGROUND, 0, 0.05, 0.05);
    run_shares(2, 1u << WEIR_CLASS_FOREGROUND | 1u << WEIR_CLASS_PREFETCH, 0, 0.05, 0.05);
}

/* A commit that comes while a hundred background reads wait is the next to start. */
static void class__urgent_work_starts_next(void **state)
{
    static const uint32_t lower[] = { WEIR_CLASS_FOREGROUND, WEIR_CLASS_BATCH,
                                      WEIR_CLASS_PREFETCH, WEIR_CLASS_BACKGROUND };
    struct item *items = items_new(101);
    struct rig rig;

    (void)state;
    for (size_t c = 0; c < COUNT(lower); c++) {
        rig_open(&rig, NULL, &one_by_one);
        for (uint32_t i = 0; i < 100; i++)
            item_read(&rig, &items[i], lower[c], i * 8192, 4096);
        item_read(&rig, &items[100], WEIR_CLASS_SYNC, 0, 4096);
        items_submit(rig.queue, items, 100);
        check_code(weir_queue_wait(rig.queue, 37, WEIR_FOREVER), 37);
        items_submit(rig.queue, items + 100, 1);
        rig_drain(rig.queue);
        items_check(&rig, items, 101);
        check(rig.device.log[37].region == WEIR_CLASS_SYNC ||
              rig.device.log[38].region == WEIR_CLASS_SYNC);
        rig_close(&rig);
    }
    items_free(items, 101);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order__is_first_come_inside_a_class),
        cmocka_unit_test(order__follows_the_sequence_and_then_first_come),
        cmocka_unit_test(order__a_late_job_with_a_low_number_goes_before_those_that_wait),
        cmocka_unit_test(order__cancelled_and_expired_jobs_leave_the_rest_in_order),
        cmocka_unit_test(order__a_retry_goes_before_those_of_its_class_that_wait),
        cmocka_unit_test(order__the_rest_of_a_short_read_goes_first),
        cmocka_unit_test(shares__are_64_32_8_4_2_of_the_bytes),
        cmocka_unit_test(shares__lower_classes_do_not_starve_at_depth),
        cmocka_unit_test(shares__are_kept_among_those_that_wait),
        cmocka_unit_test(class__urgent_work_starts_next),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_order", 100);
    return cmocka_run_group_tests_name("sched_order", tests, NULL, NULL);
}
