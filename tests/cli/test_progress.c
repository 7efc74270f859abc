/* SPDX-License-Identifier: MIT */
/*
 * test_progress.c - the progress line fits every terminal, and text helpers
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "support/support.h"

/* From no columns to many: never as long as the terminal is wide, and more never hides. */
static void line__fits_every_width(void **state)
{
    static const struct weir_copy_progress states[] = {
        { 0 },
        { .bytes_done = 1200000000,
          .bytes_total = 2800000000,
          .files_done = 312,
          .files_total = 5000 },
        { .bytes_done = UINT64_MAX / 2,
          .bytes_total = UINT64_MAX,
          .files_done = UINT64_MAX,
          .files_total = UINT64_MAX,
          .listing = 1,
          .verifying = 3 },
        { .bytes_done = 5, .bytes_total = 4, .files_done = 1, .files_total = 1 },
    };
    char line[512];

    (void)state;
    for (size_t i = 0; i < COUNT(states); i++) {
        int before = 0;

        for (unsigned width = 0; width < 300; width++) {
            int len = cli_progress_line(line, sizeof(line), width, 812000000, &states[i]);

            check_code(len, (int64_t)strlen(line));
            check(len == 0 || (unsigned)len < width);
            check(len >= before || (size_t)(before - len) < 12);
            before = len;
        }
    }
}

static void line__shows_all_there_is(void **state)
{
    struct weir_copy_progress now = { .bytes_done = 1200000000,
                                      .bytes_total = 2800000000,
                                      .files_done = 312,
                                      .files_total = 5000 };
    char line[512];

    (void)state;
    cli_progress_line(line, sizeof(line), 100, 800000000, &now);
    check(strcmp(line, "[============>                 ]  42 %  1.20 GB of 2.80 GB  800 MB/s  "
                       "2 s left  312 of 5,000 files") == 0);
    cli_progress_line(line, sizeof(line), 10, 800000000, &now);
    check(strcmp(line, " 42 %") == 0);
    now.listing = 1;
    cli_progress_line(line, sizeof(line), 100, 800000000, &now);
    check(strstr(line, "at least 2.80 GB") != NULL && strstr(line, "listing") != NULL);
}

static void numbers__read_well(void **state)
{
    char buf[CLI_TEXT];

    (void)state;
    check(strcmp(cli_count(buf, 0), "0") == 0);
    check(strcmp(cli_count(buf, 999), "999") == 0);
    check(strcmp(cli_count(buf, 1234567), "1,234,567") == 0);
    check(strcmp(cli_count(buf, UINT64_MAX), "18,446,744,073,709,551,615") == 0);
    check(strcmp(cli_things(buf, 1, "file", "files"), "1 file") == 0);
    check(strcmp(cli_things(buf, 0, "file", "files"), "0 files") == 0);
    check(strcmp(cli_bytes(buf, 999), "999 B") == 0);
    check(strcmp(cli_bytes(buf, 1000), "1.00 kB") == 0);
    check(strcmp(cli_bytes(buf, 9996), "10.0 kB") == 0);
    check(strcmp(cli_bytes(buf, 999600), "1.00 MB") == 0);
    check(strcmp(cli_bytes(buf, UINT64_MAX), "18.4 EB") == 0);
    check(strcmp(cli_span(buf, 0), "0.00 us") == 0);
    check(strcmp(cli_span(buf, 12345), "12.3 us") == 0);
    check(strcmp(cli_span(buf, 999600000), "1.00 s") == 0);
}

static void name__is_safe_to_show(void **state)
{
    static const struct {
        const char *name;
        const char *shown;
    } all[] = {
        { "plain", "plain" },
        { "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f" },
        { "a\nb\tc", "a\\nb\\tc" },
        { "\x1b[2J", "\\x1b[2J" },
        { "\xff\xc3", "\\xff\\xc3" },
        { "\xc2\x9b", "\\xc2\\x9b" },
        { "", "" },
        { "\xed\xa0\x80", "\\xed\\xa0\\x80" },
    };
    char buf[64];
    char small[8];

    (void)state;
    for (size_t i = 0; i < COUNT(all); i++)
        check(strcmp(cli_name(buf, sizeof(buf), all[i].name), all[i].shown) == 0);
    check(strcmp(cli_name(small, sizeof(small), "1234567"), "1234567") == 0);
    check(strcmp(cli_name(small, sizeof(small), "12345678"), "1234...") == 0);
    check(strlen(cli_name(small, sizeof(small), "\n\n\n\n\n")) < sizeof(small));
}

static void json__is_valid_for_any_bytes(void **state)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    (void)state;
    cli_json_string(to, "a\"b\\c\n\x01\xff\xc3\xbc\xc2\x80\xf0\x9f\x98\x80");
    fclose(to);
    check(strcmp(text, "\"a\\\"b\\\\c\\u000a\\u0001\\ufffd\xc3\xbc\\u0080\xf0\x9f\x98\x80\"") ==
          0);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(line__fits_every_width),
        cmocka_unit_test(line__shows_all_there_is),
        cmocka_unit_test(numbers__read_well),
        cmocka_unit_test(name__is_safe_to_show),
        cmocka_unit_test(json__is_valid_for_any_bytes),
    };

    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
