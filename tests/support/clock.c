/* SPDX-License-Identifier: MIT */
/*
 * clock.c - time that a test drives, and a device that lives in it
 */
#include "clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/common.h"

/* --- the clock --------------------------------------------------------------------------- */

static struct test_device *device_of_os(const struct wi_os *os)
{
    return WI_CONTAINER_OF((struct wi_os *)(uintptr_t)os, struct test_device, os);
}

static uint64_t clock_now(const struct wi_os *os)
{
    return device_of_os(os)->now_ns;
}

static int clock_sleep(const struct wi_os *os, uint64_t ns)
{
    device_of_os(os)->now_ns += ns;
    return 0;
}

static const struct wi_os_ops *clock_ops(void)
{
    static struct wi_os_ops ops;

    if (ops.name == NULL) {
        /* The kernel's own entries make no use of the table they are called through. */
        ops = *wi_os_posix()->ops;
        ops.name = "clock";
        ops.now_ns = clock_now;
        ops.sleep_ns = clock_sleep;
    }
    return &ops;
}

void test_device_pass(struct test_device *device, uint64_t ns)
{
    device->now_ns += ns;
}

/* --- the disk ------------------------------------------------------------------------- */

static void copy_piece(struct test_device *device, bool write, uint8_t *buf, size_t len,
                       uint64_t offset)
{
    if (device->disk == NULL) {
        if (!write)
            pattern_fill(buf, len, device->seed, offset);
    } else if (write) {
        memcpy(device->disk + offset, buf, len);
    } else {
        memcpy(buf, device->disk + offset, len);
    }
}

/* Move at most `most` bytes. Returns how many. */
static int64_t move_bytes(struct test_device *device, const struct wi_op *op, uint64_t most)
{
    bool write = op->kind == WI_OP_WRITE || op->kind == WI_OP_WRITEV;
    bool vectored = op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV;
    struct iovec one = { (void *)(uintptr_t)op->addr, op->len };
    const struct iovec *iov = vectored ? (const struct iovec *)(uintptr_t)op->addr : &one;
    uint64_t offset = op->offset % DEVICE_REGION;
    uint64_t end = write && device->disk != NULL ? device->disk_room : device->disk_size;
    uint64_t moved = 0;

    for (uint32_t i = 0; i < (vectored ? op->len : 1) && moved < most; i++) {
        uint64_t part = wi_min_u64(iov[i].iov_len, most - moved);

        part = wi_min_u64(part, offset < end ? end - offset : 0);
        if (part > 0)
            copy_piece(device, write, iov[i].iov_base, (size_t)part, offset);
        offset += part;
        moved += part;
        if (part < iov[i].iov_len)
            break;
    }
    if (write && device->disk != NULL && offset > device->disk_size && moved > 0)
        device->disk_size = offset;
    return (int64_t)moved;
}

void test_device_disk(struct test_device *device, uint64_t size, uint64_t room)
{
    free(device->disk);
    device->disk = malloc(room);
    if (device->disk == NULL)
        abort();
    memset(device->disk, 0, room);
    pattern_fill(device->disk, size, device->seed, 0);
    device->disk_size = size;
    device->disk_room = room;
}

/* --- the device ----------------------------------------------------------------------- */

static struct test_device *device_of(struct wi_null_device *device)
{
    return WI_CONTAINER_OF(device, struct test_device, device);
}

static struct device_op *add_entry(struct test_device *device, const struct wi_op *op)
{
    struct device_op *entry;

    if (device->log_count == device->log_room) {
        device->log_room = device->log_room == 0 ? 1024 : 2 * device->log_room;
        device->log = realloc(device->log, device->log_room * sizeof(*device->log));
    }
    if (device->log == NULL || device->ops == COUNT(device->open))
        abort();
    entry = &device->log[device->log_count];
    *entry = (struct device_op){
        .backend = op->backend,
        .op = op,
        .kind = op->kind,
        .fd = op->fd,
        .offset = op->offset,
        .region = (uint32_t)(op->offset / DEVICE_REGION),
        .bytes = op->len,
        .pieces = 1,
        .start_ns = device->now_ns,
        .result = -1,
        .ops_then = 1,
        .own_ops_then = 1,
        .region_ops_then = 1,
    };
    if (op->kind == WI_OP_READV || op->kind == WI_OP_WRITEV) {
        const struct iovec *iov = (const struct iovec *)(uintptr_t)op->addr;

        entry->bytes = 0;
        entry->pieces = op->len;
        for (uint32_t i = 0; i < op->len; i++)
            entry->bytes += iov[i].iov_len;
    }
    entry->bytes_then = entry->bytes;
    entry->own_bytes_then = entry->bytes;
    for (size_t i = 0; i < device->ops; i++) {
        const struct device_op *other = &device->log[device->open[i]];

        entry->ops_then++;
        entry->bytes_then += other->bytes;
        if (other->backend == entry->backend) {
            entry->own_ops_then++;
            entry->own_bytes_then += other->bytes;
        }
        if (other->region == entry->region)
            entry->region_ops_then++;
    }
    device->open[device->ops++] = device->log_count++;
    device->bytes += entry->bytes;
    device->ops_most = wi_max_u64(device->ops_most, device->ops);
    device->bytes_most = wi_max_u64(device->bytes_most, device->bytes);
    return entry;
}

static uint64_t device_start(struct wi_null_device *base, const struct wi_op *op,
                             uint64_t now_ns)
{
    struct test_device *device = device_of(base);
    struct device_op *entry = add_entry(device, op);
    uint32_t server = 0;

    for (uint32_t i = 1; i < device->width; i++) {
        if (device->busy_until_ns[i] < device->busy_until_ns[server])
            server = i;
    }
    entry->due_ns = wi_max_u64(now_ns, device->busy_until_ns[server]) + device->latency_ns;
    if (device->bytes_per_sec != 0)
        entry->due_ns += entry->bytes * WI_SEC_NS / device->bytes_per_sec;
    if (device->hangs != NULL && device->hangs(device, entry))
        entry->due_ns = UINT64_MAX;
    else
        device->busy_until_ns[server] = entry->due_ns;
    if (device->watch != NULL)
        device->watch(device, entry);
    if (device->early && (op->kind == WI_OP_READ || op->kind == WI_OP_READV))
        entry->result = move_bytes(device, op, INT64_MAX);
    return entry->due_ns;
}

static int64_t device_end(struct wi_null_device *base, const struct wi_op *op, int64_t result)
{
    struct test_device *device = device_of(base);
    struct device_op *entry = NULL;

    for (size_t i = 0; i < device->ops && entry == NULL; i++) {
        if (device->log[device->open[i]].op == op) {
            entry = &device->log[device->open[i]];
            device->open[i] = device->open[--device->ops];
        }
    }
    if (entry == NULL)
        abort();
    device->bytes -= entry->bytes;
    if (result == 0 && device->fault != NULL)
        result = device->fault(device, entry);
    else if (result == 0)
        result = INT64_MAX;
    if (result >= 0 && entry->result >= 0)
        result = result < entry->result ? result : entry->result;
    else if (result >= 0)
        result = move_bytes(device, op, (uint64_t)result);
    entry->end_ns = device->now_ns;
    entry->op = NULL;
    entry->result = result;
    return result;
}

static void device_wait(struct wi_null_device *base, uint64_t until_ns)
{
    struct test_device *device = device_of(base);

    device->waits++;
    device->now_ns = wi_max_u64(device->now_ns, until_ns);
}

void test_device_init(struct test_device *device)
{
    *device = (struct test_device){
        .device = { .start = device_start, .end = device_end, .wait = device_wait },
        .os = { .ops = clock_ops() },
        .width = 1,
        .latency_ns = 100 * TEST_US,
        .seed = 7,
        .disk_size = UINT64_MAX,
        .now_ns = 3600 * (uint64_t)WI_SEC_NS,
    };
    device->script = (struct wi_null_script){ .seed = test_seed(), .device = &device->device };
}

void test_device_fini(struct test_device *device)
{
    check(device->ops == 0);
    free(device->log);
    free(device->disk);
    device->log = NULL;
    device->disk = NULL;
}

void test_device_forget(struct test_device *device)
{
    check(device->ops == 0);
    device->log_count = 0;
    device->ops_most = 0;
    device->bytes_most = 0;
}

void test_device_engine(struct test_device *device, const struct weir_engine_options *options,
                        struct weir_engine **ret_engine)
{
    struct weir_engine_options all = { .size = sizeof(all) };
    struct wi_engine_seams seams = {
        .os = &device->os,
        .backend_os = &device->os,
        .null_script = &device->script,
        .no_inline = true,
    };

    if (options != NULL)
        all = *options;
    all.size = sizeof(all);
    all.backend = WEIR_BACKEND_NULL;
    check_code(wi_engine_open_with(&all, &seams, ret_engine, NULL), 0);
}

unsigned test_device_step(struct test_device *device, struct weir_queue *const *queues,
                          size_t count)
{
    uint64_t next_ns = device->now_ns + TEST_MS / 4;
    size_t started = device->log_count;
    size_t waiting = device->ops;
    unsigned done = 0;

    for (size_t i = 0; i < count; i++) {
        int rc = weir_queue_run(queues[i]);

        check(rc >= 0);
        done += (unsigned)rc;
    }
    if (done > 0 || device->log_count != started || device->ops != waiting)
        return done;
    for (size_t i = 0; i < device->ops; i++) {
        uint64_t due_ns = device->log[device->open[i]].due_ns;

        if (due_ns > device->now_ns && due_ns < next_ns)
            next_ns = due_ns;
    }
    device->now_ns = next_ns;
    return 0;
}
