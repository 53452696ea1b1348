"""Pythons of this machine besides the one that runs the tests: by their names on PATH."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest

ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


@functools.cache
def look_up(version: str) -> str | None:
    """Return a Python of that minor version, or None; asked, because pyenv's shims may lead nowhere."""
    python = shutil.which(f"python{version}")
    if python is None:
        return None
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
    return python if done.stdout.strip() == version else None


def demand(version: str) -> str:
    """Return a Python of that minor version; the test is skipped where there is none."""
    python = look_up(version)
    if python is None:
        pytest.skip(f"no python{version} on PATH")
    return python


def old_pythons() -> list[str]:
    """Return the oldest Pythons that are promised, as far as this machine has them."""
    return [python for python in map(look_up, ("3.8", "3.9")) if python]
