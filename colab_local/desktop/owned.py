"""Which processes belong to a virtual desktop: found by what they own, not by a pid file, which outlives its process.

vnc-session gives everything that it starts a mark in the environment, COLAB_LOCAL_DESKTOP=<display>.<session id>. A
process belongs to the desktop if it has the mark, is the vnc-session or its X server, or is in their POSIX session or
systemd unit. What the user has detached from it (nohup, tmux, screen) is a job of theirs and goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Mapping, Sequence

from colab_local.base.errors import Failure

from . import proc
from .person import Person

MARK = "COLAB_LOCAL_DESKTOP"
# Programs that keep terminals alive when nobody looks at them: what runs in them was detached on purpose.
BUSES = ("dbus.service", "dbus-broker.service")
KEEPERS = ("tmux", "screen", "SCREEN")
ENDS_WITHIN = 15.0  # seconds that vnc-session may take to end everything in order
GOES_WITHIN = 5.0  # seconds that a program may take to end after SIGTERM, and after SIGKILL


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it. ignores_hangup: it was started by nohup; cgroup: its path in the hierarchy."""

    process: proc.Process
    environment: Mapping[str, str] = field(default_factory=dict)
    ignores_hangup: bool = False
    cgroup: str = ""


def _cookie_of(process: proc.Process) -> str:
    """Return the cookie file that an X server was started with, "" for other programs."""
    return next((process.argv[i + 1] for i, word in enumerate(process.argv[:-1]) if word == "-auth"), "")


@dataclass(frozen=True)
class Place:
    """What identifies a desktop: the path of its vnc-session script, its display number, its systemd unit."""

    script: str
    display: int
    unit: str

    @property
    def cookie(self) -> str:
        """The X server's own cookie file: no other X server is started with it."""
        return str(Path(self.script).parent / f"Xauthority-{self.display}")

    def leads(self, process: proc.Process) -> bool:
        """Whether a process is this desktop's vnc-session."""
        return process.argv[-2:] == [self.script, str(self.display)]

    def is_server(self, process: proc.Process) -> bool:
        """Whether a process is this desktop's X server."""
        return _cookie_of(process) == self.cookie


def place(person: Person, display: int) -> Place:
    """Return what identifies a display's desktop of this user."""
    return Place(str(person.home / ".vnc" / "vnc-session"), display, f"vnc-desktop@{display}.service")


def _mark(seen: Seen) -> tuple[str, str]:
    """Return (display, session id) of a process's mark; empty if it has none."""
    display, _, core = seen.environment.get(MARK, "").partition(".")
    return display, core


def _served(seen: Seen, where: Place) -> bool:
    """Whether a process is part of another service of the user's systemd, which may have the mark from systemd's own
    environment (startxfce4 gives it all of its own). The bus is no such thing: what it starts is of the desktop."""
    below = re.split(r"/user@\d+\.service/", seen.cgroup)[-1] if "/user@" in seen.cgroup else ""
    unit = next((part for part in below.split("/") if part.endswith(".service")), "")
    return bool(unit) and unit not in (where.unit, *BUSES)


def _in_unit(seen: Seen, where: Place) -> bool:
    return where.unit in seen.cgroup.split("/")


def _carries(seen: Seen, where: Place) -> bool:
    """Whether a process can only come from this desktop."""
    marked = _mark(seen)[0] == str(where.display)
    return (
        (marked and not _served(seen, where))
        or where.leads(seen.process)
        or where.is_server(seen.process)
        or _in_unit(seen, where)
    )


def _keeps(seen: Seen) -> bool:
    """Whether a process, with all below it, was meant to outlive the desktop that it was started in."""
    name = seen.process.name.split(":")[0]
    return seen.ignores_hangup or name in KEEPERS or bool({"TMUX", "STY"} & set(seen.environment))


def members(among: Iterable[Seen], where: Place) -> tuple[list[Seen], list[Seen]]:
    """Return (what belongs to a desktop, the jobs that its user has detached from it). Looks at nothing else."""
    everything = list(among)
    carriers = [s for s in everything if _carries(s, where)]
    # The POSIX sessions of the desktop itself; the number of one that has ended is in the mark of what it left.
    cores: set[int] = {s.process.session for s in carriers if where.leads(s.process) or where.is_server(s.process)}
    cores |= {int(core) for _, core in map(_mark, carriers) if core.isdigit()}
    cores.discard(0)
    agents = {s.environment.get("SSH_AGENT_PID", "") for s in carriers}
    by_pid = {s.process.pid: s for s in everything}

    def detached(seen: Seen) -> bool:
        above: Seen | None = seen
        visited: set[int] = set()
        while above and above.process.pid not in visited and above.process.session not in cores:
            if _keeps(above):
                return True
            visited.add(above.process.pid)
            above = by_pid.get(above.process.parent)
        return False

    belongs: list[Seen] = []
    jobs: list[Seen] = []
    for seen in everything:
        # An ssh-agent keeps its environment to itself; the desktop's programs know its number.
        agent = seen.process.name == "ssh-agent" and str(seen.process.pid) in agents
        if seen.process.session in cores and carriers:
            belongs.append(seen)
        elif agent or seen in carriers:
            (jobs if detached(seen) else belongs).append(seen)
    return belongs, jobs


def snapshot(person: Person) -> list[Seen]:
    """Return all processes of a user, with what is needed to tell whose they are."""
    with person.acting():
        return [
            Seen(p, proc.environment_of(p.pid), _ignores_hangup(p.pid), _cgroup(p.pid))
            for p in proc.processes(person.uid)
        ]


def _own_line() -> set[int]:
    """Return this process and those that it was started by."""
    line, pid = set(), os.getpid()
    while pid > 1 and pid not in line:
        line.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return line


def _ignores_hangup(pid: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"^SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(errors="replace"), re.M)
        return bool(found and int(found.group(1), 16) & 1 << (signal.SIGHUP - 1))
    return False


def _cgroup(pid: int) -> str:
    """Return a process's systemd cgroup: in the unified hierarchy, or in the one named "systemd"."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(errors="replace").splitlines():
            number, names, path = line.split(":", 2)
            if names == "name=systemd" or (number == "0" and path != "/"):
                return path
    return ""


def find(person: Person, display: int) -> tuple[list[Seen], list[Seen]]:
    """Return (what belongs to a display's desktop now, detached jobs of its user)."""
    return members(snapshot(person), place(person, display))


def leader(person: Person, display: int) -> proc.Process | None:
    """Return the living vnc-session process of a display."""
    where = place(person, display)
    with person.acting():
        return next((p for p in proc.processes(person.uid) if where.leads(p)), None)


def server(person: Person, display: int) -> proc.Process | None:
    """Return the living X server of a display's desktop."""
    where = place(person, display)
    with person.acting():
        return next((p for p in proc.processes(person.uid) if where.is_server(p)), None)


def displays(person: Person) -> list[int]:
    """Return the displays whose desktop runs, or has left its X server running."""
    script = str(person.home / ".vnc" / "vnc-session")
    numbers: set[str] = set()
    with person.acting():
        for process in proc.processes(person.uid):
            words = process.argv
            if words[-2:-1] == [script]:
                numbers.add(words[-1])
            cookie = Path(_cookie_of(process))
            if cookie.parent == Path(script).parent:
                numbers.add(cookie.name.rpartition("-")[2])
    return sorted(int(number) for number in numbers if number.isdigit())


def demand_outside(person: Person, display: int) -> None:
    """Refuse to go on from a terminal inside the desktop that is to be ended: that would end us half-way.

    Raises:
        Failure: we are in it.
    """
    mine = _own_line()
    if any(s.process.pid in mine for s in find(person, display)[0]):
        raise Failure(
            f"this terminal is inside the desktop that is to be ended (display :{display})",
            "log in over ssh and run the same command there",
        )


def end(person: Person, display: int) -> tuple[list[Seen], list[Seen]]:
    """End what belongs to a desktop, the vnc-session first; return (what would not end, the detached jobs)."""
    first = leader(person, display)
    if first:  # it ends the others in the right order, the X server last
        _send(person, [first.pid], signal.SIGTERM)
        _wait(lambda: leader(person, display) is None, ENDS_WITHIN)
    for how in (signal.SIGTERM, signal.SIGKILL):
        belongs = find(person, display)[0]
        if not belongs:
            break
        _send(person, [s.process.pid for s in belongs], how)
        _wait(lambda: not find(person, display)[0], GOES_WITHIN)
    return find(person, display)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


def _send(person: Person, pids: Sequence[int], how: signal.Signals) -> None:
    with person.acting():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, how)


def name_all(found: Sequence[Seen]) -> str:
    """Return processes as words for a message: number and program."""
    return ", ".join(f"{s.process.pid} {s.process.name}" for s in found)
