"""conda, mamba and rattler write other records of the same files: all three are read as one.

The entries are those of real records: conda 26.7.1's of the noarch package pip, rattler's, and mamba's as its source
writes them (libmamba/src/core/link.cpp).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colab_local.install.engines.conda import OLDEST_TOOLS, kind_of, settings
from colab_local.install.records import read_conda, read_record

SITE = "lib/python3.13/site-packages"
ONE, TWO = "1" * 64, "2" * 64
CONDA: list[dict[str, Any]] = [
    {"_path": "site-packages/pip/__init__.py", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": ONE},
    {"_path": "python-scripts/tool", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": ONE},
    {"_path": "etc/x", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": TWO, "prefix_placeholder": "/p"},
    {"_path": f"{SITE}/pip/__pycache__/a.cpython-313.pyc", "path_type": "pyc_file", "size_in_bytes": 1},
    {"_path": "bin/pip", "path_type": "unix_python_entry_point", "size_in_bytes": 266},
    {"_path": "bin/pip", "path_type": "unix_python_entry_point", "size_in_bytes": 266},  # named twice
]
RATTLER: list[dict[str, Any]] = [
    {"_path": f"{SITE}/pip/__init__.py", "path_type": "hardlink", "sha256": ONE},
    {"_path": "bin/tool", "path_type": "hardlink", "sha256": ONE},
    {"_path": "etc/x", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": TWO, "prefix_placeholder": "/p"},
    {"_path": "bin/pip", "path_type": "unix_python_entry_point", "sha256": TWO},
]
MAMBA: list[dict[str, Any]] = [
    {"_path": f"{SITE}/pip/__init__.py", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": ONE},
    {"_path": "bin/tool", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": ONE},
    {"_path": "etc/x", "path_type": "hardlink", "sha256": ONE, "sha256_in_prefix": TWO},
    {"_path": f"{SITE}/pip/__pycache__/a.cpython-313.pyc", "path_type": "pyc_file"},
    {"_path": "bin/pip", "path_type": "unix_python_entry_point"},
]


def write(prefix: Path, entries: list[dict[str, Any]], **more: str) -> None:
    """Write a conda-meta record into an environment."""
    (prefix / SITE).mkdir(parents=True, exist_ok=True)
    (prefix / "conda-meta").mkdir(exist_ok=True)
    record = {"name": "pip", "version": "24.2", "build": "0", "paths_data": {"paths": entries}, **more}
    (prefix / "conda-meta" / "pip-24.2-0.json").write_text(json.dumps(record))


@pytest.mark.parametrize("entries", [CONDA, RATTLER, MAMBA], ids=["conda", "rattler", "mamba"])
def test_each_form_names_the_same_files(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write(tmp_path, entries, noarch="python")
    (package,), _ = read_conda(tmp_path)
    found = {entry.path: entry.kind for entry in package.entries}
    assert found == {
        f"{SITE}/pip/__init__.py": "file",
        "bin/tool": "file",
        "etc/x": "patched",
        "bin/pip": "launcher",
    }
    assert len(package.entries) == len(found)


def test_only_noarch_python_packages_are_mapped(tmp_path: Path) -> None:
    """Of another package, a folder of that name is one in the prefix."""
    write(tmp_path, CONDA)
    (package,), _ = read_conda(tmp_path)
    assert "site-packages/pip/__init__.py" in {entry.path for entry in package.entries}


def test_conda_and_mamba_are_told_in_their_own_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mamba refuses CONDARC beside --no-rc; nothing of the user's reaches either."""
    for name in ("CONDARC", "CONDA_PREFIX", "MAMBARC", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "CONDA_SOLVER"):
        monkeypatch.setenv(name, "/theirs")
    conda, mamba = (settings(kind, tmp_path, "linux-64") for kind in ("conda", "mamba"))
    assert "/theirs" not in [*conda.values(), *mamba.values()]
    assert conda["HOME"] == mamba["HOME"] == str(tmp_path / "home")
    assert conda["CONDARC"].startswith(str(tmp_path)) and "CONDARC" not in mamba
    assert conda["CONDA_OFFLINE"] == "true" and conda["CONDA_SAFETY_CHECKS"] == "enabled"
    assert [kind_of(f"/opt/bin/{name}") for name in ("conda", "mamba", "micromamba")] == [
        "conda",
        "mamba",
        "micromamba",
    ]
    assert OLDEST_TOOLS["mamba"] == OLDEST_TOOLS["micromamba"] == (2, 1, 0)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"paths_data": 1}', '{"paths_data": {"paths": [{"_path": "../x"}]}}']
)
def test_a_damaged_record_is_a_difference_that_repair_puts_right(tmp_path: Path, text: str) -> None:
    """Not an error: --repair, which --verify names, starts from the same list."""
    write(tmp_path, CONDA)
    (tmp_path / "conda-meta" / "other-1-0.json").write_text(text)
    packages, (found,) = read_conda(tmp_path)
    assert [package.name for package in packages] == ["pip"]
    assert (found.kind, found.path) == ("changed", "conda-meta/other-1-0.json")


@pytest.mark.parametrize("content", [b"\xff", b"a,sha256=x,1\n", b"good.py,,\n\xff", b'"' + b"a" * 200_000])
def test_a_damaged_record_of_a_wheel_is_one_too(tmp_path: Path, content: bytes) -> None:
    info = tmp_path / SITE / "six-1.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_bytes(content)
    package, (found,) = read_record(SITE, info)
    assert (package.entries, found.kind, found.path) == ([], "changed", f"{SITE}/six-1.dist-info/RECORD")
