/* SPDX-License-Identifier: MIT */
/*
 * lock.c - mutexes with ranks
 *
 * In debug builds each thread keeps the list of the locks it holds, the highest last, and
 * taking one that is not above all of them is an assertion: a cycle of locks is found on the
 * first run that takes them in the wrong order, not on the first that deadlocks. The list is
 * per thread, so the check itself needs no lock.
 *
 * Errors of pthread calls: all that are possible here are our own mistakes (a lock that is
 * not initialised, not held, held twice), so they are asserted and not returned. Clang's
 * analysis ends here, as it knows nothing of pthread's locks: WI_NO_ANALYSIS.
 */
#include <time.h>

#include "lock.h"

#ifdef WEIR_DEBUG

#define HELD_MAX 16

static _Thread_local struct {
    const struct wi_mutex *locks[HELD_MAX];
    unsigned count;
} held;

/* Before the lock is taken: when two threads are about to deadlock, one of them must speak. */
static void check_may_lock(const struct wi_mutex *mutex)
{
    WEIR_ASSERT(mutex->rank != WI_RANK_NONE);
    WEIR_ASSERT(held.count < HELD_MAX);
    if (held.count > 0)
        WEIR_ASSERT(mutex->rank > held.locks[held.count - 1]->rank);
}

static void note_locked(const struct wi_mutex *mutex)
{
    held.locks[held.count++] = mutex;
}

/* Locks may be released in any order; the list stays sorted by rank. */
static void note_unlocked(const struct wi_mutex *mutex)
{
    unsigned i = held.count;

    while (i > 0 && held.locks[i - 1] != mutex)
        i--;
    WEIR_ASSERT(i > 0);
    for (; i < held.count; i++)
        held.locks[i - 1] = held.locks[i];
    held.count--;
}

/* Waiting releases this lock only; whoever should wake us may need one of the others. */
static void check_may_wait(const struct wi_mutex *mutex)
{
    WEIR_ASSERT(held.count == 1 && held.locks[0] == mutex);
}

#else

static void check_may_lock(const struct wi_mutex *mutex)
{
    (void)mutex;
}

static void note_locked(const struct wi_mutex *mutex)
{
    (void)mutex;
}

static void note_unlocked(const struct wi_mutex *mutex)
{
    (void)mutex;
}

static void check_may_wait(const struct wi_mutex *mutex)
{
    (void)mutex;
}

#endif

void wi_mutex_init(struct wi_mutex *mutex, enum wi_lock_rank rank)
{
    int rc = pthread_mutex_init(&mutex->mutex, NULL);

    WEIR_ASSERT(rc == 0);
    mutex->rank = rank;
}

void wi_mutex_fini(struct wi_mutex *mutex)
{
    int rc = pthread_mutex_destroy(&mutex->mutex);

    WEIR_ASSERT(rc == 0);
}

WI_NO_ANALYSIS void wi_mutex_lock(struct wi_mutex *mutex)
{
    int rc;

    check_may_lock(mutex);
    rc = pthread_mutex_lock(&mutex->mutex);
    WEIR_ASSERT(rc == 0);
    note_locked(mutex);
}

WI_NO_ANALYSIS void wi_mutex_unlock(struct wi_mutex *mutex)
{
    int rc;

    note_unlocked(mutex);
    rc = pthread_mutex_unlock(&mutex->mutex);
    WEIR_ASSERT(rc == 0);
}

void wi_cond_init(struct wi_cond *cond)
{
    pthread_condattr_t attr;
    int rc = pthread_condattr_init(&attr);

    WEIR_ASSERT(rc == 0);
    rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    WEIR_ASSERT(rc == 0);
    rc = pthread_cond_init(&cond->cond, &attr);
    WEIR_ASSERT(rc == 0);
    pthread_condattr_destroy(&attr);
}

void wi_cond_fini(struct wi_cond *cond)
{
    int rc = pthread_cond_destroy(&cond->cond);

    WEIR_ASSERT(rc == 0);
}

WI_NO_ANALYSIS void wi_cond_wait(struct wi_cond *cond, struct wi_mutex *mutex)
{
    int rc;

    check_may_wait(mutex);
    rc = pthread_cond_wait(&cond->cond, &mutex->mutex);
    WEIR_ASSERT(rc == 0);
}

WI_NO_ANALYSIS bool wi_cond_wait_for(struct wi_cond *cond, struct wi_mutex *mutex,
                                     uint64_t timeout_ns)
{
    struct timespec until;
    uint64_t until_ns;
    int rc;

    check_may_wait(mutex);
    rc = clock_gettime(CLOCK_MONOTONIC, &until);
    WEIR_ASSERT(rc == 0);
    until_ns =
        wi_add_sat((uint64_t)until.tv_sec * WI_SEC_NS + (uint64_t)until.tv_nsec, timeout_ns);
    until.tv_sec = (time_t)(until_ns / WI_SEC_NS);
    until.tv_nsec = (long)(until_ns % WI_SEC_NS);
    rc = pthread_cond_timedwait(&cond->cond, &mutex->mutex, &until);
    WEIR_ASSERT(rc == 0 || rc == ETIMEDOUT);
    return rc == 0;
}

void wi_cond_signal(struct wi_cond *cond)
{
    int rc = pthread_cond_signal(&cond->cond);

    WEIR_ASSERT(rc == 0);
}

void wi_cond_broadcast(struct wi_cond *cond)
{
    int rc = pthread_cond_broadcast(&cond->cond);

    WEIR_ASSERT(rc == 0);
}
