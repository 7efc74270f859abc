/* SPDX-License-Identifier: MIT */
/*
 * uring_loop.c - random reads by the shortest loop that io_uring allows
 *
 * The question: what does the ring itself cost, with nobody's library in between? Everything
 * that helps is on: registered file, buffers and ring descriptor, SINGLE_ISSUER and
 * DEFER_TASKRUN. One io_uring_submit_and_wait a turn hands over what the last turn
 * prepared and waits for `wait_min`. No errors are retried: any short read ends the program.
 */
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>

#include "peer.h"

struct slot {
    uint64_t start_ns;
    void *buf;
};

static void prepare(struct peer *peer, struct io_uring *ring, struct slot *slots,
                    uint32_t index)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

    if (sqe == NULL) /* cannot be: the ring has an entry for each slot */
        peer_fail(peer, "io_uring_get_sqe", EBUSY);
    io_uring_prep_read_fixed(sqe, 0, slots[index].buf, peer->block_bytes, peer_offset(peer),
                             (int)index);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, index);
}

static void reap(struct peer *peer, struct io_uring *ring, struct slot *slots)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    unsigned reaped = 0;

    io_uring_for_each_cqe(ring, head, cqe)
    {
        struct slot *slot = &slots[cqe->user_data];

        if (cqe->res != (int)peer->block_bytes)
            peer_fail(peer, "read", cqe->res < 0 ? cqe->res : EIO);
        slot->start_ns = peer_done(peer, slot->start_ns);
        prepare(peer, ring, slots, (uint32_t)cqe->user_data);
        reaped++;
    }
    io_uring_cq_advance(ring, reaped);
}

int main(int argc, char **argv)
{
    static struct peer peer;
    struct io_uring_params params = { .flags = IORING_SETUP_SINGLE_ISSUER |
                                               IORING_SETUP_DEFER_TASKRUN };
    struct io_uring ring;
    static struct iovec *iov; /* static: the kernel's until the process ends */
    static struct slot *slots;
    int rc;

    peer_begin(&peer, "uring_loop", argc, argv);
    rc = io_uring_queue_init_params(peer.depth, &ring, &params);
    if (rc < 0)
        peer_fail(&peer, "io_uring_setup", rc);
    slots = calloc(peer.depth, sizeof(*slots));
    iov = calloc(peer.depth, sizeof(*iov));
    if (slots == NULL || iov == NULL)
        peer_fail(&peer, "memory", ENOMEM);
    for (uint32_t i = 0; i < peer.depth; i++) {
        slots[i].buf = peer_buffer(&peer);
        iov[i].iov_base = slots[i].buf;
        iov[i].iov_len = peer.block_bytes;
    }
    rc = io_uring_register_files(&ring, &peer.fd, 1);
    if (rc == 0)
        rc = io_uring_register_buffers(&ring, iov, peer.depth);
    if (rc != 0)
        peer_fail(&peer, "io_uring_register", rc);
    (void)io_uring_register_ring_fd(&ring);

    for (uint32_t i = 0; i < peer.depth; i++) {
        slots[i].start_ns = bench_now_ns();
        prepare(&peer, &ring, slots, i);
    }
    while (peer.phase != PEER_STOP) {
        peer.system_calls++;
        rc = io_uring_submit_and_wait(&ring, peer.wait_min);
        if (rc < 0 && rc != -EINTR)
            peer_fail(&peer, "io_uring_enter", rc);
        reap(&peer, &ring, slots);
    }
    /* The ring and its reads end with the process; the buffers are never freed before. */
    return peer_end(&peer, "SINGLE_ISSUER|DEFER_TASKRUN");
}
