"""--lab is a choice that the receipt remembers: every later start, and the next lock's environment, keep to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from colab_local.base.terminal import Screen
from colab_local.install.home import read_receipt
from colab_local.install.installation import Installation
from colab_local.install.lockfiles import Lock
from colab_local.laptop import agent
from colab_local.manage import service
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
        (OLD, ["--lab"], True, ["page"]),
        (OLD, ["--no-lab"], False, []),
        (False, ["--lab"], True, ["page"]),
        (True, [], True, []),
        (True, ["--lab"], True, []),
        (True, ["--no-lab"], False, ["page"]),
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
    argv = planned(home, "--port", "8080", "--notebook-dir", str(tmp_path)).jupyter_argv()
    assert {"--port=8080", f"{root}={tmp_path}"} <= set(argv), "this run's own words come first"


@pytest.mark.parametrize("port", [0, -1, 1 << 16])
def test_a_port_that_is_none_is_not_kept(tmp_path: Path, port: int) -> None:
    home = home_with(tmp_path, OLD)
    write_receipt(home, port=port)
    assert planned(home).options.port == 8888
    assert planned(home).options.notebook_dir == Path.home(), "an older receipt does not say that it was chosen"
    options = bootstrap.read_options(bootstrap.make_parser().parse_args(["--prefix", str(tmp_path / "none")]))
    assert (options.port, options.notebook_dir) == (8888, Path.home())
