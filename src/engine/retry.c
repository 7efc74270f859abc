/* SPDX-License-Identifier: MIT */
/*
 * retry.c - which results of a system call are worth another try
 *
 *   result                 read          write         sync    other
 *   EINTR                  10 at once    10 at once    never   10 at once
 *   EAGAIN                 10: one at once, then with back-off  never  never
 *   ENOMEM, EBUSY          10 with back-off            never   never
 *   ECANCELED unasked      once at once                never   once at once
 *   EIO                    2, 1 ms apart never         never   never
 *   anything else          never
 *
 * Back-off starts at 100 us and doubles up to 10 ms. A sync is never tried again: the kernel
 * drops the dirty marks when it reports the error, so a second one can succeed over lost
 * data. ECANCELED that nobody asked for is reported as EIO in the end, since -ECANCELED
 * promises that the caller wanted it. Short transfers are not errors: queue.c continues them.
 *
 * A device on which much fails must not get twice the work for it: retries with back-off
 * come out of a budget of the engine's, which starts with 256 and earns one for every ten
 * operations that end. With none left the result stands. What is tried again at once is
 * free: it is the kernel's way of saying "ask again", and no device has seen it.
 */
#include "engine_internal.h"

#define INTR_TRIES     10
#define BACKOFF_TRIES  10
#define EIO_TRIES      2
#define BACKOFF_NS     100000u
#define BACKOFF_MAX_NS 10000000u
#define RETRY_TENTHS   INT64_C(10)
#define BUDGET_TENTHS  (256 * RETRY_TENTHS)

void wi_retry_init(struct weir_engine *engine)
{
    atomic_store_explicit(&engine->gate.retry_tenths, BUDGET_TENTHS, memory_order_relaxed);
}

bool wi_retry_spend(struct weir_engine *engine)
{
    _Atomic int64_t *left = &engine->gate.retry_tenths;

    if (atomic_fetch_sub_explicit(left, RETRY_TENTHS, memory_order_relaxed) >= RETRY_TENTHS)
        return true;
    atomic_fetch_add_explicit(left, RETRY_TENTHS, memory_order_relaxed);
    return false;
}

void wi_retry_earn(struct weir_engine *engine, uint64_t completions)
{
    _Atomic int64_t *left = &engine->gate.retry_tenths;
    int64_t tenths = atomic_load_explicit(left, memory_order_relaxed);
    int64_t more = (int64_t)wi_min_u64(completions, BUDGET_TENTHS);

    /* Full, nearly always: then this only reads. */
    while (tenths < BUDGET_TENTHS &&
           !atomic_compare_exchange_weak_explicit(
               left, &tenths, tenths + more < BUDGET_TENTHS ? tenths + more : BUDGET_TENTHS,
               memory_order_relaxed, memory_order_relaxed))
        continue;
}

static uint64_t backoff_ns(uint32_t tries)
{
    return wi_min_u64((uint64_t)BACKOFF_NS << wi_min_u64(tries, 16), BACKOFF_MAX_NS);
}

struct retry_verdict wi_retry_verdict(uint32_t op, int64_t result, uint32_t tries)
{
    bool is_transfer = op_is_read(op) || op_is_write(op);
    struct retry_verdict verdict = { RETRY_NEVER, 0, (int32_t)result };

    if (result == -ECANCELED)
        verdict.code = -EIO;
    /* A second close could close somebody else's descriptor. */
    if (op_is_sync(op) || op == WEIR_OP_CLOSE || op == WEIR_OP_CALL)
        return verdict;

    switch (-result) {
    case EINTR:
        if (tries < INTR_TRIES)
            verdict.action = RETRY_NOW;
        break;
    case ECANCELED:
        if (tries < 1)
            verdict.action = RETRY_NOW;
        break;
    case EAGAIN:
        if (is_transfer && tries == 0) {
            verdict.action = RETRY_NOW;
            break;
        }
        __attribute__((fallthrough));
    case ENOMEM:
    case EBUSY:
        if (is_transfer && tries < BACKOFF_TRIES) {
            verdict.action = RETRY_LATER;
            verdict.delay_ns = backoff_ns(tries);
        }
        break;
    case EIO:
        if (op_is_read(op) && tries < EIO_TRIES) {
            verdict.action = RETRY_LATER;
            verdict.delay_ns = WI_MSEC_NS;
        }
        break;
    default:
        break;
    }
    return verdict;
}
