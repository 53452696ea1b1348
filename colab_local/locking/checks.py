"""Checks of lockfiles/ that need no network: the files are whole, agree, and are what scripts/lock.py writes.

ci/check_lockfiles.py runs them. Each yields a line for everything that it finds wrong.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colab_local.base.errors import Failure
from colab_local.install.lockfiles import parse_explicit, read_index
from colab_local.locking.build import conda_hashes, differences, locked_requirements, read_files
from colab_local.locking.conda import read_pixi_lock, solve_conda
from colab_local.locking.gpu_code import entries, has_gpu_code, parse_code, recipe_code
from colab_local.locking.installers import wrong_names
from colab_local.locking.render import (
    GPU_CODE,
    HOST_HEAD,
    conda_sizes,
    explicit_text,
    index_text,
    machine_needs,
    pixi_lock_text,
    pixi_toml_text,
    pypi_head,
)
from colab_local.locking.reread import (
    check_download_size,
    check_followed,
    check_jupyter_files,
    check_kinds,
    check_packages_text,
    check_requirements_text,
    check_wanted,
    first_difference,
)
from colab_local.locking.specs import (
    CHANNEL,
    NOTICE,
    PYTHONS,
    Target,
    card_differences,
    read_cards,
    read_exceptions,
    read_missing,
    read_pins,
    read_specs,
)
from colab_local.locking.wheels import applies

HOSTS = {"conda.anaconda.org", "github.com", "repo.anaconda.com", "colab.research.google.com"}

Problems = Iterator[str]


class Lockfiles:
    """lockfiles/ as it is, read once, with the specs that it is to fit."""

    def __init__(self, environments: Path, lockfiles: Path) -> None:
        self.environments, self.folder = environments, lockfiles
        self.specs = read_specs(environments)
        self.index = read_index(lockfiles)
        self.files = read_files(lockfiles)
        self.locked = read_pixi_lock(lockfiles / "pixi.lock")
        self.conda = {name: records for name, records in self.locked.items() if name in self.specs}
        self.exceptions = read_exceptions(environments)

    def pins(self, name: str) -> dict[str, str]:
        """Return hosted Colab's versions that an environment follows."""
        return read_pins(self.environments, self.specs[name].pins)

    def records(self, name: str, platform: str) -> list[Any]:
        """Return the locked conda records of an environment on a platform, sorted by name."""
        return self.conda.get(name, {}).get(platform, [])

    def version(self, name: str, package: str) -> str:
        """Return the version of a conda package that is the same on every platform; "" if it isn't locked."""
        records = [record for platform in self.specs[name].platforms for record in self.records(name, platform)]
        return next((str(record.version) for record in records if record.name.normalized == package), "")

    def text(self, path: str) -> str:
        """Return a lockfile's text, "" for one that is missing: check_digests() says so."""
        return self.files.get(path, "")

    def requirements(self, name: str) -> list[str]:
        """Return the `name==version ; marker` lines of an environment's pypi.txt."""
        return locked_requirements(self.folder / name / "pypi.txt")

    def count(self, name: str, target: Target) -> int:
        """Return how many packages of pypi.txt are for a platform and Python."""
        return sum(applies(line.partition(" ; ")[2], target) for line in self.requirements(name))


def identity(record: Any) -> tuple[str, str]:
    """Return what makes a conda record this one and no other: URL and SHA-256."""
    return record.url, record.sha256.hex() if record.sha256 else ""


def compare(title: str, found: Mapping[str, Any], need: Mapping[str, Any]) -> Problems:
    """Yield a line for every name of which two mappings say different things."""
    for name in sorted({*found, *need}):
        if found.get(name) != need.get(name):
            yield f"{title}: {name}: found {found.get(name, 'nothing')}, need {need.get(name, 'nothing')}"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested JSON as {path: value}."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name in value for key, leaf in flat(value[name], f"{path}/{name}").items()}


def index_entry(files: Lockfiles, name: str) -> dict[str, Any]:
    """Return what index.json has to say of an environment; the wheels' sizes are another check's matter."""
    spec = files.specs[name]
    now = files.index["environments"].get(name, {}).get("platforms", {})
    return {
        "accelerator": spec.accelerator,
        "python": files.version(name, "python"),
        **({} if spec.pythons == PYTHONS else {"pythons": list(spec.pythons)}),
        **({"needs_conda": True} if spec.needs_conda else {}),
        "platforms": {
            platform: {
                "requires": machine_needs(spec, platform, files.text(f"{name}/{GPU_CODE}")),
                "bytes": now.get(platform, {}).get("bytes", {}) | conda_sizes(files.records(name, platform)),
            }
            for platform in spec.platforms
        },
    }


def check_digests(files: Lockfiles) -> Problems:
    """Yield what index.json says wrongly, files it doesn't know, and hosts that don't belong in a lock."""
    made = {"index.json", "host.txt", "pixi.toml", "pixi.lock"}
    for name, spec in files.specs.items():
        made |= {f"{name}/{file}" for file in ("conda-lock.yml", "packages.txt", "pypi.txt")}
        made |= {f"{name}/{platform}.txt" for platform in spec.platforms}
        made |= {f"{name}/{GPU_CODE}"} if spec.accelerator == "gpu" else set()
    texts = dict.fromkeys(made, "") | files.files
    uv = files.version(next(iter(files.specs)), "uv")
    entries = {name: index_entry(files, name) for name in files.specs}
    need = index_text(files.environments, texts, entries, uv)
    found = list(compare("index.json", flat(files.index), flat(json.loads(need))))
    yield from found
    if not found and files.text("index.json") != need:
        yield f"index.json: {first_difference(files.text('index.json'), need)}"
    for path in sorted(made ^ set(files.files)):
        yield f"{path}: {'missing' if path in made else 'not a lockfile'}"
    for path, text in files.files.items():
        for host in sorted(set(re.findall(r"https?://(?:[^/@\s]*@)?([^/\s\"':]+)", text)) - HOSTS):
            yield f"{path}: names the host {host}"
        if "http://" in text:
            yield f"{path}: names a URL without encryption"
        if "\r" in text:
            yield f"{path}: has the line ends of Windows"
        if NOTICE not in "".join(text.splitlines()[:2]):
            yield f"{path}: doesn't say that it is generated"
    yield from check_jupyter_files(files.environments / "jupyter", files.index["jupyter"])
    yield from check_kinds(files.folder)
    yield from check_kinds(files.environments)


def check_pixi(files: Lockfiles) -> Problems:
    """Yield where pixi.toml and pixi.lock are not what follows from the specs and the locked records."""
    series = {name: entry["python"] for name, entry in files.index["environments"].items()}
    yield from differences({"pixi.toml": files.text("pixi.toml")}, {"pixi.toml": pixi_toml_text(files.specs, series)})
    extra = set(files.locked) - set(files.specs) - {"default"}
    for name in sorted(extra | (set(files.specs) - set(files.locked))):
        yield f"pixi.lock: environment {name}: {'not one of ours' if name in extra else 'missing'}"
    for name, spec in files.specs.items():
        for platform in sorted(set(files.locked.get(name, {})) ^ set(spec.platforms)):
            yield f"pixi.lock: {name}: {platform}: {'missing' if platform in spec.platforms else 'not one of ours'}"
    difference = first_difference(files.text("pixi.lock"), pixi_lock_text(files.conda))
    if difference:
        yield f"pixi.lock: {difference}"


def check_installers(files: Lockfiles) -> Problems:
    """Yield what is wrong with the installers' names; index.json has them from environments/installers.json."""
    for line in wrong_names(json.loads((files.environments / "installers.json").read_text(encoding="utf-8"))):
        yield f"installers.json: {line}"


def check_formats(files: Lockfiles, name: str, platform: str) -> Problems:
    """Yield where explicit file, conda-lock.yml, pixi.lock and packages.txt differ, or name something odd."""
    records = files.records(name, platform)
    need = dict(identity(record) for record in records)
    explicit = files.text(f"{name}/{platform}.txt")
    yield from compare(f"{name}/{platform}.txt against pixi.lock", dict(parse_explicit(explicit)), need)
    if explicit != explicit_text(platform, records):
        yield f"{name}/{platform}.txt: not as scripts/lock.py writes it for pixi.lock's records"

    for record in records:
        file = f"{record.name.normalized}-{record.version}-{record.build}"
        subdir = "noarch" if "/noarch/" in record.url else platform
        if record.url not in {f"{CHANNEL}{subdir}/{file}{end}" for end in (".conda", ".tar.bz2")}:
            yield f"pixi.lock: {name}/{platform}: {record.url} is no conda-forge URL of {file}"


def check_requirements(files: Lockfiles, name: str) -> Problems:
    """Yield where pypi.txt or packages.txt is not as it is written, or not what environments/ want."""
    path = f"{name}/pypi.txt"
    text, spec = files.text(path), files.specs[name]
    yield from check_requirements_text(path, text, pypi_head(spec.pythons))
    yield from check_wanted(spec, text, path)
    yield from check_followed(spec, text, path, files.pins(name), files.exceptions)
    shown = files.text(f"{name}/packages.txt")
    missing, conda = read_missing(files.environments, name), files.conda.get(name, {})
    problems = list(check_packages_text(spec, conda, text, shown, files.pins(name), files.exceptions, missing))
    yield from problems
    if not problems:
        stated = next(iter(files.index["environments"][name]["platforms"].values()))["bytes"]["pypi_download"]
        yield from check_download_size(spec, shown, text, stated)


def check_host_text(files: Lockfiles) -> Problems:
    """Yield where host.txt is not as it is written, or has other versions than the conda layer."""
    text = files.text("host.txt")
    yield from check_requirements_text("host.txt", text, HOST_HEAD)
    found = dict(re.findall(r"(?m)^([a-z0-9-]+)==([^\s;\\]+)", text))
    first = next(iter(files.specs))
    yield from compare("host.txt against the conda layer", found, {n: files.version(first, n) for n in ("pip", "uv")})


def check_gpu_code(files: Lockfiles, name: str) -> Problems:
    """Yield where gpu-code.json is not of the locked wheels, or serves other cards than a person has approved."""
    text = files.text(f"{name}/{GPU_CODE}")
    locked = {
        sha256: requirement
        for requirement, hashes in requirement_hashes(files.text(f"{name}/pypi.txt")).items()
        for sha256 in hashes
        if has_gpu_code(requirement)
    }
    read = parse_code(text)
    for record in (record for records in files.conda.get(name, {}).values() for record in records):
        sha256 = (record.sha256 or b"").hex()
        if read.get(sha256, ("",))[0] == record.file_name:  # read itself: no need of a builder's word
            locked[sha256] = record.file_name
    try:
        by_recipe = recipe_code(files.specs[name].recipes, conda_hashes(files.conda.get(name, {})), locked.values())
    except Failure as failure:
        yield failure.what
        return
    for sha256, entry in by_recipe.items():
        if read.pop(sha256, None) != entry:
            yield f"{name}/{GPU_CODE} does not say of {entry[0]} what gpu-recipes.yml says"
    known = {sha256: file for sha256, (file, _) in read.items()}
    for sha256 in sorted({*locked} ^ {*known}):
        named = locked.get(sha256) or known.get(sha256)
        yield f"{name}/{GPU_CODE} and pypi.txt don't both have {named} ({sha256[:12]}...)"
    yield from card_differences(read_cards(files.environments).get(name, {}), entries(text))


def requirement_hashes(text: str) -> dict[str, list[str]]:
    """Return {package: its hashes} of a pypi.txt."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, hashed = re.match(r"([a-z0-9-]+)==", line), re.search(r"--hash=sha256:([0-9a-f]{64})", line)
        if name:
            found[name.group(1)] = []
        elif hashed and found:
            found[list(found)[-1]].append(hashed.group(1))
    return found


def check_own_records(files: Lockfiles, name: str, platform: str) -> Problems:
    """Yield where rattler, given the lock's own records alone, does not give the lock."""
    with tempfile.TemporaryDirectory(prefix="colab-local-check-") as folder:
        write_channel(Path(folder), files.records(name, platform), platform)
        yield from check_solution(files, name, platform, folder, [], "its own records")


def write_channel(folder: Path, records: Sequence[Any], platform: str) -> None:
    """Write conda records as a channel of their own."""
    for subdir in (platform, "noarch"):
        packages = {r.file_name: json.loads(r.to_json()) for r in records if f"/{subdir}/" in r.url}
        (folder / subdir).mkdir()
        content = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages, "repodata_version": 1}
        (folder / subdir / "repodata.json").write_text(json.dumps(content), encoding="utf-8")


def check_solution(
    files: Lockfiles, name: str, platform: str, channel: str, prefer: Sequence[Any], title: str
) -> Problems:
    """Yield where a solver run differs from the lock; title: what it was given, for the message."""
    try:
        solution = solve_conda(files.specs[name], platform, channel, prefer)
    except Failure as failure:
        yield f"{name}/{platform} from {title}: {failure.what}"
        return
    locked = dict(identity(record) for record in files.records(name, platform))
    yield from compare(f"{name}/{platform} from {title}", locked, dict(identity(r) for r in solution))
