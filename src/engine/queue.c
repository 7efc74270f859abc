/* SPDX-License-Identifier: MIT */
/*
 * queue.c - a thread's way in: submit, turns, waiting, the descriptor, posts, closing
 *
 * Map of the folder
 *   queue.c       who may call, when to wait, what wakes the owner
 *   queue_work.c  what happens to a job between submit and `done`
 *   sched.c       the classes: which job goes next; merge.c  neighbours in one operation
 *   gate.c        what all queues together may have at the device
 *   many.c        many ranges of a file; cached.c  a queue's reads through the block cache; prefetch.c  what to read ahead
 *   cache.c       the block cache: frames; cache_file.c  files; cache_read.c  blocking reads
 *   view.c        pinned pieces of it; stream.c  look ahead of a reader
 *   retry.c       which errors are worth another try
 *   call.c        jobs that are system calls on the pool
 *   blocking.c    calls that do their work on the calling thread
 *   file.c        open files; file_pool.c  fewer descriptors than files
 *   buffer.c      aligned buffers; job.c  preparing and checking jobs
 *   stats.c       counting and adding up; prometheus.c  the same as text; trace.c  each operation
 *   limiter.c, metric.c, value_cache.c  for users' own code
 *   engine.c      opening and closing it all
 *
 * A turn       posted jobs, due timers, dispatch, one turn of the backend (which is where
 *              the only system call is, and the only wait), completions, `done` calls.
 * Waking       the backend has the waker; whoever posts calls its `wake`. A queue whose
 *              descriptor was asked for keeps it readable while anything waits here: staged
 *              jobs (through wake), deadlines (a timerfd), completions (the backend).
 * Invariant    Q1  taken == jobs in QUEUED + LOADING + DEVICE + RETRY + DONE, without the loads
 */
#include "engine_internal.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define DEPTH_DEFAULT  128
#define DEPTH_MAX      4096
#define CANCELS_MORE   64 /* posted ones, beyond what the queue has room for */
#define DEPTH_LEAST    8  /* of a ring, before threads are the better choice */
#define BACKLOG_MAX    (1u << 19)
#define BACKLOG_LEAST  1024
#define WAIT_BATCH_MAX 16 /* waiting for more only adds latency */
#define FLAGS_ALL      (WEIR_QUEUE_NO_MERGE | WEIR_QUEUE_NO_GAPS | WEIR_QUEUE_NO_PREFETCH)

/* ---- opening --------------------------------------------------------------------------- */

/* A ring, if need be for fewer operations at once; else threads. */
static int open_ring_or_threads(struct weir_engine *engine, struct wi_backend_options *options,
                                struct wi_backend **ret_backend)
{
    uint32_t asked = options->depth;
    int rc;

    for (;;) {
        rc = wi_backend_uring_open(options, ret_backend);
        if (rc == 0 && options->depth < asked)
            wi_engine_log(engine, WEIR_LOG_INFO,
                          "a ring for %u operations cannot be had, this queue has one for %u; "
                          "raise the limit of locked memory (ulimit -l)",
                          asked, options->depth);
        if (rc != -ENOMEM || options->depth <= DEPTH_LEAST)
            break;
        options->depth = options->depth / 4 > DEPTH_LEAST ? options->depth / 4 : DEPTH_LEAST;
    }
    if (rc == 0)
        return 0;
    options->depth = asked;
    wi_engine_log(
        engine, WEIR_LOG_WARNING,
        "no further ring can be had (%s), this queue uses threads; raise the limit of "
        "%s",
        weir_code_text(rc),
        rc == -ENOMEM ? "locked memory (ulimit -l)" : "open files (ulimit -n)");
    return wi_backend_threads_open(options, ret_backend);
}

/* `depth` becomes what the backend has room for. */
static int open_backend(struct weir_engine *engine, uint32_t *depth,
                        struct wi_backend **ret_backend)
{
    struct wi_backend_options options = {
        .os = engine->backend_os,
        .pool = engine->pool,
        .depth = *depth,
        .file_slots = QUEUE_FILE_SLOTS,
        .region = engine->buffers.base,
        .region_size = engine->buffers.bytes,
        .null_script = engine->seams.null_script,
    };
    struct wi_backend *inner;
    int rc;

    if (engine->backend == WEIR_BACKEND_NULL)
        rc = wi_backend_null_open(&options, &inner);
    else if (engine->backend == WEIR_BACKEND_URING)
        rc = open_ring_or_threads(engine, &options, &inner);
    else
        rc = wi_backend_threads_open(&options, &inner);
    if (rc < 0)
        return rc;
    *depth = options.depth;
    if (!engine->seams.wrap) {
        *ret_backend = inner;
        return 0;
    }
    rc = engine->seams.wrap(engine->seams.wrap_context, inner, ret_backend);
    if (rc < 0)
        inner->ops->close(inner);
    return rc;
}

static int64_t queue_bytes(const struct weir_queue *queue)
{
    return (int64_t)(sizeof(*queue) + queue->slot_count * sizeof(*queue->slots) +
                     wi_merge_memory(queue));
}

static void init_queue(struct weir_queue *queue, const struct weir_queue_options *options)
{
    struct weir_engine *engine = queue->engine;

    queue->os = engine->os;
    queue->depth = options->depth;
    queue->room = options->depth + options->backlog;
    queue->slot_count = queue->room + SPARE_SLOTS + PARTS_MAX + (engine->cache ? LOADS_MAX : 0);
    queue->epoll_fd = -1;
    queue->timer_fd = -1;
    queue->bytes_max = options->device_bytes ? options->device_bytes : engine->gate.bytes_max;
    queue->can_prefetch = !(options->flags & WEIR_QUEUE_NO_PREFETCH);
    wi_list_init(&queue->held);
    wi_list_init(&queue->order);
    wi_list_init(&queue->gate_link);
    wi_list_init(&queue->cached_ready);
    wi_sched_init(queue);
    memset(queue->slot_file, -1, sizeof(queue->slot_file));
}

int weir_queue_open(struct weir_engine *engine, const struct weir_queue_options *options,
                    struct weir_queue **ret_queue)
{
    struct weir_queue_options full = { 0 };
    struct weir_queue *queue;
    int rc;

    if (!engine || !ret_queue || (options && options->size < sizeof(options->size)))
        return -EINVAL;
    if (options)
        memcpy(&full, options, options->size < sizeof(full) ? options->size : sizeof(full));
    if (full.depth == 0)
        full.depth = DEPTH_DEFAULT;
    if (full.backlog == 0)
        full.backlog = full.depth * 4 > BACKLOG_LEAST ? full.depth * 4 : BACKLOG_LEAST;
    if (full.depth > DEPTH_MAX || full.backlog > BACKLOG_MAX || full.flags > FLAGS_ALL)
        return -EINVAL;

    queue = aligned_alloc(WI_CACHE_LINE,
                          (sizeof(*queue) + WI_CACHE_LINE - 1) & ~(size_t)(WI_CACHE_LINE - 1));
    if (!queue)
        return -ENOMEM;
    memset(queue, 0, sizeof(*queue));
    queue->engine = engine;
    init_queue(queue, &full);
    queue->slots = aligned_alloc(WI_CACHE_LINE, queue->slot_count * sizeof(*queue->slots));
    if (!queue->slots) {
        rc = -ENOMEM;
        goto fail_queue;
    }
    memset(queue->slots, 0, queue->slot_count * sizeof(*queue->slots));
    for (uint32_t i = 0; i < queue->slot_count; i++)
        queue->slots[i].next_free = i + 1 < queue->slot_count ? i + 1 : UINT32_MAX;
    rc = wi_merge_init(queue, full.merge_gap, full.flags);
    if (rc < 0)
        goto fail_slots;
    rc = open_backend(engine, &queue->depth, &queue->backend);
    if (rc < 0)
        goto fail_merge;
    queue->can_slot = queue->backend->ops->set_file != NULL;
    queue->can_inline =
        engine->backend != WEIR_BACKEND_NULL && !engine->seams.no_inline && !engine->seams.wrap;
    wi_wheel_init(&queue->wheel, wi_os_now(queue->os));
    queue->opened_ns = wi_os_now(queue->os);
    queue->stall_seen_ns = queue->opened_ns;
    queue->stall_check_ns = engine->stall_ns == WEIR_NEVER
                                ? UINT64_MAX
                                : queue->stall_seen_ns + engine->stall_ns / 2;

    wi_engine_account(engine, queue_bytes(queue));
    wi_mutex_lock(&engine->mu);
    queue->number = engine->next_queue_number++ % 0xfff + 1;
    wi_list_push_back(&engine->queues, &queue->engine_link);
    engine->queues_open++;
    wi_mutex_unlock(&engine->mu);
    wi_watch_start(engine);
    *ret_queue = queue;
    return 0;

fail_merge:
    wi_merge_fini(queue);
fail_slots:
    free(queue->slots);
fail_queue:
    free(queue);
    return rc;
}

/* The calling thread is the owner, or becomes it if there is none. */
static int become_owner(struct weir_queue *queue)
{
    uint32_t me = wi_this_thread();
    uint32_t nobody = 0;
    int rc;

    if (WI_LIKELY(atomic_load_explicit(&queue->owner, memory_order_relaxed) == me))
        return 0;
    if (!atomic_compare_exchange_strong_explicit(&queue->owner, &nobody, me,
                                                 memory_order_acquire, memory_order_relaxed))
        return -EPERM;
    rc = queue->backend->ops->bind(queue->backend);
    if (rc < 0)
        atomic_store_explicit(&queue->owner, 0, memory_order_release);
    return rc;
}

/* ---- submitting ------------------------------------------------------------------------ */

/* Event loops sleep on the descriptor: make it readable for what waits in here. */
static void wake_self(struct weir_queue *queue)
{
    if (queue->fd_mode && !queue->in_done && !queue->woken) {
        queue->woken = true;
        queue->backend->ops->wake(queue->backend);
    }
}

int weir_queue_submit(struct weir_queue *queue, struct weir_job *const *jobs, size_t count)
{
    size_t taken = 0;
    int rc = become_owner(queue);

    if (WI_UNLIKELY(rc < 0))
        return rc;
    if (WI_UNLIKELY(atomic_load_explicit(&queue->closing, memory_order_relaxed)))
        return -ESHUTDOWN;
    if (!queue->in_done)
        queue->now_ns = wi_os_now(queue->os);
    if (count > INT32_MAX)
        count = INT32_MAX;
    for (; taken < count; taken++) {
        struct weir_job *job = jobs[taken];

        if (WI_UNLIKELY(queue->taken >= queue->room)) {
            rc = -EBUSY;
            break;
        }
        rc = wi_job_check_queued(queue->engine, job);
        if (WI_LIKELY(rc == 0))
            rc = wi_queue_know_file(queue, job);
        if (WI_UNLIKELY(rc < 0))
            break;
        /* Inside `done` the time is that of the turn, which may be long ago: good enough for
         * statistics, but a time limit counts from here. */
        if (WI_UNLIKELY(queue->in_done && job->timeout_ns != 0))
            queue->now_ns = wi_os_now(queue->os);
        wi_queue_take(queue, job, queue->now_ns, 0);
    }
    if (WI_UNLIKELY(taken == 0))
        return rc;
    wake_self(queue);
    return (int)taken;
}

/* ---- posts ----------------------------------------------------------------------------- */

int weir_queue_post(struct weir_queue *queue, struct weir_job *job)
{
    int rc = wi_job_check_queued(queue->engine, job);

    if (rc < 0)
        return rc;
    /* Announce first, then look at `closing`: close sets it and then waits for `posting`, so
     * either it waits for this push or this thread sees that it is too late. */
    atomic_fetch_add_explicit(&queue->posting, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&queue->closing, memory_order_seq_cst)) {
        rc = -ESHUTDOWN;
    } else if (atomic_fetch_add_explicit(&queue->posted, 1, memory_order_relaxed) >=
               queue->room + (job->op == WEIR_OP_CANCEL ? CANCELS_MORE : 0)) {
        atomic_fetch_sub_explicit(&queue->posted, 1, memory_order_relaxed);
        rc = -EBUSY;
    } else {
        if (counts_on_file(job))
            atomic_fetch_add_explicit(&job->file->users, 1, memory_order_relaxed);
        tail_of(job)->state = JOB_POSTED;
        (void)wi_inbox_push(&queue->inbox, &tail_of(job)->inbox);
        queue->backend->ops->wake(queue->backend);
    }
    atomic_fetch_sub_explicit(&queue->posting, 1, memory_order_release);
    return rc;
}

/* The link to the posted job that is next: the first, or, if there is no room, the first
 * cancel, since it may be what makes room. NULL: none can be taken now. */
static struct wi_inbox_node **next_pending(struct weir_queue *queue)
{
    struct wi_inbox_node **link = &queue->pending_first;

    if (queue->taken >= queue->room) {
        if (queue->taken >= queue->room + SPARE_SLOTS)
            return NULL;
        while (*link && job_of_tail(WI_CONTAINER_OF(*link, struct job_tail, inbox))->op !=
                            WEIR_OP_CANCEL)
            link = &(*link)->next;
    }
    return *link ? link : NULL;
}

static void take_posted(struct weir_queue *queue)
{
    struct wi_inbox_node **link;

    if (!wi_inbox_empty(&queue->inbox)) {
        struct wi_inbox_node *node = wi_inbox_take(&queue->inbox);

        /* Anew: a post may be younger than this turn, and its time limit counts from here. */
        queue->now_ns = wi_os_now(queue->os);
        if (queue->pending_last)
            queue->pending_last->next = node;
        else
            queue->pending_first = node;
        for (; node; node = node->next)
            queue->pending_last = node;
    }
    while ((link = next_pending(queue)) != NULL) {
        struct job_tail *tail = WI_CONTAINER_OF(*link, struct job_tail, inbox);
        struct weir_job *job = job_of_tail(tail);

        if (WI_UNLIKELY(wi_queue_know_file(queue, job) < 0))
            break; /* without memory: at the next turn */
        *link = (*link)->next;
        if (!*link)
            queue->pending_last = link == &queue->pending_first
                                      ? NULL
                                      : WI_CONTAINER_OF(link, struct wi_inbox_node, next);
        atomic_fetch_sub_explicit(&queue->posted, 1, memory_order_relaxed);
        wi_counter_add(&queue->stats.posted, 1);
        wi_queue_take(queue, job, queue->now_ns, 0);
        if (counts_on_file(job)) /* the queue counts from here */
            atomic_fetch_sub_explicit(&job->file->users, 1, memory_order_release);
    }
}

/* ---- turns ----------------------------------------------------------------------------- */

static bool has_due(const struct weir_queue *queue)
{
    return queue->done_first != NULL;
}

static void count_turn(struct weir_queue *queue)
{
    struct queue_stats *stats = &queue->stats;

    wi_counter_add(&stats->turns, 1);
    wi_counter_add(&stats->in_flight_sum, queue->taken);
    atomic_store_explicit(&stats->in_flight, queue->taken, memory_order_relaxed);
    atomic_store_explicit(&stats->at_device, queue->device, memory_order_relaxed);
    if (queue->taken > atomic_load_explicit(&stats->in_flight_peak, memory_order_relaxed))
        atomic_store_explicit(&stats->in_flight_peak, queue->taken, memory_order_relaxed);
}

/*
 * How many completions to wait for. At depth, one at a time is slow: each costs a system
 * call and a wake-up, while the device has more ready a moment later.
 */
static uint32_t how_many(const struct weir_queue *queue, uint32_t min_done)
{
    uint32_t want = min_done;

    if (min_done == 0 || queue->device >= queue->depth) {
        /* Of what is somebody's: what is read ahead must not hold up a reader. */
        uint32_t owned = queue->device < queue->taken ? queue->device : queue->taken;
        uint32_t quarter = owned / 4 < WAIT_BATCH_MAX ? owned / 4 : WAIT_BATCH_MAX;

        want = quarter > want ? quarter : want;
    }
    if (want > queue->device)
        want = queue->device;
    return want ? want : 1; /* nothing there: to be woken */
}

/* When this queue has something to do without being told: a timer, or work that gave way. 0: never. */
static uint64_t next_event_ns(const struct weir_queue *queue)
{
    uint64_t next_ns = 0;

    if (WI_UNLIKELY(queue->wheel.count > 0))
        next_ns = wi_wheel_next_ns(&queue->wheel);
    if (WI_UNLIKELY(queue->low_again_ns != 0))
        next_ns = next_ns ? wi_min_u64(next_ns, queue->low_again_ns) : queue->low_again_ns;
    return next_ns;
}

/* One turn up to the completions. `until_ns` 0 does not wait. */
static int turn(struct weir_queue *queue, uint32_t min_done, uint64_t until_ns)
{
    struct wi_op *done = NULL;
    uint64_t closes;
    uint32_t want = 0;
    int rc;

    queue->now_ns = wi_os_now(queue->os);
    if (WI_UNLIKELY(!wi_inbox_empty(&queue->inbox) || queue->pending_first))
        take_posted(queue);
    wi_queue_fire_timers(queue);
    closes = atomic_load_explicit(&queue->engine->closes, memory_order_acquire);
    if (WI_UNLIKELY(closes != queue->closes_seen)) {
        queue->closes_seen = closes;
        wi_queue_drop_slots(queue, false);
        if (!wi_cached_is_idle(queue))
            wi_queue_drop_loads(queue);
    }
    wi_queue_dispatch(queue);
    count_turn(queue);

    if (WI_UNLIKELY(queue->now_ns >= queue->stall_check_ns))
        wi_queue_check_stalls(queue);

    if (!has_due(queue) && until_ns > queue->now_ns && wi_list_empty(&queue->cached_ready)) {
        uint64_t next_ns = next_event_ns(queue);

        want = how_many(queue, min_done);
        if (WI_UNLIKELY(next_ns != 0))
            until_ns = wi_min_u64(until_ns, next_ns);
        wi_gate_settle(queue);
    }
    rc = queue->backend->ops->turn(queue->backend, want, until_ns, &done);
    if (done) {
        queue->now_ns = wi_os_now(queue->os);
        wi_queue_completed(queue, done);
        if (WI_UNLIKELY(!wi_list_empty(&queue->cached_ready)))
            wi_cached_run(queue);
    }
    return rc < 0 ? rc : 0;
}

/* Something waits that the next turn may start. */
static bool can_start(const struct weir_queue *queue)
{
    return !wi_list_empty(&queue->cached_ready) ||
           (queue->waiting > 0 && queue->device < queue->depth && !queue->stuck);
}

/* Before the owner goes back to its event loop: nothing may wait here that would not make
 * the descriptor readable. */
static void settle_fd(struct weir_queue *queue)
{
    uint64_t next_ns = next_event_ns(queue);

    if (next_ns != queue->timer_set_ns) {
        struct itimerspec when = { 0 };

        when.it_value.tv_sec = (time_t)(next_ns / WI_SEC_NS);
        when.it_value.tv_nsec = (long)(next_ns % WI_SEC_NS);
        (void)timerfd_settime(queue->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
        queue->timer_set_ns = next_ns;
    }
    if (has_due(queue) || next_pending(queue) || !wi_inbox_empty(&queue->inbox) ||
        can_start(queue))
        wake_self(queue);
}

static void begin_turns(struct weir_queue *queue)
{
    queue->woken = false;
    /* A timerfd that has fired stays readable until it is set anew. */
    if (queue->timer_set_ns != 0 && queue->timer_set_ns <= wi_os_now(queue->os))
        queue->timer_set_ns = UINT64_MAX;
}

/* The owner goes away. */
static void leave(struct weir_queue *queue)
{
    wi_gate_settle(queue);
    if (queue->fd_mode)
        settle_fd(queue);
}

static int enter(struct weir_queue *queue)
{
    int rc = become_owner(queue);

    if (rc < 0)
        return rc;
    return queue->in_done ? -EDEADLK : 0;
}

int weir_queue_run(struct weir_queue *queue)
{
    int rc = enter(queue);
    int count;

    if (rc < 0)
        return rc;
    begin_turns(queue);
    rc = turn(queue, 0, 0);
    count = wi_queue_call_done(queue);
    /* Hand over what the calls staged, so that the device works while the owner does. */
    if (can_start(queue))
        (void)turn(queue, 0, 0);
    leave(queue);
    return count > 0 || rc == -EINTR ? count : rc;
}

int weir_queue_wait(struct weir_queue *queue, uint32_t min_done, uint64_t timeout_ns)
{
    uint64_t until_ns = UINT64_MAX;
    int count = 0;
    int rc = enter(queue);

    if (rc < 0)
        return rc;
    if (timeout_ns != WEIR_FOREVER)
        until_ns = wi_add_sat(wi_os_now(queue->os), timeout_ns);
    begin_turns(queue);
    for (;;) {
        uint32_t left = min_done > (uint32_t)count ? min_done - (uint32_t)count : 0;

        /* Nothing is left. But a caller with a time limit and nothing taken waits for posts. */
        if (queue->taken == 0 && (count > 0 || timeout_ns == WEIR_FOREVER) &&
            !queue->pending_first && wi_inbox_empty(&queue->inbox))
            break;
        rc = turn(queue, left, timeout_ns == 0 ? 0 : until_ns);
        count += wi_queue_call_done(queue);
        if (rc < 0 || (count > 0 && (uint32_t)count >= min_done))
            break;
        if (timeout_ns != WEIR_FOREVER && wi_os_now(queue->os) >= until_ns)
            break;
    }
    leave(queue);
    return count > 0 ? count : rc;
}

/* ---- the descriptor -------------------------------------------------------------------- */

static void close_fds(struct weir_queue *queue)
{
    if (queue->timer_fd >= 0)
        close(queue->timer_fd);
    if (queue->epoll_fd >= 0)
        close(queue->epoll_fd);
    queue->timer_fd = -1;
    queue->epoll_fd = -1;
    queue->timer_set_ns = 0;
    queue->fd_mode = false;
}

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    if (fd < 0)
        return fd;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int weir_queue_fd(struct weir_queue *queue)
{
    int rc = become_owner(queue);

    if (rc < 0)
        return rc;
    if (queue->fd_mode)
        return queue->epoll_fd;
    queue->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (queue->epoll_fd < 0)
        return -errno;
    queue->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    rc = queue->timer_fd < 0 ? -errno : watch(queue->epoll_fd, queue->timer_fd);
    if (rc == 0)
        rc = watch(queue->epoll_fd, queue->backend->ops->fd(queue->backend));
    if (rc < 0) {
        close_fds(queue);
        return rc;
    }
    queue->fd_mode = true;
    if (!queue->in_done)
        settle_fd(queue);
    return queue->epoll_fd;
}

/* ---- cancelling, rebinding, closing ---------------------------------------------------- */

int weir_queue_cancel(struct weir_queue *queue, uint64_t job_id)
{
    int rc = become_owner(queue);

    if (rc < 0)
        return rc;
    if (!queue->in_done)
        queue->now_ns = wi_os_now(queue->os);
    rc = wi_queue_cancel_id(queue, job_id);
    if (rc == 0)
        wake_self(queue);
    return rc;
}

/* Nobody waits for what the cache still reads ahead: cancel it, and see what has ended. */
static void give_up_loads(struct weir_queue *queue)
{
    struct wi_op *done = NULL;

    if (wi_cached_is_idle(queue))
        return;
    wi_queue_cancel_all(queue);
    (void)queue->backend->ops->turn(queue->backend, 0, 0, &done);
    queue->now_ns = wi_os_now(queue->os);
    wi_queue_completed(queue, done);
}

int weir_queue_rebind(struct weir_queue *queue)
{
    int rc = enter(queue);

    if (rc < 0)
        return rc;
    if (queue->taken > 0 || atomic_load_explicit(&queue->posted, memory_order_acquire) > 0)
        return -EBUSY;
    give_up_loads(queue);
    leave(queue);
    if (!wi_cached_is_idle(queue))
        return -EBUSY;
    wi_queue_drop_slots(queue, true);
    rc = queue->backend->ops->unbind(queue->backend);
    if (rc < 0)
        return rc;
    close_fds(queue);
    atomic_store_explicit(&queue->owner, 0, memory_order_release);
    return 0;
}

static bool is_drained(struct weir_queue *queue)
{
    return queue->taken == 0 && wi_cached_is_idle(queue) && !queue->pending_first &&
           atomic_load_explicit(&queue->posting, memory_order_seq_cst) == 0 &&
           wi_inbox_empty(&queue->inbox);
}

int weir_queue_close(struct weir_queue *queue, uint64_t timeout_ns)
{
    struct weir_engine *engine;
    uint64_t until_ns;
    int rc;

    if (!queue)
        return 0;
    rc = enter(queue);
    if (rc < 0)
        return rc;
    engine = queue->engine;
    atomic_store_explicit(&queue->closing, 1, memory_order_seq_cst);
    until_ns = wi_add_sat(wi_os_now(queue->os), timeout_ns);
    for (;;) {
        if (is_drained(queue))
            break;
        queue->now_ns = wi_os_now(queue->os);
        take_posted(queue);
        wi_queue_cancel_all(queue);
        /* A thread inside post holds us up for a few instructions only. */
        if (queue->taken == 0 && !has_due(queue))
            sched_yield();
        rc = turn(queue, 1, queue->taken > 0 || !wi_cached_is_idle(queue) ? until_ns : 0);
        (void)wi_queue_call_done(queue);
        if (is_drained(queue))
            break;
        if (wi_os_now(queue->os) >= until_ns)
            return -EBUSY;
        if (rc < 0 && rc != -EINTR)
            return -EBUSY;
    }

    wi_gate_settle(queue);
    wi_gate_forget(queue);
    wi_stats_retire(engine, queue);
    wi_queue_drop_slots(queue, true);
    close_fds(queue);
    queue->backend->ops->close(queue->backend);
    wi_engine_account(engine, -queue_bytes(queue) -
                                  (int64_t)(queue->files_room * sizeof(*queue->files)));
    wi_cached_fini(queue);
    wi_many_fini(queue);
    wi_merge_fini(queue);
    free(queue->files);
    free(queue->slots);
    free(queue);
    return 0;
}

/* ---- the dump -------------------------------------------------------------------------- */

size_t weir_queue_inflight(struct weir_queue *queue, struct weir_inflight *list, size_t max)
{
    uint64_t now_ns = wi_os_now(queue->os);
    size_t count = 0;

    for (uint32_t i = 0; i < queue->slot_count && count < max; i++) {
        struct queue_slot *slot = &queue->slots[i];
        uint64_t id = atomic_load_explicit(&slot->id, memory_order_acquire);
        struct weir_inflight entry = { .job_id = id };
        uint64_t submit_ns;
        uint32_t op_state;

        if (id == 0)
            continue;
        submit_ns = atomic_load_explicit(&slot->submit_ns, memory_order_acquire);
        entry.offset = atomic_load_explicit(&slot->offset, memory_order_acquire);
        entry.length = atomic_load_explicit(&slot->length, memory_order_acquire);
        op_state = atomic_load_explicit(&slot->op_state, memory_order_acquire);
        /* Still the same job? Else the fields may be of two. Pairs with take_slot. */
        if (atomic_load_explicit(&slot->id, memory_order_relaxed) != id)
            continue;
        entry.age_ns = now_ns > submit_ns ? now_ns - submit_ns : 0;
        entry.op = op_state >> 16;
        entry.io_class = op_state >> 8 & 0xff;
        entry.state = op_state & 0xff;
        if (entry.state == WEIR_STATE_NONE || entry.state > WEIR_STATE_LOADING)
            continue;
        list[count++] = entry;
    }
    return count;
}
