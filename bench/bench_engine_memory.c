/* SPDX-License-Identifier: MIT */
/*
 * bench_engine_memory.c - what 10,000 jobs cost in memory
 *
 * The question: a queue is opened with a backlog of 10,000 and that many reads are submitted;
 * how much more memory does the process have than with the engine and the file alone? It
 * expects to hit the sum of the jobs themselves (256 bytes each) and what the queue set
 * aside at open. The buffer that the reads share is the caller's and touched before; at
 * most one turn has run when the second picture is taken, so the backlog is full.
 *
 * Usage: bench_engine_memory FILE [JOBS]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <weir/weir.h>

#define READ_BYTES 4096u

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

/* Submit them all, and take the pictures on the way. */
static int measure(struct weir_engine *engine, struct weir_file *file, uint32_t count)
{
    struct weir_queue_options options = { .size = sizeof(options), .backlog = count };
    struct weir_engine_info info = { .size = sizeof(info) };
    uint64_t rss_idle;
    uint64_t rss_full;
    uint64_t own_idle;
    uint64_t own_full;
    struct weir_queue *queue;
    struct weir_job *jobs;
    void *buf = aligned_alloc(4096, READ_BYTES);
    int rc;

    if (buf == NULL)
        return fail("memory", -ENOMEM);
    memset(buf, 1, READ_BYTES);
    (void)weir_engine_info(engine, &info);
    (void)resident_bytes(); /* the C library's own first use of a stream */
    (void)engine_bytes(engine);
    rss_idle = resident_bytes();
    own_idle = engine_bytes(engine);

    rc = weir_queue_open(engine, &options, &queue);
    if (rc != 0)
        return fail("weir_queue_open", rc);
    jobs = calloc(count, sizeof(*jobs));
    if (jobs == NULL)
        return fail("memory", -ENOMEM);
    for (uint32_t i = 0; i < count; i++) {
        struct weir_job *job = &jobs[i];

        weir_job_read(job, file, buf, READ_BYTES, (uint64_t)(i % 64) * READ_BYTES, on_done,
                      NULL);
        rc = weir_queue_submit(queue, &job, 1);
        if (rc != 1)
            return fail("weir_queue_submit", rc);
    }
    (void)weir_queue_run(queue);
    rss_full = resident_bytes();
    own_full = engine_bytes(engine);

    while (done_count < count) {
        rc = weir_queue_wait(queue, 0, WEIR_FOREVER);
        if (rc < 0)
            return fail("weir_queue_wait", rc);
    }
    rc = weir_queue_close(queue, WEIR_FOREVER);
    if (rc != 0)
        return fail("weir_queue_close", rc);
    printf(
        "{\"name\":\"engine/memory/jobs=%u,backend=%s\",\"case\":\"memory\",\"backend\":\"%s\","
        "\"jobs\":%u,\"job_bytes\":%llu,\"rss_over_idle\":%lld,\"memory_over_idle\":%lld,"
        "\"rss_idle\":%llu,\"failed\":%llu}\n",
        count, info.backend_name, info.backend_name, count,
        (unsigned long long)count * sizeof(*jobs), (long long)(rss_full - rss_idle),
        (long long)(own_full - own_idle), (unsigned long long)rss_idle,
        (unsigned long long)failed_count);
    free(jobs);
    free(buf);
    return failed_count != 0;
}

int main(int argc, char **argv)
{
    struct weir_engine *engine;
    struct weir_file *file;
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    int rc;

    if (argc < 2 || argc > 3 || count < 1 || count > (1u << 19)) {
        fprintf(stderr, "usage: bench_engine_memory FILE [JOBS]\n");
        return 2;
    }
    rc = weir_engine_open(NULL, &engine, NULL);
    if (rc != 0)
        return fail("weir_engine_open", rc);
    rc = weir_file_open(engine, NULL, argv[1], WEIR_OPEN_READ | WEIR_OPEN_DIRECT, 0, &file,
                        NULL);
    if (rc == -EINVAL) /* no direct reads on this file system */
        rc = weir_file_open(engine, NULL, argv[1], WEIR_OPEN_READ, 0, &file, NULL);
    if (rc != 0)
        return fail(argv[1], rc);
    rc = measure(engine, file, (uint32_t)count);
    (void)weir_file_close(file);
    (void)weir_engine_close(engine);
    return rc;
}
