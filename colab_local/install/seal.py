"""What lies in an environment, and the seal over what no record has a hash of."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from colab_local.base.files import sha256_of


class Tree(NamedTuple):
    """What lies under a prefix. files: {path: size in bytes}; links: {path: target}; paths are relative to it.

    Pipes, sockets and devices, which can't be hashed, count as links to nowhere.
    """

    files: dict[str, int]
    links: dict[str, str]


# What the receipt has hashes of: records, programs, a venv's own; conda-meta/state sets variables at activation.
SEALED = re.compile(r"(.*/)?bin/[^/]+$|pyvenv\.cfg$|lib64$|conda-meta/([^/]+\.json|state)$|.*\.dist-info/RECORD$")


def walk(prefix: Path) -> Tree:
    """Return every file and link under a prefix; links are not followed."""
    tree = Tree({}, {})
    root = str(prefix)
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = entry.path[len(root) + 1 :]
                if entry.is_symlink():
                    tree.links[path] = os.readlink(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    tree.files[path] = entry.stat(follow_symlinks=False).st_size
                else:
                    tree.links[path] = ""
    return tree


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
