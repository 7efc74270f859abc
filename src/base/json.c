/* SPDX-License-Identifier: MIT */
/*
 * json.c - write JSON on one line
 *
 * A writer only, for statistics and reports: nothing nests beyond what the caller opens, so
 * there is no tree. The text always has room for its terminator.
 */
#include <math.h>

#include "json.h"
#include "utf8.h"

#define FIRST_ROOM   ((size_t)512)
#define MAX_DECIMALS 17
#define REPLACEMENT  "\xef\xbf\xbd" /* U+FFFD */

static bool reserve(struct wi_json *json, size_t more)
{
    size_t room = json->room ? json->room : FIRST_ROOM;
    char *text;

    if (json->failed)
        return false;
    if (more < json->room - json->len)
        return true;
    while (room - json->len <= more) {
        if (room > SIZE_MAX / 2) {
            json->failed = true;
            return false;
        }
        room *= 2;
    }
    text = realloc(json->text, room);
    if (!text) {
        json->failed = true;
        return false;
    }
    json->text = text;
    json->room = room;
    return true;
}

static void put(struct wi_json *json, const char *bytes, size_t len)
{
    if (!reserve(json, len))
        return;
    memcpy(json->text + json->len, bytes, len);
    json->len += len;
    json->text[json->len] = '\0';
}

static void put_escaped(struct wi_json *json, unsigned char byte)
{
    static const char shorts[] = "\bb\tt\nn\ff\rr\"\"\\\\";
    char escape[8];

    for (const char *s = shorts; *s; s += 2) {
        if ((unsigned char)s[0] == byte) {
            put(json, (const char[]){ '\\', s[1] }, 2);
            return;
        }
    }
    put(json, escape, (size_t)snprintf(escape, sizeof(escape), "\\u%04x", byte));
}

static void put_string(struct wi_json *json, const char *text)
{
    put(json, "\"", 1);
    while (*text) {
        const char *plain = text;
        unsigned char byte;
        size_t len;

        /* As much as needs no care at once. */
        for (;;) {
            byte = (unsigned char)*text;
            len = wi_utf8_char(text);
            if (len == 0 || byte < 0x20 || byte == '"' || byte == '\\')
                break;
            text += len;
        }
        put(json, plain, (size_t)(text - plain));
        if (!byte)
            break;
        if (len == 0)
            put(json, REPLACEMENT, sizeof(REPLACEMENT) - 1);
        else
            put_escaped(json, byte);
        text++;
    }
    put(json, "\"", 1);
}

/* What stands before a value: the comma, and the key in an object. */
static void begin_value(struct wi_json *json, const char *key)
{
    if (json->comma)
        put(json, ",", 1);
    json->comma = true;
    if (key) {
        put_string(json, key);
        put(json, ":", 1);
    }
}

void wi_json_init(struct wi_json *json)
{
    *json = (struct wi_json){ 0 };
}

void wi_json_open(struct wi_json *json, const char *key, char bracket)
{
    begin_value(json, key);
    put(json, &bracket, 1);
    json->comma = false;
}

void wi_json_close(struct wi_json *json, char bracket)
{
    put(json, &bracket, 1);
    json->comma = true;
}

void wi_json_u64(struct wi_json *json, const char *key, uint64_t value)
{
    char digits[24];

    begin_value(json, key);
    put(json, digits,
        (size_t)snprintf(digits, sizeof(digits), "%llu", (unsigned long long)value));
}

void wi_json_i64(struct wi_json *json, const char *key, int64_t value)
{
    char digits[24];

    begin_value(json, key);
    put(json, digits, (size_t)snprintf(digits, sizeof(digits), "%lld", (long long)value));
}

void wi_json_double(struct wi_json *json, const char *key, double value, int decimals)
{
    char digits[400]; /* the largest double has 309 before the point */
    size_t len = 0;

    begin_value(json, key);
    if (!isfinite(value)) {
        put(json, "null", 4); /* JSON has no word for these */
        return;
    }
    decimals = decimals < 0 ? 0 : (decimals > MAX_DECIMALS ? MAX_DECIMALS : decimals);
    snprintf(digits, sizeof(digits), "%.*f", decimals, value);

    /* The locale may have another point, of several bytes even. */
    for (const char *c = digits; *c; c++) {
        if ((*c >= '0' && *c <= '9') || *c == '-')
            digits[len++] = *c;
        else if (len > 0 && digits[len - 1] != '.')
            digits[len++] = '.';
    }
    put(json, digits, len);
}

void wi_json_bool(struct wi_json *json, const char *key, bool value)
{
    begin_value(json, key);
    if (value)
        put(json, "true", 4);
    else
        put(json, "false", 5);
}

void wi_json_string(struct wi_json *json, const char *key, const char *value)
{
    begin_value(json, key);
    put_string(json, value);
}

char *wi_json_finish(struct wi_json *json)
{
    char *text = json->text;

    if (json->failed) {
        free(text);
        text = NULL;
    }
    wi_json_init(json);
    return text;
}
