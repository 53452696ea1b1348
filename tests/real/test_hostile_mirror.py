"""A mirror that sends something else, too much, too little, too slowly, or elsewhere: for each kind of file.

Installers, conda packages and pixi's own file; tests/unit/test_downloads.py has what a server can do besides, and
tests/real/test_damaged_cache.py and test_sources.py the same for wheels.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_INTEGRITY, EXIT_NETWORK
from tests.conftest import REPO
from tests.support.homes import LIGHT
from tests.support.mirror import (
    Cut,
    Endless,
    Fault,
    Mirror,
    Redirect,
    Slow,
    Status,
    Tamper,
    World,
    find_interpreter,
    own_environment,
)

pytestmark = pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a package of"
)

# (what goes wrong, the exit code, what the error says)
FAULTS: dict[str, tuple[Fault, int, str]] = {
    "another file": (Tamper(), EXIT_INTEGRITY, "is not the file that the lock names (found sha256 "),
    "no end": (Endless(), EXIT_INTEGRITY, "is not the file that the lock names (found more than "),
    "cut": (Cut(after=100), EXIT_NETWORK, "the connection ended after"),
    "slow": (Slow(rate=200), EXIT_NETWORK, "bytes in "),
    "to ftp": (Redirect("ftp://127.0.0.1/file"), EXIT_NETWORK, "is no web address"),
    "to a file": (Redirect("file:///etc/hostname"), EXIT_NETWORK, "file:///etc/hostname"),
    "to nowhere": (Redirect("http://[::1"), EXIT_NETWORK, "can't download "),
    "in a ring": (Redirect(""), EXIT_NETWORK, "can't download "),
    "busy": (Status(503), EXIT_NETWORK, "HTTP 503"),
}
FILES = {  # who makes the environment, and which of its files is meant
    "Miniforge's installer": ("miniforge", "Miniforge3"),
    "Anaconda's installer": ("anaconda", "Anaconda3"),
    "pixi": ("pixi", "pixi-"),
    "a conda package for Miniforge": ("miniforge", "/uv-"),
    "a conda package for the user's conda": ("conda", "/uv-"),
    "a conda package for pixi": ("pixi", "/uv-"),
}
# bootstrap.py with less patience
QUICK = (
    "import sys; sys.path.insert(0, sys.argv[1]); import bootstrap; from colab_local.base import downloads;"
    "downloads.FIRST_PAUSE_S, downloads.SLOW_S, downloads.TRIES = 0.01, 1.0, 2;"
    "sys.exit(bootstrap.main(sys.argv[2:]))"
)


@pytest.fixture(scope="module")
def lockfiles(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_lockfiles(tmp_path_factory.mktemp("locks") / "lockfiles", LIGHT)


@pytest.fixture(scope="module")
def conda(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conda that the user has had for long."""
    folder = tmp_path_factory.mktemp("theirs")
    argv = ["bash", str(world.installer("miniforge")), "-b", "-p", str(folder / "conda")]
    subprocess.run(argv, check=True, capture_output=True, env=own_environment(folder))
    return folder / "conda" / "bin" / "conda"


@pytest.mark.parametrize("file", FILES)
def test_a_hostile_mirror(tmp_path: Path, mirror: Mirror, lockfiles: Path, conda: Path, file: str) -> None:
    engine, part = FILES[file]
    user = tmp_path / "user"
    user.mkdir()
    for number, (name, (fault, code, said)) in enumerate(FAULTS.items()):
        home = tmp_path / str(number)
        mirror.reset()
        mirror.fault(part, fault, times=100)
        argv = [sys.executable, "-c", QUICK, str(REPO), "--engine", engine, "--prefix", str(home)]
        argv += ["--lockfiles", str(lockfiles), *mirror.options]
        env = own_environment(user) | ({"CONDA_EXE": str(conda)} if engine == "conda" else {})
        started = time.monotonic()
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, cwd=user)
        errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert done.returncode == code and said in errors[0], (name, done.stderr)
        assert [line.partition(": ")[0] for line in errors] == ["error", "hint"], (name, done.stderr)
        assert "Traceback" not in done.stderr, (name, done.stderr)
        kinds = ("envs/*", "receipts/*", "current/*", "conda/*", "bin/*", "**/*.tmp")
        assert [path for kind in kinds for path in home.glob(kind)] == [], name
        if code == EXIT_INTEGRITY:  # nothing of it is kept, and it is asked for once
            assert not [path for path in home.rglob("*") if path.name.startswith(part.strip("/"))], name
            assert len(mirror.gets(part)) == 1, name
        assert time.monotonic() - started < 120, name
