"""Situations in which a hint is given: brought about in this process, told in one line, and pasted into a shell."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import re
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import Failure
from tests.conftest import REPO
from tests.support.provoked import RECORDER
from tests.support.receipts import NAME, write_receipt

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


def home_with(home: Path, **more: Any) -> Path:
    """Return a home with an environment in use, of which there is a receipt and a Python that ends at once."""
    program(home / "envs" / NAME / "bin" / "python", "exit 3")
    write_receipt(home, **more)
    (home / "current").mkdir()
    (home / "current" / "cpu").symlink_to(home / "envs" / NAME)
    return home


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what makes a server speak TLS, with a certificate for localhost that nobody trusts; and that."""
    key, pem = folder / "key.pem", folder / "proxy.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -addext"
    names = ["subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(["openssl", *words.split(), *names], capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context, pem


def hint_of(said: str) -> str:
    """Return the hint of what told() and typed() return."""
    return said.partition(" | ")[2]


def paste(said: str) -> str:
    """Run a hint as a shell takes it; return what it printed. It has to succeed."""
    done = subprocess.run(["bash", "-c", hint_of(said)], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (hint_of(said), done.stderr)
    return done.stdout


Doing = Callable[[Path, pytest.MonkeyPatch], str]
Row = tuple[Doing, str, str]  # what is done in a folder, {at}; a part of the error; the whole hint
LOOKING = ("ls", "free", "df", "getent", "ss", "mkdir", "ps", "id")  # they change nothing, or make a folder


def each(rows: list[Row]) -> pytest.MarkDecorator:
    """Return the mark of a test that is run for every row of a table, and called by its error."""
    return pytest.mark.parametrize("row", rows, ids=[error or str(n) for n, (_, error, _) in enumerate(rows)])


def hold(row: Row, at: Path, patch: pytest.MonkeyPatch) -> None:
    """Bring a situation about and compare what is said; a hint that only looks is typed, and its program takes it."""
    situation, error, hint = row
    (at / "user").mkdir()
    with patch.context() as patched:
        patched.setenv("HOME", str(at / "user"))
        said = situation(at, patched)
    known = {"at": at, "home": at / "user", "uid": os.getuid(), "gid": os.getgid(), "python": sys.executable}
    for name, value in {**known, "me": pwd.getpwuid(os.getuid()).pw_name}.items():
        error, hint = error.replace(f"{{{name}}}", str(value)), hint.replace(f"{{{name}}}", str(value))
    assert error in said
    assert hint_of(said) == hint
    if hint.partition(" ")[0] in LOOKING and shutil.which(hint.partition(" ")[0]):
        done = subprocess.run(["bash", "-c", hint], cwd=at, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, 2) and not re.search(r"usage|invalid|unrecognized", done.stderr, re.I), hint
