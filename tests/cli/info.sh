# weir info: leaves nothing behind, says the same as one JSON object, names what is missing.
"$weir" info | sed -E 's/ .*//' | grep -v '^$'
"$weir" info --json >json && python3 -c '
import json
info = json.load(open("json"))
print(*sorted(info))
print(*sorted(info["path"]))
print(info["path"]["problem"] == "", info["backend"]["name"] in ("uring", "threads"))'
rm json
ls -A | wc -l
echo text >file
"$weir" info file | grep -c O_DIRECT
"$weir" info missing
echo "[$?]"
"$weir" info "$(printf 'mis\nsing')"
"$weir" info --backend threads | grep '^backend' | cut -d: -f1
"$weir" info /proc | grep type
