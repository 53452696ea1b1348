"""The conda layer, solved by rattler."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import rattler
from packaging.utils import canonicalize_name
from rattler.exceptions import GatewayError, SolverError
from rattler.package.build_string import BuildString

from colab_local.base.errors import EXIT_NETWORK, Failure
from colab_local.base.text import mask
from colab_local.install.lockfiles import PYTHON_NAMES
from colab_local.locking.specs import CHANNEL, Spec

Records = dict[str, list["rattler.RepoDataRecord"]]  # by platform
T = TypeVar("T")


def virtual_packages(declared: Mapping[str, str]) -> list[rattler.GenericVirtualPackage]:
    """Return virtual packages for the solver; declared: {"__archspec": "1 x86_64", ...} as conda-lock has it."""
    found = []
    for name, text in sorted(declared.items()):
        version, _, build = text.partition(" ")
        found.append(
            rattler.GenericVirtualPackage(
                rattler.PackageName(name), rattler.Version(version), BuildString(build or "0")
            )
        )
    return found


def channel_folder(channel: str) -> Path | None:
    """Return the folder that holds a channel's linux-64/, noarch/ ..., or None if the channel is a URL."""
    if "://" in channel:
        return None
    for folder in (Path(channel), Path(channel) / "conda-forge"):
        if (folder / "noarch" / "repodata.json").is_file():
            return folder
    raise Failure(
        f"no conda channel in {channel} (need noarch/repodata.json in it)",
        "python3 scripts/lock.py --channel https://conda.anaconda.org/conda-forge/",
    )


def with_conda_forges_address(record: rattler.RepoDataRecord) -> rattler.RepoDataRecord:
    """Return a record as conda-forge itself would have given it: a mirror's address does not go into a lock."""
    record.url = f"{CHANNEL}{record.subdir}/{record.file_name}"
    record.channel = CHANNEL
    return record


def sparse_repodata(folder: Path, platform: str) -> list[rattler.SparseRepoData]:
    """Return a channel folder's records for a platform, under conda-forge's own address."""
    return [
        rattler.SparseRepoData(rattler.Channel(CHANNEL), subdir, folder / subdir / "repodata.json")
        for subdir in (platform, "noarch")
    ]


def solve_conda(
    spec: Spec, platform: str, channel: str, prefer: Sequence[rattler.RepoDataRecord]
) -> list[rattler.RepoDataRecord]:
    """Return the conda layer of an environment on a platform, sorted by name.

    channel: folder or URL; prefer: records to keep where the specs allow it and the channel still has them, the
    same to the hash. Raise Failure with the solver's explanation if there is no solution.
    """
    virtual = virtual_packages(spec.virtual[platform])
    folder = channel_folder(channel)
    if prefer:
        names = [record.name.normalized for record in prefer]
        offered = {(record.url, record.sha256) for record in channel_records(channel, platform, names)}
        prefer = [record for record in prefer if (record.url, record.sha256) in offered]
    try:
        if folder is not None:
            coming = rattler.solve_with_sparse_repodata(
                spec.conda, sparse_repodata(folder, platform), locked_packages=prefer, virtual_packages=virtual
            )
        else:
            subdirs = [rattler.Subdir(platform), rattler.Subdir("noarch")]
            coming = rattler.solve(
                [channel], spec.conda, platforms=subdirs, locked_packages=prefer, virtual_packages=virtual
            )
        solution = asyncio.run(in_a_loop(coming))
    except SolverError as problem:
        explained = " ".join(str(problem).split())
        hint = f"loosen what environments/{spec.name}.yml asks for"
        raise Failure(f"{spec.name}/{platform} has no solution: {explained}", hint) from None
    except GatewayError as problem:
        raise unreadable(channel, problem) from None
    # A locked record stays as it was locked: channels mend what they say of a package (its dependencies, its
    # licence) long after they have published it.
    kept = {(record.url, record.sha256): record for record in prefer}
    found = [kept.get((record.url, record.sha256), record) for record in map(with_conda_forges_address, solution)]
    records = sorted(found, key=lambda record: record.name.normalized)
    for record in records:
        if record.sha256 is None:
            raise Failure(
                f"{record.url} has no sha256 in the channel: it can't be locked",
                "python3 scripts/lock.py --channel DIR-or-URL   # one whose repodata.json has them",
            )
    return records


async def in_a_loop(answer: Awaitable[T]) -> T:
    """Wait for one of rattler's functions, which want a running event loop."""
    return await answer


def channel_records(channel: str, platform: str, names: Iterable[str]) -> list[rattler.RepoDataRecord]:
    """Return all records of these packages that a channel has for a platform."""
    folder = channel_folder(channel)
    if folder is not None:
        data = sparse_repodata(folder, platform)
        found = [record for name in sorted(set(names)) for part in data for record in part.load_records(name)]
    else:
        subdirs = [rattler.Subdir(platform), rattler.Subdir("noarch")]
        query = rattler.Gateway().query([channel], subdirs, sorted(set(names)), recursive=False)
        try:
            found = [record for part in asyncio.run(in_a_loop(query)) for record in part]
        except GatewayError as problem:
            raise unreadable(channel, problem) from None
    return [with_conda_forges_address(record) for record in found]


def unreadable(channel: str, problem: Exception) -> Failure:
    """Return the error for a channel that doesn't answer; rattler tells the whole chain of causes."""
    causes = [line.removeprefix("Caused by: ") for line in str(problem).splitlines() if line.strip()]
    return Failure(
        f"the channel {mask(channel)} can't be read ({mask(causes[-1])})",
        "python3 scripts/lock.py --channel DIR-or-URL",
        EXIT_NETWORK,
    )


def conda_version(records: Iterable[rattler.RepoDataRecord], name: str) -> str:
    """Return the version of a package in a conda layer."""
    return next(str(record.version) for record in records if record.name.normalized == name)


def python_packages(conda: Records) -> dict[str, str]:
    """Return {name on the package index: version} of the Python packages in a conda layer."""
    return {
        PYTHON_NAMES.get(record.name.normalized, canonicalize_name(record.name.normalized)): str(record.version)
        for records in conda.values()
        for record in records
        if record.noarch.python or any(text.partition(" ")[0] == "python" for text in record.depends)
    }


def channel_of(env: str, given: Sequence[str]) -> str:
    """Return the channel that an environment's conda layer comes from, "" for none.

    given: DIR-or-URL, for every environment that is not named, or ENV=DIR-or-URL.
    """
    split = [re.fullmatch(r"(?:([\w.-]+)=)?(.*)", text) for text in given]
    named = {found[1] or "": found[2] for found in split if found}
    return named.get(env, named.get("", ""))


def read_pixi_lock(path: Path) -> dict[str, Records]:
    """Return the conda records of a pixi.lock, {environment: {platform: records sorted by name}}."""
    try:
        lock = rattler.LockFile.from_path(path)
        return {
            name: {
                platform.name: sorted(
                    environment.conda_repodata_records_for_platform(platform) or [],
                    key=lambda record: record.name.normalized,
                )
                for platform in sorted(environment.platforms(), key=lambda platform: platform.name)
            }
            for name, environment in sorted(lock.environments())
        }
    except Exception as problem:  # rattler raises what its parser raises; none of it is a class of its own
        raise Failure(f"{path} can't be read ({problem})", "python3 scripts/lock.py") from None
