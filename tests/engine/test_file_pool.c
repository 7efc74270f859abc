/* SPDX-License-Identifier: MIT */
/*
 * test_file_pool.c - many files, few descriptors
 *
 * Which descriptors are open is asked from the kernel (/proc/self/fd), not from the statistics.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine_internal.h"
#include "support/faulty.h"

#define PAGE 4096u

/* ---- descriptors and files --------------------------------------------------------------- */

/* Those of the process whose path begins with `prefix`. */
static unsigned count_fds(const char *prefix)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    unsigned count = 0;

    check(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        char target[4096];
        ssize_t len = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

        if (len <= 0)
            continue;
        target[len] = '\0';
        count += strncmp(target, prefix, strlen(prefix)) == 0;
    }
    (void)closedir(dir);
    return count;
}

/* A directory of this case's own. In memory if possible: many of these tests sync a lot. */
static void make_place(char *place, size_t size)
{
    const char *memory = test_memory_dir();
    static unsigned number;

    if (memory)
        (void)snprintf(place, size, "%s/pool-%u", memory, number++);
    else
        (void)snprintf(place, size, "%s", test_new_path("pool"));
    check_code(mkdir(place, 0755), 0);
}

struct fixture {
    struct weir_engine *engine;
    char place[256];
};

static void fixture_open(struct fixture *f, uint32_t backend, uint32_t open_files)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = backend,
                                           .open_files = open_files };

    memset(f, 0, sizeof(*f));
    check_code(weir_engine_open(&options, &f->engine, NULL), 0);
    make_place(f->place, sizeof(f->place));
}

static void fixture_close(struct fixture *f)
{
    check_code(weir_engine_close(f->engine), 0);
    check_code(count_fds(f->place), 0);
    test_remove_tree(f->place);
}

static const char *name_of(const struct fixture *f, unsigned i)
{
    static _Thread_local char names[4][300];
    static _Thread_local unsigned turn;
    char *name = names[turn++ % COUNT(names)];

    (void)snprintf(name, sizeof(names[0]), "%s/file-%u-", f->place, i);
    return name;
}

/* Make a file of one page and open it. */
static struct weir_file *open_new(struct fixture *f, unsigned i, uint32_t flags)
{
    struct weir_file *file = NULL;

    pattern_make_file(name_of(f, i), PAGE, i);
    check_code(weir_file_open(f->engine, NULL, name_of(f, i), flags, 0644, &file, NULL), 0);
    return file;
}

static void check_page(struct weir_file *file, uint64_t seed)
{
    unsigned char page[PAGE];

    memset(page, 0xee, sizeof(page));
    check_code(weir_file_read(file, page, sizeof(page), 0), PAGE);
    check_pattern(page, sizeof(page), seed, 0);
}

static void write_page(struct weir_file *file, uint64_t seed)
{
    unsigned char page[PAGE];

    pattern_fill(page, sizeof(page), seed, 0);
    check_code(weir_file_write(file, page, sizeof(page), 0), PAGE);
}

/* Use so many other files that whatever may be closed is closed. */
static void churn(struct fixture *f, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct weir_file *file = open_new(f, 100000 + i, WEIR_OPEN_READ);

        check_page(file, 100000 + i);
        check_code(weir_file_close(file), 0);
    }
}

static bool has_descriptor(struct fixture *f, unsigned i)
{
    return count_fds(name_of(f, i)) > 0;
}

static struct weir_stats stats_of(struct weir_engine *engine)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    check_code(weir_engine_stats(engine, &stats), 0);
    return stats;
}

/* ---- many -------------------------------------------------------------------------------- */

#define MANY 5000u
#define CAP  64u

/* Random reads, and writes that are synced, of 5,000 files, by blocking calls. */
static void many__blocking_calls_hold_few_descriptors(struct env *env)
{
    struct test_rng rng = { test_seed() };
    struct weir_file **files = calloc(MANY, sizeof(*files));
    uint64_t *seeds = calloc(MANY, sizeof(*seeds));
    struct weir_stats stats;
    struct fixture f;

    check(files && seeds);
    fixture_open(&f, env->backend, CAP);
    for (unsigned i = 0; i < MANY; i++) {
        files[i] = open_new(&f, i, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
        seeds[i] = i;
        if (i % 500 == 0)
            check(count_fds(f.place) <= CAP);
    }
    check(count_fds(f.place) <= CAP);
    for (unsigned step = 0; step < 20000; step++) {
        unsigned i = (unsigned)rng_below(&rng, MANY);

        check_page(files[i], seeds[i]);
        if (rng_below(&rng, 8) == 0) {
            seeds[i] = rng_next(&rng);
            write_page(files[i], seeds[i]);
            check_code(weir_file_sync(files[i], WEIR_SYNC_DATA, NULL), 0);
        }
        if (step % 500 == 0)
            check(count_fds(f.place) <= CAP);
    }
    stats = stats_of(f.engine);
    check_code((int64_t)stats.descriptors_open, (int64_t)count_fds(f.place));
    check(stats.descriptors_reopened > 10000);
    check(stats.descriptors_closed >= stats.descriptors_reopened);
    for (unsigned i = 0; i < MANY; i++)
        check_code(weir_file_close(files[i]), 0);
    fixture_close(&f);
    free(files);
    free(seeds);
}

#define IN_FLIGHT 128u
#define DEPTH     32u

/* One job after the other on files by chance: read, or write and sync. */
struct runner {
    struct fixture f;
    struct weir_queue *queue;
    struct weir_file *files[MANY];
    uint64_t seeds[MANY];
    bool taken[MANY]; /* by a lane */
    struct test_rng rng;
    unsigned left;
    unsigned running;
    unsigned peak;
    struct lane {
        struct weir_job job;
        struct runner *runner;
        unsigned file;
        unsigned char page[PAGE];
    } lanes[IN_FLIGHT];
};

static void lane_next(struct lane *lane);

static void lane_submit(struct lane *lane)
{
    struct weir_job *job = &lane->job;

    check_code(weir_queue_submit(lane->runner->queue, &job, 1), 1);
}

static void lane_done(struct weir_job *job)
{
    struct lane *lane = job->arg;
    struct runner *runner = lane->runner;
    struct weir_file *file = runner->files[lane->file];

    if (job->op == WEIR_OP_WRITE) {
        check_code(job->result, PAGE);
        weir_job_sync(job, file, WEIR_SYNC_DATA, lane_done, lane);
        lane_submit(lane);
        return;
    }
    if (job->op == WEIR_OP_READ) {
        check_code(job->result, PAGE);
        check_pattern(lane->page, PAGE, runner->seeds[lane->file], 0);
    } else {
        check_code(job->result, 0);
    }
    runner->taken[lane->file] = false;
    runner->running--;
    lane_next(lane);
}

static void lane_next(struct lane *lane)
{
    struct runner *runner = lane->runner;

    if (runner->left == 0)
        return;
    runner->left--;
    runner->running++;
    do
        lane->file = (unsigned)rng_below(&runner->rng, MANY);
    while (runner->taken[lane->file]);
    runner->taken[lane->file] = true;
    if (rng_below(&runner->rng, 8) == 0) {
        runner->seeds[lane->file] = rng_next(&runner->rng);
        pattern_fill(lane->page, PAGE, runner->seeds[lane->file], 0);
        weir_job_write(&lane->job, runner->files[lane->file], lane->page, PAGE, 0, lane_done,
                       lane);
    } else {
        memset(lane->page, 0xee, PAGE);
        weir_job_read(&lane->job, runner->files[lane->file], lane->page, PAGE, 0, lane_done,
                      lane);
    }
    lane_submit(lane);
}

static void many__jobs_hold_few_descriptors(struct env *env)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = DEPTH };
    struct runner *runner = calloc(1, sizeof(*runner));

    check(runner != NULL);
    fixture_open(&runner->f, env->backend, CAP);
    check_code(weir_queue_open(runner->f.engine, &options, &runner->queue), 0);
    for (unsigned i = 0; i < MANY; i++) {
        runner->files[i] = open_new(&runner->f, i, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
        runner->seeds[i] = i;
    }
    runner->rng.state = test_seed();
    runner->left = 20000;
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        runner->lanes[i].runner = runner;
        lane_next(&runner->lanes[i]);
    }
    for (unsigned turn = 0; runner->running > 0; turn++) {
        check(weir_queue_wait(runner->queue, 1, TEST_LONG) >= 0);
        /* In use: at most one a lane. Idle: at most CAP. */
        if (turn % 64 == 0)
            check(count_fds(runner->f.place) <= CAP + IN_FLIGHT);
    }
    check(stats_of(runner->f.engine).descriptors_reopened > 5000);
    check_page(runner->files[0], runner->seeds[0]); /* closes what is too many */
    check(count_fds(runner->f.place) <= CAP);
    for (unsigned i = 0; i < MANY; i++)
        check_code(weir_file_close(runner->files[i]), 0);
    check_code(weir_queue_close(runner->queue, TEST_LONG), 0);
    fixture_close(&runner->f);
    free(runner);
}

/* ---- what is closed, and what is not ----------------------------------------------------- */

/* The one that was used last is closed last. */
static void pool__closes_what_was_not_used_for_longest(struct env *env)
{
    struct weir_file *files[4];
    struct fixture f;

    fixture_open(&f, env->backend, 3);
    for (unsigned i = 0; i < 3; i++)
        files[i] = open_new(&f, i, WEIR_OPEN_READ);
    check_page(files[0], 0);
    files[3] = open_new(&f, 3, WEIR_OPEN_READ);
    check(has_descriptor(&f, 0) && !has_descriptor(&f, 1) && has_descriptor(&f, 2));
    check_page(files[1], 1);
    check(has_descriptor(&f, 0) && has_descriptor(&f, 1) && !has_descriptor(&f, 2));
    for (unsigned i = 0; i < 4; i++)
        check_code(weir_file_close(files[i]), 0);
    fixture_close(&f);
}

static void pool__opening_to_read_creates_nothing(struct env *env)
{
    struct weir_file *file = NULL;
    struct weir_error error;
    struct stat st;
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    check_code(
        weir_file_open(f.engine, NULL, name_of(&f, 0), WEIR_OPEN_READ, 0644, &file, NULL),
        -ENOENT);
    check(stat(name_of(&f, 0), &st) < 0 && errno == ENOENT);

    /* One that was made by opening it is neither made nor cut again. */
    check_code(weir_file_open(f.engine, NULL, name_of(&f, 0),
                              WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE |
                                  WEIR_OPEN_EXCLUSIVE | WEIR_OPEN_TRUNCATE,
                              0644, &file, NULL),
               0);
    write_page(file, 7);
    check_code(weir_file_sync(file, WEIR_SYNC_ALL, NULL), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_page(file, 7);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_code(unlink(name_of(&f, 0)), 0);
    {
        struct weir_stat info;

        check_code(weir_file_stat(file, &info, &error), -ESTALE);
        check(strstr(error.text, "replaced or removed") != NULL);
        check(strstr(error.path, "file-0-") != NULL);
    }
    check(stat(name_of(&f, 0), &st) < 0 && errno == ENOENT);
    check_code(weir_file_close(file), 0);
    fixture_close(&f);
}

static void pool__unsynced_writes_keep_the_descriptor(struct env *env)
{
    struct weir_file *file;
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    file = open_new(&f, 0, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    write_page(file, 1);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    check_code(weir_file_sync(file, WEIR_SYNC_DATA, NULL), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));

    check_code(weir_file_truncate(file, 100, NULL), 0);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    check_code(weir_file_sync(file, WEIR_SYNC_ALL, NULL), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));

    /* A sync covers the writes that had ended when it began, no later ones. */
    write_page(file, 2);
    check_code(wi_file_begin(file), 0);
    {
        uint64_t writes = wi_file_pool_writes(file);

        write_page(file, 3);
        wi_file_pool_synced(file, writes);
    }
    wi_file_end(file);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    check_code(weir_file_sync(file, WEIR_SYNC_DATA, NULL), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_page(file, 3);
    check_code(weir_file_close(file), 0);
    fixture_close(&f);
}

/* A write of a queue too. */
static void pool__unsynced_jobs_keep_the_descriptor(struct env *env)
{
    struct weir_queue *queue;
    struct weir_file *file;
    struct probe probe;
    unsigned char page[PAGE];
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    check_code(weir_queue_open(f.engine, NULL, &queue), 0);
    file = open_new(&f, 0, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    pattern_fill(page, sizeof(page), 4, 0);
    weir_job_write(&probe.job, file, page, sizeof(page), 0, NULL, NULL);
    check_code(probe_run(queue, &probe), PAGE);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    weir_job_sync(&probe.job, file, WEIR_SYNC_DATA, NULL, NULL);
    check_code(probe_run(queue, &probe), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_page(file, 4);
    check_code(weir_file_close(file), 0);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    fixture_close(&f);
}

/* A POSIX lock goes with any descriptor of its file, so other handles of it stay open too. */
static void pool__locks_keep_all_descriptors_of_the_file(struct env *env)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    struct weir_file *locked;
    struct weir_file *other = NULL;
    struct weir_file *flocked;
    struct fixture f;
    int fd;

    fixture_open(&f, env->backend, 1);
    locked = open_new(&f, 0, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    check_code(weir_file_open(f.engine, NULL, name_of(&f, 0), WEIR_OPEN_READ, 0, &other, NULL),
               0);
    wi_file_keep(locked, WI_KEEP_LOCK, true);
    check_code(wi_file_begin(locked), 0);
    check_code(fcntl(locked->fd, F_SETLK, &lock), 0);
    wi_file_end(locked);
    check_page(other, 0);

    flocked = open_new(&f, 1, WEIR_OPEN_READ);
    wi_file_keep(flocked, WI_KEEP_LOCK, true);
    check_code(wi_file_begin(flocked), 0);
    check_code(f.engine->os->ops->flock(f.engine->os, flocked->fd, 2 /* LOCK_EX */), 0);
    wi_file_end(flocked);

    churn(&f, 3);
    check_code(count_fds(name_of(&f, 0)), 2);
    check(has_descriptor(&f, 1));
    fd = open(name_of(&f, 0), O_RDWR | O_CLOEXEC); /* its close would drop the lock */
    check(fd >= 0);
    lock = (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET };
    check_code(fcntl(fd, F_OFD_GETLK, &lock), 0);
    check_code(lock.l_type, F_WRLCK);
    check_code(lock.l_pid, getpid());
    (void)close(fd);

    wi_file_keep(locked, WI_KEEP_LOCK, false);
    wi_file_keep(flocked, WI_KEEP_LOCK, false);
    churn(&f, 3);
    check(!has_descriptor(&f, 0) && !has_descriptor(&f, 1));
    check_page(locked, 0);
    check_code(weir_file_close(locked), 0);
    check_code(weir_file_close(other), 0);
    check_code(weir_file_close(flocked), 0);
    fixture_close(&f);
}

static void pool__files_without_a_name_keep_the_descriptor(struct env *env)
{
    struct weir_file_info info = { .size = sizeof(info) };
    struct weir_file *unlinked;
    struct weir_file *unnamed = NULL;
    struct weir_file *adopted = NULL;
    struct weir_file *dir = NULL;
    struct weir_file *below = NULL;
    struct fixture f;
    int rc;

    fixture_open(&f, env->backend, 1);
    unlinked = open_new(&f, 0, WEIR_OPEN_READ);
    check_code(weir_file_info(unlinked, &info), 0);
    check_code(info.fd, -1);
    check_code(unlink(name_of(&f, 0)), 0);
    pattern_make_file(name_of(&f, 1), PAGE, 1);
    check_code(weir_file_adopt(f.engine, open(name_of(&f, 1), O_RDONLY | O_CLOEXEC), "adopted",
                               &adopted, NULL),
               0);
    check_code(weir_file_info(adopted, &info), 0);
    check(info.fd >= 0);
    check_code(weir_file_open(f.engine, NULL, f.place, WEIR_OPEN_READ | WEIR_OPEN_DIRECTORY, 0,
                              &dir, NULL),
               0);
    rc = weir_file_open(f.engine, NULL, f.place,
                        WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_UNNAMED, 0600, &unnamed,
                        NULL);
    check(rc == 0 || rc == -EOPNOTSUPP); /* not every file system has these */
    if (unnamed) {
        write_page(unnamed, 2);
        check_code(weir_file_sync(unnamed, WEIR_SYNC_DATA, NULL), 0);
    }
    churn(&f, 5);
    check(has_descriptor(&f, 0) && has_descriptor(&f, 1));
    check_page(unlinked, 0);
    check_page(adopted, 1);
    if (unnamed)
        check_page(unnamed, 2);
    check_code(weir_file_open(f.engine, dir, "file-1-", WEIR_OPEN_READ, 0, &below, NULL), 0);
    churn(&f, 3);
    check_page(below, 1);
    check_code(weir_file_close(below), 0);
    check_code(weir_file_close(unlinked), 0);
    check_code(weir_file_close(adopted), 0);
    check_code(weir_file_close(dir), 0);
    check_code(weir_file_close(unnamed), 0);
    fixture_close(&f);
}

/* Renamed before its descriptor is closed, opened by a relative name, through a link: the name
 * that is opened again is the one that it has at the end. */
static void pool__follows_the_file_not_the_name(struct env *env)
{
    struct weir_file *renamed;
    struct weir_file *relative = NULL;
    struct weir_file *linked = NULL;
    char before[4096];
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    renamed = open_new(&f, 0, WEIR_OPEN_READ);
    check_code(rename(name_of(&f, 0), name_of(&f, 1)), 0);
    pattern_make_file(name_of(&f, 0), PAGE, 99);
    churn(&f, 3);
    check(!has_descriptor(&f, 1));
    check_page(renamed, 0);

    pattern_make_file(name_of(&f, 2), PAGE, 2);
    check_code(symlink("file-2-", name_of(&f, 3)), 0);
    check(getcwd(before, sizeof(before)) != NULL);
    check_code(chdir(f.place), 0);
    check_code(weir_file_open(f.engine, NULL, "file-2-", WEIR_OPEN_READ, 0, &relative, NULL),
               0);
    check_code(weir_file_open(f.engine, NULL, "file-3-", WEIR_OPEN_READ, 0, &linked, NULL), 0);
    check_code(chdir(before), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 2));
    check_page(relative, 2);
    check_page(linked, 2);
    check_code(weir_file_close(renamed), 0);
    check_code(weir_file_close(relative), 0);
    check_code(weir_file_close(linked), 0);
    fixture_close(&f);
}

static void check_stale(struct weir_file *file)
{
    unsigned char page[PAGE];
    struct iovec piece = { page, sizeof(page) };
    struct weir_error error;

    memset(page, 0xee, sizeof(page));
    check_code(weir_file_transfer(file, 0, &piece, 1, 0, NULL, &error), -ESTALE);
    check(strstr(error.text, "replaced or removed") != NULL);
    check_code(page[0], 0xee);
}

/* What is made from now on is younger than all there is: a file system's clock goes in
 * ticks, but may have been ahead of them. */
static void wait_for_a_tick(void)
{
    struct timespec from;
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &from);
    do
        (void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
    while (now.tv_sec < from.tv_sec ||
           (now.tv_sec == from.tv_sec && now.tv_nsec <= from.tv_nsec));
}

static void pool__another_file_under_the_name_is_stale(struct env *env)
{
    struct weir_file *files[3];
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    /* On a disk, since many file systems there give out inode numbers again. */
    (void)snprintf(f.place, sizeof(f.place), "%s", test_new_path("pool"));
    check_code(mkdir(f.place, 0755), 0);
    for (unsigned i = 0; i < 3; i++)
        files[i] = open_new(&f, i, WEIR_OPEN_READ);
    churn(&f, 3);
    check(!has_descriptor(&f, 0) && !has_descriptor(&f, 1) && !has_descriptor(&f, 2));

    /* Replaced; removed and made again, which may well get the same inode number; a pipe, which
     * must not even be opened. */
    pattern_make_file(name_of(&f, 10), PAGE, 99);
    check_code(rename(name_of(&f, 0), name_of(&f, 11)), 0);
    check_code(rename(name_of(&f, 10), name_of(&f, 0)), 0);
    check_code(unlink(name_of(&f, 1)), 0);
    wait_for_a_tick();
    pattern_make_file(name_of(&f, 1), PAGE, 98);
    check_code(unlink(name_of(&f, 2)), 0);
    check_code(mkfifo(name_of(&f, 2), 0600), 0);
    for (unsigned i = 0; i < 3; i++)
        check_stale(files[i]);

    /* And it stays so, even if the file comes back. */
    check_code(rename(name_of(&f, 11), name_of(&f, 0)), 0);
    check_code(unlink(name_of(&f, 2)), 0);
    pattern_make_file(name_of(&f, 2), PAGE, 2);
    for (unsigned i = 0; i < 3; i++) {
        check_stale(files[i]);
        check_code(weir_file_sync(files[i], WEIR_SYNC_DATA, NULL), -ESTALE);
        check_code(weir_file_close(files[i]), 0);
    }
    fixture_close(&f);
}

/* The same as jobs. */
static void pool__stale_files_fail_jobs(struct env *env)
{
    struct weir_queue *queue;
    struct weir_file *file;
    struct probe probe;
    unsigned char page[PAGE];
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    check_code(weir_queue_open(f.engine, NULL, &queue), 0);
    file = open_new(&f, 0, WEIR_OPEN_READ);
    churn(&f, 3);
    check_code(unlink(name_of(&f, 0)), 0);
    for (unsigned i = 0; i < 3; i++) {
        weir_job_read(&probe.job, file, page, sizeof(page), 0, NULL, NULL);
        check_code(probe_run(queue, &probe), -ESTALE);
    }
    check_code(weir_file_close(file), 0);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    fixture_close(&f);
}

/* Who can't open it again for now can later. */
static void pool__a_missing_right_is_not_for_ever(struct env *env)
{
    bool is_root = geteuid() == 0;
    struct weir_file *file;
    struct weir_stat st;
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    file = open_new(&f, 0, WEIR_OPEN_READ);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_code(chmod(name_of(&f, 0), is_root ? 0600 : 0), 0);
    if (is_root)
        check_code(seteuid(65534), 0);
    check_code(weir_file_stat(file, &st, NULL), -EACCES);
    if (is_root)
        check_code(seteuid(0), 0);
    check_code(chmod(name_of(&f, 0), 0644), 0);
    check_page(file, 0);
    check_code(weir_file_close(file), 0);
    fixture_close(&f);
}

/* What goes wrong on the way out and in: whoever wants the file is told, the next one is
 * not. */
static void pool__failures_pass(struct env *env)
{
    static const enum wi_fault_kind on_the_way_in[] = { WI_FAULT_STAT, WI_FAULT_OPEN };
    struct weir_engine_options options = { .size = sizeof(options), .open_files = 1 };
    struct wi_fault_rule rule = { .first = 1, .count = 1, .error = -EIO };
    struct weir_file *other;
    struct weir_file *file;
    unsigned char page[PAGE];
    struct faulty faulty;
    struct fixture f;

    faulty_open(&faulty, env->backend, 0, 0, &options);
    f.engine = faulty.engine;
    make_place(f.place, sizeof(f.place));
    file = open_new(&f, 0, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    other = open_new(&f, 1, WEIR_OPEN_READ);
    check(!has_descriptor(&f, 0) && has_descriptor(&f, 1));
    for (unsigned i = 0; i < COUNT(on_the_way_in); i++) {
        /* Closing the other one looks at its name first, so that is out of the way before. */
        check_page(file, 0);
        check_page(other, 1);
        check(!has_descriptor(&f, 0));
        wi_file_keep(other, WI_KEEP_LOCK, true);
        rule.kind = on_the_way_in[i];
        faulty_rule(&faulty, rule);
        check_code(weir_file_read(file, page, sizeof(page), 0), -EIO);
        wi_fault_clear(faulty.plan);
        wi_file_keep(other, WI_KEEP_LOCK, false);
        check_page(file, 0);
    }

    /* Out: its name can't be asked for, so it stays until the next time. */
    check(has_descriptor(&f, 0) && !has_descriptor(&f, 1));
    rule.kind = WI_FAULT_NAMES;
    faulty_rule(&faulty, rule);
    check_page(other, 1);
    wi_fault_clear(faulty.plan);
    check_page(other, 1);
    check_code(count_fds(f.place), 1);

    /* An error of close(2) is kept for who has written. */
    check_page(file, 0);
    rule.kind = WI_FAULT_CLOSE;
    rule.applied = true;
    faulty_rule(&faulty, rule);
    check_page(other, 1);
    check(!has_descriptor(&f, 0));
    wi_fault_clear(faulty.plan);
    check_page(file, 0);
    check_code(weir_file_write(file, page, 1, 0), -EIO);
    check_code(weir_file_close(file), -EIO);
    check_code(weir_file_close(other), 0);
    faulty_close(&faulty);
    test_remove_tree(f.place);
}

/* ---- more than there may be -------------------------------------------------------------- */

static void pool__more_in_use_than_allowed_is_no_error(struct env *env)
{
    struct weir_file *files[16];
    struct fixture f;

    fixture_open(&f, env->backend, 2);
    for (unsigned i = 0; i < COUNT(files); i++) {
        files[i] = open_new(&f, i, WEIR_OPEN_READ);
        check_code(wi_file_begin(files[i]), 0);
    }
    check_code(count_fds(f.place), COUNT(files));
    check_code((int64_t)stats_of(f.engine).descriptors_open, COUNT(files));
    for (unsigned i = 0; i < COUNT(files); i++) {
        check_page(files[i], i);
        wi_file_end(files[i]);
    }
    check_code(count_fds(f.place), 2);

    /* A queue's users count the same, though nobody tells when they go. */
    for (unsigned i = 0; i < COUNT(files); i++) {
        atomic_fetch_add(&files[i]->users, 1);
        if (!wi_file_pool_is_open(files[i])) {
            check_code(wi_file_pool_begin(files[i]), 0);
            wi_file_pool_end(files[i]);
        }
        check(wi_file_pool_is_open(files[i]));
    }
    check_code(count_fds(f.place), COUNT(files));
    for (unsigned i = 0; i < COUNT(files); i++) {
        check(wi_file_pool_is_open(files[i]));
        atomic_fetch_sub(&files[i]->users, 1);
    }
    check_page(files[3], 3);
    check_code(count_fds(f.place), 2);
    for (unsigned i = 0; i < COUNT(files); i++)
        check_code(weir_file_close(files[i]), 0);
    fixture_close(&f);
}

static unsigned lowest_free_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    check(fd >= 0);
    (void)close(fd);
    return (unsigned)fd;
}

/* With fewer descriptors than the options promised, the pool makes do with those there are. */
static void pool__out_of_descriptors_closes_idle_ones(struct env *env)
{
    struct weir_file *files[40];
    struct rlimit before;
    struct rlimit low;
    struct fixture f;

    fixture_open(&f, env->backend, 1000);
    for (unsigned i = 0; i < COUNT(files); i++)
        pattern_make_file(name_of(&f, i), PAGE, i);
    check_code(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = lowest_free_fd() + 12;
    check_code(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (unsigned i = 0; i < COUNT(files); i++)
        check_code(
            weir_file_open(f.engine, NULL, name_of(&f, i), WEIR_OPEN_READ, 0, &files[i], NULL),
            0);
    for (unsigned i = 0; i < COUNT(files); i++)
        check_page(files[i], i);

    /* With none that may be closed it is an error, and passes. */
    for (unsigned i = 0; i < COUNT(files); i++) {
        unsigned char page[PAGE];
        int rc = wi_file_begin(files[i]);

        if (rc == 0)
            continue;
        check_code(rc, -EMFILE);
        check(i >= 8);
        check_code(weir_file_read(files[i], page, sizeof(page), 0), -EMFILE);
        while (i-- > 0)
            wi_file_end(files[i]);
        break;
    }
    check_page(files[39], 39);
    check_code(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (unsigned i = 0; i < COUNT(files); i++)
        check_code(weir_file_close(files[i]), 0);
    fixture_close(&f);
}

/* ---- threads ----------------------------------------------------------------------------- */

#define SHARED    100u
#define OWN       10u
#define THREADS   4u
#define SHARE_CAP 8u

struct worker {
    pthread_t thread;
    struct fixture *f;
    struct weir_file **shared;
    unsigned number;
    uint64_t seed;
};

/* Reads files that all share, as a blocking caller and as a queue would; writes, syncs,
 * closes and opens files of its own. */
static void *work(void *arg)
{
    struct worker *self = arg;
    struct test_rng rng = { self->seed };
    struct weir_file *own[OWN];
    uint64_t seeds[OWN];

    for (unsigned i = 0; i < OWN; i++) {
        unsigned number = 1000 + self->number * OWN + i;

        own[i] = open_new(self->f, number, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
        seeds[i] = number;
    }
    for (unsigned step = 0; step < 2000; step++) {
        unsigned i = (unsigned)rng_below(&rng, OWN);
        unsigned s = (unsigned)rng_below(&rng, SHARED);
        unsigned char page[PAGE];

        switch (rng_below(&rng, 6)) {
        case 0:
            seeds[i] = rng_next(&rng);
            write_page(own[i], seeds[i]);
            break;
        case 1:
            check_code(weir_file_sync(own[i], WEIR_SYNC_DATA, NULL), 0);
            break;
        case 2:
            check_page(own[i], seeds[i]);
            break;
        case 3:
            check_code(weir_file_close(own[i]), 0);
            check_code(weir_file_open(self->f->engine, NULL,
                                      name_of(self->f, 1000 + self->number * OWN + i),
                                      WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &own[i], NULL),
                       0);
            break;
        case 4:
            check_page(self->shared[s], s);
            break;
        default:
            atomic_fetch_add(&self->shared[s]->users, 1);
            if (!wi_file_pool_is_open(self->shared[s])) {
                check_code(wi_file_pool_begin(self->shared[s]), 0);
                wi_file_pool_end(self->shared[s]);
            }
            check(wi_file_pool_is_open(self->shared[s]));
            check_code(pread(self->shared[s]->fd, page, sizeof(page), 0), PAGE);
            check_pattern(page, sizeof(page), s, 0);
            atomic_fetch_sub_explicit(&self->shared[s]->users, 1, memory_order_release);
            break;
        }
    }
    for (unsigned i = 0; i < OWN; i++) {
        check_page(own[i], seeds[i]);
        check_code(weir_file_close(own[i]), 0);
    }
    return NULL;
}

static void pool__threads_share_it(struct env *env)
{
    struct worker workers[THREADS];
    struct weir_file *shared[SHARED];
    struct fixture f;

    fixture_open(&f, env->backend, SHARE_CAP);
    for (unsigned i = 0; i < SHARED; i++)
        shared[i] = open_new(&f, i, WEIR_OPEN_READ);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] =
            (struct worker){ .f = &f, .shared = shared, .number = i, .seed = test_seed() + i };
        check_code(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        check_code(pthread_join(workers[i].thread, NULL), 0);
    check_page(shared[0], 0);
    check(count_fds(f.place) <= SHARE_CAP);
    for (unsigned i = 0; i < SHARED; i++)
        check_code(weir_file_close(shared[i]), 0);
    fixture_close(&f);
}

struct closer {
    struct weir_file *file;
    _Atomic int started;
    _Atomic int ended; /* the use of the file that close waits for */
    int seen;
    int rc;
};

static void *close_it(void *arg)
{
    struct closer *self = arg;

    atomic_store(&self->started, 1);
    self->rc = weir_file_close(self->file);
    self->seen = atomic_load(&self->ended);
    return NULL;
}

/* Close waits for blocking calls that are under way, and for a descriptor that is being
 * closed. */
static void pool__close_waits_for_who_uses_the_file(struct env *env)
{
    struct closer closer = { 0 };
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    for (unsigned round = 0; round < 50; round++) {
        unsigned char page[PAGE];
        pthread_t thread;
        int fd;

        closer.file = open_new(&f, 0, WEIR_OPEN_READ);
        atomic_store(&closer.started, 0);
        atomic_store(&closer.ended, 0);
        check_code(wi_file_begin(closer.file), 0);
        fd = closer.file->fd;
        check_code(pthread_create(&thread, NULL, close_it, &closer), 0);
        while (!atomic_load(&closer.started))
            sched_yield();
        for (unsigned i = 0; i < round; i++)
            sched_yield();
        check_code(pread(fd, page, sizeof(page), 0), PAGE);
        atomic_store(&closer.ended, 1);
        wi_file_end(closer.file);
        check_code(pthread_join(thread, NULL), 0);
        check_code(closer.rc, 0);
        check_code(closer.seen, 1);
    }
    fixture_close(&f);
}

/* A blocking call that has begun when the file is closed still finds it in the cache. */
static void pool__close_leaves_the_cache_last(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .open_files = 4,
                                           .cache_bytes = 64 * PAGE,
                                           .cache_block_size = PAGE };
    struct closer closer = { 0 };
    struct fixture f = { .engine = NULL };

    check_code(weir_engine_open(&options, &f.engine, NULL), 0);
    make_place(f.place, sizeof(f.place));
    for (unsigned round = 0; round < 50; round++) {
        pthread_t thread;

        closer.file = open_new(&f, 0, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
        check_code(wi_file_begin(closer.file), 0);
        check_code(pthread_create(&thread, NULL, close_it, &closer), 0);
        while (atomic_load(&closer.file->open_flags) != 0)
            sched_yield();
        for (unsigned i = 0; i < round; i++)
            sched_yield();
        check(closer.file->cache_file != NULL);
        wi_file_end(closer.file);
        check_code(pthread_join(thread, NULL), 0);
        check_code(closer.rc, 0);
    }
    fixture_close(&f);
}

/* A queue's loads outlive the handle: until they have ended nobody else gets the descriptor. */
static void pool__loads_keep_the_descriptor_after_close(struct env *env)
{
    struct weir_file *file;
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    file = open_new(&f, 0, WEIR_OPEN_READ);
    wi_file_hold(file);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    check_code(weir_file_close(file), 0);
    churn(&f, 3);
    check(has_descriptor(&f, 0));
    wi_file_unhold(file);
    check(!has_descriptor(&f, 0));
    churn(&f, 3);
    fixture_close(&f);
}

static _Atomic unsigned advised[8];

static int count_fadvise(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                         int advice)
{
    (void)os;
    atomic_fetch_add(&advised[advice & 7], 1);
    return wi_os_posix()->ops->fadvise(wi_os_posix(), fd, offset, len, advice);
}

/* The kernel forgets with the descriptor what it was advised of the file. */
static void pool__repeats_the_advice(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .open_files = 1 };
    struct wi_os_ops ops = *wi_os_posix()->ops;
    struct wi_os os = *wi_os_posix();
    struct wi_engine_seams seams = { .os = &os };
    struct fixture f = { .engine = NULL };
    struct weir_file *file;

    ops.fadvise = count_fadvise;
    os.ops = &ops;
    check_code(wi_engine_open_with(&options, &seams, &f.engine, NULL), 0);
    make_place(f.place, sizeof(f.place));
    file = open_new(&f, 0, WEIR_OPEN_READ);
    check_code(weir_file_advise(file, WEIR_ADVICE_RANDOM, 0, 0, NULL), 0);
    check_code(atomic_load(&advised[POSIX_FADV_RANDOM]), 1);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_page(file, 0);
    check_code(atomic_load(&advised[POSIX_FADV_RANDOM]), 2);
    check_code(weir_file_advise(file, WEIR_ADVICE_NORMAL, 0, 0, NULL), 0);
    churn(&f, 3);
    check(!has_descriptor(&f, 0));
    check_page(file, 0);
    check_code(atomic_load(&advised[POSIX_FADV_RANDOM]), 2);
    check_code(weir_file_close(file), 0);
    fixture_close(&f);
}

/* Two threads close one file: one of them does. */
static void pool__of_two_closes_one_wins(struct env *env)
{
    struct fixture f;

    fixture_open(&f, env->backend, 1);
    for (unsigned round = 0; round < 200; round++) {
        struct closer closer = { .file = open_new(&f, 0, WEIR_OPEN_READ) };
        pthread_t thread;
        int rc;

        if (round % 2 != 0)
            churn(&f, 2);
        check_code(pthread_create(&thread, NULL, close_it, &closer), 0);
        rc = weir_file_close(closer.file);
        check_code(pthread_join(thread, NULL), 0);
        check((rc == 0 && closer.rc == -EBADF) || (rc == -EBADF && closer.rc == 0));
    }
    fixture_close(&f);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(many__blocking_calls_hold_few_descriptors, CASE_ONCE | CASE_NO_QUEUE),
        CASE(many__jobs_hold_few_descriptors, CASE_NO_QUEUE | CASE_BYTES),
        CASE(pool__closes_what_was_not_used_for_longest, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__opening_to_read_creates_nothing, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__unsynced_writes_keep_the_descriptor, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__unsynced_jobs_keep_the_descriptor, CASE_NO_QUEUE | CASE_BYTES),
        CASE(pool__locks_keep_all_descriptors_of_the_file, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__files_without_a_name_keep_the_descriptor, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__follows_the_file_not_the_name, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__another_file_under_the_name_is_stale, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__stale_files_fail_jobs, CASE_NO_QUEUE),
        CASE(pool__a_missing_right_is_not_for_ever, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__failures_pass, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__more_in_use_than_allowed_is_no_error, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__out_of_descriptors_closes_idle_ones, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__threads_share_it, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__close_waits_for_who_uses_the_file, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__close_leaves_the_cache_last, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__loads_keep_the_descriptor_after_close, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__repeats_the_advice, CASE_ONCE | CASE_NO_QUEUE),
        CASE(pool__of_two_closes_one_wins, CASE_ONCE | CASE_NO_QUEUE),
    };

    return run_cases("engine_file_pool", cases, COUNT(cases), argc, argv);
}
