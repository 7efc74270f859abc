/* SPDX-License-Identifier: MIT */
/*
 * test_merge.c - neighbours in one operation: when, when not, and what each gets of it
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One job of a set that is submitted together. */
struct part {
    uint64_t offset;
    size_t len;
    uint32_t flags;    /* WEIR_JOB_* */
    uint32_t io_class; /* enum weir_class */
    int write;
};

static void make_parts(struct rig *rig, const struct part *parts, size_t count,
                       struct item *items)
{
    for (size_t i = 0; i < count; i++) {
        if (parts[i].write)
            item_write(rig, &items[i], parts[i].io_class, parts[i].offset, parts[i].len,
                       100 + i);
        else
            item_read(rig, &items[i], parts[i].io_class, parts[i].offset, parts[i].len);
        items[i].probe.job.flags = parts[i].flags;
    }
}

/* Submit the parts together; all succeed with the right bytes. Returns how many operations that
 * took; `rig` stays open, to look at. */
static size_t run_parts(struct rig *rig, const struct weir_queue_options *options,
                        const struct part *parts, size_t count)
{
    struct item *items = items_new(count);

    rig_open(rig, NULL, options);
    rig->device.width = 16;
    make_parts(rig, parts, count, items);
    items_submit(rig->queue, items, count);
    rig_drain(rig->queue);
    items_check(rig, items, count);
    items_free(items, count);
    return rig->device.log_count;
}

static void check_parts(const struct weir_queue_options *options, const struct part *parts,
                        size_t count, size_t want, int line)
{
    struct rig rig;
    size_t got = run_parts(&rig, options, parts, count);

    rig_close(&rig);
    if (got != want)
        fail_msg("line %d: %zu operations, not %zu", line, got, want);
}
#define CHECK_PARTS(options, want, ...)                                  \
    do {                                                                 \
        const struct part parts_[] = { __VA_ARGS__ };                    \
        check_parts((options), parts_, COUNT(parts_), (want), __LINE__); \
    } while (0)

/* --- reads: when and when not --------------------------------------------------------- */

static void merge__neighbours_with_gaps_become_one_read(void **state)
{
    static const struct part parts[] = {
        { .offset = 16384, .len = 4096 },
        { .offset = 0, .len = 4096 },
        { .offset = 8192, .len = 4096 },
    };
    struct weir_stats stats;
    struct rig rig;

    (void)state;
    check_code((int64_t)run_parts(&rig, NULL, parts, 3), 1);
    check_code(rig.device.log[0].kind, WI_OP_READV);
    check_code((int64_t)rig.device.log[0].offset, 0);
    check_code((int64_t)rig.device.log[0].bytes, 20480);
    check_code(rig.device.log[0].pieces, 5);
    stats = rig_stats(&rig);
    check_code((int64_t)stats.merges, 1);
    check_code((int64_t)stats.merged, 3);
    check_code((int64_t)stats.gap_bytes, 8192);
    check_code((int64_t)stats.device_ops, 1);
    check_code((int64_t)stats.device_bytes, 20480);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].done, 3);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].bytes, 3 * 4096);
    rig_close(&rig);
}

static void merge__the_gap_is_bounded(void **state)
{
    static const struct weir_queue_options wide = { .merge_gap = 64 * KIB };
    static const struct weir_queue_options narrow = { .merge_gap = 4096 };

    (void)state;
    CHECK_PARTS(NULL, 1, { .offset = 0, .len = 16384 }, { .offset = 32768, .len = 16384 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 32768 },
                { .offset = 49152 + 512, .len = 32768 });
    CHECK_PARTS(&wide, 1, { .offset = 0, .len = 65536 }, { .offset = 131072, .len = 65536 });
    CHECK_PARTS(&wide, 2, { .offset = 0, .len = 131072 },
                { .offset = 196608 + 512, .len = 131072 });
    CHECK_PARTS(&narrow, 2, { .offset = 0, .len = 32768 }, { .offset = 40960, .len = 32768 });
}

static void merge__the_whole_is_at_most_a_megabyte(void **state)
{
    struct part parts[40];
    struct rig rig;

    (void)state;
    for (uint32_t i = 0; i < 40; i++)
        parts[i] = (struct part){ .offset = i * 64 * KIB, .len = 64 * KIB };
    check_code((int64_t)run_parts(&rig, NULL, parts, 40), 3);
    check_code((int64_t)rig.device.log[0].bytes, MIB);
    check_code((int64_t)rig.device.log[1].bytes, MIB);
    check_code((int64_t)rig.device.log[2].bytes, MIB / 2);
    rig_close(&rig);
}

static void merge__large_ones_go_alone(void **state)
{
    (void)state;
    CHECK_PARTS(NULL, 1, { .offset = 0, .len = 256 * KIB },
                { .offset = 256 * KIB, .len = 4096 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 256 * KIB + 512 },
                { .offset = 256 * KIB + 512, .len = 4096 });
}

static void merge__at_most_twice_the_bytes_asked_for(void **state)
{
    (void)state;
    CHECK_PARTS(NULL, 1, { .offset = 0, .len = 4096 }, { .offset = 12288, .len = 4096 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096 }, { .offset = 12800, .len = 4096 });
}

static void merge__only_within_class_file_and_operation(void **state)
{
    struct item *items = items_new(2);
    struct weir_file *other;
    struct rig rig;

    (void)state;
    /* The same bytes, so no offset keeps them apart. */
    rig_open(&rig, NULL, NULL);
    item_read(&rig, &items[0], WEIR_CLASS_FOREGROUND, 0, 4096);
    item_read(&rig, &items[1], WEIR_CLASS_FOREGROUND, 4096, 4096);
    items[1].probe.job.io_class = WEIR_CLASS_SYNC;
    items_submit(rig.queue, items, 2);
    rig_drain(rig.queue);
    items_check(&rig, items, 2);
    check_code((int64_t)rig.device.log_count, 2);
    rig_close(&rig);

    rig_open(&rig, NULL, NULL);
    other = rig_file(&rig, 0, WEIR_OPEN_READ);
    item_read(&rig, &items[0], WEIR_CLASS_FOREGROUND, 0, 4096);
    item_read(&rig, &items[1], WEIR_CLASS_FOREGROUND, 4096, 4096);
    items[1].probe.job.file = other;
    items_submit(rig.queue, items, 2);
    rig_drain(rig.queue);
    items_check(&rig, items, 2);
    check_code((int64_t)rig.device.log_count, 2);
    check_code(weir_file_close(other), 0);
    rig_close(&rig);

    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096 },
                { .offset = 4096, .len = 4096, .write = 1 });
    items_free(items, 2);
}

static void merge__can_be_switched_off(void **state)
{
    static const struct weir_queue_options off = { .flags = WEIR_QUEUE_NO_MERGE };
    static const struct weir_queue_options no_gaps = { .flags = WEIR_QUEUE_NO_GAPS };

    (void)state;
    CHECK_PARTS(&off, 2, { .offset = 0, .len = 4096 }, { .offset = 4096, .len = 4096 });
    CHECK_PARTS(&off, 2, { .offset = 0, .len = 4096, .write = 1 },
                { .offset = 4096, .len = 4096, .write = 1 });
    CHECK_PARTS(&no_gaps, 1, { .offset = 0, .len = 4096 }, { .offset = 4096, .len = 4096 });
    CHECK_PARTS(&no_gaps, 2, { .offset = 0, .len = 4096 }, { .offset = 4608, .len = 4096 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096, .flags = WEIR_JOB_ALONE },
                { .offset = 4096, .len = 4096 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096 },
                { .offset = 4096, .len = 4096, .flags = WEIR_JOB_ALONE },
                { .offset = 8192, .len = 4096 });
    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096, .write = 1, .flags = WEIR_JOB_ALONE },
                { .offset = 4096, .len = 4096, .write = 1 });
}

static void merge__reads_that_overlap_get_the_same_bytes(void **state)
{
    struct part parts[60];
    struct test_rng rng = { test_seed() + 5 };
    struct rig rig;

    (void)state;
    for (int round = 0; round < 30; round++) {
        for (size_t i = 0; i < COUNT(parts); i++)
            parts[i] = (struct part){ .offset = rng_below(&rng, 100000),
                                      .len = 1 + rng_below(&rng, 9000) };
        (void)run_parts(&rig, NULL, parts, COUNT(parts));
        rig_close(&rig);
    }
}

/* READV jobs may have pieces of their own, and take part or not, but must come out right. */
static void merge__vectored_reads_are_right(void **state)
{
    enum {
        COUNT_ = 40
    };
    struct item *items = items_new(COUNT_);
    struct iovec iov[COUNT_][3];
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    for (uint32_t i = 0; i < COUNT_; i++) {
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 5000, 4096);
        iov[i][0] = (struct iovec){ items[i].buf, 96 };
        iov[i][1] = (struct iovec){ items[i].buf + 96, 3000 };
        iov[i][2] = (struct iovec){ items[i].buf + 3096, 1000 };
        if (i % 3 == 0) {
            weir_job_readv(&items[i].probe.job, rig.file, iov[i], 3, i * 5000, probe_done,
                           &items[i].probe);
            probe_arm(&items[i].probe);
        }
    }
    items_submit(rig.queue, items, COUNT_);
    rig_drain(rig.queue);
    for (uint32_t i = 0; i < COUNT_; i++) {
        check_code(items[i].probe.result, 4096);
        check_pattern(items[i].buf, 4096, rig.device.seed, items[i].offset);
    }
    rig_close(&rig);
    items_free(items, COUNT_);
}

/* --- the aim -------------------------------------------------------------------------- */

static void shuffle(uint32_t *order, size_t count, struct test_rng *rng)
{
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = rng_below(rng, i + 1);
        uint32_t swap = order[i];

        order[i] = order[j];
        order[j] = swap;
    }
}

/* 4 KiB reads with 4 KiB gaps, shuffled in windows of 256. */
static void merge__scattered_windows_take_one_operation_for_twenty(void **state)
{
    enum {
        WINDOW = 256,
        WINDOWS = 32
    };
    static const uint32_t depths[] = { 1, 8, 128 };
    struct item *items = items_new(WINDOW);
    struct test_rng rng = { test_seed() + 6 };
    uint32_t order[WINDOW];
    struct weir_stats stats;
    struct rig rig;

    (void)state;
    for (size_t d = 0; d < COUNT(depths); d++) {
        struct weir_queue_options options = { .depth = depths[d] };

        rig_open(&rig, NULL, &options);
        rig.device.width = 8;
        for (uint32_t w = 0; w < WINDOWS; w++) {
            shuffle(order, WINDOW, &rng);
            for (uint32_t i = 0; i < WINDOW; i++)
                item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND,
                          (w * WINDOW + order[i]) * UINT64_C(8192), 4096);
            items_submit(rig.queue, items, WINDOW);
            rig_drain(rig.queue);
            items_check(&rig, items, WINDOW);
        }
        if (rig.device.log_count > WINDOW * WINDOWS / 20)
            fail_msg("depth %u: %zu operations for %d", depths[d], rig.device.log_count,
                     WINDOW * WINDOWS);
        stats = rig_stats(&rig);
        check(stats.device_bytes <= 2 * WINDOW * WINDOWS * 4096ull);
        rig_close(&rig);
    }
    items_free(items, WINDOW);
}

/* What comes while the device is busy gathers, and goes together. */
static void merge__gathers_behind_a_full_device(void **state)
{
    struct weir_queue_options options = { .depth = 1 };
    struct item *items = items_new(64);
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, &options);
    for (uint32_t i = 0; i < 64; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
    items_submit(rig.queue, items, 1);
    check_code(weir_queue_run(rig.queue), 0);
    for (uint32_t i = 1; i < 64; i++) {
        items_submit(rig.queue, items + i, 1);
        check_code(weir_queue_run(rig.queue), 0);
    }
    check_code((int64_t)rig.device.log_count, 1);
    rig_drain(rig.queue);
    items_check(&rig, items, 64);
    check_code((int64_t)rig.device.log_count, 2);
    check_code((int64_t)rig.device.log[1].bytes, 63 * 4096);
    rig_close(&rig);
    items_free(items, 64);
}

/* --- writes --------------------------------------------------------------------------- */

static void merge__writes_only_where_they_touch(void **state)
{
    static const struct part touching[] = {
        { .offset = 0, .len = 4096, .write = 1 },
        { .offset = 8192, .len = 100, .write = 1 },
        { .offset = 4096, .len = 4096, .write = 1 },
    };
    struct item *items = items_new(3);
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    test_device_disk(&rig.device, 65536, 65536);
    make_parts(&rig, touching, 3, items);
    items_submit(rig.queue, items, 3);
    rig_drain(rig.queue);
    items_check(&rig, items, 3);
    check_code((int64_t)rig.device.log_count, 1);
    check_code(rig.device.log[0].kind, WI_OP_WRITEV);
    check_code((int64_t)rig.device.log[0].bytes, 8292);
    check_pattern(rig.device.disk, 4096, 100, 0);
    check_pattern(rig.device.disk + 4096, 4096, 102, 4096);
    check_pattern(rig.device.disk + 8192, 100, 101, 8192);
    check_pattern(rig.device.disk + 8292, 4096, rig.device.seed, 8292);
    rig_close(&rig);
    items_free(items, 3);

    CHECK_PARTS(NULL, 2, { .offset = 0, .len = 4096, .write = 1 },
                { .offset = 4097, .len = 4096, .write = 1 });
}

/* Writes that overlap end as they would one after the other, whatever is merged and
 * reordered. */
static void merge__overlapping_writes_keep_their_order(void **state)
{
    enum {
        COUNT_ = 150,
        SIZE = 64 * 1024
    };
    static uint8_t model[SIZE];
    struct item *items = items_new(COUNT_);
    struct test_rng rng = { test_seed() + 7 };
    uint64_t merges = 0;
    struct rig rig;

    (void)state;
    for (int round = 0; round < 60; round++) {
        struct weir_queue_options options = { .depth = 1 + (uint32_t)rng_below(&rng, 12) };

        rig_open(&rig, NULL, &options);
        rig.device.width = 1 + (uint32_t)rng_below(&rng, 8);
        rig.device.bytes_per_sec = 100 * MIB;
        test_device_disk(&rig.device, SIZE, SIZE);
        memcpy(model, rig.device.disk, SIZE);
        for (uint32_t i = 0; i < COUNT_; i++) {
            uint64_t offset = rng_below(&rng, 60) * 1024;

            item_write(&rig, &items[i], WEIR_CLASS_FOREGROUND, offset,
                       1024 * (1 + rng_below(&rng, 4)), 1000 + i);
            /* One region: the classes must not tell them apart. */
            items[i].probe.job.io_class = (uint8_t)rng_below(&rng, WEIR_CLASSES);
            items[i].probe.job.sequence = (uint32_t)rng_below(&rng, 4);
            memcpy(model + offset, items[i].buf, items[i].len);
        }
        for (uint32_t i = 0; i < COUNT_; i += 30) {
            items_submit(rig.queue, items + i, 30);
            if (rng_below(&rng, 2))
                check(weir_queue_run(rig.queue) >= 0);
        }
        rig_drain(rig.queue);
        items_check(&rig, items, COUNT_);
        if (memcmp(model, rig.device.disk, SIZE) != 0)
            fail_msg("round %d: the disk is not what the writes in order leave", round);
        merges += rig_stats(&rig).merges;
        rig_close(&rig);
    }
    check(merges > 0);
    items_free(items, COUNT_);
}

/* --- when it goes wrong --------------------------------------------------------------- */

#define BAD 50000u /* a byte that cannot be read or written */

static int64_t bad_byte(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset <= BAD && BAD < entry->offset + entry->bytes ? -EIO : INT64_MAX;
}

static void merge__one_bad_member_fails_alone(void **state)
{
    struct item *items = items_new(20);
    struct weir_stats stats;
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.fault = bad_byte;
    for (uint32_t i = 0; i < 20; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
    items_submit(rig.queue, items, 20);
    rig_drain(rig.queue);
    for (uint32_t i = 0; i < 20; i++) {
        check_code(items[i].probe.done, 1);
        check_code(items[i].probe.result, i == BAD / 4096 ? -EIO : 4096);
        if (i != BAD / 4096)
            check_pattern(items[i].buf, 4096, rig.device.seed, items[i].offset);
    }
    check_code(items[BAD / 4096].probe.error.code, -EIO);
    check_code((int64_t)rig.device.log[0].bytes, 20 * 4096);
    stats = rig_stats(&rig);
    check_code((int64_t)stats.merge_splits, 20);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].failed, 1);
    rig_close(&rig);
    items_free(items, 20);
}

/* A write that failed for good is never tried again (docs/durability.md), so neither are parts
 * of one; a transient failure is. */
static int64_t fail_with_context(struct test_device *device, const struct device_op *entry)
{
    int *code = device->context;

    return entry->pieces > 1 ? *code : INT64_MAX;
}

static void merge__a_failed_write_is_not_tried_again(void **state)
{
    struct item *items = items_new(20);
    int code = -EIO;
    struct rig rig;

    (void)state;
    for (int transient = 0; transient < 2; transient++) {
        rig_open(&rig, NULL, NULL);
        test_device_disk(&rig.device, 20 * 4096, 20 * 4096);
        code = transient ? -EAGAIN : -EIO;
        rig.device.fault = fail_with_context;
        rig.device.context = &code;
        for (uint32_t i = 0; i < 20; i++)
            item_write(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096, 3);
        items_submit(rig.queue, items, 20);
        rig_drain(rig.queue);
        check_code((int64_t)rig.device.log_count, transient ? 21 : 1);
        for (uint32_t i = 0; i < 20; i++) {
            check_code(items[i].probe.done, 1);
            check_code(items[i].probe.result, transient ? 4096 : -EIO);
        }
        if (transient)
            check_pattern(rig.device.disk, 20 * 4096, 3, 0);
        rig_close(&rig);
    }
    items_free(items, 20);
}

static void merge__the_end_of_the_file_in_the_middle(void **state)
{
    struct item *items = items_new(10);
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.disk_size = 5 * 4096 + 1000;
    for (uint32_t i = 0; i < 10; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
    items_submit(rig.queue, items, 10);
    rig_drain(rig.queue);
    for (uint32_t i = 0; i < 10; i++) {
        int64_t want = i < 5 ? 4096 : i == 5 ? 1000 : 0;

        check_code(items[i].probe.done, 1);
        check_code(items[i].probe.result, want);
        check_code((int64_t)items[i].probe.transferred, want);
        check_pattern(items[i].buf, (size_t)want, rig.device.seed, items[i].offset);
    }
    rig_close(&rig);
    items_free(items, 10);
}

/* Short for no reason: every byte comes in the end. */
static int64_t at_most_5000(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    (void)entry;
    return 5000;
}

static void merge__short_transfers_are_continued(void **state)
{
    struct item *items = items_new(10);
    struct rig rig;

    (void)state;
    for (int write = 0; write < 2; write++) {
        rig_open(&rig, NULL, NULL);
        rig.device.fault = at_most_5000;
        test_device_disk(&rig.device, 65536, 65536);
        for (uint32_t i = 0; i < 10; i++) {
            if (write)
                item_write(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096, 3);
            else
                item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
        }
        items_submit(rig.queue, items, 10);
        rig_drain(rig.queue);
        items_check(&rig, items, 10);
        if (write)
            check_pattern(rig.device.disk, 40960, 3, 0);
        rig_close(&rig);
    }
    items_free(items, 10);
}

/* --- members that end early ----------------------------------------------------------- */

static void merge__cancelled_and_expired_members_leave_the_others_whole(void **state)
{
    struct item *items = items_new(12);
    struct rig rig;

    (void)state;
    for (int at_device = 0; at_device < 2; at_device++) {
        rig_open(&rig, NULL, NULL);
        rig.device.latency_ns = 10 * TEST_MS;
        for (uint32_t i = 0; i < 12; i++) {
            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
            if (i == 7)
                items[i].probe.job.timeout_ns = 3 * TEST_MS;
        }
        items_submit(rig.queue, items, 12);
        if (at_device)
            check_code(weir_queue_run(rig.queue), 0);
        check_code((int64_t)rig.device.log_count, at_device);
        check_code(weir_queue_cancel(rig.queue, items[4].probe.job.id), 0);
        check_code(weir_queue_cancel(rig.queue, items[4].probe.job.id), -EALREADY);
        rig_drain(rig.queue);
        for (uint32_t i = 0; i < 12; i++) {
            int64_t result = items[i].probe.result;

            check_code(items[i].probe.done, 1);
            if (i == 4)
                check(result == -ECANCELED || (at_device && result == 4096));
            else if (i == 7)
                check(result == -ETIMEDOUT || result == 4096);
            else
                check_code(result, 4096);
            if (result == 4096)
                check_pattern(items[i].buf, 4096, rig.device.seed, items[i].offset);
        }
        check(rig.device.log_count <= 3);
        rig_close(&rig);
    }
    items_free(items, 12);
}

/* All members are given up: then the operation is, too. */
static bool hangs(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    (void)entry;
    return true;
}

static void merge__an_operation_whose_members_are_all_cancelled_is_cancelled(void **state)
{
    struct item *items = items_new(8);
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.hangs = hangs;
    for (uint32_t i = 0; i < 8; i++)
        item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * 4096, 4096);
    items_submit(rig.queue, items, 8);
    check_code(weir_queue_run(rig.queue), 0);
    check_code((int64_t)rig.device.log_count, 1);
    for (uint32_t i = 0; i < 8; i++)
        check_code(weir_queue_cancel(rig.queue, items[i].probe.job.id), 0);
    rig_drain(rig.queue);
    for (uint32_t i = 0; i < 8; i++) {
        check_code(items[i].probe.done, 1);
        check_code(items[i].probe.result, -ECANCELED);
    }
    check_code((int64_t)rig.device.log_count, 1);
    rig_close(&rig);
    items_free(items, 8);
}

/* --- READ_MANY ------------------------------------------------------------------------ */

static int64_t run_many(struct rig *rig, struct weir_range *ranges, size_t count,
                        struct probe *probe)
{
    weir_job_prepare(&probe->job, WEIR_OP_READ_MANY, rig->file, probe_done, probe);
    probe->job.buf = ranges;
    probe->job.len = count;
    return probe_run(rig->queue, probe);
}

static void many__any_ranges_each_with_its_result(void **state)
{
    enum {
        MOST = 600,
        BYTES = 1000000
    };
    struct weir_range *ranges = calloc(MOST, sizeof(*ranges));
    struct test_rng rng = { test_seed() + 8 };
    struct probe probe;
    struct rig rig;

    (void)state;
    for (int round = 0; round < 60; round++) {
        struct weir_queue_options options = { .depth = round % 2 ? 1 : 16,
                                              .flags =
                                                  round % 7 == 6 ? WEIR_QUEUE_NO_MERGE : 0 };
        size_t count = round % 3 ? 1 + rng_below(&rng, MOST) : 1 + rng_below(&rng, 4);
        size_t most = round % 5 ? 5000 : 700000;
        int64_t sum = 0;
        int64_t got;

        rig_open(&rig, NULL, &options);
        rig.device.width = 8;
        rig.device.disk_size = BYTES;
        if (round % 4 == 3)
            rig.device.fault = at_most_5000;
        if (most > 5000)
            count = count > 40 ? 40 : count;
        for (size_t i = 0; i < count; i++) {
            ranges[i] = (struct weir_range){
                .offset = rng_below(&rng, BYTES + 10000),
                .len = rng_below(&rng, 20) ? rng_below(&rng, most) : 0,
                .result = INT64_MIN,
            };
            ranges[i].buf = malloc(ranges[i].len + 1);
        }
        got = run_many(&rig, ranges, count, &probe);
        for (size_t i = 0; i < count; i++) {
            uint64_t offset = ranges[i].offset;
            uint64_t want = offset >= BYTES                  ? 0
                            : BYTES - offset < ranges[i].len ? BYTES - offset
                                                             : ranges[i].len;

            check_code(ranges[i].result, (int64_t)want);
            check_pattern(ranges[i].buf, (size_t)want, rig.device.seed, offset);
            sum += ranges[i].result;
            free(ranges[i].buf);
        }
        check_code(got, sum);
        check_code((int64_t)probe.transferred, sum);
        rig_close(&rig);
    }
    free(ranges);
}

static void many__ranges_are_merged(void **state)
{
    enum {
        COUNT_ = 1024
    };
    struct weir_range *ranges = calloc(COUNT_, sizeof(*ranges));
    uint8_t *bytes = malloc(COUNT_ * 4096);
    struct test_rng rng = { test_seed() + 9 };
    uint32_t order[COUNT_];
    struct probe probe;
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.width = 8;
    shuffle(order, COUNT_, &rng);
    for (uint32_t i = 0; i < COUNT_; i++)
        ranges[i] =
            (struct weir_range){ bytes + i * 4096, 4096, order[i] * UINT64_C(8192), -1, { 0 } };
    check_code(run_many(&rig, ranges, COUNT_, &probe), COUNT_ * 4096);
    for (uint32_t i = 0; i < COUNT_; i++) {
        check_code(ranges[i].result, 4096);
        check_pattern(ranges[i].buf, 4096, rig.device.seed, ranges[i].offset);
    }
    if (rig.device.log_count > COUNT_ / 20)
        fail_msg("%zu operations", rig.device.log_count);
    check_code((int64_t)rig_stats(&rig).merged, COUNT_);
    rig_close(&rig);
    free(ranges);
    free(bytes);
}

static void many__one_bad_range_fails_alone(void **state)
{
    enum {
        COUNT_ = 50
    };
    struct weir_range ranges[COUNT_];
    uint8_t *bytes = malloc(COUNT_ * 4096);
    struct probe probe;
    struct rig rig;

    (void)state;
    rig_open(&rig, NULL, NULL);
    rig.device.fault = bad_byte;
    for (uint32_t i = 0; i < COUNT_; i++)
        ranges[i] = (struct weir_range){
            bytes + i * 4096, 4096, (COUNT_ - 1 - i) * UINT64_C(4096), -1, { 0 }
        };
    check_code(run_many(&rig, ranges, COUNT_, &probe), -EIO);
    check_code((int64_t)probe.transferred, (COUNT_ - 1) * 4096);
    check_code(probe.error.code, -EIO);
    for (uint32_t i = 0; i < COUNT_; i++) {
        bool bad = ranges[i].offset == BAD / 4096 * 4096;

        check_code(ranges[i].result, bad ? -EIO : 4096);
        if (!bad)
            check_pattern(ranges[i].buf, 4096, rig.device.seed, ranges[i].offset);
    }
    rig_close(&rig);
    free(bytes);
}

static void many__can_be_cancelled_in_the_middle(void **state)
{
    enum {
        COUNT_ = 200
    };
    struct weir_queue_options options = { .depth = 2, .flags = WEIR_QUEUE_NO_MERGE };
    struct weir_range ranges[COUNT_];
    uint8_t *bytes = malloc(COUNT_ * 4096);
    struct item *other = items_new(1);
    struct rig rig;

    (void)state;
    for (int timed = 0; timed < 2; timed++) {
        struct probe probe;

        rig_open(&rig, NULL, &options);
        for (uint32_t i = 0; i < COUNT_; i++)
            ranges[i] =
                (struct weir_range){ bytes + i * 4096, 4096, i * UINT64_C(65536), -1, { 0 } };
        weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, rig.file, probe_done, &probe);
        probe.job.buf = ranges;
        probe.job.len = COUNT_;
        probe.job.timeout_ns = timed ? 2 * TEST_MS : 0;
        probe_submit(rig.queue, &probe);
        item_read(&rig, &other[0], WEIR_CLASS_FOREGROUND, 0, 4096);
        items_submit(rig.queue, other, 1);
        while (rig.device.log_count < 10)
            check(weir_queue_wait(rig.queue, 1, 100 * TEST_US) >= 0);
        if (!timed)
            check_code(weir_queue_cancel(rig.queue, probe.job.id), 0);
        rig_drain(rig.queue);
        check_code(probe.done, 1);
        check_code(probe.result, timed ? -ETIMEDOUT : -ECANCELED);
        check(rig.device.log_count < 60);
        items_check(&rig, other, 1);
        rig_close(&rig);
    }
    items_free(other, 1);
    free(bytes);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merge__neighbours_with_gaps_become_one_read),
        cmocka_unit_test(merge__the_gap_is_bounded),
        cmocka_unit_test(merge__the_whole_is_at_most_a_megabyte),
        cmocka_unit_test(merge__large_ones_go_alone),
        cmocka_unit_test(merge__at_most_twice_the_bytes_asked_for),
        cmocka_unit_test(merge__only_within_class_file_and_operation),
        cmocka_unit_test(merge__can_be_switched_off),
        cmocka_unit_test(merge__reads_that_overlap_get_the_same_bytes),
        cmocka_unit_test(merge__vectored_reads_are_right),
        cmocka_unit_test(merge__scattered_windows_take_one_operation_for_twenty),
        cmocka_unit_test(merge__gathers_behind_a_full_device),
        cmocka_unit_test(merge__writes_only_where_they_touch),
        cmocka_unit_test(merge__overlapping_writes_keep_their_order),
        cmocka_unit_test(merge__one_bad_member_fails_alone),
        cmocka_unit_test(merge__a_failed_write_is_not_tried_again),
        cmocka_unit_test(merge__the_end_of_the_file_in_the_middle),
        cmocka_unit_test(merge__short_transfers_are_continued),
        cmocka_unit_test(merge__cancelled_and_expired_members_leave_the_others_whole),
        cmocka_unit_test(merge__an_operation_whose_members_are_all_cancelled_is_cancelled),
        cmocka_unit_test(many__any_ranges_each_with_its_result),
        cmocka_unit_test(many__ranges_are_merged),
        cmocka_unit_test(many__one_bad_range_fails_alone),
        cmocka_unit_test(many__can_be_cancelled_in_the_middle),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_merge", 100);
    return cmocka_run_group_tests_name("sched_merge", tests, NULL, NULL);
}
