"""How old is the lock, and which of the packages whose faults are dangerous are behind their channel?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import rattler

from colab_local.locking.conda import Records, solve_conda
from colab_local.locking.pypi import run_uv
from colab_local.locking.specs import PYTHONS, Spec, platform_marker

# What listens, decrypts, or parses what strangers send. Names as people know them; what conda-forge calls the part
# that is locked.
CONDA = {
    "openssl": "openssl",
    "expat": "libexpat",
    "ca-certificates": "ca-certificates",
    "python": "python",
    "sqlite": "libsqlite",
}
PYTHON = ("tornado", "notebook", "pillow", "urllib3", "requests")


@dataclass(frozen=True)
class Standing:
    """How a locked package stands to its channel.

    newest: the newest version there that the environment's specs allow, "" if the channel has none; why: what keeps
    it where it is, "" if nothing does.
    """

    name: str
    locked: str
    newest: str
    why: str = ""

    @property
    def is_behind(self) -> bool:
        """Whether the channel has a newer one."""
        return bool(self.newest) and rattler.Version(self.newest) > rattler.Version(self.locked)

    def line(self) -> str:
        """Return it as people read it."""
        if not self.newest:
            return f"{self.name} {self.locked}: not in the channel any more"
        if not self.is_behind:
            return f"{self.name} {self.locked}: the newest"
        return f"{self.name} {self.locked}: behind, the newest is {self.newest}{f' ({self.why})' if self.why else ''}"


def newest_day(conda: Mapping[str, Records]) -> date | None:
    """Return the day of the newest conda package in a lock, None if no record has one."""
    days = [
        record.timestamp.date()
        for records in conda.values()
        for layer in records.values()
        for record in layer
        if record.timestamp
    ]
    return max(days, default=None)


def conda_standings(spec: Spec, conda: Records, channel: str) -> list[Standing]:
    """Return how the conda packages of the list stand to a channel, each where it is furthest behind.

    The newest is what a new solve gives: it fits the specs and the least machine, and goes together.
    """
    found: dict[str, Standing] = {}
    for platform, records in conda.items():
        locked = {record.name.normalized: str(record.version) for record in records}
        solved = solve_conda(spec, platform, channel, [])
        newest = {record.name.normalized: str(record.version) for record in solved}
        for name, package in CONDA.items():
            if package in locked:
                standing = Standing(name, locked[package], newest.get(package, ""))
                if name not in found or (standing.is_behind and not found[name].is_behind):
                    found[name] = standing
    return [found[name] for name in CONDA if name in found]


def python_standings(
    spec: Spec, locked: Mapping[str, str], pins: Mapping[str, str], exceptions: Mapping[str, Any]
) -> list[Standing]:
    """Return how the Python packages of the list stand to the package index.

    locked: {name: version} of pypi.txt; pins: hosted Colab's versions, which the lock follows on purpose; the newest
    is what uv gives without them, with a wheel for each of our platforms and the environment's own bounds.
    """
    names = [name for name in PYTHON if name in locked]
    bounds = [line for line in spec.python if re.match(r"[A-Za-z0-9._-]+", line)]
    wanted = [next((line for line in bounds if named(line) == name), name) for name in names]
    newest = newest_versions(wanted, list(spec.platforms))
    found = []
    for name in names:
        followed = pins.get(name) == locked[name] and name not in exceptions
        found.append(
            Standing(name, locked[name], newest.get(name, ""), "hosted Colab has this one" if followed else "")
        )
    return found


def named(requirement: str) -> str:
    """Return the name in a requirement's text."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0].lower()


def newest_versions(requirements: Sequence[str], platforms: Sequence[str]) -> dict[str, str]:
    """Return {name: newest version} of some requirements by uv, nothing else solved with them."""
    with tempfile.TemporaryDirectory(prefix="colab-local-age-") as folder:
        path = Path(folder) / "wanted.in"
        marker = platform_marker(platforms)
        path.write_text(
            "\n".join(f"{line} ; {marker}" if marker and ";" not in line else line for line in requirements)
        )
        options = ["--no-deps", "--no-header", "--no-annotate", "--python-version", PYTHONS[-1], "--quiet"]
        text = run_uv(["pip", "compile", *options, "--universal", str(path)])
    return dict(re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)==([^\s;]+)", text))


def report(today: date, newest: date | None, standings: Mapping[str, Sequence[Standing]]) -> list[str]:
    """Return the lines that --age prints. standings: by the environment's name."""
    lines = []
    if newest:
        days = (today - newest).days
        lines.append(f"The newest conda package in the lock is of {newest.isoformat()}, {days} days ago.")
    for name, found in standings.items():
        lines += [f"{name}:", *(f"  {standing.line()}" for standing in found)]
    return lines


def behind(standings: Mapping[str, Sequence[Standing]]) -> list[str]:
    """Return the names of what is behind without being kept back on purpose."""
    return sorted({one.name for found in standings.values() for one in found if one.is_behind and not one.why})
