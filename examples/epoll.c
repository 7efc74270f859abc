/* SPDX-License-Identifier: MIT */
/*
 * epoll.c - a queue inside an epoll loop
 *
 * Reads a file in pieces, several at once, while the same loop serves a timer. The loop
 * calls weir_queue_run() when the queue's descriptor is readable and at no other time: that
 * covers completions, and also jobs that were only submitted so far. In the end all that was
 * read is compared with plain reads. The exit status says whether it was the same.
 *
 *     cc epoll.c $(pkg-config --cflags --libs weir) && ./a.out FILE
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <weir/weir.h>

#define PIECE 65536
#define SLOTS 8 /* pieces in flight */

struct reader {
    struct weir_queue *queue;
    struct weir_file *file;
    struct weir_error error;
    char *data; /* the whole file */
    size_t size;
    size_t next;   /* where the next piece starts */
    unsigned busy; /* jobs taken and not done */
    int result;    /* the first error */
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
    job->error = &reader->error;
    rc = weir_queue_submit(reader->queue, &job, 1);
    if (rc < 0) {
        reader->result = rc;
        return;
    }
    reader->next += len;
    reader->busy++;
}

/* Runs inside weir_queue_run(), so inside the loop below. It may submit again. */
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

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data = { .fd = fd } };

    return fd < 0 ? -1 : epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* Returns how often the timer came, or -1. */
static long loop(struct reader *reader, int epoll_fd, int queue_fd, int timer_fd)
{
    long ticks = 0;

    while (reader->busy > 0) {
        struct epoll_event events[4];
        int count = epoll_wait(epoll_fd, events, 4, 10000);

        if (count <= 0)
            return -1; /* ten seconds without a sign of life */
        for (int i = 0; i < count; i++) {
            uint64_t expired;

            if (events[i].data.fd == queue_fd) {
                if (weir_queue_run(reader->queue) < 0)
                    return -1;
            } else if (read(timer_fd, &expired, sizeof(expired)) == (ssize_t)sizeof(expired)) {
                ticks += (long)expired;
            }
        }
    }
    return ticks;
}

/* Whether `data` is what plain reads of the file deliver. */
static int is_same(const char *path, const char *data, size_t size)
{
    static char buf[PIECE];
    size_t at = 0;
    ssize_t got = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    while (at < size && (got = read(fd, buf, sizeof(buf))) > 0) {
        if ((size_t)got > size - at || memcmp(buf, data + at, (size_t)got) != 0)
            break;
        at += (size_t)got;
    }
    close(fd);
    return at == size;
}

static int fail(const char *what, int64_t code, const struct weir_error *error)
{
    char line[600];

    if (error && error->code < 0 && weir_error_format(error, line, sizeof(line)) > 0)
        fprintf(stderr, "epoll: %s: %s\n", what, line);
    else
        fprintf(stderr, "epoll: %s: %s\n", what, code < 0 ? weir_code_text(code) : "failed");
    return 1;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/proc/self/exe";
    struct itimerspec every_ms = { { 0, 1000000 }, { 0, 1000000 } };
    static struct weir_job jobs[SLOTS];
    struct weir_engine *engine = NULL;
    static struct reader reader;
    struct weir_stat stat = { 0 };
    int epoll_fd, timer_fd, queue_fd, rc;
    long ticks;

    rc = weir_engine_open(NULL, &engine, &reader.error);
    if (rc == 0)
        rc = weir_queue_open(engine, NULL, &reader.queue);
    if (rc == 0)
        rc = weir_file_open(engine, NULL, path, WEIR_OPEN_READ, 0, &reader.file, &reader.error);
    if (rc == 0)
        rc = weir_file_stat(reader.file, &stat, &reader.error);
    if (rc < 0)
        return fail("start", rc, &reader.error);
    reader.size = (size_t)stat.size_bytes;
    reader.data = malloc(reader.size + 1);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    queue_fd = weir_queue_fd(reader.queue);
    if (!reader.data || watch(epoll_fd, queue_fd) < 0 || watch(epoll_fd, timer_fd) < 0 ||
        timerfd_settime(timer_fd, 0, &every_ms, NULL) < 0)
        return fail("start", queue_fd, NULL);

    for (int i = 0; i < SLOTS; i++)
        read_next(&reader, &jobs[i]);
    ticks = loop(&reader, epoll_fd, queue_fd, timer_fd);
    if (ticks < 0 || reader.result < 0)
        return fail(path, reader.result, &reader.error);
    if (!is_same(path, reader.data, reader.size))
        return fail("what was read differs from plain reads", 0, NULL);
    printf("%zu bytes, the same as with plain reads; %ld ticks of the timer meanwhile\n",
           reader.size, ticks);

    close(epoll_fd);
    close(timer_fd);
    rc = weir_queue_close(reader.queue, WEIR_FOREVER);
    if (rc == 0)
        rc = weir_file_close(reader.file);
    if (rc == 0)
        rc = weir_engine_close(engine);
    free(reader.data);
    return rc < 0 ? fail("close", rc, NULL) : 0;
}
