#!/usr/bin/env python3
"""Pack what a host needs to run bootstrap.py: the program, its lockfiles and settings, no packages (under 1 MB).

    python3 scripts/fleet/pack.py CHECKOUT FOLDER

Writes FOLDER/program-<digest>.tar.gz and prints {"path": ..., "digest": ...}. The same files give the same bytes
and the same name, whoever packs them and when: that is how a host tells that it has them already. What belongs to the
program is a fixed list (colab_local/install/program.py): other files in the checkout never get in. bootstrap.py is
the last member, so that a host on which it lies has unpacked all the others.

The playbooks call this by themselves. Python >= 3.8, standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_OK
from colab_local.base.terminal import Screen
from colab_local.install import program


def write(checkout: Path, folder: Path) -> dict[str, str]:
    """Pack `checkout` into `folder`, unless that pack is there; return its path and digest."""
    content = program.pack(checkout)
    digest = hashlib.sha256(content).hexdigest()
    target = folder / f"program-{digest[:12]}.tar.gz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        temporary.write_bytes(gzip.compress(content, mtime=0))
        temporary.replace(target)
    return {"path": str(target), "digest": digest[:12]}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="pack.py",
        description="Pack bootstrap.py, lockfiles and settings for a host (the playbooks do this by themselves).",
        epilog="example: python3 scripts/fleet/pack.py . /tmp/packs",
    )
    parser.add_argument("checkout", type=Path, help="folder of this repository")
    parser.add_argument("folder", type=Path, help="where the pack is written")
    return parser


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Pack, and print where it is."""
    print(json.dumps(write(args.checkout.resolve(), args.folder.expanduser())))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_program(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
