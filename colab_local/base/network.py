"""This machine's ports and addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Iterable, NamedTuple

LOOPBACK = ("127.0.0.1", "::1")  # localhost is both: a browser tries either
LISTEN = "0A"  # in /proc/net/tcp, proc(5)
SO_ACCEPTON = 1 << 16  # a flag in /proc/net/unix: it listens (linux/net.h)


class Listener(NamedTuple):
    """A listening TCP socket. address: as text; inode: the socket's number in /proc; uid: its user's number."""

    address: str
    port: int
    inode: int
    uid: int = -1

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        ip = ipaddress.ip_address(self.address)
        mapped = getattr(ip, "ipv4_mapped", None)
        return bool((mapped or ip).is_loopback)


def parse_listeners(table: str) -> list[Listener]:
    """Return the listening sockets in the text of /proc/net/tcp or tcp6; what is no line of it is passed over.

    An address is a row of 32-bit words in hexadecimal, each in the machine's own byte order.
    """
    found = []
    for fields in map(str.split, table.splitlines()[1:]):
        with contextlib.suppress(ValueError, IndexError, OSError):
            number, _, port = fields[1].partition(":")
            words = [int(number[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(number), 8)]
            family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            if fields[3] == LISTEN:
                address = socket.inet_ntop(family, b"".join(words))
                inode = int(fields[9]) if len(fields) > 9 else 0
                uid = int(fields[7]) if len(fields) > 7 else -1
                found.append(Listener(address, int(port, 16), inode, uid))
    return found


def listeners(ports: Iterable[int] | None = None, tables: Path = Path("/proc/self/net")) -> list[Listener]:
    """Return the sockets that listen in this network namespace, as the kernel lists them; on `ports` if given.

    They are not tried: VNC servers take a connection without a log-in for an attack, and shut everybody out after
    a few. Where the kernel has no such list (macOS), nothing is found: see knows_listeners().
    """
    wanted = None if ports is None else set(ports)
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # a kernel without IPv6
            found += parse_listeners((tables / name).read_text(errors="replace"))
    return [listener for listener in found if wanted is None or listener.port in wanted]


def knows_listeners() -> bool:
    """Return whether this system's kernel lists its sockets in /proc."""
    return Path("/proc/self/net/tcp").exists()


def listens(port: int) -> bool:
    """Return whether something listens at the port on this machine, on whatever address."""
    if knows_listeners():
        return bool(listeners([port]))
    return any(answers(address, port) for address in LOOPBACK)


def unix_listeners(path: Path, table: Path = Path("/proc/self/net/unix")) -> list[int]:
    """Return the numbers (inodes) of the Unix sockets that listen at a path, as the kernel lists them.

    They are not tried, see listeners(). The path must be spelled as by the program that listens there.
    """
    found = []
    with contextlib.suppress(OSError):
        for line in table.read_bytes().splitlines()[1:]:
            fields = line.split(None, 7)
            if fields[3:] and int(fields[3], 16) & SO_ACCEPTON and fields[7:] == [os.fsencode(path)]:
                found.append(int(fields[6]))
    return found


def answers(address: str, port: int) -> bool:
    """Return whether something takes a connection at an address of this machine."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=3):
        return True
    return False


def sockets_of(pid: int) -> set[int] | None:
    """Return the numbers (inodes) of the sockets that a process holds, None where that can't be seen."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind, _, number = os.readlink(link).partition(":")
                if kind == "socket":
                    found.add(int(number.strip("[]")))
    except OSError:
        return None
    return found


def holds_port(pid: int, port: int) -> bool:
    """Return whether a process may be the one that listens at a port: what it wrote of itself may be of the past.

    Where that can't be seen (macOS, another user's process) it may.
    """
    held = sockets_of(pid)
    return held is None or not knows_listeners() or bool(held & {one.inode for one in listeners([port])})


def rivals(port: int) -> tuple[Listener, Listener] | None:
    """Return who listens at localhost's two addresses if these are two programs, else None.

    A browser that is sent to http://localhost:PORT may take either, and whoever is there gets the token.
    """
    found = listeners([port])
    first = _listener_at(found, "127.0.0.1", "0.0.0.0")  # noqa: S104
    second = _listener_at(found, "::1", "::")
    if first is None or second is None or first.inode == second.inode:
        return None
    if first.uid != second.uid:
        return first, second
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and {first.inode, second.inode} <= (sockets_of(int(folder.name)) or set()):
            return None
    return first, second


def _listener_at(found: list[Listener], *addresses: str) -> Listener | None:
    """Return the listener at the first of the addresses that has one."""
    return next((one for address in addresses for one in found if one.address == address), None)


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this port now and have localhost to itself.

    Both of localhost's addresses count: a browser that is sent to http://localhost:PORT may take the other one, and
    whoever listens there would get the token.
    """
    free = False
    for address in LOOPBACK:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                free = True
        except OSError:
            if listeners([port]) or not _lacks(family):
                return False
    return free


def _lacks(family: int) -> bool:
    """Return whether this machine has no loopback of that family (IPv6 is often switched off)."""
    try:
        with socket.socket(family) as probe:
            probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    except OSError:
        return True
    return False


def free_port(preferred: int) -> int:
    """Return the preferred port if it is free on loopback, else the next free one, else any; 0 if there is none."""
    for port in range(preferred, min(preferred + 100, 65536)):
        if port_is_free(port):
            return port
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
    return 0


def address_for_others() -> str:
    """Return the address at which another machine reaches this one, as well as can be known from here."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:
        return connection[2]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1: a datagram socket's connect sends nothing
        return str(probe.getsockname()[0])
    return socket.gethostname()


def ssh_port_for_others() -> int:
    """Return the port of this machine's sshd: the one that this session came through, else the usual one."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return int(connection[3]) if len(connection) == 4 and connection[3].isdigit() else 22


def lowest_port() -> int:
    """Return the lowest port that this user may listen on: 1024 or what the machine says; root may use any."""
    if os.geteuid() == 0:
        return 1
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))
    return 1 if sys.platform == "darwin" else 1024  # macOS has no such limit since 10.14
