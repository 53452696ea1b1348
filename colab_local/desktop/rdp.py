"""Wayland: GNOME's own server, gnome-remote-desktop (RDP, or VNC where it was built with it).

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

from . import files, keyring, look, packages, proc, secret
from .keyring import RDP, VNC, Protocol
from .mirror import PhysicalScreen
from .person import Person
from .plan import SECRET, PutBack, Receipt, Step, Tidy
from .plan import carry_out as plan_carry_out

RDP_SINCE = 42  # what is older shares the screen by VNC alone, with a password that is an argument
TABLE = "colab_local_desktop"
RULES = Path("/etc/colab-local/desktop.nft")
UNIT = Path("/etc/systemd/system/colab-local-desktop-firewall.service")
SERVICE = "gnome-remote-desktop.service"
DAEMON = "gnome-remote-desktop-daemon"
OVER_VNC = "gnome-vnc"  # the receipt's word for how
FALLBACK = "python3 bootstrap.py --desktop virtual !--vnc   # a desktop of its own, loopback only, also for a Mac"
ON_XORG = '; or choose "on Xorg" at the log-in screen (the wheel beside the password), log in, and run this again'


def protocol_of(receipt: Receipt) -> Protocol:
    """Return what an earlier run set up."""
    return VNC if receipt.entry.get("vnc") or receipt.entry.get("how") == OVER_VNC else RDP


def choose(receipt: Receipt, vnc: str) -> Protocol:
    """Return what to set up. vnc: "gnome" asks for VNC.

    Raises:
        Failure: an earlier run set up the other.
    """
    so_far = protocol_of(receipt)
    if vnc != "gnome" or so_far is VNC:
        return so_far
    if receipt.entry.get("rdp"):
        raise Failure(
            f"this screen of {receipt.person.name} is shared over RDP already, and it is one or the other",
            "sudo python3 bootstrap.py --desktop mirror --uninstall   # then the same command again",
        )
    return VNC


def help_text(person: Person) -> str:
    """Return what grdctl says of itself, "" where there is none yet."""
    with contextlib.suppress(Failure):
        return person.run(["grdctl", "--help"]).decode(errors="replace")
    return ""


def _rule(protocol: Protocol) -> str:
    return f'iifname != "lo" tcp dport {protocol.ports[0]}-{protocol.ports[-1]} drop'


def firewall_text(protocol: Protocol) -> str:
    """Return the nftables rules: nothing but loopback reaches the ports. Loading them twice changes nothing."""
    return (
        "# managed by bootstrap.py --desktop mirror: gnome-remote-desktop listens on every address\n"
        f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"
        f"table inet {TABLE} {{\n  chain input {{\n    type filter hook input priority -10; policy accept;\n"
        f"    {_rule(protocol)}\n  }}\n}}\n"
    )


def unit_text(protocol: Protocol) -> str:
    """Return the system unit that loads the rules before the network is up."""
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") or "/usr/sbin/nft"
    return (
        "# managed by bootstrap.py --desktop mirror\n"
        f"[Unit]\nDescription=Keep the {protocol.name} port of gnome-remote-desktop off the network\n"
        "DefaultDependencies=no\n"
        "Before=network-pre.target\nWants=network-pre.target\nAfter=local-fs.target\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={nft} -f {RULES}\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def firewall_is_up(protocol: Protocol) -> bool:
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
    return done.returncode == 0 and _rule(protocol) in done.stdout


def load_firewall(protocol: Protocol) -> None:
    """Load the rules and read them back.

    Raises:
        Failure: the kernel does not have them afterwards.
    """
    text = firewall_text(protocol)
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=15, check=False)
    if done.returncode or not firewall_is_up(protocol):
        words = done.stderr.strip().splitlines()
        raise Failure(
            f"the firewall rule could not be set ({words[0] if words else 'it is not there when read back'}): "
            f"without it {protocol.name} would be open to the network, so it stays off",
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


def built_without(protocol: Protocol, hint: str) -> Failure:
    """Return the failure of a gnome-remote-desktop that does not speak what was asked for."""
    what = f"this gnome-remote-desktop was built without {protocol.name} (its grdctl knows no {protocol.word})"
    return Failure(what, hint, EXIT_MACHINE)


def refuse(
    seen: PhysicalScreen,
    is_root: bool,
    has_systemd: bool,
    has_nft: bool,
    major: int | None,
    has_xorg: bool = False,
    lacks_vnc: bool = False,
) -> Failure | None:
    """Return why a Wayland screen cannot be shared safely here, or None. Takes facts, looks at nothing.

    major: version of gnome-remote-desktop, None if there is none; has_xorg: the log-in screen offers X11 sessions;
    lacks_vnc: VNC is wanted, and the gnome-remote-desktop that is here was built without it.
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
    if lacks_vnc:
        return built_without(VNC, "sudo python3 bootstrap.py --desktop mirror !--vnc   # over RDP; or: " + other)
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

    def __init__(self, receipt: Receipt, protocol: Protocol) -> None:
        self.receipt, self.protocol = receipt, protocol
        self.texts = ((RULES, firewall_text(protocol)), (UNIT, unit_text(protocol)))
        ports = f"{protocol.ports[0]}-{protocol.ports[-1]}"
        self.title = f"close TCP {ports} to the network with nftables ({RULES}, {UNIT.name})"

    def difference(self) -> str | None:
        notes = []
        for path, text in self.texts:
            old = path.read_bytes() if path.exists() else None
            if old != text.encode():
                notes.append(files.difference(old, text.encode(), str(path)))
        if not firewall_is_up(self.protocol):
            notes.append("load it now")
        return "\n".join(notes) if notes else None

    def apply(self) -> None:
        load_firewall(self.protocol)
        self.receipt.note(firewall=True)
        for path, text in self.texts:
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


class Share(Step):
    """The password (for RDP a user name and a certificate, too), the settings, the service."""

    def __init__(self, receipt: Receipt, protocol: Protocol, given: str | None, reset: bool) -> None:
        self.receipt, self.protocol, self.given, self.reset = receipt, protocol, given, reset
        self.folder = receipt.person.home / ".local/share/colab-local-rdp"
        key = f" with its key in {self.folder}" if protocol is RDP else ""
        self.title = f"set up and start GNOME Remote Desktop ({protocol.name}){key}"

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
        self._demand_alone()

    def _demand_alone(self) -> None:
        """Refuse to start a service that would open something else to the network, too, or finds its port taken.

        Raises:
            Failure: names it.
        """
        person, port = self.receipt.person, self.protocol.ports[0]
        other = VNC if self.protocol is RDP else RDP
        is_on = keyring.settings(person, other).get("enable") == "true" and keyring.speaks(other, help_text(person))
        if is_on and not person.succeeds(["systemctl", "--user", "is-active", SERVICE]):
            raise Failure(
                f"{person.name} has {other.name} switched on in GNOME, and it would be open to the network as soon "
                "as the service runs",
                f"grdctl {other.word} disable   # as {person.name}, then the same command again",
            )
        if network.listeners([port]) and not listens(person, port):
            raise Failure(f"port {port} is taken by another program", f"sudo ss -ltnp 'sport = {port}'")

    def apply(self) -> None:
        person, protocol, word = self.receipt.person, self.protocol, self.protocol.word
        if not firewall_is_up(protocol):
            raise Failure(f"the firewall rule is gone: {protocol.name} stays off", FALLBACK)
        helps = help_text(person)
        if not keyring.speaks(protocol, helps):  # it has just been installed
            raise built_without(protocol, FALLBACK)
        keyring.demand_open(person)
        before = keyring.settings(person, protocol)
        had = keyring.has_credentials(person, protocol)
        self.receipt.entry.setdefault(f"{word}_before", before)
        self.receipt.entry.setdefault(f"{word}_credentials_before", had)
        self.receipt.entry.setdefault(f"{word}_service_before", keyring.starts_at_login(person, SERVICE))
        if had and not self.receipt.entry.get(word):
            self.receipt.screen.say(f"note: the password that was set for {protocol.name} is replaced")
        certificate = self._certificate(person) if protocol is RDP else []
        self.receipt.note(**{word: True}, port=protocol.ports[0])
        password = self.given or secret.generate()
        first, last = keyring.commands(protocol, certificate, helps, before)
        for words in first:
            person.run(words)
        keyring.store(person, protocol, keyring.asks(helps), password)
        for words in last:
            person.run(words)
        self.receipt.note(**{f"{word}_written": keyring.settings(person, protocol)})
        person.run(["systemctl", "--user", "enable", "--now", SERVICE])
        if self.given is None:  # not before: a password that was never set is of no use
            secret.show_once(password, f"{person.name} over {protocol.name} on {os.uname().nodename}")

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


def listens(person: Person, port: int) -> bool:
    """Say whether this user's gnome-remote-desktop, and not another program, listens at a port."""
    with person.acting():
        daemons = [process.pid for process in proc.processes(person.uid) if process.name == DAEMON]
        ours = {inode for pid in daemons for inode in proc.sockets_of(pid)}
    return any(found.inode in ours for found in network.listeners([port]))


def is_up(receipt: Receipt) -> bool:
    """Say whether an earlier run set it up and it runs."""
    is_ours = bool(receipt.entry.get(protocol_of(receipt).word))
    return is_ours and receipt.person.succeeds(["systemctl", "--user", "is-active", SERVICE])


def disable(receipt: Receipt) -> None:
    """Switch it off if it was switched on here; the firewall rule stays."""
    word = protocol_of(receipt).word
    if not receipt.entry.get(word):
        return
    person = receipt.person
    person.succeeds(["systemctl", "--user", "disable", "--now", SERVICE])
    person.succeeds(["grdctl", word, "disable"])


def take_back(receipt: Receipt) -> None:
    """Take back what a first run had written before it failed; what cannot be taken back stays listed."""
    try:
        plan_carry_out(undo(receipt))
    except Failure as fault:
        receipt.screen.report(
            f"note: {fault.what}; to try again: sudo python3 bootstrap.py --desktop mirror --uninstall"
        )


class Unshare(Step):
    """Switch it off and put GNOME's settings back, then take the firewall rule away."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt, self.protocol = receipt, protocol_of(receipt)
        self.title = "switch GNOME Remote Desktop off, put its settings back, then remove its firewall rule"

    def difference(self) -> str | None:
        return "" if self.receipt.entry.get("firewall") or self.receipt.entry.get(self.protocol.word) else None

    def apply(self) -> None:
        if os.getuid() != 0:
            raise Failure("removing the firewall rule needs root", "sudo python3 bootstrap.py")
        disable(self.receipt)
        name, ports, uid = self.protocol.name, self.protocol.ports, self.receipt.person.uid
        look.still_open(ports[0])  # it may take a moment to close
        if any(found.uid == uid and not found.on_loopback for found in network.listeners(ports)):
            by_hand = f"systemctl --user stop {SERVICE}   # as {self.receipt.person.name}, not as root"
            raise Failure(f"{name} still listens, so its firewall rule stays", by_hand)
        self._settings_back()
        self._firewall_off()

    def _settings_back(self) -> None:
        person, entry, protocol, word = self.receipt.person, self.receipt.entry, self.protocol, self.protocol.word
        if not entry.get(word):
            return
        forget, had = keyring.forgetting(protocol), entry.get(f"{word}_credentials_before")
        if not had and keyring.has_credentials(person, protocol) and not person.succeeds(forget, timeout=20):
            self.receipt.screen.say(
                f"note: the password for {protocol.name} is still in the keyring; to remove it: {' '.join(forget)}"
            )
        before = entry.get(f"{word}_before", {})
        with contextlib.suppress(Failure):  # no session bus any more: then no one can be let in either
            # A run that failed half-way wrote less than this; what it did not write is as it was.
            written = entry.get(f"{word}_written") or keyring.settings(person, protocol)
            keyring.put_back(person, protocol, before, written)
        other = keyring.settings(person, VNC if protocol is RDP else RDP)
        if entry.get(f"{word}_service_before") and "true" in (before.get("enable"), other.get("enable")):
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


def plan(receipt: Receipt, protocol: Protocol, given: str | None, reset: bool) -> list[Step]:
    """Return the steps, the firewall before the service."""
    needs = ["grdctl", "gsettings", *(["openssl"] if protocol is RDP else [])]
    if (version() or 0) < keyring.STDIN_SINCE:
        needs.append("secret-tool")
    share = Share(receipt, protocol, given, reset)
    return [packages.Install(needs, receipt.screen), Firewall(receipt, protocol), share]


def check(
    person: Person,
    protocol: Protocol,
    appears: float = look.APPEARS_WITHIN,
    seconds: float = look.STAYS_ALIVE,
    started: bool = True,
) -> list[str]:
    """Look whether the rule is there and gnome-remote-desktop listens; if it was `started` by this run, try log-ins.

    It serves one viewer at a time, so one that was there before is left in peace.

    appears: seconds that it may take to listen; seconds: how long it must from then on.

    Raises:
        look.Problem: with what was found.
    """

    port = protocol.ports[0]

    def closed() -> str | None:
        if not firewall_is_up(protocol):
            raise look.Problem("the firewall rule is not there")
        return None if listens(person, port) else f"{DAEMON} does not listen on port {port}"

    look.stays_up(closed, appears, seconds)
    tried = look.password_wanted(port) if started and protocol is VNC else []
    return [f"port {port} listens, and the firewall lets nothing but loopback reach it", *tried]


def undo(receipt: Receipt) -> list[Step]:
    """Return the steps that remove it all."""
    made = [Path(p) for p in receipt.entry.get("rdp_files", [])]
    return [Unshare(receipt), *(PutBack(receipt, Path(p)) for p in receipt.entry["files"]), Tidy(receipt, made)]
