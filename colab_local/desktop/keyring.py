"""Where gnome-remote-desktop keeps its user name and password: the log-in keyring of the user, and GNOME's settings.

Seen with the real grdctl 48.1 (Debian 13): it opens a new buffered reader for each prompt, so the first one swallows
both lines of a pipe and the second prompt crashes it (exit 139; NixOS/nixpkgs issue 266774). With the user name as an
argument it asks once, and one line is enough. Before 47 it takes the password as an argument only, which everybody
can read in ps; there secret-tool writes the very same entry, from standard input.
"""

from __future__ import annotations

import re

from colab_local.base.errors import Failure

from .person import Person

STDIN_SINCE = 47  # grdctl reads the password from standard input
ENTRY = "org.gnome.RemoteDesktop.RdpCredentials"  # grd-schemas.c
SCHEMA = "org.gnome.desktop.remote-desktop.rdp"
# What is set here, with the values that keep the screen safe until the end: "enable" comes last.
KEYS = ("tls-key", "tls-cert", "view-only", "negotiate-port", "enable")
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
    return "set-credentials <username> <password>" not in helps


def store(person: Person, by_grdctl: bool, password: str) -> None:
    """Keep the user name and the password, which goes to standard input.

    by_grdctl: grdctl asks for it; otherwise secret-tool writes it.

    Raises:
        Failure: it could not be kept; the text says why.
    """
    if by_grdctl:
        argv, feed = ["grdctl", "rdp", "set-credentials", person.name], password + "\n"
    else:
        argv = ["secret-tool", "store", "--label=GNOME Remote Desktop RDP credentials", "xdg:schema", ENTRY]
        feed = f"{{'username': <{quote(person.name)}>, 'password': <{quote(password)}>}}"
    try:
        person.run(argv, feed=feed.encode())
    except Failure as fault:
        demand_open(person, fault.what)
        raise Failure(f"the password could not be kept ({fault.what})", "grdctl status") from None


def quote(text: str) -> str:
    """Return a text in single quotes as GVariant's text format wants it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def has_credentials(person: Person) -> bool:
    """Say whether the keyring holds a user name and a password for RDP."""
    search = ["SearchItems", "a{ss}", "1", "xdg:schema", ENTRY]
    try:
        found = person.run([*ASK, "call", SECRETS, ROOT, "org.freedesktop.Secret.Service", *search]).decode()
    except Failure:
        return False
    return '"/' in found


def forget(person: Person) -> bool:
    """Remove the user name and the password; say whether that worked."""
    return person.succeeds(["grdctl", "rdp", "clear-credentials"], timeout=20)


def settings(person: Person) -> dict[str, str]:
    """Return GNOME's settings for RDP as GVariant texts, those of KEYS that this release has."""
    found: dict[str, str] = {}
    try:
        listed = person.run(["gsettings", "list-recursively", SCHEMA]).decode()
    except Failure:
        return found
    for line in listed.splitlines():
        parts = line.split(None, 2)
        if len(parts) == 3 and parts[1] in KEYS:
            found[parts[1]] = parts[2]
    return found


def commands(tls_key: str, tls_cert: str, helps: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the grdctl commands that come before the password is set, and those after it: the last opens the port.

    helps: what `grdctl --help` says; older releases cannot switch port negotiation off (since 46).
    """
    rdp = ["grdctl", "rdp"]
    before = [[*rdp, "set-tls-key", tls_key], [*rdp, "set-tls-cert", tls_cert], [*rdp, "disable-view-only"]]
    fixed = [[*rdp, "disable-port-negotiation"]] if "disable-port-negotiation" in helps else []
    return before, [*fixed, [*rdp, "enable"]]


def put_back(person: Person, before: dict[str, str], written: dict[str, str]) -> None:
    """Put GNOME's settings back, except those that the user has changed since.

    before, written: GVariant texts as `settings` returned them before the first run and after it.
    """
    now = settings(person)
    for key in reversed(KEYS):  # off before anything else
        if key in before and now.get(key) == written.get(key) != before[key]:
            person.run(["gsettings", "set", SCHEMA, key, before[key]])


def starts_at_login(person: Person, service: str) -> bool:
    """Say whether the user's systemd starts a service when they log in."""
    return any((person.home / ".config/systemd/user").glob(f"*.wants/{service}"))
