#!/usr/bin/env python3
"""Pack what a host needs to run bootstrap.py: the program, its lockfiles and settings, no packages (under 1 MB).

    python3 scripts/fleet/pack.py CHECKOUT FOLDER

Writes FOLDER/program-<digest>.tar.gz and prints {"path": ..., "digest": ...}. The same files give the same bytes
and the same name, whoever packs them and when: that is how a host tells that it has them already. bootstrap.py is
the last member, so that a host on which it lies has unpacked all the others.

The playbooks call this by themselves. Python >= 3.8, standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

PARTS = ("environments", "lockfiles", "scripts", "bootstrap.py")  # in this order: see above


def members(checkout: Path) -> list[Path]:
    """Return the files of `checkout` that go into the pack, relative to it; no caches, no hidden files.

    Nor this folder: what only the controller reads would give every host a new pack for nothing.
    """
    found: list[Path] = []
    for part in PARTS:
        top = checkout / part
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(2, "not a checkout of colab-local", str(top))
        relative = [path.relative_to(checkout) for path in files]
        found += [path for path in relative if is_wanted(path)]
    return found


def is_wanted(path: Path) -> bool:
    """Return whether a file of the checkout, named relative to it, is for the hosts."""
    hidden = any(name.startswith(".") for name in path.parts)
    return not hidden and path.suffix != ".pyc" and path.parts[:2] != ("scripts", "fleet")


def pack(checkout: Path) -> bytes:
    """Return the tar of a checkout: owner, times and order are fixed, modes are 644 or 755."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in members(checkout):
            content = (checkout / path).read_bytes()
            entry = tarfile.TarInfo(path.as_posix())
            entry.size = len(content)
            entry.mode = 0o755 if os.access(checkout / path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def write(checkout: Path, folder: Path) -> dict[str, str]:
    """Pack `checkout` into `folder`, unless that pack is there; return its path and digest."""
    content = pack(checkout)
    digest = hashlib.sha256(content).hexdigest()
    target = folder / f"program-{digest[:12]}.tar.gz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        temporary.write_bytes(gzip.compress(content, mtime=0))
        temporary.replace(target)
    return {"path": str(target), "digest": digest[:12]}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Pack bootstrap.py, lockfiles and settings for a host (the playbooks do this by themselves).",
        epilog="example: python3 scripts/fleet/pack.py . /tmp/packs",
    )
    parser.add_argument("checkout", type=Path, help="folder of this repository")
    parser.add_argument("folder", type=Path, help="where the pack is written")
    args = parser.parse_args()
    try:
        print(json.dumps(write(args.checkout.resolve(), args.folder.expanduser())))
    except OSError as problem:
        print(f"error: {problem.strerror} ({problem.filename})", file=sys.stderr)
        print(f"hint: python3 {sys.argv[0]} --help", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
