"""Judge hosts by the checkout on the controller: its lock, and the fingerprint that was tested.

A host says what it has; whether that is right is decided here. No host is right because most others are like it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible_collections.colab_local.fleet.plugins.plugin_utils import words

GIGABYTE = 1_000_000_000


def read_index(checkout: str) -> dict[str, Any]:
    """Return lockfiles/index.json of a checkout; raise OSError or ValueError."""
    found = json.loads((Path(checkout) / "lockfiles" / "index.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("environments"), dict):
        raise ValueError(f"{checkout}/lockfiles/index.json is damaged")
    return found


def index_digest(checkout: str) -> str:
    """Return the sha256 of a checkout's lockfiles/index.json: it names the whole lock."""
    return hashlib.sha256((Path(checkout) / "lockfiles" / "index.json").read_bytes()).hexdigest()


def needed_lock(index: dict[str, Any], environment: str, platform: str, engine: str) -> dict[str, str]:
    """Return {name: sha256} of the lock files that a host of this checkout has used, as its receipt names them."""
    entry = index["environments"][environment]
    needed = {"pypi.txt": entry["pypi"]["sha256"]}
    if engine == "host":
        needed["host.txt"] = index["uv"]["sha256"]
    else:
        needed[f"{platform}.txt"] = entry["platforms"][platform]["sha256"]
    return needed


def other_lock(answer: dict[str, Any], index: dict[str, Any]) -> str:
    """Return how a verified host's lock differs from the checkout's, "" if it does not.

    answer: what words.verified() returned.
    """
    environment, platform = answer["environment"], answer["platform"]
    if platform not in index["environments"].get(environment, {}).get("platforms", {}):
        return f"this checkout has no {environment} environment for {platform}"
    engine = "host" if answer["layer"].startswith("host") else "conda"
    for name, sha256 in needed_lock(index, environment, platform, engine).items():
        found = answer["lock"].get(name, "none")
        if found != sha256:
            return f"another lock than this checkout's ({name}: found {found[:12]}, need {sha256[:12]})"
    return ""


def record_name(fingerprint: str) -> str:
    """Return the file name under which a fingerprint's packages are recorded: cpu-linux-64-<12 digits>.json."""
    match = words.FINGERPRINT.fullmatch(fingerprint)
    if not match:
        raise words.Unreadable(f"this is not a fingerprint: {words.plain(fingerprint, 100)}")
    return f"{match[1]}-{match[2]}-{match[3][:12]}.json"


def kind(fingerprint: str) -> str:
    """Return a fingerprint's environment and platform: two of one kind must be the same."""
    return fingerprint.rpartition(" ")[0]


def groups(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the hosts grouped by fingerprint, the largest group first.

    answers: {host: what words.verified() returned}.
    """
    found: dict[str, list[str]] = {}
    for host, answer in answers.items():
        found.setdefault(answer["fingerprint"], []).append(host)
    made = [{"fingerprint": line, "hosts": sorted(hosts)} for line, hosts in found.items()]
    return sorted(made, key=lambda group: (-len(group["hosts"]), group["fingerprint"]))


def verdict(host: str, answers: dict[str, dict[str, Any]], wanted: str, index: dict[str, Any], folder: str) -> str:
    """Return what is wrong with a host, "" if nothing is.

    host: its name; answers: {host: what words.verified() returned}; wanted: the fingerprint that was tested, or "";
    index: the checkout's lockfiles/index.json; folder: where the records are.
    """
    mine = answers[host]
    found = mine["fingerprint"]

    def explain(other: str) -> str:
        return f"python3 scripts/compare.py {folder}/{record_name(other)} {folder}/{record_name(found)}"

    if wanted and kind(wanted) == kind(found) and found != wanted:
        recorded = any(answer["fingerprint"] == wanted for answer in answers.values())
        hint = explain(wanted) if recorded else f'python3 scripts/compare.py "{wanted}" {folder}/{record_name(found)}'
        return f"{host} differs: {found} (need {wanted}); hint: {hint}"
    if wanted and kind(wanted) != kind(found):
        return f"{host} differs: {found} (need {wanted}); hint: set colab_local_expected for a group, not for all"
    wrong = other_lock(mine, index)
    if wrong:
        same = [a["fingerprint"] for a in answers.values() if kind(a["fingerprint"]) == kind(found)]
        others = sorted({line for line in same if line != found})
        hint = f"; what differs: {explain(others[0])}" if others else ""
        return f"{host} differs: {found} is of {wrong}; hint: run deploy.yml from this checkout{hint}"
    if wanted:
        return ""
    rivals = sorted(
        {
            answer["fingerprint"]
            for answer in answers.values()
            if kind(answer["fingerprint"]) == kind(found) and not other_lock(answer, index)
        }
        - {found}
    )
    if not rivals:
        return ""
    return (
        f"{host} differs from other hosts of the same lock: {found}, others have {', '.join(rivals)}. Which one is "
        f"right can't be told from their number: set colab_local_expected to the one that you tested; "
        f"hint: {explain(rivals[0])}"
    )


# ---------------------------------------------------------------------------------------------------------
# Before anything is sent


def unfit(
    host: dict[str, Any], todo: dict[str, Any], index: dict[str, Any], wanted: dict[str, Any], bundle: dict[str, Any]
) -> str:
    """Return why an installation on a host would fail, "" if nothing speaks against it.

    host: what words.probed() returned; todo: what words.plan() returned; index: the checkout's lock; wanted:
    environment, engine; bundle: what the lookup `bundle` returned, {} without one.
    """
    platform = todo["platform"]
    if platform not in index["environments"].get(wanted["environment"], {}).get("platforms", {}):
        return f"error: the lock has no {wanted['environment']} environment for {platform}"
    if not bundle:
        return disk(host, index, wanted["environment"], todo, bundle)
    if bundle.get("platform") and bundle["platform"] != platform:
        return (
            f"error: the bundle is for another platform (found {bundle['platform']}, need {platform}); "
            f"hint: python3 scripts/bundle.py --env {wanted['environment']} --platform {platform}"
        )
    if bundle.get("engine") == "host":
        minor = ".".join(host["python"].split(".")[:2])
        if minor != bundle["python"]:
            return (
                f"error: the bundle's wheels are for another Python (found {bundle['python']}, need {minor}); "
                f"hint: python3 scripts/bundle.py --engine host --python {minor}, or set colab_local_python"
            )
    return disk(host, index, wanted["environment"], todo, bundle)


def space(
    index: dict[str, Any], environment: str, todo: dict[str, Any], bundle: dict[str, Any], there: bool
) -> tuple[int, int]:
    """Return the bytes that an installation needs at its peak: where the bundle lies, and where environments land.

    todo: what words.plan() returned; there: whether the host has the bundle already.
    """
    if "packages" not in todo["plan"]:
        return 0, 0
    sizes = index["environments"][environment]["platforms"][todo["platform"]].get("bytes", {})
    layers = ("pypi",) if todo["engine"] == "host" else ("pypi", "conda")
    installed = sum(int(sizes.get(f"{layer}_installed", 0)) for layer in layers)
    downloads = sum(int(sizes.get(f"{layer}_download", 0)) for layer in layers)
    if not bundle:
        return 0, downloads + installed
    size = int(bundle.get("bytes") or downloads)
    return (0 if there else size), size + installed  # the bundle's files are unpacked beside the environment


def disk(
    host: dict[str, Any], index: dict[str, Any], environment: str, todo: dict[str, Any], bundle: dict[str, Any]
) -> str:
    """Return what is said where a disk is too small, "" if it is not."""
    there = bool(bundle) and host["bundle"] >= 0
    work, home = space(index, environment, todo, bundle, there)
    if host["one_disk"]:
        work, home = 0, work + home
    for need, free, what, setting in (
        (work, host["work_free"], "the bundle", "colab_local_work"),
        (home, host["home_free"], "the environment", "colab_local_home"),
    ):
        if need > free:
            return (
                f"error: the disk is too small for {what} (found {free / GIGABYTE:.1f} GB free, need "
                f"{need / GIGABYTE:.1f} GB); hint: free some, or set {setting} to a folder on a larger disk"
            )
    return ""


def forecast(hosts: list[dict[str, Any]], megabytes_per_second: float) -> list[str]:
    """Return lines that say how many bytes go where and how long that takes, before a byte of them is sent.

    hosts: for each host that lacks something {"bytes": of packages, "from": "here" | "url" | "network"}.
    """
    lines = []
    names = {"here": "through this machine's line", "url": "from the bundle's server", "network": "from the mirrors"}
    for source, name in names.items():
        sizes = [host["bytes"] for host in hosts if host["from"] == source and host["bytes"]]
        if sizes:
            total = sum(sizes)
            minutes = total / 1e6 / max(megabytes_per_second, 0.001) / 60
            lines.append(
                f"{len(sizes)} host{'s fetch' if len(sizes) > 1 else ' fetches'} {total / GIGABYTE:.1f} GB {name}: "
                f"{max(minutes, 0.1):.1f} min at {megabytes_per_second:g} MB/s"
            )
    return lines
