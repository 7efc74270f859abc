/* SPDX-License-Identifier: MIT */
/*
 * error.h - fill the caller's error record
 */
#ifndef WEIR_BASE_ERROR_H
#define WEIR_BASE_ERROR_H

#include <stdarg.h>

#include "common.h"

/*
 * Clear and fill `error`, which may be NULL. `path` may be NULL. With `format` NULL the text
 * is that of `code`. Returns `code`, so that a caller can end with it.
 */
__attribute__((format(printf, 5, 6))) int wi_error_set(struct weir_error *error, int64_t code,
                                                       uint32_t op, const char *path,
                                                       const char *format, ...);

#endif
