/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <weir/weir.h>

static void on_read(struct weir_job *job) /* called inside weir_queue_wait() */
{
    printf("%lld bytes: %.20s...\n", (long long)job->result, (const char *)job->buf);
}

int main(int argc, char **argv)
{
    static char buf[4096];
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct weir_file *file;
    struct weir_job job, *jobs[] = { &job };

    if (weir_engine_open(NULL, &engine, NULL) < 0 ||
        weir_queue_open(engine, NULL, &queue) < 0 ||
        weir_file_open(engine, NULL, argv[argc - 1], WEIR_OPEN_READ, 0, &file, NULL) < 0)
        return 1;
    weir_job_read(&job, file, buf, sizeof(buf), 0, on_read, NULL);
    if (weir_queue_submit(queue, jobs, 1) == 1)
        weir_queue_wait(queue, 1, WEIR_FOREVER);
    weir_queue_close(queue, WEIR_FOREVER);
    weir_file_close(file);
    weir_engine_close(engine);
    return job.result < 0;
}
