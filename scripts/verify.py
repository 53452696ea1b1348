"""Check an installed environment file by file, and give it a fingerprint that another machine can compare.

    python3 bootstrap.py --verify              the environment in use; --env NAME for another one
    python3 bootstrap.py --verify --json       every package's digest too: what scripts/compare.py explains

What is compared with what
  * conda packages: the set, versions, builds and package hashes with the lock; every file with the sha256 in its
    conda-meta record. A file that had the prefix patched in must give its packaged hash when that is undone.
  * Python packages: the set and versions with the lock; every file with its RECORD (PEP 376).
  * environments/jupyter's files: with the hashes in the lock; the extension must be enabled.
  * The records themselves, the programs in bin folders and a venv's own files: with what the receipt says that the
    installation left, because no record has a hash of them, or not of what an installer made of them.
  * Whatever else lies in the environment is reported. Excepted are bytecode that Python writes beside its source,
    and what engines keep for themselves.

The fingerprint, `colab-local ENV PLATFORM sha256:...`, is the same on two machines exactly when lock, platform and
installed content are the same. It covers the lock's files, the platform, every file of every package, and with the
host engine the version of this machine's Python. Where an installer writes its own prefix or user into a file, the
content without these counts: not the prefix, the user, the time or the engine.
It does not cover what is outside the environment: kernel, C library, NVIDIA driver, the bytes of this machine's own
Python (host engine), settings in home folders; nor bytecode. Who alters the receipt too, together with records and
files, passes this machine's check; a fingerprint compared with another machine's still shows it.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import bootstrap
from scripts import requirements

SHOWN = 20  # differences on the screen; --json has all
CHUNK = 1 << 20  # bytes read at a time
BATCH = 16 << 20  # bytes per piece of work of a hashing thread
FILE_COST = 20_000  # what opening a file costs, in bytes that could be hashed meanwhile

# What an installer writes about its own run, beside the package's files.
INSTALLERS_OWN = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
# What engines keep in an environment for themselves.
ENGINES_OWN = re.compile(r"conda-meta/|\.lock$|CACHEDIR\.TAG$|\.condarc$|\.gitignore$")
# Names in a venv that belong to the venv itself.
VENVS_OWN = re.compile(r"pyvenv\.cfg$|lib64$|bin/(Activate\.ps1|activate(\.csh|\.fish)?)$|bin/(python(3(\.\d+)?)?)$")
# What the receipt has hashes of: records, programs, a venv's own; conda-meta/state sets variables at activation.
SEALED = re.compile(r"(.*/)?bin/[^/]+$|pyvenv\.cfg$|lib64$|conda-meta/([^/]+\.json|state)$|.*\.dist-info/RECORD$")
# All that a console script says besides its import and its call, in the words of conda, rattler, pip and uv.
LAUNCHER_LINE = re.compile(
    rb"""\#!.*|\#\ -\*-\ coding:\ utf-8\ -\*-|import\ (re|sys)|if\ __name__\ ==\ (['"])__main__\2:|
    sys\.argv\[0\]\ =\ re\.sub\(r'[^']*',\ '',\ sys\.argv\[0\]\)|
    (el)?if\ sys\.argv\[0\]\.endswith\((['"])[\w.-]+\4\):|
    sys\.argv\[0\]\ =\ sys\.argv\[0\](\[:-\d+\]|\.removesuffix\((['"])[\w.-]+\6\))|""",
    re.VERBOSE,
)
EXTENSIONS = ("colab_local_jupyter", "jupyter_http_over_ws")
# Asks the environment's own Jupyter which server extensions its settings, the user's among them, enable.
ASK_JUPYTER = """\
import json
from notebook.notebookapp import NotebookApp
app = NotebookApp(log_level=50)
app.load_config_file()
app.init_server_extension_config()
print(json.dumps(app.nbserver_extensions))
"""
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
    entries: List[Entry]

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


class Tree(NamedTuple):
    """What lies under a prefix. files: {path: size in bytes}; links: {path: target}; paths are relative to it.

    Pipes, sockets and devices, which can't be hashed, count as links to nowhere.
    """

    files: Dict[str, int]
    links: Dict[str, str]


class Findings(NamedTuple):
    """What a check found. packages: for --json; notes: worth knowing, but no difference."""

    fingerprint: str
    packages: List[Dict[str, Any]]
    differences: List[Difference]
    notes: List[str]
    files: int
    size: int
    shared: List[str]  # packages whose damaged files share their bytes with uv's cache through hard links


# ---------------------------------------------------------------------------------------------------------
# Reading records


def read_conda(prefix: Path) -> List[Package]:
    """Return the conda packages that conda-meta lists; none where there is no conda layer.

    The records' fields are those of conda's PrefixRecord: paths_data.paths[].{_path, path_type, sha256,
    sha256_in_prefix, file_mode, prefix_placeholder}.
    """
    packages = []
    for path in sorted(prefix.glob("conda-meta/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        entries = [conda_entry(entry) for entry in record.get("paths_data", {}).get("paths", [])]
        packages.append(
            Package(
                "conda",
                record["name"],
                record["version"],
                record["build"],
                record.get("sha256") or "",
                [entry for entry in entries if entry.kind],
            )
        )
    return packages


def conda_entry(entry: Dict[str, Any]) -> Entry:
    """Return one entry of a conda-meta record; its kind is "" for what is no file of the package."""
    kinds = {"softlink": "link", "unix_python_entry_point": "launcher", "directory": "", "pyc_file": ""}
    kind = kinds.get(entry.get("path_type", ""), "patched" if entry.get("prefix_placeholder") else "file")
    return Entry(
        entry["_path"],
        kind,
        entry.get("sha256") or "",
        entry.get("sha256_in_prefix") or "",
        entry.get("prefix_placeholder") or "",
        entry.get("file_mode") or "",
    )


def site_packages(prefix: Path) -> Optional[str]:
    """Return the environment's folder of Python packages relative to the prefix, or None."""
    found = sorted(prefix.glob("lib/python3.*/site-packages"))
    return found[-1].relative_to(prefix).as_posix() if found else None


def read_python(prefix: Path, site: str, skip: Set[str]) -> Tuple[List[Package], List[Difference]]:
    """Return the Python packages that have a RECORD, and what is wrong with the records themselves.

    site: folder of packages relative to the prefix; skip: paths of METADATA files that another layer owns.
    """
    packages, differences = [], []
    for folder in sorted((prefix / site).glob("*.dist-info")):
        info = f"{site}/{folder.name}"
        if f"{info}/METADATA" in skip:
            continue
        name, _, version = folder.name[: -len(".dist-info")].partition("-")
        package = Package("python", requirements.normalise(name), version, "", "", [])
        try:
            text = (folder / "RECORD").read_text(encoding="utf-8")
        except OSError:
            differences.append(Difference("missing", package.title, f"{info}/RECORD"))
            text = ""
        for row in csv.reader(text.splitlines()):
            path = os.path.normpath(f"{site}/{row[0]}") if row else ""
            if not path or path.startswith(("../", "/")):
                differences.append(Difference("outside", package.title, row[0] if row else ""))
                continue
            package.entries.append(python_entry(path, info, row[1] if len(row) > 1 else ""))
        packages.append(package)
    return packages, differences


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


def read_overlay(receipt: Dict[str, Any]) -> Package:
    """Return environments/jupyter's files, as the receipt names them with the lock's hashes, as a package."""
    files = dict(receipt["lock"]["jupyter"])
    entries = [Entry(path, "file", sha256) for path, sha256 in sorted(files.items())]
    infos = {str(PurePosixPath(path).parent) for path in files if path.endswith(".dist-info/METADATA")}
    entries += [Entry(f"{info}/RECORD", "own", "") for info in sorted(infos)]
    return Package("jupyter", "environments/jupyter", "", "", "", entries)


def walk(prefix: Path) -> Tree:
    """Return every file and link under a prefix; links are not followed."""
    tree = Tree({}, {})
    root = str(prefix)
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = entry.path[len(root) + 1 :]
                if entry.is_symlink():
                    tree.links[path] = os.readlink(entry.path)  # noqa: PTH115 - Path.readlink() came with Python 3.9
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    tree.files[path] = entry.stat(follow_symlinks=False).st_size
                else:
                    tree.links[path] = ""
    return tree


def sealed(prefix: Path, tree: Tree, hashes: Dict[str, str]) -> Dict[str, str]:
    """Return {path: sha256, " x" after it where the file is executable; "-> target" of a link} of what is SEALED.

    hashes: of files, as far as they are known already.
    """
    found = {path: f"-> {target}" for path, target in tree.links.items() if SEALED.match(path)}
    for path in filter(SEALED.match, tree.files):
        executable = (prefix / path).stat().st_mode & stat.S_IXUSR
        sha256 = hashes.get(path) or bootstrap.sha256_of(prefix / path)
        found[path] = sha256 + (" x" if executable else "")
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------------------
# Content without the prefix


def unpatched(content: bytes, prefix: bytes, placeholder: bytes, mode: str) -> bytes:
    """Return a file's content as it was packaged: conda's replacement of the prefix undone.

    In a binary, conda replaces the placeholder inside a string that ends with NUL and pads the end with as many
    NULs as the string got shorter, once per occurrence (conda-build documentation, "Making packages relocatable").
    """
    if mode != "binary":
        return content.replace(prefix, placeholder)
    padding = len(placeholder) - len(prefix)

    def restore(match: "re.Match[bytes]") -> bytes:
        text, nuls = match.group(1), match.group(2)
        surplus = padding * text.count(prefix)
        if len(nuls) <= surplus:
            return match.group()
        return text.replace(prefix, placeholder) + nuls[surplus:]

    return re.sub(b"([^\0]*" + re.escape(prefix) + b"[^\0]*)(\0+)", restore, content)


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


# ---------------------------------------------------------------------------------------------------------
# Hashing


def batches(sizes: Dict[str, int]) -> Iterator[List[str]]:
    """Divide {path: bytes} into lists of about equal work, the heaviest files first."""
    batch: List[str] = []
    work = 0
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        batch.append(path)
        work += size + FILE_COST
        if work >= BATCH:
            yield batch
            batch, work = [], 0
    if batch:
        yield batch


def hash_batch(prefix: str, paths: List[str], advance: Callable[[int], None]) -> List[Tuple[str, str]]:
    """Return (path, sha256) of files; an unreadable one has "" for its hash."""
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    found = []
    for path in paths:
        digest = hashlib.sha256()
        try:
            descriptor = os.open(f"{prefix}/{path}", os.O_RDONLY)
            try:
                while True:
                    count = os.readv(descriptor, [buffer])
                    digest.update(view[:count])
                    if count < CHUNK:  # regular files are read in full; only the end comes short
                        break
                    advance(count)
            finally:
                os.close(descriptor)
            advance(count)
            found.append((path, digest.hexdigest()))
        except OSError:
            found.append((path, ""))
    return found


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hash_files(prefix: Path, sizes: Dict[str, int]) -> Dict[str, str]:
    """Return {path: sha256} of files under a prefix, hashed by as many threads as there are CPUs for us.

    hashlib and read() let other threads run meanwhile, so threads are enough.
    """
    progress = bootstrap.Progress(f"Checking {len(sizes)} files", sum(sizes.values()))
    pool = ThreadPoolExecutor(cpu_count())
    try:
        jobs = [pool.submit(hash_batch, str(prefix), batch, progress.advance) for batch in batches(sizes)]
        return dict(pair for job in jobs for pair in job.result())
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    finally:
        pool.shutdown()
        progress.close()


# ---------------------------------------------------------------------------------------------------------
# Comparing


class Check:
    """The check of one environment: what its parts share.

    prefix: the environment; receipt: how it was made; tree: what lies there; packages: what the records say, by path
    in known (entry) and owners (package's title); hashes: of the regular files that count; shared: as in Findings.
    """

    def __init__(self, prefix: Path, receipt: Dict[str, Any]) -> None:
        self.prefix, self.receipt = prefix, receipt
        self.differences: List[Difference] = []
        self.notes: List[str] = []
        self.linked: List[str] = []  # files that are links here
        self.shared: Set[str] = set()
        self.tree = walk(prefix)
        overlay = read_overlay(receipt)
        conda = read_conda(prefix)
        owned = {entry.path for package in [overlay, *conda] for entry in package.entries}
        self.site = site_packages(prefix) or ""
        python, wrong = read_python(prefix, self.site, owned) if self.site else ([], [])
        self.differences += wrong
        self.packages = [*sorted(conda + python, key=lambda p: (p.layer, p.name)), overlay]
        self.known = {entry.path: entry for package in self.packages for entry in package.entries}
        self.owners = {entry.path: package.title for package in self.packages for entry in package.entries}
        sizes = self.tree.files
        counts = (path for path in sizes if path in self.known or SEALED.match(path) or self.is_extra(path))
        self.hashes = hash_files(prefix, {path: sizes[path] for path in counts})

    def say(self, kind: str, package: str, path: str, found: str = "", need: str = "") -> None:
        """Note a difference; a name that is no text is spelled out."""
        path = os.fsencode(path).decode("utf-8", "backslashreplace")
        self.differences.append(Difference(kind, package, path, found, need))

    # -- files

    def identity(self, package: Package, entry: Entry) -> str:
        """Compare one file with its record and return what stands for its content in the fingerprint."""
        path = entry.path
        if entry.kind == "link":
            return self.link_identity(package, entry)
        found = self.hashes.get(path)
        if found is None and path in self.tree.links:  # a record that does not tell links from files
            found = self.hash_of_link(path)
        if found is None:
            if "__pycache__/" in path and not entry.sha256:
                return ""
            self.say("missing", package.title, path)
            return "missing"
        if not found:
            self.say("unreadable", package.title, path)
            return "unreadable"
        if entry.kind == "patched":
            content = (self.prefix / path).read_bytes()
            prefix, placeholder = os.fsencode(str(self.prefix)), os.fsencode(entry.placeholder)
            packaged = hashlib.sha256(unpatched(content, prefix, placeholder, entry.mode)).hexdigest()
            # An installer may change more than the prefix (a first line that got too long, a signature on macOS);
            # then its own record of the result counts. A placeholder that is left was not patched at all.
            patched = packaged == entry.sha256 and placeholder not in content
            if patched or (entry.in_prefix and found == entry.in_prefix):
                return entry.sha256
        elif entry.kind in ("launcher", "script"):
            return self.program_identity(package, entry, found)
        elif found == entry.sha256 or entry.kind == "own":
            return found
        elif not entry.sha256 and path.endswith(".pyc"):
            return ""
        elif not entry.sha256:
            self.say("unhashed", package.title, path)
            return found
        return self.changed(package, entry, found)

    def changed(self, package: Package, entry: Entry, found: str) -> str:
        """Note that a file's content is not the recorded one."""
        self.say("changed", package.title, entry.path, found, entry.in_prefix or entry.sha256)
        if package.layer == "python" and (self.prefix / entry.path).lstat().st_nlink > 1:
            self.shared.add(package.name)
        return f"changed {found}"

    def hash_of_link(self, path: str) -> Optional[str]:
        """Return the hash of the file that a link leads to, or None if it leads to none."""
        if not (self.prefix / path).is_file():
            return None
        self.linked.append(path)
        return bootstrap.sha256_of(self.prefix / path)

    def link_identity(self, package: Package, entry: Entry) -> str:
        """Compare a link of a conda package.

        Records hold a hash of what the target was when packaged, rattler's one of the target's name as well.
        """
        target = self.tree.links.get(entry.path)
        if target is None and entry.path in self.tree.files:  # a file system without links: a copy
            return self.identity(package, entry._replace(kind="file"))
        if target is None:
            self.say("missing", package.title, entry.path)
            return "missing"
        if hashlib.sha256(os.fsencode(target)).hexdigest() != entry.in_prefix:
            end = self.end_of_link(entry.path)
            leads_to = self.known.get(end)
            good = leads_to is not None and leads_to.sha256 == entry.sha256
            if not good and not (leads_to is None and (self.prefix / end).is_dir()):
                self.say("changed", package.title, entry.path, f"a link to {target}")
                return f"changed -> {target}"
        return f"-> {target.replace(str(self.prefix), PREFIX.decode())}"

    def end_of_link(self, path: str) -> str:
        """Return what a link leads to in the end, relative to the prefix; links in a ring lead nowhere."""
        seen: Set[str] = set()
        while path in self.tree.links and path not in seen:
            seen.add(path)
            path = os.path.normpath(f"{PurePosixPath(path).parent}/{self.tree.links[path]}")
        return path

    def program_identity(self, package: Package, entry: Entry, found: str) -> str:
        """Compare a program that the installer gave its first line, or wrote altogether."""
        content = (self.prefix / entry.path).read_bytes()
        if entry.sha256 and found not in (entry.sha256, entry.in_prefix):
            return self.changed(package, entry, found)
        if not (self.prefix / entry.path).stat().st_mode & stat.S_IXUSR:
            self.say("mode", package.title, entry.path, "not executable")
        text = without_prefix(content, os.fsencode(str(self.prefix))) if content.startswith(b"#!") else b""
        calls = launcher_target(text)
        if not entry.sha256 and not calls:  # conda writes no hash of the entry points that it makes
            return self.changed(package, entry, found)
        if not text:  # a compiled program
            return found
        first = text.split(b"\n", 1)[0]
        if b"python" in first and not first.startswith((b"#!" + PREFIX, b"#!/usr/bin/env")):
            self.say("moved", package.title, entry.path, first[2:].decode(errors="replace"), str(self.prefix))
            return f"changed {found}"
        return f"calls {calls}" if calls else hashlib.sha256(text).hexdigest()

    def is_venvs_own(self, path: str) -> bool:
        """Return whether a name is one of those that belong to a venv itself."""
        return self.receipt["layer"] != "conda" and bool(VENVS_OWN.match(path))

    def is_extra(self, path: str) -> bool:
        """Return whether a file belongs to no package, no engine, and is no bytecode beside its source."""
        if path in self.known or ENGINES_OWN.match(path):
            return False
        if self.is_venvs_own(path):
            return False
        cached = re.match(r"(.*?)__pycache__/([^/]+?)\.[^/.]+-\d+(?:\.opt-\d)?\.pyc$", path)
        return not (cached and cached.group(1) + cached.group(2) + ".py" in self.tree.files)

    def check_extra(self) -> None:
        """Report what lies in the environment and belongs to nothing."""
        for path in sorted([*self.tree.files, *self.tree.links]):
            if self.is_extra(path):
                self.say("extra", "", path, self.hashes.get(path) or self.tree.links.get(path, ""))

    def check_seal(self) -> None:
        """Compare records, programs and a venv's own files with what the installation left."""
        if "seal" not in self.receipt:
            return
        need: Dict[str, str] = self.receipt["seal"]
        found = sealed(self.prefix, self.tree, self.hashes)
        told = {difference.path for difference in self.differences}
        packages = {difference.package for difference in self.differences if not difference.path}
        for path in sorted({*need, *found} - told):
            owner = self.owners.get(path, "venv" if self.is_venvs_own(path) else "")
            record = re.match(r".*/([^/-]+)-[^/]*\.dist-info/RECORD$", path)
            if (requirements.normalise(record.group(1)) if record else owner.split(" ")[0]) in packages:
                continue  # the whole package is missing, extra or of another version: that is told
            if path not in found:
                self.say("missing", owner, path)
            elif path not in need:
                self.say("extra", owner, path, found[path])
            elif found[path].split(" x")[0] == need[path].split(" x")[0] and found[path] != need[path]:
                self.say("mode", owner, path, f"{'' if found[path].endswith(' x') else 'not '}executable")
            elif found[path] != need[path]:
                self.say("changed", owner, path, found[path], need[path])

    # -- what is locked

    def lock_text(self, name: str) -> str:
        """Return the receipt's copy of a lock file, "" if this environment has none of that name."""
        need = self.receipt["lock"]["files"].get(name)
        if need is None:
            return ""
        path = receipt_folder(self.receipt) / "lock" / name
        try:
            content = path.read_bytes()
        except OSError:
            self.say("missing", "lock", str(path))
            return ""
        found = hashlib.sha256(content).hexdigest()
        if found != need:
            self.say("changed", "lock", str(path), found, need)
        return content.decode()

    def check_conda(self) -> None:
        """Compare the conda packages with the lock: names, versions, builds, hashes of the package files."""
        text = self.lock_text(self.receipt["platform"] + ".txt")
        locked, hashes = {}, {}
        for url, sha256 in bootstrap.parse_explicit(text):
            file = re.sub(r"\.(conda|tar\.bz2)$", "", url.rsplit("/", 1)[1])
            name, version, build = file.rsplit("-", 2)
            locked[name], hashes[name] = f"{version} {build}", sha256
        found = [(p.name, f"{p.version} {p.build}") for p in self.packages if p.layer == "conda"]
        self.compare_versions(found, locked, lambda one, two: one == two)
        for package in self.packages:
            need = hashes.get(package.name, "")
            if package.layer == "conda" and package.sha256 not in ("", need) and need:
                self.say("version", package.name, "", package.sha256, need)

    def check_python(self) -> None:
        """Compare the Python packages with the lock: names and versions."""
        text = self.lock_text("pypi.txt") + "\n" + self.lock_text("host.txt")
        entries = requirements.applicable(
            requirements.parse(text), self.receipt["platform"], str(self.receipt["python"])
        )
        found = [(package.name, package.version) for package in self.packages if package.layer == "python"]
        self.compare_versions(found, {entry.name: entry.version for entry in entries}, requirements.same_version)

    def compare_versions(
        self, found: List[Tuple[str, str]], locked: Dict[str, str], same: Callable[[str, str], bool]
    ) -> None:
        """Report what is missing, extra or of another version.

        found: (name, version), a name twice where there are two of it; locked: {name: version}.
        """
        for name in sorted({*locked, *(name for name, _ in found)}):
            have, need = [version for other, version in found if other == name], locked.get(name)
            fitting = [version for version in have if need is not None and same(version, need)]
            if fitting:
                have.remove(fitting[0])
            elif need is not None and have:
                self.say("version", name, "", have.pop(), need)
            elif need is not None:
                self.say("missing", name, "", need=need)
            for version in have:
                self.say("extra", name, "", version)

    # -- the rest

    def check_venv(self) -> str:
        """Return the version of the Python that the environment's own leads to, "" if there is none."""
        python = os.path.realpath(str(self.prefix / "bin" / "python"))
        if not os.access(python, os.X_OK):
            self.say("missing", "this machine's Python", "bin/python", python)
            return ""
        settings = dict(re.findall(r"(?m)^([\w-]+)\s*=\s*(.*?)\s*$", read_text(self.prefix / "pyvenv.cfg")))
        if settings.get("include-system-site-packages") != "false":
            self.say("changed", "venv", "pyvenv.cfg", "packages from outside the environment are let in")
        code = "import platform; print(platform.python_version())"
        try:
            version = bootstrap.run([python, "-I", "-c", code], timeout=60).strip()
        except bootstrap.Failure as problem:
            self.say("changed", "venv", "bin/python", problem.what)
            return ""
        if version != self.receipt["python"]:
            self.notes.append(
                f"this machine's Python is now {version} (it was {self.receipt['python']} when installed)"
            )
        return version

    def check_extension(self) -> None:
        """Report server extensions that the environment's own settings do not enable, or the user's disable.

        Which setting is stronger is Jupyter's to say; it is asked where there are others than the environment's.
        """
        own = self.prefix / "etc" / "jupyter"
        user = os.environ.get("JUPYTER_CONFIG_DIR") or Path.home() / ".jupyter"
        outside = [
            *os.environ.get("JUPYTER_CONFIG_PATH", "").split(os.pathsep),
            user,
            "/usr/local/etc/jupyter",
            "/etc/jupyter",
        ]
        patterns = ("jupyter_notebook_config.d/*.json", "jupyter_notebook_config.*", "jupyter_config.*")
        files = [path for folder in outside if folder for pattern in patterns for path in Path(folder).glob(pattern)]
        enabled: Dict[str, Any] = {}
        if any(path.is_file() for path in files):
            enabled = self.ask_jupyter()
        else:
            for path in sorted(own.glob(patterns[0])):
                with contextlib.suppress(ValueError, AttributeError):  # damaged: that is told with its hash
                    enabled.update(json.loads(read_text(path)).get("NotebookApp", {}).get("nbserver_extensions", {}))
        for name in EXTENSIONS:
            if enabled.get(name) is not True:
                where = next((path for path in sorted(files) if name in read_text(path)), own)
                self.say("disabled", f"server extension {name}", str(where))

    def ask_jupyter(self) -> Dict[str, Any]:
        """Return {server extension: whether it is enabled} as the environment's Jupyter finds it for this user."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("JUPYTER")}
        env = bootstrap.child_environment(**settings)
        try:
            said = bootstrap.run([self.prefix / "bin" / "python", "-I", "-B", "-c", ASK_JUPYTER], env=env, timeout=60)
            return dict(json.loads(said.splitlines()[-1]))
        except (bootstrap.Failure, ValueError, IndexError) as problem:
            self.notes.append(f"Jupyter can't read its settings: {problem}")
            return {}

    # -- all of it

    def run(self) -> Findings:
        """Compare everything and return what was found."""
        digests = []
        for package in self.packages:
            digest = hashlib.sha256()
            for entry in sorted(package.entries):
                identity = self.identity(package, entry)
                if entry.kind != "own" and identity:
                    # independent of Python's minor version, so that compare.py sees which packages really differ
                    path = entry.path.replace(self.site, "site-packages", 1) if self.site else entry.path
                    digest.update(f"{path}\0{identity}\n".encode())
            digests.append(digest.hexdigest())
        self.check_extra()
        if self.receipt["layer"] == "conda":
            self.check_conda()
        self.check_python()
        version = "" if self.receipt["layer"] == "conda" else self.check_venv()
        self.check_seal()
        self.check_extension()
        if self.linked:
            self.notes.append(f"files that are links here: {len(self.linked)}, such as {self.linked[0]}")
        packages = [
            {
                "layer": package.layer,
                "name": package.name,
                "version": package.version,
                "build": package.build,
                "files": len(package.entries),
                "sha256": digest,
            }
            for package, digest in zip(self.packages, digests)  # noqa: B905 - Python 3.8
        ]
        if version:
            packages.append(
                {"layer": "machine", "name": "python", "version": version, "build": "", "files": 0, "sha256": ""}
            )
        return Findings(
            fingerprint(self.receipt, packages, self.differences),
            packages,
            self.differences,
            self.notes,
            len(self.hashes),
            sum(self.tree.files[path] for path in self.hashes),
            sorted(self.shared),
        )


def read_text(path: Path) -> str:
    """Return a file's text, or "" where there is none to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def receipt_folder(receipt: Dict[str, Any]) -> Path:
    """Return the folder of a receipt: HOME/receipts/NAME beside HOME/envs/NAME."""
    return Path(receipt["root"]).parent.parent / "receipts" / str(receipt["name"])


def fingerprint(receipt: Dict[str, Any], packages: List[Dict[str, Any]], differences: List[Difference]) -> str:
    """Return the one line that two machines compare.

    packages: as in Findings; differences: what no package accounts for (extra and disabled things) counts too.
    """
    names = ("layer", "name", "version", "build", "sha256")
    lines = ["colab-local fingerprint 1", f"platform {receipt['platform']}", f"layer {receipt['layer']}"]
    lines += [f"lock {name} {sha256}" for name, sha256 in sorted(receipt["lock"]["files"].items())]
    lines += sorted(" ".join(str(package[name]) for name in names) for package in packages)
    lines += sorted(f"{d.kind} {d.package} {d.path} {d.found}" for d in differences if is_loose(d.kind, d.package))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"colab-local {receipt['env']} {receipt['platform']} sha256:{digest}"


def is_loose(kind: str, package: str) -> bool:
    """Return whether a difference counts in the fingerprint by itself, because no package's files show it."""
    return kind in ("extra", "disabled", "mode") or package in ("venv", "lock")


def check(receipt: Dict[str, Any]) -> Findings:
    """Check the environment of a receipt.

    Raises:
        bootstrap.Failure: it is not there at all, or its records can't be read.
    """
    prefix = Path(receipt["prefix"])
    if not (prefix / "bin").is_dir():
        raise bootstrap.Failure(
            f"the {receipt['env']} environment is gone from {prefix}",
            f"python3 bootstrap.py --env {receipt['env']}",
            bootstrap.EXIT_DIFFERS,
        )
    try:
        return Check(prefix, receipt).run()
    except (KeyError, TypeError, UnicodeError, ValueError, csv.Error) as problem:
        raise bootstrap.Failure(
            f"a record in {prefix} is damaged ({type(problem).__name__}: {problem})",
            repair(receipt, []),
            bootstrap.EXIT_DIFFERS,
        ) from problem


def repair(receipt: Dict[str, Any], shared: List[str]) -> str:
    """Return the line that makes an environment anew.

    shared: packages whose damage is in uv's cache too, because uv links its cache's files into environments.
    """
    uv = shlex.quote(str(Path(receipt["prefix"]) / "bin" / "uv"))
    steps = [f"{uv} cache clean {' '.join(shared)}"] if shared else []
    home = Path(receipt["root"]).parent.parent
    option = "" if str(home) == bootstrap.default_home() else f" --prefix {shlex.quote(str(home))}"
    again = f"python3 bootstrap.py --env {receipt['env']} --engine {receipt['engine']}{option}"
    return " && ".join([*steps, f"rm -r {shlex.quote(str(receipt['root']))}", again])


def command(args: Any) -> int:
    """Carry out --verify and return the exit code. args: bootstrap.py's options home, env and json.

    Raises:
        bootstrap.Failure: no such environment is installed.
    """
    receipt = bootstrap.current_receipt(args.home, args.env) or next(
        (r for r in bootstrap.read_receipts(args.home) if r.get("env") == args.env), None
    )
    if receipt is None:
        raise bootstrap.Failure(
            f"no {args.env} environment is installed in {args.home}", f"python3 bootstrap.py --env {args.env}"
        )
    started = time.monotonic()
    found = check(receipt)
    seconds = time.monotonic() - started
    show(receipt, found, seconds)
    if args.json:
        print(json.dumps(document(receipt, found, seconds), indent=1))
    return bootstrap.EXIT_DIFFERS if found.differences else bootstrap.EXIT_OK


def show(receipt: Dict[str, Any], found: Findings, seconds: float) -> None:
    """Print the findings for people: what differs, then the fingerprint as a line of its own."""
    checked = f"{found.files} files of {len(found.packages)} packages ({bootstrap.megabytes(found.size)})"
    for difference in found.differences[:SHOWN]:
        bootstrap.say(difference.line())
    if len(found.differences) > SHOWN:
        bootstrap.say(f"... and {len(found.differences) - SHOWN} more: --json lists them all")
    for note in found.notes:
        bootstrap.say("note: " + note)
    if not found.differences:
        bootstrap.say(f"Checked {checked} in {seconds:.1f} s: all as locked.")
    bootstrap.say(found.fingerprint)
    if found.differences:
        count = len(found.differences)
        bootstrap.report(f"error: {count} difference{'s' if count > 1 else ''} from the lock, of {checked}")
        bootstrap.report("hint: " + repair(receipt, found.shared))


def document(receipt: Dict[str, Any], found: Findings, seconds: float) -> Dict[str, Any]:
    """Return what --json prints and scripts/compare.py reads."""
    return {
        "ok": not found.differences,
        "environment": receipt["env"],
        "platform": receipt["platform"],
        "layer": receipt["layer"],
        "engine": receipt["engine"],
        "prefix": receipt["prefix"],
        "lock": receipt["lock"]["files"],
        "fingerprint": found.fingerprint,
        "packages": found.packages,
        "differences": [difference._asdict() for difference in found.differences],
        "notes": found.notes,
        "files": found.files,
        "bytes": found.size,
        "seconds": round(seconds, 2),
    }


def measure(home: str, env: str, rounds: int = 3) -> Dict[str, float]:
    """Compare --verify with sha256sum over the same files on the same CPUs; return the best of the rounds.

    The rounds alternate, each a whole process, files in the page cache for both. Returned: files, bytes,
    sha256sum_s, verify_s and their ratio. Needs sha256sum, find and xargs.
    """
    receipt = bootstrap.current_receipt(home, env)
    if receipt is None:
        raise bootstrap.Failure(f"no {env} environment is installed in {home}", f"python3 bootstrap.py --env {env}")
    prefix = Path(receipt["prefix"])
    checker = Check(prefix, receipt)
    names = "\0".join(f"{prefix}/{path}" for path in checker.hashes).encode()
    reference = ["xargs", "-0", "-P", str(cpu_count()), "-n", "200", "sha256sum"]
    program = [sys.executable, str(bootstrap.REPOSITORY / "bootstrap.py"), "--verify", "--env", env, "--prefix", home]

    def timed(argv: List[str], stdin: bytes) -> float:
        started = time.perf_counter()
        subprocess.run(argv, input=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    pairs = [(timed(reference, names), timed(program, b"")) for _ in range(rounds)]
    sums, checks = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return {
        "files": len(checker.hashes),
        "bytes": sum(checker.tree.files[path] for path in checker.hashes),
        "sha256sum_s": round(sums, 2),
        "verify_s": round(checks, 2),
        "ratio": round(checks / sums, 2),
    }
