# SPDX-License-Identifier: MIT
# Bash completion for weir(1). Works with the package bash-completion and without it.

_weir()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev='' verb='' words='' option i
    local verbs='copy info bench'
    local cases='randread randwrite seqread seqwrite cached overhead'

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
    --file)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --size | --bs | --depth | --wait-min | --jobs | --seconds)
        return # a number
        ;;
    esac

    case $verb in
    copy) words='--recursive --verify --json --quiet --verbose --backend --help' ;;
    info) words='--json --backend --help' ;;
    bench)
        words='--file --size --bs --depth --wait-min --direct --jobs --api --backend --seconds
            --json --help'
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
    else
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}

complete -F _weir weir
