"""What every test may use: one installed environment per test session, free ports, a clean child environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colab_local.base.terminal import Screen
from colab_local.install.jupyter import jupyter_argv

REPO = Path(__file__).resolve().parent.parent
SCREEN = Screen()  # for functions that take one

# A shell that starts the tests in the background has SIGINT ignored, and so would every program that they start:
# with a handler here they begin with Ctrl-C as a terminal gives it.
signal.signal(signal.SIGINT, signal.default_int_handler)

HARDWARE = "needs hardware: "  # how a skip says that no package could have helped


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI=true everything can be installed: a test that is skipped for anything but hardware has failed."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if HARDWARE not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where nothing but hardware may be missing: {reason}"
    if report.when == "call" and report.passed:
        if os.environ.get("COLAB_LOCAL_PROVOKED") == "write":
            provoked.write(item.nodeid)
        else:
            wrong = provoked.held(item.nodeid)
            if wrong:
                report.outcome, report.longrepr = "failed", "hints (tests/support/provoked.py):\n" + "\n".join(wrong)
    return report


def pytest_configure() -> None:
    """Listen to every hint from the first test on."""
    provoked.install()


def pytest_runtest_call() -> None:
    """Forget what fixtures and earlier tests have provoked."""
    provoked.RECORDER.seen.clear()
    provoked.RECORDER.hints.clear()


@dataclass(frozen=True)
class Installed:
    """An environment that bootstrap.py made.

    home: the folder given as --prefix; prefix: the environment in use (home/current/cpu);
    argv: the Jupyter command that bootstrap.py printed, as a list.
    """

    home: Path
    prefix: Path
    argv: list[str]


def free_port() -> int:
    """Return a TCP port that nothing on 127.0.0.1 listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def supported_python() -> str:
    """Return an interpreter that the Python layer covers (3.11-3.13): the one that runs the tests, or one on PATH."""
    return getattr(sys, "_base_executable", sys.executable)


def clean_environment(home: Path) -> dict[str, str]:
    """Return os.environ as a new user would have it: HOME is `home`, nothing of this project is set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COLAB_LOCAL", "JUPYTER", "XDG_", "PYTHON"))}
    env["HOME"] = str(home)
    return env


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The cpu environment, installed once for the whole session by bootstrap.py with the host engine.

    COLAB_LOCAL_TEST_HOME names a home that is installed already: quicker while developing.
    """
    given = os.environ.get("COLAB_LOCAL_TEST_HOME")
    home = Path(given) if given else tmp_path_factory.mktemp("installed") / "home"
    if not given:
        subprocess.run(
            [supported_python(), str(REPO / "bootstrap.py"), "--cpu", "--engine", "host", "--prefix", str(home)],
            check=True,
            timeout=900,
        )
    prefix = home / "current" / "cpu"
    argv = jupyter_argv(str(prefix), as_root=os.geteuid() == 0)
    yield Installed(home, prefix, argv)


@pytest.fixture(scope="module")
def choices_kept(installed: Installed) -> Iterator[None]:
    """Give the environment its receipt back: a run with --port, --notebook-dir or --lab writes it there."""
    (receipt,) = installed.home.glob("receipts/cpu-????????????/receipt.json")
    before = receipt.read_bytes()
    yield
    receipt.write_bytes(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what changes the shared installation's receipt: tests/lab reads it at the same time."""
    for item in items:
        if "choices_kept" in getattr(item, "fixturenames", ()):
            item.add_marker("alters_home")


from tests.support import provoked  # noqa: E402 - it needs REPO
