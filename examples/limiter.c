/* SPDX-License-Identifier: MIT */
/*
 * limiter.c - read a whole file, with at most four blocks in memory at any time
 *
 * Each block asks for a permit for its bytes with weir_limiter_notify(), and is told by a job when
 * there is room. Only then it has memory, and the same job reads. The permit is given back when the
 * block was used: what is read and waits to be used counts too. How long each took is a metric.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <weir/weir.h>

#define BLOCK ((size_t)4096)

struct block {
    struct weir_job job;
    struct weir_permit permit;
    struct timespec start;
    uint64_t offset;
    char *bytes;
};

static struct weir_engine *engine;
static struct weir_queue *queue;
static struct weir_file *file;
static size_t read_bytes, done_count, failed_count;

static void end_block(struct block *block)
{
    free(block->bytes);
    weir_permit_release(&block->permit); /* the next one goes */
    done_count++;
}

static void on_read(struct weir_job *job)
{
    struct block *block = job->arg;
    struct timespec end;

    clock_gettime(CLOCK_MONOTONIC, &end);
    weir_metric_record(engine, "block",
                       (uint64_t)((end.tv_sec - block->start.tv_sec) * 1000000000 +
                                  (end.tv_nsec - block->start.tv_nsec)));
    if (job->result >= 0)
        read_bytes += (size_t)job->result; /* use block->bytes here */
    failed_count += job->result < 0;
    end_block(block);
}

static void on_room(struct weir_job *job)
{
    struct block *block = job->arg;

    block->bytes = malloc(BLOCK);
    clock_gettime(CLOCK_MONOTONIC, &block->start);
    weir_job_read(job, file, block->bytes, BLOCK, block->offset, on_read, block);
    if (!block->bytes || weir_queue_submit(queue, &job, 1) < 0) {
        failed_count++;
        end_block(block);
    }
}

int main(int argc, char **argv)
{
    struct weir_limiter_options options = { .size = sizeof(options), .bytes = 4 * BLOCK };
    struct weir_limiter_info info = { .size = sizeof(info) };
    struct weir_metric metric;
    struct weir_limiter *limiter;
    struct weir_stat stat;
    struct block *blocks;
    size_t count;

    if (weir_engine_open(NULL, &engine, NULL) < 0 ||
        weir_queue_open(engine, NULL, &queue) < 0 ||
        weir_limiter_open(&options, &limiter) < 0 ||
        weir_file_open(engine, NULL, argv[argc - 1], WEIR_OPEN_READ, 0, &file, NULL) < 0 ||
        weir_file_stat(file, &stat, NULL) < 0)
        return 1;
    count = (size_t)(stat.size_bytes + BLOCK - 1) / BLOCK;
    blocks = calloc(count, sizeof(*blocks));
    if (!blocks)
        return 1;
    for (size_t i = 0; i < count; i++) {
        struct block *block = &blocks[i];

        block->offset = i * BLOCK;
        weir_job_prepare(&block->job, WEIR_OP_NOP, NULL, on_room, block);
        if (weir_limiter_notify(limiter, WEIR_CLASS_FOREGROUND, BLOCK, &block->permit, queue,
                                &block->job) < 0)
            return 1;
    }
    while (done_count < count)
        weir_queue_wait(queue, 1, 1000000000);
    weir_limiter_info(limiter, &info);
    if (weir_metric_read(engine, "block", &metric) == 0)
        printf("%zu bytes in %zu blocks; p99 %llu us; at most %llu bytes out\n", read_bytes,
               done_count, (unsigned long long)metric.latency.p99_ns / 1000,
               (unsigned long long)info.bytes_peak);
    free(blocks);
    weir_queue_close(queue, WEIR_FOREVER);
    weir_file_close(file);
    weir_limiter_close(limiter);
    weir_engine_close(engine);
    return failed_count > 0 || read_bytes != stat.size_bytes || info.bytes_peak > options.bytes;
}
