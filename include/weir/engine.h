/* SPDX-License-Identifier: MIT */
/*
 * engine.h - the engine: shared by all threads, passive, thread-safe
 *
 * An engine owns files, buffers, the thread pool and the statistics. It has no
 * thread of its own that moves I/O: queues do that (queue.h), or the thread that
 * makes a blocking call (file.h). The simple use is
 *
 *     struct weir_engine *engine;
 *     int rc = weir_engine_open(NULL, &engine, NULL);
 *     ...
 *     weir_engine_close(engine);
 *
 * Fork: a child process may only exec or exit.
 */
#ifndef WEIR_ENGINE_H
#define WEIR_ENGINE_H

#include <weir/base.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_engine;

/* What executes reads and writes that were submitted as jobs. */
enum weir_backend {
    WEIR_BACKEND_AUTO = 0,    /* uring where a real read through it works, else threads */
    WEIR_BACKEND_URING = 1,   /* Linux io_uring */
    WEIR_BACKEND_THREADS = 2, /* preadv2 and pwritev2 on the pool's io lane */
    WEIR_BACKEND_NULL = 3     /* moves no bytes; for measuring our own cost */
};

/* The parts of the pool. A lane bounds how many threads its kind of work may hold. */
enum weir_lane {
    WEIR_LANE_IO = 0,    /* reads and writes of the threads backend */
    WEIR_LANE_FILES = 1, /* system calls that may take long: syncs, opens, directories */
    WEIR_LANE_CPU = 2,   /* the caller's functions that compute */
    WEIR_LANES = 3
};

/* Which block the cache drops when it needs room. */
enum weir_policy {
    WEIR_POLICY_S3FIFO = 0, /* small and main queue, ghosts; a scan does not flush it */
    WEIR_POLICY_2Q = 1,
    WEIR_POLICY_ARC = 2,
    WEIR_POLICY_LRU = 3,
    WEIR_POLICY_LFU = 4,
    WEIR_POLICIES = 5
};

#define WEIR_NEVER UINT64_MAX

struct weir_engine_options {
    size_t size;              /* sizeof(struct weir_engine_options), as the caller knows it */
    uint32_t backend;         /* WEIR_BACKEND_*; the environment's WEIR_BACKEND goes first */
    uint32_t io_threads;      /* at most in the io lane; 0 means 4 a processor, 2 to 16 */
    uint32_t files_threads;   /* at most in the files lane; 0 means 2 a processor, 2 to 8 */
    uint32_t cpu_threads;     /* at most in the cpu lane; 0 means one a processor */
    const uint32_t *pin_cpus; /* processors that pool threads are pinned to, in turn; borrowed
                                 until open returns; NULL pins none */
    size_t pin_cpus_count;
    size_t buffer_size;    /* bytes of one pool buffer, a multiple of 4096; 0: 64 KiB */
    uint32_t buffer_count; /* how many; 0 means no pool */
    weir_log_fn log;       /* NULL: nothing is logged */
    void *log_arg;

    /* The block cache (view.h), for files opened with WEIR_OPEN_CACHED. */
    uint64_t cache_bytes;      /* at most, exactly; at least 16 blocks; 0: no cache */
    uint32_t cache_block_size; /* a power of two, 4 KiB to 1 MiB; 0: 64 KiB */
    uint32_t cache_policy;     /* WEIR_POLICY_* */
    uint64_t cache_ttl_ns;     /* a block older than this is loaded again; 0: never */

    /* What all queues together may have at the device; released at completion. */
    uint64_t device_bytes; /* 0: 64 MiB */
    uint32_t device_ops;   /* 0: 1024 */

    uint32_t open_files; /* descriptors held open at most; 0: one a file, while it is open */
    uint64_t
        stall_ns; /* log an operation that is at the device for longer; 0: 5 s; WEIR_NEVER */
};

/*
 * Open an engine. `options` may be NULL; it is borrowed until the call returns.
 *
 * Returns 0, or
 *   -EINVAL      an option is out of range, or WEIR_BACKEND in the environment is no name
 *   -EOPNOTSUPP  a backend was asked for by name and does not run here; `error` says why
 *   -ENOMEM, -EMFILE
 * Thread: any. Blocks: on I/O, for the probe (well below a millisecond).
 */
WEIR_API int weir_engine_open(const struct weir_engine_options *options,
                              struct weir_engine **ret_engine, struct weir_error *error);

/*
 * Close the engine. Its queues and files must be closed, and views released, before.
 * Returns 0 and frees it, or -EBUSY and changes nothing. NULL is allowed.
 * Thread: any, once. Blocks: until the pool's threads have ended.
 */
WEIR_API int weir_engine_close(struct weir_engine *engine);

/* What the engine runs on, and why. All strings: inside, valid until the engine is closed. */
struct weir_engine_info {
    size_t size;              /* sizeof(struct weir_engine_info), set by the caller */
    uint32_t backend;         /* the one that runs: WEIR_BACKEND_* */
    uint32_t ring_flags;      /* WEIR_RING_* that the kernel granted; 0 unless uring */
    const char *backend_name; /* "uring", "threads", "null" */
    const char *why;          /* why this one: "io_uring works", "io_uring_setup: EPERM: ..." */
    const char *cure;         /* what to do to get the better one; "" if it runs */
    uint32_t cpus;            /* processors we may use: affinity mask and cgroup quota */
    uint32_t registered_buffers;       /* 1 if the pool's buffers fit the locked-memory limit */
    uint64_t buffer_bytes;             /* size of the buffer pool */
    uint32_t lane_threads[WEIR_LANES]; /* how many each lane may grow to */
    uint32_t reserved;
};

enum weir_ring_flag {
    WEIR_RING_SINGLE_ISSUER = 1u << 0,
    WEIR_RING_DEFER_TASKRUN = 1u << 1,
    WEIR_RING_COOP_TASKRUN = 1u << 2
};

/* Fill `info`. Returns 0 or -EINVAL. Thread: any. Blocks: never. */
WEIR_API int weir_engine_info(struct weir_engine *engine, struct weir_engine_info *info);

/*
 * A buffer of `buffer_size` bytes, aligned to 4096, from the engine's pool; NULL when all
 * are in use or there is no pool. Reads and writes into these need no page pinning by the
 * kernel where the backend could register them. Give back with weir_buffer_release().
 * Thread: any. Blocks: never. Allocates: never.
 */
WEIR_API void *weir_buffer_acquire(struct weir_engine *engine);
WEIR_API void weir_buffer_release(struct weir_engine *engine, void *buffer);

#ifdef __cplusplus
}
#endif
#endif
