"""The Python layer: uv, and pip's and uv's own settings."""

from __future__ import annotations

import base64
import configparser
import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Iterable

from colab_local.base.files import remove_tree, sha256_of, write_atomically
from colab_local.base.programs import child_environment, run, succeeds
from colab_local.base.progress import Size
from colab_local.base.terminal import Screen
from colab_local.install.home import config_folder
from colab_local.install.lockfiles import Lock, locked_entry


def pip_index_url(environ: dict[str, str], texts: Iterable[str]) -> str:
    """Return the index URL that pip is configured with, or "": uv reads only its own configuration.

    environ: os.environ; texts: pip's configuration files, the weakest first.
    """
    url = ""
    for text in texts:
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(configparser.Error):
            parser.read_string(text)
            for section in ("global", "install"):
                url = parser.get(section, "index-url", fallback=url)
    return environ.get("PIP_INDEX_URL", url).strip()


def pip_settings() -> list[str]:
    """Return the texts of pip's configuration files, the weakest first."""
    places = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", config_folder() / "pip" / "pip.conf"]
    places += [Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []
    return [path.read_text(errors="replace") for path in places if path.is_file()]


def uv_environment() -> dict[str, str]:
    """Return uv's environment: the user's own, and pip's index where only pip has been told of one."""
    # Copied, not linked: a file that is changed in one environment is not changed in uv's cache and in the next one.
    # Where the file system can share blocks between copies (APFS, Btrfs, XFS), a copy costs no room.
    env = child_environment(UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never", UV_LINK_MODE="copy")
    told = any(name in env for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE"))
    if not told and not (config_folder() / "uv" / "uv.toml").exists() and not Path("/etc/uv/uv.toml").exists():
        url = pip_index_url(dict(os.environ), pip_settings())
        if url:
            env["UV_DEFAULT_INDEX"] = url
    return env


def install_uv(uv: Path, python: str, requirements: str, cache: Path, wheels: Path | None, screen: Screen) -> None:
    """Install the locked uv into a folder of its own with whatever installer this machine has.

    uv: the program, FOLDER/bin/uv; python: the interpreter whose pip is asked first; requirements: text of host.txt;
    cache: a folder for files on the way; wheels: a bundle's folder of wheels, or None for the package index.
    """
    if is_whole(uv):
        return
    folder = uv.parent.parent
    temporary, venv = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".part-venv")
    remove_tree(temporary)
    wanted = cache / "host.txt"
    write_atomically(wanted, locked_entry(requirements, "uv"))
    hashed = ["--no-deps", "--require-hashes", "-r", wanted, "--target", temporary]
    offline = ["--no-index", "--find-links", wheels] if wheels else []
    try:
        if succeeds([python, "-I", "-c", "import pip"], screen):
            flags = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
            env = child_environment(PIP_ROOT_USER_ACTION="ignore")
            run([python, "-I", "-m", "pip", "install", *flags, *hashed, *offline], screen, env)
        elif shutil.which("uv"):
            run(["uv", "pip", "install", "--quiet", "--python", python, *hashed, *offline], screen, uv_environment())
        else:  # a venv of its own brings the pip that is bundled with Python
            run([python, "-I", "-m", "venv", venv], screen)
            run([venv / "bin" / "python", "-I", "-m", "pip", "install", "--quiet", *hashed, *offline], screen)
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(folder)
        temporary.replace(folder)
    finally:
        remove_tree(temporary)
        remove_tree(venv)


def is_whole(uv: Path) -> bool:
    """Return whether our uv is there, as its installer recorded it (RECORD, PEP 376)."""
    found = False
    for record in uv.parent.parent.glob("uv-*.dist-info/RECORD"):
        with contextlib.suppress(OSError, ValueError):
            digest = base64.urlsafe_b64encode(bytes.fromhex(sha256_of(uv))).rstrip(b"=").decode()
            rows = record.read_text(encoding="utf-8", errors="replace").splitlines()
            found = found or any(f"bin/uv,sha256={digest}," in row for row in rows)
    return found


def install_packages(uv: Path, prefix: Path, lock: Lock, kept: Path, wheels: Path | None, screen: Screen) -> None:
    """Install the Python layer: exactly the locked files, nothing built, nothing resolved.

    kept: where the receipt keeps the lock's texts; wheels: a bundle's folder of wheels, None for the package index.
    """
    argv: list[Any] = [uv, "pip", "install", "--python", prefix / "bin" / "python", "--no-deps", "--require-hashes"]
    for name, text in lock.texts().items():
        write_atomically(kept / name, text)
        if name in ("pypi.txt", "host.txt"):
            argv += ["-r", kept / name]
    if wheels:
        argv += ["--no-index", "--find-links", wheels]
    written, download = lock.bytes.get("pypi_installed"), lock.bytes.get("pypi_download")
    size = Size(written, written if wheels else download) if written and download else None
    run(argv, screen, uv_environment(), size=size)
