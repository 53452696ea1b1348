"""Colab through `ssh -L`: a real sshd and a real Jupyter on a host of its own, the page's client on the laptop.

The 2018 article ends where these tests begin: with another port here than there, the server dialled the port of the
*client's* URL on its own machine, and Colab stayed at "connecting".
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from colab_local.install.jupyter import ssh_line
from colab_local.laptop.transport_benchmark import median_cell
from tests.conftest import REPO, Installed
from tests.support.colab_client import TRANSPORTS, Refused, connect
from tests.support.hosts import Lab, Machine, needs_root, wait_for

pytestmark = needs_root

PLAIN_PORT = 8889  # of the server that runs without our extension


@contextlib.contextmanager
def jupyter(host: Machine, argv: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run the printed command on the host, on `port`, until the block ends; yield its token."""
    command = [re.sub(r"^--port=\d+$", f"--port={port}", word) for word in argv]
    runtime = host.home / ".local/share/jupyter/runtime"

    def described() -> list[dict[str, Any]]:
        with contextlib.suppress(ValueError):  # half written
            found = [json.loads(path.read_text()) for path in runtime.glob("nbserver-*.json")]
            return [server for server in found if server["port"] == port]
        return []

    with log.open("wb") as output:
        process = subprocess.Popen(
            host.enter(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(
            lambda: process.poll() is not None or (bool(described()) and host.listens(port)), 120, f"Jupyter, {log}"
        )
        assert process.poll() is None, log.read_text()
        yield str(described()[0]["token"])
    finally:
        host.run(
            ["pkill", "-TERM", "-f", "--", f"--port={port}"], check=False
        )  # its own process table: nobody else's
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


@contextlib.contextmanager
def tunnel(lab: Lab, local: int, remote: int, *options: str) -> Iterator[None]:
    """Hold the line that bootstrap.py prints open on the laptop, for these ports and with more of ssh's options."""
    printed = ssh_line(remote, "root", "gpubox").replace(f"-L {remote}:", f"-L {local}:")
    program, *words = shlex.split(printed)
    argv = lab.laptop.enter([program, "-T", *options, *words])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or lab.laptop.listens(local), 60, "the tunnel")
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("tunnel")) as made:
        made.host("gpubox")
        yield made


@pytest.fixture(scope="module")
def token(lab: Lab, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "jupyter.log"
    with jupyter(lab.machines["gpubox"], installed.argv, 8888, log) as made:
        yield made


@pytest.mark.parametrize("local", [8888, 58888])
def test_both_transports_run_a_cell_through_ssh(lab: Lab, token: str, local: int) -> None:
    """With the same port on both sides, and with the article's 58888."""
    with tunnel(lab, local, 8888), lab.laptop.network():
        for transport in TRANSPORTS:
            with connect(f"http://localhost:{local}/?token={token}", transport) as colab:
                assert colab.run("import socket; print(socket.gethostname())").stdout == "gpubox\n", transport


def test_cells_answer_at_once_through_the_printed_line(lab: Lab, token: str) -> None:
    """With `ssh -N` sshd holds small packets back, and most cells take 40 ms longer."""
    with tunnel(lab, 58888, 8888), lab.laptop.network():
        assert median_cell(f"http://localhost:58888/?token={token}") < 0.035


def doctor(lab: Lab, url: str) -> list[str]:
    """Return the codes of the faults that the doctor finds at `url`, run on the laptop as its user would."""
    argv = [sys.executable, str(REPO / "scripts" / "doctor.py"), "--json", "-"]
    done = lab.laptop.run(argv, input=url + "\n", check=False)
    return [fault["code"] for fault in json.loads(done.stdout)["faults"]]


def test_the_doctor_on_the_laptop_sees_through_the_tunnel(lab: Lab, token: str) -> None:
    with tunnel(lab, 58888, 8888):
        assert doctor(lab, f"http://localhost:58888/?token={token}") == []
        assert doctor(lab, "http://localhost:58888/?token=wrong") == ["token-wrong"]
        assert doctor(lab, f"http://localhost:58887/?token={token}") == ["nothing-listens"]
    with tunnel(lab, 58888, PLAIN_PORT):  # where nothing listens on the host
        assert doctor(lab, f"http://localhost:58888/?token={token}") == ["tunnel-dead-end"]


def test_a_wrong_token_stays_refused_through_the_tunnel(lab: Lab, token: str) -> None:
    with tunnel(lab, 58888, 8888), lab.laptop.network():
        for transport in TRANSPORTS:
            with pytest.raises(Refused) as refused, connect("http://localhost:58888/?token=wrong", transport):
                pass
            assert refused.value.status == 403


def test_without_the_extension_the_articles_failure_is_back(lab: Lab, installed: Installed, tmp_path: Path) -> None:
    """The same server, ports and tunnel, only our extension off: this is what proves the tests above."""
    off = "--NotebookApp.nbserver_extensions={'jupyter_http_over_ws': True, 'colab_local_jupyter': False}"
    log = tmp_path / "jupyter.log"
    with jupyter(lab.machines["gpubox"], [*installed.argv, off], PLAIN_PORT, log) as token:
        url = f"http://localhost:58889/?token={token}"
        with tunnel(lab, 58889, PLAIN_PORT), lab.laptop.network():
            with pytest.raises(Refused), connect(url, "http_over_ws"):
                pass
            assert "ConnectionRefusedError: [Errno 111]" in log.read_text()
            assert doctor(lab, url) == ["port-mismatch"]
            with connect(url, "direct") as colab:
                assert colab.run("6 * 7").result == "42"
