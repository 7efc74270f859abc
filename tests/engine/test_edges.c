/* SPDX-License-Identifier: MIT */
/*
 * test_edges.c - full queues, overlapping syncs, no descriptors left, two closes at once
 *
 * What these cases share is that two things that are simple alone come together: a cancel and
 * a queue without room, a failed sync and one that succeeds, a rebind and an exhausted process.
 * As elsewhere, a device that hangs is the fault injector; where a thread must have gone to
 * sleep before the case goes on, its state is asked of the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED    17u
#define POLL_MS 30000 /* only a missed wake-up takes that long */

static struct weir_file *make_file(struct weir_engine *engine, size_t size)
{
    const char *path = test_new_path("edges");
    struct weir_file *file = NULL;

    pattern_make_file(path, size, SEED);
    check_code(
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    return file;
}

static void submit_read(struct weir_queue *queue, struct probe *probe, struct weir_file *file,
                        void *buf, size_t len)
{
    weir_job_read(&probe->job, file, buf, len, 0, NULL, NULL);
    probe_submit(queue, probe);
}

static void post_cancel(struct weir_queue *queue, struct probe *probe, uint64_t id)
{
    weir_job_prepare(&probe->job, WEIR_OP_CANCEL, NULL, NULL, NULL);
    probe->job.offset = id;
    probe_arm(probe);
    check_code(weir_queue_post(queue, &probe->job), 0);
}

static bool poll_readable(int fd, int timeout_ms)
{
    struct pollfd poller = { .fd = fd, .events = POLLIN };
    int rc;

    do
        rc = poll(&poller, 1, timeout_ms);
    while (rc < 0 && errno == EINTR);
    return rc == 1 && (poller.revents & POLLIN) != 0;
}

static void check_falls_silent(struct weir_queue *queue, int fd)
{
    for (int i = 0; i < 1000; i++) {
        if (!poll_readable(fd, 0))
            return;
        check(weir_queue_run(queue) >= 0);
    }
    fail_msg("the descriptor stays readable with nothing that could be done");
}

/* Does this thread of the process sleep in the kernel, or is it gone? */
static bool thread_sleeps(pid_t tid)
{
    char path[64];
    char text[256] = "";
    const char *state;
    FILE *stream;

    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
    stream = fopen(path, "re");
    if (stream == NULL)
        return true;
    (void)!fgets(text, sizeof(text), stream);
    (void)fclose(stream);
    state = strrchr(text, ')');
    return state != NULL && state[1] == ' ' && state[2] == 'S';
}

/* --- a device that is full ------------------------------------------------------------ */

/* A cancel and a timer need no room at the device, where a read hangs for ever. */
static void full__cancel_and_timer_pass_the_device(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe read;
    struct probe timer;
    struct probe cancel;
    uint8_t buf[512];

    faulty_open(&f, env->backend, 1, 0, NULL);
    faulty_hang(&f, WI_FAULT_READ, 0, true);
    file = make_file(f.engine, 4096);
    submit_read(f.queue, &read, file, buf, sizeof(buf));
    check_code(weir_queue_run(f.queue), 0);

    weir_job_prepare(&timer.job, WEIR_OP_NOP, NULL, NULL, NULL);
    timer.job.timeout_ns = TEST_MS;
    check_code(probe_run(f.queue, &timer), 0);
    check(read.done == 0);

    post_cancel(f.queue, &cancel, read.job.id);
    check_code(probe_wait(f.queue, &cancel), 0);
    check_code(probe_wait(f.queue, &read), -ECANCELED);
    faulty_release(&f);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* With as much taken as can be, a posted cancel is acted on all the same: it passes the posts
 * that wait for room, and it is what makes room for them. */
static void full__cancel_passes_a_queue_without_room(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe reads[4]; /* the last is posted, and waits for room */
    struct probe cancels[2];
    uint8_t buf[4][512];

    faulty_open(&f, env->backend, 1, 2, NULL);
    faulty_hang(&f, WI_FAULT_READ, 1, true);
    file = make_file(f.engine, 4096);
    for (size_t i = 0; i < 3; i++)
        submit_read(f.queue, &reads[i], file, buf[i], sizeof(buf[i]));
    check_code(weir_queue_run(f.queue), 0);
    weir_job_read(&reads[3].job, file, buf[3], sizeof(buf[3]), 0, NULL, NULL);
    probe_arm(&reads[3]);
    check_code(weir_queue_post(f.queue, &reads[3].job), 0);
    check_code(weir_queue_run(f.queue), 0);

    /* Two at once; the first names no job, and so makes no room. */
    post_cancel(f.queue, &cancels[0], UINT64_MAX);
    post_cancel(f.queue, &cancels[1], reads[0].job.id);
    check_code(probe_wait(f.queue, &cancels[0]), -ENOENT);
    check_code(probe_wait(f.queue, &cancels[1]), 0);
    check_code(probe_wait(f.queue, &reads[0]), -ECANCELED);
    for (size_t i = 1; i < 4; i++)
        check_code(probe_wait(f.queue, &reads[i]), sizeof(buf[i]));
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* An event loop has nothing to do for posts that wait for room, and must not be told it has. */
static void full__waiting_posts_do_not_spin(struct env *env)
{
    struct faulty f;
    struct weir_file *file;
    struct probe probes[4];
    uint8_t buf[4][512];
    int fd;

    /* Room for two that are taken, and as many posts may wait. */
    faulty_open(&f, env->backend, 1, 1, NULL);
    faulty_hang(&f, WI_FAULT_READ, 0, false);
    file = make_file(f.engine, 4096);
    fd = weir_queue_fd(f.queue);
    check(fd >= 0);
    submit_read(f.queue, &probes[0], file, buf[0], sizeof(buf[0]));
    submit_read(f.queue, &probes[1], file, buf[1], sizeof(buf[1]));
    for (size_t i = 2; i < COUNT(probes); i++) {
        weir_job_read(&probes[i].job, file, buf[i], sizeof(buf[i]), 0, NULL, NULL);
        probe_arm(&probes[i]);
        check_code(weir_queue_post(f.queue, &probes[i].job), 0);
    }
    check_falls_silent(f.queue, fd);
    for (size_t i = 0; i < COUNT(probes); i++)
        check(probes[i].done == 0);

    faulty_release(&f);
    for (size_t i = 0; i < COUNT(probes); i++) {
        while (probes[i].done == 0) {
            if (!poll_readable(fd, POLL_MS))
                fail_msg("no wake-up for job %zu, now that there is room", i);
            check(weir_queue_run(f.queue) >= 0);
        }
        check(probes[i].done == 1);
        check_code(probes[i].result, sizeof(buf[i]));
    }
    check_falls_silent(f.queue, fd);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* --- syncs at the same time --------------------------------------------------------------- */

/* An os table that reports lost data as the kernel does: to the first that asks. That one is
 * held back before it returns. */
struct sync_os {
    struct wi_os os; /* first */
    struct wi_os_ops ops;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned calls;
    bool let_first_go;
    pid_t second_tid; /* 0 until the second call is about to return */
};

static int sync_once_wrong(const struct wi_os *os, int fd)
{
    struct sync_os *self = (struct sync_os *)(uintptr_t)os;
    int rc = 0;

    (void)fd;
    (void)pthread_mutex_lock(&self->mutex);
    if (++self->calls == 1) {
        rc = -EIO;
        (void)pthread_cond_broadcast(&self->changed);
        while (!self->let_first_go)
            (void)pthread_cond_wait(&self->changed, &self->mutex);
    } else if (self->calls == 2) {
        self->second_tid = (pid_t)syscall(SYS_gettid);
        (void)pthread_cond_broadcast(&self->changed);
    }
    (void)pthread_mutex_unlock(&self->mutex);
    return rc;
}

static void sync_os_open(struct sync_os *self, uint32_t backend, struct weir_engine **engine)
{
    struct weir_engine_options options = { .size = sizeof(options), .backend = backend };
    struct wi_engine_seams seams = { .os = &self->os };

    memset(self, 0, sizeof(*self));
    self->ops = *wi_os_posix()->ops;
    self->ops.fsync = sync_once_wrong;
    self->ops.fdatasync = sync_once_wrong;
    self->os.ops = &self->ops;
    (void)pthread_mutex_init(&self->mutex, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    check_code(wi_engine_open_with(&options, &seams, engine, NULL), 0);
}

static void sync_os_wait_first(struct sync_os *self)
{
    (void)pthread_mutex_lock(&self->mutex);
    while (self->calls < 1)
        (void)pthread_cond_wait(&self->changed, &self->mutex);
    (void)pthread_mutex_unlock(&self->mutex);
}

/* Until the second has got its 0, and sleeps over it or has passed it on. */
static void sync_os_wait_second(struct sync_os *self)
{
    pid_t tid;

    (void)pthread_mutex_lock(&self->mutex);
    while (self->second_tid == 0)
        (void)pthread_cond_wait(&self->changed, &self->mutex);
    tid = self->second_tid;
    (void)pthread_mutex_unlock(&self->mutex);
    while (!thread_sleeps(tid))
        (void)sched_yield();
}

static void sync_os_let_first_go(struct sync_os *self)
{
    (void)pthread_mutex_lock(&self->mutex);
    self->let_first_go = true;
    (void)pthread_cond_broadcast(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

struct syncer {
    struct weir_file *file;
    pthread_t thread;
    int rc;
};

static void *sync_blocking(void *arg)
{
    struct syncer *syncer = arg;

    syncer->rc = weir_file_sync(syncer->file, WEIR_SYNC_DATA, NULL);
    return NULL;
}

/* Of two blocking syncs one is told of the loss. The other must not say that all is well. */
static void sync__success_waits_for_one_that_fails(struct env *env)
{
    struct sync_os os;
    struct weir_engine *engine;
    struct syncer first = { .rc = 1 };
    struct syncer second = { .rc = 1 };

    sync_os_open(&os, env->backend, &engine);
    first.file = second.file = make_file(engine, 4096);
    check(pthread_create(&first.thread, NULL, sync_blocking, &first) == 0);
    sync_os_wait_first(&os);
    check(pthread_create(&second.thread, NULL, sync_blocking, &second) == 0);
    sync_os_wait_second(&os);
    sync_os_let_first_go(&os);
    (void)pthread_join(first.thread, NULL);
    (void)pthread_join(second.thread, NULL);
    check_code(first.rc, -EIO);
    check_code(second.rc, -EIO);
    check_code(weir_file_sync(first.file, WEIR_SYNC_ALL, NULL), -EIO);
    check_code(weir_file_write(first.file, "x", 1, 0), -EIO);
    check_code(weir_file_close(first.file), -EIO);
    check_code(weir_engine_close(engine), 0);
}

/* The same with a blocking sync that fails and a job. */
static void sync__job_waits_for_one_that_fails(struct env *env)
{
    struct sync_os os;
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct syncer first = { .rc = 1 };
    struct probe second;

    sync_os_open(&os, env->backend, &engine);
    check_code(weir_queue_open(engine, NULL, &queue), 0);
    first.file = make_file(engine, 4096);
    check(pthread_create(&first.thread, NULL, sync_blocking, &first) == 0);
    sync_os_wait_first(&os);
    weir_job_sync(&second.job, first.file, WEIR_SYNC_DATA, NULL, NULL);
    probe_submit(queue, &second);
    check(weir_queue_run(queue) >= 0);
    sync_os_wait_second(&os);
    check(weir_queue_run(queue) >= 0);
    sync_os_let_first_go(&os);
    check_code(probe_wait(queue, &second), -EIO);
    (void)pthread_join(first.thread, NULL);
    check_code(first.rc, -EIO);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_file_close(first.file), -EIO);
    check_code(weir_engine_close(engine), 0);
}

/* --- many writes to one place ---------------------------------------------------------------- */

enum {
    WRITES = 4000,
    WORDS = 8192, /* 64 KiB: the whole file */
    BLOCK_WORDS = 512
};

struct write_case {
    struct probe probe;
    size_t first; /* word */
    size_t words;
    uint64_t *buf;
};

/* Thousands of writes to one block, and of parts of large ones, with random cancels: each is
 * done once, and the file is as if those that succeeded had come one after the other. */
static void order__overlapping_writes_and_cancels(struct env *env)
{
    struct test_rng rng = { test_seed() ^ SEED };
    struct weir_queue_options options = { .size = sizeof(options),
                                          .depth = 32,
                                          .backlog = WRITES };
    struct weir_file *file = make_file(env->engine, WORDS * sizeof(uint64_t));
    struct write_case *writes = calloc(WRITES, sizeof(*writes));
    uint64_t *want = calloc(WORDS, sizeof(*want));
    uint64_t *got = calloc(WORDS, sizeof(*got));
    struct weir_queue *queue;
    unsigned succeeded = 0;

    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    check_code(weir_file_read(file, want, WORDS * sizeof(*want), 0), WORDS * sizeof(*want));
    for (size_t i = 0; i < WRITES; i++) {
        struct write_case *one = &writes[i];
        uint64_t dice = rng_below(&rng, 100);

        if (dice < 2) {
            one->words = WORDS;
        } else if (dice < 75) {
            one->words = BLOCK_WORDS;
        } else {
            one->words = 1 + rng_below(&rng, BLOCK_WORDS);
            one->first = rng_below(&rng, WORDS - one->words);
        }
        one->buf = malloc(one->words * sizeof(*one->buf));
        for (size_t w = 0; w < one->words; w++)
            one->buf[w] = (uint64_t)i << 32 | w;
        weir_job_write(&one->probe.job, file, one->buf, one->words * sizeof(*one->buf),
                       one->first * sizeof(*one->buf), NULL, NULL);
        probe_submit(queue, &one->probe);

        /* Nothing for long, so that much is held; then turns in between. */
        if (i > WRITES / 2 && rng_below(&rng, 8) == 0)
            check(weir_queue_run(queue) >= 0);
        if (rng_below(&rng, 5) == 0) {
            struct probe *victim = &writes[rng_below(&rng, i + 1)].probe;

            if (victim->done == 0) {
                int rc = weir_queue_cancel(queue, victim->job.id);

                check(rc == 0 || rc == -EALREADY || rc == -EAGAIN);
            }
        }
    }
    for (size_t i = 0; i < WRITES; i++) {
        (void)probe_wait(queue, &writes[i].probe);
        if (rng_below(&rng, 10) == 0) {
            struct probe *victim = &writes[rng_below(&rng, WRITES)].probe;

            if (victim->done == 0)
                (void)weir_queue_cancel(queue, victim->job.id);
        }
    }
    check_code(weir_queue_run(queue), 0);

    for (size_t i = 0; i < WRITES; i++) {
        struct write_case *one = &writes[i];
        size_t bytes = one->words * sizeof(*one->buf);

        check(one->probe.done == 1);
        if (one->probe.result != -ECANCELED)
            check_code(one->probe.result, bytes);
        if (one->probe.result >= 0)
            succeeded++;
        memcpy(want + one->first, one->buf, one->probe.transferred);
        free(one->buf);
    }
    check(succeeded > WRITES / 4 && succeeded < WRITES);
    check_code(weir_file_read(file, got, WORDS * sizeof(*got), 0), WORDS * sizeof(*got));
    for (size_t w = 0; w < WORDS; w++) {
        if (got[w] != want[w])
            fail_msg("word %zu is of write %llu, not %llu", w,
                     (unsigned long long)(got[w] >> 32), (unsigned long long)(want[w] >> 32));
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_file_close(file), 0);
    free(writes);
    free(want);
    free(got);
}

/* --- owners, and no descriptors --------------------------------------------------------------- */

/* Every descriptor number below the limit is taken afterwards. Returns what it was. */
static struct rlimit exhaust_descriptors(void)
{
    struct rlimit before;
    struct rlimit now;
    int lowest = dup(STDERR_FILENO);

    check(lowest >= 0);
    (void)close(lowest);
    check(getrlimit(RLIMIT_NOFILE, &before) == 0);
    now = before;
    now.rlim_cur = (rlim_t)lowest;
    check(setrlimit(RLIMIT_NOFILE, &now) == 0);
    return before;
}

struct other_owner {
    struct weir_queue *queue;
    struct weir_file *file;
    int64_t result;
    int rebound;
};

static void *use_and_rebind(void *arg)
{
    struct other_owner *other = arg;
    uint8_t buf[512];
    struct weir_job job;
    struct weir_job *jobs[] = { &job };
    struct probe probe;

    weir_job_read(&job, other->file, buf, sizeof(buf), 0, probe_done, &probe);
    memset(&probe, 0, sizeof(probe));
    other->result = weir_queue_submit(other->queue, jobs, 1);
    if (other->result == 1) {
        while (probe.done == 0 && weir_queue_wait(other->queue, 1, TEST_LONG) >= 0)
            continue;
        other->result = probe.result;
        other->rebound = weir_queue_rebind(other->queue);
    }
    return NULL;
}

/* Where the next owner could have no ring, the queue stays with this one, and works. */
static void rebind__without_descriptors(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 4096);
    struct other_owner other = { env->queue, file, 1, 1 };
    struct probe probe;
    struct rlimit limit;
    pthread_t thread;
    uint8_t buf[512];
    int rc;

    weir_job_read(&probe.job, file, buf, sizeof(buf), 0, NULL, NULL);
    check_code(probe_run(env->queue, &probe), sizeof(buf));
    limit = exhaust_descriptors();
    rc = weir_queue_rebind(env->queue);
    for (int i = 0; i < 20 && rc < 0; i++) {
        weir_job_read(&probe.job, file, buf, sizeof(buf), 0, NULL, NULL);
        probe_submit(env->queue, &probe);
        while (probe.done == 0 && weir_queue_wait(env->queue, 1, TEST_LONG) >= 0)
            continue;
    }
    check(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    check(probe.done == 1);
    check_code(probe.result, sizeof(buf));
    if (env->backend == WEIR_BACKEND_URING || rc < 0) {
        check_code(rc, -EMFILE);
        check_code(weir_queue_rebind(env->queue), 0);
    }
    check(pthread_create(&thread, NULL, use_and_rebind, &other) == 0);
    (void)pthread_join(thread, NULL);
    check_code(other.result, sizeof(buf));
    check_code(other.rebound, 0);
    check_code(probe_run(env->queue, &probe), sizeof(buf));
    check_code(weir_file_close(file), 0);
}

/* A queue that was rebound and never used again is closed, also without descriptors. */
static void rebind__then_close(struct env *env)
{
    for (int without = 0; without < 2; without++) {
        struct weir_queue *queue;
        struct probe probe;
        struct rlimit limit;
        int rc;

        check_code(weir_queue_open(env->engine, NULL, &queue), 0);
        weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
        check_code(probe_run(queue, &probe), 0);
        check_code(weir_queue_rebind(queue), 0);
        if (without)
            limit = exhaust_descriptors();
        rc = weir_queue_close(queue, TEST_LONG);
        if (without)
            check(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        check_code(rc, 0);
    }
}

/* --- a job twice, and its id ------------------------------------------------------------------ */

/* A job that is posted is not taken a second time, whichever way; the first is done once. */
static void post__same_job_twice_is_refused(struct env *env)
{
    for (int i = 0; i < 100; i++) {
        struct probe probe;
        struct weir_job *job = &probe.job;

        weir_job_prepare(job, WEIR_OP_NOP, NULL, NULL, NULL);
        probe_arm(&probe);
        check_code(weir_queue_post(env->queue, job), 0);
        if (i % 2)
            check_code(weir_queue_post(env->queue, job), -EINVAL);
        else
            check_code(weir_queue_submit(env->queue, &job, 1), -EINVAL);
        check_code(probe_wait(env->queue, &probe), 0);
        check_code(weir_queue_run(env->queue), 0);
        check(probe.done == 1);
        /* It can be used again. */
        check_code(probe_run(env->queue, &probe), 0);
    }
}

/* However many queues there were, no id is 0, nor is the part of it that names the queue. */
static void ids__of_many_queues_are_not_zero(struct env *env)
{
    struct probe probe;

    for (int i = 0; i < 4200; i++) {
        struct weir_queue_options options = { .size = sizeof(options),
                                              .depth = 1,
                                              .backlog = 1 };
        struct weir_queue *queue;

        check_code(weir_queue_open(env->engine, &options, &queue), 0);
        for (int j = 0; j < 3; j++) {
            weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
            probe_submit(queue, &probe);
            check(probe.job.id != 0);
            check(probe.job.id >> 52 != 0);
            check_code(probe_wait(queue, &probe), 0);
        }
        check_code(weir_queue_close(queue, TEST_LONG), 0);
    }
}

/* --- a long turn ------------------------------------------------------------------------------ */

/* Reads from the page cache are done in a turn's own time, so a turn does no more than about a
 * mebibyte of them; the descriptor says that there is more. */
static void turn__does_a_bounded_part_of_cached_reads(struct env *env)
{
    enum {
        READS = 1000,
        LEN = 128 * 1024,
        PLACES = 64,
        AT_ONCE = 16
    };
    struct weir_file *file = make_file(env->engine, (size_t)PLACES * LEN);
    struct probe *probes = calloc(READS, sizeof(*probes));
    uint8_t *buf = malloc((size_t)PLACES * LEN);
    int fd = weir_queue_fd(env->queue);
    int done = 0;

    check(fd >= 0);
    check_code(weir_file_read(file, buf, (size_t)PLACES * LEN, 0), (size_t)PLACES * LEN);
    for (size_t i = 0; i < READS; i++) {
        size_t offset = i % PLACES * LEN;

        weir_job_read(&probes[i].job, file, buf + offset, LEN, offset, NULL, NULL);
        probe_submit(env->queue, &probes[i]);
    }
    while (done < READS) {
        int rc;

        if (!poll_readable(fd, POLL_MS))
            fail_msg("silent with %d of %d done", done, (int)READS);
        rc = weir_queue_run(env->queue);
        check(rc >= 0 && rc <= AT_ONCE);
        done += rc;
    }
    for (size_t i = 0; i < READS; i++) {
        check(probes[i].done == 1);
        check_code(probes[i].result, LEN);
    }
    check_pattern(buf, (size_t)PLACES * LEN, SEED, 0);
    check_falls_silent(env->queue, fd);
    check_code(weir_file_close(file), 0);
    free(probes);
    free(buf);
}

/* --- closing and adopting files --------------------------------------------------------------- */

struct closer {
    pthread_barrier_t start;
    pthread_barrier_t end;
    struct weir_file *file; /* NULL: the last round */
    int rc;
};

static void *close_each(void *arg)
{
    struct closer *closer = arg;

    for (;;) {
        (void)pthread_barrier_wait(&closer->start);
        if (closer->file == NULL)
            return NULL;
        closer->rc = weir_file_close(closer->file);
        (void)pthread_barrier_wait(&closer->end);
    }
}

/* Of two closes at once, blocking or jobs, one closes the file; the other is told. */
static void close__one_of_two_wins(struct env *env)
{
    struct closer closer = { .rc = 1 };
    const char *path = test_new_path("close");
    pthread_t thread;

    pattern_make_file(path, 16, SEED);
    (void)pthread_barrier_init(&closer.start, NULL, 2);
    (void)pthread_barrier_init(&closer.end, NULL, 2);
    check(pthread_create(&thread, NULL, close_each, &closer) == 0);
    for (int i = 0; i < 3000; i++) {
        struct weir_file *file;
        struct probe probes[2];
        int64_t own;
        int64_t other;

        check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &file, NULL), 0);
        if (i % 3 == 0) {
            weir_job_prepare(&probes[0].job, WEIR_OP_CLOSE, file, NULL, NULL);
            probes[1].job = probes[0].job;
            probe_submit(env->queue, &probes[0]);
            probe_submit(env->queue, &probes[1]);
            own = probe_wait(env->queue, &probes[0]);
            other = probe_wait(env->queue, &probes[1]);
        } else {
            closer.file = file;
            if (i % 3 == 1) {
                weir_job_prepare(&probes[0].job, WEIR_OP_CLOSE, file, NULL, NULL);
                probe_submit(env->queue, &probes[0]);
            }
            (void)pthread_barrier_wait(&closer.start);
            own = i % 3 == 1 ? probe_wait(env->queue, &probes[0]) : weir_file_close(file);
            (void)pthread_barrier_wait(&closer.end);
            other = closer.rc;
        }
        check((own == 0) + (other == 0) == 1);
        if (own == 0)
            own = other;
        check(own == -EBADF || own == -EBUSY || other == -EBADF || other == -EBUSY);
    }
    closer.file = NULL;
    (void)pthread_barrier_wait(&closer.start);
    (void)pthread_join(thread, NULL);
    (void)pthread_barrier_destroy(&closer.start);
    (void)pthread_barrier_destroy(&closer.end);
}

/* Its writes would go to the end, wherever they were meant to go. */
static void adopt__append_is_refused(struct env *env)
{
    const char *path = test_new_path("append");
    struct weir_error error = { 0 };
    struct weir_file *file = NULL;
    int fd;

    pattern_make_file(path, 16, SEED);
    fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
    check(fd >= 0);
    check_code(weir_file_adopt(env->engine, fd, "append", &file, &error), -EINVAL);
    check_code(error.code, -EINVAL);
    check(error.text[0] != '\0');
    check(file == NULL);
    check((fcntl(fd, F_GETFL) & O_APPEND) != 0); /* still ours, and open */

    check(fcntl(fd, F_SETFL, 0) == 0);
    check_code(weir_file_adopt(env->engine, fd, "append", &file, &error), 0);
    check_code(weir_file_close(file), 0);
    check(fcntl(fd, F_GETFL) < 0);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(full__cancel_and_timer_pass_the_device, CASE_NO_QUEUE),
        CASE(full__cancel_passes_a_queue_without_room, CASE_NO_QUEUE),
        CASE(full__waiting_posts_do_not_spin, CASE_NO_QUEUE),
        CASE(sync__success_waits_for_one_that_fails, CASE_ONCE | CASE_NO_QUEUE),
        CASE(sync__job_waits_for_one_that_fails, CASE_NO_QUEUE | CASE_BYTES),
        CASE(order__overlapping_writes_and_cancels, CASE_BYTES),
        CASE(rebind__without_descriptors, 0),
        CASE(rebind__then_close, CASE_NO_QUEUE),
        CASE(post__same_job_twice_is_refused, 0),
        CASE(ids__of_many_queues_are_not_zero, CASE_ONCE | CASE_NO_QUEUE),
        CASE(turn__does_a_bounded_part_of_cached_reads, CASE_BYTES),
        CASE(close__one_of_two_wins, 0),
        CASE(adopt__append_is_refused, CASE_ONCE),
    };

    return run_cases("engine_edges", cases, COUNT(cases), argc, argv);
}
