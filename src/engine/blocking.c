/* SPDX-License-Identifier: MIT */
/*
 * blocking.c - calls that do their work on the calling thread
 *
 * One system call where nothing goes wrong, no queue, no lock. The rules for short
 * transfers and retries are the queue's (retry.c); the back-off sleeps here.
 */
#include "engine_internal.h"

#define IOV_CHUNK 1024
#define CHUNK_MAX (1u << 30)

struct transfer {
    struct weir_file *file;
    const struct iovec *iov;
    size_t iov_count;
    uint64_t offset;
    uint64_t total;
    uint64_t moved;
    uint64_t extra_calls;
    uint64_t retries;
    uint64_t continued;
    bool write;
};

static int check_aligned(const struct weir_file *file, const struct iovec *iov, size_t count,
                         uint64_t offset)
{
    uintptr_t memory = 0;
    uint64_t bytes = offset;

    for (size_t i = 0; i < count; i++) {
        memory |= (uintptr_t)iov[i].iov_base;
        bytes |= iov[i].iov_len;
        if (!iov[i].iov_base && iov[i].iov_len > 0)
            return -EINVAL;
    }
    return (memory & (file->memory_align - 1)) || (bytes & (file->offset_align - 1)) ? -EINVAL
                                                                                     : 0;
}

/* One system call for what comes next. */
static int64_t move_once(const struct transfer *t)
{
    const struct wi_os *os = t->file->engine->os;
    uint64_t skip = t->moved;
    uint64_t offset = t->offset + t->moved;
    size_t i = 0;

    while (i < t->iov_count && skip >= t->iov[i].iov_len)
        skip -= t->iov[i++].iov_len;
    if (i == t->iov_count)
        return 0;
    if (skip == 0 && i + 1 < t->iov_count) {
        uint32_t count = (uint32_t)wi_min_u64(t->iov_count - i, IOV_CHUNK);

        return t->write ? os->ops->pwritev2(os, t->file->fd, t->iov + i, count, offset, 0)
                        : os->ops->preadv2(os, t->file->fd, t->iov + i, count, offset, 0);
    }
    /* The rest of a piece that was cut alone; the next round goes on with whole pieces. */
    {
        char *from = (char *)t->iov[i].iov_base + skip;
        size_t len = wi_min_u64(t->iov[i].iov_len - skip, CHUNK_MAX);

        return t->write ? os->ops->pwrite(os, t->file->fd, from, len, offset)
                        : os->ops->pread(os, t->file->fd, from, len, offset);
    }
}

/* Everything after a first call that did not do it all, with that call's result. */
static __attribute__((noinline, cold)) int64_t move_rest(struct transfer *t, int64_t result)
{
    const struct wi_os *os = t->file->engine->os;
    uint32_t op = t->write ? WEIR_OP_WRITE : WEIR_OP_READ;
    uint32_t tries = 0;
    uint32_t empty = 0;

    for (;;) {
        if (result > 0) {
            t->moved += (uint64_t)result;
            tries = 0;
            if (t->moved == t->total)
                return 0;
            /* A direct read that ends off a block boundary has met the end of the file. */
            if (!t->write && (t->moved & (t->file->offset_align - 1)) != 0)
                return 0;
            t->continued++;
        } else if (result == 0) {
            if (!t->write)
                return 0;
            if (empty++ > 0)
                return -EIO;
        } else {
            struct retry_verdict verdict = wi_retry_verdict(op, result, tries++);

            if (verdict.action == RETRY_NEVER)
                return verdict.code;
            t->retries++;
            if (verdict.action == RETRY_LATER)
                os->ops->sleep_ns(os, verdict.delay_ns);
        }
        t->extra_calls++;
        result = move_once(t);
    }
}

static int64_t run_transfer(struct transfer *t, struct weir_error *error)
{
    struct weir_file *file = t->file;
    struct weir_engine *engine = file->engine;
    uint32_t op = t->write ? WEIR_OP_WRITE : WEIR_OP_READ;
    uint32_t open_flags = atomic_load_explicit(&file->open_flags, memory_order_relaxed);
    uint64_t start_ns = 0;
    const char *text = NULL;
    int64_t code = 0;

    if (WI_UNLIKELY(!(open_flags & (t->write ? WEIR_OPEN_WRITE : WEIR_OPEN_READ)))) {
        code = -EBADF;
        text = open_flags == 0 ? "the file is closed" : "the file is not open for this";
    } else if (t->write && WI_UNLIKELY(wi_file_sync_error(file) < 0)) {
        code = wi_file_sync_error(file);
        text = "an earlier sync of this file failed, so nothing more is written to it";
    } else if (WI_UNLIKELY(t->total > INT64_MAX || t->offset > INT64_MAX - t->total)) {
        code = -EINVAL;
        text = "offset and length go beyond 2^63 bytes";
    } else if (WI_UNLIKELY(check_aligned(file, t->iov, t->iov_count, t->offset) < 0)) {
        code = -EINVAL;
        text = "a buffer is NULL, or the file is direct and address, length or offset is not "
               "aligned; see weir_file_info";
    }

    if (WI_LIKELY(code == 0 && t->total > 0)) {
        int64_t result;

        if (wi_stats_sample())
            start_ns = wi_os_now(engine->os);
        result = move_once(t);
        if (WI_LIKELY(result == (int64_t)t->total))
            t->moved = t->total;
        else
            code = move_rest(t, result);
    }
    if (WI_UNLIKELY(t->extra_calls > 0))
        wi_stats_more_calls(engine, t->extra_calls, t->retries, t->continued);
    wi_stats_blocking(engine, op, code, t->moved, start_ns);
    if (WI_LIKELY(code == 0))
        return (int64_t)t->moved;

    wi_error_set(error, code, op, file->path, text ? "%s" : NULL, text);
    if (error) {
        error->offset = t->offset + t->moved;
        error->length = t->total;
        error->has_offset = 1;
    }
    return code;
}

int64_t weir_file_read(struct weir_file *file, void *buf, size_t len, uint64_t offset)
{
    struct iovec piece = { buf, len };
    struct transfer t = {
        .file = file, .iov = &piece, .iov_count = 1, .offset = offset, .total = len
    };

    return run_transfer(&t, NULL);
}

int64_t weir_file_write(struct weir_file *file, const void *buf, size_t len, uint64_t offset)
{
    struct iovec piece = { .iov_len = len };
    struct transfer t = { .file = file,
                          .iov = &piece,
                          .iov_count = 1,
                          .offset = offset,
                          .total = len,
                          .write = true };

    memcpy(&piece.iov_base, &buf, sizeof(buf));
    return run_transfer(&t, NULL);
}

int64_t weir_file_transfer(struct weir_file *file, int write, const struct iovec *iov,
                           size_t iov_count, uint64_t offset, uint64_t *ret_transferred,
                           struct weir_error *error)
{
    struct transfer t = { .file = file,
                          .iov = iov,
                          .iov_count = iov_count,
                          .offset = offset,
                          .total = wi_iov_bytes(iov, iov_count),
                          .write = write != 0 };
    int64_t rc = run_transfer(&t, error);

    if (ret_transferred)
        *ret_transferred = t.moved;
    return rc;
}

static int64_t do_transfer(struct weir_job *job)
{
    bool is_vector = job->op == WEIR_OP_READV || job->op == WEIR_OP_WRITEV;
    struct iovec piece = { job->buf, job->len };
    struct transfer t = { .file = job->file,
                          .iov = is_vector ? job->buf : &piece,
                          .iov_count = is_vector ? job->len : 1,
                          .offset = job->offset,
                          .write = op_is_write(job->op) };
    int64_t result;

    t.total = wi_iov_bytes(t.iov, t.iov_count);
    result = run_transfer(&t, job->error);
    job->transferred = t.moved;
    return result;
}

static int64_t do_call(struct weir_engine *engine, struct weir_job *job)
{
    uint64_t start_ns = op_is_sync(job->op) ? wi_os_now(engine->os) : 0;
    int64_t result = wi_job_call(engine, job);

    wi_stats_blocking(engine, job->op, result, 0, start_ns);
    /* A file that was closed is gone, with its name: wi_file_close has filled the record. */
    if (result < 0 && job->op != WEIR_OP_CLOSE)
        wi_error_set(job->error, result, job->op,
                     job->path   ? job->path
                     : job->file ? job->file->path
                                 : NULL,
                     NULL);
    return result;
}

int64_t weir_job_do(struct weir_engine *engine, struct weir_job *job)
{
    int64_t result = wi_job_check(engine, job);

    if (result < 0)
        return result;
    job->transferred = 0;
    if (op_is_read(job->op) || op_is_write(job->op))
        result = do_transfer(job);
    else if (job->op == WEIR_OP_CANCEL)
        result = wi_error_set(job->error, -EINVAL, job->op, NULL,
                              "cancelling is what a queue does; there is none here");
    else if (job->op == WEIR_OP_NOP)
        result = job->timeout_ns ? engine->os->ops->sleep_ns(engine->os, job->timeout_ns) : 0;
    else
        result = do_call(engine, job);
    job->result = result;
    return result;
}

/* The short forms prepare a job and do it. */
static int do_now(struct weir_job *job, struct weir_error *error)
{
    job->error = error;
    return (int)weir_job_do(job->file->engine, job);
}

int weir_file_sync(struct weir_file *file, uint32_t how, struct weir_error *error)
{
    struct weir_job job;

    weir_job_sync(&job, file, how, NULL, NULL);
    return do_now(&job, error);
}

int weir_file_stat(struct weir_file *file, struct weir_stat *ret_stat, struct weir_error *error)
{
    struct weir_job job;

    weir_job_prepare(&job, WEIR_OP_STAT, file, NULL, NULL);
    job.buf = ret_stat;
    return do_now(&job, error);
}

int weir_file_truncate(struct weir_file *file, uint64_t size_bytes, struct weir_error *error)
{
    struct weir_job job;

    weir_job_prepare(&job, WEIR_OP_TRUNCATE, file, NULL, NULL);
    job.offset = size_bytes;
    return do_now(&job, error);
}

int weir_file_allocate(struct weir_file *file, uint64_t offset, uint64_t len, int keep_size,
                       struct weir_error *error)
{
    struct weir_job job;

    weir_job_prepare(&job, WEIR_OP_ALLOCATE, file, NULL, NULL);
    job.offset = offset;
    job.len = len;
    job.flags = keep_size ? WEIR_JOB_KEEP_SIZE : 0;
    return do_now(&job, error);
}
