/* SPDX-License-Identifier: MIT */
/*
 * pool.c - lanes of threads
 *
 * Problem      hand work that blocks to other threads for as little as possible. What costs
 *              is not the queue (tens of nanoseconds) but waking a thread (microseconds, on
 *              both sides) and putting it to sleep again.
 * Idea         wake few, and keep them busy: a thread that ends a task takes the next one
 *              without sleeping; at most one thread a lane is on its way from sleep to work
 *              at any time, and it is that thread which wakes the next one if there is work
 *              left when it arrives. A burst of 32 tasks thus costs its submitter one
 *              wake-up; and when the work is short, the threads that are up do all of it.
 * Structures   a lane: one list of tasks, a stack of sleeping workers, one lock. Each worker
 *              sleeps on a futex word of its own, so waking picks exactly one, the one that
 *              slept shortest.
 * Not here     priorities, cancelling, results: the engine's. Stealing was tried and measured
 *              (docs/decisions/0001-pool-shares-one-queue.md).
 *
 * The states of a worker, and who moves it:
 *
 *   UNBORN   -> STARTING  pick_helper (a thread is to be created)    helper_coming is set
 *   STARTING -> UNBORN    start_worker, if there can be no thread    helper_coming is cleared
 *   STARTING -> BUSY      worker_main
 *   BUSY     -> ASLEEP    worker_main, when there is no task; onto the stack
 *   ASLEEP   -> WOKEN     pick_helper, from the stack; or stop_lane  helper_coming is set
 *   WOKEN    -> BUSY      worker_main                                helper_coming is cleared
 *   BUSY     -> GONE      worker_main, when there is no task and the lane stops
 *
 *   L1  helper_coming is true exactly while one worker is STARTING, or WOKEN by pick_helper.
 *   L2  With a task in the list, a worker ASLEEP (or UNBORN, if threads can be created) and
 *       no helper coming, some thread is between taking the lock and pick_helper. So no task
 *       waits while a worker that could take it sleeps.
 *   L3  `alive` counts workers from STARTING to BUSY; it never shrinks but by a failed start
 *       and at the end.
 */
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "lock.h"
#include "pool.h"

/* The io lane runs our own short functions; with default stacks, transparent huge pages can
 * make each of its many threads cost megabytes. The other lanes run what callers bring. */
#define IO_STACK_SIZE ((size_t)256 * 1024)

/* After a thread could not be created, so many submits pass before we try again: a try costs
 * more than most tasks. */
#define START_PAUSE 64u

struct lane;

struct worker {
    /* Set at creation. */
    struct lane *lane;

    /* Guarded by lane->mu. */
    struct worker *next_asleep;
    pthread_t thread;
    bool has_thread; /* to be joined, and asked for its time */

    /* Atomic: 1 asks it to get up. Release by the waker pairs with acquire by the worker. */
    _Atomic uint32_t wake;
} __attribute__((aligned(WI_CACHE_LINE)));

struct lane {
    /* Set at creation. */
    struct wi_pool *pool;
    const char *name;
    uint32_t limit;
    size_t stack_size; /* 0 for the default */
    struct worker *workers;

    struct wi_mutex mu;
    struct wi_cond ended; /* the last worker has gone */

    /* Guarded by mu. */
    struct wi_task *first;
    struct wi_task *last;
    struct worker *asleep; /* the one that fell asleep last is first */
    uint32_t alive;
    uint32_t start_pause; /* submits to let pass before threads are created again */
    bool helper_coming;   /* L1 */
    bool stopping;
    uint64_t tasks;
    uint64_t wakes;
    uint64_t alive_peak;
} __attribute__((aligned(WI_CACHE_LINE)));

struct wi_pool {
    struct lane lanes[WI_LANES];

    /* Set at creation. */
    uint32_t *pin_cpus;
    size_t pin_cpus_count;

    _Atomic uint32_t next_pin; /* relaxed: only to count */
};

/* The pool that this thread works for. */
static _Thread_local struct wi_pool *own_pool;

/* The lanes whose tasks this thread runs in place of workers, innermost first (run_here). */
struct stand_in {
    struct lane *lane;
    struct stand_in *outer;
};
static _Thread_local struct stand_in *standing_in;

/* --- sleeping and waking ------------------------------------------------------------------ */

static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
    /* Every way in which it can fail (EAGAIN, EINTR) means: look at the word again. */
    syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void wake_worker(struct worker *worker)
{
    atomic_store_explicit(&worker->wake, 1, memory_order_release);
    futex(&worker->wake, FUTEX_WAKE_PRIVATE, 1);
}

static void sleep_until_woken(struct worker *worker)
{
    while (atomic_load_explicit(&worker->wake, memory_order_acquire) == 0)
        futex(&worker->wake, FUTEX_WAIT_PRIVATE, 0);
    atomic_store_explicit(&worker->wake, 0, memory_order_relaxed);
}

/* --- the list ----------------------------------------------------------------------------- */

static void push_locked(struct lane *lane, struct wi_task *first, struct wi_task *last)
    WI_REQUIRES(lane->mu)
{
    last->next = NULL;
    if (lane->first)
        lane->last->next = first;
    else
        lane->first = first;
    lane->last = last;
}

static struct wi_task *pop_locked(struct lane *lane) WI_REQUIRES(lane->mu)
{
    struct wi_task *task = lane->first;

    if (task) {
        lane->first = task->next;
        lane->tasks++;
    }
    return task;
}

/* --- helpers ------------------------------------------------------------------------------ */

/*
 * Who should come to help, if anybody: work is left, nobody is on the way, and a worker
 * sleeps or can be started. The caller wakes or starts it (send_helper) after it has let go
 * of the lock, so that the helper does not run into it.
 */
static struct worker *pick_helper_locked(struct lane *lane) WI_REQUIRES(lane->mu)
{
    struct worker *worker;

    if (!lane->first || lane->helper_coming)
        return NULL;
    worker = lane->asleep;
    if (worker) {
        lane->asleep = worker->next_asleep;
        lane->wakes++;
    } else if (lane->alive < lane->limit && lane->start_pause == 0 && !lane->stopping) {
        worker = &lane->workers[lane->alive++];
        lane->alive_peak = wi_max_u64(lane->alive_peak, lane->alive);
    } else {
        return NULL;
    }
    lane->helper_coming = true;
    return worker;
}

static void *worker_main(void *arg);

/* Returns 0 or an error number. */
static int create_thread(struct worker *worker)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all;
    sigset_t before;
    int rc = pthread_attr_init(&attr);

    if (rc != 0)
        return rc;
    if (worker->lane->stack_size > 0)
        rc = pthread_attr_setstacksize(&attr, worker->lane->stack_size);

    /* Signals are for the program's own threads; the new one inherits the mask. */
    sigfillset(&all);
    if (rc == 0)
        rc = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (rc == 0) {
        rc = pthread_create(&thread, &attr, worker_main, worker);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attr);
    return rc;
}

/* Run what is in the list on this thread: the lane has no threads, and can have none now. */
static void run_here(struct lane *lane)
{
    struct stand_in here = { .lane = lane, .outer = standing_in };
    struct wi_task *task;

    /* A task of this lane, run by a loop below us, submitted to it: that loop goes on with
     * what was submitted. Running it here could nest without end. */
    for (const struct stand_in *outer = standing_in; outer; outer = outer->outer)
        if (outer->lane == lane)
            return;
    standing_in = &here;
    do {
        wi_mutex_lock(&lane->mu);
        task = lane->alive == 0 ? pop_locked(lane) : NULL;
        wi_mutex_unlock(&lane->mu);
        if (task)
            task->run(task);
    } while (task);
    standing_in = here.outer;
}

static void start_worker(struct worker *worker)
{
    struct lane *lane = worker->lane;
    struct worker *helper;
    bool nobody;

    if (create_thread(worker) == 0)
        return;
    wi_mutex_lock(&lane->mu);
    lane->helper_coming = false;
    lane->start_pause = START_PAUSE;
    nobody = --lane->alive == 0;
    if (nobody)
        wi_cond_signal(&lane->ended);
    /* One may have gone to sleep meanwhile, and whoever submitted counted on this thread. With
     * the pause set it is not tried again at once. */
    helper = pick_helper_locked(lane);
    wi_mutex_unlock(&lane->mu);

    if (helper)
        wake_worker(helper);
    /* With other threads alive the work is theirs. */
    if (nobody)
        run_here(lane);
}

/* `worker` is what pick_helper_locked returned; nobody but us touches it now. */
static void send_helper(struct worker *worker)
{
    if (worker->has_thread)
        wake_worker(worker);
    else
        start_worker(worker);
}

/* --- workers ------------------------------------------------------------------------------ */

/* A processor that this thread may not use, or that is not there, is passed over in silence:
 * the pool works without. */
static void pin_own_thread(struct wi_pool *pool)
{
    uint32_t turn = atomic_fetch_add_explicit(&pool->next_pin, 1, memory_order_relaxed);
    uint32_t cpu = pool->pin_cpus[turn % pool->pin_cpus_count];
    size_t size = CPU_ALLOC_SIZE((size_t)cpu + 1);
    cpu_set_t *set = CPU_ALLOC((size_t)cpu + 1);

    if (!set)
        return;
    CPU_ZERO_S(size, set);
    CPU_SET_S(cpu, size, set);
    sched_setaffinity(0, size, set);
    CPU_FREE(set);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct lane *lane = worker->lane;
    struct worker *helper;
    struct wi_task *task;

    own_pool = lane->pool;
    pthread_setname_np(pthread_self(), lane->name);
    if (lane->pool->pin_cpus_count > 0)
        pin_own_thread(lane->pool);

    wi_mutex_lock(&lane->mu);
    worker->thread = pthread_self();
    worker->has_thread = true;
    lane->helper_coming = false;
    for (;;) {
        task = pop_locked(lane);
        if (task) {
            helper = pick_helper_locked(lane);
            wi_mutex_unlock(&lane->mu);
            if (helper)
                send_helper(helper);
            task->run(task);
            wi_mutex_lock(&lane->mu);
            continue;
        }
        if (lane->stopping)
            break;
        worker->next_asleep = lane->asleep;
        lane->asleep = worker;
        wi_mutex_unlock(&lane->mu);
        sleep_until_woken(worker);
        wi_mutex_lock(&lane->mu);
        lane->helper_coming = false;
    }
    if (--lane->alive == 0)
        wi_cond_signal(&lane->ended);
    wi_mutex_unlock(&lane->mu);
    return NULL;
}

/* --- the pool ----------------------------------------------------------------------------- */

void wi_pool_submit(struct wi_pool *pool, enum wi_lane index, struct wi_task *first,
                    struct wi_task *last, uint32_t count)
{
    struct lane *lane = &pool->lanes[index];
    struct worker *helper;
    bool nobody;

    if (count == 0)
        return;
    wi_mutex_lock(&lane->mu);
    push_locked(lane, first, last);
    if (lane->start_pause > 0)
        lane->start_pause--;
    helper = pick_helper_locked(lane);
    nobody = lane->alive == 0;
    wi_mutex_unlock(&lane->mu);

    if (helper)
        send_helper(helper);
    else if (nobody)
        run_here(lane);
}

static int init_lane(struct wi_pool *pool, enum wi_lane index, uint32_t limit)
{
    static const char *const names[WI_LANES] = { "weir-io", "weir-files", "weir-cpu" };
    struct lane *lane = &pool->lanes[index];

    WEIR_DCHECK(limit > 0);
    lane->workers = aligned_alloc(WI_CACHE_LINE, limit * sizeof(*lane->workers));
    if (!lane->workers)
        return -ENOMEM;
    memset(lane->workers, 0, limit * sizeof(*lane->workers));
    for (uint32_t i = 0; i < limit; i++)
        lane->workers[i].lane = lane;
    lane->pool = pool;
    lane->name = names[index];
    lane->limit = limit;
    lane->stack_size = index == WI_LANE_IO ? IO_STACK_SIZE : 0;
    wi_mutex_init(&lane->mu, WI_RANK_LANE);
    wi_cond_init(&lane->ended);
    return 0;
}

/* Also what init_lane left half done, or never began. */
static void fini_lane(struct lane *lane)
{
    if (!lane->workers)
        return;
    wi_cond_fini(&lane->ended);
    wi_mutex_fini(&lane->mu);
    free(lane->workers);
}

static void free_pool(struct wi_pool *pool)
{
    for (int i = 0; i < WI_LANES; i++)
        fini_lane(&pool->lanes[i]);
    free(pool->pin_cpus);
    free(pool);
}

int wi_pool_create(const struct wi_pool_options *options, struct wi_pool **ret_pool)
{
    struct wi_pool *pool = aligned_alloc(WI_CACHE_LINE, sizeof(*pool));
    size_t pins = options->pin_cpus_count;
    int rc = 0;

    if (!pool)
        return -ENOMEM;
    memset(pool, 0, sizeof(*pool));
    for (int i = 0; i < WI_LANES && rc == 0; i++)
        rc = init_lane(pool, (enum wi_lane)i, options->threads[i]);
    if (rc == 0 && pins > 0) {
        pool->pin_cpus = calloc(pins, sizeof(*pool->pin_cpus));
        if (!pool->pin_cpus)
            rc = -ENOMEM;
        else
            memcpy(pool->pin_cpus, options->pin_cpus, pins * sizeof(*pool->pin_cpus));
        pool->pin_cpus_count = pins;
    }
    if (rc != 0) {
        free_pool(pool);
        return rc;
    }
    *ret_pool = pool;
    return 0;
}

/* From here on the lane starts no threads; those it has run what is queued and go. Nobody
 * sleeps, so who is on the way (L1) no longer matters. */
static void stop_lane(struct lane *lane)
{
    struct worker *worker;

    wi_mutex_lock(&lane->mu);
    lane->stopping = true;
    worker = lane->asleep;
    lane->asleep = NULL;
    wi_mutex_unlock(&lane->mu);

    while (worker) {
        struct worker *next = worker->next_asleep; /* before it may reuse the field */

        wake_worker(worker);
        worker = next;
    }
}

static void join_lane(struct lane *lane)
{
    wi_mutex_lock(&lane->mu);
    while (lane->alive > 0)
        wi_cond_wait(&lane->ended, &lane->mu);
    wi_mutex_unlock(&lane->mu);
    for (uint32_t i = 0; i < lane->limit; i++)
        if (lane->workers[i].has_thread)
            pthread_join(lane->workers[i].thread, NULL);
}

void wi_pool_destroy(struct wi_pool *pool)
{
    if (!pool)
        return;
    WEIR_ASSERT(!wi_pool_is_worker(pool));

    /* A task may still submit to a lane whose threads have gone; it then runs that itself
     * (wi_pool_submit sees nobody alive), so joining the lanes in turn leaves nothing. */
    for (int i = 0; i < WI_LANES; i++)
        stop_lane(&pool->lanes[i]);
    for (int i = 0; i < WI_LANES; i++)
        join_lane(&pool->lanes[i]);
    free_pool(pool);
}

static uint64_t thread_cpu_ns(pthread_t thread)
{
    struct timespec used;
    clockid_t clock;

    if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return 0;
    return (uint64_t)used.tv_sec * WI_SEC_NS + (uint64_t)used.tv_nsec;
}

void wi_pool_stats(struct wi_pool *pool, struct wi_pool_stats *ret_stats)
{
    *ret_stats = (struct wi_pool_stats){ 0 };
    for (int i = 0; i < WI_LANES; i++) {
        struct lane *lane = &pool->lanes[i];

        wi_mutex_lock(&lane->mu);
        ret_stats->tasks[i] = lane->tasks;
        ret_stats->threads[i] = lane->alive;
        ret_stats->threads_peak[i] = lane->alive_peak;
        ret_stats->wakes[i] = lane->wakes;
        for (uint32_t w = 0; w < lane->limit; w++)
            if (lane->workers[w].has_thread)
                ret_stats->cpu_ns += thread_cpu_ns(lane->workers[w].thread);
        wi_mutex_unlock(&lane->mu);
    }
}

bool wi_pool_is_worker(struct wi_pool *pool)
{
    return own_pool == pool;
}
