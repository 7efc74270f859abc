/* SPDX-License-Identifier: MIT */
/*
 * job.h - one asynchronous operation
 *
 * A job is memory of the caller's: 256 bytes, of which the first half is public. Prepare
 * it with one of the weir_job_... functions below, submit it to a queue (queue.h), and its
 * `done` runs exactly once, later, on the queue's thread, inside weir_queue_run(),
 * weir_queue_wait() or weir_queue_close(). Until then the job, its buffer, its path and
 * its error record are borrowed. Inside `done` one may submit (this job too), make
 * blocking calls and free the job; running or waiting on the queue there is -EDEADLK.
 *
 *     static void on_read(struct weir_job *job) { use(job->buf, job->result); }
 *
 *     weir_job_read(&job, file, buf, 4096, 0, on_read, NULL);
 *     struct weir_job *jobs[] = { &job };
 *     weir_queue_submit(queue, jobs, 1);
 *     weir_queue_wait(queue, 1, WEIR_FOREVER);
 *
 * Results. `result` is 0, a count, or a negative code: -ECANCELED if cancelled, -ETIMEDOUT
 * if its time ran out, else what failed. `transferred` says how many bytes moved even if it
 * failed. A read is short only at the end of the file.
 *
 * Thread: a job is touched by one thread at a time. Preparing never blocks or allocates.
 */
#ifndef WEIR_JOB_H
#define WEIR_JOB_H

#include <sys/uio.h>
#include <weir/base.h>
#include <weir/file.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_engine;
struct weir_job;
typedef void (*weir_done_fn)(struct weir_job *job);

/* A function for a lane of the pool. Its value becomes the job's result. */
typedef int64_t (*weir_call_fn)(void *context);

/* What a job does. The fields it reads are named behind it. */
enum weir_op {
    WEIR_OP_NONE = 0,
    WEIR_OP_READ = 1,       /* file, buf, len, offset */
    WEIR_OP_WRITE = 2,      /* file, buf, len, offset */
    WEIR_OP_READV = 3,      /* file, buf: const struct iovec *, len: their number, offset */
    WEIR_OP_WRITEV = 4,     /* as READV */
    WEIR_OP_FSYNC = 5,      /* file */
    WEIR_OP_FDATASYNC = 6,  /* file */
    WEIR_OP_OPEN = 7,       /* file: directory or NULL, path, mode, flags: WEIR_OPEN_*,
                               buf: struct weir_file ** that receives the file */
    WEIR_OP_CLOSE = 8,      /* file */
    WEIR_OP_STAT = 9,       /* file, or path from directory `file`; buf: struct weir_stat * */
    WEIR_OP_TRUNCATE = 10,  /* file, offset: the new size */
    WEIR_OP_ALLOCATE = 11,  /* file, offset, len */
    WEIR_OP_MKDIR = 12,     /* file: directory or NULL, path, mode */
    WEIR_OP_UNLINK = 13,    /* file, path */
    WEIR_OP_RMDIR = 14,     /* file, path */
    WEIR_OP_RENAME = 15,    /* file, path, path2; both from the same directory */
    WEIR_OP_LINK = 16,      /* file, path, path2 */
    WEIR_OP_SYMLINK = 17,   /* file, path: the target, path2: the link */
    WEIR_OP_READLINK = 18,  /* file, path, buf, len; result is the target's length */
    WEIR_OP_LIST = 19,      /* file: an open directory; buf, len: filled with
                               struct weir_dirent; result is the bytes used, 0 at the end */
    WEIR_OP_CALL = 20,      /* lane, call, buf: its context */
    WEIR_OP_NOP = 21,       /* nothing; with timeout_ns it is a timer, done with 0 */
    WEIR_OP_CANCEL = 22,    /* offset: the id of the job to cancel; for posting */
    WEIR_OP_VIEW = 23,      /* file, offset, len, buf: struct weir_view *; see view.h */
    WEIR_OP_READ_MANY = 24, /* file, buf: struct weir_range *, len: their number */
    WEIR_OP_ADVISE = 25,    /* file, offset, buf: NULL, len, mode: WEIR_ADVICE_* */
    WEIR_OPS = 26
};

/*
 * Classes. Where more waits than the device may have, each gets its share of the bytes: SYNC
 * 64, FOREGROUND 32, BATCH 8, PREFETCH 4, BACKGROUND 2; none starves. And while reads or writes of
 * SYNC or FOREGROUND are under way anywhere in the engine, or were within 10 ms, BATCH and BACKGROUND
 * together have one operation of at most 64 KiB at the device.
 */
enum weir_class {
    WEIR_CLASS_FOREGROUND = 0, /* the default: somebody waits */
    WEIR_CLASS_SYNC = 1,       /* a commit waits */
    WEIR_CLASS_BATCH = 2,
    WEIR_CLASS_PREFETCH = 3,
    WEIR_CLASS_BACKGROUND = 4,
    WEIR_CLASSES = 5
};

enum weir_job_flag {
    /* On FSYNC, FDATASYNC: starts after the writes of this file that were submitted to this
     * queue before it. Without it a sync covers only writes that were already done. */
    WEIR_JOB_BARRIER = 1u << 0,
    /* On READ, READV: starts after overlapping writes that were submitted before it. A write
     * that is submitted after it does not wait for it. */
    WEIR_JOB_AFTER_WRITES = 1u << 1,
    WEIR_JOB_KEEP_SIZE = 1u << 2, /* on ALLOCATE: the file's size stays */
    WEIR_JOB_EXCHANGE = 1u << 3,  /* on RENAME: the two swap names */
    WEIR_JOB_NOREPLACE = 1u << 4, /* on RENAME: -EEXIST if the new name is taken */
    WEIR_JOB_NOFOLLOW = 1u << 5,  /* on STAT with a path: of the link itself */
    WEIR_JOB_ALONE = 1u << 6,     /* on reads and writes: not merged with others */
    WEIR_JOB_ONCE = 1u << 7       /* on READ, VIEW of a cached file: drop the blocks first */
};

struct weir_permit;

struct weir_job {
    /* Set by the caller, or by the functions below. Not changed by the library. */
    uint16_t op;      /* enum weir_op */
    uint8_t io_class; /* enum weir_class */
    uint8_t lane;     /* enum weir_lane, for CALL */
    uint32_t flags;   /* WEIR_JOB_*; for OPEN instead WEIR_OPEN_* */
    uint32_t
        sequence;  /* order inside a class: lower first, equals in the order of submitting */
    uint32_t mode; /* permission bits for OPEN and MKDIR */
    struct weir_file *file;
    void *buf;
    size_t len;
    uint64_t offset;
    const char *path;
    const char *path2;
    weir_call_fn call;
    uint64_t timeout_ns; /* from submit; 0 means none */
    weir_done_fn done;
    void *arg;                  /* the caller's */
    struct weir_error *error;   /* may be NULL */
    struct weir_permit *permit; /* given back just before `done` (limiter.h); may be NULL */

    /* Set by the library. */
    int64_t result;
    uint64_t transferred; /* bytes moved, also if the job failed */
    uint64_t id;          /* unique in the engine from submit on; for cancel, logs and dumps */

    uint64_t private_tail[15];
};

/* An entry of a directory listing. The next one starts `entry_size` bytes on. */
struct weir_dirent {
    uint64_t inode;
    uint16_t entry_size;
    uint8_t type; /* DT_* of <dirent.h>; 0 where the file system does not say */
    uint8_t reserved[5];
    char name[1]; /* longer than it looks, ends with NUL */
};

/* Prepare. Each clears the whole job first: class FOREGROUND, no flags, no time limit; set
 * those fields afterwards. None may be called on a job that is submitted. */
WEIR_API void weir_job_read(struct weir_job *job, struct weir_file *file, void *buf, size_t len,
                            uint64_t offset, weir_done_fn done, void *arg);
WEIR_API void weir_job_write(struct weir_job *job, struct weir_file *file, const void *buf,
                             size_t len, uint64_t offset, weir_done_fn done, void *arg);
WEIR_API void weir_job_readv(struct weir_job *job, struct weir_file *file,
                             const struct iovec *iov, size_t iov_count, uint64_t offset,
                             weir_done_fn done, void *arg);
WEIR_API void weir_job_writev(struct weir_job *job, struct weir_file *file,
                              const struct iovec *iov, size_t iov_count, uint64_t offset,
                              weir_done_fn done, void *arg);
WEIR_API void weir_job_sync(struct weir_job *job, struct weir_file *file, uint32_t how,
                            weir_done_fn done, void *arg);
WEIR_API void weir_job_open(struct weir_job *job, struct weir_file *dir, const char *path,
                            uint32_t open_flags, uint32_t mode, struct weir_file **ret_file,
                            weir_done_fn done, void *arg);
WEIR_API void weir_job_call(struct weir_job *job, uint32_t lane, weir_call_fn call,
                            void *context, weir_done_fn done, void *arg);

/* All others: prepares `op`; set the fields that enum weir_op names. */
WEIR_API void weir_job_prepare(struct weir_job *job, uint32_t op, struct weir_file *file,
                               weir_done_fn done, void *arg);

/*
 * Do a prepared job on the calling thread, without a queue: the blocking form of every
 * operation but CANCEL, such as the directory calls. `done` is not called and may be NULL;
 * class, sequence and order flags mean nothing here, nor does a time limit, but that a NOP with
 * one sleeps that long. Returns what it leaves in `result`, or -EINVAL or -EBADF if the job
 * is malformed, as weir_queue_submit() would.
 * Thread: any, also inside `done`. Blocks: on I/O.
 */
WEIR_API int64_t weir_job_do(struct weir_engine *engine, struct weir_job *job);

/* "read", "fsync"; "?" for what is none. Inside; never freed. */
WEIR_API const char *weir_op_name(uint32_t op);
/* "foreground", "sync"; "?" for what is none. Inside; never freed. */
WEIR_API const char *weir_class_name(uint32_t io_class);

#ifdef __cplusplus
}
#endif
#endif
