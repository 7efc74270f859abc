/* SPDX-License-Identifier: MIT */
/*
 * stats.c - counting without locks, and adding up
 *
 * A queue's counters and histograms are written by its owner with plain relaxed stores.
 * Blocking calls come from any thread: they add atomically to one of 16 shards, chosen by
 * thread. A snapshot walks all under the engine's lock, which also keeps queues from going
 * away; a queue that closes merges what it counted into `retired`.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <time.h>

#include "base/json.h"

#define SAMPLE_EVERY 17

static _Atomic uint32_t next_thread;
static __thread uint32_t thread_number __attribute__((tls_model("initial-exec")));
static __thread uint32_t sample_count __attribute__((tls_model("initial-exec")));

uint32_t wi_this_thread(void)
{
    if (thread_number == 0)
        thread_number = atomic_fetch_add_explicit(&next_thread, 1, memory_order_relaxed) + 1;
    return thread_number;
}

bool wi_stats_sample(void)
{
    /* Every 17th, so that a thread that reads and writes in turn has both timed. */
    return sample_count++ % SAMPLE_EVERY == 0;
}

struct blocking_stats *wi_stats_shard(struct weir_engine *engine)
{
    return &engine->blocking[wi_this_thread() % BLOCKING_SHARDS];
}

/* Make a histogram where there is none. Several threads may try; one wins. */
static struct wi_hist *make_hist(_Atomic(struct wi_hist *) *place)
{
    struct wi_hist *hist = atomic_load_explicit(place, memory_order_acquire);
    struct wi_hist *mine;

    if (WI_LIKELY(hist != NULL))
        return hist;
    mine = calloc(1, sizeof(*mine));
    if (!mine)
        return NULL;
    if (!atomic_compare_exchange_strong_explicit(place, &hist, mine, memory_order_acq_rel,
                                                 memory_order_acquire)) {
        free(mine);
        return hist;
    }
    return mine;
}

void wi_stats_blocking(struct weir_engine *engine, uint32_t op, int64_t result,
                       uint64_t transferred, uint64_t start_ns)
{
    struct blocking_stats *shard = wi_stats_shard(engine);
    enum weir_stats_group group = op_group(op);
    struct stats_counters *counters = &shard->ops[group];

    atomic_fetch_add_explicit(&counters->done, 1, memory_order_relaxed);
    if (transferred > 0)
        atomic_fetch_add_explicit(&counters->bytes, transferred, memory_order_relaxed);
    if (WI_UNLIKELY(result < 0))
        atomic_fetch_add_explicit(&counters->failed, 1, memory_order_relaxed);
    if (start_ns != 0) {
        struct wi_hist *hist = make_hist(&shard->device[group]);

        if (hist)
            wi_hist_add_shared(hist, wi_os_now(engine->os) - start_ns);
    }
}

void wi_stats_more_calls(struct weir_engine *engine, uint64_t calls, uint64_t retries,
                         uint64_t continued)
{
    struct blocking_stats *shard = wi_stats_shard(engine);

    atomic_fetch_add_explicit(&shard->extra_calls, calls, memory_order_relaxed);
    atomic_fetch_add_explicit(&shard->retries, retries, memory_order_relaxed);
    atomic_fetch_add_explicit(&shard->continued, continued, memory_order_relaxed);
}

bool wi_stats_prepare(struct weir_queue *queue, enum weir_stats_group group, uint32_t io_class)
{
    for (uint32_t which = 0; which < STATS_WHICH; which++) {
        _Atomic(struct wi_hist *) *place = &queue->stats.hists[group][io_class][which];

        if (atomic_load_explicit(place, memory_order_relaxed))
            continue;
        if (!make_hist(place))
            return false;
        wi_engine_account(queue->engine, sizeof(struct wi_hist));
    }
    return true;
}

static uint64_t get(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void merge_counters(struct stats_counters *to, struct stats_counters *from)
{
    wi_counter_add(&to->done, get(&from->done));
    wi_counter_add(&to->failed, get(&from->failed));
    wi_counter_add(&to->cancelled, get(&from->cancelled));
    wi_counter_add(&to->expired, get(&from->expired));
    wi_counter_add(&to->bytes, get(&from->bytes));
}

static void merge_queue_stats(struct queue_stats *to, struct queue_stats *from)
{
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++)
        merge_counters(&to->ops[g], &from->ops[g]);
    wi_counter_add(&to->turns, get(&from->turns));
    wi_counter_add(&to->system_calls, get(&from->system_calls));
    wi_counter_add(&to->inline_reads, get(&from->inline_reads));
    wi_counter_add(&to->retries, get(&from->retries));
    wi_counter_add(&to->continued, get(&from->continued));
    wi_counter_add(&to->posted, get(&from->posted));
    wi_counter_add(&to->in_flight, get(&from->in_flight));
    wi_counter_add(&to->in_flight_sum, get(&from->in_flight_sum));
    if (get(&from->in_flight_peak) > get(&to->in_flight_peak))
        atomic_store_explicit(&to->in_flight_peak, get(&from->in_flight_peak),
                              memory_order_relaxed);
}

void wi_stats_retire(struct weir_engine *engine, struct weir_queue *queue)
{
    struct wi_backend_stats backend = { 0 };
    int64_t freed = 0;

    queue->backend->ops->stats(queue->backend, &backend);
    wi_mutex_lock(&engine->mu);
    merge_queue_stats(&engine->retired, &queue->stats);
    engine->retired_backend_calls += backend.system_calls;
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        for (uint32_t c = 0; c < WEIR_CLASSES; c++) {
            for (uint32_t w = 0; w < STATS_WHICH; w++) {
                struct wi_hist *from =
                    atomic_load_explicit(&queue->stats.hists[g][c][w], memory_order_relaxed);
                struct wi_hist *to =
                    atomic_load_explicit(&engine->retired.hists[g][c][w], memory_order_relaxed);

                if (!from)
                    continue;
                if (!to) {
                    /* The first of its kind: the histogram itself moves over. */
                    atomic_store_explicit(&engine->retired.hists[g][c][w], from,
                                          memory_order_release);
                } else {
                    wi_hist_merge(to, from);
                    free(from);
                    freed += (int64_t)sizeof(*from);
                }
                atomic_store_explicit(&queue->stats.hists[g][c][w], NULL, memory_order_relaxed);
            }
        }
    }
    wi_list_remove(&queue->engine_link);
    engine->queues_open--;
    wi_mutex_unlock(&engine->mu);
    wi_engine_account(engine, -freed);
}

static void merge_place(struct wi_hist *to, _Atomic(struct wi_hist *) *place)
{
    struct wi_hist *from = atomic_load_explicit(place, memory_order_acquire);

    if (from)
        wi_hist_merge(to, from);
}

/* Add up the histograms of one group and kind; `io_class` WEIR_CLASSES means all classes. */
static void gather_hist(struct weir_engine *engine, uint32_t group, uint32_t io_class,
                        uint32_t which, struct wi_hist *to) WI_REQUIRES(engine->mu)
{
    uint32_t from_class = io_class == WEIR_CLASSES ? 0 : io_class;
    uint32_t to_class = io_class == WEIR_CLASSES ? WEIR_CLASSES : io_class + 1;
    struct wi_list *node;

    for (uint32_t c = from_class; c < to_class; c++) {
        merge_place(to, &engine->retired.hists[group][c][which]);
        list_for_each(node, &engine->queues) {
            struct weir_queue *queue = WI_CONTAINER_OF(node, struct weir_queue, engine_link);

            merge_place(to, &queue->stats.hists[group][c][which]);
        }
    }
    if (which == STATS_DEVICE && from_class == 0) {
        for (uint32_t s = 0; s < BLOCKING_SHARDS; s++)
            merge_place(to, &engine->blocking[s].device[group]);
    }
}

int weir_engine_latency(struct weir_engine *engine, uint32_t group, uint32_t io_class,
                        uint32_t which, struct weir_latency *ret_latency)
{
    struct wi_hist *hist;

    if (!engine || !ret_latency || group >= WEIR_STATS_GROUPS || io_class >= WEIR_CLASSES ||
        which >= STATS_WHICH)
        return -EINVAL;
    hist = calloc(1, sizeof(*hist));
    if (!hist)
        return -ENOMEM;
    wi_mutex_lock(&engine->mu);
    gather_hist(engine, group, io_class, which, hist);
    wi_mutex_unlock(&engine->mu);
    wi_hist_summarise(hist, ret_latency);
    free(hist);
    return 0;
}

static uint64_t process_cpu_ns(void)
{
    struct timespec time = { 0 };

    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) != 0)
        return 0;
    return (uint64_t)time.tv_sec * WI_SEC_NS + (uint64_t)time.tv_nsec;
}

static void fill_ops(struct weir_stats_op *op, struct stats_counters *jobs,
                     struct stats_counters *blocking)
{
    op->blocking = get(&blocking->done);
    op->done = get(&jobs->done) + op->blocking;
    op->failed = get(&jobs->failed) + get(&blocking->failed);
    op->cancelled = get(&jobs->cancelled);
    op->expired = get(&jobs->expired);
    op->bytes = get(&jobs->bytes) + get(&blocking->bytes);
}

static void fill_memory(struct weir_engine *engine, struct weir_stats *stats)
    WI_REQUIRES(engine->mu)
{
    uint64_t now_ns = wi_os_now(engine->os);
    double integral = engine->memory_integral +
                      (double)engine->memory_bytes * (double)(now_ns - engine->memory_since_ns);

    stats->elapsed_ns = now_ns - engine->opened_ns;
    stats->memory_bytes = engine->memory_bytes;
    stats->memory_peak_bytes = engine->memory_peak;
    stats->memory_mean_bytes =
        stats->elapsed_ns > 0 ? (uint64_t)(integral / (double)stats->elapsed_ns) : 0;
}

/* `scratch` has room for the sums and one histogram; it is zero. */
struct scratch {
    struct queue_stats jobs;
    struct blocking_stats blocking;
    struct wi_hist hist;
};

static void fill_locked(struct weir_engine *engine, struct weir_stats *stats,
                        struct scratch *scratch) WI_REQUIRES(engine->mu)
{
    struct queue_stats *jobs = &scratch->jobs;
    struct blocking_stats *blocking = &scratch->blocking;
    struct wi_list *node;
    uint64_t turns;

    merge_queue_stats(jobs, &engine->retired);
    stats->system_calls = engine->retired_backend_calls;
    list_for_each(node, &engine->queues) {
        struct weir_queue *queue = WI_CONTAINER_OF(node, struct weir_queue, engine_link);
        struct wi_backend_stats backend = { 0 };

        merge_queue_stats(jobs, &queue->stats);
        queue->backend->ops->stats(queue->backend, &backend);
        stats->system_calls += backend.system_calls;
    }
    for (uint32_t s = 0; s < BLOCKING_SHARDS; s++) {
        struct blocking_stats *shard = &engine->blocking[s];

        for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++)
            merge_counters(&blocking->ops[g], &shard->ops[g]);
        wi_counter_add(&blocking->extra_calls, get(&shard->extra_calls));
        wi_counter_add(&blocking->retries, get(&shard->retries));
        wi_counter_add(&blocking->continued, get(&shard->continued));
    }
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        struct weir_latency *places[STATS_WHICH] = { &stats->ops[g].wait, &stats->ops[g].device,
                                                     &stats->ops[g].total };

        fill_ops(&stats->ops[g], &jobs->ops[g], &blocking->ops[g]);
        stats->system_calls += stats->ops[g].blocking;
        for (uint32_t which = 0; which < STATS_WHICH; which++) {
            memset(&scratch->hist, 0, sizeof(scratch->hist));
            gather_hist(engine, g, WEIR_CLASSES, which, &scratch->hist);
            wi_hist_summarise(&scratch->hist, places[which]);
        }
    }
    turns = get(&jobs->turns);
    stats->system_calls += get(&jobs->system_calls) + get(&blocking->extra_calls);
    stats->turns = turns;
    stats->inline_reads = get(&jobs->inline_reads);
    stats->retries = get(&jobs->retries) + get(&blocking->retries);
    stats->continued = get(&jobs->continued) + get(&blocking->continued);
    stats->posted = get(&jobs->posted);
    stats->in_flight = get(&jobs->in_flight);
    stats->in_flight_peak = get(&jobs->in_flight_peak);
    stats->in_flight_mean_milli = turns ? get(&jobs->in_flight_sum) * 1000 / turns : 0;
    stats->files_open = engine->files_open;
    stats->queues_open = engine->queues_open;
    fill_memory(engine, stats);
}

int weir_engine_stats(struct weir_engine *engine, struct weir_stats *stats)
{
    struct weir_stats full;
    struct wi_pool_stats pool = { 0 };
    struct scratch *scratch;

    if (!engine || !stats || stats->size < sizeof(stats->size))
        return -EINVAL;
    scratch = aligned_alloc(WI_CACHE_LINE, (sizeof(*scratch) + WI_CACHE_LINE - 1) &
                                               ~(size_t)(WI_CACHE_LINE - 1));
    if (!scratch)
        return -ENOMEM;
    memset(scratch, 0, sizeof(*scratch));
    memset(&full, 0, sizeof(full));
    wi_mutex_lock(&engine->mu);
    fill_locked(engine, &full, scratch);
    wi_mutex_unlock(&engine->mu);
    free(scratch);

    wi_pool_stats(engine->pool, &pool);
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++) {
        full.pool_tasks[lane] = pool.tasks[lane];
        full.pool_threads_peak[lane] = pool.threads_peak[lane];
    }
    full.pool_cpu_ns = pool.cpu_ns;
    full.process_cpu_ns = process_cpu_ns();
    full.buffers_in_use = get(&engine->buffers.in_use);
    full.buffers_peak = get(&engine->buffers.peak);
    full.size = stats->size;
    memcpy(stats, &full, stats->size < sizeof(full) ? stats->size : sizeof(full));
    return 0;
}

static void latency_json(struct wi_json *json, const char *key, const struct weir_latency *lat)
{
    wi_json_open(json, key, '{');
    wi_json_u64(json, "count", lat->count);
    wi_json_u64(json, "mean", lat->mean_ns);
    wi_json_u64(json, "p50", lat->p50_ns);
    wi_json_u64(json, "p95", lat->p95_ns);
    wi_json_u64(json, "p99", lat->p99_ns);
    wi_json_u64(json, "p999", lat->p999_ns);
    wi_json_u64(json, "max", lat->max_ns);
    wi_json_close(json, '}');
}

char *weir_engine_stats_json(struct weir_engine *engine)
{
    static const char *const groups[WEIR_STATS_GROUPS] = { "read", "write", "sync", "other" };
    static const char *const lanes[WEIR_LANES] = { "io", "files", "cpu" };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct wi_json json;

    if (weir_engine_stats(engine, &stats) < 0)
        return NULL;
    wi_json_init(&json);
    wi_json_open(&json, NULL, '{');
    wi_json_u64(&json, "elapsed_ns", stats.elapsed_ns);
    wi_json_open(&json, "ops", '{');
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        const struct weir_stats_op *op = &stats.ops[g];

        wi_json_open(&json, groups[g], '{');
        wi_json_u64(&json, "done", op->done);
        wi_json_u64(&json, "blocking", op->blocking);
        wi_json_u64(&json, "failed", op->failed);
        wi_json_u64(&json, "cancelled", op->cancelled);
        wi_json_u64(&json, "expired", op->expired);
        wi_json_u64(&json, "bytes", op->bytes);
        latency_json(&json, "wait_ns", &op->wait);
        latency_json(&json, "device_ns", &op->device);
        latency_json(&json, "total_ns", &op->total);
        wi_json_close(&json, '}');
    }
    wi_json_close(&json, '}');
    wi_json_u64(&json, "system_calls", stats.system_calls);
    wi_json_u64(&json, "turns", stats.turns);
    wi_json_u64(&json, "inline_reads", stats.inline_reads);
    wi_json_u64(&json, "retries", stats.retries);
    wi_json_u64(&json, "continued", stats.continued);
    wi_json_u64(&json, "posted", stats.posted);
    wi_json_u64(&json, "in_flight", stats.in_flight);
    wi_json_u64(&json, "in_flight_peak", stats.in_flight_peak);
    wi_json_double(&json, "in_flight_mean", (double)stats.in_flight_mean_milli / 1000, 3);
    wi_json_open(&json, "pool", '{');
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++) {
        wi_json_open(&json, lanes[lane], '{');
        wi_json_u64(&json, "tasks", stats.pool_tasks[lane]);
        wi_json_u64(&json, "threads_peak", stats.pool_threads_peak[lane]);
        wi_json_close(&json, '}');
    }
    wi_json_u64(&json, "cpu_ns", stats.pool_cpu_ns);
    wi_json_close(&json, '}');
    wi_json_u64(&json, "process_cpu_ns", stats.process_cpu_ns);
    wi_json_u64(&json, "memory_bytes", stats.memory_bytes);
    wi_json_u64(&json, "memory_peak_bytes", stats.memory_peak_bytes);
    wi_json_u64(&json, "memory_mean_bytes", stats.memory_mean_bytes);
    wi_json_u64(&json, "buffers_in_use", stats.buffers_in_use);
    wi_json_u64(&json, "buffers_peak", stats.buffers_peak);
    wi_json_u64(&json, "files_open", stats.files_open);
    wi_json_u64(&json, "queues_open", stats.queues_open);
    wi_json_close(&json, '}');
    return wi_json_finish(&json);
}

void weir_free(void *memory)
{
    free(memory);
}
