# SPDX-License-Identifier: MIT
"""Killed at random moments, again and again, a copy leaves no name with half a file; the next
run completes the tree and leaves nothing else behind. A signal that asks politely is answered
with 130, and leaves no temporaries at once.

The moments come from a seed that is printed; set WEIR_SEED to repeat it.
"""
import os
import random
import signal
import subprocess
import sys
import time

from scratch import Scratch, check, look, make_tree, temporaries

weir = os.path.abspath(sys.argv[1])
seed = int(os.environ.get("WEIR_SEED", "0") or "0", 0) or int(time.time())
print("WEIR_SEED =", seed, flush=True)
rng = random.Random(seed)


def start(*arguments):
    return subprocess.Popen([weir, "copy", "-r", "-q", *arguments])


def check_names(source, copied):
    """All that has its name is whole. Directories get mode and time at the end."""
    for name, (mode, mtime, what) in copied.items():
        if ".weir-tmp" in name or name.endswith("/."):
            continue
        check(name in source, name, "is not in the source")
        check(what == source[name][2], name, "is not whole")
        if what is not None and not os.path.islink(name):
            check(mode == source[name][0], name, "has another mode")


with Scratch() as scratch:
    source = os.path.join(scratch, "from")
    to = os.path.join(scratch, "to")
    make_tree(source, rng, 60, 1500, 9000)
    for i in range(3):
        with open(os.path.join(source, f"large{i}"), "wb") as file:
            file.write(rng.randbytes((5 << 20) + i * 1111))
    original = look(source)

    began = time.monotonic()
    check(start(source, os.path.join(scratch, "whole")).wait() == 0, "a copy fails")
    whole = time.monotonic() - began

    killed = left = 0
    for round_ in range(12):
        # What is copied again is replaced; both kinds of kill are of interest.
        into = "." if os.path.exists(to) else ""
        options = ["--verify"] if round_ % 3 == 0 else []
        child = start(*options, os.path.join(source, into) if into else source, to)
        time.sleep(rng.random() * whole * 1.2)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        if os.path.exists(to):
            now = look(to)
            left += len(temporaries(now))
            check_names(original, now)
        if round_ % 4 == 3:
            check(start(os.path.join(source, "."), to).wait() in (0,) if os.path.exists(to)
                  else start(source, to).wait() == 0, "the rerun fails")
            now = look(to)
            check(not temporaries(now), "left:", temporaries(now))
            check(now == original, "the rerun's tree differs in",
                  [n for n in now if now.get(n) != original.get(n)][:5])
            subprocess.run(["rm", "-rf", to], check=True)
    print(f"killed {killed} of 12 times, {left} temporaries were left and removed")

    # Politely: as soon as there is a temporary to remove.
    for number in (signal.SIGINT, signal.SIGTERM):
        for attempt in range(20):
            subprocess.run(["rm", "-rf", to], check=True)
            child = start("--verify", source, to)
            while child.poll() is None and not os.path.exists(os.path.join(to, "d0")):
                pass
            child.send_signal(number)
            status = child.wait()
            now = look(to)
            check(not temporaries(now), "left after a signal:", temporaries(now))
            check_names(original, now)
            check(status in (0, 130), "status", status)
            if status == 130:
                break
        check(status == 130, "20 copies ended before the signal was seen")
