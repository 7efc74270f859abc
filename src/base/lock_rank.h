/* SPDX-License-Identifier: MIT */
/*
 * lock_rank.h - the one list of locks, in the order in which they may be taken
 *
 * docs/locking.md says what each protects.
 */
#ifndef WEIR_BASE_LOCK_RANK_H
#define WEIR_BASE_LOCK_RANK_H

enum wi_lock_rank {
    WI_RANK_NONE = 0,
    WI_RANK_COPY = 10,   /* one copy's tables (src/file) */
    WI_RANK_WATCH = 18,  /* whether the watch is to stop */
    WI_RANK_ENGINE = 20, /* the engine's lists of queues and files */
    WI_RANK_POOLED = 22, /* the file pool's list of descriptors */
    WI_RANK_FILE = 25,   /* the running syncs of one file */
    WI_RANK_LIMITER = 28,
    WI_RANK_GATE = 30,        /* queues that wait for room at the device */
    WI_RANK_CACHE_FILES = 32, /* what the block cache knows of files */
    WI_RANK_CACHE_FILE = 33,  /* and of one of them: its end */
    WI_RANK_SHARD = 35,       /* one shard of a cache */
    WI_RANK_TRACE = 38,       /* the buffers of a trace */
    WI_RANK_FAULT = 40,       /* the fault injector's plan */
    WI_RANK_LANE = 50,        /* one lane of the pool */
    WI_RANK_LAST = 100        /* leaves: nothing else is taken under these */
};

#endif
