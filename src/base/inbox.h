/* SPDX-License-Identifier: MIT */
/*
 * inbox.h - many threads push, one thread takes all
 *
 * A Treiber stack whose only removal takes the whole chain, so there is no ABA problem
 * (R. K. Treiber, "Systems programming: coping with parallelism", 1986). wi_inbox_take
 * returns the nodes in the order they were pushed.
 */
#ifndef WEIR_BASE_INBOX_H
#define WEIR_BASE_INBOX_H

#include <stdatomic.h>

#include "common.h"

struct wi_inbox_node {
    struct wi_inbox_node *next;
};

struct wi_inbox {
    _Atomic(struct wi_inbox_node *) head; /* push pairs with take */
};

/* Returns true if it was empty. Sequentially consistent, so that a pusher that then looks
 * whether the owner sleeps (os/waker.h) cannot miss it. Thread: any. */
static inline bool wi_inbox_push(struct wi_inbox *inbox, struct wi_inbox_node *node)
{
    struct wi_inbox_node *head = atomic_load_explicit(&inbox->head, memory_order_relaxed);

    do
        node->next = head;
    while (!atomic_compare_exchange_weak_explicit(&inbox->head, &head, node,
                                                  memory_order_seq_cst, memory_order_relaxed));
    return head == NULL;
}

static inline bool wi_inbox_empty(struct wi_inbox *inbox)
{
    return atomic_load_explicit(&inbox->head, memory_order_relaxed) == NULL;
}

/* All nodes, oldest first, linked by `next`. Thread: the owner. */
static inline struct wi_inbox_node *wi_inbox_take(struct wi_inbox *inbox)
{
    struct wi_inbox_node *node =
        atomic_exchange_explicit(&inbox->head, NULL, memory_order_acq_rel);
    struct wi_inbox_node *oldest = NULL;

    while (node) {
        struct wi_inbox_node *next = node->next;

        node->next = oldest;
        oldest = node;
        node = next;
    }
    return oldest;
}

#endif
