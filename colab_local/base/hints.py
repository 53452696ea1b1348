"""Hints that are true where they are read: the program as it was typed, with the user's own options.

The code says `python3 bootstrap.py --port 8889` and means: what you typed, with this port. What is printed can be
pasted: `python3 ../colab-local/bootstrap.py --gpu --prefix /data/cl --port 8889`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

# A command of ours in a hint; it goes up to what is no option or value any more.
COMMAND = re.compile(r"python3 ((?:scripts/)?\w+\.py)((?: (?!&&|\|)[^\s#()]+)*)")
WHERE = frozenset({"home", "env", "lockfiles"})  # what says which installation is meant: true for every mode


class Typed(NamedTuple):
    """What the user typed.

    interpreter: python3 as it was called; program: the path of the file; words: the rest of the line; modes: the
    names (argparse's dest) of the options that make it do something else than usual, like --verify.
    """

    interpreter: str
    program: str
    words: tuple[str, ...]
    modes: frozenset[str] = frozenset()


def typed_now(modes: Sequence[str] = ()) -> Typed:
    """Return what the user typed to start this process."""
    return Typed(interpreter_of(getattr(sys, "orig_argv", [])), sys.argv[0], tuple(sys.argv[1:]), frozenset(modes))


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


def true_here(hint: str, typed: Typed, parser: argparse.ArgumentParser) -> str:
    """Return a hint with every command of ours in it as the user can type it.

    parser: this program's; it tells which of the typed words belong together.
    """

    def put_right(found: re.Match[str]) -> str:
        program, options = found.group(1), found.group(2).split()
        own = Path(program).name == Path(typed.program).resolve().name
        words = merged(typed, options, parser) if own else options
        path = typed.program if own else beside(typed.program, program)
        return " ".join([typed.interpreter, shlex.quote(path), *words])

    return COMMAND.sub(put_right, hint)


def merged(typed: Typed, wanted: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words of a command: the user's own, with those of a hint in place of what they contradict.

    wanted: the hint's words, quoted already. A hint that asks for another mode than the user's keeps only what says
    which installation is meant.
    """
    own = list(parts(typed.words, parser))
    news = list(parts([word for text in wanted for word in shlex.split(text)], parser))
    if any(name is None for name, _ in [*own, *news]):  # the line that was typed is wrong: no part of it is repeated
        return list(wanted)
    names = {name for name, _ in news}
    modes = (names | {name for name, _ in own}) & typed.modes
    kept = []
    for name, words in own:
        if modes and name not in WHERE:
            continue
        if name in names and not repeats(str(name), parser):
            continue
        if words not in [new for _, new in news]:
            kept += [shlex.quote(word) for word in words]
    return [*kept, *wanted]


def parts(words: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[tuple[str | None, list[str]]]:
    """Yield each option with its value, as (argparse's dest, words); a dest of None for what the parser has not."""
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            yield "", [word]  # a host, a URL
            continue
        action = parser._option_string_actions.get(word.partition("=")[0])
        if action is None:
            yield None, [word]
            continue
        takes = action.nargs != 0 and "=" not in word
        yield action.dest, [word, *([left.pop(0)] if takes and left else [])]


def repeats(name: str, parser: argparse.ArgumentParser) -> bool:
    """Return whether an option may be given several times."""
    return any(action.dest == name and isinstance(action, argparse._AppendAction) for action in parser._actions)
