"""What --json prints is what docs/json.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, Installed, clean_environment

TYPES: dict[str, Any] = {"string": str, "integer": int, "boolean": bool, "object": dict, "number": (int, float)}


def documented(heading: str) -> dict[str, str]:
    """Return {key: type} of a section of docs/json.md, with the keys that every document has."""
    sections = re.split(r"(?m)^## ", (REPO / "docs" / "json.md").read_text())
    rows = re.compile(r"(?m)^\| `(\w+)` \| ([^|]+) \|")
    (section,) = [text for text in sections[1:] if text.startswith(heading)]
    return dict(rows.findall(sections[0]) + rows.findall(section))


def document(home: Path, *argv: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(REPO / "bootstrap.py"), "--json", "--prefix", str(home), *argv],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(Path.home()),
        stdin=subprocess.DEVNULL,
    )
    return json.loads(done.stdout)


def check(found: Any, keys: dict[str, str]) -> None:
    for key, kind in keys.items():
        name, _, items = kind.partition(" of ")
        expected = list if name == "array" else TYPES[name]
        assert isinstance(found[key], expected), key
        if items:
            assert all(isinstance(item, TYPES[items.rstrip("s")]) for item in found[key]), key
    assert found["schema"] == 1


@pytest.mark.parametrize(
    ("heading", "argv"),
    [
        ("Installing", ("--dry-run", "--engine", "host", "--port", "8899")),
        ("An error", ("--env", "nosuch")),
        ("An error", ("--gup",)),
        ("`--list`", ("--list",)),
        ("`--prune`", ("--prune", "--dry-run")),
        ("`--uninstall`", ("--uninstall", "--dry-run")),
    ],
)
def test_the_document_of_an_empty_home(heading: str, argv: tuple[str, ...], tmp_path: Path) -> None:
    check(document(tmp_path / "home", *argv), documented(heading))


@pytest.mark.parametrize(
    ("heading", "argv"),
    [("`--list`", ("--list",)), ("`--verify`", ("--verify",)), ("`--prune`", ("--prune", "--dry-run"))],
)
def test_the_document_of_an_installed_home(heading: str, argv: tuple[str, ...], installed: Installed) -> None:
    found = document(installed.home, *argv)
    check(found, documented(heading))
    for key in ("environments", "packages", "differences"):
        for entry in found.get(key, []):
            text = (REPO / "docs" / "json.md").read_text()
            assert all(f"`{name}`" in text for name in entry)
