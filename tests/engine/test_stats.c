/* SPDX-License-Identifier: MIT */
/*
 * test_stats.c - that no counter is missed on its way from a queue to JSON and Prometheus; the
 * formats; the dump
 *
 * That operations are counted as what they are is in test_engine.c and beside what is counted.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stats_internal.h"
#include "support/faulty.h"

/* --- adding up ----------------------------------------------------------------------------- */

static uint64_t field_of(const struct weir_stats *stats, size_t offset)
{
    uint64_t value;

    memcpy(&value, (const char *)stats + offset, sizeof(value));
    return value;
}

#define BOTH(field)                                                                  \
    {                                                                                \
        offsetof(struct queue_stats, field), offsetof(struct blocking_stats, field), \
            offsetof(struct weir_stats, field)                                       \
    }
#define QUEUE(field)                                                               \
    {                                                                              \
        offsetof(struct queue_stats, field), 0, offsetof(struct weir_stats, field) \
    }

/* Each counter of two queues, of one that was closed, and of blocking calls is in the sum. */
static void stats__every_counter_is_summed(struct env *env)
{
    static const struct {
        size_t queue;
        size_t blocking;
        size_t total;
    } counters[] = {
        QUEUE(inline_reads), BOTH(retries),           BOTH(continued),     QUEUE(posted),
        QUEUE(device_ops),   QUEUE(device_bytes),     BOTH(merges),        BOTH(merged),
        BOTH(merge_splits),  BOTH(gap_bytes),         QUEUE(budget_waits), QUEUE(yield_waits),
        QUEUE(promoted),     BOTH(retries_refused),   QUEUE(stalls),       QUEUE(cache_loads),
        QUEUE(cache_shared), QUEUE(prefetch_skipped),
    };
    struct weir_stats stats = { .size = sizeof(stats) };
    struct weir_queue *other = NULL;

    check_code(weir_queue_open(env->engine, NULL, &other), 0);
    for (size_t i = 0; i < COUNT(counters); i++) {
        _Atomic uint64_t *at[4] = {
            (void *)((char *)&env->queue->stats + counters[i].queue),
            (void *)((char *)&other->stats + counters[i].queue),
            (void *)((char *)&env->engine->blocking[0] + counters[i].blocking),
            (void *)((char *)&env->engine->blocking[7] + counters[i].blocking),
        };

        atomic_fetch_add(at[0], (i + 1) * 1000);
        atomic_fetch_add(at[1], (i + 1) * 100000);
        if (counters[i].blocking) {
            atomic_fetch_add(at[2], i + 1);
            atomic_fetch_add(at[3], 2 * (i + 1));
        }
    }
    for (int round = 0; round < 2; round++) {
        check_code(weir_engine_stats(env->engine, &stats), 0);
        for (size_t i = 0; i < COUNT(counters); i++)
            check(field_of(&stats, counters[i].total) ==
                  (i + 1) * (101000u + (counters[i].blocking ? 3u : 0u)));
        if (round == 0)
            check_code(weir_queue_close(other, TEST_LONG), 0);
    }
}

/* The table of names has every number of the public struct, once. */
static void stats__every_number_has_a_name(struct env *env)
{
    size_t special = sizeof(size_t) + sizeof(((struct weir_stats *)0)->ops) +
                     sizeof(((struct weir_stats *)0)->pool_tasks) +
                     sizeof(((struct weir_stats *)0)->pool_threads_peak);

    (void)env;
    check_code(wi_stats_fields_count, (sizeof(struct weir_stats) - special) / sizeof(uint64_t));
    for (size_t i = 0; i < wi_stats_fields_count; i++) {
        check(wi_stats_fields[i].offset % sizeof(uint64_t) == 0);
        for (size_t k = 0; k < i; k++) {
            check(wi_stats_fields[i].offset != wi_stats_fields[k].offset);
            check(strcmp(wi_stats_fields[i].name, wi_stats_fields[k].name) != 0);
        }
    }
}

/* All of them are in the JSON, each in its group, and metrics. */
static void stats__json_has_every_number(struct env *env)
{
    char *json;
    char want[100];

    check_code(weir_metric_record(env->engine, "parse/one", 5), 0);
    json = weir_engine_stats_json(env->engine);
    check(json != NULL);
    for (size_t i = 0; i < wi_stats_fields_count; i++) {
        const char *place = json;

        if (wi_stats_fields[i].group) {
            (void)snprintf(want, sizeof(want), "\"%s\":{", wi_stats_fields[i].group);
            place = strstr(json, want);
            check(place != NULL);
        }
        (void)snprintf(want, sizeof(want), "\"%s\":", wi_stats_fields[i].key);
        check(strstr(place, want) != NULL);
    }
    check(strstr(json, "\"metrics\":{\"parse/one\":{\"count\":1,\"mean\":5,\"p50\":5,\"p95\":5,"
                       "\"p99\":5,\"p999\":5,\"max\":5,\"min\":5}}") != NULL);
    weir_free(json);
}

/* --- a strict reader of the exposition format ------------------------------------------------- */

enum {
    LABELS_MAX = 4,
    TEXT_MAX = 400
};

struct sample {
    char name[100];
    char labels[TEXT_MAX]; /* all but `le`, unescaped, each "name=value;" */
    char le[40];           /* "" if there is none */
    double value;
    size_t family; /* index of its # TYPE */
};

struct family {
    char name[100];
    char type[20];
};

struct page {
    struct sample *samples;
    size_t count;
    struct family *families;
    size_t families_count;
};

static size_t name_len(const char *text, bool colon)
{
    size_t len = 0;

    while (isalpha((unsigned char)text[len]) || text[len] == '_' ||
           (colon && text[len] == ':') || (len > 0 && isdigit((unsigned char)text[len])))
        len++;
    return len;
}

static const char *read_name(const char *line, bool colon, char *to, size_t room)
{
    size_t len = name_len(line, colon);

    check(len > 0 && len < room);
    memcpy(to, line, len);
    to[len] = '\0';
    return line + len;
}

/* name="value", after the name: the value unescaped, and what follows. */
static const char *read_label_value(const char *line, char *to, size_t room)
{
    size_t len = 0;

    check(line[0] == '=' && line[1] == '"');
    for (line += 2; *line != '"'; line++) {
        char c = *line;

        check(c != '\0' && c != '\n');
        if (c == '\\') {
            c = *++line;
            check(c == '\\' || c == '"' || c == 'n');
            if (c == 'n')
                c = '\n';
        }
        check(len + 1 < room);
        to[len++] = c;
    }
    to[len] = '\0';
    return line + 1;
}

static const char *read_labels(const char *line, struct sample *sample)
{
    size_t used = 0;

    if (*line != '{')
        return line;
    do {
        char name[40];
        char value[TEXT_MAX];

        line = read_name(line + 1, false, name, sizeof(name));
        line = read_label_value(line, value, sizeof(value));
        if (strcmp(name, "le") == 0) {
            check(strlen(value) < sizeof(sample->le));
            memcpy(sample->le, value, strlen(value) + 1);
            continue;
        }
        used += (size_t)snprintf(sample->labels + used, sizeof(sample->labels) - used, "%s=%s;",
                                 name, value);
        check(used < sizeof(sample->labels));
    } while (*line == ',');
    check(*line == '}');
    return line + 1;
}

/* "# HELP name text\n# TYPE name type\n" */
static const char *read_head(const char *line, struct page *page)
{
    struct family *family = &page->families[page->families_count++];
    char name[100];

    check(strncmp(line, "# HELP ", 7) == 0);
    line = read_name(line + 7, true, family->name, sizeof(family->name));
    check(line[0] == ' ' && line[1] != ' ' && line[1] != '\n');
    line = strchr(line, '\n');
    check(line != NULL && strncmp(line, "\n# TYPE ", 8) == 0);
    line = read_name(line + 8, true, name, sizeof(name));
    check(strcmp(name, family->name) == 0);
    check(line[0] == ' ');
    line = read_name(line + 1, false, family->type, sizeof(family->type));
    check(strcmp(family->type, "counter") == 0 || strcmp(family->type, "gauge") == 0 ||
          strcmp(family->type, "histogram") == 0);
    for (size_t i = 0; i + 1 < page->families_count; i++)
        check(strcmp(page->families[i].name, family->name) != 0); /* once */
    return line;
}

static const char *read_sample(const char *line, struct page *page)
{
    struct sample *sample = &page->samples[page->count++];
    const struct family *family;
    char *end;

    check(page->families_count > 0);
    sample->family = page->families_count - 1;
    family = &page->families[sample->family];
    line = read_name(line, true, sample->name, sizeof(sample->name));
    line = read_labels(line, sample);
    check(line[0] == ' ' && (isdigit((unsigned char)line[1]) != 0));
    sample->value = strtod(line + 1, &end);

    /* It belongs to the family above it, by its name. */
    if (strcmp(family->type, "histogram") == 0) {
        size_t len = strlen(family->name);

        check(strncmp(sample->name, family->name, len) == 0);
        check((strcmp(sample->name + len, "_bucket") == 0) == (sample->le[0] != '\0'));
        check(sample->le[0] != '\0' || strcmp(sample->name + len, "_sum") == 0 ||
              strcmp(sample->name + len, "_count") == 0);
    } else {
        bool total = strlen(sample->name) > 6 &&
                     strcmp(sample->name + strlen(sample->name) - 6, "_total") == 0;

        check(strcmp(sample->name, family->name) == 0);
        check(sample->le[0] == '\0');
        check(total == (strcmp(family->type, "counter") == 0));
    }
    return end;
}

static int compare_samples(const void *a, const void *b)
{
    const struct sample *left = a;
    const struct sample *right = b;
    int order = strcmp(left->name, right->name);

    if (order == 0)
        order = strcmp(left->labels, right->labels);
    return order ? order : strcmp(left->le, right->le);
}

/* Buckets rise to +Inf, and then come the sum and the count, which is the same. */
static void check_histograms(const struct page *page)
{
    for (size_t i = 0; i < page->count;) {
        const struct sample *first = &page->samples[i];
        double le = -1;
        double count = 0;

        if (strcmp(page->families[first->family].type, "histogram") != 0) {
            i++;
            continue;
        }
        for (; !isinf(le); i++) {
            const struct sample *sample = &page->samples[i];
            char *end;

            check(i < page->count && sample->le[0] != '\0');
            check(strcmp(sample->labels, first->labels) == 0);
            check(strtod(sample->le, &end) > le && *end == '\0');
            check(sample->value >= count);
            le = strtod(sample->le, NULL);
            count = sample->value;
        }
        check(strcmp(page->samples[i - 1].le, "+Inf") == 0);
        check(i + 2 <= page->count);
        check(strstr(page->samples[i].name, "_sum") != NULL);
        check(strcmp(page->samples[i].labels, first->labels) == 0);
        check(strstr(page->samples[i + 1].name, "_count") != NULL);
        check(strcmp(page->samples[i + 1].labels, first->labels) == 0);
        check(page->samples[i + 1].value == count);
        i += 2;
    }
}

static struct page read_page(const char *text)
{
    struct page page = { 0 };
    struct sample *sorted;
    size_t lines = 0;

    check(text != NULL && text[0] != '\0' && text[strlen(text) - 1] == '\n');
    for (const char *c = text; *c; c++)
        lines += *c == '\n';
    check(lines > 0);
    lines += lines == 0; /* for the analyser, which does not know check() */
    page.samples = calloc(lines, sizeof(*page.samples));
    page.families = calloc(lines, sizeof(*page.families));
    sorted = calloc(lines, sizeof(*sorted));
    check(page.samples != NULL && page.families != NULL && sorted != NULL);
    for (const char *line = text; *line; line++) {
        line = *line == '#' ? read_head(line, &page) : read_sample(line, &page);
        check(*line == '\n');
    }
    check_histograms(&page);
    memcpy(sorted, page.samples, page.count * sizeof(*sorted));
    qsort(sorted, page.count, sizeof(*sorted), compare_samples);
    for (size_t i = 1; i < page.count; i++)
        check(compare_samples(&sorted[i - 1], &sorted[i]) != 0);
    free(sorted);
    return page;
}

static void free_page(struct page *page)
{
    free(page->samples);
    free(page->families);
}

static const struct sample *find_sample(const struct page *page, const char *name,
                                        const char *labels, const char *le)
{
    static const struct sample none;

    for (size_t i = 0; i < page->count; i++) {
        const struct sample *sample = &page->samples[i];

        if (strcmp(sample->name, name) == 0 && strcmp(sample->labels, labels) == 0 &&
            strcmp(sample->le, le) == 0)
            return sample;
    }
    (void)fprintf(stderr, "there is no %s{%s}\n", name, labels);
    check(false);
    return &none;
}

/* --- Prometheus ------------------------------------------------------------------------------- */

static struct weir_file *make_file(struct weir_engine *engine, size_t size)
{
    const char *path = test_new_path("stats");
    struct weir_file *file = NULL;

    pattern_make_file(path, size, 3);
    check_code(
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL),
        0);
    return file;
}

/* Every line is as the format wants it, with work of all classes done or nothing at all; every
 * number is there, and says what the snapshot says. */
static void prometheus__is_as_the_format_wants_it(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 64 * KIB);
    struct weir_stats stats = { .size = sizeof(stats) };
    struct probe probe;
    uint8_t buf[4096];
    char *text = weir_engine_prometheus(env->engine);
    struct page page = read_page(text);

    free_page(&page);
    weir_free(text);
    for (uint32_t i = 0; i < 4 * WEIR_CLASSES; i++) {
        weir_job_read(&probe.job, file, buf, sizeof(buf), i % 16 * 4096, NULL, NULL);
        probe.job.io_class = (uint8_t)(i % WEIR_CLASSES);
        check_code(probe_run(env->queue, &probe), sizeof(buf));
        check_code(weir_file_read(file, buf, 100, 0), 100);
    }
    weir_job_sync(&probe.job, file, WEIR_SYNC_DATA, NULL, NULL);
    check_code(probe_run(env->queue, &probe), 0);
    check_code(weir_metric_record(env->engine, "a/b.c", 1500), 0);
    check_code(weir_metric_record(env->engine, "b", UINT64_MAX), 0);

    text = weir_engine_prometheus(env->engine);
    page = read_page(text);
    check_code(weir_engine_stats(env->engine, &stats), 0);
    check(find_sample(&page, "weir_operations_total", "op=read;", "")->value == 40);
    check(find_sample(&page, "weir_operations_blocking_total", "op=read;", "")->value == 20);
    check(find_sample(&page, "weir_operations_bytes_total", "op=read;", "")->value ==
          20 * 4096 + 20 * 100);
    for (uint32_t c = 0; c < WEIR_CLASSES; c++) {
        char labels[60];

        (void)snprintf(labels, sizeof(labels), "op=read;class=%s;", weir_class_name(c));
        check(find_sample(&page, "weir_total_seconds_count", labels, "")->value == 4);
        check(find_sample(&page, "weir_wait_seconds_bucket", labels, "+Inf")->value == 4);
    }
    check(find_sample(&page, "weir_total_seconds_count", "op=sync;class=foreground;", "")
              ->value == 1);
    check(find_sample(&page, "weir_turns_total", "", "")->value == (double)stats.turns);
    check(find_sample(&page, "weir_files_open", "", "")->value == 1);
    for (size_t i = 0; i < wi_stats_fields_count; i++)
        (void)find_sample(&page, wi_stats_fields[i].name, "", "");
    check(find_sample(&page, "weir_metric_seconds_count", "name=a/b.c;", "")->value == 1);
    check(find_sample(&page, "weir_metric_min_seconds", "name=a/b.c;", "")->value == 1.5e-6);
    check(find_sample(&page, "weir_metric_max_seconds", "name=b;", "")->value > 1.8e10);
    free_page(&page);
    weir_free(text);
    check(weir_engine_prometheus(NULL) == NULL);
    check_code(weir_file_close(file), 0);
}

/* Labels may hold anything. */
static void prometheus__escapes_labels(struct env *env)
{
    static const char why[] = "a \"quoted\" \\ word,\nand {another}=1";
    char want[200];
    char *text;
    struct page page;

    (void)snprintf(env->engine->why, sizeof(env->engine->why), "%s", why);
    text = weir_engine_prometheus(env->engine);
    page = read_page(text);
    (void)snprintf(want, sizeof(want), "backend=%s;why=%s;", env->backend_name, why);
    check(find_sample(&page, "weir_info", want, "")->value == 1);
    free_page(&page);
    weir_free(text);
}

/* The count up to each bound is exactly that of the values that are not above it. */
static void prometheus__buckets_are_exact(struct env *env)
{
    enum {
        VALUES = 3000
    };
    struct test_rng rng = { test_seed() };
    uint64_t *values = calloc(VALUES, sizeof(*values));
    struct page page;
    double sum = 0;
    size_t seen = 0;
    char *text;

    check(values != NULL);
    for (size_t i = 0; i < VALUES; i++) {
        uint64_t power = UINT64_C(1) << rng_below(&rng, 38);

        switch (rng_below(&rng, 3)) {
        case 0: /* around the bounds */
            values[i] = power - 1 + rng_below(&rng, 3);
            break;
        default:
            values[i] = power + rng_below(&rng, power);
            break;
        }
        sum += (double)values[i] / 1e9;
        check_code(weir_metric_record(env->engine, "x", values[i]), 0);
    }
    text = weir_engine_prometheus(env->engine);
    page = read_page(text);
    for (size_t i = 0; i < page.count; i++) {
        const struct sample *sample = &page.samples[i];
        double count = 0;

        if (strcmp(sample->name, "weir_metric_seconds_bucket") != 0)
            continue;
        for (size_t k = 0; k < VALUES; k++)
            count += (double)values[k] <= strtod(sample->le, NULL) * 1e9 + 1e-3;
        check(sample->value == count);
        seen++;
    }
    check_code(seen, 26);
    check(fabs(find_sample(&page, "weir_metric_seconds_sum", "name=x;", "")->value - sum) <
          1e-6 * sum);
    free_page(&page);
    weir_free(text);
    free(values);
}

/* --- what is in flight ---------------------------------------------------------------------- */

/* What hangs at the device is counted as such, once it takes longer than it may. */
static void stalled__is_what_hangs(struct env *env)
{
    static const uint64_t may_take_ns[] = { 1, TEST_LONG, WEIR_NEVER };

    for (size_t round = 0; round < COUNT(may_take_ns); round++) {
        struct weir_engine_options options = { .size = sizeof(options),
                                               .stall_ns = may_take_ns[round] };
        struct weir_stats stats = { .size = sizeof(stats) };
        struct weir_file *file;
        struct faulty f;
        struct probe probes[3];
        uint8_t buf[3][512];

        faulty_open(&f, env->backend, 2, 0, &options);
        file = make_file(f.engine, 64 * KIB);
        faulty_hang(&f, WI_FAULT_READ, 2, true);
        for (size_t i = 0; i < COUNT(probes); i++) {
            weir_job_read(&probes[i].job, file, buf[i], sizeof(buf[i]), i * 8192, NULL, NULL);
            probes[i].job.flags = WEIR_JOB_ALONE;
            probe_submit(f.queue, &probes[i]);
        }
        check_code(weir_engine_stats(f.engine, &stats), 0);
        check_code(stats.stalled, 0); /* not started yet */
        check_code(weir_queue_run(f.queue), 0);
        check_code(weir_engine_stats(f.engine, &stats), 0);
        check_code(stats.stalled, round == 0 ? 2 : 0); /* the third waits */
        faulty_release(&f);
        probes_wait(f.queue, probes, COUNT(probes));
        check_code(weir_engine_stats(f.engine, &stats), 0);
        check_code(stats.stalled, 0);
        check_code(weir_file_close(file), 0);
        faulty_close(&f);
    }
}

static size_t count_lines(const char *text)
{
    size_t lines = 0;

    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

/* A line a job, of all queues, the oldest first. */
static void dump__says_what_is_in_flight(struct env *env)
{
    static const char *const wants[] = {
        "read background device", ", offset 0, length 512\n",
        "read foreground device", ", offset 3072 (3 KiB), length 4096 (4 KiB)\n",
        "read batch queued",      ", offset 1572864 (1.5 MiB), length 512\n",
        "nop foreground retry",   ", offset 0, length 0\n",
    };
    struct weir_queue *other = NULL;
    struct weir_file *file;
    struct faulty f;
    struct probe probes[4];
    uint8_t buf[3][4096];
    const char *line;
    char *text;

    faulty_open(&f, env->backend, 2, 0, NULL);
    text = weir_engine_dump(f.engine);
    check(text != NULL && text[0] == '\0');
    weir_free(text);
    file = make_file(f.engine, 2 * MIB);
    check_code(weir_queue_open(f.engine, NULL, &other), 0);
    faulty_hang(&f, WI_FAULT_READ, 2, true);
    weir_job_read(&probes[0].job, file, buf[0], 512, 0, NULL, NULL);
    probes[0].job.io_class = WEIR_CLASS_BACKGROUND;
    weir_job_read(&probes[1].job, file, buf[1], 4096, 3072, NULL, NULL);
    weir_job_read(&probes[2].job, file, buf[2], 512, 3 * MIB / 2, NULL, NULL);
    probes[2].job.io_class = WEIR_CLASS_BATCH;
    weir_job_prepare(&probes[3].job, WEIR_OP_NOP, NULL, NULL, NULL);
    probes[3].job.timeout_ns = TEST_LONG;
    for (size_t i = 0; i < 3; i++) {
        probes[i].job.flags = WEIR_JOB_ALONE;
        probe_submit(f.queue, &probes[i]);
        check_code(weir_queue_run(f.queue), 0);
    }
    probe_submit(other, &probes[3]);
    check_code(weir_queue_run(other), 0);

    text = weir_engine_dump(f.engine);
    check(text != NULL);
    check_code(count_lines(text), 4);
    line = text;
    for (size_t i = 0; i < 4; i++) {
        char start[80];
        const char *end = strchr(line, '\n');
        const char *found = strstr(line, wants[2 * i]);

        (void)snprintf(start, sizeof(start), "job %" PRIu64 " queue ", probes[i].job.id);
        check(strncmp(line, start, strlen(start)) == 0);
        check(found != NULL && found < end);
        found = strstr(line, wants[2 * i + 1]);
        check(found != NULL && found < end);
        line = end + 1;
    }
    weir_free(text);
    check(weir_engine_dump(NULL) == NULL);

    faulty_release(&f);
    probes_wait(f.queue, probes, 3);
    check_code(weir_queue_cancel(other, probes[3].job.id), 0);
    check_code(probe_wait(other, &probes[3]), -ECANCELED);
    check_code(weir_queue_close(other, TEST_LONG), 0);
    check_code(weir_file_close(file), 0);
    faulty_close(&f);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(stats__every_counter_is_summed, CASE_ONCE),
        CASE(stats__every_number_has_a_name, CASE_ONCE),
        CASE(stats__json_has_every_number, CASE_ONCE),
        CASE(prometheus__is_as_the_format_wants_it, 0),
        CASE(prometheus__escapes_labels, CASE_ONCE),
        CASE(prometheus__buckets_are_exact, CASE_ONCE),
        CASE(stalled__is_what_hangs, CASE_NO_QUEUE),
        CASE(dump__says_what_is_in_flight, CASE_NO_QUEUE),
    };

    return run_cases("stats", cases, COUNT(cases), argc, argv);
}
