"""The command line of every program: one parser, one way to end."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path
from typing import Any, Callable, NoReturn, Sequence

from colab_local import VERSION
from colab_local.base.completion import SHELLS, completion
from colab_local.base.errors import AGAIN, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import UMASK, disk_failure, existing_parent, is_full
from colab_local.base.hints import true_here, typed_now
from colab_local.base.terminal import Screen, to_nowhere

# What argparse says, and what is said instead.
ARGPARSE = (
    (r"^argument (\S+?/)?(--?[\w-]+): expected (at least )?one argument$", r"\2 needs a value"),
    (r"^argument (\S+): not allowed with argument (\S+)$", r"\1 and \2 can't be given together"),
    (r"^argument (\S+?/)?(\S+): ignored explicit argument (.*)$", r"\2 takes no value (found \3)"),
    (r"^argument (\S+): invalid (?:int|float) value: (.*)$", r"\1 needs a number (found \2)"),
    (r"^the following arguments are required: ", "not given: "),
    (r"^argument (\S+): ", r"\1: "),
)
Work = Callable[[argparse.Namespace, Screen], int]


def typed_program() -> str:
    """Return how this program was called, as it can be typed again: `python3 scripts/doctor.py`."""
    typed = typed_now()
    return f"{typed.interpreter} {shlex.quote(typed.program)}"


class Completion(argparse.Action):
    """Print the completion for a shell, and end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(choices=SHELLS, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        print(completion(parser, values, Path(sys.argv[0]).name), end="")
        parser.exit()


class Manual(argparse.HelpFormatter):
    """A --help that fits the terminal: prose is filled, what an example does may be on a second line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(fitted(text, width))


def fitted(text: str, width: int) -> list[str]:
    """Return a program's manual in lines of at most `width` letters, but for a command that is longer by itself.

    >>> fitted("One, two,\\nthree.\\n\\n    python3 bootstrap.py --verify    looks at it", 40)
    ['One, two, three.', '', '    python3 bootstrap.py --verify', '        looks at it']
    """
    found: list[str] = []
    for block in re.findall(r"(?:^\S.*\n?)+|^.*\n?", text.strip("\n"), re.MULTILINE):
        if block[:1].strip():
            found += textwrap.wrap(block, width, break_on_hyphens=False, break_long_words=False)
            continue
        line = block.rstrip()
        start, _, words = re.sub(r"(\S)\s{2,}(?=\S)", r"\1\n", line, count=1).partition("\n")
        if len(line) <= width or not words:
            found.append(line)
        else:
            deeper = " " * (len(start) - len(start.lstrip()) + 4)
            found += [start, *textwrap.wrap(words, width, initial_indent=deeper, subsequent_indent=deeper)]
    return found


class Parser(argparse.ArgumentParser):
    """A command line whose errors are two lines like all others: what is wrong, and what was meant if that is near.

    Abbreviations of options are errors, too: what they mean would change with the next option. never_meant: options
    that are not offered in place of a wrong word, because they take something away; modes: those (argparse's dest)
    that make the program do something else than usual, like --verify, None where hints are whole commands already.
    """

    def __init__(self, never_meant: Sequence[str] = (), modes: Sequence[str] | None = None, **settings: Any) -> None:
        self.never_meant, self.modes = never_meant, modes
        settings.setdefault("formatter_class", Manual)
        super().__init__(allow_abbrev=False, **settings)
        self.add_argument("--version", action="version", version=f"colab-local {VERSION}", help="show its version")
        self.typed: list[str] = []
        self.add_argument("--completion", action=Completion, help="print what teaches a shell these options")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Take note of what was typed, for the hint of an error."""
        self.typed = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options; raise Failure for words that this program does not know."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise self.unknown(unknown)
        return found

    def error(self, message: str) -> NoReturn:
        """Raise Failure with argparse's message in our words."""
        for theirs, ours in ARGPARSE:
            message = re.sub(theirs, ours, message)
        raise Failure(message, f"{typed_program()} --help", EXIT_USAGE)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the choice that is nearest to a wrong one."""
        if action.choices is not None and value not in action.choices:
            words = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), words, 1)
            option = action.option_strings[-1] if action.option_strings else action.dest
            known = ", ".join(words)
            hint = self.corrected(str(value), near[:1]) if near else f"{typed_program()} --help"
            raise Failure(f"{option} can't be {value!r} (need one of: {known})", hint, EXIT_USAGE)

    def unknown(self, words: Sequence[str]) -> Failure:
        """Return what is said of words that no option takes; the hint is the line put right, where that is clear."""
        options = [name for name in self._option_string_actions if name[:2] == "--" and name not in self.never_meant]
        wrong = next((word for word in words if word.startswith("-")), words[0])
        name, equals, value = wrong.partition("=")
        # `gpu` for --gpu, `--gup` for --gpu, `install` for nothing at all
        bare = "--" + name.lstrip("-").replace("_", "-").lower()
        near = [bare] if bare in options else []
        if wrong.startswith("-"):
            near = near or difflib.get_close_matches(bare, options, 1, 0.75)
        what = f"unknown {'option' if wrong.startswith('-') else 'word'}: {wrong}"
        if near:
            return Failure(
                f"{what} (did you mean {near[0]}?)", self.corrected(wrong, [near[0] + equals + value]), EXIT_USAGE
            )
        if not wrong.startswith("-"):
            return Failure(what, self.corrected(wrong, []), EXIT_USAGE)
        return Failure(what, f"{typed_program()} --help", EXIT_USAGE)

    def corrected(self, wrong: str, right: Sequence[str]) -> str:
        """Return the whole line that was typed with one word replaced; words that can't be right are left out."""
        words: list[str] = []
        for word in self.typed:
            if word == wrong:
                words += right
            elif word.endswith("=" + wrong) and right:
                words.append(word[: -len(wrong)] + right[0])
            else:
                words.append(word)
        try:
            _, unknown = super().parse_known_args(list(words), None)
        except (Failure, SystemExit):
            return f"{typed_program()} --help"
        return " ".join([typed_program(), *(shlex.quote(word) for word in words if word not in unknown)])


def port_number(text: str) -> int:
    """Return a TCP port from the command line."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"need 1 to 65535 (found {text!r})")
    return int(text)


def catch_signals(screen: Screen) -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C, and take note of all three: clean up, then end."""

    def interrupt(number: int, frame: Any) -> None:
        screen.interrupted = True
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has none
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stands
            signal.signal(number, interrupt)


def open_standard_streams() -> None:
    """Open what the caller has closed (`>&-`, some daemons): else the next file that we open gets what we print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def run_program(parser: Parser, work: Work, argv: Sequence[str] | None = None, interrupted: str = AGAIN) -> int:
    """Run a program: parse its command line, do its work, end every error in two lines; return the exit code.

    interrupted: the hint after Ctrl-C.
    """
    open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    screen = Screen("--json" in words)  # also for errors in the command line itself
    screen.put_right = lambda hint: true_here(hint, typed_now(words), parser, parser.modes)
    screen.umask = os.umask(UMASK)  # what is made for all to run is not for all to write
    with contextlib.suppress(AttributeError):  # a terminal that lacks a letter of a name shows its number
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        args = parser.parse_args(words)
        screen.json, screen.verbose = bool(getattr(args, "json", False)), bool(getattr(args, "verbose", False))
        catch_signals(screen)
        return work(args, screen)
    except Failure as problem:
        return screen.fail(problem)
    except KeyboardInterrupt:
        return screen.fail(Failure("interrupted", interrupted, EXIT_INTERRUPTED))
    except BrokenPipeError:  # whoever read our output (head, less) has gone: nobody is left to tell
        to_nowhere(sys.stdout)
        return EXIT_FAILED
    except OSError as problem:
        if is_full(problem):
            return screen.fail(disk_failure(Path(str(problem.filename or screen.place or "."))))
        if not isinstance(problem.filename, (str, bytes)):  # none, or a descriptor
            return screen.fail(unforeseen(problem, screen))
        name = os.fsdecode(problem.filename)
        hint = f"ls -ld {shlex.quote(str(existing_parent(Path(name))))}"
        return screen.fail(Failure(f"{problem.strerror or problem} ({name})", hint))
    except MemoryError:
        return screen.fail(Failure("this machine's memory has run out", "free -m", EXIT_MACHINE))
    except Exception as problem:  # the last resort: a fault of ours is two lines, too, and its log has the rest
        return screen.fail(unforeseen(problem, screen))


def unforeseen(problem: Exception, screen: Screen) -> Failure:
    """Return what is said of an exception that nobody has foreseen; its traceback goes into the log."""
    if not screen.log_path:
        descriptor, screen.log_path = tempfile.mkstemp(prefix="colab-local-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(traceback.format_exc())
    screen.log(traceback.format_exc())
    said = " ".join(str(problem).split())[:200]
    return Failure(f"unforeseen: {type(problem).__name__}: {said}", f"tail -n 20 {shlex.quote(screen.log_path)}")


def leave(code: int) -> NoReturn:
    """End the program at once.

    rattler's threads may still be about to report a failed connection; a Python that shuts down under them
    aborts now and then (seen with py-rattler 0.28).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
