/* SPDX-License-Identifier: MIT */
/*
 * cache.c - the sizes of files, asked for once
 *
 * Each name is looked up a thousand times; only the first one opens the file.
 */
#include <stdio.h>
#include <string.h>
#include <weir/weir.h>

static uint64_t opened;

static uint64_t ask_size(struct weir_engine *engine, const char *path)
{
    struct weir_stat stat = { 0 };
    struct weir_file *file;

    if (weir_file_open(engine, NULL, path, WEIR_OPEN_READ, 0, &file, NULL) < 0)
        return 0;
    opened++;
    weir_file_stat(file, &stat, NULL);
    weir_file_close(file);
    return stat.size_bytes;
}

static uint64_t size_of(struct weir_cache *cache, struct weir_engine *engine, const char *path)
{
    struct weir_cache_value value;
    uint64_t size;

    if (weir_cache_get(cache, path, strlen(path), &value) == 0) {
        memcpy(&size, value.data, sizeof(size)); /* it stays valid until it is released */
        weir_cache_release(&value);
        return size;
    }
    size = ask_size(engine, path);
    weir_cache_put(cache, path, strlen(path), &size, sizeof(size)); /* if not: asked again */
    return size;
}

int main(int argc, char **argv)
{
    struct weir_cache_options options = {
        .size = sizeof(options), .max_count = 1000, .ttl_ns = 60000000000u, /* a minute */
    };
    struct weir_engine *engine;
    struct weir_cache *cache;
    uint64_t sum = 0;

    if (weir_engine_open(NULL, &engine, NULL) < 0 || weir_cache_open(&options, &cache) < 0)
        return 1;
    for (int i = 0; i < 1000; i++)
        for (int arg = argc > 1; arg < argc; arg++)
            sum += size_of(cache, engine, argv[arg]);
    printf("%llu bytes, %llu files opened\n", (unsigned long long)(sum / 1000),
           (unsigned long long)opened);
    weir_cache_close(cache);
    weir_engine_close(engine);
    return sum == 0 || opened != (uint64_t)(argc > 1 ? argc - 1 : 1);
}
