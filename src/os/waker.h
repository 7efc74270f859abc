/* SPDX-License-Identifier: MIT */
/*
 * waker.h - wake the owner of a queue from other threads, with few system calls
 *
 * The owner arms the waker before it sleeps, looks once more for work, and then waits: in
 * wi_waker_wait, or for the eventfd to be readable. A thread that has made work visible calls
 * wi_waker_wake, which makes a system call only if the waker was armed, and disarms it.
 * Work must be published, and looked at after arming, with sequentially consistent
 * operations: with those on `armed` they make sure that one of the two sides sees the other
 * (Dekker's pattern).
 *
 * The values of `armed`, and who moves it:
 *
 *   any            -> FD       wi_waker_arm: for those who wait for the descriptor
 *   any            -> SLEEP    wi_waker_arm_sleep, and wi_waker_wait if it finds FD: a futex
 *                              takes one system call a side, an eventfd three in all
 *   FD, SLEEP      -> OFF      wi_waker_wake; then it writes, or wakes the futex
 *   any            -> OFF      wi_waker_disarm, wi_waker_settle, the end of wi_waker_wait
 */
#ifndef WEIR_OS_WAKER_H
#define WEIR_OS_WAKER_H

#include <stdatomic.h>

#include "base/common.h"

enum wi_waker_armed {
    WI_WAKER_OFF,
    WI_WAKER_FD,
    WI_WAKER_SLEEP
};

struct wi_waker {
    _Atomic uint32_t armed;
    int fd; /* eventfd, non-blocking, close-on-exec */
    /* Owner thread only. */
    bool by_fd;    /* armed for the descriptor, so a wake means a write */
    uint32_t owed; /* writes that are due, but were not there when we looked; see settle */
};

/* Returns 0 or a negative errno. */
int wi_waker_init(struct wi_waker *waker);
void wi_waker_fini(struct wi_waker *waker);

static inline void wi_waker_set(struct wi_waker *waker, enum wi_waker_armed armed)
{
    atomic_store_explicit(&waker->armed, armed, memory_order_seq_cst);
#ifndef __SANITIZE_THREAD__ /* which does not know fences */
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Owner: from now on a wake writes to the descriptor. Look for work after this. */
static inline void wi_waker_arm(struct wi_waker *waker)
{
    waker->by_fd = true;
    wi_waker_set(waker, WI_WAKER_FD);
}

/* Owner: from now on a wake ends wi_waker_wait. Look for work after this. */
static inline void wi_waker_arm_sleep(struct wi_waker *waker)
{
    waker->by_fd = false;
    wi_waker_set(waker, WI_WAKER_SLEEP);
}

/* Owner: awake again. Acquire: what was done before a wake is seen. */
static inline void wi_waker_disarm(struct wi_waker *waker)
{
    uint32_t armed =
        atomic_exchange_explicit(&waker->armed, WI_WAKER_OFF, memory_order_acq_rel);

    if (waker->by_fd && armed == WI_WAKER_OFF)
        waker->owed++;
    waker->by_fd = false;
}

/* Owner: make the descriptor unreadable again. One system call. */
void wi_waker_drain(struct wi_waker *waker);

/*
 * Owner: awake again, and drain, but only if somebody has woken us since wi_waker_arm.
 * Returns how many system calls that took, 0 or 1. A waking thread may write long after it
 * disarmed; the write is then remembered as owed and drained by a later settle, so that the
 * descriptor does not stay readable for ever.
 */
uint32_t wi_waker_settle(struct wi_waker *waker);

/* Any thread: after the work has been made visible. Returns true if it made a system call. */
bool wi_waker_wake(struct wi_waker *waker);

/*
 * Owner, after wi_waker_arm_sleep (or wi_waker_arm): sleep until somebody wakes, or `until_ns` (monotonic;
 * UINT64_MAX: ever). `now_ns` may be 0. Disarms. Returns 1 if woken, 0 after the time, or
 * -EINTR. One system call, or none if it was woken already or the time is past.
 */
int wi_waker_wait(struct wi_waker *waker, uint64_t now_ns, uint64_t until_ns);

#endif
