/* SPDX-License-Identifier: MIT */
/*
 * Shows what is special to the threads backend: one submit a lane and turn, waits that end at
 * the wanted number, cancels of what no worker has begun, and no system call without need.
 * The os table has a gate, so what is in flight is known and nothing depends on speed.
 */
#include "os_test.h"

#include "os/calls.h"

#define OPS 32

static uint32_t submits[WI_LANES];
static uint32_t submitted[WI_LANES];

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's --wrap wants these names. */
void __real_wi_pool_submit(struct wi_pool *pool, enum wi_lane lane, struct wi_task *first,
                           struct wi_task *last, uint32_t count);
void __wrap_wi_pool_submit(struct wi_pool *pool, enum wi_lane lane, struct wi_task *first,
                           struct wi_task *last, uint32_t count);

void __wrap_wi_pool_submit(struct wi_pool *pool, enum wi_lane lane, struct wi_task *first,
                           struct wi_task *last, uint32_t count)
{
    submits[lane]++;
    submitted[lane] += count;
    __real_wi_pool_submit(pool, lane, first, last, count);
}
/* NOLINTEND(bugprone-reserved-identifier) */

struct fixture {
    struct gate gate;
    struct wi_pool *pool;
    struct wi_backend *backend;
    struct wi_op ops[OPS];
    unsigned char bytes[16];
};

static void set_up(struct fixture *fixture, uint32_t threads)
{
    struct wi_backend_options options = { .depth = OPS };

    gate_init(&fixture->gate);
    fixture->pool = make_pool(threads);
    options.os = &fixture->gate.os;
    options.pool = fixture->pool;
    assert_int_equal(wi_backend_threads_open(&options, &fixture->backend), 0);
    assert_int_equal(fixture->backend->ops->bind(fixture->backend), 0);
    memset(submits, 0, sizeof(submits));
    memset(submitted, 0, sizeof(submitted));
}

static void tear_down(struct fixture *fixture)
{
    fixture->backend->ops->unbind(fixture->backend);
    fixture->backend->ops->close(fixture->backend);
    wi_pool_destroy(fixture->pool);
    gate_fini(&fixture->gate);
}

static void start_reads(struct fixture *fixture, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        prepare_read(&fixture->ops[i], 0, fixture->bytes, sizeof(fixture->bytes), 0);
        assert_int_equal(fixture->backend->ops->start(fixture->backend, &fixture->ops[i]), 0);
    }
}

static int turn(struct fixture *fixture, uint32_t want, uint64_t until_ns)
{
    struct wi_op *done = NULL;

    return fixture->backend->ops->turn(fixture->backend, want, until_ns, &done);
}

static uint64_t system_calls(struct fixture *fixture)
{
    struct wi_backend_stats stats;

    fixture->backend->ops->stats(fixture->backend, &stats);
    return stats.system_calls;
}

static int64_t answer(struct wi_op *op)
{
    (void)op;
    return 3;
}

static void threads__one_submit_a_lane_and_turn(void **state)
{
    struct fixture fixture;
    struct wi_op calls[3];

    (void)state;
    set_up(&fixture, 4);
    start_reads(&fixture, OPS);
    for (uint32_t i = 0; i < WI_ARRAY_LEN(calls); i++) {
        prepare_call(&calls[i], answer, WI_LANE_FILES);
        assert_int_equal(fixture.backend->ops->start(fixture.backend, &calls[i]), 0);
    }
    assert_int_equal(submits[WI_LANE_IO], 0);
    gate_permit(&fixture.gate, OPS);
    turn_all(fixture.backend, OPS + 3);
    assert_int_equal(submits[WI_LANE_IO], 1);
    assert_int_equal(submitted[WI_LANE_IO], OPS);
    assert_int_equal(submits[WI_LANE_FILES], 1);
    assert_int_equal(submitted[WI_LANE_FILES], 3);
    for (uint32_t i = 0; i < OPS; i++)
        assert_int_equal(fixture.ops[i].result, sizeof(fixture.bytes));
    for (uint32_t i = 0; i < WI_ARRAY_LEN(calls); i++)
        assert_int_equal(calls[i].result, 3);
    tear_down(&fixture);
}

struct opener {
    struct gate *gate;
    uint32_t count;
};

static void *open_gate_one_by_one(void *arg)
{
    struct opener *opener = arg;

    for (uint32_t i = 0; i < opener->count; i++) {
        wi_os_posix()->ops->sleep_ns(wi_os_posix(), 1000000);
        gate_permit(opener->gate, 1);
    }
    return NULL;
}

/* Only as many permits as are wanted come, one by one, so that waking for fewer would show
 * in a smaller count, and waking for more would never happen. */
static void threads__wait_ends_at_the_wanted_number(void **state)
{
    struct fixture fixture;
    struct opener opener = { .gate = &fixture.gate, .count = 3 };
    pthread_t thread;

    (void)state;
    set_up(&fixture, 4);
    start_reads(&fixture, 8);
    assert_int_equal(pthread_create(&thread, NULL, open_gate_one_by_one, &opener), 0);
    assert_int_equal(turn(&fixture, 3, now_ns() + FOR_EVER_S * SECOND), 3);
    pthread_join(thread, NULL);
    /* Three transfers, at most one sleep and one wake-up for them. */
    assert_true(system_calls(&fixture) <= 3 + 2);
    gate_permit(&fixture.gate, 5);
    assert_int_equal(turn(&fixture, 5, now_ns() + FOR_EVER_S * SECOND), 5);
    tear_down(&fixture);
}

static void threads__time_ends_a_wait(void **state)
{
    struct fixture fixture;
    uint64_t until_ns;

    (void)state;
    set_up(&fixture, 2);
    start_reads(&fixture, 2);
    until_ns = now_ns() + 3000000;
    assert_int_equal(turn(&fixture, 1, until_ns), 0);
    assert_true(now_ns() >= until_ns);
    gate_permit(&fixture.gate, 2);
    turn_all(fixture.backend, 2);
    tear_down(&fixture);
}

static void threads__idle_turn_makes_no_call(void **state)
{
    struct fixture fixture;

    (void)state;
    set_up(&fixture, 2);
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(turn(&fixture, 0, 0), 0);
    assert_int_equal(system_calls(&fixture), 0);
    tear_down(&fixture);
}

/* One thread, so one operation is in flight and the rest are queued behind it. */
static void threads__cancel_spares_what_has_not_begun(void **state)
{
    struct fixture fixture;

    (void)state;
    set_up(&fixture, 1);
    start_reads(&fixture, 5);
    assert_int_equal(turn(&fixture, 0, 0), 0);
    gate_wait_entered(&fixture.gate, 1);
    for (uint32_t i = 0; i < 4; i++)
        fixture.backend->ops->cancel(fixture.backend, &fixture.ops[i]);
    gate_permit(&fixture.gate, 2);
    turn_all(fixture.backend, 5);
    assert_int_equal(fixture.ops[0].result, sizeof(fixture.bytes));
    for (uint32_t i = 1; i < 4; i++)
        assert_int_equal(fixture.ops[i].result, -ECANCELED);
    assert_int_equal(fixture.ops[4].result, sizeof(fixture.bytes));
    assert_int_equal(fixture.gate.passed, 2);
    tear_down(&fixture);
}

static void threads__cancel_before_hand_over(void **state)
{
    struct fixture fixture;

    (void)state;
    set_up(&fixture, 1);
    start_reads(&fixture, 1);
    fixture.backend->ops->cancel(fixture.backend, &fixture.ops[0]);
    turn_all(fixture.backend, 1);
    assert_int_equal(fixture.ops[0].result, -ECANCELED);
    assert_int_equal(fixture.gate.entered, 0);
    tear_down(&fixture);
}

static void threads__knows_only_its_kinds(void **state)
{
    struct fixture fixture;

    (void)state;
    set_up(&fixture, 1);
    prepare_read(&fixture.ops[0], 0, fixture.bytes, 1, 0);
    fixture.ops[0].kind = WI_OP_NONE;
    assert_int_equal(run_op(fixture.backend, &fixture.ops[0]), -EINVAL);
    tear_down(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads__one_submit_a_lane_and_turn),
        cmocka_unit_test(threads__wait_ends_at_the_wanted_number),
        cmocka_unit_test(threads__time_ends_a_wait),
        cmocka_unit_test(threads__idle_turn_makes_no_call),
        cmocka_unit_test(threads__cancel_spares_what_has_not_begun),
        cmocka_unit_test(threads__cancel_before_hand_over),
        cmocka_unit_test(threads__knows_only_its_kinds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
