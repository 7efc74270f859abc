/* SPDX-License-Identifier: MIT */
/*
 * libuv.c - a queue inside a libuv loop
 *
 * A uv_poll_t watches the queue's descriptor, and weir_queue_run() is called when it is
 * readable: nothing else is needed. The file is read piece by piece, several at once, while
 * a timer of libuv's runs beside it; then it is compared with what uv_fs_read delivers. The
 * exit status says whether that was the same.
 *
 *     cc libuv.c $(pkg-config --cflags --libs weir libuv) && ./a.out FILE
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include <weir/weir.h>

#define PIECE 65536
#define SLOTS 8 /* pieces in flight */

struct reader {
    struct weir_queue *queue;
    struct weir_file *file;
    uv_poll_t poll;
    uv_timer_t timer;
    char *data; /* the whole file */
    size_t size;
    size_t next;   /* where the next piece starts */
    unsigned busy; /* jobs taken and not done */
    long ticks;
    int result; /* the first error */
};

static void on_piece(struct weir_job *job);

/* Submit `job` for the next piece, if there is one. */
static void read_next(struct reader *reader, struct weir_job *job)
{
    size_t left = reader->size - reader->next;
    size_t len = left < PIECE ? left : PIECE;
    int rc;

    if (len == 0 || reader->result < 0)
        return;
    weir_job_read(job, reader->file, reader->data + reader->next, len, reader->next, on_piece,
                  reader);
    rc = weir_queue_submit(reader->queue, &job, 1);
    if (rc < 0) {
        reader->result = rc;
        return;
    }
    reader->next += len;
    reader->busy++;
}

/* Runs inside weir_queue_run(). It may submit again. */
static void on_piece(struct weir_job *job)
{
    struct reader *reader = job->arg;

    reader->busy--;
    if (job->result < 0)
        reader->result = (int)job->result;
    else if ((size_t)job->result != job->len)
        reader->result = -WEIR_ECHANGED; /* shorter than it was */
    read_next(reader, job);
}

/* The loop ends when no handle is left in it. */
static void stop(struct reader *reader)
{
    uv_close((uv_handle_t *)&reader->poll, NULL);
    uv_close((uv_handle_t *)&reader->timer, NULL);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct reader *reader = poll->data;
    int rc = weir_queue_run(reader->queue);

    (void)events;
    if (status < 0 || rc < 0)
        reader->result = rc < 0 ? rc : status;
    if (reader->busy == 0 || rc < 0)
        stop(reader);
}

static void on_tick(uv_timer_t *timer)
{
    struct reader *reader = timer->data;

    reader->ticks++;
}

/* Whether `data` is what uv_fs_read delivers of the file. */
static int is_same(uv_loop_t *loop, const char *path, const char *data, size_t size)
{
    static char buf[PIECE];
    uv_buf_t uv_buf = uv_buf_init(buf, sizeof(buf));
    uv_fs_t request;
    size_t at = 0;
    int fd = uv_fs_open(loop, &request, path, O_RDONLY, 0, NULL);

    uv_fs_req_cleanup(&request);
    if (fd < 0)
        return 0;
    while (at < size) {
        ssize_t got = uv_fs_read(loop, &request, fd, &uv_buf, 1, (int64_t)at, NULL);

        uv_fs_req_cleanup(&request);
        if (got <= 0 || (size_t)got > size - at || memcmp(buf, data + at, (size_t)got) != 0)
            break;
        at += (size_t)got;
    }
    uv_fs_close(loop, &request, fd, NULL);
    uv_fs_req_cleanup(&request);
    return at == size;
}

static int fail(const char *what, int64_t code)
{
    fprintf(stderr, "libuv: %s: %s\n", what, code < 0 ? weir_code_text(code) : "failed");
    return 1;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/proc/self/exe";
    static struct weir_job jobs[SLOTS];
    struct weir_engine *engine = NULL;
    static struct reader reader;
    struct weir_stat stat = { 0 };
    uv_loop_t loop;
    int rc;

    rc = weir_engine_open(NULL, &engine, NULL);
    if (rc == 0)
        rc = weir_queue_open(engine, NULL, &reader.queue);
    if (rc == 0)
        rc = weir_file_open(engine, NULL, path, WEIR_OPEN_READ, 0, &reader.file, NULL);
    if (rc == 0)
        rc = weir_file_stat(reader.file, &stat, NULL);
    if (rc < 0)
        return fail("start", rc);
    reader.size = (size_t)stat.size_bytes;
    reader.data = malloc(reader.size + 1);

    if (!reader.data || uv_loop_init(&loop) < 0 ||
        uv_poll_init(&loop, &reader.poll, weir_queue_fd(reader.queue)) < 0 ||
        uv_timer_init(&loop, &reader.timer) < 0)
        return fail("start", 0);
    reader.poll.data = &reader;
    reader.timer.data = &reader;
    uv_poll_start(&reader.poll, UV_READABLE, on_readable);
    uv_timer_start(&reader.timer, on_tick, 1, 1);

    for (int i = 0; i < SLOTS; i++)
        read_next(&reader, &jobs[i]);
    if (reader.busy == 0)
        stop(&reader); /* an empty file */
    uv_run(&loop, UV_RUN_DEFAULT);
    if (reader.result < 0)
        return fail(path, reader.result);
    if (!is_same(&loop, path, reader.data, reader.size))
        return fail("what was read differs from uv_fs_read", 0);
    printf("%zu bytes, the same as with uv_fs_read; %ld ticks of the timer meanwhile\n",
           reader.size, reader.ticks);

    uv_loop_close(&loop);
    rc = weir_queue_close(reader.queue, WEIR_FOREVER);
    if (rc == 0)
        rc = weir_file_close(reader.file);
    if (rc == 0)
        rc = weir_engine_close(engine);
    free(reader.data);
    return rc < 0 ? fail("close", rc) : 0;
}
