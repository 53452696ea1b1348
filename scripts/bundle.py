#!/usr/bin/env python3
"""Make one file from which bootstrap.py installs without any network, also for another machine's platform.

    python3 scripts/bundle.py                                          cpu, this machine's platform, Miniforge
    python3 scripts/bundle.py --env gpu --platform linux-64            the same from anywhere, for a GPU machine
    python3 scripts/bundle.py --engine host --python 3.12              no conda: for a machine with Python 3.12
    python3 scripts/bundle.py --output /media/stick/colab-local.tar

and there:

    tar -xf colab-local-gpu-linux-64.tar && python3 colab-local/bootstrap.py --env gpu --offline colab-local

The file is an ordinary tar: bootstrap.py and its scripts, the lock, the installer, every conda package and wheel. All
of it is checked against the lock while it is written, and again before an installation reads it. What else lies in
this folder never gets in. Same program, same lock and same options, same bytes (but for a signature). Interrupted,
the next run goes on where this one stopped (in OUTPUT.parts, beside the output).

--sign KEY signs the manifest, which names every file by its hash, with ssh-keygen. Who installs can demand it:
    python3 bootstrap.py --offline FILE --bundle-signers ALLOWED_SIGNERS        (see ssh-keygen(1))
    tar -xOf FILE colab-local/bundle.json | ssh-keygen -Y verify ...            by hand

Wheels come from where uv's or pip's own configuration says (index, credentials, certificates); conda packages and
installers from their locked URLs, or from what --mirror FROM=TO makes of them.

Needs Python 3.11 or newer and uv, which an installed environment has:
    ~/.local/share/colab-local/current/cpu/bin/python scripts/bundle.py
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.downloads import PARALLEL_DOWNLOADS, parse_rules
from colab_local.base.errors import EXIT_OK
from colab_local.base.terminal import Screen
from colab_local.base.text import megabytes
from colab_local.install import bundling
from colab_local.install.lockfiles import DEFAULT_ENVIRONMENT, REPOSITORY, conda_platform

ENGINES = ("miniforge", "anaconda", "pixi", "conda", "host")


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="bundle.py", description=__doc__, modes=())
    here = conda_platform(os.uname().sysname, os.uname().machine)
    parser.add_argument("--env", default=DEFAULT_ENVIRONMENT, help="environment (default: %(default)s)")
    parser.add_argument("--platform", default=here, help="of the machine that it is for (default: %(default)s)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="miniforge",
        help="who makes the environment there; conda: one that is there already; host: its Python, no conda layer",
    )
    parser.add_argument(
        "--python", default="", metavar="3.X", help="minor version of that machine's Python, for --engine host"
    )
    parser.add_argument("--output", metavar="FILE", help="default: colab-local-ENV-PLATFORM.tar here")
    parser.add_argument("--mirror", action="append", default=[], metavar="FROM=TO", help="as bootstrap.py's")
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(1, 17),
        metavar="N",
        default=PARALLEL_DOWNLOADS,
        help="downloads at a time (default: %(default)s)",
    )
    parser.add_argument("--lockfiles", default=str(REPOSITORY / "lockfiles"), metavar="DIR", help="as bootstrap.py's")
    parser.add_argument("--sign", metavar="KEY", default="", help="sign it with this ssh key")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return parser


def bundle(args: argparse.Namespace, screen: Screen) -> int:
    """Make the bundle and say how to use it; return the exit code."""
    started = time.monotonic()
    choice = bundling.choose(Path(args.lockfiles).absolute(), args.env, args.platform, args.engine, args.python)
    rules = parse_rules(os.environ.get("COLAB_LOCAL_MIRROR", "").split() + args.mirror)
    output = Path(args.output or f"colab-local-{choice.env}-{choice.platform}.tar").absolute()
    made = bundling.make(choice, output, screen, rules, args.jobs, args.sign)
    size, count = output.stat().st_size, len(made.manifest["sha256"])
    if args.json:
        screen.show_document(
            {
                "ok": True,
                "output": str(output),
                "bytes": size,
                "sha256": made.sha256,
                "environment": choice.env,
                "platform": choice.platform,
                "engine": choice.engine,
                "python": choice.python,
                "files": count,
                "changed": made.changed,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        return EXIT_OK
    screen.say(
        f"{'Wrote' if made.changed else 'Nothing to do: there is'} {output} ({megabytes(size)}, {count} files)"
    )
    screen.say(f"sha256 {made.sha256}")
    screen.say("On the other machine, in the folder that it was copied to:")
    option = "" if choice.env == DEFAULT_ENVIRONMENT else f" --env {choice.env}"
    command = f"python3 colab-local/bootstrap.py{option} --engine {choice.engine} --offline colab-local"
    screen.say(f"tar -xf {output.name} && {command}")
    if choice.engine == "host":
        screen.say(f"It needs Python {choice.python} there.")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, make the bundle, and return the exit code."""
    return run_program(make_parser(), bundle, argv, interrupted="run the same command again: it goes on from here")


if __name__ == "__main__":
    sys.exit(main())
