/* SPDX-License-Identifier: MIT */
/*
 * calls.h - operations that run on the pool and come back to the owner of their backend
 *
 * Shared by the backends: uring runs WI_OP_CALL this way, threads runs everything. A backend
 * embeds a `struct wi_calls`, points `backend->calls` at it, and gives it a waker.
 *
 *   start   stages an operation                        owner
 *   flush   hands all staged ones to the pool, in one submit per lane
 *   take    what has finished, as a chain              owner
 *
 * To sleep, the owner says how many more it wants, arms the waker, looks at wi_calls_ready,
 * and only then waits. A worker that has pushed the wanted number wakes it; the counter and
 * `armed` are both sequentially consistent, so that one of the two sides sees the other.
 *
 * `op->busy` is the state of an operation here:
 *
 *   0       -> QUEUED     wi_calls_start
 *   QUEUED  -> RUNNING    worker
 *   QUEUED  -> CANCELLED  wi_calls_cancel: the worker gives it back undone
 *   RUNNING, CANCELLED -> 0  wi_calls_take
 */
#ifndef WEIR_OS_CALLS_H
#define WEIR_OS_CALLS_H

#include "backend.h"
#include "base/inbox.h"
#include "waker.h"

enum wi_calls_busy {
    WI_CALLS_QUEUED = 1,
    WI_CALLS_RUNNING,
    WI_CALLS_CANCELLED
};

struct wi_calls {
    /* Set at init. */
    struct wi_pool *pool;   /* borrowed until fini */
    struct wi_waker *waker; /* borrowed until fini */
    wi_op_call_fn transfer; /* does what is not WI_OP_CALL; NULL if never given any */

    /* Owner thread only. */
    struct wi_task *first[WI_LANES]; /* staged */
    struct wi_task *last[WI_LANES];
    uint32_t staged[WI_LANES];
    uint32_t staged_count;
    uint32_t outstanding; /* started and not taken */
    uint64_t taken;
    _Atomic uint64_t transfers; /* taken, not WI_OP_CALL, not cancelled before they ran;
                                   relaxed, read by anyone */

    /* Atomic, shared with the workers. */
    _Alignas(WI_CACHE_LINE) struct wi_inbox inbox;
    _Atomic int32_t
        finished;           /* pushed and not taken; seq_cst, pairs with the waker's `armed` */
    _Atomic int32_t wanted; /* wake the owner from so many on; relaxed, ordered by `armed` */
    _Atomic uint64_t wakes; /* system calls of workers to wake the owner; relaxed */
    _Atomic uint64_t left;  /* workers that will not touch this again; release, see fini */
};

void wi_calls_init(struct wi_calls *calls, struct wi_pool *pool, struct wi_waker *waker,
                   wi_op_call_fn transfer);

/* Nothing is outstanding. Waits (briefly) for workers that are about to leave. */
void wi_calls_fini(struct wi_calls *calls);

/* Stage `op`; its `backend->calls` must be `calls`. Thread: owner. Blocks: never. */
void wi_calls_start(struct wi_calls *calls, struct wi_op *op);

/* Hand over what is staged. Thread: owner. */
void wi_calls_flush(struct wi_calls *calls);

/*
 * Take what has finished, oldest first, linked by task.next and ended by NULL, with `result`
 * set and `busy` 0. Returns how many; with 0 the two pointers are not written.
 * Thread: owner.
 */
uint32_t wi_calls_take(struct wi_calls *calls, struct wi_op **ret_first,
                       struct wi_op **ret_last);

/* Give `op` back with -ECANCELED if it has not begun; otherwise its result stands.
 * Returns whether it will. Thread: owner, between start and take. */
bool wi_calls_cancel(struct wi_op *op);

/* How many can be taken (at least). After wi_waker_arm this is the last look before sleep. */
static inline uint32_t wi_calls_ready(struct wi_calls *calls)
{
    /* Below 0 while a worker has pushed, its operation was taken, and it has yet to count. */
    int32_t finished = atomic_load_explicit(&calls->finished, memory_order_seq_cst);

    return finished > 0 ? (uint32_t)finished : 0;
}

/* Before wi_waker_arm: wake me when `count` (at least 1) can be taken. Starts as 1. */
static inline void wi_calls_want(struct wi_calls *calls, uint32_t count)
{
    atomic_store_explicit(&calls->wanted, (int32_t)wi_min_u64(count, INT32_MAX),
                          memory_order_relaxed);
}

#endif
