/* SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <sched.h>

#include "base/inbox.h"
#include "base_test.h"

#define PUSHERS 4u
#define EACH    20000u

struct letter {
    struct wi_inbox_node node;
    uint32_t pusher;
    uint32_t number;
};

static struct wi_inbox box;
static struct letter letters[PUSHERS][EACH];
static _Atomic uint32_t found_empty; /* how often a push said so */

static void *push_all(void *arg)
{
    struct letter *own = arg;

    for (uint32_t i = 0; i < EACH; i++)
        if (wi_inbox_push(&box, &own[i].node))
            atomic_fetch_add(&found_empty, 1);
    return NULL;
}

/* Nothing is lost or doubled, the letters of one pusher stay in order, and the box says once
 * for each time it is emptied that it was empty: that push is the one that wakes the owner. */
static void inbox__keeps_the_order_of_each_pusher(void **state)
{
    pthread_t threads[PUSHERS];
    uint32_t next[PUSHERS] = { 0 };
    uint32_t total = 0;
    uint32_t takes = 0;

    (void)state;
    for (uint32_t p = 0; p < PUSHERS; p++)
        for (uint32_t i = 0; i < EACH; i++)
            letters[p][i] = (struct letter){ .pusher = p, .number = i };
    for (uint32_t p = 0; p < PUSHERS; p++)
        assert_int_equal(pthread_create(&threads[p], NULL, push_all, letters[p]), 0);
    while (total < PUSHERS * EACH) {
        struct wi_inbox_node *node = wi_inbox_take(&box);

        if (!node) {
            sched_yield();
            continue;
        }
        takes++;
        for (; node; node = node->next) {
            struct letter *letter = WI_CONTAINER_OF(node, struct letter, node);

            assert_int_equal(letter->number, next[letter->pusher]++);
            total++;
        }
    }
    for (uint32_t p = 0; p < PUSHERS; p++)
        pthread_join(threads[p], NULL);
    assert_true(wi_inbox_empty(&box));
    assert_null(wi_inbox_take(&box));
    assert_int_equal(atomic_load(&found_empty), takes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(inbox__keeps_the_order_of_each_pusher, base_watchdog),
    };

    return cmocka_run_group_tests_name("inbox", tests, NULL, NULL);
}
