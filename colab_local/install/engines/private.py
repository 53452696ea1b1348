"""A place of its own for an engine's program: HOME, settings and package cache, all of it gone afterwards.

What an ordinary ~/.condarc or ~/.config/pixi holds (packages of one's own for every environment, a company's
certificate, another platform) stops an installation from files that are all there, or changes it; and conda and its
installers write into the home folder. Tried with conda 24.9 to 26.7 and the plugin conda-anaconda-tos 0.3.0.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator

from colab_local.base import certificates
from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.base.files import remove_tree, sha256_of
from colab_local.base.programs import child_environment


@contextlib.contextmanager
def private_place(home: Path) -> Iterator[Path]:
    """Yield an empty folder for one run of an engine's program; it is removed at the end, whatever is in it.

    It is below the home, on the file system of the environments: engines link from their cache. What they link
    has no second name once the place is gone, so nothing outside an environment can change it or keep its damage.
    """
    place = home / "cache" / "engine"
    remove_tree(place)  # of a run that was killed; the lock on the home says that nobody uses it now
    (place / "home").mkdir(parents=True, mode=0o700)
    try:
        yield place
    finally:
        remove_tree(place)


def private_environment(place: Path, **extra: str) -> dict[str, str]:
    """Return a child's environment in which nothing of the user's is found, and nothing is written to what is theirs.

    What is trusted is what our own downloads trust (base/certificates.py), whatever the engine's own settings say.

    place: as private_place() gives it; extra: more variables, the engine's own settings.
    """
    env = child_environment(**{**certificates.environment(), **extra})
    for name in [name for name in env if name.startswith("XDG_")]:
        del env[name]
    env["HOME"] = str(place / "home")
    return env


def demand_intact(file: Path, sha256: str) -> None:
    """Raise Failure unless a file is the one that the lock names at this moment; a broken one is removed.

    Engines do not see it: conda compares no hash of a file: URL (24.9 to 26.7), and takes what is unpacked already.
    """
    try:
        found = sha256_of(file)
    except OSError as problem:
        found = str(problem.strerror)
    if found != sha256:
        remove_tree(file)
        raise Failure(
            f"{file} is not the file that the lock names (found sha256 {found}, need {sha256}); it was removed",
            "run the same command again: the file is fetched again",
            EXIT_INTEGRITY,
        )
