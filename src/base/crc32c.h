/* SPDX-License-Identifier: MIT */
/*
 * crc32c.h - the checksum of headers and small blocks (Castagnoli's polynomial, as in iSCSI)
 *
 * Finds all bursts of up to 32 bits. Uses the processor's instruction where there is one.
 */
#ifndef WEIR_BASE_CRC32C_H
#define WEIR_BASE_CRC32C_H

#include "common.h"

/* The checksum of `len` more bytes; `crc` is that of what came before, 0 at the start. */
uint32_t wi_crc32c(uint32_t crc, const void *data, size_t len);

/* The same without the instruction; for tests. */
uint32_t wi_crc32c_portable(uint32_t crc, const void *data, size_t len);

#endif
