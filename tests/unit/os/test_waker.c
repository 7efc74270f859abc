/* SPDX-License-Identifier: MIT */
/*
 * Shows that a waker makes system calls only while armed, that no wake is lost in any order
 * of arm, look and wake, and that its descriptor does not stay readable.
 */
#include "os_test.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>

#include "os/waker.h"

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void waker__disarmed_makes_no_call(void **state)
{
    struct wi_waker waker;

    (void)state;
    assert_int_equal(wi_waker_init(&waker), 0);
    assert_false(wi_waker_wake(&waker));
    assert_false(is_readable(waker.fd, 0));
    wi_waker_fini(&waker);
}

static void waker__armed_writes_once(void **state)
{
    struct wi_waker waker;

    (void)state;
    assert_int_equal(wi_waker_init(&waker), 0);
    wi_waker_arm(&waker);
    assert_true(wi_waker_wake(&waker));
    assert_false(wi_waker_wake(&waker));
    assert_true(is_readable(waker.fd, 0));
    assert_int_equal(wi_waker_settle(&waker), 1);
    assert_false(is_readable(waker.fd, 0));
    /* Armed and not woken: settling costs nothing. */
    wi_waker_arm(&waker);
    assert_int_equal(wi_waker_settle(&waker), 0);
    wi_waker_fini(&waker);
}

static void waker__wait_ends_in_time(void **state)
{
    struct wi_waker waker;
    uint64_t until_ns = now_ns() + 2000000;

    (void)state;
    assert_int_equal(wi_waker_init(&waker), 0);
    wi_waker_arm_sleep(&waker);
    assert_int_equal(wi_waker_wait(&waker, now_ns(), until_ns), 0);
    assert_true(now_ns() >= until_ns);
    /* In the past: at once. */
    wi_waker_arm_sleep(&waker);
    assert_int_equal(wi_waker_wait(&waker, now_ns(), 1), 0);
    /* Woken before: at once too. */
    wi_waker_arm_sleep(&waker);
    assert_true(wi_waker_wake(&waker));
    assert_int_equal(wi_waker_wait(&waker, 0, NEVER), 1);
    wi_waker_fini(&waker);
}

/* A waker that was armed for its descriptor and woken, and then waited for: the write is
 * drained by a later settle. */
static void waker__late_write_is_drained(void **state)
{
    struct wi_waker waker;

    (void)state;
    assert_int_equal(wi_waker_init(&waker), 0);
    wi_waker_arm(&waker);
    assert_true(wi_waker_wake(&waker));
    assert_int_equal(wi_waker_wait(&waker, 0, NEVER), 1);
    wi_waker_arm(&waker);
    assert_int_equal(wi_waker_settle(&waker), 1);
    assert_false(is_readable(waker.fd, 0));
    wi_waker_fini(&waker);
}

struct race {
    struct wi_waker waker;
    _Atomic uint64_t work; /* published so far; seq_cst */
    _Atomic uint64_t seen; /* by the consumer, for the publishers to stay close ahead */
    uint64_t total;
};

static void *publish_work(void *arg)
{
    struct race *race = arg;

    for (uint64_t i = 0; i < race->total; i++) {
        while (atomic_load(&race->work) - atomic_load(&race->seen) >= 4)
            sched_yield();
        atomic_fetch_add_explicit(&race->work, 1, memory_order_seq_cst);
        wi_waker_wake(&race->waker);
    }
    return NULL;
}

/* Four threads publish, one consumes and sleeps whenever it sees nothing new. A lost wake
 * leaves it asleep: the wait would run into its limit. */
static void run_race(bool by_descriptor)
{
    struct race race = { .total = rounds(40000) };
    pthread_t threads[4];
    uint64_t seen = 0;

    assert_int_equal(wi_waker_init(&race.waker), 0);
    for (size_t i = 0; i < WI_ARRAY_LEN(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, publish_work, &race), 0);
    while (seen < race.total * WI_ARRAY_LEN(threads)) {
        uint64_t work;

        if (by_descriptor)
            wi_waker_arm(&race.waker);
        else
            wi_waker_arm_sleep(&race.waker);
        work = atomic_load_explicit(&race.work, memory_order_seq_cst);
        if (work == seen) {
            if (by_descriptor)
                assert_true(is_readable(race.waker.fd, FOR_EVER_S * 1000));
            else
                assert_int_equal(wi_waker_wait(&race.waker, 0, now_ns() + FOR_EVER_S * SECOND),
                                 1);
        }
        seen = work;
        atomic_store(&race.seen, seen);
        if (by_descriptor)
            wi_waker_settle(&race.waker);
        else
            wi_waker_disarm(&race.waker);
    }
    for (size_t i = 0; i < WI_ARRAY_LEN(threads); i++)
        pthread_join(threads[i], NULL);
    /* Quiet: at most one write was still owed. */
    wi_waker_arm(&race.waker);
    wi_waker_settle(&race.waker);
    assert_false(is_readable(race.waker.fd, 0));
    wi_waker_fini(&race.waker);
}

static void waker__no_wake_is_lost_by_wait(void **state)
{
    (void)state;
    run_race(false);
}

static void waker__no_wake_is_lost_by_descriptor(void **state)
{
    (void)state;
    run_race(true);
}

static void ignore_signal(int number)
{
    (void)number;
}

struct nudge {
    pthread_t target;
    _Atomic uint32_t stop;
};

static void *send_signals(void *arg)
{
    struct nudge *nudge = arg;

    while (!atomic_load(&nudge->stop)) {
        pthread_kill(nudge->target, SIGUSR1);
        wi_os_posix()->ops->sleep_ns(wi_os_posix(), 200000);
    }
    return NULL;
}

/* Also if the handler asks for restarts, as those set by signal(3) do. */
static void waker__signal_ends_wait(void **state)
{
    struct nudge nudge = { .target = pthread_self() };
    struct sigaction action = { .sa_handler = ignore_signal, .sa_flags = SA_RESTART };
    struct sigaction before;
    struct wi_waker waker;
    pthread_t thread;

    (void)state;
    assert_int_equal(wi_waker_init(&waker), 0);
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    assert_int_equal(pthread_create(&thread, NULL, send_signals, &nudge), 0);
    wi_waker_arm_sleep(&waker);
    assert_int_equal(wi_waker_wait(&waker, 0, NEVER), -EINTR);
    atomic_store(&nudge.stop, 1);
    pthread_join(thread, NULL);
    sigaction(SIGUSR1, &before, NULL);
    wi_waker_fini(&waker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waker__disarmed_makes_no_call),
        cmocka_unit_test(waker__armed_writes_once),
        cmocka_unit_test(waker__wait_ends_in_time),
        cmocka_unit_test(waker__late_write_is_drained),
        cmocka_unit_test(waker__no_wake_is_lost_by_wait),
        cmocka_unit_test(waker__no_wake_is_lost_by_descriptor),
        cmocka_unit_test(waker__signal_ends_wait),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
