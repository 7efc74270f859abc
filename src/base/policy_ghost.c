/* SPDX-License-Identifier: MIT */
/*
 * policy_ghost.c - what was here not long ago
 *
 * Problem      a policy wants to know an entry again that it let go, without keeping it.
 * Idea         remember hashes only: in the order in which they went, and findable.
 * Structures   a pool of ghosts, each on one of two lists by age and on one chain of a hash
 *              table with a bucket a ghost or two. Links are indices, and 0 is none, so memory
 *              full of zeros is an empty pool.
 * Limits       all memory is taken at the start, 28 to 32 bytes a ghost, and none of it is
 *              touched before it is needed: a guess that was too high costs address space.
 */
#include "policy_internal.h"

struct wi_ghost {
    uint64_t hash;
    uint32_t chain; /* the next in the bucket, or in the free chain */
    uint32_t older;
    uint32_t newer;
    uint32_t list;
};

#define GHOSTS_MAX (UINT32_C(1) << 30)

/* The owner's shards may have used up some bits of the hash, so it is mixed once more. */
static uint32_t *bucket_of(const struct wi_ghosts *ghosts, uint64_t hash)
{
    hash = (hash ^ hash >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return &ghosts->buckets[(uint32_t)(hash >> 32) & ghosts->bucket_mask];
}

int wi_ghosts_init(struct wi_ghosts *ghosts, uint64_t size)
{
    uint32_t buckets = 1;

    memset(ghosts, 0, sizeof(*ghosts));
    ghosts->size = (uint32_t)wi_min_u64(size, GHOSTS_MAX);
    if (ghosts->size == 0)
        return 0;
    while (buckets < ghosts->size)
        buckets *= 2;
    ghosts->bucket_mask = buckets - 1;
    ghosts->buckets = calloc(buckets, sizeof(*ghosts->buckets));
    ghosts->pool = calloc((size_t)ghosts->size + 1, sizeof(*ghosts->pool));
    if (ghosts->buckets == NULL || ghosts->pool == NULL) {
        wi_ghosts_fini(ghosts);
        return -ENOMEM;
    }
    return 0;
}

void wi_ghosts_fini(struct wi_ghosts *ghosts)
{
    free(ghosts->buckets);
    free(ghosts->pool);
    ghosts->buckets = NULL;
    ghosts->pool = NULL;
}

uint64_t wi_ghosts_memory(const struct wi_ghosts *ghosts)
{
    if (ghosts->size == 0)
        return 0;
    return ((uint64_t)ghosts->bucket_mask + 1) * sizeof(*ghosts->buckets) +
           ((uint64_t)ghosts->size + 1) * sizeof(*ghosts->pool);
}

/* Off its list, and back to the pool. `place` is the link of its chain that leads to it. */
static void forget(struct wi_ghosts *ghosts, uint32_t *place)
{
    uint32_t index = *place;
    struct wi_ghost *ghost = &ghosts->pool[index];
    uint32_t list = ghost->list;

    *place = ghost->chain;
    if (ghost->older != 0)
        ghosts->pool[ghost->older].newer = ghost->newer;
    else
        ghosts->oldest[list] = ghost->newer;
    if (ghost->newer != 0)
        ghosts->pool[ghost->newer].older = ghost->older;
    else
        ghosts->newest[list] = ghost->older;
    ghosts->count[list]--;
    ghost->chain = ghosts->free;
    ghosts->free = index;
}

static void forget_oldest(struct wi_ghosts *ghosts, uint32_t list)
{
    uint32_t index = ghosts->oldest[list];
    uint32_t *place = bucket_of(ghosts, ghosts->pool[index].hash);

    while (*place != index)
        place = &ghosts->pool[*place].chain;
    forget(ghosts, place);
}

void wi_ghosts_trim(struct wi_ghosts *ghosts, uint32_t list, uint64_t count)
{
    while (ghosts->count[list] > count)
        forget_oldest(ghosts, list);
}

bool wi_ghosts_take(struct wi_ghosts *ghosts, uint64_t hash, uint32_t *ret_list)
{
    uint32_t *place;

    if (ghosts->size == 0)
        return false;
    for (place = bucket_of(ghosts, hash); *place != 0; place = &ghosts->pool[*place].chain) {
        if (ghosts->pool[*place].hash == hash) {
            *ret_list = ghosts->pool[*place].list;
            forget(ghosts, place);
            return true;
        }
    }
    return false;
}

void wi_ghosts_add(struct wi_ghosts *ghosts, uint32_t list, uint64_t hash)
{
    uint32_t *bucket;
    uint32_t index;
    uint32_t old_list;

    if (ghosts->size == 0)
        return;
    wi_ghosts_take(ghosts, hash, &old_list); /* one that went twice is remembered once */
    if (ghosts->count[0] + ghosts->count[1] == ghosts->size)
        forget_oldest(ghosts, ghosts->count[list] > 0 ? list : !list);
    index = ghosts->free;
    if (index != 0)
        ghosts->free = ghosts->pool[index].chain;
    else
        index = ++ghosts->used;
    bucket = bucket_of(ghosts, hash);
    ghosts->pool[index] = (struct wi_ghost){
        .hash = hash, .chain = *bucket, .older = ghosts->newest[list], .list = list
    };
    *bucket = index;
    if (ghosts->newest[list] != 0)
        ghosts->pool[ghosts->newest[list]].newer = index;
    else
        ghosts->oldest[list] = index;
    ghosts->newest[list] = index;
    ghosts->count[list]++;
}
