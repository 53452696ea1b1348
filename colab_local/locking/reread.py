"""lockfiles/ read back and written again: what scripts/lock.py would have written otherwise shows.

A file is taken apart into what only the network could tell (hashes and licences of wheels, records of conda
packages), and the rest is made again from environments/: a byte that does not follow from either is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.locking.conda import Records
from colab_local.locking.pypi import Package
from colab_local.locking.render import Solution, packages_text, requirements_text
from colab_local.locking.specs import CPU_BUILDS, Spec, Target
from colab_local.locking.wheels import About, Wheel, applies

ENTRY = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64} \\\n)*    --hash=sha256:[0-9a-f]{64}\n)"
    r"(?:    # via (?P<via>[^\n]+)\n)?"
)


def first_difference(found: str, need: str) -> str:
    """Return where two texts differ first, for a message; "" if they are the same. Line ends count."""
    if found == need:
        return ""
    lines, wanted = found.splitlines(keepends=True), need.splitlines(keepends=True)
    for number, (one, two) in enumerate(zip(lines, wanted, strict=False), 1):
        if one != two:
            return f"line {number}: found {one[:100]!r}, need {two[:100]!r}"
    longer = "more" if len(lines) > len(wanted) else "less"
    return f"{longer} lines than need be (found {len(lines)}, need {len(wanted)})"


def parse_requirements(text: str) -> list[Package]:
    """Return the packages of a pypi.txt or host.txt, with their hashes in the place of wheels.

    Raise Failure for an entry that is not as scripts/lock.py writes one.
    """
    body = re.sub(r"\A(#[^\n]*\n)+", "", text)
    packages, position = [], 0
    while position < len(body):
        found = ENTRY.match(body, position)
        if not found:
            line = body[position:].splitlines()[0]
            raise Failure(
                f"no pinned and hashed requirement: {line[:100]!r}", "python3 scripts/lock.py", EXIT_INTEGRITY
            )
        hashes = re.findall(r"sha256:([0-9a-f]{64})", found["hashes"])
        wheels = {("", str(number)): Wheel("", "", value, 0) for number, value in enumerate(hashes)}
        via = tuple((found["via"] or "").split(", ")) if found["via"] else ()
        packages.append(Package(found["name"], found["version"], found["marker"] or "", via, wheels))
        position = found.end()
    return packages


def check_requirements_text(path: str, text: str, head: Sequence[str]) -> Iterator[str]:
    """Yield what of a requirements file is not as scripts/lock.py writes it: order, form, names after "via"."""
    try:
        packages = parse_requirements(text)
    except Failure as problem:
        yield f"{path}: {problem.what}"
        return
    difference = first_difference(text, requirements_text(head, packages))
    if difference:
        yield f"{path}: {difference}"
    names = [package.name for package in packages]
    if names != sorted(names):
        yield f"{path}: its packages are not sorted"
    for name in sorted({name for name in names if names.count(name) > 1}):
        versions = [package.version for package in packages if package.name == name]
        markers = [package.marker for package in packages if package.name == name]
        if len(set(versions)) < len(versions) or "" in markers:
            yield f"{path}: {name} is there twice for the same machine"
    for package in packages:
        for name in sorted(set(package.via) - set(names)):
            yield f"{path}: {package.name} is there for {name}, which is not"


def check_wanted(spec: Spec, text: str, path: str) -> Iterator[str]:
    """Yield requirements of environments/*.yml that a pypi.txt does not fulfil on some platform and Python."""
    try:
        packages = parse_requirements(text)
    except Failure:
        return  # that is told elsewhere
    for line in spec.python:
        wanted = Requirement(line)
        named = [package for package in packages if package.name == canonicalize_name(wanted.name)]
        where = {target for target in spec.targets if applies(str(wanted.marker or ""), target)}
        if where - {target for target in spec.targets for package in named if applies(package.marker, target)}:
            yield f"{path}: {line} is wanted and not there"
        for package in named:
            meant = any(
                applies(package.marker, target) for target in where
            )  # `<4.11 ; on macOS` says nothing of Linux
            if meant and not wanted.specifier.contains(package.version, prereleases=True):
                yield f"{path}: {package.name}=={package.version} does not fulfil {line}"


def check_followed(
    spec: Spec, text: str, path: str, pins: Mapping[str, str], exceptions: Mapping[str, Any]
) -> Iterator[str]:
    """Yield packages of a pypi.txt that have not hosted Colab's version without being an exception."""
    try:
        packages = parse_requirements(text)
    except Failure:
        return  # that is told elsewhere
    for package in packages:
        pin = pins.get(CPU_BUILDS.get(package.name, package.name))
        excepted = exceptions.get(package.name)
        free = excepted is not None and set(excepted.get("platforms", spec.platforms)) & set(spec.platforms)
        if pin and not free and Version(package.version) != Version(pin):
            yield f"{path}: {package.name}=={package.version} is not hosted Colab's {pin}, and no exception"


def columns(line: str) -> list[slice]:
    """Return where the columns of a table are, by the rule under its first row."""
    return [slice(found.start(), found.end()) for found in re.finditer("-+", line)]


def table_rows(text: str, title: str) -> list[list[str]]:
    """Return the cells of the first table after a title in packages.txt; the last column may be ragged."""
    lines = text.partition(title)[2].splitlines()
    start = next((number for number, line in enumerate(lines, 1) if line.startswith("---")), len(lines))
    places = columns(lines[start - 1]) if start <= len(lines) and lines else []
    if places:
        places[-1] = slice(places[-1].start, None)
    rows = []
    for line in lines[start:]:
        if not line:
            break
        rows.append([line[place].strip() for place in places])
    return rows


def check_packages_text(
    spec: Spec,
    conda: Records,
    requirements: str,
    text: str,
    pins: Mapping[str, str],
    exceptions: Mapping[str, Any],
    missing: Mapping[str, str],
) -> Iterator[str]:
    """Yield where packages.txt is not what follows from pypi.txt, the conda records and hosted Colab's versions.

    Of each wheel its licence and its size are taken as they stand: only the network could tell them.
    """
    path = f"{spec.name}/packages.txt"
    try:
        packages = parse_requirements(requirements)
    except Failure:
        return  # that is told elsewhere
    rows = {(row[0], row[1]): row for row in table_rows(text, "Python layer") if len(row) == 6}
    python, about = [], {}
    for package in packages:
        row = rows.get((package.name, package.version))
        size = re.fullmatch(r"([\d,]+) kB", row[3]) if row else None
        if row is None or not size:
            yield f"{path}: {package.name} {package.version} is missing, or has no size"
            return
        key = f"{package.name}=={package.version}"
        wheel = Wheel("", "", key, int(size.group(1).replace(",", "")) * 1000)
        targets: list[Target] = [target for target in spec.targets if applies(package.marker, target)]
        python.append(Package(package.name, package.version, package.marker, (), dict.fromkeys(targets, wheel)))
        about[key] = About(row[4], 0)
        if not row[4] or not targets:
            yield f"{path}: {package.name} has no licence, or is for no platform"
    try:
        need = packages_text(Solution(spec, conda, python, about), pins, pins.get("python"), exceptions, missing)
    except (IndexError, StopIteration, Failure) as problem:
        yield f"{path}: can't be made again from pypi.txt and pixi.lock ({problem!r})"
        return
    difference = first_difference(text, need)
    if difference:
        yield f"{path}: {difference}"


def check_download_size(spec: Spec, shown: str, requirements: str, stated: int) -> Iterator[str]:
    """Yield where index.json's pypi_download can't be the sum of what packages.txt says, rounded up to kB each.

    shown: packages.txt; stated: bytes for the first platform, whose wheels are those that packages.txt shows.
    """
    platform = next(iter(spec.platforms))
    names = {p.name: p for p in parse_requirements(requirements)}
    rows = [row for row in table_rows(shown, "Python layer") if len(row) == 6]
    here = [row for row in rows if row[5] == "everywhere" or platform in row[5] or row[5].startswith("Python ")]
    sizes = [int(row[3].removesuffix(" kB").replace(",", "")) * 1000 for row in here if row[0] in names]
    if not sum(sizes) - 1000 * len(sizes) <= stated <= sum(sizes):
        what = f"index.json: {spec.name}/{platform}: pypi_download"
        yield f"{what}: found {stated}, packages.txt's sizes add up to {sum(sizes)}"


def check_jupyter_files(folder: Path, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield files under environments/jupyter/ that index.json does not vouch for; known: its paths there."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if "__pycache__" not in path.parts and name not in known:
            yield f"environments/{folder.name}/{name}: index.json does not vouch for it"


def check_kinds(top: Path) -> Iterator[str]:
    """Yield what below a folder is no plain file, or has another mode than 644; a script's, by its #!, is 755."""
    for path in sorted(top.rglob("*")):
        if "__pycache__" in path.parts or ".pixi" in path.parts:
            continue
        name = f"{top.name}/{path.relative_to(top).as_posix()}"
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            yield f"{name}: not a plain file"
        elif path.is_file():
            need = 0o755 if path.read_bytes()[:2] == b"#!" else 0o644
            mode = path.stat().st_mode & 0o777
            if mode & ~0o020 & 0o713 != need & 0o713:  # who may write in the group, the checkout's umask says
                yield f"{name}: its mode is {mode:03o} (need {need:03o})"
