/* SPDX-License-Identifier: MIT */
/*
 * fault.c - the recorder and fault injector; see fault.h
 *
 * Contents     the plan: rules, verdicts, records; clipping and spoiling; the table; the
 *              backend
 * Idea         each operation asks the plan once, when it starts, what is to become of it.
 *              The verdict is a copy, so that a rule may be cleared while its operations are
 *              still held back.
 * Rules        a rule sees the operations of its kind that no rule before it acted on; so
 *              "EINTR once" followed by "EAGAIN once" gives one of each, in that order.
 * Backend      reads and writes go to the inner backend as private operations, because their
 *              length, memory or result may differ from what the caller sees. WI_OP_CALL goes
 *              through as it is and is not counted: what it does, it does through the wrapped
 *              table. An operation held back has not been given to the inner backend yet.
 * Table        calls are held back on the calling thread. A close always closes.
 *              copy_range counts as a write; it is never corrupted.
 */
#include "fault.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/list.h"
#include "base/lock.h"

#define COPY_ALIGN 4096 /* private copies must do for direct I/O too */

struct rule {
    struct wi_list node;
    struct wi_fault_rule rule;
    uint64_t seen;
    uint64_t acted;
};

struct wi_fault_plan {
    struct wi_os os; /* the wrapped table; first, so that the table finds its plan */
    /* Set at creation. */
    const struct wi_os *inner;

    struct wi_mutex mu;
    struct wi_cond changed; /* with every release */
    /* Guarded by mu. */
    struct wi_list rules;
    struct wi_list backends;
    uint64_t seen[WI_FAULT_KINDS];
    uint64_t acted;
    uint64_t order;
    uint64_t chance; /* for the order of completions; 0: as they come */
    struct wi_fault_record *records;
    size_t records_room;
    uint64_t records_count; /* ever; the newest are kept */

    /* Atomic: how often wi_fault_release was called; release/acquire. */
    _Atomic uint64_t releases;
};

/* What is to become of one operation. */
struct verdict {
    struct wi_fault_record record; /* `result` filled at the end */
    struct wi_fault_rule rule;     /* all zero: nothing */
    uint64_t releases;             /* when it started */
};

/* ---- the plan ---------------------------------------------------------------------------- */

static const struct wi_os_ops fault_os_ops;

int wi_fault_create(const struct wi_os *os, struct wi_fault_plan **ret_plan)
{
    struct wi_fault_plan *plan = calloc(1, sizeof(*plan));

    if (!plan)
        return -ENOMEM;
    plan->os.ops = &fault_os_ops;
    plan->inner = os;
    wi_mutex_init(&plan->mu, WI_RANK_FAULT);
    wi_cond_init(&plan->changed);
    wi_list_init(&plan->rules);
    wi_list_init(&plan->backends);
    *ret_plan = plan;
    return 0;
}

void wi_fault_clear(struct wi_fault_plan *plan)
{
    struct wi_list *node;

    wi_mutex_lock(&plan->mu);
    while ((node = wi_list_pop_front(&plan->rules)) != NULL)
        free(WI_CONTAINER_OF(node, struct rule, node));
    wi_mutex_unlock(&plan->mu);
}

void wi_fault_destroy(struct wi_fault_plan *plan)
{
    if (!plan)
        return;
    WEIR_ASSERT(wi_list_empty(&plan->backends));
    wi_fault_clear(plan);
    free(plan->records);
    wi_cond_fini(&plan->changed);
    wi_mutex_fini(&plan->mu);
    free(plan);
}

const struct wi_os *wi_fault_os(struct wi_fault_plan *plan)
{
    return &plan->os;
}

int wi_fault_add(struct wi_fault_plan *plan, const struct wi_fault_rule *rule)
{
    struct rule *added = calloc(1, sizeof(*added));

    if (!added)
        return -ENOMEM;
    added->rule = *rule;
    wi_mutex_lock(&plan->mu);
    wi_list_push_back(&plan->rules, &added->node);
    wi_mutex_unlock(&plan->mu);
    return 0;
}

void wi_fault_reorder(struct wi_fault_plan *plan, uint64_t seed)
{
    wi_mutex_lock(&plan->mu);
    plan->chance = seed;
    wi_mutex_unlock(&plan->mu);
}

uint64_t wi_fault_seen(struct wi_fault_plan *plan, enum wi_fault_kind kind)
{
    uint64_t seen;

    wi_mutex_lock(&plan->mu);
    seen = plan->seen[kind];
    wi_mutex_unlock(&plan->mu);
    return seen;
}

uint64_t wi_fault_acted(struct wi_fault_plan *plan)
{
    uint64_t acted;

    wi_mutex_lock(&plan->mu);
    acted = plan->acted;
    wi_mutex_unlock(&plan->mu);
    return acted;
}

int wi_fault_record(struct wi_fault_plan *plan, size_t capacity)
{
    struct wi_fault_record *records = NULL;
    struct wi_fault_record *old;

    if (capacity > 0) {
        records = calloc(capacity, sizeof(*records));
        if (!records)
            return -ENOMEM;
    }
    wi_mutex_lock(&plan->mu);
    old = plan->records;
    plan->records = records;
    plan->records_room = capacity;
    plan->records_count = 0;
    wi_mutex_unlock(&plan->mu);
    free(old);
    return 0;
}

size_t wi_fault_records(struct wi_fault_plan *plan, struct wi_fault_record *list, size_t max)
{
    size_t kept;
    size_t count;

    wi_mutex_lock(&plan->mu);
    kept = (size_t)wi_min_u64(plan->records_count, plan->records_room);
    count = kept < max ? kept : max;
    for (size_t i = 0; i < count; i++)
        list[i] = plan->records[(plan->records_count - kept + i) % plan->records_room];
    wi_mutex_unlock(&plan->mu);
    return count;
}

/* An operation starts: what is to become of it? */
static void judge(struct wi_fault_plan *plan, enum wi_fault_kind kind, int fd, uint64_t offset,
                  uint64_t len, struct verdict *ret_verdict)
{
    struct wi_list *node;

    *ret_verdict = (struct verdict){
        .record = { .kind = kind, .fd = fd, .offset = offset, .len = len },
        .releases = atomic_load_explicit(&plan->releases, memory_order_acquire),
    };
    wi_mutex_lock(&plan->mu);
    plan->seen[kind]++;
    ret_verdict->record.order = plan->order++;
    list_for_each(node, &plan->rules) {
        struct rule *rule = WI_CONTAINER_OF(node, struct rule, node);

        if (rule->rule.kind != kind || ++rule->seen < rule->rule.first ||
            (rule->rule.count > 0 && rule->acted >= rule->rule.count))
            continue;
        rule->acted++;
        plan->acted++;
        ret_verdict->rule = rule->rule;
        break;
    }
    wi_mutex_unlock(&plan->mu);
}

/* It ends. */
static int64_t conclude(struct wi_fault_plan *plan, struct verdict *verdict, int64_t result)
{
    if (verdict->rule.error < 0)
        result = verdict->rule.error;
    verdict->record.result = result;
    wi_mutex_lock(&plan->mu);
    if (plan->records_room > 0)
        plan->records[plan->records_count++ % plan->records_room] = verdict->record;
    wi_mutex_unlock(&plan->mu);
    return result;
}

/* Is the operation to be done at all? */
static bool is_to_do(const struct verdict *verdict)
{
    return verdict->rule.error >= 0 || verdict->rule.applied;
}

static bool is_released(struct wi_fault_plan *plan, const struct verdict *verdict)
{
    return atomic_load_explicit(&plan->releases, memory_order_acquire) != verdict->releases;
}

/* ---- clipping and spoiling --------------------------------------------------------------- */

static uint64_t sum_iovecs(const struct iovec *iov, uint32_t count)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* The first `limit` bytes of `iov`. Given to the caller: free it. NULL without memory. */
static struct iovec *clip_iovecs(const struct iovec *iov, uint32_t count, uint64_t limit,
                                 uint32_t *ret_count)
{
    struct iovec *clipped = calloc(count > 0 ? count : 1, sizeof(*clipped));
    uint32_t used = 0;

    if (!clipped)
        return NULL;
    for (; used < count && limit > 0; used++) {
        clipped[used] = iov[used];
        if (clipped[used].iov_len > limit)
            clipped[used].iov_len = (size_t)limit;
        limit -= clipped[used].iov_len;
    }
    *ret_count = used;
    return clipped;
}

static void flip_bit(unsigned char *byte)
{
    *byte ^= 0x10;
}

/* One bit in the middle of what came. */
static void spoil_read(const struct iovec *iov, uint32_t count, int64_t result)
{
    size_t at = (size_t)result / 2;

    if (result <= 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        if (at < iov[i].iov_len) {
            flip_bit((unsigned char *)iov[i].iov_base + at);
            return;
        }
        at -= iov[i].iov_len;
    }
}

/* What the caller wants to write, spoilt, in memory of our own: free it. NULL without. */
static void *spoilt_copy(const struct iovec *iov, uint32_t count, uint64_t len)
{
    unsigned char *copy = NULL;
    unsigned char *to;

    if (posix_memalign((void **)&copy, COPY_ALIGN, len > 0 ? (size_t)len : 1) != 0)
        return NULL;
    to = copy;
    for (uint32_t i = 0; i < count && len > 0; i++) {
        size_t part = (size_t)wi_min_u64(iov[i].iov_len, len);

        memcpy(to, iov[i].iov_base, part);
        to += part;
        len -= part;
    }
    if (to > copy)
        flip_bit(copy + (size_t)(to - copy) / 2);
    return copy;
}

static uint64_t clip_len(const struct verdict *verdict, uint64_t len)
{
    if (verdict->rule.shorten_to > 0 && len > verdict->rule.shorten_to)
        return verdict->rule.shorten_to;
    return len;
}

/* ---- the table --------------------------------------------------------------------------- */

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
    while (!is_released(plan, &call->verdict))
        wi_cond_wait(&plan->changed, &plan->mu);
    wi_mutex_unlock(&plan->mu);
}

/* Returns whether the call is to be made. */
static bool begin_call(struct call *call, const struct wi_os *os, enum wi_fault_kind kind,
                       int fd, uint64_t offset, uint64_t len)
{
    call->plan = plan_of(os);
    call->os = call->plan->inner;
    judge(call->plan, kind, fd, offset, len, &call->verdict);
    hold_call(call);
    return is_to_do(&call->verdict);
}

static int64_t end_call(struct call *call, int64_t result)
{
    return conclude(call->plan, &call->verdict, result);
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
        rc =
            call.os->ops->pread(call.os, fd, buf, (size_t)clip_len(&call.verdict, len), offset);
        if (call.verdict.rule.corrupt)
            spoil_read(&iov, 1, rc);
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
        size_t clipped = (size_t)clip_len(&call.verdict, len);
        void *copy = NULL;

        if (call.verdict.rule.corrupt) {
            copy = spoilt_copy(&iov, 1, clipped);
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
    uint64_t len = sum_iovecs(iov, count);
    struct iovec *clipped = NULL;
    struct call call;
    int64_t rc = 0;

    if (!begin_call(&call, os, WI_FAULT_READ, fd, offset, len))
        return end_call(&call, rc);
    if (clip_len(&call.verdict, len) < len) {
        clipped = clip_iovecs(iov, count, clip_len(&call.verdict, len), &count);
        iov = clipped;
    }
    rc = iov ? call.os->ops->preadv2(call.os, fd, iov, count, offset, rwf) : -ENOMEM;
    if (call.verdict.rule.corrupt)
        spoil_read(iov, count, rc);
    free(clipped);
    return end_call(&call, rc);
}

static int64_t fault_pwritev2(const struct wi_os *os, int fd, const struct iovec *iov,
                              uint32_t count, uint64_t offset, uint32_t rwf)
{
    uint64_t len = sum_iovecs(iov, count);
    struct iovec *clipped = NULL;
    struct iovec whole;
    void *copy = NULL;
    struct call call;
    int64_t rc = 0;

    if (!begin_call(&call, os, WI_FAULT_WRITE, fd, offset, len))
        return end_call(&call, rc);
    if (call.verdict.rule.corrupt) {
        whole.iov_len = (size_t)clip_len(&call.verdict, len);
        whole.iov_base = copy = spoilt_copy(iov, count, whole.iov_len);
        iov = copy ? &whole : NULL;
        count = 1;
    } else if (clip_len(&call.verdict, len) < len) {
        clipped = clip_iovecs(iov, count, clip_len(&call.verdict, len), &count);
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
                                      (size_t)clip_len(&call.verdict, len));
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

static const struct wi_os_ops fault_os_ops = {
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

/* ---- the backend ------------------------------------------------------------------------- */

/*
 * The states of an operation, and the only functions that move it between them:
 *
 *   HELD  -> INNER   release_due     its time has come
 *   HELD  -> READY   release_due, fault_cancel
 *   INNER -> READY   take_inner
 *   READY -> (free)  fault_turn, which returns the caller's operation
 *
 * A new one is HELD with a due time in the past if nothing holds it back, and moves on at once.
 */
enum held_state {
    HELD,
    INNER,
    READY
};

struct held_op {
    struct wi_op op;      /* private: given to the inner backend */
    struct wi_op *caller; /* its task.next points at op.task, for cancel */
    struct wi_list node;  /* HELD: on `held`, in order of start */
    struct verdict verdict;
    enum held_state state;
    uint64_t due_ns;         /* UINT64_MAX: when released */
    void *memory;            /* a clipped list or a spoilt copy; free it */
    struct iovec single;     /* the caller's buffer, if it is one */
    const struct iovec *iov; /* the caller's buffers */
    uint32_t iov_count;
};

struct fault_backend {
    struct wi_backend backend;
    struct wi_backend_ops ops; /* of this instance: set_file only where the inner one has it */
    /* Set at wrap. */
    struct wi_fault_plan *plan;
    struct wi_backend *inner;

    /* Owner thread only. */
    struct wi_list held;
    struct wi_list spare; /* held_ops to use again */
    uint32_t inner_started;
    struct wi_op *done_first; /* the caller's */
    struct wi_op *done_last;
    uint32_t done_count;
    struct wi_op **shuffled; /* room to shuffle in */
    size_t shuffled_room;
    int epoll_fd; /* -1 until `fd` is called */
    int timer_fd;
    uint64_t timer_ns; /* what timer_fd is set to; UINT64_MAX: not */

    struct wi_list node; /* guarded by plan->mu */
};

static struct fault_backend *fault_of(struct wi_backend *backend)
{
    return WI_CONTAINER_OF(backend, struct fault_backend, backend);
}

static uint64_t fault_now(struct fault_backend *fault)
{
    return wi_os_now(fault->plan->inner);
}

static void append_done(struct fault_backend *fault, struct wi_op *op)
{
    op->task.next = NULL;
    if (fault->done_first)
        fault->done_last->task.next = &op->task;
    else
        fault->done_first = op;
    fault->done_last = op;
    fault->done_count++;
}

/* The operation is over: what the caller sees, and the memory goes back. */
static void finish(struct fault_backend *fault, struct held_op *held, int64_t result)
{
    struct wi_op *caller = held->caller;

    held->state = READY;
    caller->result = conclude(fault->plan, &held->verdict, result);
    caller->busy = 0;
    free(held->memory);
    held->memory = NULL;
    wi_list_push_front(&fault->spare, &held->node);
    append_done(fault, caller);
}

/* Prepare the private operation as the verdict says. Returns 0 or -ENOMEM. */
static int shape(struct held_op *held)
{
    const struct wi_fault_rule *rule = &held->verdict.rule;
    struct wi_op *op = &held->op;
    uint64_t len = clip_len(&held->verdict, held->verdict.record.len);
    bool is_vector = op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV;
    bool is_write = op->kind == WI_OP_WRITE || op->kind == WI_OP_WRITEV;

    if (rule->corrupt && is_write) {
        held->memory = spoilt_copy(held->iov, held->iov_count, len);
        op->kind = WI_OP_WRITE;
        op->flags &= (uint8_t)~WI_OP_FIXED_BUFFER;
        op->addr = (uintptr_t)held->memory;
        op->len = (uint32_t)len;
        return held->memory ? 0 : -ENOMEM;
    }
    if (len == held->verdict.record.len)
        return 0;
    if (is_vector) {
        held->memory = clip_iovecs(held->iov, held->iov_count, len, &op->len);
        op->addr = (uintptr_t)held->memory;
        return held->memory ? 0 : -ENOMEM;
    }
    op->len = (uint32_t)len;
    return 0;
}

/* Returns false if the inner backend has no room now. */
static bool pass_on(struct fault_backend *fault, struct held_op *held)
{
    int rc = 0;

    if (!is_to_do(&held->verdict)) {
        finish(fault, held, 0);
        return true;
    }
    rc = held->memory ? 0 : shape(held);
    if (rc == 0)
        rc = fault->inner->ops->start(fault->inner, &held->op);
    if (rc == -EAGAIN)
        return false;
    if (rc < 0) {
        finish(fault, held, rc);
        return true;
    }
    held->state = INNER;
    fault->inner_started++;
    return true;
}

static bool is_due(struct fault_backend *fault, const struct held_op *held, uint64_t now_ns)
{
    if (held->due_ns == UINT64_MAX)
        return is_released(fault->plan, &held->verdict);
    return held->due_ns <= now_ns;
}

static void release_due(struct fault_backend *fault)
{
    struct wi_list *node = fault->held.next;
    uint64_t now_ns;

    if (node == &fault->held)
        return;
    now_ns = fault_now(fault);
    while (node != &fault->held) {
        struct held_op *held = WI_CONTAINER_OF(node, struct held_op, node);

        node = node->next;
        if (!is_due(fault, held, now_ns))
            continue;
        wi_list_remove(&held->node);
        if (!pass_on(fault, held)) {
            wi_list_insert_before(&held->node, node);
            return;
        }
    }
}

static uint64_t next_due(struct fault_backend *fault)
{
    uint64_t due_ns = UINT64_MAX;
    struct wi_list *node;

    list_for_each(node, &fault->held) {
        struct held_op *held = WI_CONTAINER_OF(node, struct held_op, node);

        due_ns = wi_min_u64(due_ns, held->due_ns == UINT64_MAX &&
                                            is_released(fault->plan, &held->verdict)
                                        ? 0
                                        : held->due_ns);
    }
    return due_ns;
}

static struct held_op *take_spare(struct fault_backend *fault)
{
    struct wi_list *node = wi_list_pop_front(&fault->spare);

    return node ? WI_CONTAINER_OF(node, struct held_op, node) : malloc(sizeof(struct held_op));
}

static int fault_start(struct wi_backend *backend, struct wi_op *op)
{
    struct fault_backend *fault = fault_of(backend);
    bool is_read = op->kind == WI_OP_READ || op->kind == WI_OP_READV;
    bool is_vector = op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV;
    struct held_op *held;
    int rc;

    if (op->kind == WI_OP_CALL) {
        rc = fault->inner->ops->start(fault->inner, op);
        fault->inner_started += rc == 0;
        return rc;
    }
    held = take_spare(fault);
    if (!held)
        return -EAGAIN;
    *held = (struct held_op){ .op = *op, .caller = op, .state = HELD };
    wi_list_init(&held->node);
    held->single =
        (struct iovec){ .iov_base = (void *)(uintptr_t)op->addr, .iov_len = op->len };
    held->iov = is_vector ? (const struct iovec *)(uintptr_t)op->addr : &held->single;
    held->iov_count = is_vector ? op->len : 1;
    judge(fault->plan, is_read ? WI_FAULT_READ : WI_FAULT_WRITE, op->fd, op->offset,
          sum_iovecs(held->iov, held->iov_count), &held->verdict);
    op->backend = backend;
    op->busy = 1;
    op->task.next = &held->op.task;
    if (held->verdict.rule.delay_ns > 0)
        held->due_ns = wi_add_sat(fault_now(fault), held->verdict.rule.delay_ns);
    if (held->due_ns > 0 || !pass_on(fault, held))
        wi_list_push_back(&fault->held, &held->node);
    return 0;
}

static void fault_cancel(struct wi_backend *backend, struct wi_op *op)
{
    struct fault_backend *fault = fault_of(backend);
    struct held_op *held;

    if (op->kind == WI_OP_CALL) {
        fault->inner->ops->cancel(fault->inner, op);
        return;
    }
    if (!op->busy)
        return; /* over, and returned by the next turn */
    held = WI_CONTAINER_OF(op->task.next, struct held_op, op.task);
    if (held->state == INNER) {
        fault->inner->ops->cancel(fault->inner, &held->op);
    } else if (held->verdict.rule.cancellable) {
        wi_list_remove(&held->node);
        held->verdict.rule.error = -ECANCELED;
        finish(fault, held, 0);
        /* Outside turn the descriptor has to tell. */
        if (fault->epoll_fd >= 0)
            fault->inner->ops->wake(fault->inner);
    }
}

/* What the inner backend returned becomes the caller's. */
static void take_inner(struct fault_backend *fault, struct wi_op *done)
{
    while (done) {
        struct wi_task *next = done->task.next;

        fault->inner_started--;
        if (done->kind == WI_OP_CALL) {
            append_done(fault, done);
        } else {
            struct held_op *held = WI_CONTAINER_OF(done, struct held_op, op);
            enum wi_fault_kind kind = held->verdict.record.kind;

            if (held->verdict.rule.corrupt && kind == WI_FAULT_READ)
                spoil_read(held->iov, held->iov_count, done->result);
            finish(fault, held, done->result);
        }
        done = next ? WI_CONTAINER_OF(next, struct wi_op, task) : NULL;
    }
}

/* Put the completions of this turn into a random order. */
static void shuffle(struct fault_backend *fault)
{
    struct wi_fault_plan *plan = fault->plan;
    uint32_t count = fault->done_count;
    struct wi_task *task;

    if (count < 2)
        return;
    if (count > fault->shuffled_room) {
        struct wi_op **more = realloc(fault->shuffled, count * sizeof(*more));

        if (!more)
            return; /* then in order: allowed too */
        fault->shuffled = more;
        fault->shuffled_room = count;
    }
    wi_mutex_lock(&plan->mu);
    if (plan->chance == 0) {
        wi_mutex_unlock(&plan->mu);
        return;
    }
    task = &fault->done_first->task;
    for (uint32_t i = 0; i < count; i++, task = task->next) {
        uint32_t j;

        /* xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003), into Fisher and Yates' shuffle. */
        plan->chance ^= plan->chance << 13;
        plan->chance ^= plan->chance >> 7;
        plan->chance ^= plan->chance << 17;
        j = (uint32_t)(plan->chance % (i + 1));
        fault->shuffled[i] = fault->shuffled[j];
        fault->shuffled[j] = WI_CONTAINER_OF(task, struct wi_op, task);
    }
    wi_mutex_unlock(&plan->mu);
    fault->done_first = NULL;
    fault->done_count = 0;
    for (uint32_t i = 0; i < count; i++)
        append_done(fault, fault->shuffled[i]);
}

/* Returns 0 or a negative errno. */
static int set_timer(struct fault_backend *fault)
{
    struct itimerspec time = { 0 };
    uint64_t due_ns = next_due(fault);

    if (due_ns == fault->timer_ns)
        return 0;
    if (due_ns != UINT64_MAX) {
        uint64_t at_ns = wi_max_u64(due_ns, 1); /* 0 would switch it off */

        time.it_value.tv_sec = (time_t)(at_ns / WI_SEC_NS);
        time.it_value.tv_nsec = (long)(at_ns % WI_SEC_NS);
    }
    if (timerfd_settime(fault->timer_fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
        return -errno;
    fault->timer_ns = due_ns;
    return 0;
}

static int fault_turn(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                      struct wi_op **ret_done)
{
    struct fault_backend *fault = fault_of(backend);
    struct wi_backend *inner = fault->inner;
    bool is_last = false;
    uint32_t count;
    int rc;

    do {
        struct wi_op *done = NULL;
        uint64_t releases = atomic_load_explicit(&fault->plan->releases, memory_order_acquire);
        uint64_t wait_ns = until_ns;
        uint32_t missing;

        release_due(fault);
        missing = want > fault->done_count ? want - fault->done_count : 0;
        if (missing > 0) {
            wait_ns = wi_min_u64(until_ns, next_due(fault));
            /* Nothing started in there: it waits to be woken, and for our time. */
            missing = (uint32_t)wi_min_u64(missing, fault->inner_started);
            if (missing == 0)
                missing = 1;
        } else {
            is_last = true;
        }
        rc = inner->ops->turn(inner, missing, wait_ns, &done);
        if (rc > 0)
            take_inner(fault, done);
        if (rc < 0 || until_ns <= fault_now(fault)) {
            is_last = true;
        } else if ((uint32_t)rc < missing && wait_ns > fault_now(fault)) {
            /* Woken: by the caller's friends, or by a release, which has more for us. */
            is_last = is_last || atomic_load_explicit(&fault->plan->releases,
                                                      memory_order_acquire) == releases;
            want = 0;
        }
    } while (!is_last);

    if (fault->epoll_fd >= 0) {
        int timer = set_timer(fault);

        if (timer < 0)
            rc = timer;
    }
    shuffle(fault);
    count = fault->done_count;
    if (count == 0)
        return rc < 0 ? rc : 0;
    *ret_done = fault->done_first;
    fault->done_first = NULL;
    fault->done_count = 0;
    return (int)count;
}

static int fault_bind(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    return fault->inner->ops->bind(fault->inner);
}

static void close_descriptor(struct fault_backend *fault)
{
    if (fault->epoll_fd >= 0)
        close(fault->epoll_fd);
    if (fault->timer_fd >= 0)
        close(fault->timer_fd);
    fault->epoll_fd = -1;
    fault->timer_fd = -1;
    fault->timer_ns = UINT64_MAX;
}

static void fault_unbind(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    close_descriptor(fault);
    fault->inner->ops->unbind(fault->inner);
}

static void fault_wake(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);

    fault->inner->ops->wake(fault->inner);
}

static int fault_fd(struct wi_backend *backend)
{
    struct fault_backend *fault = fault_of(backend);
    struct epoll_event event = { .events = EPOLLIN };
    int inner_fd;
    int code;

    if (fault->epoll_fd >= 0)
        return fault->epoll_fd;
    inner_fd = fault->inner->ops->fd(fault->inner);
    if (inner_fd < 0)
        return inner_fd;
    fault->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fault->timer_fd < 0)
        return -errno;
    fault->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (fault->epoll_fd < 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, fault->timer_fd, &event) < 0 ||
        epoll_ctl(fault->epoll_fd, EPOLL_CTL_ADD, inner_fd, &event) < 0)
        code = -errno;
    else
        code = set_timer(fault);
    if (code < 0) {
        close_descriptor(fault);
        return code;
    }
    /* What is done already is returned by a turn that this asks for. */
    if (fault->done_first)
        fault->inner->ops->wake(fault->inner);
    return fault->epoll_fd;
}

static int fault_set_file(struct wi_backend *backend, uint32_t slot, int fd)
{
    struct fault_backend *fault = fault_of(backend);

    return fault->inner->ops->set_file(fault->inner, slot, fd);
}

static void fault_stats(struct wi_backend *backend, struct wi_backend_stats *ret_stats)
{
    struct fault_backend *fault = fault_of(backend);

    fault->inner->ops->stats(fault->inner, ret_stats);
}

static void fault_close_backend(struct wi_backend *backend)
{
    struct fault_backend *fault;
    struct wi_list *node;

    if (!backend)
        return;
    fault = fault_of(backend);
    WEIR_ASSERT(wi_list_empty(&fault->held) && fault->inner_started == 0 && !fault->done_first);
    wi_mutex_lock(&fault->plan->mu);
    wi_list_remove(&fault->node);
    wi_mutex_unlock(&fault->plan->mu);
    close_descriptor(fault);
    fault->inner->ops->close(fault->inner);
    while ((node = wi_list_pop_front(&fault->spare)) != NULL)
        free(WI_CONTAINER_OF(node, struct held_op, node));
    free(fault->shuffled);
    free(fault);
}

static const struct wi_backend_ops fault_backend_ops = {
    .name = "fault",
    .bind = fault_bind,
    .unbind = fault_unbind,
    .start = fault_start,
    .turn = fault_turn,
    .cancel = fault_cancel,
    .wake = fault_wake,
    .fd = fault_fd,
    .set_file = fault_set_file,
    .stats = fault_stats,
    .close = fault_close_backend,
};

int wi_fault_wrap(struct wi_fault_plan *plan, struct wi_backend *inner,
                  struct wi_backend **ret_backend)
{
    struct fault_backend *fault = calloc(1, sizeof(*fault));

    if (!fault)
        return -ENOMEM;
    fault->ops = fault_backend_ops;
    if (!inner->ops->set_file)
        fault->ops.set_file = NULL;
    fault->backend.ops = &fault->ops;
    fault->backend.os = inner->os;
    fault->backend.pool = inner->pool;
    fault->plan = plan;
    fault->inner = inner;
    wi_list_init(&fault->held);
    wi_list_init(&fault->spare);
    fault->epoll_fd = -1;
    fault->timer_fd = -1;
    fault->timer_ns = UINT64_MAX;
    wi_mutex_lock(&plan->mu);
    wi_list_push_back(&plan->backends, &fault->node);
    wi_mutex_unlock(&plan->mu);
    *ret_backend = &fault->backend;
    return 0;
}

void wi_fault_release(struct wi_fault_plan *plan)
{
    struct wi_list *node;

    wi_mutex_lock(&plan->mu);
    atomic_fetch_add_explicit(&plan->releases, 1, memory_order_release);
    wi_cond_broadcast(&plan->changed);
    /* A wake takes no lock and a backend cannot close while it is on the list. */
    list_for_each(node, &plan->backends) {
        struct fault_backend *fault = WI_CONTAINER_OF(node, struct fault_backend, node);

        fault->inner->ops->wake(fault->inner);
    }
    wi_mutex_unlock(&plan->mu);
}
