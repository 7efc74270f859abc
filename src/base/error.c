/* SPDX-License-Identifier: MIT */
/*
 * error.c - names and texts of codes, and the error record
 *
 * The texts are our own rather than strerror's: the same on every libc and in every locale,
 * and worded for storage. One table has them all.
 */
#include <weir/job.h>

#include "error.h"
#include "utf8.h"

/* --- names and texts -------------------------------------------------------------------- */

struct code_entry {
    const char *name;
    const char *text;
};

#define CODE(code, text) [code] = { #code, text }

/* Indexed by errno. What Linux knows under two names appears under the more common one. */
static const struct code_entry errno_codes[] = {
    [0] = { "OK", "no error" },
    CODE(EPERM, "operation not permitted"),
    CODE(ENOENT, "no such file or directory"),
    CODE(ESRCH, "no such process"),
    CODE(EINTR, "interrupted by a signal"),
    CODE(EIO, "input/output error"),
    CODE(ENXIO, "no such device or address"),
    CODE(E2BIG, "argument list too long"),
    CODE(ENOEXEC, "not an executable format"),
    CODE(EBADF, "bad file descriptor, or not open for this"),
    CODE(ECHILD, "no child processes"),
    CODE(EAGAIN, "temporarily unavailable; try again"),
    CODE(ENOMEM, "out of memory"),
    CODE(EACCES, "permission denied"),
    CODE(EFAULT, "bad memory address"),
    CODE(ENOTBLK, "not a block device"),
    CODE(EBUSY, "busy"),
    CODE(EEXIST, "already exists"),
    CODE(EXDEV, "not on the same file system"),
    CODE(ENODEV, "no such device, or not supported by it"),
    CODE(ENOTDIR, "not a directory"),
    CODE(EISDIR, "is a directory"),
    CODE(EINVAL, "invalid argument"),
    CODE(ENFILE, "too many open files in the system"),
    CODE(EMFILE, "too many open files in this process"),
    CODE(ENOTTY, "not possible on this kind of file"),
    CODE(ETXTBSY, "the file is a program that is running"),
    CODE(EFBIG, "file too large"),
    CODE(ENOSPC, "no space left on device"),
    CODE(ESPIPE, "cannot seek"),
    CODE(EROFS, "read-only file system"),
    CODE(EMLINK, "too many links"),
    CODE(EPIPE, "broken pipe"),
    CODE(EDOM, "number outside the domain of the function"),
    CODE(ERANGE, "result out of range"),
    CODE(EDEADLK, "would deadlock"),
    CODE(ENAMETOOLONG, "file name too long"),
    CODE(ENOLCK, "no locks available"),
    CODE(ENOSYS, "not implemented by this kernel, or forbidden"),
    CODE(ENOTEMPTY, "directory not empty"),
    CODE(ELOOP, "too many levels of symbolic links"),
    CODE(ENOMSG, "no message of the wanted type"),
    CODE(EIDRM, "identifier removed"),
    CODE(ECHRNG, "channel number out of range"),
    CODE(EL2NSYNC, "level 2 not synchronised"),
    CODE(EL3HLT, "level 3 halted"),
    CODE(EL3RST, "level 3 reset"),
    CODE(ELNRNG, "link number out of range"),
    CODE(EUNATCH, "protocol driver not attached"),
    CODE(ENOCSI, "no CSI structure available"),
    CODE(EL2HLT, "level 2 halted"),
    CODE(EBADE, "invalid exchange"),
    CODE(EBADR, "invalid request descriptor"),
    CODE(EXFULL, "exchange full"),
    CODE(ENOANO, "no anode"),
    CODE(EBADRQC, "invalid request code"),
    CODE(EBADSLT, "invalid slot"),
    CODE(EBFONT, "bad font file format"),
    CODE(ENOSTR, "device is not a stream"),
    CODE(ENODATA, "no data available"),
    CODE(ETIME, "timer expired"),
    CODE(ENOSR, "out of stream resources"),
    CODE(ENONET, "machine is not on the network"),
    CODE(ENOPKG, "package not installed"),
    CODE(EREMOTE, "object is remote"),
    CODE(ENOLINK, "link has been severed"),
    CODE(EADV, "advertise error"),
    CODE(ESRMNT, "srmount error"),
    CODE(ECOMM, "communication error on send"),
    CODE(EPROTO, "protocol error"),
    CODE(EMULTIHOP, "multihop attempted"),
    CODE(EDOTDOT, "RFS specific error"),
    CODE(EBADMSG, "bad message, or stored data fail the file system's checksum"),
    CODE(EOVERFLOW, "value too large for its type"),
    CODE(ENOTUNIQ, "name not unique on the network"),
    CODE(EBADFD, "file descriptor in a bad state"),
    CODE(EREMCHG, "remote address changed"),
    CODE(ELIBACC, "cannot access a shared library"),
    CODE(ELIBBAD, "a shared library is corrupted"),
    CODE(ELIBSCN, ".lib section of a program is corrupted"),
    CODE(ELIBMAX, "too many shared libraries"),
    CODE(ELIBEXEC, "cannot execute a shared library directly"),
    CODE(EILSEQ, "invalid byte sequence"),
    CODE(ERESTART, "interrupted; to be restarted"),
    CODE(ESTRPIPE, "streams pipe error"),
    CODE(EUSERS, "too many users"),
    CODE(ENOTSOCK, "not a socket"),
    CODE(EDESTADDRREQ, "destination address required"),
    CODE(EMSGSIZE, "message too long"),
    CODE(EPROTOTYPE, "wrong protocol type for the socket"),
    CODE(ENOPROTOOPT, "protocol option not available"),
    CODE(EPROTONOSUPPORT, "protocol not supported"),
    CODE(ESOCKTNOSUPPORT, "socket type not supported"),
    CODE(EOPNOTSUPP, "not supported here"),
    CODE(EPFNOSUPPORT, "protocol family not supported"),
    CODE(EAFNOSUPPORT, "address family not supported"),
    CODE(EADDRINUSE, "address already in use"),
    CODE(EADDRNOTAVAIL, "address not available"),
    CODE(ENETDOWN, "network is down"),
    CODE(ENETUNREACH, "network is unreachable"),
    CODE(ENETRESET, "network dropped the connection"),
    CODE(ECONNABORTED, "connection aborted"),
    CODE(ECONNRESET, "connection reset by peer"),
    CODE(ENOBUFS, "no buffer space available"),
    CODE(EISCONN, "already connected"),
    CODE(ENOTCONN, "not connected"),
    CODE(ESHUTDOWN, "shut down"),
    CODE(ETOOMANYREFS, "too many references"),
    CODE(ETIMEDOUT, "timed out"),
    CODE(ECONNREFUSED, "connection refused"),
    CODE(EHOSTDOWN, "host is down"),
    CODE(EHOSTUNREACH, "no route to host"),
    CODE(EALREADY, "already in progress"),
    CODE(EINPROGRESS, "now in progress"),
    CODE(ESTALE, "stale file handle: no longer the same file"),
    CODE(EUCLEAN, "the file system is damaged and needs a check"),
    CODE(ENOTNAM, "not a XENIX named type file"),
    CODE(ENAVAIL, "no XENIX semaphores available"),
    CODE(EISNAM, "is a named type file"),
    CODE(EREMOTEIO, "remote input/output error"),
    CODE(EDQUOT, "disk quota exceeded"),
    CODE(ENOMEDIUM, "no medium in the drive"),
    CODE(EMEDIUMTYPE, "wrong type of medium"),
    CODE(ECANCELED, "cancelled"),
    CODE(ENOKEY, "required key not available"),
    CODE(EKEYEXPIRED, "key has expired"),
    CODE(EKEYREVOKED, "key has been revoked"),
    CODE(EKEYREJECTED, "key was rejected"),
    CODE(EOWNERDEAD, "the owner of the lock died"),
    CODE(ENOTRECOVERABLE, "state is not recoverable"),
    CODE(ERFKILL, "switched off by RF-kill"),
    CODE(EHWPOISON, "memory page has a hardware error"),
};

/* Indexed by the distance to WEIR_ECODE_FIRST. */
#define OWN(code, text) [(code)-WEIR_ECODE_FIRST] = { #code, text }

static const struct code_entry own_codes[] = {
    OWN(WEIR_ECORRUPT, "stored data are damaged: their checksum does not match"),
    OWN(WEIR_ETRUNCATED, "the file ends too early"),
    OWN(WEIR_EVERSION, "written by a newer release"),
    OWN(WEIR_ECHANGED, "the file changed while it was read"),
    OWN(WEIR_EMISMATCH, "the copy differs from its source"),
};

static const struct code_entry *find_code(int64_t code)
{
    static const struct code_entry unknown = { "E?", "unknown error" };
    /* Negating as unsigned is defined for INT64_MIN too. */
    uint64_t positive = code < 0 ? 0 - (uint64_t)code : (uint64_t)code;
    const struct code_entry *entry = &unknown;

    if (positive < WI_ARRAY_LEN(errno_codes))
        entry = &errno_codes[positive];
    else if (positive >= WEIR_ECODE_FIRST &&
             positive - WEIR_ECODE_FIRST < WI_ARRAY_LEN(own_codes))
        entry = &own_codes[positive - WEIR_ECODE_FIRST];
    return entry->name ? entry : &unknown; /* the tables have gaps */
}

const char *weir_code_name(int64_t code)
{
    return find_code(code)->name;
}

const char *weir_code_text(int64_t code)
{
    return find_code(code)->text;
}

const char *weir_version(void)
{
    return WEIR_VERSION;
}

/* --- the record --------------------------------------------------------------------------- */

/* The end of the path if it is longer; cut between characters, so that a name that was UTF-8
 * still is. */
static void copy_path(char *to, size_t size, const char *path)
{
    size_t len = strlen(path);

    if (len >= size) {
        path += len - (size - 1);
        len = size - 1;
        for (int i = 0; i < 3 && wi_utf8_continues(*path); i++) {
            path++;
            len--;
        }
    }
    memcpy(to, path, len + 1);
}

int wi_error_set(struct weir_error *error, int64_t code, uint32_t op, const char *path,
                 const char *format, ...)
{
    va_list args;

    if (!error)
        return (int)code;
    memset(error, 0, sizeof(*error));
    error->code = (int32_t)code;
    error->op = op;
    if (path)
        copy_path(error->path, sizeof(error->path), path);
    if (format) {
        va_start(args, format);
        if (vsnprintf(error->text, sizeof(error->text), format, args) < 0)
            error->text[0] = '\0';
        va_end(args);
    }
    if (error->text[0] == '\0')
        snprintf(error->text, sizeof(error->text), "%s", weir_code_text(code));
    return (int)code;
}

/* --- one line ----------------------------------------------------------------------------- */

static const char *const op_names[] = {
    [WEIR_OP_NONE] = "",
    [WEIR_OP_READ] = "read",
    [WEIR_OP_WRITE] = "write",
    [WEIR_OP_READV] = "read",
    [WEIR_OP_WRITEV] = "write",
    [WEIR_OP_FSYNC] = "fsync",
    [WEIR_OP_FDATASYNC] = "fdatasync",
    [WEIR_OP_OPEN] = "open",
    [WEIR_OP_CLOSE] = "close",
    [WEIR_OP_STAT] = "stat",
    [WEIR_OP_TRUNCATE] = "truncate",
    [WEIR_OP_ALLOCATE] = "allocate",
    [WEIR_OP_MKDIR] = "mkdir",
    [WEIR_OP_UNLINK] = "unlink",
    [WEIR_OP_RMDIR] = "rmdir",
    [WEIR_OP_RENAME] = "rename",
    [WEIR_OP_LINK] = "link",
    [WEIR_OP_SYMLINK] = "symlink",
    [WEIR_OP_READLINK] = "readlink",
    [WEIR_OP_LIST] = "list",
    [WEIR_OP_CALL] = "call",
    [WEIR_OP_NOP] = "nop",
    [WEIR_OP_CANCEL] = "cancel",
    [WEIR_OP_VIEW] = "view",
    [WEIR_OP_READ_MANY] = "read_many",
    [WEIR_OP_ADVISE] = "advise",
};
_Static_assert(WI_ARRAY_LEN(op_names) == WEIR_OPS, "a name for each operation");

/* Counts all that is put in, keeps what fits. `full` once something did not, so that no
 * shorter piece slips in behind it. */
struct line {
    char *buf;
    size_t size;
    size_t wanted;
    bool full;
};

/* A piece goes in whole or not at all: half a character or half an escape means nothing. */
static void put_piece(struct line *line, const char *piece, size_t len)
{
    if (line->size == 0 || len > line->size - 1 - wi_min_u64(line->wanted, line->size - 1))
        line->full = true;
    if (!line->full) {
        memcpy(line->buf + line->wanted, piece, len);
        line->buf[line->wanted + len] = '\0';
    }
    line->wanted += len;
}

static void put_text(struct line *line, const char *text)
{
    for (; *text; text++)
        put_piece(line, text, 1);
}

static void put_number(struct line *line, uint64_t number)
{
    char digits[24];

    snprintf(digits, sizeof(digits), "%llu", (unsigned long long)number);
    put_text(line, digits);
}

/* Bytes a terminal would act on, or that are no characters, as \n, \t, \r or \x1b. The
 * control characters U+0080 to U+009F count: terminals obey them too. */
static void put_escaped(struct line *line, const char *text)
{
    while (*text) {
        unsigned char byte = (unsigned char)*text;
        size_t len = wi_utf8_char(text);
        bool control = byte < 0x20 || byte == 0x7f ||
                       (len == 2 && byte == 0xc2 && (unsigned char)text[1] < 0xa0);
        char escape[8];

        if (len > 0 && !control) {
            put_piece(line, text, len);
            text += len;
            continue;
        }
        if (byte == '\n' || byte == '\t' || byte == '\r')
            snprintf(escape, sizeof(escape), "\\%c",
                     byte == '\n' ? 'n' : (byte == '\t' ? 't' : 'r'));
        else
            snprintf(escape, sizeof(escape), "\\x%02x", byte);
        put_piece(line, escape, strlen(escape));
        text++;
    }
}

int weir_error_format(const struct weir_error *error, char *buf, size_t size)
{
    struct line line = { .buf = buf, .size = size };
    const char *op = error->op < WEIR_OPS ? op_names[error->op] : "";

    if (size > 0)
        buf[0] = '\0';
    put_text(&line, op);
    if (error->path[0]) {
        put_text(&line, line.wanted ? " of " : "");
        put_escaped(&line, error->path);
    }
    if (error->has_offset) {
        put_text(&line, line.wanted ? " at " : "at ");
        put_number(&line, error->offset);
    }
    put_text(&line, line.wanted ? ": " : "");
    put_escaped(&line, error->text[0] ? error->text : weir_code_text(error->code));
    put_text(&line, " (");
    put_text(&line, weir_code_name(error->code));
    put_text(&line, ")");
    if (error->job_id) {
        put_text(&line, " [job ");
        put_number(&line, error->job_id);
        put_text(&line, "]");
    }
    return (int)line.wanted;
}
