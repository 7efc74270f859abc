# SPDX-License-Identifier: MIT
# Bash completion for weir(1). Works with the package bash-completion and without it.

_weir()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev='' verb='' words='' option i
    local verbs='copy info bench trace'
    local cases='randread randwrite seqread seqwrite cached overhead
        scan backward stride repeat zipf hit scatter mix'

    [ "$COMP_CWORD" -lt 1 ] || prev=${COMP_WORDS[COMP_CWORD - 1]}
    # Bash takes "--backend=uring" for three words.
    if [ "$cur" = = ]; then
        cur=''
    elif [ "$prev" = = ]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi

    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="$verbs --help --version"
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi
    verb=${COMP_WORDS[1]}

    case $prev in
    --backend)
        words='auto uring threads'
        [ "$verb" = copy ] || words="$words null"
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
        ;;
    --api)
        mapfile -t COMPREPLY < <(compgen -W 'job blocking' -- "$cur")
        return
        ;;
    --policy)
        mapfile -t COMPREPLY < <(compgen -W 's3fifo 2q arc lru lfu' -- "$cur")
        return
        ;;
    --prefetch | --coalesce)
        mapfile -t COMPREPLY < <(compgen -W 'on off' -- "$cur")
        return
        ;;
    --think)
        mapfile -t COMPREPLY < <(compgen -W 'none read burst' -- "$cur")
        return
        ;;
    --file | --trace | --root | --scratch)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --size | --bs | --depth | --wait-min | --jobs | --threads | --seconds | --cache | \
        --block-size | --stride | --theta)
        return # a number
        ;;
    --speed)
        mapfile -t COMPREPLY < <(compgen -W 'max' -- "$cur")
        return # or a number
        ;;
    esac

    case $verb in
    copy) words='--recursive --verify --json --quiet --verbose --backend --help' ;;
    info) words='--json --backend --help' ;;
    bench)
        words='--file --size --bs --depth --wait-min --direct --jobs --threads --api --backend
            --cache --block-size --policy --prefetch --coalesce --copy --stride --theta
            --scan-beside --many --think --trace --seconds --json --help'
        ;;
    trace)
        case ${COMP_WORDS[2]} in
        show) words='--summary --json --help' ;;
        replay)
            words='--file --root --speed --depth --backend --dry-run --writes --scratch --json
                --help'
            ;;
        *)
            words='--summary --file --root --speed --depth --backend --dry-run --writes
                --scratch --json --help'
            ;;
        esac
        ;;
    *) return ;;
    esac

    if [[ $cur == -* ]]; then
        # An option that was given need not be offered again.
        for option in $words; do
            for ((i = 2; i < COMP_CWORD; i++)); do
                [ "${COMP_WORDS[i]}" != "$option" ] || continue 2
            done
            [[ $option == "$cur"* ]] && COMPREPLY+=("$option")
        done
    elif [ "$verb" = bench ]; then
        mapfile -t COMPREPLY < <(compgen -W "$cases" -- "$cur")
    elif [ "$verb" = trace ] && [ "$COMP_CWORD" -eq 2 ]; then
        mapfile -t COMPREPLY < <(compgen -W 'show replay' -- "$cur")
    else
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}

complete -F _weir weir
