"""Completion for bash, zsh and fish, made from a program's own parser: an option that is new is completed at once."""

from __future__ import annotations

import argparse
import re
from typing import Iterator, NamedTuple, Sequence

SHELLS = ("bash", "zsh", "fish")
PATHS = {"FILE", "DIR", "FOLDER", "KEY", "CONFIG", "BUNDLE"}  # metavars whose value is a path


class Option(NamedTuple):
    """An option as a shell has to know it.

    flags: its spellings; help: one sentence; takes: whether a value follows; choices: the values there are, empty for
    any; is_path: the value is a file or folder.
    """

    flags: tuple[str, ...]
    help: str
    takes: bool
    choices: tuple[str, ...]
    is_path: bool


def options_of(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """Yield the options of a parser that its --help shows."""
    for action in parser._actions:
        if not action.option_strings or action.help == argparse.SUPPRESS:
            continue
        text = " ".join((action.help or "").replace("%%", "%").split())
        choices = tuple(str(choice) for choice in action.choices or ())
        yield Option(
            tuple(action.option_strings),
            re.split(r"[;:(]|\. ", text)[0].strip(),
            action.nargs != 0,
            choices,
            str(action.metavar or action.dest).upper().strip("[]") in PATHS,
        )


def completion(parser: argparse.ArgumentParser, shell: str, program: str) -> str:
    """Return the text that teaches a shell a program's options.

    shell: one of SHELLS; program: its file's name, without a folder. To be used: bash `source <(...)`, zsh the same
    after compinit, fish `... | source`.
    """
    makers = {"bash": bash_text, "zsh": zsh_text, "fish": fish_text}
    return makers[shell](list(options_of(parser)), program)


def function_name(program: str) -> str:
    """Return the name of the shell function that completes a program."""
    return "_colab_local_" + re.sub(r"\W", "_", program.partition(".")[0])


def bash_text(options: Sequence[Option], program: str) -> str:
    """Return the completion for bash 3.2 and later; where nothing fits, bash offers files."""
    lines = [f"{function_name(program)}() {{"]
    lines += ["    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}"]
    lines += ['    [ "$cur" = = ] && cur=', '    [ "$prev" = = ] && prev=${COMP_WORDS[COMP_CWORD-2]}']
    lines += ["    COMPREPLY=()", "    case $prev in"]
    for option in options:
        if option.choices:
            words = " ".join(option.choices)
            lines.append(
                f"        {'|'.join(option.flags)}) COMPREPLY=($(compgen -W '{words}' -- \"$cur\")); return ;;"
            )
    valued = [flag for option in options if option.takes and not option.choices for flag in option.flags]
    if valued:
        lines.append(f"        {'|'.join(valued)}) return ;;")
    flags = " ".join(flag for option in options for flag in option.flags)
    lines += ["    esac", "    case $cur in"]
    lines += [f"        -*) COMPREPLY=($(compgen -W '{flags}' -- \"$cur\")) ;;", "    esac"]
    return "\n".join([*lines, "}", f"complete -o default -F {function_name(program)} {program}"]) + "\n"


def zsh_text(options: Sequence[Option], program: str) -> str:
    """Return the completion for zsh, after its compinit."""

    def quoted(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")

    lines = [f"{function_name(program)}() {{", "    _arguments -S \\"]
    for option in options:
        for flag in option.flags:
            value = ""
            if option.choices:
                value = f":value:({' '.join(option.choices)})"
            elif option.takes:
                value = ":file:_files" if option.is_path else ":value: "
            equals = "=" if option.takes and flag.startswith("--") else ""
            lines.append(f"        '{flag}{equals}[{quoted(option.help)}]{value}' \\")
    return "\n".join([*lines, "        '*:file:_files'", "}", f"compdef {function_name(program)} {program}"]) + "\n"


def fish_text(options: Sequence[Option], program: str) -> str:
    """Return the completion for fish."""
    lines = []
    for option in options:
        words = ["complete", "-c", program]
        for flag in option.flags:
            words += ["-l", flag[2:]] if flag.startswith("--") else ["-s" if len(flag) == 2 else "-o", flag[1:]]
        if option.choices:
            words += ["-x", "-a", f"'{' '.join(option.choices)}'"]
        elif option.takes:
            words += ["-r"] if option.is_path else ["-x"]
        described = option.help.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(" ".join([*words, "-d", f"'{described}'"]))
    return "\n".join(lines) + "\n"
