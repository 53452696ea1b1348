"""What every program says of a wrong line, of a machine that fails it, of a program that does not end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bootstrap
from colab_local.base import certificates
from colab_local.base.command_line import Parser, run_program
from colab_local.base.downloads import Download, download
from colab_local.base.programs import run
from tests.conftest import SCREEN
from tests.support.situations import certified, paste, told, typed


def doing(work: Callable[[], object]) -> Any:
    """Return a program that does this."""
    parser = Parser(prog="bootstrap.py")
    main = partial(run_program, parser, lambda args, screen: int(bool(work())))
    return SimpleNamespace(__file__=bootstrap.__file__, main=main)


SAID = {
    lambda: typed(bootstrap, "install"): "unknown word: install | python3 bootstrap.py",
    lambda: typed(bootstrap, "-Z"): "unknown option: -Z | python3 bootstrap.py --help",
    lambda: typed(doing(lambda: os.kill(os.getpid(), signal.SIGINT))): "interrupted | type the same line again",
    lambda: typed(doing(lambda: Path("/dev/no/file").read_text())): (
        "No such file or directory (/dev/no/file) | ls -ld /dev"
    ),
    lambda: typed(doing(lambda: bytearray(1 << 62))): "this machine's memory has run out | free -m",
    lambda: told(
        lambda: run(["/dev/null", "x"], SCREEN)
    ): "can't run /dev/null (Permission denied) | ls -l /dev/null",
    lambda: told(lambda: run(["sleep", "9"], SCREEN, timeout=0.01)): (
        "sleep did not end within 0 s | type the same line again, once this machine has less to do"
    ),
}


@pytest.mark.parametrize(("situation", "says"), SAID.items(), ids=SAID.values())
def test_what_is_said(situation: Callable[[], str], says: str) -> None:
    said = situation()
    assert said == says
    if " | ls" in said or " | free" in said:
        paste(said)


def test_a_server_with_a_certificate_of_its_own_is_trusted_after_what_the_hint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a company's proxy has one."""
    context, pem = certified(tmp_path)
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        wanted = Download(f"https://localhost:{server.server_port}/proxy.pem", tmp_path / "got", "0" * 64)
        said = told(lambda: download(wanted, SCREEN))
        assert f"can't download {wanted.url}: its certificate is not trusted (self-signed certificate)" in said
        assert "export SSL_CERT_FILE=/the/certificate/of/your/proxy.pem   # then the same command again" in said
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        certificates.bundle.cache_clear()
        assert "is not the file that the lock names" in told(lambda: download(wanted, SCREEN))
        server.shutdown()
