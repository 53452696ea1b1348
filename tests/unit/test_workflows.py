"""The workflows under .github: what can be said of them without running them."""

from __future__ import annotations

import yaml

from colab_local.install.lockfiles import read_index
from tests.support.lock_lab import REPO


def test_two_machines_of_each_platform_are_compared() -> None:
    """Every platform that the cpu environment is locked for has two runners, and its fingerprints are compared."""
    content = yaml.safe_load((REPO / ".github/workflows/two-machines.yml").read_text())
    built = [entry["platform"] for entry in content["jobs"]["build"]["strategy"]["matrix"]["include"]]
    runners = [entry["runner"] for entry in content["jobs"]["build"]["strategy"]["matrix"]["include"]]
    platforms = sorted(read_index(REPO / "lockfiles")["environments"]["cpu"]["platforms"])
    assert sorted(built) == sorted(platforms * 2) and len(set(runners)) == len(runners)
    assert sorted(content["jobs"]["compare"]["strategy"]["matrix"]["platform"]) == platforms
