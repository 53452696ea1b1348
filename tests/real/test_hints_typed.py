"""Every hint below is run as it is printed, where it is printed: afterwards the error is gone, or another one."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colab_local.install import program
from tests.conftest import REPO, clean_environment


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as a zip brings it, without git, under a path with a blank."""
    folder = tmp_path_factory.mktemp("a copy") / "colab local"
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(program.pack(REPO))) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def run(command: str, folder: Path) -> tuple[int, str, str]:
    """Type a command in a folder; return its exit code, the error and the hint."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=clean_environment(home),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    lines = done.stderr.splitlines()
    found = {
        name: "".join(line[len(name) + 2 :] for line in lines if line.startswith(name + ": "))
        for name in ("error", "hint")
    }
    return done.returncode, found["error"], found["hint"]


# What is typed after the program, in a folder that has a file named `file`.
TYPED = [
    "--env nosuch --engine host --prefix there",
    "--engine host --prefix there --launch --port {taken}",
    "--engine host --prefix there --notebook-dir 'no folder'",
    "--prefix file --engine host",
    "--prefix '' --engine host",
    "--rollback --prefix there",
    "--verify --prefix there",
    "--engine miniforge --prefix 'a blank'",
    "--engine miniforge --python python3 --prefix there",
    "--cpu --engin host --prefix there",
    "--engine hots --prefix there",
    "--offline nope.tar --prefix there",
    "cpu --engine host",
    "--repair --prefix there",
    "--engine host --prefix there --runtime 1999.01",
    "--engine host --prefix there --runtime 2025.07 --lab",
    "--engine host --prefix there --mirror nonsense",
]


@pytest.mark.parametrize("words", TYPED)
def test_a_hint_can_be_pasted_and_leads_on(words: str, copy: Path, taken: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = os.path.relpath(copy / "bootstrap.py", tmp_path)
    typed = f"{shlex.quote(sys.executable)} {shlex.quote(program)} {words.format(taken=taken)}"
    code, error, hint = run(typed, tmp_path)
    assert code and error and hint, (code, error, hint)
    assert not re.match(r"python ", hint), "a bare python is another one on many machines"
    command = hint.partition(": ")[2] if hint.startswith("make or copy") else hint
    harmless = " --dry-run" if "bootstrap.py" in command and "--help" not in command else ""
    again_code, again_error, _ = run(command + harmless, tmp_path)
    assert again_error != error
    assert again_code == 0, (command, again_error)
    if "--prefix there" in words and "bootstrap.py" in command and "--help" not in command:
        assert "--prefix there" in command, "the user's own options stay"


def test_a_changed_lock_is_brought_back_by_what_the_hint_says(copy: Path, tmp_path: Path) -> None:
    """In a clone by git, from any folder; in a copy without git no git is named."""
    clone = tmp_path / "my clone"
    shutil.copytree(copy, clone)
    for folder, has_git in ((clone, True), (copy, False)):
        if has_git:
            setting = "-c user.name=a -c user.email=a@example.org"
            subprocess.run(
                ["bash", "-c", f"git init -q && git add -A && git {setting} commit -qm x"], cwd=folder, check=True
            )
        index = folder / "lockfiles" / "index.json"
        text = index.read_text()
        index.write_text(json.dumps(dict(json.loads(text), schema="damaged")))
        try:
            typed = (
                f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'bootstrap.py'))} --engine host --dry-run"
            )
            code, error, hint = run(typed, tmp_path)
            assert (code, "index.json" in error) == (4, True)
            assert ("git" in hint.split()) == has_git
            if has_git:
                assert run(hint, tmp_path)[0] == 0
                assert run(typed, tmp_path)[0] == 0
        finally:
            index.write_text(text)
