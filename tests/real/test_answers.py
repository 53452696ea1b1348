"""Every answer that a server gives us is bounded in size and time: endless ones, one byte now and then, deep JSON."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import resource
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from colab_local.base import answers, documents, downloads
from colab_local.install import servers
from colab_local.laptop import colab_page, examination
from colab_local.laptop.colab_page import Closed, Direct, Failed, Notebook, OverWebSocket, Refused, Runtime

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SECONDS = 1.0  # that an answer has in these tests
SLACK = 2.5
Speaker = Callable[[socket.socket], None]


def endless(head: bytes, piece: bytes) -> Speaker:
    def speak(line: socket.socket) -> None:
        line.sendall(head)
        while True:
            line.sendall(piece)

    return speak


def dripping(head: bytes, byte: bytes) -> Speaker:
    """One byte every 0.4 s, so that no read alone takes as long as the whole may."""

    def speak(line: socket.socket) -> None:
        line.sendall(head)
        while True:
            line.sendall(byte)
            time.sleep(0.4)

    return speak


def whole(body: bytes, head: bytes = OK) -> Speaker:
    return lambda line: line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def deep(count: int = 100_000) -> bytes:
    return b'{"version": ' + b"[" * count + b"]" * count + b"}"


SPEAKERS: dict[str, Speaker] = {
    "an endless body": endless(OK + b"\r\n", b" " * 65536),
    "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "an endless line": endless(b"HTTP/1.1 200 ", b"x" * 65536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 9999),
    "an endless welcome": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99),
    "a slow body": dripping(OK + b"Content-Length: 9999\r\n\r\n", b" "),
    "a slow line": dripping(b"", b"H"),
    "slow headers": dripping(b"HTTP/1.1 200 OK\r\nA: ", b"b"),
    "slow chunks": dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "nothing": lambda line: time.sleep(9),
    "a length without a body": lambda line: line.sendall(OK + b"Content-Length: 99999999999999999999\r\n\r\n{}"),
    "a chunk without a body": lambda line: line.sendall(
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 30 + b"\r\n{}"
    ),
    "a false length": lambda line: line.sendall(OK + b"Content-Length: -5\r\n\r\n{}"),
    "deep JSON": whole(deep()),
    "deep JSON, just too deep": whole(deep(documents.DEEPEST + 1)),
    "a long number": whole(b'{"version": ' + b"9" * 100_000 + b"}"),
    "a list": whole(b"[1, 2]"),
    "another shape": whole(b'{"version": {"a": 1}, "started": 3, "kernels": "x", "default": []}'),
    "half a surrogate": whole(b'{"version": "\\ud800"}'),
    "no text": whole(b"\xff\xfe\x00"),
    "no HTTP": lambda line: line.sendall(b"SSH-2.0-OpenSSH_9\r\n"),
    "hung up": lambda line: None,
    "another kind of status": lambda line: line.sendall(b"HTTP/1.1 abc OK\r\n\r\n"),
    "a terminal's commands": lambda line: line.sendall(b"HTTP/1.1 500 \033]0;evil\007\r\n\r\n"),
}


@contextlib.contextmanager
def serving(speak: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """Give the port of a server that answers so to whatever is asked."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.settimeout(9)
                speak(self.request, self.request.recv(65536))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def answering(name: str) -> contextlib.AbstractContextManager[int]:
    return serving(lambda line, asked: SPEAKERS[name](line))


@contextlib.contextmanager
def bounded(requests: int = 1) -> Iterator[None]:
    """Demand that what is within ends in time, and without a memory that grows with what was sent."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - started < requests * (SECONDS + SLACK)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 12 * documents.LARGEST >> 10, f"{grown} kB"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte is the limit here: what the limit is does not matter, that there is one does."""
    for module in (documents, answers):
        monkeypatch.setattr(module, "LARGEST", 1 << 20)
    monkeypatch.setattr(answers.Line.expect, "__defaults__", (1 << 20,))
    monkeypatch.setattr(answers.Line.__init__, "__defaults__", (1 << 20,))


@pytest.mark.parametrize("name", SPEAKERS)
def test_jupyters_api(name: str) -> None:
    with answering(name) as port, bounded():
        try:
            said = servers.api(port, "t", "GET", "/api/status", timeout=SECONDS)
        except (OSError, ValueError) as problem:
            assert "\033" not in str(problem)
        else:
            assert documents.mismatch(said, {"started": str, "kernels": int})


@pytest.mark.parametrize("name", SPEAKERS)
def test_the_page(name: str) -> None:
    with answering(name) as port:
        runtime = Runtime("localhost", port, "t", timeout=SECONDS, dial=("127.0.0.1", port))
        with bounded(), contextlib.suppress(OSError, http.client.HTTPException):
            assert not isinstance(Direct(runtime).request("GET", "/api").json(), float)
        with bounded(), pytest.raises((OSError, Refused, Closed)):
            OverWebSocket(runtime)
        with bounded(), pytest.raises((OSError, http.client.HTTPException, Failed)):
            Notebook(Direct(runtime))


@pytest.mark.parametrize("name", SPEAKERS)
def test_the_doctor(name: str) -> None:
    with answering(name) as port, bounded(5):
        runtime = Runtime("localhost", port, "t", timeout=SECONDS, dial=("127.0.0.1", port))
        found = examination.Examination(runtime, lambda step: None)
        found.run()
        assert found.faults


@pytest.mark.parametrize("name", SPEAKERS)
def test_is_somebody_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_S", SECONDS)
    with answering(name) as port, bounded():
        assert downloads.is_reachable(f"http://127.0.0.1:{port}/") in (True, False)


# ---------------------------------------------------------------------------------------------------------
# Over a WebSocket


def frame(payload: bytes, opcode: int = 0x81) -> bytes:
    return bytes([opcode, 127]) + struct.pack("!Q", len(payload)) + payload


def web_socket(speak: Speaker) -> contextlib.AbstractContextManager[int]:
    """Give the port of a server that shakes hands over a WebSocket, and speaks so when it was told something."""

    def after_the_handshake(line: socket.socket, asked: bytes) -> None:
        key = asked.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        accept = base64.b64encode(hashlib.sha1((key + colab_page._GUID).encode()).digest())  # noqa: S324 - RFC 6455
        line.sendall(b"HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        line.recv(65536)
        speak(line)

    return serving(after_the_handshake)


def text(value: object) -> bytes:
    return frame(json.dumps(value).encode())


SOCKETS: dict[str, Speaker] = {
    "a message of 2^62 bytes": lambda line: line.sendall(bytes([0x81, 127]) + struct.pack("!Q", 1 << 62)),
    "an endless message": endless(b"", frame(b" " * 65536, 0x01)),
    "endless pings": endless(b"", frame(b" " * 9, 0x89)),
    "a slow message": dripping(bytes([0x81, 100]), b" "),
    "a slow head": dripping(bytes([0x81, 127]), b"\0"),
    "others' messages": endless(b"", text({"message_id": "another", "done": True})),
    "slow others' messages": dripping(b"", text({"message_id": "another"})),
    "binary messages": endless(b"", frame(b" " * 999, 0x82)),
    "deep JSON": lambda line: line.sendall(frame(deep())),
    "no JSON": lambda line: line.sendall(frame(b"{")),
    "no text": lambda line: line.sendall(frame(b"\xff\xff")),
    "another shape": lambda line: line.sendall(text([1, {"message_id": 3}])),
    "another kind of status": lambda line: line.sendall(text({"status": "x"})),
    "nothing": lambda line: time.sleep(9),
    "hung up": lambda line: None,
    "goodbye": lambda line: line.sendall(frame(b"\x03", 0x88)),
}


@pytest.mark.parametrize("name", SOCKETS)
def test_messages(name: str) -> None:
    with web_socket(SOCKETS[name]) as port:
        runtime = Runtime("localhost", port, "t", timeout=SECONDS, dial=("127.0.0.1", port))
        with bounded(), pytest.raises((OSError, Closed)):
            OverWebSocket(runtime).request("GET", "/api")
        notebook = Notebook.__new__(Notebook)  # as if its kernel had been started
        notebook._client, notebook._channels = "me", colab_page.WebSocket(runtime, "/channels")
        with bounded(), pytest.raises((OSError, Closed)):
            notebook.run("1", timeout=SECONDS)


def test_a_cell_that_prints_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        hex = "mine"

    monkeypatch.setattr("colab_local.laptop.colab_page.uuid.uuid4", Fixed)
    message = {"parent_header": {"msg_id": "mine"}, "msg_type": "stream", "content": {"text": "x" * 9999}}
    for speak in (endless(b"", text(message)), dripping(b"", text(message))):
        with web_socket(speak) as port:
            runtime = Runtime("localhost", port, "t", timeout=SECONDS, dial=("127.0.0.1", port))
            notebook = Notebook.__new__(Notebook)
            notebook._client, notebook._channels = "me", colab_page.WebSocket(runtime, "/channels")
            with bounded(), pytest.raises((OSError, Closed)):
                notebook.run("1", timeout=SECONDS)
