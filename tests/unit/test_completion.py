"""colab_local/base/completion.py in the real shells: what Tab offers is what the parser knows."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from colab_local.base.completion import SHELLS, completion, options_of

TAB_S = 20.0


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A parser with an option of each kind."""
    made = argparse.ArgumentParser(prog="thing.py")
    made.add_argument(
        "--engine", choices=["auto", "miniforge", "host"], help="who makes it; default [auto]: it's ours"
    )
    made.add_argument("--environment", metavar="NAME", help="its name (100%% yours)")
    made.add_argument("--offline", metavar="FILE", help="a bundle")
    made.add_argument("-v", "--verbose", action="store_true", help="say more")
    made.add_argument("--secret", help=argparse.SUPPRESS)
    return made


def script(parser: argparse.ArgumentParser, shell: str, folder: Path) -> Path:
    """Write the shell's completion into a file."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} on this machine")
    file = folder / f"completion.{shell}"
    file.write_text(completion(parser, shell, "thing.py"))
    return file


def offered_by_bash(file: Path, *words: str) -> set[str]:
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _colab_local_thing; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "bash", file, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    file = script(parser, "bash", tmp_path)
    assert offered_by_bash(file, "thing.py", "--en") == {"--engine", "--environment"}
    assert offered_by_bash(file, "thing.py", "--engine", "") == {"auto", "miniforge", "host"}
    assert offered_by_bash(file, "thing.py", "--engine", "mi") == {"miniforge"}
    assert offered_by_bash(file, "thing.py", "--engine", "=", "ho") == {"host"}, "bash splits words at ="
    assert offered_by_bash(file, "thing.py", "--offline", "") == set(), "files, which bash offers by itself"
    assert offered_by_bash(file, "thing.py", "-") >= {"-v", "--verbose", "--help"}


def test_fish(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    file = script(parser, "fish", tmp_path)

    def offered(line: str) -> set[str]:
        code = f"source {file}; complete -C '{line}'"
        env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
        assert done.stderr == ""
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    (tmp_path / "bundle.tar").touch()
    assert offered("./thing.py --en") == {"--engine", "--environment"}
    assert offered("thing.py --engine mi") == {"miniforge"}
    assert "bundle.tar" in offered("thing.py --offline b")
    assert "--verbose" in offered("thing.py --v")


def test_zsh(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    """A real zsh at a real terminal: what is typed, and the Tab key."""
    file = script(parser, "zsh", tmp_path)
    (tmp_path / "bundle.tar").touch()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(tmp_path), "PS1": "> "})  # noqa: S606

    def type_in(text: str, until: str) -> None:
        os.write(terminal, text.encode())
        seen, deadline = "", time.monotonic() + TAB_S
        while until not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.2)[0]:
                seen += re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", os.read(terminal, 4096).decode(errors="replace"))

    try:
        type_in(f"autoload -U compinit; compinit -D -u; source {file}; echo rea''dy\n", "ready")
        type_in("thing.py --envi\t", "--environment")
        type_in("\x15thing.py --engine mini\t", "miniforge")
        type_in("\x15thing.py --offline bun\t", "bundle.tar")
    finally:
        os.kill(pid, 9)
        os.close(terminal)
        os.waitpid(pid, 0)


def test_what_help_hides_is_not_offered(parser: argparse.ArgumentParser) -> None:
    assert {"--secret"}.isdisjoint(flag for option in options_of(parser) for flag in option.flags)
    for shell in SHELLS:
        assert "secret" not in completion(parser, shell, "thing.py")
