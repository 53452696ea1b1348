"""Conda as the engine: Miniforge's or Anaconda's in our own folder, or one that this machine has."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from colab_local.base.downloads import Download
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import write_atomically
from colab_local.base.programs import child_environment, run
from colab_local.base.terminal import Screen
from colab_local.install.engines.engine import Engine, Job
from colab_local.install.engines.tool import ToolEngine
from colab_local.install.lockfiles import Lock, parse_explicit, version_tuple

# conda reads and enforces `#sha256:` in explicit files since 24.9, mamba and micromamba since 2.0.
OLDEST_TOOLS = {"conda": (24, 9), "mamba": (2, 0), "micromamba": (2, 0)}


def package_file(home: Path, url: str) -> Path:
    """Return where a conda package is kept; its last folder is the platform, as in every conda channel."""
    return home / "cache" / "conda" / "/".join(url.split("/")[3:])


def package_downloads(job: Job, lock: Lock) -> list[Download]:
    """Return the conda packages of a lock; the size of all of them is counted on the first."""
    sizes = job.index["environments"][lock.env]["platforms"][lock.platform].get("bytes", {})
    total = int(sizes.get("conda_download") or 0)
    files = [
        Download(url, package_file(job.home, url), digest, most=total) for url, digest in parse_explicit(lock.conda)
    ]
    return [files[0]._replace(size=total), *files[1:]] if files else []


def create(program: Path | str, job: Job, lock: Lock, prefix: Path) -> None:
    """Make the prefix from package files that were checked before.

    conda is shown local files alone: which bytes they are was settled before, with any version of it.
    Its package cache is ours and it registers nothing, so that an existing conda stays as it was.
    """
    lines = [f"{package_file(job.home, url).as_uri()}#sha256:{digest}" for url, digest in parse_explicit(lock.conda)]
    explicit = job.home / "cache" / (lock.name + ".txt")
    write_atomically(explicit, "\n".join(["@EXPLICIT", *lines]) + "\n")
    env = child_environment(
        CONDA_PKGS_DIRS=str(job.home / "cache" / "conda-pkgs"),
        CONDA_REGISTER_ENVS="false",
        CONDA_ENVS_DIRS=str(job.home / "envs"),
        MAMBA_ROOT_PREFIX=str(job.home / "cache" / "mamba"),
    )
    run([program, "create", "--yes", "--prefix", prefix, "--file", explicit], job.screen, env)


class OwnConda(ToolEngine):
    """Miniforge or Anaconda, installed into our own folder."""

    folders = ("conda", "cache")

    def __init__(self, job: Job, name: str) -> None:
        super().__init__(job)
        self.name = name
        self.where = job.home / "conda"
        self.mark = self.where / ".colab-local.json"
        self.begun = job.home / "run" / "conda.begun"

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        return f"{self.name.capitalize()}'s conda"

    def check(self) -> None:
        """Raise Failure where the installer would refuse the folder."""
        if re.search(r"\s", str(self.job.home)):
            raise Failure(
                f"the {self.name} installer can't install under a path with blanks (found {str(self.job.home)!r})",
                "python3 bootstrap.py --engine pixi",
                EXIT_USAGE,
            )
        super().check()

    def needs(self, lock: Lock) -> list[Download]:
        """Return the installer, where it is needed, and the conda packages."""
        return super().needs(lock) + package_downloads(self.job, lock)

    def unpack(self, installer: Path) -> None:
        """Run the installer: no questions (-b), no change to shell files, nothing registered outside its prefix."""
        env = child_environment(CONDA_REGISTER_ENVS="false")
        run(["bash", installer, "-b", "-p", self.where], self.job.screen, env)
        if not (self.where / "bin" / "conda").exists():
            raise Failure(f"the {self.name} installer left no conda in {self.where}")

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix with the conda in our own folder."""
        create(self.where / "bin" / "conda", self.job, lock, root)


class FoundConda(Engine):
    """A conda, mamba or micromamba of this machine."""

    name = "conda"
    folders = ("cache",)

    def __init__(self, job: Job, program: str) -> None:
        super().__init__(job)
        self.program = program

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        return "the conda that is here"

    def needs(self, lock: Lock) -> list[Download]:
        """Return the conda packages."""
        return package_downloads(self.job, lock)

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix with it."""
        create(self.program, self.job, lock, root)


def find_conda(screen: Screen) -> str | None:
    """Return a conda, mamba or micromamba of this machine that enforces sha256, or None."""
    named = [os.environ.get("CONDA_EXE", ""), os.environ.get("MAMBA_EXE", ""), "conda", "mamba", "micromamba"]
    for name in filter(None, named):
        program = shutil.which(name)
        if program and conda_refusal(program, screen) is None:
            return program
    return None


def conda_refusal(program: str, screen: Screen) -> str | None:
    """Return why a conda can't be used, or None."""
    kind = next((name for name in ("micromamba", "mamba") if name in Path(program).name), "conda")
    try:
        text = run([program, "--version"], screen, timeout=60)
    except Failure as problem:
        return problem.what
    found = re.search(r"\d+\.\d+[.\d]*", text)
    if not found or version_tuple(found.group()) < OLDEST_TOOLS[kind]:
        need = ".".join(str(part) for part in OLDEST_TOOLS[kind])
        version = found.group() if found else "without a version"
        return f"found {kind} {version}, need {need} or newer"
    return None


def demand_conda(screen: Screen) -> str:
    """Return the conda of this machine that --engine conda uses; raise Failure when there is none that fits."""
    program = find_conda(screen)
    if program:
        return program
    given = os.environ.get("CONDA_EXE") or shutil.which("conda") or shutil.which("mamba")
    why = f"{given}: {conda_refusal(given, screen)}" if given else "no conda, mamba or micromamba is there"
    raise Failure("--engine conda: " + why, "python3 bootstrap.py --engine miniforge", EXIT_MACHINE)
