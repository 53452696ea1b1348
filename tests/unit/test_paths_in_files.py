"""What is written in a file of a home is never obeyed as a path: names are checked against what we make there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from colab_local import desktop
from colab_local.base.errors import Failure
from colab_local.desktop import person, plan
from colab_local.desktop.options import Options
from colab_local.install import home as homes
from colab_local.install import servers
from colab_local.laptop import agent, installing
from colab_local.manage import card, service
from tests.conftest import SCREEN
from tests.support.receipts import NAME, RECEIPT, write_receipt

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="another user's files can be made by root alone")
OTHER = 61234  # a user's number that nobody has


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder with files that are precious to them."""
    folder = tmp_path / "user"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "authorized_keys").write_text("precious")
    (folder / "empty").mkdir(mode=0o755)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "empty").mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SUDO_USER", raising=False)
    return folder


def unchanged(user: Path) -> bool:
    """Return whether nothing that is the user's was read into, changed, renamed or removed."""
    texts = [user / ".ssh" / "authorized_keys", user.parent / "victim"]
    folders = [user / "empty", user.parent / "empty"]
    return all(text.read_text() == "precious" for text in texts) and all(
        folder.is_dir() and folder.stat().st_mode & 0o777 == 0o755 for folder in folders
    )


# ---------------------------------------------------------------------------------------------------------
# receipts/desktop.json


MADE = {"sha256": plan.digest(b"precious"), "mode": 0o600}
LINKS = ("{user}/.ssh/authorized_keys", "{user}/../victim", "{user}/.vnc/../.ssh/authorized_keys", "/etc/passwd", "/")
DESKTOPS: list[dict[str, Any]] = [
    *({"files": {path: MADE}} for path in LINKS),
    *({"rdp_files": [path], "how": "rdp"} for path in LINKS),
    *({"files": {"{user}/.vnc/xstartup": {**MADE, "backup": path}}} for path in LINKS),
    *(
        {"files": {"{user}/.vnc/xstartup": {**MADE, "backup": f"{{user}}/.vnc/xstartup{tail}"}}}
        for tail in ("/", "x")
    ),
    *({"folders": [path]} for path in ("{user}/empty", "{user}/../empty", "/", "{user}")),
    *({"modes": {path: 0o777}} for path in ("{user}/empty", "{user}/../empty", "/", "{user}", "{user}/.vnc/..")),
]


def write_desktops(folder: Path, text: str) -> Path:
    path = plan.receipt_path(folder / "colab")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def entry_of(user: Path, kind: str, more: dict[str, Any]) -> str:
    plain = {"user": person.find().name, "kind": kind, "files": {}, "folders": [], "modes": {}, "created": "2026"}
    return json.dumps({"schema": 1, "desktops": [plain | more]}).replace("{user}", str(user))


def undo(folder: Path) -> None:
    """Try both ways to remove a desktop; each has to refuse."""
    with pytest.raises(Failure) as refused:
        desktop.uninstall(folder / "colab", False, SCREEN)
    assert refused.value.hint
    for kind in ("virtual", "mirror"):
        with pytest.raises(Failure):
            desktop.remove(Options(kind=kind, home=folder / "colab"), SCREEN)


@pytest.mark.parametrize("more", DESKTOPS, ids=json.dumps)
def test_a_desktops_receipt_names_only_what_a_desktop_makes(user: Path, more: dict[str, Any]) -> None:
    for kind in ("virtual", "mirror"):
        path = write_desktops(user.parent, entry_of(user, kind, more))
        with pytest.raises(Failure, match=r"is nothing that a desktop of .* makes"):
            desktop.uninstall(user.parent / "colab", False, SCREEN)
        with pytest.raises(Failure, match=r"is nothing that a desktop of .* makes"):
            desktop.remove(Options(kind=kind, home=user.parent / "colab"), SCREEN)
        assert unchanged(user) and path.exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"desktops": 3}', '{"desktops": [3]}', '{"desktops": [{"user": "x"}]}', "[" * 9999, "\xff"],
)
def test_a_damaged_desktops_receipt_is_called_so(user: Path, text: str) -> None:
    write_desktops(user.parent, text)
    undo(user.parent)


@pytest.mark.parametrize("field", ["display", "port", "screen", "how", "unit", "modes", "folders", "files"])
def test_values_of_another_kind_are_damage(user: Path, field: str) -> None:
    values: list[object] = [{"a": []}, "; reboot", [None], 1.5, "../x"]
    for value in values:
        write_desktops(user.parent, entry_of(user, "virtual", {field: value}))
        undo(user.parent)
    assert unchanged(user)


def test_a_desktops_receipt_is_a_file_of_our_own(user: Path) -> None:
    good = entry_of(user, "virtual", {})
    path = write_desktops(user.parent, good)
    path.chmod(0o666)
    undo(user.parent)
    path.unlink()
    os.mkfifo(path, 0o600)
    undo(user.parent)
    path.unlink()
    elsewhere = user.parent / "elsewhere.json"
    elsewhere.write_text(good)
    path.symlink_to(elsewhere)
    undo(user.parent)
    assert elsewhere.read_text() == good


@root_only
def test_another_users_desktops_receipt_is_not_followed(user: Path) -> None:
    os.chown(write_desktops(user.parent, entry_of(user, "virtual", {})), OTHER, OTHER)
    undo(user.parent)


def test_a_link_in_the_home_folder_is_not_followed(user: Path) -> None:
    (user / ".vnc").symlink_to(user / ".ssh")
    (user / ".ssh" / "xstartup").write_text("precious")
    write_desktops(user.parent, entry_of(user, "virtual", {"files": {"{user}/.vnc/xstartup": MADE}}))
    with pytest.raises(Failure, match="symbolic link"):
        desktop.uninstall(user.parent / "colab", False, SCREEN)
    assert (user / ".ssh" / "xstartup").read_text() == "precious"


# ---------------------------------------------------------------------------------------------------------
# receipts/NAME/receipt.json


@pytest.mark.parametrize("name", ["../../../victim", "/etc/passwd", "/", "a/../../b", "", ".."])
def test_names_in_an_environments_receipt_stay_inside(user: Path, name: str) -> None:
    """--repair writes the lock's copies and our own files again, by the names in the receipt."""
    home = user.parent / "colab"
    (home / "envs" / NAME / "bin").mkdir(parents=True)
    write_receipt(home)
    assert homes.read_receipt(home, NAME) is not None
    lock = RECEIPT["lock"]
    for more in (
        {"lock": lock | {"files": {name: "0" * 64}}},
        {"lock": lock | {"jupyter": {name: "0" * 64}}},
        {"seal": {name: "0" * 64}},
    ):
        write_receipt(home, **more)
        assert homes.read_receipt(home, NAME) is None


# ---------------------------------------------------------------------------------------------------------
# receipts/service.json


SERVICE: dict[str, Any] = {
    "schema": 1,
    "kind": "systemd",
    "env": "cpu",
    "port": 8888,
    "file": "/nowhere",
    "sha256": plan.digest(b"precious"),
    "made": [],
    "token_file": "/nowhere/run/token",
    "lingering": False,
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose systemctl and loginctl write down what they were asked."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("systemctl", "loginctl"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/asked\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.mark.parametrize("field", ["file", "token_file"])
def test_no_path_in_a_services_receipt_is_obeyed(user: Path, programs: Path, field: str) -> None:
    home = user.parent / "colab"
    for value in (str(user / ".ssh" / "authorized_keys"), str(user.parent / "victim"), "/", f"{user}/../victim"):
        service.receipt_path(home).parent.mkdir(parents=True, exist_ok=True)
        made = [str(user / "empty"), str(user.parent / "empty"), "/"]
        service.receipt_path(home).write_text(json.dumps(SERVICE | {field: value, "made": made}))
        service.uninstall(home, False, SCREEN)
        assert unchanged(user)


def test_the_agent_runs_no_command_of_a_receipt(user: Path, programs: Path) -> None:
    home = user.parent / "colab"
    service.receipt_path(home).parent.mkdir(parents=True)
    evil = {"start": ["touch", str(user / "was-run")], "stop": ["rm", str(user.parent / "victim")]}
    service.receipt_path(home).write_text(json.dumps(SERVICE | evil))
    found = agent.service_of(home, "cpu")
    assert found is not None
    for action in ("start", "stop"):
        agent.control_service(found, action)
    assert programs.read_text().splitlines() == [
        "systemctl --user start colab-local.service",
        "systemctl --user stop colab-local.service",
    ]
    assert unchanged(user) and not (user / "was-run").exists()


def test_a_services_receipt_is_a_file_of_our_own(user: Path, programs: Path) -> None:
    home = user.parent / "colab"
    path = service.receipt_path(home)
    path.parent.mkdir(parents=True)
    elsewhere = user.parent / "elsewhere.json"
    elsewhere.write_text(json.dumps(SERVICE))
    path.symlink_to(elsewhere)
    assert service.read_receipt(home) is None
    path.unlink()
    os.mkfifo(path)
    assert service.read_receipt(home) is None
    path.unlink()
    for text in ("[" * 9999, "{}", "3", json.dumps(SERVICE | {"token_file": "a\0b"})):
        path.write_text(text)
        assert service.read_receipt(home) is None
        with pytest.raises(Failure, match="is damaged"):
            service.uninstall(home, False, SCREEN)


# ---------------------------------------------------------------------------------------------------------
# What runs: run/*.json, the token, Jupyter's own descriptions


def test_the_token_is_read_from_no_link(user: Path) -> None:
    home = user.parent / "colab"
    (home / "run").mkdir(parents=True)
    (home / "run" / "jupyter-token").symlink_to(user / "empty")
    with pytest.raises(Failure, match="is a link"):
        servers.token_file(home)
    assert unchanged(user)


def describe(folder: Path, number: int, **more: Any) -> Path:
    path = folder / f"nbserver-{number}.json"
    path.write_text(json.dumps({"pid": os.getpid(), "port": 8888, "token": "t", "base_url": "/", **more}))
    path.chmod(0o600)
    return path


def test_descriptions_of_servers(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pid reaches a process group or all processes; links, pipes and other users' files are passed over."""
    folder = user / "runtime"
    folder.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    elsewhere = describe(user, 1)
    (folder / "nbserver-2.json").symlink_to(elsewhere)
    os.mkfifo(folder / "nbserver-3.json")
    for number, pid in enumerate([0, -1, -os.getpid(), 10**30, 1 << 31, True, "1", None, 1.5], 4):
        describe(folder, number, pid=pid)
    describe(folder, 90).chmod(0o666)
    if os.geteuid() == 0:
        os.chown(describe(folder, 91), OTHER, OTHER)
    assert servers.described_servers() == []
    describe(folder, 99)
    (found,) = servers.described_servers()
    assert found.pid == os.getpid()


@pytest.mark.parametrize("port", [0, -1, 70000, 10**30, "22", [1]])
def test_ports_of_desktops_are_ports(user: Path, port: object) -> None:
    home = user.parent / "colab"
    write_desktops(user.parent, json.dumps({"desktops": [{"port": port}]}))
    assert agent.desktops({"home": str(home), "ports": [5901]}) == {"places": {"5901": False}}


def test_a_desktop_without_a_port_is_named_by_its_socket(user: Path) -> None:
    home = user.parent / "colab"
    write_desktops(user.parent, json.dumps({"desktops": [{"port": 5903, "listen": "socket"}, {"port": 5900}]}))
    path = str(user.resolve() / ".vnc/rfb-3.sock")
    assert agent.desktops({"home": str(home), "ports": [5901]}) == {"places": {path: False, "5900": False}}


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "", "a/b", "a\0b"])
def test_the_state_of_an_installation_names_no_path(user: Path, name: str) -> None:
    path = user.parent / "colab" / "run" / "install.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"id": name, "pid": 1, "options": []}))
    assert installing.read_state(user.parent / "colab") is None


def test_a_result_that_never_ends_is_none(user: Path) -> None:
    os.mkfifo(user / "code")
    assert installing.ending(user / "none", user / "code")["error"] == "the installation was ended from outside"


def test_a_kept_fingerprint_is_one(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = user.parent / "colab"
    write_receipt(home)
    kept = home / "receipts" / NAME / "fingerprint.json"
    digest = RECEIPT["lock"]["digest"]
    monkeypatch.setattr("colab_local.manage.verify.check", lambda receipt, screen: 1 / 0)
    for value in ("\033]0;evil\007", "x" * 9999, f"colab-local cpu linux-64 sha256:{'0' * 64}\n\033[2J"):
        kept.write_text(json.dumps({"lock": digest, "fingerprint": value}))
        with pytest.raises(ZeroDivisionError):
            card.known_fingerprint(home, dict(RECEIPT), SCREEN)
