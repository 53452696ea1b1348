"""Wayland: GNOME's own server, gnome-remote-desktop (RDP).

It cannot be bound to loopback: it listens on every address (its source: g_socket_listener_add_inet_port, and there
is no setting). So it is enabled only behind a firewall rule, and refused where there can be none.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from colab_local.base import network
from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.base.files import write_atomically

from . import files, keyring, look, packages, secret
from .mirror import PhysicalScreen
from .person import Person
from .plan import SECRET, PutBack, Receipt, Step, Tidy
from .plan import carry_out as plan_carry_out

PORT = 3389
# With port negotiation on it takes the next free one, so the rule covers these, too.
PORTS = range(3389, 3400)
RDP_SINCE = 42  # what is older shares the screen by VNC alone, with a password that is an argument
TABLE = "colab_local_desktop"
RULES = Path("/etc/colab-local/desktop.nft")
UNIT = Path("/etc/systemd/system/colab-local-desktop-firewall.service")
SERVICE = "gnome-remote-desktop.service"
FALLBACK = "python3 bootstrap.py --desktop virtual   # an X11 desktop of its own, loopback only, opens on a Mac, too"
ON_XORG = '; or choose "on Xorg" at the log-in screen (the wheel beside the password), log in, and run this again'


def firewall_text() -> str:
    """Return the nftables rules: nothing but loopback reaches the RDP ports. Loading them twice changes nothing."""
    return (
        "# managed by bootstrap.py --desktop mirror: gnome-remote-desktop listens on every address\n"
        f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"
        f"table inet {TABLE} {{\n  chain input {{\n    type filter hook input priority -10; policy accept;\n"
        f'    iifname != "lo" tcp dport {PORTS[0]}-{PORTS[-1]} drop\n  }}\n}}\n'
    )


def unit_text() -> str:
    """Return the system unit that loads the rules before the network is up."""
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") or "/usr/sbin/nft"
    return (
        "# managed by bootstrap.py --desktop mirror\n"
        "[Unit]\nDescription=Keep the RDP port of gnome-remote-desktop off the network\nDefaultDependencies=no\n"
        "Before=network-pre.target\nWants=network-pre.target\nAfter=local-fs.target\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={nft} -f {RULES}\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def firewall_is_up() -> bool:
    """Say whether the kernel has the rule, by reading it back."""
    try:
        done = subprocess.run(
            ["nft", "list", "table", "inet", TABLE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=15,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return (
        done.returncode == 0
        and re.search(rf'iifname != "lo" tcp dport {PORTS[0]}-{PORTS[-1]} drop', done.stdout) is not None
    )


def load_firewall(text: str) -> None:
    """Load the rules and read them back.

    Raises:
        Failure: the kernel does not have them afterwards.
    """
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=15, check=False)
    if done.returncode or not firewall_is_up():
        words = done.stderr.strip().splitlines()
        raise Failure(
            f"the firewall rule could not be set ({words[0] if words else 'it is not there when read back'}): "
            "without it RDP would be open to the network, so it stays off",
            FALLBACK,
        )


def version() -> int | None:
    """Return the major version of gnome-remote-desktop that is installed, or would be."""
    lines = packages._apt("apt-cache", "policy", "gnome-remote-desktop")
    found = re.search(r"Installed: (?:\d+:)?(\d+)", lines) or re.search(r"Candidate: (?:\d+:)?(\d+)", lines)
    return int(found.group(1)) if found else None


def has_xorg() -> bool:
    """Say whether GNOME's X11 session can be chosen at the log-in screen (gone since GNOME 49)."""
    folder = Path("/usr/share/xsessions")
    return any(re.search("gnome|ubuntu", path.name) for path in folder.glob("*.desktop"))


def refuse(
    seen: PhysicalScreen, is_root: bool, has_systemd: bool, has_nft: bool, major: int | None, has_xorg: bool = False
) -> Failure | None:
    """Return why a Wayland screen cannot be shared safely here, or None. Takes facts, looks at nothing.

    major: version of gnome-remote-desktop, None if there is none; has_xorg: the log-in screen offers X11 sessions.
    """
    other = FALLBACK + ON_XORG if has_xorg else FALLBACK
    loopback = "gnome-remote-desktop cannot be bound to loopback, so it needs a firewall rule in front of it"
    if "GNOME" not in seen.desktop.upper():
        return Failure(
            f"only GNOME's Wayland screens can be shared (found {seen.desktop or 'an unknown desktop'} on Wayland): "
            "VNC servers for X11 cannot see a Wayland session",
            other,
            EXIT_MACHINE,
        )
    if major is None:
        return Failure("this Wayland screen needs gnome-remote-desktop (found none)", other, EXIT_MACHINE)
    if major < RDP_SINCE:
        return Failure(f"gnome-remote-desktop {major} has no RDP (need {RDP_SINCE} or newer)", other, EXIT_MACHINE)
    if not has_systemd or not has_nft:
        lacking = "systemd" if not has_systemd else "nft (package nftables)"
        return Failure(f"{loopback}, and that needs {lacking}", other, EXIT_MACHINE)
    if not is_root:
        return Failure(
            f"{loopback}, and that needs root",
            "sudo python3 bootstrap.py --desktop mirror   # or: " + other,
            EXIT_MACHINE,
        )
    return None


class Firewall(Step):
    """The rule, now and at every boot, before anything is enabled."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = f"close TCP {PORTS[0]}-{PORTS[-1]} to the network with nftables ({RULES}, {UNIT.name})"

    def difference(self) -> str | None:
        notes = []
        for path, text in ((RULES, firewall_text()), (UNIT, unit_text())):
            old = path.read_bytes() if path.exists() else None
            if old != text.encode():
                notes.append(files.difference(old, text.encode(), str(path)))
        if not firewall_is_up():
            notes.append("load it now")
        return "\n".join(notes) if notes else None

    def apply(self) -> None:
        load_firewall(firewall_text())
        self.receipt.note(firewall=True)
        for path, text in ((RULES, firewall_text()), (UNIT, unit_text())):
            write_atomically(path, text)
        for words in (["daemon-reload"], ["enable", "--now", UNIT.name]):
            done = subprocess.run(
                ["systemctl", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if done.returncode:
                raise Failure(
                    f"systemctl {' '.join(words)} failed: {done.stderr.strip()}", f"systemctl status {words[-1]}"
                )


class Rdp(Step):
    """Certificate, user name and password, service."""

    def __init__(self, receipt: Receipt, given: str | None, reset: bool) -> None:
        self.receipt, self.given, self.reset = receipt, given, reset
        self.folder = receipt.person.home / ".local/share/colab-local-rdp"
        self.title = f"set up and start GNOME Remote Desktop (RDP) with its key in {self.folder}"

    def difference(self) -> str | None:
        if self.given is not None:
            return f"the password that you gave {SECRET}"
        if self.reset or not is_up(self.receipt):
            return f"a random password of {secret.LONGEST} characters, shown once on the terminal {SECRET}"
        return None

    def demand(self) -> None:
        if self.given is None:
            secret.demand_terminal()
        keyring.demand_open(self.receipt.person)

    def apply(self) -> None:
        if not firewall_is_up():
            raise Failure("the firewall rule is gone: RDP stays off", FALLBACK)
        person = self.receipt.person
        keyring.demand_open(person)
        before = keyring.settings(person)
        had = keyring.has_credentials(person)
        self.receipt.entry.setdefault("rdp_before", before)
        self.receipt.entry.setdefault("rdp_credentials_before", had)
        self.receipt.entry.setdefault("rdp_service_before", keyring.starts_at_login(person, SERVICE))
        if had and not self.receipt.entry.get("rdp"):
            self.receipt.screen.say("note: the user name and the password that were set for RDP are replaced")
        certificate = self._certificate(person)
        self.receipt.note(rdp=True, port=PORT)
        password = self.given or secret.generate()
        helps = person.run(["grdctl", "--help"]).decode(errors="replace")
        first, last = keyring.commands(str(certificate[0]), str(certificate[1]), helps)
        for words in first:
            person.run(words)
        keyring.store(person, keyring.asks(helps), password)
        for words in last:
            person.run(words)
        self.receipt.note(rdp_written=keyring.settings(person))
        person.run(["systemctl", "--user", "enable", "--now", SERVICE])
        if self.given is None:  # not before: a password that was never set is of no use
            secret.show_once(password, f"{person.name} over RDP on {os.uname().nodename}")

    def _certificate(self, person: Person) -> list[Path]:
        """Make a key and a self-signed certificate, or return those of an earlier run."""
        key, cert = self.folder / "rdp.key", self.folder / "rdp.crt"
        with person.acting():
            if files.look(person, key) and files.look(person, cert):
                return [key, cert]
            for missing in files.missing_folders(person, self.folder):
                self.receipt.entry["folders"].append(str(missing))
            with files.folder(person, self.folder, make=True):
                pass
        subject = f"/CN={os.uname().nodename}"
        person.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "3650"]  # noqa: RUF005
            + ["-subj", subject, "-keyout", str(key), "-out", str(cert)]
        )
        self.receipt.note(rdp_files=[str(key), str(cert)])
        return [key, cert]


def is_up(receipt: Receipt) -> bool:
    """Say whether an earlier run set RDP up and it runs."""
    return bool(receipt.entry.get("rdp")) and receipt.person.succeeds(["systemctl", "--user", "is-active", SERVICE])


def disable(receipt: Receipt) -> None:
    """Switch RDP off if it was switched on here; the firewall rule stays."""
    if not receipt.entry.get("rdp"):
        return
    person = receipt.person
    person.succeeds(["systemctl", "--user", "disable", "--now", SERVICE])
    person.succeeds(["grdctl", "rdp", "disable"])


def take_back(receipt: Receipt) -> None:
    """Take back what a first run had written before it failed; what cannot be taken back stays listed."""
    try:
        plan_carry_out(undo(receipt))
    except Failure as fault:
        receipt.screen.report(
            f"note: {fault.what}; to try again: sudo python3 bootstrap.py --desktop mirror --uninstall"
        )


class RdpOff(Step):
    """Switch RDP off and put GNOME's settings back, then take the firewall rule away."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.title = "switch GNOME Remote Desktop off, put its settings back, then remove its firewall rule"

    def difference(self) -> str | None:
        return "" if self.receipt.entry.get("firewall") or self.receipt.entry.get("rdp") else None

    def apply(self) -> None:
        if os.getuid() != 0:
            raise Failure("removing the firewall rule needs root", "sudo python3 bootstrap.py")
        disable(self.receipt)
        look.still_open(PORT)  # it may take a moment to close
        if network.listeners(PORTS):
            by_hand = f"systemctl --user stop {SERVICE}   # as {self.receipt.person.name}, not as root"
            raise Failure("RDP still listens, so its firewall rule stays", by_hand)
        self._settings_back()
        self._firewall_off()

    def _settings_back(self) -> None:
        person, entry = self.receipt.person, self.receipt.entry
        if not entry.get("rdp"):
            return
        if not entry.get("rdp_credentials_before") and keyring.has_credentials(person) and not keyring.forget(person):
            self.receipt.screen.say(
                "note: the password for RDP is still in the keyring; to remove it: grdctl rdp clear-credentials"
            )
        with contextlib.suppress(Failure):  # no session bus any more: then no one can be let in either
            # A run that failed half-way wrote less than this; what it did not write is as it was.
            written = entry.get("rdp_written") or keyring.settings(person)
            keyring.put_back(person, entry.get("rdp_before", {}), written)
        if entry.get("rdp_service_before") and entry.get("rdp_before", {}).get("enable") == "true":
            person.succeeds(["systemctl", "--user", "enable", SERVICE])

    def _firewall_off(self) -> None:
        for argv in (["systemctl", "disable", "--now", UNIT.name], ["nft", "delete", "table", "inet", TABLE]):
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        for path in (UNIT, RULES):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        with contextlib.suppress(OSError):  # somebody else's files are in it
            RULES.parent.rmdir()
        subprocess.run(["systemctl", "daemon-reload"], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def plan(receipt: Receipt, given: str | None, reset: bool) -> list[Step]:
    """Return the steps, the firewall before the service."""
    needs = ["grdctl", "openssl", "gsettings"]
    if (version() or 0) < keyring.STDIN_SINCE:
        needs.append("secret-tool")
    return [packages.Install(needs, receipt.screen), Firewall(receipt), Rdp(receipt, given, reset)]


def check(appears: float = look.APPEARS_WITHIN, seconds: float = look.STAYS_ALIVE) -> list[str]:
    """Look whether the rule is there and RDP listens.

    appears: seconds that it may take to listen; seconds: how long it must from then on.

    Raises:
        look.Problem: with what was found.
    """

    def closed() -> str | None:
        if not firewall_is_up():
            raise look.Problem("the firewall rule is not there")
        return None if network.listeners([PORT]) else f"nothing listens on port {PORT}"

    look.stays_up(closed, appears, seconds)
    return [f"port {PORT} listens, and the firewall lets nothing but loopback reach it"]


def undo(receipt: Receipt) -> list[Step]:
    """Return the steps that remove it all."""
    made = [Path(p) for p in receipt.entry.get("rdp_files", [])]
    return [RdpOff(receipt), *(PutBack(receipt, Path(p)) for p in receipt.entry["files"]), Tidy(receipt, made)]
