"""Files and folders: hashes, atomic writes, links, removal, disk space."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.text import megabytes

CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    temporary.replace(path)


def link_atomically(link: Path, target: Path) -> None:
    """Point the symbolic link at `target`, relative to the link, in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(os.path.relpath(str(target), str(link.parent)))
    temporary.replace(link)


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, whatever it holds; it does not matter if it isn't there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above `path`, itself included, that exists."""
    while not os.path.lexists(str(path)) and path != path.parent:
        path = path.parent
    return path


def check_disk(home: Path, needed: int) -> None:
    """Raise Failure unless the disk that holds `home` has `needed` bytes free."""
    free = shutil.disk_usage(str(existing_parent(home))).free
    if free < needed:
        raise Failure(
            f"not enough disk space for {home} (found {megabytes(free)}, need {megabytes(needed)})",
            "python3 bootstrap.py --prefix /a/bigger/disk/colab-local",
            EXIT_MACHINE,
        )


def private_file(path: Path) -> int:
    """Make a file that its owner alone can read and return its descriptor; FileExistsError if it is there."""
    return os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
