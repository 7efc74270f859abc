/* SPDX-License-Identifier: MIT */
/*
 * text.c - numbers, names, messages
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* ---- numbers ---------------------------------------------------------------------------- */

const char *cli_count(char *buf, uint64_t count)
{
    char digits[24];
    size_t len = (size_t)snprintf(digits, sizeof(digits), "%" PRIu64, count);
    char *at = buf;

    for (size_t i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = '\0';
    return buf;
}

const char *cli_things(char buf[CLI_TEXT], uint64_t count, const char *one, const char *many)
{
    char number[28];

    snprintf(buf, CLI_TEXT, "%s %s", cli_count(number, count), count == 1 ? one : many);
    return buf;
}

/* Three digits or so: 1.23, 12.3, 123. */
static void scaled(char buf[CLI_TEXT], double value, const char *unit)
{
    int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;

    snprintf(buf, CLI_TEXT, "%.*f %s", decimals, value, unit);
}

const char *cli_bytes(char buf[CLI_TEXT], uint64_t bytes)
{
    static const char *const units[] = { "kB", "MB", "GB", "TB", "PB", "EB" };
    double value = (double)bytes / 1e3;
    size_t unit = 0;

    if (bytes < 1000) {
        snprintf(buf, CLI_TEXT, "%" PRIu64 " B", bytes);
        return buf;
    }
    while (value >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1e3;
        unit++;
    }
    scaled(buf, value, units[unit]);
    return buf;
}

const char *cli_span(char buf[CLI_TEXT], uint64_t ns)
{
    double us = (double)ns / 1e3;

    if (us < 999.5)
        scaled(buf, us, "us");
    else if (us < 999.5e3)
        scaled(buf, us / 1e3, "ms");
    else
        scaled(buf, us / 1e6, "s");
    return buf;
}

/* ---- names -------------------------------------------------------------------------------- */

/* The length of the UTF-8 character that `text` begins with; 0 if it is none: cut short, too
 * long a form, a surrogate, or beyond U+10FFFF. */
static size_t utf8_length(const unsigned char *text)
{
    unsigned char first = text[0];
    unsigned char low = 0x80;
    unsigned char high = 0xbf;
    size_t len;

    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    len = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (first == 0xe0)
        low = 0xa0;
    if (first == 0xed)
        high = 0x9f;
    if (first == 0xf0)
        low = 0x90;
    if (first == 0xf4)
        high = 0x8f;
    if (text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

/* C0, DEL and C1: what a terminal obeys instead of showing it. */
static bool is_control(const unsigned char *text, size_t len)
{
    return text[0] < 0x20 || text[0] == 0x7f || (len == 2 && text[0] == 0xc2 && text[1] < 0xa0);
}

/* The first character of `*from` as it may be shown, its length returned; moves on. */
static size_t shown_piece(const unsigned char **from, char piece[8])
{
    const unsigned char *text = *from;
    size_t len = utf8_length(text);

    if (len > 0 && !is_control(text, len)) {
        memcpy(piece, text, len);
        *from += len;
        return len;
    }
    *from += 1;
    if (*text == '\n' || *text == '\t')
        return (size_t)snprintf(piece, 8, "%s", *text == '\n' ? "\\n" : "\\t");
    return (size_t)snprintf(piece, 8, "\\x%02x", (unsigned)*text);
}

const char *cli_name(char *buf, size_t size, const char *name)
{
    const unsigned char *from = (const unsigned char *)name;
    size_t used = 0;
    size_t cut = 0; /* the last place from which "..." fits */

    while (*from) {
        char piece[8];
        size_t len = shown_piece(&from, piece);

        if (used + 4 <= size)
            cut = used;
        if (used + len + 1 > size) {
            used = cut;
            for (unsigned i = 0; i < 3 && used + 1 < size; i++)
                buf[used++] = '.';
            break;
        }
        memcpy(buf + used, piece, len);
        used += len;
    }
    buf[used] = '\0';
    return buf;
}

void cli_json_string(FILE *to, const char *text)
{
    const unsigned char *from = (const unsigned char *)text;

    fputc('"', to);
    while (*from) {
        size_t len = utf8_length(from);

        if (len == 0) {
            fputs("\\ufffd", to);
            from++;
        } else if (*from == '"' || *from == '\\') {
            fprintf(to, "\\%c", *from++);
        } else if (is_control(from, len)) {
            fprintf(to, "\\u%04x", len == 2 ? (unsigned)from[1] : (unsigned)from[0]);
            from += len;
        } else {
            (void)fwrite(from, 1, len, to);
            from += len;
        }
    }
    fputc('"', to);
}

/* ---- messages -------------------------------------------------------------------------------- */

void cli_say(const char *verb, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "weir%s%s: ", verb ? " " : "", verb ? verb : "");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

int cli_wrong_usage(const char *verb, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "weir%s%s: ", verb ? " " : "", verb ? verb : "");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry 'weir%s%s --help'.\n", verb ? " " : "", verb ? verb : "");
    va_end(args);
    return CLI_USAGE;
}

int cli_end(const char *verb, int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    if (errno != EPIPE) /* a reader that has seen enough needs no message */
        cli_say(verb, "the output could not be written: %s", strerror(errno));
    return status == CLI_DONE ? CLI_FAILED : status;
}

/* ---- the engine -------------------------------------------------------------------------------- */

int cli_backend(const char *name)
{
    static const char *const names[] = { "auto", "uring", "threads", "null" };

    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

static const char *const levels[] = { "", "error", "warning", "info", "debug" };

static void write_log(void *arg, int level, const char *text)
{
    const int *highest = arg;

    if (level >= WEIR_LOG_ERROR && level <= *highest)
        fprintf(stderr, "weir: %s: %s\n", levels[level], text);
}

/* What WEIR_LOG asks for; errors where it asks for nothing. */
static int log_level(const char *verb)
{
    const char *wanted = getenv("WEIR_LOG");

    if (!wanted || !wanted[0])
        return WEIR_LOG_ERROR;
    for (int level = WEIR_LOG_ERROR; level <= WEIR_LOG_DEBUG; level++)
        if (strcmp(wanted, levels[level]) == 0)
            return level;
    cli_say(verb, "WEIR_LOG=%s: not a level; it is error, warning, info or debug", wanted);
    return WEIR_LOG_ERROR;
}

struct weir_engine *cli_engine_open(const char *verb, uint32_t backend)
{
    return cli_engine_open_with(verb, backend, 0);
}

struct weir_engine *cli_engine_open_with(const char *verb, uint32_t backend,
                                         uint32_t open_files)
{
    static int level; /* the engine keeps a pointer to it */
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = backend,
                                           .open_files = open_files,
                                           .log = write_log,
                                           .log_arg = &level };
    struct weir_engine *engine = NULL;
    struct weir_error error;
    char text[512];
    int rc;

    level = log_level(verb);
    rc = weir_engine_open(&options, &engine, &error);
    if (rc < 0) {
        weir_error_format(&error, text, sizeof(text));
        cli_say(verb, "the engine does not start: %s", text);
        return NULL;
    }
    return engine;
}
