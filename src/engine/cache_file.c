/* SPDX-License-Identifier: MIT */
/*
 * cache_file.c - what the block cache knows of files, and what writing to them does to blocks
 *
 * Problem      a read that starts after a write has ended must see it, whoever wrote through
 *              whatever handle, while blocks of the file are being loaded, found and copied
 *              by others who take no notice of the writer.
 * Idea         a load notes how things stand when it begins, and publishes only if they still
 *              stand so when it ends. Three numbers are enough:
 *
 *   version   of the block, or of those that share its place among a shard's 256: moves on at
 *             the beginning and at the end of each write to it. A load that a write overlaps
 *             in time finds another number or a writer under way, and stays private.
 *   cut       of the file: moves on at the beginning and end of a truncate, and when blocks
 *             are dropped because the file may have been changed by others.
 *   grow      of the file: moves on at the beginning and end of whatever makes it longer.
 *             Only a short block minds, since a hole or data may be where it saw the end.
 *
 * The blocks that are cached already are changed at the end of a write, in place, if nobody
 * has them pinned; else they are dropped, as they are if the write failed, or if two writes
 * to them were under way at once, of which we can't know which one the kernel did last.
 *
 * The tail     There is at most one short block of a file in the cache, and `tail` says
 *              which, so whoever makes the file longer knows what to drop. A load that is
 *              short sets `tail` first and then looks at `grow`; who makes the file longer
 *              moves `grow` on and then looks at `tail`: one of them sees the other. Changing
 *              `tail` and dropping the block that it named is one step, under the file's lock,
 *              also for a writer that only looks whether there is one to drop. `top`
 *              and `cut` work together in the same way. All of these are sequentially
 *              consistent.
 * Known        `known` is a length that the file is sure to have, as far as our own calls go.
 *              A write that ends below it doesn't make the file longer. Too low does no harm.
 *              It is raised by what was seen to be there, unless a truncate came in between,
 *              and lowered by truncates, which count themselves first; both under the file's
 *              lock. Raising it while writes are under way moves `grow`, for one of them may
 *              have been the cause.
 *
 * Changes by others are looked for when a handle is opened: if size or times are not those
 * that were seen, all blocks go. They also go if we wrote ourselves since then, for our
 * change of the times can hide another's, and if the file had been changed so shortly before
 * it was seen that the file system's clock may not have moved on since.
 *
 * A file without handles keeps its blocks, so that opening it again finds them: the 4096 that
 * were closed last.
 */
#include "cache_internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

/* Ticks of the clock of a file system: 10 ms at most, or a second or two where it has no
 * parts of seconds. */
#define TICK_NS      (20 * (int64_t)WI_MSEC_NS)
#define TICK_LONG_NS (2 * (int64_t)WI_SEC_NS)

/* ---- dropping -------------------------------------------------------------------------- */

static void drop_block(struct wi_cache *cache, struct wi_cache_file *file, uint64_t block)
{
    uint64_t hash = hash_block(file, block);
    struct shard *shard = shard_of(cache, hash);
    struct wi_frame *frame;

    wi_mutex_lock(&shard->mu);
    frame = wi_cache_find_locked(cache, shard, file, block, hash);
    if (frame) {
        wi_cache_drop_locked(cache, shard, frame);
        shard->invalidated++;
    }
    wi_mutex_unlock(&shard->mu);
}

/* Look at every frame of a shard. */
static void sweep_shard(struct wi_cache *cache, struct shard *shard,
                        const struct wi_cache_file *file, uint64_t first, uint64_t end)
{
    wi_mutex_lock(&shard->mu);
    for (uint32_t i = 0; i < shard->fresh; i++) {
        struct wi_frame *frame = &cache->frames[shard->index + cache->shards_count * i];

        if ((atomic_load_explicit(&frame->word, memory_order_relaxed) & FRAME_VALID) &&
            frame->file == file && frame->block >= first && frame->block < end) {
            wi_cache_drop_locked(cache, shard, frame);
            shard->invalidated++;
        }
    }
    wi_mutex_unlock(&shard->mu);
}

/* Drop blocks from `first` to before `end`. `cut` has moved on, or it doesn't matter. */
static void drop_blocks(struct wi_cache *cache, struct wi_cache_file *file, uint64_t first,
                        uint64_t end)
{
    end = wi_min_u64(end, atomic_load(&file->top));
    if (first >= end)
        return;
    if (end - first < cache->frames_count) {
        while (first < end)
            drop_block(cache, file, first++);
        return;
    }
    for (uint32_t i = 0; i < cache->shards_count; i++)
        sweep_shard(cache, &cache->shards[i], file, first, end);
}

/*
 * The file goes on behind the block that was its last, if that is before `last`. It is the tail no more
 * before it is dropped, so a load that is about to publish it is either seen, or sees that. The
 * lock is held until it is dropped: who finds no tail to drop can rely on it.
 */
static void drop_tail(struct wi_cache *cache, struct wi_cache_file *file, uint64_t last)
{
    uint64_t tail;

    wi_mutex_lock(&file->mu);
    tail = atomic_load(&file->tail);
    if (tail != NO_BLOCK && tail < last &&
        atomic_compare_exchange_strong(&file->tail, &tail, NO_BLOCK))
        drop_block(cache, file, tail);
    wi_mutex_unlock(&file->mu);
}

/*
 * A write that ends below `known` doesn't move `grow`. If it was the one that made the file so long,
 * and what it wrote was seen before it ended, whoever saw it does that instead, before he says so.
 */
static void set_known(struct wi_cache_file *file, uint64_t known) WI_REQUIRES(file->mu)
{
    if (known > atomic_load(&file->known) && atomic_load(&file->writing) > 0)
        atomic_fetch_add(&file->grow, 1);
    atomic_store(&file->known, known);
}

/* `size` NO_BLOCK: nothing is known to be cut off. */
static void move_cut(struct wi_cache_file *file, uint64_t size)
{
    wi_mutex_lock(&file->mu);
    atomic_fetch_add(&file->cut, 1);
    if (atomic_load(&file->known) > size)
        atomic_store(&file->known, size);
    wi_mutex_unlock(&file->mu);
}

static void drop_all(struct wi_cache *cache, struct wi_cache_file *file)
{
    move_cut(file, 0);
    drop_blocks(cache, file, 0, UINT64_MAX);
}

/* ---- what loads tell ------------------------------------------------------------------- */

void wi_cache_file_raise_top(struct wi_cache_file *file, uint64_t block)
{
    uint64_t top = atomic_load(&file->top);

    while (top <= block && !atomic_compare_exchange_weak(&file->top, &top, block + 1))
        ;
}

void wi_cache_file_learn(struct wi_cache *cache, const struct wi_load_ticket *ticket,
                         uint32_t len)
{
    struct wi_cache_file *file = ticket->file->cache_file;
    uint64_t end = (ticket->block << cache->block_shift) + len;
    bool is_full = len == cache->block_size;

    if (is_full && end <= atomic_load(&file->known))
        return;
    wi_mutex_lock(&file->mu);
    if (atomic_load(&file->cut) == ticket->versions[2]) {
        if (is_full == (end > atomic_load(&file->known)))
            set_known(file, end);
        if (!is_full && atomic_load(&file->grow) == ticket->versions[1])
            atomic_store(&file->end, wi_min_u64(end, atomic_load(&file->end)));
    }
    wi_mutex_unlock(&file->mu);
}

uint64_t wi_cache_file_end(struct wi_cache *cache, const struct weir_file *handle)
{
    (void)cache;
    return wi_max_u64(atomic_load(&handle->cache_file->known),
                      atomic_load(&handle->cache_file->end));
}

void wi_cache_file_take_tail(struct wi_cache *cache, const struct wi_load_ticket *ticket)
{
    struct wi_cache_file *file = ticket->file->cache_file;

    wi_mutex_lock(&file->mu);
    /* One that will not be published must not hide the tail that there is. */
    if (atomic_load(&file->grow) == ticket->versions[1] &&
        atomic_load(&file->cut) == ticket->versions[2]) {
        uint64_t old = atomic_exchange(&file->tail, ticket->block);

        if (old != NO_BLOCK && old != ticket->block)
            drop_block(cache, file, old);
    }
    wi_mutex_unlock(&file->mu);
}

/* ---- opening --------------------------------------------------------------------------- */

static uint32_t head_of(uint64_t device, uint64_t inode)
{
    return (uint32_t)((inode + device * 31) * 0x9e3779b97f4a7c15u >> 32) % CACHE_FILE_HEADS;
}

static struct wi_cache_file *find_file(struct wi_cache *cache, uint64_t device, uint64_t inode)
    WI_REQUIRES(cache->files_mu)
{
    struct wi_cache_file *file = cache->files[head_of(device, inode)];

    while (file && (file->device != device || file->inode != inode))
        file = file->next;
    return file;
}

static struct wi_cache_file *make_file(uint64_t device, uint64_t inode)
{
    struct wi_cache_file *file = calloc(1, sizeof(*file));

    if (!file)
        return NULL;
    file->device = device;
    file->inode = inode;
    wi_mutex_init(&file->mu, WI_RANK_CACHE_FILE);
    wi_list_init(&file->idle);
    atomic_init(&file->tail, NO_BLOCK);
    for (uint32_t i = 0; i < CACHE_READERS; i++) {
        atomic_init(&file->misses[i], NO_BLOCK);
        atomic_init(&file->readers[i], NO_BLOCK);
    }
    return file;
}

static void free_file(struct wi_cache_file *file)
{
    wi_mutex_fini(&file->mu);
    free(file);
}

static int64_t to_ns(const struct statx_timestamp *time)
{
    return time->tv_sec * (int64_t)WI_SEC_NS + (int64_t)time->tv_nsec;
}

static bool is_doubtful(const struct statx *st, int64_t now_ns)
{
    int64_t changed = to_ns(&st->stx_mtime) > to_ns(&st->stx_ctime) ? to_ns(&st->stx_mtime)
                                                                    : to_ns(&st->stx_ctime);
    bool has_parts = st->stx_mtime.tv_nsec != 0 || st->stx_ctime.tv_nsec != 0;

    /* The times of a device are those of its name. */
    return !S_ISREG(st->stx_mode) || changed + (has_parts ? TICK_NS : TICK_LONG_NS) > now_ns;
}

static void revalidate(struct wi_cache *cache, struct wi_cache_file *file,
                       const struct statx *st, uint64_t changes, int64_t now_ns)
    WI_REQUIRES(cache->files_mu)
{
    if (file->doubtful || file->seen_size != st->stx_size || file->seen_changes != changes ||
        file->seen_mtime_ns != to_ns(&st->stx_mtime) ||
        file->seen_ctime_ns != to_ns(&st->stx_ctime))
        drop_all(cache, file);
    file->doubtful = is_doubtful(st, now_ns);
    file->seen_size = st->stx_size;
    file->seen_mtime_ns = to_ns(&st->stx_mtime);
    file->seen_ctime_ns = to_ns(&st->stx_ctime);
    file->seen_changes = changes;
    wi_mutex_lock(&file->mu);
    if (atomic_load(&file->changes) == changes)
        set_known(file, st->stx_size);
    /* A device doesn't say how long it is. */
    atomic_store(&file->end, S_ISREG(st->stx_mode) ? st->stx_size : (uint64_t)INT64_MAX);
    wi_mutex_unlock(&file->mu);
}

/*
 * Our own changes are counted before the kernel is asked: one that comes in between is then a
 * change since. For that the file must be known first, which takes a first look at what it
 * is.
 */
static int look_at(struct weir_file *handle, struct statx *ret_st)
{
    const struct wi_os *os = handle->engine->os;

    memset(ret_st, 0, sizeof(*ret_st));
    return os->ops->statx(os, handle->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, ret_st);
}

/* Find the file, or make it, and count one more handle. */
static struct wi_cache_file *ref_file(struct wi_cache *cache, uint64_t device, uint64_t inode,
                                      uint64_t *ret_changes)
{
    struct wi_cache_file *fresh = make_file(device, inode);
    struct wi_cache_file *file;

    if (!fresh)
        return NULL;
    wi_mutex_lock(&cache->files_mu);
    file = find_file(cache, device, inode);
    if (!file) {
        file = fresh;
        fresh = NULL;
        file->salt = ++cache->next_file * 0xbf58476d1ce4e5b9u;
        file->salt ^= file->salt >> 29;
        file->next = cache->files[head_of(device, inode)];
        cache->files[head_of(device, inode)] = file;
        file->doubtful = true; /* nothing was seen of it yet */
    }
    if (file->handles++ == 0 && wi_list_on(&file->idle)) {
        wi_list_remove(&file->idle);
        cache->idle_count--;
    }
    *ret_changes = atomic_load(&file->changes);
    wi_mutex_unlock(&cache->files_mu);
    if (fresh)
        free_file(fresh);
    else
        wi_engine_account(cache->engine, sizeof(*file));
    return file;
}

/* The longest idle one, if there are too many: off all lists, its blocks are dropped. */
static struct wi_cache_file *reap_file(struct wi_cache *cache) WI_REQUIRES(cache->files_mu)
{
    struct wi_cache_file *file;
    struct wi_cache_file **place;

    if (cache->idle_count <= CACHE_IDLE_FILES)
        return NULL;
    file = WI_CONTAINER_OF(cache->idle_files.next, struct wi_cache_file, idle);
    wi_list_remove(&file->idle);
    cache->idle_count--;
    place = &cache->files[head_of(file->device, file->inode)];
    while (*place != file)
        place = &(*place)->next;
    *place = file->next;
    drop_all(cache, file);
    return file;
}

static void unref_file(struct wi_cache *cache, struct wi_cache_file *file)
{
    struct wi_cache_file *reaped = NULL;

    wi_mutex_lock(&cache->files_mu);
    if (--file->handles == 0) {
        wi_list_push_back(&cache->idle_files, &file->idle);
        cache->idle_count++;
        reaped = reap_file(cache);
    }
    wi_mutex_unlock(&cache->files_mu);
    if (reaped) {
        free_file(reaped);
        wi_engine_account(cache->engine, -(int64_t)sizeof(*reaped));
    }
}

int wi_cache_file_open(struct wi_cache *cache, struct weir_file *handle)
{
    const struct wi_os *os = handle->engine->os;
    struct wi_cache_file *file;
    struct statx st;
    uint64_t changes;
    int rc;

    /* One that only tells of its writes may have any alignment. */
    if (!handle->regular ||
        (wi_file_reads_cached(handle) &&
         (handle->offset_align > cache->block_size || handle->memory_align > 4096)))
        return -EINVAL;
    rc = look_at(handle, &st);
    if (rc < 0)
        return rc;
    file = ref_file(cache, makedev(st.stx_dev_major, st.stx_dev_minor), st.stx_ino, &changes);
    if (!file)
        return -ENOMEM;
    rc = look_at(handle, &st);
    if (rc < 0) {
        unref_file(cache, file);
        return rc;
    }
    wi_mutex_lock(&cache->files_mu);
    revalidate(cache, file, &st, changes, os->ops->real_ns(os));
    wi_mutex_unlock(&cache->files_mu);
    handle->cache_file = file;
    return 0;
}

void wi_cache_file_close(struct wi_cache *cache, struct weir_file *handle)
{
    struct wi_cache_file *file = handle->cache_file;

    handle->cache_file = NULL;
    unref_file(cache, file);
}

void wi_cache_files_fini(struct wi_cache *cache)
{
    for (uint32_t i = 0; i < CACHE_FILE_HEADS; i++) {
        while (cache->files[i]) {
            struct wi_cache_file *file = cache->files[i];

            cache->files[i] = file->next;
            free_file(file);
        }
    }
}

/* ---- writing --------------------------------------------------------------------------- */

/* First and last block of what is written; false: nothing is. */
static bool blocks_of(const struct wi_cache *cache, uint64_t offset, uint64_t len,
                      uint64_t *ret_first, uint64_t *ret_last)
{
    *ret_first = offset >> cache->block_shift;
    *ret_last = (wi_add_sat(offset, len) - 1) >> cache->block_shift;
    return len > 0;
}

static void note_growth(struct wi_cache_file *file, uint64_t end)
{
    if (end > atomic_load(&file->known))
        atomic_fetch_add(&file->grow, 1);
}

void wi_cache_write_begin(struct wi_cache *cache, struct weir_file *handle, uint64_t offset,
                          uint64_t len)
{
    struct wi_cache_file *file = handle->cache_file;
    uint32_t token;
    uint64_t block;
    uint64_t last;

    if (!blocks_of(cache, offset, len, &block, &last))
        return;
    do
        token = atomic_fetch_add_explicit(&cache->writes, 1, memory_order_relaxed) + 1;
    while (token == NO_WRITER);
    atomic_fetch_add(&file->changes, 1);
    atomic_fetch_add(&file->writing, 1);
    note_growth(file, offset + len);
    for (; block <= last; block++) {
        uint64_t hash = hash_block(file, block);
        struct shard *shard = shard_of(cache, hash);
        struct version *version;

        wi_mutex_lock(&shard->mu);
        version = version_of(shard, hash);
        version->number++;
        if (version->writers++ == 0)
            version->writer = token;
        else if (version->writer != token)
            version->writer = NO_WRITER;
        wi_mutex_unlock(&shard->mu);
    }
}

/* What was written, within one block. */
struct piece {
    const struct cursor *cursor; /* where it begins */
    uint64_t block;
    uint32_t start;
    uint32_t end;
};

/* False if somebody has it pinned, or bytes would be missing before those that were
 * written. */
static bool update_in_place(struct wi_cache *cache, struct shard *shard, struct wi_frame *frame,
                            const struct piece *piece) WI_REQUIRES(shard->mu)
{
    uint32_t word = atomic_load_explicit(&frame->word, memory_order_relaxed);
    struct cursor cursor = *piece->cursor;
    unsigned char *to = cache->base + ((size_t)(frame - cache->frames) << cache->block_shift);
    size_t part;

    if ((word & FRAME_PINS) != 0 || piece->start > frame->len)
        return false;
    /* Who looks it up now finds it not valid, and waits for the lock that we have. */
    if (!atomic_compare_exchange_strong_explicit(&frame->word, &word, word & ~FRAME_VALID,
                                                 memory_order_acquire, memory_order_relaxed))
        return false;
    for (uint32_t at = piece->start; at < piece->end && cursor.count > 0;
         at += (uint32_t)part) {
        const char *from = cursor_take(&cursor, piece->end - at, &part);

        memcpy(to + at, from, part);
    }
    if (piece->end > frame->len) {
        uint64_t tail = piece->block;

        if (word & FRAME_AHEAD) /* so that what is prefetched is used or wasted in the end */
            shard->prefetched += piece->end - frame->len;
        frame->len = piece->end;
        if (frame->len == cache->block_size)
            atomic_compare_exchange_strong(&frame->file->tail, &tail, NO_BLOCK);
    }
    atomic_fetch_or_explicit(&frame->word, FRAME_VALID, memory_order_release);
    return true;
}

static void end_block(struct wi_cache *cache, struct wi_cache_file *file,
                      const struct piece *piece, bool whole)
{
    uint64_t hash = hash_block(file, piece->block);
    struct shard *shard = shard_of(cache, hash);
    struct version *version = version_of(shard, hash);
    struct wi_frame *frame;

    wi_mutex_lock(&shard->mu);
    frame = wi_cache_find_locked(cache, shard, file, piece->block, hash);
    if (frame && (!whole || version->writer == NO_WRITER ||
                  !update_in_place(cache, shard, frame, piece))) {
        wi_cache_drop_locked(cache, shard, frame);
        shard->invalidated++;
    }
    WEIR_DCHECK(version->writers > 0);
    version->number++;
    version->writers--;
    wi_mutex_unlock(&shard->mu);
}

/* Only a hint, so it doesn't mind a truncate at the same time. */
static void raise_end(struct wi_cache_file *file, uint64_t end)
{
    uint64_t old = atomic_load(&file->end);

    while (old < end && !atomic_compare_exchange_weak(&file->end, &old, end))
        ;
}

void wi_cache_write_end(struct wi_cache *cache, struct weir_file *handle, uint64_t offset,
                        uint64_t len, const struct iovec *iov, size_t iov_count, int64_t result)
{
    struct wi_cache_file *file = handle->cache_file;
    bool whole = result >= 0 && (uint64_t)result == len;
    struct cursor cursor = { iov, iov_count, 0 };
    struct piece piece = { .cursor = &cursor };
    uint64_t at = offset;
    uint64_t last;

    if (!blocks_of(cache, offset, len, &piece.block, &last))
        return;
    note_growth(file, offset + len);
    for (; piece.block <= last; piece.block++) {
        uint64_t start = piece.block << cache->block_shift;
        uint64_t end = wi_min_u64(start + cache->block_size, offset + len);

        piece.start = (uint32_t)(at - start);
        piece.end = (uint32_t)(end - start);
        end_block(cache, file, &piece, whole);
        if (piece.block < last)
            cursor_skip(&cursor, end - at);
        at = end;
    }
    if (whole)
        raise_end(file, offset + len);
    drop_tail(cache, file, last);
    atomic_fetch_sub(&file->writing, 1);
    atomic_fetch_add(&file->changes, 1);
}

void wi_cache_resize_begin(struct wi_cache *cache, struct weir_file *handle, uint64_t size)
{
    struct wi_cache_file *file = handle->cache_file;

    (void)cache;
    atomic_fetch_add(&file->changes, 1);
    atomic_fetch_add(&file->grow, 1);
    move_cut(file, size);
}

void wi_cache_resize_end(struct wi_cache *cache, struct weir_file *handle, uint64_t size,
                         int64_t result)
{
    struct wi_cache_file *file = handle->cache_file;

    atomic_fetch_add(&file->grow, 1);
    move_cut(file, result < 0 ? UINT64_MAX : size);
    /* Also after a failure: what was allocated until then may have made the file longer. */
    drop_tail(cache, file, UINT64_MAX);
    if (result >= 0) {
        atomic_store(&file->end, size);
        drop_blocks(cache, file, size >> cache->block_shift, UINT64_MAX);
    }
    atomic_fetch_add(&file->changes, 1);
}

void wi_cache_drop(struct wi_cache *cache, struct weir_file *handle, uint64_t offset,
                   uint64_t len)
{
    struct wi_cache_file *file = handle->cache_file;
    uint64_t first;
    uint64_t last;

    if (!blocks_of(cache, offset, len, &first, &last))
        return;
    move_cut(file, UINT64_MAX);
    drop_blocks(cache, file, first, last + 1);
}
