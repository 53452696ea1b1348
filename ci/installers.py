#!/usr/bin/env python3
"""Look for newer releases of the installers in environments/installers.json, and take them over.

    python ci/installers.py            what is newer; writes nothing
    python ci/installers.py --write    rewrite environments/installers.json; then: python scripts/lock.py --index-only

Each SHA-256 is the one that the project itself publishes: GitHub's digest of the release's file, and for Miniforge
the .sha256 file beside it, which must say the same; for Anaconda the table in its archive. What nobody publishes a
hash of is not taken. A pull request shows what changed, and its run installs with it.

Exit codes: 0 done (also when nothing is newer); 1 a page can't be read, or says things that don't fit together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60
# What our platforms are called in the files' names.
MINIFORGE = {"linux-64": "Linux-x86_64", "linux-aarch64": "Linux-aarch64", "osx-arm64": "MacOSX-arm64"}
PIXI = {
    "linux-64": "x86_64-unknown-linux-musl",
    "linux-aarch64": "aarch64-unknown-linux-musl",
    "osx-arm64": "aarch64-apple-darwin",
}
GITHUB = {"miniforge": ("conda-forge/miniforge", MINIFORGE), "pixi": ("prefix-dev/pixi", PIXI)}
API = "https://api.github.com"
ARCHIVE = "https://repo.anaconda.com/archive/"


class Unreadable(Exception):
    """A page that can't be read, or that doesn't say what it should."""


def read(url: str) -> str:
    """Return the text of a page; GH_TOKEN, if it is set, is shown to GitHub's API alone."""
    request = urllib.request.Request(url, headers={"User-Agent": "colab-local"})  # noqa: S310 - https, see the callers
    if url.startswith(API) and os.environ.get("GH_TOKEN"):
        request.add_header("Authorization", f"Bearer {os.environ['GH_TOKEN']}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except (OSError, ValueError) as problem:
        raise Unreadable(f"{url} can't be read ({problem})") from None


def version_key(version: str) -> list[int]:
    """Return a version's numbers, for comparing: 26.7.2-0 -> [26, 7, 2, 0]."""
    return [int(part) for part in re.findall(r"\d+", version)]


def github_release(repository: str, names: Mapping[str, str], api: str = API) -> dict[str, Any]:
    """Return the latest release of a GitHub project as installers.json has it.

    names: what each of our platforms is called in the names of its files. Raise Unreadable where a file or its hash
    is missing.
    """
    text = read(f"{api}/repos/{repository}/releases/latest")
    try:
        release = json.loads(text)
        version = release["tag_name"].removeprefix("v")
        assets = {asset["name"]: asset for asset in release["assets"]}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise Unreadable(f"{api}/repos/{repository}: no release as GitHub describes one ({problem!r})") from None
    files = {}
    for platform, word in names.items():
        found = [name for name in assets if re.search(rf"(^|-){re.escape(word)}\.(sh|tar\.gz)$", name)]
        # Miniforge's files exist with and without the version in their names
        found = [name for name in found if version in name] or found
        if len(found) != 1:
            raise Unreadable(f"{repository} {version}: need one file for {platform} (found {found})")
        asset = assets[found[0]]
        digest = str(asset.get("digest") or "").removeprefix("sha256:")
        if found[0] + ".sha256" in assets:
            published = read(assets[found[0] + ".sha256"]["browser_download_url"]).split()[:1]
            if digest and published != [digest]:
                raise Unreadable(f"{found[0]}: GitHub's digest is {digest}, its .sha256 file says {published}")
            digest = "".join(published)
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise Unreadable(f"{found[0]}: no SHA-256 is published (found {digest!r})")
        files[platform] = {"url": asset["browser_download_url"], "sha256": digest, "size": asset["size"]}
    return {"version": version, "files": files}


def anaconda_release(archive: str = ARCHIVE) -> dict[str, Any]:
    """Return the newest release in Anaconda's archive for which every one of our platforms has a file."""
    rows = re.findall(r"<tr.*?</tr>", read(archive), re.DOTALL)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = re.search(r"href=\"(?:[^\"]*/)?(Anaconda3-(\d{4}\.\d\d-\d+)-(\w+-\w+)\.sh)\"", row)
        sha256 = re.search(r"\b[0-9a-f]{64}\b", row)
        platform = next((p for p, word in MINIFORGE.items() if name and name.group(3) == word), None)
        if name and sha256 and platform:
            entry = {"url": archive + name.group(1), "sha256": sha256.group(), "size": None}
            found.setdefault(name.group(2), {})[platform] = entry
    whole = [version for version, files in found.items() if len(files) == len(MINIFORGE)]
    if not whole:
        raise Unreadable(f"{archive}: no release with a file and a hash for every platform")
    version = max(whole, key=version_key)
    return {"version": version, "files": {platform: found[version][platform] for platform in MINIFORGE}}


def newer(known: Mapping[str, Any], latest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the releases of `latest` that are newer than those of installers.json, by the installer's name.

    The same version with another hash is an alarm, not an update: raise Unreadable.
    """
    found = {}
    for name, release in latest.items():
        have = known[name]
        if version_key(release["version"]) > version_key(have["version"]):
            found[name] = release
        elif release["version"] == have["version"]:
            for platform, entry in have["files"].items():
                offered = release["files"].get(platform, entry)
                if offered["sha256"] != entry["sha256"]:
                    raise Unreadable(
                        f"{name} {have['version']}, {platform}: the published SHA-256 is now {offered['sha256']}, "
                        f"installers.json has {entry['sha256']}"
                    )
    return found


def update(known: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return installers.json's text with the newer releases in it."""
    content = {
        name: {"source": entry["source"], **found[name]} if name in found else entry for name, entry in known.items()
    }
    return json.dumps(content, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the file; without it, only say what is newer")
    parser.add_argument("--file", type=Path, default=REPOSITORY / "environments" / "installers.json", metavar="FILE")
    parser.add_argument("--api", default=API, metavar="URL", help="GitHub's API (default: %(default)s)")
    parser.add_argument("--archive", default=ARCHIVE, metavar="URL", help="Anaconda's archive (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        known = json.loads(args.file.read_text(encoding="utf-8"))
        latest = {name: github_release(repository, words, args.api) for name, (repository, words) in GITHUB.items()}
        latest["anaconda"] = anaconda_release(args.archive)
        found = newer(known, latest)
    except (Unreadable, OSError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    for name, release in found.items():
        print(f"{name}: {known[name]['version']} -> {release['version']}")
    if not found:
        print("No installer is newer.")
    if args.write and found:
        args.file.write_text(update(known, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
