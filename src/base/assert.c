/* SPDX-License-Identifier: MIT */
/*
 * assert.c - the end, when we are wrong
 *
 * The one place where the library writes to standard error, and the one where it ends the
 * process: what it believed is false, so nothing it could return can be trusted.
 */
#include <unistd.h>

#include "common.h"

void wi_assert_failed(const char *cond, const char *file, int line)
{
    char text[512];
    int len = snprintf(text, sizeof(text), "weir %s: %s:%d: assertion failed: %s\n",
                       WEIR_VERSION, file, line, cond);
    size_t size = len < 0 ? 0 : wi_min_u64((uint64_t)len, sizeof(text) - 1);

    /* One write, without stdio's lock, which this thread may hold. */
    if (write(STDERR_FILENO, text, size) < 0)
        abort();
    abort();
}
