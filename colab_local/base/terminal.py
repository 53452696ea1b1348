"""What people see of a run: lines, progress bars, the log."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from colab_local.base.errors import EXIT_FAILED, Failure
from colab_local.base.files import UMASK, private_file
from colab_local.base.text import mask, megabytes, printable

LOGS_KEPT = 10


class Screen:
    """Where a run speaks: the terminal, or with --json people on stderr and one document on stdout; and its log.

    json: stdout carries one JSON document; verbose: the programs that are run are shown, too; program: how the
    program was called, for hints, like `python3 bootstrap.py`.
    """

    def __init__(self, json: bool = False, verbose: bool = False, program: str = "") -> None:
        self.json, self.verbose, self.program = json, verbose, program
        self.log_path = ""
        self.interrupted = False  # Ctrl-C came: Python loses the exception where it comes within a finalizer
        self.output: IO[bytes] | None = None  # what the running program writes its stderr to
        self.bars = 0  # progress bars drawn at this moment
        self.held: list[int] = []  # descriptors that every program inherits: a lock lives as long as any writer
        self.umask = UMASK  # of whoever called us, for the Jupyter that we become
        self.place = ""  # the folder that everything lands in
        self._log: IO[bytes] | None = None

    def say(self, text: str = "") -> None:
        """Print a line for the user, and into the log."""
        print(printable(text), file=sys.stderr if self.json else sys.stdout, flush=True)
        self.log(text)

    def report(self, text: str) -> None:
        """Print a line about progress on stderr, and into the log."""
        print(printable(text), file=sys.stderr, flush=True)
        self.log(text)

    def show_document(self, document: dict[str, Any]) -> None:
        """Print what --json promises, where it was asked for."""
        if self.json:
            print(json.dumps(document, indent=1), flush=True)

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
        hint = problem.hint.replace("python3 bootstrap.py", self.program) if self.program else problem.hint
        self.show_document({"ok": False, "error": problem.what, "hint": hint, "code": problem.code})
        self.report("error: " + problem.what)
        if hint:
            self.report("hint: " + hint)
        if self.log_path and problem.code == EXIT_FAILED:
            self.report(f"log: {self.log_path}")
        return problem.code


class Waiting:
    """Show on a terminal that a step is alive: its title, the seconds gone, the newest line of a program's output.

    Off a terminal the title alone is printed, once. A Progress bar that is drawn meanwhile has the line.
    """

    def __init__(self, screen: Screen, title: str) -> None:
        self.screen, self.title = screen, title
        self.started, self.ended = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Waiting:
        if sys.stderr.isatty() and not self.screen.json:
            self.thread.start()
        else:
            self.screen.report(self.title)
        return self

    def _draw(self) -> None:
        while not self.ended.wait(0.3):
            if not self.screen.bars:
                seconds = time.monotonic() - self.started
                self._line(f"{self.title}  {seconds:.0f} s  {self._newest()}")

    def _newest(self) -> str:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = self.screen.output.fileno()  # type: ignore[union-attr]
            size = os.fstat(descriptor).st_size
            lines = os.pread(descriptor, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip().splitlines()
            return mask(lines[-1].strip()) if lines else ""
        return ""

    def _line(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + text[:width].ljust(width))
        sys.stderr.flush()

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
            self._line("")
            sys.stderr.write("\r")
            self.screen.report(f"{self.title}  {time.monotonic() - self.started:.0f} s")


class Progress:
    """A progress bar over a known number of bytes: tqdm's if tqdm is installed, else a plain one.

    Draws nothing where stderr is not a terminal. Safe to advance from several threads.
    """

    def __init__(self, screen: Screen, title: str, total: int) -> None:
        self.screen, self.title, self.total, self.count, self.started = screen, title, total, 0, time.monotonic()
        self.cancelled = False  # set on Ctrl-C: downloads in other threads stop at their next chunk
        self.lock, self.drawn = threading.Lock(), 0.0
        self.bar: Any = None
        if not sys.stderr.isatty() or screen.json:
            screen.report("{}{}".format(title, f" ({megabytes(total)})" if total else ""))
            return
        self.drawn = -1.0
        self.screen.bars += 1
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self.bar = tqdm(total=total or None, desc=title, unit="B", unit_scale=True, file=sys.stderr)

    def advance(self, count: int) -> None:
        """Count `count` more bytes (negative: they have to come again)."""
        if self.cancelled:
            raise KeyboardInterrupt
        with self.lock:
            self.count += count
            if self.bar is not None:
                self.bar.update(count)
            elif self.drawn and time.monotonic() - self.drawn > 0.2:
                self.drawn = time.monotonic()
                rate = self.count / max(time.monotonic() - self.started, 0.1)
                done = f" {100.0 * self.count / self.total:3.0f} %" if self.total else ""
                line = f"{self.title}:{done} {megabytes(self.count)} at {megabytes(rate)}/s"
                sys.stderr.write("\r" + line[:118].ljust(78))
                sys.stderr.flush()

    def close(self) -> None:
        """Finish the line."""
        if self.drawn:
            self.screen.bars -= 1
        if self.bar is not None:
            self.bar.close()
        elif self.drawn:
            sys.stderr.write("\n")
