/* SPDX-License-Identifier: MIT */
/*
 * test_transfer.c - bytes go where they should, all of them, on every backend
 *
 * Each case does the same through jobs and through blocking calls, since both promise exact
 * transfers: short only at the end of the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "support/support.h"

#define SEED 7u

static struct weir_file *open_file(struct env *env, const char *path, uint32_t flags)
{
    struct weir_file *file = NULL;
    struct weir_error error = { .code = 0 };
    int rc = weir_file_open(env->engine, NULL, path, flags, 0666, &file, &error);

    if (rc != 0)
        fail_msg("open of %s: %s: %s", path, weir_code_name(rc), error.text);
    return file;
}

static int64_t job_read(struct env *env, struct weir_file *file, void *buf, size_t len,
                        uint64_t offset, uint64_t *ret_transferred)
{
    struct probe probe;
    int64_t result;

    weir_job_read(&probe.job, file, buf, len, offset, NULL, NULL);
    result = probe_run(env->queue, &probe);
    *ret_transferred = probe.transferred;
    return result;
}

static int64_t job_vector(struct env *env, struct weir_file *file, int write,
                          const struct iovec *iov, size_t count, uint64_t offset,
                          uint64_t *ret_transferred)
{
    struct probe probe;
    int64_t result;

    if (write)
        weir_job_writev(&probe.job, file, iov, count, offset, NULL, NULL);
    else
        weir_job_readv(&probe.job, file, iov, count, offset, NULL, NULL);
    result = probe_run(env->queue, &probe);
    *ret_transferred = probe.transferred;
    return result;
}

/* --- the end of the file ------------------------------------------------------ */

/* Reads before, across, at and after the end return what is there and touch no byte more. */
static void read__around_the_end_is_exact(struct env *env)
{
    static const struct {
        size_t len;
        uint64_t offset;
        size_t want;
    } cases[] = {
        { 10000, 0, 10000 },
        { 10001, 0, 10000 },
        { 9999, 0, 9999 },
        { 1, 9999, 1 },
        { 2, 9999, 1 },
        { 1, 10000, 0 },
        { 5, 10001, 0 },
        { 1, 0, 1 },
        { 20000, 5000, 5000 },
        { 4096, 8192, 1808 },
        { 4096, 4096, 4096 },
        { 10, UINT64_C(1) << 40, 0 },
        { 10, INT64_MAX - 10, 0 },
    };
    const char *path = test_new_path("end");
    struct weir_file *file;
    uint8_t *buf = malloc(20002);

    pattern_make_file(path, 10000, SEED);
    file = open_file(env, path, WEIR_OPEN_READ);
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (int way = 0; way < 3; way++) {
            struct iovec iov[2] = { { buf, cases[i].len / 3 },
                                    { buf + cases[i].len / 3,
                                      cases[i].len - cases[i].len / 3 } };
            uint64_t moved = 0;
            int64_t result;

            memset(buf, 0xee, 20002);
            if (way == 0) {
                result = job_read(env, file, buf, cases[i].len, cases[i].offset, &moved);
            } else if (way == 1) {
                result = job_vector(env, file, 0, iov, 2, cases[i].offset, &moved);
            } else {
                result = weir_file_read(file, buf, cases[i].len, cases[i].offset);
                moved = (uint64_t)result;
            }
            check_code(result, cases[i].want);
            check_code(moved, cases[i].want);
            check_pattern(buf, cases[i].want, SEED, cases[i].offset);
            for (size_t at = cases[i].want; at < 20002; at++)
                check(buf[at] == 0xee);
        }
    }
    check_code(weir_file_close(file), 0);
    free(buf);
}

/* An empty file reads as 0, also when it was just made. */
static void read__empty_file_is_zero(struct env *env)
{
    struct weir_file *file =
        open_file(env, test_new_path("empty"),
                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_EXCLUSIVE);
    char byte = 'x';
    uint64_t moved = 1;

    check_code(job_read(env, file, &byte, 1, 0, &moved), 0);
    check_code(moved, 0);
    check_code(weir_file_read(file, &byte, 1, 0), 0);
    check(byte == 'x');
    check_code(weir_file_close(file), 0);
}

/* Nothing asked for is nothing done: result 0, no error, the file as it was. */
static void transfer__length_zero_is_zero(struct env *env)
{
    const char *path = test_new_path("zero");
    struct weir_file *file;
    char byte = 'x';
    struct iovec empty[3] = { { &byte, 0 }, { NULL, 0 }, { &byte, 0 } };
    struct weir_stat stat;
    uint64_t moved = 1;

    pattern_make_file(path, 100, SEED);
    file = open_file(env, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    check_code(job_read(env, file, &byte, 0, 10, &moved), 0);
    check_code(moved, 0);
    check_code(job_read(env, file, &byte, 0, 1000, &moved), 0);
    for (int write = 0; write < 2; write++) {
        check_code(job_vector(env, file, write, empty, 3, 10, &moved), 0);
        check_code(moved, 0);
        check_code(job_vector(env, file, write, empty, 0, 10, &moved), 0);
        check_code(weir_file_transfer(file, write, empty, 3, 10, &moved, NULL), 0);
        check_code(weir_file_transfer(file, write, empty, 0, 10, &moved, NULL), 0);
    }
    {
        struct probe probe;

        /* A write of nothing past the end does not grow the file. */
        weir_job_write(&probe.job, file, &byte, 0, 5000, NULL, NULL);
        check_code(probe_run(env->queue, &probe), 0);
    }
    check_code(weir_file_read(file, &byte, 0, 10), 0);
    check_code(weir_file_write(file, &byte, 0, 5000), 0);
    check_code(weir_file_stat(file, &stat, NULL), 0);
    check_code(stat.size_bytes, 100);
    check_code(weir_file_close(file), 0);
}

/* --- far and long ------------------------------------------------------------------ */

/* Offsets around and beyond 2 and 4 GiB are not cut to 32 bits anywhere. */
static void transfer__offsets_beyond_4_gib(struct env *env)
{
    static const uint64_t offsets[] = {
        2 * GIB - 1000,      2 * GIB,           2 * GIB + 1,
        4 * GIB - 1000,      4 * GIB,           4 * GIB + 1,
        5 * GIB + 123456789, UINT64_C(1) << 40, (UINT64_C(1) << 43) + 4321,
    };
    struct weir_file *file =
        open_file(env, test_new_path("far"),
                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_TRUNCATE);
    uint8_t buf[3000];
    uint8_t got[3000];
    uint64_t moved;

    for (size_t i = 0; i < COUNT(offsets); i++) {
        struct iovec iov[2] = { { buf, 1000 }, { buf + 1000, 2000 } };
        struct probe probe;

        pattern_fill(buf, sizeof(buf), SEED, offsets[i]);
        if (i % 3 == 0) {
            weir_job_write(&probe.job, file, buf, sizeof(buf), offsets[i], NULL, NULL);
            check_code(probe_run(env->queue, &probe), 3000);
        } else if (i % 3 == 1) {
            check_code(job_vector(env, file, 1, iov, 2, offsets[i], &moved), 3000);
        } else {
            check_code(weir_file_write(file, buf, sizeof(buf), offsets[i]), 3000);
        }
        memset(got, 0, sizeof(got));
        check_code(job_read(env, file, got, sizeof(got), offsets[i], &moved), 3000);
        check_pattern(got, sizeof(got), SEED, offsets[i]);
        memset(got, 0, sizeof(got));
        check_code(weir_file_read(file, got, sizeof(got), offsets[i]), 3000);
        check_pattern(got, sizeof(got), SEED, offsets[i]);
    }
    /* The low 32 bits of those offsets were not written by mistake. */
    check_code(weir_file_read(file, got, 1000, 0), 1000);
    for (size_t i = 0; i < 1000; i++)
        check(got[i] == 0);
    check_code(weir_file_close(file), 0);
}

/* An offset that no file can have is refused, at submit or as the result. */
static void transfer__impossible_offset_is_einval(struct env *env)
{
    const char *path = test_new_path("impossible");
    struct weir_file *file;
    uint8_t byte = 0;
    struct probe probe;
    struct weir_job *job = &probe.job;
    int rc;

    pattern_make_file(path, 10, SEED);
    file = open_file(env, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    weir_job_read(job, file, &byte, 1, UINT64_C(1) << 63, NULL, NULL);
    probe_arm(&probe);
    rc = weir_queue_submit(env->queue, &job, 1);
    if (rc == 1)
        rc = (int)probe_wait(env->queue, &probe);
    check_code(rc, -EINVAL);
    check_code(weir_file_read(file, &byte, 1, UINT64_C(1) << 63), -EINVAL);
    check_code(weir_file_write(file, &byte, 1, UINT64_MAX), -EINVAL);
    check_code(weir_file_close(file), 0);
}

/*
 * One read of more than 4 GiB, which the kernel can only do in parts (2 GiB less a page at
 * most, and the ring's length is 32 bits). The file is a hole in memory with a mark at its
 * end, the buffer the same mebibyte over and over.
 */
static void read__longer_than_4_gib(struct env *env)
{
    const size_t fold = 1 * MIB;
    const size_t len = (size_t)(4 * GIB) + 3 * MIB;
    const uint64_t offset = 2 * GIB + 777;
    const char *dir = test_memory_dir();
    char path[700];
    struct weir_file *file;
    uint8_t mark[500];
    uint8_t *buf;
    uint64_t moved = 0;
    uint64_t end = offset + len - 1000; /* the read meets the end 1000 bytes early */

    if (dir == NULL || TEST_TSAN) {
        env->skipped = TEST_TSAN ? "the sanitizer shadows every byte" : "no tmpfs in /dev/shm";
        return;
    }
    (void)snprintf(path, sizeof(path), "%s/hole-%s", dir, env->backend_name);
    file = open_file(env, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE);
    pattern_fill(mark, sizeof(mark), SEED, 0);
    check_code(weir_file_write(file, mark, sizeof(mark), end - sizeof(mark)), sizeof(mark));
    buf = folded_map(len, fold);
    check_code(job_read(env, file, buf, len, offset, &moved), len - 1000);
    check_code(moved, len - 1000);
    check(memcmp(buf + (len - 1000 - sizeof(mark)), mark, sizeof(mark)) == 0);
    folded_unmap(buf, len);
    check_code(weir_file_close(file), 0);
    (void)unlink(path);
}

/* The same for a vector with more than 1024 parts and more than 2 GiB, by both ways. */
static void readv__longer_than_2_gib(struct env *env)
{
    const size_t count = 2100;
    const size_t len = count * MIB;
    const char *dir = test_memory_dir();
    struct iovec *iov;
    uint8_t *buf;
    char path[700];
    struct weir_file *file;
    uint64_t moved = 0;

    if (dir == NULL) {
        env->skipped = "no tmpfs in /dev/shm";
        return;
    }
    iov = calloc(count, sizeof(*iov));
    buf = malloc(MIB);
    (void)snprintf(path, sizeof(path), "%s/holev-%s", dir, env->backend_name);
    file = open_file(env, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE);
    pattern_fill(buf, 4096, SEED, 0);
    check_code(weir_file_write(file, buf, 4096, len - 4096), 4096);
    for (size_t i = 0; i < count; i++)
        iov[i] = (struct iovec){ buf, MIB };
    memset(buf, 0, MIB);
    check_code(job_vector(env, file, 0, iov, count, 0, &moved), len);
    check_code(moved, len);
    check_pattern(buf + MIB - 4096, 4096, SEED, 0);
    memset(buf, 0, MIB);
    check_code(weir_file_transfer(file, 0, iov, count, 0, &moved, NULL), len);
    check_code(moved, len);
    check_pattern(buf + MIB - 4096, 4096, SEED, 0);
    check_code(weir_file_close(file), 0);
    (void)unlink(path);
    free(iov);
    free(buf);
}

/* Writes of more than 4 GiB, to a device that swallows them. */
static void write__longer_than_4_gib(struct env *env)
{
    const size_t len = (size_t)(6 * GIB) + 5;
    const size_t map = (size_t)(6 * GIB) + MIB;
    struct weir_file *file = NULL;
    struct probe probe;
    void *buf;
    int fd;

    if (TEST_TSAN) {
        env->skipped = "the sanitizer shadows every byte";
        return;
    }
    buf = folded_map(map, 1 * MIB);
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    check_code(weir_file_adopt(env->engine, fd, "null", &file, NULL), 0);
    weir_job_write(&probe.job, file, buf, len, 0, NULL, NULL);
    check_code(probe_run(env->queue, &probe), len);
    check_code(probe.transferred, len);
    check_code(weir_file_write(file, buf, len, 0), len);
    check_code(weir_file_close(file), 0);
    folded_unmap(buf, map);
}

/* --- vectors ----------------------------------------------------------------------------- */

/* Random vectors with empty parts, written and read back, against one flat image. */
static void vector__random_parts_are_exact(struct env *env)
{
    enum {
        IMAGE = 300000,
        PARTS = 3000
    };
    struct test_rng rng = { test_seed() };
    uint8_t *image = calloc(1, IMAGE);
    uint8_t *buf = malloc(IMAGE);
    struct iovec *iov = calloc(PARTS, sizeof(*iov));
    struct weir_file *file =
        open_file(env, test_new_path("vector"),
                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_TRUNCATE);
    size_t size = 0;

    for (unsigned round = 0; round < 60; round++) {
        size_t parts = round % 10 == 9 ? PARTS : 1 + rng_below(&rng, 40);
        uint64_t offset = rng_below(&rng, IMAGE / 2);
        size_t len = 0;
        uint64_t moved = 0;
        int write = (int)rng_below(&rng, 2);
        bool job = rng_below(&rng, 2) == 0;
        size_t want;

        for (size_t i = 0; i < parts; i++) {
            size_t part =
                rng_below(&rng, 5) == 0 ? 0 : rng_below(&rng, parts > 100 ? 30 : 3000);

            iov[i] = (struct iovec){ buf + len, part };
            len += part;
        }
        if (write) {
            pattern_fill(buf, len, round, offset);
            memcpy(image + offset, buf, len);
            if (len > 0 && size < offset + len)
                size = offset + len;
            want = len;
        } else {
            memset(buf, 0xee, IMAGE);
            want = offset >= size ? 0 : size - offset < len ? size - offset : len;
        }
        if (job)
            check_code(job_vector(env, file, write, iov, parts, offset, &moved), want);
        else
            check_code(weir_file_transfer(file, write, iov, parts, offset, &moved, NULL), want);
        check_code(moved, want);
        if (!write) {
            check(memcmp(buf, image + offset, want) == 0);
            for (size_t i = want; i < len; i++)
                check(buf[i] == 0xee);
        }
    }
    check_code(weir_file_close(file), 0);
    free(image);
    free(buf);
    free(iov);
}

/* Lengths that add up beyond what a size can say are refused, not wrapped around. */
static void vector__overflow_is_einval(struct env *env)
{
    const char *path = test_new_path("overflow");
    char byte;
    struct iovec iov[2] = { { &byte, SIZE_MAX / 2 }, { &byte, SIZE_MAX / 2 + 5 } };
    struct weir_file *file;
    struct probe probe;
    struct weir_job *job = &probe.job;
    uint64_t moved;
    int rc;

    pattern_make_file(path, 10, SEED);
    file = open_file(env, path, WEIR_OPEN_READ);
    weir_job_readv(job, file, iov, 2, 0, NULL, NULL);
    probe_arm(&probe);
    rc = weir_queue_submit(env->queue, &job, 1);
    if (rc == 1)
        rc = (int)probe_wait(env->queue, &probe);
    check_code(rc, -EINVAL);
    check_code(weir_file_transfer(file, 0, iov, 2, 0, &moved, NULL), -EINVAL);
    check_code(weir_file_close(file), 0);
}

/* --- direct files --------------------------------------------------------------------------- */

static bool open_direct(struct env *env, const char *path, struct weir_file **ret_file)
{
    return weir_file_open(env->engine, NULL, path,
                          WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_DIRECT, 0666, ret_file,
                          NULL) == 0;
}

/* What is not aligned is refused at submit, with a record that says which, and never sent. */
static void direct__misaligned_is_refused_at_submit(struct env *env)
{
    const char *path = test_new_path("misaligned");
    struct weir_file_info info = { .size = sizeof(info) };
    struct weir_file *file;
    uint8_t *buf = aligned_alloc(4096, 64 * KIB);
    struct iovec iov[2];

    pattern_make_file(path, 64 * KIB, SEED);
    if (!open_direct(env, path, &file)) {
        env->skipped = "no direct files on this file system";
        free(buf);
        return;
    }
    check_code(weir_file_info(file, &info), 0);
    check(info.direct == 1);
    check(info.offset_align >= 512 && info.offset_align <= 65536);
    check(info.memory_align >= 1 && info.memory_align <= 65536);
    for (int what = 0; what < 8; what++) {
        struct probe probe;
        struct weir_job *job = &probe.job;
        const char *word = "";
        uint64_t moved = 1;

        switch (what) {
        case 0: /* offset */
            weir_job_read(job, file, buf, 8192, 1, NULL, NULL);
            word = "offset";
            break;
        case 1: /* length */
            weir_job_read(job, file, buf, 8191, 4096, NULL, NULL);
            word = "len";
            break;
        case 2: /* offset of a write */
            weir_job_write(job, file, buf, 8192, info.offset_align / 2, NULL, NULL);
            word = "offset";
            break;
        case 3:
            weir_job_write(job, file, buf, info.offset_align + 1, 0, NULL, NULL);
            word = "len";
            break;
        case 4: /* buffer */
            if (info.memory_align == 1)
                continue;
            weir_job_read(job, file, buf + 1, 4096, 0, NULL, NULL);
            word = "buf";
            break;
        case 5: /* the second part's length */
            iov[0] = (struct iovec){ buf, 4096 };
            iov[1] = (struct iovec){ buf + 4096, 100 };
            weir_job_readv(job, file, iov, 2, 0, NULL, NULL);
            break;
        case 6: /* the second part's address */
            if (info.memory_align == 1)
                continue;
            iov[0] = (struct iovec){ buf, 4096 };
            iov[1] = (struct iovec){ buf + 4096 + info.memory_align / 2, 4096 };
            weir_job_writev(job, file, iov, 2, 0, NULL, NULL);
            break;
        default: /* a vector's offset */
            iov[0] = (struct iovec){ buf, 4096 };
            weir_job_writev(job, file, iov, 1, 7, NULL, NULL);
            word = "offset";
            break;
        }
        probe_arm(&probe);
        check_code(weir_queue_submit(env->queue, &job, 1), -EINVAL);
        check(probe.done == 0);
        check_code(probe.error.code, -EINVAL);
        check_code(probe.error.op, job->op);
        check_code(probe.error.offset, job->offset);
        check(probe.error.text[0] != '\0');
        check(strstr(probe.error.path, "misaligned") != NULL);
        if (strstr(probe.error.text, word) == NULL)
            fail_msg("the record's text does not name '%s': %s", word, probe.error.text);

        /* The blocking twins say the same. */
        memset(&probe.error, 0, sizeof(probe.error));
        if (job->op == WEIR_OP_READ) {
            check_code(weir_file_read(file, job->buf, job->len, job->offset), -EINVAL);
        } else if (job->op == WEIR_OP_WRITE) {
            check_code(weir_file_write(file, job->buf, job->len, job->offset), -EINVAL);
        } else {
            check_code(weir_file_transfer(file, job->op == WEIR_OP_WRITEV, job->buf, job->len,
                                          job->offset, &moved, &probe.error),
                       -EINVAL);
            check_code(moved, 0);
            check_code(probe.error.code, -EINVAL);
        }
    }
    check_code(weir_queue_run(env->queue), 0); /* nothing of all that was taken */
    check_code(weir_file_close(file), 0);
    free(buf);
}

/* Direct reads across an end that is not aligned are short there and nowhere else. */
static void direct__end_of_file_is_exact(struct env *env)
{
    const char *path = test_new_path("directend");
    struct weir_file *file;
    uint8_t *buf = aligned_alloc(4096, 64 * KIB);
    uint64_t moved;

    pattern_make_file(path, 10000, SEED);
    if (!open_direct(env, path, &file)) {
        env->skipped = "no direct files on this file system";
        free(buf);
        return;
    }
    memset(buf, 0, 64 * KIB);
    check_code(job_read(env, file, buf, 4096, 0, &moved), 4096);
    check_pattern(buf, 4096, SEED, 0);
    check_code(job_read(env, file, buf, 64 * KIB, 0, &moved), 10000);
    check_pattern(buf, 10000, SEED, 0);
    check_code(job_read(env, file, buf, 8192, 8192, &moved), 10000 - 8192);
    check_pattern(buf, 10000 - 8192, SEED, 8192);
    check_code(job_read(env, file, buf, 4096, 12288, &moved), 0);
    check_code(job_read(env, file, buf, 4096, 1 * MIB, &moved), 0);
    check_code(weir_file_read(file, buf, 64 * KIB, 4096), 10000 - 4096);
    check_pattern(buf, 10000 - 4096, SEED, 4096);
    check_code(weir_file_read(file, buf, 4096, 12288), 0);

    pattern_fill(buf, 8192, SEED + 1, 4096);
    {
        struct probe probe;

        weir_job_write(&probe.job, file, buf, 8192, 4096, NULL, NULL);
        check_code(probe_run(env->queue, &probe), 8192);
    }
    memset(buf, 0, 8192);
    check_code(job_read(env, file, buf, 64 * KIB, 0, &moved), 12288);
    check_pattern(buf, 4096, SEED, 0);
    check_pattern(buf + 4096, 8192, SEED + 1, 4096);
    check_code(weir_file_close(file), 0);
    free(buf);
}

/* --- order ------------------------------------------------------------------------------------- */

/* Overlapping writes of one queue, all in flight at once, end as if done one by one. */
static void overwrite__last_submitted_wins(struct env *env)
{
    enum {
        IMAGE = 16384,
        WRITES = 600
    };
    struct test_rng rng = { test_seed() + 1 };
    uint8_t *image = calloc(1, IMAGE);
    uint8_t *buf = malloc(IMAGE);
    uint8_t *data = malloc((size_t)WRITES * 2048);
    struct probe *probes = calloc(WRITES, sizeof(*probes));
    struct iovec *iov = calloc(WRITES, 2 * sizeof(*iov));
    const char *path = test_new_path("overwrite");
    struct weir_file *file;

    for (unsigned round = 0; round < 4; round++) {
        bool grows = round % 2 == 1; /* over the end, or inside */

        memset(image, 0, IMAGE);
        file =
            open_file(env, path,
                      WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_TRUNCATE);
        if (!grows)
            check_code(weir_file_write(file, image, IMAGE, 0), IMAGE);
        for (size_t i = 0; i < WRITES; i++) {
            size_t len = 1 + rng_below(&rng, 2048);
            uint64_t offset = rng_below(&rng, IMAGE - len + 1);
            uint8_t *from = data + i * 2048;

            memset(from, (int)(i % 255 + 1), len);
            memcpy(image + offset, from, len);
            if (i % 5 == 4) {
                size_t cut = rng_below(&rng, len + 1);

                iov[2 * i] = (struct iovec){ from, cut };
                iov[2 * i + 1] = (struct iovec){ from + cut, len - cut };
                weir_job_writev(&probes[i].job, file, &iov[2 * i], 2, offset, NULL, NULL);
            } else {
                weir_job_write(&probes[i].job, file, from, len, offset, NULL, NULL);
            }
            probe_submit(env->queue, &probes[i]);
            if (rng_below(&rng, 50) == 0)
                check(weir_queue_run(env->queue) >= 0);
        }
        probes_wait(env->queue, probes, WRITES);
        for (size_t i = 0; i < WRITES; i++)
            check(probes[i].result > 0);
        memset(buf, 0, IMAGE);
        check(weir_file_read(file, buf, IMAGE, 0) > IMAGE / 2);
        if (memcmp(buf, image, IMAGE) != 0) {
            size_t at = 0;

            while (buf[at] == image[at])
                at++;
            fail_msg("byte %zu is of write %u, not of write %u", at, buf[at], image[at]);
        }
        check_code(weir_file_close(file), 0);
    }
    free(image);
    free(buf);
    free(data);
    free(probes);
    free(iov);
}

/* A read with AFTER_WRITES sees what was submitted before it, however much it overlaps. What
 * is submitted after it may be seen too, so each round ends before the next one writes. */
static void read__after_writes_sees_them(struct env *env)
{
    enum {
        IMAGE = 32768,
        OPS = 24,
        ROUNDS = 60
    };
    struct test_rng rng = { test_seed() + 2 };
    uint8_t *image = calloc(1, IMAGE);
    uint8_t *wants = malloc((size_t)OPS * 4096);
    uint8_t *data = malloc((size_t)OPS * 4096);
    struct probe *probes = calloc(OPS, sizeof(*probes));
    struct iovec iov[OPS];
    struct weir_file *file =
        open_file(env, test_new_path("after"),
                  WEIR_OPEN_READ | WEIR_OPEN_WRITE | WEIR_OPEN_CREATE | WEIR_OPEN_TRUNCATE);

    check_code(weir_file_write(file, image, IMAGE, 0), IMAGE);
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < OPS; i++) {
            size_t len = 1 + rng_below(&rng, 4096);
            uint64_t offset = rng_below(&rng, IMAGE - len + 1);
            uint8_t *bytes = data + i * 4096;

            if (i < OPS / 2) {
                memset(bytes, (int)((round * OPS + i) % 251 + 1), len);
                memcpy(image + offset, bytes, len);
                weir_job_write(&probes[i].job, file, bytes, len, offset, NULL, NULL);
            } else {
                if (rng_below(&rng, 2) == 0) { /* exactly over one of the writes */
                    const struct weir_job *write = &probes[rng_below(&rng, OPS / 2)].job;

                    len = write->len;
                    offset = write->offset;
                }
                memcpy(wants + i * 4096, image + offset, len);
                iov[i] = (struct iovec){ bytes, len };
                if (i % 2 == 1)
                    weir_job_read(&probes[i].job, file, bytes, len, offset, NULL, NULL);
                else
                    weir_job_readv(&probes[i].job, file, &iov[i], 1, offset, NULL, NULL);
                probes[i].job.flags = WEIR_JOB_AFTER_WRITES;
            }
            probe_submit(env->queue, &probes[i]);
        }
        probes_wait(env->queue, probes, OPS);
        for (size_t i = 0; i < OPS; i++) {
            check(probes[i].result > 0);
            if (i >= OPS / 2)
                check(memcmp(data + i * 4096, wants + i * 4096, iov[i].iov_len) == 0);
        }
    }
    check_code(weir_file_close(file), 0);
    free(image);
    free(wants);
    free(data);
    free(probes);
}

/* A barrier sync is done after the writes submitted before it, whichever way they end. */
static void sync__barrier_follows_writes(struct env *env)
{
    enum {
        WRITES = 100
    };
    uint8_t *data = calloc(1, 4096);
    struct probe *probes = calloc(WRITES + 2, sizeof(*probes));
    struct weir_file *file =
        open_file(env, test_new_path("barrier"), WEIR_OPEN_WRITE | WEIR_OPEN_CREATE);

    for (unsigned round = 0; round < 4; round++) {
        struct probe *sync = &probes[WRITES];

        probe_order_reset();
        for (size_t i = 0; i < WRITES; i++) {
            weir_job_write(&probes[i].job, file, data, 4096, i * 4096, NULL, NULL);
            probe_submit(env->queue, &probes[i]);
        }
        weir_job_sync(&sync->job, file, round % 2 ? WEIR_SYNC_ALL : WEIR_SYNC_DATA, NULL, NULL);
        sync->job.flags = WEIR_JOB_BARRIER;
        probe_submit(env->queue, sync);
        probes_wait(env->queue, probes, WRITES + 1);
        check_code(sync->result, 0);
        for (size_t i = 0; i < WRITES; i++) {
            check_code(probes[i].result, 4096);
            check(probes[i].order < sync->order);
        }
    }
    check_code(weir_file_close(file), 0);
    free(data);
    free(probes);
}

/* --- depth ----------------------------------------------------------------------------------------- */

/* Many random reads in flight, direct and buffered, of which every byte is right. */
static void read__random_at_depth(struct env *env)
{
    enum {
        FILE_SIZE = 4 << 20,
        READS = 3000,
        WINDOW = 64
    };
    struct test_rng rng = { test_seed() + 3 };
    const char *path = test_new_path("depth");
    struct probe *probes = calloc(WINDOW, sizeof(*probes));
    uint8_t *buf = aligned_alloc(4096, (size_t)WINDOW * 65536);

    pattern_make_file(path, FILE_SIZE, SEED);
    for (int direct = 0; direct < 2; direct++) {
        struct weir_file *file;
        size_t started = 0;

        if (direct) {
            if (!open_direct(env, path, &file))
                break;
        } else {
            file = open_file(env, path, WEIR_OPEN_READ);
        }
        for (size_t i = 0; i < WINDOW; i++)
            probes[i].done = 0;
        while (started < READS) {
            size_t slot = started % WINDOW;
            size_t len = (1 + rng_below(&rng, 16)) * 4096;
            uint64_t offset = rng_below(&rng, (FILE_SIZE - len) / 4096) * 4096;

            if (started >= WINDOW) {
                check_code(probe_wait(env->queue, &probes[slot]), probes[slot].job.len);
                check_pattern(probes[slot].job.buf, probes[slot].job.len, SEED,
                              probes[slot].job.offset);
            }
            if (!direct) {
                len -= rng_below(&rng, 4000);
                offset += rng_below(&rng, 4096);
            }
            weir_job_read(&probes[slot].job, file, buf + slot * 65536, len, offset, NULL, NULL);
            probe_submit(env->queue, &probes[slot]);
            started++;
        }
        probes_wait(env->queue, probes, WINDOW);
        check_code(weir_file_close(file), 0);
    }
    free(probes);
    free(buf);
}

static const struct test_case cases[] = {
    CASE(read__around_the_end_is_exact, CASE_BYTES),
    CASE(read__empty_file_is_zero, CASE_BYTES),
    CASE(transfer__length_zero_is_zero, 0),
    CASE(transfer__offsets_beyond_4_gib, CASE_BYTES),
    CASE(transfer__impossible_offset_is_einval, CASE_BYTES),
    CASE(read__longer_than_4_gib, CASE_BYTES),
    CASE(readv__longer_than_2_gib, CASE_BYTES),
    CASE(write__longer_than_4_gib, 0),
    CASE(vector__random_parts_are_exact, CASE_BYTES),
    CASE(vector__overflow_is_einval, 0),
    CASE(direct__misaligned_is_refused_at_submit, 0),
    CASE(direct__end_of_file_is_exact, CASE_BYTES),
    CASE(overwrite__last_submitted_wins, CASE_BYTES),
    CASE(read__after_writes_sees_them, CASE_BYTES),
    CASE(sync__barrier_follows_writes, 0),
    CASE(read__random_at_depth, CASE_BYTES),
};

int main(int argc, char **argv)
{
    return run_cases("transfer", cases, COUNT(cases), argc, argv);
}
