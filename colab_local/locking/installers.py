"""The installers that we pin: are there newer ones, and are the pinned files still what their projects publish?"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from colab_local.base import certificates
from colab_local.base.downloads import open_url
from colab_local.base.errors import EXIT_NETWORK, Failure

TIMEOUT_S = 60
AGAIN_HERE = "python3 ci/installers.py"
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
SOURCES = {
    "miniforge": "https://github.com/conda-forge/miniforge/releases",
    "pixi": "https://github.com/prefix-dev/pixi/releases",
    "anaconda": ARCHIVE,
}


def unreadable(text: str, hint: str = AGAIN_HERE) -> Failure:
    """Return the failure for a page that can't be read, or that doesn't say what it should."""
    return Failure(text, hint, EXIT_NETWORK)


def read(url: str) -> str:
    """Return the text of a page; GH_TOKEN, if it is set, is shown to GitHub's API alone."""
    request = urllib.request.Request(url, headers={"User-Agent": "colab-local"})
    if url.startswith(API) and os.environ.get("GH_TOKEN"):
        request.add_header("Authorization", f"Bearer {os.environ['GH_TOKEN']}")
    try:
        with open_url(request, TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except (OSError, ValueError) as problem:
        raise unreadable(f"{url} can't be read ({problem})", certificates.cure_of(problem, AGAIN_HERE)) from None


def version_key(version: str) -> list[int]:
    """Return a version's numbers, for comparing: 26.7.2-0 -> [26, 7, 2, 0]."""
    return [int(part) for part in re.findall(r"\d+", version)]


def github_release(
    repository: str, names: Mapping[str, str], api: str = API, which: str = "latest"
) -> dict[str, Any]:
    """Return a release of a GitHub project as installers.json has it.

    names: what each of our platforms is called in the names of its files; which: "latest", or "tags/TAG".
    Raise Failure where a file or its hash is missing.
    """
    text = read(f"{api}/repos/{repository}/releases/{which}")
    try:
        release = json.loads(text)
        version = release["tag_name"].removeprefix("v")
        assets = {asset["name"]: asset for asset in release["assets"]}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise unreadable(f"{api}/repos/{repository}: no release as GitHub describes one ({problem!r})") from None
    files = {}
    for platform, word in names.items():
        found = [name for name in assets if re.search(rf"(^|-){re.escape(word)}\.(sh|tar\.gz)$", name)]
        # Miniforge's files exist with and without the version in their names
        found = [name for name in found if version in name] or found
        if len(found) != 1:
            raise unreadable(f"{repository} {version}: need one file for {platform} (found {found})")
        asset = assets[found[0]]
        digest = str(asset.get("digest") or "").removeprefix("sha256:")
        if found[0] + ".sha256" in assets:
            published = read(assets[found[0] + ".sha256"]["browser_download_url"]).split()[:1]
            if digest and published != [digest]:
                raise unreadable(f"{found[0]}: GitHub's digest is {digest}, its .sha256 file says {published}")
            digest = "".join(published)
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise unreadable(f"{found[0]}: no SHA-256 is published (found {digest!r})")
        files[platform] = {"url": asset["browser_download_url"], "sha256": digest, "size": asset["size"]}
    return {"version": version, "files": files}


def anaconda_release(archive: str = ARCHIVE, wanted: str = "") -> dict[str, Any]:
    """Return a release in Anaconda's archive; wanted: its version, "" for the newest with all platforms."""
    rows = re.findall(r"<tr.*?</tr>", read(archive), re.DOTALL)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = re.search(r"href=\"(?:[^\"]*/)?(Anaconda3-(\d{4}\.\d\d-\d+)-(\w+-\w+)\.sh)\"", row)
        sha256 = re.search(r"\b[0-9a-f]{64}\b", row)
        platform = next((p for p, word in MINIFORGE.items() if name and name.group(3) == word), None)
        if name and sha256 and platform:
            entry = {"url": archive + name.group(1), "sha256": sha256.group(), "size": None}
            found.setdefault(name.group(2), {})[platform] = entry
    whole = [version for version, files in found.items() if len(files) == len(MINIFORGE) and wanted in ("", version)]
    if not whole:
        raise unreadable(f"{archive}: no release with a file and a hash for every platform")
    version = max(whole, key=version_key)
    return {"version": version, "files": {platform: found[version][platform] for platform in MINIFORGE}}


def newer(known: Mapping[str, Any], latest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the releases of `latest` that are newer than those of installers.json, by the installer's name.

    The same version with another hash is an alarm, not an update: raise Failure.
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
                    raise unreadable(
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


def wrong_names(known: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with installers.json's URLs: they follow from project, version and platform.

    known: installers.json. No network is needed; whether the hashes are the published ones is another question.
    """
    for name in sorted(({*known} | {*SOURCES}) - {"_"}):
        if name not in known or name not in SOURCES:
            yield f"{name}: {'missing' if name in SOURCES else 'not one of our engines'}"
            continue
        entry, words = known[name], PIXI if name == "pixi" else MINIFORGE
        for platform in sorted({*entry["files"], *words}):
            if platform not in entry["files"] or platform not in words:
                yield f"{name}: {platform}: {'missing' if platform in words else 'not one of our platforms'}"
                continue
            file = entry["files"][platform]
            need = expected_url(name, entry["version"], words[platform])
            if file["url"] != need:
                yield f"{name}: {platform}: found {file['url']}, need {need}"
            if not re.fullmatch(r"[0-9a-f]{64}", str(file["sha256"])):
                yield f"{name}: {platform}: no SHA-256: {file['sha256']}"
            size = file["size"]
            if size is not None and not (isinstance(size, int) and 1_000_000 < size < 5_000_000_000):
                yield f"{name}: {platform}: no size in bytes: {size}"
        hashes = [file["sha256"] for file in entry["files"].values()]
        if len(set(hashes)) < len(hashes):
            yield f"{name}: two platforms have the same SHA-256"
        if entry["source"] != SOURCES[name]:
            yield f"{name}: found the source {entry['source']}, need {SOURCES[name]}"


def expected_url(name: str, version: str, word: str) -> str:
    """Return where an installer's file is published; word: what its platform is called there."""
    if name == "anaconda":
        return f"{ARCHIVE}Anaconda3-{version}-{word}.sh"
    repository = GITHUB[name][0]
    file = f"v{version}/pixi-{word}.tar.gz" if name == "pixi" else f"{version}/Miniforge3-{version}-{word}.sh"
    return f"https://github.com/{repository}/releases/download/{file}"


def wrong_files(known: Mapping[str, Any], api: str = API, archive: str = ARCHIVE) -> Iterator[str]:
    """Yield where hashes and sizes are not the ones that the projects publish. Needs a network."""
    for name, entry in known.items():
        if name == "_":
            continue
        try:
            if name == "anaconda":
                published = anaconda_release(archive, entry["version"])
            else:
                tag = f"v{entry['version']}" if name == "pixi" else entry["version"]
                published = github_release(*GITHUB[name], api, f"tags/{tag}")
        except Failure as problem:
            yield f"{name}: {problem.what}"
            continue
        for platform, file in entry["files"].items():
            need = published["files"].get(platform, {})
            for what in ("url", "sha256", "size"):
                if file[what] is not None and need.get(what) is not None and file[what] != need[what]:
                    host = urlsplit(file["url"]).netloc
                    yield f"{name}: {platform}: {what}: found {file[what]}, {host} has {need[what]}"
