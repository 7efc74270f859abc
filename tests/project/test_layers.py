#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tools/layers accepts arrows that run downwards, and fails on each kind that does not."""
import os
import subprocess
import sys
import tempfile

TOOL = sys.argv[1]
failed = 0


def check(name, files, want_status, want_text=""):
    global failed
    with tempfile.TemporaryDirectory() as root:
        good = {
            "include/weir/weir.h": "",
            "src/base/list.h": "",
            "src/os/os.h": '#include "base/list.h"\n',
            "src/cli/main.c": "#include <weir/weir.h>\n",
        }
        for path, text in {**good, **files}.items():
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(text)
        run = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True,
                             check=False)
        out = run.stdout + run.stderr
        ok = run.returncode == want_status and want_text in out
        print("ok" if ok else "FAILED", name)
        if not ok:
            failed += 1
            print(f"status {run.returncode}, wanted {want_status} and {want_text!r}:\n{out}")


check("downwards", {}, 0, "os       -> base")
check("own_folder", {"src/os/a.c": '#include "os.h"\n#include "os/os.h"\n'}, 0)
check("comment", {"src/base/a.c": '/*\n#include "os/os.h"\n*/\n'}, 0)
check("upwards", {"src/base/a.c": '\n#include "os/os.h"\n'}, 1, "src/base/a.c:2: base -> os")
check("upwards_relative", {"src/base/a.c": '#include "../os/os.h"\n'}, 1, "base -> os")
check("upwards_angle", {"src/base/a.c": "#  include <os/os.h>\n"}, 1, "base -> os")
check("upwards_absent", {"src/os/a.c": '#include "engine/made.h"\n'}, 1, "os -> engine")
check("cli_uses_base", {"src/cli/a.c": '#include "base/list.h"\n'}, 1, "cli -> base")
check("public_uses_base", {"include/weir/a.h": '#include "base/list.h"\n'}, 1, "public -> base")
check("internal", {"src/base/p_internal.h": "", "src/os/a.c": '#include "base/p_internal.h"\n'},
      1, "_internal.h")
check("unknown_folder", {"src/extra/a.c": ""}, 1, "src/extra")
check("stray_file", {"src/a.c": ""}, 1, "src/a.c")
sys.exit(1 if failed else 0)
