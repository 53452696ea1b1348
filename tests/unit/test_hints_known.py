"""Every hint in the code, found by reading it: the commands of ours in it exist, with these options.

tests/real/test_hints_typed.py and the tests of each program run many hints where they are printed. This one misses
none, and a new hint is looked at without anybody's doing.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from colab_local.base.hints import COMMAND
from tests.conftest import REPO
from tests.support.hint_sites import FILES, HOLE, PROGRAMS, parser_of, sites, text_of


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every text of a file that has a command of ours, and where; a part of a longer one is not one itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
            text = text_of(node)
            if "python3 " in text and ".py" in text:
                yield node.lineno, text
        else:
            yield from texts(node)


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


def test_a_hint_is_a_command_with_a_remark_or_a_sentence() -> None:
    """All of a command's line can be pasted: a remark behind it begins with #, as the shell has it."""
    commands, wrong = [], []
    for site in sites():
        for text in site.hint:
            where = f"{site.place}:{site.line}: {text}"
            if "\n" in text or "rm -r" in text or re.match(r"python\s|\./|pip ", text):
                wrong.append(where)
            elif text.partition(" ")[0] in PROGRAMS.split():
                commands.append((text.replace(HOLE, "x").replace("!-", "-"), where))
                wrong += [where] if re.search(r"^[^#]*\s{2,}(?!# |\s)", text) else []
            elif re.search(r"\b(python3|sudo|chmod) ", text):
                wrong.append(f"{where}: a command within a sentence can't be pasted")
    assert wrong == []
    assert len(commands) > 100
    for text, where in commands:  # a word that the shell reads otherwise than it is meant
        words = shlex.split(text, comments=True)
        assert not [word for word in words if re.search(r"[()<;]", word)], where
    script = "\n".join(text for text, _ in commands)
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.stderr == ""
