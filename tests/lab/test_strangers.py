"""localhost is two addresses, and another program may have one of them: nothing ever sends it a token."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, Installed
from tests.support.connecting import DEFAULT_HOME, run, running
from tests.support.hosts import Lab, Machine, needs_root

pytestmark = needs_root

# $1 address, $2 port, $3 what it answers, $4 where it writes down every byte that it hears.
STRANGER = r"""
import os, socket, sys, threading
address, port, kind, log = sys.argv[1:]
BODY = b'{"started": "2026-01-01T00:00:00Z", "kernels": 0, "kernelspecs": {}, "version": "6.5.7"}'
HEAD = b"HTTP/1.1 200 OK\r\nServer: TornadoServer/6.5\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
ANSWERS = {"like Jupyter": HEAD % len(BODY) + BODY, "garbage": b"\0\xff\r\n" * 500, "nothing": b""}
def serve(line):
    with open(log, "ab", 0) as heard:
        while True:
            said = line.recv(1 << 16)
            if not said:
                return
            heard.write(said)
            line.sendall(ANSWERS[kind])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.create_server((address, int(port)), family=family) as server:
    print("up", flush=True)
    threading.Thread(target=lambda: sys.stdin.read() or os._exit(0), daemon=True).start()  # it ends with its stdin
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def stranger(machine: Machine, address: str, port: int, kind: str, heard: Path) -> Iterator[None]:
    """Another program at one of a machine's addresses."""
    argv = [sys.executable, "-I", "-c", STRANGER, address, str(port), kind, str(heard)]
    heard.touch()
    pipe = subprocess.PIPE
    with subprocess.Popen(machine.enter(argv), stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(10)


@pytest.mark.parametrize(
    ("address", "kind"),
    [("127.0.0.1", "like Jupyter"), ("::1", "garbage"), ("127.0.0.1", "nothing")],
)
def test_a_stranger_never_gets_a_token(
    lab: Lab, installed: Installed, tmp_path: Path, address: str, kind: str
) -> None:
    gpubox, there, here = lab.machines["gpubox"], tmp_path / "there", tmp_path / "here"

    def program(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return gpubox.run([sys.executable, str(REPO / name), *options], check=False, timeout=120)

    home = ("--prefix", str(installed.home))
    with contextlib.ExitStack() as stack:
        stack.enter_context(stranger(gpubox, address, 8888, kind, there))
        stack.enter_context(stranger(lab.laptop, address, 8889, kind, here))

        launched = program("bootstrap.py", "--launch", *home)
        assert launched.returncode == 3
        assert "port 8888 is taken by another program" in launched.stderr
        served = program("bootstrap.py", "--service", *home)
        assert "--port=8889" in served.stderr.splitlines()[-1], "the line to start it by hand has a port that is free"

        link = stack.enter_context(running(lab, "gpubox"))
        connected = link.event("connected")
        assert (connected["remote_port"], connected["port"]) == (8889, 8890)
        served = program("bootstrap.py", "--service", *home)
        assert f"Jupyter runs already (process {connected['pid']}, port 8889)" in served.stderr

        # What describes our Jupyter is of the past: its port is the stranger's by now.
        token = (gpubox.home / DEFAULT_HOME / "run/jupyter-token").read_text()
        left = {"pid": connected["pid"], "hostname": "localhost", "port": 8888, "token": token, "base_url": "/"}
        (gpubox.home / ".local/share/jupyter/runtime/nbserver-1.json").write_text(json.dumps(left))
        program("scripts/doctor.py", "--timeout", "5", "http://localhost:8888/")
        assert run(lab, "--status", "gpubox").returncode == 0
        assert program("bootstrap.py", "--launch", *home).returncode == 3
        assert link.end() == 0
        assert run(lab, "--stop", "gpubox").returncode == 0
    tokens = [token, (installed.home / "run/jupyter-token").read_text()]
    for heard in (there, here):
        assert not [one for one in tokens if one.encode() in heard.read_bytes()]
    if address == "127.0.0.1":
        assert there.read_bytes(), "nobody spoke to the stranger: then this shows little"
