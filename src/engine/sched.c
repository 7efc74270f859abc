/* SPDX-License-Identifier: MIT */
/*
 * sched.c - the queues of the five classes: which job of a class goes next
 *
 * Order        what came back (a retry, the rest of a transfer that gave way) before all, then by
 *              the caller's sequence number, equals in the order of submitting.
 * Structures   callers number upwards or not at all, so a class is a list whose sequence never
 *              falls; what would break that goes into a pairing heap beside it (M. Fredman et al.,
 *              "The pairing heap", 1986: O(1) insert, O(log n) amortised removal of the first).
 *              The next job is the smaller of both heads.
 * Not here     which class goes next (base/drr.h), what the device may hold (gate.c).
 *
 * Thread: the queue's owner.
 */
#include "engine_internal.h"

static struct class_queue *class_of(struct weir_queue *queue, const struct weir_job *job)
{
    return &queue->classes[wi_drr_rank(job->io_class)];
}

void wi_sched_init(struct weir_queue *queue)
{
    for (uint32_t rank = 0; rank < WEIR_CLASSES; rank++) {
        wi_list_init(&queue->classes[rank].again);
        wi_list_init(&queue->classes[rank].fifo);
    }
}

/* ---- the heap ---------------------------------------------------------------------------- */

static bool goes_before(struct weir_job *a, struct weir_job *b)
{
    if (a->sequence != b->sequence)
        return a->sequence < b->sequence;
    return tail_of(a)->wait.arrival < tail_of(b)->wait.arrival;
}

/* Both are roots, or NULL. In a heap `prev` is the left neighbour, or the parent of a first child. */
static struct weir_job *meld(struct weir_job *a, struct weir_job *b)
{
    struct weir_job *child;

    if (!a || !b)
        return a ? a : b;
    if (goes_before(b, a)) {
        struct weir_job *swap = a;

        a = b;
        b = swap;
    }
    child = tail_of(a)->wait.child;
    tail_of(b)->wait.next = child;
    tail_of(b)->wait.prev = a;
    if (child)
        tail_of(child)->wait.prev = b;
    tail_of(a)->wait.child = b;
    return a;
}

/* The children of a job that leaves become one heap: in pairs from the left, then those from the
 * right, so that the next removals are cheap. Returns its root. */
static struct weir_job *meld_children(struct weir_job *child)
{
    struct weir_job *pairs = NULL;
    struct weir_job *root = NULL;

    while (child) {
        struct weir_job *second = tail_of(child)->wait.next;
        struct weir_job *rest = second ? tail_of(second)->wait.next : NULL;
        struct weir_job *pair;

        tail_of(child)->wait.next = NULL;
        if (second)
            tail_of(second)->wait.next = NULL;
        pair = meld(child, second);
        tail_of(pair)->wait.next = pairs;
        pairs = pair;
        child = rest;
    }
    while (pairs) {
        struct weir_job *next = tail_of(pairs)->wait.next;

        tail_of(pairs)->wait.next = NULL;
        root = meld(root, pairs);
        pairs = next;
    }
    if (root)
        tail_of(root)->wait.prev = NULL;
    return root;
}

static void heap_insert(struct class_queue *class, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    tail->wait.child = NULL;
    tail->wait.next = NULL;
    tail->wait.prev = NULL;
    class->heap = meld(class->heap, job);
}

static void heap_remove(struct class_queue *class, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    struct weir_job *below = meld_children(tail->wait.child);

    if (class->heap == job) {
        class->heap = below;
        return;
    }
    if (tail_of(tail->wait.prev)->wait.child == job)
        tail_of(tail->wait.prev)->wait.child = tail->wait.next;
    else
        tail_of(tail->wait.prev)->wait.next = tail->wait.next;
    if (tail->wait.next)
        tail_of(tail->wait.next)->wait.prev = tail->wait.prev;
    class->heap = meld(class->heap, below);
}

/* ---- a class ----------------------------------------------------------------------------- */

static struct weir_job *job_of_link(struct wi_list *link)
{
    return job_of_tail(WI_CONTAINER_OF(link, struct job_tail, link));
}

void wi_sched_push(struct weir_queue *queue, struct weir_job *job, bool front)
{
    struct job_tail *tail = tail_of(job);
    struct class_queue *class = class_of(queue, job);

    WEIR_DCHECK(tail->state == JOB_QUEUED && !(tail->marks & MARK_CLASSED));
    tail->marks |= MARK_CLASSED;
    tail->wait.arrival = queue->next_arrival++;
    if (WI_UNLIKELY(front)) {
        wi_list_push_front(&class->again, &tail->link);
    } else if (WI_LIKELY(wi_list_empty(&class->fifo) ||
                         job_of_link(class->fifo.prev)->sequence <= job->sequence)) {
        wi_list_push_back(&class->fifo, &tail->link);
    } else {
        tail->marks |= MARK_HEAPED;
        heap_insert(class, job);
    }
    class->count++;
    queue->waiting++;
    queue->waiting_mask |= 1u << wi_drr_rank(job->io_class);
    wi_merge_index(queue, job);
}

void wi_sched_remove(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);
    struct class_queue *class = class_of(queue, job);
    uint32_t rank = wi_drr_rank(job->io_class);

    WEIR_DCHECK(tail->marks & MARK_CLASSED);
    if (WI_UNLIKELY(tail->marks & MARK_HEAPED))
        heap_remove(class, job);
    else
        wi_list_remove(&tail->link);
    tail->marks &= (uint16_t) ~(MARK_CLASSED | MARK_HEAPED);
    queue->waiting--;
    if (--class->count == 0)
        queue->waiting_mask &= ~(1u << rank);
    wi_merge_unindex(queue, job);
}

struct weir_job *wi_sched_first(struct weir_queue *queue, uint32_t rank)
{
    struct class_queue *class = &queue->classes[rank];
    struct weir_job *first;

    WEIR_DCHECK(class->count > 0);
    if (WI_UNLIKELY(!wi_list_empty(&class->again)))
        return job_of_link(class->again.next);
    if (WI_UNLIKELY(wi_list_empty(&class->fifo)))
        return class->heap;
    first = job_of_link(class->fifo.next);
    return WI_UNLIKELY(class->heap != NULL) && goes_before(class->heap, first) ? class->heap
                                                                               : first;
}
