/* SPDX-License-Identifier: MIT */
/*
 * bench.c - `weir bench`: arguments, cases, output
 *
 * The one bench program of the project: bench/compare runs it beside fio and the peers in
 * bench/peers, and `--json` is the border between them. A case is a kind of load with the
 * defaults that suit it; every option overrides one. What is measured, and how, is at the
 * head of bench_load.c; whose file may be written, at that of bench_scratch.c.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"
#include "cli.h"

#define SCRATCH_NAME "weir-bench.scratch"
#define MAX_JOBS     256u
#define MAX_DEPTH    4096u

volatile sig_atomic_t bench_interrupted;

static const char help_text[] =
    "usage: weir bench CASE... [options]\n"
    "\n"
    "Measure the engine on this machine. Cases:\n"
    "  randread   read blocks at random places         (4 KiB, depth 32)\n"
    "  randwrite  write blocks at random places        (4 KiB, depth 32)\n"
    "  seqread    read the file from start to end      (1 MiB, depth 8)\n"
    "  seqwrite   write the file from start to end     (1 MiB, depth 8)\n"
    "  cached     randread from the page cache         (4 KiB, depth 16)\n"
    "  overhead   the engine alone, no device at all   (depth 32, null backend)\n"
    "\n"
    "  --file F        the file to use. Default: " SCRATCH_NAME " here, made when it is\n"
    "                  missing and kept. Writing cases refuse a file weir bench did not make.\n"
    "  --size S        bytes of the file to use, such as 256M or 1G (1G; a foreign file: all)\n"
    "  --bs N          bytes of one operation\n"
    "  --depth N       operations in flight, each thread (1 with --api blocking)\n"
    "  --wait-min N    wait for N operations at a time; 0: about a quarter of the depth (0)\n"
    "  --direct        past the page cache\n"
    "  --jobs N        threads, each with a queue of its own (1)\n"
    "  --api A         job (asynchronous), or blocking (one call at a time) (job)\n"
    "  --backend B     auto, uring, threads or null (auto)\n"
    "  --seconds T     measured time of a case, after a warm-up of a fifth (3)\n"
    "  --json          one JSON object a case, on one line\n"
    "  --help\n"
    "\n"
    "Interrupted, it prints what it has. Exit status: 0 done, 1 something failed, 2 wrong\n"
    "usage, 130 interrupted.\n"
    "\n"
    "  weir bench randread --direct --depth 32\n"
    "  weir bench cached overhead --json\n";

struct bench_case {
    const char *name;
    enum bench_kind kind;
    uint32_t block_bytes;
    uint32_t depth;
};

static const struct bench_case cases[] = {
    { "randread", BENCH_RANDREAD, 4096, 32 },  { "randwrite", BENCH_RANDWRITE, 4096, 32 },
    { "seqread", BENCH_SEQREAD, 1u << 20, 8 }, { "seqwrite", BENCH_SEQWRITE, 1u << 20, 8 },
    { "cached", BENCH_CACHED, 4096, 16 },      { "overhead", BENCH_OVERHEAD, 4096, 32 },
};

/* --- the arguments ------------------------------------------------------------------------ */

/* As given; what was not given is 0, or -1 where 0 has a meaning. */
struct arguments {
    const char *file;
    uint64_t size_bytes;
    uint64_t block_bytes;
    uint64_t depth;
    int64_t wait_min;
    uint64_t jobs;
    double seconds;
    const char *backend_name;
    uint32_t backend;
    bool direct;
    bool blocking;
    bool json;
};

void bench_say(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("weir bench: ", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
}

static const struct bench_case *find_case(const char *name)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (strcmp(cases[i].name, name) == 0)
            return &cases[i];
    return NULL;
}

/* A whole number with an optional K, M, G or T (of 1024); false if it is none or not in
 * [min, max]. */
static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    static const char units[] = "KMGT";
    unsigned long long value;
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    if (*end != '\0') {
        const char *found = strchr(units, toupper((unsigned char)*end));
        uint32_t shift;

        if (found == NULL)
            return false;
        shift = 10u * (uint32_t)(found - units + 1);
        if (value > (UINT64_MAX >> shift))
            return false;
        value <<= shift;
        end++;
        if (*end == 'i')
            end++;
        if (*end == 'B')
            end++;
    }
    if (*end != '\0' || value < min || value > max)
        return false;
    *ret_value = value;
    return true;
}

static bool parse_seconds(const char *text, double *ret_seconds)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !(value >= 0.01 && value <= 86400.0))
        return false;
    *ret_seconds = value;
    return true;
}

static int wrong_usage(const char *what, const char *value, const char *cure)
{
    return cli_wrong_usage("bench", "%s %s: %s", what, value, cure);
}

enum option_code {
    OPTION_FILE = 256,
    OPTION_SIZE,
    OPTION_BS,
    OPTION_DEPTH,
    OPTION_WAIT_MIN,
    OPTION_DIRECT,
    OPTION_JOBS,
    OPTION_API,
    OPTION_BACKEND,
    OPTION_SECONDS,
    OPTION_JSON
};

static const struct option long_options[] = {
    { "file", required_argument, NULL, OPTION_FILE },
    { "size", required_argument, NULL, OPTION_SIZE },
    { "bs", required_argument, NULL, OPTION_BS },
    { "depth", required_argument, NULL, OPTION_DEPTH },
    { "wait-min", required_argument, NULL, OPTION_WAIT_MIN },
    { "direct", no_argument, NULL, OPTION_DIRECT },
    { "jobs", required_argument, NULL, OPTION_JOBS },
    { "api", required_argument, NULL, OPTION_API },
    { "backend", required_argument, NULL, OPTION_BACKEND },
    { "seconds", required_argument, NULL, OPTION_SECONDS },
    { "json", no_argument, NULL, OPTION_JSON },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

/* Returns -1 to go on, or the exit status. */
static int take_option(int option, const char *value, struct arguments *arguments)
{
    uint64_t number = 0;
    int backend;

    switch (option) {
    case OPTION_FILE:
        arguments->file = value;
        return value[0] != '\0' ? -1 : wrong_usage("--file", "''", "it needs a name");
    case OPTION_SIZE:
        if (!parse_number(value, 4096, UINT64_C(1) << 50, &arguments->size_bytes))
            return wrong_usage("--size", value, "a number of bytes from 4096, such as 256M");
        return -1;
    case OPTION_BS:
        if (!parse_number(value, 1, 1u << 30, &arguments->block_bytes))
            return wrong_usage("--bs", value, "a number of bytes up to 1G, such as 4K");
        return -1;
    case OPTION_DEPTH:
        if (!parse_number(value, 1, MAX_DEPTH, &arguments->depth))
            return wrong_usage("--depth", value, "a number from 1 to 4096");
        return -1;
    case OPTION_WAIT_MIN:
        if (!parse_number(value, 0, MAX_DEPTH, &number))
            return wrong_usage("--wait-min", value, "a number from 0 to the depth");
        arguments->wait_min = (int64_t)number;
        return -1;
    case OPTION_DIRECT:
        arguments->direct = true;
        return -1;
    case OPTION_JOBS:
        if (!parse_number(value, 1, MAX_JOBS, &arguments->jobs))
            return wrong_usage("--jobs", value, "a number from 1 to 256");
        return -1;
    case OPTION_API:
        arguments->blocking = strcmp(value, "blocking") == 0;
        if (!arguments->blocking && strcmp(value, "job") != 0)
            return wrong_usage("--api", value, "job or blocking");
        return -1;
    case OPTION_BACKEND:
        backend = cli_backend(value);
        if (backend < 0)
            return wrong_usage("--backend", value, "auto, uring, threads or null");
        arguments->backend = (uint32_t)backend;
        arguments->backend_name = value;
        return -1;
    case OPTION_SECONDS:
        if (!parse_seconds(value, &arguments->seconds))
            return wrong_usage("--seconds", value, "a number from 0.01 to 86400");
        return -1;
    case OPTION_JSON:
        arguments->json = true;
        return -1;
    case 'h':
        fputs(help_text, stdout);
        return 0;
    default:
        fputs("Try 'weir bench --help'.\n", stderr);
        return 2;
    }
}

/* The case with the options over its defaults. Returns -1, or the exit status. */
static int make_plan(const struct bench_case *which, const struct arguments *arguments,
                     struct bench_plan *plan)
{
    memset(plan, 0, sizeof(*plan));
    plan->kind = which->kind;
    plan->name = which->name;
    plan->path = arguments->file != NULL ? arguments->file : SCRATCH_NAME;
    plan->size_bytes = arguments->size_bytes;
    plan->block_bytes =
        arguments->block_bytes != 0 ? (uint32_t)arguments->block_bytes : which->block_bytes;
    plan->depth = arguments->depth != 0 ? (uint32_t)arguments->depth : which->depth;
    plan->wait_min = arguments->wait_min >= 0 ? (uint32_t)arguments->wait_min : 0;
    plan->threads = arguments->jobs != 0 ? (uint32_t)arguments->jobs : 1;
    plan->backend = arguments->backend;
    plan->seconds = arguments->seconds;
    plan->direct = arguments->direct;
    plan->blocking = arguments->blocking;
    plan->json = arguments->json;
    plan->quiet = arguments->json;

    if (plan->blocking) {
        if (arguments->depth > 1)
            return wrong_usage("--api", "blocking",
                               "a blocking call has depth 1; use --jobs for more at a time");
        plan->depth = 1;
        plan->wait_min = 1;
    }
    if (plan->kind == BENCH_CACHED && plan->direct)
        return wrong_usage("cached", "--direct", "the page cache is what --direct goes past");
    if (plan->kind == BENCH_OVERHEAD) {
        if (plan->backend != WEIR_BACKEND_AUTO && plan->backend != WEIR_BACKEND_NULL)
            return wrong_usage("overhead --backend", arguments->backend_name,
                               "this case runs on null alone");
        if (plan->blocking)
            return wrong_usage("overhead", "--api blocking",
                               "a blocking call has no backend to leave out");
        plan->backend = WEIR_BACKEND_NULL;
        plan->direct = false;
        if (plan->size_bytes == 0)
            plan->size_bytes = UINT64_C(1) << 30;
    }
    if (plan->wait_min > plan->depth)
        return wrong_usage(which->name, "--wait-min", "it can't be more than the depth");
    return -1;
}

/* --- the output ----------------------------------------------------------------------------- */

static void format_bytes(uint64_t bytes, char *buf, size_t size)
{
    static const char units[] = "kmg";
    size_t unit = 0;

    if (bytes < 1024 || bytes % 1024 != 0) {
        snprintf(buf, size, "%llu", (unsigned long long)bytes);
        return;
    }
    for (bytes /= 1024; bytes % 1024 == 0 && unit < 2; unit++)
        bytes /= 1024;
    snprintf(buf, size, "%llu%c", (unsigned long long)bytes, units[unit]);
}

static void print_flags(uint32_t flags)
{
    static const struct {
        uint32_t flag;
        const char *name;
    } names[] = {
        { WEIR_RING_SINGLE_ISSUER, "SINGLE_ISSUER" },
        { WEIR_RING_DEFER_TASKRUN, "DEFER_TASKRUN" },
        { WEIR_RING_COOP_TASKRUN, "COOP_TASKRUN" },
    };
    const char *between = "";

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if ((flags & names[i].flag) != 0) {
            printf("%s%s", between, names[i].name);
            between = "|";
        }
    }
}

static double mib_per_s(const struct bench_plan *plan, const struct bench_result *result)
{
    if (result->seconds <= 0.0)
        return 0.0;
    return (double)result->ops * plan->block_bytes / result->seconds / (1024.0 * 1024.0);
}

static double ops_per_s(const struct bench_result *result)
{
    return result->seconds > 0.0 ? (double)result->ops / result->seconds : 0.0;
}

static void print_json(const struct bench_plan *plan, const struct bench_result *result)
{
    const struct bench_histogram *latency = &result->latency;
    const char *api = plan->blocking ? "blocking" : "job";
    char bs[32];

    format_bytes(plan->block_bytes, bs, sizeof(bs));
    printf("{\"name\":\"engine/%s/bs=%s,qd=%u,backend=%s%s%s\",\"case\":\"%s\"", plan->name, bs,
           plan->depth, result->backend_name, plan->direct ? ",direct" : "",
           plan->blocking ? ",api=blocking" : "", plan->name);
    printf(",\"backend\":\"%s\",\"flags\":\"", result->backend_name);
    print_flags(result->ring_flags);
    printf("\",\"why\":");
    cli_json_string(stdout, result->why);
    printf(",\"registered_buffers\":%s,\"io_threads\":%u",
           result->registered_buffers ? "true" : "false", result->io_threads);
    printf(",\"api\":\"%s\",\"file\":", api);
    cli_json_string(stdout, plan->kind == BENCH_OVERHEAD ? "" : plan->path);
    printf(",\"size\":%llu,\"bs\":%u,\"depth\":%u,\"wait_min\":%u,\"direct\":%s,\"jobs\":%u",
           (unsigned long long)result->size_bytes, plan->block_bytes, plan->depth,
           plan->wait_min, plan->direct ? "true" : "false", plan->threads);
    printf(",\"ops\":%llu,\"seconds\":%.6f,\"iops\":%.1f,\"mib_per_s\":%.2f",
           (unsigned long long)result->ops, result->seconds, ops_per_s(result),
           mib_per_s(plan, result));
    printf(",\"lat_us\":{\"p50\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
           bench_histogram_us(latency, 0.5), bench_histogram_us(latency, 0.95),
           bench_histogram_us(latency, 0.99), bench_histogram_us(latency, 0.999),
           (double)latency->max_ns / 1000.0);
    printf(",\"cpu_us_per_op\":%.4f,\"syscalls_per_op\":%.5f", result->cpu_us_per_op,
           result->syscalls_per_op);
    if (result->allocs_per_op < 0.0)
        printf(",\"allocs_per_op\":null");
    else
        printf(",\"allocs_per_op\":%.6f", result->allocs_per_op);
    printf(",\"errors\":%llu,\"interrupted\":%s,\"version\":\"%s\"}\n",
           (unsigned long long)result->errors, result->interrupted ? "true" : "false",
           weir_version());
}

static void print_row(const struct bench_plan *plan, const struct bench_result *result,
                      bool with_head)
{
    const struct bench_histogram *latency = &result->latency;
    char bs[32];
    char allocs[32] = "-";

    if (with_head)
        printf("%-9s %-8s %-8s %5s %5s %4s %10s %9s %8s %8s %8s %9s %8s %9s\n", "case",
               "backend", "api", "bs", "depth", "jobs", "ops/s", "MiB/s", "p50 us", "p99 us",
               "p999 us", "cpu us/op", "calls/op", "allocs/op");
    format_bytes(plan->block_bytes, bs, sizeof(bs));
    if (result->allocs_per_op >= 0.0)
        snprintf(allocs, sizeof(allocs), "%.4f", result->allocs_per_op);
    printf("%-9s %-8s %-8s %5s %5u %4u %10.0f %9.1f %8.2f %8.2f %8.2f %9.3f %8.4f %9s\n",
           plan->name, result->backend_name, plan->blocking ? "blocking" : "job", bs,
           plan->depth, plan->threads, ops_per_s(result), mib_per_s(plan, result),
           bench_histogram_us(latency, 0.5), bench_histogram_us(latency, 0.99),
           bench_histogram_us(latency, 0.999), result->cpu_us_per_op, result->syscalls_per_op,
           allocs);
}

static int report(const struct bench_plan *plan, const struct bench_result *result,
                  bool with_head)
{
    if (plan->json)
        print_json(plan, result);
    else
        print_row(plan, result, with_head);
    if (fflush(stdout) != 0) {
        bench_say("can't write the result: %s\n", strerror(errno));
        return 1;
    }
    if (result->errors == 0)
        return 0;
    bench_say("%llu operations on %s failed, the first at offset %llu: %s (%s)\n",
              (unsigned long long)result->errors, plan->path,
              (unsigned long long)result->first_error_offset,
              weir_code_text(result->first_error), weir_code_name(result->first_error));
    return 1;
}

/* --- one case, and all of them --------------------------------------------------------------- */

/* What was asked for on the command line goes before WEIR_BACKEND, for this case alone. */
static int run_with_backend(const struct bench_plan *plan, struct bench_result *result)
{
    const char *variable = getenv("WEIR_BACKEND");
    char saved[64];
    int status;

    if (variable == NULL || plan->backend == WEIR_BACKEND_AUTO)
        return bench_load_run(plan, result);
    snprintf(saved, sizeof(saved), "%s", variable);
    unsetenv("WEIR_BACKEND");
    status = bench_load_run(plan, result);
    setenv("WEIR_BACKEND", saved, 1);
    return status;
}

static int run_case(const struct bench_plan *given, bool with_head)
{
    struct bench_plan plan = *given;
    struct bench_result *result;
    int status;

    if (plan.kind != BENCH_OVERHEAD && bench_scratch_prepare(&plan, &plan.size_bytes) != 0)
        return 1;
    if (plan.size_bytes / plan.block_bytes < plan.threads ||
        plan.size_bytes / plan.block_bytes > UINT32_MAX) {
        bench_say("%s: %llu bytes in blocks of %u make too %s blocks; change --bs\n", plan.path,
                  (unsigned long long)plan.size_bytes, plan.block_bytes,
                  plan.size_bytes / plan.block_bytes < plan.threads ? "few" : "many");
        return 1;
    }
    if ((plan.kind == BENCH_CACHED || plan.direct) &&
        bench_scratch_warm(plan.path, plan.size_bytes, plan.direct) != 0)
        return 1;

    result = calloc(1, sizeof(*result));
    if (result == NULL) {
        bench_say("out of memory\n");
        return 1;
    }
    result->size_bytes = plan.size_bytes;
    status = run_with_backend(&plan, result);
    if (status == 0)
        status = report(&plan, result, with_head);
    free(result);
    return status;
}

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    bench_interrupted = 1;
}

int cli_bench(int argc, char **argv)
{
    /* The second Ctrl-C ends the program: a device that hangs must not keep it. */
    struct sigaction action = { .sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND };
    struct arguments arguments = { .wait_min = -1, .seconds = 3.0 };
    struct sigaction old_action;
    int status = 0;
    int option;

    optind = 0; /* the verb's arguments start anew */
    while ((option = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        status = take_option(option, optarg, &arguments);
        if (status >= 0)
            return status;
    }
    if (optind >= argc) {
        fputs(help_text, stderr);
        return 2;
    }
    for (int i = optind; i < argc; i++)
        if (find_case(argv[i]) == NULL)
            return wrong_usage("case", argv[i],
                               "randread, randwrite, seqread, seqwrite, cached or overhead");

    bench_interrupted = 0;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &old_action);
    status = 0;
    for (int i = optind; i < argc && !bench_interrupted && status != 2; i++) {
        const struct bench_case *which = find_case(argv[i]);
        struct bench_plan plan;
        int rc;

        if (which == NULL) /* looked at above */
            continue;
        rc = make_plan(which, &arguments, &plan);
        if (rc < 0)
            rc = run_case(&plan, i == optind);
        if (rc > status)
            status = rc;
    }
    sigaction(SIGINT, &old_action, NULL);
    return bench_interrupted ? 130 : status;
}
