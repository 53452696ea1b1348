"""What lock.py says where environments/ can't be solved, or what it reads does not answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rattler

from colab_local.locking import build, conda, pypi, render
from colab_local.locking.specs import Spec
from colab_local.locking.wheels import About, Wheel, read_wheels
from scripts import lock
from tests.conftest import REPO, SCREEN
from tests.support.situations import Doing, Row, each, hold, told, typed

NOBODY = "http://127.0.0.1:9/"  # nobody listens there: discard, RFC 863
PLATFORMS: Any = {"linux-64": {}, "osx-arm64": {}}
VIRTUAL = {name: {"__glibc": "2.28", "__osx": "12.0"} for name in PLATFORMS}
SPEC = Spec("cpu", "cpu", ("python",), ("cv",), PLATFORMS, VIRTUAL, pythons=("3.13",))


def wheel(name: str) -> Wheel:
    return Wheel(f"{name}-1-py3-none-any.whl", f"{NOBODY}{name}-1-py3-none-any.whl", name * 64, 5)


def solution(**versions: str) -> render.Solution:
    """Return an environment whose conda layer has these Pythons."""
    python: Any = {
        name: [SimpleNamespace(name=SimpleNamespace(normalized="python"), version=v)] for name, v in versions.items()
    }
    return render.Solution(SPEC, python, [], {})


def clash(patch: pytest.MonkeyPatch) -> None:
    """Two wheels bring different files of one name, as OpenCV's packages do."""
    found = [pypi.Package(name, "1", "", (), {(p, "3.13"): wheel(name) for p in PLATFORMS}) for name in "ab"]
    python = solution(**{"linux-64": "3.13.1"}).conda["linux-64"]
    patch.setattr(build, "solve_conda", lambda *_: python)
    patch.setattr(build, "solve_python", lambda *_: found)
    patch.setattr(build, "read_wheels", lambda _: {n * 64: About("MIT", 1, {"cv2/version.py": ord(n)}) for n in "ab"})
    build.solve(SPEC, set(), {}, [], "", [], {}, SCREEN)


def no_wheel(patch: pytest.MonkeyPatch) -> None:
    """The index has a source alone."""
    patch.setattr(pypi, "uv_lock", lambda _: ({"package": [{"name": "cv", "version": "1"}]}, "cv==1\n"))
    pypi.solve_python(SPEC, [])


class NewLockFile:
    """As rattler may write it one day."""

    def __init__(self, *_: Any) -> None:
        self.set_channels = self.add_conda_package = print

    def to_path(self, path: Path) -> None:
        path.write_text("version: 8\n")


def new_pixi_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rattler, "LockFile", NewLockFile)
    render.pixi_lock_text({"cpu": {"linux-64": []}})


def told_by(act: Callable[[pytest.MonkeyPatch], object]) -> Doing:
    return lambda _, patch: told(lambda: act(patch))


# What is done in a folder, `at`; a part of the error, and the whole hint.
SAID: list[Row] = [
    (
        lambda at, _: told(lambda: build.fetch_text(f"{at}/no.txt")),
        "{at}/no.txt can't be read",
        "python3 scripts/lock.py --help",
    ),
    (lambda *_: told(lambda: build.fetch_text(NOBODY)), NOBODY + " can't be read", "python3 scripts/lock.py --help"),
    (
        lambda at, _: typed(lock, "--index-only", "--lockfiles", at),
        "{at} has no index.json yet",
        f"python3 scripts/lock.py --environments {REPO}/environments --lockfiles " + "{at}",
    ),
    (
        told_by(clash),
        "cpu: a-1-py3-none-any.whl and b-1-py3-none-any.whl bring different files cv2/version.py",
        "leave one out of environments/cpu.yml, or bound it there",
    ),
    (
        told_by(no_wheel),
        "would have to be compiled: no wheel of cv 1 for linux-64, Python 3.13; cv 1 for osx-arm64",
        "add a bound to environments/, or an exception to environments/colab-exceptions.yml",
    ),
    (
        lambda *_: told(lambda: conda.channel_records(NOBODY, "linux-64", ["python"])),
        "the channel " + NOBODY + " can't be read (Connection refused",
        "python3 scripts/lock.py --channel DIR-or-URL",
    ),
    (
        lambda *_: told(lambda: solution(**{"linux-64": "3.13.1", "osx-arm64": "3.12.9"}).series),
        "cpu would have several Pythons: ",
        "bound Python in its .yml",
    ),
    (
        lambda at, _: told(lambda: render.jupyter_digests(at)),
        "{at} holds no settings and no extension",
        "git checkout -- environments",
    ),
    (
        told_by(new_pixi_lock),
        "rattler writes pixi.lock in a way that is not known here (found 'version: 8",
        "teach colab_local/locking/render.py its new form",
    ),
    (
        lambda *_: told(lambda: read_wheels([wheel("a")])),
        "a wheel can't be read (HTTPConnectionPool",
        "type the same line again, once the package index answers",
    ),
]


@each(SAID)
def test_what_is_said(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(row, tmp_path, monkeypatch)
