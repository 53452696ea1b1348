"""What the records of an environment's packages say of its files, and what a file says without its prefix."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from colab_local.base import documents
from colab_local.install import requirements
from colab_local.install.home import leads_out

# What an installer writes about its own run, beside the package's files.
INSTALLERS_OWN = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
# All that a console script says besides its import and its call, in the words of conda, rattler, pip and uv.
LAUNCHER_LINE = re.compile(
    rb"""\#!.*|\#\ -\*-\ coding:\ utf-8\ -\*-|import\ (re|sys)|if\ __name__\ ==\ (['"])__main__\2:|
    sys\.argv\[0\]\ =\ re\.sub\(r'[^']*',\ '',\ sys\.argv\[0\]\)|
    (el)?if\ sys\.argv\[0\]\.endswith\((['"])[\w.-]+\4\):|
    sys\.argv\[0\]\ =\ sys\.argv\[0\](\[:-\d+\]|\.removesuffix\((['"])[\w.-]+\6\))|""",
    re.VERBOSE,
)
PREFIX = b"@PREFIX@"


class Entry(NamedTuple):
    """One file as the record of its package describes it.

    path: relative to the prefix; kind: "file", "patched" (conda wrote the prefix into it), "link", "launcher"
    (written by the installer), "script" (in a wheel, its first line is the installer's), "own" (about the
    installation itself: checked, but no content); sha256: in hex, "" where the record has none; in_prefix: the
    same after patching, or of a link's target; placeholder: what stands for the prefix; mode: text or binary.
    """

    path: str
    kind: str
    sha256: str
    in_prefix: str = ""
    placeholder: str = ""
    mode: str = ""


class Package(NamedTuple):
    """A package and its files. layer: conda, python or jupyter; sha256: of the conda package file."""

    layer: str
    name: str
    version: str
    build: str
    sha256: str
    entries: list[Entry]

    @property
    def title(self) -> str:
        """Its name as people read it."""
        return f"{self.name} {self.version}".strip()


class Difference(NamedTuple):
    """One thing that is not as locked. package: its title, or "" where none has it; path: relative to the prefix."""

    kind: str
    package: str
    path: str
    found: str = ""
    need: str = ""

    def line(self) -> str:
        """Return it as a line for people."""
        what = " ".join(part for part in (f"{self.package}:" if self.package else "", self.path) if part)
        values = ", ".join(
            f"{word} {value if len(value) < 64 or ' ' in value else value[:12] + '...'}"
            for word, value in (("found", self.found), ("need", self.need))
            if value
        )
        return f"{self.kind:<9} {what}{f' ({values})' if values else ''}"


def read_conda(prefix: Path) -> tuple[list[Package], list[Difference]]:
    """Return the conda packages that conda-meta lists, none where there is no conda layer; and its damaged records.

    The records' fields are those of conda's PrefixRecord: paths_data.paths[].{_path, path_type, sha256,
    sha256_in_prefix, file_mode, prefix_placeholder}. Each engine has its own way with them, see conda_entry().
    """
    packages, differences = [], []
    site = site_packages(prefix) or ""
    for path in sorted(prefix.glob("conda-meta/*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            of_package = site if record.get("noarch") == "python" else ""
            entries = [conda_entry(entry, of_package) for entry in record.get("paths_data", {}).get("paths", [])]
            packages.append(
                Package(
                    "conda",
                    record["name"],
                    record["version"],
                    record["build"],
                    record.get("sha256") or "",
                    list({entry.path: entry for entry in entries if entry.kind}.values()),  # conda names some twice
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            differences.append(Difference("changed", "", path.relative_to(prefix).as_posix(), str(problem)))
    return packages, differences


def conda_entry(entry: dict[str, Any], site: str = "") -> Entry:
    """Return one entry of a conda-meta record; its kind is "" for what is no file of the package.

    site: the environment's folder of Python packages where the package is a noarch Python one, else "". Of these,
    conda leaves the package's own path in the record (`site-packages/...`, `python-scripts/...`), where rattler and
    mamba write the final one (conda/common/path/python.py, get_python_noarch_target_path). mamba keeps no
    placeholder of what it patched, only the hash of the result (libmamba/src/core/link.cpp).
    """
    kinds = {"softlink": "link", "unix_python_entry_point": "launcher", "directory": "", "pyc_file": ""}
    sha256, in_prefix = entry.get("sha256") or "", entry.get("sha256_in_prefix") or ""
    placeholder = entry.get("prefix_placeholder") or ""
    patched = placeholder or (sha256 and in_prefix not in ("", sha256))
    path = entry["_path"]
    if leads_out(path):
        raise ValueError(f"a file outside the environment: {path!r}")
    if site and path.startswith("site-packages/"):
        path = path.replace("site-packages", site, 1)
    elif site and path.startswith("python-scripts/"):
        path = path.replace("python-scripts", "bin", 1)
    return Entry(
        path,
        kinds.get(entry.get("path_type", ""), "patched" if patched else "file"),
        sha256,
        in_prefix,
        placeholder,
        entry.get("file_mode") or "",
    )


def site_packages(prefix: Path) -> str | None:
    """Return the environment's folder of Python packages relative to the prefix, or None."""
    found = sorted(prefix.glob("lib/python3.*/site-packages"))
    return found[-1].relative_to(prefix).as_posix() if found else None


def read_python(prefix: Path, site: str, skip: set[str]) -> tuple[list[Package], list[Difference]]:
    """Return the Python packages that have a RECORD, and what is wrong with the records themselves.

    site: folder of packages relative to the prefix; skip: paths of METADATA files that another layer owns.
    """
    packages: list[Package] = []
    differences: list[Difference] = []
    for folder in sorted((prefix / site).glob("*.dist-info")):
        if f"{site}/{folder.name}/METADATA" not in skip:
            package, wrong = read_record(site, folder)
            packages.append(package)
            differences += wrong
    return packages, differences


def read_record(site: str, folder: Path) -> tuple[Package, list[Difference]]:
    """Return a Python package by its RECORD, and what is wrong with that: a damaged one counts as none.

    site: folder of packages relative to the prefix; folder: the package's dist-info.
    """
    info = f"{site}/{folder.name}"
    name, _, version = folder.name[: -len(".dist-info")].partition("-")
    package = Package("python", requirements.normalise(name), version, "", "", [])
    differences = []
    try:
        text = documents.read_bytes(folder / "RECORD").decode("utf-8")
        for row in csv.reader(text.splitlines()):
            path = os.path.normpath(f"{site}/{row[0]}") if row else ""
            if not path or path.startswith(("../", "/")):
                differences.append(Difference("outside", package.title, row[0] if row else ""))
                continue
            package.entries.append(python_entry(path, info, row[1] if len(row) > 1 else ""))
    except OSError:
        return package, [Difference("missing", package.title, f"{info}/RECORD")]
    except (ValueError, csv.Error) as problem:
        return package._replace(entries=[]), [Difference("changed", package.title, f"{info}/RECORD", str(problem))]
    return package, differences


def python_entry(path: str, info: str, digest: str) -> Entry:
    """Return one line of a RECORD. path: relative to the prefix; info: its dist-info folder; digest: as it stands."""
    algorithm, _, value = digest.partition("=")
    sha256 = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex() if algorithm == "sha256" else ""
    kind = "file"
    if path.startswith(info + "/") and path[len(info) + 1 :] in INSTALLERS_OWN:
        kind = "own"
    elif path.startswith("bin/"):
        kind = "script"
    return Entry(path, kind, sha256)


def read_overlay(receipt: dict[str, Any]) -> Package:
    """Return environments/jupyter's files, as the receipt names them with the lock's hashes, as a package."""
    files = dict(receipt["lock"]["jupyter"])
    entries = [Entry(path, "file", sha256) for path, sha256 in sorted(files.items())]
    infos = {str(PurePosixPath(path).parent) for path in files if path.endswith(".dist-info/METADATA")}
    entries += [Entry(f"{info}/RECORD", "own", "") for info in sorted(infos)]
    return Package("jupyter", "environments/jupyter", "", "", "", entries)


def unpatched(content: bytes, prefix: bytes, placeholder: bytes, mode: str) -> bytes:
    """Return a file's content as it was packaged: conda's replacement of the prefix undone.

    In a binary, conda replaces the placeholder inside a string that ends with NUL and pads the end with as many
    NULs as the string got shorter, once per occurrence (conda-build documentation, "Making packages relocatable").
    """
    if mode != "binary":
        return content.replace(prefix, placeholder)
    padding = len(placeholder) - len(prefix)
    if not prefix or padding < 0 or prefix not in content:
        return content
    parts = re.split(b"(\0+)", content)  # texts, and the NULs after each, in turn: one pass, however long they are
    for at in range(0, len(parts) - 1, 2):
        surplus = padding * parts[at].count(prefix)
        if len(parts[at + 1]) > surplus:
            parts[at], parts[at + 1] = parts[at].replace(prefix, placeholder), parts[at + 1][surplus:]
    return b"".join(parts)


def without_prefix(content: bytes, prefix: bytes) -> bytes:
    """Return a program's text with the two forms of its first line made one, and the prefix replaced.

    Where `#!PATH` can't hold the path (blanks, more than 127 bytes) installers write a line that is shell and
    Python at once: '''exec' PATH "$0" "$@" (pip's vendored distlib and uv, on two lines; conda and rattler on one).
    """
    form = re.match(rb"#!/bin/sh\n'''exec' (\"[^\"\n]+\"|'[^'\n]+'|\S+) \"\$0\" \"\$@\"(?:\n' | #)'''\n", content)
    if form:
        content = b"#!" + form.group(1).strip(b"'\"") + b"\n" + content[form.end() :]
    return content.replace(prefix, PREFIX)


def launcher_target(text: bytes) -> str:
    """Return what a console script calls, "pip._internal.cli.main:main"; "" if it is no such script.

    Installers word them differently; what they do is the import and the call, and nothing else.
    """
    lines = [line.strip() for line in text.splitlines()]
    telling = b"\n".join(line for line in lines if not LAUNCHER_LINE.fullmatch(line))
    found = re.fullmatch(rb"from ([\w.]+) import (\w+)\n(?:sys\.exit|raise SystemExit)\((\2[\w.]*)\(\)\)", telling)
    return f"{found.group(1).decode()}:{found.group(3).decode()}" if found else ""
