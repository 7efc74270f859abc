/* SPDX-License-Identifier: MIT */
/*
 * trace_replay.c - weir trace replay: do the reads of a trace again
 *
 * Two passes    the first counts what there is to do and opens every file, so that what is
 *               missing is told before anything is read; the second does it. Both take the
 *               records in the order of submits.
 * Pace          an operation is due when it was, counted from the first one and divided by the
 *               speed. If `depth` are in flight it waits, and all later ones are late with it:
 *               how late at worst is told, since the figures mean less then. With --speed max
 *               nothing is waited for but the depth.
 * One queue     whatever number of threads and queues the trace has. A job's class is kept.
 * Safety        a trace may come from anyone. Only regular files and block devices are opened,
 *               for reading; what would be written goes to a scratch file that is made here, and
 *               loses its name at once, so that nothing is left of it however we end.
 * Memory        a job in flight has a buffer of at most 1 MiB. A longer read is vectored, into
 *               the same buffer again and again, up to 1 GiB; nobody looks at the bytes.
 * Cache         there is none here: what a cache answered then is read from the file now, and what
 *               it read of its own is left out.
 * Files         all stay open; of their descriptors, a quarter of what the process may have.
 * Direct        a file that was open with O_DIRECT is opened so, but for cached ones, whose
 *               demand reads need no alignment.
 */
#include <errno.h>
#include <inttypes.h>
#include <search.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bench_measure.h"
#include "trace_internal.h"

#define CHUNK    ((size_t)1 << 20)
#define PIECES   1024u /* so a read is at most 1 GiB */
#define TROUBLES 10u   /* operations that failed, told one by one */
#define TIME_MAX \
    (UINT64_C(1) << 61) /* ns, 73 years: what a trace says beyond it is cut to it */

enum kind {
    KIND_READ,
    KIND_WRITE,
    KIND_SYNC,
    KIND_OTHER,
    KIND_INTERNAL,  /* the engine's own: it will do them again itself, if it is asked to */
    KIND_UNSTARTED, /* cancelled or expired before the device */
    KINDS
};

struct replay_file {
    char *path; /* in the trace */
    bool direct;
    struct weir_file *file; /* NULL: it could not be opened */
    uint64_t reads;
};

struct slot {
    struct weir_job job;
    struct weir_error error;
    struct replay *replay;
    struct slot *next_free;
    unsigned char *buf;
    size_t buf_bytes;
    struct iovec *pieces;
    uint64_t start_ns;
    int64_t result_then;
};

struct replay {
    const struct trace_arguments *arguments;
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct weir_file *scratch;
    unsigned char *pattern; /* what is written */
    void *files;            /* a tree by path and direct */
    struct replay_file **list;
    size_t list_count;
    size_t list_room;
    struct slot *slots;
    struct slot *free_slots;
    uint32_t live;
    bool broken; /* the replay itself: no memory, no queue */

    uint64_t kinds[KINDS];
    uint64_t wanted_bytes; /* of reads */
    uint64_t missing_files;
    uint64_t missing; /* operations on them */
    int64_t first_submit_ns;
    int64_t last_end_ns;

    uint64_t done;
    uint64_t bytes;
    uint64_t failed; /* now, but not then */
    uint64_t differ; /* another result than then */
    uint64_t begin_ns;
    uint64_t end_ns;
    uint64_t late_ns;
    struct bench_histogram then;
    struct bench_histogram now;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

static void watch_signals(void)
{
    static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = (int)SA_RESETHAND; /* the second one ends us at once */
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct sigaction old;

        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
}

static bool no_memory(struct replay *replay)
{
    cli_say(VERB, "no memory");
    replay->broken = true;
    return false;
}

/* ---- what is to be done ------------------------------------------------------------------------ */

static enum kind kind_of(const struct weir_trace_record *record)
{
    if (record->flags & WEIR_TRACE_INTERNAL)
        return KIND_INTERNAL;
    if (record->flags & WEIR_TRACE_UNSTARTED)
        return KIND_UNSTARTED;
    return trace_op_reads(record->op)    ? KIND_READ
           : trace_op_writes(record->op) ? KIND_WRITE
           : trace_op_syncs(record->op)  ? KIND_SYNC
                                         : KIND_OTHER;
}

static bool is_to_do(const struct replay *replay, enum kind kind)
{
    return kind == KIND_READ ||
           (replay->arguments->writes && (kind == KIND_WRITE || kind == KIND_SYNC));
}

/* How many of those were met so far: after the first pass, all. */
static uint64_t to_do(const struct replay *replay)
{
    uint64_t count = 0;

    for (int kind = 0; kind < KINDS; kind++)
        count += is_to_do(replay, (enum kind)kind) ? replay->kinds[kind] : 0;
    return count;
}

static bool is_direct(const struct weir_trace_record *record)
{
    return (record->open_flags & WEIR_OPEN_DIRECT) && !(record->open_flags & WEIR_OPEN_CACHED);
}

/* ---- files --------------------------------------------------------------------------------------- */

static int by_file(const void *a, const void *b)
{
    const struct replay_file *left = a;
    const struct replay_file *right = b;

    if (left->direct != right->direct)
        return left->direct ? 1 : -1;
    return strcmp(left->path, right->path);
}

/* Where a path of the trace leads to now. Given: free() it. */
static char *path_now(const struct trace_arguments *arguments, const char *path)
{
    size_t len = strlen(path);
    char *text = NULL;

    for (size_t i = 0; i < arguments->maps_count; i++) {
        const char *map = arguments->maps[i];

        if (strncmp(map, path, len) == 0 && map[len] == '=')
            return strdup(map + len + 1);
    }
    if (!arguments->root)
        return strdup(path);
    return asprintf(&text, "%s/%s", arguments->root, path) < 0 ? NULL : text;
}

static void open_file(struct replay *replay, struct replay_file *file, const char *path)
{
    struct weir_error error;
    struct stat st;
    char name[1024];
    char text[700];
    int rc;

    cli_name(name, sizeof(name), path);
    /* A FIFO or a terminal would hang, or worse. */
    if (stat(path, &st) != 0)
        cli_say(VERB, "%s: %s; use --file or --root if it is elsewhere now", name,
                weir_code_text(errno));
    else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        cli_say(VERB, "%s: neither a regular file nor a block device: it is not read", name);
    else {
        rc = weir_file_open(replay->engine, NULL, path,
                            WEIR_OPEN_READ | (file->direct ? WEIR_OPEN_DIRECT : 0), 0,
                            &file->file, &error);
        if (rc == -EINVAL && file->direct) {
            cli_say(VERB,
                    "%s: it can't be read past the page cache, as it was: read through it",
                    name);
            rc = weir_file_open(replay->engine, NULL, path, WEIR_OPEN_READ, 0, &file->file,
                                &error);
        }
        if (rc == 0)
            return;
        weir_error_format(&error, text, sizeof(text));
        cli_say(VERB, "%s", text);
    }
    file->file = NULL;
    replay->missing_files++;
}

/* NULL without memory. */
static struct replay_file *add_file(struct replay *replay, const struct replay_file *key)
{
    struct replay_file *file = calloc(1, sizeof(*file));
    char *path = path_now(replay->arguments, key->path);

    if (replay->list_count == replay->list_room) {
        size_t room = replay->list_room ? 2 * replay->list_room : 64;
        struct replay_file **list = realloc(replay->list, room * sizeof(*list));

        if (!list)
            goto fail;
        replay->list = list;
        replay->list_room = room;
    }
    if (!file || !path)
        goto fail;
    file->direct = key->direct;
    file->path = strdup(key->path);
    if (!file->path || !tsearch(file, &replay->files, by_file))
        goto fail;
    replay->list[replay->list_count++] = file;
    open_file(replay, file, path);
    free(path);
    return file;

fail:
    no_memory(replay);
    if (file)
        free(file->path);
    free(file);
    free(path);
    return NULL;
}

static struct replay_file *find_file(const struct replay *replay,
                                     const struct weir_trace_record *record,
                                     struct replay_file *ret_key)
{
    union {
        const char *given;
        char *path;
    } same = { .given = record->path };
    void *found;

    *ret_key = (struct replay_file){ .path = same.path, .direct = is_direct(record) };
    found = tfind(ret_key, &replay->files, by_file);
    return found ? *(struct replay_file **)found : NULL;
}

/* ---- the first pass -------------------------------------------------------------------------------- */

/* From submit to end. */
static uint64_t took_ns(const struct weir_trace_record *record)
{
    uint64_t wait_ns = record->wait_ns < TIME_MAX ? record->wait_ns : TIME_MAX;
    uint64_t device_ns = record->device_ns < TIME_MAX ? record->device_ns : TIME_MAX;

    return wait_ns + device_ns < TIME_MAX ? wait_ns + device_ns : TIME_MAX;
}

/* The next record in the order of submits, with a time that can be reckoned with. */
static bool next_record(struct trace_input *input, struct weir_trace_record *ret_record)
{
    const int64_t most = (int64_t)TIME_MAX;

    if (!trace_input_next_submitted(input, ret_record))
        return false;
    if (ret_record->submit_ns > most)
        ret_record->submit_ns = most;
    else if (ret_record->submit_ns < -most)
        ret_record->submit_ns = -most;
    return true;
}

static void plan_record(struct replay *replay, const struct weir_trace_record *record)
{
    enum kind kind = kind_of(record);
    int64_t end_ns;
    struct replay_file key;
    struct replay_file *file;

    if (!is_to_do(replay, kind)) {
        replay->kinds[kind]++;
        return;
    }
    end_ns = record->submit_ns + (int64_t)took_ns(record);
    if (to_do(replay) == 0)
        replay->first_submit_ns = record->submit_ns;
    if (end_ns > replay->last_end_ns)
        replay->last_end_ns = end_ns;
    replay->kinds[kind]++;
    if (kind != KIND_READ)
        return;
    replay->wanted_bytes += record->len;
    if (!record->path) {
        replay->missing++;
        return;
    }
    file = find_file(replay, record, &key);
    if (!file)
        file = add_file(replay, &key);
    if (!file)
        return;
    file->reads++;
    if (!file->file)
        replay->missing++;
}

static bool plan(struct replay *replay, int *status)
{
    struct weir_trace_record record;
    struct trace_input input;
    bool ok = trace_input_open(&input, replay->arguments->path);

    if (ok) {
        replay->last_end_ns = INT64_MIN;
        while (!replay->broken && !interrupted && next_record(&input, &record))
            plan_record(replay, &record);
        trace_input_tell_dropped(&input);
    }
    *status = input.status;
    trace_input_close(&input);
    return ok && !replay->broken;
}

/* ---- the second pass ---------------------------------------------------------------------------- */

static void on_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct replay *replay = slot->replay;
    char text[700];

    replay->end_ns = bench_now_ns();
    bench_histogram_add(&replay->now, replay->end_ns - slot->start_ns);
    replay->done++;
    replay->bytes += job->transferred;
    if (job->result != slot->result_then)
        replay->differ++;
    if (job->result < 0 && slot->result_then >= 0 && !interrupted &&
        replay->failed++ < TROUBLES) {
        weir_error_format(&slot->error, text, sizeof(text));
        cli_say(VERB, "%s", text);
    }
    slot->next_free = replay->free_slots;
    replay->free_slots = slot;
    replay->live--;
}

/* A buffer for so many bytes, or as many as there can be; in `pieces` if it is folded. */
static bool give_buffer(struct slot *slot, uint64_t len)
{
    size_t bytes = len < CHUNK ? ((size_t)len + 4095) & ~(size_t)4095 : CHUNK;

    if (bytes > slot->buf_bytes) {
        free(slot->buf);
        slot->buf = aligned_alloc(4096, bytes);
        slot->buf_bytes = slot->buf ? bytes : 0;
        if (!slot->buf)
            return false;
    }
    if (len > CHUNK && !slot->pieces)
        slot->pieces = malloc(PIECES * sizeof(*slot->pieces));
    return len <= CHUNK || slot->pieces;
}

/* Fold `len` bytes into pieces of `buf`, which has CHUNK. Returns how many. */
static size_t fold(struct iovec *pieces, unsigned char *buf, uint64_t len)
{
    size_t count = 0;

    for (; len > 0 && count < PIECES; count++) {
        pieces[count].iov_base = buf;
        pieces[count].iov_len = len < CHUNK ? (size_t)len : CHUNK;
        len -= pieces[count].iov_len;
    }
    return count;
}

static bool prepare(struct replay *replay, struct slot *slot, enum kind kind,
                    struct weir_file *file, const struct weir_trace_record *record)
{
    struct weir_job *job = &slot->job;
    unsigned char *buf;

    if (kind == KIND_SYNC) {
        weir_job_sync(job, file, record->op == WEIR_OP_FSYNC ? WEIR_SYNC_ALL : WEIR_SYNC_DATA,
                      on_done, slot);
        return true;
    }
    if (kind == KIND_READ ? !give_buffer(slot, record->len)
                          : record->len > CHUNK && !slot->pieces &&
                                !(slot->pieces = malloc(PIECES * sizeof(*slot->pieces))))
        return false;
    buf = kind == KIND_READ ? slot->buf : replay->pattern;
    if (record->len <= CHUNK && kind == KIND_READ)
        weir_job_read(job, file, buf, (size_t)record->len, record->offset, on_done, slot);
    else if (record->len <= CHUNK)
        weir_job_write(job, file, buf, (size_t)record->len, record->offset, on_done, slot);
    else if (kind == KIND_READ)
        weir_job_readv(job, file, slot->pieces, fold(slot->pieces, buf, record->len),
                       record->offset, on_done, slot);
    else
        weir_job_writev(job, file, slot->pieces, fold(slot->pieces, buf, record->len),
                        record->offset, on_done, slot);
    return true;
}

static void start(struct replay *replay, const struct weir_trace_record *record,
                  struct weir_file *file, uint64_t now_ns)
{
    struct slot *slot = replay->free_slots;
    struct weir_job *job = &slot->job;
    char text[700];
    int rc;

    if (!prepare(replay, slot, kind_of(record), file, record)) {
        no_memory(replay);
        return;
    }
    job->io_class = record->io_class < WEIR_CLASSES ? record->io_class : 0;
    job->error = &slot->error;
    slot->result_then = record->result;
    slot->start_ns = now_ns;
    rc = weir_queue_submit(replay->queue, &job, 1);
    if (rc != 1) {
        /* An offset that no file can have, say: it counts as an operation that failed. */
        replay->done++;
        replay->differ += rc != record->result;
        if (record->result >= 0 && replay->failed++ < TROUBLES) {
            weir_error_format(&slot->error, text, sizeof(text));
            cli_say(VERB, "%s", text);
        }
        return;
    }
    bench_histogram_add(&replay->then, took_ns(record));
    replay->free_slots = slot->next_free;
    replay->live++;
}

/* The next record that is to be done and can be, with its file. */
static bool next_to_do(struct replay *replay, struct trace_input *input,
                       struct weir_trace_record *ret_record, struct weir_file **ret_file)
{
    while (next_record(input, ret_record)) {
        enum kind kind = kind_of(ret_record);
        struct replay_file key;
        struct replay_file *file;

        if (!is_to_do(replay, kind))
            continue;
        if (kind != KIND_READ) {
            *ret_file = replay->scratch;
            return true;
        }
        file = ret_record->path ? find_file(replay, ret_record, &key) : NULL;
        if (!file || !file->file)
            continue;
        *ret_file = file->file;
        return true;
    }
    return false;
}

static uint64_t due_ns(const struct replay *replay, const struct weir_trace_record *record)
{
    int64_t since_ns = record->submit_ns - replay->first_submit_ns;

    double after_ns;

    if (replay->arguments->speed == 0 || since_ns <= 0)
        return 0;
    after_ns = (double)since_ns / replay->arguments->speed;
    return replay->begin_ns + (after_ns < (double)TIME_MAX ? (uint64_t)after_ns : TIME_MAX);
}

static void pause_until(uint64_t until_ns)
{
    struct timespec until = { .tv_sec = (time_t)(until_ns / 1000000000),
                              .tv_nsec = (long)(until_ns % 1000000000) };

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL); /* a signal ends it too */
}

static void run_records(struct replay *replay, struct trace_input *input)
{
    bool paced = replay->arguments->speed > 0;
    struct weir_trace_record record;
    struct weir_file *file = NULL;
    bool have = next_to_do(replay, input, &record, &file);

    replay->begin_ns = replay->end_ns = bench_now_ns();
    while ((have || replay->live > 0) && !interrupted && !replay->broken) {
        uint64_t now_ns = bench_now_ns();
        uint64_t due = have ? due_ns(replay, &record) : 0;
        uint64_t timeout_ns = WEIR_FOREVER;
        int rc;

        while (have && replay->free_slots && due <= now_ns && !replay->broken) {
            if (due > 0 && now_ns - due > replay->late_ns)
                replay->late_ns = now_ns - due;
            start(replay, &record, file, now_ns);
            have = next_to_do(replay, input, &record, &file);
            due = have ? due_ns(replay, &record) : 0;
            if (!paced)
                now_ns = bench_now_ns();
        }
        if (replay->live == 0) {
            if (have && due > now_ns)
                pause_until(due);
            continue;
        }
        if (have && replay->free_slots)
            timeout_ns = due - now_ns;
        /* At full speed a quarter of the depth at a time is best; else, each as it comes. */
        rc = weir_queue_wait(replay->queue, !paced && have ? 0 : 1, timeout_ns);
        if (rc < 0 && rc != -EINTR) {
            cli_say(VERB, "waiting for operations: %s", weir_code_text(rc));
            replay->broken = true;
        }
    }
}

/* Returns whether queue and slots may be freed: the kernel has let go of the buffers. */
static bool run(struct replay *replay)
{
    uint32_t depth = replay->arguments->depth;
    struct weir_queue_options options = { .size = sizeof(options), .depth = depth };
    struct trace_input input;
    int rc;

    replay->slots = aligned_alloc(_Alignof(struct slot), depth * sizeof(*replay->slots));
    if (!replay->slots)
        return no_memory(replay);
    memset(replay->slots, 0, depth * sizeof(*replay->slots));
    for (uint32_t i = 0; i < depth; i++) {
        replay->slots[i].replay = replay;
        replay->slots[i].next_free = replay->free_slots;
        replay->free_slots = &replay->slots[i];
    }
    rc = weir_queue_open(replay->engine, &options, &replay->queue);
    if (rc < 0) {
        cli_say(VERB, "the queue can't be opened: %s", weir_code_text(rc));
        replay->broken = true;
        return true;
    }
    if (trace_input_open(&input, replay->arguments->path)) {
        input.quiet = true;
        run_records(replay, &input);
    } else {
        replay->broken = true;
    }
    trace_input_close(&input);
    rc = weir_queue_close(replay->queue, UINT64_C(30000000000));
    if (rc < 0)
        cli_say(VERB, "the kernel does not let go of %u operations", replay->live);
    return rc == 0;
}

/* ---- the scratch file --------------------------------------------------------------------------- */

static bool make_scratch(struct replay *replay)
{
    const char *path = replay->arguments->scratch;
    struct weir_error error;
    uint64_t random = 1;
    char text[700];

    replay->pattern = aligned_alloc(4096, CHUNK);
    if (!replay->pattern)
        return no_memory(replay);
    for (size_t i = 0; i < CHUNK; i += sizeof(random)) {
        bench_random(&random);
        memcpy(replay->pattern + i, &random, sizeof(random));
    }
    if (weir_file_open(replay->engine, NULL, path,
                       WEIR_OPEN_WRITE | WEIR_OPEN_READ | WEIR_OPEN_CREATE |
                           WEIR_OPEN_EXCLUSIVE,
                       0600, &replay->scratch, &error) < 0) {
        weir_error_format(&error, text, sizeof(text));
        cli_say(VERB, "%s%s", text,
                error.code == -EEXIST ? "; the scratch file must be a new one" : "");
        replay->broken = true;
        return false;
    }
    (void)unlink(path); /* it was made just now, so it is ours */
    return true;
}

/* ---- telling ------------------------------------------------------------------------------------- */

static uint64_t done_then_ns(const struct replay *replay)
{
    return replay->last_end_ns > replay->first_submit_ns
               ? (uint64_t)(replay->last_end_ns - replay->first_submit_ns)
               : 0;
}

static double rate(uint64_t count, uint64_t ns)
{
    return ns ? (double)count * 1e9 / (double)ns : 0;
}

static void text_pace(const char *name, double ops_per_s,
                      const struct bench_histogram *histogram)
{
    static const double shares[] = { 0.5, 0.95, 0.99, 1 };
    static const char *const names[] = { "p50", "p95", "p99", "max" };

    if (histogram->count == 0)
        return;
    printf("  %-8s %.0f ops/s", name, ops_per_s);
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        char span[CLI_TEXT];

        printf(", %s %s", names[i],
               cli_span(span, (uint64_t)(bench_histogram_us(histogram, shares[i]) * 1e3)));
    }
    putchar('\n');
}

static void text_left_out(const struct replay *replay)
{
    static const char *const names[KINDS] = {
        [KIND_READ] = "reads",
        [KIND_WRITE] = "writes",
        [KIND_SYNC] = "syncs",
        [KIND_OTHER] = "others",
        [KIND_INTERNAL] = "the engine's own",
        [KIND_UNSTARTED] = "never started",
    };
    const char *before = "  left out";

    for (int kind = 0; kind < KINDS; kind++) {
        char count[CLI_TEXT];

        if (is_to_do(replay, (enum kind)kind) || replay->kinds[kind] == 0)
            continue;
        printf("%s %s %s", before, names[kind], cli_count(count, replay->kinds[kind]));
        before = ",";
    }
    if (before[0] == ',')
        putchar('\n');
}

static void tell_text(const struct replay *replay)
{
    const struct trace_arguments *arguments = replay->arguments;
    uint64_t now_ns = replay->end_ns - replay->begin_ns;
    char a[CLI_TEXT];
    char b[CLI_TEXT];
    char c[CLI_TEXT];

    if (arguments->dry_run) {
        printf("to do    %s on %s, %s to be read\n",
               cli_things(a, to_do(replay), "operation", "operations"),
               cli_things(b, replay->list_count, "file", "files"),
               cli_bytes(c, replay->wanted_bytes));
        for (size_t i = 0; i < replay->list_count; i++) {
            char name[1024];

            printf("  %-8s %12s  %s\n", replay->list[i]->file ? "there" : "missing",
                   cli_count(a, replay->list[i]->reads),
                   cli_name(name, sizeof(name), replay->list[i]->path));
        }
    } else {
        printf("replayed %s, %s in %s\n",
               cli_things(a, replay->done, "operation", "operations"),
               cli_bytes(b, replay->bytes), cli_span(c, now_ns));
        text_pace("then", rate(to_do(replay), done_then_ns(replay)), &replay->then);
        text_pace("now", rate(replay->done, now_ns), &replay->now);
        if (arguments->speed > 0 && replay->done > 0)
            printf("  late     %s at worst\n", cli_span(a, replay->late_ns));
    }
    text_left_out(replay);
    if (replay->missing > 0)
        printf("  missing  %s: their files are not there\n",
               cli_things(a, replay->missing, "operation", "operations"));
    if (replay->failed > 0)
        printf("  failed   %s that did not fail then\n",
               cli_things(a, replay->failed, "operation", "operations"));
    if (replay->differ > 0)
        printf("  differ   %s\n",
               cli_things(a, replay->differ, "result from then", "results from then"));
}

static void json_latency(const char *name, const struct bench_histogram *histogram)
{
    printf(",\"%s\":{\"count\":%" PRIu64
           ",\"p50\":%.1f,\"p95\":%.1f,\"p99\":%.1f,\"max\":%.1f}",
           name, histogram->count, bench_histogram_us(histogram, 0.5),
           bench_histogram_us(histogram, 0.95), bench_histogram_us(histogram, 0.99),
           (double)histogram->max_ns / 1e3);
}

static void tell_json(const struct replay *replay, int status)
{
    struct weir_engine_info info = { .size = sizeof(info) };
    uint64_t now_ns = replay->end_ns - replay->begin_ns;

    weir_engine_info(replay->engine, &info);
    printf("{\"verb\":\"trace replay\",\"status\":%d,\"dry_run\":%s,\"backend\":\"%s\","
           "\"speed\":%g,\"depth\":%u,\"to_do\":%" PRIu64
           ",\"files\":%zu,\"missing_files\":%" PRIu64 ",\"missing\":%" PRIu64
           ",\"done\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"failed\":%" PRIu64
           ",\"differ\":%" PRIu64,
           status, replay->arguments->dry_run ? "true" : "false", info.backend_name,
           replay->arguments->speed, replay->arguments->depth, to_do(replay),
           replay->list_count, replay->missing_files, replay->missing, replay->done,
           replay->bytes, replay->failed, replay->differ);
    printf(",\"reads\":%" PRIu64 ",\"writes\":%" PRIu64 ",\"syncs\":%" PRIu64
           ",\"others\":%" PRIu64 ",\"internal\":%" PRIu64 ",\"unstarted\":%" PRIu64
           ",\"seconds_then\":%.6f,\"seconds\":%.6f,\"ops_per_s_then\":%.1f,"
           "\"ops_per_s\":%.1f,\"late_us\":%.1f",
           replay->kinds[KIND_READ], replay->kinds[KIND_WRITE], replay->kinds[KIND_SYNC],
           replay->kinds[KIND_OTHER], replay->kinds[KIND_INTERNAL],
           replay->kinds[KIND_UNSTARTED], (double)done_then_ns(replay) / 1e9,
           (double)now_ns / 1e9, rate(to_do(replay), done_then_ns(replay)),
           rate(replay->done, now_ns), (double)replay->late_ns / 1e3);
    json_latency("lat_us_then", &replay->then);
    json_latency("lat_us", &replay->now);
    puts("}");
}

/* ---- all of it ------------------------------------------------------------------------------------ */

static void keep_files(void *file)
{
    (void)file; /* freed from the list */
}

static void free_replay(struct replay *replay)
{
    weir_file_close(replay->scratch);
    for (size_t i = 0; i < replay->list_count; i++) {
        weir_file_close(replay->list[i]->file);
        free(replay->list[i]->path);
        free(replay->list[i]);
    }
    weir_engine_close(replay->engine);
    tdestroy(replay->files, keep_files);
    for (uint32_t i = 0; replay->slots && i < replay->arguments->depth; i++) {
        free(replay->slots[i].buf);
        free(replay->slots[i].pieces);
    }
    free(replay->slots);
    free(replay->list);
    free(replay->pattern);
    free(replay);
}

/* A trace may name more files than we may have open: as many as leave room for all else. */
static uint32_t files_at_once(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > UINT32_MAX)
        return 1024;
    return limit.rlim_cur > 4 ? (uint32_t)(limit.rlim_cur / 4) : 1;
}

int trace_replay(const struct trace_arguments *arguments)
{
    struct replay *replay = calloc(1, sizeof(*replay));
    bool free_it = true;
    bool ok;
    int status = CLI_FAILED;

    if (!replay) {
        cli_say(VERB, "no memory");
        return CLI_FAILED;
    }
    replay->arguments = arguments;
    replay->engine = cli_engine_open_with(VERB, arguments->backend, files_at_once());
    if (!replay->engine) {
        free(replay);
        return CLI_FAILED;
    }
    watch_signals();
    ok = plan(replay, &status) &&
         (!arguments->writes || arguments->dry_run || make_scratch(replay));
    if (ok && !arguments->dry_run && !interrupted)
        free_it = run(replay);
    if (replay->broken || replay->failed > 0 || replay->missing > 0)
        status = CLI_FAILED;
    if (interrupted)
        status = CLI_INTERRUPTED;
    if (ok && !replay->broken) {
        if (arguments->json)
            tell_json(replay, status);
        else
            tell_text(replay);
    }
    (void)fflush(stdout);
    if (interrupted)
        cli_say(VERB, "interrupted");
    if (free_it)
        free_replay(replay);
    /* What the kernel still has is not freed; the process ends anyway. */
    return status; /* NOLINT(clang-analyzer-unix.Malloc): for that reason */
}
