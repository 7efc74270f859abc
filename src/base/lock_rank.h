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
    WI_RANK_ENGINE = 20, /* the engine's lists of queues and files */
    WI_RANK_FILE = 25,   /* the running syncs of one file */
    WI_RANK_FAULT = 40,  /* the fault injector's plan */
    WI_RANK_LANE = 50,   /* one lane of the pool */
    WI_RANK_LAST = 100   /* leaves: nothing else is taken under these */
};

#endif
