/* SPDX-License-Identifier: MIT */
/*
 * copy.c - weir copy: options, the call, what it came to
 *
 * Errors are kept until the end, so that the progress line is not torn and nobody has to
 * scroll for them. The first signal only sets a flag that the progress callback hands on: the
 * copy itself then removes its temporaries.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define VERB        "copy"
#define ERRORS_KEPT 10000u /* beyond these only a number is told */

static const char help[] =
    "usage: weir copy [-r] [options] SOURCE... DESTINATION\n"
    "\n"
    "Copies files, symbolic links (as links) and, with -r, directories, with their modes\n"
    "and times. A file appears under its name only when it is complete; an existing name is\n"
    "replaced, and what its old file holds is never written into. If one file fails, the\n"
    "others are still copied.\n"
    "\n"
    "  -r, --recursive   directories with what is in them\n"
    "      --verify      read each copy back, past the page cache where that works, and\n"
    "                    compare XXH3-128 of both sides before it gets its name\n"
    "      --json        one object a line: each error, then the summary\n"
    "  -q, --quiet       no progress and no summary; errors only\n"
    "  -v, --verbose     more in the summary: the engine and the latencies\n"
    "      --backend B   auto, uring or threads\n"
    "  -h, --help\n"
    "\n"
    "With one SOURCE and a DESTINATION that is no directory, the copy gets that name; else\n"
    "copies go into the directory under their own names. The contents of SOURCE/. go into\n"
    "the directory itself. What an interrupted copy left (.NAME.*.weir-tmp) is removed by\n"
    "the next one into the same directory.\n"
    "\n"
    "Exit status: 0 all copied, 1 something failed, 2 wrong usage, 130 interrupted.\n";

struct arguments {
    uint32_t flags;
    uint32_t backend;
    bool json;
    bool quiet;
    bool verbose;
    const char *const *sources;
    size_t sources_count;
    const char *destination;
};

struct run {
    struct cli_progress progress;
    const struct arguments *arguments;
    char **errors;
    size_t errors_count;
    size_t errors_room;
    uint64_t errors_untold;
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

    /* Nor does a copy end, with temporaries left, because nobody reads what it says. */
    signal(SIGPIPE, SIG_IGN);
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART | (int)SA_RESETHAND; /* the second one ends us at once */
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct sigaction old;

        /* nohup(1) and shells that ignore a signal for us mean it. */
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
}

/* ---- arguments ---------------------------------------------------------------------------- */

/* Returns -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct arguments *arguments)
{
    enum {
        VERIFY = 256,
        JSON,
        BACKEND
    };
    static const struct option options[] = {
        { "recursive", no_argument, NULL, 'r' },
        { "verify", no_argument, NULL, VERIFY },
        { "json", no_argument, NULL, JSON },
        { "quiet", no_argument, NULL, 'q' },
        { "verbose", no_argument, NULL, 'v' },
        { "backend", required_argument, NULL, BACKEND },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    int option;
    int backend;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":rRqvh", options, NULL)) != -1) {
        switch (option) {
        case 'r':
        case 'R':
            arguments->flags |= WEIR_COPY_RECURSIVE;
            break;
        case VERIFY:
            arguments->flags |= WEIR_COPY_VERIFY;
            break;
        case JSON:
            arguments->json = true;
            break;
        case 'q':
            arguments->quiet = true;
            break;
        case 'v':
            arguments->verbose = true;
            break;
        case BACKEND:
            backend = cli_backend(optarg);
            if (backend < 0 || backend == WEIR_BACKEND_NULL)
                return cli_wrong_usage(VERB, "--backend %s: it is auto, uring or threads",
                                       optarg);
            arguments->backend = (uint32_t)backend;
            break;
        case 'h':
            fputs(help, stdout);
            return cli_end(VERB, CLI_DONE);
        case ':':
            return cli_wrong_usage(VERB, "%s needs a value", argv[optind - 1]);
        default:
            if (optopt > 0 && optopt < 256)
                return cli_wrong_usage(VERB, "there is no option -%c", optopt);
            return cli_wrong_usage(VERB, "there is no option %s", argv[optind - 1]);
        }
    }
    if (argc - optind < 1)
        return cli_wrong_usage(VERB, "what is to be copied, and where to?");
    if (argc - optind < 2)
        return cli_wrong_usage(VERB, "where is it to be copied to?");
    arguments->sources = (const char *const *)(argv + optind);
    arguments->sources_count = (size_t)(argc - optind - 1);
    arguments->destination = argv[argc - 1];
    return -1;
}

/* ---- callbacks ------------------------------------------------------------------------------- */

static int on_progress(void *arg, const struct weir_copy_progress *now)
{
    struct run *run = arg;

    cli_progress_show(&run->progress, now);
    return interrupted != 0;
}

/* What to do about it, where the text does not say. */
static const char *cure_for(const struct weir_error *error)
{
    switch (-error->code) {
    case EISDIR:
        return error->op == 0 ? "; use -r" : "";
    case ENOSPC:
        return "; what is complete stays: make room and run it again";
    case WEIR_ECHANGED:
        return "; run it again when nobody writes to it";
    case WEIR_EMISMATCH:
        return "; the copy was not kept: check the disk, then run it again";
    default:
        return "";
    }
}

static char *error_as_json(const struct weir_error *error)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    if (!to)
        return NULL;
    fputs("{\"verb\":\"copy\",\"error\":{\"path\":", to);
    cli_json_string(to, error->path);
    fprintf(to, ",\"code\":\"%s\",\"op\":\"%s\"", weir_code_name(error->code),
            error->op ? weir_op_name(error->op) : "");
    if (error->has_offset)
        fprintf(to, ",\"offset\":%" PRIu64, error->offset);
    fputs(",\"text\":", to);
    cli_json_string(to, error->text);
    fputs("}}", to);
    return fclose(to) == 0 ? text : NULL;
}

static char *error_as_text(const struct weir_error *error)
{
    char line[1200];
    char *text = NULL;

    weir_error_format(error, line, sizeof(line));
    return asprintf(&text, "%s%s", line, cure_for(error)) < 0 ? NULL : text;
}

/* One call at a time: the library sees to it. */
static void on_failed(void *arg, const struct weir_error *error)
{
    struct run *run = arg;
    char *text;

    if (run->errors_count == run->errors_room && run->errors_room < ERRORS_KEPT) {
        size_t room = run->errors_room ? 2 * run->errors_room : 16;
        char **errors = realloc(run->errors, room * sizeof(*errors));

        if (errors) {
            run->errors = errors;
            run->errors_room = room;
        }
    }
    text = run->errors_count < run->errors_room
               ? (run->arguments->json ? error_as_json(error) : error_as_text(error))
               : NULL;
    if (text)
        run->errors[run->errors_count++] = text;
    else
        run->errors_untold++;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of their texts: which worker met one first is chance. */
static void tell_errors(struct run *run)
{
    char count[CLI_TEXT];

    if (run->errors_count > 1)
        qsort(run->errors, run->errors_count, sizeof(*run->errors), by_text);
    for (size_t i = 0; i < run->errors_count; i++) {
        if (run->arguments->json)
            puts(run->errors[i]);
        else
            cli_say(VERB, "%s", run->errors[i]);
        free(run->errors[i]);
    }
    free(run->errors);
    if (run->errors_untold > 0)
        cli_say(VERB, "and %s",
                cli_things(count, run->errors_untold, "error more", "errors more"));
}

/* ---- the summary -------------------------------------------------------------------------------- */

struct figures {
    double seconds;
    double mb_per_s;
    uint64_t operations;
    double calls_per_operation;
};

static struct figures figures_of(const struct weir_copy_result *result,
                                 const struct weir_stats *stats)
{
    struct figures f = { .seconds = (double)result->elapsed_ns / 1e9 };

    f.mb_per_s = f.seconds > 0 ? (double)result->bytes / 1e6 / f.seconds : 0;
    f.operations = stats->ops[WEIR_STATS_READ].done + stats->ops[WEIR_STATS_WRITE].done;
    f.calls_per_operation =
        f.operations ? (double)stats->system_calls / (double)f.operations : 0;
    return f;
}

static void json_latency(const char *name, const struct weir_latency *latency)
{
    printf("\"%s\":{\"count\":%" PRIu64 ",\"p50\":%.1f,\"p95\":%.1f,\"p99\":%.1f,\"max\":%.1f}",
           name, latency->count, (double)latency->p50_ns / 1e3, (double)latency->p95_ns / 1e3,
           (double)latency->p99_ns / 1e3, (double)latency->max_ns / 1e3);
}

static void summary_json(const struct weir_copy_result *result, const struct weir_stats *stats,
                         const struct weir_engine_info *info, int status)
{
    struct figures f = figures_of(result, stats);

    printf("{\"verb\":\"copy\",\"status\":%d,\"files\":%" PRIu64 ",\"directories\":%" PRIu64
           ",\"links\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"errors\":%" PRIu64
           ",\"verified_files\":%" PRIu64 ",\"verified_bytes\":%" PRIu64
           ",\"verified_cached_files\":%" PRIu64,
           status, result->files, result->directories, result->links, result->bytes,
           result->errors, result->verified_files, result->verified_bytes,
           result->verified_cached_files);
    printf(",\"seconds\":%.6f,\"mb_per_s\":%.1f,\"backend\":\"%s\",\"operations\":%" PRIu64
           ",\"syscalls\":%" PRIu64 ",\"syscalls_per_op\":%.3f,\"lat_us\":{",
           f.seconds, f.mb_per_s, info->backend_name, f.operations, stats->system_calls,
           f.calls_per_operation);
    json_latency("read", &stats->ops[WEIR_STATS_READ].device);
    putchar(',');
    json_latency("write", &stats->ops[WEIR_STATS_WRITE].device);
    puts("}}");
}

static void text_latency(const char *name, const struct weir_latency *latency)
{
    char p50[CLI_TEXT];
    char p95[CLI_TEXT];
    char p99[CLI_TEXT];

    if (latency->count > 0)
        printf("  %-7s p50 %s, p95 %s, p99 %s\n", name, cli_span(p50, latency->p50_ns),
               cli_span(p95, latency->p95_ns), cli_span(p99, latency->p99_ns));
}

static void summary_text(const struct weir_copy_result *result, const struct weir_stats *stats,
                         const struct weir_engine_info *info, const struct arguments *arguments)
{
    struct figures f = figures_of(result, stats);
    char a[CLI_TEXT];
    char b[CLI_TEXT];
    char c[CLI_TEXT];
    char d[CLI_TEXT];

    printf("copied   %s, %s, %s\n", cli_things(a, result->files, "file", "files"),
           cli_things(b, result->directories, "directory", "directories"),
           cli_things(c, result->links, "link", "links"));
    printf("  bytes   %s in %s, %.1f MB/s\n", cli_bytes(a, result->bytes),
           cli_span(b, result->elapsed_ns), f.mb_per_s);
    if (arguments->flags & WEIR_COPY_VERIFY) {
        printf("  verify  %s, %s, XXH3-128 equal on both sides",
               cli_things(a, result->verified_files, "file", "files"),
               cli_bytes(b, result->verified_bytes));
        if (result->verified_cached_files > 0)
            printf("; %s read back through the page cache",
                   cli_count(c, result->verified_cached_files));
        putchar('\n');
    }
    printf("  engine  %s, %s, %.2f system calls each\n", info->backend_name,
           cli_things(d, f.operations, "operation", "operations"), f.calls_per_operation);
    text_latency("reads", &stats->ops[WEIR_STATS_READ].device);
    text_latency("writes", &stats->ops[WEIR_STATS_WRITE].device);
    if (arguments->verbose) {
        printf("  why     %s\n", info->why);
        if (info->cure[0])
            printf("  cure    %s\n", info->cure);
        printf("  memory  %s at most in the engine\n", cli_bytes(a, stats->memory_peak_bytes));
        printf("  cpu     %s\n", cli_span(b, stats->process_cpu_ns));
    }
}

static int tell(struct run *run, struct weir_engine *engine, int rc,
                const struct weir_copy_result *result)
{
    const struct arguments *arguments = run->arguments;
    struct weir_engine_info info = { .size = sizeof(info) };
    struct weir_stats stats = { .size = sizeof(stats) };
    int status = rc < 0 ? CLI_FAILED : CLI_DONE;
    char count[CLI_TEXT];

    if (interrupted && rc == -ECANCELED)
        status = CLI_INTERRUPTED;
    weir_engine_info(engine, &info);
    weir_engine_stats(engine, &stats);
    if (arguments->json) {
        tell_errors(run);
        summary_json(result, &stats, &info, status);
        return status;
    }
    if (!arguments->quiet)
        summary_text(result, &stats, &info, arguments);
    (void)fflush(stdout);
    tell_errors(run);
    if (status == CLI_INTERRUPTED)
        cli_say(VERB, "interrupted; what is complete stays, temporaries were removed");
    else if (result->errors > 1)
        cli_say(VERB, "%s", cli_things(count, result->errors, "error", "errors"));
    return status;
}

int cli_copy(int argc, char **argv)
{
    struct arguments arguments = { 0 };
    struct run run = { .arguments = &arguments };
    struct weir_copy_options options = { .size = sizeof(options) };
    struct weir_copy_result result = { .size = sizeof(result) };
    struct weir_engine *engine;
    int status = parse(argc, argv, &arguments);
    int rc;

    if (status >= 0)
        return status;
    engine = cli_engine_open(VERB, arguments.backend);
    if (!engine)
        return CLI_FAILED;
    watch_signals();
    cli_progress_init(&run.progress, !arguments.quiet && !arguments.json);
    options.flags = arguments.flags | (run.progress.enabled ? WEIR_COPY_COUNT : 0);
    options.progress = on_progress;
    options.failed = on_failed;
    options.arg = &run;
    rc = weir_copy(engine, arguments.sources, arguments.sources_count, arguments.destination,
                   &options, &result);
    cli_progress_clear(&run.progress);
    status = tell(&run, engine, rc, &result);
    weir_engine_close(engine);
    return cli_end(VERB, status);
}
