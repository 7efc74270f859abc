/* SPDX-License-Identifier: MIT */
/*
 * copy.h - copying files and trees
 *
 * Regular files, directories and symbolic links (as links), with modes and times. A file
 * appears under its name only when it is complete; an existing name is replaced, and its
 * old inode is never written into. An error with one file does not stop the others.
 *
 * Until then a file is written as ".<name>.<16 hex digits>.weir-tmp" beside its name, locked
 * with flock(2). A copy that is killed leaves such files; the next one into the same
 * directory removes those that nobody holds.
 *
 * Large files are written past the page cache where the file system can: a copy leaves the
 * cache to those who use it. Set-user-id and set-group-id bits are kept only where the
 * copy has the same owner and group. Copies are visible, not durable: synced are only the
 * bytes that replace an older file, so that a loss of power leaves the old or the new one,
 * and what WEIR_COPY_VERIFY reads back past no page cache.
 */
#ifndef WEIR_COPY_H
#define WEIR_COPY_H

#include <weir/base.h>
#include <weir/engine.h>

#ifdef __cplusplus
extern "C" {
#endif

enum weir_copy_flag {
    WEIR_COPY_RECURSIVE = 1u << 0, /* directories with what is in them; else they are errors */
    WEIR_COPY_VERIFY = 1u << 1,    /* read each copy back and compare XXH3-128 of both sides */
    WEIR_COPY_COUNT = 1u << 2      /* walk ahead, so that the progress knows its totals early */
};

/* How far it is. Totals grow while directories are still being listed. With WEIR_COPY_VERIFY
 * bytes count twice, when they were written and when they were read back. */
struct weir_copy_progress {
    uint64_t bytes_done;
    uint64_t bytes_total;
    uint64_t files_done; /* files, links and directories, finished or failed */
    uint64_t files_total;
    uint32_t listing;   /* 1 while totals may still grow */
    uint32_t verifying; /* files being read back now */
    uint64_t elapsed_ns;
};

struct weir_copy_result {
    size_t size;             /* sizeof(struct weir_copy_result), set by the caller */
    uint64_t files;          /* regular files copied */
    uint64_t directories;    /* made, or there already */
    uint64_t links;          /* symbolic links made */
    uint64_t bytes;          /* copied */
    uint64_t verified_files; /* equal on both sides */
    uint64_t verified_bytes;
    uint64_t verified_cached_files; /* among them: read back through the page cache */
    uint64_t errors;                /* files, links and directories that failed */
    uint64_t elapsed_ns;
};

struct weir_copy_options {
    size_t size;    /* sizeof(struct weir_copy_options), as the caller knows it */
    uint32_t flags; /* WEIR_COPY_* */
    /* Files copied at once; 0 means as many as may be: one less than the files lane has
     * threads, so that opens and syncs of the same engine go on meanwhile, and at least 1. */
    uint32_t workers;
    /* Called about ten times a second on the calling thread; may be NULL. A value other
     * than 0 stops the copy: temporaries are removed, and the result is -ECANCELED. */
    int (*progress)(void *arg, const struct weir_copy_progress *progress);
    /* Called for each file that failed, from any thread, one call at a time; may be NULL. */
    void (*failed)(void *arg, const struct weir_error *error);
    void *arg;
};

/*
 * Copy `sources` to `destination`. With one source and a destination that is no directory,
 * the copy gets the destination's name; else copies go into the destination directory under
 * the sources' last names, and the contents of a source without one, such as "dir/.", go
 * into the directory itself. Everything is borrowed until the call returns.
 *
 * Per file `failed` may report, beside what the kernel says: -WEIR_ECHANGED, the source
 * changed while it was read, and no copy was published; -WEIR_EMISMATCH, the copy did not
 * read back as it was written, and was not published; -EISDIR, a directory without
 * WEIR_COPY_RECURSIVE, or one that a file was to replace; -ENOTDIR, the reverse; -EINVAL,
 * a file onto itself, or a directory into itself; -EEXIST, another source has the same name
 * already, or a device, pipe or socket has it, which nothing replaces; -EOPNOTSUPP, the
 * source is a device, pipe or socket, or has other bytes than its size says, as in /proc.
 *
 * Returns 0, or the code of the first error: whatever could be copied has been all the same,
 * and `result` is filled. -EINVAL if the arguments make no sense (then `failed` is called
 * once with the reason).
 * Thread: any. Blocks: on I/O, for as long as it takes.
 */
WEIR_API int weir_copy(struct weir_engine *engine, const char *const *sources,
                       size_t sources_count, const char *destination,
                       const struct weir_copy_options *options,
                       struct weir_copy_result *result);

#ifdef __cplusplus
}
#endif
#endif
