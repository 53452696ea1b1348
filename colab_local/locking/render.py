"""lockfiles/ as text: explicit lists, conda-lock.yml, pixi.lock, pypi.txt, packages.txt, index.json."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rattler
import yaml
from packaging.version import Version

from colab_local.base.errors import Failure
from colab_local.base.files import sha256_of
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.lockfiles import DEFAULT_ENVIRONMENT, INDEX_SCHEMA
from colab_local.locking import gpu_code
from colab_local.locking.conda import Records, conda_version
from colab_local.locking.gpu_code import Code
from colab_local.locking.pypi import Package
from colab_local.locking.specs import (
    CHANNEL,
    CPU_BUILDS,
    NOTICE,
    PINS,
    PYTHONS,
    Spec,
    current_runtime,
    read_exceptions,
    read_missing,
    read_text,
    read_yaml,
)
from colab_local.locking.wheels import About, Wheel

# A conda package grows when it is unpacked; its record says only what is downloaded. uv's archive (0.12.1) holds
# 3.2 times its size; sources, and the bytecode that is made of them, grow more. Too much beats a full disk.
CONDA_GROWTH = 4
JUPYTER_PREFIX = "jupyter"  # environments/jupyter/, in index.json by its paths under it
GPU_CODE = "gpu-code.json"  # beside an environment's other lockfiles
INSTALLERS_SHAPE = {"*": (dict, str)}


@dataclass(frozen=True)
class Solution:
    """One solved environment: both layers, and what the wheels say of themselves."""

    spec: Spec
    conda: Records
    python: list[Package]
    about: dict[str, About]  # by SHA-256
    code: dict[str, Code] = field(default_factory=dict)  # of the wheels with GPU code, by SHA-256

    @property
    def series(self) -> str:
        """Python series of the conda layer, 3.13."""
        return ".".join(self.python_version.split(".")[:2])

    @property
    def python_version(self) -> str:
        """Version of the conda layer's Python; the same on every platform, or else it can't be said in one word."""
        found = {platform: conda_version(records, "python") for platform, records in self.conda.items()}
        if len(set(found.values())) > 1:
            raise Failure(f"{self.spec.name} would have several Pythons: {found}", "bound Python in its .yml")
        return next(iter(found.values()))

    def wheels(self, platform: str) -> list[Wheel]:
        """Return the wheels that are installed beside the conda layer on a platform."""
        target = (platform, self.series)
        return [package.wheels[target] for package in self.python if target in package.wheels]

    def all_wheels(self) -> set[Wheel]:
        """Return the wheels that packages.txt and index.json speak of: installed ones, and one of every package."""
        beside = {wheel for platform in self.spec.platforms for wheel in self.wheels(platform)}
        return beside | {next(iter(package.wheels.values())) for package in self.python}


def digest(text: str) -> str:
    """Return the SHA-256 of a text file's content."""
    return hashlib.sha256(text.encode()).hexdigest()


def explicit_text(platform: str, records: Iterable[rattler.RepoDataRecord]) -> str:
    """Return the explicit file: conda, mamba and micromamba create an environment of exactly these files.

    They link in this order, so what a package needs comes before it.
    """
    by_name = {record.name.normalized: record for record in records}
    ordered = [by_name[r.name.normalized] for r in rattler.RepoDataRecord.sort_topologically(list(by_name.values()))]
    lines = [f"# {NOTICE}", f"# platform: {platform}", "@EXPLICIT"]
    return "\n".join(lines + [f"{r.url}#sha256:{r.sha256.hex()}" for r in ordered if r.sha256]) + "\n"


def content_hash(spec: Spec, platform: str) -> str:
    """Return a digest of what a platform's conda layer was solved from."""
    wanted = {"channel": CHANNEL, "specs": spec.conda, "virtual": spec.virtual[platform]}
    return digest(json.dumps(wanted, sort_keys=True))


def conda_lock_text(spec: Spec, conda: Records) -> str:
    """Return conda-lock.yml, version 1, of the conda layer: conda-lock, micromamba and pixi read it."""
    packages = [
        {
            "name": record.name.normalized,
            "version": str(record.version),
            "manager": "conda",
            "platform": platform,
            "dependencies": dict(
                sorted((name, rest) for name, _, rest in (text.partition(" ") for text in record.depends))
            ),
            "url": record.url,
            "hash": {"md5": record.md5.hex(), "sha256": record.sha256.hex()},
            "category": "main",
            "optional": False,
        }
        for platform, records in conda.items()
        for record in records
        if record.md5 and record.sha256
    ]
    metadata = {
        "content_hash": {platform: content_hash(spec, platform) for platform in conda},
        "channels": [{"url": "conda-forge", "used_env_vars": []}],
        "platforms": list(conda),
        "sources": [f"../../environments/{spec.name}.yml"],
    }
    body = yaml.safe_dump(
        {"version": 1, "metadata": metadata, "package": sorted(packages, key=lambda p: (p["name"], p["platform"]))},
        sort_keys=False,
        width=1000,
    )
    return f"# {NOTICE} The Python layer is in pypi.txt.\n{body}"


def requirements_text(head: Sequence[str], packages: Iterable[Package]) -> str:
    """Return a requirements file of which every line has its version and its hashes."""
    lines = [f"# {text}" for text in (NOTICE, *head)]
    for package in packages:
        marker = f" ; {package.marker}" if package.marker else ""
        lines.append(f"{package.name}=={package.version}{marker} \\")
        lines += [f"    --hash=sha256:{value} \\" for value in package.hashes]
        lines[-1] = lines[-1].removesuffix(" \\")
        if package.via:
            lines.append(f"    # via {', '.join(package.via)}")
    return "\n".join(lines) + "\n"


HOST_HEAD = ("uv and pip for the engine without a conda layer, the same versions as in it.",)


def pypi_head(pythons: Sequence[str]) -> tuple[str, ...]:
    """Return the comment at the top of a pypi.txt for these Python series."""
    return (
        f"Python {', '.join(pythons)}; per platform and Python one wheel, the best for virtual-packages.yml.",
        "uv pip install --no-deps --require-hashes -r pypi.txt",
    )


def hosted_status(version: str, hosted: str | None) -> str:
    """Return how a locked version stands to hosted Colab's: followed, newer, older or absent (there)."""
    if hosted is None:
        return "absent"
    if Version(version) == Version(hosted):
        return "followed"
    return f"{'newer' if Version(version) > Version(hosted) else 'older'} than {hosted}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns wide enough for their content, the first row above a rule."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def size_text(size: int | None) -> str:
    """Return a number of bytes for a table, in kB."""
    return "not stated" if size is None else f"{-(-size // 1000):,} kB"


def packages_text(
    lock: Solution,
    pins: Mapping[str, str],
    hosted_python: str | None,
    exceptions: Mapping[str, Any],
    missing: Mapping[str, str],
) -> str:
    """Return packages.txt, for people: every package with version, licence, size and how it stands to Colab.

    missing: packages of hosted Colab that were left out -> why.
    """
    rows = [["package", "version", "hosted Colab", "download", "licence", "where"]]
    counts: dict[str, int] = {}
    for package in lock.python:
        hosted = pins.get(CPU_BUILDS.get(package.name, package.name))
        status = hosted_status(package.version, hosted)
        counts[status.split()[0]] = counts.get(status.split()[0], 0) + 1
        targets = [target for target in package.wheels if target[1] == lock.series] or list(package.wheels)
        wheel = package.wheels[targets[0]]
        where = sorted({platform for platform, _ in package.wheels})
        pythons = sorted({python for _, python in package.wheels}, key=Version)
        limits = ([] if len(where) == len(lock.spec.platforms) else where) + (
            [] if len(pythons) == len(lock.spec.pythons) else [f"Python {', '.join(pythons)}"]
        )
        licence = lock.about[wheel.sha256].licence
        rows.append(
            [package.name, package.version, status, size_text(wheel.size), licence, ", ".join(limits) or "everywhere"]
        )
    lines = [
        f"# {NOTICE}",
        "",
        f"Environment {lock.spec.name}: {', '.join(lock.spec.platforms)}",
        "",
        f"Python layer (pypi.txt): {len(lock.python)} packages. "
        f"Against hosted Colab (environments/{lock.spec.pins}):",
        ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        + f"; Python {lock.python_version}: {hosted_status(lock.python_version, hosted_python)}.",
        newest_line(lock.conda),
        "absent: hosted Colab doesn't have it. Not followed on purpose:",
        *(
            f"  {name}: {entry['reason']}"
            for name, entry in sorted(exceptions.items())
            if name in {package.name for package in lock.python}
            and set(entry.get("platforms", lock.spec.platforms)) & set(lock.spec.platforms)
        ),
        *(["Hosted Colab has them, this environment does not:"] if missing else []),
        *(f"  {name}: {reason}" for name, reason in sorted(missing.items())),
        "",
        *table(rows),
    ]
    for platform, records in lock.conda.items():
        rows = [["package", "version", "build", "download", "licence"]]
        for record in records:
            cells = [record.name.normalized, str(record.version), str(record.build)]
            rows.append([*cells, size_text(record.size), record.license or "not stated"])
        lines += ["", f"conda layer of {platform}: {len(records)} packages", "", *table(rows)]
    return "\n".join(lines) + "\n"


def newest_line(conda: Records) -> str:
    """Return how old a lock is, as far as the lock itself can say it: by its newest conda package.

    The day of the locking would make other bytes of the same packages each day.
    """
    dated = [
        (record.timestamp.date().isoformat(), record.name.normalized, str(record.version))
        for layer in conda.values()
        for record in layer
        if record.timestamp
    ]
    if not dated:
        return "Age: python scripts/lock.py --age"
    day, name, version = max(dated)
    return f"Age: its newest conda package is {name} {version} of {day}; python scripts/lock.py --age"


def machine_needs(spec: Spec, platform: str, code: str) -> dict[str, Any]:
    """Return what bootstrap.py compares with the machine before it writes anything; code: gpu-code.json's text."""
    virtual = spec.virtual[platform]
    needs = {"glibc": virtual.get("__glibc"), "macos": virtual.get("__osx"), **spec.platforms[platform]}
    if spec.accelerator == "gpu":
        notes = {"all": gpu_code.NOT_READ} if gpu_code.is_told(gpu_code.parse_code(code)) else {}
        needs["gpu"] = gpu_code.noted(gpu_code.entries(code), notes | spec.recipes.get("notes", {}))
    return {name: value for name, value in sorted(needs.items()) if value}


def conda_sizes(records: Iterable[rattler.RepoDataRecord]) -> dict[str, int]:
    """Return the bytes of a conda layer, to download and on the disk."""
    size = sum(record.size or 0 for record in records)
    return {"conda_download": size, "conda_installed": size * CONDA_GROWTH}


def sizes(lock: Solution, platform: str) -> dict[str, int]:
    """Return the bytes of both layers on a platform, to download and on the disk."""
    wheels = lock.wheels(platform)
    return {
        **conda_sizes(lock.conda[platform]),
        "pypi_download": sum(wheel.size for wheel in wheels),
        "pypi_installed": sum(lock.about[wheel.sha256].installed for wheel in wheels),
    }


def pixi_toml_text(specs: Mapping[str, Spec], pythons: Mapping[str, str]) -> str:
    """Return pixi.toml: each environment's conda layer, and the Python layer as a task.

    The tasks are one for all environments, or pixi would ask which is meant: `pixi run jupyter` is that of `default`.
    pythons: the version of the conda layer's Python, by environment.
    """
    platforms = sorted({platform for spec in specs.values() for platform in spec.platforms})
    prefix, site = '"$CONDA_PREFIX"', '"$CONDA_PREFIX/lib/python$COLAB_LOCAL_PYTHON/site-packages"'
    install = [
        f"uv pip install --python {prefix}/bin/python --no-deps --require-hashes -r $COLAB_LOCAL_ENV/pypi.txt",
        f"cp -R ../environments/jupyter/prefix/* {prefix}/",
        f"cp -R ../environments/jupyter/site-packages/* {site}/",
    ]
    jupyter = " ".join(jupyter_argv(prefix, notebook_dir='"$HOME"'))
    lines = [
        f"# {NOTICE}",
        "# The conda layer is in pixi.lock. The Python layer is the task `install`: a pixi.lock would have to name a",
        "# package index, and where yours is stays your own setting. In this folder:",
        "#",
        f"#     pixi run jupyter            installs what is missing, starts Jupyter for Colab ({default_of(specs)})",
        "#     pixi run -e gpu jupyter     the same with another environment",
        "#     pixi run install            installs the Python layer alone, for any `pixi run`",
        "",
        "[workspace]",
        'name = "colab-local"',
        'channels = ["conda-forge"]',
        f"platforms = {json.dumps(platforms)}",
        "",
        "[environments]",
        f'default = ["{default_of(specs)}"]',
        *(f'{name} = ["{name}"]' for name in specs),
        "",
        "[tasks]",
        f"install = {json.dumps(' && '.join(install))}",
        f'jupyter = {{ cmd = {json.dumps(jupyter)}, depends-on = ["install"] }}',
    ]
    for name, spec in specs.items():
        lines += ["", f"[feature.{name}]", f"platforms = {json.dumps(sorted(spec.platforms))}"]
        series = ".".join(pythons[name].split(".")[:2])
        lines += ["", f"[feature.{name}.activation.env]"]
        lines += [f'COLAB_LOCAL_ENV = "{name}"', f'COLAB_LOCAL_PYTHON = "{series}"']
        lines += ["", f"[feature.{name}.system-requirements]", *system_requirements(spec)]
        lines += ["", f"[feature.{name}.dependencies]"]
        for text in spec.conda:
            package, version, build = [*text.split(), "*", ""][:3] if " " in text else (text, "*", "")
            wanted = f'{{ version = "{version}", build = "{build}" }}' if build.strip("*") else json.dumps(version)
            lines.append(f"{package} = {wanted}")
    return "\n".join(lines) + "\n"


def default_of(names: Iterable[str]) -> str:
    """Return the environment that is meant where none is named."""
    known = list(names)
    return DEFAULT_ENVIRONMENT if DEFAULT_ENVIRONMENT in known else known[0]


def system_requirements(spec: Spec) -> list[str]:
    """Return what pixi is to assume of a machine, from virtual-packages.yml: what the lock was solved for.

    In the form that every pixi reads. Since 0.80 the same can be said of each platform; a lock of version 6 has no
    place for that, and pixi takes the two for each other (its platform_composition).
    """
    virtual: dict[str, str] = {}
    for packages in spec.virtual.values():
        virtual.update(packages)
    known = {
        "__linux": "linux = {}",
        "__glibc": 'libc = {{ family = "glibc", version = {} }}',
        "__osx": "macos = {}",
        "__cuda": "cuda = {}",
    }
    return [form.format(json.dumps(virtual[name])) for name, form in known.items() if name in virtual]


def pixi_lock_text(conda: Mapping[str, Records]) -> str:
    """Return pixi.lock of every environment's conda layer: complete records, what a solver needs to check it.

    Version 6: pixi has read it since 0.30 and reads it today, and so do conda's plugin conda-lockfiles (0.2.2),
    pixi-to-conda-lock (0.4.5), pixi-policy, pixi-sbom and rattler; the first two read no newer one. Both formats say
    the same of conda packages. Every workspace has an environment `default`, so the lock has it, too.
    """
    names = sorted({platform for records in conda.values() for platform in records})
    platforms = {name: rattler.LockPlatform(name) for name in names}
    lock = rattler.LockFile(list(platforms.values()))
    for environment, records_of in {**conda, "default": conda[default_of(conda)]}.items():
        lock.set_channels(environment, [rattler.LockChannel(CHANNEL)])
        for platform, records in records_of.items():
            for record in records:
                lock.add_conda_package(environment, platforms[platform], record)
    with tempfile.TemporaryDirectory(prefix="colab-local-lock-") as folder:
        path = Path(folder) / "pixi.lock"
        lock.to_path(path)
        text = path.read_text(encoding="utf-8")
    # rattler writes version 7 alone: it adds a list of the platforms, which version 6 has not
    head = re.match(r"version: 7\nplatforms:\n(?:- name: [\w-]+\n)+(?=environments:\n)", text)
    if not head:
        raise Failure(
            f"rattler writes pixi.lock in a way that is not known here (found {text[:80]!r})",
            "teach colab_local/locking/render.py its new form",
        )
    return f"# {NOTICE}\nversion: 6\n{text[head.end() :]}"


def jupyter_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that environments/jupyter/ puts into an environment, by its path there."""
    found = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for top in ("prefix", "site-packages")
        for path in sorted((folder / top).rglob("*"))
        # not what tools leave behind: __pycache__, .mypy_cache, .DS_Store
        if path.is_file() and not re.search(r"(^|/)(\.|__pycache__)", path.relative_to(folder).as_posix())
    }
    if not found:
        raise Failure(f"{folder} holds no settings and no extension", "git checkout -- environments")
    return found


def render(lock: Solution, folder: Path, pins: Mapping[str, str]) -> dict[str, str]:
    """Return the files of one environment, {path under lockfiles/: text}; folder: environments/."""
    spec, name = lock.spec, lock.spec.name
    files = {f"{name}/{p}.txt": explicit_text(p, records) for p, records in lock.conda.items()}
    files[f"{name}/conda-lock.yml"] = conda_lock_text(spec, lock.conda)
    files[f"{name}/pypi.txt"] = requirements_text(pypi_head(spec.pythons), lock.python)
    if spec.accelerator == "gpu":
        files[f"{name}/{GPU_CODE}"] = gpu_code.code_text(lock.code)
    missing = read_missing(folder, name)
    files[f"{name}/packages.txt"] = packages_text(lock, pins, pins.get("python"), read_exceptions(folder), missing)
    return files


def index_entry(lock: Solution) -> dict[str, Any]:
    """Return what index.json says of one environment, without the files' digests."""
    return {
        "accelerator": lock.spec.accelerator,
        "python": lock.python_version,
        **({} if lock.spec.pythons == PYTHONS else {"pythons": list(lock.spec.pythons)}),
        **({"needs_conda": True} if lock.spec.needs_conda else {}),
        "platforms": {
            platform: {
                "requires": machine_needs(lock.spec, platform, gpu_code.code_text(lock.code)),
                "bytes": sizes(lock, platform),
            }
            for platform in lock.spec.platforms
        },
    }


def index_text(folder: Path, files: Mapping[str, str], entries: Mapping[str, Any], uv_version: str) -> str:
    """Return index.json.

    folder: environments/; files: every file under lockfiles/ by its path there; entries: of the environments,
    as index_entry() gives them; what they already say of files is said anew.
    """
    installers = read_yaml(folder / "installers.json", INSTALLERS_SHAPE)
    index = {
        "_": NOTICE,
        "schema": INDEX_SCHEMA,
        "python": list(PYTHONS),
        "runtime": current_runtime(read_text(folder / PINS)),
        "uv": {"version": uv_version, "file": "host.txt", "sha256": digest(files["host.txt"])},
        "installers": {
            name: {"version": release["version"], "files": release["files"]}
            for name, release in installers.items()
            if name != "_"
        },
        "pixi": {name: digest(files[name]) for name in ("pixi.lock", "pixi.toml")},
        "jupyter": jupyter_digests(folder / JUPYTER_PREFIX),
        "environments": {
            name: {
                "accelerator": entry["accelerator"],
                "python": entry["python"],
                **{name: entry[name] for name in ("pythons", "needs_conda") if name in entry},
                "pypi": {"file": f"{name}/pypi.txt", "sha256": digest(files[f"{name}/pypi.txt"])},
                "platforms": {
                    platform: {
                        "file": f"{name}/{platform}.txt",
                        "sha256": digest(files[f"{name}/{platform}.txt"]),
                        "requires": facts["requires"],
                        "bytes": facts["bytes"],
                    }
                    for platform, facts in entry["platforms"].items()
                },
            }
            for name, entry in sorted(entries.items())
        },
    }
    return json.dumps(index, indent=1) + "\n"
