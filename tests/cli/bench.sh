# What weir bench says to wrong usage, which keys its JSON has, and what it counts where the count
# does not depend on the machine. How fast anything is is not tested.
run() { echo "\$ weir bench $*"; "$weir" bench "$@" 2>&1 | head -1; }
# The keys of the JSON object; strings may have commas in them, but no quoted words.
keys() {
    echo "\$ weir bench $*"
    "$weir" bench "$@" --size 4M --seconds 0.01 --json |
        tr '{,' '\n\n' | sed -n 's/^"\([a-z0-9_]*\)":.*/\1/p' | paste -sd' '
}
# Some keys with their values.
value() {
    wanted=$1
    shift
    echo "\$ weir bench $*"
    "$weir" bench "$@" --size 4M --seconds 0.01 --json |
        grep -oE "\"($wanted)\":(\"[^\"]*\"|[^,}]*)" | paste -sd' '
}

run nonsense
run scan --cache lots
run scan --cache 64K
run scan --block-size 100K
run scan --block-size 2M
run scan --bs 128K
run scan --bs 24K
run scan --policy fifo
run scan --prefetch maybe
run scan --coalesce 1
run scan --jobs 0
run scan --threads 257
run scan --trace ''
run scan stride --trace x
run stride --stride 0
run stride --stride 96K
run stride --stride 4K
run zipf --theta -1
run zipf --theta nan
run zipf --depth 2
run zipf --cache 0
run zipf --direct
run zipf --size 1M --cache 1M
run hit --api blocking
run scatter --api blocking
run mix --threads 3
run mix --think hard
run mix --depth 2
"$weir" bench scan --size 1M 2>/dev/null
echo "[$?]"
"$weir" bench scan --size 1M
echo "[$?]"

keys overhead
keys scan --backend null --cache 1M
keys stride --backend null --cache 1M
keys zipf --block-size 4K --cache 64K
keys mix --backend null

shape='backend|api|file|bs|depth|jobs|cache|block_size|policy|prefetch|coalesce|errors'
value "$shape" scan --backend null --cache 1M
value "$shape" scan --backend null --cache 0 --coalesce off
value "$shape" backward --backend null --cache 2M --block-size 16K --policy 2q --prefetch off
value "$shape|stride" stride --backend null --cache 1M --stride 128K --policy arc --copy
value "$shape" scatter --backend null
value "$shape" scatter --backend null --many
value "$shape" repeat --backend null --cache 2M --policy lfu
value "$shape|theta|scan_beside" zipf --cache 64K --block-size 4K --theta 0.5 --policy lru
value "$shape|theta|scan_beside" zipf --cache 64K --block-size 4K --scan-beside
value "$shape" hit --cache 1M --block-size 4K --threads 2
value "$shape|think" mix --backend null --jobs 2 --think read

# Views of what is cached ask the device for nothing; without prefetch nothing is prefetched.
value 'device_ops|hit_ratio|prefetch_wasted' hit --cache 1M --block-size 4K
value 'hit_ratio|prefetch_per_byte|prefetch_wasted' scan --backend null --cache 0 --prefetch off

"$weir" bench scatter --backend null --size 4M --seconds 0.01 --trace trace >/dev/null 2>&1
test -s trace && echo 'there is a trace'
echo mine >mine
run scan --backend null --size 4M --cache 1M --trace mine
cat mine
