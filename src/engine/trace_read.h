/* SPDX-License-Identifier: MIT */
/*
 * trace_read.h - the reader of traces, over an os table; for tests
 */
#ifndef WEIR_ENGINE_TRACE_READ_H
#define WEIR_ENGINE_TRACE_READ_H

#include <weir/trace.h>

#include "os/os.h"

/* As weir_trace_reader_open. `os` is borrowed until close. */
int wi_trace_reader_open(const struct wi_os *os, const char *path,
                         struct weir_trace_reader **ret_reader, struct weir_error *error);

#endif
