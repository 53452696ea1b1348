"""The virtual desktop: a VNC X server with a desktop in it, on a machine with or without a screen."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from colab_local.base import network
from colab_local.base.errors import EXIT_BUSY, EXIT_USAGE, Failure
from colab_local.install.home import desktop_socket

from . import files, look, owned, packages, picture, proc, rfb, secret, service
from .options import Options
from .person import Person
from .plan import SECRET, File, Private, PutBack, Receipt, Step, Tidy, digest

TEMPLATES = Path(__file__).resolve().parent / "templates"
SERVERS = {"tiger": "Xtigervnc", "tight": "Xtightvnc"}
# What shows that the desktop, and not just an X server, is running.
PROGRAMS = {
    "xfce": ("xfce4-session", "xfwm4", "xfce4-panel", "xfdesktop"),
    "lxde": ("openbox", "lxpanel"),
    "gnome-flashback": ("metacity", "gnome-panel"),
    "openbox": ("openbox",),
}
PRIVATE_BUS = "session bus: one of its own"  # what xstartup says then
X_SOCKETS = Path("/tmp/.X11-unix")  # noqa: S108 - where X servers put them
DISPLAYS = range(1, 64)
# A password file with the empty password (both vncpasswd programs): anybody could log in with it.
EMPTY = bytes.fromhex("5ab2cdc0badcaf13")
LONGEST_SOCKET = 107  # bytes of a Unix socket's path, unix(7)
PLAIN = re.compile(r"/[\w./@+ -]*")  # ssh reads colons, backslashes, percent and dollar signs in a path
GEOMETRY = re.compile(r"[1-9]\d{2,4}x[1-9]\d{2,4}")


@dataclass(frozen=True)
class Wish:
    """What the user gets.

    vnc: "tiger" or "tight"; session: the desktop; display: X display number; geometry: "WIDTHxHEIGHT" in pixels;
    socket: the Unix socket that takes the place of the TCP port, None with a port.
    """

    vnc: str
    session: str
    display: int
    geometry: str
    socket: Path | None = None

    @property
    def port(self) -> int:
        """The TCP port of the VNC server."""
        return 5900 + self.display

    @property
    def where(self) -> rfb.Where:
        """Where the VNC server listens."""
        return self.socket or self.port

    @property
    def needs(self) -> list[str]:
        """What must be on the machine."""
        tool = "tightvncpasswd" if self.vnc == "tight" else "vncpasswd"
        common = [SERVERS[self.vnc], tool, "xauth", "xset", "dbus-run-session", "/usr/share/fonts/X11/misc/fonts.dir"]
        clipboard = ["autocutsel"] if self.vnc == "tight" else []
        return [*common, *clipboard, *packages.SESSIONS[self.session]]

    @property
    def settings(self) -> str:
        """The content of ~/.vnc/vnc-session.conf."""
        return (
            "# ~/.vnc/vnc-session.conf -- managed by bootstrap.py, read by vnc-session at its start\n"
            f"VNC_SERVER={SERVERS[self.vnc]}\nVNC_GEOMETRY={self.geometry}\nVNC_DEPTH=24\nVNC_DESKTOP={self.session}\n"
            f"VNC_LISTEN={'socket' if self.socket else 'port'}\n"
        )


def _socket_taken(path: Path, person: Person) -> bool:
    """Whether a display's Unix socket is in use, or is in the way because it belongs to someone else."""
    try:
        owner = path.lstat().st_uid
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        code = probe.connect_ex(str(path))
    # Nobody answers at a dead server's socket; its owner's next server replaces it.
    return not (code == errno.ECONNREFUSED and owner == person.uid)


def taken_by(display: int, person: Person) -> str | None:
    """Return why a display number cannot be used by this user, or None.

    Nothing is removed here, ever: the X servers take over the lock of a dead one themselves.
    """
    ports = network.listeners([5900 + display, 6000 + display])
    if ports:
        return f"port {ports[0].port} is in use"
    if _socket_taken(X_SOCKETS / f"X{display}", person):
        return f"an X server uses {X_SOCKETS}/X{display}"
    lock = X_SOCKETS.parent / f".X{display}-lock"
    try:
        status = lock.lstat()
        holder = int(lock.read_text().split()[0])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError):
        return f"{lock} is in the way"
    if proc.alive(holder):
        return f"process {holder} holds {lock}"
    return None if status.st_uid == person.uid else f"{lock} was left by another user"


def choose_display(asked: int | None, used: int | None, person: Person) -> int:
    """Return the display number: the one asked for, the one in use already, or the first that is free.

    Raises:
        Failure: the number asked for, or used so far, now belongs to something else.
    """
    wanted = asked if asked is not None else used
    if wanted is not None:
        if wanted not in DISPLAYS:
            raise Failure(
                f"no such display number (found {wanted}, need {DISPLAYS[0]} to {DISPLAYS[-1]})",
                f"python3 bootstrap.py --desktop virtual --display {DISPLAYS[0]}",
                EXIT_USAGE,
            )
        reason = None if wanted in owned.displays(person) else taken_by(wanted, person)
        if reason is None:
            return wanted
        free = next((n for n in DISPLAYS if taken_by(n, person) is None), 2)
        raise Failure(
            f"display :{wanted} is taken ({reason})",
            f"python3 bootstrap.py --desktop virtual --display {free}",
            EXIT_BUSY,
        )
    for number in DISPLAYS:
        if taken_by(number, person) is None:
            return number
    raise Failure("no display number is free (looked at :1 to :63)", "ls /tmp/.X11-unix")


def _so_far(person: Person) -> dict[str, str]:
    """Return the settings of an earlier run, the user's own edits included."""
    with person.acting():
        found = files.look(person, person.home / ".vnc" / "vnc-session.conf")
    lines = found.content.decode(errors="replace").splitlines() if found else []
    return dict(line.split("=", 1) for line in lines if re.fullmatch(r"VNC_[A-Z]+=[\w-]+", line))


def wish(options: Options, person: Person, receipt: Receipt) -> Wish:
    """Return what to set up: options first, then what an earlier run chose, then the best there is."""
    before = _so_far(person)
    vnc = options.vnc or next((k for k, v in SERVERS.items() if before.get("VNC_SERVER") == v), None)
    if vnc == "gnome":
        raise Failure(
            "GNOME's own VNC server shows the screen that is there (found --desktop virtual, need mirror)",
            "sudo python3 bootstrap.py --desktop mirror --vnc gnome",
            EXIT_USAGE,
        )
    if vnc is None:
        # TightVNC's X server lacks RENDER, RANDR and XInput2, and GTK 4 programs abort on it.
        vnc = "tiger" if packages.available("Xtigervnc") or not packages.available("Xtightvnc") else "tight"
    session = before.get("VNC_DESKTOP", "auto") if options.session == "auto" else options.session
    if session not in packages.SESSIONS:
        ready = (name for name, needs in packages.SESSIONS.items() if all(packages.here(n) for n in needs))
        session = next(ready, "xfce")
    geometry = options.geometry or before.get("VNC_GEOMETRY", "1600x900")
    if not GEOMETRY.fullmatch(geometry):
        raise Failure(
            f"the screen size is not understood (found {geometry}, need WIDTHxHEIGHT)",
            "python3 bootstrap.py --desktop virtual --geometry 1600x900",
            EXIT_USAGE,
        )
    display = choose_display(options.display, receipt.entry.get("display"), person)
    with_socket = (options.listen or before.get("VNC_LISTEN")) == "socket"
    if with_socket and vnc == "tight":
        other = "tiger" if options.listen else "tight --vnc-listen port"
        raise Failure(
            "TightVNC cannot listen at a Unix socket (need TigerVNC, or a port)",
            f"python3 bootstrap.py --desktop virtual --vnc {other}",
            EXIT_USAGE,
        )
    place = _checked(desktop_socket(person.home, display)) if with_socket else None
    _demand_same(person, display, place)
    return Wish(vnc, session, display, geometry, place)


def _checked(path: Path) -> Path:
    """Return the path of a socket if the kernel and ssh can take it.

    Raises:
        Failure: it is too long, or has characters that mean something else to ssh.
    """
    length = len(os.fsencode(path))
    if length <= LONGEST_SOCKET and PLAIN.fullmatch(str(path)):
        return path
    found = f"found {length} bytes, need at most {LONGEST_SOCKET}"
    if length <= LONGEST_SOCKET:
        found = "need letters, digits, spaces and the signs . / @ + - _"
    raise Failure(
        f"no Unix socket can be reached at {path} ({found})",
        "python3 bootstrap.py --desktop virtual --vnc-listen port",
        EXIT_USAGE,
    )


def _demand_same(person: Person, display: int, place: Path | None) -> None:
    """Refuse to change where a desktop listens while it runs: that would close its programs.

    Raises:
        Failure: it runs and listens elsewhere.
    """
    running = owned.server(person, display)
    if running is None or (place is not None) == any(word.startswith("-rfbunixpath") for word in running.argv):
        return
    leader = owned.leader(person, display) or running
    stop = f"systemctl --user stop {service.unit(display)}" if service.systemd(person) else f"kill {leader.pid}"
    raise Failure(
        f"the desktop on display :{display} runs, and where it listens can only be changed while it does not",
        f"{stop}   # closes its programs; then the same command again",
        EXIT_BUSY,
    )


def encode(person: Person, password: str) -> bytes:
    """Return the 8 bytes of a VNC password file, made by the real vncpasswd through a pipe.

    Raises:
        Failure: no such program, or it answered something else.
    """
    program = next((p for p in ("tigervncpasswd", "tightvncpasswd", "vncpasswd") if packages.program(p)), "vncpasswd")
    encoded = person.run([program, "-f"], feed=password.encode("ascii") + b"\n", timeout=15)
    if len(encoded) != 8:
        what = f"{program} made no password (found {len(encoded)} bytes, need 8)"
        raise Failure(what, f"echo password | {program} -f | wc -c   # has to say 8")
    return encoded


class Password(Step):
    """~/.vnc/passwd: kept if it is good, else from --vnc-password-file, else random and shown once."""

    def __init__(self, receipt: Receipt, given: str | None, reset: bool) -> None:
        self.receipt, self.given, self.reset = receipt, given, reset
        self.path = receipt.person.home / ".vnc" / "passwd"
        self.title = f"write the VNC password to {self.path} (mode 0600)"

    def _usable(self) -> files.Found | None:
        """Return the password file that is there if it holds a password; one that is empty holds none."""
        person = self.receipt.person
        with person.acting():
            found = files.look(person, self.path)
        if found is None or len(found.content) not in (8, 16):  # 16: with a second, view-only password
            return None
        return None if found.content[:8] == EMPTY else found

    def _is_random(self, found: files.Found | None) -> bool:
        """Whether a new random password is to be made; found: what is there and usable."""
        return self.given is None and (self.reset or found is None)

    def difference(self) -> str | None:
        found = self._usable()
        if self.given is not None:
            can = packages.here("vncpasswd")
            same = found is not None and can and found.content[:8] == encode(self.receipt.person, self.given)
            if not same:
                return f"the password that you gave {SECRET}"
        if self._is_random(found):
            return f"a random password of {secret.LONGEST} characters, shown once on the terminal {SECRET}"
        return f"mode {found.mode:04o} -> 0600" if found and found.mode != 0o600 else None

    def demand(self) -> None:
        if self._is_random(self._usable()):
            secret.demand_terminal()

    def apply(self) -> None:
        found = self._usable()
        password = self.given
        if self._is_random(found):
            password = secret.generate()
            secret.show_once(password, f"VNC on {os.uname().nodename}")
            self.reset = False
        if password is None and found is not None:
            content = found.content
        else:
            content = encode(self.receipt.person, password or "")
        # No copy of an old password is kept: it would be one more secret lying about.
        made = self.receipt.entry["files"].setdefault(str(self.path), {})
        if password is None and not made:  # a file that was there before us, with another mode
            made.update(theirs=True, theirs_mode=found.mode if found else 0o600)
        for missing in files.missing_folders(self.receipt.person, self.path.parent):
            self.receipt.entry["folders"].append(str(missing))
        made.update(sha256=digest(content), mode=0o600)
        self.receipt.save()
        with self.receipt.person.acting():
            files.write(self.receipt.person, self.path, content, 0o600)


def plan(wished: Wish, receipt: Receipt, given: str | None, reset: bool) -> list[Step]:
    """Return the steps from nothing to a running virtual desktop."""
    person = receipt.person
    vnc = person.home / ".vnc"
    with_systemd = service.systemd(person)
    texts = {p.name: p.read_bytes() for p in TEMPLATES.iterdir()}
    steps: list[Step] = [
        packages.Install(wished.needs, receipt.screen),
        Private(receipt, vnc),
        Password(receipt, given, reset),
    ]
    steps += [
        File(receipt, vnc / "xstartup", texts["xstartup"], 0o700),
        File(receipt, vnc / "vnc-session", texts["vnc-session"], 0o700),
        File(receipt, vnc / "vnc-session.conf", wished.settings.encode(), 0o600),
    ]
    old = receipt.entry.get("display")
    if old is not None and old != wished.display:
        steps.append(service.Stop(person, old, with_systemd))
    if with_systemd:
        name = "vnc-desktop@.service"
        steps.append(File(receipt, person.home / ".config/systemd/user" / name, texts[name], 0o644))
        steps.append(service.Linger(receipt))
    steps.append(service.Start(receipt, wished.display, with_systemd))
    return steps


def secrets_of(person: Person) -> dict[Path, int]:
    """Return what guards the password, with the modes that it must have."""
    return {person.home / ".vnc": 0o700, person.home / ".vnc" / "passwd": 0o600}


def check(wished: Wish, person: Person, started: bool) -> list[str]:
    """Look whether the desktop is what it should be; return what was seen.

    started: this run started it: then the wait for it, the log-ins and the five seconds are included. One that has
    been running is the user's, with their programs: it is not asked again, and settings may wait for its restart.

    Raises:
        look.Problem: with what was found.
    """
    with_systemd = service.systemd(person)

    # systemd starts the session again after a crash, so a short absence alone is no complaint while waiting.
    def dead() -> str | None:
        return None if with_systemd else service.complaint(person, wished.display, ())

    look.listening(wished.where, wished.display, dead, look.APPEARS_WITHIN if started else 2)
    look.modes(person.uid, {**secrets_of(person), **({wished.socket: 0o600} if wished.socket else {})})
    if wished.socket:
        look.no_port(wished.port, person.uid)
        said = [f"{wished.socket} listens, open to {person.name} alone; neither VNC nor X listens on a port"]
    else:
        said = [f"port {wished.port} listens on loopback only; X itself listens on no port"]
        look.refused_from_outside(wished.port)
        said.append("this machine's network addresses refuse connections")
    if started:
        said += look.password_wanted(wished.where)
        programs = PROGRAMS[wished.session]
        running = owned.leader(person, wished.display)

        def wrong() -> str | None:
            look.working(dead)  # without systemd nobody starts it again: no use waiting
            return service.complaint(person, wished.display, programs)

        look.stays_up(wrong)
        look.private(wished.where)
        look.x_over_tcp(wished.display)
        again = owned.leader(person, wished.display)
        if running is None or again is None or running.pid != again.pid:
            raise look.Problem("the session ended and was started again")
        said.append(f"{programs[0]} has been running for {look.STAYS_ALIVE:g} s")
        said += picture.check(person, wished.display, bare=wished.session == "openbox")
    else:
        look.working(dead)
    return said


def notes(person: Person, display: int, with_systemd: bool) -> list[str]:
    """Return what the user should know of a desktop that was started: what does not start in it."""
    private = next((line for line in service.log_tail(person, display, 200) if PRIVATE_BUS in line), None)
    if private is None or not with_systemd:  # without systemd there are no snaps either
        return []
    return [f"note: this desktop has a session bus of its own{private.partition(PRIVATE_BUS)[2]}"]


def undo(receipt: Receipt) -> list[Step]:
    """Return the steps that remove a virtual desktop."""
    person, entry = receipt.person, receipt.entry
    display = entry.get("display")
    steps: list[Step] = []
    if display is not None:
        steps.append(service.Stop(person, display, bool(entry.get("unit"))))
        steps.append(service.Ended(person, int(display)))
    # Cookies, logs and sockets of every display that was used.
    with person.acting():
        vnc = sorted((person.home / ".vnc").glob("*-*"))
    leftovers = [path for path in vnc if re.fullmatch(r"Xauthority-\d+|session-\d+\.log|rfb-\d+\.sock", path.name)]
    steps.append(service.Unlinger(receipt))
    steps += [PutBack(receipt, Path(path)) for path in entry["files"]]
    steps.append(Tidy(receipt, leftovers))
    return steps


def started_by(done: Sequence[Step]) -> bool:
    """Say whether these steps started the desktop."""
    return any(isinstance(step, service.Start) for step in done)


def needs_restart(done: Sequence[Step]) -> bool:
    """Say whether files changed under a desktop that keeps running: it is the user's, so it is not restarted."""
    return any(isinstance(step, File) for step in done) and not started_by(done)
