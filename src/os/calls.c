/* SPDX-License-Identifier: MIT */
/*
 * calls.c - operations on the pool; see calls.h
 *
 * A worker's last steps are: push the operation, count it, wake the owner if that was the one
 * it waits for, and count itself out. Once the operation is pushed the owner may take it,
 * free it, and close the backend, so nothing of the operation is touched after the push, and
 * wi_calls_fini waits until everyone is out.
 */
#include "calls.h"

#include <sched.h>

static bool move_busy(struct wi_op *op, uint8_t from, uint8_t to)
{
    /* Relaxed: the flag decides who may, and carries no data. */
    return __atomic_compare_exchange_n(&op->busy, &from, to, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

static void give_back(struct wi_calls *calls, struct wi_op *op)
{
    int32_t finished;

    wi_inbox_push(&calls->inbox, (struct wi_inbox_node *)(void *)&op->task);
    finished = atomic_fetch_add_explicit(&calls->finished, 1, memory_order_seq_cst) + 1;
    /*
     * Only while armed is `wanted` what the owner waits for. If it is of a later wait than
     * the `armed` seen here, that later wait has looked at `finished` after this addition.
     */
    if (atomic_load_explicit(&calls->waker->armed, memory_order_seq_cst) &&
        finished >= atomic_load_explicit(&calls->wanted, memory_order_relaxed) &&
        wi_waker_wake(calls->waker))
        atomic_fetch_add_explicit(&calls->wakes, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&calls->left, 1, memory_order_release);
}

static void run_op(struct wi_task *task)
{
    struct wi_op *op = WI_CONTAINER_OF(task, struct wi_op, task);
    struct wi_calls *calls = op->backend->calls;
    int64_t result = -ECANCELED;

    if (move_busy(op, WI_CALLS_QUEUED, WI_CALLS_RUNNING)) {
        if (op->kind == WI_OP_CALL)
            result = ((wi_op_call_fn)(uintptr_t)op->addr)(op);
        else
            result = calls->transfer(op);
    }
    op->result = result;
    give_back(calls, op);
}

void wi_calls_init(struct wi_calls *calls, struct wi_pool *pool, struct wi_waker *waker,
                   wi_op_call_fn transfer)
{
    *calls = (struct wi_calls){ .pool = pool, .waker = waker, .transfer = transfer };
    atomic_init(&calls->wanted, 1);
}

void wi_calls_fini(struct wi_calls *calls)
{
    WEIR_ASSERT(calls->outstanding == 0);
    while (atomic_load_explicit(&calls->left, memory_order_acquire) != calls->taken)
        sched_yield();
}

void wi_calls_start(struct wi_calls *calls, struct wi_op *op)
{
    uint32_t lane = op->kind == WI_OP_CALL ? op->lane : WI_LANE_IO;

    WEIR_DCHECK(op->backend->calls == calls);
    WEIR_DCHECK(lane < WI_LANES);
    WEIR_DCHECK(op->kind == WI_OP_CALL || calls->transfer);
    __atomic_store_n(&op->busy, WI_CALLS_QUEUED, __ATOMIC_RELAXED);
    op->task.run = run_op;
    op->task.next = NULL;
    if (calls->first[lane])
        calls->last[lane]->next = &op->task;
    else
        calls->first[lane] = &op->task;
    calls->last[lane] = &op->task;
    calls->staged[lane]++;
    calls->staged_count++;
    calls->outstanding++;
}

void wi_calls_flush(struct wi_calls *calls)
{
    if (calls->staged_count == 0)
        return;
    for (uint32_t lane = 0; lane < WI_LANES; lane++) {
        struct wi_task *first = calls->first[lane];

        if (!first)
            continue;
        calls->first[lane] = NULL;
        wi_pool_submit(calls->pool, (enum wi_lane)lane, first, calls->last[lane],
                       calls->staged[lane]);
        calls->staged[lane] = 0;
    }
    calls->staged_count = 0;
}

uint32_t wi_calls_take(struct wi_calls *calls, struct wi_op **ret_first,
                       struct wi_op **ret_last)
{
    struct wi_inbox_node *node;
    struct wi_task **link;
    struct wi_task *first = NULL;
    struct wi_op *op = NULL;
    uint32_t count = 0;
    uint64_t transfers;

    if (wi_inbox_empty(&calls->inbox))
        return 0;
    link = &first;
    transfers = atomic_load_explicit(&calls->transfers, memory_order_relaxed);
    for (node = wi_inbox_take(&calls->inbox); node; count++) {
        struct wi_inbox_node *next = node->next;

        op = WI_CONTAINER_OF(node, struct wi_op, task);
        if (op->kind != WI_OP_CALL &&
            __atomic_load_n(&op->busy, __ATOMIC_RELAXED) == WI_CALLS_RUNNING)
            transfers++;
        op->busy = 0;
        *link = &op->task;
        link = &op->task.next;
        node = next;
    }
    *link = NULL;
    atomic_store_explicit(&calls->transfers, transfers, memory_order_relaxed);
    atomic_fetch_sub_explicit(&calls->finished, (int32_t)count, memory_order_relaxed);
    calls->taken += count;
    calls->outstanding -= count;
    *ret_first = WI_CONTAINER_OF(first, struct wi_op, task);
    *ret_last = op;
    return count;
}

bool wi_calls_cancel(struct wi_op *op)
{
    return move_busy(op, WI_CALLS_QUEUED, WI_CALLS_CANCELLED);
}
