/* SPDX-License-Identifier: MIT */
/*
 * cache.c - the block cache: frames, what is found in them, and who may have them
 *
 * Problem      many threads look into one cache, and a hit must cost less than 60 ns; what is
 *              pinned must stay what it is; and a block that was loaded while somebody wrote
 *              to it must never be found.
 * Idea         a hit takes no lock: it looks the block up in a table of atomic words, adds a
 *              pin to the frame, and looks whether it is still the right one. Everything else
 *              is done under the lock of the block's shard. A look-up that fails is made
 *              again under the lock, so the table may move entries under its readers: they
 *              then miss what is there, and look again.
 * Structures   one mapping for the blocks, and a frame of 64 bytes for each. Frames belong to
 *              one of up to 16 shards for good, and so does each block, by the highest bits
 *              of its hash. A shard's table is open addressing with linear probing, at most
 *              half full, an entry being a part of the hash and the number of the frame. To
 *              remove one, those behind it are moved up, so there are no tombstones and
 *              nothing is ever rebuilt.
 * Here         creation; pins; frames for loads; publishing; tokens for views; statistics.
 * Not here     files, and what writing does (cache_file.c); blocking reads (cache_read.c).
 *
 * The states of a frame, which are the flags in its word, and who moves it between them. All
 * but the last pin of an orphan under the shard's lock:
 *
 *   FREE             -> LOADING          wi_cache_load_begin_locked
 *   LOADING          -> VALID            publish_locked            the policy has it
 *   LOADING          -> VALID | AHEAD    publish_locked            it waits in shard->ahead
 *   LOADING          -> ORPHAN           wi_cache_load_end         only the loader reads it
 *   VALID | AHEAD    -> VALID            wi_cache_first_use_locked
 *   VALID (| AHEAD)  -> no flag -> back  update_in_place (cache_file.c), if nobody has a pin
 *   VALID (| AHEAD)  -> FREE             evict_locked, wi_cache_drop_locked, without pins
 *   VALID (| AHEAD)  -> ORPHAN           wi_cache_drop_locked, with pins
 *   ORPHAN           -> FREE             free_orphan               with the last pin
 *
 *   F1  A frame is in the table exactly when it is VALID (or being updated, under the lock).
 *   F2  VALID goes only while there is no pin, or it becomes ORPHAN: so who added a pin to a
 *       VALID frame can read it until he takes the pin away.
 *   F3  A look-up may add a pin for a moment to any frame, whatever it is by now. So the
 *       number of pins means something only together with VALID and ORPHAN, and all changes
 *       of the word are read-modify-write.
 *
 * Memory order. A pin acquires, taking it away releases; VALID is set with release and gone
 * with acquire. So the bytes of a frame that is filled again are written after its last
 * reader has read, and read after they were written.
 *
 * What was prefetched is no business of the policy until it is asked for: it waits in a FIFO
 * of the shard, with the prefetches under way at most a quarter of its frames (half, where there
 * are several shards: a prefetcher keeps to a quarter of the cache, but its blocks are not
 * spread evenly), and not more than half of those that views leave. One that nobody has asked for
 * while the frames of the shard were taken once over, or twice, goes before anything else.
 *
 * Limits       a table entry names a frame by 32 bits. With other policies than S3-FIFO each hit
 *              takes the shard's lock.
 */
#include "cache_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

#define BLOCK_SIZE_DEFAULT (64u << 10)
#define BOUNCES            4
#define EVICT_TRIES        8

/* ---- the table ------------------------------------------------------------------------- */

static uint64_t get(struct shard *shard, uint32_t slot)
{
    return atomic_load_explicit(&shard->table[slot], memory_order_relaxed);
}

static void set(struct shard *shard, uint32_t slot, uint64_t entry)
{
    atomic_store_explicit(&shard->table[slot], entry, memory_order_relaxed);
}

/* Where the entry would be, were there no others. */
static uint32_t home_of(const struct shard *shard, uint64_t entry)
{
    return (uint32_t)(entry >> 32) & shard->mask;
}

static void table_insert(const struct wi_cache *cache, struct shard *shard,
                         const struct wi_frame *frame) WI_REQUIRES(shard->mu)
{
    uint64_t number = (uint64_t)(frame - cache->frames) + 1;
    uint64_t entry = frame->node.hash << 32 | number;
    uint32_t slot = home_of(shard, entry);

    while (get(shard, slot) != 0)
        slot = (slot + 1) & shard->mask;
    set(shard, slot, entry);
}

static void table_remove(const struct wi_cache *cache, struct shard *shard,
                         const struct wi_frame *frame) WI_REQUIRES(shard->mu)
{
    uint64_t number = (uint64_t)(frame - cache->frames) + 1;
    uint64_t entry = frame->node.hash << 32 | number;
    uint32_t hole = home_of(shard, entry);
    uint32_t slot;

    while (get(shard, hole) != entry) {
        WEIR_DCHECK(get(shard, hole) != 0); /* F1 */
        hole = (hole + 1) & shard->mask;
    }
    /* Move up what is behind and may stand here: whose way from home leads over the hole. */
    for (slot = (hole + 1) & shard->mask; (entry = get(shard, slot)) != 0;
         slot = (slot + 1) & shard->mask) {
        if (((slot - home_of(shard, entry)) & shard->mask) >= ((slot - hole) & shard->mask)) {
            set(shard, hole, entry);
            hole = slot;
        }
    }
    set(shard, hole, 0);
}

struct wi_frame *wi_cache_find_locked(struct wi_cache *cache, struct shard *shard,
                                      const struct wi_cache_file *file, uint64_t block,
                                      uint64_t hash)
{
    uint64_t entry;

    for (uint32_t slot = (uint32_t)hash & shard->mask; (entry = get(shard, slot)) != 0;
         slot = (slot + 1) & shard->mask) {
        struct wi_frame *frame = &cache->frames[(uint32_t)entry - 1];

        if (entry >> 32 == (uint32_t)hash && frame->file == file && frame->block == block)
            return frame;
    }
    return NULL;
}

/* ---- pins ------------------------------------------------------------------------------ */

static struct shard *shard_of_frame(const struct wi_cache *cache, const struct wi_frame *frame)
{
    return &cache->shards[(size_t)(frame - cache->frames) & (cache->shards_count - 1)];
}

/* Its last pin has gone, or so it seemed: a look-up can have pinned it since, and then it is
 * that one's to free. */
static __attribute__((noinline, cold)) void free_orphan(struct wi_cache *cache,
                                                        struct wi_frame *frame)
{
    struct shard *shard = shard_of_frame(cache, frame);
    uint32_t word = FRAME_ORPHAN;

    wi_mutex_lock(&shard->mu);
    if (atomic_compare_exchange_strong_explicit(&frame->word, &word, 0, memory_order_acquire,
                                                memory_order_relaxed))
        wi_list_push_front(&shard->free, &frame->node.link);
    wi_mutex_unlock(&shard->mu);
}

void wi_cache_unpin(struct wi_cache *cache, struct wi_frame *frame)
{
    uint32_t old = atomic_fetch_sub_explicit(&frame->word, 1, memory_order_release);

    WEIR_DCHECK((old & FRAME_PINS) > 0);
    if (WI_UNLIKELY(old == (FRAME_ORPHAN | 1)))
        free_orphan(cache, frame);
}

/* The frame, pinned, and its word; NULL: it isn't there, or it is moving. */
static inline struct wi_frame *look_up(struct wi_cache *cache, struct shard *shard,
                                       const struct wi_cache_file *file, uint64_t block,
                                       uint64_t hash, uint32_t *ret_word)
{
    uint64_t entry;

    for (uint32_t slot = (uint32_t)hash & shard->mask; (entry = get(shard, slot)) != 0;
         slot = (slot + 1) & shard->mask) {
        struct wi_frame *frame;

        if (entry >> 32 != (uint32_t)hash)
            continue;
        frame = &cache->frames[(uint32_t)entry - 1];
        *ret_word = atomic_fetch_add_explicit(&frame->word, 1, memory_order_acquire);
        if (WI_LIKELY((*ret_word & FRAME_VALID) && frame->file == file &&
                      frame->block == block))
            return frame;
        wi_cache_unpin(cache, frame);
    }
    return NULL;
}

static __attribute__((noinline)) struct wi_frame *look_again(struct wi_cache *cache,
                                                             struct shard *shard,
                                                             const struct wi_cache_file *file,
                                                             uint64_t block, uint64_t hash,
                                                             bool count, uint32_t *ret_word)
{
    struct wi_frame *frame;

    wi_mutex_lock(&shard->mu);
    frame = wi_cache_find_locked(cache, shard, file, block, hash);
    if (frame)
        *ret_word = atomic_fetch_add_explicit(&frame->word, 1, memory_order_acquire);
    else if (count)
        shard->misses++;
    wi_mutex_unlock(&shard->mu);
    return frame;
}

/* Drop the frame, which is pinned by the caller, if it is too old. */
static bool is_expired(struct wi_cache *cache, struct shard *shard, struct wi_frame *frame,
                       bool count, uint64_t now_ns)
{
    uint64_t now = now_ns ? now_ns : wi_os_now(cache->engine->os);

    if (now < frame->loaded_ns || now - frame->loaded_ns <= cache->ttl_ns)
        return false;
    wi_mutex_lock(&shard->mu);
    if (atomic_load_explicit(&frame->word, memory_order_relaxed) & FRAME_VALID) {
        wi_cache_drop_locked(cache, shard, frame);
        shard->expired++;
    }
    shard->misses += count;
    wi_mutex_unlock(&shard->mu);
    wi_cache_unpin(cache, frame);
    return true;
}

bool wi_cache_first_use_locked(struct shard *shard, struct wi_frame *frame, bool once)
{
    uint32_t word = atomic_load_explicit(&frame->word, memory_order_relaxed);

    if (!(word & FRAME_VALID) || !(word & FRAME_AHEAD))
        return false;
    wi_list_remove(&frame->node.link);
    shard->ahead_count--;
    shard->prefetch_used += frame->len;
    wi_policy_insert(shard->policy, &frame->node, once ? WI_POLICY_EVICT_FIRST : 0);
    atomic_fetch_and_explicit(&frame->word, ~FRAME_AHEAD, memory_order_relaxed);
    return true;
}

/* A hit for which the policy needs the lock. */
static __attribute__((noinline)) enum wi_pin_result tell_policy(struct shard *shard,
                                                                struct wi_frame *frame,
                                                                bool once)
{
    bool first;

    wi_mutex_lock(&shard->mu);
    first = wi_cache_first_use_locked(shard, frame, once);
    if (!first && !once &&
        (atomic_load_explicit(&frame->word, memory_order_relaxed) & FRAME_VALID))
        wi_policy_touch(shard->policy, &frame->node);
    wi_mutex_unlock(&shard->mu);
    return first ? WI_PIN_HIT_PREFETCHED : WI_PIN_HIT;
}

enum wi_pin_result wi_cache_pin(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                                uint32_t flags, uint64_t now_ns, struct wi_frame **ret_frame)
{
    struct wi_cache_file *cache_file = file->cache_file;
    uint64_t hash = hash_block(cache_file, block);
    struct shard *shard = shard_of(cache, hash);
    bool peeks = flags & WI_PIN_PEEK;
    /* A scan's hits are no uses, nor is the rest of what a small reader has of a block. */
    bool once = (flags & (WI_PIN_ONCE | WI_PIN_AGAIN)) || is_scanned(file);
    uint32_t word;
    struct wi_frame *frame = look_up(cache, shard, cache_file, block, hash, &word);

    if (WI_UNLIKELY(!frame)) {
        frame = look_again(cache, shard, cache_file, block, hash, !peeks, &word);
        if (!frame)
            return WI_PIN_MISS;
    }
    if (WI_UNLIKELY(cache->ttl_ns != 0) && is_expired(cache, shard, frame, !peeks, now_ns))
        return WI_PIN_MISS;
    *ret_frame = frame;
    if (peeks)
        return WI_PIN_HIT;
    atomic_fetch_add_explicit(&my_stripe(cache)->hits, 1, memory_order_relaxed);
    if (WI_UNLIKELY(!cache->lockless || (word & FRAME_AHEAD)))
        return tell_policy(shard, frame, once);
    if (!once)
        wi_policy_touch_unlocked(&frame->node);
    return WI_PIN_HIT;
}

void wi_cache_pin_more(struct wi_frame *frame)
{
    uint32_t old = atomic_fetch_add_explicit(&frame->word, 1, memory_order_relaxed);

    WEIR_DCHECK((old & FRAME_PINS) > 0);
    (void)old;
}

const unsigned char *wi_frame_data(const struct wi_cache *cache, const struct wi_frame *frame)
{
    return cache->base + ((size_t)(frame - cache->frames) << cache->block_shift);
}

uint32_t wi_frame_len(const struct wi_frame *frame)
{
    return frame->len;
}

/* ---- tokens for views ------------------------------------------------------------------ */

/* My stock is empty: half of another's. Under a lock, so that nobody finds tokens nowhere
 * that are on their way from one stock to another. */
static __attribute__((noinline)) bool steal_view(struct wi_cache *cache)
{
    uint32_t mine = wi_this_thread() % CACHE_STRIPES;
    bool found = false;

    wi_mutex_lock(&cache->views_mu);
    for (uint32_t i = 0; i < CACHE_STRIPES && !found; i++) {
        _Atomic int64_t *stock = &cache->stripes[(mine + i) % CACHE_STRIPES].views;
        int64_t have = atomic_load_explicit(stock, memory_order_relaxed);

        while (have > 0 && !found) {
            int64_t part = (have + 1) / 2;

            if (!atomic_compare_exchange_weak_explicit(
                    stock, &have, have - part, memory_order_relaxed, memory_order_relaxed))
                continue;
            atomic_fetch_add_explicit(&cache->stripes[mine].views, part - 1,
                                      memory_order_relaxed);
            found = true;
        }
    }
    wi_mutex_unlock(&cache->views_mu);
    return found;
}

bool wi_cache_take_view(struct wi_cache *cache)
{
    _Atomic int64_t *stock = &my_stripe(cache)->views;
    int64_t have = atomic_load_explicit(stock, memory_order_relaxed);

    while (WI_LIKELY(have > 0)) {
        if (atomic_compare_exchange_weak_explicit(stock, &have, have - 1, memory_order_relaxed,
                                                  memory_order_relaxed))
            return true;
    }
    return steal_view(cache);
}

void wi_cache_give_view(struct wi_cache *cache)
{
    atomic_fetch_add_explicit(&my_stripe(cache)->views, 1, memory_order_relaxed);
}

uint64_t wi_cache_views_out(struct wi_cache *cache)
{
    int64_t out = cache->views_max;

    for (uint32_t i = 0; i < CACHE_STRIPES; i++)
        out -= atomic_load_explicit(&cache->stripes[i].views, memory_order_relaxed);
    return out < 0 ? 0 : (uint64_t)out;
}

/* ---- room ------------------------------------------------------------------------------ */

void wi_cache_drop_locked(struct wi_cache *cache, struct shard *shard, struct wi_frame *frame)
{
    uint32_t word = atomic_load_explicit(&frame->word, memory_order_relaxed);
    uint32_t next;

    WEIR_DCHECK(word & FRAME_VALID);
    table_remove(cache, shard, frame);
    shard->blocks--;
    if (word & FRAME_AHEAD) {
        wi_list_remove(&frame->node.link);
        shard->ahead_count--;
        shard->prefetch_wasted += frame->len;
    } else {
        wi_policy_remove(shard->policy, &frame->node);
    }
    do {
        next = (word & FRAME_PINS) ? (word & FRAME_PINS) | FRAME_ORPHAN : 0;
    } while (!atomic_compare_exchange_weak_explicit(
        &frame->word, &word, next, memory_order_acq_rel, memory_order_relaxed));
    if (next == 0)
        wi_list_push_front(&shard->free, &frame->node.link);
}

static bool is_unpinned(struct wi_policy_node *node, void *arg)
{
    struct wi_frame *frame = WI_CONTAINER_OF(node, struct wi_frame, node);

    (void)arg;
    return (atomic_load_explicit(&frame->word, memory_order_relaxed) & FRAME_PINS) == 0;
}

static struct wi_frame *evict_locked(struct wi_cache *cache, struct shard *shard)
    WI_REQUIRES(shard->mu)
{
    for (uint32_t tries = 0; tries < EVICT_TRIES; tries++) {
        struct wi_policy_node *node = wi_policy_victim(shard->policy, is_unpinned, NULL);
        uint32_t word = FRAME_VALID;
        struct wi_frame *frame;

        if (!node)
            return NULL;
        frame = WI_CONTAINER_OF(node, struct wi_frame, node);
        if (atomic_compare_exchange_strong_explicit(
                &frame->word, &word, 0, memory_order_acquire, memory_order_relaxed)) {
            table_remove(cache, shard, frame);
            shard->blocks--;
            shard->evicted++;
            return frame;
        }
        wi_policy_insert(shard->policy, node, 0); /* somebody has pinned it just now */
    }
    return NULL;
}

static struct wi_frame *unused_locked(struct wi_cache *cache, struct shard *shard)
    WI_REQUIRES(shard->mu)
{
    struct wi_list *link = wi_list_pop_front(&shard->free);

    if (link)
        return WI_CONTAINER_OF(link, struct wi_frame, node.link);
    if (shard->fresh < shard->frames)
        return &cache->frames[shard->index + cache->shards_count * shard->fresh++];
    return NULL;
}

/* Free the frame of the oldest prefetched block that nobody has asked for. */
static bool drop_oldest_ahead(struct wi_cache *cache, struct shard *shard)
    WI_REQUIRES(shard->mu)
{
    struct wi_list *link;

    list_for_each(link, &shard->ahead) {
        struct wi_frame *frame = WI_CONTAINER_OF(link, struct wi_frame, node.link);

        if (is_unpinned(&frame->node, NULL)) {
            wi_cache_drop_locked(cache, shard, frame);
            return true;
        }
    }
    return false;
}

static bool has_room_ahead(struct wi_cache *cache, struct shard *shard) WI_REQUIRES(shard->mu)
{
    uint64_t viewed = shard->frames * wi_cache_views_out(cache) / cache->frames_count;
    uint64_t share = cache->shards_count > 1 ? shard->frames / 2 : shard->frames / 4;
    uint64_t most = wi_min_u64(share, (shard->frames - viewed) / 2);

    while (shard->ahead_count >= most) {
        if (!drop_oldest_ahead(cache, shard))
            return false;
    }
    return true;
}

/* How often all frames of the shard were taken, in the 16 bits that a node has to spare. */
static uint16_t turnover(const struct shard *shard)
{
    return (uint16_t)(shard->taken / shard->frames);
}

static bool has_forgotten_ahead(const struct shard *shard)
{
    const struct wi_frame *oldest;

    if (wi_list_empty(&shard->ahead))
        return false;
    oldest = WI_CONTAINER_OF(shard->ahead.next, struct wi_frame, node.link);
    return (uint16_t)(turnover(shard) - oldest->node.spare) >= 2;
}

static struct wi_frame *take_frame(struct wi_cache *cache, struct shard *shard, bool is_ahead)
    WI_REQUIRES(shard->mu)
{
    struct wi_frame *frame;

    if (is_ahead && !has_room_ahead(cache, shard))
        return NULL;
    if (has_forgotten_ahead(shard))
        (void)drop_oldest_ahead(cache, shard);
    frame = unused_locked(cache, shard);
    if (!frame)
        frame = evict_locked(cache, shard);
    if (!frame && !is_ahead && drop_oldest_ahead(cache, shard))
        frame = unused_locked(cache, shard);
    shard->taken += frame != NULL;
    return frame;
}

/* ---- loading --------------------------------------------------------------------------- */

int wi_cache_load_begin_locked(struct wi_cache *cache, struct shard *shard,
                               struct weir_file *file, uint64_t block, uint64_t hash,
                               uint32_t flags, struct wi_load_ticket *ticket)
{
    bool is_ahead = flags & WI_LOAD_PREFETCH;
    struct wi_frame *frame = take_frame(cache, shard, is_ahead);

    if (!frame)
        return -ENOBUFS;
    atomic_fetch_add_explicit(&frame->word, 1, memory_order_relaxed);
    frame->file = file->cache_file;
    frame->block = block;
    frame->node = (struct wi_policy_node){ .hash = hash, .cost = 1 };
    wi_list_init(&frame->node.link);
    if (cache->ttl_ns != 0) /* from now on what is read may be as old as this */
        frame->loaded_ns = wi_os_now(cache->engine->os);
    shard->ahead_count += is_ahead;
    ticket->frame = frame;
    ticket->file = file;
    ticket->block = block;
    ticket->flags = flags;
    ticket->versions[0] = version_of(shard, hash)->number;
    note_epochs(file->cache_file, ticket);
    return 0;
}

int wi_cache_load_begin(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                        uint32_t flags, struct wi_load_ticket *ticket)
{
    uint64_t hash = hash_block(file->cache_file, block);
    struct shard *shard = shard_of(cache, hash);
    int rc;

    wi_mutex_lock(&shard->mu);
    rc = wi_cache_load_begin_locked(cache, shard, file, block, hash, flags, ticket);
    wi_mutex_unlock(&shard->mu);
    return rc;
}

unsigned char *wi_load_data(struct wi_cache *cache, const struct wi_load_ticket *ticket)
{
    return cache->base + ((size_t)(ticket->frame - cache->frames) << cache->block_shift);
}

/* What was read is the block as it is: but for its length, if it is short. */
static bool is_unwritten(struct shard *shard, const struct wi_load_ticket *ticket,
                         uint64_t hash) WI_REQUIRES(shard->mu)
{
    struct version *version = version_of(shard, hash);

    return version->number == ticket->versions[0] && version->writers == 0 &&
           atomic_load(&ticket->file->cache_file->cut) == ticket->versions[2];
}

bool wi_cache_is_fresh_locked(struct shard *shard, const struct wi_load_ticket *ticket,
                              uint64_t hash)
{
    return is_unwritten(shard, ticket, hash) &&
           atomic_load(&ticket->file->cache_file->grow) == ticket->versions[1];
}

bool wi_cache_load_is_fresh(struct wi_cache *cache, const struct wi_load_ticket *ticket)
{
    uint64_t hash = hash_block(ticket->file->cache_file, ticket->block);
    struct shard *shard = shard_of(cache, hash);
    bool fresh;

    wi_mutex_lock(&shard->mu);
    fresh = wi_cache_is_fresh_locked(shard, ticket, hash);
    wi_mutex_unlock(&shard->mu);
    return fresh;
}

/* Let others find it. False if it must not be. */
static bool publish_locked(struct wi_cache *cache, struct shard *shard,
                           const struct wi_load_ticket *ticket, bool wanted)
    WI_REQUIRES(shard->mu)
{
    struct wi_frame *frame = ticket->frame;
    struct wi_cache_file *file = frame->file;
    uint64_t hash = frame->node.hash;
    bool once = (ticket->flags & WI_LOAD_ONCE) || is_scanned(ticket->file);

    if (!is_unwritten(shard, ticket, hash) ||
        (frame->len < cache->block_size && (atomic_load(&file->tail) != ticket->block ||
                                            !wi_cache_is_fresh_locked(shard, ticket, hash)))) {
        shard->unpublished++;
        return false;
    }
    if (wi_cache_find_locked(cache, shard, file, ticket->block, hash))
        return false; /* another load was first */
    table_insert(cache, shard, frame);
    shard->blocks++;
    if (wanted) {
        wi_policy_insert(shard->policy, &frame->node, once ? WI_POLICY_EVICT_FIRST : 0);
    } else {
        frame->node.spare = turnover(shard);
        wi_list_push_back(&shard->ahead, &frame->node.link);
        shard->ahead_count++;
    }
    atomic_fetch_or_explicit(&frame->word, wanted ? FRAME_VALID : FRAME_VALID | FRAME_AHEAD,
                             memory_order_release);
    return true;
}

void wi_cache_load_end(struct wi_cache *cache, struct wi_load_ticket *ticket, int64_t len,
                       bool demanded)
{
    struct wi_frame *frame = ticket->frame;
    struct wi_cache_file *file = frame->file;
    struct shard *shard = shard_of_frame(cache, frame);
    bool is_ahead = ticket->flags & WI_LOAD_PREFETCH;
    bool published = false;

    frame->len = len > 0 ? (uint32_t)len : 0;
    if (len > 0) {
        if (frame->len < cache->block_size)
            wi_cache_file_take_tail(cache, ticket);
        wi_cache_file_raise_top(file, ticket->block);
    }
    wi_mutex_lock(&shard->mu);
    shard->ahead_count -= is_ahead;
    /* An empty block, behind the end of the file, isn't worth a frame: there are many of
     * them. */
    if (len > 0)
        published = publish_locked(cache, shard, ticket, !is_ahead || demanded);
    if (!published)
        atomic_fetch_or_explicit(&frame->word, FRAME_ORPHAN, memory_order_relaxed);
    if (is_ahead) {
        shard->prefetched += frame->len;
        if (demanded)
            shard->prefetch_used += frame->len;
        else if (!published)
            shard->prefetch_wasted += frame->len;
    }
    wi_mutex_unlock(&shard->mu);
    if (len < 0)
        wi_cache_unpin(cache, frame);
    else
        wi_cache_file_learn(cache, ticket, (uint32_t)len);
}

/* ---- creation -------------------------------------------------------------------------- */

/* Zeroes, not touched; NULL without memory. */
static void *map_memory(size_t bytes, size_t *ret_bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return NULL;
    *ret_bytes = bytes;
    return at;
}

static void unmap_memory(void *at, size_t bytes)
{
    if (at)
        munmap(at, bytes);
}

static uint32_t next_power_of_2(uint32_t value)
{
    uint32_t power = 1;

    while (power < value)
        power *= 2;
    return power;
}

static uint32_t shard_frames(const struct wi_cache *cache, uint32_t shard)
{
    return (cache->frames_count - shard + cache->shards_count - 1) / cache->shards_count;
}

static int init_shard(struct wi_cache *cache, uint32_t index, uint32_t policy,
                      _Atomic uint64_t *table, uint32_t slots)
{
    struct shard *shard = &cache->shards[index];
    int rc;

    shard->table = table;
    shard->mask = slots - 1;
    shard->index = index;
    shard->frames = shard_frames(cache, index);
    wi_mutex_init(&shard->mu, WI_RANK_SHARD);
    wi_cond_init(&shard->loaded);
    wi_list_init(&shard->free);
    wi_list_init(&shard->ahead);
    wi_list_init(&shard->loads);
    rc = wi_policy_create((enum wi_policy_kind)policy, shard->frames, shard->frames,
                          &shard->policy);
    if (rc < 0)
        return rc;
    cache->metadata_bytes += wi_policy_memory(shard->policy);
    return 0;
}

static int init_shards(struct wi_cache *cache, uint32_t policy)
{
    uint32_t slots;
    size_t bytes;

    cache->shards_count = CACHE_SHARDS_MAX;
    while (cache->shards_count > 1 &&
           cache->frames_count / cache->shards_count < CACHE_SHARD_FRAMES)
        cache->shards_count /= 2;
    bytes = cache->shards_count * sizeof(struct shard);
    cache->shards = aligned_alloc(WI_CACHE_LINE, bytes);
    if (!cache->shards)
        return -ENOMEM;
    memset(cache->shards, 0, bytes);
    cache->metadata_bytes += bytes;

    slots = next_power_of_2(2 * shard_frames(cache, 0));
    cache->tables = map_memory((size_t)slots * cache->shards_count * sizeof(uint64_t),
                               &cache->map_bytes[2]);
    if (!cache->tables)
        return -ENOMEM;
    for (uint32_t i = 0; i < cache->shards_count; i++) {
        int rc = init_shard(cache, i, policy, cache->tables + (size_t)slots * i, slots);

        if (rc < 0)
            return rc;
    }
    cache->lockless = wi_policy_is_lockless(cache->shards[0].policy);
    return 0;
}

static int init_bounces(struct wi_cache *cache)
{
    wi_mutex_init(&cache->bounce_mu, WI_RANK_LAST);
    wi_cond_init(&cache->bounce_back);
    wi_list_init(&cache->bounces);
    cache->bounce_memory = calloc(BOUNCES, sizeof(*cache->bounce_memory));
    if (!cache->bounce_memory)
        return -ENOMEM;
    for (uint32_t i = 0; i < BOUNCES; i++) {
        cache->bounce_memory[i].data = aligned_alloc(4096, cache->block_size);
        if (!cache->bounce_memory[i].data)
            return -ENOMEM;
        wi_list_push_back(&cache->bounces, &cache->bounce_memory[i].link);
    }
    cache->metadata_bytes += (uint64_t)BOUNCES * cache->block_size;
    return 0;
}

static int fill_cache(struct wi_cache *cache, const struct weir_engine_options *options)
{
    uint64_t bytes = (uint64_t)cache->frames_count << cache->block_shift;
    int rc = init_bounces(cache);

    if (rc < 0)
        return rc;
    cache->files = calloc(CACHE_FILE_HEADS, sizeof(struct wi_cache_file *));
    cache->base = map_memory(bytes, &cache->map_bytes[0]);
    cache->frames =
        map_memory(cache->frames_count * sizeof(struct wi_frame), &cache->map_bytes[1]);
    if (!cache->files || !cache->base || !cache->frames)
        return -ENOMEM;
    madvise(cache->base, bytes, MADV_HUGEPAGE); /* only a wish */
    rc = init_shards(cache, options->cache_policy);
    if (rc < 0)
        return rc;
    cache->metadata_bytes += sizeof(*cache) + cache->map_bytes[1] + cache->map_bytes[2] +
                             CACHE_FILE_HEADS * sizeof(struct wi_cache_file *);
    wi_engine_account(cache->engine, (int64_t)(bytes + cache->metadata_bytes));
    return 0;
}

int wi_cache_create(struct weir_engine *engine, const struct weir_engine_options *options,
                    struct wi_cache **ret_cache)
{
    struct wi_cache *cache;
    int rc;

    if (options->cache_bytes > SIZE_MAX / 2)
        return -ENOMEM;
    cache = aligned_alloc(WI_CACHE_LINE, sizeof(*cache));
    if (!cache)
        return -ENOMEM;
    memset(cache, 0, sizeof(*cache));
    cache->engine = engine;
    cache->block_size =
        options->cache_block_size ? options->cache_block_size : BLOCK_SIZE_DEFAULT;
    cache->block_shift = (uint32_t)__builtin_ctz(cache->block_size);
    cache->frames_count =
        (uint32_t)wi_min_u64(options->cache_bytes >> cache->block_shift, INT32_MAX);
    cache->ttl_ns = options->cache_ttl_ns;
    cache->views_max = (uint32_t)((uint64_t)cache->frames_count * 3 / 4);
    wi_mutex_init(&cache->views_mu, WI_RANK_LAST);
    wi_mutex_init(&cache->files_mu, WI_RANK_CACHE_FILES);
    wi_list_init(&cache->idle_files);
    for (uint32_t i = 0; i < CACHE_STRIPES; i++)
        atomic_init(&cache->stripes[i].views, (cache->views_max + i) / CACHE_STRIPES);
    rc = fill_cache(cache, options);
    if (rc < 0) {
        wi_cache_destroy(cache);
        return rc;
    }
    *ret_cache = cache;
    return 0;
}

void wi_cache_destroy(struct wi_cache *cache)
{
    if (!cache)
        return;
    if (cache->files)
        wi_cache_files_fini(cache);
    for (uint32_t i = 0; cache->shards && i < cache->shards_count; i++) {
        if (!cache->shards[i].table)
            break; /* creation came no further */
        wi_policy_destroy(cache->shards[i].policy);
        wi_cond_fini(&cache->shards[i].loaded);
        wi_mutex_fini(&cache->shards[i].mu);
    }
    free(cache->shards);
    free(cache->files);
    unmap_memory(cache->base, cache->map_bytes[0]);
    unmap_memory(cache->frames, cache->map_bytes[1]);
    unmap_memory(cache->tables, cache->map_bytes[2]);
    for (uint32_t i = 0; cache->bounce_memory && i < BOUNCES; i++)
        free(cache->bounce_memory[i].data);
    free(cache->bounce_memory);
    wi_cond_fini(&cache->bounce_back);
    wi_mutex_fini(&cache->bounce_mu);
    wi_mutex_fini(&cache->files_mu);
    wi_mutex_fini(&cache->views_mu);
    free(cache);
}

uint32_t wi_cache_block_size(const struct wi_cache *cache)
{
    return cache->block_size;
}

uint64_t wi_cache_bytes(const struct wi_cache *cache)
{
    return (uint64_t)cache->frames_count << cache->block_shift;
}

/* Adds, for what queues count as well. */
void wi_cache_stats(struct wi_cache *cache, struct weir_stats *stats)
{
    stats->cache_bytes += wi_cache_bytes(cache);
    stats->cache_pinned += wi_cache_views_out(cache);
    for (uint32_t i = 0; i < CACHE_STRIPES; i++)
        stats->cache_hits +=
            atomic_load_explicit(&cache->stripes[i].hits, memory_order_relaxed);
    for (uint32_t i = 0; i < cache->shards_count; i++) {
        struct shard *shard = &cache->shards[i];

        wi_mutex_lock(&shard->mu);
        stats->cache_blocks += shard->blocks;
        stats->cache_misses += shard->misses;
        stats->cache_loads += shard->loads_done;
        stats->cache_shared += shard->shared;
        stats->cache_unpublished += shard->unpublished;
        stats->cache_evicted += shard->evicted;
        stats->cache_expired += shard->expired;
        stats->cache_invalidated += shard->invalidated;
        stats->cache_unbuffered += shard->unbuffered;
        stats->prefetch_bytes += shard->prefetched;
        stats->prefetch_used += shard->prefetch_used;
        stats->prefetch_wasted += shard->prefetch_wasted;
        wi_mutex_unlock(&shard->mu);
    }
}
