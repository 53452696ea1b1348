"""Read what a host said. Nothing that a host says is believed: only known fields are taken, each by its pattern.

A host that was taken over can answer anything. What it answers ends in messages, in file names and in variables of
Ansible, which older versions would even evaluate as templates. So the rest of this collection never sees an answer
itself, but only what the functions here return.
"""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST = 16 << 20  # characters of an answer; --verify --json of the GPU environment has 60 kB
MOST = 5_000  # entries of a list
PLATFORM = "(linux-64|linux-aarch64|osx-arm64)"
FINGERPRINT = re.compile(rf"colab-local ([a-z0-9][a-z0-9_-]{{0,39}}) {PLATFORM} sha256:([0-9a-f]{{64}})")
NAME = re.compile(r"[A-Za-z0-9._+-]{1,200}")
PACKAGE = re.compile(r"[A-Za-z0-9._+/-]{1,200}")
VERSION = re.compile(r"[A-Za-z0-9._+!~*-]{0,100}")
SHA256 = re.compile(r"[0-9a-f]{64}")
WORD = re.compile(r"[a-z][a-z0-9-]{0,39}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Unreadable(ValueError):
    """An answer, or one field of it, that is not what bootstrap.py prints."""


def plain(text: object, longest: int = 2_000) -> str:
    """Return a text that is fit for a message: no control characters, no braces, not endless.

    A control character steers the terminal. Braces would be a template: Ansible before 2.19 evaluates those that it
    finds in a variable (https://docs.ansible.com/ansible/latest/porting_guides/porting_guide_core_2.19.html).
    """
    shown = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", " ", str(text)[: 4 * longest])
    shown = shown.replace("{", "(").replace("}", ")")
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def masked(text: str) -> str:
    """Return a text without the logins and the signatures of the URLs in it."""
    text = re.sub(r"(\w+://)[^/\s]+@", r"\1***@", text)
    return re.sub(r"(\w+://[^\s?]*)\?[^\s'\"]+", r"\1?***", text)


def document(text: str) -> dict[str, Any]:
    """Return an answer as a dict; raise Unreadable."""
    if len(text) > LONGEST:
        raise Unreadable(f"its answer is too long ({len(text)} characters)")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its answer is not JSON") from None
    if not isinstance(found, dict):
        raise Unreadable("its answer is not a JSON object")
    return found


def field(found: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    """Return a text of an answer that matches a pattern wholly; raise Unreadable."""
    value = found.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Unreadable(f"its answer has a wrong {name} ({plain(value, 100)})")
    return value


def number(found: dict[str, Any], name: str) -> int:
    """Return a number of an answer; raise Unreadable."""
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 60:
        raise Unreadable(f"its answer has a wrong {name} ({plain(value, 100)})")
    return value


def entries(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects of an answer; raise Unreadable."""
    value = found.get(name)
    if not isinstance(value, list) or len(value) > MOST or not all(isinstance(entry, dict) for entry in value):
        raise Unreadable(f"its answer has a wrong {name}")
    return value


# ---------------------------------------------------------------------------------------------------------
# The answers of bootstrap.py --json, and of the probe


def plan(text: str, environment: str) -> dict[str, Any]:
    """Return what --dry-run answered. environment: the one that was asked for."""
    found = document(text)
    check_environment(found, environment)
    return {
        "platform": field(found, "platform", re.compile(PLATFORM)),
        "engine": field(found, "engine", WORD),
        "lock": field(found, "lock", SHA256),
        "plan": [field(entry, "name", WORD) for entry in entries(found, "plan")],
    }


def verified(text: str, environment: str) -> dict[str, Any]:
    """Return what --verify answered: the fields that scripts/compare.py reads. environment: as in plan()."""
    found = document(text)
    check_environment(found, environment)
    platform = field(found, "platform", re.compile(PLATFORM))
    fingerprint = field(found, "fingerprint", FINGERPRINT)
    if not fingerprint.startswith(f"colab-local {environment} {platform} sha256:"):
        raise Unreadable(f"its fingerprint is of something else ({fingerprint})")
    lock = found.get("lock")
    if not isinstance(lock, dict) or len(lock) > 50:
        raise Unreadable("its answer has a wrong lock")
    if not all(NAME.fullmatch(name) and SHA256.fullmatch(str(sha256)) for name, sha256 in lock.items()):
        raise Unreadable("its answer has a wrong lock")
    return {
        "fingerprint": fingerprint,
        "environment": environment,
        "platform": platform,
        "layer": field(found, "layer", NAME),
        "lock": {name: str(sha256) for name, sha256 in sorted(lock.items())},
        "packages": [
            {
                "layer": field(entry, "layer", WORD),
                "name": field(entry, "name", PACKAGE),
                "version": field(entry, "version", VERSION),
                "build": field(entry, "build", VERSION),
                "files": number(entry, "files"),
                "sha256": field(entry, "sha256", re.compile(r"([0-9a-f]{64})?")),
            }
            for entry in entries(found, "packages")
        ],
        "differences": [
            {name: plain(entry.get(name) or "", 500) for name in ("kind", "package", "path", "found")}
            for entry in entries(found, "differences")
        ],
    }


def listed(text: str) -> list[dict[str, Any]]:
    """Return what --list answered: a dict for each environment on the host."""
    return [
        {
            "env": field(entry, "env", re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")),
            "state": plain(entry.get("state"), 40),
            "bytes": number(entry, "bytes"),
            "lock": field(entry, "lock", SHA256),
            "created": field(entry, "created", TIME),
        }
        for entry in entries(document(text), "environments")
        if entry.get("lock")  # a folder that an interrupted run left has none
    ]


def prunable(text: str) -> dict[str, int]:
    """Return what --prune --dry-run answered: how many environments would be removed, and their bytes."""
    found = document(text)
    names = found.get("would_remove", [])
    if not isinstance(names, list) or len(names) > MOST:
        raise Unreadable("its answer has a wrong would_remove")
    return {"environments": len(names), "bytes": number(found, "bytes")}


def probed(text: str) -> dict[str, Any]:
    """Return what the probe (plugins/lookup/probe.py) said of a host."""
    found = document(text)
    numbers = ("home_free", "work_free", "bundle", "now")
    return {
        "python": field(found, "python", re.compile(r"\d{1,2}\.\d{1,3}\.\d{1,3}")),
        "system": field(found, "system", re.compile(r"[A-Za-z]{1,20}")),
        "machine": field(found, "machine", re.compile(r"[A-Za-z0-9_]{1,20}")),
        "program": found.get("program") is True,
        "installed": found.get("installed") is True,
        "work": found.get("work") is True,
        "one_disk": found.get("one_disk") is True,
        **{name: number(found, name) for name in numbers},
    }


def check_environment(found: dict[str, Any], environment: str) -> None:
    """Raise Unreadable if an answer is about another environment than the one that was asked for."""
    if found.get("environment") != environment:
        raise Unreadable(f"its answer is about another environment ({plain(found.get('environment'), 60)})")


def problem(ran: dict[str, Any], telling: str = "(error|hint): ") -> str:
    """Return why a command on a host failed, in one line; "" if it did not.

    ran: the result that Ansible registered; telling: a pattern of the lines on stderr that say it.
    """
    if ran.get("rc") == 0:
        return ""
    lines = [line.strip() for line in str(ran.get("stderr") or "").splitlines()]
    said = [line for line in lines if re.match(telling, line)] or [line for line in lines if line][-1:]
    other = ran.get("msg") or f"it ended with exit code {ran.get('rc')} and said nothing"
    return plain(masked("; ".join(said) or str(other)))
