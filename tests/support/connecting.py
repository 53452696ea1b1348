"""connect.py as the tests run it: installed hosts, a running connection."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, Installed
from tests.support.hosts import Lab, Machine, wait_for

SCRIPT = str(REPO / "scripts" / "connect.py")
TYPED = f"{sys.executable} {SCRIPT}"  # how the tests start it, and so how its hints name it
QUICK = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2", "-o", "ConnectTimeout=3")
DEFAULT_HOME = ".local/share/colab-local"


def install(installed: Installed, host: Machine) -> Path:
    """Put colab-local where a host's user would have it: the session's environment, own logs and state."""
    home = host.home / DEFAULT_HOME
    home.mkdir(parents=True)
    for name in ("envs", "current", "receipts"):
        (home / name).symlink_to(installed.home / name)
    return home


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, installed: Installed) -> Iterator[Lab]:
    """A laptop, gpubox in the same network, and vault behind gate."""
    with Lab(tmp_path_factory.mktemp("connect")) as made:
        install(installed, made.host("gpubox"))
        made.host("gate", networks=("outer", "inner"))
        install(installed, made.host("vault", networks=("inner",)))
        made.host("empty")
        yield made


class Running:
    """A connect.py that runs on the laptop with --json; events are read as they come."""

    def __init__(self, lab: Lab, *args: str, env: Sequence[str] = ()) -> None:
        self.lab = lab
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            lab.laptop.enter(["env", *env, sys.executable, SCRIPT, "--json", *args]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(iter(self.process.stderr.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.errors)

    def says(self, words: str, seconds: float = 60) -> None:
        """Wait until people have been told so (stderr is read by a thread of its own, and may lag behind)."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: words in self.said, seconds, words)
        assert words in self.said

    def event(self, name: str, seconds: float = 240) -> dict[str, Any]:
        """Return the next event, which has to be `name`."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"no event {name} within {seconds} s\n{self.said}"
        line = self.process.stdout.readline()
        assert line, f"no event {name}: it ended\n{self.said}"
        event: dict[str, Any] = json.loads(line)
        assert event.get("event") == name, f"{event}\n{self.said}"
        return event

    def end(self, number: int = signal.SIGINT) -> int:
        """Press Ctrl-C (in a terminal all processes of the group get it) and return the exit code."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.wait(60)

    def close(self) -> None:
        try:
            self.end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def running(lab: Lab, *args: str, env: Sequence[str] = ()) -> Iterator[Running]:
    made = Running(lab, *args, env=env)
    try:
        yield made
    finally:
        made.close()


def run(lab: Lab, *args: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run connect.py on the laptop to its end."""
    return lab.laptop.run([sys.executable, SCRIPT, *args], check=False, timeout=timeout)


HURRIED = f"""
import sys
sys.argv[0] = {SCRIPT!r}
sys.path.insert(0, {str(REPO)!r})
from colab_local.laptop import ssh, stages
from scripts import connect
ssh.HELLO_SECONDS, ssh.CONNECT_SECONDS = 8.0, 5
stages.CONFIGURATION = stages.CONFIGURATION._replace(seconds=8.0)
stages.STAGES = tuple(stage._replace(seconds=stage.seconds and 8.0) for stage in stages.STAGES)
sys.exit(connect.main())
"""


def run_hurried(lab: Lab, *args: str) -> subprocess.CompletedProcess[str]:
    """Run connect.py with little patience, for those things that never end."""
    return lab.laptop.run([sys.executable, "-c", HURRIED, *args], check=False, timeout=120)
