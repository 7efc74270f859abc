/* SPDX-License-Identifier: MIT */
/*
 * policy.c - the front of the policies, and what they share
 *
 *   policy.c          choosing one; evict-first; passing over what may not go
 *   policy_ghost.c    hashes of entries that went
 *   policy_s3fifo.c   S3-FIFO: a small and a main queue; a hit is one store
 *   policy_2q.c       2Q
 *   policy_arc.c      ARC
 *   policy_lru.c      LRU
 *   policy_lfu.c      LFU that forgets
 *
 * Each entry is on one queue. A queue is a list from the front, which goes first, to the back.
 *
 * Evict-first is the same for all: such entries are on a queue of their own, which is emptied
 * before the policy is asked, oldest first, and leaves no ghosts. So a scan recycles its own
 * entries, and moves nothing else. One that is used while it waits there is put in as if it
 * were new.
 *
 * An entry that may not go is in use just now. So it is put at the back of its queue, as if it
 * had been used, and isn't met again before all others. Leaving it in its place would be a
 * little truer to the letter, but each search would wade through all that are pinned.
 *
 *   P1  A node is on the queue that its `queue` says, or on none if that is WI_PQ_NONE.
 *   P2  A queue's count and cost are the sums over its nodes.
 */
#include "policy_internal.h"

static const struct wi_policy_ops *const all_ops[WI_POLICIES] = {
    [WI_POLICY_S3FIFO] = &wi_policy_s3fifo_ops, [WI_POLICY_2Q] = &wi_policy_2q_ops,
    [WI_POLICY_ARC] = &wi_policy_arc_ops,       [WI_POLICY_LRU] = &wi_policy_lru_ops,
    [WI_POLICY_LFU] = &wi_policy_lfu_ops,
};

int wi_policy_create(enum wi_policy_kind kind, uint64_t capacity, uint64_t entries,
                     struct wi_policy **ret_policy)
{
    struct wi_policy *policy = calloc(1, sizeof(*policy));

    WEIR_ASSERT(kind < WI_POLICIES);
    if (policy == NULL)
        return -ENOMEM;
    policy->ops = all_ops[kind];
    policy->capacity = capacity;
    policy->entries = entries;
    for (unsigned i = 0; i < WI_PQ_QUEUES; i++)
        wi_list_init(&policy->queues[i].head);
    for (unsigned i = 0; i < WI_LFU_BUCKETS; i++)
        wi_list_init(&policy->by_use[i]);
    if (wi_ghosts_init(&policy->ghosts,
                       wi_policy_percent(entries, policy->ops->ghost_percent)) < 0) {
        free(policy);
        return -ENOMEM;
    }
    *ret_policy = policy;
    return 0;
}

void wi_policy_destroy(struct wi_policy *policy)
{
    if (policy == NULL)
        return;
    wi_ghosts_fini(&policy->ghosts);
    free(policy);
}

uint64_t wi_policy_memory(const struct wi_policy *policy)
{
    return sizeof(*policy) + wi_ghosts_memory(&policy->ghosts);
}

bool wi_policy_is_lockless(const struct wi_policy *policy)
{
    return policy->ops->is_lockless;
}

/* ---- queues ------------------------------------------------------------------------------ */

void wi_policy_push_to(struct wi_policy *policy, enum wi_policy_queue queue,
                       struct wi_list *head, struct wi_policy_node *node)
{
    WEIR_DCHECK(node->queue == WI_PQ_NONE && queue != WI_PQ_NONE);
    node->queue = (uint8_t)queue;
    policy->queues[queue].count++;
    policy->queues[queue].cost += node->cost;
    wi_list_push_back(head, &node->link);
}

void wi_policy_push(struct wi_policy *policy, enum wi_policy_queue queue,
                    struct wi_policy_node *node)
{
    wi_policy_push_to(policy, queue, &policy->queues[queue].head, node);
}

void wi_policy_take(struct wi_policy *policy, struct wi_policy_node *node)
{
    struct wi_policy_fifo *queue = &policy->queues[node->queue];

    WEIR_DCHECK(node->queue != WI_PQ_NONE);
    WEIR_DCHECK(queue->count > 0 && queue->cost >= node->cost);
    node->queue = WI_PQ_NONE;
    queue->count--;
    queue->cost -= node->cost;
    wi_list_remove(&node->link);
}

void wi_policy_move(struct wi_policy *policy, enum wi_policy_queue queue,
                    struct wi_policy_node *node)
{
    wi_policy_take(policy, node);
    wi_policy_push(policy, queue, node);
}

void wi_policy_pass(struct wi_policy_node *node, struct wi_list *passed)
{
    wi_list_remove(&node->link);
    wi_list_push_back(passed, &node->link);
}

/* It waited to go first, and was used: as if it were new. */
static void admit(struct wi_policy *policy, struct wi_policy_node *node)
{
    wi_policy_take(policy, node);
    wi_policy_set_uses(node, 0);
    policy->ops->insert(policy, node);
}

struct wi_policy_node *wi_policy_pick(struct wi_policy *policy, struct wi_list *head,
                                      may_go_fn may_go, void *arg)
{
    struct wi_policy_node *found = NULL;
    struct wi_list passed;

    wi_list_init(&passed);
    while (found == NULL && !wi_list_empty(head)) {
        struct wi_policy_node *node = wi_policy_node_of(head->next);

        if (node->queue == WI_PQ_FIRST && wi_policy_uses(node) > 0) {
            admit(policy, node); /* used without the lock */
        } else if (may_go(node, arg)) {
            wi_policy_take(policy, node);
            found = node;
        } else {
            wi_policy_pass(node, &passed);
        }
    }
    wi_list_splice(head, &passed);
    return found;
}

/* ---- the front --------------------------------------------------------------------------- */

void wi_policy_insert(struct wi_policy *policy, struct wi_policy_node *node, uint32_t flags)
{
    WEIR_DCHECK(node->cost > 0);
    node->queue = WI_PQ_NONE;
    wi_policy_set_uses(node, 0);
    policy->count++;
    if (flags & WI_POLICY_EVICT_FIRST)
        wi_policy_push(policy, WI_PQ_FIRST, node);
    else
        policy->ops->insert(policy, node);
}

void wi_policy_touch(struct wi_policy *policy, struct wi_policy_node *node)
{
    WEIR_DCHECK(node->queue != WI_PQ_NONE);
    if (node->queue == WI_PQ_FIRST)
        admit(policy, node);
    else
        policy->ops->touch(policy, node);
}

void wi_policy_remove(struct wi_policy *policy, struct wi_policy_node *node)
{
    wi_policy_take(policy, node);
    policy->count--;
}

static bool may_always_go(struct wi_policy_node *node, void *arg)
{
    (void)node;
    (void)arg;
    return true;
}

struct wi_policy_node *wi_policy_victim(struct wi_policy *policy, may_go_fn may_go, void *arg)
{
    struct wi_policy_node *node;

    if (may_go == NULL)
        may_go = may_always_go;
    policy->full = wi_min_u64(policy->count, policy->entries);
    node = wi_policy_pick(policy, &policy->queues[WI_PQ_FIRST].head, may_go, arg);
    if (node == NULL)
        node = policy->ops->victim(policy, may_go, arg);
    if (node != NULL)
        policy->count--;
    return node;
}
