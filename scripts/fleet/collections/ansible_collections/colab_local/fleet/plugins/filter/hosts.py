"""The filters that read, judge and group what hosts said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.colab_local.fleet.plugins.plugin_utils import judge, words

SHORT = ("fingerprint", "environment", "platform", "layer", "lock")  # of an answer: what hosts are judged by
READERS: dict[str, Callable[[str, str], Any]] = {
    "plan": words.plan,
    "verified": words.verified,
    "listed": lambda text, environment: words.listed(text),
    "prunable": lambda text, environment: words.prunable(text),
    "probed": lambda text, environment: words.probed(text),
}


def problem(ran: dict[str, Any], telling: str = "(error|hint): ") -> str:
    """Return why a command on a host failed, "" if it did not. Arguments as in words.problem()."""
    return words.problem(ran, telling)


def answer(ran: dict[str, Any], what: str, environment: str = "") -> Any:
    """Return the known fields of what a command on a host printed.

    ran: the registered result; what: a key of READERS; environment: the one that was asked for.
    """
    try:
        return READERS[what](str(ran.get("stdout") or ""), environment)
    except words.Unreadable as wrong:
        raise AnsibleFilterError(f"error: this host can't be believed: {wrong}") from None


def prune_line(ran: dict[str, Any], old_files: int) -> str:
    """Return what --check of prune.yml says of a host, "" if nothing would go.

    ran: the registered result of --prune --dry-run, which a host without an installation lacks; old_files: programs
    and bundles.
    """
    found = answer(ran, "prunable") if ran.get("stdout") else {"environments": 0, "bytes": 0}
    if not found["environments"] and not old_files:
        return ""
    size = f"{found['bytes'] / judge.GIGABYTE:.1f} GB"
    return f"would remove environments: {found['environments']} ({size}); old programs and bundles: {old_files}"


def failure(result: object) -> str:
    """Return the reason of a failed task in one line, fit for a message."""
    said = result.get("msg") if isinstance(result, dict) else None
    text = words.plain(words.masked(str(said or "a task failed")))
    _, error, rest = text.partition("error: ")  # Ansible puts a sentence of its own in front of a plugin's words
    return (error + rest) or text


def answers(hostvars: Any, hosts: list[str]) -> dict[str, dict[str, Any]]:
    """Return {host: its verified answer} of those of the hosts that have one."""
    found = {}
    for host in hosts:
        if hostvars[host].get("colab_local_fingerprint"):
            said = hostvars[host]["colab_local_answer"]
            found[str(host)] = {name: said[name] for name in SHORT}
    return found


def verdict(host: str, found: dict[str, dict[str, Any]], wanted: str, index: dict[str, Any], folder: str) -> str:
    """Return what is wrong with a host, "" if nothing is. Arguments as in judge.verdict()."""
    return judge.verdict(host, found, wanted, index, folder)


def drifted(ran: dict[str, Any]) -> str:
    """Return in one line what --verify found. ran: the registered result."""
    quiet = ("note:", "hint:", "colab-local ", "Checking ")
    lines = [line for line in str(ran.get("stderr") or "").splitlines() if not line.startswith(quiet)]
    return words.plain("; ".join(lines[:6]))


def group_lines(groups: list[dict[str, Any]]) -> list[str]:
    """Return a line for each fingerprint and its hosts. groups: what judge.groups() returned."""
    return [f"{group['fingerprint']} on {len(group['hosts'])}: {', '.join(group['hosts'])}" for group in groups]


def waiting(hostvars: Any, hosts: list[str]) -> list[dict[str, Any]]:
    """Return what each of the hosts still has to fetch, for the filter `forecast`."""
    return [dict(hostvars[host].get("colab_local_fetches") or {"bytes": 0, "from": ""}) for host in hosts]


def fetches(
    host: dict[str, Any],
    todo: dict[str, Any],
    index: dict[str, Any],
    environment: str,
    bundle: dict[str, Any],
    here: bool,
) -> dict[str, Any]:
    """Return how many bytes a host fetches, and from where. here: the bundle is pushed from the controller."""
    work, _ = judge.space(index, environment, todo, bundle, bool(bundle) and host["bundle"] >= 0)
    if bundle:
        return {"bytes": work, "from": "here" if here else "url"}
    sizes = index["environments"][environment]["platforms"].get(todo["platform"], {}).get("bytes", {})
    total = sum(int(size) for name, size in sizes.items() if name.endswith("_download"))
    return {"bytes": total if "packages" in todo["plan"] else 0, "from": "network"}


def status_line(host: str, listed: list[dict[str, Any]], probe: dict[str, Any], lock: str) -> str:
    """Return a host's line of status.yml. lock: the digest that the checkout's environment has there, or ""."""
    used = [entry for entry in listed if entry["state"].startswith("in use")]
    free = f"{probe['home_free'] / judge.GIGABYTE:.0f} GB free"
    if not used:
        return f"{host}: no environment, {free}"
    rows = []
    for entry in used:
        age = "this checkout's lock" if entry["lock"] == lock else "another lock"
        rows.append(
            f"{entry['env']}, lock {entry['lock'][:12]} ({age}), made {entry['created'][:10]}, "
            f"{entry['bytes'] / judge.GIGABYTE:.1f} GB"
        )
    return f"{host}: {'; '.join(rows)}; {free}"


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "problem": problem,
            "answer": answer,
            "failure": failure,
            "answers": answers,
            "groups": judge.groups,
            "verdict": verdict,
            "other_lock": judge.other_lock,
            "unfit": judge.unfit,
            "fetches": fetches,
            "waiting": waiting,
            "forecast": judge.forecast,
            "status_line": status_line,
            "drifted": drifted,
            "prune_line": prune_line,
            "group_lines": group_lines,
            "masked": lambda text: words.plain(words.masked(str(text))),
        }
