/* SPDX-License-Identifier: MIT */
/*
 * copy_file.c - one file or link: temporary, bytes, metadata, name
 *
 *   1  open the source, without following a link, and note what it is
 *   2  make a temporary in the copy's directory, mode 0600, and lock it (copy_temp.c)
 *   3  move the bytes: small files in one read and one write, large ones in copy_large.c
 *   4  with VERIFY, read the copy back, past the page cache where that works
 *   5  see that size and time of the source are as they were in step 1
 *   6  where the name is taken, sync the bytes, so that a power cut leaves the old file or
 *      the new one, and not an empty one
 *   7  give the temporary mode and times, and rename it
 *
 * Whatever fails before 7, the temporary is removed and the name keeps what it had. Nothing
 * else is synced: like cp, a copy is VISIBLE, not DURABLE.
 *
 * Each system call here is paid once a file, and a small file costs little more than its
 * system calls: what a new directory cannot contain is not asked for, and nothing is asked
 * twice.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h> /* RENAME_NOREPLACE */
#include <string.h>

#include <xxhash.h>

#include "copy_internal.h"
#include "engine/engine.h"

#define OPEN_SOURCE  (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define LINK_MAX_LEN ((size_t)64 << 10)
#define MADE_ALREADY "this copy already made a file of that name"

/* ---- reads and writes --------------------------------------------------------------------- */

/* Try until `enough` bytes have moved, the file ends, or it is an error. */
static int64_t transfer(struct copy_worker *worker, bool write, int fd, unsigned char *buf,
                        size_t len, size_t enough, uint64_t offset)
{
    struct weir_engine *engine = worker->copy->engine;
    const struct wi_os *os = worker->copy->os;
    uint32_t op = write ? WEIR_OP_WRITE : WEIR_OP_READ;
    uint64_t start_ns = wi_stats_sample() ? wi_os_now(os) : 0;
    uint64_t calls = 0;
    uint64_t retries = 0;
    uint32_t tries = 0;
    size_t moved = 0;
    int64_t code = 0;

    while (moved < enough) {
        int64_t rc = write ? os->ops->pwrite(os, fd, buf + moved, len - moved, offset + moved)
                           : os->ops->pread(os, fd, buf + moved, len - moved, offset + moved);

        calls++;
        if (rc > 0) {
            moved += (size_t)rc;
            tries = 0;
        } else if (rc == 0) {
            code = write ? -EIO : 0;
            break;
        } else {
            struct retry_verdict verdict = wi_retry_verdict(op, rc, tries++);

            if (verdict.action == RETRY_NEVER) {
                code = verdict.code;
                break;
            }
            retries++;
            if (verdict.action == RETRY_LATER)
                os->ops->sleep_ns(os, verdict.delay_ns);
        }
    }
    if (calls > 1)
        wi_stats_more_calls(engine, calls - 1, retries, calls - 1 - retries);
    wi_stats_blocking(engine, op, code, moved, start_ns);
    return code < 0 ? code : (int64_t)moved;
}

int64_t copy_read(struct copy_worker *worker, int fd, void *buf, size_t len, size_t enough,
                  uint64_t offset)
{
    return transfer(worker, false, fd, buf, len, enough, offset);
}

int64_t copy_write(struct copy_worker *worker, int fd, unsigned char *buf, size_t len,
                   uint64_t offset)
{
    return transfer(worker, true, fd, buf, len, len, offset);
}

bool copy_forget_cached(struct copy *copy, int fd, uint64_t size)
{
    const struct wi_os *os = copy->os;
    uint64_t cached = 0;

    if (copy->in_memory || os->ops->fadvise(os, fd, 0, 0, POSIX_FADV_DONTNEED) < 0)
        return false;
    return wi_os_cached(os, fd, 0, size, &cached) == 0 && cached == 0;
}

/* ---- small files --------------------------------------------------------------------------- */

/* Read the copy back into the worker's buffer. Returns bytes, up to one more than `size`. */
static int64_t read_back(struct copy_worker *worker, struct copy_file *file, size_t size,
                         bool *ret_cached)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    size_t len = (size + COPY_ALIGN) & ~(size_t)(COPY_ALIGN - 1);
    int64_t got = -EINVAL;
    int rc;

    /* A direct read first writes out what it is about to read: no sync is needed. */
    *ret_cached = copy->in_memory;
    if (os->ops->fcntl(os, file->copy_fd, F_SETFL, O_DIRECT) == 0)
        got = copy_read(worker, file->copy_fd, worker->buffer, len, size, 0);
    if (got != -EINVAL)
        return got;
    os->ops->fcntl(os, file->copy_fd, F_SETFL, 0);
    rc = os->ops->fdatasync(os, file->copy_fd);
    if (rc < 0)
        return rc;
    *ret_cached = !copy_forget_cached(copy, file->copy_fd, size);
    return copy_read(worker, file->copy_fd, worker->buffer, len, size, 0);
}

static int verify_small(struct copy_worker *worker, struct copy_file *file, size_t size)
{
    struct copy *copy = worker->copy;
    XXH128_hash_t want = XXH3_128bits(worker->buffer, size);
    bool cached = false;
    int64_t got = 0;

    if (size > 0) {
        copy_add(&copy->verifying, 1);
        /* What was read before must not pass for what is read now. */
        worker->buffer[0] ^= 0xff;
        got = read_back(worker, file, size, &cached);
        atomic_fetch_sub_explicit(&copy->verifying, 1, memory_order_relaxed);
    }
    if (got < 0)
        return copy_problem(worker, (int)got, WEIR_OP_READ, true);
    if ((size_t)got != size || !XXH128_isEqual(want, XXH3_128bits(worker->buffer, size)))
        return copy_problem_text(worker, -WEIR_EMISMATCH, 0, true, NULL);
    copy_add(&copy->bytes_done, size);
    copy_verified(copy, size, cached);
    return 0;
}

/* Other bytes came than the source's size says: has it changed, or is its size no size? */
static int wrong_size(struct copy_worker *worker, const struct copy_file *file, size_t got)
{
    const struct statx *before = &file->stat;
    struct statx now;
    int rc = worker->copy->os->ops->statx(worker->copy->os, file->source_fd, "", AT_EMPTY_PATH,
                                          STATX_SIZE | STATX_MTIME, &now);

    /* As in /proc and /sys, where the kernel makes the bytes up when they are read. */
    if (rc == 0 && now.stx_size == before->stx_size &&
        now.stx_mtime.tv_sec == before->stx_mtime.tv_sec &&
        now.stx_mtime.tv_nsec == before->stx_mtime.tv_nsec)
        return copy_problem_text(worker, -EOPNOTSUPP, WEIR_OP_READ, false,
                                 "its size is not what its file system says");
    return copy_problem_at(worker, -WEIR_ECHANGED, WEIR_OP_READ, false, got,
                           got < before->stx_size ? "the file became shorter while it was read"
                                                  : "the file grew while it was read");
}

static int move_small(struct copy_worker *worker, struct copy_file *file)
{
    struct copy *copy = worker->copy;
    size_t size = (size_t)file->stat.stx_size;
    /* One byte more than there should be shows a file that grew. */
    int64_t got =
        copy_read(worker, file->source_fd, worker->buffer, size + 1, size ? size : 1, 0);

    if (got < 0)
        return copy_problem(worker, (int)got, WEIR_OP_READ, false);
    if ((size_t)got != size)
        return wrong_size(worker, file, (size_t)got);
    if (size > 0) {
        int64_t put = copy_write(worker, file->copy_fd, worker->buffer, size, 0);

        if (put < 0)
            return copy_problem(worker, (int)put, WEIR_OP_WRITE, true);
    }
    copy_add(&copy->bytes_done, size);
    return copy->flags & WEIR_COPY_VERIFY ? verify_small(worker, file, size) : 0;
}

/* ---- files ------------------------------------------------------------------------------------ */

/* What has the copy's name now must be something that a file or link may replace. */
static int check_taken(struct copy_worker *worker, struct copy_dir *dir, const char *copy_name,
                       const struct statx *source, bool *ret_taken)
{
    const struct wi_os *os = worker->copy->os;
    struct statx st;
    int rc;

    *ret_taken = false;
    if (dir->fresh)
        return 0;
    rc = os->ops->statx(os, dir->copy_fd, copy_name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
                        STATX_TYPE | STATX_INO, &st);
    if (rc == -ENOENT)
        return 0;
    if (rc < 0)
        return copy_problem(worker, rc, WEIR_OP_STAT, true);
    if (st.stx_ino == source->stx_ino && st.stx_dev_major == source->stx_dev_major &&
        st.stx_dev_minor == source->stx_dev_minor)
        return copy_problem_text(worker, -EINVAL, 0, false,
                                 "source and destination are the same file");
    if (S_ISDIR(st.stx_mode))
        return copy_problem_text(worker, -EISDIR, WEIR_OP_RENAME, true,
                                 "a directory has this name, and is not replaced by a file");
    if (!S_ISREG(st.stx_mode) && !S_ISLNK(st.stx_mode))
        return copy_problem_text(worker, -EEXIST, WEIR_OP_RENAME, true,
                                 "a device, pipe or socket has this name, and is not replaced");
    *ret_taken = true;
    return 0;
}

static int check_unchanged(struct copy_worker *worker, const struct copy_file *file)
{
    const struct wi_os *os = worker->copy->os;
    const struct statx *before = &file->stat;
    struct statx now;
    int rc =
        os->ops->statx(os, file->source_fd, "", AT_EMPTY_PATH, STATX_SIZE | STATX_MTIME, &now);

    if (rc < 0)
        return copy_problem(worker, rc, WEIR_OP_STAT, false);
    if (now.stx_size != before->stx_size || now.stx_mtime.tv_sec != before->stx_mtime.tv_sec ||
        now.stx_mtime.tv_nsec != before->stx_mtime.tv_nsec)
        return copy_problem_text(worker, -WEIR_ECHANGED, WEIR_OP_READ, false, NULL);
    return 0;
}

/* Where close(2) is what reports lost writes, provoke the report while we can still act. */
static int flush_writes(struct copy_worker *worker, struct copy_file *file)
{
    const struct wi_os *os = worker->copy->os;
    int fd;
    int rc;

    if (!worker->copy->flush_on_close)
        return 0;
    fd = os->ops->fcntl(os, file->copy_fd, F_DUPFD_CLOEXEC, 0);
    rc = fd < 0 ? fd : os->ops->close(os, fd);
    return rc < 0 ? copy_problem(worker, rc, WEIR_OP_CLOSE, true) : 0;
}

/*
 * Give the temporary its name. In a directory that is new with this copy, whatever has the
 * name got it from this copy too: two sources that the destination takes for one name.
 */
static int publish(struct copy_worker *worker, struct copy_dir *dir, const char *temp,
                   const char *copy_name)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    int fd = dir->copy_fd;
    int rc = -EINVAL;

    if (dir->fresh && !copy_get(&copy->no_noreplace)) {
        rc = os->ops->renameat2(os, fd, temp, fd, copy_name, RENAME_NOREPLACE);
        if (rc == -EEXIST)
            return copy_problem_text(worker, rc, WEIR_OP_RENAME, true, MADE_ALREADY);
        if (rc == -EINVAL)
            atomic_store_explicit(&copy->no_noreplace, 1, memory_order_relaxed);
    }
    if (rc == -EINVAL)
        rc = os->ops->renameat2(os, fd, temp, fd, copy_name, 0);
    return rc < 0 ? copy_problem(worker, rc, WEIR_OP_RENAME, true) : 0;
}

/* Steps 2 to 6. The source is open. */
static int make_copy(struct copy_worker *worker, struct copy_file *file)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    int dir_fd = file->dir->copy_fd;
    bool large = file->stat.stx_size > COPY_LARGE_MIN;
    int access_mode = large || (copy->flags & WEIR_COPY_VERIFY) ? O_RDWR : O_WRONLY;
    int metadata_rc;
    int rc;

    file->copy_fd = copy_temp_create(copy, dir_fd, file->copy_name, access_mode, file->temp);
    if (file->copy_fd < 0)
        return copy_problem(worker, file->copy_fd, WEIR_OP_OPEN, true);

    rc = large ? copy_large(worker, file) : move_small(worker, file);
    if (rc == 0)
        rc = check_unchanged(worker, file);
    if (rc == 0)
        rc = flush_writes(worker, file);
    if (rc < 0)
        goto out;

    if (file->taken && file->stat.stx_size > 0 && !copy->in_memory) {
        /* The old file is all there is until the new one's bytes are on the disk. */
        rc = os->ops->fdatasync(os, file->copy_fd);
        if (rc < 0) {
            copy_problem(worker, rc, WEIR_OP_FDATASYNC, true);
            goto out;
        }
    }
    metadata_rc = copy_metadata(worker, file->copy_fd, &file->stat, 0600);
    rc = publish(worker, file->dir, file->temp, file->copy_name);
    if (rc < 0)
        goto out;
    file->temp[0] = '\0';
    copy_add(&copy->files, 1);
    copy_add(&copy->bytes, file->stat.stx_size);
    /* The bytes are all there, so the copy stands, but the caller hears of it. */
    rc = metadata_rc;

out:
    if (file->temp[0])
        os->ops->unlinkat(os, dir_fd, file->temp, 0);
    /* After the rename: the lock on the temporary goes with the descriptor. */
    if (file->copy_file)
        weir_file_close(file->copy_file);
    else
        os->ops->close(os, file->copy_fd);
    file->copy_file = NULL;
    return rc;
}

static int copy_regular(struct copy_worker *worker, struct copy_dir *dir,
                        const struct copy_entry *entry)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    struct copy_file file;
    int rc;

    file.dir = dir;
    file.name = entry->name;
    file.copy_name = entry->copy_name;
    file.copy_file = NULL;
    file.source_file = NULL;
    file.source_fd = os->ops->openat(os, dir->source_fd, entry->name, OPEN_SOURCE, 0);
    if (file.source_fd < 0)
        return copy_problem(worker, file.source_fd, WEIR_OP_OPEN, false);
    rc = os->ops->statx(os, file.source_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &file.stat);
    if (rc < 0) {
        copy_problem(worker, rc, WEIR_OP_STAT, false);
        goto out;
    }
    if (!S_ISREG(file.stat.stx_mode)) {
        rc = copy_problem_text(worker, -WEIR_ECHANGED, WEIR_OP_OPEN, false,
                               "it was a file when the directory was listed, and no longer is");
        goto out;
    }
    copy_add(&copy->bytes_total, copy_passes(copy) * file.stat.stx_size);
    rc = check_taken(worker, dir, entry->copy_name, &file.stat, &file.taken);
    if (rc == 0) {
        rc = make_copy(worker, &file);
        /* A cleaner came between making and locking the temporary: once more. */
        if (rc == -ENOENT && worker->problem.op == WEIR_OP_RENAME) {
            /* All of it was done by then, and will be again. */
            atomic_fetch_sub_explicit(&copy->bytes_done, copy_passes(copy) * file.stat.stx_size,
                                      memory_order_relaxed);
            rc = make_copy(worker, &file);
        }
    }

out:
    if (file.source_file)
        weir_file_close(file.source_file);
    else
        os->ops->close(os, file.source_fd);
    return rc;
}

/* ---- links ------------------------------------------------------------------------------------- */

static int link_times(struct copy_worker *worker, int dir_fd, const char *name,
                      const struct statx *source)
{
    const struct wi_os *os = worker->copy->os;
    const struct timespec times[2] = {
        { source->stx_atime.tv_sec, source->stx_atime.tv_nsec },
        { source->stx_mtime.tv_sec, source->stx_mtime.tv_nsec },
    };
    int rc = os->ops->utimensat(os, dir_fd, name, times, AT_SYMLINK_NOFOLLOW);

    return rc < 0 ? copy_problem_text(worker, rc, 0, true, "its times could not be set") : 0;
}

/* The name is taken: make the link in a locked temporary directory and rename it out. */
static int replace_by_link(struct copy_worker *worker, struct copy_dir *dir,
                           const char *copy_name, const char *target,
                           const struct statx *source)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    char temp[COPY_TEMP_MAX];
    int times_rc = 0;
    int rc;
    int fd = copy_temp_create_dir(copy, dir->copy_fd, copy_name, temp);

    if (fd < 0)
        return copy_problem(worker, fd, WEIR_OP_MKDIR, true);
    rc = os->ops->symlinkat(os, target, fd, COPY_TEMP_LINK);
    if (rc < 0) {
        copy_problem(worker, rc, WEIR_OP_SYMLINK, true);
    } else {
        times_rc = link_times(worker, fd, COPY_TEMP_LINK, source);
        rc = os->ops->renameat2(os, fd, COPY_TEMP_LINK, dir->copy_fd, copy_name, 0);
        if (rc < 0) {
            copy_problem(worker, rc, WEIR_OP_RENAME, true);
            os->ops->unlinkat(os, fd, COPY_TEMP_LINK, 0);
        }
    }
    os->ops->unlinkat(os, dir->copy_fd, temp, AT_REMOVEDIR);
    os->ops->close(os, fd);
    return rc < 0 ? rc : times_rc;
}

static int copy_link(struct copy_worker *worker, struct copy_dir *dir,
                     const struct copy_entry *entry, const struct statx *known)
{
    struct copy *copy = worker->copy;
    const struct wi_os *os = copy->os;
    char *target = (char *)worker->buffer;
    struct statx st;
    bool taken;
    int64_t len;
    int rc = 0;

    if (!known) {
        rc = os->ops->statx(os, dir->source_fd, entry->name,
                            AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &st);
        known = &st;
    }
    if (rc < 0)
        return copy_problem(worker, rc, WEIR_OP_STAT, false);
    len = os->ops->readlinkat(os, dir->source_fd, entry->name, target, LINK_MAX_LEN);
    if (len < 0)
        return copy_problem(worker, (int)len, WEIR_OP_READLINK, false);
    if ((size_t)len >= LINK_MAX_LEN)
        return copy_problem(worker, -ENAMETOOLONG, WEIR_OP_READLINK, false);
    target[len] = '\0';

    rc = check_taken(worker, dir, entry->copy_name, known, &taken);
    if (rc < 0)
        return rc;
    /* A link is complete from the start, so a free name needs no temporary. */
    if (!taken) {
        rc = os->ops->symlinkat(os, target, dir->copy_fd, entry->copy_name);
        if (rc == -EEXIST && dir->fresh)
            return copy_problem_text(worker, rc, WEIR_OP_SYMLINK, true, MADE_ALREADY);
        taken = rc == -EEXIST;
        if (rc < 0 && !taken)
            return copy_problem(worker, rc, WEIR_OP_SYMLINK, true);
        if (rc == 0)
            rc = link_times(worker, dir->copy_fd, entry->copy_name, known);
    }
    if (taken)
        rc = replace_by_link(worker, dir, entry->copy_name, target, known);
    if (rc == 0)
        copy_add(&copy->links, 1);
    return rc;
}

int copy_entry(struct copy_worker *worker, struct copy_dir *dir, const struct copy_entry *entry,
               const struct statx *stat)
{
    if (entry->type == DT_REG)
        return copy_regular(worker, dir, entry);
    if (entry->type == DT_LNK)
        return copy_link(worker, dir, entry, stat);
    return copy_problem_text(worker, -EOPNOTSUPP, 0, false,
                             "neither a file, a directory nor a symbolic link");
}
