/* SPDX-License-Identifier: MIT */
/*
 * view.h - the block cache: reading without copying
 *
 * An engine opened with `cache_bytes` has one block cache, which all threads and queues
 * share. Files opened with WEIR_OPEN_CACHED use it: their reads are served from it, in
 * copies, and a view gives a pinned piece of a cached block without a copy.
 *
 *     struct weir_view view;
 *     int rc = weir_view_try(file, offset, 100, &view);       any thread, never blocks
 *     if (rc == -EAGAIN)
 *         rc = weir_view_get(file, offset, 100, &view, NULL); blocks; or a job, WEIR_OP_VIEW
 *     use(view.data, view.len);
 *     weir_view_release(&view);
 *
 * What a cached block shows. Writes, truncates and allocations made through this engine, by
 * whatever handle, are seen by every read that starts after they have ended. Changes by other
 * programs are looked for when a file is opened: if its size or times are not what they were,
 * its blocks are dropped. A block that was loaded before an outside change stays as it was; one
 * loaded after it is wholly new; a load that races the change is as torn as pread(2) would be.
 * Data that is pinned never changes and stays readable, whatever becomes of the file.
 */
#ifndef WEIR_VIEW_H
#define WEIR_VIEW_H

#include <weir/base.h>
#include <weir/file.h>

#ifdef __cplusplus
extern "C" {
#endif

struct weir_view {
    const void *data; /* inside, until weir_view_release() */
    size_t len; /* may be shorter than asked: up to the end of the block, or of the file */
    uint64_t offset;
    uint64_t private_[2];
};

/*
 * A pinned view of what is cached at `offset`: up to `len` bytes, within one block. Length 0
 * and no need to release it if the file is known to end there.
 * Returns 0; -EAGAIN if it is not in the cache; -ENOBUFS if three quarters of the cache are
 * pinned; -EINVAL if the file is not cached, or `len` is 0; -EBADF.
 * Thread: any. Blocks: never. Allocates: never.
 */
WEIR_API int weir_view_try(struct weir_file *file, uint64_t offset, size_t len,
                           struct weir_view *view);

/* As weir_view_try(), but loads what is missing. Threads that want the same block wait for one
 * load. Thread: any. Blocks: on I/O. Allocates: never. */
WEIR_API int weir_view_get(struct weir_file *file, uint64_t offset, size_t len,
                           struct weir_view *view, struct weir_error *error);

/* Unpin. The view becomes empty; an empty one is fine. Thread: any. Blocks: never. */
WEIR_API void weir_view_release(struct weir_view *view);

#ifdef __cplusplus
}
#endif
#endif
