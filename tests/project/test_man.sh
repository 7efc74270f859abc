#!/bin/sh
# SPDX-License-Identifier: MIT
# The man page has no mistakes that mandoc or groff would warn of.
set -u

page=$1
if command -v mandoc >/dev/null; then
    mandoc -T lint -W warning "$page"
elif printf '.Dd January 1, 2000\n.Dt X 1\n.Os\n' | groff -mdoc -Tascii -z >/dev/null 2>&1; then
    warnings=$(groff -mdoc -Tutf8 -ww -z "$page" 2>&1)
    echo "$warnings"
    [ -z "$warnings" ]
else
    echo 'SKIP neither mandoc nor groff with -mdoc is installed'
    exit 77
fi
