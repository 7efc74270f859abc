/* SPDX-License-Identifier: MIT */
/*
 * cpu_internal.h - the counting of processors, in parts that tests can reach
 */
#ifndef WEIR_BASE_CPU_INTERNAL_H
#define WEIR_BASE_CPU_INTERNAL_H

#include "cpu.h"

/* The processors that the quota of our cgroup and of its parents amounts to, rounded up;
 * UINT32_MAX if there is none. `root` stands before /proc and /sys; "" for the real ones. */
uint32_t wi_cpu_quota(const char *root);

/* In the affinity mask of the calling thread; at least 1. */
uint32_t wi_cpu_affinity_count(void);

#endif
