"""What is said of an environment that is not whole, of a service that does not start, of programs beside them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from colab_local.install import home as homes
from colab_local.install import offline
from colab_local.install.lockfiles import Lock
from colab_local.manage import content, repair, service
from scripts import benchmark, compare, connect
from scripts.fleet import cloud_init
from tests.conftest import REPO, SCREEN
from tests.support.receipts import NAME
from tests.support.situations import Row, each, hold, home_with, paste, program, told, typed

MAKE = "python3 bootstrap.py --env cpu"


def gone(home: Path) -> Path:
    shutil.rmtree(home_with(home) / "envs" / NAME / "bin")
    return home


def mended(home: Path, **more: Any) -> repair.Repair:
    """Return the repair of a home's environment by this copy of colab-local."""
    options = bootstrap.read_options(bootstrap.make_parser().parse_args(["--prefix", str(home_with(home, **more))]))
    return repair.Repair(options, homes.demand_receipt(home, "cpu"), SCREEN)


def other_bundle(home: Path, patch: pytest.MonkeyPatch, engine: str) -> None:
    """Repair from a bundle that was made for another engine, or Python."""

    @contextmanager
    def opened(*_: Any) -> Iterator[offline.Offline]:
        yield offline.Offline([], home, REPO / "lockfiles", engine, "3.12")

    patch.setattr(offline, "open_bundle", opened)
    work = mended(home)
    with repair.open_bundle(work.options, work.receipt, SCREEN):
        pass


def systemd(at: Path, patch: pytest.MonkeyPatch) -> service.Systemd:
    """A machine whose systemd has no manager for this user, and whose loginctl grants none."""
    for name in ("systemctl", "loginctl"):
        program(at / name, "exit 1")
    patch.setenv("PATH", f"{at}:{os.defpath}")
    patch.setattr(service, "MANAGER_SECONDS", 0.0)
    patch.setattr(service, "choose_manager", service.Systemd)
    patch.setattr(service, "user_name", lambda: "ada")
    return service.Systemd(SCREEN)


def launchd(at: Path, patch: pytest.MonkeyPatch, script: str) -> service.Launchd:
    """A Mac whose launchctl does this (launchctl(1))."""
    program(at / "launchctl", script)
    patch.setenv("PATH", f"{at}:{os.defpath}")
    patch.setattr(service, "LAUNCHD_SECONDS", 0.0)
    return service.Launchd(SCREEN)


def by_hand(at: Path, patch: pytest.MonkeyPatch) -> None:
    """Our Jupyter was started in a terminal, on the port of the service."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        patch.setattr(service, "running_servers", lambda home: [{"pid": 4711, "port": port}])
        service.check_port(systemd(at, patch), at, port)


def silent(at: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(service, "START_SECONDS", 0.0)
    service.await_answer(systemd(at, patch), at, "cpu", 8888)


def locked() -> Lock:
    return Lock("cpu", "linux-64", "cpu", "host-3.11", "", "", "", {"prefix/etc/x": "0" * 64}, "0" * 64)


def low_port(at: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(bootstrap, "lowest_port", lambda: 1024)
    patch.setattr(bootstrap, "free_port", lambda first: first)
    return typed(bootstrap, "--prefix", at / "h", "--port", 80, "--gpu")


def taken_port(at: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(bootstrap, "free_port", lambda first: 8000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        return typed(bootstrap, "--launch", "--prefix", at / "h", "--port", port, "--python", sys.executable)


def content_link(at: Path) -> str:
    """The folder that /content is to lead to is made by the hint; then the link can be."""
    said = told(lambda: content.make_link(at / "my nb", False, SCREEN, at / "content"))
    paste(said)
    content.make_link(at / "my nb", False, SCREEN, at / "content")
    return said


def interrupted(at: Path) -> str:
    """Ctrl-C while ssh asks for a password."""
    ssh = program(at / "ssh", "sleep 0.1; kill -INT $PPID; cat")
    return typed(connect, "--ssh", ssh, "--status", "me@host")


def without_yaml(at: Path, patch: pytest.MonkeyPatch, marked: bool) -> str:
    """The distribution's own Python, whose pip refuses, or one of the user's."""
    patch.setattr(cloud_init, "MISSING", "yaml")
    patch.setattr(sys, "prefix", sys.base_prefix)
    patch.setattr(sysconfig, "get_path", lambda name: str(at))
    if marked:
        (at / "EXTERNALLY-MANAGED").touch()
    patch.setattr(shutil, "which", lambda name: name)
    return typed(cloud_init, "--git", "https://x/y", "--commit", "0" * 40)


# What is done in a folder, `at`; a part of the error, and the whole hint.
SAID: list[Row] = [
    (
        lambda at, _: typed(bootstrap, "--verify", "--prefix", at),
        "no cpu environment is installed in {at}",
        "python3 bootstrap.py --prefix {at} --env cpu",
    ),
    (
        lambda at, _: typed(bootstrap, "--repair", "--prefix", at / "h"),
        "no cpu environment is installed in {at}/h",
        "python3 bootstrap.py --prefix {at}/h --env cpu",
    ),
    (lambda at, _: typed(benchmark, "train", "--home", at), "no cpu environment is installed in {at}", MAKE),
    (
        lambda at, _: typed(bootstrap, "--verify", "--prefix", gone(at / "h")),
        "the cpu environment is gone from {at}/h/envs/",
        "python3 bootstrap.py --prefix {at}/h --env cpu",
    ),
    (
        lambda at, _: typed(bootstrap, "--repair", "--prefix", gone(at / "h")),
        "the cpu environment is gone from {at}/h/envs/",
        "python3 bootstrap.py --prefix {at}/h --env cpu",
    ),
    (
        lambda at, _: told(mended(at / "h").lock),
        "/lock/pypi.txt is damaged, and this copy of colab-local has another lock",
        MAKE,
    ),
    (
        lambda at, _: told(lambda: mended(at / "h").write_ours(locked())),
        "has another Jupyter extension than the environment",
        MAKE,
    ),
    (
        lambda at, patch: told(lambda: other_bundle(at, patch, "miniforge")),
        "the bundle is of another engine than the environment (found miniforge, need host)",
        "choose the bundle that the environment was made from, or one of the same lock",
    ),
    (
        lambda at, patch: told(lambda: other_bundle(at, patch, "host")),
        "the bundle is of another Python than the environment (found host-3.12, need host-3.11)",
        "choose the bundle that the environment was made from, or one of the same lock",
    ),
    (
        lambda at, patch: told(lambda: systemd(at, patch) and service.find_manager(SCREEN)),
        "systemd runs no services for user ada here",
        "sudo loginctl enable-linger ada   # then the same command again",
    ),
    (
        lambda at, patch: told(launchd(at, patch, "exit 0").disable),
        "launchd does not let go of the service (waited 0 s)",
        "launchctl bootout gui/{uid}/org.colab-local.jupyter",
    ),
    (
        lambda at, patch: told(
            launchd(at, patch, "echo 'Bootstrap failed: 5: Input/output error' >&2; exit 5").enable
        ),
        "launchd does not take the service (launchctl failed: Bootstrap failed: 5: Input/output error",
        "plutil -lint {home}/Library/LaunchAgents/org.colab-local.jupyter.plist   # then the same command again",
    ),
    (
        lambda at, patch: told(lambda: by_hand(at, patch)),
        "Jupyter runs already, started by hand (process 4711, port",
        "kill 4711   # ends its kernels; then the same command again",
    ),
    (
        lambda at, patch: told(lambda: silent(at, patch)),
        "the service does not answer on port 8888 after 0 s",
        "journalctl --user -u colab-local",
    ),
    (
        low_port,
        "only root may use port 80 (need 1024 or more)",
        "python3 bootstrap.py --prefix {at}/h --gpu --port 8888",
    ),
    (
        taken_port,
        " is taken by another program",
        "python3 bootstrap.py --launch --prefix {at}/h --python {python} --port 8000",
    ),
    (
        lambda at, _: content_link(at),
        "there is no folder {at}/my nb for {at}/content to lead to",
        "mkdir -p '{at}/my nb'",
    ),
    (
        lambda at, _: typed(benchmark, "train", "--home", home_with(at)),
        "training in the environment cpu failed: see above",
        "python3 bootstrap.py --env cpu --verify",
    ),
    (
        lambda at, _: typed(compare, at / "a", at / "b"),
        "can't read {at}/a (No such file or directory)",
        "python3 bootstrap.py --verify --json > here.json",
    ),
    (
        lambda *_: typed(connect, "me@a host"),
        "a host can't be named 'me@a host'",
        "python3 scripts/connect.py --help",
    ),
    (lambda at, _: interrupted(at), "interrupted", "type the same line again"),
    (
        lambda at, patch: without_yaml(at, patch, marked=True),
        "cloud_init.py needs yaml",
        "sudo apt-get install python3-yaml",
    ),
    (
        lambda at, patch: without_yaml(at, patch, marked=False),
        "cloud_init.py needs yaml",
        "{python} -m pip install pyyaml",
    ),
]


@each(SAID)
def test_what_is_said(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(row, tmp_path, monkeypatch)


def test_windows_is_told_of_wsl() -> None:
    """Before anything is imported that Windows has not (fcntl)."""
    code = (
        "import os, sys, runpy; os.name = 'nt'; sys.modules['fcntl'] = None; sys.argv = ['connect.py', 'me@host']\n"
    )
    code += "runpy.run_path('scripts/connect.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: this runs on Linux, macOS and WSL\nhint: wsl --install   # in PowerShell\n"
