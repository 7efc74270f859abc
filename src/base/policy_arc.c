/* SPDX-License-Identifier: MIT */
/*
 * policy_arc.c - ARC (Megiddo and Modha, FAST 2003)
 *
 * T1 has what was seen once, T2 what was seen again; both are LRU, and together the cache. B1
 * and B2 are the ghosts of what left them. A miss that B1 knows says that T1 is too small, one
 * that B2 knows that T2 is; `once_target` (the paper's p) moves accordingly, and decides which
 * of the two gives the next victim. With c entries in a full cache, |T1| + |B1| <= c and all
 * four <= 2c.
 *
 * Where this differs from the paper:
 *  - Room is made before it is known what comes in. So the target moves after the victim was
 *    chosen, not before, and the paper's tie-break, which asks what comes in, is left out.
 *  - T1 and T2 are weighed by cost, the ghosts are counted, and ratios are whole numbers.
 */
#include "policy_internal.h"

enum {
    B1,
    B2
};

static uint64_t ratio(uint32_t of, uint32_t to)
{
    return wi_max_u64(to > 0 ? of / to : of, 1);
}

static void trim(struct wi_policy *policy)
{
    uint64_t once = policy->queues[WI_PQ_ONCE].count;
    uint64_t held = once + policy->queues[WI_PQ_AGAIN].count;
    uint64_t left;

    /* There is about to be one more, in T1. */
    left = policy->full > once + 1 ? policy->full - once - 1 : 0;
    wi_ghosts_trim(&policy->ghosts, B1, left);
    held += policy->ghosts.count[B1];
    left = 2 * policy->full > held + 1 ? 2 * policy->full - held - 1 : 0;
    wi_ghosts_trim(&policy->ghosts, B2, left);
}

static void insert(struct wi_policy *policy, struct wi_policy_node *node)
{
    const uint32_t *count = policy->ghosts.count;
    uint32_t b1 = count[B1];
    uint32_t b2 = count[B2];
    uint32_t list;
    uint64_t step;

    if (!wi_ghosts_take(&policy->ghosts, node->hash, &list)) {
        trim(policy);
        wi_policy_push(policy, WI_PQ_ONCE, node);
        return;
    }
    if (list == B1) {
        step = ratio(b2, b1) * node->cost;
        policy->once_target = wi_min_u64(policy->once_target + step, policy->capacity);
    } else {
        step = ratio(b1, b2) * node->cost;
        policy->once_target -= wi_min_u64(policy->once_target, step);
    }
    wi_policy_push(policy, WI_PQ_AGAIN, node);
}

static void touch(struct wi_policy *policy, struct wi_policy_node *node)
{
    wi_policy_move(policy, WI_PQ_AGAIN, node);
}

static struct wi_policy_node *victim(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    bool once = policy->queues[WI_PQ_ONCE].cost > policy->once_target;

    for (int i = 0; i < 2; i++, once = !once) {
        struct wi_policy_node *node = wi_policy_pick(
            policy, &policy->queues[once ? WI_PQ_ONCE : WI_PQ_AGAIN].head, may_go, arg);

        if (node != NULL) {
            wi_ghosts_add(&policy->ghosts, once ? B1 : B2, node->hash);
            return node;
        }
    }
    return NULL;
}

const struct wi_policy_ops wi_policy_arc_ops = {
    .ghost_percent = 100,
    .insert = insert,
    .touch = touch,
    .victim = victim,
};
