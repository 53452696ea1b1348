"""Downloads from a server that means harm, or is broken: bounded, with an end, and an error of two lines."""

from __future__ import annotations

import errno
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colab_local.base import downloads
from colab_local.base.downloads import Download, download, download_all, is_reachable, retry_after
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_MACHINE, EXIT_NETWORK, Failure
from colab_local.base.terminal import Screen

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start a server whose every answer is what the function makes of it; return its URL."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *words: object) -> None:
                """Say nothing."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/file"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a little where a user would wait long."""
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT_S", 2)
    monkeypatch.setattr(downloads, "SLOW_S", 0.3)


def send(content: bytes, **headers: str) -> Answer:
    """Return an answer with these bytes."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send bytes until nobody reads them any more."""
    send(CONTENT)(handler)
    while True:
        try:
            handler.wfile.write(bytes(1 << 16))
        except OSError:
            return


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send a byte now and then."""
    send(b"")(handler)
    for _ in range(200):
        try:
            handler.wfile.write(b"x")
            time.sleep(0.05)
        except OSError:
            return


def redirect(target: str) -> Answer:
    """Return an answer that leads elsewhere."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return answer


def refuse(code: int, wait: str) -> Answer:
    """Return an answer that asks to come later."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Retry-After", wait)
        handler.end_headers()

    return answer


def garbage(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Speak another protocol."""
    handler.connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 3)
    handler.connection.shutdown(socket.SHUT_RDWR)


HOSTILE = {
    "endless": (endless, EXIT_INTEGRITY),
    "one byte more": (send(CONTENT + b"x"), EXIT_INTEGRITY),
    "another file": (send(CONTENT[::-1]), EXIT_INTEGRITY),
    "more promised": (send(CONTENT, Content_Length=str(10**12)), EXIT_INTEGRITY),
    "a byte now and then": (drip, EXIT_NETWORK),
    "cut": (send(CONTENT[:99], Content_Length=str(len(CONTENT))), EXIT_NETWORK),
    "no number": (send(CONTENT, Content_Length="abc"), EXIT_NETWORK),
    "negative": (send(CONTENT, Content_Length="-5"), EXIT_NETWORK),
    "a number without an end": (send(CONTENT, Content_Length="9" * 5000), EXIT_NETWORK),
    "no address": (redirect("http://[::1"), EXIT_NETWORK),
    "no port": (redirect("http://127.0.0.1:port/"), EXIT_NETWORK),
    "ftp": (redirect("ftp://127.0.0.1/file"), EXIT_NETWORK),
    "a file of ours": (redirect("file:///etc/passwd"), EXIT_NETWORK),
    "in a circle": (redirect("/file"), EXIT_NETWORK),
    "another protocol": (garbage, EXIT_NETWORK),
    "later": (refuse(503, "0"), EXIT_NETWORK),
    "much later": (refuse(429, "86400"), EXIT_NETWORK),
    "at a date": (refuse(503, "Fri, 31 Dec 2199 23:59:59 GMT"), EXIT_NETWORK),
    "never": (refuse(503, "never"), EXIT_NETWORK),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_costs_nothing_but_two_lines(
    kind: str, serve: Callable[[Answer], str], tmp_path: Path
) -> None:
    answer, code = HOSTILE[kind]
    started = time.monotonic()
    with pytest.raises(Failure) as caught:
        download(Download(serve(answer), tmp_path / "file", SHA256, len(CONTENT)), Screen())
    assert caught.value.code == code, caught.value.what
    assert caught.value.hint and "\n" not in caught.value.what
    assert time.monotonic() - started < 20
    left = [path for path in tmp_path.iterdir() if kind != "cut" and kind != "a byte now and then"]
    assert sum(path.stat().st_size for path in left) == 0, left  # what was cut is gone on with


def test_a_file_without_a_size_of_its_own_has_the_bound_of_all(
    serve: Callable[[Answer], str], tmp_path: Path
) -> None:
    wanted = Download(serve(endless), tmp_path / "file", SHA256, most=20_000)
    with pytest.raises(Failure, match="more than 20000 bytes"):
        download_all([wanted], Screen())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_has_an_error_of_its_own_and_gets_its_room_back(
    serve: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def count(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(CONTENT)(handler)

    def write(self: object, chunk: bytes) -> None:
        raise downloads._DiskError(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(downloads._Disk, "write", write)
    with pytest.raises(Failure, match="the disk is full") as caught:
        download(Download(serve(count), tmp_path / "file", SHA256, len(CONTENT)), Screen())
    assert caught.value.code == EXIT_MACHINE and caught.value.hint.startswith("df -")
    assert not list(tmp_path.iterdir()) and len(asked) == 1


def test_it_waits_as_long_as_it_was_asked_to(serve: Callable[[Answer], str], tmp_path: Path) -> None:
    times: list[float] = []

    def later(handler: http.server.BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        (refuse(503, "1") if len(times) == 1 else send(CONTENT))(handler)

    download(Download(serve(later), tmp_path / "file", SHA256, len(CONTENT)), Screen())
    assert times[1] - times[0] > 0.95
    assert retry_after({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failure, match="no regular file"):
        download(Download((tmp_path / "pipe").as_uri(), tmp_path / "file", SHA256), Screen())


def test_whether_a_broken_server_can_be_reached(serve: Callable[[Answer], str]) -> None:
    assert is_reachable(serve(send(b"")))
    for answer in (garbage, redirect("http://[::1"), redirect("ftp://127.0.0.1/")):
        assert not is_reachable(serve(answer))
