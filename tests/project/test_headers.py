#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each public header compiles alone, twice in a row, as C99 and as C++, without a warning."""
import os
import shutil
import subprocess
import sys

include, headers = sys.argv[1], sys.argv[2:]
strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I", include]
compilers = [(["cc"], "c", "c99"), (["clang"], "c", "c99"),
             (["c++"], "c++", "c++11"), (["clang++"], "c++", "c++11")]
failed = tried = 0
for command, language, standard in compilers:
    if not shutil.which(command[0]):
        print(f"{command[0]} is not installed: not tried")
        continue
    for header in headers:
        name = "weir/" + os.path.basename(header)
        text = f"#include <{name}>\n#include <{name}>\nint main(void);\n"
        run = subprocess.run(command + ["-x", language, "-std=" + standard] + strict + ["-"],
                             input=text, capture_output=True, text=True, check=False)
        tried += 1
        if run.returncode:
            failed += 1
            print(f"FAILED {name} as {standard} with {command[0]}:\n{run.stderr}")
if not headers or not tried:
    print("SKIP no headers or no compilers")
    sys.exit(77)
print(f"{tried - failed} of {tried} compiled")
sys.exit(1 if failed else 0)
