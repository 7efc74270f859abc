/* SPDX-License-Identifier: MIT */
/*
 * info_path.c - what the file system of a path can do, found by trying
 *
 * In a directory that can be written to, with an unnamed file (O_TMPFILE), or with one that
 * loses its name as soon as it is open. Of a file, or where nothing can be written, only
 * what reading shows is found out.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "info.h"

#define BLOCK     4096
#define HOLE_SIZE ((off_t)1 << 20)

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80 /* Linux 6.14 */
#endif
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U /* Linux 6.1 */
#endif

const char *info_answer_text(enum info_answer answer)
{
    return answer == INFO_YES ? "yes" : answer == INFO_NO ? "no" : "not known";
}

static enum info_answer answer_of(bool yes)
{
    return yes ? INFO_YES : INFO_NO;
}

static void name_type(struct info_path *info, uint64_t magic)
{
    static const struct {
        uint64_t magic;
        const char *name;
    } known[] = {
        { 0xef53, "ext4" },         { 0x58465342, "xfs" },      { 0x9123683e, "btrfs" },
        { 0xca451a4e, "bcachefs" }, { 0xf2f52010, "f2fs" },     { 0x2fc12fc1, "zfs" },
        { 0x01021994, "tmpfs" },    { 0x858458f6, "ramfs" },    { 0x794c7630, "overlayfs" },
        { 0x6969, "nfs" },          { 0xff534d42, "cifs" },     { 0xfe534d42, "smb2" },
        { 0x65735546, "fuse" },     { 0x01021997, "9p" },       { 0x00c36400, "ceph" },
        { 0x4d44, "vfat" },         { 0x2011bab0, "exfat" },    { 0x5346544e, "ntfs" },
        { 0x9660, "iso9660" },      { 0x73717368, "squashfs" }, { 0xe0f5e1e2, "erofs" },
        { 0x9fa0, "proc" },         { 0x62656572, "sysfs" },
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i].magic == magic) {
            snprintf(info->type, sizeof(info->type), "%s", known[i].name);
            return;
        }
    }
    snprintf(info->type, sizeof(info->type), "0x%llx", (unsigned long long)magic);
}

/* struct statx got these two in Linux 6.1, in what older C libraries call spare. */
static void look_at_alignment(int fd, struct info_path *info)
{
    struct statx st;
    uint32_t align[2];

    memset(&st, 0, sizeof(st));
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) < 0 ||
        !(st.stx_mask & STATX_DIOALIGN))
        return;
    memcpy(align, (const char *)&st + 152, sizeof(align));
    info->direct_memory_align = align[0];
    info->direct_offset_align = align[1];
}

/* Whether this descriptor can be switched to direct I/O, and read. */
static void look_at_direct(int fd, struct info_path *info)
{
    int flags = fcntl(fd, F_GETFL);
    void *buf = NULL;

    if (fcntl(fd, F_SETFL, flags | O_DIRECT) < 0 || posix_memalign(&buf, BLOCK, BLOCK) != 0) {
        info->direct = INFO_NO;
        return;
    }
    info->direct = answer_of(pread(fd, buf, BLOCK, 0) >= 0);
    free(buf);
    fcntl(fd, F_SETFL, flags);
}

static enum info_answer reads_with(int fd, int flag)
{
    char byte;
    struct iovec iov = { &byte, 1 };

    if (preadv2(fd, &iov, 1, 0, flag) >= 0 || errno == EAGAIN)
        return INFO_YES;
    return errno == EOPNOTSUPP || errno == EINVAL ? INFO_NO : INFO_UNKNOWN;
}

static void look_by_reading(int fd, struct info_path *info)
{
    look_at_alignment(fd, info);
    look_at_direct(fd, info);
    info->nowait = reads_with(fd, RWF_NOWAIT);
    info->dontcache = reads_with(fd, RWF_DONTCACHE);
}

/* A file without a name in the directory. */
static int make_unnamed(int dir_fd, struct info_path *info)
{
    char name[64];
    int fd = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0) {
        info->tmpfile = INFO_YES;
        return fd;
    }
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)
        return -1;
    info->tmpfile = INFO_NO;
    for (unsigned i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), ".weir-info.%ld.%u", (long)getpid(), i);
        fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0) {
            unlinkat(dir_fd, name, 0);
            return fd;
        }
        if (errno != EEXIST)
            return -1;
    }
    return -1;
}

static void look_by_writing(int dir_fd, struct info_path *info)
{
    static const char block[BLOCK] = { 1 };
    int fd = make_unnamed(dir_fd, info);
    int other;

    if (fd < 0 || pwrite(fd, block, sizeof(block), 0) != (ssize_t)sizeof(block) ||
        pwrite(fd, block, sizeof(block), HOLE_SIZE) != (ssize_t)sizeof(block)) {
        snprintf(info->probe_problem, sizeof(info->probe_problem), "%s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return;
    }
    info->probed_by_writing = true;
    info->seek_hole = answer_of(lseek(fd, 0, SEEK_HOLE) < HOLE_SIZE);
    look_by_reading(fd, info);
    other = make_unnamed(dir_fd, info);
    if (other >= 0) {
        if (ioctl(other, FICLONE, fd) == 0)
            info->reflink = INFO_YES;
        else if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EINVAL || errno == ENOSYS)
            info->reflink = INFO_NO;
        close(other);
    }
    close(fd);
}

int info_path_look(const char *path, struct info_path *info)
{
    struct statvfs space;
    struct statfs fs;
    struct stat st;
    int fd;

    memset(info, 0, sizeof(*info));
    info->path = path;
    if (stat(path, &st) < 0 || statfs(path, &fs) < 0 || statvfs(path, &space) < 0)
        return errno;
    name_type(info, (uint64_t)fs.f_type & 0xffffffffu);
    info->bytes_total = (uint64_t)space.f_blocks * space.f_frsize;
    info->bytes_free = (uint64_t)space.f_bavail * space.f_frsize;
    info->files_free = space.f_favail;
    info->read_only = (space.f_flag & ST_RDONLY) != 0;

    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
        snprintf(info->probe_problem, sizeof(info->probe_problem),
                 "neither a file nor a directory");
        return 0;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        snprintf(info->probe_problem, sizeof(info->probe_problem), "%s", strerror(errno));
        return 0;
    }
    if (S_ISDIR(st.st_mode))
        look_by_writing(fd, info);
    else
        look_by_reading(fd, info);
    close(fd);
    return 0;
}
