/* SPDX-License-Identifier: MIT */
/*
 * wheel.h - timers by the thousand
 *
 * A hierarchical timing wheel (G. Varghese, T. Lauck, "Hashed and hierarchical timing
 * wheels", SOSP 1987): four levels of 64 slots, a tick of 2^20 ns (1.05 ms), so that
 * level 0 spans 67 ms and level 3 about 4.9 hours; what is further off waits in the last
 * slot of level 3 and is put in again from there. A bitmap a level makes "when is the
 * next one" a few instructions. Timers never fire early; they fire up to a tick late.
 *
 * Nodes are the caller's. A node that is not in the wheel is linked to itself (list.h).
 * Thread: the owner of the wheel.
 */
#ifndef WEIR_BASE_WHEEL_H
#define WEIR_BASE_WHEEL_H

#include "list.h"

#define WI_WHEEL_LEVELS     4
#define WI_WHEEL_SLOTS      64
#define WI_WHEEL_TICK_SHIFT 20

struct wi_wheel {
    uint64_t tick;                  /* all timers up to here have fired */
    uint32_t count;                 /* timers in the wheel */
    uint64_t used[WI_WHEEL_LEVELS]; /* bit s: slot s has timers */
    struct wi_list slots[WI_WHEEL_LEVELS][WI_WHEEL_SLOTS];
};

struct wi_timer {
    struct wi_list node;
    uint64_t due_ns; /* 0 once it has fired or was removed */
};

void wi_wheel_init(struct wi_wheel *wheel, uint64_t now_ns);

/* Put `timer` in; it must not be in. */
void wi_wheel_add(struct wi_wheel *wheel, struct wi_timer *timer, uint64_t due_ns);

/* Take it out; allowed if it is not in, also while it waits in a list of fired timers. */
void wi_wheel_remove(struct wi_wheel *wheel, struct wi_timer *timer);

/* Move all timers that are due by `now_ns` to the end of `ret_fired` (struct wi_timer.node). */
void wi_wheel_advance(struct wi_wheel *wheel, uint64_t now_ns, struct wi_list *ret_fired);

/* When to call advance next, in ns: at or before the time at which the first timer fires, and
 * each such call makes progress towards it. UINT64_MAX if there is none. */
uint64_t wi_wheel_next_ns(const struct wi_wheel *wheel);

#endif
