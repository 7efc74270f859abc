/* SPDX-License-Identifier: MIT */
/*
 * policy_lru.c - LRU: what was not used for longest goes
 *
 * The plainest, for comparison and for those who want exactly this. A scan flushes it.
 */
#include "policy_internal.h"

static void insert(struct wi_policy *policy, struct wi_policy_node *node)
{
    wi_policy_push(policy, WI_PQ_AGAIN, node);
}

static void touch(struct wi_policy *policy, struct wi_policy_node *node)
{
    wi_policy_move(policy, WI_PQ_AGAIN, node);
}

static struct wi_policy_node *victim(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    return wi_policy_pick(policy, &policy->queues[WI_PQ_AGAIN].head, may_go, arg);
}

const struct wi_policy_ops wi_policy_lru_ops = {
    .insert = insert,
    .touch = touch,
    .victim = victim,
};
