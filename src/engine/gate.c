/* SPDX-License-Identifier: MIT */
/*
 * gate.c - what all queues together may have at the device
 *
 * Limits       operations and bytes at the device, of a queue and of the engine. They are given
 *              back at completion, not when somebody takes the result: holding them longer is
 *              what deadlocked others. A queue may always have one operation of its own, so a queue
 *              that nobody runs takes nothing from the others but what it has at the device.
 * Cheap        a queue takes from the engine's counters in chunks (`credit`), uses what its
 *              completions bring back before it takes more, and gives back the rest when its
 *              owner waits or leaves. In a busy loop that is no atomic operation at all.
 * Giving way   while SYNC or FOREGROUND work is under way anywhere, or was within 10 ms, BATCH and
 *              BACKGROUND together have one operation of at most 64 KiB at the device: latency is
 *              decided by what is at the device already. Whoever may not start notes himself as
 *              waiting; the queue whose operation ends wakes one of them and stays behind for a
 *              millisecond, so that each gets its turn. Nothing is reserved for the one woken, and
 *              one that was entered 10 ms ago does not count: a queue that nobody runs must not
 *              hold up the others. And as the urgent work may just end, whoever waits also asks
 *              again by himself 10 ms after it was last seen.
 * PREFETCH     does not give way: it reads for a foreground reader what that reader would
 *              ask for itself, and held to one operation it would be slower than no prefetch. For
 *              readers of the classes that give way, cached.c prefetches as BACKGROUND.
 */
#include "engine_internal.h"

#define URGENT_NS      (10 * (uint64_t)WI_MSEC_NS)
#define ABANDONED_NS   ((uint64_t)WI_SEC_NS)
#define STAMP_AGE_NS   (WI_MSEC_NS / 4)
#define STAY_BEHIND_NS WI_MSEC_NS
#define CREDIT_OPS     16u
#define CREDIT_BYTES   (256u << 10)

void wi_gate_init(struct gate *gate, uint64_t ops_max, uint64_t bytes_max)
{
    gate->ops_max = ops_max;
    gate->bytes_max = bytes_max;
    wi_mutex_init(&gate->mu, WI_RANK_GATE);
    wi_list_init(&gate->waiting);
}

void wi_gate_fini(struct gate *gate)
{
    wi_mutex_fini(&gate->mu);
}

static struct gate *gate_of(const struct weir_queue *queue)
{
    return &queue->engine->gate;
}

/* ---- limits ------------------------------------------------------------------------------ */

static bool take_up_to(_Atomic uint64_t *counter, uint64_t count, uint64_t max)
{
    if (atomic_fetch_add_explicit(counter, count, memory_order_relaxed) + count <= max)
        return true;
    atomic_fetch_sub_explicit(counter, count, memory_order_relaxed);
    return false;
}

/* Have credit for an operation of `bytes`; in a chunk if there is plenty, else just that. */
static bool take_credit(struct weir_queue *queue, uint64_t bytes)
{
    struct gate *gate = gate_of(queue);

    if (queue->credit_ops == 0) {
        if (take_up_to(&gate->ops, CREDIT_OPS, gate->ops_max))
            queue->credit_ops = CREDIT_OPS;
        else if (take_up_to(&gate->ops, 1, gate->ops_max))
            queue->credit_ops = 1;
        else
            return false;
    }
    if (queue->credit_bytes < bytes) {
        uint64_t need = bytes - queue->credit_bytes;
        uint64_t chunk = wi_max_u64(need, CREDIT_BYTES);

        if (take_up_to(&gate->bytes, chunk, gate->bytes_max))
            queue->credit_bytes += chunk;
        else if (chunk > need && take_up_to(&gate->bytes, need, gate->bytes_max))
            queue->credit_bytes += need;
        else
            return false;
    }
    return true;
}

/* The one that is always allowed: beyond the limits if need be. What it took there is not for others
 * that come after it: wi_gate_leave gives it back at once. */
static void force_credit(struct weir_queue *queue, uint64_t bytes)
{
    struct gate *gate = gate_of(queue);

    if (queue->credit_ops == 0) {
        atomic_fetch_add_explicit(&gate->ops, 1, memory_order_relaxed);
        queue->credit_ops = 1;
        queue->forced = true;
    }
    if (queue->credit_bytes < bytes) {
        atomic_fetch_add_explicit(&gate->bytes, bytes - queue->credit_bytes,
                                  memory_order_relaxed);
        queue->credit_bytes = bytes;
        queue->forced = true;
    }
}

bool wi_gate_admit(struct weir_queue *queue, uint64_t bytes)
{
    if (WI_LIKELY(queue->credit_ops > 0 && queue->credit_bytes >= bytes &&
                  queue->device_bytes + bytes <= queue->bytes_max)) {
        /* nothing to ask for */
    } else if (queue->device_transfers == 0) {
        if (bytes > queue->bytes_max || !take_credit(queue, bytes))
            force_credit(queue, bytes);
    } else if (queue->device_bytes + bytes > queue->bytes_max || !take_credit(queue, bytes)) {
        wi_counter_add(&queue->stats.budget_waits, 1);
        return false;
    }
    queue->credit_ops--;
    queue->credit_bytes -= bytes;
    queue->device_transfers++;
    queue->device_bytes += bytes;
    return true;
}

uint64_t wi_gate_room(struct weir_queue *queue, uint64_t want)
{
    struct gate *gate = gate_of(queue);

    if (queue->device_bytes >= queue->bytes_max)
        return 0;
    want = wi_min_u64(want, queue->bytes_max - queue->device_bytes);
    if (queue->credit_bytes < want &&
        take_up_to(&gate->bytes, want - queue->credit_bytes, gate->bytes_max))
        queue->credit_bytes = want;
    return wi_min_u64(want, queue->credit_bytes);
}

void wi_gate_grow(struct weir_queue *queue, uint64_t bytes)
{
    WEIR_DCHECK(queue->credit_bytes >= bytes);
    queue->credit_bytes -= bytes;
    queue->device_bytes += bytes;
}

void wi_gate_leave(struct weir_queue *queue, uint64_t bytes)
{
    queue->device_transfers--;
    queue->device_bytes -= bytes;
    queue->credit_ops++;
    queue->credit_bytes += bytes;
    if (WI_UNLIKELY(queue->forced)) {
        wi_gate_settle(queue);
        queue->forced = queue->device_transfers > 0;
    }
}

void wi_gate_settle(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);

    if (queue->credit_ops > 0) {
        atomic_fetch_sub_explicit(&gate->ops, queue->credit_ops, memory_order_relaxed);
        queue->credit_ops = 0;
    }
    if (queue->credit_bytes > 0) {
        atomic_fetch_sub_explicit(&gate->bytes, queue->credit_bytes, memory_order_relaxed);
        queue->credit_bytes = 0;
    }
}

/* ---- giving way --------------------------------------------------------------------------- */

void wi_gate_stamp(struct gate *gate, uint64_t now_ns)
{
    uint64_t stamp = atomic_load_explicit(&gate->urgent, memory_order_relaxed);

    /* All queues read this line: write it only when that tells them something. */
    if (now_ns > stamp + STAMP_AGE_NS)
        atomic_store_explicit(&gate->urgent, now_ns, memory_order_relaxed);
}

void wi_gate_urgent(struct weir_queue *queue, bool comes)
{
    struct gate *gate = gate_of(queue);

    wi_gate_stamp(gate, queue->now_ns);
    if (comes ? queue->device_urgent++ == 0 : --queue->device_urgent == 0)
        atomic_fetch_add_explicit(&gate->urgent_queues, comes ? 1 : (uint32_t)-1,
                                  memory_order_relaxed);
}

/* Until when work gives way, as far as can be seen now. */
static uint64_t urgent_until_ns(const struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);
    uint64_t stamp = atomic_load_explicit(&gate->urgent, memory_order_relaxed);

    if (stamp == 0)
        return 0;
    /* At the device still, and the device is slow. But a queue whose owner has gone away does not
     * count for ever. */
    if (queue->now_ns >= stamp + URGENT_NS && queue->now_ns < stamp + ABANDONED_NS &&
        atomic_load_explicit(&gate->urgent_queues, memory_order_relaxed) > 0)
        return queue->now_ns + URGENT_NS;
    return stamp + URGENT_NS;
}

bool wi_gate_is_urgent(const struct weir_queue *queue)
{
    return queue->now_ns < urgent_until_ns(queue);
}

static bool enter_alone(struct gate *gate)
{
    uint32_t none = 0;

    return atomic_compare_exchange_strong_explicit(&gate->low_ops, &none, 1,
                                                   memory_order_seq_cst, memory_order_seq_cst);
}

/* Whoever is in has been there for so long that his owner may have left him there: one more. */
static bool enter_anyway(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);
    uint64_t entered = atomic_load_explicit(&gate->low_entered, memory_order_relaxed);

    if (queue->now_ns < entered + URGENT_NS ||
        !atomic_compare_exchange_strong_explicit(&gate->low_entered, &entered, queue->now_ns,
                                                 memory_order_relaxed, memory_order_relaxed))
        return false;
    atomic_fetch_add_explicit(&gate->low_ops, 1, memory_order_seq_cst);
    return true;
}

static void start_waiting(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);

    wi_mutex_lock(&gate->mu);
    if (!wi_list_on(&queue->gate_link)) {
        wi_list_push_back(&gate->waiting, &queue->gate_link);
        atomic_fetch_add_explicit(&gate->waiting_count, 1, memory_order_seq_cst);
    }
    wi_mutex_unlock(&gate->mu);
}

static void stop_waiting_locked(struct gate *gate, struct weir_queue *queue)
{
    wi_list_remove(&queue->gate_link);
    atomic_fetch_sub_explicit(&gate->waiting_count, 1, memory_order_relaxed);
}

void wi_gate_forget(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);

    wi_mutex_lock(&gate->mu);
    if (wi_list_on(&queue->gate_link))
        stop_waiting_locked(gate, queue);
    wi_mutex_unlock(&gate->mu);
}

bool wi_gate_low_enter(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);

    if (WI_LIKELY(!wi_gate_is_urgent(queue))) {
        atomic_fetch_add_explicit(&gate->low_ops, 1, memory_order_relaxed);
        queue->low_from_ns = 0;
        queue->low_ops++;
        return true;
    }
    if (queue->low_ops > 0) { /* it is the one that is in: its completion brings the next try */
        queue->low_again_ns = urgent_until_ns(queue);
        return false;
    }
    if (queue->now_ns < queue->low_from_ns) {
        queue->low_again_ns = queue->low_from_ns;
        return false;
    }
    if (enter_alone(gate)) {
        atomic_store_explicit(&gate->low_entered, queue->now_ns, memory_order_relaxed);
        queue->low_ops++;
        return true;
    }
    /* Waiting is announced before the last look, and whoever leaves looks for those who wait after
     * he has left (all seq_cst): one of the two sees the other. */
    start_waiting(queue);
    if (enter_alone(gate) || enter_anyway(queue)) {
        wi_gate_forget(queue);
        queue->low_ops++;
        return true;
    }
    queue->low_again_ns =
        wi_min_u64(urgent_until_ns(queue),
                   atomic_load_explicit(&gate->low_entered, memory_order_relaxed) + URGENT_NS);
    wi_counter_add(&queue->stats.yield_waits, 1);
    return false;
}

void wi_gate_low_leave(struct weir_queue *queue)
{
    struct gate *gate = gate_of(queue);

    queue->low_ops--;
    atomic_fetch_sub_explicit(&gate->low_ops, 1, memory_order_seq_cst);
    if (WI_LIKELY(atomic_load_explicit(&gate->waiting_count, memory_order_seq_cst) == 0))
        return;
    wi_mutex_lock(&gate->mu);
    if (wi_list_on(&queue->gate_link)) /* from before it came in */
        stop_waiting_locked(gate, queue);
    if (!wi_list_empty(&gate->waiting)) {
        struct weir_queue *other =
            WI_CONTAINER_OF(gate->waiting.next, struct weir_queue, gate_link);

        stop_waiting_locked(gate, other);
        /* Under the lock, so that it cannot be closed meanwhile. */
        other->backend->ops->wake(other->backend);
        queue->low_from_ns = queue->now_ns + STAY_BEHIND_NS;
    }
    wi_mutex_unlock(&gate->mu);
}
