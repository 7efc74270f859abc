/* SPDX-License-Identifier: MIT */
/*
 * policy_internal.h - what the five policies share
 */
#ifndef WEIR_BASE_POLICY_INTERNAL_H
#define WEIR_BASE_POLICY_INTERNAL_H

#include "policy.h"

typedef bool (*may_go_fn)(struct wi_policy_node *node, void *arg);

/* ---- queues: the front goes first, what is new or used is put at the back ---------------- */

enum wi_policy_queue {
    WI_PQ_NONE = 0,
    WI_PQ_FIRST, /* a scan's; all policies have it, policy.c cares for it */
    WI_PQ_ONCE,  /* seen once: small, A1in, T1 */
    WI_PQ_AGAIN, /* seen again: main, Am, T2; all of LRU and LFU */
    WI_PQ_QUEUES
};

struct wi_policy_fifo {
    struct wi_list head;
    uint64_t count;
    uint64_t cost;
};

/* ---- ghosts: hashes of entries that went, oldest first (policy_ghost.c) ------------------ */

struct wi_ghost; /* one hash */

enum {
    WI_GHOST_LISTS = 2 /* ARC has two, the others use list 0 */
};

struct wi_ghosts {
    struct wi_ghost *pool; /* [0] is unused: index 0 means none */
    uint32_t *buckets;     /* chains of the hash table */
    uint32_t bucket_mask;
    uint32_t size; /* ghosts at most */
    uint32_t used; /* pool[1..used] have been in use; later ones were never touched */
    uint32_t free; /* chain of those that are free again */
    uint32_t oldest[WI_GHOST_LISTS];
    uint32_t newest[WI_GHOST_LISTS];
    uint32_t count[WI_GHOST_LISTS];
};

int wi_ghosts_init(struct wi_ghosts *ghosts, uint64_t size);
void wi_ghosts_fini(struct wi_ghosts *ghosts);
uint64_t wi_ghosts_memory(const struct wi_ghosts *ghosts);
/* As the newest of the list. If all are in use, the oldest of the list is forgotten, or of the
 * other if this one is empty. */
void wi_ghosts_add(struct wi_ghosts *ghosts, uint32_t list, uint64_t hash);
/* Forget the oldest of a list until at most `count` are left. */
void wi_ghosts_trim(struct wi_ghosts *ghosts, uint32_t list, uint64_t count);
/* If the hash is known: forget it, say in which list it was, and return true. */
bool wi_ghosts_take(struct wi_ghosts *ghosts, uint64_t hash, uint32_t *ret_list);

/* ---- the policies ------------------------------------------------------------------------ */

enum {
    WI_LFU_BUCKETS = 32
};

struct wi_policy_ops {
    bool is_lockless;
    uint32_t ghost_percent; /* ghosts at most, of the entries */
    void (*insert)(struct wi_policy *policy, struct wi_policy_node *node);
    void (*touch)(struct wi_policy *policy, struct wi_policy_node *node);
    struct wi_policy_node *(*victim)(struct wi_policy *policy, may_go_fn may_go, void *arg);
};

struct wi_policy {
    const struct wi_policy_ops *ops;
    uint64_t capacity;
    uint64_t entries; /* as many as the owner expected */
    /* How many entries fill the cache: as many as there were when a victim was last asked for,
     * but at most `entries`. Costs may differ from what was expected, and the ghosts go by
     * number. */
    uint64_t full;
    uint64_t count;
    struct wi_policy_fifo queues[WI_PQ_QUEUES];
    struct wi_ghosts ghosts;
    uint64_t once_target; /* ARC: the cost T1 should have */
    /* LFU: its entries are on these lists, one for each count of uses. */
    struct wi_list by_use[WI_LFU_BUCKETS];
    uint64_t events; /* since the last halving */
    uint16_t age;    /* halvings so far */
};

extern const struct wi_policy_ops wi_policy_s3fifo_ops;
extern const struct wi_policy_ops wi_policy_2q_ops;
extern const struct wi_policy_ops wi_policy_arc_ops;
extern const struct wi_policy_ops wi_policy_lru_ops;
extern const struct wi_policy_ops wi_policy_lfu_ops;

static inline struct wi_policy_node *wi_policy_node_of(struct wi_list *link)
{
    return WI_CONTAINER_OF(link, struct wi_policy_node, link);
}

static inline uint8_t wi_policy_uses(const struct wi_policy_node *node)
{
    return atomic_load_explicit(&node->uses, memory_order_relaxed);
}

static inline void wi_policy_set_uses(struct wi_policy_node *node, uint8_t uses)
{
    atomic_store_explicit(&node->uses, uses, memory_order_relaxed);
}

static inline uint64_t wi_policy_percent(uint64_t whole, uint32_t percent)
{
    return whole / 100 * percent + whole % 100 * percent / 100;
}

/* To the back of a queue, from none. */
void wi_policy_push(struct wi_policy *policy, enum wi_policy_queue queue,
                    struct wi_policy_node *node);
/* The same, to the back of another list of that queue. */
void wi_policy_push_to(struct wi_policy *policy, enum wi_policy_queue queue,
                       struct wi_list *head, struct wi_policy_node *node);
/* Off the queue it is on. */
void wi_policy_take(struct wi_policy *policy, struct wi_policy_node *node);
/* To the back of a queue, from whichever it is on. */
void wi_policy_move(struct wi_policy *policy, enum wi_policy_queue queue,
                    struct wi_policy_node *node);
/* Aside, still on its queue: to be spliced to the back of its list when the search ends. */
void wi_policy_pass(struct wi_policy_node *node, struct wi_list *passed);
/* Take the first of the list that may go; those that may not are put at its back. */
struct wi_policy_node *wi_policy_pick(struct wi_policy *policy, struct wi_list *head,
                                      may_go_fn may_go, void *arg);

#endif
