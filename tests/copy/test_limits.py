# SPDX-License-Identifier: MIT
"""A tree 500 directories deep, longer than any path may be, is copied with 64 descriptors; and
with 64 of them also a wide one with large files. What may not be read is reported, and the
rest copied."""
import os
import random
import resource
import subprocess
import sys

from scratch import Scratch, check, look, make_tree, skip

weir = os.path.abspath(sys.argv[1])
DEPTH = 500


def run(arguments, descriptors=None, user=None, environment=None):
    def limit():
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        if user:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)

    return subprocess.run([weir, "copy", *arguments], preexec_fn=limit, check=False,
                          capture_output=True, text=True,
                          env={**os.environ, **(environment or {})})


def make_deep(path, name):
    here = os.getcwd()
    os.mkdir(path)
    os.chdir(path)
    for depth in range(DEPTH):
        if depth % 50 == 0:
            with open("file", "w", encoding="ascii") as file:
                file.write(str(depth))
        os.mkdir(name)
        os.chdir(name)
    with open("bottom", "w", encoding="ascii") as file:
        file.write("reached")
    os.chdir(here)


with Scratch() as scratch:
    deep = os.path.join(scratch, "deep")
    make_deep(deep, "a-name-of-some-length")
    sys.setrecursionlimit(10000)
    original = look(deep)
    check(len(original) == DEPTH + 1 + 10 + 1, "the tree itself", len(original))
    check(max(map(len, original)) > 4096, "paths are too short to prove anything")
    for descriptors in (64, 1024):
        for backend in ("threads", "auto"):
            to = os.path.join(scratch, f"to-{descriptors}-{backend}")
            said = run(["-r", "-q", deep, to], descriptors, environment={"WEIR_BACKEND": backend})
            check(said.returncode == 0, descriptors, said.stderr)
            check(look(to) == original, "the deep copy differs")
    # Into itself, from the very bottom, where only ".." leads back up.
    place = deep
    here = os.getcwd()
    os.chdir(deep)
    for _ in range(100):
        os.chdir("a-name-of-some-length")
    said = run(["-r", "-q", deep, "."])
    os.chdir(here)
    check(said.returncode == 1 and "into itself" in said.stderr, said.stderr)
    check(look(deep) == original, "the source was changed")

    wide = os.path.join(scratch, "wide")
    make_tree(wide, random.Random(5), 300, 900, 5000)
    for i in range(6):
        with open(os.path.join(wide, f"large{i}"), "wb") as file:
            file.write(os.urandom(3 << 20))
    for backend in ("threads", "auto"):
        to = os.path.join(scratch, f"wide-{backend}")
        said = run(["-r", "-q", "--verify", wide, to], 64, environment={"WEIR_BACKEND": backend})
        check(said.returncode == 0, said.stderr)
        check(look(to) == look(wide), "the wide copy differs")

    # Somebody who may not read everything. Root may, so it becomes somebody else.
    user = 65534 if os.geteuid() == 0 else None
    secret = os.path.join(scratch, "secret")
    os.mkdir(secret)
    os.mkdir(os.path.join(secret, "closed"))
    os.mkdir(os.path.join(secret, "open"))
    for name, mode in (("mine", 0o600), ("all", 0o644), ("open/all", 0o644), ("closed/x", 0o644)):
        with open(os.path.join(secret, name), "w", encoding="ascii") as file:
            file.write(name)
        os.chmod(os.path.join(secret, name), 0 if name == "mine" else mode)
    os.chmod(os.path.join(secret, "closed"), 0)
    os.mkdir(os.path.join(scratch, "public"))
    os.chmod(os.path.join(scratch, "public"), 0o777)
    to = os.path.join(scratch, "public", "to")
    try:
        said = run(["-r", secret, to], user=user)
    except (PermissionError, subprocess.SubprocessError) as reason:
        skip(f"the program cannot be run as another user: {reason}")
    check(said.returncode == 1, said)
    check("secret/mine: permission denied (EACCES)" in said.stderr.lower().replace("eacces",
          "EACCES"), said.stderr)
    check("secret/closed" in said.stderr, said.stderr)
    check("2 errors" in said.stderr, said.stderr)
    check(sorted(os.listdir(to)) == ["all", "open"], os.listdir(to))
    check(os.listdir(os.path.join(to, "open")) == ["all"])
    os.chmod(os.path.join(secret, "closed"), 0o755)
