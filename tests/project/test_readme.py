#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The README's C program is examples/first.c, word for word, and its links lead somewhere."""
import os
import re
import sys

root = sys.argv[1]
bad = []


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


readme = read(os.path.join(root, "README.md"))
program = re.sub(r"^/\* SPDX[^\n]*\n", "", read(os.path.join(root, "examples", "first.c")))
blocks = re.findall(r"^```c\n(.*?)^```", readme, re.M | re.S)
if program not in blocks:
    bad.append("README.md: no C block is the same as examples/first.c (without its first line)")

texts = [os.path.join(folder, name)
         for folder, folders, names in os.walk(root)
         if not any(part.startswith((".", "build")) for part in
                    os.path.relpath(folder, root).split(os.sep) if part != ".")
         for name in names if name.endswith(".md")]
for path in sorted(texts):
    text = re.sub(r"```.*?```", "", read(path), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link) or link.startswith("#"):
            continue
        target = os.path.join(os.path.dirname(path), link.split("#")[0])
        if not os.path.exists(target):
            bad.append(f"{os.path.relpath(path, root)}: {link} leads nowhere")
print("\n".join(bad) or f"the same program; links of {len(texts)} pages lead somewhere")
sys.exit(1 if bad else 0)
