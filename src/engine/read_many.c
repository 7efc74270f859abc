/* SPDX-License-Identifier: MIT */
/*
 * read_many.c - any ranges of one file in one call
 *
 * Idea         in order of offset, neighbours are read by one vectored system call: the gaps
 *              between them cost less than another call. What was asked for goes straight to
 *              its buffer, all gaps land in one piece of memory that nobody reads.
 * Order        the ranges are not moved, since the caller's array has his order. private_[0]
 *              of the nth range has the index of the nth in order of offset. The sort is a
 *              natural merge sort of lists, linked by private_[1]: no memory, stable, and
 *              one pass over ranges that are in order already.
 * Which        rules as for merging in a queue (queue.h): ranges of at most 256 KiB, gaps of at
 *              most 16 KiB, at most 1 MiB and twice the bytes asked for in all. Overlapping
 *              ranges are read one after the other, as are those of files that have no offsets.
 * Failures     of a group that failed or was short, each range that is not whole is read
 *              alone, with the usual retries: one bad sector harms one range.
 */
#include "engine_internal.h"

#define SCRATCH     4096u /* larger gaps are several pieces, all of them here */
#define SORT_BINS   21
#define END_OF_LIST UINT64_MAX

/* ---- order ------------------------------------------------------------------------------- */

/* Merge two lists of indices; of equals those of `a` come first. */
static uint64_t merge_lists(struct weir_range *ranges, uint64_t a, uint64_t b)
{
    uint64_t first = END_OF_LIST;
    uint64_t *link = &first;

    while (a != END_OF_LIST && b != END_OF_LIST) {
        uint64_t *from = ranges[b].offset < ranges[a].offset ? &b : &a;

        *link = *from;
        link = &ranges[*from].private_[1];
        *from = *link;
    }
    *link = a != END_OF_LIST ? a : b;
    return first;
}

void wi_ranges_sort(struct weir_range *ranges, size_t count)
{
    uint64_t
        bins[SORT_BINS]; /* bin n: a list merged from 2^n runs, older than those below it */
    uint64_t sorted = END_OF_LIST;
    size_t at = 0;

    for (size_t n = 0; n < SORT_BINS; n++)
        bins[n] = END_OF_LIST;
    while (at < count) {
        uint64_t run = at;
        size_t n = 0;

        while (at + 1 < count && ranges[at].offset <= ranges[at + 1].offset) {
            ranges[at].private_[1] = at + 1;
            at++;
        }
        ranges[at++].private_[1] = END_OF_LIST;
        for (; n < SORT_BINS - 1 && bins[n] != END_OF_LIST; n++) {
            run = merge_lists(ranges, bins[n], run);
            bins[n] = END_OF_LIST;
        }
        bins[n] = bins[n] == END_OF_LIST ? run : merge_lists(ranges, bins[n], run);
    }
    for (size_t n = 0; n < SORT_BINS; n++)
        sorted = merge_lists(ranges, bins[n], sorted);
    for (at = 0; sorted != END_OF_LIST; at++) {
        ranges[at].private_[0] = sorted;
        sorted = ranges[sorted].private_[1];
    }
}

int64_t wi_ranges_result(const struct weir_range *ranges, size_t count, uint64_t *ret_moved,
                         size_t *ret_failed)
{
    uint64_t moved = 0;
    int64_t code = 0;

    for (size_t i = 0; i < count; i++) {
        if (ranges[i].result >= 0) {
            moved += (uint64_t)ranges[i].result;
        } else if (code == 0) {
            code = ranges[i].result;
            *ret_failed = i;
        }
    }
    *ret_moved = moved;
    return code < 0 ? code : (int64_t)moved;
}

/* ---- reading ----------------------------------------------------------------------------- */

static void read_alone(struct weir_file *file, struct weir_range *range)
{
    struct iovec piece = { range->buf, range->len };
    uint64_t moved = 0;
    int64_t code;

    wi_gate_blocking(&file->engine->gate, range->len, true);
    if (wi_file_reads_cached(file))
        code = wi_cache_read(file->engine->cache, file, &piece, 1, range->offset, &moved);
    else
        code = wi_blocking_transfer(file, false, &piece, 1, range->offset, 0, &moved);
    wi_gate_blocking(&file->engine->gate, range->len, false);
    range->result = code < 0 ? code : (int64_t)moved;
}

/* Ranges [first, first + count) in order, which are read as one. */
struct group {
    size_t first;
    size_t count;
    uint64_t offset;
    uint64_t asked;
    uint64_t bytes; /* with the gaps */
    uint32_t iovs;
};

static uint64_t pieces_of_gap(uint64_t gap)
{
    return (gap + SCRATCH - 1) / SCRATCH;
}

/* The group that begins with the range `first`. */
static struct group gather(const struct weir_file *file, struct weir_range *ranges,
                           size_t count, size_t first)
{
    const struct weir_range *range = wi_ranges_nth(ranges, first);
    struct group group = { first, 1, range->offset, range->len, range->len, 1 };
    bool can_gap = file->memory_align <= SCRATCH && file->offset_align <= SCRATCH;

    if (!file->regular || wi_file_reads_cached(file) || range->len > MERGE_MEMBER_MAX ||
        range->len == 0)
        return group;
    for (size_t i = first + 1; i < count; i++) {
        uint64_t gap;

        range = wi_ranges_nth(ranges, i);
        gap = range->offset - (group.offset + group.bytes);
        if (range->offset < group.offset + group.bytes || range->len > MERGE_MEMBER_MAX ||
            range->len == 0 || gap > (can_gap ? MERGE_GAP : 0) ||
            group.bytes + gap + range->len > MERGE_BYTES_MAX ||
            group.bytes + gap + range->len > 2 * (group.asked + range->len) ||
            group.iovs + pieces_of_gap(gap) + 1 > MERGE_IOVS_MAX)
            break;
        group.count++;
        group.asked += range->len;
        group.bytes += gap + range->len;
        group.iovs += (uint32_t)pieces_of_gap(gap) + 1;
    }
    return group;
}

/*
 * Where gaps go. The kernel writes here for all threads at once, which is benign: nobody ever
 * reads it. On the stack, or one for each thread, it would cost every thread its memory.
 */
static _Alignas(SCRATCH) unsigned char scratch[SCRATCH];

static int64_t read_vector(struct weir_file *file, struct weir_range *ranges,
                           const struct group *group)
{
    const struct wi_os *os = file->engine->os;
    struct iovec iov[MERGE_IOVS_MAX];
    uint64_t at = group->offset;
    uint32_t iovs = 0;
    int64_t result;

    for (size_t i = 0; i < group->count; i++) {
        const struct weir_range *range = wi_ranges_nth(ranges, group->first + i);

        for (; at < range->offset; iovs++) {
            iov[iovs].iov_base = scratch;
            iov[iovs].iov_len = wi_min_u64(range->offset - at, SCRATCH);
            at += iov[iovs].iov_len;
        }
        iov[iovs].iov_base = range->buf;
        iov[iovs++].iov_len = range->len;
        at += range->len;
    }
    WEIR_DCHECK(iovs == group->iovs && at == group->offset + group->bytes);
    wi_gate_blocking(&file->engine->gate, group->bytes, true);
    result = os->ops->preadv2(os, file->fd, iov, iovs, group->offset, 0);
    wi_gate_blocking(&file->engine->gate, group->bytes, false);
    return result;
}

static void add(_Atomic uint64_t *counter, uint64_t count)
{
    atomic_fetch_add_explicit(counter, count, memory_order_relaxed);
}

static void read_group(struct weir_file *file, struct weir_range *ranges,
                       const struct group *group)
{
    struct blocking_stats *stats = wi_stats_shard(file->engine);
    int64_t result = read_vector(file, ranges, group);
    uint64_t end = group->offset + (result > 0 ? (uint64_t)result : 0);

    add(&stats->extra_calls, 1);
    add(&stats->merges, 1);
    add(&stats->merged, group->count);
    add(&stats->gap_bytes, group->bytes - group->asked);
    for (size_t i = 0; i < group->count; i++) {
        struct weir_range *range = wi_ranges_nth(ranges, group->first + i);

        if (range->offset + range->len <= end) {
            range->result = (int64_t)range->len;
            continue;
        }
        add(&stats->merge_splits, 1);
        read_alone(file, range);
    }
}

int64_t wi_ranges_read(struct weir_file *file, struct weir_range *ranges, size_t count,
                       uint64_t *ret_moved, struct weir_error *error)
{
    struct weir_engine *engine = file->engine;
    uint64_t begin_ns = wi_trace_begin(engine);
    uint64_t start_ns = 0;
    const char *text = NULL;
    size_t failed = 0;
    int64_t code = wi_file_begin(file);

    *ret_moved = 0;
    if (wi_stats_sample()) {
        start_ns = wi_os_now(engine->os);
        wi_retry_earn(engine, SAMPLED_CALLS);
    }
    if (code < 0) {
        text = wi_file_pool_text(file, code);
        for (size_t i = 0; i < count; i++)
            ranges[i].result = code;
    } else {
        /* The call counts as one system call; those that it makes count themselves. */
        wi_stats_more_calls(engine, (uint64_t)-1, 0, 0);
        wi_ranges_sort(ranges, count);
        for (size_t i = 0; i < count;) {
            struct group group = gather(file, ranges, count, i);

            if (group.count > 1)
                read_group(file, ranges, &group);
            else
                read_alone(file, wi_ranges_nth(ranges, i));
            i += group.count;
        }
        wi_file_end(file);
        code = wi_ranges_result(ranges, count, ret_moved, &failed);
    }
    wi_stats_blocking(engine, WEIR_OP_READ, code, *ret_moved, start_ns);
    for (size_t i = 0; begin_ns != 0 && i < count; i++)
        wi_trace_add_blocking(engine, file, WEIR_OP_READ_MANY, begin_ns, ranges[i].offset,
                              ranges[i].len, ranges[i].result);
    if (code < 0) {
        wi_error_set(error, code, WEIR_OP_READ_MANY, file->path, text ? "%s" : NULL, text);
        if (error && count > 0) {
            error->offset = ranges[failed].offset;
            error->length = ranges[failed].len;
            error->has_offset = 1;
        }
    }
    return code;
}
