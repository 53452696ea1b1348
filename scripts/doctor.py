#!/usr/bin/env python3
"""Find out why Google Colab doesn't connect to a local runtime, and what to type next.

    python3 scripts/doctor.py                              the Jupyter that runs on this machine
    python3 scripts/doctor.py http://localhost:8888        that address; the token is found, or asked for
    python3 scripts/doctor.py -                            the address with its token, read from standard input
    python3 scripts/doctor.py --token-file FILE http://localhost:58888     the token from a file
    python3 scripts/doctor.py --home                       dot files and variables that are known to break things

Does what Colab's page does, from this machine, step by step: reach the address, log in, the cross-origin answers that
the browser insists on, then one cell over each of Colab's two transports. Run it where the browser is: for a remote
machine, on the laptop, with the address that you paste into Colab. Run on the machine with the server, it also sees
which environment the server runs in.

Starts a kernel for a moment and ends it again; changes nothing else. A token is never shown. One may be part of the
address, but then other users of this machine can see it for as long as the doctor runs.

Exit codes: 0 all is well on this side; 1 a fault was found; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_FAILED, EXIT_OK
from colab_local.base.terminal import Screen
from colab_local.base.text import mask, printable
from colab_local.install.home import user_home
from colab_local.install.surroundings import look
from colab_local.laptop.colab_page import Runtime
from colab_local.laptop.cures import BROWSER_ADVICE, Fault, markdown_table
from colab_local.laptop.examination import Examination, PageStep, choose_runtime


def make_parser() -> Parser:
    """Return the command line's parser."""
    intro, _, rest = (__doc__ or "").partition("\n")
    made = Parser(prog="doctor.py", description=intro, epilog=rest)
    made.add_argument("url", nargs="*", metavar="URL", help="the address as pasted into Colab; - reads it from stdin")
    made.add_argument(
        "--home", action="store_true", help="look at your dot files and variables instead, where Jupyter is to run"
    )
    made.add_argument("--token-file", metavar="FILE", help="read the token from FILE; - is standard input")
    made.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for each answer; default 30")
    made.add_argument("--json", action="store_true", help="print the result as one JSON document")
    made.add_argument(
        "--table", action="store_true", help="print all symptoms and cures as a Markdown table, and end"
    )
    return made


def shown(step: PageStep) -> str:
    """Return the line that tells the user about `step`; what is wrong with it comes at the end, with what to do."""
    mark = {"ok": "ok  ", "failed": "FAIL", "skipped": "-   ", "begun": "... "}[step.status]
    where = f"[{step.transport}] " if step.transport else ""
    detail = f": {step.detail}" if step.detail and step.status != "failed" else ""
    return printable(mask(f"{mark} {where}{step.title}{detail}"))


def as_json(
    runtime: Runtime | None,
    steps: list[PageStep],
    faults: list[Fault],
    warnings: list[Fault],
    gpu: dict[str, Any],
    put_right: Callable[[str], str],
) -> str:
    """Return the result as a JSON document; put_right: makes of a command of ours what the user can type."""

    def fault(one: Fault) -> dict[str, str]:
        return {"code": one.code, "what": mask(one.what), "hint": put_right(mask(one.hint))}

    return json.dumps(
        {
            "schema": 1,
            "address": f"http://{runtime.netloc}{runtime.path}" if runtime else None,
            "ok": not faults,
            "steps": [
                {"transport": s.transport, "title": s.title, "status": s.status, "detail": mask(s.detail)}
                for s in steps
            ],
            "faults": [fault(one) for one in faults],
            "warnings": [fault(one) for one in warnings],
            "gpu": gpu or None,
            "browser": None if faults else BROWSER_ADVICE,
        },
        indent=2,
    )


def tell(faults: list[Fault], warnings: list[Fault], screen: Screen) -> None:
    """Print what was found: warnings, then each fault once, the first failed step's first, or the browser's part."""
    for word, found in [("warning", warnings), ("error", faults)]:
        for one in found:
            screen.report(mask(f"{word}: {one.what} [{one.code}]"))
            screen.report("hint: " + screen.put_right(mask(one.hint)))
    if not faults:
        print("\nThis side is fine: Colab can use this runtime on both of its transports.\n" + BROWSER_ADVICE)


def look_at_home(screen: Screen) -> int:
    """Print what is known to break things in this user's home and variables; return the exit code."""
    found = look(user_home(), os.environ)
    serious = [finding for finding in found if finding.breaks]
    if screen.json:
        listed = [finding._asdict() for finding in found]
        print(json.dumps({"schema": 1, "ok": not serious, "findings": listed}, indent=2))
        return EXIT_FAILED if serious else EXIT_OK
    for finding in found:
        screen.report(f"{'warning' if finding.breaks else 'note'}: {finding}")
        screen.report("hint: " + screen.put_right(finding.hint))
    if not serious:
        screen.say("Nothing in your home folder and variables is known to break Jupyter as bootstrap.py starts it.")
    return EXIT_FAILED if serious else EXIT_OK


def examine(args: argparse.Namespace, screen: Screen) -> int:
    """Examine what was named, print the result and return the exit code."""
    if args.table:
        print(markdown_table())
        return EXIT_OK
    if args.home:
        return look_at_home(screen)

    def show(step: PageStep) -> None:
        if not args.json:
            print(shown(step), flush=True)

    runtime: Runtime | None = None
    steps: list[PageStep] = []
    warnings: list[Fault] = []
    gpu: dict[str, Any] = {}
    try:
        runtime = choose_runtime(" ".join(args.url), args.token_file, args.timeout)
        if not args.json:
            print(f"Examining http://{runtime.netloc}{runtime.path}", flush=True)
        examination = Examination(runtime, show)
        examination.run()
        steps, faults, warnings = examination.steps, examination.faults, examination.warnings
        gpu = examination.gpu
    except Fault as fault:
        faults = [fault]
    if args.json:
        print(as_json(runtime, steps, faults, warnings, gpu, screen.put_right))
    else:
        tell(faults, warnings, screen)
    return EXIT_FAILED if faults else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit code."""
    return run_program(make_parser(), examine, argv)


if __name__ == "__main__":
    sys.exit(main())
