# SPDX-License-Identifier: MIT
"""scratch - what the tests of `weir copy` share: a place, trees, comparing them"""
import os
import shutil
import stat
import sys
import tempfile

SKIP = 77


def skip(reason):
    print("skipped:", reason)
    sys.exit(SKIP)


class Scratch:
    """A directory that is removed at the end, however deep what is in it."""

    def __enter__(self):
        parent = os.environ.get("WEIR_TEST_DIR") or os.environ.get("TMPDIR") or "/var/tmp"
        self.path = tempfile.mkdtemp(prefix="weir-test-", dir=parent)
        os.chmod(self.path, 0o755)
        return self.path

    def __exit__(self, *reason):
        # Of our own making, since a path in here may be longer than the kernel takes: the
        # walk below goes through directory descriptors.
        sys.setrecursionlimit(100000)
        shutil.rmtree(self.path, ignore_errors=True)


def make_tree(path, rng, directories, files, size):
    """Random directories and files below `path`, with links and modes."""
    os.mkdir(path)
    places = [path]
    for i in range(directories):
        place = os.path.join(rng.choice(places), f"d{i}")
        os.mkdir(place)
        places.append(place)
    for i in range(files):
        name = os.path.join(rng.choice(places), f"f{i}")
        with open(name, "wb") as to:
            to.write(rng.randbytes(rng.randrange(size)))
        os.chmod(name, rng.choice([0o644, 0o600, 0o755, 0o444]))
        if i % 20 == 0:
            os.symlink(f"f{i}", name + ".link")


def look(path):
    """{relative name: (mode, mtime, content or target)} of a tree, through descriptors."""
    found = {}
    for where, dirs, files, fd in os.fwalk(path, follow_symlinks=False):
        for name in [".", *files] + [d for d in dirs if stat.S_ISLNK(
                os.stat(d, dir_fd=fd, follow_symlinks=False).st_mode)]:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            what = None
            if stat.S_ISREG(st.st_mode):
                with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                    what = file.read()
            elif stat.S_ISLNK(st.st_mode):
                what = os.readlink(name, dir_fd=fd)
            found[os.path.join(os.path.relpath(where, path), name)] = (st.st_mode, st.st_mtime_ns,
                                                                       what)
    return found


def temporaries(tree):
    return [name for name in tree if ".weir-tmp" in name]


def check(condition, *text):
    if not condition:
        print("FAILED:", *text)
        sys.exit(1)
