/* SPDX-License-Identifier: MIT */
/*
 * hist.c - reading histograms
 *
 * There is no counter of all values: it would be one more store on the hot path, and the
 * buckets say it. A reader walks all of them while others add; what it sees are sums that
 * existed at slightly different moments, which is good enough for statistics.
 */
#include <weir/stats.h>

#include "hist.h"

static uint64_t load(_Atomic uint64_t *value)
{
    return atomic_load_explicit(value, memory_order_relaxed);
}

void wi_hist_add_shared(struct wi_hist *hist, uint64_t ns)
{
    uint64_t max_ns = load(&hist->max_ns);

    atomic_fetch_add_explicit(&hist->buckets[wi_hist_index(ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&hist->sum_ns, ns, memory_order_relaxed);
    while (ns > max_ns &&
           !atomic_compare_exchange_weak_explicit(&hist->max_ns, &max_ns, ns,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

uint64_t wi_hist_bucket_top(uint32_t index)
{
    uint32_t shift;

    WEIR_DCHECK(index < WI_HIST_BUCKETS);
    if (index < WI_HIST_SUB)
        return index;
    if (index >= WI_HIST_BUCKETS - 1)
        return UINT64_MAX; /* everything that is larger lands here too */
    shift = index / WI_HIST_SUB - 1;
    return ((uint64_t)(WI_HIST_SUB + index % WI_HIST_SUB + 1) << shift) - 1;
}

void wi_hist_merge(struct wi_hist *to, struct wi_hist *from)
{
    uint64_t max_ns = load(&from->max_ns);

    for (uint32_t i = 0; i < WI_HIST_BUCKETS; i++) {
        uint64_t count = load(&from->buckets[i]);

        if (count > 0)
            wi_counter_add(&to->buckets[i], count);
    }
    wi_counter_add(&to->sum_ns, load(&from->sum_ns));
    if (max_ns > load(&to->max_ns))
        atomic_store_explicit(&to->max_ns, max_ns, memory_order_relaxed);
}

/* Which of `count` sorted values, counted from 1, is the quantile: rounded up, never past the
 * last. Split, so that no product overflows. */
static uint64_t quantile_rank(uint64_t count, uint64_t permille)
{
    uint64_t rank = count / 1000 * permille + (count % 1000 * permille + 999) / 1000;

    return wi_max_u64(rank, 1);
}

void wi_hist_summarise(struct wi_hist *hist, struct weir_latency *ret_latency)
{
    static const uint16_t permilles[] = { 500, 950, 990, 999 };
    uint64_t values[WI_ARRAY_LEN(permilles)] = { 0 };
    uint64_t count = 0;
    uint64_t passed = 0;
    size_t next = 0;
    uint64_t max_ns = load(&hist->max_ns);

    for (uint32_t i = 0; i < WI_HIST_BUCKETS; i++)
        count += load(&hist->buckets[i]);
    for (uint32_t i = 0; count > 0 && i < WI_HIST_BUCKETS; i++) {
        passed += load(&hist->buckets[i]);
        while (next < WI_ARRAY_LEN(values) && passed >= quantile_rank(count, permilles[next]))
            values[next++] = wi_min_u64(wi_hist_bucket_top(i), max_ns);
    }
    *ret_latency = (struct weir_latency){
        .count = count,
        .mean_ns = count ? load(&hist->sum_ns) / count : 0,
        .p50_ns = values[0],
        .p95_ns = values[1],
        .p99_ns = values[2],
        .p999_ns = values[3],
        .max_ns = max_ns,
    };
}
