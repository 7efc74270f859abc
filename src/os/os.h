/* SPDX-License-Identifier: MIT */
/*
 * os.h - the os table: the only way to make a file system call
 *
 * Everything above src/os calls through a `const struct wi_os *`. The real table is
 * wi_os_posix(); the fault injector wraps it (fault.h), and the laboratory will replace it.
 * Every entry returns 0 or a count, or a negative errno; none retries or loops: what to do
 * about EINTR or a short count is decided above. All may block on I/O but for `now_ns`.
 * Descriptors are opened close-on-exec. Thread: any.
 */
#ifndef WEIR_OS_OS_H
#define WEIR_OS_OS_H

#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <time.h>

#include "base/common.h"

struct wi_os;

struct wi_os_ops {
    const char *name;

    uint64_t (*now_ns)(const struct wi_os *os); /* monotonic */
    int64_t (*real_ns)(const struct wi_os *os); /* since 1970 */
    int (*sleep_ns)(const struct wi_os *os, uint64_t ns);
    int (*random)(const struct wi_os *os, void *buf, size_t len); /* all or an error */

    int (*openat)(const struct wi_os *os, int dir, const char *path, int flags, uint32_t mode);
    int (*close)(const struct wi_os *os, int fd);
    int (*fcntl)(const struct wi_os *os, int fd, int command, intptr_t arg);
    int64_t (*pread)(const struct wi_os *os, int fd, void *buf, size_t len, uint64_t offset);
    int64_t (*pwrite)(const struct wi_os *os, int fd, const void *buf, size_t len,
                      uint64_t offset);
    int64_t (*preadv2)(const struct wi_os *os, int fd, const struct iovec *iov, uint32_t count,
                       uint64_t offset, uint32_t rwf);
    int64_t (*pwritev2)(const struct wi_os *os, int fd, const struct iovec *iov,
                        uint32_t count, uint64_t offset, uint32_t rwf);
    int64_t (*copy_range)(const struct wi_os *os, int from, uint64_t from_offset, int to,
                          uint64_t to_offset, size_t len);
    int (*fsync)(const struct wi_os *os, int fd);
    int (*fdatasync)(const struct wi_os *os, int fd);
    int (*ftruncate)(const struct wi_os *os, int fd, uint64_t size);
    int (*fallocate)(const struct wi_os *os, int fd, int mode, uint64_t offset, uint64_t len);
    int (*fadvise)(const struct wi_os *os, int fd, uint64_t offset, uint64_t len, int advice);
    int64_t (*lseek)(const struct wi_os *os, int fd, int64_t offset, int whence);
    int (*statx)(const struct wi_os *os, int dir, const char *path, int flags, uint32_t mask,
                 struct statx *ret_stat);
    int (*fstatfs)(const struct wi_os *os, int fd, struct statfs *ret_stat);
    int (*fchmod)(const struct wi_os *os, int fd, uint32_t mode);
    int (*fchmodat)(const struct wi_os *os, int dir, const char *path, uint32_t mode);
    int (*utimensat)(const struct wi_os *os, int dir, const char *path,
                     const struct timespec times[2], int flags); /* path NULL: dir itself */
    int (*flock)(const struct wi_os *os, int fd, int operation);

    int (*mkdirat)(const struct wi_os *os, int dir, const char *path, uint32_t mode);
    int (*unlinkat)(const struct wi_os *os, int dir, const char *path, int flags);
    int (*renameat2)(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                     const char *to, uint32_t flags);
    int (*linkat)(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                  const char *to, int flags);
    int (*symlinkat)(const struct wi_os *os, const char *target, int dir, const char *path);
    int64_t (*readlinkat)(const struct wi_os *os, int dir, const char *path, char *buf,
                          size_t size);
    int64_t (*getdents)(const struct wi_os *os, int fd, void *buf, size_t size);

    /* Optional, NULL where a table has none: call them through the functions below. */
    int (*cached)(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                  uint64_t *ret_bytes); /* bytes of it in the page cache (cachestat) */
    int (*clone)(const struct wi_os *os, int from, int to); /* share all blocks (FICLONE) */
};

/* A table and what it works on. Whoever wraps embeds this at the front. */
struct wi_os {
    const struct wi_os_ops *ops;
};

/* The kernel's own calls. Inside; never freed. */
const struct wi_os *wi_os_posix(void);

static inline int wi_os_cached(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                               uint64_t *ret_bytes)
{
    return os->ops->cached ? os->ops->cached(os, fd, offset, len, ret_bytes) : -ENOSYS;
}

static inline int wi_os_clone(const struct wi_os *os, int from, int to)
{
    return os->ops->clone ? os->ops->clone(os, from, to) : -EOPNOTSUPP;
}

static inline uint64_t wi_os_now(const struct wi_os *os)
{
    return os->ops->now_ns(os);
}

#endif
