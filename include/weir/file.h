/* SPDX-License-Identifier: MIT */
/*
 * file.h - files, and the calls that block
 *
 * A file belongs to the engine and can be used from every thread and queue at once.
 * The calls here make the system call on the calling thread; the same operations as
 * jobs are in job.h. Both sides share the file's state: a sync that failed on one
 * side has failed for all, for good (docs/durability.md).
 *
 * Transfers are exact: a read is short only at the end of the file, a write is
 * whole or an error. Where an error came after some bytes had moved,
 * `*ret_transferred` of the long forms says how many.
 */
#ifndef WEIR_FILE_H
#define WEIR_FILE_H

#include <sys/uio.h>
#include <weir/base.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_engine;
struct weir_file;

/* How to open. One of READ, WRITE or both is needed. */
enum weir_open_flag {
    WEIR_OPEN_READ = 1u << 0,
    WEIR_OPEN_WRITE = 1u << 1,
    WEIR_OPEN_CREATE = 1u << 2,    /* make it if it is not there */
    WEIR_OPEN_EXCLUSIVE = 1u << 3, /* with CREATE: -EEXIST if it is there */
    WEIR_OPEN_TRUNCATE = 1u << 4,
    WEIR_OPEN_DIRECT = 1u << 5,    /* past the page cache; -EINVAL where that can't be */
    WEIR_OPEN_NOFOLLOW = 1u << 6,  /* -ELOOP if the last part of the name is a link */
    WEIR_OPEN_DIRECTORY = 1u << 7, /* a directory, for use as `dir` and for syncing it */
    WEIR_OPEN_UNNAMED = 1u << 8,   /* an unnamed file in the directory `path` (O_TMPFILE) */
    WEIR_OPEN_CACHED = 1u << 9 /* reads go through the engine's block cache (view.h); -EINVAL
                                      if the engine has none. With DIRECT, reads need no
                                      alignment; writes still do */
};

/*
 * Open `path`. Created files get `mode` less the umask. The descriptor is close-on-exec.
 *
 * With `open_files` in the engine's options, the descriptor of a regular file may be closed
 * while nobody uses it and all its writes are synced, and opened again by the name that the
 * file had then. If that name leads to another file by now, or to none, all that is done with
 * this one is -ESTALE from there on. That holds for names that the engine changes as well: of a file
 * that is renamed (WEIR_OP_RENAME) while it is open, use the new handle that you open by its new name.
 *
 * `dir` is the directory that a relative `path` starts from; NULL means the current one.
 * Returns 0 and a file to be closed with weir_file_close(), or a negative errno;
 * -EINVAL for flags that make no sense together.
 * Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_file_open(struct weir_engine *engine, struct weir_file *dir, const char *path,
                            uint32_t flags, uint32_t mode, struct weir_file **ret_file,
                            struct weir_error *error);

/*
 * Take over an open descriptor. `name` is used in errors only and is copied; NULL is
 * allowed. `fd` is taken: weir_file_close() closes it. On failure it stays the caller's.
 * Whether it is direct, readable and writable is asked from the kernel. -EINVAL for one that was
 * opened with O_APPEND: its writes would ignore their offsets.
 * Thread: any. Blocks: never.
 */
WEIR_API int weir_file_adopt(struct weir_engine *engine, int fd, const char *name,
                             struct weir_file **ret_file, struct weir_error *error);

/*
 * Close the file. No job on it may be in flight: then it returns -EBUSY and changes nothing.
 * Else the handle is gone, whatever is returned: 0, or the error that close(2) reported,
 * or the sync error that had poisoned the file. NULL is allowed.
 * Blocking calls on the file must have ended before; with `open_files` in the engine's options, close
 * waits for those on regular files opened by name, but for weir_view_try(), which takes no notice.
 * A queue that had the file registered lets go of it at its next run at the latest.
 * Thread: any, once. Blocks: on I/O.
 */
WEIR_API int weir_file_close(struct weir_file *file);

/* What we know of an open file without asking the kernel. */
struct weir_file_info {
    size_t size;           /* sizeof(struct weir_file_info), set by the caller */
    uint32_t direct;       /* 1 if reads and writes go past the page cache */
    uint32_t memory_align; /* what buffers must be aligned to; 1 if it does not matter */
    uint32_t offset_align; /* the same for offsets and lengths */
    int32_t sync_error;    /* the error of the first failed sync; 0 if none failed */
    int fd;                /* inside, valid until the file is closed; for calls we lack; -1 if
                              it may be closed meanwhile (open_files) */
    const char *path;      /* inside, as it was given */
};
/* Returns 0 or -EINVAL. Thread: any. Blocks: never. */
WEIR_API int weir_file_info(struct weir_file *file, struct weir_file_info *info);

/*
 * Read up to `len` bytes at `offset` into `buf`. Returns how many, fewer than asked only
 * at the end of the file, or a negative errno. -EINVAL if the file is direct and address,
 * length or offset is not aligned.
 * Thread: any. Blocks: on I/O. Allocates: never.
 */
WEIR_API int64_t weir_file_read(struct weir_file *file, void *buf, size_t len, uint64_t offset);

/* Write `len` bytes at `offset`. Returns `len` or a negative errno; see weir_file_transfer()
 * for how far a failed write came. Not durable before a sync.
 * Thread: any. Blocks: on I/O. Allocates: never. */
WEIR_API int64_t weir_file_write(struct weir_file *file, const void *buf, size_t len,
                                 uint64_t offset);

/* The full form of both: vectored, with an error record and the bytes moved also on failure.
 * `write` is 0 or 1; `iov` is borrowed until the call returns; both last may be NULL. */
WEIR_API int64_t weir_file_transfer(struct weir_file *file, int write, const struct iovec *iov,
                                    size_t iov_count, uint64_t offset,
                                    uint64_t *ret_transferred, struct weir_error *error);

/* One part of weir_file_read_many(). */
struct weir_range {
    void *buf;
    size_t len;
    uint64_t offset;
    int64_t result;       /* set by the library: bytes read, fewer than `len` only at the end of
                             the file, or a negative errno */
    uint64_t private_[2]; /* the library's, until the call or job has ended */
};
/*
 * Read any ranges of one file, in any order. Neighbours are read together where that is
 * cheaper (see merging in queue.h). Each range gets its own result. Returns the bytes read in
 * all, or the error of the first range in the array that failed; the others are read all the same.
 * Thread: any. Blocks: on I/O. Allocates: never.
 */
WEIR_API int64_t weir_file_read_many(struct weir_file *file, struct weir_range *ranges,
                                     size_t count, struct weir_error *error);

/* What a program is going to do with a file. */
enum weir_advice {
    WEIR_ADVICE_NORMAL = 0,     /* find out: the default */
    WEIR_ADVICE_SEQUENTIAL = 1, /* prefetch from the first read on; drop blocks early */
    WEIR_ADVICE_RANDOM = 2,     /* prefetch nothing */
    WEIR_ADVICE_WILLNEED = 3,   /* load the range [offset, offset + len) now */
    WEIR_ADVICE_DONTNEED = 4,   /* drop the range from the caches */
    WEIR_ADVICE_ONCE = 5        /* prefetch as usual, drop blocks first after their use */
};
/*
 * Steer cache and prefetch. For a file opened with WEIR_OPEN_CACHED the engine acts on it, for
 * others the kernel (posix_fadvise). NORMAL, SEQUENTIAL, RANDOM and ONCE hold for the file, whatever
 * the range; WILLNEED and DONTNEED for the range, `len` 0 meaning to the end. As a job:
 * WEIR_OP_ADVISE, whose WILLNEED is done once the loading has been started.
 * Thread: any. Blocks: on I/O for WILLNEED, else never.
 */
WEIR_API int weir_file_advise(struct weir_file *file, uint32_t advice, uint64_t offset,
                              uint64_t len, struct weir_error *error);

/* How to sync. */
enum weir_sync_flag {
    WEIR_SYNC_DATA = 0, /* data, and what is needed to read it back (fdatasync) */
    WEIR_SYNC_ALL = 1   /* all metadata too (fsync) */
};
/*
 * Make completed writes durable. The first failure is final: this and every later sync
 * and write of the file return the same error, since the kernel may have dropped the data.
 * Thread: any. Blocks: on I/O.
 */
WEIR_API int weir_file_sync(struct weir_file *file, uint32_t how, struct weir_error *error);

/* What a file is. Times are nanoseconds since 1970, negative before. */
struct weir_stat {
    uint64_t size_bytes;
    uint64_t allocated_bytes;
    uint64_t inode;
    uint64_t device;
    uint64_t links;
    int64_t atime_ns;
    int64_t mtime_ns;
    int64_t ctime_ns;
    uint32_t mode; /* as in stat(2), the type included */
    uint32_t uid;
    uint32_t gid;
    uint32_t rdevice_major;
    uint32_t rdevice_minor;
    uint32_t reserved;
};
/* Thread: any. Blocks: on I/O. */
WEIR_API int weir_file_stat(struct weir_file *file, struct weir_stat *ret_stat,
                            struct weir_error *error);
WEIR_API int weir_file_truncate(struct weir_file *file, uint64_t size_bytes,
                                struct weir_error *error);

/* Reserve space for [offset, offset + len). With `keep_size` 0 the file grows to cover it.
 * -EOPNOTSUPP where the file system cannot. Thread: any. Blocks: on I/O. */
WEIR_API int weir_file_allocate(struct weir_file *file, uint64_t offset, uint64_t len,
                                int keep_size, struct weir_error *error);

#ifdef __cplusplus
}
#endif
#endif
