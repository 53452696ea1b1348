"""Everything from environments/ to lockfiles/: which parts are solved anew, what changes, writing it."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import rattler
from packaging.utils import canonicalize_name

from colab_local.base.errors import EXIT_NETWORK, EXIT_USAGE, Failure
from colab_local.base.files import write_atomically
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import read_index
from colab_local.locking.conda import (
    Records,
    channel_folder,
    channel_of,
    conda_version,
    python_packages,
    read_pixi_lock,
    solve_conda,
)
from colab_local.locking.gpu_code import Code, entries, has_gpu_code, parse_code, read_code, recipe_code
from colab_local.locking.pypi import Package, solve_python
from colab_local.locking.render import (
    GPU_CODE,
    HOST_HEAD,
    Solution,
    index_entry,
    index_text,
    pixi_lock_text,
    pixi_toml_text,
    render,
    requirements_text,
)
from colab_local.locking.specs import (
    PINS,
    Spec,
    card_differences,
    constraints,
    follow,
    parse_pins,
    read_cards,
    read_exceptions,
    read_pins,
    read_specs,
)
from colab_local.locking.wheels import TIMEOUT_S, Wheel, clashes, read_wheels, web


def host_tools(records: Sequence[rattler.RepoDataRecord], platforms: Sequence[str]) -> list[Package]:
    """Return the conda layer's uv and pip, for the engine that has no conda layer.

    records: one platform's conda layer; uv installs the Python layer, pip is there for `!pip` in a cell.
    """
    virtual = {platform: {"__glibc": "2.17", "__osx": "11.0"} for platform in platforms}
    wanted = tuple(f"{name}=={conda_version(records, name)}" for name in ("pip", "uv"))
    spec = Spec("host", "cpu", (), wanted, {name: {} for name in platforms}, virtual)
    return solve_python(spec, [])


Selection = dict[str, set[str]]  # environment -> platforms whose conda layer is solved anew


def select(names: Sequence[str], specs: Mapping[str, Spec]) -> Selection:
    """Return what the command line's names mean; none at all means everything."""
    everything = {
        f"{name}/{platform}": (name, platform) for name, spec in specs.items() for platform in spec.platforms
    }
    chosen: Selection = {}
    for text in names or list(specs):
        found = [pair for label, pair in everything.items() if text == label or text in pair]
        if not found:
            known = sorted({*specs, *(platform for _, platform in everything.values())})
            raise Failure(
                f"no environment or platform {text!r} (there are: {', '.join(known)})",
                "python3 scripts/lock.py --help",
                EXIT_USAGE,
            )
        for name, platform in found:
            chosen.setdefault(name, set()).add(platform)
    return chosen


def locked_requirements(path: Path) -> list[str]:
    """Return the `name==version ; marker` of every package in a pypi.txt; none if there is no such file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line.removesuffix("\\").strip() for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]


def solve(
    spec: Spec,
    platforms: set[str],
    old: Records,
    old_python: Sequence[str],
    channel: str,
    pins: Sequence[str],
    code: Mapping[str, Code],
    screen: Screen,
) -> Solution:
    """Return an environment solved.

    platforms: those whose conda layer is solved anew; on the others the records of `old` are kept where they
    fit. old_python: the locked requirements to keep, or none: then the Python layer is solved anew.
    code: what is known of wheels with GPU code.
    """
    conda = {}
    for platform in spec.platforms:
        screen.report(f"Solving {spec.name}/{platform}")
        conda[platform] = solve_conda(spec, platform, channel, [] if platform in platforms else old.get(platform, []))
    screen.report(f"Solving {spec.name}'s Python layer for Python {', '.join(spec.pythons)}")
    brought = brought_by(spec, conda)
    try:
        python = solve_python(spec, [*pins, *old_python], brought)
    except Failure:
        if not old_python:
            raise
        screen.report(f"{spec.name}'s locked Python layer doesn't fit its specs any more: solving it anew")
        python = solve_python(spec, pins, brought)
    lock = Solution(spec, conda, python, {})
    lock.about.update(read_wheels(lock.all_wheels()))
    for platform in spec.platforms:
        for clash in clashes(lock.wheels(platform), lock.about):
            raise Failure(
                f"{spec.name}: {clash}", f"leave one out of environments/{spec.name}.yml, or bound it there"
            )
    if spec.accelerator == "gpu":
        cuda = {w for package in python if has_gpu_code(package.name) for w in package.wheels.values()}
        packages = gpu_packages(conda, channel, code)
        lock.code.update(read_code([*cuda, *packages], code, screen))
        lock.code.update(recipe_code(spec.recipes, conda_hashes(conda), [package.file for package in packages]))
    return lock


def brought_by(spec: Spec, conda: Records) -> dict[str, str]:
    """Return the Python packages that a conda layer brings; none where it holds Python's own tools alone."""
    return python_packages(conda) if spec.needs_conda else {}


def gpu_packages(conda: Records, channel: str, code: Mapping[str, Code]) -> list[Wheel]:
    """Return the locked conda packages whose GPU code is read: all, but for those that this channel only tells of.

    A folder may hold records alone. What is read comes from the channel, a mirror say; the lock names conda-forge.
    code: what was read before.
    """
    folder = channel_folder(channel)
    found = []
    for record in (record for records in conda.values() for record in records):
        sha256, file = (record.sha256 or b"").hex(), record.file_name
        place = f"{record.subdir}/{file}"
        here = folder / place if folder else None
        if has_gpu_code(record.name.normalized) and (not here or here.exists() or code.get(sha256, ("",))[0] == file):
            url = here.resolve().as_uri() if here else f"{channel.rstrip('/')}/{place}"
            found.append(Wheel(file, url, sha256, record.size or 0))
    return found


def conda_hashes(conda: Records) -> dict[str, str]:
    """Return {name-version-build: sha256} of every conda package of an environment."""
    return {
        f"{record.name.normalized}-{record.version}-{record.build}": record.sha256.hex()
        for records in conda.values()
        for record in records
        if record.sha256
    }


def report_cards(environments: Path, name: str, text: str, screen: Screen) -> None:
    """Say where the locked code serves other cards than environments/gpu-cards.yml says; text: gpu-code.json's."""
    for line in card_differences(read_cards(environments).get(name, {}), entries(text)):
        screen.report(f"{name}: {line} (change environments/gpu-cards.yml if that is wanted)")


def read_files(lockfiles: Path) -> dict[str, str]:
    """Return the text of every file under lockfiles/, by its path there; line ends stay as they are in the file."""
    return {
        path.relative_to(lockfiles).as_posix(): path.read_bytes().decode("utf-8", "replace")
        for path in sorted(lockfiles.rglob("*"))
        if path.is_file() and ".pixi" not in path.parts
    }


def refresh_index(environments: Path, lockfiles: Path) -> dict[str, str]:
    """Return all files with index.json made anew from them and from environments/, nothing solved."""
    files = read_files(lockfiles)
    if "index.json" not in files:
        folders = f"--environments {shlex.quote(str(environments))} --lockfiles {shlex.quote(str(lockfiles))}"
        raise Failure(f"{lockfiles} has no index.json yet", f"python3 scripts/lock.py {folders}")
    old = read_index(lockfiles)
    return {**files, "index.json": index_text(environments, files, old["environments"], old["uv"]["version"])}


def build(
    environments: Path, lockfiles: Path, names: Sequence[str], channels: Sequence[str], keep: bool, screen: Screen
) -> dict[str, str]:
    """Return every file of lockfiles/ as it should be.

    names, channels: what to solve anew, where from, as on the command line; keep: prefer what is locked everywhere.
    """
    specs, exceptions = read_specs(environments), read_exceptions(environments)
    chosen = select(names, specs)
    before = read_files(lockfiles) if lockfiles.is_dir() else {}
    anew = not keep and chosen == {name: set(spec.platforms) for name, spec in specs.items()}
    old = {} if anew or "pixi.lock" not in before else read_pixi_lock(lockfiles / "pixi.lock")
    known = {} if anew or "index.json" not in before else read_index(lockfiles)["environments"]
    entries, conda, files = {}, {}, {}
    code: dict[str, Code] = {}  # by the wheel's hash: Colab's runtimes share many
    for path in before:
        if path.endswith(f"/{GPU_CODE}"):
            code.update(parse_code(before[path]))
    for name, spec in specs.items():
        if name not in chosen and name in known and name in old:
            entries[name], conda[name] = known[name], old[name]
            files.update({path: text for path, text in before.items() if path.startswith(f"{name}/")})
            continue
        platforms = set() if keep else chosen.get(name, set(spec.platforms))
        whole = not keep and (name in names or not names)
        kept = [] if whole else locked_requirements(lockfiles / name / "pypi.txt")
        pins = read_pins(environments, spec.pins)
        channel, wanted = channel_of(name, channels), constraints(pins, exceptions)
        lock = solve(spec, platforms, old.get(name, {}), kept, channel, wanted, code, screen)
        code.update(lock.code)
        entries[name], conda[name] = index_entry(lock), lock.conda
        files.update(render(lock, environments, pins))
        if spec.accelerator == "gpu":
            report_cards(environments, name, files[f"{name}/{GPU_CODE}"], screen)
    one_layer = next(iter(next(iter(conda.values())).values()))
    uv_version = conda_version(one_layer, "uv")
    every_platform = sorted({platform for spec in specs.values() for platform in spec.platforms})
    files["host.txt"] = requirements_text(HOST_HEAD, host_tools(one_layer, every_platform))
    files["pixi.toml"] = pixi_toml_text(specs, {name: entry["python"] for name, entry in entries.items()})
    files["pixi.lock"] = pixi_lock_text(conda)
    files["index.json"] = index_text(environments, files, entries, uv_version)
    return files


def packages_in(path: str, text: str) -> dict[str, str]:
    """Return {name: version and build} of an explicit file or a requirements file; {} for any other."""
    if "@EXPLICIT" in text:
        found = re.findall(r"(?m)^https?://\S+/([^/\s]+)-([^-/\s]+)-([^-/\s]+)\.(?:conda|tar\.bz2)#", text)
        return {name: f"{version} {build}" for name, version, build in found}
    if path.endswith(("pypi.txt", "host.txt")):
        return dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", text))
    return {}


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return lines that say what differs between two sets of lockfiles, packages first; [] if nothing does."""
    lines = []
    for path in sorted({*old, *new}):
        before, after = old.get(path, ""), new.get(path, "")
        if before == after:
            continue
        if not before or not after:
            lines.append(f"{path}: {'new' if after else 'no longer made'}")
            continue
        was, is_ = packages_in(path, before), packages_in(path, after)
        changed = [
            f"{name}: {was.get(name, 'absent')} -> {is_.get(name, 'absent')}"
            for name in sorted({*was, *is_})
            if was.get(name) != is_.get(name)
        ]
        if not changed:
            diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
            changed = [line[:150] for line in diff if not line.startswith("@@")]
        shown = changed[:20] + ([f"... and {len(changed) - 20} more"] if len(changed) > 20 else [])
        lines += [f"{path}:", *(f"    {line}" for line in shown)]
    return lines


def write(lockfiles: Path, files: Mapping[str, str], old: Mapping[str, str]) -> None:
    """Write the files that differ and remove those no longer made; index.json, which vouches for them, last."""
    for path in sorted(files, key=lambda path: path == "index.json"):
        if old.get(path) != files[path]:
            write_atomically(lockfiles / path, files[path])
    for path in set(old) - set(files):
        (lockfiles / path).unlink()


def fetch_text(source: str) -> str:
    """Return the text of a file or URL."""
    try:
        if "://" not in source:
            return Path(source).read_text(encoding="utf-8")
        with web() as session:
            answer = session.get(source, timeout=TIMEOUT_S)
            answer.raise_for_status()
            return answer.text
    except OSError as problem:  # requests' exceptions are OSErrors too
        raise Failure(f"{source} can't be read ({problem})", "python3 scripts/lock.py --help", EXIT_NETWORK) from None


def adopt_freeze(environments: Path, source: str, date: str | None, python: str | None, screen: Screen) -> None:
    """Rewrite colab-pins.txt from a freeze: solve under all of it, then keep the names that the locks have.

    source: the freeze's file or URL; date: of the freeze; python: hosted Colab's, None if it has not changed.
    """
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date or ""):
        raise Failure(
            "--follow needs the date of the freeze",
            "python3 scripts/lock.py --follow FREEZE --date 2026-08-19",
            EXIT_USAGE,
        )
    freeze = fetch_text(source)
    path = environments / "colab-pins.txt"
    exceptions = read_exceptions(environments)
    python = python or read_pins(environments)["python"]
    all_names = [canonicalize_name(line.partition("==")[0]) for line in freeze.splitlines()]
    everything = follow(freeze, all_names, str(date), python)
    pins = parse_pins(everything)
    names = {
        package.name
        for spec in read_specs(environments).values()
        if spec.pins == PINS
        for package in solve_python(spec, constraints(pins, exceptions))
    }
    write_atomically(path, follow(freeze, names, str(date), python))
