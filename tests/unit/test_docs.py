"""What the documents promise is there: files behind links, sections behind anchors, programs and their options."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPO

DOCUMENTS = [
    REPO / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split()
]


def anchors(text: str) -> set[str]:
    """Return the names that GitHub gives to a document's headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = document.parent / name if name else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            dead.append(target)
    assert not dead


@cache
def help_of(program: str) -> str:
    """Return what a program of ours prints for --help."""
    return subprocess.run(
        [sys.executable, REPO / program, "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout


COMMANDS = re.findall(
    r"(?:python3?|^)[ ]((?:scripts/)?[\w/]+\.py\b[^`\n|>&]*)", (REPO / "README.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_of_the_readme_have_the_options_that_they_use(command: str) -> None:
    program, *words = command.split()
    known = help_of(program)
    unknown = [word for word in words if word.startswith("--") and not re.search(rf"{word.split('=')[0]}\b", known)]
    assert not unknown
