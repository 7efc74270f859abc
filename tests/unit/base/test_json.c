/* SPDX-License-Identifier: MIT */
#include <locale.h>
#include <math.h>
#include <sys/wait.h>

#include "base/json.h"
#include "base_test.h"

static void check_text(struct wi_json *json, const char *want)
{
    char *text = wi_json_finish(json);

    assert_non_null(text);
    assert_string_equal(text, want);
    free(text);
}

/* Objects, arrays and every kind of value, with commas where they belong. */
static void json__nests(void **state)
{
    struct wi_json json;

    (void)state;
    wi_json_init(&json);
    wi_json_open(&json, NULL, '{');
    wi_json_u64(&json, "u", UINT64_MAX);
    wi_json_i64(&json, "i", INT64_MIN);
    wi_json_open(&json, "empty", '{');
    wi_json_close(&json, '}');
    wi_json_open(&json, "list", '[');
    wi_json_bool(&json, NULL, true);
    wi_json_open(&json, NULL, '[');
    wi_json_close(&json, ']');
    wi_json_open(&json, NULL, '{');
    wi_json_bool(&json, "b", false);
    wi_json_close(&json, '}');
    wi_json_double(&json, NULL, 2.5, 3);
    wi_json_close(&json, ']');
    wi_json_string(&json, "s", "");
    wi_json_close(&json, '}');
    check_text(&json, "{\"u\":18446744073709551615,\"i\":-9223372036854775808,\"empty\":{},"
                      "\"list\":[true,[],{\"b\":false},2.500],\"s\":\"\"}");
}

static void json__escapes(void **state)
{
    static const struct {
        const char *text;
        const char *want;
    } cases[] = {
        { "plain / text", "\"plain / text\"" },
        { "\"\\", "\"\\\"\\\\\"" },
        { "\b\f\n\r\t", "\"\\b\\f\\n\\r\\t\"" },
        { "\x01\x1f", "\"\\u0001\\u001f\"" },
        { "\xc3\xbc\xe2\x82\xac\xf0\x9f\x8c\x8a", "\"\xc3\xbc\xe2\x82\xac\xf0\x9f\x8c\x8a\"" },
        { "a\xff"
          "b",
          "\"a\xef\xbf\xbd"
          "b\"" },
        { "\xc3", "\"\xef\xbf\xbd\"" },
        { "\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
        { "\xf5", "\"\xef\xbf\xbd\"" },
    };

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(cases); i++) {
        struct wi_json json;

        wi_json_init(&json);
        wi_json_string(&json, NULL, cases[i].text);
        check_text(&json, cases[i].want);
    }
}

/* JSON knows no infinity and no NaN, and decimals are bounded. */
static void json__doubles(void **state)
{
    static const struct {
        double value;
        int decimals;
        const char *want;
    } cases[] = {
        { 0, 0, "0" },
        { 1.0 / 3, 3, "0.333" },
        { -1234.5678, 2, "-1234.57" },
        { 1e21, 0, "1000000000000000000000" },
        { 1, -3, "1" },
        { NAN, 2, "null" },
        { INFINITY, 2, "null" },
        { -INFINITY, 2, "null" },
        { 0.5, 99, "0.50000000000000000" },
    };

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(cases); i++) {
        struct wi_json json;

        wi_json_init(&json);
        wi_json_double(&json, NULL, cases[i].value, cases[i].decimals);
        check_text(&json, cases[i].want);
    }
}

/* A program's locale with another decimal point changes nothing. */
static void json__doubles_ignore_the_locale(void **state)
{
    static const char *const names[] = { "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE" };
    struct wi_json json;
    bool found = false;

    (void)state;
    for (size_t i = 0; i < WI_ARRAY_LEN(names) && !found; i++)
        found = setlocale(LC_NUMERIC, names[i]) != NULL;
    if (!found) {
        print_message("no locale with another decimal point is installed\n");
        skip();
    }
    wi_json_init(&json);
    wi_json_double(&json, NULL, 1.5, 1);
    (void)setlocale(LC_NUMERIC, "C");
    check_text(&json, "1.5");
}

/* A document of random strings and depth, long enough to grow many times, is JSON to
 * somebody else. */
static void json__python_agrees(void **state)
{
    struct base_rng rng = base_rng_start();
    struct wi_json json;
    char brackets[50];
    unsigned depth = 0;
    FILE *python;
    char *text;
    int status;

    (void)state;
    wi_json_init(&json);
    wi_json_open(&json, NULL, '[');
    for (unsigned i = 0; i < 5000; i++) {
        bool in_object = depth > 0 && brackets[depth - 1] == '}';
        char name[40];
        char value[40];

        snprintf(name, sizeof(name), "%u \" \\ \n \xff", i);
        for (size_t b = 0; b + 1 < sizeof(value); b++)
            value[b] = (char)base_rng_below(&rng, 256);
        value[sizeof(value) - 1] = '\0';
        switch (base_rng_below(&rng, 6)) {
        case 0:
            if (depth < sizeof(brackets)) {
                bool object = base_rng_below(&rng, 2) == 0;

                wi_json_open(&json, in_object ? name : NULL, object ? '{' : '[');
                brackets[depth++] = object ? '}' : ']';
            }
            break;
        case 1:
            if (depth > 0)
                wi_json_close(&json, brackets[--depth]);
            break;
        case 2:
            wi_json_double(&json, in_object ? name : NULL, (double)base_rng_next(&rng) / 1e10,
                           6);
            break;
        default:
            wi_json_string(&json, in_object ? name : NULL, value);
            break;
        }
    }
    while (depth > 0)
        wi_json_close(&json, brackets[--depth]);
    wi_json_close(&json, ']');
    text = wi_json_finish(&json);
    assert_non_null(text);
    assert_null(strchr(text, '\n'));

    python = popen("python3 -m json.tool >/dev/null", "w");
    assert_non_null(python);
    fputs(text, python);
    free(text);
    status = pclose(python);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        print_message("there is no python3\n");
        skip();
    }
    assert_int_equal(status, 0);
}

/* A failed allocation is remembered: everything after does nothing, and the end is NULL. */
static void json__failure_is_remembered(void **state)
{
    struct wi_json json;

    (void)state;
    wi_json_init(&json);
    wi_json_open(&json, NULL, '[');
    json.failed = true;
    wi_json_u64(&json, NULL, 1);
    wi_json_close(&json, ']');
    assert_null(wi_json_finish(&json));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json__nests),
        cmocka_unit_test(json__escapes),
        cmocka_unit_test(json__doubles),
        cmocka_unit_test(json__doubles_ignore_the_locale),
        cmocka_unit_test(json__python_agrees),
        cmocka_unit_test(json__failure_is_remembered),
    };

    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
