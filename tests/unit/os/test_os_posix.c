/* SPDX-License-Identifier: MIT */
/*
 * Shows that every entry of the os table does what its name says on real files, and answers
 * with a count, 0 or a negative errno.
 */
#include "os_test.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <unistd.h>

static const struct wi_os *os;

static int open_new(const char *name)
{
    int fd =
        os->ops->openat(os, AT_FDCWD, scratch_path(name), O_RDWR | O_CREAT | O_TRUNC, 0640);

    assert_true(fd >= 0);
    return fd;
}

static void close_fd(int fd)
{
    assert_int_equal(os->ops->close(os, fd), 0);
}

static struct statx stat_of(const char *name)
{
    struct statx st;

    assert_int_equal(os->ops->statx(os, AT_FDCWD, scratch_path(name), AT_SYMLINK_NOFOLLOW,
                                    STATX_BASIC_STATS, &st),
                     0);
    return st;
}

static void os_posix__tells_the_time(void **state)
{
    uint64_t before = os->ops->now_ns(os);
    int64_t real = os->ops->real_ns(os);
    struct timespec now;

    (void)state;
    assert_string_equal(os->ops->name, "posix");
    assert_int_equal(os->ops->sleep_ns(os, 2000000), 0);
    assert_true(os->ops->now_ns(os) >= before + 2000000);
    clock_gettime(CLOCK_REALTIME, &now);
    assert_true(real / 1000000000 <= now.tv_sec && real / 1000000000 > now.tv_sec - 3600);
    assert_int_equal(os->ops->sleep_ns(os, 0), 0);
}

static void os_posix__random_fills_all(void **state)
{
    unsigned char bytes[1000] = { 0 };
    bool seen_in_tail = false;

    (void)state;
    assert_int_equal(os->ops->random(os, bytes, sizeof(bytes)), 0);
    for (size_t i = 900; i < sizeof(bytes); i++)
        seen_in_tail = seen_in_tail || bytes[i] != 0;
    assert_true(seen_in_tail);
    assert_int_equal(os->ops->random(os, bytes, 0), 0);
}

static void os_posix__opens_and_closes(void **state)
{
    int fd = open_new("open");

    (void)state;
    assert_int_equal(os->ops->fcntl(os, fd, F_GETFD, 0) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(os->ops->fcntl(os, fd, F_GETFL, 0) & O_ACCMODE, O_RDWR);
    assert_int_equal(stat_of("open").stx_mode & 0777, 0640);
    close_fd(fd);
    assert_int_equal(os->ops->close(os, fd), -EBADF);
    assert_int_equal(os->ops->fcntl(os, fd, F_GETFD, 0), -EBADF);
    assert_int_equal(os->ops->openat(os, AT_FDCWD, scratch_path("missing"), O_RDONLY, 0),
                     -ENOENT);
    assert_int_equal(
        os->ops->openat(os, AT_FDCWD, scratch_path("open"), O_CREAT | O_EXCL, 0600), -EEXIST);
}

static void os_posix__moves_bytes(void **state)
{
    int fd = open_new("bytes");
    char a[8] = "abcdefg";
    char b[8] = "ABCDEFG";
    char got[32] = { 0 };
    struct iovec out[2] = { { a, 4 }, { b, 4 } };
    struct iovec in[2] = { { got, 3 }, { got + 16, 5 } };

    (void)state;
    assert_int_equal(os->ops->pwrite(os, fd, a, 7, 3), 7);
    assert_int_equal(os->ops->pread(os, fd, got, 32, 0), 10);
    assert_memory_equal(got, "\0\0\0abcdefg", 10);
    assert_int_equal(os->ops->pread(os, fd, got, 32, 10), 0);
    assert_int_equal(os->ops->pwritev2(os, fd, out, 2, 100, 0), 8);
    assert_int_equal(os->ops->preadv2(os, fd, in, 2, 100, 0), 8);
    assert_memory_equal(got, "abc", 3);
    assert_memory_equal(got + 16, "dABCD", 5);
    /* Past 4 GiB, and past what an off_t holds: never "at the file position". */
    assert_int_equal(os->ops->pwrite(os, fd, "x", 1, UINT64_C(5) << 30), 1);
    assert_int_equal(os->ops->pread(os, fd, got, 8, UINT64_C(5) << 30), 1);
    assert_int_equal(got[0], 'x');
    assert_int_equal(os->ops->pread(os, fd, got, 8, UINT64_MAX), -EINVAL);
    assert_int_equal(os->ops->pwrite(os, fd, got, 8, UINT64_MAX), -EINVAL);
    assert_int_equal(os->ops->preadv2(os, fd, in, 2, UINT64_MAX, 0), -EINVAL);
    assert_int_equal(os->ops->pwritev2(os, fd, out, 2, UINT64_MAX, 0), -EINVAL);
    assert_int_equal(os->ops->pread(os, -1, got, 8, 0), -EBADF);
    close_fd(fd);
}

static void os_posix__copies_and_shapes(void **state)
{
    int from = open_new("from");
    int to = open_new("to");
    char got[8];
    struct statfs fs;
    uint64_t cached = 0;
    int64_t copied;
    int rc;

    (void)state;
    assert_int_equal(os->ops->pwrite(os, from, "0123456789", 10, 0), 10);
    copied = os->ops->copy_range(os, from, 2, to, 100, 5);
    if (copied != -EXDEV && copied != -EOPNOTSUPP) {
        assert_int_equal(copied, 5);
        assert_int_equal(os->ops->pread(os, to, got, 8, 100), 5);
        assert_memory_equal(got, "23456", 5);
    }
    assert_int_equal(os->ops->fsync(os, to), 0);
    assert_int_equal(os->ops->fdatasync(os, to), 0);
    assert_int_equal(os->ops->fsync(os, -1), -EBADF);
    assert_int_equal(os->ops->fdatasync(os, -1), -EBADF);
    assert_int_equal(os->ops->ftruncate(os, to, 4321), 0);
    assert_int_equal(stat_of("to").stx_size, 4321);
    assert_int_equal(os->ops->ftruncate(os, to, UINT64_MAX), -EINVAL);
    rc = os->ops->fallocate(os, to, 0, 0, 8192);
    if (rc != -EOPNOTSUPP) {
        assert_int_equal(rc, 0);
        assert_int_equal(stat_of("to").stx_size, 8192);
    }
    assert_int_equal(os->ops->fadvise(os, to, 0, 0, POSIX_FADV_SEQUENTIAL), 0);
    assert_int_equal(os->ops->fadvise(os, -1, 0, 0, POSIX_FADV_SEQUENTIAL), -EBADF);
    assert_int_equal(os->ops->lseek(os, to, 0, SEEK_END), stat_of("to").stx_size);
    assert_int_equal(os->ops->lseek(os, to, -1, SEEK_SET), -EINVAL);
    assert_int_equal(os->ops->fstatfs(os, to, &fs), 0);
    assert_true(fs.f_bsize > 0);
    assert_int_equal(os->ops->fstatfs(os, -1, &fs), -EBADF);
    rc = wi_os_cached(os, from, 0, 10, &cached);
    if (rc != -ENOSYS) {
        assert_int_equal(rc, 0);
        assert_true(cached > 0);
    }
    rc = wi_os_clone(os, from, to);
    assert_true(rc == 0 || rc == -EOPNOTSUPP || rc == -ENOTTY || rc == -EINVAL);
    close_fd(from);
    close_fd(to);
}

static void os_posix__changes_attributes(void **state)
{
    struct timespec times[2] = { { .tv_sec = 1000 }, { .tv_sec = 2000, .tv_nsec = 5 } };
    int fd = open_new("attributes");

    (void)state;
    assert_int_equal(os->ops->fchmod(os, fd, 0604), 0);
    assert_int_equal(stat_of("attributes").stx_mode & 0777, 0604);
    assert_int_equal(os->ops->fchmodat(os, AT_FDCWD, scratch_path("attributes"), 0611), 0);
    assert_int_equal(stat_of("attributes").stx_mode & 0777, 0611);
    assert_int_equal(os->ops->fchmodat(os, AT_FDCWD, scratch_path("missing"), 0611), -ENOENT);
    assert_int_equal(os->ops->utimensat(os, fd, NULL, times, 0), 0);
    assert_int_equal(stat_of("attributes").stx_mtime.tv_sec, 2000);
    times[1].tv_sec = 3000;
    assert_int_equal(os->ops->utimensat(os, AT_FDCWD, scratch_path("attributes"), times, 0), 0);
    assert_int_equal(stat_of("attributes").stx_mtime.tv_sec, 3000);
    assert_int_equal(os->ops->utimensat(os, AT_FDCWD, scratch_path("missing"), times, 0),
                     -ENOENT);
    close_fd(fd);
}

static void os_posix__locks(void **state)
{
    int fd = open_new("lock");
    int other = os->ops->openat(os, AT_FDCWD, scratch_path("lock"), O_RDWR, 0);

    (void)state;
    assert_true(other >= 0);
    assert_int_equal(os->ops->flock(os, fd, LOCK_EX), 0);
    assert_int_equal(os->ops->flock(os, other, LOCK_EX | LOCK_NB), -EWOULDBLOCK);
    assert_int_equal(os->ops->flock(os, fd, LOCK_UN), 0);
    assert_int_equal(os->ops->flock(os, other, LOCK_EX | LOCK_NB), 0);
    close_fd(fd);
    close_fd(other);
}

static void os_posix__changes_names(void **state)
{
    char target[16] = { 0 };
    int dir;

    (void)state;
    assert_int_equal(os->ops->mkdirat(os, AT_FDCWD, scratch_path("dir"), 0700), 0);
    assert_int_equal(os->ops->mkdirat(os, AT_FDCWD, scratch_path("dir"), 0700), -EEXIST);
    dir = os->ops->openat(os, AT_FDCWD, scratch_path("dir"), O_RDONLY | O_DIRECTORY, 0);
    assert_true(dir >= 0);
    close_fd(open_new("dir/a"));
    assert_int_equal(os->ops->renameat2(os, dir, "a", dir, "b", RENAME_NOREPLACE), 0);
    assert_int_equal(os->ops->linkat(os, dir, "b", dir, "c", 0), 0);
    assert_int_equal(stat_of("dir/b").stx_nlink, 2);
    assert_int_equal(os->ops->renameat2(os, dir, "b", dir, "c", RENAME_NOREPLACE), -EEXIST);
    assert_int_equal(os->ops->symlinkat(os, "c", dir, "link"), 0);
    assert_int_equal(os->ops->readlinkat(os, dir, "link", target, sizeof(target)), 1);
    assert_int_equal(target[0], 'c');
    assert_int_equal(os->ops->readlinkat(os, dir, "c", target, sizeof(target)), -EINVAL);
    assert_int_equal(os->ops->unlinkat(os, AT_FDCWD, scratch_path("dir"), AT_REMOVEDIR),
                     -ENOTEMPTY);
    assert_int_equal(os->ops->unlinkat(os, dir, "link", 0), 0);
    assert_int_equal(os->ops->unlinkat(os, dir, "b", 0), 0);
    assert_int_equal(os->ops->unlinkat(os, dir, "c", 0), 0);
    assert_int_equal(os->ops->unlinkat(os, dir, "c", 0), -ENOENT);
    close_fd(dir);
    assert_int_equal(os->ops->unlinkat(os, AT_FDCWD, scratch_path("dir"), AT_REMOVEDIR), 0);
    assert_int_equal(os->ops->symlinkat(os, "x", AT_FDCWD, scratch_path("no/x")), -ENOENT);
    assert_int_equal(os->ops->linkat(os, AT_FDCWD, "no", AT_FDCWD, "no2", 0), -ENOENT);
}

static void os_posix__lists_directories(void **state)
{
    _Alignas(struct dirent64) char buf[1024];
    uint32_t found = 0;
    int64_t got;
    int dir;

    (void)state;
    assert_int_equal(os->ops->mkdirat(os, AT_FDCWD, scratch_path("list"), 0700), 0);
    close_fd(open_new("list/one"));
    close_fd(open_new("list/two"));
    dir = os->ops->openat(os, AT_FDCWD, scratch_path("list"), O_RDONLY | O_DIRECTORY, 0);
    assert_true(dir >= 0);
    while ((got = os->ops->getdents(os, dir, buf, sizeof(buf))) > 0) {
        for (int64_t at = 0; at < got;) {
            struct dirent64 *entry = (struct dirent64 *)(void *)(buf + at);

            found += strcmp(entry->d_name, "one") == 0 || strcmp(entry->d_name, "two") == 0;
            at += entry->d_reclen;
        }
    }
    assert_int_equal(got, 0);
    assert_int_equal(found, 2);
    close_fd(dir);
    assert_int_equal(os->ops->getdents(os, dir, buf, sizeof(buf)), -EBADF);
}

static int begin(void **state)
{
    (void)state;
    os = wi_os_posix();
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
        cmocka_unit_test(os_posix__tells_the_time),
        cmocka_unit_test(os_posix__random_fills_all),
        cmocka_unit_test(os_posix__opens_and_closes),
        cmocka_unit_test(os_posix__moves_bytes),
        cmocka_unit_test(os_posix__copies_and_shapes),
        cmocka_unit_test(os_posix__changes_attributes),
        cmocka_unit_test(os_posix__locks),
        cmocka_unit_test(os_posix__changes_names),
        cmocka_unit_test(os_posix__lists_directories),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
