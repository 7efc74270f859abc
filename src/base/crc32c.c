/* SPDX-License-Identifier: MIT */
/*
 * crc32c.c - CRC-32C by the processor's instruction, or by a table
 *
 * x86-64 has had the instruction since 2008 (SSE 4.2); it takes eight bytes every three cycles.
 * The table takes one byte at a time, about 20 times slower: it is there so that every machine
 * can read what another has written.
 */
#include "crc32c.h"

#include <pthread.h>

#include "le.h"

#define POLYNOMIAL 0x82f63b78u /* bits reversed */

static uint32_t table[256];
static pthread_once_t table_made = PTHREAD_ONCE_INIT;

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (unsigned bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
        table[i] = crc;
    }
}

uint32_t wi_crc32c_portable(uint32_t crc, const void *data, size_t len)
{
    const unsigned char *at = data;

    pthread_once(&table_made, make_table);
    crc = ~crc;
    for (size_t i = 0; i < len; i++)
        crc = (crc >> 8) ^ table[(crc ^ at[i]) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const void *data,
                                                                 size_t len)
{
    const unsigned char *at = data;
    uint64_t wide = ~crc;

    for (; len >= 8; at += 8, len -= 8)
        wide = __builtin_ia32_crc32di(wide, wi_get_le64(at));
    crc = (uint32_t)wide;
    for (; len > 0; at++, len--)
        crc = __builtin_ia32_crc32qi(crc, *at);
    return ~crc;
}

uint32_t wi_crc32c(uint32_t crc, const void *data, size_t len)
{
    if (WI_LIKELY(__builtin_cpu_supports("sse4.2")))
        return by_instruction(crc, data, len);
    return wi_crc32c_portable(crc, data, len);
}

#else

uint32_t wi_crc32c(uint32_t crc, const void *data, size_t len)
{
    return wi_crc32c_portable(crc, data, len);
}

#endif
