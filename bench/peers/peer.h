/* SPDX-License-Identifier: MIT */
/*
 * peer.h - what the peers of `weir bench` share: arguments, phases, timing, output
 *
 * A peer is the shortest honest program that does the same work another way. It has the
 * options of `weir bench` that make sense for it and prints the same JSON keys. Clock,
 * histogram, random numbers and the rule for what is timed are those of `weir bench`
 * itself (src/cli/bench_measure.h), so measuring costs the same on both sides.
 */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bench_measure.h"

#define PEER_SAMPLE_EVERY 17u

enum peer_phase {
    PEER_WARM_UP = 0,
    PEER_MEASURED,
    PEER_STOP
};

struct peer {
    /* set from the arguments */
    const char *name;
    const char *path;
    uint64_t size_bytes;
    uint32_t block_bytes;
    uint32_t depth;
    uint32_t wait_min;
    double seconds;
    bool direct;
    bool sampled; /* page-cached: every 17th operation is timed */
    int fd;
    uint64_t blocks;

    /* the loop's */
    enum peer_phase phase;
    uint64_t count;
    uint64_t system_calls;
    uint64_t random;
    uint64_t next_ns; /* when the phase ends */
    struct {
        uint64_t now_ns;
        uint64_t cpu_ns;
        uint64_t count;
        uint64_t system_calls;
    } before, after;
    struct bench_histogram latency;
};

/* Read the arguments, open the file, start the warm-up. Exits with 1 or 2 and a message. */
void peer_begin(struct peer *peer, const char *name, int argc, char **argv);

/* A buffer for one operation, touched. Exits if there is none. */
void *peer_buffer(const struct peer *peer);

/* Print the result as one line of JSON. Returns the exit status. */
int peer_end(struct peer *peer, const char *flags);

/* Exit with "NAME: what: text of code". */
void peer_fail(const struct peer *peer, const char *what, int code) __attribute__((noreturn));

/* Move to the next phase if its time has come. */
void peer_tick(struct peer *peer, uint64_t now_ns);

static inline uint64_t peer_offset(struct peer *peer)
{
    return bench_random_below(&peer->random, peer->blocks) * peer->block_bytes;
}

/* An operation that started at `start_ns` (0: not timed) is done. Returns the `start_ns` of
 * the one that takes its place. */
static inline uint64_t peer_done(struct peer *peer, uint64_t start_ns)
{
    uint64_t now_ns = 0;

    peer->count++;
    if (start_ns != 0) {
        now_ns = bench_now_ns();
        if (peer->phase == PEER_MEASURED)
            bench_histogram_add(&peer->latency, now_ns - start_ns);
        if (now_ns >= peer->next_ns)
            peer_tick(peer, now_ns);
    }
    if (!peer->sampled)
        return now_ns;
    if (peer->count % PEER_SAMPLE_EVERY == 0)
        return now_ns != 0 ? now_ns : bench_now_ns();
    return 0;
}

#endif
