/* SPDX-License-Identifier: MIT */
#include "base/drr.h"
#include "base_test.h"

#define KIB 1024u
#define ALL ((1u << WI_DRR_RANKS) - 1)

static const uint64_t weights[WI_DRR_RANKS] = { 64, 32, 8, 4, 2 };

static uint32_t pick(struct wi_drr *drr, uint32_t mask)
{
    int rank = wi_drr_pick(drr, mask);

    assert_true(rank >= 0 && rank < (int)WI_DRR_RANKS && (mask >> rank & 1) != 0);
    return (uint32_t)rank;
}

/* SYNC is the most urgent, and going back and forth ends where it began. */
static void drr__ranks_are_classes_by_urgency(void **state)
{
    (void)state;
    assert_int_equal(wi_drr_rank(WEIR_CLASS_SYNC), 0);
    assert_int_equal(wi_drr_rank(WEIR_CLASS_FOREGROUND), 1);
    assert_int_equal(wi_drr_rank(WEIR_CLASS_BATCH), 2);
    assert_int_equal(wi_drr_rank(WEIR_CLASS_PREFETCH), 3);
    assert_int_equal(wi_drr_rank(WEIR_CLASS_BACKGROUND), 4);
    for (uint32_t c = 0; c < WEIR_CLASSES; c++)
        assert_int_equal(wi_drr_rank(wi_drr_rank(c)), c);
}

static void drr__nobody_waits(void **state)
{
    struct wi_drr drr = { { 0 } };

    (void)state;
    assert_int_equal(wi_drr_pick(&drr, 0), -1);
}

/* A round from the start: each rank its whole quantum, in the order of urgency. */
static void drr__one_round_in_order(void **state)
{
    struct wi_drr drr = { { 0 } };

    (void)state;
    for (int round = 0; round < 3; round++) {
        for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
            for (uint64_t i = 0; i < weights[rank]; i++) {
                assert_int_equal(pick(&drr, ALL), rank);
                wi_drr_charge(&drr, rank, 64 * KIB);
            }
        }
    }
}

/* Over a long run with all waiting, bytes are as the weights, whatever the sizes. The error is
 * one quantum and one operation a rank. */
static void drr__shares_are_the_weights(void **state)
{
    struct base_rng rng = base_rng_start();
    struct wi_drr drr = { { 0 } };
    uint64_t moved[WI_DRR_RANKS] = { 0 };
    uint64_t total = 0;

    (void)state;
    for (uint32_t i = 0; i < 400000; i++) {
        uint32_t rank = pick(&drr, ALL);
        /* Each rank has sizes of its own, up to 1 MiB. */
        uint64_t bytes = WI_DRR_LEAST + base_rng_below(&rng, 64 * KIB << rank);

        wi_drr_charge(&drr, rank, bytes);
        moved[rank] += bytes;
        total += bytes;
        assert_true(drr.deficit[rank] <= wi_drr_quantum(rank));
    }
    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
        uint64_t share = total / 110 * weights[rank];
        uint64_t error = moved[rank] > share ? moved[rank] - share : share - moved[rank];

        assert_true(error <= 10 * UINT64_C(1024) * KIB);
    }
}

/* Any subset that waits shares by its own weights; the sum of what was served and of the
 * deficits is what the rounds gave. */
static void drr__sums_add_up_for_every_subset(void **state)
{
    struct base_rng rng = base_rng_start();

    (void)state;
    for (uint32_t mask = 1; mask <= ALL; mask++) {
        struct wi_drr drr = { { 0 } };
        int64_t moved[WI_DRR_RANKS] = { 0 };
        int64_t rounds = -1;

        for (uint32_t i = 0; i < 5000; i++) {
            uint32_t rank = pick(&drr, mask);
            uint64_t bytes = WI_DRR_LEAST + base_rng_below(&rng, 300 * KIB);

            wi_drr_charge(&drr, rank, bytes);
            moved[rank] += (int64_t)bytes;
        }
        for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
            int64_t given = moved[rank] + drr.deficit[rank];

            if ((mask >> rank & 1) == 0) { /* idle: one round's worth, however many went by */
                assert_true(given == wi_drr_quantum(rank));
                continue;
            }
            assert_true(given % wi_drr_quantum(rank) == 0);
            if (rounds >= 0) /* all were given the same rounds */
                assert_true(given / wi_drr_quantum(rank) == rounds);
            rounds = given / wi_drr_quantum(rank);
            assert_true(rounds > 0);
        }
    }
}

/* The least urgent is served again after at most a round of all the others. */
static void drr__nobody_starves(void **state)
{
    struct wi_drr drr = { { 0 } };
    uint64_t since = 0;
    uint64_t worst = 0;

    (void)state;
    for (uint32_t i = 0; i < 100000; i++) {
        uint32_t rank = pick(&drr, ALL);

        wi_drr_charge(&drr, rank, 4 * KIB);
        since = rank == 4 ? 0 : since + 1;
        worst = since > worst ? since : worst;
    }
    assert_true(worst == (64 + 32 + 8 + 4) * 16);
}

/* Who comes in the middle of another's share is served at once, if more urgent, until its own
 * share of the round is used up. */
static void drr__urgent_goes_first(void **state)
{
    struct wi_drr drr = { { 0 } };
    uint64_t moved = 0;

    (void)state;
    for (uint32_t i = 0; i < 1000; i++) {
        assert_int_equal(pick(&drr, 1u << 4), 4);
        wi_drr_charge(&drr, 4, 4 * KIB);
    }
    assert_true(drr.deficit[4] > 0);
    for (uint32_t rank = 0; rank < 4; rank++)
        assert_int_equal(pick(&drr, 1u << 4 | 1u << rank), rank);
    while (pick(&drr, 1u << 4 | 1u << 0) == 0) {
        wi_drr_charge(&drr, 0, 4 * KIB);
        moved += 4 * KIB;
    }
    assert_true(moved == 64 * 64 * KIB);
    assert_int_equal(pick(&drr, 1u << 4 | 1u << 1), 1); /* the next has all of its own */
}

/* Coming and going wins nothing: urgent operations that come one at a time get no more than
 * their share beside one that always waits, and a round at the start. */
static void drr__coming_and_going_wins_nothing(void **state)
{
    struct wi_drr drr = { { 0 } };
    uint64_t moved[WI_DRR_RANKS] = { 0 };
    bool there = true;

    (void)state;
    for (uint32_t i = 0; i < 100000; i++) {
        uint32_t rank = pick(&drr, there ? 1u << 4 | 1u << 0 : 1u << 4);

        wi_drr_charge(&drr, rank, 4 * KIB);
        moved[rank] += 4 * KIB;
        there = rank != 0; /* back after one of the others */
    }
    assert_true(moved[0] <= moved[4] + 4 * KIB); /* alternating, at the most */
    assert_true(moved[4] * 32 >= moved[0]);
}

/* A huge operation is a debt that is worked off in shares, not looped over, also while idle. */
static void drr__debts_are_worked_off(void **state)
{
    struct wi_drr drr = { { 0 } };
    uint64_t others = 0;

    (void)state;
    assert_int_equal(pick(&drr, 1u << 4), 4);
    wi_drr_charge(&drr, 4, 100 * 128 * KIB); /* a hundred of its rounds */
    assert_true(drr.deficit[4] == -99 * 128 * (int64_t)KIB);
    while (pick(&drr, 1u << 3 | (others < 40 ? 0 : 1u << 4)) == 3) {
        wi_drr_charge(&drr, 3, 256 * KIB);
        others++;
    }
    /* PREFETCH had its first round before the debt; then 100 rounds: 99 pay it off, and a debt
     * of exactly nothing is not yet something left. */
    assert_true(others == 101);

    wi_drr_charge(&drr, 4, UINT64_MAX);
    assert_true(drr.deficit[4] >= -WI_DRR_DEBT_MAX);
    wi_drr_charge(&drr, 4, UINT64_MAX);
    assert_true(drr.deficit[4] == -WI_DRR_DEBT_MAX);
    assert_int_equal(pick(&drr, 1u << 4), 4); /* alone: at once */
    assert_true(drr.deficit[4] > 0 && drr.deficit[4] <= wi_drr_quantum(4));
}

/* Rounds of FOREGROUND, while `waiting` has to wait. */
static void run_rounds(struct wi_drr *drr, uint32_t rounds, uint32_t waiting)
{
    for (uint32_t i = 0; i < rounds; i++) {
        assert_int_equal(wi_drr_pick_of(drr, 1u << 1, 1u << 1 | waiting), 1);
        wi_drr_charge(drr, 1, 32 * 64 * KIB);
    }
}

/* Who waits and cannot be served is owed the rounds that it missed, so many and no more; who only
 * idled, or had its share, is owed nothing. */
static void drr__held_back_is_owed(void **state)
{
    struct wi_drr drr = { { 0 } };

    (void)state;
    assert_int_equal(wi_drr_most_owed(&drr, ALL), -1);
    run_rounds(&drr, 1, 1u << 4);
    assert_int_equal(wi_drr_most_owed(&drr, ALL), -1); /* this round may still end well */
    run_rounds(&drr, 1, 1u << 4);
    assert_int_equal(wi_drr_most_owed(&drr, ALL), 4);
    assert_int_equal(wi_drr_most_owed(&drr, ALL & ~(1u << 4)), -1);
    /* PREFETCH comes: it had a round's bytes, and that round ends without it. */
    run_rounds(&drr, 1, 1u << 4 | 1u << 3);
    assert_int_equal(wi_drr_most_owed(&drr, ALL), 4); /* two against one */
    wi_drr_charge(&drr, 4, 2 * 128 * KIB);
    assert_int_equal(wi_drr_most_owed(&drr, ALL), 3);
    wi_drr_charge(&drr, 3, 256 * KIB);
    assert_int_equal(wi_drr_most_owed(&drr, ALL), -1);

    run_rounds(&drr, 100, 1u << 4);
    assert_true(drr.deficit[4] == WI_DRR_OWED * wi_drr_quantum(4));
    assert_true(drr.deficit[3] == wi_drr_quantum(3)); /* gone: it idles */
    for (uint32_t i = 1; i < WI_DRR_OWED; i++) {
        assert_int_equal(wi_drr_most_owed(&drr, ALL), 4);
        wi_drr_charge(&drr, 4, 128 * KIB);
    }
    assert_int_equal(wi_drr_most_owed(&drr, ALL), -1);
}

/* Operations without bytes take turns too. */
static void drr__empty_operations_cost_something(void **state)
{
    struct wi_drr drr = { { 0 } };
    uint32_t served[WI_DRR_RANKS] = { 0 };

    (void)state;
    for (uint32_t i = 0; i < 110 * 16; i++) {
        uint32_t rank = pick(&drr, ALL);

        wi_drr_charge(&drr, rank, 0);
        served[rank]++;
    }
    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++)
        assert_int_equal(served[rank], weights[rank] * 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drr__ranks_are_classes_by_urgency),
        cmocka_unit_test(drr__nobody_waits),
        cmocka_unit_test(drr__one_round_in_order),
        cmocka_unit_test(drr__shares_are_the_weights),
        cmocka_unit_test(drr__sums_add_up_for_every_subset),
        cmocka_unit_test(drr__nobody_starves),
        cmocka_unit_test(drr__urgent_goes_first),
        cmocka_unit_test(drr__coming_and_going_wins_nothing),
        cmocka_unit_test(drr__debts_are_worked_off),
        cmocka_unit_test(drr__held_back_is_owed),
        cmocka_unit_test(drr__empty_operations_cost_something),
    };

    return cmocka_run_group_tests_name("drr", tests, NULL, NULL);
}
