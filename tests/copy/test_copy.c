/* SPDX-License-Identifier: MIT */
/*
 * test_copy.c - weir_copy keeps its promises, on every backend
 *
 * What goes wrong is made to happen at a known moment: `hooks` is the real os table with some
 * calls replaced, and plans of faults (faulty.h) spoil the Nth call of a kind.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/faulty.h"
#include "trees.h"

/* ---- one copy ----------------------------------------------------------------------------- */

#define FAILURES_MAX 64

static struct copied {
    int rc;
    struct weir_copy_result result;
    struct weir_error failures[FAILURES_MAX];
    size_t failures_count;
    unsigned ticks;
    uint64_t bytes_done; /* in the last report */
    uint64_t bytes_total;
    unsigned stop_at; /* progress call that asks to stop; 0: none */
} last;

static void on_failed(void *arg, const struct weir_error *error)
{
    struct copied *copied = arg;

    if (copied->failures_count < FAILURES_MAX)
        copied->failures[copied->failures_count] = *error;
    copied->failures_count++;
}

static int on_progress(void *arg, const struct weir_copy_progress *now)
{
    struct copied *copied = arg;

    check(now->bytes_done <= now->bytes_total);
    check(now->files_done <= now->files_total);
    copied->ticks++;
    copied->bytes_done = now->bytes_done;
    copied->bytes_total = now->bytes_total;
    return copied->stop_at != 0 && copied->ticks >= copied->stop_at;
}

static int copy_many(struct weir_engine *engine, const char *const *sources, size_t count,
                     const char *to, uint32_t flags, uint32_t workers)
{
    struct weir_copy_options options = { .size = sizeof(options),
                                         .flags = flags,
                                         .workers = workers,
                                         .progress = on_progress,
                                         .failed = on_failed,
                                         .arg = &last };
    unsigned stop_at = last.stop_at;

    memset(&last, 0, sizeof(last));
    last.stop_at = stop_at;
    last.result.size = sizeof(last.result);
    last.rc = weir_copy(engine, sources, count, to, &options, &last.result);
    check_code(last.result.errors, last.failures_count);
    return last.rc;
}

static int copy_one(struct weir_engine *engine, const char *from, const char *to,
                    uint32_t flags)
{
    return copy_many(engine, &from, 1, to, flags, 0);
}

/* A directory of its own for a test. */
static const char *new_dir(const char *prefix)
{
    const char *path = join(test_dir(), strrchr(test_new_path(prefix), '/') + 1);

    make_dir(path, 0755);
    return path;
}

/* ---- hooks ------------------------------------------------------------------------------------ */

static struct wi_os_ops hook_ops;
static const struct wi_os hook_os = { &hook_ops };
static const char *hook_path;
static _Atomic int hook_calls;
static int hook_at; /* acts at this call */

#define REAL (wi_os_posix()->ops)

/* An engine on the real table with what `change` puts into hook_ops. */
static struct weir_engine *open_hooked(uint32_t backend, void (*change)(void))
{
    struct weir_engine_options options = { .size = sizeof(options), .backend = backend };
    struct wi_engine_seams seams = { .os = &hook_os };
    struct weir_engine *engine = NULL;

    hook_ops = *REAL;
    hook_calls = 0;
    hook_at = 1;
    change();
    check_code(wi_engine_open_with(&options, &seams, &engine, NULL), 0);
    return engine;
}

/* ---- what a copy is ---------------------------------------------------------------------------- */

/* Names, bytes, modes and times arrive, whatever the size of a file, verified or not. */
static void tree__arrives_whole(struct env *env)
{
    const char *dir = new_dir("whole");
    const char *from = join(dir, "from");

    make_tree(from, 11);
    check_code(copy_one(env->engine, from, join(dir, "to"), WEIR_COPY_RECURSIVE), 0);
    check_same_trees(from, join(dir, "to"));
    check_code(last.result.files, 7);
    check_code(last.result.directories, 4);
    check_code(last.result.links, 2);
    check_code(last.result.verified_files, 0);

    check_code(copy_one(env->engine, from, join(dir, "verified"),
                        WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY | WEIR_COPY_COUNT),
               0);
    check_same_trees(from, join(dir, "verified"));
    check_code(last.result.verified_files, 7);
    check_code(last.result.verified_bytes, last.result.bytes);
    check_code(count_temporaries(dir), 0);
    check(last.ticks > 0);
    check_code(last.bytes_done, 2 * last.result.bytes);
    check_code(last.bytes_total, last.bytes_done);
}

static void file__of_every_size_arrives(struct env *env)
{
    static const size_t sizes[] = {
        0,
        1,
        511,
        512,
        4095,
        4096,
        4097,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB,
        3 * MIB + 123,
        8 * MIB,
        8 * MIB + 1,
        9 * MIB + 511,
        17 * MIB - 512,
        20 * MIB + 4097,
    };
    const char *dir = new_dir("sizes");

    for (size_t i = 0; i < COUNT(sizes); i++) {
        const char *from = join(dir, "from");
        const char *to = join(dir, "to");

        pattern_make_file(from, sizes[i], i);
        check_code(copy_one(env->engine, from, to, i % 2 ? WEIR_COPY_VERIFY : 0), 0);
        check_same_trees(from, to);
        check_code(last.result.bytes, sizes[i]);
        check_code(copy_one(env->engine, from, to, i % 2 ? 0 : WEIR_COPY_VERIFY), 0);
        check_same_trees(from, to);
    }
    check_code(count_temporaries(dir), 0);
}

/* An old name is replaced; what it stood for, reached by another name, stays as it was. */
static void name__is_replaced_and_the_old_inode_untouched(struct env *env)
{
    const char *dir = new_dir("replace");
    const char *from = join(dir, "from");
    const char *to = join(dir, "to");

    pattern_make_file(from, 2 * MIB + 5, 3);
    make_text(to, "old");
    check_code(link(to, join(dir, "other")), 0);
    check_code(copy_one(env->engine, from, to, 0), 0);
    check_same_trees(from, to);
    check(strcmp(text_of(join(dir, "other")), "old") == 0);

    /* A link at the destination's name is replaced, and what it points to is left alone. */
    make_text(from, "new");
    make_text(join(dir, "target"), "target");
    check_code(unlink(to), 0);
    check_code(symlink("target", to), 0);
    check_code(copy_one(env->engine, from, to, 0), 0);
    check_same_trees(from, to);
    check(strcmp(text_of(join(dir, "target")), "target") == 0);

    /* And a link replaces a file, another link, but no directory. */
    check_code(symlink("somewhere", join(dir, "link")), 0);
    check_code(copy_one(env->engine, join(dir, "link"), to, 0), 0);
    check_same_trees(join(dir, "link"), to);
    check_code(copy_one(env->engine, join(dir, "link"), to, 0), 0);
    check_same_trees(join(dir, "link"), to);
    make_dir(join(dir, "into"), 0755);
    make_dir(join(dir, "into/link"), 0755);
    check_code(copy_one(env->engine, join(dir, "link"), join(dir, "into"), 0), -EISDIR);
    check_code(count_temporaries(dir), 0);
}

static void tree__merges_into_an_existing_one(struct env *env)
{
    const char *dir = new_dir("merge");

    make_tree(join(dir, "a"), 5);
    make_dir(join(dir, "to"), 0755);
    make_dir(join(dir, "to/a"), 0700);
    make_dir(join(dir, "to/a/sub"), 0700);
    make_text(join(dir, "to/a/sub/f1"), "old");
    make_text(join(dir, "to/a/sub/other"), "other");
    check_code(symlink("old", join(dir, "to/a/link")), 0);
    check_code(copy_one(env->engine, join(dir, "a"), join(dir, "to"), WEIR_COPY_RECURSIVE), 0);
    check(strcmp(text_of(join(dir, "to/a/sub/other")), "other") == 0);
    check_code(unlink(join(dir, "to/a/sub/other")), 0);
    /* The contents of a directory, into the directory itself; this also restores its time. */
    check_code(copy_one(env->engine, join(dir, "a/."), join(dir, "to/a"), WEIR_COPY_RECURSIVE),
               0);
    check_same_trees(join(dir, "a"), join(dir, "to/a"));
}

static void sources__go_into_the_directory(struct env *env)
{
    const char *dir = new_dir("several");
    const char *to = join(dir, "to");
    const char *sources[] = { join(dir, "x"), join(dir, "d///"), join(dir, "missing"),
                              join(dir, "d/x") };

    make_dir(to, 0755);
    make_dir(join(dir, "d"), 0755);
    make_text(join(dir, "x"), "one");
    make_text(join(dir, "d/x"), "two");
    check_code(copy_many(env->engine, sources, 3, to, WEIR_COPY_RECURSIVE, 0), -ENOENT);
    check_same_trees(join(dir, "x"), join(to, "x"));
    check_same_trees(join(dir, "d"), join(to, "d"));
    check_code(last.failures_count, 1);
    check(strcmp(last.failures[0].path, sources[2]) == 0);

    /* Two that would get one name: the first does. */
    check_code(copy_many(env->engine, (const char *[]){ sources[0], sources[3] }, 2, to, 0, 0),
               -EEXIST);
    check(strcmp(text_of(join(to, "x")), "one") == 0);
    /* Several need a directory. */
    check_code(copy_many(env->engine, sources, 2, join(dir, "nothing"), 0, 0), -ENOTDIR);
    check(!exists(join(dir, "nothing")));
}

/* A name too long for a message keeps its end, and one can see that. */
static void name__that_is_cut_begins_with_dots(struct env *env)
{
    const char *dir = new_dir("cut");
    const char *path = join(dir, "from");
    char part[128];

    memset(part, 'p', sizeof(part) - 1);
    part[sizeof(part) - 1] = '\0';
    make_dir(path, 0755);
    for (unsigned i = 0; i < 4; i++) {
        path = join(path, part);
        make_dir(path, 0755);
    }
    check_code(mkfifo(join(path, "pipe"), 0644), 0);
    check_code(copy_one(env->engine, join(dir, "from"), join(dir, "to"), WEIR_COPY_RECURSIVE),
               -EOPNOTSUPP);
    path = last.failures[0].path;
    check(strncmp(path, "...ppp", 6) == 0);
    check(strcmp(path + strlen(path) - 6, "p/pipe") == 0);
}

/* A lane of one or two threads is enough for a copy that counts ahead. */
static void small_lane__is_enough(struct env *env)
{
    const char *dir = new_dir("small");

    make_tree(join(dir, "from"), 3);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct weir_engine_options options = { .size = sizeof(options),
                                               .backend = env->backend,
                                               .files_threads = threads };
        struct weir_engine *engine;

        check_code(weir_engine_open(&options, &engine, NULL), 0);
        check_code(copy_one(engine, join(dir, "from"), join(dir, "to"),
                            WEIR_COPY_RECURSIVE | WEIR_COPY_COUNT),
                   0);
        check_same_trees(join(dir, "from"), join(dir, "to"));
        check_code(last.bytes_done, last.bytes_total);
        test_remove_tree(join(dir, "to"));
        check_code(weir_engine_close(engine), 0);
    }
}

/* A slash at the end means a directory, which a directory's copy will be and a file's not. */
static void slash__at_the_end_means_a_directory(struct env *env)
{
    const char *dir = new_dir("slash");

    make_text(join(dir, "file"), "text");
    make_dir(join(dir, "a"), 0755);
    check_code(copy_one(env->engine, join(dir, "file"), join(dir, "to/"), 0), -ENOTDIR);
    check_code(last.failures_count, 1);
    check(!exists(join(dir, "to")));
    check_code(copy_one(env->engine, join(dir, "a"), join(dir, "to/"), WEIR_COPY_RECURSIVE), 0);
    check_code(copy_one(env->engine, join(dir, "file"), join(dir, "to/"), 0), 0);
    check_same_trees(join(dir, "file"), join(dir, "to/file"));
    check_code(copy_one(env->engine, "/proc/self/status", dir, 0), -EOPNOTSUPP);
}

/* Nothing that this copy made is overwritten by it, whatever way the names meet. */
static void sources__never_overwrite_each_other(struct env *env)
{
    const char *dir = new_dir("meet");
    const char *to = join(dir, "to");
    const char *sources[] = { join(dir, "a/."), join(dir, "b/."), join(dir, "b/sub"),
                              join(dir, "c/top") };

    make_dir(to, 0755);
    make_dir(join(dir, "a"), 0755);
    make_dir(join(dir, "a/sub"), 0755);
    make_text(join(dir, "a/sub/x"), "a");
    make_text(join(dir, "a/top"), "a");
    make_dir(join(dir, "b"), 0755);
    make_dir(join(dir, "b/sub"), 0755);
    make_text(join(dir, "b/sub/x"), "b");
    make_dir(join(dir, "c"), 0755);
    make_text(join(dir, "c/top"), "c");

    check_code(copy_many(env->engine, sources, 2, to, WEIR_COPY_RECURSIVE, 0), -EEXIST);
    check_code(last.failures_count, 1);
    check(strcmp(last.failures[0].path, sources[1]) == 0);
    check_same_trees(join(dir, "a"), to);

    /* A source with a name wins over what another has inside. */
    test_remove_tree(to);
    make_dir(to, 0755);
    check_code(copy_many(env->engine, (const char *[]){ sources[0], sources[2], sources[3] }, 3,
                         to, WEIR_COPY_RECURSIVE, 0),
               -EEXIST);
    check_code(last.failures_count, 2);
    check(strcmp(text_of(join(to, "sub/x")), "b") == 0);
    check(strcmp(text_of(join(to, "top")), "c") == 0);
}

static void arguments__that_make_no_sense_are_refused(struct env *env)
{
    struct weir_copy_options options = { .size = sizeof(options),
                                         .failed = on_failed,
                                         .arg = &last };
    const char *source = "";

    memset(&last, 0, sizeof(last));
    check_code(weir_copy(NULL, &source, 1, "x", &options, NULL), -EINVAL);
    check_code(weir_copy(env->engine, NULL, 1, "x", &options, NULL), -EINVAL);
    check_code(weir_copy(env->engine, &source, 0, "x", &options, NULL), -EINVAL);
    check_code(weir_copy(env->engine, &source, 1, "x", &options, NULL), -EINVAL);
    source = "x";
    check_code(weir_copy(env->engine, &source, 1, "", &options, NULL), -EINVAL);
    options.flags = 1u << 31;
    check_code(weir_copy(env->engine, &source, 1, "y", &options, NULL), -EINVAL);
    options.size = 3;
    check_code(weir_copy(env->engine, &source, 1, "y", &options, NULL), -EINVAL);
    check_code(last.failures_count, 5);
}

static void directory__without_recursive_is_an_error(struct env *env)
{
    const char *dir = new_dir("flat");
    const char *sources[] = { join(dir, "d"), join(dir, "f") };

    make_dir(join(dir, "d"), 0755);
    make_dir(join(dir, "to"), 0755);
    make_text(join(dir, "f"), "f");
    check_code(copy_many(env->engine, sources, 2, join(dir, "to"), 0, 0), -EISDIR);
    check(!exists(join(dir, "to/d")));
    check_same_trees(join(dir, "f"), join(dir, "to/f"));
}

/* Nothing is copied onto or into itself, by whatever name. */
static void self__is_refused(struct env *env)
{
    const char *dir = new_dir("self");
    const char *a = join(dir, "a");
    const char *file = join(dir, "a/file");

    make_dir(a, 0755);
    make_dir(join(dir, "a/b"), 0755);
    make_text(file, "text");
    check_code(symlink("a/b", join(dir, "b")), 0);
    check_code(link(file, join(dir, "hard")), 0);

    check_code(copy_one(env->engine, file, file, 0), -EINVAL);
    check_code(copy_one(env->engine, file, a, 0), -EINVAL);
    check_code(copy_one(env->engine, file, join(dir, "hard"), 0), -EINVAL);
    check_code(copy_one(env->engine, a, dir, WEIR_COPY_RECURSIVE), -EINVAL);
    check_code(copy_one(env->engine, a, join(dir, "a/b"), WEIR_COPY_RECURSIVE), -EINVAL);
    check_code(copy_one(env->engine, a, join(dir, "a/new"), WEIR_COPY_RECURSIVE), -EINVAL);
    check_code(copy_one(env->engine, a, join(dir, "b"), WEIR_COPY_RECURSIVE), -EINVAL);
    check_code(copy_one(env->engine, join(a, "."), join(dir, "b"), WEIR_COPY_RECURSIVE),
               -EINVAL);
    check(!exists(join(dir, "a/new")));
    check(!exists(join(dir, "a/b/a")));
    check(strcmp(text_of(file), "text") == 0);
    check_code(count_temporaries(dir), 0);
}

static void conflict__of_file_and_directory_is_reported(struct env *env)
{
    const char *dir = new_dir("conflict");

    make_tree(join(dir, "a"), 1);
    make_dir(join(dir, "to"), 0755);
    make_dir(join(dir, "to/a"), 0755);
    make_text(join(dir, "to/a/sub"), "a file where a directory is to be");
    make_dir(join(dir, "to/a/link"), 0755);
    check(copy_one(env->engine, join(dir, "a"), join(dir, "to"), WEIR_COPY_RECURSIVE) < 0);
    check_code(last.failures_count, 2);
    for (size_t i = 0; i < 2; i++)
        check(last.failures[i].code == -ENOTDIR || last.failures[i].code == -EISDIR);
    check(exists(join(dir, "to/a/empty")));
    check(strlen(text_of(join(dir, "to/a/sub"))) > 0);
}

static void special_file__is_reported_and_the_others_copied(struct env *env)
{
    const char *dir = new_dir("special");
    struct stat st;

    make_dir(join(dir, "a"), 0755);
    check_code(mkfifo(join(dir, "a/pipe"), 0644), 0);
    make_text(join(dir, "a/file"), "text");
    check_code(copy_one(env->engine, join(dir, "a"), join(dir, "to"), WEIR_COPY_RECURSIVE),
               -EOPNOTSUPP);
    check_same_trees(join(dir, "a/file"), join(dir, "to/file"));
    check(!exists(join(dir, "to/pipe")));

    /* Nor is one replaced, by a file or by a link. */
    check_code(unlink(join(dir, "a/pipe")), 0);
    check_code(symlink("file", join(dir, "a/link")), 0);
    check_code(mkfifo(join(dir, "to/link"), 0644), 0);
    check_code(unlink(join(dir, "to/file")), 0);
    check_code(mkfifo(join(dir, "to/file"), 0644), 0);
    check_code(copy_one(env->engine, join(dir, "a/."), join(dir, "to"), WEIR_COPY_RECURSIVE),
               -EEXIST);
    check_code(last.failures_count, 2);
    check_code(lstat(join(dir, "to/file"), &st), 0);
    check(S_ISFIFO(st.st_mode));
    check_code(lstat(join(dir, "to/link"), &st), 0);
    check(S_ISFIFO(st.st_mode));
    check_code(count_temporaries(dir), 0);
}

/* Any bytes but '/' and NUL are a name; errors show them escaped. */
static void name__of_any_bytes_arrives(struct env *env)
{
    const char *dir = new_dir("names");
    char line[1024];
    char longest[256];

    make_dir(join(dir, "a"), 0755);
    make_text(join(dir, "a/new\nline"), "1");
    make_text(join(dir, "a/\xff\xfe not utf-8 \x80"), "2");
    make_text(join(dir, "a/-r"), "3");
    memset(longest, 'n', 255);
    longest[255] = '\0';
    make_text(join(join(dir, "a"), longest), "4");
    memset(longest, 0xe2, 255);
    make_text(join(join(dir, "a"), longest), "5");
    check_code(copy_one(env->engine, join(dir, "a"), join(dir, "to"), WEIR_COPY_RECURSIVE), 0);
    check_same_trees(join(dir, "a"), join(dir, "to"));

    check_code(copy_one(env->engine, join(dir, "no\nsuch\x9b"), join(dir, "to"), 0), -ENOENT);
    weir_error_format(&last.failures[0], line, sizeof(line));
    check(strstr(line, "no\\nsuch\\x9b") != NULL);
}

static void bits__of_set_user_id_need_the_same_owner(struct env *env)
{
    const char *dir = new_dir("bits");
    const char *from = join(dir, "from");
    struct stat st;

    make_text(from, "program");
    check_code(chmod(from, 06755), 0);
    check_code(copy_one(env->engine, from, join(dir, "mine"), 0), 0);
    check_code(stat(join(dir, "mine"), &st), 0);
    check_code(st.st_mode & 07777, 06755);
    if (geteuid() != 0)
        return; /* only root can give a file away */
    check_code(chown(from, 12345, 12345), 0);
    check_code(chmod(from, 06755), 0);
    check_code(copy_one(env->engine, from, join(dir, "given"), 0), 0);
    check_code(stat(join(dir, "given"), &st), 0);
    check_code(st.st_mode & 07777, 0755);
}

/* Holes stay holes, also in front of and behind the data, and are verified as zeros. */
static void sparse_file__stays_sparse(struct env *env)
{
    const char *dir = new_dir("sparse");
    const char *from = join(dir, "from");
    unsigned char block[4096];
    struct stat st;
    int fd = open(from, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    pattern_fill(block, sizeof(block), 1, 0);
    check(fd >= 0);
    check_code(ftruncate(fd, 64 * MIB + 5), 0);
    check_code(pwrite(fd, block, sizeof(block), 5 * MIB), sizeof(block));
    check_code(pwrite(fd, block, 100, 30 * MIB + 50), 100);
    check_code(pwrite(fd, block, 5, 64 * MIB), 5);
    close(fd);
    for (uint32_t i = 0; i < 2; i++) {
        check_code(copy_one(env->engine, from, join(dir, "to"), i ? WEIR_COPY_VERIFY : 0), 0);
        check_same_trees(from, join(dir, "to"));
        check_code(last.bytes_done, last.bytes_total);
        check_code(last.bytes_total, (i + 1) * (64 * MIB + 5)); /* what is verified: twice */
        check_code(stat(join(dir, "to"), &st), 0);
        check(st.st_blocks * 512 < (blkcnt_t)MIB);
    }
}

/* ---- many ------------------------------------------------------------------------------------------ */

/* One directory with many files is shared among workers. */
static void many_files__in_one_directory(struct env *env)
{
    const char *dir = new_dir("many");
    const char *from = join(dir, "from");

    make_dir(from, 0755);
    for (unsigned i = 0; i < 3000; i++) {
        char name[64];

        (void)snprintf(name, sizeof(name), "a name of some length for file %u", i);
        make_text(join(from, name), name);
    }
    check_code(copy_many(env->engine, &from, 1, join(dir, "to"), WEIR_COPY_RECURSIVE, 8), 0);
    check_same_trees(from, join(dir, "to"));
    check_code(last.result.files, 3000);
}

/* More directories than may wait: workers go down themselves and come back. */
static void many_directories__side_by_side(struct env *env)
{
    const char *dir = new_dir("wide");
    const char *from = join(dir, "from");

    make_dir(from, 0755);
    for (unsigned i = 0; i < 2500; i++) {
        char name[64];

        (void)snprintf(name, sizeof(name), "directory %u", i);
        make_dir(join(from, name), 0755);
        if (i % 100 == 0)
            make_text(join(join(from, name), "file"), name);
    }
    check_code(copy_many(env->engine, &from, 1, join(dir, "to"), WEIR_COPY_RECURSIVE, 1), 0);
    check_same_trees(from, join(dir, "to"));
    check_code(last.result.directories, 2501);
    check_code(copy_many(env->engine, &from, 1, join(dir, "to2"), WEIR_COPY_RECURSIVE, 4), 0);
    check_same_trees(from, join(dir, "to2"));
}

static int64_t call_copy(void *context)
{
    const char *const *paths = context;

    return copy_one((struct weir_engine *)(uintptr_t)paths[2], paths[0], paths[1],
                    WEIR_COPY_RECURSIVE);
}

/* A copy asked for as a job on the lane whose only thread it then holds still ends. */
static void copy__runs_on_a_pool_thread(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .files_threads = 1 };
    const char *dir = new_dir("lane");
    const char *paths[3] = { join(dir, "from"), join(dir, "to"), NULL };
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct probe probe;

    make_tree(paths[0], 3);
    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_queue_open(engine, NULL, &queue), 0);
    paths[2] = (const char *)engine;
    weir_job_call(&probe.job, WEIR_LANE_FILES, call_copy, paths, NULL, NULL);
    check_code(probe_run(queue, &probe), 0);
    check_same_trees(paths[0], paths[1]);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_engine_close(engine), 0);
}

/* A plain user's copy goes into directories that an earlier one made read-only. */
static void read_only_directory__takes_a_second_copy(struct env *env)
{
    const char *dir = new_dir("readonly");
    struct weir_engine_options options = { .size = sizeof(options), .backend = env->backend };
    struct weir_engine *engine;
    int back = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool root = geteuid() == 0;
    int first = 1;
    int second = 1;

    make_dir(join(dir, "from"), 0755);
    make_text(join(dir, "from/file"), "text");
    check_code(chmod(join(dir, "from"), 0555), 0);
    check_code(root ? chown(dir, 65534, 65534) : 0, 0);
    check_code(chdir(dir), 0); /* the way to it need not be open to everybody */
    check_code(root ? seteuid(65534) : 0, 0);
    if (weir_engine_open(&options, &engine, NULL) == 0) {
        first = copy_one(engine, "from", "to", WEIR_COPY_RECURSIVE);
        second = copy_one(engine, "from/.", "to", WEIR_COPY_RECURSIVE);
        weir_engine_close(engine);
    }
    check_code(root ? seteuid(0) : 0, 0);
    check_code(fchdir(back), 0);
    close(back);
    check_code(first, 0);
    check_code(second, 0);
    check_same_trees(join(dir, "from"), join(dir, "to"));
    check_code(chmod(join(dir, "from"), 0755), 0);
    check_code(chmod(join(dir, "to"), 0755), 0);
}

/* ---- temporaries -------------------------------------------------------------------------------------- */

/* What was left is removed; what somebody holds, or only looks like it, is not. */
static void temporaries__only_those_left_are_removed(struct env *env)
{
    const char *dir = new_dir("left");
    const char *to = join(dir, "to");
    const char *left = join(to, ".file.0123456789abcdef.weir-tmp");
    const char *left_dir = join(to, ".link.00000000000000aa.weir-tmp");
    const char *held = join(to, ".file.fedcba9876543210.weir-tmp");
    const char *own_dir = join(to, ".own.00000000000000bb.weir-tmp");
    static const char *const alike[] = {
        "file.0123456789abcdef.weir-tmp",
        ".file.0123456789ABCDEF.weir-tmp",
        ".file.0123456789abcde.weir-tmp",
        ".file.0123456789abcdef.weir-tmp.txt",
        ".weir-tmp",
    };
    int fd;

    make_dir(join(dir, "from"), 0755);
    make_text(join(dir, "from/file"), "text");
    make_dir(to, 0755);
    make_text(left, "half");
    make_dir(left_dir, 0700);
    check_code(symlink("target", join(left_dir, "link")), 0);
    make_dir(own_dir, 0755);
    make_text(join(own_dir, "file"), "the user's own");
    make_text(join(own_dir, "link"), "the user's own, and no link");
    make_text(held, "being written");
    for (size_t i = 0; i < COUNT(alike); i++)
        make_text(join(to, alike[i]), "the user's own");
    fd = open(held, O_RDWR | O_CLOEXEC);
    check_code(flock(fd, LOCK_EX | LOCK_NB), 0);

    check_code(copy_one(env->engine, join(dir, "from/."), to, WEIR_COPY_RECURSIVE), 0);
    check(!exists(left));
    check(!exists(left_dir));
    check(exists(held));
    check(exists(join(own_dir, "file")));
    check(exists(join(own_dir, "link")));
    for (size_t i = 0; i < COUNT(alike); i++)
        check(exists(join(to, alike[i])));
    close(fd);
    check_code(copy_one(env->engine, join(dir, "from/file"), to, 0), 0);
    check(!exists(held));
}

static void stop__leaves_no_temporaries(struct env *env)
{
    const char *dir = new_dir("stop");
    const char *from = join(dir, "from");
    const char *to = join(dir, "to");
    bool stopped = false;

    /* The first report comes after a tenth of a second, or at the end: then it is too late.
     * More and more is copied until it is not. */
    make_dir(from, 0755);
    for (unsigned n = 0; n < 8 && !stopped; n++) {
        char name[32];

        for (unsigned i = 0; i < (1u << n); i++) {
            (void)snprintf(name, sizeof(name), "%u-%u", n, i);
            pattern_make_file(join(from, name), 8 * MIB, i);
        }
        last.stop_at = 1;
        stopped = copy_one(env->engine, from, to, WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY) ==
                  -ECANCELED;
        check_code(count_temporaries(to), 0);
        check_code(last.failures_count, 0);
        test_remove_tree(to);
    }
    last.stop_at = 0;
    test_remove_tree(from);
    if (!stopped)
        skip();
}

/* ---- files that change meanwhile ------------------------------------------------------------------------- */

static int64_t change_at_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                               uint64_t offset)
{
    if (atomic_fetch_add(&hook_calls, 1) + 1 == hook_at)
        check_code(truncate(hook_path, 100), 0);
    return REAL->pread(os, fd, buf, len, offset);
}

static int64_t grow_at_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                             uint64_t offset)
{
    if (atomic_fetch_add(&hook_calls, 1) + 1 == hook_at)
        check_code(truncate(hook_path, 6000), 0);
    return REAL->pread(os, fd, buf, len, offset);
}

static int64_t touch_after_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                                 uint64_t offset)
{
    const struct timespec times[2] = { { 5, 5 }, { 6, 6 } };
    int64_t got = REAL->pread(os, fd, buf, len, offset);

    if (atomic_fetch_add(&hook_calls, 1) + 1 == hook_at)
        check_code(utimensat(AT_FDCWD, hook_path, times, 0), 0);
    return got;
}

/* A large file's space is reserved after it was looked at and before it is read. */
static int shrink_at_fallocate(const struct wi_os *os, int fd, int mode, uint64_t offset,
                               uint64_t len)
{
    check_code(truncate(hook_path, 3 * MIB + 17), 0);
    return REAL->fallocate(os, fd, mode, offset, len);
}

static int grow_at_fallocate(const struct wi_os *os, int fd, int mode, uint64_t offset,
                             uint64_t len)
{
    check_code(truncate(hook_path, 9 * MIB), 0);
    return REAL->fallocate(os, fd, mode, offset, len);
}

static int touch_at_fallocate(const struct wi_os *os, int fd, int mode, uint64_t offset,
                              uint64_t len)
{
    const struct timespec times[2] = { { 5, 5 }, { 6, 6 } };

    check_code(utimensat(AT_FDCWD, hook_path, times, 0), 0);
    return REAL->fallocate(os, fd, mode, offset, len);
}

static void hook_shrink(void)
{
    hook_ops.pread = change_at_pread;
    hook_ops.fallocate = shrink_at_fallocate;
}

static void hook_grow(void)
{
    hook_ops.pread = grow_at_pread;
    hook_ops.fallocate = grow_at_fallocate;
}

static void hook_touch(void)
{
    hook_ops.pread = touch_after_pread;
    hook_ops.fallocate = touch_at_fallocate;
}

/* Whoever changes while read is reported and not published; an old copy stays. */
static void source__that_changes_is_not_published(struct env *env)
{
    static void (*const changes[])(void) = { hook_shrink, hook_grow, hook_touch };
    static const size_t sizes[] = { 5000, 6 * MIB + 1000 };
    const char *dir = new_dir("changes");

    for (size_t i = 0; i < COUNT(changes) * COUNT(sizes); i++) {
        struct weir_engine *engine;

        hook_path = join(dir, "from");
        pattern_make_file(hook_path, sizes[i / COUNT(changes)], i);
        make_text(join(dir, "to"), "old");
        engine = open_hooked(env->backend, changes[i % COUNT(changes)]);
        check_code(copy_one(engine, hook_path, join(dir, "to"), 0), -WEIR_ECHANGED);
        check(strcmp(text_of(join(dir, "to")), "old") == 0);
        check_code(count_temporaries(dir), 0);
        check_code(weir_engine_close(engine), 0);
    }
}

/* ---- file systems that can do less --------------------------------------------------------------------------- */

static int no_direct(const struct wi_os *os, int fd, int command, intptr_t arg)
{
    if (command == F_SETFL && (arg & O_DIRECT))
        return -EINVAL;
    return REAL->fcntl(os, fd, command, arg);
}

static int no_direct_open(const struct wi_os *os, int dir, const char *path, int flags,
                          uint32_t mode)
{
    return flags & O_DIRECT ? -EINVAL : REAL->openat(os, dir, path, flags, mode);
}

static int no_fallocate(const struct wi_os *os, int fd, int mode, uint64_t offset, uint64_t len)
{
    (void)os;
    (void)fd;
    (void)mode;
    (void)offset;
    (void)len;
    return -EOPNOTSUPP;
}

static int64_t no_holes(const struct wi_os *os, int fd, int64_t offset, int whence)
{
    if (whence == SEEK_DATA || whence == SEEK_HOLE)
        return -EINVAL;
    return REAL->lseek(os, fd, offset, whence);
}

static int no_locks(const struct wi_os *os, int fd, int operation)
{
    (void)os;
    (void)fd;
    (void)operation;
    return -EOPNOTSUPP;
}

static int64_t no_types(const struct wi_os *os, int fd, void *buf, size_t size)
{
    int64_t got = REAL->getdents(os, fd, buf, size);

    for (int64_t at = 0; at < got;) {
        struct dirent64 *entry = (void *)((char *)buf + at);

        entry->d_type = DT_UNKNOWN;
        at += entry->d_reclen;
    }
    return got;
}

static int foreign_fs(const struct wi_os *os, int fd, struct statfs *ret_stat)
{
    int rc = REAL->fstatfs(os, fd, ret_stat);

    ret_stat->f_type = 0x6969;
    return rc;
}

static void hook_poor(void)
{
    hook_ops.fcntl = no_direct;
    hook_ops.openat = no_direct_open;
    hook_ops.fallocate = no_fallocate;
    hook_ops.lseek = no_holes;
    hook_ops.flock = no_locks;
    hook_ops.getdents = no_types;
    hook_ops.fstatfs = foreign_fs;
    hook_ops.cached = NULL;
    hook_ops.clone = NULL;
}

static void poor_file_system__is_enough(struct env *env)
{
    const char *dir = new_dir("poor");
    struct weir_engine *engine = open_hooked(env->backend, hook_poor);

    make_tree(join(dir, "from"), 77);
    pattern_make_file(join(dir, "from/large"), 9 * MIB + 3, 9);
    check_code(copy_one(engine, join(dir, "from"), join(dir, "to"), WEIR_COPY_RECURSIVE), 0);
    check_same_trees(join(dir, "from"), join(dir, "to"));
    check_code(copy_one(engine, join(dir, "from/."), join(dir, "to"),
                        WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY),
               0);
    check_same_trees(join(dir, "from"), join(dir, "to"));
    check_code(last.result.verified_files, 8);
    check_code(last.result.verified_cached_files, 7); /* all but the empty one */
    check_code(weir_engine_close(engine), 0);
}

/* A destination that takes "X" and "Y" for "x" and "y", and has made a directory "z". */
static const char *folded(const char *name)
{
    return strcmp(name, "X") == 0 ? "x" : strcmp(name, "Y") == 0 ? "y" : name;
}

static int no_noreplace(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                        const char *to, uint32_t flags)
{
    return flags ? -EINVAL : REAL->renameat2(os, from_dir, from, to_dir, to, flags);
}

static void hook_no_noreplace(void)
{
    hook_ops.renameat2 = no_noreplace;
}

static int fold_rename(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                       const char *to, uint32_t flags)
{
    return REAL->renameat2(os, from_dir, from, to_dir, folded(to), flags);
}

static int fold_symlink(const struct wi_os *os, const char *target, int dir, const char *path)
{
    return REAL->symlinkat(os, target, dir, folded(path));
}

static int fold_mkdir(const struct wi_os *os, int dir, const char *path, uint32_t mode)
{
    return strcmp(path, "z") == 0 ? -EEXIST : REAL->mkdirat(os, dir, path, mode);
}

static int fold_times(const struct wi_os *os, int dir, const char *path,
                      const struct timespec times[2], int flags)
{
    return REAL->utimensat(os, dir, path ? folded(path) : NULL, times, flags);
}

static void hook_fold(void)
{
    hook_ops.utimensat = fold_times;
    hook_ops.renameat2 = fold_rename;
    hook_ops.symlinkat = fold_symlink;
    hook_ops.mkdirat = fold_mkdir;
}

static void names__that_are_folded_do_not_overwrite(struct env *env)
{
    static const char *const names[] = { "x", "X", "Y", "y" };
    const char *dir = new_dir("fold");
    const char *from = join(dir, "from");
    struct weir_engine *engine = open_hooked(env->backend, hook_fold);

    make_dir(from, 0755);
    for (size_t i = 0; i < COUNT(names); i++) {
        if (i < 2)
            make_text(join(from, names[i]), names[i]);
        else
            check_code(symlink(names[i], join(from, names[i])), 0);
    }
    make_dir(join(from, "z"), 0755);
    check_code(copy_one(engine, from, join(dir, "to"), WEIR_COPY_RECURSIVE), -EEXIST);
    check_code(last.failures_count, 3);
    check_code(last.result.files, 1);
    check_code(last.result.links, 1);
    check_code(count_temporaries(dir), 0);
    check_code(weir_engine_close(engine), 0);

    /* Where such a rename is not there, copies still get their names. */
    engine = open_hooked(env->backend, hook_no_noreplace);
    check_code(copy_one(engine, from, join(dir, "all"), WEIR_COPY_RECURSIVE), 0);
    check_same_trees(from, join(dir, "all"));
    check_code(weir_engine_close(engine), 0);
}

static void copy__into_memory(struct env *env)
{
    const char *memory = test_memory_dir();
    const char *dir = new_dir("memory");

    if (!memory)
        skip();
    make_tree(join(dir, "from"), 7);
    check_code(copy_one(env->engine, join(dir, "from"), join(memory, env->backend_name),
                        WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY),
               0);
    check_same_trees(join(dir, "from"), join(memory, env->backend_name));
    check_code(copy_one(env->engine, join(memory, env->backend_name), join(dir, "back"),
                        WEIR_COPY_RECURSIVE),
               0);
    check_same_trees(join(dir, "from"), join(dir, "back"));
}

static int fake_clone(const struct wi_os *os, int from, int to)
{
    (void)os;
    atomic_fetch_add(&hook_calls, 1);
    return REAL->copy_range(os, from, 0, to, 0, 64 * MIB) < 0 ? -EIO : 0;
}

static void hook_clone(void)
{
    hook_ops.clone = fake_clone;
}

static int count_fdatasync(const struct wi_os *os, int fd)
{
    atomic_fetch_add(&hook_calls, 1);
    return REAL->fdatasync(os, fd);
}

static void hook_syncs(void)
{
    hook_ops.fdatasync = count_fdatasync;
}

/* Only what replaces an older file is synced, once. */
static void bytes__are_synced_where_a_name_was_taken(struct env *env)
{
    const char *dir = new_dir("synced");
    const char *to = join(dir, "to");
    struct weir_engine *engine = open_hooked(env->backend, hook_syncs);

    make_dir(join(dir, "from"), 0755);
    make_text(join(dir, "from/small"), "small");
    make_text(join(dir, "from/none"), "");
    pattern_make_file(join(dir, "from/large"), 2 * MIB + 5, 9);
    check_code(copy_one(engine, join(dir, "from"), to, WEIR_COPY_RECURSIVE), 0);
    check_code(hook_calls, 0);
    check_code(copy_one(engine, join(dir, "from/."), to, WEIR_COPY_RECURSIVE), 0);
    check_code(hook_calls, 2); /* an empty file has no bytes to lose */
    check_code(unlink(join(to, "small")), 0);
    check_code(copy_one(engine, join(dir, "from/small"), to, 0), 0);
    check_code(hook_calls, 2);
    check_same_trees(join(dir, "from/small"), join(to, "small"));
    check_code(weir_engine_close(engine), 0);
}

/* A file system whose direct blocks are larger than ours: through the page cache, then. */
static int huge_blocks(const struct wi_os *os, int dir, const char *path, int flags,
                       uint32_t mask, struct statx *ret_stat)
{
    const uint32_t blocks[2] = { 65536, 65536 };
    int rc = REAL->statx(os, dir, path, flags, mask, ret_stat);

    if (rc == 0 && (mask & 0x2000u)) { /* STATX_DIOALIGN, which older headers lack */
        memcpy((char *)ret_stat + 152, blocks, sizeof(blocks));
        ret_stat->stx_mask |= 0x2000u;
    }
    return rc;
}

static void hook_huge_blocks(void)
{
    hook_ops.statx = huge_blocks;
}

static void huge_direct_blocks__are_not_needed(struct env *env)
{
    const char *dir = new_dir("blocks");
    struct weir_engine *engine = open_hooked(env->backend, hook_huge_blocks);

    pattern_make_file(join(dir, "from"), 5 * MIB + 77, 9);
    for (uint32_t i = 0; i < 2; i++) {
        check_code(
            copy_one(engine, join(dir, "from"), join(dir, "to"), i ? WEIR_COPY_VERIFY : 0), 0);
        check_same_trees(join(dir, "from"), join(dir, "to"));
    }
    check_code(weir_engine_close(engine), 0);
}

/* Where blocks can be shared they are, unless the copy is to be verified. */
static void clone__is_used_where_it_works(struct env *env)
{
    const char *dir = new_dir("clone");
    struct weir_engine *engine = open_hooked(env->backend, hook_clone);

    pattern_make_file(join(dir, "from"), 3 * MIB, 9);
    check_code(copy_one(engine, join(dir, "from"), join(dir, "to"), 0), 0);
    check_same_trees(join(dir, "from"), join(dir, "to"));
    check_code(hook_calls, 1);
    check_code(copy_one(engine, join(dir, "from"), join(dir, "to"), WEIR_COPY_VERIFY), 0);
    check_code(hook_calls, 1);
    check_code(weir_engine_close(engine), 0);
}

/* ---- faults ----------------------------------------------------------------------------------------------------- */

/* Every write spoiled by one bit: found, and nothing published. */
static void verify__finds_a_spoiled_write(struct env *env)
{
    static const size_t sizes[] = { 10, 70000, 5 * MIB };
    const char *dir = new_dir("spoiled");

    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct faulty faulty;

        pattern_make_file(join(dir, "from"), sizes[i], i);
        faulty_open(&faulty, env->backend, 0, 0, NULL);
        faulty_rule(&faulty,
                    (struct wi_fault_rule){
                        .kind = WI_FAULT_WRITE, .first = 1, .count = 1, .corrupt = true });
        check_code(
            copy_one(faulty.engine, join(dir, "from"), join(dir, "to"), WEIR_COPY_VERIFY),
            -WEIR_EMISMATCH);
        check(!exists(join(dir, "to")));
        check_code(count_temporaries(dir), 0);
        faulty_release(&faulty);
        check_code(
            copy_one(faulty.engine, join(dir, "from"), join(dir, "to"), WEIR_COPY_VERIFY), 0);
        faulty_close(&faulty);
        check_same_trees(join(dir, "from"), join(dir, "to"));
        check_code(unlink(join(dir, "to")), 0);
    }
}

/* A full disk: that file is reported, its old copy stays, the others are copied. */
static void full_disk__is_reported_per_file(struct env *env)
{
    static const enum wi_fault_kind kinds[] = { WI_FAULT_WRITE, WI_FAULT_ALLOCATE };
    const char *dir = new_dir("full");

    for (size_t i = 0; i < COUNT(kinds); i++) {
        const char *to = join(dir, i == 0 ? "to-0" : "to-1");
        struct faulty faulty;

        if (i == 0)
            make_tree(join(dir, "from"), 1);
        faulty_open(&faulty, env->backend, 0, 0, NULL);
        faulty_rule(&faulty, (struct wi_fault_rule){
                                 .kind = kinds[i], .first = 1, .count = 1, .error = -ENOSPC });
        check_code(copy_one(faulty.engine, join(dir, "from"), to, WEIR_COPY_RECURSIVE),
                   -ENOSPC);
        check_code(last.failures_count, 1);
        check_code(last.result.files, 6);
        check(strstr(last.failures[0].path, to) != NULL); /* the side that is full */
        check_code(count_temporaries(to), 0);
        check_code(
            copy_one(faulty.engine, join(join(dir, "from"), "."), to, WEIR_COPY_RECURSIVE), 0);
        faulty_close(&faulty);
        check_same_trees(join(dir, "from"), to);
    }
}

/* Every file under a final name is whole: it equals its source. */
static void check_whole_files(const char *from, const char *to)
{
    DIR *dir = opendir(to);
    struct dirent *entry;

    if (!dir)
        return;
    while ((entry = readdir(dir)) != NULL) {
        char a[4096];
        char b[4096];
        struct stat x;
        struct stat y;

        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(a, sizeof(a), "%s/%s", from, entry->d_name);
        (void)snprintf(b, sizeof(b), "%s/%s", to, entry->d_name);
        check_code(lstat(a, &x), 0);
        check_code(lstat(b, &y), 0);
        if (S_ISDIR(y.st_mode))
            check_whole_files(a, b);
        else if (S_ISREG(y.st_mode))
            check_code(y.st_size, x.st_size);
    }
    closedir(dir);
}

/*
 * The 1st, 2nd, ... Nth call of each kind fails, until a run is untouched. A failure is either
 * survived or reported, what has a name is whole, and the next run completes the tree and
 * leaves no temporaries.
 */
static void faults__at_every_call(struct env *env)
{
    static const enum wi_fault_kind kinds[] = {
        WI_FAULT_READ,     WI_FAULT_WRITE,    WI_FAULT_OPEN,  WI_FAULT_CLOSE, WI_FAULT_STAT,
        WI_FAULT_TRUNCATE, WI_FAULT_ALLOCATE, WI_FAULT_NAMES, WI_FAULT_OTHER, WI_FAULT_SYNC,
    };
    static const int errors[] = { -EIO, -EINTR, -ENOMEM };
    const char *dir = new_dir("faults");
    const char *from = join(dir, "from");
    const char *to = join(dir, "to");
    bool broken = false;

    make_tree(from, 21);
    for (size_t k = 0; k < COUNT(kinds); k++) {
        enum wi_fault_kind kind = kinds[k];
        bool acted = true;

        for (uint64_t n = 1; acted; n++) {
            int error = errors[n % COUNT(errors)];
            struct faulty faulty;
            int rc;

            test_remove_tree(to);
            faulty_open(&faulty, env->backend, 0, 0, NULL);
            faulty_rule(&faulty, (struct wi_fault_rule){
                                     .kind = kind, .first = n, .count = 1, .error = error });
            rc = copy_many(faulty.engine, &from, 1, to, WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY,
                           1);
            acted = wi_fault_acted(faulty.plan) > 0;
            if (rc == 0 && last.failures_count > 0)
                broken = true;
            if (rc == 0)
                check_same_trees(from, to);
            else
                check_whole_files(from, to);
            if (!acted)
                check_code(rc, 0);
            faulty_close(&faulty);
            rc = copy_one(env->engine, join(from, "."), to, WEIR_COPY_RECURSIVE);
            if (rc == -ENOENT) /* not even the directory was made */
                rc = copy_one(env->engine, from, to, WEIR_COPY_RECURSIVE);
            check_code(rc, 0);
            check_same_trees(from, to);
        }
    }
    check(!broken);
}

static const struct test_case cases[] = {
    CASE(tree__arrives_whole, CASE_BYTES | CASE_NO_QUEUE),
    CASE(file__of_every_size_arrives, CASE_BYTES | CASE_NO_QUEUE),
    CASE(name__is_replaced_and_the_old_inode_untouched, CASE_BYTES | CASE_NO_QUEUE),
    CASE(tree__merges_into_an_existing_one, CASE_BYTES | CASE_NO_QUEUE),
    CASE(sources__go_into_the_directory, CASE_BYTES | CASE_NO_QUEUE),
    CASE(slash__at_the_end_means_a_directory, CASE_ONCE | CASE_NO_QUEUE),
    CASE(name__that_is_cut_begins_with_dots, CASE_ONCE | CASE_NO_QUEUE),
    CASE(small_lane__is_enough, CASE_ONCE | CASE_NO_QUEUE),
    CASE(sources__never_overwrite_each_other, CASE_BYTES | CASE_NO_QUEUE),
    CASE(names__that_are_folded_do_not_overwrite, CASE_ONCE | CASE_NO_QUEUE),
    CASE(arguments__that_make_no_sense_are_refused, CASE_NO_QUEUE),
    CASE(directory__without_recursive_is_an_error, CASE_BYTES | CASE_NO_QUEUE),
    CASE(self__is_refused, CASE_BYTES | CASE_NO_QUEUE),
    CASE(conflict__of_file_and_directory_is_reported, CASE_BYTES | CASE_NO_QUEUE),
    CASE(special_file__is_reported_and_the_others_copied, CASE_BYTES | CASE_NO_QUEUE),
    CASE(name__of_any_bytes_arrives, CASE_BYTES | CASE_NO_QUEUE),
    CASE(bits__of_set_user_id_need_the_same_owner, CASE_BYTES | CASE_NO_QUEUE),
    CASE(sparse_file__stays_sparse, CASE_BYTES | CASE_NO_QUEUE),
    CASE(many_files__in_one_directory, CASE_ONCE | CASE_NO_QUEUE),
    CASE(many_directories__side_by_side, CASE_ONCE | CASE_NO_QUEUE),
    CASE(copy__runs_on_a_pool_thread, CASE_BYTES | CASE_NO_QUEUE),
    CASE(read_only_directory__takes_a_second_copy, CASE_ONCE | CASE_NO_QUEUE),
    CASE(temporaries__only_those_left_are_removed, CASE_ONCE | CASE_NO_QUEUE),
    CASE(stop__leaves_no_temporaries, CASE_BYTES | CASE_NO_QUEUE),
    CASE(source__that_changes_is_not_published, CASE_BYTES | CASE_NO_QUEUE),
    CASE(poor_file_system__is_enough, CASE_BYTES | CASE_NO_QUEUE),
    CASE(copy__into_memory, CASE_BYTES | CASE_NO_QUEUE),
    CASE(bytes__are_synced_where_a_name_was_taken, CASE_ONCE | CASE_NO_QUEUE),
    CASE(huge_direct_blocks__are_not_needed, CASE_BYTES | CASE_NO_QUEUE),
    CASE(clone__is_used_where_it_works, CASE_ONCE | CASE_NO_QUEUE),
    CASE(verify__finds_a_spoiled_write, CASE_BYTES | CASE_NO_QUEUE),
    CASE(full_disk__is_reported_per_file, CASE_BYTES | CASE_NO_QUEUE),
    CASE(faults__at_every_call, CASE_BYTES | CASE_NO_QUEUE),
};

int main(int argc, char **argv)
{
    umask(022);
    return run_cases("copy", cases, COUNT(cases), argc, argv);
}
