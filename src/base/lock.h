/* SPDX-License-Identifier: MIT */
/*
 * lock.h - mutexes with ranks, and the annotations that clang checks
 *
 * Each mutex has a rank (lock_rank.h). A thread may only take a lock of a higher rank than
 * those it holds; debug builds (WEIR_DEBUG) check that. In release it is a plain mutex.
 */
#ifndef WEIR_BASE_LOCK_H
#define WEIR_BASE_LOCK_H

#include <pthread.h>

#include "common.h"
#include "lock_rank.h"

#if defined(__clang__)
#define WI_CAPABILITY(name) __attribute__((capability(name)))
#define WI_REQUIRES(lock)   __attribute__((requires_capability(lock)))
#define WI_ACQUIRES(lock)   __attribute__((acquire_capability(lock)))
#define WI_RELEASES(lock)   __attribute__((release_capability(lock)))
#define WI_NO_ANALYSIS      __attribute__((no_thread_safety_analysis)) /* say why */
#else
#define WI_CAPABILITY(name)
#define WI_REQUIRES(lock)
#define WI_ACQUIRES(lock)
#define WI_RELEASES(lock)
#define WI_NO_ANALYSIS
#endif

struct WI_CAPABILITY("mutex") wi_mutex {
    pthread_mutex_t mutex;
    enum wi_lock_rank rank;
};

void wi_mutex_init(struct wi_mutex *mutex, enum wi_lock_rank rank);
void wi_mutex_fini(struct wi_mutex *mutex);
void wi_mutex_lock(struct wi_mutex *mutex) WI_ACQUIRES(*mutex);
void wi_mutex_unlock(struct wi_mutex *mutex) WI_RELEASES(*mutex);

struct wi_cond {
    pthread_cond_t cond; /* waits on the monotonic clock */
};

void wi_cond_init(struct wi_cond *cond);
void wi_cond_fini(struct wi_cond *cond);
void wi_cond_wait(struct wi_cond *cond, struct wi_mutex *mutex) WI_REQUIRES(*mutex);
/* Returns false after `timeout_ns`. */
bool wi_cond_wait_for(struct wi_cond *cond, struct wi_mutex *mutex, uint64_t timeout_ns)
    WI_REQUIRES(*mutex);
void wi_cond_signal(struct wi_cond *cond);
void wi_cond_broadcast(struct wi_cond *cond);

#endif
