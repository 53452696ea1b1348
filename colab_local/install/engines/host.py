"""This machine's own Python as the engine: a venv and the Python layer, no conda at all."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Sequence

from colab_local.base.downloads import Download
from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.programs import run, succeeds
from colab_local.base.terminal import Screen
from colab_local.install.engines.engine import Engine, Job
from colab_local.install.lockfiles import Lock
from colab_local.install.packages import install_uv

# Parts of Python's own library that a Python built by hand lacks where their headers were missing: TensorFlow's,
# Jupyter's and pandas' imports end without them, long after the download. (https://github.com/pyenv/pyenv/issues/1800)
PARTS = ("sqlite3", "ctypes", "lzma", "bz2", "ssl", "zlib")
ASK_PYTHON = f"""
import importlib, sys, venv
missing = []
for name in {PARTS!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name)
print(sys._base_executable or sys.executable, "%d.%d" % sys.version_info[:2], ", ".join(missing), sep="\\n")
"""


class Host(Engine):
    """This machine's Python; the uv that installs the Python layer is our own."""

    name = "host"
    folders = ("tools",)
    tool_step = "uv"

    def __init__(self, job: Job, python: str, version: str) -> None:
        super().__init__(job)
        self.python = python
        self.layer = f"host-{version}"

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        return "this machine's Python"

    def check(self) -> None:
        """Raise Failure unless this Python can get at a pip: its own, a uv, or the one bundled with venv."""
        screen, isolated = self.job.screen, [self.python, "-I", "-c"]
        if succeeds([*isolated, "import pip"], screen) or shutil.which("uv"):
            return
        if not succeeds([*isolated, "import ensurepip"], screen):
            version = self.layer.partition("-")[2]
            raise Failure(
                f"{self.python} has neither pip nor venv's bundled pip", install_command(version), EXIT_MACHINE
            )

    def needs(self, lock: Lock) -> list[Download]:
        """Return nothing: uv comes from the package index."""
        return []

    def uv(self, prefix: Path) -> Path:
        """Return our own uv."""
        return self.job.home / "tools" / f"uv-{self.job.index['uv']['version']}" / "bin" / "uv"

    def tool(self) -> Path | None:
        """Return the folder of our own uv: it is looked for again while it is installed."""
        return self.uv(Path()).parent.parent

    def tool_title(self) -> str:
        """Return what is said while uv is installed."""
        return f"Get uv {self.job.index['uv']['version']}"

    def install_tool(self, lock: Lock) -> None:
        """Install the locked uv."""
        job = self.job
        install_uv(self.uv(Path()), self.python, lock.host, job.home / "cache", job.wheels, job.screen)

    def create(self, lock: Lock, root: Path) -> None:
        """Make a venv; pip comes from the lock, not from the machine."""
        run([self.python, "-I", "-m", "venv", "--without-pip", root], self.job.screen)


def install_command(version: str) -> str:
    """Return the command that brings Python 3.x, with pip or what venv makes one of, onto this machine."""
    commands = [
        ("apt-get", "sudo apt-get install python{0} python{0}-venv"),
        ("dnf", "sudo dnf install python{0} python{0}-pip"),
        ("zypper", "sudo zypper install python{1} python{1}-pip"),
        ("brew", "brew install python@{0}"),
    ]
    known = [text for program, text in commands if shutil.which(program)] or [commands[0][1]]
    return known[0].format(version, version.replace(".", ""))


def find_python(wanted: str, versions: Sequence[str], screen: Screen) -> tuple[str, str]:
    """Return (interpreter, "3.11") for the host engine: `wanted`, else this one, else one on PATH.

    versions: the minor versions that the Python layer is locked for. Raise Failure when there is none.
    """
    own = "{}.{}".format(*sys.version_info[:2])
    candidates = [wanted] if wanted else [sys.executable] if own in versions else []
    if not wanted:
        candidates += [found for found in map(shutil.which, ["python" + v for v in reversed(versions)]) if found]
    seen = []
    for candidate in candidates:
        try:
            said = run([candidate, "-I", "-c", ASK_PYTHON], screen, timeout=60)
            executable, version, missing = said.split("\n")[:3]
        except (Failure, ValueError) as problem:
            seen.append(f"{candidate}: {str(problem).splitlines()[-1].strip()}")
            continue
        if version in versions and not missing:
            return executable, version
        seen.append(f"{candidate} was built without {missing}" if missing else f"{candidate} is {version}")
    raise Failure(
        f"no Python that the lock covers (found {'; '.join(seen) or own}; need {' or '.join(versions)})",
        other_python(own if wanted else "", versions, screen),
        EXIT_MACHINE,
    )


def other_python(own: str, versions: Sequence[str], screen: Screen) -> str:
    """Return the command for a Python that the lock covers: this one, the distribution's, or a bundle's.

    own: this Python's series, "" if it was tried.
    """
    if own in versions:
        return "python3 bootstrap.py !--python --engine host"
    offered = list(versions[:2])  # the last of these, 3.12, where we can't ask: most systems have it
    if shutil.which("apt-cache"):
        offered = [v for v in versions if succeeds(["apt-cache", "show", "python" + v], screen)]
    if not offered:
        return "python3 scripts/bundle.py --help   # makes one file with a Python in it, where conda's servers answer"
    return f"{install_command(offered[-1])} && python3 bootstrap.py --python python{offered[-1]}"
