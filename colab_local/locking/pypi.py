"""The Python layer, solved by uv for every platform and Python at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colab_local.base import certificates
from colab_local.base.errors import AGAIN, EXIT_FAILED, EXIT_NETWORK, Failure
from colab_local.base.programs import child_environment
from colab_local.base.text import mask
from colab_local.install.bundling import find_uv
from colab_local.locking.specs import PYTHONS, Spec, Target, platform_marker
from colab_local.locking.wheels import Wheel, applies, best_wheel, shortest_marker, wheel_tags


@dataclass(frozen=True)
class Package:
    """One locked Python package: its wheel for every target on which it is installed."""

    name: str
    version: str
    marker: str
    via: tuple[str, ...]
    wheels: dict[Target, Wheel] = field(hash=False)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of its wheels, each once."""
        return sorted({wheel.sha256 for wheel in self.wheels.values()})


def project_text(
    requirements: Iterable[str], pins: Iterable[str], platforms: Iterable[str], pythons: Sequence[str] = PYTHONS
) -> str:
    """Return the pyproject.toml that has uv solve some requirements for several platforms and Pythons at once."""
    markers = [platform_marker([platform]) for platform in platforms]
    exact = [marker if "machine" in marker else f"{marker} and platform_machine == 'arm64'" for marker in markers]
    if tuple(pythons) != PYTHONS:
        some = f"python_full_version >= '{pythons[0]}' and python_full_version < '{bump(pythons[-1])}'"
        exact = [f"{marker} and {some}" for marker in exact]
    lines = [
        "[project]",
        'name = "lock"',
        'version = "0"',
        f'requires-python = ">={PYTHONS[0]},<{bump(PYTHONS[-1])}"',  # uv itself runs on one of them
        f"dependencies = {json.dumps(list(requirements))}",
        "[tool.uv]",
        "package = false",
        f"environments = {json.dumps(exact)}",
        # A release counts only if it has wheels for all of them, and a source archive is none: nothing is ever
        # compiled on a user's machine.
        f"required-environments = {json.dumps(exact)}",
        "no-build = true",
        f"constraint-dependencies = {json.dumps(list(pins))}",
    ]
    return "\n".join(lines) + "\n"


def bump(python: str) -> str:
    """Return the Python series after this one: 3.13 -> 3.14."""
    major, minor = python.split(".")
    return f"{major}.{int(minor) + 1}"


def uv_lock(project: str) -> tuple[dict[str, Any], str]:
    """Return uv's lock of a pyproject.toml, parsed, and the requirements that uv exports from it."""
    with tempfile.TemporaryDirectory(prefix="colab-local-lock-") as folder:
        Path(folder, "pyproject.toml").write_text(project, encoding="utf-8")
        options = ["--quiet", "--project", folder, "--python", sys.executable]
        run_uv(["lock", *options])
        exported = run_uv(["export", *options, "--frozen", "--no-emit-project", "--no-header"])
        return tomllib.loads(Path(folder, "uv.lock").read_text(encoding="utf-8")), exported


def run_uv(arguments: Sequence[str]) -> str:
    """Run uv and return its standard output; raise Failure with uv's own explanation."""
    child = child_environment(UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", **certificates.environment())
    done = subprocess.run(
        [find_uv(), *arguments],
        env=child,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    # uv draws a tree of causes with signs before each line, and ends with hints about uv's own options
    lines = [
        re.sub(r"^\W*((error|cause|Caused by):)?\s*", "", line)
        for line in done.stderr.partition("hint:")[0].splitlines()
    ]
    said = mask(" ".join(line for line in lines if line)) or f"exit status {done.returncode}"
    network = re.search(r"sending request|dns error|HTTP status|retries|Connection|network", said)
    cure = f"{AGAIN}, once the package index answers" if network else "change what environments/ asks for"
    raise Failure(f"uv: {said}", cure, EXIT_NETWORK if network else EXIT_FAILED)


def parse_export(text: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Return (name, version, marker, via) of every requirement in `uv export`'s text."""
    found: list[tuple[str, str, str, list[str]]] = []
    for line in text.splitlines():
        requirement = re.match(r"([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(?: ; ([^\\]*))?", line)
        via = re.match(r"\s+#\s+(?:via )?([\w.-]+)$", line)
        if requirement:
            name, version, marker = requirement.groups(default="")
            found.append((name, version, marker.strip(), []))
        elif via and via.group(1) not in ("via", "lock"):
            found[-1][3].append(via.group(1))
    return [(name, version, marker, tuple(via)) for name, version, marker, via in found]


def solve_python(spec: Spec, pins: Sequence[str], conda: Mapping[str, str] | None = None) -> list[Package]:
    """Return the Python layer of an environment. Raise Failure if there is none.

    pins: uv's constraints; conda: {name: version} of Python packages that the conda layer brings: the Python layer
    goes together with them, and has none of them a second time.
    """
    has = conda or {}
    pins = [pin for pin in pins if pin.partition("==")[0] not in has] + [f"{n}=={v}" for n, v in sorted(has.items())]
    lock, exported = uv_lock(project_text(spec.python, pins, spec.platforms, spec.pythons))
    offered = {
        (package["name"], package["version"]): [
            Wheel(Path(w["url"]).name, w["url"], w["hash"].removeprefix("sha256:"), w.get("size", 0))
            for w in package.get("wheels", [])
        ]
        for package in lock["package"]
        if "version" in package
    }
    order = {target: wheel_tags(target, spec.virtual[target[0]]) for target in spec.targets}
    packages, missing = [], []
    for name, version, marker, via in parse_export(exported):
        if name in has:
            continue
        wheels = {}
        for target in spec.targets:
            if applies(marker, target):
                wheel = best_wheel(offered[name, version], order[target])
                if wheel is None:
                    missing.append(f"{name} {version} for {target[0]}, Python {target[1]}")
                else:
                    wheels[target] = wheel
        if not any(applies(marker, target) for target in spec.targets):
            continue  # for another Python than this environment\'s
        packages.append(
            Package(name, version, shortest_marker(marker, list(spec.platforms), spec.pythons), via, wheels)
        )
    if missing:
        raise Failure(
            f"the {spec.name} environment would have to be compiled: no wheel of {'; '.join(missing)}",
            "add a bound to environments/, or an exception to environments/colab-exceptions.yml",
        )
    return packages
