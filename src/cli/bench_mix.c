/* SPDX-License-Identifier: MIT */
/*
 * bench_mix.c - what background work costs the foreground, and what is left for it
 *
 * Two sides  the foreground reads 4 KiB at random places, one at a time, class FOREGROUND; the
 *            background 64 KiB at random places, 32 at a time, class BACKGROUND. With one
 *            thread they share a queue, with two each has its own.
 * Measured   each side alone, and both beside each other, in up to four turns of which the
 *            sums count: a shared disk changes its speed within seconds. A short round
 *            comes first that does not count, and every part starts with a
 *            moment that is not counted, longer than the 10 ms for which the engine remembers
 *            urgent work.
 * Thinking   a foreground that is never idle leaves the background little by design. So it may
 *            idle half the time: "read" idles after each read as long as it took, so urgent
 *            work is always less than 10 ms ago; "burst" works 100 ms and idles 100 ms, so
 *            the background has the device to itself for 90 of 200 ms. Alone it idles too.
 * Shares     of what the same side does alone, in operations (foreground) or bytes
 *            (background) a second.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define MAX_ROUNDS     4
#define PERIOD_SECONDS 0.2 /* of BURST */
#define SETTLE_SECONDS 0.02
#define BURST_NS       UINT64_C(100000000)
#define IDLE_NS        UINT64_C(1000000) /* how often a thread without work looks up */
#define MAX_ERRORS     100u

enum part {
    PART_FOREGROUND = 0,
    PART_BACKGROUND,
    PART_BOTH,
    PARTS
};

struct mix;

/* One of the reads that go on and on. */
struct reader {
    struct weir_job job;
    struct mixer *mixer;
    void *buf;
    bool pooled;
    bool running;
};

/* A thread and its queue. */
struct mixer {
    struct mix *mix;
    pthread_t thread;
    bool has_foreground;
    bool has_background;
    struct weir_queue *queue; /* set up by the main thread, closed by this one */

    /* this thread only, until it is joined */
    struct reader foreground;
    struct reader background[BENCH_MIX_DEPTH];
    uint64_t random;
    uint64_t live;
    uint64_t start_ns;                 /* of the foreground's read */
    struct bench_histogram *histogram; /* that it goes into; NULL: not counted */
    uint64_t next_ns;                  /* when it may read again */
    uint64_t errors;
    int64_t first_error;
    uint64_t first_error_offset;
};

struct mix {
    const struct bench_plan *plan;
    struct bench_base base;
    struct mixer mixers[2];

    /* atomic: relaxed, set by the main thread */
    atomic_int part;
    atomic_bool counting;
    atomic_bool stop; /* also set by a thread that gives up */

    /* the foreground's thread; read when it was joined */
    struct bench_histogram idle;
    struct bench_histogram beside;

    /* atomic: relaxed; done so far, whatever is counted */
    atomic_uint_fast64_t reads;
    atomic_uint_fast64_t bytes;
};

static bool runs(const struct mix *mix, enum part side)
{
    int part = atomic_load_explicit(&mix->part, memory_order_relaxed);

    return !atomic_load_explicit(&mix->stop, memory_order_relaxed) &&
           (part == (int)side || part == PART_BOTH);
}

/* --- one thread ------------------------------------------------------------------------------ */

static void note_error(struct mixer *mixer, int64_t result, uint64_t offset)
{
    if (mixer->errors++ == 0) {
        mixer->first_error = result < 0 ? result : -WEIR_ETRUNCATED;
        mixer->first_error_offset = offset;
    }
    if (mixer->errors >= MAX_ERRORS)
        atomic_store_explicit(&mixer->mix->stop, true, memory_order_relaxed);
}

static void submit(struct reader *reader)
{
    struct mixer *mixer = reader->mixer;
    struct weir_job *job = &reader->job;
    uint64_t places = mixer->mix->plan->size_bytes / job->len;
    int rc;

    job->offset = bench_random_below(&mixer->random, places) * job->len;
    rc = weir_queue_submit(mixer->queue, &job, 1);
    reader->running = rc == 1;
    if (rc == 1)
        mixer->live++;
    else
        note_error(mixer, rc < 0 ? rc : -EBUSY, job->offset);
}

static bool ended(struct reader *reader)
{
    struct mixer *mixer = reader->mixer;
    struct weir_job *job = &reader->job;

    reader->running = false;
    mixer->live--;
    if (job->result == (int64_t)job->len)
        return true;
    note_error(mixer, job->result, job->offset);
    return false;
}

static void on_foreground(struct weir_job *job)
{
    struct reader *reader = job->arg;
    struct mixer *mixer = reader->mixer;
    struct mix *mix = mixer->mix;
    uint64_t now_ns = bench_now_ns();
    uint64_t took_ns = now_ns - mixer->start_ns;

    if (ended(reader) && mixer->histogram != NULL)
        bench_histogram_add(mixer->histogram, took_ns);
    (void)atomic_fetch_add_explicit(&mix->reads, 1, memory_order_relaxed);
    mixer->next_ns = now_ns;
    if (mix->plan->think == BENCH_THINK_READ)
        mixer->next_ns = now_ns + took_ns;
    else if (mix->plan->think == BENCH_THINK_BURST && now_ns / BURST_NS % 2 != 0)
        mixer->next_ns = (now_ns / BURST_NS + 1) * BURST_NS;
}

static void on_background(struct weir_job *job)
{
    struct reader *reader = job->arg;
    struct mix *mix = reader->mixer->mix;

    if (ended(reader))
        (void)atomic_fetch_add_explicit(&mix->bytes, job->len, memory_order_relaxed);
    if (runs(mix, PART_BACKGROUND))
        submit(reader);
}

/* Where a read that starts now belongs, however long it takes. */
static struct bench_histogram *current_histogram(struct mix *mix)
{
    if (!atomic_load_explicit(&mix->counting, memory_order_relaxed))
        return NULL;
    if (atomic_load_explicit(&mix->part, memory_order_relaxed) == PART_FOREGROUND)
        return &mix->idle;
    return &mix->beside;
}

/* Start what should run. Returns how long the queue may wait at most. */
static uint64_t start_work(struct mixer *mixer)
{
    struct mix *mix = mixer->mix;
    uint64_t wait_ns = IDLE_NS;

    if (mixer->has_background && runs(mix, PART_BACKGROUND))
        for (uint32_t i = 0; i < BENCH_MIX_DEPTH; i++)
            if (!mixer->background[i].running)
                submit(&mixer->background[i]);
    if (mixer->has_foreground && !mixer->foreground.running && runs(mix, PART_FOREGROUND)) {
        uint64_t now_ns = bench_now_ns();

        if (now_ns >= mixer->next_ns) {
            mixer->start_ns = now_ns;
            mixer->histogram = current_histogram(mix);
            submit(&mixer->foreground);
        } else if (mixer->next_ns - now_ns < wait_ns) {
            wait_ns = mixer->next_ns - now_ns;
        }
    }
    return wait_ns;
}

static void *mixer_main(void *arg)
{
    struct mixer *mixer = arg;
    struct mix *mix = mixer->mix;

    while (!atomic_load_explicit(&mix->stop, memory_order_relaxed) || mixer->live > 0) {
        uint64_t wait_ns = start_work(mixer);
        int rc = weir_queue_wait(mixer->queue, 1, wait_ns);

        if (rc < 0 && rc != -EINTR) {
            note_error(mixer, rc, 0);
            atomic_store_explicit(&mix->stop, true, memory_order_relaxed);
            break;
        }
    }
    /* Jobs and buffers are the kernel's until this has succeeded. */
    while (weir_queue_close(mixer->queue, UINT64_C(1000000000)) == -EBUSY)
        ;
    mixer->queue = NULL;
    return NULL;
}

/* --- setting up ------------------------------------------------------------------------------ */

static int setup_reader(struct mixer *mixer, struct reader *reader, size_t len,
                        uint8_t io_class, weir_done_fn done)
{
    struct bench_base *base = &mixer->mix->base;

    reader->mixer = mixer;
    reader->buf = bench_base_buffer(base, len, &mixer->random, &reader->pooled);
    if (reader->buf == NULL)
        return -ENOMEM;
    weir_job_read(&reader->job, base->file, reader->buf, len, 0, done, reader);
    reader->job.io_class = io_class;
    return 0;
}

static int setup_mixer(struct mixer *mixer)
{
    const struct bench_plan *plan = mixer->mix->plan;
    int rc = bench_base_queue(&mixer->mix->base, 0, &mixer->queue);

    mixer->random = bench_random_seed(mixer->has_background);
    if (rc == 0 && mixer->has_foreground)
        rc = setup_reader(mixer, &mixer->foreground, plan->block_bytes, WEIR_CLASS_FOREGROUND,
                          on_foreground);
    for (uint32_t i = 0; rc == 0 && mixer->has_background && i < BENCH_MIX_DEPTH; i++)
        rc = setup_reader(mixer, &mixer->background[i], BENCH_MIX_BYTES, WEIR_CLASS_BACKGROUND,
                          on_background);
    return rc;
}

static void teardown_mixer(struct mixer *mixer)
{
    const struct bench_base *base = &mixer->mix->base;

    (void)weir_queue_close(mixer->queue, 0); /* only if the thread never ran */
    if (mixer->foreground.buf != NULL)
        bench_base_give(base, mixer->foreground.buf, mixer->foreground.pooled);
    for (uint32_t i = 0; i < BENCH_MIX_DEPTH; i++)
        if (mixer->background[i].buf != NULL)
            bench_base_give(base, mixer->background[i].buf, mixer->background[i].pooled);
}

/* --- measuring ------------------------------------------------------------------------------- */

static bool has_stopped(void *arg)
{
    struct mix *mix = arg;

    return atomic_load_explicit(&mix->stop, memory_order_relaxed);
}

struct sum {
    double seconds;
    uint64_t reads;
    uint64_t bytes;
};

static void measure_part(struct mix *mix, enum part part, double seconds, bool counted,
                         struct sum *sum)
{
    uint64_t start_ns;
    uint64_t reads;
    uint64_t bytes;

    atomic_store_explicit(&mix->part, (int)part, memory_order_relaxed);
    bench_sleep(SETTLE_SECONDS, has_stopped, mix);
    atomic_store_explicit(&mix->counting, counted, memory_order_relaxed);
    start_ns = bench_now_ns();
    reads = atomic_load_explicit(&mix->reads, memory_order_relaxed);
    bytes = atomic_load_explicit(&mix->bytes, memory_order_relaxed);
    bench_sleep(seconds, has_stopped, mix);
    atomic_store_explicit(&mix->counting, false, memory_order_relaxed);
    sum->reads += atomic_load_explicit(&mix->reads, memory_order_relaxed) - reads;
    sum->bytes += atomic_load_explicit(&mix->bytes, memory_order_relaxed) - bytes;
    sum->seconds += (double)(bench_now_ns() - start_ns) / 1e9;
}

/* All rounds. A third of the seconds goes to each part. */
static void measure(struct mix *mix, struct bench_result *result)
{
    struct sum sums[PARTS] = { { 0 } };
    struct bench_picture before = { 0 };
    struct bench_picture after = { 0 };
    double seconds = mix->plan->seconds / PARTS;
    int rounds = MAX_ROUNDS;
    uint64_t allocs;

    if (mix->plan->think == BENCH_THINK_BURST) {
        double periods = ceil(seconds / PERIOD_SECONDS); /* whole ones only */

        rounds = periods < MAX_ROUNDS ? (int)periods : MAX_ROUNDS;
        seconds = ceil(periods / rounds) * PERIOD_SECONDS;
    } else {
        seconds /= rounds;
    }

    for (int part = 0; part < PARTS; part++) {
        struct sum warm_up = { 0 };

        measure_part(mix, (enum part)part, seconds / 5, false, &warm_up);
    }
    bench_picture_take(&mix->base, &before);
    bench_alloc_start();
    for (int i = 0; i < rounds; i++)
        for (int part = 0; part < PARTS; part++)
            measure_part(mix, (enum part)part, seconds, true, &sums[part]);
    allocs = bench_alloc_stop();
    bench_picture_take(&mix->base, &after);
    after.ops = sums[PART_FOREGROUND].reads + sums[PART_BOTH].reads +
                (sums[PART_BACKGROUND].bytes + sums[PART_BOTH].bytes) / BENCH_MIX_BYTES;
    bench_picture_compare(&before, &after, allocs, mix->plan, result);
    result->asked_bytes =
        (sums[PART_FOREGROUND].reads + sums[PART_BOTH].reads) * mix->plan->block_bytes +
        sums[PART_BACKGROUND].bytes + sums[PART_BOTH].bytes;

    /* The rest is the foreground's while both run. */
    result->interrupted = bench_interrupted != 0;
    result->ops = sums[PART_BOTH].reads;
    result->seconds = sums[PART_BOTH].seconds;
    result->mix.foreground_alone =
        (double)sums[PART_FOREGROUND].reads / sums[PART_FOREGROUND].seconds;
    result->mix.foreground_beside = (double)result->ops / result->seconds;
    result->mix.background_alone =
        (double)sums[PART_BACKGROUND].bytes / sums[PART_BACKGROUND].seconds / (1024.0 * 1024.0);
    result->mix.background_beside =
        (double)sums[PART_BOTH].bytes / sums[PART_BOTH].seconds / (1024.0 * 1024.0);
}

static int run_mixers(struct mix *mix, struct bench_result *result)
{
    uint32_t threads = mix->plan->threads;
    uint32_t started = 0;
    sigset_t all;
    sigset_t old;
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < threads; i++) {
        struct mixer *mixer = &mix->mixers[i];

        mixer->has_foreground = i == 0;
        mixer->has_background = i == threads - 1;
        rc = setup_mixer(mixer);
    }
    /* Signals are the main thread's: a wait must not end early. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 0; rc == 0 && i < threads; i++) {
        rc = -pthread_create(&mix->mixers[i].thread, NULL, mixer_main, &mix->mixers[i]);
        if (rc == 0)
            started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0)
        measure(mix, result);
    atomic_store_explicit(&mix->stop, true, memory_order_relaxed);
    for (uint32_t i = 0; i < started; i++) {
        struct mixer *mixer = &mix->mixers[i];

        pthread_join(mixer->thread, NULL);
        if (result->errors == 0 && mixer->errors > 0) {
            result->first_error = mixer->first_error;
            result->first_error_offset = mixer->first_error_offset;
        }
        result->errors += mixer->errors;
    }
    if (rc != 0)
        bench_say("can't set up %u threads: %s\n", threads, weir_code_text(rc));
    return rc;
}

int bench_mix_run(const struct bench_plan *plan, struct bench_result *result)
{
    struct mix *mix = calloc(1, sizeof(*mix));
    int rc;

    if (mix == NULL) {
        bench_say("out of memory\n");
        return 1;
    }
    mix->plan = plan;
    mix->mixers[0].mix = mix;
    mix->mixers[1].mix = mix;
    rc = bench_base_open(&mix->base, plan, result);
    if (rc == 0)
        rc = run_mixers(mix, result);
    if (rc == 0) {
        result->latency = mix->beside;
        result->mix.idle_p99_us = bench_histogram_us(&mix->idle, 0.99);
    }
    for (int i = 0; i < 2; i++)
        teardown_mixer(&mix->mixers[i]);
    bench_base_close(&mix->base);
    free(mix);
    return rc != 0 ? 1 : 0;
}
