#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What include/weir declares, weir.map lists, the library exports and docs/symbols.txt
names are the same functions, and nothing else is exported."""
import re
import subprocess
import sys

symbol_map, symbols_txt, library, headers = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


declared, unmarked = set(), set()
for header in headers:
    text = re.sub(r"/\*.*?\*/", "", read(header), flags=re.S)
    text = re.sub(r"^[ \t]*#.*(?:\\\n.*)*$", "", text, flags=re.M)
    text = text.replace('extern "C" {', ";")
    for statement in re.split(r"[;{}]", text):
        function = re.search(r"\b(weir_\w+)\s*\(", statement)
        if not function or "typedef" in statement or re.search(r"\(\s*\*", statement.split(
                function.group(1))[0]):
            continue
        (declared if "WEIR_API" in statement else unmarked).add(function.group(1))

mapped = {}
for version, body in re.findall(r"^(WEIR_[\d.]+)\s*{(.*?)}", read(symbol_map), re.M | re.S):
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    names = re.search(r"global:(.*?)(?:local:|\Z)", body, re.S).group(1)
    for name in re.findall(r"[\w*]+", names):
        mapped[name] = version
local = re.search(r"local:\s*\*\s*;", read(symbol_map)) is not None

listed = {}
for line in read(symbols_txt).splitlines():
    if line and not line.startswith("#"):
        name, since = line.split()[:2]
        listed[name] = "WEIR_" + since

exported = {}
run = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True,
                     check=True)
for line in run.stdout.splitlines():
    kind, name = line.split()[-2:]
    name, _, version = name.replace("@@", "@").partition("@")
    if kind != "A":  # the version itself
        exported[name] = version

bad = []


def compare(left, left_name, right, right_name):
    for name in sorted(set(left) - set(right)):
        bad.append(f"{name} is in {left_name}, not in {right_name}")


compare(declared, "include/weir", mapped, "weir.map")
compare(mapped, "weir.map", declared, "include/weir")
compare(declared, "include/weir", exported, "the library's exports")
compare(exported, "the library's exports", declared, "include/weir")
compare(declared, "include/weir", listed, "docs/symbols.txt")
compare(listed, "docs/symbols.txt", declared, "include/weir")
for name in sorted(unmarked - declared):
    bad.append(f"{name} is declared without WEIR_API")
for name, version in sorted(exported.items()):
    if mapped.get(name, version) != version:
        bad.append(f"{name} is exported as {version}, weir.map says {mapped[name]}")
for name, version in sorted(listed.items()):
    if mapped.get(name, version) != version:
        bad.append(f"{name} is {version} in docs/symbols.txt, {mapped[name]} in weir.map")
if not local:
    bad.append("weir.map has no local: *")
if not declared:
    bad.append("no declarations found: is the test broken?")
print("\n".join(bad) or f"{len(declared)} functions, declared, mapped, exported, documented")
sys.exit(1 if bad else 0)
