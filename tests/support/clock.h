/* SPDX-License-Identifier: MIT */
/*
 * clock.h - time that a test drives, and a device that lives in it
 *
 * The clock is an os table: the kernel's own calls, but for the time, which stands still until
 * somebody waits. The device sits below the null backend of every queue of one engine. It
 * serves `width` operations at a time, each in `latency_ns` plus its bytes at `bytes_per_sec`,
 * moves bytes between their buffers and a made-up disk, fails what it is told to fail, and
 * writes down all that it was given, in order. A wait of a queue moves the clock to what is due
 * next; so tests of time run at once and always alike.
 *
 *     test_device_init(&device);
 *     device.width = 4;
 *     test_device_engine(&device, &options, &engine);
 *     ... submit, weir_queue_wait() ...
 *     device.log[0].offset is what came first
 *
 * One thread. weir_queue_fd() knows only the real clock.
 */
#ifndef WEIR_TESTS_CLOCK_H
#define WEIR_TESTS_CLOCK_H

#include "support.h"

#include "engine/engine.h"

#define TEST_US UINT64_C(1000)

/* One operation that the device was given. */
struct device_op {
    const struct wi_backend *backend; /* tells the queues apart */
    uint8_t kind;                     /* WI_OP_READ, WRITE, READV, WRITEV */
    int fd;
    uint32_t region; /* offset / DEVICE_REGION */
    uint32_t pieces; /* 1, or iovecs */
    uint64_t offset;
    uint64_t bytes;
    uint64_t start_ns;
    uint64_t due_ns; /* UINT64_MAX: hangs */
    uint64_t end_ns; /* 0: at the device */
    int64_t result;  /* before the end: what an early read has moved, or -1 */
    /* What was at the device when it started, itself included. */
    uint64_t ops_then;
    uint64_t bytes_then;
    uint64_t own_ops_then; /* of its queue */
    uint64_t own_bytes_then;
    uint64_t region_ops_then; /* of its region */
    const struct wi_op *op;
};

/* Offsets of different regions are far apart: tests put each class into one of its own. */
#define DEVICE_REGION (UINT64_C(1) << 40)
#define DEVICE_QUEUES 16

struct test_device {
    struct wi_null_device device;
    struct wi_null_script script;
    struct wi_os os;

    /* May be changed at any time. */
    uint32_t width; /* at most 64 */
    uint64_t latency_ns;
    uint64_t bytes_per_sec; /* 0: no end of them */
    /* What the operation comes to instead of success: a negative code, or at most so many
     * bytes; INT64_MAX: all. NULL: all of them succeed. */
    int64_t (*fault)(struct test_device *device, const struct device_op *entry);
    /* True: it never ends by itself. May be NULL. */
    bool (*hangs)(struct test_device *device, const struct device_op *entry);
    /* Reads take their bytes when they start, not when they end: so a write may overtake
     * them. */
    bool early;
    /* Called when an operation has been written down at its start. May be NULL. */
    void (*watch)(struct test_device *device, const struct device_op *entry);
    void *context; /* the test's */

    /* The disk. Without memory of its own it reads as the pattern of `seed` (of the offset
     * inside its region), and forgets what is written. */
    uint64_t seed;
    uint8_t *disk;
    uint64_t disk_size; /* where every region ends; writes past it grow it up to disk_room */
    uint64_t disk_room;

    /* The device's own. */
    uint64_t now_ns;
    uint64_t waits; /* times the clock was moved by a wait */
    uint64_t busy_until_ns[64];
    struct device_op *log;
    size_t log_count;
    size_t log_room;
    size_t open[4096]; /* entries that are at the device, in no order */
    size_t ops;
    uint64_t bytes;
    uint64_t ops_most;
    uint64_t bytes_most;
};

/* Width 1, 100 us, endless bandwidth, an endless disk. */
void test_device_init(struct test_device *device);
void test_device_fini(struct test_device *device);
/* A disk of `room` bytes, of which `size` exist, with the pattern of `seed`. */
void test_device_disk(struct test_device *device, uint64_t size, uint64_t room);

/* weir_engine_open with this device and clock. Checked. */
void test_device_engine(struct test_device *device, const struct weir_engine_options *options,
                        struct weir_engine **ret_engine);

void test_device_pass(struct test_device *device, uint64_t ns);

/* One run of each queue. If none of them had anything to do, the clock moves to what is due
 * next, but at most a quarter of a millisecond. Returns how many jobs were done. */
unsigned test_device_step(struct test_device *device, struct weir_queue *const *queues,
                          size_t count);

/* Forget what was written down. */
void test_device_forget(struct test_device *device);

#endif
