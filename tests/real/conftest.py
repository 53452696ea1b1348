"""Fixtures of several test modules."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lock_lab import Lab
from tests.support.mirror import Mirror, World, build_world, own_environment
from tests.support.trials import Trial


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.getbasetemp() / "world")


@pytest.fixture
def mirror(world: World) -> Iterator[Mirror]:
    with Mirror(world) as server:
        yield server


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small environments of this test session are made."""
    folder = tmp_path_factory.getbasetemp() / "jupyter-environments"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def lab(made: Lab, tmp_path: Path) -> Lab:
    """A copy of the locked lab, to be changed at will."""
    for name in ("environments", "channel", "lockfiles"):
        shutil.copytree(made.root / name, tmp_path / name)
    return Lab(tmp_path)


@pytest.fixture
def trial(tmp_path: Path, mirror: Mirror) -> Trial:
    return Trial(tmp_path, mirror)


@pytest.fixture
def conda(tmp_path: Path, world: World) -> Path:
    """A conda that the user has had for long."""
    root = tmp_path / "their-conda"
    argv = ["bash", str(world.installer("miniforge")), "-b", "-p", str(root)]
    environ = own_environment(tmp_path)
    subprocess.run(argv, check=True, capture_output=True, env=environ)
    program = root / "bin" / "conda"
    subprocess.run([program, "--version"], check=True, capture_output=True, env=environ)  # writes its .pyc files
    return program
