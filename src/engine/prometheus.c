/* SPDX-License-Identifier: MIT */
/*
 * prometheus.c - the statistics as text for Prometheus (exposition format 0.0.4)
 *
 * Names begin with weir_, times are in seconds. What struct weir_stats says goes by the table
 * in stats_json.c; latencies are histograms, with the labels op and class, and so are metrics, with the
 * label name: they can be added up over processes, which percentiles can't.
 *
 * Buckets      powers of two of nanoseconds, from 2^10 to 2^34 (1 us to 17 s). Ours nest in
 *              these, so the counts are exact; `le` is inclusive, and so one nanosecond less.
 *              Above is only +Inf.
 * Not shown    a histogram of an operation and class that never happened.
 */
#include "stats_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define LE_FIRST 10
#define LE_LAST  34

struct label {
    const char *name;
    const char *value;
};

static void write_head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Labels with `name` NULL are none. */
static void write_labels(FILE *out, const struct label *labels, size_t count)
{
    char before = '{';

    for (size_t i = 0; i < count && labels[i].name; i++) {
        fprintf(out, "%c%s=\"", before, labels[i].name);
        for (const char *c = labels[i].value; *c; c++) {
            if (*c == '\n')
                fputs("\\n", out);
            else if (*c == '\\' || *c == '"')
                fprintf(out, "\\%c", *c);
            else
                fputc(*c, out);
        }
        fputc('"', out);
        before = ',';
    }
    if (before == ',')
        fputc('}', out);
}

static void write_seconds(FILE *out, uint64_t ns)
{
    fprintf(out, "%" PRIu64 ".%09" PRIu64, ns / WI_SEC_NS, ns % WI_SEC_NS);
}

static void write_value(FILE *out, const char *name, struct label label, uint64_t value,
                        enum stats_unit unit)
{
    fputs(name, out);
    write_labels(out, &label, 1);
    fputc(' ', out);
    if (unit == STATS_NS)
        write_seconds(out, value);
    else if (unit == STATS_MILLI)
        fprintf(out, "%" PRIu64 ".%03" PRIu64, value / 1000, value % 1000);
    else
        fprintf(out, "%" PRIu64, value);
    fputc('\n', out);
}

/* ---- histograms -------------------------------------------------------------------------- */

/* With two labels; the last of the three is for `le`. */
static void write_bucket(FILE *out, const char *name, const struct label labels[2],
                         const char *le, uint64_t count)
{
    struct label all[3] = { labels[0], labels[1], { "le", le } };

    if (!all[1].name) {
        all[1] = all[2];
        all[2].name = NULL;
    }
    fprintf(out, "%s_bucket", name);
    write_labels(out, all, WI_ARRAY_LEN(all));
    fprintf(out, " %" PRIu64 "\n", count);
}

/* Others may add meanwhile: each bucket is read once, so that the counts fit together. */
static void write_hist(FILE *out, const char *name, const struct label labels[2],
                       struct wi_hist *hist)
{
    uint64_t count = 0;
    uint32_t next = 0;
    char le[32];

    for (uint32_t power = LE_FIRST; power <= LE_LAST; power++) {
        uint64_t end_ns = UINT64_C(1) << power;

        for (; next < wi_hist_index(end_ns); next++)
            count += atomic_load_explicit(&hist->buckets[next], memory_order_relaxed);
        snprintf(le, sizeof(le), "%" PRIu64 ".%09" PRIu64, (end_ns - 1) / WI_SEC_NS,
                 (end_ns - 1) % WI_SEC_NS);
        write_bucket(out, name, labels, le, count);
    }
    for (; next < WI_HIST_BUCKETS; next++)
        count += atomic_load_explicit(&hist->buckets[next], memory_order_relaxed);
    write_bucket(out, name, labels, "+Inf", count);

    fprintf(out, "%s_sum", name);
    write_labels(out, labels, 2);
    fputc(' ', out);
    write_seconds(out, atomic_load_explicit(&hist->sum_ns, memory_order_relaxed));
    fprintf(out, "\n%s_count", name);
    write_labels(out, labels, 2);
    fprintf(out, " %" PRIu64 "\n", count);
}

static bool is_empty(struct wi_hist *hist)
{
    for (uint32_t i = 0; i < WI_HIST_BUCKETS; i++) {
        if (atomic_load_explicit(&hist->buckets[i], memory_order_relaxed) != 0)
            return false;
    }
    return true;
}

/* `scratch` is one histogram's room. */
static void write_latencies(FILE *out, struct weir_engine *engine, struct wi_hist *scratch)
{
    static const struct {
        const char *name;
        const char *help;
    } families[STATS_WHICH] = {
        [STATS_WAIT] = { "weir_wait_seconds", "Jobs, from submit to start." },
        [STATS_DEVICE] = { "weir_device_seconds",
                           "Jobs, from start to completion; of blocking calls one in 17." },
        [STATS_TOTAL] = { "weir_total_seconds", "Jobs, from submit to done." },
    };

    for (uint32_t which = 0; which < STATS_WHICH; which++) {
        write_head(out, families[which].name, "histogram", families[which].help);
        for (uint32_t group = 0; group < WEIR_STATS_GROUPS; group++) {
            for (uint32_t io_class = 0; io_class < WEIR_CLASSES; io_class++) {
                struct label labels[2] = { { "op", wi_stats_groups[group] },
                                           { "class", weir_class_name(io_class) } };

                memset(scratch, 0, sizeof(*scratch));
                wi_mutex_lock(&engine->mu);
                wi_stats_gather(engine, group, io_class, which, scratch);
                wi_mutex_unlock(&engine->mu);
                if (!is_empty(scratch))
                    write_hist(out, families[which].name, labels, scratch);
            }
        }
    }
}

static void write_metrics(FILE *out, struct weir_engine *engine)
{
    struct metric *metrics[METRICS_MAX];
    size_t count = wi_metrics_list(engine, metrics);

    write_head(out, "weir_metric_seconds", "histogram",
               "What the program itself has recorded.");
    for (size_t i = 0; i < count; i++) {
        struct label labels[2] = { { "name", metrics[i]->name }, { NULL, NULL } };

        write_hist(out, "weir_metric_seconds", labels, &metrics[i]->hist);
    }
    for (int most = 0; most < 2; most++) {
        const char *name = most ? "weir_metric_max_seconds" : "weir_metric_min_seconds";

        write_head(out, name, "gauge",
                   most ? "The longest of these." : "The shortest of these.");
        for (size_t i = 0; i < count; i++) {
            struct weir_metric metric;

            wi_metric_summarise(metrics[i], &metric);
            write_value(out, name, (struct label){ "name", metric.name },
                        most ? metric.latency.max_ns : metric.min_ns, STATS_NS);
        }
    }
}

/* ---- numbers ------------------------------------------------------------------------------- */

static void write_info(FILE *out, struct weir_engine *engine)
{
    struct weir_engine_info info = { .size = sizeof(info) };
    struct label labels[2];

    (void)weir_engine_info(engine, &info);
    labels[0] = (struct label){ "backend", info.backend_name };
    labels[1] = (struct label){ "why", info.why };
    write_head(out, "weir_info", "gauge", "Always 1; what the engine runs on, and why.");
    fputs("weir_info", out);
    write_labels(out, labels, 2);
    fputs(" 1\n", out);
}

static void write_ops(FILE *out, const struct weir_stats *stats)
{
    static const struct {
        const char *name;
        const char *help;
        size_t offset;
    } families[] = {
#define OP(field) offsetof(struct weir_stats_op, field)
        { "weir_operations_total", "Jobs that were done, and blocking calls.", OP(done) },
        { "weir_operations_blocking_total", "Blocking calls among the operations.",
          OP(blocking) },
        { "weir_operations_failed_total", "Operations with an error.", OP(failed) },
        { "weir_operations_cancelled_total", "Operations that were cancelled.", OP(cancelled) },
        { "weir_operations_expired_total", "Operations whose time ran out.", OP(expired) },
        { "weir_operations_bytes_total", "Bytes that operations moved.", OP(bytes) },
#undef OP
    };

    for (size_t f = 0; f < WI_ARRAY_LEN(families); f++) {
        write_head(out, families[f].name, "counter", families[f].help);
        for (uint32_t group = 0; group < WEIR_STATS_GROUPS; group++) {
            const char *op = (const char *)&stats->ops[group];
            uint64_t value;

            memcpy(&value, op + families[f].offset, sizeof(value));
            write_value(out, families[f].name, (struct label){ "op", wi_stats_groups[group] },
                        value, STATS_COUNT);
        }
    }
}

static void write_lanes(FILE *out, const struct weir_stats *stats)
{
    write_head(out, "weir_pool_tasks_total", "counter", "Tasks that the pool has run.");
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++)
        write_value(out, "weir_pool_tasks_total",
                    (struct label){ "lane", wi_stats_lanes[lane] }, stats->pool_tasks[lane],
                    STATS_COUNT);
    write_head(out, "weir_pool_threads_peak", "gauge", "The most threads that a lane had.");
    for (uint32_t lane = 0; lane < WEIR_LANES; lane++)
        write_value(out, "weir_pool_threads_peak",
                    (struct label){ "lane", wi_stats_lanes[lane] },
                    stats->pool_threads_peak[lane], STATS_COUNT);
}

static void write_fields(FILE *out, const struct weir_stats *stats)
{
    static const char total[] = "_total";

    for (size_t i = 0; i < wi_stats_fields_count; i++) {
        const struct stats_field *field = &wi_stats_fields[i];
        size_t stem = strlen(field->name) - strlen(total);

        write_head(out, field->name,
                   strcmp(field->name + stem, total) == 0 ? "counter" : "gauge", field->help);
        write_value(out, field->name, (struct label){ NULL, NULL },
                    stats_field_value(stats, field), (enum stats_unit)field->unit);
    }
}

char *weir_engine_prometheus(struct weir_engine *engine)
{
    struct weir_stats stats = { .size = sizeof(stats) };
    struct wi_hist *scratch;
    char *text = NULL;
    size_t len = 0;
    bool failed;
    FILE *out;

    if (weir_engine_stats(engine, &stats) < 0)
        return NULL;
    scratch = malloc(sizeof(*scratch));
    out = scratch ? open_memstream(&text, &len) : NULL;
    if (!out) {
        free(scratch);
        return NULL;
    }
    write_info(out, engine);
    write_ops(out, &stats);
    write_lanes(out, &stats);
    write_fields(out, &stats);
    write_latencies(out, engine, scratch);
    write_metrics(out, engine);
    free(scratch);
    failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
