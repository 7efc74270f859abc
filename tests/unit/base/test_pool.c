/* SPDX-License-Identifier: MIT */
/*
 * test_pool.c - the lanes
 *
 * Linked with --wrap=pthread_create, so that a test decides how many threads can still be
 * created.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pool.h"
#include "base_test.h"

#define TASKS 2000u

/* --- threads that cannot be created --------------------------------------------------------- */

#define ANY_NUMBER 1000000

static _Atomic int creations_left = ANY_NUMBER;
static _Atomic int creations_tried;
static _Atomic bool hold_creation;      /* the next ones wait here, and then fail */
static _Atomic uint32_t creations_held; /* how many have come to wait */

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's --wrap makes these names. */
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    atomic_fetch_add(&creations_tried, 1);
    if (atomic_load(&hold_creation)) {
        atomic_fetch_add(&creations_held, 1);
        while (atomic_load(&hold_creation))
            sched_yield();
        return EAGAIN;
    }
    if (atomic_fetch_sub(&creations_left, 1) <= 0)
        return EAGAIN;
    return __real_pthread_create(thread, attr, run, arg);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* --- tasks ----------------------------------------------------------------------------------- */

struct probe {
    struct wi_task task;
    struct wi_pool *pool;
    _Atomic uint32_t runs;
    uint32_t order;
    pthread_t thread;
    uint32_t left; /* hops */
};

static struct probe probes[TASKS];
static _Atomic uint32_t run_count;
static _Atomic uint32_t running;
static _Atomic uint32_t running_peak;
static _Atomic bool gate;

static int set_up(void **state)
{
    memset(probes, 0, sizeof(probes));
    atomic_store(&run_count, 0);
    atomic_store(&running, 0);
    atomic_store(&running_peak, 0);
    atomic_store(&gate, false);
    atomic_store(&creations_left, ANY_NUMBER);
    atomic_store(&creations_tried, 0);
    atomic_store(&hold_creation, false);
    atomic_store(&creations_held, 0);
    return base_watchdog(state);
}

static struct probe *probe_of(struct wi_task *task)
{
    return WI_CONTAINER_OF(task, struct probe, task);
}

static void run_count_up(struct wi_task *task)
{
    struct probe *probe = probe_of(task);

    probe->thread = pthread_self();
    atomic_fetch_add(&probe->runs, 1);
    probe->order = atomic_fetch_add(&run_count, 1);
}

static void wait_for(_Atomic uint32_t *counter, uint32_t value)
{
    while (atomic_load(counter) < value)
        sched_yield();
}

static struct wi_pool *create(uint32_t io, uint32_t files, uint32_t cpu)
{
    struct wi_pool_options options = { .threads = { io, files, cpu } };
    struct wi_pool *pool = NULL;

    assert_int_equal(wi_pool_create(&options, &pool), 0);
    assert_non_null(pool);
    return pool;
}

/* Submit probes [from, to) as one batch. */
static void submit(struct wi_pool *pool, enum wi_lane lane, uint32_t from, uint32_t to,
                   void (*run)(struct wi_task *task))
{
    for (uint32_t i = from; i < to; i++) {
        probes[i].pool = pool;
        probes[i].task.run = run;
        probes[i].task.next = i + 1 < to ? &probes[i + 1].task : NULL;
    }
    wi_pool_submit(pool, lane, &probes[from].task, &probes[to - 1].task, to - from);
}

static void check_each_ran_once(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(atomic_load(&probes[i].runs), 1);
}

/* --- the cases --------------------------------------------------------------------------------- */

/* No thread is started before there is work; an unused pool comes and goes. */
static void pool__starts_nothing_unasked(void **state)
{
    struct wi_pool *pool = create(4, 4, 4);
    struct wi_pool_stats stats;

    (void)state;
    wi_pool_submit(pool, WI_LANE_IO, NULL, NULL, 0);
    wi_pool_stats(pool, &stats);
    for (int i = 0; i < WI_LANES; i++)
        assert_true(stats.threads[i] == 0 && stats.tasks[i] == 0 && stats.wakes[i] == 0);
    assert_true(stats.cpu_ns == 0);
    wi_pool_destroy(pool);
    wi_pool_destroy(NULL);
    assert_int_equal(atomic_load(&creations_tried), 0);
}

struct submitter {
    struct wi_pool *pool;
    uint32_t from;
    uint32_t to;
};

static void *submit_in_batches(void *arg)
{
    struct submitter *submitter = arg;
    uint32_t from = submitter->from;

    for (uint32_t size = 1; from < submitter->to; size = size % 32 + 1) {
        uint32_t to = (uint32_t)wi_min_u64(from + size, submitter->to);

        submit(submitter->pool, (enum wi_lane)(size % WI_LANES), from, to, run_count_up);
        from = to;
    }
    return NULL;
}

/* From four threads, in batches of many sizes, on all lanes: every task runs exactly once. */
static void pool__runs_every_task_once(void **state)
{
    struct wi_pool *pool = create(4, 2, 3);
    struct submitter submitters[4];
    pthread_t threads[4];
    struct wi_pool_stats stats;
    uint64_t tasks = 0;

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        submitters[i] = (struct submitter){ pool, i * TASKS / 4, (i + 1) * TASKS / 4 };
        assert_int_equal(pthread_create(&threads[i], NULL, submit_in_batches, &submitters[i]),
                         0);
    }
    for (uint32_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    wait_for(&run_count, TASKS);
    wi_pool_stats(pool, &stats);
    for (int i = 0; i < WI_LANES; i++) {
        tasks += stats.tasks[i];
        assert_true(stats.threads_peak[i] >= stats.threads[i]);
        assert_true(stats.wakes[i] <= stats.tasks[i]);
    }
    assert_true(tasks == TASKS);
    assert_true(stats.cpu_ns > 0);
    wi_pool_destroy(pool);
    check_each_ran_once(TASKS);
    for (uint32_t i = 0; i < TASKS; i++)
        assert_false(pthread_equal(probes[i].thread, pthread_self()));
}

/* One thread: the order of submitting is the order of running. */
static void pool__one_thread_keeps_order(void **state)
{
    struct wi_pool *pool = create(1, 1, 1);

    (void)state;
    for (uint32_t from = 0; from < TASKS; from += 50)
        submit(pool, WI_LANE_FILES, from, from + 50, run_count_up);
    wi_pool_destroy(pool);
    for (uint32_t i = 0; i < TASKS; i++)
        assert_int_equal(probes[i].order, i);
}

static void run_until_gate(struct wi_task *task)
{
    uint32_t now = atomic_fetch_add(&running, 1) + 1;
    uint32_t peak = atomic_load(&running_peak);

    while (now > peak && !atomic_compare_exchange_weak(&running_peak, &peak, now))
        ;
    while (!atomic_load(&gate))
        sched_yield();
    atomic_fetch_sub(&running, 1);
    run_count_up(task);
}

/* With enough work that does not end, a lane comes to its limit and stays there. */
static void pool__reaches_its_limit_and_no_more(void **state)
{
    struct wi_pool *pool = create(5, 1, 1);
    struct wi_pool_stats stats;

    (void)state;
    submit(pool, WI_LANE_IO, 0, 20, run_until_gate);
    wait_for(&running, 5);
    submit(pool, WI_LANE_IO, 20, 40, run_until_gate);
    wi_pool_stats(pool, &stats);
    assert_true(stats.threads[WI_LANE_IO] == 5);
    atomic_store(&gate, true);
    wait_for(&run_count, 40);
    assert_int_equal(atomic_load(&running_peak), 5);

    /* The same when the threads were asleep: each is woken, though one submit asks for one. */
    atomic_store(&gate, false);
    submit(pool, WI_LANE_IO, 40, 60, run_until_gate);
    wait_for(&running, 5);
    atomic_store(&gate, true);
    wi_pool_destroy(pool);
    assert_int_equal(atomic_load(&running_peak), 5);
    assert_int_equal(atomic_load(&creations_tried), 5);
    check_each_ran_once(60);
}

/* One task after the other needs one thread. */
static void pool__idle_thread_is_used_again(void **state)
{
    struct wi_pool *pool = create(64, 1, 1);
    struct wi_pool_stats stats;

    (void)state;
    for (uint32_t i = 0; i < 200; i++) {
        submit(pool, WI_LANE_IO, i, i + 1, run_count_up);
        wait_for(&run_count, i + 1);
    }
    wi_pool_stats(pool, &stats);
    assert_true(stats.tasks[WI_LANE_IO] == 200);
    /* It may not be asleep yet when the next task comes; then a second one starts, and with
     * bad luck a third. All of them would mean that nobody is used again. */
    assert_true(stats.threads_peak[WI_LANE_IO] < 64);
    wi_pool_destroy(pool);
}

/* Each task submits two: a tree. */
static void run_spawn(struct wi_task *task)
{
    struct probe *probe = probe_of(task);
    uint32_t left = (uint32_t)(probe - probes) * 2 + 1;

    assert_true(wi_pool_is_worker(probe->pool));
    if (left + 1 < TASKS)
        submit(probe->pool, WI_LANE_CPU, left, left + 2, run_spawn);
    run_count_up(task);
}

static void pool__workers_may_submit(void **state)
{
    struct wi_pool *pool = create(1, 1, 4);

    (void)state;
    submit(pool, WI_LANE_CPU, 0, 1, run_spawn);
    wait_for(&run_count, TASKS - 1); /* the last level is one short of two */
    wi_pool_destroy(pool);
    check_each_ran_once(TASKS - 1);
}

/* Destroy waits for what is queued: a full queue behind a task that is let go only now. */
static void pool__destroy_runs_the_queue(void **state)
{
    struct wi_pool *pool = create(1, 1, 1);

    (void)state;
    submit(pool, WI_LANE_IO, 0, 1, run_until_gate);
    submit(pool, WI_LANE_IO, 1, TASKS, run_count_up);
    atomic_store(&gate, true);
    wi_pool_destroy(pool);
    assert_int_equal(atomic_load(&run_count), TASKS);
    check_each_ran_once(TASKS);
}

/* Each run submits the task again, to another lane. */
static void run_hop(struct wi_task *task)
{
    struct probe *probe = probe_of(task);

    if (probe->left == 0) {
        run_count_up(task);
        return;
    }
    probe->left--;
    task->next = NULL;
    wi_pool_submit(probe->pool, (enum wi_lane)(probe->left % WI_LANES), task, task, 1);
}

/* Also what running tasks submit to lanes whose threads have already gone. */
static void pool__destroy_runs_what_tasks_submit(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 20; round++) {
        struct wi_pool *pool = create(2, 1, 2);

        set_up(state);
        for (uint32_t i = 0; i < 30; i++)
            probes[i].left = 100 + i;
        submit(pool, WI_LANE_IO, 0, 30, run_hop);
        wi_pool_destroy(pool);
        assert_int_equal(atomic_load(&run_count), 30);
        check_each_ran_once(30);
    }
}

static cpu_set_t seen_masks[8];
static sigset_t seen_signals;

static void run_look_around(struct wi_task *task)
{
    struct probe *probe = probe_of(task);

    sched_getaffinity(0, sizeof(seen_masks[0]), &seen_masks[probe - probes]);
    pthread_sigmask(SIG_SETMASK, NULL, &seen_signals);
    run_until_gate(task);
}

/* The threads take the processors of the list in turn; one that is not there is no harm. */
static void pool__pins_threads_in_turn(void **state)
{
    uint32_t cpus[2] = { 0 };
    struct wi_pool_options options = { .threads = { 4, 1, 1 }, .pin_cpus = cpus };
    struct wi_pool *pool = NULL;
    unsigned pinned[2] = { 0 };
    cpu_set_t own;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(own), &own), 0);
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE && options.pin_cpus_count < 2; cpu++)
        if (CPU_ISSET(cpu, &own))
            cpus[options.pin_cpus_count++] = cpu;
    assert_int_equal(wi_pool_create(&options, &pool), 0);
    submit(pool, WI_LANE_IO, 0, 4, run_look_around);
    wait_for(&running, 4);
    atomic_store(&gate, true);
    wi_pool_destroy(pool);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(CPU_COUNT(&seen_masks[i]), 1);
        for (size_t c = 0; c < options.pin_cpus_count; c++)
            pinned[c] += CPU_ISSET(cpus[c], &seen_masks[i]) != 0;
    }
    for (size_t c = 0; c < options.pin_cpus_count; c++)
        assert_int_equal(pinned[c], 4 / options.pin_cpus_count);

    cpus[0] = 100000;
    options.pin_cpus_count = 1;
    set_up(state);
    atomic_store(&gate, true);
    assert_int_equal(wi_pool_create(&options, &pool), 0);
    submit(pool, WI_LANE_IO, 0, 1, run_look_around);
    wi_pool_destroy(pool);
    assert_true(CPU_EQUAL(&seen_masks[0], &own));
}

/* Signals are the program's: its handlers never run on a thread of the pool. */
static void pool__threads_block_signals(void **state)
{
    struct wi_pool *pool = create(1, 1, 1);
    sigset_t own;

    (void)state;
    atomic_store(&gate, true);
    submit(pool, WI_LANE_CPU, 0, 1, run_look_around);
    wi_pool_destroy(pool);
    assert_int_equal(sigismember(&seen_signals, SIGINT), 1);
    assert_int_equal(sigismember(&seen_signals, SIGUSR1), 1);
    pthread_sigmask(SIG_SETMASK, NULL, &own);
    assert_int_equal(sigismember(&own, SIGINT), 0);
}

/* A thread knows whose it is. */
static void pool__knows_its_threads(void **state)
{
    struct wi_pool *pool = create(1, 1, 1);
    struct wi_pool *other = create(1, 1, 1);

    (void)state;
    assert_false(wi_pool_is_worker(pool));
    submit(pool, WI_LANE_CPU, TASKS - 1, TASKS, run_spawn); /* asserts that it is */
    wi_pool_destroy(pool);
    assert_false(wi_pool_is_worker(other));
    wi_pool_destroy(other);
}

static uint32_t depth;
static uint32_t depth_peak;

/* Submits itself again; how deep do runs nest? Only ever on one thread. */
static void run_nested(struct wi_task *task)
{
    depth++;
    depth_peak = (uint32_t)wi_max_u64(depth_peak, depth);
    run_hop(task);
    depth--;
}

/* Without a single thread the work is done by the caller, before submit returns; a task that
 * submits goes on in the loop below it, not deeper and deeper. */
static void pool__no_thread_runs_on_the_caller(void **state)
{
    struct wi_pool *pool = create(4, 4, 4);
    struct wi_pool_stats stats;

    (void)state;
    depth_peak = 0;
    atomic_store(&creations_left, 0);
    submit(pool, WI_LANE_IO, 0, 100, run_count_up);
    assert_int_equal(atomic_load(&run_count), 100);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(probes[i].order, i);
        assert_true(pthread_equal(probes[i].thread, pthread_self()));
    }
    probes[100].left = 10000;
    submit(pool, WI_LANE_IO, 100, 101, run_nested);
    assert_int_equal(atomic_load(&run_count), 101);
    assert_true(depth_peak <= WI_LANES);
    wi_pool_stats(pool, &stats);
    assert_true(stats.threads[WI_LANE_IO] == 0);
    assert_true(stats.tasks[WI_LANE_IO] >= 101);

    /* It does not try again each time, but it does in the end. */
    assert_true(atomic_load(&creations_tried) < 1000);
    atomic_store(&creations_left, ANY_NUMBER);
    for (uint32_t i = 101; i < 301; i++)
        submit(pool, WI_LANE_IO, i, i + 1, run_count_up);
    wi_pool_stats(pool, &stats);
    assert_true(stats.threads[WI_LANE_IO] >= 1);
    wi_pool_destroy(pool);
    assert_int_equal(atomic_load(&run_count), 301);
}

/* With one thread but no second, the one does it all. */
static void pool__no_second_thread_uses_the_first(void **state)
{
    struct wi_pool *pool = create(4, 1, 1);

    (void)state;
    atomic_store(&creations_left, 1);
    submit(pool, WI_LANE_IO, 0, TASKS, run_count_up);
    wait_for(&run_count, TASKS);
    wi_pool_destroy(pool);
    check_each_ran_once(TASKS);
    for (uint32_t i = 0; i < TASKS; i++)
        assert_true(pthread_equal(probes[i].thread, probes[0].thread));
    assert_int_equal(atomic_load(&creations_tried), 2);
}

/* Threads come and go at random moments: nothing is lost. */
static void pool__survives_random_failures(void **state)
{
    struct base_rng rng = base_rng_start();

    for (uint32_t round = 0; round < 200; round++) {
        struct wi_pool *pool = create(3, 1, 2);
        uint32_t to = 0;

        set_up(state);
        atomic_store(&creations_left, (int)base_rng_below(&rng, 4));
        while (to < TASKS) {
            uint32_t from = to;

            to = (uint32_t)wi_min_u64(from + 1 + base_rng_below(&rng, 100), TASKS);
            submit(pool, (enum wi_lane)base_rng_below(&rng, WI_LANES), from, to, run_count_up);
        }
        wi_pool_destroy(pool);
        check_each_ran_once(TASKS);
    }
}

static _Atomic bool second_gate;
static _Atomic pid_t second_tid;

static void run_until_second_gate(struct wi_task *task)
{
    atomic_store(&second_tid, (pid_t)syscall(SYS_gettid));
    atomic_fetch_add(&running, 1);
    while (!atomic_load(&second_gate))
        sched_yield();
    run_count_up(task);
}

static bool thread_sleeps(pid_t tid)
{
    char path[64];
    char text[256] = "";
    const char *state;
    FILE *stream;

    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
    stream = fopen(path, "re");
    assert_non_null(stream);
    assert_non_null(fgets(text, sizeof(text), stream));
    (void)fclose(stream);
    state = strrchr(text, ')');
    return state && state[1] == ' ' && state[2] == 'S';
}

static void *submit_third(void *arg)
{
    submit(arg, WI_LANE_IO, 2, 3, run_count_up);
    return NULL;
}

/* While a thread is being created nobody else is called for. If it then cannot be created,
 * and a worker has gone to sleep meanwhile, that one is called: the first worker may be busy for
 * long. */
static void pool__failed_start_wakes_a_sleeper(void **state)
{
    struct wi_pool *pool = create(3, 1, 1);
    pthread_t submitter;

    (void)state;
    atomic_store(&second_gate, false);
    submit(pool, WI_LANE_IO, 0, 1, run_until_gate);
    wait_for(&running, 1);
    submit(pool, WI_LANE_IO, 1, 2, run_until_second_gate);
    wait_for(&running, 2);

    /* The third task calls for a third thread; the second does it meanwhile, and sleeps. */
    atomic_store(&hold_creation, true);
    assert_int_equal(__real_pthread_create(&submitter, NULL, submit_third, pool), 0);
    wait_for(&creations_held, 1);
    atomic_store(&second_gate, true);
    wait_for(&run_count, 2);
    while (!thread_sleeps(atomic_load(&second_tid)))
        sched_yield();

    submit(pool, WI_LANE_IO, 3, 4, run_count_up);
    atomic_store(&hold_creation, false);
    wait_for(&run_count, 3);
    pthread_join(submitter, NULL);
    assert_int_equal(atomic_load(&probes[0].runs), 0);
    atomic_store(&gate, true);
    wi_pool_destroy(pool);
    check_each_ran_once(4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(pool__starts_nothing_unasked, set_up),
        cmocka_unit_test_setup(pool__runs_every_task_once, set_up),
        cmocka_unit_test_setup(pool__one_thread_keeps_order, set_up),
        cmocka_unit_test_setup(pool__reaches_its_limit_and_no_more, set_up),
        cmocka_unit_test_setup(pool__idle_thread_is_used_again, set_up),
        cmocka_unit_test_setup(pool__workers_may_submit, set_up),
        cmocka_unit_test_setup(pool__destroy_runs_the_queue, set_up),
        cmocka_unit_test_setup(pool__destroy_runs_what_tasks_submit, set_up),
        cmocka_unit_test_setup(pool__pins_threads_in_turn, set_up),
        cmocka_unit_test_setup(pool__threads_block_signals, set_up),
        cmocka_unit_test_setup(pool__knows_its_threads, set_up),
        cmocka_unit_test_setup(pool__no_thread_runs_on_the_caller, set_up),
        cmocka_unit_test_setup(pool__no_second_thread_uses_the_first, set_up),
        cmocka_unit_test_setup(pool__failed_start_wakes_a_sleeper, set_up),
        cmocka_unit_test_setup(pool__survives_random_failures, set_up),
    };

    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
