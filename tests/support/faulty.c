/* SPDX-License-Identifier: MIT */
/*
 * faulty.c - see faulty.h
 */
#include "faulty.h"

#include <string.h>

static int wrap(void *context, struct wi_backend *inner, struct wi_backend **ret_backend)
{
    return wi_fault_wrap(context, inner, ret_backend);
}

void faulty_open(struct faulty *faulty, uint32_t backend, uint32_t depth, uint32_t backlog,
                 const struct weir_engine_options *options)
{
    struct weir_engine_options full = { .size = sizeof(full) };
    struct weir_queue_options queue = { .size = sizeof(queue),
                                        .depth = depth,
                                        .backlog = backlog,
                                        /* The plan counts operations: each job is one. */
                                        .flags = WEIR_QUEUE_NO_MERGE };
    struct wi_engine_seams seams = { .wrap = wrap };
    struct weir_error error;

    memset(faulty, 0, sizeof(*faulty));
    if (options != NULL)
        full = *options;
    full.backend = backend;
    check_code(wi_fault_create(wi_os_posix(), &faulty->plan), 0);
    seams.os = wi_fault_os(faulty->plan);
    seams.wrap_context = faulty->plan;
    check_code(wi_engine_open_with(&full, &seams, &faulty->engine, &error), 0);
    check_code(weir_queue_open(faulty->engine, &queue, &faulty->queue), 0);
}

void faulty_close(struct faulty *faulty)
{
    faulty_release(faulty);
    check_code(weir_queue_close(faulty->queue, TEST_LONG), 0);
    check_code(weir_engine_close(faulty->engine), 0);
    wi_fault_destroy(faulty->plan);
}

void faulty_rule(struct faulty *faulty, struct wi_fault_rule rule)
{
    check_code(wi_fault_add(faulty->plan, &rule), 0);
}

void faulty_hang(struct faulty *faulty, enum wi_fault_kind kind, uint64_t count,
                 bool cancellable)
{
    faulty_rule(faulty, (struct wi_fault_rule){ .kind = kind,
                                                .first = 1,
                                                .count = count,
                                                .delay_ns = UINT64_MAX,
                                                .cancellable = cancellable });
}

void faulty_release(struct faulty *faulty)
{
    wi_fault_clear(faulty->plan);
    wi_fault_release(faulty->plan);
}
