"""A run that is killed, starved or attacked: the next run finishes, and what is not ours stays.

tests/support/faults.py does the same many times; docs/faults.md has its figures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_FAILED, EXIT_MACHINE, EXIT_OK, EXIT_USAGE
from tests.conftest import HARDWARE
from tests.support import faults
from tests.support.homes import Home
from tests.support.mirror import snapshot

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files can be made by root alone")
mounts = pytest.mark.skipif(
    not faults.can_mount(), reason=HARDWARE + "a kernel that lets us mount a file system of our own"
)
OTHER = 61234  # a user's number that nobody has


@pytest.fixture(scope="module")
def lockfiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light environment's."""
    return faults.light_lockfiles(tmp_path_factory.mktemp("locks") / "lockfiles")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lockfiles: Path) -> Home:
    """A home with the light environment, to be copied or looked at."""
    folder = tmp_path_factory.mktemp("made")
    home = Home(folder / "home", folder / "user")
    home.run("--engine", "host", "--lockfiles", lockfiles)
    return home


# ---------------------------------------------------------------------------------------------------------
# Killed


def test_killed_alone_while_uv_writes(tmp_path: Path, lockfiles: Path) -> None:
    """The next run waits for the uv that was left alone: before, it ended with "Directory not empty", or worse."""
    found = faults.kills(tmp_path, lockfiles, 3)
    assert found.lost == () and found.tried == 3


def test_killed_with_all_that_it_started(tmp_path: Path, lockfiles: Path) -> None:
    assert faults.kills(tmp_path, lockfiles, 1, group=True).lost == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, lockfiles: Path, number: signal.Signals) -> None:
    assert faults.kills(tmp_path, lockfiles, 1, number, number == signal.SIGINT).lost == ()


def test_the_lock_lives_as_long_as_a_writer(tmp_path: Path, lockfiles: Path) -> None:
    """What is waited for, and that it is told."""
    home = Home(tmp_path / "home", tmp_path / "user")
    child = faults.begin(home, lockfiles)
    assert faults.await_moment(home, child, 3)
    (writer,) = children_of(child.pid)
    os.kill(writer, signal.SIGSTOP)
    faults.kill(child, signal.SIGKILL, group=False)
    again = faults.begin(home, lockfiles)
    assert again.stdout
    line = next(line for line in again.stdout if "waiting for it" in line)
    assert f"process {child.pid} was killed; what it started still writes" in line
    os.kill(writer, signal.SIGCONT)
    assert again.wait(120) == 0
    assert home.run("--verify").returncode == 0


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_eight_at_once(tmp_path: Path, lockfiles: Path) -> None:
    assert faults.at_once(tmp_path, lockfiles, 4).lost == ()


def kill_first(child: subprocess.Popen[str], words: str) -> None:
    """Kill the first program of a run whose command line holds these words, as the kernel does where memory ends."""
    while child.poll() is None:
        waiting = [child.pid]
        while waiting:
            with contextlib.suppress(OSError):
                of_threads = Path(f"/proc/{waiting.pop()}/task").glob("*/children")
                found = [int(word) for file in of_threads for word in file.read_text().split()]
                waiting += found
                for pid in found:
                    if words in Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " "):
                        os.kill(pid, signal.SIGKILL)
                        child.wait(60)
                        return
        time.sleep(0.002)


# What a run starts: (words of its command line, how it is called).
CHILDREN = {
    "pip": (" -m pip install ", "pip"),
    "uv": ("/uv pip ", "uv"),
    "what computes": ("smoke_test.py compute", "python"),
    "what serves": ("smoke_test.py serve", "python"),
}


@pytest.mark.parametrize("case", CHILDREN)
def test_a_killed_child_is_called_killed(tmp_path: Path, lockfiles: Path, case: str) -> None:
    words, name = CHILDREN[case]
    home = Home(tmp_path / "home", tmp_path / "user")
    with faults.begin(home, lockfiles) as child:
        kill_first(child, words)
        assert child.stdout
        said = child.stdout.read()
    assert child.returncode in (EXIT_FAILED, EXIT_MACHINE), said
    assert f"\nerror: {name} was killed (SIGKILL), " in said
    assert "\nhint: free -m" in said


# ---------------------------------------------------------------------------------------------------------
# Starved


@pytest.mark.parametrize("options", ["size=1m", "size=70m", "size=130m", "nr_inodes=400", "nr_inodes=4000"])
@mounts
def test_a_full_disk_is_called_so(tmp_path: Path, lockfiles: Path, options: str) -> None:
    assert faults.disks(tmp_path, lockfiles, [options]).lost == ()


@root_only
@mounts
def test_nothing_is_run_from_the_cache_nor_from_tmp(tmp_path: Path, lockfiles: Path) -> None:
    home, folder = Home(tmp_path / "home", tmp_path / "user"), tmp_path / "tmp"
    folder.mkdir()
    line = 'for f in "$TMPDIR" "$UV_CACHE_DIR"; do mount --bind "$f" "$f" && mount -o remount,bind,noexec "$f"; done'
    inside = ("unshare", "--mount", "sh", "-c", line + ' && exec "$@"', "sh")
    home.run("--engine", "host", "--lockfiles", lockfiles, inside=inside, TMPDIR=str(folder))
    assert home.run("--verify").returncode == 0


# ---------------------------------------------------------------------------------------------------------
# Attacked


def test_no_umask_lets_others_write(tmp_path: Path, lockfiles: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "user")
    before = os.umask(0)
    try:
        home.run("--engine", "host", "--lockfiles", lockfiles)
    finally:
        os.umask(before)
    loose = [
        path
        for path in [home.path, *home.path.rglob("*")]
        if not path.is_symlink()
        and path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and path.name != ".lock"  # uv makes its own for all; nothing is read from it
    ]
    assert loose == []
    target = home.prefix / "bin" / "jupyter-notebook"
    target.chmod(0o777)
    found = home.run("--verify", check=False)
    assert found.returncode == 7
    assert (
        "open      " in found.stdout and "bin/jupyter-notebook (found another user can write to it)" in found.stdout
    )


def plant(path: Path, uid: int) -> Path:
    """Write a program of another user's that leaves a mark when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch {path}.was-run\nexit 1\n")
    path.chmod(0o755)
    os.chown(path, uid, uid)
    return path


def attack_open_home(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)


def attack_open_parent(home: Path) -> None:
    home.mkdir(parents=True)
    home.parent.chmod(0o777)


def attack_sticky_home(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o1777)


def attack_owned_parent(home: Path) -> None:
    home.mkdir(parents=True)
    os.chown(home.parent, OTHER, OTHER)


def attack_owned_home(home: Path) -> None:
    home.mkdir(parents=True)
    os.chown(home, OTHER, OTHER)


def attack_group(home: Path) -> None:
    home.mkdir(parents=True)
    os.chown(home, 0, OTHER)
    home.chmod(0o775)


def attack_tool(home: Path) -> None:
    plant(home / "tools" / "uv-0.12.1" / "bin" / "uv", OTHER)


def attack_pixi(home: Path) -> None:
    plant(home / "bin" / "pixi", OTHER)


def attack_conda(home: Path) -> None:
    plant(home / "conda" / "bin" / "conda", OTHER)


def attack_envs_link(home: Path) -> None:
    (home.parent / "victim").mkdir()
    home.mkdir(exist_ok=True)
    (home / "envs").symlink_to(home.parent / "victim")


def attack_lock_link(home: Path) -> None:
    home.mkdir()
    (home / ".lock").symlink_to(home.parent / "precious")


def attack_lock_pipe(home: Path) -> None:
    home.mkdir()
    os.mkfifo(home / ".lock")


def attack_home_link(home: Path) -> None:
    (home.parent / "elsewhere").mkdir()
    home.symlink_to(home.parent / "elsewhere")
    os.chown(home, OTHER, OTHER, follow_symlinks=False)


ATTACKS = [value for name, value in list(globals().items()) if name.startswith("attack_")]


@root_only
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_hostile_neighbours(tmp_path: Path, lockfiles: Path, attack: Callable[[Path], None]) -> None:
    """Root in a folder where another user can write, or has written: nothing is run, followed or removed."""
    place = tmp_path / "shared"
    place.mkdir()
    (place / "precious").write_text("precious\n")
    home = Home(place / "home", tmp_path / "user")
    attack(home.path)
    before = snapshot(place)
    for options in (["--engine", "host", "--lockfiles", lockfiles], ["--uninstall", "--yes"], ["--prune", "--yes"]):
        done = home.run(*options, check=False)
        nothing = attack is attack_lock_pipe and options[0] != "--engine"  # there is nothing to be removed
        assert done.returncode == (EXIT_OK if nothing else EXIT_MACHINE), done.stdout + done.stderr
        assert done.stderr.count("hint: ") == (not nothing) and "Traceback" not in done.stderr
    assert snapshot(place) == before
    assert not list(place.rglob("*.was-run"))


def copy_of(made: Home, tmp_path: Path) -> Home:
    """Return a home that can be spoiled: the receipts and links of a real one, and an empty environment."""
    home = Home(tmp_path / "home", tmp_path / "user")
    name = made.prefix.name
    shutil.copytree(made.path / "receipts", home.path / "receipts")
    (home.path / "envs" / name / "bin").mkdir(parents=True)
    (home.path / "envs" / name / "bin" / "python").write_text("")
    receipt = home.path / "receipts" / name / "receipt.json"
    receipt.write_text(receipt.read_text().replace(str(made.path), str(home.path)))
    (home.path / "current").mkdir()
    (home.path / "current" / "cpu").symlink_to(f"../envs/{name}")
    return home


@pytest.mark.parametrize("field", ["root", "prefix", "name", "home", "env"])
def test_no_path_in_a_receipt_is_obeyed(made: Home, tmp_path: Path, field: str) -> None:
    import json

    home = copy_of(made, tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (path,) = home.path.glob("receipts/*/receipt.json")
    receipt = json.loads(path.read_text())
    for value in (str(victim), "../../../victim", f"../../victim-{'0' * 12}"):
        path.write_text(json.dumps(receipt | {field: value}))
        for options in (["--prune", "--yes"], ["--rollback"], ["--uninstall", "--yes"]):
            done = home.run(*options, check=False)
            assert "Traceback" not in done.stderr and done.returncode in (EXIT_OK, EXIT_FAILED), done.stderr
            assert (victim / "file").read_text() == "precious"
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)


def test_what_is_not_ours_stays(made: Home, tmp_path: Path) -> None:
    """A folder that looks like one of our environments is none without a mark of ours; a link is not followed."""
    home = copy_of(made, tmp_path)
    theirs = home.path / "envs" / "photos-0123456789ab"
    (theirs / "bin").mkdir(parents=True)
    (theirs / "holiday.jpg").write_text("mine")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    for options in (["--prune", "--yes"], ["--uninstall", "--yes"]):
        home.run(*options)
        assert (theirs / "holiday.jpg").read_text() == "mine"
    link = home.path / "envs" / "cpu-0123456789ab"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    home.run("--prune", "--yes", check=False)
    home.run("--uninstall", "--yes", check=False)
    assert (victim / "file").read_text() == "mine" and link.is_symlink()


def test_an_unmarked_folder_in_the_way_is_left_alone(tmp_path: Path, made: Home, lockfiles: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "user")
    theirs = home.path / "envs" / made.prefix.name / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    done = home.run("--engine", "host", "--lockfiles", lockfiles, check=False)
    assert done.returncode == EXIT_USAGE and "is left alone" in done.stderr and "hint: mv " in done.stderr
    assert theirs.read_text() == "mine"


def test_a_tool_that_was_altered_is_not_run(tmp_path: Path, lockfiles: Path) -> None:
    """By its own user, say: it is fetched again, from the lock."""
    home = Home(tmp_path / "home", tmp_path / "user")
    home.run("--engine", "host", "--lockfiles", lockfiles)
    (tool,) = home.path.glob("tools/uv-*/bin/uv")
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    shutil.rmtree(home.path / "receipts")
    shutil.rmtree(home.path / "envs")
    (home.path / "current" / "cpu").unlink()
    home.run("--engine", "host", "--lockfiles", lockfiles)
    assert not (tmp_path / "was-run").exists()
    assert subprocess.run([tool, "--version"], capture_output=True, check=True).stdout.startswith(b"uv ")
    assert sys.platform != "linux" or tool.stat().st_size > 1_000_000
