"""What /proc knows of the processes of a user and of the machine's addresses. Read-only, Linux."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. argv: its command; parent and session: process ids."""

    pid: int
    parent: int
    session: int
    argv: list[str]

    @property
    def name(self) -> str:
        """The name of its program, of its script for an interpreter."""
        words = [w for w in self.argv[:2] if w]
        shells = ("sh", "dash", "bash", "perl", "python3")
        if len(words) == 2 and Path(words[0]).name in shells and not words[1].startswith("-"):
            return Path(words[1]).name
        return Path(words[0]).name if words else ""


def _owner(folder: Path) -> int:
    """Return whose process it is. The folder of one that guards its memory, such as ssh-agent, belongs to root."""
    owner = folder.stat().st_uid
    if owner != 0:
        return owner
    found = re.search(r"^Uid:\s+(\d+)", (folder / "status").read_text(errors="replace"), re.M)
    return int(found.group(1)) if found else owner


def processes(uid: int) -> list[Process]:
    """Return the living processes of one user."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            if _owner(folder) != uid:
                continue
            # The name in stat is in parentheses and may hold anything, so the fields are counted from the last one.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            argv = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            found.append(Process(int(folder.name), int(fields[1]), int(fields[3]), argv))
    return found


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process started with; empty if it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if b"=" in entry)
    return {os.fsdecode(k): os.fsdecode(v) for k, _, v in pairs}


def sockets_of(pid: int) -> set[int]:
    """Return the inodes of the sockets that a process holds open."""
    found = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found


def alive(pid: int) -> bool:
    """Say whether a process with this id exists, whoever owns it."""
    return pid > 0 and Path(f"/proc/{pid}").exists()


def own_addresses() -> list[str]:
    """Return this machine's addresses that others may reach (no loopback, no link-local ones)."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        previous = ""
        for line in Path("/proc/self/net/fib_trie").read_text().splitlines():
            if "/32 host LOCAL" in line:
                found.add(previous.split()[-1])
            previous = line
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/net/if_inet6").read_text().splitlines():
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
    ips = (ipaddress.ip_address(a) for a in found)
    return sorted(str(ip) for ip in ips if not ip.is_loopback and not ip.is_link_local)
