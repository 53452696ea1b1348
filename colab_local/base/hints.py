"""Hints that are true where they are read: the program as it was typed, with the user's own options.

The code says `python3 bootstrap.py --port 8889` and means: what you typed, with this port. What is printed can be
pasted: `python3 ../colab-local/bootstrap.py --gpu --prefix /data/cl --port 8889`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

# A command of ours in a hint, not yet as it was typed (`/usr/bin/python3 ...`); it goes up to what is no option or
# value any more.
COMMAND = re.compile(r"(?<![\w./-])python3 ((?:scripts/)?\w+\.py)((?: (?!&&|\||python3 )[^\s#()]+)*)")
GIT = re.compile(r"\bgit (checkout -- [a-z]+(?: [a-z]+)*|pull|status(?: [a-z]+)?)")  # of our own repository
WHERE = frozenset({"home", "env", "lockfiles"})  # what says which installation is meant: true for every mode


class Typed(NamedTuple):
    """What the user typed.

    interpreter: python3 as it was called; program: the path of the file; words: the rest of the line.
    """

    interpreter: str
    program: str
    words: tuple[str, ...]


def typed_now(words: Sequence[str] = ()) -> Typed:
    """Return what the user typed to start this process; words: the rest of the line."""
    program = sys.argv[0] if sys.argv[0].endswith(".py") else "bootstrap.py"
    return Typed(interpreter_of(getattr(sys, "orig_argv", [])), program, tuple(words))


def interpreter_of(line: Sequence[str]) -> str:
    """Return the interpreter as it was typed; never a bare `python`, which is another one on many machines.

    line: sys.orig_argv, empty before Python 3.10.

    >>> [interpreter_of(line) for line in (["python3.12", "b.py"], ["python"], ["/opt/py/bin/python", "b.py"], [])]
    ['python3.12', 'python3', '/opt/py/bin/python', 'python3']
    """
    first = line[0] if line else ""
    if re.fullmatch(r"python3(\.\d+)?", first) or ("/" in first and Path(first).name.startswith("python")):
        return shlex.quote(first)
    return "python3"


def beside(program: str, wanted: str) -> str:
    """Return the path of another program of ours, as seen from where this one was typed.

    program: this one's path as typed; wanted: the other's, relative to the repository.

    >>> beside("../cl/scripts/doctor.py", "bootstrap.py"), beside("bootstrap.py", "scripts/doctor.py")
    ('../cl/bootstrap.py', 'scripts/doctor.py')
    >>> beside("doctor.py", "bootstrap.py")
    '../bootstrap.py'
    """
    path = Path(program)
    if path.is_symlink():  # what is beside a link is not beside the program
        path = path.resolve()
    top = path.parent if path.name == "bootstrap.py" else path.parent / os.pardir
    return os.path.normpath(top / wanted)


def true_here(hint: str, typed: Typed, parser: argparse.ArgumentParser, modes: Sequence[str] | None) -> str:
    """Return a hint with every command of ours in it as the user can type it.

    parser: this program's; it tells which of the typed words belong together; modes: the names (argparse's dest) of
    the options that make it do something else than usual; None where hints are whole commands already.
    """

    def put_right(found: re.Match[str]) -> str:
        program = found.group(1)
        try:
            options = shlex.split(found.group(2))
        except ValueError:  # prose with an apostrophe behind the command
            return found.group()
        own = Path(program).name == Path(typed.program).resolve().name
        path = typed.program if own else beside(typed.program, program)
        rest = re.sub(r" !\S+", "", found.group(2))  # else as it is, prose behind the command and all
        if own and modes is not None:
            rest = "".join(f" {shlex.quote(word)}" for word in merged(typed.words, options, parser, modes))
        return f"{typed.interpreter} {shlex.quote(path)}{rest}"

    return GIT.sub(lambda found: from_git(found.group(1), beside(typed.program, ".")), COMMAND.sub(put_right, hint))


def from_git(order: str, folder: str) -> str:
    """Return what brings our own files back: a command of git, where there is one and the copy comes from it.

    order: git's, for our repository; folder: the repository as seen from here.
    """
    if not (Path(folder) / ".git").exists() or not shutil.which("git"):
        return "copy all of colab-local here again, over this copy"
    return f"git {order}" if Path(folder).resolve() == Path.cwd() else f"git -C {shlex.quote(folder)} {order}"


def merged(
    typed: Sequence[str], wanted: Sequence[str], parser: argparse.ArgumentParser, modes: Sequence[str]
) -> list[str]:
    """Return the words of a command: the user's own, with those of a hint in place of what they contradict.

    typed: the user's; wanted: the hint's. A hint that asks for another mode than the user's keeps
    only what says which installation is meant. A word like !--prefix in a hint takes the user's --prefix away.
    """
    dropped = {word[1:] for word in wanted if word.startswith("!")}
    wanted = [word for word in wanted if not word.startswith("!")]
    own = [(name, words) for name, words in parts(typed, parser) if words[0].partition("=")[0] not in dropped]
    news = list(parts(wanted, parser))
    if "--help" in wanted:  # the line that was typed may be wrong, and then an option of it is an error, too
        return list(wanted)
    if any(name is None for name, _ in [*own, *news]):  # the line that was typed is wrong: no part of it is repeated
        return list(wanted)
    names = {name for name, _ in news}
    changes = bool((names | {name for name, _ in own}) & set(modes))
    kept = [words for name, words in own if name not in names and (name in WHERE or not changes)]
    return [*(word for words in kept for word in words), *wanted]


def parts(words: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[tuple[str | None, list[str]]]:
    """Yield each option with its value, as (argparse's dest, words); a dest of None for what the parser has not."""
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            yield ("" if parser._get_positional_actions() else None), [word]  # a host, a URL
            continue
        action = parser._option_string_actions.get(word.partition("=")[0])
        if action is None:
            yield None, [word]
            continue
        takes = action.nargs != 0 and "=" not in word
        yield action.dest, [word, *([left.pop(0)] if takes and left else [])]
