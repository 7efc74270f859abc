/* SPDX-License-Identifier: MIT */
/*
 * base_test.h - what the tests of src/base share: cmocka, seeds, a clock for hangs
 */
#ifndef WEIR_TESTS_UNIT_BASE_TEST_H
#define WEIR_TESTS_UNIT_BASE_TEST_H

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/common.h"

/* xorshift64*, never zero. */
struct base_rng {
    uint64_t state;
};

/* WEIR_SEED, or a fixed number; printed. */
static inline struct base_rng base_rng_start(void)
{
    const char *text = getenv("WEIR_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 0;

    if (seed == 0)
        seed = 20240229;
    print_message("WEIR_SEED=%" PRIu64 "\n", seed);
    return (struct base_rng){ .state = seed };
}

static inline uint64_t base_rng_next(struct base_rng *rng)
{
    rng->state ^= rng->state >> 12;
    rng->state ^= rng->state << 25;
    rng->state ^= rng->state >> 27;
    return rng->state * UINT64_C(2685821657736338717);
}

/* 0 <= value < limit */
static inline uint64_t base_rng_below(struct base_rng *rng, uint64_t limit)
{
    return (base_rng_next(rng) >> 11) % limit;
}

/* A test that hangs ends with SIGALRM, and its name was printed last. */
static inline int base_watchdog(void **state)
{
    (void)state;
    alarm(100);
    return 0;
}

#endif
