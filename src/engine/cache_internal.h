/* SPDX-License-Identifier: MIT */
/*
 * cache_internal.h - the objects of the block cache, for its own files (and tests)
 *
 * cache.c opens with the design.
 */
#ifndef WEIR_ENGINE_CACHE_INTERNAL_H
#define WEIR_ENGINE_CACHE_INTERNAL_H

#include "base/lock.h"
#include "base/policy.h"
#include "engine_internal.h"

#define CACHE_SHARDS_MAX   16
#define CACHE_SHARD_FRAMES 64 /* each shard has at least so many, or there is only one */
#define CACHE_VERSIONS     256
#define CACHE_STRIPES      16
#define CACHE_IDLE_FILES   4096
#define CACHE_FILE_HEADS   4096
#define CACHE_READERS      4

/* The word of a frame: what it is, and how many pins it has. */
#define FRAME_VALID  (1u << 31)
#define FRAME_AHEAD  (1u << 30)
#define FRAME_ORPHAN (1u << 29)
#define FRAME_PINS   (FRAME_ORPHAN - 1)

/* One cache line. cache.c has the states. */
struct wi_frame {
    _Alignas(WI_CACHE_LINE) _Atomic uint32_t word;
    /* Changed only while nobody can have it pinned as VALID, under the shard's lock. */
    uint32_t len;
    uint64_t block;
    struct wi_cache_file *file;
    uint64_t loaded_ns; /* with a time to live */
    /* Guarded by the shard's lock but for `uses`. `hash` is right as long as the block is in
     * the table; `link` is on a list of the shard's when the frame isn't the policy's. */
    struct wi_policy_node node;
};
_Static_assert(sizeof(struct wi_frame) == WI_CACHE_LINE, "a frame is one cache line");

/* What was written to the blocks that hash to it. */
struct version {
    uint64_t number;
    uint32_t writers; /* blocks that are being written */
    uint32_t writer;  /* by this write; NO_WRITER: by several since there was none */
};

struct shard {
    /* Set at creation. */
    _Alignas(
        WI_CACHE_LINE) _Atomic uint64_t *table; /* low half of the hash << 32 | frame + 1 */
    uint32_t mask;
    uint32_t index;
    uint32_t frames;

    _Alignas(WI_CACHE_LINE) struct wi_mutex mu;
    struct wi_cond loaded; /* a blocking load has ended */
    /* Guarded by mu. */
    struct wi_policy *policy;
    uint64_t taken;       /* frames taken for loads, ever */
    uint32_t fresh;       /* frames that were ever used */
    uint32_t ahead_count; /* frames that wait in `ahead`, or are being prefetched into */
    struct wi_list free;
    struct wi_list ahead; /* prefetched and not yet asked for, the oldest first */
    struct wi_list loads; /* struct blocking_load: under way, by blocking callers */
    uint64_t blocks;
    uint64_t misses;
    uint64_t loads_done;
    uint64_t shared;
    uint64_t unpublished;
    uint64_t evicted;
    uint64_t expired;
    uint64_t invalidated;
    uint64_t unbuffered;
    uint64_t prefetched;
    uint64_t prefetch_used;
    uint64_t prefetch_wasted;
    struct version versions[CACHE_VERSIONS];
};

/* What threads count on each hit, each on two lines of its own: processors fetch lines in pairs. */
struct stripe {
    _Alignas(2 * WI_CACHE_LINE) _Atomic int64_t views; /* tokens in stock */
    _Atomic uint64_t hits;
};

struct bounce {
    struct wi_list link;
    unsigned char *data;
};

struct wi_cache {
    /* Set at creation. */
    struct weir_engine *engine;
    unsigned char *base;
    struct wi_frame *frames;
    struct shard *shards;
    _Atomic uint64_t *tables;
    size_t map_bytes[3]; /* of base, frames and tables */
    uint64_t metadata_bytes;
    uint64_t ttl_ns; /* 0: none */
    uint32_t frames_count;
    uint32_t shards_count;
    uint32_t block_size;
    uint32_t block_shift;
    uint32_t views_max;
    bool lockless; /* hits are told to the policy without the lock */

    struct stripe stripes[CACHE_STRIPES];
    struct wi_mutex views_mu; /* to move tokens from stripe to stripe */
    _Atomic uint32_t writes;  /* begun so far, to tell them apart; relaxed */

    /* Buffers for blocks that find no frame. Guarded by bounce_mu. */
    struct wi_mutex bounce_mu;
    struct wi_cond bounce_back;
    struct wi_list bounces;
    struct bounce *bounce_memory;

    /* cache_file.c. Guarded by files_mu. */
    struct wi_mutex files_mu;
    struct wi_cache_file **files; /* CACHE_FILE_HEADS of them */
    struct wi_list idle_files;    /* without handles, the longest first */
    uint32_t idle_count;
    uint64_t next_file;
};

#define NO_BLOCK  UINT64_MAX
#define NO_WRITER 0u

/* cache_file.c tells how these work together. */
struct wi_cache_file {
    /* Set at creation. */
    uint64_t device;
    uint64_t inode;
    uint64_t salt; /* of the hash of its blocks; unique */

    /* Guarded by files_mu. */
    struct wi_cache_file *next;
    struct wi_list idle;
    uint32_t handles;
    uint32_t
        doubtful; /* changed so shortly before that its times may not tell of a next change */
    uint64_t seen_size;
    int64_t seen_mtime_ns;
    int64_t seen_ctime_ns;
    uint64_t seen_changes;

    _Atomic uint64_t changes; /* writes and resizes of ours: beginnings and ends */
    _Atomic uint64_t writing; /* writes under way */
    _Atomic uint64_t cut;     /* moves on when blocks are cut off or dropped */
    _Atomic uint64_t grow;    /* moves on when the file becomes longer */
    _Atomic uint64_t tail;    /* the only block that may be cached and short, or NO_BLOCK */
    _Atomic uint64_t top;     /* no block from here on is cached */
    _Atomic uint64_t known;   /* the file is at least so long; written under mu */
    _Atomic uint64_t end;     /* and probably so long: a hint */
    /* With it `cut` and `known` change together, and `tail` and the block that it named. */
    struct wi_mutex mu;

    /* Where blocking readers are expected to miss next: after one miss, and of those that
     * were right before, block << 8 | log2 of the blocks read ahead. Hints of cache_read.c,
     * relaxed. */
    _Atomic uint64_t misses[CACHE_READERS];
    _Atomic uint64_t readers[CACHE_READERS];
    _Atomic uint32_t miss_hand;
    _Atomic uint32_t reader_hand;
};

/* A way through the pieces of memory of a transfer. */
struct cursor {
    const struct iovec *iov;
    size_t count; /* pieces that are left; the first one from `at` on */
    size_t at;
};

/* Up to `most` bytes that lie together, and go on behind them. There are some left. */
static inline char *cursor_take(struct cursor *cursor, uint64_t most, size_t *ret_len)
{
    char *bytes = (char *)cursor->iov->iov_base + cursor->at;
    size_t left = cursor->iov->iov_len - cursor->at;

    *ret_len = most < left ? (size_t)most : left;
    cursor->at += *ret_len;
    if (*ret_len == left) {
        cursor->iov++;
        cursor->count--;
        cursor->at = 0;
    }
    return bytes;
}

static inline void cursor_skip(struct cursor *cursor, uint64_t len)
{
    size_t part;

    for (; len > 0 && cursor->count > 0; len -= part)
        cursor_take(cursor, len, &part);
}

/* A scan, of which the file's advice tells, leaves its blocks to be evicted first. */
static inline bool is_scanned(struct weir_file *file)
{
    uint32_t advice = atomic_load_explicit(&file->advice, memory_order_relaxed);

    return advice == WEIR_ADVICE_SEQUENTIAL || advice == WEIR_ADVICE_ONCE;
}

static inline uint64_t hash_block(const struct wi_cache_file *file, uint64_t block)
{
    uint64_t hash = (block ^ file->salt) * 0x9e3779b97f4a7c15u;

    hash = (hash ^ hash >> 32) * 0xd6e8feb86659fd93u;
    return hash ^ hash >> 32;
}

/* The table takes the low half of a hash, the shard its highest bits, the version bits
 * between. */
static inline struct shard *shard_of(const struct wi_cache *cache, uint64_t hash)
{
    return &cache->shards[hash >> 60 & (cache->shards_count - 1)];
}

static inline struct version *version_of(struct shard *shard, uint64_t hash)
{
    return &shard->versions[hash >> 40 & (CACHE_VERSIONS - 1)];
}

static inline struct stripe *my_stripe(struct wi_cache *cache)
{
    return &cache->stripes[wi_this_thread() % CACHE_STRIPES];
}

/* cache.c. The block's frame if it is cached, else NULL. Not pinned. */
struct wi_frame *wi_cache_find_locked(struct wi_cache *cache, struct shard *shard,
                                      const struct wi_cache_file *file, uint64_t block,
                                      uint64_t hash) WI_REQUIRES(shard->mu);
/* It is no longer cached. Freed at once, or with its last pin. */
void wi_cache_drop_locked(struct wi_cache *cache, struct shard *shard, struct wi_frame *frame)
    WI_REQUIRES(shard->mu);
/* As wi_cache_load_begin and wi_cache_load_is_fresh. */
int wi_cache_load_begin_locked(struct wi_cache *cache, struct shard *shard,
                               struct weir_file *file, uint64_t block, uint64_t hash,
                               uint32_t flags, struct wi_load_ticket *ticket)
    WI_REQUIRES(shard->mu);
bool wi_cache_is_fresh_locked(struct shard *shard, const struct wi_load_ticket *ticket,
                              uint64_t hash) WI_REQUIRES(shard->mu);
/* `frame`, which is pinned and cached, was used for the first time since it was
 * prefetched? */
bool wi_cache_first_use_locked(struct shard *shard, struct wi_frame *frame, bool once)
    WI_REQUIRES(shard->mu);

/* cache_file.c: what a load notes of its file at the beginning, and asks at the end. */
static inline void note_epochs(struct wi_cache_file *file, struct wi_load_ticket *ticket)
{
    ticket->versions[1] = atomic_load(&file->grow);
    ticket->versions[2] = atomic_load(&file->cut);
}
/* Before the block is published: it will be found by whoever cuts it off. */
void wi_cache_file_raise_top(struct wi_cache_file *file, uint64_t block);
/* What a load that read `len` bytes says of the length of the file. */
void wi_cache_file_learn(struct wi_cache *cache, const struct wi_load_ticket *ticket,
                         uint32_t len);
/* A short block is to be published, if it is still fresh: it becomes the tail, and another one is
 * dropped. */
void wi_cache_file_take_tail(struct wi_cache *cache, const struct wi_load_ticket *ticket);
void wi_cache_files_fini(struct wi_cache *cache);

/* cache_read.c: read a block that was not found, and pin it. The caller has called
 * wi_file_begin. Returns 0, -ENOBUFS, or what the read said. */
int wi_cache_fetch(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                   struct wi_frame **ret_frame);

#endif
