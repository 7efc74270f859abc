/* SPDX-License-Identifier: MIT */
/*
 * backend_threads.c - system calls on the pool, for machines that forbid io_uring
 *
 * Idea         an operation is one pread or pwrite on the pool's io lane; calls.c carries it
 *              there and back. What is staged goes over in one submit a turn, so that a
 *              burst pays for one lock and one wake-up.
 * Waiting      the owner says how many completions it wants, and sleeps until the worker
 *              that brings the last of them wakes it: one wake-up for many operations.
 * Descriptor   once `fd` was called the waker stays armed while the owner is outside `turn`.
 *              The end of turn arms first and looks at the inbox afterwards; what it finds
 *              there is returned too, so that nothing can lie in the inbox unannounced.
 * Not here     retries, short transfers: the queue's.
 */
#include "calls.h"

#include <stdlib.h>

struct threads_backend {
    struct wi_backend backend;
    /* Owner thread only. */
    struct wi_op *done_first;
    struct wi_op *done_last;
    uint32_t done_count;
    bool fd_mode;
    bool announced;             /* fd mode: the descriptor is readable because of a wake */
    _Atomic uint64_t own_calls; /* system calls of the owner; relaxed */
    /* Atomic: seq_cst, pairs with the waker's `armed`. */
    _Alignas(WI_CACHE_LINE) _Atomic uint32_t woken;
    struct wi_waker waker;
    struct wi_calls calls;
};

static struct threads_backend *threads_of(struct wi_backend *backend)
{
    return WI_CONTAINER_OF(backend, struct threads_backend, backend);
}

static void count_calls(struct threads_backend *threads, uint32_t calls)
{
    if (calls > 0)
        atomic_store_explicit(&threads->own_calls,
                              atomic_load_explicit(&threads->own_calls, memory_order_relaxed) +
                                  calls,
                              memory_order_relaxed);
}

static int64_t read_uncached(const struct wi_os *os, const struct wi_op *op)
{
    void *addr = (void *)(uintptr_t)op->addr;
    struct iovec piece = { addr, op->len };
    bool is_vector = op->kind == WI_OP_READV;

    return os->ops->preadv2(os, op->fd, is_vector ? addr : &piece, is_vector ? op->len : 1,
                            op->offset, RWF_DONTCACHE);
}

/* Runs on a pool thread. */
static int64_t transfer(struct wi_op *op)
{
    const struct wi_os *os = op->backend->os;
    void *addr = (void *)(uintptr_t)op->addr;

    if (WI_UNLIKELY(op->flags & WI_OP_DONTCACHE))
        return read_uncached(os, op);
    switch ((enum wi_op_kind)op->kind) {
    case WI_OP_READ:
        return os->ops->pread(os, op->fd, addr, op->len, op->offset);
    case WI_OP_WRITE:
        return os->ops->pwrite(os, op->fd, addr, op->len, op->offset);
    case WI_OP_READV:
        return os->ops->preadv2(os, op->fd, addr, op->len, op->offset, 0);
    case WI_OP_WRITEV:
        return os->ops->pwritev2(os, op->fd, addr, op->len, op->offset, 0);
    case WI_OP_NONE:
    case WI_OP_CALL:
        break;
    }
    return -EINVAL;
}

static int threads_bind(struct wi_backend *backend)
{
    (void)backend;
    return 0;
}

/* The descriptor's upkeep ends here. A write that is still on its way stays owed. */
static int threads_unbind(struct wi_backend *backend)
{
    struct threads_backend *threads = threads_of(backend);

    WEIR_DCHECK(threads->calls.outstanding == 0);
    if (threads->fd_mode)
        count_calls(threads, wi_waker_settle(&threads->waker));
    threads->fd_mode = false;
    threads->announced = false;
    return 0;
}

static int threads_start(struct wi_backend *backend, struct wi_op *op)
{
    op->backend = backend;
    wi_calls_start(backend->calls, op);
    return 0;
}

/* Move what has finished to the done chain. */
static void collect(struct threads_backend *threads)
{
    struct wi_op *first;
    struct wi_op *last;
    uint32_t count = wi_calls_take(&threads->calls, &first, &last);

    if (count == 0)
        return;
    if (threads->done_first)
        threads->done_last->task.next = &first->task;
    else
        threads->done_first = first;
    threads->done_last = last;
    threads->done_count += count;
}

/* Wait until `want` have finished, `wake` was called, or the time has come: 0; or -EINTR. */
static int wait_for(struct threads_backend *threads, uint32_t want, uint64_t until_ns)
{
    while (threads->done_count < want) {
        uint32_t missing = want - threads->done_count;
        int code;

        wi_calls_want(&threads->calls, missing);
        wi_waker_arm_sleep(&threads->waker);
        if (atomic_load_explicit(&threads->woken, memory_order_seq_cst)) {
            wi_waker_disarm(&threads->waker);
            atomic_exchange_explicit(&threads->woken, 0, memory_order_acquire);
            collect(threads);
            return 0;
        }
        if (wi_calls_ready(&threads->calls) >= missing) {
            wi_waker_disarm(&threads->waker);
            collect(threads);
            continue;
        }
        code = wi_waker_wait(&threads->waker, 0, until_ns);
        count_calls(threads, 1);
        collect(threads);
        if (code <= 0)
            return code;
    }
    return 0;
}

/*
 * The owner is about to leave: from here on completions make the descriptor readable, and a
 * wake that this turn had no wait for becomes a readable descriptor.
 */
static void arm_descriptor(struct threads_backend *threads)
{
    wi_calls_want(&threads->calls, 1);
    wi_waker_arm(&threads->waker);
    if (wi_calls_ready(&threads->calls) > 0)
        collect(threads); /* a write may come for these as well: one turn for nothing */
    if (atomic_load_explicit(&threads->woken, memory_order_seq_cst)) {
        atomic_exchange_explicit(&threads->woken, 0, memory_order_acquire);
        threads->announced = true;
        if (wi_waker_wake(&threads->waker))
            count_calls(threads, 1);
    }
}

static int threads_turn(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                        struct wi_op **ret_done)
{
    struct threads_backend *threads = threads_of(backend);
    uint32_t count;
    int code = 0;

    if (threads->fd_mode) {
        count_calls(threads, wi_waker_settle(&threads->waker));
        if (threads->announced)
            want = 0; /* woken: this turn does not wait */
        threads->announced = false;
    }
    wi_calls_flush(&threads->calls);
    collect(threads);
    if (threads->done_count < want)
        code = wait_for(threads, want, until_ns);
    if (threads->fd_mode)
        arm_descriptor(threads);
    count = threads->done_count;
    if (count == 0)
        return code;
    *ret_done = threads->done_first;
    threads->done_first = NULL;
    threads->done_count = 0;
    return (int)count;
}

static int threads_cancel(struct wi_backend *backend, struct wi_op *op)
{
    (void)backend;
    wi_calls_cancel(op);
    return 0;
}

static void threads_wake(struct wi_backend *backend)
{
    struct threads_backend *threads = threads_of(backend);

    atomic_store_explicit(&threads->woken, 1, memory_order_seq_cst);
    if (wi_waker_wake(&threads->waker))
        atomic_fetch_add_explicit(&threads->calls.wakes, 1, memory_order_relaxed);
}

static int threads_fd(struct wi_backend *backend)
{
    struct threads_backend *threads = threads_of(backend);

    if (!threads->fd_mode) {
        threads->fd_mode = true;
        wi_calls_want(&threads->calls, 1);
        wi_waker_arm(&threads->waker);
        /* What came before the waker was armed. */
        if (wi_calls_ready(&threads->calls) > 0 ||
            atomic_load_explicit(&threads->woken, memory_order_seq_cst))
            wi_waker_wake(&threads->waker);
    }
    return threads->waker.fd;
}

static void threads_stats(struct wi_backend *backend, struct wi_backend_stats *ret_stats)
{
    struct threads_backend *threads = threads_of(backend);

    ret_stats->system_calls =
        atomic_load_explicit(&threads->own_calls, memory_order_relaxed) +
        atomic_load_explicit(&threads->calls.wakes, memory_order_relaxed) +
        atomic_load_explicit(&threads->calls.transfers, memory_order_relaxed);
}

static void threads_close(struct wi_backend *backend)
{
    struct threads_backend *threads;

    if (!backend)
        return;
    threads = threads_of(backend);
    WEIR_ASSERT(!threads->done_first);
    wi_calls_fini(&threads->calls);
    wi_waker_fini(&threads->waker);
    free(threads);
}

static const struct wi_backend_ops threads_backend_ops = {
    .name = "threads",
    .bind = threads_bind,
    .unbind = threads_unbind,
    .start = threads_start,
    .turn = threads_turn,
    .cancel = threads_cancel,
    .wake = threads_wake,
    .fd = threads_fd,
    .stats = threads_stats,
    .close = threads_close,
};

int wi_backend_threads_open(const struct wi_backend_options *options,
                            struct wi_backend **ret_backend)
{
    struct threads_backend *threads = aligned_alloc(WI_CACHE_LINE, sizeof(*threads));
    int code;

    if (!threads)
        return -ENOMEM;
    *threads = (struct threads_backend){
        .backend = { .ops = &threads_backend_ops,
                     .os = options->os,
                     .pool = options->pool,
                     .calls = &threads->calls },
    };
    code = wi_waker_init(&threads->waker);
    if (code < 0) {
        free(threads);
        return code;
    }
    wi_calls_init(&threads->calls, options->pool, &threads->waker, transfer);
    *ret_backend = &threads->backend;
    return 0;
}
