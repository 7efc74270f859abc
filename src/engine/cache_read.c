/* SPDX-License-Identifier: MIT */
/*
 * cache_read.c - blocking reads through the block cache
 *
 * Problem      64 threads that want the same block should cost one read of the device, a
 *              thread that reads in order should not make a system call for each block, and
 *              no thread may wait for anything that a queue does, whose owner may have left
 *              it.
 * Idea         what a blocking caller loads stands on its shard's list of loads until it has
 *              been read. Who finds it there waits for it; who doesn't loads it. Loads of
 *              queues are on no such list, so nobody can wait for one.
 * Run          missing blocks that follow each other are read with one vectored call into
 *              their frames, up to 1 MiB and 32 blocks: those that were asked for, then, for
 *              who reads in order, some ahead. A run takes what it can have at once and waits
 *              for nothing once it has begun, so two of them can't wait for each other.
 * Answers      a load that ends gives its frame to those that wait, pinned for each: they
 *              need not find it, and get it also if it could not be published. They joined
 *              while no write had ended since the load began, so what it read is as good as
 *              what they would have read. If a run of one block fails all get its error; if a
 *              longer one does, those that wait, and the run's own thread, try again for the
 *              block they need.
 * In order     is who misses where his last run has ended. Hits are not looked at, so they
 *              pay nothing for it. The second such miss reads 128 KiB ahead, the next ones
 *              twice as much each, up to the whole run. What was read ahead is a prefetch
 *              like any other.
 * No room      then the block is read through one of four bounce buffers, for which callers
 *              take turns. Not straight into the caller's memory, which need not be aligned.
 */
#include "cache_internal.h"

#define RUN_BLOCKS  32
#define RUN_BYTES   (1u << 20)
#define AHEAD_START (128u << 10)

/* On the stack of its thread; the list links and `demanded` are guarded by the shard's
 * lock. */
struct blocking_load {
    struct wi_list link;
    struct wi_list waiters;
    struct wi_load_ticket ticket;
    bool demanded;
};

struct waiter {
    struct wi_list link;
    struct wi_frame *frame;
    int code;
    bool done;
};

/* What to read, and how far it came. */
struct reader {
    struct wi_cache *cache;
    struct weir_file *file;
    struct cursor cursor;
    uint64_t offset;
    uint64_t total;
    uint64_t moved;
    uint32_t run_most; /* 1 after a run has failed */
    bool ended;        /* the file has */
};

struct run {
    uint64_t first;
    uint32_t wanted; /* blocks that were asked for */
    uint32_t count;  /* that are being loaded */
    uint32_t good;   /* of the wanted ones: read, and pinned */
    int code;        /* what the others met */
    bool ended;      /* the file ends in it */
    struct blocking_load loads[RUN_BLOCKS];
};

/* ---- reading ahead --------------------------------------------------------------------- */

static uint32_t log2_of(uint32_t value)
{
    return 31 - (uint32_t)__builtin_clz(value);
}

/* The place of the reader that was expected to miss at `first`, or a little behind; -1:
 * none. */
static int find_reader(_Atomic uint64_t *places, uint64_t first)
{
    for (int i = 0; i < CACHE_READERS; i++) {
        uint64_t place = atomic_load_explicit(&places[i], memory_order_relaxed);
        uint64_t next = place >> 8;

        if (place != NO_BLOCK && first >= next && first - next <= (place & 0xff))
            return i;
    }
    return -1;
}

static void expect(_Atomic uint64_t *place, uint64_t next, uint32_t ahead_log2)
{
    atomic_store_explicit(place, next << 8 | ahead_log2, memory_order_relaxed);
}

/* A miss at `first`, where `wanted` blocks are read anyway: how many more? */
static uint32_t plan_ahead(struct wi_cache *cache, struct weir_file *handle, uint64_t first,
                           uint32_t wanted)
{
    struct wi_cache_file *file = handle->cache_file;
    uint32_t advice = atomic_load_explicit(&handle->advice, memory_order_relaxed);
    uint32_t most = RUN_BYTES >> cache->block_shift;
    uint32_t ahead = AHEAD_START >> cache->block_shift;
    uint64_t end = wi_cache_file_end(cache, handle) + cache->block_size - 1;
    uint64_t blocks = end >> cache->block_shift; /* of the file */
    int at;

    if (advice == WEIR_ADVICE_RANDOM)
        return 0;
    at = find_reader(file->readers, first);
    if (at >= 0) {
        ahead = 2u << (atomic_load_explicit(&file->readers[at], memory_order_relaxed) & 0xff);
    } else if (find_reader(file->misses, first) >= 0 || advice == WEIR_ADVICE_SEQUENTIAL) {
        at = (int)(atomic_fetch_add_explicit(&file->reader_hand, 1, memory_order_relaxed) %
                   CACHE_READERS);
    } else {
        uint32_t hand = atomic_fetch_add_explicit(&file->miss_hand, 1, memory_order_relaxed);

        expect(&file->misses[hand % CACHE_READERS], first + wanted, 0);
        return 0;
    }
    if (advice == WEIR_ADVICE_SEQUENTIAL || ahead > most)
        ahead = most;
    if (ahead > RUN_BLOCKS - wanted)
        ahead = RUN_BLOCKS - wanted;
    ahead = first + wanted < blocks ? (uint32_t)wi_min_u64(ahead, blocks - first - wanted) : 0;
    expect(&file->readers[at], first + wanted + ahead, ahead ? log2_of(ahead) : 0);
    return ahead;
}

/* ---- runs ------------------------------------------------------------------------------ */

static struct blocking_load *find_load(struct shard *shard, const struct wi_cache_file *file,
                                       uint64_t block, uint64_t hash) WI_REQUIRES(shard->mu)
{
    struct wi_list *link;

    list_for_each(link, &shard->loads) {
        struct blocking_load *load = WI_CONTAINER_OF(link, struct blocking_load, link);

        if (load->ticket.file->cache_file == file && load->ticket.block == block &&
            wi_cache_is_fresh_locked(shard, &load->ticket, hash))
            return load;
    }
    return NULL;
}

static int begin_load(struct wi_cache *cache, struct shard *shard, struct weir_file *file,
                      uint64_t block, uint64_t hash, uint32_t flags, struct blocking_load *load)
    WI_REQUIRES(shard->mu)
{
    int rc = wi_cache_load_begin_locked(cache, shard, file, block, hash, flags, &load->ticket);

    if (rc < 0)
        return rc;
    load->demanded = !(flags & WI_LOAD_PREFETCH);
    wi_list_init(&load->waiters);
    wi_list_push_back(&shard->loads, &load->link);
    shard->loads_done++;
    return 0;
}

/*
 * The first block of a run, which is needed. Returns 0 if its load was begun; 1 if it was
 * there by now, or came while we waited: `*ret_frame` is pinned; or a negative code.
 */
static int claim_first(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                       struct blocking_load *load, struct wi_frame **ret_frame)
{
    uint64_t hash = hash_block(file->cache_file, block);
    struct shard *shard = shard_of(cache, hash);
    struct waiter self;
    int rc;

    wi_mutex_lock(&shard->mu);
    do {
        struct blocking_load *other;

        *ret_frame = wi_cache_find_locked(cache, shard, file->cache_file, block, hash);
        if (*ret_frame) {
            atomic_fetch_add_explicit(&(*ret_frame)->word, 1, memory_order_acquire);
            wi_cache_first_use_locked(shard, *ret_frame, is_scanned(file));
            rc = 1;
            break;
        }
        other = find_load(shard, file->cache_file, block, hash);
        if (!other) {
            rc = begin_load(cache, shard, file, block, hash, 0, load);
            break;
        }
        self = (struct waiter){ .done = false };
        wi_list_push_back(&other->waiters, &self.link);
        other->demanded = true;
        while (!self.done)
            wi_cond_wait(&shard->loaded, &shard->mu);
        *ret_frame = self.frame;
        rc = self.code;
        shard->shared += rc > 0;
    } while (rc == -EAGAIN);
    wi_mutex_unlock(&shard->mu);
    return rc;
}

/* One more block for a run. 0: it is claimed; 1: somebody has it; or -ENOBUFS. */
static int claim_next(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                      bool is_wanted, struct blocking_load *load)
{
    uint64_t hash = hash_block(file->cache_file, block);
    struct shard *shard = shard_of(cache, hash);
    int rc = 1;

    wi_mutex_lock(&shard->mu);
    if (!wi_cache_find_locked(cache, shard, file->cache_file, block, hash) &&
        !find_load(shard, file->cache_file, block, hash)) {
        rc =
            begin_load(cache, shard, file, block, hash, is_wanted ? 0 : WI_LOAD_PREFETCH, load);
        shard->misses += rc == 0 && is_wanted;
    }
    wi_mutex_unlock(&shard->mu);
    return rc;
}

/* `len` bytes, or a negative code, which those that wait get if it is the last word. */
static void end_load(struct wi_cache *cache, struct blocking_load *load, int64_t len,
                     bool is_final)
{
    struct shard *shard =
        shard_of(cache, hash_block(load->ticket.file->cache_file, load->ticket.block));
    struct wi_frame *frame = load->ticket.frame;
    struct wi_list *link;
    bool demanded;

    wi_mutex_lock(&shard->mu);
    demanded = load->demanded;
    if (len < 0)
        wi_list_remove(&load->link);
    wi_mutex_unlock(&shard->mu);
    wi_cache_load_end(cache, &load->ticket, len, demanded);

    wi_mutex_lock(&shard->mu);
    wi_list_remove(&load->link);
    while ((link = wi_list_pop_front(&load->waiters)) != NULL) {
        struct waiter *waiter = WI_CONTAINER_OF(link, struct waiter, link);

        waiter->code = len >= 0 ? 1 : is_final ? (int)len : -EAGAIN;
        if (len >= 0) {
            wi_cache_pin_more(frame);
            waiter->frame = frame;
        }
        waiter->done = true;
    }
    wi_cond_broadcast(&shard->loaded);
    wi_mutex_unlock(&shard->mu);
}

/* One read of the device, which counts as a system call and has its own record in a trace. */
static int64_t read_device(struct weir_file *file, const struct iovec *iov, size_t count,
                           uint64_t offset, uint64_t *ret_moved)
{
    struct weir_engine *engine = file->engine;
    uint64_t begin_ns = wi_trace_begin(engine);
    int64_t rc = wi_blocking_transfer(
        file, false, iov, count, offset,
        atomic_load_explicit(&file->load_rwf, memory_order_relaxed), ret_moved);

    if (WI_UNLIKELY(begin_ns != 0)) {
        struct wi_trace_event event = { .file = file,
                                        .submit_ns = begin_ns,
                                        .start_ns = begin_ns,
                                        .end_ns = wi_os_now(engine->os),
                                        .offset = offset,
                                        .len = wi_iov_bytes(iov, count),
                                        .result = rc < 0 ? rc : (int64_t)*ret_moved,
                                        .flags = WI_TRACE_BLOCKING | WI_TRACE_INTERNAL,
                                        .op = WEIR_OP_READ };

        wi_trace_add(engine, &event);
    }
    return rc;
}

/* Read what was claimed. */
static void read_run(struct wi_cache *cache, struct weir_file *file, struct run *run)
{
    struct iovec iov[RUN_BLOCKS];
    uint64_t moved = 0;
    int64_t rc;

    for (uint32_t i = 0; i < run->count; i++)
        iov[i] =
            (struct iovec){ wi_load_data(cache, &run->loads[i].ticket), cache->block_size };
    rc = read_device(file, iov, run->count, run->first << cache->block_shift, &moved);
    run->code = rc < 0 ? (int)rc : 0;
    run->ended = rc >= 0 && moved < (uint64_t)run->count << cache->block_shift;
    run->good = 0;
    for (uint32_t i = 0; i < run->count; i++) {
        int64_t len = (int64_t)wi_min_u64(moved, cache->block_size);

        moved -= (uint64_t)len;
        if (rc < 0 && len < (int64_t)cache->block_size)
            len = rc;
        end_load(cache, &run->loads[i], len, run->count == 1);
        if (len >= 0 && i < run->wanted)
            run->good++;
        else if (len >= 0)
            wi_cache_unpin(cache, run->loads[i].ticket.frame);
    }
}

/*
 * Get a block that was not found, and perhaps some that follow it, up to `most` of which are
 * wanted. Returns 0 and the run, whose good blocks are pinned; 1 and one pinned frame; or a
 * negative code.
 */
static int load_run(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                    uint32_t wanted, uint32_t most, struct run *run,
                    struct wi_frame **ret_frame)
{
    uint32_t last;
    int rc = claim_first(cache, file, block, &run->loads[0], ret_frame);

    if (rc != 0)
        return rc;
    run->first = block;
    run->wanted = wanted < most ? wanted : most;
    run->count = 1;
    last = most == 1 ? 1 : run->wanted + plan_ahead(cache, file, block, run->wanted);
    while (run->count < last &&
           claim_next(cache, file, block + run->count, run->count < run->wanted,
                      &run->loads[run->count]) == 0)
        run->count++;
    read_run(cache, file, run);
    return 0;
}

int wi_cache_fetch(struct wi_cache *cache, struct weir_file *file, uint64_t block,
                   struct wi_frame **ret_frame)
{
    struct run run;

    for (uint32_t most = RUN_BLOCKS;; most = 1) {
        int rc = load_run(cache, file, block, 1, most, &run, ret_frame);

        if (rc != 0)
            return rc < 0 ? rc : 0;
        if (run.good > 0) {
            *ret_frame = run.loads[0].ticket.frame;
            return 0;
        }
        if (run.count == 1)
            return run.code;
    }
}

void wi_cache_fill(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                   uint64_t end)
{
    struct gate *gate = &file->engine->gate;
    uint64_t most = wi_min_u64(wi_max_u64(1, RUN_BYTES >> cache->block_shift), RUN_BLOCKS);
    uint64_t block = offset >> cache->block_shift;
    uint64_t left = cache->frames_count / 4; /* more would drop the first ones */
    struct run run;
    int rc = 0;

    end = wi_min_u64(end, wi_cache_file_end(cache, file)) + cache->block_size - 1;
    end >>= cache->block_shift;
    for (; block < end && left > 0 && rc != -ENOBUFS; block++, left--) {
        uint64_t room = wi_min_u64(wi_min_u64(end - block, left), most);
        uint64_t bytes;

        run.first = block;
        run.wanted = 0;
        run.count = 0;
        while (run.count < room && (rc = claim_next(cache, file, block + run.count, false,
                                                    &run.loads[run.count])) == 0)
            run.count++;
        if (run.count == 0)
            continue; /* it is there, or another thread's to load */
        bytes = (uint64_t)run.count << cache->block_shift;
        wi_gate_blocking(gate, bytes, true);
        read_run(cache, file, &run);
        wi_gate_blocking(gate, bytes, false);
        if (run.code < 0 || run.ended)
            return;
        block += run.count - 1;
        left -= run.count - 1;
    }
}

/* ---- reads ----------------------------------------------------------------------------- */

/* Copy what is wanted of a block, of which there are `len` bytes. */
static void copy_block(struct reader *reader, const unsigned char *bytes, uint32_t len)
{
    uint32_t in =
        (uint32_t)((reader->offset + reader->moved) & (reader->cache->block_size - 1));
    uint64_t part = len > in ? wi_min_u64(len - in, reader->total - reader->moved) : 0;

    reader->moved += part;
    while (part > 0) {
        size_t piece;
        char *to = cursor_take(&reader->cursor, part, &piece);

        if (piece > 0)
            memcpy(to, bytes + in, piece);
        in += (uint32_t)piece;
        part -= piece;
    }
    reader->ended = len < reader->cache->block_size;
}

static void copy_frame(struct reader *reader, struct wi_frame *frame)
{
    if (!reader->ended)
        copy_block(reader, wi_frame_data(reader->cache, frame), wi_frame_len(frame));
    wi_cache_unpin(reader->cache, frame);
}

static int read_bounced(struct reader *reader, uint64_t block)
{
    struct wi_cache *cache = reader->cache;
    struct weir_file *file = reader->file;
    struct shard *shard = shard_of(cache, hash_block(file->cache_file, block));
    struct bounce *bounce;
    struct iovec piece;
    uint64_t moved = 0;
    int64_t rc;

    wi_mutex_lock(&shard->mu);
    shard->unbuffered++;
    wi_mutex_unlock(&shard->mu);
    wi_mutex_lock(&cache->bounce_mu);
    while (wi_list_empty(&cache->bounces))
        wi_cond_wait(&cache->bounce_back, &cache->bounce_mu);
    bounce = WI_CONTAINER_OF(wi_list_pop_front(&cache->bounces), struct bounce, link);
    wi_mutex_unlock(&cache->bounce_mu);

    piece = (struct iovec){ bounce->data, cache->block_size };
    rc = read_device(file, &piece, 1, block << cache->block_shift, &moved);
    if (rc >= 0)
        copy_block(reader, bounce->data, (uint32_t)moved);

    wi_mutex_lock(&cache->bounce_mu);
    wi_list_push_front(&cache->bounces, &bounce->link);
    wi_cond_signal(&cache->bounce_back);
    wi_mutex_unlock(&cache->bounce_mu);
    return rc < 0 ? (int)rc : 0;
}

/*
 * What reads a block in small parts, one after the other, uses it once: the second part and
 * the following ones begin within the block that the thread had last.
 */
static uint32_t pin_flags(const struct weir_file *file, uint64_t block, bool within)
{
    static __thread struct {
        const struct wi_cache_file *file; /* to compare, never followed */
        uint64_t block;
    } last __attribute__((tls_model("initial-exec")));
    bool again = within && last.block == block && last.file == file->cache_file;

    last.file = file->cache_file;
    last.block = block;
    return again ? WI_PIN_AGAIN : 0;
}

static __attribute__((noinline)) int read_missing(struct reader *reader, uint64_t block)
{
    struct wi_cache *cache = reader->cache;
    uint64_t last = (reader->offset + reader->total - 1) >> cache->block_shift;
    uint64_t most = wi_max_u64(1, RUN_BYTES >> cache->block_shift);
    uint32_t wanted =
        (uint32_t)wi_min_u64(wi_min_u64(last - block + 1, most), reader->run_most);
    struct wi_frame *frame;
    struct run run;
    int rc = load_run(cache, reader->file, block, wanted, reader->run_most, &run, &frame);

    if (rc == -ENOBUFS)
        return read_bounced(reader, block);
    if (rc < 0)
        return rc;
    if (rc > 0) {
        copy_frame(reader, frame);
        return 0;
    }
    for (uint32_t i = 0; i < run.good; i++)
        copy_frame(reader, run.loads[i].ticket.frame);
    if (run.code < 0) {
        reader->run_most = 1;
        return run.good == 0 && run.count == 1 ? run.code : 0;
    }
    return 0;
}

int64_t wi_cache_read(struct wi_cache *cache, struct weir_file *file, const struct iovec *iov,
                      size_t iov_count, uint64_t offset, uint64_t *ret_moved)
{
    struct reader reader = { .cache = cache,
                             .file = file,
                             .cursor = { iov, iov_count, 0 },
                             .offset = offset,
                             .total = wi_iov_bytes(iov, iov_count),
                             .run_most = RUN_BLOCKS };
    int rc = 0;

    while (rc == 0 && reader.moved < reader.total && !reader.ended) {
        uint64_t at = offset + reader.moved;
        uint64_t block = at >> cache->block_shift;
        uint32_t flags = pin_flags(file, block, (at & (cache->block_size - 1)) != 0);
        struct wi_frame *frame;

        if (wi_cache_pin(cache, file, block, flags, 0, &frame) != WI_PIN_MISS)
            copy_frame(&reader, frame);
        else
            rc = read_missing(&reader, block);
    }
    *ret_moved = reader.moved;
    return rc < 0 ? rc : (int64_t)reader.moved;
}
