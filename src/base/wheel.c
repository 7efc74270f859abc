/* SPDX-License-Identifier: MIT */
/*
 * wheel.c - the timing wheel
 *
 * Time is cut in ticks of 2^20 ns. A timer's tick is its time rounded up, so that it never
 * fires early. Level L cuts ticks in blocks of 64^L; a timer that is less than 64^(L+1) ticks
 * away (and not less than 64^L) waits in level L, in slot (tick / 64^L) % 64. At any moment
 * slot s of level L therefore stands for one block, the only one with that remainder among
 * the 64 that begin after now:
 *
 *        level 0   . . . n|a b c d . . .      n: now; a fires at the next tick
 *        level 1   . n . . e .                e: put in again ("cascades") when its block begins
 *
 *   W1  Bit s of used[L] is set exactly when slot s of level L is not empty.
 *   W2  A timer in level L has at least one tick, and at most 64^(L+1) - 1, to go from the
 *       moment it was put there, so when its block begins it goes down at least one level.
 *   W3  count is the number of timers in all slots.
 *   W4  A timer's due_ns is 0 while it is not in a slot; removing one that waits in a list of
 *       fired timers is therefore safe.
 *
 * Advancing jumps from one event to the next (a slot of level 0 that is due or a block of a
 * higher level that begins), so a wheel that was not looked at for an hour costs as much as
 * the timers in it, not as the ticks that passed.
 */
#include "wheel.h"

#define SLOT_BITS  6
#define SLOT_MASK  ((uint64_t)(WI_WHEEL_SLOTS - 1))
#define SPAN_TICKS ((uint64_t)1 << (SLOT_BITS * WI_WHEEL_LEVELS)) /* of the whole wheel */
#define TICK_MASK  (((uint64_t)1 << WI_WHEEL_TICK_SHIFT) - 1)

_Static_assert(WI_WHEEL_SLOTS == 1 << SLOT_BITS, "a slot is one digit of the tick");

static uint64_t tick_of(uint64_t due_ns)
{
    return (due_ns >> WI_WHEEL_TICK_SHIFT) + ((due_ns & TICK_MASK) != 0);
}

static struct wi_timer *timer_of(struct wi_list *node)
{
    return WI_CONTAINER_OF(node, struct wi_timer, node);
}

void wi_wheel_init(struct wi_wheel *wheel, uint64_t now_ns)
{
    wheel->tick = now_ns >> WI_WHEEL_TICK_SHIFT;
    wheel->count = 0;
    for (unsigned level = 0; level < WI_WHEEL_LEVELS; level++) {
        wheel->used[level] = 0;
        for (unsigned slot = 0; slot < WI_WHEEL_SLOTS; slot++)
            wi_list_init(&wheel->slots[level][slot]);
    }
}

static void put(struct wi_wheel *wheel, struct wi_timer *timer)
{
    uint64_t tick = wi_max_u64(tick_of(timer->due_ns), wheel->tick + 1);
    uint64_t away = tick - wheel->tick;
    unsigned level = 0;
    unsigned slot;

    /* Too far: the furthest place there is. It will be put in again from there. */
    if (away >= SPAN_TICKS) {
        away = SPAN_TICKS - 1;
        tick = wheel->tick + away;
    }
    while (away >> (SLOT_BITS * (level + 1)))
        level++;
    slot = (unsigned)((tick >> (SLOT_BITS * level)) & SLOT_MASK);
    wi_list_push_back(&wheel->slots[level][slot], &timer->node);
    wheel->used[level] |= (uint64_t)1 << slot;
}

void wi_wheel_add(struct wi_wheel *wheel, struct wi_timer *timer, uint64_t due_ns)
{
    timer->due_ns = wi_max_u64(due_ns, 1); /* W4 */
    put(wheel, timer);
    wheel->count++;
}

void wi_wheel_remove(struct wi_wheel *wheel, struct wi_timer *timer)
{
    struct wi_list *neighbour = timer->node.next;
    bool alone = neighbour == timer->node.prev;

    if (!wi_list_on(&timer->node))
        return;
    wi_list_remove(&timer->node);
    if (timer->due_ns == 0)
        return; /* fired, and waiting in the caller's list */
    timer->due_ns = 0;
    wheel->count--;

    /* The last one of a slot: its only neighbour was the slot itself. */
    if (alone) {
        size_t index = (size_t)(neighbour - &wheel->slots[0][0]);

        wheel->used[index / WI_WHEEL_SLOTS] &= ~((uint64_t)1 << (index % WI_WHEEL_SLOTS));
    }
}

/* The next tick at which something is to be done; UINT64_MAX if the wheel is empty. */
static uint64_t next_event(const struct wi_wheel *wheel)
{
    uint64_t next = UINT64_MAX;

    for (unsigned level = 0; level < WI_WHEEL_LEVELS; level++) {
        uint64_t used = wheel->used[level];
        uint64_t block = wheel->tick >> (SLOT_BITS * level);
        unsigned first = (unsigned)((block + 1) & SLOT_MASK);
        uint64_t ahead;

        if (used == 0)
            continue;
        /* Turn the bitmap so that bit 0 is the block that begins next. */
        ahead = used >> first | used << ((WI_WHEEL_SLOTS - first) & SLOT_MASK);
        block += 1 + (uint64_t)__builtin_ctzll(ahead);
        next = wi_min_u64(next, block << (SLOT_BITS * level));
    }
    return next;
}

static void fire(struct wi_wheel *wheel, struct wi_timer *timer, struct wi_list *fired)
{
    timer->due_ns = 0;
    wheel->count--;
    wi_list_push_back(fired, &timer->node);
}

/* The block of this slot begins, at the tick the wheel stands at: hand its timers down. */
static void empty_slot(struct wi_wheel *wheel, unsigned level, struct wi_list *fired)
{
    unsigned slot = (unsigned)((wheel->tick >> (SLOT_BITS * level)) & SLOT_MASK);
    struct wi_list timers;
    struct wi_list *node;

    wi_list_init(&timers);
    wi_list_splice(&timers, &wheel->slots[level][slot]);
    wheel->used[level] &= ~((uint64_t)1 << slot);
    while ((node = wi_list_pop_front(&timers)) != NULL) {
        struct wi_timer *timer = timer_of(node);

        if (tick_of(timer->due_ns) <= wheel->tick)
            fire(wheel, timer, fired);
        else
            put(wheel, timer);
    }
}

void wi_wheel_advance(struct wi_wheel *wheel, uint64_t now_ns, struct wi_list *ret_fired)
{
    uint64_t now = now_ns >> WI_WHEEL_TICK_SHIFT;

    while (wheel->count > 0) {
        uint64_t next = next_event(wheel);

        if (next > now)
            break;
        wheel->tick = next;
        for (unsigned level = WI_WHEEL_LEVELS; level-- > 0;) {
            uint64_t within_block = ((uint64_t)1 << (SLOT_BITS * level)) - 1;

            if ((next & within_block) == 0)
                empty_slot(wheel, level, ret_fired);
        }
    }
    wheel->tick = wi_max_u64(wheel->tick, now);
}

uint64_t wi_wheel_next_ns(const struct wi_wheel *wheel)
{
    uint64_t next = next_event(wheel);

    /* What is due after the end of time never fires. */
    return next > UINT64_MAX >> WI_WHEEL_TICK_SHIFT ? UINT64_MAX : next << WI_WHEEL_TICK_SHIFT;
}
