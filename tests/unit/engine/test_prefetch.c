/* SPDX-License-Identifier: MIT */
/*
 * test_prefetch.c - what is foreseen, and what guessing costs
 *
 * Small cases assert the exact plans. The large ones run a consumer over a simulated cache and
 * device with a clock of their own, and assert how much was read for nothing and how often the
 * consumer had to wait.
 */
#include <stdlib.h>
#include <string.h>

#include "../base/base_test.h"
#include "engine/prefetch.h"

#define KIB    UINT64_C(1024)
#define MIB    (UINT64_C(1024) * 1024)
#define BLOCK  (64 * KIB)
#define NO_END UINT64_MAX
#define SECOND UINT64_C(1000000000)
#define BIG    (256 * MIB) /* a cache in which 8 MiB is the limit */

/* ---- plans, one by one -------------------------------------------------------------------- */

static uint64_t clock_ns; /* moves on by a millisecond a read */

static struct wi_prefetch_plan see_until(struct wi_prefetch *prefetch, uint64_t offset,
                                         uint64_t len, enum wi_prefetch_event event,
                                         uint64_t file_end)
{
    struct wi_prefetch_plan plan;

    clock_ns += 1000000;
    memset(&plan, 0xee, sizeof(plan));
    wi_prefetch_observe(prefetch, offset, len, event, clock_ns, file_end, &plan);
    return plan;
}

static struct wi_prefetch_plan see(struct wi_prefetch *prefetch, uint64_t offset, uint64_t len,
                                   enum wi_prefetch_event event)
{
    return see_until(prefetch, offset, len, event, NO_END);
}

static void check_plan(struct wi_prefetch_plan plan, uint64_t offset, uint64_t len,
                       int64_t stride, uint32_t count, int line)
{
    if (plan.count == count && (count == 0 || (plan.offset == offset && plan.len == len &&
                                               (plan.stride == stride || count == 1))))
        return;
    fail_msg("line %d: plan %" PRIu64 "+%" PRIu64 " stride %" PRId64 " x %" PRIu32
             ", not %" PRIu64 "+%" PRIu64 " stride %" PRId64 " x %" PRIu32,
             line, plan.offset, plan.len, plan.stride, plan.count, offset, len, stride, count);
}
#define check_none(plan) check_plan((plan), 0, 0, 0, 0, __LINE__)
#define check_pieces(plan, offset, len, stride, count) \
    check_plan((plan), (offset), (len), (int64_t)(stride), (count), __LINE__)

/* The very first read at offset 0 arms at once; elsewhere it takes the second in order. */
static void prefetch__arms_at_the_second_read_in_order(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_pieces(see(&prefetch, 0, BLOCK, WI_PREFETCH_MISS), BLOCK, BLOCK, BLOCK, 4);
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_none(see(&prefetch, 10 * BLOCK, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 11 * BLOCK, BLOCK, WI_PREFETCH_MISS), 12 * BLOCK, BLOCK, BLOCK,
                 4);
    /* Offset 0 later on is a seek like any other. */
    check_none(see(&prefetch, 0, 4 * KIB, WI_PREFETCH_MISS));
}

/* No more is planned until less than half of the window is ahead; then up to the full window. */
static void prefetch__plans_in_batches(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_pieces(see(&prefetch, 0, BLOCK, WI_PREFETCH_MISS), BLOCK, BLOCK, BLOCK, 4);
    check_none(see(&prefetch, BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_none(see(&prefetch, 2 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_pieces(see(&prefetch, 3 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD), 5 * BLOCK, BLOCK,
                 BLOCK, 3);
    check_none(see(&prefetch, 4 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));
}

/* Reads of any length that touch or overlap are in order; bytes are planned once. */
static void prefetch__lengths_may_change(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_none(see(&prefetch, 100, 50, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 150, 4000, WI_PREFETCH_HIT), BLOCK, BLOCK, BLOCK, 4);
    check_none(see(&prefetch, 4150, 1, WI_PREFETCH_HIT));
    check_none(see(&prefetch, 4151, 100000, WI_PREFETCH_HIT_AHEAD));
    check_none(see(&prefetch, 104151 - 100, 200, WI_PREFETCH_HIT)); /* overlaps */
    check_none(see(&prefetch, 104151, 50, WI_PREFETCH_HIT));        /* again */
    check_pieces(see(&prefetch, 104251, 3 * BLOCK, WI_PREFETCH_HIT_AHEAD), 5 * BLOCK, BLOCK,
                 BLOCK, 4);
}

/* 4 KiB reads of 64 KiB blocks: each block is planned once, in batches. */
static void prefetch__small_reads(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t next = 17 * BLOCK;
    unsigned plans = 0;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t at = 16 * BLOCK; at < 80 * BLOCK; at += 4 * KIB) {
        struct wi_prefetch_plan plan = see(
            &prefetch, at, 4 * KIB, at % BLOCK == 0 ? WI_PREFETCH_HIT_AHEAD : WI_PREFETCH_HIT);

        if (plan.count == 0)
            continue;
        assert_int_equal(plan.offset, next);
        assert_int_equal(plan.len, BLOCK);
        assert_int_equal(plan.stride, (int64_t)BLOCK);
        next += plan.count * BLOCK;
        plans++;
    }
    assert_true(next >= 80 * BLOCK && next <= 84 * BLOCK);
    assert_true(plans <= 22);
}

/* The third equal stride arms, forwards, backwards, and where the blocks touch backwards. */
static void prefetch__arms_at_the_third_equal_stride(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_none(see(&prefetch, 5 * MIB, BLOCK, WI_PREFETCH_MISS));
    check_none(see(&prefetch, 6 * MIB, BLOCK, WI_PREFETCH_MISS));
    check_none(see(&prefetch, 7 * MIB, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 8 * MIB, BLOCK, WI_PREFETCH_MISS), 9 * MIB, BLOCK, MIB, 4);
    check_none(see(&prefetch, 9 * MIB, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_none(see(&prefetch, 10 * MIB, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_pieces(see(&prefetch, 11 * MIB, BLOCK, WI_PREFETCH_HIT_AHEAD), 13 * MIB, BLOCK, MIB,
                 3);

    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 20; i > 17; i--)
        check_none(see(&prefetch, i * MIB, 4 * KIB, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 17 * MIB, 4 * KIB, WI_PREFETCH_MISS), 16 * MIB, 4 * KIB, -MIB,
                 4);

    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 20; i > 17; i--)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 17 * BLOCK, BLOCK, WI_PREFETCH_MISS), 16 * BLOCK, BLOCK, -BLOCK,
                 4);
    check_none(see(&prefetch, 16 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_none(see(&prefetch, 15 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));
    check_pieces(see(&prefetch, 14 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD), 12 * BLOCK, BLOCK,
                 -BLOCK, 3);
}

/* A stride of 64 MiB is followed, a longer one is not. */
static void prefetch__strides_have_a_limit(void **state)
{
    (void)state;
    for (uint64_t more = 0; more < 2; more++) {
        struct wi_prefetch prefetch;
        struct wi_prefetch_plan plan = { 0 };

        wi_prefetch_init(&prefetch, BLOCK, BIG);
        for (uint64_t i = 1; i < 8; i++) {
            plan = see(&prefetch, i * (64 * MIB + more * 4 * KIB), BLOCK, WI_PREFETCH_MISS);
            if (plan.count > 0)
                break;
        }
        assert_int_equal(plan.count, more ? 0 : 4);
    }
}

/* A plan ends where the file does, with a short piece, and there is none behind. */
static void prefetch__stops_at_the_end(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t end = 2 * BLOCK + 1000;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_pieces(see_until(&prefetch, 0, 4096, WI_PREFETCH_MISS, end), BLOCK, BLOCK, BLOCK, 1);
    check_pieces(see_until(&prefetch, 4096, 4096, WI_PREFETCH_HIT, end), 2 * BLOCK, 1000, BLOCK,
                 1);
    check_none(see_until(&prefetch, 8192, BLOCK, WI_PREFETCH_HIT_AHEAD, end));
    check_none(see_until(&prefetch, 8192 + BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD, end));

    /* With a stride. */
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    end = 6 * MIB + 5000;
    for (uint64_t i = 1; i < 4; i++)
        check_none(see_until(&prefetch, i * MIB, BLOCK, WI_PREFETCH_MISS, end));
    check_pieces(see_until(&prefetch, 4 * MIB, BLOCK, WI_PREFETCH_MISS, end), 5 * MIB, BLOCK,
                 MIB, 1);
    check_pieces(see_until(&prefetch, 5 * MIB, BLOCK, WI_PREFETCH_HIT_AHEAD, end), 6 * MIB,
                 5000, MIB, 1);
    check_none(see_until(&prefetch, 6 * MIB, 5000, WI_PREFETCH_HIT_AHEAD, end));
}

/* Backwards it ends at offset 0 and does not wrap. */
static void prefetch__stops_at_the_beginning(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 5; i > 2; i--)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 2 * BLOCK, BLOCK, WI_PREFETCH_MISS), BLOCK, BLOCK, -BLOCK, 2);
    check_none(see(&prefetch, BLOCK, BLOCK, WI_PREFETCH_WAITED));
    check_none(see(&prefetch, 0, BLOCK, WI_PREFETCH_WAITED));

    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 5; i > 2; i--)
        check_none(see(&prefetch, i * MIB + 9, 100, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 2 * MIB + 9, 100, WI_PREFETCH_MISS), MIB + 9, 100, -MIB, 2);
    check_none(see(&prefetch, MIB + 9, 100, WI_PREFETCH_WAITED));
    check_none(see(&prefetch, 9, 100, WI_PREFETCH_WAITED));
}

/* What could not be read is planned again, from where it was cut. */
static void prefetch__cut_is_planned_again(void **state)
{
    struct wi_prefetch prefetch;
    struct wi_prefetch_plan plan;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    plan = see(&prefetch, 0, BLOCK, WI_PREFETCH_MISS);
    check_pieces(plan, BLOCK, BLOCK, BLOCK, 4);
    wi_prefetch_cut(&prefetch, &plan, 1);
    plan = see(&prefetch, BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD);
    check_pieces(plan, 2 * BLOCK, BLOCK, BLOCK, 4);
    wi_prefetch_cut(&prefetch, &plan, 0);
    /* The consumer was faster. */
    plan = see(&prefetch, 2 * BLOCK, BLOCK, WI_PREFETCH_MISS);
    check_pieces(plan, 3 * BLOCK, BLOCK, BLOCK, 4);
    wi_prefetch_cut(&prefetch, &plan, 4);
    check_none(see(&prefetch, 3 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD));

    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 20; i > 17; i--)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    plan = see(&prefetch, 17 * BLOCK, BLOCK, WI_PREFETCH_MISS);
    wi_prefetch_cut(&prefetch, &plan, 1);
    check_pieces(see(&prefetch, 16 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD), 15 * BLOCK, BLOCK,
                 -BLOCK, 4);
}

/* RANDOM is off, SEQUENTIAL needs no second read, ONCE is as usual. */
static void prefetch__follows_advice(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    prefetch.advice = WEIR_ADVICE_RANDOM;
    for (uint64_t i = 0; i < 100; i++)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    prefetch.advice = WEIR_ADVICE_SEQUENTIAL;
    check_pieces(see(&prefetch, 500 * BLOCK, BLOCK, WI_PREFETCH_MISS), 501 * BLOCK, BLOCK,
                 BLOCK, 4);
    prefetch.advice = WEIR_ADVICE_ONCE;
    check_none(see(&prefetch, 900 * BLOCK, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 901 * BLOCK, BLOCK, WI_PREFETCH_MISS), 902 * BLOCK, BLOCK,
                 BLOCK, 4);
}

/* Where all is cached nothing is foreseen, and a cache too small for it has no prefetch. */
static void prefetch__needs_a_reason_and_room(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 0; i < 100; i++)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_HIT));
    wi_prefetch_init(&prefetch, BLOCK, 4 * BLOCK - 1);
    for (uint64_t i = 0; i < 100; i++)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    wi_prefetch_init(&prefetch, BLOCK, 16 * BLOCK);
    check_pieces(see(&prefetch, 0, BLOCK, WI_PREFETCH_MISS), BLOCK, BLOCK, BLOCK, 4);
    wi_prefetch_init(&prefetch, 1024 * KIB, 16 * MIB);
    check_pieces(see(&prefetch, 0, 4096, WI_PREFETCH_MISS), MIB, MIB, MIB, 1);
}

/* Lengths and offsets at the limits neither wrap nor crash. */
static void prefetch__limits_of_numbers(void **state)
{
    static const uint64_t odd[] = { 0,
                                    1,
                                    BLOCK - 1,
                                    BLOCK,
                                    INT64_MAX - 1,
                                    INT64_MAX,
                                    UINT64_MAX,
                                    UINT64_MAX / 4,
                                    INT64_MAX - BLOCK };
    struct base_rng rng = base_rng_start();
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_none(see(&prefetch, 0, 0, WI_PREFETCH_MISS));
    check_none(see(&prefetch, UINT64_MAX, 1, WI_PREFETCH_MISS));
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t offset = odd[base_rng_below(&rng, WI_ARRAY_LEN(odd))];
        uint64_t len = odd[base_rng_below(&rng, WI_ARRAY_LEN(odd))];
        uint64_t end = odd[base_rng_below(&rng, WI_ARRAY_LEN(odd))];
        struct wi_prefetch_plan plan;

        offset += base_rng_below(&rng, 4) * BLOCK;
        plan = see_until(&prefetch, offset, len,
                         (enum wi_prefetch_event)base_rng_below(&rng, 4), end);
        if (plan.count == 0)
            continue;
        assert_true(plan.len > 0 && plan.len <= end && plan.offset <= end - plan.len);
        if (plan.stride > 0)
            assert_true((plan.count - 1) * (uint64_t)plan.stride <=
                        end - plan.offset - plan.len);
        else
            assert_true((plan.count - 1) * (uint64_t)-plan.stride <= plan.offset);
    }
}

/* ---- the window --------------------------------------------------------------------------- */

/* Reads `count` blocks in order from `*at`; each waits, or not. */
static void read_on(struct wi_prefetch *prefetch, uint64_t *at, unsigned count,
                    enum wi_prefetch_event event)
{
    for (unsigned i = 0; i < count; i++, *at += BLOCK)
        (void)see(prefetch, *at, BLOCK, event);
}

static uint64_t window_of(const struct wi_prefetch *prefetch)
{
    return prefetch->streams[0].window_bytes;
}

/* It grows only where the consumer waits, once for each window read, up to the limit. */
static void prefetch__window_grows_on_waits_only(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t at = 0;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    read_on(&prefetch, &at, 1, WI_PREFETCH_MISS);
    assert_int_equal(window_of(&prefetch), 256 * KIB);
    read_on(&prefetch, &at, 500, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(window_of(&prefetch), 256 * KIB);
    read_on(&prefetch, &at, 1, WI_PREFETCH_WAITED);
    assert_int_equal(window_of(&prefetch), 512 * KIB);
    read_on(&prefetch, &at, 7, WI_PREFETCH_WAITED); /* held */
    assert_int_equal(window_of(&prefetch), 512 * KIB);
    read_on(&prefetch, &at, 1, WI_PREFETCH_WAITED);
    assert_int_equal(window_of(&prefetch), 1024 * KIB);
    read_on(&prefetch, &at, 1000, WI_PREFETCH_WAITED);
    assert_int_equal(window_of(&prefetch), 8 * MIB);
    read_on(&prefetch, &at, 1000, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(window_of(&prefetch), 8 * MIB);

    /* What was planned and had to be read all the same is no reason. */
    at = 0;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (unsigned i = 0; i < 400; i++)
        read_on(&prefetch, &at, 1, i % 8 == 7 ? WI_PREFETCH_MISS : WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(window_of(&prefetch), 256 * KIB);

    /* A quarter of a small cache. */
    at = 0;
    wi_prefetch_init(&prefetch, BLOCK, 4 * MIB);
    read_on(&prefetch, &at, 1000, WI_PREFETCH_WAITED);
    assert_int_equal(window_of(&prefetch), MIB);
}

/* More than a quarter of the last window unused halves it; a quarter does not. The last window
 * that goes to waste ends the stream. */
static void prefetch__window_shrinks_on_waste(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t at = 0;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    read_on(&prefetch, &at, 1000, WI_PREFETCH_WAITED);
    assert_int_equal(window_of(&prefetch), 8 * MIB);
    for (unsigned i = 0; i < 128; i++) /* evicted before it was used: one in four */
        read_on(&prefetch, &at, 1, i % 4 == 0 ? WI_PREFETCH_MISS : WI_PREFETCH_HIT_AHEAD);
    read_on(&prefetch, &at, 128, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(window_of(&prefetch), 8 * MIB);
    for (unsigned i = 0; i < 256; i++) /* one in three */
        read_on(&prefetch, &at, 1, i % 3 == 0 ? WI_PREFETCH_MISS : WI_PREFETCH_HIT_AHEAD);
    assert_true(window_of(&prefetch) <= 4 * MIB);
    read_on(&prefetch, &at, 1000, WI_PREFETCH_MISS);
    assert_true(prefetch.armed == 0 || window_of(&prefetch) <= 512 * KIB);
    assert_true(prefetch.doubt > 0);
}

/* At most 128 pieces ahead, however small they are. */
static void prefetch__pieces_are_bounded(void **state)
{
    struct wi_prefetch prefetch;
    uint32_t most = 0;

    (void)state;
    wi_prefetch_init(&prefetch, 4096, BIG);
    for (uint64_t i = 1; i < 6000; i++) {
        struct wi_prefetch_plan plan = see(&prefetch, i * MIB, 512, WI_PREFETCH_WAITED);

        if (plan.count > 0) {
            uint32_t ahead = (uint32_t)(plan.offset / MIB - i) - 1 + plan.count;

            most = ahead > most ? ahead : most;
        }
    }
    assert_int_equal(most, 128);
}

/* All streams of a small cache together keep to a quarter of it. */
static void prefetch__streams_share_a_quarter(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t at[8];

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, 64 * BLOCK);
    for (unsigned i = 0; i < 8; i++)
        at[i] = i * 100 * MIB + BLOCK;
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < 8; i++) {
            struct wi_prefetch_plan plan = see(&prefetch, at[i], BLOCK, WI_PREFETCH_WAITED);

            at[i] += BLOCK;
            if (round > 1 && plan.count > 0)
                assert_true(plan.offset + plan.count * BLOCK - at[i] <= 2 * BLOCK);
        }
    }
    assert_int_equal(prefetch.armed, 8);
}

/* ---- streams ------------------------------------------------------------------------------ */

/* A stream that nobody reads for 2 s is forgotten: going on where it was arms anew. */
static void prefetch__idle_streams_go(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t at = 0;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    read_on(&prefetch, &at, 20, WI_PREFETCH_WAITED);
    clock_ns += 2 * SECOND - 2000000;
    read_on(&prefetch, &at, 1, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(prefetch.armed, 1);
    clock_ns += 2 * SECOND;
    read_on(&prefetch, &at, 1, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(prefetch.armed, 0);
}

/* Reads that skip a little, come back or arrive out of order stay with their stream. */
static void prefetch__small_disorder_is_no_seek(void **state)
{
    struct wi_prefetch prefetch;
    static const uint64_t order[] = { 0, 1, 3, 2, 4, 6, 7, 5, 8, 8, 9, 10, 9, 11 };
    uint64_t next = BLOCK;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (size_t i = 0; i < WI_ARRAY_LEN(order); i++) {
        struct wi_prefetch_plan plan =
            see(&prefetch, order[i] * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD);

        if (plan.count > 0) {
            assert_int_equal(plan.offset, next);
            next += plan.count * BLOCK;
        }
    }
    assert_int_equal(prefetch.armed, 1);
    assert_true(next > 12 * BLOCK);
}

/* The same backwards. */
static void prefetch__small_disorder_backwards(void **state)
{
    struct wi_prefetch prefetch;
    static const uint64_t order[] = { 40, 39, 38, 37, 35, 36, 34, 32, 33, 31, 31, 30 };
    uint64_t next = 36 * BLOCK;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (size_t i = 0; i < WI_ARRAY_LEN(order); i++) {
        struct wi_prefetch_plan plan =
            see(&prefetch, order[i] * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD);

        if (plan.count > 0) {
            assert_int_equal(plan.offset, next);
            next -= plan.count * BLOCK;
        }
    }
    assert_int_equal(prefetch.armed, 1);
    assert_true(next < 30 * BLOCK);
}

/* A read behind all that is planned is a seek, forwards and backwards. */
static void prefetch__beyond_the_plan_is_a_seek(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    check_pieces(see(&prefetch, 0, BLOCK, WI_PREFETCH_MISS), BLOCK, BLOCK, BLOCK, 4);
    check_none(see(&prefetch, 5 * BLOCK, BLOCK, WI_PREFETCH_MISS));
    assert_int_equal(prefetch.streams[0].edge, BLOCK);
    check_pieces(see(&prefetch, 4 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD), 5 * BLOCK, BLOCK,
                 BLOCK, 2); /* three of four were for nothing */

    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 20; i > 17; i--)
        check_none(see(&prefetch, i * BLOCK, BLOCK, WI_PREFETCH_MISS));
    check_pieces(see(&prefetch, 17 * BLOCK, BLOCK, WI_PREFETCH_MISS), 16 * BLOCK, BLOCK, -BLOCK,
                 4);
    check_none(see(&prefetch, 12 * BLOCK, BLOCK, WI_PREFETCH_MISS));
    assert_int_equal(prefetch.streams[0].edge, 17 * BLOCK);
    check_pieces(see(&prefetch, 13 * BLOCK, BLOCK, WI_PREFETCH_HIT_AHEAD), 12 * BLOCK, BLOCK,
                 -BLOCK, 2);
}

/* The same bytes over and over are no pattern. */
static void prefetch__again_is_not_onwards(void **state)
{
    struct wi_prefetch prefetch;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (unsigned i = 0; i < 20; i++) {
        check_none(see(&prefetch, 7 * MIB, 4096, WI_PREFETCH_MISS));
        check_none(see(&prefetch, 7 * MIB + 100, 200, WI_PREFETCH_HIT));
    }
}

/* After 64 reads of others a stream that has used a window is still there, another is not. */
static void prefetch__who_stays_among_many(void **state)
{
    struct base_rng rng = base_rng_start();

    (void)state;
    for (unsigned reads = 2; reads <= 20; reads += 18) {
        struct wi_prefetch prefetch;
        uint64_t at = 512 * MIB;

        wi_prefetch_init(&prefetch, BLOCK, BIG);
        read_on(&prefetch, &at, reads, WI_PREFETCH_HIT_AHEAD);
        assert_int_equal(prefetch.armed, 1);
        for (unsigned i = 0; i < 200; i++)
            (void)see(&prefetch, (UINT64_C(1) << 40) + base_rng_below(&rng, 1u << 28) * 4096,
                      4096, WI_PREFETCH_MISS);
        assert_int_equal(prefetch.armed, reads == 20);
        assert_int_equal(prefetch.doubt, reads == 20 ? 0 : 1);
    }
}

/* Of more streams than there are places for, the one unused for longest goes. */
static void prefetch__oldest_stream_goes(void **state)
{
    struct wi_prefetch prefetch;
    uint64_t at[9];

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (unsigned i = 0; i < 9; i++)
        at[i] = i * 1000 * MIB + BLOCK;
    for (unsigned i = 0; i < 8; i++)
        read_on(&prefetch, &at[i], 5, WI_PREFETCH_HIT_AHEAD);
    for (unsigned i = 0; i < 8; i++) { /* the fourth is left out */
        if (i != 3)
            read_on(&prefetch, &at[i], 1, WI_PREFETCH_HIT_AHEAD);
    }
    read_on(&prefetch, &at[8], 5, WI_PREFETCH_HIT_AHEAD);
    assert_int_equal(prefetch.armed, 8);
    assert_int_equal(prefetch.streams[3].edge, at[8]);
}

/* Random reads between those of a stream neither end it nor hide that it begins. */
static void prefetch__streams_survive_random_reads(void **state)
{
    struct base_rng rng = base_rng_start();
    struct wi_prefetch prefetch;
    uint64_t planned = 0;
    uint64_t at = 512 * MIB;

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (unsigned i = 0; i < 1000; i++) {
        struct wi_prefetch_plan plan = see(&prefetch, at, BLOCK, WI_PREFETCH_WAITED);

        planned += plan.count;
        at += BLOCK;
        for (unsigned j = 0; j < 10; j++)
            (void)see(&prefetch, (UINT64_C(1) << 40) + base_rng_below(&rng, 1u << 28) * 4096,
                      4096, WI_PREFETCH_MISS);
    }
    assert_true(planned >= 998 && planned <= 998 + 128);
}

/* Progressions that are nested in one another are told apart. */
static void prefetch__nested_strides(void **state)
{
    struct wi_prefetch prefetch;
    unsigned plans[3] = { 0 };

    (void)state;
    wi_prefetch_init(&prefetch, BLOCK, BIG);
    for (uint64_t i = 1; i < 40; i++) {
        for (uint64_t j = 0; j < 3; j++) {
            uint64_t at = i * MIB + j * 200 * KIB;
            struct wi_prefetch_plan plan =
                see(&prefetch, at, 16 * KIB, i < 5 ? WI_PREFETCH_MISS : WI_PREFETCH_HIT_AHEAD);

            if (plan.count == 0)
                continue;
            assert_int_equal(plan.stride, (int64_t)MIB);
            assert_int_equal((plan.offset - at) % MIB, 0);
            plans[j]++;
        }
    }
    for (unsigned j = 0; j < 3; j++)
        assert_true(plans[j] > 5);
}

/* ---- a consumer, a cache and a device ------------------------------------------------------- */

#define SIM_BLOCKS 65536u /* of the file: 4 GiB */

struct sim {
    struct wi_prefetch prefetch;
    uint64_t now_ns;
    uint64_t device_ns; /* when the device has time again */
    uint64_t latency_ns;
    uint64_t transfer_ns; /* a block */
    uint64_t think_ns;    /* between reads */
    uint64_t file_end;
    uint32_t capacity; /* blocks; dropped in the order they came */
    uint32_t first;
    uint32_t count;
    uint32_t fifo[8192];
    struct sim_block {
        uint64_t ready_ns;
        bool there;
        bool prefetched; /* and not used */
    } blocks[SIM_BLOCKS];

    uint64_t asked;
    uint64_t reads;
    uint64_t prefetched; /* bytes */
    uint64_t wasted;
    uint64_t twice; /* blocks planned although they were there */
    uint64_t waits; /* reads that had to wait */
};

static struct sim *sim_new(uint32_t cache_blocks)
{
    struct sim *sim = calloc(1, sizeof(*sim));

    assert_non_null(sim);
    wi_prefetch_init(&sim->prefetch, BLOCK, cache_blocks * BLOCK);
    sim->capacity = cache_blocks;
    sim->latency_ns = 100000;
    sim->transfer_ns = 20000;
    sim->think_ns = 1000;
    sim->file_end = SIM_BLOCKS * BLOCK;
    return sim;
}

static void sim_load(struct sim *sim, uint64_t number, bool prefetched)
{
    struct sim_block *block = &sim->blocks[number];

    if (sim->count == sim->capacity) {
        struct sim_block *old = &sim->blocks[sim->fifo[sim->first]];

        if (old->prefetched)
            sim->wasted += BLOCK;
        memset(old, 0, sizeof(*old));
        sim->first = (sim->first + 1) % WI_ARRAY_LEN(sim->fifo);
        sim->count--;
    }
    sim->fifo[(sim->first + sim->count++) % WI_ARRAY_LEN(sim->fifo)] = (uint32_t)number;
    sim->device_ns = wi_max_u64(sim->device_ns, sim->now_ns) + sim->transfer_ns;
    block->ready_ns = sim->device_ns + sim->latency_ns;
    block->there = true;
    block->prefetched = prefetched;
    if (prefetched)
        sim->prefetched += BLOCK;
}

static void sim_read(struct sim *sim, uint64_t offset, uint64_t len)
{
    enum wi_prefetch_event event = WI_PREFETCH_HIT;
    uint64_t until_ns = 0;
    struct wi_prefetch_plan plan;

    for (uint64_t number = offset / BLOCK; number <= (offset + len - 1) / BLOCK; number++) {
        struct sim_block *block = &sim->blocks[number];
        enum wi_prefetch_event of_block = WI_PREFETCH_MISS;

        if (!block->there)
            sim_load(sim, number, false);
        else if (block->ready_ns > sim->now_ns)
            of_block = WI_PREFETCH_WAITED;
        else
            of_block = block->prefetched ? WI_PREFETCH_HIT_AHEAD : WI_PREFETCH_HIT;
        block->prefetched = false;
        event = of_block > event ? of_block : event;
        until_ns = wi_max_u64(until_ns, block->ready_ns);
    }
    sim->asked += len;
    sim->reads++;
    wi_prefetch_observe(&sim->prefetch, offset, len, event, sim->now_ns, sim->file_end, &plan);
    for (uint32_t i = 0; i < plan.count; i++) {
        uint64_t at = plan.offset + i * (uint64_t)plan.stride;

        assert_true(at + plan.len <= sim->file_end);
        for (uint64_t number = at / BLOCK; number <= (at + plan.len - 1) / BLOCK; number++) {
            if (sim->blocks[number].there)
                sim->twice++;
            else
                sim_load(sim, number, true);
        }
    }
    if (until_ns > sim->now_ns) {
        sim->waits++;
        sim->now_ns = until_ns;
    }
    sim->now_ns += sim->think_ns;
}

/* Count what is left over, say how it went, and give it up. */
static void sim_end(struct sim *sim, const char *what, double waste_max, double waits_max)
{
    double waste;
    double waits = (double)sim->waits / (double)sim->reads;

    for (size_t i = 0; i < SIM_BLOCKS; i++) {
        if (sim->blocks[i].prefetched)
            sim->wasted += BLOCK;
    }
    waste = (double)sim->wasted / (double)sim->asked;
    print_message("%-28s asked %6.1f MiB, prefetched %6.1f, wasted %.2f %%, waited %.2f %%, "
                  "planned twice %" PRIu64 "\n",
                  what, (double)sim->asked / (double)MIB, (double)sim->prefetched / (double)MIB,
                  waste * 100, waits * 100, sim->twice);
    assert_true(waste <= waste_max);
    assert_true(waits <= waits_max);
    free(sim);
}

/* Wasted are at most 1 % of a scan. With a consumer slower than the device it hardly waits. */
static void sim__scan(void **state)
{
    static const uint64_t sizes[] = { 4 * KIB, 64 * KIB, 100000, MIB };
    struct sim *sim;

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(sizes); i++) {
        for (unsigned backward = 0; backward < 2; backward++) {
            uint64_t total = 256 * MIB;

            sim = sim_new(1024);
            sim->think_ns = sizes[i] / 2; /* 2 GB/s; the device does 3 */
            sim->file_end = total - total % sizes[i];
            for (uint64_t at = 0; at < sim->file_end; at += sizes[i])
                sim_read(sim, backward ? sim->file_end - at - sizes[i] : at, sizes[i]);
            assert_int_equal(sim->twice, 0);
            sim_end(sim, backward ? "scan backwards" : "scan", 0.01, 0.1);
        }
    }
}

static void sim__stride(void **state)
{
    static const int64_t strides[] = { (int64_t)MIB, -(int64_t)MIB, 65 * 4096, -200000,
                                       32 * (int64_t)MIB };

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(strides); i++) {
        struct sim *sim = sim_new(1024);
        uint64_t end = sim->file_end;
        uint64_t distance = (uint64_t)(strides[i] < 0 ? -strides[i] : strides[i]);

        sim->think_ns = 60000;
        for (uint64_t at = 0; at + BLOCK <= end; at += distance)
            sim_read(sim, strides[i] < 0 ? end - at - BLOCK : at, BLOCK);
        /* The window that the read at offset 0 starts in vain is all that is wasted. */
        sim_end(sim, "stride", 0.04, 0.05);
    }
}

/* Several streams in one file. Eight are all served, of nine eight are. */
static void sim__interleaved(void **state)
{
    static const unsigned counts[] = { 4, 8, 9, 12 };

    (void)state;
    for (unsigned kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < WI_ARRAY_LEN(counts); i++) {
            struct sim *sim = sim_new(2048);
            unsigned streams = counts[i];
            uint64_t part = SIM_BLOCKS / 16 * BLOCK;
            double unserved = streams > 8 ? (streams - 8.0) / streams : 0;
            uint64_t steps = kind == 2 ? 240 : 3900;

            if (kind == 2 && streams > 8)
                unserved = 1; /* too many terms to remember: nobody is promised anything */
            sim->think_ns = 30000;
            for (uint64_t step = 0; step < steps; step++) {
                for (unsigned s = 0; s < streams; s++) {
                    uint64_t at = s * part;

                    if (kind == 0)
                        at += step * BLOCK;
                    else if (kind == 1)
                        at += part - (step + 1) * BLOCK;
                    else
                        at += step * MIB;
                    sim_read(sim, at, BLOCK);
                }
            }
            sim_end(sim,
                    kind == 0   ? "interleaved"
                    : kind == 1 ? "interleaved backwards"
                                : "interleaved strides",
                    kind == 2 ? 0.05 : 0.03, unserved + 0.05);
        }
    }
}

/* Random reads: of what is prefetched for each byte asked there is at most 1 %. */
static void sim__random(void **state)
{
    static const uint64_t sizes[] = { 4 * KIB, 64 * KIB };
    static const uint64_t files[] = { 64 * MIB, 256 * MIB, 4096 * MIB };
    struct base_rng rng = base_rng_start();

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(sizes); i++) {
        for (size_t j = 0; j < WI_ARRAY_LEN(files); j++) {
            struct sim *sim = sim_new(256);

            sim->file_end = files[j];
            for (unsigned n = 0; n < 100000; n++)
                sim_read(sim, base_rng_below(&rng, files[j] / sizes[i]) * sizes[i], sizes[i]);
            assert_true((double)sim->prefetched <= 0.01 * (double)sim->asked);
            sim_end(sim, "random", 0.01, 1);
        }
    }
}

/* A few reads in order, then a seek, over and over. */
static void sim__bursts(void **state)
{
    static const unsigned lengths[] = { 2, 3, 5, 10, 20, 40, 100 };
    struct base_rng rng = base_rng_start();

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(lengths); i++) {
        for (uint64_t size = 4 * KIB; size <= 64 * KIB; size *= 16) {
            struct sim *sim = sim_new(1024);
            unsigned bursts = 40000 / lengths[i];

            for (unsigned n = 0; n < bursts; n++) {
                uint64_t at =
                    base_rng_below(&rng, sim->file_end / size - lengths[i] + 1) * size;

                for (unsigned r = 0; r < lengths[i]; r++, at += size)
                    sim_read(sim, at, size);
            }
            print_message("%u x %" PRIu64 ": ", lengths[i], size);
            sim_end(sim, "bursts", 0.15, 1);
        }
    }
}

/* A scan after many bursts is served all the same, only later. */
static void sim__scan_after_bursts(void **state)
{
    struct base_rng rng = base_rng_start();
    struct sim *sim = sim_new(1024);

    (void)state;
    for (unsigned n = 0; n < 1000; n++) {
        uint64_t at = base_rng_below(&rng, sim->file_end / BLOCK - 3) * BLOCK;

        for (unsigned r = 0; r < 3; r++, at += BLOCK)
            sim_read(sim, at, BLOCK);
    }
    assert_true(sim->prefetch.doubt > 0);
    sim->think_ns = 30000;
    sim->reads = 0;
    sim->waits = 0;
    sim->asked = 0;
    sim->wasted = 0;
    for (uint64_t at = 0; at < 1024 * MIB; at += BLOCK)
        sim_read(sim, at, BLOCK);
    sim_end(sim, "scan after bursts", 0.02, 0.05);
}

/* Doubt goes as it came: after some scans that go well a burst is trusted at once. */
static void sim__trust_returns(void **state)
{
    struct base_rng rng = base_rng_start();
    struct sim *sim = sim_new(1024);
    unsigned scans = 0;

    (void)state;
    for (unsigned n = 0; n < 1000; n++) {
        uint64_t at = base_rng_below(&rng, sim->file_end / BLOCK - 3) * BLOCK;

        for (unsigned r = 0; r < 3; r++, at += BLOCK)
            sim_read(sim, at, BLOCK);
    }
    assert_true(sim->prefetch.doubt > 1);
    sim->file_end = 100 * MIB;
    for (; scans < 20 && sim->prefetch.doubt > 0; scans++) {
        for (uint64_t at = 0; at < sim->file_end; at += BLOCK)
            sim_read(sim, at, BLOCK);
        sim->now_ns += 3 * SECOND;
    }
    assert_int_equal(sim->prefetch.doubt, 0);
    assert_true(scans > 1);
    free(sim);
}

/* A cache that is too small for what is prefetched: the window gives way. */
static void sim__small_cache(void **state)
{
    struct sim *sim = sim_new(16);

    (void)state;
    for (uint64_t at = 0; at < 256 * MIB; at += BLOCK)
        sim_read(sim, at, BLOCK);
    sim_end(sim, "small cache", 0.01, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefetch__arms_at_the_second_read_in_order),
        cmocka_unit_test(prefetch__plans_in_batches),
        cmocka_unit_test(prefetch__lengths_may_change),
        cmocka_unit_test(prefetch__small_reads),
        cmocka_unit_test(prefetch__arms_at_the_third_equal_stride),
        cmocka_unit_test(prefetch__strides_have_a_limit),
        cmocka_unit_test(prefetch__stops_at_the_end),
        cmocka_unit_test(prefetch__stops_at_the_beginning),
        cmocka_unit_test(prefetch__cut_is_planned_again),
        cmocka_unit_test(prefetch__follows_advice),
        cmocka_unit_test(prefetch__needs_a_reason_and_room),
        cmocka_unit_test(prefetch__limits_of_numbers),
        cmocka_unit_test(prefetch__window_grows_on_waits_only),
        cmocka_unit_test(prefetch__window_shrinks_on_waste),
        cmocka_unit_test(prefetch__pieces_are_bounded),
        cmocka_unit_test(prefetch__streams_share_a_quarter),
        cmocka_unit_test(prefetch__idle_streams_go),
        cmocka_unit_test(prefetch__small_disorder_is_no_seek),
        cmocka_unit_test(prefetch__small_disorder_backwards),
        cmocka_unit_test(prefetch__beyond_the_plan_is_a_seek),
        cmocka_unit_test(prefetch__again_is_not_onwards),
        cmocka_unit_test(prefetch__who_stays_among_many),
        cmocka_unit_test(prefetch__oldest_stream_goes),
        cmocka_unit_test(prefetch__streams_survive_random_reads),
        cmocka_unit_test(prefetch__nested_strides),
        cmocka_unit_test(sim__scan),
        cmocka_unit_test(sim__stride),
        cmocka_unit_test(sim__interleaved),
        cmocka_unit_test(sim__random),
        cmocka_unit_test(sim__bursts),
        cmocka_unit_test(sim__scan_after_bursts),
        cmocka_unit_test(sim__trust_returns),
        cmocka_unit_test(sim__small_cache),
    };

    return cmocka_run_group_tests(tests, base_watchdog, NULL);
}
