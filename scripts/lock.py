#!/usr/bin/env python3
"""Solve environments/ and write lockfiles/: every package of every platform, fixed by a hash.

    python3 scripts/lock.py                      solve everything anew from conda-forge and the package index
    python3 scripts/lock.py gpu                  one environment; the others stay as they are
    python3 scripts/lock.py linux-aarch64        one platform's conda layer in every environment that has it
    python3 scripts/lock.py cpu/osx-arm64        one platform of one environment
    python3 scripts/lock.py --check              does lockfiles/ still fit environments/? writes nothing
    python3 scripts/lock.py --channel DIR        conda records from a folder or another URL
    python3 scripts/lock.py --channel gpu=DIR    those of one environment
    python3 scripts/lock.py --age                how old is the lock, and what in it is behind? writes nothing
    python3 scripts/lock.py --index-only         only lockfiles/index.json, after a change in environments/jupyter/
    python3 scripts/lock.py --follow FREEZE      first take hosted Colab's versions from its `pip freeze` (see below)

Two layers (environments/*.yml say what is wanted): conda packages, solved by rattler, and the Python packages
in the `pip:` section, solved by uv for Python 3.11 to 3.13 and all platforms at once. Neither looks at the
machine on which this runs: virtual-packages.yml says what a machine has at the least.

For a Python package exactly one wheel is locked per platform and Python: the best one for such a machine. A
newer machine would otherwise choose a wheel for a newer glibc or macOS, and two machines would differ.

Same inputs, same bytes: nothing in the output depends on the time, the machine or the order of the answers.
With --check the packages that are locked are preferred, so that it fails when the lock no longer fits its
specs or its packages are gone, and not because something newer came out.

FREEZE is a file or URL, e.g. (googlecolab/backend-info is where Colab publishes it)
    https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.gpu.txt

Where packages come from (index, mirror, cache, certificates, proxy) is what uv's own configuration says.
Needs: uv, py-rattler, packaging, pyyaml, requests, tqdm.

--age looks at the packages that listen, decrypt or parse what strangers send: openssl, expat, ca-certificates,
python, sqlite; tornado, notebook, pillow, urllib3, requests. What is kept at hosted Colab's version is named, too.

Exit codes: 0 done, or nothing differs; 1 failed, or --check found a difference; 2 wrong usage; 5 network;
7 --age found a package that is behind and not kept back on purpose.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, leave, run_program
from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, Failure
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import REPOSITORY, locked_names

NEEDS = "uv py-rattler packaging pyyaml requests tqdm"
OWN = (
    f"{shlex.quote(sys.executable)} -m venv .venv && .venv/bin/pip install {NEEDS}   # then .venv/bin/python has them"
)
INSTALL = f"{shlex.quote(sys.executable)} -m pip install {NEEDS}"
if sys.prefix == sys.base_prefix:  # a distribution's own Python refuses (PEP 668)
    INSTALL = OWN
MISSING = ""  # a library that is not here: --help and usage errors do without
try:
    from colab_local.locking import age
    from colab_local.locking.build import adopt_freeze, build, differences, read_files, refresh_index, write
    from colab_local.locking.conda import channel_of, read_pixi_lock
    from colab_local.locking.specs import read_exceptions, read_pins, read_specs
except ImportError as problem:
    MISSING = str(problem.name).partition(".")[0]

CHANNEL = "https://conda.anaconda.org/conda-forge/"


def make_parser() -> Parser:
    """Return the command line."""
    made = Parser(prog="lock.py", description=__doc__)
    made.add_argument("names", nargs="*", metavar="NAME", help="environment, platform or ENV/PLATFORM; default all")
    made.add_argument("--check", action="store_true", help="write nothing; exit 1 with what differs")
    made.add_argument(
        "--channel",
        action="append",
        default=[CHANNEL],
        metavar="[ENV=]DIR-or-URL",
        help=f"conda records, for all environments or for one (default: {CHANNEL})",
    )
    made.add_argument("--age", action="store_true", help="say how old the lock is and what is behind; exit 7 if so")
    made.add_argument("--index-only", action="store_true", help="refresh the digests in index.json, solve nothing")
    made.add_argument(
        "--follow", metavar="FREEZE", help="hosted Colab's pip freeze, a file or URL, to follow from now on"
    )
    made.add_argument("--date", metavar="YYYY-MM-DD", help="with --follow: the date of that freeze")
    made.add_argument("--python", metavar="X.Y.Z", help="with --follow: hosted Colab's Python, if it has changed")
    made.add_argument(
        "--environments", type=Path, default=REPOSITORY / "environments", metavar="DIR", help="other specs"
    )
    made.add_argument("--lockfiles", type=Path, default=REPOSITORY / "lockfiles", metavar="DIR", help="write there")
    return made


def lock(args: argparse.Namespace, screen: Screen) -> int:
    """Do what the command line says; return the exit code or raise Failure."""
    if MISSING:
        raise Failure(f"scripts/lock.py needs the Python package {MISSING!r}", INSTALL)
    if args.age:
        return say_age(args)
    if args.index_only:
        new = refresh_index(args.environments, args.lockfiles)
    else:
        if args.follow:
            adopt_freeze(args.environments, args.follow, args.date, args.python, screen)
        new = build(args.environments, args.lockfiles, args.names, args.channel, args.check, screen)
    old = read_files(args.lockfiles) if args.lockfiles.is_dir() else {}
    changes = differences(old, new)
    for line in changes:
        print(line)
    if args.check:
        if changes:
            raise Failure("the lock doesn't match its specs: see above", "python3 scripts/lock.py")
        print("The lock matches its specs.")
        return EXIT_OK
    write(args.lockfiles, new, old)
    print(f"{args.lockfiles}: {'written' if changes else 'nothing to change'}.")
    return EXIT_OK


def say_age(args: argparse.Namespace) -> int:
    """Say how old the lock is and which packages of the list are behind; return the exit code."""
    specs, pins = read_specs(args.environments), read_pins(args.environments)
    exceptions = read_exceptions(args.environments)
    conda = {name: layer for name, layer in read_pixi_lock(args.lockfiles / "pixi.lock").items() if name in specs}
    standings = {}
    for name, spec in specs.items():
        text = (args.lockfiles / name / "pypi.txt").read_text(encoding="utf-8")
        found = age.conda_standings(spec, conda.get(name, {}), channel_of(name, args.channel))
        standings[name] = found + age.python_standings(spec, locked_names(text), pins, exceptions)
    for line in age.report(datetime.now(UTC).date(), age.newest_day(conda), standings):
        print(line)
    late = age.behind(standings)
    if late:
        what = f"behind the channel: {', '.join(late)}"
        raise Failure(what, "python3 scripts/lock.py", EXIT_DIFFERS)
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit code."""
    return run_program(make_parser(), lock, argv, interrupted="git status lockfiles")


if __name__ == "__main__":
    leave(main())
