"""Faults on purpose, and what a run makes of them: the figures of docs/faults.md.

    python -m tests.support.faults kills 35      one group, so many tries
    python -m tests.support.faults fuzz 1000000  one million inputs
    python -m tests.support.faults               the whole table, which takes hours

The tests in tests/real/test_survives.py and tests/unit/test_readers.py try the same few times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO, supported_python
from tests.support.homes import Home, port, write_lockfiles
from tests.support.mirror import own_environment


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


def kills(
    folder: Path, lockfiles: Path, tries: int, number: signal.Signals = signal.SIGKILL, group: bool = False
) -> Tally:
    """Kill an installation at `tries` moments while uv writes, and run it again at once."""
    tally = Tally()
    for moment in range(tries):
        home = Home(folder / f"{number.name}-{group}-{moment}", folder / "user")
        child = begin(home, lockfiles)
        await_moment(home, child, 1 + moment * 80 // max(tries, 1))
        kill(child, number, group)
        tally.add(state_after(home, lockfiles))
    return tally


def steps(folder: Path, lockfiles: Path, group: bool) -> Tally:
    """Kill an installation at each of its steps, as soon as it says that it has begun."""
    tally = Tally()
    for step in range(1, 8):
        home = Home(folder / f"step-{group}-{step}", folder / "user")
        child = begin(home, lockfiles)
        assert child.stdout
        for line in child.stdout:
            if line.startswith(f"[{step}/"):
                break
        time.sleep(random.random() * 0.3)
        kill(child, signal.SIGKILL, group)
        tally.add(state_after(home, lockfiles))
    return tally


def at_once(folder: Path, lockfiles: Path, count: int = 8) -> Tally:
    """Start the same installation several times at once."""
    home = Home(folder / "at-once", folder / "user")
    children = [begin(home, lockfiles) for _ in range(count)]
    said = [child.communicate()[0] for child in children]
    tally = Tally()
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
    home, user = folder / "small", folder / "user"
    home.mkdir(parents=True, exist_ok=True)
    user.mkdir(exist_ok=True)
    line = (
        f'mount -t tmpfs -o mode=755,{options} none "$0" && shift 0; "$@"; code=$?; '
        'printf "\\nused %s\\n" "$(du -s --block-size=1 --exclude=tools "$0" | cut -f1)"; exit $code'
    )
    argv = ["unshare", "--mount", "sh", "-c", line, str(home), supported_python(), str(REPO / "bootstrap.py")]
    argv += ["--prefix", str(home / "home"), "--port", str(port()), "--engine", "host", "--lockfiles", str(lockfiles)]
    env = own_environment(user) | {"UV_LINK_MODE": "copy"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300, cwd=user)
    said = done.stdout + done.stderr
    return done.returncode, said, int(said.rpartition("\nused ")[2].split()[0])


def disks(folder: Path, lockfiles: Path, sizes: list[str]) -> Tally:
    """Install on disks that are too small; lost is what did not say "disk", exit 3, and free what it took."""
    tally = Tally()
    for options in sizes:
        code, said, used = full_disk(folder, lockfiles, options)
        good = code == 3 and "disk" in said and "hint: " in said and "Traceback" not in said and used < 400_000
        tally.add("" if good else f"{options}: exit {code}, {used} bytes left: {said[-400:]}")
    return tally


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


GROUPS: dict[str, tuple[str, int, Callable[[Path, Path, int], Tally]]] = {
    "kills": ("kill -9 of bootstrap.py alone while uv writes", 35, kills),
    "group": ("kill -9 of the whole group", 15, lambda f, k, n: kills(f, k, n, group=True)),
    "sigint": ("SIGINT", 15, lambda f, k, n: kills(f, k, n, signal.SIGINT, True)),
    "sigterm": ("SIGTERM", 15, lambda f, k, n: kills(f, k, n, signal.SIGTERM)),
    "steps": ("kill -9 at each step, alone", 7, lambda f, k, n: steps(f, k, False)),
    "steps-group": ("kill -9 at each step, the group", 7, lambda f, k, n: steps(f, k, True)),
    "at-once": ("the same command, at once", 8, at_once),
    "disk": ("disk full", 22, lambda f, k, n: disks(f, k, [f"size={1 + 7 * i}m" for i in range(n)])),
    "inodes": ("no inodes left", 7, lambda f, k, n: disks(f, k, [f"nr_inodes={40 + 900 * i}" for i in range(n)])),
}


def main(words: list[str]) -> int:
    """Measure what was asked for and print it as rows of docs/faults.md's table."""
    lost = 0
    for name in words[:1] or [*GROUPS, "fuzz"]:
        if name == "fuzz":
            from tests.support import fuzz  # it needs this module

            found = fuzz.run(int(words[1]) if words[1:] else 1_000_000)
            title = f"{len(fuzz.READERS)} readers of files and answers, damaged"
        else:
            title, tries, work = GROUPS[name]
            with workshop() as (folder, lockfiles):
                found = work(folder, lockfiles, int(words[1]) if words[1:] else tries)
        print(f"| {title} | {found.tried} | {len(found.lost)} |", flush=True)
        for line in found.lost:
            print(f"  {line}", file=sys.stderr)
        lost += len(found.lost)
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
