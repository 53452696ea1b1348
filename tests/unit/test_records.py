"""Records, prefixes and launchers as text."""

from __future__ import annotations

import pytest

from colab_local.base.errors import Failure
from colab_local.install import requirements


@pytest.mark.parametrize(
    ("marker", "platform", "python", "result"),
    [
        ("sys_platform == 'darwin'", "osx-arm64", "3.12", True),
        ("sys_platform == 'darwin'", "linux-64", "3.12", False),
        ("python_version < '3.12'", "linux-64", "3.11.7", True),
        ("python_version < '3.12'", "linux-64", "3.12.0", False),
        ("python_full_version >= '3.11.4' and python_version != '3.13'", "linux-64", "3.12.1", True),
        ("platform_machine == 'aarch64' or platform_machine == 'arm64'", "linux-aarch64", "3.13", True),
        ("platform_machine not in 'x86_64 arm64'", "linux-64", "3.13", False),
        ("python_version > '3.9'", "linux-64", "3.11", True),  # numbers, not text
    ],
)
def test_markers(marker: str, platform: str, python: str, result: bool) -> None:
    assert requirements.holds(marker, requirements.marker_environment(platform, python)) is result


@pytest.mark.parametrize(
    "marker", ["__import__('os')", "unknown == 'x'", "sys_platform ==", "1 == 1", "a if b else c"]
)
def test_what_is_no_marker_is_refused(marker: str) -> None:
    with pytest.raises(Failure, match="marker"):
        requirements.holds(marker, requirements.marker_environment("linux-64", "3.13"))


def test_entries_without_a_hash_or_a_version_are_refused() -> None:
    for text in ("tornado==6.5\n", "tornado>=6 --hash=sha256:" + "0" * 64, "-e ."):
        with pytest.raises(Failure, match="pinned and hashed"):
            requirements.parse(text)
    assert requirements.same_version("1.0", "1.0.0") and requirements.same_version("2024.01", "2024.1")
    assert not requirements.same_version("1.0", "1.0.1")
