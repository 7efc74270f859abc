/* SPDX-License-Identifier: MIT */
/*
 * bench_load.c - the load of `weir bench`, and what is measured while it runs
 *
 * Shape      each of the plan's threads has a queue of its own and `depth` jobs, each with its
 *            buffer, or its view where the file is cached; a job submits itself again in
 *            `done`, and the thread waits for `wait_min` of them at a time. Three others:
 *              --api blocking   a loop around one call
 *              zipf, hit        a loop around weir_view_try(); what is missing is loaded by
 *                               one job, and waited for
 *              scatter          jobs in groups of a window; a group that is done is handed over
 *                               anew in one call, as a reader does that knows a list
 * Phases     warm-up (touches every buffer, fills rings and caches), measured, stop. The
 *            main thread sets the phase; at both ends of the measured part it takes a picture
 *            (bench_engine.c) of finished operations and all that was counted.
 *            The warm-up takes a fifth of the time; but that of zipf ends when ten times what
 *            the cache holds was loaded, and that of repeat when each thread has been through
 *            the list once.
 * Latency    from the moment `done` submits the job again (so the time it is staged and the
 *            rest of that turn's callbacks are in) to the moment its next `done` starts. One
 *            clock reading an operation: the end of one is the start of the next. Where an
 *            operation costs about a microsecond (cached, overhead) two readings would be
 *            seen in the result, so there every 17th operation of a thread is timed, and
 *            every 251st of zipf and hit, where it costs less than the readings.
 *            The peers in bench/peers time by the same rule.
 * Memory     never-touched memory is slow on virtual machines, so buffers come from the
 *            engine's pool, are touched before the warm-up and used again and again, and so is
 *            the cache. Nobody looks at the bytes that were read: fio does not either.
 * Failures   a failed operation is counted, and its job goes on; after MAX_ERRORS the run
 *            ends, for there is nothing to learn from measuring errors.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define MAX_ERRORS       100u
#define SAMPLE_EVERY     17u  /* odd: not always the same job of a batch */
#define TRY_SAMPLE_EVERY 251u /* of zipf and hit */
#define TRY_BATCH        64u  /* of these, looks at the phase */
#define CACHE_FILLS      10u  /* of zipf's warm-up */
#define CACHE_FILLS_TRY  200u /* requests, in caches full; then it is warm in any case */
#define CACHE_LINE       64

enum phase {
    PHASE_WARM_UP = 0,
    PHASE_MEASURED,
    PHASE_STOP
};

struct worker;

/* Jobs of scatter that are handed over together. */
struct group {
    uint32_t first; /* index of its slots */
    uint32_t count;
    uint32_t left;             /* of them, not done */
    struct weir_range *ranges; /* --many: one job for all of them */
};

/* One job with all that belongs to it. */
struct slot {
    struct weir_job job;
    struct worker *worker;
    struct group *group; /* NULL: alone */
    struct weir_view view;
    void *buf;         /* NULL if it is a view's job */
    uint64_t start_ns; /* 0: this operation is not timed */
    bool pooled;       /* its buffer is the engine's */
};

struct load {
    const struct bench_plan *plan;
    struct bench_base base;
    struct bench_tables tables;
    struct worker *workers;
    sem_t ready;      /* posted by each worker: set up, or failed */
    sem_t start;      /* posted for each worker, after `go` was decided */
    bool go;          /* guarded by `start`: all were set up */
    atomic_int phase; /* relaxed; set by the main thread, and by a worker that gives up */
};

struct worker {
    /* set before the thread starts */
    struct load *load;
    pthread_t thread;
    uint32_t index;

    /* this thread only, until it is joined */
    struct weir_queue *queue;
    struct slot *slots;
    uint32_t slot_count;
    struct group *groups;
    uint32_t group_count;
    struct weir_job **batch; /* room to hand over a group */
    struct bench_pattern pattern;
    uint64_t count;  /* operations done, whatever the phase */
    uint64_t live;   /* jobs that were taken and are not done */
    uint64_t hits;   /* zipf, hit */
    uint64_t judged; /* hits and misses */
    uint64_t loads;  /* blocks that were not there */
    uint64_t errors;
    int64_t first_error;
    uint64_t first_error_offset;
    int setup_error;
    bool measured; /* the phase as last seen */
    bool stopping;
    bool sampled;
    bool loaded; /* zipf, hit: the job is done */
    struct bench_histogram latency;

    /* atomic: relaxed, copies for the main thread */
    _Alignas(CACHE_LINE) atomic_uint_fast64_t published;
    atomic_uint_fast64_t published_hits;
    atomic_uint_fast64_t published_judged;
    atomic_bool warm;
};

/* --- one operation is done --------------------------------------------------------------- */

static bool is_warm(const struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;
    uint64_t bytes = (uint64_t)plan->block_bytes * plan->threads;

    if (plan->kind == BENCH_REPEAT)
        return worker->pattern.lap > 0;
    if (plan->kind == BENCH_ZIPF)
        return worker->loads * bytes >= CACHE_FILLS * plan->cache_bytes ||
               worker->count * bytes >= CACHE_FILLS_TRY * plan->cache_bytes;
    return true;
}

static void note_phase(struct worker *worker)
{
    int phase = atomic_load_explicit(&worker->load->phase, memory_order_relaxed);

    worker->measured = phase == PHASE_MEASURED;
    worker->stopping = phase == PHASE_STOP;
    atomic_store_explicit(&worker->published, worker->count, memory_order_relaxed);
    if (!worker->measured && is_warm(worker))
        atomic_store_explicit(&worker->warm, true, memory_order_relaxed);
}

static void note_error(struct worker *worker, int64_t result, uint64_t offset)
{
    if (worker->errors++ == 0) {
        worker->first_error = result < 0 ? result : -WEIR_ETRUNCATED;
        worker->first_error_offset = offset;
    }
    if (worker->errors >= MAX_ERRORS) {
        worker->stopping = true;
        atomic_store_explicit(&worker->load->phase, PHASE_STOP, memory_order_relaxed);
    }
}

/* Returns how many were taken. What was not will not come back. */
static uint32_t submit_slots(struct worker *worker, struct weir_job *const *jobs, size_t count)
{
    int rc = weir_queue_submit(worker->queue, jobs, count);
    uint32_t taken = rc > 0 ? (uint32_t)rc : 0;

    worker->live += taken;
    if (taken < count)
        note_error(worker, rc < 0 ? rc : -EBUSY, jobs[taken]->offset);
    return taken;
}

static uint32_t submit_slot(struct slot *slot)
{
    struct weir_job *job = &slot->job;

    return submit_slots(slot->worker, &job, 1);
}

/* Hand over all jobs of a group, with new offsets. */
static void submit_group(struct worker *worker, struct group *group, uint64_t now_ns)
{
    struct slot *slots = &worker->slots[group->first];

    if (group->ranges != NULL) {
        for (uint32_t i = 0; i < group->count; i++)
            group->ranges[i].offset = bench_pattern_next(&worker->pattern);
        slots->start_ns = now_ns;
        group->left = submit_slot(slots);
        return;
    }
    for (uint32_t i = 0; i < group->count; i++) {
        slots[i].job.offset = bench_pattern_next(&worker->pattern);
        slots[i].start_ns = now_ns;
        worker->batch[i] = &slots[i].job;
    }
    group->left = submit_slots(worker, worker->batch, group->count);
}

/* What came of a job: counts it, and gives back its view. */
static void judge(struct slot *slot)
{
    struct worker *worker = slot->worker;
    struct weir_job *job = &slot->job;
    uint64_t bytes = worker->load->plan->block_bytes;
    bool good;

    if (job->op == WEIR_OP_VIEW) {
        good = job->result >= 0 && slot->view.len == bytes;
        if (job->result >= 0)
            weir_view_release(&slot->view);
        worker->count++;
    } else if (job->op == WEIR_OP_READ_MANY) {
        good = job->result == (int64_t)(bytes * slot->group->count);
        worker->count += slot->group->count;
    } else {
        good = job->result == (int64_t)bytes;
        worker->count++;
    }
    if (!good)
        note_error(worker, job->result, job->offset);
}

/* Count, time, and submit it again. */
static void on_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct worker *worker = slot->worker;
    struct group *group = slot->group;
    uint64_t now_ns = 0;

    worker->live--;
    judge(slot);
    if (slot->start_ns != 0) {
        now_ns = bench_now_ns();
        if (worker->measured)
            bench_histogram_add(&worker->latency, now_ns - slot->start_ns);
        slot->start_ns = 0;
    }
    if (group != NULL && --group->left > 0)
        return;
    if (worker->stopping)
        return;
    if (group != NULL) {
        submit_group(worker, group, now_ns);
        return;
    }
    job->offset = bench_pattern_next(&worker->pattern);
    if (!worker->sampled)
        slot->start_ns = now_ns;
    else if (worker->count % SAMPLE_EVERY == 0)
        slot->start_ns = now_ns != 0 ? now_ns : bench_now_ns();
    (void)submit_slot(slot);
}

/* --- the three loops --------------------------------------------------------------------- */

static void run_jobs(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;

    note_phase(worker);
    for (uint32_t i = 0; i < worker->group_count; i++)
        submit_group(worker, &worker->groups[i], bench_now_ns());
    for (uint32_t i = 0; i < worker->slot_count && worker->group_count == 0; i++) {
        struct slot *slot = &worker->slots[i];

        slot->job.offset = bench_pattern_next(&worker->pattern);
        slot->start_ns = bench_now_ns();
        (void)submit_slot(slot);
    }
    while (worker->live > 0) {
        /* Fewer may be left than we like to wait for; the call knows. */
        int rc = weir_queue_wait(worker->queue, plan->wait_min, WEIR_FOREVER);

        if (rc < 0 && rc != -EINTR) {
            note_error(worker, rc, 0);
            break;
        }
        note_phase(worker);
    }
}

/* One blocking call. */
static int64_t call_once(struct worker *worker, uint64_t offset)
{
    const struct bench_plan *plan = worker->load->plan;
    struct weir_file *file = worker->load->base.file;
    struct weir_view view;
    int64_t result;

    if (bench_writes(plan->kind))
        return weir_file_write(file, worker->slots[0].buf, plan->block_bytes, offset);
    if (!bench_views(plan))
        return weir_file_read(file, worker->slots[0].buf, plan->block_bytes, offset);
    result = weir_view_get(file, offset, plan->block_bytes, &view, NULL);
    if (result == 0) {
        result = (int64_t)view.len;
        weir_view_release(&view);
    }
    return result;
}

static void run_calls(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;
    uint64_t start_ns = bench_now_ns();

    for (note_phase(worker); !worker->stopping; note_phase(worker)) {
        uint64_t offset = bench_pattern_next(&worker->pattern);
        bool timed = !worker->sampled || worker->count % SAMPLE_EVERY == 0;
        int64_t result;

        if (timed && worker->sampled)
            start_ns = bench_now_ns();
        result = call_once(worker, offset);
        worker->count++;
        if (result != (int64_t)plan->block_bytes)
            note_error(worker, result, offset);
        if (timed) {
            uint64_t now_ns = bench_now_ns();

            if (worker->measured)
                bench_histogram_add(&worker->latency, now_ns - start_ns);
            start_ns = now_ns;
        }
    }
}

static void on_loaded(struct weir_job *job)
{
    struct slot *slot = job->arg;

    slot->worker->live--;
    slot->worker->loaded = true;
}

/* View it through the queue, and wait for that. */
static void load_block(struct worker *worker, uint64_t offset)
{
    struct slot *slot = &worker->slots[0];

    worker->loads++;
    slot->job.offset = offset;
    worker->loaded = false;
    if (submit_slot(slot) != 1)
        return;
    while (!worker->loaded) {
        int rc = weir_queue_wait(worker->queue, 1, WEIR_FOREVER);

        if (rc < 0 && rc != -EINTR) {
            note_error(worker, rc, offset);
            return;
        }
    }
    if (slot->job.result < 0)
        note_error(worker, slot->job.result, offset);
    else
        weir_view_release(&slot->view);
}

static void try_once(struct worker *worker)
{
    uint64_t offset = bench_pattern_next(&worker->pattern);
    struct weir_view view;
    int rc;

    if (worker->pattern.beside) { /* the scan's, which is not judged */
        load_block(worker, offset);
        return;
    }
    rc = weir_view_try(worker->load->base.file, offset, worker->load->plan->block_bytes, &view);
    worker->judged++;
    if (rc == 0) {
        worker->hits++;
        weir_view_release(&view);
    } else if (rc == -EAGAIN) {
        load_block(worker, offset);
    } else {
        note_error(worker, rc, offset);
    }
}

static void run_tries(struct worker *worker)
{
    while (!worker->stopping) {
        if (worker->count % TRY_BATCH == 0) {
            note_phase(worker);
            atomic_store_explicit(&worker->published_hits, worker->hits, memory_order_relaxed);
            atomic_store_explicit(&worker->published_judged, worker->judged,
                                  memory_order_relaxed);
        }
        if (worker->count % TRY_SAMPLE_EVERY != 0) {
            try_once(worker);
        } else {
            uint64_t start_ns = bench_now_ns();

            try_once(worker);
            if (worker->measured)
                bench_histogram_add(&worker->latency, bench_now_ns() - start_ns);
        }
        worker->count++;
    }
}

/* --- a worker's life --------------------------------------------------------------------- */

static int make_groups(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;
    uint32_t size = plan->depth < BENCH_SCATTER_WINDOW ? plan->depth : BENCH_SCATTER_WINDOW;
    uint32_t count = plan->depth / size;

    worker->groups = calloc(count, sizeof(*worker->groups));
    worker->batch = calloc(size, sizeof(*worker->batch));
    if (worker->groups == NULL || worker->batch == NULL)
        return -ENOMEM;
    worker->group_count = count;
    worker->slot_count = count * size;
    for (uint32_t i = 0; i < count; i++) {
        worker->groups[i].first = i * size;
        worker->groups[i].count = size;
    }
    return 0;
}

static int setup_slot(struct worker *worker, struct slot *slot)
{
    const struct load *load = worker->load;
    const struct bench_plan *plan = load->plan;
    uint32_t op = bench_writes(plan->kind) ? WEIR_OP_WRITE : WEIR_OP_READ;

    slot->worker = worker;
    if (bench_views(plan)) {
        op = WEIR_OP_VIEW;
    } else {
        slot->buf = bench_base_buffer(&load->base, plan->block_bytes, &worker->pattern.random,
                                      &slot->pooled);
        if (slot->buf == NULL)
            return -ENOMEM;
    }
    weir_job_prepare(&slot->job, op, load->base.file,
                     bench_tries(plan->kind) ? on_loaded : on_done, slot);
    slot->job.buf = slot->buf != NULL ? slot->buf : &slot->view;
    slot->job.len = plan->block_bytes;
    return 0;
}

/* The slots of scatter's groups; with --many the first slot of each has the job. */
static int setup_groups(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;

    for (uint32_t i = 0; i < worker->group_count; i++) {
        struct group *group = &worker->groups[i];
        struct slot *slots = &worker->slots[group->first];

        for (uint32_t at = 0; at < group->count; at++)
            slots[at].group = group;
        if (!plan->many)
            continue;
        group->ranges = calloc(BENCH_SCATTER_WINDOW, sizeof(*group->ranges));
        if (group->ranges == NULL)
            return -ENOMEM;
        for (uint32_t at = 0; at < group->count; at++) {
            group->ranges[at].buf = slots[at].buf;
            group->ranges[at].len = plan->block_bytes;
        }
        weir_job_prepare(&slots->job, WEIR_OP_READ_MANY, worker->load->base.file, on_done,
                         slots);
        slots->job.buf = group->ranges;
        slots->job.len = group->count;
    }
    return 0;
}

static int setup_worker(struct worker *worker)
{
    struct load *load = worker->load;
    const struct bench_plan *plan = load->plan;
    int rc = 0;

    bench_pattern_init(&worker->pattern, plan, &load->tables, worker->index);
    worker->slot_count = plan->blocking ? 1 : plan->depth;
    if (plan->kind == BENCH_SCATTER && !plan->blocking)
        rc = make_groups(worker);
    if (rc != 0)
        return rc;
    worker->slots = calloc(worker->slot_count, sizeof(*worker->slots));
    if (worker->slots == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < worker->slot_count; i++) {
        rc = setup_slot(worker, &worker->slots[i]);
        if (rc != 0)
            return rc;
    }
    rc = setup_groups(worker);
    if (rc != 0 || plan->blocking)
        return rc;
    rc = bench_base_queue(&load->base, plan->depth, &worker->queue);
    return rc < 0 ? rc : 0;
}

static void teardown_worker(struct worker *worker)
{
    /* Jobs and buffers are the kernel's until this has succeeded. */
    while (worker->queue != NULL) {
        int rc = weir_queue_close(worker->queue, UINT64_C(1000000000));

        if (rc != -EBUSY)
            worker->queue = NULL;
    }
    for (uint32_t i = 0; i < worker->slot_count && worker->slots != NULL; i++)
        if (worker->slots[i].buf != NULL)
            bench_base_give(&worker->load->base, worker->slots[i].buf, worker->slots[i].pooled);
    for (uint32_t i = 0; i < worker->group_count; i++)
        free(worker->groups[i].ranges);
    free(worker->groups);
    free(worker->batch);
    free(worker->slots);
    worker->slots = NULL;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct load *load = worker->load;

    worker->setup_error = setup_worker(worker);
    sem_post(&load->ready);
    while (sem_wait(&load->start) != 0)
        ; /* signals are blocked here, but a debugger may interrupt */
    if (load->go) {
        if (bench_tries(load->plan->kind))
            run_tries(worker);
        else if (load->plan->blocking)
            run_calls(worker);
        else
            run_jobs(worker);
    }
    teardown_worker(worker);
    return NULL;
}

/* --- the main thread --------------------------------------------------------------------- */

static void take_picture(struct load *load, struct bench_picture *picture)
{
    memset(picture, 0, sizeof(*picture));
    bench_picture_take(&load->base, picture);
    for (uint32_t i = 0; i < load->plan->threads; i++) {
        struct worker *worker = &load->workers[i];

        picture->ops += atomic_load_explicit(&worker->published, memory_order_relaxed);
        picture->hits += atomic_load_explicit(&worker->published_hits, memory_order_relaxed);
        picture->judged +=
            atomic_load_explicit(&worker->published_judged, memory_order_relaxed);
    }
}

void bench_sleep(double seconds, bool (*ended)(void *arg), void *arg)
{
    uint64_t end_ns = bench_now_ns() + (uint64_t)(seconds * 1e9);

    for (;;) {
        uint64_t now_ns = bench_now_ns();
        uint64_t left_ns = end_ns > now_ns ? end_ns - now_ns : 0;
        struct timespec nap = { .tv_nsec = left_ns < 100000000 ? (long)left_ns : 100000000 };

        if (left_ns == 0 || bench_interrupted || ended(arg))
            return;
        (void)nanosleep(&nap, NULL);
    }
}

/* A worker gave up. */
static bool has_ended(void *arg)
{
    struct load *load = arg;

    return atomic_load_explicit(&load->phase, memory_order_relaxed) == PHASE_STOP;
}

static bool are_warm(struct load *load)
{
    for (uint32_t i = 0; i < load->plan->threads; i++)
        if (!atomic_load_explicit(&load->workers[i].warm, memory_order_relaxed))
            return false;
    return true;
}

static void measure(struct load *load, struct bench_result *result)
{
    const struct bench_plan *plan = load->plan;
    struct bench_picture before;
    struct bench_picture after;
    int expected = PHASE_WARM_UP;
    uint64_t allocs;

    bench_sleep(plan->seconds * 0.2 < 0.5 ? plan->seconds * 0.2 : 0.5, has_ended, load);
    while (!are_warm(load) && !bench_interrupted && !has_ended(load))
        bench_sleep(0.002, has_ended, load);
    take_picture(load, &before);
    /* A worker may have given up meanwhile: that stands. */
    (void)atomic_compare_exchange_strong(&load->phase, &expected, PHASE_MEASURED);
    bench_alloc_start();
    bench_sleep(plan->seconds, has_ended, load);
    allocs = bench_alloc_stop();
    take_picture(load, &after);
    atomic_store_explicit(&load->phase, PHASE_STOP, memory_order_relaxed);

    result->interrupted = bench_interrupted != 0;
    bench_picture_compare(&before, &after, allocs, plan, result);
}

static int start_workers(struct load *load, uint32_t *ret_started)
{
    sigset_t all;
    sigset_t old;
    int rc = 0;

    /* Signals are the main thread's: a worker's wait must not end early. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 0; i < load->plan->threads && rc == 0; i++) {
        struct worker *worker = &load->workers[i];

        worker->load = load;
        worker->index = i;
        worker->sampled =
            load->plan->kind == BENCH_CACHED || load->plan->kind == BENCH_OVERHEAD;
        rc = -pthread_create(&worker->thread, NULL, worker_main, worker);
        if (rc == 0)
            (*ret_started)++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

static int run_workers(struct load *load, struct bench_result *result)
{
    uint32_t threads = load->plan->threads;
    uint32_t started = 0;
    int rc;

    load->workers = aligned_alloc(CACHE_LINE, threads * sizeof(*load->workers));
    if (load->workers == NULL)
        return -ENOMEM;
    memset(load->workers, 0, threads * sizeof(*load->workers));
    sem_init(&load->ready, 0, 0);
    sem_init(&load->start, 0, 0);
    rc = start_workers(load, &started);
    for (uint32_t i = 0; i < started; i++)
        while (sem_wait(&load->ready) != 0)
            ; /* SIGINT; measure() ends early then */
    for (uint32_t i = 0; i < started && rc == 0; i++)
        rc = load->workers[i].setup_error;
    load->go = rc == 0;
    for (uint32_t i = 0; i < started; i++)
        sem_post(&load->start);
    if (rc == 0)
        measure(load, result);
    for (uint32_t i = 0; i < started; i++) {
        struct worker *worker = &load->workers[i];

        pthread_join(worker->thread, NULL);
        bench_histogram_merge(&result->latency, &worker->latency);
        if (result->errors == 0 && worker->errors > 0) {
            result->first_error = worker->first_error;
            result->first_error_offset = worker->first_error_offset;
        }
        result->errors += worker->errors;
    }
    sem_destroy(&load->ready);
    sem_destroy(&load->start);
    free(load->workers);
    if (rc != 0)
        bench_say("can't set up %u threads with %u operations of %u bytes each: %s\n", threads,
                  load->plan->depth, load->plan->block_bytes, weir_code_text(rc));
    return rc;
}

/* What must be in the cache before the load starts. */
static int fill_cache(const struct load *load)
{
    const struct bench_plan *plan = load->plan;
    uint64_t size = plan->size_bytes;

    if (plan->cache_bytes == 0 || plan->kind == BENCH_ZIPF || plan->kind == BENCH_REPEAT)
        return 0;
    if (plan->kind == BENCH_HIT)
        return bench_base_fill(&load->base, 0, load->tables.hot * plan->block_bytes);
    if (size <= plan->cache_bytes)
        return bench_base_fill(&load->base, 0, size);
    if (plan->kind == BENCH_BACKWARD)
        return bench_base_fill(&load->base, 0, plan->cache_bytes);
    return bench_base_fill(&load->base, size - plan->cache_bytes, plan->cache_bytes);
}

int bench_load_run(const struct bench_plan *plan, struct bench_result *result)
{
    struct load load = { .plan = plan };
    int rc = bench_base_open(&load.base, plan, result);

    if (rc == 0)
        rc = bench_tables_init(&load.tables, plan);
    if (rc == 0)
        rc = fill_cache(&load);
    if (rc == 0)
        rc = run_workers(&load, result);
    bench_tables_fini(&load.tables);
    bench_base_close(&load.base);
    return rc != 0 ? 1 : 0;
}
