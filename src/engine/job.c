/* SPDX-License-Identifier: MIT */
/*
 * job.c - prepare jobs, and say what is wrong with one
 */
#include "engine_internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define WEIR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIR_ASAN 1
#endif
#endif

#ifdef WEIR_ASAN
#include <sanitizer/asan_interface.h>
#endif

void weir_job_prepare(struct weir_job *job, uint32_t op, struct weir_file *file,
                      weir_done_fn done, void *arg)
{
    memset(job, 0, sizeof(*job));
    job->op = (uint16_t)op;
    job->file = file;
    job->done = done;
    job->arg = arg;
}

static void prepare_transfer(struct weir_job *job, uint32_t op, struct weir_file *file,
                             const void *buf, size_t len, uint64_t offset, weir_done_fn done,
                             void *arg)
{
    weir_job_prepare(job, op, file, done, arg);
    /* A write only reads from it; one field serves both. */
    memcpy(&job->buf, &buf, sizeof(buf));
    job->len = len;
    job->offset = offset;
}

void weir_job_read(struct weir_job *job, struct weir_file *file, void *buf, size_t len,
                   uint64_t offset, weir_done_fn done, void *arg)
{
    prepare_transfer(job, WEIR_OP_READ, file, buf, len, offset, done, arg);
}

void weir_job_write(struct weir_job *job, struct weir_file *file, const void *buf, size_t len,
                    uint64_t offset, weir_done_fn done, void *arg)
{
    prepare_transfer(job, WEIR_OP_WRITE, file, buf, len, offset, done, arg);
}

void weir_job_readv(struct weir_job *job, struct weir_file *file, const struct iovec *iov,
                    size_t iov_count, uint64_t offset, weir_done_fn done, void *arg)
{
    prepare_transfer(job, WEIR_OP_READV, file, iov, iov_count, offset, done, arg);
}

void weir_job_writev(struct weir_job *job, struct weir_file *file, const struct iovec *iov,
                     size_t iov_count, uint64_t offset, weir_done_fn done, void *arg)
{
    prepare_transfer(job, WEIR_OP_WRITEV, file, iov, iov_count, offset, done, arg);
}

void weir_job_sync(struct weir_job *job, struct weir_file *file, uint32_t how,
                   weir_done_fn done, void *arg)
{
    weir_job_prepare(job, how == WEIR_SYNC_ALL ? WEIR_OP_FSYNC : WEIR_OP_FDATASYNC, file, done,
                     arg);
}

void weir_job_open(struct weir_job *job, struct weir_file *dir, const char *path,
                   uint32_t open_flags, uint32_t mode, struct weir_file **ret_file,
                   weir_done_fn done, void *arg)
{
    weir_job_prepare(job, WEIR_OP_OPEN, dir, done, arg);
    job->path = path;
    job->flags = open_flags;
    job->mode = mode;
    job->buf = ret_file;
}

void weir_job_call(struct weir_job *job, uint32_t lane, weir_call_fn call, void *context,
                   weir_done_fn done, void *arg)
{
    weir_job_prepare(job, WEIR_OP_CALL, NULL, done, arg);
    job->lane = (uint8_t)(lane < WEIR_LANES ? lane : WEIR_LANES);
    job->call = call;
    job->buf = context;
}

const char *weir_op_name(uint32_t op)
{
    static const char *const names[WEIR_OPS] = {
        "none",  "read",   "write", "readv",     "writev",   "fsync", "fdatasync",
        "open",  "close",  "stat",  "truncate",  "allocate", "mkdir", "unlink",
        "rmdir", "rename", "link",  "symlink",   "readlink", "list",  "call",
        "nop",   "cancel", "view",  "read_many", "advise",
    };

    return op < WEIR_OPS ? names[op] : "?";
}

const char *weir_class_name(uint32_t io_class)
{
    static const char *const names[WEIR_CLASSES] = { "foreground", "sync", "batch", "prefetch",
                                                     "background" };

    return io_class < WEIR_CLASSES ? names[io_class] : "?";
}

uint64_t wi_iov_bytes(const struct iovec *iov, size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes = wi_add_sat(bytes, iov[i].iov_len);
    return bytes;
}

#ifdef WEIR_ASAN
static void touch_bytes(const void *buf, size_t len)
{
    const volatile char *bad = __asan_region_is_poisoned((void *)(uintptr_t)buf, len);

    if (bad)
        (void)*bad;
}

void wi_job_touch(const struct weir_job *job)
{
    const struct weir_range *ranges = job->buf;
    const struct iovec *iov = job->buf;

    if (job->op == WEIR_OP_READ || job->op == WEIR_OP_WRITE) {
        touch_bytes(job->buf, job->len);
        return;
    }
    if (job->op == WEIR_OP_READ_MANY) {
        for (size_t i = 0; i < job->len; i++)
            touch_bytes(ranges[i].buf, ranges[i].len);
        return;
    }
    for (size_t i = 0; i < job->len; i++)
        touch_bytes(iov[i].iov_base, iov[i].iov_len);
}
#else
void wi_job_touch(const struct weir_job *job)
{
    (void)job;
}
#endif

static int reject(struct weir_job *job, int code, const char *text)
{
    const char *path = job->file && job->op != WEIR_OP_OPEN ? job->file->path : job->path;

    wi_error_set(job->error, code, job->op, path, "%s", text);
    if (job->error && (op_is_read(job->op) || op_is_write(job->op))) {
        job->error->offset = job->offset;
        job->error->length = job->len;
        job->error->has_offset = 1;
    }
    return code;
}

/* Where the bytes don't go through the block cache, a direct file asks for alignment. */
static int check_piece(struct weir_job *job, const void *buf, size_t len, bool cached)
{
    const struct weir_file *file = job->file;

    if (!buf && len > 0)
        return reject(job, -EINVAL, "the buffer is NULL");
    if (WI_UNLIKELY(cached))
        return 0;
    if (((uintptr_t)buf & (file->memory_align - 1)) != 0)
        return reject(job, -EINVAL,
                      "the file is direct and the buffer is not aligned; see memory_align of "
                      "weir_file_info");
    if ((len & (file->offset_align - 1)) != 0)
        return reject(job, -EINVAL,
                      "the file is direct and the length is not aligned; see offset_align of "
                      "weir_file_info");
    return 0;
}

static int check_offset(struct weir_job *job, uint64_t offset, uint64_t bytes, bool cached)
{
    if (WI_UNLIKELY(!cached && (offset & (job->file->offset_align - 1)) != 0))
        return reject(job, -EINVAL,
                      "the file is direct and the offset is not aligned; see offset_align of "
                      "weir_file_info");
    if (WI_UNLIKELY(bytes > INT64_MAX || offset > INT64_MAX - bytes))
        return reject(job, -EINVAL, "offset and length go beyond 2^63 bytes");
    return 0;
}

static int check_transfer(struct weir_job *job, uint32_t open_flags)
{
    bool cached = op_is_read(job->op) && (open_flags & WEIR_OPEN_CACHED);
    const struct iovec *iov = job->buf;
    uint64_t bytes = job->len;
    int rc = 0;

    if (op_is_read(job->op) && !(open_flags & WEIR_OPEN_READ))
        return reject(job, -EBADF, "the file is not open for reading");
    if (op_is_write(job->op) && !(open_flags & WEIR_OPEN_WRITE))
        return reject(job, -EBADF, "the file is not open for writing");
    if (WI_UNLIKELY(job->op == WEIR_OP_READV || job->op == WEIR_OP_WRITEV)) {
        if (!iov && job->len > 0)
            return reject(job, -EINVAL, "the iovec array is NULL");
        bytes = wi_iov_bytes(iov, job->len);
    }
    rc = check_offset(job, job->offset, bytes, cached);
    if (WI_UNLIKELY(rc < 0))
        return rc;
    if (WI_LIKELY(job->op == WEIR_OP_READ || job->op == WEIR_OP_WRITE)) {
        rc = check_piece(job, job->buf, job->len, cached);
    } else {
        for (size_t i = 0; i < job->len && rc == 0; i++)
            rc = check_piece(job, iov[i].iov_base, iov[i].iov_len, cached);
    }
    if (WI_LIKELY(rc == 0))
        wi_job_touch(job);
    return rc;
}

static int check_ranges(struct weir_job *job, uint32_t open_flags)
{
    bool cached = (open_flags & WEIR_OPEN_CACHED) != 0;
    const struct weir_range *ranges = job->buf;
    uint64_t bytes = 0;
    int rc = 0;

    if (!(open_flags & WEIR_OPEN_READ))
        return reject(job, -EBADF, "the file is not open for reading");
    if (!ranges && job->len > 0)
        return reject(job, -EINVAL, "the array of ranges is NULL");
    if (job->len > WI_RANGES_MAX)
        return reject(job, -E2BIG, "more than 2^20 ranges");
    for (size_t i = 0; i < job->len && rc == 0; i++) {
        bytes = wi_add_sat(bytes, ranges[i].len);
        rc = check_offset(job, ranges[i].offset, ranges[i].len, cached);
        if (rc == 0)
            rc = check_piece(job, ranges[i].buf, ranges[i].len, cached);
        if (rc < 0 && job->error) {
            job->error->offset = ranges[i].offset;
            job->error->length = ranges[i].len;
            job->error->has_offset = 1;
        }
    }
    if (rc == 0 && bytes > INT64_MAX)
        rc = reject(job, -EINVAL, "the ranges are more than 2^63 bytes together");
    if (rc == 0)
        wi_job_touch(job);
    return rc;
}

static int check_view(struct weir_job *job, uint32_t open_flags)
{
    if (!(open_flags & WEIR_OPEN_READ))
        return reject(job, -EBADF, "the file is not open for reading");
    if (!(open_flags & WEIR_OPEN_CACHED))
        return reject(job, -EINVAL, "the file was not opened with WEIR_OPEN_CACHED");
    if (!job->buf || job->len == 0)
        return reject(job, -EINVAL, "buf must point to a struct weir_view, and len not be 0");
    return check_offset(job, job->offset, job->len, true);
}

static int check_path(struct weir_job *job, const char *path)
{
    return path && path[0] ? 0 : reject(job, -EINVAL, "the path is missing");
}

int wi_job_check(struct weir_engine *engine, struct weir_job *job)
{
    uint32_t open_flags = 0;
    bool needs_file = false;

    if (WI_UNLIKELY(job->op == WEIR_OP_NONE || job->op >= WEIR_OPS ||
                    job->io_class >= WEIR_CLASSES))
        return reject(job, -EINVAL, "the job was not prepared");
    if (WI_UNLIKELY(tail_of(job)->state != JOB_IDLE))
        return reject(job, -EINVAL, "the job is submitted already");
    if (WI_LIKELY(job->file != NULL)) {
        open_flags = atomic_load_explicit(&job->file->open_flags, memory_order_relaxed);
        if (open_flags == 0)
            return reject(job, -EBADF, "the file is closed");
        if (job->file->engine != engine)
            return reject(job, -EINVAL, "the file belongs to another engine");
    }

    switch ((enum weir_op)job->op) {
    case WEIR_OP_READ:
    case WEIR_OP_WRITE:
    case WEIR_OP_READV:
    case WEIR_OP_WRITEV:
        if (WI_UNLIKELY(!job->file))
            return reject(job, -EINVAL, "the file is missing");
        return check_transfer(job, open_flags);
    case WEIR_OP_READ_MANY:
        if (!job->file)
            return reject(job, -EINVAL, "the file is missing");
        return check_ranges(job, open_flags);
    case WEIR_OP_VIEW:
        if (!job->file)
            return reject(job, -EINVAL, "the file is missing");
        return check_view(job, open_flags);
    case WEIR_OP_ADVISE:
        if (!job->file)
            return reject(job, -EINVAL, "the file is missing");
        if (job->mode > WEIR_ADVICE_ONCE)
            return reject(job, -EINVAL, "the advice is none of WEIR_ADVICE_*");
        return check_offset(job, job->offset, job->len, true);
    case WEIR_OP_TRUNCATE:
    case WEIR_OP_ALLOCATE:
        if (job->file && !(open_flags & WEIR_OPEN_WRITE))
            return reject(job, -EBADF, "the file is not open for writing");
        if (job->offset > INT64_MAX || job->len > INT64_MAX - job->offset)
            return reject(job, -EINVAL, "offset and length go beyond 2^63 bytes");
        needs_file = true;
        break;
    case WEIR_OP_FSYNC:
    case WEIR_OP_FDATASYNC:
    case WEIR_OP_CLOSE:
        needs_file = true;
        break;
    case WEIR_OP_LIST:
        if (!job->buf || job->len < 512)
            return reject(job, -EINVAL, "a listing needs a buffer of at least 512 bytes");
        needs_file = true;
        break;
    case WEIR_OP_STAT:
        if (!job->buf)
            return reject(job, -EINVAL, "buf must point to a struct weir_stat");
        needs_file = !job->path;
        break;
    case WEIR_OP_OPEN:
        if (!job->buf)
            return reject(job, -EINVAL, "buf must point to where the file goes");
        return check_path(job, job->path);
    case WEIR_OP_MKDIR:
    case WEIR_OP_UNLINK:
    case WEIR_OP_RMDIR:
        return check_path(job, job->path);
    case WEIR_OP_READLINK:
        if (!job->buf || job->len == 0)
            return reject(job, -EINVAL, "the buffer is missing");
        return check_path(job, job->path);
    case WEIR_OP_RENAME:
    case WEIR_OP_LINK:
    case WEIR_OP_SYMLINK:
        if (check_path(job, job->path) < 0)
            return -EINVAL;
        return check_path(job, job->path2);
    case WEIR_OP_CALL:
        if (!job->call || job->lane >= WEIR_LANES)
            return reject(job, -EINVAL, "the function is missing, or the lane is none");
        break;
    case WEIR_OP_NONE:
    case WEIR_OP_NOP:
    case WEIR_OP_CANCEL:
    case WEIR_OPS:
        break;
    }
    if (needs_file && !job->file)
        return reject(job, -EINVAL, "the file is missing");
    return 0;
}

int wi_job_check_queued(struct weir_engine *engine, struct weir_job *job)
{
    if (WI_UNLIKELY(!job->done))
        return reject(job, -EINVAL, "the job has no `done`");
    return wi_job_check(engine, job);
}
