/* SPDX-License-Identifier: MIT */
/*
 * queue_work.c - what happens to a job between submit and `done`
 *
 * Contents     slots and states; files; taking; order; finishing; inline reads; starting;
 *              dispatch; completions of jobs, of merged operations; timers; cancelling; calling
 *              `done`; what hangs
 * Idea         one owner thread, so no locks: a job is on exactly one list (its class, held,
 *              the cache's, done chain), in the wheel only (RETRY), or at the backend.
 * Dispatch     the class whose turn it is (base/drr.h) gives its first job, if the gate lets it
 *              pass; the job takes with it what lies beside it (merge.c).
 * Not here     who may call and when to wait (queue.c), the order inside a class (sched.c), limits
 *              (gate.c), reads through the block cache (cached.c), which errors are worth another
 *              try (retry.c).
 *
 * The states are drawn in engine_internal.h.
 */
#include "engine_internal.h"

#include <inttypes.h>
#include <stdlib.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x8
#endif

#define NO_SLOT          UINT32_MAX
#define INLINE_TURN      (1u << 20)   /* bytes a turn, or completions and timers would wait */
#define FIXED_AFTER_USES 8 /* a slot costs a system call: worth it for files used again */
#define PIECE_MAX        (1u << 30)
#define IOV_MAX_KERNEL   1024
#define EARN_EVERY       256

static bool start_here(struct weir_queue *queue, struct weir_job *job);

/* ---- slots and states ------------------------------------------------------------------ */

static uint32_t op_state(const struct weir_job *job, enum job_state state)
{
    return (uint32_t)job->op << 16 | (uint32_t)job->io_class << 8 | (uint32_t)state;
}

static uint32_t device_ms(const struct weir_queue *queue)
{
    return (uint32_t)((queue->now_ns - queue->opened_ns) / WI_MSEC_NS);
}

void wi_queue_set_state(struct weir_queue *queue, struct weir_job *job, enum job_state state)
{
    struct job_tail *tail = tail_of(job);

    tail->state = (uint8_t)state;
    atomic_store_explicit(&queue->slots[tail->slot].op_state, op_state(job, state),
                          memory_order_relaxed);
    if (state == JOB_DEVICE)
        queue->slots[tail->slot].device_ms = device_ms(queue);
}

static void take_slot(struct weir_queue *queue, struct weir_job *job, uint64_t now_ns)
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
    atomic_store_explicit(&slot->submit_ns, now_ns, memory_order_release);
    atomic_store_explicit(&slot->offset, job->offset, memory_order_release);
    atomic_store_explicit(&slot->length, job->len, memory_order_release);
    atomic_store_explicit(&slot->op_state, op_state(job, JOB_QUEUED), memory_order_release);
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

/* Of a read or write. */
static uint64_t total_bytes(const struct weir_job *job)
{
    return WI_LIKELY(job->op == WEIR_OP_READ || job->op == WEIR_OP_WRITE)
               ? job->len
               : wi_iov_bytes(job->buf, job->len);
}

static bool is_transfer(const struct weir_job *job)
{
    return op_is_read(job->op) || op_is_write(job->op);
}

static bool has_deadline(const struct weir_job *job)
{
    return job->timeout_ns != 0 && job->op != WEIR_OP_NOP;
}

static uint64_t deadline_ns(const struct weir_queue *queue, struct weir_job *job)
{
    return wi_add_sat(submit_ns_of(queue, job), job->timeout_ns);
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
        /* What the cache loads may be staged with the number of the slot. */
        if (all || (is_stale(entry) && entry->loads == 0))
            drop_slot(queue, entry);
    }
}

void wi_queue_begin_load(struct weir_queue *queue, struct weir_file *file)
{
    if (queue->files[file->index].loads++ == 0)
        wi_file_hold(file);
}

void wi_queue_end_load(struct weir_queue *queue, struct weir_file *file)
{
    struct queue_file *entry = &queue->files[file->index];

    if (--entry->loads > 0)
        return;
    if (is_stale(entry))
        drop_slot(queue, entry);
    wi_file_unhold(file);
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
        struct wi_prefetch *prefetch = entry->prefetch;

        if (entry->file)
            drop_slot(queue, entry);
        *entry = (struct queue_file){
            .file = file,
            .generation = atomic_load_explicit(&file->generation, memory_order_acquire),
            .slot = -1,
            .prefetch = prefetch,
            .last_block = UINT64_MAX,
        };
        if (prefetch)
            wi_prefetch_init(prefetch, wi_cache_block_size(queue->engine->cache),
                             wi_cache_bytes(queue->engine->cache));
    }
    if (WI_UNLIKELY(job->op == WEIR_OP_READ_MANY) && wi_many_prepare(queue) < 0)
        return -ENOMEM;
    if (WI_UNLIKELY(wi_file_reads_cached(file)))
        return wi_cached_prepare(queue, job);
    return 0;
}

/* A file that is used again and again gets a fixed slot in the backend's table; where all
 * are taken, that of a file with no jobs here, going round. */
static void want_slot(struct weir_queue *queue, struct queue_file *entry)
{
    if (is_stale(entry))
        return; /* closed: only what the cache still loads uses it */
    for (uint32_t step = 0; step < QUEUE_FILE_SLOTS; step++) {
        uint32_t slot = (queue->slot_hand + step) % QUEUE_FILE_SLOTS;
        struct queue_file *holder =
            queue->slot_file[slot] < 0 ? NULL : &queue->files[queue->slot_file[slot]];

        if (holder && (holder->jobs > 0 || holder->loads > 0))
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

/* Does it look into the block cache before anything else? */
static bool reads_cached(const struct weir_job *job)
{
    return job->file && wi_file_reads_cached(job->file) &&
           (op_is_read(job->op) || job->op == WEIR_OP_VIEW);
}

void wi_queue_requeue(struct weir_queue *queue, struct weir_job *job, bool front)
{
    struct job_tail *tail = tail_of(job);

    if (WI_UNLIKELY(tail->state != JOB_QUEUED))
        wi_queue_set_state(queue, job, JOB_QUEUED);
    if (WI_UNLIKELY(tail->marks & MARK_CACHED)) {
        if (front)
            wi_list_push_front(&queue->cached_ready, &tail->link);
        else
            wi_list_push_back(&queue->cached_ready, &tail->link);
        return;
    }
    if (class_is_urgent(job->io_class))
        wi_gate_stamp(&queue->engine->gate, queue->now_ns);
    queue->stuck = false;
    wi_sched_push(queue, job, front);
}

void wi_queue_take(struct weir_queue *queue, struct weir_job *job, uint64_t now_ns,
                   uint32_t marks)
{
    struct job_tail *tail = tail_of(job);
    bool is_internal = (marks & MARK_INTERNAL) != 0;

    tail->queue = queue;
    tail->start_ns = 0;
    tail->marks = (uint16_t)marks;
    tail->waiters = 0;
    tail->tries = 0;
    wi_list_init(&tail->timer.node);
    job->result = 0;
    job->transferred = 0;
    tail->state = JOB_QUEUED;
    take_slot(queue, job, now_ns);

    if (WI_UNLIKELY(is_internal)) {
        wi_queue_requeue(queue, job, false);
        return;
    }
    if (counts_on_file(job) && queue->files[job->file->index].jobs++ == 0)
        atomic_fetch_add_explicit(&job->file->users, 1, memory_order_seq_cst);
    if (has_deadline(job))
        wi_wheel_add(&queue->wheel, &tail->timer, deadline_ns(queue, job));
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
    if (WI_UNLIKELY(reads_cached(job)))
        tail->marks |= MARK_CACHED;
    wi_queue_requeue(queue, job, false);
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

bool wi_queue_is_held_back(struct weir_queue *queue, struct weir_job *job)
{
    return (tail_of(job)->marks & MARK_ORDERED) && find_blocker(queue, job);
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

bool wi_queue_hold(struct weir_queue *queue, struct weir_job *job)
{
    return WI_UNLIKELY(tail_of(job)->marks & MARK_ORDERED) && hold_job(queue, job);
}

/*
 * An ordered job has ended: those that waited for it wait for another, or go to the front of their
 * class. The held list is in the order of taking, and what waits for the job that ended is
 * near its front, so counting `waiters` down (they may be fewer, if some were cancelled) keeps
 * this short also with thousands of writes to one place.
 */
static void release_held(struct weir_queue *queue, struct weir_job *ended)
{
    uint32_t left = tail_of(ended)->waiters;
    bool all = left == WAITERS_MAX;
    struct wi_list freed;
    struct wi_list *node;

    wi_list_init(&freed); /* the last first */
    for (node = queue->held.next; node != &queue->held && (all || left > 0);) {
        struct job_tail *tail = WI_CONTAINER_OF(node, struct job_tail, link);

        node = node->next;
        if (tail->held.blocker != ended)
            continue;
        left--;
        wi_list_remove(&tail->link);
        if (!hold_job(queue, job_of_tail(tail)))
            wi_list_push_front(&freed, &tail->link);
    }
    while ((node = wi_list_pop_front(&freed)) != NULL)
        wi_queue_requeue(queue, job_of_tail(WI_CONTAINER_OF(node, struct job_tail, link)),
                         true);
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

static void trace_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    struct wi_trace_event event = {
        .file = wi_trace_file(job, job->result),
        .id = job->id,
        .submit_ns = submit_ns_of(queue, job),
        .start_ns = tail->start_ns,
        .end_ns = queue->now_ns,
        .offset = job->offset,
        .len = is_transfer(job) ? total_bytes(job) : job->len,
        .result = job->result,
        .flags = tail->marks & MARK_INTERNAL ? WI_TRACE_INTERNAL : 0,
        .op = (uint8_t)job->op,
        .io_class = job->io_class,
    };

    if (job->op == WEIR_OP_READ_MANY) {
        event.ranges = job->buf;
        event.ranges_count = job->len;
    }
    if ((tail->marks & MARKS_PART) !=
        MARKS_PART) /* the READ_MANY has a record for each range */
        wi_trace_add(queue->engine, &event);
}

static void count_done(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    enum weir_stats_group group = op_group(job->op);
    struct stats_counters *counters = &queue->stats.ops[group];
    uint64_t submit_ns = submit_ns_of(queue, job);

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
    if (WI_LIKELY(tail->start_ns != 0) && !(tail->marks & MARK_CACHED)) {
        count_hist(queue, group, job->io_class, STATS_WAIT, tail->start_ns - submit_ns);
        count_hist(queue, group, job->io_class, STATS_DEVICE, queue->now_ns - tail->start_ns);
    }
    count_hist(queue, group, job->io_class, STATS_TOTAL, queue->now_ns - submit_ns);
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

/* The queue's own job: what it is for goes on at once. Its time at the device counts as any
 * other's; it is no operation that anybody asked for. */
static void finish_internal(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    uint64_t submit_ns = submit_ns_of(queue, job);

    if (tail->start_ns != 0 && !(tail->marks & MARK_CACHED) &&
        wi_stats_prepare(queue, WEIR_STATS_READ, job->io_class)) {
        count_hist(queue, WEIR_STATS_READ, job->io_class, STATS_WAIT,
                   tail->start_ns - submit_ns);
        count_hist(queue, WEIR_STATS_READ, job->io_class, STATS_DEVICE,
                   queue->now_ns - tail->start_ns);
    }
    release_slot(queue, tail);
    tail->state = JOB_IDLE;
    job->done(job);
}

void wi_queue_finish(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);

    job->result = result;
    if (wi_list_on(&tail->timer.node))
        wi_wheel_remove(&queue->wheel, &tail->timer);
    if (WI_UNLIKELY(atomic_load_explicit(&queue->engine->trace, memory_order_relaxed) != NULL))
        trace_job(queue, job);
    if (WI_UNLIKELY(tail->marks & MARK_INTERNAL)) {
        finish_internal(queue, job);
        return;
    }
    if (WI_UNLIKELY(tail->marks & MARK_WRITING)) {
        struct iovec piece = { job->buf, job->len };
        bool is_vector = job->op == WEIR_OP_WRITEV;

        tail->marks &= (uint16_t)~MARK_WRITING;
        wi_cache_write_end(queue->engine->cache, job->file, job->offset, total_bytes(job),
                           is_vector ? job->buf : &piece, is_vector ? job->len : 1, result);
    }
    if (op_is_write(job->op) && tail->start_ns != 0)
        wi_file_keep(job->file, WI_KEEP_UNSYNCED, true);
    count_done(queue, job);
    if (WI_UNLIKELY(result < 0) && job->error)
        fill_error(job);
    if (counts_on_file(job) && --queue->files[job->file->index].jobs == 0)
        atomic_fetch_sub_explicit(&job->file->users, 1, memory_order_release);
    wi_queue_set_state(queue, job, JOB_DONE);
    if (tail->marks & MARK_ORDERED) {
        tail->marks &= (uint16_t)~MARK_ORDERED;
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

static void restart_job(struct weir_queue *queue, struct weir_job *job);

/* ---- inline reads ---------------------------------------------------------------------- */

/*
 * A read of cached bytes costs less than a trip through a ring, so reads of a file that has
 * been hitting the page cache are tried with RWF_NOWAIT first. `cached_score` remembers how
 * that went, from -32 to 16: a hit adds 1, a miss takes 4, and below zero only one read in 32
 * is tried. It is a hint that all queues share; lost updates do no harm.
 */
static bool worth_inline(struct weir_queue *queue, const struct weir_job *job)
{
    int32_t score = wi_queue_inline_score(queue, job);

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
    wi_queue_finish(queue, job, result);
    return true;
}

/* ---- starting -------------------------------------------------------------------------- */

static int64_t run_call(struct wi_op *op)
{
    struct weir_job *job = job_of_op(op);

    return wi_job_call(tail_of(job)->queue->engine, job);
}

/* A load of the block cache's that is to leave nothing in the page cache. */
static bool reads_uncached(struct weir_job *job)
{
    return (tail_of(job)->marks & MARK_INTERNAL) &&
           atomic_load_explicit(&job->file->load_rwf, memory_order_relaxed) != 0;
}

/* Open the descriptor of a file of the pool's again. Then it stays open, since the queue uses it. */
static int64_t run_reopen(struct wi_op *op)
{
    struct weir_file *file = job_of_op(op)->file;
    int rc = wi_file_pool_begin(file);

    if (rc == 0)
        wi_file_pool_end(file);
    return rc;
}

/* How many of the pieces make no more than `cap` bytes; at least one. */
static uint32_t pieces_within(const struct iovec *iov, uint64_t count, uint64_t cap,
                              uint64_t *ret_bytes)
{
    uint64_t bytes = iov[0].iov_len;
    uint32_t taken = 1;

    while (taken < count && bytes + iov[taken].iov_len <= cap)
        bytes += iov[taken++].iov_len;
    *ret_bytes = bytes;
    return taken;
}

/* How an operation on this file is to be addressed. */
static void fill_file(struct weir_queue *queue, struct weir_file *file, struct wi_op *op)
{
    struct queue_file *entry = &queue->files[file->index];

    op->fd = file->fd;
    if (queue->can_slot && entry->slot < 0 && !file->pooled &&
        ++entry->uses >= FIXED_AFTER_USES)
        want_slot(queue, entry);
    op->fixed_file = entry->slot;
}

/* Fill the operation for what is left of a read or write, up to `cap` bytes. Returns how many. */
static uint64_t fill_transfer(struct weir_queue *queue, struct weir_job *job, struct wi_op *op,
                              uint64_t cap)
{
    const struct buffer_pool *buffers = &queue->engine->buffers;
    bool is_write = op_is_write(job->op);
    uint64_t left = job->len - job->transferred;
    uint64_t bytes = 0;

    op->kind = is_write ? WI_OP_WRITE : WI_OP_READ;
    op->offset = job->offset + job->transferred;
    op->addr = (uint64_t)(uintptr_t)job->buf + job->transferred;
    if (WI_UNLIKELY(job->op == WEIR_OP_READV || job->op == WEIR_OP_WRITEV)) {
        const struct iovec *iov = job->buf;
        uint64_t skip = job->transferred;
        size_t i = 0;

        while (skip >= iov[i].iov_len)
            skip -= iov[i++].iov_len;
        if (skip == 0 && i + 1 < job->len && iov[i].iov_len <= cap) {
            op->kind = is_write ? WI_OP_WRITEV : WI_OP_READV;
            op->addr = (uint64_t)(uintptr_t)(iov + i);
            left =
                pieces_within(iov + i, wi_min_u64(job->len - i, IOV_MAX_KERNEL), cap, &bytes);
        } else {
            /* The rest of a piece that was cut goes alone; then whole pieces again. */
            op->addr = (uint64_t)(uintptr_t)iov[i].iov_base + skip;
            left = iov[i].iov_len - skip;
        }
    }
    op->len = (uint32_t)wi_min_u64(left, cap);

    op->flags = 0;
    if (buffers->base && (op->kind == WI_OP_READ || op->kind == WI_OP_WRITE)) {
        uint64_t at = op->addr - (uint64_t)(uintptr_t)buffers->base;

        if (at < buffers->bytes && op->len <= buffers->bytes - at)
            op->flags |= WI_OP_FIXED_BUFFER;
    }
    if (WI_UNLIKELY(tail_of(job)->marks & (MARK_FORCE_ASYNC | MARK_INTERNAL))) {
        if (tail_of(job)->marks & MARK_FORCE_ASYNC)
            op->flags |= WI_OP_FORCE_ASYNC;
        if (reads_uncached(job))
            op->flags |= WI_OP_DONTCACHE;
    }
    fill_file(queue, job->file, op);
    return bytes ? bytes : op->len;
}

/* A time to wait for, with nothing at the backend. */
static void wait_until(struct weir_queue *queue, struct weir_job *job, uint64_t due_ns)
{
    struct job_tail *tail = tail_of(job);

    wi_queue_set_state(queue, job, JOB_RETRY);
    if (wi_list_on(&tail->timer.node))
        wi_wheel_remove(&queue->wheel, &tail->timer);
    if (has_deadline(job))
        due_ns = wi_min_u64(due_ns, deadline_ns(queue, job));
    wi_wheel_add(&queue->wheel, &tail->timer, due_ns);
}

/* What is done at once, without the backend. Returns true if it was that. */
static bool start_here(struct weir_queue *queue, struct weir_job *job)
{
    if (WI_LIKELY(is_transfer(job))) {
        if (WI_UNLIKELY(op_is_write(job->op) && wi_file_sync_error(job->file) < 0)) {
            wi_queue_finish(queue, job, wi_file_sync_error(job->file));
            return true;
        }
        if (WI_UNLIKELY(total_bytes(job) == 0)) {
            wi_queue_finish(queue, job, 0);
            return true;
        }
        return job->transferred == 0 && !(tail_of(job)->marks & MARK_NO_INLINE) &&
               worth_inline(queue, job) && try_inline(queue, job);
    }
    if (job->op == WEIR_OP_NOP) {
        if (job->timeout_ns != 0)
            wait_until(queue, job, wi_add_sat(submit_ns_of(queue, job), job->timeout_ns));
        else
            wi_queue_finish(queue, job, 0);
        return true;
    }
    if (job->op == WEIR_OP_CANCEL) {
        wi_queue_finish(queue, job, wi_queue_cancel_id(queue, job->offset));
        return true;
    }
    if (job->op == WEIR_OP_READ_MANY) {
        wi_many_start(queue, job);
        return true;
    }
    if (job->op == WEIR_OP_ADVISE && job->mode == WEIR_ADVICE_WILLNEED &&
        wi_file_reads_cached(job->file)) {
        wi_queue_finish(queue, job, wi_cached_advise(queue, job));
        return true;
    }
    return false;
}

/* What became of a job that was to start. */
enum start {
    START_DONE,  /* it has started, or ended */
    START_YIELD, /* it waits again, since its class gives way */
    START_FULL   /* it waits again, since there is no room at all */
};

static void leave_device(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    wi_gate_leave(queue, queue->slots[tail->slot].device_bytes);
    if (class_is_urgent(job->io_class))
        wi_gate_urgent(queue, false);
    if (WI_UNLIKELY(tail->marks & MARK_LOW)) {
        tail->marks &= (uint16_t)~MARK_LOW;
        wi_gate_low_leave(queue);
    }
}

static enum start start_call(struct weir_queue *queue, struct weir_job *job, wi_op_call_fn call)
{
    struct job_tail *tail = tail_of(job);
    struct wi_op *op = &tail->op;

    op->kind = WI_OP_CALL;
    op->flags = 0;
    op->addr = (uint64_t)(uintptr_t)call;
    op->lane = job->op == WEIR_OP_CALL ? job->lane : WEIR_LANE_FILES;
    op->fixed_file = -1;
    if (WI_UNLIKELY(queue->backend->ops->start(queue->backend, op) < 0)) {
        wi_queue_requeue(queue, job, true);
        return START_FULL;
    }
    wi_queue_set_state(queue, job, JOB_DEVICE);
    queue->device++;
    return START_DONE;
}

/* A write goes to the device: the block cache has to know. */
static void announce_write(struct weir_queue *queue, struct weir_job *job)
{
    if (WI_UNLIKELY(job->file->cache_file != NULL) && !(tail_of(job)->marks & MARK_WRITING)) {
        tail_of(job)->marks |= MARK_WRITING;
        wi_cache_write_begin(queue->engine->cache, job->file, job->offset, total_bytes(job));
    }
}

static void count_started(struct weir_queue *queue, uint64_t bytes)
{
    queue->device++;
    wi_counter_add(&queue->stats.device_ops, 1);
    wi_counter_add(&queue->stats.device_bytes, bytes);
}

/* Give a filled bundle to the backend. False: no room. */
static bool start_bundle(struct weir_queue *queue, struct bundle *bundle,
                         struct weir_file *file, bool uncached)
{
    bundle->op.flags = uncached ? WI_OP_DONTCACHE : 0;
    fill_file(queue, file, &bundle->op);
    if (queue->backend->ops->start(queue->backend, &bundle->op) < 0)
        return false;
    count_started(queue, bundle->bytes);
    return true;
}

/* The members of a merged operation that did not come off, off its list: they wait again, the
 * first of them before all others. */
static void requeue_members(struct weir_queue *queue, struct wi_list *members)
{
    while (!wi_list_empty(members)) {
        struct job_tail *tail = WI_CONTAINER_OF(members->prev, struct job_tail, member.link);

        wi_list_remove(&tail->member.link);
        wi_queue_requeue(queue, job_of_tail(tail), true);
    }
}

static enum start start_merged(struct weir_queue *queue, struct weir_job *job,
                               struct bundle *bundle, bool low)
{
    struct wi_list *link;

    list_for_each(link, &bundle->members) {
        struct job_tail *tail = WI_CONTAINER_OF(link, struct job_tail, member.link);
        struct weir_job *member = job_of_tail(tail);

        wi_queue_set_state(queue, member, JOB_DEVICE);
        tail->marks |= MARK_BUNDLED;
        if (tail->start_ns == 0)
            tail->start_ns = queue->now_ns;
        if (class_is_urgent(member->io_class))
            wi_gate_urgent(queue, true);
        wi_job_touch(member);
        if (op_is_write(member->op))
            announce_write(queue, member);
    }
    bundle->low = low;
    if (WI_LIKELY(start_bundle(queue, bundle, job->file, reads_uncached(job))))
        return START_DONE;
    list_for_each(link, &bundle->members) {
        struct job_tail *tail = WI_CONTAINER_OF(link, struct job_tail, member.link);

        tail->marks &= (uint16_t)~MARK_BUNDLED;
        if (class_is_urgent(job_of_tail(tail)->io_class))
            wi_gate_urgent(queue, false);
    }
    wi_gate_leave(queue, bundle->bytes);
    if (low)
        wi_gate_low_leave(queue);
    requeue_members(queue, &bundle->members);
    wi_merge_free(queue, bundle);
    return START_FULL;
}

static enum start start_transfer(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    bool low = rank_gives_way(wi_drr_rank(job->io_class));
    uint64_t cap = PIECE_MAX;
    struct bundle *bundle = NULL;
    uint64_t bytes;

    if (WI_UNLIKELY(low)) {
        if (!wi_gate_low_enter(queue)) {
            wi_queue_requeue(queue, job, true);
            return START_YIELD;
        }
        if (wi_gate_is_urgent(queue))
            cap = GATE_LOW_BYTES;
    }
    bytes = wi_min_u64(fill_transfer(queue, job, &tail->op, cap), UINT32_MAX);
    if (WI_UNLIKELY(!wi_gate_admit(queue, bytes))) {
        if (low)
            wi_gate_low_leave(queue);
        wi_queue_requeue(queue, job, true);
        return START_FULL;
    }
    queue->charge = bytes;
    if (queue->merge_count > 0 && bytes == job->len)
        bundle = wi_merge_gather(queue, job, cap);
    if (WI_UNLIKELY(bundle != NULL)) {
        wi_gate_grow(queue, bundle->bytes - bytes);
        return start_merged(queue, job, bundle, low);
    }
    if (WI_UNLIKELY(op_is_write(job->op)))
        announce_write(queue, job);
    if (WI_UNLIKELY(queue->backend->ops->start(queue->backend, &tail->op) < 0)) {
        wi_gate_leave(queue, bytes);
        if (low)
            wi_gate_low_leave(queue);
        wi_queue_requeue(queue, job, true);
        return START_FULL;
    }
    queue->slots[tail->slot].device_bytes = (uint32_t)bytes;
    if (WI_UNLIKELY(low))
        tail->marks |= MARK_LOW;
    if (class_is_urgent(job->io_class))
        wi_gate_urgent(queue, true);
    wi_queue_set_state(queue, job, JOB_DEVICE);
    count_started(queue, bytes);
    return START_DONE;
}

/* QUEUED and off its list; started for the first time, or again. */
static enum start start_now(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    enum start start;

    if (WI_LIKELY(is_transfer(job))) {
        wi_job_touch(job); /* the buffer may have died since submit */
        if (WI_UNLIKELY(job->file->pooled && !wi_file_pool_is_open(job->file))) {
            start = start_call(queue, job, run_reopen);
            if (start == START_DONE)
                tail->marks |= MARK_REOPENING;
            return start;
        }
    }
    if (start_here(queue, job))
        return START_DONE;
    return WI_LIKELY(is_transfer(job)) ? start_transfer(queue, job)
                                       : start_call(queue, job, run_call);
}

static enum start start_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    bool is_first = tail->start_ns == 0;
    enum start start;

    if (is_first)
        tail->start_ns = queue->now_ns;
    start = start_now(queue, job);
    if (WI_UNLIKELY(start != START_DONE && is_first))
        tail->start_ns = 0; /* it waits on */
    return start;
}

/*
 * Whose turn it is. What gives way can be served for a small part of the time only. If it
 * missed a round by that, it goes first when it may: the urgent classes would otherwise begin one
 * round after the other, and what gives way would find the end of none. -1: nobody's.
 */
static int next_rank(struct weir_queue *queue, uint32_t closed)
{
    uint32_t mask = queue->waiting_mask & ~closed;

    if (WI_UNLIKELY(mask & RANKS_LOW) && wi_gate_is_urgent(queue)) {
        int rank = wi_drr_most_owed(&queue->drr, mask & RANKS_LOW);

        if (rank >= 0)
            return rank;
    }
    return wi_drr_pick_of(&queue->drr, mask, queue->waiting_mask);
}

void wi_queue_dispatch(struct weir_queue *queue)
{
    uint32_t closed = 0; /* ranks that give way in this round */
    enum start start = START_DONE;

    queue->inline_left = INLINE_TURN;
    queue->low_again_ns = 0;
    if (WI_UNLIKELY(!wi_list_empty(&queue->cached_ready)))
        wi_cached_run(queue);
    while (queue->device < queue->depth && queue->inline_left > 0) {
        int rank = next_rank(queue, closed);
        struct weir_job *job;

        if (rank < 0)
            break;
        job = wi_sched_first(queue, (uint32_t)rank);
        wi_sched_remove(queue, job);
        if (wi_queue_hold(queue, job))
            continue;
        queue->charge = 0;
        start = start_job(queue, job);
        if (WI_LIKELY(start == START_DONE))
            wi_drr_charge(&queue->drr, (uint32_t)rank, queue->charge);
        else if (start == START_YIELD)
            closed |= RANKS_LOW;
        else
            break;
    }
    /* What waits then is started by a completion, the gate or the clock. */
    queue->stuck = closed != 0 || start == START_FULL;
}

/* ---- completions ----------------------------------------------------------------------- */

/* DEVICE and back from the backend, counted at the device still: it goes on at once. But what
 * gives way does so after each piece. */
static void restart_job(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    if (WI_UNLIKELY(tail->marks & MARK_LOW)) {
        leave_device(queue, job);
        wi_queue_requeue(queue, job, true);
        return;
    }
    if (WI_UNLIKELY(op_is_write(job->op) && wi_file_sync_error(job->file) < 0)) {
        leave_device(queue, job);
        wi_queue_finish(queue, job, wi_file_sync_error(job->file));
        return;
    }
    /* No more than was admitted. */
    (void)fill_transfer(queue, job, &tail->op, queue->slots[tail->slot].device_bytes);
    if (WI_UNLIKELY(queue->backend->ops->start(queue->backend, &tail->op) < 0)) {
        leave_device(queue, job);
        wi_queue_requeue(queue, job, true);
        return;
    }
    count_started(queue, 0);
}

static void transfer_failed(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);
    struct retry_verdict verdict;

    if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)) {
        /* Stopped as asked, or it would have been tried again: either way it ends here. */
        verdict = wi_retry_verdict(job->op, result, 0);
        leave_device(queue, job);
        wi_queue_finish(queue, job,
                        result == -ECANCELED || verdict.action != RETRY_NEVER
                            ? wi_queue_stop_code(job)
                            : result);
        return;
    }
    if (result == -EOPNOTSUPP && (tail->op.flags & WI_OP_DONTCACHE)) {
        /* The file system can't read past the page cache, after all. */
        atomic_store_explicit(&job->file->load_rwf, 0, memory_order_relaxed);
        restart_job(queue, job);
        return;
    }
    verdict = wi_retry_verdict(job->op, result, tail->tries);
    if (verdict.action == RETRY_LATER && !wi_retry_spend(queue->engine)) {
        wi_counter_add(&queue->stats.retries_refused, 1);
        verdict.action = RETRY_NEVER;
    }
    if (verdict.action == RETRY_NEVER) {
        leave_device(queue, job);
        wi_queue_finish(queue, job, verdict.code);
        return;
    }
    tail->tries++;
    wi_counter_add(&queue->stats.retries, 1);
    if (result == -EAGAIN)
        tail->marks |= MARK_FORCE_ASYNC;
    if (verdict.action == RETRY_NOW) {
        restart_job(queue, job);
        return;
    }
    leave_device(queue, job);
    wait_until(queue, job, wi_add_sat(queue->now_ns, verdict.delay_ns));
}

/* A read or write moved less than was left. Returns true if it goes on. */
static bool goes_on(struct weir_queue *queue, struct weir_job *job, int64_t result,
                    int64_t *ret_code)
{
    struct job_tail *tail = tail_of(job);

    if (op_is_read(job->op)) {
        /* Only 0 is the end of the file; on a direct file also an end off a block boundary,
         * from where no further direct read could start. */
        if (result == 0 || (job->transferred & (job->file->offset_align - 1)) != 0) {
            *ret_code = (int64_t)job->transferred;
            return false;
        }
    } else if (result == 0 && (tail->marks & MARK_EMPTY_WRITE)) {
        *ret_code = -EIO; /* a write that moves nothing, twice */
        return false;
    }
    if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)) {
        *ret_code = wi_queue_stop_code(job);
        return false;
    }
    tail->tries = 0;
    if (result == 0)
        tail->marks |= MARK_EMPTY_WRITE;
    else
        tail->marks &= (uint16_t)~MARK_EMPTY_WRITE;
    wi_counter_add(&queue->stats.continued, 1);
    return true;
}

static void transfer_completed(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    uint64_t total = total_bytes(job);
    int64_t code;

    if (WI_UNLIKELY(result < 0)) {
        transfer_failed(queue, job, result);
        return;
    }
    job->transferred += (uint64_t)result;
    if (WI_LIKELY(job->transferred == total)) {
        leave_device(queue, job);
        wi_queue_finish(queue, job, (int64_t)total);
    } else if (goes_on(queue, job, result, &code)) {
        restart_job(queue, job);
    } else {
        leave_device(queue, job);
        wi_queue_finish(queue, job, code);
    }
}

/* ---- completions of merged operations -------------------------------------------------- */

static void members_completed(struct weir_queue *queue, struct bundle *bundle, int64_t result)
{
    uint64_t reached = bundle->offset + (result > 0 ? (uint64_t)result : 0);
    struct wi_list members;
    struct wi_list alone;
    struct wi_list *link;

    wi_list_init(&members);
    wi_list_init(&alone);
    wi_list_splice(&members, &bundle->members);
    while ((link = wi_list_pop_front(&members)) != NULL) {
        struct job_tail *tail = WI_CONTAINER_OF(link, struct job_tail, member.link);
        struct weir_job *job = job_of_tail(tail);
        struct retry_verdict verdict = wi_retry_verdict(job->op, result, 0);

        tail->marks &= (uint16_t)~MARK_BUNDLED;
        if (class_is_urgent(job->io_class))
            wi_gate_urgent(queue, false);
        if (result >= 0 && job->offset + job->len <= reached) {
            wi_merge_deliver(bundle, job);
            job->transferred = job->len;
            wi_queue_finish(queue, job, (int64_t)job->len);
        } else if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED)) {
            wi_queue_finish(queue, job, wi_queue_stop_code(job));
        } else if (result < 0 && op_is_write(job->op) && verdict.action == RETRY_NEVER) {
            wi_queue_finish(queue, job, verdict.code); /* a failed write is not tried again */
        } else {
            tail->marks |= MARK_ALONE;
            wi_counter_add(&queue->stats.merge_splits, 1);
            wi_list_push_back(&alone, &tail->member.link);
        }
    }
    requeue_members(queue, &alone);
}

static void bundle_completed(struct weir_queue *queue, struct bundle *bundle, int64_t result)
{
    wi_gate_leave(queue, bundle->bytes);
    if (bundle->low)
        wi_gate_low_leave(queue);
    members_completed(queue, bundle, result);
    wi_merge_free(queue, bundle);
}

/* The descriptor of the job's file was opened again, or could not be. */
static void reopened(struct weir_queue *queue, struct weir_job *job, int64_t result)
{
    struct job_tail *tail = tail_of(job);

    tail->marks &= (uint16_t)~MARK_REOPENING;
    if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED))
        result = wi_queue_stop_code(job);
    if (result >= 0)
        wi_queue_requeue(queue, job, true);
    else
        wi_queue_finish(queue, job, result);
}

void wi_queue_completed(struct weir_queue *queue, struct wi_op *chain)
{
    queue->stuck = false;
    while (chain) {
        struct wi_op *op = chain;
        struct bundle *bundle = bundle_of(queue, op);
        int64_t result = op->result;
        struct weir_job *job;

        chain = (struct wi_op *)(void *)op->task.next;
        queue->device--;
        queue->completions++;
        if (WI_UNLIKELY(bundle != NULL)) {
            bundle_completed(queue, bundle, result);
            continue;
        }
        job = job_of_op(op);
        if (chain)
            __builtin_prefetch(job_of_op(chain));
        if (WI_UNLIKELY(tail_of(job)->marks & MARK_REOPENING)) {
            reopened(queue, job, result);
        } else if (WI_LIKELY(is_transfer(job))) {
            transfer_completed(queue, job, result);
        } else if (result == -ECANCELED &&
                   (tail_of(job)->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED))) {
            wi_queue_finish(queue, job, wi_queue_stop_code(job));
        } else {
            wi_queue_finish(queue, job, result);
        }
    }
    if (queue->completions >= EARN_EVERY) {
        wi_retry_earn(queue->engine, queue->completions);
        queue->completions = 0;
    }
}

/* ---- timers and cancelling ------------------------------------------------------------- */

/* Take a job that waits off its list. */
static void unlink_waiting(struct weir_queue *queue, struct weir_job *job)
{
    if (tail_of(job)->marks & MARK_CLASSED)
        wi_sched_remove(queue, job);
    else
        wi_list_remove(&tail_of(job)->link);
}

/* A merged operation is cancelled only if all its members are to be stopped. */
static int stop_bundle(struct weir_queue *queue, struct bundle *bundle)
{
    struct wi_list *link;
    int rc;

    list_for_each(link, &bundle->members)
        if (!(WI_CONTAINER_OF(link, struct job_tail, member.link)->marks &
              (MARK_CANCEL_ASKED | MARK_EXPIRED)))
            return 0;
    if (bundle->stop_asked)
        return 0;
    rc = queue->backend->ops->cancel(queue->backend, &bundle->op);
    bundle->stop_asked = rc == 0;
    return rc;
}

/* Stop a job in DEVICE, which is marked already. Returns what the backend says. */
static int stop_at_device(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    if (tail->marks & MARK_BUNDLED)
        return stop_bundle(queue, tail->member.bundle);
    return queue->backend->ops->cancel(queue->backend, &tail->op);
}

/* End a job that waits. `mark` says why. */
static void stop_waiting(struct weir_queue *queue, struct weir_job *job, enum job_mark mark)
{
    tail_of(job)->marks |= (uint16_t)mark;
    if (tail_of(job)->state == JOB_QUEUED || job->op != WEIR_OP_READ_MANY)
        unlink_waiting(queue, job);
    if (job->op == WEIR_OP_READ_MANY)
        wi_many_stop(queue, job);
    else
        wi_queue_finish(queue, job, wi_queue_stop_code(job));
}

static void fire_timer(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    switch ((enum job_state)tail->state) {
    case JOB_QUEUED:
    case JOB_LOADING:
        stop_waiting(queue, job, MARK_EXPIRED);
        break;
    case JOB_RETRY:
        if (job->op == WEIR_OP_NOP) {
            wi_queue_finish(queue, job, 0);
        } else if (has_deadline(job) && queue->now_ns >= deadline_ns(queue, job)) {
            wi_queue_finish(queue, job, -ETIMEDOUT);
        } else {
            if (has_deadline(job))
                wi_wheel_add(&queue->wheel, &tail->timer, deadline_ns(queue, job));
            wi_queue_requeue(queue, job, true);
        }
        break;
    case JOB_DEVICE:
        tail->marks |= MARK_EXPIRED;
        if (stop_at_device(queue, job) < 0) {
            /* No room for the request: again at the next tick. */
            tail->marks &= (uint16_t)~MARK_EXPIRED;
            wi_wheel_add(&queue->wheel, &tail->timer, queue->now_ns);
        }
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
    case JOB_LOADING:
        if (tail->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED))
            return -EALREADY; /* its parts were asked */
        stop_waiting(queue, job, MARK_CANCEL_ASKED);
        return 0;
    case JOB_RETRY:
        wi_queue_finish(queue, job, -ECANCELED);
        return 0;
    case JOB_DEVICE:
        if (tail->marks & MARK_CANCEL_ASKED)
            return -EALREADY;
        tail->marks |= MARK_CANCEL_ASKED;
        if (stop_at_device(queue, job) < 0) {
            tail->marks &= (uint16_t)~MARK_CANCEL_ASKED;
            return -EAGAIN;
        }
        return 0;
    case JOB_DONE:
        return -EALREADY;
    case JOB_IDLE:
    case JOB_POSTED:
        break;
    }
    return -ENOENT;
}

/* The job with this id, or NULL. */
static struct weir_job *find_job(struct weir_queue *queue, uint64_t job_id)
{
    uint32_t index = (uint32_t)(job_id & 0xfffff);

    if (job_id == 0 || index >= queue->slot_count ||
        atomic_load_explicit(&queue->slots[index].id, memory_order_relaxed) != job_id)
        return NULL;
    return queue->slots[index].job;
}

int wi_queue_cancel_id(struct weir_queue *queue, uint64_t job_id)
{
    struct weir_job *job = find_job(queue, job_id);

    return job && !(tail_of(job)->marks & MARK_INTERNAL) ? cancel_job(queue, job) : -ENOENT;
}

/* What the cache would still load of files that were closed. */
void wi_queue_drop_loads(struct weir_queue *queue)
{
    for (uint32_t i = 0; i < queue->slot_count; i++) {
        struct weir_job *job = queue->slots[i].job;

        if (job && (tail_of(job)->marks & MARK_INTERNAL) && tail_of(job)->state != JOB_DEVICE &&
            atomic_load_explicit(&job->file->open_flags, memory_order_relaxed) == 0)
            (void)cancel_job(queue, job);
    }
}

static void cancel_each(struct weir_queue *queue, bool internal)
{
    for (uint32_t i = 0; i < queue->slot_count; i++) {
        struct weir_job *job = queue->slots[i].job;

        if (job && ((tail_of(job)->marks & MARK_INTERNAL) != 0) == internal)
            (void)cancel_job(queue, job);
    }
}

void wi_queue_cancel_all(struct weir_queue *queue)
{
    cancel_each(queue, false); /* first, so that its parts know why they end */
    cancel_each(queue, true);
}

void wi_queue_stop_part(struct weir_queue *queue, struct weir_job *part)
{
    (void)cancel_job(queue, part);
}

void wi_queue_promote(struct weir_queue *queue, uint64_t job_id, uint32_t io_class)
{
    struct weir_job *job = find_job(queue, job_id);

    if (!job || wi_drr_rank(io_class) >= wi_drr_rank(job->io_class))
        return;
    if (tail_of(job)->state == JOB_LOADING && (tail_of(job)->marks & MARK_CACHED))
        wi_cached_promote(queue, job, io_class);
    if (tail_of(job)->state != JOB_QUEUED)
        return;
    if (tail_of(job)->marks & MARK_CLASSED) {
        wi_sched_remove(queue, job);
        job->io_class = (uint8_t)io_class;
        wi_sched_push(queue, job, false);
    } else {
        job->io_class = (uint8_t)io_class; /* held, or to look into the cache first */
    }
    wi_queue_set_state(queue, job, JOB_QUEUED);
    wi_counter_add(&queue->stats.promoted, 1);
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
        if (WI_UNLIKELY(job->permit != NULL))
            weir_permit_release(job->permit);
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

/* ---- what hangs ------------------------------------------------------------------------ */

void wi_queue_check_stalls(struct weir_queue *queue)
{
    uint64_t limit_ns = queue->engine->stall_ns;

    for (uint32_t i = 0; i < queue->slot_count; i++) {
        struct queue_slot *slot = &queue->slots[i];
        uint64_t next_ns = limit_ns;
        uint64_t since_ns;
        uint64_t age_ns;
        struct weir_job *job;

        if (atomic_load_explicit(&slot->id, memory_order_relaxed) == 0 ||
            tail_of(slot->job)->state != JOB_DEVICE)
            continue;
        job = slot->job;
        age_ns = (uint64_t)(device_ms(queue) - slot->device_ms) * WI_MSEC_NS;
        since_ns = queue->now_ns - age_ns;
        if (age_ns < limit_ns)
            continue;
        /* Said at the limit, and at each doubling of it: has one gone by since the last look? */
        while (next_ns <= age_ns / 2)
            next_ns *= 2;
        if (since_ns + next_ns <= queue->stall_seen_ns)
            continue;
        if (next_ns == limit_ns)
            wi_counter_add(&queue->stats.stalls, 1);
        wi_engine_log(queue->engine, WEIR_LOG_WARNING,
                      "%s of %s at %" PRIu64 " has been at the device for %.1f s (job %" PRIu64
                      "); it can't be taken back before the kernel answers",
                      weir_op_name(job->op),
                      job->file && job->file->path[0] ? job->file->path : "a file", job->offset,
                      (double)age_ns / WI_SEC_NS, job->id);
    }
    queue->stall_seen_ns = queue->now_ns;
    queue->stall_check_ns = queue->now_ns + limit_ns / 2;
}
