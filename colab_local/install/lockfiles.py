"""lockfiles/: the index, what it names, and one environment's lock."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from colab_local.base import documents
from colab_local.base.errors import EXIT_INTEGRITY, EXIT_USAGE, Failure
from colab_local.base.files import sha256_of
from colab_local.base.text import mask

REPOSITORY = Path(__file__).resolve().parent.parent.parent
OVERLAY = REPOSITORY / "environments" / "jupyter"  # what every environment gets besides its packages
DEFAULT_ENVIRONMENT = "cpu"
INDEX_SCHEMA = 1
# What is in lockfiles/index.json, for mismatch().
_HASH = r"[0-9a-f]{64}"
_PATH = r"\w[\w.-]*(/\w[\w.-]*)*"  # below the folder that it belongs to, never above
_CARD = {"cuda": r"\d+\.\d+", "driver": r"\d[\d.]*", "ptx?": r"\d+\.\d+ sm_\w+", "note?": r".+"}
_NEEDS = {"glibc?": r"\d.*", "macos?": r"\d.*", "cpu?": [r"\w+"], "gpu?": {"*": _CARD}}
_NEEDS.update({"driver?": r"\d.*", "compute_capability?": r"\d.*"})  # an index of before 2026-12 instead of gpu
_FILE = {"url": r"\w+://.+/.+", "sha256": _HASH, "size": (int, type(None))}
INDEX_SHAPE = {
    "schema": int,
    "python": [r"3\.\d+"],
    "runtime?": r"(\d{4}\.\d\d)?",
    "uv": {"version": r"\d.*", "file": _PATH, "sha256": _HASH},
    "installers": {name: {"files": {"*": _FILE}} for name in ("miniforge", "anaconda", "pixi")},
    "pixi": {"*": _HASH},
    "jupyter": {"*": _HASH},
    "environments": {
        "*": {
            "accelerator": "cpu|gpu",
            "python": r"3\.\d+.*",
            "pythons?": [r"3\.\d+"],
            "needs_conda?": bool,
            "pypi": {"file": _PATH, "sha256": _HASH},
            "platforms": {"*": {"file": _PATH, "sha256": _HASH, "requires?": _NEEDS, "bytes?": {"*": int}}},
        }
    },
}


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: '525.60.13' -> (525, 60, 13), '2.36-9' -> (2, 36)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def runtimes_of(index: dict[str, Any], env: str) -> dict[str, str]:
    """Return hosted Colab's runtimes that an environment is locked for, oldest first: {"2026.04": "cpu-2026-04"}."""
    prefix = env + "-"
    found = {name[len(prefix) :]: name for name in index["environments"] if name.startswith(prefix)}
    # pixi allows no dot in an environment's name
    months = {month.replace("-", "."): name for month, name in found.items() if re.match(r"\d{4}-\d\d$", month)}
    others = index["environments"].get(env, {}).get("needs_conda")  # has conda-forge's versions
    if index.get("runtime") and not others and not re.search(r"-\d{4}-\d\d$", env):
        months[index["runtime"]] = env
    return dict(sorted(months.items()))


def runtime_of(index: dict[str, Any], env: str, month: str) -> str:
    """Return the environment that is `env` at the versions of hosted Colab's runtime of a month, 2026.04."""
    months = runtimes_of(index, env)
    if month not in months:
        known = ", ".join(months) or "none"
        newest = next(reversed(list(months)), "")
        hint = f"python3 bootstrap.py --env {env} " + (f"--runtime {newest}" if newest else "!--runtime")
        raise Failure(f"no runtime {month!r} of Colab's for {env} (there are: {known})", hint, EXIT_USAGE)
    return months[month]


def check_known(env: str, environments: Mapping[str, Any]) -> None:
    """Raise Failure for an environment that lockfiles/index.json does not have; the hint is the nearest."""
    if env not in environments:
        near = difflib.get_close_matches(env, list(environments), 1) or [DEFAULT_ENVIRONMENT]
        raise Failure(
            f"unknown environment {env!r} (there are: {', '.join(sorted(environments))})",
            f"python3 bootstrap.py --env {near[0]}",
            EXIT_USAGE,
        )


def pythons_of(index: dict[str, Any], env: str) -> list[str]:
    """Return the Python series that an environment's Python layer is locked for."""
    return list(index["environments"].get(env, {}).get("pythons", index["python"]))


def conda_platform(system: str, machine: str) -> str:
    """Return conda's name of a platform; both arguments as Python's platform module gives them."""
    systems = {"Linux": "linux", "Darwin": "osx", "Windows": "win"}
    machines = {"x86_64": "64", "amd64": "64", "aarch64": "aarch64", "arm64": "arm64"}
    cpu = machines.get(machine.lower(), machine)
    if system == "Linux" and cpu == "arm64":
        cpu = "aarch64"
    return f"{systems.get(system, system.lower())}-{cpu}"


def parse_explicit(text: str) -> list[tuple[str, str]]:
    """Return (URL, sha256) of every package in an explicit conda lockfile; raise Failure if one has no hash."""
    packages = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or line == "@EXPLICIT":
            continue
        url, _, digest = line.partition("#")
        if not re.match(r"sha256:[0-9a-f]{64}$", digest):
            raise Failure(
                f"a package in the lockfile has no sha256 (found {mask(line)})",
                "git status lockfiles",
                EXIT_INTEGRITY,
            )
        packages.append((url, digest[len("sha256:") :]))
    return packages


# What conda-forge calls by another name than the package index does, of the Python packages in our locks.
PYTHON_NAMES = {
    "brotli-python": "brotli",
    "matplotlib-base": "matplotlib",
    "nbconvert-core": "nbconvert",
    "python-fastjsonschema": "fastjsonschema",
    "python-flatbuffers": "flatbuffers",
    "python-tzdata": "tzdata",
}


def conda_names(text: str) -> dict[str, str]:
    """Return {name: version} of an explicit conda lockfile, Python packages by their names on the package index."""
    found = {}
    for url, _ in parse_explicit(text):
        name, version, _build = url.rpartition("/")[2].rsplit("-", 2)
        found[PYTHON_NAMES.get(name, re.sub("[-_.]+", "-", name))] = version
    return found


def locked_names(text: str) -> dict[str, str]:
    """Return {name: version} of a requirements file whose lines are pinned with ==."""
    return dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text))


def locked_entry(text: str, name: str) -> str:
    """Return the lines of one package, with its hashes, in a requirements file whose lines are pinned with ==."""
    found = re.search(rf"(?m)^{re.escape(name)}==(.*\\\n)*.*$", text)
    if not found:
        raise Failure(f"{name} is not in the lock", "git checkout -- lockfiles", EXIT_INTEGRITY)
    return found.group() + "\n"


def restored_by(folder: Path) -> str:
    """Return what brings the files of a folder back: ours come from git, a user's own --lockfiles from the user."""
    ours = folder == REPOSITORY / "lockfiles" or REPOSITORY / "environments" in (folder, *folder.parents)
    return "git checkout -- lockfiles environments" if ours else f"copy {folder} again from where it was made"


def read_index(lockfiles: Path) -> dict[str, Any]:
    """Return lockfiles/index.json; raise Failure when it is missing, damaged or of another schema."""
    path = lockfiles / "index.json"
    hint = restored_by(lockfiles)
    schema = documents.demand(path, {"schema": int}, hint)["schema"]
    if schema != INDEX_SCHEMA:
        raise Failure(f"{path} has schema {schema} (need {INDEX_SCHEMA})", "git pull", EXIT_INTEGRITY)
    return dict(documents.demand(path, INDEX_SHAPE, hint))


def read_lock_file(folder: Path, name: str, sha256: str) -> str:
    """Return the text of a file that index.json names; raise Failure when its hash is another one."""
    path = folder / name
    hint = restored_by(folder)
    try:
        found = sha256_of(path)
    except OSError as problem:
        raise Failure(f"can't read {path} ({problem.strerror})", hint, EXIT_INTEGRITY) from problem
    if found != sha256:
        raise Failure(
            f"{path} was changed after it was generated (found sha256 {found[:12]}..., need {sha256[:12]}...)",
            hint,
            EXIT_INTEGRITY,
        )
    return path.read_text(encoding="utf-8")


class Lock(NamedTuple):
    """What is locked for one environment on one platform.

    layer: "conda", or "host-3.11"; conda: text of the explicit file, "" with the host engine; pypi: text of
    pypi.txt; host: text of host.txt, uv and pip, where no conda layer brings them; jupyter: {path under
    environments/jupyter: sha256}; digest: names all of these; bytes: what each layer has to download and takes on the
    disk, by the names of index.json.
    """

    env: str
    platform: str
    accelerator: str
    layer: str
    conda: str
    pypi: str
    host: str
    jupyter: dict[str, str]
    digest: str
    bytes: dict[str, int] = {}  # noqa: RUF012 - never changed

    @property
    def name(self) -> str:
        """The folder of an environment that is made from it."""
        return f"{self.env}-{self.digest[:12]}"

    def texts(self) -> dict[str, str]:
        """Return the lock files in use by the name under which the receipt keeps them."""
        named = {f"{self.platform}.txt": self.conda, "pypi.txt": self.pypi, "host.txt": self.host}
        return {name: text for name, text in named.items() if text}

    def packages(self) -> dict[str, str]:
        """Return {name: version} of both layers' packages."""
        return {**conda_names(self.conda), **locked_names(self.pypi)}


def make_lock(index: dict[str, Any], lockfiles: Path, env: str, subdir: str, layer: str) -> Lock:
    """Read what is locked for one environment on one platform, every file checked against index.json."""
    entry = index["environments"][env]
    conda_layer = layer == "conda"
    explicit = entry["platforms"][subdir]
    conda = read_lock_file(lockfiles, explicit["file"], explicit["sha256"]) if conda_layer else ""
    pypi = read_lock_file(lockfiles, entry["pypi"]["file"], entry["pypi"]["sha256"])
    host = "" if conda_layer else read_lock_file(lockfiles, index["uv"]["file"], index["uv"]["sha256"])
    for name, sha256 in index["jupyter"].items():
        read_lock_file(OVERLAY, name, sha256)
    named = {"env": env, "platform": subdir, "layer": layer, "conda": conda, "pypi": pypi, "host": host}
    digest = hashlib.sha256(json.dumps([named, index["jupyter"]], sort_keys=True).encode()).hexdigest()
    sizes = dict(explicit.get("bytes") or {})
    return Lock(env, subdir, entry["accelerator"], layer, conda, pypi, host, dict(index["jupyter"]), digest, sizes)
