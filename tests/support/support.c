/* SPDX-License-Identifier: MIT */
/*
 * support.c - see support.h. Order as there.
 */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TMPFS_MAGIC_NUMBER 0x01021994
#define PATH_SIZE          512u

/* --- places ---------------------------------------------------------------- */

static char real_dir[PATH_SIZE];
static char memory_dir[PATH_SIZE];
static pid_t dirs_owner;

static int remove_entry(const char *path, const struct stat *status, int type,
                        struct FTW *where)
{
    (void)status;
    (void)type;
    (void)where;
    (void)remove(path);
    return 0;
}

void test_remove_tree(const char *path)
{
    (void)nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void remove_dirs(void)
{
    if (getpid() != dirs_owner)
        return;
    if (real_dir[0] != '\0')
        test_remove_tree(real_dir);
    if (memory_dir[0] != '\0')
        test_remove_tree(memory_dir);
}

static void make_dir(char *path, const char *parent)
{
    (void)snprintf(path, PATH_SIZE, "%s/weir-test-XXXXXX", parent);
    if (mkdtemp(path) == NULL) {
        (void)fprintf(stderr, "cannot make %s: %s\n", path, strerror(errno));
        exit(99);
    }
    /* Suites that drop their privileges must still reach their files. */
    (void)chmod(path, 0777);
    if (dirs_owner == 0) {
        dirs_owner = getpid();
        (void)atexit(remove_dirs);
    }
}

const char *test_dir(void)
{
    if (real_dir[0] == '\0') {
        const char *parent = getenv("WEIR_TEST_DIR");

        if (parent == NULL || parent[0] == '\0')
            parent = getenv("TMPDIR");
        if (parent == NULL || parent[0] == '\0')
            parent = "/var/tmp";
        make_dir(real_dir, parent);
    }
    return real_dir;
}

const char *test_memory_dir(void)
{
    struct statfs fs;

    if (memory_dir[0] == '\0') {
        if (statfs("/dev/shm", &fs) != 0 || fs.f_type != TMPFS_MAGIC_NUMBER)
            return NULL;
        make_dir(memory_dir, "/dev/shm");
    }
    return memory_dir;
}

const char *test_path(const char *name)
{
    static char paths[8][PATH_SIZE * 2];
    static unsigned turn;
    char *path = paths[turn++ % 8];

    (void)snprintf(path, sizeof(paths[0]), "%s/%s", test_dir(), name);
    return path;
}

const char *test_new_path(const char *prefix)
{
    static unsigned number;
    char name[128];

    (void)snprintf(name, sizeof(name), "%s-%u", prefix, ++number);
    return test_path(name);
}

/* --- patterns and seeds -------------------------------------------------------- */

static uint64_t mix(uint64_t value)
{
    value ^= value >> 30;
    value *= UINT64_C(0xbf58476d1ce4e5b9);
    value ^= value >> 27;
    value *= UINT64_C(0x94d049bb133111eb);
    value ^= value >> 31;
    return value;
}

uint8_t pattern_byte(uint64_t seed, uint64_t offset)
{
    return (uint8_t)(mix(seed * UINT64_C(0x9e3779b97f4a7c15) + offset / 8 + 1) >>
                     (offset % 8 * 8));
}

void pattern_fill(void *buf, size_t len, uint64_t seed, uint64_t offset)
{
    uint8_t *bytes = buf;

    for (size_t i = 0; i < len; i++)
        bytes[i] = pattern_byte(seed, offset + i);
}

int64_t pattern_find_wrong(const void *buf, size_t len, uint64_t seed, uint64_t offset)
{
    const uint8_t *bytes = buf;

    for (size_t i = 0; i < len; i++) {
        if (bytes[i] != pattern_byte(seed, offset + i))
            return (int64_t)i;
    }
    return -1;
}

void pattern_make_file(const char *path, size_t size, uint64_t seed)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    uint8_t *buf = malloc(64 * KIB);

    if (fd < 0 || buf == NULL) {
        (void)fprintf(stderr, "cannot make %s: %s\n", path, strerror(errno));
        exit(99);
    }
    for (size_t at = 0; at < size; at += 64 * KIB) {
        size_t part = size - at < 64 * KIB ? size - at : 64 * KIB;

        pattern_fill(buf, part, seed, at);
        if (pwrite(fd, buf, part, (off_t)at) != (ssize_t)part) {
            (void)fprintf(stderr, "cannot fill %s: %s\n", path, strerror(errno));
            exit(99);
        }
    }
    free(buf);
    (void)close(fd);
}

uint64_t test_env_number(const char *name, uint64_t normal)
{
    const char *text = getenv(name);
    char *end;
    uint64_t value;

    if (text == NULL || text[0] == '\0')
        return normal;
    value = strtoull(text, &end, 0);
    return *end == '\0' ? value : normal;
}

uint64_t test_now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    const char *text = getenv("WEIR_SEED");

    if (seed == 0) {
        seed = test_env_number("WEIR_SEED", 20120);
        if (text != NULL && strcmp(text, "random") == 0)
            seed = mix(test_now_ns() + (uint64_t)getpid()) >> 16;
        if (seed == 0)
            seed = 1;
        (void)fprintf(stderr, "seed: WEIR_SEED=%" PRIu64 "\n", seed);
    }
    return seed;
}

uint64_t rng_next(struct test_rng *rng)
{
    rng->state += UINT64_C(0x9e3779b97f4a7c15);
    return mix(rng->state);
}

uint64_t rng_below(struct test_rng *rng, uint64_t limit)
{
    return rng_next(rng) % limit;
}

void *folded_map(size_t size, size_t real_size)
{
    int fd = memfd_create("weir-test-fold", MFD_CLOEXEC);
    uint8_t *base =
        mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (fd < 0 || base == MAP_FAILED || ftruncate(fd, (off_t)real_size) != 0)
        goto fail;
    for (size_t at = 0; at < size; at += real_size) {
        size_t part = size - at < real_size ? size - at : real_size;

        if (mmap(base + at, part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
            MAP_FAILED)
            goto fail;
    }
    (void)close(fd);
    return base;
fail:
    (void)fprintf(stderr, "cannot map a folded buffer: %s\n", strerror(errno));
    exit(99);
}

void folded_unmap(void *address, size_t size)
{
    (void)munmap(address, size);
}

/* --- probes ------------------------------------------------------------------------ */

static uint64_t done_order;

void probe_order_reset(void)
{
    __atomic_store_n(&done_order, 0, __ATOMIC_RELAXED);
}

void probe_done(struct weir_job *job)
{
    struct probe *probe = job->arg;

    probe->done++;
    probe->result = job->result;
    probe->transferred = job->transferred;
    probe->id = job->id;
    probe->thread = pthread_self();
    probe->order = __atomic_add_fetch(&done_order, 1, __ATOMIC_RELAXED);
    probe->done_ns = test_now_ns();
}

void probe_arm(struct probe *probe)
{
    probe->job.done = probe_done;
    probe->job.arg = probe;
    probe->job.error = &probe->error;
    memset(&probe->error, 0, sizeof(probe->error));
    probe->result = INT64_MIN;
    probe->transferred = 0;
    probe->done = 0;
    probe->order = 0;
    probe->done_ns = 0;
}

void probe_submit(struct weir_queue *queue, struct probe *probe)
{
    struct weir_job *job = &probe->job;

    probe_arm(probe);
    check_code(weir_queue_submit(queue, &job, 1), 1);
    check(probe->done == 0); /* never inside submit */
}

int64_t probe_wait(struct weir_queue *queue, struct probe *probe)
{
    while (probe->done == 0) {
        int rc = weir_queue_wait(queue, 1, TEST_LONG);

        if (rc == -EINTR)
            continue;
        if (rc <= 0 && probe->done == 0)
            fail_msg("a job was never done: wait returned %d (%s)", rc, weir_code_name(rc));
    }
    check(probe->done == 1);
    check(pthread_equal(probe->thread, pthread_self()) != 0);
    return probe->result;
}

int64_t probe_run(struct weir_queue *queue, struct probe *probe)
{
    probe_submit(queue, probe);
    return probe_wait(queue, probe);
}

void probes_wait(struct weir_queue *queue, struct probe *probes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        (void)probe_wait(queue, &probes[i]);
}

/* --- checks ------------------------------------------------------------------------------ */

void test_check_code(int64_t got, int64_t want, const char *what, const char *file, int line)
{
    if (got == want)
        return;
    print_error("%s is %" PRId64 " (%s), not %" PRId64 " (%s)\n", what, got,
                got < 0 ? weir_code_name(got) : "ok", want,
                want < 0 ? weir_code_name(want) : "ok");
    _fail(file, line);
}

void test_check(int condition, const char *what, const char *file, int line)
{
    if (condition)
        return;
    print_error("not true: %s\n", what);
    _fail(file, line);
}

void test_check_pattern(const void *buf, size_t len, uint64_t seed, uint64_t offset,
                        const char *file, int line)
{
    int64_t wrong = pattern_find_wrong(buf, len, seed, offset);

    if (wrong < 0)
        return;
    print_error("byte %" PRId64 " of %zu is 0x%02x, not 0x%02x\n", wrong, len,
                ((const uint8_t *)buf)[wrong], pattern_byte(seed, offset + (uint64_t)wrong));
    _fail(file, line);
}

/* --- cases ---------------------------------------------------------------------------------- */

static char watchdog_name[160];

static void watchdog_bark(int number)
{
    static const char text[] = "\nWATCHDOG: hangs in ";

    (void)number;
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)!write(STDERR_FILENO, watchdog_name, strlen(watchdog_name));
    (void)!write(STDERR_FILENO, "\n", 1);
    remove_dirs();
    abort();
}

static timer_t watchdog_timer;
static bool watchdog_made;

void watchdog_start(const char *what, unsigned seconds)
{
    struct itimerspec when = { .it_value = { .tv_sec = (time_t)seconds } };

    (void)snprintf(watchdog_name, sizeof(watchdog_name), "%s", what);
    if (!watchdog_made) {
        struct sigaction action = { .sa_handler = watchdog_bark };
        struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };

        (void)sigaction(SIGUSR2, &action, NULL);
        if (timer_create(CLOCK_MONOTONIC, &event, &watchdog_timer) != 0)
            return;
        watchdog_made = true;
    }
    (void)timer_settime(watchdog_timer, 0, &when, NULL);
}

void watchdog_stop(void)
{
    struct itimerspec never = { .it_value = { 0, 0 } };

    if (watchdog_made)
        (void)timer_settime(watchdog_timer, 0, &never, NULL);
}

const char *backend_name_of(uint32_t backend)
{
    switch (backend) {
    case WEIR_BACKEND_URING:
        return "uring";
    case WEIR_BACKEND_THREADS:
        return "threads";
    case WEIR_BACKEND_NULL:
        return "null";
    default:
        return "auto";
    }
}

bool backend_works(uint32_t backend)
{
    struct weir_engine_options options = { .size = sizeof(options), .backend = backend };
    struct weir_engine *engine;

    if (weir_engine_open(&options, &engine, NULL) != 0)
        return false;
    (void)weir_engine_close(engine);
    return true;
}

/* One case on one backend, as cmocka's initial state. */
struct case_run {
    const struct test_case *test;
    uint32_t backend;
    bool works;
    char name[128];
};

static void run_one(void **state)
{
    const struct case_run *run = *state;
    struct env env = { .backend = run->backend, .backend_name = backend_name_of(run->backend) };
    struct weir_engine_options options = { .size = sizeof(options), .backend = run->backend };
    struct weir_error error;
    struct weir_stats stats = { .size = sizeof(stats) };

    if (!run->works) {
        (void)fprintf(stderr, "%s: this backend does not run here\n", run->name);
        skip();
    }
    watchdog_start(run->name, (unsigned)test_env_number("WEIR_TEST_WATCHDOG", 240));
    check_code(weir_engine_open(&options, &env.engine, &error), 0);
    if ((run->test->flags & CASE_NO_QUEUE) == 0)
        check_code(weir_queue_open(env.engine, NULL, &env.queue), 0);
    run->test->run(&env);

    /* Whatever the case did, it must leave nothing behind. */
    if (env.queue != NULL)
        check_code(weir_queue_close(env.queue, TEST_LONG), 0);
    check_code(weir_engine_stats(env.engine, &stats), 0);
    if (getenv("WEIR_TEST_LAX") == NULL)
        check_code((int64_t)stats.in_flight, 0);
    check_code((int64_t)stats.files_open, 0);
    check_code((int64_t)stats.queues_open, 0);
    check_code((int64_t)stats.buffers_in_use, 0);
    check_code(weir_engine_close(env.engine), 0);
    watchdog_stop();
    if (env.skipped != NULL) {
        (void)fprintf(stderr, "%s: %s\n", run->name, env.skipped);
        skip();
    }
}

int run_cases(const char *suite, const struct test_case *cases, size_t count, int argc,
              char **argv)
{
    static const uint32_t backends[] = { WEIR_BACKEND_URING, WEIR_BACKEND_THREADS,
                                         WEIR_BACKEND_NULL };
    struct CMUnitTest *tests = calloc(count * COUNT(backends), sizeof(*tests));
    struct case_run *runs = calloc(count * COUNT(backends), sizeof(*runs));
    size_t used = 0;
    int rc;

    if (tests == NULL || runs == NULL)
        return 99;
    (void)unsetenv("WEIR_BACKEND");
    (void)signal(SIGPIPE, SIG_IGN);
    (void)test_seed();
    for (size_t i = 0; i < count; i++) {
        for (size_t b = 0; b < COUNT(backends); b++) {
            struct case_run *run = &runs[used];
            bool once = (cases[i].flags & CASE_ONCE) != 0;

            if (once && backends[b] != WEIR_BACKEND_THREADS)
                continue;
            if ((cases[i].flags & CASE_BYTES) != 0 && backends[b] == WEIR_BACKEND_NULL)
                continue;
            run->test = &cases[i];
            run->backend = backends[b];
            run->works = backend_works(backends[b]);
            if (once)
                (void)snprintf(run->name, sizeof(run->name), "%s", cases[i].name);
            else
                (void)snprintf(run->name, sizeof(run->name), "%s[%s]", cases[i].name,
                               backend_name_of(backends[b]));
            tests[used].name = run->name;
            tests[used].test_func = run_one;
            tests[used].initial_state = run;
            used++;
        }
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    rc = _cmocka_run_group_tests(suite, tests, used, NULL, NULL);
    free(tests);
    free(runs);
    return rc > 125 ? 125 : rc;
}

/* --- children --------------------------------------------------------------------------------- */

struct child_result child_run(const char *const *arguments)
{
    struct child_result result = { .status = -1, .text = NULL };
    const char *argv[16] = { "child" };
    size_t size = 1 << 16;
    size_t used = 0;
    int ends[2];
    pid_t pid;

    for (size_t i = 0; i < 14 && arguments[i] != NULL; i++)
        argv[i + 1] = arguments[i];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return result;
    (void)fflush(NULL);
    pid = fork();
    if (pid == 0) {
        (void)dup2(ends[1], STDOUT_FILENO);
        (void)dup2(ends[1], STDERR_FILENO);
        /* execv() wants pointers it could write through, but does not write. */
        (void)execv("/proc/self/exe", (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    (void)close(ends[1]);
    result.text = calloc(1, size);
    while (pid > 0 && result.text != NULL && used < size - 1) {
        ssize_t n = read(ends[0], result.text + used, size - 1 - used);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    (void)close(ends[0]);
    if (pid > 0) {
        while (waitpid(pid, &result.status, 0) < 0 && errno == EINTR)
            continue;
    }
    return result;
}
