/* SPDX-License-Identifier: MIT */
/*
 * bench_engine_memory.c - what 10,000 jobs cost in memory
 *
 * The question: an engine is opened with a block cache and a buffer pool, and a queue with a
 * backlog of 10,000; the cache is filled, the buffers are touched, and that many reads are
 * submitted. How much memory has the process then, above what it had before the engine, the
 * blocks in the cache and the buffers? The jobs and the one buffer that they share are the
 * caller's, and touched before. The reads are far apart, so none are merged, and at most one
 * turn has run when the last picture is taken, so the backlog is full. It expects to find
 * what the queue, the cache and the pool set aside to keep order, and stacks of threads.
 *
 *   rss_above_configured   that
 *   rss_over_idle          the jobs, and what queue and reads added to an engine with an open file
 *   memory_over_idle       the same by the engine's own account
 *
 * Usage: bench_engine_memory FILE [JOBS]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <weir/weir.h>

#define READ_BYTES   4096u
#define APART_BYTES  65536u
#define CACHE_BYTES  (UINT64_C(64) << 20)
#define BUFFER_COUNT 64u

static uint64_t done_count;
static uint64_t failed_count;

static void on_done(struct weir_job *job)
{
    done_count++;
    failed_count += job->result < 0;
}

static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");

    if (statm == NULL)
        return 0;
    if (fscanf(statm, "%*u %llu", &pages) != 1)
        pages = 0;
    (void)fclose(statm);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t engine_bytes(struct weir_engine *engine)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    return weir_engine_stats(engine, &stats) == 0 ? stats.memory_bytes : 0;
}

static int fail(const char *what, int code)
{
    fprintf(stderr, "bench_engine_memory: %s: %s\n", what, weir_code_text(code));
    return 1;
}

/* What is measured, in the order in which it is made. */
struct memory {
    const char *path;
    uint32_t count;
    struct weir_job *jobs;
    void *buf;
    struct weir_engine *engine;
    struct weir_file *cached;
    struct weir_file *file;
    struct weir_queue *queue;
    uint64_t size_bytes;  /* of the file */
    uint64_t cache_bytes; /* that are in use */
    uint64_t buffer_bytes;
    uint64_t rss_before;
    uint64_t rss_idle;
    uint64_t rss_full;
    uint64_t own_idle;
    uint64_t own_full;
};

static int open_file(const struct memory *memory, uint32_t flags, struct weir_file **ret_file)
{
    int rc = weir_file_open(memory->engine, NULL, memory->path,
                            flags | WEIR_OPEN_READ | WEIR_OPEN_DIRECT, 0, ret_file, NULL);

    if (rc == -EINVAL) /* no direct reads on this file system */
        rc = weir_file_open(memory->engine, NULL, memory->path, flags | WEIR_OPEN_READ, 0,
                            ret_file, NULL);
    return rc != 0 ? fail(memory->path, rc) : 0;
}

/* Engine and files, with all that was configured in use. */
static int prepare(struct memory *memory)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .cache_bytes = CACHE_BYTES,
                                           .buffer_count = BUFFER_COUNT };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_stat st;
    void *buffers[BUFFER_COUNT];
    uint32_t taken = 0;
    uint64_t at = 0;
    int rc;

    rc = weir_engine_open(&options, &memory->engine, NULL);
    if (rc != 0)
        return fail("weir_engine_open", rc);
    if (open_file(memory, WEIR_OPEN_CACHED, &memory->cached) != 0 ||
        open_file(memory, 0, &memory->file) != 0)
        return 1;
    rc = weir_file_stat(memory->file, &st, NULL);
    if (rc != 0 || st.size_bytes < APART_BYTES)
        return fail("the file is too small", rc != 0 ? rc : -EINVAL);
    memory->size_bytes = st.size_bytes;
    while (at < CACHE_BYTES + CACHE_BYTES / 2 && at < st.size_bytes) {
        struct weir_view view;

        rc = weir_view_get(memory->cached, at, APART_BYTES, &view, NULL);
        if (rc != 0)
            return fail("weir_view_get", rc);
        at += APART_BYTES;
        weir_view_release(&view);
    }
    while (taken < BUFFER_COUNT) {
        buffers[taken] = weir_buffer_acquire(memory->engine);
        if (buffers[taken] == NULL)
            break;
        memset(buffers[taken++], 1, APART_BYTES);
    }
    while (taken > 0)
        weir_buffer_release(memory->engine, buffers[--taken]);
    (void)weir_engine_info(memory->engine, &info);
    (void)weir_engine_stats(memory->engine, &stats);
    memory->buffer_bytes = info.buffer_bytes;
    memory->cache_bytes = stats.cache_blocks * APART_BYTES;
    return 0;
}

/* A queue with all jobs in it. */
static int submit_all(struct memory *memory)
{
    struct weir_queue_options options = { .size = sizeof(options), .backlog = memory->count };
    uint64_t places = memory->size_bytes / APART_BYTES;
    int rc = weir_queue_open(memory->engine, &options, &memory->queue);

    if (rc != 0)
        return fail("weir_queue_open", rc);
    for (uint32_t i = 0; i < memory->count; i++) {
        struct weir_job *job = &memory->jobs[i];

        weir_job_read(job, memory->file, memory->buf, READ_BYTES, i % places * APART_BYTES,
                      on_done, NULL);
        rc = weir_queue_submit(memory->queue, &job, 1);
        if (rc != 1)
            return fail("weir_queue_submit", rc);
    }
    (void)weir_queue_run(memory->queue);
    return 0;
}

static int measure(struct memory *memory)
{
    int rc;

    memory->jobs = calloc(memory->count, sizeof(*memory->jobs));
    memory->buf = aligned_alloc(4096, READ_BYTES);
    if (memory->jobs == NULL || memory->buf == NULL)
        return fail("memory", -ENOMEM);
    memset(memory->buf, 1, READ_BYTES);
    memset(memory->jobs, 1, memory->count * sizeof(*memory->jobs));
    (void)resident_bytes(); /* the C library's own first use of a stream */
    memory->rss_before = resident_bytes();
    if (prepare(memory) != 0)
        return 1;
    memory->rss_idle = resident_bytes();
    memory->own_idle = engine_bytes(memory->engine);
    if (submit_all(memory) != 0)
        return 1;
    memory->rss_full = resident_bytes();
    memory->own_full = engine_bytes(memory->engine);

    while (done_count < memory->count) {
        rc = weir_queue_wait(memory->queue, 0, WEIR_FOREVER);
        if (rc < 0)
            return fail("weir_queue_wait", rc);
    }
    rc = weir_queue_close(memory->queue, WEIR_FOREVER);
    return rc != 0 ? fail("weir_queue_close", rc) : 0;
}

static int report(const struct memory *memory)
{
    struct weir_engine_info info = { .size = sizeof(info) };
    uint64_t jobs = memory->count * sizeof(*memory->jobs);
    /* Signed: what is freed on the way counts too. */
    int64_t over_idle = (int64_t)(memory->rss_full - memory->rss_idle + jobs);
    int64_t own = (int64_t)(memory->own_full - memory->own_idle);
    int64_t above = (int64_t)(memory->rss_full - memory->rss_before - memory->cache_bytes -
                              memory->buffer_bytes);

    (void)weir_engine_info(memory->engine, &info);
    printf("{\"name\":\"engine/memory/jobs=%u,backend=%s\",\"case\":\"memory\","
           "\"backend\":\"%s\",\"jobs\":%u,\"job_bytes\":%llu",
           memory->count, info.backend_name, info.backend_name, memory->count,
           (unsigned long long)jobs);
    printf(",\"rss_over_idle\":%lld,\"memory_over_idle\":%lld,\"rss_idle\":%llu",
           (long long)over_idle, (long long)own, (unsigned long long)memory->rss_idle);
    printf(",\"cache_bytes\":%llu,\"buffer_bytes\":%llu,\"rss_above_configured\":%lld,"
           "\"failed\":%llu}\n",
           (unsigned long long)memory->cache_bytes, (unsigned long long)memory->buffer_bytes,
           (long long)above, (unsigned long long)failed_count);
    return failed_count != 0;
}

int main(int argc, char **argv)
{
    struct memory memory = { .path = argc > 1 ? argv[1] : "" };
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    int rc;

    if (argc < 2 || argc > 3 || count < 1 || count > (1u << 19)) {
        fprintf(stderr, "usage: bench_engine_memory FILE [JOBS]\n");
        return 2;
    }
    memory.count = (uint32_t)count;
    rc = measure(&memory);
    if (rc == 0)
        rc = report(&memory);
    (void)weir_file_close(memory.file);
    (void)weir_file_close(memory.cached);
    (void)weir_engine_close(memory.engine);
    free(memory.jobs);
    free(memory.buf);
    return rc;
}
