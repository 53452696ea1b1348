"""scripts/doctor.py against real servers, each with one fault: it must name that fault and what to do."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from colab_local.base.network import parse_listeners
from colab_local.install.jupyter import jupyter_argv
from colab_local.laptop import colab_page, cures, examination
from tests.support import pythons as other_pythons
from tests.support.jupyter_servers import (
    ALLOW_CREDENTIALS,
    ALLOW_ORIGIN,
    ENABLE,
    OVERLAY,
    REPO,
    free_port,
    jupyter_environment,
    make_environment,
    pythons,
    serve,
    user_environment,
    uv,
)
from tests.support.pythons import old_pythons

NEWEST = list(pythons())[-1]
DISABLE = "--NotebookApp.nbserver_extensions={'jupyter_http_over_ws': False}"
PASS, FAIL, SKIP = "ok", "failed", "skipped"


@pytest.fixture(scope="module")
def prefix(base: Path) -> Path:
    """An environment as bootstrap.py makes it, without TensorFlow."""
    return jupyter_environment(base, NEWEST, "6.6")


@dataclass
class Diagnosis:
    """What one run of the doctor said."""

    code: int
    text: str
    json: dict[str, Any]

    @property
    def fault(self) -> str:
        """The first fault's code; empty if all is well."""
        return str(self.json["faults"][0]["code"]) if self.json["faults"] else ""

    def last(self, transport: str) -> str:
        """How the last step that wasn't skipped went on `transport`; "skipped" if all were."""
        states = [s["status"] for s in self.json["steps"] if s["transport"] == transport and s["status"] != SKIP]
        return str(states[-1]) if states else SKIP


def examine(home: Path, *argv: str, stdin: str = "", python: str = sys.executable, **env: str) -> Diagnosis:
    """Run the doctor with --json as the user at `home`."""
    done = call(home, "--json", *argv, stdin=stdin, python=python, **env)
    typed_here = re.sub(rf"[^\s\"]+ {re.escape(str(REPO))}/(?=[\w/]+\.py)", "python3 ", done.stdout)
    return Diagnosis(done.returncode, done.stdout + done.stderr, json.loads(typed_here))


def call(
    home: Path, *argv: str, stdin: str = "", python: str = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the doctor's command line as the user at `home`."""
    return subprocess.run(
        [python, str(REPO / "scripts" / "doctor.py"), *argv],
        env=user_environment(home, {"COLAB_LOCAL_HOME": str(home / "colab-local"), **env}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def make_receipt(home: Path, prefix: Path) -> list[str]:
    """Leave `prefix` in the user's home as the environment that bootstrap.py made; return its Jupyter command."""
    place = home / "colab-local"
    (place / "current").mkdir(parents=True)
    name = "cpu-0123456789ab"
    root = place / "envs" / name  # a link would not count as an environment of this home
    shutil.copytree(prefix, root, symlinks=True, copy_function=os.link)
    (place / "current" / "cpu").symlink_to(root)
    lock = {"digest": "0" * 64, "files": {}, "jupyter": {}}
    receipt = {"schema": 2, "name": name, "env": "cpu", "platform": "linux-64", "engine": "host"}
    receipt |= {"layer": "host-3.13", "python": "3.13.1", "lock": lock, "home": str(place)}
    receipt |= {"port": 8888, "notebook_dir": str(home)}
    (place / "receipts" / name).mkdir(parents=True)
    (place / "receipts" / name / "receipt.json").write_text(json.dumps(receipt))
    return jupyter_argv(str(place / "current" / "cpu"), 8888, str(home), os.geteuid() == 0)


# The table "Which settings pass" of the facts about Colab: flags, fault, how each transport ends.
SETTINGS = {
    "token only": ([], "allow-origin-missing", FAIL, FAIL),
    "allow_origin": ([ALLOW_ORIGIN], "allow-credentials-missing", FAIL, PASS),
    "allow_credentials only": ([ALLOW_CREDENTIALS], "allow-origin-missing", PASS, FAIL),
    "both": ([ALLOW_ORIGIN, ALLOW_CREDENTIALS], "", PASS, PASS),
    "star": (["--NotebookApp.allow_origin=*", ALLOW_CREDENTIALS], "allow-origin-star", FAIL, PASS),
    "slash": ([ALLOW_ORIGIN + "/", ALLOW_CREDENTIALS], "allow-origin-slash", FAIL, FAIL),
    "another site": (
        ["--NotebookApp.allow_origin=https://evil.example", ALLOW_CREDENTIALS],
        "allow-origin-other",
        FAIL,
        FAIL,
    ),
    "empty token": (
        [ALLOW_ORIGIN, ALLOW_CREDENTIALS, "--NotebookApp.token="],
        "token-empty",
        SKIP,
        SKIP,
    ),
    "extension not enabled": ([ALLOW_ORIGIN, ALLOW_CREDENTIALS, DISABLE], "extension-missing", PASS, FAIL),
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_row_of_the_settings_table(prefix: Path, tmp_path: Path, settings: str) -> None:
    flags, fault, direct, over_websocket = SETTINGS[settings]
    with serve(prefix, tmp_path, *flags, colab=False) as running:
        found = examine(tmp_path)
    assert (found.fault, found.last("direct"), found.last("http_over_ws")) == (fault, direct, over_websocket)
    assert found.code == (1 if fault else 0)
    assert found.json["browser"] == (None if fault else cures.BROWSER_ADVICE)
    assert running.token == "" or running.token not in found.text


def test_plain_text_and_every_way_to_give_the_token(prefix: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    stranger = tmp_path / "stranger"  # a user who can't read the server's runtime file
    stranger.mkdir()
    with serve(prefix, home) as running:
        address = f"http://localhost:{running.port}"
        (stranger / "token").write_text(running.token + "\n")
        ways = [
            call(home),
            call(stranger, "-", stdin=running.url + "\n"),
            call(stranger, "--token-file", str(stranger / "token"), address),
            call(stranger, "--token-file", "-", address + "/tree", stdin=running.token),
        ]
        for done in ways:
            assert (done.returncode, done.stderr) == (0, ""), done
            assert done.stdout.count("ok  ") == 9
            assert "print(6 * 7) printed 42" in done.stdout
            assert "Apps on device" in done.stdout and "Access this device" in done.stdout
            assert running.token not in done.stdout
        assert examine(stranger, address).fault == "token-missing"
        wrong = call(stranger, address + "/?token=wrong-one")
        assert (wrong.returncode, "wrong-one" in wrong.stdout + wrong.stderr) == (1, False)
        error, hint = wrong.stderr.splitlines()
        assert error == "error: the server refuses the token in the address [token-wrong]"
        assert hint.startswith("hint: ")
        known = examine(home, address + "/?token=x")
        assert known.fault == "token-wrong"
        assert f"{prefix}/bin/jupyter notebook list" in known.json["faults"][0]["hint"]
        assert running.log.count("Kernel started") == running.log.count("Kernel shutdown") == 3 * len(ways)


def test_wrong_port_and_wrong_host(prefix: Path, tmp_path: Path) -> None:
    with serve(prefix, tmp_path) as running:
        found = examine(tmp_path, f"http://localhost:{free_port()}")
        assert found.fault == "wrong-port"
        assert str(running.port) in found.json["faults"][0]["what"]
        assert examine(tmp_path, f"http://127.0.0.1:{running.port}").fault == "not-localhost"
        assert examine(tmp_path, f"http://gpubox:{running.port}").fault == "not-localhost"
        with serve(prefix, tmp_path / "second", env={"JUPYTER_RUNTIME_DIR": str(running.runtime)}) as other:
            several = call(tmp_path)
            assert several.returncode == 2
            assert all(f"http://localhost:{port}" in several.stderr for port in (running.port, other.port))


def test_another_interface(prefix: Path, tmp_path: Path) -> None:
    with serve(prefix, tmp_path / "home", "--ip=127.0.0.2") as running:
        address = f"http://localhost:{running.port}"
        assert examine(tmp_path / "home", address).fault == "other-interface"
        # Another user's server: seen in the machine's table of sockets (proc(5)).
        found = examine(tmp_path, address)
        assert found.fault == "other-interface"
        assert f"127.0.0.2:{running.port}" in found.json["faults"][0]["what"]


def test_nothing_listens_and_what_to_type(prefix: Path, tmp_path: Path) -> None:
    address = f"http://localhost:{free_port()}"
    found = examine(tmp_path, address)
    assert found.fault == "nothing-listens"
    assert found.json["faults"][0]["hint"] == cures.CURES["nothing-listens"].cure.replace("`", "")
    behind_a_tunnel = "python3 bootstrap.py   # or, behind a tunnel: python3 scripts/doctor.py http://localhost:8888"
    assert examine(tmp_path).json["faults"][0]["hint"] == behind_a_tunnel
    argv = " ".join(make_receipt(tmp_path, prefix))
    there = argv.replace("--port=8888", "--port=" + address.rpartition(":")[2])
    for arguments, command in (([], argv), ([address], there)):
        found = examine(tmp_path, *arguments)
        assert (found.fault, found.json["faults"][0]["hint"]) == ("nothing-listens", command)
    shown = call(tmp_path, address)
    assert "FAIL reach the address\n" in shown.stdout, "what is wrong is said once"
    assert shown.stderr.count("nothing listens on") == 1


def test_what_a_server_left_behind_is_not_taken_for_one(prefix: Path, tmp_path: Path) -> None:
    """After a crash or a reboot the runtime file is still there, and its process number is another program's."""
    runtime = tmp_path / ".local" / "share" / "jupyter" / "runtime"
    runtime.mkdir(parents=True)
    left = {"pid": os.getpid(), "hostname": "localhost", "port": free_port(), "token": "old", "base_url": "/"}
    (runtime / f"nbserver-{os.getpid()}.json").write_text(json.dumps(left))
    for arguments in ([], [f"http://localhost:{left['port']}"]):
        assert examine(tmp_path, *arguments).fault == "nothing-listens"
    with serve(prefix, tmp_path) as running:
        assert examine(tmp_path).json["address"] == f"http://localhost:{running.port}/"


def test_jupyter_that_cannot_start(base: Path, tmp_path: Path) -> None:
    """Without setuptools there is no distutils on Python >= 3.12, and neither Jupyter nor the extension loads."""
    gone, missing = ("setuptools", "distutils") if NEWEST != "3.11" else ("six", "six")
    prefix = make_environment(
        base / "broken", pythons()[NEWEST], "notebook>=6.5.7,<7", "jupyter_http_over_ws==0.0.8", "ipykernel"
    )
    subprocess.run([uv(), "pip", "uninstall", "-q", "--python", str(prefix / "bin/python"), gone], check=True)
    make_receipt(tmp_path, prefix)
    found = examine(tmp_path)
    assert found.fault == "extension-not-loadable"
    assert f"No module named '{missing}'" in found.json["faults"][0]["what"]


def test_extension_that_cannot_load_in_a_running_server(base: Path, tmp_path: Path) -> None:
    with serve(jupyter_environment(base, NEWEST, "6.6", overlay=False), tmp_path, ENABLE) as running:
        assert examine(tmp_path).fault == "tornado-cookie"
        broken = tmp_path / "six.py"
        broken.write_text("raise ImportError('this six is broken')")
        found = examination.Examination(colab_page.parse_url(running.url), lambda step: None)
        found.python = str(fake_python(tmp_path, running.python))
        fault = found.no_extension()
    assert (fault.code, "this six is broken" in fault.what) == ("extension-not-loadable", True)


def fake_python(folder: Path, python: str) -> Path:
    """Return a script that runs `python` with `folder` in front of its packages."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{python}" "$@"\n')
    script.chmod(0o755)
    return script


def test_notebook_7(base: Path, tmp_path: Path) -> None:
    packages = ("notebook>=7,<8", "jupyter_http_over_ws==0.0.8", "ipykernel", "setuptools")
    prefix = make_environment(base / "notebook-7", pythons()[NEWEST], *packages, overlay=False, locked=False)
    with serve(prefix, tmp_path):
        assert examine(tmp_path).fault == "notebook-7"
    argv = make_receipt(tmp_path, prefix)
    with serve(prefix, tmp_path):
        assert " ".join(argv) in examine(tmp_path).json["faults"][0]["hint"]


@pytest.mark.parametrize("overlay", [False, True])
def test_other_port_on_this_side_of_a_tunnel(base: Path, tmp_path: Path, overlay: bool) -> None:
    """As through `ssh -L`: nothing listens on the address's port where the server runs.

    Done inside this process, for on one machine a real tunnel would hide the fault: the server would find it.
    """
    prefix = jupyter_environment(base, NEWEST, "6.6", overlay=overlay)
    with serve(prefix, tmp_path, *([] if overlay else [ENABLE])) as running:
        runtime = colab_page.Runtime("localhost", free_port(), running.token, dial=("127.0.0.1", running.port))
        examined = examination.Examination(runtime, lambda step: None)
        examined.run()
    codes = [fault.code for fault in examined.faults]
    assert codes == ([] if overlay else ["port-mismatch"])


@pytest.mark.parametrize(
    ("cell", "warned", "detail"),
    [
        ('print(\'GPU: {"ok": true, "sentence": "Your GPU is used: A10, 9x the CPU"}\')', [], "A10, 9x the CPU"),
        ('print(\'GPU: {"ok": false, "sentence": "Your GPU is not used: x"}\')', ["gpu-not-used"], ""),
        ("import os; print('LLVM ERROR: out of ideas')", ["gpu-not-used"], ""),
    ],
)
def test_the_gpu_is_asked_for_in_a_kernel(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, warned: list[str], detail: str
) -> None:
    """The cell's answer is played; tests/real/test_gpu.py has the real one."""
    monkeypatch.setattr(examination, "HAS_GPU", "print('yes')")
    monkeypatch.setattr(examination, "GPU", cell)
    with serve(prefix, tmp_path) as running:
        shown: list[str] = []
        examined = examination.Examination(colab_page.parse_url(running.url), lambda step: shown.append(step.title))
        examined.run()
    assert [w.code for w in examined.warnings if w.code == "gpu-not-used"] == warned and not examined.faults
    assert any("takes a moment" in title for title in shown)
    assert (examined.steps[-1].title == "use the GPU") == bool(detail) and detail in examined.steps[-1].detail


def test_server_from_another_environment(prefix: Path, base: Path, tmp_path: Path) -> None:
    make_receipt(tmp_path, jupyter_environment(base, NEWEST, "6.4"))
    with serve(prefix, tmp_path):
        found = examine(tmp_path)
    assert (found.code, found.fault) == (0, "")
    assert [warning["code"] for warning in found.json["warnings"]] == ["other-environment"]
    assert str(prefix) in found.json["warnings"][0]["what"]


def test_server_older_than_this_copy(prefix: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(OVERLAY / "site-packages" / "colab_local_jupyter", older / "colab_local_jupyter")
    module = older / "colab_local_jupyter" / "__init__.py"
    module.write_text(re.sub(r'__version__ = ".+"', '__version__ = "0.1"', module.read_text()))
    with serve(prefix, tmp_path / "home", env={"PYTHONPATH": str(older)}):
        found = examine(tmp_path / "home")
    assert (found.code, found.fault) == (0, "")
    warning = found.json["warnings"][0]
    assert warning["code"] == "other-environment"
    assert warning["what"].startswith("the server's extension is 0.1, this copy of colab-local has ")


def test_kernel_that_does_not_start(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit('broken on purpose')")
    with serve(prefix, tmp_path, env={"PYTHONPATH": str(tmp_path)}):
        found = examine(tmp_path, "--timeout", "4")
    assert found.fault == "kernel-fails"
    hints = [str(fault["hint"]) for fault in found.json["faults"]]
    assert all(hint.endswith("bootstrap.py --verify   # checks the environment") for hint in hints), found.json[
        "faults"
    ]


def test_a_kernel_that_is_killed_is_called_so(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not after a minute's wait for an answer that can't come."""
    monkeypatch.setattr(examination, "TENSORFLOW", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with serve(prefix, tmp_path) as running:
        examined = examination.Examination(colab_page.parse_url(running.url), lambda step: None)
        began = time.monotonic()
        examined.run()
    assert time.monotonic() - began < 60
    for fault in examined.faults:
        assert fault.code == "kernel-fails" and "process ended: it was killed" in fault.what
        assert fault.hint.startswith("free -m   # ")
    assert len(examined.faults) >= 1


def test_a_stranger_at_the_other_address_of_localhost_gets_no_token(prefix: Path, tmp_path: Path) -> None:
    """A browser, and a client like this one, may take ::1 where Jupyter has 127.0.0.1 alone."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as stranger:
        port = stranger.getsockname()[1]
        with serve(prefix, tmp_path, port=port) as running:
            found = examine(tmp_path, running.url)
            assert found.fault == "two-programs"
            assert f"127.0.0.1:{port} and [::1]:{port}" in found.json["faults"][0]["what"]
            assert found.last("direct") == found.last("http_over_ws") == SKIP
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_a_token_of_the_past_is_not_sent_to_who_has_the_port_now(tmp_path: Path) -> None:
    """The process that wrote it lives and holds another port by now."""
    runtime = tmp_path / ".local" / "share" / "jupyter" / "runtime"
    runtime.mkdir(parents=True)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        saying() as (port, heard),
    ):
        left = {"pid": other.pid, "hostname": "localhost", "port": port, "token": "secret-of-old", "base_url": "/"}
        (runtime / f"nbserver-{other.pid}.json").write_text(json.dumps(left))
        for arguments in ([], [f"http://localhost:{port}"]):
            examine(tmp_path, *arguments)
        other.kill()
    assert heard
    assert "secret-of-old" not in "".join(heard)


@contextlib.contextmanager
def saying() -> Iterator[tuple[int, list[str]]]:
    """Yield the port of a web server that answers 200 to all, and what it is sent."""
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.requestline + str(self.headers))
            body = b'{"version": "6.5.7"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], heard
        server.shutdown()


def test_a_tensorflow_that_is_not_the_environments_is_named(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("__version__ = '1.0'\n")
    with serve(prefix, tmp_path):
        found = examine(tmp_path)
        assert found.fault == "tensorflow-fails"
        assert f"a cell imports TensorFlow from {tmp_path}/tensorflow.py" in found.json["faults"][0]["what"]
        (tmp_path / "tensorflow.py").write_text("raise ImportError('no numpy of this kind')")
        found = examine(tmp_path)
        assert found.fault == "tensorflow-fails"
        assert "ImportError: no numpy of this kind" in found.json["faults"][0]["what"]


PASTED = (
    "'{url}'",
    "<{url}>",
    "\u201c{url}\u201d",
    "\u00a0{url}\u00a0",
    " or {url}",
    "Backend URL: {url}.",
    "{url}\u200b",
    "`{url}`",
    "{url}\r\n",
)


@pytest.mark.parametrize("pasted", PASTED)
def test_what_surrounds_a_pasted_address_is_taken_off(pasted: str) -> None:
    for url in ("http://localhost:8888/?token=abc", "http://localhost:8888/base/?token=a.b-c_d"):
        found = colab_page.parse_url(pasted.format(url=url))
        assert found.url == url


def test_an_https_address_is_told_apart(tmp_path: Path) -> None:
    done = call(tmp_path, "https://localhost:8888/?token=abc")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the address must begin with http:// (found https://): ")
    assert call(tmp_path, "or", f"http://localhost:{free_port()}/?token=abc").returncode == 1


@contextlib.contextmanager
def listener(answer: str) -> Iterator[str]:
    """Yield the address of a program that "hangs up", as a tunnel to nowhere does, "waits", or says something."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve_forever() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    if answer == "hangs up":
                        held.pop().close()
                    elif answer != "waits":
                        held[-1].sendall(answer.encode())

        threading.Thread(target=serve_forever, daemon=True).start()
        yield f"http://localhost:{server.getsockname()[1]}/?token=x"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("hangs up", "tunnel-dead-end"),
        ("waits", "no-answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "not-jupyter"),
        ("RFB 003.008\n", "desktop-port"),
    ],
)
def test_what_is_not_a_web_server(tmp_path: Path, answer: str, fault: str) -> None:
    with listener(answer) as address:
        assert examine(tmp_path, "--timeout", "2", address).fault == fault


def test_a_server_that_speaks_https(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = examine(tmp_path, f"http://localhost:{server.server_port}/?token=x")
        server.shutdown()
    assert found.fault == "not-jupyter"
    assert "speaks https" in found.json["faults"][0]["what"]


class HalfBroken(http.server.BaseHTTPRequestHandler):
    """Knows its version, as Notebook 6 does, and fails at everything else."""

    def do_GET(self) -> None:
        works = self.path == "/api"
        body = b'{"version": "6.5.7"}' if works else b""
        self.send_response(200 if works else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_jupyter_that_fails_in_a_way_of_its_own(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HalfBroken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = examine(tmp_path, f"http://localhost:{server.server_port}/?token=x")
        server.shutdown()
    assert (found.fault, found.last("")) == ("server-error", FAIL)
    assert found.json["faults"][0]["what"] == "the server answers 500 to the token"


def test_a_web_server_that_is_not_jupyter(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert examine(tmp_path, f"http://localhost:{server.server_port}/?token=x").fault == "not-jupyter"
        server.shutdown()


@pytest.mark.parametrize(
    "argv", [["https://localhost:8888"], ["http://"], ["--token-file", "no-such-file", "http://localhost:1"]]
)
def test_wrong_usage(tmp_path: Path, argv: list[str]) -> None:
    done = call(tmp_path, *argv)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .+\nhint: .+/scripts/doctor.py --help\n", done.stderr)


def test_help_teaches(tmp_path: Path) -> None:
    done = call(tmp_path, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--token-file", "--json", "Exit codes", "http://localhost:8888"))


def test_runs_on_old_pythons(tmp_path: Path) -> None:
    """A laptop has whatever Python it has; 3.8 is the oldest that is promised."""
    for old in old_pythons() or [other_pythons.demand("3.8")]:
        found = examine(tmp_path, f"http://localhost:{free_port()}", python=old)
        assert found.fault == "nothing-listens", found


def test_the_machines_table_of_sockets_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
        if tables[0].exists():
            found = [entry[:2] for table in tables for entry in parse_listeners(table.read_text())]
            assert server.getsockname()[:2] in found
    six = "  sl\n   0: 00000000000000000000000001000000:22B8 00000000000000000000000000000000:0000 0A\n"
    assert [tuple(one) for one in parse_listeners(six)] == [("::1", 8888, 0, -1)]
