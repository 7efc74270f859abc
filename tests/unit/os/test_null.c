/* SPDX-License-Identifier: MIT */
/*
 * Shows that the null backend completes what it is given, at once or by its script, exactly
 * once, without system calls where none is needed, and wakes an event loop in time.
 */
#include "os_test.h"

#include <poll.h>

#define OPS 64

struct fixture {
    struct wi_backend *backend;
    struct wi_op ops[OPS];
};

static void set_up(struct fixture *fixture, const struct wi_null_script *script)
{
    struct wi_backend_options options = {
        .os = wi_os_posix(),
        .depth = OPS,
        .null_script = script,
    };

    assert_int_equal(wi_backend_null_open(&options, &fixture->backend), 0);
    assert_int_equal(fixture->backend->ops->bind(fixture->backend), 0);
}

static void tear_down(struct fixture *fixture)
{
    fixture->backend->ops->unbind(fixture->backend);
    fixture->backend->ops->close(fixture->backend);
}

static void start_reads(struct fixture *fixture, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        prepare_read(&fixture->ops[i], -1, NULL, 100 + i, 0);
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

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static int64_t answer(struct wi_op *op)
{
    assert_true(pthread_equal(pthread_self(), *(pthread_t *)(uintptr_t)op->offset));
    return 42;
}

static void null__completes_at_the_next_turn(void **state)
{
    struct fixture fixture;
    struct iovec iov[3] = { { NULL, 1 }, { NULL, 20 }, { NULL, 300 } };
    struct wi_op *done = NULL;
    pthread_t self = pthread_self();

    (void)state;
    set_up(&fixture, NULL);
    start_reads(&fixture, 2);
    prepare_writev(&fixture.ops[2], -1, iov, 3, 0);
    assert_int_equal(fixture.backend->ops->start(fixture.backend, &fixture.ops[2]), 0);
    prepare_call(&fixture.ops[3], answer, WI_LANE_FILES);
    fixture.ops[3].offset = (uintptr_t)&self;
    assert_int_equal(fixture.backend->ops->start(fixture.backend, &fixture.ops[3]), 0);
    assert_int_equal(fixture.backend->ops->turn(fixture.backend, 1, NEVER, &done), 4);
    assert_ptr_equal(done, &fixture.ops[0]);
    assert_int_equal(fixture.ops[0].result, 100);
    assert_int_equal(fixture.ops[1].result, 101);
    assert_int_equal(fixture.ops[2].result, 321);
    assert_int_equal(fixture.ops[3].result, 42);
    assert_null(fixture.ops[3].task.next);
    assert_int_equal(turn(&fixture, 0, 0), 0);
    assert_int_equal(system_calls(&fixture), 0);
    tear_down(&fixture);
}

/* Every operation once, with a result the script allows. */
static void null__script_is_followed(void **state)
{
    struct wi_null_script script = { .seed = test_seed(),
                                     .delay_min_ns = 1000,
                                     .delay_max_ns = 100000,
                                     .fail_per_1024 = 512,
                                     .fail_with = -EIO };
    struct fixture fixture;
    uint32_t failed = 0;

    (void)state;
    set_up(&fixture, &script);
    for (uint32_t round = 0; round < 20; round++) {
        start_reads(&fixture, OPS);
        turn_all(fixture.backend, OPS);
        for (uint32_t i = 0; i < OPS; i++) {
            if (fixture.ops[i].result == -EIO)
                failed++;
            else
                assert_int_equal(fixture.ops[i].result, 100 + i);
        }
    }
    assert_in_range(failed, 20 * OPS / 4, 20 * OPS * 3 / 4);
    tear_down(&fixture);
}

static void null__full_is_eagain(void **state)
{
    struct wi_null_script script = { .delay_min_ns = 1000000, .delay_max_ns = 1000000 };
    struct fixture fixture;
    struct wi_op more;

    (void)state;
    set_up(&fixture, &script);
    start_reads(&fixture, OPS);
    prepare_read(&more, -1, NULL, 1, 0);
    assert_int_equal(fixture.backend->ops->start(fixture.backend, &more), -EAGAIN);
    turn_all(fixture.backend, OPS);
    assert_int_equal(run_op(fixture.backend, &more), 1);
    tear_down(&fixture);
}

static void null__hangs_until_cancelled(void **state)
{
    struct wi_null_script script = { .hang_per_1024 = 1024 };
    struct fixture fixture;

    (void)state;
    set_up(&fixture, &script);
    start_reads(&fixture, 3);
    assert_int_equal(turn(&fixture, 1, now_ns() + 1000000), 0);
    fixture.backend->ops->cancel(fixture.backend, &fixture.ops[1]);
    assert_int_equal(turn(&fixture, 1, NEVER), 1);
    assert_int_equal(fixture.ops[1].result, -ECANCELED);
    fixture.backend->ops->cancel(fixture.backend, &fixture.ops[0]);
    fixture.backend->ops->cancel(fixture.backend, &fixture.ops[2]);
    turn_all(fixture.backend, 2);
    assert_int_equal(fixture.ops[0].result, -ECANCELED);
    assert_int_equal(fixture.ops[2].result, -ECANCELED);
    tear_down(&fixture);
}

/* A loop that turns only when the descriptor says so sees every delayed operation, and the
 * descriptor is quiet afterwards. */
static void null__descriptor_tells_of_delayed_ones(void **state)
{
    struct wi_null_script script = { .seed = test_seed(),
                                     .delay_min_ns = 0,
                                     .delay_max_ns = 300000 };
    struct fixture fixture;
    uint32_t done = 0;
    int fd;

    (void)state;
    set_up(&fixture, &script);
    fd = fixture.backend->ops->fd(fixture.backend);
    assert_true(fd >= 0);
    assert_false(is_readable(fd, 0));
    for (uint32_t round = 0; round < 50; round++) {
        start_reads(&fixture, OPS);
        for (done = (uint32_t)turn(&fixture, 0, 0); done < OPS;) {
            int rc;

            assert_true(is_readable(fd, FOR_EVER_S * 1000));
            rc = turn(&fixture, 0, 0);
            assert_true(rc >= 0);
            done += (uint32_t)rc;
        }
    }
    assert_false(is_readable(fd, 0));
    tear_down(&fixture);
}

static void null__descriptor_tells_of_a_cancel(void **state)
{
    struct wi_null_script script = { .hang_per_1024 = 1024 };
    struct fixture fixture;
    int fd;

    (void)state;
    set_up(&fixture, &script);
    fd = fixture.backend->ops->fd(fixture.backend);
    start_reads(&fixture, 1);
    assert_int_equal(turn(&fixture, 0, 0), 0);
    assert_false(is_readable(fd, 0));
    fixture.backend->ops->cancel(fixture.backend, &fixture.ops[0]);
    assert_true(is_readable(fd, 0));
    assert_int_equal(turn(&fixture, 0, 0), 1);
    assert_false(is_readable(fd, 0));
    tear_down(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(null__completes_at_the_next_turn),
        cmocka_unit_test(null__script_is_followed),
        cmocka_unit_test(null__full_is_eagain),
        cmocka_unit_test(null__hangs_until_cancelled),
        cmocka_unit_test(null__descriptor_tells_of_delayed_ones),
        cmocka_unit_test(null__descriptor_tells_of_a_cancel),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
