/* SPDX-License-Identifier: MIT */
/*
 * policy_s3fifo.c - S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi, SOSP 2023)
 *
 *              insert                        known to the ghosts
 *                |                                  |
 *                v                                  v
 *        [ small, a tenth ] --- used since --> [ main, the rest ] <--+
 *                |                                  |                |
 *            not used                             front -- used -----+
 *                v                                  |       (one use less)
 *             ghosts                             not used
 *
 * Most entries are used once, and leave through the small queue; only their hashes are kept for
 * a while, as many as main has entries. A hit is no more than a count of uses, up to three, in
 * the entry: no list is touched, so no lock is needed.
 *
 * One use is enough to get from small to main. The paper's code asks for two; by simulation
 * (zipf 1.0, a cache of 5 %) one is better for blocks: 0.684 against 0.682 with 20,000 of them,
 * 0.726 against 0.723 with 100,000, and 0.766 against 0.763 with a million. A scan is kept out
 * of main equally well by both, as its entries are not used again.
 */
#include "policy_internal.h"

enum {
    SMALL_PERCENT = 10,
    GHOST_PERCENT = 90 /* main's part */
};

static void insert(struct wi_policy *policy, struct wi_policy_node *node)
{
    uint32_t list;
    bool known = wi_ghosts_take(&policy->ghosts, node->hash, &list);

    wi_policy_push(policy, known ? WI_PQ_AGAIN : WI_PQ_ONCE, node);
}

static void touch(struct wi_policy *policy, struct wi_policy_node *node)
{
    (void)policy;
    wi_policy_touch_unlocked(node);
}

/* At the front, but used: to the back of main. */
static bool try_spare(struct wi_policy *policy, struct wi_policy_node *node)
{
    uint8_t uses = wi_policy_uses(node);

    if (uses == 0)
        return false;
    wi_policy_set_uses(node, node->queue == WI_PQ_AGAIN ? (uint8_t)(uses - 1) : 0);
    wi_policy_move(policy, WI_PQ_AGAIN, node);
    return true;
}

static struct wi_policy_node *victim(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    struct wi_policy_fifo *once = &policy->queues[WI_PQ_ONCE];
    struct wi_policy_fifo *again = &policy->queues[WI_PQ_AGAIN];
    uint64_t small = wi_policy_percent(policy->capacity, SMALL_PERCENT);
    /* Each can be spared three times, and once more on its way from small. Others count uses
     * meanwhile without the lock; they can't keep us here for ever. */
    uint64_t chances = 4 * policy->count;
    struct wi_policy_node *node;
    struct wi_list once_passed, again_passed;

    wi_list_init(&once_passed);
    wi_list_init(&again_passed);
    for (;;) {
        bool from_once =
            !wi_list_empty(&once->head) && (once->cost >= small || wi_list_empty(&again->head));
        struct wi_list *head = from_once ? &once->head : &again->head;

        node = NULL;
        if (wi_list_empty(head))
            break;
        node = wi_policy_node_of(head->next);
        if (chances > 0 && try_spare(policy, node)) {
            chances--;
            continue;
        }
        if (may_go(node, arg))
            break;
        wi_policy_pass(node, from_once ? &once_passed : &again_passed);
    }
    wi_list_splice(&once->head, &once_passed);
    wi_list_splice(&again->head, &again_passed);
    if (node == NULL)
        return NULL;
    if (node->queue == WI_PQ_ONCE) {
        wi_ghosts_add(&policy->ghosts, 0, node->hash);
        wi_ghosts_trim(&policy->ghosts, 0, wi_policy_percent(policy->full, GHOST_PERCENT));
    }
    wi_policy_take(policy, node);
    return node;
}

const struct wi_policy_ops wi_policy_s3fifo_ops = {
    .is_lockless = true,
    .ghost_percent = GHOST_PERCENT,
    .insert = insert,
    .touch = touch,
    .victim = victim,
};
