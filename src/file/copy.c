/* SPDX-License-Identifier: MIT */
/*
 * copy.c - weir_copy(): destination, workers, progress, errors
 *
 * The map of the folder:
 *
 *   copy.c        this: sets up, starts workers on the pool's files lane, and then looks
 *                 after the progress until they have gone
 *   copy_walk.c   what a worker does: takes directories, lists them, shares their files
 *   copy_dir.c    directories and their descriptors; the last one out sets mode and times
 *   copy_file.c   one file: temporary, bytes, metadata, name
 *   copy_large.c  the bytes of a large one, through the worker's queue
 *   copy_count.c  how much there will be, for the progress
 *   copy_temp.c   temporaries, and the removal of those that were left
 *
 * The sources are the listing of a root directory that has the current directory as its
 * source and the destination as its copy; everything below follows from that.
 *
 * Liveness: the caller waits for workers on pool threads, each of which stays inside until
 * its work has ended. A caller that is a pool thread itself might hold the only thread of
 * the lane; it does the work on its own. Others' jobs for the lane, such as syncs, go on
 * meanwhile where it has two threads or more: we leave one.
 *
 * Memory: per worker a buffer of 1 MiB, a piece of listing, and after the first large file
 * 8 MiB more; per directory that is not finished a struct copy_dir, at most about 1000 of
 * them waiting and one a level above each.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "copy_internal.h"
#include "engine/engine.h"

#define TICK_NS      ((uint64_t)100 * WI_MSEC_NS)
#define WORKERS_MAX  64u
#define FDS_RESERVED 16u /* for whoever else is in the process */
#define FDS_WORKER   12u /* one worker at most: two directories, a large file, its queue */
#define OPEN_DIRS    128u
#define PATH_ROOM    sizeof(((struct weir_error *)0)->path) /* of a name, its end */

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

/* ---- what goes wrong --------------------------------------------------------------------- */

int copy_problem(struct copy_worker *worker, int code, uint32_t op, bool at_copy)
{
    return copy_problem_text(worker, code, op, at_copy, NULL);
}

int copy_problem_text(struct copy_worker *worker, int code, uint32_t op, bool at_copy,
                      const char *text)
{
    worker->problem = (struct copy_problem){ .op = op, .at_copy = at_copy, .text = text };
    return code;
}

int copy_problem_at(struct copy_worker *worker, int code, uint32_t op, bool at_copy,
                    uint64_t offset, const char *text)
{
    copy_problem_text(worker, code, op, at_copy, text);
    worker->problem.has_offset = true;
    worker->problem.offset = offset;
    return code;
}

/* Put `part` before what is at `*at`. False if its front did not fit and was cut off. */
static bool prepend(const char *begin, char **at, const char *part)
{
    size_t len = strlen(part);
    size_t room = (size_t)(*at - begin);
    bool fits = len <= room;

    if (!fits) {
        part += len - room;
        len = room;
    }
    *at -= len;
    memcpy(*at, part, len);
    return fits;
}

/* Let a path that was cut begin with "...", and not in the middle of a character. */
static const char *mark_cut(char *path)
{
    for (int i = 0; i < 3 && ((unsigned char)path[3] & 0xc0) == 0x80; i++)
        path++;
    memset(path, '.', 3);
    return path;
}

static const char *path_of(const struct copy *copy, const struct copy_dir *dir, bool at_copy,
                           const char *name, char room[PATH_ROOM])
{
    char *at = room + PATH_ROOM - 1;
    bool fits = true;

    *at = '\0';
    if (name)
        fits &= prepend(room, &at, name);
    for (; dir->parent; dir = dir->parent) {
        const char *part = at_copy ? dir->copy_name : dir->name;

        if (at_copy && strcmp(part, ".") == 0)
            continue;
        if (*at)
            fits &= prepend(room, &at, "/");
        fits &= prepend(room, &at, part);
    }
    if (at_copy && strcmp(copy->directory, ".") != 0) {
        size_t len = strlen(copy->directory);

        if (*at && (len == 0 || copy->directory[len - 1] != '/'))
            fits &= prepend(room, &at, "/");
        fits &= prepend(room, &at, copy->directory);
    }
    return fits ? at : mark_cut(at);
}

/* Tell the caller, one at a time and with no lock held. */
static void report(struct copy *copy, const struct weir_error *error)
{
    wi_mutex_lock(&copy->mu);
    while (copy->reporting)
        wi_cond_wait(&copy->reported, &copy->mu);
    copy->reporting = true;
    if (copy->first_error == 0)
        copy->first_error = error->code;
    wi_mutex_unlock(&copy->mu);

    copy_add(&copy->errors, 1);
    if (copy->failed)
        copy->failed(copy->arg, error);

    wi_mutex_lock(&copy->mu);
    copy->reporting = false;
    wi_cond_signal(&copy->reported);
    wi_mutex_unlock(&copy->mu);
}

void copy_fail(struct copy_worker *worker, struct copy_dir *dir, const char *name,
               const char *copy_name, int code)
{
    const struct copy_problem *problem = &worker->problem;
    struct weir_error error;
    char room[PATH_ROOM];
    const char *path;

    if (code == -ECANCELED && copy_stopped(worker->copy))
        return;
    path =
        path_of(worker->copy, dir, problem->at_copy, problem->at_copy ? copy_name : name, room);
    wi_error_set(&error, code, problem->op, path, problem->text ? "%s" : NULL, problem->text);
    error.has_offset = problem->has_offset;
    error.offset = problem->offset;
    report(worker->copy, &error);
}

/* One that is not about an entry of a directory. */
static int fail_early(struct copy *copy, int code, uint32_t op, const char *path,
                      const char *text)
{
    struct weir_error error;

    wi_error_set(&error, code, op, path, text ? "%s" : NULL, text);
    report(copy, &error);
    return code;
}

void copy_verified(struct copy *copy, uint64_t bytes, bool cached)
{
    copy_add(&copy->verified_files, 1);
    copy_add(&copy->verified_bytes, bytes);
    copy_add(&copy->verified_cached, cached ? 1u : 0u);
}

/* ---- progress -------------------------------------------------------------------------------- */

static void show_progress(struct copy *copy)
{
    struct weir_copy_progress now = {
        .bytes_done = copy_get(&copy->bytes_done),
        .files_done = copy_get(&copy->files_done),
        .verifying = copy_get(&copy->verifying),
        .elapsed_ns = wi_os_now(copy->os) - copy->started_ns,
    };

    now.listing = copy_get(&copy->counting);
    now.bytes_total = copy_get(&copy->bytes_total);
    now.files_total = copy_get(&copy->files_total);
    if (!copy->walked) {
        now.bytes_total = wi_max_u64(now.bytes_total, copy_get(&copy->count_bytes));
        now.files_total = wi_max_u64(now.files_total, copy_get(&copy->count_files));
        now.listing |= !(copy->flags & WEIR_COPY_COUNT);
    }
    /* Once all is done there is nothing left to stop. */
    if (copy->progress && copy->progress(copy->arg, &now) != 0 && !copy->walked)
        atomic_store_explicit(&copy->stop, -ECANCELED, memory_order_relaxed);
}

void copy_tick(struct copy_worker *worker)
{
    struct copy *copy = worker->copy;
    uint64_t now;

    if (!worker->is_caller || !copy->progress)
        return;
    now = wi_os_now(copy->os);
    if (now < copy->next_progress_ns)
        return;
    copy->next_progress_ns = now + TICK_NS;
    show_progress(copy);
}

/* ---- where the copies go ---------------------------------------------------------------------- */

/* The length of the first `len` bytes without slashes at their end; "/" keeps its one. */
static size_t trimmed(const char *path, size_t len)
{
    while (len > 1 && path[len - 1] == '/')
        len--;
    return len;
}

/* Where the last part of the first `len` bytes begins. */
static size_t last_part(const char *path, size_t len)
{
    while (len > 0 && path[len - 1] != '/')
        len--;
    return len;
}

/* A copy of path[from, to), or of "." where that is empty or ends above itself. */
static char *part_of(const char *path, size_t from, size_t to)
{
    size_t len = to - from;
    const char *part = path + from;

    if (len == 0 || (len == 2 && memcmp(part, "..", 2) == 0)) {
        part = ".";
        len = 1;
    }
    return strndup(part, len);
}

/* Into an existing directory: each copy gets its source's last name. What has none, such as
 * "." or "/", has its contents copied into the directory itself. */
static int names_from_sources(struct copy *copy)
{
    for (size_t i = 0; i < copy->sources_count; i++) {
        const char *source = copy->sources[i];
        size_t len = trimmed(source, strlen(source));

        copy->names[i] = part_of(source, last_part(source, len), len);
        if (!copy->names[i])
            return -ENOMEM;
    }
    return 0;
}

/* Whether the destination says that it is a directory, and the source is there and none. */
static bool is_file_to_directory(struct copy *copy, const char *destination)
{
    struct statx st;

    return destination[strlen(destination) - 1] == '/' &&
           copy->os->ops->statx(copy->os, AT_FDCWD, copy->sources[0],
                                AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &st) == 0 &&
           !S_ISDIR(st.stx_mode);
}

/* To a name that is no directory yet: one source, and the name's own directory. */
static int name_from_destination(struct copy *copy, const char *destination,
                                 char **ret_directory)
{
    size_t len = trimmed(destination, strlen(destination));
    size_t last = last_part(destination, len);

    copy->names[0] = strndup(destination + last, len - last);
    *ret_directory = last == 0 ? strdup(".") : strndup(destination, trimmed(destination, last));
    return copy->names[0] && *ret_directory ? 0 : -ENOMEM;
}

struct named {
    const char *name;
    size_t index;
};

static int by_name(const void *a, const void *b)
{
    const struct named *x = a;
    const struct named *y = b;
    int order = strcmp(x->name, y->name);

    return order ? order : (x->index > y->index) - (x->index < y->index);
}

/* Two sources with one name would overwrite each other, in no order: the first stays. */
static int refuse_doubles(struct copy *copy)
{
    struct named *list;

    if (copy->sources_count < 2)
        return 0;
    list = calloc(copy->sources_count, sizeof(*list));
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < copy->sources_count; i++)
        list[i] = (struct named){ copy->names[i], i };
    qsort(list, copy->sources_count, sizeof(*list), by_name);
    for (size_t i = copy->sources_count - 1; i > 0; i--) {
        size_t index = list[i].index;
        bool nameless;

        if (strcmp(list[i].name, list[i - 1].name) != 0)
            continue;
        /* Their contents go into the directory itself, where they might meet. */
        nameless = strcmp(list[i].name, ".") == 0;
        free(copy->names[index]);
        copy->names[index] = NULL;
        fail_early(copy, -EEXIST, 0, copy->sources[index],
                   nameless ? "another source before it goes into the directory itself, too"
                            : "another source before it has the same last name");
    }
    free(list);
    return 0;
}

/* What the destination's file system is good for. */
static void look_at_file_system(struct copy *copy, int fd)
{
    struct statfs fs;

    copy->flush_on_close = true;
    if (copy->os->ops->fstatfs(copy->os, fd, &fs) < 0)
        return;
    copy->in_memory = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
    copy->flush_on_close = !copy->in_memory && fs.f_type != EXT4_SUPER_MAGIC &&
                           fs.f_type != XFS_SUPER_MAGIC && fs.f_type != BTRFS_SUPER_MAGIC &&
                           fs.f_type != F2FS_SUPER_MAGIC;
}

/* Find the directory, make the root of the tree, and give every source its name. */
static int find_destination(struct copy *copy, const char *destination)
{
    const struct wi_os *os = copy->os;
    struct copy_dir *root;
    struct statx st;
    const char *text = NULL;
    int fd;
    int rc = os->ops->statx(os, AT_FDCWD, destination, 0, STATX_TYPE, &st);

    if (rc == 0 && S_ISDIR(st.stx_mode)) {
        copy->directory = strdup(destination);
        rc = copy->directory ? names_from_sources(copy) : -ENOMEM;
    } else if (rc < 0 && rc != -ENOENT) {
        return fail_early(copy, rc, WEIR_OP_STAT, destination, NULL);
    } else if (copy->sources_count > 1) {
        return fail_early(copy, -ENOTDIR, 0, destination,
                          "several sources need a directory as destination, and this is none");
    } else if (is_file_to_directory(copy, destination)) {
        return fail_early(copy, -ENOTDIR, 0, destination,
                          "it ends in a slash, and there is no such directory");
    } else {
        rc = name_from_destination(copy, destination, &copy->directory);
    }
    if (rc < 0)
        return fail_early(copy, rc, 0, destination, NULL);

    root = copy_dir_create(NULL, "", "");
    if (!root)
        return fail_early(copy, -ENOMEM, 0, destination, NULL);
    copy->root = root;
    root->pins = 1; /* for good */
    root->opened = true;
    fd = os->ops->openat(os, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0)
        return fail_early(copy, fd, WEIR_OP_OPEN, ".", NULL);
    root->source_fd = fd;
    fd = os->ops->openat(os, AT_FDCWD, copy->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) {
        if (fd == -ENOENT)
            text = "the directory that the destination is to be in does not exist";
        return fail_early(copy, fd, WEIR_OP_OPEN, copy->directory, text);
    }
    root->copy_fd = fd;
    rc = os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_INO, &st);
    if (rc < 0)
        return fail_early(copy, rc, WEIR_OP_STAT, copy->directory, NULL);
    root->copy_inode = st.stx_ino;
    root->copy_device = ((uint64_t)st.stx_dev_major << 32) | st.stx_dev_minor;
    look_at_file_system(copy, fd);
    rc = refuse_doubles(copy);
    return rc < 0 ? fail_early(copy, rc, 0, destination, NULL) : 0;
}

/* ---- workers ------------------------------------------------------------------------------------- */

/* A directory can hold so many entries in one piece of listing, and no more. */
#define ENTRIES_MAX (COPY_LIST_SIZE / 24)

static int worker_init(struct copy_worker *worker, struct copy *copy)
{
    memset(worker, 0, sizeof(*worker));
    worker->copy = copy;
    worker->buffer = aligned_alloc(COPY_ALIGN, COPY_LARGE_MIN + COPY_ALIGN);
    worker->list = malloc(COPY_LIST_SIZE);
    worker->batch = malloc(ENTRIES_MAX * sizeof(*worker->batch));
    return worker->buffer && worker->list && worker->batch ? 0 : -ENOMEM;
}

static void worker_fini(struct copy_worker *worker)
{
    free(worker->buffer);
    free(worker->list);
    free(worker->batch);
}

/* The caller may free everything once it has the lock and sees none running. */
static void end_task(struct copy *copy)
{
    wi_mutex_lock(&copy->mu);
    if (--copy->running == 0)
        wi_cond_signal(&copy->ended);
    wi_mutex_unlock(&copy->mu);
}

static void run_worker(struct wi_task *task)
{
    struct copy_worker *worker = WI_CONTAINER_OF(task, struct copy_worker, task);
    struct copy *copy = worker->copy;

    /* Without a single thread in the lane, the pool runs us on the calling thread. */
    worker->is_caller = !wi_pool_is_worker(wi_engine_pool(copy->engine));
    if (worker->counts) {
        copy_count(copy);
        atomic_store_explicit(&copy->counting, 0, memory_order_relaxed);
    }
    copy_walk(worker);
    copy_large_destroy(worker); /* its queue belongs to this thread */
    end_task(copy);
}

/* How many workers, and how many directories they may keep open between them. */
static uint32_t choose_workers(struct copy *copy, uint32_t wanted)
{
    struct weir_engine_info info = { .size = sizeof(info) };
    struct rlimit limit;
    uint64_t fds = 1024;
    uint64_t workers = wanted;
    uint64_t most;

    weir_engine_info(copy->engine, &info);
    /* One thread of the lane stays for opens and syncs of the same engine. */
    most = wi_max_u64(info.lane_threads[WEIR_LANE_FILES], 2) - 1;
    if (workers == 0 || workers > most)
        workers = most;
    workers = wi_min_u64(workers, WORKERS_MAX);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        fds = limit.rlim_cur;
    fds -= wi_min_u64(fds, FDS_RESERVED);
    workers = wi_max_u64(1, wi_min_u64(workers, fds / FDS_WORKER));
    fds -= wi_min_u64(fds, workers * FDS_WORKER);
    /* What a worker has pinned is in its own share. */
    copy->open_max = (uint32_t)wi_min_u64(2 * workers + fds / 2, OPEN_DIRS);
    return (uint32_t)workers;
}

static void run_on_pool(struct copy *copy, struct copy_worker *workers, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        workers[i].task.run = run_worker;
        workers[i].task.next = i + 1 < count ? &workers[i + 1].task : NULL;
    }
    /* The first counts before it copies, if there is another to copy meanwhile. */
    if (count == 1)
        copy->flags &= ~(uint32_t)WEIR_COPY_COUNT;
    workers[0].counts = (copy->flags & WEIR_COPY_COUNT) != 0;
    copy->counting = workers[0].counts;
    copy->running = count;
    wi_pool_submit(wi_engine_pool(copy->engine), WI_LANE_FILES, &workers[0].task,
                   &workers[count - 1].task, count);

    wi_mutex_lock(&copy->mu);
    while (copy->running > 0) {
        if (wi_cond_wait_for(&copy->ended, &copy->mu, TICK_NS) || !copy->progress)
            continue;
        wi_mutex_unlock(&copy->mu);
        show_progress(copy);
        wi_mutex_lock(&copy->mu);
    }
    wi_mutex_unlock(&copy->mu);
}

static int run(struct copy *copy, uint32_t wanted)
{
    struct wi_pool *pool = wi_engine_pool(copy->engine);
    bool alone = wi_pool_is_worker(pool);
    uint32_t count = alone ? 1 : choose_workers(copy, wanted);
    struct copy_worker *workers = calloc(count, sizeof(*workers));
    int rc = workers ? 0 : -ENOMEM;

    if (alone)
        choose_workers(copy, 1);
    for (uint32_t i = 0; i < count && rc == 0; i++)
        rc = worker_init(&workers[i], copy);
    if (rc < 0) {
        fail_early(copy, rc, 0, NULL, NULL);
        goto out;
    }
    copy_temp_clean(copy, copy->root->copy_fd, workers[0].list, COPY_LIST_SIZE);
    copy_push_dir(copy, copy->root);
    copy->root_given = true; /* the walk has its only reference */
    if (alone) {
        workers[0].is_caller = true;
        copy_walk(&workers[0]);
        copy_large_destroy(&workers[0]);
    } else {
        run_on_pool(copy, workers, count);
    }
    copy->walked = true;
    if (copy->progress)
        show_progress(copy);

out:
    for (uint32_t i = 0; i < count && workers; i++)
        worker_fini(&workers[i]);
    free(workers);
    return rc;
}

/* ---- the call --------------------------------------------------------------------------------------- */

static int init(struct copy *copy, struct weir_engine *engine, const char *const *sources,
                size_t sources_count, const struct weir_copy_options *options)
{
    memset(copy, 0, sizeof(*copy));
    copy->engine = engine;
    copy->os = wi_engine_os(engine);
    copy->flags = options->flags;
    copy->progress = options->progress;
    copy->failed = options->failed;
    copy->arg = options->arg;
    copy->sources = sources;
    copy->sources_count = sources_count;
    copy->started_ns = wi_os_now(copy->os);
    copy->next_progress_ns = copy->started_ns + TICK_NS;
    wi_mutex_init(&copy->mu, WI_RANK_COPY);
    wi_cond_init(&copy->work);
    wi_cond_init(&copy->ended);
    wi_cond_init(&copy->reported);
    wi_list_init(&copy->tasks_dirs);
    wi_list_init(&copy->tasks_batches);
    wi_list_init(&copy->unpinned);
    copy->names = calloc(sources_count, sizeof(*copy->names));
    if (!copy->names)
        return -ENOMEM;
    return copy->os->ops->random(copy->os, &copy->temp_seed, sizeof(copy->temp_seed));
}

static void fini(struct copy *copy)
{
    if (copy->root && !copy->root_given) {
        if (copy->root->source_fd >= 0)
            copy->os->ops->close(copy->os, copy->root->source_fd);
        if (copy->root->copy_fd >= 0)
            copy->os->ops->close(copy->os, copy->root->copy_fd);
        free(copy->root);
    }
    for (size_t i = 0; i < copy->sources_count && copy->names; i++)
        free(copy->names[i]);
    free(copy->names);
    free(copy->directory);
    wi_cond_fini(&copy->reported);
    wi_cond_fini(&copy->ended);
    wi_cond_fini(&copy->work);
    wi_mutex_fini(&copy->mu);
}

static void fill_result(struct copy *copy, struct weir_copy_result *result)
{
    struct weir_copy_result full = {
        .size = result->size,
        .files = copy_get(&copy->files),
        .directories = copy_get(&copy->directories),
        .links = copy_get(&copy->links),
        .bytes = copy_get(&copy->bytes),
        .verified_files = copy_get(&copy->verified_files),
        .verified_bytes = copy_get(&copy->verified_bytes),
        .verified_cached_files = copy_get(&copy->verified_cached),
        .errors = copy_get(&copy->errors),
        .elapsed_ns = wi_os_now(copy->os) - copy->started_ns,
    };

    memcpy(result, &full, wi_min_u64(result->size, sizeof(full)));
}

/* What makes no sense in the arguments; NULL if nothing does. */
static const char *check_arguments(struct weir_engine *engine, const char *const *sources,
                                   size_t sources_count, const char *destination,
                                   const struct weir_copy_options *options)
{
    struct weir_engine_info info = { .size = sizeof(info) };

    if (!sources || sources_count == 0)
        return "there is nothing to copy";
    for (size_t i = 0; i < sources_count; i++)
        if (!sources[i] || !sources[i][0])
            return "the name of a source is empty";
    if (!destination || !destination[0])
        return "the name of the destination is empty";
    if (options->flags & ~(uint32_t)(WEIR_COPY_RECURSIVE | WEIR_COPY_VERIFY | WEIR_COPY_COUNT))
        return "a flag is not known";
    weir_engine_info(engine, &info);
    if (info.backend == WEIR_BACKEND_NULL)
        return "the null backend moves no bytes";
    return NULL;
}

int weir_copy(struct weir_engine *engine, const char *const *sources, size_t sources_count,
              const char *destination, const struct weir_copy_options *options,
              struct weir_copy_result *result)
{
    struct weir_copy_options all = { .size = sizeof(all) };
    struct copy copy;
    const char *wrong;
    int rc;

    if (!engine || (options && options->size < offsetof(struct weir_copy_options, workers)) ||
        (result && result->size < sizeof(result->size)))
        return -EINVAL;
    if (options)
        memcpy(&all, options, wi_min_u64(options->size, sizeof(all)));
    wrong = check_arguments(engine, sources, sources_count, destination, &all);
    if (wrong) {
        struct weir_error error;

        wi_error_set(&error, -EINVAL, 0, destination, "%s", wrong);
        if (all.failed)
            all.failed(all.arg, &error);
        if (result)
            memset((char *)result + sizeof(result->size), 0,
                   result->size - sizeof(result->size));
        return -EINVAL;
    }

    rc = init(&copy, engine, sources, sources_count, &all);
    if (rc < 0)
        fail_early(&copy, rc, 0, NULL, NULL);
    else
        rc = find_destination(&copy, destination);
    if (rc == 0)
        rc = run(&copy, all.workers);
    if (rc == 0)
        rc = copy_stopped(&copy) ? -ECANCELED : copy.first_error;
    if (result)
        fill_result(&copy, result);
    fini(&copy);
    return rc;
}
