/* SPDX-License-Identifier: MIT */
/*
 * stats.h - what the engine has done
 *
 * Queues count for themselves without locks; a snapshot adds them up. It is not an atomic
 * picture: numbers of one operation may be a few apart. Times are nanoseconds. Percentiles
 * come from log-linear histograms and are at most 3.2 % too high.
 */
#ifndef WEIR_STATS_H
#define WEIR_STATS_H

#include <weir/base.h>
#include <weir/engine.h>
#include <weir/job.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_latency {
    uint64_t count;
    uint64_t mean_ns;
    uint64_t p50_ns;
    uint64_t p95_ns;
    uint64_t p99_ns;
    uint64_t p999_ns;
    uint64_t max_ns;
};

/* Operations are counted in four groups. */
enum weir_stats_group {
    WEIR_STATS_READ = 0,
    WEIR_STATS_WRITE = 1,
    WEIR_STATS_SYNC = 2,
    WEIR_STATS_OTHER = 3,
    WEIR_STATS_GROUPS = 4
};

struct weir_stats_op {
    uint64_t done;     /* jobs whose `done` ran, and blocking calls that returned */
    uint64_t blocking; /* the blocking calls among them */
    uint64_t failed;   /* with a negative result; the next two are among them */
    uint64_t cancelled;
    uint64_t expired;
    uint64_t bytes;             /* moved */
    struct weir_latency wait;   /* jobs: submit to start */
    struct weir_latency device; /* jobs: start to completion; blocking: one in 17 is timed */
    struct weir_latency total;  /* jobs: submit to `done` */
};

struct weir_stats {
    size_t size;         /* sizeof(struct weir_stats), set by the caller */
    uint64_t elapsed_ns; /* since the engine was opened */
    struct weir_stats_op ops[WEIR_STATS_GROUPS];
    uint64_t system_calls; /* made to move data and to wait, by queues, the io lane and
                                 blocking calls */
    uint64_t turns;        /* of all queues */
    uint64_t inline_reads; /* served by the page cache without a trip through the backend */
    uint64_t retries;
    uint64_t continued; /* short transfers that were continued */
    uint64_t posted;
    uint64_t in_flight;            /* taken and not done, now */
    uint64_t in_flight_peak;       /* the highest of any one queue */
    uint64_t in_flight_mean_milli; /* mean over turns of the queues, in thousandths */
    uint64_t pool_tasks[WEIR_LANES];
    uint64_t pool_threads_peak[WEIR_LANES];
    uint64_t pool_cpu_ns;    /* processor time of the pool's threads that are alive */
    uint64_t process_cpu_ns; /* of the whole process */
    uint64_t memory_bytes;   /* held by the engine, its queues and files, now */
    uint64_t memory_peak_bytes;
    uint64_t memory_mean_bytes; /* over time since open */
    uint64_t buffers_in_use;
    uint64_t buffers_peak;
    uint64_t files_open;
    uint64_t queues_open;

    /* What reached the device. One operation may serve many jobs. */
    uint64_t device_ops;      /* reads and writes of queues, given to the backend */
    uint64_t device_bytes;    /* that these asked for */
    uint64_t merges;          /* operations that served more than one job or range */
    uint64_t merged;          /* jobs and ranges that these served */
    uint64_t merge_splits;    /* of those, how many were tried alone afterwards */
    uint64_t gap_bytes;       /* read because they lay between what was asked for */
    uint64_t budget_waits;    /* turns that left work waiting for the engine's limits */
    uint64_t yield_waits;     /* turns that left work waiting for more urgent work */
    uint64_t promoted;        /* prefetches that a demand read made urgent */
    uint64_t retries_refused; /* not tried again, since too much fails: one in ten may */
    uint64_t stalled;         /* at the device now, and submitted more than stall_ns ago */
    uint64_t stalls;          /* operations found to be there for longer, in all */

    /* The block cache. */
    uint64_t cache_bytes;       /* its size */
    uint64_t cache_blocks;      /* blocks held, now */
    uint64_t cache_pinned;      /* views held, now */
    uint64_t cache_hits;        /* blocks asked for that were there */
    uint64_t cache_misses;      /* and that were not */
    uint64_t cache_loads;       /* blocks read from files for it */
    uint64_t cache_shared;      /* misses that another's load answered */
    uint64_t cache_unpublished; /* loads that a write or truncate overtook */
    uint64_t cache_evicted;
    uint64_t cache_expired;
    uint64_t cache_invalidated;
    uint64_t cache_unbuffered; /* loads that found no room in the cache */
    uint64_t prefetch_bytes;   /* read ahead of any demand */
    uint64_t prefetch_used;    /* bytes of those that were asked for later */
    uint64_t prefetch_wasted;  /* bytes that were dropped without that */
    uint64_t prefetch_skipped; /* blocks that were not prefetched, for want of room */

    /* The file pool. */
    uint64_t descriptors_open;
    uint64_t descriptors_closed; /* to make room */
    uint64_t descriptors_reopened;
};

/* Fill `stats`. Returns 0 or -EINVAL. Thread: any. Blocks: on lock, briefly. */
WEIR_API int weir_engine_stats(struct weir_engine *engine, struct weir_stats *stats);

/* The latencies of one group and class. `which` is 0 wait, 1 device, 2 total.
 * Returns 0 or -EINVAL. Thread: any. Blocks: on lock, briefly. */
WEIR_API int weir_engine_latency(struct weir_engine *engine, uint32_t group, uint32_t io_class,
                                 uint32_t which, struct weir_latency *ret_latency);

/* The snapshot as one line of JSON. Given: free it with weir_free(). NULL without memory.
 * Thread: any. Blocks: on lock, briefly. */
WEIR_API char *weir_engine_stats_json(struct weir_engine *engine);

/* The same and all metrics (metric.h), as text for Prometheus (exposition format 0.0.4). Given.
 * Thread: any. Blocks: on lock, briefly. */
WEIR_API char *weir_engine_prometheus(struct weir_engine *engine);

/* What every queue has taken and not finished, oldest first, a line each: for support. Given.
 * Thread: any. Blocks: on lock, briefly. */
WEIR_API char *weir_engine_dump(struct weir_engine *engine);

/* Free what the library has given. NULL is allowed. Thread: any. Blocks: never. */
WEIR_API void weir_free(void *memory);

#ifdef __cplusplus
}
#endif
#endif
