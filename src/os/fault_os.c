/* SPDX-License-Identifier: MIT */
/*
 * fault_os.c - the os table of the fault injector: every call asks the plan first
 *
 * Calls are held back on the calling thread. A close always closes, whatever it then says,
 * and an open that is done and said to have failed leaves no descriptor behind. copy_range
 * counts as a write, and is never corrupted. The clock and sleeping are not counted.
 */
#include "fault_internal.h"

#include <stdlib.h>

/* A call through the table, between begin_call and end_call. */
struct call {
    struct wi_fault_plan *plan;
    const struct wi_os *os; /* the inner one */
    struct verdict verdict;
};

static struct wi_fault_plan *plan_of(const struct wi_os *os)
{
    /* The plan made the table and knows that it is not const. */
    return (struct wi_fault_plan *)(uintptr_t)os;
}

static void hold_call(struct call *call)
{
    struct wi_fault_plan *plan = call->plan;
    uint64_t delay_ns = call->verdict.rule.delay_ns;

    if (delay_ns == 0)
        return;
    if (delay_ns != UINT64_MAX) {
        (void)call->os->ops->sleep_ns(call->os, delay_ns);
        return;
    }
    wi_mutex_lock(&plan->mu);
    while (!wi_fault_is_released(plan, &call->verdict))
        wi_cond_wait(&plan->changed, &plan->mu);
    wi_mutex_unlock(&plan->mu);
}

/* Returns whether the call is to be made. */
static bool begin_call(struct call *call, const struct wi_os *os, enum wi_fault_kind kind,
                       int fd, uint64_t offset, uint64_t len)
{
    call->plan = plan_of(os);
    call->os = call->plan->inner;
    wi_fault_judge(call->plan, kind, fd, offset, len, &call->verdict);
    hold_call(call);
    return wi_fault_is_to_do(&call->verdict);
}

static int64_t end_call(struct call *call, int64_t result)
{
    return wi_fault_conclude(call->plan, &call->verdict, result);
}

static int end_call_int(struct call *call, int result)
{
    return (int)end_call(call, result);
}

static uint64_t fault_now_ns(const struct wi_os *os)
{
    return wi_os_now(plan_of(os)->inner);
}

static int64_t fault_real_ns(const struct wi_os *os)
{
    const struct wi_os *inner = plan_of(os)->inner;

    return inner->ops->real_ns(inner);
}

static int fault_sleep_ns(const struct wi_os *os, uint64_t ns)
{
    const struct wi_os *inner = plan_of(os)->inner;

    return inner->ops->sleep_ns(inner, ns);
}

static int fault_random(const struct wi_os *os, void *buf, size_t len)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, -1, 0, len))
        rc = call.os->ops->random(call.os, buf, len);
    return end_call_int(&call, rc);
}

static int fault_openat(const struct wi_os *os, int dir, const char *path, int flags,
                        uint32_t mode)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OPEN, dir, 0, 0)) {
        rc = call.os->ops->openat(call.os, dir, path, flags, mode);
        /* Nobody will hear of this descriptor. */
        if (rc >= 0 && call.verdict.rule.error < 0)
            (void)call.os->ops->close(call.os, rc);
    }
    return end_call_int(&call, rc);
}

static int fault_close(const struct wi_os *os, int fd)
{
    struct call call;
    int rc;

    (void)begin_call(&call, os, WI_FAULT_CLOSE, fd, 0, 0);
    rc = call.os->ops->close(call.os, fd);
    return end_call_int(&call, rc);
}

static int fault_fcntl(const struct wi_os *os, int fd, int command, intptr_t arg)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, fd, 0, 0))
        rc = call.os->ops->fcntl(call.os, fd, command, arg);
    return end_call_int(&call, rc);
}

static int64_t fault_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                           uint64_t offset)
{
    struct iovec iov = { .iov_base = buf, .iov_len = len };
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_READ, fd, offset, len)) {
        rc = call.os->ops->pread(call.os, fd, buf,
                                 (size_t)wi_fault_clip_len(&call.verdict, len), offset);
        if (call.verdict.rule.corrupt)
            wi_fault_spoil(&iov, 1, rc);
    }
    return end_call(&call, rc);
}

static int64_t fault_pwrite(const struct wi_os *os, int fd, const void *buf, size_t len,
                            uint64_t offset)
{
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_WRITE, fd, offset, len)) {
        size_t clipped = (size_t)wi_fault_clip_len(&call.verdict, len);
        void *copy = NULL;

        if (call.verdict.rule.corrupt) {
            copy = wi_fault_spoilt_copy(&iov, 1, clipped);
            buf = copy;
        }
        rc = buf ? call.os->ops->pwrite(call.os, fd, buf, clipped, offset) : -ENOMEM;
        free(copy);
    }
    return end_call(&call, rc);
}

static int64_t fault_preadv2(const struct wi_os *os, int fd, const struct iovec *iov,
                             uint32_t count, uint64_t offset, uint32_t rwf)
{
    uint64_t len = wi_fault_sum(iov, count);
    struct iovec *clipped = NULL;
    struct call call;
    int64_t rc = 0;

    if (!begin_call(&call, os, WI_FAULT_READ, fd, offset, len))
        return end_call(&call, rc);
    if (wi_fault_clip_len(&call.verdict, len) < len) {
        clipped = wi_fault_clip(iov, count, wi_fault_clip_len(&call.verdict, len), &count);
        iov = clipped;
    }
    rc = iov ? call.os->ops->preadv2(call.os, fd, iov, count, offset, rwf) : -ENOMEM;
    if (call.verdict.rule.corrupt)
        wi_fault_spoil(iov, count, rc);
    free(clipped);
    return end_call(&call, rc);
}

static int64_t fault_pwritev2(const struct wi_os *os, int fd, const struct iovec *iov,
                              uint32_t count, uint64_t offset, uint32_t rwf)
{
    uint64_t len = wi_fault_sum(iov, count);
    struct iovec *clipped = NULL;
    struct iovec whole;
    void *copy = NULL;
    struct call call;
    int64_t rc = 0;

    if (!begin_call(&call, os, WI_FAULT_WRITE, fd, offset, len))
        return end_call(&call, rc);
    if (call.verdict.rule.corrupt) {
        whole.iov_len = (size_t)wi_fault_clip_len(&call.verdict, len);
        whole.iov_base = copy = wi_fault_spoilt_copy(iov, count, whole.iov_len);
        iov = copy ? &whole : NULL;
        count = 1;
    } else if (wi_fault_clip_len(&call.verdict, len) < len) {
        clipped = wi_fault_clip(iov, count, wi_fault_clip_len(&call.verdict, len), &count);
        iov = clipped;
    }
    rc = iov ? call.os->ops->pwritev2(call.os, fd, iov, count, offset, rwf) : -ENOMEM;
    free(clipped);
    free(copy);
    return end_call(&call, rc);
}

static int64_t fault_copy_range(const struct wi_os *os, int from, uint64_t from_offset, int to,
                                uint64_t to_offset, size_t len)
{
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_WRITE, to, to_offset, len))
        rc = call.os->ops->copy_range(call.os, from, from_offset, to, to_offset,
                                      (size_t)wi_fault_clip_len(&call.verdict, len));
    return end_call(&call, rc);
}

static int fault_fsync(const struct wi_os *os, int fd)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_SYNC, fd, 0, 0))
        rc = call.os->ops->fsync(call.os, fd);
    return end_call_int(&call, rc);
}

static int fault_fdatasync(const struct wi_os *os, int fd)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_SYNC, fd, 0, 0))
        rc = call.os->ops->fdatasync(call.os, fd);
    return end_call_int(&call, rc);
}

static int fault_ftruncate(const struct wi_os *os, int fd, uint64_t size)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_TRUNCATE, fd, size, 0))
        rc = call.os->ops->ftruncate(call.os, fd, size);
    return end_call_int(&call, rc);
}

static int fault_fallocate(const struct wi_os *os, int fd, int mode, uint64_t offset,
                           uint64_t len)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_ALLOCATE, fd, offset, len))
        rc = call.os->ops->fallocate(call.os, fd, mode, offset, len);
    return end_call_int(&call, rc);
}

static int fault_fadvise(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                         int advice)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, fd, offset, len))
        rc = call.os->ops->fadvise(call.os, fd, offset, len, advice);
    return end_call_int(&call, rc);
}

static int64_t fault_lseek(const struct wi_os *os, int fd, int64_t offset, int whence)
{
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, fd, (uint64_t)offset, 0))
        rc = call.os->ops->lseek(call.os, fd, offset, whence);
    return end_call(&call, rc);
}

static int fault_statx(const struct wi_os *os, int dir, const char *path, int flags,
                       uint32_t mask, struct statx *ret_stat)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_STAT, dir, 0, 0))
        rc = call.os->ops->statx(call.os, dir, path, flags, mask, ret_stat);
    return end_call_int(&call, rc);
}

static int fault_fstatfs(const struct wi_os *os, int fd, struct statfs *ret_stat)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_STAT, fd, 0, 0))
        rc = call.os->ops->fstatfs(call.os, fd, ret_stat);
    return end_call_int(&call, rc);
}

static int fault_fchmod(const struct wi_os *os, int fd, uint32_t mode)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, fd, 0, 0))
        rc = call.os->ops->fchmod(call.os, fd, mode);
    return end_call_int(&call, rc);
}

static int fault_fchmodat(const struct wi_os *os, int dir, const char *path, uint32_t mode)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, 0))
        rc = call.os->ops->fchmodat(call.os, dir, path, mode);
    return end_call_int(&call, rc);
}

static int fault_utimensat(const struct wi_os *os, int dir, const char *path,
                           const struct timespec times[2], int flags)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, 0))
        rc = call.os->ops->utimensat(call.os, dir, path, times, flags);
    return end_call_int(&call, rc);
}

static int fault_flock(const struct wi_os *os, int fd, int operation)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, fd, 0, 0))
        rc = call.os->ops->flock(call.os, fd, operation);
    return end_call_int(&call, rc);
}

static int fault_mkdirat(const struct wi_os *os, int dir, const char *path, uint32_t mode)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, 0))
        rc = call.os->ops->mkdirat(call.os, dir, path, mode);
    return end_call_int(&call, rc);
}

static int fault_unlinkat(const struct wi_os *os, int dir, const char *path, int flags)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, 0))
        rc = call.os->ops->unlinkat(call.os, dir, path, flags);
    return end_call_int(&call, rc);
}

static int fault_renameat2(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                           const char *to, uint32_t flags)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, from_dir, 0, 0))
        rc = call.os->ops->renameat2(call.os, from_dir, from, to_dir, to, flags);
    return end_call_int(&call, rc);
}

static int fault_linkat(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                        const char *to, int flags)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, from_dir, 0, 0))
        rc = call.os->ops->linkat(call.os, from_dir, from, to_dir, to, flags);
    return end_call_int(&call, rc);
}

static int fault_symlinkat(const struct wi_os *os, const char *target, int dir,
                           const char *path)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, 0))
        rc = call.os->ops->symlinkat(call.os, target, dir, path);
    return end_call_int(&call, rc);
}

static int64_t fault_readlinkat(const struct wi_os *os, int dir, const char *path, char *buf,
                                size_t size)
{
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, dir, 0, size))
        rc = call.os->ops->readlinkat(call.os, dir, path, buf, size);
    return end_call(&call, rc);
}

static int64_t fault_getdents(const struct wi_os *os, int fd, void *buf, size_t size)
{
    struct call call;
    int64_t rc = 0;

    if (begin_call(&call, os, WI_FAULT_NAMES, fd, 0, size))
        rc = call.os->ops->getdents(call.os, fd, buf, size);
    return end_call(&call, rc);
}

static int fault_cached(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                        uint64_t *ret_bytes)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, fd, offset, len))
        rc = wi_os_cached(call.os, fd, offset, len, ret_bytes);
    return end_call_int(&call, rc);
}

static int fault_clone(const struct wi_os *os, int from, int to)
{
    struct call call;
    int rc = 0;

    if (begin_call(&call, os, WI_FAULT_OTHER, to, 0, 0))
        rc = wi_os_clone(call.os, from, to);
    return end_call_int(&call, rc);
}

const struct wi_os_ops wi_fault_os_ops = {
    .name = "fault",
    .now_ns = fault_now_ns,
    .real_ns = fault_real_ns,
    .sleep_ns = fault_sleep_ns,
    .random = fault_random,
    .openat = fault_openat,
    .close = fault_close,
    .fcntl = fault_fcntl,
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .preadv2 = fault_preadv2,
    .pwritev2 = fault_pwritev2,
    .copy_range = fault_copy_range,
    .fsync = fault_fsync,
    .fdatasync = fault_fdatasync,
    .ftruncate = fault_ftruncate,
    .fallocate = fault_fallocate,
    .fadvise = fault_fadvise,
    .lseek = fault_lseek,
    .statx = fault_statx,
    .fstatfs = fault_fstatfs,
    .fchmod = fault_fchmod,
    .fchmodat = fault_fchmodat,
    .utimensat = fault_utimensat,
    .flock = fault_flock,
    .mkdirat = fault_mkdirat,
    .unlinkat = fault_unlinkat,
    .renameat2 = fault_renameat2,
    .linkat = fault_linkat,
    .symlinkat = fault_symlinkat,
    .readlinkat = fault_readlinkat,
    .getdents = fault_getdents,
    .cached = fault_cached,
    .clone = fault_clone,
};
