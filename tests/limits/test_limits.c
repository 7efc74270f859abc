/* SPDX-License-Identifier: MIT */
/*
 * test_limits.c - where io_uring is forbidden, memory cannot be locked, descriptors are few
 *
 * Each case runs this program again as a child, which puts itself under the limit, opens an
 * engine, does real I/O, checks every byte, and prints what weir_engine_info() says; the
 * parent judges that. Seccomp filters stand in for container engines and for
 * kernel.io_uring_disabled, which look the same from here.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/support.h"

#define SEED      31u
#define NOBODY    65534u
#define EXIT_SKIP 77
#define FILE_SIZE (512 * KIB)
#define POOL_SIZE (16 * MIB) /* more than either limit of locked memory */

/* --- the child: limits ------------------------------------------------------------------ */

static void child_fail(const char *what, int64_t code)
{
    (void)printf("FAILED: %s: %lld (%s)\n", what, (long long)code,
                 code < 0 ? weir_code_name(code) : "ok");
    (void)fflush(stdout);
    _exit(1);
}

/* From here on these calls end with `error`, for all threads to come. */
static void forbid(const long *calls, size_t count, int error)
{
    struct sock_filter filter[16];
    struct sock_fprog program = { .filter = filter };
    size_t used = 0;

    filter[used++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                                  offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < count; i++) {
        filter[used++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], 0, 1);
        filter[used++] = (struct sock_filter)BPF_STMT(
            BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((uint32_t)error & SECCOMP_RET_DATA));
    }
    filter[used++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program.len = (unsigned short)used;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        (void)printf("SKIP: no seccomp filters here: %s\n", strerror(errno));
        exit(EXIT_SKIP);
    }
}

static void limit(int which, rlim_t value)
{
    struct rlimit limits = { value, value };

    if (setrlimit((__rlimit_resource_t)which, &limits) != 0)
        child_fail("setrlimit", -errno);
}

/* Root may lock as much as it likes. */
static void become_nobody(void)
{
    if (geteuid() != 0)
        return;
    if (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
        setresuid(NOBODY, NOBODY, NOBODY) != 0)
        child_fail("becoming nobody", -errno);
    /* Or the leak sanitizer cannot look into this process at its end. */
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void apply(const char *name)
{
    static const long all[] = { SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register };

    if (strcmp(name, "eperm") == 0)
        forbid(all, 3, EPERM);
    else if (strcmp(name, "enosys") == 0)
        forbid(all, 3, ENOSYS);
    else if (strcmp(name, "setup-enomem") == 0)
        forbid(all, 1, ENOMEM);
    else if (strcmp(name, "enter-eperm") == 0)
        forbid(all + 1, 1, EPERM);
    else if (strcmp(name, "register-eperm") == 0)
        forbid(all + 2, 1, EPERM);
    else if (strcmp(name, "memlock-64k") == 0)
        limit(RLIMIT_MEMLOCK, 64 * KIB);
    else if (strcmp(name, "memlock-8m") == 0)
        limit(RLIMIT_MEMLOCK, 8 * MIB);
    else if (strcmp(name, "nofile-64") == 0)
        limit(RLIMIT_NOFILE, 64);
    if (strncmp(name, "memlock", 7) == 0)
        become_nobody();
}

/* --- the child: work -------------------------------------------------------------------------- */

struct child_job {
    struct weir_job job;
    unsigned done;
};

static void child_done(struct weir_job *job)
{
    struct child_job *mine = job->arg;

    mine->done++;
}

static void child_wait(struct weir_queue *queue, struct child_job *mine, int64_t want,
                       const char *what)
{
    while (mine->done == 0) {
        int rc = weir_queue_wait(queue, 1, TEST_LONG);

        if (rc < 0 && rc != -EINTR)
            child_fail("wait", rc);
    }
    if (mine->done != 1 || mine->job.result != want)
        child_fail(what, mine->job.result);
}

static void child_submit(struct weir_queue *queue, struct child_job *mine)
{
    struct weir_job *job = &mine->job;
    int rc;

    mine->done = 0;
    rc = weir_queue_submit(queue, &job, 1);
    if (rc != 1)
        child_fail("submit", rc);
}

/* Writes, a sync, reads, by jobs into pool buffers and others; through waits and a poll. */
static void use_queue(struct weir_engine *engine, struct weir_queue *queue,
                      struct weir_file *file, bool bytes)
{
    enum {
        WINDOW = 24
    };
    struct child_job jobs[WINDOW];
    uint8_t *buffers[WINDOW];
    struct test_rng rng = { test_seed() };
    struct pollfd poller = { .events = POLLIN };

    for (size_t i = 0; i < WINDOW; i++) {
        buffers[i] = i % 2 ? weir_buffer_acquire(engine) : malloc(64 * KIB);
        if (buffers[i] == NULL)
            child_fail("no buffer", 0);
        jobs[i].done = 0;
    }
    for (size_t i = 0; i < FILE_SIZE / (16 * KIB); i++) {
        size_t slot = i % WINDOW;

        if (i >= WINDOW)
            child_wait(queue, &jobs[slot], 16 * KIB, "write");
        pattern_fill(buffers[slot], 16 * KIB, SEED, i * 16 * KIB);
        weir_job_write(&jobs[slot].job, file, buffers[slot], 16 * KIB, i * 16 * KIB, child_done,
                       &jobs[slot]);
        child_submit(queue, &jobs[slot]);
    }
    for (size_t i = 0; i < WINDOW; i++)
        child_wait(queue, &jobs[i], 16 * KIB, "write");
    weir_job_sync(&jobs[0].job, file, WEIR_SYNC_ALL, child_done, &jobs[0]);
    child_submit(queue, &jobs[0]);
    child_wait(queue, &jobs[0], 0, "sync");

    poller.fd = weir_queue_fd(queue);
    if (poller.fd < 0)
        child_fail("descriptor", poller.fd);
    for (size_t i = 0; i < 600; i++) {
        size_t slot = i % WINDOW;
        size_t len = 1 + rng_below(&rng, 16 * KIB);
        uint64_t offset = rng_below(&rng, FILE_SIZE - len);

        weir_job_read(&jobs[slot].job, file, buffers[slot], len, offset, child_done,
                      &jobs[slot]);
        child_submit(queue, &jobs[slot]);
        while (jobs[slot].done == 0) {
            if (poll(&poller, 1, 30000) != 1)
                child_fail("a wake-up was missed", 0);
            if (weir_queue_run(queue) < 0)
                child_fail("run", 0);
        }
        child_wait(queue, &jobs[slot], (int64_t)len, "read");
        if (bytes && pattern_find_wrong(buffers[slot], len, SEED, offset) >= 0)
            child_fail("a read brought wrong bytes", 0);
    }
    for (size_t i = 0; i < WINDOW; i++) {
        if (i % 2)
            weir_buffer_release(engine, buffers[i]);
        else
            free(buffers[i]);
    }
}

static char late_log[600];

static void note_log(void *arg, int level, const char *text)
{
    size_t used = strlen(late_log);

    (void)arg;
    (void)level;
    (void)snprintf(late_log + used, sizeof(late_log) - used, "%s\n", text);
}

static void child_engine(const char *limit_name, bool late, uint32_t queues_count)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = WEIR_BACKEND_AUTO,
                                           .buffer_size = 64 * KIB,
                                           .buffer_count = POOL_SIZE / (64 * KIB),
                                           .log = note_log };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_queue_options small = { .size = sizeof(small), .depth = 16 };
    struct weir_queue *queues[64];
    struct weir_engine *engine;
    struct weir_file *file;
    struct weir_error error = { 0 };
    uint32_t opened = 0;
    uint8_t check_buf[4096];
    int rc;

    rc = weir_engine_open(&options, &engine, &error);
    if (rc != 0) {
        (void)printf("open=%s\ntext=%s\n", weir_code_name(rc), error.text);
        return;
    }
    if (late)
        apply(limit_name);
    rc = weir_engine_info(engine, &info);
    if (rc != 0)
        child_fail("info", rc);
    (void)printf("open=ok\nbackend=%s\nwhy=%s\ncure=%s\nregistered=%u\nflags=%u\n",
                 info.backend_name, info.why, info.cure, info.registered_buffers,
                 info.ring_flags);
    rc = weir_file_open(engine, NULL, test_path("file"),
                        WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &file,
                        &error);
    if (rc != 0)
        child_fail("file open", rc);
    /* As many queues as there are descriptors for; each does its work. */
    while (opened < queues_count) {
        rc = weir_queue_open(engine, &small, &queues[opened]);
        if (rc != 0)
            break;
        opened++;
    }
    if (opened == 0 || (rc != 0 && rc != -EMFILE))
        child_fail("queue open", rc);
    (void)printf("queues=%u\n", opened);
    /* Event loops need descriptors too: three queues go on. */
    while (opened > 3) {
        opened--;
        rc = weir_queue_close(queues[opened], TEST_LONG);
        if (rc != 0)
            child_fail("queue close", rc);
    }
    for (uint32_t i = 0; i < opened; i++) {
        use_queue(engine, queues[i], file, true);
        rc = weir_queue_close(queues[i], TEST_LONG);
        if (rc != 0)
            child_fail("queue close", rc);
    }
    if (weir_file_read(file, check_buf, 4096, 4096) != 4096 ||
        pattern_find_wrong(check_buf, 4096, SEED, 4096) >= 0)
        child_fail("a blocking read brought wrong bytes", 0);
    rc = weir_file_close(file);
    if (rc != 0)
        child_fail("file close", rc);
    rc = weir_engine_close(engine);
    if (rc != 0)
        child_fail("engine close", rc);
    for (char *at = late_log; *at != '\0'; at++) {
        if (*at == '\n')
            *at = '|';
    }
    (void)printf("log=%s\nwork=done\n", late_log);
}

/* child LIMIT late|early QUEUES */
static int child_main(char **argv)
{
    bool late = strcmp(argv[3], "late") == 0;

    watchdog_start(argv[2], 120);
    if (!late)
        apply(argv[2]);
    if (access(getenv("WEIR_TEST_DIR"), W_OK | X_OK) != 0) {
        (void)printf("SKIP: user %u cannot write to %s\n", geteuid(), getenv("WEIR_TEST_DIR"));
        return EXIT_SKIP;
    }
    child_engine(argv[2], late, (uint32_t)strtoul(argv[4], NULL, 10));
    watchdog_stop();
    return 0;
}

/* --- the parent ------------------------------------------------------------------------------------ */

struct said {
    char *text;
    char value[600];
};

/* The value of a line "key=value", or "". */
static const char *get(struct said *said, const char *key)
{
    size_t len = strlen(key);

    for (const char *line = said->text; line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n');

        if (strncmp(line, key, len) == 0 && line[len] == '=') {
            size_t size = end ? (size_t)(end - line) - len - 1 : strlen(line + len + 1);

            (void)snprintf(said->value, sizeof(said->value), "%.*s", (int)size, line + len + 1);
            return said->value;
        }
        line = end ? end + 1 : NULL;
    }
    return "";
}

static bool says(struct said *said, const char *key, const char *value)
{
    return strcmp(get(said, key), value) == 0;
}

/* Run the child; skips if it does. */
static struct said run_child(const char *name, const char *when, const char *queues,
                             const char *backend)
{
    const char *arguments[] = { "--child", name, when, queues, NULL };
    struct child_result child;
    struct said said;

    (void)setenv("WEIR_TEST_DIR", test_dir(), 1);
    if (backend != NULL)
        (void)setenv("WEIR_BACKEND", backend, 1);
    child = child_run(arguments);
    (void)unsetenv("WEIR_BACKEND");
    said.text = child.text;
    if (child.text == NULL)
        fail_msg("the child could not be run");
    if (WIFEXITED(child.status) && WEXITSTATUS(child.status) == EXIT_SKIP) {
        (void)fprintf(stderr, "%s", child.text);
        free(child.text);
        skip();
    }
    if (!WIFEXITED(child.status) || WEXITSTATUS(child.status) != 0)
        fail_msg("the child ended with status 0x%x:\n%s", child.status, child.text);
    return said;
}

#define expect(said, condition)                                                      \
    do {                                                                             \
        if (!(condition))                                                            \
            fail_msg("not true: %s; the child said:\n%s", #condition, (said)->text); \
    } while (0)

static bool uring_here;

/* The work is done right by whatever backend was picked, and the reasons are given. */
static void check_fallback(const char *name, const char *reason)
{
    struct said said = run_child(name, "early", "4", NULL);

    expect(&said, says(&said, "open", "ok"));
    expect(&said, says(&said, "backend", "threads"));
    expect(&said, strstr(get(&said, "why"), reason) != NULL);
    expect(&said, get(&said, "cure")[0] != '\0');
    expect(&said, says(&said, "flags", "0"));
    expect(&said, says(&said, "work", "done"));
    expect(&said, get(&said, "log")[0] != '\0'); /* one line that says so */
    free(said.text);

    /* Asked for by name it is an error that says the same. */
    said = run_child(name, "early", "1", "uring");
    expect(&said, says(&said, "open", "EOPNOTSUPP"));
    expect(&said, strstr(get(&said, "text"), reason) != NULL);
    free(said.text);

    /* Asking for what works needs no reasons. */
    said = run_child(name, "early", "1", "threads");
    expect(&said, says(&said, "open", "ok"));
    expect(&said, says(&said, "cure", ""));
    expect(&said, says(&said, "work", "done"));
    free(said.text);
}

/* Nothing forbidden: uring where it runs, no cure needed. */
static void limits__none(void **state)
{
    struct said said = run_child("none", "early", "4", NULL);

    (void)state;
    expect(&said, says(&said, "open", "ok"));
    expect(&said, says(&said, "work", "done"));
    uring_here = says(&said, "backend", "uring");
    if (uring_here)
        expect(&said, says(&said, "cure", ""));
    else
        expect(&said, get(&said, "cure")[0] != '\0');
    free(said.text);
}

static void limits__seccomp_eperm(void **state)
{
    (void)state;
    check_fallback("eperm", "EPERM");
}

static void limits__seccomp_enosys(void **state)
{
    (void)state;
    check_fallback("enosys", "ENOSYS");
}

/* A kernel out of locked memory at set-up. */
static void limits__setup_enomem(void **state)
{
    (void)state;
    if (!uring_here)
        skip();
    check_fallback("setup-enomem", "ENOMEM");
}

/* Set-up works but the operations do not, as in some sandboxes. */
static void limits__set_up_but_not_entered(void **state)
{
    (void)state;
    if (!uring_here)
        skip();
    check_fallback("enter-eperm", "EPERM");
    check_fallback("register-eperm", "EPERM");
}

/* With little lockable memory: the engine works; the pool's buffers, which are larger than
 * the limit, are not registered; and uring by name works exactly where auto picks it. */
static void check_memlock(const char *name)
{
    struct said said = run_child(name, "early", "4", NULL);
    bool picked;

    expect(&said, says(&said, "open", "ok"));
    expect(&said, says(&said, "work", "done"));
    expect(&said, says(&said, "registered", "0"));
    picked = says(&said, "backend", "uring");
    if (!picked) {
        expect(&said, says(&said, "backend", "threads"));
        expect(&said, get(&said, "cure")[0] != '\0');
    }
    free(said.text);
    said = run_child(name, "early", "4", "uring");
    expect(&said, says(&said, "open", picked ? "ok" : "EOPNOTSUPP"));
    if (picked)
        expect(&said, says(&said, "work", "done"));
    free(said.text);
    said = run_child(name, "early", "2", "threads");
    expect(&said, says(&said, "work", "done"));
    free(said.text);
}

static void limits__memlock_64_kib(void **state)
{
    (void)state;
    check_memlock("memlock-64k");
}

static void limits__memlock_8_mib(void **state)
{
    (void)state;
    check_memlock("memlock-8m");
}

/* With 64 descriptors: queues until there are none left, and then still all the work. */
static void limits__nofile_64(void **state)
{
    static const char *const backends[] = { NULL, "uring", "threads" };

    (void)state;
    for (size_t i = 0; i < COUNT(backends); i++) {
        struct said said;

        if (backends[i] != NULL && strcmp(backends[i], "uring") == 0 && !uring_here)
            continue;
        said = run_child("nofile-64", "early", "60", backends[i]);
        expect(&said, says(&said, "open", "ok"));
        expect(&said, says(&said, "work", "done"));
        expect(&said, strtoul(get(&said, "queues"), NULL, 10) >= 8);
        free(said.text);
    }
}

/* Forbidden after the engine was opened: queues fall back one by one, with a line in the
 * log, and do their work. */
static void limits__forbidden_later(void **state)
{
    static const char *const names[] = { "eperm", "enosys", "setup-enomem" };

    (void)state;
    if (!uring_here)
        skip();
    for (size_t i = 0; i < COUNT(names); i++) {
        struct said said = run_child(names[i], "late", "3", NULL);

        expect(&said, says(&said, "open", "ok"));
        expect(&said, says(&said, "backend", "uring"));
        expect(&said, says(&said, "queues", "3"));
        expect(&said, says(&said, "work", "done"));
        expect(&said, strstr(get(&said, "log"), "threads") != NULL);
        free(said.text);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits__none),
        cmocka_unit_test(limits__seccomp_eperm),
        cmocka_unit_test(limits__seccomp_enosys),
        cmocka_unit_test(limits__setup_enomem),
        cmocka_unit_test(limits__set_up_but_not_entered),
        cmocka_unit_test(limits__memlock_64_kib),
        cmocka_unit_test(limits__memlock_8_mib),
        cmocka_unit_test(limits__nofile_64),
        cmocka_unit_test(limits__forbidden_later),
    };

    if (argc == 5 && strcmp(argv[1], "--child") == 0)
        return child_main(argv);
    (void)unsetenv("WEIR_BACKEND");
    return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
