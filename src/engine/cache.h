/* SPDX-License-Identifier: MIT */
/*
 * cache.h - the block cache, for this folder
 *
 * cache.c has the frames and what is found in them, cache_file.c what the cache knows of files,
 * cache_read.c the blocking reads, view.c the public calls. cached.c, which belongs to a queue,
 * loads blocks by jobs. All here: Thread: any, unless a line says otherwise.
 */
#ifndef WEIR_ENGINE_CACHE_H
#define WEIR_ENGINE_CACHE_H

#include <stdatomic.h>
#include <sys/uio.h>

#include <weir/weir.h>

#include "base/common.h"

struct wi_cache;
struct
    wi_cache_file; /* what the cache knows of one file (device and inode), while it has blocks
                         of it or it is open; shared by all handles of the file */
struct wi_frame;   /* the place of one block */

/* Size, policy and so on from the options, which are checked. The memory is one mapping, touched
 * when first used. */
int wi_cache_create(struct weir_engine *engine, const struct weir_engine_options *options,
                    struct wi_cache **ret_cache);
void wi_cache_destroy(
    struct wi_cache *cache); /* nothing is pinned or loading; NULL is allowed */
uint32_t wi_cache_block_size(const struct wi_cache *cache);
uint64_t wi_cache_bytes(const struct wi_cache *cache);
void wi_cache_stats(struct wi_cache *cache, struct weir_stats *stats); /* fills its part */

/* ---- files: called by file.c ------------------------------------------------------------- */

/* A handle of a cached file was opened; revalidates, sets file->cache_file. Returns 0 or an error.
 * Blocks: on I/O (statx). */
int wi_cache_file_open(struct wi_cache *cache, struct weir_file *file);
/* Nobody uses the file any more: blocking calls on it have ended, and so have the loads of queues. */
void wi_cache_file_close(struct wi_cache *cache, struct weir_file *file);

/* Where the file is known to end: at open, and by what was written and truncated since. */
uint64_t wi_cache_file_end(struct wi_cache *cache, const struct weir_file *file);

/* ---- hits -------------------------------------------------------------------------------- */

enum wi_pin_flag {
    WI_PIN_PEEK = 1u << 0, /* only look: neither counted nor a use */
    WI_PIN_ONCE = 1u << 1, /* a scan's */
    WI_PIN_AGAIN = 1u << 2 /* by a reader that had this block just before: no further use */
};
enum wi_pin_result {
    WI_PIN_MISS = 0,
    WI_PIN_HIT = 1,
    WI_PIN_HIT_PREFETCHED = 2 /* the first hit of a prefetched block */
};

/*
 * Find block number `block` of the file and pin it: its bytes stay where and what they are until
 * wi_cache_unpin. A few loads and one atomic add. `now_ns` is needed only with a time to live;
 * 0: the cache asks the clock itself.
 */
enum wi_pin_result wi_cache_pin(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                                uint32_t flags, uint64_t now_ns, struct wi_frame **ret_frame);
/* One more pin on a frame that the caller has pinned. */
void wi_cache_pin_more(struct wi_frame *frame);
void wi_cache_unpin(struct wi_cache *cache, struct wi_frame *frame);

const unsigned char *wi_frame_data(const struct wi_cache *cache, const struct wi_frame *frame);
/* Fewer than a block's: the file ends there. */
uint32_t wi_frame_len(const struct wi_frame *frame);

/* For pins that leave the library, in views: a token each, of which there are as many as make three
 * quarters of the blocks. False: none is left. Cheap: a counter of the thread's own. */
bool wi_cache_take_view(struct wi_cache *cache);
void wi_cache_give_view(struct wi_cache *cache);
/* How many are out. Exact only while nobody takes or gives. */
uint64_t wi_cache_views_out(struct wi_cache *cache);

/* Fill a view with up to `len` bytes from `in` of the frame, which has more than `in`. The caller's pin
 * and token go over to the view (view.c). */
void wi_view_fill(struct weir_view *view, struct wi_cache *cache, struct wi_frame *frame,
                  uint32_t in, size_t len);

/* ---- loading ----------------------------------------------------------------------------- */

/* One load under way. The loader's memory. */
struct wi_load_ticket {
    struct wi_frame *frame; /* pinned by the loader, nobody else's */
    struct weir_file *file;
    uint64_t block;
    uint64_t versions[3]; /* the cache's, see wi_cache_load_begin */
    uint32_t flags;       /* WI_LOAD_* */
};

enum wi_load_flag {
    WI_LOAD_PREFETCH = 1u << 0, /* no demand yet: takes no frame that demand may need */
    WI_LOAD_ONCE = 1u << 1      /* a scan's: evict first */
};

/*
 * Take a frame for the block, evicting if need be, and note what has been written so far. The caller
 * then reads into wi_load_data() at wi_load_offset(), a whole block (short at the end of the file),
 * and ends the load. Returns 0, or -ENOBUFS: all is pinned or loading (or, for a prefetch, too
 * much).
 */
int wi_cache_load_begin(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                        uint32_t flags, struct wi_load_ticket *ticket);

/* The memory, block-sized and aligned to 4096. */
unsigned char *wi_load_data(struct wi_cache *cache, const struct wi_load_ticket *ticket);

/* True while nothing was written to the block or cut off since the load began: only then may one
 * that comes later share it. */
bool wi_cache_load_is_fresh(struct wi_cache *cache, const struct wi_load_ticket *ticket);

/*
 * The end: `len` bytes were read, or a negative code. If fresh, and no other was first, the block is
 * published; a short one also only if the file was not made longer meanwhile. The frame stays
 * pinned for the loader, who reads its own copy from it whether or not it was published, and
 * then calls wi_cache_unpin. After an error the frame is gone, and so is the pin. `demanded`: a
 * prefetch that somebody waits for by now.
 */
void wi_cache_load_end(struct wi_cache *cache, struct wi_load_ticket *ticket, int64_t len,
                       bool demanded);

/* ---- writing: called around every write, truncate and allocate of a cached file ------------ */

/* Loads that are under way will not publish, from now until the end. */
void wi_cache_write_begin(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                          uint64_t len);
/* What was written goes into the blocks that are cached, unless they are pinned, the write failed
 * (result < 0 or short), or another write of the same block was under way: those are dropped. */
void wi_cache_write_end(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                        uint64_t len, const struct iovec *iov, size_t iov_count,
                        int64_t result);
/* Truncate to `size`, or allocate up to it: before and after the system call, with its result. If it
 * failed, blocks are kept but for a short one. */
void wi_cache_resize_begin(struct wi_cache *cache, struct weir_file *file, uint64_t size);
void wi_cache_resize_end(struct wi_cache *cache, struct weir_file *file, uint64_t size,
                         int64_t result);

/* Drop the blocks of [offset, offset + len) that are not pinned (pinned ones are no longer
 * found). */
void wi_cache_drop(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                   uint64_t len);

/* ---- blocking reads ------------------------------------------------------------------------- */

/*
 * Read through the cache on the calling thread: hits are copied, of what is missing each block is
 * read by one of the blocking threads that want it, the others wait (a condition variable a shard).
 * Never waits for a queue's load. Returns the bytes, short only at the end of the file, or a
 * negative code, with what was copied before in `*ret_moved`.
 */
int64_t wi_cache_read(struct wi_cache *cache, struct weir_file *file, const struct iovec *iov,
                      size_t iov_count, uint64_t offset, uint64_t *ret_moved);

/*
 * Load what is missing from `offset` to before `end`, a quarter of what the cache has at most, as
 * a prefetch: none that demand may need is dropped for it. An advice, so it stops without a word
 * where there is no room, or where reading fails. The caller has called wi_file_begin. Blocks: on
 * I/O.
 */
void wi_cache_fill(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                   uint64_t end);

#endif
