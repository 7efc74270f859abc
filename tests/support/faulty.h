/* SPDX-License-Identifier: MIT */
/*
 * faulty.h - an engine whose device and system calls obey a plan of faults
 *
 * Reads and writes of queues go through the plan around each queue's backend; everything
 * else, and blocking calls, through the plan's os table.
 */
#ifndef WEIR_TESTS_FAULTY_H
#define WEIR_TESTS_FAULTY_H

#include "support.h"

#include "engine/engine.h"
#include "os/fault.h"

struct faulty {
    struct wi_fault_plan *plan;
    struct weir_engine *engine;
    struct weir_queue *queue;
};

/* `depth` and `backlog` as in weir_queue_options. The rest of `options` is used if given. */
void faulty_open(struct faulty *faulty, uint32_t backend, uint32_t depth, uint32_t backlog,
                 const struct weir_engine_options *options);
/* Closes it all; nothing may be left. */
void faulty_close(struct faulty *faulty);

/* Add one rule. */
void faulty_rule(struct faulty *faulty, struct wi_fault_rule rule);
/* Hold back operations of a kind for ever; let go by faulty_release(). */
void faulty_hang(struct faulty *faulty, enum wi_fault_kind kind, uint64_t count,
                 bool cancellable);
/* Forget all rules and let go of what they hold. */
void faulty_release(struct faulty *faulty);

#endif
