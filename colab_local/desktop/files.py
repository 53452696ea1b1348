"""Write into a user's home folder without following a symbolic link, without losing a byte of the user's.

Every path is walked from the home folder downwards by directory descriptors (O_NOFOLLOW), so a link swapped in
between a look and a write cannot lead us elsewhere.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import shlex
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from colab_local.base.errors import Failure

from .person import Person

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Found:
    """A regular file as it is. content: its bytes; mode: its permission bits; inode: its number."""

    content: bytes
    mode: int
    inode: int


def _in_the_way(path: Path, need: str) -> Failure:
    """Return what is said of something that lies where a real file or folder has to be; need: which of them."""
    found = (
        f"a symbolic link to {os.readlink(path)}, and links are not followed"
        if path.is_symlink()
        else "something else"
    )
    here = shlex.quote(str(path))
    return Failure(f"{path} is no {need} (found {found})", f"mv {here} {here}.orig")


def _owned(person: Person, path: Path, status: os.stat_result) -> None:
    if status.st_uid != person.uid:
        raise Failure(
            f"{path} belongs to another user (found uid {status.st_uid}, need {person.uid})",
            f"sudo chown {person.name} {shlex.quote(str(path))}",
        )


@contextlib.contextmanager
def folder(person: Person, path: Path, make: bool = False) -> Iterator[int]:
    """Open a folder below the home folder and yield its descriptor.

    make: create what is missing, with mode 0700.

    Raises:
        FileNotFoundError: it is missing and `make` is false.
        Failure: a link, a file, or another user's folder is in the way.
    """
    here = person.home
    if person.home not in (path, *path.parents) or os.pardir in path.parts:
        raise ValueError(f"{path} is not below {person.home}")
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.relative_to(person.home).parts:
            here = here / part
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            try:
                below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            except NotADirectoryError:  # what Linux says of a link, too, with O_DIRECTORY | O_NOFOLLOW
                raise _in_the_way(here, "folder") from None
            os.close(fd)
            fd = below
            _owned(person, here, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


def look(person: Person, path: Path) -> Found | None:
    """Return the file at `path`, or None if there is none.

    Raises:
        Failure: something else than the user's own regular file is there.
    """
    try:
        with folder(person, path.parent) as fd:
            status = os.stat(path.name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise _in_the_way(path, "file")
            _owned(person, path, status)
            handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            with os.fdopen(handle, "rb") as stream:
                return Found(stream.read(), stat.S_IMODE(status.st_mode), status.st_ino)
    except FileNotFoundError:
        return None


def write(person: Person, path: Path, content: bytes, mode: int) -> None:
    """Put `content` at `path` in one step (a temporary file beside it, then a rename)."""
    with folder(person, path.parent, make=True) as fd:
        temporary = f".{path.name}.{secrets.token_hex(4)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                os.fchmod(handle, mode)
                stream.flush()
                os.fsync(handle)
            os.rename(temporary, path.name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=fd)
            raise


def keep(person: Person, path: Path) -> Path:
    """Give the file at `path` a second name, NAME.orig-<time>, and return that."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    with folder(person, path.parent) as fd:
        attempt = 0
        while True:
            backup = path.with_name(f"{path.name}.orig-{stamp}" + (f"-{attempt}" if attempt else ""))
            with contextlib.suppress(FileExistsError):
                # A hard link: the very same file with its mode and dates, never half-copied.
                os.link(path.name, backup.name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
                return backup
            attempt += 1


def restore(person: Person, backup: Path, path: Path) -> None:
    """Rename `backup` to `path`, replacing what is there."""
    with folder(person, path.parent) as fd:
        os.rename(backup.name, path.name, src_dir_fd=fd, dst_dir_fd=fd)


def remove(person: Person, path: Path) -> None:
    """Remove a file; none there is as good."""
    with contextlib.suppress(FileNotFoundError), folder(person, path.parent) as fd:
        os.unlink(path.name, dir_fd=fd)


def remove_folder(person: Person, path: Path) -> bool:
    """Remove a folder if it is empty; say whether it is gone."""
    try:
        with folder(person, path.parent) as fd:
            os.rmdir(path.name, dir_fd=fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def missing_folders(person: Person, path: Path) -> list[Path]:
    """Return the folders down to `path` that do not exist yet, the highest first."""
    chain = [path, *path.parents]
    below_home = [p for p in chain if p != person.home and person.home in p.parents]
    return [p for p in reversed(below_home) if not os.path.lexists(p)]


def difference(old: bytes | None, new: bytes, name: str) -> str:
    """Return the unified difference of two texts, as `diff -u` prints it."""
    before = (old or b"").decode(errors="replace").splitlines()
    after = new.decode(errors="replace").splitlines()
    source = "/dev/null" if old is None else name
    return "\n".join(difflib.unified_diff(before, after, source, name, lineterm=""))
