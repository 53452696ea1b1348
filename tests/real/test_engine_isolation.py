"""Nothing of the user's steers an engine, and nothing of theirs is written to; one fingerprint whatever the engine.

The stand-ins honour the settings and write the records and files of the real programs (tests/support/standins). Which
settings do harm was tried with real conda 26.7.1; so was the cure.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from colab_local.base import certificates
from colab_local.base.errors import EXIT_INTEGRITY, Failure
from colab_local.base.terminal import Screen
from colab_local.install.engines.conda import FoundConda, OwnConda, package_file
from colab_local.install.engines.engine import Job
from colab_local.install.engines.pixi import Pixi
from colab_local.install.lockfiles import Lock
from colab_local.install.records import read_conda
from colab_local.locking.render import explicit_text
from tests.conftest import REPO
from tests.support.mirror import Mirror, World, changes, find_interpreter, own_environment, snapshot
from tests.support.trials import Trial, oldest_python

pytestmark = pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
)

# ~/.condarc, tried one by one with real conda 26.7.1 and the call without a private HOME.
HARMFUL = {
    "create_default_packages": "create_default_packages: [numpy]",
    "disallowed_packages": "disallowed_packages: [prefixed]",
    "subdir": "subdir: osx-64",
    "always_softlink": "always_softlink: true",
    "ssl_verify": "ssl_verify: /nowhere/ca.pem",
    "broken YAML": "channels: [conda-forge\n  - : {",
    "unaccepted terms": "channels: [defaults]",
    "custom_channels": "custom_channels: {conda-forge: 'http://127.0.0.1:9/'}",
    "no boolean": "always_copy: perhaps",
}
HARMLESS = {
    "add_pip_as_python_dependency": "true",
    "aggressive_update_packages": "[openssl]",
    "allow_conda_downgrades": "true",
    "allow_cycles": "false",
    "allow_softlinks": "true",
    "allowlist_channels": "[nowhere]",
    "always_copy": "true",
    "always_yes": "false",
    "auto_activate": "false",
    "auto_update_conda": "true",
    "changeps1": "false",
    "channel_alias": "http://127.0.0.1:9/",
    "channel_priority": "strict",
    "channels": "[nowhere]",
    "client_ssl_cert": "/nowhere/client.pem",
    "custom_multichannels": "{conda-forge: ['http://127.0.0.1:9/a']}",
    "default_channels": "['http://127.0.0.1:9/x']",
    "denylist_channels": "[conda-forge]",
    "download_only": "true",
    "dry_run": "true",
    "envs_dirs": "[/nowhere/envs]",
    "execute_threads": "1",
    "extra_safety_checks": "true",
    "json": "true",
    "no_plugins": "true",
    "notify_outdated_conda": "true",
    "offline": "true",
    "path_conflict": "prevent",
    "pinned_packages": "['python 2.7.*']",
    "pkgs_dirs": "[/nowhere/pkgs]",
    "proxy_servers": "{http: 'http://127.0.0.1:9', https: 'http://127.0.0.1:9'}",
    "quiet": "true",
    "register_envs": "true",
    "remote_read_timeout_secs": "0.001",
    "report_errors": "true",
    "rollback_enabled": "false",
    "safety_checks": "disabled",
    "solver": "nosuch",
    "track_features": "[mkl]",
    "use_only_tar_bz2": "true",
    "no_such_setting": "7",
}
SETTINGS = HARMFUL | {name: f"{name}: {value}" for name, value in HARMLESS.items()}
# Where conda looks, besides ~/.condarc.
PLACES = [".condarc", ".conda/.condarc", ".config/conda/.condarc", "CONDARC", "XDG_CONFIG_HOME", "root"]


@pytest.fixture(scope="module")
def their_conda(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conda that the user has, with the plugin that asks for terms."""
    folder = tmp_path_factory.mktemp("theirs")
    argv = ["bash", str(world.installer("anaconda")), "-b", "-p", str(folder / "conda")]
    subprocess.run(argv, check=True, capture_output=True, env=own_environment(folder))
    return folder / "conda" / "bin" / "conda"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's HOME; no CI in the environment, which the plugin would take for consent."""
    home = tmp_path / "user"
    (home / ".conda").mkdir(parents=True)
    (home / ".conda" / "environments.txt").write_text("/opt/theirs\n")
    kept = own_environment(home)
    for name in [name for name in os.environ if name not in kept or name == "CI" or name.startswith("GITHUB_")]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def small_lock(world: World) -> Lock:
    """Return a lock of the packages that hold each kind of file and install within a second: no Python."""
    records = [record for record in world.records if record.name.normalized in ("prefixed", "ca-certificates")]
    text = explicit_text(world.platform, records)
    return Lock("cpu", world.platform, "cpu", "conda", text, "", "", {}, "0" * 64)


def job_of(world: World, home: Path, lock: Lock) -> Job:
    """Return what an engine works with, the packages of the lock fetched into the home."""
    job = Job(home, "cpu", world.platform, {"environments": {}}, home, (), None, Screen())
    for line in lock.conda.splitlines():
        if line.startswith("https:"):
            url = line.partition("#")[0]
            target = package_file(home, url)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((world.root / url.partition("://")[2]).read_bytes())
    return job


def content(prefix: Path) -> dict[str, Any]:
    """Return what an environment holds and what its records say of it, wherever it lies."""
    made = {name: what for name, what in snapshot(prefix).items() if not name.startswith("conda-meta")}
    return {"files": made, "records": [(p.title, p.sha256, p.entries) for p in read_conda(prefix)[0]]}


@pytest.fixture(scope="module")
def undisturbed(world: World, their_conda: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the small lock gives where the user has no settings."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    lock = small_lock(world)
    FoundConda(job_of(world, home, lock), str(their_conda)).create(lock, home / "envs" / "one")
    return content(home / "envs" / "one")


def without_hashes_of_prefix(found: dict[str, Any]) -> dict[str, Any]:
    """Return content without what hangs on the prefix: hashes of the files that name it."""
    files = {
        name: what for name, what in found["files"].items() if "where-am-i" not in name and "libprefix" not in name
    }
    records = [
        (title, sha256, [e._replace(in_prefix="") for e in entries]) for title, sha256, entries in found["records"]
    ]
    return {"files": files, "records": records}


def test_there_are_as_many_settings_as_were_tried() -> None:
    assert len(SETTINGS) >= 44


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_the_users_matters(
    world: World,
    their_conda: Path,
    undisturbed: dict[str, Any],
    user: Path,
    tmp_path: Path,
    name: str,
) -> None:
    """The same files and records as without it, their HOME as it was, byte for byte, and nothing left behind."""
    (user / ".condarc").write_text(SETTINGS[name] + "\n")
    lock, home = small_lock(world), tmp_path / "home"
    job = job_of(world, home, lock)
    before, theirs = snapshot(user), snapshot(their_conda.parent.parent / "conda-meta")
    FoundConda(job, str(their_conda)).create(lock, home / "envs" / "one")
    assert without_hashes_of_prefix(content(home / "envs" / "one")) == without_hashes_of_prefix(undisturbed)
    assert changes(before, snapshot(user)) == []
    assert snapshot(their_conda.parent.parent / "conda-meta") == theirs
    assert sorted(path.name for path in (home / "cache").iterdir()) == ["conda"]  # the package files alone


@pytest.mark.parametrize("name", HARMFUL)
def test_the_stand_in_obeys_what_does_harm(
    world: World,
    their_conda: Path,
    undisturbed: dict[str, Any],
    user: Path,
    tmp_path: Path,
    name: str,
) -> None:
    """Called without a private HOME it fails, or makes another environment: else the test above shows nothing."""
    (user / ".condarc").write_text(HARMFUL[name] + "\n")
    lock, home = small_lock(world), tmp_path / "home"
    job_of(world, home, lock)
    lines = [
        line.replace("https://conda.anaconda.org", (home / "cache/conda").as_uri()) for line in lock.conda.split()
    ]
    (tmp_path / "explicit.txt").write_text(
        "\n".join(line for line in lines if line.startswith(("@", "file:"))) + "\n"
    )
    argv = [str(their_conda), "create", "--yes", "--prefix", str(home / "envs/one")]
    argv += ["--file", str(tmp_path / "explicit.txt")]
    env = {**os.environ, "CONDA_PKGS_DIRS": str(tmp_path / "pkgs"), "CONDA_REGISTER_ENVS": "false"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    made = done.returncode == 0 and content(home / "envs/one")
    assert not made or without_hashes_of_prefix(made) != without_hashes_of_prefix(undisturbed), done.stderr


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["create_default_packages", "always_softlink", "broken YAML"])
def test_wherever_a_setting_stands(
    world: World,
    their_conda: Path,
    undisturbed: dict[str, Any],
    user: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    name: str,
) -> None:
    """In every file that conda reads, its own installation's among them, and as a variable."""
    file = user / place
    if place == "CONDARC":
        monkeypatch.setenv("CONDARC", str(file))
    elif place == "XDG_CONFIG_HOME":
        file = tmp_path / "xdg" / "conda" / ".condarc"
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    elif place == "root":
        file = their_conda.parent.parent / "condarc"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HARMFUL[name] + "\n")
    monkeypatch.setenv("CONDA_ALWAYS_SOFTLINK", "true")
    try:
        lock, home = small_lock(world), tmp_path / "home"
        FoundConda(job_of(world, home, lock), str(their_conda)).create(lock, home / "envs" / "one")
    finally:
        file.unlink()
    assert without_hashes_of_prefix(content(home / "envs" / "one")) == without_hashes_of_prefix(undisturbed)


@pytest.mark.parametrize("engine", ["conda", "mamba"])
def test_nothing_in_an_environment_has_a_second_name(
    world: World,
    their_conda: Path,
    user: Path,
    tmp_path: Path,
    engine: str,
) -> None:
    """Engines link from their cache: it is gone, so no file of the environment is shared with anything."""
    lock, home = small_lock(world), tmp_path / "home"
    FoundConda(job_of(world, home, lock), str(their_conda.with_name(engine))).create(lock, home / "envs" / "one")
    shared = [path for path in (home / "envs").rglob("*") if path.is_file() and path.lstat().st_nlink > 1]
    assert shared == [] and (home / "envs/one/bin/where-am-i").is_file()


def broken_package(home: Path) -> Path:
    """Change one byte in the middle of a package file, its size and time as they were; return the file."""
    file = next((home / "cache" / "conda").rglob("prefixed-*.conda"))
    before, kept = file.stat(), file.read_bytes()
    file.write_bytes(kept[:700] + bytes([kept[700] ^ 1]) + kept[701:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return file


@pytest.mark.parametrize("engine", ["conda", "miniforge", "pixi"])
def test_a_broken_package_file_is_exit_4_with_every_engine(
    world: World,
    their_conda: Path,
    user: Path,
    tmp_path: Path,
    engine: str,
) -> None:
    """conda compares no hash of a file: URL; we do, at the moment in which it is used."""
    lock, home = small_lock(world), tmp_path / "home"
    job = job_of(world, home, lock)
    world.write_lockfiles(tmp_path / "lockfiles", "")
    index = json.loads((tmp_path / "lockfiles/index.json").read_text())
    whole = Job(home, "cpu", world.platform, index, tmp_path / "lockfiles", (), None, job.screen)
    maker = {
        "conda": FoundConda(job, str(their_conda)),
        "miniforge": OwnConda(whole, "miniforge"),
        "pixi": Pixi(whole),
    }
    file = broken_package(home)
    with pytest.raises(Failure) as caught:
        maker[engine].create(lock, home / "envs" / "one")
    assert caught.value.code == EXIT_INTEGRITY and file.name in caught.value.what and caught.value.hint
    assert not file.exists() and not (home / "envs" / "one").exists()


# ---------------------------------------------------------------------------------------------------------
# From nothing to an environment that verifies


def verified(trial: Trial) -> dict[str, Any]:
    """Return what --verify --json says of the environment in use."""
    argv = [trial.python, str(REPO / "bootstrap.py"), "--verify", "--json"]
    return trial.run(argv=[*argv, "--prefix", str(trial.home)]).document


@pytest.fixture
def trials(tmp_path: Path, mirror: Mirror) -> Iterator[dict[str, Trial]]:
    """A user for each engine, all with the same lock."""
    yield {name: Trial(tmp_path / name, mirror) for name in ("conda", "mamba", "miniforge", "pixi")}


def test_one_fingerprint_whatever_the_engine(trials: dict[str, Trial], conda: Path) -> None:
    """conda, mamba, Miniforge's own and pixi (rattler) write other records of the same files."""
    found = {}
    for name, one in trials.items():
        one.extra = {"CONDA_EXE": str(conda.with_name("conda" if name != "mamba" else "mamba"))}
        one.environ |= one.extra
        engine = name if name in ("miniforge", "pixi") else "conda"
        done = one.run("--engine", engine)
        assert done.code == 0, (name, done.err)
        found[name] = verified(one)
        assert found[name]["differences"] == [], name
    forms = {}
    for name, one in trials.items():
        record = json.loads(next((one.prefix / "conda-meta").glob("pip-*.json")).read_text())
        paths = record["paths_data"]["paths"]
        forms[name] = next(entry for entry in paths if entry["_path"].endswith("/pip/__init__.py"))
    assert forms["conda"]["_path"].startswith("site-packages/")  # each has its own way: that is what is made one
    assert forms["mamba"]["_path"].startswith("lib/python3")
    assert forms["pixi"]["_path"].startswith("lib/python3")
    assert len({document["fingerprint"] for document in found.values()}) == 1


@pytest.mark.parametrize("package", ["pip", "notebook"])
def test_a_damaged_file_is_found_and_the_hint_repairs_it(trial: Trial, conda: Path, package: str) -> None:
    """Of the conda layer and of the Python layer, changed in place, as a bad block or a careless script does it."""
    trial.environ["CONDA_EXE"] = str(conda)
    assert trial.run("--engine", "conda").code == 0
    pattern = f"lib/python3*/site-packages/{package}/__init__.py"
    file = next(trial.prefix.glob(pattern)).resolve()
    whole = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(b"X" * 20)
    assert [difference["kind"] for difference in verified(trial)["differences"]] == ["changed"]
    said = trial.run("--verify")
    assert said.code == 7
    (hint,) = [line for line in said.err.splitlines() if line.startswith("hint: ")]
    line = f"{hint.removeprefix('hint: ')} {shlex.join(trial.mirror.options)}"
    done = subprocess.run(["bash", "-c", line], env=trial.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert verified(trial)["differences"] == []
    assert next(trial.prefix.glob(pattern)).read_bytes() == whole


@pytest.mark.parametrize("engine", ["miniforge", "anaconda", "pixi"])
def test_a_second_users_installation_leaves_home_as_it_was(tmp_path: Path, mirror: Mirror, engine: str) -> None:
    """Whatever their settings say; without CI in the environment, which is no consent to anybody's terms."""
    one = Trial(tmp_path, mirror, python=oldest_python())
    one.environ.pop("CI", None)
    (one.user / ".condarc").write_text("create_default_packages: [numpy]\nchannels: [defaults]\nsubdir: osx-64\n")
    (one.user / ".config" / "pixi").mkdir(parents=True)
    pixis = "detached-environments = '/nowhere'\ntls-no-verify = true\ntls-root-certs = 'webpki'\n"
    (one.user / ".config" / "pixi" / "config.toml").write_text(pixis)
    authority = trustme.CA().cert_pem.bytes()
    (tmp_path / "company.pem").write_bytes(authority)
    one.environ["PIP_CERT"] = str(tmp_path / "company.pem")
    (one.user / ".mambarc").write_text("channels: [nowhere\n")
    before = snapshot(one.user)
    done = one.run("--engine", engine)
    assert done.code == 0, done.err
    assert changes(before, snapshot(one.user)) == []
    assert verified(one)["differences"] == []
    if engine == "pixi":
        system = certificates.system_store()
        count = 1 + (system.read_text().count("BEGIN CERTIFICATE") if system else 0)
        logs = "".join(path.read_text() for path in (one.home / "logs").iterdir())
        assert re.findall(r"trusts (\S+) .*", logs) and f"({count} certificates)" in logs
    gone = one.run("--uninstall", "--yes")
    assert gone.code == 0, gone.err
    assert changes(before, snapshot(one.user)) == [] and not one.home.exists()


@pytest.mark.parametrize("length", [110, 130, 160])
def test_homes_with_long_names(tmp_path: Path, mirror: Mirror, length: int) -> None:
    """Miniforge's bin/conda begins with #!/usr/bin/env python there: its Python is called instead."""
    name = "h" * max(8, length - len(str(tmp_path)) - 1)
    one = Trial(tmp_path, mirror, home_name=name)
    assert len(str(one.home)) >= length
    done = one.run("--engine", "miniforge")
    assert done.code == 0, done.err
    first = (one.home / "conda/bin/conda").read_text().splitlines()[0]
    assert first.startswith("#!/usr/bin/env") == (len(str(one.home)) > 108)
    assert verified(one)["differences"] == []


def test_auto_takes_miniforge_where_the_users_conda_fails(trial: Trial) -> None:
    """And says why. A conda that does its work by --version alone is found, and can't create."""
    broken = trial.folder / "bin" / "conda"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" != --version ] || { echo 'conda 26.7.1'; exit 0; }\n"
        "echo 'PluginError: A plugin of this conda can not be loaded.' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    trial.environ["CONDA_EXE"] = str(broken)
    explicit = trial.run("--engine", "conda")
    assert explicit.code == 1 and "PluginError" in explicit.err
    (hint,) = [line for line in explicit.err.splitlines() if line.startswith("hint: ")]
    assert "--engine miniforge" in hint and trial.left() == []
    done = trial.run("--json")
    assert done.code == 0, done.err
    (receipt,) = trial.receipts()
    assert receipt["engine"] == "miniforge"
    notices = [notice for notice in receipt["notices"] if "PluginError" in notice]
    assert len(notices) == 1 and "Miniforge's conda is used instead" in notices[0]
    assert f"note: {notices[0]}" in done.err
    assert verified(trial)["differences"] == []
