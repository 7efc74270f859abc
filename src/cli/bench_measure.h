/* SPDX-License-Identifier: MIT */
/*
 * bench_measure.h - clock, histogram and random numbers of every measuring program here
 *
 * `weir bench` and the peers it is compared with (bench/peers) measure with the same code,
 * so that what measuring costs is the same on both sides.
 *
 * Histogram   log-linear, 32 sub-buckets a power of two: a percentile is the upper end of
 *             its bucket, at most 3.2 % too high; the maximum is exact.
 * Random      xorshift64*, one state for each job or thread. Never zero.
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stdint.h>
#include <time.h>

#define BENCH_HISTOGRAM_SUB     32u
#define BENCH_HISTOGRAM_BUCKETS (38u * BENCH_HISTOGRAM_SUB) /* up to 2^42 ns: 73 minutes */

struct bench_histogram {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[BENCH_HISTOGRAM_BUCKETS];
};

static inline uint64_t bench_clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t bench_now_ns(void)
{
    return bench_clock_ns(CLOCK_MONOTONIC);
}

static inline void bench_histogram_add(struct bench_histogram *histogram, uint64_t value_ns)
{
    uint32_t index = (uint32_t)value_ns;

    if (value_ns >= BENCH_HISTOGRAM_SUB) {
        uint32_t exponent = 63u - (uint32_t)__builtin_clzll(value_ns);
        uint32_t sub = (uint32_t)(value_ns >> (exponent - 5u)) & (BENCH_HISTOGRAM_SUB - 1u);

        index = (exponent - 4u) * BENCH_HISTOGRAM_SUB + sub;
        if (index >= BENCH_HISTOGRAM_BUCKETS)
            index = BENCH_HISTOGRAM_BUCKETS - 1u;
    }
    histogram->count++;
    histogram->buckets[index]++;
    if (value_ns > histogram->max_ns)
        histogram->max_ns = value_ns;
}

static inline void bench_histogram_merge(struct bench_histogram *into,
                                         const struct bench_histogram *from)
{
    into->count += from->count;
    if (from->max_ns > into->max_ns)
        into->max_ns = from->max_ns;
    for (uint32_t i = 0; i < BENCH_HISTOGRAM_BUCKETS; i++)
        into->buckets[i] += from->buckets[i];
}

/* The value that `share` (0 to 1) of all values do not exceed; 0 without values. */
static inline double bench_histogram_us(const struct bench_histogram *histogram, double share)
{
    uint64_t wanted = (uint64_t)((double)histogram->count * share);
    uint64_t seen = 0;

    if (wanted < 1)
        wanted = 1;
    for (uint32_t i = 0; i < BENCH_HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen >= wanted) {
            uint64_t upper = i;

            if (i >= BENCH_HISTOGRAM_SUB) {
                uint32_t shift = i / BENCH_HISTOGRAM_SUB - 1u;

                upper = (((uint64_t)(i % BENCH_HISTOGRAM_SUB) + BENCH_HISTOGRAM_SUB + 1u)
                         << shift) -
                        1u;
            }
            return (double)(upper < histogram->max_ns ? upper : histogram->max_ns) / 1000.0;
        }
    }
    return 0.0;
}

static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * UINT64_C(2685821657736338717);
}

/* A state for the job of this index: different for each, and from run to run. */
static inline uint64_t bench_random_seed(uint64_t index)
{
    uint64_t x = bench_now_ns() + (index + 1u) * UINT64_C(0x9e3779b97f4a7c15);

    x ^= x >> 31;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 29;
    return x != 0 ? x : 1u;
}

/* Uniform over [0, count), for counts up to 2^32. */
static inline uint64_t bench_random_below(uint64_t *state, uint64_t count)
{
    return ((bench_random(state) >> 32) * count) >> 32;
}

#endif
