"""Situations in which a hint is given: brought about in this process, told in one line, and pasted into a shell."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import Failure
from tests.conftest import REPO
from tests.support.provoked import RECORDER

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def told(act: Callable[[], object]) -> str:
    """Return what a call says that fails: `error | hint`."""
    with pytest.raises(Failure) as caught:
        act()
    RECORDER.hints.add(re.sub(r" !\S+", "", caught.value.hint))
    return f"{caught.value.what} | {caught.value.hint}"


def typed(program: Any, *words: Any) -> str:
    """Type a line of a program of ours, as in a clone; return what it says: `error | hint`."""
    before, argv, original = [signal.getsignal(number) for number in SIGNALS], sys.argv, sys.orig_argv
    umask = os.umask(0o22)
    line = [os.path.relpath(str(program.__file__), REPO), *map(str, words)]
    sys.argv, sys.orig_argv = line, ["python3", *line]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            assert program.main(line[1:]) != 0, said.getvalue()
    finally:
        sys.argv, sys.orig_argv = argv, original
        os.umask(umask)
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    RECORDER.heard(said.getvalue())
    lines = dict(
        line.split(": ", 1) for line in said.getvalue().splitlines() if line.startswith(("error: ", "hint: "))
    )
    return f"{lines['error']} | {lines['hint']}"


def program(file: Path, script: str) -> Path:
    """Write a program that does this."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def hint_of(said: str) -> str:
    """Return the hint of what told() and typed() return."""
    return said.partition(" | ")[2]


def paste(said: str) -> str:
    """Run a hint as a shell takes it; return what it printed. It has to succeed."""
    done = subprocess.run(["bash", "-c", hint_of(said)], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (hint_of(said), done.stderr)
    return done.stdout
