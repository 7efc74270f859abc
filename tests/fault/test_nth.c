/* SPDX-License-Identifier: MIT */
/*
 * test_nth.c - fail the 1st, 2nd, ... Nth allocation, descriptor or system call of a run
 *              until the run is untouched
 *
 * One run opens an engine with buffers, a queue, files, reads, writes, syncs, asks for the
 * descriptor and the statistics, and closes it all. Whatever fails, each call says so with
 * the code that was injected (or copes), everything that did open closes, no descriptor is
 * left, and (under AddressSanitizer) no memory. Allocations are caught by the linker
 * (--wrap) in everything that is linked into this program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED     29u
#define RUNS_MAX 3000

/* --- allocations -------------------------------------------------------------------- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **ret_memory, size_t alignment, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **ret_memory, size_t alignment, size_t size);
char *__wrap_strdup(const char *text);

static int64_t allocations_left = INT64_MAX; /* atomic; at 0 one fails */
static unsigned allocations_failed;          /* atomic */

static bool fails_now(void)
{
    if (__atomic_load_n(&allocations_left, __ATOMIC_RELAXED) > INT64_MAX / 2)
        return false;
    if (__atomic_fetch_sub(&allocations_left, 1, __ATOMIC_RELAXED) != 0)
        return false;
    (void)__atomic_add_fetch(&allocations_failed, 1, __ATOMIC_RELAXED);
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails_now() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **ret_memory, size_t alignment, size_t size)
{
    return fails_now() ? ENOMEM : __real_posix_memalign(ret_memory, alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return fails_now() ? NULL : __real_strdup(text);
}

/* --- the run ---------------------------------------------------------------------------- */

/* How a run went. */
struct outcome {
    unsigned failures; /* calls that reported the injected code */
    unsigned wrong;    /* anything else */
    char what[200];
};

struct run {
    uint32_t backend;
    const struct wi_engine_seams *seams; /* may be NULL */
    const int32_t *allowed;              /* codes that may be reported; 0 at the end */
    char path[300];
    char made[300];
};

static void wrong(struct outcome *outcome, const char *what, int64_t code)
{
    if (outcome->wrong++ == 0)
        (void)snprintf(outcome->what, sizeof(outcome->what), "%s: %lld (%s)", what,
                       (long long)code, code < 0 ? weir_code_name(code) : "ok");
}

/* Counts what a call says. Returns true if it worked. */
static bool judge(const struct run *run, struct outcome *outcome, const char *what,
                  int64_t code)
{
    if (code >= 0)
        return true;
    for (size_t i = 0; run->allowed[i] != 0; i++) {
        if (code == run->allowed[i]) {
            outcome->failures++;
            return false;
        }
    }
    wrong(outcome, what, code);
    return false;
}

/* Submit, and wait until it is done. Returns the job's result, or the code of submit. */
static int64_t run_job(struct weir_queue *queue, struct probe *probe, struct outcome *outcome)
{
    struct weir_job *job = &probe->job;
    int rc;

    probe_arm(probe);
    rc = weir_queue_submit(queue, &job, 1);
    if (rc != 1)
        return rc;
    while (probe->done == 0) {
        rc = weir_queue_wait(queue, 1, TEST_LONG);
        if (rc < 0 && rc != -EINTR) {
            wrong(outcome, "wait", rc);
            return rc;
        }
    }
    return probe->result;
}

static void use_file(const struct run *run, struct weir_queue *queue, struct weir_file *file,
                     struct outcome *outcome)
{
    uint8_t buf[3000];
    struct iovec iov[2] = { { buf, 1000 }, { buf + 1000, 2000 } };
    struct probe probe;
    int64_t rc;

    weir_job_read(&probe.job, file, buf, 3000, 100, NULL, NULL);
    rc = run_job(queue, &probe, outcome);
    if (judge(run, outcome, "read", rc) &&
        (rc != 3000 ||
         (run->backend != WEIR_BACKEND_NULL && pattern_find_wrong(buf, 3000, SEED, 100) >= 0)))
        wrong(outcome, "read is wrong", rc);
    weir_job_readv(&probe.job, file, iov, 2, 100, NULL, NULL);
    rc = run_job(queue, &probe, outcome);
    if (judge(run, outcome, "readv", rc) && rc != 3000)
        wrong(outcome, "readv is wrong", rc);
    pattern_fill(buf, 3000, SEED, 500);
    weir_job_write(&probe.job, file, buf, 3000, 500, NULL, NULL);
    rc = run_job(queue, &probe, outcome);
    if (judge(run, outcome, "write", rc) && rc != 3000)
        wrong(outcome, "write is wrong", rc);
    weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe.job.timeout_ns = 1000;
    (void)judge(run, outcome, "timer", run_job(queue, &probe, outcome));
    rc = weir_file_read(file, buf, 3000, 7);
    if (judge(run, outcome, "blocking read", rc) &&
        (rc != 3000 || pattern_find_wrong(buf, 3000, SEED, 7) >= 0))
        wrong(outcome, "blocking read is wrong", rc);
}

static void use_names(const struct run *run, struct weir_engine *engine,
                      struct weir_queue *queue, struct outcome *outcome)
{
    struct weir_file *file = NULL;
    struct probe probe;
    struct weir_stat stat;

    weir_job_open(&probe.job, NULL, run->made,
                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &file, NULL, NULL);
    if (judge(run, outcome, "open as a job", run_job(queue, &probe, outcome))) {
        if (file == NULL) {
            wrong(outcome, "open gave no file", 0);
        } else {
            (void)judge(run, outcome, "stat", weir_file_stat(file, &stat, NULL));
            (void)judge(run, outcome, "truncate", weir_file_truncate(file, 100, NULL));
            weir_job_sync(&probe.job, file, WEIR_SYNC_ALL, NULL, NULL);
            (void)judge(run, outcome, "sync", run_job(queue, &probe, outcome));
            (void)judge(run, outcome, "close", weir_file_close(file));
        }
    } else if (file != NULL) {
        wrong(outcome, "a failed open gave a file", 0);
    }
    (void)engine;
}

static void run_queue(const struct run *run, struct weir_engine *engine,
                      struct outcome *outcome)
{
    struct weir_queue *queue = NULL;
    struct weir_file *file = NULL;
    struct weir_error error;

    if (!judge(run, outcome, "queue open", weir_queue_open(engine, NULL, &queue))) {
        if (queue != NULL)
            wrong(outcome, "a failed queue open gave a queue", 0);
        return;
    }
    (void)judge(run, outcome, "descriptor", weir_queue_fd(queue));
    if (judge(run, outcome, "file open",
              weir_file_open(engine, NULL, run->path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0,
                             &file, &error))) {
        use_file(run, queue, file, outcome);
        (void)judge(run, outcome, "file close", weir_file_close(file));
    }
    use_names(run, engine, queue, outcome);
    (void)judge(run, outcome, "queue close", weir_queue_close(queue, TEST_LONG));
}

static struct outcome do_run(const struct run *run)
{
    struct weir_engine_options options = {
        .size = sizeof(options), .backend = run->backend, .buffer_size = 4096, .buffer_count = 8
    };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_engine *engine = NULL;
    struct outcome outcome = { 0 };
    struct weir_error error = { 0 };
    char *json;

    if (!judge(run, &outcome, "engine open",
               wi_engine_open_with(&options, run->seams, &engine, &error))) {
        if (engine != NULL)
            wrong(&outcome, "a failed open gave an engine", 0);
        if (error.code == 0 || error.text[0] == '\0')
            wrong(&outcome, "a failed open left no record", error.code);
        return outcome;
    }
    run_queue(run, engine, &outcome);
    json = weir_engine_stats_json(engine);
    if (json == NULL)
        outcome.failures++;
    weir_free(json);
    (void)judge(run, &outcome, "statistics", weir_engine_stats(engine, &stats));
    if (stats.files_open != 0 || stats.queues_open != 0 || stats.in_flight != 0)
        wrong(&outcome, "something was left open", (int64_t)stats.files_open);
    (void)judge(run, &outcome, "engine close", weir_engine_close(engine));
    return outcome;
}

static int lowest_descriptor(void)
{
    int fd = dup(STDERR_FILENO);

    (void)close(fd);
    return fd;
}

static void run_init(struct run *run, struct env *env, const int32_t *allowed)
{
    memset(run, 0, sizeof(*run));
    run->backend = env->backend;
    run->allowed = allowed;
    (void)snprintf(run->path, sizeof(run->path), "%s", test_new_path("nth"));
    (void)snprintf(run->made, sizeof(run->made), "%s", test_new_path("made"));
    pattern_make_file(run->path, 8192, SEED);
}

/* --- the cases --------------------------------------------------------------------------------- */

/* Each allocation fails in turn. Some are not missed (histograms); none may do harm. */
static void allocation__each_fails_in_turn(struct env *env)
{
    static const int32_t allowed[] = { -ENOMEM, 0 };
    struct run run;
    unsigned reported = 0;
    int64_t nth;

    run_init(&run, env, allowed);
    for (nth = 0; nth < RUNS_MAX; nth++) {
        int before = lowest_descriptor();
        struct outcome outcome;

        __atomic_store_n(&allocations_failed, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&allocations_left, nth, __ATOMIC_SEQ_CST);
        outcome = do_run(&run);
        __atomic_store_n(&allocations_left, INT64_MAX, __ATOMIC_SEQ_CST);
        if (outcome.wrong > 0)
            fail_msg("allocation %d fails: %s", (int)nth, outcome.what);
        if (lowest_descriptor() != before)
            fail_msg("allocation %d fails: a descriptor is left", (int)nth);
        if (__atomic_load_n(&allocations_failed, __ATOMIC_SEQ_CST) == 0) {
            check(outcome.failures == 0);
            break;
        }
        reported += outcome.failures > 0 ? 1 : 0;
    }
    check(nth > 5 && nth < RUNS_MAX);
    check(reported > 3);
}

/* With room for 0, 1, 2, ... more descriptors: -EMFILE or it works. A ring that does not get
 * its descriptors gives way to threads. */
static void descriptor__each_is_missing_in_turn(struct env *env)
{
    static const int32_t allowed[] = { -EMFILE, -EOPNOTSUPP, 0 };
    struct rlimit old;
    struct run run;
    bool untouched = false;

    run_init(&run, env, allowed);
    check_code(getrlimit(RLIMIT_NOFILE, &old), 0);
    for (rlim_t room = 0; room < 40 && !untouched; room++) {
        int before = lowest_descriptor();
        struct rlimit limit = { (rlim_t)before + room, old.rlim_max };
        struct outcome outcome;

        check_code(setrlimit(RLIMIT_NOFILE, &limit), 0);
        outcome = do_run(&run);
        check_code(setrlimit(RLIMIT_NOFILE, &old), 0);
        if (outcome.wrong > 0)
            fail_msg("with %d descriptors: %s", (int)room, outcome.what);
        check(lowest_descriptor() == before);
        untouched = outcome.failures == 0;
        check(room > 0 || !untouched);
    }
    check(untouched);
}

/* Each system call of each kind fails in turn, with an error that is not retried. */
static int wrap(void *context, struct wi_backend *inner, struct wi_backend **ret_backend)
{
    return wi_fault_wrap(context, inner, ret_backend);
}

static void system_call__each_fails_in_turn(struct env *env)
{
    static const int32_t allowed[] = { -EDQUOT, 0 };
    struct run run;

    for (int kind = WI_FAULT_NONE + 1; kind < WI_FAULT_KINDS; kind++) {
        uint64_t nth = 1;

        run_init(&run, env, allowed);
        for (; nth < RUNS_MAX; nth++) {
            int before = lowest_descriptor();
            struct wi_engine_seams seams = { .wrap = wrap };
            struct wi_fault_rule rule = {
                .kind = (enum wi_fault_kind)kind, .first = nth, .count = 1, .error = -EDQUOT
            };
            struct wi_fault_plan *plan;
            struct outcome outcome;
            uint64_t acted;

            check_code(wi_fault_create(wi_os_posix(), &plan), 0);
            check_code(wi_fault_add(plan, &rule), 0);
            seams.os = wi_fault_os(plan);
            seams.wrap_context = plan;
            run.seams = &seams;
            outcome = do_run(&run);
            acted = wi_fault_acted(plan);
            wi_fault_destroy(plan);
            if (outcome.wrong > 0)
                fail_msg("call %d of kind %d fails: %s", (int)nth, kind, outcome.what);
            if (lowest_descriptor() != before)
                fail_msg("call %d of kind %d fails: a descriptor is left", (int)nth, kind);
            if (acted == 0) {
                check(outcome.failures == 0);
                break;
            }
            if (outcome.failures == 0)
                fail_msg("call %d of kind %d fails, and nobody says so", (int)nth, kind);
        }
        check(nth < RUNS_MAX);
    }
}

static const struct test_case cases[] = {
    CASE(allocation__each_fails_in_turn, CASE_NO_QUEUE),
    CASE(descriptor__each_is_missing_in_turn, CASE_NO_QUEUE),
    CASE(system_call__each_fails_in_turn, CASE_NO_QUEUE),
};

int main(int argc, char **argv)
{
    return run_cases("nth", cases, COUNT(cases), argc, argv);
}
