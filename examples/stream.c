/* SPDX-License-Identifier: MIT */
/*
 * stream.c - count the lines of a file, reading ahead of the counting
 */
#include <stdio.h>
#include <string.h>
#include <weir/weir.h>

static unsigned long count_lines(const char *text, size_t len)
{
    unsigned long lines = 0;

    for (const char *at = text; (at = memchr(at, '\n', len - (size_t)(at - text))); at++)
        lines++;
    return lines;
}

int main(int argc, char **argv)
{
    struct weir_engine *engine;
    struct weir_queue *queue;
    struct weir_file *file;
    struct weir_stream *stream;
    struct weir_stream_info info = { .size = sizeof(info) };
    struct weir_view piece;
    unsigned long lines = 0;
    int rc;

    if (weir_engine_open(NULL, &engine, NULL) < 0 ||
        weir_queue_open(engine, NULL, &queue) < 0 ||
        weir_file_open(engine, NULL, argv[argc - 1], WEIR_OPEN_READ, 0, &file, NULL) < 0 ||
        weir_stream_open(queue, file, NULL, &stream) < 0)
        return 1;
    while ((rc = weir_stream_next(stream, &piece, WEIR_FOREVER)) > 0)
        lines += count_lines(piece.data, piece.len);
    weir_stream_info(stream, &info);
    if (rc == 0)
        printf("%lu lines in %llu pieces, %llu of them waited for\n", lines,
               (unsigned long long)info.delivered, (unsigned long long)info.waits);
    else
        fprintf(stderr, "%s\n", weir_code_text(rc));
    weir_stream_close(stream);
    weir_file_close(file);
    weir_queue_close(queue, WEIR_FOREVER);
    weir_engine_close(engine);
    return rc < 0;
}
