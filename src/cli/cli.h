/* SPDX-License-Identifier: MIT */
/*
 * cli.h - the verbs of the program `weir`, and what they share
 *
 *   main.c      the table of verbs, --help, --version
 *   copy.c      weir copy
 *   info.c      weir info; info_path.c: what a path's file system can do
 *   bench.c     weir bench, with bench_*.c
 *   trace.c     weir trace, with trace_*.c
 *   progress.c  the line that shows how far a copy is
 *   text.c      numbers, names, messages
 *
 * A verb takes its own arguments, argv[0] being the verb, and returns the exit status:
 * 0 done, 1 something failed, 2 wrong usage, 130 interrupted.
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <weir/weir.h>

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_INTERRUPTED = 130
};

int cli_bench(int argc, char **argv);
int cli_copy(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_trace(int argc, char **argv);

/* ---- text.c ------------------------------------------------------------------------------- */

/* Room for what the functions below write; each returns its `buf`. */
#define CLI_TEXT 40

/* "5,432"; 28 bytes are enough */
const char *cli_count(char *buf, uint64_t count);
/* "214.3 MB"; decimal, as disks and networks are sold */
const char *cli_bytes(char buf[CLI_TEXT], uint64_t bytes);
/* "12 us", "3.4 ms", "1.25 s" */
const char *cli_span(char buf[CLI_TEXT], uint64_t ns);
/* "1 file", "2 files" with the number as cli_count writes it */
const char *cli_things(char buf[CLI_TEXT], uint64_t count, const char *one, const char *many);

/* A name for people: control characters and what is no UTF-8 are escaped. Cut off with "..."
 * where it is longer than `buf`. */
const char *cli_name(char *buf, size_t size, const char *name);
/* A string for JSON, quotes and all. What is no UTF-8 becomes U+FFFD. */
void cli_json_string(FILE *to, const char *text);

/* "weir VERB: " and the text, on standard error. */
void cli_say(const char *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for wrong usage, with a line that leads to the help. Returns CLI_USAGE. */
int cli_wrong_usage(const char *verb, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* "auto", "uring", "threads", "null" to WEIR_BACKEND_*; -1 if it is none. */
int cli_backend(const char *name);
/* Open an engine that logs as WEIR_LOG says. NULL, after telling why, if it does not work. */
struct weir_engine *cli_engine_open(const char *verb, uint32_t backend);
/* Holds at most so many descriptors of files open; see weir_engine_options. */
struct weir_engine *cli_engine_open_with(const char *verb, uint32_t backend,
                                         uint32_t open_files);
/* End the output. Returns `status`, or CLI_FAILED after telling that it could not be written. */
int cli_end(const char *verb, int status);

/* ---- progress.c ---------------------------------------------------------------------------- */

/* One line on a terminal, rewritten in place. */
struct cli_progress {
    bool shown; /* something is on the line */
    bool colour;
    bool enabled;
    uint64_t smooth_bytes; /* a second */
    uint64_t last_ns;
    uint64_t last_bytes;
};

/* Enabled if standard error is a terminal that can move its cursor. */
void cli_progress_init(struct cli_progress *progress, bool wanted);
void cli_progress_show(struct cli_progress *progress, const struct weir_copy_progress *now);
void cli_progress_clear(struct cli_progress *progress);

/* Write the line for a terminal of `width` columns; for tests too. Returns its length. */
int cli_progress_line(char *buf, size_t size, unsigned width, uint64_t bytes_per_s,
                      const struct weir_copy_progress *now);

#endif
