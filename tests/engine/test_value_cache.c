/* SPDX-License-Identifier: MIT */
/*
 * test_value_cache.c - the typed cache, against a plain model, a driven clock and threads
 *
 * No engine is needed. Allocations go through wrappers here, so that any of them can fail.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/common.h"
#include "engine/value_cache.h"
#include "support/support.h"

#define KEYS 64u
#define SEED UINT64_C(0x5a5a5a5a5a5a5a5a) /* of the hash: what fixed_random() gives */

static const char *const policy_names[WEIR_POLICIES] = { "s3fifo", "2q", "arc", "lru", "lfu" };

/* ---- a clock that stands until it is moved, and no chance -------------------------------- */

static struct {
    struct wi_os os;
    struct wi_os_ops ops;
    _Atomic uint64_t now_ns;
} clock_os;

static uint64_t driven_now(const struct wi_os *os)
{
    (void)os;
    return atomic_load(&clock_os.now_ns);
}

static int fixed_random(const struct wi_os *os, void *buf, size_t len)
{
    (void)os;
    memset(buf, 0x5a, len);
    return 0;
}

static int try_open(const struct weir_cache_options *options, struct weir_cache **ret_cache)
{
    clock_os.ops = *wi_os_posix()->ops;
    clock_os.ops.now_ns = driven_now;
    clock_os.ops.random = fixed_random;
    clock_os.os.ops = &clock_os.ops;
    atomic_store(&clock_os.now_ns, 1000);
    return wi_value_cache_open(options, &clock_os.os, ret_cache);
}

static struct weir_cache *open_cache(const struct weir_cache_options *options)
{
    struct weir_cache *cache = NULL;

    check_code(try_open(options, &cache), 0);
    return cache;
}

static struct weir_cache_info info_of(struct weir_cache *cache)
{
    struct weir_cache_info info = { .size = sizeof(info) };

    check_code(weir_cache_info(cache, &info), 0);
    return info;
}

/* What the cache counts for an entry beside its key and value. */
static uint64_t record_bytes(void)
{
    struct weir_cache_options options = { .size = sizeof(options), .max_count = 1 };
    struct weir_cache *cache = open_cache(&options);
    uint64_t bytes;

    check_code(weir_cache_put(cache, "key", 3, "value", 5), 0);
    bytes = info_of(cache).bytes - 8;
    check_code(weir_cache_close(cache), 0);
    return bytes;
}

/* Keys of different lengths, from none at all. */
static size_t key_of(unsigned id, char key[32])
{
    size_t len = id % 20;

    memset(key, 'k', 32);
    if (id >= 20) {
        key[0] = (char)('A' + id / 20);
        len += 1;
    }
    return len;
}

/* ---- the model: entries in an array, the least recently used first ----------------------- */

struct model_entry {
    unsigned id;
    uint64_t seed; /* of the value */
    size_t len;
    uint64_t end_ns;
};

struct model {
    struct model_entry entries[KEYS];
    unsigned count;
    uint64_t record;
    uint64_t ttl_ns;
    struct weir_cache_info info;
};

static uint64_t model_size(const struct model *model, const struct model_entry *entry)
{
    char key[32];

    return model->record + key_of(entry->id, key) + entry->len;
}

static void model_drop(struct model *model, unsigned place)
{
    model->info.bytes -= model_size(model, &model->entries[place]);
    memmove(&model->entries[place], &model->entries[place + 1],
            (model->count - place - 1) * sizeof(model->entries[0]));
    model->count--;
}

static int model_find(const struct model *model, unsigned id)
{
    for (unsigned i = 0; i < model->count; i++)
        if (model->entries[i].id == id)
            return (int)i;
    return -1;
}

static void model_expire(struct model *model, uint64_t now_ns)
{
    for (unsigned i = 0; i < model->count;)
        if (model->entries[i].end_ns <= now_ns) {
            model_drop(model, i);
            model->info.expired++;
        } else {
            i++;
        }
}

static void check_info(struct weir_cache *cache, const struct model *model)
{
    struct weir_cache_info info = info_of(cache);

    assert_int_equal(info.count, model->count);
    assert_int_equal(info.bytes, model->info.bytes);
    assert_int_equal(info.hits, model->info.hits);
    assert_int_equal(info.misses, model->info.misses);
    assert_int_equal(info.puts, model->info.puts);
    assert_int_equal(info.evicted, model->info.evicted);
    assert_int_equal(info.expired, model->info.expired);
}

static void model_run(struct test_rng *rng, uint64_t record)
{
    struct weir_cache_options options = {
        .size = sizeof(options),
        .max_bytes = 1 + rng_below(rng, 8000),
        .max_count = rng_below(rng, 2) ? 1 + rng_below(rng, 40) : 0,
        .ttl_ns = rng_below(rng, 2) ? 1 + rng_below(rng, 300) : 0,
        .policy = WEIR_POLICY_LRU,
        .shards = 1,
    };
    struct model model = { .record = record, .ttl_ns = options.ttl_ns };
    struct weir_cache *cache = open_cache(&options);
    uint8_t value[512];

    for (int step = 0; step < 3000; step++) {
        unsigned id = (unsigned)rng_below(rng, KEYS);
        uint64_t now_ns = atomic_load(&clock_os.now_ns);
        struct weir_cache_value got;
        struct model_entry entry;
        char key[32];
        size_t key_len = key_of(id, key);
        int place;

        switch (rng_below(rng, 8)) {
        case 0:
            atomic_store(&clock_os.now_ns, now_ns + rng_below(rng, 20));
            break;
        case 1:
            model_expire(&model, now_ns);
            check_info(cache, &model);
            place = model_find(&model, id);
            check_code(weir_cache_remove(cache, key, key_len), place < 0 ? -ENOENT : 0);
            if (place >= 0)
                model_drop(&model, (unsigned)place);
            break;
        case 2:
        case 3:
        case 4:
            entry = (struct model_entry){ .id = id,
                                          .seed = rng_next(rng),
                                          .len = rng_below(rng, sizeof(value)) };
            entry.end_ns = model.ttl_ns ? now_ns + model.ttl_ns : UINT64_MAX;
            pattern_fill(value, entry.len, entry.seed, 0);
            if (model_size(&model, &entry) > options.max_bytes) {
                check_code(weir_cache_put(cache, key, key_len, value, entry.len), -E2BIG);
                break;
            }
            check_code(weir_cache_put(cache, key, key_len, value, entry.len), 0);
            model_expire(&model, now_ns);
            place = model_find(&model, id);
            if (place >= 0)
                model_drop(&model, (unsigned)place);
            while (model.info.bytes + model_size(&model, &entry) > options.max_bytes ||
                   (options.max_count && model.count == options.max_count)) {
                model_drop(&model, 0);
                model.info.evicted++;
            }
            model.entries[model.count++] = entry;
            model.info.bytes += model_size(&model, &entry);
            model.info.puts++;
            break;
        default:
            model_expire(&model, now_ns);
            place = model_find(&model, id);
            check_code(weir_cache_get(cache, key, key_len, &got), place < 0 ? -ENOENT : 0);
            if (place < 0) {
                model.info.misses++;
                break;
            }
            model.info.hits++;
            entry = model.entries[place];
            assert_int_equal(got.len, entry.len);
            assert_int_equal((uintptr_t)got.data % 16, 0);
            check_pattern(got.data, got.len, entry.seed, 0);
            weir_cache_release(&got);
            model_drop(&model, (unsigned)place);
            model.entries[model.count++] = entry;
            model.info.bytes += model_size(&model, &entry);
            break;
        }
        if (step % 4 == 0) {
            model_expire(&model, atomic_load(&clock_os.now_ns));
            check_info(cache, &model);
        }
    }
    weir_cache_clear(cache);
    assert_int_equal(info_of(cache).count, 0);
    assert_int_equal(info_of(cache).bytes, 0);
    check_code(weir_cache_close(cache), 0);
}

/* Random operations on one shard with LRU: the same hits, values, sums and counters, always. */
static void value_cache__matches_a_plain_model(void **state)
{
    struct test_rng rng = { .state = test_seed() };
    uint64_t record = record_bytes();

    (void)state;
    for (int run = 0; run < 40; run++)
        model_run(&rng, record);
}

/* With any policy and any number of shards: what is found is what was put last, what is there
 * adds up, and neither limit is ever exceeded. */
static void value_cache__keeps_its_bounds(void **state)
{
    static const uint32_t shards[] = { 1, 3, 16 };
    struct test_rng rng = { .state = test_seed() };
    uint64_t record = record_bytes();

    (void)state;
    for (size_t run = 0; run < WEIR_POLICIES * COUNT(shards); run++) {
        struct weir_cache_options options = {
            .size = sizeof(options),
            .max_bytes = 6000,
            .max_count = 25,
            .policy = (uint32_t)(run % WEIR_POLICIES),
            .shards = shards[run / WEIR_POLICIES],
        };
        struct weir_cache *cache = open_cache(&options);
        uint64_t last[KEYS] = { 0 };
        size_t lens[KEYS] = { 0 };

        print_message("%s, %u shards\n", policy_names[options.policy], options.shards);
        for (int step = 0; step < 6000; step++) {
            unsigned id = (unsigned)rng_below(&rng, 1 + rng_below(&rng, KEYS));
            struct weir_cache_info info;
            struct weir_cache_value got;
            uint8_t value[2048];
            char key[32];
            size_t key_len = key_of(id, key);

            if (weir_cache_get(cache, key, key_len, &got) == 0) {
                assert_int_equal(got.len, lens[id]);
                check_pattern(got.data, got.len, last[id], 0);
                weir_cache_release(&got);
            } else {
                last[id] = rng_next(&rng);
                lens[id] = rng_below(&rng, rng_below(&rng, 10) ? 200 : sizeof(value));
                pattern_fill(value, lens[id], last[id], 0);
                check_code(weir_cache_put(cache, key, key_len, value, lens[id]), 0);
            }
            info = info_of(cache);
            assert_in_range(info.bytes, 1, options.max_bytes);
            assert_in_range(info.count, 1, options.max_count);
            if (step % 500 == 0) {
                uint64_t count = 0;
                uint64_t bytes = 0;

                for (id = 0; id < KEYS; id++) {
                    key_len = key_of(id, key);
                    if (weir_cache_get(cache, key, key_len, &got) < 0)
                        continue;
                    count++;
                    bytes += record + key_len + got.len;
                    weir_cache_release(&got);
                }
                assert_int_equal(count, info.count);
                assert_int_equal(bytes, info.bytes);
            }
        }
        check_code(weir_cache_close(cache), 0);
    }
}

/* A held value stays what it is through replacing, removing, evicting and clearing; the cache
 * can't be closed before it is let go. */
static void value_cache__held_values_stay(void **state)
{
    struct weir_cache_options options = { .size = sizeof(options), .max_count = 2 };
    struct weir_cache *cache = open_cache(&options);
    struct weir_cache_value held[4];
    struct weir_cache_value empty = { 0 };

    (void)state;
    check_code(weir_cache_put(cache, "a", 1, "first", 5), 0);
    check_code(weir_cache_get(cache, "a", 1, &held[0]), 0);
    check_code(weir_cache_put(cache, "a", 1, "second", 6), 0); /* replaced */
    check_code(weir_cache_get(cache, "a", 1, &held[1]), 0);
    check_code(weir_cache_remove(cache, "a", 1), 0); /* removed */
    check_code(weir_cache_put(cache, "a", 1, "third", 5), 0);
    check_code(weir_cache_get(cache, "a", 1, &held[2]), 0);
    for (char name = 'b'; name < (char)'g'; name++) /* evicted */
        check_code(weir_cache_put(cache, &name, 1, "other", 5), 0);
    check_code(weir_cache_put(cache, "z", 1, "fourth", 6), 0);
    check_code(weir_cache_get(cache, "z", 1, &held[3]), 0);
    weir_cache_clear(cache); /* cleared */
    assert_int_equal(info_of(cache).bytes, 0);
    assert_memory_equal(held[0].data, "first", 5);
    assert_memory_equal(held[1].data, "second", 6);
    assert_memory_equal(held[2].data, "third", 5);
    assert_memory_equal(held[3].data, "fourth", 6);
    for (size_t i = 0; i < COUNT(held); i++) {
        check_code(weir_cache_close(cache), -EBUSY);
        weir_cache_release(&held[i]);
        assert_null(held[i].data);
        weir_cache_release(&held[i]); /* empty now */
    }
    weir_cache_release(&empty);
    weir_cache_release(NULL);

    check_code(weir_cache_put(cache, "a", 1, "still works", 11), 0);
    check_code(weir_cache_get(cache, "a", 1, &held[0]), 0);
    check_code(weir_cache_close(cache), -EBUSY); /* also while it is in the table */
    weir_cache_release(&held[0]);
    check_code(weir_cache_close(cache), 0);
    check_code(weir_cache_close(NULL), 0);
}

/* ---- pointers ---------------------------------------------------------------------------- */

struct thing {
    _Atomic unsigned freed;
};

static struct weir_cache *freeing_cache; /* if set, it is called while something is freed */

static void free_thing(void *arg, void *pointer)
{
    struct thing *thing = pointer;

    atomic_fetch_add((_Atomic uint64_t *)arg, 1);
    assert_int_equal(atomic_fetch_add(&thing->freed, 1), 0);
    if (freeing_cache)
        info_of(freeing_cache); /* takes every lock, so none is held */
}

/* Each pointer is freed once: when it is replaced, removed, evicted, cleared or closed, and
 * nobody holds it; not if it was refused. No lock is held then. */
static void value_cache__pointers_are_freed_once(void **state)
{
    _Atomic uint64_t freed = 0;
    struct weir_cache_options options = {
        .size = sizeof(options),
        .max_bytes = 4 * (1000 + record_bytes()),
        .free_pointer = free_thing,
        .free_arg = &freed,
    };
    struct weir_cache *cache = open_cache(&options);
    struct thing things[20] = { 0 };
    struct weir_cache_value got;

    (void)state;
    freeing_cache = cache;
    check_code(weir_cache_put_pointer(cache, "0", 1, &things[0], 900), 0);
    check_code(weir_cache_put_pointer(cache, "0", 1, &things[1], 900), 0);
    assert_int_equal(things[0].freed, 1);
    check_code(weir_cache_get(cache, "0", 1, &got), 0);
    assert_ptr_equal(got.data, &things[1]);
    assert_int_equal(got.len, 900);
    check_code(weir_cache_remove(cache, "0", 1), 0);
    check_code(weir_cache_remove(cache, "0", 1), -ENOENT);
    assert_int_equal(things[1].freed, 0);
    weir_cache_release(&got);
    assert_int_equal(things[1].freed, 1);
    for (unsigned i = 2; i < 20; i++) {
        char key = (char)('a' + i);

        check_code(weir_cache_put_pointer(cache, &key, 1, &things[i], 900), 0);
        assert_int_equal(freed, i < 6 ? 2 : i - 3); /* there is room for four */
    }
    check_code(weir_cache_put_pointer(cache, "big", 3, &things[0], 5000), -E2BIG);
    assert_int_equal(things[0].freed, 1);
    weir_cache_clear(cache);
    assert_int_equal(freed, 20);
    things[0].freed = 0;
    check_code(weir_cache_put_pointer(cache, "", 0, &things[0], 0), 0);
    freeing_cache = NULL;
    check_code(weir_cache_close(cache), 0);
    assert_int_equal(freed, 21);

    options.free_pointer = NULL; /* then they are the caller's */
    cache = open_cache(&options);
    check_code(weir_cache_put_pointer(cache, "0", 1, &things[0], 1), 0);
    check_code(weir_cache_close(cache), 0);
    assert_int_equal(freed, 21);
}

/* ---- time -------------------------------------------------------------------------------- */

/* An entry lives for exactly its time after it was put, a put begins it anew, a get doesn't.
 * What is too old goes before anything that isn't. */
static void value_cache__expires_by_the_clock(void **state)
{
    struct weir_cache_options options = {
        .size = sizeof(options), .max_count = 20, .ttl_ns = 100, .shards = 1
    };
    uint64_t one = record_bytes() + 1;               /* with a key of one byte */
    struct weir_cache *cache = open_cache(&options); /* at 1000 */
    struct weir_cache_value held;
    struct weir_cache_value got;

    (void)state;
    check_code(weir_cache_put(cache, "a", 1, "1", 1), 0);
    check_code(weir_cache_put(cache, "b", 1, "2", 1), 0);
    atomic_store(&clock_os.now_ns, 1099);
    check_code(weir_cache_get(cache, "a", 1, &held), 0);
    check_code(weir_cache_put(cache, "b", 1, "3", 1), 0);
    atomic_store(&clock_os.now_ns, 1100);
    check_code(weir_cache_get(cache, "a", 1, &got), -ENOENT);
    check_code(weir_cache_remove(cache, "a", 1), -ENOENT);
    check_code(weir_cache_get(cache, "b", 1, &got), 0);
    weir_cache_release(&got);
    assert_memory_equal(held.data, "1", 1);
    weir_cache_release(&held);
    assert_int_equal(info_of(cache).expired, 1);
    assert_int_equal(info_of(cache).misses, 1);
    atomic_store(&clock_os.now_ns, 1199);
    check_code(weir_cache_remove(cache, "b", 1), -ENOENT);
    assert_int_equal(info_of(cache).expired, 2);

    for (char name = 'a'; name < (char)('a' + 10);
         name++) /* ten that will be old, ten that won't */
        check_code(weir_cache_put(cache, &name, 1, "old", 3), 0);
    atomic_store(&clock_os.now_ns, 1250);
    for (char name = 'k'; name < (char)('k' + 10); name++)
        check_code(weir_cache_put(cache, &name, 1, "new", 3), 0);
    atomic_store(&clock_os.now_ns, 1299);
    for (char name = 'A'; name < (char)('A' + 10); name++)
        check_code(weir_cache_put(cache, &name, 1, "newer", 5), 0);
    assert_int_equal(info_of(cache).evicted, 0);
    for (char name = 'k'; name < (char)('k' + 10); name++) {
        check_code(weir_cache_get(cache, &name, 1, &got), 0);
        weir_cache_release(&got);
    }

    check_code(weir_cache_close(cache), 0);
    options.max_count = 0; /* the same, with one that needs the room of all the old ones */
    options.max_bytes = 41 * one;
    cache = open_cache(&options);
    for (char name = 'A'; name < (char)('A' + 40); name++)
        check_code(weir_cache_put(cache, &name, 1, "", 0), 0);
    for (char name = 'A'; name < (char)('A' + 2);
         name++) { /* these would go last, if not for their age */
        check_code(weir_cache_get(cache, &name, 1, &got), 0);
        weir_cache_release(&got);
    }
    atomic_store(&clock_os.now_ns, 1099);
    check_code(weir_cache_put(cache, "1", 1, "", 0), 0);
    atomic_store(&clock_os.now_ns, 1100);
    check_code(weir_cache_put_pointer(cache, "2", 1, NULL, 39 * one), 0);
    assert_int_equal(info_of(cache).evicted, 0);
    assert_int_equal(info_of(cache).expired, 40);
    assert_int_equal(info_of(cache).count, 2);

    atomic_store(&clock_os.now_ns, UINT64_MAX - 1); /* beyond the end of time is never */
    assert_int_equal(info_of(cache).count, 0);
    check_code(weir_cache_put(cache, "a", 1, "1", 1), 0);
    check_code(weir_cache_get(cache, "a", 1, &got), 0);
    weir_cache_release(&got);
    check_code(weir_cache_close(cache), 0);
}

/* ---- limits ------------------------------------------------------------------------------ */

/* The limits belong to the whole cache: with many shards, too, one entry may fill it, and any
 * `max_count` entries fit. One byte more never fits, and what was under the key stays. */
static void value_cache__a_shard_is_no_limit(void **state)
{
    struct weir_cache_options options = { .size = sizeof(options),
                                          .max_bytes = 100000,
                                          .shards = 16 };
    struct weir_cache *cache = open_cache(&options);
    size_t most = 100000 - record_bytes() - 3;
    struct weir_cache_value got;
    char *value = calloc(1, most + 1);

    (void)state;
    assert_non_null(value);
    for (unsigned i = 0; i < 1000; i++)
        check_code(weir_cache_put(cache, &i, sizeof(i), value, 50), 0);
    check_code(weir_cache_put(cache, "big", 3, value, most), 0);
    assert_int_equal(info_of(cache).count, 1);
    assert_int_equal(info_of(cache).bytes, 100000);
    check_code(weir_cache_put(cache, "big", 3, value, most + 1), -E2BIG);
    check_code(weir_cache_put(cache, "big", 3, value, SIZE_MAX), -E2BIG);
    check_code(weir_cache_get(cache, "big", 3, &got), 0);
    assert_int_equal(got.len, most);
    weir_cache_release(&got);
    check_code(weir_cache_put(cache, "big", 3, value, most * 9 / 10), 0);
    for (unsigned i = 0; i < 1000; i++) /* nor does it stay for ever, and starve all others */
        check_code(weir_cache_put(cache, &i, sizeof(i), value, 50), 0);
    assert_true(info_of(cache).count > 500);
    check_code(weir_cache_close(cache), 0);
    free(value);

    options =
        (struct weir_cache_options){ .size = sizeof(options), .max_count = 100, .shards = 16 };
    cache = open_cache(&options);
    for (unsigned i = 0; i < 100; i++)
        check_code(weir_cache_put(cache, &i, sizeof(i), "", 0), 0);
    assert_int_equal(info_of(cache).count, 100);
    assert_int_equal(info_of(cache).evicted, 0);
    for (unsigned i = 100; i < 300; i++)
        check_code(weir_cache_put(cache, &i, sizeof(i), "", 0), 0);
    assert_int_equal(info_of(cache).count, 100);
    assert_int_equal(info_of(cache).evicted, 200);
    check_code(weir_cache_close(cache), 0);
}

/* A shard whose keys came first has taken all the room; the other gets its half of it, little
 * by little, and does not turn round in a corner. */
static void value_cache__shards_share_the_room(void **state)
{
    struct weir_cache_options options = { .size = sizeof(options),
                                          .max_count = 100,
                                          .shards = 2 };
    struct weir_cache *cache = open_cache(&options);
    uint64_t key = 0;
    unsigned found = 0;

    (void)state;
    for (unsigned half = 0; half < 2; half++)
        for (unsigned count = 0; count < 200; key++) {
            if (XXH3_64bits_withSeed(&key, sizeof(key), SEED) >> 63 != half)
                continue;
            check_code(weir_cache_put(cache, &key, sizeof(key), &half, sizeof(half)), 0);
            count++;
        }
    while (key-- > 0) {
        struct weir_cache_value got;

        if (weir_cache_get(cache, &key, sizeof(key), &got) < 0)
            continue;
        found += *(const unsigned *)got.data;
        weir_cache_release(&got);
    }
    assert_in_range(found, 40, 60);
    assert_int_equal(info_of(cache).count, 100);
    check_code(weir_cache_close(cache), 0);
}

/* Enough entries for tables to double many times, with shards chosen by size: all are found. */
static void value_cache__grows(void **state)
{
    struct weir_cache_options options = { .size = sizeof(options), .max_bytes = 64 << 20 };
    struct weir_cache *cache;

    (void)state;
    check_code(weir_cache_open(&options, &cache), 0); /* with a seed of its own */
    for (uint64_t i = 0; i < 50000; i++)
        check_code(weir_cache_put(cache, &i, sizeof(i), &i, sizeof(i)), 0);
    for (uint64_t i = 0; i < 50000; i++) {
        struct weir_cache_value got;

        check_code(weir_cache_get(cache, &i, sizeof(i), &got), 0);
        assert_memory_equal(got.data, &i, sizeof(i));
        weir_cache_release(&got);
    }
    assert_int_equal(info_of(cache).count, 50000);
    assert_int_equal(info_of(cache).hits, 50000);
    check_code(weir_cache_close(cache), 0);
}

/* The caller is wrong: refused, and nothing has changed. */
static void value_cache__refuses_nonsense(void **state)
{
    static const struct weir_cache_options wrong[] = {
        { .size = 0, .max_count = 1 },
        { .size = sizeof(wrong[0]) },
        { .size = sizeof(wrong[0]), .max_count = 1, .policy = WEIR_POLICIES },
        { .size = sizeof(wrong[0]), .max_count = 1, .shards = 1000000 },
    };
    struct weir_cache_options options = { .size = sizeof(options), .max_count = 1 };
    struct weir_cache *cache = NULL;
    struct weir_cache_value got;
    struct weir_cache_info info = { 0 };

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++)
        check_code(weir_cache_open(&wrong[i], &cache), -EINVAL);
    check_code(weir_cache_open(NULL, &cache), -EINVAL);
    check_code(weir_cache_open(&options, NULL), -EINVAL);
    assert_null(cache);
    cache = open_cache(&options);
    check_code(weir_cache_put(NULL, "a", 1, "1", 1), -EINVAL);
    check_code(weir_cache_put(cache, NULL, 1, "1", 1), -EINVAL);
    check_code(weir_cache_put(cache, "a", 1, NULL, 1), -EINVAL);
    check_code(weir_cache_put(cache, "a", SIZE_MAX, NULL, 0), -E2BIG);
    check_code(weir_cache_put_pointer(cache, NULL, 1, &info, 1), -EINVAL);
    check_code(weir_cache_get(cache, NULL, 1, &got), -EINVAL);
    check_code(weir_cache_get(cache, "a", 1, NULL), -EINVAL);
    check_code(weir_cache_remove(cache, NULL, 1), -EINVAL);
    check_code(weir_cache_info(cache, &info), -EINVAL);
    weir_cache_clear(NULL);
    assert_int_equal(info_of(cache).count, 0);
    check_code(weir_cache_put(cache, NULL, 0, NULL, 0), 0); /* nothing is a key, and a value */
    check_code(weir_cache_get(cache, NULL, 0, &got), 0);
    assert_int_equal(got.len, 0);
    weir_cache_release(&got);
    check_code(weir_cache_close(cache), 0);
}

/* ---- threads ----------------------------------------------------------------------------- */

#define THREADS 4u

struct crowd {
    struct weir_cache *cache;
    const struct weir_cache_options *options;
    uint64_t seed;
    _Atomic uint64_t freed;
    _Atomic uint64_t put;
};

struct box {
    uint64_t id;
    uint64_t not_id;
};

static void free_box(void *arg, void *pointer)
{
    struct box *box = pointer;

    atomic_fetch_add(&((struct crowd *)arg)->freed, 1);
    *box = (struct box){ 0 };
    free(box);
}

static void *crowd_run(void *arg)
{
    static _Atomic uint64_t number;
    struct crowd *crowd = arg;
    struct test_rng rng = { .state = crowd->seed + atomic_fetch_add(&number, 1) * 7919 };
    struct weir_cache_value held = { 0 };
    uint64_t held_id = 0;

    for (int step = 0; step < 8000; step++) {
        uint64_t id = rng_below(&rng, 100);
        struct weir_cache_value got;
        struct box *box;

        switch (rng_below(&rng, 16)) {
        case 0:
            weir_cache_remove(crowd->cache, &id, sizeof(id));
            break;
        case 1:
            if (step % 512 == 0)
                weir_cache_clear(crowd->cache);
            atomic_fetch_add(&clock_os.now_ns, 1);
            break;
        case 2: {
            struct weir_cache_info info = info_of(crowd->cache);

            check(info.bytes <= crowd->options->max_bytes);
            check(info.count <= crowd->options->max_count);
            break;
        }
        case 3: /* keep one for a while */
            if (held.data) {
                check(((const struct box *)held.data)->id == held_id);
                weir_cache_release(&held);
            }
            if (weir_cache_get(crowd->cache, &id, sizeof(id), &held) == 0)
                held_id = id;
            break;
        default:
            if (weir_cache_get(crowd->cache, &id, sizeof(id), &got) == 0) {
                box = got.data;
                check(box->id == id && box->not_id == ~id);
                weir_cache_release(&got);
                break;
            }
            box = malloc(sizeof(*box));
            check(box != NULL);
            *box = (struct box){ .id = id, .not_id = ~id };
            check_code(weir_cache_put_pointer(crowd->cache, &id, sizeof(id), box,
                                              rng_below(&rng, 20) ? 20 : 4000),
                       0);
            atomic_fetch_add(&crowd->put, 1);
            break;
        }
    }
    weir_cache_release(&held);
    return NULL;
}

/* Threads that get, put, hold, remove and clear at once, with entries so large that the shards
 * must make room for each other: values are whole, the bounds hold, everything is freed
 * once. */
static void value_cache__takes_many_threads(void **state)
{
    (void)state;
    for (uint32_t policy = 0; policy < WEIR_POLICIES; policy++) {
        struct crowd crowd = { .seed = test_seed() };
        struct weir_cache_options options = {
            .size = sizeof(options),
            .max_count = 40,
            .max_bytes = 8000,
            .ttl_ns = 100,
            .policy = policy,
            .shards = 4,
            .free_pointer = free_box,
            .free_arg = &crowd,
        };
        pthread_t threads[THREADS];

        crowd.cache = open_cache(&options);
        crowd.options = &options;
        for (unsigned i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, crowd_run, &crowd), 0);
        for (unsigned i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(info_of(crowd.cache).puts, crowd.put);
        check_code(weir_cache_close(crowd.cache), 0);
        assert_int_equal(crowd.freed, crowd.put);
    }
}

/* ---- no memory --------------------------------------------------------------------------- */

static uint64_t fail_at; /* the allocation that fails, from 1; 0: none */
static uint64_t allocations;

static bool may_allocate(void)
{
    return fail_at == 0 || ++allocations != fail_at;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    return may_allocate() ? __real_malloc(size) : NULL;
}

void *__wrap_calloc(size_t count, size_t size)
{
    return may_allocate() ? __real_calloc(count, size) : NULL;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return may_allocate() ? __real_aligned_alloc(alignment, size) : NULL;
}

/* The Nth allocation fails, for each N: open fails and leaves nothing, or a put does and what
 * was there stays, or a table stays as it is and everything is found all the same. */
static void value_cache__survives_each_failed_allocation(void **state)
{
    struct weir_cache_options options = { .size = sizeof(options),
                                          .max_count = 1000,
                                          .shards = 2 };
    uint64_t failed_puts = 0;
    uint64_t failed_opens = 0;
    uint64_t unseen = 0; /* tables that could not grow */

    (void)state;
    for (uint64_t nth = 1;; nth++) {
        struct weir_cache *cache = NULL;
        struct weir_cache_value got;
        unsigned lost = UINT32_MAX;
        int rc;

        allocations = 0;
        fail_at = nth;
        rc = try_open(&options, &cache);
        if (rc < 0) {
            fail_at = 0;
            check_code(rc, -ENOMEM);
            assert_null(cache);
            failed_opens++;
            continue;
        }
        for (unsigned i = 0; i < 100; i++) {
            rc = weir_cache_put(cache, &i, sizeof(i), &i, sizeof(i));
            if (rc < 0) {
                assert_int_equal(rc, -ENOMEM);
                assert_int_equal(lost, UINT32_MAX);
                lost = i;
                failed_puts++;
            }
        }
        fail_at = 0;
        for (unsigned i = 0; i < 100; i++) {
            rc = weir_cache_get(cache, &i, sizeof(i), &got);
            check_code(rc, i == lost ? -ENOENT : 0);
            if (rc == 0)
                weir_cache_release(&got);
        }
        assert_int_equal(info_of(cache).count, lost == UINT32_MAX ? 100 : 99);
        check_code(weir_cache_close(cache), 0);
        if (allocations < nth)
            break;
        unseen += lost == UINT32_MAX;
    }
    assert_true(failed_opens >= 8);
    assert_int_equal(failed_puts, 100);
    assert_true(unseen >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(value_cache__matches_a_plain_model),
        cmocka_unit_test(value_cache__keeps_its_bounds),
        cmocka_unit_test(value_cache__held_values_stay),
        cmocka_unit_test(value_cache__pointers_are_freed_once),
        cmocka_unit_test(value_cache__expires_by_the_clock),
        cmocka_unit_test(value_cache__a_shard_is_no_limit),
        cmocka_unit_test(value_cache__shards_share_the_room),
        cmocka_unit_test(value_cache__grows),
        cmocka_unit_test(value_cache__refuses_nonsense),
        cmocka_unit_test(value_cache__takes_many_threads),
        cmocka_unit_test(value_cache__survives_each_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
