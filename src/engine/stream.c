/* SPDX-License-Identifier: MIT */
/*
 * stream.c - the pieces of a file in an order known beforehand, read ahead of their consumer
 *
 * Problem      a consumer that asks for one piece at a time leaves the device idle between two;
 *              one that asks for many holds memory and reads what it may never want.
 * Idea         keep `distance` pieces in flight or ready behind the one that the consumer works
 *              on. It doubles when the consumer had to wait for a piece that was asked for
 *              ahead, and then not again before what was in flight by then has been delivered.
 *              It falls by one after two distances of pieces without a wait, if most of those
 *              ahead are ready.
 * Structures   one ring of entries, each with its job and its buffer or view, set aside at open.
 *              Pieces are fetched again in batches of a quarter of the distance, so that the
 *              queue finds neighbours to merge and a turn serves several.
 * A client     of queues like any other: jobs are submitted, cancelled and waited for, those
 *              ahead in the class PREFETCH; only that it may promote the one it waits for. A
 *              full queue is no error, it looks less far ahead then.
 *
 * The ring: `count` entries from `first` on, in the order of delivery, and before them the one
 * that the consumer has.
 *
 *   EMPTY    -> PLANNED  plan_piece      where and how long
 *   PLANNED  -> FLYING   submit_piece    unless the queue is full
 *   FLYING   -> READY    on_done         with bytes, or with the error that is to be delivered
 *   PLANNED  -> READY    plan_piece      the callback asked for what can't be
 *   READY    -> PLANNED  plan_again      no pins were left; it is tried again when needed
 *   READY    -> GIVEN    deliver
 *   GIVEN    -> EMPTY    give_back       also when an error was delivered
 *
 *   S1  Only the last entry of the ring is ever PLANNED, but for one tried again.
 *   S2  A cached piece is pinned by its entry's view from READY to EMPTY. The consumer's copy of
 *       the view holds no pin, so it may be released or not.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <weir/stream.h>

#define PIECE_DEFAULT  (64u << 10)
#define AHEAD_BYTES    (8u << 20)
#define AHEAD_MAX      65536u
#define DISTANCE_START 2u
#define BUFFER_ALIGN   4096u
#define HUGE_PAGE      ((size_t)2 << 20)

enum piece_state {
    PIECE_EMPTY,
    PIECE_PLANNED,
    PIECE_FLYING,
    PIECE_READY,
    PIECE_GIVEN
};

struct piece {
    struct weir_job job;
    struct weir_stream *stream;
    struct weir_view view; /* of a cached file, else of `buffer` */
    unsigned char *buffer;
    uint64_t offset;
    size_t len;
    int64_t result;
    enum piece_state state;
    bool waited; /* the consumer had to wait for it */
    bool needed; /* it was not ahead: the consumer stood at it when it was submitted */
};

struct weir_stream {
    /* Set at open. */
    struct weir_queue *queue;
    struct weir_file *file;
    bool cached;
    uint32_t block_size; /* cached: pieces lie within one */
    size_t piece_size;
    int64_t stride;
    uint64_t end;
    uint64_t size; /* of a file that is not cached, at open; UINT64_MAX: not known */
    weir_stream_fn next;
    void *arg;
    uint32_t room; /* entries of the ring: what is ahead, and what is next or given */
    unsigned char *buffers;
    int64_t bytes; /* of memory, as told to the engine */

    /* Owner thread only. */
    struct piece *ring;
    uint32_t first;
    uint32_t count;
    uint32_t flying;
    uint32_t ready;
    struct piece *given; /* what the consumer has, or NULL */
    uint64_t offset;     /* of the next piece to plan */
    bool planned_all;
    bool ended;
    int broken; /* the queue takes no more of our jobs: the code */
    uint32_t distance;
    uint32_t distance_max;
    uint32_t grow_after; /* pieces to deliver before it may grow again */
    uint32_t calm;       /* pieces delivered since a wait */
    uint64_t delivered;
    uint64_t waits;
};

/* ---- opening ------------------------------------------------------------------------------ */

static int check_options(const struct weir_stream *stream,
                         const struct weir_stream_options *options)
{
    if (options->piece_size > INT32_MAX || options->ahead_max > AHEAD_MAX ||
        options->offset > INT64_MAX || options->end > INT64_MAX || options->stride == INT64_MIN)
        return -EINVAL;
    if (stream->cached && options->piece_size > stream->block_size)
        return -EINVAL;
    return 0;
}

/* As many pieces as make 8 MiB; of a small cache no more than pin a quarter of it. */
static uint32_t default_ahead(const struct weir_stream *stream)
{
    uint64_t ahead = AHEAD_BYTES / stream->piece_size;

    if (stream->cached)
        ahead = wi_min_u64(ahead, wi_cache_bytes(stream->queue->engine->cache) / 4 /
                                      stream->block_size);
    return (uint32_t)(ahead < 2 ? 2 : ahead);
}

/* Do all pieces begin and end where a direct read may? */
static bool is_aligned(const struct weir_stream *stream)
{
    uint64_t mask = (uint64_t)stream->file->offset_align - 1;

    return ((stream->piece_size | stream->offset | (uint64_t)stream->stride) & mask) == 0 &&
           (!stream->next || mask == 0);
}

/*
 * A buffer for each entry. Where pieces may begin anywhere there is room for the rest of the blocks
 * that a direct read takes whole; else they lie end to end, so that neighbours in the file are
 * neighbours in memory, and in huge pages: a device that is given one range of memory for a read,
 * and not one for each page, was about twice as fast (virtio, direct, 64 KiB and 1 MiB reads).
 */
static int make_buffers(struct weir_stream *stream)
{
    size_t align = wi_max_u64(BUFFER_ALIGN, stream->file->memory_align);
    size_t slack = is_aligned(stream) ? 0 : 2 * (size_t)stream->file->offset_align;
    size_t each = (stream->piece_size + slack + align - 1) & ~(align - 1);
    size_t total;

    if (__builtin_mul_overflow(each, stream->room, &total) || total > SIZE_MAX / 2)
        return -ENOMEM;
    if (total >= HUGE_PAGE) {
        align = wi_max_u64(align, HUGE_PAGE);
        total = (total + align - 1) & ~(align - 1);
    }
    stream->buffers = aligned_alloc(align, total);
    if (!stream->buffers)
        return -ENOMEM;
    if (align >= HUGE_PAGE)
        (void)madvise(stream->buffers, total, MADV_HUGEPAGE);
    stream->bytes += (int64_t)total;
    for (uint32_t i = 0; i < stream->room; i++)
        stream->ring[i].buffer = stream->buffers + i * each;
    return 0;
}

int weir_stream_open(struct weir_queue *queue, struct weir_file *file,
                     const struct weir_stream_options *options, struct weir_stream **ret_stream)
{
    struct weir_stream_options full = { 0 };
    struct weir_stream *stream;
    struct weir_stat stat;
    int rc;

    if (!queue || !file || !ret_stream || (options && options->size < sizeof(options->size)))
        return -EINVAL;
    if (!(atomic_load_explicit(&file->open_flags, memory_order_relaxed) & WEIR_OPEN_READ))
        return -EBADF;
    if (file->engine != queue->engine)
        return -EINVAL;
    if (options)
        memcpy(&full, options, options->size < sizeof(full) ? options->size : sizeof(full));

    stream = calloc(1, sizeof(*stream));
    if (!stream)
        return -ENOMEM;
    stream->queue = queue;
    stream->file = file;
    stream->cached = wi_file_reads_cached(file);
    stream->block_size = stream->cached ? wi_cache_block_size(queue->engine->cache) : 0;
    rc = check_options(stream, &full);
    if (rc < 0)
        goto fail;
    stream->piece_size = full.piece_size  ? full.piece_size
                         : stream->cached ? stream->block_size
                                          : PIECE_DEFAULT;
    stream->stride = full.stride;
    stream->offset = full.offset;
    stream->end = full.end == 0 && full.stride >= 0 ? INT64_MAX : full.end;
    stream->next = full.next;
    stream->arg = full.arg;
    stream->size = UINT64_MAX;
    if (!stream->cached && full.end == 0 && !full.next && file->regular &&
        weir_file_stat(file, &stat, NULL) == 0 && (stat.mode & S_IFMT) == S_IFREG)
        stream->size = stat.size_bytes;
    stream->distance_max = full.ahead_max ? full.ahead_max : default_ahead(stream);
    stream->distance =
        DISTANCE_START < stream->distance_max ? DISTANCE_START : stream->distance_max;
    stream->room = stream->distance_max + 1;

    rc = -ENOMEM;
    stream->ring = calloc(stream->room, sizeof(*stream->ring));
    if (!stream->ring)
        goto fail;
    stream->bytes = (int64_t)(sizeof(*stream) + stream->room * sizeof(*stream->ring));
    for (uint32_t i = 0; i < stream->room; i++)
        stream->ring[i].stream = stream;
    rc = stream->cached ? 0 : make_buffers(stream);
    if (rc < 0)
        goto fail;
    wi_engine_account(queue->engine, stream->bytes);
    *ret_stream = stream;
    return 0;

fail:
    free(stream->ring);
    free(stream);
    return rc;
}

/* ---- planning and submitting -------------------------------------------------------------- */

static struct piece *piece_at(struct weir_stream *stream, uint32_t index)
{
    return &stream->ring[(stream->first + index) % stream->room];
}

/* Where the next piece is, from the options or from the callback. False: there is none. */
static bool find_next(struct weir_stream *stream, uint64_t *ret_offset, size_t *ret_len)
{
    uint64_t offset = stream->offset;
    uint64_t len = stream->piece_size;

    if (stream->next)
        return stream->next(stream->arg, ret_offset, ret_len) > 0;
    if (stream->stride >= 0) {
        if (offset >= stream->end)
            return false;
        len = wi_min_u64(len, stream->end - offset);
        if (stream->cached && stream->stride == 0)
            len = wi_min_u64(len, stream->block_size - offset % stream->block_size);
        stream->offset += stream->stride ? (uint64_t)stream->stride : len;
    } else {
        if (offset < stream->end)
            return false;
        if (offset - stream->end < (uint64_t)-stream->stride)
            stream->planned_all = true;
        else
            stream->offset -= (uint64_t)-stream->stride;
    }
    *ret_offset = offset;
    *ret_len = (size_t)len;
    return true;
}

/* Where the file seemed to end: nothing is read ahead behind that, but the consumer may ask. */
static uint64_t file_end(const struct weir_stream *stream)
{
    return stream->cached ? wi_cache_file_end(stream->queue->engine->cache, stream->file)
                          : stream->size;
}

/* Add the next piece to the ring. False: there is none. */
static bool plan_piece(struct weir_stream *stream)
{
    struct piece *piece = piece_at(stream, stream->count);

    if (stream->planned_all || (stream->count > 0 && !stream->next && stream->stride >= 0 &&
                                stream->offset >= file_end(stream)))
        return false;
    WEIR_DCHECK(piece->state == PIECE_EMPTY);
    if (!find_next(stream, &piece->offset, &piece->len)) {
        stream->planned_all = true;
        return false;
    }
    piece->state = PIECE_PLANNED;
    piece->waited = false;
    if (piece->len == 0 || piece->len > stream->piece_size || piece->offset > INT64_MAX ||
        (stream->cached &&
         piece->offset % stream->block_size + piece->len > stream->block_size)) {
        piece->result = -EINVAL;
        piece->state = PIECE_READY;
        stream->ready++;
    }
    stream->count++;
    return true;
}

static void on_done(struct weir_job *job)
{
    struct piece *piece = job->arg;

    piece->result = job->result;
    piece->state = PIECE_READY;
    piece->stream->flying--;
    piece->stream->ready++;
}

/* Returns 0, -EBUSY, or why the queue takes it never. */
static int submit_piece(struct piece *piece, bool needed)
{
    struct weir_stream *stream = piece->stream;
    struct weir_job *jobs[] = { &piece->job };
    int rc;

    if (stream->cached) {
        weir_job_prepare(&piece->job, WEIR_OP_VIEW, stream->file, on_done, piece);
        piece->job.offset = piece->offset;
        piece->job.len = piece->len;
        piece->job.buf = &piece->view;
    } else {
        uint64_t mask = (uint64_t)stream->file->offset_align - 1;
        uint64_t begin = piece->offset & ~mask;
        uint64_t end = (piece->offset + piece->len + mask) & ~mask;

        weir_job_read(&piece->job, stream->file, piece->buffer, (size_t)(end - begin), begin,
                      on_done, piece);
    }
    piece->job.io_class = needed ? WEIR_CLASS_FOREGROUND : WEIR_CLASS_PREFETCH;
    rc = weir_queue_submit(stream->queue, jobs, 1);
    if (rc < 0)
        return rc;
    piece->needed = needed;
    piece->state = PIECE_FLYING;
    stream->flying++;
    return 0;
}

/* The consumer stands at the first piece; submit what is planned at `index`. */
static int start_piece(struct weir_stream *stream, uint32_t index)
{
    struct piece *piece = piece_at(stream, index);
    int rc = piece->state == PIECE_PLANNED ? submit_piece(piece, index == 0) : 0;

    if (rc < 0 && rc != -EBUSY) {
        stream->broken = rc;
        stream->count = index; /* those before it are delivered first */
        piece->state = PIECE_EMPTY;
        stream->planned_all = true;
    }
    return rc;
}

/* Fill the ring up to the distance and the piece that is next, if it has fallen a quarter below.
 * True: jobs were staged. */
static bool fill(struct weir_stream *stream)
{
    uint32_t before = stream->flying;
    uint32_t want = stream->distance + 1;

    if (stream->count >= want - stream->distance / 4)
        return false;
    if (stream->count > 0 && start_piece(stream, stream->count - 1) < 0)
        goto full;
    while (stream->count < want && plan_piece(stream)) {
        if (start_piece(stream, stream->count - 1) < 0)
            goto full;
    }
    return stream->flying > before;

full:
    if (stream->count > 1 && stream->count < want)
        stream->distance = stream->count - 1;
    return stream->flying > before;
}

/* ---- waiting and delivering --------------------------------------------------------------- */

static int may_take_turns(const struct weir_queue *queue)
{
    uint32_t owner = atomic_load_explicit(&queue->owner, memory_order_relaxed);

    if (owner != 0 && owner != wi_this_thread())
        return -EPERM;
    return queue->in_done ? -EDEADLK : 0;
}

static void empty_piece(struct piece *piece)
{
    if (piece->stream->cached && piece->result >= 0)
        weir_view_release(&piece->view);
    piece->state = PIECE_EMPTY;
}

static void give_back(struct weir_stream *stream)
{
    if (stream->given)
        empty_piece(stream->given);
    stream->given = NULL;
}

/* The consumer stands at a piece that is not ready. */
static void note_wait(struct weir_stream *stream, struct piece *piece)
{
    if (piece->waited)
        return;
    piece->waited = true;
    if (piece->state == PIECE_FLYING)
        wi_queue_promote(stream->queue, piece->job.id, WEIR_CLASS_FOREGROUND);
    stream->waits++;
    stream->calm = 0;
    if (piece->needed || stream->grow_after > 0)
        return;
    stream->grow_after = stream->count;
    stream->distance = stream->distance > stream->distance_max / 2 ? stream->distance_max
                                                                   : stream->distance * 2;
}

/* The first piece was delivered without a wait: perhaps fewer ahead would do. */
static void note_calm(struct weir_stream *stream)
{
    uint32_t hold = stream->distance * 2;

    if (stream->calm++ < hold || stream->distance == 1 ||
        stream->ready < stream->distance - stream->distance / 4)
        return;
    stream->distance--;
    stream->calm = hold / 2;
}

static void plan_again(struct piece *piece)
{
    empty_piece(piece);
    piece->state = PIECE_PLANNED;
    piece->stream->ready--;
}

/*
 * Is the first piece ready? If there were no pins left for it, they may be in what is ahead: that is
 * given up until it is needed, and the piece is tried again. The error stands if it was needed and
 * nothing ahead holds a pin; so this ends.
 */
static bool settle(struct weir_stream *stream, struct piece *piece)
{
    bool again = !piece->needed;

    if (piece->state != PIECE_READY || piece->result != -ENOBUFS)
        return piece->state == PIECE_READY;
    for (uint32_t i = 1; i < stream->count; i++) {
        struct piece *ahead = piece_at(stream, i);

        if (ahead->state == PIECE_READY && ahead->result >= 0) {
            plan_again(ahead);
            again = true;
        }
    }
    if (!again)
        return true;
    plan_again(piece);
    stream->distance = 1;
    return false;
}

/* Until the first piece is ready. Returns 0, or a code that says why not. */
static int wait_for_first(struct weir_stream *stream, uint64_t timeout_ns)
{
    const struct wi_os *os = stream->queue->os;
    struct piece *piece = piece_at(stream, 0);
    uint64_t until_ns =
        timeout_ns == WEIR_FOREVER ? UINT64_MAX : wi_add_sat(wi_os_now(os), timeout_ns);

    for (bool again = false; !settle(stream, piece); again = true) {
        uint64_t left_ns = WEIR_FOREVER;
        int rc = start_piece(stream, 0);

        if (stream->count == 0)
            return rc; /* it can never be read */
        if (again) {
            note_wait(stream, piece);
            if (until_ns != UINT64_MAX) {
                uint64_t now_ns = wi_os_now(os);

                if (now_ns >= until_ns)
                    return -EAGAIN;
                left_ns = until_ns - now_ns;
            }
            rc = weir_queue_wait(stream->queue, 1, left_ns);
        } else {
            rc = weir_queue_run(stream->queue); /* it may have come meanwhile */
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* What was read ahead is not wanted. */
static void drop_ring(struct weir_stream *stream)
{
    for (uint32_t i = 0; i < stream->count; i++) {
        struct piece *piece = piece_at(stream, i);

        if (piece->state == PIECE_FLYING)
            (void)weir_queue_cancel(stream->queue, piece->job.id);
    }
}

/* The bytes that the file had of a piece. */
static size_t show_piece(const struct piece *piece, struct weir_view *view)
{
    memset(view, 0, sizeof(*view));
    view->offset = piece->offset;
    if (piece->stream->cached) {
        view->data = piece->view.data;
        view->len = piece->view.len;
    } else {
        uint64_t skip = piece->offset - piece->job.offset;
        uint64_t there = (uint64_t)piece->result;

        view->data = piece->buffer + skip;
        view->len = there > skip ? (size_t)wi_min_u64(there - skip, piece->len) : 0;
    }
    return view->len;
}

static int deliver(struct weir_stream *stream, struct weir_view *view)
{
    struct piece *piece = piece_at(stream, 0);

    stream->first = (stream->first + 1) % stream->room;
    stream->count--;
    stream->ready--;
    stream->grow_after -= stream->grow_after > 0;
    piece->state = PIECE_GIVEN;
    stream->given = piece;
    if (!piece->waited)
        note_calm(stream);
    if (piece->result < 0)
        return (int)piece->result;
    /* Forwards a short piece is the last: what comes behind it would leave a gap, if the file
     * has grown since. */
    if (show_piece(piece, view) < piece->len && !stream->next && stream->stride >= 0) {
        stream->ended = true;
        drop_ring(stream);
        if (view->len == 0)
            return 0;
    }
    stream->delivered++;
    return 1;
}

int weir_stream_next(struct weir_stream *stream, struct weir_view *view, uint64_t timeout_ns)
{
    int rc;

    if (!stream || !view)
        return -EINVAL;
    rc = may_take_turns(stream->queue);
    if (rc < 0)
        return rc;
    give_back(stream);
    if (stream->ended)
        return 0;
    if (fill(stream) && piece_at(stream, 0)->state == PIECE_READY) {
        rc = weir_queue_run(stream->queue); /* the device works while the consumer does */
        if (rc < 0)
            return rc;
    }
    if (stream->count == 0)
        return stream->broken;
    rc = wait_for_first(stream, timeout_ns);
    return rc < 0 ? rc : deliver(stream, view);
}

int weir_stream_info(struct weir_stream *stream, struct weir_stream_info *info)
{
    struct weir_stream_info full = { 0 };
    size_t size;

    if (!stream || !info || info->size < sizeof(info->size))
        return -EINVAL;
    size = info->size < sizeof(full) ? info->size : sizeof(full);
    full.size = info->size;
    full.ahead = stream->ended ? 0 : stream->count;
    full.distance = stream->distance;
    full.delivered = stream->delivered;
    full.waits = stream->waits;
    for (uint32_t i = 0; stream->ended && i < stream->room; i++) {
        const struct piece *piece = &stream->ring[i];
        struct weir_view view;

        full.unused +=
            piece->state == PIECE_READY && piece->result > 0 && show_piece(piece, &view);
    }
    memcpy(info, &full, size);
    return 0;
}

int weir_stream_close(struct weir_stream *stream)
{
    int rc;

    if (!stream)
        return 0;
    rc = may_take_turns(stream->queue);
    if (rc < 0)
        return rc;
    give_back(stream);
    drop_ring(stream);
    while (stream->flying > 0) {
        rc = weir_queue_wait(stream->queue, 1, WEIR_FOREVER);
        if (rc < 0 && rc != -EINTR)
            return rc;
    }
    for (uint32_t i = 0; i < stream->room; i++) {
        if (stream->ring[i].state == PIECE_READY)
            empty_piece(&stream->ring[i]);
    }
    wi_engine_account(stream->queue->engine, -stream->bytes);
    free(stream->buffers);
    free(stream->ring);
    free(stream);
    return 0;
}
