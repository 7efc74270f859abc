/* SPDX-License-Identifier: MIT */
/*
 * info.h - what info_path.c finds out for info.c
 */
#ifndef INFO_H
#define INFO_H

#include "cli.h"

/* What a probe said. */
enum info_answer {
    INFO_UNKNOWN = 0, /* could not be tried */
    INFO_NO,
    INFO_YES
};

struct info_path {
    const char *path;
    char type[32]; /* "ext4", "0x6969" */
    uint64_t bytes_total;
    uint64_t bytes_free; /* for whoever asks, not for root only */
    uint64_t files_free;
    bool read_only;
    bool probed_by_writing; /* else only what reading shows is known */
    char probe_problem[96]; /* why not; "" if nothing went wrong */
    enum info_answer direct;
    uint32_t direct_memory_align;
    uint32_t direct_offset_align;
    enum info_answer nowait;
    enum info_answer dontcache;
    enum info_answer tmpfile;
    enum info_answer reflink;
    enum info_answer seek_hole;
};

/* Look at the file system of `path`. Returns 0 or a positive errno. What it makes for trying
 * has no name, or loses it at once. */
int info_path_look(const char *path, struct info_path *info);

const char *info_answer_text(enum info_answer answer);

#endif
