"""What servers answer: it ends, by a certain time and after so many bytes, whoever sends it."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any, Mapping, NamedTuple

from colab_local.base.documents import LARGEST


class Answer(NamedTuple):
    """An answer over HTTP. headers: by their names in small letters."""

    status: int
    reason: str
    headers: dict[str, str]
    content: bytes


class Line:
    """A connection to a server whose answers are bounded; it has what http.client wants of a socket.

    A socket's own timeout is for each read alone: who sends a byte now and then keeps us for ever.
    """

    def __init__(self, connection: socket.socket, seconds: float | None, most: int = LARGEST) -> None:
        self.connection = connection
        self.raw = connection.makefile("rb", buffering=0)
        self.expect(seconds, most)

    def expect(self, seconds: float | None, most: int = LARGEST) -> None:
        """Begin an exchange: it has so many seconds (None: any number) and bytes."""
        self.seconds, self.left = seconds, most
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.bounded = True

    def lift(self, timeout: float) -> None:
        """Let the rest come as it may, with `timeout` seconds for each read: a download has bounds of its own."""
        self.bounded = False
        self.connection.settimeout(timeout)

    def hurry(self) -> None:
        """Give the next read or write the time that is left; socket.timeout where that is none."""
        if not self.bounded:
            return
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise socket.timeout(f"no whole answer within {self.seconds:g} s")
        self.connection.settimeout(left)

    def count(self, got: int) -> None:
        """Note so many bytes; OSError where they are too many."""
        if self.bounded:
            self.left -= got
            if self.left < 0:
                raise OSError("its answer has no end")

    def sendall(self, data: Any) -> None:
        """Send all of it."""
        self.hurry()
        self.connection.sendall(data)

    def makefile(self, *_how: Any, **_more: Any) -> io.BufferedReader:
        """Return a file to read from; it stays open when the line is closed, as a socket's does."""
        return io.BufferedReader(_Bounded(self), 1 << 16)

    def close(self) -> None:
        """Close it."""
        self.connection.close()


class _Bounded(io.RawIOBase):
    """What comes over a line."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.line.hurry()
        got = self.line.raw.readinto(buffer) or 0
        self.line.count(got)
        return int(got)

    def close(self) -> None:
        self.line.raw.close()
        super().close()


def ask(
    connection: socket.socket,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    seconds: float = 60.0,
) -> Answer:
    """Make one HTTP request over a connection, which is closed then, and return the answer.

    seconds: until the answer is whole.

    Raises:
        OSError: socket.timeout, or the answer has no end. http.client.HTTPException: it is none.
    """
    speaker = http.client.HTTPConnection("localhost")
    speaker.sock = Line(connection, seconds)
    try:
        speaker.request(method, path, body, dict(headers))
        with speaker.getresponse() as response:
            content = b"".join(iter(lambda: response.read(1 << 16), b""))  # a false length allocates nothing
            if response.length:
                raise http.client.IncompleteRead(content, response.length)
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.reason, names, content)
    finally:
        speaker.close()
        connection.close()
