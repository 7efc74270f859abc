# What the program says of itself, and to wrong usage: always exit status 2 and a way out.
run() { echo "\$ weir $*"; "$weir" "$@"; echo "[$?]"; }
run
run --help | head -3
run frobnicate
run "$(printf 'a\nb\233')"
run copy
run copy x
run copy -z a b
run copy --nonsense a b
run copy --backend null a b
run copy --backend
run info a b
run info --frob
run copy --help | head -2
run info --help | head -2
run bench --help | head -2
"$weir" --version | sed 's/[0-9][0-9.]*/N/'
"$weir" --help >/dev/full; echo "[$?]"
