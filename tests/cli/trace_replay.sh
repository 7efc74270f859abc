# weir trace replay: the reads and nothing else, from files that are found, and never more.
case=$0
make() { python3 "$(dirname "$case")/trace_make.py" "$@"; }
vary() {
    sed -E -e 's/ in [0-9.]+ (us|ms|s)$/ in T/' -e 's/(p50|p95|p99|max) [0-9.]+ (us|ms|s)/\1 T/g' \
        -e 's/^(  now +)[0-9]+ ops/\1N ops/' -e 's/^(  late +)[0-9.]+ (us|ms|s)/\1T/' \
        -e 's/("seconds"|"ops_per_s"|"late_us"|"p50"|"p95"|"p99"|"max"):[0-9.]+/\1:N/g' \
        -e 's/"backend":"[a-z]+"/"backend":"B"/'
}
run() {
    echo "\$ weir trace replay $*"
    "$weir" trace replay "$@" >out 2>err
    status=$?
    vary <out
    cat err
    echo "[$status]"
}
make t reads
make w reads writes
run t
run t --dry-run
mkdir dir other other/dir
head -c 10000 /dev/zero >a
cp a dir/b
cp a other/a
cp a other/dir/b
run t
run t --json
run t --dry-run
run t --speed max --depth 1 --backend threads
run t --speed 20
run t --root other
rm dir/b
run t --speed max
run t --speed max --file dir/b=a
run t --speed max --file dir/b=a --root nowhere
head -c 5000 /dev/zero >dir/b
run t --speed max
mkfifo fifo
run t --speed max --file dir/b=fifo
run t --speed max --file dir/b=/dev/zero
# Nothing is written, but to a scratch file, which must be new and does not stay.
cp a before
run w --speed max --file dir/b=a
run w --speed max --file dir/b=a --writes --scratch a
run w --speed max --file dir/b=a --writes --scratch nowhere/s
run w --speed max --file dir/b=a --writes --scratch s --dry-run
run w --speed max --file dir/b=a --writes --scratch s
cmp a before && ls
# What has no name, or is cut: as far as it goes, and exit status 1.
make cut reads cut
run cut --speed max --file dir/b=a
make lost reads lost-names
run lost --speed max
run missing
# Times that add up to more than there are numbers for.
make far reads far
run far --speed max --file dir/b=a | sed 's/then .*ops/then R ops/'
# More files than may be open.
make crowd many
mkdir many
for i in $(seq 0 199); do echo 123456789 >"many/$i"; done
(ulimit -n 64 && run crowd --speed max --depth 16 --backend threads) | sed 's/then .*ops/then R ops/'
