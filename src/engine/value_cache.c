/* SPDX-License-Identifier: MIT */
/*
 * value_cache.c - the typed cache: keys and values of the caller's (weir/cache.h)
 *
 * Problem      many threads look up and put. The limits hold at any moment and over all
 *              shards, and an entry may be as large as the whole cache.
 * Structures   shards by the key's hash, each with a lock, a table with chains that doubles,
 *              and a policy. An entry is one allocation: the record, the value if it was
 *              copied, the key. The limits belong to the cache: two atomic sums, from which
 *              room is taken before an entry is put in. So no shard has a share that a large
 *              entry or an uneven hash could exceed.
 * Room         a put evicts from its own shard, unless that one is well below the average;
 *              then from the others in turn, so that all stay about equal. At most one lock
 *              is held at a time.
 * Values       each entry has references: one while it is in the table, one for each holder.
 *              Who gives back the last frees it, with no lock held.
 * Age          all have the same time to live, so a shard's list by age is in the order of
 *              their end. A get drops what it finds too old; a put drops a few from the old
 *              end, and all of them before it evicts anything.
 *
 *   V1  An entry in a table is counted in its shard's and the cache's sums; all others are not.
 *   V2  Room is taken under the lock of the shard that it is for, and filled before that is let
 *       go. So who finds all shards empty and yet no room only needs to take each lock once.
 *   V3  `alive` is the number of entries that exist. At close all others have given back theirs
 *       exactly if each entry in the tables has one reference and there are no others.
 */
#include "value_cache.h"

#include <stdatomic.h>
#include <xxhash.h>

#include "base/list.h"
#include "base/lock.h"
#include "base/policy.h"

enum {
    SHARDS_MAX = 1024,
    KEY_MAX = INT32_MAX,
    AUTO_SHARDS = 16,     /* at most, if we choose how many; */
    AUTO_COUNT = 1024,    /* then each can have so many entries at least, */
    AUTO_BYTES = 1 << 20, /* and so many bytes */
    FIRST_BUCKETS = 16,
    EXPIRE_AT_ONCE = 8,    /* by one put */
    HISTORY_MAX = 1 << 20, /* entries that went which a shard remembers, at most */
    OVERHEAD = 16          /* an entry's bucket, and the allocator's own word */
};

struct entry {
    struct wi_policy_node node; /* hash: the key's */
    struct wi_list by_age;      /* in its shard's list */
    struct entry *chain; /* the next in the bucket; once taken out, in a list of the dead */
    struct shard *shard;
    uint64_t expires_ns; /* UINT64_MAX: never */
    void *data;          /* behind this record, or the caller's pointer */
    size_t len;          /* or what the pointer costs */
    uint32_t key_len : 31;
    uint32_t is_copied : 1;
    _Atomic uint32_t
        refs; /* up: relaxed, under the shard's lock; down: acq_rel, so that the last
                              one has seen what the others did */
};

_Static_assert(sizeof(struct entry) % 16 == 0, "values are aligned as malloc's memory is");

struct shard {
    struct wi_mutex mu;

    /* set at creation */
    struct weir_cache *cache;

    /* guarded by mu */
    struct entry **buckets;
    uint64_t bucket_mask;
    struct wi_policy *policy;
    struct wi_list by_age; /* the oldest first */
    uint64_t count;
    uint64_t hits;
    uint64_t misses;
    uint64_t puts;
    uint64_t evicted;
    uint64_t expired;

    /* atomic, relaxed: bytes is written under mu and read by all, as a hint; alive also counts
     * those that are out of the table and still held */
    _Atomic uint64_t bytes;
    _Atomic uint64_t alive;
} __attribute__((aligned(WI_CACHE_LINE)));

struct weir_cache {
    /* set at creation */
    const struct wi_os *os;
    uint64_t max_count;
    uint64_t max_bytes;
    uint64_t ttl_ns; /* 0: for ever */
    uint64_t seed;   /* of the hash, so that nobody can choose keys that collide */
    bool by_bytes;   /* the policy weighs entries */
    weir_cache_free_fn free_pointer;
    void *free_arg;
    uint32_t shard_count;
    struct shard *shards;

    /* atomic, relaxed: they guard no memory. Never above the limits. */
    _Atomic uint64_t count __attribute__((aligned(WI_CACHE_LINE)));
    _Atomic uint64_t bytes;
};

static uint64_t load(const _Atomic uint64_t *value)
{
    return atomic_load_explicit(value, memory_order_relaxed);
}

/* ---- entries ----------------------------------------------------------------------------- */

static const void *key_of(const struct entry *entry)
{
    return (const char *)(entry + 1) + (entry->is_copied ? entry->len : 0);
}

static uint64_t bytes_of(const struct entry *entry)
{
    return sizeof(*entry) + OVERHEAD + entry->key_len + entry->len;
}

static void free_entry(struct entry *entry)
{
    struct weir_cache *cache = entry->shard->cache;

    if (!entry->is_copied && cache->free_pointer)
        cache->free_pointer(cache->free_arg, entry->data);
    /* Last: a cache whose entries are all gone may be closed. */
    atomic_fetch_sub_explicit(&entry->shard->alive, 1, memory_order_release);
    free(entry);
}

/* No lock is held. */
static void unref(struct entry *entry)
{
    if (atomic_fetch_sub_explicit(&entry->refs, 1, memory_order_acq_rel) == 1)
        free_entry(entry);
}

/* What a table's references held. No lock is held. */
static void unref_dead(struct entry *dead)
{
    while (dead) {
        struct entry *next = dead->chain;

        unref(dead);
        dead = next;
    }
}

/* ---- a shard's table --------------------------------------------------------------------- */

static struct shard *shard_of(struct weir_cache *cache, uint64_t hash)
{
    return &cache->shards[(hash >> 32) * cache->shard_count >> 32];
}

static struct entry **bucket_of(const struct shard *shard, uint64_t hash)
{
    return &shard->buckets[hash & shard->bucket_mask];
}

/* The link that leads to it, or to NULL. */
static struct entry **find_locked(const struct shard *shard, uint64_t hash, const void *key,
                                  size_t key_len)
{
    struct entry **place = bucket_of(shard, hash);

    while (*place && ((*place)->node.hash != hash || (*place)->key_len != key_len ||
                      (key_len > 0 && memcmp(key_of(*place), key, key_len) != 0)))
        place = &(*place)->chain;
    return place;
}

/* Twice as many buckets. Without memory the chains get longer. */
static void grow_locked(struct shard *shard)
{
    uint64_t count = shard->bucket_mask + 1;
    struct entry **old = shard->buckets;
    struct entry **buckets = calloc(count * 2, sizeof(*buckets));

    if (!buckets)
        return;
    shard->buckets = buckets;
    shard->bucket_mask = count * 2 - 1;
    for (uint64_t i = 0; i < count; i++) {
        struct entry *next;

        for (struct entry *entry = old[i]; entry; entry = next) {
            struct entry **place = bucket_of(shard, entry->node.hash);

            next = entry->chain;
            entry->chain = *place;
            *place = entry;
        }
    }
    free(old);
}

/* V1: these two, and nobody else, change what is in a table. */
static void put_in_locked(struct shard *shard, struct entry *entry)
{
    struct entry **place;

    if (shard->count > shard->bucket_mask)
        grow_locked(shard);
    place = bucket_of(shard, entry->node.hash);
    entry->chain = *place;
    *place = entry;
    wi_list_push_back(&shard->by_age, &entry->by_age);
    wi_policy_insert(shard->policy, &entry->node, 0);
    shard->count++;
    atomic_store_explicit(&shard->bytes, load(&shard->bytes) + bytes_of(entry),
                          memory_order_relaxed);
}

/* Out of the table, and onto the list of the dead; its room is free. The policy forgets it,
 * unless that is where it came from. */
static void take_out_locked(struct shard *shard, struct entry **place, bool was_victim,
                            struct entry **dead)
{
    struct entry *entry = *place;

    *place = entry->chain;
    entry->chain = *dead;
    *dead = entry;
    wi_list_remove(&entry->by_age);
    if (!was_victim)
        wi_policy_remove(shard->policy, &entry->node);
    shard->count--;
    atomic_store_explicit(&shard->bytes, load(&shard->bytes) - bytes_of(entry),
                          memory_order_relaxed);
    atomic_fetch_sub_explicit(&shard->cache->bytes, bytes_of(entry), memory_order_relaxed);
    atomic_fetch_sub_explicit(&shard->cache->count, 1, memory_order_relaxed);
}

static struct entry **place_of(const struct shard *shard, const struct entry *entry)
{
    struct entry **place = bucket_of(shard, entry->node.hash);

    while (*place != entry)
        place = &(*place)->chain;
    return place;
}

/* At most `limit` that are too old. Returns true if there were any. */
static bool expire_locked(struct shard *shard, uint64_t now_ns, uint64_t limit,
                          struct entry **dead)
{
    uint64_t before = shard->expired;

    while (limit-- > 0 && !wi_list_empty(&shard->by_age)) {
        struct entry *entry = WI_CONTAINER_OF(shard->by_age.next, struct entry, by_age);

        if (entry->expires_ns > now_ns)
            break;
        take_out_locked(shard, place_of(shard, entry), false, dead);
        shard->expired++;
    }
    return shard->expired > before;
}

/* The link to the entry, or NULL; one that is too old goes. */
static struct entry **find_live_locked(struct shard *shard, uint64_t hash, const void *key,
                                       size_t key_len, uint64_t now_ns, struct entry **dead)
{
    struct entry **place = find_locked(shard, hash, key, key_len);

    if (!*place)
        return NULL;
    if ((*place)->expires_ns > now_ns)
        return place;
    take_out_locked(shard, place, false, dead);
    shard->expired++;
    return NULL;
}

static bool try_evict_locked(struct shard *shard, struct entry **dead)
{
    struct wi_policy_node *node = wi_policy_victim(shard->policy, NULL, NULL);
    struct entry *entry;

    if (!node)
        return false;
    entry = WI_CONTAINER_OF(node, struct entry, node);
    take_out_locked(shard, place_of(shard, entry), true, dead);
    shard->evicted++;
    return true;
}

/* ---- room -------------------------------------------------------------------------------- */

static bool try_add(_Atomic uint64_t *sum, uint64_t what, uint64_t limit)
{
    uint64_t now = load(sum);

    do
        if (what > limit - now)
            return false;
    while (!atomic_compare_exchange_weak_explicit(sum, &now, now + what, memory_order_relaxed,
                                                  memory_order_relaxed));
    return true;
}

static bool try_take_room(struct weir_cache *cache, uint64_t bytes)
{
    if (!try_add(&cache->count, 1, cache->max_count))
        return false;
    if (try_add(&cache->bytes, bytes, cache->max_bytes))
        return true;
    atomic_fetch_sub_explicit(&cache->count, 1, memory_order_relaxed);
    return false;
}

/* At least seven eighths of the average. */
static bool has_its_share(const struct shard *shard)
{
    uint64_t average = load(&shard->cache->bytes) / shard->cache->shard_count;

    return load(&shard->bytes) >= average - average / 8;
}

/* Until there is room for `bytes` more, what is too old goes, then what the policy says. False:
 * the rest has to come from other shards. */
static bool try_make_room_locked(struct shard *shard, uint64_t bytes, uint64_t now_ns,
                                 struct entry **dead)
{
    while (!try_take_room(shard->cache, bytes)) {
        if (expire_locked(shard, now_ns, 1, dead))
            continue;
        if (!has_its_share(shard) || !try_evict_locked(shard, dead))
            return false;
    }
    return true;
}

/* False: there is no room yet. What was under the key is gone then, too. */
static bool try_put_entry(struct shard *shard, struct entry *entry, uint64_t now_ns)
{
    struct entry *dead = NULL;
    struct entry **old;
    bool done;

    wi_mutex_lock(&shard->mu);
    old =
        find_live_locked(shard, entry->node.hash, key_of(entry), entry->key_len, now_ns, &dead);
    if (old)
        take_out_locked(shard, old, false, &dead);
    expire_locked(shard, now_ns, EXPIRE_AT_ONCE, &dead);
    done = try_make_room_locked(shard, bytes_of(entry), now_ns, &dead);
    if (done) {
        put_in_locked(shard, entry);
        shard->puts++;
    }
    wi_mutex_unlock(&shard->mu);
    unref_dead(dead);
    return done;
}

static void evict_one(struct shard *shard, uint64_t now_ns)
{
    struct entry *dead = NULL;

    wi_mutex_lock(&shard->mu);
    if (!expire_locked(shard, now_ns, 1, &dead))
        try_evict_locked(shard, &dead);
    wi_mutex_unlock(&shard->mu);
    unref_dead(dead);
}

/* ---- the calls --------------------------------------------------------------------------- */

static uint64_t hash_of(const struct weir_cache *cache, const void *key, size_t key_len)
{
    return XXH3_64bits_withSeed(key, key_len, cache->seed);
}

static uint64_t now_of(const struct weir_cache *cache) /* needed for ends only */
{
    return cache->ttl_ns ? wi_os_now(cache->os) : 0;
}

static int put(struct weir_cache *cache, const void *key, size_t key_len, const void *copy,
               void *pointer, size_t len)
{
    struct entry *entry;
    uint64_t bytes = wi_add_sat(wi_add_sat(key_len, len), sizeof(*entry) + OVERHEAD);
    uint64_t now_ns = now_of(cache);
    size_t copied = copy ? len : 0;
    uint64_t hash;
    uint32_t turn;

    if (key_len > KEY_MAX || bytes > cache->max_bytes || bytes > SIZE_MAX / 2)
        return -E2BIG;
    entry = malloc(sizeof(*entry) + copied + key_len);
    if (!entry)
        return -ENOMEM;
    hash = hash_of(cache, key, key_len);
    *entry = (struct entry){
        .node = { .hash = hash,
                  .cost = cache->by_bytes ? (uint32_t)wi_min_u64(bytes, UINT32_MAX) : 1 },
        .shard = shard_of(cache, hash),
        .expires_ns = cache->ttl_ns ? wi_add_sat(now_ns, cache->ttl_ns) : UINT64_MAX,
        .data = copy ? entry + 1 : pointer,
        .len = len,
        .key_len = (uint32_t)key_len & KEY_MAX,
        .is_copied = copy != NULL,
        .refs = 1,
    };
    wi_list_init(&entry->by_age);
    if (copied > 0)
        memcpy(entry + 1, copy, copied);
    if (key_len > 0)
        memcpy((char *)(entry + 1) + copied, key, key_len);
    atomic_fetch_add_explicit(&entry->shard->alive, 1, memory_order_relaxed);

    turn = (uint32_t)(entry->shard - cache->shards);
    while (!try_put_entry(entry->shard, entry, now_ns)) {
        turn = (turn + 1) % cache->shard_count;
        evict_one(&cache->shards[turn], now_ns);
    }
    return 0;
}

int weir_cache_put(struct weir_cache *cache, const void *key, size_t key_len, const void *value,
                   size_t len)
{
    if (!cache || (!key && key_len > 0) || (!value && len > 0))
        return -EINVAL;
    return put(cache, key, key_len, value ? value : "", NULL, len);
}

int weir_cache_put_pointer(struct weir_cache *cache, const void *key, size_t key_len,
                           void *pointer, size_t cost)
{
    if (!cache || (!key && key_len > 0))
        return -EINVAL;
    return put(cache, key, key_len, NULL, pointer, cost);
}

int weir_cache_get(struct weir_cache *cache, const void *key, size_t key_len,
                   struct weir_cache_value *ret_value)
{
    struct entry *dead = NULL;
    struct entry *entry = NULL;
    struct entry **place;
    struct shard *shard;
    uint64_t now_ns;
    uint64_t hash;

    if (!cache || (!key && key_len > 0) || !ret_value)
        return -EINVAL;
    now_ns = now_of(cache);
    hash = hash_of(cache, key, key_len);
    shard = shard_of(cache, hash);
    wi_mutex_lock(&shard->mu);
    place = find_live_locked(shard, hash, key, key_len, now_ns, &dead);
    if (place) {
        entry = *place;
        atomic_fetch_add_explicit(&entry->refs, 1, memory_order_relaxed);
        wi_policy_touch(shard->policy, &entry->node);
        shard->hits++;
    } else {
        shard->misses++;
    }
    wi_mutex_unlock(&shard->mu);
    unref_dead(dead);
    if (!entry)
        return -ENOENT;
    *ret_value =
        (struct weir_cache_value){ .data = entry->data, .len = entry->len, .private_ = entry };
    return 0;
}

void weir_cache_release(struct weir_cache_value *value)
{
    if (!value || !value->private_)
        return;
    unref(value->private_);
    *value = (struct weir_cache_value){ 0 };
}

int weir_cache_remove(struct weir_cache *cache, const void *key, size_t key_len)
{
    struct entry *dead = NULL;
    struct entry **place;
    struct shard *shard;
    uint64_t now_ns;
    uint64_t hash;

    if (!cache || (!key && key_len > 0))
        return -EINVAL;
    now_ns = now_of(cache);
    hash = hash_of(cache, key, key_len);
    shard = shard_of(cache, hash);
    wi_mutex_lock(&shard->mu);
    place = find_live_locked(shard, hash, key, key_len, now_ns, &dead);
    if (place)
        take_out_locked(shard, place, false, &dead);
    wi_mutex_unlock(&shard->mu);
    unref_dead(dead);
    return place ? 0 : -ENOENT;
}

void weir_cache_clear(struct weir_cache *cache)
{
    for (uint32_t i = 0; cache && i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        struct entry *dead = NULL;

        wi_mutex_lock(&shard->mu);
        while (!wi_list_empty(&shard->by_age))
            take_out_locked(
                shard,
                place_of(shard, WI_CONTAINER_OF(shard->by_age.next, struct entry, by_age)),
                false, &dead);
        wi_mutex_unlock(&shard->mu);
        unref_dead(dead);
    }
}

int weir_cache_info(struct weir_cache *cache, struct weir_cache_info *info)
{
    struct weir_cache_info full = { 0 };

    if (!cache || !info || info->size < sizeof(info->size))
        return -EINVAL;
    full.size = info->size;
    for (uint32_t i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        struct entry *dead = NULL;

        wi_mutex_lock(&shard->mu);
        expire_locked(shard, now_of(cache), UINT64_MAX, &dead);
        full.hits += shard->hits;
        full.misses += shard->misses;
        full.puts += shard->puts;
        full.evicted += shard->evicted;
        full.expired += shard->expired;
        wi_mutex_unlock(&shard->mu);
        unref_dead(dead);
    }
    /* Not the sums over shards, which are from different moments and could exceed the
     * limits. */
    full.count = load(&cache->count);
    full.bytes = load(&cache->bytes);
    memcpy(info, &full, info->size < sizeof(full) ? info->size : sizeof(full));
    return 0;
}

/* ---- open and close ---------------------------------------------------------------------- */

static uint32_t count_shards(const struct weir_cache *cache, uint32_t asked)
{
    uint32_t count = 1;

    if (asked > 0)
        return asked;
    while (count < AUTO_SHARDS && cache->max_count / 2 / count >= AUTO_COUNT &&
           cache->max_bytes / 2 / count >= AUTO_BYTES)
        count *= 2;
    return count;
}

static int shard_init(struct weir_cache *cache, struct shard *shard, enum wi_policy_kind kind)
{
    uint64_t count = wi_add_sat(cache->max_count / cache->shard_count, 1);
    uint64_t bytes = wi_add_sat(cache->max_bytes / cache->shard_count, 1);
    uint64_t entries = wi_min_u64(count, bytes / (sizeof(struct entry) + OVERHEAD) + 1);
    int rc;

    memset(shard, 0, sizeof(*shard));
    shard->cache = cache;
    wi_list_init(&shard->by_age);
    shard->bucket_mask = FIRST_BUCKETS - 1;
    shard->buckets = calloc(FIRST_BUCKETS, sizeof(*shard->buckets));
    if (!shard->buckets)
        return -ENOMEM;
    /* How large the entries will be is not known, so this is as many as there could be; the
     * policy finds out, and touches no more memory than it uses. */
    rc = wi_policy_create(kind, cache->by_bytes ? bytes : count,
                          wi_min_u64(entries, HISTORY_MAX), &shard->policy);
    if (rc < 0) {
        free(shard->buckets);
        return rc;
    }
    wi_mutex_init(&shard->mu, WI_RANK_SHARD);
    return 0;
}

/* Of which the first `count` shards have been made, and are empty. */
static void cache_destroy(struct weir_cache *cache, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        wi_policy_destroy(cache->shards[i].policy);
        free(cache->shards[i].buckets);
        wi_mutex_fini(&cache->shards[i].mu);
    }
    free(cache->shards);
    free(cache);
}

int wi_value_cache_open(const struct weir_cache_options *options, const struct wi_os *os,
                        struct weir_cache **ret_cache)
{
    struct weir_cache_options full = { 0 };
    struct weir_cache *cache;

    if (!options || !ret_cache || options->size < sizeof(options->size))
        return -EINVAL;
    memcpy(&full, options, options->size < sizeof(full) ? options->size : sizeof(full));
    if ((full.max_count == 0 && full.max_bytes == 0) || full.policy >= WEIR_POLICIES ||
        full.shards > SHARDS_MAX)
        return -EINVAL;

    cache = aligned_alloc(WI_CACHE_LINE, sizeof(*cache));
    if (!cache)
        return -ENOMEM;
    memset(cache, 0, sizeof(*cache));
    cache->os = os;
    cache->max_count = full.max_count ? full.max_count : UINT64_MAX;
    cache->max_bytes = full.max_bytes ? full.max_bytes : UINT64_MAX;
    cache->by_bytes = full.max_bytes != 0;
    cache->ttl_ns = full.ttl_ns;
    cache->free_pointer = full.free_pointer;
    cache->free_arg = full.free_arg;
    cache->shard_count = count_shards(cache, full.shards);
    /* Without chance the hash is only as good as it is for friendly keys. */
    if (os->ops->random(os, &cache->seed, sizeof(cache->seed)) < 0)
        cache->seed = wi_os_now(os);
    cache->shards = aligned_alloc(WI_CACHE_LINE, cache->shard_count * sizeof(*cache->shards));
    if (!cache->shards) {
        cache_destroy(cache, 0);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < cache->shard_count; i++) {
        int rc = shard_init(cache, &cache->shards[i], (enum wi_policy_kind)full.policy);

        if (rc < 0) {
            cache_destroy(cache, i);
            return rc;
        }
    }
    *ret_cache = cache;
    return 0;
}

int weir_cache_open(const struct weir_cache_options *options, struct weir_cache **ret_cache)
{
    return wi_value_cache_open(options, wi_os_posix(), ret_cache);
}

static bool is_held_locked(struct shard *shard) /* V3 */
{
    struct wi_list *link;

    list_for_each(link, &shard->by_age) {
        const struct entry *entry = WI_CONTAINER_OF(link, struct entry, by_age);

        if (atomic_load_explicit(&entry->refs, memory_order_acquire) > 1)
            return true;
    }
    return atomic_load_explicit(&shard->alive, memory_order_acquire) != shard->count;
}

int weir_cache_close(struct weir_cache *cache)
{
    bool is_held = false;

    if (!cache)
        return 0;
    for (uint32_t i = 0; i < cache->shard_count && !is_held; i++) {
        wi_mutex_lock(&cache->shards[i].mu);
        is_held = is_held_locked(&cache->shards[i]);
        wi_mutex_unlock(&cache->shards[i].mu);
    }
    if (is_held)
        return -EBUSY;
    weir_cache_clear(cache);
    cache_destroy(cache, cache->shard_count);
    return 0;
}
