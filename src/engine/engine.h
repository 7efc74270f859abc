/* SPDX-License-Identifier: MIT */
/*
 * engine.h - what the engine offers to the layers above, beyond include/weir
 */
#ifndef WEIR_ENGINE_ENGINE_H
#define WEIR_ENGINE_ENGINE_H

#include <weir/weir.h>

#include "base/pool.h"
#include "os/backend.h"
#include "os/os.h"

/* Where tests put something between the engine and the world. All borrowed until close. */
struct wi_engine_seams {
    const struct wi_os *os;         /* NULL: wi_os_posix() */
    const struct wi_os *backend_os; /* NULL: wi_os_posix() */
    /* Wraps each queue's backend; takes `inner` on success. NULL: not wrapped. */
    int (*wrap)(void *context, struct wi_backend *inner, struct wi_backend **ret_backend);
    void *wrap_context;
    const struct wi_null_script *null_script;
    bool no_inline; /* never try reads with RWF_NOWAIT first */
};

/* weir_engine_open with seams; `seams` may be NULL. */
int wi_engine_open_with(const struct weir_engine_options *options,
                        const struct wi_engine_seams *seams, struct weir_engine **ret_engine,
                        struct weir_error *error);

/* The engine's os table and pool, for src/file. Inside, valid until the engine is closed. */
const struct wi_os *wi_engine_os(struct weir_engine *engine);
struct wi_pool *wi_engine_pool(struct weir_engine *engine);

/*
 * For src/file, which moves the bytes of small files on bare descriptors: what a struct
 * weir_file costs is more than such a file. It follows the same rules and counts the same.
 */

enum retry_action {
    RETRY_NEVER, /* the result stands */
    RETRY_NOW,
    RETRY_LATER /* after `delay_ns` */
};

struct retry_verdict {
    enum retry_action action;
    uint64_t delay_ns;
    int32_t code; /* what to report if the result stands */
};

/* The rules of docs/durability.md in one place. `tries` counts earlier retries. */
struct retry_verdict wi_retry_verdict(uint32_t op, int64_t result, uint32_t tries);

/* True for one blocking call in 17 of each thread: time it. */
bool wi_stats_sample(void);
/* Counts a blocking call. `start_ns` 0: it was not timed. */
void wi_stats_blocking(struct weir_engine *engine, uint32_t op, int64_t result,
                       uint64_t transferred, uint64_t start_ns);
/* Counts what it took beyond one system call. */
void wi_stats_more_calls(struct weir_engine *engine, uint64_t calls, uint64_t retries,
                         uint64_t continued);

#endif
