/* SPDX-License-Identifier: MIT */
/*
 * waker.c - an eventfd for event loops, a futex for those who sleep in here; see waker.h
 */
#include "waker.h"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int wi_waker_init(struct wi_waker *waker)
{
    atomic_init(&waker->armed, WI_WAKER_OFF);
    waker->by_fd = false;
    waker->owed = 0;
    waker->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return waker->fd < 0 ? -errno : 0;
}

void wi_waker_fini(struct wi_waker *waker)
{
    if (waker->fd >= 0)
        close(waker->fd);
    waker->fd = -1;
}

void wi_waker_drain(struct wi_waker *waker)
{
    uint64_t count;

    /* EAGAIN: the write is yet to come. */
    if (read(waker->fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
        waker->owed -= (uint32_t)wi_min_u64(count, waker->owed);
}

uint32_t wi_waker_settle(struct wi_waker *waker)
{
    wi_waker_disarm(waker);
    if (waker->owed == 0)
        return 0;
    wi_waker_drain(waker);
    return 1;
}

bool wi_waker_wake(struct wi_waker *waker)
{
    uint64_t one = 1;
    uint32_t armed;
    ssize_t written;

    if (atomic_load_explicit(&waker->armed, memory_order_seq_cst) == WI_WAKER_OFF)
        return false;
    armed = atomic_exchange_explicit(&waker->armed, WI_WAKER_OFF, memory_order_acq_rel);
    if (armed == WI_WAKER_OFF)
        return false;
    if (armed == WI_WAKER_SLEEP) {
        syscall(SYS_futex, &waker->armed, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        return true;
    }
    /* Cannot block or fail: the counter would have to reach 2^64 - 2. */
    written = write(waker->fd, &one, sizeof(one));
    (void)written;
    return true;
}

int wi_waker_wait(struct wi_waker *waker, uint64_t now_ns, uint64_t until_ns)
{
    struct timespec until = {
        .tv_sec = (time_t)(until_ns / WI_SEC_NS),
        .tv_nsec = (long)(until_ns % WI_SEC_NS),
    };
    uint32_t armed = WI_WAKER_FD;
    int code = 0;

    if (atomic_compare_exchange_strong_explicit(&waker->armed, &armed, WI_WAKER_SLEEP,
                                                memory_order_acq_rel, memory_order_acquire))
        waker->by_fd = false;
    else if (armed == WI_WAKER_OFF)
        goto awake;
    /* Always with a time, if one in centuries: a futex without goes on sleeping after a signal
     * whose handler was set with SA_RESTART, and event loops are used to EINTR. */
    if (until_ns > now_ns && syscall(SYS_futex, &waker->armed, FUTEX_WAIT_BITSET_PRIVATE,
                                     WI_WAKER_SLEEP, &until, NULL, FUTEX_BITSET_MATCH_ANY) < 0)
        code = errno;
    armed = atomic_exchange_explicit(&waker->armed, WI_WAKER_OFF, memory_order_acq_rel);
    if (armed != WI_WAKER_OFF) {
        if (code == EINTR)
            return -EINTR;
        /* A time that has come, or a wake-up from nowhere. */
        return code == 0 && until_ns > now_ns ? 1 : 0;
    }
awake:
    wi_waker_disarm(waker); /* counts the write, if there is one to come */
    return 1;
}
