/* SPDX-License-Identifier: MIT */
/*
 * fault_backend.c - a backend of the fault injector, around another one
 *
 * Reads and writes go to the inner backend as private operations, because their length,
 * memory or result may differ from what the caller sees. WI_OP_CALL goes through as it is and
 * is not counted: what it does, it does through the wrapped table.
 *
 * An operation held back has not been given to the inner backend yet; a turn that waits is
 * bounded by the time of the next one. The descriptor is an epoll over the inner one and a
 * timer for that time; a release wakes the inner backend, so that it ends waits and makes
 * the descriptor readable.
 */
#include "fault_internal.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

/*
 * The states of an operation, and the only functions that move it between them:
 *
 *   HELD  -> INNER   release_due     its time has come
 *   HELD  -> READY   release_due, fault_cancel
 *   INNER -> READY   take_inner
 *   READY -> (free)  fault_turn, which returns the caller's operation
 *
 * A new one is HELD with a due time in the past if nothing holds it back, and moves on at once.
 */
enum held_state {
    HELD,
    INNER,
    READY
};

struct held_op {
    struct wi_op op;            /* private: given to the inner backend */
    struct wi_op *caller;       /* its task.next points at op.task, for cancel */
    struct wi_list node;        /* HELD: on `held`, in order of start */
    struct held_op *next_spare; /* READY */
    struct verdict verdict;
    enum held_state state;
    uint64_t due_ns;         /* UINT64_MAX: when released */
    void *memory;            /* a clipped list or a spoilt copy; free it */
    struct iovec single;     /* the caller's buffer, if it is one */
    const struct iovec *iov; /* the caller's buffers */
    uint32_t iov_count;
};

struct fault_backend {
    struct wi_backend backend;
    struct wi_backend_ops ops; /* of this instance: set_file only where the inner one has it */
    /* Set at wrap. */
    struct wi_fault_plan *plan;
    struct wi_backend *inner;

    /* Owner thread only. */
    struct wi_list held;
    struct held_op *spare; /* to use again */
    uint32_t inner_started;
    struct wi_op *done_first; /* the caller's */
    struct wi_op *done_last;
    uint32_t done_count;
    struct wi_op **shuffled; /* room to shuffle in */
    size_t shuffled_room;
    int epoll_fd; /* -1 until `fd` is called */
    int timer_fd;
    uint64_t timer_ns; /* what timer_fd is set to; UINT64_MAX: not */

    struct fault_wrapped wrapped; /* on the plan's list */
};

static struct fault_backend *fault_of(struct wi_backend *backend)
{
    return WI_CONTAINER_OF(backend, struct fault_backend, backend);
}

static uint64_t fault_now(struct fault_backend *fault)
{
    return wi_os_now(fault->plan->inner);
}

static void append_done(struct fault_backend *fault, struct wi_op *op)
{
    op->task.next = NULL;
    if (fault->done_first)
        fault->done_last->task.next = &op->task;
    else
        fault->done_first = op;
    fault->done_last = op;
    fault->done_count++;
}

/* The operation is over: what the caller sees, and the memory goes back. */
static void finish(struct fault_backend *fault, struct held_op *held, int64_t result)
{
    struct wi_op *caller = held->caller;

    held->state = READY;
    caller->result = wi_fault_conclude(fault->plan, &held->verdict, result);
    caller->busy = 0;
    free(held->memory);
    held->memory = NULL;
    held->next_spare = fault->spare;
    fault->spare = held;
    append_done(fault, caller);
}

/* Prepare the private operation as the verdict says. Returns 0 or -ENOMEM. */
static int shape(struct held_op *held)
{
    const struct wi_fault_rule *rule = &held->verdict.rule;
    struct wi_op *op = &held->op;
    uint64_t len = wi_fault_clip_len(&held->verdict, held->verdict.record.len);
    bool is_vector = op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV;
    bool is_write = op->kind == WI_OP_WRITE || op->kind == WI_OP_WRITEV;

    if (rule->corrupt && is_write) {
        held->memory = wi_fault_spoilt_copy(held->iov, held->iov_count, len);
        op->kind = WI_OP_WRITE;
        op->flags &= (uint8_t)~WI_OP_FIXED_BUFFER;
        op->addr = (uintptr_t)held->memory;
        op->len = (uint32_t)len;
        return held->memory ? 0 : -ENOMEM;
    }
    if (len == held->verdict.record.len)
        return 0;
    if (is_vector) {
        held->memory = wi_fault_clip(held->iov, held->iov_count, len, &op->len);
        op->addr = (uintptr_t)held->memory;
        return held->memory ? 0 : -ENOMEM;
    }
    op->len = (uint32_t)len;
    return 0;
}

/* Returns false if the inner backend has no room now. */
static bool pass_on(struct fault_backend *fault, struct held_op *held)
{
    int rc = 0;

    if (!wi_fault_is_to_do(&held->verdict)) {
        finish(fault, held, 0);
        return true;
    }
    rc = held->memory ? 0 : shape(held);
    if (rc == 0)
        rc = fault->inner->ops->start(fault->inner, &held->op);
    if (rc == -EAGAIN)
        return false;
    if (rc < 0) {
        finish(fault, held, rc);
        return true;
    }
    held->state = INNER;
    fault->inner_started++;
    return true;
}

static bool is_due(struct fault_backend *fault, const struct held_op *held, uint64_t now_ns)
{
    if (held->due_ns == UINT64_MAX)
        return wi_fault_is_released(fault->plan, &held->verdict);
    return held->due_ns <= now_ns;
}

static void release_due(struct fault_backend *fault)
{
    struct wi_list *node = fault->held.next;
    uint64_t now_ns;

    if (node == &fault->held)
        return;
    now_ns = fault_now(fault);
    while (node != &fault->held) {
        struct held_op *held = WI_CONTAINER_OF(node, struct held_op, node);

        node = node->next;
        if (!is_due(fault, held, now_ns))
            continue;
        wi_list_remove(&held->node);
        if (!pass_on(fault, held)) {
            wi_list_insert_before(&held->node, node);
            return;
        }
    }
}

static uint64_t next_due(struct fault_backend *fault)
{
    uint64_t due_ns = UINT64_MAX;
    struct wi_list *node;

    list_for_each(node, &fault->held) {
        struct held_op *held = WI_CONTAINER_OF(node, struct held_op, node);

        due_ns = wi_min_u64(due_ns, held->due_ns == UINT64_MAX &&
                                            wi_fault_is_released(fault->plan, &held->verdict)
                                        ? 0
                                        : held->due_ns);
    }
    return due_ns;
}

static struct held_op *take_spare(struct fault_backend *fault)
{
    struct held_op *held = fault->spare;

    if (!held)
        return malloc(sizeof(*held));
    fault->spare = held->next_spare;
    return held;
}

static int fault_start(struct wi_backend *backend, struct wi_op *op)
{
    struct fault_backend *fault = fault_of(backend);
    bool is_read = op->kind == WI_OP_READ || op->kind == WI_OP_READV;
    bool is_vector = op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV;
    struct held_op *held;
    int rc;

    if (op->kind == WI_OP_CALL) {
        rc = fault->inner->ops->start(fault->inner, op);
        fault->inner_started += rc == 0;
        return rc;
    }
    held = take_spare(fault);
    if (!held)
        return -EAGAIN;
    *held = (struct held_op){ .op = *op, .caller = op, .state = HELD };
    wi_list_init(&held->node);
    held->single =
        (struct iovec){ .iov_base = (void *)(uintptr_t)op->addr, .iov_len = op->len };
    held->iov = is_vector ? (const struct iovec *)(uintptr_t)op->addr : &held->single;
    held->iov_count = is_vector ? op->len : 1;
    wi_fault_judge(fault->plan, is_read ? WI_FAULT_READ : WI_FAULT_WRITE, op->fd, op->offset,
                   wi_fault_sum(held->iov, held->iov_count), &held->verdict);
    op->backend = backend;
    op->busy = 1;
    op->task.next = &held->op.task;
    if (held->verdict.rule.delay_ns > 0)
        held->due_ns = wi_add_sat(fault_now(fault), held->verdict.rule.delay_ns);
    if (held->due_ns > 0 || !pass_on(fault, held))
        wi_list_push_back(&fault->held, &held->node);
    return 0;
}

static int fault_cancel(struct wi_backend *backend, struct wi_op *op)
{
    struct fault_backend *fault = fault_of(backend);
    struct held_op *held;

    if (op->kind == WI_OP_CALL) {
        return fault->inner->ops->cancel(fault->inner, op);
    }
    if (!op->busy)
        return 0; /* over, and returned by the next turn */
    held = WI_CONTAINER_OF(op->task.next, struct held_op, op.task);
    if (held->state == INNER) {
        return fault->inner->ops->cancel(fault->inner, &held->op);
    } else if (held->verdict.rule.cancellable) {
        wi_list_remove(&held->node);
        held->verdict.rule.error = -ECANCELED;
        finish(fault, held, 0);
        /* Outside turn the descriptor has to tell. */
        if (fault->epoll_fd >= 0)
            fault->inner->ops->wake(fault->inner);
    }
    return 0;
}

/* What the inner backend returned becomes the caller's. */
static void take_inner(struct fault_backend *fault, struct wi_op *done)
{
    while (done) {
        struct wi_task *next = done->task.next;

        fault->inner_started--;
        if (done->kind == WI_OP_CALL) {
            append_done(fault, done);
        } else {
            struct held_op *held = WI_CONTAINER_OF(done, struct held_op, op);
            enum wi_fault_kind kind = held->verdict.record.kind;

            if (held->verdict.rule.corrupt && kind == WI_FAULT_READ)
                wi_fault_spoil(held->iov, held->iov_count, done->result);
            finish(fault, held, done->result);
        }
        done = next ? WI_CONTAINER_OF(next, struct wi_op, task) : NULL;
    }
}

/* Put the completions of this turn into a random order, if the plan wants that. */
static void shuffle(struct fault_backend *fault)
{
    uint32_t count = fault->done_count;
    struct wi_task *task;

    if (count < 2 || wi_fault_next_chance(fault->plan) == 0)
        return;
    if (count > fault->shuffled_room) {
        /* NOLINTNEXTLINE(bugprone-sizeof-expression): it is an array of pointers. */
        struct wi_op **more = realloc(fault->shuffled, count * sizeof(*more));

        if (!more)
            return; /* then in order: allowed too */
        fault->shuffled = more;
        fault->shuffled_room = count;
    }
    /* R. Fisher and F. Yates, in the form that builds the result from the front. */
    task = &fault->done_first->task;
    for (uint32_t i = 0; i < count; i++, task = task->next) {
        uint32_t j = (uint32_t)(wi_fault_next_chance(fault->plan) % (i + 1));

        fault->shuffled[i] = fault->shuffled[j];
        fault->shuffled[j] = WI_CONTAINER_OF(task, struct wi_op, task);
    }
    fault->done_first = NULL;
    fault->done_count = 0;
    for (uint32_t i = 0; i < count; i++)
        append_done(fault, fault->shuffled[i]);
}

/* Returns 0 or a negative errno. */
static int set_timer(struct fault_backend *fault)
{
    struct itimerspec time = { 0 };
    uint64_t due_ns = next_due(fault);

    if (due_ns == fault->timer_ns)
        return 0;
    if (due_ns != UINT64_MAX) {
        uint64_t at_ns = wi_max_u64(due_ns, 1); /* 0 would switch it off */

        time.it_value.tv_sec = (time_t)(at_ns / WI_SEC_NS);
        time.it_value.tv_nsec = (long)(at_ns % WI_SEC_NS);
    }
    if (timerfd_settime(fault->timer_fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
        return -errno;
    fault->timer_ns = due_ns;
    return 0;
}

static int fault_turn(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                      struct wi_op **ret_done)
{
    struct fault_backend *fault = fault_of(backend);
    struct wi_backend *inner = fault->inner;
    bool is_last = false;
    uint32_t count;
    int rc;

    do {
        struct wi_op *done = NULL;
        uint64_t releases = atomic_load_explicit(&fault->plan->releases, memory_order_acquire);
        uint64_t wait_ns = until_ns;
        uint32_t missing;

        release_due(fault);
        missing = want > fault->done_count ? want - fault->done_count : 0;
        if (missing > 0) {
            wait_ns = wi_min_u64(until_ns, next_due(fault));
            /* Nothing started in there: it waits to be woken, and for our time. */
            missing = (uint32_t)wi_min_u64(missing, fault->inner_started);
            if (missing == 0)
                missing = 1;
        } else {
            is_last = true;
        }
        rc = inner->ops->turn(inner, missing, wait_ns, &done);
        if (rc > 0)
            take_inner(fault, done);
        if (rc < 0 || until_ns <= fault_now(fault)) {
            is_last = true;
        } else if ((uint32_t)rc < missing && wait_ns > fault_now(fault)) {
            /* Woken: by the caller's friends, or by a release, which has more for us. */
            is_last = is_last || atomic_load_explicit(&fault->plan->releases,
                                                      memory_order_acquire) == releases;
            want = 0;
        }
    } while (!is_last);

    if (fault->epoll_fd >= 0) {
        int timer = set_timer(fault);

        if (timer < 0)
            rc = timer;
    }
    shuffle(fault);
    count = fault->done_count;
    if (count == 0)
        return rc < 0 ? rc : 0;
    *ret_done = fault->done_first;
    fault->done_first = NULL;
    fault->done_count = 0;
    return (int)count;
}

static int fault_bind(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    return fault->inner->ops->bind(fault->inner);
}

static void close_descriptor(struct fault_backend *fault)
{
    if (fault->epoll_fd >= 0)
        close(fault->epoll_fd);
    if (fault->timer_fd >= 0)
        close(fault->timer_fd);
    fault->epoll_fd = -1;
    fault->timer_fd = -1;
    fault->timer_ns = UINT64_MAX;
}

static int fault_unbind(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    int rc = fault->inner->ops->unbind(fault->inner);

    if (rc == 0)
        close_descriptor(fault);
    return rc;
}

static void fault_wake(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    fault->inner->ops->wake(fault->inner);
}

static int fault_fd(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);
    struct epoll_event event = { .events = EPOLLIN };
    int inner_fd;
    int code;

    if (fault->epoll_fd >= 0)
        return fault->epoll_fd;
    inner_fd = fault->inner->ops->fd(fault->inner);
    if (inner_fd < 0)
        return inner_fd;
    fault->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fault->timer_fd < 0)
        return -errno;
    fault->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (fault->epoll_fd < 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, fault->timer_fd, &event) < 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, inner_fd, &event) < 0)
        code = -errno;
    else
        code = set_timer(fault);
    if (code < 0) {
        close_descriptor(fault);
        return code;
    }
    /* What is done already is returned by a turn that this asks for. */
    if (fault->done_first)
        fault->inner->ops->wake(fault->inner);
    return fault->epoll_fd;
}

static int fault_set_file(struct wi_backend *backend, uint32_t slot, int fd)
{
    struct fault_backend *fault = fault_of(backend);

    return fault->inner->ops->set_file(fault->inner, slot, fd);
}

static void fault_stats(struct wi_backend *backend, struct wi_backend_stats *ret_stats)
{
    struct fault_backend *fault = fault_of(backend);

    fault->inner->ops->stats(fault->inner, ret_stats);
}

static void fault_close_backend(struct wi_backend *backend)
{
    struct fault_backend *fault;
    struct held_op *held;

    if (!backend)
        return;
    fault = fault_of(backend);
    WEIR_ASSERT(wi_list_empty(&fault->held) && fault->inner_started == 0 && !fault->done_first);
    wi_mutex_lock(&fault->plan->mu);
    wi_list_remove(&fault->wrapped.node);
    wi_mutex_unlock(&fault->plan->mu);
    close_descriptor(fault);
    fault->inner->ops->close(fault->inner);
    while ((held = fault->spare) != NULL) {
        fault->spare = held->next_spare;
        free(held);
    }
    free(fault->shuffled);
    free(fault);
}

static const struct wi_backend_ops fault_backend_ops = {
    .name = "fault",
    .bind = fault_bind,
    .unbind = fault_unbind,
    .start = fault_start,
    .turn = fault_turn,
    .cancel = fault_cancel,
    .wake = fault_wake,
    .fd = fault_fd,
    .set_file = fault_set_file,
    .stats = fault_stats,
    .close = fault_close_backend,
};

int wi_fault_wrap(struct wi_fault_plan *plan, struct wi_backend *inner,
                  struct wi_backend **ret_backend)
{
    struct fault_backend *fault = calloc(1, sizeof(*fault));

    if (!fault)
        return -ENOMEM;
    fault->ops = fault_backend_ops;
    if (!inner->ops->set_file)
        fault->ops.set_file = NULL;
    fault->backend.ops = &fault->ops;
    fault->backend.os = inner->os;
    fault->backend.pool = inner->pool;
    fault->plan = plan;
    fault->inner = inner;
    wi_list_init(&fault->held);
    fault->wrapped.inner = inner;
    fault->epoll_fd = -1;
    fault->timer_fd = -1;
    fault->timer_ns = UINT64_MAX;
    wi_mutex_lock(&plan->mu);
    wi_list_push_back(&plan->wrapped, &fault->wrapped.node);
    wi_mutex_unlock(&plan->mu);
    *ret_backend = &fault->backend;
    return 0;
}
