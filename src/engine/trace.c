/* SPDX-License-Identifier: MIT */
/*
 * trace.c - write a record of every operation that ends
 *
 * Problem      millions of operations a second are to be written down without slowing them or
 *              waiting for the disk, in memory that does not grow.
 * Idea         a record is 64 bytes, made under one short lock in one of four buffers. A full
 *              buffer is written by a task on the pool's files lane; while all four wait for
 *              it, records are dropped and counted. A buffer is given to the task after a
 *              second too, if there is another record by then: so a crash loses little.
 * Structures   the buffers are a ring: `full` of them, from `head` on, wait or are being
 *              written; the one behind is being filled, unless all are full. A buffer is two
 *              blocks of the file (trace_format.h): names, then the records that use them. A
 *              name goes into the buffer whose record is the first to use it, so that it is in
 *              the file before that record.
 *              Files have numbers. A table with one place for each index (modulo its size)
 *              says which generation of which file has which number; where two files want one
 *              place, the one that loses it gets a new number later.
 * Lifetime     engine->trace is set exactly while a trace is on, so that operations pay one load
 *              while it is off. The struct behind it is made at the first start and freed when
 *              the engine closes, and its `state` decides under its lock: an add that loaded
 *              the pointer before a stop finds TRACE_OFF, or the next trace. So a stop need
 *              not know who is inside, and what it frees (the memory) nobody reaches but under the
 *              lock, in TRACE_ON.
 *              The task is in that struct too. It may still be queued when its trace has ended,
 *              and then does nothing: a stop never waits for a thread of the pool to be free,
 *              only for a write that is under way, and writes the rest itself. So it may be
 *              called on the pool's own threads.
 * Limits       a trace that cannot be written on (a full disk) stops there: the rest is dropped.
 * Not here     reading: trace_read.c.
 *
 * The states of a trace, and who moves it:
 *
 *   OFF      -> STARTING  weir_trace_start
 *   STARTING -> ON, OFF   weir_trace_start     file and memory are there; or it failed
 *   ON       -> STOPPING  end_trace            no more records; the memory is the stopper's
 *   STOPPING -> OFF       end_trace
 *
 * and of its task:
 *
 *   IDLE     -> QUEUED    add_locked           there is a full buffer
 *   QUEUED   -> RUNNING   write_full           the buffer at `head` is the task's
 *   RUNNING  -> IDLE      write_full           nothing is full, or the trace is not ON
 *
 *   T1  RUNNING only in ON, and in STOPPING while end_trace waits for it.
 *   T2  In ON, with a full buffer, the task is QUEUED or RUNNING.
 */
#include "engine_internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>

#include "trace_format.h"

#define BUFFERS     4u
#define RECORDS_MAX 4096u
#define NAMES_ROOM  (32u * 1024)
#define PLACES      4096u
#define FILL_NS     ((uint64_t)WI_SEC_NS)

_Static_assert(RECORDS_MAX *RECORD_BYTES <= TRACE_PAYLOAD_MAX, "a block's payload");
_Static_assert(NAMES_ROOM <= TRACE_PAYLOAD_MAX, "a block's payload");
_Static_assert(NAME_PATH + TRACE_PATH_MAX <= NAMES_ROOM, "the longest name");
_Static_assert((int)WI_TRACE_BLOCKING == (int)WEIR_TRACE_BLOCKING, "stored as they are");
_Static_assert((int)WI_TRACE_INTERNAL == (int)WEIR_TRACE_INTERNAL, "stored as they are");

struct buffer {
    uint32_t records;
    uint32_t names;
    uint32_t names_len;
    uint64_t since_ns; /* the end of the operation of its first record */
    unsigned char names_block[BLOCK_BYTES + NAMES_ROOM];
    unsigned char records_block[BLOCK_BYTES + RECORDS_MAX * RECORD_BYTES];
};

/* What has a number. */
struct place {
    const struct weir_file *file;
    uint64_t generation;
    uint32_t number;
};

struct memory {
    struct place places[PLACES];
    struct buffer buffers[BUFFERS];
};

enum trace_state {
    TRACE_OFF = 0,
    TRACE_STARTING,
    TRACE_ON,
    TRACE_STOPPING
};

enum task_state {
    TASK_IDLE = 0,
    TASK_QUEUED,
    TASK_RUNNING
};

struct trace {
    /* Set at creation. */
    struct weir_engine *engine;
    struct wi_mutex mu;
    struct wi_cond task_changed;

    /* Guarded by mu. */
    enum trace_state state;
    enum task_state task_state;
    struct memory *memory;
    uint32_t head;
    uint32_t full;
    uint32_t last_number;
    uint64_t dropped;
    int error; /* the first of writing; nothing is written after it */

    /* Of the one that writes: weir_trace_start in STARTING, the task in RUNNING, end_trace in
     * STOPPING once the task is not RUNNING. The lock is taken in between, which hands it on. */
    int fd;
    char *path;
    uint64_t at;
    uint64_t blocks;
    uint64_t written; /* records */
    unsigned char id[TRACE_ID_BYTES];

    uint64_t started_ns; /* monotonic; set in STARTING */
    struct wi_task task;
};

/* ---- writing ------------------------------------------------------------------------------ */

static int write_all(struct trace *trace, const unsigned char *bytes, size_t len)
{
    const struct wi_os *os = trace->engine->os;
    uint32_t tries = 0;

    while (len > 0) {
        int64_t n = os->ops->pwrite(os, trace->fd, bytes, len, trace->at);

        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
            trace->at += (uint64_t)n;
            tries = 0;
        } else if (n == 0) {
            return -EIO;
        } else {
            struct retry_verdict verdict = wi_retry_verdict(WEIR_OP_WRITE, n, tries++);

            if (verdict.action == RETRY_NEVER)
                return verdict.code;
            if (verdict.action == RETRY_LATER)
                os->ops->sleep_ns(os, verdict.delay_ns);
        }
    }
    return 0;
}

/* `block` has room for its header in front of the payload. */
static int write_block(struct trace *trace, enum trace_kind kind, unsigned char *block,
                       uint32_t len, uint32_t count)
{
    memset(block, 0, BLOCK_BYTES);
    wi_put_le32(block + BLOCK_MAGIC, TRACE_BLOCK_MAGIC);
    block[BLOCK_KIND] = (unsigned char)kind;
    wi_put_le32(block + BLOCK_LEN, len);
    wi_put_le32(block + BLOCK_COUNT, count);
    wi_put_le64(block + BLOCK_NUMBER, trace->blocks++);
    wi_put_le32(block + BLOCK_PAYLOAD_CRC, wi_crc32c(0, block + BLOCK_BYTES, len));
    wi_put_le32(block + BLOCK_CRC, wi_trace_block_crc(trace->id, trace->at, block));
    return write_all(trace, block, BLOCK_BYTES + len);
}

/* The buffer at `head`, for the one that writes, without the lock. */
static int write_head(struct trace *trace)
{
    struct buffer *buffer = &trace->memory->buffers[trace->head];
    int rc = trace->error; /* only the one that writes sets it */

    if (rc < 0)
        return rc;
    if (buffer->names > 0)
        rc = write_block(trace, TRACE_NAMES, buffer->names_block, buffer->names_len,
                         buffer->names);
    if (rc == 0 && buffer->records > 0)
        rc = write_block(trace, TRACE_RECORDS, buffer->records_block,
                         buffer->records * RECORD_BYTES, buffer->records);
    if (rc < 0)
        wi_engine_log(trace->engine, WEIR_LOG_WARNING,
                      "the trace %s is not written any further: %s (%s)", trace->path,
                      weir_code_text(rc), weir_code_name(rc));
    return rc;
}

/* It was written, or failed: it can be filled again. */
static void end_head_locked(struct trace *trace, int rc) WI_REQUIRES(trace->mu)
{
    struct buffer *buffer = &trace->memory->buffers[trace->head];

    if (rc < 0) {
        trace->error = rc;
        trace->dropped += buffer->records;
    } else {
        trace->written += buffer->records;
    }
    buffer->records = 0;
    buffer->names = 0;
    buffer->names_len = 0;
    trace->head = (trace->head + 1) % BUFFERS;
    trace->full--;
}

static void write_full(struct wi_task *task)
{
    struct trace *trace = WI_CONTAINER_OF(task, struct trace, task);

    wi_mutex_lock(&trace->mu);
    trace->task_state = TASK_RUNNING;
    while (trace->state == TRACE_ON && trace->full > 0) {
        int rc;

        wi_mutex_unlock(&trace->mu);
        rc = write_head(trace);
        wi_mutex_lock(&trace->mu);
        end_head_locked(trace, rc);
    }
    trace->task_state = TASK_IDLE;
    wi_cond_broadcast(&trace->task_changed);
    wi_mutex_unlock(&trace->mu);
}

/* ---- adding ------------------------------------------------------------------------------- */

/* The number that the event's file has, or 0. `*ret_new`: it has none and is to get one. */
static uint32_t number_of_locked(struct trace *trace, const struct wi_trace_event *event,
                                 bool *ret_new) WI_REQUIRES(trace->mu)
{
    struct weir_file *file = event->file;
    const struct place *place;
    uint64_t generation;
    uint64_t named;

    *ret_new = false;
    if (!file)
        return 0;
    place = &trace->memory->places[file->index % PLACES];
    generation = atomic_load_explicit(&file->generation, memory_order_acquire);
    named = place->file == file ? place->generation : 0;

    /* After a close the name is gone, and the handle may be another file's by now. If its
     * generation is still the next one, the number is known; else it stays unknown. */
    if (event->op == WEIR_OP_CLOSE && event->result != -EBUSY)
        return named != 0 && generation == named + 1 ? place->number : 0;
    if (named == generation)
        return place->number;
    *ret_new = (generation & 1) != 0 && event->op != WEIR_OP_CLOSE;
    return 0;
}

static uint32_t path_len(const struct weir_file *file)
{
    return (uint32_t)strnlen(file->path, TRACE_PATH_MAX);
}

static uint32_t add_name_locked(struct trace *trace, struct buffer *buffer,
                                const struct weir_file *file) WI_REQUIRES(trace->mu)
{
    struct place *place = &trace->memory->places[file->index % PLACES];
    unsigned char *name = buffer->names_block + BLOCK_BYTES + buffer->names_len;
    uint32_t len = path_len(file);

    place->file = file;
    place->generation = atomic_load_explicit(&file->generation, memory_order_relaxed);
    place->number = ++trace->last_number;
    wi_put_le32(name + NAME_NUMBER, place->number);
    wi_put_le32(name + NAME_FLAGS,
                atomic_load_explicit(&file->open_flags, memory_order_relaxed));
    wi_put_le32(name + NAME_LEN, len);
    memcpy(name + NAME_PATH, file->path, len);
    buffer->names++;
    buffer->names_len += NAME_PATH + len;
    return place->number;
}

static void put_record(unsigned char *record, const struct trace *trace,
                       const struct wi_trace_event *event, uint32_t number)
{
    bool started = event->start_ns != 0;
    uint64_t wait_end_ns = started ? event->start_ns : event->end_ns;
    uint32_t flags = event->flags | (started ? 0 : WEIR_TRACE_UNSTARTED);

    wi_put_le64(record + RECORD_SUBMIT, event->submit_ns - trace->started_ns);
    wi_put_le64(record + RECORD_WAIT,
                wait_end_ns > event->submit_ns ? wait_end_ns - event->submit_ns : 0);
    wi_put_le64(record + RECORD_DEVICE,
                event->end_ns > wait_end_ns ? event->end_ns - wait_end_ns : 0);
    wi_put_le64(record + RECORD_ID,
                event->flags & WI_TRACE_BLOCKING ? wi_this_thread() : event->id);
    wi_put_le64(record + RECORD_OFFSET, event->offset);
    wi_put_le64(record + RECORD_LEN, event->len);
    wi_put_le64(record + RECORD_RESULT, (uint64_t)event->result);
    wi_put_le32(record + RECORD_FILE, number);
    record[RECORD_OP] = event->op;
    record[RECORD_CLASS] = event->io_class;
    record[RECORD_FLAGS] = (unsigned char)flags;
    record[RECORD_ZERO] = 0;
}

/* The buffer that is being filled; NULL if all are full. */
static struct buffer *filling_locked(struct trace *trace) WI_REQUIRES(trace->mu)
{
    if (trace->full == BUFFERS)
        return NULL;
    return &trace->memory->buffers[(trace->head + trace->full) % BUFFERS];
}

/* Is this buffer to be written before the event is recorded? */
static bool is_due(const struct trace *trace, const struct buffer *buffer,
                   const struct wi_trace_event *event, bool is_new)
{
    return buffer->records == RECORDS_MAX ||
           (is_new && buffer->names_len + NAME_PATH + path_len(event->file) > NAMES_ROOM) ||
           (buffer->records > 0 && trace->full == 0 &&
            event->end_ns > buffer->since_ns + FILL_NS);
}

/* Returns true if the task is to be submitted. */
static bool add_locked(struct trace *trace, const struct wi_trace_event *event)
    WI_REQUIRES(trace->mu)
{
    bool is_new;
    uint32_t number = number_of_locked(trace, event, &is_new);
    struct buffer *buffer = filling_locked(trace);

    if (buffer && is_due(trace, buffer, event, is_new)) {
        trace->full++;
        buffer = filling_locked(trace);
    }
    if (!buffer || trace->error < 0) {
        trace->dropped++;
    } else {
        if (is_new)
            number = add_name_locked(trace, buffer, event->file);
        if (buffer->records == 0)
            buffer->since_ns = event->end_ns;
        put_record(buffer->records_block + BLOCK_BYTES + (size_t)buffer->records * RECORD_BYTES,
                   trace, event, number);
        buffer->records++;
    }
    if (trace->full == 0 || trace->task_state != TASK_IDLE)
        return false;
    trace->task_state = TASK_QUEUED;
    return true;
}

static void add_one(struct weir_engine *engine, const struct wi_trace_event *event)
{
    struct trace *trace = atomic_load_explicit(&engine->trace, memory_order_acquire);
    bool submit;

    if (WI_LIKELY(!trace))
        return;
    wi_mutex_lock(&trace->mu);
    submit = trace->state == TRACE_ON && add_locked(trace, event);
    wi_mutex_unlock(&trace->mu);
    if (submit)
        wi_pool_submit(engine->pool, WI_LANE_FILES, &trace->task, &trace->task, 1);
}

void wi_trace_add(struct weir_engine *engine, const struct wi_trace_event *event)
{
    struct wi_trace_event part = *event;

    if (!event->ranges) {
        add_one(engine, event);
        return;
    }
    for (size_t i = 0; i < event->ranges_count; i++) {
        part.offset = event->ranges[i].offset;
        part.len = event->ranges[i].len;
        /* What never came to the device has no results of its own. */
        part.result = event->start_ns != 0 ? event->ranges[i].result : event->result;
        add_one(engine, &part);
    }
}

/* ---- begin and end ------------------------------------------------------------------------- */

/* Made at the first start. NULL without memory. */
static struct trace *trace_of(struct weir_engine *engine)
{
    struct trace *made = calloc(1, sizeof(*made));
    struct trace *trace;

    if (made) {
        made->engine = engine;
        made->fd = -1;
        made->task.run = write_full;
        wi_mutex_init(&made->mu, WI_RANK_TRACE);
        wi_cond_init(&made->task_changed);
    }
    wi_mutex_lock(&engine->mu);
    trace = engine->trace_kept;
    if (!trace) {
        trace = engine->trace_kept = made;
        made = NULL;
    }
    wi_mutex_unlock(&engine->mu);
    if (made) {
        wi_cond_fini(&made->task_changed);
        wi_mutex_fini(&made->mu);
        free(made);
    }
    return trace;
}

/* Is it a regular file that begins as a trace does? 0 or a negative code. */
static int check_is_trace(const struct wi_os *os, int fd)
{
    char magic[sizeof(TRACE_MAGIC) - 1];
    struct statx st = { 0 };
    int64_t n = os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);

    if (n == 0 && !S_ISREG(st.stx_mode))
        return -EEXIST;
    if (n == 0)
        n = os->ops->pread(os, fd, magic, sizeof(magic), 0);
    if (n < 0)
        return (int)n;
    return n == sizeof(magic) && memcmp(magic, TRACE_MAGIC, sizeof(magic)) == 0 ? 0 : -EEXIST;
}

/* There is a file of this name. Take it if it is a trace that nobody writes. It is the open file
 * that is looked at and emptied, so it does not matter who gets the name meanwhile. */
static int take_old_file(const struct wi_os *os, const char *path)
{
    int fd =
        os->ops->openat(os, AT_FDCWD, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
    int rc;

    if (fd < 0)
        return fd == -ELOOP || fd == -EISDIR || fd == -ENXIO ? -EEXIST : fd;
    rc = check_is_trace(os, fd);
    if (rc == 0 && os->ops->flock(os, fd, LOCK_EX | LOCK_NB) == -EWOULDBLOCK)
        rc = -EBUSY;
    if (rc == 0)
        rc = os->ops->ftruncate(os, fd, 0);
    if (rc == 0)
        rc = os->ops->fchmod(os, fd, 0600);
    if (rc == 0)
        return fd;
    os->ops->close(os, fd);
    return rc;
}

static int open_file(struct trace *trace, bool *ret_made)
{
    const struct wi_os *os = trace->engine->os;
    int fd = os->ops->openat(os, AT_FDCWD, trace->path, O_WRONLY | O_CREAT | O_EXCL | O_NOCTTY,
                             0600);

    *ret_made = fd >= 0;
    if (fd == -EEXIST)
        fd = take_old_file(os, trace->path);
    else if (fd >= 0) /* where there are no locks, there is nobody to be told */
        (void)os->ops->flock(os, fd, LOCK_EX | LOCK_NB);
    trace->fd = fd;
    return fd < 0 ? fd : 0;
}

static int write_header(struct trace *trace)
{
    const struct wi_os *os = trace->engine->os;
    struct weir_engine_info info = { .size = sizeof(info) };
    unsigned char header[HEADER_BYTES] = { 0 };
    int rc = os->ops->random(os, trace->id, sizeof(trace->id));

    if (rc < 0)
        return rc;
    weir_engine_info(trace->engine, &info);
    trace->started_ns = wi_os_now(os);
    memcpy(header + HEADER_MAGIC, TRACE_MAGIC, sizeof(TRACE_MAGIC) - 1);
    wi_put_le16(header + HEADER_MAJOR, TRACE_MAJOR);
    wi_put_le32(header + HEADER_SIZE, HEADER_BYTES);
    memcpy(header + HEADER_ID, trace->id, sizeof(trace->id));
    wi_put_le64(header + HEADER_REAL, (uint64_t)os->ops->real_ns(os));
    wi_put_le64(header + HEADER_MONOTONIC, trace->started_ns);
    wi_put_le32(header + HEADER_RECORD_SIZE, RECORD_BYTES);
    memcpy(header + HEADER_VERSION, weir_version(),
           strnlen(weir_version(), HEADER_BACKEND - HEADER_VERSION));
    memcpy(header + HEADER_BACKEND, info.backend_name,
           strnlen(info.backend_name, HEADER_ZERO - HEADER_BACKEND));
    wi_put_le32(header + HEADER_CRC, wi_crc32c(0, header, HEADER_CRC));
    return write_all(trace, header, sizeof(header));
}

static void forget(struct trace *trace)
{
    if (trace->memory)
        wi_engine_account(trace->engine, -(int64_t)sizeof(*trace->memory));
    free(trace->memory);
    free(trace->path);
    trace->memory = NULL;
    trace->path = NULL;
    trace->fd = -1;
}

/* In STARTING: all but `state` and the two pointers is this thread's. */
static int begin_trace(struct trace *trace, const char *path, struct weir_error *error)
{
    const struct wi_os *os = trace->engine->os;
    bool made = false;
    int rc;

    trace->head = trace->full = trace->last_number = 0;
    trace->at = trace->blocks = trace->written = trace->dropped = 0;
    trace->error = 0;
    trace->path = strdup(path);
    trace->memory = calloc(1, sizeof(*trace->memory));
    if (trace->memory)
        wi_engine_account(trace->engine, sizeof(*trace->memory));
    if (!trace->path || !trace->memory) {
        forget(trace);
        return wi_error_set(error, -ENOMEM, 0, path, NULL);
    }
    rc = open_file(trace, &made);
    if (rc == 0) {
        rc = write_header(trace);
        if (rc == 0)
            return 0;
        os->ops->close(os, trace->fd);
        if (made)
            os->ops->unlinkat(os, AT_FDCWD, path, 0);
        wi_error_set(error, rc, WEIR_OP_WRITE, path, NULL);
    } else if (rc == -EEXIST) {
        wi_error_set(error, rc, WEIR_OP_OPEN, path,
                     "a file that is no trace has this name, and is not replaced: remove it or "
                     "choose another name");
    } else if (rc == -EBUSY) {
        wi_error_set(error, rc, WEIR_OP_OPEN, path,
                     "another trace is being written to this file: choose another name");
    } else {
        wi_error_set(error, rc, WEIR_OP_OPEN, path, NULL);
    }
    forget(trace);
    return rc;
}

int weir_trace_start(struct weir_engine *engine, const char *path, struct weir_error *error)
{
    struct trace *trace;
    bool busy;
    int rc;

    if (!engine || !path)
        return wi_error_set(error, -EINVAL, 0, path, "an argument is missing");
    trace = trace_of(engine);
    if (!trace)
        return wi_error_set(error, -ENOMEM, 0, path, NULL);
    wi_mutex_lock(&trace->mu);
    busy = trace->state != TRACE_OFF;
    if (!busy)
        trace->state = TRACE_STARTING;
    wi_mutex_unlock(&trace->mu);
    if (busy)
        return wi_error_set(error, -EALREADY, 0, path, "a trace of this engine is on");

    rc = begin_trace(trace, path, error);
    wi_mutex_lock(&trace->mu);
    trace->state = rc < 0 ? TRACE_OFF : TRACE_ON;
    if (rc == 0)
        atomic_store_explicit(&engine->trace, trace, memory_order_release);
    wi_mutex_unlock(&trace->mu);
    return rc;
}

/* The memory is this thread's by now: write what is in it, and the end. */
static int write_rest(struct trace *trace)
{
    unsigned char end[BLOCK_BYTES + END_BYTES] = { 0 };
    struct buffer *filling;

    wi_mutex_lock(&trace->mu); /* for the analysis: nobody else is there */
    filling = filling_locked(trace);
    if (filling && filling->records > 0)
        trace->full++;
    while (trace->full > 0) {
        int rc;

        wi_mutex_unlock(&trace->mu);
        rc = write_head(trace);
        wi_mutex_lock(&trace->mu);
        end_head_locked(trace, rc);
    }
    wi_mutex_unlock(&trace->mu);
    if (trace->error < 0)
        return trace->error;
    wi_put_le64(end + BLOCK_BYTES + END_RECORDS, trace->written);
    wi_put_le64(end + BLOCK_BYTES + END_DROPPED, trace->dropped);
    wi_put_le64(end + BLOCK_BYTES + END_ENDED,
                wi_os_now(trace->engine->os) - trace->started_ns);
    return write_block(trace, TRACE_END, end, END_BYTES, 1);
}

static int end_trace(struct trace *trace, uint64_t *ret_dropped, struct weir_error *error)
{
    struct weir_engine *engine = trace->engine;
    bool on;
    int closed;
    int rc;

    wi_mutex_lock(&trace->mu);
    on = trace->state == TRACE_ON;
    if (on) {
        trace->state = TRACE_STOPPING;
        atomic_store_explicit(&engine->trace, NULL, memory_order_relaxed);
        while (trace->task_state == TASK_RUNNING)
            wi_cond_wait(&trace->task_changed, &trace->mu);
    }
    wi_mutex_unlock(&trace->mu);
    if (!on)
        return wi_error_set(error, -ENOENT, 0, NULL, "no trace of this engine is on");

    rc = write_rest(trace);
    closed = engine->os->ops->close(engine->os, trace->fd);
    if (rc == 0)
        rc = closed;
    if (rc < 0)
        wi_error_set(error, rc, WEIR_OP_WRITE, trace->path, NULL);
    if (ret_dropped)
        *ret_dropped = trace->dropped;
    forget(trace);

    wi_mutex_lock(&trace->mu);
    trace->state = TRACE_OFF;
    wi_mutex_unlock(&trace->mu);
    return rc;
}

int weir_trace_stop(struct weir_engine *engine, uint64_t *ret_dropped, struct weir_error *error)
{
    struct trace *trace;

    if (!engine)
        return -EINVAL;
    wi_mutex_lock(&engine->mu);
    trace = engine->trace_kept;
    wi_mutex_unlock(&engine->mu);
    if (!trace)
        return wi_error_set(error, -ENOENT, 0, NULL, "no trace of this engine is on");
    return end_trace(trace, ret_dropped, error);
}

void wi_trace_end(struct weir_engine *engine)
{
    struct trace *trace = engine->trace_kept;

    if (!trace)
        return;
    (void)end_trace(trace, NULL, NULL);
    wi_mutex_lock(&trace->mu);
    while (trace->task_state != TASK_IDLE)
        wi_cond_wait(&trace->task_changed, &trace->mu);
    wi_mutex_unlock(&trace->mu);
    engine->trace_kept = NULL;
    wi_cond_fini(&trace->task_changed);
    wi_mutex_fini(&trace->mu);
    free(trace);
}
