/* SPDX-License-Identifier: MIT */
/*
 * rig.c - one engine over a device in its own time, with a file and a queue
 */
#include "rig.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void rig_init(struct rig *rig)
{
    memset(rig, 0, sizeof(*rig));
    test_device_init(&rig->device);
    probe_order_reset();
}

void rig_start(struct rig *rig, const struct weir_engine_options *engine_options,
               const struct weir_queue_options *queue_options)
{
    test_device_engine(&rig->device, engine_options, &rig->engine);
    rig->file = rig_file(rig, 0, WEIR_OPEN_READ | WEIR_OPEN_WRITE);
    rig->queue = rig_queue(rig, queue_options);
}

void rig_open(struct rig *rig, const struct weir_engine_options *engine_options,
              const struct weir_queue_options *queue_options)
{
    rig_init(rig);
    rig_start(rig, engine_options, queue_options);
}

void rig_close(struct rig *rig)
{
    if (rig->queue != NULL)
        check_code(weir_queue_close(rig->queue, TEST_LONG), 0);
    check_code(weir_file_close(rig->file), 0);
    check_code((int64_t)rig_stats(rig).in_flight, 0);
    check_code(weir_engine_close(rig->engine), 0);
    test_device_fini(&rig->device);
}

struct weir_queue *rig_queue(struct rig *rig, const struct weir_queue_options *options)
{
    struct weir_queue_options all = { .size = sizeof(all) };
    struct weir_queue *queue;

    if (options != NULL)
        all = *options;
    all.size = sizeof(all);
    check_code(weir_queue_open(rig->engine, &all, &queue), 0);
    return queue;
}

struct weir_file *rig_file(struct rig *rig, uint64_t size, uint32_t flags)
{
    const char *path = test_new_path("sched");
    struct weir_file *file;
    struct weir_error error = { .code = 0 };

    pattern_make_file(path, 0, 0);
    if (size > 0)
        check_code(truncate(path, (off_t)size), 0);
    check_code(weir_file_open(rig->engine, NULL, path, flags, 0, &file, &error), 0);
    return file;
}

struct weir_stats rig_stats(struct rig *rig)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    check_code(weir_engine_stats(rig->engine, &stats), 0);
    return stats;
}

void rig_drain(struct weir_queue *queue)
{
    int rc;

    while ((rc = weir_queue_wait(queue, 1, WEIR_FOREVER)) > 0)
        continue;
    check_code(rc, 0);
}

/* --- items ------------------------------------------------------------------------------- */

struct item *items_new(size_t count)
{
    struct item *items = calloc(count, sizeof(*items));

    if (items == NULL)
        abort();
    return items;
}

void items_free(struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(items[i].buf);
    free(items);
}

static void item_memory(struct item *item, uint64_t offset, size_t len)
{
    free(item->buf);
    item->buf = malloc(len > 0 ? len : 1);
    if (item->buf == NULL)
        abort();
    memset(item->buf, 0xa5, len);
    item->len = len;
    item->offset = offset;
}

void item_read(struct rig *rig, struct item *item, uint32_t io_class, uint64_t offset,
               size_t len)
{
    item_memory(item, offset, len);
    weir_job_read(&item->probe.job, rig->file, item->buf, len, region_of(io_class) + offset,
                  probe_done, &item->probe);
    item->probe.job.io_class = (uint8_t)io_class;
    probe_arm(&item->probe);
}

void item_write(struct rig *rig, struct item *item, uint32_t io_class, uint64_t offset,
                size_t len, uint64_t seed)
{
    item_memory(item, offset, len);
    pattern_fill(item->buf, len, seed, offset);
    weir_job_write(&item->probe.job, rig->file, item->buf, len, region_of(io_class) + offset,
                   probe_done, &item->probe);
    item->probe.job.io_class = (uint8_t)io_class;
    probe_arm(&item->probe);
}

void items_submit(struct weir_queue *queue, struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct weir_job *job = &items[i].probe.job;

        check_code(weir_queue_submit(queue, &job, 1), 1);
        check(items[i].probe.done == 0);
    }
}

void items_check(const struct rig *rig, const struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        check_code(items[i].probe.done, 1);
        check_code(items[i].probe.result, (int64_t)items[i].len);
        check_code((int64_t)items[i].probe.transferred, (int64_t)items[i].len);
        if (items[i].probe.job.op == WEIR_OP_READ)
            check_pattern(items[i].buf, items[i].len, rig->device.seed, items[i].offset);
    }
}
