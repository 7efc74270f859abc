/* SPDX-License-Identifier: MIT */
/*
 * bench_internal.h - what the files of `weir bench` tell each other
 *
 *   bench.c          arguments, cases, the output
 *   bench_load.c     the load itself: threads, jobs, the measured interval
 *   bench_scratch.c  the file it runs on, and whose it is
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
    BENCH_OVERHEAD
};

/* One case with its options, every default filled in. */
struct bench_plan {
    enum bench_kind kind;
    const char *name; /* of the case */
    const char *path; /* of the file */
    uint64_t size_bytes;
    uint32_t block_bytes;
    uint32_t depth;
    uint32_t wait_min;
    uint32_t threads;
    uint32_t backend; /* WEIR_BACKEND_* */
    double seconds;
    bool direct;
    bool blocking;
    bool json;
    bool quiet;
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
};

static inline bool bench_writes(enum bench_kind kind)
{
    return kind == BENCH_RANDWRITE || kind == BENCH_SEQWRITE;
}

static inline bool bench_sequential(enum bench_kind kind)
{
    return kind == BENCH_SEQREAD || kind == BENCH_SEQWRITE;
}

/* Set by the handler of SIGINT. */
extern volatile sig_atomic_t bench_interrupted;

/*
 * Make sure that the plan's file is there and may be used: makes the scratch file, or
 * finds it, or takes a foreign one for reading. Sets `ret_size` to the bytes to use.
 * Returns 0, or 1 after it told the user what is wrong.
 */
int bench_scratch_prepare(const struct bench_plan *plan, uint64_t *ret_size);

/* Bring `size` bytes of the file into the page cache and see that they are there; or, with
 * `drop`, ask the kernel to forget them. Returns 0, or 1 after telling why. */
int bench_scratch_warm(const char *path, uint64_t size, bool drop);

/* Run the plan. Returns 0, or 1 after telling what could not be set up. */
int bench_load_run(const struct bench_plan *plan, struct bench_result *result);

/* Heap allocations of the whole process since bench_alloc_start(). */
bool bench_alloc_available(void);
void bench_alloc_start(void);
uint64_t bench_alloc_stop(void);

/* "weir bench: " and the text, on standard error. */
void bench_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
