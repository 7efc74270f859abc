/* SPDX-License-Identifier: MIT */
/*
 * Shows that operations come back from the pool exactly once, that a cancel either keeps one
 * from running or leaves its result alone, and that nothing touches the struct after fini.
 */
#include "os_test.h"

#include "os/calls.h"

struct fixture {
    struct wi_backend backend;
    struct wi_waker waker;
    struct wi_calls calls;
    struct wi_pool *pool;
};

static void open_fixture(struct fixture *fixture, struct wi_pool *pool)
{
    memset(&fixture->backend, 0, sizeof(fixture->backend));
    fixture->pool = pool;
    fixture->backend.calls = &fixture->calls;
    assert_int_equal(wi_waker_init(&fixture->waker), 0);
    wi_calls_init(&fixture->calls, pool, &fixture->waker, NULL);
}

static void close_fixture(struct fixture *fixture)
{
    wi_calls_fini(&fixture->calls);
    wi_waker_fini(&fixture->waker);
}

static void start(struct fixture *fixture, struct wi_op *op, wi_op_call_fn call, uint8_t lane)
{
    prepare_call(op, call, lane);
    op->backend = &fixture->backend;
    wi_calls_start(&fixture->calls, op);
}

/* Wait until `count` can be taken, as a backend does. */
static void wait_for(struct fixture *fixture, uint32_t count)
{
    wi_calls_want(&fixture->calls, count);
    for (;;) {
        wi_waker_arm_sleep(&fixture->waker);
        if (wi_calls_ready(&fixture->calls) >= count)
            break;
        assert_int_equal(wi_waker_wait(&fixture->waker, 0, now_ns() + FOR_EVER_S * SECOND), 1);
    }
    wi_waker_disarm(&fixture->waker);
}

static int64_t answer(struct wi_op *op)
{
    return (int64_t)op->offset * 2;
}

static void calls__come_back_once(void **state)
{
    struct fixture fixture;
    struct wi_pool *pool = make_pool(2);
    struct wi_op ops[64];
    struct wi_op *first;
    struct wi_op *last;
    uint32_t count = 0;

    (void)state;
    open_fixture(&fixture, pool);
    assert_int_equal(wi_calls_take(&fixture.calls, &first, &last), 0);
    for (uint32_t i = 0; i < WI_ARRAY_LEN(ops); i++) {
        start(&fixture, &ops[i], answer, (uint8_t)(i % WI_LANES));
        ops[i].offset = i;
    }
    assert_int_equal(fixture.calls.outstanding, 64);
    wi_calls_flush(&fixture.calls);
    wait_for(&fixture, 64);
    assert_int_equal(wi_calls_take(&fixture.calls, &first, &last), 64);
    for (struct wi_task *task = &first->task; task; task = task->next) {
        struct wi_op *op = WI_CONTAINER_OF(task, struct wi_op, task);

        assert_int_equal(op->result, op->offset * 2);
        assert_int_equal(op->busy, 0);
        op->result = -1;
        count++;
        assert_int_equal(task->next == NULL, op == last);
    }
    assert_int_equal(count, 64);
    assert_int_equal(fixture.calls.outstanding, 0);
    assert_int_equal(wi_calls_ready(&fixture.calls), 0);
    close_fixture(&fixture);
    wi_pool_destroy(pool);
}

/* The owner frees everything as soon as it has the last operation; a worker may still be on
 * its way out. Under the address and thread sanitizers that shows. */
static void calls__may_be_freed_at_once(void **state)
{
    struct wi_pool *pool = make_pool(2);
    uint64_t seed = test_seed();

    (void)state;
    for (uint32_t round = 0; round < rounds(20000); round++) {
        struct fixture *fixture = aligned_alloc(WI_CACHE_LINE, (sizeof(*fixture) + 63) & ~63u);
        uint32_t count = 1 + (uint32_t)(next_random(&seed) % 3);
        struct wi_op *ops = malloc(count * sizeof(*ops));
        struct wi_op *first;
        struct wi_op *last;

        assert_non_null(fixture);
        assert_non_null(ops);
        open_fixture(fixture, pool);
        for (uint32_t i = 0; i < count; i++) {
            start(fixture, &ops[i], answer, WI_LANE_CPU);
            ops[i].offset = i;
        }
        wi_calls_flush(&fixture->calls);
        for (uint32_t taken = 0; taken < count;) {
            wait_for(fixture, 1);
            taken += wi_calls_take(&fixture->calls, &first, &last);
        }
        free(ops);
        close_fixture(fixture);
        free(fixture);
    }
    wi_pool_destroy(pool);
}

static _Atomic uint32_t ran;

static int64_t count_run(struct wi_op *op)
{
    (void)op;
    atomic_fetch_add(&ran, 1);
    return 7;
}

/* Whether the cancel was in time says exactly whether the call ran. */
static void calls__cancel_tells_the_truth(void **state)
{
    struct fixture fixture;
    struct wi_pool *pool = make_pool(2);
    uint32_t in_time = 0;
    uint32_t total = rounds(20000);

    (void)state;
    open_fixture(&fixture, pool);
    atomic_store(&ran, 0);
    for (uint32_t round = 0; round < total; round++) {
        struct wi_op *first;
        struct wi_op *last;
        struct wi_op ops[4];
        bool cancelled[4];
        uint32_t taken = 0;

        for (uint32_t i = 0; i < 4; i++)
            start(&fixture, &ops[i], count_run, WI_LANE_CPU);
        wi_calls_flush(&fixture.calls);
        for (uint32_t i = 4; i-- > 0;)
            cancelled[i] = wi_calls_cancel(&ops[i]);
        while (taken < 4) {
            wait_for(&fixture, 1);
            taken += wi_calls_take(&fixture.calls, &first, &last);
        }
        for (uint32_t i = 0; i < 4; i++) {
            assert_int_equal(ops[i].result, cancelled[i] ? -ECANCELED : 7);
            in_time += cancelled[i];
        }
    }
    assert_int_equal(atomic_load(&ran) + in_time, total * 4);
    close_fixture(&fixture);
    wi_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls__come_back_once),
        cmocka_unit_test(calls__may_be_freed_at_once),
        cmocka_unit_test(calls__cancel_tells_the_truth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
