/* SPDX-License-Identifier: MIT */
/*
 * os_posix.c - the os table over the kernel's own calls
 *
 * One call each, no retries, no state. The results go through `code_of` and `count_of`, the
 * only places that read errno. Offsets beyond INT64_MAX are refused here, because as an
 * off_t they are negative, and preadv2 takes -1 for "at the file position".
 */
#include "os.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int code_of(int rc)
{
    return rc < 0 ? -errno : rc;
}

static inline int64_t count_of(ssize_t rc)
{
    return rc < 0 ? -errno : rc;
}

/* ---- clock and chance -------------------------------------------------------------------- */

static uint64_t posix_now_ns(const struct wi_os *os)
{
    struct timespec now;

    (void)os;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * WI_SEC_NS + (uint64_t)now.tv_nsec;
}

static int64_t posix_real_ns(const struct wi_os *os)
{
    struct timespec now;

    (void)os;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * WI_SEC_NS + now.tv_nsec;
}

static int posix_sleep_ns(const struct wi_os *os, uint64_t ns)
{
    struct timespec time = {
        .tv_sec = (time_t)(ns / WI_SEC_NS),
        .tv_nsec = (long)(ns % WI_SEC_NS),
    };

    (void)os;
    return -clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL); /* errno is not set */
}

static int posix_random(const struct wi_os *os, void *buf, size_t len)
{
    unsigned char *at = buf;

    /* The one loop of this file: above 256 bytes a signal may cut the answer short. */
    (void)os;
    while (len > 0) {
        ssize_t got = getrandom(at, len, 0);

        if (got < 0)
            return -errno;
        at += got;
        len -= (size_t)got;
    }
    return 0;
}

/* ---- descriptors ------------------------------------------------------------------------- */

static int posix_openat(const struct wi_os *os, int dir, const char *path, int flags,
                        uint32_t mode)
{
    (void)os;
    return code_of(openat(dir, path, flags | O_CLOEXEC, (mode_t)mode));
}

static int posix_close(const struct wi_os *os, int fd)
{
    (void)os;
    /* Linux has closed the descriptor by the time it says EINTR; a second try could close
     * somebody else's. */
    if (close(fd) < 0)
        return errno == EINTR ? 0 : -errno;
    return 0;
}

static int posix_fcntl(const struct wi_os *os, int fd, int command, intptr_t arg)
{
    (void)os;
    return code_of(fcntl(fd, command, arg));
}

static int posix_flock(const struct wi_os *os, int fd, int operation)
{
    (void)os;
    return code_of(flock(fd, operation));
}

/* ---- bytes ------------------------------------------------------------------------------- */

static int64_t posix_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                           uint64_t offset)
{
    (void)os;
    return count_of(pread(fd, buf, len, (off_t)offset));
}

static int64_t posix_pwrite(const struct wi_os *os, int fd, const void *buf, size_t len,
                            uint64_t offset)
{
    (void)os;
    return count_of(pwrite(fd, buf, len, (off_t)offset));
}

static int64_t posix_preadv2(const struct wi_os *os, int fd, const struct iovec *iov,
                             uint32_t count, uint64_t offset, uint32_t rwf)
{
    (void)os;
    if (offset > INT64_MAX || count > INT32_MAX)
        return -EINVAL;
    return count_of(preadv2(fd, iov, (int)count, (off_t)offset, (int)rwf));
}

static int64_t posix_pwritev2(const struct wi_os *os, int fd, const struct iovec *iov,
                              uint32_t count, uint64_t offset, uint32_t rwf)
{
    (void)os;
    if (offset > INT64_MAX || count > INT32_MAX)
        return -EINVAL;
    return count_of(pwritev2(fd, iov, (int)count, (off_t)offset, (int)rwf));
}

static int64_t posix_copy_range(const struct wi_os *os, int from, uint64_t from_offset, int to,
                                uint64_t to_offset, size_t len)
{
    off_t from_at = (off_t)from_offset;
    off_t to_at = (off_t)to_offset;

    (void)os;
    return count_of(copy_file_range(from, &from_at, to, &to_at, len, 0));
}

static int posix_fsync(const struct wi_os *os, int fd)
{
    (void)os;
    return code_of(fsync(fd));
}

static int posix_fdatasync(const struct wi_os *os, int fd)
{
    (void)os;
    return code_of(fdatasync(fd));
}

static int posix_ftruncate(const struct wi_os *os, int fd, uint64_t size)
{
    (void)os;
    return code_of(ftruncate(fd, (off_t)size));
}

static int posix_allocate(const struct wi_os *os, int fd, int mode, uint64_t offset,
                          uint64_t len)
{
    (void)os;
    return code_of(fallocate(fd, mode, (off_t)offset, (off_t)len));
}

static int posix_advise(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                        int advice)
{
    (void)os;
    return -posix_fadvise(fd, (off_t)offset, (off_t)len, advice); /* errno is not set */
}

static int64_t posix_lseek(const struct wi_os *os, int fd, int64_t offset, int whence)
{
    (void)os;
    return count_of(lseek(fd, (off_t)offset, whence));
}

/* ---- what is known of a file ------------------------------------------------------------- */

static int posix_statx(const struct wi_os *os, int dir, const char *path, int flags,
                       uint32_t mask, struct statx *ret_stat)
{
    (void)os;
    return code_of(statx(dir, path, flags, mask, ret_stat));
}

static int posix_fstatfs(const struct wi_os *os, int fd, struct statfs *ret_stat)
{
    (void)os;
    return code_of(fstatfs(fd, ret_stat));
}

static int posix_fchmod(const struct wi_os *os, int fd, uint32_t mode)
{
    (void)os;
    return code_of(fchmod(fd, (mode_t)mode));
}

static int posix_fchmodat(const struct wi_os *os, int dir, const char *path, uint32_t mode)
{
    (void)os;
    return code_of(fchmodat(dir, path, (mode_t)mode, 0));
}

static int posix_utimensat(const struct wi_os *os, int dir, const char *path,
                           const struct timespec times[2], int flags)
{
    (void)os;
    /* The C library refuses a NULL path here, though the kernel takes it. */
    if (!path)
        return code_of(futimens(dir, times));
    return code_of(utimensat(dir, path, times, flags));
}

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5, the same number on all architectures */
#endif

/* As in linux/mman.h of 6.5. */
struct cachestat_range {
    uint64_t offset;
    uint64_t len;
};
struct cachestat_result {
    uint64_t cached;
    uint64_t dirty;
    uint64_t writeback;
    uint64_t evicted;
    uint64_t recently_evicted;
};

static int posix_cached(const struct wi_os *os, int fd, uint64_t offset, uint64_t len,
                        uint64_t *ret_bytes)
{
    struct cachestat_range range = { offset, len };
    struct cachestat_result result;

    (void)os;
    if (syscall(SYS_cachestat, fd, &range, &result, 0) < 0)
        return -errno;
    *ret_bytes = result.cached * (uint64_t)sysconf(_SC_PAGESIZE);
    return 0;
}

static int posix_clone(const struct wi_os *os, int from, int to)
{
    (void)os;
    return code_of(ioctl(to, FICLONE, from));
}

/* ---- names ------------------------------------------------------------------------------- */

static int posix_mkdirat(const struct wi_os *os, int dir, const char *path, uint32_t mode)
{
    (void)os;
    return code_of(mkdirat(dir, path, (mode_t)mode));
}

static int posix_unlinkat(const struct wi_os *os, int dir, const char *path, int flags)
{
    (void)os;
    return code_of(unlinkat(dir, path, flags));
}

static int posix_renameat2(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                           const char *to, uint32_t flags)
{
    (void)os;
    return code_of(renameat2(from_dir, from, to_dir, to, flags));
}

static int posix_linkat(const struct wi_os *os, int from_dir, const char *from, int to_dir,
                        const char *to, int flags)
{
    (void)os;
    return code_of(linkat(from_dir, from, to_dir, to, flags));
}

static int posix_symlinkat(const struct wi_os *os, const char *target, int dir,
                           const char *path)
{
    (void)os;
    return code_of(symlinkat(target, dir, path));
}

static int64_t posix_readlinkat(const struct wi_os *os, int dir, const char *path, char *buf,
                                size_t size)
{
    (void)os;
    return count_of(readlinkat(dir, path, buf, size));
}

static int64_t posix_getdents(const struct wi_os *os, int fd, void *buf, size_t size)
{
    (void)os;
    return count_of(getdents64(fd, buf, size));
}

static const struct wi_os_ops posix_ops = {
    .name = "posix",
    .now_ns = posix_now_ns,
    .real_ns = posix_real_ns,
    .sleep_ns = posix_sleep_ns,
    .random = posix_random,
    .openat = posix_openat,
    .close = posix_close,
    .fcntl = posix_fcntl,
    .pread = posix_pread,
    .pwrite = posix_pwrite,
    .preadv2 = posix_preadv2,
    .pwritev2 = posix_pwritev2,
    .copy_range = posix_copy_range,
    .fsync = posix_fsync,
    .fdatasync = posix_fdatasync,
    .ftruncate = posix_ftruncate,
    .fallocate = posix_allocate,
    .fadvise = posix_advise,
    .lseek = posix_lseek,
    .statx = posix_statx,
    .fstatfs = posix_fstatfs,
    .fchmod = posix_fchmod,
    .fchmodat = posix_fchmodat,
    .utimensat = posix_utimensat,
    .flock = posix_flock,
    .mkdirat = posix_mkdirat,
    .unlinkat = posix_unlinkat,
    .renameat2 = posix_renameat2,
    .linkat = posix_linkat,
    .symlinkat = posix_symlinkat,
    .readlinkat = posix_readlinkat,
    .getdents = posix_getdents,
    .cached = posix_cached,
    .clone = posix_clone,
};

const struct wi_os *wi_os_posix(void)
{
    static const struct wi_os posix = { .ops = &posix_ops };

    return &posix;
}
