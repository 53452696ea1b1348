"""What lies in an environment, and the seal over what no record has a hash of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple

from colab_local.base import documents
from colab_local.base.files import CHUNK, OTHERS_WRITE, is_ours, sha256_of
from colab_local.install.records import Package, read_record, site_packages


class Seal(NamedTuple):
    """What is known of an environment once every file in it was read.

    sealed: for the receipt; damaged: {package: the first of its files that is not as its wheel's RECORD says}.
    """

    sealed: dict[str, str]
    damaged: dict[str, str]


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


def take(prefix: Path, tree: Tree) -> Seal:
    """Read what was installed, once: for the receipt's seal, and to compare it with what the wheels say of it."""
    packages, found = by_uv(prefix)
    recorded: dict[str, set[str]] = {}  # several may bring one file, as OpenCV's three do: the last one's is there
    for entry in (entry for package in packages for entry in package.entries if entry.sha256):
        recorded.setdefault(entry.path, set()).add(entry.sha256)
    hashes = dict(hash_batch(str(prefix), [path for path in tree.files if path in recorded or SEALED.match(path)]))
    for package in packages:
        wrong = (e.path for e in package.entries if e.sha256 and hashes.get(e.path, "") not in recorded[e.path])
        first = next((path for path in wrong if path not in tree.links), "")
        if first:
            found.setdefault(package.name, first)
    return Seal(sealed(prefix, tree, hashes), found)


def by_uv(prefix: Path) -> tuple[list[Package], dict[str, str]]:
    """Return the packages that uv has installed, and {package: RECORD} of those whose RECORD is damaged itself.

    A wheel's RECORD names itself and the files about the package beside it; one that was cut names fewer.
    """
    packages: list[Package] = []
    damaged: dict[str, str] = {}
    site = site_packages(prefix) or "lib"
    for folder in sorted((prefix / site).glob("*.dist-info")):
        if installer_of(folder) != "uv":
            continue
        package, wrong = read_record(site, folder)
        packages.append(package)
        about = {f"{site}/{folder.name}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
        if wrong or not about <= {entry.path for entry in package.entries}:
            damaged[package.name] = f"{site}/{folder.name}/RECORD"
    return packages, damaged


def installer_of(folder: Path) -> str:
    """Return who has installed a package (PEP 376), "" if it does not say. folder: its dist-info."""
    with contextlib.suppress(OSError, ValueError):
        return documents.read_bytes(folder / "INSTALLER").decode("utf-8").strip()
    return ""


def hash_batch(prefix: str, paths: Iterable[str], advance: Callable[[int], Any] = int) -> list[tuple[str, str]]:
    """Return (path, sha256) of files; an unreadable one has "" for its hash."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    found = []
    for path in paths:
        digest = hashlib.sha256()
        try:
            descriptor = os.open(f"{prefix}/{path}", os.O_RDONLY)
            try:
                while True:
                    count = os.readv(descriptor, [buffer])
                    digest.update(view[:count])
                    if count < CHUNK:  # regular files are read in full; only the end comes short
                        break
                    advance(count)
            finally:
                os.close(descriptor)
            advance(count)
            found.append((path, digest.hexdigest()))
        except OSError:
            found.append((path, ""))
    return found


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
