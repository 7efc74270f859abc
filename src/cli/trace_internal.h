/* SPDX-License-Identifier: MIT */
/*
 * trace_internal.h - what the files of `weir trace` share
 *
 *   trace.c          arguments, reading, `show` line by line
 *   trace_summary.c  `show --summary`
 *   trace_replay.c   `replay`
 */
#ifndef CLI_TRACE_INTERNAL_H
#define CLI_TRACE_INTERNAL_H

#include "cli.h"

#define VERB "trace"

struct trace_arguments {
    const char *path;
    bool json;

    /* show */
    bool summary;

    /* replay */
    const char **maps; /* OLD=NEW */
    size_t maps_count;
    const char *root;
    const char *scratch;
    double speed; /* 0: as fast as the depth allows */
    uint32_t depth;
    uint32_t backend;
    bool dry_run;
    bool writes;
};

/* A trace that is read, with what is wrong with it told on standard error. */
struct trace_input {
    struct weir_trace_reader *reader;
    int status; /* CLI_FAILED after damage */
    bool quiet; /* what is wrong was told before */
    uint64_t troubles;
    struct trace_waiting *heap; /* records that wait for earlier ones */
    size_t heap_count;
    uint64_t heap_order;
    bool ended;
};

/* False, after telling why, if it can't be read at all. To be closed in any case. */
bool trace_input_open(struct trace_input *input, const char *path);
void trace_input_close(struct trace_input *input);
/* The next record as it stands in the file. False at the end. */
bool trace_input_next(struct trace_input *input, struct weir_trace_record *ret_record);
/* The next in the order of submits: for that, up to 65,536 records wait for earlier ones. Of one
 * trace use either this or the above. */
bool trace_input_next_submitted(struct trace_input *input,
                                struct weir_trace_record *ret_record);
/* At the end: what was dropped while the trace was written is told too. */
void trace_input_tell_dropped(const struct trace_input *input);

/* What a record's operation is, for people and programs: "read", "op 77". */
#define TRACE_NAME 24
const char *trace_op_name(char buf[TRACE_NAME], uint8_t op);
const char *trace_class_name(char buf[TRACE_NAME], uint8_t io_class);
static inline bool trace_op_reads(uint8_t op)
{
    return op == WEIR_OP_READ || op == WEIR_OP_READV || op == WEIR_OP_VIEW ||
           op == WEIR_OP_READ_MANY;
}
static inline bool trace_op_writes(uint8_t op)
{
    return op == WEIR_OP_WRITE || op == WEIR_OP_WRITEV;
}
static inline bool trace_op_syncs(uint8_t op)
{
    return op == WEIR_OP_FSYNC || op == WEIR_OP_FDATASYNC;
}

/* Each returns the exit status. */
int trace_show_summary(const struct trace_arguments *arguments);
int trace_replay(const struct trace_arguments *arguments);

#endif
