/* SPDX-License-Identifier: MIT */
/*
 * copy_count.c - how much there will be, for the progress
 *
 * Walks the sources depth first beside the copy and adds up what it sees. It holds one
 * directory open at a time and remembers a few numbers a level: the way back up is "..",
 * which must be the inode it came from. What it cannot see it leaves out: the totals are
 * for the eye, and the copy itself reports what is wrong.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copy_internal.h"

struct level {
    int64_t position; /* after the entry that we went down into */
    uint64_t inode;
    uint32_t device_major;
    uint32_t device_minor;
};

struct counter {
    struct copy *copy;
    unsigned char *list;
    struct level *levels;
    size_t depth;
    size_t room;
    int fd;
};

static int open_below(struct counter *counter, int dir_fd, const char *name)
{
    const struct wi_os *os = counter->copy->os;

    return os->ops->openat(os, dir_fd, name,
                           O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, 0);
}

/* Remember where we are in counter->fd. False without memory. */
static bool push(struct counter *counter, int64_t position)
{
    const struct wi_os *os = counter->copy->os;
    struct statx st;

    if (counter->depth == counter->room) {
        size_t room = counter->room ? 2 * counter->room : 32;
        struct level *levels = realloc(counter->levels, room * sizeof(*levels));

        if (!levels)
            return false;
        counter->levels = levels;
        counter->room = room;
    }
    if (os->ops->statx(os, counter->fd, "", AT_EMPTY_PATH, STATX_INO, &st) < 0)
        return false;
    counter->levels[counter->depth++] =
        (struct level){ position, st.stx_ino, st.stx_dev_major, st.stx_dev_minor };
    return true;
}

static bool go_down(struct counter *counter, const char *name, int64_t position)
{
    const struct wi_os *os = counter->copy->os;
    int fd = open_below(counter, counter->fd, name);

    if (fd < 0)
        return false;
    if (!push(counter, position)) {
        os->ops->close(os, fd);
        return false;
    }
    os->ops->close(os, counter->fd);
    counter->fd = fd;
    return true;
}

static bool go_up(struct counter *counter)
{
    const struct wi_os *os = counter->copy->os;
    const struct level *level;
    struct statx st;
    int fd;

    if (counter->depth == 0)
        return false;
    level = &counter->levels[--counter->depth];
    fd = open_below(counter, counter->fd, "..");
    if (fd < 0)
        return false;
    os->ops->close(os, counter->fd);
    counter->fd = fd;
    return os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_INO, &st) == 0 &&
           st.stx_ino == level->inode && st.stx_dev_major == level->device_major &&
           st.stx_dev_minor == level->device_minor &&
           os->ops->lseek(os, fd, level->position, SEEK_SET) >= 0;
}

/* Count one entry. Returns true if it is a directory. */
static bool count_entry(struct counter *counter, int dir_fd, const char *name, uint8_t type)
{
    struct copy *copy = counter->copy;
    const struct wi_os *os = copy->os;
    struct statx st;

    copy_add(&copy->count_files, 1);
    if (type != DT_REG && type != DT_UNKNOWN)
        return type == DT_DIR;
    if (os->ops->statx(os, dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
                       STATX_TYPE | STATX_SIZE, &st) < 0)
        return false;
    if (S_ISREG(st.stx_mode))
        copy_add(&copy->count_bytes, copy_passes(copy) * st.stx_size);
    return S_ISDIR(st.stx_mode);
}

/* Count on from where counter->fd stands: to its end (false), or down into a directory. */
static bool count_dir(struct counter *counter)
{
    const struct wi_os *os = counter->copy->os;
    int64_t got;

    while (!copy_stopped(counter->copy) &&
           (got = os->ops->getdents(os, counter->fd, counter->list, COPY_LIST_SIZE)) > 0) {
        for (int64_t at = 0; at < got;) {
            const struct dirent64 *entry = (const void *)(counter->list + at);

            at += entry->d_reclen;
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                continue;
            if (count_entry(counter, counter->fd, entry->d_name, entry->d_type) &&
                go_down(counter, entry->d_name, entry->d_off))
                return true;
        }
    }
    return false;
}

void copy_count(struct copy *copy)
{
    const struct wi_os *os = copy->os;
    struct counter counter = { .copy = copy, .fd = -1 };

    counter.list = malloc(COPY_LIST_SIZE);
    for (size_t i = 0; i < copy->sources_count && counter.list; i++) {
        if (copy_stopped(copy))
            break;
        if (!copy->names[i] || !count_entry(&counter, AT_FDCWD, copy->sources[i], DT_UNKNOWN) ||
            !(copy->flags & WEIR_COPY_RECURSIVE))
            continue;
        counter.fd = open_below(&counter, AT_FDCWD, copy->sources[i]);
        counter.depth = 0;
        while (counter.fd >= 0 && (count_dir(&counter) || go_up(&counter)))
            continue;
        if (counter.fd >= 0)
            os->ops->close(os, counter.fd);
    }
    free(counter.levels);
    free(counter.list);
}
