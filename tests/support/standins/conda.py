"""A stand-in for conda: `conda create --yes --prefix P --file explicit.txt` by means of py-rattler.

See README.md beside this file. Nothing here is shown to users: the tests alone run it, from a folder that
installer.sh has unpacked.

Two files in its root are for the tests: it appends every call with its whole environment to `calls.jsonl`, and
while `hold` exists it waits half-way through an installation, so that a test can kill it there.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

import yaml
from rattler import RepoDataRecord, install

ROOT = Path(sys.prefix)
VERSION = "26.7.0"


class CondaError(Exception):
    """An error as conda words it."""


def settings() -> dict[str, object]:
    """Return what ~/.condarc, CONDARC and CONDA_* variables say, the strongest last."""
    found: dict[str, object] = {"pkgs_dirs": [str(ROOT / "pkgs")], "register_envs": True, "offline": False}
    files = [ROOT / ".condarc", Path.home() / ".condarc"]
    files += [Path(os.environ["CONDARC"])] if os.environ.get("CONDARC") else []
    for path in files:
        if path.is_file():
            read = yaml.safe_load(path.read_text()) or {}
            found.update({name: value for name, value in read.items() if name in found})
    if os.environ.get("CONDA_PKGS_DIRS"):
        found["pkgs_dirs"] = os.environ["CONDA_PKGS_DIRS"].split(",")
    for name in ("register_envs", "offline"):
        value = os.environ.get("CONDA_" + name.upper())
        if value is not None:
            found[name] = value.lower() in ("1", "true", "yes", "on")
    return found


def parse_explicit(text: str) -> list[tuple[str, str, str]]:
    """Return (url, "sha256" or "md5" or "", digest) for every package of an @EXPLICIT file."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if "@EXPLICIT" not in lines:
        raise CondaError("CondaValueError: the file is not an explicit one, and no solver is here")
    packages = []
    for line in lines:
        if line != "@EXPLICIT":
            url, _, digest = line.partition("#")
            kind, colon, value = digest.partition(":")
            packages.append((url, kind, value) if colon else (url, "md5" if digest else "", digest))
    return packages


def fetch(url: str, kind: str, digest: str, folder: Path, offline: bool) -> Path:
    """Bring one package file into the package cache and compare its digest."""
    target = folder / url.rsplit("/", 1)[1]
    if not target.is_file():
        if offline and not url.startswith("file:"):
            raise CondaError(f"OfflineError: {url} is not available offline")
        part = target.with_name(target.name + ".partial")
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                part.write_bytes(response.read())
        except OSError as problem:
            raise CondaError(f"CondaHTTPError: {problem} for url <{url}>") from problem
        part.replace(target)
    found = hashlib.new(kind, target.read_bytes()).hexdigest() if kind else ""
    if found != digest:
        target.unlink()
        raise CondaError(
            "ChecksumMismatchError: Conda detected a mismatch between the expected content and downloaded\n"
            f"content for url '{url}'.\n  expected {kind}: {digest}\n  actual {kind}: {found}"
        )
    return target


async def link(files: list[tuple[str, Path]], prefix: Path, cache: Path) -> None:
    """Install package files into the prefix; with the `hold` file there, stop half-way for as long as it is."""
    records = []
    for url, path in files:
        record = await RepoDataRecord.from_package_archive(path)
        record.url = path.as_uri()
        record.channel = url.rsplit("/", 2)[0]
        records.append(record)
    if (ROOT / "hold").exists():
        await install(records[: len(records) // 2], prefix, cache_dir=cache, show_progress=False)
        while (ROOT / "hold").exists():
            time.sleep(0.05)
    await install(records, prefix, cache_dir=cache, show_progress=False)


def create(args: argparse.Namespace) -> None:
    """Make an environment from explicit files."""
    prefix = Path(args.prefix).absolute()
    known = settings()
    folder = Path(str(known["pkgs_dirs"][0]))  # type: ignore[index]
    folder.mkdir(parents=True, exist_ok=True)
    if prefix.is_dir() and any(prefix.iterdir()):
        print(f"WARNING: A directory already exists at the target location '{prefix}'", file=sys.stderr)
    if not args.yes and input("Proceed ([y]/n)? ") not in ("", "y"):
        raise CondaError("CondaSystemExit: Exiting.")
    packages = [entry for name in args.file for entry in parse_explicit(Path(name).read_text())]
    files = [(url, fetch(url, kind, digest, folder, bool(known["offline"]))) for url, kind, digest in packages]
    asyncio.run(link(files, prefix, folder))
    with (prefix / "conda-meta" / "history").open("a") as history:
        history.write(f"# cmd: {' '.join(sys.argv)}\n# conda version: {VERSION}\n")
    if known["register_envs"]:
        register = Path.home() / ".conda" / "environments.txt"
        register.parent.mkdir(exist_ok=True)
        with register.open("a") as stream:
            stream.write(f"{prefix}\n")


def main() -> int:
    """Run the stand-in; return its exit status."""
    with (ROOT / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"argv": sys.argv, "environ": dict(os.environ)}) + "\n")
    version = ROOT / "version"
    parser = argparse.ArgumentParser(prog="conda")
    shown = version.read_text().strip() if version.is_file() else VERSION
    parser.add_argument("--version", "-V", action="version", version=f"conda {shown}")
    commands = parser.add_subparsers(dest="command", required=True)
    create_ = commands.add_parser("create")
    create_.add_argument("--prefix", "-p", required=True)
    create_.add_argument("--file", action="append", required=True)
    for flags in (["--yes", "-y"], ["--quiet", "-q"], ["--offline"], ["--copy"], ["--no-default-packages"]):
        create_.add_argument(*flags, action="store_true")
    args = parser.parse_args()
    try:
        create(args)
    except CondaError as problem:
        print(f"\n{problem}\n", file=sys.stderr)
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End at once: py-rattler's own threads must not meet an interpreter that is being taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
