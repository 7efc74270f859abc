# The summary, its JSON and the quiet form. Times, rates and counts of calls vary.
vary() {
    sed -E -e 's/ in [0-9.]+ (us|ms|s), [0-9.]+ MB/ in T, R MB/' \
        -e 's/(p50|p95|p99) [0-9.]+ (us|ms|s)/\1 T/g' -e 's/[0-9.]+ system calls/N system calls/' \
        -e 's/^(  engine  )(uring|threads)/\1B/'
}
mkdir d d/e
head -c 1000 /dev/zero >d/a
head -c 3000000 /dev/zero >d/e/b
ln -s a d/l
WEIR_BACKEND=threads "$weir" copy -r --verify d x | vary
echo "[$?]"
"$weir" copy -r -q d y
echo "[$?]"
WEIR_BACKEND=threads "$weir" copy --json d/a missing y >json
echo "[$?]"
sed -E -e 's/("seconds"|"mb_per_s"|"syscalls_per_op"|"syscalls"|"p50"|"p95"|"p99"|"max"|"count"):[0-9.]+/\1:N/g' json
"$weir" copy d/a y/a2 >/dev/full
echo "[$?]"
WEIR_BACKEND=nonsense "$weir" copy -q d/a y 2>&1 | cut -c1-60
WEIR_LOG=loud "$weir" copy -q d/a y
echo "[$?]"
