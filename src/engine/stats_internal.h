/* SPDX-License-Identifier: MIT */
/*
 * stats_internal.h - between stats.c, which counts and adds up, metric.c, and the files that write
 * it all as JSON (stats_json.c), for Prometheus (prometheus.c) and as a dump (dump.c)
 */
#ifndef WEIR_ENGINE_STATS_INTERNAL_H
#define WEIR_ENGINE_STATS_INTERNAL_H

#include "engine_internal.h"

/* ---- the numbers of struct weir_stats that stand alone --------------------------------- */

enum stats_unit {
    STATS_COUNT,
    STATS_NS,
    STATS_MILLI /* thousandths */
};

struct stats_field {
    const char *group; /* the object it is in, in JSON; NULL: the outermost */
    const char *key;   /* in JSON */
    const char *name;  /* for Prometheus: a counter's ends with _total */
    const char *help;  /* for Prometheus */
    uint16_t offset;   /* of the uint64_t in struct weir_stats */
    uint8_t unit;      /* enum stats_unit */
};

extern const struct stats_field wi_stats_fields[];
extern const size_t wi_stats_fields_count;

extern const char *const wi_stats_groups[WEIR_STATS_GROUPS];
extern const char *const wi_stats_lanes[WEIR_LANES];

static inline uint64_t stats_field_value(const struct weir_stats *stats,
                                         const struct stats_field *field)
{
    uint64_t value;

    memcpy(&value, (const char *)stats + field->offset, sizeof(value));
    return value;
}

/* Add up what all queues have, and had, of one group and kind, into `to`, which is the caller's.
 * `io_class` WEIR_CLASSES means all classes. Blocking calls are with FOREGROUND. */
void wi_stats_gather(struct weir_engine *engine, uint32_t group, uint32_t io_class,
                     uint32_t which, struct wi_hist *to) WI_REQUIRES(engine->mu);

/* ---- metrics --------------------------------------------------------------------------- */

#define METRICS_MAX 256u

/* All but the atomics is set before others can find it. */
struct metric {
    char name[sizeof(((struct weir_metric *)0)->name)];
    uint64_t hash;
    _Atomic uint64_t min_ns; /* relaxed */
    struct wi_hist hist;
};

/* All metrics in the order of their names; `list` has room for METRICS_MAX. Returns how many. Those
 * that are listed stay until the engine is closed. */
size_t wi_metrics_list(struct weir_engine *engine, struct metric **list);
void wi_metric_summarise(struct metric *metric, struct weir_metric *ret_metric);

#endif
