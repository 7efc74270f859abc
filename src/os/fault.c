/* SPDX-License-Identifier: MIT */
/*
 * fault.c - the plan of the recorder and fault injector; see fault.h
 *
 * Idea         each operation asks the plan once, when it starts, what is to become of it.
 *              The verdict is a copy, so that a rule may be cleared while its operations are
 *              still held back.
 * Rules        a rule sees the operations of its kind that no rule before it acted on; so
 *              "EINTR once" followed by "EAGAIN once" gives one of each, in that order.
 * Records      are made when an operation ends: what is held back is not in there yet.
 */
#include "fault_internal.h"

#include <stdlib.h>
#include <string.h>

#define COPY_ALIGN 4096 /* private copies must do for direct I/O too */

struct fault_rule {
    struct fault_rule *next;
    struct wi_fault_rule rule;
    uint64_t seen;
    uint64_t acted;
};

int wi_fault_create(const struct wi_os *os, struct wi_fault_plan **ret_plan)
{
    struct wi_fault_plan *plan = calloc(1, sizeof(*plan));

    if (!plan)
        return -ENOMEM;
    plan->os.ops = &wi_fault_os_ops;
    plan->inner = os;
    wi_mutex_init(&plan->mu, WI_RANK_FAULT);
    wi_cond_init(&plan->changed);
    plan->last_link = &plan->first_rule;
    wi_list_init(&plan->wrapped);
    *ret_plan = plan;
    return 0;
}

void wi_fault_clear(struct wi_fault_plan *plan)
{
    struct fault_rule *rule;

    wi_mutex_lock(&plan->mu);
    rule = plan->first_rule;
    plan->first_rule = NULL;
    plan->last_link = &plan->first_rule;
    wi_mutex_unlock(&plan->mu);
    while (rule) {
        struct fault_rule *next = rule->next;

        free(rule);
        rule = next;
    }
}

void wi_fault_destroy(struct wi_fault_plan *plan)
{
    if (!plan)
        return;
    WEIR_ASSERT(wi_list_empty(&plan->wrapped));
    wi_fault_clear(plan);
    free(plan->records);
    wi_cond_fini(&plan->changed);
    wi_mutex_fini(&plan->mu);
    free(plan);
}

const struct wi_os *wi_fault_os(struct wi_fault_plan *plan)
{
    return &plan->os;
}

int wi_fault_add(struct wi_fault_plan *plan, const struct wi_fault_rule *rule)
{
    struct fault_rule *added = calloc(1, sizeof(*added));

    if (!added)
        return -ENOMEM;
    added->rule = *rule;
    wi_mutex_lock(&plan->mu);
    *plan->last_link = added;
    plan->last_link = &added->next;
    wi_mutex_unlock(&plan->mu);
    return 0;
}

void wi_fault_reorder(struct wi_fault_plan *plan, uint64_t seed)
{
    wi_mutex_lock(&plan->mu);
    plan->chance = seed;
    wi_mutex_unlock(&plan->mu);
}

uint64_t wi_fault_seen(struct wi_fault_plan *plan, enum wi_fault_kind kind)
{
    uint64_t seen;

    wi_mutex_lock(&plan->mu);
    seen = plan->seen[kind];
    wi_mutex_unlock(&plan->mu);
    return seen;
}

uint64_t wi_fault_acted(struct wi_fault_plan *plan)
{
    uint64_t acted;

    wi_mutex_lock(&plan->mu);
    acted = plan->acted;
    wi_mutex_unlock(&plan->mu);
    return acted;
}

int wi_fault_record(struct wi_fault_plan *plan, size_t capacity)
{
    struct wi_fault_record *records = NULL;
    struct wi_fault_record *old;

    if (capacity > 0) {
        records = calloc(capacity, sizeof(*records));
        if (!records)
            return -ENOMEM;
    }
    wi_mutex_lock(&plan->mu);
    old = plan->records;
    plan->records = records;
    plan->records_room = capacity;
    plan->records_count = 0;
    wi_mutex_unlock(&plan->mu);
    free(old);
    return 0;
}

size_t wi_fault_records(struct wi_fault_plan *plan, struct wi_fault_record *list, size_t max)
{
    size_t kept;
    size_t count;

    wi_mutex_lock(&plan->mu);
    kept = (size_t)wi_min_u64(plan->records_count, plan->records_room);
    count = kept < max ? kept : max;
    for (size_t i = 0; i < count; i++)
        list[i] = plan->records[(plan->records_count - kept + i) % plan->records_room];
    wi_mutex_unlock(&plan->mu);
    return count;
}

void wi_fault_judge(struct wi_fault_plan *plan, enum wi_fault_kind kind, int fd,
                    uint64_t offset, uint64_t len, struct verdict *ret_verdict)
{
    *ret_verdict = (struct verdict){
        .record = { .kind = kind, .fd = fd, .offset = offset, .len = len },
        .releases = atomic_load_explicit(&plan->releases, memory_order_acquire),
    };
    wi_mutex_lock(&plan->mu);
    plan->seen[kind]++;
    ret_verdict->record.order = plan->order++;
    for (struct fault_rule *rule = plan->first_rule; rule; rule = rule->next) {
        if (rule->rule.kind != kind || ++rule->seen < rule->rule.first ||
            (rule->rule.count > 0 && rule->acted >= rule->rule.count))
            continue;
        rule->acted++;
        plan->acted++;
        ret_verdict->rule = rule->rule;
        break;
    }
    wi_mutex_unlock(&plan->mu);
}

int64_t wi_fault_conclude(struct wi_fault_plan *plan, struct verdict *verdict, int64_t result)
{
    if (verdict->rule.error < 0)
        result = verdict->rule.error;
    verdict->record.result = result;
    wi_mutex_lock(&plan->mu);
    if (plan->records_room > 0)
        plan->records[plan->records_count++ % plan->records_room] = verdict->record;
    wi_mutex_unlock(&plan->mu);
    return result;
}

uint64_t wi_fault_next_chance(struct wi_fault_plan *plan)
{
    uint64_t chance;

    /* xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003): 0 stays 0, and comes from 0 alone. */
    wi_mutex_lock(&plan->mu);
    plan->chance ^= plan->chance << 13;
    plan->chance ^= plan->chance >> 7;
    plan->chance ^= plan->chance << 17;
    chance = plan->chance;
    wi_mutex_unlock(&plan->mu);
    return chance;
}

void wi_fault_release(struct wi_fault_plan *plan)
{
    struct wi_list *node;

    wi_mutex_lock(&plan->mu);
    atomic_fetch_add_explicit(&plan->releases, 1, memory_order_release);
    wi_cond_broadcast(&plan->changed);
    /* A wake takes no lock, and a backend cannot close while it is on the list. */
    list_for_each(node, &plan->wrapped) {
        struct fault_wrapped *wrapped = WI_CONTAINER_OF(node, struct fault_wrapped, node);

        wrapped->inner->ops->wake(wrapped->inner);
    }
    wi_mutex_unlock(&plan->mu);
}

/* ---- clipping and spoiling --------------------------------------------------------------- */

uint64_t wi_fault_sum(const struct iovec *iov, uint32_t count)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += iov[i].iov_len;
    return sum;
}

struct iovec *wi_fault_clip(const struct iovec *iov, uint32_t count, uint64_t limit,
                            uint32_t *ret_count)
{
    struct iovec *clipped = calloc(count > 0 ? count : 1, sizeof(*clipped));
    uint32_t used = 0;

    if (!clipped)
        return NULL;
    for (; used < count && limit > 0; used++) {
        clipped[used] = iov[used];
        if (clipped[used].iov_len > limit)
            clipped[used].iov_len = (size_t)limit;
        limit -= clipped[used].iov_len;
    }
    *ret_count = used;
    return clipped;
}

static void flip_bit(unsigned char *byte)
{
    *byte ^= 0x10;
}

void wi_fault_spoil(const struct iovec *iov, uint32_t count, int64_t result)
{
    size_t at = (size_t)result / 2;

    if (result <= 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        if (at < iov[i].iov_len) {
            flip_bit((unsigned char *)iov[i].iov_base + at);
            return;
        }
        at -= iov[i].iov_len;
    }
}

void *wi_fault_spoilt_copy(const struct iovec *iov, uint32_t count, uint64_t len)
{
    unsigned char *copy = NULL;
    unsigned char *to;

    if (posix_memalign((void **)&copy, COPY_ALIGN, len > 0 ? (size_t)len : 1) != 0)
        return NULL;
    to = copy;
    for (uint32_t i = 0; i < count && len > 0; i++) {
        size_t part = (size_t)wi_min_u64(iov[i].iov_len, len);

        memcpy(to, iov[i].iov_base, part);
        to += part;
        len -= part;
    }
    if (to > copy)
        flip_bit(copy + (size_t)(to - copy) / 2);
    return copy;
}
