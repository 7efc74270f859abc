/* SPDX-License-Identifier: MIT */
/*
 * test_prefetch.c - reading ahead, as a queue does it: what is read, when, for whom, and what
 * of it was for nothing (what a stream is has its own test, in unit/engine)
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK ((size_t)64 * 1024)

enum {
    FILE_BLOCKS = 320,
    CACHE_BLOCKS = 256
};
#define FILE_SIZE ((uint64_t)FILE_BLOCKS * BLOCK)

struct scan {
    struct rig rig;
    struct weir_file *file;
    uint64_t waited; /* reads that took time */
    uint64_t read;   /* all */
    uint64_t ahead;  /* blocks that the device was asked for beyond the reader, at most */
    uint64_t took_ns;
    uint64_t pause_ns; /* after each read */
};

static void scan_open(struct scan *scan, const struct weir_queue_options *options)
{
    struct weir_engine_options engine_options = { .cache_bytes = CACHE_BLOCKS * BLOCK };

    memset(scan, 0, sizeof(*scan));
    rig_init(&scan->rig);
    scan->rig.device.width = 32;
    scan->rig.device.latency_ns = 200 * TEST_US;
    scan->rig.device.disk_size = FILE_SIZE;
    rig_start(&scan->rig, &engine_options, options);
    scan->file = rig_file(&scan->rig, FILE_SIZE, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
}

static void scan_close(struct scan *scan)
{
    check_code(weir_file_close(scan->file), 0);
    rig_close(&scan->rig);
}

static void pass_and_run(struct scan *scan, uint64_t ns)
{
    uint64_t until_ns = scan->rig.device.now_ns + ns;

    while (scan->rig.device.now_ns < until_ns) {
        check(weir_queue_run(scan->rig.queue) >= 0);
        test_device_pass(&scan->rig.device, 50 * TEST_US);
    }
    check(weir_queue_run(scan->rig.queue) >= 0);
}

static void scan_read(struct scan *scan, uint64_t block, uint32_t io_class)
{
    static uint8_t buf[64 * 1024];
    struct test_device *device = &scan->rig.device;
    uint64_t began_ns = device->now_ns;
    struct probe probe;

    weir_job_read(&probe.job, scan->file, buf, BLOCK, block * BLOCK, probe_done, &probe);
    probe.job.io_class = (uint8_t)io_class;
    check_code(probe_run(scan->rig.queue, &probe), BLOCK);
    check_pattern(buf, 64, device->seed, block * BLOCK);
    check_pattern(buf + BLOCK - 64, 64, device->seed, block * BLOCK + BLOCK - 64);
    scan->read++;
    scan->waited += device->now_ns > began_ns;
    scan->took_ns += device->now_ns - began_ns;
    for (size_t i = device->log_count > 64 ? device->log_count - 64 : 0; i < device->log_count;
         i++) {
        uint64_t end = (device->log[i].offset + device->log[i].bytes) / BLOCK;

        if (end > block + 1 && end - block - 1 > scan->ahead)
            scan->ahead = end - block - 1;
    }
    if (scan->pause_ns > 0)
        pass_and_run(scan, scan->pause_ns);
}

/* Let what is under way end. */
static void settle(struct scan *scan)
{
    pass_and_run(scan, 50 * TEST_MS);
    check_code((int64_t)scan->rig.device.ops, 0);
}

static uint64_t bytes_read(const struct scan *scan)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < scan->rig.device.log_count; i++)
        bytes += scan->rig.device.log[i].bytes;
    return bytes;
}

/* --- patterns ------------------------------------------------------------------------- */

static uint64_t forward(uint64_t i)
{
    return i;
}

static uint64_t backward(uint64_t i)
{
    return FILE_BLOCKS - 1 - i;
}

static uint64_t every_fifth(uint64_t i)
{
    return i * 5;
}

static uint64_t every_fifth_back(uint64_t i)
{
    return FILE_BLOCKS - 1 - i * 5;
}

static void prefetch__patterns_are_read_ahead_and_only_once(void **state)
{
    static const struct {
        uint64_t (*block)(uint64_t i);
        uint64_t count;
        uint64_t first; /* reads that may wait before it is known */
    } patterns[] = { { forward, FILE_BLOCKS, 2 },
                     { backward, FILE_BLOCKS, 5 },
                     { every_fifth, FILE_BLOCKS / 5, 5 },
                     { every_fifth_back, FILE_BLOCKS / 5, 5 } };
    struct weir_queue_options off = { .flags = WEIR_QUEUE_NO_PREFETCH };
    struct scan scan;

    (void)state;
    for (size_t p = 0; p < COUNT(patterns); p++) {
        struct weir_stats stats;
        uint64_t off_ns;

        scan_open(&scan, &off);
        for (uint64_t i = 0; i < patterns[p].count; i++)
            scan_read(&scan, patterns[p].block(i), WEIR_CLASS_FOREGROUND);
        off_ns = scan.took_ns;
        check_code((int64_t)scan.waited, (int64_t)patterns[p].count);
        check_code((int64_t)rig_stats(&scan.rig).prefetch_bytes, 0);
        scan_close(&scan);

        scan_open(&scan, NULL);
        for (uint64_t i = 0; i < patterns[p].count; i++)
            scan_read(&scan, patterns[p].block(i), WEIR_CLASS_FOREGROUND);
        settle(&scan);
        stats = rig_stats(&scan.rig);
        /* Two times as fast at least; and next to nothing was read twice, or in vain. */
        if (scan.took_ns * 2 > off_ns)
            fail_msg("pattern %zu: %zu us, without prefetch %zu us", p,
                     (size_t)scan.took_ns / 1000, (size_t)off_ns / 1000);
        check(stats.prefetch_bytes >= (patterns[p].count - patterns[p].first) * BLOCK * 9 / 10);
        /* A first read at the start of the file has a small window, which a stride leaves. */
        check(stats.prefetch_used + stats.prefetch_wasted <= stats.prefetch_bytes);
        check(stats.prefetch_used + stats.prefetch_wasted + 4 * BLOCK >= stats.prefetch_bytes);
        if (stats.prefetch_wasted > stats.prefetch_bytes / 20)
            fail_msg("pattern %zu: %zu of %zu KiB in vain", p,
                     (size_t)stats.prefetch_wasted / 1024, (size_t)stats.prefetch_bytes / 1024);
        check(stats.cache_loads * BLOCK ==
              patterns[p].count * BLOCK + stats.prefetch_bytes - stats.prefetch_used);
        if (patterns[p].count == FILE_BLOCKS)
            check(bytes_read(&scan) == FILE_SIZE + stats.prefetch_bytes - stats.prefetch_used);
        scan_close(&scan);
    }
}

static void prefetch__random_reads_foretell_nothing(void **state)
{
    struct test_rng rng = { test_seed() + 30 };
    struct weir_stats stats;
    struct scan scan;

    (void)state;
    scan_open(&scan, NULL);
    for (int i = 0; i < 3000; i++)
        scan_read(&scan, rng_below(&rng, FILE_BLOCKS), WEIR_CLASS_FOREGROUND);
    settle(&scan);
    stats = rig_stats(&scan.rig);
    if (stats.prefetch_bytes > 3000 * BLOCK / 50)
        fail_msg("%zu KiB read ahead", (size_t)stats.prefetch_bytes / 1024);
    scan_close(&scan);
}

static void prefetch__advice_decides(void **state)
{
    static const uint32_t advices[] = { WEIR_ADVICE_RANDOM, WEIR_ADVICE_SEQUENTIAL,
                                        WEIR_ADVICE_NORMAL };
    struct weir_stats stats;
    struct scan scan;

    (void)state;
    for (size_t a = 0; a < COUNT(advices); a++) {
        scan_open(&scan, NULL);
        check_code(weir_file_advise(scan.file, advices[a], 0, 0, NULL), 0);
        scan_read(&scan, 100, WEIR_CLASS_FOREGROUND);
        settle(&scan);
        stats = rig_stats(&scan.rig);
        if (advices[a] == WEIR_ADVICE_SEQUENTIAL)
            check(stats.prefetch_bytes >= 128 * KIB); /* from the first read on */
        else
            check_code((int64_t)stats.prefetch_bytes, 0);
        for (uint64_t i = 101; i < 140; i++)
            scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
        settle(&scan);
        stats = rig_stats(&scan.rig);
        if (advices[a] == WEIR_ADVICE_RANDOM)
            check_code((int64_t)stats.prefetch_bytes, 0);
        else
            check(stats.prefetch_bytes > MIB);
        scan_close(&scan);
    }
}

/* --- how far -------------------------------------------------------------------------- */

static void prefetch__the_window_grows_only_by_waiting(void **state)
{
    struct scan scan;
    uint64_t slow;

    (void)state;
    /* A slow reader never waits, once it is known: the window stays as it began. */
    scan_open(&scan, NULL);
    scan.pause_ns = 3 * TEST_MS;
    for (uint64_t i = 0; i < 120; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    slow = scan.ahead;
    check(scan.waited <= 3);
    if (slow > 8)
        fail_msg("%zu blocks ahead of a reader that does not wait", (size_t)slow);
    scan_close(&scan);

    /* A fast one gets a large one, up to a quarter of the cache. */
    scan_open(&scan, NULL);
    for (uint64_t i = 0; i < FILE_BLOCKS; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    if (scan.ahead < 24 || scan.ahead > CACHE_BLOCKS / 4 + 8)
        fail_msg("%zu blocks ahead of a reader that waits", (size_t)scan.ahead);
    scan_close(&scan);
}

static void prefetch__never_past_the_end_of_the_file(void **state)
{
    struct scan scan;

    (void)state;
    scan_open(&scan, NULL);
    for (uint64_t i = FILE_BLOCKS - 10; i < FILE_BLOCKS; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    settle(&scan);
    for (size_t i = 0; i < scan.rig.device.log_count; i++)
        check(scan.rig.device.log[i].offset + scan.rig.device.log[i].bytes <= FILE_SIZE);
    check_code((int64_t)rig_stats(&scan.rig).prefetch_wasted, 0);
    scan_close(&scan);
}

/* --- for whom ------------------------------------------------------------------------- */

/* Four hundred foreground reads fight for the queue's one place, and what was read ahead waits
 * behind them, as PREFETCH, until a commit comes to need it. */
static void prefetch__a_demand_raises_what_it_waits_for(void **state)
{
    enum {
        OTHERS = 400
    };
    struct weir_queue_options options = { .depth = 1, .flags = WEIR_QUEUE_NO_MERGE };
    struct item *items = items_new(OTHERS);
    uint8_t *buf = malloc(BLOCK);
    struct test_device *device;
    struct scan scan;
    struct probe probe;
    size_t before;
    size_t at;

    (void)state;
    scan_open(&scan, &options);
    device = &scan.rig.device;
    scan_read(&scan, 0, WEIR_CLASS_FOREGROUND); /* foretells blocks 1 to 4 */
    for (uint32_t i = 0; i < OTHERS; i++)
        item_read(&scan.rig, &items[i], WEIR_CLASS_SYNC, i % 300 * BLOCK, BLOCK);
    for (uint32_t i = 0; i < OTHERS; i++)
        items[i].probe.job.io_class = WEIR_CLASS_FOREGROUND;
    items_submit(scan.rig.queue, items, OTHERS);
    check(weir_queue_wait(scan.rig.queue, 3, WEIR_FOREVER) >= 3);
    before = device->log_count;
    weir_job_read(&probe.job, scan.file, buf, BLOCK, 4 * BLOCK, probe_done, &probe);
    probe.job.io_class = WEIR_CLASS_SYNC;
    probe_submit(scan.rig.queue, &probe);
    check_code(probe_wait(scan.rig.queue, &probe), BLOCK);
    check_pattern(buf, BLOCK, device->seed, 4 * BLOCK);
    for (at = 0; at < device->log_count; at++) {
        if (device->log[at].region == 0 && device->log[at].offset == 4 * BLOCK)
            break;
    }
    check(at >= before); /* or the test shows nothing */
    if (at > before + 1)
        fail_msg("%zu others went first", at - before);
    check_code((int64_t)rig_stats(&scan.rig).promoted, 1);
    rig_drain(scan.rig.queue);
    items_check(&scan.rig, items, OTHERS);
    scan_close(&scan);
    items_free(items, OTHERS);
    free(buf);
}

/* Reading ahead for those who give way gives way as well. */
static void low_watch(struct test_device *device, const struct device_op *entry)
{
    size_t low = 0;

    if (entry->region != 0)
        return;
    for (size_t i = 0; i < device->ops; i++)
        low += device->log[device->open[i]].region == 0;
    if (low > 1 || entry->bytes > 64 * KIB)
        fail_msg("%zu operations of a background scan, %zu bytes", low, (size_t)entry->bytes);
}

static void again(struct weir_job *job)
{
    struct rig *rig = job->arg;

    check_code(job->result, 4096);
    if (rig->device.context != NULL) {
        job->offset += 8192;
        check_code(weir_queue_submit(rig->queue, &job, 1), 1);
    }
}

static void prefetch__for_a_background_scan_gives_way(void **state)
{
    static uint8_t small[4096];
    struct weir_job urgent;
    struct weir_job *jobs[] = { &urgent };
    struct scan scan;

    (void)state;
    scan_open(&scan, NULL);
    scan.rig.device.context = &scan;
    weir_job_read(&urgent, scan.rig.file, small, 4096, region_of(WEIR_CLASS_SYNC), again,
                  &scan.rig);
    urgent.io_class = WEIR_CLASS_SYNC;
    check_code(weir_queue_submit(scan.rig.queue, jobs, 1), 1);
    check(weir_queue_run(scan.rig.queue) >= 0);
    scan.rig.device.watch = low_watch;
    for (uint64_t i = 0; i < 60; i++)
        scan_read(&scan, i, WEIR_CLASS_BACKGROUND);
    check(rig_stats(&scan.rig).prefetch_bytes > 0);
    scan.rig.device.watch = NULL;
    scan.rig.device.context = NULL;
    rig_drain(scan.rig.queue);
    scan_close(&scan);
}

/* --- for nothing ---------------------------------------------------------------------- */

static void prefetch__what_is_never_asked_for_is_counted(void **state)
{
    struct weir_stats stats;
    struct weir_file *other;
    struct scan scan;
    struct weir_file *first;
    uint64_t unused;

    (void)state;
    scan_open(&scan, NULL);
    for (uint64_t i = 0; i < 4; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    settle(&scan);
    stats = rig_stats(&scan.rig);
    check(stats.prefetch_bytes > stats.prefetch_used);
    check_code((int64_t)stats.prefetch_wasted, 0);
    unused = stats.prefetch_bytes - stats.prefetch_used;
    /* Others need the room, though not for reading ahead. */
    other = rig_file(&scan.rig, FILE_SIZE, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    check_code(weir_file_advise(other, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    first = scan.file;
    scan.file = other;
    for (uint64_t round = 0; round < 3; round++)
        for (uint64_t i = 0; i < FILE_BLOCKS; i++)
            scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    settle(&scan);
    scan.file = first;
    stats = rig_stats(&scan.rig);
    check_code((int64_t)stats.prefetch_wasted, (int64_t)unused);
    check_code((int64_t)(stats.prefetch_used + stats.prefetch_wasted),
               (int64_t)stats.prefetch_bytes);
    check(stats.prefetch_wasted > 0);
    check_code(weir_file_close(other), 0);
    scan_close(&scan);
}

/* A device that fails what is read ahead: the reader sees it only if it asks for that. */
static int64_t fail_block_20(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset <= 20 * BLOCK && 20 * BLOCK < entry->offset + entry->bytes ? -EIO
                                                                                    : INT64_MAX;
}

static void prefetch__failures_are_nobodys_until_asked_for(void **state)
{
    static uint8_t buf[64 * 1024];
    struct probe probe;
    struct scan scan;

    (void)state;
    scan_open(&scan, NULL);
    scan.rig.device.fault = fail_block_20;
    for (uint64_t i = 0; i < 20; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    weir_job_read(&probe.job, scan.file, buf, BLOCK, 20 * BLOCK, probe_done, &probe);
    check_code(probe_run(scan.rig.queue, &probe), -EIO);
    for (uint64_t i = 21; i < 60; i++)
        scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
    settle(&scan);
    scan.rig.device.fault = NULL;
    scan_read(&scan, 20, WEIR_CLASS_FOREGROUND);
    scan_close(&scan);
}

/* The file and the queue may go while the reading ahead is under way. */
static void prefetch__ends_with_its_file_and_its_queue(void **state)
{
    struct scan scan;

    (void)state;
    for (int how = 0; how < 2; how++) {
        scan_open(&scan, NULL);
        scan.rig.device.latency_ns = 20 * TEST_MS;
        for (uint64_t i = 0; i < 6 || (i < 60 && scan.rig.device.ops == 0); i++)
            scan_read(&scan, i, WEIR_CLASS_FOREGROUND);
        check(scan.rig.device.ops > 0);
        if (how == 0) {
            check_code(weir_file_close(scan.file), 0);
            check(weir_queue_run(scan.rig.queue) >= 0);
            rig_close(&scan.rig);
        } else {
            check_code(weir_queue_close(scan.rig.queue, TEST_LONG), 0);
            scan.rig.queue = NULL;
            check_code((int64_t)scan.rig.device.ops, 0);
            scan_close(&scan);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefetch__patterns_are_read_ahead_and_only_once),
        cmocka_unit_test(prefetch__random_reads_foretell_nothing),
        cmocka_unit_test(prefetch__advice_decides),
        cmocka_unit_test(prefetch__the_window_grows_only_by_waiting),
        cmocka_unit_test(prefetch__never_past_the_end_of_the_file),
        cmocka_unit_test(prefetch__a_demand_raises_what_it_waits_for),
        cmocka_unit_test(prefetch__for_a_background_scan_gives_way),
        cmocka_unit_test(prefetch__what_is_never_asked_for_is_counted),
        cmocka_unit_test(prefetch__failures_are_nobodys_until_asked_for),
        cmocka_unit_test(prefetch__ends_with_its_file_and_its_queue),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_prefetch", 200);
    return cmocka_run_group_tests_name("sched_prefetch", tests, NULL, NULL);
}
