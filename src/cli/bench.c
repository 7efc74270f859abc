/* SPDX-License-Identifier: MIT */
/*
 * bench.c - `weir bench`: arguments and cases
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
#define BLOCK_BYTES  65536u /* of the cache, where nothing else is said */
#define ZIPF_BLOCKS  20u    /* of zipf's file, for each that its cache holds: 5 % */
#define NOT_GIVEN    UINT64_MAX

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
    "Cases of one reader that waits for each block, through a block cache of 64 MiB:\n"
    "  scan       the file from start to end           (64 KiB)\n"
    "  backward   from end to start                    (64 KiB)\n"
    "  stride     a block in every --stride bytes      (64 KiB, stride 1 MiB)\n"
    "  repeat     the same queries again and again; counted from the second time on\n"
    "  zipf       a few blocks often, many seldom; counted after ten fills of a cache of\n"
    "             5 % of the blocks\n"
    "  hit        views of blocks that are cached, at least 4,096 of them\n"
    "\n"
    "Cases for the scheduler:\n"
    "  scatter    blocks with gaps, shuffled in windows of 256 (4 KiB, depth 512)\n"
    "  mix        reads of 4 KiB, one at a time, beside background reads of 64 KiB, 32 at a\n"
    "             time; with --jobs 2 from another thread\n"
    "\n"
    "  --file F        the file to use. Default: " SCRATCH_NAME " here, made when it is\n"
    "                  missing and kept. Writing cases refuse a file weir bench did not make.\n"
    "                  Without it zipf and hit use none, and the null backend.\n"
    "  --size S        bytes of the file to use, such as 256M or 1G (1G; a foreign file: all)\n"
    "  --bs N          bytes of one operation\n"
    "  --depth N       operations in flight, each thread (1 with --api blocking)\n"
    "  --wait-min N    wait for N operations at a time; 0: about a quarter of the depth (0)\n"
    "  --direct        past the page cache\n"
    "  --jobs N        threads, each with a queue of its own (1)\n"
    "  --threads N     the same\n"
    "  --api A         job (asynchronous), or blocking (one call at a time) (job)\n"
    "  --backend B     auto, uring, threads or null (auto)\n"
    "  --cache S       bytes of the block cache; 0: none (0 where no case above says more)\n"
    "  --block-size N  bytes of its blocks, 4K to 1M (64K)\n"
    "  --policy P      what it drops: s3fifo, 2q, arc, lru or lfu (s3fifo)\n"
    "  --prefetch W    on, or off (on)\n"
    "  --coalesce W    merge reads: on, or off (on)\n"
    "  --copy          copy what is cached into buffers, instead of viewing it\n"
    "  --stride N      for stride: from one block to the next (1M)\n"
    "  --theta T       for zipf: how uneven, from 0 to 10 (1.0)\n"
    "  --scan-beside   for zipf: a hot set of half the cache instead, beside a scan\n"
    "  --many          for scatter: a window is one job\n"
    "  --think W       for mix: when the foreground idles: none (never), read (after each\n"
    "                  read, as long as it took) or burst (every other 100 ms) (none)\n"
    "  --trace F       write a trace of all operations to F, for weir trace\n"
    "  --seconds T     measured time of a case, after a warm-up of a fifth (3)\n"
    "  --json          one JSON object a case, on one line\n"
    "  --help\n"
    "\n"
    "Interrupted, it prints what it has. Exit status: 0 done, 1 something failed, 2 wrong\n"
    "usage, 130 interrupted.\n"
    "\n"
    "  weir bench randread --direct --depth 32\n"
    "  weir bench scan stride --direct --prefetch off\n"
    "  weir bench cached overhead --json\n";

struct bench_case {
    const char *name;
    enum bench_kind kind;
    uint32_t block_bytes;
    uint32_t depth;
    uint64_t cache_bytes;
};

static const struct bench_case cases[] = {
    { "randread", BENCH_RANDREAD, 4096, 32, 0 },
    { "randwrite", BENCH_RANDWRITE, 4096, 32, 0 },
    { "seqread", BENCH_SEQREAD, 1u << 20, 8, 0 },
    { "seqwrite", BENCH_SEQWRITE, 1u << 20, 8, 0 },
    { "cached", BENCH_CACHED, 4096, 16, 0 },
    { "overhead", BENCH_OVERHEAD, 4096, 32, 0 },
    { "scan", BENCH_SCAN, BLOCK_BYTES, 1, 64u << 20 },
    { "stride", BENCH_STRIDE, BLOCK_BYTES, 1, 64u << 20 },
    { "backward", BENCH_BACKWARD, BLOCK_BYTES, 1, 64u << 20 },
    { "scatter", BENCH_SCATTER, 4096, 2 * BENCH_SCATTER_WINDOW, 0 },
    { "zipf", BENCH_ZIPF, BLOCK_BYTES, 1, 256u << 20 }, /* 4,096 blocks */
    { "repeat", BENCH_REPEAT, BLOCK_BYTES, 1, 64u << 20 },
    { "mix", BENCH_MIX, 4096, 1, 0 },
    { "hit", BENCH_HIT, BLOCK_BYTES, 1, 320u << 20 }, /* four fifths are asked for */
};

/* --- the arguments ------------------------------------------------------------------------ */

/* As given; what was not given is 0, or -1 or NOT_GIVEN where 0 has a meaning. */
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
    uint64_t cache_bytes;
    uint64_t cache_block_bytes;
    uint32_t policy;
    uint64_t stride_bytes;
    double theta;
    enum bench_think think;
    const char *trace;
    bool no_prefetch;
    bool no_merge;
    bool copy;
    bool many;
    bool scan_beside;
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

static bool parse_real(const char *text, double min, double max, double *ret_value)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !(value >= min && value <= max))
        return false;
    *ret_value = value;
    return true;
}

/* Which of `count` names it is; -1 if none. */
static int parse_name(const char *text, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0)
            return (int)i;
    return -1;
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
    OPTION_JSON,
    OPTION_CACHE,
    OPTION_BLOCK_SIZE,
    OPTION_POLICY,
    OPTION_PREFETCH,
    OPTION_COALESCE,
    OPTION_COPY,
    OPTION_STRIDE,
    OPTION_THETA,
    OPTION_SCAN_BESIDE,
    OPTION_MANY,
    OPTION_THINK,
    OPTION_TRACE
};

static const struct option long_options[] = {
    { "file", required_argument, NULL, OPTION_FILE },
    { "size", required_argument, NULL, OPTION_SIZE },
    { "bs", required_argument, NULL, OPTION_BS },
    { "depth", required_argument, NULL, OPTION_DEPTH },
    { "wait-min", required_argument, NULL, OPTION_WAIT_MIN },
    { "direct", no_argument, NULL, OPTION_DIRECT },
    { "jobs", required_argument, NULL, OPTION_JOBS },
    { "threads", required_argument, NULL, OPTION_JOBS },
    { "api", required_argument, NULL, OPTION_API },
    { "backend", required_argument, NULL, OPTION_BACKEND },
    { "seconds", required_argument, NULL, OPTION_SECONDS },
    { "json", no_argument, NULL, OPTION_JSON },
    { "cache", required_argument, NULL, OPTION_CACHE },
    { "block-size", required_argument, NULL, OPTION_BLOCK_SIZE },
    { "policy", required_argument, NULL, OPTION_POLICY },
    { "prefetch", required_argument, NULL, OPTION_PREFETCH },
    { "coalesce", required_argument, NULL, OPTION_COALESCE },
    { "copy", no_argument, NULL, OPTION_COPY },
    { "stride", required_argument, NULL, OPTION_STRIDE },
    { "theta", required_argument, NULL, OPTION_THETA },
    { "scan-beside", no_argument, NULL, OPTION_SCAN_BESIDE },
    { "many", no_argument, NULL, OPTION_MANY },
    { "think", required_argument, NULL, OPTION_THINK },
    { "trace", required_argument, NULL, OPTION_TRACE },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

/* The options of the block cache and the scheduler. Returns -1 to go on, or the exit status. */
static int take_cache_option(int option, const char *value, struct arguments *arguments)
{
    static const char *const switches[] = { "on", "off" };
    static const char *const thinks[] = { "none", "read", "burst" };
    int which;

    switch (option) {
    case OPTION_CACHE:
        if (!parse_number(value, 0, UINT64_C(1) << 50, &arguments->cache_bytes))
            return wrong_usage("--cache", value, "a number of bytes such as 64M, or 0");
        return -1;
    case OPTION_BLOCK_SIZE:
        if (!parse_number(value, 4096, 1u << 20, &arguments->cache_block_bytes) ||
            (arguments->cache_block_bytes & (arguments->cache_block_bytes - 1)) != 0)
            return wrong_usage("--block-size", value, "a power of two from 4K to 1M");
        return -1;
    case OPTION_POLICY:
        which = parse_name(value, bench_policies, WEIR_POLICIES);
        if (which < 0)
            return wrong_usage("--policy", value, "s3fifo, 2q, arc, lru or lfu");
        arguments->policy = (uint32_t)which;
        return -1;
    case OPTION_PREFETCH:
    case OPTION_COALESCE:
        which = parse_name(value, switches, 2);
        if (which < 0)
            return wrong_usage(option == OPTION_PREFETCH ? "--prefetch" : "--coalesce", value,
                               "on or off");
        if (option == OPTION_PREFETCH)
            arguments->no_prefetch = which == 1;
        else
            arguments->no_merge = which == 1;
        return -1;
    case OPTION_STRIDE:
        if (!parse_number(value, 1, UINT64_C(1) << 40, &arguments->stride_bytes))
            return wrong_usage("--stride", value, "a number of bytes, such as 1M");
        return -1;
    case OPTION_THETA:
        if (!parse_real(value, 0.0, 10.0, &arguments->theta))
            return wrong_usage("--theta", value, "a number from 0 to 10");
        return -1;
    case OPTION_THINK:
        which = parse_name(value, thinks, 3);
        if (which < 0)
            return wrong_usage("--think", value, "none, read or burst");
        arguments->think = (enum bench_think)which;
        return -1;
    default:
        return wrong_usage("option", "", "it is none"); /* not reached */
    }
}

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
            return wrong_usage("--jobs", value, "a number of threads from 1 to 256");
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
        if (!parse_real(value, 0.01, 86400.0, &arguments->seconds))
            return wrong_usage("--seconds", value, "a number from 0.01 to 86400");
        return -1;
    case OPTION_JSON:
        arguments->json = true;
        return -1;
    case OPTION_COPY:
        arguments->copy = true;
        return -1;
    case OPTION_SCAN_BESIDE:
        arguments->scan_beside = true;
        return -1;
    case OPTION_MANY:
        arguments->many = true;
        return -1;
    case OPTION_TRACE:
        arguments->trace = value;
        return value[0] != '\0' ? -1 : wrong_usage("--trace", "''", "it needs a name");
    case OPTION_CACHE:
    case OPTION_BLOCK_SIZE:
    case OPTION_POLICY:
    case OPTION_PREFETCH:
    case OPTION_COALESCE:
    case OPTION_STRIDE:
    case OPTION_THETA:
    case OPTION_THINK:
        return take_cache_option(option, value, arguments);
    case 'h':
        fputs(help_text, stdout);
        return 0;
    default:
        fputs("Try 'weir bench --help'.\n", stderr);
        return 2;
    }
}

/* What the cases with one reader or a fixed shape can't do. Returns -1, or the exit status. */
static int check_shape(const struct bench_plan *plan, const struct arguments *arguments)
{
    bool one_by_one = bench_tries(plan->kind) || plan->kind == BENCH_MIX;

    if (plan->blocking && arguments->depth > 1)
        return wrong_usage("--api", "blocking",
                           "a blocking call has depth 1; use --jobs for more at a time");
    if (plan->blocking && (one_by_one || plan->kind == BENCH_SCATTER))
        return wrong_usage(plan->name, "--api blocking", "there is no such form of this case");
    if (one_by_one && arguments->depth > 1)
        return wrong_usage(plan->name, "--depth", "this case does one thing at a time");
    if (plan->kind == BENCH_MIX && plan->threads > 2)
        return wrong_usage("mix", "--jobs", "1 thread or 2");
    if (plan->kind == BENCH_CACHED && plan->direct)
        return wrong_usage("cached", "--direct", "the page cache is what --direct goes past");
    if (plan->kind == BENCH_STRIDE &&
        (plan->stride_bytes < plan->block_bytes || plan->stride_bytes % plan->block_bytes != 0))
        return wrong_usage("stride", "--stride", "it must be a multiple of --bs");
    if (plan->wait_min > plan->depth)
        return wrong_usage(plan->name, "--wait-min", "it can't be more than the depth");
    return -1;
}

/* Does the cache suit the case? Returns -1, or the exit status. */
static int check_cache(const struct bench_plan *plan)
{
    if (plan->cache_bytes == 0 && bench_tries(plan->kind))
        return wrong_usage(plan->name, "--cache 0", "this case is about the cache");
    if (plan->cache_bytes != 0 && plan->cache_bytes < UINT64_C(16) * plan->cache_block_bytes)
        return wrong_usage(plan->name, "--cache", "it must have room for 16 blocks");
    if (bench_views(plan) && plan->cache_block_bytes % plan->block_bytes != 0)
        return wrong_usage(plan->name, "--bs",
                           "a view lies within one block of the cache: give a size that "
                           "divides --block-size, or --copy");
    return -1;
}

/* The cases that need no device. Returns -1, or the exit status. */
static int plan_memory(struct bench_plan *plan, const struct arguments *arguments)
{
    if (plan->kind == BENCH_OVERHEAD) {
        if (plan->backend != WEIR_BACKEND_AUTO && plan->backend != WEIR_BACKEND_NULL)
            return wrong_usage("overhead --backend", arguments->backend_name,
                               "this case runs on null alone");
        if (plan->blocking)
            return wrong_usage("overhead", "--api blocking",
                               "a blocking call has no backend to leave out");
        plan->in_memory = true;
        plan->direct = false;
    } else if (bench_tries(plan->kind) && arguments->file == NULL) {
        if (plan->direct)
            return wrong_usage(plan->name, "--direct", "name a file with --file");
        plan->in_memory = true;
    }
    plan->cache_part =
        plan->kind == BENCH_ZIPF && !plan->in_memory && arguments->cache_bytes == NOT_GIVEN;
    if (!plan->in_memory)
        return -1;
    if (plan->backend == WEIR_BACKEND_AUTO)
        plan->backend = WEIR_BACKEND_NULL;
    if (plan->size_bytes == 0)
        plan->size_bytes =
            plan->kind == BENCH_ZIPF ? ZIPF_BLOCKS * plan->cache_bytes : UINT64_C(1) << 30;
    return -1;
}

/* The case with the options over its defaults. Returns -1, or the exit status. */
static int make_plan(const struct bench_case *which, const struct arguments *arguments,
                     struct bench_plan *plan)
{
    int status;

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
    plan->cache_bytes =
        arguments->cache_bytes != NOT_GIVEN ? arguments->cache_bytes : which->cache_bytes;
    plan->cache_block_bytes = BLOCK_BYTES;
    if (arguments->cache_block_bytes != 0) {
        plan->cache_block_bytes = (uint32_t)arguments->cache_block_bytes;
        if (arguments->block_bytes == 0 && plan->cache_block_bytes < plan->block_bytes)
            plan->block_bytes = plan->cache_block_bytes;
    }
    plan->policy = arguments->policy;
    plan->stride_bytes = arguments->stride_bytes;
    plan->theta = arguments->theta;
    plan->think = arguments->think;
    plan->trace = arguments->trace;
    plan->no_prefetch = arguments->no_prefetch;
    plan->no_merge = arguments->no_merge;
    plan->many = arguments->many && plan->kind == BENCH_SCATTER;
    plan->copy = arguments->copy || plan->many || plan->kind == BENCH_MIX;
    plan->scan_beside = arguments->scan_beside;
    plan->direct = arguments->direct;
    plan->blocking = arguments->blocking;
    plan->json = arguments->json;
    plan->quiet = arguments->json;
    if (bench_tries(plan->kind))
        plan->copy = false; /* views are what they are about */
    if (plan->kind == BENCH_SCATTER && plan->depth > BENCH_SCATTER_WINDOW)
        plan->depth -= plan->depth % BENCH_SCATTER_WINDOW; /* whole windows */
    if (plan->blocking) {
        plan->depth = 1;
        plan->wait_min = 1;
    }

    status = plan_memory(plan, arguments);
    if (status < 0)
        status = check_shape(plan, arguments);
    if (status < 0)
        status = check_cache(plan);
    return status;
}

/* --- one case, and all of them --------------------------------------------------------------- */

static int run_load(const struct bench_plan *plan, struct bench_result *result)
{
    return plan->kind == BENCH_MIX ? bench_mix_run(plan, result) : bench_load_run(plan, result);
}

/* What was asked for on the command line goes before WEIR_BACKEND, for this case alone. */
static int run_with_backend(const struct bench_plan *plan, struct bench_result *result)
{
    const char *variable = getenv("WEIR_BACKEND");
    char saved[64];
    int status;

    if (variable == NULL || plan->backend == WEIR_BACKEND_AUTO)
        return run_load(plan, result);
    snprintf(saved, sizeof(saved), "%s", variable);
    unsetenv("WEIR_BACKEND");
    status = run_load(plan, result);
    setenv("WEIR_BACKEND", saved, 1);
    return status;
}

/* Are there enough blocks, and not too many? Returns 0, or 1 after telling. */
static int check_size(const struct bench_plan *plan)
{
    uint64_t blocks = plan->size_bytes / plan->block_bytes;
    uint64_t needed = plan->kind == BENCH_MIX ? BENCH_MIX_BYTES / plan->block_bytes + 1 : 1;
    bool walks_cached = plan->kind == BENCH_SCAN || plan->kind == BENCH_BACKWARD ||
                        plan->kind == BENCH_STRIDE || plan->kind == BENCH_ZIPF;

    if (plan->kind == BENCH_SCATTER)
        needed = 2;
    if (blocks < needed * plan->threads || blocks > UINT32_MAX) {
        bench_say("%s: %llu bytes in blocks of %u make too %s blocks; change --bs\n",
                  plan->path, (unsigned long long)plan->size_bytes, plan->block_bytes,
                  blocks > UINT32_MAX ? "many" : "few");
        return 1;
    }
    if (walks_cached && plan->cache_bytes >= plan->size_bytes) {
        bench_say("%s: the cache has room for all of the %llu bytes, so there would be nothing "
                  "to see; a larger --size, or a smaller --cache\n",
                  plan->name, (unsigned long long)plan->size_bytes);
        return 1;
    }
    return 0;
}

static int run_case(const struct bench_plan *given, bool with_head)
{
    struct bench_plan plan = *given;
    struct bench_result *result;
    int status;

    if (!plan.in_memory && bench_scratch_prepare(&plan, &plan.size_bytes) != 0)
        return 1;
    if (plan.cache_part)
        plan.cache_bytes =
            plan.size_bytes / ZIPF_BLOCKS / plan.cache_block_bytes * plan.cache_block_bytes;
    if (check_size(&plan) != 0)
        return 1;
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
        status = bench_print(&plan, result, with_head);
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
    struct arguments arguments = { .wait_min = -1,
                                   .seconds = 3.0,
                                   .cache_bytes = NOT_GIVEN,
                                   .stride_bytes = 1u << 20,
                                   .theta = 1.0 };
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
                               "randread, randwrite, seqread, seqwrite, cached, overhead, "
                               "scan, stride, backward, scatter, zipf, repeat, mix or hit");
    if (arguments.trace != NULL && argc - optind > 1)
        return wrong_usage("--trace", arguments.trace, "a trace is of one case");

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
