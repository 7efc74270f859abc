/* SPDX-License-Identifier: MIT */
/*
 * base.h - what every other header uses: version, errors, logging
 *
 * Errors. A function that can fail returns an int or int64_t: zero or a count if
 * it worked, else a negative code. Codes are negative errno values, or one of
 * enum weir_code below, which start beyond errno's range. weir_code_text()
 * explains both. Details go into a `struct weir_error` of the caller's, if one
 * was given; it is written only on failure.
 */
#ifndef WEIR_BASE_H
#define WEIR_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WEIR_API __attribute__((visibility("default")))
#else
#define WEIR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define WEIR_VERSION_MAJOR 0
#define WEIR_VERSION_MINOR 1
#define WEIR_VERSION_PATCH 0
#define WEIR_VERSION       "0.1.0"

/* The version of the library that is running, such as "0.1.0". Inside; never freed.
 * Thread: any. Blocks: never. */
WEIR_API const char *weir_version(void);

/* Our own codes. Functions return them negated: -WEIR_ECORRUPT. */
enum weir_code {
    WEIR_ECODE_FIRST = 10000,
    WEIR_ECORRUPT = 10001,   /* stored bytes fail their checksum */
    WEIR_ETRUNCATED = 10002, /* a file ends before its format says it may */
    WEIR_EVERSION = 10003,   /* written by a newer release */
    WEIR_ECHANGED = 10004,   /* a file changed while it was read */
    WEIR_EMISMATCH = 10005   /* a copy differs from its source */
};

/* "EIO", "WEIR_ECORRUPT"; "E?" for a code nobody knows. Takes -EIO and EIO alike.
 * Inside; never freed. Thread: any. Blocks: never. */
WEIR_API const char *weir_code_name(int64_t code);

/* One sentence without a full stop: "no space left on device".
 * Inside; never freed. Thread: any. Blocks: never. */
WEIR_API const char *weir_code_text(int64_t code);

/*
 * What failed, where and why. Plain memory of the caller's; borrowed as long as
 * the call or job that was given it.
 */
struct weir_error {
    int32_t code;    /* negative; 0 while nothing failed */
    uint32_t op;     /* enum weir_op that failed; 0 if it was none */
    uint64_t job_id; /* the job's id; 0 for a blocking call */
    uint64_t offset; /* where in the file, if `has_offset` */
    uint64_t length; /* bytes asked for */
    uint32_t has_offset;
    uint32_t reserved;
    char path[256]; /* the file's name, its end if it is longer; may be empty */
    char text[216]; /* the reason and, if we know one, the cure */
};

/*
 * Write the error as one line: "read of data.bin at 4096: input/output error (EIO)".
 * Bytes of the name that are control characters or not UTF-8 appear escaped.
 * Returns the length it wanted, as snprintf does.
 * Thread: any. Blocks: never.
 */
WEIR_API int weir_error_format(const struct weir_error *error, char *buf, size_t size);

/* Levels of the log callback. */
enum weir_log_level {
    WEIR_LOG_ERROR = 1,
    WEIR_LOG_WARNING = 2,
    WEIR_LOG_INFO = 3,
    WEIR_LOG_DEBUG = 4
};

/* Called with one line, no newline, from any thread, with no lock held. The text is
 * borrowed until it returns. It must not call into the engine it was given to. */
typedef void (*weir_log_fn)(void *arg, int level, const char *text);

#ifdef __cplusplus
}
#endif
#endif
