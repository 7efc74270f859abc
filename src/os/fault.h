/* SPDX-License-Identifier: MIT */
/*
 * fault.h - record and spoil what goes through an os table or a backend
 *
 * A plan is shared by a wrapped os table and the backends wrapped around a queue's own, so
 * one plan sees the reads and writes of every backend and all the calls made on the pool or
 * by blocking callers. Rules are tried in the order they were added; the first that matches
 * acts. Everything can be inspected and changed from any thread, at any time.
 */
#ifndef WEIR_OS_FAULT_H
#define WEIR_OS_FAULT_H

#include "backend.h"

/* What a rule can match. Reads and writes count the same through a backend and a table. */
enum wi_fault_kind {
    WI_FAULT_NONE,
    WI_FAULT_READ,
    WI_FAULT_WRITE,
    WI_FAULT_SYNC,
    WI_FAULT_OPEN,
    WI_FAULT_CLOSE,
    WI_FAULT_STAT,
    WI_FAULT_TRUNCATE,
    WI_FAULT_ALLOCATE,
    WI_FAULT_NAMES, /* mkdir, unlink, rename, link, symlink, readlink, getdents, chmod, times */
    WI_FAULT_OTHER,
    WI_FAULT_KINDS
};

struct wi_fault_rule {
    enum wi_fault_kind kind;
    uint64_t
        first; /* acts from the nth operation of this kind that the rule sees, 1 is the next */
    uint64_t count;      /* on so many; 0 means on all from there */
    int32_t error;       /* negative errno to end it with; 0: no error */
    uint32_t shorten_to; /* move at most so many bytes; 0: all */
    uint64_t delay_ns;   /* backend operations: hold back; UINT64_MAX until wi_fault_release
                            or, where `cancellable`, until cancelled */
    bool cancellable;
    bool applied; /* with `error`: do the operation, then report the error all the same */
    bool corrupt; /* flip one bit of what is read, or of what is written */
};

struct wi_fault_plan;

int wi_fault_create(const struct wi_os *os, struct wi_fault_plan **ret_plan);
void wi_fault_destroy(struct wi_fault_plan *plan);

/* The wrapped table. Inside, valid until the plan is destroyed. */
const struct wi_os *wi_fault_os(struct wi_fault_plan *plan);

/* Wrap `inner`, which is taken. Give to wi_engine_open_with. */
int wi_fault_wrap(struct wi_fault_plan *plan, struct wi_backend *inner,
                  struct wi_backend **ret_backend);

/* Returns 0 or -ENOMEM. */
int wi_fault_add(struct wi_fault_plan *plan, const struct wi_fault_rule *rule);
void wi_fault_clear(struct wi_fault_plan *plan);

/* Return completions of the backends in a random order, by `seed`; 0 switches that off. */
void wi_fault_reorder(struct wi_fault_plan *plan, uint64_t seed);

/* Let go of what is held back for ever, and wake its queues. */
void wi_fault_release(struct wi_fault_plan *plan);

/* How many operations of a kind were seen, and how many a rule acted on. */
uint64_t wi_fault_seen(struct wi_fault_plan *plan, enum wi_fault_kind kind);
uint64_t wi_fault_acted(struct wi_fault_plan *plan);

/* The recorder: the last `capacity` operations. 0 switches it off. */
struct wi_fault_record {
    enum wi_fault_kind kind;
    int fd;
    uint64_t offset;
    uint64_t len;
    int64_t result;
    uint64_t order; /* counts starts */
};
int wi_fault_record(struct wi_fault_plan *plan, size_t capacity);
size_t wi_fault_records(struct wi_fault_plan *plan, struct wi_fault_record *list, size_t max);

#endif
