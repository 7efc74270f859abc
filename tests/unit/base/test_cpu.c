/* SPDX-License-Identifier: MIT */
#include <sched.h>
#include <sys/stat.h>

#include "base/cpu_internal.h"
#include "base_test.h"

/* A root with /proc and /sys of its own, on disk. */
static char root[256];

static int make_root(void **state)
{
    const char *dir = getenv("WEIR_TEST_DIR");

    (void)state;
    if (!dir)
        dir = getenv("TMPDIR");
    snprintf(root, sizeof(root), "%s/weir-cpu-XXXXXX", dir ? dir : "/var/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[512];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

/* Write a file under the root, with the folders above it. */
static void put(const char *path, const char *text)
{
    char whole[512];
    FILE *file;

    snprintf(whole, sizeof(whole), "%s%s", root, path);
    for (char *c = whole + strlen(root) + 1; *c; c++) {
        if (*c != '/')
            continue;
        *c = '\0';
        mkdir(whole, 0700);
        *c = '/';
    }
    file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void put_v2(const char *group)
{
    char text[128];

    snprintf(text, sizeof(text), "0::%s\n", group);
    put("/proc/self/cgroup", text);
    put("/proc/self/mountinfo",
        "22 1 8:1 / / rw - ext4 /dev/root rw\n"
        "31 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
}

/* At least one, and not more than the affinity mask has, which follows sched_setaffinity. */
static void cpu__count_follows_the_mask(void **state)
{
    cpu_set_t before;
    cpu_set_t one;
    size_t first = 0;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(wi_cpu_affinity_count(), CPU_COUNT(&before));
    assert_true(wi_cpu_count() >= 1);
    assert_true(wi_cpu_count() <= (uint32_t)CPU_COUNT(&before));
    while (!CPU_ISSET(first, &before))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(wi_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

/* Nothing readable: nothing bounds us. */
static void cpu__no_proc_is_no_quota(void **state)
{
    (void)state;
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX);
    put("/proc/self/mountinfo", "garbage\n- - -\n a - cgroup2\n\n31 22 0:26 - cgroup2 x rw\n");
    put("/proc/self/cgroup", "\n:\n0:\nx\n");
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX);
}

/* Rounded up; "max" is none; the smallest of ours and our parents' counts. */
static void cpu__quota_of_v2(void **state)
{
    (void)state;
    put_v2("/a/b");
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX);
    put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX);
    put("/sys/fs/cgroup/a/b/cpu.max", "350000 100000\n");
    assert_int_equal(wi_cpu_quota(root), 4);
    put("/sys/fs/cgroup/a/cpu.max", "200000 100000\n");
    assert_int_equal(wi_cpu_quota(root), 2);
    put("/sys/fs/cgroup/a/cpu.max", "900000 100000\n");
    put("/sys/fs/cgroup/cpu.max", "1000 100000\n");
    assert_int_equal(wi_cpu_quota(root), 1);
    put("/sys/fs/cgroup/cpu.max", "0 0\n");
    assert_int_equal(wi_cpu_quota(root), 4);
}

/* A container: only a part of the tree is mounted, or our path is not below it. */
static void cpu__quota_in_a_container(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/docker/0123/job\n");
    put("/proc/self/mountinfo",
        "31 22 0:26 /docker/0123 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/cpu.max", "300000 100000\n");
    put("/sys/fs/cgroup/job/cpu.max", "150000 100000\n");
    assert_int_equal(wi_cpu_quota(root), 2);
    put("/proc/self/cgroup", "0::/not/here\n");
    assert_int_equal(wi_cpu_quota(root), 3);
    put("/proc/self/cgroup", "0::/docker/01234/job\n"); /* a longer name is another group */
    assert_int_equal(wi_cpu_quota(root), 3);
}

static void cpu__quota_of_v1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "5:memory:/m\n4:cpuacct,cpu:/a\n3:cpuset:/\n0::/\n");
    put("/proc/self/mountinfo",
        "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX);
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "250000\n");
    assert_int_equal(wi_cpu_quota(root), UINT32_MAX); /* half of it is no quota */
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "50000\n");
    assert_int_equal(wi_cpu_quota(root), 5);
    put("/sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n"); /* not this tree */
    put("/sys/fs/cgroup/cpuset/cpu.cfs_period_us", "1\n");
    assert_int_equal(wi_cpu_quota(root), 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu__count_follows_the_mask),
        cmocka_unit_test_setup_teardown(cpu__no_proc_is_no_quota, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cpu__quota_of_v2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cpu__quota_in_a_container, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cpu__quota_of_v1, make_root, remove_root),
    };

    return cmocka_run_group_tests_name("cpu", tests, NULL, NULL);
}
