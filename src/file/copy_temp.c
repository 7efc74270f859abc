/* SPDX-License-Identifier: MIT */
/*
 * copy_temp.c - temporaries: their names, their locks, and removing what was left
 *
 * Problem   a copy that was killed leaves temporaries behind. A later one must remove them,
 *           but never those of a copy that runs now, in this process or another.
 * Idea      who makes a temporary holds flock(2) on it until it has its final name. The lock
 *           ends with its process, so a temporary that can be locked was left.
 *
 * Between making and locking it, somebody who cleans may come first. He then holds the lock,
 * and the maker takes another name; or he has already removed it, and the rename finds it
 * gone, after which the file is copied once more (copy_file.c). Nobody's data is at risk: a
 * temporary's name has 64 random bits and is used once.
 *
 * Symbolic links cannot be locked. One that has to replace a name is made in a temporary
 * directory, which can.
 *
 * Where a file system has no locks we make temporaries without, and remove none.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "copy_internal.h"

#define SUFFIX     ".weir-tmp"
#define SUFFIX_LEN (sizeof(SUFFIX) - 1)
#define HEX_LEN    16u
#define BASE_MAX   64u /* a hidden name need not be long; with the rest it is below 255 */
#define TRIES      8u

_Static_assert(BASE_MAX + HEX_LEN + SUFFIX_LEN + 3 <= COPY_TEMP_MAX, "names fit");

/* splitmix64: spreads a counter over 64 bits without repeating. */
static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void copy_temp_name(struct copy *copy, const char *base, char name[COPY_TEMP_MAX])
{
    uint64_t number = mix(copy->temp_seed + copy_add(&copy->temp_next, 1));
    size_t len = strnlen(base, BASE_MAX + 1);
    char *at = name;

    /* Not in the middle of a character: some file systems take valid UTF-8 only. */
    if (len > BASE_MAX) {
        len = BASE_MAX;
        while (len > BASE_MAX - 4 && ((unsigned char)base[len] & 0xc0) == 0x80)
            len--;
    }
    *at++ = '.';
    memcpy(at, base, len);
    at += len;
    *at++ = '.';
    for (uint32_t i = 0; i < HEX_LEN; i++)
        *at++ = "0123456789abcdef"[(number >> (60 - 4 * i)) & 15];
    memcpy(at, SUFFIX, SUFFIX_LEN + 1);
}

bool copy_temp_is(const char *name)
{
    size_t len = strlen(name);
    const char *hex;

    if (len < 2 + HEX_LEN + SUFFIX_LEN || name[0] != '.' ||
        memcmp(name + len - SUFFIX_LEN, SUFFIX, SUFFIX_LEN) != 0)
        return false;
    hex = name + len - SUFFIX_LEN - HEX_LEN;
    return hex[-1] == '.' && strspn(hex, "0123456789abcdef") == HEX_LEN;
}

int copy_temp_create(struct copy *copy, int dir_fd, const char *base, int access_mode,
                     char name[COPY_TEMP_MAX])
{
    const struct wi_os *os = copy->os;
    int fd = -EEXIST;

    for (uint32_t i = 0; i < TRIES; i++) {
        copy_temp_name(copy, base, name);
        fd = os->ops->openat(os, dir_fd, name,
                             access_mode | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd == -EEXIST || fd == -EINTR)
            continue;
        if (fd < 0)
            break;
        if (os->ops->flock(os, fd, LOCK_EX | LOCK_NB) != -EWOULDBLOCK)
            return fd;
        /* Somebody is removing it. */
        os->ops->close(os, fd);
        fd = -EEXIST;
    }
    name[0] = '\0';
    return fd;
}

int copy_temp_create_dir(struct copy *copy, int dir_fd, const char *base,
                         char name[COPY_TEMP_MAX])
{
    const struct wi_os *os = copy->os;
    int rc = -EEXIST;

    for (uint32_t i = 0; i < TRIES; i++) {
        int fd;

        copy_temp_name(copy, base, name);
        rc = os->ops->mkdirat(os, dir_fd, name, 0700);
        if (rc == -EEXIST || rc == -EINTR)
            continue;
        if (rc < 0)
            break;
        fd = os->ops->openat(os, dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                             0);
        rc = fd;
        if (fd >= 0) {
            if (os->ops->flock(os, fd, LOCK_EX | LOCK_NB) != -EWOULDBLOCK)
                return fd;
            os->ops->close(os, fd);
            rc = -EEXIST;
        } else if (fd != -ENOENT) {
            os->ops->unlinkat(os, dir_fd, name, AT_REMOVEDIR);
            break;
        }
    }
    name[0] = '\0';
    return rc;
}

static void clean_one(const struct wi_os *os, int dir_fd, const char *name)
{
    struct statx st;
    int fd = os->ops->openat(os, dir_fd, name,
                             O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st) == 0 &&
        (S_ISREG(st.stx_mode) || S_ISDIR(st.stx_mode)) &&
        os->ops->flock(os, fd, LOCK_EX | LOCK_NB) == 0) {
        if (S_ISDIR(st.stx_mode)) {
            /* What we never put there is not ours to remove; then the directory stays too. */
            if (os->ops->statx(os, fd, COPY_TEMP_LINK, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) ==
                    0 &&
                S_ISLNK(st.stx_mode))
                os->ops->unlinkat(os, fd, COPY_TEMP_LINK, 0);
            os->ops->unlinkat(os, dir_fd, name, AT_REMOVEDIR);
        } else {
            os->ops->unlinkat(os, dir_fd, name, 0);
        }
    }
    os->ops->close(os, fd);
}

void copy_temp_clean(struct copy *copy, int dir_fd, unsigned char *buf, size_t size)
{
    const struct wi_os *os = copy->os;
    int64_t got;
    /* A descriptor of its own: the directory's own position is not ours to move. */
    int fd = os->ops->openat(os, dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

    if (fd < 0)
        return;
    while ((got = os->ops->getdents(os, fd, buf, size)) > 0) {
        for (int64_t at = 0; at < got;) {
            const struct dirent64 *entry = (const void *)(buf + at);

            if (copy_temp_is(entry->d_name))
                clean_one(os, dir_fd, entry->d_name);
            at += entry->d_reclen;
        }
    }
    os->ops->close(os, fd);
}
