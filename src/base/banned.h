/* SPDX-License-Identifier: MIT */
/*
 * banned.h - functions that are errors here, each naming what to use instead
 *
 * Included by common.h, so by every file of the library. The headers that declare these
 * functions come first, or the macros would spoil the declarations.
 */
#ifndef WEIR_BASE_BANNED_H
#define WEIR_BASE_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* An expression that does not compile and says why. */
#define WI_BANNED(text)          \
    sizeof(struct {              \
        _Static_assert(0, text); \
        int unused;              \
    })

/* No bounds. */
#undef strcpy
#undef strcat
#undef stpcpy
#undef sprintf
#undef vsprintf
#define strcpy(...)   WI_BANNED("strcpy has no bound: use snprintf, or memcpy with a size")
#define strcat(...)   WI_BANNED("strcat has no bound: use snprintf into the rest of the buffer")
#define stpcpy(...)   WI_BANNED("stpcpy has no bound: use snprintf, or memcpy with a size")
#define sprintf(...)  WI_BANNED("sprintf has no bound: use snprintf")
#define vsprintf(...) WI_BANNED("vsprintf has no bound: use vsnprintf")

/* Bounds that leave out the terminator, or mean something else than they seem to. */
#undef strncpy
#undef strncat
#define strncpy(...) WI_BANNED("strncpy may not terminate: use snprintf, or memcpy with a size")
#define strncat(...) WI_BANNED("strncat counts what is left: use snprintf")

/* No errors reported. */
#undef atoi
#undef atol
#undef atoll
#undef atof
#define atoi(...)  WI_BANNED("atoi hides errors: use strtol and check errno and the end")
#define atol(...)  WI_BANNED("atol hides errors: use strtol and check errno and the end")
#define atoll(...) WI_BANNED("atoll hides errors: use strtoll and check errno and the end")
#define atof(...)  WI_BANNED("atof hides errors: use strtod and check errno and the end")

/* State shared by all threads. */
#undef strtok
#undef strerror
#undef rand
#undef asctime
#undef ctime
#undef gmtime
#undef localtime
#define strtok(...)    WI_BANNED("strtok keeps state for all threads: use strtok_r or strcspn")
#define strerror(...)  WI_BANNED("strerror shares a buffer: use weir_code_text")
#define rand(...)      WI_BANNED("rand keeps state for all threads: use the os table's random")
#define asctime(...)   WI_BANNED("asctime shares a buffer: use strftime")
#define ctime(...)     WI_BANNED("ctime shares a buffer: use strftime")
#define gmtime(...)    WI_BANNED("gmtime shares a buffer: use gmtime_r")
#define localtime(...) WI_BANNED("localtime shares a buffer: use localtime_r")

/* Names that others can take first. */
#undef mktemp
#undef tmpnam
#undef tempnam
#define mktemp(...)  WI_BANNED("mktemp races: open a random name with O_EXCL, or O_TMPFILE")
#define tmpnam(...)  WI_BANNED("tmpnam races: open a random name with O_EXCL, or O_TMPFILE")
#define tempnam(...) WI_BANNED("tempnam races: open a random name with O_EXCL, or O_TMPFILE")

#endif
