/* SPDX-License-Identifier: MIT */
/*
 * test_trace.c - traces: what is written, what is read back, and from damaged files
 *
 * Most cases hand events to the recorder themselves, so that every field is known. A record is
 * told from others by its offset, which counts.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/faulty.h"

#include "engine/engine_internal.h"
#include "engine/trace_format.h"
#include "engine/trace_read.h"

#define SEED    23u
#define THREADS 4u

/* ---- what the cases share ------------------------------------------------------------------ */

static struct weir_file *make_file(struct weir_engine *engine, const char *path, size_t size)
{
    struct weir_file *file = NULL;

    pattern_make_file(path, size, SEED);
    check_code(
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    return file;
}

static void add(struct weir_engine *engine, struct weir_file *file, uint64_t offset)
{
    struct wi_trace_event event = { .file = file,
                                    .id = (UINT64_C(5) << 52) + offset,
                                    .submit_ns = 1000 + offset,
                                    .start_ns = 1010 + offset,
                                    .end_ns = 1030 + offset,
                                    .offset = offset,
                                    .len = 4096,
                                    .result = -EIO,
                                    .op = WEIR_OP_READ,
                                    .io_class = WEIR_CLASS_BATCH };

    wi_trace_add(engine, &event);
}

/* A whole trace in memory. Paths are kept as whether they are there. */
struct all {
    struct weir_trace_record *records;
    size_t count;
    size_t room;
    struct weir_trace_info info;
    struct weir_error error; /* the last */
    int corrupt;             /* how often WEIR_ECORRUPT was told */
    int truncated;
    int other; /* the last other code */
};

static struct all read_all(const struct wi_os *os, const char *path)
{
    struct all all = { .info = { .size = sizeof(all.info) } };
    struct weir_trace_reader *reader = NULL;
    struct weir_trace_record record;
    int rc = wi_trace_reader_open(os, path, &reader, &all.error);

    if (rc < 0) {
        check(reader == NULL);
        check_code(all.error.code, rc);
        check(strlen(all.error.text) > 0);
        all.corrupt = rc == -WEIR_ECORRUPT;
        all.truncated = rc == -WEIR_ETRUNCATED;
        all.other = all.corrupt || all.truncated ? 0 : rc;
        return all;
    }
    while ((rc = weir_trace_reader_next(reader, &record, &all.error)) != 0) {
        if (rc == -WEIR_ECORRUPT || rc == -WEIR_ETRUNCATED || rc == -WEIR_EVERSION) {
            check_code(all.error.code, rc);
            all.corrupt += rc == -WEIR_ECORRUPT;
            all.truncated += rc == -WEIR_ETRUNCATED;
            if (rc == -WEIR_EVERSION)
                all.other = rc;
            check(all.corrupt + all.truncated < 1000); /* it comes to an end */
            continue;
        }
        if (rc < 0) {
            all.other = rc;
            break;
        }
        if (all.count == all.room) {
            all.room = all.room ? 2 * all.room : 64;
            all.records = realloc(all.records, all.room * sizeof(*all.records));
            check(all.records != NULL);
        }
        record.path = record.path ? "a path" : NULL;
        all.records[all.count++] = record;
    }
    check_code(weir_trace_reader_info(reader, &all.info), 0);
    all.info.version = all.info.backend = NULL; /* gone with the reader */
    weir_trace_reader_close(reader);
    return all;
}

static size_t load(const char *path, unsigned char **ret)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    check(fd >= 0 && fstat(fd, &st) == 0);
    *ret = malloc((size_t)st.st_size + 1);
    check(*ret != NULL);
    check(read(fd, *ret, (size_t)st.st_size) == st.st_size);
    (void)close(fd);
    return (size_t)st.st_size;
}

static void store(const char *path, const void *bytes, size_t len)
{
    /* Without O_TRUNC: a file emptied and written anew is flushed by ext4 when it is closed. */
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    check(fd >= 0);
    check(write(fd, bytes, len) == (ssize_t)len);
    check(ftruncate(fd, (off_t)len) == 0);
    (void)close(fd);
}

/* ---- jobs and blocking calls ----------------------------------------------------------------- */

static const struct weir_trace_record *find(const struct all *all, uint64_t offset)
{
    static const struct weir_trace_record none;
    const struct weir_trace_record *found = NULL;

    for (size_t i = 0; i < all->count; i++) {
        if (all->records[i].offset != offset)
            continue;
        check(found == NULL); /* exactly one */
        found = &all->records[i];
    }
    check(found != NULL);
    return found ? found : &none;
}

/* Each job has one record, and each blocking call, with what it was and how it ended. */
static void trace__each_operation_once(struct env *env)
{
    enum {
        JOBS = 40
    };
    const char *path = test_new_path("trace");
    struct weir_file *file = make_file(env->engine, test_new_path("traced"), 64 * 4096);
    static struct probe probes[JOBS];
    static unsigned char buf[JOBS][4096];
    struct iovec iov[2] = { { buf[0], 1000 }, { buf[1], 2000 } };
    const struct weir_trace_record *record;
    uint64_t dropped = 99;
    struct all all;

    check_code(weir_trace_start(env->engine, path, NULL), 0);
    for (unsigned i = 0; i < JOBS; i++) {
        if (i == 0)
            weir_job_readv(&probes[i].job, file, iov, 2, 0, NULL, NULL);
        else if (i % 3 == 1)
            weir_job_write(&probes[i].job, file, buf[i], 512, i * 4096, NULL, NULL);
        else
            weir_job_read(&probes[i].job, file, buf[i], 4096, i * 4096, NULL, NULL);
        probes[i].job.io_class = (uint8_t)(i % WEIR_CLASSES);
        probe_arm(&probes[i]);
        probe_submit(env->queue, &probes[i]);
    }
    probes_wait(env->queue, probes, JOBS);
    check_code(weir_file_read(file, buf[0], 10, 50 * 4096), 10);
    check_code(weir_file_read(file, buf[0], 10, 100 * 4096), 0); /* the end of the file */
    check_code(weir_trace_stop(env->engine, &dropped, NULL), 0);
    check_code((int64_t)dropped, 0);
    check_code(weir_file_read(file, buf[0], 10, 51 * 4096), 10); /* too late */

    all = read_all(wi_os_posix(), path);
    check(all.corrupt == 0 && all.truncated == 0 && all.other == 0);
    check(all.info.complete == 1 && all.info.lost == 0 && all.info.dropped == 0);
    check_code((int64_t)all.count, JOBS + 2);
    check_code((int64_t)all.info.records, JOBS + 2);
    for (unsigned i = 0; i < JOBS; i++) {
        record = find(&all, i * 4096);
        check(record->id == probes[i].id && record->queue == probes[i].id >> 52);
        check_code(record->op, probes[i].job.op);
        check_code(record->io_class, (int64_t)(i % WEIR_CLASSES));
        check_code((int64_t)record->len, i == 0 ? 3000 : i % 3 == 1 ? 512 : 4096);
        check_code(record->result, probes[i].result);
        check((record->flags & WEIR_TRACE_BLOCKING) == 0 && record->thread == 0);
        check(record->path != NULL && record->file == 1);
        check((record->open_flags & (WEIR_OPEN_READ | WEIR_OPEN_WRITE)) ==
              (WEIR_OPEN_READ | WEIR_OPEN_WRITE));
        check(record->wait_ns < TEST_LONG && record->device_ns < TEST_LONG);
    }
    record = find(&all, 50 * 4096);
    check(record->flags == WEIR_TRACE_BLOCKING && record->thread != 0 && record->id == 0);
    check_code(record->op, WEIR_OP_READ);
    check_code(record->result, 10);
    check(record->wait_ns == 0 && record->file == 1);
    check_code(find(&all, 100 * 4096)->result, 0);
    free(all.records);
    check_code(weir_file_close(file), 0);
}

/* ---- one record's fields --------------------------------------------------------------------- */

/* What goes in comes out, to the bit; also what is odd. */
static void record__fields(struct env *env)
{
    const char *path = test_new_path("trace");
    struct weir_trace_reader *reader = NULL;
    struct weir_trace_record record;
    struct weir_trace_info info = { .size = sizeof(info) };
    struct weir_file *file = make_file(env->engine, test_new_path("traced"), 1);
    uint64_t now_ns;
    struct wi_trace_event event = { .file = file,
                                    .id = UINT64_C(0xabc0000100000007),
                                    .offset = UINT64_C(0x8877665544332211),
                                    .len = UINT64_C(0xfedcba9876543210),
                                    .result = INT64_MIN,
                                    .op = 250,
                                    .io_class = 4 };

    check_code(weir_trace_start(env->engine, path, NULL), 0);
    now_ns = wi_os_now(env->engine->os);
    event.submit_ns = now_ns - 5 * (uint64_t)WI_SEC_NS; /* before the trace began */
    event.start_ns = event.submit_ns + 70;
    event.end_ns = event.submit_ns + 300;
    wi_trace_add(env->engine, &event);
    event.start_ns = 0;
    event.file = NULL;
    event.flags = WI_TRACE_INTERNAL;
    wi_trace_add(env->engine, &event);
    event.end_ns = event.submit_ns - 10; /* clocks that disagree */
    event.flags = WI_TRACE_BLOCKING;
    wi_trace_add(env->engine, &event);
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);

    check_code(weir_trace_reader_open(path, &reader, NULL), 0);
    check_code(weir_trace_reader_next(reader, &record, NULL), 1);
    check(record.submit_ns < -4 * (int64_t)WI_SEC_NS && record.submit_ns > -(int64_t)TEST_LONG);
    check(record.wait_ns == 70 && record.device_ns == 230);
    check(record.id == event.id && record.queue == 0xabc && record.thread == 0);
    check(record.offset == event.offset && record.len == event.len);
    check(record.result == INT64_MIN && record.op == 250 && record.io_class == 4);
    check(record.flags == 0 && record.file == 1 && strcmp(record.path, file->path) == 0);
    check_code(weir_trace_reader_next(reader, &record, NULL), 1);
    check(record.flags == (WEIR_TRACE_INTERNAL | WEIR_TRACE_UNSTARTED));
    check(record.file == 0 && record.path == NULL && record.open_flags == 0);
    check(record.wait_ns == 300 && record.device_ns == 0);
    check_code(weir_trace_reader_next(reader, &record, NULL), 1);
    check(record.wait_ns == 0 && record.device_ns == 0);
    check(record.thread == wi_this_thread() && record.id == 0 && record.queue == 0);
    check_code(weir_trace_reader_next(reader, &record, NULL), 0);
    check_code(weir_trace_reader_next(reader, &record, NULL), 0);
    check_code(weir_trace_reader_info(reader, &info), 0);
    check(strcmp(info.version, weir_version()) == 0);
    check(strcmp(info.backend, env->backend_name) == 0);
    check(info.started_ns > INT64_C(1600000000) * WI_SEC_NS && info.complete == 1);
    info.size = 0;
    check_code(weir_trace_reader_info(reader, &info), -EINVAL);
    weir_trace_reader_close(reader);
    weir_trace_reader_close(NULL);
    check_code(weir_file_close(file), 0);
}

/* The header's bytes are those of the documentation. */
static void format__header_as_documented(struct env *env)
{
    static const unsigned char magic[] = { 0x89, 'W', 'T', 'R', 0x0d, 0x0a, 0x1a, 0x0a };
    const char *path = test_new_path("trace");
    unsigned char *bytes;
    size_t len;

    check_code(weir_trace_start(env->engine, path, NULL), 0);
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);
    len = load(path, &bytes);
    check_code((int64_t)len, 128 + 32 + 32); /* the header, and an end block */
    check(memcmp(bytes, magic, sizeof(magic)) == 0);
    check(bytes[8] == 1 && bytes[9] == 0 && bytes[10] == 0 && bytes[12] == 128);
    check(bytes[60] == 64);
    check(wi_get_le32(bytes + 124) == wi_crc32c_portable(0, bytes, 124));
    check(bytes[128] == 0xf7 && bytes[129] == 'W' && bytes[130] == 'T' && bytes[131] == 'B');
    check(bytes[132] == 3 && wi_get_le32(bytes + 136) == 32);
    free(bytes);
}

/* ---- names ------------------------------------------------------------------------------------ */

/* A handle that was closed and opened again is another file; a close has its file's number, if
 * that is still known. */
static void names__reused_handle_is_another_file(struct env *env)
{
    static const struct {
        uint8_t op;
        uint32_t file;
    } want[] = { { WEIR_OP_READ, 1 },  { WEIR_OP_CLOSE, 1 }, { WEIR_OP_CLOSE, 1 },
                 { WEIR_OP_OPEN, 2 },  { WEIR_OP_CLOSE, 0 }, { WEIR_OP_READ, 2 },
                 { WEIR_OP_CLOSE, 0 }, { WEIR_OP_CLOSE, 2 }, { WEIR_OP_CLOSE, 2 } };
    const char *path = test_new_path("trace");
    char first[300];
    char second[300];
    struct weir_trace_reader *reader = NULL;
    struct weir_trace_record record;
    struct weir_file *file;
    struct weir_file *again;
    struct wi_trace_event closed = { .op = WEIR_OP_CLOSE, .submit_ns = 1, .end_ns = 2 };

    (void)snprintf(first, sizeof(first), "%s", test_new_path("first"));
    (void)snprintf(second, sizeof(second), "%s", test_new_path("second"));
    file = make_file(env->engine, first, 1);
    check_code(weir_trace_start(env->engine, path, NULL), 0);
    add(env->engine, file, 1);
    check_code(weir_file_close(file), 0);
    closed.file = file;
    wi_trace_add(env->engine, &closed);
    again = make_file(env->engine, second, 1);
    check(again == file);               /* else this shows nothing */
    wi_trace_add(env->engine, &closed); /* comes late: whose close it was is not known */
    add(env->engine, again, 2);
    wi_trace_add(env->engine, &closed); /* even so */
    closed.result = -EBUSY;
    wi_trace_add(env->engine, &closed); /* still open, so it is this one */
    check_code(weir_file_close(again), 0);
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);

    check_code(weir_trace_reader_open(path, &reader, NULL), 0);
    for (size_t i = 0; i < COUNT(want); i++) {
        check_code(weir_trace_reader_next(reader, &record, NULL), 1);
        check_code(record.op, want[i].op);
        check_code(record.file, want[i].file);
        if (record.file != 0)
            check(strcmp(record.path, record.file == 1 ? first : second) == 0);
    }
    check_code(weir_trace_reader_next(reader, &record, NULL), 0);
    weir_trace_reader_close(reader);
}

/* A read of many ranges has a record for each, as a job and as a call; an open names its file. */
static void trace__ranges_and_opens(struct env *env)
{
    const char *path = test_new_path("trace");
    char name[300];
    unsigned char buf[3][100];
    struct weir_range ranges[2][3];
    struct weir_file *file = NULL;
    struct weir_file *nothing = NULL;
    struct probe probe;
    struct all all;
    unsigned opens = 0;

    (void)snprintf(name, sizeof(name), "%s", test_new_path("traced"));
    pattern_make_file(name, 20000, SEED);
    for (unsigned i = 0; i < 6; i++) /* the last one ends beyond the end of the file */
        ranges[i / 3][i % 3] = (struct weir_range){ .buf = buf[i % 3],
                                                    .len = 100,
                                                    .offset = (i % 3) * 9975 + i / 3 };
    check_code(weir_trace_start(env->engine, path, NULL), 0);
    weir_job_open(&probe.job, NULL, name, WEIR_OPEN_READ, 0, &file, NULL, NULL);
    check_code(probe_run(env->queue, &probe), 0);
    weir_job_open(&probe.job, NULL, "/nowhere", WEIR_OPEN_READ, 0, &nothing, NULL, NULL);
    check_code(probe_run(env->queue, &probe), -ENOENT);
    weir_job_prepare(&probe.job, WEIR_OP_READ_MANY, file, NULL, NULL);
    probe.job.buf = ranges[0];
    probe.job.len = 3;
    check_code(probe_run(env->queue, &probe), 250);
    check_code(weir_file_read_many(file, ranges[1], 3, NULL), 249);
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);
    check_code(weir_file_close(file), 0);

    all = read_all(wi_os_posix(), path);
    check_code((int64_t)all.count, 2 + 6);
    for (size_t i = 0; i < all.count; i++) {
        const struct weir_trace_record *record = &all.records[i];
        bool blocking = (record->flags & WEIR_TRACE_BLOCKING) != 0;

        if (record->op == WEIR_OP_OPEN) {
            check((record->result == 0) == (record->path != NULL));
            opens++;
            continue;
        }
        check_code(record->op, WEIR_OP_READ_MANY);
        check(record->file == 1 && record->len == 100 && record->offset % 9975 == blocking);
        check_code(record->result, record->offset < 19950 ? 100 : 50 - blocking);
    }
    check_code(opens, 2);
    free(all.records);
}

/* More files than there are places, with long names that fill blocks of their own. */
static void names__many_and_long(struct env *env)
{
    enum {
        FILES = 300
    };
    static struct weir_file files[FILES]; /* no more of a file than the recorder looks at */
    const char *path = test_new_path("trace");
    static char names[FILES][5000];
    struct weir_trace_reader *reader = NULL;
    struct weir_trace_record record;
    uint64_t dropped = 0;
    unsigned i = 0;

    check_code(weir_trace_start(env->engine, path, NULL), 0);
    for (i = 0; i < FILES; i++) {
        memset(names[i], 'a' + (int)(i % 26), i * 16);
        (void)snprintf(names[i] + i * 16, 16, "%u", i);
        files[i].path = names[i];
        files[i].index = i % 2 ? i : i + 4096; /* the same place as another's */
        atomic_store(&files[i].generation, 1);
    }
    for (i = 0; i < 2 * FILES; i++)
        add(env->engine, &files[i % FILES], i);
    check_code(weir_trace_stop(env->engine, &dropped, NULL), 0);
    check_code(weir_trace_reader_open(path, &reader, NULL), 0);
    for (i = 0; i < FILES; i++)
        names[i][TRACE_PATH_MAX] = '\0';
    for (i = 0; weir_trace_reader_next(reader, &record, NULL) == 1; i++)
        check(strcmp(record.path, names[record.offset % FILES]) == 0);
    /* Names fill buffers so fast that some may have found none. */
    check_code((int64_t)(i + dropped), (int64_t)2 * FILES);
    check(i > 20);
    weir_trace_reader_close(reader);
}

/* ---- begin and end ----------------------------------------------------------------------------- */

static void start__what_it_refuses(struct env *env)
{
    struct weir_error error = { 0 };
    char path[300];
    char other[300];
    struct stat st;
    uint64_t dropped;
    int fd;

    (void)snprintf(path, sizeof(path), "%s", test_new_path("trace"));
    (void)snprintf(other, sizeof(other), "%s", test_new_path("other"));
    check_code(weir_trace_stop(env->engine, &dropped, &error), -ENOENT);
    check_code(weir_trace_start(env->engine, NULL, NULL), -EINVAL);
    check_code(weir_trace_start(env->engine, "/nowhere/at/all", &error), -ENOENT);
    check(strcmp(error.path, "/nowhere/at/all") == 0);

    store(other, "precious", 8);
    check_code(weir_trace_start(env->engine, other, &error), -EEXIST);
    check(stat(other, &st) == 0 && st.st_size == 8);
    store(other, "", 0);
    check_code(weir_trace_start(env->engine, other, &error), -EEXIST);
    check_code(weir_trace_start(env->engine, test_dir(), &error), -EEXIST);
    check_code(unlink(other), 0);
    check_code(mkfifo(other, 0600), 0);
    check_code(weir_trace_start(env->engine, other, &error), -EEXIST); /* and does not hang */
    check_code(unlink(other), 0);

    check_code(weir_trace_start(env->engine, path, &error), 0);
    check(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600);
    check_code(weir_trace_start(env->engine, other, &error), -EALREADY);
    check(access(other, F_OK) != 0);
    check_code(weir_trace_stop(env->engine, NULL, &error), 0);
    check_code(weir_trace_stop(env->engine, NULL, &error), -ENOENT);

    /* A link to a trace is none; a trace is replaced, but not while somebody writes it. */
    check_code(symlink(path, other), 0);
    check_code(weir_trace_start(env->engine, other, &error), -EEXIST);
    check_code(chmod(path, 0644), 0);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    check(flock(fd, LOCK_EX) == 0);
    check_code(weir_trace_start(env->engine, path, &error), -EBUSY);
    (void)close(fd);
    check_code(weir_trace_start(env->engine, path, &error), 0);
    check(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600 && st.st_size == 128);
    check_code(weir_trace_stop(env->engine, NULL, &error), 0);
}

/* An engine that closes ends its trace, whole. */
static void close__ends_the_trace(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options), .backend = env->backend };
    const char *path = test_new_path("trace");
    struct weir_engine *engine = NULL;
    struct all all;

    check_code(weir_engine_open(&options, &engine, NULL), 0);
    check_code(weir_trace_start(engine, path, NULL), 0);
    add(engine, NULL, 1);
    check_code(weir_engine_close(engine), 0);
    all = read_all(wi_os_posix(), path);
    check(all.count == 1 && all.info.complete == 1);
    free(all.records);
}

/* A trace takes memory that is counted, and gives it back. */
static void memory__is_given_back(struct env *env)
{
    struct weir_stats before = { .size = sizeof(before) };
    struct weir_stats during = { .size = sizeof(during) };
    struct weir_stats after = { .size = sizeof(after) };

    check_code(weir_engine_stats(env->engine, &before), 0);
    check_code(weir_trace_start(env->engine, test_new_path("trace"), NULL), 0);
    check_code(weir_engine_stats(env->engine, &during), 0);
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);
    check_code(weir_engine_stats(env->engine, &after), 0);
    check(during.memory_bytes > before.memory_bytes + MIB);
    check(during.memory_bytes < before.memory_bytes + 3 * MIB / 2);
    check(after.memory_bytes == before.memory_bytes);
}

/* ---- full buffers and errors ---------------------------------------------------------------- */

/* While the disk hangs, records are dropped and counted; what was taken is all there. */
static void full__drops_and_counts(struct env *env)
{
    const uint64_t count = 6 * 4096;
    const char *path = test_new_path("trace");
    struct faulty faulty;
    uint64_t dropped = 0;
    struct all all;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    check_code(weir_trace_start(faulty.engine, path, NULL), 0);
    faulty_hang(&faulty, WI_FAULT_WRITE, 0, false);
    for (uint64_t i = 0; i < count; i++)
        add(faulty.engine, NULL, i);
    faulty_release(&faulty);
    check_code(weir_trace_stop(faulty.engine, &dropped, NULL), 0);
    check_code((int64_t)dropped, 2 * 4096); /* four buffers were taken, and the task hung */
    all = read_all(wi_os_posix(), path);
    check_code((int64_t)all.count, (int64_t)(count - dropped));
    check(all.info.complete == 1 && all.info.dropped == dropped);
    for (size_t i = 0; i < all.count; i++)
        check(all.records[i].offset == i);
    free(all.records);
    faulty_close(&faulty);
}

/* A record that comes a second later sends what is there to the file, full or not. */
static void full__or_a_second_old(struct env *env)
{
    const char *path = test_new_path("trace");
    struct faulty faulty;
    struct wi_trace_event event = { .op = WEIR_OP_NOP, .submit_ns = 1, .end_ns = 1 };
    struct all all;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    check_code(weir_trace_start(faulty.engine, path, NULL), 0);
    wi_trace_add(faulty.engine, &event);
    event.end_ns += WI_SEC_NS;
    wi_trace_add(faulty.engine, &event);
    event.end_ns += 1;
    wi_trace_add(faulty.engine, &event);
    /* The header, and now the first two. */
    while (wi_fault_seen(faulty.plan, WI_FAULT_WRITE) < 2)
        sched_yield();
    check_code(weir_trace_stop(faulty.engine, NULL, NULL), 0);
    check_code((int64_t)wi_fault_seen(faulty.plan, WI_FAULT_WRITE), 4);
    all = read_all(wi_os_posix(), path);
    check(all.count == 3 && all.info.complete == 1);
    free(all.records);
    faulty_close(&faulty);
}

/* Every write that is cut short, interrupted or put off is gone on with. */
static void write__goes_on(struct env *env)
{
    const char *path = test_new_path("trace");
    struct faulty faulty;
    struct all all;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    faulty_rule(&faulty, (struct wi_fault_rule){
                             .kind = WI_FAULT_WRITE, .first = 2, .count = 1, .error = -EINTR });
    faulty_rule(&faulty,
                (struct wi_fault_rule){
                    .kind = WI_FAULT_WRITE, .first = 1, .count = 0, .shorten_to = 50 });
    check_code(weir_trace_start(faulty.engine, path, NULL), 0);
    for (uint64_t i = 0; i < 100; i++)
        add(faulty.engine, NULL, i);
    check_code(weir_trace_stop(faulty.engine, NULL, NULL), 0);
    all = read_all(wi_os_posix(), path);
    check(all.count == 100 && all.info.complete == 1);
    free(all.records);
    faulty_close(&faulty);
}

/* Whichever call fails, start or stop says so, and what is in the file by then can be read. */
static void write__nth_call_fails(struct env *env)
{
    static const enum wi_fault_kind kinds[] = { WI_FAULT_WRITE, WI_FAULT_OPEN, WI_FAULT_CLOSE };
    uint64_t written = 0;

    for (size_t k = 0; k < COUNT(kinds); k++) {
        for (uint64_t n = 1;; n++) {
            const char *path = test_new_path("trace");
            struct weir_error error = { 0 };
            struct faulty faulty;
            struct all all;
            uint64_t dropped = 0;
            bool acted;
            int rc;

            faulty_open(&faulty, env->backend, 0, 0, NULL);
            faulty_rule(&faulty,
                        (struct wi_fault_rule){
                            .kind = kinds[k], .first = n, .count = 1, .error = -ENOSPC });
            rc = weir_trace_start(faulty.engine, path, &error);
            if (rc == 0) {
                for (uint64_t i = 0; i < 5000; i++)
                    add(faulty.engine, NULL, i);
                rc = weir_trace_stop(faulty.engine, &dropped, &error);
                all = read_all(wi_os_posix(), path);
                if (kinds[k] == WI_FAULT_WRITE && rc < 0 && all.other == 0) {
                    check(all.truncated == 1 && all.corrupt == 0);
                    /* If it is the end block that is missing, no record is. */
                    check_code((int64_t)(all.count + dropped), 5000);
                    written = all.count > written ? all.count : written;
                } else {
                    check_code((int64_t)all.count, 5000);
                }
                free(all.records);
            } else {
                check(access(path, F_OK) != 0); /* nothing is left of it */
            }
            acted = wi_fault_acted(faulty.plan) > 0;
            check_code(rc, acted ? -ENOSPC : 0);
            check_code(error.code, rc);
            check_code(weir_trace_stop(faulty.engine, NULL, NULL), -ENOENT);
            faulty_close(&faulty);
            if (!acted)
                break;
            check(n < 20);
        }
    }
    check_code((int64_t)written, 5000);
}

/* ---- many threads ----------------------------------------------------------------------------- */

struct adders {
    struct weir_engine *engine;
    struct weir_file *files[3];
    char rival_path[300];
    _Atomic bool stop;
    _Atomic bool wrong; /* the rival got an answer that cannot be */
    _Atomic uint64_t next;
};

static void *add_until_stopped(void *arg)
{
    struct adders *adders = arg;

    while (!atomic_load(&adders->stop)) {
        uint64_t i = atomic_fetch_add(&adders->next, 1);

        add(adders->engine, adders->files[i % COUNT(adders->files)], i);
    }
    return NULL;
}

/* Adds from several threads, while traces come and go and others try to do the same. */
static void *start_and_stop(void *arg)
{
    struct adders *adders = arg;

    while (!atomic_load(&adders->stop)) {
        int rc = weir_trace_start(adders->engine, adders->rival_path, NULL);

        if (rc == 0)
            rc = weir_trace_stop(adders->engine, NULL, NULL);
        if (rc != 0 && rc != -EALREADY && rc != -ENOENT)
            atomic_store(&adders->wrong, true);
    }
    return NULL;
}

static void threads__add_while_traces_come_and_go(struct env *env)
{
    struct adders adders = { .engine = env->engine };
    pthread_t threads[THREADS];
    pthread_t rival;

    (void)snprintf(adders.rival_path, sizeof(adders.rival_path), "%s", test_new_path("rival"));
    for (size_t i = 0; i < COUNT(adders.files); i++)
        adders.files[i] = make_file(env->engine, test_new_path("traced"), 1);
    for (unsigned i = 0; i < THREADS; i++)
        check_code(pthread_create(&threads[i], NULL, add_until_stopped, &adders), 0);
    for (unsigned round = 0; round < 30; round++) {
        char path[300];
        uint64_t dropped;
        uint64_t from;
        struct all all;

        (void)snprintf(path, sizeof(path), "%s", test_new_path("trace"));
        check_code(weir_trace_start(env->engine, path, NULL), 0);
        from = atomic_load(&adders.next);
        while (atomic_load(&adders.next) < from + 100 + round * 500)
            sched_yield();
        check_code(weir_trace_stop(env->engine, &dropped, NULL), 0);
        all = read_all(wi_os_posix(), path);
        check(all.corrupt == 0 && all.truncated == 0 && all.info.complete == 1);
        check(all.info.dropped == dropped && all.count + dropped > 0);
        for (size_t i = 0; i < all.count; i++) {
            check(all.records[i].path != NULL &&
                  all.records[i].id << 12 >> 12 == all.records[i].offset);
            check(all.records[i].wait_ns == 10 && all.records[i].device_ns == 20);
        }
        free(all.records);
        check_code(unlink(path), 0);
    }
    check_code(pthread_create(&rival, NULL, start_and_stop, &adders), 0);
    for (unsigned round = 0; round < 200; round++) {
        int rc = weir_trace_start(env->engine, test_path("mine"), NULL);

        check(rc == 0 || rc == -EALREADY);
        if (rc == 0) /* the rival may have stopped it */
            (void)weir_trace_stop(env->engine, NULL, NULL);
    }
    atomic_store(&adders.stop, true);
    for (unsigned i = 0; i < THREADS; i++)
        check_code(pthread_join(threads[i], NULL), 0);
    check_code(pthread_join(rival, NULL), 0);
    check(!atomic_load(&adders.wrong));
    for (size_t i = 0; i < COUNT(adders.files); i++)
        check_code(weir_file_close(adders.files[i]), 0);
}

struct stop_call {
    struct weir_engine *engine;
    uint64_t dropped;
};

static int64_t stop_in_pool(void *context)
{
    struct stop_call *call = context;

    for (uint64_t i = 0; i < 5000; i++) /* a full buffer, whose task is queued behind us */
        add(call->engine, NULL, i);
    return weir_trace_stop(call->engine, &call->dropped, NULL);
}

/* A stop on the only thread that could write does not wait for it. */
static void stop__on_the_pools_only_thread(struct env *env)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .files_threads = 1 };
    const char *path = test_new_path("trace");
    struct stop_call call = { 0 };
    struct weir_queue *queue = NULL;
    struct probe probe;
    struct all all;

    check_code(weir_engine_open(&options, &call.engine, NULL), 0);
    check_code(weir_queue_open(call.engine, NULL, &queue), 0);
    for (unsigned i = 0; i < 3; i++) {
        check_code(weir_trace_start(call.engine, path, NULL), 0);
        weir_job_call(&probe.job, WEIR_LANE_FILES, stop_in_pool, &call, NULL, NULL);
        check_code(probe_run(queue, &probe), 0);
        all = read_all(wi_os_posix(), path);
        check(all.count == 5000 && call.dropped == 0 && all.info.complete == 1);
        free(all.records);
    }
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_engine_close(call.engine), 0);
}

struct stopper {
    struct weir_engine *engine;
    _Atomic bool stopped;
    int rc;
};

static void *stop_now(void *arg)
{
    struct stopper *stopper = arg;

    stopper->rc = weir_trace_stop(stopper->engine, NULL, NULL);
    atomic_store(&stopper->stopped, true);
    return NULL;
}

/* While the task writes, a stop neither writes beside it nor frees what it reads. */
static void stop__waits_for_a_write(struct env *env)
{
    const char *path = test_new_path("trace");
    struct stopper stopper = { 0 };
    struct faulty faulty;
    pthread_t thread;
    struct all all;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    stopper.engine = faulty.engine;
    check_code(weir_trace_start(faulty.engine, path, NULL), 0);
    faulty_hang(&faulty, WI_FAULT_WRITE, 1, false);
    for (uint64_t i = 0; i < 5000; i++)
        add(faulty.engine, NULL, i);
    while (wi_fault_seen(faulty.plan, WI_FAULT_WRITE) < 2) /* the header, and the task's */
        sched_yield();
    check_code(pthread_create(&thread, NULL, stop_now, &stopper), 0);
    while (atomic_load(&faulty.engine->trace))
        sched_yield();
    for (unsigned i = 0; i < 1000; i++) /* time to do something wrong */
        sched_yield();
    check(!atomic_load(&stopper.stopped));
    faulty_release(&faulty);
    check_code(pthread_join(thread, NULL), 0);
    check_code(stopper.rc, 0);
    all = read_all(wi_os_posix(), path);
    check(all.count == 5000 && all.info.complete == 1 && all.corrupt == 0);
    free(all.records);
    faulty_close(&faulty);
}

/* ---- damage ------------------------------------------------------------------------------------- */

/* A small trace of each kind of block, twice; returns its length. */
static size_t make_small(struct env *env, const char *path, unsigned char **ret)
{
    struct weir_file *files[2];
    char name[32];

    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(name, sizeof(name), "small-%u", i);
        files[i] = make_file(env->engine, test_path(name), 1);
    }
    check_code(weir_trace_start(env->engine, path, NULL), 0);
    for (unsigned i = 0; i < 2; i++) {
        static const uint64_t later_ns = 2 * (uint64_t)WI_SEC_NS;
        struct wi_trace_event event = { .op = WEIR_OP_READ };

        event.file = files[i];
        for (event.offset = 0; event.offset < 3; event.offset++) {
            event.submit_ns = 1 + i * later_ns;
            event.start_ns = event.end_ns = event.submit_ns + 1;
            wi_trace_add(env->engine, &event);
        }
    }
    check_code(weir_trace_stop(env->engine, NULL, NULL), 0);
    for (unsigned i = 0; i < 2; i++)
        check_code(weir_file_close(files[i]), 0);
    return load(path, ret);
}

/* What was read is part of the whole, in order, and nothing else; a name may be lost. */
static void check_part(const struct all *part, const struct all *whole, bool prefix)
{
    size_t at = 0;

    for (size_t i = 0; i < part->count; i++) {
        struct weir_trace_record want;

        for (;; at++) {
            check(at < whole->count);
            want = whole->records[at];
            if (!part->records[i].path) {
                want.path = NULL;
                want.open_flags = 0;
            }
            if (memcmp(&part->records[i], &want, sizeof(want)) == 0)
                break;
        }
        if (prefix)
            check(at == i && part->records[i].path != NULL);
        at++;
    }
}

/* A file that is cut anywhere gives its whole blocks, and says that the rest is missing. */
static void damage__truncated_anywhere(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    size_t len = make_small(env, path, &bytes);
    struct all whole = read_all(wi_os_posix(), path);
    size_t most = 0;

    check(whole.count == 6 && whole.info.complete == 1);
    for (size_t cut = 0; cut < len; cut++) {
        struct all part;

        check_code(truncate(path, (off_t)(len - 1 - cut)), 0);
        part = read_all(wi_os_posix(), path);
        check(part.truncated == 1 || (len - 1 - cut < 8 && part.corrupt == 1));
        check(part.info.complete == 0 && part.other == 0);
        check_part(&part, &whole, true);
        most = part.count > most ? part.count : most;
        free(part.records);
    }
    check(most == 6);
    store(path, bytes, len);
    check_code(truncate(path, (off_t)len + 1), 0);
    {
        struct all part = read_all(wi_os_posix(), path);

        check(part.count == 6 && part.corrupt == 1 && part.info.complete == 0);
        free(part.records);
    }
    free(whole.records);
    free(bytes);
}

/* No flipped bit goes unnoticed, or changes a record. */
static void damage__any_bit_flipped(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    size_t len = make_small(env, path, &bytes);
    struct all whole = read_all(wi_os_posix(), path);
    size_t went_on = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    check(fd >= 0);
    for (size_t bit = 0; bit < len * 8; bit++) {
        unsigned char flipped = bytes[bit / 8] ^ (unsigned char)(1u << bit % 8);
        struct all part;

        check(pwrite(fd, &flipped, 1, (off_t)(bit / 8)) == 1);
        part = read_all(wi_os_posix(), path);
        check(part.corrupt > 0 && part.info.complete == 0);
        check_part(&part, &whole, false);
        went_on += part.count == 3 && part.info.lost == 3;
        free(part.records);
        check(pwrite(fd, &bytes[bit / 8], 1, (off_t)(bit / 8)) == 1);
    }
    /* In each of the two blocks of records, a flip costs that block and no other. */
    check_code((int64_t)went_on, 2 * 3 * 64 * 8);
    (void)close(fd);
    free(whole.records);
    free(bytes);
}

/* With the checksums set right again: what only a liar would write. */
static void damage__lies_with_right_checksums(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    size_t len = make_small(env, path, &bytes);
    struct test_rng rng = { .state = test_seed() };

    for (unsigned round = 0; round < 4000; round++) {
        unsigned char *copy = malloc(len);
        struct all all;

        check(copy != NULL);
        memcpy(copy, bytes, len);
        for (uint64_t n = 1 + rng_below(&rng, 3); n > 0; n--) {
            static const unsigned char values[] = { 0, 1, 0x7f, 0x80, 0xff };
            size_t at = 128 + rng_below(&rng, len - 128);

            copy[at] = rng_below(&rng, 2) ? values[rng_below(&rng, COUNT(values))]
                                          : (unsigned char)rng_next(&rng);
        }
        for (size_t at = 128; at + 32 <= len;) {
            uint32_t payload = wi_get_le32(bytes + at + BLOCK_LEN); /* as it was */
            uint32_t now = wi_get_le32(copy + at + BLOCK_LEN);

            if (now <= len - at - 32)
                wi_put_le32(copy + at + BLOCK_PAYLOAD_CRC, wi_crc32c(0, copy + at + 32, now));
            wi_put_le32(copy + at + BLOCK_CRC,
                        wi_trace_block_crc(copy + HEADER_ID, at, copy + at));
            at += 32 + payload;
        }
        store(path, copy, len);
        all =
            read_all(wi_os_posix(), path); /* ends, with few records, and no sanitizer speaks */
        check(all.count <= len / RECORD_BYTES);
        free(all.records);
        free(copy);
    }
    free(bytes);
}

static void patch_header(const char *path, size_t at, uint32_t value)
{
    unsigned char *bytes;
    size_t len = load(path, &bytes);

    wi_put_le32(bytes + at, value);
    wi_put_le32(bytes + HEADER_CRC, wi_crc32c(0, bytes, HEADER_CRC));
    store(path, bytes, len);
    free(bytes);
}

/* What a newer release may write is refused, or skipped, as the format says. */
static void version__newer(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    size_t len = make_small(env, path, &bytes);
    struct all all;

    patch_header(path, HEADER_MAJOR, 2);
    all = read_all(wi_os_posix(), path);
    check_code(all.other, -WEIR_EVERSION);
    patch_header(path, HEADER_MAJOR, 1 | 7u << 16); /* a newer minor version */
    all = read_all(wi_os_posix(), path);
    check(all.count == 6 && all.other == 0);
    free(all.records);
    patch_header(path, HEADER_INCOMPAT, 4);
    all = read_all(wi_os_posix(), path);
    check_code(all.other, -WEIR_EVERSION);
    patch_header(path, HEADER_INCOMPAT, 0);
    patch_header(path, HEADER_COMPAT, 4);
    all = read_all(wi_os_posix(), path);
    check(all.count == 6 && all.other == 0);
    free(all.records);

    for (unsigned known = 0; known < 2; known++) { /* the first block is the first names */
        bytes[128 + BLOCK_KIND] = known ? 0x80 : 0x04;
        wi_put_le32(bytes + 128 + BLOCK_CRC,
                    wi_trace_block_crc(bytes + HEADER_ID, 128, bytes + 128));
        store(path, bytes, len);
        all = read_all(wi_os_posix(), path);
        check(known ? all.count == 6 && all.info.complete && !all.records[0].path
                    : all.count == 0 && all.other == -WEIR_EVERSION);
        free(all.records);
    }
    free(bytes);
}

/* An end that counts other records than there are: some went missing between the blocks. */
static void damage__counts_disagree(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    size_t len = make_small(env, path, &bytes);
    unsigned char *block = bytes + len - BLOCK_BYTES - END_BYTES;
    struct all all;

    wi_put_le64(block + BLOCK_BYTES + END_RECORDS, 7);
    wi_put_le32(block + BLOCK_PAYLOAD_CRC, wi_crc32c(0, block + BLOCK_BYTES, END_BYTES));
    wi_put_le32(block + BLOCK_CRC,
                wi_trace_block_crc(bytes + HEADER_ID, (uint64_t)(block - bytes), block));
    store(path, bytes, len);
    all = read_all(wi_os_posix(), path);
    check(all.count == 6 && all.corrupt == 1 && all.info.complete == 0);
    free(all.records);
    free(bytes);
}

/* A block that belongs to another trace is no block of this one. */
static void damage__a_strange_block(struct env *env)
{
    char first[300];
    char second[300];
    unsigned char *one;
    unsigned char *two;
    size_t len;
    struct all all;

    (void)snprintf(first, sizeof(first), "%s", test_new_path("small"));
    (void)snprintf(second, sizeof(second), "%s", test_new_path("small"));
    len = make_small(env, first, &one);
    check_code((int64_t)make_small(env, second, &two), (int64_t)len);
    memcpy(one + 128, two + 128, len - 128);
    store(first, one, len);
    all = read_all(wi_os_posix(), first);
    check(all.count == 0 && all.corrupt == 1);
    free(all.records);
    free(one);
    free(two);
}

/* An error of reading is neither damage nor the end; the next call begins where it was. */
static void read__errors_are_told(struct env *env)
{
    const char *path = test_path("small");
    unsigned char *bytes;
    struct wi_fault_plan *plan = NULL;
    bool acted = true;

    (void)make_small(env, path, &bytes);
    free(bytes);
    for (uint64_t n = 1; acted; n++) {
        struct weir_trace_reader *reader = NULL;
        struct weir_trace_info info = { .size = sizeof(info) };
        struct weir_trace_record record;
        struct wi_fault_rule rule = {
            .kind = WI_FAULT_READ, .first = n, .count = 3, .error = -EIO
        }; /* it is tried three times */
        unsigned errors = 0;
        unsigned count = 0;
        int rc;

        check_code(wi_fault_create(wi_os_posix(), &plan), 0);
        check_code(wi_fault_add(plan, &rule), 0);
        rc = wi_trace_reader_open(wi_fault_os(plan), path, &reader, NULL);
        if (rc < 0) {
            check_code(rc, -EIO);
        } else {
            while ((rc = weir_trace_reader_next(reader, &record, NULL)) != 0) {
                check(rc == 1 || rc == -EIO);
                count += rc == 1;
                errors += rc < 0;
            }
            check_code(count, 6);
            check_code(weir_trace_reader_info(reader, &info), 0);
            check(info.complete == 1 && errors <= 1);
            weir_trace_reader_close(reader);
        }
        acted = wi_fault_acted(plan) > 0;
        wi_fault_destroy(plan);
        check(n < 50);
    }
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(trace__each_operation_once, CASE_BYTES),
        CASE(trace__ranges_and_opens, CASE_BYTES),
        CASE(record__fields, CASE_NO_QUEUE),
        CASE(format__header_as_documented, CASE_ONCE | CASE_NO_QUEUE),
        CASE(names__reused_handle_is_another_file, CASE_ONCE | CASE_NO_QUEUE),
        CASE(names__many_and_long, CASE_ONCE | CASE_NO_QUEUE),
        CASE(start__what_it_refuses, CASE_ONCE | CASE_NO_QUEUE),
        CASE(close__ends_the_trace, CASE_NO_QUEUE),
        CASE(memory__is_given_back, CASE_ONCE | CASE_NO_QUEUE),
        CASE(full__drops_and_counts, CASE_ONCE | CASE_NO_QUEUE),
        CASE(full__or_a_second_old, CASE_ONCE | CASE_NO_QUEUE),
        CASE(write__goes_on, CASE_ONCE | CASE_NO_QUEUE),
        CASE(write__nth_call_fails, CASE_ONCE | CASE_NO_QUEUE),
        CASE(threads__add_while_traces_come_and_go, CASE_ONCE | CASE_NO_QUEUE),
        CASE(stop__on_the_pools_only_thread, CASE_ONCE | CASE_NO_QUEUE),
        CASE(stop__waits_for_a_write, CASE_ONCE | CASE_NO_QUEUE),
        CASE(damage__truncated_anywhere, CASE_ONCE | CASE_NO_QUEUE),
        CASE(damage__any_bit_flipped, CASE_ONCE | CASE_NO_QUEUE),
        CASE(damage__lies_with_right_checksums, CASE_ONCE | CASE_NO_QUEUE),
        CASE(damage__counts_disagree, CASE_ONCE | CASE_NO_QUEUE),
        CASE(damage__a_strange_block, CASE_ONCE | CASE_NO_QUEUE),
        CASE(version__newer, CASE_ONCE | CASE_NO_QUEUE),
        CASE(read__errors_are_told, CASE_ONCE | CASE_NO_QUEUE),
    };

    return run_cases("engine_trace", cases, COUNT(cases), argc, argv);
}
