# SPDX-License-Identifier: MIT
"""A disk that is full: what does not fit is reported, what has a name is whole, no temporaries
stay, and old copies are kept. On ext4 in a loop device, else on a small tmpfs, else skipped."""
import os
import subprocess
import sys

from scratch import Scratch, check, look, skip, temporaries

weir = os.path.abspath(sys.argv[1])


def sh(*command):
    return subprocess.run(command, check=False, capture_output=True, text=True)


def mount_small(scratch, where):
    os.mkdir(where)
    image = os.path.join(scratch, "image")
    with open(image, "wb") as file:
        file.truncate(12 << 20)
    if sh("mkfs.ext4", "-q", "-m", "0", image).returncode == 0:
        said = sh("mount", "-o", "loop", image, where)
        if said.returncode == 0:
            return "ext4"
    said = sh("mount", "-t", "tmpfs", "-o", "size=8m", "none", where)
    if said.returncode == 0:
        return "tmpfs"
    return skip(f"a small file system cannot be mounted here: {said.stderr.strip()}")


with Scratch() as scratch:
    where = os.path.join(scratch, "small")
    source = os.path.join(scratch, "from")
    os.mkdir(source)
    for name, size in (("a", 1000), ("b", 3 << 20), ("c", 40 << 20), ("d", 2000), ("old", 20 << 20)):
        with open(os.path.join(source, name), "wb") as file:
            file.write(os.urandom(size))
    kind = mount_small(scratch, where)
    try:
        with open(os.path.join(where, "old"), "w", encoding="ascii") as file:
            file.write("an old copy")
        for options in ([], ["--verify"]):
            said = sh(weir, "copy", "-r", "-q", *options, os.path.join(source, "."), where)
            print(said.stderr)
            check(said.returncode == 1, said)
            check(said.stderr.count("ENOSPC") == 2, said.stderr)
            check("small/c" in said.stderr and "small/old" in said.stderr, said.stderr)
            now = look(where)
            check(not temporaries(now), temporaries(now))
            original = look(source)
            for name in ("./a", "./b", "./d"):
                check(now[name] == original[name], name, "is not there or not whole")
            check("./c" not in now, "half a file has a name")
            check(now["./old"][2] == b"an old copy", "the old copy is gone")
    finally:
        sh("umount", where)
    print("on", kind)
