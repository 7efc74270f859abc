/* SPDX-License-Identifier: MIT */
/*
 * os_test.h - what the tests of src/os share: a scratch directory, a pool, a gated os table
 */
#ifndef WEIR_TESTS_OS_TEST_H
#define WEIR_TESTS_OS_TEST_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/pool.h"
#include "os/backend.h"
#include "os/os.h"

#define NEVER  UINT64_MAX
#define SECOND UINT64_C(1000000000)
/* As long as a test waits for what must come. */
#define FOR_EVER_S 60

/* A directory of this process; `remove_scratch` ends it. */
const char *make_scratch(void);
/* `name` in it. One of eight buffers, used in turn. */
const char *scratch_path(const char *name);
void remove_scratch(void);

/* WEIR_SEED or a fixed number; printed. */
uint64_t test_seed(void);
uint64_t next_random(uint64_t *state);

uint64_t now_ns(void);
/* Fewer rounds under the sanitizers, which are ten times slower. */
uint32_t rounds(uint32_t normal);

struct wi_pool *make_pool(uint32_t io_threads);

/* Fill in an operation. */
void prepare_read(struct wi_op *op, int fd, void *buf, uint32_t len, uint64_t offset);
void prepare_write(struct wi_op *op, int fd, const void *buf, uint32_t len, uint64_t offset);
void prepare_readv(struct wi_op *op, int fd, const struct iovec *iov, uint32_t count,
                   uint64_t offset);
void prepare_writev(struct wi_op *op, int fd, const struct iovec *iov, uint32_t count,
                    uint64_t offset);
void prepare_call(struct wi_op *op, wi_op_call_fn call, uint8_t lane);

/* Turn until `count` operations have come back; fails after FOR_EVER_S. */
void turn_all(struct wi_backend *backend, uint32_t count);
/* Start one and turn until it is back. */
int64_t run_op(struct wi_backend *backend, struct wi_op *op);

/*
 * An os table whose pread waits at a gate: it returns `len` once it was given a permit. Tells
 * how many have entered, so that a test knows what is in flight and what is still queued.
 */
struct gate {
    struct wi_os os; /* first */
    struct wi_os_ops ops;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    uint32_t entered;
    uint32_t permits;
    uint32_t passed;
};
void gate_init(struct gate *gate);
void gate_fini(struct gate *gate);
void gate_permit(struct gate *gate, uint32_t count);
void gate_wait_entered(struct gate *gate, uint32_t count);

#endif
