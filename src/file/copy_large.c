/* SPDX-License-Identifier: MIT */
/*
 * copy_large.c - the bytes of a large file, through a queue
 *
 * Problem      a large copy through the page cache pays for memory twice: pages are found,
 *              filled and later written out, and what was useful in the cache is pushed out
 *              by bytes that nobody is going to read soon.
 * Idea         the copy is written past the page cache (O_DIRECT), with COPY_SLOTS pieces of
 *              COPY_PIECE bytes in flight. The source is read from the page cache where it is
 *              there, piece by piece (cachestat), and past it where it is not. Where a file
 *              system has no direct I/O, both go through the cache.
 * Structures   a ring of slots. Piece n lives in slot n % COPY_SLOTS from its read until it
 *              is written and hashed. Reads and writes end in any order, hashing goes in the
 *              order of the pieces: XXH3 is of the whole file.
 * Space        all of it is allocated first: direct writes then needn't take turns for the
 *              size of the file, and a full disk shows at once. Holes stay holes.
 * Clones       where the file system can share blocks, nothing is moved at all; not with
 *              VERIFY, which is about reading what was written.
 *
 * A piece:   READING --on_read--> WRITING --on_write--> written, and hashed when its turn
 *            came: then its slot is free. After an error no new piece begins; those in
 *            flight are waited for.
 *
 * The end of a file that is not a whole number of the device's blocks cannot be written
 * directly. It is kept aside and written through the page cache at the end.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "copy_internal.h"

#define TICK_NS ((uint64_t)100 * WI_MSEC_NS)

struct slot {
    struct weir_job job;
    struct weir_error error;
    struct copy_large *large;
    unsigned char *buf;
    uint64_t offset;
    uint64_t hole; /* bytes of zeros before it, for the hash */
    size_t len;
    bool busy;
    bool has_read;
    bool hashed;
    bool written;
};

struct copy_large {
    struct copy_worker *worker;
    struct weir_queue *queue;
    unsigned char *memory;
    struct slot slots[COPY_SLOTS];
    XXH3_state_t *hash;

    /* Of the pass that runs. */
    struct copy_file *file;
    struct weir_file *from;        /* what is read */
    struct weir_file *from_direct; /* the same past the page cache; NULL if that cannot be */
    struct weir_file *to;          /* what is written; NULL: only read and hash */
    uint64_t size;
    size_t to_align;
    size_t direct_align;
    bool at_copy; /* reads are of the copy */
    bool sparse;
    bool hashing;
    int rc;
    uint64_t next;       /* where the next piece begins, at the earliest */
    uint64_t data_end;   /* sparse: where the data that it is in ends */
    uint64_t pieces;     /* begun */
    uint64_t hash_piece; /* whose turn it is */
    uint64_t hashed_to;
    uint64_t moved; /* for the progress */
    uint32_t in_flight;
    size_t tail_len;
    uint64_t tail_offset;
    unsigned char tail[COPY_ALIGN];
};

/* ---- one worker's means ---------------------------------------------------------------- */

static int create(struct copy_worker *worker)
{
    struct weir_queue_options options = { .size = sizeof(options),
                                          .depth = COPY_SLOTS,
                                          .backlog = 2 * COPY_SLOTS };
    struct copy_large *large = calloc(1, sizeof(*large));
    int rc = -ENOMEM;

    if (!large)
        return rc;
    large->worker = worker;
    large->memory = aligned_alloc(COPY_ALIGN, COPY_SLOTS * COPY_PIECE);
    large->hash = XXH3_createState();
    if (!large->memory || !large->hash)
        goto fail;
    rc = weir_queue_open(worker->copy->engine, &options, &large->queue);
    if (rc < 0)
        goto fail;
    for (uint32_t i = 0; i < COPY_SLOTS; i++) {
        large->slots[i].large = large;
        large->slots[i].buf = large->memory + i * COPY_PIECE;
    }
    worker->large = large;
    return 0;

fail:
    XXH3_freeState(large->hash);
    free(large->memory);
    free(large);
    return rc;
}

void copy_large_destroy(struct copy_worker *worker)
{
    struct copy_large *large = worker->large;

    if (!large)
        return;
    weir_queue_close(large->queue, WEIR_FOREVER);
    XXH3_freeState(large->hash);
    free(large->memory);
    free(large);
    worker->large = NULL;
}

/* ---- hashing, in order ------------------------------------------------------------------------ */

static void hash_zeros(struct copy_large *large, uint64_t count)
{
    static const unsigned char zeros[64 << 10];

    while (count > 0) {
        size_t now = wi_min_u64(count, sizeof(zeros));

        XXH3_128bits_update(large->hash, zeros, now);
        count -= now;
    }
}

static void settle(struct copy_large *large, struct slot *slot)
{
    if (slot->has_read && slot->written && (slot->hashed || !large->hashing))
        slot->busy = false;
}

static void hash_what_is_due(struct copy_large *large)
{
    while (large->hashing && large->hash_piece < large->pieces) {
        struct slot *slot = &large->slots[large->hash_piece % COPY_SLOTS];

        if (!slot->has_read)
            return;
        hash_zeros(large, slot->hole);
        XXH3_128bits_update(large->hash, slot->buf, slot->len);
        large->hashed_to = slot->offset + slot->len;
        large->hash_piece++;
        slot->hashed = true;
        settle(large, slot);
    }
}

/* ---- pieces ----------------------------------------------------------------------------------- */

/* The pass has failed; the first reason stays. */
static void fail(struct copy_large *large, int rc, uint32_t op, bool at_copy, uint64_t offset,
                 const char *text)
{
    if (large->rc == 0)
        large->rc = copy_problem_at(large->worker, rc, op, at_copy, offset, text);
}

static void submit(struct copy_large *large, struct slot *slot)
{
    struct weir_job *jobs[] = { &slot->job };
    int rc = weir_queue_submit(large->queue, jobs, 1);

    if (rc == 1) {
        large->in_flight++;
        return;
    }
    fail(large, rc, slot->job.op, slot->job.op == WEIR_OP_WRITE || large->at_copy, slot->offset,
         NULL);
}

static void on_write(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct copy_large *large = slot->large;

    large->in_flight--;
    large->moved += job->transferred;
    copy_add(&large->worker->copy->bytes_done, job->transferred);
    if (job->result < 0) {
        fail(large, (int)job->result, WEIR_OP_WRITE, true, slot->offset + job->transferred,
             NULL);
        return;
    }
    slot->written = true;
    settle(large, slot);
}

/* Hand the piece on to be written, all but an end that does not fill a block. */
static void write_piece(struct copy_large *large, struct slot *slot)
{
    size_t whole = slot->len - slot->len % large->to_align;

    if (whole < slot->len) {
        large->tail_len = slot->len - whole;
        large->tail_offset = slot->offset + whole;
        memcpy(large->tail, slot->buf + whole, large->tail_len);
    }
    if (whole == 0) {
        slot->written = true;
        return;
    }
    weir_job_write(&slot->job, large->to, slot->buf, whole, slot->offset, on_write, slot);
    submit(large, slot);
}

static void on_read(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct copy_large *large = slot->large;

    large->in_flight--;
    if (job->result < 0) {
        fail(large, (int)job->result, WEIR_OP_READ, large->at_copy,
             slot->offset + job->transferred, NULL);
        return;
    }
    if ((size_t)job->result != slot->len) {
        bool shorter = (size_t)job->result < slot->len;
        uint64_t offset = slot->offset + wi_min_u64((uint64_t)job->result, slot->len);

        if (large->at_copy)
            fail(large, -WEIR_EMISMATCH, WEIR_OP_READ, true, offset, "its length is wrong");
        else
            fail(large, -WEIR_ECHANGED, WEIR_OP_READ, false, offset,
                 shorter ? "the file became shorter while it was read"
                         : "the file grew while it was read");
        return;
    }
    if (large->rc < 0)
        return;
    if (large->at_copy) {
        large->moved += slot->len;
        copy_add(&large->worker->copy->bytes_done, slot->len);
    }
    slot->has_read = true;
    if (large->to)
        write_piece(large, slot);
    else
        slot->written = true;
    /* After the write was staged, so that the device is busy meanwhile. */
    hash_what_is_due(large);
    settle(large, slot);
}

/* Find the next piece. False when there is none. */
static bool next_piece(struct copy_large *large, uint64_t *ret_offset, size_t *ret_len)
{
    const struct wi_os *os = large->worker->copy->os;

    if (large->next >= large->size)
        return false;
    if (large->sparse && large->next >= large->data_end) {
        struct weir_file_info info = { .size = sizeof(info) };
        int64_t data;
        int64_t end;

        weir_file_info(large->from, &info);
        data = os->ops->lseek(os, info.fd, (int64_t)large->next, SEEK_DATA);
        if (data == -ENXIO) {
            large->next = large->size; /* holes to the end */
            return false;
        }
        end = data < 0 ? data : os->ops->lseek(os, info.fd, data, SEEK_HOLE);
        if (data < 0 || end < 0) {
            large->sparse = false; /* then all of it is data */
        } else {
            uint64_t begin = (uint64_t)data & ~(uint64_t)(COPY_ALIGN - 1);

            large->next = wi_max_u64(large->next, begin);
            large->data_end = ((uint64_t)end + COPY_ALIGN - 1) & ~(uint64_t)(COPY_ALIGN - 1);
        }
        if (large->next >= large->size)
            return false;
    }
    *ret_offset = large->next;
    *ret_len = wi_min_u64(COPY_PIECE, large->size - large->next);
    if (large->sparse)
        *ret_len = wi_min_u64(*ret_len, large->data_end - large->next);
    large->next += *ret_len;
    return true;
}

/* Read through the page cache what is mostly there, all else past it. */
static struct weir_file *choose_reader(struct copy_large *large, uint64_t offset, size_t len)
{
    struct weir_file_info info = { .size = sizeof(info) };
    uint64_t cached = 0;

    if (!large->from_direct || large->from_direct == large->from)
        return large->from;
    weir_file_info(large->from, &info);
    if (wi_os_cached(large->worker->copy->os, info.fd, offset, len, &cached) < 0)
        return large->from;
    return cached >= len / 2 ? large->from : large->from_direct;
}

static void begin_pieces(struct copy_large *large)
{
    while (large->rc == 0 && !copy_stopped(large->worker->copy)) {
        struct slot *slot = &large->slots[large->pieces % COPY_SLOTS];
        uint64_t before = large->next;
        struct weir_file *reader;
        uint64_t offset;
        size_t len;
        size_t ask;

        /* The ring's order is the hash's: a piece that is late holds up those behind it. */
        if (slot->busy || !next_piece(large, &offset, &len))
            return;
        slot->offset = offset;
        slot->len = len;
        slot->hole = offset - before;
        slot->has_read = false;
        slot->hashed = false;
        slot->written = false;
        slot->busy = true;
        large->pieces++;
        reader = choose_reader(large, offset, len);
        ask = reader == large->from_direct
                  ? (len + large->direct_align - 1) & ~(large->direct_align - 1)
                  : len;
        weir_job_read(&slot->job, reader, slot->buf, ask, offset, on_read, slot);
        submit(large, slot);
    }
}

/* Read all pieces, write them if there is where to, hash them if that is wanted. */
static int run_pass(struct copy_large *large)
{
    large->rc = 0;
    large->next = 0;
    large->data_end = 0;
    large->pieces = 0;
    large->hash_piece = 0;
    large->hashed_to = 0;
    large->in_flight = 0;
    for (uint32_t i = 0; i < COPY_SLOTS; i++)
        large->slots[i].busy = false;
    if (large->hashing)
        XXH3_128bits_reset(large->hash);

    for (;;) {
        int rc;

        begin_pieces(large);
        if (large->in_flight == 0)
            break;
        rc = weir_queue_wait(large->queue, 1, TICK_NS);
        /* Only a broken backend says something else, and it still holds our buffers. */
        WEIR_ASSERT(rc >= 0 || rc == -EINTR);
        copy_tick(large->worker);
    }
    if (large->rc == 0 && copy_stopped(large->worker->copy))
        large->rc = -ECANCELED;
    if (large->rc == 0 && large->hashing)
        hash_zeros(large, large->size - large->hashed_to);
    return large->rc;
}

/* ---- opening ------------------------------------------------------------------------------------ */

static size_t align_of(struct weir_file *file)
{
    struct weir_file_info info = { .size = sizeof(info) };

    weir_file_info(file, &info);
    return wi_max_u64(info.offset_align, info.memory_align);
}

/* The source a second time, direct. Not having it is no error. */
static void open_direct_source(struct copy_large *large)
{
    struct copy_file *file = large->file;
    struct copy *copy = large->worker->copy;
    const struct wi_os *os = copy->os;
    struct weir_file *direct = NULL;
    struct statx st;
    int fd = os->ops->openat(
        os, file->dir->source_fd, file->name,
        O_RDONLY | O_DIRECT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (os->ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_INO, &st) < 0 ||
        st.stx_ino != file->stat.stx_ino || st.stx_dev_major != file->stat.stx_dev_major ||
        st.stx_dev_minor != file->stat.stx_dev_minor ||
        weir_file_adopt(copy->engine, fd, file->name, &direct, NULL) < 0) {
        os->ops->close(os, fd);
        return;
    }
    if (align_of(direct) > COPY_ALIGN) {
        weir_file_close(direct);
        return;
    }
    large->direct_align = align_of(direct);
    large->from_direct = direct;
}

/* The copy, direct where that works. */
static int adopt_copy(struct copy_large *large, struct copy_file *file, bool *ret_direct)
{
    struct copy *copy = large->worker->copy;
    const struct wi_os *os = copy->os;
    int rc = -EINVAL;

    *ret_direct = !copy->in_memory && os->ops->fcntl(os, file->copy_fd, F_SETFL, O_DIRECT) == 0;
    if (*ret_direct) {
        /* Adopted, the descriptor is the file's; so look through another one first. */
        int fd = os->ops->fcntl(os, file->copy_fd, F_DUPFD_CLOEXEC, 0);
        struct weir_file *trial = NULL;

        rc = fd < 0 ? fd : weir_file_adopt(copy->engine, fd, file->copy_name, &trial, NULL);
        if (fd >= 0 && rc < 0)
            os->ops->close(os, fd);
        if (rc == 0 && align_of(trial) > COPY_ALIGN)
            rc = -EINVAL; /* our buffers have no blocks that large */
        weir_file_close(trial);
        if (rc == 0)
            rc = weir_file_adopt(copy->engine, file->copy_fd, file->copy_name, &file->copy_file,
                                 NULL);
    }
    if (rc == -EINVAL) {
        if (*ret_direct)
            os->ops->fcntl(os, file->copy_fd, F_SETFL, 0);
        *ret_direct = false;
        rc = weir_file_adopt(copy->engine, file->copy_fd, file->copy_name, &file->copy_file,
                             NULL);
    }
    large->to_align = rc == 0 ? align_of(file->copy_file) : 1;
    return rc;
}

static int reserve_space(struct copy_large *large, struct copy_file *file)
{
    const struct wi_os *os = large->worker->copy->os;
    int rc;

    if (!large->sparse) {
        do {
            rc = os->ops->fallocate(os, file->copy_fd, 0, 0, large->size);
        } while (rc == -EINTR);
        if (rc != -EOPNOTSUPP && rc != -ENOSYS && rc != -EINVAL)
            return rc < 0 ? copy_problem(large->worker, rc, WEIR_OP_ALLOCATE, true) : 0;
    }
    rc = os->ops->ftruncate(os, file->copy_fd, large->size);
    return rc < 0 ? copy_problem(large->worker, rc, WEIR_OP_TRUNCATE, true) : 0;
}

static int write_tail(struct copy_large *large, struct copy_file *file, bool direct)
{
    struct copy_worker *worker = large->worker;
    const struct wi_os *os = worker->copy->os;
    int64_t rc;

    if (large->tail_len == 0)
        return 0;
    if (direct)
        os->ops->fcntl(os, file->copy_fd, F_SETFL, 0);
    rc = copy_write(worker, file->copy_fd, large->tail, large->tail_len, large->tail_offset);
    if (direct)
        os->ops->fcntl(os, file->copy_fd, F_SETFL, O_DIRECT);
    if (rc < 0)
        return copy_problem_at(worker, (int)rc, WEIR_OP_WRITE, true, large->tail_offset, NULL);
    large->moved += large->tail_len;
    copy_add(&worker->copy->bytes_done, large->tail_len);
    return 0;
}

/* ---- the two passes -------------------------------------------------------------------------------- */

static int verify(struct copy_large *large, struct copy_file *file, bool direct)
{
    struct copy *copy = large->worker->copy;
    XXH128_hash_t want = XXH3_128bits_digest(large->hash);
    bool cached = false;
    int rc;

    large->from = file->copy_file;
    large->from_direct = direct ? file->copy_file : NULL;
    large->direct_align = large->to_align;
    large->to = NULL;
    large->at_copy = true;
    large->moved = 0;
    if (!direct) {
        rc = weir_file_sync(file->copy_file, WEIR_SYNC_DATA, NULL);
        if (rc < 0)
            return copy_problem(large->worker, rc, WEIR_OP_FDATASYNC, true);
        cached = !copy_forget_cached(copy, file->copy_fd, large->size);
    }
    copy_add(&copy->verifying, 1);
    rc = run_pass(large);
    atomic_fetch_sub_explicit(&copy->verifying, 1, memory_order_relaxed);
    if (rc < 0)
        return rc;
    if (!XXH128_isEqual(want, XXH3_128bits_digest(large->hash)))
        return copy_problem_text(large->worker, -WEIR_EMISMATCH, 0, true, NULL);
    copy_add(&copy->bytes_done, large->size - large->moved); /* holes */
    copy_verified(copy, large->size, cached);
    return 0;
}

/* Share the source's blocks. False where that cannot be. */
static bool clone_file(struct copy *copy, struct copy_file *file)
{
    int rc;

    if ((copy->flags & WEIR_COPY_VERIFY) || copy_get(&copy->no_clone))
        return false;
    rc = wi_os_clone(copy->os, file->source_fd, file->copy_fd);
    if (rc == -EOPNOTSUPP || rc == -ENOTTY || rc == -ENOSYS || rc == -EXDEV)
        atomic_store_explicit(&copy->no_clone, 1, memory_order_relaxed);
    if (rc < 0)
        return false;
    copy_add(&copy->bytes_done, file->stat.stx_size);
    return true;
}

int copy_large(struct copy_worker *worker, struct copy_file *file)
{
    struct copy *copy = worker->copy;
    struct copy_large *large;
    bool direct;
    int rc;

    if (clone_file(copy, file))
        return 0;
    rc = worker->large ? 0 : create(worker);
    if (rc < 0)
        return copy_problem(worker, rc, 0, true);
    large = worker->large;
    if (!file->source_file) {
        rc = weir_file_adopt(copy->engine, file->source_fd, file->name, &file->source_file,
                             NULL);
        if (rc < 0)
            return copy_problem(worker, rc, WEIR_OP_OPEN, false);
    }
    rc = adopt_copy(large, file, &direct);
    if (rc < 0)
        return copy_problem(worker, rc, WEIR_OP_OPEN, true);

    large->file = file;
    large->from = file->source_file;
    large->from_direct = NULL;
    large->to = file->copy_file;
    large->size = file->stat.stx_size;
    large->sparse = file->stat.stx_blocks < file->stat.stx_size / 512;
    large->hashing = (copy->flags & WEIR_COPY_VERIFY) != 0;
    large->at_copy = false;
    large->tail_len = 0;
    large->moved = 0;
    rc = reserve_space(large, file);
    if (rc == 0) {
        open_direct_source(large);
        rc = run_pass(large);
        weir_file_close(large->from_direct);
    }
    if (rc == 0)
        rc = write_tail(large, file, direct);
    if (rc == 0)
        copy_add(&copy->bytes_done, large->size - large->moved); /* holes */
    if (rc == 0 && large->hashing)
        rc = verify(large, file, direct);
    return rc;
}
