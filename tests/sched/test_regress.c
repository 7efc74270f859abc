/* SPDX-License-Identifier: MIT */
/*
 * test_regress.c - what once went wrong in the scheduler, each in its own scene
 *
 *   many      a READ_MANY is charged, tried again, cut, cancelled and cached as reads are
 *   urgent    work that gives way does so on slow devices too, and is charged by what it moves
 *   queues    a queue that is given up loses nothing; waiting for admission is no stall
 *   streams   no more is read than there is
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <weir/stream.h>

#define BLOCK     ((size_t)64 * 1024)
#define DISK_SIZE (16 * MIB)

/* --- what they share ----------------------------------------------------------------- */

static void *memory_new(size_t size)
{
    void *memory = calloc(1, size);

    if (memory == NULL)
        abort();
    return memory;
}

/* Jobs of one class that are submitted again when they are done, until told to stop. All read
 * into the same memory: only what the device was given is looked at. */
struct pump {
    struct weir_queue *queue;
    struct weir_job *jobs;
    uint8_t *buf;
    bool stop;
};

static void pump_done(struct weir_job *job)
{
    struct pump *pump = job->arg;

    check_code(job->result, (int64_t)job->len);
    if (!pump->stop)
        check_code(weir_queue_submit(pump->queue, &job, 1), 1);
}

static void pump_start(struct pump *pump, struct rig *rig, struct weir_queue *queue,
                       uint32_t io_class, size_t count, size_t len)
{
    *pump = (struct pump){ .queue = queue,
                           .jobs = memory_new(count * sizeof(*pump->jobs)),
                           .buf = memory_new(len) };
    for (size_t i = 0; i < count; i++) {
        struct weir_job *job = &pump->jobs[i];

        weir_job_read(job, rig->file, pump->buf, len, region_of(io_class) + i * MIB % DISK_SIZE,
                      pump_done, pump);
        job->io_class = (uint8_t)io_class;
        check_code(weir_queue_submit(queue, &job, 1), 1);
    }
}

/* When its queue is drained. */
static void pump_free(struct pump *pump)
{
    free(pump->jobs);
    free(pump->buf);
}

static uint64_t bytes_of(const struct test_device *device, uint32_t io_class)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < device->log_count; i++)
        bytes += device->log[i].region == io_class ? device->log[i].bytes : 0;
    return bytes;
}

/* Let everything end that the device has, also what nobody waits for. */
static void settle(struct rig *rig)
{
    do {
        (void)test_device_step(&rig->device, &rig->queue, 1);
        check(weir_queue_run(rig->queue) >= 0);
    } while (rig->device.ops > 0);
    rig_drain(rig->queue);
}

/* A READ_MANY with memory for each of its ranges. */
struct many {
    struct probe probe;
    struct weir_range *ranges;
    size_t count;
};

static void many_open(struct many *many, struct weir_file *file, uint32_t io_class,
                      size_t count)
{
    memset(many, 0, sizeof(*many));
    many->ranges = memory_new(count * sizeof(*many->ranges));
    weir_job_prepare(&many->probe.job, WEIR_OP_READ_MANY, file, probe_done, &many->probe);
    many->probe.job.io_class = (uint8_t)io_class;
    many->probe.job.buf = many->ranges;
}

static void many_add(struct many *many, uint64_t offset, size_t len)
{
    struct weir_range *range = &many->ranges[many->count++];

    many->probe.job.len = many->count;
    *range = (struct weir_range){ .buf = malloc(len > 0 ? len : 1),
                                  .len = len,
                                  .offset = region_of(many->probe.job.io_class) + offset,
                                  .result = 77 };
    if (range->buf == NULL)
        abort();
    memset(range->buf, 0xee, len);
}

/* Each range that did not fail has what a read of it alone would have given; each that did, did
 * with `code`. Returns how many did. */
static size_t many_check(const struct rig *rig, const struct many *many, int64_t code)
{
    uint64_t bytes = 0;
    size_t failed = 0;

    check_code(many->probe.done, 1);
    for (size_t i = 0; i < many->count; i++) {
        const struct weir_range *range = &many->ranges[i];
        uint64_t offset = range->offset % DEVICE_REGION;
        uint64_t left = offset < rig->device.disk_size ? rig->device.disk_size - offset : 0;

        if (range->result < 0) {
            check_code(range->result, code);
            failed++;
            continue;
        }
        check_code(range->result, (int64_t)(range->len < left ? range->len : left));
        check_pattern(range->buf, (size_t)range->result, rig->device.seed, offset);
        bytes += (uint64_t)range->result;
    }
    check_code(many->probe.result, failed > 0 ? code : (int64_t)bytes);
    check_code((int64_t)many->probe.transferred, (int64_t)bytes);
    return failed;
}

static void many_close(struct many *many)
{
    for (size_t i = 0; i < many->count; i++)
        free(many->ranges[i].buf);
    free(many->ranges);
}

/* --- many ---------------------------------------------------------------------------- */

static void many__is_charged_to_its_class(void **state)
{
    struct weir_queue_options options = { .depth = 8, .flags = WEIR_QUEUE_NO_MERGE };
    struct many many;
    struct pump pump;
    struct rig rig;
    uint64_t urgent;
    uint64_t ahead;

    (void)state;
    rig_init(&rig);
    rig.device.width = 4;
    test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
    rig_start(&rig, NULL, &options);
    pump_start(&pump, &rig, rig.queue, WEIR_CLASS_FOREGROUND, 64, BLOCK);
    many_open(&many, rig.file, WEIR_CLASS_PREFETCH, 400);
    for (uint32_t i = 0; i < 400; i++)
        many_add(&many, i * 2 % 256 * BLOCK % DISK_SIZE, BLOCK);
    probe_submit(rig.queue, &many.probe);
    do {
        check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) > 0);
        urgent = bytes_of(&rig.device, WEIR_CLASS_FOREGROUND);
        ahead = bytes_of(&rig.device, WEIR_CLASS_PREFETCH);
    } while (urgent + ahead < 96 * MIB);
    /* 32 to 4. */
    if (ahead * 9 < (urgent + ahead) * 8 / 10 || ahead * 9 > (urgent + ahead) * 12 / 10)
        fail_msg("%zu KiB of %zu", (size_t)(ahead / KIB), (size_t)((urgent + ahead) / KIB));
    pump.stop = true;
    rig_drain(rig.queue);
    check_code((int64_t)many_check(&rig, &many, 0), 0);
    many_close(&many);
    pump_free(&pump);
    rig_close(&rig);
}

static int64_t fails_always(struct test_device *device, const struct device_op *entry)
{
    (void)entry;
    return *(const int64_t *)device->context;
}

/* The device sees the same tries at the same times. */
static void many__is_tried_again_as_a_read_is(void **state)
{
    static const int64_t codes[] = { -EIO, -EAGAIN, -ENOMEM, -EBUSY, -ENXIO };

    (void)state;
    for (size_t c = 0; c < COUNT(codes); c++) {
        uint64_t starts_ns[2][16];
        size_t tries[2];

        for (int kind = 0; kind < 2; kind++) {
            int64_t code = codes[c];
            struct many many;
            uint8_t buf[4096];
            struct probe probe;
            struct rig rig;

            rig_open(&rig, NULL, NULL);
            rig.device.fault = fails_always;
            rig.device.context = &code;
            if (kind == 0) {
                weir_job_read(&probe.job, rig.file, buf, sizeof(buf), 4096, NULL, NULL);
                check_code(probe_run(rig.queue, &probe), code);
            } else {
                many_open(&many, rig.file, WEIR_CLASS_FOREGROUND, 1);
                many_add(&many, 4096, sizeof(buf));
                check_code(probe_run(rig.queue, &many.probe), code);
                check_code((int64_t)many_check(&rig, &many, code), 1);
                many_close(&many);
            }
            tries[kind] = rig.device.log_count;
            check(tries[kind] <= COUNT(starts_ns[kind]));
            for (size_t i = 0; i < tries[kind]; i++)
                starts_ns[kind][i] = rig.device.log[i].start_ns;
            rig_close(&rig);
        }
        check((tries[0] > 1) == (codes[c] != -ENXIO));
        check_code((int64_t)tries[1], (int64_t)tries[0]);
        for (size_t i = 0; i < tries[0]; i++)
            check_code((int64_t)starts_ns[1][i], (int64_t)starts_ns[0][i]);
    }
}

static void many__is_not_cut_when_nobody_waits(void **state)
{
    struct many many;
    struct rig rig;

    (void)state;
    rig_init(&rig);
    rig.device.width = 8;
    test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
    rig_start(&rig, NULL, NULL);
    many_open(&many, rig.file, WEIR_CLASS_BACKGROUND, 1);
    many_add(&many, 4096, 4 * MIB);
    check_code(probe_run(rig.queue, &many.probe), 4 * MIB);
    check_code((int64_t)many_check(&rig, &many, 0), 0);
    check_code((int64_t)rig.device.log_count, 1);
    check_code((int64_t)rig.device.log[0].bytes, 4 * MIB);
    many_close(&many);
    rig_close(&rig);
}

/* Not handed over yet, or with no room to begin, or with some of it at the device. */
static void many__cancelled_says_so_for_each_range(void **state)
{
    struct rig rig;

    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct weir_queue_options options = { .depth = 1, .flags = WEIR_QUEUE_NO_MERGE };
        struct item *first = items_new(1);
        struct many many;
        size_t begun = 0;

        rig_init(&rig);
        test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
        rig_start(&rig, NULL, &options);
        many_open(&many, rig.file, WEIR_CLASS_FOREGROUND, 300);
        for (uint32_t i = 0; i < 300; i++)
            many_add(&many, (299 - i) * 40 * KIB, i % 10 == 3 ? 0 : 4096);
        if (kind == 1 || kind == 2) {
            item_read(&rig, first, WEIR_CLASS_SYNC, 0, 4096);
            items_submit(rig.queue, first, 1);
        }
        if (kind == 1)
            check(weir_queue_run(rig.queue) >= 0);
        probe_submit(rig.queue, &many.probe);
        if (kind == 2)
            check(weir_queue_run(rig.queue) >= 0);
        if (kind == 3) {
            while (rig.device.log_count < 20)
                check(weir_queue_wait(rig.queue, 1, TEST_MS / 10) >= 0);
            begun = rig.device.log_count;
        }
        check_code(weir_queue_cancel(rig.queue, many.probe.job.id), 0);
        rig_drain(rig.queue);
        check_code(many.probe.result, -ECANCELED);
        /* Of those of no length nobody can tell. */
        for (uint32_t i = 0; i < 300; i++) {
            if (many.ranges[i].len == 0)
                check(many.ranges[i].result == 0 || many.ranges[i].result == -ECANCELED);
        }
        check(many_check(&rig, &many, -ECANCELED) >= 270 - begun);
        check_code((int64_t)rig.device.log_count,
                   (int64_t)(begun + (kind == 1 || kind == 2 ? 1 : 0)));
        many_close(&many);
        items_free(first, 1);
        rig_close(&rig);
    }
}

static bool hangs_behind(struct test_device *device, const struct device_op *entry)
{
    (void)device;
    return entry->offset % DEVICE_REGION >= 50 * 40 * KIB;
}

static void many__keeps_its_deadline(void **state)
{
    struct rig rig;

    (void)state;
    for (int begins = 0; begins < 2; begins++) {
        struct weir_queue_options options = { .flags = WEIR_QUEUE_NO_MERGE };
        struct many many;
        uint64_t began_ns;

        rig_init(&rig);
        rig.device.width = 64;
        rig.device.hangs = hangs_behind;
        rig_start(&rig, NULL, &options);
        began_ns = rig.device.now_ns;
        many_open(&many, rig.file, WEIR_CLASS_FOREGROUND, 300);
        for (uint32_t i = 0; i < 300; i++)
            many_add(&many, i * 40 * KIB, 4096);
        many.probe.job.timeout_ns = 20 * TEST_MS;
        probe_submit(rig.queue, &many.probe);
        if (!begins)
            test_device_pass(&rig.device, 21 * TEST_MS);
        check_code(probe_wait(rig.queue, &many.probe), -ETIMEDOUT);
        check(rig.device.now_ns >= began_ns + 20 * TEST_MS &&
              rig.device.now_ns < began_ns + 25 * TEST_MS);
        check_code((int64_t)many_check(&rig, &many, -ETIMEDOUT), begins ? 250 : 300);
        many_close(&many);
        rig_close(&rig);
    }
}

static void many__reads_a_cached_file(void **state)
{
    struct weir_engine_options engine_options = { .cache_bytes = 512 * BLOCK };
    struct weir_file *file;
    struct rig rig;

    (void)state;
    rig_init(&rig);
    rig.device.width = 8;
    test_device_disk(&rig.device, DISK_SIZE - 100, DISK_SIZE);
    rig_start(&rig, &engine_options, NULL);
    file = rig_file(&rig, DISK_SIZE - 100, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    for (int again = 0; again < 2; again++) {
        struct many many;

        many_open(&many, file, WEIR_CLASS_FOREGROUND, 400);
        for (uint32_t i = 0; i < 390; i++)
            many_add(&many, (389 - i) * 40 * KIB + i, i % 7 * 30 * KIB);
        many_add(&many, DISK_SIZE - 200, 200);
        many_add(&many, DISK_SIZE - 200, 100);
        many_add(&many, DISK_SIZE - 100, 10);
        many_add(&many, DISK_SIZE + 5 * MIB, 10);
        many_add(&many, 0, 2 * MIB);
        check(probe_run(rig.queue, &many.probe) > 0);
        check_code((int64_t)many_check(&rig, &many, 0), 0);
        many_close(&many);
        settle(&rig);
        /* What lies behind the end is asked for again: the file may have grown. */
        for (size_t i = 0; again && i < rig.device.log_count; i++)
            check(rig.device.log[i].offset >= DISK_SIZE);
        test_device_forget(&rig.device);
    }
    /* What the cache is not given, the range is told. */
    {
        int64_t code = -ENXIO;
        struct many many;

        check_code(weir_file_advise(file, WEIR_ADVICE_DONTNEED, 4 * MIB, 4 * MIB, NULL), 0);
        rig.device.fault = fails_always;
        rig.device.context = &code;
        many_open(&many, file, WEIR_CLASS_FOREGROUND, 12);
        for (uint32_t i = 0; i < 12; i++)
            many_add(&many, i * MIB, 4096);
        check_code(probe_run(rig.queue, &many.probe), -ENXIO);
        check_code((int64_t)many_check(&rig, &many, -ENXIO), 4);
        many_close(&many);
    }
    check_code(weir_file_close(file), 0);
    rig_close(&rig);
}

/* More ranges than a queue has parts for, from several at once, some of which need none. */
static void many__with_more_ranges_than_parts(void **state)
{
    enum {
        MANIES = 3,
        RANGES = 900
    };
    struct rig rig;

    (void)state;
    for (uint32_t flags = 0; flags <= WEIR_QUEUE_NO_MERGE; flags++) {
        struct weir_queue_options options = { .depth = 16, .flags = flags };
        struct test_rng rng = { .state = test_seed() + flags };
        struct many manies[MANIES];
        struct many empty;

        rig_init(&rig);
        rig.device.width = 8;
        test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
        rig_start(&rig, NULL, &options);
        for (int m = 0; m < MANIES; m++) {
            many_open(&manies[m], rig.file, m == 2 ? WEIR_CLASS_BATCH : WEIR_CLASS_FOREGROUND,
                      RANGES);
            for (uint32_t i = 0; i < RANGES; i++)
                many_add(&manies[m], rng_below(&rng, DISK_SIZE + MIB),
                         i < 20 || i % 3 == 0 ? 0 : rng_below(&rng, 9000));
            probe_submit(rig.queue, &manies[m].probe);
        }
        many_open(&empty, rig.file, WEIR_CLASS_FOREGROUND, 5);
        for (int i = 0; i < 5; i++)
            many_add(&empty, 4096, 0);
        probe_submit(rig.queue, &empty.probe);
        rig_drain(rig.queue);
        for (int m = 0; m < MANIES; m++) {
            check_code((int64_t)many_check(&rig, &manies[m], 0), 0);
            many_close(&manies[m]);
        }
        check_code((int64_t)many_check(&rig, &empty, 0), 0);
        check_code(empty.probe.result, 0);
        many_close(&empty);
        rig_close(&rig);
    }
}

static void many__half_done_when_the_queue_is_closed(void **state)
{
    static const uint32_t after[] = { 0, 1, 7, 100, 290, 590 };
    struct rig rig;

    (void)state;
    for (size_t a = 0; a < COUNT(after); a++) {
        struct weir_queue_options options = { .depth = 4, .flags = WEIR_QUEUE_NO_MERGE };
        struct many manies[2];

        rig_init(&rig);
        rig.device.width = 2;
        test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
        rig_start(&rig, NULL, &options);
        for (int m = 0; m < 2; m++) {
            many_open(&manies[m], rig.file, WEIR_CLASS_FOREGROUND, 300);
            for (uint32_t i = 0; i < 300; i++)
                many_add(&manies[m], i * 40 * KIB, 4096);
            probe_submit(rig.queue, &manies[m].probe);
        }
        while (rig.device.log_count < after[a])
            check(weir_queue_wait(rig.queue, 1, TEST_MS / 10) >= 0);
        check_code(weir_queue_close(rig.queue, TEST_LONG), 0);
        rig.queue = NULL;
        check(many_check(&rig, &manies[0], -ECANCELED) +
                  many_check(&rig, &manies[1], -ECANCELED) >
              0);
        for (int m = 0; m < 2; m++)
            many_close(&manies[m]);
        rig_close(&rig);
    }
}

/* --- urgent -------------------------------------------------------------------------- */

/* A foreground read is always at the device, or has just ended. */
static void one_gives_way(struct test_device *device, const struct device_op *entry)
{
    uint64_t *starts = device->context;

    if (starts == NULL || entry->region != WEIR_CLASS_BACKGROUND)
        return;
    if (entry->region_ops_then > 1)
        fail_msg("%zu that give way at the device at once", (size_t)entry->region_ops_then);
    (*starts)++;
}

static void urgent__lasts_while_a_slow_device_is_at_it(void **state)
{
    static const uint64_t latencies_ms[] = { 1, 25, 100 };
    struct rig rig;

    (void)state;
    for (uint32_t i = 0; i < 2 * COUNT(latencies_ms); i++) {
        struct weir_queue_options options = { .flags = WEIR_QUEUE_NO_MERGE };
        struct weir_queue *queues[2];
        struct pump urgent;
        struct pump low;
        uint64_t starts = 0;
        uint64_t end_ns;

        rig_init(&rig);
        rig.device.width = 8;
        rig.device.latency_ns = latencies_ms[i / 2] * TEST_MS;
        rig.device.watch = one_gives_way;
        rig.device.context = &starts;
        test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
        rig_start(&rig, NULL, &options);
        queues[0] = rig.queue;
        queues[1] = i % 2 ? rig_queue(&rig, &options) : rig.queue;
        pump_start(&urgent, &rig, queues[0], WEIR_CLASS_FOREGROUND, 1, 4096);
        check(weir_queue_run(queues[0]) >= 0);
        pump_start(&low, &rig, queues[1], WEIR_CLASS_BACKGROUND, 100, BLOCK);
        end_ns = rig.device.now_ns + 20 * rig.device.latency_ns;
        while (rig.device.now_ns < end_ns)
            (void)test_device_step(&rig.device, queues, i % 2 ? 2 : 1);
        check(starts >= 10);
        rig.device.context = NULL;
        urgent.stop = true;
        low.stop = true;
        rig_drain(queues[0]);
        rig_drain(queues[1]);
        if (i % 2)
            check_code(weir_queue_close(queues[1], 0), 0);
        pump_free(&urgent);
        pump_free(&low);
        rig_close(&rig);
    }
}

/* What background reads of `len` get beside more foreground work than there is room for, in
 * thousandths. */
static uint64_t background_share(size_t len)
{
    struct weir_queue_options options = { .depth = 8, .flags = WEIR_QUEUE_NO_MERGE };
    struct pump urgent;
    struct pump low;
    struct rig rig;
    uint64_t bytes;
    uint64_t all;

    rig_init(&rig);
    rig.device.width = 4;
    test_device_disk(&rig.device, DISK_SIZE + MIB, DISK_SIZE + MIB);
    rig_start(&rig, NULL, &options);
    pump_start(&urgent, &rig, rig.queue, WEIR_CLASS_FOREGROUND, 64, BLOCK);
    pump_start(&low, &rig, rig.queue, WEIR_CLASS_BACKGROUND, 64, len);
    do {
        check(weir_queue_wait(rig.queue, 1, WEIR_FOREVER) >= 0);
        bytes = bytes_of(&rig.device, WEIR_CLASS_BACKGROUND);
        all = bytes + bytes_of(&rig.device, WEIR_CLASS_FOREGROUND);
    } while (all < 256 * MIB);
    urgent.stop = true;
    low.stop = true;
    rig_drain(rig.queue);
    pump_free(&urgent);
    pump_free(&low);
    rig_close(&rig);
    return bytes * 1000 / all;
}

static void urgent__pieces_are_charged_one_by_one(void **state)
{
    uint64_t small;
    uint64_t large;

    (void)state;
    small = background_share(BLOCK);
    large = background_share(MIB);
    /* 2 of 34. */
    if (small < 45 || small > 70 || large < 45 || large > 70)
        fail_msg("%zu and %zu thousandths, not 59", (size_t)small, (size_t)large);
}

/* --- queues -------------------------------------------------------------------------- */

/* A job that is posted when the time is asked for the so-manieth time. */
static struct {
    struct wi_os_ops ops;
    uint64_t (*now_ns)(const struct wi_os *os);
    struct weir_queue *queue;
    struct probe probe;
    unsigned left; /* 0: not any more */
    int rc;
} poster;

static uint64_t now_and_post(const struct wi_os *os)
{
    if (poster.left > 0 && --poster.left == 0)
        poster.rc = weir_queue_post(poster.queue, &poster.probe.job);
    return poster.now_ns(os);
}

/* Wherever in the call the post comes: it is done, now or by the next owner. */
static void queue__given_up_during_a_prefetch_keeps_what_is_posted(void **state)
{
    struct weir_engine_options engine_options = { .cache_bytes = 512 * BLOCK };
    bool posted = true;
    unsigned at;

    (void)state;
    for (at = 0; posted; at++) {
        uint8_t buf[4096];
        struct weir_file *file;
        struct item *item = items_new(1);
        struct rig rig;
        uint64_t waits;
        int rc;

        rig_init(&rig);
        poster.ops = *rig.device.os.ops;
        poster.now_ns = poster.ops.now_ns;
        poster.ops.now_ns = now_and_post;
        poster.left = 0;
        rig.device.os.ops = &poster.ops;
        test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
        rig_start(&rig, &engine_options, NULL);
        file = rig_file(&rig, DISK_SIZE, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
        item_read(&rig, item, WEIR_CLASS_FOREGROUND, 0, BLOCK);
        item->probe.job.file = file;
        items_submit(rig.queue, item, 1);
        rig_drain(rig.queue);
        check(weir_queue_run(rig.queue) >= 0);
        check(rig.device.ops > 0); /* the prefetch */

        weir_job_read(&poster.probe.job, rig.file, buf, sizeof(buf), 0, NULL, NULL);
        probe_arm(&poster.probe);
        poster.queue = rig.queue;
        poster.rc = 1;
        poster.left = at; /* never in the first round */
        waits = rig.device.waits;
        rc = weir_queue_rebind(rig.queue);
        check(rc == 0 || rc == -EBUSY);
        check(rig.device.waits == waits);
        posted = poster.left == 0;
        poster.left = 0;
        if (at > 0 && posted) {
            check_code(poster.rc, 0);
            for (int i = 0; i < 10 && poster.probe.done == 0; i++)
                check(weir_queue_wait(rig.queue, 1, TEST_MS) >= 0);
            check_code(poster.probe.done, 1);
            check_code(poster.probe.result, 4096);
        }
        /* In the end it can be given up. */
        settle(&rig);
        check_code(weir_queue_rebind(rig.queue), 0);
        check_code(weir_file_close(file), 0);
        rig_close(&rig);
        items_free(item, 1);
    }
    check(at > 2);
}

/* Three reads of three seconds each, of which one has room at the device. */
static void queue__who_waits_for_room_is_not_stalled(void **state)
{
    struct weir_queue_options options = { .device_bytes = BLOCK, .flags = WEIR_QUEUE_NO_MERGE };
    struct weir_engine_options engine_options = { .stall_ns = 5000 * TEST_MS };
    struct rig rig;

    (void)state;
    for (int slow = 0; slow < 2; slow++) {
        struct item *items = items_new(3);

        rig_init(&rig);
        rig.device.latency_ns = (slow ? 8000 : 3000) * TEST_MS;
        rig_start(&rig, &engine_options, &options);
        for (uint32_t i = 0; i < 3; i++)
            item_read(&rig, &items[i], WEIR_CLASS_FOREGROUND, i * MIB, BLOCK);
        items_submit(rig.queue, items, 3);
        while (items[2].probe.done == 0)
            check(weir_queue_wait(rig.queue, 1, 300 * TEST_MS) >= 0);
        items_check(&rig, items, 3);
        check_code((int64_t)rig.device.ops_most, 1);
        check_code((int64_t)rig_stats(&rig).stalls, slow ? 3 : 0);
        rig_close(&rig);
        items_free(items, 3);
    }
}

static int64_t will_need(struct rig *rig, struct weir_file *file, uint64_t block, size_t count)
{
    struct probe probe;

    weir_job_prepare(&probe.job, WEIR_OP_ADVISE, file, NULL, NULL);
    probe.job.mode = WEIR_ADVICE_WILLNEED;
    probe.job.offset = block * BLOCK;
    probe.job.len = count * BLOCK;
    return probe_run(rig->queue, &probe);
}

static void queue__advice_says_what_it_has_begun_to_load(void **state)
{
    struct weir_engine_options engine_options = { .cache_bytes = 512 * BLOCK };
    struct weir_file *file;
    struct rig rig;

    (void)state;
    rig_init(&rig);
    test_device_disk(&rig.device, DISK_SIZE, DISK_SIZE);
    rig_start(&rig, &engine_options, NULL);
    file = rig_file(&rig, DISK_SIZE, WEIR_OPEN_READ | WEIR_OPEN_CACHED);
    check_code(will_need(&rig, file, 10, 5), 5 * BLOCK);
    check_code(will_need(&rig, file, 10, 5), 0); /* under way */
    check_code(will_need(&rig, file, 8, 4), 2 * BLOCK);
    settle(&rig);
    check_code(will_need(&rig, file, 8, 7), 0); /* there */
    check_code(will_need(&rig, file, 14, 3), 2 * BLOCK);
    settle(&rig);
    check_code((int64_t)bytes_of(&rig.device, 0), 9 * BLOCK);
    check_code(weir_file_close(file), 0);
    rig_close(&rig);
}

/* --- streams ------------------------------------------------------------------------- */

enum file_kind {
    FILE_UNCACHED,
    FILE_UNCACHED_WRITABLE,
    FILE_CACHED,
    FILE_KINDS
};

static void stream_rig(struct rig *rig, enum file_kind kind, uint64_t size,
                       struct weir_file **ret_file)
{
    static const uint32_t flags[FILE_KINDS] = { WEIR_OPEN_READ,
                                                WEIR_OPEN_READ | WEIR_OPEN_WRITE,
                                                WEIR_OPEN_READ | WEIR_OPEN_CACHED };
    struct weir_engine_options engine_options = { .cache_bytes = 512 * BLOCK };

    rig_init(rig);
    rig->device.width = 8;
    test_device_disk(&rig->device, size + 1, size + 1);
    rig->device.disk_size = size;
    rig_start(rig, &engine_options, NULL);
    *ret_file = rig_file(rig, size, flags[kind]);
}

/* Reads it to its end. Returns the bytes. */
static uint64_t stream_all(struct rig *rig, struct weir_file *file)
{
    struct weir_stream *stream;
    struct weir_view view;
    uint64_t bytes = 0;
    int rc;

    check_code(weir_stream_open(rig->queue, file, NULL, &stream), 0);
    while ((rc = weir_stream_next(stream, &view, WEIR_FOREVER)) > 0) {
        check_code((int64_t)view.offset, (int64_t)bytes);
        check_pattern(view.data, view.len, rig->device.seed, bytes);
        bytes += view.len;
    }
    check_code(rc, 0);
    check_code(weir_stream_close(stream), 0);
    settle(rig);
    return bytes;
}

/* A cache in the engine does not mean that this file is in it. */
static void stream__of_files_of_every_kind(void **state)
{
    (void)state;
    for (int kind = 0; kind < FILE_KINDS; kind++) {
        struct weir_file *file;
        struct rig rig;

        stream_rig(&rig, (enum file_kind)kind, 3 * MIB + 77, &file);
        check_code((int64_t)stream_all(&rig, file), 3 * MIB + 77);
        check_code(weir_file_close(file), 0);
        rig_close(&rig);
    }
}

static void stream__reads_one_piece_behind_the_end(void **state)
{
    static const uint64_t sizes[] = { 0,          1,          BLOCK,
                                      BLOCK + 1,  2 * BLOCK,  20 * BLOCK - 1,
                                      20 * BLOCK, 300 * BLOCK };

    (void)state;
    for (int kind = 0; kind < FILE_KINDS; kind++) {
        for (size_t s = 0; s < COUNT(sizes); s++) {
            uint64_t size = sizes[s];
            uint64_t behind = 0;
            struct weir_file *file;
            struct rig rig;

            stream_rig(&rig, (enum file_kind)kind, size, &file);
            check_code((int64_t)stream_all(&rig, file), (int64_t)size);
            for (size_t i = 0; i < rig.device.log_count; i++) {
                const struct device_op *entry = &rig.device.log[i];

                /* Where a read was short, the rest of it is asked for once more. */
                if (entry->offset + entry->bytes > (size / BLOCK + 1) * BLOCK)
                    fail_msg("kind %d, file of %zu: %zu bytes at %zu", kind, (size_t)size,
                             (size_t)entry->bytes, (size_t)entry->offset);
                behind += entry->offset >= size;
            }
            check(behind <= 1);
            check_code(weir_file_close(file), 0);
            rig_close(&rig);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many__is_charged_to_its_class),
        cmocka_unit_test(many__is_tried_again_as_a_read_is),
        cmocka_unit_test(many__is_not_cut_when_nobody_waits),
        cmocka_unit_test(many__cancelled_says_so_for_each_range),
        cmocka_unit_test(many__keeps_its_deadline),
        cmocka_unit_test(many__reads_a_cached_file),
        cmocka_unit_test(many__with_more_ranges_than_parts),
        cmocka_unit_test(many__half_done_when_the_queue_is_closed),
        cmocka_unit_test(urgent__lasts_while_a_slow_device_is_at_it),
        cmocka_unit_test(urgent__pieces_are_charged_one_by_one),
        cmocka_unit_test(queue__given_up_during_a_prefetch_keeps_what_is_posted),
        cmocka_unit_test(queue__who_waits_for_room_is_not_stalled),
        cmocka_unit_test(queue__advice_says_what_it_has_begun_to_load),
        cmocka_unit_test(stream__of_files_of_every_kind),
        cmocka_unit_test(stream__reads_one_piece_behind_the_end),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    watchdog_start("sched_regress", 100);
    return cmocka_run_group_tests_name("sched_regress", tests, NULL, NULL);
}
