/* SPDX-License-Identifier: MIT */
/*
 * call.c - jobs that are system calls on the pool's files lane
 *
 * Syncs, opens, closes and directory calls may take long and gain nothing from a ring (a
 * ring's fsync goes through a kernel worker and is slower), so a pool thread makes the call.
 * Runs on any thread; touches only the job, its file and the engine.
 */
#include "engine_internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1u << 0)
#define RENAME_EXCHANGE  (1u << 1)
#endif

/* As getdents64(2) writes them. */
struct kernel_dirent {
    uint64_t inode;
    int64_t next;
    uint16_t entry_size;
    uint8_t type;
    char name[];
};

#define DIRENT_HEAD offsetof(struct weir_dirent, name)

/*
 * The kernel's entries become ours in place, front to back: ours are never longer, because
 * the head is 16 bytes instead of 19 and both are padded to 8.
 */
static int64_t list_directory(const struct wi_os *os, struct weir_job *job)
{
    char *buf = job->buf;
    size_t from = 0;
    size_t to = 0;
    int64_t got;

    WEIR_ASSERT(job->file); /* by wi_job_check */
    got = os->ops->getdents(os, job->file->fd, buf, job->len);
    if (got <= 0)
        return got;
    while (from < (size_t)got) {
        struct kernel_dirent in;
        struct weir_dirent out = { 0 };
        const char *name = buf + from + offsetof(struct kernel_dirent, name);
        size_t name_size;

        memcpy(&in, buf + from, offsetof(struct kernel_dirent, name));
        WEIR_ASSERT(in.entry_size > offsetof(struct kernel_dirent, name) &&
                    from + in.entry_size <= (size_t)got);
        name_size = strnlen(name, in.entry_size - offsetof(struct kernel_dirent, name)) + 1;
        out.inode = in.inode;
        out.type = in.type;
        out.entry_size = (uint16_t)((DIRENT_HEAD + name_size + 7) & ~(size_t)7);
        memmove(buf + to + DIRENT_HEAD, name, name_size);
        memcpy(buf + to, &out, DIRENT_HEAD);
        from += in.entry_size;
        to += out.entry_size;
    }
    return (int64_t)to;
}

/* Of a file that the block cache knows, or the file pool: both are told of what changes it. */
static int64_t resize(struct weir_engine *engine, struct weir_job *job)
{
    const struct wi_os *os = engine->os;
    struct weir_file *file = job->file;
    bool keep_size = job->op == WEIR_OP_ALLOCATE && (job->flags & WEIR_JOB_KEEP_SIZE);
    uint64_t size = job->op == WEIR_OP_TRUNCATE ? job->offset : job->offset + job->len;
    bool tell;
    int64_t rc;

    WEIR_ASSERT(file); /* by wi_job_check */
    tell = file->cache_file && !keep_size;

    /* Space reserved inside a file leaves its end where it is. */
    if (tell && job->op == WEIR_OP_ALLOCATE)
        size = wi_max_u64(size, wi_cache_file_end(engine->cache, file));
    if (tell)
        wi_cache_resize_begin(engine->cache, file, size);
    if (job->op == WEIR_OP_TRUNCATE)
        rc = os->ops->ftruncate(os, file->fd, size);
    else
        rc = os->ops->fallocate(os, file->fd, keep_size ? FALLOC_FL_KEEP_SIZE : 0, job->offset,
                                job->len);
    if (tell)
        wi_cache_resize_end(engine->cache, file, size, rc);
    wi_file_keep(file, WI_KEEP_UNSYNCED, true);
    return rc;
}

static int64_t call_once(struct weir_engine *engine, struct weir_job *job)
{
    const struct wi_os *os = engine->os;
    struct weir_file *file = job->file;
    /* A CLOSE may race with another one, and looks at the file only once it has won. */
    int dir = job->op == WEIR_OP_CLOSE ? -1 : wi_dir_fd(file);
    uint32_t rename_flags = 0;
    struct weir_file *opened;
    int64_t rc;

    switch ((enum weir_op)job->op) {
    case WEIR_OP_FSYNC:
        return wi_file_sync(file, WEIR_SYNC_ALL);
    case WEIR_OP_FDATASYNC:
        return wi_file_sync(file, WEIR_SYNC_DATA);
    case WEIR_OP_OPEN:
        rc = wi_file_open(engine, file, job->path, job->flags, job->mode, &opened);
        if (rc == 0)
            *(struct weir_file **)job->buf = opened;
        return rc;
    case WEIR_OP_CLOSE:
        return wi_file_close(file, job->error);
    case WEIR_OP_STAT:
        return wi_file_stat(engine, file, job->path, (job->flags & WEIR_JOB_NOFOLLOW) != 0,
                            job->buf);
    case WEIR_OP_TRUNCATE:
    case WEIR_OP_ALLOCATE:
        return resize(engine, job);
    case WEIR_OP_MKDIR:
        return os->ops->mkdirat(os, dir, job->path, job->mode);
    case WEIR_OP_UNLINK:
        return os->ops->unlinkat(os, dir, job->path, 0);
    case WEIR_OP_RMDIR:
        return os->ops->unlinkat(os, dir, job->path, AT_REMOVEDIR);
    case WEIR_OP_RENAME:
        if (job->flags & WEIR_JOB_NOREPLACE)
            rename_flags |= RENAME_NOREPLACE;
        if (job->flags & WEIR_JOB_EXCHANGE)
            rename_flags |= RENAME_EXCHANGE;
        return os->ops->renameat2(os, dir, job->path, dir, job->path2, rename_flags);
    case WEIR_OP_LINK:
        return os->ops->linkat(os, dir, job->path, dir, job->path2, 0);
    case WEIR_OP_SYMLINK:
        return os->ops->symlinkat(os, job->path, dir, job->path2);
    case WEIR_OP_READLINK:
        return os->ops->readlinkat(os, dir, job->path, job->buf, job->len);
    case WEIR_OP_LIST:
        return list_directory(os, job);
    case WEIR_OP_CALL:
        return job->call(job->buf);
    case WEIR_OP_ADVISE:
        return wi_file_advise(file, job->mode, job->offset, job->len);
    case WEIR_OP_NONE:
    case WEIR_OP_READ:
    case WEIR_OP_WRITE:
    case WEIR_OP_READV:
    case WEIR_OP_WRITEV:
    case WEIR_OP_NOP:
    case WEIR_OP_CANCEL:
    case WEIR_OP_VIEW:
    case WEIR_OP_READ_MANY:
    case WEIR_OPS:
        break;
    }
    WEIR_ASSERT(!"not a call");
    return -EINVAL;
}

/* With the file's descriptor open. A CLOSE looks after that itself. */
static int64_t call_with_file(struct weir_engine *engine, struct weir_job *job)
{
    struct weir_file *file = job->op == WEIR_OP_CLOSE ? NULL : job->file;
    int64_t result = file ? wi_file_begin(file) : 0;

    if (result < 0)
        return result;
    result = call_once(engine, job);
    if (file)
        wi_file_end(file);
    return result;
}

int64_t wi_job_call(struct weir_engine *engine, struct weir_job *job)
{
    for (uint32_t tries = 0;; tries++) {
        int64_t result = call_with_file(engine, job);
        struct retry_verdict verdict;

        if (result >= 0 || job->op == WEIR_OP_CALL || job->op == WEIR_OP_OPEN)
            return result; /* wi_file_open has done its own retries */
        verdict = wi_retry_verdict(job->op, result, tries);
        if (verdict.action != RETRY_NOW)
            return verdict.code;
    }
}
