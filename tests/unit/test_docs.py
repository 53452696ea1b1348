"""What the documents promise is there: files behind links, sections behind anchors, programs and their options."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
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


def commands(document: Path) -> list[str]:
    """Return the command lines of our programs that a document shows."""
    shown = r"(?:python3?|^)[ ]((?:scripts/|ci/)?[\w/]+\.py\b[^`\n|>&]*)"
    return re.findall(shown, document.read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", sorted({command for document in DOCUMENTS for command in commands(document)}))
def test_commands_of_the_documents_have_the_options_that_they_use(command: str) -> None:
    program, *words = command.split()
    if not (REPO / program).is_file():
        pytest.fail(f"there is no program {program}")
    known = help_of(program)
    unknown = [word for word in words if word.startswith("--") and not re.search(rf"{word.split('=')[0]}\b", known)]
    assert not unknown


def test_readme_is_short_and_begins_with_run_it_and_test_it() -> None:
    text = (REPO / "README.md").read_text()
    assert len(text.split()) <= 800
    first = re.findall(r"```\n(.+?)```", text, re.DOTALL)[0].split("\n")
    assert first == ["python3 bootstrap.py", "bash ci/test.sh --fast", ""]


def test_readme_says_how_many_bytes_the_lock_has() -> None:
    """What the preflight asks for, and what is downloaded, in the words of the README."""
    index = json.loads((REPO / "lockfiles" / "index.json").read_text())
    installer = index["installers"]["miniforge"]["files"]["linux-64"]["size"]
    said = re.search(
        r"(\S+) GB of disk, (\S+) GB of it downloaded \((\S+) GB and (\S+) GB with `--gpu`\)",
        (REPO / "README.md").read_text(),
    )
    assert said
    numbers = []
    for env in ("cpu", "gpu"):
        sizes = index["environments"][env]["platforms"]["linux-64"]["bytes"]
        download = sizes["conda_download"] + sizes["pypi_download"] + installer
        numbers += [math.ceil((sum(sizes.values()) + installer) / 1e9), round(download / 1e9, 1)]
    assert [float(number) for number in said.groups()] == numbers


def test_one_licence_everywhere() -> None:
    assert "Apache License" in (REPO / "LICENSE").read_text()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    collection = REPO / "scripts/fleet/collections/ansible_collections/colab_local/fleet"
    role = (collection / "roles/colab_local/meta/main.yml").read_text()
    assert project["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in role
    assert "[Apache-2.0](LICENSE)" in (REPO / "README.md").read_text()


def test_programs_can_be_run_and_only_programs_can() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s", "bootstrap.py", "scripts", "ci"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in listed.stdout.splitlines():
        entry, name = line.split("\t")
        mode = entry.split()[0]
        runs = (REPO / name).read_bytes()[:2] == b"#!"
        assert (mode == "100755") == (runs and not name.endswith(".sbatch")), name


def code_and_numbers(text: str) -> tuple[list[str], list[str]]:
    """Return a document's commands and other code, in order, and the numbers in its prose, sorted."""
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", prose)
    prose = re.sub(r"`[^`]+`|\]\([^)]*\)", "", prose)
    return blocks + spans, sorted(re.findall(r"\d+(?:\.\d+)*", prose))


def test_the_japanese_readme_has_the_same_commands_numbers_and_links() -> None:
    english, japanese = ((REPO / name).read_text() for name in ("README.md", "README.ja.md"))
    for ours, theirs in zip(code_and_numbers(english), code_and_numbers(japanese), strict=True):
        assert sorted(ours) == sorted(theirs)
    links = [set(re.findall(r"\]\(([^)]+)\)", text)) for text in (english, japanese)]
    assert links[0] ^ links[1] == {"README.md", "README.ja.md"}
    headings = [len(re.findall(r"(?m)^##? ", text)) for text in (english, japanese)]
    assert headings[0] == headings[1]


def test_the_map_of_the_house_is_that_of_the_tree() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text()
    section = text.split("## The map of the house", 1)[1].split("\n## ", 1)[0]
    places = set(re.findall(r"(?m)^\| `([^`]+)` \|", section))
    assert [place for place in sorted(places) if not (REPO / place).exists()] == []
    files = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout.split()
    # Each folder that holds code is on the map, by itself or by the nearest folder above it that is.
    homeless = [
        name
        for name in files
        if name.endswith((".py", ".sh", ".sbatch")) and not any(name.startswith(place) for place in places)
    ]
    assert [
        name for name in homeless if not name.startswith((".", "tests/conftest.py", "colab_local/__init__"))
    ] == []
    packages = [path.parent for path in (REPO / "colab_local").glob("*/__init__.py")]
    assert {f"colab_local/{path.name}/" for path in packages} <= places
