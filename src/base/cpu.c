/* SPDX-License-Identifier: MIT */
/*
 * cpu.c - how many processors we may use
 *
 * Two things bound them. The affinity mask, which sched_getaffinity tells. And the quota of
 * the cgroup: so many microseconds of processor time in each period. It is set on our own
 * cgroup or on any of its parents, and the smallest counts:
 *
 *   /proc/self/cgroup      which group we are in      "0::/a/b" (v2), "4:cpu,cpuacct:/a" (v1)
 *   /proc/self/mountinfo   where its tree is mounted, and which part of it ("root")
 *   <mount>/a/b/cpu.max    v2: "150000 100000", or "max 100000"
 *   <mount>/a/cpu.cfs_quota_us, cpu.cfs_period_us     v1: 150000 and 100000, or -1
 *
 * In a container the part of the tree that is mounted may not be where /proc/self/cgroup
 * says we are; levels that are not there are passed over. Everything here is best effort:
 * what cannot be read does not bound us.
 *
 * This reads files without the os table. It runs once, before there is an engine, on files
 * that are no storage.
 */
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "cpu_internal.h"

#define NO_QUOTA  UINT32_MAX
#define PATH_ROOM 512 /* longer names are passed over */
#define LINE_ROOM 2048

/* --- affinity ----------------------------------------------------------------------------- */

uint32_t wi_cpu_affinity_count(void)
{
    /* The kernel wants room for all it could have, not for all that are there. */
    for (int cpus = 1024; cpus <= 1 << 18; cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        size_t size = CPU_ALLOC_SIZE((size_t)cpus);
        int count = 0;
        bool too_small = false;

        if (!set)
            return 1;
        if (sched_getaffinity(0, size, set) == 0)
            count = CPU_COUNT_S(size, set);
        else
            too_small = errno == EINVAL;
        CPU_FREE(set);
        if (!too_small)
            return count > 0 ? (uint32_t)count : 1;
    }
    return 1;
}

/* --- quota -------------------------------------------------------------------------------- */

/* The beginning of a small file as text. Returns false if it is not there. */
static bool read_text(const char *path, char *buf, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t len = 0;
    ssize_t got = -1;

    if (fd < 0)
        return false;
    while (len < size - 1) {
        got = read(fd, buf + len, size - 1 - len);
        if (got <= 0)
            break;
        len += (size_t)got;
    }
    close(fd);
    buf[len] = '\0';
    return got >= 0;
}

static uint32_t cpus_of_quota(long long quota_us, long long period_us)
{
    long long cpus;

    if (quota_us <= 0 || period_us <= 0)
        return NO_QUOTA; /* "max", -1 or nonsense */
    cpus = quota_us / period_us + (quota_us % period_us != 0);
    return cpus < NO_QUOTA ? (uint32_t)cpus : NO_QUOTA;
}

/* Returns false if the file is not there or holds no number. */
static bool read_number(const char *dir, const char *name, long long *ret_number)
{
    char path[PATH_ROOM];
    char text[64];
    char *end;
    long long number;

    if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path) ||
        !read_text(path, text, sizeof(text)))
        return false;
    number = strtoll(text, &end, 10);
    if (end == text)
        return false;
    *ret_number = number;
    return true;
}

static uint32_t quota_v1(const char *dir)
{
    long long quota_us;
    long long period_us;

    if (!read_number(dir, "cpu.cfs_quota_us", &quota_us) ||
        !read_number(dir, "cpu.cfs_period_us", &period_us))
        return NO_QUOTA;
    return cpus_of_quota(quota_us, period_us);
}

static uint32_t quota_v2(const char *dir)
{
    char path[PATH_ROOM];
    char text[64];
    char *end;
    long long quota_us;

    if (snprintf(path, sizeof(path), "%s/cpu.max", dir) >= (int)sizeof(path) ||
        !read_text(path, text, sizeof(text)))
        return NO_QUOTA;
    quota_us = strtoll(text, &end, 10);
    if (end == text)
        return NO_QUOTA; /* "max" */
    return cpus_of_quota(quota_us, strtoll(end, NULL, 10));
}

/* The smallest quota of `group` below `mount` and of its parents there. */
static uint32_t quota_up(const char *mount, const char *group, bool v2)
{
    char dir[PATH_ROOM];
    size_t mount_len = strlen(mount);
    uint32_t cpus = NO_QUOTA;

    if (snprintf(dir, sizeof(dir), "%s%s", mount, group) >= (int)sizeof(dir))
        return NO_QUOTA;
    for (;;) {
        char *slash;

        cpus = (uint32_t)wi_min_u64(cpus, v2 ? quota_v2(dir) : quota_v1(dir));
        slash = strrchr(dir + mount_len, '/');
        if (!slash)
            return cpus;
        *slash = '\0';
    }
}

/* Does a list like "cpu,cpuacct" name `word`? */
static bool list_has(const char *list, const char *word)
{
    size_t word_len = strlen(word);

    while (*list) {
        size_t len = strcspn(list, ",");

        if (len == word_len && memcmp(list, word, len) == 0)
            return true;
        list += len + (list[len] == ',');
    }
    return false;
}

/* The group we are in, from /proc/self/cgroup: "" for the root, and if it is not known. */
static void find_group(const char *root, bool v2, char *group, size_t size)
{
    char path[PATH_ROOM];
    char text[LINE_ROOM];
    char *rest = text;
    char *line;

    group[0] = '\0';
    if (snprintf(path, sizeof(path), "%s/proc/self/cgroup", root) >= (int)sizeof(path) ||
        !read_text(path, text, sizeof(text)))
        return;
    while ((line = strsep(&rest, "\n")) != NULL) {
        char *number = strsep(&line, ":");
        char *list = strsep(&line, ":");

        if (!list || !line)
            continue;
        if (v2 ? strcmp(number, "0") == 0 && !*list : list_has(list, "cpu")) {
            if (strcmp(line, "/") != 0)
                snprintf(group, size, "%s", line);
            return;
        }
    }
}

/*
 * One line of mountinfo: "31 23 0:28 ROOT MOUNT rw,relatime ... - TYPE SOURCE OPTIONS".
 * Blanks in names come as \040; a cgroup tree mounted under such a name is not found.
 * Returns false if it is no cgroup tree with processors in it.
 */
static bool parse_mount(char *line, char **ret_root, char **ret_mount, bool *ret_v2)
{
    char *fields[5];
    char *tail = strstr(line, " - ");
    char *type;
    char *options;

    if (!tail)
        return false;
    *tail = '\0';
    tail += 3;
    for (size_t i = 0; i < WI_ARRAY_LEN(fields); i++) {
        fields[i] = strsep(&line, " ");
        if (!fields[i])
            return false;
    }
    type = strsep(&tail, " ");
    strsep(&tail, " ");
    options = tail;
    *ret_root = fields[3];
    *ret_mount = fields[4];
    *ret_v2 = strcmp(type, "cgroup2") == 0;
    return *ret_v2 || (strcmp(type, "cgroup") == 0 && options && list_has(options, "cpu"));
}

static uint32_t quota_of_mount(const char *root, char *line)
{
    char group[PATH_ROOM];
    char mount[PATH_ROOM];
    const char *below = group;
    char *tree_root;
    char *tree_mount;
    size_t root_len;
    bool v2;

    if (!parse_mount(line, &tree_root, &tree_mount, &v2) ||
        snprintf(mount, sizeof(mount), "%s%s", root, tree_mount) >= (int)sizeof(mount))
        return NO_QUOTA;
    find_group(root, v2, group, sizeof(group));

    /* Only a part of the tree is mounted: our place is counted from there. */
    root_len = strcmp(tree_root, "/") == 0 ? 0 : strlen(tree_root);
    if (strncmp(group, tree_root, root_len) == 0 &&
        (group[root_len] == '/' || group[root_len] == '\0'))
        below += root_len;
    return quota_up(mount, below, v2);
}

uint32_t wi_cpu_quota(const char *root)
{
    char path[PATH_ROOM];
    char line[LINE_ROOM];
    uint32_t cpus = NO_QUOTA;
    FILE *file;

    if (snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root) >= (int)sizeof(path))
        return NO_QUOTA;
    file = fopen(path, "re");
    if (!file)
        return NO_QUOTA;
    while (fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        cpus = (uint32_t)wi_min_u64(cpus, quota_of_mount(root, line));
    }
    (void)fclose(file); /* nothing was written */
    return cpus;
}

uint32_t wi_cpu_count(void)
{
    return (uint32_t)wi_min_u64(wi_cpu_affinity_count(), wi_cpu_quota(""));
}
