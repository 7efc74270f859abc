/* SPDX-License-Identifier: MIT */
/*
 * policy_2q.c - 2Q, the full version (Johnson and Shasha, VLDB 1994)
 *
 * New entries go through A1in, a queue of a quarter of the cache; a hit there changes nothing,
 * since uses that follow at once say little. Those that leave it are remembered in A1out, for
 * as long as half as many entries as the cache holds follow them. One that comes back in that
 * time is put in Am, the rest of the cache, which is LRU. What leaves Am is not remembered.
 *
 * The paper's tuning is kept: Kin is 25 % of the cache, Kout 50 %.
 */
#include "policy_internal.h"

enum {
    KIN_PERCENT = 25,
    KOUT_PERCENT = 50
};

static void insert(struct wi_policy *policy, struct wi_policy_node *node)
{
    uint32_t list;
    bool known = wi_ghosts_take(&policy->ghosts, node->hash, &list);

    wi_policy_push(policy, known ? WI_PQ_AGAIN : WI_PQ_ONCE, node);
}

static void touch(struct wi_policy *policy, struct wi_policy_node *node)
{
    if (node->queue == WI_PQ_AGAIN)
        wi_policy_move(policy, WI_PQ_AGAIN, node);
}

static struct wi_policy_node *from_once(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    struct wi_policy_node *node =
        wi_policy_pick(policy, &policy->queues[WI_PQ_ONCE].head, may_go, arg);

    if (node != NULL) {
        wi_ghosts_add(&policy->ghosts, 0, node->hash);
        wi_ghosts_trim(&policy->ghosts, 0, wi_policy_percent(policy->full, KOUT_PERCENT));
    }
    return node;
}

static struct wi_policy_node *victim(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    struct wi_list *again = &policy->queues[WI_PQ_AGAIN].head;
    bool once_first =
        policy->queues[WI_PQ_ONCE].cost > wi_policy_percent(policy->capacity, KIN_PERCENT);
    struct wi_policy_node *node = NULL;

    if (once_first)
        node = from_once(policy, may_go, arg);
    if (node == NULL)
        node = wi_policy_pick(policy, again, may_go, arg);
    if (node == NULL && !once_first)
        node = from_once(policy, may_go, arg);
    return node;
}

const struct wi_policy_ops wi_policy_2q_ops = {
    .ghost_percent = KOUT_PERCENT,
    .insert = insert,
    .touch = touch,
    .victim = victim,
};
