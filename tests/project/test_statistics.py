#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/statistics.md names what the engine tells Prometheus, all of it and nothing else, and every
number of struct weir_stats."""
import os
import re
import sys

root = sys.argv[1]


def read(*path):
    with open(os.path.join(root, *path), encoding="utf-8") as file:
        return file.read()


page = read("docs", "statistics.md")
code = read("src", "engine", "stats_json.c") + read("src", "engine", "prometheus.c")
told = set(re.findall(r'"(weir_[a-z_]+)"', code))
named = set(re.findall(r"`(weir_[a-z_]+)`", page))
named -= {name for name in named if re.match(r"weir_(engine|metric_record)", name)}
header = read("include", "weir", "stats.h")
struct = re.search(r"^struct weir_stats \{(.*?)^\};", header, re.M | re.S).group(1)
struct = re.sub(r"/\*.*?\*/", "", struct, flags=re.S)
fields = set(re.findall(r"uint64_t (\w+)", struct))
rows = set(re.findall(r"^\| `(\w+)", page, re.M))

bad = [f"{name} is not in docs/statistics.md" for name in sorted(told - named)]
bad += [f"docs/statistics.md has {name}, which is told to nobody" for name in sorted(named - told)]
bad += [f"{name} of struct weir_stats is not in docs/statistics.md" for name in sorted(fields - rows)]
print("\n".join(bad) or f"{len(told)} names, {len(fields)} numbers")
sys.exit(1 if bad or not told or not fields else 0)
