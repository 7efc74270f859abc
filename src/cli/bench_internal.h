/* SPDX-License-Identifier: MIT */
/*
 * bench_internal.h - what the files of `weir bench` tell each other
 *
 *   bench.c          arguments, cases, one case after the other
 *   bench_print.c    the output
 *   bench_load.c     the load: threads, jobs, the measured interval
 *   bench_mix.c      the load of `mix`: two kinds of work beside each other
 *   bench_pattern.c  which place comes next
 *   bench_engine.c   the engine and the file it runs on, and what they counted
 *   bench_scratch.c  the scratch file, and whose it is
 *   bench_alloc.c    counting heap allocations of the whole process
 *   bench_measure.h  clock, histogram, random numbers; the peers use it too
 */
#ifndef BENCH_INTERNAL_H
#define BENCH_INTERNAL_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weir/weir.h>

#include "bench_measure.h"

enum bench_kind {
    BENCH_NONE = 0,
    BENCH_RANDREAD,
    BENCH_RANDWRITE,
    BENCH_SEQREAD,
    BENCH_SEQWRITE,
    BENCH_CACHED,
    BENCH_OVERHEAD,
    BENCH_SCAN,
    BENCH_STRIDE,
    BENCH_BACKWARD,
    BENCH_SCATTER,
    BENCH_ZIPF,
    BENCH_REPEAT,
    BENCH_MIX,
    BENCH_HIT
};

/* When the foreground of `mix` works. */
enum bench_think {
    BENCH_THINK_NONE = 0, /* always */
    BENCH_THINK_READ,     /* after each read it idles as long as the read took */
    BENCH_THINK_BURST     /* 100 ms of reads, 100 ms of nothing */
};

/* The background of `mix`. */
#define BENCH_MIX_DEPTH 32u
#define BENCH_MIX_BYTES 65536u

/* Requests of `scatter` are shuffled within this many. */
#define BENCH_SCATTER_WINDOW 256u

/* One case with its options, every default filled in. */
struct bench_plan {
    enum bench_kind kind;
    const char *name; /* of the case */
    const char *path; /* of the file */
    uint64_t size_bytes;
    uint32_t block_bytes; /* of one operation */
    uint32_t depth;
    uint32_t wait_min;
    uint32_t threads;
    uint32_t backend; /* WEIR_BACKEND_* */
    double seconds;
    uint64_t cache_bytes; /* 0: no cache */
    uint32_t cache_block_bytes;
    uint32_t policy; /* WEIR_POLICY_* */
    uint64_t stride_bytes;
    double theta;
    enum bench_think think;
    const char *trace; /* the file for it, or NULL */
    bool no_prefetch;
    bool no_merge;
    bool copy;        /* cached files are read into buffers, not viewed */
    bool many;        /* scatter: one job for a window */
    bool scan_beside; /* zipf: a hot set, and a scan */
    bool cache_part;  /* zipf: the cache is 5 % of a file whose size is not known yet */
    bool in_memory;   /* the file is a hole in memory: only counts are of interest */
    bool direct;
    bool blocking;
    bool json;
    bool quiet;
};

/* What `mix` found. Shares are of what the same side does alone. */
struct bench_mix_result {
    double idle_p99_us;
    double foreground_alone; /* operations a second */
    double foreground_beside;
    double background_alone; /* MiB a second */
    double background_beside;
};

struct bench_result {
    uint64_t ops;
    double seconds;
    double cpu_us_per_op;
    double syscalls_per_op;
    double allocs_per_op; /* negative: not counted in this build */
    uint64_t errors;
    int64_t first_error; /* the code of the first failed operation */
    uint64_t first_error_offset;
    uint64_t size_bytes; /* of the file, or the part of it that is used */
    uint32_t ring_flags;
    uint32_t io_threads;
    bool registered_buffers;
    bool interrupted;
    char backend_name[16];
    char why[160];
    struct bench_histogram latency;

    uint64_t requests; /* what was asked for: `ops`, but that of mix counts all it did */
    uint64_t asked_bytes;
    uint64_t device_ops;
    uint64_t device_bytes;
    double hit_ratio; /* negative: there is no cache */
    uint64_t prefetch_bytes;
    uint64_t prefetch_used;
    uint64_t prefetch_wasted;
    struct bench_mix_result mix;
};

static inline bool bench_writes(enum bench_kind kind)
{
    return kind == BENCH_RANDWRITE || kind == BENCH_SEQWRITE;
}

/* Each thread has a part of the file to itself, and goes through it in some order. */
static inline bool bench_walks(enum bench_kind kind)
{
    return kind == BENCH_SEQREAD || kind == BENCH_SEQWRITE || kind == BENCH_SCAN ||
           kind == BENCH_STRIDE || kind == BENCH_BACKWARD || kind == BENCH_SCATTER;
}

/* Cached blocks are asked for without a queue, and only what is missing through one. */
static inline bool bench_tries(enum bench_kind kind)
{
    return kind == BENCH_ZIPF || kind == BENCH_HIT;
}

/* Reads look at the cache's own memory instead of being copied out of it. */
static inline bool bench_views(const struct bench_plan *plan)
{
    return plan->cache_bytes != 0 && !plan->copy && !bench_writes(plan->kind);
}

/* Set by the handler of SIGINT. */
extern volatile sig_atomic_t bench_interrupted;

/* ---- bench_scratch.c ----------------------------------------------------------------------- */

/*
 * Make sure that the plan's file is there and may be used: makes the scratch file, or
 * finds it, or takes a foreign one for reading. Sets `ret_size` to the bytes to use.
 * Returns 0, or 1 after it told the user what is wrong.
 */
int bench_scratch_prepare(const struct bench_plan *plan, uint64_t *ret_size);

/* Bring `size` bytes of the file into the page cache and see that they are there; or, with
 * `drop`, ask the kernel to forget them. Returns 0, or 1 after telling why. */
int bench_scratch_warm(const char *path, uint64_t size, bool drop);

/* ---- bench_engine.c ------------------------------------------------------------------------ */

/* What a case runs on. */
struct bench_base {
    const struct bench_plan *plan;
    struct weir_engine *engine;
    struct weir_file *file;
};

/* Open engine and file, begin the trace. Returns 0, or a negative code after telling why.
 * Either way bench_base_close() is due. */
int bench_base_open(struct bench_base *base, const struct bench_plan *plan,
                    struct bench_result *result);
void bench_base_close(struct bench_base *base);

/* A queue with the plan's options. */
int bench_base_queue(const struct bench_base *base, uint32_t depth,
                     struct weir_queue **ret_queue);

/* A buffer of `bytes`, touched; `ret_pooled` says whose. NULL without memory. */
void *bench_base_buffer(const struct bench_base *base, size_t bytes, uint64_t *random,
                        bool *ret_pooled);
void bench_base_give(const struct bench_base *base, void *buf, bool pooled);

/* Load [offset, offset + len) into the cache, with the calling thread. */
int bench_base_fill(const struct bench_base *base, uint64_t offset, uint64_t len);

/* What is read at both ends of the measured part. */
struct bench_picture {
    uint64_t now_ns;
    uint64_t cpu_ns;
    uint64_t ops;
    uint64_t hits;   /* counted by the load itself, if it does, of */
    uint64_t judged; /* so many */
    struct weir_stats stats;
};

/* Take one: the caller has filled in the operations. */
void bench_picture_take(const struct bench_base *base, struct bench_picture *picture);
/* What happened between two. `allocs`: heap allocations meanwhile. */
void bench_picture_compare(const struct bench_picture *before,
                           const struct bench_picture *after, uint64_t allocs,
                           const struct bench_plan *plan, struct bench_result *result);

/* ---- bench_pattern.c ----------------------------------------------------------------------- */

/* What the patterns of all threads share. */
struct bench_tables {
    uint64_t blocks; /* of the file, in operations */
    uint32_t *order; /* zipf: the block of each rank; repeat: the requests of one round */
    double *shares;  /* zipf: of all requests, those for this rank or a lower one */
    uint64_t length; /* of `order` */
    uint64_t hot;    /* hit, zipf beside a scan: blocks from the start of the file */
};

/* Returns 0, or a negative code after telling why. */
int bench_tables_init(struct bench_tables *tables, const struct bench_plan *plan);
void bench_tables_fini(struct bench_tables *tables);

/* One thread's. */
struct bench_pattern {
    const struct bench_plan *plan;
    const struct bench_tables *tables;
    uint64_t first; /* the part of the file that is this thread's, in operations */
    uint64_t blocks;
    uint64_t next;
    uint64_t lap;
    uint64_t random;
    bool beside; /* the last one was the scan's */
    uint16_t shuffle[BENCH_SCATTER_WINDOW];
};

void bench_pattern_init(struct bench_pattern *pattern, const struct bench_plan *plan,
                        const struct bench_tables *tables, uint32_t thread);
/* The offset of the next operation. */
uint64_t bench_pattern_next(struct bench_pattern *pattern);

/* ---- bench_load.c, bench_mix.c ------------------------------------------------------------- */

/* Run the plan. Returns 0, or 1 after telling what could not be set up. */
int bench_load_run(const struct bench_plan *plan, struct bench_result *result);
int bench_mix_run(const struct bench_plan *plan, struct bench_result *result);

/* Sleep until `seconds` have passed, a signal has come or `ended` says so. */
void bench_sleep(double seconds, bool (*ended)(void *arg), void *arg);

/* ---- bench_print.c ------------------------------------------------------------------------- */

/* Write the result. Returns the exit status. */
int bench_print(const struct bench_plan *plan, const struct bench_result *result,
                bool with_head);

/* "s3fifo" and so on, in the order of enum weir_policy. */
extern const char *const bench_policies[WEIR_POLICIES];

/* ---- bench_alloc.c ------------------------------------------------------------------------- */

/* Heap allocations of the whole process since bench_alloc_start(). */
bool bench_alloc_available(void);
void bench_alloc_start(void);
uint64_t bench_alloc_stop(void);

/* "weir bench: " and the text, on standard error. */
void bench_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
