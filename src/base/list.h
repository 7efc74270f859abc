/* SPDX-License-Identifier: MIT */
/*
 * list.h - intrusive doubly linked lists, circular with a head
 *
 * A node that is on no list is linked to itself, so removing it twice does no harm
 * and `wi_list_on` can tell.
 */
#ifndef WEIR_BASE_LIST_H
#define WEIR_BASE_LIST_H

#include "common.h"

struct wi_list {
    struct wi_list *next;
    struct wi_list *prev;
};

static inline void wi_list_init(struct wi_list *node)
{
    node->next = node;
    node->prev = node;
}

static inline bool wi_list_empty(const struct wi_list *head)
{
    return head->next == head;
}

static inline bool wi_list_on(const struct wi_list *node)
{
    return node->next != node;
}

static inline void wi_list_insert_before(struct wi_list *node, struct wi_list *place)
{
    node->next = place;
    node->prev = place->prev;
    place->prev->next = node;
    place->prev = node;
}

static inline void wi_list_push_back(struct wi_list *head, struct wi_list *node)
{
    wi_list_insert_before(node, head);
}

static inline void wi_list_push_front(struct wi_list *head, struct wi_list *node)
{
    wi_list_insert_before(node, head->next);
}

static inline void wi_list_remove(struct wi_list *node)
{
    node->next->prev = node->prev;
    node->prev->next = node->next;
    wi_list_init(node);
}

static inline struct wi_list *wi_list_pop_front(struct wi_list *head)
{
    struct wi_list *node = head->next;

    if (node == head)
        return NULL;
    wi_list_remove(node);
    return node;
}

/* Move all of `from` to the end of `to`. */
static inline void wi_list_splice(struct wi_list *to, struct wi_list *from)
{
    if (wi_list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    wi_list_init(from);
}

/* Move all of `from` to the front of `to`. */
static inline void wi_list_splice_front(struct wi_list *to, struct wi_list *from)
{
    if (wi_list_empty(from))
        return;
    from->prev->next = to->next;
    to->next->prev = from->prev;
    from->next->prev = to;
    to->next = from->next;
    wi_list_init(from);
}

#define list_for_each(node, head) \
    for ((node) = (head)->next; (node) != (head); (node) = (node)->next)

#endif
