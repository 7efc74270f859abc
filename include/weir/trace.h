/* SPDX-License-Identifier: MIT */
/*
 * trace.h - a record of every operation, to look at and to replay
 *
 * While a trace is on, each job and blocking call that ends adds a record to a file, whose
 * format is in docs/formats/trace.md. `weir trace show` prints it, `weir trace replay` does the
 * same reads again. Records are gathered in memory and written by the pool; where that cannot
 * keep up, records are dropped and counted, rather than slowing what is being watched.
 */
#ifndef WEIR_TRACE_H
#define WEIR_TRACE_H

#include <weir/base.h>
#include <weir/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- writing one -------------------------------------------------------------------------- */

/*
 * Begin. The file is made anew (0600); a trace that is there already is replaced. Takes 1.2 MB
 * of memory until it is stopped. Returns 0, or
 *   -EALREADY  a trace of this engine is on
 *   -EEXIST    there is a file that is no trace
 *   -EBUSY     there is a trace that is being written
 *   or what opening and writing the file say.
 * Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_trace_start(struct weir_engine *engine, const char *path,
                              struct weir_error *error);

/*
 * End, and write what is left. What ends later is not recorded. Returns 0; -ENOENT if none was
 * on; or the error of writing, with the file as far as it came. The file is not synced.
 * `ret_dropped` gets the number of operations that have no record; it may be NULL. Closing the
 * engine ends a trace too.
 * Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_trace_stop(struct weir_engine *engine, uint64_t *ret_dropped,
                             struct weir_error *error);

/* ---- reading one --------------------------------------------------------------------------- */

struct weir_trace_reader;

enum weir_trace_flag {
    WEIR_TRACE_BLOCKING = 1u << 0, /* a blocking call, no job */
    WEIR_TRACE_INTERNAL = 1u << 1, /* the block cache's own: a load, a prefetch */
    WEIR_TRACE_UNSTARTED = 1u << 2 /* ended before it came to the device: cancelled, expired */
};

struct weir_trace_record {
    int64_t submit_ns;  /* since the trace began; negative if it was on its way by then */
    uint64_t wait_ns;   /* submit to device; to its end if it never came there */
    uint64_t device_ns; /* device to end */
    uint64_t id;        /* the job's; 0 for a blocking call */
    uint64_t offset;
    uint64_t len;
    int64_t result;
    const char *path;    /* inside, valid until close; NULL: no file, or its name was lost */
    uint32_t file;       /* number of the file in the trace, from 1; 0: none */
    uint32_t open_flags; /* of the file: WEIR_OPEN_* */
    uint32_t queue;      /* number of the queue; 0 for a blocking call */
    uint32_t thread;     /* number of the thread; 0 for a job */
    uint32_t flags;      /* WEIR_TRACE_* */
    uint8_t op;          /* enum weir_op; perhaps one that this release does not know */
    uint8_t io_class;
    uint8_t reserved[2];
};

struct weir_trace_info {
    size_t size;         /* sizeof(struct weir_trace_info), set by the caller */
    int64_t started_ns;  /* since 1970 */
    const char *version; /* of the library that wrote it. Inside, valid until close */
    const char *backend; /* that it ran on. Inside, valid until close */
    uint64_t file_bytes; /* read so far */
    uint64_t records;    /* read so far */
    uint64_t lost;       /* records of damaged blocks, so far */
    uint64_t dropped;    /* operations without a record; known with `complete` */
    uint64_t ended_ns;   /* when it was stopped, since it began; known with `complete` */
    uint32_t complete;   /* 1: the end was reached, and nothing was lost on the way */
    uint32_t reserved;
};

/*
 * Open a trace. WEIR_ECORRUPT: it is none, or its header is damaged; WEIR_ETRUNCATED: it ends
 * in its header; WEIR_EVERSION: a newer release is needed to read it. `*ret_reader` is to be
 * closed. A reader is used by one thread at a time. Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_trace_reader_open(const char *path, struct weir_trace_reader **ret_reader,
                                    struct weir_error *error);

/*
 * The next record, in the order in which operations ended, nearly (threads hand theirs in side
 * by side). Nothing is told that its checksum has not vouched for. Returns
 *    1   `*ret_record` is filled
 *    0   no more
 *   -WEIR_ECORRUPT    records are lost; call again for those that follow, if any
 *   -WEIR_ETRUNCATED  the file ends before the trace does: its program ended without stopping
 *                     it, or still runs. The next call returns 0
 *   -WEIR_EVERSION    what follows needs a newer release. The next call returns 0
 *   or what reading the file says; give up then.
 * Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_trace_reader_next(struct weir_trace_reader *reader,
                                    struct weir_trace_record *ret_record,
                                    struct weir_error *error);

/* Returns 0 or -EINVAL. Thread: any. Blocks: never. */
WEIR_API int weir_trace_reader_info(const struct weir_trace_reader *reader,
                                    struct weir_trace_info *info);

/* NULL is allowed. Thread: any. Blocks: on I/O. */
WEIR_API void weir_trace_reader_close(struct weir_trace_reader *reader);

#ifdef __cplusplus
}
#endif
#endif
