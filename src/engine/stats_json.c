/* SPDX-License-Identifier: MIT */
/*
 * stats_json.c - what the numbers of struct weir_stats are called, and all of them as JSON
 *
 * One table has the names for JSON and for Prometheus (prometheus.c), so that neither can miss one.
 * docs/statistics.md says what each means.
 */
#include "stats_internal.h"

#include <stdlib.h>

#include "base/json.h"

const char *const wi_stats_groups[WEIR_STATS_GROUPS] = { "read", "write", "sync", "other" };
const char *const wi_stats_lanes[WEIR_LANES] = { "io", "files", "cpu" };

/* clang-format off */
#define AT(field) offsetof(struct weir_stats, field)
const struct stats_field wi_stats_fields[] = {
    { NULL, "elapsed_ns", "weir_uptime_seconds",
      "Since the engine was opened.", AT(elapsed_ns), STATS_NS },
    { NULL, "system_calls", "weir_system_calls_total",
      "System calls made to move data and to wait.", AT(system_calls), STATS_COUNT },
    { NULL, "turns", "weir_turns_total",
      "Turns of all queues.", AT(turns), STATS_COUNT },
    { NULL, "inline_reads", "weir_inline_reads_total",
      "Reads that the page cache answered at once.", AT(inline_reads), STATS_COUNT },
    { NULL, "retries", "weir_retries_total",
      "Operations tried again after a transient error.", AT(retries), STATS_COUNT },
    { NULL, "retries_refused", "weir_retries_refused_total",
      "Operations not tried again because too much fails.", AT(retries_refused), STATS_COUNT },
    { NULL, "continued", "weir_continued_total",
      "Short transfers that were continued.", AT(continued), STATS_COUNT },
    { NULL, "posted", "weir_posted_total",
      "Jobs that came from other threads.", AT(posted), STATS_COUNT },
    { NULL, "in_flight", "weir_in_flight",
      "Jobs taken and not done.", AT(in_flight), STATS_COUNT },
    { NULL, "in_flight_peak", "weir_in_flight_peak",
      "The most jobs that any one queue had in flight.", AT(in_flight_peak), STATS_COUNT },
    { NULL, "in_flight_mean", "weir_in_flight_mean",
      "Jobs in flight, mean over the turns of the queues.", AT(in_flight_mean_milli),
      STATS_MILLI },
    { NULL, "process_cpu_ns", "weir_process_cpu_seconds_total",
      "Processor time of the whole process.", AT(process_cpu_ns), STATS_NS },
    { NULL, "memory_bytes", "weir_memory_bytes",
      "Memory held by the engine, its queues and files.", AT(memory_bytes), STATS_COUNT },
    { NULL, "memory_peak_bytes", "weir_memory_peak_bytes",
      "The most memory that was held.", AT(memory_peak_bytes), STATS_COUNT },
    { NULL, "memory_mean_bytes", "weir_memory_mean_bytes",
      "Memory held, mean over time.", AT(memory_mean_bytes), STATS_COUNT },
    { NULL, "buffers_in_use", "weir_buffers_in_use",
      "Buffers of the pool that are out.", AT(buffers_in_use), STATS_COUNT },
    { NULL, "buffers_peak", "weir_buffers_peak",
      "The most buffers that were out.", AT(buffers_peak), STATS_COUNT },
    { NULL, "files_open", "weir_files_open",
      "Files open on the engine.", AT(files_open), STATS_COUNT },
    { NULL, "queues_open", "weir_queues_open",
      "Queues open on the engine.", AT(queues_open), STATS_COUNT },

    { "pool", "cpu_ns", "weir_pool_cpu_seconds",
      "Processor time of the pool's threads that are alive.", AT(pool_cpu_ns), STATS_NS },

    { "device", "ops", "weir_device_operations_total",
      "Reads and writes that queues gave to the backend.", AT(device_ops), STATS_COUNT },
    { "device", "bytes", "weir_device_bytes_total",
      "Bytes that these asked for.", AT(device_bytes), STATS_COUNT },
    { "device", "merges", "weir_merges_total",
      "Operations that served more than one job or range.", AT(merges), STATS_COUNT },
    { "device", "merged", "weir_merged_total",
      "Jobs and ranges that these served.", AT(merged), STATS_COUNT },
    { "device", "merge_splits", "weir_merge_splits_total",
      "Jobs and ranges that were tried alone afterwards.", AT(merge_splits), STATS_COUNT },
    { "device", "gap_bytes", "weir_gap_bytes_total",
      "Bytes read because they lay between what was asked for.", AT(gap_bytes), STATS_COUNT },
    { "device", "budget_waits", "weir_budget_waits_total",
      "Turns that left work waiting for the engine's limits at the device.", AT(budget_waits),
      STATS_COUNT },
    { "device", "yield_waits", "weir_yield_waits_total",
      "Turns that left work waiting for more urgent work.", AT(yield_waits), STATS_COUNT },
    { "device", "promoted", "weir_promoted_total",
      "Prefetches that a demand read made urgent.", AT(promoted), STATS_COUNT },
    { "device", "stalled", "weir_stalled",
      "Operations that hang at the device.", AT(stalled), STATS_COUNT },
    { "device", "stalls", "weir_stalls_total",
      "Operations that were found to hang.", AT(stalls), STATS_COUNT },

    { "cache", "bytes", "weir_cache_bytes",
      "Size of the block cache.", AT(cache_bytes), STATS_COUNT },
    { "cache", "blocks", "weir_cache_blocks",
      "Blocks held.", AT(cache_blocks), STATS_COUNT },
    { "cache", "pinned", "weir_cache_pinned",
      "Views held.", AT(cache_pinned), STATS_COUNT },
    { "cache", "hits", "weir_cache_hits_total",
      "Blocks asked for that were there.", AT(cache_hits), STATS_COUNT },
    { "cache", "misses", "weir_cache_misses_total",
      "Blocks asked for that were not there.", AT(cache_misses), STATS_COUNT },
    { "cache", "loads", "weir_cache_loads_total",
      "Blocks read from files for the cache.", AT(cache_loads), STATS_COUNT },
    { "cache", "shared", "weir_cache_shared_total",
      "Misses that another's load answered.", AT(cache_shared), STATS_COUNT },
    { "cache", "unpublished", "weir_cache_unpublished_total",
      "Loads that a write or truncate overtook.", AT(cache_unpublished), STATS_COUNT },
    { "cache", "evicted", "weir_cache_evicted_total",
      "Blocks dropped to make room.", AT(cache_evicted), STATS_COUNT },
    { "cache", "expired", "weir_cache_expired_total",
      "Blocks dropped because they were too old.", AT(cache_expired), STATS_COUNT },
    { "cache", "invalidated", "weir_cache_invalidated_total",
      "Blocks dropped because the file changed.", AT(cache_invalidated), STATS_COUNT },
    { "cache", "unbuffered", "weir_cache_unbuffered_total",
      "Loads that found no room in the cache.", AT(cache_unbuffered), STATS_COUNT },

    { "prefetch", "bytes", "weir_prefetch_bytes_total",
      "Bytes read ahead of any demand.", AT(prefetch_bytes), STATS_COUNT },
    { "prefetch", "used", "weir_prefetch_used_bytes_total",
      "Bytes read ahead that were asked for later.", AT(prefetch_used), STATS_COUNT },
    { "prefetch", "wasted", "weir_prefetch_wasted_bytes_total",
      "Bytes read ahead and dropped unused.", AT(prefetch_wasted), STATS_COUNT },
    { "prefetch", "skipped", "weir_prefetch_skipped_total",
      "Blocks not read ahead for want of room.", AT(prefetch_skipped), STATS_COUNT },

    { "descriptors", "open", "weir_descriptors_open",
      "Descriptors held open for files.", AT(descriptors_open), STATS_COUNT },
    { "descriptors", "closed", "weir_descriptors_closed_total",
      "Descriptors closed to make room.", AT(descriptors_closed), STATS_COUNT },
    { "descriptors", "reopened", "weir_descriptors_reopened_total",
      "Descriptors opened again.", AT(descriptors_reopened), STATS_COUNT },
};
#undef AT
/* clang-format on */
const size_t wi_stats_fields_count = WI_ARRAY_LEN(wi_stats_fields);

static void write_fields(struct wi_json *json, const struct weir_stats *stats,
                         const char *group)
{
    for (size_t i = 0; i < wi_stats_fields_count; i++) {
        const struct stats_field *field = &wi_stats_fields[i];
        uint64_t value = stats_field_value(stats, field);

        if (field->group == group ||
            (field->group && group && strcmp(field->group, group) == 0)) {
            if (field->unit == STATS_MILLI)
                wi_json_double(json, field->key, (double)value / 1000, 3);
            else
                wi_json_u64(json, field->key, value);
        }
    }
}

static void write_latency(struct wi_json *json, const struct weir_latency *lat)
{
    wi_json_u64(json, "count", lat->count);
    wi_json_u64(json, "mean", lat->mean_ns);
    wi_json_u64(json, "p50", lat->p50_ns);
    wi_json_u64(json, "p95", lat->p95_ns);
    wi_json_u64(json, "p99", lat->p99_ns);
    wi_json_u64(json, "p999", lat->p999_ns);
    wi_json_u64(json, "max", lat->max_ns);
}

static void write_ops(struct wi_json *json, const struct weir_stats_op *op)
{
    const struct {
        const char *key;
        const struct weir_latency *latency;
    } latencies[] = { { "wait_ns", &op->wait },
                      { "device_ns", &op->device },
                      { "total_ns", &op->total } };

    wi_json_u64(json, "done", op->done);
    wi_json_u64(json, "blocking", op->blocking);
    wi_json_u64(json, "failed", op->failed);
    wi_json_u64(json, "cancelled", op->cancelled);
    wi_json_u64(json, "expired", op->expired);
    wi_json_u64(json, "bytes", op->bytes);
    for (size_t i = 0; i < WI_ARRAY_LEN(latencies); i++) {
        wi_json_open(json, latencies[i].key, '{');
        write_latency(json, latencies[i].latency);
        wi_json_close(json, '}');
    }
}

static void write_metrics(struct wi_json *json, struct weir_engine *engine)
{
    struct metric *metrics[METRICS_MAX];
    size_t count = wi_metrics_list(engine, metrics);

    wi_json_open(json, "metrics", '{');
    for (size_t i = 0; i < count; i++) {
        struct weir_metric metric;

        wi_metric_summarise(metrics[i], &metric);
        wi_json_open(json, metric.name, '{');
        write_latency(json, &metric.latency);
        wi_json_u64(json, "min", metric.min_ns);
        wi_json_close(json, '}');
    }
    wi_json_close(json, '}');
}

char *weir_engine_stats_json(struct weir_engine *engine)
{
    static const char *const groups[] = { "device", "cache", "prefetch", "descriptors" };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct wi_json json;

    if (weir_engine_stats(engine, &stats) < 0)
        return NULL;
    wi_json_init(&json);
    wi_json_open(&json, NULL, '{');
    write_fields(&json, &stats, NULL);
    wi_json_open(&json, "ops", '{');
    for (uint32_t g = 0; g < WEIR_STATS_GROUPS; g++) {
        wi_json_open(&json, wi_stats_groups[g], '{');
        write_ops(&json, &stats.ops[g]);
        wi_json_close(&json, '}');
    }
    wi_json_close(&json, '}');
    wi_json_open(&json, "pool", '{');
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++) {
        wi_json_open(&json, wi_stats_lanes[lane], '{');
        wi_json_u64(&json, "tasks", stats.pool_tasks[lane]);
        wi_json_u64(&json, "threads_peak", stats.pool_threads_peak[lane]);
        wi_json_close(&json, '}');
    }
    write_fields(&json, &stats, "pool");
    wi_json_close(&json, '}');
    for (size_t i = 0; i < WI_ARRAY_LEN(groups); i++) {
        wi_json_open(&json, groups[i], '{');
        write_fields(&json, &stats, groups[i]);
        wi_json_close(&json, '}');
    }
    write_metrics(&json, engine);
    wi_json_close(&json, '}');
    return wi_json_finish(&json);
}
