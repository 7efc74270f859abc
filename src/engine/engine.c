/* SPDX-License-Identifier: MIT */
/*
 * engine.c - open and close an engine; choose its backend and say why
 */
#include "engine_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"

#define THREADS_MAX          1024
#define BLOCKS_LEAST         16
#define BLOCK_SIZE_DEFAULT   (64u << 10)
#define DEVICE_OPS_DEFAULT   1024u
#define DEVICE_BYTES_DEFAULT (64u << 20)
#define STALL_DEFAULT_NS     (5 * (uint64_t)WI_SEC_NS)

void wi_engine_log(struct weir_engine *engine, int level, const char *format, ...)
{
    char text[512];
    va_list args;

    if (!engine->log)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    engine->log(engine->log_arg, level, text);
}

void wi_engine_account(struct weir_engine *engine, int64_t bytes)
{
    uint64_t now_ns;

    if (bytes == 0)
        return;
    now_ns = wi_os_now(engine->os);
    wi_mutex_lock(&engine->mu);
    engine->memory_integral +=
        (double)engine->memory_bytes * (double)(now_ns - engine->memory_since_ns);
    engine->memory_since_ns = now_ns;
    engine->memory_bytes += (uint64_t)bytes;
    if (engine->memory_bytes > engine->memory_peak)
        engine->memory_peak = engine->memory_bytes;
    wi_mutex_unlock(&engine->mu);
}

static const char *backend_name(enum weir_backend backend)
{
    switch (backend) {
    case WEIR_BACKEND_URING:
        return "uring";
    case WEIR_BACKEND_THREADS:
        return "threads";
    case WEIR_BACKEND_NULL:
        return "null";
    case WEIR_BACKEND_AUTO:
        break;
    }
    return "auto";
}

/* What the options or, before them, the environment ask for. */
static int wanted_backend(const struct weir_engine_options *options, enum weir_backend *ret,
                          struct weir_error *error)
{
    const char *name = secure_getenv("WEIR_BACKEND");

    *ret = (enum weir_backend)options->backend;
    if (options->backend > WEIR_BACKEND_NULL)
        return wi_error_set(error, -EINVAL, 0, NULL, "the backend %u is none of WEIR_BACKEND_*",
                            options->backend);
    if (!name || !name[0])
        return 0;
    for (uint32_t b = WEIR_BACKEND_AUTO; b <= WEIR_BACKEND_NULL; b++) {
        if (strcmp(name, backend_name((enum weir_backend)b)) == 0) {
            *ret = (enum weir_backend)b;
            return 0;
        }
    }
    return wi_error_set(error, -EINVAL, 0, NULL,
                        "WEIR_BACKEND is \"%.40s\" in the environment; it can be auto, uring, "
                        "threads or null",
                        name);
}

static int choose_backend(struct weir_engine *engine, const struct weir_engine_options *options,
                          struct weir_error *error)
{
    enum weir_backend wanted;
    int rc = wanted_backend(options, &wanted, error);

    if (rc < 0)
        return rc;
    engine->backend = wanted;
    if (wanted == WEIR_BACKEND_NULL || wanted == WEIR_BACKEND_THREADS) {
        snprintf(engine->why, sizeof(engine->why), "%s was asked for", backend_name(wanted));
        return 0;
    }

    wi_uring_probe(engine->buffers.base, engine->buffers.bytes, &engine->probe);
    if (engine->probe.code == 0) {
        engine->backend = WEIR_BACKEND_URING;
        snprintf(engine->why, sizeof(engine->why), "%s", engine->probe.why);
        if (engine->buffers.base && !engine->probe.registers_region) {
            snprintf(engine->why, sizeof(engine->why),
                     "%s, but the buffers are more than may be locked in memory",
                     engine->probe.why);
            snprintf(
                engine->cure, sizeof(engine->cure),
                "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=) or have fewer "
                "buffers");
        }
        return 0;
    }
    if (wanted == WEIR_BACKEND_URING)
        return wi_error_set(error, -EOPNOTSUPP, 0, NULL,
                            "the uring backend was asked for and does not run here: %s; %s",
                            engine->probe.why, engine->probe.cure);
    engine->backend = WEIR_BACKEND_THREADS;
    snprintf(engine->why, sizeof(engine->why), "io_uring does not work here: %s",
             engine->probe.why);
    snprintf(engine->cure, sizeof(engine->cure), "%s", engine->probe.cure);
    wi_engine_log(engine, WEIR_LOG_INFO, "using the threads backend: %s; %s", engine->why,
                  engine->cure);
    return 0;
}

static uint32_t pick_threads(uint32_t asked, uint32_t a_cpu, uint32_t cpus, uint32_t least,
                             uint32_t most)
{
    uint32_t count = a_cpu * cpus;

    if (asked)
        return asked;
    return count < least ? least : count > most ? most : count;
}

static int check_options(const struct weir_engine_options *options, struct weir_error *error)
{
    if (options->io_threads > THREADS_MAX || options->files_threads > THREADS_MAX ||
        options->cpu_threads > THREADS_MAX)
        return wi_error_set(error, -EINVAL, 0, NULL, "a lane can have at most %d threads",
                            THREADS_MAX);
    if (options->pin_cpus_count > 0 && !options->pin_cpus)
        return wi_error_set(error, -EINVAL, 0, NULL, "pin_cpus is NULL but not its count");
    if (options->cache_block_size < (4u << 10) || options->cache_block_size > (1u << 20) ||
        (options->cache_block_size & (options->cache_block_size - 1)) != 0)
        return wi_error_set(error, -EINVAL, 0, NULL,
                            "cache_block_size is %u: it must be a power of two from 4096 to "
                            "1048576",
                            options->cache_block_size);
    if (options->cache_bytes > 0 &&
        options->cache_bytes < (uint64_t)options->cache_block_size * BLOCKS_LEAST)
        return wi_error_set(error, -EINVAL, 0, NULL,
                            "cache_bytes is %" PRIu64
                            ": a cache of %u byte blocks needs at least %d of them",
                            options->cache_bytes, options->cache_block_size, BLOCKS_LEAST);
    if (options->cache_policy >= WEIR_POLICIES)
        return wi_error_set(error, -EINVAL, 0, NULL,
                            "the cache policy %u is none of WEIR_POLICY_*",
                            options->cache_policy);
    return 0;
}

/* What 0 stands for. */
static void fill_defaults(struct weir_engine_options *options)
{
    if (options->cache_block_size == 0)
        options->cache_block_size = BLOCK_SIZE_DEFAULT;
    if (options->device_ops == 0)
        options->device_ops = DEVICE_OPS_DEFAULT;
    if (options->device_bytes == 0)
        options->device_bytes = DEVICE_BYTES_DEFAULT;
    if (options->stall_ns == 0)
        options->stall_ns = STALL_DEFAULT_NS;
}

static void free_engine(struct weir_engine *engine)
{
    wi_trace_end(engine); /* it writes by the pool */
    wi_pool_destroy(engine->pool);
    wi_metrics_fini(engine);
    wi_file_pool_destroy(engine);
    wi_cache_destroy(engine->cache);
    wi_watch_stop(engine);
    wi_gate_fini(&engine->gate);
    wi_buffers_fini(&engine->buffers);
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        for (uint32_t c = 0; c < WEIR_CLASSES; c++)
            for (uint32_t w = 0; w < STATS_WHICH; w++)
                free(atomic_load_explicit(&engine->retired.hists[g][c][w],
                                          memory_order_relaxed));
        for (uint32_t s = 0; engine->blocking && s < BLOCKING_SHARDS; s++)
            free(atomic_load_explicit(&engine->blocking[s].device[g], memory_order_relaxed));
    }
    free(engine->blocking);
    for (uint32_t i = 0; i < engine->files_count; i++) {
        wi_cond_fini(&engine->files[i]->sync_ended);
        wi_mutex_fini(&engine->files[i]->sync_mu);
        free(engine->files[i]);
    }
    free(engine->files);
    wi_mutex_fini(&engine->mu);
    free(engine);
}

static int fill_engine(struct weir_engine *engine, const struct weir_engine_options *options,
                       struct weir_error *error)
{
    struct wi_pool_options pool = { .pin_cpus = options->pin_cpus,
                                    .pin_cpus_count = options->pin_cpus_count };
    size_t blocking_size = BLOCKING_SHARDS * sizeof(*engine->blocking);
    int rc;

    engine->blocking = aligned_alloc(WI_CACHE_LINE, blocking_size);
    if (!engine->blocking)
        return wi_error_set(error, -ENOMEM, 0, NULL, NULL);
    memset(engine->blocking, 0, blocking_size);

    rc = wi_buffers_init(&engine->buffers, options->buffer_size, options->buffer_count);
    if (rc == -EINVAL)
        return wi_error_set(error, rc, 0, NULL,
                            "buffer_size must be a multiple of 4096, and all buffers together "
                            "at most 1 GiB");
    if (rc < 0)
        return wi_error_set(error, rc, 0, NULL, "no memory for the buffer pool");
    rc = choose_backend(engine, options, error);
    if (rc < 0)
        return rc;
    rc = wi_file_pool_create(engine, options->open_files);
    if (rc < 0)
        return wi_error_set(error, rc, 0, NULL, NULL);
    if (options->cache_bytes > 0) {
        rc = wi_cache_create(engine, options, &engine->cache);
        if (rc < 0)
            return wi_error_set(error, rc, 0, NULL,
                                "no memory for a cache of %" PRIu64 " bytes",
                                options->cache_bytes);
    }

    engine->cpus = wi_cpu_count();
    engine->lane_threads[WEIR_LANE_IO] =
        pick_threads(options->io_threads, 4, engine->cpus, 2, 16);
    engine->lane_threads[WEIR_LANE_FILES] =
        pick_threads(options->files_threads, 2, engine->cpus, 2, 8);
    engine->lane_threads[WEIR_LANE_CPU] =
        pick_threads(options->cpu_threads, 1, engine->cpus, 1, THREADS_MAX);
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++)
        pool.threads[lane] = engine->lane_threads[lane];
    rc = wi_pool_create(&pool, &engine->pool);
    if (rc < 0)
        return wi_error_set(error, rc, 0, NULL, NULL);
    wi_engine_account(engine,
                      (int64_t)(sizeof(*engine) + blocking_size + engine->buffers.bytes +
                                engine->buffers.count * sizeof(uint32_t)));
    return 0;
}

int wi_engine_open_with(const struct weir_engine_options *options,
                        const struct wi_engine_seams *seams, struct weir_engine **ret_engine,
                        struct weir_error *error)
{
    struct weir_engine_options full = { 0 };
    struct weir_engine *engine;
    int rc;

    if (!ret_engine)
        return -EINVAL;
    if (options && options->size < sizeof(options->size))
        return wi_error_set(error, -EINVAL, 0, NULL, "options.size is not set");
    if (options)
        memcpy(&full, options, options->size < sizeof(full) ? options->size : sizeof(full));
    fill_defaults(&full);
    rc = check_options(&full, error);
    if (rc < 0)
        return rc;

    engine = aligned_alloc(WI_CACHE_LINE, (sizeof(*engine) + WI_CACHE_LINE - 1) &
                                              ~(size_t)(WI_CACHE_LINE - 1));
    if (!engine)
        return wi_error_set(error, -ENOMEM, 0, NULL, NULL);
    memset(engine, 0, sizeof(*engine));
    if (seams)
        engine->seams = *seams;
    engine->os = engine->seams.os ? engine->seams.os : wi_os_posix();
    engine->backend_os = engine->seams.backend_os ? engine->seams.backend_os : wi_os_posix();
    engine->log = full.log;
    engine->log_arg = full.log_arg;
    engine->stall_ns = full.stall_ns;
    engine->opened_ns = wi_os_now(engine->os);
    engine->memory_since_ns = engine->opened_ns;
    wi_mutex_init(&engine->mu, WI_RANK_ENGINE);
    wi_list_init(&engine->queues);
    wi_gate_init(&engine->gate, full.device_ops, full.device_bytes);
    wi_watch_init(engine);
    wi_retry_init(engine);

    rc = fill_engine(engine, &full, error);
    if (rc < 0) {
        free_engine(engine);
        return rc;
    }
    *ret_engine = engine;
    return 0;
}

int weir_engine_open(const struct weir_engine_options *options, struct weir_engine **ret_engine,
                     struct weir_error *error)
{
    return wi_engine_open_with(options, NULL, ret_engine, error);
}

int weir_engine_close(struct weir_engine *engine)
{
    bool busy;

    if (!engine)
        return 0;
    wi_mutex_lock(&engine->mu);
    busy = engine->files_open > 0 || engine->queues_open > 0 ||
           (engine->cache && wi_cache_views_out(engine->cache) > 0);
    wi_mutex_unlock(&engine->mu);
    if (busy)
        return -EBUSY;
    free_engine(engine);
    return 0;
}

int weir_engine_info(struct weir_engine *engine, struct weir_engine_info *info)
{
    struct weir_engine_info full = { 0 };

    if (!engine || !info || info->size < sizeof(info->size))
        return -EINVAL;
    full.size = info->size;
    full.backend = engine->backend;
    full.backend_name = backend_name(engine->backend);
    full.why = engine->why;
    full.cure = engine->cure;
    full.cpus = engine->cpus;
    full.buffer_bytes = engine->buffers.bytes;
    if (engine->backend == WEIR_BACKEND_URING) {
        full.ring_flags = engine->probe.ring_flags;
        full.registered_buffers = engine->buffers.bytes > 0 && engine->probe.registers_region;
    }
    memcpy(full.lane_threads, engine->lane_threads, sizeof(full.lane_threads));
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return 0;
}

const struct wi_os *wi_engine_os(struct weir_engine *engine)
{
    return engine->os;
}

struct wi_pool *wi_engine_pool(struct weir_engine *engine)
{
    return engine->pool;
}
