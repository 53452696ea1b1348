"""Conda as the engine: Miniforge's or Anaconda's in our own folder, or one that this machine has."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Sequence

from colab_local.base.downloads import Download
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import write_atomically
from colab_local.base.programs import run
from colab_local.base.temporary import temporary_folder
from colab_local.base.terminal import Screen
from colab_local.install.engines.engine import Engine, Job
from colab_local.install.engines.private import demand_intact, private_environment, private_place
from colab_local.install.engines.tool import ToolEngine
from colab_local.install.lockfiles import Lock, parse_explicit, version_tuple

# conda reads `#sha256:` in explicit files since 24.9 (24.7.1: ParseError), mamba and micromamba since 2.1.0 (2.0.6
# drops it in silence).
OLDEST_TOOLS = {"conda": (24, 9), "mamba": (2, 1, 0), "micromamba": (2, 1, 0)}


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


def kind_of(program: str) -> str:
    """Return which of the three a program is, by its name: their options and settings differ."""
    return next((name for name in ("micromamba", "mamba") if name in Path(program).name), "conda")


def settings(kind: str, place: Path, platform: str) -> dict[str, str]:
    """Return the environment in which conda or mamba obeys nobody's configuration.

    kind: as kind_of() says; place: a private one. CONDA_ROOT is where conda looks for the .condarc of its own
    installation (conda/__init__.py keeps it if it is set); so is CONDA_PREFIX, before it has read its command line
    (conda/base/context.py, default_prefix); what /etc/conda/.condarc says is overruled where a
    variable can do that. mamba takes --no-rc for all of it, and refuses CONDARC beside it.
    """
    names = {
        "CONDA_PKGS_DIRS": str(place / "pkgs"),
        "CONDA_ENVS_DIRS": str(place / "envs"),
        "CONDA_SUBDIR": platform,
        "CONDA_SAFETY_CHECKS": "enabled",
        "CONDA_EXTRA_SAFETY_CHECKS": "true",
        "MAMBA_ROOT_PREFIX": str(place / "root"),
    }
    if kind == "conda":
        names.update(
            CONDARC=str(place / "condarc.yml"),
            CONDA_ROOT=str(place / "root"),
            CONDA_PREFIX=str(place / "root"),
            CONDA_OFFLINE="true",
            CONDA_REGISTER_ENVS="false",
            CONDA_NUMBER_CHANNEL_NOTICES="0",
            CONDA_ALLOW_SOFTLINKS="false",
            CONDA_ALWAYS_SOFTLINK="false",
            CONDA_SSL_VERIFY="true",
        )
    return private_environment(place, **names)


def create(argv: Sequence[Path | str], kind: str, job: Job, lock: Lock, prefix: Path) -> None:
    """Make the prefix from package files that are checked here and now.

    argv: how the program is called; kind: which it is. It is shown local files alone, so which bytes they are hangs
    on no version of it; the channel is named so that no other is asked for: nobody's terms are accepted for them.
    """
    packages = [(package_file(job.home, url), digest) for url, digest in parse_explicit(lock.conda)]
    for file, digest in packages:
        demand_intact(file, digest)
    with private_place(job.home) as place:
        (place / "root").mkdir()
        write_atomically(place / "condarc.yml", "")
        explicit = place / "explicit.txt"
        lines = [f"{file.as_uri()}#sha256:{digest}" for file, digest in packages]
        write_atomically(explicit, "\n".join(["@EXPLICIT", *lines]) + "\n")
        own = ["--no-default-packages"] if kind == "conda" else ["--no-rc", "--offline"]
        words = ["create", "--yes", "--prefix", prefix, "--file", explicit]
        words += ["--override-channels", "--channel", "conda-forge", *own]
        run([*argv, *words], job.screen, settings(kind, place, lock.platform))


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
        with private_place(self.job.home) as place:
            # its header sets CONDA_REGISTER_ENVS itself: it is the private HOME that keeps ~/.conda as it is
            run(["bash", installer, "-b", "-p", self.where], self.job.screen, private_environment(place))
        if not (self.where / "bin" / "conda").exists():
            raise self.failed(Failure(f"the {self.name} installer left no conda in {self.where}", ""))

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix with the conda in our own folder.

        Its Python is called, not bin/conda: under a path of 110 and more characters that begins with
        #!/usr/bin/env python, and finds another one (conda/core/portability.py, replace_long_shebang).
        """
        try:
            create([self.where / "bin" / "python", "-I", "-m", "conda"], "conda", self.job, lock, root)
        except Failure as problem:
            raise self.failed(problem) from None


class FoundConda(Engine):
    """A conda, mamba or micromamba of this machine."""

    name = "conda"
    folders = ("cache",)

    def __init__(self, job: Job, program: str) -> None:
        super().__init__(job)
        self.program = program

    def describe(self) -> str:
        """Return who makes the environment, for the plan."""
        return f"the {kind_of(self.program)} that is here"

    def needs(self, lock: Lock) -> list[Download]:
        """Return the conda packages."""
        return package_downloads(self.job, lock)

    def create(self, lock: Lock, root: Path) -> None:
        """Make the prefix with it."""
        try:
            create([self.program], kind_of(self.program), self.job, lock, root)
        except Failure as problem:
            raise self.failed(problem) from None


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
    kind = kind_of(program)
    try:
        with temporary_folder() as place:
            text = run([program, "--version"], screen, private_environment(place), timeout=60)
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
