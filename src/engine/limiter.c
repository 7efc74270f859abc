/* SPDX-License-Identifier: MIT */
/*
 * limiter.c - permits for work of the caller's own
 *
 * Structures   what is out, and a list of waiters a class, in the order they came. Whose list is
 *              next says base/drr.h. A waiter is a thread, with a record and a condition of its
 *              own on its stack, so that each grant wakes one thread; or a job that is to
 *              be posted, with its record in the job's private half, which is free until then.
 * Invariant    whenever the lock is free, the waiter that is next does not fit. So only what makes
 *              room (a release, a waiter that gives up, a queue that refuses a job) has to look for
 *              whom to serve, and whoever comes new can be judged alone.
 * No overtaking   the next waiter is waited for, also if a later and smaller one would fit:
 *              else a large request could starve.
 * Too large    with nothing out, everything fits.
 * Shares       only what waited, or came while others waited, is charged to its class.
 * Posting      happens after the lock was given back, since it wakes another thread. Permits that
 *              are to be posted are out already, which keeps the limiter open; after a successful
 *              post it may be gone.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <time.h>

#include "base/drr.h"

struct weir_limiter {
    /* Set at open; "any number" is UINT64_MAX. */
    uint64_t bytes_max;
    uint64_t permits_max;

    struct wi_mutex mu;
    /* Guarded by mu. */
    uint64_t bytes_out;
    uint64_t permits_out;
    uint64_t bytes_peak;
    uint64_t waiting;
    uint64_t granted;
    uint64_t waited;
    uint32_t mask; /* 1u << rank for each list of `waiters` that is not empty */
    struct wi_drr drr;
    struct wi_list waiters[WI_DRR_RANKS];
};

/* Guarded by mu; `link` of a job that was granted belongs to the thread that posts it. */
struct waiter {
    struct wi_list link;
    uint64_t bytes;
    struct weir_permit *permit;
    struct weir_queue *queue; /* where the job goes; NULL: a thread waits */
    uint32_t rank;
    bool granted;
};

struct waiting_thread {
    struct waiter waiter;
    struct wi_cond granted;
};

_Static_assert(sizeof(struct waiter) <= sizeof(((struct weir_job *)0)->private_tail),
               "a waiting job has its record in its private half");

static struct weir_job *job_of_waiter(struct waiter *waiter)
{
    return WI_CONTAINER_OF(waiter, struct weir_job, private_tail);
}

int weir_limiter_open(const struct weir_limiter_options *options,
                      struct weir_limiter **ret_limiter)
{
    struct weir_limiter_options full = { 0 };
    struct weir_limiter *limiter;

    if (!options || !ret_limiter || options->size < sizeof(options->size))
        return -EINVAL;
    memcpy(&full, options, options->size < sizeof(full) ? options->size : sizeof(full));
    if (full.bytes == 0 && full.permits == 0)
        return -EINVAL;
    limiter = calloc(1, sizeof(*limiter));
    if (!limiter)
        return -ENOMEM;
    limiter->bytes_max = full.bytes ? full.bytes : UINT64_MAX;
    limiter->permits_max = full.permits ? full.permits : UINT64_MAX;
    wi_mutex_init(&limiter->mu, WI_RANK_LIMITER);
    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++)
        wi_list_init(&limiter->waiters[rank]);
    *ret_limiter = limiter;
    return 0;
}

int weir_limiter_close(struct weir_limiter *limiter)
{
    bool busy;

    if (!limiter)
        return 0;
    wi_mutex_lock(&limiter->mu);
    busy = limiter->permits_out > 0 || limiter->waiting > 0;
    wi_mutex_unlock(&limiter->mu);
    if (busy)
        return -EBUSY;
    wi_mutex_fini(&limiter->mu);
    free(limiter);
    return 0;
}

/* ---- giving and taking ------------------------------------------------------------------- */

static bool fits(const struct weir_limiter *limiter, uint64_t bytes)
{
    if (limiter->permits_out == 0)
        return true;
    return limiter->permits_out < limiter->permits_max &&
           limiter->bytes_out <= limiter->bytes_max && /* not with a too large one out */
           bytes <= limiter->bytes_max - limiter->bytes_out;
}

static void give_locked(struct weir_limiter *limiter, uint64_t bytes,
                        struct weir_permit *permit) WI_REQUIRES(limiter->mu)
{
    WEIR_DCHECK(fits(limiter, bytes));
    *permit = (struct weir_permit){ .limiter = limiter, .bytes = bytes };
    limiter->permits_out++;
    limiter->bytes_out += bytes;
    limiter->bytes_peak = wi_max_u64(limiter->bytes_peak, limiter->bytes_out);
    limiter->granted++;
}

static void take_back_locked(struct weir_limiter *limiter, struct weir_permit *permit)
    WI_REQUIRES(limiter->mu)
{
    WEIR_DCHECK(limiter->permits_out > 0 && limiter->bytes_out >= permit->bytes);
    limiter->permits_out--;
    limiter->bytes_out -= permit->bytes;
    *permit = (struct weir_permit){ 0 };
}

static void line_up_locked(struct weir_limiter *limiter, struct waiter *waiter)
    WI_REQUIRES(limiter->mu)
{
    wi_list_push_back(&limiter->waiters[waiter->rank], &waiter->link);
    limiter->mask |= 1u << waiter->rank;
    limiter->waiting++;
}

static void leave_line_locked(struct weir_limiter *limiter, struct waiter *waiter)
    WI_REQUIRES(limiter->mu)
{
    wi_list_remove(&waiter->link);
    if (wi_list_empty(&limiter->waiters[waiter->rank]))
        limiter->mask &= ~(1u << waiter->rank);
    limiter->waiting--;
}

/* One that comes new. */
static bool try_locked(struct weir_limiter *limiter, uint32_t rank, uint64_t bytes,
                       struct weir_permit *permit) WI_REQUIRES(limiter->mu)
{
    if (!fits(limiter, bytes))
        return false;
    if (limiter->mask != 0) {
        if ((limiter->mask >> rank & 1) != 0 ||
            wi_drr_pick(&limiter->drr, limiter->mask | 1u << rank) != (int)rank)
            return false;
        wi_drr_charge(&limiter->drr, rank, bytes);
    }
    give_locked(limiter, bytes, permit);
    return true;
}

/* There may be room: serve all who are next and fit. Jobs to post go to `posts`. */
static void serve_locked(struct weir_limiter *limiter, struct wi_list *posts)
    WI_REQUIRES(limiter->mu)
{
    int rank;

    while ((rank = wi_drr_pick(&limiter->drr, limiter->mask)) >= 0) {
        struct waiter *waiter =
            WI_CONTAINER_OF(limiter->waiters[rank].next, struct waiter, link);

        if (!fits(limiter, waiter->bytes))
            return;
        wi_drr_charge(&limiter->drr, (uint32_t)rank, waiter->bytes);
        leave_line_locked(limiter, waiter);
        give_locked(limiter, waiter->bytes, waiter->permit);
        limiter->waited++;
        waiter->granted = true;
        /* Signalled under the lock: once it is free the thread may be gone with its stack. */
        if (waiter->queue)
            wi_list_push_back(posts, &waiter->link);
        else
            wi_cond_signal(&WI_CONTAINER_OF(waiter, struct waiting_thread, waiter)->granted);
    }
}

/* Without the lock, for a job with a permit. If its queue refuses it that makes room again, and
 * whom that serves is added to `posts`. Returns what the queue says. */
static int post_one(struct waiter *waiter, struct wi_list *posts)
{
    struct weir_job *job = job_of_waiter(waiter);
    struct weir_queue *queue = waiter->queue;
    struct weir_permit *permit = waiter->permit;
    struct weir_limiter *limiter = permit->limiter;
    int rc;

    memset(job->private_tail, 0, sizeof(job->private_tail)); /* as it was prepared */
    rc = weir_queue_post(queue, job);
    if (rc < 0) {
        wi_mutex_lock(&limiter->mu);
        take_back_locked(limiter, permit);
        serve_locked(limiter, posts);
        wi_mutex_unlock(&limiter->mu);
    }
    return rc;
}

static void post_all(struct wi_list *posts)
{
    struct wi_list *node;

    while ((node = wi_list_pop_front(posts)) != NULL)
        (void)post_one(WI_CONTAINER_OF(node, struct waiter, link), posts);
}

/* ---- the calls --------------------------------------------------------------------------- */

static bool is_sound(const struct weir_limiter *limiter, uint32_t io_class,
                     const struct weir_permit *permit)
{
    return limiter && permit && !permit->limiter && io_class < WEIR_CLASSES;
}

int weir_limiter_try(struct weir_limiter *limiter, uint32_t io_class, uint64_t bytes,
                     struct weir_permit *permit)
{
    bool granted;

    if (!is_sound(limiter, io_class, permit))
        return -EINVAL;
    wi_mutex_lock(&limiter->mu);
    granted = try_locked(limiter, wi_drr_rank(io_class), bytes, permit);
    wi_mutex_unlock(&limiter->mu);
    return granted ? 0 : -EAGAIN;
}

static uint64_t now_ns(void)
{
    struct timespec time = { 0 };

    (void)clock_gettime(CLOCK_MONOTONIC, &time); /* as the waits in lock.c */
    return (uint64_t)time.tv_sec * WI_SEC_NS + (uint64_t)time.tv_nsec;
}

/* The grant decides, not the clock: who was granted in the last moment has it. */
static void wait_locked(struct weir_limiter *limiter, struct waiting_thread *thread,
                        uint64_t timeout_ns) WI_REQUIRES(limiter->mu)
{
    uint64_t start_ns = now_ns();
    uint64_t passed_ns = 0;

    while (!thread->waiter.granted) {
        if (timeout_ns == WEIR_FOREVER) {
            wi_cond_wait(&thread->granted, &limiter->mu);
            continue;
        }
        if (passed_ns >= timeout_ns)
            return;
        (void)wi_cond_wait_for(&thread->granted, &limiter->mu, timeout_ns - passed_ns);
        passed_ns = now_ns() - start_ns;
    }
}

int weir_limiter_acquire(struct weir_limiter *limiter, uint32_t io_class, uint64_t bytes,
                         uint64_t timeout_ns, struct weir_permit *permit)
{
    struct waiting_thread thread = { .waiter = { .bytes = bytes, .permit = permit } };
    struct wi_list posts;
    bool granted;

    if (!is_sound(limiter, io_class, permit))
        return -EINVAL;
    thread.waiter.rank = wi_drr_rank(io_class);
    wi_mutex_lock(&limiter->mu);
    if (try_locked(limiter, thread.waiter.rank, bytes, permit)) {
        wi_mutex_unlock(&limiter->mu);
        return 0;
    }
    wi_list_init(&posts);
    wi_cond_init(&thread.granted);
    line_up_locked(limiter, &thread.waiter);
    wait_locked(limiter, &thread, timeout_ns);
    granted = thread.waiter.granted;
    if (!granted) {
        leave_line_locked(limiter, &thread.waiter);
        serve_locked(limiter, &posts); /* it may have been what the others waited behind */
    }
    wi_mutex_unlock(&limiter->mu);
    wi_cond_fini(&thread.granted);
    post_all(&posts);
    return granted ? 0 : -ETIMEDOUT;
}

int weir_limiter_notify(struct weir_limiter *limiter, uint32_t io_class, uint64_t bytes,
                        struct weir_permit *permit, struct weir_queue *queue,
                        struct weir_job *job)
{
    struct waiter *waiter;
    struct wi_list posts;
    bool granted;
    int rc;

    if (!is_sound(limiter, io_class, permit) || !queue || !job)
        return -EINVAL;
    rc = wi_job_check_queued(queue->engine, job);
    if (rc < 0)
        return rc;
    waiter = (void *)job->private_tail;
    *waiter = (struct waiter){
        .bytes = bytes, .permit = permit, .queue = queue, .rank = wi_drr_rank(io_class)
    };
    wi_mutex_lock(&limiter->mu);
    granted = try_locked(limiter, waiter->rank, bytes, permit);
    if (!granted)
        line_up_locked(limiter, waiter);
    wi_mutex_unlock(&limiter->mu);
    if (!granted)
        return 0;
    wi_list_init(&posts);
    rc = post_one(waiter, &posts);
    post_all(&posts);
    return rc;
}

void weir_permit_release(struct weir_permit *permit)
{
    struct weir_limiter *limiter = permit ? permit->limiter : NULL;
    struct wi_list posts;

    if (!limiter)
        return;
    wi_list_init(&posts);
    wi_mutex_lock(&limiter->mu);
    take_back_locked(limiter, permit);
    serve_locked(limiter, &posts);
    wi_mutex_unlock(&limiter->mu);
    post_all(&posts);
}

int weir_limiter_info(struct weir_limiter *limiter, struct weir_limiter_info *info)
{
    struct weir_limiter_info full = { 0 };

    if (!limiter || !info || info->size < sizeof(info->size))
        return -EINVAL;
    full.size = info->size;
    wi_mutex_lock(&limiter->mu);
    full.bytes_out = limiter->bytes_out;
    full.permits_out = limiter->permits_out;
    full.bytes_peak = limiter->bytes_peak;
    full.waiting = limiter->waiting;
    full.granted = limiter->granted;
    full.waited = limiter->waited;
    wi_mutex_unlock(&limiter->mu);
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return 0;
}
