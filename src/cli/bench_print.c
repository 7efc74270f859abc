/* SPDX-License-Identifier: MIT */
/*
 * bench_print.c - the result of a case, for people and for programs
 *
 * For people, a line of a table, and under it what else the case is about. For programs (--json)
 * one object on one line, of which every case has all keys but those of stride, zipf and mix:
 *
 *   device_ops         reads and writes given to the device; device_ops_per_op for each request
 *   amplification      bytes that these asked for, for each byte of a request
 *   hit_ratio          of the cache, or null; zipf and hit judge each request, all others take
 *                      the engine's count of blocks
 *   prefetch_per_byte  bytes prefetched for each byte of a request
 *   prefetch_used      of the bytes prefetched, the share asked for later, or null
 *   prefetch_wasted    and the share dropped without that. What is neither is still there
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench_internal.h"
#include "cli.h"

const char *const bench_policies[WEIR_POLICIES] = { "s3fifo", "2q", "arc", "lru", "lfu" };

static const char *const thinks[] = { "none", "read", "burst" };

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

static double ratio(double above, double below)
{
    return below > 0.0 ? above / below : 0.0;
}

static double mib_per_s(const struct bench_plan *plan, const struct bench_result *result)
{
    return ratio((double)result->ops * plan->block_bytes, result->seconds) / (1024.0 * 1024.0);
}

static double p99_ratio(const struct bench_result *result)
{
    return ratio(bench_histogram_us(&result->latency, 0.99), result->mix.idle_p99_us);
}

static const char *api_name(const struct bench_plan *plan)
{
    if (plan->blocking)
        return "blocking";
    return bench_tries(plan->kind) ? "try" : "job";
}

/* --- JSON ------------------------------------------------------------------------------------ */

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

static void print_name(const struct bench_plan *plan, const struct bench_result *result)
{
    char bytes[32];

    format_bytes(plan->block_bytes, bytes, sizeof(bytes));
    printf("{\"name\":\"engine/%s/bs=%s,qd=%u,backend=%s%s%s", plan->name, bytes, plan->depth,
           result->backend_name, plan->direct ? ",direct" : "",
           plan->blocking ? ",api=blocking" : "");
    if (plan->cache_bytes != 0) {
        format_bytes(plan->cache_bytes, bytes, sizeof(bytes));
        printf(",cache=%s,policy=%s%s", bytes, bench_policies[plan->policy],
               plan->no_prefetch ? ",prefetch=off" : "");
    }
    printf("%s\",\"case\":\"%s\"", plan->no_merge ? ",coalesce=off" : "", plan->name);
}

/* A number, or null where there is none. */
static void print_number(const char *key, bool there, double value)
{
    if (there)
        printf(",\"%s\":%.6f", key, value);
    else
        printf(",\"%s\":null", key);
}

static void print_cache(const struct bench_plan *plan, const struct bench_result *result)
{
    double prefetched = (double)result->prefetch_bytes;

    printf(",\"cache\":%llu,\"block_size\":%u,\"policy\":\"%s\",\"prefetch\":%s,"
           "\"coalesce\":%s",
           (unsigned long long)plan->cache_bytes, plan->cache_block_bytes,
           bench_policies[plan->policy], plan->no_prefetch ? "false" : "true",
           plan->no_merge ? "false" : "true");
    print_number("hit_ratio", result->hit_ratio >= 0.0, result->hit_ratio);
    printf(",\"device_ops\":%llu", (unsigned long long)result->device_ops);
    print_number("device_ops_per_op", true,
                 ratio((double)result->device_ops, (double)result->requests));
    print_number("amplification", true,
                 ratio((double)result->device_bytes, (double)result->asked_bytes));
    print_number("prefetch_per_byte", true, ratio(prefetched, (double)result->asked_bytes));
    print_number("prefetch_used", result->prefetch_bytes != 0,
                 ratio((double)result->prefetch_used, prefetched));
    print_number("prefetch_wasted", result->prefetch_bytes != 0,
                 ratio((double)result->prefetch_wasted, prefetched));
    if (plan->kind == BENCH_STRIDE)
        printf(",\"stride\":%llu", (unsigned long long)plan->stride_bytes);
    if (plan->kind == BENCH_ZIPF)
        printf(",\"theta\":%g,\"scan_beside\":%s", plan->theta,
               plan->scan_beside ? "true" : "false");
}

static void print_mix(const struct bench_plan *plan, const struct bench_result *result)
{
    const struct bench_mix_result *mix = &result->mix;

    printf(",\"think\":\"%s\",\"p99_idle_us\":%.3f,\"p99_us\":%.3f,\"p99_ratio\":%.4f",
           thinks[plan->think], mix->idle_p99_us, bench_histogram_us(&result->latency, 0.99),
           p99_ratio(result));
    printf(",\"foreground_iops_alone\":%.1f,\"foreground_iops\":%.1f,"
           "\"foreground_share\":%.4f",
           mix->foreground_alone, mix->foreground_beside,
           ratio(mix->foreground_beside, mix->foreground_alone));
    printf(",\"background_mib_per_s_alone\":%.2f,\"background_mib_per_s\":%.2f,"
           "\"background_share\":%.4f",
           mix->background_alone, mix->background_beside,
           ratio(mix->background_beside, mix->background_alone));
}

static void print_json(const struct bench_plan *plan, const struct bench_result *result)
{
    const struct bench_histogram *latency = &result->latency;

    print_name(plan, result);
    printf(",\"backend\":\"%s\",\"flags\":\"", result->backend_name);
    print_flags(result->ring_flags);
    printf("\",\"why\":");
    cli_json_string(stdout, result->why);
    printf(",\"registered_buffers\":%s,\"io_threads\":%u",
           result->registered_buffers ? "true" : "false", result->io_threads);
    printf(",\"api\":\"%s\",\"file\":", api_name(plan));
    cli_json_string(stdout, plan->in_memory ? "" : plan->path);
    printf(",\"size\":%llu,\"bs\":%u,\"depth\":%u,\"wait_min\":%u,\"direct\":%s,\"jobs\":%u",
           (unsigned long long)result->size_bytes, plan->block_bytes, plan->depth,
           plan->wait_min, plan->direct ? "true" : "false", plan->threads);
    printf(",\"ops\":%llu,\"seconds\":%.6f,\"iops\":%.1f,\"mib_per_s\":%.2f",
           (unsigned long long)result->ops, result->seconds,
           ratio((double)result->ops, result->seconds), mib_per_s(plan, result));
    printf(",\"lat_us\":{\"p50\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
           bench_histogram_us(latency, 0.5), bench_histogram_us(latency, 0.95),
           bench_histogram_us(latency, 0.99), bench_histogram_us(latency, 0.999),
           (double)latency->max_ns / 1000.0);
    printf(",\"cpu_us_per_op\":%.4f,\"syscalls_per_op\":%.5f", result->cpu_us_per_op,
           result->syscalls_per_op);
    print_number("allocs_per_op", result->allocs_per_op >= 0.0, result->allocs_per_op);
    print_cache(plan, result);
    if (plan->kind == BENCH_MIX)
        print_mix(plan, result);
    printf(",\"errors\":%llu,\"interrupted\":%s,\"version\":\"%s\"}\n",
           (unsigned long long)result->errors, result->interrupted ? "true" : "false",
           weir_version());
}

/* --- for people ------------------------------------------------------------------------------ */

/* What the table has no columns for. */
static void print_more(const struct bench_plan *plan, const struct bench_result *result)
{
    const struct bench_mix_result *mix = &result->mix;
    double prefetched = (double)result->prefetch_bytes;

    if (plan->kind == BENCH_MIX) {
        printf("          foreground p99 %.1f us alone, %.1f us beside the background: %.2f "
               "times as long; it does %.0f %% of its reads\n",
               mix->idle_p99_us, bench_histogram_us(&result->latency, 0.99), p99_ratio(result),
               100.0 * ratio(mix->foreground_beside, mix->foreground_alone));
        printf("          background %.0f MiB/s alone, %.0f MiB/s beside the foreground: "
               "%.0f %%\n",
               mix->background_alone, mix->background_beside,
               100.0 * ratio(mix->background_beside, mix->background_alone));
        return;
    }
    if (plan->kind == BENCH_SCATTER)
        printf("          %.4f device operations a request, %.2f bytes for each asked for\n",
               ratio((double)result->device_ops, (double)result->requests),
               ratio((double)result->device_bytes, (double)result->asked_bytes));
    if (result->hit_ratio >= 0.0)
        printf("          hit ratio %.4f\n", result->hit_ratio);
    if (result->prefetch_bytes != 0)
        printf("          %.4f bytes prefetched for each asked for; %.1f %% used, %.1f %% "
               "dropped unused\n",
               ratio(prefetched, (double)result->asked_bytes),
               100.0 * ratio((double)result->prefetch_used, prefetched),
               100.0 * ratio((double)result->prefetch_wasted, prefetched));
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
           plan->name, result->backend_name, api_name(plan), bs, plan->depth, plan->threads,
           ratio((double)result->ops, result->seconds), mib_per_s(plan, result),
           bench_histogram_us(latency, 0.5), bench_histogram_us(latency, 0.99),
           bench_histogram_us(latency, 0.999), result->cpu_us_per_op, result->syscalls_per_op,
           allocs);
    print_more(plan, result);
}

int bench_print(const struct bench_plan *plan, const struct bench_result *result,
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
