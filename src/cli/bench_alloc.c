/* SPDX-License-Identifier: MIT */
/*
 * bench_alloc.c - how often the whole process asks the heap for memory
 *
 * Problem   "no allocation on the hot path" is a promise about the library, the C library
 *           under it and us together. Wrapping calls at link time would miss those that
 *           libweir.so makes.
 * Idea      the program defines malloc and its family. The dynamic linker then binds the
 *           calls of every library to these, and each hands on to glibc's own allocator. While
 *           counting is on, calls that ask for memory are counted; free() is not.
 * Cost      one relaxed load a call while off.
 * Not here  under sanitizers and valgrind-like tools, which bring an allocator of their own,
 *           and on C libraries without glibc's names: nothing is defined and nothing counted.
 */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "bench_internal.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#if defined(__GLIBC__) && !defined(SANITIZED)

static atomic_bool counting;
static atomic_uint_fast64_t count;

/* glibc's own names for its allocator, there for this use. */
/* NOLINTBEGIN(bugprone-reserved-identifier) */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t number, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
/* NOLINTEND(bugprone-reserved-identifier) */

#define EXPORTED __attribute__((visibility("default")))

static void note(void)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed))
        atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);
}

EXPORTED void *malloc(size_t size)
{
    note();
    return __libc_malloc(size);
}

EXPORTED void *calloc(size_t number, size_t size)
{
    note();
    return __libc_calloc(number, size);
}

EXPORTED void *realloc(void *memory, size_t size)
{
    note();
    return __libc_realloc(memory, size);
}

EXPORTED void *memalign(size_t alignment, size_t size)
{
    note();
    return __libc_memalign(alignment, size);
}

EXPORTED void *aligned_alloc(size_t alignment, size_t size)
{
    note();
    return __libc_memalign(alignment, size);
}

EXPORTED int posix_memalign(void **ret_memory, size_t alignment, size_t size)
{
    void *memory;

    if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0)
        return EINVAL;
    note();
    memory = __libc_memalign(alignment, size);
    if (memory == NULL)
        return ENOMEM;
    *ret_memory = memory;
    return 0;
}

bool bench_alloc_available(void)
{
    return true;
}

void bench_alloc_start(void)
{
    atomic_store(&count, 0);
    atomic_store(&counting, true);
}

uint64_t bench_alloc_stop(void)
{
    atomic_store(&counting, false);
    return atomic_load(&count);
}

#else

bool bench_alloc_available(void)
{
    return false;
}

void bench_alloc_start(void)
{
}

uint64_t bench_alloc_stop(void)
{
    return 0;
}

#endif
