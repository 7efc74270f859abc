/* SPDX-License-Identifier: MIT */
/*
 * copy_dir.c - directories: opened, kept open, finished
 *
 * Problem      every call below a directory is relative to its descriptor, so that names
 *              have no length limit and a directory that is moved away meanwhile does not
 *              lead elsewhere. But trees are deeper than descriptors are many.
 * Idea         keep the descriptors of directories that nobody uses right now in a list,
 *              the coldest first, and close from there when there are too many. A closed one
 *              is opened again through its nearest open ancestor, one name at a time, and
 *              must be the same device and inode as before.
 * Finishing    mode and times of a directory are set when nothing more can happen in it:
 *              when its last reference goes. That may finish its parent in turn, and so on
 *              up, in a loop rather than by recursion.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "copy_internal.h"

#define OPEN_DIR   (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC)
#define CLOSE_ROOM 8u

/* ---- references ------------------------------------------------------------------------ */

struct copy_dir *copy_dir_create(struct copy_dir *parent, const char *name,
                                 const char *copy_name)
{
    size_t len = strlen(name) + 1;
    size_t copy_len = copy_name == name ? 0 : strlen(copy_name) + 1;
    struct copy_dir *dir = calloc(1, sizeof(*dir) + len + copy_len);

    if (!dir)
        return NULL;
    dir->parent = parent;
    dir->source_fd = -1;
    dir->copy_fd = -1;
    memcpy(dir->name, name, len);
    dir->copy_name = dir->name;
    if (copy_len > 0) {
        memcpy(dir->name + len, copy_name, copy_len);
        dir->copy_name = dir->name + len;
    }
    wi_list_init(&dir->task_link);
    wi_list_init(&dir->unpinned_link);
    atomic_init(&dir->refs, 1);
    if (parent) {
        dir->depth = parent->depth + 1;
        copy_dir_ref(parent);
    }
    return dir;
}

void copy_dir_ref(struct copy_dir *dir)
{
    copy_add(&dir->refs, 1);
}

/* Set-user-id and set-group-id stay only if the copy's owner and group are the source's:
 * else they would give a program rights that nobody granted. */
static uint32_t mode_for(const struct wi_os *os, int fd, const struct statx *source)
{
    uint32_t mode = source->stx_mode & 07777u;
    struct statx st;

    if (!(mode & (S_ISUID | S_ISGID)))
        return mode;
    if (os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_UID | STATX_GID, &st) < 0)
        return mode & 01777u;
    if (st.stx_uid != source->stx_uid)
        mode &= ~(uint32_t)S_ISUID;
    if (st.stx_gid != source->stx_gid)
        mode &= ~(uint32_t)S_ISGID;
    return mode;
}

int copy_metadata(struct copy_worker *worker, int fd, const struct statx *source,
                  uint32_t mode_now)
{
    const struct wi_os *os = worker->copy->os;
    const struct timespec times[2] = {
        { source->stx_atime.tv_sec, source->stx_atime.tv_nsec },
        { source->stx_mtime.tv_sec, source->stx_mtime.tv_nsec },
    };
    uint32_t mode = mode_for(os, fd, source);
    int mode_rc = mode == mode_now ? 0 : os->ops->fchmod(os, fd, mode);
    int times_rc = os->ops->utimensat(os, fd, NULL, times, 0);

    if (mode_rc < 0)
        return copy_problem_text(worker, mode_rc, 0, true, "its mode could not be set");
    if (times_rc < 0)
        return copy_problem_text(worker, times_rc, 0, true, "its times could not be set");
    return 0;
}

static void finish(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;
    int rc;

    if (!dir->opened || copy_stopped(copy))
        return;
    rc = copy_dir_pin(worker, dir);
    if (rc == 0) {
        rc = copy_metadata(worker, dir->copy_fd, &dir->stat, dir->fresh ? 0700 : UINT32_MAX);
        copy_dir_unpin(copy, dir);
    }
    if (rc < 0)
        copy_fail(worker, dir, NULL, NULL, rc);
    else
        copy_add(&copy->directories, 1);
}

void copy_dir_unref(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;

    while (dir && atomic_fetch_sub_explicit(&dir->refs, 1, memory_order_acq_rel) == 1) {
        struct copy_dir *parent = dir->parent;
        int source_fd;
        int copy_fd;

        if (parent) {
            finish(worker, dir);
            copy_add(&copy->files_done, 1);
        }
        wi_mutex_lock(&copy->mu);
        WEIR_DCHECK(dir->pins == (parent ? 0u : 1u));
        source_fd = dir->source_fd;
        copy_fd = dir->copy_fd;
        if (parent && source_fd >= 0) {
            wi_list_remove(&dir->unpinned_link);
            copy->open_count--;
        }
        if (!parent) {
            copy->finished = true;
            wi_cond_broadcast(&copy->work);
        }
        wi_mutex_unlock(&copy->mu);
        if (source_fd >= 0)
            copy->os->ops->close(copy->os, source_fd);
        if (copy_fd >= 0)
            copy->os->ops->close(copy->os, copy_fd);
        free(dir);
        dir = parent;
    }
}

/* ---- descriptors -------------------------------------------------------------------------- */

static void close_pair(const struct wi_os *os, int source_fd, int copy_fd)
{
    if (source_fd >= 0)
        os->ops->close(os, source_fd);
    if (copy_fd >= 0)
        os->ops->close(os, copy_fd);
}

/* Close what is too much, or all that nobody uses. */
static void close_coldest(struct copy *copy, bool all)
{
    int fds[CLOSE_ROOM][2];
    uint32_t count;

    do {
        count = 0;
        wi_mutex_lock(&copy->mu);
        while (count < CLOSE_ROOM && (all || copy->open_count > copy->open_max)) {
            struct wi_list *link = wi_list_pop_front(&copy->unpinned);
            struct copy_dir *dir;

            if (!link)
                break;
            dir = WI_CONTAINER_OF(link, struct copy_dir, unpinned_link);
            fds[count][0] = dir->source_fd;
            fds[count][1] = dir->copy_fd;
            dir->source_fd = -1;
            dir->copy_fd = -1;
            dir->repositioned = true;
            copy->open_count--;
            count++;
        }
        wi_mutex_unlock(&copy->mu);
        for (uint32_t i = 0; i < count; i++)
            close_pair(copy->os, fds[i][0], fds[i][1]);
    } while (count == CLOSE_ROOM);
}

static void pin_locked(struct copy_dir *dir)
{
    if (dir->pins++ == 0)
        wi_list_remove(&dir->unpinned_link);
}

static void unpin_locked(struct copy *copy, struct copy_dir *dir)
{
    WEIR_DCHECK(dir->pins > 0); /* D1 */
    if (--dir->pins == 0)
        wi_list_push_back(&copy->unpinned, &dir->unpinned_link);
}

void copy_dir_unpin(struct copy *copy, struct copy_dir *dir)
{
    bool too_many;

    wi_mutex_lock(&copy->mu);
    unpin_locked(copy, dir);
    too_many = copy->open_count > copy->open_max;
    wi_mutex_unlock(&copy->mu);
    if (too_many)
        close_coldest(copy, false);
}

/* Both descriptors are there: keep them, pinned, unless another worker was faster. */
static void install(struct copy *copy, struct copy_dir *dir, int source_fd, int copy_fd)
{
    bool too_many;
    bool lost;

    wi_mutex_lock(&copy->mu);
    lost = dir->source_fd >= 0;
    if (lost) {
        pin_locked(dir);
    } else {
        dir->source_fd = source_fd;
        dir->copy_fd = copy_fd;
        dir->pins = 1;
        copy->open_count++;
    }
    too_many = copy->open_count > copy->open_max;
    wi_mutex_unlock(&copy->mu);
    if (lost)
        close_pair(copy->os, source_fd, copy_fd);
    if (too_many)
        close_coldest(copy, false);
}

/* openat for a directory; where descriptors ran out, once more after closing what we can. */
static int open_dir(struct copy *copy, int parent_fd, const char *name)
{
    const struct wi_os *os = copy->os;
    int fd = os->ops->openat(os, parent_fd, name, OPEN_DIR, 0);

    if (fd == -EMFILE || fd == -ENFILE) {
        close_coldest(copy, true);
        fd = os->ops->openat(os, parent_fd, name, OPEN_DIR, 0);
    }
    return fd;
}

static bool same_inode(const struct statx *st, uint64_t device, uint64_t inode)
{
    return st->stx_ino == inode &&
           (((uint64_t)st->stx_dev_major << 32) | st->stx_dev_minor) == device;
}

static int stat_ids(const struct wi_os *os, int fd, uint32_t mask, struct statx *st,
                    uint64_t *ret_device, uint64_t *ret_inode)
{
    int rc = os->ops->statx(os, fd, "", AT_EMPTY_PATH, mask | STATX_INO, st);

    if (rc < 0)
        return rc;
    *ret_device = ((uint64_t)st->stx_dev_major << 32) | st->stx_dev_minor;
    *ret_inode = st->stx_ino;
    return 0;
}

/* Open a directory again that was closed in between; its parent is pinned. */
static int reopen(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    int copy_fd = -1;
    struct statx st;
    uint64_t device;
    uint64_t inode;
    int rc;
    int source_fd = open_dir(copy, dir->parent->source_fd, dir->name);

    if (source_fd < 0)
        return copy_problem(worker, source_fd, WEIR_OP_OPEN, false);
    rc = stat_ids(os, source_fd, 0, &st, &device, &inode);
    if (rc == 0 && (device != dir->source_device || inode != dir->source_inode))
        rc = -ESTALE;
    if (rc < 0) {
        copy_problem_text(worker, rc, WEIR_OP_OPEN, false,
                          "it was moved or replaced meanwhile");
        goto fail;
    }
    copy_fd = open_dir(copy, dir->parent->copy_fd, dir->copy_name);
    rc = copy_fd < 0 ? copy_fd : stat_ids(os, copy_fd, 0, &st, &device, &inode);
    if (rc == 0 && (device != dir->copy_device || inode != dir->copy_inode))
        rc = -ESTALE;
    if (rc < 0) {
        copy_problem_text(worker, rc, WEIR_OP_OPEN, true, "it was moved or replaced meanwhile");
        goto fail;
    }
    install(copy, dir, source_fd, copy_fd);
    return 0;

fail:
    close_pair(os, source_fd, copy_fd);
    return rc;
}

int copy_dir_pin(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;
    struct copy_dir *open = dir;
    struct copy_dir **chain;
    uint32_t closed = 0;
    int rc = 0;

    wi_mutex_lock(&copy->mu);
    while (open->source_fd < 0) {
        open = open->parent; /* the root is always open */
        closed++;
    }
    pin_locked(open);
    wi_mutex_unlock(&copy->mu);
    if (closed == 0)
        return 0;

    chain = malloc(closed * sizeof(struct copy_dir *));
    if (!chain) {
        copy_dir_unpin(copy, open);
        return copy_problem(worker, -ENOMEM, 0, false);
    }
    for (uint32_t i = closed; i-- > 0; dir = dir->parent)
        chain[i] = dir;
    for (uint32_t i = 0; i < closed && rc == 0; i++) {
        rc = reopen(worker, chain[i]);
        copy_dir_unpin(copy, open);
        open = chain[i];
    }
    free(chain);
    return rc;
}

/* ---- the first time ------------------------------------------------------------------------ */

/* Whether `source` is the directory `fd` or one above it. */
static int is_inside(struct copy *copy, int fd, const struct copy_dir *source)
{
    const struct wi_os *os = copy->os;
    uint64_t last_device = 0;
    uint64_t last_inode = 0;
    int at = fd;
    int rc;

    for (;;) {
        struct statx st;
        uint64_t device;
        uint64_t inode;
        int up;

        rc = stat_ids(os, at, 0, &st, &device, &inode);
        if (rc < 0)
            break;
        if (same_inode(&st, source->source_device, source->source_inode)) {
            rc = 1;
            break;
        }
        if (device == last_device && inode == last_inode)
            break; /* the root is its own parent */
        last_device = device;
        last_inode = inode;
        up = os->ops->openat(os, at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
        if (at != fd)
            os->ops->close(os, at);
        if (up < 0)
            return 0; /* not ours to see: then it is not our source either */
        at = up;
    }
    if (at != fd)
        os->ops->close(os, at);
    return rc;
}

/* A source directory that is the copy of one above it: we would never end. */
static bool is_own_copy(const struct copy_dir *dir)
{
    for (const struct copy_dir *up = dir->parent; up; up = up->parent)
        if (up->copy_inode == dir->source_inode && up->copy_device == dir->source_device)
            return true;
    return false;
}

static int make_copy_dir(struct copy_worker *worker, struct copy_dir *dir, int *ret_fd)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    struct statx st;
    int rc = os->ops->mkdirat(os, dir->parent->copy_fd, dir->copy_name, 0700);
    int fd;

    if (rc == -EEXIST && dir->parent->fresh)
        return copy_problem_text(worker, rc, WEIR_OP_MKDIR, true,
                                 "this copy already made something of that name");
    if (rc < 0 && rc != -EEXIST)
        return copy_problem(worker, rc, WEIR_OP_MKDIR, true);
    dir->fresh = rc == 0;
    fd = open_dir(copy, dir->parent->copy_fd, dir->copy_name);
    if (fd == -ENOTDIR || fd == -ELOOP)
        return copy_problem_text(worker, -ENOTDIR, WEIR_OP_MKDIR, true,
                                 "a file or a link has this name, so no directory can");
    if (fd < 0)
        return copy_problem(worker, fd, WEIR_OP_OPEN, true);
    rc = stat_ids(os, fd, STATX_MODE, &st, &dir->copy_device, &dir->copy_inode);
    if (rc < 0) {
        os->ops->close(os, fd);
        return copy_problem(worker, rc, WEIR_OP_STAT, true);
    }
    if (dir->copy_device == dir->source_device && dir->copy_inode == dir->source_inode) {
        os->ops->close(os, fd);
        return copy_problem_text(worker, -EINVAL, 0, false,
                                 "source and destination are the same directory");
    }
    /* One that its source keeps from being written to, from an earlier copy: finish() gives
     * it that mode again. If it is somebody else's, what we do in it reports that. */
    if ((st.stx_mode & 0300) != 0300)
        os->ops->fchmod(os, fd, (st.stx_mode & 07777u) | 0700u);
    if (!dir->fresh)
        copy_temp_clean(copy, fd, worker->list, COPY_LIST_SIZE);
    *ret_fd = fd;
    return 0;
}

int copy_dir_begin(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    int source_fd;
    int copy_fd = -1;
    int rc = copy_dir_pin(worker, dir->parent);

    if (rc < 0)
        return rc;
    source_fd = open_dir(copy, dir->parent->source_fd, dir->name);
    if (source_fd < 0) {
        rc = copy_problem(worker, source_fd, WEIR_OP_OPEN, false);
        goto unpin;
    }
    rc = stat_ids(os, source_fd, STATX_BASIC_STATS, &dir->stat, &dir->source_device,
                  &dir->source_inode);
    if (rc < 0) {
        copy_problem(worker, rc, WEIR_OP_STAT, false);
        goto close_source;
    }
    if (is_own_copy(dir) ||
        (dir->depth == 1 && is_inside(copy, copy->root->copy_fd, dir) == 1)) {
        rc = copy_problem_text(worker, -EINVAL, 0, false,
                               "a directory cannot be copied into itself");
        goto close_source;
    }
    rc = make_copy_dir(worker, dir, &copy_fd);
    if (rc < 0)
        goto close_source;
    dir->opened = true;
    install(copy, dir, source_fd, copy_fd);
    copy_dir_unpin(copy, dir->parent);
    return 0;

close_source:
    os->ops->close(os, source_fd);
unpin:
    copy_dir_unpin(copy, dir->parent);
    return rc;
}
