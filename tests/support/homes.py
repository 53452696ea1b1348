"""Homes for the tests of verify, manage and bundle: real installations of a light environment, without TensorFlow.

The lock is the real one with TensorFlow and what belongs to it left out: what these tests show does not depend on how
many packages there are, and an installation takes seconds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO, free_port, supported_python
from tests.support.mirror import light_layer, own_environment

LIGHT = light_layer((REPO / "lockfiles" / "cpu" / "pypi.txt").read_text())


def write_lockfiles(folder: Path, pypi: str = LIGHT) -> Path:
    """Write the real lockfiles with another Python layer for cpu, and return their folder."""
    shutil.copytree(REPO / "lockfiles", folder)
    (folder / "cpu" / "pypi.txt").write_text(pypi)
    index = json.loads((folder / "index.json").read_text())
    entry = index["environments"]["cpu"]
    entry["pypi"]["sha256"] = hashlib.sha256(pypi.encode()).hexdigest()
    for platform in entry["platforms"].values():
        platform["bytes"] = {"pypi_download": 50_000_000, "pypi_installed": 200_000_000}
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    return folder


def without(pypi: str, name: str) -> str:
    """Return a requirements file without one package: another lock."""
    entries = pypi.split("\n")
    kept, skipping = [], False
    for line in entries:
        if line[:1].isalnum():
            skipping = line.startswith(f"{name}==")
        if not skipping:
            kept.append(line)
    assert len(kept) < len(entries), name
    return "\n".join(kept)


@functools.cache
def port() -> int:
    """Return a port that was free when the first test asked: 8888 may be taken on the machine that runs the tests."""
    return free_port()


@dataclass(frozen=True)
class Home:
    """A home folder for environments, and the HOME of the user to whom it belongs."""

    path: Path
    user: Path

    def run(
        self,
        *options: str | Path,
        check: bool = True,
        program: Path = REPO,
        inside: tuple[str, ...] = (),
        cwd: Path | None = None,
        **extra: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.py on it as this user.

        program: folder of the bootstrap.py; inside: a command that runs it; cwd: the current folder; extra:
        environment variables.
        """
        self.user.mkdir(parents=True, exist_ok=True)
        argv = [*inside, supported_python(), str(program / "bootstrap.py"), "--prefix", str(self.path)]
        argv += ["--port", str(port()), *map(str, options)]
        # pip asks a rustc on PATH for its version; where that is rustup's, it would make its folder in HOME.
        tools = {"RUSTUP_HOME": str(Path.home() / ".rustup")}
        done = subprocess.run(
            argv,
            env=own_environment(self.user) | tools | extra,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def prefix(self) -> Path:
        """The environment in use."""
        return (self.path / "current" / "cpu").resolve()


def hinted(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the command of an error's hint, the second of its two lines, without its interpreter."""
    _, hint = done.stderr.splitlines()[-2:]
    assert hint.startswith("hint: "), done.stderr
    interpreter, *words = shlex.split(hint[len("hint: ") :])
    assert shutil.which(interpreter), hint
    return words


def run_script(name: str, *options: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this project with the tests' own Python."""
    argv = [sys.executable, str(REPO / "scripts" / name), *map(str, options)]
    return subprocess.run(
        argv,
        env=own_environment(Path.home()) | extra,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def damage(prefix: Path) -> Path:
    """Damage an environment in many ways; return a file that nobody touched."""
    site = next(prefix.glob("lib/python3*/site-packages"))
    with (site / "notebook" / "__init__.py").open("a") as stream:
        stream.write("# altered\n")
    (site / "tornado" / "web.py").unlink()
    shutil.rmtree(site / "jedi")
    next(site.glob("six-*.dist-info/RECORD")).unlink()
    with (site / "colab_local_jupyter" / "server.py").open("a") as stream:
        stream.write("# altered\n")
    (prefix / "etc" / "jupyter" / "jupyter_notebook_config.py").unlink()
    (site / "mine.py").write_text("mine\n")
    (site / "zmq" / "__init__.py").chmod(0o666)
    with (prefix / "bin" / "jupyter-notebook").open("a") as stream:
        stream.write("# altered\n")
    (prefix / "bin" / "jupyter-kernelspec").chmod(0o644)
    return site / "traitlets" / "__init__.py"
