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

import contextlib
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
from typing import Any, Callable, Iterator, NamedTuple

from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, Failure
from colab_local.base.files import sha256_of
from colab_local.base.programs import child_environment, run
from colab_local.base.progress import Progress
from colab_local.base.terminal import Screen
from colab_local.base.text import megabytes
from colab_local.install import requirements
from colab_local.install.home import default_home, demand_receipt, user_home
from colab_local.install.lockfiles import REPOSITORY, parse_explicit
from colab_local.install.offline import MANIFEST
from colab_local.install.records import (
    PREFIX,
    Difference,
    Entry,
    Package,
    launcher_target,
    read_conda,
    read_overlay,
    read_python,
    site_packages,
    unpatched,
    without_prefix,
)
from colab_local.install.seal import SEALED, hash_batch, sealed, walk
from colab_local.install.surroundings import warn

SHOWN = 20  # differences on the screen; --json has all
BATCH = 16 << 20  # bytes per piece of work of a hashing thread
FILE_COST = 20_000  # what opening a file costs, in bytes that could be hashed meanwhile

# What engines keep in an environment for themselves.
ENGINES_OWN = re.compile(r"conda-meta/|\.lock$|CACHEDIR\.TAG$|\.condarc$|\.gitignore$")
# Names in a venv that belong to the venv itself.
VENVS_OWN = re.compile(r"pyvenv\.cfg$|lib64$|bin/(Activate\.ps1|activate(\.csh|\.fish)?)$|bin/(python(3(\.\d+)?)?)$")
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


class Findings(NamedTuple):
    """What a check found. packages: for --json; notes: worth knowing, but no difference."""

    fingerprint: str
    packages: list[dict[str, Any]]
    differences: list[Difference]
    notes: list[str]
    files: int
    size: int
    shared: list[str]  # packages with changed files: uv's cache may hold the same damage


# ---------------------------------------------------------------------------------------------------------
# Hashing


def batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Divide {path: bytes} into lists of about equal work, the heaviest files first."""
    batch: list[str] = []
    work = 0
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        batch.append(path)
        work += size + FILE_COST
        if work >= BATCH:
            yield batch
            batch, work = [], 0
    if batch:
        yield batch


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hash_files(prefix: Path, sizes: dict[str, int], screen: Screen) -> dict[str, str]:
    """Return {path: sha256} of files under a prefix, hashed by as many threads as there are CPUs for us.

    hashlib and read() let other threads run meanwhile, so threads are enough.
    """
    progress = Progress(screen, f"Checking {len(sizes)} files", sum(sizes.values()))
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

    def __init__(self, prefix: Path, receipt: dict[str, Any], screen: Screen) -> None:
        self.prefix, self.receipt, self.screen = prefix, receipt, screen
        self.differences: list[Difference] = []
        self.notes: list[str] = []
        self.linked: list[str] = []  # files that are links here
        self.shared: set[str] = set()
        self.tree = walk(prefix)
        overlay = read_overlay(receipt)
        conda, damaged = read_conda(prefix)
        owned = {entry.path for package in [overlay, *conda] for entry in package.entries}
        self.site = site_packages(prefix) or ""
        python, wrong = read_python(prefix, self.site, owned) if self.site else ([], [])
        self.differences += damaged + wrong
        self.packages = [*sorted(conda + python, key=lambda p: (p.layer, p.name)), overlay]
        self.known = {entry.path: entry for package in self.packages for entry in package.entries}
        self.owners = {entry.path: package.title for package in self.packages for entry in package.entries}
        self.recorded: dict[str, set[str]] = {}  # several wheels may bring one file: any one's of them is right
        for path, sha256 in ((e.path, e.sha256) for package in python for e in package.entries if e.sha256):
            self.recorded.setdefault(path, set()).add(sha256)
        sizes = self.tree.files
        counts = (path for path in sizes if path in self.known or SEALED.match(path) or self.is_extra(path))
        self.hashes = hash_files(prefix, {path: sizes[path] for path in counts}, self.screen)

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
        elif found == entry.sha256 or entry.kind == "own" or self.is_other_owners(package, entry, found):
            return found
        elif not entry.sha256 and path.endswith(".pyc"):
            return ""
        elif not entry.sha256:
            self.say("unhashed", package.title, path)
            return found
        return self.changed(package, entry, found)

    def is_other_owners(self, package: Package, entry: Entry, found: str) -> bool:
        """Return whether a file is as another wheel that brings it says: OpenCV's three packages share cv2/."""
        return package.layer == "python" and bool(entry.sha256) and found in self.recorded[entry.path]

    def changed(self, package: Package, entry: Entry, found: str) -> str:
        """Note that a file's content is not the recorded one."""
        self.say("changed", package.title, entry.path, found, entry.in_prefix or entry.sha256)
        if package.layer == "python":
            self.shared.add(package.name)
        return f"changed {found}"

    def hash_of_link(self, path: str) -> str | None:
        """Return the hash of the file that a link leads to, or None if it leads to none."""
        if not (self.prefix / path).is_file():
            return None
        self.linked.append(path)
        return sha256_of(self.prefix / path)

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
        seen: set[str] = set()
        while path in self.tree.links and path not in seen:
            seen.add(path)
            path = os.path.normpath(f"{PurePosixPath(path).parent}/{self.tree.links[path]}")
        return path

    def program_identity(self, package: Package, entry: Entry, found: str) -> str:
        """Compare a program that the installer gave its first line, or wrote altogether."""
        content = (self.prefix / entry.path).read_bytes()
        own = found in (entry.sha256, entry.in_prefix)
        if entry.sha256 and not own and not self.is_other_owners(package, entry, found):
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
        cached = re.match(r"(.*?)__pycache__/([^/]+?)\.[^/.]+-\d+(?:\.opt-\d)?\.pyc(?:\.\d+)?$", path)
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
        need: dict[str, str] = self.receipt["seal"]
        found = sealed(self.prefix, self.tree, self.hashes)
        named = {difference.path for difference in self.differences}
        packages = {difference.package for difference in self.differences if not difference.path}
        for path in sorted({*need, *found} - named):
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

    def lock_text(self, name: str) -> str | None:
        """Return the receipt's copy of a lock file, "" if this environment has none, None if it is not as it was."""
        need = self.receipt["lock"]["files"].get(name)
        if need is None:
            return ""
        path = receipt_folder(self.receipt) / "lock" / name
        try:
            content = path.read_bytes()
        except OSError:
            self.say("missing", "lock", str(path))
            return None
        found = hashlib.sha256(content).hexdigest()
        if found != need:
            self.say("changed", "lock", str(path), found, need)
            return None
        return content.decode()

    def check_conda(self) -> None:
        """Compare the conda packages with the lock: names, versions, builds, hashes of the package files."""
        text = self.lock_text(self.receipt["platform"] + ".txt")
        if text is None:
            return
        locked, hashes = {}, {}
        for url, sha256 in parse_explicit(text):
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
        texts = [self.lock_text("pypi.txt"), self.lock_text("host.txt")]
        if None in texts:
            return
        text = "\n".join(filter(None, texts))
        entries = requirements.applicable(
            requirements.parse(text), self.receipt["platform"], str(self.receipt["python"])
        )
        found = [(package.name, package.version) for package in self.packages if package.layer == "python"]
        self.compare_versions(found, {entry.name: entry.version for entry in entries}, requirements.same_version)

    def compare_versions(
        self, found: list[tuple[str, str]], locked: dict[str, str], same: Callable[[str, str], bool]
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
            version = run([python, "-I", "-c", code], self.screen, timeout=60).strip()
        except Failure as problem:
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
        enabled: dict[str, Any] = {}
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

    def ask_jupyter(self) -> dict[str, Any]:
        """Return {server extension: whether it is enabled} as the environment's Jupyter finds it for this user."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("JUPYTER")}
        env = child_environment(**settings)
        try:
            said = run([self.prefix / "bin" / "python", "-I", "-B", "-c", ASK_JUPYTER], self.screen, env, timeout=60)
            return dict(json.loads(said.splitlines()[-1]))
        except (Failure, ValueError, IndexError) as problem:
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
        for path in self.tree.open:
            if path in self.tree.files and ENGINES_OWN.match(path):
                continue  # uv makes its .lock for all to write: nothing is read from it
            self.say("open", self.owners.get(path, ""), path, "another user can write to it")
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
            for package, digest in zip(self.packages, digests)
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


def receipt_folder(receipt: dict[str, Any]) -> Path:
    """Return the folder of a receipt: HOME/receipts/NAME beside HOME/envs/NAME."""
    return Path(receipt["root"]).parent.parent / "receipts" / str(receipt["name"])


def fingerprint(receipt: dict[str, Any], packages: list[dict[str, Any]], differences: list[Difference]) -> str:
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


def check(receipt: dict[str, Any], screen: Screen) -> Findings:
    """Check the environment of a receipt; raise Failure where it is not there at all."""
    return Check(demand_there(receipt), receipt, screen).run()


def demand_there(receipt: dict[str, Any]) -> Path:
    """Return where the environment of a receipt is; raise Failure where there is nothing of it."""
    prefix = Path(receipt["prefix"])
    if not (prefix / "bin").is_dir():
        raise Failure(
            f"the {receipt['env']} environment is gone from {prefix}",
            f"python3 bootstrap.py --env {receipt['env']}",
            EXIT_DIFFERS,
        )
    return prefix


def repair(receipt: dict[str, Any]) -> str:
    """Return the line that puts an environment right."""
    home = Path(receipt["root"]).parent.parent
    option = "" if home == default_home() else f" --prefix {shlex.quote(str(home))}"
    if receipt.get("bundle"):  # no network where it was made: this is the bundle itself, unpacked, or has its name
        bundle = REPOSITORY if (REPOSITORY / MANIFEST).is_file() else receipt["bundle"]
        option += f" --offline {shlex.quote(str(bundle))}"
    return f"python3 bootstrap.py --repair --env {receipt['env']}{option}"


def command(home: Path, env: str, screen: Screen) -> int:
    """Carry out --verify and return the exit code.

    Raises:
        Failure: no such environment is installed.
    """
    receipt = demand_receipt(home, env)
    started = time.monotonic()
    found = check(receipt, screen)
    seconds = time.monotonic() - started
    show(receipt, found, seconds, screen)
    warn(user_home(), os.environ, Path(receipt["notebook_dir"]), screen)  # of what no file of ours can show
    screen.show_document(document(receipt, found, seconds))
    return EXIT_DIFFERS if found.differences else EXIT_OK


def show(receipt: dict[str, Any], found: Findings, seconds: float, screen: Screen) -> None:
    """Print the findings for people: what differs, then the fingerprint as a line of its own."""
    checked = f"{found.files} files of {len(found.packages)} packages ({megabytes(found.size)})"
    for difference in found.differences[:SHOWN]:
        screen.say(difference.line())
    if len(found.differences) > SHOWN:
        screen.say(f"... and {len(found.differences) - SHOWN} more: --json lists them all")
    for note in found.notes:
        screen.say("note: " + note)
    if not found.differences:
        screen.say(f"Checked {checked} in {seconds:.1f} s: all as locked.")
    screen.say(found.fingerprint)
    if found.differences:
        count = len(found.differences)
        screen.report(f"error: {count} difference{'s' if count > 1 else ''} from the lock, of {checked}")
        screen.report("hint: " + screen.put_right(repair(receipt)))


def document(receipt: dict[str, Any], found: Findings, seconds: float) -> dict[str, Any]:
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


def measure(home: Path, env: str, screen: Screen, rounds: int = 3) -> dict[str, float]:
    """Compare --verify with sha256sum over the same files on the same CPUs; return the best of the rounds.

    The rounds alternate, each a whole process, files in the page cache for both. Returned: files, bytes,
    sha256sum_s, verify_s and their ratio. Needs sha256sum, find and xargs.
    """
    receipt = demand_receipt(home, env)
    prefix = Path(receipt["prefix"])
    checker = Check(prefix, receipt, screen)
    names = "\0".join(f"{prefix}/{path}" for path in checker.hashes).encode()
    reference = ["xargs", "-0", "-P", str(cpu_count()), "-n", "200", "sha256sum"]
    program = [sys.executable, str(REPOSITORY / "bootstrap.py"), "--verify", "--env", env, "--prefix", str(home)]

    def timed(argv: list[str], stdin: bytes) -> float:
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
