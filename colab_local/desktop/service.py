"""Start, stop and watch the virtual desktop: by the user's systemd, or as a plain process where there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from colab_local.base.errors import Failure

from . import files, proc
from .person import Person, find
from .plan import Receipt, Step

LINGER = Path("/var/lib/systemd/linger")
STOPS_WITHIN = 15.0


def unit(display: int) -> str:
    """Return the systemd unit of a display."""
    return f"vnc-desktop@{display}.service"


def systemd(person: Person) -> bool:
    """Say whether this user's services can be run by systemd.

    A HOME other than the account's own is served by a plain process: systemd would look in the account's.
    """
    return Path("/run/systemd/system").is_dir() and person.usual_home and shutil.which("loginctl") is not None


def _systemctl(person: Person, *words: str, timeout: float = 60) -> str:
    env = person.environment(XDG_RUNTIME_DIR=str(person.runtime))
    return person.run(["systemctl", "--user", *words], env=env, timeout=timeout).decode()


def _says(person: Person, *words: str) -> str:
    try:
        return _systemctl(person, *words).strip()
    except Failure:
        return ""


def session(person: Person, display: int) -> proc.Process | None:
    """Return the living vnc-session process of a display, found by its command line, never by a pid file.

    A pid file outlives its process, and then names an innocent one.
    """
    script = str(person.home / ".vnc" / "vnc-session")
    with person.hat():
        for process in proc.processes(person.uid):
            if process.argv[-2:] == [script, str(display)]:
                return process
    return None


def sessions(person: Person) -> list[int]:
    """Return the displays on which a vnc-session of this user runs."""
    script = str(person.home / ".vnc" / "vnc-session")
    with person.hat():
        found = [p.argv[-1] for p in proc.processes(person.uid) if p.argv[-2:-1] == [script]]
    return sorted(int(number) for number in found if number.isdigit())


class Linger(Step):
    """Let the user's services run without a log-in, from boot on."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = f"let the services of {receipt.person.name} run without a log-in (loginctl enable-linger)"

    def difference(self) -> str | None:
        return None if (LINGER / self.receipt.person.name).exists() else ""

    def apply(self) -> None:
        person = self.receipt.person
        self.receipt.note(linger=True)
        if not _told_logind("enable-linger", person):
            self.receipt.note(linger=False)
            self.receipt.screen.say(
                "note: the desktop will end when you log out. To keep it, and to have it back after a reboot, run: "
                f"sudo loginctl enable-linger {person.name}"
            )


def _told_logind(what: str, person: Person) -> bool:
    """Enable or disable a user's lingering, by sudo where that asks nothing; say whether it worked."""
    argv = ["loginctl", "--no-ask-password", what, person.name]
    if os.getuid() == 0:
        return find("root").succeeds(argv)
    return person.succeeds(argv) or person.succeeds(["sudo", "-n", *argv])


def wait_for_manager(person: Person, timeout: float = 20) -> None:
    """Wait until the user's systemd answers; it starts a moment after lingering is enabled.

    Raises:
        Failure: it does not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not _says(person, "show-environment"):
        if time.monotonic() > deadline:
            raise Failure(
                f"the systemd of {person.name} does not answer (waited {timeout:g} s)",
                f"log in as {person.name} itself (not with su), or: sudo loginctl enable-linger {person.name}",
            )
        time.sleep(0.2)


class Start(Step):
    """Start the desktop, and with systemd again at every boot and after every crash."""

    def __init__(self, receipt: Receipt, display: int, with_systemd: bool) -> None:
        self.receipt, self.display, self.with_systemd = receipt, display, with_systemd
        self.title = f"start the desktop on display :{display}" + (f" ({unit(display)})" if with_systemd else "")

    def difference(self) -> str | None:
        person, name = self.receipt.person, unit(self.display)
        if not self.with_systemd:
            return None if session(person, self.display) else ""
        up = _says(person, "is-active", name) == "active" and _says(person, "is-enabled", name) == "enabled"
        return None if up else ""

    def apply(self) -> None:
        person, name = self.receipt.person, unit(self.display)
        self.receipt.note(unit=name if self.with_systemd else "")
        if self.with_systemd:
            wait_for_manager(person)
            _systemctl(person, "daemon-reload")
            with contextlib.suppress(Failure):
                _systemctl(person, "reset-failed", name)
            _systemctl(person, "enable", "--now", name)
            return
        with Path(os.devnull).open("ab") as nowhere:  # vnc-session keeps its own log
            person.spawn([str(person.home / ".vnc" / "vnc-session"), str(self.display)], nowhere)


class Stop(Step):
    """Stop the desktop and keep it from coming back."""

    def __init__(self, person: Person, display: int, with_systemd: bool) -> None:
        self.person, self.display, self.with_systemd = person, display, with_systemd
        self.title = f"stop the desktop on display :{display} (closes its programs)"

    def difference(self) -> str | None:
        if session(self.person, self.display):
            return ""
        enabled = self.with_systemd and _says(self.person, "is-enabled", unit(self.display)) == "enabled"
        return "" if enabled else None

    def apply(self) -> None:
        stop(self.person, self.display, self.with_systemd)


class Unlinger(Step):
    """Take back what `Linger` gave."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = f"services of {receipt.person.name} end at log-out again (loginctl disable-linger)"

    def difference(self) -> str | None:
        entry = self.receipt.entry
        # The Jupyter service may have come to rely on it since.
        others = (self.receipt.path.parent / "service.json").exists()
        return "" if entry.get("linger") and not others and (LINGER / self.receipt.person.name).exists() else None

    def apply(self) -> None:
        person = self.receipt.person
        if not _told_logind("disable-linger", person):
            self.receipt.screen.say(f"note: to take lingering back, run: sudo loginctl disable-linger {person.name}")


def stop(person: Person, display: int, with_systemd: bool) -> None:
    """Stop and disable a desktop. Only processes that belong to it are touched."""
    if with_systemd:
        with contextlib.suppress(Failure):
            _systemctl(person, "disable", "--now", unit(display))
            _systemctl(person, "reset-failed", unit(display))
    running = session(person, display)
    if running is None:
        return
    with person.hat():
        # A plain desktop got a session of its own; what the user detached from it (nohup, tmux) has another one.
        tree = {running.pid} | {p.pid for p in proc.descendants(running.pid, proc.processes(person.uid))}
        _end([running.pid], signal.SIGTERM)
        deadline = time.monotonic() + STOPS_WITHIN
        while time.monotonic() < deadline and any(_same(person, pid, running.session) for pid in tree):
            time.sleep(0.1)
        rest = [p.pid for p in proc.processes(person.uid) if p.session == running.session == running.pid]
        _end(rest, signal.SIGKILL)


def _same(person: Person, pid: int, session_id: int) -> bool:
    """Whether a process still lives and is the one it was (ids are used again, sessions much more slowly)."""
    return any(p.pid == pid and p.session == session_id for p in proc.processes(person.uid))


def _end(pids: list[int], how: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


def complaint(person: Person, display: int, program: str) -> str | None:
    """Return what is wrong with a running desktop, or None.

    program: name of the process that makes it a desktop, such as xfce4-session; "" to look at the session alone.
    """
    running = session(person, display)
    if running is None:
        return "the session ended"
    if not program:
        return None
    with person.hat():
        names = {p.name for p in proc.descendants(running.pid, proc.processes(person.uid))}
    return None if program in names else f"no {program} is running"


def log_tail(person: Person, display: int, lines: int = 30) -> list[str]:
    """Return the last lines of a session's log."""
    with person.hat():
        found = files.look(person, person.home / ".vnc" / f"session-{display}.log")
    return found.content.decode(errors="replace").splitlines()[-lines:] if found else []
