"""A stand-in for pixi: `pixi install --frozen --manifest-path M -e ENV` by means of py-rattler.

See README.md beside this file. tests/mirror.py puts a line before this docstring that starts the interpreter in
which py-rattler is installed: the real pixi is a static program that no variable of Python's misleads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from rattler import LockFile, Subdir, install

VERSION = "0.81.0"


def configuration(workspace: Path) -> list[dict[str, Any]]:
    """Return the content of pixi's configuration files, the strongest last (prefix-dev/pixi: crates/pixi_config)."""
    home = Path.home()
    files = [
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pixi" / "config.toml",
        Path(os.environ.get("PIXI_HOME") or home / ".pixi") / "config.toml",
        workspace / ".pixi" / "config.toml",
    ]
    return [tomllib.loads(path.read_text()) for path in files if path.is_file()]


def mirrors(workspace: Path) -> dict[str, str]:
    """Return {URL prefix: the first URL that replaces it}."""
    found: dict[str, str] = {}
    for content in configuration(workspace):
        for start, targets in content.get("mirrors", {}).items():
            found[start] = targets[0]
    return found


def trust(workspace: Path) -> str:
    """Return whose certificates are trusted: "anybody", a file, "system" or "webpki".

    SSL_CERT_FILE comes before `tls-root-certs`, the variable before the files; "native" and "all" are old words for
    "system"; released programs begin with "webpki" (prefix-dev/pixi: docs/reference/pixi_configuration.md).
    """
    roots, checked = "webpki", True
    for content in configuration(workspace):
        checked = not content.get("tls-no-verify", not checked)
        roots = content.get("tls-root-certs", roots)
    roots = os.environ.get("PIXI_TLS_ROOT_CERTS") or roots
    if roots not in ("webpki", "system", "native", "all"):
        raise SystemExit(f"  x invalid value {roots!r} for tls-root-certs")
    if not checked:
        return "anybody"
    return os.environ.get("SSL_CERT_FILE") or ("webpki" if roots == "webpki" else "system")


def environments_folder(workspace: Path) -> Path:
    """Return where environments are made: in the workspace, unless `detached-environments` says otherwise."""
    folder: Any = False
    for content in configuration(workspace):
        folder = content.get("detached-environments", folder)
    return Path(folder) / workspace.name if isinstance(folder, str) else workspace / ".pixi" / "envs"


def cache_folder() -> Path:
    """Return where packages are kept; pixi's own variable comes before rattler's."""
    for name in ("PIXI_CACHE_DIR", "RATTLER_CACHE_DIR"):
        if os.environ.get(name):
            return Path(os.environ[name])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rattler" / "cache"


def install_environment(manifest: Path, name: str, frozen: bool) -> Path:
    """Install one environment of pixi.lock beside the manifest and return its prefix."""
    workspace = manifest.absolute().parent
    trusted = trust(workspace)
    if "/" in trusted:
        trusted += f" ({Path(trusted).read_text().count('BEGIN CERTIFICATE')} certificates)"
    print(f"trusts {trusted}", file=sys.stderr)
    if not frozen:
        raise SystemExit("this stand-in has no solver: --frozen is needed")
    tomllib.loads(manifest.read_text())
    environment = LockFile.from_path(workspace / "pixi.lock").environment(name)
    if environment is None:
        raise SystemExit(f"  x unknown environment '{name}' in {manifest}")
    here = next(p for p in environment.platforms() if str(p.subdir) == str(Subdir.current()))
    records = environment.conda_repodata_records_for_platform(here)
    if not records:
        raise SystemExit(f"  x no packages for {here} in {name}")
    rules = mirrors(workspace)
    for record in records:
        for start, target in rules.items():
            if record.url.startswith(start):
                record.url = target + record.url[len(start) :]
    prefix = environments_folder(workspace) / name
    asyncio.run(install(records, prefix, cache_dir=cache_folder() / "pkgs", show_progress=False))
    return prefix


def main() -> int:
    """Run the stand-in; return its exit status."""
    parser = argparse.ArgumentParser(prog="pixi")
    parser.add_argument("--version", "-V", action="version", version=f"pixi {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    install_ = commands.add_parser("install")
    install_.add_argument("--manifest-path", "-m", type=Path, default=Path("pixi.toml"))
    install_.add_argument("--environment", "-e", default="default")
    for flags in (["--frozen"], ["--locked"], ["--quiet", "-q"], ["--no-progress"]):
        install_.add_argument(*flags, action="store_true")
    args = parser.parse_args()
    try:
        install_environment(args.manifest_path, args.environment, args.frozen)
    except Exception as problem:
        print(f"Error:   x {problem}", file=sys.stderr)
        return 1
    print(f"The {args.environment} environment has been installed.", file=sys.stderr)
    return 0


def leave(status: int) -> NoReturn:
    """End at once: py-rattler's own threads must not meet an interpreter that is being taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
