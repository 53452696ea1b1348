"""Share the screen that somebody sits at: Vino, x0tigervncserver or x11vnc on X11. Wayland: see rdp.py."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from colab_local.base import network
from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.terminal import Screen

from . import files, look, packages, proc, secret, virtual
from .person import Person, system_python
from .plan import File, Private, PutBack, Receipt, Step, Tidy, digest

DCONF = "/org/gnome/desktop/remote-access/"
SCHEMA = "org.gnome.Vino"
USUAL_PORT = 5900
OTHER_PORTS = range(5950, 6000)  # 5901 and up are the virtual desktops'
# x0tigervncserver is a Perl script in front of X0tigervnc on Debian and Ubuntu.
TIGER = ("X0tigervnc", "x0tigervncserver")
MASKED = "'********'"


@dataclass(frozen=True)
class PhysicalScreen:
    """The session somebody is logged in to. kind: "x11" or "wayland"; display: like ":0"; desktop: like "GNOME";
    environment: DISPLAY, XAUTHORITY and DBUS_SESSION_BUS_ADDRESS as programs of that session have them."""

    kind: str
    display: str
    desktop: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def bus(self) -> str | None:
        """The address of the session bus, if it answers."""
        address = self.environment.get("DBUS_SESSION_BUS_ADDRESS", "")
        return address if _answers(address) else None


def _answers(address: str) -> bool:
    """Whether a D-Bus address leads to a living bus. Settings written through another one go unnoticed."""
    found = re.match(r"unix:(path|abstract)=([^,;]+)", address)
    if not found:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        return probe.connect_ex(("\0" if found.group(1) == "abstract" else "") + found.group(2)) == 0


def _logged_in(person: Person) -> str | None:
    """Return the type of the user's session at the machine ("x11", "wayland") as logind knows it."""
    if not (Path("/run/systemd/system").is_dir() and shutil.which("loginctl")):
        return None
    with contextlib.suppress(Failure):
        listed = person.run(["loginctl", "show-user", person.name, "-p", "Sessions", "--value"]).decode().split()
        for session in listed:
            text = person.run(
                ["loginctl", "show-session", session, "-p", "Type", "-p", "Remote", "-p", "Class"]
            ).decode()
            facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            if (
                facts.get("Type") in ("x11", "wayland")
                and facts.get("Remote") == "no"
                and facts.get("Class") == "user"
            ):
                return facts["Type"]
    return None


def screen(person: Person, display: int | None) -> PhysicalScreen:
    """Return the screen to share: the X11 display asked for, else the session the user is logged in to.

    Raises:
        Failure: there is none.
    """
    with person.acting():
        environments = [proc.environment_of(p.pid) for p in proc.processes(person.uid)]
    # Virtual desktops and X forwarded through ssh ("localhost:10.0") are no screens of this machine.
    real = [e for e in environments if "VNCDESKTOP" not in e and re.match(r":\d", e.get("DISPLAY", ":0"))]
    if display is not None:
        if not (virtual.X_SOCKETS / f"X{display}").exists():
            raise Failure(
                f"there is no X11 screen :{display} (found {_displays() or 'none'})",
                "python3 bootstrap.py --desktop virtual",
                EXIT_MACHINE,
            )
        return _x11(person, f":{display}", real)
    wayland = [e for e in real if e.get("XDG_SESSION_TYPE") == "wayland" or "WAYLAND_DISPLAY" in e]
    kind = _logged_in(person) or ("wayland" if wayland else None)
    if kind == "wayland":
        return PhysicalScreen(
            "wayland", "", next((e["XDG_CURRENT_DESKTOP"] for e in wayland if "XDG_CURRENT_DESKTOP" in e), "")
        )
    found = next((e["DISPLAY"] for e in real if "DISPLAY" in e), None)
    if found is None:
        raise Failure(
            f"{person.name} is not logged in at this machine's screen (found no X11 or Wayland session)",
            "python3 bootstrap.py --desktop virtual   # needs no screen; or log in there, or name one: --display 0",
            EXIT_MACHINE,
        )
    return _x11(person, found.split(".")[0], real)


def _displays() -> str:
    names = sorted(p.name[1:] for p in virtual.X_SOCKETS.glob("X*")) if virtual.X_SOCKETS.is_dir() else []
    return " ".join(f":{name}" for name in names)


def _x11(person: Person, display: str, environments: list[dict[str, str]]) -> PhysicalScreen:
    inside = [e for e in environments if e.get("DISPLAY", "").split(".")[0] == display]
    taken: dict[str, str] = {"DISPLAY": display}
    for name in ("XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "XDG_CURRENT_DESKTOP"):
        value = next((e[name] for e in inside if name in e), None)
        if value:
            taken[name] = value
    if "XAUTHORITY" not in taken and (person.home / ".Xauthority").exists():
        taken["XAUTHORITY"] = str(person.home / ".Xauthority")
    usual = person.environment().get("DBUS_SESSION_BUS_ADDRESS")
    if usual and not _answers(taken.get("DBUS_SESSION_BUS_ADDRESS", "")):
        taken["DBUS_SESSION_BUS_ADDRESS"] = usual
    return PhysicalScreen("x11", display, taken.pop("XDG_CURRENT_DESKTOP", ""), taken)


def programs(how: str) -> Sequence[str]:
    """Return the names that the server's process may have. how: as in `Wish`."""
    return ("vino-server",) if how == "vino" else (*TIGER, "x11vnc")


def server(person: Person, display: str, how: str) -> proc.Process | None:
    """Return the user's running server of a display; others that they may have started stay out of it."""
    names = programs(how)
    with person.acting():
        for process in proc.processes(person.uid):
            if process.name in names:
                seen = proc.environment_of(process.pid).get("DISPLAY", "").split(".")[0]
                if seen == display:
                    return process
    return None


def choose_port(person: Person, display: str, how: str, used: int | None) -> int:
    """Return the port: the one used so far or 5900, unless something else listens there already."""
    running = server(person, display, how)
    with person.acting():
        ours = proc.sockets_of(running.pid) if running else set()
    first = [used] if used else []
    for port in [*first, USUAL_PORT, *OTHER_PORTS]:
        if all(found.inode in ours for found in network.listeners([port])):
            return int(port)
    raise Failure("no port is free (looked at 5900 and 5950 to 5999)", "ss -ltn")


# ---------------------------------------------------------------------------------------------------------
# Vino


class Dconf:
    """Vino's settings, through the bus that the running Vino hears; without any bus, through one of our own."""

    def __init__(self, person: Person, bus: str | None) -> None:
        self.person, self.bus = person, bus

    def _call(self, *words: str, feed: bytes = b"") -> str:
        try:
            return self._through(self.bus, *words, feed=feed)
        except Failure:
            # The bus may just have ended together with the Vino that was stopped.
            if words[0] == "dump" or not self.bus or _answers(self.bus):
                raise
            return self._through(None, *words, feed=feed)

    def _through(self, bus: str | None, *words: str, feed: bytes) -> str:
        env = self.person.environment()
        env.pop("DBUS_SESSION_BUS_ADDRESS", None)
        argv = ["dconf", *words]
        if bus:
            env["DBUS_SESSION_BUS_ADDRESS"] = bus
        elif words[0] != "dump":
            # gsettings and dconf without a bus report success and write nothing.
            argv = ["dbus-run-session", "--", *argv]
        return self.person.run(argv, feed=feed, env=env).decode()

    def dump(self) -> str:
        """Return all settings that differ from the defaults, as text."""
        return self._call("dump", DCONF)

    def read(self) -> dict[str, str]:
        """Return the same as a dictionary of GVariant texts."""
        return parse(self.dump())

    def load(self, values: dict[str, str]) -> None:
        """Write all of `values` at once. On standard input: a password in an argument is visible in ps."""
        text = "[/]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
        self._call("load", DCONF, feed=text.encode())

    def reset(self, key: str) -> None:
        """Set one key back to its default."""
        self._call("reset", DCONF + key)

    def keys(self) -> list[str]:
        """Return the keys that this release of Vino has."""
        return self.person.run(["gsettings", "list-keys", SCHEMA]).decode().split()


def parse(text: str) -> dict[str, str]:
    """Return the key=value lines of a dconf dump."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("["))


def password_in(settings: dict[str, str]) -> str | None:
    """Return Vino's base64 password if log-in by it is switched on and it is long enough; None otherwise."""
    value = settings.get("vnc-password", "'keyring'").strip("'\"")
    try:
        length = len(base64.b64decode(value, validate=True))
    except ValueError:
        return None
    good = value != "keyring" and secret.SHORTEST <= length <= secret.LONGEST
    return value if good and "'vnc'" in settings.get("authentication-methods", "") else None


def wanted(keys: list[str], encoded: str, port: int) -> dict[str, str]:
    """Return the settings that make Vino safe and usable.

    Encryption is off only together with network-interface 'lo': macOS and most clients know none of Vino's TLS,
    and the tunnel encrypts. Vino's own defaults listen on every address and ask no password.

    keys: what this Vino has; encoded: base64 of the password; port: TCP port.

    Raises:
        Failure: this Vino cannot be bound to loopback.
    """
    if "network-interface" not in keys:
        raise Failure(
            "this Vino cannot be bound to loopback (its settings have no network-interface)",
            "sudo apt-get install -y --no-install-recommends x11vnc && sudo apt-get remove -y vino",
            EXIT_MACHINE,
        )
    values = {
        "authentication-methods": "['vnc']",
        "vnc-password": f"'{encoded}'",
        "network-interface": "'lo'",
        "prompt-enabled": "false",
        "use-upnp": "false",
        "notify-on-connect": "true",
        "view-only": "false",
        "use-alternative-port": "false" if port == USUAL_PORT else "true",
        "require-encryption": "false",
    }
    if port != USUAL_PORT:
        values["alternative-port"] = f"uint16 {port}"
    if "enabled" in keys:  # before 3.22
        values["enabled"] = "true"
    return {key: value for key, value in values.items() if key in keys}


class Settings(Step):
    """Vino's settings: all keys in one load, what was there kept in the receipt, read back afterwards."""

    def __init__(self, receipt: Receipt, dconf: Dconf, port: int, given: str | None, reset: bool) -> None:
        self.receipt, self.dconf, self.port, self.given, self.reset = receipt, dconf, port, given, reset
        self.title = f"set Vino's settings (dconf {DCONF}): password log-in, loopback only"

    def _target(self, current: dict[str, str], password: str | None) -> dict[str, str]:
        encoded = base64.b64encode(password.encode("ascii")).decode() if password else password_in(current)
        return wanted(self.dconf.keys(), encoded or "", self.port)

    def _needs_new(self, current: dict[str, str]) -> bool:
        return self.given is None and (self.reset or password_in(current) is None)

    def difference(self) -> str | None:
        if not packages.here("dconf") or not packages.here("/usr/lib/vino/vino-server"):
            return "after the packages are installed"
        current = self.dconf.read()
        target = self._target(current, self.given)
        new = self._needs_new(current)
        if not new and all(current.get(k) == v for k, v in target.items()):
            return None
        before = "".join(f"{k}={_mask(k, v)}\n" for k, v in sorted(current.items()))
        after = "".join(f"{k}={_mask(k, v)}\n" for k, v in sorted({**current, **target}.items()))
        notes = [files.difference(before.encode(), after.encode(), f"dconf:{DCONF}")]
        if new:
            notes.append(f"a random password of {secret.LONGEST} characters, shown once on the terminal")
        elif password_in(current) != password_in(target):
            notes.append("the password that you gave")
        return "\n".join(notes)

    def demand(self) -> None:
        current = self.dconf.read() if packages.here("dconf") else {}
        if self._needs_new(current):
            secret.demand_terminal()

    def apply(self) -> None:
        text = self.dconf.dump()
        current = parse(text)
        password = self.given
        if self._needs_new(current):
            password = secret.generate()
            secret.show_once(password, f"this screen on {os.uname().nodename}")
            self.reset = False
        target = self._target(current, password)
        self.receipt.entry.setdefault("vino_before", text)
        self.receipt.note(vino_written={k: _fingerprint(k, v) for k, v in target.items()}, port=self.port)
        locked = f"dconf dump {DCONF}   # an administrator may have locked some; --desktop virtual needs none of them"
        try:
            self.dconf.load(target)  # all of them or, where one is locked, none
        except Failure as fault:
            raise Failure(f"Vino's settings could not be written ({fault.what})", locked) from None
        found = self.dconf.read()
        wrong = sorted(k for k, v in target.items() if found.get(k) != v)
        if wrong:
            # Half of these settings is worse than none of them: back to what was.
            self.dconf.load({k: v for k, v in current.items() if k in target})
            for key in target:
                if key not in current:
                    self.dconf.reset(key)
            raise Failure(
                f"Vino's settings did not take (read back another {', '.join(wrong)}); the old ones are back", locked
            )


def _mask(key: str, value: str) -> str:
    return MASKED if key == "vnc-password" else value


def _fingerprint(key: str, value: str) -> str:
    """What the receipt remembers of a value that was written."""
    return digest(value.encode()) if key == "vnc-password" else value


class SettingsBack(Step):
    """Put Vino's settings back, except those that the user has changed since."""

    # What opens the screen most comes last.
    LAST = ("authentication-methods", "vnc-password", "network-interface")

    def __init__(self, receipt: Receipt, dconf: Dconf) -> None:
        self.receipt, self.dconf = receipt, dconf
        self.title = f"put Vino's settings back as they were (dconf {DCONF})"

    def _ours(self) -> dict[str, str | None]:
        """Return {key: value before us, None for the default} of what still has our value."""
        before, written = parse(self.receipt.entry["vino_before"]), self.receipt.entry["vino_written"]
        now = self.dconf.read()
        kept = {k: before.get(k) for k, v in written.items() if k in now and _fingerprint(k, now[k]) == v}
        return {k: v for k, v in kept.items() if now[k] != v}

    def difference(self) -> str | None:
        if "vino_written" not in self.receipt.entry or not packages.here("dconf"):
            return None
        ours = self._ours()
        lines = [f"{k} -> {'default' if v is None else _mask(k, v)}" for k, v in ours.items()]
        return "\n".join(lines) if lines else None

    def apply(self) -> None:
        ours = self._ours()
        values = {k: v for k, v in ours.items() if v is not None}
        if values:
            self.dconf.load(values)
        for key in sorted((k for k, v in ours.items() if v is None), key=lambda k: (k in self.LAST, k)):
            self.dconf.reset(key)


def vino_program() -> str:
    """Return where vino-server is: it moved to libexec."""
    return next(
        (p for p in ("/usr/libexec/vino-server", "/usr/lib/vino/vino-server") if Path(p).exists()), "vino-server"
    )


# ---------------------------------------------------------------------------------------------------------
# Start, stop, autostart


def autostart(name: str, command: list[str]) -> bytes:
    """Return a desktop entry that starts `command` when the user logs in at the screen."""
    quoted = " ".join(_quote(word) for word in command)
    return (
        "# managed by bootstrap.py --desktop mirror\n"
        f"[Desktop Entry]\nType=Application\nName={name}\nExec={quoted}\nNoDisplay=true\n"
        "X-GNOME-Autostart-enabled=true\nX-GNOME-Autostart-Phase=Applications\n"
    ).encode()


def _quote(word: str) -> str:
    """Quote a word as the Desktop Entry Specification wants it: reserved characters in quotes, escaped twice."""
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word.replace("%", "%%")
    escaped = re.sub(r'(["`$\\])', r"\\\1", word).replace("\\", "\\\\")
    return '"' + escaped.replace("%", "%%") + '"'


class StartServer(Step):
    """Start sharing now, in the session that is there; later the autostart entry does."""

    def __init__(self, receipt: Receipt, wished: Wish, argv: list[str]) -> None:
        self.receipt, self.wished, self.argv = receipt, wished, argv
        self.title = f"share display {wished.seen.display} with {wished.how}"

    def difference(self) -> str | None:
        return None if server(self.receipt.person, self.wished.seen.display, self.wished.how) else ""

    def apply(self) -> None:
        person, seen = self.receipt.person, self.wished.seen
        self.receipt.note(started=True, screen=seen.display, how=self.wished.how)
        env = person.environment(**seen.environment, XDG_SESSION_TYPE="x11")
        argv = self.argv
        if not seen.bus:
            env.pop("DBUS_SESSION_BUS_ADDRESS", None)
            if self.wished.how == "vino":
                argv = ["dbus-run-session", "--", *argv]
        with Path(os.devnull).open("ab") as nowhere:
            person.spawn(argv, nowhere, env)


class StopServer(Step):
    """Stop sharing the screen."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = "stop sharing the screen"

    def difference(self) -> str | None:
        entry = self.receipt.entry
        return "" if entry.get("started") and server(self.receipt.person, entry["screen"], entry["how"]) else None

    def apply(self) -> None:
        stop(self.receipt)
        entry = self.receipt.entry
        left = server(self.receipt.person, entry["screen"], entry["how"])
        if left:
            raise Failure(
                f"the server of display {entry['screen']} did not end (process {left.pid}). Nothing was removed",
                f"kill -KILL {left.pid}   # then the same command again",
            )


def stop(receipt: Receipt) -> None:
    """End the server that the receipt tells of, and wait until it is gone."""
    person, entry = receipt.person, receipt.entry
    if "how" not in entry:
        return
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        signalled = set()
        running = server(person, entry["screen"], entry["how"])
        while running and time.monotonic() < deadline:
            if running.pid not in signalled:
                signalled.add(running.pid)
                with person.acting(), contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, number)
            time.sleep(0.1)
            running = server(person, entry["screen"], entry["how"])


@dataclass(frozen=True)
class Wish:
    """What the user gets. seen: the screen; how: "vino", "x0tigervncserver" or "x11vnc"; port: TCP port."""

    seen: PhysicalScreen
    how: str
    port: int

    @property
    def needs(self) -> list[str]:
        """What must be on the machine."""
        if self.how == "vino":
            return ["/usr/lib/vino/vino-server", "dconf", "gsettings", "dbus-run-session"]
        return [self.how, "vncpasswd"]


def wish(seen: PhysicalScreen, person: Person, receipt: Receipt) -> Wish:
    """Return what to set up on an X11 screen: as an earlier run did, with what is installed, or with what apt has."""
    choices = {"vino": "/usr/lib/vino/vino-server", "x0tigervncserver": "x0tigervncserver", "x11vnc": "x11vnc"}
    order = [c for c in (receipt.entry.get("how"), *choices) if c in choices]
    installed = next((c for c in order if packages.here(choices[c])), None)
    how = installed or next((c for c in order if packages.available(choices[c])), "vino")
    return Wish(seen, how, choose_port(person, seen.display, how, receipt.entry.get("port")))


def dconf_of(person: Person, display: str, bus: str | None) -> Dconf:
    """Return the settings as the running Vino hears them: through the bus in its own environment."""
    running = server(person, display, "vino")
    if running:
        with person.acting():
            address = proc.environment_of(running.pid).get("DBUS_SESSION_BUS_ADDRESS", "")
        if _answers(address):
            return Dconf(person, address)
    return Dconf(person, bus)


def plan(wished: Wish, receipt: Receipt, given: str | None, reset: bool) -> list[Step]:
    """Return the steps from nothing to a shared screen."""
    person, seen = receipt.person, wished.seen
    entries = person.home / ".config" / "autostart"
    steps: list[Step] = [packages.Install(wished.needs, receipt.screen)]
    if wished.how == "vino":
        guard = person.home / ".vnc" / "vino-loopback"
        argv = [system_python(), str(guard), str(wished.port), vino_program(), "--sm-disable"]
        dconf = dconf_of(person, seen.display, seen.bus)
        return [
            *steps,
            Private(receipt, person.home / ".config" / "dconf"),  # dconf's own files are world-readable inside it
            Settings(receipt, dconf, wished.port, given, reset),
            Private(receipt, guard.parent),
            File(receipt, guard, (virtual.TEMPLATES / guard.name).read_bytes(), 0o700),
            File(receipt, entries / "vino-server.desktop", autostart("Share this screen (Vino)", argv), 0o644),
            StartServer(receipt, wished, argv),
        ]
    script = person.home / ".vnc" / "vnc-mirror"
    argv = [str(script), str(wished.port)]
    return [
        *steps,
        Private(receipt, script.parent),
        virtual.Password(receipt, given, reset),
        File(receipt, script, (virtual.TEMPLATES / "vnc-mirror").read_bytes(), 0o700),
        File(receipt, entries / "vnc-mirror.desktop", autostart("Share this screen (VNC)", argv), 0o644),
        StartServer(receipt, wished, argv),
    ]


def check(wished: Wish, person: Person, changed: bool, terminal: Screen) -> list[str]:
    """Look whether the screen is shared as meant; return what was seen.

    changed: this run changed something: then log-ins are tried, too, and the server watched for five seconds.

    Raises:
        look.Problem: with what was found.
    """

    def dead() -> str | None:
        running = server(person, wished.seen.display, wished.how)
        return None if running else f"the server of display {wished.seen.display} ended"

    def open_to_all() -> str | None:
        outside = look.beyond_loopback([wished.port])
        return f"it listens beyond loopback ({', '.join(outside)})" if outside else None

    # A Vino that was running takes a moment to move to loopback after its settings changed.
    look.stays_up(open_to_all, appears=10.0, seconds=0)
    look.listening(wished.port, None, lambda: None, look.APPEARS_WITHIN if changed else 2)
    if wished.how == "vino":  # dconf's own files are world-readable, their folder is what guards them
        look.modes(person.uid, {person.home / ".config" / "dconf": 0o700})
    else:
        look.modes(person.uid, virtual.secrets_of(person))
    said = [f"port {wished.port} listens on loopback only"]
    look.refused_from_outside(wished.port)
    said.append("this machine's network addresses refuse connections")
    if changed:
        said += look.password_wanted(wished.port)
        look.stays_up(dead)
        look.private(wished.port)
        said.append(f"{wished.how} has been running for {look.STAYS_ALIVE:g} s")
    else:
        look.working(dead)
    number = int(wished.seen.display.lstrip(":"))
    for found in network.listeners([6000 + number]):  # started by the display manager, so not ours to stop
        terminal.say(f"note: the screen's own X server listens on TCP ({found}); add to its command: -nolisten tcp")
    return said


def undo(receipt: Receipt, seen_bus: str | None) -> list[Step]:
    """Return the steps that stop sharing and put everything back."""
    person, entry = receipt.person, receipt.entry
    steps: list[Step] = [StopServer(receipt)]
    if "vino_written" in entry:
        steps.append(SettingsBack(receipt, dconf_of(person, entry.get("screen", ""), seen_bus)))
    steps += [PutBack(receipt, Path(path)) for path in entry["files"]]
    return [*steps, Tidy(receipt, [person.home / ".vnc" / "mirror.log"])]


def disable(receipt: Receipt) -> None:
    """Stop sharing and keep it from starting again: a check has failed."""
    stop(receipt)
    for path in receipt.entry["files"]:
        if path.endswith(".desktop"):
            PutBack(receipt, Path(path)).apply()
