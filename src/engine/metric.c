/* SPDX-License-Identifier: MIT */
/*
 * metric.c - histograms by name, for the user's own code
 *
 * Structures   a hash table of pointers with twice as many slots as there may be metrics, open
 *              addressing, linear probing. Nothing is ever removed, so a lookup needs no lock: a
 *              slot that is set stays as it is, and an empty one ends the search.
 * Insertion    under a lock, which looks again first. The pointer is stored with release, after
 *              all that it leads to, and loaded with acquire.
 * Limits       METRICS_MAX, so memory is bounded also where names are made from user input by
 *              mistake. The table is made with the first metric, each histogram with its own.
 */
#include "stats_internal.h"

#include <stdlib.h>

#define SLOTS (METRICS_MAX << 1)

struct metrics {
    struct wi_mutex mu;
    uint32_t count; /* guarded by mu */
    _Atomic(struct metric *) slots[SLOTS];
};

/* Its length, or 0 if it is none. */
static size_t name_length(const char *name)
{
    size_t len = 0;

    for (; name[len] != '\0'; len++) {
        char c = name[len];
        bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '_' || c == '.' || c == ':' || c == '-' ||
                       c == '/';

        if (!allowed || len + 1 >= sizeof(((struct metric *)0)->name))
            return 0;
    }
    return len;
}

/* Over as much as a name may be long. By words, as names are most of what recording costs. */
static uint64_t hash_name(const char *name)
{
    size_t len = strnlen(name, sizeof(((struct metric *)0)->name));
    uint64_t hash = len;

    for (size_t i = 0; i < len; i += sizeof(uint64_t)) {
        uint64_t word = 0;

        memcpy(&word, name + i, wi_min_u64(len - i, sizeof(word)));
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return hash;
}

/* The metric, or NULL; `*ret_slot` is then where it would go. There is an empty slot always. */
static struct metric *find(struct metrics *metrics, const char *name, uint64_t hash,
                           uint32_t *ret_slot)
{
    for (uint32_t slot = (uint32_t)(hash % SLOTS);; slot = (slot + 1) % SLOTS) {
        struct metric *metric =
            atomic_load_explicit(&metrics->slots[slot], memory_order_acquire);

        if (metric && (metric->hash != hash || strcmp(metric->name, name) != 0))
            continue;
        *ret_slot = slot;
        return metric;
    }
}

/* The engine's table; made where there is none. Several threads may try; one wins. */
static struct metrics *make_table(struct weir_engine *engine)
{
    struct metrics *metrics = atomic_load_explicit(&engine->metrics, memory_order_acquire);
    struct metrics *mine;

    if (metrics)
        return metrics;
    mine = calloc(1, sizeof(*mine));
    if (!mine)
        return NULL;
    wi_mutex_init(&mine->mu, WI_RANK_LAST);
    if (!atomic_compare_exchange_strong_explicit(&engine->metrics, &metrics, mine,
                                                 memory_order_acq_rel, memory_order_acquire)) {
        wi_mutex_fini(&mine->mu);
        free(mine);
        return metrics;
    }
    wi_engine_account(engine, sizeof(*mine));
    return mine;
}

static int insert(struct weir_engine *engine, const char *name, uint64_t hash,
                  struct metric **ret_metric)
{
    size_t len = name_length(name);
    struct metrics *metrics;
    struct metric *fresh;
    struct metric *metric;
    uint32_t slot;
    int rc = 0;

    if (len == 0)
        return -EINVAL;
    metrics = make_table(engine);
    fresh = metrics ? calloc(1, sizeof(*fresh)) : NULL;
    if (!fresh)
        return -ENOMEM;
    memcpy(fresh->name, name, len);
    fresh->hash = hash;
    atomic_init(&fresh->min_ns, UINT64_MAX);

    wi_mutex_lock(&metrics->mu);
    metric = find(metrics, name, hash, &slot);
    if (!metric && metrics->count >= METRICS_MAX) {
        rc = -ENOSPC;
    } else if (!metric) {
        metric = fresh;
        metrics->count++;
        atomic_store_explicit(&metrics->slots[slot], metric, memory_order_release);
    }
    wi_mutex_unlock(&metrics->mu);

    if (metric == fresh)
        wi_engine_account(engine, sizeof(*fresh));
    else
        free(fresh);
    *ret_metric = metric;
    return rc;
}

int weir_metric_record(struct weir_engine *engine, const char *name, uint64_t ns)
{
    struct metrics *metrics;
    struct metric *metric = NULL;
    uint64_t hash;
    uint64_t min_ns;
    uint32_t slot;

    if (!engine || !name)
        return -EINVAL;
    hash = hash_name(name);
    metrics = atomic_load_explicit(&engine->metrics, memory_order_acquire);
    if (metrics)
        metric = find(metrics, name, hash, &slot);
    if (WI_UNLIKELY(!metric)) {
        int rc = insert(engine, name, hash, &metric);

        if (rc < 0)
            return rc;
    }
    wi_hist_add_shared(&metric->hist, ns);
    min_ns = atomic_load_explicit(&metric->min_ns, memory_order_relaxed);
    while (ns < min_ns &&
           !atomic_compare_exchange_weak_explicit(&metric->min_ns, &min_ns, ns,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
    return 0;
}

void wi_metric_summarise(struct metric *metric, struct weir_metric *ret_metric)
{
    uint64_t min_ns = atomic_load_explicit(&metric->min_ns, memory_order_relaxed);

    memset(ret_metric, 0, sizeof(*ret_metric));
    memcpy(ret_metric->name, metric->name, sizeof(ret_metric->name));
    wi_hist_summarise(&metric->hist, &ret_metric->latency);
    /* Seen between the creation and the first value: nothing yet. */
    ret_metric->min_ns = min_ns == UINT64_MAX && ret_metric->latency.count == 0 ? 0 : min_ns;
}

static int compare_names(const void *a, const void *b)
{
    const struct metric *const *left = a;
    const struct metric *const *right = b;

    return strcmp((*left)->name, (*right)->name);
}

size_t wi_metrics_list(struct weir_engine *engine, struct metric **list)
{
    struct metrics *metrics = atomic_load_explicit(&engine->metrics, memory_order_acquire);
    size_t count = 0;

    for (uint32_t slot = 0; metrics && slot < SLOTS; slot++) {
        struct metric *metric =
            atomic_load_explicit(&metrics->slots[slot], memory_order_acquire);

        if (metric)
            list[count++] = metric;
    }
    qsort(list, count, sizeof(struct metric *), compare_names);
    return count;
}

int weir_metric_read(struct weir_engine *engine, const char *name,
                     struct weir_metric *ret_metric)
{
    struct metrics *metrics;
    struct metric *metric;
    uint32_t slot;

    if (!engine || !name || !ret_metric)
        return -EINVAL;
    metrics = atomic_load_explicit(&engine->metrics, memory_order_acquire);
    metric = metrics ? find(metrics, name, hash_name(name), &slot) : NULL;
    if (!metric)
        return -ENOENT;
    wi_metric_summarise(metric, ret_metric);
    return 0;
}

size_t weir_metric_list(struct weir_engine *engine, struct weir_metric *list, size_t max)
{
    struct metric *all[METRICS_MAX];
    size_t count = engine ? wi_metrics_list(engine, all) : 0;

    for (size_t i = 0; list && i < count && i < max; i++)
        wi_metric_summarise(all[i], &list[i]);
    return count;
}

void wi_metrics_fini(struct weir_engine *engine)
{
    struct metrics *metrics = atomic_load_explicit(&engine->metrics, memory_order_acquire);

    if (!metrics)
        return;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        free(atomic_load_explicit(&metrics->slots[slot], memory_order_relaxed));
    wi_mutex_fini(&metrics->mu);
    free(metrics);
    atomic_store_explicit(&engine->metrics, NULL, memory_order_relaxed);
}
