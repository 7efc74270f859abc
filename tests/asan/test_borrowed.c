/* SPDX-License-Identifier: MIT */
/*
 * test_borrowed.c - under AddressSanitizer a dead buffer is caught where it is submitted
 *
 * The kernel's reads and writes are invisible to the sanitizer, so the library touches what a
 * job points to when it is submitted. Each case is a child that does it wrong and has to die
 * with a report that has the submitting call in its stack. Other builds skip.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/support.h"

#define SEED 37u

static void ignore(struct weir_job *job)
{
    (void)job;
}

/* A pointer the compiler does not know to be dead. */
static void *hide(void *pointer)
{
    void *volatile hidden = pointer;

    return hidden;
}

static int child_main(const char *what)
{
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct weir_file *file;
    struct weir_job *job = malloc(sizeof(*job));
    const char *path = test_path("file");
    char *buf = malloc(4096);
    struct iovec *iov = malloc(2 * sizeof(*iov));
    char on_stack[64];
    int rc;

    pattern_make_file(path, 8192, SEED);
    if (weir_engine_open(NULL, &engine, NULL) != 0 ||
        weir_queue_open(engine, NULL, &queue) != 0 ||
        weir_file_open(engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_WRITE, 0, &file, NULL) !=
            0)
        return 3;
    iov[0] = (struct iovec){ on_stack, sizeof(on_stack) };
    iov[1] = (struct iovec){ buf, 4096 };
    weir_job_read(job, file, buf, 4096, 0, ignore, NULL);
    if (strcmp(what, "fine") == 0) {
        /* Alive: must be let through. */
    } else if (strcmp(what, "read") == 0) {
        free(hide(buf));
    } else if (strcmp(what, "write") == 0) {
        weir_job_write(job, file, buf, 4096, 0, ignore, NULL);
        free(hide(buf));
    } else if (strcmp(what, "readv") == 0) {
        weir_job_readv(job, file, iov, 2, 0, ignore, NULL);
        free(hide(buf));
    } else if (strcmp(what, "iovec") == 0) {
        weir_job_writev(job, file, iov, 2, 0, ignore, NULL);
        free(hide(iov));
    } else if (strcmp(what, "overflow") == 0) {
        job->len = 4097;
    } else if (strcmp(what, "middle") == 0) { /* alive at both ends, dead between */
        free(hide(buf));
        buf = malloc(4096);
        weir_job_write(job, file, on_stack, sizeof(on_stack) + 1, 0, ignore, NULL);
    } else if (strcmp(what, "job") == 0) {
        free(hide(job));
    } else if (strcmp(what, "post") == 0) {
        free(hide(buf));
        rc = weir_queue_post(queue, job);
        (void)printf("posted: %d\n", rc);
        return 4;
    } else if (strcmp(what, "late") == 0) {
        /* Freed while borrowed: after submit, before the queue hands it over. */
        rc = weir_queue_submit(queue, &job, 1);
        if (rc != 1)
            return 5;
        free(hide(buf));
        rc = weir_queue_wait(queue, 1, TEST_LONG);
        (void)printf("waited: %d\n", rc);
        return 4;
    }
    (void)printf("submitting\n");
    (void)fflush(stdout);
    rc = weir_queue_submit(queue, &job, 1);
    (void)printf("submitted: %d\n", rc);
    while (weir_queue_wait(queue, 1, WEIR_FOREVER) > 0)
        continue;
    (void)weir_file_close(file);
    (void)weir_queue_close(queue, TEST_LONG);
    (void)weir_engine_close(engine);
    free(buf);
    free(iov);
    free(job);
    return strcmp(what, "fine") == 0 ? 0 : 4;
}

static void check_caught(const char *what, const char *kind, const char *where)
{
    const char *arguments[] = { "--child", what, NULL };
    struct child_result child;

    if (!TEST_ASAN) {
        (void)fprintf(stderr, "not built with AddressSanitizer\n");
        skip();
    }
    child = child_run(arguments);
    if (child.text == NULL)
        fail_msg("the child could not be run");
    if (WIFEXITED(child.status) &&
        (WEXITSTATUS(child.status) == 0 || WEXITSTATUS(child.status) == 3 ||
         WEXITSTATUS(child.status) == 4))
        fail_msg("%s was not caught:\n%s", what, child.text);
    if (strstr(child.text, "AddressSanitizer") == NULL || strstr(child.text, kind) == NULL ||
        strstr(child.text, where) == NULL)
        fail_msg("%s died of something else:\n%s", what, child.text);
    free(child.text);
}

static void borrowed__alive_is_let_through(void **state)
{
    const char *arguments[] = { "--child", "fine", NULL };
    struct child_result child = child_run(arguments);

    (void)state;
    if (!WIFEXITED(child.status) || WEXITSTATUS(child.status) != 0)
        fail_msg("status 0x%x:\n%s", child.status, child.text);
    free(child.text);
}

static void borrowed__dead_buffer_of_a_read(void **state)
{
    (void)state;
    check_caught("read", "heap-use-after-free", "weir_queue_submit");
}

static void borrowed__dead_buffer_of_a_write(void **state)
{
    (void)state;
    check_caught("write", "heap-use-after-free", "weir_queue_submit");
}

static void borrowed__dead_part_of_a_vector(void **state)
{
    (void)state;
    check_caught("readv", "heap-use-after-free", "weir_queue_submit");
}

static void borrowed__dead_vector(void **state)
{
    (void)state;
    check_caught("iovec", "heap-use-after-free", "weir_queue_submit");
}

static void borrowed__buffer_that_is_too_short(void **state)
{
    (void)state;
    check_caught("overflow", "heap-buffer-overflow", "weir_queue_submit");
}

static void borrowed__stack_that_is_too_short(void **state)
{
    (void)state;
    check_caught("middle", "stack-buffer-overflow", "weir_queue_submit");
}

static void borrowed__dead_job(void **state)
{
    (void)state;
    check_caught("job", "heap-use-after-free", "weir_queue_submit");
}

static void borrowed__dead_buffer_of_a_post(void **state)
{
    (void)state;
    check_caught("post", "heap-use-after-free", "weir_queue_post");
}

/* Freed after submit: caught when the staged job is handed to the kernel. */
static void borrowed__freed_while_staged(void **state)
{
    (void)state;
    check_caught("late", "heap-use-after-free", "weir_queue_wait");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(borrowed__alive_is_let_through),
        cmocka_unit_test(borrowed__dead_buffer_of_a_read),
        cmocka_unit_test(borrowed__dead_buffer_of_a_write),
        cmocka_unit_test(borrowed__dead_part_of_a_vector),
        cmocka_unit_test(borrowed__dead_vector),
        cmocka_unit_test(borrowed__buffer_that_is_too_short),
        cmocka_unit_test(borrowed__stack_that_is_too_short),
        cmocka_unit_test(borrowed__dead_job),
        cmocka_unit_test(borrowed__dead_buffer_of_a_post),
        cmocka_unit_test(borrowed__freed_while_staged),
    };

    if (argc == 3 && strcmp(argv[1], "--child") == 0)
        return child_main(argv[2]);
    (void)unsetenv("WEIR_BACKEND");
    return cmocka_run_group_tests_name("borrowed", tests, NULL, NULL);
}
