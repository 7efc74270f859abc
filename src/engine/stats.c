/* SPDX-License-Identifier: MIT */
/*
 * stats.c - counting without locks, and adding up
 *
 * A queue's counters and histograms are written by its owner with plain relaxed stores.
 * Blocking calls come from any thread: they add atomically to one of 16 shards, chosen by
 * thread. A snapshot walks all under the engine's lock, which also keeps queues from going
 * away; a queue that closes merges what it counted into `retired`.
 */
#include "stats_internal.h"

#include <stdlib.h>
#include <time.h>

#define SAMPLE_EVERY 17

/*
 * The counters that are only added up: where they are in a queue's, in a shard of the blocking
 * calls', and in what the user sees. 0 is none: there is something else in each.
 */
#define Q(counter) offsetof(struct queue_stats, counter)
#define B(counter) offsetof(struct blocking_stats, counter)
#define S(counter) offsetof(struct weir_stats, counter)
static const struct {
    uint16_t queue;
    uint16_t blocking;
    uint16_t total;
} sums[] = {
    { Q(turns), 0, S(turns) },
    { Q(system_calls), B(extra_calls), S(system_calls) },
    { Q(inline_reads), 0, S(inline_reads) },
    { Q(retries), B(retries), S(retries) },
    { Q(continued), B(continued), S(continued) },
    { Q(posted), 0, S(posted) },
    { Q(in_flight), 0, S(in_flight) },
    { Q(in_flight_sum), 0, 0 },
    { Q(device_ops), 0, S(device_ops) },
    { Q(device_bytes), 0, S(device_bytes) },
    { Q(merges), B(merges), S(merges) },
    { Q(merged), B(merged), S(merged) },
    { Q(merge_splits), B(merge_splits), S(merge_splits) },
    { Q(gap_bytes), B(gap_bytes), S(gap_bytes) },
    { Q(budget_waits), 0, S(budget_waits) },
    { Q(yield_waits), 0, S(yield_waits) },
    { Q(promoted), 0, S(promoted) },
    { Q(retries_refused), B(retries_refused), S(retries_refused) },
    { Q(stalls), 0, S(stalls) },
    { Q(cache_loads), 0, S(cache_loads) },
    { Q(cache_shared), 0, S(cache_shared) },
    { Q(prefetch_skipped), 0, S(prefetch_skipped) },
};
#undef Q
#undef B
#undef S

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

static _Atomic uint64_t *counter_at(void *stats, size_t offset)
{
    return (_Atomic uint64_t *)(void *)((char *)stats + offset);
}

static void merge_queue_stats(struct queue_stats *to, struct queue_stats *from)
{
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++)
        merge_counters(&to->ops[g], &from->ops[g]);
    for (size_t i = 0; i < WI_ARRAY_LEN(sums); i++)
        wi_counter_add(counter_at(to, sums[i].queue), get(counter_at(from, sums[i].queue)));
    if (get(&from->in_flight_peak) > get(&to->in_flight_peak))
        atomic_store_explicit(&to->in_flight_peak, get(&from->in_flight_peak),
                              memory_order_relaxed);
}

static void merge_blocking_stats(struct blocking_stats *to, struct blocking_stats *from)
{
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++)
        merge_counters(&to->ops[g], &from->ops[g]);
    for (size_t i = 0; i < WI_ARRAY_LEN(sums); i++) {
        if (sums[i].blocking)
            wi_counter_add(counter_at(to, sums[i].blocking),
                           get(counter_at(from, sums[i].blocking)));
    }
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

void wi_stats_gather(struct weir_engine *engine, uint32_t group, uint32_t io_class,
                     uint32_t which, struct wi_hist *to)
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
    wi_stats_gather(engine, group, io_class, which, hist);
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

/*
 * How many of a queue's jobs hang: at the device, and taken longer ago than stall_ns. A slot says
 * when its job was taken, not when it was started; so what waited long before is counted early.
 * Reads of other threads, as in weir_queue_inflight.
 */
static uint64_t count_stalled(struct weir_queue *queue, uint64_t now_ns)
{
    uint64_t stall_ns = queue->engine->stall_ns;
    uint64_t count = 0;

    /* A job comes to the device in a turn, which sets this: most queues need no walk. */
    if (stall_ns == WEIR_NEVER || get(&queue->stats.in_flight) == 0)
        return 0;
    for (uint32_t i = 0; i < queue->slot_count; i++) {
        struct queue_slot *slot = &queue->slots[i];
        uint64_t id = atomic_load_explicit(&slot->id, memory_order_acquire);
        uint64_t submit_ns;
        uint32_t state;

        if (id == 0)
            continue;
        submit_ns = atomic_load_explicit(&slot->submit_ns, memory_order_acquire);
        state = atomic_load_explicit(&slot->op_state, memory_order_acquire) & 0xff;
        if (state == WEIR_STATE_DEVICE && wi_add_sat(submit_ns, stall_ns) < now_ns &&
            atomic_load_explicit(&slot->id, memory_order_relaxed) == id)
            count++;
    }
    return count;
}

/* Room for the sums and one histogram; it is zero. */
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
    uint64_t now_ns = wi_os_now(engine->os);
    uint64_t turns;
    struct wi_list *node;

    merge_queue_stats(jobs, &engine->retired);
    stats->system_calls = engine->retired_backend_calls;
    list_for_each(node, &engine->queues) {
        struct weir_queue *queue = WI_CONTAINER_OF(node, struct weir_queue, engine_link);
        struct wi_backend_stats backend = { 0 };

        merge_queue_stats(jobs, &queue->stats);
        queue->backend->ops->stats(queue->backend, &backend);
        stats->system_calls += backend.system_calls;
        stats->stalled += count_stalled(queue, now_ns);
    }
    for (uint32_t s = 0; s < BLOCKING_SHARDS; s++)
        merge_blocking_stats(blocking, &engine->blocking[s]);
    for (size_t i = 0; i < WI_ARRAY_LEN(sums); i++) {
        uint64_t sum = get(counter_at(jobs, sums[i].queue));

        if (sums[i].blocking)
            sum += get(counter_at(blocking, sums[i].blocking));
        if (sums[i].total)
            *(uint64_t *)(void *)((char *)stats + sums[i].total) += sum;
    }
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        struct weir_latency *places[STATS_WHICH] = { &stats->ops[g].wait, &stats->ops[g].device,
                                                     &stats->ops[g].total };

        fill_ops(&stats->ops[g], &jobs->ops[g], &blocking->ops[g]);
        stats->system_calls += stats->ops[g].blocking;
        for (uint32_t which = 0; which < STATS_WHICH; which++) {
            memset(&scratch->hist, 0, sizeof(scratch->hist));
            wi_stats_gather(engine, g, WEIR_CLASSES, which, &scratch->hist);
            wi_hist_summarise(&scratch->hist, places[which]);
        }
    }
    turns = get(&jobs->turns);
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
    /* First those that fill: what the queues counted is added. */
    if (engine->cache)
        wi_cache_stats(engine->cache, &full);
    wi_file_pool_stats(engine, &full);
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

void weir_free(void *memory)
{
    free(memory);
}
