"""Start, stop and watch the virtual desktop: by the user's systemd, or as a plain process where there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Callable, Sequence

from colab_local.base import network
from colab_local.base.errors import Failure
from colab_local.install import linger
from colab_local.install.home import desktop_socket

from . import files, owned, proc
from .person import Person, find
from .plan import Receipt, Step

COMES_BACK_WITHIN = 5.0  # seconds; RestartSec of the unit is 3


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


class Linger(Step):
    """Let the user's services run without a log-in, from boot on."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = f"let the services of {receipt.person.name} run without a log-in (loginctl enable-linger)"

    def difference(self) -> str | None:
        return None if linger.is_on(self.receipt.person.name) else ""

    def apply(self) -> None:
        person = self.receipt.person
        self.receipt.note(linger=True)
        if not linger.switch(person.name, True, _as_allowed(person)):
            self.receipt.note(linger=False)
            self.receipt.screen.say(
                "note: the desktop will end when you log out. To keep it, and to have it back after a reboot, run: "
                + linger.by_hand(person.name)
            )


def _as_allowed(person: Person) -> Callable[[Sequence[str]], bool]:
    """Return what runs a command as root, where we are, else as the user, then by sudo where that asks nothing."""
    if os.getuid() == 0:
        return find("root").succeeds
    return lambda argv: person.succeeds(argv) or person.succeeds(["sudo", "-n", *argv])


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
                f"{linger.by_hand(person.name)}   # or log in as {person.name} itself, not with su",
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
            return None if owned.leader(person, self.display) else ""
        up = _says(person, "is-active", name) == "active" and _says(person, "is-enabled", name) == "enabled"
        return None if up else ""

    def apply(self) -> None:
        person, name = self.receipt.person, unit(self.display)
        self.receipt.note(unit=name if self.with_systemd else "")
        if owned.leader(person, self.display) is None:
            owned.end(person, self.display)  # what a killed session has left: the check would take it for the new one
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
        belongs, jobs = owned.find(self.person, self.display)
        note = f"left running, detached from it by you (nohup, tmux): {owned.name_all(jobs)}" if jobs else ""
        if belongs:
            return note
        if not self.with_systemd:
            return None
        # One that was killed a moment ago comes back ("activating"), even if it is disabled.
        state = _says(self.person, "show", "-p", "ActiveState", "--value", unit(self.display))
        enabled = _says(self.person, "is-enabled", unit(self.display)) == "enabled"
        return note if enabled or state not in ("", "inactive", "failed") else None

    def apply(self) -> None:
        owned.demand_outside(self.person, self.display)
        stop(self.person, self.display, self.with_systemd)


class Ended(Step):
    """Before anything of it is removed or forgotten: nothing of it runs, its port and its socket are closed."""

    title = "see that nothing of the desktop is left running"

    def __init__(self, person: Person, display: int) -> None:
        self.person, self.display = person, display

    def difference(self) -> str | None:
        return None if self._left() is None else ""

    def _left(self) -> str | None:
        """Return what is still there, in words."""
        belongs, _ = owned.find(self.person, self.display)
        if belongs:
            return f"these processes: {owned.name_all(belongs)}"
        # A port that another user has taken since is none of ours, nor is that of a server started by hand.
        path = desktop_socket(self.person.home, self.display)
        ports = network.listeners([5900 + self.display])
        holders = {found.inode: f"port {found.port} ({found})" for found in ports if found.uid == self.person.uid}
        holders.update(dict.fromkeys(network.unix_listeners(path), str(path)))
        with self.person.acting():
            known = {inode for p in proc.processes(self.person.uid) for inode in proc.sockets_of(p.pid)}
        hidden = [words for inode, words in holders.items() if inode not in known]
        return f"a process that holds {hidden[0]}" if hidden else None

    def apply(self) -> None:
        left = self._left()
        if left:
            raise Failure(
                f"the desktop on display :{self.display} did not end: still there are {left}. Nothing was removed",
                f"ps -o pid,args -u {self.person.name}   # then end them, and run the same command again",
            )


class Unlinger(Step):
    """Take back what `Linger` gave."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = f"services of {receipt.person.name} end at log-out again (loginctl disable-linger)"

    def difference(self) -> str | None:
        entry = self.receipt.entry
        return "" if entry.get("linger") and linger.is_on(self.receipt.person.name) else None

    def apply(self) -> None:
        person, home = self.receipt.person, self.receipt.path.parent
        with person.acting_below_home(self.receipt.path):
            if linger.hand_over(home / "service.json"):  # the Jupyter service has come to rely on it since
                self.receipt.screen.say(f"lingering of {person.name} stays on for the Jupyter service")
                return
        if not linger.switch(person.name, False, _as_allowed(person)):
            by_hand = linger.by_hand(person.name, on=False)
            self.receipt.screen.say(f"note: to take lingering back, run: {by_hand}")


def stop(person: Person, display: int, with_systemd: bool) -> None:
    """Stop and disable a desktop. Only processes that belong to it are touched, jobs detached from it are not."""
    manager_heard = True
    if with_systemd:
        try:
            _systemctl(person, "disable", "--now", unit(display))
        except Failure:
            manager_heard = False
        with contextlib.suppress(Failure):
            _systemctl(person, "reset-failed", unit(display))
    ran = owned.leader(person, display) is not None
    owned.end(person, display)
    if ran and not manager_heard:
        time.sleep(COMES_BACK_WITHIN)  # a manager that did not hear us starts it again


def complaint(person: Person, display: int, programs: Sequence[str]) -> str | None:
    """Return what is wrong with a running desktop, or None.

    programs: names of the processes that make it a desktop, such as xfce4-panel; none to look at the session alone.
    """
    if owned.leader(person, display) is None:
        return "the session ended"
    if not programs:
        return None
    names = {seen.process.name for seen in owned.find(person, display)[0]}
    return next((f"no {program} is running" for program in programs if program not in names), None)


def log_tail(person: Person, display: int, lines: int = 30) -> list[str]:
    """Return the last lines of a session's log."""
    with person.acting():
        found = files.look(person, person.home / ".vnc" / f"session-{display}.log")
    return found.content.decode(errors="replace").splitlines()[-lines:] if found else []
