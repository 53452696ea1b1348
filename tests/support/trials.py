"""A user who installs from the mirror: what is typed, what is said, what is left."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import REPO, free_port, supported_python
from tests.support.mirror import Mirror, light_layer, own_environment
from tests.support.pythons import old_pythons

WHOLE = (REPO / "lockfiles" / "cpu" / "pypi.txt").read_text()
LIGHT = light_layer(WHOLE)

# What other tools leave in a shell, and what misleads Python, conda and pip.
HOSTILE = {
    "PYTHONPATH": "{trap}",
    "PYTHONSTARTUP": "{trap}/conda.py",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LD_LIBRARY_PATH": "{trap}",
    "CONDA_PREFIX": "{trap}",
    "CONDA_DEFAULT_ENV": "trap",
    "CONDA_PKGS_DIRS": "{trap}/pkgs",
    "CONDA_REGISTER_ENVS": "true",
    "CONDA_OFFLINE": "false",
    "CONDARC": "{trap}/condarc",
    "VIRTUAL_ENV": "{trap}",
    "PIP_TARGET": "{trap}/target",
    "PIP_USER": "1",
    "UV_PYTHON": "{trap}/python",
    "UV_TARGET": "{trap}/target",
    "JUPYTER_CONFIG_DIR": "{trap}",
}


@dataclass
class Result:
    """How a run of bootstrap.py ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What --json printed."""
        return dict(json.loads(self.out))


@dataclass
class Trial:
    """A user with a HOME of their own, a home for the environments beside it, and a lock that the mirror serves."""

    folder: Path
    mirror: Mirror
    pypi: str = LIGHT
    home_name: str = "colab-local"
    python: str = field(default_factory=supported_python)  # that runs bootstrap.py
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.user = self.folder / "user"
        self.user.mkdir(parents=True)
        for name in (".bashrc", ".profile", ".zshrc", ".bash_profile"):
            (self.user / name).write_text(f"# the user's own {name}\n")
        (self.user / ".conda").mkdir()
        (self.user / ".conda" / "environments.txt").write_text("/opt/theirs\n")
        self.home = self.folder / self.home_name
        self.port = free_port()
        self.lockfiles = self.mirror.world.write_lockfiles(self.folder / "lockfiles", self.pypi)
        self.environ = own_environment(self.user) | self.extra

    def argv(self, *options: str) -> list[str]:
        """Return the command line of a run."""
        own = ["--lockfiles", self.lockfiles, "--prefix", self.home, "--port", self.port]
        return [self.python, str(REPO / "bootstrap.py"), *map(str, own), *self.mirror.options, *options]

    def run(self, *options: str, argv: list[str] | None = None, environ: dict[str, str] | None = None) -> Result:
        """Run bootstrap.py to its end; argv: another command line; environ: variables besides the user's."""
        done = subprocess.run(
            argv or self.argv(*options),
            env=self.environ | (environ or {}),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=500,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start bootstrap.py in a process group of its own, as a terminal does; its words go to a file."""
        with (self.folder / "words.txt").open("w") as words:
            return subprocess.Popen(
                self.argv(*options),
                env=self.environ,
                stdout=words,
                stderr=words,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )

    def words(self) -> str:
        """Return what the started run has said by now."""
        return (self.folder / "words.txt").read_text()

    @property
    def prefix(self) -> Path:
        """The environment in use."""
        return self.home / "current" / "cpu"

    def receipts(self) -> list[dict[str, Any]]:
        """Return every receipt in the home."""
        return [json.loads(path.read_text()) for path in self.home.glob("receipts/*/receipt.json")]

    def left(self) -> list[str]:
        """Return what is left of environments and engines, for tests that expect nothing.

        What was downloaded stays, whole or in part: the next run goes on with it.
        """
        kinds = ("envs/*", "receipts/*", "current/*", "conda/*", "bin/*", "run/*", "**/*.tmp")
        return sorted(str(path.relative_to(self.home)) for kind in kinds for path in self.home.glob(kind))


def oldest_python() -> str:
    """Return the oldest Python here that bootstrap.py promises to run on: with a conda layer any will do."""
    return (old_pythons() or [supported_python()])[0]
