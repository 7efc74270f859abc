/* SPDX-License-Identifier: MIT */
/*
 * json.h - write JSON on one line
 *
 * Grows its own memory; the first failed allocation is remembered, everything after does
 * nothing, and wi_json_finish answers NULL. Strings are taken as UTF-8; bytes that are not
 * become U+FFFD. A NULL key means an element of an array.
 */
#ifndef WEIR_BASE_JSON_H
#define WEIR_BASE_JSON_H

#include "common.h"

struct wi_json {
    char *text;
    size_t len;
    size_t room;
    bool failed;
    bool comma;
};

void wi_json_init(struct wi_json *json);
void wi_json_open(struct wi_json *json, const char *key, char bracket); /* '{' or '[' */
void wi_json_close(struct wi_json *json, char bracket);                 /* '}' or ']' */
void wi_json_u64(struct wi_json *json, const char *key, uint64_t value);
void wi_json_i64(struct wi_json *json, const char *key, int64_t value);
void wi_json_double(struct wi_json *json, const char *key, double value, int decimals);
void wi_json_bool(struct wi_json *json, const char *key, bool value);
void wi_json_string(struct wi_json *json, const char *key, const char *value);
/* Given to the caller: free() it; NULL without memory. */
char *wi_json_finish(struct wi_json *json);

#endif
