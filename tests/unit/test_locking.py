"""Locking without a solver: markers, wheels, texts."""

from __future__ import annotations

import pytest
from packaging.markers import Marker

from colab_local.locking.specs import (
    PYTHONS,
)
from colab_local.locking.wheels import (
    licence_of,
    shortest_marker,
    target_environments,
)
from scripts import lock
from tests.support.lock_lab import PLATFORMS


def test_markers_are_shortened_without_changing_their_meaning() -> None:
    """uv's markers and ours say the same on every platform and Python, on its first and last patch release."""
    cases = {
        "platform_machine == 'arm64' and sys_platform == 'darwin' or (platform_machine == 'aarch64' or "
        "platform_machine == 'x86_64') and sys_platform == 'linux'": "",
        "platform_machine == 'arm64' and sys_platform == 'darwin'": "sys_platform == 'darwin'",
        "platform_machine != 'arm64' and sys_platform == 'linux'": "sys_platform == 'linux'",
        "python_full_version < '3.12' and sys_platform == 'darwin'": (
            "python_version < '3.12' and sys_platform == 'darwin'"
        ),
        "python_full_version == '3.12.*'": "python_version == '3.12'",
        "python_full_version >= '3.12'": "python_version >= '3.12'",
        "python_full_version < '3.13'": "python_version < '3.13'",
        "python_version != '3.12'": "python_version == '3.11' or python_version == '3.13'",
        "python_version != '3.12' and sys_platform == 'linux'": (
            "(python_version == '3.11' or python_version == '3.13') and sys_platform == 'linux'"
        ),
        "python_full_version <= '3.11.2'": "python_full_version <= '3.11.2'",
        "python_full_version < '3.12' or sys_platform == 'darwin'": (
            "python_full_version < '3.12' or sys_platform == 'darwin'"
        ),
        "": "",
    }
    for marker, short in cases.items():
        found = shortest_marker(marker, PLATFORMS)
        assert found == short
        for target in [(platform, python) for platform in PLATFORMS for python in PYTHONS]:
            for values in target_environments(target):
                assert (not found or Marker(found).evaluate(values)) == (
                    not marker or Marker(marker).evaluate(values)
                )


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: Apache-2.0\nLicense: something\n", "Apache-2.0"),
        ("License: MIT\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        (
            "License: Copyright (c) 2001, all of us\nClassifier: License :: OSI Approved :: BSD License\n",
            "BSD License",
        ),
        (f"License: {'a whole licence ' * 20}\nClassifier: License :: OSI Approved :: BSD License\n", "BSD License"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved\n", "not stated"),
        ("Name: x\n", "not stated"),
    ],
)
def test_licence_in_a_word(metadata: str, licence: str) -> None:
    """From the field that says it shortest."""
    assert licence_of(metadata) == licence


def test_index_of_the_repository_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """environments/jupyter/ changed and index.json not: `python scripts/lock.py --index-only`."""
    assert lock.main(["--index-only", "--check"]) == 0, capsys.readouterr().out
