"""What is installed in a home: list it, switch back, remove what is not in use, remove everything.

    python3 bootstrap.py --list                 environments with size, lock and state
    python3 bootstrap.py --rollback             use the previous environment again (and back, if run twice)
    python3 bootstrap.py --prune                remove environments that neither current/ nor previous/ names
    python3 bootstrap.py --uninstall            remove all that was made; shows it first, asks, restores backups

Nothing is removed that colab-local did not make: a file of the user's own in the home folder stays, and is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple

from colab_local.base.errors import EXIT_BUSY, EXIT_USAGE, Failure
from colab_local.base.files import link_atomically, remove_tree, write_atomically
from colab_local.base.terminal import Screen
from colab_local.base.text import megabytes
from colab_local.install.home import FOLDERS, begun_mark, demand_ours, hold_lock, is_half_made, read_receipts

# What bootstrap.py and the scripts keep in a home besides environments, receipts and links. A home may be a folder
# that the user has other things in, so the names are narrow.
OURS = (
    "cache/sha256",
    "cache/conda",
    "cache/conda-pkgs",  # of earlier versions, as are mamba, pixi and pixi-home
    "cache/engine",
    "cache/mamba",
    "cache/pixi",
    "cache/pixi-home",
    "cache/offline",
    "cache/host.txt",
    "cache/*-[0-9a-f]*.txt",
    "tools/uv-*",
    "logs/bootstrap-*.log",
    "logs/install-*.log",
    "logs/jupyter.log",
    "logs/jupyter-*.log",
    "logs/service.log",
    "logs/slurm-*.log",
    "run/connect.lock",
    "run/install*",
    "run/jupyter*",
    "run/slurm-*",
)
# A folder is ours where its marker says so: an engine's that we installed, the program that connect.py sent.
MARKED = {
    "conda/.colab-local.json": ("conda",),
    "bin/.pixi.json": ("bin/pixi", "bin/.pixi.json"),
    "program/.digest": ("program",),
}
Remover = Callable[[Path, bool, Screen], int]  # of what else was set up: home, dry run
NAME = re.compile(r"[\w.-]+-[0-9a-f]{12}$")  # of an environment: <env>-<lock digest>


class Installed(NamedTuple):
    """An environment in a home. state: in use, previous, unused, half-made (no receipt) or gone (only a receipt)."""

    name: str
    state: str
    root: Path
    size: int
    receipt: dict[str, Any]


def tree_size(path: Path) -> int:
    """Return the bytes in a folder or file; what hard links name twice counts once."""
    total, seen = 0, set()
    folders = [str(path)] if path.is_dir() and not path.is_symlink() else []
    if not folders:
        return path.lstat().st_size if os.path.lexists(str(path)) else 0
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def links(home: Path, kind: str) -> dict[Path, Path]:
    """Return {link: what it leads to} of home/current or home/previous."""
    found = {}
    for path in sorted((home / kind).glob("*")):
        if path.is_symlink():
            found[path] = path.resolve()
    return found


def read_home(home: Path) -> list[Installed]:
    """Return the environments in a home, those in use first, then the newest first."""
    current, previous = set(links(home, "current").values()), set(links(home, "previous").values())
    found, known = [], set()
    for receipt in read_receipts(home):
        root, prefix = Path(receipt["root"]), Path(receipt["prefix"])
        known.add(root.name)
        state = "unused"
        if not (prefix / "bin").is_dir():
            state = "gone"
        elif prefix.resolve() in current:
            state = "in use"
        elif prefix.resolve() in previous:
            state = "previous"
        found.append(Installed(root.name, state, root, tree_size(root), receipt))
    for root in sorted((home / "envs").glob("*")):
        if root.name not in known and NAME.match(root.name) and is_half_made(home, root.name):
            found.append(Installed(root.name, "half-made", root, tree_size(root), {}))
    for folder in sorted((home / "receipts").glob("*")):
        listed = folder.name in {entry.name for entry in found}
        if NAME.match(folder.name) and not listed and is_half_made(home, folder.name):
            found.append(Installed(folder.name, "gone", home / "envs" / folder.name, 0, {}))
    order = ["in use", "previous", "unused", "half-made", "gone"]
    return sorted(found, key=lambda entry: order.index(entry.state))


# ---------------------------------------------------------------------------------------------------------
# Removing


def remove_environment(home: Path, entry: Installed) -> None:
    """Remove one environment. The mark that it is ours goes last, so that a half-removed one counts as half-made."""
    if os.path.lexists(str(entry.root)):
        write_atomically(begun_mark(home, entry.name), f"{os.getpid()}\n")
        remove_tree(home / "receipts" / entry.name / "receipt.json")
        remove_tree(entry.root)
    remove_tree(home / "receipts" / entry.name)


def users_of(folder: Path) -> list[tuple[int, str]]:
    """Return (pid, name) of the processes of ours that run from a folder, this one excepted."""
    found = []
    real = str(folder.resolve()) + "/"
    if not Path("/proc/self/maps").exists():  # macOS
        done = subprocess.run(["ps", "-axo", "pid=,comm=,args="], capture_output=True, text=True, check=False)
        rows = [line.split(None, 2) for line in done.stdout.splitlines() if real in line]
        return [(int(row[0]), Path(row[1]).name) for row in rows if int(row[0]) != os.getpid()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # what it was started as, links like current/cpu resolved, and the libraries that it has loaded
            programs = [f"{Path(word).parent.resolve()}/" for word in words[:2] if word.startswith("/")]
            used = any(program.startswith(real) for program in programs)
            if int(process.name) != os.getpid() and (used or real in (process / "maps").read_text(errors="replace")):
                found.append((int(process.name), (process / "comm").read_text().strip()))
    return sorted(found)


def demand_unused(folders: list[Path]) -> None:
    """Raise Failure while a program runs from one of the folders."""
    for folder in folders:
        running = users_of(folder) if folder.is_dir() else []
        if running:
            names = ", ".join(sorted({f"{name} ({pid})" for pid, name in running}))
            raise Failure(
                f"programs still run from {folder}: {names}",
                "kill " + " ".join(str(pid) for pid, _ in running),
                EXIT_BUSY,
            )


def confirmed(option: str, yes: bool, screen: Screen) -> bool:
    """Ask whether to go on; a "no" is confirmed.

    option: what is to be done, like --prune; yes: --yes was given.

    Raises:
        Failure: nobody can be asked, and --yes was not given.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise Failure(
            "nothing was removed: there is no terminal to ask on",
            f"python3 bootstrap.py {option} --yes",
            EXIT_USAGE,
        )
    sys.stderr.write("Remove all this? [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if not answer:  # Ctrl-C or Ctrl-D: the question's line is not ended
        sys.stderr.write("\n")
    if answer.strip().lower() in ("y", "yes"):
        return True
    screen.say("Nothing was removed.")
    return False


def made(home: Path) -> list[Path]:
    """Return what bootstrap.py and the scripts made in a home, environments and receipts excepted."""
    paths = [path for pattern in OURS for path in sorted(home.glob(pattern))]
    for marker, names in MARKED.items():
        if (home / marker).is_file():
            paths += [home / name for name in names]
    envs = (home / "envs").resolve()
    for kind in ("current", "previous"):
        paths += [link for link, target in links(home, kind).items() if envs in target.parents]
    return paths


def outermost(paths: list[Path]) -> list[Path]:
    """Return the paths that lie in none of the others."""
    chosen = set(paths)
    return [path for path in paths if not any(parent in chosen for parent in path.parents)]


def remove_home(home: Path, parents: list[Path], named: list[Path]) -> None:
    """Remove the home if nothing but our lock is in it, then those folders above it that an installation made.

    named: the user's own choices of --notebook-dir, which stay, empty or not.
    """
    if {path.name for path in home.iterdir()} != {".lock"}:
        return
    (home / ".lock").unlink()
    for folder in [home, *sorted(parents, reverse=True)]:
        if folder.resolve() in named:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()


def left_over(home: Path) -> list[str]:
    """Return what is left of a home, relative to it, empty folders excepted."""
    return sorted(
        path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def show(screen: Screen, home: Path, paths: list[tuple[Path, int]], verb: str) -> None:
    """Print what will be removed from a home."""
    screen.say(f"{verb} this from {home}:")
    for path, size in paths:
        screen.say(f"  {megabytes(size):>8}  {path.relative_to(home) if home in path.parents else path}")


# ---------------------------------------------------------------------------------------------------------
# Commands


def list_environments(home: Path, screen: Screen) -> dict[str, Any]:
    """Print the environments; return what --json prints."""
    found = read_home(home)
    rows = [
        {
            "name": entry.name,
            "env": entry.receipt.get("env", entry.name.rpartition("-")[0]),
            "state": entry.state,
            "bytes": entry.size,
            "engine": entry.receipt.get("engine", ""),
            "layer": entry.receipt.get("layer", ""),
            "platform": entry.receipt.get("platform", ""),
            "lock": entry.receipt.get("lock", {}).get("digest", ""),
            "created": entry.receipt.get("created", ""),
            "prefix": entry.receipt.get("prefix", str(entry.root)),
        }
        for entry in found
    ]
    if not rows:
        screen.say(f"No environment is installed in {home}")
    else:
        screen.say(f"In {home}:")
        screen.say(f"  {'state':<9}  {'size':>8}  {'env':<8}  {'lock':<12}  {'engine':<10}  {'made':<20}")
    for row in rows:
        screen.say(
            f"  {row['state']:<9}  {megabytes(row['bytes']):>8}  {row['env']:<8}  "
            f"{row['lock'][:12]:<12}  {row['engine']:<10}  {row['created']}"
        )
    return {"ok": True, "home": str(home), "environments": rows}


def rollback(home: Path, env: str, dry_run: bool, screen: Screen) -> dict[str, Any]:
    """Switch current/ENV to the environment that was used before; return what --json prints."""
    demand_ours(home)
    link, back = home / "current" / env, home / "previous" / env
    target = back.resolve() if back.is_symlink() else None
    receipt = next((r for r in read_receipts(home) if target and Path(r["prefix"]).resolve() == target), None)
    if target is None or receipt is None or not (target / "bin").is_dir() or target == link.resolve():
        raise Failure(f"there is no previous {env} environment in {home}", "python3 bootstrap.py --list")
    result = {"ok": True, "environment": env, "prefix": str(target), "lock": receipt["lock"]["digest"]}
    if dry_run:
        screen.say(f"Would switch {link} to {receipt['name']} (made {receipt['created']})")
        return dict(result, changed=False)
    with hold_lock(home, screen):
        old = link.resolve() if link.is_symlink() else None
        link_atomically(link, target)
        if old is not None and old.is_dir():
            link_atomically(back, old)
        else:
            back.unlink()
    screen.say(
        f"{link} is {receipt['name']} again (made {receipt['created']}). A running Jupyter has to be restarted."
    )
    screen.say("Back to the newer one: the same command once more.")
    return dict(result, changed=True)


def prune(home: Path, dry_run: bool, yes: bool, screen: Screen) -> dict[str, Any]:
    """Remove the environments that no link uses; return what --json prints."""
    demand_ours(home)
    unused = [entry for entry in read_home(home) if entry.state not in ("in use", "previous")]
    result: dict[str, Any] = {"ok": True, "removed": [], "would_remove": [], "bytes": 0, "changed": False}
    if not unused:
        screen.say(f"Nothing to do: every environment in {home} is in use, or the previous one")
        return result
    show(screen, home, [(entry.root, entry.size) for entry in unused], "Would remove" if dry_run else "Will remove")
    if dry_run:
        return dict(result, would_remove=[entry.name for entry in unused], bytes=sum(e.size for e in unused))
    if not confirmed("--prune", yes, screen):
        return result
    with hold_lock(home, screen):
        # another run may have finished one of them, or switched to it, while this one waited
        still = {entry.name for entry in read_home(home) if entry.state not in ("in use", "previous")}
        gone = [entry for entry in unused if entry.name in still]
        demand_unused([entry.root for entry in gone])
        for entry in gone:
            remove_environment(home, entry)
    size = sum(entry.size for entry in gone)
    screen.say(f"Removed {len(gone)} environment{'' if len(gone) == 1 else 's'} ({megabytes(size)}).")
    return dict(result, removed=[entry.name for entry in gone], bytes=size, changed=True)


def uninstall(home: Path, dry_run: bool, yes: bool, others: Mapping[str, Remover], screen: Screen) -> dict[str, Any]:
    """Remove everything that was made, restore backups; return what --json prints.

    others: {receipt's name: what removes that} of what else may have been set up: a service, a desktop.
    """
    demand_ours(home)
    environments = read_home(home)
    removers = [remover for receipt, remover in others.items() if (home / "receipts" / receipt).is_file()]
    kept = outermost(made(home))
    parents = list(home.parents)[: max((int(e.receipt.get("parents", 0)) for e in environments), default=0)]
    chosen = [e.receipt["notebook_dir"] for e in environments if e.receipt.get("own_folder")]
    named = [Path(folder).resolve() for folder in chosen]
    result: dict[str, Any] = {"ok": True, "removed": [], "left": [], "changed": False}
    if not (environments or removers or kept):
        screen.say(f"Nothing to do: nothing of colab-local is in {home}")
        return result
    sizes = [(entry.root, entry.size) for entry in environments] + [(path, tree_size(path)) for path in kept]
    show(screen, home, sizes, "Would remove" if dry_run else "Will remove")
    for remover in removers:  # each shows what it would remove and restore
        remover(home, True, screen)
    if dry_run or not confirmed("--uninstall", yes, screen):
        return result
    for remover in removers:
        remover(home, False, screen)
    if home.is_dir():
        with hold_lock(home, screen):
            demand_unused([entry.root for entry in environments])
            for entry in environments:
                remove_environment(home, entry)
            for path in outermost(made(home)):
                remove_tree(path)
            for name in FOLDERS:
                with contextlib.suppress(OSError):
                    (home / name).rmdir()
            remove_home(home, parents, named)
    left = left_over(home) if home.is_dir() else []
    left = [name for name in left if name != ".lock"]
    screen.say(f"Removed {megabytes(sum(size for _, size in sizes))} from {home}.")
    if left:
        screen.say(f"Left, because colab-local did not make it: {', '.join(left[:5])}{' ...' if left[5:] else ''}")
    screen.say("Not touched: uv's and pip's own caches (uv cache clean), what Jupyter keeps in your home folder.")
    return dict(result, removed=[str(path) for path, _ in sizes], left=left, changed=True)
