/* SPDX-License-Identifier: MIT */
/*
 * progress.c - the line that shows how far a copy is
 *
 *   [=========>          ]  43 %  1.20 GB of 2.80 GB  312 of 5,000 files  812 MB/s  2 s left
 *
 * Parts are left out from the right until it fits the terminal; the bar shrinks first. It is
 * written to standard error in one piece, from the start of the line, and cleared at the end.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli.h"

#define BAR_MAX   40u
#define BAR_MIN   8u
#define SECOND_NS UINT64_C(1000000000)

void cli_progress_init(struct cli_progress *progress, bool wanted)
{
    const char *term = getenv("TERM");
    const char *no_colour = getenv("NO_COLOR");

    memset(progress, 0, sizeof(*progress));
    progress->enabled = wanted && isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    progress->colour = !no_colour || !no_colour[0];
}

static void left_text(char buf[CLI_TEXT], uint64_t seconds)
{
    if (seconds >= 3600)
        snprintf(buf, CLI_TEXT, "%lu:%02lu h left", (unsigned long)(seconds / 3600),
                 (unsigned long)(seconds / 60 % 60));
    else if (seconds >= 60)
        snprintf(buf, CLI_TEXT, "%lu:%02lu min left", (unsigned long)(seconds / 60),
                 (unsigned long)(seconds % 60));
    else
        snprintf(buf, CLI_TEXT, "%lu s left", (unsigned long)seconds);
}

int cli_progress_line(char *buf, size_t size, unsigned width, uint64_t bytes_per_s,
                      const struct weir_copy_progress *now)
{
    /* The parts, the most important first; how many fit is found by trying. */
    char parts[5][3 * CLI_TEXT];
    char done[CLI_TEXT];
    char total[CLI_TEXT];
    size_t used = 0;
    unsigned fit = 0;
    unsigned bar;
    uint64_t whole = now->bytes_total ? now->bytes_total : 1;
    uint64_t part = now->bytes_done < whole ? now->bytes_done : whole;
    unsigned percent = (unsigned)((double)part * 100 / (double)whole);

    snprintf(parts[0], sizeof(parts[0]), "%3u %%", percent);
    snprintf(parts[1], sizeof(parts[1]), "%s of %s%s", cli_bytes(done, now->bytes_done),
             now->listing ? "at least " : "", cli_bytes(total, now->bytes_total));
    snprintf(parts[2], sizeof(parts[2]), "%s/s", cli_bytes(done, bytes_per_s));
    if (bytes_per_s > 0 && !now->listing)
        left_text(parts[3], (whole - part + bytes_per_s - 1) / bytes_per_s);
    else
        snprintf(parts[3], sizeof(parts[3]), "%s", now->listing ? "listing" : "");
    snprintf(parts[4], sizeof(parts[4]), "%s of %s%s", cli_count(done, now->files_done),
             cli_things(total, now->files_total, "file", "files"),
             now->verifying ? ", verifying" : "");

    if (size > 0)
        buf[0] = '\0';
    /* A column stays free: some terminals wrap when the last one is written. */
    while (fit < 5 && used + strlen(parts[fit]) + 2 < width) {
        used += strlen(parts[fit]) + 2;
        fit++;
    }
    if (fit == 0)
        return 0;
    bar = width > used + BAR_MIN + 3 ? width - (unsigned)used - 3 : 0;
    if (bar > BAR_MAX)
        bar = BAR_MAX;

    used = 0;
    if (bar > 0) {
        unsigned full = (unsigned)((double)part * bar / (double)whole);
        char drawn[BAR_MAX + 1];

        memset(drawn, ' ', bar);
        memset(drawn, '=', full);
        if (full < bar)
            drawn[full] = '>';
        drawn[bar] = '\0';
        used += (size_t)snprintf(buf, size, "[%s] ", drawn);
    }
    for (unsigned i = 0; i < fit && used < size; i++)
        if (parts[i][0])
            used += (size_t)snprintf(buf + used, size - used, "%s%s", i ? "  " : "", parts[i]);
    return (int)used;
}

/* The rate of the last seconds rather than of all: a copy of files of all sizes is uneven. */
static uint64_t smooth_rate(struct cli_progress *progress, const struct weir_copy_progress *now)
{
    uint64_t span = now->elapsed_ns - progress->last_ns;
    double weight;
    double rate;

    if (span == 0)
        return progress->smooth_bytes;
    rate = (double)(now->bytes_done - progress->last_bytes) * 1e9 / (double)span;
    weight = progress->last_ns == 0 ? 1.0 : (double)span / (double)(3 * SECOND_NS);
    if (weight > 1.0)
        weight = 1.0;
    progress->smooth_bytes =
        (uint64_t)((double)progress->smooth_bytes * (1.0 - weight) + rate * weight);
    progress->last_ns = now->elapsed_ns;
    progress->last_bytes = now->bytes_done;
    return progress->smooth_bytes;
}

static void put(const char *text, size_t len)
{
    /* A terminal that has gone is no reason to end a copy. */
    if (write(STDERR_FILENO, text, len) < 0)
        return;
}

void cli_progress_show(struct cli_progress *progress, const struct weir_copy_progress *now)
{
    struct winsize window;
    unsigned width = 80;
    char line[256];
    char all[320];
    int len;

    if (!progress->enabled)
        return;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0)
        width = window.ws_col;
    cli_progress_line(line, sizeof(line), width, smooth_rate(progress, now), now);
    len = snprintf(all, sizeof(all), "\r%s%s%s\033[K", progress->colour ? "\033[32m" : "", line,
                   progress->colour ? "\033[0m" : "");
    if (len > 0 && (size_t)len < sizeof(all))
        put(all, (size_t)len);
    progress->shown = true;
}

void cli_progress_clear(struct cli_progress *progress)
{
    static const char clear[] = "\r\033[K";

    if (progress->shown)
        put(clear, sizeof(clear) - 1);
    progress->shown = false;
}
