/* SPDX-License-Identifier: MIT */
/*
 * queue.h - one thread's way in
 *
 * A queue has one owner: the thread that first submits to it, runs it, waits on it or asks
 * for its descriptor. Submitting only stages a job; weir_queue_run() and
 * weir_queue_wait() hand the staged jobs to the kernel, reap what is finished and call
 * `done`, with one system call a turn. There is no lock and no other thread between the
 * owner and the kernel.
 *
 *     loop of its own    while (work) { submit...; weir_queue_wait(queue, 1, WEIR_FOREVER); }
 *     event loop         watch weir_queue_fd() for reading; when readable, weir_queue_run()
 *     other threads      weir_queue_post(): `done` runs on the owner's thread
 */
#ifndef WEIR_QUEUE_H
#define WEIR_QUEUE_H

#include <weir/base.h>
#include <weir/job.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_engine;
struct weir_queue;

#define WEIR_FOREVER UINT64_MAX

struct weir_queue_options {
    size_t size;           /* sizeof(struct weir_queue_options), as the caller knows it */
    uint32_t depth;        /* operations at the device at most, up to 4096; 0 means 128 */
    uint32_t backlog;      /* jobs taken and not done at most, beyond depth, up to 1 << 19;
                         0 means 4 x depth, at least 1024 */
    uint64_t device_bytes; /* at the device at most; 0: what the engine allows */
    uint32_t merge_gap;    /* read up to this many bytes that nobody asked for, at most 1 MiB,
                              to serve two reads with one; 0: 16 KiB; see below */
    uint32_t flags;        /* WEIR_QUEUE_* */
};

/*
 * Merging. Reads of one file and class that wait together, each of at most 256 KiB, are given to
 * the kernel as one, if the gaps between them are at most `merge_gap`, the whole is at most 1 MiB
 * and at most twice the bytes asked for. Writes only if they are exactly contiguous. Nothing
 * waits in order to be merged. If the whole fails or is short, each member is tried alone;
 * but a write that failed for good is not tried again.
 */
enum weir_queue_flag {
    WEIR_QUEUE_NO_MERGE = 1u << 0,
    WEIR_QUEUE_NO_GAPS = 1u << 1,    /* merge only what touches */
    WEIR_QUEUE_NO_PREFETCH = 1u << 2 /* what is read through this queue foretells nothing */
};

/*
 * Open a queue. It has no owner yet. `options` may be NULL; borrowed until the call returns.
 * Returns 0, -EINVAL, -ENOMEM, -EMFILE. Where no further ring can be had, the queue falls
 * back to the threads backend, with a line in the log.
 * Thread: any. Blocks: never. Allocates: all that the queue will ever need, but for the first
 * use of a file or of an operation.
 */
WEIR_API int weir_queue_open(struct weir_engine *engine,
                             const struct weir_queue_options *options,
                             struct weir_queue **ret_queue);

/*
 * Cancel what is queued, ask the kernel to cancel what is in flight, run every `done`, and
 * free the queue. With work that the kernel has not let go of after `timeout_ns` it returns
 * -EBUSY; jobs and buffers of that work stay borrowed, and the call may be made again.
 * Jobs cannot be submitted or posted once it has been called. NULL is allowed.
 * Returns 0, -EBUSY, -EDEADLK inside `done`, -EPERM on another thread than the owner.
 * Thread: owner. Blocks: on I/O, up to `timeout_ns`.
 */
WEIR_API int weir_queue_close(struct weir_queue *queue, uint64_t timeout_ns);

/*
 * Hand over prepared jobs.
 *
 * Returns how many were taken, from the front of `jobs`: each of those has its `done` run
 * exactly once, later, also if it fails. The rest are untouched. Returns a negative code,
 * and takes none, if the first can't be taken:
 *   -EBUSY      the backlog is full; run the queue, then try again
 *   -EINVAL     the job is malformed, or its file is direct and buf, len or offset is not
 *               aligned for it; `error` of the job says which
 *   -EBADF      its file is closed, or not open for this
 *   -EPERM      this thread is not the owner
 *   -ESHUTDOWN  the queue is being closed
 *
 * Memory: jobs and what they point to are borrowed until `done` runs.
 * Thread: owner. Blocks: never. Allocates: never (but see weir_queue_open).
 */
WEIR_API int weir_queue_submit(struct weir_queue *queue, struct weir_job *const *jobs,
                               size_t count);

/*
 * One turn without waiting: hand over what is staged, reap, call `done`, and hand over what
 * those calls staged. Returns how many `done` were called, -EDEADLK inside `done`, -EPERM.
 * Thread: owner. Blocks: never.
 */
WEIR_API int weir_queue_run(struct weir_queue *queue);

/*
 * Take turns until at least `min_done` jobs were done, nothing is left, or `timeout_ns` has
 * passed. `min_done` 0 means: about a quarter of what is in flight, which is the best rate
 * for a loop at depth; a queue whose depth is exhausted waits for that many in any case, up
 * to 16, unless the time runs out. What the last `done` calls staged is handed over by the next turn,
 * in the same system call that waits for it; use weir_queue_run() before doing long work
 * elsewhere. With nothing taken it waits for posts; but with WEIR_FOREVER it then returns 0
 * at once, so that a loop that drains a queue ends. Returns how many `done` were called (0
 * after the time), -EDEADLK, -EPERM, or -EINTR if a signal came before any.
 * Thread: owner. Blocks: on I/O.
 */
WEIR_API int weir_queue_wait(struct weir_queue *queue, uint32_t min_done, uint64_t timeout_ns);

/*
 * A descriptor that is readable when weir_queue_run() has something to do: completions,
 * staged or posted jobs, a deadline. Spurious wake-ups happen. Works with epoll, poll, libuv
 * and GLib. Asking for it makes the queue pay for keeping it up to date. Inside, valid until
 * close or rebind. Returns it, or a negative errno.
 * Thread: owner. Blocks: never.
 */
WEIR_API int weir_queue_fd(struct weir_queue *queue);

/*
 * Hand one job to another thread's queue. `done` runs on its owner's thread. 0 means taken;
 * -EBUSY, -EINVAL, -EBADF and -ESHUTDOWN as for submit. The job gets its id when the owner
 * takes it over. Of WEIR_OP_CANCEL 64 more are taken than of others, and they are acted on even
 * if the queue has no room. The queue must not be closed meanwhile: that is the caller's to
 * see to.
 * Thread: any. Blocks: never. Allocates: never.
 */
WEIR_API int weir_queue_post(struct weir_queue *queue, struct weir_job *job);

/*
 * Ask for the job with this id to be cancelled. A queued one is done with -ECANCELED at the
 * next turn; for one in flight the kernel decides, and it may still succeed. Other threads
 * post a job of WEIR_OP_CANCEL.
 * Returns 0 if asked, -ENOENT if no such job is in this queue, -EALREADY if it was asked
 * before or its `done` is due, -EAGAIN if the kernel has no memory for the request, -EPERM.
 * Thread: owner. Blocks: never.
 */
WEIR_API int weir_queue_cancel(struct weir_queue *queue, uint64_t job_id);

/*
 * Give up ownership, so that the next thread to use the queue becomes its owner. Only with
 * nothing taken and nothing posted, and with nothing at the device that was read ahead for the
 * block cache (it is given up, but the kernel may take a moment): else -EBUSY. -EMFILE or -ENOMEM if the next owner could
 * have no ring; then nothing has changed. Thread: owner. Blocks: never.
 */
WEIR_API int weir_queue_rebind(struct weir_queue *queue);

/* What a queue has taken and not finished, for dumps and support. */
struct weir_inflight {
    uint64_t job_id;
    uint64_t age_ns; /* since submit */
    uint64_t offset;
    uint64_t length;
    uint32_t op;
    uint32_t state; /* WEIR_STATE_* */
    uint32_t io_class;
    uint32_t reserved;
};
enum weir_job_state {
    WEIR_STATE_NONE = 0,
    WEIR_STATE_QUEUED = 1, /* in the backlog, or held behind an overlapping write */
    WEIR_STATE_DEVICE = 2, /* at the kernel or in the pool */
    WEIR_STATE_RETRY = 3,  /* waiting to be tried again */
    WEIR_STATE_LOADING = 4 /* waiting for a block of the cache */
};
/*
 * Write up to `max` entries to `list`, in no order. What the queue reads for the block cache, and the
 * ranges of a READ_MANY, are listed too; weir_queue_wait() does not wait for the former. Each entry is
 * consistent in itself; jobs that start or end meanwhile may be missing.
 * Returns how many were written. Thread: any. Blocks: never.
 */
WEIR_API size_t weir_queue_inflight(struct weir_queue *queue, struct weir_inflight *list,
                                    size_t max);

#ifdef __cplusplus
}
#endif
#endif
