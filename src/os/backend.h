/* SPDX-License-Identifier: MIT */
/*
 * backend.h - what executes a queue's operations
 *
 * A backend instance belongs to one queue and is used by its owner thread only, but for
 * `wake`. It moves bytes; it knows nothing of jobs, retries, order or deadlines. An
 * operation given to `start` comes back exactly once from `turn`, with `result` set: a
 * count, 0, or a negative errno, whatever the kernel said, uninterpreted.
 *
 *   uring     reads and writes through a ring; WI_OP_CALL on the pool
 *   threads   everything on the pool
 *   null      nothing: completes at once, or by script; WI_OP_CALL is run inside `turn`
 *   fault     wraps one of them (fault.h)
 */
#ifndef WEIR_OS_BACKEND_H
#define WEIR_OS_BACKEND_H

#include "base/pool.h"
#include "os.h"

/* Linux 6.14; not in the headers of Debian 12. */
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080
#endif

struct wi_backend;

enum wi_op_kind {
    WI_OP_NONE,
    WI_OP_READ,   /* addr, len bytes */
    WI_OP_WRITE,
    WI_OP_READV,  /* addr: iovecs, len: their number, at most 1024 */
    WI_OP_WRITEV,
    WI_OP_CALL    /* addr: wi_op_call_fn, run on the lane `lane` */
};

enum wi_op_flag {
    WI_OP_FIXED_BUFFER = 1u << 0, /* addr lies in the registered region */
    WI_OP_FORCE_ASYNC = 1u << 1,  /* don't try without waiting first */
    WI_OP_DONTCACHE = 1u << 2     /* leave nothing in the page cache (RWF_DONTCACHE); -EOPNOTSUPP
                                     where the file system can't */
};

struct wi_op;
/* Runs on a pool thread, or inside `turn`. Its value becomes the result. */
typedef int64_t (*wi_op_call_fn)(struct wi_op *op);

/*
 * One operation, embedded in whatever it is for. Set by the caller: all but `task`,
 * `backend` and `result`.
 */
struct wi_op {
    struct wi_task task; /* the backend's while started; task.next links what turn returns */
    struct wi_backend *backend;
    uint64_t addr;
    uint64_t offset;
    union {
        int64_t result;  /* after turn */
        struct {
            uint32_t len; /* before start; at most 1 GiB */
            int32_t fd;
        };
    };
    uint8_t kind;
    uint8_t flags;
    uint8_t lane;
    uint8_t busy;        /* the backend's: between start and turn */
    int32_t fixed_file;  /* slot given to set_file, or -1 */
};

struct wi_backend_stats {
    uint64_t system_calls; /* made by the owner, and by the pool for this backend's READ/WRITE */
};

struct wi_backend_ops {
    const char *name;

    /* The calling thread becomes the owner. Returns 0 or a negative errno. */
    int (*bind)(struct wi_backend *backend);
    /* Undo bind. Nothing is started. The next bind may come from another thread. Returns 0, or
     * a negative errno and changes nothing. */
    int (*unbind)(struct wi_backend *backend);

    /* Stage one operation. Returns 0, or -EAGAIN if there is no room before the next turn.
     * Never blocks. */
    int (*start)(struct wi_backend *backend, struct wi_op *op);

    /*
     * Hand over what is staged and return what is finished, as a chain in `ret_done`.
     * If fewer than `want` are finished it waits until that many are, `until_ns` (monotonic)
     * has come, or it is woken. `want` 0 never waits; want > started is the caller's mistake
     * unless it waits to be woken. Returns how many finished, or -EINTR if a signal came
     * before any; a negative errno otherwise means the backend is broken.
     */
    int (*turn)(struct wi_backend *backend, uint32_t want, uint64_t until_ns,
                struct wi_op **ret_done);

    /* Ask for a started operation to be cancelled. It still comes back from turn. Returns 0, or
     * -EAGAIN if there is no room for the request now. */
    int (*cancel)(struct wi_backend *backend, struct wi_op *op);

    /* End a wait in `turn`, now or at the next one. Once `fd` was called, it also becomes
     * readable: at once, or when the turn under way ends, because what the wake announces may
     * have been looked for just before that turn. Thread: any. */
    void (*wake)(struct wi_backend *backend);

    /* A descriptor that is readable when turn would return something or was woken.
     * The first call switches the upkeep on. */
    int (*fd)(struct wi_backend *backend);

    /* Make a file known under a small slot number; fd -1 forgets it. Optional. */
    int (*set_file)(struct wi_backend *backend, uint32_t slot, int fd);

    void (*stats)(struct wi_backend *backend, struct wi_backend_stats *ret_stats);

    /* Nothing is started. Frees the instance. */
    void (*close)(struct wi_backend *backend);
};

struct wi_calls;
struct wi_backend {
    const struct wi_backend_ops *ops;
    const struct wi_os *os;
    struct wi_pool *pool;
    struct wi_calls *calls; /* set by backends that run operations on the pool (calls.h) */
};

struct wi_backend_options {
    const struct wi_os *os;   /* all borrowed until the backend is closed */
    struct wi_pool *pool;
    uint32_t depth;           /* operations started at most */
    uint32_t file_slots;      /* fixed files wanted; 0 for none */
    void *region;             /* buffers to register; NULL for none */
    size_t region_size;
    const struct wi_null_script *null_script; /* for null; NULL completes at once */
};

/*
 * A device that a test makes itself, in time that the test keeps (tests/support/clock.h). Called by
 * the owners of the queues that share it.
 */
struct wi_null_device {
    /* The operation starts. Returns when it is due; UINT64_MAX: never, unless it is cancelled. */
    uint64_t (*start)(struct wi_null_device *device, const struct wi_op *op, uint64_t now_ns);
    /* It ends: move its bytes, and return its result. `result` is 0, or -ECANCELED. */
    int64_t (*end)(struct wi_null_device *device, const struct wi_op *op, int64_t result);
    /* Wait until then, without sleeping. */
    void (*wait)(struct wi_null_device *device, uint64_t until_ns);
};

/* What the null backend does, for tests; copied at open. */
struct wi_null_script {
    uint64_t seed;
    uint64_t delay_min_ns;    /* each operation takes a random time in this range */
    uint64_t delay_max_ns;
    uint32_t fail_per_1024;   /* chance of a failure, and with what */
    int32_t fail_with;        /* negative errno */
    uint32_t hang_per_1024;   /* chance to finish only after cancel, with -ECANCELED */
    struct wi_null_device *device; /* decides instead of all these; borrowed; may be NULL */
};

typedef int (*wi_backend_open_fn)(const struct wi_backend_options *options,
                                  struct wi_backend **ret_backend);
int wi_backend_uring_open(const struct wi_backend_options *options,
                          struct wi_backend **ret_backend);
int wi_backend_threads_open(const struct wi_backend_options *options,
                            struct wi_backend **ret_backend);
int wi_backend_null_open(const struct wi_backend_options *options,
                         struct wi_backend **ret_backend);

/* What io_uring does here, found once with a real read. */
struct wi_uring_probe {
    int code;                /* 0 works, else a negative errno */
    uint32_t ring_flags;     /* WEIR_RING_* */
    bool registers_region;   /* the region could be registered */
    char why[160];
    char cure[200];
};
/* `region` (may be NULL) is borrowed until it returns. */
void wi_uring_probe(void *region, size_t region_size, struct wi_uring_probe *ret_probe);

#endif
