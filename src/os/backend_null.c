/* SPDX-License-Identifier: MIT */
/*
 * backend_null.c - completes without doing anything, at once or by script
 *
 * Without a script it is there to measure our own cost: `start` writes the result and links
 * the operation to a chain, `turn` hands over the chain. Nothing else may creep in there.
 *
 * With a script each operation gets a time at which it is due, by the script's seed. Those
 * that wait are in a binary heap, ordered by due time and then by start; hanging ones are due
 * never. A cancel of a hanging operation ends it; of a delayed one, chance decides, as with a
 * device that has or has not begun.
 *
 * With a device of the test's own (struct wi_null_device) the test says when each operation is
 * due and what comes of it, and a wait in `turn` moves the test's clock instead of sleeping.
 * Only a wait without an end sleeps: another thread has to wake it. The descriptor knows
 * nothing of that clock.
 *
 * Descriptor   an epoll over the waker and a timer for the earliest due time, so that it is
 *              readable exactly when turn has something to return.
 */
#include "backend.h"
#include "waker.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct waiting {
    uint64_t due_ns;
    uint64_t order;
    struct wi_op *op;
    int64_t result;
};

struct null_backend {
    struct wi_backend backend;
    /* Set at open. */
    bool scripted;
    struct wi_null_script script;

    /* Owner thread only. */
    struct wi_op *done_first;
    struct wi_op *done_last;
    uint32_t done_count;
    struct wi_op *call_first; /* WI_OP_CALL, to be run by turn */
    struct wi_op *call_last;
    struct waiting *heap;
    uint32_t heap_count;
    uint32_t heap_room;
    uint64_t started;
    uint64_t chance; /* state of the script's random numbers */
    bool announced;  /* the descriptor is readable because of a wake */
    int epoll_fd;    /* -1 until `fd` is called */
    int timer_fd;
    uint64_t timer_ns; /* what timer_fd is set to; UINT64_MAX: not */

    _Atomic uint64_t system_calls; /* relaxed */
    /* Atomic: seq_cst, pairs with the waker's `armed`. */
    _Alignas(WI_CACHE_LINE) _Atomic uint32_t woken;
    struct wi_waker waker;
};

static struct null_backend *null_of(struct wi_backend *backend)
{
    return WI_CONTAINER_OF(backend, struct null_backend, backend);
}

static void count_call(struct null_backend *null)
{
    atomic_fetch_add_explicit(&null->system_calls, 1, memory_order_relaxed);
}

/* SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014). */
static uint64_t next_random(struct null_backend *null)
{
    uint64_t z = null->chance += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- the heap ---------------------------------------------------------------------------- */

static bool is_before(const struct waiting *a, const struct waiting *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void sift_up(struct null_backend *null, uint32_t index)
{
    struct waiting *heap = null->heap;
    struct waiting item = heap[index];

    while (index > 0 && is_before(&item, &heap[(index - 1) / 2])) {
        heap[index] = heap[(index - 1) / 2];
        index = (index - 1) / 2;
    }
    heap[index] = item;
}

static void sift_down(struct null_backend *null, uint32_t index)
{
    struct waiting *heap = null->heap;
    struct waiting item = heap[index];

    for (;;) {
        uint32_t child = 2 * index + 1;

        if (child >= null->heap_count)
            break;
        if (child + 1 < null->heap_count && is_before(&heap[child + 1], &heap[child]))
            child++;
        if (!is_before(&heap[child], &item))
            break;
        heap[index] = heap[child];
        index = child;
    }
    heap[index] = item;
}

static struct waiting remove_waiting(struct null_backend *null, uint32_t index)
{
    struct waiting item = null->heap[index];

    null->heap_count--;
    if (index < null->heap_count) {
        null->heap[index] = null->heap[null->heap_count];
        sift_down(null, index);
        sift_up(null, index);
    }
    return item;
}

static uint64_t next_due(const struct null_backend *null)
{
    return null->heap_count > 0 ? null->heap[0].due_ns : UINT64_MAX;
}

/* ---- operations -------------------------------------------------------------------------- */

static void finish(struct null_backend *null, struct wi_op *op, int64_t result)
{
    op->result = result;
    op->busy = 0;
    op->task.next = NULL;
    if (null->done_first)
        null->done_last->task.next = &op->task;
    else
        null->done_first = op;
    null->done_last = op;
    null->done_count++;
}

static int64_t sum_iovecs(const struct wi_op *op)
{
    const struct iovec *iov = (const struct iovec *)(uintptr_t)op->addr;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < op->len; i++)
        sum += iov[i].iov_len;
    return (int64_t)sum;
}

static void add_waiting(struct null_backend *null, struct wi_op *op, uint64_t due_ns,
                        int64_t result)
{
    null->heap[null->heap_count] = (struct waiting){
        .due_ns = due_ns,
        .order = null->started++,
        .op = op,
        .result = result,
    };
    sift_up(null, null->heap_count++);
}

static int start_scripted(struct null_backend *null, struct wi_op *op, int64_t result)
{
    const struct wi_null_script *script = &null->script;
    uint64_t range = script->delay_max_ns - script->delay_min_ns;
    uint64_t delay = script->delay_min_ns;

    if (null->heap_count == null->heap_room)
        return -EAGAIN;
    if (script->device) {
        uint64_t now_ns = wi_os_now(null->backend.os);

        add_waiting(null, op, script->device->start(script->device, op, now_ns), 0);
        return 0;
    }
    if (range > 0)
        delay += next_random(null) % (range + 1 == 0 ? range : range + 1);
    if ((next_random(null) & 1023) < script->fail_per_1024)
        result = script->fail_with;
    if ((next_random(null) & 1023) < script->hang_per_1024)
        delay = UINT64_MAX;
    if (delay == 0) {
        finish(null, op, result);
        return 0;
    }
    add_waiting(null, op, wi_add_sat(wi_os_now(null->backend.os), delay), result);
    return 0;
}

static int null_start(struct wi_backend *backend, struct wi_op *op)
{
    struct null_backend *null = null_of(backend);
    int64_t result = op->len;

    op->backend = backend;
    op->busy = 1;
    if (WI_UNLIKELY(op->kind >= WI_OP_READV)) {
        if (op->kind == WI_OP_CALL) {
            op->task.next = NULL;
            if (null->call_first)
                null->call_last->task.next = &op->task;
            else
                null->call_first = op;
            null->call_last = op;
            return 0;
        }
        result = sum_iovecs(op);
    }
    if (WI_UNLIKELY(null->scripted))
        return start_scripted(null, op, result);
    finish(null, op, result);
    return 0;
}

static void run_calls(struct null_backend *null)
{
    while (null->call_first) {
        struct wi_op *op = null->call_first;

        null->call_first =
            op->task.next ? WI_CONTAINER_OF(op->task.next, struct wi_op, task) : NULL;
        finish(null, op, ((wi_op_call_fn)(uintptr_t)op->addr)(op));
    }
}

static void collect_due(struct null_backend *null)
{
    uint64_t now_ns;

    if (null->heap_count == 0)
        return;
    now_ns = wi_os_now(null->backend.os);
    while (null->heap_count > 0 && null->heap[0].due_ns <= now_ns &&
           null->heap[0].due_ns != UINT64_MAX) {
        struct waiting item = remove_waiting(null, 0);

        if (null->script.device)
            item.result = null->script.device->end(null->script.device, item.op, item.result);
        finish(null, item.op, item.result);
    }
}

static int null_cancel(struct wi_backend *backend, struct wi_op *op)
{
    struct null_backend *null = null_of(backend);

    for (uint32_t i = 0; i < null->heap_count; i++) {
        if (null->heap[i].op != op)
            continue;
        if (null->heap[i].due_ns == UINT64_MAX || next_random(null) & 1) {
            null->heap[i].result = -ECANCELED;
            null->heap[i].due_ns = 0;
            sift_up(null, i);
        }
        break;
    }
    /* Outside turn the descriptor has to tell. */
    if (null->epoll_fd >= 0 && next_due(null) == 0 && wi_waker_wake(&null->waker))
        count_call(null);
    return 0;
}

/* ---- turn -------------------------------------------------------------------------------- */

static int sleep_until(struct null_backend *null, uint64_t until_ns)
{
    struct wi_null_device *device = null->script.device;

    if (device && until_ns != UINT64_MAX) {
        wi_waker_disarm(&null->waker);
        device->wait(device, until_ns);
        return 0;
    }
    count_call(null);
    return wi_waker_wait(&null->waker, 0, until_ns);
}

/* Wait until `want` have finished, `wake` was called, or the time has come: 0; or -EINTR. */
static int wait_for(struct null_backend *null, uint32_t want, uint64_t until_ns)
{
    while (null->done_count < want) {
        uint64_t due_ns = next_due(null);
        int code;

        wi_waker_arm_sleep(&null->waker);
        if (atomic_load_explicit(&null->woken, memory_order_seq_cst)) {
            wi_waker_disarm(&null->waker);
            atomic_exchange_explicit(&null->woken, 0, memory_order_acquire);
            return 0;
        }
        code = sleep_until(null, wi_min_u64(due_ns, until_ns));
        collect_due(null);
        if (code < 0 || (code == 0 && until_ns <= due_ns))
            return code;
    }
    return 0;
}

/* Returns 0 or a negative errno. */
static int set_timer(struct null_backend *null, uint64_t due_ns)
{
    struct itimerspec time = { 0 };

    if (due_ns == null->timer_ns)
        return 0;
    if (due_ns != UINT64_MAX) {
        /* 0 would switch it off, and times past the clock's range are never. */
        due_ns = wi_max_u64(due_ns, 1);
        time.it_value.tv_sec = (time_t)(due_ns / WI_SEC_NS);
        time.it_value.tv_nsec = (long)(due_ns % WI_SEC_NS);
    }
    count_call(null);
    if (timerfd_settime(null->timer_fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
        return -errno;
    null->timer_ns = due_ns;
    return 0;
}

/* The owner is about to leave. A timer set anew, or off, is no longer readable. */
static int arm_descriptor(struct null_backend *null)
{
    wi_waker_arm(&null->waker);
    if (atomic_load_explicit(&null->woken, memory_order_seq_cst)) {
        atomic_exchange_explicit(&null->woken, 0, memory_order_acquire);
        null->announced = true;
        if (wi_waker_wake(&null->waker))
            count_call(null);
    }
    return set_timer(null, next_due(null));
}

static int null_turn(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                     struct wi_op **ret_done)
{
    struct null_backend *null = null_of(backend);
    uint32_t count;
    int code = 0;

    if (WI_UNLIKELY(null->epoll_fd >= 0)) {
        if (wi_waker_settle(&null->waker) > 0)
            count_call(null);
        if (null->announced)
            want = 0; /* woken: this turn does not wait */
        null->announced = false;
    }
    run_calls(null);
    collect_due(null);
    if (null->done_count < want)
        code = wait_for(null, want, until_ns);
    if (WI_UNLIKELY(null->epoll_fd >= 0)) {
        int armed = arm_descriptor(null);

        if (armed < 0)
            code = armed;
    }
    count = null->done_count;
    if (count == 0)
        return code;
    *ret_done = null->done_first;
    null->done_first = NULL;
    null->done_count = 0;
    return (int)count;
}

static void null_wake(struct wi_backend *backend)
{
    struct null_backend *null = null_of(backend);

    atomic_store_explicit(&null->woken, 1, memory_order_seq_cst);
    if (wi_waker_wake(&null->waker))
        count_call(null);
}

static void close_descriptor(struct null_backend *null)
{
    if (null->epoll_fd >= 0)
        close(null->epoll_fd);
    if (null->timer_fd >= 0)
        close(null->timer_fd);
    null->epoll_fd = -1;
    null->timer_fd = -1;
    null->timer_ns = UINT64_MAX;
    null->announced = false;
}

static int null_fd(struct wi_backend *backend)
{
    struct null_backend *null = null_of(backend);
    struct epoll_event event = { .events = EPOLLIN };
    int code;

    if (null->epoll_fd >= 0)
        return null->epoll_fd;
    null->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (null->timer_fd < 0)
        return -errno;
    null->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (null->epoll_fd < 0 ||
        epoll_ctl(null->epoll_fd, EPOLL_CTL_ADD, null->timer_fd, &event) < 0 ||
        epoll_ctl(null->epoll_fd, EPOLL_CTL_ADD, null->waker.fd, &event) < 0) {
        code = -errno;
        close_descriptor(null);
        return code;
    }
    code = arm_descriptor(null);
    if (code < 0) {
        close_descriptor(null);
        return code;
    }
    /* What is done already is returned by a turn that this asks for. */
    if (null->done_first || null->call_first)
        wi_waker_wake(&null->waker);
    return null->epoll_fd;
}

static int null_bind(struct wi_backend *backend)
{
    (void)backend;
    return 0;
}

/* The descriptor's upkeep ends here. A write that is still on its way stays owed. */
static int null_unbind(struct wi_backend *backend)
{
    struct null_backend *null = null_of(backend);

    WEIR_DCHECK(null->heap_count == 0);
    if (null->epoll_fd >= 0 && wi_waker_settle(&null->waker) > 0)
        count_call(null);
    close_descriptor(null);
    return 0;
}

static void null_stats(struct wi_backend *backend, struct wi_backend_stats *ret_stats)
{
    ret_stats->system_calls =
        atomic_load_explicit(&null_of(backend)->system_calls, memory_order_relaxed);
}

static void null_close(struct wi_backend *backend)
{
    struct null_backend *null;

    if (!backend)
        return;
    null = null_of(backend);
    WEIR_ASSERT(null->heap_count == 0 && !null->done_first && !null->call_first);
    close_descriptor(null);
    wi_waker_fini(&null->waker);
    free(null->heap);
    free(null);
}

static const struct wi_backend_ops null_backend_ops = {
    .name = "null",
    .bind = null_bind,
    .unbind = null_unbind,
    .start = null_start,
    .turn = null_turn,
    .cancel = null_cancel,
    .wake = null_wake,
    .fd = null_fd,
    .stats = null_stats,
    .close = null_close,
};

int wi_backend_null_open(const struct wi_backend_options *options,
                         struct wi_backend **ret_backend)
{
    struct null_backend *null = aligned_alloc(WI_CACHE_LINE, sizeof(*null));
    int code;

    if (!null)
        return -ENOMEM;
    *null = (struct null_backend){
        .backend = { .ops = &null_backend_ops, .os = options->os, .pool = options->pool },
        .epoll_fd = -1,
        .timer_fd = -1,
        .timer_ns = UINT64_MAX,
    };
    code = wi_waker_init(&null->waker);
    if (code < 0)
        goto free_null;
    if (options->null_script) {
        null->scripted = true;
        null->script = *options->null_script;
        null->script.delay_max_ns =
            wi_max_u64(null->script.delay_max_ns, null->script.delay_min_ns);
        null->chance = null->script.seed;
        null->heap_room = options->depth > 0 ? options->depth : 1;
        null->heap = calloc(null->heap_room, sizeof(*null->heap));
        if (!null->heap) {
            code = -ENOMEM;
            goto fini_waker;
        }
    }
    *ret_backend = &null->backend;
    return 0;

fini_waker:
    wi_waker_fini(&null->waker);
free_null:
    free(null);
    return code;
}
