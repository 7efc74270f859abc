/* SPDX-License-Identifier: MIT */
#include "os_test.h"

#include <ftw.h>
#include <time.h>
#include <unistd.h>

static char scratch[256];

const char *make_scratch(void)
{
    const char *base = getenv("WEIR_TEST_DIR");

    if (!base)
        base = getenv("TMPDIR");
    if (!base)
        base = "/var/tmp";
    snprintf(scratch, sizeof(scratch), "%s/weir-os-XXXXXX", base);
    assert_non_null(mkdtemp(scratch));
    return scratch;
}

const char *scratch_path(const char *name)
{
    static char paths[8][320];
    static unsigned int turn;
    char *path = paths[turn++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", scratch, name);
    return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

void remove_scratch(void)
{
    if (scratch[0])
        nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    scratch[0] = '\0';
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    const char *given = getenv("WEIR_SEED");

    if (seed == 0) {
        seed = given ? strtoull(given, NULL, 0) : 20240607;
        print_message("seed %llu (WEIR_SEED sets it)\n", (unsigned long long)seed);
    }
    return seed;
}

uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t now_ns(void)
{
    return wi_os_now(wi_os_posix());
}

uint32_t rounds(uint32_t normal)
{
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return normal / 10 > 0 ? normal / 10 : 1;
#else
    return normal;
#endif
}

struct wi_pool *make_pool(uint32_t io_threads)
{
    struct wi_pool_options options = { .threads = { io_threads, 2, 2 } };
    struct wi_pool *pool;

    assert_int_equal(wi_pool_create(&options, &pool), 0);
    return pool;
}

static void prepare(struct wi_op *op, enum wi_op_kind kind, int fd, const void *addr,
                    uint32_t len, uint64_t offset)
{
    *op = (struct wi_op){ .kind = (uint8_t)kind,
                          .addr = (uintptr_t)addr,
                          .offset = offset,
                          .len = len,
                          .fd = fd,
                          .fixed_file = -1 };
}

void prepare_read(struct wi_op *op, int fd, void *buf, uint32_t len, uint64_t offset)
{
    prepare(op, WI_OP_READ, fd, buf, len, offset);
}

void prepare_write(struct wi_op *op, int fd, const void *buf, uint32_t len, uint64_t offset)
{
    prepare(op, WI_OP_WRITE, fd, buf, len, offset);
}

void prepare_readv(struct wi_op *op, int fd, const struct iovec *iov, uint32_t count,
                   uint64_t offset)
{
    prepare(op, WI_OP_READV, fd, iov, count, offset);
}

void prepare_writev(struct wi_op *op, int fd, const struct iovec *iov, uint32_t count,
                    uint64_t offset)
{
    prepare(op, WI_OP_WRITEV, fd, iov, count, offset);
}

void prepare_call(struct wi_op *op, wi_op_call_fn call, uint8_t lane)
{
    prepare(op, WI_OP_CALL, -1, NULL, 0, 0);
    op->addr = (uintptr_t)call;
    op->lane = lane;
}

void turn_all(struct wi_backend *backend, uint32_t count)
{
    uint64_t until_ns = now_ns() + FOR_EVER_S * SECOND;

    while (count > 0) {
        struct wi_op *done = NULL;
        int rc = backend->ops->turn(backend, 1, until_ns, &done);

        if (rc == -EINTR)
            continue;
        assert_true(rc >= 0 && (uint32_t)rc <= count);
        assert_true(rc > 0 || now_ns() < until_ns);
        count -= (uint32_t)rc;
    }
}

int64_t run_op(struct wi_backend *backend, struct wi_op *op)
{
    assert_int_equal(backend->ops->start(backend, op), 0);
    turn_all(backend, 1);
    return op->result;
}

static struct gate *gate_of(const struct wi_os *os)
{
    return (struct gate *)(uintptr_t)os;
}

static int64_t gate_pread(const struct wi_os *os, int fd, void *buf, size_t len,
                          uint64_t offset)
{
    struct gate *gate = gate_of(os);

    (void)fd;
    (void)buf;
    (void)offset;
    pthread_mutex_lock(&gate->mu);
    gate->entered++;
    pthread_cond_broadcast(&gate->changed);
    while (gate->permits == 0)
        pthread_cond_wait(&gate->changed, &gate->mu);
    gate->permits--;
    gate->passed++;
    pthread_mutex_unlock(&gate->mu);
    return (int64_t)len;
}

void gate_init(struct gate *gate)
{
    memset(gate, 0, sizeof(*gate));
    gate->ops = *wi_os_posix()->ops;
    gate->ops.pread = gate_pread;
    gate->os.ops = &gate->ops;
    pthread_mutex_init(&gate->mu, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

void gate_fini(struct gate *gate)
{
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mu);
}

void gate_permit(struct gate *gate, uint32_t count)
{
    pthread_mutex_lock(&gate->mu);
    gate->permits += count;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mu);
}

void gate_wait_entered(struct gate *gate, uint32_t count)
{
    pthread_mutex_lock(&gate->mu);
    while (gate->entered < count)
        pthread_cond_wait(&gate->changed, &gate->mu);
    pthread_mutex_unlock(&gate->mu);
}
