/* SPDX-License-Identifier: MIT */
/*
 * metric.h - latencies of your own code, beside the engine's
 *
 *     weir_metric_record(engine, "parse", elapsed_ns);
 *     ...
 *     weir_metric_read(engine, "parse", &latency);
 *
 * A name is made on first use; there are at most 256, each of about 9 KB. Recording is a lookup
 * and a few atomic adds. The names are also in weir_engine_stats_json() and in
 * weir_engine_prometheus().
 */
#ifndef WEIR_METRIC_H
#define WEIR_METRIC_H

#include <weir/engine.h>
#include <weir/stats.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_metric {
    char name[64];
    struct weir_latency latency;
    uint64_t min_ns;
};

/*
 * Count one event that took `ns`. `name`: 1 to 63 of letters, digits, '_', '.', ':', '-' and '/'.
 * Returns 0; -EINVAL for a name that is none; -ENOSPC if there are 256 others; -ENOMEM.
 * Thread: any. Blocks: never, but on lock, briefly, at the first use of a name.
 */
WEIR_API int weir_metric_record(struct weir_engine *engine, const char *name, uint64_t ns);

/* One by name: 0 or -ENOENT. Thread: any. Blocks: on lock, briefly. */
WEIR_API int weir_metric_read(struct weir_engine *engine, const char *name,
                              struct weir_metric *ret_metric);

/* Up to `max` of them, by name. Returns how many there are. Thread: any. Blocks: on lock, briefly. */
WEIR_API size_t weir_metric_list(struct weir_engine *engine, struct weir_metric *list,
                                 size_t max);

#ifdef __cplusplus
}
#endif
#endif
