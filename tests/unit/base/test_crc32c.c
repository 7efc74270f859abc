/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "base_test.h"

/* The vectors of RFC 3720, appendix B.4, and the usual one. */
static void crc32c__known_values(void **state)
{
    unsigned char bytes[32];

    (void)state;
    memset(bytes, 0, sizeof(bytes));
    assert_int_equal(wi_crc32c(0, bytes, 32), 0x8a9136aau);
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(wi_crc32c(0, bytes, 32), 0x62a8ab43u);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (unsigned char)i;
    assert_int_equal(wi_crc32c(0, bytes, 32), 0x46dd794eu);
    assert_int_equal(wi_crc32c_portable(0, bytes, 32), 0x46dd794eu);
    assert_int_equal(wi_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(wi_crc32c_portable(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(wi_crc32c(0, "", 0), 0);
}

/* Instruction and table agree at any address and length, and so do parts and the whole. */
static void crc32c__both_ways_and_in_parts(void **state)
{
    struct base_rng rng = base_rng_start();
    unsigned char bytes[300];

    (void)state;
    for (unsigned round = 0; round < 2000; round++) {
        size_t from = base_rng_below(&rng, 16);
        size_t len = base_rng_below(&rng, sizeof(bytes) - from + 1);
        size_t cut = base_rng_below(&rng, len + 1);
        uint32_t whole;

        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = (unsigned char)base_rng_next(&rng);
        whole = wi_crc32c(0, bytes + from, len);
        assert_int_equal(wi_crc32c_portable(0, bytes + from, len), whole);
        assert_int_equal(
            wi_crc32c(wi_crc32c(0, bytes + from, cut), bytes + from + cut, len - cut), whole);
    }
}

/* The byte order is the file's, not the machine's. */
static void le__order_of_bytes(void **state)
{
    static const unsigned char want[] = { 0, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01 };
    unsigned char bytes[9] = { 0 };

    (void)state;
    wi_put_le64(bytes + 1, UINT64_C(0x0102030405060708));
    assert_memory_equal(bytes, want, sizeof(want));
    assert_true(wi_get_le64(bytes + 1) == UINT64_C(0x0102030405060708));
    assert_int_equal(wi_get_le32(bytes + 1), 0x05060708u);
    assert_int_equal(wi_get_le16(bytes + 1), 0x0708u);
    wi_put_le32(bytes + 1, 0xa1b2c3d4u);
    wi_put_le16(bytes + 5, 0xe5f6u);
    assert_int_equal(bytes[1], 0xd4);
    assert_int_equal(bytes[4], 0xa1);
    assert_int_equal(bytes[5], 0xf6);
    assert_int_equal(bytes[6], 0xe5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(crc32c__known_values, base_watchdog),
        cmocka_unit_test_setup(crc32c__both_ways_and_in_parts, base_watchdog),
        cmocka_unit_test_setup(le__order_of_bytes, base_watchdog),
    };

    return cmocka_run_group_tests_name("base_crc32c", tests, NULL, NULL);
}
