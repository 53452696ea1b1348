"""Hosted Colab's earlier runtimes and its whole list as environments; /content as a link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from colab_local.install.installation import Installation
from colab_local.install.lockfiles import (
    check_known,
    locked_names,
    make_lock,
    pythons_of,
    read_index,
    read_lock_file,
    runtime_of,
    runtimes_of,
)
from colab_local.locking.specs import current_runtime, read_missing, read_pins, read_specs
from colab_local.manage import content
from tests.conftest import REPO

ENVIRONMENTS, LOCKFILES = REPO / "environments", REPO / "lockfiles"
INDEX = read_index(LOCKFILES)
MONTHS = ["2025.07", "2025.10", "2026.01", "2026.04", "2026.07", "2026.08"]


def locked(env: str) -> dict[str, str]:
    entry = INDEX["environments"][env]["pypi"]
    return locked_names(read_lock_file(LOCKFILES, entry["file"], entry["sha256"]))


@pytest.mark.parametrize("env", ["cpu", "gpu"])
def test_all_six_runtimes_are_locked(env: str) -> None:
    assert list(runtimes_of(INDEX, env)) == MONTHS
    assert runtime_of(INDEX, env, "2026.08") == env, "the default is the current one"
    tensorflow = {month: locked(name)["tensorflow"] for month, name in runtimes_of(INDEX, env).items()}
    assert tensorflow == {
        "2025.07": "2.18.0",
        "2025.10": "2.19.0",
        "2026.01": "2.19.0",
        "2026.04": "2.19.0",
        "2026.07": "2.20.0",
        "2026.08": "2.20.0",
    }


def test_a_runtime_has_its_own_python() -> None:
    assert pythons_of(INDEX, "cpu-2025-07") == ["3.11"]
    assert INDEX["environments"]["cpu-2025-07"]["python"].startswith("3.11.")
    assert pythons_of(INDEX, "cpu-2026-04") == ["3.12"]
    assert pythons_of(INDEX, "cpu") == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("month", ["2026.09", "2026.4", "", "../x"])
def test_an_unknown_runtime_is_refused_with_those_there_are(month: str) -> None:
    with pytest.raises(Failure, match=r"there are: 2025\.07, .*2026\.08") as caught:
        runtime_of(INDEX, "cpu", month)
    assert caught.value.code == EXIT_USAGE
    assert caught.value.hint == "python3 bootstrap.py --env cpu --runtime 2026.08"


def test_locks_follow_each_runtimes_own_versions() -> None:
    for name, spec in read_specs(ENVIRONMENTS).items():
        pins, have = read_pins(ENVIRONMENTS, spec.pins), locked(name)
        followed = [package for package, version in have.items() if pins.get(package) == version]
        assert len(followed) > len(have) * 0.7, f"{name} follows {len(followed)} of {len(have)}"


def test_colab_has_all_of_hosted_colab_but_what_is_named() -> None:
    pins, have = read_pins(ENVIRONMENTS, "colab-all-pins.txt"), locked("colab")
    missing = read_missing(ENVIRONMENTS, "colab")
    assert set(pins) - set(have) - {"python"} == set(missing) - {
        "en-core-web-sm",
        "google-colab",
        "jupyter-kernel-gateway",
    }
    followed = [package for package, version in have.items() if pins.get(package) == version]
    assert len(followed) >= 600
    told = (LOCKFILES / "colab" / "packages.txt").read_text()
    for package, reason in missing.items():
        assert f"  {package}: {reason}" in told


def test_an_environment_without_months_or_without_that_name() -> None:
    for env in ("gpu-forge", "cpu-2026-04"):  # conda-forge's versions; a month's own
        with pytest.raises(Failure, match=r"there are: none") as caught:
            runtime_of(INDEX, env, "2026.08")
        assert caught.value.hint == f"python3 bootstrap.py --env {env} !--runtime"
    with pytest.raises(Failure, match="unknown environment 'notbooks'") as caught:
        check_known("notbooks", INDEX["environments"])
    assert caught.value.hint == "python3 bootstrap.py --env notebooks"


def test_the_documents_say_how_many_packages_follow_hosted_colab() -> None:
    told = (REPO / "docs" / "notebooks.md").read_text()
    english, japanese = ((REPO / name).read_text() for name in ("README.md", "README.ja.md"))
    for env in ("cpu", "gpu", "notebooks", "colab"):
        packages = (LOCKFILES / env / "packages.txt").read_text()
        have = re.search(r"Python layer \(pypi\.txt\): (\d+) packages", packages)
        followed = re.search(r"(\d+) followed", packages)
        row = re.search(rf"\| `{env}`(?: \(default\))? \|.*\| (\d+) of (\d+) \| (\S+) GB \|", told)
        assert have, env
        assert followed, env
        assert row, env
        download = INDEX["environments"][env]["platforms"]["linux-64"]["bytes"]["pypi_download"]
        assert row.groups() == (followed.group(1), have.group(1), f"{download / 1e9:.1f}"), env
        if env != "gpu":  # the READMEs leave it out
            assert re.search(rf"\b{followed[1]} of (its )?{have[1]}\b", english), env
            assert f"{have[1]} 個のうち {followed[1]} 個" in japanese, env


@pytest.mark.parametrize("env", sorted(INDEX["environments"]))
def test_pip_and_uv_come_from_one_place(env: str) -> None:
    """With the host engine uv installs both files at once, and refuses two versions of a package."""
    host = locked_names(read_lock_file(LOCKFILES, INDEX["uv"]["file"], INDEX["uv"]["sha256"]))
    assert set(host) == {"pip", "uv"}
    assert not set(locked(env)) & set(host)


def test_current_runtime_is_read_from_the_pins() -> None:
    assert current_runtime("# Hosted Colab's versions, 2026-08-19. More.\na==1\n") == "2026.08"
    assert current_runtime("a==1\n") == ""


# --- /content -----------------------------------------------------------------------------------------------


def link(place: Path, target: Path, dry_run: bool = False) -> None:
    content.make_link(target, dry_run, Screen(), place)


def test_content_is_made_where_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, target = tmp_path / "content", tmp_path / "my notebooks"
    target.mkdir()
    link(place, target, dry_run=True)
    assert not place.is_symlink()
    link(place, target)
    assert place.resolve() == target
    assert f"Made {place}, a link to {target}." in capsys.readouterr().out
    link(place, target)
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dead link"])
def test_what_is_there_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    place, target = tmp_path / "content", tmp_path / "notebooks"
    target.mkdir()
    make: dict[str, Any] = {
        "folder": place.mkdir,
        "file": place.touch,
        "link": lambda: place.symlink_to(tmp_path),
        "dead link": lambda: place.symlink_to(tmp_path / "gone"),
    }
    make[kind]()
    before = place.lstat()
    with pytest.raises(Failure, match="it is left as it is") as caught:
        link(place, target)
    assert caught.value.code == EXIT_MACHINE
    assert place.lstat() == before


def test_without_the_right_the_command_for_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "my notebooks").mkdir()
    with pytest.raises(Failure, match="Permission denied") as caught:
        link(tmp_path / "content", tmp_path / "my notebooks")
    assert caught.value.hint == f"sudo ln -s '{tmp_path}/my notebooks' {tmp_path}/content"


@pytest.mark.parametrize("env", sorted(INDEX["environments"]))
def test_lab_is_refused_where_its_server_is_too_old(env: str, tmp_path: Path) -> None:
    words = ["--prefix", str(tmp_path), "--env", env]
    server = locked(env)["jupyter-server"]
    for choice, lab in (([], False), (["--no-lab"], False), (["--lab"], True)):
        options = bootstrap.read_options(bootstrap.make_parser().parse_args([*words, *choice]))
        lock = make_lock(INDEX, LOCKFILES, env, "linux-64", "conda")
        installation = Installation(options, lock, "conda", Screen())
        if not lab or int(server.partition(".")[0]) >= 2:
            bootstrap.check_lab(installation)
            continue
        assert "-2025-07" in env
        with pytest.raises(Failure, match=rf"JupyterLab 3\.5\.3 \(found jupyter_server {server}, need 2") as failure:
            bootstrap.check_lab(installation)
        assert (failure.value.code, failure.value.hint) == (EXIT_USAGE, "python3 bootstrap.py !--lab --no-lab")
    assert list(tmp_path.iterdir()) == []
