/* SPDX-License-Identifier: MIT */
/*
 * many.c - READ_MANY in a queue: a job for each range
 *
 * Idea         a range is read by a job of the queue's own (a part), which waits, merges, retries,
 *              gives way and looks into the block cache as any other; only its end is told
 *              here. Neighbours among the ranges merge because they wait side by side.
 * Limits       PARTS_MAX parts in a queue. What has more ranges, or comes when all are in use,
 *              goes on when a part has ended (list `unfinished`, in turn).
 *
 * A READ_MANY is QUEUED until it is begun, then LOADING until its last part has ended, also if it
 * is stopped: then the parts are.
 *
 * Thread: the queue's owner.
 */
#include "engine_internal.h"

#include <stdlib.h>

struct part {
    struct weir_job job;
    struct weir_job *many;
    struct weir_range *range;
    struct wi_list link; /* free ones */
};

struct many {
    struct part *parts;
    struct wi_list free;
    struct wi_list unfinished; /* READ_MANYs with ranges that have no part yet */
};

static int64_t many_bytes(void)
{
    return (int64_t)(sizeof(struct many) + PARTS_MAX * sizeof(struct part));
}

int wi_many_prepare(struct weir_queue *queue)
{
    struct many *many;

    if (queue->many)
        return 0;
    many = calloc(1, sizeof(*many));
    if (!many)
        return -ENOMEM;
    many->parts = calloc(PARTS_MAX, sizeof(*many->parts));
    if (!many->parts) {
        free(many);
        return -ENOMEM;
    }
    wi_list_init(&many->free);
    wi_list_init(&many->unfinished);
    for (uint32_t i = 0; i < PARTS_MAX; i++)
        wi_list_push_back(&many->free, &many->parts[i].link);
    wi_engine_account(queue->engine, many_bytes());
    queue->many = many;
    return 0;
}

void wi_many_fini(struct weir_queue *queue)
{
    if (!queue->many)
        return;
    wi_engine_account(queue->engine, -many_bytes());
    free(queue->many->parts);
    free(queue->many);
    queue->many = NULL;
}

static bool is_stopped(struct weir_job *job)
{
    return tail_of(job)->marks & (MARK_CANCEL_ASKED | MARK_EXPIRED);
}

/* All ranges have their results. */
static void finish_many(struct weir_queue *queue, struct weir_job *job)
{
    size_t failed = 0;
    int64_t result = wi_ranges_result(job->buf, job->len, &job->transferred, &failed);

    wi_queue_finish(queue, job, result);
    if (result < 0 && job->error) {
        const struct weir_range *range = (const struct weir_range *)job->buf + failed;

        job->error->offset = range->offset;
        job->error->length = range->len;
        job->error->has_offset = 1;
    }
}

static void on_part(struct weir_job *job);

/* Give parts to its ranges, as long as there are any. */
static void hand_out(struct weir_queue *queue, struct weir_job *job)
{
    struct many *many = queue->many;
    struct job_tail *tail = tail_of(job);

    while (tail->wait.many_next < job->len) {
        struct weir_range *range = wi_ranges_nth(job->buf, tail->wait.many_next);
        struct wi_list *link;
        struct part *part;

        if (range->len == 0) {
            tail->wait.many_next++;
            continue;
        }
        link = wi_list_pop_front(&many->free);
        if (!link) {
            wi_list_push_back(&many->unfinished, &tail->link);
            return;
        }
        part = WI_CONTAINER_OF(link, struct part, link);
        part->many = job;
        part->range = range;
        weir_job_read(&part->job, job->file, range->buf, range->len, range->offset, on_part,
                      NULL);
        part->job.io_class = job->io_class;
        part->job.sequence = job->sequence;
        part->job.flags = job->flags;
        tail->wait.many_next++;
        tail->wait.many_out++;
        /* Sorted ranges look like a pattern, but whoever has named them foretells no more. */
        wi_queue_take(queue, &part->job, queue->now_ns,
                      MARKS_PART | (wi_file_reads_cached(job->file) ? MARK_CACHED : 0));
    }
    if (tail->wait.many_out == 0)
        finish_many(queue, job);
}

/* A part has ended. */
static void on_part(struct weir_job *job)
{
    struct part *part = WI_CONTAINER_OF(job, struct part, job);
    struct weir_job *parent = part->many;
    struct weir_queue *queue = tail_of(parent)->queue;
    struct many *many = queue->many;
    struct wi_list *link;

    part->range->result = job->result;
    if (job->result == -ECANCELED)
        part->range->result = is_stopped(parent) ? wi_queue_stop_code(parent) : -EIO;
    tail_of(parent)->wait.many_out--;
    wi_list_push_front(&many->free, &part->link);
    if (tail_of(parent)->wait.many_out == 0 && tail_of(parent)->wait.many_next == parent->len)
        finish_many(queue, parent);
    link = wi_list_pop_front(&many->unfinished);
    if (link)
        hand_out(queue, job_of_tail(WI_CONTAINER_OF(link, struct job_tail, link)));
}

void wi_many_start(struct weir_queue *queue, struct weir_job *job)
{
    struct weir_range *ranges = job->buf;

    wi_ranges_sort(ranges, job->len);
    for (size_t i = 0; i < job->len; i++)
        ranges[i].result = 0;
    wi_list_init(&tail_of(job)->link);
    tail_of(job)->wait.many_next = 0;
    tail_of(job)->wait.many_out = 0;
    wi_queue_set_state(queue, job, JOB_LOADING);
    hand_out(queue, job);
}

void wi_many_stop(struct weir_queue *queue, struct weir_job *job)
{
    struct job_tail *tail = tail_of(job);

    if (tail->state == JOB_QUEUED) { /* not begun */
        wi_ranges_sort(job->buf, job->len);
        tail->wait.many_next = 0;
        tail->wait.many_out = 0;
    } else {
        wi_list_remove(&tail->link);
    }
    for (; tail->wait.many_next < job->len; tail->wait.many_next++)
        wi_ranges_nth(job->buf, tail->wait.many_next)->result = wi_queue_stop_code(job);
    if (tail->wait.many_out == 0) {
        finish_many(queue, job);
        return;
    }
    /* The last of them to end finishes the job. One that has not waited for the device ends here. */
    for (uint32_t i = 0; i < PARTS_MAX; i++) {
        struct part *part = &queue->many->parts[i];

        if (!wi_list_on(&part->link) && part->many == job)
            wi_queue_stop_part(queue, &part->job);
    }
}
