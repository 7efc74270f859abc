/* SPDX-License-Identifier: MIT */
/*
 * cpu.h - how many processors we may use
 */
#ifndef WEIR_BASE_CPU_H
#define WEIR_BASE_CPU_H

#include "common.h"

/* Bounded by the affinity mask and the cgroup's quota (v2 cpu.max, v1 cfs quota), rounded up;
 * at least 1. Reads a few files under /proc and /sys. Thread: any. */
uint32_t wi_cpu_count(void);

#endif
