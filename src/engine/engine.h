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

#endif
