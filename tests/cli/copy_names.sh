# Where copies go: names, directories, contents; errors name the file, the reason and the cure.
run() { echo "\$ weir copy $*"; "$weir" copy "$@"; echo "[$?]"; }
mkdir d e
echo one >a
echo two >d/b
ln -s b d/link
run -q a f
run -q a d e
run -rq a d e
run -q missing e
run -q a d/b e/nowhere
run -rq d d
run -rq d d/new
run -q a a
run -q a nowhere/x
run -rq d/. e
run -q e a
mkfifo pipe
run -q pipe e
run -q "$(printf 'no\nsuch\377')" e
mkdir g g/a
run -q a g
find . | sort
cat f e/a e/d/b e/b
readlink e/d/link
