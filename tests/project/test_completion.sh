#!/bin/bash
# SPDX-License-Identifier: MIT
# What bash offers after some words, and that every option it offers is one of the program's.
#
# usage: test_completion.sh completions/weir.bash man/weir.1 WEIR
set -u

completion=$(realpath "$1") man=$(realpath "$2") weir=$(realpath "$3")
# shellcheck source=/dev/null
source "$completion"
cd "$(mktemp -d -p "${WEIR_TEST_DIR:-${TMPDIR:-/var/tmp}}")" || exit 1
trap 'rm -rf "$PWD"' EXIT
touch 'a file' other
failed=0

offers() # offers WANTED WORD...: the words are the line, the last one is being typed
{
    local wanted=$1 got
    shift
    COMP_WORDS=(weir "$@")
    COMP_CWORD=$#
    COMPREPLY=()
    _weir
    got=$(printf '%s\n' "${COMPREPLY[@]}" | sort | paste -sd,)
    if [ "$got" = "$wanted" ]; then
        echo "ok weir $*"
    else
        echo "FAILED weir $*: got '$got', wanted '$wanted'"
        failed=1
    fi
}

offers '--help,--version,bench,copy,info,trace' ''
offers 'copy' c
offers 'a file,other' copy ''
offers 'other' copy -r o
offers '--verbose,--verify' copy --ver
offers '--verbose' copy --verify --ver
offers 'auto,threads,uring' copy --backend ''
offers 'null' info --backend n
offers 'uring' bench --backend = u
offers 'auto,null,threads,uring' bench --backend =
offers 'blocking,job' bench --api ''
offers 'seqread,seqwrite' bench randread seq
offers 'off,on' bench --prefetch ''
offers 'read' bench --think r
offers 'scan,scatter' bench stride sca
offers '' bench --size ''
offers 'a file,other' bench --file ''
offers 'replay,show' trace ''
offers 'a file,other' trace show ''
offers '--json' trace show --summary --j
offers '' trace show --dep
offers '--depth,--dry-run' trace replay --d
offers 'max' trace replay --speed ''
offers 'other' trace replay --scratch o
offers '' nosuchverb ''

# Help, manual and completion know the same options.
for verb in copy info bench trace; do
    if [ "$("$weir" "$verb" --help >help; echo $?)" != 0 ]; then
        echo "FAILED weir $verb --help"
        failed=1
        continue
    fi
    COMP_WORDS=(weir "$verb" --) COMP_CWORD=2
    _weir
    offered=$(printf '%s\n' "${COMPREPLY[@]}" | sort)
    helped=$(grep -oE '^ +(-., )? *--[a-z-]+' help | grep -oE -- '--[a-z-]+' | sort -u)
    manual=$(sed -n "/^\.Ss weir $verb\$/,/^\.S[sh] /{/^\.It Fl/p;}" "$man" |
        grep -oE '\\-[a-z-]+' | sed 's/^\\-/--/' | sort -u)
    if [ "$offered" != "$helped" ]; then
        echo "FAILED options of weir $verb: completion and --help differ:"
        diff <(echo "$offered") <(echo "$helped")
        failed=1
    elif [ "$manual" != "$helped" ]; then
        echo "FAILED options of weir $verb: man page and --help differ:"
        diff <(echo "$manual") <(echo "$helped")
        failed=1
    else
        echo "ok options of weir $verb"
    fi
done
exit "$failed"
