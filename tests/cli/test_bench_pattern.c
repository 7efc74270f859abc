/* SPDX-License-Identifier: MIT */
/*
 * test_bench_pattern.c - the cases of weir bench read what they say they read
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_internal.h"
#include "support/support.h"

#define BLOCK 4096u

/* The one call that the patterns make of the rest of the program. */
void bench_say(const char *format, ...)
{
    fail_msg("%s", format);
}

struct subject {
    struct bench_plan plan;
    struct bench_tables tables;
    struct bench_pattern pattern;
};

static void begin(struct subject *subject, struct bench_plan plan, uint64_t blocks)
{
    memset(subject, 0, sizeof(*subject));
    subject->plan = plan;
    subject->plan.block_bytes = BLOCK;
    subject->plan.size_bytes = blocks * BLOCK;
    if (plan.threads == 0)
        subject->plan.threads = 1;
    check_code(bench_tables_init(&subject->tables, &subject->plan), 0);
    bench_pattern_init(&subject->pattern, &subject->plan, &subject->tables, 0);
}

static uint64_t next_block(struct subject *subject)
{
    uint64_t offset = bench_pattern_next(&subject->pattern);

    check_code(offset % BLOCK, 0);
    check(offset < subject->plan.size_bytes);
    return offset / BLOCK;
}

/* Each thread goes through its own part, in order, again and again. */
static void walk__stays_in_its_part(void **state)
{
    static const enum bench_kind kinds[] = { BENCH_SCAN, BENCH_BACKWARD, BENCH_SEQREAD };
    struct subject subject;

    (void)state;
    for (size_t i = 0; i < COUNT(kinds); i++) {
        begin(&subject, (struct bench_plan){ .kind = kinds[i], .threads = 2 }, 21);
        bench_pattern_init(&subject.pattern, &subject.plan, &subject.tables, 1);
        for (uint64_t at = 0; at < 35; at++) {
            uint64_t step = at % 10;

            check_code(next_block(&subject),
                       kinds[i] == BENCH_BACKWARD ? 19 - step : 10 + step);
        }
        bench_tables_fini(&subject.tables);
    }
}

/* One stride apart, and nothing twice before all was read. */
static void stride__reads_all_before_anything_twice(void **state)
{
    struct subject subject;
    uint32_t seen[30] = { 0 };
    uint64_t last = 0;

    (void)state;
    begin(&subject, (struct bench_plan){ .kind = BENCH_STRIDE, .stride_bytes = 4 * BLOCK }, 30);
    for (uint32_t i = 0; i < 90; i++) {
        uint64_t block = next_block(&subject);

        check(block == last + 4 || block < 4);
        check_code(seen[block]++, i / 30);
        last = block;
    }
    bench_tables_fini(&subject.tables);
}

/* Every second block; each window has all of its own, not in order; the next differs. */
static void scatter__shuffles_within_windows(void **state)
{
    const uint64_t windows = 3;
    struct subject subject;
    uint64_t first[2][BENCH_SCATTER_WINDOW];

    (void)state;
    begin(&subject, (struct bench_plan){ .kind = BENCH_SCATTER },
          windows * 2 * BENCH_SCATTER_WINDOW + 100);
    for (uint64_t window = 0; window < 2 * windows; window++) {
        uint64_t start = window % windows * BENCH_SCATTER_WINDOW;
        bool seen[BENCH_SCATTER_WINDOW] = { false };
        uint32_t in_order = 0;

        for (uint32_t i = 0; i < BENCH_SCATTER_WINDOW; i++) {
            uint64_t block = next_block(&subject);
            uint64_t slot = block / 2 - start;

            check_code(block % 2, 0);
            check(slot < BENCH_SCATTER_WINDOW && !seen[slot]);
            seen[slot] = true;
            in_order += slot == i;
            if (window < 2)
                first[window][i] = slot;
        }
        check(in_order < 16);
    }
    check(memcmp(first[0], first[1], sizeof(first[0])) != 0);
    bench_tables_fini(&subject.tables);
}

/* The most wanted blocks get their shares, and lie anywhere. */
static void zipf__is_as_uneven_as_asked(void **state)
{
    static const double thetas[] = { 0.0, 0.7, 1.0, 1.4 };
    const uint64_t draws = 200000;
    const uint64_t blocks = 1000;
    struct subject subject;

    (void)state;
    for (size_t i = 0; i < COUNT(thetas); i++) {
        uint64_t *counts = calloc(blocks, sizeof(*counts));
        uint64_t in_place = 0;
        double sum = 0.0;

        begin(&subject, (struct bench_plan){ .kind = BENCH_ZIPF, .theta = thetas[i] }, blocks);
        for (uint64_t draw = 0; draw < draws; draw++)
            counts[next_block(&subject)]++;
        for (uint64_t rank = 1; rank <= blocks; rank++)
            sum += pow((double)rank, -thetas[i]);
        for (uint64_t rank = 1; rank <= blocks; rank++) {
            double expected = (double)draws * pow((double)rank, -thetas[i]) / sum;
            double got = (double)counts[subject.tables.order[rank - 1]];

            check(fabs(got - expected) < 6.0 * sqrt(expected) + 1.0);
            in_place += subject.tables.order[rank - 1] == rank - 1;
        }
        check(in_place < 10);
        free(counts);
        bench_tables_fini(&subject.tables);
    }
}

/* In turn: a block of the hot set, and the next one of the rest. */
static void zipf__beside_a_scan_takes_turns(void **state)
{
    struct subject subject;
    uint64_t scanned = 10;

    (void)state;
    begin(&subject,
          (struct bench_plan){
              .kind = BENCH_ZIPF, .scan_beside = true, .cache_bytes = 20 * BLOCK },
          40);
    for (uint32_t i = 0; i < 200; i++) {
        uint64_t block = next_block(&subject);

        if (subject.pattern.beside) {
            check_code(block, scanned);
            scanned = scanned + 1 < 40 ? scanned + 1 : 10;
        } else {
            check(block < 10);
        }
        check_code(subject.pattern.beside, i % 2 == 0);
    }
    bench_tables_fini(&subject.tables);
}

/* The same list again, which touches half of what the cache holds. */
static void repeat__asks_the_same_again(void **state)
{
    struct subject subject;
    bool seen[1000] = { false };
    uint64_t distinct = 0;
    uint64_t length;

    (void)state;
    begin(&subject, (struct bench_plan){ .kind = BENCH_REPEAT, .cache_bytes = 400 * BLOCK },
          1000);
    length = subject.tables.length;
    for (uint64_t i = 0; i < 3 * length; i++) {
        uint64_t block = next_block(&subject);

        check_code(block, subject.tables.order[i % length]);
        check_code(subject.pattern.lap, (i + 1) / length);
        distinct += !seen[block];
        seen[block] = true;
    }
    check(distinct >= 200 && distinct < 208);
    bench_tables_fini(&subject.tables);
}

/* Only what surely fits the cache, and all of that. */
static void hit__stays_within_the_cache(void **state)
{
    struct subject subject;
    bool seen[80] = { false };
    uint64_t distinct = 0;

    (void)state;
    begin(&subject, (struct bench_plan){ .kind = BENCH_HIT, .cache_bytes = 100 * BLOCK }, 1000);
    for (uint32_t i = 0; i < 4000; i++) {
        uint64_t block = next_block(&subject);

        check(block < 80);
        distinct += !seen[block];
        seen[block] = true;
    }
    check_code(distinct, 80);
    bench_tables_fini(&subject.tables);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walk__stays_in_its_part),
        cmocka_unit_test(stride__reads_all_before_anything_twice),
        cmocka_unit_test(scatter__shuffles_within_windows),
        cmocka_unit_test(zipf__is_as_uneven_as_asked),
        cmocka_unit_test(zipf__beside_a_scan_takes_turns),
        cmocka_unit_test(repeat__asks_the_same_again),
        cmocka_unit_test(hit__stays_within_the_cache),
    };

    return cmocka_run_group_tests_name("bench_pattern", tests, NULL, NULL);
}
