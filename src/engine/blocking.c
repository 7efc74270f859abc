/* SPDX-License-Identifier: MIT */
/*
 * blocking.c - calls that do their work on the calling thread
 *
 * One system call where nothing goes wrong, no queue, no lock. The rules for short
 * transfers and retries are the queue's (retry.c); the back-off sleeps here. Large transfers
 * count against the limits at the device (gate.c) but never wait for them: the thread that
 * makes the call is its own limit.
 *
 * Contents     exact transfers; reads and writes; every other job; advice; the short forms
 * Not here     many ranges at once (read_many.c), reads through the block cache (cache_read.c)
 */
#include "engine_internal.h"

#include <fcntl.h>

#define IOV_CHUNK 1024
#define CHUNK_MAX (1u << 30)

struct transfer {
    struct weir_file *file;
    const struct iovec *iov;
    size_t iov_count;
    uint64_t offset;
    uint64_t total;
    uint64_t moved;
    uint32_t rwf;
    bool write;
};

void wi_trace_add_blocking(struct weir_engine *engine, struct weir_file *file, uint32_t op,
                           uint64_t begin_ns, uint64_t offset, uint64_t len, int64_t result)
{
    struct wi_trace_event event = {
        .file = file,
        .submit_ns = begin_ns,
        .start_ns = begin_ns,
        .end_ns = wi_os_now(engine->os),
        .offset = offset,
        .len = len,
        .result = result,
        .flags = WI_TRACE_BLOCKING,
        .op = (uint8_t)op,
    };

    wi_trace_add(engine, &event);
}

static int check_buffers(const struct weir_file *file, const struct iovec *iov, size_t count,
                         uint64_t offset, bool aligned)
{
    uintptr_t memory = 0;
    uint64_t bytes = offset;

    for (size_t i = 0; i < count; i++) {
        memory |= (uintptr_t)iov[i].iov_base;
        bytes |= iov[i].iov_len;
        if (!iov[i].iov_base && iov[i].iov_len > 0)
            return -EINVAL;
    }
    return aligned &&
                   ((memory & (file->memory_align - 1)) || (bytes & (file->offset_align - 1)))
               ? -EINVAL
               : 0;
}

/* ---- exact transfers --------------------------------------------------------------------- */

/* One system call for what comes next. */
static int64_t move_once(const struct transfer *t)
{
    const struct wi_os *os = t->file->engine->os;
    uint64_t skip = t->moved;
    uint64_t offset = t->offset + t->moved;
    struct iovec piece;
    size_t i = 0;

    while (i < t->iov_count && skip >= t->iov[i].iov_len)
        skip -= t->iov[i++].iov_len;
    if (i == t->iov_count)
        return 0;
    if (skip == 0 && i + 1 < t->iov_count) {
        uint32_t count = (uint32_t)wi_min_u64(t->iov_count - i, IOV_CHUNK);

        return t->write ? os->ops->pwritev2(os, t->file->fd, t->iov + i, count, offset, t->rwf)
                        : os->ops->preadv2(os, t->file->fd, t->iov + i, count, offset, t->rwf);
    }
    /* The rest of a piece that was cut alone; the next round goes on with whole pieces. */
    piece.iov_base = (char *)t->iov[i].iov_base + skip;
    piece.iov_len = wi_min_u64(t->iov[i].iov_len - skip, CHUNK_MAX);
    if (WI_UNLIKELY(t->rwf != 0))
        return t->write ? os->ops->pwritev2(os, t->file->fd, &piece, 1, offset, t->rwf)
                        : os->ops->preadv2(os, t->file->fd, &piece, 1, offset, t->rwf);
    return t->write ? os->ops->pwrite(os, t->file->fd, piece.iov_base, piece.iov_len, offset)
                    : os->ops->pread(os, t->file->fd, piece.iov_base, piece.iov_len, offset);
}

/* What to do about a system call's result. */
struct progress {
    uint32_t tries; /* of the current piece, after errors */
    uint32_t empty; /* writes in a row that moved nothing */
    uint64_t retries;
    uint64_t continued;
    uint64_t refused;
};

/* True if the transfer goes on, after a sleep of `delay_ns`; else it ends with `*ret_code`. */
static bool goes_on(struct transfer *t, struct progress *progress, int64_t result,
                    uint64_t *ret_delay_ns, int64_t *ret_code)
{
    struct retry_verdict verdict;

    *ret_delay_ns = 0;
    *ret_code = 0;
    if (result >= 0) {
        t->moved += (uint64_t)result;
        if (t->moved == t->total)
            return false;
        /* Only 0 is the end of the file; on a direct file also an end off a block boundary. */
        if (!t->write && (result == 0 || (t->moved & (t->file->offset_align - 1)) != 0))
            return false;
        progress->tries = 0;
        if (result > 0) {
            progress->empty = 0;
        } else if (progress->empty++ > 0) {
            *ret_code = -EIO; /* a write that moves nothing, twice */
            return false;
        }
        progress->continued++;
        return true;
    }
    if (t->rwf != 0 && result == -EOPNOTSUPP) {
        /* The kernel or the file system lacks the flag: never again with this file. */
        t->rwf = 0;
        atomic_store_explicit(&t->file->load_rwf, 0, memory_order_relaxed);
        return true;
    }
    verdict =
        wi_retry_verdict(t->write ? WEIR_OP_WRITE : WEIR_OP_READ, result, progress->tries);
    *ret_code = verdict.code;
    if (verdict.action == RETRY_NEVER)
        return false;
    if (verdict.action == RETRY_LATER && !wi_retry_spend(t->file->engine)) {
        progress->refused++;
        return false;
    }
    progress->tries++;
    progress->retries++;
    *ret_delay_ns = verdict.delay_ns;
    return true;
}

/* Everything after a first call that did not do it all, with that call's result. */
static __attribute__((noinline, cold)) int64_t move_rest(struct transfer *t, int64_t result)
{
    struct weir_engine *engine = t->file->engine;
    struct progress progress = { 0 };
    uint64_t delay_ns;
    uint64_t calls = 0;
    int64_t code;

    while (goes_on(t, &progress, result, &delay_ns, &code)) {
        if (delay_ns > 0)
            engine->os->ops->sleep_ns(engine->os, delay_ns);
        calls++;
        result = move_once(t);
    }
    if (calls > 0)
        wi_stats_more_calls(engine, calls, progress.retries, progress.continued);
    if (progress.refused > 0)
        atomic_fetch_add_explicit(&wi_stats_shard(engine)->retries_refused, progress.refused,
                                  memory_order_relaxed);
    return code;
}

static inline int64_t move_all(struct transfer *t)
{
    int64_t result = move_once(t);

    if (WI_UNLIKELY(result != (int64_t)t->total))
        return move_rest(t, result);
    t->moved = t->total;
    return 0;
}

int64_t wi_blocking_transfer(struct weir_file *file, bool write, const struct iovec *iov,
                             size_t iov_count, uint64_t offset, uint32_t rwf,
                             uint64_t *ret_moved)
{
    struct transfer t = { .file = file,
                          .iov = iov,
                          .iov_count = iov_count,
                          .offset = offset,
                          .total = wi_iov_bytes(iov, iov_count),
                          .rwf = rwf,
                          .write = write };
    int64_t code = 0;

    if (t.total > 0) {
        /* The blocking call behind this counts as one system call, and it is not this one. */
        wi_stats_more_calls(file->engine, 1, 0, 0);
        code = move_all(&t);
    }
    *ret_moved = t.moved;
    return code;
}

/* ---- reads and writes -------------------------------------------------------------------- */

/* Of a file that the block cache knows. */
static __attribute__((noinline)) int64_t move_cached(struct transfer *t)
{
    struct weir_file *file = t->file;
    struct wi_cache *cache = file->engine->cache;
    int64_t code;

    if (t->write) {
        wi_cache_write_begin(cache, file, t->offset, t->total);
        code = move_all(t);
        wi_cache_write_end(cache, file, t->offset, t->total, t->iov, t->iov_count,
                           code < 0 ? code : (int64_t)t->moved);
        return code;
    }
    if (!wi_file_reads_cached(file))
        return move_all(t);
    /* It makes as many system calls as it has blocks to load, and counts them. */
    atomic_fetch_sub_explicit(&wi_stats_shard(file->engine)->extra_calls, 1,
                              memory_order_relaxed);
    code = wi_cache_read(cache, file, t->iov, t->iov_count, t->offset, &t->moved);
    return code < 0 ? code : 0;
}

static int64_t run_transfer(struct transfer *t, struct weir_error *error)
{
    struct weir_file *file = t->file;
    struct weir_engine *engine = file->engine;
    uint32_t op = t->write ? WEIR_OP_WRITE : WEIR_OP_READ;
    uint32_t open_flags = atomic_load_explicit(&file->open_flags, memory_order_relaxed);
    bool aligned = t->write || !(open_flags & WEIR_OPEN_CACHED);
    uint64_t begin_ns = wi_trace_begin(engine);
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
    } else if (WI_UNLIKELY(check_buffers(file, t->iov, t->iov_count, t->offset, aligned) < 0)) {
        code = -EINVAL;
        text = "a buffer is NULL, or the file is direct and address, length or offset is not "
               "aligned; see weir_file_info";
    } else if (WI_UNLIKELY((code = wi_file_begin(file)) < 0)) {
        text = wi_file_pool_text(file, code);
    } else if (WI_LIKELY(t->total > 0)) {
        if (wi_stats_sample()) {
            start_ns = wi_os_now(engine->os);
            wi_retry_earn(engine, SAMPLED_CALLS);
        }
        wi_gate_blocking(&engine->gate, t->total, true);
        code = WI_UNLIKELY(file->cache_file != NULL) ? move_cached(t) : move_all(t);
        wi_gate_blocking(&engine->gate, t->total, false);
        if (t->write)
            wi_file_keep(file, WI_KEEP_UNSYNCED, true);
        wi_file_end(file);
    } else {
        wi_file_end(file);
    }
    wi_stats_blocking(engine, op, code, t->moved, start_ns);
    wi_trace_blocking(engine, file, op, begin_ns, t->offset, t->total,
                      code < 0 ? code : (int64_t)t->moved);
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
    uint64_t begin_ns = wi_trace_begin(engine);
    uint64_t start_ns = op_is_sync(job->op) ? wi_os_now(engine->os) : 0;
    int64_t result = wi_job_call(engine, job);
    const char *text = wi_file_pool_text(job->op == WEIR_OP_CLOSE ? NULL : job->file, result);

    wi_stats_blocking(engine, job->op, result, 0, start_ns);
    /* A file that was closed is gone, with its name: wi_file_close has filled the record. */
    if (result < 0 && job->op != WEIR_OP_CLOSE)
        wi_error_set(job->error, result, job->op,
                     job->path   ? job->path
                     : job->file ? job->file->path
                                 : NULL,
                     text ? "%s" : NULL, text);
    wi_trace_blocking(engine, wi_trace_file(job, result), job->op, begin_ns, job->offset,
                      job->len, result);
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
    else if (job->op == WEIR_OP_READ_MANY)
        result = wi_ranges_read(job->file, job->buf, job->len, &job->transferred, job->error);
    else if (job->op == WEIR_OP_VIEW)
        result = weir_view_get(job->file, job->offset, job->len, job->buf, job->error);
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

/* ---- advice ------------------------------------------------------------------------------ */

static const int kernel_advice[] = {
    [WEIR_ADVICE_NORMAL] = POSIX_FADV_NORMAL,
    [WEIR_ADVICE_SEQUENTIAL] = POSIX_FADV_SEQUENTIAL,
    [WEIR_ADVICE_RANDOM] = POSIX_FADV_RANDOM,
    [WEIR_ADVICE_WILLNEED] = POSIX_FADV_WILLNEED,
    [WEIR_ADVICE_DONTNEED] = POSIX_FADV_DONTNEED,
    [WEIR_ADVICE_ONCE] = POSIX_FADV_NOREUSE,
};

void wi_file_advise_again(struct weir_file *file, int fd)
{
    const struct wi_os *os = file->engine->os;
    uint32_t advice = atomic_load_explicit(&file->advice, memory_order_relaxed);

    /* The kernel knows nothing of a cached file's. */
    if (advice != WEIR_ADVICE_NORMAL && !wi_file_reads_cached(file))
        (void)os->ops->fadvise(os, fd, 0, 0, kernel_advice[advice]);
}

int wi_file_advise(struct weir_file *file, uint32_t advice, uint64_t offset, uint64_t len)
{
    const struct wi_os *os = file->engine->os;
    bool of_range = advice == WEIR_ADVICE_WILLNEED || advice == WEIR_ADVICE_DONTNEED;
    uint64_t end = len == 0 ? INT64_MAX : offset + len;
    int rc;

    if (!of_range)
        atomic_store_explicit(&file->advice, advice, memory_order_relaxed);
    if (wi_file_reads_cached(file) && advice != WEIR_ADVICE_DONTNEED) {
        if (advice != WEIR_ADVICE_WILLNEED)
            return 0;
        rc = wi_file_begin(file);
        if (rc < 0)
            return rc;
        wi_cache_fill(file->engine->cache, file, offset, end);
        wi_file_end(file);
        return 0;
    }
    if (wi_file_reads_cached(file))
        wi_cache_drop(file->engine->cache, file, offset, end - offset);
    if (!file->regular)
        return 0; /* the kernel has no advice for pipes */
    rc = wi_file_begin(file);
    if (rc < 0)
        return rc;
    rc = os->ops->fadvise(os, file->fd, of_range ? offset : 0, of_range ? len : 0,
                          kernel_advice[advice]);
    wi_file_end(file);
    return rc;
}

/* ---- the short forms prepare a job and do it --------------------------------------------- */

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

int64_t weir_file_read_many(struct weir_file *file, struct weir_range *ranges, size_t count,
                            struct weir_error *error)
{
    struct weir_job job;

    weir_job_prepare(&job, WEIR_OP_READ_MANY, file, NULL, NULL);
    job.buf = ranges;
    job.len = count;
    job.error = error;
    return weir_job_do(file->engine, &job);
}

int weir_file_advise(struct weir_file *file, uint32_t advice, uint64_t offset, uint64_t len,
                     struct weir_error *error)
{
    struct weir_job job;

    weir_job_prepare(&job, WEIR_OP_ADVISE, file, NULL, NULL);
    job.mode = advice;
    job.offset = offset;
    job.len = len;
    return do_now(&job, error);
}
