#!/bin/sh
# SPDX-License-Identifier: MIT
# A program of somebody else's builds against what is installed, in C99 and C++, shared and
# static, with what pkg-config says; the installed program finds its library by itself.
#
# usage: test_install.sh SOURCE_DIR BUILD_DIR
set -eu

source=$1 build=$2
command -v pkg-config >/dev/null || {
    echo 'SKIP no pkg-config'
    exit 77
}
scratch=$(mktemp -d -p "${WEIR_TEST_DIR:-${TMPDIR:-/var/tmp}}")
trap 'rm -rf "$scratch"' EXIT
unset LD_LIBRARY_PATH # meson points it at the build folder

DESTDIR=$scratch/root meson install -C "$build" --no-rebuild --quiet
pc=$(find "$scratch/root" -name weir.pc)
prefix=$scratch/root$(sed -n 's/^prefix=//p' "$pc")
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
flags() { pkg-config --define-variable=prefix="$prefix" "$@" weir; }
lib=$(flags --variable=libdir)

cd "$scratch"
cp "$source/examples/first.c" .
# What pkg-config prints is several words.
# shellcheck disable=SC2046
{
    cc -std=c99 -Wall -Wextra -pedantic -Werror first.c $(flags --cflags --libs) -o shared
    c++ -x c++ first.c -x none $(flags --cflags --libs) -o shared_cxx
    mkdir only_static
    cp "$lib/libweir.a" only_static
    cc first.c $(flags --cflags) -Lonly_static $(flags --static --libs | sed "s|-L$lib||") \
        -o static
}
echo 'the first line of a file' >text
for program in shared shared_cxx static; do
    LD_LIBRARY_PATH=$lib ./$program text >out
    grep -q '^25 bytes: the first line' out
    echo "ok $program"
done
if ldd ./static | grep -q libweir; then
    echo "FAILED: static still needs libweir.so"
    exit 1
fi
version=$("$prefix/bin/weir" --version)
[ "$version" = "weir $(flags --modversion)" ]
echo "ok $version"
