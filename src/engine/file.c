/* SPDX-License-Identifier: MIT */
/*
 * file.c - open files, and what all who use one share
 *
 * A file has a small index, unique among open files, and a generation that is odd while it
 * is open. Queues keep a table by index; an entry whose generation has moved on is stale.
 * The memory of a closed file waits for the next one and is never freed before the engine,
 * so a stale handle reads `open_flags` 0 and is refused instead of crashing.
 */
#include "engine_internal.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80 /* Linux 6.14 */
#endif

/* struct statx of Linux 6.1 has these two in what glibc 2.36 calls spare. */
static void dio_align_of(const struct statx *st, uint32_t *ret_memory, uint32_t *ret_offset)
{
    const size_t at = 152; /* stx_dio_mem_align, then stx_dio_offset_align */

    memcpy(ret_memory, (const char *)st + at, sizeof(*ret_memory));
    memcpy(ret_offset, (const char *)st + at + 4, sizeof(*ret_offset));
}

static bool is_power_of_2(uint32_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* Fill in what the kernel says of the open descriptor. */
static int describe(struct weir_file *file, uint32_t open_flags, struct statx *ret_stat)
{
    const struct wi_os *os = file->engine->os;
    uint32_t mask = STATX_TYPE | STATX_DIOALIGN;
    struct statx st;
    int rc;

    if (file->engine->file_pool)
        mask |= STATX_INO | STATX_BTIME;
    memset(&st, 0, sizeof(st));
    rc = os->ops->statx(os, file->fd, "", AT_EMPTY_PATH, mask, &st);
    if (rc < 0)
        return rc;
    *ret_stat = st;
    file->memory_align = 1;
    file->offset_align = 1;
    file->regular = S_ISREG(st.stx_mode) || S_ISBLK(st.stx_mode);
    if (S_ISDIR(st.stx_mode))
        open_flags |= WEIR_OPEN_DIRECTORY;
    if ((open_flags & WEIR_OPEN_CACHED) && !file->regular)
        return -EINVAL;
    if (open_flags & WEIR_OPEN_DIRECT) {
        uint32_t memory = 4096;
        uint32_t offset = 4096;

        if (st.stx_mask & STATX_DIOALIGN) {
            dio_align_of(&st, &memory, &offset);
            if (memory == 0 || offset == 0)
                return -EINVAL; /* the file system says: no direct I/O on this file */
        }
        if (!is_power_of_2(memory) || !is_power_of_2(offset))
            return -EINVAL;
        file->memory_align = memory;
        file->offset_align = offset;
    }
    atomic_store_explicit(&file->open_flags, open_flags, memory_order_relaxed);
    return 0;
}

/* A file of the engine's that nobody uses, or a new one. */
static struct weir_file *take_file(struct weir_engine *engine)
{
    struct weir_file *file;

    wi_mutex_lock(&engine->mu);
    file = engine->free_files;
    if (file) {
        engine->free_files = file->next_free;
        if (!engine->free_files)
            engine->last_free_file = NULL;
        engine->files_open++;
        wi_mutex_unlock(&engine->mu);
        return file;
    }
    if (engine->files_count == engine->files_room) {
        uint32_t room = engine->files_room ? engine->files_room * 2 : 16;
        struct weir_file **files = realloc(engine->files, room * sizeof(*files));

        if (!files)
            goto out;
        engine->files = files;
        engine->files_room = room;
    }
    file = aligned_alloc(WI_CACHE_LINE, sizeof(*file));
    if (!file)
        goto out;
    memset(file, 0, sizeof(*file));
    file->engine = engine;
    wi_mutex_init(&file->sync_mu, WI_RANK_FILE);
    wi_cond_init(&file->sync_ended);
    wi_list_init(&file->syncs);
    file->index = engine->files_count;
    engine->files[engine->files_count++] = file;
    engine->files_open++;
out:
    wi_mutex_unlock(&engine->mu);
    if (file)
        wi_engine_account(engine, sizeof(*file));
    return file;
}

static void give_file_back(struct weir_file *file)
{
    struct weir_engine *engine = file->engine;

    free(file->path);
    file->path = NULL;
    file->fd = -1;
    wi_mutex_lock(&engine->mu);
    file->next_free = NULL;
    if (engine->last_free_file)
        engine->last_free_file->next_free = file;
    else
        engine->free_files = file;
    engine->last_free_file = file;
    engine->files_open--;
    wi_mutex_unlock(&engine->mu);
}

/*
 * What goes through the block cache must not fill the page cache as well. And whoever writes to
 * a file tells the cache, cached or not: another handle of the same file may be.
 */
static int join_cache(struct weir_file *file)
{
    uint32_t open_flags = atomic_load_explicit(&file->open_flags, memory_order_relaxed);
    bool cached = (open_flags & WEIR_OPEN_CACHED) != 0;

    atomic_store_explicit(&file->load_rwf,
                          cached && !(open_flags & WEIR_OPEN_DIRECT) ? RWF_DONTCACHE : 0,
                          memory_order_relaxed);
    if (!file->engine->cache || !(cached || ((open_flags & WEIR_OPEN_WRITE) && file->regular)))
        return 0;
    return wi_cache_file_open(file->engine->cache, file);
}

static void leave_cache(struct weir_file *file)
{
    if (file->cache_file)
        wi_cache_file_close(file->engine->cache, file);
}

/*
 * Opening with O_TRUNC would cut the file before we know whether it can be opened at all, and
 * without telling the block cache, which may have blocks of it for other handles.
 */
static int cut_file(struct weir_file *file)
{
    struct weir_engine *engine = file->engine;
    const struct wi_os *os = engine->os;

    for (uint32_t tries = 0;; tries++) {
        struct retry_verdict verdict;
        int rc;

        if (file->cache_file)
            wi_cache_resize_begin(engine->cache, file, 0);
        rc = os->ops->ftruncate(os, file->fd, 0);
        if (file->cache_file)
            wi_cache_resize_end(engine->cache, file, 0, rc);
        if (rc >= 0)
            return 0;
        verdict = wi_retry_verdict(WEIR_OP_TRUNCATE, rc, tries);
        if (verdict.action != RETRY_NOW)
            return (int)verdict.code;
    }
}

/*
 * Make a file of `fd`, which stays the caller's on failure. `os_flags`: if it is a regular file,
 * O_TRUNC among them means to cut it now, and the file pool may close it and open it again with
 * the others; -1: never.
 */
static int make_file(struct weir_engine *engine, int fd, const char *path, uint32_t open_flags,
                     int os_flags, struct weir_file **ret_file)
{
    struct weir_file *file = take_file(engine);
    struct statx st;
    int rc;

    if (!file)
        return -ENOMEM;
    file->path = strdup(path ? path : "");
    if (!file->path) {
        rc = -ENOMEM;
        goto fail;
    }
    file->fd = fd;
    atomic_store_explicit(&file->users, 0, memory_order_relaxed);
    atomic_store_explicit(&file->holds, 1, memory_order_relaxed);
    atomic_store_explicit(&file->sync_error, 0, memory_order_relaxed);
    atomic_store_explicit(&file->cached_score, 0, memory_order_relaxed);
    atomic_store_explicit(&file->advice, WEIR_ADVICE_NORMAL, memory_order_relaxed);
    rc = describe(file, open_flags, &st);
    if (rc < 0)
        goto fail;
    rc = join_cache(file);
    if (rc < 0)
        goto fail;
    /* The kernel has nothing to cut off where it isn't regular. */
    rc = os_flags >= 0 && (os_flags & O_TRUNC) && S_ISREG(st.stx_mode) ? cut_file(file) : 0;
    if (rc < 0)
        goto fail;
    if (os_flags >= 0 && S_ISREG(st.stx_mode) && engine->file_pool) {
        rc = wi_file_pool_add(file, os_flags, &st);
        if (rc < 0)
            goto fail;
    }
    atomic_fetch_add_explicit(&file->generation, 1, memory_order_release);
    *ret_file = file;
    return 0;

fail:
    leave_cache(file);
    atomic_store_explicit(&file->open_flags, 0, memory_order_relaxed);
    give_file_back(file);
    return rc;
}

static int to_os_flags(uint32_t flags, int *ret_os_flags)
{
    bool reads = (flags & WEIR_OPEN_READ) != 0;
    bool writes = (flags & WEIR_OPEN_WRITE) != 0;
    int os_flags = O_CLOEXEC | O_NOCTTY;

    if (flags >= WEIR_OPEN_CACHED << 1 || (!reads && !writes))
        return -EINVAL;
    if (!writes && (flags & (WEIR_OPEN_CREATE | WEIR_OPEN_TRUNCATE | WEIR_OPEN_UNNAMED)))
        return -EINVAL;
    if ((flags & WEIR_OPEN_EXCLUSIVE) && !(flags & WEIR_OPEN_CREATE))
        return -EINVAL;
    if ((flags & WEIR_OPEN_DIRECTORY) &&
        (writes || (flags & (WEIR_OPEN_DIRECT | WEIR_OPEN_CACHED))))
        return -EINVAL;
    if ((flags & WEIR_OPEN_UNNAMED) && (flags & WEIR_OPEN_CREATE))
        return -EINVAL;

    os_flags |= reads && writes ? O_RDWR : writes ? O_WRONLY : O_RDONLY;
    if (flags & WEIR_OPEN_CREATE)
        os_flags |= O_CREAT;
    if (flags & WEIR_OPEN_EXCLUSIVE)
        os_flags |= O_EXCL;
    if (flags & WEIR_OPEN_TRUNCATE)
        os_flags |= O_TRUNC;
    if (flags & WEIR_OPEN_DIRECT)
        os_flags |= O_DIRECT;
    if (flags & WEIR_OPEN_NOFOLLOW)
        os_flags |= O_NOFOLLOW;
    if (flags & WEIR_OPEN_DIRECTORY)
        os_flags |= O_DIRECTORY;
    if (flags & WEIR_OPEN_UNNAMED)
        os_flags |= O_TMPFILE;
    *ret_os_flags = os_flags;
    return 0;
}

static int open_descriptor(struct weir_engine *engine, int dir, const char *path, int os_flags,
                           uint32_t mode)
{
    const struct wi_os *os = engine->os;
    bool shrunk = false;

    for (uint32_t tries = 0;; tries++) {
        int fd = os->ops->openat(os, dir, path, os_flags, mode);

        if (fd >= 0)
            return fd;
        if ((fd == -EMFILE || fd == -ENFILE) && !shrunk) {
            shrunk = true;
            if (wi_file_pool_shrink(engine))
                continue;
        }
        if (wi_retry_verdict(WEIR_OP_OPEN, fd, tries).action != RETRY_NOW)
            return wi_retry_verdict(WEIR_OP_OPEN, fd, tries).code;
    }
}

int wi_file_open(struct weir_engine *engine, struct weir_file *dir, const char *path,
                 uint32_t flags, uint32_t mode, struct weir_file **ret_file)
{
    const struct wi_os *os = engine->os;
    int os_flags;
    int fd;
    int rc = to_os_flags(flags, &os_flags);

    if (rc < 0)
        return rc;
    if ((flags & WEIR_OPEN_CACHED) && !engine->cache)
        return -EINVAL;
    rc = dir ? wi_file_begin(dir) : 0; /* it may turn out to be no directory */
    if (rc < 0)
        return rc;
    wi_file_pool_reserve(engine);
    fd = open_descriptor(engine, wi_dir_fd(dir), path, os_flags & ~O_TRUNC, mode);
    if (dir)
        wi_file_end(dir);
    if (fd < 0) {
        wi_file_pool_unreserve(engine);
        return fd;
    }
    rc = make_file(engine, fd, path,
                   flags &
                       (WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_DIRECT | WEIR_OPEN_CACHED),
                   flags & WEIR_OPEN_UNNAMED ? -1 : os_flags, ret_file);
    if (rc < 0)
        os->ops->close(os, fd);
    if (rc < 0 || !(*ret_file)->pooled)
        wi_file_pool_unreserve(engine);
    return rc;
}

int weir_file_open(struct weir_engine *engine, struct weir_file *dir, const char *path,
                   uint32_t flags, uint32_t mode, struct weir_file **ret_file,
                   struct weir_error *error)
{
    uint64_t begin_ns;
    int rc;

    if (!engine || !path || !ret_file)
        return wi_error_set(error, -EINVAL, WEIR_OP_OPEN, path, "an argument is missing");
    begin_ns = wi_trace_begin(engine);
    rc = wi_file_open(engine, dir, path, flags, mode, ret_file);
    if (rc == -EINVAL && (flags & WEIR_OPEN_CACHED))
        wi_error_set(
            error, rc, WEIR_OP_OPEN, path, "%s",
            engine->cache
                ? "the flags make no sense together, this file system has no direct I/O, "
                  "or it is a file without offsets, which cannot be cached"
                : "the engine has no block cache: set cache_bytes in its options");
    else if (rc == -EINVAL && (flags & WEIR_OPEN_DIRECT))
        wi_error_set(error, rc, WEIR_OP_OPEN, path,
                     "the flags make no sense together, or this file system has no direct I/O: "
                     "open it without WEIR_OPEN_DIRECT");
    else if (rc == -EINVAL)
        wi_error_set(error, rc, WEIR_OP_OPEN, path, "the flags make no sense together");
    else if (rc < 0)
        wi_error_set(error, rc, WEIR_OP_OPEN, path, NULL);
    wi_stats_blocking(engine, WEIR_OP_OPEN, rc, 0, 0);
    wi_trace_blocking(engine, rc == 0 ? *ret_file : NULL, WEIR_OP_OPEN, begin_ns, 0, 0, rc);
    return rc;
}

int weir_file_adopt(struct weir_engine *engine, int fd, const char *name,
                    struct weir_file **ret_file, struct weir_error *error)
{
    const struct wi_os *os = engine->os;
    uint32_t flags;
    int os_flags;
    int rc;

    os_flags = os->ops->fcntl(os, fd, F_GETFL, 0);
    if (os_flags < 0)
        return wi_error_set(error, os_flags, WEIR_OP_OPEN, name, "descriptor %d is not open",
                            fd);
    if (os_flags & O_PATH)
        return wi_error_set(error, -EBADF, WEIR_OP_OPEN, name,
                            "descriptor %d was opened with O_PATH and cannot do I/O", fd);
    if (os_flags & O_APPEND)
        return wi_error_set(error, -EINVAL, WEIR_OP_OPEN, name,
                            "descriptor %d was opened with O_APPEND, which makes writes ignore "
                            "their offsets",
                            fd);
    flags = (os_flags & O_ACCMODE) == O_RDWR     ? WEIR_OPEN_READ | WEIR_OPEN_WRITE
            : (os_flags & O_ACCMODE) == O_WRONLY ? WEIR_OPEN_WRITE
                                                 : WEIR_OPEN_READ;
    if (os_flags & O_DIRECT)
        flags |= WEIR_OPEN_DIRECT;
    rc = make_file(engine, fd, name, flags, -1, ret_file);
    return rc < 0 ? wi_error_set(error, rc, WEIR_OP_OPEN, name, NULL) : 0;
}

/* Nobody uses the file any more. Returns what close(2) said. */
static int close_for_good(struct weir_file *file)
{
    struct weir_engine *engine = file->engine;
    int rc = 0;

    wi_file_pool_remove(file); /* waits for blocking calls, which may be in the cache */
    leave_cache(file);
    if (file->fd >= 0)
        rc = engine->os->ops->close(engine->os, file->fd);
    return rc == -ECANCELED ? -EIO : rc; /* see retry.c */
}

/*
 * The block cache's loads are jobs that nobody sees, so a file with such is not refused to be closed.
 * Being open counts as one hold, each queue with loads as another; whoever lets go last closes the
 * descriptor. If that is a queue, the error of close(2) is lost: it is one of a file that was
 * only read, or synced, or whose writer did not care to know.
 */
void wi_file_hold(struct weir_file *file)
{
    atomic_fetch_add_explicit(&file->holds, 1, memory_order_seq_cst); /* see file_pool.c */
}

void wi_file_unhold(struct weir_file *file)
{
    if (atomic_fetch_sub_explicit(&file->holds, 1, memory_order_acq_rel) == 1) {
        (void)close_for_good(file);
        give_file_back(file);
    }
}

int wi_file_close(struct weir_file *file, struct weir_error *error)
{
    struct weir_engine *engine;
    int sync_error;
    int rc = 0;
    bool is_last;

    uint32_t open_flags = atomic_load_explicit(&file->open_flags, memory_order_relaxed);

    engine = file->engine;
    if (open_flags != 0 && atomic_load_explicit(&file->users, memory_order_acquire) != 0)
        return wi_error_set(error, -EBUSY, WEIR_OP_CLOSE, NULL,
                            "jobs on the file are in flight; wait for them first");
    /* Of two closes at once, one wins. */
    if (open_flags == 0 ||
        !atomic_compare_exchange_strong_explicit(&file->open_flags, &open_flags, 0,
                                                 memory_order_acq_rel, memory_order_relaxed))
        return wi_error_set(error, -EBADF, WEIR_OP_CLOSE, NULL, "the file is closed");
    atomic_fetch_add_explicit(&file->generation, 1, memory_order_release);
    atomic_fetch_add_explicit(&engine->closes, 1, memory_order_release);
    sync_error = wi_file_sync_error(file);
    is_last = atomic_fetch_sub_explicit(&file->holds, 1, memory_order_acq_rel) == 1;
    if (is_last)
        rc = close_for_good(file);
    if (rc == 0)
        rc = sync_error;
    /* Here, since the name goes with the file. */
    if (rc < 0)
        wi_error_set(error, rc, WEIR_OP_CLOSE, is_last ? file->path : NULL, NULL);
    if (is_last)
        give_file_back(file);
    return rc;
}

int weir_file_close(struct weir_file *file)
{
    struct weir_engine *engine;
    uint64_t begin_ns;
    int rc;

    if (!file)
        return 0;
    engine = file->engine;
    begin_ns = wi_trace_begin(engine);
    rc = wi_file_close(file, NULL);
    wi_stats_blocking(engine, WEIR_OP_CLOSE, rc, 0, 0);
    wi_trace_blocking(engine, file, WEIR_OP_CLOSE, begin_ns, 0, 0, rc);
    return rc;
}

int weir_file_info(struct weir_file *file, struct weir_file_info *info)
{
    struct weir_file_info full = { 0 };

    if (!file || !info || info->size < sizeof(info->size))
        return -EINVAL;
    full.size = info->size;
    full.direct =
        (atomic_load_explicit(&file->open_flags, memory_order_relaxed) & WEIR_OPEN_DIRECT) != 0;
    full.memory_align = file->memory_align;
    full.offset_align = file->offset_align;
    full.sync_error = wi_file_sync_error(file);
    full.fd = file->pooled ? -1 : file->fd;
    full.path = file->path;
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return 0;
}

void wi_file_poison(struct weir_file *file, int code)
{
    int expected = 0;

    /* The first failed sync is the last word on this file. The kernel drops the dirty marks
     * when it reports the error, so a second sync can succeed although the bytes never
     * reached the device. Retrying would turn a reported loss into a silent one. */
    atomic_compare_exchange_strong_explicit(&file->sync_error, &expected, code,
                                            memory_order_acq_rel, memory_order_acquire);
}

/* One sync on its way; on the stack of the thread that makes it. */
struct running_sync {
    struct wi_list node;
    uint64_t number;
};

static bool older_runs(const struct weir_file *file, uint64_t number)
{
    return !wi_list_empty(&file->syncs) &&
           WI_CONTAINER_OF(file->syncs.next, struct running_sync, node)->number < number;
}

/*
 * The kernel reports lost data once to each open file. So of two syncs at the same time one may
 * be told, and the other get 0 for the same data; it must not pass that on before the first
 * has had the time to poison the file. A sync that has succeeded therefore waits for those that
 * were running when it ended, and looks again.
 */
static int end_sync(struct weir_file *file, struct running_sync *self, int rc)
{
    uint64_t now;

    wi_mutex_lock(&file->sync_mu);
    wi_list_remove(&self->node);
    wi_cond_broadcast(&file->sync_ended);
    now = file->next_sync;
    while (rc == 0 && older_runs(file, now))
        wi_cond_wait(&file->sync_ended, &file->sync_mu);
    wi_mutex_unlock(&file->sync_mu);
    return rc == 0 ? wi_file_sync_error(file) : rc;
}

int wi_file_sync(struct weir_file *file, uint32_t how)
{
    const struct wi_os *os = file->engine->os;
    uint64_t writes = wi_file_pool_writes(file);
    struct running_sync self;
    int rc = wi_file_sync_error(file);

    if (rc < 0)
        return rc;
    wi_mutex_lock(&file->sync_mu);
    self.number = file->next_sync++;
    wi_list_push_back(&file->syncs, &self.node);
    wi_mutex_unlock(&file->sync_mu);
    rc = how == WEIR_SYNC_ALL ? os->ops->fsync(os, file->fd) : os->ops->fdatasync(os, file->fd);
    if (rc == -ECANCELED)
        rc = -EIO; /* see retry.c */
    /* Some files have nothing to sync (pipes, /proc): nothing was lost by asking. */
    if (rc < 0 && rc != -EINVAL && rc != -EROFS)
        wi_file_poison(file, rc);
    rc = end_sync(file, &self, rc);
    if (rc == 0)
        wi_file_pool_synced(file, writes);
    return rc;
}

static int64_t to_ns(const struct statx_timestamp *time)
{
    return time->tv_sec * (int64_t)WI_SEC_NS + (int64_t)time->tv_nsec;
}

int wi_file_stat(struct weir_engine *engine, struct weir_file *file, const char *path,
                 bool nofollow, struct weir_stat *ret_stat)
{
    const struct wi_os *os = engine->os;
    struct statx st;
    int flags = path ? (nofollow ? AT_SYMLINK_NOFOLLOW : 0) : AT_EMPTY_PATH;
    int rc =
        os->ops->statx(os, wi_dir_fd(file), path ? path : "", flags, STATX_BASIC_STATS, &st);

    if (rc < 0)
        return rc;
    *ret_stat = (struct weir_stat){
        .size_bytes = st.stx_size,
        .allocated_bytes = st.stx_blocks * 512,
        .inode = st.stx_ino,
        .device = makedev(st.stx_dev_major, st.stx_dev_minor),
        .links = st.stx_nlink,
        .atime_ns = to_ns(&st.stx_atime),
        .mtime_ns = to_ns(&st.stx_mtime),
        .ctime_ns = to_ns(&st.stx_ctime),
        .mode = st.stx_mode,
        .uid = st.stx_uid,
        .gid = st.stx_gid,
        .rdevice_major = st.stx_rdev_major,
        .rdevice_minor = st.stx_rdev_minor,
    };
    return 0;
}
