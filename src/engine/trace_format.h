/* SPDX-License-Identifier: MIT */
/*
 * trace_format.h - the bytes of a trace file; docs/formats/trace.md explains them
 */
#ifndef WEIR_ENGINE_TRACE_FORMAT_H
#define WEIR_ENGINE_TRACE_FORMAT_H

#include "base/crc32c.h"
#include "base/le.h"

#define TRACE_MAGIC       "\x89WTR\r\n\x1a\n"
#define TRACE_BLOCK_MAGIC 0x425457f7u /* F7 'W' 'T' 'B' */
#define TRACE_MAJOR       1
#define TRACE_ID_BYTES    16
#define TRACE_PAYLOAD_MAX (1u << 20)
#define TRACE_PATH_MAX    4096u

enum trace_header_at {
    HEADER_MAGIC = 0,
    HEADER_MAJOR = 8,
    HEADER_MINOR = 10,
    HEADER_SIZE = 12,
    HEADER_ID = 16,
    HEADER_REAL = 32,
    HEADER_MONOTONIC = 40,
    HEADER_COMPAT = 48,
    HEADER_RO_COMPAT = 52,
    HEADER_INCOMPAT = 56,
    HEADER_RECORD_SIZE = 60,
    HEADER_VERSION = 64,
    HEADER_BACKEND = 96,
    HEADER_ZERO = 112,
    HEADER_CRC = 124,
    HEADER_BYTES = 128
};
_Static_assert(HEADER_ID + TRACE_ID_BYTES == HEADER_REAL, "header");
_Static_assert(HEADER_CRC + 4 == HEADER_BYTES, "header");

enum trace_block_at {
    BLOCK_MAGIC = 0,
    BLOCK_KIND = 4,
    BLOCK_LEN = 8,
    BLOCK_COUNT = 12,
    BLOCK_NUMBER = 16,
    BLOCK_PAYLOAD_CRC = 24,
    BLOCK_CRC = 28,
    BLOCK_BYTES = 32
};
_Static_assert(BLOCK_CRC + 4 == BLOCK_BYTES, "block");

enum trace_kind {
    TRACE_NAMES = 1,
    TRACE_RECORDS = 2,
    TRACE_END = 3,
    TRACE_SKIP_FROM = 128 /* from here on: skip what is not known */
};

enum trace_name_at {
    NAME_NUMBER = 0,
    NAME_FLAGS = 4,
    NAME_LEN = 8,
    NAME_PATH = 12
};

enum trace_record_at {
    RECORD_SUBMIT = 0,
    RECORD_WAIT = 8,
    RECORD_DEVICE = 16,
    RECORD_ID = 24,
    RECORD_OFFSET = 32,
    RECORD_LEN = 40,
    RECORD_RESULT = 48,
    RECORD_FILE = 56,
    RECORD_OP = 60,
    RECORD_CLASS = 61,
    RECORD_FLAGS = 62,
    RECORD_ZERO = 63,
    RECORD_BYTES = 64
};
_Static_assert(RECORD_FILE == RECORD_RESULT + 8 && RECORD_ZERO + 1 == RECORD_BYTES, "record");

enum trace_end_at {
    END_RECORDS = 0,
    END_DROPPED = 8,
    END_ENDED = 16,
    END_ZERO = 24,
    END_BYTES = 32
};

/* The checksum of a block's header, which binds it to its file and its place there. */
static inline uint32_t wi_trace_block_crc(const unsigned char id[TRACE_ID_BYTES], uint64_t at,
                                          const unsigned char *block)
{
    unsigned char place[8];
    uint32_t crc = wi_crc32c(0, id, TRACE_ID_BYTES);

    wi_put_le64(place, at);
    crc = wi_crc32c(crc, place, sizeof(place));
    return wi_crc32c(crc, block, BLOCK_CRC);
}

#endif
