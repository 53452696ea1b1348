"""colab_local/base/progress.py: the numbers, the line that fits, a real terminal of 80 columns, and none at all."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from colab_local.base.progress import Meter, Size, fitting, newest_line, shorter, written_by
from colab_local.base.text import amount, duration

REPO = Path(__file__).resolve().parents[2]
LONGEST = "[10/12] Download and check the miniforge installer and 313 conda packages"


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fed(*samples: tuple[float, int], total: int = 0) -> Meter:
    """Return a meter that saw so many bytes at these seconds."""
    clock = Clock()
    meter = Meter(total, clock=clock)
    for clock.now, done in samples:
        meter.set(done)
    return meter


def test_the_numbers_of_the_issue() -> None:
    meter = fed((0, 294_000_000), (2, 312_000_000), total=450_000_000)
    assert meter.numbers()[0] == "312 of 450 MB"
    steady = fed(*((float(second), second * 9_000_000) for second in range(36)), total=450_000_000)
    assert ", ".join(steady.numbers()) == "315 of 450 MB, 9 MB/s, 15 s left"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """A fast start must not promise what the line no longer gives."""
    meter = fed((0, 0), (1, 100_000_000), *((20.0 + s, 100_000_000 + s * 1_000_000) for s in range(15)), total=10**9)
    assert 900_000 < meter.rate() < 1_100_000
    assert "left" in meter.numbers()[-1]


def test_a_line_that_gives_nothing_is_called_silent() -> None:
    clock = Clock()
    meter = Meter(10**9, clock=clock)
    clock.now = 1
    meter.set(50_000_000)
    clock.now = 13
    assert meter.numbers() == ["0.1 of 1.0 GB", "nothing for 12 s"]


def test_what_is_whole_has_no_time_left() -> None:
    assert fed((1, 5_000_000), (2, 9_000_000), total=9_000_000).numbers() == ["9 of 9 MB"]
    assert fed((1, 5_000_000), (2, 9_000_000)).numbers() == ["9 MB", "4 MB/s"]
    assert Meter(10).numbers() == []


@pytest.mark.parametrize("width", range(20, 200, 7))
@pytest.mark.parametrize(
    "title", [LONGEST, "[3/7] Install the locked Python packages", "Checking 35532 files (1.9 GB)"]
)
def test_a_line_fits_and_no_word_is_cut(title: str, width: int) -> None:
    numbers = ["312 of 450 MB", "9 MB/s", "15 s left"]
    line = fitting(title, numbers, width)
    assert len(line) <= width
    assert set(re.findall(r"\w+", line)) <= set(re.findall(r"\w+", " ".join([title, *numbers])))
    if width >= 32:
        assert line.endswith(", ".join(numbers)), "the numbers come before the title"
    if width >= 79 and title != LONGEST:
        assert line.startswith(title)


def test_shorter_titles_end_with_nothing() -> None:
    assert list(shorter(LONGEST))[1:] == ["[10/12] Download", "[10/12]", ""]


def test_amounts_and_times() -> None:
    assert [amount(3e8, 3.4e9), amount(12e6), amount(0, 5e6)] == ["0.3 of 3.4 GB", "12 MB", "0 of 5 MB"]
    assert [duration(s) for s in (0.4, 59.4, 60, 3599, 7325)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 2 min",
    ]


def test_what_a_process_has_written_tells_how_much_is_downloaded(tmp_path: Path) -> None:
    """Two bytes on the disk stand for one of the download, as with wheels that are unpacked on the way."""
    code = "import time; open('f', 'wb').write(b'x' * 40_000_000); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        meter = written_by(child.pid, tmp_path, Size(80_000_000, 40_000_000))
        child.stdout.readline()
        while_alive = meter.numbers()[0]
        child.kill()
    if sys.platform == "linux":
        assert while_alive == "20 of 40 MB"
    assert meter.numbers()[0] == while_alive, "a process that has ended has still written it"


def test_the_newest_line_is_found_at_the_end_of_a_long_output(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as stream:
        assert newest_line(stream) == ""
        stream.write(b"old\n" * 5000 + b"http://me:secret@host newest \n")
        stream.flush()
        assert newest_line(stream) == "http://***@host newest"
    assert newest_line(stream) == ""


STEP = """
import sys, time
sys.path.insert(0, {repo!r})
from colab_local.base import progress
from colab_local.base.errors import Failure
from colab_local.base.progress import Meter, Waiting
from colab_local.base.terminal import Screen
progress.REPORT_S = 0.2
screen = Screen()
try:
    with Waiting(screen, "[3/7] Install the locked Python packages"):
        screen.meter = meter = Meter(450_000_000)
        for _ in range(24):
            meter.advance(7_500_000)
            time.sleep(0.05)
    screen.meter = None
    screen.say("Done.")
except KeyboardInterrupt:
    sys.exit(screen.fail(Failure("interrupted", "again", 130)))
"""


def terminal_output(term: str = "xterm-256color", interrupt: bool = False, **env: str) -> tuple[bytes, int]:
    """Run STEP on a real pseudo-terminal of 80 columns; return what it wrote and its exit code."""
    pid, descriptor = pty.fork()
    if pid == 0:
        ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        argv = [sys.executable, "-c", STEP.format(repo=str(REPO))]
        os.execvpe(sys.executable, argv, {**kept, "TERM": term, **env})  # noqa: S606
    seen, sent = b"", False
    while True:
        try:
            ready, _, _ = select.select([descriptor], [], [], 30)
            chunk = os.read(descriptor, 65536) if ready else b""
        except OSError:  # Linux: the other end is closed
            chunk = b""
        if not chunk:
            break
        seen += chunk
        if interrupt and not sent and b"left" in seen:
            os.write(descriptor, b"\x03")
            sent = True
    os.close(descriptor)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def screen_lines(output: bytes, columns: int = 80) -> list[str]:
    """Return the lines that a terminal shows at the end: carriage returns, erasing and wrapping are obeyed."""
    lines, column = [[" "] * columns], 0
    text = re.sub(rb"\x1b\[[\d;]*m", b"", output).decode()
    for piece in re.findall(r"\x1b\[K|[\s\S]", text):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append([" "] * columns)
        elif piece == "\x1b[K":
            lines[-1][column:] = [" "] * (columns - column)
        else:
            if column == columns:
                lines.append([" "] * columns)
                column = 0
            lines[-1][column] = piece
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("language", ["C", "C.UTF-8"])
def test_a_terminal_of_80_columns_shows_numbers_and_stays_clean(term: str, language: str) -> None:
    output, code = terminal_output(term, LC_ALL=language)
    assert code == 0
    assert re.search(rb"\[3/7\] Install the locked Python packages: \d+ of 450 MB, \d+ MB/s, \d+ s left", output)
    assert output.isascii()
    assert screen_lines(output) == ["[3/7] Install the locked Python packages  1 s", "Done.", ""]
    if term == "dumb":
        assert b"\x1b" not in output


def test_colour_is_where_it_is_wanted() -> None:
    assert b"\x1b[31;1merror:\x1b[0m" in terminal_output(interrupt=True)[0]
    for refuses in ({"NO_COLOR": "1"}, {"term": "dumb"}):
        assert not re.search(rb"\x1b\[\d+", terminal_output(interrupt=True, **refuses)[0])


def test_ctrl_c_leaves_a_clean_line() -> None:
    output, code = terminal_output(interrupt=True)
    assert code == 130
    shown = screen_lines(output)
    assert re.fullmatch(r"\[3/7\] Install the locked Python packages  stopped after \d s", shown[0])
    assert shown[1:] == ["error: interrupted", "hint: again", ""]


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP.format(repo=str(REPO))], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "[3/7] Install the locked Python packages"
    assert 4 <= len(lines) <= 9
    for line in lines[1:-1]:
        assert re.fullmatch(r"\[3/7\] Install the locked Python packages: \d+ of 450 MB, \d+ MB/s, \d+ s left", line)
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_a_signal_ends_the_drawing_thread_too() -> None:
    code = STEP.format(repo=str(REPO)).replace("range(24)", "range(6000)")
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    child.stderr.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    assert "error: interrupted" in child.stderr.read()
