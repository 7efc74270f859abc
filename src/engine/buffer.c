/* SPDX-License-Identifier: MIT */
/*
 * buffer.c - the engine's pool of aligned buffers
 *
 * One mapping, cut into equal buffers, populated at open so that no I/O pays for first
 * touches, and registered with each ring as one region. What fills whole huge pages asks for
 * them: a large direct read then pins and maps one page instead of 256 (measured at 1 MiB:
 * a third of the processor time). Free buffers are a lock-free stack of indices, last in
 * first out, so that warm memory is used again first.
 */
#include "engine_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define REGION_MAX (1u << 30) /* what io_uring registers as one buffer */
#define HUGE_PAGE  ((size_t)2 << 20)

/* Map `bytes`, aligned for huge pages if there is room for one, every page touched. */
static unsigned char *map_region(size_t bytes)
{
    size_t slack = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    unsigned char *mapping =
        mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before;

    if (mapping == MAP_FAILED)
        return NULL;
    if (slack > 0) {
        before = (size_t)(-(uintptr_t)mapping) & (HUGE_PAGE - 1);
        if (before > 0)
            munmap(mapping, before);
        if (slack > before)
            munmap(mapping + before + bytes, slack - before);
        mapping += before;
        /* Whole ones only: a page counts against the locked-memory limit as a whole. */
        (void)madvise(mapping, bytes & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
    }
    if (madvise(mapping, bytes, MADV_POPULATE_WRITE) != 0)
        memset(mapping, 0, bytes);
    return mapping;
}

static uint64_t head_of(uint32_t index_plus_1, uint64_t old)
{
    return ((old >> 32) + 1) << 32 | index_plus_1;
}

int wi_buffers_init(struct buffer_pool *buffers, size_t buffer_size, uint32_t count)
{
    if (count == 0)
        return 0;
    if (buffer_size == 0)
        buffer_size = 64u << 10;
    if (buffer_size % 4096 != 0 || buffer_size > REGION_MAX || count > REGION_MAX / buffer_size)
        return -EINVAL;

    buffers->next = calloc(count, sizeof(*buffers->next));
    if (!buffers->next)
        return -ENOMEM;
    buffers->bytes = buffer_size * count;
    buffers->base = map_region(buffers->bytes);
    if (!buffers->base) {
        free(buffers->next);
        buffers->next = NULL;
        return -ENOMEM;
    }
    buffers->buffer_size = buffer_size;
    buffers->count = count;
    for (uint32_t i = 0; i < count; i++)
        atomic_init(&buffers->next[i], i + 1 < count ? i + 2 : 0);
    atomic_init(&buffers->head, 1);
    return 0;
}

void wi_buffers_fini(struct buffer_pool *buffers)
{
    if (buffers->base)
        munmap(buffers->base, buffers->bytes);
    free(buffers->next);
    memset(buffers, 0, sizeof(*buffers));
}

void *weir_buffer_acquire(struct weir_engine *engine)
{
    struct buffer_pool *buffers = &engine->buffers;
    uint64_t head = atomic_load_explicit(&buffers->head, memory_order_acquire);
    uint64_t used;
    uint64_t peak;
    uint32_t index;

    do {
        if ((uint32_t)head == 0)
            return NULL;
        index = (uint32_t)head - 1;
        /* May be stale if another thread took the buffer meanwhile: then the tag in `head`
         * has moved on, and the exchange fails. */
    } while (!atomic_compare_exchange_weak_explicit(
        &buffers->head, &head,
        head_of(atomic_load_explicit(&buffers->next[index], memory_order_relaxed), head),
        memory_order_acquire, memory_order_acquire));

    used = atomic_fetch_add_explicit(&buffers->in_use, 1, memory_order_relaxed) + 1;
    peak = atomic_load_explicit(&buffers->peak, memory_order_relaxed);
    while (used > peak &&
           !atomic_compare_exchange_weak_explicit(&buffers->peak, &peak, used,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
    return buffers->base + (size_t)index * buffers->buffer_size;
}

void weir_buffer_release(struct weir_engine *engine, void *buffer)
{
    struct buffer_pool *buffers = &engine->buffers;
    uint64_t head = atomic_load_explicit(&buffers->head, memory_order_relaxed);
    size_t offset;
    uint32_t index;

    if (!buffer)
        return;
    offset = (size_t)((unsigned char *)buffer - buffers->base);
    WEIR_ASSERT(offset < buffers->bytes && offset % buffers->buffer_size == 0);
    index = (uint32_t)(offset / buffers->buffer_size);
    atomic_fetch_sub_explicit(&buffers->in_use, 1, memory_order_relaxed);
    do
        atomic_store_explicit(&buffers->next[index], (uint32_t)head, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&buffers->head, &head,
                                                  head_of(index + 1, head),
                                                  memory_order_release, memory_order_relaxed));
}
