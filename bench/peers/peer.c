/* SPDX-License-Identifier: MIT */
/*
 * peer.c - arguments, phases and output of the peers
 *
 * Phases as in `weir bench`: a warm-up of a fifth of the time (half a second at most), then
 * the measured part; both ends take clock, count and processor time together. There is
 * no second thread to sleep through it: peer_done() looks at the clock it reads anyway.
 */
#include "peer.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void peer_fail(const struct peer *peer, const char *what, int code)
{
    fprintf(stderr, "%s: %s: %s\n", peer->name, what, strerror(code < 0 ? -code : code));
    exit(1);
}

static void usage(const struct peer *peer)
{
    fprintf(stderr,
            "usage: %s --file F [--size BYTES] [--bs BYTES] [--depth N] [--wait-min N]\n"
            "       [--direct] [--seconds T]\n"
            "Reads random blocks of F and prints what `weir bench randread --json` prints.\n",
            peer->name);
    exit(2);
}

static uint64_t number(const struct peer *peer, const char *text)
{
    static const char units[] = "kmg";
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    const char *unit = *end != '\0' ? strchr(units, *end | 0x20) : NULL;

    if (unit != NULL) {
        value <<= 10 * (unit - units + 1);
        end++;
    }
    if (end == text || *end != '\0')
        usage(peer);
    return value;
}

static void take_arguments(struct peer *peer, int argc, char **argv)
{
    static const struct option options[] = {
        { "file", required_argument, NULL, 'f' },     { "size", required_argument, NULL, 's' },
        { "bs", required_argument, NULL, 'b' },       { "depth", required_argument, NULL, 'd' },
        { "wait-min", required_argument, NULL, 'w' }, { "direct", no_argument, NULL, 'D' },
        { "seconds", required_argument, NULL, 't' },  { NULL, 0, NULL, 0 },
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'f':
            peer->path = optarg;
            break;
        case 's':
            peer->size_bytes = number(peer, optarg);
            break;
        case 'b':
            peer->block_bytes = (uint32_t)number(peer, optarg);
            break;
        case 'd':
            peer->depth = (uint32_t)number(peer, optarg);
            break;
        case 'w':
            peer->wait_min = (uint32_t)number(peer, optarg);
            break;
        case 'D':
            peer->direct = true;
            break;
        case 't':
            peer->seconds = strtod(optarg, NULL);
            break;
        default:
            usage(peer);
        }
    }
    if (peer->path == NULL || optind != argc || peer->depth < 1 || peer->depth > 4096 ||
        peer->block_bytes < 1 || peer->wait_min > peer->depth || !(peer->seconds > 0.0))
        usage(peer);
}

void peer_begin(struct peer *peer, const char *name, int argc, char **argv)
{
    struct stat st;

    memset(peer, 0, sizeof(*peer));
    peer->name = name;
    peer->block_bytes = 4096;
    peer->depth = 1;
    peer->wait_min = 1;
    peer->seconds = 3.0;
    take_arguments(peer, argc, argv);

    peer->fd = open(peer->path, O_RDONLY | O_CLOEXEC | (peer->direct ? O_DIRECT : 0));
    if (peer->fd < 0 || fstat(peer->fd, &st) != 0) {
        perror(peer->path);
        exit(1);
    }
    if (peer->size_bytes == 0)
        peer->size_bytes = (uint64_t)st.st_size;
    peer->blocks = peer->size_bytes / peer->block_bytes;
    if (peer->blocks == 0 || peer->blocks > UINT32_MAX ||
        (uint64_t)st.st_size < peer->size_bytes) {
        fprintf(stderr, "%s: %s is too small\n", name, peer->path);
        exit(1);
    }
    peer->sampled = !peer->direct;
    peer->random = bench_random_seed(0);
    peer->next_ns = bench_now_ns() +
                    (uint64_t)((peer->seconds * 0.2 < 0.5 ? peer->seconds * 0.2 : 0.5) * 1e9);
}

void *peer_buffer(const struct peer *peer)
{
    size_t size = ((size_t)peer->block_bytes + 4095u) / 4096u * 4096u;
    void *buf = aligned_alloc(4096, size);

    if (buf == NULL) {
        fprintf(stderr, "%s: out of memory\n", peer->name);
        exit(1);
    }
    memset(buf, 1, size);
    return buf;
}

void peer_tick(struct peer *peer, uint64_t now_ns)
{
    if (peer->phase == PEER_STOP)
        return;
    if (peer->phase == PEER_WARM_UP) {
        peer->before.count = peer->count;
        peer->before.system_calls = peer->system_calls;
        peer->before.cpu_ns = bench_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
        peer->before.now_ns = now_ns;
        peer->next_ns = now_ns + (uint64_t)(peer->seconds * 1e9);
        peer->phase = PEER_MEASURED;
        return;
    }
    peer->after.count = peer->count;
    peer->after.system_calls = peer->system_calls;
    peer->after.cpu_ns = bench_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    peer->after.now_ns = now_ns;
    peer->next_ns = UINT64_MAX;
    peer->phase = PEER_STOP;
}

int peer_end(struct peer *peer, const char *flags)
{
    double ops = (double)(peer->after.count - peer->before.count);
    double seconds = (double)(peer->after.now_ns - peer->before.now_ns) / 1e9;
    const struct bench_histogram *latency = &peer->latency;

    if (ops < 1.0)
        ops = 1.0;
    printf(
        "{\"name\":\"peer/%s/bs=%u,qd=%u%s\",\"case\":\"randread\",\"backend\":\"%s\","
        "\"flags\":\"%s\",\"api\":\"%s\",\"size\":%llu,\"bs\":%u,\"depth\":%u,\"wait_min\":%u,"
        "\"direct\":%s,\"jobs\":1",
        peer->name, peer->block_bytes, peer->depth, peer->direct ? ",direct" : "", peer->name,
        flags, peer->name, (unsigned long long)peer->size_bytes, peer->block_bytes, peer->depth,
        peer->wait_min, peer->direct ? "true" : "false");
    printf(",\"ops\":%.0f,\"seconds\":%.6f,\"iops\":%.1f,\"mib_per_s\":%.2f", ops, seconds,
           ops / seconds, ops / seconds * peer->block_bytes / (1024.0 * 1024.0));
    printf(",\"lat_us\":{\"p50\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
           bench_histogram_us(latency, 0.5), bench_histogram_us(latency, 0.95),
           bench_histogram_us(latency, 0.99), bench_histogram_us(latency, 0.999),
           (double)latency->max_ns / 1000.0);
    printf(",\"cpu_us_per_op\":%.4f",
           (double)(peer->after.cpu_ns - peer->before.cpu_ns) / 1000.0 / ops);
    if (peer->system_calls > 0)
        printf(",\"syscalls_per_op\":%.5f",
               (double)(peer->after.system_calls - peer->before.system_calls) / ops);
    else
        printf(",\"syscalls_per_op\":null");
    printf(",\"allocs_per_op\":null}\n");
    return fflush(stdout) != 0;
}
