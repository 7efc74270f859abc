/* SPDX-License-Identifier: MIT */
/*
 * uv_read.c - random reads by libuv's uv_fs_read
 *
 * The question: what does the interface most programs use today cost? `depth` requests
 * that start themselves again in their callback, on libuv's own pool with its own default
 * of four threads (UV_THREADPOOL_SIZE changes it).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

#include "peer.h"

static struct peer peer;

struct slot {
    uv_fs_t request;
    uv_buf_t buf;
    uint64_t start_ns;
};

static void on_read(uv_fs_t *request);

static void start(struct slot *slot)
{
    int rc = uv_fs_read(uv_default_loop(), &slot->request, peer.fd, &slot->buf, 1,
                        (int64_t)peer_offset(&peer), on_read);

    if (rc < 0)
        peer_fail(&peer, "uv_fs_read", rc);
}

static void on_read(uv_fs_t *request)
{
    struct slot *slot = request->data;

    if (request->result != (ssize_t)peer.block_bytes)
        peer_fail(&peer, "read", request->result < 0 ? (int)request->result : EIO);
    uv_fs_req_cleanup(request);
    slot->start_ns = peer_done(&peer, slot->start_ns);
    if (peer.phase != PEER_STOP)
        start(slot);
}

int main(int argc, char **argv)
{
    struct slot *slots;

    peer_begin(&peer, "uv_read", argc, argv);
    slots = calloc(peer.depth, sizeof(*slots));
    if (slots == NULL)
        peer_fail(&peer, "memory", ENOMEM);
    for (uint32_t i = 0; i < peer.depth; i++) {
        slots[i].request.data = &slots[i];
        slots[i].buf = uv_buf_init(peer_buffer(&peer), peer.block_bytes);
        slots[i].start_ns = bench_now_ns();
        start(&slots[i]);
    }
    (void)uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    return peer_end(&peer, "");
}
