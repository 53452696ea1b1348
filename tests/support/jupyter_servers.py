"""Real Jupyter servers for the tests: small environments made on the spot, and servers started in them.

An environment here has Jupyter's part of the lock only (no TensorFlow), so that several Pythons and tornado versions
can be tried in seconds each.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.pythons import look_up

REPO = Path(__file__).resolve().parent.parent.parent
OVERLAY = REPO / "environments" / "jupyter"
ORIGIN = "https://colab.research.google.com"
ALLOW_ORIGIN = f"--NotebookApp.allow_origin={ORIGIN}"
ALLOW_CREDENTIALS = "--NotebookApp.allow_credentials=True"
SUPPORTED = ("3.11", "3.12", "3.13")
START_TIMEOUT = 120.0  # seconds


@functools.cache
def pythons() -> dict[str, str]:
    """Return the supported Pythons that this machine has: version -> path of the interpreter."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = {version: look_up(version) for version in SUPPORTED} | {own: sys.executable}
    return {version: python for version in SUPPORTED if (python := found[version])}


def uv() -> str:
    """Return the path of uv: beside the Python that runs the tests, or on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    return str(beside) if beside.exists() else shutil.which("uv") or "uv"


def locked_versions(*, leave_out: Sequence[str] = ()) -> str:
    """Return the cpu lock's Python packages as constraints, `name==version` a line, without hashes."""
    text = (REPO / "lockfiles" / "cpu" / "pypi.txt").read_text()
    lines = re.findall(r"^([A-Za-z0-9._-]+==[^\\\n]+)", text, re.MULTILINE)
    others = {name.replace("_", "-") for name in leave_out}
    return "\n".join(line.strip() for line in lines if line.split("==")[0] not in others)


def make_environment(
    prefix: Path, python: str, *requirements: str, overlay: bool = True, locked: bool = True
) -> Path:
    """Make a virtual environment at `prefix` with `requirements`; return `prefix`.

    locked: what the requirements leave open gets the lock's versions; overlay: add this project's extension and
    settings as bootstrap.py does.
    """
    subprocess.run([uv(), "venv", "-q", "--no-project", "--python", python, str(prefix)], check=True)
    install = [uv(), "pip", "install", "-q", "--python", str(prefix / "bin" / "python"), *requirements]
    if locked:
        constraints = prefix.with_name(prefix.name + ".constraints")
        named = [
            re.split(r"[=<>]", requirement)[0] for requirement in requirements if re.search("[=<>]", requirement)
        ]
        constraints.write_text(locked_versions(leave_out=named))
        install += ["--constraints", str(constraints)]
    subprocess.run(install, check=True)
    if overlay:
        add_overlay(prefix)
    return prefix


def site_packages(prefix: Path) -> Path:
    """Return the folder of the packages in the virtual environment at `prefix`."""
    return next(prefix.glob("lib/python3.*/site-packages"))


def add_overlay(prefix: Path) -> None:
    """Copy environments/jupyter into the environment at `prefix` and make it ready."""
    shutil.copytree(OVERLAY / "prefix", prefix, dirs_exist_ok=True)
    shutil.copytree(OVERLAY / "site-packages", site_packages(prefix), dirs_exist_ok=True)
    subprocess.run([str(prefix / "bin" / "python"), "-m", "colab_local_jupyter"], check=False)


# What Jupyter needs for Colab; setuptools brings distutils back on Python >= 3.12. pip is what users call in cells.
JUPYTER = ("notebook>=6.5.7,<7", "jupyter_http_over_ws==0.0.8", "ipykernel", "setuptools", "pip")

# The flag that enables the extension where the overlay doesn't.
ENABLE = "--NotebookApp.nbserver_extensions={'jupyter_http_over_ws': True}"


def jupyter_environment(base: Path, python: str, tornado: str, *, overlay: bool = True) -> Path:
    """Return an environment for Colab in the folder `base` with this Python and tornado, made only once.

    python: "3.13"; tornado: "6.6", a version without its last part.
    """
    name = f"{python}-tornado-{tornado}-{'mended' if overlay else 'plain'}"
    wanted = [*JUPYTER, f"tornado=={tornado}.*"]
    made = base / f"{name}.made"
    if not made.exists():
        make_environment(base / name, pythons()[python], *wanted, overlay=overlay)
        made.touch()
    return base / name


# Lines that are the user's business or plain information; everything else in a server's log is noise.
_INFORMATION = re.compile(r"\[I |\[C .*received signal|jupyter_http_over_ws extension initialized")


def noise(log: str) -> list[str]:
    """Return the lines of a server's log that a user should not have to see."""
    # The start message with the address is critical so that it is seen; its own lines are indented.
    log = re.sub(r"\[C [^\n]*\] \n(?: [^\n]*\n)+", "", log)
    return [line for line in log.splitlines() if line.strip() and not _INFORMATION.match(line)]


@dataclass
class Running:
    """A Jupyter server that runs: where, with which token, and what it has logged."""

    port: int
    token: str
    home: Path
    process: subprocess.Popen[bytes]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address as the user pastes it into Colab."""
        return f"http://localhost:{self.port}/?token={self.token}"

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        return (self.home / "jupyter.log").read_text()

    @property
    def runtime(self) -> Path:
        """Where Jupyter describes this user's running servers."""
        return self.home / ".local" / "share" / "jupyter" / "runtime"

    @property
    def python(self) -> str:
        """The interpreter that runs the server."""
        return str(Path(self.process.args[0]).parent / "python")  # type: ignore[index, arg-type]


def free_port() -> int:
    """Return a TCP port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def colab_flags(port: int, notebooks: Path) -> list[str]:
    """Return the flags with which the server is meant to be started, on `port`."""
    return [*plain_flags(port, notebooks), ALLOW_ORIGIN, ALLOW_CREDENTIALS]


def plain_flags(port: int, notebooks: Path) -> list[str]:
    """Return the flags that any server of the tests needs, without Colab's."""
    root = ["--allow-root"] if os.geteuid() == 0 else []
    place = [f"--port={port}", f"--notebook-dir={notebooks}"]
    return ["--no-browser", "--ip=127.0.0.1", "--NotebookApp.port_retries=0", *place, *root]


def user_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables of a user whose home is `home`, with what commonly troubles a kernel."""
    return {
        "HOME": str(home),
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(extra or {}),
    }


@contextmanager
def start(argv: Sequence[str], home: Path, port: int, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run the Jupyter command `argv` for the user at `home` until the block ends.

    Waits until the server has written its runtime file and listens; raises RuntimeError with its log if it ends.
    """
    home.mkdir(parents=True, exist_ok=True)
    runtime = Path((env or {}).get("JUPYTER_RUNTIME_DIR", home / ".local" / "share" / "jupyter" / "runtime"))
    with (home / "jupyter.log").open("wb") as log:
        process = subprocess.Popen(
            argv, env=user_environment(home, env), cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    running = Running(port, "", home, process)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not running.info:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Jupyter did not start: {running.log}")
            running.info = next(filter(None, map(_read, runtime.glob(f"*server-{process.pid}.json"))), {})
            time.sleep(0.05)
        running.token = running.info["token"]
        yield running
    finally:
        stop(process)


def _read(path: Path) -> dict[str, Any]:
    """Return what the runtime file at `path` says, or nothing while it is being written."""
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        return {}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End `process`, kernels included: Jupyter shuts them down when it is asked to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def serve(
    prefix: Path,
    home: Path,
    *flags: str,
    colab: bool = True,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start the notebook server of the environment at `prefix`; `flags` win over Colab's (colab=False: none)."""
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    base = (colab_flags if colab else plain_flags)(port, home)
    given = {flag.split("=")[0] for flag in flags}
    argv = [str(prefix / "bin" / "jupyter-notebook"), *(f for f in base if f.split("=")[0] not in given), *flags]
    with start(argv, home, port, env) as running:
        yield running


@contextmanager
def serve_lab(prefix: Path, home: Path, *more: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Start the JupyterLab of the environment at `prefix` with the flags that Colab needs, and `more`."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    flags = [flag.replace("--NotebookApp.", "--ServerApp.") for flag in colab_flags(port, home)]
    argv = [
        str(prefix / "bin" / "jupyter-lab"),
        *(flag.replace("--notebook-dir", "--ServerApp.root_dir") for flag in flags),
    ]
    with start([*argv, *more], home, port, env) as running:
        yield running
