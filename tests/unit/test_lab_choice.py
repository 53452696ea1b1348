"""--lab, --port and --notebook-dir are kept in the receipt: later starts, and the next lock, keep to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from colab_local.base.errors import EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from colab_local.install.home import read_receipt
from colab_local.install.installation import Installation
from colab_local.install.lockfiles import Lock
from colab_local.laptop import agent
from colab_local.manage import environments, service
from tests.conftest import REPO
from tests.support.receipts import NAME, write_receipt

OLD: Any = object()  # a receipt of before there was a choice


def home_with(tmp_path: Path, lab: Any) -> Path:
    """Return a home with an environment in use."""
    home = tmp_path / "home"
    python = home / "envs" / NAME / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    write_receipt(home, **({} if lab is OLD else {"lab": lab}))
    (home / "current").mkdir()
    (home / "current" / "cpu").symlink_to(home / "envs" / NAME)
    return home


def planned(home: Path, *words: str) -> Installation:
    """Return the installation that a command line means, whose lock is the one in use."""
    options = bootstrap.read_options(bootstrap.make_parser().parse_args(["--prefix", str(home), *words]))
    digest = NAME.rpartition("-")[2] + "0" * 52
    lock = Lock("cpu", "linux-64", "cpu", "host-3.11", "", "", "", {}, digest)
    return Installation(options, lock, "host", Screen())


@pytest.mark.parametrize(
    ("remembered", "words", "lab", "steps"),
    [
        (OLD, [], False, []),
        (OLD, ["--lab"], True, ["choices"]),
        (OLD, ["--no-lab"], False, []),
        (False, ["--lab"], True, ["choices"]),
        (True, [], True, []),
        (True, ["--lab"], True, []),
        (True, ["--no-lab"], False, ["choices"]),
    ],
)
def test_a_later_run_keeps_or_changes_the_choice(
    tmp_path: Path, remembered: Any, words: list[str], lab: bool, steps: list[str]
) -> None:
    home = home_with(tmp_path, remembered)
    made = planned(home, *words)
    assert [step.name for step in made.steps()] == steps
    assert made.jupyter_argv()[0].endswith("jupyter-lab" if lab else "jupyter-notebook")
    for step in made.steps():
        step.apply()
    again = planned(home)
    assert again.steps() == []
    assert again.options.lab is lab
    receipt = read_receipt(home, NAME)
    assert receipt is not None
    assert bool(receipt.get("lab")) is lab
    assert {"root", "prefix"}.isdisjoint(json.loads((home / "receipts" / NAME / "receipt.json").read_text()))


def test_a_receipt_with_an_odd_choice_is_none(tmp_path: Path) -> None:
    assert read_receipt(home_with(tmp_path, "yes"), NAME) is None


@pytest.mark.parametrize("lab", [OLD, False, True])
def test_connect_starts_what_the_receipt_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: Any) -> None:
    home = home_with(tmp_path, lab)
    started: list[list[str]] = []

    class Child:
        pid = 1

        def __init__(self, argv: list[str], **_: Any) -> None:
            started.append(argv)

    monkeypatch.setattr("subprocess.Popen", Child)
    monkeypatch.setattr(agent, "await_server", lambda *_: {})
    monkeypatch.setattr(agent, "send", lambda _: None)
    receipt = read_receipt(home, NAME)
    assert receipt is not None
    agent.launch(home, receipt, None)
    assert started[0][0].endswith("jupyter-lab" if lab is True else "jupyter-notebook")
    assert ("--ServerApp.root_dir=/" in started[0]) is (lab is True)


def test_the_service_has_the_remembered_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_with(tmp_path, True)
    options = planned(home).options
    seen: list[list[str]] = []

    class Manager:
        kind, path = "systemd", tmp_path / "unit"

        def log_command(self, _: Path) -> str:
            return "log"

        def command(self, *_: str) -> list[str]:
            return ["stop"]

    def install(_manager: Any, _home: Path, _env: str, argv: list[str], *_: Any) -> bool:
        seen.append(argv)
        return True

    monkeypatch.setattr(service, "find_manager", lambda *_: Manager())
    monkeypatch.setattr(service, "install", install)
    monkeypatch.setattr(service, "await_answer", lambda *_: {"port": 1, "token": "x"})
    service.command(options, False, Screen())
    assert seen[0][0].endswith("jupyter-lab")


@pytest.mark.parametrize("lab", [OLD, False, True])
def test_a_later_run_has_the_installations_port_and_folder(tmp_path: Path, lab: Any) -> None:
    home = home_with(tmp_path, lab)
    choice = {} if lab is OLD else {"lab": lab}
    write_receipt(home, port=9999, notebook_dir=str(tmp_path / "nb"), own_folder=True, **choice)
    root = "--ServerApp.root_dir" if lab is True else "--notebook-dir"
    for words in ([], ["--launch"], ["--service"]):
        argv = planned(home, *words).jupyter_argv()
        assert {"--port=9999", f"{root}={tmp_path / 'nb'}"} <= set(argv)
    assert planned(home).steps() == []


@pytest.mark.parametrize("how", [[], ["--launch"], ["--service"]])
def test_a_later_choice_is_kept(tmp_path: Path, how: list[str]) -> None:
    """Each run's own words come first, are said in one step, and hold from then on; the others stay as they were."""
    home, books = home_with(tmp_path, OLD), tmp_path / "my books"
    runs: list[tuple[list[str], str, tuple[int, Path, bool]]] = [
        (["--port", "9999"], "--port 9999", (9999, Path.home(), False)),
        (["--notebook-dir", str(books)], f"--notebook-dir '{books}'", (9999, books, False)),
        ([], "", (9999, books, False)),
        (["--port", "9998", "--lab"], "--port 9998 --lab", (9998, books, True)),
        (["--port", "9998", "--notebook-dir", str(books)], "", (9998, books, True)),
        (
            ["--notebook-dir", str(tmp_path), "--no-lab"],
            f"--notebook-dir {tmp_path} --no-lab",
            (9998, tmp_path, False),
        ),
        (["--notebook-dir", "~", "--port", "8888"], "--port 8888 --notebook-dir ~", (8888, Path.home(), False)),
        ([], "", (8888, Path.home(), False)),
    ]
    for words, said, found in runs:
        made = planned(home, *words, *how)
        assert [step.title for step in made.steps()] == ([f"Remember for later runs: {said}"] if said else [])
        assert (made.options.port, made.options.notebook_dir, made.options.lab) == found
        for step in made.steps():
            step.apply()
        later = planned(home)
        assert later.steps() == []
        assert (later.options.port, later.options.notebook_dir, later.options.lab) == found
        receipt = read_receipt(home, NAME)
        assert receipt is not None, "connect.py and Slurm start what it says"
        assert (receipt["port"], Path(receipt["notebook_dir"]), receipt["lab"]) == found


@pytest.mark.parametrize("lab", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_slurm_starts_what_the_receipt_says(tmp_path: Path, lab: bool, own: bool) -> None:
    home = home_with(tmp_path, lab)
    write_receipt(home, notebook_dir="/srv", own_folder=own, lab=lab)
    prefix = home / "envs" / NAME
    (prefix / "colab").mkdir()
    (prefix / "bin" / "python").unlink()
    (prefix / "bin" / "python").symlink_to(sys.executable)
    for name in ("jupyter-notebook", "jupyter-lab"):
        (prefix / "colab" / name).write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
        (prefix / "colab" / name).chmod(0o755)
    said = subprocess.run(
        ["bash", str(REPO / "scripts" / "slurm" / "colab-local.sbatch")],
        env={**os.environ, "HOME": str(tmp_path), "COLAB_LOCAL_HOME": str(home), "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    folder = "/srv" if own else str(tmp_path)
    assert said.startswith("jupyter-lab " if lab else "jupyter-notebook ")
    assert f"{'--ServerApp.root_dir' if lab else '--notebook-dir'}={folder}" in said.split()


@pytest.mark.parametrize("port", [0, -1, 1 << 16])
def test_a_port_that_is_none_is_not_kept(tmp_path: Path, port: int) -> None:
    home = home_with(tmp_path, OLD)
    write_receipt(home, port=port)
    assert planned(home).options.port == 8888
    assert planned(home).options.notebook_dir == Path.home(), "an older receipt does not say that it was chosen"
    options = bootstrap.read_options(bootstrap.make_parser().parse_args(["--prefix", str(tmp_path / "none")]))
    assert (options.port, options.notebook_dir) == (8888, Path.home())


def test_a_folder_that_goes_with_the_home_is_refused(tmp_path: Path) -> None:
    home = home_with(tmp_path, OLD)
    (home / "logs").mkdir()
    (tmp_path / "link").symlink_to(home / "envs")
    (home / "books").mkdir()
    for folder in (home / "envs" / NAME, home / "logs", tmp_path / "link"):
        with pytest.raises(Failure, match="is in a folder that --uninstall removes") as refused:
            bootstrap.check_room(planned(home, "--notebook-dir", str(folder)))
        assert refused.value.code == EXIT_USAGE
    for folder in (home / "books", tmp_path, Path("/")):
        bootstrap.check_room(planned(home, "--notebook-dir", str(folder)))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("place", [".", "..", "books"])
def test_uninstall_leaves_the_folder_that_was_named(tmp_path: Path, named: bool, place: str) -> None:
    """Even where it is one of those that an installation once made, and empty."""
    home = home_with(tmp_path / "above", OLD)
    folder = (home / place).resolve()
    folder.mkdir(exist_ok=True)
    write_receipt(home, parents=1, notebook_dir=str(folder), own_folder=named)
    environments.uninstall(home, False, True, {}, Screen())
    assert folder.is_dir() == (named or place == "books")
    assert not (home / "envs").exists()
    assert tmp_path.is_dir()
