/* SPDX-License-Identifier: MIT */
/*
 * test_queue.c - taking, cancelling, deadlines, closing, signals, owners
 *
 * A device that hangs is the fault injector holding an operation back until it is released;
 * a pool that hangs is a function that waits at a gate. Nothing here sleeps for luck.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED 11u

static struct weir_file *make_file(struct weir_engine *engine, size_t size)
{
    const char *path = test_new_path("queue");
    struct weir_file *file = NULL;

    pattern_make_file(path, size, SEED);
    check_code(
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    return file;
}

static void submit_nop(struct weir_queue *queue, struct probe *probe, uint64_t timeout_ns)
{
    weir_job_prepare(&probe->job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe->job.timeout_ns = timeout_ns;
    probe_submit(queue, probe);
}

/* --- a gate that functions on the pool wait at -------------------------------------- */

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned inside; /* how many have come to it */
    bool open;
};

static void gate_init(struct gate *gate)
{
    (void)pthread_mutex_init(&gate->mutex, NULL);
    (void)pthread_cond_init(&gate->changed, NULL);
    gate->inside = 0;
    gate->open = false;
}

/* A weir_call_fn. */
static int64_t gate_pass(void *context)
{
    struct gate *gate = context;

    (void)pthread_mutex_lock(&gate->mutex);
    gate->inside++;
    (void)pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        (void)pthread_cond_wait(&gate->changed, &gate->mutex);
    (void)pthread_mutex_unlock(&gate->mutex);
    return 77;
}

static void gate_wait_inside(struct gate *gate, unsigned count)
{
    (void)pthread_mutex_lock(&gate->mutex);
    while (gate->inside < count)
        (void)pthread_cond_wait(&gate->changed, &gate->mutex);
    (void)pthread_mutex_unlock(&gate->mutex);
}

static void gate_open(struct gate *gate)
{
    (void)pthread_mutex_lock(&gate->mutex);
    gate->open = true;
    (void)pthread_cond_broadcast(&gate->changed);
    (void)pthread_mutex_unlock(&gate->mutex);
}

/* --- taking ------------------------------------------------------------------------------ */

/* A full queue takes a prefix, then says -EBUSY; what was not taken is untouched. */
static void submit__full_takes_a_prefix(struct env *env)
{
    enum {
        DEPTH = 4,
        BACKLOG = 8,
        ALL = 20
    };
    struct weir_queue_options options = { .size = sizeof(options),
                                          .depth = DEPTH,
                                          .backlog = BACKLOG };
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct weir_queue *queue;
    struct probe probes[ALL];
    struct weir_job *jobs[ALL];
    struct weir_job before[ALL];
    uint8_t *buf = malloc(ALL * 4096);

    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    for (size_t i = 0; i < ALL; i++) {
        weir_job_read(&probes[i].job, file, buf + i * 4096, 4096, (i % 16) * 4096, NULL, NULL);
        probe_arm(&probes[i]);
        jobs[i] = &probes[i].job;
        before[i] = probes[i].job;
    }
    check_code(weir_queue_submit(queue, jobs, ALL), DEPTH + BACKLOG);
    check_code(weir_queue_submit(queue, jobs + DEPTH + BACKLOG, 1), -EBUSY);
    for (size_t i = DEPTH + BACKLOG; i < ALL; i++)
        check(memcmp(&before[i], &probes[i].job, sizeof(before[i])) == 0);
    for (size_t i = 0; i < ALL; i++)
        check(probes[i].done == 0);
    probes_wait(queue, probes, DEPTH + BACKLOG);
    check_code(weir_queue_submit(queue, jobs + DEPTH + BACKLOG, ALL - DEPTH - BACKLOG),
               ALL - DEPTH - BACKLOG);
    probes_wait(queue, probes, ALL);
    for (size_t i = 0; i < ALL; i++) {
        check_code(probes[i].result, 4096);
        if (env->backend != WEIR_BACKEND_NULL)
            check_pattern(buf + i * 4096, 4096, SEED, (i % 16) * 4096);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_file_close(file), 0);
    free(buf);
}

/* A bad job ends the prefix; alone it is the code; the others are done as if it were not. */
static void submit__bad_job_ends_the_prefix(struct env *env)
{
    struct probe probes[5];
    struct weir_job *jobs[5];

    for (size_t i = 0; i < 5; i++) {
        weir_job_prepare(&probes[i].job, WEIR_OP_NOP, NULL, NULL, NULL);
        probe_arm(&probes[i]);
        jobs[i] = &probes[i].job;
    }
    probes[2].job.op = WEIR_OPS + 3;
    check_code(weir_queue_submit(env->queue, jobs, 5), 2);
    check_code(weir_queue_submit(env->queue, jobs + 2, 3), -EINVAL);
    check_code(probes[2].error.code, -EINVAL);
    check(probes[2].error.text[0] != '\0');
    check_code(weir_queue_submit(env->queue, jobs + 3, 2), 2);
    for (size_t i = 0; i < 5; i++) {
        if (i != 2)
            check_code(probe_wait(env->queue, &probes[i]), 0);
    }
    check(probes[2].done == 0);
    check_code(weir_queue_submit(env->queue, jobs, 0), 0);
}

/* Everything malformed is refused at submit and at post: -EINVAL, with a reason. */
static void submit__malformed_is_einval(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 4096);
    struct weir_job good;
    uint8_t buf[512];

    weir_job_read(&good, file, buf, sizeof(buf), 0, probe_done, NULL);
    for (int what = 0; what < 11; what++) {
        struct probe probe;
        struct weir_job *job = &probe.job;

        probe.job = good;
        probe_arm(&probe);
        switch (what) {
        case 0:
            job->done = NULL;
            break;
        case 1:
            job->op = WEIR_OP_NONE;
            break;
        case 2:
            job->op = WEIR_OPS;
            break;
        case 3:
            job->file = NULL;
            break;
        case 4:
            job->buf = NULL;
            break;
        case 5:
            job->io_class = WEIR_CLASSES;
            break;
        case 6:
            job->op = WEIR_OP_CALL; /* no function */
            break;
        case 7:
            job->op = WEIR_OP_CALL;
            job->call = gate_pass;
            job->lane = WEIR_LANES;
            break;
        case 8:
            job->op = WEIR_OP_OPEN; /* no path */
            break;
        case 9:
            job->op = WEIR_OP_FSYNC;
            job->file = NULL;
            break;
        default:
            job->op = WEIR_OP_READV; /* NULL iovecs, but their number is not 0 */
            job->buf = NULL;
            job->len = 3;
            break;
        }
        check_code(weir_queue_submit(env->queue, &job, 1), -EINVAL);
        check_code(probe.error.code, -EINVAL);
        check(probe.error.text[0] != '\0');
        check_code(weir_queue_post(env->queue, job), -EINVAL);
        check(probe.done == 0);
    }
    check_code(weir_queue_run(env->queue), 0);
    check_code(weir_file_close(file), 0);
}

/* Files that are closed or not open for it: -EBADF, with the file's name. */
static void submit__unusable_file_is_ebadf(struct env *env)
{
    const char *path = test_new_path("unusable");
    struct weir_file *reader;
    struct weir_file *writer;
    struct weir_file *closed;
    struct probe probe;
    struct weir_job *job = &probe.job;
    uint8_t byte = 0;
    struct iovec iov = { &byte, 1 };

    pattern_make_file(path, 100, SEED);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &reader, NULL), 0);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_WRITE, 0, &writer, NULL), 0);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &closed, NULL), 0);
    check_code(weir_file_close(closed), 0);

    for (int what = 0; what < 7; what++) {
        switch (what) {
        case 0:
            weir_job_write(job, reader, &byte, 1, 0, NULL, NULL);
            break;
        case 1:
            weir_job_read(job, writer, &byte, 1, 0, NULL, NULL);
            break;
        case 2:
            weir_job_writev(job, reader, &iov, 1, 0, NULL, NULL);
            break;
        case 3:
            weir_job_readv(job, writer, &iov, 1, 0, NULL, NULL);
            break;
        case 4:
            weir_job_read(job, closed, &byte, 1, 0, NULL, NULL);
            break;
        case 5:
            weir_job_sync(job, closed, WEIR_SYNC_ALL, NULL, NULL);
            break;
        default:
            weir_job_prepare(job, WEIR_OP_TRUNCATE, reader, NULL, NULL);
            break;
        }
        probe_arm(&probe);
        check_code(weir_queue_submit(env->queue, &job, 1), -EBADF);
        check_code(probe.error.code, -EBADF);
        check_code(probe.error.op, job->op);
        check(probe.error.text[0] != '\0');
        if (what < 4)
            check(strstr(probe.error.path, "unusable") != NULL);
        check_code(weir_queue_post(env->queue, job), -EBADF);
    }
    check_code(weir_file_write(reader, &byte, 1, 0), -EBADF);
    check_code(weir_file_read(writer, &byte, 1, 0), -EBADF);
    check_code(weir_file_read(closed, &byte, 1, 0), -EBADF);
    check_code(weir_file_truncate(reader, 5, NULL), -EBADF);
    check_code(weir_queue_run(env->queue), 0);
    check_code(weir_file_close(reader), 0);
    check_code(weir_file_close(writer), 0);
}

/* A job that is submitted already is not taken a second time. */
static void submit__same_job_twice_is_refused(struct env *env)
{
    struct probe probe;
    struct weir_job *job = &probe.job;

    submit_nop(env->queue, &probe, 0);
    check_code(weir_queue_submit(env->queue, &job, 1), -EINVAL);
    check_code(weir_queue_post(env->queue, job), -EINVAL);
    check_code(probe_wait(env->queue, &probe), 0);
}

/* Ids are never 0 and never the same for two jobs of an engine, whatever queue they take. */
static void submit__ids_are_unique(struct env *env)
{
    enum {
        JOBS = 2000
    };
    struct probe *probes = calloc(JOBS, sizeof(*probes));
    uint64_t *ids = calloc(JOBS, sizeof(*ids));
    struct weir_queue *other;
    size_t count = 0;

    check_code(weir_queue_open(env->engine, NULL, &other), 0);
    for (size_t i = 0; i < JOBS; i++) {
        struct weir_queue *queue = i % 2 ? other : env->queue;

        submit_nop(queue, &probes[i], 0);
        check(probes[i].job.id != 0); /* from submit on */
        ids[count++] = probes[i].job.id;
        if (i % 64 == 63) {
            check(weir_queue_run(env->queue) >= 0);
            check(weir_queue_run(other) >= 0);
        }
    }
    for (size_t i = 0; i < JOBS; i++)
        check_code(probe_wait(i % 2 ? other : env->queue, &probes[i]), 0);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = i + 1; j < count; j++)
            check(ids[i] != ids[j]);
    }
    check_code(weir_queue_close(other, TEST_LONG), 0);
    free(probes);
    free(ids);
}

/* --- cancelling ------------------------------------------------------------------------------ */

/* Staged, not handed over yet: cancelled at the next turn, and nothing was written. */
static void cancel__staged_is_cancelled(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 4096);
    struct probe probe;
    uint8_t buf[512];

    memset(buf, 0xaa, sizeof(buf));
    weir_job_write(&probe.job, file, buf, sizeof(buf), 0, NULL, NULL);
    probe_submit(env->queue, &probe);
    check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
    check(probe.done == 0); /* inside run only */
    check_code(weir_queue_cancel(env->queue, probe.job.id), -EALREADY);
    check_code(probe_wait(env->queue, &probe), -ECANCELED);
    check_code(probe.transferred, 0);
    check_code(probe.error.code, -ECANCELED);
    check_code(weir_queue_cancel(env->queue, probe.id), -ENOENT);
    check_code(weir_file_read(file, buf, sizeof(buf), 0), sizeof(buf));
    check_pattern(buf, sizeof(buf), SEED, 0);
    check_code(weir_file_close(file), 0);
}

/* Ids that are not in the queue: unknown, none, done, another queue's, and stale after the
 * job's memory and its place in the queue are in use again. */
static void cancel__wrong_id_is_enoent(struct env *env)
{
    struct probe probe;
    struct probe foreign;
    struct weir_queue *other;
    uint64_t old;

    check_code(weir_queue_open(env->engine, NULL, &other), 0);
    check_code(weir_queue_cancel(env->queue, 0), -ENOENT);
    check_code(weir_queue_cancel(env->queue, 1), -ENOENT);
    check_code(weir_queue_cancel(env->queue, UINT64_MAX), -ENOENT);

    submit_nop(other, &foreign, TEST_LONG);
    check_code(weir_queue_cancel(env->queue, foreign.job.id), -ENOENT);

    submit_nop(env->queue, &probe, 0);
    old = probe.job.id;
    check_code(weir_queue_cancel(env->queue, foreign.job.id), -ENOENT);
    check_code(probe_wait(env->queue, &probe), 0);
    check_code(weir_queue_cancel(env->queue, old), -ENOENT);

    submit_nop(env->queue, &probe, TEST_LONG);
    check(probe.job.id != old);
    check_code(weir_queue_cancel(env->queue, old), -ENOENT); /* does not hit the new tenant */
    check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
    check_code(probe_wait(env->queue, &probe), -ECANCELED);

    check_code(weir_queue_cancel(other, foreign.job.id), 0);
    check_code(probe_wait(other, &foreign), -ECANCELED);
    check_code(weir_queue_close(other, TEST_LONG), 0);
}

/* A timer is cancelled at once, also after it was started. */
static void cancel__timer(struct env *env)
{
    struct probe probe;

    submit_nop(env->queue, &probe, TEST_LONG);
    check_code(weir_queue_run(env->queue), 0);
    check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
    check_code(weir_queue_run(env->queue), 1);
    check(probe.done == 1);
    check_code(probe.result, -ECANCELED);
}

/* A function that runs cannot be stopped, and its value counts; one that waits for a thread
 * is cancelled. */
static void cancel__call(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .cpu_threads = 1 };
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct gate gate;
    struct probe running;
    struct probe waiting;

    if (env->backend == WEIR_BACKEND_NULL)
        return; /* functions run inside the turn there */
    gate_init(&gate);
    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_queue_open(engine, NULL, &queue), 0);
    weir_job_call(&running.job, WEIR_LANE_CPU, gate_pass, &gate, NULL, NULL);
    probe_submit(queue, &running);
    check_code(weir_queue_run(queue), 0);
    gate_wait_inside(&gate, 1);
    weir_job_call(&waiting.job, WEIR_LANE_CPU, gate_pass, &gate, NULL, NULL);
    probe_submit(queue, &waiting);
    check_code(weir_queue_run(queue), 0);
    check_code(weir_queue_cancel(queue, running.job.id), 0);
    check_code(weir_queue_cancel(queue, running.job.id), -EALREADY);
    check_code(weir_queue_cancel(queue, waiting.job.id), 0);
    check(running.done == 0);
    gate_open(&gate);
    check_code(probe_wait(queue, &running), 77);
    check_code(probe_wait(queue, &waiting), -ECANCELED);
    check(gate.inside == 1);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_engine_close(engine), 0);
}

/* At a device that lets go when asked: -ECANCELED. At one that does not: whatever it says. */
static void cancel__at_the_device(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe stoppable;
    struct probe stubborn;
    uint8_t buf[2][4096];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 64 * KIB);
    faulty_hang(&f, WI_FAULT_READ, 1, true);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&stoppable.job, file, buf[0], 4096, 0, NULL, NULL);
    probe_submit(f.queue, &stoppable);
    check_code(weir_queue_run(f.queue), 0);
    weir_job_read(&stubborn.job, file, buf[1], 4096, 4096, NULL, NULL);
    probe_submit(f.queue, &stubborn);
    check_code(weir_queue_run(f.queue), 0);
    check_code(weir_queue_cancel(f.queue, stoppable.job.id), 0);
    check_code(weir_queue_cancel(f.queue, stubborn.job.id), 0);
    check_code(weir_queue_cancel(f.queue, stubborn.job.id), -EALREADY);
    check_code(probe_wait(f.queue, &stoppable), -ECANCELED);
    check_code(weir_queue_run(f.queue), 0);
    check(stubborn.done == 0); /* the buffer is still the device's */
    faulty_release(&f);
    check_code(probe_wait(f.queue, &stubborn), 4096); /* the completion decides */
    if (env->backend != WEIR_BACKEND_NULL)
        check_pattern(buf[1], 4096, SEED, 4096);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* In the backlog, behind a device that hangs: cancelled at the next turn. */
static void cancel__in_the_backlog(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe first;
    struct probe rest[10];
    uint8_t buf[11][512];

    faulty_open(&f, env->backend, 1, 64, NULL);
    file = make_file(f.engine, 64 * KIB);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&first.job, file, buf[0], 512, 0, NULL, NULL);
    probe_submit(f.queue, &first);
    for (size_t i = 0; i < 10; i++) {
        weir_job_read(&rest[i].job, file, buf[i + 1], 512, i * 512, NULL, NULL);
        probe_submit(f.queue, &rest[i]);
    }
    check_code(weir_queue_run(f.queue), 0);
    for (size_t i = 0; i < 10; i += 2)
        check_code(weir_queue_cancel(f.queue, rest[i].job.id), 0);
    check_code(weir_queue_run(f.queue), 5);
    for (size_t i = 0; i < 10; i++)
        check(rest[i].done == (i % 2 == 0 ? 1u : 0u));
    faulty_release(&f);
    check_code(probe_wait(f.queue, &first), 512);
    for (size_t i = 0; i < 10; i++)
        check_code(probe_wait(f.queue, &rest[i]), i % 2 == 0 ? -ECANCELED : 512);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* Held behind an overlapping write: cancelled; the one behind it goes on in order. */
static void cancel__held_behind_a_write(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe writes[3];
    uint8_t bufs[3][4096];
    uint8_t got[4096];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 64 * KIB);
    faulty_hang(&f, WI_FAULT_WRITE, 1, false);
    for (size_t i = 0; i < 3; i++) {
        memset(bufs[i], (int)i + 1, sizeof(bufs[i]));
        weir_job_write(&writes[i].job, file, bufs[i], 4096 - i * 512, 0, NULL, NULL);
        probe_submit(f.queue, &writes[i]);
    }
    check_code(weir_queue_run(f.queue), 0);
    check_code(weir_queue_cancel(f.queue, writes[1].job.id), 0);
    check_code(weir_queue_run(f.queue), 1);
    check(writes[1].done == 1 && writes[2].done == 0);
    faulty_release(&f);
    probes_wait(f.queue, writes, 3);
    check_code(writes[0].result, 4096);
    check_code(writes[1].result, -ECANCELED);
    check_code(writes[2].result, 4096 - 1024);
    if (env->backend != WEIR_BACKEND_NULL) {
        check_code(weir_file_read(file, got, 4096, 0), 4096);
        check(got[0] == 3 && got[4096 - 1025] == 3 && got[4096 - 1024] == 1 && got[4095] == 1);
    }
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* Waiting to be tried again: cancelled at once. */
static void cancel__between_retries(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe probe;
    uint8_t buf[512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_rule(&f,
                (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 1, .error = -EAGAIN });
    weir_job_read(&probe.job, file, buf, 512, 0, NULL, NULL);
    probe_submit(f.queue, &probe);
    while (wi_fault_acted(f.plan) < 3 && probe.done == 0) /* past the first back-off */
        check(weir_queue_wait(f.queue, 1, TEST_MS) >= 0);
    check(probe.done == 0);
    check_code(weir_queue_cancel(f.queue, probe.job.id), 0);
    check_code(probe_wait(f.queue, &probe), -ECANCELED);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* A job whose `done` is due cannot be cancelled any more: only seen from inside `done`. */
struct sibling {
    struct probe *probes;
    struct weir_queue *queue;
    int code;
    bool asked;
};
static struct sibling sibling;

static void cancel_sibling(struct weir_job *job)
{
    struct probe *self = job->arg;

    probe_done(job);
    if (!sibling.asked) {
        struct probe *other =
            self == &sibling.probes[0] ? &sibling.probes[1] : &sibling.probes[0];

        sibling.asked = true;
        sibling.code = weir_queue_cancel(sibling.queue, other->job.id);
    }
}

static void cancel__due_is_ealready(struct env *env)
{
    struct probe probes[2];
    struct weir_job *jobs[2];

    sibling = (struct sibling){ .probes = probes, .queue = env->queue };
    for (size_t i = 0; i < 2; i++) {
        weir_job_prepare(&probes[i].job, WEIR_OP_NOP, NULL, NULL, NULL);
        probe_arm(&probes[i]);
        probes[i].job.done = cancel_sibling;
        jobs[i] = &probes[i].job;
    }
    check_code(weir_queue_submit(env->queue, jobs, 2), 2);
    probes_wait(env->queue, probes, 2);
    check_code(sibling.code, -EALREADY);
    check_code(probes[0].result, 0);
    check_code(probes[1].result, 0);
}

/* A cancel can be a job: posted from elsewhere, or submitted. Its result is cancel's. */
static void cancel__as_a_job(struct env *env)
{
    struct probe target;
    struct probe cancel;

    submit_nop(env->queue, &target, TEST_LONG);
    check_code(weir_queue_run(env->queue), 0);
    weir_job_prepare(&cancel.job, WEIR_OP_CANCEL, NULL, NULL, NULL);
    cancel.job.offset = target.job.id;
    probe_arm(&cancel);
    check_code(weir_queue_post(env->queue, &cancel.job), 0);
    check_code(probe_wait(env->queue, &cancel), 0);
    check_code(probe_wait(env->queue, &target), -ECANCELED);

    weir_job_prepare(&cancel.job, WEIR_OP_CANCEL, NULL, NULL, NULL);
    cancel.job.offset = target.id;
    check_code(probe_run(env->queue, &cancel), -ENOENT);
}

/* --- deadlines ---------------------------------------------------------------------------------- */

/* Timers fire in the order of their times, never early, each once, and in class OTHER. */
static void deadline__timers_fire_once_not_early(struct env *env)
{
    enum {
        TIMERS = 600
    };
    struct test_rng rng = { test_seed() + 9 };
    struct probe *probes = calloc(TIMERS, sizeof(*probes));
    uint64_t *starts = calloc(TIMERS, sizeof(*starts));

    for (size_t i = 0; i < TIMERS; i++) {
        starts[i] = test_now_ns();
        submit_nop(env->queue, &probes[i], 1 + rng_below(&rng, 120 * TEST_MS));
    }
    probes_wait(env->queue, probes, TIMERS);
    for (size_t i = 0; i < TIMERS; i++) {
        check_code(probes[i].result, 0);
        check(probes[i].done_ns >= starts[i] + probes[i].job.timeout_ns);
    }
    free(probes);
    free(starts);
}

/* A time limit that is not reached changes nothing. */
static void deadline__not_reached(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 4096);
    struct probe probes[64];
    uint8_t buf[64][64];

    for (size_t i = 0; i < 64; i++) {
        weir_job_read(&probes[i].job, file, buf[i], 64, i * 64, NULL, NULL);
        probes[i].job.timeout_ns = i % 2 ? TEST_LONG : UINT64_MAX - 1;
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, 64);
    for (size_t i = 0; i < 64; i++)
        check_code(probes[i].result, 64);
    check_code(weir_file_close(file), 0);
}

/* Queued behind a device that hangs, or held behind a write: -ETIMEDOUT, nothing moved. */
static void deadline__queued_expires(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe first;
    struct probe second;
    struct probe held;
    uint8_t buf[3][512];

    faulty_open(&f, env->backend, 1, 64, NULL);
    file = make_file(f.engine, 4096);
    faulty_hang(&f, WI_FAULT_WRITE, 1, false);
    memset(buf, 0x55, sizeof(buf));
    weir_job_write(&first.job, file, buf[0], 512, 0, NULL, NULL);
    probe_submit(f.queue, &first);
    weir_job_read(&second.job, file, buf[1], 512, 1024, NULL, NULL);
    second.job.timeout_ns = 2 * TEST_MS;
    probe_submit(f.queue, &second);
    weir_job_write(&held.job, file, buf[2], 512, 0, NULL, NULL);
    held.job.timeout_ns = 1;
    probe_submit(f.queue, &held);
    check_code(probe_wait(f.queue, &second), -ETIMEDOUT);
    check_code(second.transferred, 0);
    check_code(second.error.code, -ETIMEDOUT);
    check_code(probe_wait(f.queue, &held), -ETIMEDOUT);
    check(first.done == 0);
    faulty_release(&f);
    check_code(probe_wait(f.queue, &first), 512);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* At the device: asked to stop; ends when the device lets go of the buffer, not before. */
static void deadline__at_the_device(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe stoppable;
    struct probe stubborn;
    struct probe timer;
    uint8_t buf[2][512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_hang(&f, WI_FAULT_READ, 1, true);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&stoppable.job, file, buf[0], 512, 0, NULL, NULL);
    stoppable.job.timeout_ns = 2 * TEST_MS;
    probe_submit(f.queue, &stoppable);
    check_code(weir_queue_run(f.queue), 0);
    weir_job_read(&stubborn.job, file, buf[1], 512, 512, NULL, NULL);
    stubborn.job.timeout_ns = 2 * TEST_MS;
    probe_submit(f.queue, &stubborn);
    check_code(probe_wait(f.queue, &stoppable), -ETIMEDOUT);
    submit_nop(f.queue, &timer, 5 * TEST_MS); /* surely after the stubborn one's time */
    check_code(probe_wait(f.queue, &timer), 0);
    check(stubborn.done == 0);
    faulty_release(&f);
    (void)probe_wait(f.queue, &stubborn);
    if (stubborn.result != 512) /* it may still have succeeded */
        check_code(stubborn.result, -ETIMEDOUT);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* Errors that come again and again are retried no longer than the job has time. */
static void deadline__bounds_retries(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe probe;
    uint8_t buf[512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_rule(&f,
                (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 1, .error = -EAGAIN });
    weir_job_read(&probe.job, file, buf, 512, 0, NULL, NULL);
    probe.job.timeout_ns = 3 * TEST_MS;
    check_code(probe_run(f.queue, &probe), -ETIMEDOUT);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* A function in the pool that outlives its time: the job ends when the function does. */
static void deadline__of_a_running_call(struct env *env)
{
    struct gate gate;
    struct probe call;
    struct probe timer;

    if (env->backend == WEIR_BACKEND_NULL)
        return; /* functions run inside the turn there */
    gate_init(&gate);
    weir_job_call(&call.job, WEIR_LANE_CPU, gate_pass, &gate, NULL, NULL);
    call.job.timeout_ns = TEST_MS;
    probe_submit(env->queue, &call);
    check_code(weir_queue_run(env->queue), 0);
    gate_wait_inside(&gate, 1);
    submit_nop(env->queue, &timer, 5 * TEST_MS);
    check_code(probe_wait(env->queue, &timer), 0);
    check(call.done == 0);
    gate_open(&gate);
    (void)probe_wait(env->queue, &call);
    if (call.result != 77)
        check_code(call.result, -ETIMEDOUT);
}

/* Waiting with a time limit ends at it: not before, and with 0 if nothing was done. */
static void wait__times_out(struct env *env)
{
    struct probe probe;
    uint64_t start;

    check_code(weir_queue_wait(env->queue, 1, WEIR_FOREVER), 0); /* nothing is left: at once */
    submit_nop(env->queue, &probe, TEST_LONG);
    start = test_now_ns();
    check_code(weir_queue_wait(env->queue, 1, 20 * TEST_MS), 0);
    check(test_now_ns() - start >= 20 * TEST_MS);
    check_code(weir_queue_wait(env->queue, 1, 0), 0);
    check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
    check_code(probe_wait(env->queue, &probe), -ECANCELED);
}

/* Waits return with at least what was asked for, or with all that is left. */
static void wait__min_done(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct probe probes[64];
    uint8_t buf[64][128];
    unsigned done = 0;

    for (size_t i = 0; i < 64; i++) {
        weir_job_read(&probes[i].job, file, buf[i], 128, i * 128, NULL, NULL);
        probe_submit(env->queue, &probes[i]);
    }
    for (uint32_t want = 1; done < 64; want++) {
        int rc = weir_queue_wait(env->queue, want, TEST_LONG);

        check(rc >= (int)(want < 64 - done ? want : 64 - done));
        done += (unsigned)rc;
    }
    check(done == 64);
    for (size_t i = 0; i < 64; i++)
        probe_submit(env->queue, &probes[i]);
    for (done = 0; done < 64;) {
        int rc = weir_queue_wait(env->queue, 0, TEST_LONG);

        check(rc > 0);
        done += (unsigned)rc;
    }
    check_code(weir_file_close(file), 0);
}

/* --- closing ------------------------------------------------------------------------------------------ */

/* Closing cancels what is queued and finishes what is in flight; every `done` runs inside. */
static void close__with_work_in_flight(struct env *env)
{
    enum {
        JOBS = 300
    };
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct weir_queue *queue;
    struct probe *probes = calloc(JOBS, sizeof(*probes));
    uint8_t *buf = malloc(JOBS * 512);

    check_code(weir_queue_open(env->engine, NULL, &queue), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        if (i % 3 == 0) {
            submit_nop(queue, &probes[i], TEST_LONG);
        } else {
            if (i % 3 == 1)
                weir_job_read(&probes[i].job, file, buf + i * 512, 512, 0, NULL, NULL);
            else
                weir_job_prepare(&probes[i].job, WEIR_OP_FDATASYNC, file, NULL, NULL);
            probe_submit(queue, &probes[i]);
        }
        if (i == 200)
            check(weir_queue_run(queue) >= 0);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        check(probes[i].done == 1);
        if (i % 3 == 0)
            check_code(probes[i].result, -ECANCELED);
        else if (probes[i].result != -ECANCELED)
            check_code(probes[i].result, i % 3 == 1 ? 512 : 0);
    }
    check_code(weir_file_close(file), 0);
    free(probes);
    free(buf);
}

/* A device that hangs: -EBUSY after the time, again -EBUSY, then 0 when it lets go. Files
 * and engine refuse to close meanwhile. */
static void close__hanging_device_is_ebusy(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe hanging;
    struct probe queued;
    struct weir_job *job;
    uint8_t buf[2][512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&hanging.job, file, buf[0], 512, 0, NULL, NULL);
    probe_submit(f.queue, &hanging);
    check_code(weir_queue_run(f.queue), 0);
    submit_nop(f.queue, &queued, TEST_LONG);
    check_code(weir_file_close(file), -EBUSY);

    check_code(weir_queue_close(f.queue, 10 * TEST_MS), -EBUSY);
    check(hanging.done == 0);
    check(queued.done == 1);
    check_code(queued.result, -ECANCELED);
    check_code(weir_queue_close(f.queue, 0), -EBUSY);
    check(hanging.done == 0);
    job = &queued.job;
    check_code(weir_queue_submit(f.queue, &job, 1), -ESHUTDOWN);
    check_code(weir_queue_post(f.queue, job), -ESHUTDOWN);
    check_code(weir_file_close(file), -EBUSY);
    check_code(weir_engine_close(f.engine), -EBUSY);

    faulty_release(&f);
    check_code(weir_queue_close(f.queue, TEST_LONG), 0);
    check(hanging.done == 1);
    if (hanging.result != 512)
        check_code(hanging.result, -ECANCELED);
    f.queue = NULL;
    check_code(weir_file_close(file), 0);
    check_code(weir_engine_close(f.engine), 0);
    wi_fault_destroy(f.plan);
}

/* Between the two closes of a hanging queue its owner may still run it. */
static void close__ebusy_then_run(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe hanging;
    uint8_t buf[512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&hanging.job, file, buf, 512, 0, NULL, NULL);
    probe_submit(f.queue, &hanging);
    check_code(weir_queue_run(f.queue), 0);
    check_code(weir_queue_close(f.queue, 0), -EBUSY);
    faulty_release(&f);
    while (hanging.done == 0)
        check(weir_queue_wait(f.queue, 1, TEST_LONG) >= 0);
    check_code(weir_queue_close(f.queue, 0), 0);
    check_code(weir_file_close(file), 0);
    check_code(weir_engine_close(f.engine), 0);
    wi_fault_destroy(f.plan);
}

/* Closing a queue that nobody has used, and NULL. */
static void close__unused(struct env *env)
{
    struct weir_queue *queue;

    check_code(weir_queue_open(env->engine, NULL, &queue), 0);
    check_code(weir_engine_close(env->engine), -EBUSY);
    check_code(weir_queue_close(queue, 0), 0);
    check_code(weir_queue_close(NULL, 0), 0);
    check_code(weir_file_close(NULL), 0);
    check_code(weir_engine_close(NULL), 0);
}

/* A file with a job on it does not close; CLOSE as a job says the same. */
static void close__file_in_use_is_ebusy(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe hanging;
    struct probe closing;
    uint8_t buf[512];

    faulty_open(&f, env->backend, 0, 0, NULL);
    file = make_file(f.engine, 4096);
    faulty_hang(&f, WI_FAULT_READ, 1, false);
    weir_job_read(&hanging.job, file, buf, 512, 0, NULL, NULL);
    probe_submit(f.queue, &hanging);
    check_code(weir_queue_run(f.queue), 0);
    check_code(weir_file_close(file), -EBUSY);
    weir_job_prepare(&closing.job, WEIR_OP_CLOSE, file, NULL, NULL);
    check_code(probe_run(f.queue, &closing), -EBUSY);
    check_code(weir_file_read(file, buf, 10, 0), 10); /* changes nothing */
    faulty_release(&f);
    check_code(probe_wait(f.queue, &hanging), 512);
    weir_job_prepare(&closing.job, WEIR_OP_CLOSE, file, NULL, NULL);
    check_code(probe_run(f.queue, &closing), 0);
    faulty_close(&f);
}

/* --- signals -------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t signals_seen;
static pthread_t signals_thread;
static volatile sig_atomic_t signals_elsewhere;

static void count_signal(int number)
{
    (void)number;
    signals_seen++;
    if (pthread_equal(pthread_self(), signals_thread) == 0)
        signals_elsewhere++;
}

static void signals_begin(int flags, uint64_t first_us, uint64_t every_us)
{
    struct sigaction action = { .sa_handler = count_signal, .sa_flags = flags };
    struct itimerval timer = {
        .it_value = { (time_t)(first_us / 1000000), (suseconds_t)(first_us % 1000000) },
        .it_interval = { 0, (suseconds_t)every_us },
    };

    signals_seen = 0;
    signals_elsewhere = 0;
    signals_thread = pthread_self();
    (void)sigaction(SIGALRM, &action, NULL);
    (void)setitimer(ITIMER_REAL, &timer, NULL);
}

static void signals_end(void)
{
    struct itimerval never = { { 0, 0 }, { 0, 0 } };

    (void)setitimer(ITIMER_REAL, &never, NULL);
    (void)signal(SIGALRM, SIG_DFL);
}

/* A signal ends a wait that has nothing to give yet, whether or not it restarts calls. */
static void signal__ends_a_wait(struct env *env)
{
    for (int restart = 0; restart < 2; restart++) {
        for (int watched = 0; watched < 2; watched++) {
            struct probe probe;
            int rc;

            if (watched)
                check(weir_queue_fd(env->queue) >= 0);
            submit_nop(env->queue, &probe, TEST_LONG);
            /* One every 20 ms, so that one that comes before the wait does not matter. */
            signals_begin(restart ? SA_RESTART : 0, 20000, 20000);
            rc = weir_queue_wait(env->queue, 1, WEIR_FOREVER);
            signals_end();
            check_code(rc, -EINTR);
            check(signals_seen >= 1);
            check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
            check_code(probe_wait(env->queue, &probe), -ECANCELED);
        }
        check_code(weir_queue_rebind(env->queue), 0); /* gives the descriptor up */
    }
}

/* Under a hail of signals every transfer is exact, and pool threads see none of them. */
static void signal__hail_changes_nothing(struct env *env)
{
    enum {
        OPS = 4000,
        WINDOW = 32
    };
    struct test_rng rng = { test_seed() + 4 };
    struct weir_file *file = make_file(env->engine, 256 * KIB);
    struct probe probes[WINDOW];
    uint8_t *buf = malloc(WINDOW * 8192);
    uint8_t *blocking = malloc(8192);

    memset(probes, 0, sizeof(probes));
    signals_begin(SA_RESTART, 100, 150);
    for (size_t i = 0; i < OPS; i++) {
        struct probe *probe = &probes[i % WINDOW];
        size_t len = 1 + rng_below(&rng, 8192);
        uint64_t offset = rng_below(&rng, 256 * KIB - len);

        if (i >= WINDOW) {
            check_code(probe_wait(env->queue, probe), probe->job.len);
            if (env->backend != WEIR_BACKEND_NULL)
                check_pattern(probe->job.buf, probe->job.len, SEED, probe->job.offset);
        }
        weir_job_read(&probe->job, file, buf + i % WINDOW * 8192, len, offset, NULL, NULL);
        probe_submit(env->queue, probe);
        if (i % 16 == 0) {
            check_code(weir_file_read(file, blocking, len, offset), len);
            check_pattern(blocking, len, SEED, offset);
        }
    }
    probes_wait(env->queue, probes, WINDOW);
    signals_end();
    check(signals_elsewhere == 0);
    check_code(weir_file_close(file), 0);
    free(buf);
    free(blocking);
}

/* --- owners ------------------------------------------------------------------------------------------------ */

struct foreigner {
    struct weir_queue *queue;
    int codes[7];
};

static void *use_foreign_queue(void *arg)
{
    struct foreigner *foreigner = arg;
    struct probe probe;
    struct weir_job *job = &probe.job;

    weir_job_prepare(job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe_arm(&probe);
    foreigner->codes[0] = weir_queue_submit(foreigner->queue, &job, 1);
    foreigner->codes[1] = weir_queue_run(foreigner->queue);
    foreigner->codes[2] = weir_queue_wait(foreigner->queue, 1, TEST_MS);
    foreigner->codes[3] = weir_queue_cancel(foreigner->queue, 1);
    foreigner->codes[4] = weir_queue_fd(foreigner->queue);
    foreigner->codes[5] = weir_queue_rebind(foreigner->queue);
    foreigner->codes[6] = weir_queue_close(foreigner->queue, 0);
    return NULL;
}

/* Everything but posting is the owner's. */
static void owner__others_get_eperm(struct env *env)
{
    struct foreigner foreigner = { .queue = env->queue };
    struct probe probe;
    pthread_t thread;

    submit_nop(env->queue, &probe, 0);
    check_code(probe_wait(env->queue, &probe), 0);
    check_code(pthread_create(&thread, NULL, use_foreign_queue, &foreigner), 0);
    (void)pthread_join(thread, NULL);
    for (size_t i = 0; i < COUNT(foreigner.codes); i++)
        check_code(foreigner.codes[i], -EPERM);
    submit_nop(env->queue, &probe, 0);
    check_code(probe_wait(env->queue, &probe), 0);
}

struct tenant {
    struct weir_queue *queue;
    struct weir_file *file;
    int64_t result;
    int rebound;
    unsigned wrong;
    uint32_t backend;
};

static void *use_and_give_up(void *arg)
{
    struct tenant *tenant = arg;
    struct probe probe;
    struct weir_job *job = &probe.job;
    uint8_t buf[4096];

    for (int i = 0; i < 20; i++) { /* enough for the queue to register the file */
        weir_job_read(job, tenant->file, buf, 4096, 4096, NULL, NULL);
        probe_arm(&probe);
        if (weir_queue_submit(tenant->queue, &job, 1) != 1)
            tenant->wrong++;
        while (probe.done == 0)
            if (weir_queue_wait(tenant->queue, 1, TEST_LONG) <= 0)
                tenant->wrong++;
        tenant->result = probe.result;
        if (pthread_equal(probe.thread, pthread_self()) == 0)
            tenant->wrong++;
        if (tenant->backend != WEIR_BACKEND_NULL &&
            pattern_find_wrong(buf, 4096, SEED, 4096) >= 0)
            tenant->wrong++;
    }
    if (weir_queue_fd(tenant->queue) < 0)
        tenant->wrong++;
    tenant->rebound = weir_queue_rebind(tenant->queue);
    return NULL;
}

/* An idle queue moves from thread to thread, with its descriptor made anew; one with work
 * does not move. */
static void rebind__moves_an_idle_queue(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct tenant tenant = { .queue = env->queue, .file = file, .backend = env->backend };
    struct probe probe;
    pthread_t thread;

    for (int round = 0; round < 5; round++) {
        check(weir_queue_fd(env->queue) >= 0);
        submit_nop(env->queue, &probe, TEST_LONG);
        check_code(weir_queue_rebind(env->queue), -EBUSY);
        check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
        check_code(weir_queue_rebind(env->queue), -EBUSY); /* its done is still to come */
        check_code(probe_wait(env->queue, &probe), -ECANCELED);
        probe_arm(&probe);
        check_code(weir_queue_post(env->queue, &probe.job), 0);
        check_code(weir_queue_rebind(env->queue), -EBUSY);
        check_code(weir_queue_run(env->queue), 0); /* takes the timer over */
        check_code(weir_queue_cancel(env->queue, probe.job.id), 0);
        check_code(probe_wait(env->queue, &probe), -ECANCELED);
        check_code(weir_queue_rebind(env->queue), 0);

        check_code(pthread_create(&thread, NULL, use_and_give_up, &tenant), 0);
        (void)pthread_join(thread, NULL);
        check_code(tenant.result, 4096);
        check_code(tenant.rebound, 0);
        check(tenant.wrong == 0);
    }
    check_code(weir_file_close(file), 0);
}

/* --- inside done ----------------------------------------------------------------------------------------------- */

struct nested {
    struct weir_queue *queue;
    struct weir_file *file;
    int codes[6];
    int64_t blocking;
    unsigned chain;
    unsigned freed;
};
static struct nested nested;

static void try_everything(struct weir_job *job)
{
    uint8_t buf[100];

    probe_done(job);
    nested.codes[0] = weir_queue_run(nested.queue);
    nested.codes[1] = weir_queue_wait(nested.queue, 1, TEST_LONG);
    nested.codes[2] = weir_queue_close(nested.queue, 0);
    nested.codes[3] = weir_queue_cancel(nested.queue, job->id);
    nested.codes[4] = weir_queue_fd(nested.queue);
    nested.codes[5] = weir_file_sync(nested.file, WEIR_SYNC_DATA, NULL);
    nested.blocking = weir_file_read(nested.file, buf, 100, 5);
}

/* Running, waiting and closing are -EDEADLK there; blocking calls work. */
static void done__no_turns_inside(struct env *env)
{
    struct probe probe;

    nested = (struct nested){ .queue = env->queue, .file = make_file(env->engine, 4096) };
    weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe_arm(&probe);
    probe.job.done = try_everything;
    {
        struct weir_job *job = &probe.job;

        check_code(weir_queue_submit(env->queue, &job, 1), 1);
    }
    check_code(probe_wait(env->queue, &probe), 0);
    check_code(nested.codes[0], -EDEADLK);
    check_code(nested.codes[1], -EDEADLK);
    check_code(nested.codes[2], -EDEADLK);
    check_code(nested.codes[3], -ENOENT); /* it is done */
    check(nested.codes[4] >= 0);
    check_code(nested.codes[5], 0);
    check_code(nested.blocking, 100);
    check_code(weir_file_close(nested.file), 0);
}

static void submit_self_again(struct weir_job *job)
{
    struct probe *probe = job->arg;

    probe->result = job->result;
    if (++nested.chain < 5000) {
        if (weir_queue_submit(nested.queue, &job, 1) != 1)
            nested.codes[0]++;
        return;
    }
    probe_done(job);
}

/* A job may submit itself again from its `done`, for ever, without growing the stack. */
static void done__submits_itself(struct env *env)
{
    struct probe probes[8];
    uint8_t buf[8][512];

    nested = (struct nested){ .queue = env->queue, .file = make_file(env->engine, 4096) };
    for (size_t i = 0; i < 8; i++) {
        weir_job_read(&probes[i].job, nested.file, buf[i], 512, i * 512, NULL, NULL);
        probe_submit(env->queue, &probes[i]);
        probes[i].job.done = submit_self_again;
    }
    probes_wait(env->queue, probes, 8);
    check(nested.codes[0] == 0);
    check(nested.chain == 5007);
    for (size_t i = 0; i < 8; i++)
        check_code(probes[i].result, 512);
    check_code(weir_file_close(nested.file), 0);
}

static void free_self(struct weir_job *job)
{
    nested.freed++;
    memset(job, 0xdd, sizeof(*job));
    free(job);
}

/* A job may be freed from its `done`, whatever it was: sanitizers watch. */
static void done__frees_the_job(struct env *env)
{
    uint8_t buf[512];
    unsigned count = 0;

    nested = (struct nested){ .queue = env->queue, .file = make_file(env->engine, 4096) };
    for (unsigned i = 0; i < 600; i++) {
        struct weir_job *job = malloc(sizeof(*job));

        if (i % 4 == 0)
            weir_job_read(job, nested.file, buf, 512, 0, free_self, NULL);
        else if (i % 4 == 2)
            weir_job_prepare(job, WEIR_OP_FDATASYNC, nested.file, free_self, NULL);
        else
            weir_job_prepare(job, WEIR_OP_NOP, NULL, free_self, NULL);
        if (i % 4 == 3)
            job->timeout_ns = 1 + i;
        if (i % 2 == 0 || i % 4 == 3) {
            check_code(weir_queue_submit(env->queue, &job, 1), 1);
            if (i % 16 == 0)
                (void)weir_queue_cancel(env->queue, job->id);
        } else {
            check_code(weir_queue_post(env->queue, job), 0);
        }
        count++;
        if (i % 50 == 0)
            check(weir_queue_run(env->queue) >= 0);
    }
    while (nested.freed < count)
        check(weir_queue_wait(env->queue, 1, TEST_LONG) > 0);
    check(nested.freed == count);
    check_code(weir_file_close(nested.file), 0);
}

/* --- more than one ------------------------------------------------------------------------------------------------- */

/* Two engines in one process, of two backends, keep to themselves. */
static void engines__two_at_once(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = WEIR_BACKEND_THREADS };
    struct weir_engine *other;
    struct weir_queue *other_queue;
    struct weir_file *mine = make_file(env->engine, 4096);
    struct weir_file *theirs;
    struct weir_stats stats = { .size = sizeof(stats) };
    struct probe probes[2][50];
    uint8_t buf[2][50][64];

    check_code(weir_engine_open(&options, &other, NULL), 0);
    check_code(weir_queue_open(other, NULL, &other_queue), 0);
    theirs = make_file(other, 4096);
    for (size_t i = 0; i < 50; i++) {
        weir_job_read(&probes[0][i].job, mine, buf[0][i], 64, i * 64, NULL, NULL);
        probe_submit(env->queue, &probes[0][i]);
        weir_job_read(&probes[1][i].job, theirs, buf[1][i], 64, i * 64, NULL, NULL);
        probe_submit(other_queue, &probes[1][i]);
    }
    probes_wait(other_queue, probes[1], 50);
    probes_wait(env->queue, probes[0], 50);
    for (size_t i = 0; i < 50; i++) {
        check_code(probes[0][i].result, 64);
        check_code(probes[1][i].result, 64);
        check_pattern(buf[1][i], 64, SEED, i * 64);
    }
    check_code(weir_engine_stats(env->engine, &stats), 0);
    check_code(stats.ops[WEIR_STATS_READ].done, 50);
    check_code(weir_engine_stats(other, &stats), 0);
    check_code(stats.ops[WEIR_STATS_READ].done, 50);
    check_code(weir_file_close(mine), 0);
    check_code(weir_file_close(theirs), 0);
    check_code(weir_queue_close(other_queue, TEST_LONG), 0);
    check_code(weir_engine_close(other), 0);
}

/* Several queues of one thread and one engine share a file without mixing up. */
static void queues__many_of_one_thread(struct env *env)
{
    enum {
        QUEUES = 12
    };
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct weir_queue *queues[QUEUES];
    struct probe probes[QUEUES][16];
    uint8_t *buf = malloc(QUEUES * 16 * 256);

    for (size_t q = 0; q < QUEUES; q++)
        check_code(weir_queue_open(env->engine, NULL, &queues[q]), 0);
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 16; i++) {
            for (size_t q = 0; q < QUEUES; q++) {
                size_t at = (q * 16 + i) * 256;

                weir_job_read(&probes[q][i].job, file, buf + at, 256, at, NULL, NULL);
                probe_submit(queues[q], &probes[q][i]);
            }
        }
        for (size_t q = QUEUES; q-- > 0;)
            probes_wait(queues[q], probes[q], 16);
        if (env->backend != WEIR_BACKEND_NULL)
            check_pattern(buf, QUEUES * 16 * 256, SEED, 0);
    }
    for (size_t q = 0; q < QUEUES; q++)
        check_code(weir_queue_close(queues[q], TEST_LONG), 0);
    check_code(weir_file_close(file), 0);
    free(buf);
}

static const struct test_case cases[] = {
    CASE(submit__full_takes_a_prefix, 0),
    CASE(submit__bad_job_ends_the_prefix, 0),
    CASE(submit__malformed_is_einval, 0),
    CASE(submit__unusable_file_is_ebadf, 0),
    CASE(submit__same_job_twice_is_refused, 0),
    CASE(submit__ids_are_unique, 0),
    CASE(cancel__staged_is_cancelled, 0),
    CASE(cancel__wrong_id_is_enoent, 0),
    CASE(cancel__timer, 0),
    CASE(cancel__call, 0),
    CASE(cancel__at_the_device, 0),
    CASE(cancel__in_the_backlog, 0),
    CASE(cancel__held_behind_a_write, 0),
    CASE(cancel__between_retries, 0),
    CASE(cancel__due_is_ealready, 0),
    CASE(cancel__as_a_job, 0),
    CASE(deadline__timers_fire_once_not_early, 0),
    CASE(deadline__not_reached, 0),
    CASE(deadline__queued_expires, 0),
    CASE(deadline__at_the_device, 0),
    CASE(deadline__bounds_retries, 0),
    CASE(deadline__of_a_running_call, 0),
    CASE(wait__times_out, 0),
    CASE(wait__min_done, 0),
    CASE(close__with_work_in_flight, 0),
    CASE(close__hanging_device_is_ebusy, 0),
    CASE(close__ebusy_then_run, 0),
    CASE(close__unused, 0),
    CASE(close__file_in_use_is_ebusy, 0),
    CASE(signal__ends_a_wait, 0),
    CASE(signal__hail_changes_nothing, 0),
    CASE(owner__others_get_eperm, 0),
    CASE(rebind__moves_an_idle_queue, 0),
    CASE(done__no_turns_inside, 0),
    CASE(done__submits_itself, 0),
    CASE(done__frees_the_job, 0),
    CASE(engines__two_at_once, 0),
    CASE(queues__many_of_one_thread, 0),
};

int main(int argc, char **argv)
{
    return run_cases("queue", cases, COUNT(cases), argc, argv);
}
