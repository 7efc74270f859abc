/* SPDX-License-Identifier: MIT */
/*
 * main.c - the program `weir`: one table of verbs
 *
 * The program stands on include/weir alone, as any other user of the library.
 */
#include <string.h>

#include "cli.h"

static const struct verb {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
} verbs[] = {
    { "copy", "copy files and trees", cli_copy },
    { "info", "what this machine and a path's file system can do", cli_info },
    { "bench", "measure reads and writes", cli_bench },
    { "trace", "show or replay a record of operations", cli_trace },
};

#define VERBS (sizeof(verbs) / sizeof(verbs[0]))

static void usage(FILE *to)
{
    fputs("usage: weir VERB [options] [arguments]\n\n", to);
    for (size_t i = 0; i < VERBS; i++)
        fprintf(to, "  %-7s %s\n", verbs[i].name, verbs[i].help);
    fputs("\n"
          "  weir VERB --help   what a verb does, and its options\n"
          "  weir --version\n"
          "\n"
          "Exit status: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.\n"
          "Environment: WEIR_BACKEND (auto, uring, threads), WEIR_LOG (error, warning, info,\n"
          "debug), NO_COLOR.\n",
          to);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return cli_end(NULL, CLI_DONE);
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("weir %s\n", weir_version());
        return cli_end(NULL, CLI_DONE);
    }
    for (size_t i = 0; i < VERBS; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    {
        char name[128];

        return cli_wrong_usage(NULL, "'%s' is no verb of this program",
                               cli_name(name, sizeof(name), argv[1]));
    }
}
