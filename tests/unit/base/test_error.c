/* SPDX-License-Identifier: MIT */
#include <weir/job.h>

#include "base/error.h"
#include "base_test.h"

static void check_line(const struct weir_error *error, const char *want)
{
    char line[1024];
    int len = weir_error_format(error, line, sizeof(line));

    assert_string_equal(line, want);
    assert_int_equal(len, strlen(want));
}

/* Every errno of this kernel's headers has a name and a text, either sign; nothing else has. */
static void code__all_have_names(void **state)
{
    (void)state;
    for (int code = 1; code <= EHWPOISON; code++) {
        bool unused = code == 41 || code == 58; /* Linux has no such numbers */

        assert_int_equal(strcmp(weir_code_name(code), "E?") == 0, unused);
        assert_int_equal(weir_code_name(code)[0], 'E');
        assert_true(strlen(weir_code_text(code)) > 3);
        assert_ptr_equal(weir_code_name(code), weir_code_name(-code));
    }
    assert_string_equal(weir_code_name(-EIO), "EIO");
    assert_string_equal(weir_code_name(EAGAIN), "EAGAIN");
    assert_string_equal(weir_code_name(-ENOTSUP), "EOPNOTSUPP");
    assert_string_equal(weir_code_text(-ENOSPC), "no space left on device");
    assert_string_equal(weir_code_name(0), "OK");
}

static void code__own_have_names(void **state)
{
    (void)state;
    assert_string_equal(weir_code_name(-WEIR_ECORRUPT), "WEIR_ECORRUPT");
    assert_string_equal(weir_code_name(WEIR_EMISMATCH), "WEIR_EMISMATCH");
    for (int code = WEIR_ECORRUPT; code <= WEIR_EMISMATCH; code++) {
        assert_memory_equal(weir_code_name(code), "WEIR_E", 6);
        assert_true(strlen(weir_code_text(-code)) > 3);
    }
}

static void code__unknown_is_said(void **state)
{
    static const int64_t codes[] = {
        134, 4095, 9999, WEIR_ECODE_FIRST, WEIR_EMISMATCH + 1, INT64_MAX, INT64_MIN, -10000,
    };

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(codes); i++) {
        assert_string_equal(weir_code_name(codes[i]), "E?");
        assert_string_equal(weir_code_text(codes[i]), "unknown error");
    }
}

static void version__is_the_header_s(void **state)
{
    char want[32];

    (void)state;
    snprintf(want, sizeof(want), "%d.%d.%d", WEIR_VERSION_MAJOR, WEIR_VERSION_MINOR,
             WEIR_VERSION_PATCH);
    assert_string_equal(weir_version(), want);
}

/* The line of the header, and each part left out. */
static void error_format__has_what_is_known(void **state)
{
    struct weir_error error;

    (void)state;
    assert_int_equal(wi_error_set(&error, -EIO, WEIR_OP_READ, "data.bin", NULL), -EIO);
    error.has_offset = 1;
    error.offset = 4096;
    check_line(&error, "read of data.bin at 4096: input/output error (EIO)");
    error.job_id = 17;
    check_line(&error, "read of data.bin at 4096: input/output error (EIO) [job 17]");

    wi_error_set(&error, -EIO, WEIR_OP_WRITEV, NULL, NULL);
    check_line(&error, "write: input/output error (EIO)");
    error.has_offset = 1;
    error.offset = UINT64_MAX;
    check_line(&error, "write at 18446744073709551615: input/output error (EIO)");

    wi_error_set(&error, -EINVAL, WEIR_OP_NONE, "x", "%s is %d", "size", 3);
    check_line(&error, "x: size is 3 (EINVAL)");
    wi_error_set(&error, -WEIR_ECORRUPT, WEIR_OP_NONE, NULL, "bad");
    check_line(&error, "bad (WEIR_ECORRUPT)");
    error.text[0] = '\0';
    error.op = 12345;
    check_line(&error,
               "stored data are damaged: their checksum does not match (WEIR_ECORRUPT)");
}

/* What a terminal would act on, and what is no UTF-8, is escaped; all else is not. */
static void error_format__escapes(void **state)
{
    static const struct {
        const char *path;
        const char *want;
    } cases[] = {
        { "a b", "a b" },
        { "a\nb\tc\rd", "a\\nb\\tc\\rd" },
        { "\x1b[31m\x7f\x01", "\\x1b[31m\\x7f\\x01" },
        { "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f" },
        { "\xe2\x82\xac \xf0\x9f\x8c\x8a", "\xe2\x82\xac \xf0\x9f\x8c\x8a" },
        { "\xff\xfe", "\\xff\\xfe" },
        { "\xc3", "\\xc3" },          /* cut off */
        { "\xc3(", "\\xc3(" },        /* not continued */
        { "\xc0\xaf", "\\xc0\\xaf" }, /* overlong */
        { "\xe0\x80\xaf", "\\xe0\\x80\\xaf" },
        { "\xed\xa0\x80", "\\xed\\xa0\\x80" },          /* a surrogate */
        { "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" }, /* beyond the last */
        { "\xf0\x9f\x8c", "\\xf0\\x9f\\x8c" },
        { "\xc2\x9b"
          "31m",
          "\\xc2\\x9b31m" },        /* U+009B, which terminals obey */
        { "\xc2\xa0", "\xc2\xa0" }, /* U+00A0 is a blank */
        { "back\\slash", "back\\slash" },
    };

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(cases); i++) {
        struct weir_error error;
        char want[128];

        wi_error_set(&error, -ENOENT, WEIR_OP_OPEN, cases[i].path, NULL);
        snprintf(want, sizeof(want), "open of %s: no such file or directory (ENOENT)",
                 cases[i].want);
        check_line(&error, want);
    }
}

/* For every size of buffer: the wanted length is the same, what is written is a prefix, it is
 * terminated, nothing is written behind it, and no character or escape is cut. */
static void error_format__truncates(void **state)
{
    struct weir_error error;
    char whole[256];
    int len;

    (void)state;
    wi_error_set(&error, -EIO, WEIR_OP_READ, "\xe2\x82\xac\x1b\n\xc3\xbc", NULL);
    len = weir_error_format(&error, whole, sizeof(whole));
    assert_int_equal(len, strlen(whole));
    assert_int_equal(weir_error_format(&error, NULL, 0), len);
    for (size_t size = 1; size <= (size_t)len + 2; size++) {
        char *buf = malloc(size); /* of that size, so that ASan sees a byte too many */
        size_t got;

        assert_non_null(buf);
        assert_int_equal(weir_error_format(&error, buf, size), len);
        got = strlen(buf);
        assert_true(got < size);
        assert_memory_equal(buf, whole, got);
        assert_true(size > (size_t)len ? got == (size_t)len : size - got <= 4);
        assert_true((buf[got ? got - 1 : 0] & 0xc0) != 0xc0); /* no first byte at the end */
        if (got)
            assert_true(buf[got - 1] != '\\');
        free(buf);
    }
}

/* Setting clears everything that was there; NULL is allowed. */
static void error_set__clears(void **state)
{
    struct weir_error error;

    (void)state;
    memset(&error, 0xff, sizeof(error));
    assert_int_equal(wi_error_set(&error, -EBUSY, 3, NULL, NULL), -EBUSY);
    assert_int_equal(error.code, -EBUSY);
    assert_int_equal(error.op, 3);
    assert_int_equal(error.job_id, 0);
    assert_int_equal(error.has_offset, 0);
    assert_string_equal(error.path, "");
    assert_string_equal(error.text, "busy");
    assert_int_equal(wi_error_set(NULL, -EIO, 0, "x", NULL), -EIO);
}

/* Of a long name the end is kept, cut between characters; a long text keeps its beginning. */
static void error_set__cuts(void **state)
{
    static const char *const ends[] = { "/end", "//end", "///end" }; /* every way to cut */
    struct weir_error error;
    char path[1024];

    (void)state;
    for (size_t e = 0; e < WI_ARRAY_LEN(ends); e++) {
        size_t len = 0;

        for (; len < 900; len += 3)
            memcpy(path + len, "\xe2\x82\xac", 3);
        memcpy(path + len, ends[e], strlen(ends[e]) + 1);
        wi_error_set(&error, -EIO, 0, path, "%0500d", 7);
        assert_true(strlen(error.path) >= sizeof(error.path) - 4);
        assert_string_equal(error.path, path + strlen(path) - strlen(error.path));
        assert_memory_equal(error.path, "\xe2\x82\xac", 3);
        assert_int_equal(strlen(error.text), sizeof(error.text) - 1);
    }

    path[sizeof(error.path) - 1] = '\0'; /* just fits */
    wi_error_set(&error, -EIO, 0, path, NULL);
    assert_string_equal(error.path, path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code__all_have_names),
        cmocka_unit_test(code__own_have_names),
        cmocka_unit_test(code__unknown_is_said),
        cmocka_unit_test(version__is_the_header_s),
        cmocka_unit_test(error_format__has_what_is_known),
        cmocka_unit_test(error_format__escapes),
        cmocka_unit_test(error_format__truncates),
        cmocka_unit_test(error_set__clears),
        cmocka_unit_test(error_set__cuts),
    };

    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
