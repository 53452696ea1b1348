"""The server extension and settings of environments/jupyter, in small environments with real servers.

What needs TensorFlow is in test_jupyter_installed.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.colab_client import (
    TRANSPORTS,
    Blocked,
    Colab,
    Direct,
    OverWebSocket,
    Refused,
    Server,
    connect,
    diagnose,
    open_transport,
)
from tests.support.jupyter_servers import (
    ENABLE,
    Running,
    jupyter_environment,
    make_environment,
    noise,
    pythons,
    serve,
    site_packages,
)

TORNADOS = ("6.4", "6.5", "6.6")
NEWEST = list(pythons())[-1]
TOKEN = "0123456789abcdef-from-a-file"
SHOW_PLACE = (
    "import os, shutil, sys; print(sys.prefix, shutil.which('pip'), os.environ.get('PYTHONDONTWRITEBYTECODE'))"
)
NO_KERNEL = "/api/kernels/00000000-0000-0000-0000-000000000000/channels"


@pytest.fixture(scope="module")
def prefix(base: Path) -> Path:
    """The environment with the newest Python and tornado, mended."""
    return jupyter_environment(base, NEWEST, TORNADOS[-1])


@pytest.fixture(scope="module")
def server(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with Colab's flags, whose token comes from a file that an editor has ended with a line end."""
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text(TOKEN + "\n")
    (home / "token").chmod(0o600)
    with serve(prefix, home, env={"JUPYTER_TOKEN_FILE": str(home / "token")}) as running:
        yield running


def elsewhere(running: Running, token: str | None = None) -> Server:
    """Return the server as a page behind a tunnel sees it: on a port where nothing listens on the server's side."""
    url = f"http://localhost:1/?token={running.token if token is None else token}"
    return Server(url, dial=("127.0.0.1", running.port))


def matrix() -> list[tuple[str, str]]:
    """Return (Python, tornado) pairs: every Python, every tornado, and both ends with each other."""
    have = list(pythons())
    pairs = [*zip(have, TORNADOS, strict=False), (have[0], TORNADOS[-1]), (have[-1], TORNADOS[0])]
    if len(have) < len(TORNADOS):
        pairs = [*itertools.product(have, TORNADOS)]
    return list(dict.fromkeys(pairs))


@pytest.mark.parametrize(("python", "tornado"), matrix())
def test_both_transports_through_any_port(base: Path, tmp_path: Path, python: str, tornado: str) -> None:
    prefix = jupyter_environment(base, python, tornado)
    with serve(prefix, tmp_path / "home") as running:
        for name in TRANSPORTS:
            transport = open_transport(elsewhere(running), name)
            kernelspecs = transport.request("GET", "/api/kernelspecs")
            assert kernelspecs.headers["server"].startswith(f"TornadoServer/{tornado}."), kernelspecs.headers
            colab = Colab(transport)
            assert colab.run(SHOW_PLACE).stdout == f"{prefix} {prefix}/bin/pip None\n"
            colab.close()
            transport.close()
            refused = open_transport(elsewhere(running, "wrong"), name)
            assert refused.request("GET", "/api/status").status == 403
            refused.close()
    # After its end: what a server prints on a file comes late.
    assert [
        line for line in noise(running.log) if "Forbidden" not in line and "403 GET /api/status" not in line
    ] == []


@pytest.mark.parametrize("token", ["wrong", ""])
def test_wrong_token_is_refused(server: Running, token: str) -> None:
    stranger = elsewhere(server, token)
    for name in TRANSPORTS:
        transport = open_transport(stranger, name)
        assert transport.request("GET", "/api/kernelspecs").status == 403
        with pytest.raises(Refused) as refused:
            Colab(transport)
        assert refused.value.status == 403
        transport.close()
    with pytest.raises(Refused):
        open_transport(stranger, "direct").channels(NO_KERNEL, "s")
    with connect(server.url) as colab:  # a kernel that exists is as closed as one that doesn't
        path = f"/api/kernels/{colab.session['kernel']['id']}/channels"
        with pytest.raises(Refused) as refused:
            open_transport(stranger, "http_over_ws").channels(path, "s")
        assert refused.value.status == 403


def test_a_login_of_the_browser_does_not_stand_in_for_the_token(server: Running) -> None:
    good = open_transport(Server(server.url), "direct").request("GET", "/api/kernelspecs")
    cookie = good.headers["set-cookie"].split(";")[0]
    stranger = Server(f"http://localhost:{server.port}/?token=wrong", headers={"Cookie": cookie})
    transport = OverWebSocket(stranger)
    assert transport.request("GET", "/api/kernelspecs").status == 403
    transport.close()


@pytest.mark.parametrize(
    "inner", ["/http_over_websocket/proxied_ws", "/%68ttp_over_websocket/proxied_ws", "/http_over_websocket"]
)
def test_no_socket_within_a_socket(server: Running, inner: str) -> None:
    """One request of 18.7 kB, nested 600 times, took all descriptors of a server, before it looked at the token."""
    for token, status in ((TOKEN, 404), ("wrong", 403)):
        with pytest.raises(Refused) as refused:
            open_transport(elsewhere(server, token), "http_over_ws").channels(inner * 60 + NO_KERNEL, "s")
        assert refused.value.status == status
    descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    with contextlib.suppress(Refused):
        open_transport(elsewhere(server, "wrong"), "http_over_ws").channels(inner * 600 + NO_KERNEL, "s")
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < descriptors + 10


def test_files_with_the_token_are_private(prefix: Path, tmp_path: Path) -> None:
    """In a folder that others may enter, and over what an earlier process of that number left there."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with serve(prefix, tmp_path / "home", env={"JUPYTER_RUNTIME_DIR": str(runtime)}) as running:
            files = [path for path in runtime.iterdir() if path.is_file() and running.token in path.read_text()]
            assert {path.suffix for path in files} == {".json", ".html"}
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    finally:
        os.umask(before)


def test_foreign_origin_is_refused(server: Running) -> None:
    stranger = Server(server.url, origin="https://evil.example")
    with pytest.raises(Refused, match="403"):
        open_transport(stranger, "http_over_ws")
    with pytest.raises(Refused, match="403"):
        diagnose(stranger)
    with pytest.raises(Blocked):
        open_transport(stranger, "direct")


def test_foreign_host_name_is_refused(server: Running) -> None:
    """A name that an attacker points at 127.0.0.1 (DNS rebinding) must not do."""
    stranger = Server(f"http://evil.example:{server.port}/?token={TOKEN}", dial=("127.0.0.1", server.port))
    with pytest.raises(Refused, match="403"):
        open_transport(stranger, "http_over_ws")
    assert stranger.http("GET", "/api/kernelspecs", {}, None).status == 403


def test_login_address_must_be_of_the_same_host(server: Running) -> None:
    transport = OverWebSocket(Server(server.url), auth_url=f"http://localhost:1/?token={TOKEN}")
    assert transport.request("GET", "/api/kernelspecs").status == 500
    transport.close()


def test_diagnosis_knows_the_extension(server: Running) -> None:
    assert diagnose(elsewhere(server))["extension_version"] == "0.0.7"  # 0.0.8 says so of itself


def test_first_question_gets_an_answer_that_browsers_accept(server: Running) -> None:
    direct = Direct(Server(server.url))  # asks it, and raises Blocked if the browser would hide the answer
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Private-Network": "true"}
    answer = direct.server.http("OPTIONS", "/api/colab/build-info", asked, None)
    assert 200 <= answer.status < 300
    assert answer.headers["access-control-allow-private-network"] == "true"
    said = direct.request("GET", "/api/colab/build-info")
    assert said.status == 200
    assert set(said.body) == {"release_tag", "colab_local_jupyter", "prefix"}
    nobody = Server(server.url.replace(TOKEN, "wrong")).http("GET", "/api/colab/build-info", {}, None)
    assert nobody.status == 403
    assert set(nobody.body) == {"message", "colab_local_jupyter"}
    assert nobody.headers["access-control-allow-origin"] == "https://colab.research.google.com"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_large_and_binary_messages_pass(server: Running, transport: str) -> None:
    with connect(server.url, transport) as colab:
        large = colab.run("print('x' * 30_000_000)")
        assert (len(large.stdout), large.stderr) == (30_000_001, "")
        binary = colab.run("from ipykernel.comm import Comm; Comm('t', data={}, buffers=[bytes([0, 255, 128])])")
        assert binary.data[0] == {"comm": {}, "buffers": [bytes([0, 255, 128])]}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_cells_answer_at_once(server: Running, transport: str) -> None:
    """Messages that wait for one another's acknowledgement take at least 40 ms, however idle the machine is."""
    from colab_local.laptop.colab_page import Notebook, parse_url
    from colab_local.laptop.colab_page import open_transport as open_page
    from colab_local.laptop.transport_benchmark import time_cell

    page = open_page(parse_url(server.url), transport)
    with Notebook(page) as notebook:
        assert min(time_cell(notebook, "1", 2) for _ in range(60)) < 0.035
    page.close()


def test_no_token_in_the_log(server: Running) -> None:
    for name in TRANSPORTS:
        transport = open_transport(Server(server.url), name)
        transport.request("GET", f"/api/nothing?token={TOKEN}" if name == "http_over_ws" else "/api/nothing")
        transport.close()
    assert "/api/nothing" in server.log
    assert TOKEN not in server.log


def test_printed_address_is_what_colab_takes(prefix: Path, tmp_path: Path) -> None:
    with serve(prefix, tmp_path / "home") as running:
        assert f"        {running.url}\n" in running.log
        assert len(running.token) >= 32


def test_unknown_version_is_left_alone(base: Path, tmp_path: Path) -> None:
    packages = ("notebook>=6.5.7,<7", "ipykernel", "setuptools", "jupyter_http_over_ws==0.0.7", "tornado==6.4.*")
    prefix = make_environment(base / "other-version", pythons()[NEWEST], *packages)
    with serve(prefix, tmp_path / "home") as running:
        assert "jupyter_http_over_ws 0.0.7 is left as it is: only 0.0.8 is known" in running.log
        with connect(running.url, "direct") as colab:
            handlers = "jupyter_http_over_ws.handlers"
            code = f"import {handlers} as h; print(h._modify_proxy_request_test_only.__module__)"
            assert colab.run(code).stdout == f"{handlers}\n"
        with connect(running.url, "http_over_ws") as colab:
            assert colab.run("1 + 1").result == "2"
        behind_a_tunnel = OverWebSocket(elsewhere(running))
        assert behind_a_tunnel.request("GET", "/api/kernelspecs").status == 500  # its own fault, not mended
        behind_a_tunnel.close()


def test_without_the_extension_the_faults_are_there(base: Path, tmp_path: Path) -> None:
    """What the other tests show to be cured is seen by the same client where it isn't."""
    old = jupyter_environment(base, NEWEST, "6.4", overlay=False)
    with serve(old, tmp_path / "old", ENABLE) as running:
        transport = OverWebSocket(elsewhere(running))
        assert transport.request("GET", "/api/kernelspecs").status == 500
        transport.close()
    assert "migrate_to_notebook7" in "".join(noise(running.log))
    new = jupyter_environment(base, NEWEST, "6.6", overlay=False)
    with serve(new, tmp_path / "new", ENABLE) as running:
        transport = OverWebSocket(Server(running.url))
        with pytest.raises(Refused):
            transport.request("GET", "/api/kernelspecs")
        assert "Invalid header value" in running.log
        transport.close()


def test_no_file_of_a_package_is_overwritten(prefix: Path) -> None:
    from tests.support.jupyter_servers import OVERLAY

    packages = site_packages(prefix)
    owned = set()
    for record in packages.glob("*.dist-info/RECORD"):
        if not record.parent.name.startswith("colab_local_jupyter"):
            owned |= {(packages / line.split(",")[0]).resolve() for line in record.read_text().splitlines()}
    for part, target in (("prefix", prefix), ("site-packages", packages)):
        ours = [target / p.relative_to(OVERLAY / part) for p in (OVERLAY / part).rglob("*") if p.is_file()]
        assert ours
        assert owned.isdisjoint(path.resolve() for path in ours)


def test_flag_for_an_empty_token_is_obeyed(prefix: Path, tmp_path: Path) -> None:
    with serve(prefix, tmp_path / "home", "--NotebookApp.token=") as running:
        assert running.token == ""


def test_ready_check_names_what_is_missing(prefix: Path) -> None:
    import subprocess

    check = [str(prefix / "bin" / "python"), "-m", "colab_local_jupyter"]
    assert subprocess.run(check, capture_output=True, text=True, check=False).stderr == ""
    settings = prefix / "etc" / "jupyter" / "jupyter_notebook_config.d" / "zz_colab_local.json"
    text = settings.read_text()
    try:
        settings.write_text(json.dumps({"NotebookApp": {"nbserver_extensions": {"colab_local_jupyter": True}}}))
        done = subprocess.run(check, capture_output=True, text=True, check=False)
    finally:
        settings.write_text(text)
    assert done.returncode == 1
    assert done.stderr == f"jupyter_http_over_ws is not enabled in {prefix}/etc/jupyter\n"
