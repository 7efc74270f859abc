/* SPDX-License-Identifier: MIT */
/*
 * weir.h - the whole public interface
 *
 *   base.h     version, error codes, the error record, logging
 *   engine.h   the engine: what it runs on, buffers, the pool
 *   file.h     files, and the blocking calls on them
 *   job.h      one asynchronous operation, and how to prepare it
 *   queue.h    one thread's way in: submit, run, wait, cancel, post
 *   view.h     the block cache: reading without copying
 *   stream.h   look ahead of a reader that knows where it is going
 *   stats.h    what the engine has done and is doing
 *   trace.h    a record of every operation
 *   limiter.h  back-pressure around work of your own
 *   metric.h   latencies of your own code
 *   cache.h    a cache for values of your own
 *   copy.h     copying files and trees
 *
 * Read them in this order. A first program is in the README.
 */
#ifndef WEIR_WEIR_H
#define WEIR_WEIR_H

#include <weir/base.h>
#include <weir/cache.h>
#include <weir/copy.h>
#include <weir/engine.h>
#include <weir/file.h>
#include <weir/job.h>
#include <weir/limiter.h>
#include <weir/metric.h>
#include <weir/queue.h>
#include <weir/stats.h>
#include <weir/stream.h>
#include <weir/trace.h>
#include <weir/view.h>

#endif
