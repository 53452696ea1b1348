"""A client that does what Colab's page does in the browser, on both of its transports, with the `websockets` library.

It is written against the facts about the page, apart from the code it tests (scripts/colab_page.py does the same
with the standard library alone), and it obeys the browser's rules for cross-origin requests: an answer whose headers
don't allow the page's origin with credentials is `Blocked`.

    with connect(url, "direct") as colab:
        assert colab.run("1 + 1").result == "2"
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

import websockets
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

ORIGIN = "https://colab.research.google.com"
TRANSPORTS = ("direct", "http_over_ws")
TIMEOUT = 120.0  # seconds; the slowest answer is the first cell's on a loaded machine


class Blocked(Exception):
    """The browser would not let the page see this answer: the cross-origin headers don't allow it."""


class Refused(Exception):
    """The server said no. `status` is HTTP's, or a WebSocket close code."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


@dataclass
class Answer:
    """An HTTP answer as the page sees it; `body` is parsed JSON, or None when it is something else."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Outputs:
    """What one cell gave: text printed, the value of its last line, an error's name and text, rich data.

    metadata: that of each rich output; asked: what google.colab asked of the page, as (metadata, content).
    """

    stdout: str = ""
    stderr: str = ""
    result: str = ""
    error: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    aborted: bool = False


Answering = Callable[[str, Any], Any]  # what Colab's page answers to a request of this type with this body


class Transport(Protocol):
    """One of the page's two ways to a Jupyter server."""

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        """Make one API request."""

    def channels(self, path: str, session: str) -> ClientConnection:
        """Open the WebSocket to a kernel's channels."""

    def close(self) -> None:
        """Close what the transport holds open."""


@dataclass(frozen=True)
class Server:
    """Where the page believes the server is, and where its bytes go.

    url: what the user pastes into Colab, token included; origin: the page's; dial: (host, port) to connect to
    instead of the URL's, which is what a tunnel does; headers: what else the browser sends, such as cookies.
    """

    url: str
    origin: str = ORIGIN
    dial: tuple[str, int] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.url).query).get("token", [""])[0]

    def socket(self) -> socket.socket:
        parts = urlsplit(self.url)
        return socket.create_connection(self.dial or (parts.hostname or "", parts.port or 80), timeout=TIMEOUT)

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        connection = http.client.HTTPConnection("unused", timeout=TIMEOUT)
        connection.sock = self.socket()
        try:
            connection.request(
                method, path, body, {"Host": self.netloc, "Origin": self.origin, **self.headers, **headers}
            )
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, _json(content))
        finally:
            connection.close()

    def websocket(self, path: str, query: dict[str, str]) -> ClientConnection:
        uri = f"ws://{self.netloc}{path}?{urlencode(query)}"
        try:
            opening = open_websocket(
                uri,
                sock=self.socket(),
                origin=websockets.Origin(self.origin),
                additional_headers=self.headers,
                max_size=None,
                open_timeout=TIMEOUT,
                ping_interval=None,  # browsers send no pings
            )
            return ExitStack().enter_context(opening)  # stays open until its close()
        except websockets.InvalidStatus as refused:
            raise Refused(refused.response.status_code, refused.response.reason_phrase) from refused


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(b")]}'\n"))  # as Colab's page does with what is below /api/colab/
    except ValueError:
        return None


class Direct:
    """Cross-origin requests with credentials straight to Jupyter's API."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.request("GET", "/api/colab/build-info")  # any answer will do that the browser lets through

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        target = f"{path}?{urlencode({'token': self.server.token})}"
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        if content is not None or method not in ("GET", "HEAD", "POST"):  # not a "simple" request
            self.preflight(method, target, list(headers))
        return self.allowed(self.server.http(method, target, headers, content))

    def preflight(self, method: str, target: str, headers: list[str]) -> None:
        asked = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(headers).lower(),
        }
        answer = self.allowed(self.server.http("OPTIONS", target, asked, None))
        if not 200 <= answer.status < 300:
            raise Blocked(f"preflight of {method} {target.split('?')[0]} answered {answer.status}")
        for kind, wanted in (("methods", [method]), ("headers", headers)):
            permitted = answer.headers.get(f"access-control-allow-{kind}", "").lower()
            if any(one.lower() not in permitted for one in wanted):
                raise Blocked(f"preflight allows {kind} {permitted!r}, not {wanted}")

    def allowed(self, answer: Answer) -> Answer:
        """Return `answer` if a page with credentials may read it (Fetch standard, "CORS check")."""
        if answer.headers.get("access-control-allow-origin") != self.server.origin:
            raise Blocked(f"Access-Control-Allow-Origin is {answer.headers.get('access-control-allow-origin')!r}")
        if answer.headers.get("access-control-allow-credentials") != "true":
            raise Blocked("no Access-Control-Allow-Credentials: true")
        return answer

    def channels(self, path: str, session: str) -> ClientConnection:
        return self.server.websocket(path, {"session_id": session, "token": self.server.token})

    def close(self) -> None:
        """Nothing is held open between requests."""


class OverWebSocket:
    """Every request inside one WebSocket; the server makes it to itself (jupyter_http_over_ws)."""

    def __init__(self, server: Server, auth_url: str = "") -> None:
        """auth_url: what the page tells the server to log in with; the address that the user pasted."""
        self.server = server
        self.query = {"min_version": "0.0.7", "jupyter_http_over_ws_auth_url": auth_url or server.url}
        self.ids = itertools.count(1)
        self.socket = server.websocket("/http_over_websocket", self.query)

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        message_id = f"m{next(self.ids)}"
        message = {"path": path, "method": method, "message_id": message_id}
        if body is not None:
            message["body_base64"] = base64.b64encode(json.dumps(body).encode()).decode()
        try:
            self.socket.send(json.dumps(message))
            parts = list(self._parts(message_id))
        except websockets.ConnectionClosed as closed:
            raise Refused(*_close_frame(closed)) from closed
        content = b"".join(base64.b64decode(part.get("data", "")) for part in parts)
        headers = {k.lower(): v for k, v in parts[0].get("headers", {}).items()}
        return Answer(parts[0]["status"], headers, _json(content))

    def _parts(self, message_id: str) -> Iterator[dict[str, Any]]:
        while True:
            part = json.loads(self.socket.recv(TIMEOUT))
            if part.get("message_id") == message_id:
                yield part
                if part.get("done", True):
                    return

    def channels(self, path: str, session: str) -> ClientConnection:
        query = {"session_id": session, **self.query}
        return self.server.websocket(f"/http_over_websocket/proxied_ws{path}", query)

    def close(self) -> None:
        self.socket.close()


def diagnose(server: Server) -> dict[str, Any]:
    """Return what jupyter_http_over_ws says of itself on its diagnostic socket."""
    with server.websocket("/http_over_websocket/diagnose", {"min_version": "0.0.7"}) as diagnosis:
        diagnosis.send("d1")
        return dict(json.loads(diagnosis.recv(TIMEOUT)))


def _close_frame(closed: websockets.ConnectionClosed) -> tuple[int, str]:
    return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "closed without a reason")


class Colab:
    """Colab's page after "Connect": a session with a kernel, and cells run in it."""

    def __init__(self, transport: Transport, answer: Answering | None = None) -> None:
        """answer: what the page says to a request of google.colab, by its type and body; None: it stays silent."""
        self.transport = transport
        self.answer = answer
        self.client = uuid.uuid4().hex
        specs = self._ok("GET", "/api/kernelspecs")
        name = f"colab-{uuid.uuid4().hex}.ipynb"
        model = {"name": name, "path": name, "type": "notebook", "kernel": {"name": specs["default"]}}
        self.session = self._ok("POST", "/api/sessions", model)
        path = f"/api/kernels/{self.session['kernel']['id']}/channels"
        self.channels = transport.channels(path, self.client)

    def _ok(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.transport.request(method, path, body)
        if not 200 <= answer.status < 300:
            raise Refused(answer.status, str(answer.body))
        return answer.body

    def run(self, code: str, timeout: float = TIMEOUT) -> Outputs:
        """Run `code` as one cell and return what it gave once the kernel is idle again (`timeout` in seconds)."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        try:
            outputs = self._outputs(self._send("shell", "execute_request", content), timeout)
            # After an error the kernel drops what is waiting already, for a moment: the user would run it again.
            return self.run(code, timeout) if outputs.aborted else outputs
        except websockets.ConnectionClosed as closed:
            raise Refused(*_close_frame(closed)) from closed

    def _send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        """Send the kernel a message of this kind and return its id."""
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": kind,
            "session": self.client,
            "username": "",
            "version": "5.3",
            "date": datetime.now(UTC).isoformat(),
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self.channels.send(json.dumps({**message, "channel": channel, "buffers": []}))
        return header["msg_id"]

    def _reply(self, message: dict[str, Any]) -> None:
        """Answer a request of google.colab as Colab's page does: on stdin, with the request's number."""
        number = message["metadata"].get("colab_msg_id")
        if number is None or self.answer is None:
            return
        reply: dict[str, Any] = {"type": "colab_reply", "colab_msg_id": number}
        try:
            reply["data"] = self.answer(message["metadata"]["colab_request_type"], message["content"]["request"])
        except Exception as error:
            reply["error"] = str(error)
        self._send("stdin", "input_reply", {"value": reply})

    def download(self, target: str) -> list[bytes]:
        """Return the pieces of a file that files.download offers as the comm `target`, as the page's script does."""
        comm = uuid.uuid4().hex
        self._send("shell", "comm_open", {"comm_id": comm, "target_name": target, "data": {}})
        pieces: list[bytes] = []
        self._send("shell", "comm_msg", {"comm_id": comm, "data": {}})
        while True:
            message = _message(self.channels.recv(TIMEOUT))
            if message["content"].get("comm_id") != comm:
                continue
            if message["msg_type"] == "comm_close":
                return pieces
            pieces += message["buffers"]
            self._send("shell", "comm_msg", {"comm_id": comm, "data": {}})

    def _outputs(self, message_id: str, timeout: float) -> Outputs:
        outputs, waiting = Outputs(), {"idle", "reply"}
        printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        while waiting:
            message = _message(self.channels.recv(timeout))
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "colab_request":
                outputs.asked.append((message["metadata"], content))
                self._reply(message)
            elif kind == "stream":
                printed[content["name"]].append(content["text"])
            elif kind == "error":
                outputs.error = f"{content['ename']}: {content['evalue']}"
            elif kind in ("execute_result", "display_data", "update_display_data"):
                outputs.data.append(content["data"])
                outputs.metadata.append(content["metadata"])
                outputs.result = content["data"].get("text/plain", "")
            elif kind == "comm_open":
                outputs.data.append({"comm": content["data"], "buffers": message["buffers"]})
            elif kind == "status" and content["execution_state"] == "idle":
                waiting.discard("idle")
            elif kind == "execute_reply":
                waiting.discard("reply")
                outputs.aborted = content["status"] == "aborted"
        outputs.stdout, outputs.stderr = "".join(printed["stdout"]), "".join(printed["stderr"])
        return outputs

    def close(self) -> None:
        """End the session, and its kernel with it."""
        self.channels.close()
        self._ok("DELETE", f"/api/sessions/{self.session['id']}")


def _message(received: str | bytes) -> dict[str, Any]:
    """Return a kernel's message; in a binary one JSON and buffers follow a table of offsets."""
    if isinstance(received, str):
        return dict(json.loads(received))
    words = memoryview(received)
    count = int.from_bytes(words[:4], "big")
    offsets = [int.from_bytes(words[4 * i : 4 * i + 4], "big") for i in range(1, count + 1)] + [len(received)]
    parts = [received[start:end] for start, end in itertools.pairwise(offsets)]
    return {**json.loads(parts[0]), "buffers": parts[1:]}


def open_transport(server: Server, name: str) -> Transport:
    """Return the open transport `name`: "direct" or "http_over_ws"."""
    return Direct(server) if name == "direct" else OverWebSocket(server)


@contextmanager
def connect(
    url: str,
    transport: str = "direct",
    *,
    origin: str = ORIGIN,
    dial: tuple[str, int] | None = None,
    answer: Answering | None = None,
) -> Iterator[Colab]:
    """Connect to the Jupyter server at `url`, as pasted into Colab, and leave nothing running there.

    answer: what the page says to google.colab's requests.

    Raises Blocked where the browser would, Refused where the server says no, OSError where nothing listens.
    """
    opened = open_transport(Server(url, origin, dial), transport)
    try:
        colab = Colab(opened, answer)
        try:
            yield colab
        finally:
            colab.close()
    finally:
        opened.close()
