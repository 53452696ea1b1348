"""Who switches lingering on switches it off again; one place for the Jupyter service and the desktop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from colab_local.install import linger
from colab_local.manage import service
from tests.conftest import SCREEN


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logind keeps who lingers."""
    monkeypatch.setattr(linger, "FOLDER", tmp_path)
    return tmp_path


def test_it_is_on_only_if_logind_did_it(logind: Path) -> None:
    def obeyed(argv: Sequence[str]) -> bool:
        assert list(argv)[:2] == ["loginctl", "--no-ask-password"]
        path = logind / argv[-1]
        path.touch() if argv[2] == "enable-linger" else path.unlink()
        return True

    assert not linger.is_on("ada")
    assert not linger.switch("ada", True, lambda argv: False)
    assert not linger.switch("ada", True, lambda argv: True), "an exit code is no proof"
    assert linger.switch("ada", True, obeyed) and linger.is_on("ada") and not linger.is_on("bob")
    assert linger.switch("ada", False, obeyed) and not linger.is_on("ada")


def test_the_duty_to_switch_it_off_is_handed_to_the_service(tmp_path: Path) -> None:
    path = tmp_path / "service.json"
    assert not linger.hand_over(path) and not path.exists()
    path.write_text(json.dumps({"env": "cpu", "lingering": False}))
    assert linger.hand_over(path)
    assert json.loads(path.read_text()) == {"env": "cpu", "lingering": True}
    path.write_text("damaged")
    assert not linger.hand_over(path) and path.read_text() == "damaged"


def test_the_duty_is_handed_to_the_virtual_desktop(tmp_path: Path) -> None:
    path = tmp_path / "desktop.json"
    assert not linger.hand_to_desktop(path, "ada") and not path.exists()
    listed = [{"user": "bob", "kind": "virtual"}, {"user": "ada", "kind": "mirror"}]
    path.write_text(json.dumps({"schema": 1, "desktops": listed}))
    assert not linger.hand_to_desktop(path, "ada")
    path.write_text(
        json.dumps({"schema": 1, "desktops": [*listed, {"user": "ada", "kind": "virtual", "port": 5901}]})
    )
    assert linger.hand_to_desktop(path, "ada")
    made = {"user": "ada", "kind": "virtual", "port": 5901, "linger": True}
    assert json.loads(path.read_text()) == {"schema": 1, "desktops": [*listed, made]}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_manager_remembers_that_it_switched_it_on(logind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "user_name", lambda: "ada")
    monkeypatch.setattr(service.Systemd, "succeeds", lambda self, argv: not (logind / argv[-1]).touch())
    ours, theirs = service.Systemd(SCREEN), service.Systemd(SCREEN)
    ours.linger()
    theirs.linger()
    assert ours.lingering and not theirs.lingering
