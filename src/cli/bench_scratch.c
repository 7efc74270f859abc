/* SPDX-License-Identifier: MIT */
/*
 * bench_scratch.c - the file that `weir bench` runs on, and whose it is
 *
 * Problem     a benchmark that writes must never hit a file somebody needs, and one that
 *             reads must not measure holes, unwritten extents or zeros.
 * Idea        a scratch file of ours is written whole with random bytes and ends with one
 *             more block, the mark. The cases use the bytes before the mark only, so it
 *             survives every case. No mark, no writing. Reading any file is fine.
 * The mark    comes last and the file gets its name only when complete (O_TMPFILE, then a
 *             link; else a temporary name), so a file under the name is foreign or whole,
 *             also after kill -9.
 * Plain calls the file is made without the engine: what is measured must not prepare its own
 *             ground.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench_internal.h"

#define DEFAULT_SIZE (UINT64_C(1) << 30)
#define MARK_BYTES   4096u
#define CHUNK_BYTES  (1u << 20)

static const char mark_text[] =
    "weir bench scratch file: weir bench made it, and overwrites it "
    "whenever it likes\n";

static double mib(uint64_t bytes)
{
    return (double)bytes / (1024.0 * 1024.0);
}

/* How many bytes before our mark; 0 if the file is not ours. */
static uint64_t marked_size(int fd, const struct stat *st)
{
    char tail[sizeof(mark_text)];

    if (!S_ISREG(st->st_mode) || st->st_size <= (off_t)MARK_BYTES)
        return 0;
    if (pread(fd, tail, sizeof(tail), st->st_size - (off_t)MARK_BYTES) !=
            (ssize_t)sizeof(tail) ||
        memcmp(tail, mark_text, sizeof(tail)) != 0)
        return 0;
    return (uint64_t)st->st_size - MARK_BYTES;
}

static int write_all(int fd, const void *bytes, size_t len, uint64_t offset)
{
    const char *from = bytes;

    while (len > 0) {
        ssize_t n = pwrite(fd, from, len, (off_t)offset);

        if (n < 0 && errno == EINTR && !bench_interrupted)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        from += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int fill(int fd, uint64_t size)
{
    uint64_t seed = bench_random_seed(0);
    uint64_t *chunk;
    int rc = 0;

    /* One extent if there is room for it. Where that can't be asked, the writes do it. */
    if (fallocate(fd, 0, 0, (off_t)(size + MARK_BYTES)) != 0 && errno == ENOSPC)
        return -ENOSPC;
    chunk = aligned_alloc(4096, CHUNK_BYTES);
    if (chunk == NULL)
        return -ENOMEM;
    for (uint64_t at = 0; at < size && rc == 0; at += CHUNK_BYTES) {
        uint64_t len = size - at < CHUNK_BYTES ? size - at : CHUNK_BYTES;

        for (size_t i = 0; i < CHUNK_BYTES / sizeof(*chunk); i++)
            chunk[i] = bench_random(&seed) | 1u;
        rc = bench_interrupted ? -EINTR : write_all(fd, chunk, (size_t)len, at);
    }
    if (rc == 0) {
        memset(chunk, 0, MARK_BYTES);
        memcpy(chunk, mark_text, sizeof(mark_text));
        rc = write_all(fd, chunk, MARK_BYTES, size);
    }
    if (rc == 0 && fsync(fd) != 0)
        rc = -errno;
    free(chunk);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return rc;
}

/* Open a file without a name beside `path`; or with the name `temporary`, if one is needed. */
static int open_unnamed(const char *path, char *temporary, size_t temporary_size)
{
    const char *slash = strrchr(path, '/');
    int fd;

    if (slash == NULL)
        snprintf(temporary, temporary_size, ".");
    else
        snprintf(temporary, temporary_size, "%.*s", (int)(slash - path + 1), path);
    fd = open(temporary, O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
    temporary[0] = '\0';
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return fd;
    snprintf(temporary, temporary_size, "%s.%ld.tmp", path, (long)getpid());
    return open(temporary, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
}

static int publish(int fd, const char *path, const char *temporary)
{
    char link_path[64];

    if (temporary[0] != '\0') {
        /* Whatever has got the name meanwhile is not ours to replace. */
        if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
            return 0;
        if (errno != EINVAL)
            return -errno;
        if (link(temporary, path) != 0)
            return -errno;
        (void)unlink(temporary);
        return 0;
    }
    snprintf(link_path, sizeof(link_path), "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, link_path, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0 ? -errno : 0;
}

static int make_scratch(const struct bench_plan *plan, uint64_t size, bool replace)
{
    char temporary[4200];
    int fd;
    int rc;

    if (!plan->quiet)
        bench_say("making %s, %.0f MiB of random bytes (kept for the next run)\n", plan->path,
                  mib(size));
    /* Ours, too small. Its space may be what the new one needs. */
    if (replace && unlink(plan->path) != 0) {
        bench_say("can't remove %s: %s\n", plan->path, strerror(errno));
        return 1;
    }
    fd = open_unnamed(plan->path, temporary, sizeof(temporary));
    rc = fd < 0 ? -errno : fill(fd, size);
    if (rc == 0)
        rc = publish(fd, plan->path, temporary);
    if (rc != 0 && temporary[0] != '\0')
        (void)unlink(temporary);
    if (fd >= 0)
        (void)close(fd);
    if (rc == 0)
        return 0;
    if (!bench_interrupted)
        bench_say("can't make %s: %s%s\n", plan->path, strerror(-rc),
                  rc == -ENOSPC ? "; choose a smaller --size, or another place with --file"
                                : "");
    return 1;
}

int bench_scratch_prepare(const struct bench_plan *plan, uint64_t *ret_size)
{
    uint64_t wanted = plan->size_bytes != 0 ? plan->size_bytes : DEFAULT_SIZE;
    struct stat st;
    uint64_t size;
    off_t end;
    int fd = open(plan->path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT) {
        *ret_size = wanted;
        return make_scratch(plan, wanted, false);
    }
    if (fd < 0 || fstat(fd, &st) != 0) {
        bench_say("can't open %s: %s\n", plan->path, strerror(errno));
        if (fd >= 0)
            (void)close(fd);
        return 1;
    }
    size = marked_size(fd, &st);
    end = lseek(fd, 0, SEEK_END); /* also the size of a block device */
    (void)close(fd);

    if (size != 0) {
        *ret_size = wanted;
        return size >= wanted ? 0 : make_scratch(plan, wanted, true);
    }
    if (bench_writes(plan->kind)) {
        bench_say("%s was not made by weir bench, and %s would overwrite it; name a file that "
                  "does not exist yet with --file, or leave --file out\n",
                  plan->path, plan->name);
        return 1;
    }
    if (end <= 0 || (uint64_t)end < plan->size_bytes) {
        bench_say("%s has %.1f MiB, too few for this case; choose a smaller --size or another "
                  "--file\n",
                  plan->path, end > 0 ? mib((uint64_t)end) : 0.0);
        return 1;
    }
    *ret_size = plan->size_bytes != 0 ? plan->size_bytes : (uint64_t)end;
    return 0;
}

/* How many bytes of the file are in the page cache, or a negative errno. */
static int64_t resident_bytes(int fd, uint64_t size)
{
    const uint64_t window = UINT64_C(256) << 20;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    unsigned char *pages = calloc((size_t)(window / page), 1);
    uint64_t resident = 0;

    if (pages == NULL)
        return -ENOMEM;
    for (uint64_t at = 0; at < size; at += window) {
        uint64_t len = size - at < window ? size - at : window;
        void *map = mmap(NULL, (size_t)len, PROT_READ, MAP_SHARED, fd, (off_t)at);
        int rc = 0;

        if (map == MAP_FAILED || mincore(map, (size_t)len, pages) != 0)
            rc = -errno;
        if (map != MAP_FAILED)
            (void)munmap(map, (size_t)len);
        if (rc != 0) {
            free(pages);
            return rc;
        }
        for (uint64_t i = 0; i < (len + page - 1) / page; i++)
            resident += (pages[i] & 1u) != 0 ? page : 0;
    }
    free(pages);
    return (int64_t)(resident < size ? resident : size);
}

int bench_scratch_warm(const char *path, uint64_t size, bool drop)
{
    char *chunk = NULL;
    int64_t resident = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        bench_say("can't open %s: %s\n", path, strerror(errno));
        return 1;
    }
    if (drop) {
        /* Pages that wait to be written stay unless they are written first. */
        (void)fdatasync(fd);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)close(fd);
        return 0;
    }
    /* Twice: under memory pressure the end of the first pass may push out its beginning. */
    for (int pass = 0; pass < 2 && resident < (int64_t)size && !bench_interrupted; pass++) {
        resident = resident_bytes(fd, size);
        if (resident < 0 || resident >= (int64_t)size)
            break;
        if (chunk == NULL)
            chunk = malloc(CHUNK_BYTES);
        if (chunk == NULL)
            break;
        for (uint64_t at = 0; at < size && !bench_interrupted; at += CHUNK_BYTES)
            if (pread(fd, chunk, CHUNK_BYTES, (off_t)at) < 0)
                break;
        resident = resident_bytes(fd, size);
    }
    free(chunk);
    (void)close(fd);
    if (bench_interrupted)
        return 1;
    if (resident < (int64_t)size) {
        bench_say(
            "only %.1f of %.1f MiB of %s stay in the page cache; choose a smaller --size\n",
            resident > 0 ? mib((uint64_t)resident) : 0.0, mib(size), path);
        return 1;
    }
    return 0;
}
