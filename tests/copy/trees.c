/* SPDX-License-Identifier: MIT */
/*
 * trees.c - make, compare and look through trees of files
 */
#include "trees.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *join(const char *dir, const char *name)
{
    static struct kept {
        struct kept *next;
        char text[];
    } * all;
    size_t size = strlen(dir) + strlen(name) + 2;
    struct kept *kept = malloc(sizeof(*kept) + size);

    if (!kept)
        fail_msg("no memory");
    (void)snprintf(kept->text, size, "%s/%s", dir, name);
    kept->next = all;
    all = kept;
    return kept->text;
}

void make_dir(const char *path, unsigned mode)
{
    if (mkdir(path, 0700) != 0 || chmod(path, mode) != 0)
        fail_msg("mkdir %s: %s", path, strerror(errno));
}

void make_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        fail_msg("make %s: %s", path, strerror(errno));
    close(fd);
}

const char *text_of(const char *path)
{
    static char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = '\0';
    return text;
}

bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a directory, sorted. */
static char **names_in(const char *dir, size_t *ret_count)
{
    DIR *from = opendir(dir);
    char **names = NULL;
    struct dirent *entry;
    size_t count = 0;

    if (!from)
        fail_msg("opendir %s: %s", dir, strerror(errno));
    while ((entry = readdir(from)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        names = realloc(names, (count + 1) * sizeof(*names));
        names[count++] = strdup(entry->d_name);
    }
    closedir(from);
    if (count > 1)
        qsort(names, count, sizeof(*names), compare_names);
    *ret_count = count;
    return names;
}

static void free_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

static void check_same_bytes(const char *a, const char *b)
{
    static unsigned char x[65536];
    static unsigned char y[65536];
    int from = open(a, O_RDONLY | O_CLOEXEC);
    int to = open(b, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (from < 0 || to < 0)
        fail_msg("open %s, %s: %s", a, b, strerror(errno));
    do {
        got = read(from, x, sizeof(x));
        if (read(to, y, sizeof(y)) != got || (got > 0 && memcmp(x, y, (size_t)got) != 0))
            fail_msg("%s and %s differ", a, b);
    } while (got > 0);
    close(from);
    close(to);
}

void check_same_trees(const char *a, const char *b)
{
    struct stat x;
    struct stat y;

    if (lstat(a, &x) != 0)
        fail_msg("%s: %s", a, strerror(errno));
    if (lstat(b, &y) != 0)
        fail_msg("%s: %s", b, strerror(errno));
    if (x.st_mode != y.st_mode)
        fail_msg("%s has mode %o, its copy %o", a, x.st_mode, y.st_mode);
    if (x.st_mtim.tv_sec != y.st_mtim.tv_sec || x.st_mtim.tv_nsec != y.st_mtim.tv_nsec)
        fail_msg("%s and its copy have different times", a);
    if (S_ISREG(x.st_mode)) {
        if (x.st_size != y.st_size)
            fail_msg("%s and its copy have different sizes", a);
        check_same_bytes(a, b);
    } else if (S_ISLNK(x.st_mode)) {
        char s[4096];
        char t[4096];
        ssize_t m = readlink(a, s, sizeof(s));
        ssize_t n = readlink(b, t, sizeof(t));

        if (m < 0 || m != n || memcmp(s, t, (size_t)m) != 0)
            fail_msg("%s and its copy have different targets", a);
    } else if (S_ISDIR(x.st_mode)) {
        size_t count_a;
        size_t count_b;
        char **names_a = names_in(a, &count_a);
        char **names_b = names_in(b, &count_b);

        for (size_t i = 0; i < count_a || i < count_b; i++) {
            char sub_a[4096];
            char sub_b[4096];

            if (i >= count_a || i >= count_b || strcmp(names_a[i], names_b[i]) != 0)
                fail_msg("%s has %s where its copy has %s", a,
                         i < count_a ? names_a[i] : "none", i < count_b ? names_b[i] : "none");
            (void)snprintf(sub_a, sizeof(sub_a), "%s/%s", a, names_a[i]);
            (void)snprintf(sub_b, sizeof(sub_b), "%s/%s", b, names_b[i]);
            check_same_trees(sub_a, sub_b);
        }
        free_names(names_a, count_a);
        free_names(names_b, count_b);
    }
}

size_t count_temporaries(const char *dir)
{
    size_t count;
    char **names = names_in(dir, &count);
    size_t found = 0;

    for (size_t i = 0; i < count; i++) {
        char path[4096];
        struct stat st;

        found += strstr(names[i], ".weir-tmp") != NULL;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
            found += count_temporaries(path);
    }
    free_names(names, count);
    return found;
}

static void set_time(const char *path, int64_t sec, long nsec)
{
    const struct timespec times[2] = { { 1000000000, 1 }, { sec, nsec } };

    if (utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) != 0)
        fail_msg("utimensat %s: %s", path, strerror(errno));
}

void make_tree(const char *dir, uint64_t seed)
{
    static const size_t sizes[] = { 0, 1, 4095, 4096, 5000, 100000, (1u << 20) + 77 };

    make_dir(dir, 0755);
    make_dir(join(dir, "empty"), 0711);
    make_dir(join(dir, "sub"), 0750);
    make_dir(join(dir, "sub/deeper"), 0700);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        char name[64];

        (void)snprintf(name, sizeof(name), "%s%zu", i % 2 ? "sub/f" : "sub/deeper/f", sizes[i]);
        pattern_make_file(join(dir, name), sizes[i], seed + i);
        (void)chmod(join(dir, name), i % 3 ? 0644 : 0400);
        set_time(join(dir, name), (int64_t)(1234567890 + i), (long)(123456789 - i));
    }
    if (symlink("sub/f1", join(dir, "link")) != 0 ||
        symlink("/nowhere/at/all", join(dir, "sub/dangling")) != 0)
        fail_msg("symlink: %s", strerror(errno));
    set_time(join(dir, "link"), 1111111111, 999999999);
    set_time(join(dir, "sub/deeper"), 1222222222, 7);
    set_time(join(dir, "sub"), 1333333333, 8);
    set_time(join(dir, "empty"), 1444444444, 9);
    set_time(dir, 1555555555, 10);
}
