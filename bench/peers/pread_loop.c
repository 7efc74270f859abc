/* SPDX-License-Identifier: MIT */
/*
 * pread_loop.c - random reads by a loop around pread(2)
 *
 * The question: what does one blocking read cost with nothing but the C library around it?
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "peer.h"

int main(int argc, char **argv)
{
    static struct peer peer;
    uint64_t start_ns;
    void *buf;

    peer_begin(&peer, "pread_loop", argc, argv);
    buf = peer_buffer(&peer);
    start_ns = bench_now_ns();
    while (peer.phase != PEER_STOP) {
        ssize_t n = pread(peer.fd, buf, peer.block_bytes, (off_t)peer_offset(&peer));

        peer.system_calls++;
        if (n != (ssize_t)peer.block_bytes)
            peer_fail(&peer, "pread", n < 0 ? errno : EIO);
        start_ns = peer_done(&peer, start_ns);
    }
    return peer_end(&peer, "");
}
