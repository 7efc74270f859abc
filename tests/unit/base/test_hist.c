/* SPDX-License-Identifier: MIT */
#include <pthread.h>

#include <weir/stats.h>

#include "base/hist.h"
#include "base_test.h"

#define VALUES  20000u
#define THREADS 4u

static struct wi_hist *new_hist(void)
{
    struct wi_hist *hist = calloc(1, sizeof(*hist));

    assert_non_null(hist);
    return hist;
}

/* The buckets cover all numbers without gap or overlap. */
static void hist__index_and_top_are_inverse(void **state)
{
    (void)state;
    for (uint32_t i = 0; i + 1 < WI_HIST_BUCKETS; i++) {
        assert_int_equal(wi_hist_index(wi_hist_bucket_top(i)), i);
        assert_int_equal(wi_hist_index(wi_hist_bucket_top(i) + 1), i + 1);
    }
    assert_int_equal(wi_hist_index(0), 0);
    assert_int_equal(wi_hist_index(UINT64_MAX), WI_HIST_BUCKETS - 1);
    assert_true(wi_hist_bucket_top(WI_HIST_BUCKETS - 1) == UINT64_MAX);
}

/* The top of a bucket is not below any value in it, and less than 1/32 above. */
static void hist__error_is_bounded(void **state)
{
    struct base_rng rng = base_rng_start();

    (void)state;
    for (uint32_t i = 0; i < 100000; i++) {
        uint64_t value = base_rng_next(&rng) >> (64 - WI_HIST_TOP_BITS + i % 40);
        uint64_t top = wi_hist_bucket_top(wi_hist_index(value));

        if (value >= (UINT64_C(1) << WI_HIST_TOP_BITS) - (UINT64_C(1) << 34))
            continue; /* the last bucket */
        assert_true(top >= value);
        assert_true((top - value) * WI_HIST_SUB < value || top == value);
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

static void check_quantile(uint64_t got, const uint64_t *sorted, size_t count, double quantile)
{
    size_t rank = (size_t)((double)count * quantile + 0.999999);
    uint64_t want = sorted[rank - 1];

    assert_true(got >= want);
    assert_true((got - want) * WI_HIST_SUB <= want);
}

/* Percentiles, mean, count and maximum are those of the sorted values, within the error. */
static void hist__summary_matches_sorted_values(void **state)
{
    static const size_t counts[] = { 1, 2, 3, 10, 19, 20, 21, 100, 999, 1000, 1001, VALUES };
    struct base_rng rng = base_rng_start();
    uint64_t *values = calloc(VALUES, sizeof(*values));

    (void)state;
    assert_non_null(values);
    for (size_t c = 0; c < WI_ARRAY_LEN(counts); c++) {
        struct wi_hist *hist = new_hist();
        struct weir_latency latency;
        uint64_t sum = 0;

        for (size_t i = 0; i < counts[c]; i++) {
            values[i] = base_rng_next(&rng) >> (30 + base_rng_below(&rng, 30));
            sum += values[i];
            wi_hist_add(hist, values[i]);
        }
        qsort(values, counts[c], sizeof(*values), compare);
        wi_hist_summarise(hist, &latency);
        assert_true(latency.count == counts[c]);
        assert_true(latency.mean_ns == sum / counts[c]);
        assert_true(latency.max_ns == values[counts[c] - 1]);
        check_quantile(latency.p50_ns, values, counts[c], 0.5);
        check_quantile(latency.p95_ns, values, counts[c], 0.95);
        check_quantile(latency.p99_ns, values, counts[c], 0.99);
        check_quantile(latency.p999_ns, values, counts[c], 0.999);
        assert_true(latency.p999_ns <= latency.max_ns);
        free(hist);
    }
    free(values);
}

static void hist__empty_is_zero(void **state)
{
    struct wi_hist *hist = new_hist();
    struct weir_latency latency;

    (void)state;
    wi_hist_summarise(hist, &latency);
    assert_true(latency.count == 0 && latency.mean_ns == 0 && latency.p50_ns == 0 &&
                latency.p999_ns == 0 && latency.max_ns == 0);
    free(hist);
}

/* What is too large for the buckets is exact as the maximum, and as its percentile. */
static void hist__huge_values_keep_the_maximum(void **state)
{
    struct wi_hist *hist = new_hist();
    struct weir_latency latency;

    (void)state;
    wi_hist_add(hist, 10);
    wi_hist_add(hist, UINT64_C(1) << 50);
    wi_hist_summarise(hist, &latency);
    assert_true(latency.p50_ns == 10);
    assert_true(latency.p99_ns == UINT64_C(1) << 50);
    assert_true(latency.max_ns == UINT64_C(1) << 50);
    free(hist);
}

/* Adding to two and merging is adding to one. */
static void hist__merge_is_adding_to_one(void **state)
{
    struct base_rng rng = base_rng_start();
    struct wi_hist *parts[2] = { new_hist(), new_hist() };
    struct wi_hist *whole = new_hist();
    struct wi_hist *merged = new_hist();

    (void)state;
    for (uint32_t i = 0; i < VALUES; i++) {
        uint64_t value = base_rng_next(&rng) >> (20 + base_rng_below(&rng, 40));

        wi_hist_add(parts[i % 2], value);
        wi_hist_add(whole, value);
    }
    wi_hist_merge(merged, parts[0]);
    wi_hist_merge(merged, parts[1]);
    assert_memory_equal(merged, whole, sizeof(*whole));
    for (int i = 0; i < 2; i++)
        free(parts[i]);
    free(whole);
    free(merged);
}

static void *add_shared(void *arg)
{
    struct wi_hist *hist = arg;

    for (uint64_t i = 0; i < VALUES; i++)
        wi_hist_add_shared(hist, i);
    return NULL;
}

/* Nothing is lost when several threads add. */
static void hist__shared_adds_are_all_counted(void **state)
{
    struct wi_hist *hist = new_hist();
    struct weir_latency latency;
    pthread_t threads[THREADS];

    (void)state;
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_shared, hist), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    wi_hist_summarise(hist, &latency);
    assert_true(latency.count == THREADS * VALUES);
    assert_true(atomic_load(&hist->sum_ns) == (uint64_t)THREADS * VALUES * (VALUES - 1) / 2);
    assert_true(latency.max_ns == VALUES - 1);
    for (uint32_t i = 0; i < WI_HIST_SUB; i++)
        assert_true(atomic_load(&hist->buckets[i]) == THREADS);
    free(hist);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hist__index_and_top_are_inverse),
        cmocka_unit_test(hist__error_is_bounded),
        cmocka_unit_test(hist__summary_matches_sorted_values),
        cmocka_unit_test(hist__empty_is_zero),
        cmocka_unit_test(hist__huge_values_keep_the_maximum),
        cmocka_unit_test(hist__merge_is_adding_to_one),
        cmocka_unit_test(hist__shared_adds_are_all_counted),
    };

    return cmocka_run_group_tests_name("hist", tests, NULL, NULL);
}
