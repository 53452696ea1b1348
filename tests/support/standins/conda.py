"""A stand-in for conda, mamba and micromamba: `create --yes --prefix P --file explicit.txt`, with their habits.

See README.md beside this file. Nothing here is shown to users: the tests alone run it, from a folder that
installer.sh has unpacked. It writes what the real programs write, as they were read and run (conda 26.7.1,
conda-anaconda-tos 0.3.0; mamba 2.4 was read only); each place names its source. What it writes hangs on the name
by which it is called: conda, mamba or micromamba.

Files in its root are for the tests: it appends every call with its whole environment to `calls.jsonl`; while `hold`
exists it waits half-way through an installation, so that a test can kill it there; `version` and `mamba-version` are
the versions to show; `tos` stands for the plugin conda-anaconda-tos, which Anaconda's installers bring.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from rattler.package_streaming import extract

ROOT = Path(sys.prefix)
VERSION = "26.7.1"
KIND = next((name for name in ("micromamba", "mamba") if name in Path(sys.argv[0]).name), "conda")

# conda/conda: conda/base/constants.py, SEARCH_PATH; the strongest is the last. CONDA_ROOT: conda/__init__.py.
SEARCH_PATH = (
    "/etc/conda/.condarc",
    "$CONDA_ROOT/.condarc",
    "$CONDA_ROOT/condarc",
    "$XDG_CONFIG_HOME/conda/.condarc",
    "$XDG_CONFIG_HOME/conda/condarc",
    "~/.config/conda/.condarc",
    "~/.config/conda/condarc",
    "~/.conda/.condarc",
    "~/.conda/condarc",
    "~/.condarc",
    "$CONDA_PREFIX/.condarc",
    "$CONDA_PREFIX/condarc",
    "$CONDARC",
)
# conda/conda: conda/base/context.py. What has an effect here; every other name is read and has none.
DEFAULTS: dict[str, Any] = {
    "add_pip_as_python_dependency": True,
    "always_copy": False,
    "always_softlink": False,
    "channels": ["defaults"],
    "client_ssl_cert_key": "",
    "create_default_packages": [],
    "custom_channels": {},
    "disallowed_packages": [],
    "extra_safety_checks": False,
    "number_channel_notices": 5,
    "offline": False,
    "pkgs_dirs": [],
    "register_envs": True,
    "safety_checks": "warn",
    "ssl_verify": True,
    "subdir": "",
}
# anaconda/conda-anaconda-tos: conda_anaconda_tos/api.py, CI_BOOLEAN_VARS (the best known)
CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TRAVIS", "CIRCLECI", "BUILDKITE")
TOS_CHANNELS = ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")


class CondaError(Exception):
    """An error as conda words it: "NameOfTheError: text"."""


# ---------------------------------------------------------------------------------------------------------
# Settings


def boolean(name: str, value: object) -> bool:
    """Return a truth value as conda reads it (conda/auxlib/type_coercion.py, boolify)."""
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "y", "1"):
        return True
    if text in ("false", "no", "off", "n", "0", "none", ""):
        return False
    raise CondaError(
        f"CustomValidationError: Parameter {name} = {value!r} declared in <<merged>> is invalid.\n"
        f"The value {value!r} cannot be boolified."
    )


def configuration_files(prefix: str) -> Iterator[Path]:
    """Yield the files that conda reads for an environment, the weakest first."""
    os.environ.setdefault("CONDA_ROOT", str(ROOT))
    os.environ["CONDA_PREFIX"] = prefix
    for text in SEARCH_PATH:
        path = os.path.expandvars(text)
        if "$" not in path and Path(path).expanduser().is_file():
            yield Path(path).expanduser()


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a configuration file's content; conda ends with a report of many lines where it is no YAML."""
    try:
        read = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        raise CondaError(
            "# >>>>>>>>>>>>>>>>>>>>>> ERROR REPORT <<<<<<<<<<<<<<<<<<<<<<\n\n    Traceback (most recent call last):\n"
            "    ruamel.yaml.parser.ParserError: while parsing a flow sequence\n"
            f"      in \"{path}\", line 1, column 11\n    expected ',' or ']', but got ':'\n"
            f'      in "{path}", line 2, column 5\n\n`$ {" ".join(sys.argv)}`\n\n  environment variables:\n'
            f"            SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE', '<not set>')}\n\n"
            "An unexpected error has occurred. Conda has prepared the above report."
        ) from None
    return read if isinstance(read, dict) else {}


def settings(argv: argparse.Namespace) -> dict[str, Any]:
    """Return what configuration files, CONDA_* variables and options say, the strongest last.

    Sequences and maps are merged, all else is overruled (conda/common/configuration.py).
    """
    found = dict(DEFAULTS)
    own: list[str] = []
    # Before it has read its command line, conda takes the active environment for the one that is meant, else its own
    # (conda/cli/main.py: context.__init__(argparse_args=pre_args); seen with 26.7.1).
    for path in [] if argv.no_rc else configuration_files(os.environ.get("CONDA_PREFIX") or str(ROOT)):
        read_yaml(path)
    for path in [] if argv.no_rc else configuration_files(argv.prefix):
        for name, value in read_yaml(path).items():
            if name == "channels":
                own = [*(value or []), *own]
            elif isinstance(found.get(name), list):
                found[name] = [*(value or []), *found[name]]
            elif isinstance(found.get(name), dict):
                found[name] = {**found[name], **(value or {})}
            else:
                found[name] = value
    for name in DEFAULTS:
        value = os.environ.get("CONDA_" + name.upper())
        if value is not None:
            default = DEFAULTS[name]
            found[name] = [*value.split(","), *found[name]] if isinstance(default, list) else value
    found["channels"] = argv.channel if argv.override_channels else [*argv.channel, *own] or DEFAULTS["channels"]
    if argv.no_default_packages:
        found["create_default_packages"] = []
    found["offline"] = argv.offline or found["offline"]
    found["always_copy"] = argv.copy or found["always_copy"]
    for name, default in DEFAULTS.items():
        if isinstance(default, bool) and name != "ssl_verify":
            found[name] = boolean(name, found[name])
    validate(found)
    return found


def validate(found: dict[str, Any]) -> None:
    """Raise CondaError as conda/base/context.py does for values that it refuses."""
    verify = found["ssl_verify"]
    known = str(verify).lower() in ("true", "false", "truststore", "yes", "no", "on", "off", "1", "0")
    if not known and not Path(str(verify)).exists():
        raise CondaError(
            f"CustomValidationError: Parameter ssl_verify = {verify!r} declared in <<merged>> is invalid.\n"
            f"ssl_verify value {verify!r} must be a boolean, a path to a certificate bundle file, a path to a "
            "directory containing certificates of trusted CAs, or 'truststore' to use the operating system "
            "certificate store."
        )
    if found["always_copy"] and found["always_softlink"]:
        raise CondaError("CustomValidationError: 'always_copy' and 'always_softlink' are mutually exclusive.")
    if found["client_ssl_cert_key"] and not found.get("client_ssl_cert"):
        raise CondaError("CustomValidationError: 'client_ssl_cert' is required when 'client_ssl_cert_key' is defined")


# ---------------------------------------------------------------------------------------------------------
# What happens before anything is made


def ask_for_terms(found: dict[str, Any]) -> None:
    """Stop where Anaconda's channels are configured and nobody has accepted their terms.

    Source: anaconda/conda-anaconda-tos, console/render.py: a CI is taken for consent, --yes is not.
    """
    accepted = Path.home() / ".conda" / "tos"
    if not (ROOT / "tos").exists() or "defaults" not in found["channels"] or accepted.exists():
        return
    if any(os.environ.get(name) for name in CI_VARIABLES):
        accepted.mkdir(parents=True)
        return
    lines = "\n".join(f"    - {url}" for url in TOS_CHANNELS)
    raise CondaError(
        "CondaToSNonInteractiveError: Terms of Service have not been accepted for the following channels. Please "
        f"accept or remove them before proceeding:\n{lines}"
    )


def fetch_notices(found: dict[str, Any]) -> None:
    """Leave what the search for channel notices leaves (conda/notices/core.py, cache.py)."""
    if not found["offline"] and int(found["number_channel_notices"]) > 0:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conda" / "notices"
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "notices.cache").write_text("")


def native_subdir() -> str:
    """Return conda's name of this machine's platform."""
    system = {"Linux": "linux", "Darwin": "osx"}[platform.system()]
    machine = {"x86_64": "64", "aarch64": "aarch64", "arm64": "arm64"}[platform.machine()]
    return f"{system}-{machine}"


def parse_explicit(text: str) -> list[tuple[str, str, str]]:
    """Return (url, "sha256" or "md5" or "", digest) for every package of an @EXPLICIT file."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if "@EXPLICIT" not in lines:
        raise CondaError("CondaValueError: the file is not an explicit one, and no solver is here")
    packages = []
    for line in lines:
        if line != "@EXPLICIT":
            url, _, digest = line.partition("#")
            kind, colon, value = digest.partition(":")
            packages.append((url, kind, value) if colon else (url, "md5" if digest else "", digest))
    return packages


# ---------------------------------------------------------------------------------------------------------
# The package cache


@dataclass(frozen=True)
class Cached:
    """A package in the cache. archive: its file; folder: what was unpacked from it."""

    url: str
    archive: Path
    folder: Path

    def document(self, name: str) -> dict[str, Any]:
        """Return one of the package's documents, {} if it has none of that name."""
        path = self.folder / "info" / name
        return dict(json.loads(path.read_text())) if path.is_file() else {}


def fetch(url: str, kind: str, digest: str, cache: Path, offline: bool) -> Cached:
    """Bring one package into the cache and unpack it.

    Source: conda/core/path_actions.py. What is unpacked from this URL already is trusted; the hash of a file: URL
    is not compared with the file.
    """
    target = cache / url.rsplit("/", 1)[1]
    folder = cache / re.sub(r"\.(conda|tar\.bz2)$", "", target.name)
    package = Cached(url, target, folder)
    if package.document("repodata_record.json").get("url") == url:
        return package
    local = url.startswith("file:")
    if offline and not local and not target.is_file():
        raise CondaError(f"OfflineError: {url} is not available offline")
    part = target.with_name(target.name + ".partial")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            part.write_bytes(response.read())
    except OSError as problem:
        raise CondaError(f"CondaHTTPError: {problem} for url <{url}>") from problem
    found = hashlib.new(kind, part.read_bytes()).hexdigest() if kind else ""
    if found != digest and not local:
        part.unlink()
        raise CondaError(
            "ChecksumMismatchError: Conda detected a mismatch between the expected content and downloaded\n"
            f"content for url '{url}'.\n  expected {kind}: {digest}\n  actual {kind}: {found}"
        )
    part.replace(target)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        extract(target, folder)
    except Exception as problem:  # py-rattler's own kinds
        raise CondaError(f"InvalidArchiveError: Error with archive {target}. {problem}") from None
    content = target.read_bytes()
    record = package.document("index.json") | {
        "channel": url.rsplit("/", 1)[0],
        "fn": target.name,
        "md5": hashlib.md5(content).hexdigest(),  # noqa: S324 - conda's second checksum
        "sha256": digest if kind == "sha256" else hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "url": url,
    }
    (folder / "info" / "repodata_record.json").write_text(json.dumps(record, indent=2))
    return package


# ---------------------------------------------------------------------------------------------------------
# Linking


def final_path(path: str, site: str) -> str:
    """Return where a path of a noarch Python package goes (conda/common/path/python.py)."""
    if path.startswith("site-packages/"):
        return path.replace("site-packages", site, 1)
    return path.replace("python-scripts", "bin", 1) if path.startswith("python-scripts/") else path


def patched(content: bytes, placeholder: str, prefix: Path, mode: str) -> bytes:
    """Return a file's content with the prefix in it (conda/core/portability.py)."""
    old, new = placeholder.encode(), os.fsencode(prefix)
    if mode != "binary":
        content = content.replace(old, new)
        # a first line longer than the kernel reads: /usr/bin/env finds the interpreter instead
        first, newline, rest = content.partition(b"\n")
        if first.startswith(b"#!") and len(first) > 127:
            first = b"#!/usr/bin/env " + first.split()[0].rsplit(b"/", 1)[1]
        return first + newline + rest

    def replace(match: re.Match[bytes]) -> bytes:
        text = match.group().replace(old, new)
        return text.ljust(len(match.group()), b"\0")

    return re.sub(re.escape(old) + rb"[^\0]*?\0", replace, content)


def place(source: Path, target: Path, entry: dict[str, Any], prefix: Path, how: dict[str, Any]) -> str:
    """Put one file into the prefix and return the SHA-256 that it has there, "" for a link.

    Source: conda/gateways/disk/create.py, create_link: a hard link from the cache where that is possible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if entry["path_type"] == "softlink":
        target.symlink_to(source.readlink())
        return ""
    if entry.get("prefix_placeholder"):
        content = patched(source.read_bytes(), entry["prefix_placeholder"], prefix, entry.get("file_mode", "text"))
        target.write_bytes(content)
        shutil.copymode(source, target)
        return hashlib.sha256(content).hexdigest()
    if how["always_softlink"]:
        target.symlink_to(source)
    elif how["always_copy"]:
        shutil.copy2(source, target)
    else:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)
    return str(entry.get("sha256") or "")


def link_package(package: Cached, prefix: Path, site: str, how: dict[str, Any]) -> None:
    """Link one package and write its conda-meta record, as conda or mamba writes it."""
    record = package.document("repodata_record.json")
    noarch = record.get("noarch") == "python"
    entries, files, modules = [], [], []
    for entry in package.document("paths.json")["paths"]:
        path = final_path(entry["_path"], site) if noarch else entry["_path"]
        in_prefix = place(package.folder / entry["_path"], prefix / path, entry, prefix, how)
        files.append(path)
        modules += [path] if noarch and path.endswith(".py") and path.startswith(site) else []
        if KIND == "conda":  # `_path` of a noarch package stays as it is in the package
            entries.append(entry | ({"sha256_in_prefix": in_prefix} if in_prefix else {}))
        else:  # mamba-org/mamba: libmamba/src/core/link.cpp; the placeholder is not kept
            known = {k: entry[k] for k in ("path_type", "sha256", "size_in_bytes") if entry.get(k)}
            real = prefix / path
            shown = in_prefix or (hashlib.sha256(real.read_bytes()).hexdigest() if real.is_file() else "")
            entries.append({"_path": path, "sha256_in_prefix": shown} | known)
    for path in compile_modules(prefix, modules):
        entries.append({"_path": path, "path_type": "pyc_file"})
        if KIND == "conda":
            entries[-1]["size_in_bytes"] = (prefix / path).stat().st_size
        files.append(path)
    for text in package.document("link.json").get("noarch", {}).get("entry_points", []):
        path = write_entry_point(text, prefix, site)
        size = {"size_in_bytes": (prefix / path).stat().st_size} if KIND == "conda" else {}
        entries.append({"_path": path, "path_type": "unix_python_entry_point"} | size)
        files.append(path)
    record |= {
        "package_tarball_full_path": str(package.archive),
        "extracted_package_dir": str(package.folder),
        "files": files,
        "paths_data": {"paths_version": 1, "paths": entries},
        "link": {"source": str(package.folder), "type": 2 if how["always_softlink"] else 1},
    }
    if KIND == "conda":
        record |= {"package_type": "noarch_python"} if noarch else {}
        record |= {"requested_spec": f"{record['name']}=={record['version']}={record['build']}"}
    name = f"{record['name']}-{record['version']}-{record['build']}.json"
    (prefix / "conda-meta" / name).write_text(json.dumps(record, indent=2))


def compile_modules(prefix: Path, modules: Sequence[str]) -> list[str]:
    """Compile a noarch package's modules with the prefix's own Python; return the paths of the bytecode."""
    python = prefix / "bin" / "python"
    if not modules or not python.exists():
        return []
    argv = [str(python), "-Wi", "-m", "compileall", "-q", "-l", "-i", "-"]
    names = "\n".join(modules).encode()
    subprocess.run(argv, input=names, cwd=prefix, capture_output=True, check=False)
    series = next((prefix / "lib").glob("python3.*")).name.removeprefix("python")
    tag = f"cpython-{series.replace('.', '')}"
    paths = [f"{Path(module).parent}/__pycache__/{Path(module).stem}.{tag}.pyc" for module in modules]
    return [path for path in paths if (prefix / path).is_file()]


def write_entry_point(text: str, prefix: Path, site: str) -> str:
    """Write a program for "name = module:function" and return its path; the same text from conda and mamba."""
    name, module, function = (part.strip() for part in re.split(r"[=:]", text))
    python = prefix / "bin" / Path(site).parent.name
    first = f"#!{python}\n"
    if len(first) > 127 or " " in first:  # conda/core/portability.py, generate_shebang_for_entry_point
        first = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\" #'''\n"
    lines = [
        "# -*- coding: utf-8 -*-",
        "import re",
        "import sys",
        "",
        f"from {module} import {function.split('.')[0]}",
        "",
        "if __name__ == '__main__':",
        r"    sys.argv[0] = re.sub(r'(-script\.pyw?|\.exe)?$', '', sys.argv[0])",
        f"    sys.exit({function}())",
    ]
    path = prefix / "bin" / name
    path.write_text(first + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return f"bin/{name}"


def site_packages(packages: Sequence[Cached]) -> str:
    """Return where Python packages go: what the package python says, else by its version."""
    for package in packages:
        index = package.document("index.json")
        if index["name"] == "python":
            series = ".".join(index["version"].split(".")[:2])
            return str(index.get("python_site_packages_path") or f"lib/python{series}/site-packages")
    return ""


def check_safety(package: Cached, how: dict[str, Any]) -> None:
    """Say or raise what conda does of a damaged cache: the size always, content with extra_safety_checks.

    Source: conda/core/path_actions.py, PrefixReplaceLinkAction.verify and LinkPathAction.verify.
    """
    for entry in package.document("paths.json")["paths"] if how["safety_checks"] != "disabled" else []:
        path = package.folder / entry["_path"]
        if entry["path_type"] != "hardlink":
            continue
        wrong = path.stat().st_size != entry["size_in_bytes"]
        if how["extra_safety_checks"] and not wrong:
            wrong = hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]
        if wrong:
            text = f"SafetyError: The package for {package.folder.name} located at {package.folder}\nappears to be "
            text += f"corrupted. The path '{entry['_path']}'\nhas an incorrect size or checksum."
            if how["safety_checks"] == "enabled":
                raise CondaError(text)
            print(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------
# The command


def create(args: argparse.Namespace) -> None:
    """Make an environment from explicit files."""
    prefix = Path(args.prefix).absolute()
    how = settings(args)
    if KIND == "conda":
        ask_for_terms(how)
        fetch_notices(how)
    if how["create_default_packages"]:
        raise CondaError(
            "CondaValueError: Cannot combine package names with explicit package lists. Package names "
            f"({', '.join(how['create_default_packages'])}) are resolved by the solver; explicit files and URLs are "
            "installed directly. Use only package names, or only explicit files/URLs."
        )
    if how["subdir"] not in ("", native_subdir()):
        raise CondaError("# >>>>>>>>>>>>>>>>>>>>>> ERROR REPORT <<<<<<<<<<<<<<<<<<<<<<\n\n    Traceback ...")
    if prefix.is_dir() and any(prefix.iterdir()):
        if KIND != "conda":
            raise CondaError(f"critical libmamba Not allowed pre-existing prefix: {prefix}")
        print(f"WARNING: A directory already exists at the target location '{prefix}'", file=sys.stderr)
    if not args.yes and input("Proceed ([y]/n)? ") not in ("", "y"):
        raise CondaError("CondaSystemExit: Exiting.")
    wanted = [entry for name in args.file for entry in parse_explicit(Path(name).read_text())]
    if "conda-forge" in how["custom_channels"]:  # the files' channel is then taken for that one
        raise CondaError("SpecNotFoundInPackageCache: No package cache records found")
    cache = Path([*how["pkgs_dirs"], str(ROOT / "pkgs")][0])
    cache.mkdir(parents=True, exist_ok=True)
    packages = [fetch(url, kind, digest, cache, how["offline"]) for url, kind, digest in wanted]
    for package in packages:
        name = package.document("index.json")["name"]
        if name in how["disallowed_packages"]:
            raise CondaError(
                f"DisallowedPackageError: The package '{package.url}' is disallowed by configuration.\n"
                "See 'conda config --show disallowed_packages'."
            )
        check_safety(package, how)
    link(packages, prefix, how)
    with (prefix / "conda-meta" / "history").open("a") as history:
        history.write(f"# cmd: {' '.join(sys.argv)}\n# conda version: {VERSION}\n")
    if how["register_envs"] or KIND != "conda":  # mamba always: libmamba/src/core/environments_manager.cpp
        register = Path.home() / ".conda" / "environments.txt"
        register.parent.mkdir(exist_ok=True)
        with register.open("a") as stream:
            stream.write(f"{prefix}\n")


def link(packages: Sequence[Cached], prefix: Path, how: dict[str, Any]) -> None:
    """Link packages into the prefix; with the `hold` file there, stop half-way for as long as it is."""
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    site = site_packages(packages)
    # noarch packages last: their modules are compiled by the prefix's own Python
    ordered = sorted(packages, key=lambda package: package.document("index.json").get("noarch") == "python")
    for number, package in enumerate(ordered):
        if number == len(ordered) // 2:
            while (ROOT / "hold").exists():
                time.sleep(0.05)
        link_package(package, prefix, site, how)


def parser() -> argparse.ArgumentParser:
    """Return the command line of the program that this stands for."""
    version = ROOT / ("version" if KIND == "conda" else "mamba-version")
    shown = version.read_text().strip() if version.is_file() else VERSION if KIND == "conda" else "2.4.0"
    made = argparse.ArgumentParser(prog=KIND)
    made.add_argument("--version", "-V", action="version", version=f"conda {shown}" if KIND == "conda" else shown)
    create_ = made.add_subparsers(dest="command", required=True).add_parser("create")
    create_.add_argument("--prefix", "-p", required=True)
    create_.add_argument("--file", action="append", required=True)
    create_.add_argument("--channel", "-c", action="append", default=[])
    for flags in (["--yes", "-y"], ["--quiet", "-q"], ["--offline"], ["--copy"], ["--override-channels"]):
        create_.add_argument(*flags, action="store_true")
    # what only one of them knows: conda/cli/helpers.py; mamba's micromamba/src/common_options.cpp
    made.set_defaults(no_default_packages=False, no_rc=False)
    create_.add_argument("--no-default-packages" if KIND == "conda" else "--no-rc", action="store_true")
    return made


def main() -> int:
    """Run the stand-in; return its exit status."""
    with (ROOT / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"argv": sys.argv, "environ": dict(os.environ)}) + "\n")
    args = parser().parse_args()
    try:
        if args.no_rc and (os.environ.get("CONDARC") or os.environ.get("MAMBARC")):
            # mamba-org/mamba: libmamba/src/api/configuration.cpp, rc_files_hook
            raise CondaError("critical libmamba Incompatible configuration. Aborting.")
        create(args)
    except CondaError as problem:
        print(f"\n{problem}\n", file=sys.stderr)
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End at once: py-rattler's own threads must not meet an interpreter that is being taken down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
