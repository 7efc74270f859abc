/* SPDX-License-Identifier: MIT */
/*
 * engine_internal.h - the objects of the engine, for this folder (and tests)
 *
 * README.md explains them; queue.c opens with the map of the folder.
 */
#ifndef WEIR_ENGINE_INTERNAL_H
#define WEIR_ENGINE_INTERNAL_H

#include <stdatomic.h>
#include <string.h>

#include <weir/weir.h>

#include "base/drr.h"
#include "base/error.h"
#include "base/hist.h"
#include "base/inbox.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/pool.h"
#include "base/wheel.h"
#include "cache.h"
#include "engine.h"
#include "os/backend.h"
#include "os/os.h"
#include "prefetch.h"

/* ---- jobs ---------------------------------------------------------------------------- */

/*
 * The states of a job, and the only functions that move it between them (through
 * wi_queue_set_state; owner thread only, but for posting):
 *
 *   IDLE   -> POSTED   weir_queue_post   by the thread that posts
 *   IDLE, POSTED -> QUEUED   wi_queue_take   submitted, or a posted job reaches its queue
 *   QUEUED -> DEVICE   start_job         given to the backend, or tried inline
 *   QUEUED -> QUEUED   hold_job          waits behind an overlapping write (list `held`)
 *   QUEUED -> LOADING  wait_for_block    waits for a load of the block cache
 *                      wi_many_start     waits for its parts
 *   LOADING -> QUEUED  serve_waiters     the block is there: looks on
 *   DEVICE -> RETRY    wait_until        a transient error; its timer brings it back
 *   QUEUED -> RETRY    wait_until        a NOP with a time
 *   DEVICE -> DEVICE   start_job         the rest of a short transfer, or at once again
 *   DEVICE -> QUEUED   requeue           the rest of a transfer that gives way, or of a merged one
 *   RETRY  -> QUEUED   fire_timer
 *   QUEUED, LOADING, RETRY, DEVICE -> DONE  wi_queue_finish
 *   DONE   -> IDLE     call_done         just before `done` is called
 *
 *   J1  A job on the order list is QUEUED, LOADING, DEVICE or RETRY.
 *   J2  Its timer is in the wheel only in those states.
 *   J3  A QUEUED job is on exactly one of: its class queue, `held`, `cached_ready`. A LOADING one
 *       is on a list of cached.c's or many.c's, or on none (a READ_MANY whose ranges are all out).
 */
enum job_state {
    JOB_IDLE = 0, /* what the prepare functions leave */
    JOB_QUEUED = WEIR_STATE_QUEUED,
    JOB_DEVICE = WEIR_STATE_DEVICE,
    JOB_RETRY = WEIR_STATE_RETRY,
    JOB_LOADING = WEIR_STATE_LOADING,
    JOB_DONE,
    JOB_POSTED
};

enum job_mark {
    MARK_ORDERED = 1u << 0, /* on the order list */
    MARK_CANCEL_ASKED = 1u << 1,
    MARK_EXPIRED = 1u << 2, /* its time ran out while in DEVICE */
    MARK_FORCE_ASYNC = 1u << 3,
    MARK_NO_INLINE = 1u << 4,
    MARK_ALONE = 1u << 5,   /* not to be merged, or no more */
    MARK_BUNDLED = 1u << 6, /* DEVICE: a member of a merged operation */
    MARK_INTERNAL =
        1u << 7,           /* the queue's own: a load of the cache's, a part of a READ_MANY; its
                                 `done` is called at once and may touch the queue */
    MARK_CACHED = 1u << 8, /* goes through the block cache */
    MARK_OBSERVED = 1u << 9,     /* the prefetcher has been told of it */
    MARK_WRITING = 1u << 10,     /* the cache was told that the write begins */
    MARK_REOPENING = 1u << 11,   /* DEVICE: its file's descriptor is being opened again */
    MARK_EMPTY_WRITE = 1u << 12, /* the last write moved nothing */
    MARK_CLASSED = 1u << 13,     /* QUEUED: in its class queue */
    MARK_HEAPED = 1u << 14,      /* and there in the heap */
    MARK_LOW = 1u << 15          /* DEVICE: counted among those that give way */
};

/* A part of a READ_MANY: told apart from a load in that nothing is foreseen from it. */
#define MARKS_PART  (MARK_INTERNAL | MARK_OBSERVED)
#define WAITERS_MAX 0xfffu

/*
 * The private half of a job. `wait` is used while QUEUED or LOADING, `held` on the held list,
 * `inbox` while posted, `member` while in a merged operation, `op` otherwise from DEVICE to
 * DONE; the op is filled anew each time it is started, so they can share memory.
 */
struct job_tail {
    union {
        struct wi_op op;
        struct wi_list link;
        struct {
            struct wi_list link; /* in the FIFO of its class, or a list of cached.c */
            uint64_t arrival;    /* in the heap of its class: what orders equals */
            struct weir_job *child;
            struct weir_job *next;
            struct weir_job *prev;
            uint32_t many_next; /* of READ_MANY: ranges that have a part, in order of offset */
            uint32_t many_out;  /* parts that have not ended */
        } wait;
        struct {
            struct wi_list link;
            struct weir_job *blocker; /* whose end it waits for */
        } held;
        struct {
            struct wi_list link;
            struct bundle *bundle;
        } member;
        struct wi_inbox_node inbox;
    };
    struct wi_timer timer;
    struct wi_list order;
    struct weir_queue *queue;
    uint64_t start_ns;
    uint16_t marks;
    uint8_t state;
    uint8_t tries; /* of the current piece, after transient errors */
    uint32_t slot : 20;
    uint32_t waiters : 12; /* held jobs that wait for this one; stays at its most */
};

_Static_assert(sizeof(struct weir_job) == 256, "the public size of a job");
_Static_assert(sizeof(struct job_tail) == sizeof(((struct weir_job *)0)->private_tail),
               "the private half of a job");

static inline struct job_tail *tail_of(struct weir_job *job)
{
    return (struct job_tail *)(void *)job->private_tail;
}

static inline struct weir_job *job_of_tail(struct job_tail *tail)
{
    return WI_CONTAINER_OF(tail, struct weir_job, private_tail);
}

static inline struct weir_job *job_of_op(struct wi_op *op)
{
    return job_of_tail(WI_CONTAINER_OF(op, struct job_tail, op));
}

/* What is wrong with a job that is to be submitted: 0 or a negative code; fills its error. */
int wi_job_check(struct weir_engine *engine, struct weir_job *job);
/* The same for one that goes to a queue, and so needs a `done`. */
int wi_job_check_queued(struct weir_engine *engine, struct weir_job *job);

/* In builds for AddressSanitizer: read a byte of a buffer that is dead, so that it is caught
 * here, with the stack of who handed it over. The kernel's writes are invisible to it. */
void wi_job_touch(const struct weir_job *job);

/* Do what an operation that is neither a read nor a write says, by blocking calls. */
int64_t wi_job_call(struct weir_engine *engine, struct weir_job *job);

/* A transfer of its own; VIEW and READ_MANY are made of others. */
static inline bool op_is_read(uint32_t op)
{
    return op == WEIR_OP_READ || op == WEIR_OP_READV;
}

static inline bool op_is_write(uint32_t op)
{
    return op == WEIR_OP_WRITE || op == WEIR_OP_WRITEV;
}

static inline bool op_is_sync(uint32_t op)
{
    return op == WEIR_OP_FSYNC || op == WEIR_OP_FDATASYNC;
}

static inline enum weir_stats_group op_group(uint32_t op)
{
    return op_is_read(op) || op == WEIR_OP_VIEW || op == WEIR_OP_READ_MANY ? WEIR_STATS_READ
           : op_is_write(op)                                               ? WEIR_STATS_WRITE
           : op_is_sync(op)                                                ? WEIR_STATS_SYNC
                                                                           : WEIR_STATS_OTHER;
}

/* CLOSE does not count itself, or it could never find its file idle. */
static inline bool counts_on_file(const struct weir_job *job)
{
    return job->file && job->op != WEIR_OP_CLOSE;
}

/* Bytes that a read or write is to move in all. */
uint64_t wi_iov_bytes(const struct iovec *iov, size_t count);

/* ---- files --------------------------------------------------------------------------- */

/*
 * Memory of a file is kept by the engine for the next one, so that a stale handle can be
 * told: its generation has moved on, and `open_flags` is 0 while closed.
 */
struct weir_file {
    /* Set at open. */
    struct weir_engine *engine;
    char *path;
    int fd;
    uint32_t index; /* small and unique among open files: a queue's table is indexed by it */
    uint32_t memory_align;
    uint32_t offset_align;
    uint32_t regular; /* 1: a regular file or a block device, with a size and offsets */
    _Atomic uint32_t open_flags; /* WEIR_OPEN_READ, WRITE, DIRECT, DIRECTORY; 0: closed */
    struct weir_file *next_free; /* guarded by engine->mu */

    _Alignas(WI_CACHE_LINE) _Atomic uint64_t generation; /* odd while open; release/acquire */
    _Atomic uint32_t users;     /* queues with jobs on it, and posted jobs; checked at close */
    _Atomic uint32_t holds;     /* one for being open, one for each queue with loads on it */
    _Atomic int32_t sync_error; /* the first failed sync; release/acquire */
    struct wi_mutex sync_mu;
    struct wi_cond sync_ended;
    struct wi_list syncs;         /* running ones, oldest first; guarded by sync_mu */
    uint64_t next_sync;           /* guarded by sync_mu */
    _Atomic int32_t cached_score; /* relaxed: a hint, see try_inline in queue_work.c */

    /* Block cache and file pool. */
    /* Set at open for a file that is cached, and for one that is not but open for writing while the
     * engine has a cache: that one must tell of its writes. See wi_file_reads_cached. */
    struct wi_cache_file *cache_file;
    _Atomic uint32_t advice;    /* WEIR_ADVICE_*; relaxed */
    _Atomic uint32_t load_rwf;  /* for the cache's loads: RWF_DONTCACHE; relaxed, 0 once it
                                         was refused */
    struct file_pooled *pooled; /* set at open; NULL: the descriptor stays open (file_pool.c) */
};

/* True if reads go through the block cache. */
static inline bool wi_file_reads_cached(const struct weir_file *file)
{
    return (atomic_load_explicit(&file->open_flags, memory_order_relaxed) &
            (WEIR_OPEN_CACHED | WEIR_OPEN_READ)) == (WEIR_OPEN_CACHED | WEIR_OPEN_READ);
}

/*
 * Around every use of file->fd outside a queue: the descriptor is open and stays so. With a file
 * pool this may reopen it, which blocks on I/O and can fail (-ESTALE, -EMFILE, ...).
 */
int wi_file_pool_begin(struct weir_file *file);
void wi_file_pool_end(struct weir_file *file);
static inline int wi_file_begin(struct weir_file *file)
{
    return WI_UNLIKELY(file->pooled != NULL) ? wi_file_pool_begin(file) : 0;
}
static inline void wi_file_end(struct weir_file *file)
{
    if (WI_UNLIKELY(file->pooled != NULL))
        wi_file_pool_end(file);
}
/*
 * For queues, which have counted themselves in `users` before (sequentially consistent: file_pool.c
 * says why): true if the descriptor is open, and then it stays so while `users` is above 0. Else
 * a pool thread has to call wi_file_pool_begin and, if that went well, at once wi_file_pool_end;
 * then the descriptor is open, and `users` keeps it so. Blocks: never.
 */
bool wi_file_pool_is_open(struct weir_file *file);
/*
 * Something that only this descriptor knows: a write that is not synced, a lock, a lease. While any
 * is noted the pool does not close it. A write is noted when it has ended, well or not, and before
 * its job lets go of `users`, or its caller calls wi_file_end; wi_file_sync takes the note back if
 * no other write has ended meanwhile. UNSYNCED: Blocks: never.
 */
enum wi_keep {
    WI_KEEP_UNSYNCED = 1u << 0,
    WI_KEEP_LOCK = 1u << 1
};
void wi_file_pool_keep(struct weir_file *file, enum wi_keep why, bool on);
static inline void wi_file_keep(struct weir_file *file, enum wi_keep why, bool on)
{
    if (WI_UNLIKELY(file->pooled != NULL))
        wi_file_pool_keep(file, why, on);
}
int wi_file_pool_create(struct weir_engine *engine, uint32_t open_files);
void wi_file_pool_destroy(struct weir_engine *engine);
void wi_file_pool_stats(struct weir_engine *engine, struct weir_stats *stats);

/* For file.c. All do nothing without a pool, or with a file that is not in it. */
/* One more descriptor is about to be opened: close another if it is one too many. Blocks: on I/O. */
void wi_file_pool_reserve(struct weir_engine *engine);
/* It was not opened, or is not for the pool. */
void wi_file_pool_unreserve(struct weir_engine *engine);
/* The process has no descriptors left: close a few that nobody uses. True if any was. */
bool wi_file_pool_shrink(struct weir_engine *engine);
/* A file with a reserved descriptor, which can be opened again with `os_flags`. */
int wi_file_pool_add(struct weir_file *file, int os_flags, const struct statx *st);
/* The file is closed; file->fd is what is left to close, or -1. Waits for blocking calls on it. */
void wi_file_pool_remove(struct weir_file *file);
/* Around a sync that succeeds: what it covers. */
uint64_t wi_file_pool_writes(struct weir_file *file);
void wi_file_pool_synced(struct weir_file *file, uint64_t writes);
/* What to say of `code` from wi_file_begin; NULL: its own text will do. `file` may be NULL. */
const char *wi_file_pool_text(const struct weir_file *file, int64_t code);

/*
 * One exact read or write on the calling thread, past the block cache, with retries: what the
 * blocking calls and the cache's loads share. `rwf` is tried first, and left away where the kernel says
 * EOPNOTSUPP. The caller has called wi_file_begin. Returns 0 or a negative code; `*ret_moved` is
 * set either way. Thread: any. Blocks: on I/O.
 */
int64_t wi_blocking_transfer(struct weir_file *file, bool write, const struct iovec *iov,
                             size_t iov_count, uint64_t offset, uint32_t rwf,
                             uint64_t *ret_moved);

/* The cache loads from it by jobs that nobody sees: the descriptor stays open until the last of
 * them has ended, also if the file is closed meanwhile (file.c). */
void wi_file_hold(struct weir_file *file);
void wi_file_unhold(struct weir_file *file);

/* Open on behalf of a blocking call or a job. */
int wi_file_open(struct weir_engine *engine, struct weir_file *dir, const char *path,
                 uint32_t flags, uint32_t mode, struct weir_file **ret_file);
/* Fills `error` (may be NULL) itself if it fails: the file's name goes with the file. */
int wi_file_close(struct weir_file *file, struct weir_error *error);
int wi_file_sync(struct weir_file *file, uint32_t how);
int wi_file_stat(struct weir_engine *engine, struct weir_file *file, const char *path,
                 bool nofollow, struct weir_stat *ret_stat);

static inline int wi_dir_fd(const struct weir_file *dir)
{
    return dir ? dir->fd : -100; /* AT_FDCWD */
}

static inline int wi_file_sync_error(struct weir_file *file)
{
    return atomic_load_explicit(&file->sync_error, memory_order_acquire);
}

/* The file is failed for good, with the first code that comes. */
void wi_file_poison(struct weir_file *file, int code);

/* ---- statistics ---------------------------------------------------------------------- */

enum stats_which {
    STATS_WAIT,
    STATS_DEVICE,
    STATS_TOTAL,
    STATS_WHICH
};

struct stats_counters {
    _Atomic uint64_t done;
    _Atomic uint64_t failed;
    _Atomic uint64_t cancelled;
    _Atomic uint64_t expired;
    _Atomic uint64_t bytes;
};

/* One queue's, written by its owner alone (wi_counter_add), read by anyone. */
struct queue_stats {
    struct stats_counters ops[WEIR_STATS_GROUPS];
    _Atomic uint64_t turns;
    _Atomic uint64_t system_calls; /* of our own: inline reads */
    _Atomic uint64_t inline_reads;
    _Atomic uint64_t retries;
    _Atomic uint64_t continued;
    _Atomic uint64_t posted;
    _Atomic uint64_t in_flight;
    _Atomic uint64_t in_flight_peak;
    _Atomic uint64_t in_flight_sum; /* over turns */
    _Atomic uint64_t at_device;     /* operations, now */
    _Atomic uint64_t device_ops;
    _Atomic uint64_t device_bytes;
    _Atomic uint64_t merges;
    _Atomic uint64_t merged;
    _Atomic uint64_t merge_splits;
    _Atomic uint64_t gap_bytes;
    _Atomic uint64_t budget_waits;
    _Atomic uint64_t yield_waits;
    _Atomic uint64_t promoted;
    _Atomic uint64_t retries_refused;
    _Atomic uint64_t stalls;
    _Atomic uint64_t cache_loads;
    _Atomic uint64_t cache_shared;
    _Atomic uint64_t prefetch_skipped;
    /* Made on first use; release when set, acquire by readers. */
    _Atomic(struct wi_hist *) hists[WEIR_STATS_GROUPS][WEIR_CLASSES][STATS_WHICH];
};

#define BLOCKING_SHARDS 16
/* Of blocking calls; many threads add atomically, spread by thread. */
struct blocking_stats {
    _Alignas(WI_CACHE_LINE) struct stats_counters ops[WEIR_STATS_GROUPS];
    _Atomic uint64_t extra_calls; /* system calls beyond one a call; wraps below 0 */
    _Atomic uint64_t retries;
    _Atomic uint64_t continued;
    _Atomic uint64_t retries_refused;
    _Atomic uint64_t merges; /* of weir_file_read_many, as in queue_stats */
    _Atomic uint64_t merged;
    _Atomic uint64_t merge_splits;
    _Atomic uint64_t gap_bytes;
    _Atomic(struct wi_hist *) device[WEIR_STATS_GROUPS];
};

/* The calling thread's number, from 1; never given to another thread. */
uint32_t wi_this_thread(void);
struct blocking_stats *wi_stats_shard(struct weir_engine *engine);
/* Make sure that the histograms of a group and class are there. False without memory. */
bool wi_stats_prepare(struct weir_queue *queue, enum weir_stats_group group, uint32_t io_class);
/* A queue ends: keep what it counted, and take it off the engine's list. */
void wi_stats_retire(struct weir_engine *engine, struct weir_queue *queue);

/* ---- traces (trace.c) ------------------------------------------------------------------ */

enum wi_trace_flag {
    WI_TRACE_BLOCKING = 1u << 0,
    WI_TRACE_INTERNAL = 1u << 1 /* a load of the cache */
};
struct wi_trace_event {
    struct weir_file *file; /* may be NULL */
    uint64_t id;            /* the job's; 0 for a blocking call */
    uint64_t submit_ns;     /* monotonic; blocking: when it began */
    uint64_t start_ns;      /* 0: it never came to the device */
    uint64_t end_ns;
    uint64_t offset;
    uint64_t len;
    int64_t result;
    uint32_t flags; /* WI_TRACE_* */
    uint8_t op;
    uint8_t io_class;
    const struct weir_range *ranges; /* of READ_MANY: each gets a record */
    size_t ranges_count;
};
/* The file that a record of a job is to name: for OPEN the one that was opened. */
static inline struct weir_file *wi_trace_file(const struct weir_job *job, int64_t result)
{
    if (job->op != WEIR_OP_OPEN)
        return job->file;
    return result == 0 ? *(struct weir_file **)job->buf : NULL;
}
/* Add a record, if a trace is on by now. Thread: any. Blocks: never (on lock, for a copy). */
void wi_trace_add(struct weir_engine *engine, const struct wi_trace_event *event);
/* The engine closes. */
void wi_trace_end(struct weir_engine *engine);
void wi_trace_add_blocking(struct weir_engine *engine, struct weir_file *file, uint32_t op,
                           uint64_t begin_ns, uint64_t offset, uint64_t len, int64_t result);
/* A blocking call ends. `begin_ns` is what wi_trace_begin said; 0: no trace was on then. */
static inline void wi_trace_blocking(struct weir_engine *engine, struct weir_file *file,
                                     uint32_t op, uint64_t begin_ns, uint64_t offset,
                                     uint64_t len, int64_t result)
{
    if (WI_UNLIKELY(begin_ns != 0))
        wi_trace_add_blocking(engine, file, op, begin_ns, offset, len, result);
}

/* ---- ranges of WEIR_OP_READ_MANY (read_many.c) -------------------------------------------- */

#define WI_RANGES_MAX (1u << 20)
/* Put them in order of offset, without moving them: wi_ranges_nth finds them by it. Equals stay in
 * the array's order. Uses `private_` of all; private_[1] is free afterwards. */
void wi_ranges_sort(struct weir_range *ranges, size_t count);
static inline struct weir_range *wi_ranges_nth(struct weir_range *ranges, size_t nth)
{
    return &ranges[ranges[nth].private_[0]];
}
/* The ranges' share of what a job or call results in: the bytes of all, or the error of the first
 * in the array that failed, whose index is then written. `*ret_moved` has the bytes either way. */
int64_t wi_ranges_result(const struct weir_range *ranges, size_t count, uint64_t *ret_moved,
                         size_t *ret_failed);
/* Do a checked READ_MANY on the calling thread. */
int64_t wi_ranges_read(struct weir_file *file, struct weir_range *ranges, size_t count,
                       uint64_t *ret_moved, struct weir_error *error);

/* What weir_file_advise does, for a blocking call or a job (which has a cached file's WILLNEED done by
 * wi_cached_advise). Arguments are checked. */
int wi_file_advise(struct weir_file *file, uint32_t advice, uint64_t offset, uint64_t len);
/* `fd` is a new descriptor of the file: give the kernel the advice that holds for all of it. */
void wi_file_advise_again(struct weir_file *file, int fd);

/* ---- the gate: what all queues together may do (gate.c) --------------------------------- */

struct gate {
    /* Set at open. */
    uint64_t ops_max;
    uint64_t bytes_max;

    /* Relaxed, but for the waiting. Reads and writes at the device, of queues; and large ones of
     * blocking callers, which count but never wait. */
    _Alignas(WI_CACHE_LINE) _Atomic uint64_t ops;
    _Atomic uint64_t bytes;
    _Atomic uint32_t low_ops;     /* of them, of classes that give way */
    _Atomic uint64_t low_entered; /* when one of these last started while others had to wait */
    _Atomic uint32_t waiting_count;
    struct wi_mutex mu;
    struct wi_list waiting; /* queues to wake when something ends; guarded by mu */

    /* When urgent work was last seen, monotonic ns; and how many queues have some at the device. On a
     * line of its own: all read it, few write it. */
    _Alignas(WI_CACHE_LINE) _Atomic uint64_t urgent;
    _Atomic uint32_t urgent_queues;

    /* Retries that are left, in tenths: each completion earns one, each retry costs ten. */
    _Alignas(WI_CACHE_LINE) _Atomic int64_t retry_tenths;
};

void wi_retry_init(struct weir_engine *engine);
/* Something failed in a way that is worth another try: is there any left? (retry.c) */
bool wi_retry_spend(struct weir_engine *engine);
/* Completions since the last call, which earn retries. Call it once in a while, not for each. */
void wi_retry_earn(struct weir_engine *engine, uint64_t completions);
#define SAMPLED_CALLS 17 /* wi_stats_sample is true for one call in so many */

/* A blocking transfer of `bytes` begins or ends: it counts, but does not wait. Small ones don't. */
#define GATE_BLOCKING_LEAST (64u << 10)
static inline void wi_gate_blocking(struct gate *gate, uint64_t bytes, bool begins)
{
    if (bytes < GATE_BLOCKING_LEAST)
        return;
    atomic_fetch_add_explicit(&gate->ops, begins ? 1 : (uint64_t)-1, memory_order_relaxed);
    atomic_fetch_add_explicit(&gate->bytes, begins ? bytes : 0 - bytes, memory_order_relaxed);
}

/* ---- the watch (watch.c) ------------------------------------------------------------------ */

/* Wakes the owners of queues now and then, so that they look for what hangs. */
struct watch {
    struct wi_mutex mu;
    struct wi_cond changed;
    pthread_t thread;
    bool runs; /* guarded by mu */
    bool stop; /* guarded by mu */
};
void wi_watch_init(struct weir_engine *engine);
void wi_watch_start(struct weir_engine *engine); /* a queue was opened */
void wi_watch_stop(struct weir_engine *engine);

/* ---- metrics (metric.c) ------------------------------------------------------------------ */

struct metrics;
void wi_metrics_fini(struct weir_engine *engine);

/* ---- the engine ---------------------------------------------------------------------- */

struct buffer_pool {
    unsigned char *base;
    size_t bytes;
    size_t buffer_size;
    uint32_t count;
    /* A Treiber stack of indices: low half index + 1, high half a tag against ABA.
     * acquire/release pairs hand the buffer's bytes over. */
    _Atomic uint64_t head;
    _Atomic uint32_t *next;
    _Atomic uint64_t in_use;
    _Atomic uint64_t peak;
};

int wi_buffers_init(struct buffer_pool *buffers, size_t buffer_size, uint32_t count);
void wi_buffers_fini(struct buffer_pool *buffers);

struct weir_engine {
    /* Set at open. */
    const struct wi_os *os;         /* for blocking callers and calls on the pool */
    const struct wi_os *backend_os; /* for backends: without the injector */
    struct wi_engine_seams seams;
    enum weir_backend backend;
    struct wi_uring_probe probe;
    char why[240];
    char cure[200];
    uint32_t lane_threads[WEIR_LANES];
    uint32_t cpus;
    struct wi_pool *pool;
    struct buffer_pool buffers;
    struct wi_cache *cache;      /* NULL: none */
    struct file_pool *file_pool; /* NULL: every file keeps its descriptor */
    uint64_t stall_ns;
    weir_log_fn log;
    void *log_arg;
    uint64_t opened_ns;

    struct wi_mutex mu;
    /* Guarded by mu. */
    struct wi_list queues;
    struct weir_file **files; /* by index; memory kept until the engine closes */
    uint32_t files_count;
    uint32_t files_room;
    struct weir_file *free_files; /* the one free for longest is used first */
    struct weir_file *last_free_file;
    uint64_t files_open;
    uint64_t queues_open;
    uint32_t next_queue_number;
    struct queue_stats retired;
    uint64_t retired_backend_calls;
    uint64_t memory_bytes;
    uint64_t memory_peak;
    double memory_integral; /* byte seconds */
    uint64_t memory_since_ns;

    struct gate gate;
    struct watch watch;
    _Atomic(struct metrics *) metrics; /* made on first use (metric.c) */
    _Atomic(struct trace *) trace;     /* NULL: off (trace.c) */
    struct trace *trace_kept; /* guarded by mu: made at the first start, kept (trace.c) */
    struct blocking_stats *blocking; /* BLOCKING_SHARDS of them */
    _Atomic uint64_t closes; /* files closed so far; queues look whether to let go of slots */
};

/* When a blocking call begins, for wi_trace_blocking. */
static inline uint64_t wi_trace_begin(struct weir_engine *engine)
{
    if (WI_LIKELY(!atomic_load_explicit(&engine->trace, memory_order_relaxed)))
        return 0;
    return wi_os_now(engine->os);
}

/* Tell the engine of memory taken or given back. Blocks: on lock. */
void wi_engine_account(struct weir_engine *engine, int64_t bytes);
__attribute__((format(printf, 3, 4))) void wi_engine_log(struct weir_engine *engine, int level,
                                                         const char *format, ...);

/* ---- queues -------------------------------------------------------------------------- */

/*
 * What a queue knows of a job besides the job: one cache line. Maps ids to jobs, serves the dump.
 * Any thread may read what is atomic.
 */
struct queue_slot {
    _Atomic uint64_t id; /* 0: free; written last at take and first at release */
    _Atomic uint64_t submit_ns;
    _Atomic uint64_t offset;
    _Atomic uint64_t length;
    _Atomic uint32_t op_state; /* op << 16 | class << 8 | state */
    uint32_t next_free;        /* owner, as all below */
    uint32_t generation;
    uint32_t device_bytes; /* what it counts for while in DEVICE */
    union {
        uint32_t merge_next; /* neighbours in a bucket of the merge index; slot + 1, 0: none */
        uint32_t device_ms;  /* in DEVICE: since when, in ms since the queue was opened */
    };
    uint32_t merge_prev;
    struct weir_job *job;
};
_Static_assert(sizeof(struct queue_slot) == WI_CACHE_LINE, "a slot is one cache line");

/* What a queue knows of one of the engine's files. Owner thread only. */
struct queue_file {
    struct weir_file *file;
    uint64_t generation;
    uint32_t jobs;  /* taken and not done */
    uint32_t loads; /* of the cache's, on their way */
    uint32_t uses;
    int32_t slot;                 /* fixed file, or -1 */
    struct wi_prefetch *prefetch; /* made at the first cached read */
    uint64_t last_block;          /* of the cache, that was read */
};

#define QUEUE_FILE_SLOTS 64
#define SPARE_SLOTS      1
#define LOADS_MAX        256 /* of the block cache's, by one queue at a time */
#define BUNDLES_MAX      32  /* merged operations of one queue at a time */
#define PARTS_MAX        256 /* ranges of READ_MANY, of one queue at a time */

/* What may be merged, in a queue (merge.c) and in one call (read_many.c). */
#define MERGE_GAP           (16u << 10) /* a queue can have another */
#define MERGE_MEMBER_MAX    (256u << 10)
#define MERGE_BYTES_MAX     (1u << 20)
#define MERGE_AMPLIFICATION 2 /* bytes read for each asked for, at most */
#define MERGE_IOVS_MAX      256

/* Jobs of one class that wait for the device: what came back first, then by sequence, then in the
 * order of submitting. In order of arrival nearly always, so a list; the others in a heap. */
struct class_queue {
    struct wi_list again;
    struct wi_list fifo; /* sequence never falls */
    struct weir_job *heap;
    uint32_t count;
};

/* Several neighbours in one operation. */
struct bundle {
    struct wi_op op;
    struct wi_list link;    /* free ones */
    struct wi_list members; /* jobs by offset */
    uint64_t offset;
    uint64_t bytes; /* with the gaps */
    uint32_t count;
    uint32_t iov_count;
    unsigned char *staging; /* read there, and copied from there; NULL: right to its places */
    uint8_t rank;
    bool stop_asked;
    bool low;
    struct iovec iov[MERGE_IOVS_MAX];
};

struct weir_queue {
    /* Set at creation. */
    struct weir_engine *engine;
    const struct wi_os *os;
    struct wi_backend *backend;
    struct wi_list engine_link; /* guarded by engine->mu */
    uint32_t depth;
    uint32_t room;       /* depth + backlog: jobs that may be taken */
    uint32_t slot_count; /* SPARE_SLOTS more, for posted cancels, and LOADS_MAX for the cache */
    uint64_t number;
    bool can_inline; /* reads may be tried with RWF_NOWAIT */
    bool can_slot;   /* the backend has fixed files */

    /* Owner thread only. */
    bool in_done;
    bool fd_mode;
    bool woken; /* fd mode: the descriptor was made readable for what waits here */
    int epoll_fd;
    int timer_fd;
    uint64_t timer_set_ns; /* what timer_fd is set to; 0: not */
    uint64_t now_ns;
    uint32_t taken;  /* jobs that are QUEUED, LOADING, DEVICE, RETRY or DONE; without loads */
    uint32_t device; /* operations at the backend */
    uint32_t inline_left; /* bytes that this turn may still copy inline */
    struct wi_list held;
    struct wi_list order; /* writes and ordered jobs, in the order they were taken */
    struct wi_op *done_first;
    struct wi_op *done_last;
    struct wi_wheel wheel;
    struct queue_slot *slots;
    uint32_t free_slot;
    struct queue_file *files;
    uint32_t files_room;
    int32_t slot_file[QUEUE_FILE_SLOTS]; /* index of the file in each fixed slot, or -1 */
    uint32_t slot_hand;
    struct wi_inbox_node *pending_first; /* out of the inbox, waiting for room */
    struct wi_inbox_node *pending_last;
    uint64_t closes_seen;
    uint64_t stall_check_ns; /* when to look for operations that hang */
    uint64_t stall_seen_ns;  /* when that was done last */
    uint64_t opened_ns;
    uint32_t completions; /* that have earned no retries yet */

    /* What waits for the device (sched.c). */
    struct class_queue classes[WEIR_CLASSES]; /* by rank: see drr.h */
    struct wi_drr drr;
    uint32_t waiting_mask; /* ranks that are not empty */
    uint32_t waiting;      /* jobs in all of them */
    uint64_t next_arrival;
    uint64_t charge; /* what the job that has just been started costs its class */
    bool stuck;      /* what waits could not be started, and nothing came or went since */

    /* Limits at the device (gate.c). */
    uint64_t bytes_max;
    uint64_t device_bytes;
    uint32_t device_transfers; /* reads and writes at the device */
    uint32_t device_urgent;    /* of them, of SYNC and FOREGROUND */
    uint32_t credit_ops;       /* taken from the engine's limits and not in use */
    uint64_t credit_bytes;
    uint32_t low_ops;     /* at the device, of classes that give way */
    bool forced;          /* some of what is at the device is beyond the engine's limits */
    uint64_t low_from_ns; /* not before this may work that gives way go on; 0: now */
    uint64_t low_again_ns;
    struct wi_list gate_link; /* guarded by the gate's mu */

    /* Merging (merge.c). */
    uint32_t merge_gap;
    uint32_t merge_shift; /* bytes of one bucket of the index, log2 */
    uint32_t merge_mask;
    uint32_t merge_count;   /* jobs in the index */
    uint32_t merge_longest; /* no job in it is longer */
    bool can_merge;
    bool can_prefetch;
    uint32_t *merge_heads; /* slot + 1 of the first job in a bucket; 0: none */
    struct bundle *bundles;
    struct wi_list free_bundles;
    unsigned char *scratch; /* where gaps are read to, all to the same place */
    uint32_t scratch_size;
    unsigned char *staging; /* STAGING_COUNT buffers, made at the first use; NULL: none yet */
    uint32_t staging_free;  /* bits */

    struct many *many;     /* parts of READ_MANYs; made at the first (many.c) */
    struct cached *cached; /* loads of the block cache; made at its first use (cached.c) */
    struct wi_list cached_ready; /* jobs to look into the cache for */

    struct queue_stats stats;

    /* Atomic, for other threads. */
    _Alignas(WI_CACHE_LINE) _Atomic uint32_t owner; /* wi_this_thread() of the owner; 0: none */
    _Atomic uint32_t closing;
    _Atomic uint32_t posted;  /* posted and not yet taken over by the owner; relaxed */
    _Atomic uint32_t posting; /* threads inside weir_queue_post */
    struct wi_inbox inbox;
};

/* ---- between the files of a queue; all: owner thread --------------------------------------- */

/* Make room in the queue's table for the job's file. Returns 0 or -ENOMEM. */
int wi_queue_know_file(struct weir_queue *queue, struct weir_job *job);

/* How the file has been hitting the page cache (see worth_inline in queue_work.c); INT32_MIN: such
 * a read is not tried inline at all. */
#define INLINE_MAX (128u << 10) /* longer copies would hold up the loop */
static inline int32_t wi_queue_inline_score(const struct weir_queue *queue,
                                            const struct weir_job *job)
{
    const struct weir_file *file = job->file;

    if (!queue->can_inline || job->op != WEIR_OP_READ || job->len > INLINE_MAX ||
        !file->regular || file->offset_align != 1)
        return INT32_MIN;
    return atomic_load_explicit(&file->cached_score, memory_order_relaxed);
}

/* Take a checked job over: it will be done. There must be room. `marks`: MARK_INTERNAL or 0. */
void wi_queue_take(struct weir_queue *queue, struct weir_job *job, uint64_t now_ns,
                   uint32_t marks);

/* Give to the backend what it can take of what waits. */
void wi_queue_dispatch(struct weir_queue *queue);

/* The backend has finished these. */
void wi_queue_completed(struct weir_queue *queue, struct wi_op *chain);

/* The job has ended, whatever it was: off all lists but `order`, not in DEVICE. */
void wi_queue_finish(struct weir_queue *queue, struct weir_job *job, int64_t result);

/* QUEUED and on no list: to wait again. `front`: before all others of its class. */
void wi_queue_requeue(struct weir_queue *queue, struct weir_job *job, bool front);

void wi_queue_set_state(struct weir_queue *queue, struct weir_job *job, enum job_state state);

/* Act on the timers that are due by queue->now_ns. */
void wi_queue_fire_timers(struct weir_queue *queue);

/* Call `done` for all that are due. Returns how many. */
int wi_queue_call_done(struct weir_queue *queue);

/* As weir_queue_cancel. */
int wi_queue_cancel_id(struct weir_queue *queue, uint64_t job_id);

/* Ask for everything to be cancelled. */
void wi_queue_cancel_all(struct weir_queue *queue);

/* Give up the loads of files that were closed. */
void wi_queue_drop_loads(struct weir_queue *queue);

/* Raise the class of a job of this queue that still waits. Nothing happens if it doesn't. */
void wi_queue_promote(struct weir_queue *queue, uint64_t job_id, uint32_t io_class);

/* Let go of the fixed slots of files that were closed; of all of them if `all`. */
void wi_queue_drop_slots(struct weir_queue *queue, bool all);

/* Say what hangs at the device. Called when stall_check_ns has come. */
void wi_queue_check_stalls(struct weir_queue *queue);

static inline uint64_t submit_ns_of(const struct weir_queue *queue, struct weir_job *job)
{
    return atomic_load_explicit(&queue->slots[tail_of(job)->slot].submit_ns,
                                memory_order_relaxed);
}

/* What to report for a job that was cancelled or expired. */
static inline int64_t wi_queue_stop_code(struct weir_job *job)
{
    return tail_of(job)->marks & MARK_CANCEL_ASKED ? -ECANCELED : -ETIMEDOUT;
}

/* A part of a job that is stopped: it ends now if it waits, else when the kernel lets it go. */
void wi_queue_stop_part(struct weir_queue *queue, struct weir_job *part);

/* A load of the cache begins or ends to use the file. */
void wi_queue_begin_load(struct weir_queue *queue, struct weir_file *file);
void wi_queue_end_load(struct weir_queue *queue, struct weir_file *file);

/* Put a job that has to wait for an earlier one on the held list. False: it need not wait. */
bool wi_queue_hold(struct weir_queue *queue, struct weir_job *job);

/* True for a write that has to wait for an earlier one. */
bool wi_queue_is_held_back(struct weir_queue *queue, struct weir_job *job);

/* sched.c: the class queues. */
void wi_sched_init(struct weir_queue *queue);
/* QUEUED and on no list -> in its class. `front`: before all others of it. */
void wi_sched_push(struct weir_queue *queue, struct weir_job *job, bool front);
void wi_sched_remove(struct weir_queue *queue, struct weir_job *job);
/* The first of the rank, which is not empty. It stays there. */
struct weir_job *wi_sched_first(struct weir_queue *queue, uint32_t rank);

/* gate.c: what may be at the device. */
void wi_gate_init(struct gate *gate, uint64_t ops_max, uint64_t bytes_max);
void wi_gate_fini(struct gate *gate);
/* May a read or write of `bytes` go to the device? Then it counts, until wi_gate_leave. One of a
 * queue's own always may. */
bool wi_gate_admit(struct weir_queue *queue, uint64_t bytes);
/* How many of `want` bytes more could be admitted with it, for merging. */
uint64_t wi_gate_room(struct weir_queue *queue, uint64_t want);
/* It became larger, within what wi_gate_room said. */
void wi_gate_grow(struct weir_queue *queue, uint64_t bytes);
void wi_gate_leave(struct weir_queue *queue, uint64_t bytes);
/* Give back to the engine what is reserved and not in use: before the owner waits or leaves. */
void wi_gate_settle(struct weir_queue *queue);
/* Urgent work was seen. */
void wi_gate_stamp(struct gate *gate, uint64_t now_ns);
/* A read or write of an urgent class comes to the device, or leaves it. */
void wi_gate_urgent(struct weir_queue *queue, bool comes);
/* True while work of the ranks that give way is held back to one operation of 64 KiB. */
bool wi_gate_is_urgent(const struct weir_queue *queue);
/* May one operation that gives way start? Then it counts, until wi_gate_low_leave. If not,
 * queue->low_again_ns says when to ask again at the latest; the queue is woken earlier if it can. */
bool wi_gate_low_enter(struct weir_queue *queue);
void wi_gate_low_leave(struct weir_queue *queue);
/* The queue ends: it waits no more. */
void wi_gate_forget(struct weir_queue *queue);

#define GATE_LOW_BYTES (64u << 10)
#define RANKS_LOW      (1u << 2 | 1u << 4) /* BATCH, BACKGROUND */
static inline bool class_is_urgent(uint32_t io_class)
{
    return io_class <= WEIR_CLASS_SYNC;
}
static inline bool rank_gives_way(uint32_t rank)
{
    return RANKS_LOW >> rank & 1;
}

/* merge.c: neighbours in one operation. */
int wi_merge_init(struct weir_queue *queue, uint32_t gap, uint32_t flags);
void wi_merge_fini(struct weir_queue *queue);
uint64_t wi_merge_memory(const struct weir_queue *queue);
/* The job waits in its class queue, or no longer does. */
void wi_merge_index(struct weir_queue *queue, struct weir_job *job);
void wi_merge_unindex(struct weir_queue *queue, struct weir_job *job);
/* Neighbours of `job` (off its list) that may go with it, taken off their lists, as a bundle
 * whose op is filled but for descriptor and flags; NULL: it goes alone. At most `bytes_max`
 * in all, and what the gate has room for: the job itself was admitted before. */
struct bundle *wi_merge_gather(struct weir_queue *queue, struct weir_job *job,
                               uint64_t bytes_max);
/* Of a staged bundle: give a member that was read its bytes. */
void wi_merge_deliver(const struct bundle *bundle, struct weir_job *job);
void wi_merge_free(struct weir_queue *queue, struct bundle *bundle);
/* The bundle that `op` belongs to, or NULL if it is a job's. */
static inline struct bundle *bundle_of(const struct weir_queue *queue, struct wi_op *op)
{
    uintptr_t at = (uintptr_t)op - (uintptr_t)queue->bundles;

    return at < sizeof(struct bundle) * BUNDLES_MAX ? (struct bundle *)(void *)op : NULL;
}

/* many.c: READ_MANY. */
int wi_many_prepare(struct weir_queue *queue);
void wi_many_fini(struct weir_queue *queue);
/* It is off all lists. */
void wi_many_start(struct weir_queue *queue, struct weir_job *job);
/* It is LOADING, or QUEUED and off its list; and marked. */
void wi_many_stop(struct weir_queue *queue, struct weir_job *job);

/* cached.c: reads through the block cache. */
int wi_cached_prepare(struct weir_queue *queue, struct weir_job *job);
void wi_cached_fini(struct weir_queue *queue);
/* Step every job that is ready. */
void wi_cached_run(struct weir_queue *queue);
/* A job in LOADING becomes more urgent, and the load that it waits for with it. */
void wi_cached_promote(struct weir_queue *queue, struct weir_job *job, uint32_t io_class);
/* WILLNEED: start loading. Returns how many bytes were not there. */
int64_t wi_cached_advise(struct weir_queue *queue, struct weir_job *job);
bool wi_cached_is_idle(const struct weir_queue *queue);

#endif
