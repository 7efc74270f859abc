/* SPDX-License-Identifier: MIT */
/*
 * trace_read.c - read what trace.c has written, whatever has become of it since
 *
 * A block is taken in two steps: its header, which is checked before anything in it is believed,
 * and then its payload, which is checked before anything in it is looked at. What is allocated is
 * bounded by what was really read: one payload, and the names.
 * An error of reading is never taken for damage or for the end: it is told as it is, and the next
 * call tries again at the same place.
 */
#include "trace_read.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "engine.h"
#include "trace_format.h"

struct name {
    uint32_t number;
    uint32_t open_flags;
    char *path;
};

struct weir_trace_reader {
    const struct wi_os *os;
    char *path;
    int fd;
    uint64_t at;     /* of the next block */
    uint64_t blocks; /* read so far */
    bool ended;      /* nothing more is to be had */
    bool damaged;    /* something was lost */
    bool complete;

    unsigned char header[HEADER_BYTES];
    char version[HEADER_BACKEND - HEADER_VERSION + 1];
    char backend[HEADER_ZERO - HEADER_BACKEND + 1];

    struct name *names; /* by rising number */
    size_t names_count;
    size_t names_room;

    /* Records that were checked and not handed out. */
    unsigned char *payload;
    uint32_t next;
    uint32_t count;

    uint64_t records;
    uint64_t lost;
    uint64_t dropped;
    uint64_t ended_ns;
};

/* Fill `buf`; fewer only at the end of the file. Returns how many, or a negative code. */
static int64_t read_at(struct weir_trace_reader *reader, void *buf, size_t len, uint64_t offset)
{
    const struct wi_os *os = reader->os;
    size_t done = 0;
    uint32_t tries = 0;

    while (done < len) {
        int64_t n =
            os->ops->pread(os, reader->fd, (char *)buf + done, len - done, offset + done);

        if (n == 0)
            break;
        if (n > 0) {
            done += (size_t)n;
            tries = 0;
        } else {
            struct retry_verdict verdict = wi_retry_verdict(WEIR_OP_READ, n, tries++);

            if (verdict.action == RETRY_NEVER)
                return verdict.code;
            if (verdict.action == RETRY_LATER)
                os->ops->sleep_ns(os, verdict.delay_ns);
        }
    }
    return (int64_t)done;
}

static int tell(struct weir_trace_reader *reader, struct weir_error *error, int code,
                const char *text)
{
    reader->damaged = reader->damaged || code == -WEIR_ECORRUPT;
    wi_error_set(error, code, WEIR_OP_READ, reader->path, text ? "%s" : NULL, text);
    if (error) {
        error->offset = reader->at;
        error->has_offset = 1;
    }
    return code;
}

/* The same, and nothing follows. */
static int end(struct weir_trace_reader *reader, struct weir_error *error, int code,
               const char *text)
{
    reader->ended = true;
    return tell(reader, error, code, text);
}

/* ---- the header --------------------------------------------------------------------------- */

static int read_header(struct weir_trace_reader *reader, struct weir_error *error)
{
    unsigned char *header = reader->header;
    int64_t n = read_at(reader, header, HEADER_BYTES, 0);
    size_t magic_len = sizeof(TRACE_MAGIC) - 1;

    if (n < 0)
        return tell(reader, error, (int)n, NULL);
    if ((size_t)n < magic_len || memcmp(header, TRACE_MAGIC, magic_len) != 0)
        return tell(reader, error, -WEIR_ECORRUPT, "it is no trace: it begins otherwise");
    if (n < HEADER_BYTES)
        return tell(reader, error, -WEIR_ETRUNCATED, "the file ends within its header");
    if (wi_get_le32(header + HEADER_CRC) != wi_crc32c(0, header, HEADER_CRC))
        return tell(reader, error, -WEIR_ECORRUPT, "the header fails its checksum");
    if (wi_get_le16(header + HEADER_MAJOR) != TRACE_MAJOR ||
        wi_get_le32(header + HEADER_INCOMPAT) != 0 ||
        wi_get_le32(header + HEADER_SIZE) != HEADER_BYTES ||
        wi_get_le32(header + HEADER_RECORD_SIZE) != RECORD_BYTES)
        return tell(reader, error, -WEIR_EVERSION,
                    "the trace was written by a newer release: read it with that");
    memcpy(reader->version, header + HEADER_VERSION, sizeof(reader->version) - 1);
    memcpy(reader->backend, header + HEADER_BACKEND, sizeof(reader->backend) - 1);
    reader->at = HEADER_BYTES;
    return 0;
}

int wi_trace_reader_open(const struct wi_os *os, const char *path,
                         struct weir_trace_reader **ret_reader, struct weir_error *error)
{
    struct weir_trace_reader *reader = calloc(1, sizeof(*reader));
    int rc;

    if (!reader)
        return wi_error_set(error, -ENOMEM, 0, path, NULL);
    reader->os = os;
    reader->fd = -1;
    reader->path = strdup(path);
    reader->payload = malloc(TRACE_PAYLOAD_MAX);
    if (!reader->path || !reader->payload) {
        rc = wi_error_set(error, -ENOMEM, 0, path, NULL);
        goto fail;
    }
    reader->fd = os->ops->openat(os, AT_FDCWD, path, O_RDONLY | O_NOCTTY, 0);
    if (reader->fd < 0) {
        rc = wi_error_set(error, reader->fd, WEIR_OP_OPEN, path, NULL);
        goto fail;
    }
    rc = read_header(reader, error);
    if (rc < 0)
        goto fail;
    *ret_reader = reader;
    return 0;

fail:
    weir_trace_reader_close(reader);
    return rc;
}

int weir_trace_reader_open(const char *path, struct weir_trace_reader **ret_reader,
                           struct weir_error *error)
{
    if (!path || !ret_reader)
        return wi_error_set(error, -EINVAL, 0, path, "an argument is missing");
    return wi_trace_reader_open(wi_os_posix(), path, ret_reader, error);
}

void weir_trace_reader_close(struct weir_trace_reader *reader)
{
    if (!reader)
        return;
    if (reader->fd >= 0)
        reader->os->ops->close(reader->os, reader->fd);
    for (size_t i = 0; i < reader->names_count; i++)
        free(reader->names[i].path);
    free(reader->names);
    free(reader->payload);
    free(reader->path);
    free(reader);
}

/* ---- blocks: the payload has passed its checksum -------------------------------------------- */

/* Returns 0, -ENOMEM or -WEIR_ECORRUPT. */
static int add_name(struct weir_trace_reader *reader, uint32_t number, uint32_t open_flags,
                    const unsigned char *path, uint32_t len)
{
    struct name *name;

    if (number == 0 ||
        (reader->names_count > 0 && number <= reader->names[reader->names_count - 1].number))
        return -WEIR_ECORRUPT;
    if (reader->names_count == reader->names_room) {
        size_t room = reader->names_room ? 2 * reader->names_room : 64;
        struct name *names = realloc(reader->names, room * sizeof(*names));

        if (!names)
            return -ENOMEM;
        reader->names = names;
        reader->names_room = room;
    }
    name = &reader->names[reader->names_count];
    name->number = number;
    name->open_flags = open_flags;
    name->path = strndup((const char *)path, len);
    if (!name->path)
        return -ENOMEM;
    reader->names_count++;
    return 0;
}

static int take_names(struct weir_trace_reader *reader, uint32_t len, uint32_t count)
{
    const unsigned char *at = reader->payload;
    const unsigned char *stop = at + len;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t path_len;
        int rc;

        if ((size_t)(stop - at) < NAME_PATH)
            return -WEIR_ECORRUPT;
        path_len = wi_get_le32(at + NAME_LEN);
        if (path_len > TRACE_PATH_MAX || (size_t)(stop - at) - NAME_PATH < path_len)
            return -WEIR_ECORRUPT;
        rc = add_name(reader, wi_get_le32(at + NAME_NUMBER), wi_get_le32(at + NAME_FLAGS),
                      at + NAME_PATH, path_len);
        if (rc < 0)
            return rc;
        at += NAME_PATH + path_len;
    }
    return at == stop ? 0 : -WEIR_ECORRUPT;
}

static int take_end(struct weir_trace_reader *reader, uint32_t len, struct weir_error *error)
{
    unsigned char byte;
    int64_t n;

    if (len != END_BYTES)
        return end(reader, error, -WEIR_ECORRUPT, "the end block has another size");
    n = read_at(reader, &byte, 1, reader->at);
    if (n < 0) {
        reader->at -= BLOCK_BYTES + END_BYTES; /* the next call begins with this block again */
        reader->blocks--;
        return tell(reader, error, (int)n, NULL);
    }
    reader->dropped = wi_get_le64(reader->payload + END_DROPPED);
    reader->ended_ns = wi_get_le64(reader->payload + END_ENDED);
    if (n != 0)
        return end(reader, error, -WEIR_ECORRUPT, "there are bytes behind the end");
    if (wi_get_le64(reader->payload + END_RECORDS) != reader->records + reader->lost)
        return end(reader, error, -WEIR_ECORRUPT,
                   "the end counts other records than there are");
    reader->ended = true;
    reader->complete = !reader->damaged;
    return 0;
}

/*
 * Read the next block, and act on it. Returns 0 or a negative code. Where something was lost and
 * more may follow, `at` is behind the loss; where reading failed, it is unchanged.
 */
static int next_block(struct weir_trace_reader *reader, struct weir_error *error)
{
    unsigned char block[BLOCK_BYTES];
    int64_t n = read_at(reader, block, sizeof(block), reader->at);
    uint64_t start = reader->at;
    uint32_t len;
    uint32_t count;
    int rc = 0;

    if (n < 0)
        return tell(reader, error, (int)n, NULL);
    if (n < BLOCK_BYTES)
        return end(
            reader, error, -WEIR_ETRUNCATED,
            "the trace has no end: its program stopped without ending it, or runs still");
    if (wi_get_le32(block + BLOCK_MAGIC) != TRACE_BLOCK_MAGIC ||
        wi_get_le32(block + BLOCK_CRC) !=
            wi_trace_block_crc(reader->header + HEADER_ID, start, block))
        return end(reader, error, -WEIR_ECORRUPT,
                   "the header of a block fails its checksum; what follows cannot be read");
    len = wi_get_le32(block + BLOCK_LEN);
    count = wi_get_le32(block + BLOCK_COUNT);
    if (len > TRACE_PAYLOAD_MAX || wi_get_le64(block + BLOCK_NUMBER) != reader->blocks)
        return end(reader, error, -WEIR_ECORRUPT, "a block is too long, or not in its place");
    if (block[BLOCK_KIND] < TRACE_SKIP_FROM &&
        (block[BLOCK_KIND] < TRACE_NAMES || block[BLOCK_KIND] > TRACE_END))
        return end(reader, error, -WEIR_EVERSION,
                   "what follows was written by a newer release: read it with that");
    if (block[BLOCK_KIND] == TRACE_RECORDS && len != (uint64_t)count * RECORD_BYTES)
        return end(reader, error, -WEIR_ECORRUPT, "a block of records has another size");

    n = read_at(reader, reader->payload, len, start + BLOCK_BYTES);
    if (n < 0)
        return tell(reader, error, (int)n, NULL);
    if (n < len)
        return end(reader, error, -WEIR_ETRUNCATED,
                   "the trace ends within a block: its program stopped without ending it, or "
                   "runs still");
    if (wi_crc32c(0, reader->payload, len) != wi_get_le32(block + BLOCK_PAYLOAD_CRC)) {
        tell(reader, error, -WEIR_ECORRUPT, "a block fails its checksum");
        rc = -WEIR_ECORRUPT;
    }
    reader->at = start + BLOCK_BYTES + len;
    reader->blocks++;
    if (rc < 0) {
        if (block[BLOCK_KIND] == TRACE_RECORDS)
            reader->lost += count;
        reader->ended = block[BLOCK_KIND] == TRACE_END;
        return rc;
    }
    switch (block[BLOCK_KIND]) {
    case TRACE_NAMES:
        rc = take_names(reader, len, count);
        return rc < 0 ? tell(reader, error, rc, NULL) : 0;
    case TRACE_RECORDS:
        reader->next = 0;
        reader->count = count;
        return 0;
    case TRACE_END:
        return take_end(reader, len, error);
    default:
        return 0;
    }
}

/* ---- records -------------------------------------------------------------------------------- */

static const struct name *find_name(const struct weir_trace_reader *reader, uint32_t number)
{
    size_t low = 0;
    size_t high = reader->names_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (reader->names[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low < reader->names_count && reader->names[low].number == number
               ? &reader->names[low]
               : NULL;
}

static void get_record(const struct weir_trace_reader *reader, const unsigned char *record,
                       struct weir_trace_record *ret)
{
    uint64_t id = wi_get_le64(record + RECORD_ID);
    const struct name *name;

    *ret = (struct weir_trace_record){
        .submit_ns = (int64_t)wi_get_le64(record + RECORD_SUBMIT),
        .wait_ns = wi_get_le64(record + RECORD_WAIT),
        .device_ns = wi_get_le64(record + RECORD_DEVICE),
        .offset = wi_get_le64(record + RECORD_OFFSET),
        .len = wi_get_le64(record + RECORD_LEN),
        .result = (int64_t)wi_get_le64(record + RECORD_RESULT),
        .file = wi_get_le32(record + RECORD_FILE),
        .flags = record[RECORD_FLAGS],
        .op = record[RECORD_OP],
        .io_class = record[RECORD_CLASS],
    };
    if (ret->flags & WEIR_TRACE_BLOCKING) {
        ret->thread = (uint32_t)id;
    } else {
        ret->id = id;
        ret->queue = (uint32_t)(id >> 52);
    }
    name = ret->file ? find_name(reader, ret->file) : NULL;
    if (name) {
        ret->path = name->path;
        ret->open_flags = name->open_flags;
    }
}

int weir_trace_reader_next(struct weir_trace_reader *reader,
                           struct weir_trace_record *ret_record, struct weir_error *error)
{
    if (!reader || !ret_record)
        return wi_error_set(error, -EINVAL, 0, NULL, "an argument is missing");
    while (reader->next == reader->count) {
        int rc;

        if (reader->ended)
            return 0;
        rc = next_block(reader, error);
        if (rc < 0)
            return rc;
    }
    get_record(reader, reader->payload + (size_t)reader->next++ * RECORD_BYTES, ret_record);
    reader->records++;
    return 1;
}

int weir_trace_reader_info(const struct weir_trace_reader *reader, struct weir_trace_info *info)
{
    struct weir_trace_info full = { 0 };

    if (!reader || !info || info->size < sizeof(info->size))
        return -EINVAL;
    full.size = info->size;
    full.started_ns = (int64_t)wi_get_le64(reader->header + HEADER_REAL);
    full.version = reader->version;
    full.backend = reader->backend;
    full.file_bytes = reader->at;
    full.records = reader->records;
    full.lost = reader->lost;
    full.dropped = reader->dropped;
    full.ended_ns = reader->ended_ns;
    full.complete = reader->complete;
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return 0;
}
