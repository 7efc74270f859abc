/* SPDX-License-Identifier: MIT */
/*
 * backend_uring_none.c - what stands in for backend_uring.c in a build without liburing
 */
#include "backend.h"

#include <stdio.h>

int wi_backend_uring_open(const struct wi_backend_options *options,
                          struct wi_backend **ret_backend)
{
    (void)options;
    (void)ret_backend;
    return -EOPNOTSUPP;
}

void wi_uring_probe(void *region, size_t region_size, struct wi_uring_probe *ret_probe)
{
    (void)region;
    (void)region_size;
    *ret_probe = (struct wi_uring_probe){ .code = -EOPNOTSUPP };
    snprintf(ret_probe->why, sizeof(ret_probe->why), "built without io_uring");
    snprintf(ret_probe->cure, sizeof(ret_probe->cure),
             "install liburing 2.3 or later and build with -During=enabled");
}
