/* SPDX-License-Identifier: MIT */
/*
 * pool.h - threads for work that may block or compute, in lanes
 *
 * A lane is a FIFO with its own threads, started when there is work and none is idle, up to
 * the lane's limit, and kept until the pool is destroyed. Submitting takes the lane's lock
 * once for a whole batch and wakes one thread; a thread that finds more work behind what it
 * took wakes the next (chain wake), so a burst does not pay for all wake-ups at the front.
 * The thread that went to sleep last is woken first, so that few stay warm.
 *
 * Whether lanes share one queue or threads steal from each other was measured:
 * docs/decisions/ says what and why.
 */
#ifndef WEIR_BASE_POOL_H
#define WEIR_BASE_POOL_H

#include "common.h"

enum wi_lane {
    WI_LANE_IO,
    WI_LANE_FILES,
    WI_LANE_CPU,
    WI_LANES
};

/* Embedded in whatever is to be done. `run` may free it. */
struct wi_task {
    struct wi_task *next;
    void (*run)(struct wi_task *task);
};

struct wi_pool;

struct wi_pool_options {
    uint32_t threads[WI_LANES]; /* at most, each at least 1 */
    const uint32_t *pin_cpus;   /* borrowed until create returns; threads take them in turn */
    size_t pin_cpus_count;
};

/* No thread is started. Returns 0 or -ENOMEM. */
int wi_pool_create(const struct wi_pool_options *options, struct wi_pool **ret_pool);

/* Runs what is queued, ends the threads and waits for them. NULL is allowed.
 * Thread: any but the pool's. Blocks: until tasks have ended. */
void wi_pool_destroy(struct wi_pool *pool);

/*
 * Queue a chain of tasks, linked by `next`, in order. Always takes them: the memory is the
 * tasks' own, bounded by whoever owns them. If not one thread of the lane can be started,
 * they run on the calling thread before it returns; so hold no lock that a task may want.
 * Thread: any, pool threads too. Blocks: on lock, briefly.
 */
void wi_pool_submit(struct wi_pool *pool, enum wi_lane lane, struct wi_task *first,
                    struct wi_task *last, uint32_t count);

struct wi_pool_stats {
    uint64_t tasks[WI_LANES]; /* run */
    uint64_t threads_peak[WI_LANES];
    uint64_t threads[WI_LANES]; /* alive */
    uint64_t wakes[WI_LANES];   /* futex wake-ups asked for */
    uint64_t cpu_ns;            /* processor time of all its threads */
};
void wi_pool_stats(struct wi_pool *pool, struct wi_pool_stats *ret_stats);

/* True on a thread of this pool. */
bool wi_pool_is_worker(struct wi_pool *pool);

#endif
