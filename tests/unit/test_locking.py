"""Locking without a solver: markers, wheels, texts."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.markers import Marker

from colab_local.locking.specs import PYTHONS
from colab_local.locking.wheels import (
    Wheel,
    clashes,
    licence_of,
    read_wheels,
    shortest_marker,
    target_environments,
)
from scripts import lock
from tests.support.lock_lab import PLATFORMS
from tests.support.web import serving


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


def test_two_wheels_with_different_files_of_one_name_clash(tmp_path: Path) -> None:
    """OpenCV's packages do: opencv-python 5.0.0.93 and opencv-contrib-python 4.14.0.94 both bring cv2/version.py."""
    wheels = []
    contents = {
        "one": {"cv2/version.py": "4", "cv2/same.py": "", "one/a.py": "1"},
        "two": {"two-1.data/purelib/cv2/version.py": "5", "cv2/same.py": "", "two/a.py": "2"},
        "three": {"cv2/version.py": "4", "three-1.data/scripts/tool": "x"},
    }
    for name, files in contents.items():
        path = tmp_path / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}-1.dist-info/METADATA", f"Name: {name}\n")
            for file, text in files.items():
                archive.writestr(file, text)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(path.name, path.name, sha256, path.stat().st_size))
    with serving(tmp_path) as url:
        about = read_wheels([replace(wheel, url=url + wheel.file) for wheel in wheels])
    one, two, three = wheels
    assert list(clashes([one, two, three], about)) == [
        "one-1-py3-none-any.whl and two-1-py3-none-any.whl bring different files cv2/version.py"
    ]
    assert list(clashes([one, three], about)) == []


def test_index_of_the_repository_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """environments/jupyter/ changed and index.json not: `python scripts/lock.py --index-only`."""
    assert lock.main(["--index-only", "--check"]) == 0, capsys.readouterr().out
