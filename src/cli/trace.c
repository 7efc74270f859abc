/* SPDX-License-Identifier: MIT */
/*
 * trace.c - weir trace: look at a record of operations, or do its reads again
 *
 * A trace that is damaged or cut short is shown as far as it goes, with a line on standard error
 * that says where it hurts, and exit status 1.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trace_internal.h"

#define WINDOW   65536u /* records that wait for earlier ones */
#define TROUBLES 10u    /* told one by one */

static const char help[] =
    "usage: weir trace show FILE [--summary] [--json]\n"
    "       weir trace replay FILE [options]\n"
    "\n"
    "A trace has a record of each operation of an engine: weir bench --trace FILE makes one,\n"
    "and so does any program, by weir_trace_start.\n"
    "\n"
    "show prints it, a line an operation, in the order in which they ended.\n"
    "      --summary       instead: counts, bytes and latencies by operation and class, sizes,\n"
    "                      how much is in sequence, and the busiest files\n"
    "      --json          one object a line; with --summary one object\n"
    "\n"
    "replay does its reads again, in their order, and prints the latencies of then and now.\n"
    "Nothing is written: writes and syncs are left out, and counted.\n"
    "      --file OLD=NEW  read NEW where the trace has OLD; may be given again\n"
    "      --root DIR      look for all other files below DIR\n"
    "      --speed N       N times as fast as it was (default 1), or max: no pauses\n"
    "      --depth N       reads in flight at most (default 128, up to 4096)\n"
    "      --backend B     auto, uring, threads or null\n"
    "      --dry-run       only say what would be read, and which files are missing\n"
    "      --writes        writes and syncs too, all into the scratch file\n"
    "      --scratch FILE  made anew for --writes, and gone at the end\n"
    "      --json          one object\n"
    "  -h, --help\n"
    "\n"
    "Exit status: 0 done, 1 something failed or is damaged, 2 wrong usage, 130 interrupted.\n";

/* ---- reading ------------------------------------------------------------------------------- */

struct trace_waiting {
    struct weir_trace_record record;
    uint64_t order; /* in the file */
};

static void tell_trouble(struct trace_input *input, const struct weir_error *error)
{
    char text[700];

    input->status = CLI_FAILED;
    if (input->quiet || input->troubles++ >= TROUBLES)
        return;
    weir_error_format(error, text, sizeof(text));
    cli_say(VERB, "%s", text);
}

bool trace_input_open(struct trace_input *input, const char *path)
{
    struct weir_error error;

    memset(input, 0, sizeof(*input));
    if (weir_trace_reader_open(path, &input->reader, &error) == 0)
        return true;
    tell_trouble(input, &error);
    return false;
}

void trace_input_close(struct trace_input *input)
{
    char count[CLI_TEXT];

    if (input->troubles > TROUBLES)
        cli_say(VERB, "and %s",
                cli_things(count, input->troubles - TROUBLES, "trouble more", "troubles more"));
    weir_trace_reader_close(input->reader);
    free(input->heap);
}

bool trace_input_next(struct trace_input *input, struct weir_trace_record *ret_record)
{
    struct weir_error error;
    int rc;

    while (!input->ended) {
        rc = weir_trace_reader_next(input->reader, ret_record, &error);
        if (rc == 1)
            return true;
        if (rc < 0)
            tell_trouble(input, &error);
        /* Behind damage there may be more; a file that can't be read won't get better. */
        input->ended =
            rc == 0 || (rc != -WEIR_ECORRUPT && rc != -WEIR_ETRUNCATED && rc != -WEIR_EVERSION);
    }
    return false;
}

static bool is_earlier(const struct trace_waiting *a, const struct trace_waiting *b)
{
    if (a->record.submit_ns != b->record.submit_ns)
        return a->record.submit_ns < b->record.submit_ns;
    return a->order < b->order;
}

static void heap_push(struct trace_input *input, const struct weir_trace_record *record)
{
    struct trace_waiting new = { .record = *record, .order = input->heap_order++ };
    size_t at = input->heap_count++;

    while (at > 0 && is_earlier(&new, &input->heap[(at - 1) / 2])) {
        input->heap[at] = input->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    input->heap[at] = new;
}

static void heap_pop(struct trace_input *input, struct weir_trace_record *ret_record)
{
    const struct trace_waiting last = input->heap[--input->heap_count];
    size_t at = 0;

    *ret_record = input->heap[0].record;
    for (;;) {
        size_t child = 2 * at + 1;

        if (child + 1 < input->heap_count &&
            is_earlier(&input->heap[child + 1], &input->heap[child]))
            child++;
        if (child >= input->heap_count || !is_earlier(&input->heap[child], &last))
            break;
        input->heap[at] = input->heap[child];
        at = child;
    }
    input->heap[at] = last;
}

bool trace_input_next_submitted(struct trace_input *input, struct weir_trace_record *ret_record)
{
    struct weir_trace_record record;

    if (!input->heap)
        input->heap = calloc(WINDOW, sizeof(*input->heap));
    if (!input->heap) {
        cli_say(VERB, "no memory");
        input->status = CLI_FAILED;
        return false;
    }
    while (input->heap_count < WINDOW && trace_input_next(input, &record))
        heap_push(input, &record);
    if (input->heap_count == 0)
        return false;
    heap_pop(input, ret_record);
    return true;
}

void trace_input_tell_dropped(const struct trace_input *input)
{
    struct weir_trace_info info = { .size = sizeof(info) };
    char a[CLI_TEXT];
    char b[CLI_TEXT];

    weir_trace_reader_info(input->reader, &info);
    if (info.lost > 0)
        cli_say(VERB, "%s lost to damage",
                cli_things(a, info.lost, "record was", "records were"));
    if (info.dropped > 0)
        cli_say(VERB, "%s no record beside %s: writing the trace could not keep up",
                cli_things(a, info.dropped, "operation has", "operations have"),
                cli_things(b, info.records, "that has", "that have"));
}

/* ---- names --------------------------------------------------------------------------------- */

const char *trace_op_name(char buf[TRACE_NAME], uint8_t op)
{
    const char *name = weir_op_name(op);

    if (strcmp(name, "?") != 0)
        return name;
    snprintf(buf, TRACE_NAME, "op %u", op);
    return buf;
}

const char *trace_class_name(char buf[TRACE_NAME], uint8_t io_class)
{
    const char *name = weir_class_name(io_class);

    if (strcmp(name, "?") != 0)
        return name;
    snprintf(buf, TRACE_NAME, "class %u", io_class);
    return buf;
}

/* ---- a line a record ------------------------------------------------------------------------ */

static void show_text(const struct weir_trace_record *record)
{
    char op[TRACE_NAME];
    char io_class[TRACE_NAME];
    char result[32];
    char wait[CLI_TEXT];
    char device[CLI_TEXT];
    char by[32];
    char file[1024];
    bool blocking = (record->flags & WEIR_TRACE_BLOCKING) != 0;

    if (record->result < 0)
        snprintf(result, sizeof(result), "%s", weir_code_name(record->result));
    else
        snprintf(result, sizeof(result), "%" PRId64, record->result);
    snprintf(by, sizeof(by), "%s%u%s", blocking ? "t" : "q",
             blocking ? record->thread : record->queue,
             record->flags & WEIR_TRACE_INTERNAL ? "*" : "");
    if (record->path)
        cli_name(file, sizeof(file), record->path);
    else if (record->file != 0)
        snprintf(file, sizeof(file), "#%u, its name is lost", record->file);
    else
        snprintf(file, sizeof(file), "-");
    printf("%13.9f %-9s %-10s %14" PRIu64 " %9" PRIu64 " %9s %8s %8s %5s %s\n",
           (double)record->submit_ns / 1e9, trace_op_name(op, record->op),
           trace_class_name(io_class, record->io_class), record->offset, record->len, result,
           cli_span(wait, record->wait_ns),
           record->flags & WEIR_TRACE_UNSTARTED ? "-" : cli_span(device, record->device_ns), by,
           file);
}

static const char *truth(uint32_t flags, uint32_t flag)
{
    return flags & flag ? "true" : "false";
}

static void show_json(const struct weir_trace_record *record)
{
    char op[TRACE_NAME];
    char io_class[TRACE_NAME];

    printf("{\"submit_ns\":%" PRId64 ",\"wait_ns\":%" PRIu64 ",\"device_ns\":%" PRIu64
           ",\"op\":\"%s\",\"class\":\"%s\",\"offset\":%" PRIu64 ",\"length\":%" PRIu64
           ",\"result\":%" PRId64,
           record->submit_ns, record->wait_ns, record->device_ns, trace_op_name(op, record->op),
           trace_class_name(io_class, record->io_class), record->offset, record->len,
           record->result);
    if (record->result < 0)
        printf(",\"code\":\"%s\"", weir_code_name(record->result));
    printf(",\"id\":%" PRIu64 ",\"queue\":%u,\"thread\":%u,\"blocking\":%s,\"internal\":%s,"
           "\"unstarted\":%s,\"file\":%u,\"path\":",
           record->id, record->queue, record->thread, truth(record->flags, WEIR_TRACE_BLOCKING),
           truth(record->flags, WEIR_TRACE_INTERNAL),
           truth(record->flags, WEIR_TRACE_UNSTARTED), record->file);
    if (record->path)
        cli_json_string(stdout, record->path);
    else
        fputs("null", stdout);
    puts("}");
}

static int show(const struct trace_arguments *arguments)
{
    struct weir_trace_record record;
    struct trace_input input;

    if (trace_input_open(&input, arguments->path)) {
        if (!arguments->json)
            puts("  submitted s op        class              offset    length    result     "
                 "wait   device    by file");
        /* A reader that has seen enough ends us: a trace may be long. */
        while (!ferror(stdout) && trace_input_next(&input, &record))
            (arguments->json ? show_json : show_text)(&record);
        (void)fflush(stdout);
        trace_input_tell_dropped(&input);
    }
    trace_input_close(&input);
    return input.status;
}

/* ---- arguments ------------------------------------------------------------------------------ */

static bool parse_speed(const char *text, double *ret_speed)
{
    char *end;

    if (strcmp(text, "max") == 0) {
        *ret_speed = 0;
        return true;
    }
    *ret_speed = strtod(text, &end);
    return end > text && *end == '\0' && isfinite(*ret_speed) && *ret_speed >= 1e-6 &&
           *ret_speed <= 1e6;
}

static bool parse_depth(const char *text, uint32_t *ret_depth)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    *ret_depth = (uint32_t)value;
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && value >= 1 && value <= 4096;
}

enum trace_option {
    JSON = 256,
    SUMMARY,
    FILE_MAP,
    ROOT,
    SPEED,
    DEPTH,
    BACKEND,
    DRY_RUN,
    WRITES,
    SCRATCH
};

static const struct option show_options[] = {
    { "summary", no_argument, NULL, SUMMARY },
    { "json", no_argument, NULL, JSON },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

static const struct option replay_options[] = {
    { "file", required_argument, NULL, FILE_MAP },
    { "root", required_argument, NULL, ROOT },
    { "speed", required_argument, NULL, SPEED },
    { "depth", required_argument, NULL, DEPTH },
    { "backend", required_argument, NULL, BACKEND },
    { "dry-run", no_argument, NULL, DRY_RUN },
    { "writes", no_argument, NULL, WRITES },
    { "scratch", required_argument, NULL, SCRATCH },
    { "json", no_argument, NULL, JSON },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

/* Returns -1 to go on, else the exit status. */
static int take_option(struct trace_arguments *arguments, int option)
{
    int backend;

    switch (option) {
    case JSON:
        arguments->json = true;
        return -1;
    case SUMMARY:
        arguments->summary = true;
        return -1;
    case FILE_MAP:
        if (!strchr(optarg, '=') || optarg[0] == '=')
            return cli_wrong_usage(VERB, "--file %s: it is OLD=NEW", optarg);
        arguments->maps[arguments->maps_count++] = optarg;
        return -1;
    case ROOT:
        arguments->root = optarg;
        return -1;
    case SPEED:
        if (!parse_speed(optarg, &arguments->speed))
            return cli_wrong_usage(
                VERB, "--speed %s: it is a number such as 1, 0.5 or 20, or max", optarg);
        return -1;
    case DEPTH:
        if (!parse_depth(optarg, &arguments->depth))
            return cli_wrong_usage(VERB, "--depth %s: it is a number from 1 to 4096", optarg);
        return -1;
    case BACKEND:
        backend = cli_backend(optarg);
        if (backend < 0)
            return cli_wrong_usage(VERB, "--backend %s: it is auto, uring, threads or null",
                                   optarg);
        arguments->backend = (uint32_t)backend;
        return -1;
    case DRY_RUN:
        arguments->dry_run = true;
        return -1;
    case WRITES:
        arguments->writes = true;
        return -1;
    case SCRATCH:
        arguments->scratch = optarg;
        return -1;
    default:
        fputs(help, stdout);
        return cli_end(VERB, CLI_DONE);
    }
}

/* `argv[0]` is show or replay. */
static int parse(int argc, char **argv, bool replay, struct trace_arguments *arguments)
{
    int option;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", replay ? replay_options : show_options,
                                 NULL)) != -1) {
        int status;

        if (option == ':')
            return cli_wrong_usage(VERB, "%s needs a value", argv[optind - 1]);
        if (option == '?' && optopt > 0 && optopt < 256)
            return cli_wrong_usage(VERB, "%s has no option -%c", argv[0], optopt);
        if (option == '?')
            return cli_wrong_usage(VERB, "%s has no option %s", argv[0], argv[optind - 1]);
        status = take_option(arguments, option);
        if (status >= 0)
            return status;
    }
    if (argc - optind < 1)
        return cli_wrong_usage(VERB, "which trace?");
    if (argc - optind > 1)
        return cli_wrong_usage(VERB, "one trace at a time");
    if (arguments->writes && !arguments->scratch)
        return cli_wrong_usage(VERB, "--writes needs --scratch FILE: it writes nowhere else");
    if (arguments->scratch && !arguments->writes)
        return cli_wrong_usage(VERB, "--scratch is for --writes");
    arguments->path = argv[optind];
    return -1;
}

int cli_trace(int argc, char **argv)
{
    struct trace_arguments arguments = { .speed = 1, .depth = 128 };
    char name[128];
    bool replay;
    int status;

    if (argc < 2)
        return cli_wrong_usage(VERB, "show or replay?");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(help, stdout);
        return cli_end(VERB, CLI_DONE);
    }
    replay = strcmp(argv[1], "replay") == 0;
    if (!replay && strcmp(argv[1], "show") != 0)
        return cli_wrong_usage(VERB, "show or replay, not '%s'",
                               cli_name(name, sizeof(name), argv[1]));
    arguments.maps = calloc((size_t)argc, sizeof(*arguments.maps));
    if (!arguments.maps) {
        cli_say(VERB, "no memory");
        return CLI_FAILED;
    }
    status = parse(argc - 1, argv + 1, replay, &arguments);
    if (status < 0)
        status = replay              ? trace_replay(&arguments)
                 : arguments.summary ? trace_show_summary(&arguments)
                                     : show(&arguments);
    free(arguments.maps);
    return cli_end(VERB, status);
}
