"""Every place in the product that gives a hint, found by reading the code; and the words that the tests look for."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from colab_local.install.program import statements
from tests.conftest import REPO

FILES = sorted(
    [
        *(REPO / "colab_local").rglob("*.py"),
        *(REPO / "scripts").glob("*.py"),
        *(REPO / "scripts" / "fleet").glob("*.py"),
        REPO / "bootstrap.py",
    ]
)
# What takes a hint: (which argument says what is wrong, which is the hint); None where there is no such argument.
TAKES = {
    "Failure": (0, 1),
    "Fault": (1, 2),
    "Finding": (1, 2),
    "Refusal": (0, 1),
    "demand": (None, 2),
}
# What a hint that is to be typed begins with; anything else is a sentence.
PROGRAMS = "python3 sudo ls mv mkdir tail head less free df ss ps kill git export unset rm chmod echo nano"
PROGRAMS += " apt-get sed journalctl loginctl softwareupdate squeue"
PROGRAMS += " printf man ssh ssh-keygen getent grdctl dconf docker wsl systemctl launchctl plutil VALUE"
HOLE = "VALUE"  # for what is put into a text when the program runs
Scope = dict[str, list[ast.expr]]


class Site(NamedTuple):
    """One place that gives a hint.

    place: file and function; number: of the sites in this function, from 1; lines: the first and the last; what,
    hint: the texts that are said there, HOLE for what is put in.
    """

    place: str
    number: int
    lines: tuple[int, int]
    what: list[str]
    hint: list[str]

    @property
    def line(self) -> int:
        """Where it begins, for people."""
        return self.lines[0]

    @property
    def name(self) -> str:
        """What it is called in tests/support/provoked.json: it stays when other code moves."""
        return f"{self.place} {self.number}"


def text_of(node: ast.expr) -> str:
    """Return a text as the code has it, with HOLE for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{[^}]*\}", HOLE, text_of(node.func.value))
    return HOLE


def texts_of(node: ast.expr, scope: Scope, depth: int = 3) -> list[str]:
    """Return each text that an expression may be: of both branches, and of every value that a name is given."""
    if isinstance(node, ast.IfExp):
        return texts_of(node.body, scope, depth) + texts_of(node.orelse, scope, depth)
    if isinstance(node, ast.Name) and depth:
        return [text for value in scope.get(node.id, []) for text in texts_of(value, scope, depth - 1)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in texts_of(node.left, scope, depth) for b in texts_of(node.right, scope, depth)] or [
            text_of(node)
        ]
    return [text_of(node)]


def assigned(body: Iterator[ast.AST]) -> Scope:
    """Return {name: the values that it is given} of some statements."""
    found: Scope = {}
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for name, value in pairs:
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(value)
    return found


def in_file(path: Path) -> Iterator[Site]:
    """Yield the sites of one file; what has no hint is none."""
    tree = ast.parse(path.read_text())
    name = str(path.relative_to(REPO))
    counted: dict[str, int] = {}

    def walk(node: ast.AST, function: str, scope: Scope) -> Iterator[Site]:
        for child in ast.iter_child_nodes(node):
            inner, known = function, scope
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{function}.{child.name}".strip(".")
                if isinstance(child, ast.FunctionDef):
                    known = scope | assigned(statements(child.body))
            if isinstance(child, ast.Call):
                called = getattr(child.func, "id", getattr(child.func, "attr", ""))
                says, hints = TAKES.get(called, (None, None))
                given = child.args[hints : hints + 1] if hints is not None else []
                given += [word.value for word in child.keywords if called in TAKES and word.arg == "hint"]
                if given and not (isinstance(given[0], ast.Constant) and not given[0].value):
                    what = child.args[says : says + 1] if says is not None else []
                    counted[inner] = counted.get(inner, 0) + 1
                    yield Site(
                        f"{name} {inner}",
                        counted[inner],
                        (child.lineno, child.end_lineno or child.lineno),
                        [text for one in what for text in texts_of(one, known)],
                        texts_of(given[0], known),
                    )
            yield from walk(child, inner, known)

    yield from walk(tree, "", assigned(iter(tree.body)))


@cache
def sites() -> list[Site]:
    """Return all sites of the product."""
    return [site for path in FILES for site in in_file(path)]


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
