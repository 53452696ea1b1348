"""Text for people: without secrets, without what steers a terminal, sizes as people say them."""

from __future__ import annotations

import re


def mask(text: str) -> str:
    """Return `text` without the credentials of URLs and without Jupyter tokens: fit for a screen or a log."""
    text = re.sub(r"(\w+://)[^/\s]+@", r"\1***@", text)  # to the last @: a password may hold one
    return re.sub(r"([?&]token=)[^&\s]+", r"\1***", text)


def printable(text: str) -> str:
    """Return `text` without what steers a terminal: it may come from a server, another host or a file's name."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def megabytes(count: float) -> str:
    """Return a number of bytes as people say it: 450 MB, 1.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
