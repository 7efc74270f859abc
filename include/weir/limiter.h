/* SPDX-License-Identifier: MIT */
/*
 * limiter.h - back-pressure around work of your own
 *
 * A limiter has a number of bytes and of permits to give. Work takes a permit before it starts
 * and gives it back at its end; more than the limit waits, the urgent classes first. It is the
 * same idea as the engine's own limits at the device, for what the engine does not see: requests
 * that are being decoded, results that nobody has taken yet.
 *
 *     struct weir_permit permit;
 *     weir_limiter_acquire(limiter, WEIR_CLASS_FOREGROUND, bytes, WEIR_FOREVER, &permit);
 *     ...
 *     weir_permit_release(&permit);
 *
 * A permit can ride on a job (`job.permit`): it is given back just before the job's `done`.
 * An event loop hands over a job with weir_limiter_notify(): it is posted to its queue once there
 * is room. That can be the work itself, which then takes its permit along, or a NOP whose `done`
 * goes on from there.
 */
#ifndef WEIR_LIMITER_H
#define WEIR_LIMITER_H

#include <weir/base.h>
#include <weir/job.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_limiter;
struct weir_queue;

struct weir_limiter_options {
    size_t size;      /* sizeof(struct weir_limiter_options), as the caller knows it */
    uint64_t bytes;   /* out at most; 0: any number */
    uint64_t permits; /* out at most; 0: any number; one of the two is needed */
};

/* Caller's memory. Zeroed: none is held. */
struct weir_permit {
    struct weir_limiter *limiter; /* NULL: none is held; set by the library */
    uint64_t bytes;
};

/* Returns 0, -EINVAL, -ENOMEM. Thread: any. Blocks: never. */
WEIR_API int weir_limiter_open(const struct weir_limiter_options *options,
                               struct weir_limiter **ret_limiter);

/* Returns 0 and frees it, or -EBUSY while permits are out or somebody waits. NULL is allowed.
 * Thread: any, once. Blocks: never. */
WEIR_API int weir_limiter_close(struct weir_limiter *limiter);

/*
 * Take a permit for `bytes`. Waiters are served by class (deficit round robin with the engine's
 * weights), first come first served inside one; nobody overtakes a waiter of its own class.
 * More than the whole limit is given when nothing else is out, so that it never waits for ever.
 * Who is granted one in the last moment of the time has it.
 * Returns 0; -ETIMEDOUT; -EINVAL (the permit is held already, or the class is none).
 * Thread: any, also inside `done`, where it must not wait for its own queue's jobs. Blocks: up to
 * `timeout_ns`. Allocates: never.
 */
WEIR_API int weir_limiter_acquire(struct weir_limiter *limiter, uint32_t io_class,
                                  uint64_t bytes, uint64_t timeout_ns,
                                  struct weir_permit *permit);

/* As above without waiting: -EAGAIN. Thread: any. Blocks: never. */
WEIR_API int weir_limiter_try(struct weir_limiter *limiter, uint32_t io_class, uint64_t bytes,
                              struct weir_permit *permit);

/*
 * Post `job`, a prepared one, to `queue` once `bytes` can be had, which may be at once; `permit` is
 * then taken already. Waits in line with the others. Returns 0; -EINVAL; and as
 * weir_queue_post() if the job is malformed, or there is room now and the queue refuses it.
 * If the queue refuses it when its time has come later (it is full or closing), the permit goes to
 * the next waiter and the job is never done: keep room in the queue for those.
 * Until it is posted the queue does not know of the job: weir_queue_wait() with WEIR_FOREVER and
 * nothing else to do returns.
 * Thread: any. Blocks: never. Allocates: never. `job` and `permit` are borrowed until `done`, and
 * the queue stays open until then.
 */
WEIR_API int weir_limiter_notify(struct weir_limiter *limiter, uint32_t io_class,
                                 uint64_t bytes, struct weir_permit *permit,
                                 struct weir_queue *queue, struct weir_job *job);

/* Give it back; an empty permit is fine. Thread: any. Blocks: never. */
WEIR_API void weir_permit_release(struct weir_permit *permit);

struct weir_limiter_info {
    size_t size; /* sizeof(struct weir_limiter_info), set by the caller */
    uint64_t bytes_out;
    uint64_t permits_out;
    uint64_t bytes_peak;
    uint64_t waiting; /* now */
    uint64_t granted;
    uint64_t waited; /* of those, how many had to wait */
};
WEIR_API int weir_limiter_info(struct weir_limiter *limiter, struct weir_limiter_info *info);

#ifdef __cplusplus
}
#endif
#endif
