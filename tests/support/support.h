/* SPDX-License-Identifier: MIT */
/*
 * support.h - what the suites share: places for files, patterns, seeds, jobs, limits
 *
 *   places     test_path() names files in a directory of this process, removed at its end
 *   patterns   every byte of a file follows from its offset and a seed, so any part of any
 *              transfer can be checked alone
 *   seeds      one number a run, printed, settable by WEIR_SEED
 *   probes     a job that remembers how often, where and with what it was done
 *   checks     cmocka's, but they print error codes by their names
 *   cases      one function, run once for each backend: name[backend]
 *   children   a program run under limits, with what it said
 */
#ifndef WEIR_TESTS_SUPPORT_H
#define WEIR_TESTS_SUPPORT_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <cmocka.h>
#include <weir/weir.h>

#if defined(__has_feature)
#define TEST_HAS_FEATURE(feature) __has_feature(feature)
#else
#define TEST_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || TEST_HAS_FEATURE(address_sanitizer)
#define TEST_ASAN 1
#else
#define TEST_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || TEST_HAS_FEATURE(thread_sanitizer)
#define TEST_TSAN 1
#else
#define TEST_TSAN 0
#endif

#define KIB          ((size_t)1024)
#define MIB          ((size_t)1024 * 1024)
#define GIB          ((uint64_t)1024 * 1024 * 1024)
#define TEST_MS      UINT64_C(1000000)
#define TEST_LONG    (UINT64_C(120) * 1000 * TEST_MS) /* "for ever", as far as a test waits */
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- places -------------------------------------------------------------- */

/* The directory of this process: below WEIR_TEST_DIR, else TMPDIR, else /var/tmp. */
const char *test_dir(void);
/* `name` in that directory. One of eight buffers, used in turn. */
const char *test_path(const char *name);
/* As test_dir(), but in memory (/dev/shm); NULL where that is no tmpfs. */
const char *test_memory_dir(void);
/* A name nobody has used before in this process: "prefix-17". In turn, as above. */
const char *test_new_path(const char *prefix);
/* Remove a tree; missing is fine. */
void test_remove_tree(const char *path);

/* --- patterns and seeds ----------------------------------------------------- */

uint8_t pattern_byte(uint64_t seed, uint64_t offset);
void pattern_fill(void *buf, size_t len, uint64_t seed, uint64_t offset);
/* The first byte that is wrong, or -1. */
int64_t pattern_find_wrong(const void *buf, size_t len, uint64_t seed, uint64_t offset);
/* Make a file of `size` bytes with the pattern, by plain system calls. */
void pattern_make_file(const char *path, size_t size, uint64_t seed);

/* WEIR_SEED, or a fixed number; "random" takes the clock. Printed at the first call. */
uint64_t test_seed(void);

struct test_rng {
    uint64_t state;
};
uint64_t rng_next(struct test_rng *rng);
/* 0 <= value < limit; limit is not 0. */
uint64_t rng_below(struct test_rng *rng, uint64_t limit);

uint64_t test_now_ns(void);
/* An environment variable's number, else `normal`. */
uint64_t test_env_number(const char *name, uint64_t normal);

/*
 * Address space of `size` bytes, all of it the same `real_size` bytes of memory over and
 * over (both multiples of the page). For transfers of gigabytes in little memory.
 */
void *folded_map(size_t size, size_t real_size);
void folded_unmap(void *address, size_t size);

/* --- probes --------------------------------------------------------------------- */

struct probe {
    struct weir_job job;
    struct weir_error error;
    int64_t result;
    uint64_t transferred;
    uint64_t id;
    unsigned done; /* how often */
    pthread_t thread;
    uint64_t order; /* 1 for the first job done since test_order_reset() */
    uint64_t done_ns;
};
/* The `done` of every probe. `arg` of the job is the probe. */
void probe_done(struct weir_job *job);
/* Forget the last run, and point done, arg and error of the (prepared) job here. */
void probe_arm(struct probe *probe);
void probe_order_reset(void);

/* Submit one probe; it must be taken. */
void probe_submit(struct weir_queue *queue, struct probe *probe);
/* Wait until it is done, exactly once, on this thread. Returns its result. */
int64_t probe_wait(struct weir_queue *queue, struct probe *probe);
/* Both. */
int64_t probe_run(struct weir_queue *queue, struct probe *probe);
/* Wait until `count` probes are done. */
void probes_wait(struct weir_queue *queue, struct probe *probes, size_t count);

/* --- checks ------------------------------------------------------------------------- */

#define check_code(got, want) \
    test_check_code((int64_t)(got), (int64_t)(want), #got, __FILE__, __LINE__)
#define check_pattern(buf, len, seed, offset) \
    test_check_pattern((buf), (len), (seed), (offset), __FILE__, __LINE__)
#define check(condition) test_check((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
void test_check_code(int64_t got, int64_t want, const char *what, const char *file, int line);
void test_check_pattern(const void *buf, size_t len, uint64_t seed, uint64_t offset,
                        const char *file, int line);
void test_check(int condition, const char *what, const char *file, int line);

/* --- cases ---------------------------------------------------------------------------- */

/* What one case has to work with. */
struct env {
    uint32_t backend;
    const char *backend_name;
    struct weir_engine *engine;
    struct weir_queue *queue; /* opened with all defaults */
    const char *skipped;      /* set by a case, before it returns: why it can't run here */
};

enum case_flag {
    CASE_BYTES = 1u << 0,   /* bytes must move: not for null */
    CASE_ONCE = 1u << 1,    /* the backend does not matter: once, with threads */
    CASE_NO_QUEUE = 1u << 2 /* opens its queues itself */
};
struct test_case {
    const char *name;
    void (*run)(struct env *env);
    uint32_t flags;
};
#define CASE(function, flags)        \
    {                                \
#function, function, (flags) \
    }

/*
 * Run every case for every backend, each with an engine and a queue of its own, closed
 * afterwards with nothing left. A first argument is a pattern for names. Returns main's
 * value.
 */
int run_cases(const char *suite, const struct test_case *cases, size_t count, int argc,
              char **argv);

/* Begin and end by hand, for suites that do not go through run_cases(). */
bool backend_works(uint32_t backend);
const char *backend_name_of(uint32_t backend);
/* Abort with the name if this test has not called watchdog_stop() after `seconds`. */
void watchdog_start(const char *what, unsigned seconds);
void watchdog_stop(void);

/* --- children ------------------------------------------------------------------------------ */

struct child_result {
    int status; /* of waitpid(2) */
    char *text; /* what it wrote to both outputs; free() it */
};
/* Run this program again with these arguments (NULL at the end) and catch what it says. */
struct child_result child_run(const char *const *arguments);

#endif
