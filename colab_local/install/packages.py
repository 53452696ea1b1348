"""The Python layer: uv, and what it installs."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
from pathlib import Path
from typing import Any, Sequence

from colab_local.base import certificates, temporary
from colab_local.base.errors import EXIT_FAILED, EXIT_INTEGRITY, Failure
from colab_local.base.files import remove_tree, sha256_of, write_atomically
from colab_local.base.programs import HINTS, run, succeeds
from colab_local.base.progress import Size
from colab_local.base.terminal import Screen
from colab_local.install.lockfiles import Lock, locked_entry
from colab_local.install.records import read_record, site_packages
from colab_local.install.sources import pip_environment, run_uv, uv_environment

# What uv says of a wheel that lies in its cache, unpacked and damaged; of a damaged download it says other things.
DAMAGED = re.compile(r"wheel is invalid|`RECORD` file is invalid|/archive-v\d+/|failed to open file .*\.dist-info/")


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
            flags = ["--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
            run([python, "-I", "-m", "pip", "install", *flags, *hashed, *offline], screen, pip_environment())
        elif shutil.which("uv"):
            run_uv(["uv", "pip", "install", "--quiet", "--python", python, *hashed, *offline], screen)
        else:  # a venv of its own brings the pip that is bundled with Python
            run([python, "-I", "-m", "venv", venv], screen)
            pip = [venv / "bin" / "python", "-I", "-m", "pip", "install", "--only-binary=:all:"]
            run([*pip, *hashed, *offline], screen, pip_environment())
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
    argv += offline_options(wheels)
    written, download = lock.bytes.get("pypi_installed"), lock.bytes.get("pypi_download")
    size = Size(written, written if wheels else download) if written and download else None
    try:
        run_uv(argv, screen, size=size)
    except Failure as problem:
        if problem.code not in (EXIT_FAILED, EXIT_INTEGRITY) or not DAMAGED.search(problem.what):
            raise
        screen.report(f"note: {problem.what}: once more, not from uv's cache")
        found = re.search(r"\((\S+?)==", problem.what)
        names = [found.group(1)] if found else []
        for name in names:
            forget_damaged(prefix, name)
        try:
            run_uv([*argv, "--reinstall", "--no-cache"], screen, size=size)
        except Failure as again:
            code = EXIT_INTEGRITY if again.code == EXIT_FAILED else again.code
            raise Failure(again.what, again.hint or HINTS["integrity"], code) from again
        clean_cache(uv, names, screen)
    finally:  # --launch becomes Jupyter, and nothing that waits for this program's end is done
        temporary.clean_up()
        certificates.bundle.cache_clear()


def offline_options(wheels: Path | None) -> list[Any]:
    """Return uv's options for a bundle's folder of wheels; none for the package index."""
    return ["--no-index", "--find-links", wheels] if wheels else []


def install_again(
    uv: Path, prefix: Path, names: Sequence[str], lock: Lock, cache: Path, wheels: Path | None, screen: Screen
) -> None:
    """Install packages of the Python layer once more, from files that are fetched now.

    What is damaged in an environment may be damaged in uv's cache, too, so that is not used, and forgets them.
    names: of the packages; cache: the home's folder for files on the way; wheels: as in install_packages().
    """
    known = "\n".join([lock.pypi, lock.host])
    wanted = cache / f"{lock.name}-again.txt"
    write_atomically(wanted, "".join(locked_entry(known, name) for name in names))
    for name in names:
        forget_damaged(prefix, name)
    argv = [uv, "pip", "install", "--python", prefix / "bin" / "python", "--no-deps", "--require-hashes"]
    try:
        run_uv([*argv, "--reinstall", "--no-cache", "-r", wanted, *offline_options(wheels)], screen)
        clean_cache(uv, names, screen)
    finally:
        remove_tree(wanted)


def forget_damaged(prefix: Path, name: str) -> None:
    """Remove the records of a package whose RECORD is gone or damaged: uv can't remove such a one."""
    pattern = re.sub(r"[-_.]+", "[-_.]", name)
    site = site_packages(prefix) or "lib"
    for info in (prefix / site).glob("*.dist-info"):
        ours = re.fullmatch(pattern + r"-[^-]+\.dist-info", info.name, re.IGNORECASE)
        if ours and read_record(site, info)[1]:
            remove_tree(info)


def clean_cache(uv: Path, names: Sequence[str], screen: Screen) -> None:
    """Let uv's cache forget packages, where it can be written."""
    with contextlib.suppress(Failure):
        run([uv, "cache", "clean", *names], screen, uv_environment())
