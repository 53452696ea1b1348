"""What lies in an environment, and the seal over what no record has a hash of."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Iterable, NamedTuple

from colab_local.base.files import OTHERS_WRITE, is_ours, sha256_of


class Tree(NamedTuple):
    """What lies under a prefix. files: {path: size in bytes}; links: {path: target}; paths are relative to it.

    Pipes, sockets and devices, which can't be hashed, count as links to nowhere.
    open: files and folders that another user can write to, "." for the prefix itself.
    """

    files: dict[str, int]
    links: dict[str, str]
    open: list[str]


# What the receipt has hashes of: records, programs, a venv's own; conda-meta/state sets variables at activation.
SEALED = re.compile(r"(.*/)?bin/[^/]+$|pyvenv\.cfg$|lib64$|conda-meta/([^/]+\.json|state)$|.*\.dist-info/RECORD$")


def walk(prefix: Path) -> Tree:
    """Return every file and link under a prefix; links are not followed."""
    tree = Tree({}, {}, [])
    root = str(prefix)
    folders = [root]
    if _others_write(os.lstat(root)):
        tree.open.append(".")
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = entry.path[len(root) + 1 :]
                if entry.is_symlink():
                    tree.links[path] = os.readlink(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if _others_write(status):
                    tree.open.append(path)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    tree.files[path] = status.st_size
                else:
                    tree.links[path] = ""
    return tree


def _others_write(status: os.stat_result) -> bool:
    """Return whether another user can write to a file; asking for groups only where the mode says so is quick."""
    return bool(status.st_mode & OTHERS_WRITE) and not is_ours(status)


def close_to_others(prefix: Path, paths: Iterable[str]) -> None:
    """Take the right to write from everybody but the owner; paths: relative to the prefix, none of them a link."""
    for path in paths:
        descriptor = os.open(str(prefix / path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~OTHERS_WRITE)
        finally:
            os.close(descriptor)


def sealed(prefix: Path, tree: Tree, hashes: dict[str, str]) -> dict[str, str]:
    """Return {path: sha256, " x" after it where the file is executable; "-> target" of a link} of what is SEALED.

    hashes: of files, as far as they are known already.
    """
    found = {path: f"-> {target}" for path, target in tree.links.items() if SEALED.match(path)}
    for path in filter(SEALED.match, tree.files):
        executable = (prefix / path).stat().st_mode & stat.S_IXUSR
        sha256 = hashes.get(path) or sha256_of(prefix / path)
        found[path] = sha256 + (" x" if executable else "")
    return dict(sorted(found.items()))
