/* SPDX-License-Identifier: MIT */
/*
 * test_loop.c - event loops and posts: nothing is missed, nothing comes twice
 *
 * The loop here is the strictest one there can be: it sleeps in poll(2) on the queue's
 * descriptor, and calls run when, and only when, that is readable. A wake-up that is missed
 * shows as a poll that times out with work taken. At the end: what a queue loads
 * for the block cache.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED        13u
#define POLL_MS     30000 /* only a missed wake-up takes that long */
#define FILE_SIZE   (256 * KIB)
#define DIRECT_SIZE 4096

static struct weir_file *make_file(struct weir_engine *engine, uint32_t flags)
{
    const char *path = test_new_path("loop");
    struct weir_file *file = NULL;

    pattern_make_file(path, FILE_SIZE, SEED);
    if (weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE | flags, 0, &file,
                       NULL) != 0)
        return NULL;
    return file;
}

/* Returns false when nothing comes. */
static bool poll_readable(int fd, int timeout_ms)
{
    struct pollfd poller = { .fd = fd, .events = POLLIN };
    int rc;

    do
        rc = poll(&poller, 1, timeout_ms);
    while (rc < 0 && errno == EINTR);
    return rc == 1 && (poller.revents & POLLIN) != 0;
}

/* After the work, the descriptor falls silent: a loop would spin otherwise. */
static void check_falls_silent(struct weir_queue *queue, int fd)
{
    for (int i = 0; i < 1000; i++) {
        if (!poll_readable(fd, 0))
            return;
        check(weir_queue_run(queue) >= 0);
    }
    fail_msg("the descriptor stays readable with nothing to do");
}

/* --- one job at a time: where wake-ups are missed -------------------------------------- */

/* Depth 1, every kind of job in turn, staged outside of done: each makes the descriptor
 * readable twice, to be handed over and to be finished. */
static void loop__depth_one(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 0);
    int fd = weir_queue_fd(env->queue);
    struct probe probe;
    uint8_t buf[512];
    struct weir_stat stat;

    check(fd >= 0);
    check_falls_silent(env->queue, fd);
    for (unsigned i = 0; i < 3000; i++) {
        switch (i % 7) {
        case 0:
            weir_job_read(&probe.job, file, buf, 512, i * 8, NULL, NULL);
            break;
        case 1:
            weir_job_write(&probe.job, file, buf, 512, 0, NULL, NULL);
            break;
        case 2:
            weir_job_prepare(&probe.job, WEIR_OP_STAT, file, NULL, NULL);
            probe.job.buf = &stat;
            break;
        case 3:
            weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
            break;
        case 4:
            weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
            probe.job.timeout_ns = 1 + i * 100;
            break;
        case 5:
            weir_job_sync(&probe.job, file, WEIR_SYNC_DATA, NULL, NULL);
            probe.job.flags = WEIR_JOB_BARRIER;
            if (i % 70 != 5) /* syncs are slow */
                weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
            break;
        default:
            weir_job_read(&probe.job, file, buf, 512, FILE_SIZE - 100, NULL, NULL);
            break;
        }
        if (i % 11 == 10) {
            probe_arm(&probe);
            check_code(weir_queue_post(env->queue, &probe.job), 0);
        } else {
            probe_submit(env->queue, &probe);
        }
        while (probe.done == 0) {
            if (!poll_readable(fd, POLL_MS))
                fail_msg("missed a wake-up at job %u, a %s", i, weir_op_name(probe.job.op));
            check(weir_queue_run(env->queue) >= 0);
        }
        check(probe.done == 1);
        check(probe.result >= 0);
    }
    check_falls_silent(env->queue, fd);
    check_code(weir_file_close(file), 0);
}

/* --- the mixture ---------------------------------------------------------------------------- */

enum {
    SLOTS = 96,
    TOTAL = 100000,
    POSTERS = 2,
    POSTS = 5000
};

struct slot {
    struct weir_job job;
    struct mixture *mixture;
    uint8_t *buf;
    unsigned taken;
    unsigned done;
    bool busy;
};

struct mixture {
    struct env *env;
    struct weir_queue *queue;
    struct weir_file *file;
    struct weir_file *direct; /* may be NULL */
    struct test_rng rng;
    struct slot slots[SLOTS];
    unsigned submitted;
    unsigned finished;
    unsigned wrong;
    char first_wrong[200];
    /* Atomic, for the posters. */
    unsigned posts_done;
};

static void note_wrong(struct mixture *mixture, const struct weir_job *job)
{
    if (mixture->wrong++ == 0)
        (void)snprintf(mixture->first_wrong, sizeof(mixture->first_wrong),
                       "%s at %llu for %zu: %lld", weir_op_name(job->op),
                       (unsigned long long)job->offset, job->len, (long long)job->result);
}

static int64_t answer(void *context)
{
    (void)context;
    return 42;
}

static void mixture_done(struct weir_job *job);

static void mixture_prepare(struct mixture *mixture, struct slot *slot)
{
    struct weir_job *job = &slot->job;
    uint64_t dice = rng_below(&mixture->rng, 1000);

    if (dice < 450 || mixture->direct == NULL) {
        size_t len = 1 + rng_below(&mixture->rng, 2000);

        weir_job_read(job, mixture->file, slot->buf, len,
                      rng_below(&mixture->rng, FILE_SIZE - len), mixture_done, slot);
        if (dice % 3 == 0)
            job->timeout_ns = TEST_LONG;
    } else if (dice < 650) {
        weir_job_read(job, mixture->direct, slot->buf, DIRECT_SIZE,
                      rng_below(&mixture->rng, FILE_SIZE / DIRECT_SIZE) * DIRECT_SIZE,
                      mixture_done, slot);
    } else if (dice < 653) {
        weir_job_sync(job, mixture->file, WEIR_SYNC_DATA, mixture_done, slot);
    } else if (dice < 750) {
        weir_job_prepare(job, WEIR_OP_STAT, mixture->file, mixture_done, slot);
        job->buf = slot->buf;
    } else if (dice < 830) {
        weir_job_call(job, (uint32_t)(dice % WEIR_LANES), answer, NULL, mixture_done, slot);
    } else if (dice < 900) {
        weir_job_prepare(job, WEIR_OP_NOP, NULL, mixture_done, slot);
        job->timeout_ns = 1 + rng_below(&mixture->rng, 3 * TEST_MS);
    } else {
        weir_job_prepare(job, WEIR_OP_NOP, NULL, mixture_done, slot);
    }
}

static void mixture_submit(struct mixture *mixture, struct slot *slot)
{
    struct weir_job *job = &slot->job;

    mixture_prepare(mixture, slot);
    slot->busy = true;
    slot->taken++;
    mixture->submitted++;
    if (weir_queue_submit(mixture->queue, &job, 1) != 1) {
        slot->busy = false;
        mixture->finished++;
        note_wrong(mixture, job);
    }
}

static void mixture_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct mixture *mixture = slot->mixture;
    bool moves = mixture->env->backend != WEIR_BACKEND_NULL;

    slot->done++;
    mixture->finished++;
    if (!slot->busy || slot->done != slot->taken)
        note_wrong(mixture, job);
    slot->busy = false;
    if (job->op == WEIR_OP_READ) {
        if (job->result != (int64_t)job->len ||
            (moves && pattern_find_wrong(job->buf, job->len, SEED, job->offset) >= 0))
            note_wrong(mixture, job);
    } else if (job->result != (job->op == WEIR_OP_CALL ? 42 : 0)) {
        note_wrong(mixture, job);
    }
    /* Half go on from here; the others wait for the loop to submit them. */
    if (mixture->submitted < TOTAL && rng_below(&mixture->rng, 2) == 0)
        mixture_submit(mixture, slot);
}

struct poster {
    struct mixture *mixture;
    struct weir_job jobs[16];
    unsigned in_flight[16]; /* atomic: 1 while posted */
    unsigned failed;
};

static void post_done(struct weir_job *job)
{
    struct poster *poster = job->arg;
    size_t index = (size_t)(job - poster->jobs);

    (void)__atomic_add_fetch(&poster->mixture->posts_done, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&poster->in_flight[index], 0, __ATOMIC_RELEASE);
}

static void *post_many(void *arg)
{
    struct poster *poster = arg;

    for (unsigned i = 0; i < POSTS; i++) {
        size_t index = i % 16;
        int rc;

        while (__atomic_load_n(&poster->in_flight[index], __ATOMIC_ACQUIRE) != 0)
            (void)sched_yield();
        weir_job_prepare(&poster->jobs[index], WEIR_OP_NOP, NULL, post_done, poster);
        if (i % 3 == 0)
            poster->jobs[index].timeout_ns = 1 + i * 50;
        __atomic_store_n(&poster->in_flight[index], 1, __ATOMIC_RELAXED);
        while ((rc = weir_queue_post(poster->mixture->queue, &poster->jobs[index])) == -EBUSY)
            (void)sched_yield();
        if (rc != 0)
            poster->failed++;
    }
    return NULL;
}

/* 100,000 jobs of all kinds and 10,000 posts, by a loop that sleeps on the descriptor. */
static void loop__no_missed_wake_ups(struct env *env)
{
    struct mixture *mixture = calloc(1, sizeof(*mixture));
    struct poster *posters = calloc(POSTERS, sizeof(*posters));
    pthread_t threads[POSTERS];
    struct weir_stats stats = { .size = sizeof(stats) };
    int fd = weir_queue_fd(env->queue);
    unsigned runs = 0;

    check(fd >= 0);
    mixture->env = env;
    mixture->queue = env->queue;
    mixture->rng.state = test_seed();
    mixture->file = make_file(env->engine, 0);
    mixture->direct = make_file(env->engine, WEIR_OPEN_DIRECT);
    for (size_t i = 0; i < SLOTS; i++) {
        mixture->slots[i].mixture = mixture;
        mixture->slots[i].buf = aligned_alloc(4096, DIRECT_SIZE);
    }
    for (size_t i = 0; i < POSTERS; i++) {
        posters[i].mixture = mixture;
        check_code(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    while (mixture->finished < TOTAL ||
           __atomic_load_n(&mixture->posts_done, __ATOMIC_RELAXED) < POSTERS * POSTS) {
        /* Something is always under way: what is not in flight is staged here. */
        for (size_t i = 0; i < SLOTS && mixture->submitted < TOTAL; i++) {
            if (!mixture->slots[i].busy)
                mixture_submit(mixture, &mixture->slots[i]);
        }
        if (!poll_readable(fd, POLL_MS))
            fail_msg("missed a wake-up after %u of %u jobs and %u posts", mixture->finished,
                     mixture->submitted, mixture->posts_done);
        check(weir_queue_run(env->queue) >= 0);
        runs++;
    }
    for (size_t i = 0; i < POSTERS; i++) {
        (void)pthread_join(threads[i], NULL);
        check(posters[i].failed == 0);
    }
    if (mixture->wrong > 0)
        fail_msg("%u wrong, first %s", mixture->wrong, mixture->first_wrong);
    check(mixture->submitted == TOTAL && mixture->finished == TOTAL);
    for (size_t i = 0; i < SLOTS; i++)
        check(mixture->slots[i].done == mixture->slots[i].taken);
    check_falls_silent(env->queue, fd);
    check_code(weir_engine_stats(env->engine, &stats), 0);
    check_code(stats.posted, POSTERS * POSTS);
    check(stats.turns >= runs);

    check_code(weir_file_close(mixture->file), 0);
    if (mixture->direct != NULL)
        check_code(weir_file_close(mixture->direct), 0);
    for (size_t i = 0; i < SLOTS; i++)
        free(mixture->slots[i].buf);
    free(mixture);
    free(posters);
}

/* Asking for the descriptor with work already taken, staged or at the device, misses none. */
static void loop__descriptor_asked_for_late(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 0);
    struct weir_file *direct = make_file(env->engine, WEIR_OPEN_DIRECT);
    uint8_t *buf = aligned_alloc(4096, 4096);

    for (unsigned round = 0; round < 200; round++) {
        struct probe probe;
        int fd;

        if (round % 4 == 0 && direct != NULL) {
            weir_job_read(&probe.job, direct, buf, 4096, round % 64 * 4096, NULL, NULL);
        } else if (round % 4 == 1) {
            weir_job_prepare(&probe.job, WEIR_OP_STAT, file, NULL, NULL);
            probe.job.buf = buf;
        } else if (round % 4 == 2) {
            weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
            probe.job.timeout_ns = TEST_MS;
        } else {
            weir_job_read(&probe.job, file, buf, 4096, 0, NULL, NULL);
        }
        if (round % 12 < 4) {
            probe_arm(&probe);
            check_code(weir_queue_post(env->queue, &probe.job), 0);
        } else {
            probe_submit(env->queue, &probe);
        }
        if (round % 3 == 0)
            check(weir_queue_run(env->queue) >= 0);
        fd = weir_queue_fd(env->queue);
        check(fd >= 0);
        while (probe.done == 0) {
            if (!poll_readable(fd, POLL_MS))
                fail_msg("missed a wake-up in round %u, a %s", round,
                         weir_op_name(probe.job.op));
            check(weir_queue_run(env->queue) >= 0);
        }
        check(probe.result >= 0);
        check_code(weir_queue_rebind(env->queue), 0); /* gives the descriptor up */
    }
    check_code(weir_file_close(file), 0);
    if (direct != NULL)
        check_code(weir_file_close(direct), 0);
    free(buf);
}

/* Waiting and running may be mixed on a queue that has a descriptor. */
static void loop__mixes_with_wait(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 0);
    int fd = weir_queue_fd(env->queue);
    struct probe probes[4];
    uint8_t buf[4][512];
    struct test_rng rng = { test_seed() };

    check(fd >= 0);
    for (unsigned round = 0; round < 1000; round++) {
        for (size_t i = 0; i < 4; i++) {
            if (rng_below(&rng, 4) == 0) {
                weir_job_prepare(&probes[i].job, WEIR_OP_FDATASYNC, file, NULL, NULL);
                if (round % 10 != 0) {
                    weir_job_prepare(&probes[i].job, WEIR_OP_NOP, NULL, NULL, NULL);
                    probes[i].job.timeout_ns = rng_below(&rng, TEST_MS);
                }
            } else {
                weir_job_read(&probes[i].job, file, buf[i], 512, i * 512, NULL, NULL);
            }
            probe_submit(env->queue, &probes[i]);
        }
        if (round % 2 == 0)
            (void)probe_wait(env->queue, &probes[rng_below(&rng, 4)]);
        for (size_t i = 0; i < 4; i++) {
            while (probes[i].done == 0) {
                if (!poll_readable(fd, POLL_MS))
                    fail_msg("missed a wake-up in round %u", round);
                check(weir_queue_run(env->queue) >= 0);
            }
            check(probes[i].result >= 0);
        }
    }
    check_falls_silent(env->queue, fd);
    check_code(weir_file_close(file), 0);
}

/* A retry's back-off and a deadline at the device make the descriptor readable in time. */
static void loop__timers_inside(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe probe;
    uint8_t buf[512];
    int fd;

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 0);
    fd = weir_queue_fd(f.queue);
    check(fd >= 0);
    for (int what = 0; what < 3; what++) {
        switch (what) {
        case 0: /* retries */
            faulty_rule(&f,
                        (struct wi_fault_rule){
                            .kind = WI_FAULT_READ, .first = 1, .count = 6, .error = -EAGAIN });
            break;
        case 1: /* a device that takes its time */
            faulty_rule(&f, (struct wi_fault_rule){ .kind = WI_FAULT_READ,
                                                    .first = 1,
                                                    .count = 1,
                                                    .delay_ns = 3 * TEST_MS });
            break;
        default: /* one that hangs until it is cancelled */
            faulty_hang(&f, WI_FAULT_READ, 1, true);
            break;
        }
        weir_job_read(&probe.job, file, buf, 512, 0, NULL, NULL);
        if (what == 2)
            probe.job.timeout_ns = 2 * TEST_MS;
        probe_submit(f.queue, &probe);
        while (probe.done == 0) {
            if (!poll_readable(fd, POLL_MS))
                fail_msg("missed a wake-up, case %d", what);
            check(weir_queue_run(f.queue) >= 0);
        }
        check_code(probe.result, what == 2 ? -ETIMEDOUT : 512);
    }
    check_falls_silent(f.queue, fd);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* --- posts ------------------------------------------------------------------------------------- */

enum {
    MANY = 8,
    EACH = 4000
};

struct shared {
    struct weir_queue *queue;
    struct weir_file *file;
    pthread_t owner;
    unsigned done; /* owner's */
    unsigned wrong;
    bool moves;
};

struct posted {
    struct weir_job job;
    struct shared *shared;
    unsigned done;
    uint8_t buf[64];
};

struct many_poster {
    struct shared *shared;
    struct posted *jobs;
    unsigned failed;
};

static void posted_done(struct weir_job *job)
{
    struct posted *posted = job->arg;
    struct shared *shared = posted->shared;

    posted->done++;
    shared->done++;
    if (pthread_equal(pthread_self(), shared->owner) == 0)
        shared->wrong++;
    if (job->op == WEIR_OP_READ &&
        (job->result != 64 ||
         (shared->moves && pattern_find_wrong(posted->buf, 64, SEED, job->offset) >= 0)))
        shared->wrong++;
    if (job->op == WEIR_OP_NOP && job->result != 0)
        shared->wrong++;
    if (job->op == WEIR_OP_CANCEL && job->result != -ENOENT)
        shared->wrong++;
}

static void *post_each(void *arg)
{
    struct many_poster *poster = arg;

    for (unsigned i = 0; i < EACH; i++) {
        struct posted *posted = &poster->jobs[i];
        int rc;

        posted->shared = poster->shared;
        if (i % 3 == 0)
            weir_job_read(&posted->job, poster->shared->file, posted->buf, 64, i * 8,
                          posted_done, posted);
        else if (i % 50 == 1)
            weir_job_prepare(&posted->job, WEIR_OP_CANCEL, NULL, posted_done, posted);
        else
            weir_job_prepare(&posted->job, WEIR_OP_NOP, NULL, posted_done, posted);
        if (i % 40 == 2 && posted->job.op == WEIR_OP_NOP)
            posted->job.timeout_ns = 1000;
        while ((rc = weir_queue_post(poster->shared->queue, &posted->job)) == -EBUSY)
            (void)sched_yield();
        if (rc != 0)
            poster->failed++;
    }
    return NULL;
}

/* Eight threads post; the owner waits, sometimes with little room. All are done once. */
static void post__from_eight_threads(struct env *env)
{
    for (int small = 0; small < 2; small++) {
        struct weir_queue_options options = { .size = sizeof(options),
                                              .depth = small ? 2 : 0,
                                              .backlog = small ? 8 : 0 };
        struct shared shared = { .file = make_file(env->engine, 0),
                                 .owner = pthread_self(),
                                 .moves = env->backend != WEIR_BACKEND_NULL };
        struct many_poster posters[MANY];
        pthread_t threads[MANY];

        check_code(weir_queue_open(env->engine, &options, &shared.queue), 0);
        check_code(weir_queue_run(shared.queue), 0);
        for (size_t i = 0; i < MANY; i++) {
            posters[i] = (struct many_poster){ .shared = &shared,
                                               .jobs = calloc(EACH, sizeof(struct posted)) };
            check_code(pthread_create(&threads[i], NULL, post_each, &posters[i]), 0);
        }
        while (shared.done < MANY * EACH) {
            int rc = weir_queue_wait(shared.queue, 1, TEST_LONG);

            if (rc <= 0)
                fail_msg("wait returned %s with %u of %u posts done", weir_code_name(rc),
                         shared.done, MANY * EACH);
        }
        for (size_t i = 0; i < MANY; i++) {
            (void)pthread_join(threads[i], NULL);
            check(posters[i].failed == 0);
            for (size_t j = 0; j < EACH; j++)
                check(posters[i].jobs[j].done == 1);
            free(posters[i].jobs);
        }
        check(shared.wrong == 0);
        check_code(weir_queue_close(shared.queue, TEST_LONG), 0);
        check_code(weir_file_close(shared.file), 0);
    }
}

/* Posts to a queue that its owner has not used yet are done when it is. */
static void post__before_there_is_an_owner(struct env *env)
{
    struct probe probes[10];

    for (size_t i = 0; i < 10; i++) {
        weir_job_prepare(&probes[i].job, WEIR_OP_NOP, NULL, NULL, NULL);
        probe_arm(&probes[i]);
        check_code(weir_queue_post(env->queue, &probes[i].job), 0);
    }
    for (size_t i = 0; i < 10; i++)
        check(probes[i].done == 0);
    probes_wait(env->queue, probes, 10);
}

/* A full queue refuses posts as it refuses submits, and takes them again afterwards. */
static void post__full_is_ebusy(struct env *env)
{
    enum {
        ROOM = 6,
        ALL = 40
    };
    struct weir_queue_options options = { .size = sizeof(options),
                                          .depth = 2,
                                          .backlog = ROOM - 2 };
    struct weir_queue *queue;
    struct probe probes[ALL];
    size_t taken = 0;

    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    for (int round = 0; round < 3; round++) {
        int rc = 0;

        for (size_t i = 0; i < ALL; i++) {
            weir_job_prepare(&probes[i].job, WEIR_OP_NOP, NULL, NULL, NULL);
            probe_arm(&probes[i]);
        }
        for (taken = 0; taken < ALL; taken++) {
            rc = weir_queue_post(queue, &probes[taken].job);
            if (rc != 0)
                break;
        }
        check_code(rc, -EBUSY);
        check(taken >= ROOM && taken < ALL);
        probes_wait(queue, probes, taken);
        for (size_t i = taken; i < ALL; i++)
            check(probes[i].done == 0);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
}

/* A posted job holds its file as a submitted one does, from the post on. */
static void post__holds_its_file(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 0);
    struct probe probe;
    uint8_t buf[64];

    weir_job_read(&probe.job, file, buf, 64, 0, NULL, NULL);
    probe_arm(&probe);
    check_code(weir_queue_post(env->queue, &probe.job), 0);
    check_code(weir_file_close(file), -EBUSY);
    check_code(probe_wait(env->queue, &probe), 64);
    check_code(weir_file_close(file), 0);
}

struct closing_poster {
    struct weir_queue *queue;
    struct probe *probes;
    unsigned posted;
    unsigned failed;
    unsigned *started; /* atomic */
};

enum {
    CLOSING_MOST = 20000
};

static void *post_until_shutdown(void *arg)
{
    struct closing_poster *poster = arg;

    (void)__atomic_add_fetch(poster->started, 1, __ATOMIC_RELEASE);
    while (poster->posted < CLOSING_MOST) {
        struct probe *probe = &poster->probes[poster->posted];
        int rc;

        weir_job_prepare(&probe->job, WEIR_OP_NOP, NULL, NULL, NULL);
        probe_arm(probe);
        rc = weir_queue_post(poster->queue, &probe->job);
        if (rc == -ESHUTDOWN)
            break;
        if (rc == 0)
            poster->posted++;
        else if (rc == -EBUSY)
            (void)sched_yield();
        else
            poster->failed++;
    }
    return NULL;
}

/* Posts that race with a close are done, or refused with -ESHUTDOWN: never lost. */
static void post__while_closing(struct env *env)
{
    for (int round = 0; round < 10; round++) {
        struct closing_poster posters[4];
        pthread_t threads[4];
        unsigned started = 0;
        struct faulty f;
        struct weir_file *file;
        struct probe hanging;
        uint8_t buf[64];

        faulty_open(&f, env->backend, 0, 0, NULL);
        file = make_file(f.engine, 0);
        faulty_hang(&f, WI_FAULT_READ, 1, false); /* so that the close cannot finish */
        weir_job_read(&hanging.job, file, buf, 64, 0, NULL, NULL);
        probe_submit(f.queue, &hanging);
        check_code(weir_queue_run(f.queue), 0);
        for (size_t i = 0; i < 4; i++) {
            posters[i] = (struct closing_poster){
                .queue = f.queue,
                .probes = calloc(CLOSING_MOST, sizeof(struct probe)),
                .started = &started,
            };
            check_code(pthread_create(&threads[i], NULL, post_until_shutdown, &posters[i]), 0);
        }
        while (__atomic_load_n(&started, __ATOMIC_ACQUIRE) < 4)
            (void)sched_yield();
        for (int i = 0; i < round * 10; i++)
            check(weir_queue_run(f.queue) >= 0);
        check_code(weir_queue_close(f.queue, TEST_MS), -EBUSY);
        for (size_t i = 0; i < 4; i++)
            (void)pthread_join(threads[i], NULL);
        faulty_release(&f);
        check_code(weir_queue_close(f.queue, TEST_LONG), 0);
        f.queue = NULL;
        check(hanging.done == 1);
        for (size_t i = 0; i < 4; i++) {
            check(posters[i].failed == 0);
            for (unsigned j = 0; j < posters[i].posted; j++) {
                check(posters[i].probes[j].done == 1);
                if (posters[i].probes[j].result != 0)
                    check_code(posters[i].probes[j].result, -ECANCELED);
            }
            free(posters[i].probes);
        }
        check_code(weir_file_close(file), 0);
        faulty_close(&f);
    }
}

/* --- what completions make room for -------------------------------------------------- */

/* Sleep on the descriptor until all of them are done. */
static void loop_until_done(struct weir_queue *queue, int fd, struct probe *probes,
                            size_t count)
{
    for (size_t i = 0; i < count; i++) {
        while (probes[i].done == 0) {
            if (!poll_readable(fd, POLL_MS))
                fail_msg("missed a wake-up with %zu of %zu looked at", i, count);
            check(weir_queue_run(queue) >= 0);
        }
        check(probes[i].done == 1);
    }
    check_falls_silent(queue, fd);
}

static struct weir_queue *open_queue(struct env *env, const struct weir_queue_options *options)
{
    struct weir_queue_options all = *options;
    struct weir_queue *queue;

    all.size = sizeof(all);
    check_code(weir_queue_open(env->engine, &all, &queue), 0);
    return queue;
}

/* More ranges than are merged at once, too far apart to be merged at all. */
static void loop__read_many_of_scattered_ranges(struct env *env)
{
    enum {
        RANGES = 100
    };
    struct weir_file *file = make_file(env->engine, 0);
    struct weir_range ranges[RANGES];
    uint8_t *buf = malloc(RANGES * 16);
    int fd = weir_queue_fd(env->queue);
    struct probe probe;

    check(file != NULL && buf != NULL && fd >= 0);
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < RANGES; i++)
            ranges[i] = (struct weir_range){ .buf = buf + (size_t)i * 16,
                                             .len = 16,
                                             .offset = (uint64_t)i * 2500 };
        weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, file, NULL, NULL);
        probe.job.buf = ranges;
        probe.job.len = RANGES;
        probe.job.io_class = (uint8_t)(round % WEIR_CLASSES);
        probe_submit(env->queue, &probe);
        loop_until_done(env->queue, fd, &probe, 1);
        check_code(probe.result, RANGES * 16);
        for (uint32_t i = 0; i < RANGES && env->backend != WEIR_BACKEND_NULL; i++)
            check_pattern(ranges[i].buf, 16, SEED, ranges[i].offset);
    }
    free(buf);
    check_code(weir_file_close(file), 0);
}

/* Of each kind of room that a queue can be short of: bytes, operations, and that for work which
 * gives way. Only a completion makes some, in the very turn that finds nothing else to do. */
static void loop__room_at_the_device(struct env *env)
{
    enum {
        JOBS = 64
    };
    static const struct {
        struct weir_queue_options options;
        bool mixed; /* of all classes: some of it gives way to the rest */
    } kinds[] = {
        { { .device_bytes = 64 * KIB, .flags = WEIR_QUEUE_NO_MERGE }, false },
        { { .device_bytes = 64 * KIB }, true },
        { { .depth = 4, .flags = WEIR_QUEUE_NO_MERGE }, true },
        { { .depth = 1 }, true },
        { { .flags = WEIR_QUEUE_NO_MERGE }, true },
    };
    uint8_t *buf = calloc(1, 64 * KIB);
    struct probe *probes = calloc(JOBS, sizeof(*probes));
    struct weir_file *file = make_file(env->engine, 0);

    check(buf != NULL && probes != NULL && file != NULL);
    for (size_t k = 0; k < COUNT(kinds); k++) {
        struct weir_queue *queue = open_queue(env, &kinds[k].options);
        int fd = weir_queue_fd(queue);

        check(fd >= 0);
        for (int round = 0; round < 3; round++) {
            for (uint32_t i = 0; i < JOBS; i++) {
                weir_job_write(&probes[i].job, file, buf, 64 * KIB, (uint64_t)i * 128 * KIB,
                               NULL, NULL);
                if (kinds[k].mixed && i > 0 && round < 2)
                    probes[i].job.io_class =
                        round == 0 ? WEIR_CLASS_BACKGROUND : (uint8_t)(i % WEIR_CLASSES);
                probe_submit(queue, &probes[i]);
            }
            loop_until_done(queue, fd, probes, JOBS);
            for (uint32_t i = 0; i < JOBS; i++)
                check_code(probes[i].result, 64 * KIB);
        }
        check_code(weir_queue_close(queue, TEST_LONG), 0);
    }
    check_code(weir_file_close(file), 0);
    free(buf);
    free(probes);
}

/* --- what is read for the block cache ------------------------------------------------ */

/* An engine with a cache, and a queue in it, beside those of the case. */
struct cached {
    struct weir_engine *engine;
    struct weir_queue *queue;
    int fd;
};

static void cached_open(struct cached *cached, const struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .cache_bytes = 16 * MIB };

    check_code(weir_engine_open(&options, &cached->engine, NULL), 0);
    check_code(weir_queue_open(cached->engine, NULL, &cached->queue), 0);
    cached->fd = weir_queue_fd(cached->queue);
    check(cached->fd >= 0);
}

static void cached_close(struct cached *cached)
{
    check_code(weir_queue_close(cached->queue, TEST_LONG), 0);
    check_code(weir_engine_close(cached->engine), 0);
}

/* In memory, where no file system can be told to leave its page cache alone. */
static void cached__loads_at_once_where_nothing_may_be_kept_out(struct env *env)
{
    enum {
        READS = 4
    };
    const char *dir = test_memory_dir();
    struct probe probes[READS];
    uint8_t bufs[READS][4096];
    struct weir_file *file;
    struct cached cached;
    char path[600];

    if (dir == NULL) {
        env->skipped = "no file system in memory";
        return;
    }
    (void)snprintf(path, sizeof(path), "%s/cached", dir);
    pattern_make_file(path, 4 * MIB, SEED);
    cached_open(&cached, env);
    check_code(weir_file_open(cached.engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_CACHED, 0,
                              &file, NULL),
               0);
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    for (uint32_t i = 0; i < READS; i++) {
        weir_job_read(&probes[i].job, file, bufs[i], sizeof(bufs[i]),
                      (uint64_t)(i * 7 + 3) * 128 * KIB, NULL, NULL);
        probe_submit(cached.queue, &probes[i]);
    }
    loop_until_done(cached.queue, cached.fd, probes, READS);
    for (uint32_t i = 0; i < READS; i++) {
        check_code(probes[i].result, sizeof(bufs[i]));
        check_pattern(bufs[i], sizeof(bufs[i]), SEED, probes[i].job.offset);
    }
    check_code(weir_file_close(file), 0);
    cached_close(&cached);
    (void)unlink(path);
}

static void use_file(struct cached *cached, struct weir_file *file, uint8_t *buf,
                     uint32_t times)
{
    for (uint32_t i = 0; i < times; i++) {
        struct probe probe;

        weir_job_write(&probe.job, file, buf, 4096, 0, NULL, NULL);
        check_code(probe_run(cached->queue, &probe), 4096);
    }
}

/*
 * A ring has 64 places for files that are used often; the 65th takes one of a file with nothing
 * under way. What the cache has staged to load, in the same turn, is under way.
 */
static void cached__a_load_keeps_its_file(struct env *env)
{
    enum {
        OTHERS = 64, /* places in a ring */
        OFTEN = 8    /* uses that are worth one */
    };
    struct weir_file *others[OTHERS];
    uint8_t *buf = aligned_alloc(4096, 64 * KIB);
    const char *path = test_new_path("loop");
    struct weir_job *jobs[2];
    struct probe probes[2];
    struct cached cached;
    struct weir_file *file;
    int rc;

    check(buf != NULL);
    pattern_make_file(path, 4 * MIB, SEED);
    cached_open(&cached, env);
    rc = weir_file_open(cached.engine, NULL, path,
                        WEIR_OPEN_READ | WEIR_OPEN_CACHED | WEIR_OPEN_DIRECT, 0, &file, NULL);
    if (rc < 0) {
        env->skipped = "no direct files here";
        cached_close(&cached);
        free(buf);
        return;
    }
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    for (uint32_t i = 0; i < OFTEN + 4; i++) {
        weir_job_read(&probes[0].job, file, buf, 4096, (uint64_t)i * 128 * KIB, NULL, NULL);
        check_code(probe_run(cached.queue, &probes[0]), 4096);
    }
    memset(buf, 'b', 64 * KIB);
    for (uint32_t i = 0; i < OTHERS; i++) {
        const char *other = test_new_path("loop");

        pattern_make_file(other, 4 * MIB, SEED + 1);
        check_code(weir_file_open(cached.engine, NULL, other, WEIR_OPEN_READ | WEIR_OPEN_WRITE,
                                  0, &others[i], NULL),
                   0);
        check_code(unlink(other), 0);
        use_file(&cached, others[i], buf, i + 1 < OTHERS ? OFTEN : OFTEN - 1);
    }

    weir_job_prepare(&probes[0].job, WEIR_OP_ADVISE, file, NULL, NULL);
    probes[0].job.mode = WEIR_ADVICE_WILLNEED;
    probes[0].job.offset = 40 * 64 * KIB;
    probes[0].job.len = 64 * KIB;
    weir_job_write(&probes[1].job, others[OTHERS - 1], buf, 4096, 0, NULL, NULL);
    probes[1].job.io_class = WEIR_CLASS_BACKGROUND; /* after the load */
    for (int i = 0; i < 2; i++) {
        probe_arm(&probes[i]);
        jobs[i] = &probes[i].job;
    }
    check_code(weir_queue_submit(cached.queue, jobs, 2), 2);
    for (int i = 0; i < 2; i++)
        check(probe_wait(cached.queue, &probes[i]) >= 0);
    check_code(probes[0].result, 64 * KIB);

    weir_job_read(&probes[0].job, file, buf, 64 * KIB, 40 * 64 * KIB, NULL, NULL);
    check_code(probe_run(cached.queue, &probes[0]), 64 * KIB);
    check_pattern(buf, 64 * KIB, SEED, 40 * 64 * KIB);
    for (uint32_t i = 0; i < OTHERS; i++)
        check_code(weir_file_close(others[i]), 0);
    check_code(weir_file_close(file), 0);
    cached_close(&cached);
    free(buf);
}

static const struct test_case cases[] = {
    CASE(loop__depth_one, 0),
    CASE(loop__no_missed_wake_ups, 0),
    CASE(loop__descriptor_asked_for_late, 0),
    CASE(loop__mixes_with_wait, 0),
    CASE(loop__timers_inside, 0),
    CASE(post__from_eight_threads, 0),
    CASE(post__before_there_is_an_owner, 0),
    CASE(post__full_is_ebusy, 0),
    CASE(post__holds_its_file, 0),
    CASE(post__while_closing, 0),
    CASE(loop__read_many_of_scattered_ranges, 0),
    CASE(loop__room_at_the_device, 0),
    CASE(cached__loads_at_once_where_nothing_may_be_kept_out, CASE_BYTES),
    CASE(cached__a_load_keeps_its_file, CASE_BYTES),
};

int main(int argc, char **argv)
{
    return run_cases("loop", cases, COUNT(cases), argc, argv);
}
