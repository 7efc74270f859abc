/* SPDX-License-Identifier: MIT */
/*
 * test_storm.c - a million jobs in disorder: each `done` runs exactly once
 *
 * Two owners, each with a queue after the other, and two posters, on the null backend with a
 * script of random delays, errors and operations that hang until they are cancelled. Jobs
 * of all kinds, with and without time limits, are submitted from loops and from inside
 * `done`, posted from everywhere, cancelled by id, by job, and late; queues are run, waited
 * on, watched through their descriptor, moved, and closed with all of that in the air.
 *
 * A job belongs to a slot, which is FREE or TAKEN; taking and finishing are exchanges, so a
 * `done` too many shows at once and one too few shows when a queue has closed and a slot of
 * it is still TAKEN. Statistics have to come to the same sums.
 *
 *   WEIR_SEED         what happens; threads still interleave as they like
 *   WEIR_STORM_JOBS   how many jobs in all, 1,000,000
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/support.h"

#include "engine/engine.h"

enum {
    OWNERS = 2,
    POSTERS = 2,
    SLOTS = 300,
    POSTER_SLOTS = 60,
    FILES = 3,
    BUFFER = 8192
};

enum slot_state {
    SLOT_FREE,
    SLOT_TAKEN
};

struct owner;

struct slot {
    struct weir_job *job; /* made anew for each use, freed in done: sanitizers watch */
    struct storm *storm;
    unsigned state; /* atomic: enum slot_state */
    uint64_t id;    /* of the last use; atomic */
    uint64_t taken_ns;
    struct iovec iov[4];
    struct weir_error error;
    uint8_t *buf;
};

struct owner {
    struct storm *storm;
    struct test_rng rng;
    pthread_rwlock_t lock;    /* read: somebody posts; write: it opens or closes */
    struct weir_queue *queue; /* guarded by lock for others */
    struct slot slots[SLOTS];
    uint64_t budget; /* jobs still to submit in this round */
    bool closing;
};

struct poster {
    struct storm *storm;
    struct test_rng rng;
    struct slot slots[POSTER_SLOTS];
};

struct storm {
    struct weir_engine *engine;
    struct weir_file *files[FILES];
    struct owner owners[OWNERS];
    struct poster posters[POSTERS];
    uint64_t left;           /* atomic: jobs still to be taken in this round */
    uint64_t taken;          /* atomic, by this round */
    uint64_t done;           /* atomic */
    unsigned owners_running; /* atomic */
    unsigned wrong;          /* atomic */
    char first_wrong[240];
};

/* What happened, over all rounds, to show that it was a storm. */
static struct {
    uint64_t cancelled, expired, failed, finished, posted, closes, busy_closes, moves;
} tally;

__attribute__((format(printf, 2, 3))) static void complain(struct storm *storm,
                                                           const char *format, ...)
{
    va_list arguments;

    if (__atomic_fetch_add(&storm->wrong, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    va_start(arguments, format);
    (void)vsnprintf(storm->first_wrong, sizeof(storm->first_wrong), format, arguments);
    va_end(arguments);
}

static void count(uint64_t *counter)
{
    (void)__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
}

/* --- making jobs ------------------------------------------------------------------------ */

static void on_done(struct weir_job *job);

static int64_t compute(void *context)
{
    return context == NULL ? -1 : 5;
}

/* Any id that somebody has or had, or one out of thin air. */
static uint64_t some_id(struct storm *storm, struct test_rng *rng)
{
    uint64_t dice = rng_below(rng, 20);
    struct owner *owner = &storm->owners[rng_below(rng, OWNERS)];

    if (dice == 0)
        return rng_next(rng);
    if (dice < 4)
        return __atomic_load_n(
            &storm->posters[rng_below(rng, POSTERS)].slots[rng_below(rng, POSTER_SLOTS)].id,
            __ATOMIC_RELAXED);
    return __atomic_load_n(&owner->slots[rng_below(rng, SLOTS)].id, __ATOMIC_RELAXED);
}

static void prepare(struct slot *slot, struct test_rng *rng)
{
    struct storm *storm = slot->storm;
    struct weir_job *job = malloc(sizeof(*job));
    struct weir_file *file = storm->files[rng_below(rng, FILES)];
    uint64_t dice = rng_below(rng, 1000);
    uint64_t offset = rng_below(rng, 64) * 1024;
    size_t len = rng_below(rng, 50) == 0 ? 0 : 1 + rng_below(rng, BUFFER);

    slot->job = job;
    memset(job, 0xcd, sizeof(*job)); /* whatever was there must not matter */
    if (dice < 300) {
        weir_job_read(job, file, slot->buf, len, offset, on_done, slot);
        if (dice < 40)
            job->flags = WEIR_JOB_AFTER_WRITES;
    } else if (dice < 500) {
        weir_job_write(job, file, slot->buf, len, offset, on_done, slot);
    } else if (dice < 600) {
        size_t parts = rng_below(rng, 5);

        for (size_t i = 0; i < parts; i++)
            slot->iov[i] = (struct iovec){ slot->buf, rng_below(rng, BUFFER / 2) };
        if (dice % 2 == 0)
            weir_job_readv(job, file, slot->iov, parts, offset, on_done, slot);
        else
            weir_job_writev(job, file, slot->iov, parts, offset, on_done, slot);
    } else if (dice < 610) {
        weir_job_sync(job, file, (uint32_t)dice % 2, on_done, slot);
        job->flags = dice < 605 ? WEIR_JOB_BARRIER : 0;
    } else if (dice < 660) {
        weir_job_prepare(job, WEIR_OP_CANCEL, NULL, on_done, slot);
        job->offset = some_id(storm, rng);
    } else if (dice < 700) {
        weir_job_call(job, (uint32_t)(dice % WEIR_LANES), compute, slot, on_done, slot);
    } else if (dice < 720) {
        weir_job_prepare(job, WEIR_OP_STAT, file, on_done, slot);
        job->buf = slot->buf;
    } else if (dice < 820) {
        weir_job_prepare(job, WEIR_OP_NOP, NULL, on_done, slot);
        job->timeout_ns = 1 + rng_below(rng, 4 * TEST_MS);
        if (dice < 722)
            job->timeout_ns = TEST_LONG * 100; /* only a cancel or a close ends it */
    } else {
        weir_job_prepare(job, WEIR_OP_NOP, NULL, on_done, slot);
    }
    if (job->timeout_ns == 0 && rng_below(rng, 4) == 0)
        job->timeout_ns = 1 + rng_below(rng, rng_below(rng, 2) ? 100000 : 8 * TEST_MS);
    job->io_class = (uint8_t)rng_below(rng, WEIR_CLASSES);
    job->sequence = (uint32_t)rng_next(rng);
    if (rng_below(rng, 2) == 0)
        job->error = &slot->error;
}

/* One fewer to go; false if there are enough. */
static bool claim(struct storm *storm)
{
    uint64_t left = __atomic_load_n(&storm->left, __ATOMIC_RELAXED);

    while (left > 0) {
        if (__atomic_compare_exchange_n(&storm->left, &left, left - 1, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return true;
    }
    return false;
}

static void mark_taken(struct slot *slot)
{
    if (__atomic_exchange_n(&slot->state, SLOT_TAKEN, __ATOMIC_ACQ_REL) != SLOT_FREE)
        complain(slot->storm, "a slot was taken twice");
    slot->taken_ns = test_now_ns();
}

/* Not taken after all. */
static void give_back(struct slot *slot)
{
    free(slot->job);
    slot->job = NULL;
    __atomic_store_n(&slot->state, SLOT_FREE, __ATOMIC_RELEASE);
    (void)__atomic_add_fetch(&slot->storm->left, 1, __ATOMIC_RELAXED);
}

static bool is_free(struct slot *slot)
{
    return __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == SLOT_FREE;
}

/* --- submitting, posting, cancelling ------------------------------------------------------- */

/* The owner submits some of its free slots in one go. */
static void submit_some(struct owner *owner, size_t most)
{
    struct weir_job *jobs[32];
    struct slot *slots[32];
    size_t used = 0;
    int rc;

    if (most > COUNT(jobs))
        most = COUNT(jobs);
    for (size_t tries = 0; tries < 4 * most && used < most; tries++) {
        struct slot *slot = &owner->slots[rng_below(&owner->rng, SLOTS)];

        if (!is_free(slot) || !claim(owner->storm))
            continue;
        prepare(slot, &owner->rng);
        mark_taken(slot);
        slots[used] = slot;
        jobs[used++] = slot->job;
    }
    rc = weir_queue_submit(owner->queue, jobs, used);
    if (rc < 0 && rc != -EBUSY && !(rc == -ESHUTDOWN && owner->closing))
        complain(owner->storm, "submit: %s", weir_code_name(rc));
    if (rc < 0)
        rc = 0;
    for (size_t i = 0; i < (size_t)rc; i++) {
        /* Nothing is done inside submit, so the job is still there. */
        __atomic_store_n(&slots[i]->id, jobs[i]->id, __ATOMIC_RELAXED);
        count(&owner->storm->taken);
    }
    for (size_t i = (size_t)rc; i < used; i++)
        give_back(slots[i]);
}

/* Post one of `slots` to a queue that is open. */
static void post_one(struct storm *storm, struct test_rng *rng, struct slot *slots,
                     size_t slots_count)
{
    struct owner *to = &storm->owners[rng_below(rng, OWNERS)];
    struct slot *slot = &slots[rng_below(rng, slots_count)];
    int rc;

    if (!is_free(slot) || pthread_rwlock_tryrdlock(&to->lock) != 0)
        return;
    if (to->queue != NULL && claim(storm)) {
        prepare(slot, rng);
        mark_taken(slot);
        count(&storm->taken);
        rc = weir_queue_post(to->queue, slot->job);
        /* Taken, it may be done and its slot in use again by now. */
        if (rc == 0) {
            count(&tally.posted);
        } else {
            (void)__atomic_sub_fetch(&storm->taken, 1, __ATOMIC_RELAXED);
            if (rc != -EBUSY)
                complain(storm, "post: %s", weir_code_name(rc));
            give_back(slot);
        }
    }
    (void)pthread_rwlock_unlock(&to->lock);
}

static void cancel_one(struct owner *owner)
{
    int rc = weir_queue_cancel(owner->queue, some_id(owner->storm, &owner->rng));

    if (rc != 0 && rc != -ENOENT && rc != -EALREADY)
        complain(owner->storm, "cancel: %s", weir_code_name(rc));
}

/* --- done -------------------------------------------------------------------------------------- */

static bool is_right(const struct weir_job *job, const struct slot *slot)
{
    int64_t result = job->result;
    uint64_t bytes = job->len;

    if (result == -ECANCELED)
        return true;
    if (result == -ETIMEDOUT)
        return job->timeout_ns != 0 && job->op != WEIR_OP_NOP;
    if (job->op == WEIR_OP_READV || job->op == WEIR_OP_WRITEV) {
        bytes = 0;
        for (size_t i = 0; i < job->len; i++)
            bytes += slot->iov[i].iov_len;
    }
    if (job->op >= WEIR_OP_READ && job->op <= WEIR_OP_WRITEV)
        return result == (int64_t)bytes || (result < 0 && result > -4096);
    if (job->op == WEIR_OP_CALL)
        return result == 5;
    if (job->op == WEIR_OP_CANCEL)
        return result == 0 || result == -ENOENT || result == -EALREADY;
    if (job->op == WEIR_OP_NOP)
        return result == 0 && test_now_ns() >= slot->taken_ns + job->timeout_ns;
    return result == 0;
}

/* The owner whose thread this is; NULL on posters' and the pool's. */
static __thread struct owner *this_owner;

static void on_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct storm *storm = slot->storm;
    struct owner *owner = this_owner;
    uint64_t dice;

    count(&storm->done);
    count(job->result == -ECANCELED   ? &tally.cancelled
          : job->result == -ETIMEDOUT ? &tally.expired
          : job->result < 0           ? &tally.failed
                                      : &tally.finished);
    if (slot->job != job || __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != SLOT_TAKEN)
        complain(storm, "done of a job that was not taken: %s", weir_op_name(job->op));
    if (owner == NULL)
        complain(storm, "done on a thread that owns no queue");
    else if (!is_right(job, slot))
        complain(storm, "%s of %zu with limit %" PRIu64 " ended with %" PRId64 " (%s)",
                 weir_op_name(job->op), job->len, job->timeout_ns, job->result,
                 job->result < 0 ? weir_code_name(job->result) : "ok");
    if (job->result < 0 && job->error != NULL && job->error->code != job->result)
        complain(storm, "%s ended with %s but its record says %s", weir_op_name(job->op),
                 weir_code_name(job->result), weir_code_name(job->error->code));
    slot->job = NULL;
    memset(job, 0xdd, sizeof(*job));
    free(job);
    if (__atomic_exchange_n(&slot->state, SLOT_FREE, __ATOMIC_ACQ_REL) != SLOT_TAKEN)
        complain(storm, "a job was done twice");
    if (owner == NULL)
        return;

    dice = rng_below(&owner->rng, 100);
    if (dice < 30)
        submit_some(owner, 1 + dice % 3);
    else if (dice < 35)
        cancel_one(owner);
    else if (dice < 37)
        post_one(storm, &owner->rng, owner->slots, SLOTS);
    else if (dice == 37 && weir_queue_run(owner->queue) != -EDEADLK)
        complain(storm, "running inside done was allowed");
}

/* --- the threads ----------------------------------------------------------------------------------- */

static bool has_taken(const struct owner *owner)
{
    struct weir_inflight entry;

    return weir_queue_inflight(owner->queue, &entry, 1) > 0;
}

static void take_turn(struct owner *owner)
{
    uint64_t dice = rng_below(&owner->rng, 100);
    int rc = 0;

    if (dice < 40) {
        rc = weir_queue_run(owner->queue);
    } else if (dice < 80) {
        rc = weir_queue_wait(owner->queue, (uint32_t)rng_below(&owner->rng, 8),
                             rng_below(&owner->rng, 300000));
    } else if (dice < 95) {
        struct pollfd poller = { .events = POLLIN };

        poller.fd = weir_queue_fd(owner->queue);
        if (poller.fd < 0)
            complain(owner->storm, "fd: %s", weir_code_name(poller.fd));
        if (poll(&poller, 1, 1) > 0)
            rc = weir_queue_run(owner->queue);
    }
    if (rc < 0)
        complain(owner->storm, "a turn returned %s", weir_code_name(rc));
}

/* Cancel all that is there, let it end, and give the queue up for a moment. */
static void drain_and_move(struct owner *owner)
{
    struct weir_inflight list[SLOTS];
    int rc;

    for (size_t left = 1; left > 0;) {
        left = weir_queue_inflight(owner->queue, list, SLOTS);
        for (size_t i = 0; i < left; i++)
            (void)weir_queue_cancel(owner->queue, list[i].job_id);
        rc = weir_queue_wait(owner->queue, 1, TEST_MS);
        if (rc < 0)
            complain(owner->storm, "a wait returned %s", weir_code_name(rc));
    }
    rc = weir_queue_rebind(owner->queue);
    if (rc == 0)
        count(&tally.moves);
    else if (rc != -EBUSY)
        complain(owner->storm, "rebind: %s", weir_code_name(rc));
}

static void open_queue(struct owner *owner)
{
    struct weir_queue_options options = {
        .size = sizeof(options),
        .depth = 1 + (uint32_t)rng_below(&owner->rng, 100),
        .backlog = 1 + (uint32_t)rng_below(&owner->rng, 400),
    };
    int rc;

    (void)pthread_rwlock_wrlock(&owner->lock);
    owner->closing = false;
    rc = weir_queue_open(owner->storm->engine, &options, &owner->queue);
    if (rc != 0) {
        complain(owner->storm, "queue open: %s", weir_code_name(rc));
        abort();
    }
    (void)pthread_rwlock_unlock(&owner->lock);
}

/* With whatever is in the air, and with less time than it may need. */
static void close_queue(struct owner *owner)
{
    int rc;

    (void)pthread_rwlock_wrlock(&owner->lock);
    owner->closing = true;
    for (unsigned tries = 0;; tries++) {
        rc = weir_queue_close(owner->queue,
                              tries > 50 ? TEST_LONG : rng_below(&owner->rng, 3) * 50000);
        if (rc != -EBUSY)
            break;
        count(&tally.busy_closes);
    }
    if (rc != 0)
        complain(owner->storm, "close: %s", weir_code_name(rc));
    count(&tally.closes);
    owner->queue = NULL;
    (void)pthread_rwlock_unlock(&owner->lock);
}

static void *own(void *arg)
{
    struct owner *owner = arg;
    struct storm *storm = owner->storm;
    struct test_rng *rng = &owner->rng;

    this_owner = owner;
    while (__atomic_load_n(&storm->left, __ATOMIC_RELAXED) > 0) {
        uint64_t turns = 50 + rng_below(rng, 400);

        open_queue(owner);
        for (uint64_t i = 0; i < turns && __atomic_load_n(&storm->left, __ATOMIC_RELAXED) > 0;
             i++) {
            submit_some(owner, rng_below(rng, 30));
            if (rng_below(rng, 3) == 0)
                cancel_one(owner);
            if (rng_below(rng, 5) == 0)
                post_one(storm, rng, owner->slots, SLOTS);
            take_turn(owner);
        }
        /* Sometimes in peace first, as far as nothing hangs. */
        for (uint64_t i = rng_below(rng, 10); i > 0 && has_taken(owner); i--)
            take_turn(owner);
        if (rng_below(rng, 3) == 0)
            drain_and_move(owner);
        close_queue(owner);
    }
    (void)__atomic_sub_fetch(&storm->owners_running, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void *post(void *arg)
{
    struct poster *poster = arg;
    struct storm *storm = poster->storm;

    while (__atomic_load_n(&storm->owners_running, __ATOMIC_SEQ_CST) > 0) {
        for (uint64_t i = rng_below(&poster->rng, 20); i > 0; i--)
            post_one(storm, &poster->rng, poster->slots, POSTER_SLOTS);
        (void)sched_yield();
    }
    return NULL;
}

/* --- rounds -------------------------------------------------------------------------------------------- */

static void slots_init(struct storm *storm, struct slot *slots, size_t slots_count)
{
    for (size_t i = 0; i < slots_count; i++) {
        slots[i].storm = storm;
        slots[i].buf = malloc(BUFFER);
        memset(slots[i].buf, 0, BUFFER);
    }
}

static void slots_fini(struct storm *storm, struct slot *slots, size_t slots_count)
{
    for (size_t i = 0; i < slots_count; i++) {
        if (slots[i].state != SLOT_FREE)
            complain(storm, "a job was never done: %s", weir_op_name(slots[i].job->op));
        free(slots[i].buf);
    }
}

static void run_round(struct test_rng *rng, uint64_t jobs, const struct wi_null_script *script)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = WEIR_BACKEND_NULL };
    struct wi_engine_seams seams = { .null_script = script };
    struct storm *storm = calloc(1, sizeof(*storm));
    struct weir_stats stats = { .size = sizeof(stats) };
    const char *dir = test_memory_dir() ? test_memory_dir() : test_dir();
    uint64_t counted = 0;

    check_code(wi_engine_open_with(&options, &seams, &storm->engine, NULL), 0);
    for (size_t i = 0; i < FILES; i++)
        check_code(weir_file_open(storm->engine, NULL, dir,
                                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_UNNAMED, 0600,
                                  &storm->files[i], NULL),
                   0);
    storm->left = jobs;
    storm->owners_running = OWNERS;
    for (size_t i = 0; i < OWNERS; i++) {
        struct owner *owner = &storm->owners[i];

        owner->storm = storm;
        owner->rng.state = rng_next(rng);
        (void)pthread_rwlock_init(&owner->lock, NULL);
        slots_init(storm, owner->slots, SLOTS);
    }
    for (size_t i = 0; i < POSTERS; i++) {
        storm->posters[i].storm = storm;
        storm->posters[i].rng.state = rng_next(rng);
        slots_init(storm, storm->posters[i].slots, POSTER_SLOTS);
    }
    {
        pthread_t threads[OWNERS + POSTERS];

        for (size_t i = 0; i < OWNERS; i++)
            check_code(pthread_create(&threads[i], NULL, own, &storm->owners[i]), 0);
        for (size_t i = 0; i < POSTERS; i++)
            check_code(pthread_create(&threads[OWNERS + i], NULL, post, &storm->posters[i]), 0);
        for (size_t i = 0; i < OWNERS + POSTERS; i++)
            (void)pthread_join(threads[i], NULL);
    }
    check_code(weir_engine_stats(storm->engine, &stats), 0);
    for (size_t i = 0; i < WEIR_STATS_GROUPS; i++)
        counted += stats.ops[i].done - stats.ops[i].blocking;
    for (size_t i = 0; i < OWNERS; i++)
        slots_fini(storm, storm->owners[i].slots, SLOTS);
    for (size_t i = 0; i < POSTERS; i++)
        slots_fini(storm, storm->posters[i].slots, POSTER_SLOTS);
    if (storm->wrong > 0)
        fail_msg("%u wrong, first: %s", storm->wrong, storm->first_wrong);
    check_code((int64_t)storm->done, (int64_t)storm->taken);
    check_code((int64_t)counted, (int64_t)storm->done);
    check_code((int64_t)stats.in_flight, 0);
    check_code((int64_t)stats.queues_open, 0);
    for (size_t i = 0; i < FILES; i++)
        check_code(weir_file_close(storm->files[i]), 0);
    check_code(weir_engine_close(storm->engine), 0);
    for (size_t i = 0; i < OWNERS; i++)
        (void)pthread_rwlock_destroy(&storm->owners[i].lock);
    free(storm);
}

static void storm__each_done_exactly_once(void **state)
{
    static const int32_t errors[] = { -EIO, -EAGAIN, -EINTR, -ENOSPC, -ENOMEM, -ECANCELED };
    struct test_rng rng = { test_seed() };
    uint64_t left = test_env_number("WEIR_STORM_JOBS", 1000000);

    (void)state;
    for (unsigned round = 0; left > 0; round++) {
        uint64_t jobs = left < 50000 ? left : 50000;
        struct wi_null_script script = {
            .seed = rng_next(&rng),
            .delay_max_ns = round % 4 == 0 ? 0 : rng_below(&rng, 1000000),
            .fail_per_1024 = round % 3 == 0 ? 0 : (uint32_t)rng_below(&rng, 200),
            .fail_with = errors[round % COUNT(errors)],
            .hang_per_1024 = round % 5 == 0 ? 0 : (uint32_t)rng_below(&rng, 30),
        };

        run_round(&rng, jobs, &script);
        left -= jobs;
    }
    (void)fprintf(stderr,
                  "finished %" PRIu64 ", cancelled %" PRIu64 ", expired %" PRIu64
                  ", failed %" PRIu64 "; posted %" PRIu64 "; closed %" PRIu64
                  " queues, busy %" PRIu64 " times; moved %" PRIu64 "\n",
                  tally.finished, tally.cancelled, tally.expired, tally.failed, tally.posted,
                  tally.closes, tally.busy_closes, tally.moves);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(storm__each_done_exactly_once) };

    (void)unsetenv("WEIR_BACKEND");
    return cmocka_run_group_tests_name("storm", tests, NULL, NULL);
}
