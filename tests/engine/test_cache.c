/* SPDX-License-Identifier: MIT */
/*
 * test_cache.c - the block cache by blocking calls: what is found, kept, dropped and counted
 *
 * Reads of the device are counted by the fault injector, and the clocks are driven. What
 * belongs to the races between a load and what overtakes it is played by hand, step by step.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/cache_internal.h"
#include "os/fault.h"
#include "support/support.h"

#define SEED  11u
#define BLOCK ((size_t)4096)
#define RW    (WEIR_OPEN_READ | WEIR_OPEN_WRITE)

static const char *const policy_names[WEIR_POLICIES] = { "s3fifo", "2q", "arc", "lru", "lfu" };

/* ---- an engine with a cache, a driven clock and a plan of faults ----------------------- */

static struct {
    struct wi_os os;
    struct wi_os_ops ops;
    _Atomic uint64_t now_ns;
    _Atomic int64_t ahead_ns; /* of the time since 1970 */
    int statx_error;          /* 0: it works */
    int ftruncate_error;
} clock_os;

static uint64_t driven_now(const struct wi_os *os)
{
    (void)os;
    return atomic_load(&clock_os.now_ns);
}

static int64_t driven_real(const struct wi_os *os)
{
    return wi_os_posix()->ops->real_ns(os) + atomic_load(&clock_os.ahead_ns);
}

static int driven_statx(const struct wi_os *os, int dir, const char *path, int flags,
                        uint32_t mask, struct statx *ret_st)
{
    (void)os;
    return clock_os.statx_error
               ? clock_os.statx_error
               : wi_os_posix()->ops->statx(wi_os_posix(), dir, path, flags, mask, ret_st);
}

static int driven_ftruncate(const struct wi_os *os, int fd, uint64_t size)
{
    (void)os;
    return clock_os.ftruncate_error ? clock_os.ftruncate_error
                                    : wi_os_posix()->ops->ftruncate(wi_os_posix(), fd, size);
}

struct bed {
    struct wi_fault_plan *plan;
    struct weir_engine *engine;
    struct wi_cache *cache;
};

static struct bed bed_open(size_t cache_bytes, uint32_t policy, uint64_t ttl_ns)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = WEIR_BACKEND_THREADS,
                                           .cache_bytes = cache_bytes,
                                           .cache_block_size = BLOCK,
                                           .cache_policy = policy,
                                           .cache_ttl_ns = ttl_ns };
    struct wi_engine_seams seams = { .os = NULL };
    struct weir_error error;
    struct bed bed = { .plan = NULL };

    clock_os.ops = *wi_os_posix()->ops;
    clock_os.ops.now_ns = driven_now;
    clock_os.ops.real_ns = driven_real;
    clock_os.ops.statx = driven_statx;
    clock_os.ops.ftruncate = driven_ftruncate;
    clock_os.statx_error = 0;
    clock_os.ftruncate_error = 0;
    clock_os.os.ops = &clock_os.ops;
    atomic_store(&clock_os.now_ns, WI_SEC_NS);
    atomic_store(&clock_os.ahead_ns, 3600 * (int64_t)WI_SEC_NS);
    check_code(wi_fault_create(&clock_os.os, &bed.plan), 0);
    seams.os = wi_fault_os(bed.plan);
    check_code(wi_engine_open_with(&options, &seams, &bed.engine, &error), 0);
    bed.cache = bed.engine->cache;
    return bed;
}

static void bed_close(struct bed *bed)
{
    check_code(weir_engine_close(bed->engine), 0);
    wi_fault_destroy(bed->plan);
}

static struct weir_file *open_file(struct bed *bed, const char *path, uint32_t flags)
{
    struct weir_file *file = NULL;
    struct weir_error error = { .code = 0 };
    int rc = weir_file_open(bed->engine, NULL, path, flags, 0666, &file, &error);

    if (rc != 0)
        fail_msg("open of %s: %s: %s", path, weir_code_name(rc), error.text);
    /* Where the file system refuses it, the first load would be two calls. */
    atomic_store(&file->load_rwf, 0);
    return file;
}

static struct weir_file *open_pattern(struct bed *bed, size_t size, uint32_t flags)
{
    const char *path = test_new_path("cache");

    pattern_make_file(path, size, SEED);
    return open_file(bed, path, flags | WEIR_OPEN_CACHED);
}

static uint64_t reads_of(struct bed *bed)
{
    return wi_fault_seen(bed->plan, WI_FAULT_READ);
}

static struct weir_stats stats_of(struct bed *bed)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    check_code(weir_engine_stats(bed->engine, &stats), 0);
    return stats;
}

static void check_read(struct weir_file *file, size_t len, uint64_t offset)
{
    uint8_t *buf = malloc(len);

    check_code(weir_file_read(file, buf, len, offset), len);
    check_pattern(buf, len, SEED, offset);
    free(buf);
}

static bool is_cached(struct weir_file *file, uint64_t block)
{
    struct wi_cache *cache = file->engine->cache;
    struct wi_frame *frame;

    if (wi_cache_pin(cache, file, block, WI_PIN_PEEK, 0, &frame) == WI_PIN_MISS)
        return false;
    wi_cache_unpin(cache, frame);
    return true;
}

static uint8_t byte_at(struct weir_file *file, uint64_t offset)
{
    uint8_t byte = 0;

    check_code(weir_file_read(file, &byte, 1, offset), 1);
    return byte;
}

/* A load by hand; its end is load_end(). */
static struct wi_load_ticket load_begin(struct weir_file *file, uint64_t block, uint32_t flags)
{
    struct wi_load_ticket ticket;

    check_code(wi_cache_load_begin(file->engine->cache, file, block, flags, &ticket), 0);
    return ticket;
}

static void load_end(struct wi_load_ticket *ticket, bool demanded)
{
    struct weir_file *file = ticket->file;
    struct wi_cache *cache = file->engine->cache;
    ssize_t len =
        pread(file->fd, wi_load_data(cache, ticket), BLOCK, (off_t)(ticket->block * BLOCK));

    wi_cache_load_end(cache, ticket, len, demanded);
    check_code(wi_frame_len(ticket->frame), len);
    wi_cache_unpin(cache, ticket->frame);
}

/* In threads, which cmocka's checks can't end. */
#define must(condition) \
    ((condition) ? (void)0 : wi_assert_failed(#condition, __FILE__, __LINE__))

/* ---- hits ------------------------------------------------------------------------------ */

/* What was read once is not read again, and is counted so. */
static void cache__serves_again_what_it_has(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 10 * BLOCK + 100, WEIR_OPEN_READ);
    struct weir_stats stats;
    uint64_t reads;
    uint8_t buf[300];

    (void)state;
    check_read(file, 10 * BLOCK + 100, 0);
    reads = reads_of(&bed);
    check(reads >= 1);
    stats = stats_of(&bed);
    check_code(stats.cache_misses, 11);
    check_code(stats.cache_loads, 11);
    check_code(stats.cache_blocks, 11);
    check_code(stats.cache_hits, 0);
    check_code(stats.prefetch_bytes, 0);
    check_read(file, 5 * BLOCK, 3 * BLOCK + 7);
    check_read(file, 1, 10 * BLOCK + 99);
    check_code(weir_file_read(file, buf, 300, 10 * BLOCK), 100);
    check_pattern(buf, 100, SEED, 10 * BLOCK);
    check_code(reads_of(&bed), reads);
    check_code(stats_of(&bed).cache_hits, 8);
    check_code(stats_of(&bed).cache_misses, 11);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

static uint8_t uses_of(struct weir_file *file, uint64_t block)
{
    struct wi_cache *cache = file->engine->cache;
    struct wi_frame *frame;
    uint8_t uses;

    check_code(wi_cache_pin(cache, file, block, WI_PIN_PEEK, 0, &frame), WI_PIN_HIT);
    uses = atomic_load(&frame->node.uses);
    wi_cache_unpin(cache, frame);
    return uses;
}

/* What is read in small parts, in order, is used once a round; a scan uses nothing. */
static void cache__counts_uses_not_parts(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 2 * BLOCK, WEIR_OPEN_READ);
    struct weir_view view;

    (void)state;
    for (uint8_t round = 0; round < 3; round++) {
        check_code(weir_file_advise(file, round == 2 ? WEIR_ADVICE_ONCE : WEIR_ADVICE_RANDOM, 0,
                                    0, NULL),
                   0);
        for (uint64_t at = 0; at < 2 * BLOCK; at += BLOCK / 4)
            check_read(file, BLOCK / 4, at);
        check_code(uses_of(file, 0), round > 0);
        check_code(uses_of(file, 1), round > 0);
    }
    check_code(weir_file_advise(file, WEIR_ADVICE_NORMAL, 0, 0, NULL), 0);
    check_code(weir_view_try(file, 5, 5, &view), 0);
    weir_view_release(&view);
    check_code(uses_of(file, 0), 2);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Pieces of memory of any length are filled in order. */
static void cache__reads_into_pieces(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 3 * BLOCK + 50, WEIR_OPEN_READ);
    uint8_t buf[4 * BLOCK];

    (void)state;
    for (int round = 0; round < 2; round++) {
        struct iovec iov[5] = { { buf, 1 },
                                { buf + 1, 0 },
                                { buf + 1, BLOCK },
                                { buf + 1 + BLOCK, 7 },
                                { buf + 8 + BLOCK, 3 * BLOCK - 8 } };
        uint64_t moved = 0;

        memset(buf, 0, sizeof(buf));
        check_code(weir_file_transfer(file, 0, iov, 5, 100, &moved, NULL), 3 * BLOCK - 50);
        check_code(moved, 3 * BLOCK - 50);
        check_pattern(buf, 3 * BLOCK - 50, SEED, 100);
        check(buf[3 * BLOCK - 50] == 0);
    }
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* A view ends with its block, or with the file; and what isn't there is no view. */
static void view__is_a_piece_of_one_block(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 2 * BLOCK + 100, WEIR_OPEN_READ);
    struct weir_file *plain = open_file(&bed, test_new_path("plain"), RW | WEIR_OPEN_CREATE);
    struct weir_view view = { .len = 1 };
    struct weir_error error;

    (void)state;
    check_code(weir_view_try(file, 10, 100, &view), -EAGAIN);
    check_code(weir_view_get(file, 10, 100, &view, &error), 0);
    check_code(view.len, 100);
    check_code(view.offset, 10);
    check_pattern(view.data, 100, SEED, 10);
    check_code(stats_of(&bed).cache_pinned, 1);
    weir_view_release(&view);
    check(view.len == 0 && view.data == NULL);
    weir_view_release(&view);
    check_code(stats_of(&bed).cache_pinned, 0);

    check_code(weir_view_try(file, BLOCK - 5, 100, &view), 0);
    check_code(view.len, 5);
    check_pattern(view.data, 5, SEED, BLOCK - 5);
    weir_view_release(&view);

    check_code(weir_view_get(file, 2 * BLOCK + 90, SIZE_MAX, &view, &error), 0);
    check_code(view.len, 10);
    check_pattern(view.data, 10, SEED, 2 * BLOCK + 90);
    weir_view_release(&view);
    check_code(weir_view_try(file, 2 * BLOCK + 100, 1, &view), 0);
    check_code(view.len, 0);
    check_code(weir_view_get(file, 9 * BLOCK, 1, &view, &error), 0);
    check_code(view.len, 0);
    check_code(stats_of(&bed).cache_pinned, 0);

    check_code(weir_view_try(file, 0, 0, &view), -EINVAL);
    check_code(weir_view_get(file, 1ull << 63, 1, &view, &error), -EINVAL);
    check_code(weir_view_try(NULL, 0, 1, &view), -EINVAL);
    check_code(weir_view_try(plain, 0, 1, &view), -EINVAL);
    check_code(weir_view_get(plain, 0, 1, &view, &error), -EINVAL);
    check(strstr(error.text, "WEIR_OPEN_CACHED") != NULL);
    check_code(weir_file_close(plain), 0);
    check_code(weir_file_close(file), 0);
    check_code(weir_view_try(file, 0, 1, &view), -EBADF);
    check_code(weir_view_get(file, 0, 1, &view, &error), -EBADF);
    bed_close(&bed);
}

/* A stream's view has no frame: it only becomes empty. */
static void view__of_a_stream_is_released_too(void **state)
{
    struct weir_view view = { "abc", 3, 0, { 0, 0 } };

    (void)state;
    weir_view_release(&view);
    check(view.data == NULL && view.len == 0);
    weir_view_release(NULL);
}

/* ---- pins ------------------------------------------------------------------------------ */

/* With every policy: what is pinned is there and what it was, whatever is read, written or
 * cut. */
static void pin__holds_block_and_bytes(void **state)
{
    (void)state;
    for (uint32_t policy = 0; policy < WEIR_POLICIES; policy++) {
        struct bed bed = bed_open(16 * BLOCK, policy, 0);
        struct weir_file *file = open_pattern(&bed, 100 * BLOCK, RW);
        struct weir_view views[12];
        uint8_t block[BLOCK];

        for (size_t i = 0; i < COUNT(views); i++)
            check_code(weir_view_get(file, i * BLOCK, BLOCK, &views[i], NULL), 0);
        for (int round = 0; round < 3; round++)
            check_read(file, 100 * BLOCK, 0);
        for (size_t i = 0; i < COUNT(views); i++)
            check(is_cached(file, i));
        memset(block, 0xab, sizeof(block));
        for (size_t i = 0; i < COUNT(views); i++)
            check_code(weir_file_write(file, block, BLOCK, i * BLOCK), BLOCK);
        for (size_t i = 0; i < COUNT(views); i++)
            check(byte_at(file, i * BLOCK + 77) == 0xab);
        check_code(weir_file_truncate(file, 0, NULL), 0);
        check_code(weir_file_read(file, block, BLOCK, 0), 0);
        for (size_t i = 0; i < COUNT(views); i++) {
            check_pattern(views[i].data, views[i].len, SEED, i * BLOCK);
            weir_view_release(&views[i]);
        }
        check_code(stats_of(&bed).cache_blocks, 0);
        check_code(weir_file_close(file), 0);
        bed_close(&bed);
    }
}

/* All frames come back after that: as many blocks fit as ever. */
static void pin__gives_orphans_back(void **state)
{
    struct bed bed = bed_open(16 * BLOCK, WEIR_POLICY_LRU, 0);
    struct weir_file *file = open_pattern(&bed, 16 * BLOCK, RW);
    uint8_t byte = 1;

    (void)state;
    for (int round = 0; round < 40; round++) {
        struct weir_view view;

        check_code(weir_view_get(file, 3 * BLOCK, 10, &view, NULL), 0);
        check_code(weir_file_write(file, &byte, 1, 3 * BLOCK), 1);
        check(!is_cached(file, 3));
        weir_view_release(&view);
    }
    for (uint64_t i = 0; i < 16; i++)
        (void)byte_at(file, i * BLOCK);
    check_code(stats_of(&bed).cache_blocks, 16);
    check_code(stats_of(&bed).cache_unbuffered, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Three quarters of the frames, also when all views are of one block. */
static void pin__views_are_bounded(void **state)
{
    struct bed bed = bed_open(16 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, BLOCK, WEIR_OPEN_READ);
    struct weir_view views[13];
    struct weir_error error;

    (void)state;
    for (size_t i = 0; i < 12; i++)
        check_code(weir_view_get(file, i, 1, &views[i], NULL), 0);
    check_code(weir_view_try(file, 0, 1, &views[12]), -ENOBUFS);
    check_code(weir_view_get(file, 0, 1, &views[12], &error), -ENOBUFS);
    check_code(stats_of(&bed).cache_pinned, 12);
    weir_view_release(&views[5]);
    check_code(weir_view_try(file, 0, 1, &views[5]), 0);
    for (size_t i = 0; i < 12; i++)
        weir_view_release(&views[i]);
    check_code(stats_of(&bed).cache_pinned, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

struct taker {
    struct wi_cache *cache;
    _Atomic int64_t *out;
    _Atomic int64_t *most;
    uint64_t taken;
    pthread_t thread;
};

/* Take and give at random, then take until there are none. */
static void *take_views(void *arg)
{
    struct taker *taker = arg;
    struct test_rng rng = { (uintptr_t)taker };

    for (int i = 0; i < 20000; i++) {
        if (rng_below(&rng, 2) == 0) {
            if (wi_cache_take_view(taker->cache)) {
                taker->taken++;
                must(atomic_fetch_add(taker->out, 1) < *taker->most);
            }
        } else if (taker->taken > 0) {
            taker->taken--;
            atomic_fetch_sub(taker->out, 1);
            wi_cache_give_view(taker->cache);
        }
    }
    while (wi_cache_take_view(taker->cache))
        taker->taken++;
    return NULL;
}

/* The bound is exact with threads as well: not one more, and in the end not one less. */
static void pin__views_are_bounded_with_threads(void **state)
{
    struct bed bed = bed_open(100 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    _Atomic int64_t out = 0;
    _Atomic int64_t most = 75;
    struct taker takers[6];
    uint64_t taken = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(takers); i++) {
        takers[i] = (struct taker){ .cache = bed.cache, .out = &out, .most = &most };
        assert_int_equal(pthread_create(&takers[i].thread, NULL, take_views, &takers[i]), 0);
    }
    for (size_t i = 0; i < COUNT(takers); i++) {
        assert_int_equal(pthread_join(takers[i].thread, NULL), 0);
        taken += takers[i].taken;
    }
    check_code(taken, 75);
    check_code(stats_of(&bed).cache_pinned, 75);
    for (; taken > 0; taken--)
        wi_cache_give_view(bed.cache);
    bed_close(&bed);
}

/* ---- bounds ---------------------------------------------------------------------------- */

/* Every block that fits is used, and none more, with one shard and with sixteen. */
static void cache__holds_what_fits(void **state)
{
    static const size_t sizes[] = { 16, 17, 127, 128, 1024, 1030 };

    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++) {
        struct bed bed = bed_open(sizes[s] * BLOCK + BLOCK - 1, WEIR_POLICY_S3FIFO, 0);
        struct weir_file *file = open_pattern(&bed, 3 * sizes[s] * BLOCK, WEIR_OPEN_READ);
        struct weir_stats stats;

        check_code(wi_cache_bytes(bed.cache), sizes[s] * BLOCK);
        for (uint64_t i = 0; i < 3 * sizes[s]; i++)
            check_read(file, 10, i * BLOCK);
        stats = stats_of(&bed);
        check_code(stats.cache_bytes, sizes[s] * BLOCK);
        check_code(stats.cache_blocks, sizes[s]);
        check_code(weir_file_close(file), 0);
        bed_close(&bed);
    }
}

/* When everything is pinned or loading a read goes past the cache, and is right. */
static void cache__reads_without_a_frame(void **state)
{
    struct bed bed = bed_open(16 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 40 * BLOCK + 10, WEIR_OPEN_READ);
    struct wi_load_ticket loads[4];
    struct wi_load_ticket ticket;
    struct weir_view views[12];
    struct weir_view view;
    struct weir_error error;
    uint8_t buf[100];

    (void)state;
    for (size_t i = 0; i < COUNT(views); i++)
        check_code(weir_view_get(file, i * BLOCK, BLOCK, &views[i], NULL), 0);
    wi_cache_drop(bed.cache, file, 12 * BLOCK, 100 * BLOCK); /* what was read ahead */
    for (size_t i = 0; i < COUNT(loads); i++)
        loads[i] = load_begin(file, 12 + i, 0);
    check_code(wi_cache_load_begin(bed.cache, file, 20, 0, &ticket), -ENOBUFS);
    check_read(file, 3 * BLOCK, 20 * BLOCK + 5);
    check_code(stats_of(&bed).cache_unbuffered, 4);
    check_code(weir_file_read(file, buf, 100, 40 * BLOCK), 10);
    weir_view_release(&views[0]);
    check_read(file, 3 * BLOCK, 20 * BLOCK + 5);
    check_code(stats_of(&bed).cache_unbuffered, 5);
    check_code(weir_view_get(file, 0, 1, &views[0], NULL), 0);
    weir_view_release(&views[1]); /* a token */
    check_code(weir_view_get(file, BLOCK, 1, &views[1], NULL), 0);
    check_code(weir_view_get(file, 30 * BLOCK, 1, &view, &error), -ENOBUFS);
    for (size_t i = 0; i < COUNT(loads); i++)
        load_end(&loads[i], false);
    for (size_t i = 0; i < COUNT(views); i++)
        weir_view_release(&views[i]);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- single flight --------------------------------------------------------------------- */

struct reading {
    struct weir_file *file;
    size_t len;
    uint64_t offset;
    int64_t result;
    bool views;
    pthread_t thread;
};

static void *do_reading(void *arg)
{
    struct reading *reading = arg;
    uint8_t buf[8 * BLOCK];

    if (reading->views) {
        struct weir_view view;

        reading->result =
            weir_view_get(reading->file, reading->offset, reading->len, &view, NULL);
        if (reading->result == 0) {
            must(pattern_find_wrong(view.data, view.len, SEED, reading->offset) < 0);
            weir_view_release(&view);
        }
    } else {
        reading->result = weir_file_read(reading->file, buf, reading->len, reading->offset);
        if (reading->result > 0)
            must(pattern_find_wrong(buf, (size_t)reading->result, SEED, reading->offset) < 0);
    }
    return NULL;
}

/* Start the readings while the first read of the device hangs; let go when all have
 * missed. */
static void run_readings(struct bed *bed, struct reading *readings, size_t count,
                         uint64_t misses, int error)
{
    struct wi_fault_rule hang = {
        .kind = WI_FAULT_READ, .first = 1, .count = 1, .delay_ns = UINT64_MAX, .error = error
    };

    watchdog_start("readings", 60);
    check_code(wi_fault_add(bed->plan, &hang), 0);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pthread_create(&readings[i].thread, NULL, do_reading, &readings[i]),
                         0);
        /* The first one has the load before the others come. */
        while (i == 0 && reads_of(bed) == 0)
            (void)usleep(100);
    }
    while (stats_of(bed).cache_misses < misses)
        (void)usleep(100);
    wi_fault_release(bed->plan);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(pthread_join(readings[i].thread, NULL), 0);
    wi_fault_clear(bed->plan);
    watchdog_stop();
}

/* Many threads that want one block cost one read. */
static void single_flight__one_read_for_many(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 8 * BLOCK, WEIR_OPEN_READ);
    struct reading readings[8];

    (void)state;
    for (size_t i = 0; i < COUNT(readings); i++)
        readings[i] =
            (struct reading){ .file = file, .len = 100, .offset = 7, .views = i % 2 == 1 };
    run_readings(&bed, readings, COUNT(readings), COUNT(readings), 0);
    for (size_t i = 0; i < COUNT(readings); i++)
        check_code(readings[i].result, readings[i].views ? 0 : 100);
    check_code(reads_of(&bed), 1);
    check_code(stats_of(&bed).cache_loads, 1);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* If it fails, those that wait get its error, and nobody is left. */
static void single_flight__the_error_is_for_all(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 8 * BLOCK, WEIR_OPEN_READ);
    struct reading readings[4];
    uint64_t failed = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(readings); i++)
        readings[i] = (struct reading){ .file = file, .len = 100, .offset = 7 };
    run_readings(&bed, readings, COUNT(readings), COUNT(readings), -EACCES);
    for (size_t i = 0; i < COUNT(readings); i++) {
        check(readings[i].result == -EACCES || readings[i].result == 100);
        failed += readings[i].result < 0;
    }
    check(failed >= 1);
    check_read(file, 8 * BLOCK, 0);
    check_code(stats_of(&bed).cache_blocks, 8);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* A run that fails is read again block by block: only who needs the bad one hears of it. */
static void single_flight__a_run_that_fails_is_split(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 8 * BLOCK, WEIR_OPEN_READ);
    struct wi_fault_rule once = {
        .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EACCES
    };
    struct wi_fault_rule third = {
        .kind = WI_FAULT_READ, .first = 1, .count = 2, .error = -EACCES
    };
    uint8_t buf[8 * BLOCK];
    struct iovec piece = { buf, sizeof(buf) };
    uint64_t moved = 0;

    (void)state;
    check_code(wi_fault_add(bed.plan, &once), 0);
    check_read(file, 4 * BLOCK, 0);
    wi_fault_clear(bed.plan);
    check_code(reads_of(&bed), 5);
    check_code(wi_fault_add(bed.plan, &third), 0);
    check_code(weir_file_transfer(file, 0, &piece, 1, 0, &moved, NULL), -EACCES);
    check_code(moved, 4 * BLOCK);
    check_pattern(buf, 4 * BLOCK, SEED, 0);
    wi_fault_clear(bed.plan);
    check_read(file, 8 * BLOCK, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* A load of a queue, which nobody may wait for, holds up no blocking reader. */
static void single_flight__does_not_wait_for_queues(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 8 * BLOCK, WEIR_OPEN_READ);
    struct wi_load_ticket ticket = load_begin(file, 2, 0);

    (void)state;
    check_read(file, 8 * BLOCK, 0);
    check_code(stats_of(&bed).cache_blocks, 8);
    load_end(&ticket, true);
    check_code(stats_of(&bed).cache_blocks, 8);
    check_code(stats_of(&bed).cache_unpublished, 0);
    check_read(file, 8 * BLOCK, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- reading ahead --------------------------------------------------------------------- */

/* In order, small reads become few large ones; at random they don't, nor if asked not to. */
static void read_ahead__is_for_those_in_order(void **state)
{
    struct bed bed = bed_open(1024 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 256 * BLOCK + 5, WEIR_OPEN_READ);
    struct test_rng rng = { test_seed() };
    struct weir_stats stats;

    (void)state;
    for (uint64_t i = 0; i < 256; i++)
        check_read(file, BLOCK, i * BLOCK);
    stats = stats_of(&bed);
    check(reads_of(&bed) <= 256 / 32 + 4);
    check_code(stats.cache_loads,
               stats.cache_misses + (stats.prefetch_bytes + BLOCK - 1) / BLOCK);
    check(stats.prefetch_bytes - stats.prefetch_used <= 5); /* the short block */
    check_code(stats.prefetch_wasted, 0);

    wi_cache_drop(bed.cache, file, 0, UINT64_MAX);
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    for (uint64_t i = 0; i < 64; i++)
        check_read(file, BLOCK, i * BLOCK);
    check_code(stats_of(&bed).prefetch_bytes, stats.prefetch_bytes);

    wi_cache_drop(bed.cache, file, 0, UINT64_MAX);
    check_code(weir_file_advise(file, WEIR_ADVICE_NORMAL, 0, 0, NULL), 0);
    for (uint64_t i = 0; i < 60; i++)
        check_read(file, 10, (rng_below(&rng, 64) * 4 + (i & 1) * 2) * BLOCK);
    check_code(stats_of(&bed).prefetch_bytes, stats.prefetch_bytes);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Prefetched blocks have a quarter of the frames, the oldest unused go, and the first hit
 * says so. */
static void prefetch__waits_apart(void **state)
{
    struct bed bed = bed_open(16 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 100 * BLOCK, WEIR_OPEN_READ);
    struct wi_load_ticket loads[5];
    struct wi_frame *frame;

    (void)state;
    for (size_t i = 0; i < 4; i++)
        loads[i] = load_begin(file, i, WI_LOAD_PREFETCH);
    check_code(wi_cache_load_begin(bed.cache, file, 4, WI_LOAD_PREFETCH, &loads[4]), -ENOBUFS);
    load_end(&loads[0], false);
    load_end(&loads[1], false);
    load_end(&loads[2], true); /* somebody waits for it */
    load_end(&loads[3], false);
    check_code(stats_of(&bed).prefetch_used, BLOCK);
    check(is_cached(file, 0));

    check_code(wi_cache_pin(bed.cache, file, 1, 0, 0, &frame), WI_PIN_HIT_PREFETCHED);
    wi_cache_unpin(bed.cache, frame);
    check_code(wi_cache_pin(bed.cache, file, 1, 0, 0, &frame), WI_PIN_HIT);
    wi_cache_unpin(bed.cache, frame);
    check_code(wi_cache_pin(bed.cache, file, 2, 0, 0, &frame), WI_PIN_HIT);
    wi_cache_unpin(bed.cache, frame);
    check_code(stats_of(&bed).prefetch_used, 2 * BLOCK);
    check_code(stats_of(&bed).prefetch_wasted, 0);

    /* 0 and 3 wait. Two more fit, the next ones take the place of the oldest. */
    for (uint64_t i = 10; i < 14; i++) {
        struct wi_load_ticket ticket = load_begin(file, i, WI_LOAD_PREFETCH);

        load_end(&ticket, false);
        check(is_cached(file, 0) == (i < 12) && is_cached(file, 3) == (i < 13));
    }
    check_code(stats_of(&bed).prefetch_wasted, 2 * BLOCK);
    check_code(stats_of(&bed).prefetch_bytes, 8 * BLOCK);

    /* Demand evicts from the policy; a drop of what waits is waste too. */
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    for (uint64_t i = 50; i < 60; i++)
        (void)byte_at(file, i * BLOCK);
    check(is_cached(file, 13));
    /* But not for ever: what nobody comes for makes room after a while. */
    for (uint64_t i = 50; i < 90; i++)
        (void)byte_at(file, i * BLOCK);
    check(!is_cached(file, 13));
    wi_cache_drop(bed.cache, file, 0, UINT64_MAX);
    check_code(stats_of(&bed).cache_blocks, 0);
    check_code(stats_of(&bed).prefetch_used + stats_of(&bed).prefetch_wasted,
               stats_of(&bed).prefetch_bytes);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* The more views are out, the less is prefetched; and demand takes what was not used. */
static void prefetch__leaves_frames_to_demand(void **state)
{
    struct bed bed = bed_open(16 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 100 * BLOCK, WEIR_OPEN_READ);
    struct weir_view views[12];
    struct wi_load_ticket loads[4];
    size_t ahead = 0;

    (void)state;
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    for (size_t i = 0; i < COUNT(views); i++)
        check_code(weir_view_get(file, i * BLOCK, BLOCK, &views[i], NULL), 0);
    while (wi_cache_load_begin(bed.cache, file, 20 + ahead, WI_LOAD_PREFETCH, &loads[ahead]) ==
           0)
        ahead++;
    check_code(ahead, 2);
    for (uint64_t i = 50; i < 60; i++)
        (void)byte_at(file, i * BLOCK);
    check_code(stats_of(&bed).cache_unbuffered, 0);
    load_end(&loads[0], false);
    load_end(&loads[1], false);
    for (size_t i = 0; i < 4; i++)
        loads[i] = load_begin(file, 60 + i, 0);
    check(!is_cached(file, 20) && !is_cached(file, 21));
    for (size_t i = 0; i < 4; i++)
        load_end(&loads[i], true);
    for (size_t i = 0; i < COUNT(views); i++)
        weir_view_release(&views[i]);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- writes ---------------------------------------------------------------------------- */

/* A write changes what is cached, without a read, through whatever handle it was made. */
static void write__goes_into_the_cache(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    const char *path = test_new_path("through");
    uint8_t model[6 * BLOCK];
    uint8_t buf[6 * BLOCK];
    uint8_t text[2 * BLOCK];
    struct weir_file *files[3];
    uint64_t reads;

    (void)state;
    pattern_fill(model, sizeof(model), SEED, 0);
    pattern_make_file(path, sizeof(model), SEED);
    files[0] = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    files[1] = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    files[2] = open_file(&bed, path, RW);
    check_read(files[0], sizeof(model), 0);
    reads = reads_of(&bed);
    for (size_t i = 0; i < 3; i++) {
        struct iovec iov[2] = { { text, 1000 }, { text + 1000, 500 + BLOCK } };
        uint64_t at = 100 + i * 2 * BLOCK;

        memset(text, (int)(i + 1), sizeof(text));
        memset(model + at, (int)(i + 1), 1500 + BLOCK);
        check_code(weir_file_transfer(files[i], 1, iov, 2, at, NULL, NULL), 1500 + BLOCK);
        for (size_t j = 0; j < 2; j++) {
            check_code(weir_file_read(files[j], buf, sizeof(buf), 0), sizeof(buf));
            assert_memory_equal(buf, model, sizeof(buf));
        }
    }
    check_code(reads_of(&bed), reads);
    check_code(stats_of(&bed).cache_invalidated, 0);
    for (size_t i = 0; i < 3; i++)
        check_code(weir_file_close(files[i]), 0);
    bed_close(&bed);
}

/* A write that fails leaves nothing behind that may be wrong. */
static void write__that_fails_drops(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 4 * BLOCK, RW);
    struct wi_fault_rule rule = {
        .kind = WI_FAULT_WRITE, .first = 1, .count = 1, .error = -EIO, .applied = true
    };
    uint8_t buf[BLOCK];

    (void)state;
    check_read(file, 4 * BLOCK, 0);
    check_code(wi_fault_add(bed.plan, &rule), 0);
    memset(buf, 3, sizeof(buf));
    check_code(weir_file_write(file, buf, BLOCK, BLOCK / 2), -EIO);
    check(!is_cached(file, 0) && !is_cached(file, 1) && is_cached(file, 2));
    check(byte_at(file, BLOCK) == 3);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* The short block at the end grows with what is appended, and goes when the file goes on. */
static void write__moves_the_end(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, BLOCK + 100, RW);
    uint8_t buf[3 * BLOCK];
    uint64_t reads;

    (void)state;
    check_read(file, BLOCK + 100, 0);
    reads = reads_of(&bed);
    memset(buf, 5, sizeof(buf));
    check_code(weir_file_write(file, buf, 50, BLOCK + 80), 50);
    check(is_cached(file, 1));
    check_code(weir_file_read(file, buf, sizeof(buf), BLOCK + 90), 40);
    check(buf[0] == 5 && buf[39] == 5);
    check_code(reads_of(&bed), reads);

    /* To the end of the block and beyond: it is whole now, and stays. */
    memset(buf, 6, sizeof(buf));
    check_code(weir_file_write(file, buf, BLOCK, BLOCK + 130), BLOCK);
    check(is_cached(file, 1) && !is_cached(file, 2));
    check_code(weir_file_read(file, buf, sizeof(buf), BLOCK), BLOCK + 130);
    check(is_cached(file, 1) && is_cached(file, 2));

    /* Behind a hole: the short block must not end the file. */
    check_code(weir_file_write(file, "x", 1, 5 * BLOCK), 1);
    check(is_cached(file, 1) && !is_cached(file, 2));
    check_code(weir_file_read(file, buf, 2, 5 * BLOCK - 1), 2);
    check(buf[0] == 0 && buf[1] == 'x');
    check(byte_at(file, 2 * BLOCK + 200) == 0);

    /* A hole in the same block. */
    check(is_cached(file, 5));
    check_code(weir_file_write(file, "y", 1, 5 * BLOCK + 10), 1);
    check_code(weir_file_read(file, buf, 100, 5 * BLOCK), 11);
    check(buf[1] == 0 && buf[9] == 0 && buf[10] == 'y');
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Cut off is gone, and comes back as zeros. */
static void truncate__is_seen(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 6 * BLOCK + 10, RW);
    uint8_t buf[8 * BLOCK];

    (void)state;
    check_read(file, 6 * BLOCK + 10, 0);
    check_code(weir_file_truncate(file, 2 * BLOCK + 100, NULL), 0);
    check(is_cached(file, 1) && !is_cached(file, 2) && !is_cached(file, 5));
    check_code(weir_file_read(file, buf, sizeof(buf), 0), 2 * BLOCK + 100);
    check_code(weir_file_truncate(file, 4 * BLOCK, NULL), 0);
    check_code(weir_file_read(file, buf, sizeof(buf), 0), 4 * BLOCK);
    check_pattern(buf, 2 * BLOCK + 100, SEED, 0);
    for (size_t i = 2 * BLOCK + 100; i < 4 * BLOCK; i++)
        check(buf[i] == 0);
    check_code(weir_file_allocate(file, 0, 5 * BLOCK + 1, 0, NULL), 0);
    check_code(weir_file_read(file, buf, sizeof(buf), 0), 5 * BLOCK + 1);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- loads that are overtaken ---------------------------------------------------------- */

/* What happens between the begin and the end of a load. */
enum overtake {
    NOTHING,
    WRITE,           /* of another byte of the block */
    WRITE_UNDER_WAY, /* has begun before the end, and not ended */
    WRITE_SINCE,     /* had begun before the load and ended meanwhile */
    WRITE_ELSEWHERE,
    TRUNCATE,
    APPEND, /* after the block */
    DROP,
    OVERTAKES
};

static void overtake_begin(struct weir_file *file, enum overtake what)
{
    if (what == WRITE_SINCE)
        wi_cache_write_begin(file->engine->cache, file, 2 * BLOCK + 5, 1);
}

static void overtake(struct weir_file *file, enum overtake what)
{
    struct wi_cache *cache = file->engine->cache;
    struct iovec piece = { (char[]){ 'w' }, 1 };

    if (what == WRITE)
        check_code(weir_file_write(file, "w", 1, 2 * BLOCK + 5), 1);
    else if (what == WRITE_UNDER_WAY)
        wi_cache_write_begin(cache, file, 2 * BLOCK + 5, 1);
    else if (what == WRITE_SINCE)
        wi_cache_write_end(cache, file, 2 * BLOCK + 5, 1, &piece, 1, 1);
    else if (what == WRITE_ELSEWHERE)
        check_code(weir_file_write(file, "w", 1, 5), 1);
    else if (what == TRUNCATE)
        check_code(weir_file_truncate(file, 2 * BLOCK + 50, NULL), 0);
    else if (what == APPEND)
        check_code(weir_file_write(file, "w", 1, 9 * BLOCK), 1);
    else if (what == DROP)
        wi_cache_drop(cache, file, 0, 100 * BLOCK);
}

/* A load publishes what may be found by reads that start later, and only that. */
static void load__does_not_publish_what_is_old(void **state)
{
    static const bool full_publishes[OVERTAKES] = {
        [NOTHING] = true, [WRITE_ELSEWHERE] = true, [APPEND] = true
    };
    static const bool short_publishes[OVERTAKES] = {
        [NOTHING] = true, [WRITE_ELSEWHERE] = true
    };

    (void)state;
    for (int is_short = 0; is_short < 2; is_short++) {
        for (enum overtake what = NOTHING; what < OVERTAKES; what++) {
            struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
            struct weir_file *file =
                open_pattern(&bed, is_short ? 2 * BLOCK + 100 : 3 * BLOCK, RW);
            bool publishes = is_short ? short_publishes[what] : full_publishes[what];
            struct wi_load_ticket ticket;
            ssize_t len;

            overtake_begin(file, what);
            ticket = load_begin(file, 2, 0);
            check(what == WRITE_SINCE || wi_cache_load_is_fresh(bed.cache, &ticket));
            len = pread(file->fd, wi_load_data(bed.cache, &ticket), BLOCK, 2 * BLOCK);
            overtake(file, what);
            check_code(wi_cache_load_is_fresh(bed.cache, &ticket), short_publishes[what]);
            wi_cache_load_end(bed.cache, &ticket, len, true);
            check_code(wi_frame_len(ticket.frame), len);
            check_pattern(wi_frame_data(bed.cache, ticket.frame), (size_t)len, SEED, 2 * BLOCK);
            wi_cache_unpin(bed.cache, ticket.frame);
            if (is_cached(file, 2) != publishes)
                fail_msg("overtake %d of a %s block: published is wrong", (int)what,
                         is_short ? "short" : "full");
            check_code(stats_of(&bed).cache_unpublished, !publishes);
            check_code(weir_file_close(file), 0);
            bed_close(&bed);
        }
    }
}

/* Of two writes at once nobody knows which was last: the block goes. */
static void write__two_at_once_drop(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 4 * BLOCK, RW);
    struct iovec piece = { (char[]){ 'w' }, 1 };

    (void)state;
    check_read(file, 4 * BLOCK, 0);
    wi_cache_write_begin(bed.cache, file, 10, 1);
    wi_cache_write_begin(bed.cache, file, 10, 1);
    check(is_cached(file, 0));
    wi_cache_write_end(bed.cache, file, 10, 1, &piece, 1, 1);
    check(!is_cached(file, 0));
    check_read(file, 4, 0);
    check(!is_cached(file, 0)); /* a write is still under way */
    wi_cache_write_end(bed.cache, file, 10, 1, &piece, 1, 1);
    check_read(file, 4, 0);
    check(is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* One write is no two, though two of its blocks may have their version in the same place. */
static void write__of_many_blocks_is_one(void **state)
{
    struct bed bed = bed_open(1024 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 256 * BLOCK, RW);
    uint8_t *buf = malloc(256 * BLOCK);

    (void)state;
    check_read(file, 256 * BLOCK, 0);
    check_code(stats_of(&bed).cache_blocks, 256);
    memset(buf, 9, 256 * BLOCK);
    check_code(weir_file_write(file, buf, 256 * BLOCK, 0), 256 * BLOCK);
    check_code(stats_of(&bed).cache_blocks, 256);
    check(byte_at(file, 0) == 9 && byte_at(file, 256 * BLOCK - 1) == 9);
    free(buf);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- the short block ------------------------------------------------------------------- */

/* A load sees what a write has made of the end before that write has ended. Who saw the end as it
 * was before must not bring it back. */
static void tail__old_end_is_not_published_after_a_write(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 3 * BLOCK + 100, RW);
    static uint8_t data[BLOCK];
    struct iovec piece = { data, BLOCK };
    struct wi_load_ticket old_end;
    struct wi_load_ticket written;
    ssize_t len;

    (void)state;
    wi_cache_write_begin(bed.cache, file, 5 * BLOCK, BLOCK);
    old_end = load_begin(file, 3, 0);
    len = pread(file->fd, wi_load_data(bed.cache, &old_end), BLOCK, 3 * BLOCK);
    check_code(len, 100);
    check_code(pwrite(file->fd, data, BLOCK, 5 * BLOCK), BLOCK);
    written = load_begin(file, 5, 0);
    load_end(&written, true);
    wi_cache_write_end(bed.cache, file, 5 * BLOCK, BLOCK, &piece, 1, BLOCK);
    check(!wi_cache_load_is_fresh(bed.cache, &old_end));
    wi_cache_load_end(bed.cache, &old_end, len, true);
    wi_cache_unpin(bed.cache, old_end.frame);
    check(!is_cached(file, 3));
    check_code(weir_file_read(file, data, 200, 3 * BLOCK), 200);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* One that will not be published leaves the tail that there is alone. */
static void tail__old_end_does_not_replace_it(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 3 * BLOCK + 100, RW);
    struct wi_load_ticket old_end = load_begin(file, 3, 0);
    static uint8_t data[BLOCK];
    ssize_t len = pread(file->fd, wi_load_data(bed.cache, &old_end), BLOCK, 3 * BLOCK);

    (void)state;
    check_code(weir_file_write(file, data, 100, 4 * BLOCK), 100);
    check_code(weir_file_read(file, data, 200, 4 * BLOCK), 100);
    check(is_cached(file, 4));
    wi_cache_load_end(bed.cache, &old_end, len, true);
    wi_cache_unpin(bed.cache, old_end.frame);
    check(is_cached(file, 4) && !is_cached(file, 3));
    check_code(atomic_load(&file->cache_file->tail), 4);
    check_code(weir_file_write(file, data, BLOCK, 5 * BLOCK), BLOCK);
    check_code(weir_file_read(file, data, 200, 4 * BLOCK), 200);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

struct tail_reader {
    struct weir_file *file;
    _Atomic uint32_t stop;
};

static void *read_tail(void *arg)
{
    struct tail_reader *reader = arg;

    while (!atomic_load(&reader->stop)) {
        uint8_t byte;

        must(weir_file_read(reader->file, &byte, 1, 3 * BLOCK) == 1);
    }
    return NULL;
}

/* A short block that can be found is one that the next write behind it drops. */
static void tail__is_what_is_cached_with_threads(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct tail_reader reader = { .file = open_pattern(&bed, 3 * BLOCK + 100, RW) };
    static uint8_t data[BLOCK];
    struct iovec piece = { data, BLOCK };
    pthread_t threads[2];
    uint64_t lost = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_tail, &reader), 0);
    for (uint64_t i = test_env_number("WEIR_CACHE_STEPS", 40000); i > 0; i--) {
        wi_cache_write_begin(bed.cache, reader.file, 5 * BLOCK, BLOCK);
        wi_cache_write_end(bed.cache, reader.file, 5 * BLOCK, BLOCK, &piece, 1, -ENOSPC);
        lost += is_cached(reader.file, 3) && atomic_load(&reader.file->cache_file->tail) != 3;
    }
    atomic_store(&reader.stop, 1);
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    check_code(lost, 0);
    check_code(weir_file_close(reader.file), 0);
    bed_close(&bed);
}

/* A truncate that fails changes nothing that is cached in full. */
static void truncate__that_fails_keeps_blocks(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 6 * BLOCK, RW);

    (void)state;
    check_read(file, 6 * BLOCK, 0);
    clock_os.ftruncate_error = -EFBIG;
    check_code(weir_file_truncate(file, 100 * BLOCK, NULL), -EFBIG);
    check_code(wi_cache_file_end(bed.cache, file), 6 * BLOCK);
    check_code(weir_file_truncate(file, 2 * BLOCK, NULL), -EFBIG);
    check_code(wi_cache_file_end(bed.cache, file), 6 * BLOCK);
    check_code(stats_of(&bed).cache_blocks, 6);
    check_read(file, 6 * BLOCK, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Whoever comes while a load is overtaken reads for himself. */
static void load__that_is_old_is_not_shared(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 4 * BLOCK, RW);
    struct wi_fault_rule hang = {
        .kind = WI_FAULT_READ, .first = 1, .count = 1, .delay_ns = UINT64_MAX
    };
    struct reading reading = { .file = file, .len = 4, .offset = 0 };

    (void)state;
    watchdog_start("load__that_is_old_is_not_shared", 60);
    check_code(wi_fault_add(bed.plan, &hang), 0);
    assert_int_equal(pthread_create(&reading.thread, NULL, do_reading, &reading), 0);
    while (reads_of(&bed) == 0)
        (void)usleep(100);
    check_code(weir_file_write(file, "new", 3, 100), 3);
    check(byte_at(file, 100) == 'n'); /* while the other hangs */
    check_code(reads_of(&bed), 2);
    check(is_cached(file, 0));
    wi_fault_release(bed.plan);
    assert_int_equal(pthread_join(reading.thread, NULL), 0);
    watchdog_stop();
    check_code(reading.result, 4);
    check(byte_at(file, 100) == 'n');
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- opening again --------------------------------------------------------------------- */

/* A file that nobody has changed keeps its blocks over close and open; one that was,
 * doesn't. */
static void open__finds_changes_by_others(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    const char *path = test_new_path("again");
    struct weir_file *file;
    struct weir_view view;
    uint64_t reads;
    int fd;

    (void)state;
    pattern_make_file(path, 4 * BLOCK, SEED);
    file = open_file(&bed, path, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    check_read(file, 4 * BLOCK, 0);
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    reads = reads_of(&bed);
    check_read(file, 4 * BLOCK, 0);
    check_code(reads_of(&bed), reads);

    /* By somebody else. What is pinned stays; what is cached stays until the next open. */
    fd = open(path, O_RDWR | O_CLOEXEC);
    check_code(pwrite(fd, "other", 5, 0), 5);
    check_code(weir_view_try(file, 0, 5, &view), 0);
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(!is_cached(file, 0) && !is_cached(file, 3));
    check(byte_at(file, 0) == 'o');
    check_pattern(view.data, view.len, SEED, 0);
    weir_view_release(&view);
    check_code(close(fd), 0);

    /* By us, which could hide what others did. */
    check_code(weir_file_write(file, "x", 1, 0), 1);
    check(is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(!is_cached(file, 0));
    check(byte_at(file, 0) == 'x');

    /* Also if the times don't tell. */
    wi_cache_write_begin(bed.cache, file, 1, 1);
    wi_cache_write_end(bed.cache, file, 1, 1, &(struct iovec){ (char[]){ 't' }, 1 }, 1, 1);
    check(is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(!is_cached(file, 0));
    check(byte_at(file, 0) == 'x');

    /* Seen so shortly after a change that the next one might have the same time. */
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    atomic_store(&clock_os.ahead_ns, -3600 * (int64_t)WI_SEC_NS);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check(!is_cached(file, 0));
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Files that were closed are forgotten, the oldest first, and their blocks with them. */
static void open__forgets_the_oldest(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    char first[256];
    struct weir_file *file;

    (void)state;
    (void)snprintf(first, sizeof(first), "%s", test_new_path("first"));
    pattern_make_file(first, BLOCK, SEED);
    file = open_file(&bed, first, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    check_read(file, BLOCK, 0);
    check_code(weir_file_close(file), 0);
    for (uint32_t i = 0; i < CACHE_IDLE_FILES; i++) {
        const char *path = test_new_path("idle");

        check_code(stats_of(&bed).cache_blocks, 1);
        file = open_file(&bed, path, RW | WEIR_OPEN_CREATE | WEIR_OPEN_CACHED);
        check_code(weir_file_close(file), 0);
    }
    check_code(bed.cache->idle_count, CACHE_IDLE_FILES);
    check_code(stats_of(&bed).cache_blocks, 0);
    file = open_file(&bed, first, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    check_read(file, BLOCK, 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* Opened to be cut: all handles see it, and if it can't be opened nothing is cut. */
static void open__truncates_for_all_or_not(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    const char *path = test_new_path("cut");
    struct weir_file *file;
    struct weir_file *cut;
    uint8_t byte;

    (void)state;
    pattern_make_file(path, 4 * BLOCK, SEED);
    file = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
    check_read(file, 4 * BLOCK, 0);
    clock_os.statx_error = -ENOMEM;
    check_code(weir_file_open(bed.engine, NULL, path, WEIR_OPEN_WRITE | WEIR_OPEN_TRUNCATE, 0,
                              &cut, NULL),
               -ENOMEM);
    clock_os.statx_error = 0;
    check_read(file, 4 * BLOCK, 0);
    wi_cache_drop(bed.cache, file, 0, UINT64_MAX);
    check_read(file, 4 * BLOCK, 0);
    clock_os.ftruncate_error = -EIO;
    check_code(weir_file_open(bed.engine, NULL, path, WEIR_OPEN_WRITE | WEIR_OPEN_TRUNCATE, 0,
                              &cut, NULL),
               -EIO);
    clock_os.ftruncate_error = 0;
    check_read(file, 4 * BLOCK, 0);
    cut = open_file(&bed, path, WEIR_OPEN_WRITE | WEIR_OPEN_TRUNCATE);
    check_code(weir_file_read(file, &byte, 1, 0), 0);
    check_code(weir_file_write(cut, "new", 3, 0), 3);
    check(byte_at(file, 0) == 'n');
    check_code(weir_file_close(cut), 0);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* What cannot be cached is refused at open. */
static void open__refuses_what_is_no_file(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file;
    struct weir_error error;

    (void)state;
    check_code(weir_file_open(bed.engine, NULL, test_dir(), WEIR_OPEN_READ | WEIR_OPEN_CACHED,
                              0, &file, &error),
               -EINVAL);
    check_code(weir_file_open(bed.engine, NULL, "/dev/null", WEIR_OPEN_READ | WEIR_OPEN_CACHED,
                              0, &file, &error),
               -EINVAL);
    bed_close(&bed);
}

/* ---- time to live ---------------------------------------------------------------------- */

static void ttl__loads_again(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, WI_SEC_NS);
    struct weir_file *file = open_pattern(&bed, 4 * BLOCK, RW);
    struct weir_view view;
    uint64_t reads;

    (void)state;
    check_read(file, 4 * BLOCK, 0);
    reads = reads_of(&bed);
    check_code(weir_view_try(file, 0, BLOCK, &view), 0);
    atomic_fetch_add(&clock_os.now_ns, WI_SEC_NS);
    check_read(file, 4 * BLOCK, 0);
    check_code(reads_of(&bed), reads);
    atomic_fetch_add(&clock_os.now_ns, 1);
    check_read(file, 2 * BLOCK, 0);
    check(reads_of(&bed) > reads);
    check_code(stats_of(&bed).cache_expired, 2);
    check_code(stats_of(&bed).cache_misses, 6);
    check_pattern(view.data, BLOCK, SEED, 0);
    weir_view_release(&view);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* What was read long ago is old, however late it is published. */
static void ttl__begins_with_the_load(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, WI_SEC_NS);
    struct weir_file *file = open_pattern(&bed, 4 * BLOCK, WEIR_OPEN_READ);
    struct wi_load_ticket ticket = load_begin(file, 0, 0);

    (void)state;
    atomic_fetch_add(&clock_os.now_ns, WI_SEC_NS + 1);
    load_end(&ticket, true);
    check(!is_cached(file, 0));
    check_code(stats_of(&bed).cache_expired, 1);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- counts and advice ----------------------------------------------------------------- */

/* Blocking views are reads: counted, and in the trace, as are the loads behind them. */
static void view__is_counted_as_a_read(void **state)
{
    struct bed bed = bed_open(64 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 8 * BLOCK, WEIR_OPEN_READ);
    const char *path = test_new_path("trace");
    struct weir_trace_reader *reader = NULL;
    struct weir_stats before = stats_of(&bed);
    struct weir_trace_record record;
    struct weir_stats after;
    struct weir_view view;
    unsigned views = 0;
    unsigned loads = 0;

    (void)state;
    check_code(weir_trace_start(bed.engine, path, NULL), 0);
    for (int round = 0; round < 2; round++) {
        check_code(weir_view_get(file, 5 * BLOCK + 10, 100, &view, NULL), 0);
        weir_view_release(&view);
    }
    check_code(weir_view_get(file, 0, 0, &view, NULL), -EINVAL);
    check_code(weir_trace_stop(bed.engine, NULL, NULL), 0);
    after = stats_of(&bed);
    check_code(after.ops[WEIR_STATS_READ].done - before.ops[WEIR_STATS_READ].done, 3);
    check_code(after.ops[WEIR_STATS_READ].failed - before.ops[WEIR_STATS_READ].failed, 1);
    check_code(after.ops[WEIR_STATS_READ].bytes - before.ops[WEIR_STATS_READ].bytes, 200);
    check_code(after.system_calls - before.system_calls, 1);
    check_code(weir_trace_reader_open(path, &reader, NULL), 0);
    while (weir_trace_reader_next(reader, &record, NULL) == 1) {
        check(record.flags & WEIR_TRACE_BLOCKING);
        views += record.op == WEIR_OP_VIEW && !(record.flags & WEIR_TRACE_INTERNAL);
        loads += record.op == WEIR_OP_READ && (record.flags & WEIR_TRACE_INTERNAL) &&
                 record.offset == 5 * BLOCK && record.result == (int64_t)BLOCK;
    }
    weir_trace_reader_close(reader);
    check_code(views, 3);
    check_code(loads, 1);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* WILLNEED reads runs, not blocks, and not what is there; and it is only advice. */
static void advise__loads_runs(void **state)
{
    struct bed bed = bed_open(256 * BLOCK, WEIR_POLICY_S3FIFO, 0);
    struct weir_file *file = open_pattern(&bed, 20 * BLOCK + 50, WEIR_OPEN_READ);
    struct wi_fault_rule fails = {
        .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EINVAL
    };
    uint64_t reads;

    (void)state;
    check_code(wi_fault_add(bed.plan, &fails), 0);
    atomic_store(&file->load_rwf, 0x80); /* only -EOPNOTSUPP says that it is unknown */
    check_code(weir_file_advise(file, WEIR_ADVICE_WILLNEED, 0, 0, NULL), 0);
    check_code(stats_of(&bed).cache_blocks, 0);
    check_code(atomic_load(&file->load_rwf), 0x80);
    wi_fault_clear(bed.plan);
    atomic_store(&file->load_rwf, 0);
    reads = reads_of(&bed);
    (void)byte_at(file, 7 * BLOCK);
    check_code(reads_of(&bed), reads + 1);
    check_code(weir_file_advise(file, WEIR_ADVICE_WILLNEED, 0, 0, NULL), 0);
    check_code(reads_of(&bed), reads + 4); /* two runs, and one that finds the end */
    check_code(stats_of(&bed).cache_blocks, 21);
    check_code(stats_of(&bed).prefetch_bytes, 19 * BLOCK + 50);
    check_code(weir_file_advise(file, WEIR_ADVICE_WILLNEED, 0, 0, NULL), 0);
    check_code(reads_of(&bed), reads + 4);
    check_read(file, 20 * BLOCK + 50, 0);
    check_code(reads_of(&bed), reads + 4);
    check_code(weir_file_close(file), 0);
    bed_close(&bed);
}

/* ---- against a model ------------------------------------------------------------------- */

#define MODEL_MAX (48 * BLOCK)

struct model {
    uint8_t bytes[MODEL_MAX];
    size_t size;
};

struct held_view {
    struct weir_view view;
    uint8_t bytes[BLOCK];
};

static void model_write(struct model *model, const void *bytes, size_t len, size_t offset)
{
    if (offset > model->size)
        memset(model->bytes + model->size, 0, offset - model->size);
    memcpy(model->bytes + offset, bytes, len);
    if (offset + len > model->size)
        model->size = offset + len;
}

static void model_resize(struct model *model, size_t size)
{
    if (size > model->size)
        memset(model->bytes + model->size, 0, size - model->size);
    model->size = size;
}

static void model_step(struct model *model, struct weir_file **files, struct held_view *held,
                       struct test_rng *rng)
{
    static uint8_t buf[MODEL_MAX];
    struct weir_file *file = files[rng_below(rng, 2)];
    uint64_t dice = rng_below(rng, 100);
    size_t offset = rng_below(rng, MODEL_MAX);
    size_t most = MODEL_MAX - offset;
    size_t len = rng_below(rng, (rng_below(rng, 4) == 0 ? most : wi_min_u64(most, 6000)) + 1);
    size_t have = offset < model->size ? wi_min_u64(len, model->size - offset) : 0;

    if (dice < 45) {
        memset(buf, 0xee, len);
        check_code(weir_file_read(file, buf, len, offset), have);
        assert_memory_equal(buf, model->bytes + offset, have);
    } else if (dice < 70) {
        pattern_fill(buf, len, rng_next(rng), 0);
        check_code(weir_file_write(files[rng_below(rng, 2) * 2], buf, len, offset), len);
        if (len > 0)
            model_write(model, buf, len, offset);
    } else if (dice < 74) {
        check_code(weir_file_truncate(files[rng_below(rng, 3)], offset, NULL), 0);
        model_resize(model, offset);
    } else if (dice < 76 && len > 0) {
        check_code(weir_file_allocate(file, offset, len, 0, NULL), 0);
        if (offset + len > model->size)
            model_resize(model, offset + len);
    } else if (dice < 78) {
        check_code(weir_file_advise(file, (uint32_t)rng_below(rng, 6), offset, len, NULL), 0);
    } else {
        struct held_view *slot = &held[rng_below(rng, 10)];
        int rc;

        if (slot->view.data) {
            assert_memory_equal(slot->view.data, slot->bytes, slot->view.len);
            weir_view_release(&slot->view);
        }
        rc = dice < 90 ? weir_view_get(file, offset, len + 1, &slot->view, NULL)
                       : weir_view_try(file, offset, len + 1, &slot->view);
        if (rc == 0) {
            check((slot->view.len > 0) == (offset < model->size));
            check(slot->view.len <= model->size - wi_min_u64(offset, model->size));
            assert_memory_equal(slot->view.data ? slot->view.data : "", model->bytes + offset,
                                slot->view.len);
            if (slot->view.len > 0)
                memcpy(slot->bytes, slot->view.data, slot->view.len);
        } else {
            slot->view.data = NULL;
            check(rc == (dice < 90 ? -ENOBUFS : -EAGAIN));
        }
    }
}

/* One file, three handles (cached, cached and direct, plain), random calls: every read and view
 * is what a plain array says. */
static void cache__matches_a_model(void **state)
{
    uint64_t steps = test_env_number("WEIR_CACHE_STEPS", 20000);

    (void)state;
    for (uint32_t policy = 0; policy < WEIR_POLICIES; policy++) {
        struct bed bed = bed_open(16 * BLOCK, policy, 0);
        const char *path = test_new_path("model");
        struct model *model = calloc(1, sizeof(*model));
        struct held_view *held = calloc(10, sizeof(*held));
        struct test_rng rng = { test_seed() + policy };
        struct weir_file *files[3];
        uint64_t frames = 0;

        files[0] = open_file(&bed, path, RW | WEIR_OPEN_CREATE | WEIR_OPEN_CACHED);
        if (weir_file_open(bed.engine, NULL, path, RW | WEIR_OPEN_CACHED | WEIR_OPEN_DIRECT, 0,
                           &files[1], NULL) != 0)
            files[1] = open_file(&bed, path, RW | WEIR_OPEN_CACHED);
        files[2] = open_file(&bed, path, RW);
        for (uint64_t i = 0; i < steps; i++) {
            model_step(model, files, held, &rng);
            if (i % 512 == 0) {
                struct weir_stats stats = stats_of(&bed);

                check(stats.cache_blocks <= 16);
                check(stats.prefetch_used + stats.prefetch_wasted <= stats.prefetch_bytes);
                check(stats.prefetch_used + stats.prefetch_wasted + 4 * BLOCK >=
                      stats.prefetch_bytes);
            }
        }
        print_message("  %s: %llu hits, %llu misses, %llu evicted\n", policy_names[policy],
                      (unsigned long long)stats_of(&bed).cache_hits,
                      (unsigned long long)stats_of(&bed).cache_misses,
                      (unsigned long long)stats_of(&bed).cache_evicted);
        for (size_t i = 0; i < 10; i++)
            weir_view_release(&held[i].view);
        /* No frame was lost on the way. */
        check_code(weir_file_truncate(files[0], 0, NULL), 0);
        check_code(weir_file_truncate(files[0], MODEL_MAX, NULL), 0);
        for (uint64_t i = 0; i < 16; i++) {
            (void)byte_at(files[0], i * BLOCK);
            frames += is_cached(files[0], i);
        }
        check_code(frames, 16);
        for (size_t i = 0; i < 3; i++)
            check_code(weir_file_close(files[i]), 0);
        bed_close(&bed);
        free(held);
        free(model);
    }
}

/* ---- threads --------------------------------------------------------------------------- */

#define STORM_BLOCKS 96u

struct storm {
    struct bed *bed;
    struct weir_file *file;
    _Atomic uint32_t stop;
    _Atomic uint64_t written[STORM_BLOCKS]; /* versions that have ended */
    uint64_t seed;
    uint64_t steps;
};

struct stormer {
    struct storm *storm;
    uint64_t number;
    uint64_t viewed;
    pthread_t thread;
};

/* Half of the time one of four, so that all meet. */
static uint64_t storm_block(struct test_rng *rng)
{
    return rng_below(rng, rng_below(rng, 2) ? 4 : STORM_BLOCKS);
}

/* A block that is wholly of one version: block << 32 | version, all over. */
static uint64_t version_in(const uint64_t *words, uint64_t block)
{
    for (size_t i = 1; i < BLOCK / sizeof(*words); i++)
        must(words[i] == words[0]);
    must(words[0] >> 32 == block);
    return words[0] & UINT32_MAX;
}

static void write_version(struct storm *storm, uint64_t block, uint64_t version)
{
    uint64_t words[BLOCK / sizeof(uint64_t)];

    for (size_t i = 0; i < COUNT(words); i++)
        words[i] = block << 32 | version;
    must(weir_file_write(storm->file, words, BLOCK, block * BLOCK) == BLOCK);
    atomic_store(&storm->written[block], version);
}

static void *storm_write(void *arg)
{
    struct stormer *self = arg;
    struct storm *storm = self->storm;
    struct test_rng rng = { storm->seed };

    for (uint64_t version = 2; version < storm->steps; version++)
        write_version(storm, storm_block(&rng), version);
    atomic_store(&storm->stop, 1);
    return NULL;
}

static void *storm_read(void *arg)
{
    struct stormer *self = arg;
    struct storm *storm = self->storm;
    struct test_rng rng = { storm->seed + self->number };

    while (!atomic_load(&storm->stop)) {
        uint64_t block = storm_block(&rng);
        uint64_t least = atomic_load(&storm->written[block]);
        struct weir_view view;
        uint64_t version;

        /* What is loaded while it is written is as torn as pread; what is found never is. */
        if (weir_view_try(storm->file, block * BLOCK, BLOCK, &view) == -EAGAIN) {
            uint64_t words[2 * BLOCK / sizeof(uint64_t)];

            must(weir_file_read(storm->file, words, sizeof(words), block * BLOCK) >=
                 (int64_t)BLOCK);
            must(words[0] >> 32 == block && (words[0] & UINT32_MAX) >= least);
            continue;
        }
        must(view.len == BLOCK);
        version = version_in(view.data, block);
        must(version >= least);
        /* And it stays so while it is pinned, whatever happens to the block. */
        if (rng_below(&rng, 16) == 0)
            (void)sched_yield();
        must(version_in(view.data, block) == version);
        weir_view_release(&view);
        self->viewed++;
    }
    return NULL;
}

/* Two readers, a writer, evictions: a cached block is always whole, and never older than the
 * last write that had ended. */
static void cache__stays_whole_with_threads(void **state)
{
    (void)state;
    for (uint32_t policy = 0; policy < WEIR_POLICIES; policy++) {
        struct bed bed = bed_open(64 * BLOCK, policy, 0);
        const char *path = test_new_path("storm");
        struct storm *storm = calloc(1, sizeof(*storm));
        struct stormer stormers[3];

        storm->bed = &bed;
        storm->seed = test_seed();
        storm->steps = test_env_number("WEIR_CACHE_STEPS", 20000);
        storm->file = open_file(&bed, path, RW | WEIR_OPEN_CREATE | WEIR_OPEN_CACHED);
        for (uint64_t i = 0; i < STORM_BLOCKS; i++)
            write_version(storm, i, 1);
        for (size_t i = 0; i < COUNT(stormers); i++) {
            stormers[i] = (struct stormer){ .storm = storm, .number = i };
            assert_int_equal(pthread_create(&stormers[i].thread, NULL,
                                            i == 0 ? storm_write : storm_read, &stormers[i]),
                             0);
        }
        for (size_t i = 0; i < COUNT(stormers); i++)
            assert_int_equal(pthread_join(stormers[i].thread, NULL), 0);
        for (uint64_t i = 0; i < STORM_BLOCKS; i++) {
            struct weir_view view;

            check_code(weir_view_get(storm->file, i * BLOCK, BLOCK, &view, NULL), 0);
            check(version_in(view.data, i) == atomic_load(&storm->written[i]));
            weir_view_release(&view);
        }
        check_code(stats_of(&bed).cache_pinned, 0);
        check_code(weir_file_close(storm->file), 0);
        bed_close(&bed);
        free(storm);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cache__serves_again_what_it_has),
        cmocka_unit_test(cache__counts_uses_not_parts),
        cmocka_unit_test(cache__reads_into_pieces),
        cmocka_unit_test(view__is_a_piece_of_one_block),
        cmocka_unit_test(view__of_a_stream_is_released_too),
        cmocka_unit_test(pin__holds_block_and_bytes),
        cmocka_unit_test(pin__gives_orphans_back),
        cmocka_unit_test(pin__views_are_bounded),
        cmocka_unit_test(pin__views_are_bounded_with_threads),
        cmocka_unit_test(cache__holds_what_fits),
        cmocka_unit_test(cache__reads_without_a_frame),
        cmocka_unit_test(single_flight__one_read_for_many),
        cmocka_unit_test(single_flight__the_error_is_for_all),
        cmocka_unit_test(single_flight__a_run_that_fails_is_split),
        cmocka_unit_test(single_flight__does_not_wait_for_queues),
        cmocka_unit_test(read_ahead__is_for_those_in_order),
        cmocka_unit_test(prefetch__waits_apart),
        cmocka_unit_test(prefetch__leaves_frames_to_demand),
        cmocka_unit_test(write__goes_into_the_cache),
        cmocka_unit_test(write__that_fails_drops),
        cmocka_unit_test(write__moves_the_end),
        cmocka_unit_test(write__two_at_once_drop),
        cmocka_unit_test(write__of_many_blocks_is_one),
        cmocka_unit_test(tail__old_end_is_not_published_after_a_write),
        cmocka_unit_test(tail__old_end_does_not_replace_it),
        cmocka_unit_test(tail__is_what_is_cached_with_threads),
        cmocka_unit_test(truncate__that_fails_keeps_blocks),
        cmocka_unit_test(truncate__is_seen),
        cmocka_unit_test(load__does_not_publish_what_is_old),
        cmocka_unit_test(load__that_is_old_is_not_shared),
        cmocka_unit_test(open__finds_changes_by_others),
        cmocka_unit_test(open__forgets_the_oldest),
        cmocka_unit_test(open__refuses_what_is_no_file),
        cmocka_unit_test(open__truncates_for_all_or_not),
        cmocka_unit_test(ttl__loads_again),
        cmocka_unit_test(ttl__begins_with_the_load),
        cmocka_unit_test(view__is_counted_as_a_read),
        cmocka_unit_test(advise__loads_runs),
        cmocka_unit_test(cache__matches_a_model),
        cmocka_unit_test(cache__stays_whole_with_threads),
    };

    (void)test_seed();
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
