"""Faults on purpose, and what a run makes of them: the figures of docs/faults.md.

    python -m tests.support.faults alone 35      one group, so many tries
    python -m tests.support.faults fuzz 1000000  one million inputs
    python -m tests.support.faults               the whole table, which takes an hour or two

The tests in tests/real/test_survives.py and tests/unit/test_readers.py try the same few times.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.conftest import REPO, supported_python
from tests.support.homes import Home, port, write_lockfiles
from tests.support.mirror import own_environment

JOBS = os.cpu_count() or 1  # tries at a time


@dataclass
class Tally:
    """What a fault did: how often it was tried, and what came of it, a line each, where that was wrong."""

    tried: int = 0
    lost: tuple[str, ...] = ()

    def add(self, wrong: str = "") -> None:
        """Count one try; wrong: what was lost."""
        self.tried += 1
        self.lost += (wrong,) if wrong else ()


def begin(home: Home, lockfiles: Path, *options: str) -> subprocess.Popen[str]:
    """Start an installation of the light environment in a process group of its own."""
    home.user.mkdir(parents=True, exist_ok=True)
    argv = [supported_python(), str(REPO / "bootstrap.py"), "--prefix", str(home.path), "--port", str(port())]
    argv += ["--engine", "host", "--lockfiles", str(lockfiles), *options]
    return subprocess.Popen(
        argv,
        env=own_environment(home.user),
        cwd=home.user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def written(home: Home) -> int:
    """Return how many packages lie in the environment that is being made."""
    return len(list(home.path.glob("envs/*/lib/python3*/site-packages/*.dist-info")))


def await_moment(home: Home, child: subprocess.Popen[str], moment: int) -> bool:
    """Wait until so many packages are there; False if the run is over before."""
    while child.poll() is None:
        if written(home) >= moment:
            return True
        time.sleep(0.002)
    return False


def state_after(home: Home, lockfiles: Path) -> str:
    """Run the same command again, then --verify; return what is wrong, "" for nothing."""
    again = home.run("--engine", "host", "--lockfiles", lockfiles, check=False)
    if again.returncode:
        return f"the next run ended with {again.returncode}: {again.stderr[-300:]}"
    time.sleep(1.0)  # for what a killed run may have left behind that writes
    verified = home.run("--verify", check=False)
    if verified.returncode:
        return f"--verify ended with {verified.returncode}: {verified.stdout[-300:]}"
    return ""


def kill(child: subprocess.Popen[str], number: signal.Signals, group: bool) -> None:
    """Send a signal to a run alone, or to all that it has started too, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        if group:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
    child.wait(120)
    if child.stdout:
        child.stdout.close()  # not read: a program that outlives the run may keep it open


def killed_at(
    folder: Path, lockfiles: Path, moment: int, number: signal.Signals = signal.SIGKILL, group: bool = False
) -> str:
    """Kill an installation when `moment` packages are there, run it again at once; return what was lost."""
    with home_in(folder) as home:
        child = begin(home, lockfiles)
        await_moment(home, child, moment)
        kill(child, number, group)
        return state_after(home, lockfiles)


def killed_in(folder: Path, lockfiles: Path, step: int, number: signal.Signals, group: bool) -> str:
    """Kill an installation in one of its steps, soon after it says that it has begun; return what was lost."""
    with home_in(folder) as home:
        child = begin(home, lockfiles)
        assert child.stdout
        for line in child.stdout:
            if line.startswith(f"[{step}/"):
                break
        time.sleep(random.random() * 0.3)
        kill(child, number, group)
        return state_after(home, lockfiles)


@contextlib.contextmanager
def home_in(folder: Path) -> Iterator[Home]:
    """Give a home of its own that is gone afterwards, of a user that all tries share."""
    path = Path(tempfile.mkdtemp(prefix="home-", dir=folder)) / "home"
    try:
        yield Home(path, folder / "user")
    finally:
        shutil.rmtree(path.parent)


def together(tries: Sequence[Callable[[], str]]) -> Tally:
    """Make all tries, as many at a time as this machine has cores."""
    tally = Tally()
    with ThreadPoolExecutor(JOBS) as pool:
        for wrong in pool.map(lambda one: one(), tries):
            tally.add(wrong)
    return tally


def kills(
    folder: Path, lockfiles: Path, tries: int, number: signal.Signals = signal.SIGKILL, group: bool = False
) -> Tally:
    """Kill an installation at `tries` moments while uv writes, and run it again at once."""
    moments = [1 + moment * 80 // max(tries, 1) for moment in range(tries)]
    return together([partial(killed_at, folder, lockfiles, moment, number, group) for moment in moments])


def steps(
    folder: Path, lockfiles: Path, tries: int, number: signal.Signals = signal.SIGKILL, group: bool = False
) -> Tally:
    """Kill an installation in the first `tries` of its seven steps."""
    numbers = range(1, tries + 1)
    return together([partial(killed_in, folder, lockfiles, step, number, group) for step in numbers])


def at_once(folder: Path, lockfiles: Path, count: int = 8) -> Tally:
    """Start the same installation several times at once."""
    tally = Tally()
    with home_in(folder) as home:
        children = [begin(home, lockfiles) for _ in range(count)]
        said = [child.communicate()[0] for child in children]
        for child, text in zip(children, said, strict=True):
            tally.add(text[-300:] if child.returncode else "")
        tally.add(state_after(home, lockfiles))
    return tally


def can_mount() -> bool:
    """Return whether this user may mount a file system in a namespace of their own."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return False


def full_disk(folder: Path, lockfiles: Path, options: str) -> tuple[int, str, int]:
    """Install on a small disk of its own; return the exit code, what was said, and the bytes in use afterwards.

    options: of tmpfs(5), like size=20m.
    """
    user = folder / "user"
    user.mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="small-", dir=folder))
    line = (
        f'mount -t tmpfs -o mode=755,{options} none "$0" && shift 0; "$@"; code=$?; '
        'printf "\\nused %s\\n" "$(du -s --block-size=1 --exclude=tools "$0" | cut -f1)"; exit $code'
    )
    argv = ["unshare", "--mount", "sh", "-c", line, str(home), supported_python(), str(REPO / "bootstrap.py")]
    argv += ["--prefix", str(home / "home"), "--port", str(port()), "--engine", "host", "--lockfiles", str(lockfiles)]
    env = own_environment(user) | {"UV_LINK_MODE": "copy"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=600, cwd=user)
    said = done.stdout + done.stderr
    return done.returncode, said, int(said.rpartition("\nused ")[2].split()[0])


def disk(folder: Path, lockfiles: Path, options: str) -> str:
    """Install on a disk that is too small; return what is wrong if that did not say so, or kept what it took."""
    code, said, used = full_disk(folder, lockfiles, options)
    good = code == 3 and "disk" in said and "hint: " in said and "Traceback" not in said and used < 400_000
    return "" if good else f"{options}: exit {code}, {used} bytes left: {said[-400:]}"


def disks(folder: Path, lockfiles: Path, sizes: list[str]) -> Tally:
    """Install on disks that are too small; lost is what did not say "disk", exit 3, and free what it took."""
    return together([partial(disk, folder, lockfiles, options) for options in sizes])


@contextlib.contextmanager
def workshop() -> Iterator[tuple[Path, Path]]:
    """Give a folder for homes, and lockfiles that look for no free room in advance."""
    with tempfile.TemporaryDirectory(prefix="colab-local-faults-") as text:
        folder = Path(text)
        yield folder, light_lockfiles(folder / "lockfiles")


def light_lockfiles(folder: Path) -> Path:
    """Write the light environment's lockfiles with sizes of nothing: so that the disk gets full on the way."""
    write_lockfiles(folder)
    index = folder / "index.json"
    text = index.read_text().replace("50000000", "1").replace("200000000", "1")
    index.write_text(text)
    return folder


Group = tuple[str, int, Callable[[Path, Path, int], Tally]]
SIGNALS = {  # what is sent, and whether to all that the run has started
    "kill -9 of bootstrap.py alone": (signal.SIGKILL, False),
    "kill -9 of the whole group": (signal.SIGKILL, True),
    "SIGINT of the whole group, as Ctrl-C sends it": (signal.SIGINT, True),
    "SIGTERM of bootstrap.py alone": (signal.SIGTERM, False),
}
NAMES = ("alone", "group", "sigint", "sigterm")
GROUPS: dict[str, Group] = {
    **{
        name: (f"{what}, while uv writes", 35 if name == "alone" else 15, partial(kills, number=number, group=group))
        for name, (what, (number, group)) in zip(NAMES, SIGNALS.items(), strict=True)
    },
    **{
        f"steps-{name}": (f"{what}, in each step", 7, partial(steps, number=number, group=group))
        for name, (what, (number, group)) in zip(NAMES, SIGNALS.items(), strict=True)
    },
    "at-once": ("the same command eight times at once, and --verify", 8, at_once),
    "disk": (
        "disk full, at sizes from 1 MB on",
        22,
        lambda f, k, n: disks(f, k, [f"size={1 + 7 * i}m" for i in range(n)]),
    ),
    "inodes": ("no inodes left", 7, lambda f, k, n: disks(f, k, [f"nr_inodes={40 + 900 * i}" for i in range(n)])),
    "fuzz": ("readers of files and answers, damaged", 1_000_000, lambda f, k, n: fuzzed(n)),
}


def fuzzed(count: int) -> Tally:
    """Give damaged inputs to every reader: a process a core, each with seeds of its own."""
    from tests.support import fuzz  # it needs this module

    share = [count // JOBS + (number < count % JOBS) for number in range(JOBS)]
    with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(fuzz.run, share, range(JOBS)))
    return Tally(sum(one.tried for one in found), tuple(line for one in found for line in one.lost))


def main(words: list[str]) -> int:
    """Measure what was asked for and print it as rows of docs/faults.md's table."""
    lost = 0
    for name in words[:1] or GROUPS:
        title, tries, work = GROUPS[name]
        started = time.monotonic()
        with workshop() as (folder, lockfiles):
            found = work(folder, lockfiles, int(words[1]) if words[1:] else tries)
        minutes = (time.monotonic() - started) / 60
        print(f"| {title} | {found.tried:,} | {len(found.lost)} | {minutes:.0f} min |", flush=True)
        for line in found.lost:
            print(f"  {line}", file=sys.stderr, flush=True)
        lost += len(found.lost)
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
