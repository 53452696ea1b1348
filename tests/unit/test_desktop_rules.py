"""The remote desktop without a screen: choices, texts, rules."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

import bootstrap
from colab_local import desktop
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.desktop import look, packages, person, plan, secret, virtual
from colab_local.desktop.options import Options
from tests.conftest import SCREEN
from tests.support.desktop_machine import check_picture


@pytest.mark.parametrize("password", ["x", "short", "x" * 9, "x" * 40, ""])
def test_a_password_of_a_length_that_vnc_cannot_keep_is_refused_without_being_repeated(password: str) -> None:
    with pytest.raises(Failure) as refusal:
        secret.check(password)
    assert f"found {len(password)} characters, need 6 to 8" in refusal.value.what
    assert refusal.value.code == EXIT_USAGE
    assert len(password) < 3 or password not in refusal.value.what + refusal.value.hint


def test_passwords_of_six_to_eight_characters_pass_and_other_alphabets_do_not() -> None:
    assert secret.check("sechs6") == "sechs6"
    assert secret.check("eight888") == "eight888"
    with pytest.raises(Failure, match="disagree"):
        secret.check("pässwör")


def test_generated_passwords_differ_and_are_good() -> None:
    made = {secret.generate() for _ in range(200)}
    assert len(made) == 200
    assert all(secret.check(password) == password and len(password) == 8 for password in made)


def test_gnomes_own_vnc_server_is_no_virtual_desktops(tmp_path: Path) -> None:
    who = person.find()
    receipt = plan.Receipt(tmp_path, who, "virtual", SCREEN)
    with pytest.raises(Failure, match="need mirror") as refusal:
        virtual.wish(Options("virtual", tmp_path, vnc="gnome"), who, receipt)
    assert refusal.value.hint.endswith("--desktop mirror --vnc gnome") and refusal.value.code == EXIT_USAGE


def test_the_ssh_line_is_one_line_spelled_as_ssh_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 192.0.2.1 2222")
    line = desktop.laptop_line("ada", 5901, 55901)
    assert line == "ssh -o ExitOnForwardFailure=yes -L localhost:55901:localhost:5901 -p 2222 ada@192.0.2.1"
    steps = "\n".join(desktop.next_steps(line, 55901, is_rdp=False))
    for name in ("macOS", "Linux", "Windows", "vnc://localhost:55901", "localhost::55901"):
        assert name in steps
    over_rdp = "\n".join(desktop.next_steps(line, 53389, True, "mirror --vnc gnome"))
    assert "(Finder: --desktop mirror --vnc gnome)" in over_rdp and "vnc://" not in over_rdp
    line = desktop.laptop_line("ada", Path("/home/a da/.vnc/rfb-1.sock"), 55901)
    words = shlex.split(line)
    assert words[words.index("-L") + 1] == "localhost:55901:/home/a da/.vnc/rfb-1.sock"


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o4600])
def test_a_password_that_others_could_read_is_a_problem(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "passwd"
    path.touch(0o600)
    look.modes(os.getuid(), {path: 0o600})
    with pytest.raises(look.Problem, match="is not private"):
        look.modes(os.getuid() + 1, {path: 0o600})
    path.chmod(mode)
    with pytest.raises(look.Problem, match=f"found mode {mode:04o}"):
        look.modes(os.getuid(), {path: 0o600})


def test_a_picture_that_is_no_desktop_is_told_from_one(tmp_path: Path) -> None:
    """The eye of the other tests: black, X's own grey weave, and one colour with a pointer are no desktops."""
    path, size = tmp_path / "picture.png", (320, 200)
    weave = Image.new("RGB", (2, 2))
    weave.putdata([(0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0)])
    black, grey, pointed = (Image.new("RGB", size, colour) for colour in ("black", "grey", "#2e3440"))
    for x in range(0, 320, 2):
        for y in range(0, 200, 2):
            grey.paste(weave, (x, y))
    pointed.paste(Image.radial_gradient("L").resize((16, 16)), (150, 90))
    for picture in (black, grey, pointed):
        picture.save(path)
        assert check_picture(path, size, most=0.98)
    Image.radial_gradient("L").resize(size).save(path)
    assert check_picture(path, size) is None
    assert check_picture(path, (640, 400)) == "size (320, 200)"


def test_missing_packages_are_one_apt_command_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "here", lambda need: need == "xauth")
    monkeypatch.setattr(packages, "candidate", lambda package: package != "tigervnc-tools")
    monkeypatch.setattr("shutil.which", lambda name, **_: "/usr/bin/" + name)
    step = packages.Install(["Xtigervnc", "vncpasswd", "xauth", "openbox", "openbox"], SCREEN)
    assert step.names == ["tigervnc-standalone-server", "tigervnc-common", "openbox"]
    with pytest.raises(Failure) as refusal:
        step.demand()
    assert "apt-get install -y --no-install-recommends tigervnc-standalone-server tigervnc-common openbox" in (
        refusal.value.hint
    )
    assert refusal.value.code == EXIT_MACHINE


def test_every_package_named_here_exists_in_this_distribution() -> None:
    if not shutil.which("apt-cache") or not packages.candidate("bash"):
        pytest.skip("no package lists on this machine: apt-get update")
    known = packages.candidates(name for names in packages.NEEDS.values() for name in names)
    unknown = [need for need, names in packages.NEEDS.items() if not known & set(names)]
    assert unknown == []


def test_another_system_than_linux_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert bootstrap.main(["--desktop", "virtual", "--dry-run"]) == EXIT_MACHINE
    assert "found darwin, need linux" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="what root would do for others")
def test_root_believes_no_list_that_another_user_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "root" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(parents=True, mode=0o700)
    keys.write_text("mine")
    monkeypatch.setenv("HOME", str(tmp_path / "root"))
    entry = {"user": "root", "kind": "mirror", "how": "rdp", "rdp_files": [], "created": "2026"}
    path = plan.receipt_path(tmp_path / "theirs")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": 1, "desktops": [{**entry, "files": {}, "folders": [], "modes": {}}]}))
    os.chown(path, 12345, -1)
    with pytest.raises(Failure, match="another user owns it"):
        desktop.uninstall(tmp_path / "theirs", False, SCREEN)
    assert keys.read_text() == "mine"


@pytest.mark.parametrize("session", sorted(packages.SESSIONS))
@pytest.mark.parametrize("vnc", ["tiger", "tight"])
def test_every_need_has_a_package(session: str, vnc: str) -> None:
    needs = virtual.Wish(vnc, session, 1, "1600x900").needs
    assert [need for need in needs if not packages.NEEDS.get(need)] == []
