#!/usr/bin/env python3
"""Check lockfiles/: that the files are whole, agree, and are what the solvers give. Writes nothing.

    python ci/check_lockfiles.py                                everything
    python ci/check_lockfiles.py cpu                            one environment
    python ci/check_lockfiles.py --channel ../shared/channel    against conda records in a folder
    python ci/check_lockfiles.py --offline                      only what needs no network

For every environment and platform
  * digests: index.json vouches for each file, byte for byte, and for environments/jupyter/; no file is missing or
    extra, none is a link or a program
  * formats: explicit file, conda-lock.yml (read by conda-lock's own parser), pixi.lock and packages.txt name the
    same packages, builds and hashes; every hash is a SHA-256, every URL is conda-forge's and of this platform;
    each file is, to the byte, what scripts/lock.py writes for these packages
  * installers: every URL follows from project, version and platform
  * own records: rattler, given nothing but the lock's own records, the specs and the declared machine, gives
    the lock: nothing is missing, nothing is there without need
  * Python layer: what environments/ want is there, at hosted Colab's versions but for colab-exceptions.yml
  * channel: every locked record is in the channel as it is locked, and rattler gives the lock again. A folder
    doesn't change, so it is solved from nothing, and all of each record is compared; a live channel moves on and
    mends its records, so there the solver is told to prefer what is locked.
  * GPU code: gpu-code.json is of the wheels in pypi.txt, and serves the cards of environments/gpu-cards.yml
With a network
  * Python layer: uv, solving anew under the locked versions, gives pypi.txt to the byte, wheels and hashes too, and
    their licences and sizes are those of packages.txt and index.json; uv accepts pypi.txt in full with
    --require-hashes for every platform and Python, and on every Python here
With --installers, GitHub and Anaconda are asked:
  * installers: hashes and sizes are those that the projects publish

What only a network shows is named at the end of a run without one.
The channel: --channel, else the variable COLAB_LOCAL_TEST_CHANNEL (gpu-forge's: COLAB_LOCAL_TEST_CHANNEL_FORGE), else
conda-forge if it answers.

Exit codes: 0 all well; 1 something is wrong, each on a line of its own; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as this_machine
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from yaml import YAMLError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, leave, run_program
from colab_local.base.downloads import is_reachable
from colab_local.base.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.programs import causes, child_environment
from colab_local.base.terminal import Screen
from colab_local.install.bundling import find_uv
from colab_local.install.lockfiles import REPOSITORY, conda_platform
from colab_local.locking.build import brought_by, differences, host_tools
from colab_local.locking.checks import (
    Lockfiles,
    Problems,
    check_digests,
    check_formats,
    check_gpu_code,
    check_host_text,
    check_installers,
    check_own_records,
    check_pixi,
    check_requirements,
    check_solution,
    compare,
    identity,
)
from colab_local.locking.conda import channel_folder, channel_of, channel_records
from colab_local.locking.installers import wrong_files
from colab_local.locking.pypi import solve_python
from colab_local.locking.render import (
    HOST_HEAD,
    Solution,
    conda_lock_text,
    packages_text,
    pypi_head,
    requirements_text,
    sizes,
)
from colab_local.locking.specs import CHANNEL, PYTHONS, Target, constraints, read_missing
from colab_local.locking.wheels import read_wheels

try:
    from conda_lock.conda_lock import render_lockfile_for_platform  # type: ignore[import-untyped]
    from conda_lock.lockfile import parse_conda_lock_file  # type: ignore[import-untyped]
except ImportError:
    print("error: ci/check_lockfiles.py needs the Python package conda-lock", file=sys.stderr)
    print("hint: python -m pip install conda-lock", file=sys.stderr)
    sys.exit(EXIT_FAILED)

# What nothing in the repository contradicts when it is wrong everywhere at once.
NEEDS_CHANNEL = (
    "a conda record that is wrong in every format alike: hash, size, timestamp, licence, dependencies",
    "a conda package that is older than it need be, or was taken back",
)
NEEDS_NETWORK = (
    "hashes, sizes and licences of wheels: pypi.txt, host.txt, packages.txt, pypi_download and pypi_installed",
    "which versions of the Python packages fit together",
    "hosted Colab's versions: colab-pins.txt",
)

NEEDS_PROJECTS = "hashes and sizes of the installers (--installers asks their projects)"

# How uv calls the least machine of a platform (--python-platform).
UV_PLATFORMS = {
    "linux-64": "x86_64-manylinux_2_28",
    "linux-aarch64": "aarch64-manylinux_2_28",
    "osx-arm64": "aarch64-apple-darwin",
}

# ---------------------------------------------------------------------------------------------------------
# Checks by conda-lock, against a channel and against the package index


def check_conda_lock(files: Lockfiles, name: str, platform: str) -> Problems:
    """Yield where conda-lock's own parser and renderer read other packages in conda-lock.yml than in pixi.lock."""
    title = f"{name}/conda-lock.yml ({platform}) against pixi.lock"
    try:
        content = parse_conda_lock_file(files.folder / name / "conda-lock.yml")
        rendered = render_lockfile_for_platform(
            lockfile=content, include_dev_dependencies=False, extras=set(), kind="explicit", platform=platform
        )
    except (OSError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, YAMLError) as problem:
        said = str(problem).splitlines() or ["it is inconsistent"]
        yield f"{title}: conda-lock can't read it: {said[0]} ({type(problem).__name__})"
        return
    records = files.records(name, platform)
    urls = dict(line.split("#") for line in rendered if line.startswith("http"))
    yield from compare(f"{title}, md5", urls, {r.url: r.md5.hex() for r in records if r.md5})
    sha256 = {p.url: p.hash.sha256 for p in content.package if p.platform == platform}
    yield from compare(f"{title}, sha256", sha256, dict(identity(record) for record in records))
    if files.text(f"{name}/conda-lock.yml") != conda_lock_text(files.specs[name], files.conda[name]):
        yield f"{name}/conda-lock.yml: not as scripts/lock.py writes it for pixi.lock's records"


def check_channel(files: Lockfiles, name: str, platform: str, channel: str) -> Problems:
    """Yield locked records that the channel has not, or has otherwise, and where a solver run differs."""
    locked = files.records(name, platform)
    offered = channel_records(channel, platform, [record.name.normalized for record in locked])
    by_url = {record.url: record for record in offered}
    static = channel_folder(channel) is not None
    for record in locked:
        if record.url not in by_url:
            yield f"{name}/{platform}: {record.url} is not in {channel}"
            continue
        found, need = (json.loads(r.to_json()) for r in (record, by_url[record.url]))
        # what a live channel never mends, and of a folder all that a lock has
        fixed = {"sha256", "md5", "size", "timestamp", "name", "version", "build", "build_number", "subdir", "noarch"}
        for what in sorted({*found, *need} - {"arch", "channel", "fn", "platform", "url"} if static else fixed):
            if found.get(what) != need.get(what):
                yield (
                    f"{name}/{platform}: {record.file_name}: {what}: found {found.get(what)}, "
                    f"{channel} has {need.get(what)}"
                )
    yield from check_solution(files, name, platform, channel, [] if static else locked, channel)


def check_python_layer(files: Lockfiles, name: str) -> Problems:
    """Yield where pypi.txt is not what uv gives under the specs, hosted Colab's versions and the locked ones.

    The wheels are looked into: packages.txt has their licences, index.json their sizes.
    """
    spec, pins = files.specs[name], constraints(files.pins(name), files.exceptions)
    try:
        brought = brought_by(spec, files.conda[name])
        packages = solve_python(spec, [*pins, *files.requirements(name)], brought)
        need = requirements_text(pypi_head(spec.pythons), packages)
        solved = Solution(spec, files.conda[name], packages, {})
        solved.about.update(read_wheels(solved.all_wheels()))
    except Failure as failure:
        yield f"{name}/pypi.txt: {failure.what}"
        return
    path = f"{name}/pypi.txt"
    yield from differences({path: files.text(path)}, {path: need})
    path = f"{name}/packages.txt"
    pins_of = files.pins(name)
    shown = packages_text(
        solved, pins_of, pins_of.get("python"), files.exceptions, read_missing(files.environments, name)
    )
    yield from differences({path: files.text(path)}, {path: shown})
    for platform, entry in files.index["environments"][name]["platforms"].items():
        yield from compare(f"index.json, {name}/{platform}'s bytes", entry["bytes"], sizes(solved, platform))


def check_host_tools(files: Lockfiles) -> Problems:
    """Yield where host.txt is not the conda layer's uv and pip with their hashes."""
    records = next(iter(files.conda["cpu"].values()))
    platforms = sorted({platform for spec in files.specs.values() for platform in spec.platforms})
    need = requirements_text(HOST_HEAD, host_tools(records, platforms))
    yield from differences({"host.txt": files.text("host.txt")}, {"host.txt": need})


def check_published(files: Lockfiles) -> Problems:
    """Yield installers whose hash or size is not the published one."""
    for line in wrong_files(json.loads((files.environments / "installers.json").read_text(encoding="utf-8"))):
        yield f"installers.json: {line}"


def check_accepted(files: Lockfiles, name: str, target: Target, options: Sequence[str]) -> Problems:
    """Yield if uv doesn't accept pypi.txt in full; options: uv's for this target."""
    count = files.count(name, target)
    with tempfile.TemporaryDirectory(prefix="colab-local-check-") as folder:
        argv = [find_uv(), "pip", "install", "--dry-run", "--no-progress", "--target", folder, *options]
        argv += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        status, said = attempt([*argv, "--requirements", str(files.folder / name / "pypi.txt")])
    found = re.search(r"Resolved (\d+) packages?", said)
    if status or not found or int(found.group(1)) != count:
        yield f"{name}/pypi.txt: {count} packages are for {' '.join(options)}; uv said: {': '.join(causes('', said))}"


def attempt(argv: Sequence[str]) -> tuple[int, str]:
    """Run a program; return its exit status and all that it said."""
    child = child_environment(UV_PYTHON_DOWNLOADS="never")
    done = subprocess.run(argv, env=child, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def installed_pythons() -> dict[str, str]:
    """Return an interpreter of this machine for each Python series that the locks cover, as far as there is one."""
    found = {}
    for series in PYTHONS:
        for candidate in (sys.executable, shutil.which(f"python{series}")):
            # asked, because a pyenv shim stands on PATH also when it leads nowhere
            ask = "import sys; print('%d.%d' % sys.version_info[:2])"
            if candidate and attempt([candidate, "-c", ask])[1].strip() == series:
                found[series] = candidate
                break
    return found


# ---------------------------------------------------------------------------------------------------------
# Command line

Check = tuple[str, Callable[[], Problems]]  # what is so if it finds no problem


def plan(files: Lockfiles, names: Sequence[str], channels: Sequence[str], offline: bool) -> Iterator[Check]:
    """Yield every check; channels: as for scripts/lock.py, "" for none; offline: leave out what needs a network."""
    yield "index.json vouches for every file", partial(check_digests, files)
    yield "pixi.toml and pixi.lock are as they are written", partial(check_pixi, files)
    yield "installers are what they are called", partial(check_installers, files)
    yield "host.txt has the conda layer's uv and pip", partial(check_host_text, files)
    for name in names:
        channel = channel_of(name, channels)
        for platform in files.specs[name].platforms:
            at = f"{name}/{platform}"
            count = len(files.records(name, platform))
            yield f"{at}: formats agree on {count} packages", partial(check_formats, files, name, platform)
            yield f"{at}: conda-lock reads the same", partial(check_conda_lock, files, name, platform)
            yield f"{at}: solver, own records", partial(check_own_records, files, name, platform)
            if channel:
                yield f"{at}: solver, {channel}", partial(check_channel, files, name, platform, channel)
        yield f"{name}: Python requirements are pinned, hashed, wanted", partial(check_requirements, files, name)
        if files.specs[name].accelerator == "gpu":
            yield f"{name}: the cards it serves are the approved ones", partial(check_gpu_code, files, name)
    if not offline:
        yield from plan_online(files, names)


def plan_online(files: Lockfiles, names: Sequence[str]) -> Iterator[Check]:
    """Yield the checks that need the package index."""
    yield "host.txt is what uv gives", partial(check_host_tools, files)
    here = conda_platform(this_machine.system(), this_machine.machine())
    pythons = installed_pythons()
    for name in names:
        spec = files.specs[name]
        yield f"{name}: solver, Python layer", partial(check_python_layer, files, name)
        targets = [(t, ["--python-platform", UV_PLATFORMS[t[0]], "--python-version", t[1]]) for t in spec.targets]
        if here in spec.platforms:
            mine = {series: python for series, python in pythons.items() if series in spec.pythons}
            targets += [((here, series), ["--python", python]) for series, python in mine.items()]
        for target, options in targets:
            title = f"{name}: uv accepts all {files.count(name, target)} with {' '.join(options)}"
            yield title, partial(check_accepted, files, name, target, options)


def default_channels() -> list[str]:
    """Return the channels to check against when none is named, as for scripts/lock.py; "" where none is to be had."""
    given = os.environ.get("COLAB_LOCAL_TEST_CHANNEL", "")
    if given:
        return [given, f"gpu-forge={os.environ.get('COLAB_LOCAL_TEST_CHANNEL_FORGE', '')}"]
    return [CHANNEL if is_reachable(f"{CHANNEL}noarch/repodata.json.zst") else ""]


def make_parser() -> Parser:
    """Return the command line."""
    made = Parser(prog="check_lockfiles.py", description=__doc__)
    made.add_argument("names", nargs="*", metavar="ENV", help="environments; default all")
    made.add_argument(
        "--channel", action="append", metavar="[ENV=]DIR-or-URL", help="conda records to check against (see above)"
    )
    made.add_argument("--offline", action="store_true", help="only what needs no network")
    made.add_argument("--installers", action="store_true", help="also ask their projects for the published hashes")
    made.add_argument("--environments", type=Path, default=REPOSITORY / "environments", metavar="DIR")
    made.add_argument("--lockfiles", type=Path, default=REPOSITORY / "lockfiles", metavar="DIR")
    return made


def found_by(check: Callable[[], Problems]) -> Problems:
    """Yield what a check finds; what it can't read is a problem, too, and no end of the run."""
    try:
        yield from check()
    except Failure as failure:
        yield failure.what


def check_all(args: argparse.Namespace, screen: Screen) -> int:
    """Run the checks; return the exit code."""
    try:
        files = Lockfiles(args.environments, args.lockfiles)
    except Failure as failure:  # a file that can't be read at all is wrong like any other
        raise Failure(failure.what, failure.hint, EXIT_FAILED) from None
    for name in args.names:
        if name not in files.specs:
            raise Failure(
                f"no environment {name!r} (there are: {', '.join(files.specs)})",
                "python3 ci/check_lockfiles.py --help",
                EXIT_USAGE,
            )
    channels = args.channel if args.channel is not None else [] if args.offline else default_channels()
    names = args.names or list(files.specs)
    count = 0
    checks = list(plan(files, names, channels, args.offline))
    if args.installers:
        checks.append(("installers are what their projects publish", partial(check_published, files)))
    for title, check in checks:
        started = time.monotonic()
        problems = list(found_by(check))
        print(f"{'WRONG' if problems else 'ok':5}  {title}  ({time.monotonic() - started:.1f} s)", flush=True)
        for problem in problems:
            print(f"       {problem}", flush=True)
        count += len(problems)
    unfed = [name for name in names if not channel_of(name, channels)]
    unchecked = [
        *(f"{line} ({', '.join(unfed)})" for line in NEEDS_CHANNEL if unfed),
        *(NEEDS_NETWORK if args.offline else ()),
    ]
    for line in [*unchecked, *(() if args.installers else (NEEDS_PROJECTS,))]:
        print(f"{'not':5}  checked: {line}")
    if count:
        raise Failure(f"{count} things are wrong in {args.lockfiles}: see above", "python scripts/lock.py")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit code."""
    return run_program(make_parser(), check_all, argv)


if __name__ == "__main__":
    leave(main())
