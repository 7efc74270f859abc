/* SPDX-License-Identifier: MIT */
/*
 * view.c - pinned pieces of cached blocks, for callers
 *
 * A view is a pin on a frame and a token, of which there are as many as make three quarters
 * of the cache. Streams hand out views of buffers of their own, without a frame: those only
 * become empty when they are released.
 */
#include "cache_internal.h"

static int check_view(const struct weir_file *file, size_t len, const struct weir_view *view)
{
    uint32_t open_flags;

    if (!file || !view)
        return -EINVAL;
    open_flags = atomic_load_explicit(&file->open_flags, memory_order_relaxed);
    if (WI_UNLIKELY(!(open_flags & WEIR_OPEN_READ)))
        return -EBADF;
    return WI_UNLIKELY(!(open_flags & WEIR_OPEN_CACHED) || !file->cache_file || len == 0)
               ? -EINVAL
               : 0;
}

void wi_view_fill(struct weir_view *view, struct wi_cache *cache, struct wi_frame *frame,
                  uint32_t in, size_t len)
{
    size_t left = wi_frame_len(frame) - in;

    view->data = wi_frame_data(cache, frame) + in;
    view->len = len < left ? len : left;
    view->private_[0] = (uintptr_t)frame;
    view->private_[1] = (uintptr_t)cache;
}

/* The frame is pinned and there is a token: both go into the view, or go back if the file
 * ends before what was asked for. */
static void make_view(struct wi_cache *cache, struct wi_frame *frame, uint64_t offset,
                      size_t len, struct weir_view *view)
{
    uint32_t in = (uint32_t)(offset & (wi_cache_block_size(cache) - 1));

    if (WI_UNLIKELY(in >= wi_frame_len(frame))) {
        *view = (struct weir_view){ .offset = offset };
        wi_cache_unpin(cache, frame);
        wi_cache_give_view(cache);
        return;
    }
    view->offset = offset;
    wi_view_fill(view, cache, frame, in, len);
}

int weir_view_try(struct weir_file *file, uint64_t offset, size_t len, struct weir_view *view)
{
    struct wi_cache *cache;
    struct wi_frame *frame;
    int rc = check_view(file, len, view);

    if (WI_UNLIKELY(rc < 0))
        return rc;
    cache = file->engine->cache;
    if (WI_UNLIKELY(!wi_cache_take_view(cache)))
        return -ENOBUFS;
    if (wi_cache_pin(cache, file, offset / wi_cache_block_size(cache), 0, 0, &frame) ==
        WI_PIN_MISS) {
        wi_cache_give_view(cache);
        return -EAGAIN;
    }
    make_view(cache, frame, offset, len, view);
    return 0;
}

/* What weir_view_try could not find. There is a token. */
static int load_view(struct wi_cache *cache, struct weir_file *file, uint64_t offset,
                     size_t len, struct weir_view *view)
{
    uint32_t block_size = wi_cache_block_size(cache);
    struct gate *gate = &file->engine->gate;
    struct wi_frame *frame;
    int rc = wi_file_begin(file);

    if (rc < 0)
        return rc;
    wi_gate_blocking(gate, block_size, true);
    rc = wi_cache_fetch(cache, file, offset / block_size, &frame);
    wi_gate_blocking(gate, block_size, false);
    wi_file_end(file);
    if (rc == 0)
        make_view(cache, frame, offset, len, view);
    return rc;
}

static int get_view(struct weir_file *file, uint64_t offset, size_t len, struct weir_view *view)
{
    int rc = offset > INT64_MAX ? -EINVAL : weir_view_try(file, offset, len, view);
    struct wi_cache *cache;

    if (rc != -EAGAIN)
        return rc;
    cache = file->engine->cache;
    if (!wi_cache_take_view(cache))
        return -ENOBUFS;
    rc = load_view(cache, file, offset, len, view);
    if (rc < 0)
        wi_cache_give_view(cache);
    return rc;
}

/* As of a read: it makes the system calls that its loads count, and none of its own. */
static int get_counted(struct weir_engine *engine, struct weir_file *file, uint64_t offset,
                       size_t len, struct weir_view *view)
{
    uint64_t begin_ns = wi_trace_begin(engine);
    uint64_t start_ns = 0;
    int rc;

    if (wi_stats_sample()) {
        start_ns = wi_os_now(engine->os);
        wi_retry_earn(engine, SAMPLED_CALLS);
    }
    rc = get_view(file, offset, len, view);
    atomic_fetch_sub_explicit(&wi_stats_shard(engine)->extra_calls, 1, memory_order_relaxed);
    wi_stats_blocking(engine, WEIR_OP_VIEW, rc, rc == 0 ? view->len : 0, start_ns);
    wi_trace_blocking(engine, file, WEIR_OP_VIEW, begin_ns, offset, len,
                      rc == 0 ? (int64_t)view->len : rc);
    return rc;
}

int weir_view_get(struct weir_file *file, uint64_t offset, size_t len, struct weir_view *view,
                  struct weir_error *error)
{
    int rc = file ? get_counted(file->engine, file, offset, len, view) : -EINVAL;
    const char *text = NULL;

    if (rc == 0)
        return 0;
    if (rc == -EBADF)
        text = "the file is closed, or not open for reading";
    else if (rc == -EINVAL)
        text =
            "the file was not opened with WEIR_OPEN_CACHED, the length is 0, or the offset is "
            "beyond 2^63";
    else if (rc == -ENOBUFS)
        text = "too much of the cache is pinned by views, or loading; release some";
    wi_error_set(error, rc, WEIR_OP_VIEW, file && rc != -EBADF ? file->path : NULL,
                 text ? "%s" : NULL, text);
    if (error) {
        error->offset = offset;
        error->length = len;
        error->has_offset = 1;
    }
    return rc;
}

void weir_view_release(struct weir_view *view)
{
    struct wi_frame *frame;
    struct wi_cache *cache;

    if (!view)
        return;
    frame = (struct wi_frame *)(uintptr_t)view->private_[0];
    cache = (struct wi_cache *)(uintptr_t)view->private_[1];
    view->data = NULL;
    view->len = 0;
    view->private_[0] = 0;
    view->private_[1] = 0;
    if (!frame)
        return;
    wi_cache_unpin(cache, frame);
    wi_cache_give_view(cache);
}
