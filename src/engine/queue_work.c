/* SPDX-License-Identifier: MIT */
/*
 * queue_work.c - what happens to a job between submit and `done`
 *
 * Contents     slots and states; taking; finishing; order; inline reads; starting;
 *              completions; timers; cancelling; calling `done`
 * Idea         one owner thread, so no locks: a job is on exactly one list (backlog, held,
 *              done chain), in the wheel only (RETRY), or at the backend.
 * Not here     who may call and when to wait (queue.c), which errors are worth another try
 *              (retry.c).
 *
 * The states are drawn in engine_internal.h.
 */
#include "engine_internal.h"

#include <stdlib.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x8
#endif

#define NO_SLOT          UINT32_MAX
#define INLINE_MAX       (128u << 10) /* longer copies would hold up the loop */
#define INLINE_TURN      (1u << 20)   /* bytes a turn, or completions and timers would wait */
#define FIXED_AFTER_USES 8 /* a slot costs a system call: worth it for files used again */
#define PIECE_MAX        (1u << 30)
#define IOV_MAX_KERNEL   1024

static bool start_here(struct weir_queue *queue, struct weir_job *job);

/* ---- slots and states ------------------------------------------------------------------ */

static void set_state(struct weir_queue *queue, struct weir_job *job, enum job_state state)
{
    struct job_tail *tail = tail_of(job);

    tail->state = (uint8_t)state;
    atomic_store_explicit(&queue->slots[tail->slot].op_state,
                          (uint32_t)job->op << 8 | (uint32_t)state, memory_order_relaxed);
}

static void take_slot(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    uint32_t index = queue->free_slot;
    struct queue_slot *slot = &queue->slots[index];

    WEIR_DCHECK(index != NO_SLOT);
    queue->free_slot = slot->next_free;
    if (++slot->generation == 0)
        slot->generation = 1; /* an id is never 0 */
    slot->job = job;
    tail->slot = index & 0xfffffu;
    job->id = queue->number << 52 | (uint64_t)slot->generation << 20 | index;
    /* Release, each of them: a reader of the dump that sees one of these must then find that
     * the id it began with has gone. */
    atomic_store_explicit(&slot->submit_ns, tail->submit_ns, memory_order_release);
    atomic_store_explicit(&slot->offset, job->offset, memory_order_release);
    atomic_store_explicit(&slot->length, job->len, memory_order_release);
    atomic_store_explicit(&slot->op_state, (uint32_t)job->op << 8 | JOB_QUEUED,
                          memory_order_release);
    atomic_store_explicit(&slot->id, job->id, memory_order_release);
}

static void release_slot(struct weir_queue *queue, struct job_tail *tail)
{
    struct queue_slot *slot = &queue->slots[tail->slot];

    atomic_store_explicit(&slot->id, 0, memory_order_relaxed);
    slot->job = NULL;
    slot->next_free = queue->free_slot;
    queue->free_slot = tail->slot;
}

static uint64_t total_bytes(const struct weir_job *job)
{
    return WI_LIKELY(job->op == WEIR_OP_READ || job->op == WEIR_OP_WRITE)
               ? job->len
               : wi_iov_bytes(job->buf, job->len);
}

static bool has_deadline(const struct weir_job *job)
{
    return job->timeout_ns != 0 && job->op != WEIR_OP_NOP;
}

static uint64_t deadline_ns(const struct weir_job *job)
{
    return wi_add_sat(tail_of((struct weir_job *)(uintptr_t)job)->submit_ns, job->timeout_ns);
}

/* ---- files ----------------------------------------------------------------------------- */

static void drop_slot(struct weir_queue *queue, struct queue_file *entry)
{
    if (entry->slot < 0)
        return;
    queue->backend->ops->set_file(queue->backend, (uint32_t)entry->slot, -1);
    queue->slot_file[entry->slot] = -1;
    entry->slot = -1;
}

static bool is_stale(const struct queue_file *entry)
{
    return atomic_load_explicit(&entry->file->generation, memory_order_acquire) !=
           entry->generation;
}

void wi_queue_drop_slots(struct weir_queue *queue, bool all)
{
    for (uint32_t slot = 0; slot < QUEUE_FILE_SLOTS; slot++) {
        struct queue_file *entry;

        if (queue->slot_file[slot] < 0)
            continue;
        entry = &queue->files[queue->slot_file[slot]];
        if (all || is_stale(entry))
            drop_slot(queue, entry);
    }
}

int wi_queue_know_file(struct weir_queue *queue, struct weir_job *job)
{
    struct weir_file *file = job->file;
    struct queue_file *entry;

    if (!file)
        return 0;
    if (WI_UNLIKELY(file->index >= queue->files_room)) {
        uint32_t room = queue->files_room ? queue->files_room : 8;
        struct queue_file *files;

        while (room <= file->index)
            room *= 2;
        files = realloc(queue->files, room * sizeof(*files));
        if (!files)
            return -ENOMEM;
        memset(files + queue->files_room, 0, (room - queue->files_room) * sizeof(*files));
        wi_engine_account(queue->engine,
                          (int64_t)((room - queue->files_room) * sizeof(*files)));
        queue->files = files;
        queue->files_room = room;
    }
    entry = &queue->files[file->index];
    if (WI_UNLIKELY(entry->file != file || is_stale(entry))) {
        if (entry->file)
            drop_slot(queue, entry);
        *entry = (struct queue_file){
            .file = file,
            .generation = atomic_load_explicit(&file->generation, memory_order_acquire),
            .slot = -1,
        };
    }
    return 0;
}

/* A file that is used again and again gets a fixed slot in the backend's table; where all
 * are taken, that of a file with no jobs here, going round. */
static void want_slot(struct weir_queue *queue, struct queue_file *entry)
{
    for (uint32_t step = 0; step < QUEUE_FILE_SLOTS; step++) {
        uint32_t slot = (queue->slot_hand + step) % QUEUE_FILE_SLOTS;
        struct queue_file *holder =
            queue->slot_file[slot] < 0 ? NULL : &queue->files[queue->slot_file[slot]];

        if (holder && holder->jobs > 0)
            continue;
        if (holder)
            drop_slot(queue, holder);
        if (queue->backend->ops->set_file(queue->backend, slot, entry->file->fd) < 0) {
            queue->can_slot = false;
            return;
        }
        entry->slot = (int32_t)slot;
        queue->slot_file[slot] = (int32_t)entry->file->index;
        queue->slot_hand = slot + 1;
        return;
    }
    entry->uses = 0; /* all are busy: ask again after some more uses */
}

/* ---- taking ---------------------------------------------------------------------------- */

void wi_queue_take(struct weir_queue *queue, struct weir_job *job, uint64_t now_ns)
{
    struct job_tail *tail = tail_of(job);

    tail->queue = queue;
    tail->submit_ns = now_ns;
    tail->start_ns = 0;
    tail->marks = 0;
    tail->waiters = 0;
    tail->tries = 0;
    tail->rounds = 0;
    wi_list_init(&tail->timer.node);
    job->result = 0;
    job->transferred = 0;
    tail->state = JOB_QUEUED;
    take_slot(queue, job);

    if (counts_on_file(job) && queue->files[job->file->index].jobs++ == 0)
        atomic_fetch_add_explicit(&job->file->users, 1, memory_order_relaxed);
    if (has_deadline(job))
        wi_wheel_add(&queue->wheel, &tail->timer, deadline_ns(job));
    if (op_is_write(job->op) || (op_is_read(job->op) && (job->flags & WEIR_JOB_AFTER_WRITES)) ||
        (op_is_sync(job->op) && (job->flags & WEIR_JOB_BARRIER))) {
        tail->marks |= MARK_ORDERED;
        wi_list_push_back(&queue->order, &tail->order);
    }
    queue->taken++;
    /* These need no room at the device, and must not wait for any: a cancel may be what frees
     * it. */
    if (job->op == WEIR_OP_NOP || job->op == WEIR_OP_CANCEL) {
        tail->start_ns = now_ns;
        start_here(queue, job);
        return;
    }
    wi_list_push_back(&queue->backlog, &tail->link);
}

/* ---- order ----------------------------------------------------------------------------- */

static bool overlaps(const struct weir_job *a, const struct weir_job *b)
{
    return a->offset < b->offset + total_bytes(b) && b->offset < a->offset + total_bytes(a);
}

/* The latest of those taken before `job` that it must wait for, or NULL: writes wait for
 * overlapping writes, a flagged read too, a barrier for all writes of its file. */
static struct weir_job *find_blocker(struct weir_queue *queue, struct weir_job *job)
{
    struct wi_list *node;

    for (node = tail_of(job)->order.prev; node != &queue->order; node = node->prev) {
        struct weir_job *other = job_of_tail(WI_CONTAINER_OF(node, struct job_tail, order));

        if (other->file == job->file && op_is_write(other->op) &&
            (op_is_sync(job->op) || overlaps(other, job)))
            return other;
    }
    return NULL;
}

/* Put a job that must wait on the held list. Returns false if it need not wait. */
static bool hold_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    struct weir_job *blocker = find_blocker(queue, job);

    if (!blocker)
        return false;
    tail->held.blocker = blocker;
    if (tail_of(blocker)->waiters < WAITERS_MAX)
        tail_of(blocker)->waiters++;
    wi_list_push_back(&queue->held, &tail->link);
    return true;
}

/*
 * An ordered job has ended: those that waited for it wait for another, or go to the front of the
 * backlog. The held list is in the order of taking, and what waits for the job that ended is
 * near its front, so counting `waiters` down (they may be fewer, if some were cancelled) keeps
 * this short also with thousands of writes to one place.
 */
static void release_held(struct weir_queue *queue, struct weir_job *ended)
{
    uint32_t left = tail_of(ended)->waiters;
    bool all = left == WAITERS_MAX;
    struct wi_list freed;
    struct wi_list *node;

    wi_list_init(&freed);
    for (node = queue->held.next; node != &queue->held && (all || left > 0);) {
        struct job_tail *tail = WI_CONTAINER_OF(node, struct job_tail, link);

        node = node->next;
        if (tail->held.blocker != ended)
            continue;
        left--;
        wi_list_remove(&tail->link);
        if (!hold_job(queue, job_of_tail(tail)))
            wi_list_push_back(&freed, &tail->link);
    }
    wi_list_splice_front(&queue->backlog, &freed);
}

/* ---- finishing ------------------------------------------------------------------------- */

static void count_hist(struct weir_queue *queue, enum weir_stats_group group, uint32_t io_class,
                       enum stats_which which, uint64_t ns)
{
    struct wi_hist *hist =
        atomic_load_explicit(&queue->stats.hists[group][io_class][which], memory_order_relaxed);

    if (WI_LIKELY(hist != NULL))
        wi_hist_add(hist, ns);
}

static void count_done(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    enum weir_stats_group group = op_group(job->op);
    struct stats_counters *counters = &queue->stats.ops[group];

    wi_counter_add(&counters->done, 1);
    wi_counter_add(&counters->bytes, job->transferred);
    if (WI_UNLIKELY(job->result < 0)) {
        wi_counter_add(&counters->failed, 1);
        if (job->result == -ECANCELED)
            wi_counter_add(&counters->cancelled, 1);
        if (job->result == -ETIMEDOUT)
            wi_counter_add(&counters->expired, 1);
    }
    if (WI_UNLIKELY(!atomic_load_explicit(
            &queue->stats.hists[group][job->io_class][STATS_TOTAL], memory_order_relaxed)))
        wi_stats_prepare(queue, group, job->io_class);
    if (WI_LIKELY(tail->start_ns != 0)) {
        count_hist(queue, group, job->io_class, STATS_WAIT, tail->start_ns - tail->submit_ns);
        count_hist(queue, group, job->io_class, STATS_DEVICE, queue->now_ns - tail->start_ns);
    }
    count_hist(queue, group, job->io_class, STATS_TOTAL, queue->now_ns - tail->submit_ns);
}

static void fill_error(struct weir_job *job)
{
    bool stopped = job->result == -ECANCELED || job->result == -ETIMEDOUT;
    const char *path;

    /* A file that a CLOSE was done to is gone, with its name: wi_file_close filled the record. */
    if (job->op == WEIR_OP_CLOSE && !stopped) {
        job->error->job_id = job->id;
        return;
    }
    path = job->path ? job->path : job->file ? job->file->path : NULL;
    if (stopped)
        wi_error_set(job->error, job->result, job->op, path, "%s",
                     job->result == -ECANCELED ? "the job was cancelled"
                                               : "the job's time ran out");
    else
        wi_error_set(job->error, job->result, job->op, path, NULL);
    job->error->job_id = job->id;
    if (op_is_read(job->op) || op_is_write(job->op)) {
        job->error->offset = job->offset + job->transferred;
        job->error->length = total_bytes(job);
        job->error->has_offset = 1;
    }
}

/* The end, whatever it is: from QUEUED (off its list already), RETRY or DEVICE. */
static void finish(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);

    job->result = result;
    if (wi_list_on(&tail->timer.node))
        wi_wheel_remove(&queue->wheel, &tail->timer);
    count_done(queue, job);
    if (WI_UNLIKELY(result < 0) && job->error)
        fill_error(job);
    if (counts_on_file(job) && --queue->files[job->file->index].jobs == 0)
        atomic_fetch_sub_explicit(&job->file->users, 1, memory_order_release);
    set_state(queue, job, JOB_DONE);
    if (tail->marks & MARK_ORDERED) {
        tail->marks &= (uint8_t)~MARK_ORDERED;
        wi_list_remove(&tail->order);
        if (WI_UNLIKELY(tail->waiters > 0))
            release_held(queue, job);
    }
    tail->op.task.next = NULL;
    if (queue->done_last)
        queue->done_last->task.next = &tail->op.task;
    else
        queue->done_first = &tail->op;
    queue->done_last = &tail->op;
}

static void start_job(struct weir_queue *queue, struct weir_job *job);

/* ---- inline reads ---------------------------------------------------------------------- */

/*
 * A read of cached bytes costs less than a trip through a ring, so reads of a file that has
 * been hitting the page cache are tried with RWF_NOWAIT first. `cached_score` remembers how
 * that went, from -32 to 16: a hit adds 1, a miss takes 4, and below zero only one read in 32
 * is tried. It is a hint that all queues share; lost updates do no harm.
 */
static bool worth_inline(struct weir_queue *queue, const struct weir_job *job)
{
    const struct weir_file *file = job->file;
    int32_t score;

    if (!queue->can_inline || job->op != WEIR_OP_READ || job->len > INLINE_MAX ||
        !file->regular || file->offset_align != 1)
        return false;
    score = atomic_load_explicit(&file->cached_score, memory_order_relaxed);
    return score >= 0 || (score > INT32_MIN && (job->id >> 20 & 31) == 0);
}

static void remember_score(struct weir_file *file, int64_t result)
{
    int32_t score = atomic_load_explicit(&file->cached_score, memory_order_relaxed);

    if (result == -EOPNOTSUPP)
        score = INT32_MIN; /* this file system can't: never again */
    else if (result >= 0 && score < 16)
        score += score < 0 ? 8 : 1;
    else if (result == -EAGAIN && score > -32)
        score -= 4;
    else
        return;
    atomic_store_explicit(&file->cached_score, score, memory_order_relaxed);
}

/* Returns true if the job has ended. If not, what was read is counted in `transferred`. */
static bool try_inline(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    struct iovec piece = { job->buf, job->len };
    int64_t result =
        queue->os->ops->preadv2(queue->os, job->file->fd, &piece, 1, job->offset, RWF_NOWAIT);

    wi_counter_add(&queue->stats.system_calls, 1);
    remember_score(job->file, result);
    if (WI_UNLIKELY(result < 0)) {
        tail->marks |= MARK_NO_INLINE;
        return false; /* whatever it was, the backend will say it again or do better */
    }
    queue->now_ns = wi_os_now(queue->os);
    job->transferred = (uint64_t)result;
    /* Short: the end of the file, or the rest is not cached; the backend finds out. */
    if (WI_UNLIKELY(result > 0 && (size_t)result < job->len)) {
        tail->marks |= MARK_NO_INLINE;
        return false;
    }
    wi_counter_add(&queue->stats.inline_reads, 1);
    queue->inline_left -= (uint32_t)wi_min_u64(
        queue->inline_left, wi_max_u64(job->len, INLINE_TURN / queue->depth));
    finish(queue, job, result);
    return true;
}

/* ---- starting -------------------------------------------------------------------------- */

static int64_t run_call(struct wi_op *op)
{
    struct weir_job *job = job_of_op(op);

    return wi_job_call(tail_of(job)->queue->engine, job);
}

/* Fill the operation for what is left of a read or write. */
static void fill_transfer(struct weir_queue *queue, struct weir_job *job, struct wi_op *op)
{
    struct queue_file *entry = &queue->files[job->file->index];
    const struct buffer_pool *buffers = &queue->engine->buffers;
    bool is_write = op_is_write(job->op);
    uint64_t left = job->len - job->transferred;

    op->kind = is_write ? WI_OP_WRITE : WI_OP_READ;
    op->offset = job->offset + job->transferred;
    op->addr = (uint64_t)(uintptr_t)job->buf + job->transferred;
    if (WI_UNLIKELY(job->op == WEIR_OP_READV || job->op == WEIR_OP_WRITEV)) {
        const struct iovec *iov = job->buf;
        uint64_t skip = job->transferred;
        size_t i = 0;

        while (skip >= iov[i].iov_len)
            skip -= iov[i++].iov_len;
        if (skip == 0 && i + 1 < job->len) {
            op->kind = is_write ? WI_OP_WRITEV : WI_OP_READV;
            op->addr = (uint64_t)(uintptr_t)(iov + i);
            left = wi_min_u64(job->len - i, IOV_MAX_KERNEL);
        } else {
            /* The rest of a piece that was cut goes alone; then whole pieces again. */
            op->addr = (uint64_t)(uintptr_t)iov[i].iov_base + skip;
            left = iov[i].iov_len - skip;
        }
    }
    op->len = (uint32_t)wi_min_u64(left, PIECE_MAX);
    op->fd = job->file->fd;

    op->flags = 0;
    if (buffers->base && (op->kind == WI_OP_READ || op->kind == WI_OP_WRITE)) {
        uint64_t at = op->addr - (uint64_t)(uintptr_t)buffers->base;

        if (at < buffers->bytes && op->len <= buffers->bytes - at)
            op->flags |= WI_OP_FIXED_BUFFER;
    }
    if (WI_UNLIKELY(tail_of(job)->marks & MARK_FORCE_ASYNC))
        op->flags |= WI_OP_FORCE_ASYNC;
    if (queue->can_slot && entry->slot < 0 && ++entry->uses >= FIXED_AFTER_USES)
        want_slot(queue, entry);
    op->fixed_file = entry->slot;
}

/* A time to wait for, with nothing at the backend. */
static void wait_until(struct weir_queue *queue, struct weir_job *job, uint64_t due_ns)
{
    struct job_tail *tail = tail_of(job);

    set_state(queue, job, JOB_RETRY);
    if (wi_list_on(&tail->timer.node))
        wi_wheel_remove(&queue->wheel, &tail->timer);
    if (has_deadline(job))
        due_ns = wi_min_u64(due_ns, deadline_ns(job));
    wi_wheel_add(&queue->wheel, &tail->timer, due_ns);
}

/* What is done at once, without the backend. Returns true if it was that. */
static bool start_here(struct weir_queue *queue, struct weir_job *job)
{
    bool is_transfer = op_is_read(job->op) || op_is_write(job->op);

    if (WI_LIKELY(is_transfer)) {
        if (WI_UNLIKELY(op_is_write(job->op) && wi_file_sync_error(job->file) < 0)) {
            finish(queue, job, wi_file_sync_error(job->file));
            return true;
        }
        if (WI_UNLIKELY(total_bytes(job) == 0)) {
            finish(queue, job, 0);
            return true;
        }
        return job->transferred == 0 && !(tail_of(job)->marks & MARK_NO_INLINE) &&
               worth_inline(queue, job) && try_inline(queue, job);
    }
    if (job->op == WEIR_OP_NOP) {
        if (job->timeout_ns != 0)
            wait_until(queue, job, wi_add_sat(tail_of(job)->submit_ns, job->timeout_ns));
        else
            finish(queue, job, 0);
        return true;
    }
    if (job->op == WEIR_OP_CANCEL) {
        finish(queue, job, wi_queue_cancel_id(queue, job->offset));
        return true;
    }
    return false;
}

/* QUEUED and off its list, or DEVICE and back from the backend. */
static void start_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    struct wi_op *op = &tail->op;

    if (tail->start_ns == 0)
        tail->start_ns = queue->now_ns;
    if (op_is_read(job->op) || op_is_write(job->op))
        wi_job_touch(job); /* the buffer may have died since submit */
    if (start_here(queue, job))
        return;
    if (op_is_read(job->op) || op_is_write(job->op)) {
        fill_transfer(queue, job, op);
    } else {
        op->kind = WI_OP_CALL;
        op->flags = 0;
        op->addr = (uint64_t)(uintptr_t)run_call;
        op->lane = job->op == WEIR_OP_CALL ? job->lane : WEIR_LANE_FILES;
        op->fixed_file = -1;
    }
    if (WI_UNLIKELY(queue->backend->ops->start(queue->backend, op) < 0)) {
        set_state(queue, job, JOB_QUEUED);
        wi_list_push_front(&queue->backlog, &tail->link);
        return;
    }
    set_state(queue, job, JOB_DEVICE);
    queue->device++;
}

void wi_queue_dispatch(struct weir_queue *queue)
{
    queue->inline_left = INLINE_TURN;
    while (!wi_list_empty(&queue->backlog) && queue->device < queue->depth &&
           queue->inline_left > 0) {
        struct job_tail *tail = WI_CONTAINER_OF(queue->backlog.next, struct job_tail, link);
        struct weir_job *job = job_of_tail(tail);

        wi_list_remove(&tail->link);
        if (WI_UNLIKELY(tail->marks & MARK_ORDERED) && hold_job(queue, job))
            continue;
        start_job(queue, job);
        if (WI_UNLIKELY(tail->state == JOB_QUEUED))
            break; /* the backend has no room before its next turn */
    }
}

/* ---- completions ----------------------------------------------------------------------- */

/* What to report for a job that was cancelled or expired while in flight. */
static int64_t stop_code(const struct job_tail *tail)
{
    return tail->marks & MARK_CANCEL_ASKED ? -ECANCELED : -ETIMEDOUT;
}

static void transfer_failed(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);
    struct retry_verdict verdict;

    if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)) {
        /* Stopped as asked, or it would have been tried again: either way it ends here. */
        verdict = wi_retry_verdict(job->op, result, 0);
        finish(queue, job,
               result == -ECANCELED || verdict.action != RETRY_NEVER ? stop_code(tail)
                                                                     : result);
        return;
    }
    verdict = wi_retry_verdict(job->op, result, tail->tries);
    if (verdict.action == RETRY_NEVER) {
        finish(queue, job, verdict.code);
        return;
    }
    tail->tries++;
    wi_counter_add(&queue->stats.retries, 1);
    if (result == -EAGAIN)
        tail->marks |= MARK_FORCE_ASYNC;
    if (verdict.action == RETRY_NOW)
        start_job(queue, job);
    else
        wait_until(queue, job, wi_add_sat(queue->now_ns, verdict.delay_ns));
}

static void transfer_completed(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);
    uint64_t total = total_bytes(job);

    if (WI_UNLIKELY(result < 0)) {
        transfer_failed(queue, job, result);
        return;
    }
    job->transferred += (uint64_t)result;
    if (WI_LIKELY(job->transferred == total)) {
        finish(queue, job, (int64_t)total);
        return;
    }
    if (op_is_read(job->op)) {
        /* Only 0 is the end of the file; on a direct file also an end off a block boundary,
         * from where no further direct read could start. */
        if (result == 0 || (job->transferred & (job->file->offset_align - 1)) != 0) {
            finish(queue, job, (int64_t)job->transferred);
            return;
        }
    } else if (result == 0 && tail->rounds > 0) {
        finish(queue, job, -EIO); /* a write that moves nothing, twice */
        return;
    }
    if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)) {
        finish(queue, job, stop_code(tail));
        return;
    }
    tail->tries = 0;
    tail->rounds = result == 0 ? (uint8_t)(tail->rounds + 1) : 0;
    wi_counter_add(&queue->stats.continued, 1);
    start_job(queue, job);
}

void wi_queue_completed(struct weir_queue *queue, struct wi_op *chain)
{
    while (chain) {
        struct weir_job *job = job_of_op(chain);
        int64_t result = chain->result;

        chain = (struct wi_op *)(void *)chain->task.next;
        if (chain)
            __builtin_prefetch(job_of_op(chain));
        queue->device--;
        if (WI_LIKELY(op_is_read(job->op) || op_is_write(job->op)))
            transfer_completed(queue, job, result);
        else if (result == -ECANCELED &&
                 (tail_of(job)->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)))
            finish(queue, job, stop_code(tail_of(job)));
        else
            finish(queue, job, result);
    }
}

/* ---- timers and cancelling ------------------------------------------------------------- */

static void unlink_queued(struct job_tail *tail)
{
    WEIR_DCHECK(tail->state == JOB_QUEUED);
    wi_list_remove(&tail->link);
}

static void fire_timer(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    switch ((enum job_state)tail->state) {
    case JOB_QUEUED:
        unlink_queued(tail);
        finish(queue, job, -ETIMEDOUT);
        break;
    case JOB_RETRY:
        if (job->op == WEIR_OP_NOP) {
            finish(queue, job, 0);
        } else if (has_deadline(job) && queue->now_ns >= deadline_ns(job)) {
            finish(queue, job, -ETIMEDOUT);
        } else {
            set_state(queue, job, JOB_QUEUED);
            if (has_deadline(job))
                wi_wheel_add(&queue->wheel, &tail->timer, deadline_ns(job));
            wi_list_push_front(&queue->backlog, &tail->link);
        }
        break;
    case JOB_DEVICE:
        if (queue->backend->ops->cancel(queue->backend, &tail->op) == 0)
            tail->marks |= MARK_EXPIRED;
        else /* no room for the request: again at the next tick */
            wi_wheel_add(&queue->wheel, &tail->timer, queue->now_ns);
        break;
    case JOB_IDLE:
    case JOB_POSTED:
    case JOB_DONE:
        WEIR_ASSERT(!"a timer of a job that has ended");
    }
}

void wi_queue_fire_timers(struct weir_queue *queue)
{
    struct wi_list fired;
    struct wi_list *node;

    if (WI_LIKELY(queue->wheel.count == 0))
        return;
    wi_list_init(&fired);
    wi_wheel_advance(&queue->wheel, queue->now_ns, &fired);
    while ((node = wi_list_pop_front(&fired)) != NULL) {
        struct wi_timer *timer = WI_CONTAINER_OF(node, struct wi_timer, node);

        fire_timer(queue, job_of_tail(WI_CONTAINER_OF(timer, struct job_tail, timer)));
    }
}

static int cancel_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    switch ((enum job_state)tail->state) {
    case JOB_QUEUED:
        unlink_queued(tail);
        finish(queue, job, -ECANCELED);
        return 0;
    case JOB_RETRY:
        finish(queue, job, -ECANCELED);
        return 0;
    case JOB_DEVICE:
        if (tail->marks & MARK_CANCEL_ASKED)
            return -EALREADY;
        if (queue->backend->ops->cancel(queue->backend, &tail->op) < 0)
            return -EAGAIN;
        tail->marks |= MARK_CANCEL_ASKED;
        return 0;
    case JOB_DONE:
        return -EALREADY;
    case JOB_IDLE:
    case JOB_POSTED:
        break;
    }
    return -ENOENT;
}

int wi_queue_cancel_id(struct weir_queue *queue, uint64_t job_id)
{
    uint32_t index = (uint32_t)(job_id & 0xfffff);

    if (job_id == 0 || index >= queue->room + SPARE_SLOTS ||
        atomic_load_explicit(&queue->slots[index].id, memory_order_relaxed) != job_id)
        return -ENOENT;
    return cancel_job(queue, queue->slots[index].job);
}

void wi_queue_cancel_all(struct weir_queue *queue)
{
    for (uint32_t i = 0; i < queue->room + SPARE_SLOTS; i++)
        if (atomic_load_explicit(&queue->slots[i].id, memory_order_relaxed) != 0)
            (void)cancel_job(queue, queue->slots[i].job);
}

/* ---- calling `done` -------------------------------------------------------------------- */

int wi_queue_call_done(struct weir_queue *queue)
{
    struct wi_op *op = queue->done_first;
    int count = 0;

    queue->done_first = NULL;
    queue->done_last = NULL;
    queue->in_done = true;
    while (op) {
        struct weir_job *job = job_of_op(op);
        struct job_tail *tail = tail_of(job);

        op = (struct wi_op *)(void *)op->task.next;
        if (op)
            __builtin_prefetch(job_of_op(op));
        release_slot(queue, tail);
        tail->state = JOB_IDLE;
        queue->taken--;
        count++;
        /* What `done` submits is stamped with the time of this turn; a long row of calls
         * must not make that stale. */
        if (WI_UNLIKELY((count & 31) == 0))
            queue->now_ns = wi_os_now(queue->os);
        job->done(job); /* may free the job or submit it again */
    }
    queue->in_done = false;
    atomic_store_explicit(&queue->stats.in_flight, queue->taken, memory_order_relaxed);
    return count;
}
