/* SPDX-License-Identifier: MIT */
/*
 * hist.h - log-linear histograms of nanoseconds
 *
 * 32 buckets a power of two: values below 32 are exact, above the error is under 1/32.
 * Values from 2^40 ns (18 minutes) on land in the last bucket, and in `max` exactly.
 * Same idea as HdrHistogram (G. Tene) and fio's stat.c.
 *
 * One thread adds with wi_hist_add (plain relaxed stores); any thread may read or merge
 * meanwhile. Where several threads add, they use wi_hist_add_shared (atomic adds).
 */
#ifndef WEIR_BASE_HIST_H
#define WEIR_BASE_HIST_H

#include <stdatomic.h>

#include "common.h"

#define WI_HIST_SUB_BITS 5
#define WI_HIST_SUB      (1u << WI_HIST_SUB_BITS)
#define WI_HIST_TOP_BITS 40
#define WI_HIST_BUCKETS  ((WI_HIST_TOP_BITS - WI_HIST_SUB_BITS + 1) * WI_HIST_SUB)

/* Atomics: relaxed; a snapshot may be a few values apart. */
struct wi_hist {
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t max_ns;
    _Atomic uint64_t buckets[WI_HIST_BUCKETS];
};

static inline uint32_t wi_hist_index(uint64_t ns)
{
    uint32_t top;

    if (ns < WI_HIST_SUB)
        return (uint32_t)ns;
    top = 63u - (uint32_t)__builtin_clzll(ns);
    if (top >= WI_HIST_TOP_BITS)
        return WI_HIST_BUCKETS - 1;
    return (top - WI_HIST_SUB_BITS + 1) * WI_HIST_SUB +
           (uint32_t)((ns >> (top - WI_HIST_SUB_BITS)) & (WI_HIST_SUB - 1));
}

static inline void wi_counter_add(_Atomic uint64_t *counter, uint64_t value)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value,
                          memory_order_relaxed);
}

/* Thread: the one owner of `hist`. */
static inline void wi_hist_add(struct wi_hist *hist, uint64_t ns)
{
    wi_counter_add(&hist->buckets[wi_hist_index(ns)], 1);
    wi_counter_add(&hist->sum_ns, ns);
    if (ns > atomic_load_explicit(&hist->max_ns, memory_order_relaxed))
        atomic_store_explicit(&hist->max_ns, ns, memory_order_relaxed);
}

/* Thread: any. */
void wi_hist_add_shared(struct wi_hist *hist, uint64_t ns);

/* The largest value that lands in bucket `index`. */
uint64_t wi_hist_bucket_top(uint32_t index);

/* Add all of `from` to `to`. `to` belongs to the caller. */
void wi_hist_merge(struct wi_hist *to, struct wi_hist *from);

struct weir_latency;
/* Percentiles are the tops of their buckets, but never above the maximum. */
void wi_hist_summarise(struct wi_hist *hist, struct weir_latency *ret_latency);

#endif
