/* SPDX-License-Identifier: MIT */
/*
 * copy_internal.h - what the files of weir_copy tell each other
 *
 *   copy.c        the call: destination, workers, progress, errors; opens with the map
 *   copy_dir.c    directories: opened, kept open, finished
 *   copy_walk.c   listing them, and sharing the work among workers
 *   copy_file.c   one file or link: temporary, bytes, metadata, name
 *   copy_large.c  the bytes of a large file, through a queue
 *   copy_count.c  how much there will be
 *   copy_temp.c   names and locks of temporaries; removing what an earlier run left
 */
#ifndef WEIR_FILE_COPY_INTERNAL_H
#define WEIR_FILE_COPY_INTERNAL_H

#include <stdatomic.h>

#include <weir/weir.h>

#include "base/list.h"
#include "base/lock.h"
#include "base/pool.h"
#include "os/os.h"

/* Files above this go through a queue, past the page cache where that works. */
#define COPY_LARGE_MIN ((size_t)1 << 20)
#define COPY_SLOTS     8u /* pieces of a large file in flight */
#define COPY_PIECE     ((size_t)1 << 20)
#define COPY_ALIGN     4096u
#define COPY_LIST_SIZE ((size_t)32 << 10) /* of a directory, at a time */
#define COPY_TEMP_MAX  128                /* bytes of a temporary's name, with its NUL */
#define COPY_TEMP_LINK "link"             /* the one thing in a temporary directory */

/* ---- directories ----------------------------------------------------------------------- */

/*
 * A directory and its copy. It lives as long as somebody has work in it; each such piece of
 * work holds a reference: the listing, each batch of its files that was given away, each
 * child directory. The last one gone, its mode and times are set.
 *
 * The two descriptors may be closed whenever nobody has it pinned and are opened again
 * through the parent's, so neither the depth of a tree nor the length of a path is limited
 * by descriptors or by PATH_MAX.
 *
 *   D1  pins > 0 implies both descriptors are open.
 *   D2  It is on copy->unpinned exactly when they are open and pins == 0.
 *   D3  A child holds a reference to its parent until its own last one is gone.
 */
struct copy_dir {
    /* Set at creation. */
    struct copy_dir *parent; /* NULL for the root */
    uint32_t depth;

    /* Set when it is first opened, by the one worker that lists it. */
    uint64_t source_device, source_inode;
    uint64_t copy_device, copy_inode;
    struct statx stat; /* of the source */
    bool opened;       /* both sides are there */
    bool fresh;        /* we made the copy, so no name in it can be taken */

    /* The worker's that lists it. */
    int64_t position;       /* where to go on, for lseek */
    size_t next_source;     /* root: the same, in copy->sources */
    bool repositioned;      /* the descriptor's own position is not ours */
    struct copy_dir *outer; /* on the worker's stack of listings it has put off */

    _Atomic uint32_t refs; /* acq_rel when given back: the last one sees all work */

    /* Guarded by copy->mu. */
    struct wi_list task_link;
    struct wi_list unpinned_link;
    int source_fd;
    int copy_fd;
    uint32_t pins;

    /* The name in the parent's source, and in the parent's copy: the same but at the top. */
    const char *copy_name;
    char name[];
};

/* ---- work ---------------------------------------------------------------------------------- */

/* One name in a directory. */
struct copy_entry {
    uint64_t inode;
    const char *name;
    const char *copy_name;
    uint8_t type; /* DT_* */
};

/* Entries given to another worker, names and all in one block of memory. */
struct copy_batch {
    struct wi_list task_link;
    struct copy_dir *dir; /* holds a reference */
    uint32_t count;
    struct copy_entry entries[];
};

/* What went wrong, before we know how to call the file. */
struct copy_problem {
    uint32_t op;
    bool at_copy; /* with the copy's side; else with the source */
    bool has_offset;
    uint64_t offset;
    const char *text; /* NULL: the code's own */
};

struct copy_large;

struct copy_worker {
    struct wi_task task;
    struct copy *copy;
    bool is_caller; /* the calling thread itself; looks after the progress */
    bool counts;    /* first counts how much there will be */
    struct copy_problem problem;
    unsigned char *buffer;    /* COPY_LARGE_MIN + COPY_ALIGN, aligned */
    unsigned char *list;      /* COPY_LIST_SIZE */
    struct copy_entry *batch; /* of the listing, names in `list` */
    uint32_t batch_count;
    struct copy_large *large; /* made at the first large file */
};

struct copy {
    /* Set at the start. */
    struct weir_engine *engine;
    const struct wi_os *os;
    uint32_t flags;
    const char *const *sources;
    char **names; /* of their copies; NULL where one is refused */
    size_t sources_count;
    char *directory; /* that the copies go into, for messages */
    int (*progress)(void *arg, const struct weir_copy_progress *progress);
    void (*failed)(void *arg, const struct weir_error *error);
    void *arg;
    uint64_t started_ns;
    uint64_t temp_seed;
    struct copy_dir *root;
    bool root_given; /* its reference is the walk's now */
    bool walked;
    bool in_memory;      /* the copies' file system has nothing but the page cache */
    bool flush_on_close; /* it may report lost writes at close(2) */
    uint32_t open_max;   /* pairs of descriptors kept for directories */

    struct wi_mutex mu;
    struct wi_cond work;  /* there is something to do, or nothing will come */
    struct wi_cond ended; /* the last worker has gone */
    struct wi_cond reported;
    /* Guarded by mu. */
    struct wi_list tasks_dirs; /* last in, first out: depth first keeps it short */
    struct wi_list tasks_batches;
    uint32_t tasks_dirs_count;
    uint32_t tasks_batches_count;
    uint32_t running;
    bool finished;
    struct wi_list unpinned; /* open directories nobody uses, the coldest first */
    uint32_t open_count;
    bool reporting;
    int first_error;

    /* Atomic, relaxed: counters and hints. */
    _Atomic uint32_t idle;
    _Atomic int stop; /* 0, or -ECANCELED */
    _Atomic int no_clone;
    _Atomic int no_noreplace; /* renames that refuse a taken name are not there */
    _Atomic uint64_t temp_next;
    _Atomic uint64_t files, directories, links, errors, bytes;
    _Atomic uint64_t bytes_done, bytes_total, files_done, files_total;
    _Atomic uint64_t verified_files, verified_bytes, verified_cached;
    _Atomic uint32_t verifying;
    _Atomic uint32_t counting;
    _Atomic uint64_t count_bytes, count_files;
    uint64_t next_progress_ns; /* calling thread only */
};

#define copy_add(counter, n) atomic_fetch_add_explicit((counter), (n), memory_order_relaxed)
#define copy_get(counter)    atomic_load_explicit((counter), memory_order_relaxed)

/* How often the progress counts each byte: what is verified comes along twice. */
static inline uint64_t copy_passes(const struct copy *copy)
{
    return copy->flags & WEIR_COPY_VERIFY ? 2 : 1;
}

static inline bool copy_stopped(struct copy *copy)
{
    return copy_get(&copy->stop) != 0;
}

/* ---- copy.c ------------------------------------------------------------------------------- */

/* Note what went wrong for copy_fail(); returns `code`, so that a function can end with it. */
int copy_problem(struct copy_worker *worker, int code, uint32_t op, bool at_copy);
int copy_problem_at(struct copy_worker *worker, int code, uint32_t op, bool at_copy,
                    uint64_t offset, const char *text);
int copy_problem_text(struct copy_worker *worker, int code, uint32_t op, bool at_copy,
                      const char *text);

/* Report the worker's problem with an entry of `dir`; NULL names: the directory itself.
 * -ECANCELED is not reported: the whole copy is being stopped. */
void copy_fail(struct copy_worker *worker, struct copy_dir *dir, const char *name,
               const char *copy_name, int code);

void copy_verified(struct copy *copy, uint64_t bytes, bool cached);

/* Now and then, between two pieces of work. */
void copy_tick(struct copy_worker *worker);

/* ---- copy_dir.c ----------------------------------------------------------------------------- */

/* Make a child, with a reference on the parent and one for its listing. NULL: no memory. */
struct copy_dir *copy_dir_create(struct copy_dir *parent, const char *name,
                                 const char *copy_name);
void copy_dir_ref(struct copy_dir *dir);
/* Give back a reference; with the last one the directory is finished, and its parents
 * whose last one that was. */
void copy_dir_unref(struct copy_worker *worker, struct copy_dir *dir);

/* See that both descriptors are open and stay so until unpinned. */
int copy_dir_pin(struct copy_worker *worker, struct copy_dir *dir);
void copy_dir_unpin(struct copy *copy, struct copy_dir *dir);

/* Give the open copy `fd` the mode and times of its source. `mode_now` is what mode it has. */
int copy_metadata(struct copy_worker *worker, int fd, const struct statx *source,
                  uint32_t mode_now);

/* Open the source, make or open the copy, and pin it. */
int copy_dir_begin(struct copy_worker *worker, struct copy_dir *dir);

/* ---- copy_walk.c --------------------------------------------------------------------------- */

/* Take work until there is none and none can come. */
void copy_walk(struct copy_worker *worker);
void copy_push_dir(struct copy *copy, struct copy_dir *dir);

/* ---- copy_count.c ------------------------------------------------------------------------- */

/* Walk the sources ahead of the copy and count them into count_bytes and count_files. */
void copy_count(struct copy *copy);

/* ---- copy_file.c --------------------------------------------------------------------------- */

/* What one file's copy goes through; the descriptors are open while it is being made. */
struct copy_file {
    struct copy_dir *dir;
    const char *name;
    const char *copy_name;
    int source_fd;
    int copy_fd;
    bool taken;                    /* something has the copy's name, and is replaced */
    struct statx stat;             /* of the source, at the start */
    struct weir_file *source_file; /* owns source_fd once it is there */
    struct weir_file *copy_file;   /* the same for copy_fd */
    char temp[COPY_TEMP_MAX];      /* "" once it has its name or is gone */
};

/* Copy an entry that is no directory. 0, or what copy_fail() is to report. */
int copy_entry(struct copy_worker *worker, struct copy_dir *dir, const struct copy_entry *entry,
               const struct statx *stat);

/* A read or write, retried by the engine's rules and counted in its statistics. */
int64_t copy_read(struct copy_worker *worker, int fd, void *buf, size_t len, size_t enough,
                  uint64_t offset); /* a count from `enough` on will do */
int64_t copy_write(struct copy_worker *worker, int fd, unsigned char *buf, size_t len,
                   uint64_t offset);

/* After the copy's bytes were synced: true if reads of it will not come from the page cache. */
bool copy_forget_cached(struct copy *copy, int fd, uint64_t size);

/* ---- copy_large.c ---------------------------------------------------------------------------- */

/* Move the bytes; with VERIFY also read them back and compare. Afterwards the descriptors may
 * belong to source_file and copy_file. */
int copy_large(struct copy_worker *worker, struct copy_file *file);
void copy_large_destroy(struct copy_worker *worker);

/* ---- copy_temp.c ------------------------------------------------------------------------------ */

/* Write a new temporary's name for `base`: ".<base shortened>.<16 hex digits>.weir-tmp". */
void copy_temp_name(struct copy *copy, const char *base, char name[COPY_TEMP_MAX]);
/* Whether a name has that form. */
bool copy_temp_is(const char *name);
/* Make and lock a temporary file in `dir_fd`. Returns its descriptor. */
int copy_temp_create(struct copy *copy, int dir_fd, const char *base, int access_mode,
                     char name[COPY_TEMP_MAX]);
/* Make and lock a temporary directory, for what cannot be locked itself. */
int copy_temp_create_dir(struct copy *copy, int dir_fd, const char *base,
                         char name[COPY_TEMP_MAX]);
/* Remove the temporaries in a directory that nobody holds. `buf` is for listing. */
void copy_temp_clean(struct copy *copy, int dir_fd, unsigned char *buf, size_t size);

#endif
