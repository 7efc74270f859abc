/* SPDX-License-Identifier: MIT */
/*
 * trace_summary.c - weir trace show --summary: what a trace amounts to
 *
 * An access is in sequence if it begins where one of the last eight accesses to its file ended
 * (in the order of submits), so that several readers of one file each count as what they are.
 * What the engine did of its own (loads of the block cache), and what never came to the device,
 * is listed, but is no access.
 */
#include <inttypes.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench_measure.h"
#include "trace_internal.h"

#define CLASSES      16u /* more than there are */
#define STREAMS      8u
#define BUSIEST      10u
#define SIZE_CLASSES 65u

/* Operations of one kind, class and origin. */
struct group {
    uint8_t op;
    uint8_t io_class;
    bool internal;
    uint64_t failed;
    uint64_t bytes;
    struct bench_histogram latency;
};

struct file_use {
    char *path;
    uint64_t count;
    uint64_t bytes;
    uint64_t ends[STREAMS];
    uint32_t next_end;
};

struct summary {
    struct weir_trace_info info;
    char version[40];
    char backend[24];
    struct group *groups[256][CLASSES][2];
    uint64_t sizes[SIZE_CLASSES]; /* by the power of two that is not below */
    uint64_t accesses;
    uint64_t in_sequence;
    void *files; /* a tree by path */
    struct file_use **list;
    size_t list_count;
    size_t list_room;
    const char *last_path; /* of the reader: the same pointer is the same file */
    struct file_use *last_file;
};

/* ---- gathering -------------------------------------------------------------------------------- */

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct file_use *)a)->path, ((const struct file_use *)b)->path);
}

static struct file_use *add_file(struct summary *summary, const char *path)
{
    struct file_use *use = calloc(1, sizeof(*use));

    if (summary->list_count == summary->list_room) {
        size_t room = summary->list_room ? 2 * summary->list_room : 64;
        struct file_use **list = realloc(summary->list, room * sizeof(*list));

        if (!list)
            goto fail;
        summary->list = list;
        summary->list_room = room;
    }
    if (!use)
        goto fail;
    use->path = strdup(path);
    if (!use->path || !tsearch(use, &summary->files, by_path))
        goto fail;
    memset(use->ends, 0xff, sizeof(use->ends));
    summary->list[summary->list_count++] = use;
    return use;

fail:
    if (use)
        free(use->path);
    free(use);
    return NULL;
}

/* NULL without memory. */
static struct file_use *file_of(struct summary *summary, const char *path)
{
    union {
        const char *given;
        char *path;
    } same = { .given = path };
    struct file_use key = { .path = same.path };
    void *found;

    if (path == summary->last_path)
        return summary->last_file;
    found = tfind(&key, &summary->files, by_path);
    summary->last_file = found ? *(struct file_use **)found : add_file(summary, path);
    summary->last_path = path;
    return summary->last_file;
}

static bool is_in_sequence(struct file_use *use, uint64_t offset, uint64_t end)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        if (use->ends[i] == offset) {
            use->ends[i] = end;
            return true;
        }
    }
    use->ends[use->next_end++ % STREAMS] = end;
    return false;
}

static uint32_t size_class(uint64_t len)
{
    return len <= 1 ? 0 : 64u - (uint32_t)__builtin_clzll(len - 1);
}

static bool add_access(struct summary *summary, const struct weir_trace_record *record)
{
    uint64_t bytes = record->result > 0 ? (uint64_t)record->result : 0;
    struct file_use *use;

    summary->accesses++;
    summary->sizes[size_class(record->len)]++;
    if (!record->path)
        return true;
    use = file_of(summary, record->path);
    if (!use)
        return false;
    use->count++;
    use->bytes += bytes;
    if (is_in_sequence(use, record->offset, record->offset + record->len))
        summary->in_sequence++;
    return true;
}

static bool add_record(struct summary *summary, const struct weir_trace_record *record)
{
    bool internal = (record->flags & WEIR_TRACE_INTERNAL) != 0;
    bool moves = trace_op_reads(record->op) || trace_op_writes(record->op);
    uint32_t io_class = record->io_class < CLASSES ? record->io_class : CLASSES - 1;
    struct group **place = &summary->groups[record->op][io_class][internal];
    struct group *group = *place;

    if (!group) {
        group = *place = calloc(1, sizeof(*group));
        if (!group)
            return false;
        group->op = record->op;
        group->io_class = record->io_class;
        group->internal = internal;
    }
    bench_histogram_add(&group->latency, record->wait_ns + record->device_ns);
    if (record->result < 0)
        group->failed++;
    else if (moves)
        group->bytes += (uint64_t)record->result;
    return !moves || internal || (record->flags & WEIR_TRACE_UNSTARTED) ||
           add_access(summary, record);
}

/* ---- telling ------------------------------------------------------------------------------------ */

static int by_count(const void *a, const void *b)
{
    const struct file_use *left = *(struct file_use *const *)a;
    const struct file_use *right = *(struct file_use *const *)b;

    if (left->count != right->count)
        return left->count < right->count ? 1 : -1;
    return strcmp(left->path, right->path);
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static const char *when(char buf[CLI_TEXT], int64_t since_1970_ns)
{
    time_t seconds = (time_t)(since_1970_ns / 1000000000);
    struct tm tm;

    if (!gmtime_r(&seconds, &tm) || strftime(buf, CLI_TEXT, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
        buf[0] = '\0';
    return buf;
}

static void text_group(const struct group *group)
{
    static const double shares[] = { 0.5, 0.95, 0.99, 1 };
    char op[TRACE_NAME];
    char io_class[TRACE_NAME];
    char name[32];
    char count[CLI_TEXT];
    char failed[CLI_TEXT];
    char bytes[CLI_TEXT];

    snprintf(name, sizeof(name), "%s%s", trace_op_name(op, group->op),
             group->internal ? " (own)" : "");
    printf("  %-14s %-10s %12s %10s %8s", name, trace_class_name(io_class, group->io_class),
           cli_count(count, group->latency.count), cli_bytes(bytes, group->bytes),
           cli_count(failed, group->failed));
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        char span[CLI_TEXT];

        printf(
            " %8s",
            cli_span(span, (uint64_t)(bench_histogram_us(&group->latency, shares[i]) * 1e3)));
    }
    putchar('\n');
}

/* "4 KiB", exactly, for a power of two. */
static const char *size_text(char buf[CLI_TEXT], uint32_t power)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };

    snprintf(buf, CLI_TEXT, "%u %s", 1u << power % 10, units[power / 10]);
    return buf;
}

static void each_group(const struct summary *summary, void (*tell)(const struct group *group))
{
    for (uint32_t op = 0; op < 256; op++)
        for (uint32_t c = 0; c < CLASSES; c++)
            for (uint32_t internal = 0; internal < 2; internal++)
                if (summary->groups[op][c][internal])
                    tell(summary->groups[op][c][internal]);
}

static void tell_text(const struct summary *summary)
{
    const struct weir_trace_info *info = &summary->info;
    char a[CLI_TEXT];
    char b[CLI_TEXT];
    const char *comma = "";

    printf("trace     weir %s, %s, %s\n", summary->version, summary->backend,
           when(a, info->started_ns));
    printf("  length  ");
    if (info->complete)
        printf("%s, ", cli_span(a, info->ended_ns));
    printf("%s, %s dropped\n", cli_things(a, info->records, "record", "records"),
           info->complete ? cli_count(b, info->dropped) : "not known how many");
    if (info->records > 0)
        printf("\n  %-14s %-10s %12s %10s %8s %8s %8s %8s %8s\n", "operation", "class", "count",
               "bytes", "failed", "p50", "p95", "p99", "max");
    each_group(summary, text_group);
    if (summary->accesses == 0)
        return;
    printf("\nsizes     ");
    for (uint32_t i = 0; i < SIZE_CLASSES; i++) {
        if (summary->sizes[i] == 0)
            continue;
        printf("%sup to %s %.1f %%", comma, i < 64 ? size_text(a, i) : "16 EiB",
               share(summary->sizes[i], summary->accesses));
        comma = ", ";
    }
    printf("\nsequence  %.1f %% of %s\n", share(summary->in_sequence, summary->accesses),
           cli_things(a, summary->accesses, "access", "accesses"));
    if (summary->list_count == 0)
        return;
    printf("files     %s; the busiest:\n", cli_count(a, summary->list_count));
    for (size_t i = 0; i < summary->list_count && i < BUSIEST; i++) {
        char name[1024];

        printf("  %12s %10s  %s\n", cli_count(a, summary->list[i]->count),
               cli_bytes(b, summary->list[i]->bytes),
               cli_name(name, sizeof(name), summary->list[i]->path));
    }
}

static const char *json_comma; /* between groups */

static void json_group(const struct group *group)
{
    char op[TRACE_NAME];
    char io_class[TRACE_NAME];

    printf("%s{\"op\":\"%s\",\"class\":\"%s\",\"internal\":%s,\"count\":%" PRIu64
           ",\"bytes\":%" PRIu64 ",\"failed\":%" PRIu64
           ",\"lat_us\":{\"p50\":%.1f,\"p95\":%.1f,\"p99\":%.1f,\"max\":%.1f}}",
           json_comma, trace_op_name(op, group->op),
           trace_class_name(io_class, group->io_class), group->internal ? "true" : "false",
           group->latency.count, group->bytes, group->failed,
           bench_histogram_us(&group->latency, 0.5), bench_histogram_us(&group->latency, 0.95),
           bench_histogram_us(&group->latency, 0.99), (double)group->latency.max_ns / 1e3);
    json_comma = ",";
}

static void tell_json(const struct summary *summary)
{
    const struct weir_trace_info *info = &summary->info;
    const char *comma = "";

    printf("{\"verb\":\"trace show\",\"version\":");
    cli_json_string(stdout, summary->version);
    printf(",\"backend\":");
    cli_json_string(stdout, summary->backend);
    printf(",\"started_ns\":%" PRId64 ",\"complete\":%s,\"records\":%" PRIu64
           ",\"lost\":%" PRIu64 ",\"dropped\":%" PRIu64 ",\"length_ns\":%" PRIu64
           ",\"operations\":[",
           info->started_ns, info->complete ? "true" : "false", info->records, info->lost,
           info->dropped, info->ended_ns);
    json_comma = "";
    each_group(summary, json_group);
    printf("],\"accesses\":%" PRIu64 ",\"in_sequence\":%" PRIu64 ",\"sizes\":[",
           summary->accesses, summary->in_sequence);
    for (uint32_t i = 0; i < SIZE_CLASSES; i++) {
        if (summary->sizes[i] == 0)
            continue;
        printf("%s{\"up_to\":%" PRIu64 ",\"count\":%" PRIu64 "}", comma,
               i < 64 ? UINT64_C(1) << i : UINT64_MAX, summary->sizes[i]);
        comma = ",";
    }
    printf("],\"files\":%zu,\"busiest\":[", summary->list_count);
    for (size_t i = 0; i < summary->list_count && i < BUSIEST; i++) {
        printf("%s{\"path\":", i ? "," : "");
        cli_json_string(stdout, summary->list[i]->path);
        printf(",\"count\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", summary->list[i]->count,
               summary->list[i]->bytes);
    }
    puts("]}");
}

/* ---- all of it ------------------------------------------------------------------------------------ */

static void keep_files(void *use)
{
    (void)use; /* freed from the list */
}

static void free_summary(struct summary *summary)
{
    tdestroy(summary->files, keep_files);
    for (size_t i = 0; i < summary->list_count; i++) {
        free(summary->list[i]->path);
        free(summary->list[i]);
    }
    free(summary->list);
    for (uint32_t op = 0; op < 256; op++)
        for (uint32_t c = 0; c < CLASSES; c++)
            for (uint32_t internal = 0; internal < 2; internal++)
                free(summary->groups[op][c][internal]);
    free(summary);
}

int trace_show_summary(const struct trace_arguments *arguments)
{
    struct summary *summary = calloc(1, sizeof(*summary));
    struct weir_trace_record record;
    struct trace_input input;
    bool ok = summary != NULL;

    if (!ok) {
        cli_say(VERB, "no memory");
        return CLI_FAILED;
    }
    if (trace_input_open(&input, arguments->path)) {
        while (ok && trace_input_next_submitted(&input, &record))
            ok = add_record(summary, &record);
        if (ok) {
            summary->info.size = sizeof(summary->info);
            weir_trace_reader_info(input.reader, &summary->info);
            cli_name(summary->version, sizeof(summary->version), summary->info.version);
            cli_name(summary->backend, sizeof(summary->backend), summary->info.backend);
            if (summary->list_count > 1)
                qsort(summary->list, summary->list_count, sizeof(*summary->list), by_count);
            (arguments->json ? tell_json : tell_text)(summary);
            (void)fflush(stdout);
            trace_input_tell_dropped(&input);
        } else {
            cli_say(VERB, "no memory");
            input.status = CLI_FAILED;
        }
    }
    trace_input_close(&input);
    free_summary(summary);
    return input.status;
}
