/* SPDX-License-Identifier: MIT */
/*
 * test_read_many.c - any ranges of one file at once, and advice
 *
 * What is merged is seen in the calls that reach the os table (faulty.h counts them).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine_internal.h"
#include "support/faulty.h"

#define SEED      23u
#define FILE_SIZE (3 * MIB + 1234)
#define MOST      600u

struct fixture {
    struct faulty faulty;
    struct weir_file *file;
    struct weir_range *ranges; /* MOST */
    unsigned char *bytes;      /* what the ranges read into, from the front */
    size_t used;
    size_t count;
};

static void fixture_open(struct fixture *f, uint32_t backend, uint32_t flags,
                         const struct weir_engine_options *options)
{
    const char *path = test_new_path("many");

    memset(f, 0, sizeof(*f));
    pattern_make_file(path, FILE_SIZE, SEED);
    faulty_open(&f->faulty, backend, 0, 0, options);
    check_code(
        weir_file_open(f->faulty.engine, NULL, path, WEIR_OPEN_READ | flags, 0, &f->file, NULL),
        0);
    f->bytes = aligned_alloc(4096, 64 * MIB);
    f->ranges = calloc(MOST, sizeof(*f->ranges));
    check(f->bytes != NULL && f->ranges != NULL);
}

static void fixture_close(struct fixture *f)
{
    check_code(weir_file_close(f->file), 0);
    faulty_close(&f->faulty);
    free(f->bytes);
    free(f->ranges);
}

static void forget(struct fixture *f)
{
    f->count = 0;
    f->used = 0;
}

static void add(struct fixture *f, uint64_t offset, size_t len)
{
    struct weir_range *range = &f->ranges[f->count++];

    check(f->count <= MOST && f->used + len <= 64 * MIB);
    *range = (struct weir_range){
        .buf = f->bytes + f->used, .len = len, .offset = offset, .result = 77
    };
    memset(range->buf, 0xee, len);
    f->used += len;
}

/* Each range has what a read of it alone would have given. */
static int64_t check_ranges(struct fixture *f)
{
    int64_t bytes = 0;

    for (size_t i = 0; i < f->count; i++) {
        struct weir_range *range = &f->ranges[i];
        uint64_t left = range->offset < FILE_SIZE ? FILE_SIZE - range->offset : 0;
        int64_t want = (int64_t)(range->len < left ? range->len : left);

        check_code(range->result, want);
        check_pattern(range->buf, (size_t)want, SEED, range->offset);
        bytes += want;
    }
    return bytes;
}

static int64_t read_them(struct fixture *f)
{
    return weir_file_read_many(f->file, f->ranges, f->count, NULL);
}

static void read_and_check(struct fixture *f)
{
    int64_t got = read_them(f);

    check_code(got, check_ranges(f));
}

static uint64_t calls_for(struct fixture *f)
{
    uint64_t before = wi_fault_seen(f->faulty.plan, WI_FAULT_READ);

    read_and_check(f);
    return wi_fault_seen(f->faulty.plan, WI_FAULT_READ) - before;
}

static struct weir_stats stats_of(struct weir_engine *engine)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    check_code(weir_engine_stats(engine, &stats), 0);
    return stats;
}

/* ---- order ------------------------------------------------------------------------------- */

static void sort__is_stable_and_leaves_the_array_alone(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct weir_range *ranges = calloc(5000, sizeof(*ranges));

    (void)env;
    check(ranges != NULL);
    for (unsigned round = 0; round < 300; round++) {
        size_t count = rng_below(&rng, round < 250 ? 40 : 5000);
        uint64_t limit = 1 + rng_below(&rng, round % 3 == 0 ? 10 : 100000);
        unsigned how = round % 5;

        for (size_t i = 0; i < count; i++)
            ranges[i].offset = how == 3   ? i /* in order */
                               : how == 4 ? count - i
                                          : rng_below(&rng, limit);
        for (size_t i = 0; i < count; i++)
            ranges[i].len = ranges[i].offset; /* to see that it stays */
        wi_ranges_sort(ranges, count);
        for (size_t i = 0; i < count; i++) {
            struct weir_range *range = wi_ranges_nth(ranges, i);

            check(ranges[i].len == ranges[i].offset);
            if (i > 0) {
                struct weir_range *before = wi_ranges_nth(ranges, i - 1);

                check(before->offset < range->offset ||
                      (before->offset == range->offset && before < range));
            }
        }
    }
    free(ranges);
}

/* ---- results ----------------------------------------------------------------------------- */

/* Any ranges: overlapping, equal, empty, beyond the end, in any order. */
static void read_many__equals_reads_of_each(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    for (unsigned round = 0; round < 200; round++) {
        size_t count = rng_below(&rng, 100);
        uint64_t spread = UINT64_C(1) << (8 + rng_below(&rng, 15));
        uint64_t base = rng_below(&rng, FILE_SIZE);

        forget(&f);
        for (size_t i = 0; i < count; i++)
            add(&f, base + rng_below(&rng, spread),
                rng_below(&rng, UINT64_C(1) << rng_below(&rng, 17)));
        read_and_check(&f);
    }
    fixture_close(&f);
}

static void read_many__direct(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct weir_file *file = NULL;
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    if (weir_file_open(f.faulty.engine, NULL, f.file->path, WEIR_OPEN_READ | WEIR_OPEN_DIRECT,
                       0, &file, NULL) < 0) {
        env->skipped = "no direct I/O here";
        fixture_close(&f);
        return;
    }
    check_code(weir_file_close(f.file), 0);
    f.file = file;
    for (unsigned round = 0; round < 30; round++) {
        forget(&f);
        for (size_t i = 0; i < 50; i++)
            add(&f, 4096 * rng_below(&rng, FILE_SIZE / 4096 + 3),
                4096 * (1 + rng_below(&rng, 4)));
        read_and_check(&f);
    }
    forget(&f);
    add(&f, 4096, 4096);
    add(&f, 1, 4096);
    check_code(read_them(&f), -EINVAL);
    check_code(f.ranges[0].result, 77);
    fixture_close(&f);
}

static void read_many__as_a_job(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct weir_queue *queue;
    struct probe probe;
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    check_code(weir_queue_open(f.faulty.engine, NULL, &queue), 0); /* one that merges */
    for (unsigned round = 0; round < 50; round++) {
        size_t count = rng_below(&rng, MOST);
        uint64_t spread = UINT64_C(1) << (12 + rng_below(&rng, 10));
        int64_t got;

        forget(&f);
        for (size_t i = 0; i < count; i++)
            add(&f, rng_below(&rng, spread),
                rng_below(&rng, UINT64_C(1) << rng_below(&rng, 15)));
        weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, f.file, NULL, NULL);
        probe.job.buf = f.ranges;
        probe.job.len = f.count;
        got = probe_run(queue, &probe);
        check_code(got, check_ranges(&f));
        check_code((int64_t)probe.transferred, probe.result);

        weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, f.file, NULL, NULL);
        probe.job.buf = f.ranges;
        probe.job.len = f.count;
        memset(f.bytes, 0xee, f.used);
        got = weir_job_do(f.faulty.engine, &probe.job);
        check_code(got, check_ranges(&f));
        check_code((int64_t)probe.job.transferred, probe.job.result);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    fixture_close(&f);
}

static void read_many__wrong_arguments(struct env *env)
{
    struct weir_error error;
    struct weir_file *file = NULL;
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    check_code(weir_file_read_many(f.file, NULL, 0, NULL), 0);
    check_code(weir_file_read_many(f.file, NULL, 1, NULL), -EINVAL);
    check_code(weir_file_read_many(f.file, f.ranges, (1u << 20) + 1, NULL), -E2BIG);
    add(&f, 0, 100);
    add(&f, (uint64_t)INT64_MAX - 10, 100);
    check_code(weir_file_read_many(f.file, f.ranges, 2, &error), -EINVAL);
    check_code((int64_t)error.offset, INT64_MAX - 10);
    check_code(f.ranges[0].result, 77);
    forget(&f);
    add(&f, 0, 100);
    f.ranges[0].buf = NULL;
    check_code(read_them(&f), -EINVAL);
    f.ranges[0].len = 0;
    check_code(read_them(&f), 0);
    check_code(f.ranges[0].result, 0);
    check_code(weir_file_open(f.faulty.engine, NULL, test_new_path("writeonly"),
                              WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &file, NULL),
               0);
    check_code(weir_file_read_many(file, f.ranges, 1, NULL), -EBADF);
    check_code(weir_file_close(file), 0);
    fixture_close(&f);
}

/* ---- merging ----------------------------------------------------------------------------- */

static void merge__shuffled_neighbours_are_few_calls(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct weir_stats stats;
    struct fixture f;

    /* 4 KiB reads with 4 KiB gaps, shuffled in windows of 256: 2 MiB, so two calls and no
     * more. */
    fixture_open(&f, env->backend, 0, NULL);
    for (unsigned i = 0; i < 256; i++)
        add(&f, i * UINT64_C(8192), 4096);
    for (unsigned i = 255; i > 0; i--) {
        unsigned k = (unsigned)rng_below(&rng, i + 1);
        uint64_t offset = f.ranges[i].offset;

        f.ranges[i].offset = f.ranges[k].offset;
        f.ranges[k].offset = offset;
    }
    check_code((int64_t)calls_for(&f), 2);
    stats = stats_of(f.faulty.engine);
    check_code((int64_t)stats.merges, 2);
    check_code((int64_t)stats.merged, 256);
    check_code((int64_t)stats.merge_splits, 0);
    check_code((int64_t)stats.gap_bytes, 254 * 4096);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].done, 1);
    check_code((int64_t)stats.ops[WEIR_STATS_READ].bytes, 256 * 4096);
    fixture_close(&f);
}

static void merge__keeps_its_limits(struct env *env)
{
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    add(&f, 0, 32768); /* the largest gap */
    add(&f, 32768 + 16384, 32768);
    check_code((int64_t)calls_for(&f), 1);
    forget(&f);
    add(&f, 0, 32768); /* one byte more */
    add(&f, 32768 + 16385, 32768);
    check_code((int64_t)calls_for(&f), 2);
    forget(&f);
    add(&f, 0, 1000); /* twice what was asked for, and one byte more */
    add(&f, 3000, 1000);
    check_code((int64_t)calls_for(&f), 1);
    f.ranges[1].offset = 3001;
    check_code((int64_t)calls_for(&f), 2);
    forget(&f);
    add(&f, 0, 256 * KIB + 1); /* a large one goes alone */
    add(&f, 256 * KIB + 1, 10);
    check_code((int64_t)calls_for(&f), 2);
    forget(&f);
    for (unsigned i = 0; i < 9; i++) /* 1 MiB, and one more */
        add(&f, i * 128 * KIB, 128 * KIB);
    check_code((int64_t)calls_for(&f), 2);
    forget(&f);
    for (unsigned i = 0; i < 257; i++) /* 256 pieces, and one more */
        add(&f, i * 16, 16);
    check_code((int64_t)calls_for(&f), 2);
    forget(&f);
    add(&f, 0, 100); /* the same twice */
    add(&f, 0, 100);
    check_code((int64_t)calls_for(&f), 2);
    fixture_close(&f);
}

static void add_eight(struct fixture *f)
{
    forget(f);
    for (unsigned i = 8; i-- > 0;)
        add(f, i * UINT64_C(8192), 4096);
}

/* What fails together is tried alone; what came before a short end needs not be. */
static void merge__failures_harm_only_their_own(struct env *env)
{
    struct weir_error error;
    struct fixture f;

    fixture_open(&f, env->backend, 0, NULL);
    add_eight(&f);
    faulty_rule(&f.faulty, (struct wi_fault_rule){
                               .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EIO });
    check_code((int64_t)calls_for(&f), 9);
    check_code((int64_t)stats_of(f.faulty.engine).merge_splits, 8);

    wi_fault_clear(f.faulty.plan);
    add_eight(&f);
    faulty_rule(&f.faulty,
                (struct wi_fault_rule){
                    .kind = WI_FAULT_READ, .first = 1, .count = 1, .shorten_to = 20000 });
    check_code((int64_t)calls_for(&f), 1 + 8 - 2);

    /* The second and third in order of offset stay bad: indices 6 and 5 of the array. */
    wi_fault_clear(f.faulty.plan);
    add_eight(&f);
    faulty_rule(&f.faulty, (struct wi_fault_rule){
                               .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EIO });
    faulty_rule(&f.faulty,
                (struct wi_fault_rule){
                    .kind = WI_FAULT_READ, .first = 2, .count = 2, .error = -ENXIO });
    check_code(weir_file_read_many(f.file, f.ranges, f.count, &error), -ENXIO);
    check_code((int64_t)error.offset, (int64_t)f.ranges[5].offset);
    check_code(f.ranges[6].result, -ENXIO);
    check_code(f.ranges[5].result, -ENXIO);
    for (unsigned i = 0; i < 8; i++) {
        if (i == 5 || i == 6)
            continue;
        check_code(f.ranges[i].result, 4096);
        check_pattern(f.ranges[i].buf, 4096, SEED, f.ranges[i].offset);
    }
    fixture_close(&f);
}

static void read_many__a_pipe_has_no_offsets(struct env *env)
{
    struct weir_file *pipe_file = NULL;
    struct fixture f;
    int ends[2];

    fixture_open(&f, env->backend, 0, NULL);
    check_code(pipe2(ends, O_CLOEXEC), 0);
    check_code(weir_file_adopt(f.faulty.engine, ends[0], "pipe", &pipe_file, NULL), 0);
    add(&f, 0, 10);
    add(&f, 10, 10);
    check_code(weir_file_read_many(pipe_file, f.ranges, 2, NULL), -ESPIPE);
    check_code(f.ranges[1].result, -ESPIPE);
    for (uint32_t advice = 0; advice <= WEIR_ADVICE_ONCE; advice++)
        check_code(weir_file_advise(pipe_file, advice, 0, 0, NULL), 0);
    check_code(weir_file_close(pipe_file), 0);
    (void)close(ends[1]);
    fixture_close(&f);
}

/* ---- the block cache --------------------------------------------------------------------- */

#define BLOCK (64 * KIB)

static const struct weir_engine_options cache_options = { .size = sizeof(cache_options),
                                                          .cache_bytes = 32 * BLOCK };

static void cached__read_many_needs_no_alignment(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct fixture f;

    fixture_open(&f, env->backend, WEIR_OPEN_CACHED, &cache_options);
    for (unsigned round = 0; round < 100; round++) {
        size_t count = rng_below(&rng, 60);

        forget(&f);
        for (size_t i = 0; i < count; i++)
            add(&f, rng_below(&rng, FILE_SIZE), rng_below(&rng, 100000));
        read_and_check(&f);
    }
    fixture_close(&f);
}

static bool is_cached(struct weir_file *file, uint64_t offset)
{
    struct weir_view view;
    int rc = weir_view_try(file, offset, 1, &view);

    check(rc == 0 || rc == -EAGAIN);
    if (rc == 0)
        weir_view_release(&view);
    return rc == 0;
}

static void cached__advice_loads_and_drops(struct env *env)
{
    struct weir_error error;
    struct fixture f;

    fixture_open(&f, env->backend, WEIR_OPEN_CACHED, &cache_options);
    check_code(weir_file_advise(f.file, WEIR_ADVICE_ONCE + 1, 0, 0, &error), -EINVAL);
    check_code(weir_file_advise(f.file, WEIR_ADVICE_WILLNEED, UINT64_MAX, 1, &error), -EINVAL);
    check_code(weir_file_advise(f.file, WEIR_ADVICE_WILLNEED, 2 * BLOCK + 1, 2 * BLOCK, &error),
               0);
    check(!is_cached(f.file, 2 * BLOCK - 1));
    for (unsigned i = 2; i < 5; i++)
        check(is_cached(f.file, i * BLOCK));
    check(!is_cached(f.file, 5 * BLOCK));
    add(&f, 2 * BLOCK, 2 * BLOCK);
    check_code((int64_t)calls_for(&f), 0);
    check_code(weir_file_advise(f.file, WEIR_ADVICE_DONTNEED, 3 * BLOCK, BLOCK, &error), 0);
    check(is_cached(f.file, 2 * BLOCK) && !is_cached(f.file, 3 * BLOCK));
    check(is_cached(f.file, 4 * BLOCK));
    check_code(weir_file_advise(f.file, WEIR_ADVICE_DONTNEED, 0, 0, &error), 0);
    check(!is_cached(f.file, 2 * BLOCK) && !is_cached(f.file, 4 * BLOCK));

    /* To the end, which is within a block. */
    check_code(weir_file_advise(f.file, WEIR_ADVICE_WILLNEED, 46 * BLOCK, 0, &error), 0);
    check(is_cached(f.file, FILE_SIZE - 1));
    for (uint32_t advice = 0; advice <= WEIR_ADVICE_RANDOM; advice++)
        check_code(weir_file_advise(f.file, advice, 0, 0, &error), 0);
    fixture_close(&f);
}

/* Who writes by a handle that is not cached is noticed by those that are. */
static void cached__sees_writes_of_other_handles(struct env *env)
{
    struct weir_file *writer = NULL;
    unsigned char page[4096];
    struct fixture f;

    fixture_open(&f, env->backend, 0, &cache_options);
    check_code(
        weir_file_open(f.faulty.engine, NULL, f.file->path, WEIR_OPEN_WRITE, 0, &writer, NULL),
        0);
    check(!wi_file_reads_cached(f.file) && !wi_file_reads_cached(writer));
    {
        struct weir_file *cached = NULL;

        check_code(weir_file_open(f.faulty.engine, NULL, f.file->path,
                                  WEIR_OPEN_READ | WEIR_OPEN_CACHED, 0, &cached, NULL),
                   0);
        check_code(weir_file_read(cached, page, sizeof(page), 0), sizeof(page));
        check(is_cached(cached, 0));
        memset(page, 0x55, sizeof(page));
        check_code(weir_file_write(writer, page, sizeof(page), 0), sizeof(page));
        memset(page, 0, sizeof(page));
        check_code(weir_file_read(cached, page, sizeof(page), 0), sizeof(page));
        check(page[0] == 0x55 && page[4095] == 0x55);
        check_code(weir_file_truncate(writer, 100, NULL), 0);
        check_code(weir_file_read(cached, page, sizeof(page), 0), 100);
        check_code(weir_file_truncate(writer, 200, NULL), 0);
        check_code(weir_file_read(cached, page, sizeof(page), 0), 200);
        check(page[99] == 0x55 && page[100] == 0);
        check_code(weir_file_allocate(writer, 0, 300, 0, NULL), 0);
        check_code(weir_file_read(cached, page, sizeof(page), 0), 300);
        check_code(weir_file_close(cached), 0);
    }
    check_code(weir_file_close(writer), 0);
    fixture_close(&f);
}

/* ---- a kernel without the flag ----------------------------------------------------------- */

#define DONTCACHE 0x80u

static _Atomic unsigned flagged;

static int64_t refuse_flag(const struct wi_os *os, int fd, const struct iovec *iov,
                           uint32_t count, uint64_t offset, uint32_t rwf)
{
    if (rwf & DONTCACHE) {
        atomic_fetch_add(&flagged, 1);
        return -EOPNOTSUPP;
    }
    return wi_os_posix()->ops->preadv2(os, fd, iov, count, offset, rwf);
}

/* Loads ask that their bytes are not kept twice. Where that is refused they go on without. */
static void cached__a_refused_flag_is_left_away(struct env *env)
{
    const char *path = test_new_path("flag");
    struct weir_engine_options options = cache_options;
    struct wi_os_ops ops = *wi_os_posix()->ops;
    struct wi_os os = { .ops = &ops };
    struct wi_engine_seams seams = { .os = &os };
    struct weir_engine *engine;
    struct weir_file *file = NULL;
    unsigned char byte;

    ops.preadv2 = refuse_flag;
    options.backend = env->backend;
    pattern_make_file(path, FILE_SIZE, SEED);
    check_code(wi_engine_open_with(&options, &seams, &engine, NULL), 0);
    for (unsigned round = 1; round <= 2; round++) {
        check_code(weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_CACHED, 0,
                                  &file, NULL),
                   0);
        for (unsigned i = 0; i < 10; i++) {
            check_code(weir_file_advise(file, WEIR_ADVICE_DONTNEED, 0, 0, NULL), 0);
            check_code(weir_file_read(file, &byte, 1, i * 3 * BLOCK), 1);
            check_code(byte, pattern_byte(SEED, i * 3 * BLOCK));
        }
        check_code(atomic_load(&flagged), round); /* once for each file */
        check_code(weir_file_close(file), 0);
    }
    check_code(weir_engine_close(engine), 0);
}

/* ---- the budget of retries --------------------------------------------------------------- */

/* 256 retries, then one for every ten calls that end. */
static void retry__the_budget_runs_out_and_comes_back(struct env *env)
{
    struct weir_stats stats;
    unsigned char byte;
    struct fixture f;
    uint64_t retries;

    fixture_open(&f, env->backend, 0, NULL);
    faulty_rule(&f.faulty,
                (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 1, .error = -EIO });
    for (unsigned i = 0; i < 300; i++)
        check_code(weir_file_read(f.file, &byte, 1, 0), -EIO);
    stats = stats_of(f.faulty.engine);
    /* The calls themselves earn, too: one in ten. */
    check(stats.retries >= 256 && stats.retries <= 256 + 32);
    check(stats.retries_refused >= 100);
    retries = stats.retries;
    faulty_release(&f.faulty);
    for (unsigned i = 0; i < 1700; i++)
        check_code(weir_file_read(f.file, &byte, 1, 0), 1);
    faulty_rule(&f.faulty,
                (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 1, .error = -EIO });
    for (unsigned i = 0; i < 200; i++)
        check_code(weir_file_read(f.file, &byte, 1, 0), -EIO);
    stats = stats_of(f.faulty.engine);
    check(stats.retries - retries >= 165 && stats.retries - retries <= 195);

    /* What is tried again at once is free. */
    faulty_release(&f.faulty);
    faulty_rule(&f.faulty,
                (struct wi_fault_rule){
                    .kind = WI_FAULT_READ, .first = 1, .count = 5, .error = -EINTR });
    check_code(weir_file_read(f.file, &byte, 1, 0), 1);
    fixture_close(&f);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(sort__is_stable_and_leaves_the_array_alone, CASE_ONCE | CASE_NO_QUEUE),
        CASE(read_many__equals_reads_of_each, CASE_ONCE | CASE_NO_QUEUE),
        CASE(read_many__direct, CASE_ONCE | CASE_NO_QUEUE),
        CASE(read_many__as_a_job, CASE_NO_QUEUE | CASE_BYTES),
        CASE(read_many__wrong_arguments, CASE_ONCE | CASE_NO_QUEUE),
        CASE(merge__shuffled_neighbours_are_few_calls, CASE_ONCE | CASE_NO_QUEUE),
        CASE(merge__keeps_its_limits, CASE_ONCE | CASE_NO_QUEUE),
        CASE(merge__failures_harm_only_their_own, CASE_ONCE | CASE_NO_QUEUE),
        CASE(read_many__a_pipe_has_no_offsets, CASE_ONCE | CASE_NO_QUEUE),
        CASE(cached__read_many_needs_no_alignment, CASE_ONCE | CASE_NO_QUEUE),
        CASE(cached__advice_loads_and_drops, CASE_ONCE | CASE_NO_QUEUE),
        CASE(cached__sees_writes_of_other_handles, CASE_ONCE | CASE_NO_QUEUE),
        CASE(cached__a_refused_flag_is_left_away, CASE_ONCE | CASE_NO_QUEUE),
        CASE(retry__the_budget_runs_out_and_comes_back, CASE_ONCE | CASE_NO_QUEUE),
    };

    return run_cases("engine_read_many", cases, COUNT(cases), argc, argv);
}
