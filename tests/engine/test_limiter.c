/* SPDX-License-Identifier: MIT */
/*
 * test_limiter.c - permits: what fits, who is next, and how one is told
 *
 * Waiters that are told by a job need no thread, so most orders are checked on one thread.
 */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

static struct weir_limiter *open_limiter(uint64_t bytes, uint64_t permits)
{
    struct weir_limiter_options options = { .size = sizeof(options),
                                            .bytes = bytes,
                                            .permits = permits };
    struct weir_limiter *limiter = NULL;

    check_code(weir_limiter_open(&options, &limiter), 0);
    return limiter;
}

static struct weir_limiter_info info_of(struct weir_limiter *limiter)
{
    struct weir_limiter_info info = { .size = sizeof(info) };

    check_code(weir_limiter_info(limiter, &info), 0);
    return info;
}

/* Nothing is out or waits, and it closes. */
static void close_idle(struct weir_limiter *limiter)
{
    struct weir_limiter_info info = info_of(limiter);

    check_code(info.bytes_out, 0);
    check_code(info.permits_out, 0);
    check_code(info.waiting, 0);
    check_code(weir_limiter_close(limiter), 0);
}

static void prepare_told(struct probe *probe)
{
    weir_job_prepare(&probe->job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe_arm(probe);
}

/* Line a NOP up. */
static void notify(struct env *env, struct weir_limiter *limiter, uint32_t io_class,
                   uint64_t bytes, struct weir_permit *permit, struct probe *probe)
{
    prepare_told(probe);
    check_code(weir_limiter_notify(limiter, io_class, bytes, permit, env->queue, &probe->job),
               0);
}

/* Let everything run that was posted. */
static void run_posted(struct env *env)
{
    int count;

    do {
        count = weir_queue_run(env->queue);
        check(count >= 0);
    } while (count > 0);
}

/* --- what fits ---------------------------------------------------------------------------- */

static void limiter__wrong_calls_are_einval(struct env *env)
{
    struct weir_limiter_options options = { .size = sizeof(options) };
    struct weir_limiter *limiter = NULL;
    struct weir_permit permit = { 0 };
    struct weir_permit other = { 0 };
    struct weir_limiter_info info = { .size = 0 };
    struct probe probe;

    check_code(weir_limiter_open(&options, &limiter), -EINVAL); /* no limit at all */
    check_code(weir_limiter_open(NULL, &limiter), -EINVAL);
    options.bytes = 1;
    check_code(weir_limiter_open(&options, NULL), -EINVAL);
    options.size = 0;
    check_code(weir_limiter_open(&options, &limiter), -EINVAL);
    check(limiter == NULL);
    check_code(weir_limiter_close(NULL), 0);

    limiter = open_limiter(10, 0);
    prepare_told(&probe);
    check_code(weir_limiter_try(limiter, WEIR_CLASSES, 1, &permit), -EINVAL);
    check_code(weir_limiter_try(NULL, 0, 1, &permit), -EINVAL);
    check_code(weir_limiter_try(limiter, 0, 1, NULL), -EINVAL);
    check_code(weir_limiter_acquire(limiter, WEIR_CLASSES, 1, 0, &permit), -EINVAL);
    check_code(weir_limiter_notify(limiter, 0, 1, &permit, NULL, &probe.job), -EINVAL);
    check_code(weir_limiter_notify(limiter, 0, 1, &permit, env->queue, NULL), -EINVAL);
    probe.job.done = NULL;
    check_code(weir_limiter_notify(limiter, 0, 1, &permit, env->queue, &probe.job), -EINVAL);
    check_code(weir_limiter_info(limiter, &info), -EINVAL);
    check(permit.limiter == NULL);

    check_code(weir_limiter_try(limiter, 0, 1, &permit), 0);
    check_code(weir_limiter_try(limiter, 0, 1, &permit), -EINVAL); /* held already */
    check_code(weir_limiter_acquire(limiter, 0, 1, 0, &permit), -EINVAL);
    prepare_told(&probe);
    check_code(weir_limiter_notify(limiter, 0, 1, &permit, env->queue, &probe.job), -EINVAL);
    check_code(weir_limiter_close(limiter), -EBUSY);
    weir_permit_release(&permit);
    weir_permit_release(&permit); /* empty */
    weir_permit_release(&other);
    weir_permit_release(NULL);
    close_idle(limiter);
}

/* Each of the two limits holds alone, and both together. */
static void limiter__holds_both_limits(struct env *env)
{
    static const struct {
        uint64_t bytes;
        uint64_t permits;
        uint64_t each;
        uint64_t fit;
    } cases[] = { { 100, 0, 10, 10 },   { 100, 0, 30, 3 },      { 100, 0, 100, 1 },
                  { 0, 7, 1 << 20, 7 }, { 0, 7, 0, 7 },         { 100, 4, 10, 4 },
                  { 100, 50, 10, 10 },  { 0, 3, UINT64_MAX, 1 } };

    (void)env;
    for (size_t c = 0; c < COUNT(cases); c++) {
        struct weir_limiter *limiter = open_limiter(cases[c].bytes, cases[c].permits);
        struct weir_permit permits[64] = { { 0 } };
        size_t got = 0;

        for (int round = 0; round < 3; round++) {
            for (got = 0; got < COUNT(permits); got++) {
                int rc = weir_limiter_try(limiter, (uint32_t)(got % WEIR_CLASSES),
                                          cases[c].each, &permits[got]);

                if (rc == 0)
                    continue;
                check_code(rc, -EAGAIN);
                check(permits[got].limiter == NULL);
                break;
            }
            check_code(got, cases[c].fit);
            check_code(info_of(limiter).permits_out, got);
            check(info_of(limiter).bytes_out == got * cases[c].each);
            check(info_of(limiter).bytes_peak == got * cases[c].each);
            while (got > 0)
                weir_permit_release(&permits[--got]);
        }
        check_code(info_of(limiter).granted, 3 * cases[c].fit);
        check_code(info_of(limiter).waited, 0);
        close_idle(limiter);
    }
}

/* More than the limit is had alone, and then nobody else has anything. */
static void limiter__too_large_goes_alone(struct env *env)
{
    struct weir_limiter *limiter = open_limiter(100, 0);
    struct weir_permit small = { 0 };
    struct weir_permit large = { 0 };

    (void)env;
    check_code(weir_limiter_try(limiter, 0, 1, &small), 0);
    check_code(weir_limiter_try(limiter, 0, 1000, &large), -EAGAIN);
    weir_permit_release(&small);
    check_code(weir_limiter_try(limiter, 0, 1000, &large), 0);
    check_code(weir_limiter_try(limiter, 0, 0, &small), -EAGAIN);
    check_code(weir_limiter_try(limiter, WEIR_CLASS_SYNC, 1, &small), -EAGAIN);
    weir_permit_release(&large);
    check_code(weir_limiter_acquire(limiter, 0, 1000, 0, &large), 0);
    weir_permit_release(&large);
    close_idle(limiter);
}

/* --- who is next ---------------------------------------------------------------------------- */

/* A small request does not pass a large one of its class, neither in line nor by trying. */
static void limiter__nobody_overtakes_in_a_class(struct env *env)
{
    struct weir_limiter *limiter = open_limiter(100, 0);
    struct weir_permit first = { 0 };
    struct weir_permit tried = { 0 };
    struct weir_permit permits[3] = { { 0 } };
    struct probe probes[3];

    check_code(weir_limiter_try(limiter, 0, 60, &first), 0);
    notify(env, limiter, WEIR_CLASS_BATCH, 80, &permits[0], &probes[0]);
    notify(env, limiter, WEIR_CLASS_BATCH, 10, &permits[1], &probes[1]);
    notify(env, limiter, WEIR_CLASS_BATCH, 20, &permits[2], &probes[2]);
    check_code(info_of(limiter).waiting, 3);
    check_code(weir_limiter_try(limiter, WEIR_CLASS_BATCH, 1, &tried), -EAGAIN);
    /* Nor one that is less urgent; but one that is more, and has its share left, does. */
    check_code(weir_limiter_try(limiter, WEIR_CLASS_BACKGROUND, 1, &tried), -EAGAIN);
    check_code(weir_limiter_try(limiter, WEIR_CLASS_FOREGROUND, 1, &tried), 0);
    run_posted(env);
    check(probes[0].done == 0 && probes[1].done == 0 && probes[2].done == 0);
    weir_permit_release(&tried);

    weir_permit_release(&first);
    run_posted(env);
    check(probes[0].done == 1 && probes[1].done == 1 && probes[2].done == 0);
    check(permits[0].limiter == limiter && permits[1].limiter == limiter);
    check(permits[2].limiter == NULL);
    check_code(info_of(limiter).bytes_out, 90);
    weir_permit_release(&permits[1]); /* 80 and 20: just fits */
    run_posted(env);
    check(probes[2].done == 1);
    check_code(info_of(limiter).bytes_out, 100);
    check_code(info_of(limiter).granted, 5);
    check_code(info_of(limiter).waited, 3);
    weir_permit_release(&permits[0]);
    weir_permit_release(&permits[2]);
    close_idle(limiter);
}

/* A line for one permit, where each that has it gives it on. */
struct line {
    struct weir_permit permit;
    struct weir_job job;
    uint32_t *order; /* where to note the class */
    size_t *count;
};

static void pass_on(struct weir_job *job)
{
    struct line *line = job->arg;

    check_code(job->result, 0);
    check(line->permit.limiter != NULL);
    line->order[(*line->count)++] = job->io_class;
    weir_permit_release(&line->permit);
}

enum {
    LINE_EACH = 130
};

/* With all classes waiting each is served its weight in a round, the urgent ones first; inside a
 * class as they came. */
static void run_line(struct env *env, uint64_t bytes, uint32_t per_weight)
{
    static const uint32_t weights[WEIR_CLASSES] = {
        [WEIR_CLASS_SYNC] = 64,    [WEIR_CLASS_FOREGROUND] = 32, [WEIR_CLASS_BATCH] = 8,
        [WEIR_CLASS_PREFETCH] = 4, [WEIR_CLASS_BACKGROUND] = 2,
    };
    static const uint32_t by_urgency[WEIR_CLASSES] = { WEIR_CLASS_SYNC, WEIR_CLASS_FOREGROUND,
                                                       WEIR_CLASS_BATCH, WEIR_CLASS_PREFETCH,
                                                       WEIR_CLASS_BACKGROUND };
    size_t each = (size_t)LINE_EACH * per_weight;
    size_t total = each * WEIR_CLASSES;
    struct line *lines = calloc(total, sizeof(*lines));
    uint32_t *order = calloc(total, sizeof(*order));
    struct weir_limiter *limiter = open_limiter(0, 1);
    struct weir_permit first = { 0 };
    size_t count = 0;
    size_t place = 0;

    check(lines != NULL && order != NULL);
    check_code(weir_limiter_try(limiter, 0, 1, &first), 0);
    for (size_t i = 0; i < total; i++) {
        struct line *line = &lines[i];

        line->order = order;
        line->count = &count;
        weir_job_prepare(&line->job, WEIR_OP_NOP, NULL, pass_on, line);
        line->job.io_class = (uint8_t)(i % WEIR_CLASSES);
        check_code(weir_limiter_notify(limiter, line->job.io_class, bytes, &line->permit,
                                       env->queue, &line->job),
                   0);
    }
    check_code(info_of(limiter).waiting, total);
    weir_permit_release(&first);
    run_posted(env);
    check_code(count, total);
    for (int round = 0; round < 2; round++) {
        for (size_t c = 0; c < WEIR_CLASSES; c++) {
            for (uint32_t i = 0; i < weights[by_urgency[c]] * per_weight; i++)
                check_code(order[place++], by_urgency[c]);
        }
    }
    check_code(info_of(limiter).waited, total);
    close_idle(limiter);
    free(lines);
    free(order);
}

static void limiter__classes_share_by_weight(struct env *env)
{
    run_line(env, 64 * KIB, 1);
}

/* Permits without bytes share as well: each counts for 4 KiB. */
static void limiter__empty_permits_share_too(struct env *env)
{
    run_line(env, 0, 16);
}

/* --- being told ------------------------------------------------------------------------------ */

/* With room it is told at once, and the permit is held when `done` runs. */
static void limiter__told_at_once_with_room(struct env *env)
{
    struct weir_limiter *limiter = open_limiter(100, 0);
    struct weir_permit permit = { 0 };
    struct probe probe;

    notify(env, limiter, WEIR_CLASS_BACKGROUND, 100, &permit, &probe);
    check_code(probe_wait(env->queue, &probe), 0);
    check(permit.limiter == limiter);
    check_code(info_of(limiter).bytes_out, 100);
    check_code(info_of(limiter).waited, 0);
    weir_permit_release(&permit);
    close_idle(limiter);
}

struct ride {
    struct probe probe;
    struct weir_permit permit;
    struct weir_limiter *limiter;
    unsigned held; /* found when done: how many permits */
};

static void ride_done(struct weir_job *job)
{
    struct ride *ride = job->arg;

    ride->held = ride->permit.limiter != NULL;
    job->arg = &ride->probe;
    probe_done(job);
}

/* A permit rides on a job and is given back before its `done`; the job itself can be what is
 * lined up. */
static void limiter__permit_rides_on_a_job(struct env *env)
{
    enum {
        RIDES = 40
    };
    const char *path = test_new_path("limiter");
    struct weir_limiter *limiter = open_limiter(3 * 4096, 0);
    struct ride *rides = calloc(RIDES, sizeof(*rides));
    uint8_t *bytes = calloc(RIDES, 4096);
    struct weir_file *file = NULL;

    check(rides != NULL && bytes != NULL);
    pattern_make_file(path, RIDES * 4096, 5);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &file, NULL), 0);
    for (size_t i = 0; i < RIDES; i++) {
        struct probe *probe = &rides[i].probe;

        weir_job_read(&probe->job, file, bytes + i * 4096, 4096, i * 4096, NULL, NULL);
        probe_arm(probe);
        probe->job.done = ride_done;
        probe->job.arg = &rides[i];
        probe->job.permit = &rides[i].permit;
        check_code(weir_limiter_notify(limiter, WEIR_CLASS_FOREGROUND, 4096, &rides[i].permit,
                                       env->queue, &probe->job),
                   0);
    }
    check_code(info_of(limiter).waiting, RIDES - 3);
    check_code(weir_limiter_close(limiter), -EBUSY);
    for (size_t i = 0; i < RIDES; i++) {
        while (rides[i].probe.done == 0)
            check(weir_queue_wait(env->queue, 1, TEST_LONG) > 0);
        check_code(rides[i].probe.result, 4096);
        check_code(rides[i].held, 0);
        if (env->backend != WEIR_BACKEND_NULL)
            check_pattern(bytes + i * 4096, 4096, 5, i * 4096);
    }
    check(info_of(limiter).bytes_peak == 3 * 4096);
    check_code(weir_file_close(file), 0);
    close_idle(limiter);
    free(rides);
    free(bytes);
}

/* What the queue would refuse is refused at once, without a permit. */
static void limiter__refuses_what_the_queue_would(struct env *env)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = 1, .backlog = 1 };
    struct weir_limiter *limiter = open_limiter(0, 1);
    struct weir_permit permit = { 0 };
    struct weir_queue *queue = NULL;
    struct probe posted[2];
    struct probe probe;

    prepare_told(&probe);
    probe.job.op = WEIR_OPS;
    check_code(weir_limiter_notify(limiter, 0, 0, &permit, env->queue, &probe.job), -EINVAL);

    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    for (size_t i = 0; i < COUNT(posted); i++) {
        prepare_told(&posted[i]);
        check_code(weir_queue_post(queue, &posted[i].job), 0);
    }
    prepare_told(&probe);
    check_code(weir_limiter_notify(limiter, 0, 0, &permit, queue, &probe.job), -EBUSY);
    check(permit.limiter == NULL);
    check_code(info_of(limiter).permits_out, 0);
    probes_wait(queue, posted, COUNT(posted));
    /* The job is as it was prepared. */
    check_code(weir_limiter_notify(limiter, 0, 0, &permit, queue, &probe.job), 0);
    check_code(probe_wait(queue, &probe), 0);
    weir_permit_release(&permit);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    close_idle(limiter);
}

/* If a queue is full when the time has come, the permit goes to the next. */
static void limiter__refused_permit_goes_on(struct env *env)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = 1, .backlog = 1 };
    struct weir_limiter *limiter = open_limiter(0, 1);
    struct weir_permit first = { 0 };
    struct weir_permit permits[3] = { { 0 } };
    struct weir_queue *full = NULL;
    struct probe posted[2];
    struct probe probes[3];

    check_code(weir_queue_open(env->engine, &options, &full), 0);
    check_code(weir_limiter_try(limiter, 0, 0, &first), 0);
    for (size_t i = 0; i < COUNT(probes); i++) {
        prepare_told(&probes[i]);
        check_code(weir_limiter_notify(limiter, 0, 0, &permits[i], i < 2 ? full : env->queue,
                                       &probes[i].job),
                   0);
    }
    for (size_t i = 0; i < COUNT(posted); i++) {
        prepare_told(&posted[i]);
        check_code(weir_queue_post(full, &posted[i].job), 0);
    }
    weir_permit_release(&first);
    check_code(probe_wait(env->queue, &probes[2]), 0);
    check(permits[2].limiter == limiter);
    check(permits[0].limiter == NULL && permits[1].limiter == NULL);
    probes_wait(full, posted, COUNT(posted));
    check(probes[0].done == 0 && probes[1].done == 0);
    weir_permit_release(&permits[2]);
    check_code(weir_queue_close(full, TEST_LONG), 0);
    close_idle(limiter);
}

/* --- waiting --------------------------------------------------------------------------------- */

/* A limiter that is full times out, whatever the time, and nothing is left behind. */
static void limiter__times_out_without_a_trace(struct env *env)
{
    static const uint64_t timeouts[] = { 0, 1, 1000, 50000, 2 * TEST_MS };
    struct weir_limiter *limiter = open_limiter(100, 0);
    struct weir_permit held = { 0 };
    struct weir_permit permit = { 0 };

    (void)env;
    check_code(weir_limiter_try(limiter, 0, 51, &held), 0);
    for (size_t i = 0; i < 200; i++) {
        check_code(weir_limiter_acquire(limiter, (uint32_t)(i % WEIR_CLASSES), 50,
                                        timeouts[i % COUNT(timeouts)], &permit),
                   -ETIMEDOUT);
        check(permit.limiter == NULL);
        check_code(info_of(limiter).waiting, 0);
        check_code(info_of(limiter).permits_out, 1);
    }
    weir_permit_release(&held);
    for (uint32_t c = 0; c < WEIR_CLASSES; c++) {
        check_code(weir_limiter_acquire(limiter, c, 100, 0, &permit), 0);
        weir_permit_release(&permit);
    }
    check_code(info_of(limiter).granted, 1 + WEIR_CLASSES);
    close_idle(limiter);
}

struct taker {
    struct weir_limiter *limiter;
    struct weir_permit permit;
    uint64_t bytes;
    uint64_t timeout_ns;
    int rc;
};

static void *take_one(void *arg)
{
    struct taker *taker = arg;

    taker->rc = weir_limiter_acquire(taker->limiter, WEIR_CLASS_FOREGROUND, taker->bytes,
                                     taker->timeout_ns, &taker->permit);
    return NULL;
}

/* Who gives up makes way for those behind it. */
static void limiter__giving_up_serves_the_next(struct env *env)
{
    struct weir_limiter *limiter = open_limiter(100, 0);
    struct taker taker = { .limiter = limiter, .bytes = 80, .timeout_ns = 30 * TEST_MS };
    struct weir_permit held = { 0 };
    struct weir_permit permit = { 0 };
    struct probe probe;
    pthread_t thread;

    check_code(weir_limiter_try(limiter, 0, 50, &held), 0);
    check_code(pthread_create(&thread, NULL, take_one, &taker), 0);
    while (info_of(limiter).waiting == 0)
        (void)sched_yield();
    notify(env, limiter, WEIR_CLASS_FOREGROUND, 30, &permit, &probe);
    check_code(probe_wait(env->queue, &probe), 0);
    check_code(pthread_join(thread, NULL), 0);
    check_code(taker.rc, -ETIMEDOUT);
    check(permit.limiter == limiter && taker.permit.limiter == NULL);
    weir_permit_release(&permit);
    weir_permit_release(&held);
    close_idle(limiter);
}

/* A thread that waits for ever is woken by the release that makes room, in the order of arrival. */
static void limiter__release_wakes_who_is_next(struct env *env)
{
    enum {
        TAKERS = 6
    };
    struct weir_limiter *limiter = open_limiter(0, 1);
    struct taker takers[TAKERS];
    pthread_t threads[TAKERS];
    struct weir_permit held = { 0 };

    (void)env;
    check_code(weir_limiter_try(limiter, 0, 0, &held), 0);
    for (size_t i = 0; i < TAKERS; i++) {
        takers[i] = (struct taker){ .limiter = limiter, .timeout_ns = WEIR_FOREVER };
        check_code(pthread_create(&threads[i], NULL, take_one, &takers[i]), 0);
        while (info_of(limiter).waiting <= i)
            (void)sched_yield();
    }
    weir_permit_release(&held);
    for (size_t i = 0; i < TAKERS; i++) {
        check_code(pthread_join(threads[i], NULL), 0); /* this one, and no other */
        check_code(takers[i].rc, 0);
        check_code(info_of(limiter).permits_out, 1);
        check_code(info_of(limiter).waiting, TAKERS - 1 - i);
        weir_permit_release(&takers[i].permit);
    }
    close_idle(limiter);
}

/* --- many threads ------------------------------------------------------------------------------ */

enum {
    STORM_BYTES = 1000,
    STORM_PERMITS = 5,
    STORM_THREADS = 6
};

struct storm {
    struct weir_limiter *limiter;
    struct weir_engine *engine;
    uint64_t rounds;
    _Atomic uint64_t bytes; /* held, at least: counted after the grant, and until the release */
    _Atomic uint64_t permits;
    _Atomic uint64_t granted;
    _Atomic uint64_t timed_out;
    _Atomic uint64_t wrong;
};

struct stormer {
    struct storm *storm;
    pthread_t thread;
    uint64_t seed;
};

static void storm_hold(struct storm *storm, struct weir_permit *permit, bool yield)
{
    uint64_t bytes = permit->bytes;
    uint64_t all = atomic_fetch_add(&storm->bytes, bytes) + bytes;
    uint64_t count = atomic_fetch_add(&storm->permits, 1) + 1;

    atomic_fetch_add(&storm->granted, 1);
    /* Too large alone: then the bytes are its own. */
    if (count > STORM_PERMITS || (all > STORM_BYTES && all != bytes) ||
        permit->limiter != storm->limiter)
        atomic_fetch_add(&storm->wrong, 1);
    if (yield)
        (void)sched_yield();
    atomic_fetch_sub(&storm->permits, 1);
    atomic_fetch_sub(&storm->bytes, bytes);
    weir_permit_release(permit);
    if (permit->limiter != NULL)
        atomic_fetch_add(&storm->wrong, 1);
}

static void *storm_run(void *arg)
{
    struct stormer *stormer = arg;
    struct storm *storm = stormer->storm;
    struct test_rng rng = { stormer->seed };
    struct weir_queue *queue = NULL;

    if (weir_queue_open(storm->engine, NULL, &queue) != 0)
        atomic_fetch_add(&storm->wrong, 1);
    for (uint64_t i = 0; i < storm->rounds; i++) {
        struct weir_permit permit = { 0 };
        uint32_t io_class = (uint32_t)rng_below(&rng, WEIR_CLASSES);
        uint64_t bytes = rng_below(&rng, rng_below(&rng, 20) == 0 ? 3000 : 500);
        bool yield = rng_below(&rng, 4) == 0;
        struct probe probe;
        int rc = 0;

        switch (rng_below(&rng, 4)) {
        case 0:
            rc = weir_limiter_try(storm->limiter, io_class, bytes, &permit);
            break;
        case 1:
            rc = weir_limiter_acquire(storm->limiter, io_class, bytes, WEIR_FOREVER, &permit);
            if (rc != 0)
                atomic_fetch_add(&storm->wrong, 1);
            break;
        case 2:
            rc = weir_limiter_acquire(storm->limiter, io_class, bytes, rng_below(&rng, 30000),
                                      &permit);
            break;
        default:
            prepare_told(&probe);
            rc = weir_limiter_notify(storm->limiter, io_class, bytes, &permit, queue,
                                     &probe.job);
            while (rc == 0 && probe.done == 0)
                (void)weir_queue_wait(queue, 1, TEST_LONG);
            break;
        }
        if (rc == 0)
            storm_hold(storm, &permit, yield);
        else if (rc == -ETIMEDOUT)
            atomic_fetch_add(&storm->timed_out, 1);
        else if (rc != -EAGAIN)
            atomic_fetch_add(&storm->wrong, 1);
        if (rc != 0 && permit.limiter != NULL)
            atomic_fetch_add(&storm->wrong, 1);
    }
    if (weir_queue_close(queue, TEST_LONG) != 0)
        atomic_fetch_add(&storm->wrong, 1);
    return NULL;
}

/* Threads that take and give at random: the limits hold at every moment, everyone is served, and
 * at the end nothing is out. */
static void limiter__storm(struct env *env)
{
    struct storm storm = { .limiter = open_limiter(STORM_BYTES, STORM_PERMITS),
                           .engine = env->engine,
                           .rounds = test_env_number("WEIR_LIMITER_ROUNDS", 4000) };
    struct stormer stormers[STORM_THREADS];
    struct weir_limiter_info info;

    for (size_t i = 0; i < STORM_THREADS; i++) {
        stormers[i] = (struct stormer){ .storm = &storm, .seed = test_seed() + i };
        check_code(pthread_create(&stormers[i].thread, NULL, storm_run, &stormers[i]), 0);
    }
    for (size_t i = 0; i < STORM_THREADS; i++)
        check_code(pthread_join(stormers[i].thread, NULL), 0);
    check_code(atomic_load(&storm.wrong), 0);
    info = info_of(storm.limiter);
    check(info.granted == atomic_load(&storm.granted));
    check(info.waited <= info.granted);
    check(info.bytes_peak < 3000);
    close_idle(storm.limiter);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(limiter__wrong_calls_are_einval, CASE_ONCE),
        CASE(limiter__holds_both_limits, CASE_ONCE),
        CASE(limiter__too_large_goes_alone, CASE_ONCE),
        CASE(limiter__nobody_overtakes_in_a_class, CASE_ONCE),
        CASE(limiter__classes_share_by_weight, CASE_ONCE),
        CASE(limiter__empty_permits_share_too, CASE_ONCE),
        CASE(limiter__told_at_once_with_room, CASE_ONCE),
        CASE(limiter__permit_rides_on_a_job, 0),
        CASE(limiter__refuses_what_the_queue_would, CASE_ONCE),
        CASE(limiter__refused_permit_goes_on, CASE_ONCE),
        CASE(limiter__times_out_without_a_trace, CASE_ONCE),
        CASE(limiter__giving_up_serves_the_next, CASE_ONCE),
        CASE(limiter__release_wakes_who_is_next, CASE_ONCE),
        CASE(limiter__storm, CASE_ONCE | CASE_NO_QUEUE),
    };

    return run_cases("limiter", cases, COUNT(cases), argc, argv);
}
