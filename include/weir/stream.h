/* SPDX-License-Identifier: MIT */
/*
 * stream.h - look ahead of a reader that knows where it is going
 *
 * A stream delivers pieces of one file in an order known beforehand, keeps reads in flight
 * ahead of its consumer, and reads no more than it must: it looks further ahead only after
 * the consumer had to wait, and less far where that was not needed.
 *
 *     struct weir_stream *stream;
 *     struct weir_view piece;
 *     weir_stream_open(queue, file, &options, &stream);
 *     while ((rc = weir_stream_next(stream, &piece, WEIR_FOREVER)) > 0)
 *         use(piece.data, piece.len);
 *     weir_stream_close(stream);
 *
 * A cached file's pieces are views of the cache; another file's lie in buffers of the
 * stream's own.
 */
#ifndef WEIR_STREAM_H
#define WEIR_STREAM_H

#include <weir/base.h>
#include <weir/queue.h>
#include <weir/view.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_stream;

/* Says where the next piece begins. Returns 1 and sets both, or 0 at the end. A piece is at most
 * `piece_size` long. Called on the owner's thread, ahead of the consumer; not inside `done`. */
typedef int (*weir_stream_fn)(void *arg, uint64_t *ret_offset, size_t *ret_len);

struct weir_stream_options {
    size_t size;     /* sizeof(struct weir_stream_options), as the caller knows it */
    uint64_t offset; /* where to begin */
    uint64_t end;    /* no piece goes beyond; 0: the end of the file. With a stride below 0: no
                            piece begins before */
    int64_t stride;  /* from one piece to the next; 0: `piece_size`, which reads it all */
    uint32_t piece_size; /* 0: 64 KiB, or the cache's block size; a cached file's piece must lie
                            within one block (in order without a stride it is cut there) */
    uint32_t ahead_max; /* pieces ahead at most, up to 65536; 0: as many as make 8 MiB, at least
                            2; of a cached file no more than make a quarter of the cache */
    weir_stream_fn next; /* instead of offset, end and stride; NULL: those */
    void *arg;
};

/*
 * Open a stream on `queue`, which must stay open longer. `options` may be NULL: the whole file in
 * order. Returns 0, -EINVAL, -EBADF, -ENOMEM.
 * Thread: the queue's owner. Blocks: on I/O, to ask for the size of a file that is not cached.
 * Allocates: all that it will need.
 */
WEIR_API int weir_stream_open(struct weir_queue *queue, struct weir_file *file,
                              const struct weir_stream_options *options,
                              struct weir_stream **ret_stream);

/*
 * The next piece, in order. Runs the queue while it waits, so `done` of other jobs may be called
 * meanwhile. What `view` shows is valid until the next call on the stream, which gives it back;
 * weir_view_release() on it is allowed and does nothing but empty it. A piece is shorter than asked
 * only at the end of the file. Forwards, that ends the stream; backwards and with a callback a
 * piece that lies behind the end is delivered with length 0.
 * Returns 1; 0 at the end; -EAGAIN if `timeout_ns` passed first (0 never waits, but takes one turn);
 * -EINTR if a signal came first; -EDEADLK inside `done`; -EPERM; or the piece's error, after which
 * the next call goes on behind it. If the queue or the file is closed: the code, from then on.
 * Thread: owner. Blocks: on I/O. Allocates: never.
 */
WEIR_API int weir_stream_next(struct weir_stream *stream, struct weir_view *view,
                              uint64_t timeout_ns);

/* How far it looks, and what came of it. */
struct weir_stream_info {
    size_t size;       /* sizeof(struct weir_stream_info), set by the caller */
    uint32_t ahead;    /* pieces in flight or ready, now */
    uint32_t distance; /* pieces it would like to have there */
    uint64_t delivered;
    uint64_t waits;  /* pieces that the consumer had to wait for */
    uint64_t unused; /* at the end: pieces that were read and are not delivered */
};
/* Returns 0 or -EINVAL. Thread: owner. Blocks: never. */
WEIR_API int weir_stream_info(struct weir_stream *stream, struct weir_stream_info *info);

/* Cancel what is ahead, wait for what the kernel holds, and free the stream. NULL is allowed.
 * Returns 0, -EDEADLK inside `done`, -EPERM. Thread: owner. Blocks: on I/O. */
WEIR_API int weir_stream_close(struct weir_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
