/* SPDX-License-Identifier: MIT */
/*
 * test_model.c - random jobs on a device that fails, lags, hangs and stops short
 *
 * Two queues of one engine, small limits, merging on. Reads, writes, vectored ones, many
 * ranges, timers and syncs of all classes, with and without sequence numbers and time limits,
 * are submitted from the loop and from `done`, and some are cancelled. Then:
 *
 *   M1  every job that was taken is done exactly once
 *   M2  a result is the whole count, short only at the end of the disk, or an error that the
 *       device gave, or that was asked for (cancel, time limit)
 *   M3  what was read is the disk's pattern; nothing outside the buffer is touched (ASan)
 *   M4  what a write reported as done is on the disk; what nobody wrote is not
 *   M5  a read flagged AFTER_WRITES sees the writes that had been done when it was submitted
 *   M6  depth and limits hold at every moment
 *   M7  when nothing is asked of it any more, everything ends
 *
 *   WEIR_SEED          what happens
 *   WEIR_SCHED_ROUNDS  how many such runs, 24
 */
#include "rig.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/common.h"

/* The disk: the first half is full of the pattern and only read, the second is empty and is
 * written. It ends in the middle of a sector. */
#define READ_SIZE  ((uint64_t)700 * 1000)
#define WRITE_SIZE ((uint64_t)300 * 1024)
#define DISK_SIZE  (READ_SIZE + WRITE_SIZE)

enum {
    SLOTS = 500,
    QUEUES = 2,
    STEPS = 1500,
    RANGES = 12
};

enum byte_state {
    BYTE_EMPTY,   /* nobody has tried to write it */
    BYTE_UNKNOWN, /* somebody has, and may have failed, or is not done */
    BYTE_WRITTEN
};

struct slot {
    struct weir_job job;
    struct model *model;
    struct weir_queue *queue;
    bool taken;
    bool cancel_asked;
    uint8_t *buf;
    size_t len; /* of buf: the bytes of a read or write */
    uint64_t offset;
    uint64_t submitted_ns;
    struct iovec iov[4];
    struct weir_range ranges[RANGES];
    uint8_t *known; /* AFTER_WRITES: the states of its bytes at submit */
    struct weir_error error;
};

struct model {
    struct rig rig;
    struct weir_queue *queues[QUEUES];
    uint32_t depths[QUEUES];
    struct test_rng rng;
    struct slot slots[SLOTS];
    uint8_t states[WRITE_SIZE];
    uint64_t engine_bytes;
    uint64_t engine_ops;
    uint64_t queue_bytes;
    uint64_t taken, done, cancelled, expired, failed, whole, short_;
    uint32_t fail_per_1024;
    uint32_t short_per_1024;
    uint32_t hang_per_1024;
    bool draining;
};

static uint64_t below(struct model *model, uint64_t limit)
{
    return rng_below(&model->rng, limit);
}

/* --- the device ----------------------------------------------------------------------- */

static int64_t model_fault(struct test_device *device, const struct device_op *entry)
{
    static const int codes[] = { -EIO, -EAGAIN, -EBUSY, -EINTR, -ENOMEM, -EINVAL };
    struct model *model = device->context;

    if (below(model, 1024) < model->fail_per_1024)
        return codes[below(model, COUNT(codes))];
    if (below(model, 1024) < model->short_per_1024)
        return (int64_t)(1 + below(model, entry->bytes));
    return INT64_MAX;
}

static bool model_hangs(struct test_device *device, const struct device_op *entry)
{
    struct model *model = device->context;

    (void)entry;
    return !model->draining && below(model, 1024) < model->hang_per_1024;
}

static void model_watch(struct test_device *device, const struct device_op *entry)
{
    struct model *model = device->context;
    uint64_t bytes = entry->bytes_then;
    uint64_t ops = entry->ops_then;
    uint64_t other_bytes = 0;
    unsigned others = 0;

    device->latency_ns = 1 + below(model, 300 * TEST_US);
    /* M6. The one operation that each other queue may have in any case does not count. */
    for (size_t i = 0; i < device->ops; i++) {
        const struct device_op *other = &device->log[device->open[i]];

        if (other->backend == entry->backend)
            continue;
        others++;
        other_bytes += other->bytes;
    }
    if (others == 1) {
        ops--;
        bytes -= other_bytes;
    }
    if (entry->own_ops_then > 1 && (bytes > model->engine_bytes || ops > model->engine_ops ||
                                    entry->own_bytes_then > model->queue_bytes))
        fail_msg("%" PRIu64 " operations (%" PRIu64 " own; %" PRIu64 "), %" PRIu64
                 " bytes (%" PRIu64 "; %" PRIu64 " own; %" PRIu64 ")",
                 entry->ops_then, entry->own_ops_then, model->engine_ops, entry->bytes_then,
                 model->engine_bytes, entry->own_bytes_then, model->queue_bytes);
    check(entry->own_ops_then <= wi_max_u64(model->depths[0], model->depths[1]));
    if (entry->pieces > 4)
        check(entry->bytes <= MIB);
}

/* --- jobs ----------------------------------------------------------------------------- */

static void model_done(struct weir_job *job);

static void cut(struct slot *slot)
{
    size_t at = 0;

    for (int i = 0; i < 4; i++) {
        size_t part = i == 3 ? slot->len - at : below(slot->model, slot->len - at + 1);

        slot->iov[i] = (struct iovec){ slot->buf + at, part };
        at += part;
    }
}

static void prepare_many(struct model *model, struct slot *slot)
{
    size_t count = 1 + below(model, RANGES);
    size_t at = 0;

    slot->len = 0;
    for (size_t i = 0; i < count; i++) {
        slot->ranges[i] = (struct weir_range){ .offset = below(model, READ_SIZE - 40000),
                                               .len = below(model, 8000),
                                               .result = INT64_MIN };
        if (i > 0 && below(model, 2))
            slot->ranges[i].offset = slot->ranges[i - 1].offset + below(model, 12000);
        slot->ranges[i].offset %= READ_SIZE - 8000;
        slot->len += slot->ranges[i].len;
    }
    slot->buf = malloc(slot->len + 1);
    for (size_t i = 0; i < count; i++) {
        slot->ranges[i].buf = slot->buf + at;
        at += slot->ranges[i].len;
    }
    weir_job_prepare(&slot->job, WEIR_OP_READ_MANY, model->rig.file, model_done, slot);
    slot->job.buf = slot->ranges;
    slot->job.len = count;
}

static void prepare_read(struct model *model, struct slot *slot)
{
    bool after_writes = below(model, 4) == 0;

    slot->offset = below(model, READ_SIZE / 512) * 512;
    if (below(model, 3)) /* near each other */
        slot->offset =
            (model->rig.device.now_ns / (4 * TEST_MS) * 30000 + below(model, 60000)) %
            (READ_SIZE - 4000);
    slot->len = below(model, 30) == 0 ? 90000 : 1 + below(model, 6000);
    if (slot->offset + slot->len > READ_SIZE)
        slot->len = READ_SIZE - slot->offset;
    if (after_writes) {
        slot->offset = READ_SIZE + below(model, WRITE_SIZE);
        slot->len = 1 + below(model, 6000); /* may go past the end */
        slot->known = malloc(slot->len);
        for (size_t i = 0; i < slot->len; i++) {
            uint64_t at = slot->offset - READ_SIZE + i;

            slot->known[i] = at < WRITE_SIZE ? model->states[at] : BYTE_UNKNOWN;
        }
    }
    slot->buf = malloc(slot->len);
    memset(slot->buf, 0xee, slot->len);
    cut(slot);
    if (below(model, 5) == 0)
        weir_job_readv(&slot->job, model->rig.file, slot->iov, 4, slot->offset, model_done,
                       slot);
    else
        weir_job_read(&slot->job, model->rig.file, slot->buf, slot->len, slot->offset,
                      model_done, slot);
    if (after_writes)
        slot->job.flags = WEIR_JOB_AFTER_WRITES;
}

static void prepare_write(struct model *model, struct slot *slot)
{
    slot->offset = READ_SIZE + below(model, WRITE_SIZE / 1024) * 1024;
    slot->len = below(model, 4) ? 1024 * (1 + below(model, 4)) : 1 + below(model, 9000);
    if (slot->offset + slot->len > DISK_SIZE)
        slot->len = DISK_SIZE - slot->offset;
    slot->buf = malloc(slot->len);
    pattern_fill(slot->buf, slot->len, model->rig.device.seed, slot->offset);
    cut(slot);
    if (below(model, 5) == 0)
        weir_job_writev(&slot->job, model->rig.file, slot->iov, 4, slot->offset, model_done,
                        slot);
    else
        weir_job_write(&slot->job, model->rig.file, slot->buf, slot->len, slot->offset,
                       model_done, slot);
}

static void prepare(struct model *model, struct slot *slot)
{
    uint64_t dice = below(model, 100);

    slot->buf = NULL;
    slot->known = NULL;
    slot->len = 0;
    slot->cancel_asked = false;
    if (dice < 55)
        prepare_read(model, slot);
    else if (dice < 80)
        prepare_write(model, slot);
    else if (dice < 90)
        prepare_many(model, slot);
    else if (dice < 95)
        weir_job_prepare(&slot->job, WEIR_OP_NOP, NULL, model_done, slot);
    else
        weir_job_sync(&slot->job, model->rig.file, 0, model_done, slot);
    if (slot->job.op == WEIR_OP_FDATASYNC && below(model, 2))
        slot->job.flags |= WEIR_JOB_BARRIER;
    if (slot->job.op == WEIR_OP_NOP || below(model, 8) == 0)
        slot->job.timeout_ns = 1 + below(model, 20 * TEST_MS);
    if (below(model, 10) == 0)
        slot->job.flags |= slot->job.op <= WEIR_OP_WRITEV ? WEIR_JOB_ALONE : 0;
    slot->job.io_class = (uint8_t)below(model, WEIR_CLASSES);
    slot->job.sequence = below(model, 2) ? 0 : (uint32_t)below(model, 20);
    slot->job.error = below(model, 2) ? &slot->error : NULL;
}

static void let_go(struct slot *slot)
{
    free(slot->buf);
    free(slot->known);
    slot->buf = NULL;
    slot->known = NULL;
    slot->taken = false;
}

static void submit_one(struct model *model)
{
    struct slot *slot = &model->slots[below(model, SLOTS)];
    struct weir_job *job = &slot->job;
    int rc;

    if (slot->taken)
        return;
    slot->model = model;
    slot->queue = model->queues[below(model, QUEUES)];
    prepare(model, slot);
    slot->taken = true;
    slot->submitted_ns = model->rig.device.now_ns;
    rc = weir_queue_submit(slot->queue, &job, 1);
    if (rc == 1) {
        model->taken++;
        if (job->op == WEIR_OP_WRITE || job->op == WEIR_OP_WRITEV)
            memset(model->states + (slot->offset - READ_SIZE), BYTE_UNKNOWN, slot->len);
        return;
    }
    check_code(rc, -EBUSY);
    let_go(slot);
}

/* --- done ----------------------------------------------------------------------------- */

static void check_read(const struct model *model, const struct slot *slot, uint64_t bytes)
{
    for (size_t i = 0; i < bytes && slot->known != NULL; i++) {
        uint8_t want = pattern_byte(model->rig.device.seed, slot->offset + i);

        if (slot->known[i] == BYTE_WRITTEN)
            check_code(slot->buf[i], want); /* M5 */
        else
            check(slot->buf[i] == want || slot->buf[i] == 0);
    }
    if (slot->known == NULL)
        check_pattern(slot->buf, bytes, model->rig.device.seed, slot->offset); /* M3 */
}

static bool is_device_error(int64_t code)
{
    return code == -EIO || code == -EAGAIN || code == -EBUSY || code == -EINTR ||
           code == -ENOMEM || code == -EINVAL;
}

static void check_many(const struct model *model, const struct slot *slot)
{
    int64_t sum = 0;
    bool failed = false;

    for (size_t i = 0; i < slot->job.len; i++) {
        const struct weir_range *range = &slot->ranges[i];

        check(range->result == (int64_t)range->len || range->result < 0);
        if (range->result < 0) {
            check(is_device_error(range->result) || range->result == -ECANCELED ||
                  range->result == -ETIMEDOUT);
            failed = true;
            continue;
        }
        sum += range->result;
        check_pattern(range->buf, range->len, model->rig.device.seed, range->offset);
    }
    if (slot->job.result >= 0)
        check(!failed && slot->job.result == sum);
    check((int64_t)slot->job.transferred >= sum);
}

static void model_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct model *model = slot->model;
    bool read = job->op == WEIR_OP_READ || job->op == WEIR_OP_READV;
    bool write = job->op == WEIR_OP_WRITE || job->op == WEIR_OP_WRITEV;
    int64_t result = job->result;

    check(slot->taken); /* M1 */
    model->done++;
    if (result == -ECANCELED) {
        check(slot->cancel_asked || model->draining);
        model->cancelled++;
    } else if (result == -ETIMEDOUT) {
        check(job->timeout_ns != 0 && job->op != WEIR_OP_NOP);
        check(model->rig.device.now_ns >= slot->submitted_ns + job->timeout_ns);
        model->expired++;
    } else if (result < 0) {
        check(is_device_error(result) && job->op != WEIR_OP_NOP);
        model->failed++;
    } else {
        model->whole++;
    }
    if (read) {
        uint64_t want =
            slot->offset + slot->len > DISK_SIZE ? DISK_SIZE - slot->offset : slot->len;

        check(job->transferred <= slot->len);
        if (result >= 0) { /* M2 */
            check_code(result, (int64_t)want);
            check_read(model, slot, want);
        }
    } else if (write) {
        check(job->transferred <= slot->len);
        if (result >= 0) {
            check_code(result, (int64_t)slot->len);
            memset(model->states + (slot->offset - READ_SIZE), BYTE_WRITTEN, slot->len);
        }
    } else if (job->op == WEIR_OP_READ_MANY) {
        check_many(model, slot);
    } else if (job->op == WEIR_OP_NOP && result == 0) {
        check(model->rig.device.now_ns >= slot->submitted_ns + job->timeout_ns);
    }
    if (result < 0 && job->error != NULL)
        check_code(job->error->code, result);
    let_go(slot);
    if (!model->draining && below(model, 6) == 0)
        submit_one(model);
}

/* --- a run ---------------------------------------------------------------------------- */

static void cancel_one(struct model *model)
{
    struct slot *slot = &model->slots[below(model, SLOTS)];
    int rc;

    if (!slot->taken)
        return;
    slot->cancel_asked = true;
    rc = weir_queue_cancel(slot->queue, slot->job.id);
    check(rc == 0 || rc == -EALREADY);
}

static void step(struct model *model)
{
    uint64_t dice = below(model, 100);
    uint64_t lot = below(model, 12);

    for (uint64_t i = 0; i < lot; i++)
        submit_one(model);
    if (below(model, 5) == 0)
        cancel_one(model);
    if (dice < 30) {
        check(weir_queue_run(model->queues[below(model, QUEUES)]) >= 0);
    } else if (dice < 60) {
        check(weir_queue_wait(model->queues[below(model, QUEUES)], (uint32_t)below(model, 20),
                              1 + below(model, 2 * TEST_MS)) >= 0);
    } else {
        (void)test_device_step(&model->rig.device, model->queues, QUEUES);
    }
}

/* M7: nothing hangs now but what did before; that is cancelled. */
static void drain(struct model *model)
{
    struct weir_inflight list[SLOTS];
    uint64_t until_ns = model->rig.device.now_ns + 100 * 1000 * TEST_MS;

    model->draining = true;
    for (unsigned turn = 0; model->done < model->taken; turn++) {
        (void)test_device_step(&model->rig.device, model->queues, QUEUES);
        if (model->rig.device.now_ns > until_ns) {
            for (int i = 0; i < QUEUES; i++) {
                size_t count = weir_queue_inflight(model->queues[i], list, COUNT(list));

                for (size_t j = 0; j < count; j++)
                    print_message("queue %d: %s of class %u, state %u, age %" PRIu64 " ms\n", i,
                                  weir_op_name(list[j].op), list[j].io_class, list[j].state,
                                  list[j].age_ns / TEST_MS);
            }
            fail_msg("%" PRIu64 " of %" PRIu64 " jobs done", model->done, model->taken);
        }
        for (int i = 0; i < QUEUES && turn % 200 == 199; i++) {
            size_t count = weir_queue_inflight(model->queues[i], list, COUNT(list));

            for (size_t j = 0; j < count; j++)
                /* A READ_MANY is queued again while parts of it are at the device. */
                if ((list[j].state == WEIR_STATE_DEVICE || list[j].op == WEIR_OP_READ_MANY) &&
                    list[j].age_ns > 1000 * TEST_MS)
                    (void)weir_queue_cancel(model->queues[i], list[j].job_id);
        }
    }
}

static void check_disk(const struct model *model)
{
    const uint8_t *disk = model->rig.device.disk;

    check_pattern(disk, READ_SIZE, model->rig.device.seed, 0);
    for (uint64_t i = 0; i < WRITE_SIZE; i++) { /* M4 */
        uint8_t want = pattern_byte(model->rig.device.seed, READ_SIZE + i);
        uint8_t got = disk[READ_SIZE + i];

        if (model->states[i] == BYTE_WRITTEN)
            check_code(got, want);
        else if (model->states[i] == BYTE_EMPTY)
            check_code(got, 0);
        else
            check(got == want || got == 0);
    }
    check_code((int64_t)model->rig.device.disk_size, (int64_t)DISK_SIZE);
}

static void run_model(uint64_t seed)
{
    struct model *model = calloc(1, sizeof(*model));
    struct test_device *device = &model->rig.device;
    struct weir_engine_options options = { .size = 0 };
    struct weir_queue_options queue_options[QUEUES];
    struct weir_stats stats;
    uint64_t began_ns;
    uint64_t counted = 0;
    bool tidy = seed % 4 == 0; /* no faults: everything must succeed that nobody ends */

    model->rng.state = seed;
    options.device_bytes = model->engine_bytes = below(model, 2) ? 64 * MIB : 200 * KIB;
    options.device_ops = (uint32_t)(model->engine_ops = 4 + below(model, 60));
    model->queue_bytes = below(model, 2) ? 64 * MIB : 150 * KIB;
    rig_init(&model->rig);
    device->width = 1 + (uint32_t)below(model, 16);
    device->bytes_per_sec = below(model, 2) ? 0 : 300 * MIB;
    device->fault = model_fault;
    device->hangs = model_hangs;
    device->watch = model_watch;
    device->context = model;
    if (!tidy) {
        model->fail_per_1024 = (uint32_t)below(model, 200);
        model->short_per_1024 = (uint32_t)below(model, 300);
        model->hang_per_1024 = (uint32_t)below(model, 4);
    }
    test_device_disk(device, READ_SIZE, DISK_SIZE);
    device->disk_size = DISK_SIZE; /* zeros */
    for (int i = 0; i < QUEUES; i++) {
        model->depths[i] = 1 + (uint32_t)below(model, 30);
        queue_options[i] = (struct weir_queue_options){
            .depth = model->depths[i],
            .backlog = 100 + (uint32_t)below(model, 200),
            .device_bytes = model->queue_bytes,
            .merge_gap = below(model, 2) ? 0 : 1 + (uint32_t)below(model, 100000),
            .flags = below(model, 5) ? 0 : WEIR_QUEUE_NO_GAPS,
        };
    }
    rig_start(&model->rig, &options, &queue_options[0]);
    model->queues[0] = model->rig.queue;
    model->queues[1] = rig_queue(&model->rig, &queue_options[1]);
    began_ns = device->now_ns;
    for (int i = 0; i < STEPS; i++)
        step(model);
    check(device->now_ns > began_ns);
    drain(model);
    check_code((int64_t)model->done, (int64_t)model->taken);
    check_disk(model);
    stats = rig_stats(&model->rig);
    check(model->taken > 300); /* few, where a queue of depth 1 hangs */
    check(tidy ? model->failed == 0 : true);
    check(!tidy || stats.merges > 0);
    for (int i = 0; i < WEIR_STATS_GROUPS; i++)
        counted += stats.ops[i].done - stats.ops[i].blocking;
    check_code((int64_t)counted, (int64_t)model->done);
    check_code((int64_t)stats.device_ops, (int64_t)device->log_count);
    check_code(weir_queue_close(model->queues[1], 0), 0);
    rig_close(&model->rig);
    free(model);
}

static void model__random_jobs_on_a_bad_device(void **state)
{
    uint64_t rounds = test_env_number("WEIR_SCHED_ROUNDS", 24);

    (void)state;
    for (uint64_t i = 0; i < rounds; i++) {
        char text[64];

        (void)snprintf(text, sizeof(text), "sched_model: WEIR_SEED=%" PRIu64, test_seed() + i);
        watchdog_start(text, 100);
        print_message("run %s\n", text);
        run_model(test_seed() + i);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model__random_jobs_on_a_bad_device),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    return cmocka_run_group_tests_name("sched_model", tests, NULL, NULL);
}
