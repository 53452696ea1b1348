"""How far a step is: on a terminal one line that is drawn again and again, elsewhere one line every ten seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from colab_local.base.terminal import Screen
from colab_local.base.text import amount, duration, mask, megabytes

WINDOW_S = 10.0  # the rate is that of the last ten seconds: what the line gives now, not what it gave once
SILENT_S = 5.0  # without a byte: said, so that a dead line does not look like a slow one
REPORT_S = 10.0  # between two lines where there is no terminal
DRAW_S = 0.3  # between two drawings where there is one
ENOUGH = 2_000_000  # bytes before a rate is worth showing


class Meter:
    """Counts bytes of a known total and says how far it is, how fast, and how long it will take.

    total: in bytes, 0 where nobody knows it; measure: says how many there are by now, where nobody calls advance();
    clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int = 0,
        measure: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.measure = total, 0, measure
        self._clock, self._lock = clock, threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._moved = clock()

    def advance(self, count: int) -> None:
        """Count `count` more bytes (negative: they have to come again)."""
        self.set(self.done + count)

    def set(self, done: int) -> None:
        """Take note of how many bytes there are by now."""
        with self._lock:
            now = self._clock()
            if done != self.done:
                self._moved = now
            self.done = done
            self._samples.append((now, done))
            while len(self._samples) > 2 and self._samples[1][0] < now - WINDOW_S:
                self._samples.popleft()

    def rate(self) -> float:
        """Return bytes a second, of the last seconds."""
        with self._lock:
            (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return max(0, last - first) / (ended - began) if ended > began else 0.0

    def numbers(self) -> list[str]:
        """Return what is to be said, the most important first: 312 of 450 MB, 9 MB/s, 15 s left."""
        if self.measure:
            self.set(min(int(self.measure()), self.total or sys.maxsize))
        if self.done <= self.total / 100:  # nothing yet, or no more than a program writes for itself
            return []
        said = [amount(self.done, self.total)]
        if self.total and self.done >= self.total:
            return said
        silent = self._clock() - self._moved
        if silent >= SILENT_S:
            return [*said, f"nothing for {duration(silent)}"]
        rate = self.rate()
        if self.done >= ENOUGH and rate > 0:
            said.append(f"{megabytes(rate)}/s")
            if self.total:
                said.append(f"{duration((self.total - self.done) / rate)} left")
        return said


def shorter(title: str) -> Iterator[str]:
    """Yield a title and what can stand for it where there is less room; every one is whole words.

    >>> list(shorter("[5/7] Warm up and try out (TensorFlow, XLA)"))
    ['[5/7] Warm up and try out (TensorFlow, XLA)', '[5/7] Warm up and try out', '[5/7] Warm up', '[5/7]', '']
    """
    yield title
    for mark in (" (", " and "):
        if mark in title:
            title = title[: title.index(mark)]
            yield title
    if title.startswith("["):
        yield title.partition(" ")[0]
    yield ""


def fitting(title: str, numbers: Sequence[str], width: int) -> str:
    """Return one line of at most `width` characters: the numbers, and as much of the title as there is room for."""
    for count in range(len(numbers), 0, -1):
        said = ", ".join(numbers[:count])
        for text in shorter(title):
            line = f"{text}: {said}" if text else said
            if len(line) <= width:
                return line
    return next((text for text in shorter(title) if len(text) <= width), "")


class Waiting:
    """Show that a step is alive while a `with` block runs: its title, and how far it is.

    On a terminal the line is drawn again and again, and stays as title and seconds. Elsewhere the title is printed
    once, then a line every ten seconds. What it says comes from the screen's meter if a program or a download has
    one, else from the newest line of the running program's output.
    """

    def __init__(self, screen: Screen, title: str) -> None:
        self.screen, self.title = screen, title
        self.started, self.ended = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Waiting:
        self.screen.steps += 1
        if not self.screen.draws:
            self.screen.report(self.title)
        self.thread.start()
        return self

    def _watch(self) -> None:
        pause = DRAW_S if self.screen.draws else REPORT_S
        while not self.ended.wait(pause):
            if self.screen.draws:
                self.screen.draw(fitting(self.title, self.numbers(), self.screen.width))
            else:
                self.screen.report(fitting(self.title, self.numbers(), 200))

    def numbers(self) -> list[str]:
        """Return what is to be said of the step, the most important first."""
        meter, seconds = self.screen.meter, duration(time.monotonic() - self.started)
        said = meter.numbers() if meter else []
        if said:
            return said
        newest = newest_line(self.screen.output)
        return [seconds, newest] if newest else [seconds]

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        self.ended.set()
        self.thread.join()
        self.screen.steps -= 1
        self.screen.clear()
        seconds = time.monotonic() - self.started
        if self.screen.draws or seconds >= REPORT_S:
            done = "" if problem is None else "stopped after "
            self.screen.report(f"{self.title}  {done}{duration(seconds)}")


class Progress:
    """A download, or several, of a known number of bytes: counts for the step that is shown, or shows itself.

    Safe to advance from several threads.
    """

    def __init__(self, screen: Screen, title: str, total: int) -> None:
        self.screen, self.meter = screen, Meter(total)
        self.cancelled = False  # set on Ctrl-C: downloads in other threads stop at their next chunk
        self.before, screen.meter = screen.meter, self.meter
        self._told: set[str] = set()
        self._lock = threading.Lock()
        sized = f"{title} ({megabytes(total)})" if total else title
        self.own = None if screen.steps else Waiting(screen, sized)
        if self.own:
            self.own.__enter__()

    def advance(self, count: int) -> None:
        """Count `count` more bytes (negative: they have to come again)."""
        if self.cancelled:
            raise KeyboardInterrupt
        self.meter.advance(count)

    def is_news(self, text: str) -> bool:
        """Return whether this is said for the first time, whichever thread says it."""
        with self._lock:
            known = text in self._told
            self._told.add(text)
        return not known

    def close(self) -> None:
        """Finish the line."""
        if self.own:
            self.own.__exit__(None, None, None)
        self.screen.meter = self.before


def newest_line(output: Any) -> str:
    """Return the newest line that a running program wrote into the file `output`; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = output.fileno()
        size = os.fstat(descriptor).st_size
        lines = os.pread(descriptor, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip().splitlines()
        return mask(lines[-1].strip()) if lines else ""
    return ""


class Size(NamedTuple):
    """How much a program will do: bytes that it writes to the disk, and what people are told of them instead.

    uv unpacks while it downloads: what it has written tells how much of the download is here.
    """

    written: int
    shown: int


def written_by(pid: int, folder: Path, size: Size) -> Meter:
    """Return a meter of what the process `pid` has written so far.

    Linux counts it (proc(5), io: wchar). Elsewhere the disk of `folder` tells: it has less room than before.
    """
    counted, newest = Path(f"/proc/{pid}/io"), [0]
    before = shutil.disk_usage(str(folder)).free

    def count() -> float:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or may not be looked at
            if sys.platform == "linux":
                newest[0] = int(counted.read_text().split("wchar:")[1].split()[0])
            else:
                newest[0] = max(newest[0], before - shutil.disk_usage(str(folder)).free)
        return newest[0] * size.shown / size.written

    return Meter(size.shown, count)
