/* SPDX-License-Identifier: MIT */
/*
 * cached.c - a queue's reads through the block cache
 *
 * Idea         a job that reads a cached file looks into the cache (step). What is there it
 *              copies, or pins as a view; for what is missing a load is begun, which is a job
 *              like any other, with class, order, merging, limits and retries, only without
 *              `done`. The job waits for the load of the block it needs next, and looks on when
 *              that has ended. Loads of the blocks after it are begun at the same time.
 * Sharing      jobs of one queue share a load, unless a write has overtaken it. Other queues
 *              and threads never wait for it, since the owner may not come back to run it
 *              (design.md, the liveness rule): they read the block themselves, and whoever is
 *              first publishes it.
 * Read-ahead   after each demand read the prefetcher (prefetch.c) says what to read next. Such a
 *              load has the class PREFETCH, or BACKGROUND for a reader that gives way; a reader
 *              that comes to need it makes it as urgent as itself.
 * No room      a load that finds no frame (all pinned, or being loaded) reads into `bounce`, one at
 *              a time, and is not cached: slow, but it always goes on. Jobs for which there is no
 *              load at all wait on `starved` for the next that ends.
 * Limits       LOADS_MAX loads, of which prefetches leave a quarter free.
 *
 * Thread: the queue's owner.
 */
#include "engine_internal.h"

#include <stdlib.h>

#define BUCKETS    256u
#define AHEAD_MAX  32u /* blocks of one job that are loaded at the same time */
#define KEEP_LOADS (LOADS_MAX / 4)

struct load {
    struct weir_job job;
    struct wi_load_ticket ticket;
    struct weir_file *file;
    uint64_t block;
    struct wi_list waiters; /* jobs in LOADING */
    struct wi_list link;    /* in its bucket, or free */
    bool prefetch;          /* begun without a demand */
    bool demanded;          /* but there was one since */
    bool bounced;           /* into `bounce`: never published */
};

struct cached {
    struct wi_cache *cache;
    struct load *loads;
    struct wi_list free;
    uint32_t free_count;
    struct wi_list buckets[BUCKETS];
    struct wi_list starved;
    unsigned char *bounce;
    bool bounce_busy;
    uint32_t block_size;
    uint32_t shift;
};

/* What a job wants next. */
struct piece {
    uint64_t offset;
    unsigned char *to; /* NULL for a view */
    uint64_t len;
};

/* ---- making and freeing ------------------------------------------------------------------ */

static int64_t cached_bytes(const struct cached *cached)
{
    return (int64_t)(sizeof(*cached) + LOADS_MAX * sizeof(*cached->loads) + cached->block_size);
}

static struct cached *make(struct weir_queue *queue)
{
    struct cached *cached = calloc(1, sizeof(*cached));

    if (!cached)
        return NULL;
    cached->cache = queue->engine->cache;
    cached->block_size = wi_cache_block_size(cached->cache);
    cached->shift = (uint32_t)__builtin_ctz(cached->block_size);
    cached->loads = calloc(LOADS_MAX, sizeof(*cached->loads));
    cached->bounce = aligned_alloc(4096, cached->block_size);
    if (!cached->loads || !cached->bounce) {
        free(cached->loads);
        free(cached->bounce);
        free(cached);
        return NULL;
    }
    wi_list_init(&cached->free);
    wi_list_init(&cached->starved);
    for (uint32_t i = 0; i < BUCKETS; i++)
        wi_list_init(&cached->buckets[i]);
    for (uint32_t i = 0; i < LOADS_MAX; i++) {
        wi_list_init(&cached->loads[i].waiters);
        wi_list_push_back(&cached->free, &cached->loads[i].link);
    }
    cached->free_count = LOADS_MAX;
    wi_engine_account(queue->engine, cached_bytes(cached));
    return cached;
}

int wi_cached_prepare(struct weir_queue *queue, struct weir_job *job)
{
    struct queue_file *entry = &queue->files[job->file->index];

    if (!queue->cached)
        queue->cached = make(queue);
    if (!queue->cached)
        return -ENOMEM;
    if (entry->prefetch)
        return 0;
    entry->prefetch = malloc(sizeof(*entry->prefetch));
    if (!entry->prefetch)
        return -ENOMEM;
    wi_engine_account(queue->engine, sizeof(*entry->prefetch));
    wi_prefetch_init(entry->prefetch, queue->cached->block_size,
                     wi_cache_bytes(queue->cached->cache));
    return 0;
}

void wi_cached_fini(struct weir_queue *queue)
{
    struct cached *cached = queue->cached;

    for (uint32_t i = 0; i < queue->files_room; i++) {
        if (queue->files[i].prefetch)
            wi_engine_account(queue->engine, -(int64_t)sizeof(*queue->files[i].prefetch));
        free(queue->files[i].prefetch);
    }
    if (!cached)
        return;
    wi_engine_account(queue->engine, -cached_bytes(cached));
    free(cached->loads);
    free(cached->bounce);
    free(cached);
    queue->cached = NULL;
}

bool wi_cached_is_idle(const struct weir_queue *queue)
{
    return !queue->cached || queue->cached->free_count == LOADS_MAX;
}

static void on_loaded(struct weir_job *job);

/* ---- loads ------------------------------------------------------------------------------- */

static struct wi_list *bucket_of(struct cached *cached, const struct weir_file *file,
                                 uint64_t block)
{
    uint64_t hash = (block + file->index * UINT64_C(0x9e3779b1)) * UINT64_C(0x9e3779b97f4a7c15);

    return &cached->buckets[hash >> 56];
}

/* The load of this block that a job may share, or NULL. */
static struct load *find_load(struct cached *cached, const struct weir_file *file,
                              uint64_t block)
{
    struct wi_list *bucket = bucket_of(cached, file, block);
    struct wi_list *link;

    list_for_each(link, bucket) {
        struct load *load = WI_CONTAINER_OF(link, struct load, link);

        if (load->file == file && load->block == block && !load->bounced &&
            wi_cache_load_is_fresh(cached->cache, &load->ticket))
            return load;
    }
    return NULL;
}

/* What a load is to look like: that of the job it is for. */
struct wish {
    struct weir_file *file;
    uint32_t sequence;
    uint8_t io_class;
    bool prefetch;
    bool once;
};

/* Begin to load a block. NULL: there is no room. */
static struct load *begin_load(struct weir_queue *queue, const struct wish *wish,
                               uint64_t block)
{
    struct cached *cached = queue->cached;
    uint32_t flags = (wish->prefetch ? WI_LOAD_PREFETCH : 0) | (wish->once ? WI_LOAD_ONCE : 0);
    struct load *load;
    unsigned char *to;

    if (cached->free_count <= (wish->prefetch ? KEEP_LOADS : 0))
        return NULL;
    load = WI_CONTAINER_OF(cached->free.next, struct load, link);
    load->bounced = false;
    if (wi_cache_load_begin(cached->cache, wish->file, block, flags, &load->ticket) == 0) {
        to = wi_load_data(cached->cache, &load->ticket);
    } else if (wish->prefetch || cached->bounce_busy) {
        return NULL;
    } else {
        load->bounced = true;
        cached->bounce_busy = true;
        to = cached->bounce;
    }
    wi_list_remove(&load->link);
    cached->free_count--;
    load->file = wish->file;
    load->block = block;
    load->prefetch = wish->prefetch;
    load->demanded = false;
    wi_list_push_front(bucket_of(cached, wish->file, block), &load->link);

    weir_job_read(&load->job, wish->file, to, cached->block_size, block << cached->shift,
                  on_loaded, NULL);
    load->job.io_class = wish->io_class;
    load->job.sequence = wish->sequence;
    wi_queue_begin_load(queue, wish->file);
    wi_queue_take(queue, &load->job, queue->now_ns, MARK_INTERNAL);
    return load;
}

static bool is_here(struct cached *cached, struct weir_file *file, uint64_t block)
{
    struct wi_frame *frame;

    if (wi_cache_pin(cached->cache, file, block, WI_PIN_PEEK, 0, &frame) == WI_PIN_MISS)
        return false;
    wi_cache_unpin(cached->cache, frame);
    return true;
}

/* Begin to load a block, unless it is there or on its way. False: there is no room. */
static bool want_block(struct weir_queue *queue, const struct wish *wish, uint64_t block)
{
    return find_load(queue->cached, wish->file, block) ||
           is_here(queue->cached, wish->file, block) || begin_load(queue, wish, block);
}

/* ---- what a job wants -------------------------------------------------------------------- */

/* Returns false if it has all. */
static bool next_piece(const struct weir_job *job, struct piece *ret_piece)
{
    uint64_t skip = job->transferred;

    if (job->op == WEIR_OP_READV) {
        const struct iovec *iov = job->buf;
        size_t i = 0;

        while (i < job->len && skip >= iov[i].iov_len)
            skip -= iov[i++].iov_len;
        if (i == job->len)
            return false;
        *ret_piece =
            (struct piece){ job->offset + job->transferred,
                            (unsigned char *)iov[i].iov_base + skip, iov[i].iov_len - skip };
        return true;
    }
    if (skip == job->len)
        return false;
    *ret_piece =
        (struct piece){ job->offset + skip,
                        job->op == WEIR_OP_VIEW ? NULL : (unsigned char *)job->buf + skip,
                        job->len - skip };
    return true;
}

static struct wish wish_of(const struct weir_job *job)
{
    return (struct wish){ .file = job->file,
                          .sequence = job->sequence,
                          .io_class = job->io_class,
                          .once = (job->flags & WEIR_JOB_ONCE) != 0 };
}

/* What is read ahead for it is less urgent, and gives way if it does. */
static struct wish ahead_of(const struct weir_job *job)
{
    struct wish wish = wish_of(job);

    wish.prefetch = true;
    wish.io_class = rank_gives_way(wi_drr_rank(job->io_class)) ? WEIR_CLASS_BACKGROUND
                                                               : WEIR_CLASS_PREFETCH;
    return wish;
}

/* ---- read-ahead -------------------------------------------------------------------------- */

static void follow_plan(struct weir_queue *queue, struct wi_prefetch *prefetch,
                        const struct wish *wish, const struct wi_prefetch_plan *plan)
{
    struct cached *cached = queue->cached;

    for (uint32_t i = 0; i < plan->count; i++) {
        uint64_t offset = plan->offset + (uint64_t)((int64_t)i * plan->stride);
        uint64_t last = (offset + plan->len - 1) >> cached->shift;

        for (uint64_t block = offset >> cached->shift; block <= last; block++) {
            if (want_block(queue, wish, block))
                continue;
            wi_counter_add(&queue->stats.prefetch_skipped, plan->count - i);
            wi_prefetch_cut(prefetch, plan, i);
            return;
        }
    }
}

/* A demand read was met with `event`: tell the prefetcher, and do what it says. */
static void observe(struct weir_queue *queue, struct weir_job *job,
                    enum wi_prefetch_event event)
{
    struct wi_prefetch *prefetch = queue->files[job->file->index].prefetch;
    struct wish wish = ahead_of(job);
    struct wi_prefetch_plan plan;
    uint64_t len = job->op == WEIR_OP_READV ? wi_iov_bytes(job->buf, job->len) : job->len;

    tail_of(job)->marks |= MARK_OBSERVED;
    prefetch->advice = atomic_load_explicit(&job->file->advice, memory_order_relaxed);
    /* Who reads ahead himself needs nobody to do it for him. */
    if (!queue->can_prefetch || job->io_class == WEIR_CLASS_PREFETCH || len == 0)
        return;
    wi_prefetch_observe(prefetch, job->offset, len, event, queue->now_ns,
                        wi_cache_file_end(queue->cached->cache, job->file), &plan);
    if (plan.count == 0)
        return;
    follow_plan(queue, prefetch, &wish, &plan);
}

int64_t wi_cached_advise(struct weir_queue *queue, struct weir_job *job)
{
    struct cached *cached = queue->cached;
    struct wish wish = ahead_of(job);
    uint64_t end = wi_cache_file_end(cached->cache, job->file);
    uint64_t block = job->offset >> cached->shift;
    uint64_t most = wi_cache_bytes(cached->cache) >> cached->shift;
    uint64_t begun = 0;

    most /= 4; /* of what was not asked for: more would drop the first ones */
    if (job->len != 0)
        end = wi_min_u64(end, wi_add_sat(job->offset, job->len));
    for (; block << cached->shift < end && begun < most; block++) {
        if (find_load(cached, job->file, block) || is_here(cached, job->file, block))
            continue;
        if (!begin_load(queue, &wish, block))
            break;
        begun++;
    }
    return (int64_t)(begun << cached->shift);
}

/* ---- stepping ---------------------------------------------------------------------------- */

/* The bytes of a block: from the cache, or from a load that has just ended. */
struct source {
    struct wi_frame *frame; /* NULL: the bounce buffer */
    const unsigned char *data;
    uint32_t len;
};

/* A view of [in, ...) of the source, which gets a pin of its own. Returns the job's result. */
static int64_t make_view(struct cached *cached, struct weir_job *job,
                         const struct source *source, uint32_t in)
{
    struct weir_view *view = job->buf;

    *view = (struct weir_view){ .offset = job->offset };
    if (in >= source->len)
        return 0;
    if (!source->frame || !wi_cache_take_view(cached->cache))
        return -ENOBUFS;
    wi_cache_pin_more(source->frame);
    wi_view_fill(view, cached->cache, source->frame, in, job->len);
    return (int64_t)view->len;
}

/* The rest of what the job wants, as far as it is not on its way. */
static void load_ahead(struct weir_queue *queue, struct weir_job *job,
                       const struct piece *piece)
{
    struct cached *cached = queue->cached;
    struct wish wish = wish_of(job);
    uint64_t total = job->op == WEIR_OP_READV ? wi_iov_bytes(job->buf, job->len) : job->len;
    uint64_t last = (job->offset + total - 1) >> cached->shift;
    uint64_t block = piece->offset >> cached->shift;

    if (job->op == WEIR_OP_VIEW)
        return;
    for (uint32_t count = 0; block <= last && count < AHEAD_MAX; block++, count++)
        if (!want_block(queue, &wish, block))
            return;
}

/* The job waits for a load of the block, which is begun if need be. */
static enum wi_prefetch_event wait_for_block(struct weir_queue *queue, struct weir_job *job,
                                             const struct piece *piece)
{
    struct cached *cached = queue->cached;
    uint64_t block = piece->offset >> cached->shift;
    struct load *load = find_load(cached, job->file, block);
    enum wi_prefetch_event event = WI_PREFETCH_MISS;

    wi_queue_set_state(queue, job, JOB_LOADING);
    if (load) {
        wi_counter_add(&queue->stats.cache_shared, 1);
        if (load->prefetch) {
            load->demanded = true;
            event = WI_PREFETCH_WAITED;
            wi_queue_promote(queue, load->job.id, job->io_class);
        }
    } else {
        struct wish wish = wish_of(job);

        load = begin_load(queue, &wish, block);
    }
    wi_list_push_back(load ? &load->waiters : &cached->starved, &tail_of(job)->link);
    if (load)
        load_ahead(queue, job, piece);
    return event;
}

void wi_cached_promote(struct weir_queue *queue, struct weir_job *job, uint32_t io_class)
{
    struct load *load;
    struct piece piece;

    job->io_class = (uint8_t)io_class;
    if (!next_piece(job, &piece))
        return;
    load = find_load(queue->cached, job->file, piece.offset >> queue->cached->shift);
    if (load)
        wi_queue_promote(queue, load->job.id, io_class);
}

/*
 * Go on with a job that is on no list, as far as its blocks are there. `ended` (may be NULL) is a
 * load that has just ended, with its bytes in `fresh`: they count even if they were not published.
 */
static void step(struct weir_queue *queue, struct weir_job *job, const struct load *ended,
                 const struct source *fresh)
{
    struct cached *cached = queue->cached;
    struct job_tail *tail = tail_of(job);
    enum wi_prefetch_event event = WI_PREFETCH_HIT;
    int64_t result = 0;
    struct piece piece;
    bool waits = false;
    bool over = false;

    if (tail->start_ns == 0)
        tail->start_ns = queue->now_ns;
    while (!over && next_piece(job, &piece)) {
        uint64_t block = piece.offset >> cached->shift;
        uint32_t in = (uint32_t)(piece.offset & (cached->block_size - 1));
        bool is_fresh = ended && ended->file == job->file && ended->block == block;
        struct source source;
        uint64_t count;

        if (is_fresh) {
            source = *fresh;
        } else {
            struct queue_file *entry = &queue->files[job->file->index];
            uint32_t flags = (job->flags & WEIR_JOB_ONCE ? WI_PIN_ONCE : 0) |
                             (entry->last_block == block ? WI_PIN_AGAIN : 0);
            enum wi_pin_result pin = wi_cache_pin(cached->cache, job->file, block, flags,
                                                  queue->now_ns, &source.frame);

            entry->last_block = block;
            if (pin == WI_PIN_MISS) {
                event = wait_for_block(queue, job, &piece);
                waits = true;
                break;
            }
            if (pin == WI_PIN_HIT_PREFETCHED)
                event = WI_PREFETCH_HIT_AHEAD;
            source.data = wi_frame_data(cached->cache, source.frame);
            source.len = wi_frame_len(source.frame);
        }
        if (job->op == WEIR_OP_VIEW) {
            result = make_view(cached, job, &source, in);
            if (result > 0)
                job->transferred = (uint64_t)result;
            over = true;
        } else {
            count = in < source.len ? wi_min_u64(piece.len, source.len - in) : 0;
            if (count > 0)
                memcpy(piece.to, source.data + in, count);
            job->transferred += count;
            /* A block that is short is the last of its file. */
            over = count < piece.len && in + count >= source.len &&
                   source.len < cached->block_size;
        }
        if (!is_fresh)
            wi_cache_unpin(cached->cache, source.frame);
    }
    if (!(tail->marks & MARK_OBSERVED))
        observe(queue, job, event);
    if (waits)
        return;
    wi_queue_finish(queue, job, job->op == WEIR_OP_VIEW ? result : (int64_t)job->transferred);
}

void wi_cached_run(struct weir_queue *queue)
{
    struct wi_list *link;

    while (queue->inline_left > 0 && (link = wi_list_pop_front(&queue->cached_ready)) != NULL) {
        struct weir_job *job = job_of_tail(WI_CONTAINER_OF(link, struct job_tail, link));
        uint64_t copied = job->transferred;

        if (wi_queue_hold(queue, job))
            continue;
        step(queue, job, NULL, NULL);
        copied = job->op == WEIR_OP_VIEW ? 0 : job->transferred - copied;
        queue->inline_left -= (uint32_t)wi_min_u64(queue->inline_left, copied);
    }
}

/* ---- the end of a load ------------------------------------------------------------------- */

static void serve_waiters(struct weir_queue *queue, struct load *load, int64_t result)
{
    struct cached *cached = queue->cached;
    struct source source = { .len = result > 0 ? (uint32_t)result : 0 };
    struct wi_list *link;

    if (load->bounced) {
        source.data = cached->bounce;
    } else if (result >= 0) {
        source.frame = load->ticket.frame;
        source.data = wi_frame_data(cached->cache, source.frame);
    }
    while ((link = wi_list_pop_front(&load->waiters)) != NULL) {
        struct weir_job *job = job_of_tail(WI_CONTAINER_OF(link, struct job_tail, link));

        wi_queue_set_state(queue, job, JOB_QUEUED);
        if (result >= 0)
            step(queue, job, load, &source);
        else if (result == -ECANCELED)
            wi_queue_requeue(queue, job, false); /* not its own cancel: it looks again */
        else
            wi_queue_finish(queue, job, result);
    }
}

static void on_loaded(struct weir_job *job)
{
    struct weir_queue *queue = tail_of(job)->queue;
    struct cached *cached = queue->cached;
    struct load *load = WI_CONTAINER_OF(job, struct load, job);
    int64_t result = job->result;
    struct wi_list *link;

    if (result >= 0)
        wi_counter_add(&queue->stats.cache_loads, 1);

    wi_list_remove(&load->link); /* found by nobody from here on */
    if (!load->bounced)
        wi_cache_load_end(cached->cache, &load->ticket, result,
                          !load->prefetch || load->demanded);
    serve_waiters(queue, load, result);
    if (load->bounced)
        cached->bounce_busy = false;
    else if (result >= 0)
        wi_cache_unpin(cached->cache, load->ticket.frame);
    wi_list_push_front(&cached->free, &load->link);
    cached->free_count++;
    wi_queue_end_load(queue, load->file);
    /* One has room now. The last load brings all, or nobody would come for those it leaves. */
    do {
        link = wi_list_pop_front(&cached->starved);
        if (link)
            wi_queue_requeue(queue, job_of_tail(WI_CONTAINER_OF(link, struct job_tail, link)),
                             false);
    } while (link && wi_cached_is_idle(queue));
}
