/* SPDX-License-Identifier: MIT */
/*
 * rig.h - one engine over a device in its own time, with a file and a queue
 *
 * Every test of the scheduler opens a rig, submits reads and writes, and looks at what the
 * device was given, when, and with what it came back.
 */
#ifndef WEIR_TESTS_SCHED_RIG_H
#define WEIR_TESTS_SCHED_RIG_H

#include "support/clock.h"

struct rig {
    struct test_device device;
    struct weir_engine *engine;
    struct weir_file *file; /* empty in the file system: the bytes are the device's */
    struct weir_queue *queue;
};

/* The device with its defaults; all options may be NULL. rig_start() opens engine, file,
 * queue. */
void rig_init(struct rig *rig);
void rig_start(struct rig *rig, const struct weir_engine_options *engine_options,
               const struct weir_queue_options *queue_options);
/* Both. */
void rig_open(struct rig *rig, const struct weir_engine_options *engine_options,
              const struct weir_queue_options *queue_options);
/* Close everything; nothing may be left. A test that has closed the queue sets it to NULL. */
void rig_close(struct rig *rig);
struct weir_queue *rig_queue(struct rig *rig, const struct weir_queue_options *options);
struct weir_stats rig_stats(struct rig *rig);
/* Another file of `size` bytes, which are not there but for the device. */
struct weir_file *rig_file(struct rig *rig, uint64_t size, uint32_t flags);
/* Wait until every job of the queue is done. Loads of the cache may go on. */
void rig_drain(struct weir_queue *queue);

/* Where a class has its bytes, so that the device's log shows it. */
static inline uint64_t region_of(uint32_t io_class)
{
    return io_class * DEVICE_REGION;
}

/* A transfer with its own memory. */
struct item {
    struct probe probe;
    uint8_t *buf;
    size_t len;
    uint64_t offset; /* inside its region */
};
/* Prepare a read (write: with the pattern of `seed`) in the region of its class. Not
 * submitted. */
void item_read(struct rig *rig, struct item *item, uint32_t io_class, uint64_t offset,
               size_t len);
void item_write(struct rig *rig, struct item *item, uint32_t io_class, uint64_t offset,
                size_t len, uint64_t seed);
/* Submit them all; all must be taken. */
void items_submit(struct weir_queue *queue, struct item *items, size_t count);
/* Every read succeeded in full, with the device's pattern. */
void items_check(const struct rig *rig, const struct item *items, size_t count);
struct item *items_new(size_t count);
void items_free(struct item *items, size_t count);

#endif
