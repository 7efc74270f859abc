/* SPDX-License-Identifier: MIT */
/*
 * file_pool.c - many open files, few descriptors
 *
 * Problem      a program has more files than the process may have descriptors.
 * Idea         a file stays open for its users while its descriptor comes and goes: at most
 *              `cap` of them are held, and the one not used for longest is closed for the next.
 * Which        regular files that were opened by name. Not directories (they are where names
 *              start from, and have a position), devices, adopted descriptors and unnamed
 *              files.
 * Never        is a descriptor closed while it has operations in flight, writes that were not
 *              synced (their error would be lost with it), a lock (closing drops it; a POSIX
 *              lock goes with any descriptor of that file, so other handles of it stay open
 *              too) or no name that leads back to it. So more than `cap` are open while that
 *              many are in use: nothing waits for a descriptor, nothing fails for one. What
 *              is too many is closed with the next file that is opened or let go.
 * The name     is asked from the kernel just before closing (/proc/self/fd), so that renaming,
 *              links, and another working directory do no harm, and is checked to lead to
 *              the same file. A file whose name does not, or that has none, keeps its
 *              descriptor for good.
 * Again        is a file opened without creating or truncating, and only if device, inode
 *              and time of birth are the same (inode numbers are soon used again). Anything
 *              else there, or nothing, is -ESTALE, and stays so: whoever replaced it meant
 *              another file.
 * Limits       where the file system knows no time of birth, or within one tick of its clock
 *              (4 ms) of the birth of the old one, a file that was removed and made again
 *              with the same inode number is not told from the old one. A file that is
 *              renamed while its descriptor is closed is lost (-ESTALE), by whomever it is
 *              renamed: the engine's own renames and unlinks are not looked at. Who lost the right
 *              to open a file since gets -EACCES. Without /proc nothing is closed.
 *
 * The states of a descriptor, and who moves it. `mu` is held for each move, and not while the
 * kernel is asked:
 *
 *   CLOSED  -> OPENING   open_again           OPENING -> OPEN     open_again (ok)
 *   OPENING -> CLOSED    open_again (error)   OPEN    -> CLOSING  close_one
 *   CLOSING -> CLOSED    close_one (ok)       CLOSING -> OPEN     close_one (in use, no name)
 *   OPEN, CLOSED -> GONE wi_file_pool_remove  GONE    -> OPEN     wi_file_pool_add
 *
 *   P1  On the list `idle`: OPEN, busy 0, and with nothing noted when it was last looked at.
 *       Files that queues use may be there: they come and go without the lock.
 *   P2  `open` counts those that are OPENING, OPEN or CLOSING, and the reserved.
 *
 * Queues take no lock. They count themselves in `users` (or in `holds`, for loads of the block
 * cache), then look at the state; who closes writes CLOSING, then looks at `users`. All four
 * are sequentially consistent, so one of the two sees the other: either the queue finds that
 * the file is not OPEN, and has it opened by the pool, or the closer finds a user and lets
 * it be. When the queue saw OPEN it may use the descriptor until it takes itself out of
 * `users` (release), which the closer reads (acquire) before it closes. Blocking callers
 * count in `busy`, under the lock.
 *
 * A write is noted once it has ended, while it is still counted in `users` or `busy`; so at
 * every moment one of the two protects it. A sync remembers how many had been noted before
 * it began and takes the note back only if there were no more since: one compare and swap on
 * count and notes.
 */
#include "engine_internal.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

enum descriptor_state {
    DESCRIPTOR_GONE = 0,
    DESCRIPTOR_OPEN,
    DESCRIPTOR_CLOSED,
    DESCRIPTOR_OPENING,
    DESCRIPTOR_CLOSING
};

#define NOTES_MASK   UINT64_C(0xff) /* of enum wi_keep, below the count of writes */
#define ONE_WRITE    UINT64_C(0x100)
#define SHRINK_COUNT 8

struct identity {
    uint64_t inode;
    uint32_t device_major;
    uint32_t device_minor;
    int64_t birth_s; /* both 0 where it is not known */
    uint32_t birth_ns;
};

/* Kept for the next file when its file is closed, so that a stale handle finds no freed
 * memory. */
struct file_pooled {
    /* Set when a file is added. */
    struct file_pool *pool;
    struct identity identity;
    int os_flags;

    /* Guarded by mu. */
    struct weir_file *file; /* NULL: GONE */
    struct wi_list idle;
    struct wi_list locked; /* on the pool's list while it has a lock */
    struct file_pooled *next_free;
    char *path;    /* to open it again by; CLOSED and OPENING only */
    uint32_t busy; /* between wi_file_pool_begin and end */
    int lost;      /* -ESTALE: there is no way back to the file */
    bool nameless; /* can't be opened again, so it is not closed */
    bool leaving;  /* wi_file_pool_remove waits for the busy */

    /* Atomic. */
    _Atomic uint32_t state; /* enum descriptor_state; see above */
    _Atomic uint64_t notes; /* count of writes << 8 | enum wi_keep */
    _Atomic uint32_t used;  /* by a queue since it was last looked at; relaxed, a hint */
};

struct file_pool {
    struct weir_engine *engine; /* set at creation, as is `cap` */
    uint64_t cap;

    struct wi_mutex mu;
    struct wi_cond
        moved; /* a file left OPENING or CLOSING, or a leaving one is no longer busy */
    /* Guarded by mu. */
    struct wi_list idle; /* the one used last at the end */
    struct wi_list locked;
    struct file_pooled *free;
    uint64_t open;
    uint64_t closing;
    uint64_t files;
    uint64_t closed;
    uint64_t reopened;
};

static enum descriptor_state state_of(struct file_pooled *pooled)
{
    return (enum descriptor_state)atomic_load_explicit(&pooled->state, memory_order_seq_cst);
}

static void set_state(struct file_pooled *pooled, enum descriptor_state state)
{
    atomic_store_explicit(&pooled->state, state, memory_order_seq_cst);
}

/* Queues with jobs on it, or with loads of the block cache's. One hold is the open handle's; after it
 * was closed, all are queues'. They are read first, since closing gives that one back last. */
static bool has_users(struct weir_file *file)
{
    uint32_t holds = atomic_load_explicit(&file->holds, memory_order_seq_cst);
    bool open = atomic_load_explicit(&file->open_flags, memory_order_seq_cst) != 0;

    return holds > open || atomic_load_explicit(&file->users, memory_order_seq_cst) != 0;
}

static bool is_kept(struct file_pooled *pooled)
{
    return pooled->nameless ||
           (atomic_load_explicit(&pooled->notes, memory_order_seq_cst) & NOTES_MASK) != 0;
}

static struct identity identity_of(const struct statx *st)
{
    struct identity identity = {
        .inode = st->stx_ino,
        .device_major = st->stx_dev_major,
        .device_minor = st->stx_dev_minor,
    };

    if (st->stx_mask & STATX_BTIME) {
        identity.birth_s = st->stx_btime.tv_sec;
        identity.birth_ns = st->stx_btime.tv_nsec;
    }
    return identity;
}

static bool is_same(const struct identity *a, const struct identity *b)
{
    return a->inode == b->inode && a->device_major == b->device_major &&
           a->device_minor == b->device_minor && a->birth_s == b->birth_s &&
           a->birth_ns == b->birth_ns;
}

/* Is this what is there? 0, -ESTALE, or what went wrong with asking. */
static int compare(const struct wi_os *os, int fd, const char *path,
                   const struct identity *identity)
{
    struct identity found;
    struct statx st;
    int flags = fd < 0 ? AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT : AT_EMPTY_PATH;
    int rc;

    memset(&st, 0, sizeof(st));
    rc = os->ops->statx(os, fd < 0 ? AT_FDCWD : fd, path, flags,
                        STATX_TYPE | STATX_INO | STATX_BTIME, &st);
    if (rc == -ENOENT || rc == -ENOTDIR || rc == -ELOOP)
        return -ESTALE;
    if (rc < 0)
        return rc;
    found = identity_of(&st);
    return is_same(&found, identity) ? 0 : -ESTALE;
}

/* ---- closing ----------------------------------------------------------------------------- */

static bool shares_a_lock(const struct file_pool *pool, const struct file_pooled *pooled)
{
    struct wi_list *node;

    list_for_each(node, &pool->locked)
        if (is_same(&WI_CONTAINER_OF(node, struct file_pooled, locked)->identity,
                    &pooled->identity))
            return true;
    return false;
}

/* The way back to an open descriptor (given), 0 and -ESTALE as in `compare`. */
static int find_path(struct file_pooled *pooled, int fd, char **ret_path)
{
    const struct wi_os *os = pooled->pool->engine->os;
    char path[PATH_MAX];
    char link[40];
    int64_t len;
    int rc;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = os->ops->readlinkat(os, AT_FDCWD, link, path, sizeof(path));
    if (len <= 0 || len >= PATH_MAX || path[0] != '/')
        return len < 0 && len != -ENOENT ? (int)len : -ESTALE;
    path[len] = '\0';
    rc = compare(os, -1, path, &pooled->identity);
    if (rc < 0)
        return rc;
    *ret_path = strdup(path);
    return *ret_path ? 0 : -ENOMEM;
}

/* CLOSING, and on no list. */
static int close_descriptor(struct file_pooled *pooled, struct weir_file *file)
{
    const struct wi_os *os = pooled->pool->engine->os;
    int rc = find_path(pooled, file->fd, &pooled->path);

    if (rc < 0)
        return rc;
    rc = os->ops->close(os, file->fd);
    /* Nothing was unsynced, so nothing is lost; but who wrote is to know. */
    if (rc < 0 && (pooled->os_flags & O_ACCMODE) != O_RDONLY)
        wi_file_poison(file, rc == -ECANCELED ? -EIO : rc);
    file->fd = -1;
    return 0;
}

static void put_idle_locked(struct file_pool *pool, struct file_pooled *pooled)
    WI_REQUIRES(pool->mu)
{
    if (state_of(pooled) == DESCRIPTOR_OPEN && pooled->busy == 0 && !is_kept(pooled) &&
        !wi_list_on(&pooled->idle))
        wi_list_push_back(&pool->idle, &pooled->idle);
}

/* Close this one, off the list, unless it is in use after all. */
static bool close_one_locked(struct file_pool *pool, struct file_pooled *pooled)
    WI_REQUIRES(pool->mu)
{
    struct weir_file *file = pooled->file;
    int rc = -EBUSY;

    set_state(pooled, DESCRIPTOR_CLOSING);
    pool->closing++;
    if (!has_users(file) && !is_kept(pooled)) {
        wi_mutex_unlock(&pool->mu);
        rc = close_descriptor(pooled, file);
        wi_mutex_lock(&pool->mu);
    }
    pool->closing--;
    if (rc == 0) {
        set_state(pooled, DESCRIPTOR_CLOSED);
        pool->open--;
        pool->closed++;
    } else {
        set_state(pooled, DESCRIPTOR_OPEN);
        /* Else it was only bad luck, and it may be tried again. */
        pooled->nameless = rc != -EBUSY && rc != -ENOMEM && rc != -EINTR && rc != -EIO;
        put_idle_locked(pool, pooled);
    }
    wi_cond_broadcast(&pool->moved);
    return rc == 0;
}

/*
 * Close up to `count` descriptors, as long as more than `cap` are open. Each idle file is
 * looked at twice at most, because one that a queue has used gets a second chance.
 */
static uint64_t trim_locked(struct file_pool *pool, uint64_t cap, uint64_t count)
    WI_REQUIRES(pool->mu)
{
    uint64_t looks = pool->open * 2;
    uint64_t closed = 0;

    while (looks-- > 0 && closed < count && pool->open > cap) {
        struct wi_list *node = wi_list_pop_front(&pool->idle);
        struct file_pooled *pooled;

        if (!node)
            break;
        pooled = WI_CONTAINER_OF(node, struct file_pooled, idle);
        if (is_kept(pooled))
            continue; /* who takes the note back puts it on the list again */
        if (atomic_exchange_explicit(&pooled->used, 0, memory_order_relaxed) != 0 ||
            has_users(pooled->file) || shares_a_lock(pool, pooled))
            wi_list_push_back(&pool->idle, node);
        else if (close_one_locked(pool, pooled))
            closed++;
    }
    return closed;
}

/* ---- opening again ----------------------------------------------------------------------- */

static int open_descriptor(struct file_pooled *pooled, const char *path)
{
    struct weir_engine *engine = pooled->pool->engine;
    const struct wi_os *os = engine->os;
    bool shrunk = false;
    int fd;
    /* Opening what is there to find out what it is could wait for ever (a pipe), or wind a
     * tape. */
    int rc = compare(os, -1, path, &pooled->identity);

    if (rc < 0)
        return rc;
    for (uint32_t tries = 0;; tries++) {
        fd = os->ops->openat(os, AT_FDCWD, path, pooled->os_flags, 0);
        if (fd >= 0)
            break;
        if ((fd == -EMFILE || fd == -ENFILE) && !shrunk) {
            shrunk = true;
            if (wi_file_pool_shrink(engine))
                continue;
        }
        if (wi_retry_verdict(WEIR_OP_OPEN, fd, tries).action == RETRY_NEVER) {
            rc = wi_retry_verdict(WEIR_OP_OPEN, fd, tries).code;
            return rc == -ENOENT || rc == -ELOOP ? -ESTALE : rc;
        }
    }
    rc = compare(os, fd, "", &pooled->identity); /* it may have been replaced just now */
    if (rc < 0) {
        os->ops->close(os, fd);
        return rc;
    }
    wi_file_advise_again(pooled->file, fd);
    return fd;
}

static int open_again_locked(struct file_pool *pool, struct file_pooled *pooled)
    WI_REQUIRES(pool->mu)
{
    int fd;

    set_state(pooled, DESCRIPTOR_OPENING);
    pool->open++;
    trim_locked(pool, pool->cap, UINT64_MAX);
    wi_mutex_unlock(&pool->mu);
    fd = open_descriptor(pooled, pooled->path);
    wi_mutex_lock(&pool->mu);
    if (fd >= 0) {
        pooled->file->fd = fd;
        free(pooled->path);
        pooled->path = NULL;
        pool->reopened++;
    } else {
        pool->open--;
        if (fd == -ESTALE)
            pooled->lost = fd;
    }
    set_state(pooled, fd >= 0 ? DESCRIPTOR_OPEN : DESCRIPTOR_CLOSED);
    wi_cond_broadcast(&pool->moved);
    return fd < 0 ? fd : 0;
}

static bool is_moving(struct file_pooled *pooled)
{
    return state_of(pooled) == DESCRIPTOR_OPENING || state_of(pooled) == DESCRIPTOR_CLOSING;
}

/* ---- using ------------------------------------------------------------------------------- */

int wi_file_pool_begin(struct weir_file *file)
{
    struct file_pooled *pooled = file->pooled;
    struct file_pool *pool = pooled->pool;
    int rc = 0;

    wi_mutex_lock(&pool->mu);
    while (is_moving(pooled))
        wi_cond_wait(&pool->moved, &pool->mu);
    if (pooled->file != file)
        rc = -EBADF;
    else if (pooled->lost < 0)
        rc = pooled->lost;
    else if (state_of(pooled) == DESCRIPTOR_CLOSED)
        rc = open_again_locked(pool, pooled);
    if (rc == 0) {
        pooled->busy++;
        wi_list_remove(&pooled->idle);
    }
    wi_mutex_unlock(&pool->mu);
    return rc;
}

void wi_file_pool_end(struct weir_file *file)
{
    struct file_pooled *pooled = file->pooled;
    struct file_pool *pool = pooled->pool;

    wi_mutex_lock(&pool->mu);
    WEIR_DCHECK(pooled->busy > 0);
    if (--pooled->busy == 0) {
        put_idle_locked(pool, pooled);
        if (pooled->leaving)
            wi_cond_broadcast(&pool->moved);
        trim_locked(pool, pool->cap, UINT64_MAX);
    }
    wi_mutex_unlock(&pool->mu);
}

bool wi_file_pool_is_open(struct weir_file *file)
{
    struct file_pooled *pooled = file->pooled;

    if (!pooled)
        return true;
    if (atomic_load_explicit(&pooled->used, memory_order_relaxed) == 0)
        atomic_store_explicit(&pooled->used, 1, memory_order_relaxed);
    return state_of(pooled) == DESCRIPTOR_OPEN;
}

static void note(struct file_pooled *pooled, uint64_t set, uint64_t add)
{
    uint64_t notes = atomic_load_explicit(&pooled->notes, memory_order_relaxed);

    while (!atomic_compare_exchange_weak_explicit(&pooled->notes, &notes, (notes + add) | set,
                                                  memory_order_seq_cst, memory_order_relaxed))
        continue;
}

static void unnote_locked(struct file_pool *pool, struct file_pooled *pooled, uint64_t clear)
    WI_REQUIRES(pool->mu)
{
    atomic_fetch_and_explicit(&pooled->notes, ~clear, memory_order_seq_cst);
    put_idle_locked(pool, pooled);
}

void wi_file_pool_keep(struct weir_file *file, enum wi_keep why, bool on)
{
    struct file_pooled *pooled = file->pooled;
    struct file_pool *pool = pooled->pool;

    if (on && why == WI_KEEP_UNSYNCED) {
        note(pooled, WI_KEEP_UNSYNCED, ONE_WRITE);
        return;
    }
    wi_mutex_lock(&pool->mu);
    if (on)
        note(pooled, why, 0);
    else
        unnote_locked(pool, pooled, why);
    if (why == WI_KEEP_LOCK) {
        wi_list_remove(&pooled->locked);
        if (on)
            wi_list_push_back(&pool->locked, &pooled->locked);
        /* Another handle of the file may be about to lose its descriptor, and the lock with
         * it. */
        while (on && pool->closing > 0)
            wi_cond_wait(&pool->moved, &pool->mu);
    }
    wi_mutex_unlock(&pool->mu);
}

uint64_t wi_file_pool_writes(struct weir_file *file)
{
    return file->pooled
               ? atomic_load_explicit(&file->pooled->notes, memory_order_seq_cst) & ~NOTES_MASK
               : 0;
}

void wi_file_pool_synced(struct weir_file *file, uint64_t writes)
{
    struct file_pooled *pooled = file->pooled;
    uint64_t notes;

    if (!pooled)
        return;
    /* Whoever syncs has begun (wi_file_begin), so it goes to the idle ones when that ends. */
    notes = atomic_load_explicit(&pooled->notes, memory_order_relaxed);
    do {
        if ((notes & ~NOTES_MASK) != writes)
            return;
    } while (!atomic_compare_exchange_weak_explicit(
        &pooled->notes, &notes, notes & ~(uint64_t)WI_KEEP_UNSYNCED, memory_order_seq_cst,
        memory_order_relaxed));
}

const char *wi_file_pool_text(const struct weir_file *file, int64_t code)
{
    return code == -ESTALE && file && file->pooled
               ? "the file was replaced or removed while the engine had its descriptor closed "
                 "(open_files of weir_engine_options)"
               : NULL;
}

/* ---- files come and go ------------------------------------------------------------------- */

void wi_file_pool_reserve(struct weir_engine *engine)
{
    struct file_pool *pool = engine->file_pool;

    if (!pool)
        return;
    wi_mutex_lock(&pool->mu);
    pool->open++;
    trim_locked(pool, pool->cap, UINT64_MAX);
    wi_mutex_unlock(&pool->mu);
}

void wi_file_pool_unreserve(struct weir_engine *engine)
{
    struct file_pool *pool = engine->file_pool;

    if (!pool)
        return;
    wi_mutex_lock(&pool->mu);
    pool->open--;
    wi_mutex_unlock(&pool->mu);
}

bool wi_file_pool_shrink(struct weir_engine *engine)
{
    struct file_pool *pool = engine->file_pool;
    uint64_t closed;

    if (!pool)
        return false;
    wi_mutex_lock(&pool->mu);
    closed = trim_locked(pool, 0, SHRINK_COUNT);
    wi_mutex_unlock(&pool->mu);
    return closed > 0;
}

int wi_file_pool_add(struct weir_file *file, int os_flags, const struct statx *st)
{
    struct file_pool *pool = file->engine->file_pool;
    struct file_pooled *pooled;

    wi_mutex_lock(&pool->mu);
    pooled = pool->free;
    if (pooled)
        pool->free = pooled->next_free;
    wi_mutex_unlock(&pool->mu);
    if (!pooled) {
        pooled = calloc(1, sizeof(*pooled));
        if (!pooled)
            return -ENOMEM;
        wi_engine_account(file->engine, sizeof(*pooled));
    }
    wi_mutex_lock(&pool->mu);
    pooled->pool = pool;
    pooled->identity = identity_of(st);
    pooled->os_flags = (os_flags & (O_ACCMODE | O_DIRECT | O_CLOEXEC | O_NOCTTY)) | O_NOFOLLOW;
    pooled->file = file;
    wi_list_init(&pooled->idle);
    wi_list_init(&pooled->locked);
    pooled->path = NULL;
    pooled->busy = 0;
    pooled->lost = 0;
    pooled->nameless = false;
    pooled->leaving = false;
    atomic_store_explicit(&pooled->notes, 0, memory_order_relaxed);
    atomic_store_explicit(&pooled->used, 0, memory_order_relaxed);
    set_state(pooled, DESCRIPTOR_OPEN);
    file->pooled = pooled;
    pool->files++;
    put_idle_locked(pool, pooled);
    wi_mutex_unlock(&pool->mu);
    return 0;
}

void wi_file_pool_remove(struct weir_file *file)
{
    struct file_pooled *pooled = file->pooled;
    struct file_pool *pool;

    if (!pooled)
        return;
    pool = pooled->pool;
    wi_mutex_lock(&pool->mu);
    pooled->leaving = true;
    while (is_moving(pooled) || pooled->busy > 0)
        wi_cond_wait(&pool->moved, &pool->mu);
    wi_list_remove(&pooled->idle);
    wi_list_remove(&pooled->locked);
    if (state_of(pooled) == DESCRIPTOR_OPEN)
        pool->open--;
    set_state(pooled, DESCRIPTOR_GONE);
    free(pooled->path);
    pooled->path = NULL;
    pooled->file = NULL;
    pooled->next_free = pool->free;
    pool->free = pooled;
    pool->files--;
    file->pooled = NULL;
    wi_mutex_unlock(&pool->mu);
}

int wi_file_pool_create(struct weir_engine *engine, uint32_t open_files)
{
    struct file_pool *pool;

    if (open_files == 0)
        return 0;
    pool = calloc(1, sizeof(*pool));
    if (!pool)
        return -ENOMEM;
    pool->engine = engine;
    pool->cap = open_files;
    wi_mutex_init(&pool->mu, WI_RANK_POOLED);
    wi_cond_init(&pool->moved);
    wi_list_init(&pool->idle);
    wi_list_init(&pool->locked);
    engine->file_pool = pool;
    return 0;
}

void wi_file_pool_destroy(struct weir_engine *engine)
{
    struct file_pool *pool = engine->file_pool;

    if (!pool)
        return;
    WEIR_ASSERT(pool->files == 0);
    while (pool->free) {
        struct file_pooled *pooled = pool->free;

        pool->free = pooled->next_free;
        free(pooled);
    }
    wi_cond_fini(&pool->moved);
    wi_mutex_fini(&pool->mu);
    free(pool);
    engine->file_pool = NULL;
}

void wi_file_pool_stats(struct weir_engine *engine, struct weir_stats *stats)
{
    struct file_pool *pool = engine->file_pool;

    wi_mutex_lock(&engine->mu);
    stats->descriptors_open = engine->files_open;
    wi_mutex_unlock(&engine->mu);
    if (!pool)
        return;
    wi_mutex_lock(&pool->mu);
    /* The two counts are not of the same moment. */
    stats->descriptors_open -= wi_min_u64(stats->descriptors_open, pool->files);
    stats->descriptors_open += pool->open;
    stats->descriptors_closed = pool->closed;
    stats->descriptors_reopened = pool->reopened;
    wi_mutex_unlock(&pool->mu);
}
