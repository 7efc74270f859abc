/* SPDX-License-Identifier: MIT */
/*
 * prefetch.c - which reads follow a pattern, and how far to run ahead of them
 *
 * Problem      a reader that waits for each block leaves the device idle; a guess that is wrong
 *              costs the device time and the cache room that others needed.
 * Idea         reads that touch or are equally far apart become a stream; a stream has a window
 *              of pieces ahead of its consumer, which grows only while the consumer waits and
 *              shrinks when what was read for it goes unused.
 * Structures   runs: the latest reads that belong to no stream, those that touch put together.
 *              streams: what is followed, an arithmetic progression of pieces. One that is
 *              `dense` takes all blocks on its way, so its pieces are blocks, and any read in
 *              its direction counts, whatever its length. Others have pieces as long as the
 *              reads are, one `stride` apart.
 * Not here     what is cached and what is on its way (the caller leaves it out), merging.
 *
 * A stream is armed by
 *   - the very first read, if it is at offset 0; any read, if so advised;
 *   - the second read in a row forwards, the fourth backwards (the third equal stride);
 *   - the fourth read of an arithmetic progression (the third equal stride), found by looking
 *     for its earlier terms among the runs, so that interleaved progressions are told apart
 *     however close they are.
 * A hit that continues nothing is forgotten at once: where all is cached there is nothing to
 * foresee, and this is also what keeps cached random reads cheap.
 *
 * Doubt. Programs that read a little in order and then jump elsewhere would waste a window each
 * time. So a stream that ends with more than an eighth of what it has read still ahead raises
 * `doubt` by one, and one that ends with next to nothing there lowers it. With each step a new
 * stream needs a longer run (64 KiB, 128 KiB, ... 2 MiB; two more terms of a progression), and
 * while there is any, a window is at most an eighth of what its stream has read. A random load
 * thus pays for one or two accidents and then no more.
 *
 * Window. Starts at 256 KiB, doubles when the consumer had to wait, at most once for each window
 * read (a change needs that long to show; PostgreSQL's read stream without it swings between two
 * distances). A planned piece that had to be read all the same was evicted or refused: that is
 * waste, not a reason to grow. Halved when over a quarter of the pieces passed went unused;
 * the smallest is given up. All streams together have a quarter of the cache.
 *
 * Places. The stream unused for longest makes room for a new one; one that was idle for 2 s, or for
 * 64 reads without ever having used a window, is gone. Nine streams in turn do not drive out
 * each other for ever: each that goes with its window unused raises the doubt, so newcomers wait
 * longer, and most of the time eight are served (simulated; protecting them was no better).
 */
#include "prefetch.h"

#include <string.h>

#define START_BYTES  (256u << 10)
#define MAX_BYTES    (8u << 20)
#define STRIDE_MAX   (64 << 20)
#define OFFSET_MAX   (UINT64_MAX >> 2) /* so that adding strides cannot overflow */
#define PIECES_MAX   128u
#define IDLE_NS      ((uint64_t)2 * WI_SEC_NS)
#define STALE_READS  64u
#define DOUBT_MAX    6u
#define DOUBT_BYTES  (64u << 10) /* the run that is needed at the first step of doubt */
#define FORWARD_RUN  2u
#define BACKWARD_RUN 4u
#define STRIDE_TERMS 4u

/* One demand read. */
struct demand {
    uint64_t offset;
    uint64_t len;
    uint64_t end;
    enum wi_prefetch_event event;
    uint64_t now_ns;
};

void wi_prefetch_init(struct wi_prefetch *prefetch, uint32_t block_size, uint64_t cache_bytes)
{
    memset(prefetch, 0, sizeof(*prefetch));
    prefetch->block_size = block_size;
    prefetch->advice = WEIR_ADVICE_NORMAL;
    prefetch->budget_bytes = cache_bytes / 4;
    prefetch->max_bytes = wi_min_u64(MAX_BYTES, prefetch->budget_bytes);
    prefetch->start_bytes =
        wi_min_u64(wi_max_u64(START_BYTES, block_size), prefetch->max_bytes);
}

/* ---- streams ------------------------------------------------------------------------------ */

static uint64_t block_of(const struct wi_prefetch *prefetch, uint64_t offset)
{
    return offset - offset % prefetch->block_size;
}

/* What a piece costs: blocks are read whole. */
static uint64_t piece_cost(const struct wi_prefetch *prefetch,
                           const struct wi_prefetch_stream *stream)
{
    return block_of(prefetch, stream->piece_len + prefetch->block_size - 1);
}

/* Planned pieces that the consumer has not come to. */
static uint64_t pieces_ahead(const struct wi_prefetch_stream *stream)
{
    return (uint64_t)((stream->next_plan - (int64_t)stream->piece) / stream->stride - 1);
}

/* Is more asked of streams than to have begun? */
static bool is_in_doubt(const struct wi_prefetch *prefetch)
{
    return prefetch->doubt > 0 && prefetch->advice != WEIR_ADVICE_SEQUENTIAL;
}

/* `bytes`, or less if the stream may not have so large a window yet. */
static uint64_t limit_window(const struct wi_prefetch *prefetch,
                             const struct wi_prefetch_stream *stream, uint64_t bytes)
{
    if (!is_in_doubt(prefetch))
        return bytes;
    return wi_min_u64(bytes, wi_max_u64(piece_cost(prefetch, stream), stream->run_bytes / 8));
}

static void retire(struct wi_prefetch *prefetch, struct wi_prefetch_stream *stream,
                   bool wasteful)
{
    uint64_t ahead = pieces_ahead(stream) * piece_cost(prefetch, stream);

    if (wasteful || ahead > stream->run_bytes / 8)
        prefetch->doubt += prefetch->doubt < DOUBT_MAX;
    else if (ahead <= stream->run_bytes / 32)
        prefetch->doubt -= prefetch->doubt > 0;
    stream->stride = 0;
    prefetch->armed--;
}

/* A place for a new stream: a free one, or the one unused for longest. */
static struct wi_prefetch_stream *take_place(struct wi_prefetch *prefetch)
{
    struct wi_prefetch_stream *oldest = &prefetch->streams[0];

    for (size_t i = 0; i < WI_PREFETCH_STREAMS; i++) {
        struct wi_prefetch_stream *stream = &prefetch->streams[i];

        if (stream->stride == 0)
            return stream;
        if (prefetch->reads - stream->last_read > prefetch->reads - oldest->last_read)
            oldest = stream;
    }
    retire(prefetch, oldest, false);
    return oldest;
}

/* The demand read is the latest of `run_bytes` that go on by `stride`. */
static struct wi_prefetch_stream *arm(struct wi_prefetch *prefetch, const struct demand *demand,
                                      int64_t stride, uint64_t run_bytes)
{
    struct wi_prefetch_stream *stream = take_place(prefetch);
    uint64_t distance = (uint64_t)(stride < 0 ? -stride : stride);

    memset(stream, 0, sizeof(*stream));
    stream->dense = distance <= wi_max_u64(demand->len, prefetch->block_size);
    if (stream->dense) {
        stream->stride = stride < 0 ? -(int64_t)prefetch->block_size : prefetch->block_size;
        stream->edge = stride < 0 ? demand->offset : demand->end;
        stream->piece = block_of(prefetch, stride < 0 ? demand->offset : demand->end - 1);
        stream->piece_len = prefetch->block_size;
    } else {
        stream->stride = stride;
        stream->piece = demand->offset;
        stream->piece_len = demand->len;
    }
    stream->next_plan = (int64_t)stream->piece + stream->stride;
    stream->run_bytes = run_bytes;
    stream->window_bytes = limit_window(prefetch, stream, prefetch->start_bytes);
    stream->hold_bytes = stream->window_bytes;
    stream->used_ns = demand->now_ns;
    stream->last_read = prefetch->reads;
    prefetch->armed++;
    return stream;
}

enum match {
    MATCH_NONE,
    MATCH_INSIDE, /* where it was a short while ago: re-read, or out of order */
    MATCH_AHEAD,  /* skips a part of what is planned */
    MATCH_EXACT
};

static enum match match_dense(const struct wi_prefetch_stream *stream,
                              const struct demand *demand)
{
    uint64_t edge = stream->edge;
    bool forward = stream->stride > 0;
    bool onward = forward ? demand->end > edge : demand->offset < edge;
    int64_t behind = forward ? (int64_t)(edge - demand->offset) : (int64_t)(demand->end - edge);
    int64_t beyond = forward ? (int64_t)demand->offset - stream->next_plan
                             : stream->next_plan - stream->stride - (int64_t)demand->end;

    if (forward ? demand->offset == edge : demand->end == edge)
        return MATCH_EXACT;
    if (onward)
        return beyond < 0 && behind <= (int64_t)stream->window_bytes ? MATCH_AHEAD : MATCH_NONE;
    return behind <= (int64_t)stream->window_bytes ? MATCH_INSIDE : MATCH_NONE;
}

static enum match match_pieces(const struct wi_prefetch_stream *stream,
                               const struct demand *demand)
{
    int64_t distance = (int64_t)(demand->offset - stream->piece);
    int64_t steps = distance / stream->stride;

    if (distance >= 0 && demand->end <= stream->piece + stream->piece_len)
        return MATCH_INSIDE;
    if (distance % stream->stride != 0)
        return MATCH_NONE;
    if (steps == 1)
        return MATCH_EXACT;
    if (steps > 0)
        return (uint64_t)steps <= pieces_ahead(stream) ? MATCH_AHEAD : MATCH_NONE;
    return steps >= -(int64_t)PIECES_MAX ? MATCH_INSIDE : MATCH_NONE;
}

/* The stream that the read belongs to, or NULL. Lets go of what has been idle for too long. */
static struct wi_prefetch_stream *find_stream(struct wi_prefetch *prefetch,
                                              const struct demand *demand,
                                              enum match *ret_match)
{
    struct wi_prefetch_stream *best = NULL;

    *ret_match = MATCH_NONE;
    for (size_t i = 0; i < WI_PREFETCH_STREAMS && prefetch->armed > 0; i++) {
        struct wi_prefetch_stream *stream = &prefetch->streams[i];
        enum match match;

        if (stream->stride == 0)
            continue;
        if (demand->now_ns > stream->used_ns + IDLE_NS ||
            (!stream->proven && prefetch->reads - stream->last_read > STALE_READS)) {
            retire(prefetch, stream, false);
            continue;
        }
        match = stream->dense ? match_dense(stream, demand) : match_pieces(stream, demand);
        if (match > *ret_match) {
            best = stream;
            *ret_match = match;
        }
        if (match == MATCH_EXACT)
            break;
    }
    return best;
}

/* ---- the window --------------------------------------------------------------------------- */

static void set_window(struct wi_prefetch_stream *stream, uint64_t bytes)
{
    stream->window_bytes = bytes;
    stream->hold_bytes = bytes;
    stream->passed_bytes = 0;
    stream->used_bytes = 0;
}

/* The consumer has read on by `bytes`. False: the stream was given up. */
static bool judge(struct wi_prefetch *prefetch, struct wi_prefetch_stream *stream,
                  uint64_t bytes, bool waited)
{
    uint64_t limit;

    stream->run_bytes += bytes;
    limit = limit_window(prefetch, stream, prefetch->max_bytes);
    stream->hold_bytes -= wi_min_u64(stream->hold_bytes, bytes);
    if (stream->passed_bytes >= stream->window_bytes) {
        if (stream->passed_bytes - stream->used_bytes > stream->passed_bytes / 4) {
            if (stream->window_bytes / 2 < piece_cost(prefetch, stream)) {
                retire(prefetch, stream, true);
                return false;
            }
            set_window(stream, stream->window_bytes / 2);
            return true;
        }
        stream->proven = true;
        stream->passed_bytes = 0;
        stream->used_bytes = 0;
    }
    if (waited && stream->hold_bytes == 0 && stream->window_bytes < limit)
        set_window(stream, wi_min_u64(stream->window_bytes * 2, limit));
    return true;
}

/* The consumer has come to another place of its stream. False: the stream was given up. */
static bool follow(struct wi_prefetch *prefetch, struct wi_prefetch_stream *stream,
                   const struct demand *demand, enum match match)
{
    uint64_t cost = piece_cost(prefetch, stream);
    uint64_t ahead = pieces_ahead(stream);
    bool forward = stream->stride > 0;
    uint64_t piece = demand->offset;
    uint64_t touched = 1; /* pieces */
    uint64_t steps;
    bool waited;

    stream->used_ns = demand->now_ns;
    stream->last_read = prefetch->reads;
    if (match == MATCH_INSIDE) {
        /* Out of order it was passed before, and counted as unused. */
        if (demand->event == WI_PREFETCH_HIT_AHEAD || demand->event == WI_PREFETCH_WAITED)
            stream->used_bytes =
                wi_min_u64(stream->used_bytes + demand->len, stream->passed_bytes);
        return true;
    }
    if (stream->dense) {
        uint64_t first = block_of(prefetch, demand->offset);
        uint64_t last = block_of(prefetch, demand->end - 1);

        piece = forward ? last : first;
        touched = (last - first) / prefetch->block_size + 1;
        stream->edge = forward ? demand->end : demand->offset;
    } else {
        stream->piece_len = demand->len;
        cost = piece_cost(prefetch, stream);
    }
    steps = (uint64_t)((int64_t)(piece - stream->piece) / stream->stride);
    waited = demand->event == WI_PREFETCH_WAITED ||
             (demand->event == WI_PREFETCH_MISS && steps > ahead);
    stream->passed_bytes += wi_min_u64(steps, ahead) * cost;
    /* A miss that reaches beyond what was planned says nothing against the plan. */
    if (demand->event != WI_PREFETCH_MISS || steps > ahead)
        stream->used_bytes += wi_min_u64(wi_min_u64(steps, touched), ahead) * cost;
    stream->piece = piece;
    if (steps > ahead)
        stream->next_plan = (int64_t)piece + stream->stride;
    return judge(prefetch, stream, demand->len, waited);
}

/* What to read now: up to the full window, once less than half of it is left ahead, so that
 * neighbours come together and can be read as one. */
static void plan(struct wi_prefetch *prefetch, struct wi_prefetch_stream *stream,
                 uint64_t file_end, struct wi_prefetch_plan *ret_plan)
{
    uint64_t window =
        wi_min_u64(stream->window_bytes, prefetch->budget_bytes / prefetch->armed);
    uint64_t cost = piece_cost(prefetch, stream);
    uint64_t ahead = pieces_ahead(stream);
    uint64_t want = wi_min_u64(wi_max_u64(window / cost, 1), PIECES_MAX);
    uint64_t distance = (uint64_t)(stream->stride < 0 ? -stream->stride : stream->stride);
    uint64_t begin = (uint64_t)stream->next_plan;
    uint64_t len = stream->piece_len;
    uint64_t room; /* pieces up to the end of the file, or down to its beginning */

    if (cost > prefetch->max_bytes || ahead * 2 >= want || stream->next_plan < 0 ||
        begin >= file_end)
        return;
    if (file_end - begin < len) {
        len = file_end - begin;
        room = 1;
    } else if (stream->stride < 0) {
        room = begin / distance + 1;
    } else {
        room = (file_end - begin - len) / distance + 1;
    }
    ret_plan->offset = begin;
    ret_plan->len = len;
    ret_plan->stride = stream->stride;
    ret_plan->count = (uint32_t)wi_min_u64(want - ahead, room);
    stream->next_plan += (int64_t)ret_plan->count * stream->stride;
    prefetch->planned = (uint32_t)(stream - prefetch->streams);
}

/* ---- reads of no stream ------------------------------------------------------------------- */

static const struct wi_prefetch_run *find_run_at(const struct wi_prefetch *prefetch,
                                                 uint64_t offset)
{
    for (size_t i = 0; i < WI_PREFETCH_RUNS; i++) {
        if (prefetch->runs[i].lo == offset && prefetch->runs[i].hi != 0)
            return &prefetch->runs[i];
    }
    return NULL;
}

/* How far apart the terms of a progression are that ends with this read; 0: there is none. */
static int64_t find_stride(const struct wi_prefetch *prefetch, uint64_t offset, uint32_t terms)
{
    for (size_t i = 0; i < WI_PREFETCH_RUNS; i++) {
        int64_t stride = (int64_t)(offset - prefetch->runs[i].lo);
        uint64_t at = prefetch->runs[i].lo;
        uint32_t found = 2;

        if (prefetch->runs[i].hi == 0 || stride == 0 || stride > STRIDE_MAX ||
            stride < -STRIDE_MAX)
            continue;
        for (; found < terms; found++) {
            at -= (uint64_t)stride;
            if (!find_run_at(prefetch, at))
                break;
        }
        if (found == terms)
            return stride;
    }
    return 0;
}

/* The read continues the run: add it. */
static void extend(struct wi_prefetch_run *run, const struct demand *demand, int16_t direction)
{
    run->reads = run->direction == direction || run->direction == 0 ? run->reads : 1;
    run->reads = run->reads < UINT16_MAX ? (uint16_t)(run->reads + 1) : run->reads;
    run->direction = direction;
    run->lo = wi_min_u64(run->lo, demand->offset);
    run->hi = wi_max_u64(run->hi, demand->end);
}

static bool is_enough(const struct wi_prefetch *prefetch, const struct wi_prefetch_run *run)
{
    if (run->reads < (run->direction > 0 ? FORWARD_RUN : BACKWARD_RUN))
        return false;
    return !is_in_doubt(prefetch) || run->hi - run->lo >= (uint64_t)DOUBT_BYTES
                                                              << (prefetch->doubt - 1);
}

/* A read that belongs to no stream. Does it make one? */
static struct wi_prefetch_stream *learn(struct wi_prefetch *prefetch,
                                        const struct demand *demand)
{
    struct wi_prefetch_run *oldest = &prefetch->runs[0];
    uint64_t run_bytes;
    int64_t stride;

    for (size_t i = 0; i < WI_PREFETCH_RUNS; i++) {
        struct wi_prefetch_run *run = &prefetch->runs[i];
        int16_t direction;

        if (run->hi == 0 || (oldest->hi != 0 && prefetch->reads - run->last_read >
                                                    prefetch->reads - oldest->last_read))
            oldest = run;
        if (run->hi == 0 || demand->offset > run->hi || demand->end < run->lo)
            continue;
        run->last_read = prefetch->reads;
        if (demand->offset >= run->lo && demand->end <= run->hi)
            return NULL; /* read again */
        direction = demand->end > run->hi ? 1 : -1;
        extend(run, demand, direction);
        if (!is_enough(prefetch, run))
            return NULL;
        run_bytes = run->hi - run->lo;
        run->hi = 0;
        return arm(prefetch, demand, (int64_t)demand->len * direction, run_bytes);
    }

    if (demand->event == WI_PREFETCH_HIT)
        return NULL;
    if (prefetch->advice == WEIR_ADVICE_SEQUENTIAL ||
        (prefetch->reads == 1 && demand->offset == 0))
        return arm(prefetch, demand, (int64_t)demand->len, demand->len);
    stride = find_stride(prefetch, demand->offset, STRIDE_TERMS + 2 * prefetch->doubt);
    if (stride != 0)
        return arm(prefetch, demand, stride, STRIDE_TERMS * demand->len);
    *oldest = (struct wi_prefetch_run){
        .lo = demand->offset, .hi = demand->end, .last_read = prefetch->reads, .reads = 1
    };
    return NULL;
}

/* ---- for the queue ------------------------------------------------------------------------ */

void wi_prefetch_observe(struct wi_prefetch *prefetch, uint64_t offset, uint64_t len,
                         enum wi_prefetch_event event, uint64_t now_ns, uint64_t file_end,
                         struct wi_prefetch_plan *ret_plan)
{
    struct demand demand = {
        .offset = offset, .len = len, .end = offset + len, .event = event, .now_ns = now_ns
    };
    struct wi_prefetch_stream *stream;
    enum match match;

    memset(ret_plan, 0, sizeof(*ret_plan));
    if (len == 0 || len > OFFSET_MAX || offset > OFFSET_MAX - len ||
        prefetch->advice == WEIR_ADVICE_RANDOM || prefetch->max_bytes < prefetch->block_size)
        return;
    prefetch->reads++;
    stream = find_stream(prefetch, &demand, &match);
    if (!stream)
        stream = learn(prefetch, &demand);
    else if (!follow(prefetch, stream, &demand, match))
        stream = NULL;
    if (stream)
        plan(prefetch, stream, file_end, ret_plan);
}

void wi_prefetch_cut(struct wi_prefetch *prefetch, const struct wi_prefetch_plan *plan,
                     uint32_t done)
{
    struct wi_prefetch_stream *stream = &prefetch->streams[prefetch->planned];

    if (done < plan->count && stream->stride == plan->stride)
        stream->next_plan = (int64_t)plan->offset + (int64_t)done * plan->stride;
}
