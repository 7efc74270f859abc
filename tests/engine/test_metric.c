/* SPDX-License-Identifier: MIT */
/*
 * test_metric.c - latencies of the user's own code, by name
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

/* Letters, digits and a few signs, up to 63; nothing else is counted anywhere. */
static void metric__names_are_checked(struct env *env)
{
    static const char *const wrong[] = { "",   " ",           "a b",  "a\n",
                                         "\"", "caf\xc3\xa9", "a{b}", "a\\" };
    struct weir_metric metric;
    char name[80];

    for (size_t i = 0; i < COUNT(wrong); i++) {
        check_code(weir_metric_record(env->engine, wrong[i], 1), -EINVAL);
        check_code(weir_metric_read(env->engine, wrong[i], &metric), -ENOENT);
    }
    check_code(weir_metric_record(env->engine, NULL, 1), -EINVAL);
    check_code(weir_metric_record(NULL, "a", 1), -EINVAL);
    memset(name, 'x', sizeof(name));
    name[64] = '\0';
    check_code(weir_metric_record(env->engine, name, 1), -EINVAL);
    check_code(weir_metric_list(env->engine, NULL, 0), 0);
    name[63] = '\0';
    check_code(weir_metric_record(env->engine, name, 1), 0);
    check_code(weir_metric_record(env->engine, "Az09_.:-/", 1), 0);
    check_code(weir_metric_list(env->engine, NULL, 0), 2);
    check_code(weir_metric_read(env->engine, name, &metric), 0);
    check(strcmp(metric.name, name) == 0);
    name[63] = 'y'; /* longer than any, but the same at first */
    name[64] = '\0';
    check_code(weir_metric_read(env->engine, name, &metric), -ENOENT);
    check_code(weir_metric_record(env->engine, name, 1), -EINVAL);
}

/* Count, mean, minimum and maximum are exact, percentiles at most 1/32 too high. */
static void metric__reads_what_was_recorded(struct env *env)
{
    struct weir_metric metric;

    check_code(weir_metric_read(env->engine, "parse", &metric), -ENOENT);
    for (uint64_t i = 1; i <= 1000; i++)
        check_code(weir_metric_record(env->engine, "parse", i * 1000), 0);
    check_code(weir_metric_record(env->engine, "other", 0), 0);
    check_code(weir_metric_read(env->engine, "parse", &metric), 0);
    check(strcmp(metric.name, "parse") == 0);
    check_code(metric.latency.count, 1000);
    check_code(metric.latency.mean_ns, 500500);
    check_code(metric.min_ns, 1000);
    check_code(metric.latency.max_ns, 1000000);
    check(metric.latency.p50_ns >= 500000 && metric.latency.p50_ns <= 500000 / 32 * 33);
    check(metric.latency.p99_ns >= 990000 && metric.latency.p99_ns <= 1000000);
    check_code(weir_metric_record(env->engine, "parse", UINT64_MAX), 0);
    check_code(weir_metric_record(env->engine, "parse", 3), 0);
    check_code(weir_metric_read(env->engine, "parse", &metric), 0);
    check_code(metric.min_ns, 3);
    check(metric.latency.max_ns == UINT64_MAX);
    check_code(weir_metric_read(env->engine, "other", &metric), 0);
    check_code(metric.latency.count, 1);
    check_code(metric.min_ns, 0);
    check_code(metric.latency.max_ns, 0);
    check_code(weir_metric_read(env->engine, "parse", NULL), -EINVAL);
    check_code(weir_metric_read(env->engine, NULL, &metric), -EINVAL);
}

/* The list goes by name, and says how many there are however many it has room for. */
static void metric__list_goes_by_name(struct env *env)
{
    static const char *const names[] = { "m", "a", "z", "b.c", "b", "B", "aa" };
    static const char *const sorted[] = { "B", "a", "aa", "b", "b.c", "m", "z" };
    struct weir_metric list[8];

    check_code(weir_metric_list(env->engine, list, 8), 0);
    for (size_t i = 0; i < COUNT(names); i++)
        check_code(weir_metric_record(env->engine, names[i], i), 0);
    memset(list, 0xee, sizeof(list));
    check_code(weir_metric_list(env->engine, list, 3), COUNT(names));
    for (size_t i = 0; i < 3; i++)
        check(strcmp(list[i].name, sorted[i]) == 0);
    check((unsigned char)list[3].name[0] == 0xee);
    check_code(weir_metric_list(env->engine, list, 8), COUNT(names));
    for (size_t i = 0; i < COUNT(names); i++) {
        check(strcmp(list[i].name, sorted[i]) == 0);
        check_code(list[i].latency.count, 1);
    }
    check_code(weir_metric_list(NULL, list, 8), 0);
}

/* There are 256 at most; more are refused, and those that are there go on. */
static void metric__are_bounded(struct env *env)
{
    struct weir_stats before = { .size = sizeof(before) };
    struct weir_stats after = { .size = sizeof(after) };
    struct weir_metric metric;
    char name[32];

    check_code(weir_engine_stats(env->engine, &before), 0);
    for (int round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 300; i++) {
            (void)snprintf(name, sizeof(name), "user/%u", i);
            check_code(weir_metric_record(env->engine, name, 10), i < 256 ? 0 : -ENOSPC);
        }
    }
    check_code(weir_metric_list(env->engine, NULL, 0), 256);
    for (unsigned i = 0; i < 300; i++) {
        (void)snprintf(name, sizeof(name), "user/%u", i);
        check_code(weir_metric_read(env->engine, name, &metric), i < 256 ? 0 : -ENOENT);
        check(i >= 256 || metric.latency.count == 2);
    }
    check_code(weir_engine_stats(env->engine, &after), 0);
    check(after.memory_bytes > before.memory_bytes);
    check(after.memory_bytes - before.memory_bytes <= 256 * 10 * KIB);
}

enum {
    THREADS = 6,
    NAMES = 300, /* more than there can be */
    ROUNDS = 3000
};

struct recorder {
    struct weir_engine *engine;
    pthread_t thread;
    uint64_t seed;
    uint64_t counts[NAMES];
    unsigned wrong;
};

static void *record_some(void *arg)
{
    struct recorder *recorder = arg;
    struct test_rng rng = { recorder->seed };
    struct weir_metric metric;
    char name[32];

    for (unsigned i = 0; i < ROUNDS; i++) {
        size_t n = rng_below(&rng, NAMES);
        int rc;

        (void)snprintf(name, sizeof(name), "n%zu", n);
        rc = weir_metric_record(recorder->engine, name, 100 + n);
        recorder->wrong += rc != 0 && rc != -ENOSPC;
        recorder->counts[n] += rc == 0;
        /* Found from now on, with a name and a value that are its own. */
        if (rc == 0 && (weir_metric_read(recorder->engine, name, &metric) != 0 ||
                        strcmp(metric.name, name) != 0 || metric.latency.count == 0 ||
                        metric.min_ns != 100 + n || metric.latency.max_ns != 100 + n))
            recorder->wrong++;
    }
    return NULL;
}

/* Names that many threads make at once are made once, and no value is lost. */
static void metric__from_many_threads(struct env *env)
{
    struct recorder *recorders = calloc(THREADS, sizeof(*recorders));
    size_t there = 0;

    check(recorders != NULL);
    for (size_t i = 0; i < THREADS; i++) {
        recorders[i].engine = env->engine;
        recorders[i].seed = test_seed() + i;
        check_code(pthread_create(&recorders[i].thread, NULL, record_some, &recorders[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++)
        check_code(pthread_join(recorders[i].thread, NULL), 0);
    for (size_t n = 0; n < NAMES; n++) {
        struct weir_metric metric = { .latency = { .count = 0 } };
        uint64_t count = 0;
        char name[32];

        (void)snprintf(name, sizeof(name), "n%zu", n);
        there += weir_metric_read(env->engine, name, &metric) == 0;
        for (size_t i = 0; i < THREADS; i++)
            count += recorders[i].counts[n];
        check(metric.latency.count == count);
    }
    for (size_t i = 0; i < THREADS; i++)
        check_code(recorders[i].wrong, 0);
    check_code(there, 256);
    check_code(weir_metric_list(env->engine, NULL, 0), 256);
    free(recorders);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(metric__names_are_checked, CASE_ONCE),
        CASE(metric__reads_what_was_recorded, CASE_ONCE),
        CASE(metric__list_goes_by_name, CASE_ONCE),
        CASE(metric__are_bounded, CASE_ONCE),
        CASE(metric__from_many_threads, CASE_ONCE),
    };

    return run_cases("metric", cases, COUNT(cases), argc, argv);
}
