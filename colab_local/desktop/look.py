"""After writing, look: is what runs now really what was meant? Exit codes prove nothing here.

tightvncserver returns 0 when its X server died, and vino listens on every address when a setting was lost.
"""

from __future__ import annotations

import socket
import stat
import time
from pathlib import Path
from typing import Callable, Iterable, Mapping, TypeVar

from colab_local.base import network

from . import proc, rfb
from .rfb import Where

APPEARS_WITHIN = 30.0  # seconds a server may take until it listens
STAYS_ALIVE = 5.0  # seconds a desktop must live; one that dies of a fault dies sooner
LOCKED_OUT = 12.0  # seconds until a server forgives "too many security failures" (measured)

Answer = TypeVar("Answer")


class Problem(Exception):
    """A check failed; the text is what was found."""


def is_up(where: Where) -> bool:
    """Return whether something listens at a TCP port or a Unix socket; it is not tried."""
    return bool(network.listeners([where]) if isinstance(where, int) else network.unix_listeners(where))


def beyond_loopback(ports: Iterable[int]) -> list[str]:
    """Return "address:port" of everything on `ports` that another machine could reach."""
    return [str(found) for found in network.listeners(ports) if not found.on_loopback]


def x_over_tcp(display: int) -> None:
    """Raise Problem if an X server accepts TCP connections, on whatever address."""
    found = network.listeners([6000 + display])
    if found:
        raise Problem(f"X itself listens on TCP ({found[0]})")


def no_port(port: int, uid: int) -> None:
    """Raise Problem if a program of this user listens on a TCP port, where a Unix socket is meant to replace it."""
    found = [one for one in network.listeners([port]) if one.uid == uid]
    if found:
        raise Problem(f"it listens on TCP as well ({found[0]})")


def private(where: Where) -> None:
    """Raise Problem if what listens there is reachable from outside this machine; a Unix socket never is."""
    outside = beyond_loopback([where]) if isinstance(where, int) else []
    if outside:
        raise Problem(f"it listens beyond loopback ({', '.join(outside)})")


def name(where: Where) -> str:
    """Return a port or a socket in words."""
    return f"port {where}" if isinstance(where, int) else f"the socket {where}"


def working(alive: Callable[[], str | None]) -> None:
    """Raise Problem with what `alive` says is wrong with a server's process, if anything."""
    complaint = alive()
    if complaint:
        raise Problem(complaint)


def listening(
    where: Where, display: int | None, alive: Callable[[], str | None], timeout: float = APPEARS_WITHIN
) -> None:
    """Wait until a server listens, watching all the while that nothing is open to the network.

    display: X display number whose TCP port 6000+N must stay closed, or None; alive: returns what is wrong with
    the server's process, or None; timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        up = is_up(where)  # before the look at where, so that the look is at what is up
        private(where)
        if display is not None:
            x_over_tcp(display)
        if up:
            return
        working(alive)
        if time.monotonic() > deadline:
            raise Problem(f"nothing listens on {name(where)} (waited {timeout:g} s)")
        time.sleep(0.1)


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask a server; one that has shut everybody out for a while is asked again once."""
    try:
        return ask()
    except EOFError:  # gnome-remote-desktop serves one at a time, and needs a moment to see that the last one went
        time.sleep(1)
        return ask()
    except rfb.Refused as refusal:
        if "too many" not in str(refusal).lower():
            raise
    time.sleep(LOCKED_OUT)
    return ask()


def password_wanted(where: Where) -> list[str]:
    """Check that the server wants a VNC password of everybody, old clients included; return what was checked.

    Two connections, one of them a wrong log-in, and only to a server that has just been started or changed:
    TigerVNC counts every connection that ends without a log-in, and shuts everybody out after five, each time for
    twice as long.

    Raises:
        Problem: a stranger gets in, or an ordinary VNC client cannot.
    """
    try:
        offer, inside = _patiently(lambda: rfb.wrong_login(where))
    except (OSError, EOFError, rfb.Refused) as fault:
        raise Problem(f"the server on {name(where)} does not speak VNC with us: {fault}") from None
    if rfb.NONE in offer.types:
        raise Problem(f"it lets everybody in without a password (security types {offer.types})")
    if rfb.VNC_AUTH not in offer.types:
        raise Problem(f"it offers no VNC password log-in (security types {offer.types})")
    if inside:
        raise Problem("it accepted a wrong password")
    try:
        old = _patiently(lambda: rfb.offer(where, rfb.RFB_33))
    except (OSError, EOFError, rfb.Refused) as fault:
        raise Problem(f"an RFB 3.3 client such as macOS Screen Sharing cannot log in: {fault}") from None
    if old.types != [rfb.VNC_AUTH]:
        raise Problem(f"an RFB 3.3 client such as macOS Screen Sharing gets security type {old.types}, not 2")
    return [
        "password log-in is offered, log-in without one is not",
        "a wrong password was refused",
        "RFB 3.3 clients (macOS Screen Sharing) are asked for the password, too",
    ]


def modes(uid: int, wanted: Mapping[Path, int]) -> None:
    """Raise Problem unless every path is a user's alone. uid: the user's number; wanted: {path: permission bits}."""
    for path, mode in wanted.items():
        status = path.lstat()
        found = stat.S_IMODE(status.st_mode)
        if (found, status.st_uid) != (mode, uid):
            raise Problem(
                f"{path} is not private (found mode {found:04o}, uid {status.st_uid}, need {mode:04o}, {uid})"
            )


def refused_from_outside(port: int, timeout: float = 2.0) -> None:
    """Raise Problem if this machine's own network addresses accept a connection to `port`."""
    for address in proc.own_addresses():
        try:
            with socket.create_connection((address, port), timeout):
                raise Problem(f"it accepts connections at this machine's network address {address}")
        except OSError:
            continue


def still_open(where: Where, timeout: float = 5.0) -> str:
    """Return words for an error message if something still listens there after the server was stopped."""
    deadline = time.monotonic() + timeout
    while is_up(where):
        if time.monotonic() > deadline:
            return f"; {name(where)} is STILL OPEN, held by a process that is not ours to end (sudo ss -lxtnp)"
        time.sleep(0.1)
    return ""


def stays_up(alive: Callable[[], str | None], appears: float = 20.0, seconds: float = STAYS_ALIVE) -> None:
    """Wait until `alive` finds nothing wrong, then see that it stays so.

    appears: seconds it may take to come up; seconds: how long it must live from then on.

    Raises:
        Problem: with what `alive` said last.
    """
    deadline = time.monotonic() + appears
    complaint = alive()
    while complaint:
        if time.monotonic() > deadline:
            raise Problem(complaint)
        time.sleep(0.25)
        complaint = alive()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.25)
        working(alive)
