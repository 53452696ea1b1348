"""What bootstrap.py and bundle.py say where an installation can't begin, go on, or trust what it finds."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from colab_local.base.downloads import parse_rules
from colab_local.install import bundling, gpu, offline, surroundings
from colab_local.install.engines import Engine, Job, choose_engine, make_engine
from colab_local.install.engines.conda import FoundConda, OwnConda
from colab_local.install.gpu_answers import NO_JIT, DriverAnswer, Gpu, Need, Situation, SmiAnswer
from colab_local.install.home import take_lock
from colab_local.install.installation import Installation
from colab_local.install.jupyter import add_jupyter
from colab_local.install.lockfiles import Lock, make_lock, read_index
from colab_local.install.packages import install_packages
from scripts import bundle
from tests.conftest import REPO, SCREEN
from tests.support.receipts import NAME
from tests.support.situations import Row, each, hold, paste, program, told, typed

INDEX = read_index(REPO / "lockfiles")
URL = "https://conda.anaconda.org/conda-forge/noarch/a-1-0.conda"


def job(home: Path, platform: str = "linux-64", env: str = "cpu", index: Any = INDEX) -> Job:
    rules = parse_rules(["https://=http://127.0.0.1:9/"])  # nobody listens there: discard, RFC 863
    return Job(home, env, platform, index, REPO / "lockfiles", rules, None, SCREEN)


def lock(conda: str = "@EXPLICIT\n", **more: Any) -> Lock:
    return Lock("cpu", "linux-64", "cpu", "conda", conda, more.pop("pypi", ""), "", {}, NAME[4:] + "0" * 52)._replace(
        **more
    )


def bundle_of(folder: Path, env: str, platform: str) -> Path:
    """Make an unpacked bundle, as far as its list."""
    (folder / "a bundle").mkdir()
    manifest = {"schema": 1, "environment": env, "platform": platform, "engine": "host", "python": "3.12"}
    (folder / "a bundle" / offline.MANIFEST).write_text(json.dumps({**manifest, "sha256": {}}))
    return folder / "a bundle"


def lockfiles(folder: Path, **index: Any) -> Path:
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({**INDEX, **index}))
    return folder


def made(home: Path) -> Installation:
    options = bootstrap.read_options(bootstrap.make_parser().parse_args(["--prefix", str(home)]))
    return Installation(options, lock(), "host", SCREEN)


def engine(name: str, home: Path, script: str, **more: Any) -> Engine:
    """Return an engine whose program does this."""
    where = {"pixi": "bin/pixi", "miniforge": "conda/bin/python", "conda": "their/conda"}[name]
    at = program(home / where, script)
    return FoundConda(job(home, **more), str(at)) if name == "conda" else make_engine(name, job(home, **more))


def lock_of(folder: Path) -> Lock:
    return make_lock(INDEX, folder, "cpu", "linux-64", "conda")


def altered(folder: Path) -> None:
    """Write a bundle while a file of it changes."""
    (folder / "a").write_text("another")
    manifest = {"sha256": {"files/a": "0" * 64}}
    bundling.write(folder / "b.tar", manifest, {}, {"files/a": folder / "a"}, SCREEN)


def old_python(at: Path, patch: pytest.MonkeyPatch, *programs: str) -> str:
    """bundle.py is typed with a Python that has no tomllib."""
    for name in programs:
        program(at / name, "")
    patch.setenv("PATH", str(at))
    patch.setitem(sys.modules, "tomllib", None)
    return typed(bundle, "--output", at / "my bundle.tar", "--engine", "host")


def wheels(folder: Path, uv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask an index for wheels, with a uv that answers so."""
    answer = program(folder / "uv", uv)
    monkeypatch.setattr(bundling, "find_uv", lambda cure: str(answer))
    bundling.find_wheels(bundling.choose(REPO / "lockfiles", "cpu", "linux-64", "host", "3.12"), folder, SCREEN)


def overlay(prefix: Path) -> None:
    """Add our files where a package has one of that name."""
    program(prefix / "bin" / "python", f"echo {prefix}/site")
    (prefix / "etc" / "jupyter").mkdir(parents=True)
    name = next(name for name in INDEX["jupyter"] if name.startswith("prefix/etc/"))
    (prefix / name.partition("/")[2]).parent.mkdir(parents=True, exist_ok=True)
    (prefix / name.partition("/")[2]).write_text("theirs")
    add_jupyter(prefix, lock(jupyter=INDEX["jupyter"]), SCREEN)


def link(home: Path, to: Path) -> Path:
    home.mkdir()
    (home / ".lock").symlink_to(to)
    return home


def pipe(home: Path) -> Path:
    home.mkdir()
    os.mkfifo(home / ".lock")
    return home


def unlocked(home: Path) -> str:
    """What the hint says makes room for the lock."""
    said = told(lambda: take_lock(home, SCREEN))
    paste(said)
    os.close(take_lock(home, SCREEN))
    return said


def no_ssh(folder: Path, patch: pytest.MonkeyPatch, *managers: str) -> str:
    """Ask for ssh-keygen on a machine without it, in each of two ways."""
    for name in managers:
        program(folder / name, "")
    patch.setenv("PATH", str(folder))
    said = told(lambda: bundling.sign(b"x", "k"))
    assert said == told(lambda: offline.ssh_keygen("verify"))
    return said


def no_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--engine auto, without conda's servers and a Python that the lock covers."""
    monkeypatch.setenv("PATH", str(folder))
    cpu = {**INDEX["environments"]["cpu"], "pythons": ["3.99"]}
    choose_engine("auto", "", job(folder / "h", index={**INDEX, "environments": {"cpu": cpu}}))


def no_jit() -> None:
    """The driver's compiler is in a package of its own, which containers leave out."""
    card = Gpu("NVIDIA H200", "580.1", "9.0", ptx=NO_JIT)
    needs = {"9.0": Need("12.5", "555.42", "8.5 sm_90a")}
    refusal = gpu.decide(needs, DriverAnswer(library="x", gpus=(card,)), SmiAnswer(), Situation()).refusal
    raise refusal or AssertionError


def damaged(folder: Path) -> None:
    """uv's cache is damaged, and what it fetches then, too."""
    words = "error: Failed to install: a-1-py3-none-any.whl (a==1): the wheel is invalid"
    uv = program(folder / "uv", f"echo '{words}' >&2; exit 2")
    install_packages(uv, folder / "prefix", lock(), folder / "kept", None, SCREEN)


def begun(home: Path) -> str:
    """A folder of the user's lies where the environment goes."""
    installation = made(home)
    (installation.root / "mine").mkdir(parents=True)
    said = told(installation.begin)
    paste(said)
    installation.begin()
    assert (home / "envs" / f"{NAME}.yours" / "mine").is_dir()
    return said


def located(patch: pytest.MonkeyPatch, *addresses: str) -> str:
    """Look for what is wrong where localhost is this."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    patch.setattr(socket, "getaddrinfo", lambda *_: found)
    return str(*surroundings.localhost()) + " | " + next(surroundings.localhost()).hint


def unwritable(home: Path, patch: pytest.MonkeyPatch) -> str:
    """As after `sudo jupyter`, which leaves folders of root's; root itself, who may test this, can write them."""
    (home / ".cache").mkdir()
    patch.setattr(os, "access", lambda path, mode: path != str(home / ".cache"))
    (found,) = (one for one in surroundings.look(home, {}) if str(home) in one.where)
    return f"{found.where}: {found.what} | {found.hint}"


def flagged() -> str:
    (found,) = surroundings.variables({"XLA_FLAGS": "--xla_a=1 fast"})
    return f"{found.what} | {found.hint}"


CHOOSE = REPO / "lockfiles", "cpu", "linux-64", "host"
NO_INSTALLERS: Any = {name: {"files": {}} for name in ("pixi", "miniforge", "anaconda")}
COPY = "copy {at}/l again from where it was made"
OURS = "python3 bootstrap.py"
FORGE: dict[str, Any] = {"env": "gpu-forge"}
BROKEN = "echo wrong >&2; exit 1"
# What is done in a folder, `at`; a part of the error, and the whole hint.
SAID: list[Row] = [
    (
        lambda at, _: typed(bootstrap, "--lockfiles", at / "l", "--prefix", at / "h"),
        "can't read {at}/l/index.json (No such file or directory)",
        COPY,
    ),
    (
        lambda at, _: typed(bootstrap, "--lockfiles", lockfiles(at / "l", jupyter=3), "--prefix", at / "h"),
        "{at}/l/index.json is damaged",
        COPY,
    ),
    (
        lambda at, _: told(lambda: made(at / "h") and lock_of(lockfiles(at / "l"))),
        "can't read {at}/l/cpu/",
        COPY,
    ),
    (
        lambda at, _: typed(bootstrap, "--prefix", link(at / "h", at / "x")),
        "{at}/h/.lock is a link, which could lead anywhere",
        OURS + " --prefix {home}/colab-local",
    ),
    (
        lambda at, _: unlocked(link(at / "h", at / "x")),
        "{at}/h/.lock is not the file that we lock",
        "mv {at}/h/.lock {at}/h/.lock.yours",
    ),
    (
        lambda at, _: unlocked(pipe(at / "h")),
        "{at}/h/.lock is not the file that we lock",
        "mv {at}/h/.lock {at}/h/.lock.yours",
    ),
    (
        lambda at, _: typed(bootstrap, "--offline", bundle_of(at, "gpu", "linux-64"), "--prefix", at / "h"),
        "found gpu linux-64, need cpu linux-64",
        OURS + " --prefix {at}/h --env gpu --offline '{at}/a bundle'",
    ),
    (
        lambda at, _: typed(bootstrap, "--offline", bundle_of(at, "cpu", "osx-arm64"), "--prefix", at / "h"),
        "found cpu osx-arm64, need cpu linux-64",
        "python3 scripts/bundle.py --env cpu --platform linux-64   # where there is a network",
    ),
    (
        lambda *_: told(lambda: offline.Offline([], Path(), Path(), "host", "3.12").choose("miniforge")),
        "the bundle is for another engine (found host, need miniforge)",
        OURS + " --engine host",
    ),
    (
        lambda at, _: told(lambda: offline.demand_signature({}, at / "no")),
        "there is no allowed signers file {at}/no",
        "man ssh-keygen   # describes it",
    ),
    (
        lambda at, patch: no_ssh(at, patch, "apt-get"),
        "no program ssh-keygen on this machine",
        "sudo apt-get install openssh-client",
    ),
    (
        lambda at, patch: old_python(at, patch),
        "a bundle is made with Python 3.11 or newer (found ",
        "python3 bootstrap.py --cpu   # its environment has one: current/cpu/bin/python",
    ),
    (
        lambda at, patch: old_python(at, patch, "python3.11", "python3.12"),
        "a bundle is made with Python 3.11 or newer (found ",
        "{at}/python3.12 scripts/bundle.py --output '{at}/my bundle.tar' --engine host",
    ),
    (
        lambda at, patch: no_ssh(at, patch, "dnf"),
        "no program ssh-keygen on this machine",
        "sudo dnf install openssh-clients",
    ),
    (
        lambda at, patch: no_ssh(at, patch),
        "no program ssh-keygen on this machine",
        "install OpenSSH's client",
    ),
    (
        lambda at, _: told(lambda: bundling.sign(b"x", f"{at}/my key")),
        "ssh-keygen can't sign with {at}/my key",
        "echo x | ssh-keygen -Y sign -f '{at}/my key' -n colab-local-bundle",
    ),
    (
        lambda at, _: typed(bundle, "--output", at),
        "can't write {at}: it is a folder",
        "python3 scripts/bundle.py --help",
    ),
    (
        lambda at, _: typed(bundle, "--lockfiles", lockfiles(at / "l", installers=NO_INSTALLERS)),
        "the lock has no engine miniforge for this (there are: conda, host)",
        "python3 scripts/bundle.py --help",
    ),
    (
        lambda at, patch: told(
            lambda: patch.setattr(bundling, "REPOSITORY", at) or bundling.project_files(bundling.choose(*CHOOSE))
        ),
        "the program is not complete here",
        "git status",
    ),
    (
        lambda at, _: told(lambda: altered(at)),
        "files/a changed on the disk while it was written",
        "run the same command again: it is downloaded again",
    ),
    (
        lambda at, patch: told(lambda: wheels(at, "echo 'error: dns error' >&2; exit 2", patch)),
        "can't ask the package index: uv failed",
        "check the network, and uv's or pip's configuration, and run the same command again",
    ),
    (
        lambda at, patch: told(lambda: wheels(at, f"echo 'packages = []' > {at}/pylock.toml", patch)),
        "the package index has no locked wheel of ",
        "run it where uv and pip use the public package index, or have yours bring that file",
    ),
    (
        lambda at, patch: told(lambda: no_python(at, patch)),
        "can't be reached: no conda layer, this machine's own Python is used; no Python that the lock covers",
        "sudo apt-get install python3.99 python3.99-venv && python3 bootstrap.py --python python3.99",
    ),
    (
        lambda at, _: told(lambda: engine("conda", at, BROKEN).create(lock(), at / "e")),
        "conda failed: wrong",
        OURS + " --engine miniforge",
    ),
    (
        lambda at, _: told(lambda: engine("miniforge", at, BROKEN).create(lock(), at / "e")),
        "conda failed: wrong",
        OURS + " --engine host",
    ),
    (
        lambda at, _: told(lambda: engine("miniforge", at, BROKEN, **FORGE).create(lock(), at / "e")),
        "conda failed: wrong",
        OURS + " --engine pixi",
    ),
    (
        lambda at, _: told(lambda: engine("pixi", at, BROKEN, **FORGE).create(lock(), at / "e")),
        "pixi failed: wrong",
        OURS + " --engine miniforge",
    ),
    (
        lambda at, _: told(lambda: OwnConda(job(at), "anaconda").unpack(program(at / "installer.sh", ""))),
        "the anaconda installer left no conda in {at}/conda",
        OURS + " --engine host",
    ),
    (
        lambda at, _: told(OwnConda(job(at, platform="linux-ppc64le"), "miniforge").check),
        "--engine miniforge has no pinned installer for linux-ppc64le",
        OURS + " --engine host",
    ),
    (
        lambda at, _: told(lambda: OwnConda(job(at), "miniforge").create(lock(f"{URL}#sha256:{'0' * 64}"), at / "e")),
        "noarch/a-1-0.conda is not the file that the lock names (found sha256 No such file or directory",
        "run the same command again: the file is fetched again",
    ),
    (
        lambda at, _: begun(at / "h"),
        "envs/" + NAME + " is there and has no receipt of ours: it is left alone",
        "mv {at}/h/envs/" + NAME + " {at}/h/envs/" + NAME + ".yours",
    ),
    (
        lambda at, _: told(lambda: overlay(at)),
        " belongs to a package and would be overwritten",
        "git status environments lockfiles",
    ),
    (
        lambda at, _: told(lambda: damaged(at)),
        "the wheel is invalid",
        "run the same command again; if files still arrive altered, from another network or mirror",
    ),
    (lambda *_: told(no_jit), "the driver's compiler is missing", OURS + " --cpu"),
    (lambda *_: flagged(), "fast is no flag: TensorFlow ends at once", "unset XLA_FLAGS"),
    (
        unwritable,
        "{at}/.cache: not writable, it belongs to user ",
        "sudo chown -R {uid}:{gid} {at}/.cache",
    ),
    (
        lambda _, patch: located(patch, "192.0.2.7"),
        "localhost is 192.0.2.7: Colab reaches nothing",
        "sudo nano /etc/hosts   # the line with localhost has to begin with 127.0.0.1",
    ),
    (
        lambda _, patch: located(patch),
        "localhost is unknown: Colab reaches nothing",
        "echo '127.0.0.1 localhost' | sudo tee -a /etc/hosts",
    ),
]


@each(SAID)
def test_what_is_said(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(row, tmp_path, monkeypatch)
