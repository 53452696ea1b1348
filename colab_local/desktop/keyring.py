"""Where gnome-remote-desktop keeps its user name and password: the log-in keyring of the user, and GNOME's settings.

Seen with the real grdctl 48.1 (Debian 13): it opens a new buffered reader for each prompt, so the first one swallows
both lines of a pipe and the second prompt crashes it (exit 139; NixOS/nixpkgs issue 266774). With the user name as an
argument it asks once, and one line is enough. Before 47 it takes the password as an argument only, which everybody
can read in ps; there secret-tool writes the very same entry, from standard input. For VNC that entry is the bare
password (seen with 42.9); 43 and newer take it over into an entry of another name when grdctl runs next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from colab_local.base.errors import Failure

from .person import Person

STDIN_SINCE = 47  # grdctl reads the password from standard input


@dataclass(frozen=True)
class Protocol:
    """What gnome-remote-desktop speaks.

    word: as grdctl and the receipt call it; ports: where it may listen, the usual one first; entries: its names in
    the keyring (grd-schemas.c), the oldest first; keys: the settings that are made here, "enable" last.
    """

    word: str
    ports: range
    entries: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.word.upper()

    @property
    def schema(self) -> str:
        """Where GNOME has its settings."""
        return f"org.gnome.desktop.remote-desktop.{self.word}"


# With port negotiation on (since 46) each takes the next free port of ten, so the firewall covers these, too.
RDP = Protocol(
    "rdp",
    range(3389, 3400),
    ("org.gnome.RemoteDesktop.RdpCredentials",),
    ("tls-key", "tls-cert", "view-only", "port", "negotiate-port", "enable"),
)
VNC = Protocol(
    "vnc",
    range(5900, 5910),
    ("org.gnome.RemoteDesktop.VncPassword", "org.gnome.RemoteDesktop.VncCredentials"),
    ("encryption", "auth-method", "view-only", "port", "negotiate-port", "enable"),
)
ASK = ("busctl", "--user", "--timeout=10")
SECRETS, ROOT = "org.freedesktop.secrets", "/org/freedesktop/secrets"
LOG_IN = "log out, then log in at the screen with your password: that makes the keyring, automatic log-in does not"


def state(person: Person) -> str:
    """Return what the user's keyring is: "open", "locked", "none" (automatic log-in makes none), or "" if unknown."""
    try:
        service = "org.freedesktop.Secret.Service"
        alias = person.run([*ASK, "call", SECRETS, ROOT, service, "ReadAlias", "s", "default"]).decode()
        found = re.search(r'"(/[^"]+)"', alias)
        if found is None:  # the path is "/"
            return "none"
        collection = "org.freedesktop.Secret.Collection"
        locked = person.run([*ASK, "get-property", SECRETS, found.group(1), collection, "Locked"]).decode()
    except Failure:
        return ""
    return "locked" if locked.split()[-1:] == ["true"] else "open"


def demand_open(person: Person, said: str = "") -> None:
    """Refuse to go on where the password could not be kept.

    said: what grdctl complained of ("Object does not exist at path .../collection/login").

    Raises:
        Failure: there is no keyring, or it is locked.
    """
    found = state(person)
    if found == "none" or "collection/login" in said:
        raise Failure(
            f"{person.name} has no log-in keyring, and gnome-remote-desktop keeps its password there", LOG_IN
        )
    if found == "locked":
        raise Failure(
            f"the log-in keyring of {person.name} is locked, and gnome-remote-desktop keeps its password there",
            LOG_IN,
        )


def asks(helps: str) -> bool:
    """Say whether this grdctl asks for the password (since 47), by what its --help says of its arguments."""
    return not re.search("set-(credentials <username>|password) <password>", helps)


def speaks(protocol: Protocol, helps: str) -> bool:
    """Say whether gnome-remote-desktop was built with a protocol, by what `grdctl --help` says."""
    return re.search(rf"(?m)^ +{protocol.word} ", helps) is not None


def store(person: Person, protocol: Protocol, by_grdctl: bool, password: str) -> None:
    """Keep the password (for RDP the user name, too), which goes to standard input.

    by_grdctl: grdctl asks for it; otherwise secret-tool writes it.

    Raises:
        Failure: it could not be kept; the text says why.
    """
    if by_grdctl:
        words = ["set-credentials", person.name] if protocol is RDP else ["set-password"]
        argv, feed = ["grdctl", protocol.word, *words], password + "\n"
    else:
        label = "RDP credentials" if protocol is RDP else "VNC password"
        argv = ["secret-tool", "store", f"--label=GNOME Remote Desktop {label}", "xdg:schema", protocol.entries[0]]
        both = f"{{'username': <{quote(person.name)}>, 'password': <{quote(password)}>}}"
        feed = both if protocol is RDP else password
    try:
        person.run(argv, feed=feed.encode())
    except Failure as fault:
        demand_open(person, fault.what)
        raise Failure(f"the password could not be kept ({fault.what})", "grdctl status") from None


def quote(text: str) -> str:
    """Return a text in single quotes as GVariant's text format wants it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def has_credentials(person: Person, protocol: Protocol) -> bool:
    """Say whether the keyring holds a password for this protocol."""
    search = [*ASK, "call", SECRETS, ROOT, "org.freedesktop.Secret.Service", "SearchItems", "a{ss}", "1"]
    try:
        return any('"/' in person.run([*search, "xdg:schema", entry]).decode() for entry in protocol.entries)
    except Failure:
        return False


def forgetting(protocol: Protocol) -> list[str]:
    """Return the command that removes the password from the keyring."""
    return ["grdctl", protocol.word, "clear-credentials" if protocol is RDP else "clear-password"]


def settings(person: Person, protocol: Protocol) -> dict[str, str]:
    """Return GNOME's settings for a protocol as GVariant texts, those of its keys that this release has."""
    found: dict[str, str] = {}
    try:
        listed = person.run(["gsettings", "list-recursively", protocol.schema]).decode()
    except Failure:
        return found
    for line in listed.splitlines():
        parts = line.split(None, 2)
        if len(parts) == 3 and parts[1] in protocol.keys:
            found[parts[1]] = parts[2]
    return found


def commands(
    protocol: Protocol, key_and_cert: Sequence[Path], helps: str, has: Mapping[str, str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the commands that come before the password is set, and those after it: the last opens the port.

    key_and_cert: for RDP; helps: what `grdctl --help` says, older releases cannot switch port negotiation off (since
    46); has: the settings as they are, those of this release. Some distributions added an encryption to VNC (TLS
    without certificates) that neither Finder nor TigerVNC knows: the tunnel is the encryption.
    """
    grdctl = ["grdctl", protocol.word]
    if protocol is RDP:
        before = [[*grdctl, "set-tls-key", str(key_and_cert[0])], [*grdctl, "set-tls-cert", str(key_and_cert[1])]]
    else:
        before = [[*grdctl, "set-auth-method", "password"]]  # else somebody at the screen is asked
        if "encryption" in has:
            before.append(["gsettings", "set", protocol.schema, "encryption", "['none']"])
    if has.get("port", str(protocol.ports[0])).split()[-1] != str(protocol.ports[0]):  # one that nothing guards
        before.append(["gsettings", "set", protocol.schema, "port", str(protocol.ports[0])])
    before.append([*grdctl, "disable-view-only"])
    fixed = [[*grdctl, "disable-port-negotiation"]] if "disable-port-negotiation" in helps else []
    return before, [*fixed, [*grdctl, "enable"]]


def put_back(person: Person, protocol: Protocol, before: dict[str, str], written: dict[str, str]) -> None:
    """Put GNOME's settings back, except those that the user has changed since.

    before, written: GVariant texts as `settings` returned them before the first run and after it.
    """
    now = settings(person, protocol)
    for key in reversed(protocol.keys):  # off before anything else
        if key in before and now.get(key) == written.get(key) != before[key]:
            person.run(["gsettings", "set", protocol.schema, key, before[key]])


def starts_at_login(person: Person, service: str) -> bool:
    """Say whether the user's systemd starts a service when they log in."""
    return any((person.home / ".config/systemd/user").glob(f"*.wants/{service}"))
