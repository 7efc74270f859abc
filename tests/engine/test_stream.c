/* SPDX-License-Identifier: MIT */
/*
 * test_stream.c - every piece once, in order, with its bytes; no further ahead than it helps
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "support/faulty.h"

#define SEED 23u

static struct weir_file *open_file(struct weir_engine *engine, const char *path, uint32_t flags)
{
    struct weir_file *file = NULL;

    check_code(weir_file_open(engine, NULL, path, WEIR_OPEN_READ | flags, 0, &file, NULL), 0);
    return file;
}

static struct weir_file *make_file(struct weir_engine *engine, size_t size)
{
    const char *path = test_new_path("stream");

    pattern_make_file(path, size, SEED);
    return open_file(engine, path, 0);
}

static struct weir_stream_info info_of(struct weir_stream *stream)
{
    struct weir_stream_info info = { .size = sizeof(info) };

    check_code(weir_stream_info(stream, &info), 0);
    return info;
}

/* The next piece is this one; nothing is said of its bytes on a backend that moves none. */
static void expect_piece(struct env *env, struct weir_stream *stream, uint64_t offset,
                         size_t len)
{
    struct weir_view view;

    memset(&view, 0xee, sizeof(view));
    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), 1);
    check_code((int64_t)view.offset, (int64_t)offset);
    check_code((int64_t)view.len, (int64_t)len);
    if (env->backend != WEIR_BACKEND_NULL)
        check_pattern(view.data, view.len, SEED, offset);
}

/* It is over, and stays so. */
static void expect_end(struct weir_stream *stream)
{
    struct weir_view view;

    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), 0);
    check_code(weir_stream_next(stream, &view, 0), 0);
    check_code(info_of(stream).ahead, 0);
    check_code(weir_stream_close(stream), 0);
}

/* --- what is delivered ------------------------------------------------------------------- */

/* Without options: the whole file, whatever its size, in pieces of 64 KiB. */
static void stream__whole_file(struct env *env)
{
    static const size_t sizes[] = {
        0, 1, 4095, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 3 * MIB, 5 * MIB + 77
    };

    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct weir_file *file = make_file(env->engine, sizes[i]);
        struct weir_stream *stream;

        check_code(weir_stream_open(env->queue, file, NULL, &stream), 0);
        for (uint64_t at = 0; at < sizes[i]; at += 64 * KIB)
            expect_piece(env, stream, at, sizes[i] - at < 64 * KIB ? sizes[i] - at : 64 * KIB);
        check_code((int64_t)info_of(stream).delivered,
                   (int64_t)((sizes[i] + 64 * KIB - 1) / (64 * KIB)));
        expect_end(stream);
        check_code(weir_file_close(file), 0);
    }
}

/* Pieces end at `end`; an end behind the file's, or before the beginning, is fine. */
static void stream__begin_and_end(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 100000);
    struct weir_stream_options options = {
        .size = sizeof(options), .offset = 777, .end = 50000, .piece_size = 20000
    };
    struct weir_stream *stream;

    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    expect_piece(env, stream, 777, 20000);
    expect_piece(env, stream, 20777, 20000);
    expect_piece(env, stream, 40777, 50000 - 40777);
    expect_end(stream);

    options.end = 777;
    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    expect_end(stream);

    options.offset = 90000;
    options.end = 1000000;
    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    if (env->backend != WEIR_BACKEND_NULL) {
        expect_piece(env, stream, 90000, 10000);
        expect_end(stream);
    } else {
        check_code(weir_stream_close(stream), 0);
    }
    check_code(weir_file_close(file), 0);
}

/* With a stride, longer or shorter than a piece. */
static void stream__strides(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 2 * MIB);
    struct weir_stream_options options = { .size = sizeof(options),
                                           .offset = 100,
                                           .end = 2 * MIB,
                                           .stride = 100000,
                                           .piece_size = 5000 };
    struct weir_stream *stream;

    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (uint64_t at = 100; at < 2 * MIB; at += 100000)
        expect_piece(env, stream, at, 2 * MIB - at < 5000 ? 2 * MIB - at : 5000);
    expect_end(stream);

    options.stride = 1000;
    options.end = 30000;
    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (uint64_t at = 100; at < 30000; at += 1000)
        expect_piece(env, stream, at, 30000 - at < 5000 ? 30000 - at : 5000);
    expect_end(stream);
    check_code(weir_file_close(file), 0);
}

/* Backwards, down to `end`; a piece behind the end of the file is empty. */
static void stream__backwards(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 300000);
    struct weir_stream_options options = {
        .size = sizeof(options), .offset = 290000, .stride = -10000, .piece_size = 10000
    };
    struct weir_stream *stream;

    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (int64_t at = 290000; at >= 0; at -= 10000)
        expect_piece(env, stream, (uint64_t)at, 10000);
    expect_end(stream);

    options.offset = 295000;
    options.end = 15000;
    options.stride = -70000;
    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (int64_t at = 295000; at >= 15000; at -= 70000)
        expect_piece(env, stream, (uint64_t)at,
                     at == 295000 && env->backend != WEIR_BACKEND_NULL ? 5000 : 10000);
    expect_end(stream);

    if (env->backend != WEIR_BACKEND_NULL) {
        options.offset = 310000;
        options.end = 0;
        options.stride = -155000;
        check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
        expect_piece(env, stream, 310000, 0);
        expect_piece(env, stream, 155000, 10000);
        expect_piece(env, stream, 0, 10000);
        expect_end(stream);
    }
    check_code(weir_file_close(file), 0);
}

struct list {
    const uint64_t (*pieces)[2];
    size_t count;
    size_t next;
};

static int next_of_list(void *arg, uint64_t *ret_offset, size_t *ret_len)
{
    struct list *list = arg;

    if (list->next == list->count)
        return 0;
    *ret_offset = list->pieces[list->next][0];
    *ret_len = list->pieces[list->next][1];
    list->next++;
    return 1;
}

/* A callback says where; what it must not ask for is an error of that piece alone. */
static void stream__callback(struct env *env)
{
    static const uint64_t pieces[][2] = { { 5, 5 },      { 90000, 4096 }, { 5, 5 },
                                          { 100, 4097 }, { 70000, 1 },    { 80000, 0 },
                                          { 0, 4096 } };
    struct list list = { pieces, COUNT(pieces), 0 };
    struct weir_file *file = make_file(env->engine, 100000);
    struct weir_stream_options options = {
        .size = sizeof(options), .piece_size = 4096, .next = next_of_list, .arg = &list
    };
    struct weir_stream *stream;
    struct weir_view view;

    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (size_t i = 0; i < COUNT(pieces); i++) {
        if (pieces[i][1] == 0 || pieces[i][1] > 4096)
            check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -EINVAL);
        else
            expect_piece(env, stream, pieces[i][0], pieces[i][1]);
    }
    check_code((int64_t)info_of(stream).delivered, 5);
    expect_end(stream);
    check_code(weir_file_close(file), 0);
}

/* Of a direct file any bytes can be had, also those behind its last whole block. */
static void stream__direct(struct env *env)
{
    const char *path = test_new_path("stream");
    struct weir_stream_options options = { .size = sizeof(options),
                                           .offset = 1003,
                                           .piece_size = 7001 };
    struct weir_stream *stream;
    struct weir_file *file;
    size_t size = 200000;

    pattern_make_file(path, size, SEED);
    if (weir_file_open(env->engine, NULL, path, WEIR_OPEN_READ | WEIR_OPEN_DIRECT, 0, &file,
                       NULL) != 0) {
        env->skipped = "no direct I/O here";
        return;
    }
    check_code(weir_stream_open(env->queue, file, &options, &stream), 0);
    for (uint64_t at = 1003; at < size; at += 7001)
        expect_piece(env, stream, at, size - at < 7001 ? size - at : 7001);
    expect_end(stream);
    check_code(weir_stream_open(env->queue, file, NULL, &stream), 0);
    for (uint64_t at = 0; at < size; at += 64 * KIB)
        expect_piece(env, stream, at, size - at < 64 * KIB ? size - at : 64 * KIB);
    expect_end(stream);
    check_code(weir_file_close(file), 0);
}

/* What is expected of a stream over [0, size), piece by piece. */
struct model {
    struct weir_stream_options options;
    uint64_t size;
    uint64_t at;
    bool over;
};

/* Returns what weir_stream_next should. */
static int model_next(struct model *model, uint64_t *ret_offset, size_t *ret_len)
{
    uint64_t end = model->options.end;
    uint64_t len = model->options.piece_size;
    int64_t stride = model->options.stride;
    uint64_t there;

    if (stride >= 0 && end == 0)
        end = UINT64_MAX;
    if (model->over || (stride >= 0 ? model->at >= end : model->at < end))
        return 0;
    if (stride >= 0 && end - model->at < len)
        len = end - model->at;
    there = model->at < model->size ? model->size - model->at : 0;
    *ret_offset = model->at;
    *ret_len = there < len ? there : len;
    if (stride >= 0) {
        model->over = there < len;
        model->at += stride ? (uint64_t)stride : len;
        return *ret_len > 0;
    }
    model->over = model->at - end < (uint64_t)-stride;
    model->at -= model->over ? 0 : (uint64_t)-stride;
    return 1;
}

/* Random streams over random files, four at a time on one queue, with and without patience. */
static void stream__as_the_model_says(struct env *env)
{
    struct test_rng rng = { test_seed() };

    for (unsigned round = 0; round < 25; round++) {
        size_t size = rng_below(&rng, 5) == 0 ? 0 : rng_below(&rng, 700000);
        struct weir_file *file = make_file(env->engine, size);
        struct weir_stream *streams[4];
        struct model models[4];
        unsigned open = 4;

        for (size_t i = 0; i < 4; i++) {
            struct weir_stream_options *options = &models[i].options;

            memset(&models[i], 0, sizeof(models[i]));
            models[i].size = size;
            options->size = sizeof(*options);
            options->piece_size = (uint32_t)(1 + rng_below(&rng, 30000));
            options->ahead_max = (uint32_t)rng_below(&rng, 20);
            options->offset = rng_below(&rng, size + 10000);
            if (rng_below(&rng, 2))
                options->end = rng_below(&rng, size + 10000);
            if (rng_below(&rng, 2))
                options->stride = (int64_t)rng_below(&rng, 100000) - 50000;
            models[i].at = options->offset;
            check_code(weir_stream_open(env->queue, file, options, &streams[i]), 0);
        }
        while (open > 0) {
            size_t i = rng_below(&rng, 4);
            uint64_t timeouts[] = { 0, TEST_MS, WEIR_FOREVER };
            uint64_t offset = 0;
            size_t len = 0;
            struct weir_view view;
            int want;
            int rc;

            if (streams[i] == NULL)
                continue;
            rc = weir_stream_next(streams[i], &view, timeouts[rng_below(&rng, 3)]);
            if (rc == -EAGAIN)
                continue;
            want = model_next(&models[i], &offset, &len);
            check_code(rc, want);
            if (rc == 1) {
                check_code((int64_t)view.offset, (int64_t)offset);
                check_code((int64_t)view.len, (int64_t)len);
                check_pattern(view.data, view.len, SEED, offset);
                if (rng_below(&rng, 3) == 0)
                    weir_view_release(&view);
            }
            if (rc == 0 || rng_below(&rng, 200) == 0) {
                check_code(weir_stream_close(streams[i]), 0);
                streams[i] = NULL;
                open--;
            }
        }
        check_code(weir_file_close(file), 0);
    }
}

/* --- what goes wrong ------------------------------------------------------------------------- */

static void stream__refuses_nonsense(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 10);
    struct weir_file *write_only;
    struct weir_stream *stream = NULL;
    struct weir_stream_info info = { .size = 3 };
    struct weir_view view;
    struct weir_stream_options options = { .size = sizeof(options) };

    check_code(weir_stream_open(NULL, file, NULL, &stream), -EINVAL);
    check_code(weir_stream_open(env->queue, NULL, NULL, &stream), -EINVAL);
    check_code(weir_stream_open(env->queue, file, NULL, NULL), -EINVAL);
    options.stride = INT64_MIN;
    check_code(weir_stream_open(env->queue, file, &options, &stream), -EINVAL);
    options.stride = 0;
    options.offset = UINT64_MAX;
    check_code(weir_stream_open(env->queue, file, &options, &stream), -EINVAL);
    options.offset = 0;
    options.size = 2;
    check_code(weir_stream_open(env->queue, file, &options, &stream), -EINVAL);
    check_code(weir_file_open(env->engine, NULL, test_new_path("stream"),
                              WEIR_OPEN_WRITE | WEIR_OPEN_CREATE, 0600, &write_only, NULL),
               0);
    check_code(weir_stream_open(env->queue, write_only, NULL, &stream), -EBADF);
    check(stream == NULL);
    check_code(weir_file_close(write_only), 0);
    check_code(weir_stream_next(NULL, &view, 0), -EINVAL);
    check_code(weir_stream_close(NULL), 0);
    check_code(weir_stream_open(env->queue, file, NULL, &stream), 0);
    check_code(weir_stream_info(stream, &info), -EINVAL);
    check_code(weir_stream_next(stream, NULL, 0), -EINVAL);
    check_code(weir_stream_close(stream), 0);
    check_code(weir_file_close(file), 0);
}

struct inside {
    struct weir_stream *stream;
    int next;
    int close;
};

static void use_inside(struct weir_job *job)
{
    struct inside *inside = job->arg;
    struct weir_view view;

    inside->next = weir_stream_next(inside->stream, &view, 0);
    inside->close = weir_stream_close(inside->stream);
}

static void *use_elsewhere(void *arg)
{
    struct inside *inside = arg;
    struct weir_view view;

    inside->next = weir_stream_next(inside->stream, &view, 0);
    inside->close = weir_stream_close(inside->stream);
    return NULL;
}

/* Inside `done`, and on another thread, it is refused; jobs of others are done meanwhile. */
static void stream__owner_only(struct env *env)
{
    struct inside inside = { 0 };
    struct weir_file *file = make_file(env->engine, 200000);
    struct weir_job job;
    struct weir_job *jobs[] = { &job };
    pthread_t thread;

    check_code(weir_stream_open(env->queue, file, NULL, &inside.stream), 0);
    weir_job_prepare(&job, WEIR_OP_NOP, NULL, use_inside, &inside);
    check_code(weir_queue_submit(env->queue, jobs, 1), 1);
    expect_piece(env, inside.stream, 0, 64 * KIB);
    check_code((int64_t)info_of(inside.stream).ahead, 2);
    check(weir_queue_run(env->queue) >= 0);
    check_code(inside.next, -EDEADLK);
    inside.next = 0;
    while (weir_queue_wait(env->queue, 1, WEIR_FOREVER) > 0) /* all that is ahead is ready */
        continue;
    check_code(weir_queue_submit(env->queue, jobs, 1), 1);
    check(weir_queue_wait(env->queue, 1, WEIR_FOREVER) > 0);
    check_code(inside.next, -EDEADLK);
    check_code(inside.close, -EDEADLK);
    inside.next = inside.close = 0;
    check_code(pthread_create(&thread, NULL, use_elsewhere, &inside), 0);
    check_code(pthread_join(thread, NULL), 0);
    check_code(inside.next, -EPERM);
    check_code(inside.close, -EPERM);
    expect_piece(env, inside.stream, 64 * KIB, 64 * KIB);
    check_code(weir_stream_close(inside.stream), 0);
    check_code(weir_file_close(file), 0);
}

/* One piece fails: its error comes in its place, all others are delivered. */
static void stream__error_in_its_place(struct env *env)
{
    for (uint64_t nth = 1; nth <= 20; nth += 3) {
        struct weir_queue_options options = { .size = sizeof(options),
                                              .flags = WEIR_QUEUE_NO_MERGE };
        struct weir_stream_options pieces = { .size = sizeof(pieces),
                                              .end = 80000,
                                              .piece_size = 4000 };
        struct weir_queue *queue;
        struct weir_stream *stream;
        struct weir_view view;
        struct faulty faulty;
        struct weir_file *file;
        uint64_t at = 0;
        unsigned errors = 0;

        faulty_open(&faulty, env->backend, 0, 0, NULL);
        file = make_file(faulty.engine, 80000);
        faulty_rule(&faulty,
                    (struct wi_fault_rule){
                        .kind = WI_FAULT_READ, .first = nth, .count = 1, .error = -ENXIO });
        check_code(weir_queue_open(faulty.engine, &options, &queue), 0);
        check_code(weir_stream_open(queue, file, &pieces, &stream), 0);
        for (; at < 80000; at += 4000) {
            int rc = weir_stream_next(stream, &view, WEIR_FOREVER);

            if (rc == -ENXIO) {
                errors++;
                continue;
            }
            check_code(rc, 1);
            check_code((int64_t)view.offset, (int64_t)at);
            if (env->backend != WEIR_BACKEND_NULL)
                check_pattern(view.data, 4000, SEED, at);
        }
        check_code(errors, 1);
        expect_end(stream);
        check_code(weir_queue_close(queue, TEST_LONG), 0);
        check_code(weir_file_close(file), 0);
        faulty_close(&faulty);
    }
}

/* All fail: as many errors as pieces, then the end. */
static void stream__all_fail(struct env *env)
{
    struct weir_stream_options pieces = { .size = sizeof(pieces),
                                          .end = 80000,
                                          .piece_size = 4000 };
    struct weir_stream *stream;
    struct weir_view view;
    struct faulty faulty;
    struct weir_file *file;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    file = make_file(faulty.engine, 80000);
    faulty_rule(&faulty, (struct wi_fault_rule){
                             .kind = WI_FAULT_READ, .first = 1, .count = 0, .error = -ENXIO });
    check_code(weir_stream_open(faulty.queue, file, &pieces, &stream), 0);
    for (unsigned i = 0; i < 20; i++)
        check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -ENXIO);
    expect_end(stream);
    check_code(weir_file_close(file), 0);
    faulty_close(&faulty);
}

/* A queue that is closing takes nothing more: what was taken is delivered, then the code. */
static void stream__file_closed_under_it(struct env *env)
{
    struct weir_file *file = make_file(env->engine, 10);
    struct weir_stream *stream;
    struct weir_view view;

    check_code(weir_stream_open(env->queue, file, NULL, &stream), 0);
    check_code(weir_file_close(file), 0);
    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -EBADF);
    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -EBADF);
    check_code(weir_stream_close(stream), 0);
}

/* A device that hangs: the time limit holds, 0 never waits; once it moves all is delivered. */
static void stream__time_limit(struct env *env)
{
    struct weir_stream *stream;
    struct weir_view view;
    struct faulty faulty;
    struct weir_file *file;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    file = make_file(faulty.engine, 100000);
    faulty_hang(&faulty, WI_FAULT_READ, 0, true);
    check_code(weir_stream_open(faulty.queue, file, NULL, &stream), 0);
    for (unsigned i = 0; i < 3; i++) {
        check_code(weir_stream_next(stream, &view, 0), -EAGAIN);
        check_code(weir_stream_next(stream, &view, 1 + i * TEST_MS), -EAGAIN);
    }
    check_code((int64_t)info_of(stream).waits, 1);
    faulty_release(&faulty);
    expect_piece(env, stream, 0, 64 * KIB);
    check_code(weir_stream_close(stream), 0);
    check_code(weir_file_close(file), 0);
    faulty_close(&faulty);
}

/* Closed while the device holds all that is ahead: cancelled, and no memory is left. */
static void stream__close_in_flight(struct env *env)
{
    struct weir_stats before = { .size = sizeof(before) };
    struct weir_stats after = { .size = sizeof(after) };
    struct weir_stream *stream;
    struct weir_view view;
    struct faulty faulty;
    struct weir_file *file;

    faulty_open(&faulty, env->backend, 0, 0, NULL);
    file = make_file(faulty.engine, 10 * MIB);
    check_code(weir_stream_open(faulty.queue, file, NULL, &stream), 0);
    expect_piece(env, stream, 0, 64 * KIB); /* what is made on first use is there now */
    check_code(weir_stream_close(stream), 0);
    check_code(weir_engine_stats(faulty.engine, &before), 0);
    for (unsigned pieces = 0; pieces < 30; pieces += 7) {
        struct weir_stream_options options = { .size = sizeof(options) };

        check_code(weir_stream_open(faulty.queue, file, &options, &stream), 0);
        for (uint64_t i = 0; i < pieces; i++)
            expect_piece(env, stream, i * 64 * KIB, 64 * KIB);
        faulty_hang(&faulty, WI_FAULT_READ, 0, true);
        while (weir_stream_next(stream, &view, 0) != -EAGAIN)
            continue;
        check(info_of(stream).ahead > 0);
        check_code(weir_stream_close(stream), 0);
        faulty_release(&faulty);
    }
    check_code(weir_engine_stats(faulty.engine, &after), 0);
    check_code((int64_t)after.memory_bytes, (int64_t)before.memory_bytes);
    check_code((int64_t)after.in_flight, 0);
    check_code(weir_file_close(file), 0);
    faulty_close(&faulty);
}

/* A queue with room for two jobs, one of them taken by another for good, is enough. */
static void stream__small_queue(struct env *env)
{
    struct weir_queue_options options = { .size = sizeof(options), .depth = 1, .backlog = 1 };
    struct weir_stream_options pieces = {
        .size = sizeof(pieces), .end = 300000, .piece_size = 1000, .ahead_max = 50
    };
    struct weir_file *file = make_file(env->engine, 300000);
    struct weir_queue *queue;
    struct weir_stream *streams[3];
    struct probe probe;

    check_code(weir_queue_open(env->engine, &options, &queue), 0);
    weir_job_prepare(&probe.job, WEIR_OP_NOP, NULL, NULL, NULL);
    probe.job.timeout_ns = TEST_LONG;
    probe_submit(queue, &probe);
    for (size_t i = 0; i < COUNT(streams); i++)
        check_code(weir_stream_open(queue, file, &pieces, &streams[i]), 0);
    for (uint64_t at = 0; at < 300000; at += 1000) {
        for (size_t i = 0; i < COUNT(streams); i++)
            expect_piece(env, streams[i], at, 1000);
    }
    for (size_t i = 0; i < COUNT(streams); i++)
        expect_end(streams[i]);
    check_code(weir_queue_cancel(queue, probe.job.id), 0);
    check_code(probe_wait(queue, &probe), -ECANCELED);
    check_code(weir_queue_close(queue, TEST_LONG), 0);
    check_code(weir_file_close(file), 0);
}

/* --- through the cache ----------------------------------------------------------------------- */

struct cached {
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct weir_file *file;
};

static void cached_open(struct env *env, struct cached *cached, uint64_t cache_bytes,
                        size_t size)
{
    struct weir_engine_options options = { .size = sizeof(options),
                                           .backend = env->backend,
                                           .cache_bytes = cache_bytes };
    const char *path = test_new_path("stream");

    pattern_make_file(path, size, SEED);
    check_code(weir_engine_open(&options, &cached->engine, NULL), 0);
    check_code(weir_queue_open(cached->engine, NULL, &cached->queue), 0);
    cached->file = open_file(cached->engine, path, WEIR_OPEN_CACHED);
}

/* Nothing may be pinned. */
static void cached_close(struct cached *cached)
{
    struct weir_stats stats = { .size = sizeof(stats) };

    check_code(weir_engine_stats(cached->engine, &stats), 0);
    check_code((int64_t)stats.cache_pinned, 0);
    check_code(weir_file_close(cached->file), 0);
    check_code(weir_queue_close(cached->queue, TEST_LONG), 0);
    check_code(weir_engine_close(cached->engine), 0);
}

/* Pieces are views of blocks: in order they end at the borders of blocks. */
static void stream__cached_in_order(struct env *env)
{
    static const size_t sizes[] = { 0, 1, 64 * KIB, 64 * KIB + 1, 3 * MIB + 5 };

    for (size_t i = 0; i < COUNT(sizes); i++) {
        size_t size = sizes[i];
        struct weir_stream_options options = { .size = sizeof(options),
                                               .offset = 1000,
                                               .piece_size = 30000 };
        struct weir_stream *stream;
        struct cached cached;

        cached_open(env, &cached, 4 * MIB, size);
        for (unsigned round = 0; round < 2; round++) { /* the second finds what is cached */
            check_code(weir_stream_open(cached.queue, cached.file, NULL, &stream), 0);
            for (uint64_t at = 0; at < size; at += 64 * KIB)
                expect_piece(env, stream, at, size - at < 64 * KIB ? size - at : 64 * KIB);
            expect_end(stream);
        }
        check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), 0);
        for (uint64_t at = 1000; at < size;) {
            uint64_t left = 64 * KIB - at % (64 * KIB);
            uint64_t len = left < 30000 ? left : 30000;

            len = size - at < len ? size - at : len;
            expect_piece(env, stream, at, len);
            at += len;
        }
        expect_end(stream);
        cached_close(&cached);
    }
}

/* Backwards and with strides; a piece that crosses the border of a block is refused, alone. */
static void stream__cached_pieces(struct env *env)
{
    struct weir_stream_options options = { .size = sizeof(options),
                                           .offset = 3 * MIB - 64 * KIB,
                                           .stride = -(int64_t)(64 * KIB) };
    struct weir_stream *stream;
    struct weir_view view;
    struct cached cached;

    cached_open(env, &cached, 2 * MIB, 3 * MIB);
    check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), 0);
    for (int64_t at = 3 * MIB - 64 * KIB; at >= 0; at -= (int64_t)(64 * KIB))
        expect_piece(env, stream, (uint64_t)at, 64 * KIB);
    expect_end(stream);

    options = (struct weir_stream_options){
        .size = sizeof(options), .stride = 65000, .end = 3 * MIB, .piece_size = 1000
    };
    check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), 0);
    for (uint64_t at = 0; at < 3 * MIB; at += 65000) {
        if (at % (64 * KIB) + 1000 > 64 * KIB)
            check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -EINVAL);
        else
            expect_piece(env, stream, at, 3 * MIB - at < 1000 ? 3 * MIB - at : 1000);
    }
    expect_end(stream);
    options.piece_size = 64 * KIB + 1;
    check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), -EINVAL);
    cached_close(&cached);
}

/* Streams that want more pinned than a small cache may pin still deliver all; a view that the
 * consumer has released is not released twice. */
static void stream__cached_beyond_the_pins(struct env *env)
{
    struct weir_stream_options options = { .size = sizeof(options), .ahead_max = 40 };
    struct weir_stream *streams[3];
    struct cached cached;

    cached_open(env, &cached, 16 * 64 * KIB, 4 * MIB);
    for (size_t i = 0; i < COUNT(streams); i++)
        check_code(weir_stream_open(cached.queue, cached.file, &options, &streams[i]), 0);
    for (uint64_t at = 0; at < 4 * MIB; at += 64 * KIB) {
        for (size_t i = 0; i < COUNT(streams); i++) {
            struct weir_view view;

            check_code(weir_stream_next(streams[i], &view, WEIR_FOREVER), 1);
            check_code((int64_t)view.offset, (int64_t)at);
            check_code((int64_t)view.len, 64 * KIB);
            check_pattern(view.data, view.len, SEED, at);
            if (at % (128 * KIB) == 0)
                weir_view_release(&view);
        }
    }
    for (size_t i = 0; i < COUNT(streams); i++)
        expect_end(streams[i]);
    cached_close(&cached);
}

/* With pins left for one piece alone, what was refused ahead is had when it is needed; with none
 * left it is an error of the piece. */
static void stream__cached_with_one_pin(struct env *env)
{
    enum {
        BLOCKS = 16,
        PINS = BLOCKS * 3 / 4
    };
    struct weir_stream_options options = { .size = sizeof(options), .ahead_max = 8 };
    struct weir_view held[PINS];
    struct weir_stream *stream;
    struct weir_view view;
    struct cached cached;

    cached_open(env, &cached, BLOCKS * 64 * KIB, 4 * MIB);
    for (uint64_t i = 0; i < PINS - 1; i++)
        check_code(weir_view_get(cached.file, i * 64 * KIB, 1, &held[i], NULL), 0);
    check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), 0);
    for (uint64_t at = 0; at < 2 * MIB; at += 64 * KIB)
        expect_piece(env, stream, at, 64 * KIB);
    check_code(weir_stream_close(stream), 0);

    check_code(weir_view_get(cached.file, 0, 1, &held[PINS - 1], NULL), 0);
    options.offset = 3 * MIB;
    check_code(weir_stream_open(cached.queue, cached.file, &options, &stream), 0);
    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -ENOBUFS);
    check_code(weir_stream_next(stream, &view, WEIR_FOREVER), -ENOBUFS);
    for (uint64_t i = 0; i < PINS; i++)
        weir_view_release(&held[i]);
    for (uint64_t at = 3 * MIB + 128 * KIB; at < 4 * MIB; at += 64 * KIB)
        expect_piece(env, stream, at, 64 * KIB);
    expect_end(stream);
    cached_close(&cached);
}

/* --- how far ahead --------------------------------------------------------------------------- */

/* A device that takes its time: the distance doubles up to what is allowed, and then not again
 * before what was in flight has been delivered. One that answers at
 * once: it falls to one, and no piece is waited for. */
static void stream__distance(struct env *env)
{
    static const struct wi_null_script slow = { .seed = 3,
                                                .delay_min_ns = TEST_MS / 2,
                                                .delay_max_ns = 4 * TEST_MS };
    (void)env;
    for (unsigned is_slow = 0; is_slow < 2; is_slow++) {
        struct weir_engine_options options = { .size = sizeof(options),
                                               .backend = WEIR_BACKEND_NULL };
        struct wi_engine_seams seams = { .null_script = is_slow ? &slow : NULL };
        struct weir_stream_options pieces = {
            .size = sizeof(pieces), .end = GIB, .piece_size = 4096, .ahead_max = 24
        };
        struct weir_engine *engine;
        struct weir_queue *queue;
        struct weir_stream *stream;
        struct weir_stream_info info;
        struct weir_file *file;
        struct weir_view view;
        uint32_t most = 2;
        unsigned grown_at = 0;
        uint32_t held = 0;

        check_code(wi_engine_open_with(&options, &seams, &engine, NULL), 0);
        check_code(weir_queue_open(engine, NULL, &queue), 0);
        file = make_file(engine, 10);
        check_code(weir_stream_open(queue, file, &pieces, &stream), 0);
        for (unsigned i = 0; i < 300; i++) {
            check_code(weir_stream_next(stream, &view, WEIR_FOREVER), 1);
            info = info_of(stream);
            check(info.ahead <= info.distance + 1); /* it may have fallen just now */
            if (info.distance > most) {
                check_code(info.distance, most * 2 < 24 ? most * 2 : 24);
                check(grown_at == 0 || i > grown_at + held);
                most = info.distance;
                grown_at = i;
                held = info.ahead;
            }
        }
        check_code(most, is_slow ? 24 : 2);
        check(is_slow ? info.distance > 12 : info.distance == 1);
        check(is_slow ? info.waits > 3 : info.waits == 0);
        check_code((int64_t)info.delivered, 300);
        check_code(weir_stream_close(stream), 0);
        check_code(weir_file_close(file), 0);
        check_code(weir_queue_close(queue, TEST_LONG), 0);
        check_code(weir_engine_close(engine), 0);
    }
}

static const struct test_case cases[] = {
    CASE(stream__whole_file, CASE_BYTES),
    CASE(stream__begin_and_end, 0),
    CASE(stream__strides, 0),
    CASE(stream__backwards, 0),
    CASE(stream__callback, 0),
    CASE(stream__direct, CASE_BYTES),
    CASE(stream__as_the_model_says, CASE_BYTES),
    CASE(stream__refuses_nonsense, 0),
    CASE(stream__owner_only, CASE_BYTES),
    CASE(stream__error_in_its_place, 0),
    CASE(stream__all_fail, 0),
    CASE(stream__file_closed_under_it, 0),
    CASE(stream__time_limit, 0),
    CASE(stream__close_in_flight, 0),
    CASE(stream__small_queue, 0),
    CASE(stream__cached_in_order, CASE_BYTES),
    CASE(stream__cached_pieces, CASE_BYTES),
    CASE(stream__cached_beyond_the_pins, CASE_BYTES),
    CASE(stream__cached_with_one_pin, CASE_BYTES),
    CASE(stream__distance, CASE_ONCE),
};

int main(int argc, char **argv)
{
    return run_cases("stream", cases, COUNT(cases), argc, argv);
}
