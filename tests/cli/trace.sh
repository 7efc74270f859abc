# weir trace show: every kind of record, damage told and survived, the summary, and its JSON.
make() { python3 "$(dirname "$case")/trace_make.py" "$@"; }
case=$0
run() { echo "\$ weir trace $*"; "$weir" trace "$@"; echo "[$?]"; }
make t
run show t
run show --json t
run show --summary t
run show --summary --json t
"$weir" trace show --json t | python3 -c 'import json, sys; print([json.loads(l)["op"] for l in sys.stdin])'
"$weir" trace show --json --summary t | python3 -c 'import json, sys; print(json.load(sys.stdin)["records"])'
for what in cut damaged lost-names dropped; do
    make "$what" $what
    run show "$what"
    run show --summary "$what"
done
make empty reads
head -c 128 empty >short
run show short
head -c 100 empty >header
run show header
: >nothing
run show nothing
run show missing
run show .
"$weir" trace show t >/dev/full
echo "[$?]"
"$weir" trace show t | head -1
# A trace of the library's own, of the first release that wrote them.
run show "$(dirname "$0")/../golden/trace/v1/threads.wtr" | sed 's/^\$ .*/$ golden/'
run
run show
run show a b
run look t
run show --depth 1 t
run replay --summary t
run replay -z t
run replay --speed
run replay --speed 0 t
run replay --speed fast t
run replay --depth 0 t
run replay --depth 4097 t
run replay --file a t
run replay --backend floppy t
run replay --writes t
run replay --scratch s t
run replay --help | head -2
