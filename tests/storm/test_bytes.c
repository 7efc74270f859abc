/* SPDX-License-Identifier: MIT */
/*
 * test_bytes.c - the storm with bytes: cache, prefetch and merging on, every byte checked
 *
 * Two owners, each with a queue after the other on one engine, read and write the same two
 * files through three handles: cached, not cached (of the same file), cached and direct. Reads
 * are random, in order, strided, of many ranges, views, by jobs and by blocking calls; some are
 * cancelled or run out of time; queues are closed with all of that in the air. The cache is
 * smaller than the files, every round has another policy, and some have fewer descriptors than
 * handles.
 *
 * Each word of a file holds its unit's number and version. A unit is written by one owner only,
 * one write at a time. So whoever reads knows the least version that it may see (the last one
 * whose write was done before the read began) and the highest (the last one given out before
 * the read was done). A view's bytes may not change until it is released.
 *
 *   WEIR_SEED         what happens; threads still interleave as they like
 *   WEIR_STORM_JOBS   how many jobs in all for each backend, 60,000
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

enum {
    OWNERS = 2,
    SLOTS = 48,
    VIEWS = 6,
    ROUNDS = 5,
    UNIT = 4096,
    GROUP = 8, /* units in a row that belong to one owner */
    UNITS = 768,
    FILES = 2,
    HANDLES = 3,
    RANGES = 20,
    BUFFER = 24 * UNIT
};
#define FILE_BYTES ((uint64_t)UNITS * UNIT)

struct storm;
struct owner;

struct handle {
    struct weir_file *file;
    unsigned number; /* of the file */
    bool cached;
};

struct slot {
    struct weir_job job;
    struct owner *owner;
    struct handle *handle;
    bool taken;
    bool cancelled;
    bool write;
    uint8_t *buf; /* BUFFER bytes, aligned for direct writes */
    uint64_t offset;
    size_t len;
    struct weir_range ranges[RANGES];
    struct weir_view view;
    uint32_t least[UNITS]; /* of the units it reads */
};

struct held_view {
    struct weir_view view;
    uint64_t sum;
};

struct owner {
    struct storm *storm;
    unsigned number;
    struct test_rng rng;
    struct weir_queue *queue;
    struct slot slots[SLOTS];
    struct held_view views[VIEWS];
    bool writing[FILES][UNITS]; /* of its own units */
    uint64_t next[HANDLES];     /* where it reads in order */
    uint64_t left;
    uint64_t taken, done;
    bool closing;
};

struct storm {
    struct weir_engine *engine;
    struct handle handles[HANDLES];
    struct owner owners[OWNERS];
    bool moves;                   /* the backend moves bytes */
    uint32_t given[FILES][UNITS]; /* atomic: highest version handed out */
    uint32_t ended[FILES][UNITS]; /* atomic: highest version whose write is done */
    unsigned wrong;               /* atomic */
    char first_wrong[240];
};

static struct {
    uint64_t checked, writes, cancelled, expired, views, blocking, closes;
} tally;

__attribute__((format(printf, 2, 3))) static void complain(struct storm *storm,
                                                           const char *format, ...)
{
    va_list arguments;

    if (__atomic_fetch_add(&storm->wrong, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    va_start(arguments, format);
    (void)vsnprintf(storm->first_wrong, sizeof(storm->first_wrong), format, arguments);
    va_end(arguments);
}

static void count(uint64_t *counter, uint64_t much)
{
    (void)__atomic_add_fetch(counter, much, __ATOMIC_RELAXED);
}

static uint64_t below(struct owner *owner, uint64_t limit)
{
    return rng_below(&owner->rng, limit);
}

/* --- what bytes say ------------------------------------------------------------------- */

static void fill_unit(uint8_t *buf, unsigned file, uint32_t unit, uint32_t version)
{
    uint32_t name = file << 16 | unit;

    for (size_t i = 0; i < UNIT; i += 8) {
        memcpy(buf + i, &name, 4);
        memcpy(buf + i + 4, &version, 4);
    }
}

/* What must be seen at least by a read that begins now. */
static void note_least(const struct storm *storm, unsigned file, uint64_t offset, size_t len,
                       uint32_t *least)
{
    for (uint64_t unit = offset / UNIT; unit * UNIT < offset + len && unit < UNITS; unit++)
        least[unit] = __atomic_load_n(&storm->ended[file][unit], __ATOMIC_ACQUIRE);
}

/* The words that lie wholly in [offset, offset + len). */
static void check_words(struct storm *storm, unsigned file, uint64_t offset, const uint8_t *buf,
                        size_t len, const uint32_t *least, const char *what)
{
    if (!storm->moves)
        return;
    for (uint64_t at = (offset + 7) / 8 * 8; at + 8 <= offset + len; at += 8) {
        uint64_t unit = at / UNIT;
        uint32_t most = __atomic_load_n(&storm->given[file][unit], __ATOMIC_ACQUIRE);
        uint32_t name;
        uint32_t version;

        memcpy(&name, buf + (at - offset), 4);
        memcpy(&version, buf + (at - offset) + 4, 4);
        if (name != (file << 16 | (uint32_t)unit) || version < least[unit] || version > most) {
            complain(storm,
                     "%s: at %" PRIu64 " of file %u: unit %u version %u, not unit %" PRIu64
                     " version %u to %u",
                     what, at, file, name & 0xffff, version, unit, least[unit], most);
            return;
        }
    }
    count(&tally.checked, len);
}

/* --- views ---------------------------------------------------------------------------- */

static uint64_t sum_of(const struct weir_view *view)
{
    const uint8_t *data = view->data;
    uint64_t sum = view->len;

    for (size_t i = 0; i < view->len; i++)
        sum = sum * 31 + data[i];
    return sum;
}

static void release_one(struct owner *owner, struct held_view *held)
{
    if (held->view.data == NULL)
        return;
    if (owner->storm->moves && sum_of(&held->view) != held->sum)
        complain(owner->storm, "the bytes of a view have changed");
    weir_view_release(&held->view);
    held->view.data = NULL;
}

static void hold_view(struct owner *owner, struct handle *handle, struct weir_view *view,
                      const uint32_t *least)
{
    struct held_view *held = &owner->views[below(owner, VIEWS)];

    count(&tally.views, 1);
    if (view->len == 0)
        return;
    release_one(owner, held);
    check_words(owner->storm, handle->number, view->offset, view->data, view->len, least,
                "a view");
    held->view = *view;
    held->sum = owner->storm->moves ? sum_of(view) : 0;
}

/* --- jobs ----------------------------------------------------------------------------- */

static void on_done(struct weir_job *job);

static void prepare_write(struct owner *owner, struct slot *slot)
{
    struct storm *storm = owner->storm;
    unsigned file = slot->handle->number;
    uint32_t groups = UNITS / GROUP / OWNERS;
    uint32_t first = ((uint32_t)below(owner, groups) * OWNERS + owner->number) * GROUP;
    uint32_t units = 1 + (uint32_t)below(owner, GROUP);

    first += (uint32_t)below(owner, GROUP - units + 1);
    for (uint32_t i = 0; i < units; i++) {
        if (owner->writing[file][first + i]) {
            slot->write = false; /* one at a time: becomes a sync */
            weir_job_sync(&slot->job, slot->handle->file, 0, on_done, slot);
            slot->job.flags = WEIR_JOB_BARRIER;
            return;
        }
    }
    slot->offset = (uint64_t)first * UNIT;
    slot->len = (size_t)units * UNIT;
    slot->write = true;
    for (uint32_t i = 0; i < units; i++) {
        owner->writing[file][first + i] = true;
        fill_unit(slot->buf + (size_t)i * UNIT, file, first + i,
                  __atomic_add_fetch(&storm->given[file][first + i], 1, __ATOMIC_ACQ_REL));
    }
    weir_job_write(&slot->job, slot->handle->file, slot->buf, slot->len, slot->offset, on_done,
                   slot);
}

/* The end of a write, or one that was not taken. */
static void end_write(struct slot *slot, bool succeeded)
{
    struct storm *storm = slot->owner->storm;
    unsigned file = slot->handle->number;

    for (uint64_t unit = slot->offset / UNIT; unit * UNIT < slot->offset + slot->len; unit++) {
        uint32_t version = __atomic_load_n(&storm->given[file][unit], __ATOMIC_RELAXED);

        slot->owner->writing[file][unit] = false;
        if (succeeded)
            __atomic_store_n(&storm->ended[file][unit], version, __ATOMIC_RELEASE);
    }
    count(&tally.writes, 1);
}

/* Where to read, and how much: at random, in order, or every so often. */
static void choose_place(struct owner *owner, struct slot *slot, size_t most)
{
    uint64_t *next = &owner->next[slot->handle - owner->storm->handles];
    uint64_t dice = below(owner, 10);

    if (dice < 5) {
        slot->len = 2 * UNIT;
        slot->offset = *next % (FILE_BYTES - 2 * UNIT);
        *next = slot->offset + (owner->number == 0 ? slot->len : 5 * slot->len);
    } else {
        slot->len = dice < 8 ? 1 + below(owner, 6000) : 1 + below(owner, most);
        slot->offset = below(owner, FILE_BYTES - slot->len);
    }
    if (below(owner, 400) == 0)
        *next = below(owner, FILE_BYTES);
}

static void prepare_many(struct owner *owner, struct slot *slot)
{
    size_t ranges = 1 + below(owner, RANGES);
    uint64_t base = below(owner, FILE_BYTES - 40 * (uint64_t)UNIT);

    for (size_t i = 0; i < ranges; i++)
        slot->ranges[i] = (struct weir_range){ slot->buf + i * UNIT,
                                               1 + below(owner, UNIT),
                                               base + below(owner, 39 * UNIT),
                                               -1,
                                               { 0 } };
    weir_job_prepare(&slot->job, WEIR_OP_READ_MANY, slot->handle->file, on_done, slot);
    slot->job.buf = slot->ranges;
    slot->job.len = ranges;
    note_least(owner->storm, slot->handle->number, base, 40 * (size_t)UNIT, slot->least);
}

static void prepare(struct owner *owner, struct slot *slot)
{
    uint64_t dice = below(owner, 100);

    slot->owner = owner;
    slot->handle = &owner->storm->handles[below(owner, HANDLES)];
    slot->write = false;
    slot->cancelled = false;
    if (dice < 25) {
        prepare_write(owner, slot);
    } else if (dice < 35) {
        prepare_many(owner, slot);
    } else if (dice < 45 && slot->handle->cached) {
        choose_place(owner, slot, 3 * UNIT);
        weir_job_prepare(&slot->job, WEIR_OP_VIEW, slot->handle->file, on_done, slot);
        slot->job.offset = slot->offset;
        slot->job.len = slot->len;
        slot->job.buf = &slot->view;
    } else if (dice < 47) {
        weir_job_prepare(&slot->job, WEIR_OP_ADVISE, slot->handle->file, on_done, slot);
        slot->job.mode = below(owner, 3) ? WEIR_ADVICE_WILLNEED : WEIR_ADVICE_DONTNEED;
        slot->job.offset = below(owner, FILE_BYTES);
        slot->job.len = 1 + below(owner, 200000);
    } else {
        choose_place(owner, slot, BUFFER);
        weir_job_read(&slot->job, slot->handle->file, slot->buf, slot->len, slot->offset,
                      on_done, slot);
        if (slot->handle->cached && below(owner, 10) == 0)
            slot->job.flags = WEIR_JOB_ONCE;
    }
    if (slot->job.op == WEIR_OP_READ || slot->job.op == WEIR_OP_VIEW)
        note_least(owner->storm, slot->handle->number, slot->offset, slot->len, slot->least);
    slot->job.io_class = (uint8_t)below(owner, WEIR_CLASSES);
    slot->job.sequence = below(owner, 3) ? 0 : (uint32_t)below(owner, 8);
    if (below(owner, 30) == 0)
        slot->job.timeout_ns = 1 + below(owner, TEST_MS);
}

static void submit_one(struct owner *owner)
{
    struct slot *slot = &owner->slots[below(owner, SLOTS)];
    struct weir_job *job = &slot->job;
    int rc;

    if (slot->taken || owner->left == 0)
        return;
    prepare(owner, slot);
    slot->taken = true;
    rc = weir_queue_submit(owner->queue, &job, 1);
    if (rc == 1) {
        owner->left--;
        owner->taken++;
        return;
    }
    slot->taken = false;
    if (slot->write)
        end_write(slot, false);
    if (rc != -EBUSY && !(rc == -ESHUTDOWN && owner->closing))
        complain(owner->storm, "submit: %s", weir_code_name(rc));
}

static void check_result(struct slot *slot)
{
    struct owner *owner = slot->owner;
    const struct weir_job *job = &slot->job;
    unsigned file = slot->handle->number;

    switch (job->op) {
    case WEIR_OP_READ:
    case WEIR_OP_WRITE:
        if (job->result != (int64_t)slot->len)
            complain(owner->storm, "%s of %zu: %" PRId64, weir_op_name(job->op), slot->len,
                     job->result);
        else if (job->op == WEIR_OP_READ)
            check_words(owner->storm, file, slot->offset, slot->buf, slot->len, slot->least,
                        slot->handle->cached ? "a cached read" : "a read");
        break;
    case WEIR_OP_READ_MANY:
        for (size_t i = 0; i < job->len; i++) {
            const struct weir_range *range = &slot->ranges[i];

            if (range->result != (int64_t)range->len)
                complain(owner->storm, "a range of %zu: %" PRId64, range->len, range->result);
            else
                check_words(owner->storm, file, range->offset, range->buf, range->len,
                            slot->least, "a range");
        }
        break;
    case WEIR_OP_VIEW:
        hold_view(owner, slot->handle, &slot->view, slot->least);
        break;
    default:
        break;
    }
}

static void on_done(struct weir_job *job)
{
    struct slot *slot = job->arg;
    struct owner *owner = slot->owner;

    if (!slot->taken)
        complain(owner->storm, "a job was done twice");
    slot->taken = false;
    owner->done++;
    if (slot->write)
        end_write(slot, job->result == (int64_t)slot->len);
    if (job->result >= 0)
        check_result(slot);
    else if (job->result == -ECANCELED && (slot->cancelled || owner->closing))
        count(&tally.cancelled, 1);
    else if (job->result == -ETIMEDOUT && job->timeout_ns != 0)
        count(&tally.expired, 1);
    else if (!(job->op == WEIR_OP_VIEW && job->result == -ENOBUFS))
        complain(owner->storm, "%s: %s", weir_op_name(job->op), weir_code_name(job->result));
    if (!owner->closing && below(owner, 3) == 0)
        submit_one(owner);
}

/* --- blocking calls ------------------------------------------------------------------- */

static void block_once(struct owner *owner)
{
    struct handle *handle = &owner->storm->handles[below(owner, HANDLES)];
    uint64_t offset = below(owner, FILE_BYTES - 3 * UNIT);
    size_t len = 1 + below(owner, 3 * UNIT);
    uint32_t least[UNITS];
    uint8_t buf[3 * UNIT];
    struct weir_view view;
    int64_t rc;

    note_least(owner->storm, handle->number, offset, len, least);
    count(&tally.blocking, 1);
    switch (handle->cached ? below(owner, 3) : 0) {
    case 0:
        rc = weir_file_read(handle->file, buf, len, offset);
        if (rc != (int64_t)len)
            complain(owner->storm, "a blocking read of %zu: %" PRId64, len, rc);
        else
            check_words(owner->storm, handle->number, offset, buf, len, least,
                        "a blocking read");
        return;
    case 1:
        rc = weir_view_try(handle->file, offset, len, &view);
        break;
    default:
        rc = weir_view_get(handle->file, offset, len, &view, NULL);
        break;
    }
    if (rc == 0)
        hold_view(owner, handle, &view, least);
    else if (rc != -EAGAIN && rc != -ENOBUFS)
        complain(owner->storm, "a view: %s", weir_code_name(rc));
}

/* --- the threads ---------------------------------------------------------------------- */

static void take_turn(struct owner *owner)
{
    uint64_t dice = below(owner, 100);
    int rc = 0;

    if (dice < 30) {
        rc = weir_queue_run(owner->queue);
    } else if (dice < 90) {
        rc = weir_queue_wait(owner->queue, 1 + (uint32_t)below(owner, 8),
                             below(owner, 2 * TEST_MS));
    } else if (owner->storm->moves) {
        block_once(owner);
    }
    if (rc < 0 && rc != -EINTR)
        complain(owner->storm, "a turn returned %s", weir_code_name(rc));
}

static void *run_owner(void *arg)
{
    struct owner *owner = arg;
    struct weir_queue_options options = {
        .size = sizeof(options),
        .depth = 2 + (uint32_t)below(owner, 40),
        .device_bytes = below(owner, 2) ? 0 : 256 * KIB,
    };
    int rc = weir_queue_open(owner->storm->engine, &options, &owner->queue);

    if (rc != 0) {
        complain(owner->storm, "queue: %s", weir_code_name(rc));
        return NULL;
    }
    while (owner->left > 0 && __atomic_load_n(&owner->storm->wrong, __ATOMIC_RELAXED) == 0) {
        struct slot *slot = &owner->slots[below(owner, SLOTS)];

        for (uint64_t i = below(owner, 6); i > 0; i--)
            submit_one(owner);
        if (slot->taken && below(owner, 8) == 0) {
            slot->cancelled = true;
            rc = weir_queue_cancel(owner->queue, slot->job.id);
            if (rc != 0 && rc != -EALREADY)
                complain(owner->storm, "cancel: %s", weir_code_name(rc));
        }
        take_turn(owner);
    }
    owner->closing = true;
    while ((rc = weir_queue_close(owner->queue, TEST_LONG)) == -EBUSY)
        continue;
    if (rc != 0)
        complain(owner->storm, "close: %s", weir_code_name(rc));
    count(&tally.closes, 1);
    if (owner->done != owner->taken)
        complain(owner->storm, "%" PRIu64 " jobs taken, %" PRIu64 " done", owner->taken,
                 owner->done);
    for (size_t i = 0; i < VIEWS; i++)
        release_one(owner, &owner->views[i]);
    return NULL;
}

/* --- a round -------------------------------------------------------------------------- */

static void make_files(const char *const *paths)
{
    uint8_t *units = malloc(FILE_BYTES);

    assert_non_null(units);
    for (unsigned file = 0; file < FILES; file++) {
        FILE *out = fopen(paths[file], "wb");

        assert_non_null(out);
        for (uint32_t unit = 0; unit < UNITS; unit++)
            fill_unit(units + (size_t)unit * UNIT, file, unit, 0);
        check(fwrite(units, 1, FILE_BYTES, out) == FILE_BYTES);
        check(fclose(out) == 0);
    }
    free(units);
}

static void open_handle(struct storm *storm, struct handle *handle, unsigned number,
                        const char *path, uint32_t flags)
{
    flags |= WEIR_OPEN_READ | WEIR_OPEN_WRITE;
    handle->number = number;
    handle->cached = (flags & WEIR_OPEN_CACHED) != 0;
    if ((flags & WEIR_OPEN_DIRECT) != 0 &&
        weir_file_open(storm->engine, NULL, path, flags, 0, &handle->file, NULL) == 0)
        return;
    flags &= ~(uint32_t)WEIR_OPEN_DIRECT;
    check_code(weir_file_open(storm->engine, NULL, path, flags, 0, &handle->file, NULL), 0);
}

/* Once more, when all is quiet: the last version that was done, or one that was cut short
 * after. */
static void check_files(struct storm *storm)
{
    uint8_t *buf = malloc(FILE_BYTES);
    uint32_t least[UNITS];

    assert_non_null(buf);
    for (int i = 0; i < HANDLES && storm->moves; i++) {
        note_least(storm, storm->handles[i].number, 0, FILE_BYTES, least);
        /* The direct one wants alignment only if it is not cached. */
        check_code(weir_file_read(storm->handles[i].file, buf, FILE_BYTES, 0),
                   (int64_t)FILE_BYTES);
        check_words(storm, storm->handles[i].number, 0, buf, FILE_BYTES, least, "the file");
    }
    free(buf);
}

static void run_round(uint32_t backend, uint32_t round, uint64_t jobs)
{
    struct weir_engine_options options = {
        .size = sizeof(options),
        .backend = backend,
        .cache_block_size = 16 * 1024,
        .cache_bytes = 16 * 1024 * (48 + 40 * round),
        .cache_policy = round % WEIR_POLICIES,
        .device_bytes = round % 2 ? 512 * KIB : 0,
        .open_files = round % 3 == 2 ? 2 : 0, /* fewer than handles */
    };
    const char *const paths[FILES] = { test_new_path("storm"), test_new_path("storm") };
    struct storm *storm = calloc(1, sizeof(*storm));
    struct weir_stats stats = { .size = sizeof(stats) };
    pthread_t threads[OWNERS];

    assert_non_null(storm);
    storm->moves = backend != WEIR_BACKEND_NULL;
    make_files(paths);
    check_code(weir_engine_open(&options, &storm->engine, NULL), 0);
    open_handle(storm, &storm->handles[0], 0, paths[0], WEIR_OPEN_CACHED);
    open_handle(storm, &storm->handles[1], 0, paths[0], 0);
    open_handle(storm, &storm->handles[2], 1, paths[1], WEIR_OPEN_CACHED | WEIR_OPEN_DIRECT);
    for (unsigned i = 0; i < OWNERS; i++) {
        struct owner *owner = &storm->owners[i];

        owner->storm = storm;
        owner->number = i;
        owner->rng.state = test_seed() + round * 16 + i;
        owner->left = jobs / OWNERS;
        for (int j = 0; j < SLOTS; j++)
            check(posix_memalign((void **)&owner->slots[j].buf, UNIT, BUFFER) == 0);
        check(pthread_create(&threads[i], NULL, run_owner, owner) == 0);
    }
    for (unsigned i = 0; i < OWNERS; i++)
        check(pthread_join(threads[i], NULL) == 0);
    check_files(storm);
    if (storm->wrong > 0)
        fail_msg("%u times; first: %s", storm->wrong, storm->first_wrong);
    check_code(weir_engine_stats(storm->engine, &stats), 0);
    check_code((int64_t)stats.in_flight, 0);
    check_code((int64_t)stats.cache_pinned, 0);
    check(stats.merges > 0);
    check(stats.cache_hits > 0 && stats.cache_evicted > 0);
    check(stats.prefetch_bytes > 0 && stats.prefetch_used > 0);
    for (int i = 0; i < HANDLES; i++)
        check_code(weir_file_close(storm->handles[i].file), 0);
    check_code(weir_engine_close(storm->engine), 0);
    for (unsigned i = 0; i < OWNERS; i++)
        for (int j = 0; j < SLOTS; j++)
            free(storm->owners[i].slots[j].buf);
    free(storm);
}

static void run_backend(uint32_t backend)
{
    uint64_t jobs = test_env_number("WEIR_STORM_JOBS", 60000);

    if (!backend_works(backend)) {
        print_message("%s does not run here\n", backend_name_of(backend));
        skip();
    }
    memset(&tally, 0, sizeof(tally));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        watchdog_start("storm_bytes", (unsigned)test_env_number("WEIR_TEST_WATCHDOG", 240));
        run_round(backend, round, jobs / ROUNDS);
    }
    watchdog_stop();
    print_message("%s: %" PRIu64 " MiB checked, %" PRIu64 " writes, %" PRIu64
                  " cancelled, %" PRIu64 " expired, %" PRIu64 " views, %" PRIu64
                  " blocking calls\n",
                  backend_name_of(backend), tally.checked >> 20, tally.writes, tally.cancelled,
                  tally.expired, tally.views, tally.blocking);
    check(tally.writes > 0 && tally.views > 0 && tally.cancelled > 0 && tally.expired > 0);
    check(backend == WEIR_BACKEND_NULL || tally.checked > 0);
}

static void storm__every_byte_is_right_on_uring(void **state)
{
    (void)state;
    run_backend(WEIR_BACKEND_URING);
}

static void storm__every_byte_is_right_on_threads(void **state)
{
    (void)state;
    run_backend(WEIR_BACKEND_THREADS);
}

static void storm__every_job_is_done_on_null(void **state)
{
    (void)state;
    run_backend(WEIR_BACKEND_NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(storm__every_byte_is_right_on_uring),
        cmocka_unit_test(storm__every_byte_is_right_on_threads),
        cmocka_unit_test(storm__every_job_is_done_on_null),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    (void)unsetenv("WEIR_BACKEND");
    (void)test_seed();
    return cmocka_run_group_tests_name("storm_bytes", tests, NULL, NULL);
}
