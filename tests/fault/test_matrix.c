/* SPDX-License-Identifier: MIT */
/*
 * test_matrix.c - every operation meets every failure, on every backend, both ways
 *
 * The table below is the contract (src/engine/retry.c keeps it). For each operation a fault
 * is injected once, and then for ever; as a job and, where there is one, as a blocking call.
 *
 *   ok        as if nothing had happened: all bytes moved, result whole
 *   a code    what is reported, with an error record that names the file and the operation
 *   poison    reported, and the file is failed for good (a sync's fate)
 *   tries     how often the device is asked in all when the fault never goes away
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/faulty.h"

#define SEED  23u
#define LEN   4096u
#define SHORT 1000u
#define OK    0

enum group {
    READS,
    WRITES,
    SYNCS,
    OTHERS,
    GROUPS
};

struct fate {
    int32_t once; /* OK or a code */
    int32_t for_ever;
    uint32_t tries_min; /* when for ever */
    uint32_t tries_max;
};

/* ECANCELED that nobody asked for is reported as EIO: -ECANCELED promises that the caller
 * wanted it. A fault that is short for ever still ends: each try moves something. */
/* clang-format off */
static const struct {
    const char *name;
    int32_t error;
    uint32_t shorten_to;
    struct fate fates[GROUPS];
} faults[] = {
    /*  fault         error        short    group      once      for ever    tries  */
    { "eintr",       -EINTR,      0,     { [READS]  = { OK,        -EINTR,     11, 11 },
                                           [WRITES] = { OK,        -EINTR,     11, 11 },
                                           [SYNCS]  = { -EINTR,    -EINTR,      1,  1 },
                                           [OTHERS] = { OK,        -EINTR,     11, 11 } } },
    { "eagain",      -EAGAIN,     0,     { [READS]  = { OK,        -EAGAIN,    11, 12 },
                                           [WRITES] = { OK,        -EAGAIN,    11, 12 },
                                           [SYNCS]  = { -EAGAIN,   -EAGAIN,     1,  1 },
                                           [OTHERS] = { -EAGAIN,   -EAGAIN,     1,  1 } } },
    { "short",       0,           SHORT, { [READS]  = { OK,        OK,          5,  6 },
                                           [WRITES] = { OK,        OK,          5,  6 },
                                           [SYNCS]  = { OK,        OK,          1,  1 },
                                           [OTHERS] = { OK,        OK,          1,  1 } } },
    { "eio",         -EIO,        0,     { [READS]  = { OK,        -EIO,        3,  3 },
                                           [WRITES] = { -EIO,      -EIO,        1,  1 },
                                           [SYNCS]  = { -EIO,      -EIO,        1,  1 },
                                           [OTHERS] = { -EIO,      -EIO,        1,  1 } } },
    { "enospc",      -ENOSPC,     0,     { [READS]  = { -ENOSPC,   -ENOSPC,     1,  1 },
                                           [WRITES] = { -ENOSPC,   -ENOSPC,     1,  1 },
                                           [SYNCS]  = { -ENOSPC,   -ENOSPC,     1,  1 },
                                           [OTHERS] = { -ENOSPC,   -ENOSPC,     1,  1 } } },
    { "enomem",      -ENOMEM,     0,     { [READS]  = { OK,        -ENOMEM,    11, 11 },
                                           [WRITES] = { OK,        -ENOMEM,    11, 11 },
                                           [SYNCS]  = { -ENOMEM,   -ENOMEM,     1,  1 },
                                           [OTHERS] = { -ENOMEM,   -ENOMEM,     1,  1 } } },
    { "ecanceled",   -ECANCELED,  0,     { [READS]  = { OK,        -EIO,        2,  2 },
                                           [WRITES] = { OK,        -EIO,        2,  2 },
                                           [SYNCS]  = { -EIO,      -EIO,        1,  1 },
                                           [OTHERS] = { OK,        -EIO,        2,  2 } } },
};

static const struct {
    uint32_t op;
    enum group group;
    enum wi_fault_kind kind;
    bool blocking; /* there is a blocking call for it */
} ops[] = {
    { WEIR_OP_READ,      READS,  WI_FAULT_READ,     true },
    { WEIR_OP_READV,     READS,  WI_FAULT_READ,     true },
    { WEIR_OP_WRITE,     WRITES, WI_FAULT_WRITE,    true },
    { WEIR_OP_WRITEV,    WRITES, WI_FAULT_WRITE,    true },
    { WEIR_OP_FSYNC,     SYNCS,  WI_FAULT_SYNC,     true },
    { WEIR_OP_FDATASYNC, SYNCS,  WI_FAULT_SYNC,     true },
    { WEIR_OP_OPEN,      OTHERS, WI_FAULT_OPEN,     true },
    { WEIR_OP_CLOSE,     OTHERS, WI_FAULT_CLOSE,    true },
    { WEIR_OP_STAT,      OTHERS, WI_FAULT_STAT,     true },
    { WEIR_OP_TRUNCATE,  OTHERS, WI_FAULT_TRUNCATE, true },
    { WEIR_OP_ALLOCATE,  OTHERS, WI_FAULT_ALLOCATE, true },
    { WEIR_OP_MKDIR,     OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_UNLINK,    OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_RMDIR,     OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_RENAME,    OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_LINK,      OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_SYMLINK,   OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_READLINK,  OTHERS, WI_FAULT_NAMES,    false },
    { WEIR_OP_LIST,      OTHERS, WI_FAULT_NAMES,    false },
};
/* clang-format on */

/* One field of the matrix, being tried. */
struct trial {
    struct env *env;
    struct faulty f;
    struct weir_file *file; /* the one that is worked on */
    struct weir_file *dir;
    struct weir_file *opened;
    char path[400];
    uint8_t buf[LEN];
    struct iovec iov[3];
    _Alignas(8) uint8_t space[4096];
    struct probe probe;
    struct weir_error error;
    int64_t result;
    uint64_t transferred;
    int32_t close_code; /* what closing the file reports in the end */
    bool closed;
};

static void trial_open(struct trial *trial, struct env *env)
{
    char name[500];

    memset(trial, 0, sizeof(*trial));
    trial->env = env;
    faulty_open(&trial->f, env->backend, 0, 0, NULL);
    (void)snprintf(trial->path, sizeof(trial->path), "%s", test_new_path("trial"));
    check_code(mkdir(trial->path, 0755), 0);
    (void)snprintf(name, sizeof(name), "%s/file", trial->path);
    pattern_make_file(name, 2 * LEN, SEED);
    (void)snprintf(name, sizeof(name), "%s/empty", trial->path);
    check_code(mkdir(name, 0755), 0);
    (void)snprintf(name, sizeof(name), "%s/link", trial->path);
    check_code(symlink("file", name), 0);
    check_code(weir_file_open(trial->f.engine, NULL, trial->path,
                              WEIR_OPEN_READ | WEIR_OPEN_DIRECTORY, 0, &trial->dir, NULL),
               0);
    check_code(weir_file_open(trial->f.engine, trial->dir, "file",
                              WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &trial->file, NULL),
               0);
}

static void trial_close(struct trial *trial)
{
    wi_fault_clear(trial->f.plan);
    if (trial->opened != NULL)
        check_code(weir_file_close(trial->opened), 0);
    if (!trial->closed)
        check_code(weir_file_close(trial->file), trial->close_code);
    check_code(weir_file_close(trial->dir), 0);
    faulty_close(&trial->f);
    test_remove_tree(trial->path);
}

/* The buffers for a transfer of LEN bytes; writes get a pattern of their own. */
static void trial_fill(struct trial *trial, enum group group)
{
    if (group == WRITES)
        pattern_fill(trial->buf, LEN, SEED + 1, 0);
    else
        memset(trial->buf, 0, LEN);
    trial->iov[0] = (struct iovec){ trial->buf, 10 };
    trial->iov[1] = (struct iovec){ trial->buf + 10, 2000 };
    trial->iov[2] = (struct iovec){ trial->buf + 2010, LEN - 2010 };
}

static void prepare(struct trial *trial, uint32_t op)
{
    struct weir_job *job = &trial->probe.job;

    weir_job_prepare(job, op, trial->dir, NULL, NULL);
    switch ((enum weir_op)op) {
    case WEIR_OP_READ:
    case WEIR_OP_WRITE:
        job->file = trial->file;
        job->buf = trial->buf;
        job->len = LEN;
        break;
    case WEIR_OP_READV:
    case WEIR_OP_WRITEV:
        job->file = trial->file;
        job->buf = trial->iov;
        job->len = 3;
        break;
    case WEIR_OP_OPEN:
        weir_job_open(job, trial->dir, "file", WEIR_OPEN_READ, 0, &trial->opened, NULL, NULL);
        break;
    case WEIR_OP_STAT:
        job->file = trial->file;
        job->buf = trial->space;
        break;
    case WEIR_OP_TRUNCATE:
        job->file = trial->file;
        job->offset = 2 * LEN;
        break;
    case WEIR_OP_ALLOCATE:
        job->file = trial->file;
        job->len = LEN;
        break;
    case WEIR_OP_MKDIR:
        job->path = "new";
        job->mode = 0755;
        break;
    case WEIR_OP_UNLINK:
    case WEIR_OP_READLINK:
        job->path = "link";
        job->buf = trial->space;
        job->len = sizeof(trial->space);
        break;
    case WEIR_OP_RMDIR:
        job->path = "empty";
        break;
    case WEIR_OP_RENAME:
        job->path = "file";
        job->path2 = "renamed";
        break;
    case WEIR_OP_LINK:
        job->path = "file";
        job->path2 = "hard";
        break;
    case WEIR_OP_SYMLINK:
        job->path = "target";
        job->path2 = "new";
        break;
    case WEIR_OP_LIST:
        job->buf = trial->space;
        job->len = sizeof(trial->space);
        break;
    case WEIR_OP_FSYNC:
    case WEIR_OP_FDATASYNC:
    case WEIR_OP_CLOSE:
        job->file = trial->file;
        break;
    case WEIR_OP_NONE:
    case WEIR_OP_CALL:
    case WEIR_OP_NOP:
    case WEIR_OP_CANCEL:
    case WEIR_OP_VIEW: /* made of reads: tests/sched */
    case WEIR_OP_READ_MANY:
    case WEIR_OP_ADVISE:
    case WEIR_OPS:
        break;
    }
}

static void do_job(struct trial *trial, uint32_t op)
{
    prepare(trial, op);
    trial->result = probe_run(trial->f.queue, &trial->probe);
    trial->transferred = trial->probe.transferred;
    trial->error = trial->probe.error;
}

static void do_blocking(struct trial *trial, uint32_t op)
{
    struct weir_file *file = trial->file;

    memset(&trial->error, 0, sizeof(trial->error));
    switch (op) {
    case WEIR_OP_READ:
        trial->result = weir_file_read(file, trial->buf, LEN, 0);
        trial->transferred = trial->result > 0 ? (uint64_t)trial->result : 0;
        trial->error.code =
            (int32_t)(trial->result < 0 ? trial->result : 0); /* has no record */
        break;
    case WEIR_OP_WRITE:
        trial->result = weir_file_write(file, trial->buf, LEN, 0);
        trial->transferred = trial->result > 0 ? (uint64_t)trial->result : 0;
        trial->error.code = (int32_t)(trial->result < 0 ? trial->result : 0);
        break;
    case WEIR_OP_READV:
    case WEIR_OP_WRITEV:
        trial->result = weir_file_transfer(file, op == WEIR_OP_WRITEV, trial->iov, 3, 0,
                                           &trial->transferred, &trial->error);
        break;
    case WEIR_OP_FSYNC:
        trial->result = weir_file_sync(file, WEIR_SYNC_ALL, &trial->error);
        break;
    case WEIR_OP_FDATASYNC:
        trial->result = weir_file_sync(file, WEIR_SYNC_DATA, &trial->error);
        break;
    case WEIR_OP_OPEN:
        trial->result = weir_file_open(trial->f.engine, trial->dir, "file", WEIR_OPEN_READ, 0,
                                       &trial->opened, &trial->error);
        break;
    case WEIR_OP_CLOSE:
        trial->result = weir_file_close(file);
        trial->error.code = (int32_t)trial->result; /* has no record */
        break;
    case WEIR_OP_STAT:
        trial->result =
            weir_file_stat(file, (struct weir_stat *)(void *)trial->space, &trial->error);
        break;
    case WEIR_OP_TRUNCATE:
        trial->result = weir_file_truncate(file, 2 * LEN, &trial->error);
        break;
    default:
        trial->result = weir_file_allocate(file, 0, LEN, 0, &trial->error);
        break;
    }
}

/* What must hold of the file whatever happened. */
static void check_aftermath(struct trial *trial, uint32_t op, enum group group, int32_t want)
{
    struct weir_file_info info = { .size = sizeof(info) };
    uint8_t byte = 0;

    if (op == WEIR_OP_CLOSE) {
        trial->closed = true; /* the handle is gone, whatever was reported */
        check_code(weir_file_read(trial->file, &byte, 1, 0), -EBADF);
        return;
    }
    check_code(weir_file_info(trial->file, &info), 0);
    check_code(weir_file_read(trial->file, &byte, 1, LEN), 1);
    check(byte == pattern_byte(SEED, LEN));
    if (group == SYNCS && want != OK) {
        trial->close_code = want;
        check_code(info.sync_error, want);
        check_code(weir_file_sync(trial->file, WEIR_SYNC_DATA, NULL), want);
        check_code(weir_file_write(trial->file, &byte, 1, LEN), want);
    } else {
        check_code(info.sync_error, 0);
        check_code(weir_file_write(trial->file, &byte, 1, LEN), 1);
        check_code(weir_file_sync(trial->file, WEIR_SYNC_DATA, NULL), 0);
    }
}

/* Fields that did not end as they should; the matrix goes on, to show them all. */
static unsigned differences;

__attribute__((format(printf, 1, 2))) static void differ(const char *format, ...)
{
    va_list arguments;

    differences++;
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    (void)fputc('\n', stderr);
}

static void try_one(struct env *env, size_t op_index, size_t fault_index, bool for_ever,
                    bool blocking)
{
    uint32_t op = ops[op_index].op;
    enum group group = ops[op_index].group;
    const struct fate *fate = &faults[fault_index].fates[group];
    int32_t want = for_ever ? fate->for_ever : fate->once;
    struct trial trial;
    uint64_t tries;
    char where[160];

    /* A second close could close somebody else's descriptor: a close is tried once. */
    if (op == WEIR_OP_CLOSE && faults[fault_index].error < 0)
        want = faults[fault_index].error == -ECANCELED ? -EIO : faults[fault_index].error;

    (void)snprintf(where, sizeof(where), "%s of %s, %s, %s", faults[fault_index].name,
                   weir_op_name(op), for_ever ? "for ever" : "once",
                   blocking ? "blocking" : "as a job");
    trial_open(&trial, env);
    trial_fill(&trial, group);
    faulty_rule(&trial.f,
                (struct wi_fault_rule){ .kind = ops[op_index].kind,
                                        .first = 1,
                                        .count = for_ever ? 0 : 1,
                                        .error = faults[fault_index].error,
                                        .shorten_to = faults[fault_index].shorten_to });
    tries = wi_fault_seen(trial.f.plan, ops[op_index].kind);
    if (blocking)
        do_blocking(&trial, op);
    else
        do_job(&trial, op);
    tries = wi_fault_seen(trial.f.plan, ops[op_index].kind) - tries;
    wi_fault_clear(trial.f.plan);

    if (want != OK ? trial.result != want : trial.result < 0)
        differ("%s: result is %s, not %s", where, weir_code_name(trial.result),
               want == OK ? "success" : weir_code_name(want));
    if (want == OK && (group == READS || group == WRITES) &&
        (trial.result != LEN || trial.transferred != LEN))
        differ("%s: moved %d and %d of %d bytes", where, (int)trial.result,
               (int)trial.transferred, (int)LEN);
    if (want == OK && group == READS && (env->backend != WEIR_BACKEND_NULL || blocking))
        check_pattern(trial.buf, LEN, SEED, 0);
    if (want == OK && group == WRITES && (env->backend != WEIR_BACKEND_NULL || blocking)) {
        memset(trial.buf, 0, LEN);
        check_code(weir_file_read(trial.file, trial.buf, LEN, 0), LEN);
        check_pattern(trial.buf, LEN, SEED + 1, 0);
    }
    if (want != OK) {
        if (trial.error.code != want)
            differ("%s: the record says %s", where, weir_code_name(trial.error.code));
        if (!blocking && trial.error.op != op)
            differ("%s: the record is of %s", where, weir_op_name(trial.error.op));
        if (!blocking && trial.error.path[0] == '\0')
            differ("%s: the record has no name", where);
    }
    if (for_ever && op != WEIR_OP_CLOSE && (tries < fate->tries_min || tries > fate->tries_max))
        differ("%s: tried %d times, not %u to %u", where, (int)tries, fate->tries_min,
               fate->tries_max);
    if (op == WEIR_OP_CLOSE && tries != 1)
        differ("%s: closed %d times", where, (int)tries);
    check_aftermath(&trial, op, group, want);
    trial_close(&trial);
}

/* The whole matrix. */
static void matrix__ends_as_it_should(struct env *env)
{
    differences = 0;
    for (size_t op = 0; op < COUNT(ops); op++) {
        for (size_t fault = 0; fault < COUNT(faults); fault++) {
            for (int for_ever = 0; for_ever < 2; for_ever++) {
                try_one(env, op, fault, for_ever != 0, false);
                if (ops[op].blocking)
                    try_one(env, op, fault, for_ever != 0, true);
            }
        }
    }
    check_code(differences, 0);
}

/* Whatever moved renews the patience: many interruptions with progress between them are not
 * the same as a device that is stuck. */
static void progress__renews_patience(struct env *env)
{
    for (int write = 0; write < 2; write++) {
        for (int blocking = 0; blocking < 2; blocking++) {
            enum wi_fault_kind kind = write ? WI_FAULT_WRITE : WI_FAULT_READ;
            struct trial trial;

            trial_open(&trial, env);
            trial_fill(&trial, write ? WRITES : READS);
            for (int round = 0; round < 4; round++) {
                faulty_rule(&trial.f,
                            (struct wi_fault_rule){
                                .kind = kind, .first = 1, .count = 10, .error = -EINTR });
                faulty_rule(&trial.f,
                            (struct wi_fault_rule){
                                .kind = kind, .first = 1, .count = 1, .shorten_to = 700 });
            }
            if (blocking)
                do_blocking(&trial, write ? WEIR_OP_WRITEV : WEIR_OP_READV);
            else
                do_job(&trial, write ? WEIR_OP_WRITEV : WEIR_OP_READV);
            check_code(trial.result, LEN);
            check_code(trial.transferred, LEN);
            check_code(wi_fault_seen(trial.f.plan, kind), 45);
            trial_close(&trial);
        }
    }
}

/* An error after some bytes: `transferred` says how far it came, and those are in place. */
static void partial__says_how_far(struct env *env)
{
    for (int write = 0; write < 2; write++) {
        for (int blocking = 0; blocking < 2; blocking++) {
            enum wi_fault_kind kind = write ? WI_FAULT_WRITE : WI_FAULT_READ;
            int32_t code = write ? -ENOSPC : -EOPNOTSUPP;
            struct trial trial;

            trial_open(&trial, env);
            trial_fill(&trial, write ? WRITES : READS);
            faulty_rule(&trial.f,
                        (struct wi_fault_rule){
                            .kind = kind, .first = 1, .count = 1, .shorten_to = 2500 });
            faulty_rule(&trial.f,
                        (struct wi_fault_rule){ .kind = kind, .first = 1, .error = code });
            if (blocking)
                do_blocking(&trial, write ? WEIR_OP_WRITEV : WEIR_OP_READV);
            else
                do_job(&trial, write ? WEIR_OP_WRITEV : WEIR_OP_READV);
            wi_fault_clear(trial.f.plan);
            check_code(trial.result, code);
            check_code(trial.transferred, 2500);
            check_code(trial.error.code, code);
            if (env->backend != WEIR_BACKEND_NULL || blocking) {
                if (write)
                    check_code(weir_file_read(trial.file, trial.buf, 2500, 0), 2500);
                check_pattern(trial.buf, 2500, write ? SEED + 1 : SEED, 0);
            }
            trial_close(&trial);
        }
    }
}

/* A write that was done though it reports an error is an error: it is not done again. */
static void applied__is_reported_once(struct env *env)
{
    struct trial trial;

    trial_open(&trial, env);
    trial_fill(&trial, WRITES);
    faulty_rule(
        &trial.f,
        (struct wi_fault_rule){
            .kind = WI_FAULT_WRITE, .first = 1, .count = 1, .error = -EIO, .applied = true });
    do_job(&trial, WEIR_OP_WRITE);
    check_code(trial.result, -EIO);
    check_code(wi_fault_seen(trial.f.plan, WI_FAULT_WRITE), 1);
    trial_close(&trial);
}

/* In the thick of it: many jobs, completions in random order, transient faults everywhere.
 * Nothing is lost, nothing is mixed up. */
static void mixture__transient_faults_are_invisible(struct env *env)
{
    enum {
        JOBS = 400
    };
    static const struct wi_fault_rule rules[] = {
        { .kind = WI_FAULT_READ, .first = 5, .count = 40, .error = -EAGAIN },
        { .kind = WI_FAULT_READ, .first = 20, .count = 60, .shorten_to = 100 },
        { .kind = WI_FAULT_READ, .first = 30, .count = 50, .delay_ns = 200000 },
        { .kind = WI_FAULT_READ, .first = 40, .count = 20, .error = -EINTR },
        { .kind = WI_FAULT_READ, .first = 50, .count = 10, .error = -ENOMEM },
        { .kind = WI_FAULT_WRITE, .first = 3, .count = 40, .shorten_to = 333 },
        { .kind = WI_FAULT_WRITE, .first = 9, .count = 30, .error = -EINTR },
        { .kind = WI_FAULT_WRITE, .first = 9, .count = 50, .delay_ns = 100000 },
        { .kind = WI_FAULT_WRITE, .first = 30, .count = 20, .error = -EAGAIN },
    };
    struct test_rng rng = { test_seed() };
    const size_t size = 1 * MIB;
    struct probe *probes = calloc(JOBS, sizeof(*probes));
    uint8_t *buf = malloc((size_t)JOBS * 2048);
    const char *path = test_new_path("thick");
    struct weir_file *file = NULL;
    struct faulty f;

    pattern_make_file(path, size, SEED);
    faulty_open(&f, env->backend, 16, 1024, NULL);
    check_code(
        weir_file_open(f.engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    wi_fault_reorder(f.plan, test_seed());
    for (size_t i = 0; i < COUNT(rules); i++)
        faulty_rule(&f, rules[i]);
    for (size_t i = 0; i < JOBS; i++) {
        size_t len = 1 + rng_below(&rng, 2048);
        uint64_t offset = rng_below(&rng, size - len);

        if (i % 2 == 0) {
            weir_job_read(&probes[i].job, file, buf + i * 2048, len, offset, NULL, NULL);
        } else {
            /* The same bytes again, so that reads can tell whatever the order. */
            pattern_fill(buf + i * 2048, len, SEED, offset);
            weir_job_write(&probes[i].job, file, buf + i * 2048, len, offset, NULL, NULL);
        }
        probe_submit(f.queue, &probes[i]);
    }
    probes_wait(f.queue, probes, JOBS);
    for (size_t i = 0; i < JOBS; i++) {
        check_code(probes[i].result, probes[i].job.len);
        if (env->backend != WEIR_BACKEND_NULL)
            check_pattern(probes[i].job.buf, probes[i].job.len, SEED, probes[i].job.offset);
    }
    check(wi_fault_acted(f.plan) > 200);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
    free(probes);
    free(buf);
}

/* The end of a file is only where a read gives 0: short ones on the way are continued. */
static void end__only_zero_is_the_end(struct env *env)
{
    struct trial trial;

    if (env->backend == WEIR_BACKEND_NULL)
        return; /* has no ends */
    for (int blocking = 0; blocking < 2; blocking++) {
        uint8_t *buf = malloc(3 * LEN);
        uint64_t moved = 0;
        struct iovec iov = { buf, 3 * LEN };

        trial_open(&trial, env);
        faulty_rule(&trial.f, (struct wi_fault_rule){
                                  .kind = WI_FAULT_READ, .first = 1, .shorten_to = 999 });
        if (blocking) {
            trial.result = weir_file_transfer(trial.file, 0, &iov, 1, 0, &moved, NULL);
        } else {
            weir_job_read(&trial.probe.job, trial.file, buf, 3 * LEN, 0, NULL, NULL);
            trial.result = probe_run(trial.f.queue, &trial.probe);
            moved = trial.probe.transferred;
        }
        check_code(trial.result, 2 * LEN);
        check_code(moved, 2 * LEN);
        check_pattern(buf, 2 * LEN, SEED, 0);
        trial_close(&trial);
        free(buf);
    }
}

/* A device that breaks bits is not noticed here (checksums are the formats' business), but
 * the injector must do it, or tests of those would prove nothing. */
static void corrupt__proves_the_injector(struct env *env)
{
    struct trial trial;

    if (env->backend == WEIR_BACKEND_NULL)
        return; /* moves no bytes */
    trial_open(&trial, env);
    trial_fill(&trial, READS);
    faulty_rule(&trial.f, (struct wi_fault_rule){
                              .kind = WI_FAULT_READ, .first = 1, .count = 1, .corrupt = true });
    do_job(&trial, WEIR_OP_READ);
    check_code(trial.result, LEN);
    check(pattern_find_wrong(trial.buf, LEN, SEED, 0) >= 0);
    trial_close(&trial);
}

static const struct test_case cases[] = {
    CASE(matrix__ends_as_it_should, 0),
    CASE(progress__renews_patience, 0),
    CASE(partial__says_how_far, 0),
    CASE(applied__is_reported_once, 0),
    CASE(mixture__transient_faults_are_invisible, 0),
    CASE(end__only_zero_is_the_end, 0),
    CASE(corrupt__proves_the_injector, 0),
};

int main(int argc, char **argv)
{
    return run_cases("matrix", cases, COUNT(cases), argc, argv);
}
