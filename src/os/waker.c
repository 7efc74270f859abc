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
    waker->owed = false;
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
        waker->owed = false;
}

uint32_t wi_waker_settle(struct wi_waker *waker)
{
    /* Acquire: see what the one who woke us had done. */
    if (atomic_exchange_explicit(&waker->armed, WI_WAKER_OFF, memory_order_acq_rel) ==
        WI_WAKER_OFF)
        waker->owed = true;
    if (!waker->owed)
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

    if (!atomic_compare_exchange_strong_explicit(&waker->armed, &armed, WI_WAKER_SLEEP,
                                                 memory_order_acq_rel, memory_order_acquire)) {
        /* Armed for the descriptor by wi_waker_arm and woken since: a write is due. After
         * wi_waker_arm_sleep there is none, and looking for it once does no harm. */
        if (armed == WI_WAKER_OFF) {
            waker->owed = true;
            return 1;
        }
    }
    if (until_ns > now_ns &&
        syscall(SYS_futex, &waker->armed, FUTEX_WAIT_BITSET_PRIVATE, WI_WAKER_SLEEP,
                until_ns == UINT64_MAX ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY) < 0)
        code = errno;
    if (atomic_exchange_explicit(&waker->armed, WI_WAKER_OFF, memory_order_acq_rel) ==
        WI_WAKER_OFF)
        return 1;
    /* Anything but EINTR is a time that has come, or a wake-up from nowhere. */
    if (code == EINTR)
        return -EINTR;
    return code == 0 && until_ns > now_ns ? 1 : 0;
}
