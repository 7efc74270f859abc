/* SPDX-License-Identifier: MIT */
/*
 * bench_engine.c - the engine and the file that a case runs on, and what they counted
 *
 * File      the plan's; or, where only counts and our own cost are of interest (overhead, and
 *           zipf and hit unless a file is named), a hole in memory and the null backend. There
 *           a terabyte costs nothing, and no bytes move.
 * Cache     with --cache the file goes through the block cache. Never-touched memory is slow on
 *           virtual machines, so the cache is filled first: by loads that go through the file
 *           with the part that they reach last, whose blocks have long gone again by then.
 * Pictures  clock, processor time and the engine's counters at both ends of the measured
 *           part. All quotients come from two pictures.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench_internal.h"

static void say_why(const char *what, int rc, const struct weir_error *error, const char *cure)
{
    char text[600];

    if (error->code != 0)
        weir_error_format(error, text, sizeof(text));
    else
        snprintf(text, sizeof(text), "%s", weir_code_text(rc));
    bench_say("%s%s%s\n", what, text, cure);
}

/* --- opening --------------------------------------------------------------------------------- */

static int open_engine(struct bench_base *base, struct bench_result *result)
{
    const struct bench_plan *plan = base->plan;
    uint64_t rounded = ((uint64_t)plan->block_bytes + 4095u) / 4096u * 4096u;
    uint64_t count = (uint64_t)plan->threads * (plan->blocking ? 1 : plan->depth);
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = plan->backend,
                                           .cache_bytes = plan->cache_bytes,
                                           .cache_block_size = plan->cache_block_bytes,
                                           .cache_policy = plan->policy };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_error error = { 0 };
    int rc;

    if (plan->kind == BENCH_MIX) {
        rounded = BENCH_MIX_BYTES > rounded ? BENCH_MIX_BYTES : rounded;
        count = BENCH_MIX_DEPTH + 1;
    }
    /* A pool beyond 1 GiB is no pool any more; the buffers are then plain memory. */
    if (!bench_views(plan) && rounded * count <= (UINT64_C(1) << 30)) {
        options.buffer_size = (size_t)rounded;
        options.buffer_count = (uint32_t)count;
    }
    rc = weir_engine_open(&options, &base->engine, &error);
    if (rc != 0) {
        say_why("can't open an engine: ", rc, &error, "");
        return rc;
    }
    (void)weir_engine_info(base->engine, &info);
    snprintf(result->backend_name, sizeof(result->backend_name), "%s", info.backend_name);
    snprintf(result->why, sizeof(result->why), "%s", info.why);
    result->ring_flags = info.ring_flags;
    result->io_threads = info.lane_threads[WEIR_LANE_IO];
    result->registered_buffers = info.registered_buffers != 0;
    return 0;
}

static int open_in_memory(struct bench_base *base, uint32_t flags, struct weir_error *error)
{
    int fd = memfd_create("weir-bench", MFD_CLOEXEC);
    char path[64];
    int rc = 0;

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)base->plan->size_bytes) != 0)
        rc = -errno;
    /* Only what is opened by a name can be cached. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (rc == 0 && (flags & WEIR_OPEN_CACHED) != 0)
        rc = weir_file_open(base->engine, NULL, path, flags, 0, &base->file, error);
    else if (rc == 0)
        rc = weir_file_adopt(base->engine, fd, "memory", &base->file, error);
    if (rc != 0 || (flags & WEIR_OPEN_CACHED) != 0)
        (void)close(fd);
    return rc;
}

static int open_file(struct bench_base *base)
{
    const struct bench_plan *plan = base->plan;
    uint32_t flags = bench_writes(plan->kind) ? WEIR_OPEN_WRITE : WEIR_OPEN_READ;
    struct weir_error error = { 0 };
    int rc;

    flags |= plan->direct ? (uint32_t)WEIR_OPEN_DIRECT : 0;
    if (plan->cache_bytes != 0)
        flags |= WEIR_OPEN_CACHED | WEIR_OPEN_READ;
    if (plan->in_memory)
        rc = open_in_memory(base, flags, &error);
    else
        rc = weir_file_open(base->engine, NULL, plan->path, flags, 0, &base->file, &error);
    /* Blocking readers have no queue that could be told not to look ahead. */
    if (rc == 0 && plan->cache_bytes != 0 && plan->no_prefetch)
        rc = weir_file_advise(base->file, WEIR_ADVICE_RANDOM, 0, 0, &error);
    if (rc != 0)
        say_why("", rc, &error, plan->direct ? "; without --direct it may work" : "");
    return rc;
}

static int check_alignment(const struct bench_base *base)
{
    const struct bench_plan *plan = base->plan;
    struct weir_file_info info = { .size = sizeof(info) };

    if (weir_file_info(base->file, &info) != 0 || info.direct == 0 || info.offset_align <= 1 ||
        plan->block_bytes % info.offset_align == 0 || plan->cache_bytes != 0)
        return 0;
    bench_say("direct reads and writes of %s need --bs in multiples of %u\n", plan->path,
              info.offset_align);
    return -EINVAL;
}

int bench_base_open(struct bench_base *base, const struct bench_plan *plan,
                    struct bench_result *result)
{
    struct weir_error error = { 0 };
    int rc;

    memset(base, 0, sizeof(*base));
    base->plan = plan;
    rc = open_engine(base, result);
    if (rc == 0)
        rc = open_file(base);
    if (rc == 0)
        rc = check_alignment(base);
    if (rc == 0 && plan->trace != NULL) {
        rc = weir_trace_start(base->engine, plan->trace, &error);
        if (rc != 0)
            say_why("can't trace: ", rc, &error, "");
    }
    return rc;
}

void bench_base_close(struct bench_base *base)
{
    struct weir_error error = { 0 };
    uint64_t dropped = 0;

    if (base->engine != NULL && base->plan->trace != NULL) {
        int rc = weir_trace_stop(base->engine, &dropped, &error);

        if (rc != 0 && rc != -ENOENT)
            say_why("the trace: ", rc, &error, "");
        if (dropped != 0)
            bench_say("%s lacks %llu operations: it could not be written as fast\n",
                      base->plan->trace, (unsigned long long)dropped);
    }
    (void)weir_file_close(base->file);
    (void)weir_engine_close(base->engine);
}

int bench_base_queue(const struct bench_base *base, uint32_t depth,
                     struct weir_queue **ret_queue)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = depth };

    if (base->plan->cache_bytes > 0)
        options.depth = 0; /* what is read ahead needs room beside the reader's own */
    if (base->plan->no_merge)
        options.flags |= WEIR_QUEUE_NO_MERGE;
    if (base->plan->no_prefetch)
        options.flags |= WEIR_QUEUE_NO_PREFETCH;
    return weir_queue_open(base->engine, &options, ret_queue);
}

/* --- memory ---------------------------------------------------------------------------------- */

void *bench_base_buffer(const struct bench_base *base, size_t bytes, uint64_t *random,
                        bool *ret_pooled)
{
    void *buf = weir_buffer_acquire(base->engine);

    *ret_pooled = buf != NULL;
    if (buf == NULL)
        buf = aligned_alloc(4096, (bytes + 4095u) / 4096u * 4096u);
    if (buf == NULL)
        return NULL;
    for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
        uint64_t word = bench_random(random) | 1u;

        memcpy((char *)buf + at, &word, sizeof(word));
    }
    return buf;
}

void bench_base_give(const struct bench_base *base, void *buf, bool pooled)
{
    if (pooled)
        weir_buffer_release(base->engine, buf);
    else
        free(buf);
}

int bench_base_fill(const struct bench_base *base, uint64_t offset, uint64_t len)
{
    uint64_t at = offset;

    while (at < offset + len && !bench_interrupted) {
        struct weir_error error = { 0 };
        struct weir_view view;
        int rc = weir_view_get(base->file, at, (size_t)(offset + len - at), &view, &error);

        if (rc != 0) {
            say_why("can't fill the cache: ", rc, &error, "");
            return rc;
        }
        if (view.len == 0)
            break;
        at += view.len;
        weir_view_release(&view);
    }
    return 0;
}

/* --- pictures -------------------------------------------------------------------------------- */

void bench_picture_take(const struct bench_base *base, struct bench_picture *picture)
{
    picture->stats = (struct weir_stats){ .size = sizeof(picture->stats) };
    (void)weir_engine_stats(base->engine, &picture->stats);
    picture->cpu_ns = bench_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    picture->now_ns = bench_now_ns();
}

void bench_picture_compare(const struct bench_picture *before,
                           const struct bench_picture *after, uint64_t allocs,
                           const struct bench_plan *plan, struct bench_result *result)
{
    const struct weir_stats *from = &before->stats;
    const struct weir_stats *to = &after->stats;
    uint64_t hits = to->cache_hits - from->cache_hits;
    uint64_t judged = hits + to->cache_misses - from->cache_misses;
    double ops;

    if (bench_tries(plan->kind)) {
        hits = after->hits - before->hits;
        judged = after->judged - before->judged;
    }
    result->ops = after->ops - before->ops;
    result->seconds = (double)(after->now_ns - before->now_ns) / 1e9;
    ops = result->ops > 0 ? (double)result->ops : 1.0;
    result->cpu_us_per_op = (double)(after->cpu_ns - before->cpu_ns) / 1000.0 / ops;
    result->syscalls_per_op = (double)(to->system_calls - from->system_calls) / ops;
    result->allocs_per_op = bench_alloc_available() ? (double)allocs / ops : -1.0;
    result->requests = result->ops;
    result->asked_bytes = result->ops * plan->block_bytes;
    result->device_ops = to->device_ops - from->device_ops;
    result->device_bytes = to->device_bytes - from->device_bytes;
    result->hit_ratio = -1.0;
    if (plan->cache_bytes != 0 && judged != 0)
        result->hit_ratio = (double)hits / (double)judged;
    result->prefetch_bytes = to->prefetch_bytes - from->prefetch_bytes;
    result->prefetch_used = to->prefetch_used - from->prefetch_used;
    result->prefetch_wasted = to->prefetch_wasted - from->prefetch_wasted;
}
