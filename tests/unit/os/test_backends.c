/* SPDX-License-Identifier: MIT */
/*
 * Shows that every backend, bare and inside the fault injector, keeps the contract of
 * backend.h: each operation comes back once, waits end when they should, a wake is never
 * lost, and a loop that turns only when the descriptor is readable misses nothing.
 */
#include "os_test.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>

#include "base/inbox.h"
#include "os/fault.h"

#define DEPTH     32
#define FILE_SIZE (256u << 10)

struct variant {
    const char *name;
    wi_backend_open_fn open;
    bool wrapped;
    bool moves_bytes;
};

static const struct variant variants[] = {
    { "null", wi_backend_null_open, false, false },
    { "threads", wi_backend_threads_open, false, true },
    { "uring", wi_backend_uring_open, false, true },
    { "fault(null)", wi_backend_null_open, true, false },
    { "fault(threads)", wi_backend_threads_open, true, true },
    { "fault(uring)", wi_backend_uring_open, true, true },
};

struct env {
    const struct variant *variant;
    struct wi_pool *pool;
    struct wi_fault_plan *plan;
    struct wi_backend *backend;
    int fd;
};

static unsigned char byte_at(uint64_t offset)
{
    return (unsigned char)(offset * 2654435761u >> 13);
}

static bool works(const struct variant *variant)
{
    struct wi_uring_probe probe;

    if (variant->open != wi_backend_uring_open)
        return true;
    wi_uring_probe(NULL, 0, &probe);
    if (probe.code < 0)
        print_message("%s skipped: %s\n", variant->name, probe.why);
    return probe.code == 0;
}

static void open_env(struct env *env, const struct variant *variant)
{
    struct wi_backend_options options = { .os = wi_os_posix(), .depth = DEPTH };
    unsigned char *bytes = malloc(FILE_SIZE);

    *env = (struct env){ .variant = variant };
    env->pool = make_pool(4);
    options.pool = env->pool;
    assert_int_equal(variant->open(&options, &env->backend), 0);
    assert_int_equal(wi_fault_create(wi_os_posix(), &env->plan), 0);
    if (variant->wrapped)
        assert_int_equal(wi_fault_wrap(env->plan, env->backend, &env->backend), 0);
    assert_int_equal(env->backend->ops->bind(env->backend), 0);
    assert_non_null(bytes);
    for (uint32_t i = 0; i < FILE_SIZE; i++)
        bytes[i] = byte_at(i);
    env->fd = wi_os_posix()->ops->openat(wi_os_posix(), AT_FDCWD, scratch_path("data"),
                                         O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(env->fd >= 0);
    assert_int_equal(wi_os_posix()->ops->pwrite(wi_os_posix(), env->fd, bytes, FILE_SIZE, 0),
                     FILE_SIZE);
    free(bytes);
}

static void close_env(struct env *env)
{
    env->backend->ops->unbind(env->backend);
    env->backend->ops->close(env->backend);
    wi_fault_destroy(env->plan);
    wi_pool_destroy(env->pool);
    assert_int_equal(wi_os_posix()->ops->close(wi_os_posix(), env->fd), 0);
}

static int turn(struct env *env, uint32_t want, uint64_t until_ns)
{
    struct wi_op *done = NULL;

    return env->backend->ops->turn(env->backend, want, until_ns, &done);
}

static void for_each_variant(void (*run)(struct env *env))
{
    for (size_t i = 0; i < WI_ARRAY_LEN(variants); i++) {
        struct env env;

        if (!works(&variants[i]))
            continue;
        print_message("  %s\n", variants[i].name);
        open_env(&env, &variants[i]);
        run(&env);
        close_env(&env);
    }
}

/* ---- transfers --------------------------------------------------------------------------- */

static void check_bytes(const unsigned char *buf, uint32_t len, uint64_t offset)
{
    for (uint32_t i = 0; i < len; i++)
        assert_int_equal(buf[i], byte_at(offset + i));
}

static void do_transfers(struct env *env)
{
    static unsigned char buf[3][8192];
    struct iovec iov[2] = { { buf[0], 1000 }, { buf[1], 3000 } };
    struct wi_op op;

    prepare_read(&op, env->fd, buf[0], 4096, 8192);
    assert_int_equal(run_op(env->backend, &op), 4096);
    if (env->variant->moves_bytes)
        check_bytes(buf[0], 4096, 8192);
    prepare_readv(&op, env->fd, iov, 2, 777);
    assert_int_equal(run_op(env->backend, &op), 4000);
    if (!env->variant->moves_bytes)
        return;
    check_bytes(buf[0], 1000, 777);
    check_bytes(buf[1], 3000, 1777);

    /* Around the end of the file, and past it. */
    prepare_read(&op, env->fd, buf[0], 8192, FILE_SIZE - 100);
    assert_int_equal(run_op(env->backend, &op), 100);
    prepare_read(&op, env->fd, buf[0], 8192, FILE_SIZE + 100);
    assert_int_equal(run_op(env->backend, &op), 0);
    prepare_read(&op, -1, buf[0], 1, 0);
    assert_int_equal(run_op(env->backend, &op), -EBADF);

    /* What is written is read. */
    memset(buf[0], 'a', 8192);
    memset(buf[1], 'b', 8192);
    prepare_write(&op, env->fd, buf[0], 5000, 100000);
    assert_int_equal(run_op(env->backend, &op), 5000);
    prepare_writev(&op, env->fd, iov, 2, 105000);
    assert_int_equal(run_op(env->backend, &op), 4000);
    prepare_read(&op, env->fd, buf[2], 8192, 99999);
    assert_int_equal(run_op(env->backend, &op), 8192);
    check_bytes(buf[2], 1, 99999);
    for (uint32_t i = 1; i < 8192; i++)
        assert_int_equal(buf[2][i], i <= 6000 ? 'a' : 'b');
}

static void backends__transfer_exactly(void **state)
{
    (void)state;
    for_each_variant(do_transfers);
}

/* ---- calls ------------------------------------------------------------------------------- */

static int64_t answer(struct wi_op *op)
{
    return (int64_t)op->offset + 1;
}

static void do_calls(struct env *env)
{
    struct wi_op ops[DEPTH];

    for (uint32_t i = 0; i < DEPTH; i++) {
        prepare_call(&ops[i], answer, (uint8_t)(i % WI_LANES));
        ops[i].offset = i;
        assert_int_equal(env->backend->ops->start(env->backend, &ops[i]), 0);
    }
    turn_all(env->backend, DEPTH);
    for (uint32_t i = 0; i < DEPTH; i++)
        assert_int_equal(ops[i].result, i + 1);
}

static void backends__run_calls(void **state)
{
    (void)state;
    for_each_variant(do_calls);
}

/* ---- waiting and waking ------------------------------------------------------------------ */

static void *wake_later(void *arg)
{
    struct wi_backend *backend = arg;

    wi_os_posix()->ops->sleep_ns(wi_os_posix(), 2000000);
    backend->ops->wake(backend);
    return NULL;
}

static void do_wakes(struct env *env)
{
    uint64_t until_ns = now_ns() + 2000000;
    pthread_t thread;

    /* Nothing comes: the time ends it. */
    assert_int_equal(turn(env, 1, until_ns), 0);
    assert_true(now_ns() >= until_ns);
    /* From another thread, before or during the wait. */
    assert_int_equal(pthread_create(&thread, NULL, wake_later, env->backend), 0);
    assert_int_equal(turn(env, 1, now_ns() + FOR_EVER_S * SECOND), 0);
    assert_true(now_ns() < until_ns + FOR_EVER_S * SECOND);
    pthread_join(thread, NULL);
    /* Before the wait. */
    env->backend->ops->wake(env->backend);
    assert_int_equal(turn(env, 1, NEVER), 0);
}

static void backends__wake_ends_a_wait(void **state)
{
    (void)state;
    for_each_variant(do_wakes);
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
        wi_os_posix()->ops->sleep_ns(wi_os_posix(), 500000);
    }
    return NULL;
}

static void do_signals(struct env *env)
{
    struct nudge nudge = { .target = pthread_self() };
    struct sigaction action = { .sa_handler = ignore_signal, .sa_flags = SA_RESTART };
    struct sigaction before;
    pthread_t thread;
    int rc;

    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    assert_int_equal(pthread_create(&thread, NULL, send_signals, &nudge), 0);
    /* A turn that has handed something to a ring may end with 0 instead: the kernel tells of
     * what it took rather than of the signal. The next one says it. */
    do
        rc = turn(env, 1, NEVER);
    while (rc == 0);
    assert_int_equal(rc, -EINTR);
    atomic_store(&nudge.stop, 1);
    pthread_join(thread, NULL);
    sigaction(SIGUSR1, &before, NULL);
}

static void backends__signal_ends_a_wait(void **state)
{
    (void)state;
    for_each_variant(do_signals);
}

/* ---- event loops ------------------------------------------------------------------------- */

/*
 * A loop as an engine's owner runs it: it turns only when the descriptor is readable, and
 * looks at what other threads posted only before a turn. A thread posts and wakes at random
 * moments. Whatever gets lost leaves the loop waiting for ever.
 */
struct loop {
    struct env *env;
    struct wi_inbox inbox;
    _Atomic uint32_t outside; /* posted and not yet seen */
    uint32_t posts;
};

struct post {
    struct wi_inbox_node node;
};

static void *post_at_random(void *arg)
{
    struct loop *loop = arg;
    uint64_t seed = test_seed() + 1;

    for (uint32_t i = 0; i < loop->posts; i++) {
        struct post *post = malloc(sizeof(*post));

        assert_non_null(post);
        /* Let it come to rest now and then, or no wake would ever be needed. */
        while (atomic_load(&loop->outside) > next_random(&seed) % 3)
            sched_yield();
        atomic_fetch_add(&loop->outside, 1);
        wi_inbox_push(&loop->inbox, &post->node);
        loop->env->backend->ops->wake(loop->env->backend);
    }
    return NULL;
}

static uint32_t take_posts(struct loop *loop)
{
    struct wi_inbox_node *node = wi_inbox_take(&loop->inbox);
    uint32_t count = 0;

    while (node) {
        struct wi_inbox_node *next = node->next;

        free(WI_CONTAINER_OF(node, struct post, node));
        atomic_fetch_sub(&loop->outside, 1);
        node = next;
        count++;
    }
    return count;
}

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void do_loop(struct env *env)
{
    static unsigned char buf[DEPTH][64];
    struct loop loop = { .env = env, .posts = rounds(20000) };
    uint32_t total = rounds(40000);
    struct wi_op ops[DEPTH];
    struct wi_op *free_ops[DEPTH];
    uint32_t free_count = DEPTH;
    uint32_t started = 0;
    uint32_t done_count = 0;
    uint32_t posts = 0;
    uint64_t seed = test_seed();
    pthread_t thread;
    int fd = env->backend->ops->fd(env->backend);

    assert_true(fd >= 0);
    for (uint32_t i = 0; i < DEPTH; i++)
        free_ops[i] = &ops[i];
    assert_int_equal(pthread_create(&thread, NULL, post_at_random, &loop), 0);
    while (done_count < total || posts < loop.posts) {
        uint32_t burst = (uint32_t)(next_random(&seed) % DEPTH) + 1;
        bool may_sleep = started > done_count || posts < loop.posts;
        struct wi_op *done = NULL;
        int rc;

        /* Sleep unless there is something to start and nothing that would wake us. */
        if (may_sleep && !is_readable(fd, FOR_EVER_S * 1000)) {
            /* Not fail(): the other thread uses this frame. */
            fprintf(stderr, "%s: asleep for ever with %u in flight and %u posts unseen\n",
                    env->variant->name, started - done_count, atomic_load(&loop.outside));
            abort();
        }
        posts += take_posts(&loop);
        for (; burst > 0 && free_count > 0 && started < total; burst--) {
            struct wi_op *op = free_ops[--free_count];

            if (next_random(&seed) & 1)
                prepare_read(op, env->fd, buf[op - ops], 64, next_random(&seed) % 4096);
            else
                prepare_call(op, answer, (uint8_t)(next_random(&seed) % WI_LANES));
            assert_int_equal(env->backend->ops->start(env->backend, op), 0);
            started++;
        }
        rc = env->backend->ops->turn(env->backend, 0, 0, &done);
        assert_true(rc >= 0 || rc == -EINTR);
        done_count += rc > 0 ? (uint32_t)rc : 0;
        for (struct wi_task *task = done ? &done->task : NULL; task;) {
            struct wi_task *next = task->next;

            free_ops[free_count++] = WI_CONTAINER_OF(task, struct wi_op, task);
            task = next;
        }
        assert_int_equal(free_count, DEPTH - (started - done_count));
    }
    pthread_join(thread, NULL);
    /* Then it comes to rest, after a turn or two for late wake-ups. */
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(turn(env, 0, 0), 0);
    assert_false(is_readable(fd, 0));
}

static void backends__descriptor_never_misses(void **state)
{
    (void)state;
    for_each_variant(do_loop);
}

/* The owner changes, and the descriptor with it. */
static void do_rebind(struct env *env)
{
    unsigned char buf[16];
    struct wi_op op;

    for (uint32_t round = 0; round < 3; round++) {
        int fd = env->backend->ops->fd(env->backend);

        assert_true(fd >= 0);
        prepare_read(&op, env->fd, buf, sizeof(buf), 0);
        assert_int_equal(run_op(env->backend, &op), sizeof(buf));
        env->backend->ops->wake(env->backend);
        env->backend->ops->unbind(env->backend);
        assert_int_equal(env->backend->ops->bind(env->backend), 0);
        prepare_read(&op, env->fd, buf, sizeof(buf), 0);
        assert_int_equal(run_op(env->backend, &op), sizeof(buf));
    }
}

static void backends__descriptor_survives_rebind(void **state)
{
    (void)state;
    for_each_variant(do_rebind);
}

/* ---- cancels ----------------------------------------------------------------------------- */

static void do_cancels(struct env *env)
{
    static unsigned char buf[DEPTH][4096];
    struct wi_op ops[DEPTH];
    uint64_t seed = test_seed();

    for (uint32_t round = 0; round < rounds(500); round++) {
        for (uint32_t i = 0; i < DEPTH; i++) {
            if (next_random(&seed) % 4 == 0)
                prepare_call(&ops[i], answer, WI_LANE_FILES);
            else
                prepare_read(&ops[i], env->fd, buf[i], 4096, 4096u * i);
            assert_int_equal(env->backend->ops->start(env->backend, &ops[i]), 0);
        }
        if (next_random(&seed) & 1) {
            for (uint32_t i = 0; i < DEPTH; i += 2)
                env->backend->ops->cancel(env->backend, &ops[i]);
        }
        turn_all(env->backend, DEPTH);
        for (uint32_t i = 0; i < DEPTH; i++)
            assert_true(ops[i].result == -ECANCELED || ops[i].result == 1 ||
                        ops[i].result == 4096);
    }
}

static void backends__cancelled_come_back_once(void **state)
{
    (void)state;
    for_each_variant(do_cancels);
}

static int begin(void **state)
{
    (void)state;
    make_scratch();
    return 0;
}

static int end(void **state)
{
    (void)state;
    remove_scratch();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backends__transfer_exactly),
        cmocka_unit_test(backends__run_calls),
        cmocka_unit_test(backends__wake_ends_a_wait),
        cmocka_unit_test(backends__signal_ends_a_wait),
        cmocka_unit_test(backends__descriptor_never_misses),
        cmocka_unit_test(backends__descriptor_survives_rebind),
        cmocka_unit_test(backends__cancelled_come_back_once),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
