"""What every engine is: somebody who makes the folder in which the Python layer is installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colab_local.base.downloads import Download, Rules
from colab_local.base.errors import Failure
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import Lock


@dataclass(frozen=True)
class Job:
    """What an engine works with.

    home: where everything lands; env, platform: what is wanted; index: lockfiles/index.json; lockfiles: their folder;
    rules: mirror rules; wheels: a bundle's folder of wheels, or None.
    """

    home: Path
    env: str
    platform: str
    index: dict[str, Any]
    lockfiles: Path
    rules: Rules
    wheels: Path | None
    screen: Screen


class Engine:
    """Who makes an environment. A subclass says what it needs and creates the prefix from files that were checked."""

    name = ""  # as --engine has it
    layer = "conda"  # in the lock: "conda", or "host-3.11"
    folders: tuple[str, ...] = ()  # of the home, that it makes besides the environment
    tool_step = "engine"  # the name of the step that installs its program

    def __init__(self, job: Job) -> None:
        self.job = job
        self.spares: list[Engine] = []  # what --engine auto takes where this one fails, with the same lock

    def spare(self) -> Engine | None:
        """Return the engine to take where this one has failed, None where there is none."""
        if not self.spares:
            return None
        first, *first.spares = self.spares
        return first

    def failed(self, problem: Failure) -> Failure:
        """Return a failure of its program with the hint to take another engine, where it has none of its own."""
        conda = self.name == "conda" or self.job.index["environments"][self.job.env].get("needs_conda")
        other = next(name for name in (["miniforge", "pixi"] if conda else ["host"]) if name != self.name)
        return Failure(problem.what, problem.hint or f"python3 bootstrap.py --engine {other}", problem.code)

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise Failure where this engine can't work on this machine; write nothing."""

    def needs(self, lock: Lock) -> list[Download]:
        """Return the files that it needs, its own installer first, those included that are there already."""
        raise NotImplementedError

    def tool(self) -> Path | None:
        """Return where its program has to be installed first; None when it is there, or needs none."""
        return None

    def tool_title(self) -> str:
        """Return what is said while its program is installed."""
        return f"Install {self.name}"

    def install_tool(self, lock: Lock) -> None:
        """Install its program from what needs() brought."""

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix in the folder of the environment."""
        raise NotImplementedError

    def uv(self, prefix: Path) -> Path:
        """Return the uv that installs the Python layer into the prefix."""
        return prefix / "bin" / "uv"
