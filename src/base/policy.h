/* SPDX-License-Identifier: MIT */
/*
 * policy.h - which entry of a cache goes next
 *
 * One instance a shard, under the shard's lock. The owner embeds a node in each of its entries,
 * says what happens (insert, touch, remove) and asks for a victim when it needs room. A policy
 * knows nothing of keys but a 64-bit hash, which is what its ghost lists remember.
 */
#ifndef WEIR_BASE_POLICY_H
#define WEIR_BASE_POLICY_H

#include <stdatomic.h>

#include "common.h"
#include "list.h"

/* The numbers of the public enum weir_policy. */
enum wi_policy_kind {
    WI_POLICY_S3FIFO,
    WI_POLICY_2Q,
    WI_POLICY_ARC,
    WI_POLICY_LRU,
    WI_POLICY_LFU,
    WI_POLICIES
};

struct wi_policy;

/* All fields are the policy's, but for `hash` and `cost`, which the owner sets before
 * insert. */
struct wi_policy_node {
    struct wi_list link;
    uint64_t hash;
    uint32_t cost; /* 1 where all entries are equal, else bytes; not 0 */
    uint8_t queue; /* which list it is on; 0: none */
    _Atomic uint8_t uses;
    uint16_t spare;
};

enum wi_policy_flag {
    WI_POLICY_EVICT_FIRST = 1u << 0 /* a scan's: the first to go, unless it is used again */
};

/* `capacity` in cost; `entries` how many that can be, about or at most (for the ghosts).
 * Returns 0 or -ENOMEM. Allocates all it will need; what it does not need is never touched. */
int wi_policy_create(enum wi_policy_kind kind, uint64_t capacity, uint64_t entries,
                     struct wi_policy **ret_policy);
void wi_policy_destroy(struct wi_policy *policy); /* nodes are the owner's; NULL is allowed */
uint64_t wi_policy_memory(const struct wi_policy *policy); /* bytes it has allocated */

/* A new entry. The owner has made room before (wi_policy_victim), or is over its limit for a
 * moment. */
void wi_policy_insert(struct wi_policy *policy, struct wi_policy_node *node, uint32_t flags);

/* A hit, under the lock. */
void wi_policy_touch(struct wi_policy *policy, struct wi_policy_node *node);

/* True if a hit may be told by wi_policy_touch_unlocked() instead, without the lock
 * (S3-FIFO). */
bool wi_policy_is_lockless(const struct wi_policy *policy);

static inline void wi_policy_touch_unlocked(struct wi_policy_node *node)
{
    uint8_t uses = atomic_load_explicit(&node->uses, memory_order_relaxed);

    if (uses < 3) /* a lost update only costs a use */
        atomic_store_explicit(&node->uses, (uint8_t)(uses + 1), memory_order_relaxed);
}

/* The entry is gone for a reason of its own: not remembered. */
void wi_policy_remove(struct wi_policy *policy, struct wi_policy_node *node);

/* Choose and take out the entry that goes next, of those for which `may_go` is true (NULL:
 * all). NULL if there is none. Bounded work: those that may not go are asked once, and put
 * where they would be had they just come in or been used. */
struct wi_policy_node *wi_policy_victim(struct wi_policy *policy,
                                        bool (*may_go)(struct wi_policy_node *node, void *arg),
                                        void *arg);

#endif
