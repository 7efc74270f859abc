/* SPDX-License-Identifier: MIT */
/*
 * cache.h - a cache for values of your own
 *
 * Keys are bytes, values are bytes (copied in) or pointers (owned by the cache from then on,
 * and freed by your function). Bounded by number and bytes, with an optional time to live, the
 * same policies as the block cache, and counters. Needs no engine.
 *
 *     struct weir_cache_options options = { .size = sizeof(options), .max_bytes = 64 << 20 };
 *     struct weir_cache *cache;
 *     weir_cache_open(&options, &cache);
 *     weir_cache_put(cache, "user/17", 7, record, record_len);
 *     struct weir_cache_value value;
 *     if (weir_cache_get(cache, "user/17", 7, &value) == 0) {
 *         use(value.data, value.len);
 *         weir_cache_release(&value);
 *     }
 *
 * A value that was got stays valid until it is released, also if it is replaced, removed or
 * dropped meanwhile; those no longer count against the limits, but their memory is still there.
 *
 * Neither limit is exceeded at any moment. They are the whole cache's, not a shard's: an entry
 * may be as large as max_bytes, and any max_count entries fit. An entry counts as its key, its
 * value and 112 bytes. The policy's memory of what went is not counted; it is at most 32 bytes
 * for each entry that the cache can hold.
 */
#ifndef WEIR_CACHE_H
#define WEIR_CACHE_H

#include <weir/base.h>
#include <weir/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_cache;

/* Frees a pointer value. Called from any thread that lets go of it last, with no lock held. */
typedef void (*weir_cache_free_fn)(void *arg, void *pointer);

struct weir_cache_options {
    size_t size;        /* sizeof(struct weir_cache_options), as the caller knows it */
    uint64_t max_count; /* entries at most; 0: any number */
    uint64_t max_bytes; /* keys, values and our own record of each; 0: any; one is needed */
    uint64_t ttl_ns;    /* from the put; a get doesn't prolong it; 0: for ever */
    uint32_t policy;    /* WEIR_POLICY_* */
    uint32_t shards;    /* locks, at most 1024; 0: by size; 1 makes the policy exact */
    weir_cache_free_fn free_pointer; /* for pointers; NULL: they are the caller's */
    void *free_arg;
};

/* Returns 0, -EINVAL, -ENOMEM. Thread: any. Blocks: never. */
WEIR_API int weir_cache_open(const struct weir_cache_options *options,
                             struct weir_cache **ret_cache);
/* Frees all. -EBUSY if values are held; NULL is allowed. Thread: any, once. Blocks: never. */
WEIR_API int weir_cache_close(struct weir_cache *cache);

/* What get found. */
struct weir_cache_value {
    void *data; /* inside, until weir_cache_release(); or the pointer that was put */
    size_t len; /* of a pointer: its cost */
    void *private_;
};

/* Put a copy of `len` bytes, aligned as malloc(3) does, under `key`, replacing what is there.
 * Returns 0; -E2BIG if it can never fit, -EINVAL, -ENOMEM: then what was there stays.
 * Thread: any. Blocks: on lock, briefly. */
WEIR_API int weir_cache_put(struct weir_cache *cache, const void *key, size_t key_len,
                            const void *value, size_t len);

/* Put a pointer that counts as `cost` bytes. Taken on success only. Otherwise as above. */
WEIR_API int weir_cache_put_pointer(struct weir_cache *cache, const void *key, size_t key_len,
                                    void *pointer, size_t cost);

/* Get and hold. Returns 0 or -ENOENT. Thread: any. Blocks: on lock, briefly. Allocates:
 * never. */
WEIR_API int weir_cache_get(struct weir_cache *cache, const void *key, size_t key_len,
                            struct weir_cache_value *ret_value);
/* Let go; an empty value is fine. */
WEIR_API void weir_cache_release(struct weir_cache_value *value);

/* Returns 0 or -ENOENT. Thread: any. Blocks: on lock, briefly. */
WEIR_API int weir_cache_remove(struct weir_cache *cache, const void *key, size_t key_len);
/* Remove all. What is put meanwhile may stay. Thread: any. Blocks: on lock. */
WEIR_API void weir_cache_clear(struct weir_cache *cache);

struct weir_cache_info {
    size_t size;    /* sizeof(struct weir_cache_info), set by the caller */
    uint64_t count; /* without those that have expired */
    uint64_t bytes;
    uint64_t hits;
    uint64_t misses; /* the expired among them */
    uint64_t puts;
    uint64_t evicted; /* for room */
    uint64_t expired;
};
/* Returns 0 or -EINVAL. Drops what has expired. Thread: any. Blocks: on lock. */
WEIR_API int weir_cache_info(struct weir_cache *cache, struct weir_cache_info *info);

#ifdef __cplusplus
}
#endif
#endif
