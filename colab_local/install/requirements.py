"""Read a locked requirements file (lockfiles/*/pypi.txt, host.txt): names, versions, markers, hashes.

Standard library only: a bare machine checks an environment or a bundle against the lock with it.
"""

from __future__ import annotations

import ast
import re
from typing import Any, Mapping, NamedTuple

from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.install.lockfiles import version_tuple

# Environment markers per conda platform (PEP 508, "Environment Markers").
MACHINES = {
    "linux-64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "osx-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
UV_PLATFORMS = {"linux-64": "x86_64", "linux-aarch64": "aarch64", "osx-arm64": "aarch64-apple-darwin"}
ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.*?))?\s*((?:--hash=sha256:[0-9a-f]{64}\s*)+)$")
VERSION_MARKERS = ("python_version", "python_full_version")


class Requirement(NamedTuple):
    """One locked package. name: normalised (PEP 503); marker: "" where it is for every machine; sha256: in hex."""

    name: str
    version: str
    marker: str
    sha256: frozenset[str]


def normalise(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(text: str) -> list[Requirement]:
    """Return the entries of a requirements file whose every entry is pinned with == and hashed.

    Raises:
        Failure: an entry is not `name==version ; marker --hash=sha256:...`.
    """
    found = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for entry in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not entry.strip():
            continue
        parts = ENTRY.match(entry)
        if parts is None:
            raise Failure(
                f"a locked requirement is not pinned and hashed (found {entry.strip()[:80]!r})",
                "git checkout -- lockfiles",
                EXIT_INTEGRITY,
            )
        name, version, marker, hashes = parts.groups()
        digests = frozenset(re.findall(r"sha256:([0-9a-f]{64})", hashes))
        found.append(Requirement(normalise(name), version, marker or "", digests))
    return found


def applicable(requirements: list[Requirement], platform: str, python: str) -> list[Requirement]:
    """Return what is for one machine.

    platform: conda's name of it; python: at least its minor version, like 3.13 or 3.13.1.
    """
    environment = marker_environment(platform, python)
    return [entry for entry in requirements if not entry.marker or holds(entry.marker, environment)]


def marker_environment(platform: str, python: str) -> dict[str, str]:
    """Return the values of the markers on a platform (conda's name of it) with CPython `python`."""
    return {
        **MACHINES[platform],
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
    }


def uv_platform(platform: str, requires: Mapping[str, str]) -> str:
    """Return uv's name of a platform: x86_64-manylinux_2_28, aarch64-apple-darwin. requires: index.json's, of it."""
    glibc = requires.get("glibc", "2.17").replace(".", "_")
    return UV_PLATFORMS[platform] + (f"-manylinux_{glibc}" if platform.startswith("linux") else "")


def holds(marker: str, environment: dict[str, str]) -> bool:
    """Return whether an environment marker holds.

    A marker's grammar is a part of Python's own, so Python's parser reads it; nothing of it is run.

    Raises:
        Failure: it is no marker, or names a variable that `environment` has not.
    """
    try:
        return bool(_value(ast.parse(marker, mode="eval").body, environment))
    except (SyntaxError, KeyError, TypeError) as problem:
        raise Failure(
            f"can't read the marker {marker!r} ({problem})", "git status lockfiles", EXIT_INTEGRITY
        ) from problem


def _value(node: Any, environment: dict[str, str]) -> Any:
    if isinstance(node, ast.BoolOp):
        values = [_value(part, environment) for part in node.values]
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = node.left, node.comparators[0]
        versions = any(isinstance(side, ast.Name) and side.id in VERSION_MARKERS for side in (left, right))
        return _compare(node.ops[0], _value(left, environment), _value(right, environment), versions)
    if isinstance(node, ast.Name):
        return environment[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise TypeError(f"unexpected {type(node).__name__}")


def _compare(operator: Any, left: str, right: str, versions: bool) -> bool:
    if isinstance(operator, (ast.In, ast.NotIn)):
        return (left in right) == isinstance(operator, ast.In)
    if isinstance(operator, (ast.Eq, ast.NotEq)) and not versions:
        return (left == right) == isinstance(operator, ast.Eq)
    first, second = version_tuple(left), version_tuple(right)
    width = max(len(first), len(second))  # 3.12 and 3.12.0 are one version
    one, two = (numbers + (0,) * (width - len(numbers)) for numbers in (first, second))
    outcomes = {
        ast.Eq: one == two,
        ast.NotEq: one != two,
        ast.Lt: one < two,
        ast.LtE: one <= two,
        ast.Gt: one > two,
        ast.GtE: one >= two,
    }
    if type(operator) not in outcomes:
        raise TypeError(f"unexpected {type(operator).__name__}")
    return outcomes[type(operator)]


def same_version(first: str, second: str) -> bool:
    """Return whether two spellings name one version: 1.0 and 1.0.0, 1.0-post1 and 1.0.post1 (PEP 440)."""

    def key(text: str) -> list[str]:
        parts = re.findall(r"\d+|[a-z]+", text.lower())
        numbers = [str(int(part)) if part.isdigit() else part for part in parts]
        while numbers and numbers[-1] == "0":
            numbers.pop()
        return numbers

    return key(first) == key(second)
