/* SPDX-License-Identifier: MIT */
/*
 * info.c - weir info: the machine, the engine on it, and a path's file system
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "info.h"

#define VERB "info"

static const char help[] =
    "usage: weir info [PATH] [--json]\n"
    "\n"
    "Shows what this machine, its kernel and its limits allow, which backend the engine runs\n"
    "on and why, what would get a better one, and what the file system of PATH (the current\n"
    "directory if none is given) can do. That is found by trying; nothing is left behind.\n"
    "\n"
    "      --json        one object\n"
    "      --backend B   auto, uring, threads or null\n"
    "  -h, --help\n"
    "\n"
    "Exit status: 0 done, 1 something failed, 2 wrong usage.\n";

struct machine {
    struct utsname name;
    char processor[96];
    uint64_t memory_bytes;
    long cpus_online;
    int cpus_allowed;  /* by the affinity mask */
    double cpus_quota; /* of the control group; 0 if it sets none */
    struct rlimit memlock;
    struct rlimit nofile;
    int uring_disabled; /* kernel.io_uring_disabled; -1 if the kernel does not say */
};

/* ---- finding out --------------------------------------------------------------------------- */

/* The first line of a file that begins with `key`, from behind it; false if there is none. */
static bool find_line(const char *path, const char *key, char *buf, size_t size)
{
    FILE *from = fopen(path, "re");
    size_t key_len = strlen(key);
    char line[512];
    bool found = false;

    if (!from)
        return false;
    while (!found && fgets(line, sizeof(line), from)) {
        if (strncmp(line, key, key_len) != 0)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(buf, size, "%s", line + key_len);
        found = true;
    }
    (void)fclose(from);
    return found;
}

/* The smallest quota on the way up from our control group; version 2 only. */
static double cgroup_quota(void)
{
    char group[400];
    double smallest = 0;

    if (!find_line("/proc/self/cgroup", "0::", group, sizeof(group)))
        return 0;
    for (;;) {
        char path[480];
        char line[64];
        double quota;
        double period;
        char *slash;

        snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", group);
        if (find_line(path, "", line, sizeof(line))) {
            char *end;

            quota = strtod(line, &end); /* "max 100000" leaves end at the start */
            period = end > line ? strtod(end, NULL) : 0;
            if (period > 0 && (smallest == 0 || quota / period < smallest))
                smallest = quota / period;
        }
        slash = strrchr(group, '/');
        if (!slash)
            return smallest;
        *slash = '\0';
    }
}

static void look_at_machine(struct machine *machine)
{
    struct sysinfo system;
    cpu_set_t allowed;
    char line[160];

    memset(machine, 0, sizeof(*machine));
    uname(&machine->name);
    if (find_line("/proc/cpuinfo", "model name", line, sizeof(line))) {
        const char *colon = strchr(line, ':');

        snprintf(machine->processor, sizeof(machine->processor), "%.95s",
                 colon ? colon + 1 + strspn(colon + 1, " ") : line);
    }
    if (sysinfo(&system) == 0)
        machine->memory_bytes = (uint64_t)system.totalram * system.mem_unit;
    machine->cpus_online = sysconf(_SC_NPROCESSORS_ONLN);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
        machine->cpus_allowed = CPU_COUNT(&allowed);
    machine->cpus_quota = cgroup_quota();
    getrlimit(RLIMIT_MEMLOCK, &machine->memlock);
    getrlimit(RLIMIT_NOFILE, &machine->nofile);
    machine->uring_disabled = -1;
    if (find_line("/proc/sys/kernel/io_uring_disabled", "", line, sizeof(line)))
        machine->uring_disabled = (int)strtol(line, NULL, 10);
}

/* ---- for people -------------------------------------------------------------------------------- */

static const char *limit_text(char buf[CLI_TEXT], rlim_t limit, bool bytes)
{
    if (limit == RLIM_INFINITY)
        snprintf(buf, CLI_TEXT, "unlimited");
    else if (bytes)
        snprintf(buf, CLI_TEXT, "%" PRIu64 " KiB", (uint64_t)limit / 1024);
    else
        cli_count(buf, limit);
    return buf;
}

static const char *uring_text(int disabled)
{
    return disabled == 0   ? "allowed to all (kernel.io_uring_disabled = 0)"
           : disabled == 1 ? "allowed to some (kernel.io_uring_disabled = 1)"
           : disabled == 2 ? "forbidden (kernel.io_uring_disabled = 2)"
                           : "no switch";
}

static void text_machine(const struct machine *machine)
{
    char a[CLI_TEXT];

    printf("weir        %s\n", weir_version());
    printf("machine     %s, %s, %s of memory\n", machine->name.machine,
           machine->processor[0] ? machine->processor : "processor not known",
           cli_bytes(a, machine->memory_bytes));
    printf("kernel      %s %s\n", machine->name.sysname, machine->name.release);
    printf("processors  %ld online, %d allowed by the affinity mask", machine->cpus_online,
           machine->cpus_allowed);
    if (machine->cpus_quota > 0)
        printf(", %.2f by the control group\n", machine->cpus_quota);
    else
        printf(", no quota\n");
    printf("limits      locked memory %s", limit_text(a, machine->memlock.rlim_cur, true));
    printf(", descriptors %s\n", limit_text(a, machine->nofile.rlim_cur, false));
    printf("io_uring    %s\n", uring_text(machine->uring_disabled));
}

static void text_engine(const struct weir_engine_info *info)
{
    printf("backend     %s: %s\n", info->backend_name, info->why);
    if (info->cure[0])
        printf("  cure      %s\n", info->cure);
    if (info->backend == WEIR_BACKEND_URING)
        printf("  ring      %s%s%s%s\n",
               info->ring_flags & WEIR_RING_SINGLE_ISSUER ? "SINGLE_ISSUER " : "",
               info->ring_flags & WEIR_RING_DEFER_TASKRUN ? "DEFER_TASKRUN " : "",
               info->ring_flags & WEIR_RING_COOP_TASKRUN ? "COOP_TASKRUN " : "",
               info->ring_flags ? "" : "no flags");
    printf("  threads   io %u, files %u, cpu %u at most\n", info->lane_threads[WEIR_LANE_IO],
           info->lane_threads[WEIR_LANE_FILES], info->lane_threads[WEIR_LANE_CPU]);
}

static void text_path(const struct info_path *path)
{
    char name[256];
    char a[CLI_TEXT];
    char b[CLI_TEXT];
    char c[CLI_TEXT];

    printf("path        %s\n", cli_name(name, sizeof(name), path->path));
    printf("  type      %s%s\n", path->type, path->read_only ? ", read only" : "");
    printf("  space     %s free of %s, %s\n", cli_bytes(a, path->bytes_free),
           cli_bytes(b, path->bytes_total), cli_things(c, path->files_free, "inode", "inodes"));
    if (path->probe_problem[0])
        printf("  not tried by writing: %s\n", path->probe_problem);
    printf("  O_DIRECT  %s", info_answer_text(path->direct));
    if (path->direct == INFO_YES && path->direct_offset_align)
        printf(", memory aligned to %u, offsets to %u", path->direct_memory_align,
               path->direct_offset_align);
    printf("\n  reads     RWF_NOWAIT %s, RWF_DONTCACHE %s\n", info_answer_text(path->nowait),
           info_answer_text(path->dontcache));
    printf("  files     O_TMPFILE %s, reflink %s, SEEK_HOLE %s\n",
           info_answer_text(path->tmpfile), info_answer_text(path->reflink),
           info_answer_text(path->seek_hole));
}

/* ---- for programs --------------------------------------------------------------------------------- */

static void json_text(const char *name, const char *text)
{
    printf("\"%s\":", name);
    cli_json_string(stdout, text);
    putchar(',');
}

static void json_limit(const char *name, rlim_t limit)
{
    if (limit == RLIM_INFINITY)
        printf("\"%s\":null,", name);
    else
        printf("\"%s\":%" PRIu64 ",", name, (uint64_t)limit);
}

static void json_answer(const char *name, enum info_answer answer)
{
    printf(",\"%s\":%s", name,
           answer == INFO_YES  ? "true"
           : answer == INFO_NO ? "false"
                               : "null");
}

static void json_all(const struct machine *machine, const struct weir_engine_info *info,
                     const struct info_path *path)
{
    putchar('{');
    json_text("verb", VERB);
    json_text("version", weir_version());
    json_text("machine", machine->name.machine);
    json_text("processor", machine->processor);
    json_text("kernel", machine->name.release);
    json_limit("memlock_bytes", machine->memlock.rlim_cur);
    json_limit("nofile", machine->nofile.rlim_cur);
    printf("\"memory_bytes\":%" PRIu64 ",\"cpus_online\":%ld,\"cpus_allowed\":%d,"
           "\"cpus_quota\":%.2f,\"io_uring_disabled\":%d,\"backend\":{",
           machine->memory_bytes, machine->cpus_online, machine->cpus_allowed,
           machine->cpus_quota, machine->uring_disabled);
    json_text("name", info->backend_name);
    json_text("why", info->why);
    json_text("cure", info->cure);
    printf("\"ring_flags\":%u,\"threads\":{\"io\":%u,\"files\":%u,\"cpu\":%u}},\"path\":{",
           info->ring_flags, info->lane_threads[WEIR_LANE_IO],
           info->lane_threads[WEIR_LANE_FILES], info->lane_threads[WEIR_LANE_CPU]);
    json_text("name", path->path);
    json_text("type", path->type);
    json_text("problem", path->probe_problem);
    printf("\"bytes_total\":%" PRIu64 ",\"bytes_free\":%" PRIu64 ",\"inodes_free\":%" PRIu64
           ",\"read_only\":%s,\"direct_memory_align\":%u,\"direct_offset_align\":%u",
           path->bytes_total, path->bytes_free, path->files_free,
           path->read_only ? "true" : "false", path->direct_memory_align,
           path->direct_offset_align);
    json_answer("direct", path->direct);
    json_answer("nowait", path->nowait);
    json_answer("dontcache", path->dontcache);
    json_answer("tmpfile", path->tmpfile);
    json_answer("reflink", path->reflink);
    json_answer("seek_hole", path->seek_hole);
    puts("}}");
}

int cli_info(int argc, char **argv)
{
    enum {
        JSON = 256,
        BACKEND
    };
    static const struct option options[] = {
        { "json", no_argument, NULL, JSON },
        { "backend", required_argument, NULL, BACKEND },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    struct weir_engine_info info = { .size = sizeof(info) };
    struct machine machine;
    struct info_path path;
    struct weir_engine *engine;
    const char *name = ".";
    char shown[256];
    bool json = false;
    int backend = WEIR_BACKEND_AUTO;
    int option;
    int rc;

    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (option) {
        case JSON:
            json = true;
            break;
        case BACKEND:
            backend = cli_backend(optarg);
            if (backend < 0)
                return cli_wrong_usage(VERB, "--backend %s: it is auto, uring, threads or null",
                                       optarg);
            break;
        case 'h':
            fputs(help, stdout);
            return cli_end(VERB, CLI_DONE);
        case ':':
            return cli_wrong_usage(VERB, "%s needs a value", argv[optind - 1]);
        default:
            if (optopt > 0 && optopt < 256)
                return cli_wrong_usage(VERB, "there is no option -%c", optopt);
            return cli_wrong_usage(VERB, "there is no option %s", argv[optind - 1]);
        }
    }
    if (argc - optind > 1)
        return cli_wrong_usage(VERB, "one path at a time");
    if (optind < argc)
        name = argv[optind];

    engine = cli_engine_open(VERB, (uint32_t)backend);
    if (!engine)
        return CLI_FAILED;
    weir_engine_info(engine, &info);
    look_at_machine(&machine);
    rc = info_path_look(name, &path);
    if (rc != 0) {
        cli_say(VERB, "%s: %s", cli_name(shown, sizeof(shown), name), strerror(rc));
    } else if (json) {
        json_all(&machine, &info, &path);
    } else {
        text_machine(&machine);
        text_engine(&info);
        text_path(&path);
    }
    weir_engine_close(engine);
    return cli_end(VERB, rc == 0 ? CLI_DONE : CLI_FAILED);
}
