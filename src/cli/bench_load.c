/* SPDX-License-Identifier: MIT */
/*
 * bench_load.c - the load of `weir bench`, and what is measured while it runs
 *
 * Shape      each of the plan's threads has a queue of its own and `depth` jobs, each with its
 *            buffer; a job submits itself again in `done`, and the thread waits for `wait_min`
 *            of them at a time. With the blocking interface a thread is a loop around one
 *            call.
 * Phases     warm-up (touches every buffer, fills rings and caches), measured, stop. The
 *            main thread sets the phase; at both ends of the measured part it takes, at one
 *            moment, the clock, the sum of finished operations, the processor time of the
 *            process, the engine's count of system calls and our count of allocations. All
 *            quotients come from these two pictures.
 * Latency    from the moment `done` submits the job again (so the time it is staged and the
 *            rest of that turn's callbacks are in) to the moment its next `done` starts. One
 *            clock reading an operation: the end of one is the start of the next. Where an
 *            operation costs about a microsecond (cached, overhead) two readings would be
 *            seen in the result, so there every 17th operation of a thread is timed.
 *            The peers in bench/peers time by the same rule.
 * Memory     never-touched memory is slow on virtual machines, so buffers come from the
 *            engine's pool, are touched before the warm-up and used again and again.
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
#include <sys/mman.h>
#include <unistd.h>

#include "bench_internal.h"

#define MAX_ERRORS   100u
#define SAMPLE_EVERY 17u /* odd: not always the same job of a batch */
#define CACHE_LINE   64

enum phase {
    PHASE_WARM_UP = 0,
    PHASE_MEASURED,
    PHASE_STOP
};

struct worker;

/* One job with all that belongs to it. */
struct slot {
    struct weir_job job;
    struct worker *worker;
    uint64_t random;
    uint64_t start_ns; /* 0: this operation is not timed */
    bool pooled;       /* its buffer is the engine's */
};

struct load {
    const struct bench_plan *plan;
    struct weir_engine *engine;
    struct weir_file *file;
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
    uint64_t first_block; /* sequential cases: the part of the file that is this thread's */
    uint64_t blocks;
    uint64_t seed_index;

    /* this thread only, until it is joined */
    struct weir_queue *queue;
    struct slot *slots;
    uint64_t next_block;
    uint64_t count; /* operations done, whatever the phase */
    uint64_t live;  /* jobs that are submitted */
    uint64_t errors;
    int64_t first_error;
    uint64_t first_error_offset;
    int setup_error;
    bool measured; /* the phase as last seen */
    bool stopping;
    bool sampled;
    struct bench_histogram latency;

    /* atomic: relaxed, a copy of `count` for the main thread */
    _Alignas(CACHE_LINE) atomic_uint_fast64_t published;
};

/* --- offsets --------------------------------------------------------------------------- */

static uint64_t next_offset(struct worker *worker, uint64_t *random)
{
    const struct bench_plan *plan = worker->load->plan;
    uint64_t block;

    if (bench_sequential(plan->kind)) {
        block = worker->first_block + worker->next_block;
        worker->next_block =
            worker->next_block + 1 < worker->blocks ? worker->next_block + 1 : 0;
    } else {
        block = bench_random_below(random, worker->blocks);
    }
    return block * plan->block_bytes;
}

/* --- one operation is done --------------------------------------------------------------- */

static void note_phase(struct worker *worker)
{
    int phase = atomic_load_explicit(&worker->load->phase, memory_order_relaxed);

    worker->measured = phase == PHASE_MEASURED;
    worker->stopping = phase == PHASE_STOP;
    atomic_store_explicit(&worker->published, worker->count, memory_order_relaxed);
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

static void submit_slot(struct slot *slot)
{
    struct worker *worker = slot->worker;
    struct weir_job *job = &slot->job;
    int rc = weir_queue_submit(worker->queue, &job, 1);

    if (rc != 1) {
        note_error(worker, rc < 0 ? rc : -EIO, job->offset);
        worker->live--;
    }
}

/* Count, time, and submit it again. */
static void on_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct worker *worker = slot->worker;
    uint64_t now_ns = 0;

    worker->count++;
    if (job->result != (int64_t)worker->load->plan->block_bytes)
        note_error(worker, job->result, job->offset);
    if (slot->start_ns != 0) {
        now_ns = bench_now_ns();
        if (worker->measured)
            bench_histogram_add(&worker->latency, now_ns - slot->start_ns);
        slot->start_ns = 0;
    }
    if (worker->stopping) {
        worker->live--;
        return;
    }
    job->offset = next_offset(worker, &slot->random);
    if (!worker->sampled)
        slot->start_ns = now_ns;
    else if (worker->count % SAMPLE_EVERY == 0)
        slot->start_ns = now_ns != 0 ? now_ns : bench_now_ns();
    submit_slot(slot);
}

/* --- the two loops ----------------------------------------------------------------------- */

static void run_jobs(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;

    note_phase(worker);
    worker->live = plan->depth;
    for (uint32_t i = 0; i < plan->depth; i++) {
        struct slot *slot = &worker->slots[i];

        slot->job.offset = next_offset(worker, &slot->random);
        slot->start_ns = bench_now_ns();
        submit_slot(slot);
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

static void run_calls(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;
    struct weir_file *file = worker->load->file;
    struct slot *slot = &worker->slots[0];
    bool writes = bench_writes(plan->kind);
    uint64_t start_ns = bench_now_ns();

    for (note_phase(worker); !worker->stopping; note_phase(worker)) {
        uint64_t offset = next_offset(worker, &slot->random);
        bool timed = !worker->sampled || worker->count % SAMPLE_EVERY == 0;
        int64_t result;

        if (timed && worker->sampled)
            start_ns = bench_now_ns();
        if (writes)
            result = weir_file_write(file, slot->job.buf, plan->block_bytes, offset);
        else
            result = weir_file_read(file, slot->job.buf, plan->block_bytes, offset);
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

/* --- a worker's life --------------------------------------------------------------------- */

static int setup_worker(struct worker *worker)
{
    struct load *load = worker->load;
    const struct bench_plan *plan = load->plan;
    struct weir_queue_options options = { .size = sizeof(options), .depth = plan->depth };
    uint32_t slots = plan->blocking ? 1 : plan->depth;
    int rc;

    worker->slots = calloc(slots, sizeof(*worker->slots));
    if (worker->slots == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < slots; i++) {
        struct slot *slot = &worker->slots[i];
        void *buf = weir_buffer_acquire(load->engine);

        slot->pooled = buf != NULL;
        if (buf == NULL)
            buf = aligned_alloc(4096, ((size_t)plan->block_bytes + 4095u) / 4096u * 4096u);
        if (buf == NULL)
            return -ENOMEM;
        slot->worker = worker;
        slot->random = bench_random_seed(worker->seed_index + i);
        for (size_t at = 0; at + sizeof(uint64_t) <= plan->block_bytes;
             at += sizeof(uint64_t)) {
            uint64_t word = bench_random(&slot->random) | 1u;

            memcpy((char *)buf + at, &word, sizeof(word));
        }
        if (bench_writes(plan->kind))
            weir_job_write(&slot->job, load->file, buf, plan->block_bytes, 0, on_done, slot);
        else
            weir_job_read(&slot->job, load->file, buf, plan->block_bytes, 0, on_done, slot);
    }
    if (plan->blocking)
        return 0;
    rc = weir_queue_open(load->engine, &options, &worker->queue);
    return rc < 0 ? rc : 0;
}

static void teardown_worker(struct worker *worker)
{
    const struct bench_plan *plan = worker->load->plan;
    uint32_t slots = plan->blocking ? 1 : plan->depth;

    /* Jobs and buffers are the kernel's until this has succeeded. */
    while (worker->queue != NULL) {
        int rc = weir_queue_close(worker->queue, UINT64_C(1000000000));

        if (rc != -EBUSY)
            worker->queue = NULL;
    }
    for (uint32_t i = 0; i < slots && worker->slots != NULL; i++) {
        struct slot *slot = &worker->slots[i];

        if (slot->pooled)
            weir_buffer_release(worker->load->engine, slot->job.buf);
        else
            free(slot->job.buf);
    }
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
        if (load->plan->blocking)
            run_calls(worker);
        else
            run_jobs(worker);
    }
    teardown_worker(worker);
    return NULL;
}

/* --- the main thread --------------------------------------------------------------------- */

/* What is read at both ends of the measured part. */
struct picture {
    uint64_t now_ns;
    uint64_t cpu_ns;
    uint64_t ops;
    uint64_t system_calls;
};

static void take_picture(struct load *load, struct picture *picture)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    (void)weir_engine_stats(load->engine, &stats);
    picture->system_calls = stats.system_calls;
    picture->ops = 0;
    for (uint32_t i = 0; i < load->plan->threads; i++)
        picture->ops += atomic_load_explicit(&load->workers[i].published, memory_order_relaxed);
    picture->cpu_ns = bench_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    picture->now_ns = bench_now_ns();
}

/* Sleep, but not past a signal or a worker that gave up. */
static void sleep_in_phase(struct load *load, double seconds)
{
    uint64_t end_ns = bench_now_ns() + (uint64_t)(seconds * 1e9);

    for (;;) {
        uint64_t now_ns = bench_now_ns();
        uint64_t left_ns = end_ns > now_ns ? end_ns - now_ns : 0;
        struct timespec nap = { .tv_nsec = left_ns < 100000000 ? (long)left_ns : 100000000 };

        if (left_ns == 0 || bench_interrupted ||
            atomic_load_explicit(&load->phase, memory_order_relaxed) == PHASE_STOP)
            return;
        (void)nanosleep(&nap, NULL);
    }
}

static void measure(struct load *load, struct bench_result *result)
{
    const struct bench_plan *plan = load->plan;
    struct picture before;
    struct picture after;
    int expected = PHASE_WARM_UP;
    uint64_t allocs;
    double ops;

    sleep_in_phase(load, plan->seconds * 0.2 < 0.5 ? plan->seconds * 0.2 : 0.5);
    take_picture(load, &before);
    /* A worker may have given up meanwhile: that stands. */
    (void)atomic_compare_exchange_strong(&load->phase, &expected, PHASE_MEASURED);
    bench_alloc_start();
    sleep_in_phase(load, plan->seconds);
    allocs = bench_alloc_stop();
    take_picture(load, &after);
    atomic_store_explicit(&load->phase, PHASE_STOP, memory_order_relaxed);

    result->interrupted = bench_interrupted != 0;
    result->ops = after.ops - before.ops;
    result->seconds = (double)(after.now_ns - before.now_ns) / 1e9;
    ops = result->ops > 0 ? (double)result->ops : 1.0;
    result->cpu_us_per_op = (double)(after.cpu_ns - before.cpu_ns) / 1000.0 / ops;
    result->syscalls_per_op = (double)(after.system_calls - before.system_calls) / ops;
    result->allocs_per_op = bench_alloc_available() ? (double)allocs / ops : -1.0;
}

static int start_workers(struct load *load, uint32_t *ret_started)
{
    uint64_t blocks = load->plan->size_bytes / load->plan->block_bytes;
    sigset_t all;
    sigset_t old;
    int rc = 0;

    /* Signals are the main thread's: a worker's wait must not end early. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 0; i < load->plan->threads && rc == 0; i++) {
        struct worker *worker = &load->workers[i];

        worker->load = load;
        worker->blocks = blocks;
        worker->seed_index = (uint64_t)i * 4096u;
        worker->sampled =
            load->plan->kind == BENCH_CACHED || load->plan->kind == BENCH_OVERHEAD;
        if (bench_sequential(load->plan->kind)) {
            worker->blocks = blocks / load->plan->threads;
            worker->first_block = i * worker->blocks;
        }
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

static int open_engine(const struct bench_plan *plan, struct load *load,
                       struct bench_result *result)
{
    uint64_t rounded = ((uint64_t)plan->block_bytes + 4095u) / 4096u * 4096u;
    uint64_t count = (uint64_t)plan->threads * (plan->blocking ? 1 : plan->depth);
    struct weir_engine_options options = { .size = sizeof(options), .backend = plan->backend };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_error error = { 0 };
    char text[600];
    int rc;

    /* A pool beyond 1 GiB is no pool any more; the buffers are then plain memory. */
    if (rounded * count <= (UINT64_C(1) << 30)) {
        options.buffer_size = (size_t)rounded;
        options.buffer_count = (uint32_t)count;
    }
    rc = weir_engine_open(&options, &load->engine, &error);
    if (rc != 0) {
        if (error.code != 0)
            weir_error_format(&error, text, sizeof(text));
        else
            snprintf(text, sizeof(text), "%s", weir_code_text(rc));
        bench_say("can't open an engine: %s\n", text);
        return rc;
    }
    (void)weir_engine_info(load->engine, &info);
    snprintf(result->backend_name, sizeof(result->backend_name), "%s", info.backend_name);
    snprintf(result->why, sizeof(result->why), "%s", info.why);
    result->ring_flags = info.ring_flags;
    result->io_threads = info.lane_threads[WEIR_LANE_IO];
    result->registered_buffers = info.registered_buffers != 0;
    return 0;
}

/* The null backend needs a file to speak of, but no bytes: one in memory will do. */
static int open_file(const struct bench_plan *plan, struct load *load, struct weir_error *error)
{
    uint32_t flags = bench_writes(plan->kind) ? WEIR_OPEN_WRITE : WEIR_OPEN_READ;
    int fd;
    int rc;

    if (plan->kind != BENCH_OVERHEAD)
        return weir_file_open(load->engine, NULL, plan->path,
                              flags | (plan->direct ? (uint32_t)WEIR_OPEN_DIRECT : 0), 0,
                              &load->file, error);
    fd = memfd_create("weir-bench", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)plan->size_bytes) != 0)
        rc = -errno;
    else
        rc = weir_file_adopt(load->engine, fd, "memory", &load->file, error);
    if (rc != 0)
        (void)close(fd);
    return rc;
}

static int check_alignment(const struct bench_plan *plan, struct load *load)
{
    struct weir_file_info info = { .size = sizeof(info) };

    if (weir_file_info(load->file, &info) != 0 || info.direct == 0 || info.offset_align <= 1 ||
        plan->block_bytes % info.offset_align == 0)
        return 0;
    bench_say("direct reads and writes of %s need --bs in multiples of %u\n", plan->path,
              info.offset_align);
    return -EINVAL;
}

int bench_load_run(const struct bench_plan *plan, struct bench_result *result)
{
    struct weir_error error = { 0 };
    struct load load = { .plan = plan };
    char text[600];
    int rc;

    if (open_engine(plan, &load, result) != 0)
        return 1;
    rc = open_file(plan, &load, &error);
    if (rc != 0) {
        if (error.code != 0)
            weir_error_format(&error, text, sizeof(text));
        else
            snprintf(text, sizeof(text), "%s", weir_code_text(rc));
        bench_say("%s%s\n", text, plan->direct ? "; without --direct it may work" : "");
    } else {
        rc = check_alignment(plan, &load);
    }
    if (rc == 0)
        rc = run_workers(&load, result);
    (void)weir_file_close(load.file);
    (void)weir_engine_close(load.engine);
    return rc != 0 ? 1 : 0;
}
