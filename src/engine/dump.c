/* SPDX-License-Identifier: MIT */
/*
 * dump.c - what is in flight, as text for people
 *
 *     job 4503599628419072 queue 1: read foreground device 1.27 s,
 *         offset 1572864 (1.5 MiB), length 65536 (64 KiB)       [all on one line]
 *
 * Each queue's slots are copied as weir_queue_inflight() does it, while their owners go on, under
 * the engine's lock, which keeps the queues from going away. Sorting and writing come after.
 */
#include "stats_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct entry {
    uint64_t queue;
    struct weir_inflight job;
};

struct entries {
    struct entry *list;
    size_t count;
};

static const char *state_name(uint32_t state)
{
    switch ((enum weir_job_state)state) {
    case WEIR_STATE_QUEUED:
        return "queued";
    case WEIR_STATE_DEVICE:
        return "device";
    case WEIR_STATE_RETRY:
        return "retry";
    case WEIR_STATE_LOADING:
        return "loading";
    case WEIR_STATE_NONE:
        break;
    }
    return "?";
}

/*
 * Add what one queue has. `scratch` has room for all that it can have. Ages are as of `start_ns`, or
 * those of queues that are looked at later would be longer. False without memory.
 */
static bool add_queue(struct entries *entries, struct weir_queue *queue, uint64_t start_ns,
                      struct weir_inflight *scratch, size_t room)
{
    uint64_t passed_ns = wi_os_now(queue->os) - start_ns;
    size_t count = weir_queue_inflight(queue, scratch, room);
    struct entry *list;

    if (count == 0)
        return true;
    list = realloc(entries->list, (entries->count + count) * sizeof(*list));
    if (!list)
        return false;
    for (size_t i = 0; i < count; i++) {
        scratch[i].age_ns -= wi_min_u64(scratch[i].age_ns, passed_ns);
        list[entries->count + i] = (struct entry){ .queue = queue->number, .job = scratch[i] };
    }
    entries->list = list;
    entries->count += count;
    return true;
}

static bool gather_locked(struct weir_engine *engine, struct entries *entries)
    WI_REQUIRES(engine->mu)
{
    uint64_t start_ns = wi_os_now(engine->os);
    struct wi_list *node;

    list_for_each(node, &engine->queues) {
        struct weir_queue *queue = WI_CONTAINER_OF(node, struct weir_queue, engine_link);
        size_t room = queue->slot_count;
        struct weir_inflight *scratch = malloc(room * sizeof(*scratch));
        bool added = scratch && add_queue(entries, queue, start_ns, scratch, room);

        free(scratch);
        if (!added)
            return false;
    }
    return true;
}

/* The oldest first; equals by id, so that two dumps can be compared. */
static int compare_ages(const void *a, const void *b)
{
    const struct weir_inflight *left = &((const struct entry *)a)->job;
    const struct weir_inflight *right = &((const struct entry *)b)->job;

    if (left->age_ns != right->age_ns)
        return left->age_ns > right->age_ns ? -1 : 1;
    return (left->job_id > right->job_id) - (left->job_id < right->job_id);
}

/* "812 ns", "1.27 s" */
static void write_age(FILE *out, uint64_t ns)
{
    if (ns < 1000)
        fprintf(out, "%" PRIu64 " ns", ns);
    else if (ns < WI_MSEC_NS)
        fprintf(out, "%.2f us", (double)ns / 1e3);
    else if (ns < WI_SEC_NS)
        fprintf(out, "%.2f ms", (double)ns / 1e6);
    else
        fprintf(out, "%.2f s", (double)ns / 1e9);
}

/* The exact number, and what it is about: "65536 (64 KiB)" */
static void write_bytes(FILE *out, uint64_t bytes)
{
    static const char units[] = "KMGTPE";
    double value = (double)bytes / 1024;
    size_t unit = 0;

    fprintf(out, "%" PRIu64, bytes);
    if (bytes < 1024)
        return;
    for (; value >= 1024 && units[unit + 1] != '\0'; unit++)
        value /= 1024;
    fprintf(out, " (%.4g %ciB)", value, units[unit]);
}

static void write_entry(FILE *out, const struct entry *entry)
{
    const struct weir_inflight *job = &entry->job;

    fprintf(out, "job %" PRIu64 " queue %" PRIu64 ": %s %s %s ", job->job_id, entry->queue,
            weir_op_name(job->op), weir_class_name(job->io_class), state_name(job->state));
    write_age(out, job->age_ns);
    fputs(", offset ", out);
    write_bytes(out, job->offset);
    fputs(", length ", out);
    write_bytes(out, job->length);
    fputc('\n', out);
}

char *weir_engine_dump(struct weir_engine *engine)
{
    struct entries entries = { 0 };
    char *text = NULL;
    size_t len = 0;
    bool complete;
    bool failed = true;
    FILE *out = NULL;

    if (!engine)
        return NULL;
    wi_mutex_lock(&engine->mu);
    complete = gather_locked(engine, &entries);
    wi_mutex_unlock(&engine->mu);
    if (complete)
        out = open_memstream(&text, &len);
    if (out) {
        if (entries.count > 0)
            qsort(entries.list, entries.count, sizeof(*entries.list), compare_ages);
        for (size_t i = 0; i < entries.count; i++)
            write_entry(out, &entries.list[i]);
        failed = ferror(out) != 0;
        failed |= fclose(out) != 0;
    }
    free(entries.list);
    if (!failed)
        return text;
    free(text);
    return NULL;
}
