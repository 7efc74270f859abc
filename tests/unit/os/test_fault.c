/* SPDX-License-Identifier: MIT */
/*
 * Shows that the injector does to an operation what its rules say, through the table and
 * through a wrapped backend alike, and leaves everything else alone.
 */
#include "os_test.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "os/fault.h"

#define OPS  8
#define SIZE 4096u

struct fixture {
    struct wi_fault_plan *plan;
    const struct wi_os *os; /* the wrapped table */
    struct wi_pool *pool;
    struct wi_backend *backend; /* threads, wrapped */
    int fd;
    struct wi_op ops[OPS];
    unsigned char bufs[OPS][SIZE];
};

static unsigned char byte_at(uint64_t offset)
{
    return (unsigned char)(offset * 2654435761u >> 13);
}

static struct fixture *set_up(wi_backend_open_fn open, const struct wi_null_script *script)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct wi_backend_options options = {
        .os = wi_os_posix(),
        .depth = OPS,
        .null_script = script,
    };
    struct wi_backend *inner;

    assert_non_null(fixture);
    fixture->pool = make_pool(2);
    options.pool = fixture->pool;
    assert_int_equal(wi_fault_create(wi_os_posix(), &fixture->plan), 0);
    fixture->os = wi_fault_os(fixture->plan);
    assert_int_equal(open(&options, &inner), 0);
    assert_int_equal(wi_fault_wrap(fixture->plan, inner, &fixture->backend), 0);
    assert_int_equal(fixture->backend->ops->bind(fixture->backend), 0);
    fixture->fd = wi_os_posix()->ops->openat(wi_os_posix(), AT_FDCWD, scratch_path("data"),
                                             O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fixture->fd >= 0);
    for (uint32_t i = 0; i < OPS * SIZE; i++)
        fixture->bufs[i / SIZE][i % SIZE] = byte_at(i);
    assert_int_equal(
        wi_os_posix()->ops->pwrite(wi_os_posix(), fixture->fd, fixture->bufs, OPS * SIZE, 0),
        OPS * SIZE);
    memset(fixture->bufs, 0, sizeof(fixture->bufs));
    return fixture;
}

static void tear_down(struct fixture *fixture)
{
    fixture->backend->ops->unbind(fixture->backend);
    fixture->backend->ops->close(fixture->backend);
    wi_fault_destroy(fixture->plan);
    wi_pool_destroy(fixture->pool);
    close(fixture->fd);
    free(fixture);
}

static void add(struct fixture *fixture, struct wi_fault_rule rule)
{
    assert_int_equal(wi_fault_add(fixture->plan, &rule), 0);
}

static void start_read(struct fixture *fixture, uint32_t index)
{
    prepare_read(&fixture->ops[index], fixture->fd, fixture->bufs[index], SIZE,
                 (uint64_t)index * SIZE);
    assert_int_equal(fixture->backend->ops->start(fixture->backend, &fixture->ops[index]), 0);
}

static int64_t read_one(struct fixture *fixture, uint32_t index)
{
    start_read(fixture, index);
    turn_all(fixture->backend, 1);
    return fixture->ops[index].result;
}

static int turn(struct fixture *fixture, uint32_t want, uint64_t until_ns)
{
    struct wi_op *done = NULL;

    return fixture->backend->ops->turn(fixture->backend, want, until_ns, &done);
}

/* How many bits differ from the file as it was made. */
static uint32_t wrong_bits(const unsigned char *buf, size_t len, uint64_t offset)
{
    uint32_t wrong = 0;

    for (size_t i = 0; i < len; i++)
        wrong += (uint32_t)__builtin_popcount(buf[i] ^ byte_at(offset + i));
    return wrong;
}

static uint32_t wrong_bits_in_file(struct fixture *fixture, size_t len, uint64_t offset)
{
    static unsigned char buf[2 * SIZE];

    assert_int_equal(wi_os_posix()->ops->pread(wi_os_posix(), fixture->fd, buf, len, offset),
                     len);
    return wrong_bits(buf, len, offset);
}

/* ---- rules ------------------------------------------------------------------------------- */

static void fault__acts_on_the_nth(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);

    (void)state;
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 3, .count = 2, .error = -EIO });
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(read_one(fixture, i), i == 2 || i == 3 ? -EIO : (int)SIZE);
    assert_int_equal(wrong_bits(fixture->bufs[4], SIZE, 4 * SIZE), 0);
    assert_int_equal(wi_fault_seen(fixture->plan, WI_FAULT_READ), 6);
    assert_int_equal(wi_fault_acted(fixture->plan), 2);

    /* On all from there, until cleared; and tables count with backends. */
    wi_fault_clear(fixture->plan);
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_READ, .first = 2, .error = -ENOMEM });
    assert_int_equal(read_one(fixture, 0), SIZE);
    assert_int_equal(fixture->os->ops->pread(fixture->os, fixture->fd, fixture->bufs[0], 1, 0),
                     -ENOMEM);
    assert_int_equal(read_one(fixture, 0), -ENOMEM);
    wi_fault_clear(fixture->plan);
    assert_int_equal(read_one(fixture, 0), SIZE);
    assert_int_equal(wi_fault_seen(fixture->plan, WI_FAULT_READ), 10);
    tear_down(fixture);
}

static void fault__first_matching_rule_acts(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);

    (void)state;
    add(fixture, (struct wi_fault_rule){
                     .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EINTR });
    add(fixture, (struct wi_fault_rule){
                     .kind = WI_FAULT_READ, .first = 1, .count = 1, .error = -EAGAIN });
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_WRITE, .first = 1, .error = -ENOSPC });
    assert_int_equal(read_one(fixture, 0), -EINTR);
    assert_int_equal(read_one(fixture, 0), -EAGAIN);
    assert_int_equal(read_one(fixture, 0), SIZE);
    tear_down(fixture);
}

static void fault__shortens(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    struct iovec iov[2] = { { fixture->bufs[0], 600 }, { fixture->bufs[1], SIZE } };
    struct wi_op op;

    (void)state;
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_READ, .shorten_to = 1000 });
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_WRITE, .shorten_to = 7 });
    assert_int_equal(read_one(fixture, 5), 1000);
    prepare_readv(&op, fixture->fd, iov, 2, 0);
    assert_int_equal(run_op(fixture->backend, &op), 1000);
    assert_int_equal(wrong_bits(fixture->bufs[0], 600, 0), 0);
    assert_int_equal(wrong_bits(fixture->bufs[1], 400, 600), 0);
    assert_int_equal(fixture->bufs[1][400], 0);
    assert_int_equal(iov[1].iov_len, SIZE);
    prepare_read(&op, fixture->fd, fixture->bufs[2], 999, 0);
    assert_int_equal(run_op(fixture->backend, &op), 999);
    prepare_write(&op, fixture->fd, fixture->bufs[2], 100, 0);
    assert_int_equal(run_op(fixture->backend, &op), 7);
    iov[0].iov_len = 5;
    prepare_writev(&op, fixture->fd, iov, 2, 0);
    assert_int_equal(run_op(fixture->backend, &op), 7);

    assert_int_equal(
        fixture->os->ops->pread(fixture->os, fixture->fd, fixture->bufs[3], 2000, 0), 1000);
    iov[0].iov_len = 600;
    assert_int_equal(fixture->os->ops->preadv2(fixture->os, fixture->fd, iov, 2, 0, 0), 1000);
    assert_int_equal(
        fixture->os->ops->pwrite(fixture->os, fixture->fd, fixture->bufs[3], 2000, 0), 7);
    assert_int_equal(fixture->os->ops->pwritev2(fixture->os, fixture->fd, iov, 2, 0, 0), 7);
    tear_down(fixture);
}

/* One bit, in the middle; the caller's buffer stays as it was when it is a write. */
static void fault__corrupts_one_bit(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    struct iovec iov[2] = { { fixture->bufs[0], 100 }, { fixture->bufs[1], SIZE } };
    struct wi_op op;

    (void)state;
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_READ, .corrupt = true });
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_WRITE, .corrupt = true });
    assert_int_equal(read_one(fixture, 2), SIZE);
    assert_int_equal(wrong_bits(fixture->bufs[2], SIZE, 2 * SIZE), 1);
    prepare_readv(&op, fixture->fd, iov, 2, 0);
    assert_int_equal(run_op(fixture->backend, &op), SIZE + 100);
    assert_int_equal(wrong_bits(fixture->bufs[0], 100, 0), 0);
    assert_int_equal(wrong_bits(fixture->bufs[1], SIZE, 100), 1);
    assert_int_equal(
        fixture->os->ops->pread(fixture->os, fixture->fd, fixture->bufs[3], SIZE, 3 * SIZE),
        SIZE);
    assert_int_equal(wrong_bits(fixture->bufs[3], SIZE, 3 * SIZE), 1);

    for (uint32_t i = 0; i < 100; i++)
        fixture->bufs[0][i] = byte_at(i);
    for (uint32_t i = 0; i < SIZE; i++)
        fixture->bufs[1][i] = byte_at(100 + i);
    prepare_writev(&op, fixture->fd, iov, 2, 0);
    assert_int_equal(run_op(fixture->backend, &op), SIZE + 100);
    assert_int_equal(wrong_bits_in_file(fixture, SIZE + 100, 0), 1);
    prepare_write(&op, fixture->fd, fixture->bufs[1], SIZE, 100);
    assert_int_equal(run_op(fixture->backend, &op), SIZE);
    assert_int_equal(wrong_bits_in_file(fixture, SIZE + 100, 0), 1);
    assert_int_equal(
        fixture->os->ops->pwrite(fixture->os, fixture->fd, fixture->bufs[1], SIZE, 100), SIZE);
    assert_int_equal(wrong_bits_in_file(fixture, SIZE, 100), 1);
    assert_int_equal(fixture->os->ops->pwritev2(fixture->os, fixture->fd, iov, 2, 0, 0),
                     SIZE + 100);
    assert_int_equal(wrong_bits_in_file(fixture, SIZE + 100, 0), 1);
    assert_int_equal(wrong_bits(fixture->bufs[0], 100, 0), 0);
    assert_int_equal(wrong_bits(fixture->bufs[1], SIZE, 100), 0);
    tear_down(fixture);
}

static void fault__applied_errors_leave_their_mark(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    char byte;
    struct wi_op op;

    (void)state;
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_WRITE, .count = 1, .error = -EIO });
    add(fixture, (struct wi_fault_rule){
                     .kind = WI_FAULT_WRITE, .count = 1, .error = -EIO, .applied = true });
    prepare_write(&op, fixture->fd, "ab", 2, OPS * SIZE);
    assert_int_equal(run_op(fixture->backend, &op), -EIO);
    assert_int_equal(
        wi_os_posix()->ops->pread(wi_os_posix(), fixture->fd, &byte, 1, OPS * SIZE), 0);
    prepare_write(&op, fixture->fd, "ab", 2, OPS * SIZE);
    assert_int_equal(run_op(fixture->backend, &op), -EIO);
    assert_int_equal(
        wi_os_posix()->ops->pread(wi_os_posix(), fixture->fd, &byte, 1, OPS * SIZE), 1);
    assert_int_equal(byte, 'a');
    tear_down(fixture);
}

/* ---- holding back ------------------------------------------------------------------------ */

static void fault__delays(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    uint64_t start_ns = now_ns();

    (void)state;
    add(fixture, (struct wi_fault_rule){
                     .kind = WI_FAULT_READ, .first = 1, .count = 1, .delay_ns = 3000000 });
    start_read(fixture, 0);
    start_read(fixture, 1);
    turn_all(fixture->backend, 2);
    assert_int_equal(fixture->ops[1].result, SIZE);
    assert_true(now_ns() - start_ns >= 3000000);
    assert_int_equal(fixture->ops[0].result, SIZE);
    assert_int_equal(wrong_bits(fixture->bufs[0], SIZE, 0), 0);
    tear_down(fixture);
}

static void fault__holds_until_release(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);

    (void)state;
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_READ, .count = 2, .delay_ns = UINT64_MAX });
    start_read(fixture, 0);
    start_read(fixture, 1);
    assert_int_equal(turn(fixture, 1, now_ns() + 1000000), 0);
    /* Not cancellable. */
    fixture->backend->ops->cancel(fixture->backend, &fixture->ops[0]);
    assert_int_equal(turn(fixture, 1, now_ns() + 1000000), 0);
    wi_fault_release(fixture->plan);
    turn_all(fixture->backend, 2);
    assert_int_equal(fixture->ops[0].result, SIZE);
    assert_int_equal(fixture->ops[1].result, SIZE);
    assert_int_equal(wrong_bits(fixture->bufs[1], SIZE, SIZE), 0);
    tear_down(fixture);
}

static void *release_later(void *arg)
{
    struct fixture *fixture = arg;

    wi_os_posix()->ops->sleep_ns(wi_os_posix(), 2000000);
    wi_fault_release(fixture->plan);
    return NULL;
}

/* From another thread, while the owner sleeps, and while a blocking caller does. */
static void fault__release_wakes(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    pthread_t thread;

    (void)state;
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_READ, .count = 1, .delay_ns = UINT64_MAX });
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_SYNC, .count = 1, .delay_ns = UINT64_MAX });
    start_read(fixture, 0);
    assert_int_equal(pthread_create(&thread, NULL, release_later, fixture), 0);
    turn_all(fixture->backend, 1);
    assert_int_equal(fixture->ops[0].result, SIZE);
    pthread_join(thread, NULL);

    assert_int_equal(pthread_create(&thread, NULL, release_later, fixture), 0);
    assert_int_equal(fixture->os->ops->fsync(fixture->os, fixture->fd), 0);
    pthread_join(thread, NULL);
    tear_down(fixture);
}

static void fault__held_ones_can_be_cancelled(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);

    (void)state;
    add(fixture, (struct wi_fault_rule){
                     .kind = WI_FAULT_READ, .delay_ns = UINT64_MAX, .cancellable = true });
    start_read(fixture, 0);
    start_read(fixture, 1);
    assert_int_equal(turn(fixture, 0, 0), 0);
    fixture->backend->ops->cancel(fixture->backend, &fixture->ops[0]);
    fixture->backend->ops->cancel(fixture->backend, &fixture->ops[0]); /* no harm */
    assert_int_equal(turn(fixture, 1, NEVER), 1);
    assert_int_equal(fixture->ops[0].result, -ECANCELED);
    fixture->backend->ops->cancel(fixture->backend, &fixture->ops[1]);
    turn_all(fixture->backend, 1);
    assert_int_equal(fixture->ops[1].result, -ECANCELED);
    assert_int_equal(fixture->bufs[0][100] | fixture->bufs[1][100], 0);
    tear_down(fixture);
}

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, timeout_ms) == 1;
}

/* By its time, by a release, and by a cancel: each makes the descriptor readable. */
static void fault__descriptor_tells_of_held_ones(void **state)
{
    struct fixture *fixture = set_up(wi_backend_null_open, NULL);
    int fd = fixture->backend->ops->fd(fixture->backend);

    (void)state;
    assert_true(fd >= 0);
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_READ, .count = 1, .delay_ns = 1000000 });
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_READ, .count = 1, .delay_ns = UINT64_MAX });
    add(fixture,
        (struct wi_fault_rule){
            .kind = WI_FAULT_READ, .count = 1, .delay_ns = UINT64_MAX, .cancellable = true });
    start_read(fixture, 0);
    assert_int_equal(turn(fixture, 0, 0), 0);
    assert_true(is_readable(fd, FOR_EVER_S * 1000));
    assert_int_equal(turn(fixture, 0, 0), 1);
    assert_false(is_readable(fd, 0));

    start_read(fixture, 1);
    start_read(fixture, 2);
    assert_int_equal(turn(fixture, 0, 0), 0);
    assert_false(is_readable(fd, 0));
    fixture->backend->ops->cancel(fixture->backend, &fixture->ops[2]);
    assert_true(is_readable(fd, 0));
    assert_int_equal(turn(fixture, 0, 0), 1);
    assert_int_equal(fixture->ops[2].result, -ECANCELED);

    wi_fault_release(fixture->plan);
    assert_true(is_readable(fd, 0));
    assert_int_equal(turn(fixture, 0, 0), 1);
    assert_int_equal(fixture->ops[1].result, SIZE);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(turn(fixture, 0, 0), 0);
    assert_false(is_readable(fd, 0));
    tear_down(fixture);
}

/* ---- order and records ------------------------------------------------------------------- */

static void fault__reorders_by_seed(void **state)
{
    struct fixture *fixture = set_up(wi_backend_null_open, NULL);
    uint32_t orders[2][OPS];
    bool moved = false;

    (void)state;
    for (uint32_t run = 0; run < 2; run++) {
        struct wi_op *done = NULL;
        uint32_t count = 0;

        wi_fault_reorder(fixture->plan, 42);
        for (uint32_t i = 0; i < OPS; i++)
            start_read(fixture, i);
        assert_int_equal(fixture->backend->ops->turn(fixture->backend, 1, NEVER, &done), OPS);
        for (struct wi_task *task = &done->task; task; task = task->next)
            orders[run][count++] =
                (uint32_t)(WI_CONTAINER_OF(task, struct wi_op, task) - fixture->ops);
        assert_int_equal(count, OPS);
    }
    for (uint32_t i = 0; i < OPS; i++) {
        assert_int_equal(orders[0][i], orders[1][i]);
        moved = moved || orders[0][i] != i;
    }
    assert_true(moved);
    tear_down(fixture);
}

static void fault__records_the_last(void **state)
{
    struct fixture *fixture = set_up(wi_backend_threads_open, NULL);
    struct wi_fault_record list[8];

    (void)state;
    assert_int_equal(wi_fault_records(fixture->plan, list, 8), 0);
    assert_int_equal(wi_fault_record(fixture->plan, 3), 0);
    add(fixture, (struct wi_fault_rule){ .kind = WI_FAULT_SYNC, .error = -EIO });
    assert_int_equal(read_one(fixture, 1), SIZE);
    assert_int_equal(read_one(fixture, 2), SIZE);
    assert_int_equal(fixture->os->ops->fdatasync(fixture->os, fixture->fd), -EIO);
    assert_int_equal(fixture->os->ops->ftruncate(fixture->os, fixture->fd, 5), 0);
    assert_int_equal(wi_fault_records(fixture->plan, list, 8), 3);
    assert_int_equal(list[0].kind, WI_FAULT_READ);
    assert_int_equal(list[0].offset, 2 * SIZE);
    assert_int_equal(list[0].len, SIZE);
    assert_int_equal(list[0].result, SIZE);
    assert_int_equal(list[0].fd, fixture->fd);
    assert_int_equal(list[1].kind, WI_FAULT_SYNC);
    assert_int_equal(list[1].result, -EIO);
    assert_int_equal(list[2].kind, WI_FAULT_TRUNCATE);
    assert_true(list[0].order < list[1].order && list[1].order < list[2].order);
    assert_int_equal(wi_fault_records(fixture->plan, list, 1), 1);
    assert_int_equal(wi_fault_record(fixture->plan, 0), 0);
    assert_int_equal(wi_fault_records(fixture->plan, list, 8), 0);
    tear_down(fixture);
}

/* ---- the table --------------------------------------------------------------------------- */

/* Every entry once with a rule that fails all of its kind, and once without: then it passes
 * through. */
static void call_all(struct fixture *fixture, bool failing)
{
    const struct wi_os *os = fixture->os;
    const struct wi_os_ops *ops = os->ops;
    int want = failing ? -EPROTO : 0;
    struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 2 } };
    struct statfs fs;
    struct statx st;
    uint64_t cached;
    char buf[512];
    int fd = ops->openat(os, AT_FDCWD, scratch_path("x"), O_RDWR | O_CREAT, 0600);

    if (failing) {
        assert_int_equal(fd, -EPROTO);
        fd = dup(fixture->fd);
    }
    assert_true(fd >= 0);
    assert_int_equal(ops->random(os, buf, 8), want);
    assert_int_equal(ops->fcntl(os, fd, F_SETFL, 0), want);
    assert_int_equal(ops->pwrite(os, fd, "abc", 3, 0), failing ? want : 3);
    assert_int_equal(ops->pread(os, fd, buf, 3, 0), failing ? want : 3);
    if (failing)
        assert_int_equal(ops->copy_range(os, fd, 0, fixture->fd, 0, 3), want);
    else
        (void)ops->copy_range(os, fd, 0, fixture->fd, 0, 3);
    assert_int_equal(ops->fsync(os, fd), want);
    assert_int_equal(ops->fdatasync(os, fd), want);
    assert_int_equal(ops->ftruncate(os, fd, 100), want);
    assert_int_equal(ops->fallocate(os, fd, 0, 0, 100), want);
    assert_int_equal(ops->fadvise(os, fd, 0, 0, POSIX_FADV_NORMAL), want);
    assert_int_equal(ops->lseek(os, fd, 0, SEEK_SET), want);
    assert_int_equal(ops->statx(os, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st), want);
    assert_int_equal(ops->fstatfs(os, fd, &fs), want);
    assert_int_equal(ops->fchmod(os, fd, 0600), want);
    assert_int_equal(ops->utimensat(os, fd, NULL, times, 0), want);
    assert_int_equal(ops->flock(os, fd, 8), want); /* LOCK_UN */
    assert_int_equal(ops->mkdirat(os, AT_FDCWD, scratch_path("d"), 0700), want);
    assert_int_equal(ops->symlinkat(os, "t", AT_FDCWD, scratch_path("s")), want);
    assert_int_equal(ops->readlinkat(os, AT_FDCWD, scratch_path("s"), buf, 8),
                     failing ? want : 1);
    if (failing) {
        assert_int_equal(ops->linkat(os, AT_FDCWD, "x", AT_FDCWD, "y", 0), want);
        assert_int_equal(ops->renameat2(os, AT_FDCWD, "x", AT_FDCWD, "y", 0), want);
        assert_int_equal(ops->fchmodat(os, AT_FDCWD, "x", 0600), want);
        assert_int_equal(ops->unlinkat(os, AT_FDCWD, "x", 0), want);
        assert_int_equal(ops->getdents(os, fd, buf, sizeof(buf)), want);
        assert_int_equal(wi_os_cached(os, fd, 0, 1, &cached), want);
        assert_int_equal(wi_os_clone(os, fd, fd), want);
    } else {
        assert_int_equal(
            ops->linkat(os, AT_FDCWD, scratch_path("x"), AT_FDCWD, scratch_path("y"), 0), 0);
        assert_int_equal(
            ops->renameat2(os, AT_FDCWD, scratch_path("y"), AT_FDCWD, scratch_path("z"), 0), 0);
        assert_int_equal(ops->fchmodat(os, AT_FDCWD, scratch_path("z"), 0600), 0);
        assert_int_equal(ops->unlinkat(os, AT_FDCWD, scratch_path("z"), 0), 0);
        assert_int_equal(ops->unlinkat(os, AT_FDCWD, scratch_path("d"), AT_REMOVEDIR), 0);
        assert_int_equal(ops->getdents(os, fd, buf, sizeof(buf)), -ENOTDIR);
        (void)wi_os_cached(os, fd, 0, 1, &cached);
        assert_int_equal(wi_os_clone(os, fd, -1), -EBADF);
    }
    assert_true(ops->now_ns(os) > 0 && ops->real_ns(os) > 0);
    assert_int_equal(ops->sleep_ns(os, 1), 0);
    /* A close always closes, whatever it says. */
    assert_int_equal(ops->close(os, fd), want);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void fault__table_passes_through_and_fails(void **state)
{
    struct fixture *fixture = set_up(wi_backend_null_open, NULL);

    (void)state;
    call_all(fixture, false);
    assert_int_equal(wi_fault_acted(fixture->plan), 0);
    for (int kind = WI_FAULT_READ; kind < WI_FAULT_KINDS; kind++) {
        assert_true(wi_fault_seen(fixture->plan, (enum wi_fault_kind)kind) > 0);
        add(fixture,
            (struct wi_fault_rule){ .kind = (enum wi_fault_kind)kind, .error = -EPROTO });
    }
    call_all(fixture, true);
    assert_true(wi_fault_acted(fixture->plan) >= 25);
    tear_down(fixture);
}

/* An open that is done and then said to have failed must not leave a descriptor behind. */
static void fault__applied_open_leaks_nothing(void **state)
{
    struct fixture *fixture = set_up(wi_backend_null_open, NULL);
    int before = dup(fixture->fd);
    int after;

    (void)state;
    close(before);
    add(fixture,
        (struct wi_fault_rule){ .kind = WI_FAULT_OPEN, .error = -EIO, .applied = true });
    assert_int_equal(fixture->os->ops->openat(fixture->os, AT_FDCWD, scratch_path("made"),
                                              O_CREAT | O_RDWR, 0600),
                     -EIO);
    after = dup(fixture->fd);
    close(after);
    assert_int_equal(before, after);
    assert_int_equal(access(scratch_path("made"), F_OK), 0);
    tear_down(fixture);
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
        cmocka_unit_test(fault__acts_on_the_nth),
        cmocka_unit_test(fault__first_matching_rule_acts),
        cmocka_unit_test(fault__shortens),
        cmocka_unit_test(fault__corrupts_one_bit),
        cmocka_unit_test(fault__applied_errors_leave_their_mark),
        cmocka_unit_test(fault__delays),
        cmocka_unit_test(fault__holds_until_release),
        cmocka_unit_test(fault__release_wakes),
        cmocka_unit_test(fault__held_ones_can_be_cancelled),
        cmocka_unit_test(fault__descriptor_tells_of_held_ones),
        cmocka_unit_test(fault__reorders_by_seed),
        cmocka_unit_test(fault__records_the_last),
        cmocka_unit_test(fault__table_passes_through_and_fails),
        cmocka_unit_test(fault__applied_open_leaks_nothing),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
