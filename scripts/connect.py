#!/usr/bin/env python3
"""Reach the Jupyter of another machine from Colab's page on this one, in one command.

    python3 scripts/connect.py --install --gpu me@gpubox    copies this program there, installs, connects
    python3 scripts/connect.py me@gpubox                    Jupyter there, its URL here
    python3 scripts/connect.py --open gpubox                gpubox from ~/.ssh/config; opens Colab too
    python3 scripts/connect.py -J me@gate -p 2222 me@gpubox  through a jump host, any of ssh's options
    python3 scripts/connect.py --desktop me@gpubox          its desktop too (VNC at localhost:55901)
    python3 scripts/connect.py --slurm --sbatch="--gres=gpu:1" me@login    on a compute node behind me@login
    python3 scripts/connect.py --stop me@gpubox             stop Jupyter there

Runs on the laptop: Linux, macOS or WSL, Python >= 3.8 (standard library), the system's ssh. The other machine
needs Python >= 3.8 and an environment: --install makes it, and a line that drops meanwhile does not end it. One
ssh connection, one login: it looks for a running Jupyter, starts one if there is none (it outlives the connection),
forwards a free port of this machine to it, waits until Jupyter
answers through it and prints the URL for Colab. A lost line is opened again; kernels keep their variables.
Ctrl-C closes the line and says what still runs.
"""

from __future__ import annotations

import os
import sys

if os.name == "nt":  # before what follows asks for modules that Windows has not
    sys.stderr.write("error: this runs on Linux, macOS and WSL\nhint: wsl --install   # in PowerShell\n")
    sys.exit(3)

import argparse
import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, port_number, run_program, typed_program
from colab_local.base.errors import AGAIN, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.temporary import temporary_folder
from colab_local.base.terminal import Screen
from colab_local.laptop.session import Session, Wish


def make_parser() -> Parser:
    """Return the parser of connect.py's options."""
    parser = Parser(
        prog="connect.py",
        description=__doc__,
        epilog="exit codes: 0 ended by Ctrl-C, or done; 1 failed; 2 usage; 5 the host can't be reached",
    )
    add = parser.add_argument
    add("destination", metavar="[USER@]HOST", help="as for ssh; an alias from ~/.ssh/config too")
    add("--open", action="store_true", help="open Colab in the browser")
    add("--desktop", action="store_true", help="forward its desktops too: VNC port 5901 there is 55901 here")
    add(
        "--port",
        type=port_number,
        help="port on this machine (default: the same as there, or the next free one)",
    )
    add(
        "--remote-port",
        type=port_number,
        help="port there, if Jupyter has to be started (default: bootstrap.py's)",
    )
    add("--install", action="store_true", help="install there first; a line that drops does not end it")
    add("--cpu", dest="env", action="store_const", const="cpu", help="as --env cpu")
    add("--gpu", dest="env", action="store_const", const="gpu", help="as --env gpu")
    add("--env", help="environment there: cpu, gpu ... (default: the one installed last)")
    add("--bootstrap", default="", metavar="OPTIONS", help='with --install: --bootstrap="--engine host"')
    add("--home", help="folder there that bootstrap.py installed into (default: its default)")
    add("--status", action="store_true", help="say whether Jupyter runs there, change nothing")
    add("--stop", action="store_true", help="stop Jupyter there (with --slurm: cancel the job)")
    add("--slurm", action="store_true", help="run Jupyter as a job on a compute node behind the login node HOST")
    add("--sbatch", default="", metavar="OPTIONS", help='for the job: --sbatch="--gres=gpu:1 --time=4:00:00"')
    add(
        "--json",
        action="store_true",
        help="one JSON object a line on stdout for each event; people read stderr",
    )
    add("-v", "--verbose", action="store_true", help="show what ssh says")
    ssh = parser.add_argument_group("ssh's own options, passed on")
    ssh.add_argument("-p", dest="ssh_port", type=port_number, metavar="PORT", help="ssh's port on the host")
    ssh.add_argument("-l", dest="login", default="", metavar="USER", help="as USER@ before the host")
    ssh.add_argument("-J", dest="jump", metavar="[USER@]JUMP[:PORT]", help="jump host(s)")
    ssh.add_argument("-i", dest="identity", action="append", default=[], metavar="KEY", help="a private key's file")
    ssh.add_argument("-F", dest="config", metavar="CONFIG", help="instead of ~/.ssh/config")
    ssh.add_argument(
        "-o", dest="option", action="append", default=[], metavar="NAME=VALUE", help="any of ssh_config(5)"
    )
    ssh.add_argument("--ssh", default="ssh", metavar="PROGRAM", help="another ssh program")
    return parser


def ssh_options(args: argparse.Namespace, for_node: bool = False) -> tuple[str, ...]:
    """Return ssh's own options as the user gave them.

    for_node: those that make sense for a compute node too (not the login node's port, user, jump host).
    """
    given = [("-F", args.config), *(("-i", identity) for identity in args.identity)]
    if not for_node:
        given += [("-p", args.ssh_port), ("-J", args.jump), ("-l", args.login or None)]
    given += [("-o", option) for option in args.option]
    return tuple(word for flag, value in given if value is not None for word in (flag, str(value)))


def install_options(args: argparse.Namespace) -> tuple[str, ...]:
    """Return bootstrap.py's options on the other machine; a login node has no GPU to look for."""
    chosen = ["--env", args.env] if args.env else []
    unchecked = ["--no-gpu-check"] if args.slurm and str(args.env or "").startswith("gpu") else []
    return (*chosen, *unchecked, *shlex.split(args.bootstrap))


def read_wish(args: argparse.Namespace) -> Wish:
    """Return what the command line asks for."""
    if not re.fullmatch(r"(?!-)(.+@)?[^\s@]+", args.destination):
        raise Failure(f"a host can't be named {args.destination!r}", f"{typed_program()} --help", EXIT_USAGE)
    if args.bootstrap and not args.install:
        raise Failure("--bootstrap does nothing without --install", f"{typed_program()} --help", EXIT_USAGE)
    return Wish(
        destination=args.destination,
        options=ssh_options(args),
        node_options=ssh_options(args, for_node=True),
        program=args.ssh,
        login=args.login,
        home=args.home,
        env=args.env,
        port=args.port,
        remote_port=args.remote_port,
        desktop=args.desktop,
        open_colab=args.open,
        slurm=args.slurm,
        sbatch=args.sbatch,
        install=install_options(args) if args.install else None,
    )


def connect(args: argparse.Namespace, screen: Screen) -> int:
    """Do what the command line asks for and return the exit code."""

    def emit(event: dict[str, Any]) -> None:
        if args.json:
            print(json.dumps(event), flush=True)

    # SIGINT too: started from a script's background, Python would have been born deaf to it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    short = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108  (mkdtemp; a socket's name is limited)
    try:
        wish = read_wish(args)
        with temporary_folder(short) as folder:
            session = Session(wish, str(folder), emit, screen)
            if args.stop or args.status:
                return session.once("stop" if args.stop else "status")
            try:
                session.run()
            except KeyboardInterrupt:
                session.farewell()
                emit({"event": "closed"})
            return EXIT_OK
    except (Failure, KeyboardInterrupt) as caught:
        problem = caught if isinstance(caught, Failure) else Failure("interrupted", AGAIN, EXIT_INTERRUPTED)
        hint = screen.put_right(problem.hint)
        emit({"event": "failed", "error": problem.what, "hint": hint, "code": problem.code})
        screen.json = False  # that was this program's one line of JSON
        raise problem from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run connect.py with the given arguments and return its exit code."""
    return run_program(make_parser(), connect, argv)


if __name__ == "__main__":
    sys.exit(main())
