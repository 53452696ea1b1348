"""Every hint in the code, found by reading it: the commands of ours in it exist, with these options.

tests/real/test_hints_typed.py and the tests of each program run many hints where they are printed. This one misses
none, and a new hint is looked at without anybody's doing.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache

import pytest

from colab_local.base.hints import COMMAND
from tests.conftest import REPO

FILES = sorted(
    [
        *(REPO / "colab_local").rglob("*.py"),
        *(REPO / "scripts").glob("*.py"),
        *(REPO / "scripts" / "fleet").glob("*.py"),
        REPO / "bootstrap.py",
    ]
)
ERRORS = ("Failure", "Fault", "Finding", "Refusal", "demand", "hinted")  # what takes a hint
MISSING = "VALUE"


def text_of(node: ast.expr) -> str:
    """Return a text as the code has it, with a word for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return MISSING


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every text of a file that has a command of ours, and where; a part of a longer one is not one itself."""
    parts = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, (ast.JoinedStr, ast.BinOp))
        for child in ast.walk(node)
        if child is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and id(node) not in parts:
            text = text_of(node)
            if "python3 " in text and ".py" in text:
                yield node.lineno, text


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a program of ours."""
    path = REPO / program
    spec = importlib.util.spec_from_file_location(path.stem + "_of_hints", path)
    assert spec and spec.loader, f"{program} is not there"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.make_parser()
    assert isinstance(made, argparse.ArgumentParser)
    return made


def found() -> list[tuple[str, str]]:
    """Return (file:line, command) of every command of ours in the code."""
    listed = []
    for path in FILES:
        for line, text in texts(ast.parse(path.read_text())):
            for match in COMMAND.finditer(text.replace("`", " # ")):
                listed.append((f"{path.relative_to(REPO)}:{line}", match.group()))
    return listed


COMMANDS = found()


def test_the_code_is_read_at_all() -> None:
    assert len(COMMANDS) > 100
    assert len({command.split()[1] for _, command in COMMANDS}) >= 5


@pytest.mark.parametrize("program", sorted({command.split()[1] for _, command in COMMANDS}))
def test_every_command_in_a_hint_is_one_of_ours_with_its_own_options(program: str) -> None:
    wrong = []
    for where, command in COMMANDS:
        words = shlex.split(command.replace("'", "").replace('"', ""))[1:]
        if words[0] != program:
            continue
        known = parser_of(program)._option_string_actions
        options = [word.lstrip("!").partition("=")[0].rstrip(".,;:)`") for word in words[1:]]
        wrong += [
            f"{where}: {command}: {one}" for one in options if one.strip("-") and one[0] == "-" and one not in known
        ]
    assert wrong == []


def test_no_hint_begins_with_a_bare_python_or_removes() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ERRORS:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                place = 2 if name in ("Finding", "demand") else 1
                for text in map(text_of, node.args[place : place + 1]):
                    where = f"{path.relative_to(REPO)}:{node.lineno}: {text}"
                    assert not re.match(r"python\s|\./|pip ", text), where
                    assert "\n" not in text, where
                    assert "rm -r" not in text, where
