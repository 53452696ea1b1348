"""Other people's readers of our lockfiles: those that the package index has, run as their users run them.

conda's plugin conda-lockfiles 0.2.2 reads pixi.lock, too (tried with conda 26.7.1, whose own package is not to be
had from the index); conda-lock and py-rattler are asked by ci/check_lockfiles.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from colab_local.base.programs import child_environment
from colab_local.install.bundling import find_uv
from colab_local.install.lockfiles import parse_explicit
from tests.support.lock_lab import REPO

PLATFORMS = ("linux-64", "linux-aarch64", "osx-arm64")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of lockfiles/, so that a reader's own files do not land there."""
    shutil.copytree(REPO / "lockfiles", tmp_path / "lockfiles", ignore=shutil.ignore_patterns(".pixi"))
    return tmp_path / "lockfiles"


def reader(folder: Path, package: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a package from the index, in an environment of its own, as `uvx` does."""
    argv = [find_uv(), "tool", "run", "--from", package, *words]
    done = subprocess.run(argv, cwd=folder, env=child_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def urls(name: str, platform: str) -> dict[str, str]:
    """Return {URL: SHA-256} of an explicit file."""
    return dict(parse_explicit((REPO / "lockfiles" / name / f"{platform}.txt").read_text()))


def test_pixi_policy_finds_every_environment_locked(folder: Path) -> None:
    """Its rule lock.complete: each environment that the manifest has is in the lock, `default` among them."""
    reader(folder, "pixi-policy==0.3.0", "pixi-policy", "init")
    done = reader(folder, "pixi-policy==0.3.0", "pixi-policy", "--format", "json")
    report = json.loads(done.stdout)
    text = json.dumps(report)
    assert "lock.complete" not in text and "sources.channels" not in text
    environments = tomllib.loads((folder / "pixi.toml").read_text())["environments"]
    lock = yaml.safe_load((folder / "pixi.lock").read_text())
    assert set(lock["environments"]) == {"default", *environments}
    assert lock["environments"]["default"] == lock["environments"]["cpu"]


@pytest.mark.parametrize("environment", ["default", "cpu", "gpu"])
def test_pixi_sbom_describes_every_package(folder: Path, environment: str) -> None:
    words = [
        "--lockfile",
        "pixi.lock",
        "--environment",
        environment,
        "--platform",
        "linux-64",
        "--output",
        "sbom.json",
    ]
    reader(folder, "pixi-sbom==1.15.0", "pixi-sbom", *words)
    components: list[dict[str, Any]] = json.loads((folder / "sbom.json").read_text())["components"]
    need = urls("cpu" if environment == "default" else environment, "linux-64")
    hashes = {entry["content"] for component in components for entry in component.get("hashes", [])}
    assert len(components) == len(need) and set(need.values()) <= hashes


def test_pixi_to_conda_lock_makes_our_conda_lock_of_it(folder: Path) -> None:
    """The same packages and hashes as in the conda-lock.yml that we write."""
    reader(folder, "pixi-to-conda-lock==0.4.5", "pixi-to-conda-lock", "pixi.lock", "--output", "out", "-e", "cpu")
    (made,) = (folder / "out").glob("*conda-lock.yml")
    packages = yaml.safe_load(made.read_text())["package"]
    for platform in PLATFORMS:
        found = {entry["url"]: entry["hash"]["sha256"] for entry in packages if entry["platform"] == platform}
        assert found == urls("cpu", platform), platform
