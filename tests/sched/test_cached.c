/* SPDX-License-Identifier: MIT */
/*
 * test_cached.c - reads of queues through the block cache: who loads, who waits, who shares
 */
#include "rig.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)64 * 1024)

/* A rig with a cache of `blocks`, and a cached file of `size` bytes that holds the device's
 * pattern. */
static void cached_rig(struct rig *rig, struct weir_file **ret_file, uint64_t blocks,
                       uint64_t size, uint64_t ttl_ns)
{
    struct weir_engine_options options = { .cache_bytes = blocks * BLOCK,
                                           .cache_ttl_ns = ttl_ns };
    struct weir_queue_options queue_options = { .flags = WEIR_QUEUE_NO_PREFETCH };

    rig_init(rig);
    rig->device.width = 8;
    rig_start(rig, &options, &queue_options);
    test_device_disk(&rig->device, size, size);
    *ret_file = rig_file(rig, size, WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CACHED);
}

static void cached_close(struct rig *rig, struct weir_file *file)
{
    check_code(weir_file_close(file), 0);
    check_code((int64_t)rig_stats(rig).cache_pinned, 0);
    rig_close(rig);
}

static void read_of(struct rig *rig, struct weir_file *file, struct item *item, uint64_t offset,
                    size_t len)
{
    item_read(rig, item, WEIR_CLASS_FOREGROUND, offset, len);
    item->probe.job.file = file;
}

static void write_of(struct rig *rig, struct weir_file *file, struct item *item,
                     uint64_t offset, size_t len, uint64_t seed)
{
    item_write(rig, item, WEIR_CLASS_FOREGROUND, offset, len, seed);
    item->probe.job.file = file;
}

static void run_read(struct rig *rig, struct weir_file *file, uint64_t offset, size_t len)
{
    struct item *item = items_new(1);

    read_of(rig, file, item, offset, len);
    items_submit(rig->queue, item, 1);
    rig_drain(rig->queue);
    items_check(rig, item, 1);
    items_free(item, 1);
}

static void view_of(struct probe *probe, struct weir_file *file, uint64_t offset, size_t len,
                    struct weir_view *view)
{
    weir_job_prepare(&probe->job, WEIR_OP_VIEW, file, probe_done, probe);
    probe->job.offset = offset;
    probe->job.len = len;
    probe->job.buf = view;
}

/* --- who loads ------------------------------------------------------------------------ */

static void cached__one_load_for_all_readers_of_a_queue(void **state)
{
    enum {
        COUNT_ = 60
    };
    struct item *items = items_new(COUNT_);
    struct weir_file *file;
    struct weir_stats stats;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 32, 4 * MIB, 0);
    for (uint32_t i = 0; i < COUNT_; i++)
        read_of(&rig, file, &items[i], 3 * BLOCK + i * 1000, 1 + i * 90);
    items_submit(rig.queue, items, COUNT_ / 2);
    check(weir_queue_run(rig.queue) >= 0);
    items_submit(rig.queue, items + COUNT_ / 2, COUNT_ / 2); /* the load is under way */
    rig_drain(rig.queue);
    items_check(&rig, items, COUNT_);
    check_code((int64_t)rig.device.log_count, 1);
    check_code((int64_t)rig.device.log[0].offset, 3 * BLOCK);
    check_code((int64_t)rig.device.log[0].bytes, BLOCK);
    stats = rig_stats(&rig);
    check_code((int64_t)stats.cache_loads, 1);
    check_code((int64_t)stats.cache_shared, COUNT_ - 1);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].done, COUNT_);
    cached_close(&rig, file);
    items_free(items, COUNT_);
}

static void cached__a_hit_takes_no_device_and_no_time(void **state)
{
    struct weir_file *file;
    struct rig rig;
    uint64_t now_ns;

    (void)state;
    cached_rig(&rig, &file, 32, 4 * MIB, 0);
    run_read(&rig, file, 100, 3 * BLOCK);
    now_ns = rig.device.now_ns;
    test_device_forget(&rig.device);
    for (uint32_t i = 0; i < 100; i++)
        run_read(&rig, file, i * 1000, 5000);
    check_code((int64_t)rig.device.log_count, 0);
    check(rig.device.now_ns == now_ns);
    check(rig_stats(&rig).cache_hits >= 100);
    cached_close(&rig, file);
}

static void cached__two_queues_read_twice_rather_than_wait(void **state)
{
    struct item *items = items_new(2);
    struct weir_file *file;
    struct weir_queue *second;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 32, 4 * MIB, 0);
    second = rig_queue(&rig, NULL);
    read_of(&rig, file, &items[0], 10, 1000);
    read_of(&rig, file, &items[1], 10, 1000);
    items_submit(rig.queue, items, 1);
    check(weir_queue_run(rig.queue) >= 0); /* and never again, as far as the other knows */
    items_submit(second, items + 1, 1);
    rig_drain(second);
    items_check(&rig, items + 1, 1);
    check_code(items[0].probe.done, 0);
    check_code((int64_t)rig.device.log_count, 2);
    rig_drain(rig.queue);
    items_check(&rig, items, 2);
    run_read(&rig, file, 0, BLOCK);
    check_code((int64_t)rig.device.log_count, 2);
    check_code(weir_queue_close(second, 0), 0);
    cached_close(&rig, file);
    items_free(items, 2);
}

static void cached__blocks_of_one_read_are_loaded_together(void **state)
{
    struct item *items = items_new(1);
    struct weir_file *file;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 64, 8 * MIB, 0);
    read_of(&rig, file, &items[0], 1000, 20 * BLOCK);
    items_submit(rig.queue, items, 1);
    rig_drain(rig.queue);
    items_check(&rig, items, 1);
    check_code((int64_t)rig_stats(&rig).cache_loads, 21);
    /* Merged into a megabyte and the rest, at the same time. */
    check(rig.device.log_count <= 3);
    check(rig.device.log[rig.device.log_count - 1].start_ns == rig.device.log[0].start_ns);
    cached_close(&rig, file);
    items_free(items, 1);
}

static void cached__the_end_of_the_file(void **state)
{
    enum {
        SIZE = 3 * 65536 + 1000
    };
    struct item *items = items_new(6);
    static const struct {
        uint64_t offset;
        size_t len;
        int64_t want;
    } reads[] = { { SIZE - 500, 1000, 500 }, { SIZE - 1, 1, 1 },      { SIZE, 10, 0 },
                  { SIZE + 100000, 10, 0 },  { 0, 10 * BLOCK, SIZE }, { 65536, 0, 0 } };
    struct weir_file *file;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 32, SIZE, 0);
    for (int again = 0; again < 2; again++) {
        for (uint32_t i = 0; i < COUNT(reads); i++)
            read_of(&rig, file, &items[i], reads[i].offset, reads[i].len);
        items_submit(rig.queue, items, COUNT(reads));
        rig_drain(rig.queue);
        for (uint32_t i = 0; i < COUNT(reads); i++) {
            check_code(items[i].probe.done, 1);
            check_code(items[i].probe.result, reads[i].want);
            check_pattern(items[i].buf, (size_t)reads[i].want, rig.device.seed,
                          reads[i].offset);
        }
    }
    cached_close(&rig, file);
    items_free(items, 6);
}

static int64_t fail_all(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    (void)entry;
    return -EIO;
}

static void cached__a_failed_load_fails_its_readers_and_leaves_nothing(void **state)
{
    struct item *items = items_new(8);
    struct weir_file *file;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 32, 4 * MIB, 0);
    rig.device.fault = fail_all;
    for (uint32_t i = 0; i < 8; i++)
        read_of(&rig, file, &items[i], i * 100, 4096);
    items_submit(rig.queue, items, 8);
    rig_drain(rig.queue);
    for (uint32_t i = 0; i < 8; i++) {
        check_code(items[i].probe.done, 1);
        check_code(items[i].probe.result, -EIO);
        check_code(items[i].probe.error.code, -EIO);
    }
    check(rig.device.log_count <= 3); /* it was tried three times, for all */
    check_code((int64_t)rig_stats(&rig).cache_blocks, 0);
    rig.device.fault = NULL;
    run_read(&rig, file, 0, 4096);
    cached_close(&rig, file);
    items_free(items, 8);
}

static void cached__blocks_grow_old(void **state)
{
    struct weir_file *file;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 32, 4 * MIB, 1000 * TEST_MS);
    run_read(&rig, file, 0, BLOCK);
    test_device_pass(&rig.device, 900 * TEST_MS);
    run_read(&rig, file, 0, BLOCK);
    check_code((int64_t)rig.device.log_count, 1);
    test_device_pass(&rig.device, 200 * TEST_MS);
    run_read(&rig, file, 0, BLOCK);
    check_code((int64_t)rig.device.log_count, 2);
    check_code((int64_t)rig_stats(&rig).cache_expired, 1);
    run_read(&rig, file, 0, BLOCK);
    check_code((int64_t)rig.device.log_count, 2);
    cached_close(&rig, file);
}

static void cached__a_scan_read_once_leaves_what_is_in_use(void **state)
{
    struct item *item = items_new(1);
    struct weir_file *file;
    struct rig rig;
    size_t before;

    (void)state;
    cached_rig(&rig, &file, 64, 64 * MIB, 0);
    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t i = 0; i < 20; i++)
            run_read(&rig, file, i * BLOCK, BLOCK);
    for (uint32_t i = 100; i < 600; i++) {
        read_of(&rig, file, item, i * BLOCK, BLOCK);
        item->probe.job.flags = WEIR_JOB_ONCE;
        items_submit(rig.queue, item, 1);
        rig_drain(rig.queue);
        items_check(&rig, item, 1);
    }
    before = rig.device.log_count;
    for (uint32_t i = 0; i < 20; i++)
        run_read(&rig, file, i * BLOCK, BLOCK);
    check_code((int64_t)(rig.device.log_count - before), 0);
    cached_close(&rig, file);
    items_free(item, 1);
}

static void cached__willneed_loads_and_is_done_at_once(void **state)
{
    struct weir_file *file;
    struct probe probe;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, 64, 8 * MIB, 0);
    weir_job_prepare(&probe.job, WEIR_OP_ADVISE, file, probe_done, &probe);
    probe.job.mode = WEIR_ADVICE_WILLNEED;
    probe.job.offset = 5 * BLOCK;
    probe.job.len = 10 * BLOCK;
    probe_submit(rig.queue, &probe);
    check_code(weir_queue_wait(rig.queue, 1, WEIR_FOREVER), 1);
    check(probe.result >= 0);
    check_code((int64_t)rig.device.now_ns, 3600 * (int64_t)1000 * (int64_t)TEST_MS);
    /* What it loads is nobody's job, and comes while the queue is run for others. */
    for (int i = 0; i < 20; i++) {
        check(weir_queue_run(rig.queue) >= 0);
        test_device_pass(&rig.device, TEST_MS);
    }
    test_device_forget(&rig.device);
    run_read(&rig, file, 5 * BLOCK, 10 * BLOCK);
    check_code((int64_t)rig.device.log_count, 0);
    cached_close(&rig, file);
}

/* --- READ_MANY ------------------------------------------------------------------------ */

static int64_t fail_block_9(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset <= 9 * BLOCK && 9 * BLOCK < entry->offset + entry->bytes ? -EIO
                                                                                  : INT64_MAX;
}

static void cached__many_ranges_through_the_cache(void **state)
{
    enum {
        RANGES = 200,
        SIZE = 2000000
    };
    struct weir_range ranges[RANGES];
    uint8_t *bytes = malloc(RANGES * 3000);
    struct test_rng rng = { test_seed() + 20 };
    struct weir_file *file;
    struct probe probe;
    struct rig rig;

    (void)state;
    for (int bad = 0; bad < 2; bad++) {
        int64_t sum = 0;
        int64_t got;
        bool failed = false;

        cached_rig(&rig, &file, 64, SIZE, 0);
        rig.device.fault = bad ? fail_block_9 : NULL;
        for (uint32_t i = 0; i < RANGES; i++)
            ranges[i] = (struct weir_range){ bytes + i * 3000,
                                             1 + rng_below(&rng, 3000),
                                             rng_below(&rng, SIZE + 1000),
                                             -1,
                                             { 0 } };
        weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, file, probe_done, &probe);
        probe.job.buf = ranges;
        probe.job.len = RANGES;
        got = probe_run(rig.queue, &probe);
        for (uint32_t i = 0; i < RANGES; i++) {
            uint64_t offset = ranges[i].offset;
            uint64_t end = offset + ranges[i].len;
            int64_t want = offset >= SIZE ? 0
                           : end > SIZE   ? (int64_t)(SIZE - offset)
                                          : (int64_t)ranges[i].len;

            if (bad && end > 9 * BLOCK && offset < 10 * BLOCK) {
                check_code(ranges[i].result, -EIO);
                failed = true;
                continue;
            }
            check_code(ranges[i].result, want);
            check_pattern(ranges[i].buf, (size_t)want, rig.device.seed, offset);
            sum += want;
        }
        check(failed == (bad != 0));
        check_code(got, bad ? -EIO : sum);
        check_code(probe.error.code, bad ? -EIO : 0);
        cached_close(&rig, file);
    }
    free(bytes);
}

/* --- views, and room ------------------------------------------------------------------ */

static void cached__views_pin_and_are_bounded(void **state)
{
    enum {
        BLOCKS = 64
    };
    struct weir_view views[BLOCKS];
    struct weir_view more;
    struct weir_file *file;
    struct probe probe;
    struct rig rig;
    int pinned = 0;

    (void)state;
    cached_rig(&rig, &file, BLOCKS, 32 * MIB, 0);
    for (; pinned < BLOCKS; pinned++) {
        int64_t result;

        view_of(&probe, file, (uint64_t)pinned * BLOCK + 100, 2 * BLOCK, &views[pinned]);
        result = probe_run(rig.queue, &probe);
        if (result < 0) {
            check_code(result, -ENOBUFS);
            break;
        }
        check_code((int64_t)views[pinned].len, BLOCK - 100); /* up to the end of the block */
        check_code(result, BLOCK - 100);
    }
    check_code(pinned, BLOCKS * 3 / 4);
    check_code((int64_t)rig_stats(&rig).cache_pinned, pinned);
    check_code(weir_view_try(file, 0, 10, &more), -ENOBUFS);
    /* Reads that copy go on, though most of the cache is pinned; what is pinned stays. */
    for (uint32_t i = 0; i < 8; i++)
        run_read(&rig, file, (100 + i * 40) * BLOCK, 40 * BLOCK);
    for (int i = 0; i < pinned; i++)
        check_pattern(views[i].data, views[i].len, rig.device.seed, views[i].offset);
    weir_view_release(&views[7]);
    check_code(weir_view_try(file, 8 * BLOCK + 5, 10, &more), 0);
    check_code((int64_t)more.len, 10);
    check_pattern(more.data, 10, rig.device.seed, 8 * BLOCK + 5);
    weir_view_release(&more);
    for (int i = 0; i < pinned; i++)
        weir_view_release(&views[i]); /* one of them twice: it is empty */
    check_code((int64_t)rig_stats(&rig).cache_pinned, 0);
    cached_close(&rig, file);
}

/* More blocks wanted at once than there are frames, and most of those pinned. */
static void cached__few_frames_for_many_readers(void **state)
{
    enum {
        BLOCKS = 16,
        COUNT_ = 300
    };
    struct weir_view views[BLOCKS];
    struct item *items = items_new(COUNT_);
    struct test_rng rng = { test_seed() + 21 };
    struct weir_queue *queues[2];
    struct weir_file *file;
    struct probe probe;
    struct rig rig;

    (void)state;
    for (int pinned = 0; pinned <= 12; pinned += 12) {
        cached_rig(&rig, &file, BLOCKS, 64 * MIB, 0);
        queues[0] = rig.queue;
        queues[1] = rig_queue(&rig, NULL);
        for (int i = 0; i < pinned; i++) {
            view_of(&probe, file, (uint64_t)i * BLOCK, BLOCK, &views[i]);
            check_code(probe_run(rig.queue, &probe), BLOCK);
        }
        for (uint32_t i = 0; i < COUNT_; i++) {
            read_of(&rig, file, &items[i], rng_below(&rng, 900) * BLOCK,
                    1 + rng_below(&rng, 6 * BLOCK));
            items[i].probe.job.io_class = (uint8_t)rng_below(&rng, WEIR_CLASSES);
        }
        items_submit(queues[0], items, COUNT_ / 2);
        items_submit(queues[1], items + COUNT_ / 2, COUNT_ / 2);
        for (uint32_t i = 0; i < COUNT_;) {
            (void)test_device_step(&rig.device, queues, 2);
            while (i < COUNT_ && items[i].probe.done > 0)
                i++;
        }
        items_check(&rig, items, COUNT_);
        for (int i = 0; i < pinned; i++) {
            check_pattern(views[i].data, BLOCK, rig.device.seed, (uint64_t)i * BLOCK);
            weir_view_release(&views[i]);
        }
        check_code(weir_queue_close(queues[1], 0), 0);
        cached_close(&rig, file);
    }
    items_free(items, COUNT_);
}

/* A queue whose owner never runs it holds frames that are being loaded: others still go on. */
static void cached__a_queue_that_nobody_runs_holds_nobody_up(void **state)
{
    enum {
        BLOCKS = 16
    };
    struct item *items = items_new(2 * BLOCKS);
    struct weir_file *file;
    struct weir_queue *left_alone;
    struct rig rig;

    (void)state;
    cached_rig(&rig, &file, BLOCKS, 64 * MIB, 0);
    left_alone = rig_queue(&rig, NULL);
    for (uint32_t i = 0; i < 2 * BLOCKS; i++)
        read_of(&rig, file, &items[i], i % BLOCKS * BLOCK, BLOCK);
    items_submit(left_alone, items, BLOCKS);
    check(weir_queue_run(left_alone) >= 0);
    items_submit(rig.queue, items + BLOCKS, BLOCKS);
    rig_drain(rig.queue);
    items_check(&rig, items + BLOCKS, BLOCKS);
    for (uint32_t i = 0; i < 40; i++)
        run_read(&rig, file, (100 + i) * BLOCK, BLOCK);
    rig_drain(left_alone);
    items_check(&rig, items, BLOCKS);
    check_code(weir_queue_close(left_alone, 0), 0);
    cached_close(&rig, file);
    items_free(items, 2 * BLOCKS);
}

/* --- readers that leave --------------------------------------------------------------- */

static void cached__a_reader_that_leaves_does_not_end_the_load(void **state)
{
    struct item *items = items_new(3);
    struct weir_file *file;
    struct rig rig;
    uint64_t began_ns;

    (void)state;
    for (int alone = 0; alone < 2; alone++) {
        cached_rig(&rig, &file, 32, 4 * MIB, 0);
        rig.device.latency_ns = 50 * TEST_MS;
        for (uint32_t i = 0; i < 3; i++)
            read_of(&rig, file, &items[i], i * 100, 4096);
        items[1].probe.job.timeout_ns = 10 * TEST_MS;
        began_ns = rig.device.now_ns;
        items_submit(rig.queue, items, alone ? 2 : 3);
        check(weir_queue_run(rig.queue) >= 0);
        check_code(weir_queue_cancel(rig.queue, items[0].probe.job.id), 0);
        check_code(weir_queue_run(rig.queue), 1);
        check_code(items[0].probe.result, -ECANCELED);
        check_code(weir_queue_wait(rig.queue, 1, WEIR_FOREVER), 1);
        check_code(items[1].probe.result, -ETIMEDOUT);
        check(rig.device.now_ns < began_ns + 15 * TEST_MS);
        check_code((int64_t)rig.device.ops, 1);
        rig_drain(rig.queue);
        test_device_pass(&rig.device, 60 * TEST_MS);
        check(weir_queue_run(rig.queue) >= 0);
        if (!alone)
            items_check(&rig, items + 2, 1);
        run_read(&rig, file, 0, BLOCK);
        check_code((int64_t)rig.device.log_count, 1);
        cached_close(&rig, file);
    }
    items_free(items, 3);
}

static void cached__close_with_readers_and_loads(void **state)
{
    enum {
        COUNT_ = 200
    };
    struct item *items = items_new(COUNT_);
    struct weir_file *file;
    struct rig rig;

    (void)state;
    for (int run = 0; run < 2; run++) {
        cached_rig(&rig, &file, 32, 64 * MIB, 0);
        for (uint32_t i = 0; i < COUNT_; i++)
            read_of(&rig, file, &items[i], i % 90 * 2 * BLOCK, BLOCK / 2);
        items_submit(rig.queue, items, COUNT_);
        if (run)
            check(weir_queue_run(rig.queue) >= 0);
        check_code(weir_queue_close(rig.queue, TEST_LONG), 0);
        rig.queue = NULL;
        for (uint32_t i = 0; i < COUNT_; i++) {
            check_code(items[i].probe.done, 1);
            check(items[i].probe.result == -ECANCELED ||
                  items[i].probe.result == (int64_t)BLOCK / 2);
        }
        check_code((int64_t)rig.device.ops, 0);
        cached_close(&rig, file);
    }
    items_free(items, COUNT_);
}

/* --- our own writes ------------------------------------------------------------------- */

struct write_race {
    uint64_t load_ns;
    uint64_t write_ns;
};

static void race_watch(struct test_device *device, const struct device_op *entry)
{
    const struct write_race *race = device->context;
    bool next_is_write = entry->kind == WI_OP_READ || entry->kind == WI_OP_READV;

    device->latency_ns = next_is_write ? race->write_ns : race->load_ns;
}

/* A write that begins while the block is loaded: whoever reads after it has ended sees it. */
static void cached__a_write_during_the_load_is_not_lost(void **state)
{
    static const struct write_race races[] = { { 50 * TEST_MS, 10 * TEST_MS },
                                               { 10 * TEST_MS, 50 * TEST_MS } };
    struct item *items = items_new(4);
    struct weir_file *file;
    struct rig rig;

    (void)state;
    for (size_t r = 0; r < 2 * COUNT(races); r++) {
        struct write_race race = races[r / 2];

        cached_rig(&rig, &file, 32, 4 * MIB, 0);
        rig.device.watch = race_watch;
        rig.device.context = &race;
        rig.device.latency_ns = race.load_ns;
        rig.device.early = r % 2 == 0;
        read_of(&rig, file, &items[0], 0, BLOCK);
        items_submit(rig.queue, items, 1);
        check(weir_queue_run(rig.queue) >= 0);
        write_of(&rig, file, &items[1], 1000, 500, 999);
        items_submit(rig.queue, items + 1, 1);
        while (items[1].probe.done == 0)
            check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
        check_code(items[1].probe.result, 500);
        read_of(&rig, file, &items[2], 0, BLOCK);
        items_submit(rig.queue, items + 2, 1);
        rig_drain(rig.queue);
        check_code(items[2].probe.result, BLOCK);
        check_pattern(items[2].buf, 1000, rig.device.seed, 0);
        check_pattern(items[2].buf + 1000, 500, 999, 1000);
        check_pattern(items[2].buf + 1500, BLOCK - 1500, rig.device.seed, 1500);
        /* And whatever is cached now is right, too. */
        read_of(&rig, file, &items[3], 1000, 500);
        items_submit(rig.queue, items + 3, 1);
        rig_drain(rig.queue);
        check_pattern(items[3].buf, 500, 999, 1000);
        cached_close(&rig, file);
    }
    items_free(items, 4);
}

/*
 * Random reads and writes of two queues on a few blocks, half of which fit the cache. Each
 * sector carries its version. A read must not see less than what had been done when it was
 * submitted, nor more than what was submitted when it was done.
 */
enum {
    SECTOR = 512,
    SECTORS = 32 * 8 * 4,
    VERSIONED_SLOTS = 60
};

struct versions {
    struct rig rig;
    struct weir_file *file;
    struct weir_queue *queues[2];
    struct test_rng rng;
    uint32_t done[SECTORS];  /* the highest version whose write was done */
    uint32_t given[SECTORS]; /* the highest version whose write was submitted */
    bool writing[SECTORS];
    uint64_t reads, writes;
    struct versioned {
        struct weir_job job;
        struct versions *all;
        bool busy;
        bool write;
        uint32_t first;
        uint32_t count;
        uint32_t least[64];
        uint8_t buf[64 * SECTOR];
    } slots[VERSIONED_SLOTS];
};

static void sector_fill(uint8_t *buf, uint32_t number, uint32_t version)
{
    for (uint32_t i = 0; i < SECTOR; i += 8) {
        memcpy(buf + i, &number, 4);
        memcpy(buf + i + 4, &version, 4);
    }
}

static void versioned_done(struct weir_job *job)
{
    struct versioned *slot = job->arg;
    struct versions *all = slot->all;

    slot->busy = false;
    if (slot->write) {
        check_code(job->result, slot->count * SECTOR);
        for (uint32_t i = 0; i < slot->count; i++) {
            all->writing[slot->first + i] = false;
            all->done[slot->first + i] = all->given[slot->first + i];
        }
        all->writes++;
        return;
    }
    check_code(job->result, slot->count * SECTOR);
    all->reads++;
    for (uint32_t i = 0; i < slot->count; i++) {
        uint32_t number = slot->first + i;
        uint8_t want[SECTOR];
        uint32_t version;

        memcpy(&version, slot->buf + i * SECTOR + 4, 4);
        if (version < slot->least[i] || version > all->given[number])
            fail_msg("sector %u has version %u, not %u to %u", number, version, slot->least[i],
                     all->given[number]);
        sector_fill(want, number, version);
        check(memcmp(want, slot->buf + i * SECTOR, SECTOR) == 0);
    }
}

static void versioned_submit(struct versions *all)
{
    struct versioned *slot = &all->slots[rng_below(&all->rng, VERSIONED_SLOTS)];
    struct weir_job *job = &slot->job;

    if (slot->busy)
        return;
    slot->all = all;
    slot->busy = true;
    slot->write = rng_below(&all->rng, 3) == 0;
    slot->count = 1 + (uint32_t)rng_below(&all->rng, slot->write ? 12 : 64);
    slot->first = (uint32_t)rng_below(&all->rng, SECTORS - slot->count + 1);
    for (uint32_t i = 0; i < slot->count && slot->write; i++) {
        if (all->writing[slot->first + i]) {
            slot->busy = false;
            return;
        }
    }
    for (uint32_t i = 0; i < slot->count; i++) {
        uint32_t number = slot->first + i;

        slot->least[i] = all->done[number];
        if (!slot->write)
            continue;
        all->writing[number] = true;
        sector_fill(slot->buf + i * SECTOR, number, ++all->given[number]);
    }
    if (slot->write)
        weir_job_write(job, all->file, slot->buf, slot->count * SECTOR,
                       slot->first * UINT64_C(512), versioned_done, slot);
    else
        weir_job_read(job, all->file, slot->buf, slot->count * SECTOR,
                      slot->first * UINT64_C(512), versioned_done, slot);
    job->io_class = (uint8_t)rng_below(&all->rng, WEIR_CLASSES);
    check_code(weir_queue_submit(all->queues[rng_below(&all->rng, 2)], &job, 1), 1);
}

static void versions_watch(struct test_device *device, const struct device_op *entry)
{
    struct versions *all = device->context;

    (void)entry;
    device->latency_ns = 1 + rng_below(&all->rng, 400 * TEST_US);
    device->early = rng_below(&all->rng, 2) == 0;
}

/* Returns how many blocks were found in the cache. */
static uint64_t run_versions(uint64_t seed)
{
    uint64_t hits;
    struct versions *all = calloc(1, sizeof(*all));
    struct weir_engine_options options = { .cache_bytes = 16 * 4096, .cache_block_size = 4096 };
    struct weir_queue_options queue_options = {
        .depth = 4 + (uint32_t)(seed % 20),
        .flags = seed % 2 ? WEIR_QUEUE_NO_PREFETCH : 0,
    };

    options.cache_bytes = (16 + seed % 80) * 4096;
    options.cache_policy = (uint32_t)(seed % WEIR_POLICIES);
    all->rng.state = seed;
    rig_init(&all->rig);
    all->rig.device.width = 8;
    all->rig.device.watch = versions_watch;
    all->rig.device.context = all;
    rig_start(&all->rig, &options, &queue_options);
    test_device_disk(&all->rig.device, SECTORS * SECTOR, SECTORS * SECTOR);
    for (uint32_t i = 0; i < SECTORS; i++)
        sector_fill(all->rig.device.disk + i * SECTOR, i, 0);
    all->file = rig_file(&all->rig, SECTORS * SECTOR,
                         WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CACHED);
    all->queues[0] = all->rig.queue;
    all->queues[1] = rig_queue(&all->rig, &queue_options);
    for (int i = 0; i < 6000; i++) {
        versioned_submit(all);
        if (rng_below(&all->rng, 2))
            (void)test_device_step(&all->rig.device, all->queues, 2);
        if (rng_below(&all->rng, 20) == 0)
            check(weir_queue_wait(all->queues[rng_below(&all->rng, 2)], 1, TEST_MS) >= 0);
    }
    rig_drain(all->queues[0]);
    rig_drain(all->queues[1]);
    for (uint32_t i = 0; i < SECTORS; i++) {
        uint32_t version;

        memcpy(&version, all->rig.device.disk + i * SECTOR + 4, 4);
        check_code(version, all->given[i]);
    }
    if (all->reads < 300 || all->writes < 100)
        fail_msg("only %" PRIu64 " reads and %" PRIu64 " writes", all->reads, all->writes);
    hits = rig_stats(&all->rig).cache_hits;
    check_code(weir_queue_close(all->queues[1], 0), 0);
    cached_close(&all->rig, all->file);
    free(all);
    return hits;
}

static void cached__reads_never_miss_a_write_that_was_done(void **state)
{
    uint64_t rounds = test_env_number("WEIR_SCHED_ROUNDS", 20);
    uint64_t hits = 0;

    (void)state;
    for (uint64_t i = 0; i < rounds; i++) {
        print_message("run WEIR_SEED=%" PRIu64 "\n", test_seed() + i);
        hits += run_versions(test_seed() + i);
    }
    check(hits > 0); /* none with the smallest cache: it is all being loaded */
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cached__one_load_for_all_readers_of_a_queue),
        cmocka_unit_test(cached__a_hit_takes_no_device_and_no_time),
        cmocka_unit_test(cached__two_queues_read_twice_rather_than_wait),
        cmocka_unit_test(cached__blocks_of_one_read_are_loaded_together),
        cmocka_unit_test(cached__the_end_of_the_file),
        cmocka_unit_test(cached__a_failed_load_fails_its_readers_and_leaves_nothing),
        cmocka_unit_test(cached__blocks_grow_old),
        cmocka_unit_test(cached__a_scan_read_once_leaves_what_is_in_use),
        cmocka_unit_test(cached__willneed_loads_and_is_done_at_once),
        cmocka_unit_test(cached__many_ranges_through_the_cache),
        cmocka_unit_test(cached__views_pin_and_are_bounded),
        cmocka_unit_test(cached__few_frames_for_many_readers),
        cmocka_unit_test(cached__a_queue_that_nobody_runs_holds_nobody_up),
        cmocka_unit_test(cached__a_reader_that_leaves_does_not_end_the_load),
        cmocka_unit_test(cached__close_with_readers_and_loads),
        cmocka_unit_test(cached__a_write_during_the_load_is_not_lost),
        cmocka_unit_test(cached__reads_never_miss_a_write_that_was_done),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_cached", 200);
    return cmocka_run_group_tests_name("sched_cached", tests, NULL, NULL);
}
