"""How far ssh has come before the log-in, by what it says at LogLevel DEBUG1, and how long each part may take.

A person may have to type a password, compare a host key or touch a key in some of them. sshd gives people 120 s
(LoginGraceTime); ssh itself, waiting for a program of its configuration or for an agent, waits for ever.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

SAID = "debug1: "  # begins each line of ssh's at LogLevel DEBUG1 that it does not say to people (log.c)
PERSON_SECONDS = 180.0
MACHINE_SECONDS = 60.0


class Stage(NamedTuple):
    """One part of the way in.

    begins: the words of ssh with which it begins; seconds: how long it may take, None where ssh's own ConnectTimeout
    ends it; what: what is said of one that takes longer, with {host}; hint: what to type, {typed} is ssh's command.
    """

    begins: str
    seconds: float | None
    what: str
    hint: str


LAST_LINES = "{typed} -v true   # its last lines name the program or the file"
CONFIGURATION = Stage(
    "",
    MACHINE_SECONDS,
    "ssh does not get past its own configuration (a `Match exec` or an Include in ~/.ssh/config that hangs?)",
    LAST_LINES,
)
# The words are of OpenSSH 7.4 to 10.2: sshconnect.c, sshconnect2.c, kex.c, packet.c.
STAGES = (
    Stage(r"Connecting to ", None, "", ""),
    Stage(
        r"Connection established|Executing proxy ",
        MACHINE_SECONDS,
        "ssh does not get past the key files (an IdentityFile in ~/.ssh/config on a disk that is gone?)",
        LAST_LINES,
    ),
    Stage(r"Local version string|SSH2_MSG_KEXINIT sent", None, "", ""),
    Stage(
        r"Authenticating to ",
        MACHINE_SECONDS,
        "ssh does not find out which keys {host} may have (a KnownHostsCommand in ~/.ssh/config that hangs, or a "
        "file of known hosts on a disk that is gone?)",
        LAST_LINES,
    ),
    Stage(
        r"Server host key",
        PERSON_SECONDS,
        "nobody has said yes to the host key of {host} (or a KnownHostsCommand in ~/.ssh/config hangs)",
        "{typed} true   # compare the key, and accept it once",
    ),
    Stage(
        r"SSH2_MSG_NEWKEYS received",
        MACHINE_SECONDS,
        "the ssh agent does not answer (SSH_AUTH_SOCK, or an IdentityAgent in ~/.ssh/config)",
        "ssh-add -l   # hangs, too? Start the agent again, or do without: -o IdentityAgent=none",
    ),
    Stage(
        r"SSH2_MSG_SERVICE_ACCEPT received",
        PERSON_SECONDS,
        "nobody has logged in to {host} (a password, a touch, an agent's question that waits, or its sshd hangs)",
        "{typed} -v true   # shows which key or password it wants",
    ),
)


TELLING = re.compile(r"Executing |identity file |Next authentication method|Offering |Server accepts key")


class Progress:
    """How far one ssh has come. A thread tells it what ssh says, another asks it."""

    def __init__(self) -> None:
        self._telling = ""  # its newest words that name something
        self._now, self._since = CONFIGURATION, time.monotonic()

    def hear(self, line: str) -> None:
        """Take a line that ssh said, which begins with SAID."""
        said = line[len(SAID) :]
        if TELLING.match(said):
            self._telling = said[:200]
        for stage in STAGES:
            if re.match(stage.begins, said):
                self._now, self._since = stage, time.monotonic()

    def overdue(self) -> tuple[str, str] | None:
        """Return (what, hint) of a part that takes longer than it may, with {host} and {typed} in them."""
        if self._now.seconds is None or time.monotonic() - self._since < self._now.seconds:
            return None
        last = re.sub("[{}]", "", f"; it said last: {self._telling}" if self._telling else "")
        return f"{self._now.what}: nothing came for {self._now.seconds:.0f} s{last}", self._now.hint
