"""Speak just enough RFB (RFC 6143) to see what a VNC server offers strangers. Needs no password and no DES."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Union

NONE, VNC_AUTH = 1, 2
# macOS Screen Sharing speaks 3.3 to ordinary servers, and there the server picks the type.
RFB_33 = b"RFB 003.003\n"
RFB_37 = b"RFB 003.007\n"
# vino answers a wrong password after 5 s only.
PATIENCE = 15.0
# An arbitrary answer to the challenge: the chance of being right is 2**-128.
WRONG_ANSWER = bytes(range(16))
Where = Union[int, Path]  # a server's TCP port on loopback, or its Unix socket


class Refused(Exception):
    """The server would not talk to us; the text is its reason."""


@dataclass(frozen=True)
class Offer:
    """What a server said first. version: its protocol version; types: security types it offers us."""

    version: bytes
    types: list[int]


def _read(stream: socket.socket, count: int) -> bytes:
    """Read exactly `count` bytes or raise EOFError."""
    data = b""
    while len(data) < count:
        chunk = stream.recv(count - len(data))
        if not chunk:
            raise EOFError(f"closed after {len(data)} of {count} bytes")
        data += chunk
    return data


def _reason(stream: socket.socket) -> str:
    (length,) = struct.unpack(">I", _read(stream, 4))
    return _read(stream, min(length, 4096)).decode(errors="replace")


def _dial(where: Where, timeout: float) -> socket.socket:
    if isinstance(where, int):
        return socket.create_connection(("127.0.0.1", where), timeout)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(str(where))
    except OSError:
        stream.close()
        raise
    return stream


@contextlib.contextmanager
def connect(where: Where, speak: bytes = b"", timeout: float = PATIENCE) -> Iterator[tuple[socket.socket, Offer]]:
    """Shake hands up to the security types.

    speak: the version we claim, b"" for the server's own; timeout: seconds for each answer.

    Raises:
        Refused: the server gave a reason instead of security types.
        OSError, EOFError: nothing listens there, or it is no VNC server.
    """
    with _dial(where, timeout) as stream:
        stream.settimeout(timeout)
        version = _read(stream, 12)
        if not version.startswith(b"RFB "):
            raise Refused(f"this is no VNC server: it said {version!r}")
        stream.sendall(speak or version)
        if (speak or version) >= RFB_37:
            types = list(_read(stream, _read(stream, 1)[0]))
        else:
            (chosen,) = struct.unpack(">I", _read(stream, 4))
            types = [chosen] if chosen else []
        if not types:
            raise Refused(_reason(stream))
        yield stream, Offer(version, types)


def offer(where: Where, speak: bytes = b"", timeout: float = PATIENCE) -> Offer:
    """Return what the server offers a client that claims version `speak`."""
    with connect(where, speak, timeout) as (_, offered):
        return offered


def wrong_login(where: Where, timeout: float = PATIENCE) -> tuple[Offer, bool]:
    """Answer the password challenge wrongly once; return the offer and whether we were let in.

    Once only: after about five failures both Tight- and TigerVNC shut out everybody for ten seconds, and through
    a tunnel everybody is 127.0.0.1.
    """
    with connect(where, timeout=timeout) as (stream, offered):
        if VNC_AUTH not in offered.types:
            return offered, NONE in offered.types
        stream.sendall(bytes([VNC_AUTH]))
        _read(stream, 16)
        stream.sendall(WRONG_ANSWER)
        try:
            (result,) = struct.unpack(">I", _read(stream, 4))
        except (EOFError, ConnectionError):
            return offered, False
        return offered, result == 0
