"""Files and folders: hashes, atomic writes, links, removal, whose they are, disk space."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import stat
from pathlib import Path
from typing import Iterable

from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.text import megabytes

try:
    import grp
    import pwd
except ImportError:  # Windows, which is refused by name before they are needed
    grp = pwd = None  # type: ignore[assignment]

CHUNK = 1 << 20
UMASK = 0o022  # of everything that we make, whatever the caller's is: nobody else writes to what runs from a home
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part; OSError leaves the old.

    mode: of the file, whatever the umask is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, mode)
            stream.write(text)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def link_atomically(link: Path, target: Path) -> None:
    """Point the symbolic link at `target`, relative to the link, in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(os.path.relpath(str(target), str(link.parent)))
    temporary.replace(link)


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, whatever it holds; it does not matter if it isn't there.

    Links are removed, never followed. Folders that are read-only, as package caches' may be, are opened up first.
    """
    try:
        _remove(path)
    except PermissionError:
        if path.is_symlink() or not path.is_dir():
            raise
        open_up(path)
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def open_up(folder: Path) -> None:
    """Give the owner all rights to the folders below `folder`, itself included; no link is followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    with contextlib.suppress(OSError):
        if not os.lstat(str(folder)).st_mode & stat.S_IRUSR:  # can't be opened at all: the folder above is ours
            folder.chmod(stat.S_IRWXU)
        descriptor = os.open(str(folder), flags)
        try:
            os.fchmod(descriptor, stat.S_IRWXU)
        finally:
            os.close(descriptor)
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                open_up(entry)


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above `path`, itself included, that exists."""
    while not os.path.lexists(str(path)) and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Return what the disk that holds `path`, or will hold it, has free."""
    return int(shutil.disk_usage(str(existing_parent(path))).free)


def is_full(problem: BaseException | None) -> bool:
    """Return whether an error says that the disk, its inodes or the user's quota are used up."""
    return isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)


def lacks_inodes(path: Path) -> bool:
    """Return whether the disk that holds `path` can't have another file, whatever room it has."""
    with contextlib.suppress(OSError):
        counts = os.statvfs(str(existing_parent(path)))
        return counts.f_files > 0 and counts.f_favail == 0
    return False


def disk_failure(path: Path) -> Failure:
    """Return what is said when the disk that holds `path` became full: which of bytes and inodes has run out."""
    place = existing_parent(path)
    found, hint = f"found {megabytes(free_bytes(place))} free", f"df -h {shlex.quote(str(place))}"
    if lacks_inodes(place):
        found, hint = "found no free inode", f"df -i {shlex.quote(str(place))}"
    return Failure(f"the disk is full at {place} ({found}); what this run took is freed", hint, EXIT_MACHINE)


def is_ours(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user or to root, and nobody else can write to it.

    A group that has this user alone, as many systems make for each, is nobody else. In a container without root,
    owners from outside have one number in common (user_namespaces(7), "overflow user").
    """
    if status.st_uid not in (0, os.geteuid(), _outsiders()):
        return False
    if status.st_mode & stat.S_IWOTH:
        return False
    return not (status.st_mode & stat.S_IWGRP) or status.st_gid == 0 or _is_private_group(status.st_gid)


def _outsiders() -> int:
    """Return the number that owners from outside a user namespace have in it; -1 outside of one."""
    with contextlib.suppress(OSError, ValueError):
        maps = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        if maps != [["0", "0", "4294967295"]]:
            return int(Path("/proc/sys/kernel/overflowuid").read_text())
    return -1


def _is_private_group(number: int) -> bool:
    """Return whether a group is this process's own and has no other member."""
    if number != os.getegid() or grp is None:
        return False
    with contextlib.suppress(KeyError):
        names = {pwd.getpwuid(os.geteuid()).pw_name}
        group = grp.getgrgid(number)
        return group.gr_name in names and set(group.gr_mem) <= names
    return False


def open_to_others(path: Path) -> Path | None:
    """Return the nearest folder, from `path` upwards, through which another user could change what is in it, or None.

    Every folder on the way counts, as the path names it and as links lead to it: who can write to one of them can
    put a folder of their own in the place of the next. A sticky one (/tmp) lets nobody do that to another's.
    """
    owners = (0, os.geteuid(), _outsiders())
    for way in dict.fromkeys([path, Path(os.path.realpath(str(path)))]):
        for place in [way, *way.parents]:
            try:
                status = place.lstat()
            except OSError:
                continue  # not there: made by us
            known = status.st_uid in owners
            free = stat.S_ISLNK(status.st_mode) or (place != way and status.st_mode & stat.S_ISVTX)
            if not (known if free else is_ours(status)):
                return place
    return None


def foreign(paths: Iterable[Path]) -> Path | None:
    """Return the first of the files and folders that another user owns or can write to, or that is a link; or None.

    What is not there is passed over.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) or not is_ours(status):
                return path
    return None


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
