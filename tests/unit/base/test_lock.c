/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/lock.h"
#include "base_test.h"

/* Run in a child, whose last words nobody needs. Returns its status. */
static int status_of(void (*run)(void))
{
    pid_t child = fork();
    int status = 0;

    assert_true(child >= 0);
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

        if (null >= 0)
            dup2(null, STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        run();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void check_aborts(void (*run)(void))
{
    int status = status_of(run);

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

static void skip_in_release(void)
{
#ifndef WEIR_DEBUG
    print_message("ranks are checked in debug builds only\n");
    skip();
#endif
}

static void take_two(enum wi_lock_rank first, enum wi_lock_rank second)
{
    struct wi_mutex a;
    struct wi_mutex b;

    wi_mutex_init(&a, first);
    wi_mutex_init(&b, second);
    wi_mutex_lock(&a);
    wi_mutex_lock(&b);
    wi_mutex_unlock(&b);
    wi_mutex_unlock(&a);
    wi_mutex_fini(&a);
    wi_mutex_fini(&b);
}

static void take_rising(void)
{
    take_two(WI_RANK_ENGINE, WI_RANK_LANE);
}

static void take_falling(void)
{
    take_two(WI_RANK_LANE, WI_RANK_ENGINE);
}

static void take_equal(void)
{
    take_two(WI_RANK_LANE, WI_RANK_LANE);
}

/* Wrong on purpose: not for clang to analyse. */
WI_NO_ANALYSIS static void unlock_what_is_not_held(void)
{
    struct wi_mutex mutex;

    wi_mutex_init(&mutex, WI_RANK_LANE);
    wi_mutex_unlock(&mutex);
}

WI_NO_ANALYSIS static void wait_under_another_lock(void)
{
    struct wi_mutex outer;
    struct wi_mutex inner;
    struct wi_cond cond;

    wi_mutex_init(&outer, WI_RANK_ENGINE);
    wi_mutex_init(&inner, WI_RANK_LANE);
    wi_cond_init(&cond);
    wi_mutex_lock(&outer);
    wi_mutex_lock(&inner);
    wi_cond_wait_for(&cond, &inner, 1);
}

static void lock__ranks_may_rise(void **state)
{
    (void)state;
    assert_int_equal(status_of(take_rising), 0);
}

static void lock__falling_rank_dies(void **state)
{
    (void)state;
    skip_in_release();
    check_aborts(take_falling);
}

static void lock__equal_rank_dies(void **state)
{
    (void)state;
    skip_in_release();
    check_aborts(take_equal);
}

static void lock__stray_unlock_dies(void **state)
{
    (void)state;
    skip_in_release();
    check_aborts(unlock_what_is_not_held);
}

static void lock__waiting_under_another_lock_dies(void **state)
{
    (void)state;
    skip_in_release();
    check_aborts(wait_under_another_lock);
}

/* Released in the order in which they were taken: what is left still counts, and is let go. */
static void lock__any_order_of_release(void **state)
{
    struct wi_mutex a;
    struct wi_mutex b;
    struct wi_mutex c;

    (void)state;
    wi_mutex_init(&a, WI_RANK_COPY);
    wi_mutex_init(&b, WI_RANK_ENGINE);
    wi_mutex_init(&c, WI_RANK_LAST);
    for (int i = 0; i < 100; i++) {
        wi_mutex_lock(&a);
        wi_mutex_lock(&b);
        wi_mutex_unlock(&a);
        wi_mutex_lock(&c);
        wi_mutex_unlock(&b);
        wi_mutex_unlock(&c);
    }
    wi_mutex_fini(&a);
    wi_mutex_fini(&b);
    wi_mutex_fini(&c);
}

struct shared {
    struct wi_mutex mu;
    struct wi_cond cond;
    unsigned count;
};

static void *count_up(void *arg)
{
    struct shared *shared = arg;

    for (unsigned i = 0; i < 10000; i++) {
        wi_mutex_lock(&shared->mu);
        shared->count++;
        if (shared->count % 10000 == 0)
            wi_cond_broadcast(&shared->cond);
        wi_mutex_unlock(&shared->mu);
    }
    return NULL;
}

/* It excludes, and a waiter hears of what it waits for. */
static void lock__excludes_and_wakes(void **state)
{
    struct shared shared = { .count = 0 };
    pthread_t threads[4];

    (void)state;
    wi_mutex_init(&shared.mu, WI_RANK_LAST);
    wi_cond_init(&shared.cond);
    for (size_t i = 0; i < WI_ARRAY_LEN(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, &shared), 0);
    wi_mutex_lock(&shared.mu);
    while (shared.count < 40000)
        wi_cond_wait(&shared.cond, &shared.mu);
    wi_mutex_unlock(&shared.mu);
    for (size_t i = 0; i < WI_ARRAY_LEN(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared.count, 40000);
    wi_cond_fini(&shared.cond);
    wi_mutex_fini(&shared.mu);
}

/* Waiting with a limit says that nobody came, holds the lock again, and takes "for ever". */
static void cond__times_out(void **state)
{
    struct shared shared = { .count = 0 };
    pthread_t thread;
    bool woken = true;

    (void)state;
    wi_mutex_init(&shared.mu, WI_RANK_LAST);
    wi_cond_init(&shared.cond);
    wi_mutex_lock(&shared.mu);
    while (woken) /* a spurious wake-up is allowed */
        woken = wi_cond_wait_for(&shared.cond, &shared.mu, WI_MSEC_NS);
    assert_int_equal(pthread_create(&thread, NULL, count_up, &shared), 0);
    while (shared.count < 10000)
        assert_true(wi_cond_wait_for(&shared.cond, &shared.mu, UINT64_MAX));
    wi_mutex_unlock(&shared.mu);
    pthread_join(thread, NULL);
    wi_cond_fini(&shared.cond);
    wi_mutex_fini(&shared.mu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lock__ranks_may_rise),
        cmocka_unit_test(lock__falling_rank_dies),
        cmocka_unit_test(lock__equal_rank_dies),
        cmocka_unit_test(lock__stray_unlock_dies),
        cmocka_unit_test(lock__waiting_under_another_lock_dies),
        cmocka_unit_test(lock__any_order_of_release),
        cmocka_unit_test_setup(lock__excludes_and_wakes, base_watchdog),
        cmocka_unit_test_setup(cond__times_out, base_watchdog),
    };

    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
