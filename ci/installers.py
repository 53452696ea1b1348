#!/usr/bin/env python3
"""Look for newer releases of the installers in environments/installers.json, and take them over.

    python ci/installers.py            what is newer; writes nothing
    python ci/installers.py --write    rewrite environments/installers.json; then: python scripts/lock.py --index-only

Each SHA-256 is the one that the project itself publishes: GitHub's digest of the release's file, and for Miniforge
the .sha256 file beside it, which must say the same; for Anaconda the table in its archive. What nobody publishes a
hash of is not taken. A pull request shows what changed, and its run installs with it.

Exit codes: 0 done, also when nothing is newer; 2 wrong usage; 5 a page can't be read, or does not fit together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_FAILED, EXIT_OK, Failure
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import REPOSITORY
from colab_local.locking.installers import API, ARCHIVE, GITHUB, anaconda_release, github_release, newer, update


def make_parser() -> Parser:
    """Return the command line."""
    made = Parser(prog="installers.py", description=__doc__)
    made.add_argument("--write", action="store_true", help="rewrite the file; without it, only say what is newer")
    made.add_argument("--file", type=Path, default=REPOSITORY / "environments" / "installers.json", metavar="FILE")
    made.add_argument("--api", default=API, metavar="URL", help="GitHub's API (default: %(default)s)")
    made.add_argument("--archive", default=ARCHIVE, metavar="URL", help="Anaconda's archive (default: %(default)s)")
    return made


def look(args: argparse.Namespace, screen: Screen) -> int:
    """Do what the command line says; return the exit code or raise Failure."""
    try:
        known = json.loads(args.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise Failure(f"{args.file} can't be read ({problem})", "git checkout -- environments", EXIT_FAILED) from None
    latest = {name: github_release(repository, words, args.api) for name, (repository, words) in GITHUB.items()}
    latest["anaconda"] = anaconda_release(args.archive)
    found = newer(known, latest)
    for name, release in found.items():
        print(f"{name}: {known[name]['version']} -> {release['version']}")
    if not found:
        print("No installer is newer.")
    if args.write and found:
        args.file.write_text(update(known, found), encoding="utf-8")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit code."""
    return run_program(make_parser(), look, argv)


if __name__ == "__main__":
    sys.exit(main())
