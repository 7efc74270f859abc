/* SPDX-License-Identifier: MIT */
#include "base/list.h"
#include "base_test.h"

struct number {
    int value;
    struct wi_list node;
};

static int value_of(struct wi_list *node)
{
    assert_non_null(node);
    return node ? WI_CONTAINER_OF(node, struct number, node)->value : -1;
}

static void check_values(struct wi_list *head, const int *values, size_t count)
{
    struct wi_list *node;
    size_t i = 0;

    list_for_each(node, head) {
        assert_true(i < count);
        assert_int_equal(value_of(node), i < count ? values[i] : -1);
        i++;
        assert_ptr_equal(node->next->prev, node);
    }
    assert_int_equal(i, count);
    assert_int_equal(wi_list_empty(head), count == 0);
}

/* Nodes come out in the order in which they were put in, at either end. */
static void list__keeps_order(void **state)
{
    struct number numbers[4] = {
        { .value = 0 }, { .value = 1 }, { .value = 2 }, { .value = 3 }
    };
    struct wi_list head;

    (void)state;
    wi_list_init(&head);
    check_values(&head, NULL, 0);
    assert_null(wi_list_pop_front(&head));
    wi_list_push_back(&head, &numbers[1].node);
    wi_list_push_back(&head, &numbers[3].node);
    wi_list_push_front(&head, &numbers[0].node);
    wi_list_insert_before(&numbers[2].node, &numbers[3].node);
    check_values(&head, (const int[]){ 0, 1, 2, 3 }, 4);
    assert_int_equal(value_of(wi_list_pop_front(&head)), 0);
    check_values(&head, (const int[]){ 1, 2, 3 }, 3);
}

/* A node knows whether it is on a list, and removing it twice does no harm. */
static void list__removes_twice(void **state)
{
    struct number a = { .value = 1 };
    struct number b = { .value = 2 };
    struct wi_list head;

    (void)state;
    wi_list_init(&head);
    wi_list_init(&a.node);
    assert_false(wi_list_on(&a.node));
    wi_list_push_back(&head, &a.node);
    wi_list_push_back(&head, &b.node);
    assert_true(wi_list_on(&a.node));
    wi_list_remove(&a.node);
    assert_false(wi_list_on(&a.node));
    wi_list_remove(&a.node);
    check_values(&head, (const int[]){ 2 }, 1);
}

/* Splicing moves everything to the end and leaves an empty list behind. */
static void list__splices(void **state)
{
    struct number numbers[4] = {
        { .value = 0 }, { .value = 1 }, { .value = 2 }, { .value = 3 }
    };
    struct wi_list to;
    struct wi_list from;

    (void)state;
    wi_list_init(&to);
    wi_list_init(&from);
    wi_list_splice(&to, &from);
    check_values(&to, NULL, 0);
    for (int i = 0; i < 4; i++)
        wi_list_push_back(i < 2 ? &to : &from, &numbers[i].node);
    wi_list_splice(&to, &from);
    check_values(&to, (const int[]){ 0, 1, 2, 3 }, 4);
    check_values(&from, NULL, 0);
    wi_list_splice(&from, &to);
    check_values(&from, (const int[]){ 0, 1, 2, 3 }, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list__keeps_order),
        cmocka_unit_test(list__removes_twice),
        cmocka_unit_test(list__splices),
    };

    return cmocka_run_group_tests_name("list", tests, NULL, NULL);
}
