/* SPDX-License-Identifier: MIT */
/*
 * trees.h - make, compare and look through trees of files
 */
#ifndef WEIR_TESTS_COPY_TREES_H
#define WEIR_TESTS_COPY_TREES_H

#include "support/support.h"

/* "a/b". Inside; kept until the process ends. */
const char *join(const char *dir, const char *name);

void make_dir(const char *path, unsigned mode);
void make_text(const char *path, const char *text);
/* The whole file as text; one buffer. "" if it is not there. */
const char *text_of(const char *path);
bool exists(const char *path);

/* Names, types, modes, times of files and directories in nanoseconds, contents, targets of
 * links: fails the test at the first difference. */
void check_same_trees(const char *a, const char *b);
/* How many names below `dir` have ".weir-tmp" in them. */
size_t count_temporaries(const char *dir);
/* A small tree with all there is: files of several sizes, links, directories, modes. */
void make_tree(const char *dir, uint64_t seed);

#endif
