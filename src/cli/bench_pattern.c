/* SPDX-License-Identifier: MIT */
/*
 * bench_pattern.c - which place of the file comes next
 *
 *   randread, randwrite, cached, overhead, hit   any place, all equally likely
 *   seqread, seqwrite, scan    one after the other, from the start again after the end
 *   backward                   the same from the end to the start
 *   stride                     one every --stride bytes. Each time through the file starts one
 *                              operation later, so that nothing is read twice before all was
 *   scatter                    every second one, in windows of 256 that are shuffled
 *   zipf                       the block of rank r with a likelihood of 1 / r^theta, the ranks
 *                              spread over the file by a permutation
 *   zipf --scan-beside         in turn: any block of a hot set half as large as the cache, and
 *                              the next block of a scan of the rest of the file
 *   repeat                     a list of queries, each a run of 1 to 8 at some place, which
 *                              together touch half as many bytes as the cache has; again and
 *                              again
 *
 * Seeds of zipf, repeat and scatter are fixed: their results are counts, and counts repeat.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define FIXED_SEED  UINT64_C(0x9e3779b97f4a7c15)
#define MAX_ORDERED (UINT64_C(1) << 24) /* blocks of zipf and repeat: their tables are memory */
#define QUERY_MAX   8u

/* --- what the threads share ------------------------------------------------------------------ */

static int make_zipf(struct bench_tables *tables, double theta)
{
    uint64_t random = FIXED_SEED;
    double sum = 0.0;

    tables->order = calloc(tables->blocks, sizeof(*tables->order));
    tables->shares = calloc(tables->blocks, sizeof(*tables->shares));
    if (tables->order == NULL || tables->shares == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < tables->blocks; i++) {
        uint64_t other = bench_random_below(&random, i + 1);

        tables->order[i] = tables->order[other];
        tables->order[other] = (uint32_t)i;
        sum += pow((double)(i + 1), -theta);
        tables->shares[i] = sum;
    }
    for (uint64_t i = 0; i < tables->blocks; i++)
        tables->shares[i] /= sum;
    tables->length = tables->blocks;
    return 0;
}

static int make_queries(struct bench_tables *tables, uint64_t wanted)
{
    uint64_t room = 2 * wanted + QUERY_MAX;
    unsigned char *seen = calloc(tables->blocks, 1);
    uint64_t random = FIXED_SEED;
    uint64_t distinct = 0;

    tables->order = calloc(room, sizeof(*tables->order));
    if (seen == NULL || tables->order == NULL) {
        free(seen);
        return -ENOMEM;
    }
    while (distinct < wanted && tables->length + QUERY_MAX <= room) {
        uint64_t length = 1 + bench_random_below(&random, QUERY_MAX);
        uint64_t first = bench_random_below(&random, tables->blocks);

        for (uint64_t i = first; i < first + length && i < tables->blocks; i++) {
            distinct += seen[i] == 0;
            seen[i] = 1;
            tables->order[tables->length++] = (uint32_t)i;
        }
    }
    free(seen);
    return 0;
}

int bench_tables_init(struct bench_tables *tables, const struct bench_plan *plan)
{
    uint64_t cached = plan->cache_bytes / plan->block_bytes;
    int rc = 0;

    memset(tables, 0, sizeof(*tables));
    tables->blocks = plan->size_bytes / plan->block_bytes;
    if ((plan->kind == BENCH_ZIPF || plan->kind == BENCH_REPEAT) &&
        tables->blocks > MAX_ORDERED) {
        bench_say("%s: %llu blocks are too many; a smaller --size or a larger --bs\n",
                  plan->name, (unsigned long long)tables->blocks);
        return -E2BIG;
    }
    if (plan->kind == BENCH_HIT)
        tables->hot = cached / 5 * 4 < tables->blocks ? cached / 5 * 4 : tables->blocks;
    else if (plan->kind == BENCH_ZIPF && plan->scan_beside)
        tables->hot = cached / 2;
    else if (plan->kind == BENCH_ZIPF)
        rc = make_zipf(tables, plan->theta);
    else if (plan->kind == BENCH_REPEAT)
        rc = make_queries(tables, (cached != 0 ? cached : tables->blocks / 2) / 2);
    if (rc != 0)
        bench_say("out of memory\n");
    return rc;
}

void bench_tables_fini(struct bench_tables *tables)
{
    free(tables->order);
    free(tables->shares);
}

/* --- one thread ------------------------------------------------------------------------------ */

void bench_pattern_init(struct bench_pattern *pattern, const struct bench_plan *plan,
                        const struct bench_tables *tables, uint32_t thread)
{
    bool repeats = plan->kind == BENCH_SCATTER || bench_tries(plan->kind);

    memset(pattern, 0, sizeof(*pattern));
    pattern->plan = plan;
    pattern->tables = tables;
    pattern->blocks = tables->blocks;
    pattern->random = repeats ? FIXED_SEED + thread : bench_random_seed(thread);
    if (bench_walks(plan->kind)) {
        pattern->blocks = tables->blocks / plan->threads;
        pattern->first = thread * pattern->blocks;
    }
    for (uint32_t i = 0; i < BENCH_SCATTER_WINDOW; i++)
        pattern->shuffle[i] = (uint16_t)i;
}

static uint64_t next_of_walk(struct bench_pattern *pattern)
{
    uint64_t block = pattern->next;

    pattern->next = block + 1 < pattern->blocks ? block + 1 : 0;
    return block;
}

static uint64_t next_of_stride(struct bench_pattern *pattern)
{
    uint64_t step = pattern->plan->stride_bytes / pattern->plan->block_bytes;
    uint64_t block = pattern->next;

    pattern->next += step;
    if (pattern->next >= pattern->blocks) {
        pattern->lap = (pattern->lap + 1) % (step < pattern->blocks ? step : pattern->blocks);
        pattern->next = pattern->lap;
    }
    return block;
}

static uint64_t next_of_scatter(struct bench_pattern *pattern)
{
    uint64_t slots = pattern->blocks / 2;
    uint64_t window = slots < BENCH_SCATTER_WINDOW ? slots : BENCH_SCATTER_WINDOW;
    uint64_t at = pattern->next % window;
    uint64_t other = at + bench_random_below(&pattern->random, window - at);
    uint16_t chosen = pattern->shuffle[other];
    uint64_t slot = pattern->next - at + chosen;

    /* The shuffle goes on where the last window left it: still a permutation. */
    pattern->shuffle[other] = pattern->shuffle[at];
    pattern->shuffle[at] = chosen;
    if (++pattern->next >= slots / window * window)
        pattern->next = 0;
    return 2 * slot;
}

static uint64_t next_of_zipf(struct bench_pattern *pattern)
{
    const struct bench_tables *tables = pattern->tables;
    double place = (double)(bench_random(&pattern->random) >> 11) * 0x1p-53;
    uint64_t low = 0;
    uint64_t high = tables->length - 1;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (tables->shares[middle] <= place)
            low = middle + 1;
        else
            high = middle;
    }
    return tables->order[low];
}

static uint64_t next_beside_scan(struct bench_pattern *pattern)
{
    uint64_t hot = pattern->tables->hot;

    pattern->beside = !pattern->beside;
    if (!pattern->beside)
        return bench_random_below(&pattern->random, hot);
    if (pattern->next < hot || pattern->next >= pattern->blocks)
        pattern->next = hot;
    return pattern->next++;
}

static uint64_t next_of_queries(struct bench_pattern *pattern)
{
    uint64_t block = pattern->tables->order[pattern->next];

    if (++pattern->next == pattern->tables->length) {
        pattern->next = 0;
        pattern->lap++;
    }
    return block;
}

uint64_t bench_pattern_next(struct bench_pattern *pattern)
{
    uint64_t block;

    switch (pattern->plan->kind) {
    case BENCH_SEQREAD:
    case BENCH_SEQWRITE:
    case BENCH_SCAN:
        block = next_of_walk(pattern);
        break;
    case BENCH_BACKWARD:
        block = pattern->blocks - 1 - next_of_walk(pattern);
        break;
    case BENCH_STRIDE:
        block = next_of_stride(pattern);
        break;
    case BENCH_SCATTER:
        block = next_of_scatter(pattern);
        break;
    case BENCH_ZIPF:
        block = pattern->plan->scan_beside ? next_beside_scan(pattern) : next_of_zipf(pattern);
        break;
    case BENCH_REPEAT:
        block = next_of_queries(pattern);
        break;
    case BENCH_HIT:
        block = bench_random_below(&pattern->random, pattern->tables->hot);
        break;
    case BENCH_RANDREAD:
    case BENCH_RANDWRITE:
    case BENCH_CACHED:
    case BENCH_OVERHEAD:
    case BENCH_MIX:
    case BENCH_NONE:
    default:
        block = bench_random_below(&pattern->random, pattern->blocks);
        break;
    }
    return (pattern->first + block) * pattern->plan->block_bytes;
}
