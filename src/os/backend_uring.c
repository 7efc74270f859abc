/* SPDX-License-Identifier: MIT */
/*
 * backend_uring.c - reads and writes through one io_uring a queue
 *
 * Set-up       SINGLE_ISSUER + DEFER_TASKRUN where the kernel has them (6.1), then
 *              COOP_TASKRUN (5.19), then neither. The ring is created disabled and enabled by
 *              the thread that becomes the owner, since a single-issuer ring belongs to the
 *              thread that enables it. The completion ring has four times the entries of the
 *              submission ring, and never more is in flight, so it cannot overflow.
 * A turn       one io_uring_enter that submits what is staged, waits if asked to, and
 *              runs the deferred work; none at all if there is nothing to do.
 * Opcodes      only READ, WRITE, READV, WRITEV, their fixed-buffer forms, ASYNC_CANCEL and
 *              POLL_ADD; no links, no drain, no timeouts. WI_OP_CALL goes to the pool.
 * Waking       a multishot poll on the waker's eventfd makes a completion out of a wake. A
 *              wait for `n` completions needs n of them to end, so as many polls are armed
 *              as the longest wait so far has asked for, up to 16: one wake ends any wait.
 * Event loops  get an epoll set of the waker's eventfd and of one registered with the ring.
 *              The kernel signals that one only when its list of deferred work was empty, so
 *              a turn ends only when nothing is left, or signals itself. What does not do: the
 *              ring's own descriptor (its pollers are not woken for deferred work), and the
 *              wake poll with the registered eventfd (a write to one eventfd that leads to a
 *              signal on another is put off by the kernel, and got lost on Linux 6.18).
 *
 * What is known to go wrong, and is avoided here: docs/decisions/0002-io-uring.md.
 */
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <weir/engine.h>

#include "backend.h"
#include "calls.h"
#include "waker.h"

#define WAKE_POLLS_MAX 16
#define ENTRIES_LEAST  8 /* room for wake polls and cancels beside a shallow depth */
#define WORKERS_MAX    8 /* of the kernel's own pool, for what it cannot do without blocking */

/* In the low bits of user_data; operations are aligned, theirs are 0. */
enum tag {
    TAG_OP = 0,
    TAG_WAKE = 1,
    TAG_CANCEL = 2,
    TAG_MASK = 7
};

struct uring {
    struct wi_backend base;
    struct wi_waker waker;
    struct wi_calls calls;

    /* Set at creation. */
    uint32_t entries;
    uint32_t file_slots;
    void *region;
    size_t region_size;

    /* Owner thread only. */
    struct io_uring ring;
    bool has_ring;
    size_t registered; /* so much of the region, from its start */
    bool has_files;
    int event_fd;   /* registered with the ring; -1 until an event loop asks for it */
    int epoll_fd;   /* the two that wake an event loop; -1 likewise */
    bool armed;     /* the waker, since the last settle */
    uint32_t polls; /* wake polls armed */
    uint32_t seen;  /* completions of any kind since it was last set to 0 */

    _Atomic uint32_t woken;        /* seq_cst, pairs with the waker's `armed` */
    _Atomic uint64_t system_calls; /* written by the owner; relaxed */
};

static struct uring *uring_of(struct wi_backend *backend)
{
    return WI_CONTAINER_OF(backend, struct uring, base);
}

static void count_call(struct uring *u)
{
    atomic_store_explicit(&u->system_calls,
                          atomic_load_explicit(&u->system_calls, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/* ---- set-up ---------------------------------------------------------------------------- */

/* The best ring that this kernel gives. `ret_flags` is in WEIR_RING_*. */
static int create_ring(struct io_uring *ring, uint32_t entries, uint32_t *ret_flags)
{
    static const struct {
        uint32_t setup;
        uint32_t flags;
    } ladder[] = {
        { IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
              IORING_SETUP_SUBMIT_ALL,
          WEIR_RING_SINGLE_ISSUER | WEIR_RING_DEFER_TASKRUN },
        { IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
          WEIR_RING_COOP_TASKRUN },
        { 0, 0 },
    };
    int rc = -EINVAL;

    for (size_t i = 0; i < WI_ARRAY_LEN(ladder) && rc == -EINVAL; i++) {
        struct io_uring_params params;

        memset(&params, 0, sizeof(params));
        params.flags = ladder[i].setup | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP |
                       IORING_SETUP_R_DISABLED;
        params.cq_entries = entries * 4;
        rc = io_uring_queue_init_params(entries, ring, &params);
        if (rc == 0)
            *ret_flags = ladder[i].flags;
    }
    return rc;
}

/* The ring begins to work, for the calling thread. Declared by liburing 2.3, but missing from
 * its library. */
static int enable_ring(struct io_uring *ring)
{
    return syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
                   0) < 0
               ? -errno
               : 0;
}

static void take_ring(struct uring *u, const struct io_uring *ring)
{
    u->ring = *ring;
    u->has_ring = true;
    (void)io_uring_ring_dontfork(&u->ring);
}

static void close_loop_fds(struct uring *u)
{
    if (u->epoll_fd >= 0)
        close(u->epoll_fd);
    if (u->event_fd >= 0)
        close(u->event_fd);
    u->epoll_fd = -1;
    u->event_fd = -1;
}

static void end_ring(struct uring *u)
{
    if (u->has_ring)
        io_uring_queue_exit(&u->ring);
    u->has_ring = false;
    u->registered = 0;
    u->has_files = false;
    u->polls = 0;
    close_loop_fds(u);
}

static int uring_bind(struct wi_backend *backend)
{
    struct uring *u = uring_of(backend);
    unsigned int workers[2] = { WORKERS_MAX, WORKERS_MAX };
    int rc;

    rc = enable_ring(&u->ring);
    if (rc < 0)
        return rc;
    /* All of these make it faster; none is needed. */
    (void)io_uring_register_ring_fd(&u->ring);
    (void)io_uring_register_iowq_max_workers(&u->ring, workers);
    if (u->file_slots > 0)
        u->has_files = io_uring_register_files_sparse(&u->ring, u->file_slots) == 0;
    /* As much of the region as may be locked in memory. */
    u->registered = u->region_size;
    while (u->registered > 0) {
        struct iovec region = { u->region, u->registered };

        if (io_uring_register_buffers(&u->ring, &region, 1) == 0)
            break;
        u->registered = u->registered / 2 & ~(size_t)4095;
    }
    return 0;
}

static int uring_unbind(struct wi_backend *backend)
{
    struct uring *u = uring_of(backend);
    struct io_uring next;
    uint32_t flags;
    int rc = create_ring(&next, u->entries, &flags);

    /* The next owner's ring first: the submitter of a ring cannot be changed, and without a ring
     * the queue would be of no use to anybody. */
    if (rc < 0)
        return rc;
    end_ring(u);
    take_ring(u, &next);
    wi_waker_disarm(&u->waker);
    wi_waker_drain(&u->waker);
    u->armed = false;
    atomic_store_explicit(&u->woken, 0, memory_order_relaxed);
    return 0;
}

/* ---- staging --------------------------------------------------------------------------- */

/* Room in the submission ring; hands over what is in it if there is none. */
static struct io_uring_sqe *take_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (WI_UNLIKELY(!sqe)) {
        count_call(u);
        (void)io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static void fill_sqe(struct uring *u, struct io_uring_sqe *sqe, const struct wi_op *op)
{
    bool fixed = (op->flags & WI_OP_FIXED_BUFFER) &&
                 op->addr - (uint64_t)(uintptr_t)u->region + op->len <= u->registered;
    uint8_t opcode = IORING_OP_NOP;

    switch ((enum wi_op_kind)op->kind) {
    case WI_OP_READ:
        opcode = fixed ? IORING_OP_READ_FIXED : IORING_OP_READ;
        break;
    case WI_OP_WRITE:
        opcode = fixed ? IORING_OP_WRITE_FIXED : IORING_OP_WRITE;
        break;
    case WI_OP_READV:
        opcode = IORING_OP_READV;
        break;
    case WI_OP_WRITEV:
        opcode = IORING_OP_WRITEV;
        break;
    case WI_OP_NONE:
    case WI_OP_CALL:
        WEIR_ASSERT(!"not a transfer");
    }
    /* Whole entry by hand: the previous user's fields must not shine through. */
    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = opcode;
    sqe->fd = op->fd;
    sqe->off = op->offset;
    sqe->addr = op->addr;
    sqe->len = op->len;
    if (op->fixed_file >= 0) {
        sqe->fd = op->fixed_file;
        sqe->flags = IOSQE_FIXED_FILE;
    }
    if (WI_UNLIKELY(op->flags & WI_OP_FORCE_ASYNC))
        sqe->flags |= IOSQE_ASYNC;
    if (op->flags & WI_OP_DONTCACHE)
        sqe->rw_flags = RWF_DONTCACHE;
    sqe->user_data = (uint64_t)(uintptr_t)op;
}

static int uring_start(struct wi_backend *backend, struct wi_op *op)
{
    struct uring *u = uring_of(backend);
    struct io_uring_sqe *sqe;

    op->backend = backend;
    if (op->kind == WI_OP_CALL) {
        wi_calls_start(&u->calls, op);
        return 0;
    }
    sqe = take_sqe(u);
    if (WI_UNLIKELY(!sqe))
        return -EAGAIN;
    fill_sqe(u, sqe, op);
    return 0;
}

static int uring_cancel(struct wi_backend *backend, struct wi_op *op)
{
    struct uring *u = uring_of(backend);
    struct io_uring_sqe *sqe;

    if (op->kind == WI_OP_CALL) {
        (void)wi_calls_cancel(op);
        return 0;
    }
    /* No room even after submitting: the kernel is short of memory. */
    sqe = take_sqe(u);
    if (!sqe)
        return -EAGAIN;
    io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)op, 0);
    sqe->user_data = TAG_CANCEL;
    return 0;
}

/* Have `count` wake polls armed. */
static void arm_polls(struct uring *u, uint32_t count)
{
    while (u->polls < count) {
        struct io_uring_sqe *sqe = take_sqe(u);

        if (!sqe)
            return;
        io_uring_prep_poll_multishot(sqe, u->waker.fd, POLLIN);
        sqe->user_data = TAG_WAKE;
        u->polls++;
    }
}

static void arm_waker(struct uring *u)
{
    wi_waker_arm(&u->waker);
    u->armed = true;
}

static void settle_waker(struct uring *u)
{
    if (!u->armed)
        return;
    u->armed = false;
    if (wi_waker_settle(&u->waker) > 0)
        count_call(u);
}

/* ---- turns ----------------------------------------------------------------------------- */

struct chain {
    struct wi_op *first;
    struct wi_op *last;
    uint32_t count;
};

static void add_to_chain(struct chain *chain, struct wi_op *first, struct wi_op *last,
                         uint32_t count)
{
    if (chain->last)
        chain->last->task.next = &first->task;
    else
        chain->first = first;
    chain->last = last;
    last->task.next = NULL;
    chain->count += count;
}

static void reap(struct uring *u, struct chain *chain)
{
    struct io_uring_cqe *cqe;
    unsigned int head;
    unsigned int seen = 0;

    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        uint64_t data = cqe->user_data;

        seen++;
        if (WI_LIKELY((data & TAG_MASK) == TAG_OP)) {
            struct wi_op *op = (struct wi_op *)(uintptr_t)data;

            op->result = cqe->res;
            add_to_chain(chain, op, op, 1);
        } else if ((data & TAG_MASK) == TAG_WAKE && !(cqe->flags & IORING_CQE_F_MORE)) {
            u->polls--;
        }
    }
    if (seen > 0)
        io_uring_cq_advance(&u->ring, seen);
    u->seen += seen;
}

static void collect(struct uring *u, struct chain *chain)
{
    struct wi_op *first;
    struct wi_op *last;
    uint32_t count;

    reap(u, chain);
    if (u->calls.outstanding > 0) {
        count = wi_calls_take(&u->calls, &first, &last);
        if (count > 0)
            add_to_chain(chain, first, last, count);
    }
}

/* Is there anything that only a system call would move? */
static bool needs_enter(struct uring *u)
{
    return io_uring_sq_ready(&u->ring) > 0 ||
           (IO_URING_READ_ONCE(*u->ring.sq.kflags) &
            (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

static int enter_without_waiting(struct uring *u)
{
    int rc;

    if (!needs_enter(u))
        return 0;
    count_call(u);
    rc = io_uring_sq_ready(&u->ring) > 0 ? io_uring_submit_and_get_events(&u->ring)
                                         : io_uring_get_events(&u->ring);
    return rc < 0 ? rc : 0;
}

/* Make the event loop come back. */
static void signal_self(struct uring *u)
{
    uint64_t one = 1;
    ssize_t put;

    count_call(u);
    put = write(u->event_fd, &one, sizeof(one));
    (void)put; /* cannot fail: the counter would have to reach 2^64 - 2 */
}

/* Submit, and wait for `need` completions or a wake. */
static int enter_and_wait(struct uring *u, uint32_t need, uint64_t until_ns,
                          struct chain *chain)
{
    struct io_uring_cqe *cqe;
    struct __kernel_timespec left = { 0 };
    int rc;

    if (need > WAKE_POLLS_MAX)
        need = WAKE_POLLS_MAX;
    arm_polls(u, need);
    wi_calls_want(&u->calls, 1);
    arm_waker(u);
    if (atomic_load_explicit(&u->woken, memory_order_seq_cst) || wi_calls_ready(&u->calls) > 0)
        return enter_without_waiting(u);
    count_call(u);
    u->seen = 0;
    if (until_ns == UINT64_MAX) {
        rc = io_uring_submit_and_wait(&u->ring, need);
    } else {
        uint64_t now_ns = wi_os_now(u->base.os);
        uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;

        left.tv_sec = (int64_t)(left_ns / WI_SEC_NS);
        left.tv_nsec = (int64_t)(left_ns % WI_SEC_NS);
        rc = io_uring_submit_and_wait_timeout(&u->ring, &cqe, need, &left, NULL);
    }
    if (rc < 0 && rc != -ETIME)
        return rc;
    /*
     * If it has submitted anything, the kernel says how much, and not that a signal ended the
     * wait; liburing then makes -ETIME of it. It was a signal if nothing at all has come, and
     * the time has not either.
     */
    reap(u, chain);
    return u->seen == 0 && io_uring_sq_ready(&u->ring) == 0 && wi_calls_ready(&u->calls) == 0 &&
                   (until_ns == UINT64_MAX || wi_os_now(u->base.os) < until_ns)
               ? -EINTR
               : 0;
}

/*
 * The owner goes back to its event loop: nothing may be left that raises no signal. Signals
 * of what is here already are taken back, then a last look makes sure.
 */
static void prepare_sleep(struct uring *u, struct chain *chain)
{
    uint64_t count;
    ssize_t got;

    count_call(u);
    got = read(u->event_fd, &count, sizeof(count));
    (void)got; /* EAGAIN: no signal */
    arm_waker(u);
    (void)enter_without_waiting(u);
    collect(u, chain);
    /* A wake during this turn may be for something that the queue had looked for before it. */
    if (atomic_exchange_explicit(&u->woken, 0, memory_order_seq_cst) || needs_enter(u) ||
        wi_calls_ready(&u->calls) > 0)
        signal_self(u);
}

/*
 * An exchange, and only if there is something to take: a plain store could land after a wake
 * that comes meanwhile, and cover it, while the queue's look for posts, made after it, had seen
 * nothing yet.
 */
static void forget_wake(struct uring *u)
{
    if (atomic_load_explicit(&u->woken, memory_order_relaxed))
        (void)atomic_exchange_explicit(&u->woken, 0, memory_order_acq_rel);
}

static int uring_turn(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                      struct wi_op **ret_done)
{
    struct uring *u = uring_of(backend);
    struct chain chain = { 0 };
    int rc;

    settle_waker(u);
    wi_calls_flush(&u->calls);
    collect(u, &chain);
    rc = chain.count < want ? enter_and_wait(u, want - chain.count, until_ns, &chain)
                            : enter_without_waiting(u);
    collect(u, &chain);
    if (WI_UNLIKELY(rc < 0)) {
        bool passing = rc == -EAGAIN || rc == -EBUSY || rc == -ENOMEM;

        if (passing && chain.count == 0) {
            /* The kernel is out of something. What is staged stays staged for the next turn;
             * a pause keeps that from being a busy loop. */
            struct timespec pause = { .tv_nsec = 50000 };

            (void)nanosleep(&pause, NULL);
        }
        if (passing || chain.count > 0)
            rc = 0;
    }

    settle_waker(u);
    /* Whoever woke us did it for something that the queue looks at before its next turn. */
    if (u->epoll_fd >= 0)
        prepare_sleep(u, &chain);
    else
        forget_wake(u);
    *ret_done = chain.first;
    return rc < 0 ? rc : (int)chain.count;
}

static void uring_wake(struct wi_backend *backend)
{
    struct uring *u = uring_of(backend);

    atomic_store_explicit(&u->woken, 1, memory_order_seq_cst);
    (void)wi_waker_wake(&u->waker);
}

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int uring_fd(struct wi_backend *backend)
{
    struct uring *u = uring_of(backend);

    int rc = 0;

    if (u->epoll_fd >= 0)
        return u->epoll_fd;
    u->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (u->epoll_fd < 0 || u->event_fd < 0)
        rc = -errno;
    if (rc == 0)
        rc = io_uring_register_eventfd(&u->ring, u->event_fd);
    if (rc == 0)
        rc = watch(u->epoll_fd, u->event_fd);
    if (rc == 0)
        rc = watch(u->epoll_fd, u->waker.fd);
    if (rc < 0) {
        close_loop_fds(u);
        return rc;
    }
    signal_self(u); /* what went on before is looked at by the first turn */
    return u->epoll_fd;
}

static int uring_set_file(struct wi_backend *backend, uint32_t slot, int fd)
{
    struct uring *u = uring_of(backend);
    int rc;

    if (!u->has_files)
        return -EOPNOTSUPP;
    count_call(u);
    rc = io_uring_register_files_update(&u->ring, slot, &fd, 1);
    return rc < 0 ? rc : 0;
}

static void uring_stats(struct wi_backend *backend, struct wi_backend_stats *ret_stats)
{
    struct uring *u = uring_of(backend);

    ret_stats->system_calls = atomic_load_explicit(&u->system_calls, memory_order_relaxed) +
                              atomic_load_explicit(&u->calls.wakes, memory_order_relaxed);
}

static void uring_close(struct wi_backend *backend)
{
    struct uring *u = uring_of(backend);

    end_ring(u);
    wi_calls_fini(&u->calls);
    wi_waker_fini(&u->waker);
    free(u);
}

static const struct wi_backend_ops uring_backend_ops = {
    .name = "uring",
    .bind = uring_bind,
    .unbind = uring_unbind,
    .start = uring_start,
    .turn = uring_turn,
    .cancel = uring_cancel,
    .wake = uring_wake,
    .fd = uring_fd,
    .set_file = uring_set_file,
    .stats = uring_stats,
    .close = uring_close,
};

int wi_backend_uring_open(const struct wi_backend_options *options,
                          struct wi_backend **ret_backend)
{
    struct uring *u = aligned_alloc(WI_CACHE_LINE, (sizeof(*u) + WI_CACHE_LINE - 1) &
                                                       ~(size_t)(WI_CACHE_LINE - 1));
    struct io_uring ring;
    uint32_t flags;
    int rc;

    if (!u)
        return -ENOMEM;
    memset(u, 0, sizeof(*u));
    u->base = (struct wi_backend){
        .ops = &uring_backend_ops, .os = options->os, .pool = options->pool, .calls = &u->calls
    };
    u->entries = (uint32_t)wi_max_u64(options->depth, ENTRIES_LEAST);
    u->file_slots = options->file_slots;
    u->region = options->region;
    u->region_size = options->region_size;
    u->event_fd = -1;
    u->epoll_fd = -1;
    rc = wi_waker_init(&u->waker);
    if (rc < 0)
        goto fail;
    wi_calls_init(&u->calls, options->pool, &u->waker, NULL);
    rc = create_ring(&ring, u->entries, &flags);
    if (rc < 0) {
        wi_waker_fini(&u->waker);
        goto fail;
    }
    take_ring(u, &ring);
    *ret_backend = &u->base;
    return 0;

fail:
    free(u);
    return rc;
}

/* ---- the probe ------------------------------------------------------------------------- */

static int read_number(const char *path, long *ret_value)
{
    FILE *file = fopen(path, "re");
    int got;

    if (!file)
        return -errno;
    got = fscanf(file, "%ld", ret_value);
    (void)fclose(file);
    return got == 1 ? 0 : -EINVAL;
}

static void explain_setup(int rc, struct wi_uring_probe *probe)
{
    long disabled = 0;

    (void)read_number("/proc/sys/kernel/io_uring_disabled", &disabled);
    snprintf(probe->why, sizeof(probe->why), "io_uring_setup: %s", weir_code_name(rc));
    switch (-rc) {
    case EPERM:
        if (disabled > 0) {
            snprintf(probe->why, sizeof(probe->why),
                     "io_uring_setup: EPERM, kernel.io_uring_disabled is %ld", disabled);
            snprintf(probe->cure, sizeof(probe->cure),
                     "as root: sysctl kernel.io_uring_disabled=0");
        } else {
            snprintf(probe->cure, sizeof(probe->cure),
                     "a seccomp filter forbids it, as container engines do: allow "
                     "io_uring_setup, io_uring_enter and io_uring_register in its profile");
        }
        break;
    case ENOSYS:
        snprintf(probe->cure, sizeof(probe->cure),
                 "use Linux 5.15 or newer, or, if this is one, allow io_uring_setup, "
                 "io_uring_enter and io_uring_register in the seccomp profile");
        break;
    case ENOMEM:
        snprintf(probe->cure, sizeof(probe->cure),
                 "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)");
        break;
    case EMFILE:
    case ENFILE:
        snprintf(probe->cure, sizeof(probe->cure),
                 "raise the limit of open files (ulimit -n, LimitNOFILE=)");
        break;
    default:
        snprintf(probe->cure, sizeof(probe->cure), "use Linux 5.15 or newer");
        break;
    }
}

/* Some systems accept the set-up but not the operations: do a real read. */
static int read_through(struct io_uring *ring)
{
    static const char text[] = "weir";
    char buf[sizeof(text)] = { 0 };
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    int fd = memfd_create("weir-probe", MFD_CLOEXEC);
    int rc;

    if (fd < 0)
        return -errno;
    if (pwrite(fd, text, sizeof(text), 0) != (ssize_t)sizeof(text)) {
        rc = -EIO;
        goto out;
    }
    sqe = io_uring_get_sqe(ring);
    if (!sqe) {
        rc = -EBUSY;
        goto out;
    }
    io_uring_prep_read(sqe, fd, buf, sizeof(buf), 0);
    rc = io_uring_submit_and_wait(ring, 1);
    if (rc < 0)
        goto out;
    rc = io_uring_peek_cqe(ring, &cqe);
    if (rc < 0)
        goto out;
    rc = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    if (rc >= 0)
        rc = rc == (int)sizeof(buf) && memcmp(buf, text, sizeof(text)) == 0 ? 0 : -EIO;
out:
    close(fd);
    return rc;
}

void wi_uring_probe(void *region, size_t region_size, struct wi_uring_probe *ret_probe)
{
    struct io_uring ring;
    struct iovec iov = { region, region_size };
    int rc;

    memset(ret_probe, 0, sizeof(*ret_probe));
    rc = create_ring(&ring, 2, &ret_probe->ring_flags);
    if (rc < 0) {
        ret_probe->code = rc;
        explain_setup(rc, ret_probe);
        return;
    }
    rc = enable_ring(&ring);
    if (rc == 0)
        rc = read_through(&ring);
    if (rc == 0 && region)
        ret_probe->registers_region = io_uring_register_buffers(&ring, &iov, 1) == 0;
    io_uring_queue_exit(&ring);
    ret_probe->code = rc;
    if (rc == 0) {
        snprintf(ret_probe->why, sizeof(ret_probe->why), "io_uring works here");
        return;
    }
    snprintf(ret_probe->why, sizeof(ret_probe->why),
             "io_uring can be set up, but a read through it fails: %s", weir_code_name(rc));
    snprintf(ret_probe->cure, sizeof(ret_probe->cure), "%s",
             rc == -EMFILE || rc == -ENFILE
                 ? "raise the limit of open files (ulimit -n, LimitNOFILE=)"
                 : "allow io_uring_enter and io_uring_register in the sandbox's profile");
}
