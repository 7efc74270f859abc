/* SPDX-License-Identifier: MIT */
/*
 * watch.c - so that an operation that hangs is noticed while its owner waits for it
 *
 * Problem      an owner that waits without a time limit sleeps until the kernel answers, and a time
 *              limit on each wait arms a timer in the kernel, which costs more than 1 us a turn.
 * Idea         one thread an engine sleeps for half the limit, then wakes those queues that have
 *              something at the device; the owner looks for itself (wi_queue_check_stalls). It
 *              touches no job, and is started with the first queue.
 */
#include "engine_internal.h"

#include <pthread.h>
#include <signal.h>

#define PAUSE_LEAST_NS (5 * (uint64_t)WI_MSEC_NS)

static void wake_queues(struct weir_engine *engine)
{
    struct wi_list *node;

    wi_mutex_lock(&engine->mu);
    list_for_each(node, &engine->queues) {
        struct weir_queue *queue = WI_CONTAINER_OF(node, struct weir_queue, engine_link);

        if (atomic_load_explicit(&queue->stats.at_device, memory_order_relaxed) > 0)
            queue->backend->ops->wake(queue->backend);
    }
    wi_mutex_unlock(&engine->mu);
}

static void *watch(void *arg)
{
    struct weir_engine *engine = arg;
    struct watch *self = &engine->watch;
    uint64_t pause_ns = wi_max_u64(engine->stall_ns / 2, PAUSE_LEAST_NS);

    wi_mutex_lock(&self->mu);
    while (!self->stop) {
        if (wi_cond_wait_for(&self->changed, &self->mu, pause_ns) || self->stop)
            continue;
        wi_mutex_unlock(&self->mu);
        wake_queues(engine);
        wi_mutex_lock(&self->mu);
    }
    wi_mutex_unlock(&self->mu);
    return NULL;
}

void wi_watch_init(struct weir_engine *engine)
{
    wi_mutex_init(&engine->watch.mu, WI_RANK_WATCH);
    wi_cond_init(&engine->watch.changed);
}

void wi_watch_start(struct weir_engine *engine)
{
    struct watch *self = &engine->watch;
    int rc = 0;

    /* With a clock that a test drives, the test drives the looking too. */
    if (engine->stall_ns == WEIR_NEVER || engine->seams.os)
        return;
    wi_mutex_lock(&self->mu);
    if (!self->runs) {
        sigset_t all;
        sigset_t before;

        /* Signals are for the program's own threads; the new one inherits the mask. */
        sigfillset(&all);
        rc = pthread_sigmask(SIG_SETMASK, &all, &before);
        if (rc == 0) {
            rc = pthread_create(&self->thread, NULL, watch, engine);
            pthread_sigmask(SIG_SETMASK, &before, NULL);
        }
        self->runs = rc == 0;
    }
    wi_mutex_unlock(&self->mu);
    if (rc != 0)
        wi_engine_log(engine, WEIR_LOG_INFO, "no thread to watch for operations that hang (%s)",
                      weir_code_text(-rc));
}

void wi_watch_stop(struct weir_engine *engine)
{
    struct watch *self = &engine->watch;

    wi_mutex_lock(&self->mu);
    self->stop = true;
    wi_cond_broadcast(&self->changed);
    wi_mutex_unlock(&self->mu);
    if (self->runs)
        (void)pthread_join(self->thread, NULL);
    wi_cond_fini(&self->changed);
    wi_mutex_fini(&self->mu);
}
