/* SPDX-License-Identifier: MIT */
/*
 * value_cache.h - weir_cache with a clock of the caller's
 */
#ifndef WEIR_ENGINE_VALUE_CACHE_H
#define WEIR_ENGINE_VALUE_CACHE_H

#include <weir/cache.h>

#include "os/os.h"

/* weir_cache_open() on another os table, for its clock; borrowed until close. */
int wi_value_cache_open(const struct weir_cache_options *options, const struct wi_os *os,
                        struct weir_cache **ret_cache);

#endif
