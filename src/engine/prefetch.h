/* SPDX-License-Identifier: MIT */
/*
 * prefetch.h - what a reader is going to ask for next
 *
 * Pure logic, no I/O: it is told of every demand read of a cached file and answers with the ranges
 * that are worth reading now. One instance for each queue and file, so no locks; about 1.7 KiB.
 * Thread: owner.
 */
#ifndef WEIR_ENGINE_PREFETCH_H
#define WEIR_ENGINE_PREFETCH_H

#include <weir/weir.h>

#include "base/common.h"

#define WI_PREFETCH_STREAMS 8
#define WI_PREFETCH_RUNS    32

/* What became of the demand read. */
enum wi_prefetch_event {
    WI_PREFETCH_HIT,       /* was in the cache anyway */
    WI_PREFETCH_HIT_AHEAD, /* was there because it had been prefetched */
    WI_PREFETCH_WAITED,    /* a prefetch of it was under way: it had to wait */
    WI_PREFETCH_MISS       /* had to be read */
};

/* Read these now: `count` pieces of `len` bytes, at offset, offset + stride, ... Whoever reads them
 * rounds to blocks and leaves out what is cached or on its way. */
struct wi_prefetch_plan {
    uint64_t offset;
    uint64_t len;
    int64_t stride;
    uint32_t count; /* 0: nothing */
};

/* A few reads that touch, or one alone: what a stream may come of. */
struct wi_prefetch_run {
    uint64_t lo;
    uint64_t hi;        /* 0: the place is free */
    uint32_t last_read; /* number of its latest read, for LRU */
    uint16_t reads;     /* in one direction */
    int16_t direction;  /* 1 or -1; 0: one read */
};

/* What is followed: pieces at piece, piece + stride, ... See prefetch.c. */
struct wi_prefetch_stream {
    int64_t stride;        /* 0: the place is free */
    uint64_t piece;        /* where the consumer is */
    uint64_t piece_len;    /* dense: a block */
    uint64_t edge;         /* dense: how far it has read, in its direction */
    int64_t next_plan;     /* the first piece that is not planned; may lie below 0 */
    uint64_t window_bytes; /* to keep ahead of the consumer */
    uint64_t hold_bytes;   /* to be read before the window may grow */
    uint64_t passed_bytes; /* planned and come by, since the window was last judged */
    uint64_t used_bytes;   /* of those, used */
    uint64_t run_bytes;    /* read in all */
    uint64_t used_ns;
    uint32_t last_read; /* number of its latest read */
    bool dense;         /* pieces are all the blocks on the way */
    bool proven;        /* a whole window was used */
};

struct wi_prefetch {
    /* Set at init, but for `advice`, which may be set at any time. */
    uint32_t block_size;
    uint32_t advice;       /* WEIR_ADVICE_NORMAL, SEQUENTIAL, RANDOM or ONCE */
    uint64_t start_bytes;  /* 256 KiB */
    uint64_t max_bytes;    /* the smaller of 8 MiB and a quarter of the cache */
    uint64_t budget_bytes; /* a quarter of the cache, for all streams together */

    uint32_t reads;   /* seen; wraps */
    uint32_t doubt;   /* how much is asked of a new stream: 0 to 6 */
    uint32_t armed;   /* streams in use */
    uint32_t planned; /* index of the stream that planned last */
    struct wi_prefetch_stream streams[WI_PREFETCH_STREAMS];
    struct wi_prefetch_run runs[WI_PREFETCH_RUNS];
};

/* `cache_bytes` / 4 less than a block: nothing will be prefetched. */
void wi_prefetch_init(struct wi_prefetch *prefetch, uint32_t block_size, uint64_t cache_bytes);

/* A demand read of [offset, offset + len) was met with `event` (of several blocks, the worst).
 * `file_end`: where the file is known to end, UINT64_MAX if not: plans stay below it. */
void wi_prefetch_observe(struct wi_prefetch *prefetch, uint64_t offset, uint64_t len,
                         enum wi_prefetch_event event, uint64_t now_ns, uint64_t file_end,
                         struct wi_prefetch_plan *ret_plan);

/* Of the plan that the latest observe gave only the first `done` pieces were read (no room): the rest
 * will be planned again. */
void wi_prefetch_cut(struct wi_prefetch *prefetch, const struct wi_prefetch_plan *plan,
                     uint32_t done);

#endif
