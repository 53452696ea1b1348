"""Files and folders for one run, in the system's folder for them: gone when it ends; if it is killed, with the next.

Passwords may be in them. Whoever makes one holds a lock on it. A process number would not do: another container may
share the folder, and counts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Iterator

from colab_local.base.files import remove_tree

try:
    import fcntl
except ImportError:  # Windows, which is refused by name before it is needed
    fcntl = None  # type: ignore[assignment]

PREFIX = "colab-local-run-"
_made: list[tuple[int, Path]] = []


def temporary_file(content: bytes, suffix: str) -> Path:
    """Return a file for this user's eyes with this content, there until clean_up() or the end of this process.

    suffix: of its name, with the dot.
    """
    sweep()
    while True:
        descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=suffix)
        if _is_held(descriptor, Path(name)):
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                stream.write(content)
            _made.append((descriptor, Path(name)))
            return Path(name)
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(place: str | None = None) -> Iterator[Path]:
    """Make a folder for this user alone; it is gone afterwards with all that is in it.

    place: the folder that it is made in, None for the system's.
    """
    sweep(place)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        descriptor = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
        if _is_held(descriptor, folder):
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            remove_tree(folder)
        os.close(descriptor)


def _is_held(descriptor: int, path: Path) -> bool:
    """Lock what was just made; return whether it is still there: another run may have taken it for a left one."""
    with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for a left one either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return path.exists()


def sweep(place: str | None = None) -> None:
    """Remove what killed runs of this user have left; no link is followed, and nothing that is in use is touched."""
    for left in Path(place or tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # in use
            descriptor = os.open(str(left), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid() and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(left)
            finally:
                os.close(descriptor)


@atexit.register
def clean_up() -> None:
    """Remove this run's files now: one that becomes another program does not come to its end."""
    while _made:
        descriptor, path = _made.pop()
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)
