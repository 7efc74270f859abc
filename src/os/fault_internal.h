/* SPDX-License-Identifier: MIT */
/*
 * fault_internal.h - the plan, as the three files of the injector share it
 *
 *   fault.c          the plan: rules, verdicts, records; clipping and spoiling
 *   fault_os.c       the wrapped table
 *   fault_backend.c  the wrapped backends
 */
#ifndef WEIR_OS_FAULT_INTERNAL_H
#define WEIR_OS_FAULT_INTERNAL_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "base/list.h"
#include "base/lock.h"
#include "fault.h"

struct fault_rule;

/* A wrapped backend, as the plan knows it. */
struct fault_wrapped {
    struct wi_list node; /* guarded by plan->mu */
    struct wi_backend *inner;
};

struct wi_fault_plan {
    struct wi_os os; /* the wrapped table; first, so that the table finds its plan */
    /* Set at creation. */
    const struct wi_os *inner;

    struct wi_mutex mu;
    struct wi_cond changed; /* with every release */
    /* Guarded by mu. */
    struct fault_rule *first_rule;
    struct fault_rule **last_link; /* where the next rule is hung */
    struct wi_list wrapped;        /* struct fault_wrapped */
    uint64_t seen[WI_FAULT_KINDS];
    uint64_t acted;
    uint64_t order;
    uint64_t chance; /* for the order of completions; 0: as they come */
    struct wi_fault_record *records;
    size_t records_room;
    uint64_t records_count; /* ever; the newest are kept */

    /* Atomic: how often wi_fault_release was called; release/acquire. */
    _Atomic uint64_t releases;
};

/* What is to become of one operation. */
struct verdict {
    struct wi_fault_record record; /* `result` filled at the end */
    struct wi_fault_rule rule;     /* all zero: nothing */
    uint64_t releases;             /* when it started */
};

extern const struct wi_os_ops wi_fault_os_ops;

/* An operation starts: what is to become of it? Counts it. */
void wi_fault_judge(struct wi_fault_plan *plan, enum wi_fault_kind kind, int fd,
                    uint64_t offset, uint64_t len, struct verdict *ret_verdict);

/* It ends: returns the result that is to be seen, and records it. */
int64_t wi_fault_conclude(struct wi_fault_plan *plan, struct verdict *verdict, int64_t result);

/* The next number for the order of completions; 0 if they come as they come. */
uint64_t wi_fault_next_chance(struct wi_fault_plan *plan);

/* Is the operation to be done at all? */
static inline bool wi_fault_is_to_do(const struct verdict *verdict)
{
    return verdict->rule.error >= 0 || verdict->rule.applied;
}

/* Was wi_fault_release called since it started? */
static inline bool wi_fault_is_released(struct wi_fault_plan *plan,
                                        const struct verdict *verdict)
{
    return atomic_load_explicit(&plan->releases, memory_order_acquire) != verdict->releases;
}

/* How many of `len` bytes are to move. */
static inline uint64_t wi_fault_clip_len(const struct verdict *verdict, uint64_t len)
{
    return verdict->rule.shorten_to > 0 ? wi_min_u64(len, verdict->rule.shorten_to) : len;
}

uint64_t wi_fault_sum(const struct iovec *iov, uint32_t count);

/* The first `limit` bytes of `iov`. Given to the caller: free it. NULL without memory. */
struct iovec *wi_fault_clip(const struct iovec *iov, uint32_t count, uint64_t limit,
                            uint32_t *ret_count);

/* Flip one bit in the middle of the `result` bytes that came. */
void wi_fault_spoil(const struct iovec *iov, uint32_t count, int64_t result);

/* The first `len` bytes of what the caller wants to write, with one bit flipped. Given to the
 * caller: free it. NULL without memory. */
void *wi_fault_spoilt_copy(const struct iovec *iov, uint32_t count, uint64_t len);

#endif
