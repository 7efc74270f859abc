/* SPDX-License-Identifier: MIT */
/*
 * utf8.h - which bytes are characters
 *
 * As RFC 3629 says: no overlong forms, no surrogates, nothing beyond U+10FFFF.
 */
#ifndef WEIR_BASE_UTF8_H
#define WEIR_BASE_UTF8_H

#include "common.h"

static inline bool wi_utf8_continues(char byte)
{
    return ((unsigned char)byte & 0xc0) == 0x80;
}

/* The length of the character that `text` begins with; 0 if it begins with none. The text is
 * terminated; a terminator is a character of length 1. */
static inline size_t wi_utf8_char(const char *text)
{
    unsigned char first = (unsigned char)text[0];
    unsigned char second;
    unsigned char low = 0x80;
    unsigned char high = 0xbf;

    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    second = (unsigned char)text[1];
    if (first < 0xe0)
        return wi_utf8_continues(text[1]) ? 2 : 0;

    /* The second byte rules out what is overlong, a surrogate or too large. */
    if (first == 0xe0)
        low = 0xa0;
    else if (first == 0xed)
        high = 0x9f;
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f;
    if (second < low || second > high || !wi_utf8_continues(text[2]))
        return 0;
    if (first < 0xf0)
        return 3;
    return wi_utf8_continues(text[3]) ? 4 : 0;
}

#endif
