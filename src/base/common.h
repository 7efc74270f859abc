/* SPDX-License-Identifier: MIT */
/*
 * common.h - assertions and a few words that every file uses
 */
#ifndef WEIR_BASE_COMMON_H
#define WEIR_BASE_COMMON_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

#include "banned.h"

/* Stays in release builds: going on could damage data. */
#define WEIR_ASSERT(cond) \
    (__builtin_expect(!!(cond), 1) ? (void)0 : wi_assert_failed(#cond, __FILE__, __LINE__))

/* Debug builds only, but always compiled, so it cannot rot. */
#ifdef WEIR_DEBUG
#define WEIR_DCHECK(cond) WEIR_ASSERT(cond)
#else
#define WEIR_DCHECK(cond) ((void)sizeof(!(cond)))
#endif

#define WI_CONTAINER_OF(ptr, type, member) \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define WI_ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))
#define WI_LIKELY(cond)     __builtin_expect(!!(cond), 1)
#define WI_UNLIKELY(cond)   __builtin_expect(!!(cond), 0)
#define WI_CACHE_LINE       64

#define WI_MSEC_NS 1000000u
#define WI_SEC_NS  1000000000u

/* Prints the reason on standard error and aborts. */
__attribute__((noreturn, cold)) void wi_assert_failed(const char *cond, const char *file,
                                                      int line);

static inline uint64_t wi_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t wi_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* a + b, or UINT64_MAX if that overflows. */
static inline uint64_t wi_add_sat(uint64_t a, uint64_t b)
{
    return a + b < a ? UINT64_MAX : a + b;
}

#endif
