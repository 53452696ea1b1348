"""What people see of a run: lines, the one line that is drawn again and again, colours, the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable

from colab_local.base.errors import AGAIN, EXIT_FAILED, Failure
from colab_local.base.files import UMASK, private_file
from colab_local.base.text import mask, printable

LOGS_KEPT = 10
JSON_SCHEMA = 1  # of every document of --json: docs/json.md
COLOURS = {"red": "31;1", "yellow": "33", "cyan": "36", "green": "32", "dim": "2"}  # ECMA-48, SGR
WORDS = {"error:": "red", "hint:": "cyan", "note:": "yellow", "warning:": "yellow"}  # at the start of a line


SENTENCE = re.compile(r"((?!hint:)[a-z]+:|(hint: )?[A-Z][a-z]*) ")  # tables, commands and paths begin otherwise


def folded(text: str, width: int) -> str:
    """Return a sentence for people in lines of at most `width` letters; a hint that is pasted stays one line."""
    if not SENTENCE.match(text):
        return text
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def to_nowhere(stream: Any) -> None:
    """Lead a stream that can't be written any more to the null device, or Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Screen:
    """Where a run speaks: the terminal, or with --json people on stderr and one document on stdout; and its log.

    json: stdout carries one JSON document; verbose: the programs that are run are shown, too.
    """

    def __init__(self, json: bool = False, verbose: bool = False) -> None:
        self.json, self.verbose = json, verbose
        self.put_right: Callable[[str], str] = str  # makes of a hint's command what the user can type: see hints.py
        self.log_path = ""
        self.interrupted = False  # Ctrl-C came: Python loses the exception where it comes within a finalizer
        self.output: IO[bytes] | None = None  # what the running program writes its stderr to
        self.held: list[int] = []  # descriptors that every program inherits: a lock lives as long as any writer
        self.umask = UMASK  # of whoever called us, for the Jupyter that we become
        self.place = ""  # the folder that everything lands in
        self.meter: Any = None  # of the bytes that come in now: progress.Meter
        self.steps = 0  # shown at this moment, one within the other
        self._drawn = False  # a line that the next one replaces is on the terminal
        self._lock = threading.RLock()
        self._log: IO[bytes] | None = None

    # -- what this terminal can do

    @property
    def draws(self) -> bool:
        """Whether a line can be drawn again and again: stderr is a terminal, and people read it."""
        return sys.stderr.isatty() and not self.json

    @property
    def width(self) -> int:
        """How many letters fit on the line that is drawn again; the last column stays free: some terminals wrap."""
        return max(20, shutil.get_terminal_size().columns - 1)

    def paint(self, text: str, colour: str, stream: Any = None) -> str:
        """Return `text` in a colour where the terminal has them and its user wants them (https://no-color.org)."""
        stream = stream or sys.stderr
        wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if wanted else text

    # -- lines

    def say(self, text: str = "") -> None:
        """Print a line for the user, and into the log."""
        self._print(text, sys.stderr if self.json else sys.stdout)

    def report(self, text: str) -> None:
        """Print a line about progress on stderr, and into the log."""
        try:
            self._print(text, sys.stderr)
        except BrokenPipeError:
            raise
        except OSError:  # a full disk behind `2> file`: the exit code remains
            to_nowhere(sys.stderr)

    def _print(self, text: str, stream: Any) -> None:
        with self._lock:
            self.clear()
            shown = folded(printable(text), self.width) if stream.isatty() else printable(text)
            for word, colour in WORDS.items():
                if shown.startswith(word):
                    shown = self.paint(word, colour, stream) + shown[len(word) :]
            print(shown, file=stream, flush=True)
        self.log(text)

    def draw(self, text: str) -> None:
        """Show a line that the next one replaces."""
        with self._lock:
            self.clear()
            sys.stderr.write(printable(text)[: self.width])
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Leave an empty line where one was drawn: what comes next begins at its left edge."""
        with self._lock:
            if self._drawn:
                dumb = os.environ.get("TERM", "dumb") == "dumb"  # knows no way to erase a line but blanks
                sys.stderr.write("\r" + " " * self.width + "\r" if dumb else "\r\x1b[K")
                sys.stderr.flush()
                self._drawn = False

    def show_document(self, document: dict[str, Any]) -> None:
        """Print what --json promises, where it was asked for."""
        if self.json:
            print(json.dumps({"schema": JSON_SCHEMA, **document}, indent=1), flush=True)

    def log(self, text: str) -> None:
        """Write to this run's log, if it has one by now; credentials are masked."""
        if self._log:
            with contextlib.suppress(OSError):  # a full disk: what filled it is what will be told
                self._log.write((mask(text) + "\n").encode("utf-8", "replace"))

    def open_log(self, folder: Path) -> None:
        """Start this run's log in a folder, readable by the owner alone; the ten newest are kept."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("bootstrap-*.log"))[: 1 - LOGS_KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()
        path = folder / "bootstrap-{}-{}.log".format(time.strftime("%Y%m%dT%H%M%S"), os.getpid())
        self._log = os.fdopen(private_file(path), "wb", buffering=0)
        self.log_path = str(path)
        self.log("$ " + " ".join(shlex.quote(arg) for arg in sys.argv))

    def fail(self, problem: Failure) -> int:
        """Show a failure in two lines (and as JSON if asked) and return its exit code."""
        last = f"tail -n 40 {shlex.quote(self.log_path)}" if self.log_path else AGAIN
        hint = self.put_right(problem.hint) or last
        document = {"ok": False, "error": problem.what, "hint": hint, "code": problem.code}
        try:
            self.show_document({**document, **problem.details})
        except OSError:  # a full disk behind `> file`: the two lines and the code remain
            to_nowhere(sys.stdout)
        self.report("error: " + problem.what)
        self.report("hint: " + hint)
        if self.log_path and problem.code == EXIT_FAILED and hint != last:
            self.report(f"log: {self.log_path}")
        return problem.code
