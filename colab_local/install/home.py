"""The folder that everything lands in, its lock and its receipts."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import re
import shlex
import stat
from pathlib import Path
from typing import Any, Iterator

from colab_local.base import documents
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import existing_parent, foreign, open_to_others, remove_tree
from colab_local.base.terminal import Screen

try:
    import fcntl
except ImportError:  # Windows, which is refused by name before it is needed
    fcntl = None  # type: ignore[assignment]

# Of a home. program: what connect.py --install sent here.
FOLDERS = ("envs", "current", "previous", "receipts", "cache", "logs", "tools", "bin", "run", "program")
RECEIPT_SCHEMA = 2

# What a receipt must hold to be one. It holds names, never paths: root, prefix and the rest are derived from the
# home, so that nothing that was written into a receipt can lead elsewhere. (Schema 1 had paths: they are not obeyed.)
RECEIPT_SHAPE = {
    "name": r"[\w.-]+-[0-9a-f]{12}",
    "env": r"[\w.-]+",
    "platform": r"[\w.-]+",
    "engine": r"\w+",
    "layer": r"conda|host-3\.\d+",
    "python": r"3\.\d+.*",
    "lock": {"digest": r"[0-9a-f]{64}", "files": {"*": r"[0-9a-f]{64}"}, "jupyter": {"*": r"[0-9a-f]{64}"}},
    "port": int,
    "notebook_dir": str,
    "own_folder?": bool,  # --notebook-dir was given
    "lab?": bool,
    "created?": str,
    "accelerator?": str,
    "seal?": {"*": str},
    "seconds?": {"*": (int, float)},
    "notices?": [str],
    "home?": str,
    "parents?": int,
    "bundle?": r"[^/\0\n]+",  # the name of the one that it was made from
}


def user_home() -> Path:
    """Return the user's home folder; raise Failure where there is none (containers, users without an entry)."""
    with contextlib.suppress(RuntimeError):
        if os.environ.get("HOME") != "" and Path.home().is_absolute():
            return Path.home()
    found = os.environ.get("HOME") or "not set"
    raise Failure(f"you have no home folder here (HOME is {found})", "export HOME=/a/folder/of/yours", EXIT_MACHINE)


def in_another_folder() -> str:
    """Return the command for another home: in the user's own folder, where that can be written (a daemon's can't)."""
    own = user_home()
    parent = existing_parent(own)
    usable = parent.is_dir() and os.access(str(parent), os.W_OK | os.X_OK)
    folder = shlex.quote(str(own / "colab-local")) if usable else "/a/folder/of/yours"
    return f"python3 bootstrap.py --prefix {folder}"


def user_name() -> str:
    """Return the user's name, or the number of one that has no name here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def desktop_socket(folder: Path, display: int) -> Path:
    """Return where a virtual desktop without a TCP port listens. folder: its user's own; display: X's number."""
    return folder / ".vnc" / f"rfb-{display}.sock"


def default_home() -> Path:
    """Return the folder that everything lands in when --prefix doesn't say."""
    given = os.environ.get("COLAB_LOCAL_HOME")
    return Path(given) if given else user_home() / ".local" / "share" / "colab-local"


def config_folder() -> Path:
    """Return the folder of the user's settings (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def check_home(home: Path) -> None:
    """Raise Failure unless the home folder is there and ours to write, or can be made."""
    elsewhere = in_another_folder()
    if not re.match(r"[^:\n\ud800-\udfff]+\Z", str(home)):
        raise Failure(
            f"--prefix can't have a colon, a line break or undecodable bytes (found {str(home)!a})",
            elsewhere,
            EXIT_USAGE,
        )
    parent = existing_parent(home)
    for path in [parent] + [home / name for name in FOLDERS if os.path.lexists(str(home / name))]:
        if not path.is_dir():
            raise Failure(f"{path} is a file where a folder should be", elsewhere, EXIT_USAGE)
    if not os.access(str(parent), os.W_OK | os.X_OK):
        raise Failure(f"{parent} can't be written by {user_name()}", elsewhere, EXIT_MACHINE)
    demand_ours(home)


def demand_ours(home: Path) -> None:
    """Raise Failure if another user could change what runs from the home, or has: root's runs is everybody's risk.

    Looked at: every folder from the home upwards, the folders in it, each environment, and the tools that we run.
    """
    elsewhere = in_another_folder()
    place = open_to_others(home)
    hint = elsewhere
    if place is None:
        inner = [home / name for name in (*FOLDERS, "conda")]
        places = [path for name in ("envs", "receipts", "tools") for path in sorted((home / name).glob("*"))]
        programs = ["conda/bin", "conda/bin/conda", "conda/bin/python", "bin/pixi", "conda/.colab-local.json"]
        files = [home / name for name in programs if not (home / name).is_symlink()]
        tools = sorted((home / "tools").glob("uv-*/**/*"))
        place = foreign([*inner, *places, *files, *tools, home / ".lock"])
        hint = f"ls -ld {shlex.quote(str(place))}"
    if place is None:
        return
    status = place.lstat()
    found = f"found uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
    if stat.S_ISLNK(status.st_mode):
        raise Failure(
            f"{place} is a link, which could lead anywhere (need a folder or file)", elsewhere, EXIT_MACHINE
        )
    if status.st_uid in (os.geteuid(), 0) and os.geteuid() in (status.st_uid, 0):
        hint = f"chmod -R go-w {shlex.quote(str(place))}"
    raise Failure(
        f"another user can change {place}, and with it what runs from {home} ({found}; need uid {os.geteuid()} or 0, "
        "and write access for nobody else)",
        hint,
        EXIT_MACHINE,
    )


def remove_empty(folder: Path) -> None:
    """Remove a folder and those in it that hold nothing at all but our lock and this run's log."""
    for name in ("cache/sha256", *FOLDERS):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()
    left = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {"-"}
    if left <= {".lock", "logs"}:
        remove_tree(folder / "logs")
        with contextlib.suppress(OSError):
            (folder / ".lock").unlink()
            folder.rmdir()


@contextlib.contextmanager
def hold_lock(home: Path, screen: Screen, inherited: bool = False) -> Iterator[None]:
    """Hold the exclusive lock on the home folder; wait, and say so, while another run has it.

    inherited: every program that is run meanwhile holds it, too. If this process is killed and a program goes on
    writing, the next run waits until that has ended.
    """
    descriptor = take_lock(home, screen)
    try:
        if inherited:
            screen.held.append(descriptor)
            screen.place = str(home)
        yield
    finally:
        if inherited:
            screen.held.remove(descriptor)
        os.close(descriptor)


def take_lock(home: Path, screen: Screen) -> int:
    """Return the descriptor that holds the lock on a home; it is that of the file that lies there now."""
    path = home / ".lock"
    home.mkdir(parents=True, exist_ok=True)
    reported = False
    while True:
        try:
            descriptor = os.open(
                str(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644
            )
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise _no_lock(path) from None
            raise
        try:
            mine = os.fstat(descriptor)
            if not stat.S_ISREG(mine.st_mode):
                raise _no_lock(path)
            if not _try_lock(descriptor):
                if not reported:
                    screen.report(f"Another run is at work in {home} ({_owner(descriptor)}): waiting for it.")
                reported = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            there = os.lstat(str(path))
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                os.ftruncate(descriptor, 0)
                with contextlib.suppress(OSError):  # on a full disk the lock is held all the same
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except FileNotFoundError:  # --uninstall took it away meanwhile
            home.mkdir(parents=True, exist_ok=True)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _no_lock(path: Path) -> Failure:
    return Failure(
        f"{path} is not the file that we lock (a link, a pipe or a folder)",
        f"mv {shlex.quote(str(path))} {shlex.quote(str(path))}.yours",
        EXIT_MACHINE,
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(descriptor: int) -> str:
    """Return who holds the lock: the run, or what a killed run has left behind."""
    text = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    with contextlib.suppress(ValueError, OSError):
        os.kill(int(text), 0)
        return f"process {text}"
    return f"process {text} was killed; what it started still writes" if text else "it has just begun"


def begun_mark(home: Path, name: str) -> Path:
    """Return the file that says that a run of ours began to make the environment `name`: what is there is ours."""
    return home / "receipts" / name / "begun"


def is_half_made(home: Path, name: str) -> bool:
    """Return whether a run of ours began to make the environment `name`, which has no receipt that counts."""
    folder = home / "receipts" / name
    marks = [folder / "begun", folder / "receipt.json", folder / "lock"]  # at first, only the last two were made
    if any(mark.exists() for mark in marks):
        return not foreign([folder])
    # Before there were marks: an environment of a name that we have, or that is in use here. Others are the user's.
    names = {"cpu", "gpu", *(link.name for kind in ("current", "previous") for link in (home / kind).glob("*"))}
    root = home / "envs" / name
    return name.rpartition("-")[0] in names and (root / "bin").is_dir() and not root.is_symlink()


def environment_root(home: Path, name: str) -> Path:
    """Return the folder of an environment by its name, like cpu-0123456789ab."""
    return home / "envs" / name


def environment_prefix(root: Path, env: str, engine: str) -> Path:
    """Return where in its folder an environment has its bin and lib: pixi has a place of its own for it."""
    return root / ".pixi" / "envs" / env if engine == "pixi" else root


def read_receipt(home: Path, name: str) -> dict[str, Any] | None:
    """Return the receipt of the environment `name` in a home, or None; root and prefix are added as they follow.

    One that was written in another home is none: the home was copied, and its programs are the first home's.
    """
    path = home / "receipts" / name / "receipt.json"
    if foreign([path.parent, path]):  # a link, or another user's
        return None
    try:
        receipt = documents.read(path, RECEIPT_SHAPE)
    except (OSError, ValueError):
        return None
    written_in = receipt.get("home") or str(receipt.get("root", "")).rpartition("/envs/")[0]
    named = [*receipt["lock"]["files"], *receipt["lock"]["jupyter"], *receipt.get("seal", ())]
    if any(leads_out(path) for path in named):  # --repair writes and removes what these name
        return None
    if "\0" in written_in or receipt["name"] != name or name.rpartition("-")[0] != receipt["env"]:
        return None
    if os.path.realpath(f"{written_in}/envs/{name}") != os.path.realpath(str(home / "envs" / name)):
        return None
    root = environment_root(home, name)
    if foreign([root]):
        return None
    prefix = environment_prefix(root, receipt["env"], receipt["engine"])
    return dict(receipt, root=str(root), prefix=str(prefix))


def leads_out(path: str) -> bool:
    """Return whether a path that should be relative could lead out of its folder."""
    return not path or path.startswith("/") or "\0" in path or ".." in path.split("/")


def read_receipts(home: Path) -> list[dict[str, Any]]:
    """Return the receipts of the environments in a home, newest first."""
    found = [read_receipt(home, path.parent.name) for path in home.glob("receipts/*/receipt.json")]
    receipts = [receipt for receipt in found if receipt]
    return sorted(receipts, key=lambda receipt: str(receipt.get("created")), reverse=True)


def is_current(home: Path, receipt: dict[str, Any]) -> bool:
    """Return whether current/<env> points at the environment of a receipt."""
    link = home / "current" / receipt["env"]
    return bool(link.exists() and link.resolve() == Path(str(receipt["prefix"])).resolve())


def remembered(home: Path, env: str) -> dict[str, Any]:
    """Return what was chosen for an environment in use: the next run, and the next lock's, keep to it.

    lab, port and notebook_dir, as far as they are known.
    """
    with contextlib.suppress(OSError):  # a home that can't be read: check_home says so, in its words
        receipt = current_receipt(home, env) or {}
        folder = ["notebook_dir"] if receipt.get("own_folder") else []  # else it was the home folder, whosever
        known: dict[str, Any] = {name: receipt[name] for name in ["lab", "port", *folder] if name in receipt}
        return known if 0 < known.get("port", 1) < 1 << 16 else {}
    return {}


def is_removed_with(home: Path, folder: Path) -> bool:
    """Return whether removing what colab-local made in `home` takes `folder` along."""
    ours = [(home / name).resolve() for name in (*FOLDERS, "conda")]
    return any(place == folder.resolve() or place in folder.resolve().parents for place in ours)


def current_receipt(home: Path, env: str) -> dict[str, Any] | None:
    """Return the receipt of the environment that current/<env> points at, or None."""
    return next((r for r in read_receipts(home) if r["env"] == env and is_current(home, r)), None)


def demand_receipt(home: Path, env: str) -> dict[str, Any]:
    """Return the receipt of the environment in use, else of the newest; raise Failure where there is none."""
    receipt = current_receipt(home, env) or next((r for r in read_receipts(home) if r["env"] == env), None)
    if receipt is None:
        raise not_installed(home, env)
    return receipt


def not_installed(home: Path, env: str) -> Failure:
    """Return what is said where an environment is not in a home."""
    return Failure(f"no {env} environment is installed in {home}", f"python3 bootstrap.py --env {env}")
