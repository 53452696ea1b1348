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
SECRETS = "org.freedesktop.secrets"
LOG_IN = "log out, then log in at the screen with your password: that makes the keyring, automatic log-in does not"


def state(person: Person) -> str:
    """Return what the user's keyring is: "open", "locked" or "none" (automatic log-in makes none)."""
    call = ["busctl", "--user", "--timeout=10"]
    try:
        alias = person.run(
            [*call, "call", SECRETS, "/org/freedesktop/secrets", "org.freedesktop.Secret.Service"]  # noqa: RUF005
            + ["ReadAlias", "s", "default"]
        ).decode()
        found = re.search(r'"(/[^"]+)"', alias)
        if found is None:  # the path is "/"
            return "none"
        locked = person.run(
            [*call, "get-property", SECRETS, found.group(1), "org.freedesktop.Secret.Collection", "Locked"]
        ).decode()
    except Failure:
        return "none"
    return "locked" if locked.split()[-1:] == ["true"] else "open"


def demand_open(person: Person) -> None:
    """Refuse to go on where the password could not be kept.

    Raises:
        Failure: there is no keyring, or it is locked.
    """
    found = state(person)
    if found == "none":
        raise Failure(
            f"{person.name} has no log-in keyring, and gnome-remote-desktop keeps its password there", LOG_IN
        )
    if found == "locked":
        raise Failure(
            f"the log-in keyring of {person.name} is locked, and gnome-remote-desktop keeps its password there",
            LOG_IN,
        )


def store(person: Person, major: int, password: str) -> None:
    """Keep the user name and the password, which goes to standard input.

    major: version of gnome-remote-desktop.

    Raises:
        Failure: it could not be kept; the text says why.
    """
    if major >= STDIN_SINCE:
        argv, feed = ["grdctl", "rdp", "set-credentials", person.name], password + "\n"
    else:
        argv = ["secret-tool", "store", "--label=GNOME Remote Desktop RDP credentials", "xdg:schema", ENTRY]
        feed = f"{{'username': <{quote(person.name)}>, 'password': <{quote(password)}>}}"
    try:
        person.run(argv, feed=feed.encode())
    except Failure as fault:
        demand_open(person)
        raise Failure(f"the password could not be kept ({fault.what})", "grdctl status") from None


def quote(text: str) -> str:
    """Return a text in single quotes as GVariant's text format wants it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def has_credentials(person: Person) -> bool:
    """Say whether a user name and a password are kept already."""
    try:
        shown = person.run(["grdctl", "status"]).decode(errors="replace")
    except Failure:
        return False
    rdp = shown.partition("RDP:")[2].partition("VNC:")[0]
    found = re.search(r"^\s*Username:\s*(.*)$", rdp, re.M)
    return found is not None and found.group(1).strip() not in ("", "(null)", "(empty)")


def forget(person: Person) -> bool:
    """Remove the user name and the password; say whether that worked."""
    return person.succeeds(["grdctl", "rdp", "clear-credentials"], timeout=20)


def settings(person: Person) -> dict[str, str]:
    """Return GNOME's settings for RDP as GVariant texts, those of KEYS that this release has."""
    found = {}
    for line in person.run(["gsettings", "list-recursively", SCHEMA]).decode().splitlines():
        parts = line.split(None, 2)
        if len(parts) == 3 and parts[1] in KEYS:
            found[parts[1]] = parts[2]
    return found


def commands(tls_key: str, tls_cert: str, helps: str) -> list[list[str]]:
    """Return the grdctl commands in order, the one that opens the port last. None of them holds the password.

    helps: what `grdctl --help` says; older releases cannot switch port negotiation off (since 46).
    """
    rdp = ["grdctl", "rdp"]
    wanted = [[*rdp, "set-tls-key", tls_key], [*rdp, "set-tls-cert", tls_cert], [*rdp, "disable-view-only"]]
    if "disable-port-negotiation" in helps:
        wanted.append([*rdp, "disable-port-negotiation"])
    return [*wanted, [*rdp, "enable"]]


def put_back(person: Person, before: dict[str, str], written: dict[str, str]) -> None:
    """Put GNOME's settings back, except those that the user has changed since.

    before, written: GVariant texts as `settings` returned them before the first run and after it.
    """
    now = settings(person)
    for key in reversed(KEYS):  # off before anything else
        if key in before and now.get(key) == written.get(key) != before[key]:
            person.run(["gsettings", "set", SCHEMA, key, before[key]])


def enabled_service(person: Person, service: str) -> str | None:
    """Return what systemd says of a service of this user ("enabled", "disabled", ...), None where it says nothing."""
    try:
        return person.run(["systemctl", "--user", "is-enabled", service]).decode().strip()
    except Failure:
        return None
