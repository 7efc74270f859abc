/* SPDX-License-Identifier: MIT */
/*
 * merge.c - neighbours that wait together go to the device as one operation
 *
 * Problem      a device and the kernel charge for each operation more than for some KiB: reads
 *              that lie side by side, or nearly, are cheaper as one.
 * Idea         no timer, and nothing waits in order to be merged. A job that is about to start
 *              looks for neighbours among those that wait in the same class: while the device is
 *              full they gather there, and merge the better. What lies between them is read to
 *              `scratch`, all gaps to the same place, since nobody looks at it.
 * Staging      a device works on one large piece of memory faster than on hundreds of small ones
 *              (here twice as fast on a virtual disk, for 4 KiB reads with gaps), so small reads
 *              go into one buffer in a huge page and are copied from there. There are four such
 *              buffers in a queue, made when first needed; what finds none goes right to its places.
 * Structures   an index of the jobs that wait: buckets by file and offset, chained through the
 *              slots. A job looks into the one or two buckets behind its end, and into those in
 *              front in which a neighbour could begin (`merge_longest` of them knows how far).
 * Limits       gap, 1 MiB and twice the bytes asked for (queue.h); 256 pieces; 32 merged operations
 *              at once, set aside when the queue is opened. A bucket is looked at for 64 jobs.
 * Writes       only where one ends exactly where the next begins.
 * Failure      a merged operation that fails or is short: its members are tried alone, once.
 *
 * Thread: the queue's owner.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

#define GAP_MAX       (1u << 20)
#define STAGED_MAX    (32u << 10) /* longer members, on average, are not worth a copy */
#define STAGED_LEAST  4           /* nor are so few */
#define STAGING_BYTES (512u << 10)
#define STAGING_COUNT 4u
#define CHAIN_MAX     64
#define BUCKETS_MAX   (1u << 16)

/* ---- the index --------------------------------------------------------------------------- */

int wi_merge_init(struct weir_queue *queue, uint32_t gap, uint32_t flags)
{
    uint32_t buckets = 64;

    if (gap > GAP_MAX)
        return -EINVAL;
    queue->merge_gap = gap ? gap : MERGE_GAP;
    queue->can_merge = !(flags & WEIR_QUEUE_NO_MERGE);
    queue->merge_shift = 15;
    while (1u << queue->merge_shift < queue->merge_gap)
        queue->merge_shift++;
    while (buckets < queue->room && buckets < BUCKETS_MAX)
        buckets *= 2;
    queue->merge_mask = buckets - 1;
    queue->merge_heads = calloc(buckets, sizeof(*queue->merge_heads));
    queue->bundles = calloc(BUNDLES_MAX, sizeof(*queue->bundles));
    queue->scratch_size = (queue->merge_gap + 4095) & ~4095u;
    queue->scratch = aligned_alloc(4096, queue->scratch_size);
    if (!queue->merge_heads || !queue->bundles || !queue->scratch) {
        wi_merge_fini(queue);
        return -ENOMEM;
    }
    if (flags & WEIR_QUEUE_NO_GAPS)
        queue->merge_gap = 0;
    wi_list_init(&queue->free_bundles);
    for (uint32_t i = 0; i < BUNDLES_MAX; i++) {
        wi_list_init(&queue->bundles[i].members);
        wi_list_push_back(&queue->free_bundles, &queue->bundles[i].link);
    }
    return 0;
}

void wi_merge_fini(struct weir_queue *queue)
{
    free(queue->merge_heads);
    free(queue->bundles);
    free(queue->scratch);
    if (queue->staging) {
        wi_engine_account(queue->engine, -(int64_t)(STAGING_COUNT * STAGING_BYTES));
        free(queue->staging);
    }
    queue->staging = NULL;
    queue->merge_heads = NULL;
    queue->bundles = NULL;
    queue->scratch = NULL;
}

uint64_t wi_merge_memory(const struct weir_queue *queue)
{
    return (queue->merge_mask + 1) * sizeof(*queue->merge_heads) +
           BUNDLES_MAX * sizeof(*queue->bundles) + queue->scratch_size;
}

static bool may_merge(const struct weir_queue *queue, const struct weir_job *job)
{
    return (job->op == WEIR_OP_READ || job->op == WEIR_OP_WRITE) && queue->can_merge &&
           job->len <= MERGE_MEMBER_MAX && job->len > 0 && job->transferred == 0 &&
           !(job->flags & (WEIR_JOB_ALONE | WEIR_JOB_AFTER_WRITES)) && job->file->regular &&
           !(tail_of((struct weir_job *)(uintptr_t)job)->marks &
             (MARK_ALONE | MARK_FORCE_ASYNC));
}

static uint32_t *bucket_of(struct weir_queue *queue, const struct weir_file *file,
                           uint64_t granule)
{
    uint64_t hash =
        (granule + file->index * UINT64_C(0x9e3779b1)) * UINT64_C(0x9e3779b97f4a7c15);

    return &queue->merge_heads[(hash >> 40) & queue->merge_mask];
}

void wi_merge_index(struct weir_queue *queue, struct weir_job *job)
{
    uint32_t number = tail_of(job)->slot + 1u;
    struct queue_slot *slot = &queue->slots[tail_of(job)->slot];
    uint32_t *head;

    /* What the page cache is going to serve needs no neighbours. */
    if (!may_merge(queue, job) || wi_queue_inline_score(queue, job) >= 0) {
        slot->merge_prev = 0;
        slot->merge_next = 0;
        return;
    }
    head = bucket_of(queue, job->file, job->offset >> queue->merge_shift);
    /* `prev` of the first is itself, so that 0 says: not in the index. */
    slot->merge_prev = number;
    slot->merge_next = *head;
    if (*head)
        queue->slots[*head - 1].merge_prev = number;
    *head = number;
    if (queue->merge_count++ == 0 || job->len > queue->merge_longest)
        queue->merge_longest = (uint32_t)job->len;
}

void wi_merge_unindex(struct weir_queue *queue, struct weir_job *job)
{
    uint32_t number = tail_of(job)->slot + 1u;
    struct queue_slot *slot = &queue->slots[tail_of(job)->slot];

    if (slot->merge_prev == 0)
        return;
    queue->merge_count--;
    if (slot->merge_prev == number)
        *bucket_of(queue, job->file, job->offset >> queue->merge_shift) = slot->merge_next;
    else
        queue->slots[slot->merge_prev - 1].merge_next = slot->merge_next;
    if (slot->merge_next)
        queue->slots[slot->merge_next - 1].merge_prev =
            slot->merge_prev == number ? slot->merge_next : slot->merge_prev;
    slot->merge_prev = 0;
    slot->merge_next = 0;
}

/* ---- finding neighbours ------------------------------------------------------------------ */

/* What a bundle has become so far. */
struct span {
    uint64_t start;
    uint64_t end;
    uint64_t asked; /* bytes without the gaps */
    uint32_t iovs;
    uint64_t max;
};

static bool fits(const struct span *span, uint64_t start, uint64_t end, uint64_t len)
{
    uint64_t bytes = end - start;

    return bytes <= span->max && bytes <= MERGE_AMPLIFICATION * (span->asked + len) &&
           span->iovs + 2 <= MERGE_IOVS_MAX;
}

/* Of the jobs in one bucket the best neighbour of `job`'s span on one side, or `best`. */
static struct weir_job *look(struct weir_queue *queue, const struct weir_job *job,
                             const struct span *span, uint64_t granule, bool behind,
                             struct weir_job *best)
{
    uint64_t gap = op_is_write(job->op) ? 0 : queue->merge_gap;
    uint32_t number = *bucket_of(queue, job->file, granule);

    for (uint32_t i = 0; number != 0 && i < CHAIN_MAX; i++) {
        struct queue_slot *slot = &queue->slots[number - 1];
        struct weir_job *other = slot->job;
        uint64_t end = other->offset + other->len;

        number = slot->merge_next;
        if (other->file != job->file || other->op != job->op ||
            other->io_class != job->io_class)
            continue;
        if (behind ? other->offset < span->end || other->offset - span->end > gap
                   : end > span->start || span->start - end > gap)
            continue;
        if (best && (behind ? other->offset >= best->offset : end <= best->offset + best->len))
            continue;
        if (!fits(span, behind ? span->start : other->offset, behind ? end : span->end,
                  other->len) ||
            wi_queue_is_held_back(queue, other))
            continue;
        best = other;
    }
    return best;
}

static struct weir_job *find_behind(struct weir_queue *queue, const struct weir_job *job,
                                    const struct span *span)
{
    uint64_t last = (span->end + queue->merge_gap) >> queue->merge_shift;
    struct weir_job *best = NULL;

    for (uint64_t at = span->end >> queue->merge_shift; at <= last && !best; at++)
        best = look(queue, job, span, at, true, best);
    return best;
}

static struct weir_job *find_before(struct weir_queue *queue, const struct weir_job *job,
                                    const struct span *span)
{
    uint64_t reach = (uint64_t)queue->merge_gap + queue->merge_longest;
    uint64_t first = (span->start > reach ? span->start - reach : 0) >> queue->merge_shift;
    uint64_t at = span->start >> queue->merge_shift;
    struct weir_job *best = NULL;

    /* All of them: a long job in a bucket further off may end nearer. */
    for (;; at--) {
        best = look(queue, job, span, at, false, best);
        if (at == first)
            return best;
    }
}

static struct weir_job *find_neighbour(struct weir_queue *queue, const struct weir_job *job,
                                       const struct span *span)
{
    struct weir_job *other = find_behind(queue, job, span);

    return other ? other : find_before(queue, job, span);
}

/* ---- bundles of jobs ----------------------------------------------------------------------- */

static void add_member(struct weir_queue *queue, struct bundle *bundle, struct weir_job *job,
                       struct span *span, bool behind)
{
    struct job_tail *tail = tail_of(job);
    uint64_t end = job->offset + job->len;

    wi_sched_remove(queue, job);
    wi_drr_charge(&queue->drr, bundle->rank, job->len);
    if (behind) {
        span->iovs += job->offset > span->end ? 2 : 1;
        span->end = end;
        wi_list_push_back(&bundle->members, &tail->member.link);
    } else {
        span->iovs += end < span->start ? 2 : 1;
        span->start = job->offset;
        wi_list_push_front(&bundle->members, &tail->member.link);
    }
    span->asked += job->len;
    bundle->count++;
}

static void add_piece(struct weir_queue *queue, struct bundle *bundle, uint64_t *at, void *buf,
                      size_t len, uint64_t offset)
{
    if (offset > *at)
        bundle->iov[bundle->iov_count++] = (struct iovec){ queue->scratch, offset - *at };
    bundle->iov[bundle->iov_count++] = (struct iovec){ buf, len };
    *at = offset + len;
}

static void fill_op(struct bundle *bundle, bool is_write)
{
    bundle->op.kind = is_write ? WI_OP_WRITEV : WI_OP_READV;
    bundle->op.addr = (uint64_t)(uintptr_t)bundle->iov;
    bundle->op.len = bundle->iov_count;
    bundle->op.offset = bundle->offset;
}

static struct bundle *take_bundle(struct weir_queue *queue, uint32_t io_class)
{
    struct wi_list *link = wi_list_pop_front(&queue->free_bundles);
    struct bundle *bundle;

    if (!link)
        return NULL;
    bundle = WI_CONTAINER_OF(link, struct bundle, link);
    bundle->rank = (uint8_t)wi_drr_rank(io_class);
    bundle->count = 0;
    bundle->iov_count = 0;
    bundle->staging = NULL;
    bundle->stop_asked = false;
    bundle->low = false;
    return bundle;
}

void wi_merge_free(struct weir_queue *queue, struct bundle *bundle)
{
    WEIR_DCHECK(wi_list_empty(&bundle->members));
    if (bundle->staging)
        queue->staging_free |= 1u
                               << ((size_t)(bundle->staging - queue->staging) / STAGING_BYTES);
    wi_list_push_front(&queue->free_bundles, &bundle->link);
}

/* ---- staging --------------------------------------------------------------------------------- */

/* Is there a buffer for small reads? Made at the first asking; without memory there is none. */
static bool has_staging(struct weir_queue *queue)
{
    size_t bytes = (size_t)STAGING_COUNT * STAGING_BYTES;

    if (WI_UNLIKELY(!queue->staging)) {
        queue->staging = aligned_alloc(bytes, bytes);
        if (!queue->staging)
            return false;
        (void)madvise(queue->staging, bytes, MADV_HUGEPAGE);
        queue->staging_free = (1u << STAGING_COUNT) - 1;
        wi_engine_account(queue->engine, (int64_t)bytes);
    }
    return queue->staging_free != 0;
}

/* Read into a buffer, if the members are small and many enough. */
static bool stage(struct weir_queue *queue, struct bundle *bundle, uint64_t asked)
{
    uint32_t number;

    if (bundle->count < STAGED_LEAST || asked / bundle->count > STAGED_MAX ||
        bundle->bytes > STAGING_BYTES || !has_staging(queue))
        return false;
    number = (uint32_t)__builtin_ctz(queue->staging_free);
    queue->staging_free &= ~(1u << number);
    bundle->staging = queue->staging + (size_t)number * STAGING_BYTES;
    bundle->op.kind = WI_OP_READ;
    bundle->op.addr = (uint64_t)(uintptr_t)bundle->staging;
    bundle->op.len = (uint32_t)bundle->bytes;
    bundle->op.offset = bundle->offset;
    return true;
}

void wi_merge_deliver(const struct bundle *bundle, struct weir_job *job)
{
    if (bundle->staging)
        memcpy(job->buf, bundle->staging + (job->offset - bundle->offset), job->len);
}

struct bundle *wi_merge_gather(struct weir_queue *queue, struct weir_job *job,
                               uint64_t bytes_max)
{
    struct span span = { .start = job->offset,
                         .end = job->offset + job->len,
                         .asked = job->len,
                         .iovs = 1,
                         .max = wi_min_u64(bytes_max, MERGE_BYTES_MAX) };
    struct bundle *bundle;
    struct weir_job *other;
    uint64_t at;

    if (queue->merge_count == 0 || !may_merge(queue, job))
        return NULL;
    other = find_neighbour(queue, job, &span);
    if (!other)
        return NULL;
    /* Only now is it worth asking how much there is room for; that may be less. */
    span.max = wi_min_u64(span.max, job->len + wi_gate_room(queue, span.max));
    other = find_neighbour(queue, job, &span);
    if (!other)
        return NULL;
    bundle = take_bundle(queue, job->io_class);
    if (!bundle)
        return NULL;
    if (op_is_read(job->op) && job->len <= STAGED_MAX && span.max > STAGING_BYTES &&
        has_staging(queue))
        span.max = STAGING_BYTES;
    wi_list_push_back(&bundle->members, &tail_of(job)->member.link);
    bundle->count = 1;
    for (; other; other = find_behind(queue, job, &span))
        add_member(queue, bundle, other, &span, other->offset >= span.end);
    while ((other = find_before(queue, job, &span)) != NULL)
        add_member(queue, bundle, other, &span, false);

    bundle->offset = span.start;
    bundle->bytes = span.end - span.start;
    at = span.start;
    for (struct wi_list *link = bundle->members.next; link != &bundle->members;
         link = link->next) {
        struct weir_job *member =
            job_of_tail(WI_CONTAINER_OF(link, struct job_tail, member.link));

        tail_of(member)->member.bundle = bundle;
        add_piece(queue, bundle, &at, member->buf, member->len, member->offset);
    }
    if (op_is_write(job->op) || !stage(queue, bundle, span.asked))
        fill_op(bundle, op_is_write(job->op));
    wi_counter_add(&queue->stats.merges, 1);
    wi_counter_add(&queue->stats.merged, bundle->count);
    wi_counter_add(&queue->stats.gap_bytes, bundle->bytes - span.asked);
    return bundle;
}
