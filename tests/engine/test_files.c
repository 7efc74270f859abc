/* SPDX-License-Identifier: MIT */
/*
 * test_files.c - files and names: jobs for what is not a transfer, and their blocking twins
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED 17u

/* A directory of this case's own, open, and its path. */
static struct weir_file *open_dir(struct env *env, char *path, size_t size)
{
    struct weir_file *dir = NULL;

    (void)snprintf(path, size, "%s", test_new_path("dir"));
    check_code(mkdir(path, 0755), 0);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_DIRECTORY, 0,
                              &dir, NULL),
               0);
    return dir;
}

/* The next operation goes through the queue or, every other time, is done by this thread. */
static int64_t run_either(struct env *env, struct probe *probe)
{
    static unsigned turn;

    if (turn++ % 2 == 0)
        return probe_run(env->queue, probe);
    probe->error.code = 0;
    probe->job.error = &probe->error;
    probe->id = 0;
    return weir_job_do(env->engine, &probe->job);
}

static int64_t run_named(struct env *env, uint32_t op, struct weir_file *dir, const char *path,
                         const char *path2, uint32_t flags)
{
    struct probe probe;
    int64_t result;

    weir_job_prepare(&probe.job, op, dir, NULL, NULL);
    probe.job.path = path;
    probe.job.path2 = path2;
    probe.job.flags = flags;
    probe.job.mode = 0750;
    result = run_either(env, &probe);
    if (result < 0) {
        check_code(probe.error.code, result);
        check_code(probe.error.op, op);
        check_code((int64_t)(probe.error.job_id == probe.id), 1);
        check(strstr(probe.error.path, path) != NULL);
    }
    return result;
}

static int64_t run_open(struct env *env, struct weir_file *dir, const char *path,
                        uint32_t flags, uint32_t mode, struct weir_file **ret_file)
{
    struct probe probe;

    weir_job_open(&probe.job, dir, path, flags, mode, ret_file, NULL, NULL);
    return run_either(env, &probe);
}

static int64_t run_close(struct env *env, struct weir_file *file)
{
    struct probe probe;

    weir_job_prepare(&probe.job, WEIR_OP_CLOSE, file, NULL, NULL);
    return run_either(env, &probe);
}

/* --- opening -------------------------------------------------------------------------- */

/* Every flag of open does what its line in the header says, as a job. */
static void open__flags(struct env *env)
{
    char path[300];
    struct weir_file *dir = open_dir(env, path, sizeof(path));
    struct weir_file *file = NULL;
    struct weir_file *untouched = (struct weir_file *)(void *)&file;
    struct weir_stat stat;
    char byte = 'x';
    mode_t mask = umask(022);

    check_code(run_open(env, dir, "a", WEIR_OPEN_READ, 0, &untouched), -ENOENT);
    check(untouched == (struct weir_file *)(void *)&file); /* written on success only */
    check_code(run_open(env, dir, "a", WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0666, &file), 0);
    check_code(weir_file_write(file, &byte, 1, 99), 1);
    check_code(weir_file_stat(file, &stat, NULL), 0);
    check_code(stat.mode & 0777, 0644); /* less the umask */
    check_code(stat.size_bytes, 100);
    {
        struct weir_file_info info = { .size = sizeof(info) };

        check_code(weir_file_info(file, &info), 0);
        check((fcntl(info.fd, F_GETFD) & FD_CLOEXEC) != 0);
        check(info.direct == 0 && info.memory_align == 1 && info.offset_align == 1);
        check(info.sync_error == 0);
        check(strcmp(info.path, "a") == 0);
    }
    check_code(run_close(env, file), 0);
    (void)umask(mask);

    check_code(run_open(env, dir, "a", WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_EXCLUSIVE,
                        0666, &file),
               -EEXIST);
    check_code(run_open(env, dir, "a", WEIR_OPEN_WRITE | WEIR_OPEN_TRUNCATE, 0, &file), 0);
    check_code(weir_file_stat(file, &stat, NULL), 0);
    check_code(stat.size_bytes, 0);
    check_code(run_close(env, file), 0);

    check_code(run_named(env, WEIR_OP_SYMLINK, dir, "a", "link", 0), 0);
    check_code(run_open(env, dir, "link", WEIR_OPEN_READ | WEIR_OPEN_NOFOLLOW, 0, &file),
               -ELOOP);
    check_code(run_open(env, dir, "link", WEIR_OPEN_READ, 0, &file), 0);
    check_code(run_close(env, file), 0);
    check_code(run_open(env, dir, "a", WEIR_OPEN_READ | WEIR_OPEN_DIRECTORY, 0, &file),
               -ENOTDIR);

    /* An unnamed file leaves no name behind. */
    check_code(run_open(env, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_UNNAMED,
                        0600, &file),
               0);
    check_code(weir_file_write(file, &byte, 1, 0), 1);
    check_code(weir_file_stat(file, &stat, NULL), 0);
    check_code(stat.links, 0);
    check_code(run_close(env, file), 0);
    check_code(weir_file_close(dir), 0);
}

/* Flags that make no sense together are -EINVAL both ways, and open nothing. */
static void open__senseless_flags_are_einval(struct env *env)
{
    static const uint32_t flags[] = {
        0,
        WEIR_OPEN_CREATE,
        WEIR_OPEN_READ | WEIR_OPEN_EXCLUSIVE,
        WEIR_OPEN_READ | (1u << 20),
    };
    const char *path = test_new_path("senseless");

    for (size_t i = 0; i < COUNT(flags); i++) {
        struct weir_file *file = NULL;
        struct weir_error error = { 0 };

        check_code(weir_file_open(env->engine, NULL, path, flags[i], 0600, &file, &error),
                   -EINVAL);
        check_code(error.code, -EINVAL);
        check(error.text[0] != '\0');
        check_code(run_open(env, NULL, path, flags[i], 0600, &file), -EINVAL);
        check(access(path, F_OK) != 0);
    }
}

/* Relative names start at the directory, with or without one. */
static void open__errors_have_names(struct env *env)
{
    struct weir_file *file = NULL;
    struct weir_error error = { 0 };
    char line[512];

    check_code(
        weir_file_open(env->engine, NULL, "/no/such/place", WEIR_OPEN_READ, 0, &file, &error),
        -ENOENT);
    check_code(error.code, -ENOENT);
    check_code(error.op, WEIR_OP_OPEN);
    check(strcmp(error.path, "/no/such/place") == 0);
    check(weir_error_format(&error, line, sizeof(line)) > 0);
    check(strstr(line, "/no/such/place") != NULL);
    check(strstr(line, "ENOENT") != NULL);
}

/* --- adopting --------------------------------------------------------------------------------- */

/* What an adopted descriptor may do is asked from the kernel. */
static void adopt__asks_the_kernel(struct env *env)
{
    const char *path = test_new_path("adopt");
    static const struct {
        int flags;
        bool reads;
        bool writes;
    } modes[] = { { O_RDONLY, true, false },
                  { O_WRONLY, false, true },
                  { O_RDWR, true, true } };
    uint8_t *buf = aligned_alloc(4096, 4096);

    pattern_make_file(path, 8192, SEED);
    for (size_t i = 0; i < COUNT(modes); i++) {
        for (int direct = 0; direct < 2; direct++) {
            int fd = open(path, modes[i].flags | O_CLOEXEC | (direct ? O_DIRECT : 0));
            struct weir_file_info info = { .size = sizeof(info) };
            struct weir_file *file = NULL;
            struct probe probe;
            struct weir_job *job = &probe.job;

            if (fd < 0)
                continue; /* no direct files here */
            check_code(weir_file_adopt(env->engine, fd, "given", &file, NULL), 0);
            check_code(weir_file_info(file, &info), 0);
            check(info.fd == fd);
            check(info.direct == (uint32_t)direct);
            check((info.offset_align > 1) == (direct == 1));
            check(strcmp(info.path, "given") == 0);
            check_code(weir_file_read(file, buf, 4096, 0), modes[i].reads ? 4096 : -EBADF);
            weir_job_write(job, file, buf, 4096, 4096, NULL, NULL);
            probe_arm(&probe);
            if (modes[i].writes) {
                check_code(weir_queue_submit(env->queue, &job, 1), 1);
                check_code(probe_wait(env->queue, &probe), 4096);
            } else {
                check_code(weir_queue_submit(env->queue, &job, 1), -EBADF);
                check(strstr(probe.error.path, "given") != NULL);
            }
            check_code(weir_file_close(file), 0);
            check(fcntl(fd, F_GETFD) < 0); /* it was taken, so it is closed */
        }
    }
    free(buf);
}

/* On failure the descriptor stays the caller's. */
static void adopt__failure_leaves_the_descriptor(struct env *env)
{
    struct weir_file *file = NULL;
    struct weir_error error = { 0 };
    int fd;

    check_code(weir_file_adopt(env->engine, -1, "bad", &file, &error), -EBADF);
    check_code(error.code, -EBADF);
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)close(fd);
    check_code(weir_file_adopt(env->engine, fd, NULL, &file, NULL), -EBADF);
    fd = open("/", O_PATH | O_CLOEXEC);
    check_code(weir_file_adopt(env->engine, fd, "path", &file, NULL), -EBADF);
    check(fcntl(fd, F_GETFD) >= 0);
    (void)close(fd);
    check(file == NULL);
}

/* --- stat, truncate, allocate ------------------------------------------------------------------- */

/* What stat(2) says, as a job on a file, on a name, on a link, and blocking. */
static void stat__says_what_the_kernel_says(struct env *env)
{
    char path[300];
    struct weir_file *dir = open_dir(env, path, sizeof(path));
    struct weir_file *file = NULL;
    char name[400];
    struct stat want;
    struct weir_stat got[4];
    struct probe probe;

    (void)snprintf(name, sizeof(name), "%s/file", path);
    pattern_make_file(name, 12345, SEED);
    check_code(symlink("file", test_path("unused-link")), 0);
    check_code(run_named(env, WEIR_OP_SYMLINK, dir, "file", "ln", 0), 0);
    check_code(run_open(env, dir, "file", WEIR_OPEN_READ, 0, &file), 0);
    check_code(stat(name, &want), 0);

    memset(got, 0xee, sizeof(got));
    check_code(weir_file_stat(file, &got[0], NULL), 0);
    weir_job_prepare(&probe.job, WEIR_OP_STAT, file, NULL, NULL);
    probe.job.buf = &got[1];
    check_code(probe_run(env->queue, &probe), 0);
    weir_job_prepare(&probe.job, WEIR_OP_STAT, dir, NULL, NULL);
    probe.job.buf = &got[2];
    probe.job.path = "ln";
    check_code(probe_run(env->queue, &probe), 0);
    weir_job_prepare(&probe.job, WEIR_OP_STAT, NULL, NULL, NULL);
    probe.job.buf = &got[3];
    probe.job.path = name;
    check_code(probe_run(env->queue, &probe), 0);
    for (size_t i = 0; i < 4; i++) {
        check_code(got[i].size_bytes, 12345);
        check_code(got[i].inode, want.st_ino);
        check(got[i].device == want.st_dev);
        check_code(got[i].links, 1);
        check_code(got[i].mode, want.st_mode);
        check_code(got[i].uid, want.st_uid);
        check_code(got[i].gid, want.st_gid);
        check_code(got[i].allocated_bytes, want.st_blocks * 512);
        check_code(got[i].mtime_ns,
                   (int64_t)want.st_mtim.tv_sec * 1000000000 + want.st_mtim.tv_nsec);
        check_code(got[i].ctime_ns,
                   (int64_t)want.st_ctim.tv_sec * 1000000000 + want.st_ctim.tv_nsec);
    }
    weir_job_prepare(&probe.job, WEIR_OP_STAT, dir, NULL, NULL);
    probe.job.buf = &got[2];
    probe.job.path = "ln";
    probe.job.flags = WEIR_JOB_NOFOLLOW;
    check_code(probe_run(env->queue, &probe), 0);
    check(S_ISLNK(got[2].mode));
    weir_job_prepare(&probe.job, WEIR_OP_STAT, dir, NULL, NULL);
    probe.job.buf = &got[2];
    probe.job.path = "nothing";
    check_code(probe_run(env->queue, &probe), -ENOENT);
    check_code(run_close(env, file), 0);

    check_code(weir_file_open(env->engine, NULL, "/dev/null", WEIR_OPEN_READ, 0, &file, NULL),
               0);
    check_code(weir_file_stat(file, &got[0], NULL), 0);
    check_code(stat("/dev/null", &want), 0);
    check_code(got[0].rdevice_major, major(want.st_rdev));
    check_code(got[0].rdevice_minor, minor(want.st_rdev));
    check_code(weir_file_close(file), 0);
    check_code(weir_file_close(dir), 0);
    (void)unlink(test_path("unused-link"));
}

/* Sizes change as asked, shorter and longer, and what is beyond 4 GiB is not cut. */
static void truncate__and_allocate(struct env *env)
{
    const char *path = test_new_path("resize");
    struct weir_file *file = NULL;
    struct weir_stat stat;
    struct probe probe;
    static const uint64_t sizes[] = { 100, 5000, 5 * GIB + 3, 0, 4096 };

    check_code(run_open(env, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE,
                        0600, &file),
               0);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        if (i % 2 == 0) {
            weir_job_prepare(&probe.job, WEIR_OP_TRUNCATE, file, NULL, NULL);
            probe.job.offset = sizes[i];
            check_code(probe_run(env->queue, &probe), 0);
        } else {
            check_code(weir_file_truncate(file, sizes[i], NULL), 0);
        }
        check_code(weir_file_stat(file, &stat, NULL), 0);
        check_code(stat.size_bytes, sizes[i]);
    }
    weir_job_prepare(&probe.job, WEIR_OP_ALLOCATE, file, NULL, NULL);
    probe.job.offset = 0;
    probe.job.len = 1 * MIB;
    probe.job.flags = WEIR_JOB_KEEP_SIZE;
    if (probe_run(env->queue, &probe) == -EOPNOTSUPP) {
        (void)fprintf(stderr, "no fallocate in %s\n", test_dir());
    } else {
        check_code(probe.result, 0);
        check_code(weir_file_stat(file, &stat, NULL), 0);
        check_code(stat.size_bytes, 4096);
        check(stat.allocated_bytes >= 1 * MIB);
        check_code(weir_file_allocate(file, 1 * MIB, 1 * MIB, 0, NULL), 0);
        check_code(weir_file_stat(file, &stat, NULL), 0);
        check_code(stat.size_bytes, 2 * MIB);
    }
    {
        struct weir_error error = { 0 };

        check_code(weir_file_truncate(file, UINT64_C(1) << 63, &error), -EINVAL);
        check_code(error.code, -EINVAL);
    }
    check_code(run_close(env, file), 0);
}

/* --- names ------------------------------------------------------------------------------------------ */

/* mkdir, rename with its flags, link, symlink, readlink, unlink, rmdir. */
static void names__all_operations(struct env *env)
{
    char path[300];
    struct weir_file *dir = open_dir(env, path, sizeof(path));
    char name[400];
    char target[64];
    struct stat one;
    struct stat two;
    struct probe probe;
    mode_t mask = umask(022);

    check_code(run_named(env, WEIR_OP_MKDIR, dir, "sub", NULL, 0), 0);
    (void)umask(mask);
    (void)snprintf(name, sizeof(name), "%s/sub", path);
    check_code(stat(name, &one), 0);
    check(S_ISDIR(one.st_mode));
    check_code(one.st_mode & 0777, 0750);
    check_code(run_named(env, WEIR_OP_MKDIR, dir, "sub", NULL, 0), -EEXIST);
    check_code(run_named(env, WEIR_OP_MKDIR, dir, "no/sub", NULL, 0), -ENOENT);

    (void)snprintf(name, sizeof(name), "%s/one", path);
    pattern_make_file(name, 100, 1);
    check_code(stat(name, &one), 0);
    (void)snprintf(name, sizeof(name), "%s/two", path);
    pattern_make_file(name, 200, 2);
    check_code(stat(name, &two), 0);

    check_code(run_named(env, WEIR_OP_RENAME, dir, "one", "two", WEIR_JOB_NOREPLACE), -EEXIST);
    check_code(run_named(env, WEIR_OP_RENAME, dir, "one", "two", WEIR_JOB_EXCHANGE), 0);
    (void)snprintf(name, sizeof(name), "%s/one", path);
    {
        struct stat now;

        check_code(stat(name, &now), 0);
        check(now.st_ino == two.st_ino);
    }
    check_code(run_named(env, WEIR_OP_RENAME, dir, "one", "three", WEIR_JOB_NOREPLACE), 0);
    check_code(run_named(env, WEIR_OP_RENAME, dir, "three", "two", 0), 0); /* replaces */
    check_code(run_named(env, WEIR_OP_RENAME, dir, "three", "two", 0), -ENOENT);
    check_code(run_named(env, WEIR_OP_RENAME, dir, "two", "sub", 0), -EISDIR);

    check_code(run_named(env, WEIR_OP_LINK, dir, "two", "hard", 0), 0);
    check_code(run_named(env, WEIR_OP_LINK, dir, "two", "hard", 0), -EEXIST);
    (void)snprintf(name, sizeof(name), "%s/hard", path);
    check_code(stat(name, &one), 0);
    check_code(one.st_nlink, 2);
    check(one.st_ino == two.st_ino);

    check_code(run_named(env, WEIR_OP_SYMLINK, dir, "some/where", "soft", 0), 0);
    weir_job_prepare(&probe.job, WEIR_OP_READLINK, dir, NULL, NULL);
    probe.job.path = "soft";
    probe.job.buf = target;
    probe.job.len = sizeof(target);
    check_code(probe_run(env->queue, &probe), 10);
    check(memcmp(target, "some/where", 10) == 0);
    probe.job.path = "two";
    check_code(probe_run(env->queue, &probe), -EINVAL); /* no link */

    check_code(run_named(env, WEIR_OP_RMDIR, dir, "two", NULL, 0), -ENOTDIR);
    check_code(run_named(env, WEIR_OP_UNLINK, dir, "sub", NULL, 0), -EISDIR);
    check_code(run_named(env, WEIR_OP_UNLINK, dir, "two", NULL, 0), 0);
    check_code(run_named(env, WEIR_OP_UNLINK, dir, "two", NULL, 0), -ENOENT);
    check_code(run_named(env, WEIR_OP_RMDIR, dir, "sub", NULL, 0), 0);
    check_code(run_named(env, WEIR_OP_UNLINK, dir, "soft", NULL, 0), 0);

    /* Without a directory names start at the current one; absolute ones work as well. */
    (void)snprintf(name, sizeof(name), "%s/abs", path);
    check_code(run_named(env, WEIR_OP_MKDIR, NULL, name, NULL, 0), 0);
    check_code(run_named(env, WEIR_OP_RMDIR, dir, name, NULL, 0), 0);

    /* A directory can be synced: that is what makes names durable. */
    weir_job_sync(&probe.job, dir, WEIR_SYNC_ALL, NULL, NULL);
    check_code(probe_run(env->queue, &probe), 0);
    check_code(weir_file_sync(dir, WEIR_SYNC_ALL, NULL), 0);
    check_code(run_close(env, dir), 0);
}

/* A listing gives every name once, with its type, in as many pieces as the buffer asks. */
static void list__every_name_once(struct env *env)
{
    enum {
        FILES = 500
    };
    char path[300];
    struct weir_file *dir = open_dir(env, path, sizeof(path));
    unsigned *seen = calloc(FILES, sizeof(*seen));
    _Alignas(8) char buf[2048];
    unsigned directories = 0;
    unsigned links = 0;
    unsigned dots = 0;
    unsigned pieces = 0;
    char name[700];

    for (unsigned i = 0; i < FILES; i++) {
        size_t used;
        int fd;

        /* Long and short names, with bytes that are no UTF-8 and newlines. */
        used = (size_t)snprintf(name, sizeof(name), "%s/%u\xff\n", path, i);
        memset(name + used, 'x', i % 200);
        name[used + i % 200] = '\0';
        fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        check(fd >= 0);
        (void)close(fd);
    }
    check_code(run_named(env, WEIR_OP_MKDIR, dir, "dir", NULL, 0), 0);
    check_code(run_named(env, WEIR_OP_SYMLINK, dir, "x", "link", 0), 0);
    for (;;) {
        struct probe probe;
        size_t at = 0;

        weir_job_prepare(&probe.job, WEIR_OP_LIST, dir, NULL, NULL);
        probe.job.buf = buf;
        probe.job.len = sizeof(buf);
        memset(buf, 0xee, sizeof(buf));
        (void)probe_run(env->queue, &probe);
        check(probe.result >= 0 && probe.result <= (int64_t)sizeof(buf));
        if (probe.result == 0)
            break;
        pieces++;
        while (at < (size_t)probe.result) {
            const struct weir_dirent *entry = (const struct weir_dirent *)(void *)(buf + at);
            struct stat real;

            check(entry->entry_size >= offsetof(struct weir_dirent, name) + 2);
            check(entry->entry_size % 8 == 0);
            check(at + entry->entry_size <= (size_t)probe.result);
            check(memchr(entry->name, '\0',
                         entry->entry_size - offsetof(struct weir_dirent, name)) != NULL);
            (void)snprintf(name, sizeof(name), "%s/%s", path, entry->name);
            check_code(lstat(name, &real), 0);
            if (strcmp(entry->name, "..") != 0)
                check(real.st_ino == entry->inode);
            if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) {
                dots++;
            } else if (strcmp(entry->name, "dir") == 0) {
                directories++;
                check(entry->type == DT_DIR || entry->type == DT_UNKNOWN);
            } else if (strcmp(entry->name, "link") == 0) {
                links++;
                check(entry->type == DT_LNK || entry->type == DT_UNKNOWN);
            } else {
                unsigned long number = strtoul(entry->name, NULL, 10);

                check(number < FILES);
                seen[number]++;
                check(entry->type == DT_REG || entry->type == DT_UNKNOWN);
                check(strlen(strchr(entry->name, '\n') + 1) == number % 200);
            }
            at += entry->entry_size;
        }
    }
    check(pieces > 5);
    check(directories == 1 && links == 1);
    check(dots == 0 || dots == 2);
    for (unsigned i = 0; i < FILES; i++)
        check(seen[i] == 1);
    check_code(weir_file_close(dir), 0);
    free(seen);
}

/* Many name operations at once, on the pool, do not get in each other's way. */
static void names__many_at_once(struct env *env)
{
    enum {
        COUNT_AT_ONCE = 400
    };
    char path[300];
    struct weir_file *dir = open_dir(env, path, sizeof(path));
    struct probe *probes = calloc(COUNT_AT_ONCE, sizeof(*probes));
    struct weir_file **files = calloc(COUNT_AT_ONCE, sizeof(struct weir_file *));
    char(*names)[16] = calloc(COUNT_AT_ONCE, sizeof(*names));

    for (unsigned i = 0; i < COUNT_AT_ONCE; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "f%u", i);
        weir_job_open(&probes[i].job, dir, names[i],
                      WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_EXCLUSIVE,
                      0600, &files[i], NULL, NULL);
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, COUNT_AT_ONCE);
    for (unsigned i = 0; i < COUNT_AT_ONCE; i++) {
        check_code(probes[i].result, 0);
        weir_job_write(&probes[i].job, files[i], names[i], sizeof(names[i]), 0, NULL, NULL);
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, COUNT_AT_ONCE);
    for (unsigned i = 0; i < COUNT_AT_ONCE; i++) {
        check_code(probes[i].result, sizeof(names[i]));
        if (env->backend != WEIR_BACKEND_NULL) {
            char got[16];

            check_code(weir_file_read(files[i], got, 16, 0), 16);
            check(memcmp(got, names[i], 16) == 0);
        }
        weir_job_prepare(&probes[i].job, WEIR_OP_CLOSE, files[i], NULL, NULL);
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, COUNT_AT_ONCE);
    for (unsigned i = 0; i < COUNT_AT_ONCE; i++) {
        check_code(probes[i].result, 0);
        weir_job_prepare(&probes[i].job, WEIR_OP_UNLINK, dir, NULL, NULL);
        probes[i].job.path = names[i];
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, COUNT_AT_ONCE);
    for (unsigned i = 0; i < COUNT_AT_ONCE; i++)
        check_code(probes[i].result, 0);
    check_code(run_close(env, dir), 0);
    check_code(rmdir(path), 0);
    free(probes);
    free(files);
    free(names);
}

/* Files opened, used until the queue has them registered, closed, and their numbers used
 * again by other files: a read never reaches the file before. */
static void close__numbers_are_used_again(struct env *env)
{
    struct probe probes[16];
    uint8_t buf[16][256];

    for (unsigned round = 0; round < 150; round++) {
        const char *path = test_new_path("again");
        struct weir_file *file = NULL;

        pattern_make_file(path, 4096, round);
        check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &file, NULL), 0);
        for (size_t i = 0; i < 16; i++) {
            weir_job_read(&probes[i].job, file, buf[i], 256, i * 256, NULL, NULL);
            probe_submit(env->queue, &probes[i]);
        }
        probes_wait(env->queue, probes, 16);
        for (size_t i = 0; i < 16; i++) {
            check_code(probes[i].result, 256);
            check_pattern(buf[i], 256, round, i * 256);
        }
        check_code(weir_file_close(file), 0);
        (void)unlink(path);
    }
}

/* A file that a queue has registered does not keep its space after it is closed and removed:
 * the queue lets go of it at its next run. */
static void close__queue_lets_go_of_the_file(struct env *env)
{
    const char *path = test_new_path("letgo");
    struct weir_file *file = NULL;
    struct probe probes[32];
    uint8_t buf[32][64];
    int ends[2];
    char byte;

    /* A pipe tells: its reader sees the end when the last writer is really gone. */
    check_code(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    pattern_make_file(path, 4096, SEED);
    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ, 0, &file, NULL), 0);
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < 32; i++) {
            weir_job_read(&probes[i].job, file, buf[i], 64, i * 64, NULL, NULL);
            probe_submit(env->queue, &probes[i]);
        }
        probes_wait(env->queue, probes, 32);
    }
    check_code(weir_file_close(file), 0);

    check_code(weir_file_adopt(env->engine, ends[1], "pipe", &file, NULL), 0);
    for (size_t i = 0; i < 32; i++) {
        weir_job_write(&probes[i].job, file, "x", 1, 0, NULL, NULL);
        probe_submit(env->queue, &probes[i]);
        (void)probe_wait(env->queue, &probes[i]); /* a pipe has no offsets: it may refuse */
    }
    check_code(weir_file_close(file), 0);
    check_code(weir_queue_run(env->queue), 0);
    while (read(ends[0], &byte, 1) == 1)
        continue;
    check_code(read(ends[0], &byte, 1), 0); /* the end, not EAGAIN */
    (void)close(ends[0]);
    (void)unlink(path);
}

/* --- syncing ----------------------------------------------------------------------------------------- */

/* Syncs of both kinds, both ways. */
static void sync__both_ways(struct env *env)
{
    const char *path = test_new_path("sync");
    struct weir_file *file = NULL;
    struct probe probe;
    char byte = 'x';

    check_code(weir_file_open(env->engine, NULL, path, WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600,
                              &file, NULL),
               0);
    check_code(weir_file_write(file, &byte, 1, 0), 1);
    weir_job_sync(&probe.job, file, WEIR_SYNC_DATA, NULL, NULL);
    check_code(probe.job.op, WEIR_OP_FDATASYNC);
    check_code(probe_run(env->queue, &probe), 0);
    weir_job_sync(&probe.job, file, WEIR_SYNC_ALL, NULL, NULL);
    check_code(probe.job.op, WEIR_OP_FSYNC);
    check_code(probe_run(env->queue, &probe), 0);
    check_code(weir_file_sync(file, WEIR_SYNC_DATA, NULL), 0);
    check_code(weir_file_sync(file, WEIR_SYNC_ALL, NULL), 0);
    check_code(weir_file_close(file), 0);
}

/* The first failed sync is final: for both kinds of sync and for writes, as jobs of every
 * queue and as blocking calls, with the same error, though the kernel would say 0 now. */
static void sync__first_failure_is_final(struct env *env)
{
    static const int32_t errors[] = { -EIO, -ENOSPC, -EDQUOT };

    for (size_t how = 0; how < 4; how++) {
        struct faulty f;
        struct weir_file_info info = { .size = sizeof(info) };
        struct weir_file *file = NULL;
        struct weir_queue *other;
        struct weir_error error = { 0 };
        struct probe probe;
        uint8_t buf[512] = { 1 };
        struct iovec iov = { buf, sizeof(buf) };
        uint64_t moved = 1;
        int32_t code = errors[how % COUNT(errors)];

        faulty_open(&f, env->backend, 0, 0, NULL);
        check_code(weir_queue_open(f.engine, NULL, &other), 0);
        check_code(weir_file_open(f.engine, NULL, test_new_path("poison"),
                                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600,
                                  &file, NULL),
                   0);
        check_code(weir_file_write(file, buf, 512, 0), 512);
        faulty_rule(&f, (struct wi_fault_rule){
                            .kind = WI_FAULT_SYNC, .first = 1, .count = 1, .error = code });
        if (how % 2 == 0) {
            check_code(weir_file_sync(file, WEIR_SYNC_DATA, &error), code);
        } else {
            weir_job_sync(&probe.job, file, WEIR_SYNC_ALL, NULL, NULL);
            check_code(probe_run(f.queue, &probe), code);
            error = probe.error;
        }
        check_code(error.code, code);
        check(strstr(error.path, "poison") != NULL);

        for (int round = 0; round < 2; round++) {
            struct weir_queue *queue = round ? other : f.queue;

            weir_job_sync(&probe.job, file, round ? WEIR_SYNC_ALL : WEIR_SYNC_DATA, NULL, NULL);
            check_code(probe_run(queue, &probe), code);
            weir_job_write(&probe.job, file, buf, 512, 512, NULL, NULL);
            check_code(probe_run(queue, &probe), code);
            check_code(probe.transferred, 0);
            weir_job_writev(&probe.job, file, &iov, 1, 512, NULL, NULL);
            check_code(probe_run(queue, &probe), code);
            check_code(weir_file_sync(file, WEIR_SYNC_ALL, NULL), code);
            check_code(weir_file_sync(file, WEIR_SYNC_DATA, NULL), code);
            check_code(weir_file_write(file, buf, 512, 512), code);
            check_code(weir_file_transfer(file, 1, &iov, 1, 512, &moved, &error), code);
            check_code(moved, 0);
        }
        check_code(wi_fault_seen(f.plan, WI_FAULT_SYNC), 1); /* never asked again */
        check_code(weir_file_info(file, &info), 0);
        check_code(info.sync_error, code);
        check_code(weir_file_read(file, buf, 512, 0), 512); /* reading still works */
        weir_job_read(&probe.job, file, buf, 512, 0, NULL, NULL);
        check_code(probe_run(f.queue, &probe), 512);
        check_code(weir_file_close(file), code);
        check_code(weir_queue_close(other, TEST_LONG), 0);
        faulty_close(&f);
    }
}

/* A barrier sync behind writes of which one fails is still a sync of the others; what failed
 * is the write's to say. */
static void sync__barrier_waits_for_a_hanging_write(struct env *env)
{
    struct faulty f;
    struct weir_file *file = NULL;
    struct probe writes[3];
    struct probe sync;
    uint8_t buf[512] = { 2 };

    faulty_open(&f, env->backend, 0, 0, NULL);
    check_code(weir_file_open(f.engine, NULL, test_new_path("hang"),
                              WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &file,
                              NULL),
               0);
    faulty_hang(&f, WI_FAULT_WRITE, 1, false);
    for (size_t i = 0; i < 3; i++) {
        weir_job_write(&writes[i].job, file, buf, 512, i * 512, NULL, NULL);
        probe_submit(f.queue, &writes[i]);
    }
    weir_job_sync(&sync.job, file, WEIR_SYNC_DATA, NULL, NULL);
    sync.job.flags = WEIR_JOB_BARRIER;
    probe_submit(f.queue, &sync);
    probes_wait(f.queue, writes + 1, 2);
    check_code(weir_queue_run(f.queue), 0);
    check(writes[0].done == 0 && sync.done == 0);
    check_code(wi_fault_seen(f.plan, WI_FAULT_SYNC), 0); /* not even begun */
    faulty_release(&f);
    check_code(probe_wait(f.queue, &sync), 0);
    check(writes[0].done == 1);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* A sync without the barrier does not wait for writes that are still under way. */
static void sync__without_barrier_does_not_wait(struct env *env)
{
    struct faulty f;
    struct weir_file *file = NULL;
    struct probe write;
    struct probe sync;
    uint8_t buf[512] = { 2 };

    faulty_open(&f, env->backend, 0, 0, NULL);
    check_code(weir_file_open(f.engine, NULL, test_new_path("nobarrier"),
                              WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &file, NULL),
               0);
    faulty_hang(&f, WI_FAULT_WRITE, 1, false);
    weir_job_write(&write.job, file, buf, 512, 0, NULL, NULL);
    probe_submit(f.queue, &write);
    weir_job_sync(&sync.job, file, WEIR_SYNC_DATA, NULL, NULL);
    check_code(probe_run(f.queue, &sync), 0);
    check(write.done == 0);
    faulty_release(&f);
    check_code(probe_wait(f.queue, &write), 512);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

/* --- functions on lanes ---------------------------------------------------------------------------------- */

struct lane_watch {
    unsigned now;  /* atomic */
    unsigned peak; /* atomic */
    unsigned calls;
    pthread_t owner;
    unsigned on_owner;
};

static int64_t watch_lane(void *context)
{
    struct lane_watch *watch = context;
    unsigned now = __atomic_add_fetch(&watch->now, 1, __ATOMIC_SEQ_CST);
    unsigned peak = __atomic_load_n(&watch->peak, __ATOMIC_SEQ_CST);

    while (now > peak && !__atomic_compare_exchange_n(&watch->peak, &peak, now, false,
                                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        continue;
    for (volatile unsigned i = 0; i < 2000; i++)
        continue; /* long enough for another to come in, if it may */
    if (pthread_equal(pthread_self(), watch->owner) != 0)
        (void)__atomic_add_fetch(&watch->on_owner, 1, __ATOMIC_SEQ_CST);
    (void)__atomic_add_fetch(&watch->calls, 1, __ATOMIC_SEQ_CST);
    (void)__atomic_sub_fetch(&watch->now, 1, __ATOMIC_SEQ_CST);
    return -4242;
}

/* Functions run on their lane, never on more threads than it may have; their value is the
 * result, also a negative one that is no error of ours. */
static void call__lanes_are_bounded(struct env *env)
{
    enum {
        CALLS = 600
    };
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .io_threads = 2,
                                           .files_threads = 1,
                                           .cpu_threads = 3 };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct probe *probes = calloc(CALLS, sizeof(*probes));

    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_queue_open(engine, NULL, &queue), 0);
    check_code(weir_engine_info(engine, &info), 0);
    check(info.lane_threads[WEIR_LANE_IO] == 2);
    check(info.lane_threads[WEIR_LANE_FILES] == 1);
    check(info.lane_threads[WEIR_LANE_CPU] == 3);
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++) {
        struct lane_watch watch = { .owner = pthread_self() };

        for (size_t i = 0; i < CALLS; i++) {
            weir_job_call(&probes[i].job, lane, watch_lane, &watch, NULL, NULL);
            probe_submit(queue, &probes[i]);
        }
        probes_wait(queue, probes, CALLS);
        for (size_t i = 0; i < CALLS; i++)
            check_code(probes[i].result, -4242);
        check(watch.calls == CALLS);
        if (env->backend != WEIR_BACKEND_NULL) {
            check(watch.on_owner == 0);
            check(watch.peak <= info.lane_threads[lane]);
        }
    }
    check_code(weir_engine_stats(engine, &stats), 0);
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++) {
        check(stats.pool_threads_peak[lane] <= info.lane_threads[lane]);
        if (env->backend != WEIR_BACKEND_NULL)
            check(stats.pool_tasks[lane] >= CALLS);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_engine_close(engine), 0);
    free(probes);
}

static const struct test_case cases[] = {
    CASE(open__flags, 0),
    CASE(open__senseless_flags_are_einval, 0),
    CASE(open__errors_have_names, CASE_ONCE),
    CASE(adopt__asks_the_kernel, 0),
    CASE(adopt__failure_leaves_the_descriptor, CASE_ONCE),
    CASE(stat__says_what_the_kernel_says, 0),
    CASE(truncate__and_allocate, 0),
    CASE(names__all_operations, 0),
    CASE(list__every_name_once, 0),
    CASE(names__many_at_once, 0),
    CASE(close__numbers_are_used_again, CASE_BYTES),
    CASE(close__queue_lets_go_of_the_file, CASE_BYTES),
    CASE(sync__both_ways, 0),
    CASE(sync__first_failure_is_final, 0),
    CASE(sync__barrier_waits_for_a_hanging_write, 0),
    CASE(sync__without_barrier_does_not_wait, 0),
    CASE(call__lanes_are_bounded, 0),
};

int main(int argc, char **argv)
{
    return run_cases("files", cases, COUNT(cases), argc, argv);
}
