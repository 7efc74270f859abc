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

#include "base/error.h"
#include "base/hist.h"
#include "base/inbox.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/pool.h"
#include "base/wheel.h"
#include "engine.h"
#include "os/backend.h"
#include "os/os.h"

/* ---- jobs ---------------------------------------------------------------------------- */

/*
 * The states of a job, and the only functions that move it between them (through set_state in
 * queue_work.c; owner thread only, but for posting):
 *
 *   IDLE   -> POSTED   weir_queue_post   by the thread that posts
 *   IDLE, POSTED -> QUEUED   wi_queue_take   submitted, or a posted job reaches its queue
 *   QUEUED -> DEVICE   start_job         given to the backend, or tried inline
 *   QUEUED -> QUEUED   hold_job          waits behind an overlapping write (list `held`)
 *   DEVICE -> RETRY    wait_until        a transient error; its timer brings it back
 *   QUEUED -> RETRY    wait_until        a NOP with a time
 *   DEVICE -> DEVICE   start_job         the rest of a short transfer, or at once again
 *   RETRY  -> QUEUED   fire_timer
 *   QUEUED, RETRY, DEVICE -> DONE  finish
 *   DONE   -> IDLE     call_done         just before `done` is called
 *
 *   J1  A job on the order list is QUEUED, DEVICE or RETRY.
 *   J2  Its timer is in the wheel only in QUEUED, DEVICE and RETRY.
 *   J3  `device` of the queue counts the jobs in DEVICE.
 */
enum job_state {
    JOB_IDLE = 0, /* what the prepare functions leave */
    JOB_QUEUED = WEIR_STATE_QUEUED,
    JOB_DEVICE = WEIR_STATE_DEVICE,
    JOB_RETRY = WEIR_STATE_RETRY,
    JOB_DONE,
    JOB_POSTED
};

enum job_mark {
    MARK_ORDERED = 1u << 0, /* on the order list */
    MARK_CANCEL_ASKED = 1u << 1,
    MARK_EXPIRED = 1u << 2, /* its time ran out while in DEVICE */
    MARK_FORCE_ASYNC = 1u << 3,
    MARK_NO_INLINE = 1u << 4
};

#define WAITERS_MAX 0xfffu

/*
 * The private half of a job. `link` is used while QUEUED, `inbox` while posted, `op` from
 * DEVICE to DONE; the op is filled anew each time it is started, so they can share memory.
 */
struct job_tail {
    union {
        struct wi_op op;
        struct wi_list link;
        struct {
            struct wi_list link;
            struct weir_job *blocker; /* on the held list: whose end it waits for */
        } held;
        struct wi_inbox_node inbox;
    };
    struct wi_timer timer;
    struct wi_list order;
    struct weir_queue *queue;
    uint64_t submit_ns;
    uint64_t start_ns;
    uint8_t state;
    uint8_t marks;
    uint8_t tries;  /* of the current piece, after transient errors */
    uint8_t rounds; /* writes in a row that moved nothing */
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
    return op_is_read(op)    ? WEIR_STATS_READ
           : op_is_write(op) ? WEIR_STATS_WRITE
           : op_is_sync(op)  ? WEIR_STATS_SYNC
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
    _Atomic int32_t sync_error; /* the first failed sync; release/acquire */
    struct wi_mutex sync_mu;
    struct wi_cond sync_ended;
    struct wi_list syncs;         /* running ones, oldest first; guarded by sync_mu */
    uint64_t next_sync;           /* guarded by sync_mu */
    _Atomic int32_t cached_score; /* relaxed: a hint, see try_inline in queue.c */
};

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
    /* Made on first use; release when set, acquire by readers. */
    _Atomic(struct wi_hist *) hists[WEIR_STATS_GROUPS][WEIR_CLASSES][STATS_WHICH];
};

#define BLOCKING_SHARDS 16
/* Of blocking calls; many threads add atomically, spread by thread. */
struct blocking_stats {
    _Alignas(WI_CACHE_LINE) struct stats_counters ops[WEIR_STATS_GROUPS];
    _Atomic uint64_t extra_calls; /* system calls beyond one a call */
    _Atomic uint64_t retries;
    _Atomic uint64_t continued;
    _Atomic(struct wi_hist *) device[WEIR_STATS_GROUPS];
};

/* The calling thread's number, from 1; never given to another thread. */
uint32_t wi_this_thread(void);
struct blocking_stats *wi_stats_shard(struct weir_engine *engine);
/* Make sure that the histograms of a group and class are there. False without memory. */
bool wi_stats_prepare(struct weir_queue *queue, enum weir_stats_group group, uint32_t io_class);
/* A queue ends: keep what it counted, and take it off the engine's list. */
void wi_stats_retire(struct weir_engine *engine, struct weir_queue *queue);

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

    struct blocking_stats *blocking; /* BLOCKING_SHARDS of them */
    _Atomic uint64_t closes; /* files closed so far; queues look whether to let go of slots */
};

/* Tell the engine of memory taken or given back. Blocks: on lock. */
void wi_engine_account(struct weir_engine *engine, int64_t bytes);
__attribute__((format(printf, 3, 4))) void wi_engine_log(struct weir_engine *engine, int level,
                                                         const char *format, ...);

/* ---- queues -------------------------------------------------------------------------- */

/* One entry of the dump; also maps ids to jobs. Any thread may read all but `job`. */
struct queue_slot {
    _Atomic uint64_t id; /* 0: free; written last at take and first at release */
    _Atomic uint64_t submit_ns;
    _Atomic uint64_t offset;
    _Atomic uint64_t length;
    _Atomic uint32_t op_state; /* op << 8 | state */
    uint32_t next_free;        /* owner */
    uint32_t generation;       /* owner */
    struct weir_job *job;      /* owner */
};

/* What a queue knows of one of the engine's files. Owner thread only. */
struct queue_file {
    struct weir_file *file;
    uint64_t generation;
    uint32_t jobs; /* taken and not done */
    uint32_t uses;
    int32_t slot; /* fixed file, or -1 */
};

#define QUEUE_FILE_SLOTS 64
#define SPARE_SLOTS      1

struct weir_queue {
    /* Set at creation. */
    struct weir_engine *engine;
    const struct wi_os *os;
    struct wi_backend *backend;
    struct wi_list engine_link; /* guarded by engine->mu */
    uint32_t depth;
    uint32_t room; /* depth + backlog; slots are SPARE_SLOTS more, for posted cancels */
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
    uint32_t taken;       /* jobs that are QUEUED, DEVICE, RETRY or DONE */
    uint32_t device;      /* jobs in DEVICE at the backend */
    uint32_t inline_left; /* bytes that this turn may still copy inline */
    struct wi_list backlog;
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

    struct queue_stats stats;

    /* Atomic, for other threads. */
    _Alignas(WI_CACHE_LINE) _Atomic uint32_t owner; /* wi_this_thread() of the owner; 0: none */
    _Atomic uint32_t closing;
    _Atomic uint32_t posted;  /* posted and not yet taken over by the owner; relaxed */
    _Atomic uint32_t posting; /* threads inside weir_queue_post */
    struct wi_inbox inbox;
};

/* ---- between queue.c and queue_work.c; all: owner thread --------------------------------- */

/* Make room in the queue's table for the job's file. Returns 0 or -ENOMEM. */
int wi_queue_know_file(struct weir_queue *queue, struct weir_job *job);

/* Take a checked job over: it will be done. There must be room. */
void wi_queue_take(struct weir_queue *queue, struct weir_job *job, uint64_t now_ns);

/* Give to the backend what it can take from the backlog. */
void wi_queue_dispatch(struct weir_queue *queue);

/* The backend has finished these. */
void wi_queue_completed(struct weir_queue *queue, struct wi_op *chain);

/* Act on the timers that are due by queue->now_ns. */
void wi_queue_fire_timers(struct weir_queue *queue);

/* Call `done` for all that are due. Returns how many. */
int wi_queue_call_done(struct weir_queue *queue);

/* As weir_queue_cancel. */
int wi_queue_cancel_id(struct weir_queue *queue, uint64_t job_id);

/* Ask for everything to be cancelled. */
void wi_queue_cancel_all(struct weir_queue *queue);

/* Let go of the fixed slots of files that were closed; of all of them if `all`. */
void wi_queue_drop_slots(struct weir_queue *queue, bool all);

#endif
