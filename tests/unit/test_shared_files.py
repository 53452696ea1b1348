"""A file that several wheels bring, as OpenCV's three packages bring cv2/: any one's of them is right."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from colab_local.base.terminal import Screen
from colab_local.install import seal
from colab_local.install.home import read_receipt
from colab_local.manage import repair, verify
from tests.support.receipts import NAME, write_receipt

SITE = "lib/python3.11/site-packages"


def add_wheel(prefix: Path, name: str, files: dict[str, bytes]) -> None:
    """Put a wheel's files into a prefix as uv does: the last one's shared file is there."""
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\n",
        f"{info}/INSTALLER": b"uv",
    }
    lines = []
    for path, content in files.items():
        target = prefix / SITE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    (prefix / SITE / info / "RECORD").write_text("".join(lines) + f"{info}/RECORD,,\n")


@pytest.fixture(params=[("one", "two"), ("two", "one")], ids=lambda order: order[-1] + "-last")
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a home whose environment has two wheels that share two files, installed in either order."""
    home = tmp_path / "home"
    prefix = home / "envs" / NAME
    for name in request.param:
        shared = {"cv2/__init__.py": name.encode(), "cv2/version.py": b"same"}
        add_wheel(
            prefix, name, {**shared, f"{name}.py": b"own", "../../../bin/tool": b"#!/bin/sh\n#" + name.encode()}
        )
    (prefix / "bin" / "tool").chmod(0o755)
    write_receipt(home)
    return home


def look(home: Path) -> tuple[dict[str, str], set[tuple[str, str]], set[str]]:
    """Return what the seal finds damaged, what --verify does, and what --repair would install again."""
    receipt = read_receipt(home, NAME)
    assert receipt is not None
    prefix = Path(receipt["prefix"])
    checker = verify.Check(prefix, receipt, Screen())
    for package in checker.packages:
        if package.layer == "python":
            for entry in package.entries:
                checker.identity(package, entry)
    found = {(difference.package.split(" ")[0], difference.path) for difference in checker.differences}
    return seal.take(prefix, seal.walk(prefix)).damaged, found, repair.Plan(checker, checker.differences).packages


def test_either_ones_file_is_right(home: Path) -> None:
    assert look(home) == ({}, set(), set())


@pytest.mark.parametrize("shared", [f"{SITE}/cv2/__init__.py", f"{SITE}/cv2/version.py", "bin/tool"])
@pytest.mark.parametrize("gone", [False, True])
def test_nobodys_file_is_named_for_all_that_bring_it(home: Path, shared: str, gone: bool) -> None:
    path = home / "envs" / NAME / shared
    path.unlink() if gone else path.write_bytes(b"#!/bin/sh\n# altered")
    both = {"one", "two"}
    assert look(home) == (dict.fromkeys(both, shared), {(name, shared) for name in both}, both)


def test_what_one_alone_brings_is_its_own_matter(home: Path) -> None:
    (home / "envs" / NAME / SITE / "one.py").write_bytes(b"altered")
    assert look(home) == ({"one": f"{SITE}/one.py"}, {("one", f"{SITE}/one.py")}, {"one"})
