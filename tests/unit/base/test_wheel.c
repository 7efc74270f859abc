/* SPDX-License-Identifier: MIT */
#include "base/wheel.h"
#include "base_test.h"

#define TICK_NS (UINT64_C(1) << WI_WHEEL_TICK_SHIFT)
#define SPAN    (UINT64_C(1) << 24) /* ticks of the whole wheel */
#define TIMERS  500u

/* A timer, and what the model knows of it. */
struct model_timer {
    struct wi_timer timer;
    bool in;
    uint64_t due_ns;
    uint64_t fires_tick; /* the tick at which it must fire */
};

static struct model_timer timers[TIMERS];

/* The invariants of wheel.c that can be seen from outside: W1 and W3. */
static void check_wheel(const struct wi_wheel *wheel)
{
    uint32_t count = 0;

    for (unsigned level = 0; level < WI_WHEEL_LEVELS; level++) {
        for (unsigned slot = 0; slot < WI_WHEEL_SLOTS; slot++) {
            const struct wi_list *head = &wheel->slots[level][slot];
            bool used = wheel->used[level] >> slot & 1;

            assert_int_equal(used, !wi_list_empty(head));
            for (const struct wi_list *node = head->next; node != head; node = node->next)
                count++;
        }
    }
    assert_int_equal(count, wheel->count);
}

static void add(struct wi_wheel *wheel, struct model_timer *timer, uint64_t due_ns)
{
    uint64_t tick = due_ns / TICK_NS + (due_ns % TICK_NS != 0);

    wi_wheel_add(wheel, &timer->timer, due_ns);
    timer->in = true;
    timer->due_ns = due_ns;
    timer->fires_tick = wi_max_u64(tick, wheel->tick + 1);
}

/* What fires is exactly what the model says: nothing early, nothing later than its tick. */
static void advance(struct wi_wheel *wheel, uint64_t now_ns)
{
    struct wi_list fired;
    struct wi_list *node;

    wi_list_init(&fired);
    wi_wheel_advance(wheel, now_ns, &fired);
    while ((node = wi_list_pop_front(&fired)) != NULL) {
        struct model_timer *timer = WI_CONTAINER_OF(node, struct model_timer, timer.node);

        assert_true(timer->in);
        assert_true(timer->due_ns <= now_ns);
        assert_true(timer->fires_tick <= now_ns / TICK_NS);
        timer->in = false;
    }
    for (size_t i = 0; i < TIMERS; i++)
        if (timers[i].in)
            assert_true(timers[i].fires_tick > now_ns / TICK_NS);
}

static uint64_t first_fire_ns(void)
{
    uint64_t first = UINT64_MAX;

    for (size_t i = 0; i < TIMERS; i++)
        if (timers[i].in)
            first = wi_min_u64(first, timers[i].fires_tick);
    return first > UINT64_MAX / TICK_NS ? UINT64_MAX : first * TICK_NS;
}

static void start(struct wi_wheel *wheel, uint64_t now_ns)
{
    memset(timers, 0, sizeof(timers));
    for (size_t i = 0; i < TIMERS; i++)
        wi_list_init(&timers[i].timer.node);
    wi_wheel_init(wheel, now_ns);
}

/* A random length of time: of any size up to 2^bits, so that all levels are used. */
static uint64_t random_length(struct base_rng *rng, unsigned bits)
{
    return base_rng_next(rng) >> (64 - 1 - base_rng_below(rng, bits));
}

/* Random adds, removes and advances of all sizes, compared with the model. */
static void wheel__matches_a_simple_model(void **state)
{
    struct base_rng rng = base_rng_start();

    (void)state;
    for (int run = 0; run < 20; run++) {
        uint64_t now_ns = random_length(&rng, 55);
        struct wi_wheel wheel;

        start(&wheel, now_ns);
        for (int step = 0; step < 5000; step++) {
            struct model_timer *timer = &timers[base_rng_below(&rng, TIMERS)];
            uint64_t next_ns;

            switch (base_rng_below(&rng, 8)) {
            case 0:
                now_ns += random_length(&rng, run % 2 ? 28 : 46);
                advance(&wheel, now_ns);
                break;
            case 1:
                wi_wheel_remove(&wheel, &timer->timer);
                timer->in = false;
                break;
            case 2: /* in the past, or now */
                if (!timer->in)
                    add(&wheel, timer, now_ns - base_rng_below(&rng, 1 + now_ns % TICK_NS));
                break;
            default:
                if (!timer->in)
                    add(&wheel, timer, now_ns + random_length(&rng, 48));
                break;
            }
            next_ns = wi_wheel_next_ns(&wheel);
            assert_true(next_ns <= first_fire_ns());
            assert_true((next_ns == UINT64_MAX) == (wheel.count == 0));
            if (step % 64 == 0)
                check_wheel(&wheel);
        }
        check_wheel(&wheel);
    }
}

/* Sleeping until next_ns each time gets every timer fired, in few steps and at its tick. */
static void wheel__next_makes_progress(void **state)
{
    struct base_rng rng = base_rng_start();

    (void)state;
    for (int run = 0; run < 20; run++) {
        uint64_t now_ns = random_length(&rng, 55);
        struct wi_wheel wheel;
        uint32_t steps = 0;

        start(&wheel, now_ns);
        for (size_t i = 0; i < TIMERS; i++)
            add(&wheel, &timers[i], now_ns + random_length(&rng, 46));
        while (wheel.count > 0) {
            uint64_t next_ns = wi_wheel_next_ns(&wheel);

            assert_true(next_ns > now_ns);
            now_ns = next_ns;
            advance(&wheel, now_ns);
            steps++;
        }
        /* Each timer goes down at most once from each level, and those beyond the wheel once
         * more for each time round. */
        assert_true(steps <= TIMERS * (WI_WHEEL_LEVELS + 5));
    }
}

/* For each distance around the borders of the levels: not at the tick before, but at its own. */
static void wheel__fires_at_its_tick(void **state)
{
    static const uint64_t borders[] = { 1, 64, 4096, 262144, SPAN, 3 * SPAN };
    static const uint64_t starts[] = { 0,    1,      63,       64,   4095,
                                       4096, 262143, SPAN - 1, SPAN, 987654321 };

    (void)state;
    for (size_t s = 0; s < WI_ARRAY_LEN(starts); s++) {
        for (size_t b = 0; b < WI_ARRAY_LEN(borders); b++) {
            for (int around = -1; around <= 1; around++) {
                uint64_t away = borders[b] + (uint64_t)around;
                uint64_t due_ns = (starts[s] + away) * TICK_NS;
                struct wi_wheel wheel;

                if (away == 0)
                    continue;
                start(&wheel, starts[s] * TICK_NS);
                add(&wheel, &timers[0], due_ns);
                advance(&wheel, due_ns - 1);
                assert_true(timers[0].in);
                advance(&wheel, due_ns);
                assert_false(timers[0].in);
                assert_int_equal(wheel.count, 0);

                /* One nanosecond later is a tick later. */
                start(&wheel, starts[s] * TICK_NS);
                add(&wheel, &timers[0], due_ns + 1);
                advance(&wheel, due_ns + TICK_NS - 1);
                assert_true(timers[0].in);
                advance(&wheel, due_ns + TICK_NS);
                assert_false(timers[0].in);
            }
        }
    }
}

/* "Never" is a time too, and does not disturb. */
static void wheel__the_end_of_time_never_comes(void **state)
{
    struct wi_wheel wheel;

    (void)state;
    start(&wheel, 0);
    assert_true(wi_wheel_next_ns(&wheel) == UINT64_MAX);
    add(&wheel, &timers[0], UINT64_MAX);
    add(&wheel, &timers[1], 5 * TICK_NS);
    assert_true(wi_wheel_next_ns(&wheel) == 5 * TICK_NS);
    advance(&wheel, UINT64_MAX - TICK_NS);
    assert_true(timers[0].in);
    assert_false(timers[1].in);
    advance(&wheel, UINT64_MAX);
    assert_true(timers[0].in);
    assert_true(wi_wheel_next_ns(&wheel) == UINT64_MAX);
    check_wheel(&wheel);
}

/* Removing is allowed at any time: in the wheel, twice, and in the list of fired timers. */
static void wheel__removes_what_has_fired(void **state)
{
    struct wi_wheel wheel;
    struct wi_list fired;

    (void)state;
    start(&wheel, 0);
    wi_wheel_remove(&wheel, &timers[0].timer);
    for (size_t i = 0; i < 3; i++)
        wi_wheel_add(&wheel, &timers[i].timer, TICK_NS);
    wi_wheel_add(&wheel, &timers[3].timer, 2 * TICK_NS);
    wi_wheel_remove(&wheel, &timers[1].timer);
    wi_wheel_remove(&wheel, &timers[1].timer);
    assert_int_equal(wheel.count, 3);
    check_wheel(&wheel);
    wi_list_init(&fired);
    wi_wheel_advance(&wheel, TICK_NS, &fired);
    assert_int_equal(wheel.count, 1);
    wi_wheel_remove(&wheel, &timers[0].timer);
    wi_wheel_remove(&wheel, &timers[2].timer); /* the last of its list */
    assert_true(wi_list_empty(&fired));
    assert_int_equal(wheel.count, 1);
    check_wheel(&wheel);
    wi_wheel_remove(&wheel, &timers[3].timer);
    assert_int_equal(wheel.count, 0);
    check_wheel(&wheel);
}

/* Time that goes back, or stands still, changes nothing. */
static void wheel__time_never_goes_back(void **state)
{
    struct wi_wheel wheel;

    (void)state;
    start(&wheel, 100 * TICK_NS);
    add(&wheel, &timers[0], 110 * TICK_NS);
    advance(&wheel, 105 * TICK_NS);
    advance(&wheel, 50 * TICK_NS);
    assert_true(wheel.tick == 105);
    advance(&wheel, 110 * TICK_NS);
    assert_false(timers[0].in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wheel__matches_a_simple_model),
        cmocka_unit_test(wheel__next_makes_progress),
        cmocka_unit_test(wheel__fires_at_its_tick),
        cmocka_unit_test(wheel__the_end_of_time_never_comes),
        cmocka_unit_test(wheel__removes_what_has_fired),
        cmocka_unit_test(wheel__time_never_goes_back),
    };

    return cmocka_run_group_tests_name("wheel", tests, NULL, NULL);
}
