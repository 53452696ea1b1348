"""Text for people: without secrets, without what steers a terminal, sizes as people say them."""

from __future__ import annotations

import re

# Names of settings and of a URL's parameters whose values let somebody in: tokens, and what clouds sign URLs with.
SECRET_NAME = re.compile(
    r"(?i)token|secret|passw|passphrase|pwd|credential|api_?key|private|auth|signature|session|cookie|[_-]key$|^key$"
    r"|^sig$|^x-(amz|goog|ms)-|^jwt$|^code$|^pw$"
)


def mask(text: str) -> str:
    """Return `text` without logins and signatures of URLs and Jupyter's tokens: fit for a screen or a log."""

    def hidden(found: re.Match[str]) -> str:
        return found.group(1) + ("***" if SECRET_NAME.search(found.group(2)) else found.group(3))

    text = re.sub(r"((?<!\w)\w+://)[^/\s]+@", r"\1***@", text)  # to the last @: a password may hold one
    text = re.sub(r"([?&;]([\w.%-]+)=)([^&;\s\"'<>]+)", hidden, text)
    return re.sub(r"(token(?:=|%3[Dd]))[^&\s\"'%]+", r"\1***", text)


def printable(text: str) -> str:
    """Return `text` without what steers a terminal: it may come from a server, another host or a file's name."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def megabytes(count: float) -> str:
    """Return a number of bytes as people say it: 450 MB, 1.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def amount(done: float, total: float = 0) -> str:
    """Return how many bytes there are by now, in the unit of the whole: 312 of 450 MB, 0.3 of 3.4 GB, 12 MB."""
    if not total:
        return megabytes(done)
    shown = f"{done / 1e9:.1f}" if total >= 1e9 else f"{done / 1e6:.0f}"
    return f"{shown} of {megabytes(total)}"


def duration(seconds: float) -> str:
    """Return a time as people say it: 15 s, 2 min 5 s, 1 h 12 min.

    >>> [duration(number) for number in (0.2, 59.7, 125, 4321)]
    ['0 s', '1 min 0 s', '2 min 5 s', '1 h 12 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
