/* SPDX-License-Identifier: MIT */
/*
 * test_engine.c - opening, buffers, statistics, the dump, error records
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED 19u

static struct weir_file *make_file(struct weir_engine *engine, size_t size)
{
    const char *path = test_new_path("engine");
    struct weir_file *file = NULL;

    pattern_make_file(path, size, SEED);
    check_code(
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    return file;
}

/* --- opening ------------------------------------------------------------------------- */

/* Options out of range are refused with a reason. */
static void open__bad_options_are_einval(struct env *env)
{
    (void)env;
    for (int what = 0; what < 12; what++) {
        struct weir_engine_options options = { .size = sizeof(options) };
        struct weir_engine *engine = NULL;
        struct weir_error error = { 0 };

        switch (what) {
        case 0:
            options.backend = WEIR_BACKEND_NULL + 1;
            break;
        case 1:
            options.buffer_size = 1000;
            options.buffer_count = 4;
            break;
        case 2:
            options.io_threads = UINT32_MAX;
            break;
        case 3:
            options.size = 0;
            break;
        case 4:
            options.pin_cpus_count = 3;
            break;
        case 5:
            options.cache_block_size = 12288;
            break;
        case 6:
            options.cache_block_size = 2048;
            break;
        case 7:
            options.cache_block_size = 2 << 20;
            options.cache_bytes = 1 << 30;
            break;
        case 8:
            options.cache_bytes = 16 * 64 * KIB - 1;
            break;
        case 9:
            options.cache_policy = WEIR_POLICIES;
            break;
        case 10:
            options.cache_bytes = UINT64_MAX;
            options.cache_policy = UINT32_MAX;
            break;
        default:
            options.buffer_size = SIZE_MAX & ~(size_t)4095;
            options.buffer_count = UINT32_MAX;
            break;
        }
        check_code(weir_engine_open(&options, &engine, &error), -EINVAL);
        check(engine == NULL);
        check_code(error.code, -EINVAL);
        check(error.text[0] != '\0');
    }
}

/* A caller that was built when the struct was shorter gets the defaults for the rest. */
static void open__shorter_options_get_defaults(struct env *env)
{
    struct weir_engine_options options;
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_engine *engine = NULL;

    memset(&options, 0xff, sizeof(options)); /* nothing behind `size` may be read */
    memset(&options, 0, offsetof(struct weir_engine_options, cache_bytes));
    options.size = offsetof(struct weir_engine_options, cache_bytes);
    options.backend = env->backend;
    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_engine_stats(engine, &stats), 0);
    check_code((int64_t)stats.cache_bytes, 0);
    check_code(weir_engine_close(engine), 0);

    memset(&options, 0, sizeof(options));
    options.size = sizeof(options);
    options.backend = env->backend;
    options.cache_bytes = 16 * 4096;
    options.cache_block_size = 4096;
    options.open_files = 1;
    options.stall_ns = WEIR_NEVER;
    options.device_ops = 1;
    options.device_bytes = 1;
    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_engine_stats(engine, &stats), 0);
    check_code((int64_t)stats.cache_bytes, 16 * 4096);
    check_code(weir_engine_close(engine), 0);
}

/* A queue's limits are checked as well. */
static void open__bad_queue_options_are_einval(struct env *env)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = 4097 };
    struct weir_queue *queue = NULL;

    check_code(weir_queue_open(env->engine, &options, &queue), -EINVAL);
    options.depth = 4096;
    options.backlog = (1u << 19) + 1;
    check_code(weir_queue_open(env->engine, &options, &queue), -EINVAL);
    options.size = 0;
    options.depth = 1;
    options.backlog = 1;
    check_code(weir_queue_open(env->engine, &options, &queue), -EINVAL);
    check(queue == NULL);
    options.size = sizeof(options);
    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    check_code(weir_queue_close(queue, 0), 0);
    options.depth = 4096;
    options.backlog = 1u << 19;
    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    check_code(weir_queue_close(queue, 0), 0);
}

/* The environment goes before the option; a name that is none is an error that lists them. */
static void open__environment_goes_first(struct env *env)
{
    static const struct {
        const char *name;
        uint32_t asked;
        uint32_t want;
    } names[] = { { "null", WEIR_BACKEND_THREADS, WEIR_BACKEND_NULL },
                  { "threads", WEIR_BACKEND_AUTO, WEIR_BACKEND_THREADS },
                  { "", WEIR_BACKEND_NULL, WEIR_BACKEND_NULL } };
    struct weir_engine *engine = NULL;
    struct weir_error error = { 0 };

    (void)env;
    for (size_t i = 0; i < COUNT(names); i++) {
        struct weir_engine_options options = { .size = sizeof(options),
                                               .backend = names[i].asked };
        struct weir_engine_info info = { .size = sizeof(info) };

        (void)setenv("WEIR_BACKEND", names[i].name, 1);
        check_code(weir_engine_open(&options, &engine, NULL), 0);
        check_code(weir_engine_info(engine, &info), 0);
        check(info.backend == names[i].want);
        check_code(weir_engine_close(engine), 0);
    }
    engine = NULL;
    (void)setenv("WEIR_BACKEND", "floppy", 1);
    check_code(weir_engine_open(NULL, &engine, &error), -EINVAL);
    (void)unsetenv("WEIR_BACKEND");
    check(engine == NULL);
    check(strstr(error.text, "floppy") != NULL);
    check(strstr(error.text, "threads") != NULL);
}

/* Info says which backend runs and why; older and newer callers' structs both work. */
static void info__says_why(struct env *env)
{
    struct weir_engine_info info = { .size = sizeof(info) };
    struct {
        struct weir_engine_info info;
        uint64_t of_the_future;
    } longer = { .info = { .size = sizeof(longer) }, .of_the_future = 7 };
    struct weir_engine_info shorter;

    check_code(weir_engine_info(env->engine, &info), 0);
    check(info.backend == env->backend);
    check(strcmp(info.backend_name, env->backend_name) == 0);
    check(info.why[0] != '\0');
    check(info.cure != NULL && info.cure[0] == '\0');
    check(info.cpus >= 1);
    check(info.buffer_bytes == 0 && info.registered_buffers == 0);
    for (size_t i = 0; i < WEIR_LANES; i++)
        check(info.lane_threads[i] >= 1);
    check_code(weir_engine_info(env->engine, &longer.info), 0);
    check(longer.info.backend == env->backend);
    memset(&shorter, 0xee, sizeof(shorter));
    shorter.size = offsetof(struct weir_engine_info, why);
    check_code(weir_engine_info(env->engine, &shorter), 0);
    check(shorter.backend == env->backend);
    check(shorter.cpus == 0xeeeeeeee); /* beyond what the caller knows: untouched */
    info.size = 0;
    check_code(weir_engine_info(env->engine, &info), -EINVAL);
}

/* An engine with something open does not close, and goes on working. */
static void close__busy_engine(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 100);
    char byte;

    check_code(weir_engine_close(env->engine), -EBUSY);
    check_code(weir_file_read(file, &byte, 1, 0), 1);
    check_code(weir_file_close(file), 0);
    check_code(weir_engine_close(env->engine), -EBUSY); /* the queue */
}

/* Engines come and go without leaving descriptors or threads behind. */
static void close__leaves_nothing(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options), .backend = env->backend };
    int before = dup(0);
    int after;

    (void)close(before);
    for (int i = 0; i < 30; i++) {
        struct weir_engine *engine;
        struct weir_queue *queue;
        struct weir_file *file;
        struct probe probe;
        uint8_t buf[100];

        check_code(weir_engine_open(&options, &engine, NULL), 0);
        check_code(weir_queue_open(engine, NULL, &queue), 0);
        check(weir_queue_fd(queue) >= 0);
        file = make_file(engine, 100);
        weir_job_read(&probe.job, file, buf, 100, 0, NULL, NULL);
        check_code(probe_run(queue, &probe), 100);
        weir_job_sync(&probe.job, file, WEIR_SYNC_DATA, NULL, NULL);
        check_code(probe_run(queue, &probe), 0);
        check_code(weir_file_close(file), 0);
        check_code(weir_queue_close(queue, TEST_LONG), 0);
        check_code(weir_engine_close(engine), 0);
    }
    after = dup(0);
    (void)close(after);
    check(after == before);
}

/* The log callback gets whole lines, for this engine alone. */
static unsigned log_lines;
static unsigned log_bad;

static void note_log(void *arg, int level, const char *text)
{
    log_lines++;
    if (arg != &log_lines || level < WEIR_LOG_ERROR || level > WEIR_LOG_DEBUG ||
        text[0] == '\0' || strchr(text, '\n') != NULL)
        log_bad++;
}

static void log__gets_whole_lines(struct env *env)
{
    struct weir_engine_options options = {
        .size = sizeof(options), .backend = env->backend, .log = note_log, .log_arg = &log_lines
    };
    struct weir_engine *engine;

    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_engine_close(engine), 0);
    check(log_bad == 0);
}

/* Pool threads can be pinned: a function on a lane then runs on that processor. */
static int64_t where(void *context)
{
    (void)context;
    return sched_getcpu();
}

static void open__pins_threads(struct env *env)
{
    cpu_set_t allowed;
    uint32_t cpu = 0;

    if (env->backend == WEIR_BACKEND_NULL)
        return; /* functions run inside the turn there */
    check_code(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;
    for (; cpu < CPU_SETSIZE; cpu++) {
        struct weir_engine_options options = { .size = sizeof(options),
                                               .backend = env->backend,
                                               .pin_cpus = &cpu,
                                               .pin_cpus_count = 1 };
        struct weir_engine *engine;
        struct weir_queue *queue;
        struct probe probes[20];

        if (!CPU_ISSET(cpu, &allowed))
            continue;
        check_code(weir_engine_open(&options, &engine, NULL), 0);
        check_code(weir_queue_open(engine, NULL, &queue), 0);
        for (size_t i = 0; i < COUNT(probes); i++) {
            weir_job_call(&probes[i].job, (uint32_t)(i % WEIR_LANES), where, NULL, NULL, NULL);
            probe_submit(queue, &probes[i]);
        }
        probes_wait(queue, probes, COUNT(probes));
        for (size_t i = 0; i < COUNT(probes); i++)
            check_code(probes[i].result, cpu);
        check_code(weir_queue_close(queue, TEST_LONG), 0);
        check_code(weir_engine_close(engine), 0);
    }
}

/* --- buffers -------------------------------------------------------------------------------- */

enum {
    BUFFERS = 16,
    BUFFER_SIZE = 16384
};

static struct weir_engine *open_with_buffers(uint32_t backend)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = backend,
                                           .buffer_size = BUFFER_SIZE,
                                           .buffer_count = BUFFERS };
    struct weir_engine *engine = NULL;

    check_code(weir_engine_open(&options, &engine, NULL), 0);
    return engine;
}

/* Aligned, apart, NULL when all are out, the same ones again after release. */
static void buffer__pool(struct env *env)
{
    struct weir_engine *engine = open_with_buffers(env->backend);
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_stats stats = { .size = sizeof(stats) };
    uint8_t *buffers[BUFFERS];
    uint8_t *lowest;

    check_code(weir_engine_info(engine, &info), 0);
    check_code(info.buffer_bytes, BUFFERS * BUFFER_SIZE);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < BUFFERS; i++) {
            buffers[i] = weir_buffer_acquire(engine);
            check(buffers[i] != NULL);
            check(((uintptr_t)buffers[i] & 4095) == 0);
            memset(buffers[i], (int)i, BUFFER_SIZE);
        }
        check(weir_buffer_acquire(engine) == NULL);
        check_code(weir_engine_stats(engine, &stats), 0);
        check_code(stats.buffers_in_use, BUFFERS);
        check_code(stats.buffers_peak, BUFFERS);
        lowest = buffers[0];
        for (size_t i = 0; i < BUFFERS; i++) {
            check(buffers[i][0] == i && buffers[i][BUFFER_SIZE - 1] == i); /* apart */
            if (buffers[i] < lowest)
                lowest = buffers[i];
        }
        for (size_t i = 0; i < BUFFERS; i++)
            check((size_t)(buffers[i] - lowest) <= (BUFFERS - 1) * (size_t)BUFFER_SIZE);
        for (size_t i = 0; i < BUFFERS; i++)
            weir_buffer_release(engine, buffers[i]);
    }
    check_code(weir_engine_stats(engine, &stats), 0);
    check_code(stats.buffers_in_use, 0);
    check_code(weir_engine_close(engine), 0);
    check(weir_buffer_acquire(env->engine) == NULL); /* there is no pool */
}

/* Reads and writes through pool buffers (registered ones, where they are), whole, in part,
 * and across two neighbours. */
static void buffer__transfers(struct env *env)
{
    struct weir_engine *engine = open_with_buffers(env->backend);
    struct weir_file *file = make_file(engine, 256 * KIB);
    struct weir_queue *queue;
    struct probe probes[BUFFERS];
    uint8_t *buffers[BUFFERS];
    struct test_rng rng = { test_seed() };

    check_code(weir_queue_open(engine, NULL, &queue), 0);
    for (size_t i = 0; i < BUFFERS; i++) {
        buffers[i] = weir_buffer_acquire(engine);
        check(buffers[i] != NULL);
    }
    for (int round = 0; round < 40; round++) {
        for (size_t i = 0; i < BUFFERS; i++) {
            size_t skip = rng_below(&rng, 2) == 0 ? 0 : rng_below(&rng, 1000);
            size_t len = 1 + rng_below(&rng, BUFFER_SIZE - skip);
            uint64_t offset = rng_below(&rng, 256 * KIB - len);

            memset(buffers[i], 0, BUFFER_SIZE);
            if (round % 4 == 3) { /* the bytes that are there already */
                pattern_fill(buffers[i] + skip, len, SEED, offset);
                weir_job_write(&probes[i].job, file, buffers[i] + skip, len, offset, NULL,
                               NULL);
            } else {
                weir_job_read(&probes[i].job, file, buffers[i] + skip, len, offset, NULL, NULL);
            }
            probe_submit(queue, &probes[i]);
        }
        probes_wait(queue, probes, BUFFERS);
        for (size_t i = 0; i < BUFFERS; i++) {
            const struct weir_job *job = &probes[i].job;

            check_code(probes[i].result, job->len);
            if (env->backend != WEIR_BACKEND_NULL)
                check_pattern(job->buf, job->len, SEED, job->offset);
        }
    }
    for (size_t i = 0; i < BUFFERS; i++)
        weir_buffer_release(engine, buffers[i]);
    check_code(weir_file_close(file), 0);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_engine_close(engine), 0);
}

struct grabber {
    struct weir_engine *engine;
    unsigned number;
    unsigned wrong;
    unsigned got;
};

static void *grab_buffers(void *arg)
{
    struct grabber *grabber = arg;

    for (unsigned i = 0; i < 20000; i++) {
        uint64_t *buffer = weir_buffer_acquire(grabber->engine);
        uint64_t mark = (uint64_t)grabber->number << 32 | i;

        if (buffer == NULL)
            continue;
        grabber->got++;
        buffer[0] = mark;
        buffer[BUFFER_SIZE / 8 - 1] = mark;
        if (i % 64 == 0)
            (void)sched_yield();
        if (buffer[0] != mark || buffer[BUFFER_SIZE / 8 - 1] != mark)
            grabber->wrong++;
        weir_buffer_release(grabber->engine, buffer);
    }
    return NULL;
}

/* From many threads no buffer is ever given to two. */
static void buffer__from_many_threads(struct env *env)
{
    struct weir_engine *engine = open_with_buffers(env->backend);
    struct weir_stats stats = { .size = sizeof(stats) };
    struct grabber grabbers[8];
    pthread_t threads[8];

    for (unsigned i = 0; i < 8; i++) {
        grabbers[i] = (struct grabber){ .engine = engine, .number = i + 1 };
        check_code(pthread_create(&threads[i], NULL, grab_buffers, &grabbers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        (void)pthread_join(threads[i], NULL);
        check(grabbers[i].wrong == 0);
        check(grabbers[i].got > 0);
    }
    check_code(weir_engine_stats(engine, &stats), 0);
    check_code(stats.buffers_in_use, 0);
    check(stats.buffers_peak >= 1 && stats.buffers_peak <= 8);
    check_code(weir_engine_close(engine), 0);
}

/* --- statistics ---------------------------------------------------------------------------------- */

/* Counts and bytes add up, over queues that are open and closed, jobs and blocking calls. */
static void stats__add_up(struct env *env)
{
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct weir_latency latency;
    struct weir_queue *other;
    struct probe probe;
    uint8_t buf[1000];
    uint64_t reads = 0;
    uint64_t read_bytes = 0;

    check_code(weir_engine_stats(env->engine, &stats), 0);
    check_code(stats.files_open, 1);
    check_code(stats.queues_open, 1);
    check_code(stats.ops[WEIR_STATS_READ].done, 0);
    check(stats.memory_bytes > 0);

    for (int round = 0; round < 2; round++) {
        struct weir_queue *queue = env->queue;

        if (round == 1)
            check_code(weir_queue_open(env->engine, NULL, &other), 0);
        if (round == 1)
            queue = other;
        for (size_t i = 0; i < 50; i++) {
            weir_job_read(&probe.job, file, buf, 10 + i, i, NULL, NULL);
            probe.job.io_class = i % 2 ? WEIR_CLASS_BATCH : WEIR_CLASS_FOREGROUND;
            check_code(probe_run(queue, &probe), 10 + i);
            reads++;
            read_bytes += 10 + i;
        }
        for (size_t i = 0; i < 20; i++) {
            weir_job_write(&probe.job, file, buf, 100, i * 100, NULL, NULL);
            check_code(probe_run(queue, &probe), 100);
        }
        weir_job_sync(&probe.job, file, WEIR_SYNC_ALL, NULL, NULL);
        check_code(probe_run(queue, &probe), 0);
        weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
        check_code(probe_run(queue, &probe), 0);
        weir_job_read(&probe.job, file, buf, 100, 0, NULL, NULL);
        probe_submit(queue, &probe);
        check_code(weir_queue_cancel(queue, probe.job.id), 0);
        check_code(probe_wait(queue, &probe), -ECANCELED);
    }
    check_code(weir_queue_close(other, TEST_LONG), 0);
    for (size_t i = 0; i < 30; i++) {
        check_code(weir_file_read(file, buf, 7, 0), 7);
        check_code(weir_file_write(file, buf, 9, 0), 9);
    }
    check_code(weir_file_read(file, buf, 7, UINT64_C(1) << 63), -EINVAL);

    check_code(weir_engine_stats(env->engine, &stats), 0);
    check_code(stats.ops[WEIR_STATS_READ].done, reads + 2 + 31);
    check_code(stats.ops[WEIR_STATS_READ].blocking, 31);
    check_code(stats.ops[WEIR_STATS_READ].bytes, read_bytes + 30 * 7);
    check_code(stats.ops[WEIR_STATS_READ].cancelled, 2);
    check_code(stats.ops[WEIR_STATS_READ].failed, 3);
    check_code(stats.ops[WEIR_STATS_READ].expired, 0);
    check_code(stats.ops[WEIR_STATS_WRITE].done, 2 * 20 + 30);
    check_code(stats.ops[WEIR_STATS_WRITE].blocking, 30);
    check_code(stats.ops[WEIR_STATS_WRITE].bytes, 2 * 20 * 100 + 30 * 9);
    check_code(stats.ops[WEIR_STATS_WRITE].failed, 0);
    check_code(stats.ops[WEIR_STATS_SYNC].done, 2);
    check_code(stats.in_flight, 0);
    check(stats.in_flight_peak >= 1);
    check_code(stats.queues_open, 1);
    check(stats.elapsed_ns > 0);
    check(stats.turns >= reads);
    check(stats.memory_peak_bytes >= stats.memory_bytes);
    check(stats.process_cpu_ns > 0);
    if (env->backend != WEIR_BACKEND_NULL)
        check(stats.system_calls >= 31 + 30);
    check_code(stats.ops[WEIR_STATS_READ].total.count, reads + 2);
    check(stats.ops[WEIR_STATS_READ].total.p50_ns <= stats.ops[WEIR_STATS_READ].total.p99_ns);
    /* A percentile is the top of its bucket, 3.2 % too high at most. */
    check(stats.ops[WEIR_STATS_READ].total.p999_ns <=
          stats.ops[WEIR_STATS_READ].total.max_ns * 26 / 25 + 1);

    check_code(weir_engine_latency(env->engine, WEIR_STATS_READ, WEIR_CLASS_BATCH, 2, &latency),
               0);
    check_code(latency.count, 50);
    check_code(
        weir_engine_latency(env->engine, WEIR_STATS_READ, WEIR_CLASS_BACKGROUND, 2, &latency),
        0);
    check_code(latency.count, 0);
    check_code(weir_engine_latency(env->engine, WEIR_STATS_GROUPS, 0, 0, &latency), -EINVAL);
    check_code(weir_engine_latency(env->engine, 0, WEIR_CLASSES, 0, &latency), -EINVAL);
    check_code(weir_engine_latency(env->engine, 0, 0, 3, &latency), -EINVAL);
    stats.size = 0;
    check_code(weir_engine_stats(env->engine, &stats), -EINVAL);
    check_code(weir_file_close(file), 0);
}

/* Expired jobs, retries and continued transfers are counted as what they are. */
static void stats__count_trouble(struct env *env)
{
    struct weir_stats stats = { .size = sizeof(stats) };
    struct faulty f;
    struct weir_file *file;
    struct probe probe;
    uint8_t buf[4096];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 64 * KIB);
    faulty_rule(&f, (struct wi_fault_rule){
                        .kind = WI_FAULT_READ, .first = 1, .count = 3, .error = -EINTR });
    faulty_rule(&f, (struct wi_fault_rule){
                        .kind = WI_FAULT_READ, .first = 1, .count = 2, .shorten_to = 100 });
    weir_job_read(&probe.job, file, buf, 4096, 0, NULL, NULL);
    check_code(probe_run(f.queue, &probe), 4096);
    faulty_hang(&f, WI_FAULT_READ, 1, true);
    weir_job_read(&probe.job, file, buf, 4096, 0, NULL, NULL);
    probe.job.timeout_ns = TEST_MS;
    check_code(probe_run(f.queue, &probe), -ETIMEDOUT);
    check_code(weir_engine_stats(f.engine, &stats), 0);
    check_code(stats.retries, 3);
    check_code(stats.continued, 2);
    check_code(stats.ops[WEIR_STATS_READ].expired, 1);
    check_code(stats.ops[WEIR_STATS_READ].failed, 1);
    check_code(stats.ops[WEIR_STATS_READ].bytes, 4096);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* The JSON is one line that a stranger's parser takes. */
static void stats__json_parses(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 4096);
    struct probe probe;
    uint8_t buf[100];
    char path[300];
    char command[700];
    char *json;
    FILE *out;
    int status;

    weir_job_read(&probe.job, file, buf, 100, 0, NULL, NULL);
    check_code(probe_run(env->queue, &probe), 100);
    json = weir_engine_stats_json(env->engine);
    check(json != NULL);
    check(strchr(json, '\n') == NULL);
    check(json[0] == '{' && json[strlen(json) - 1] == '}');
    (void)snprintf(path, sizeof(path), "%s", test_new_path("json"));
    out = fopen(path, "we");
    check(out != NULL);
    (void)fputs(json, out);
    check(fclose(out) == 0);
    (void)snprintf(command, sizeof(command),
                   "python3 -c \"import json; o = json.load(open('%s')); "
                   "assert 'in_flight' in o and o['in_flight'] == 0\"",
                   path);
    status = system(command);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        (void)fprintf(stderr, "no python3 to parse with\n");
    else
        check_code(status, 0);
    weir_free(json);
    weir_free(NULL);
    check_code(weir_file_close(file), 0);
}

struct snapper {
    struct weir_engine *engine;
    bool stop; /* atomic */
    unsigned wrong;
    unsigned count; /* atomic */
};

static void *take_snapshots(void *arg)
{
    struct snapper *snapper = arg;
    uint64_t last = 0;

    while (!__atomic_load_n(&snapper->stop, __ATOMIC_ACQUIRE)) {
        struct weir_stats stats = { .size = sizeof(stats) };
        uint64_t done;

        if (weir_engine_stats(snapper->engine, &stats) != 0)
            snapper->wrong++;
        done = stats.ops[WEIR_STATS_READ].done;
        if (done < last) /* never goes back, also while queues come and go */
            snapper->wrong++;
        last = done;
        (void)__atomic_add_fetch(&snapper->count, 1, __ATOMIC_RELEASE);
        (void)sched_yield();
    }
    return NULL;
}

/* Snapshots from another thread never go backwards while queues open and close. */
static void stats__never_go_back(struct env *env)
{
    struct snapper snapper = { .engine = env->engine };
    struct weir_file *file = make_file(env->engine, 4096);
    pthread_t thread;
    uint8_t buf[100];

    check_code(pthread_create(&thread, NULL, take_snapshots, &snapper), 0);
    while (__atomic_load_n(&snapper.count, __ATOMIC_ACQUIRE) == 0)
        (void)sched_yield();
    for (int round = 0; round < 60; round++) {
        struct weir_queue *queue;
        struct probe probes[10];

        check_code(weir_queue_open(env->engine, NULL, &queue), 0);
        for (size_t i = 0; i < 10; i++) {
            weir_job_read(&probes[i].job, file, buf, 100, 0, NULL, NULL);
            probe_submit(queue, &probes[i]);
        }
        probes_wait(queue, probes, 10);
        check_code(weir_queue_close(queue, TEST_LONG), 0);
    }
    __atomic_store_n(&snapper.stop, true, __ATOMIC_RELEASE);
    (void)pthread_join(thread, NULL);
    check(snapper.wrong == 0);
    check_code(weir_file_close(file), 0);
}

/* --- the dump ------------------------------------------------------------------------------------------ */

/* What is in flight shows with its id, operation, place, length, state and age. */
static void inflight__shows_every_state(struct env *env)
{
    struct weir_inflight list[16];
    struct faulty f;
    struct weir_file *file;
    struct probe device;
    struct probe held;
    struct probe retry;
    uint8_t buf[3][512];
    uint64_t age = 0;
    unsigned seen = 0;
    size_t count;

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 64 * KIB);
    check_code((int64_t)weir_queue_inflight(f.queue, list, 16), 0);
    faulty_hang(&f, WI_FAULT_WRITE, 1, false);
    faulty_rule(&f,
                (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 1, .error = -EAGAIN });
    weir_job_write(&device.job, file, buf[0], 512, 1024, NULL, NULL);
    probe_submit(f.queue, &device);
    weir_job_write(&held.job, file, buf[1], 100, 1024, NULL, NULL);
    probe_submit(f.queue, &held);
    weir_job_read(&retry.job, file, buf[2], 512, 4096, NULL, NULL);
    probe_submit(f.queue, &retry);
    while (wi_fault_acted(f.plan) < 5) /* the hang and four EAGAIN */
        check(weir_queue_wait(f.queue, 1, TEST_MS) >= 0);

    count = weir_queue_inflight(f.queue, list, 16);
    check_code((int64_t)count, 3);
    for (size_t i = 0; i < count; i++) {
        check(list[i].age_ns > 0 && list[i].age_ns < TEST_LONG);
        if (list[i].job_id == device.job.id) {
            seen |= 1;
            check(list[i].op == WEIR_OP_WRITE && list[i].state == WEIR_STATE_DEVICE);
            check(list[i].offset == 1024 && list[i].length == 512);
            age = list[i].age_ns;
        } else if (list[i].job_id == held.job.id) {
            seen |= 2;
            check(list[i].op == WEIR_OP_WRITE && list[i].state == WEIR_STATE_QUEUED);
            check(list[i].offset == 1024 && list[i].length == 100);
        } else if (list[i].job_id == retry.job.id) {
            seen |= 4;
            check(list[i].op == WEIR_OP_READ);
            check(list[i].state == WEIR_STATE_RETRY || list[i].state == WEIR_STATE_DEVICE);
        }
    }
    check(seen == 7);
    check_code((int64_t)weir_queue_inflight(f.queue, list, 1), 1);
    check_code((int64_t)weir_queue_inflight(f.queue, list, 16), 3);
    for (size_t i = 0; i < 3; i++) {
        if (list[i].job_id == device.job.id)
            check(list[i].age_ns >= age);
    }
    check_code(weir_queue_cancel(f.queue, retry.job.id), 0);
    check_code(probe_wait(f.queue, &retry), -ECANCELED);
    faulty_release(&f);
    check_code(probe_wait(f.queue, &device), 512);
    check_code(probe_wait(f.queue, &held), 100);
    check_code((int64_t)weir_queue_inflight(f.queue, list, 16), 0);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

struct watcher {
    struct weir_queue *queue;
    bool stop; /* atomic */
    unsigned wrong;
    unsigned entries;
};

/* A read is at 4096 times its length, so a mixture of two jobs shows. */
static void *watch_inflight(void *arg)
{
    struct watcher *watcher = arg;
    struct weir_inflight list[64];

    while (!__atomic_load_n(&watcher->stop, __ATOMIC_ACQUIRE)) {
        size_t count = weir_queue_inflight(watcher->queue, list, 64);

        for (size_t i = 0; i < count; i++) {
            watcher->entries++;
            if (list[i].job_id == 0 || list[i].state < WEIR_STATE_QUEUED ||
                list[i].state > WEIR_STATE_RETRY || list[i].age_ns > TEST_LONG)
                watcher->wrong++;
            if (list[i].op == WEIR_OP_READ && list[i].offset != list[i].length * 64)
                watcher->wrong++;
            if (list[i].op == WEIR_OP_NOP && (list[i].length != 0 || list[i].offset != 0))
                watcher->wrong++;
            if (list[i].op != WEIR_OP_READ && list[i].op != WEIR_OP_NOP)
                watcher->wrong++;
        }
        if (watcher->entries > 50)
            (void)sched_yield();
    }
    return NULL;
}

/* From another thread, while jobs come and go: every entry is consistent in itself. */
static void inflight__from_another_thread(struct env *env)
{
    enum {
        WINDOW = 40
    };
    struct watcher watcher = { .queue = env->queue };
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct probe *probes = calloc(WINDOW, sizeof(*probes));
    uint8_t *buf = malloc(WINDOW * 1024);
    pthread_t thread;

    check_code(weir_queue_run(env->queue), 0);
    check_code(pthread_create(&thread, NULL, watch_inflight, &watcher), 0);
    for (size_t i = 0; i < 20000; i++) {
        struct probe *probe = &probes[i % WINDOW];

        if (i >= WINDOW)
            check(probe_wait(env->queue, probe) >= 0);
        if (i % 2 == 0) {
            size_t len = 1 + i % 1000;

            weir_job_read(&probe->job, file, buf + i % WINDOW * 1024, len, len * 64, NULL,
                          NULL);
        } else {
            weir_job_prepare(&probe->job, WEIR_OP_NOP, NULL, NULL, NULL);
        }
        probe_submit(env->queue, probe);
    }
    probes_wait(env->queue, probes, WINDOW);
    __atomic_store_n(&watcher.stop, true, __ATOMIC_RELEASE);
    (void)pthread_join(thread, NULL);
    check(watcher.wrong == 0);
    check_code(weir_file_close(file), 0);
    free(probes);
    free(buf);
}

/* --- error records ---------------------------------------------------------------------------------------- */

/* A failed job's record says where it stopped; one that succeeds leaves the record alone. */
static void error__says_where(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe probe;
    uint8_t buf[4096];
    char line[600];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 64 * KIB);
    memset(buf, 1, sizeof(buf));
    weir_job_write(&probe.job, file, buf, 4096, 8192, NULL, NULL);
    check_code(probe_run(f.queue, &probe), 4096);
    check_code(probe.error.code, 0);

    faulty_rule(&f, (struct wi_fault_rule){
                        .kind = WI_FAULT_WRITE, .first = 1, .count = 1, .shorten_to = 1000 });
    faulty_rule(&f, (struct wi_fault_rule){
                        .kind = WI_FAULT_WRITE, .first = 1, .count = 1, .error = -ENOSPC });
    weir_job_write(&probe.job, file, buf, 4096, 8192, NULL, NULL);
    check_code(probe_run(f.queue, &probe), -ENOSPC);
    check_code(probe.transferred, 1000);
    check_code(probe.error.code, -ENOSPC);
    check_code(probe.error.op, WEIR_OP_WRITE);
    check(probe.error.job_id == probe.id);
    check(probe.error.has_offset == 1);
    check(probe.error.offset >= 8192 && probe.error.offset <= 8192 + 1000);
    check_code(probe.error.length, 4096);
    check(strstr(probe.error.path, "engine-") != NULL);
    check(weir_error_format(&probe.error, line, sizeof(line)) > 0);
    check(strstr(line, "ENOSPC") != NULL && strstr(line, "write") != NULL &&
          strstr(line, "engine-") != NULL);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* Names that would spoil a terminal or a log come out escaped, and long ones keep their end. */
static void error__escapes_names(struct env *env)
{
    struct weir_error error = {
        .code = -EIO, .op = WEIR_OP_READ, .offset = 4096, .has_offset = 1
    };
    char line[700];
    char tiny[8];
    char name[600];
    struct weir_file *file = NULL;
    int len;

    (void)snprintf(error.path, sizeof(error.path), "a\nb\x1b[31m\xff c");
    (void)snprintf(error.text, sizeof(error.text), "input/output error");
    len = weir_error_format(&error, line, sizeof(line));
    check(len > 0 && (size_t)len == strlen(line));
    for (int i = 0; i < len; i++)
        check((unsigned char)line[i] >= 32 && (unsigned char)line[i] < 127);
    check(strstr(line, "4096") != NULL && strstr(line, "EIO") != NULL);
    check(weir_error_format(&error, tiny, sizeof(tiny)) == len);
    check(strlen(tiny) == sizeof(tiny) - 1);
    check(weir_error_format(&error, NULL, 0) == len);

    memset(name, 'x', sizeof(name));
    (void)snprintf(name + 590, 10, "/the-end");
    check_code(weir_file_open(env->engine, NULL, name, WEIR_OPEN_READ, 0, &file, &error),
               -ENAMETOOLONG);
    check(strlen(error.path) < sizeof(error.path));
    check(strstr(error.path, "/the-end") != NULL);
}

/* Every code has a name and a sentence, ours included; unknown ones don't crash. */
static void error__every_code_has_a_name(struct env *env)
{
    static const enum weir_code ours[] = { WEIR_ECORRUPT, WEIR_ETRUNCATED, WEIR_EVERSION,
                                           WEIR_ECHANGED, WEIR_EMISMATCH };

    (void)env;
    check(strcmp(weir_code_name(-EIO), "EIO") == 0);
    check(strcmp(weir_code_name(EIO), "EIO") == 0);
    check(strcmp(weir_code_name(-WEIR_ECORRUPT), "WEIR_ECORRUPT") == 0);
    check(strcmp(weir_code_name(987654321), "E?") == 0);
    for (int code = 1; code < 134; code++) {
        check(weir_code_name(-code)[0] == 'E');
        check(weir_code_text(-code)[0] != '\0');
    }
    for (size_t i = 0; i < COUNT(ours); i++) {
        check(strncmp(weir_code_name(-(int64_t)ours[i]), "WEIR_E", 6) == 0);
        check(weir_code_text(ours[i])[0] != '\0');
    }
    check(weir_code_text(INT64_MIN) != NULL);
    for (uint32_t op = 0; op < WEIR_OPS; op++)
        check(weir_op_name(op)[0] != '?');
    check(strcmp(weir_op_name(WEIR_OPS), "?") == 0);
    check(strcmp(weir_op_name(UINT32_MAX), "?") == 0);
    check(strcmp(weir_class_name(WEIR_CLASSES), "?") == 0);
    check(strcmp(weir_class_name(WEIR_CLASS_SYNC), "sync") == 0);
    check(strcmp(weir_version(), WEIR_VERSION) == 0);
}

static const struct test_case cases[] = {
    CASE(open__bad_options_are_einval, CASE_ONCE),
    CASE(open__shorter_options_get_defaults, CASE_NO_QUEUE),
    CASE(open__bad_queue_options_are_einval, 0),
    CASE(open__environment_goes_first, CASE_ONCE),
    CASE(info__says_why, 0),
    CASE(close__busy_engine, 0),
    CASE(close__leaves_nothing, 0),
    CASE(log__gets_whole_lines, 0),
    CASE(open__pins_threads, 0),
    CASE(buffer__pool, 0),
    CASE(buffer__transfers, 0),
    CASE(buffer__from_many_threads, 0),
    CASE(stats__add_up, 0),
    CASE(stats__count_trouble, 0),
    CASE(stats__json_parses, 0),
    CASE(stats__never_go_back, 0),
    CASE(inflight__shows_every_state, 0),
    CASE(inflight__from_another_thread, 0),
    CASE(error__says_where, 0),
    CASE(error__escapes_names, CASE_ONCE),
    CASE(error__every_code_has_a_name, CASE_ONCE),
};

int main(int argc, char **argv)
{
    return run_cases("engine", cases, COUNT(cases), argc, argv);
}
