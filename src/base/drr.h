/* SPDX-License-Identifier: MIT */
/*
 * drr.h - whose turn is it: deficit round robin over the five classes
 *
 * Idea        each class may move so many bytes a round: its weight times 64 KiB. The most
 *             urgent class that waits and has bytes left goes first; when none of those that
 *             wait has any left, the next round begins. So under load each gets its share,
 *             whatever the sizes of its operations, and none starves; a class that is alone
 *             gets everything (M. Shreedhar, G. Varghese, "Efficient fair queueing using deficit
 *             round robin", 1995, with the order inside a round by urgency).
 * Debts       an operation is given whole, so the last one of a round may cost more than was
 *             left; the class starts the next round with that debt.
 * Idling      rounds count for classes that don't wait too, but such a one has no more than one
 *             round's bytes. So urgent work that comes while a lower class is in the middle of its
 *             share goes first at once, unless it has used up its own share of this round: with
 *             nothing kept for those who idle, as in the paper, it would wait for the others'.
 * Held back   a class that waits and cannot be served now is owed the rounds it misses, up to 4.
 * Least cost  an operation is charged 4 KiB even if it moves fewer bytes or none, or else a class
 *             of empty operations would never end its turn.
 *
 *     while ((rank = wi_drr_pick(&drr, mask_of_ranks_that_wait)) >= 0) {
 *         serve the first of `rank`...
 *         wi_drr_charge(&drr, (uint32_t)rank, its_bytes);
 *     }
 *
 * Picking again without a charge gives the same rank, unless a more urgent one came.
 *
 * Thread: the caller's lock or owner. A zeroed struct is ready for use.
 */
#ifndef WEIR_BASE_DRR_H
#define WEIR_BASE_DRR_H

#include <weir/job.h>

#include "common.h"

#define WI_DRR_RANKS    5u
#define WI_DRR_QUANTUM  (INT64_C(64) << 10)
#define WI_DRR_LEAST    4096u
#define WI_DRR_DEBT_MAX (INT64_C(1) << 40)
#define WI_DRR_OWED     4

struct wi_drr {
    /* By rank: bytes that are left in this round, and, above the quantum, owed from earlier ones;
     * -WI_DRR_DEBT_MAX to WI_DRR_OWED quanta. */
    int64_t deficit[WI_DRR_RANKS];
};

/* Ranks are classes in order of urgency: SYNC goes before FOREGROUND, which is number 0 only so
 * that a cleared job has it. The same function leads back. */
static inline uint32_t wi_drr_rank(uint32_t io_class)
{
    WEIR_DCHECK(io_class < WI_DRR_RANKS);
    return io_class < 2 ? 1 - io_class : io_class;
}

_Static_assert(WEIR_CLASS_FOREGROUND == 0 && WEIR_CLASS_SYNC == 1 && WEIR_CLASS_BATCH == 2 &&
                   WEIR_CLASS_PREFETCH == 3 && WEIR_CLASS_BACKGROUND == 4 &&
                   WEIR_CLASSES == WI_DRR_RANKS,
               "ranks are classes with the first two swapped");

/* What a rank may move in a round. */
static inline int64_t wi_drr_quantum(uint32_t rank)
{
    static const uint8_t weights[WI_DRR_RANKS] = { 64, 32, 8, 4, 2 };

    return weights[rank] * WI_DRR_QUANTUM;
}

/*
 * The rank to serve among those of `mask` (1u << rank), or -1 if it is empty. `waiting` has those
 * too that wait but cannot be served now: a new round is one for them as well, so that they are
 * owed what they missed, up to WI_DRR_OWED rounds.
 */
static inline int wi_drr_pick_of(struct wi_drr *drr, uint32_t mask, uint32_t waiting)
{
    int64_t rounds = INT64_MAX;

    WEIR_DCHECK(waiting >> WI_DRR_RANKS == 0 && (mask & ~waiting) == 0);
    if (mask == 0)
        return -1;
    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
        int64_t need = -drr->deficit[rank] / wi_drr_quantum(rank) + 1;

        if ((mask >> rank & 1) == 0)
            continue;
        if (drr->deficit[rank] > 0)
            return (int)rank;
        rounds = need < rounds ? need : rounds;
    }
    /* As many rounds at once as it takes until the first of them has something. */
    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
        int64_t quantum = wi_drr_quantum(rank);
        int64_t most = (waiting >> rank & 1 ? WI_DRR_OWED : 1) * quantum;
        int64_t sum = drr->deficit[rank] + rounds * quantum;

        drr->deficit[rank] = sum < most ? sum : most;
    }
    for (uint32_t rank = 0;; rank++) {
        if ((mask >> rank & 1) != 0 && drr->deficit[rank] > 0)
            return (int)rank;
    }
}

/* The same where all that wait can be served. */
static inline int wi_drr_pick(struct wi_drr *drr, uint32_t mask)
{
    return wi_drr_pick_of(drr, mask, mask);
}

/* Of the ranks of `mask` that missed a round, since they could not be served, the one that is owed
 * most; -1: there is none. */
static inline int wi_drr_most_owed(const struct wi_drr *drr, uint32_t mask)
{
    int best = -1;

    for (uint32_t rank = 0; rank < WI_DRR_RANKS; rank++) {
        if ((mask >> rank & 1) == 0 || drr->deficit[rank] <= wi_drr_quantum(rank))
            continue;
        if (best < 0 || drr->deficit[rank] * wi_drr_quantum((uint32_t)best) >
                            drr->deficit[best] * wi_drr_quantum(rank))
            best = (int)rank;
    }
    return best;
}

/* An operation of `rank` that moves `bytes` was served. */
static inline void wi_drr_charge(struct wi_drr *drr, uint32_t rank, uint64_t bytes)
{
    uint64_t cost = wi_min_u64(wi_max_u64(bytes, WI_DRR_LEAST), (uint64_t)WI_DRR_DEBT_MAX);

    drr->deficit[rank] -= (int64_t)cost;
    if (drr->deficit[rank] < -WI_DRR_DEBT_MAX)
        drr->deficit[rank] = -WI_DRR_DEBT_MAX;
}

#endif
