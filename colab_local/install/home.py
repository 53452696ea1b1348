"""The folder that everything lands in, its lock and its receipts."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
from pathlib import Path
from typing import Any, Iterator

from colab_local.base import documents
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import existing_parent, remove_tree
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
    "created?": str,
    "accelerator?": str,
    "seal?": {"*": str},
    "seconds?": {"*": (int, float)},
    "notices?": [str],
    "home?": str,
    "parents?": int,
}


def user_home() -> Path:
    """Return the user's home folder; raise Failure where there is none (containers, users without an entry)."""
    with contextlib.suppress(RuntimeError):
        if os.environ.get("HOME") != "":
            return Path.home()
    raise Failure("you have no home folder here (HOME is not set)", "export HOME=/a/folder/of/yours", EXIT_MACHINE)


def user_name() -> str:
    """Return the user's name, or the number of one that has no name here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def default_home() -> Path:
    """Return the folder that everything lands in when --prefix doesn't say."""
    given = os.environ.get("COLAB_LOCAL_HOME")
    return Path(given) if given else user_home() / ".local" / "share" / "colab-local"


def config_folder() -> Path:
    """Return the folder of the user's settings (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def check_home(home: Path) -> None:
    """Raise Failure unless the home folder is there and ours to write, or can be made."""
    elsewhere = "python3 bootstrap.py --prefix {}".format(shlex.quote(str(user_home() / "colab-local")))
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
    owner, user = parent.stat().st_uid, os.getuid()
    if parent == home and user and owner not in (0, user):  # what root chooses stands: volumes of containers
        raise Failure(
            f"{home} belongs to another user, who could change what runs from it (found uid {owner}, need {user})",
            elsewhere,
            EXIT_MACHINE,
        )
    if not os.access(str(parent), os.W_OK | os.X_OK):
        raise Failure(f"{parent} can't be written by {user_name()}", elsewhere, EXIT_MACHINE)


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
def locked(home: Path, screen: Screen) -> Iterator[None]:
    """Hold the exclusive lock on the home folder; wait, and say so, while another run has it."""
    path = home / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            owner = stream.read(20).strip()
            screen.report(f"Another run is at work in {home} (process {owner}): waiting for it.")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


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
    try:
        receipt = documents.read(path, RECEIPT_SHAPE)
    except (OSError, ValueError):
        return None
    written_in = receipt.get("home") or str(receipt.get("root", "")).rpartition("/envs/")[0]
    if receipt["name"] != name or name.rpartition("-")[0] != receipt["env"]:
        return None
    if os.path.realpath(f"{written_in}/envs/{name}") != os.path.realpath(str(home / "envs" / name)):
        return None
    root = environment_root(home, name)
    prefix = environment_prefix(root, receipt["env"], receipt["engine"])
    return dict(receipt, root=str(root), prefix=str(prefix))


def read_receipts(home: Path) -> list[dict[str, Any]]:
    """Return the receipts of the environments in a home, newest first."""
    found = [read_receipt(home, path.parent.name) for path in home.glob("receipts/*/receipt.json")]
    receipts = [receipt for receipt in found if receipt]
    return sorted(receipts, key=lambda receipt: str(receipt.get("created")), reverse=True)


def is_current(home: Path, receipt: dict[str, Any]) -> bool:
    """Return whether current/<env> points at the environment of a receipt."""
    link = home / "current" / receipt["env"]
    return bool(link.exists() and link.resolve() == Path(str(receipt["prefix"])).resolve())


def current_receipt(home: Path, env: str) -> dict[str, Any] | None:
    """Return the receipt of the environment that current/<env> points at, or None."""
    return next((r for r in read_receipts(home) if r["env"] == env and is_current(home, r)), None)
