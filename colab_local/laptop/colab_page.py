"""What Colab's page says to a local runtime, on both of its transports; standard library only.

The direct transport makes cross-origin requests to Jupyter's API; the other sends every request through one WebSocket
of the server extension jupyter_http_over_ws. doctor.py and transport_benchmark.py speak through this module.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, NamedTuple, Union
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from colab_local.base import documents
from colab_local.base.answers import Line, ask

ORIGIN = "https://colab.research.google.com"
MIN_VERSION = "0.0.7"  # of jupyter_http_over_ws, as the page asks for it
TRANSPORTS = ("direct", "http_over_ws")
SCRIPT_GUARD = ")]}'\n"


class Refused(Exception):
    """The server refused a WebSocket's handshake with the HTTP status `status`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


class Closed(Exception):
    """The other side closed a WebSocket; `code` is RFC 6455's, 1006 where it just hung up."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with code {code} {reason}".rstrip())
        self.code = code


class Failed(Exception):
    """A request of the page got the HTTP status `status` instead of what it needs."""

    def __init__(self, what: str, status: int, reason: str) -> None:
        super().__init__(f"{what}: {status} {reason}")
        self.status = status


def _without_guard(text: str) -> str:
    return text[len(SCRIPT_GUARD) :] if text.startswith(SCRIPT_GUARD) else text


class Answer(NamedTuple):
    """An HTTP answer: status, headers by lower-case name, and the body."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """Return the body's JSON, or None where it is something else.

        What is below /api/colab/ begins with characters that keep it from being read as a script.
        """
        try:
            return documents.parse(_without_guard(self.content.decode("utf-8")), "the answer")
        except ValueError:
            return None


class Runtime(NamedTuple):
    """The address that the user pastes into Colab, and how long to wait for each answer, in seconds.

    dial: host and port to connect to instead of the URL's; the server still sees the URL's in the Host header.
    """

    host: str
    port: int
    token: str
    path: str = "/"
    timeout: float = 60.0
    dial: tuple[str, int] | None = None

    @property
    def netloc(self) -> str:
        """host:port as the browser's Host header has it."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address with its token, as pasted into Colab."""
        query = "?token=" + quote(self.token, safe="") if self.token else ""
        return f"http://{self.netloc}{self.path}{query}"

    def connect(self) -> socket.socket:
        """Return a connection to the runtime; raises OSError."""
        connection = socket.create_connection(self.dial or (self.host, self.port), self.timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def prefixed(self, path: str) -> str:
        """Return `path` below the server's base URL."""
        return self.path.rstrip("/") + path


# What surrounds an address when it is copied: quotes of all kinds, <...>, blanks that are not seen.
_AROUND = " \t\r\n\u00a0\u200b\u200e\u2060\ufeff\"'`<>()[]{}\u00ab\u00bb\u2018\u2019\u201c\u201d,;"


def cleaned_url(pasted: str) -> str:
    """Return the address in what somebody pasted.

    >>> cleaned_url(" or <http://localhost:8888/?token=abc>\u00a0")
    'http://localhost:8888/?token=abc'
    """
    found = re.search(r"(?i)https?://[^\s<>\"'`\u00a0\u200b\u00ab\u00bb\u2018\u2019\u201c\u201d]+", pasted)
    text = found.group() if found else pasted.strip(_AROUND)
    return text.strip(_AROUND.replace("[", "").replace("]", "")).rstrip(".")


def parse_url(url: str, timeout: float = 60.0) -> Runtime:
    """Return the runtime that `url` names, as it was pasted; raises ValueError saying what is wrong with it.

    What Jupyter prints may end in /tree or /lab; Colab needs the address before that.
    """
    url = cleaned_url(url)
    parts = urlsplit(url if "//" in url else "http://" + url)
    scheme = parts.scheme.lower()
    if scheme == "https":
        raise ValueError(
            "the address must begin with http:// (found https://): Colab takes no https on localhost; where Jupyter "
            "serves https, its settings have a certfile, and the command that bootstrap.py prints does not read it"
        )
    if scheme != "http":
        raise ValueError(f"the address must begin with http:// (found {scheme}://)")
    if not parts.hostname:
        raise ValueError("the address has no host")
    token = parse_qs(parts.query).get("token", [""])[0]
    path = parts.path or "/"
    for page in ("/tree", "/lab"):
        path = path.partition(page)[0] or "/"
    return Runtime(parts.hostname, parts.port or 80, token, path, timeout)


def http_request(
    runtime: Runtime,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    origin: str | None = ORIGIN,
) -> Answer:
    """Make one HTTP request as the page does; raises OSError and http.client.HTTPException."""
    own = {"Host": runtime.netloc, **({"Origin": origin} if origin else {}), **(headers or {})}
    answer = ask(runtime.connect(), method, runtime.prefixed(path), own, body, runtime.timeout)
    return Answer(answer.status, answer.headers, answer.content)


_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """A WebSocket client (RFC 6455) over a plain connection: text and binary messages, pings, closing."""

    def __init__(self, runtime: Runtime, path: str, origin: str | None = ORIGIN) -> None:
        """Connect and shake hands; raises OSError, Refused, or Closed where the server hangs up."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {runtime.prefixed(path)} HTTP/1.1",
            "Host: " + runtime.netloc,
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: " + key,
            "Sec-WebSocket-Version: 13",
        ]
        if origin:
            lines.append("Origin: " + origin)
        self._seconds = runtime.timeout  # for what is not waited for: greetings and goodbyes
        self._line = Line(runtime.connect(), self._seconds)
        self._stream = self._line.makefile()
        try:
            self._line.sendall("\r\n".join([*lines, "", ""]).encode())
            status, reason, headers = self._read_handshake()
            if status != 101:
                raise Refused(status, reason)
            wanted = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()  # noqa: S324
            if headers.get("sec-websocket-accept") != wanted:
                raise Refused(status, "but not to a WebSocket")
        except BaseException:
            self._stream.close()
            self._line.close()
            raise

    def _read_handshake(self) -> tuple[int, str, dict[str, str]]:
        line = self._stream.readline().decode("latin-1").strip()
        protocol, _, rest = line.partition(" ")
        if not protocol.startswith("HTTP/"):
            raise Closed(1006, "during the handshake")
        status, _, reason = rest.partition(" ")
        headers = {}
        for raw in iter(self._stream.readline, b""):
            name, colon, value = raw.decode("latin-1").partition(":")
            if not colon:
                break
            headers[name.strip().lower()] = value.strip()
        return int(status) if re.fullmatch(r"[0-9]{3}", status) else 0, reason, headers

    def send(self, text: str) -> None:
        """Send a text message."""
        self._line.expect(self._seconds)
        self._send_frame(_TEXT, text.encode("utf-8"))

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        mask = os.urandom(4)
        # A client's frames are masked; as one long integer that is as quick as copying.
        stream = (mask * (length // 4 + 1))[:length]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(length, "big")
        self._line.sendall(head + mask + masked)

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, str or bytes; raises Closed, and socket.timeout after `timeout` seconds."""
        self._line.expect(timeout)
        parts: list[bytes] = []
        kind = _TEXT
        while True:
            final, opcode, payload = self._receive_frame()
            if opcode == _PING:
                self._send_frame(_PONG, payload)
            elif opcode == _CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                raise Closed(code, payload[2:].decode("utf-8", "replace"))
            elif opcode != _PONG:
                kind = opcode or kind  # a continuation keeps the first frame's kind
                parts.append(payload)
                if final:
                    message = b"".join(parts)
                    return message.decode("utf-8", "replace") if kind == _TEXT else message

    def _receive_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        length = second & 0x7F
        if length == 126:
            length = struct.unpack("!H", self._read(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", self._read(8))[0]
        if length > documents.LARGEST:
            raise Closed(1009, f"(a message of {length} bytes)")
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        try:
            data: bytes = self._stream.read(count) or b""
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if len(data) != count:
            raise Closed(1006)
        return data

    def close(self) -> None:
        """Say goodbye and close the connection."""
        with suppress(OSError):
            self._line.expect(1.0)
            self._send_frame(_CLOSE, struct.pack("!H", 1000))
        self._stream.close()
        self._line.close()


class Direct:
    """The page's cross-origin requests with credentials, straight to Jupyter's API."""

    name = "direct"

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        """Make one API request; the caller checks the answer's cross-origin headers."""
        content = None if body is None else json.dumps(body).encode("utf-8")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        query = urlencode({"token": self.runtime.token})
        return http_request(self.runtime, method, f"{path}?{query}", headers, content)

    def channels(self, path: str, session: str) -> WebSocket:
        """Open the WebSocket at `path`, a kernel's channels."""
        query = urlencode({"session_id": session, "token": self.runtime.token})
        return WebSocket(self.runtime, f"{path}?{query}")

    def close(self) -> None:
        """Nothing is held open between requests."""


class OverWebSocket:
    """The page's requests inside one WebSocket; the server makes each to itself (jupyter_http_over_ws)."""

    name = "http_over_ws"

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.query = {"min_version": MIN_VERSION, "jupyter_http_over_ws_auth_url": runtime.url}
        self.socket = WebSocket(runtime, "/http_over_websocket?" + urlencode(self.query))

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        """Make one API request; raises Closed where the server hangs up on it."""
        message_id = uuid.uuid4().hex
        message = {"path": self.runtime.prefixed(path), "method": method, "message_id": message_id}
        if body is not None:
            message["body_base64"] = base64.b64encode(json.dumps(body).encode("utf-8")).decode()
        self.socket.send(json.dumps(message))
        status, reason = 0, ""
        headers: dict[str, str] = {}
        parts: list[bytes] = []
        deadline, size = time.monotonic() + self.runtime.timeout, 0
        while True:
            received = self.socket.receive(max(0.1, deadline - time.monotonic()))
            size += len(received)
            if time.monotonic() > deadline or size > documents.LARGEST:
                raise Closed(1009, "(its answer has no end)")
            part = understood(received, _PART)
            if part.get("message_id") != message_id:
                continue
            if "status" in part:
                status, reason = part["status"], str(part.get("statusText"))
                headers = {name.lower(): str(value) for name, value in part.get("headers", {}).items()}
            try:
                parts.append(base64.b64decode(part.get("data", "")))
            except ValueError as problem:
                raise Closed(1007, f"({problem})") from None
            if part.get("done", True):
                return Answer(status, dict(headers, **{":reason": reason}), b"".join(parts))

    def channels(self, path: str, session: str) -> WebSocket:
        """Open the WebSocket at `path`, a kernel's channels, through the server's own proxy."""
        query = urlencode(dict(self.query, session_id=session))
        path = f"/http_over_websocket/proxied_ws{path}?{query}"
        return WebSocket(self.runtime, path)

    def close(self) -> None:
        """Close the WebSocket."""
        self.socket.close()


Transport = Union[Direct, OverWebSocket]
# What the server's extension, Jupyter's API and a kernel say, as far as it is read here.
_PART = {"message_id?": str, "status?": int, "headers?": {"*": None}, "data?": str, "done?": bool}
_SPECS = {"default": str}
_SESSION = {"id": r"[\w-]+", "kernel": {"id": r"[\w-]+"}}
_MESSAGE = {"parent_header": {"msg_id?": str}, "msg_type": str, "content": dict}


def understood(received: str | bytes, shape: Any) -> dict[str, Any]:
    """Return the JSON in a message; raises Closed for what is none, or of another shape."""
    try:
        return dict(documents.parse(received, "the answer", shape))
    except ValueError as problem:
        raise Closed(1007, f"({problem})") from None


def open_transport(runtime: Runtime, name: str) -> Transport:
    """Return the transport `name` of TRANSPORTS to `runtime`; raises OSError, Refused or Closed."""
    return Direct(runtime) if name == "direct" else OverWebSocket(runtime)


class KernelEnded(Exception):
    """The kernel's process ended, and Jupyter starts another one. answered: it had answered before."""

    def __init__(self, answered: bool) -> None:
        super().__init__("the kernel's process ended")
        self.answered = answered


class Notebook:
    """A session with a kernel, as Colab's page has one after "Connect"; a context manager that ends it."""

    def __init__(self, transport: Transport) -> None:
        """Start a kernel; raises Failed where the server refuses, Refused or Closed for its WebSocket."""
        self._transport = transport
        self._client = uuid.uuid4().hex
        self._answered = False
        specs = self._call("list the kernels", "GET", "/api/kernelspecs", shape=_SPECS)
        name = f"colab-{uuid.uuid4().hex}.ipynb"
        model = {"name": name, "path": name, "type": "notebook", "kernel": {"name": specs["default"]}}
        self._session = self._call("start a kernel", "POST", "/api/sessions", model, _SESSION)
        path = "/api/kernels/{}/channels".format(self._session["kernel"]["id"])
        try:
            self._channels = transport.channels(path, self._client)
        except BaseException:
            self._end_session()
            raise

    def _call(self, what: str, method: str, path: str, body: Any = None, shape: Any = None) -> Any:
        answer = self._transport.request(method, path, body)
        if not 200 <= answer.status < 300:
            said = answer.json()
            reason = said.get("message") if isinstance(said, dict) else answer.headers.get(":reason")
            raise Failed(what, answer.status, str(reason or ""))
        said = answer.json()
        wrong = documents.mismatch(said, shape, "its answer")
        if wrong:
            raise Failed(what, answer.status, f"({wrong} is missing or malformed)")
        return said

    def run(self, code: str, timeout: float = 120.0) -> str:
        """Run `code` as one cell and return what it printed, error text included, within `timeout` seconds.

        Raises KernelEnded, socket.timeout, Closed.
        """
        message_id = uuid.uuid4().hex
        header = {
            "msg_id": message_id,
            "msg_type": "execute_request",
            "session": self._client,
            "username": "",
            "version": "5.3",
            "date": datetime.now(timezone.utc).isoformat(),
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self._channels.send(json.dumps(dict(message, channel="shell", buffers=[])))
        return self._printed(message_id, time.monotonic() + timeout)

    def _printed(self, message_id: str, deadline: float) -> str:
        printed: list[str] = []
        waiting = {"idle", "reply"}
        size = 0
        while waiting:
            received = self._channels.receive(max(0.1, deadline - time.monotonic()))
            size += len(received)
            if size > documents.LARGEST:
                raise Closed(1009, "(what it prints has no end)")
            if time.monotonic() > deadline:
                raise socket.timeout("the cell does not end")
            if isinstance(received, bytes):
                continue  # widgets' binary messages; text never comes that way
            message = understood(received, _MESSAGE)
            kind, content = message["msg_type"], message["content"]
            # Jupyter's own words, in answer to nothing (notebook/services/kernels/handlers.py, on_kernel_restarted)
            if kind == "status" and content.get("execution_state") in ("restarting", "dead"):
                raise KernelEnded(self._answered)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            self._answered = True
            if kind == "stream":
                printed.append(str(content.get("text")))
            elif kind == "execute_result":
                data = content.get("data")
                printed.append(str(data.get("text/plain", "") if isinstance(data, dict) else "") + "\n")
            elif kind == "error":
                printed.append("{}: {}\n".format(content.get("ename"), content.get("evalue")))
            elif kind == "status" and content.get("execution_state") == "idle":
                waiting.discard("idle")
            elif kind == "execute_reply":
                waiting.discard("reply")
        return "".join(printed)

    def _end_session(self) -> None:
        self._call("end the session", "DELETE", "/api/sessions/" + self._session["id"])

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._channels.close()
        with suppress(OSError, Closed, Failed):
            self._end_session()
