"""What is said where a desktop can't be made, found or ended; each as its own user's machine would be."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bootstrap
from colab_local.base import network
from colab_local.desktop import (
    files,
    keyring,
    look,
    mirror,
    owned,
    packages,
    person,
    rdp,
    service,
    virtual,
)
from tests.conftest import SCREEN
from tests.support.situations import Row, each, hold, paste, program, told, typed


def me(home: Path) -> person.Person:
    """Return the user who runs the tests, with another home folder."""
    return replace(person.find(), home=home)


def machine(at: Path, patch: pytest.MonkeyPatch, **programs: str) -> person.Person:
    """A machine with these programs alone; _ stands for - in a name."""
    for name, script in programs.items():
        program(at / "bin" / name.replace("_", "-"), script)
    for module in (packages, person):
        patch.setattr(module, "system_path", lambda: str(at / "bin"))
    patch.setenv("PATH", str(at / "bin"))
    return me(at)


def strangers(at: Path) -> None:
    """Another user's file lies in the home folder."""
    (at / ".vnc").mkdir()
    (at / ".vnc" / "passwd").touch()
    files.look(replace(me(at), uid=os.getuid() + 1), at / ".vnc" / "passwd")


def installing(at: Path, patch: pytest.MonkeyPatch, uid: int = 0, **programs: str) -> None:
    """Let apt bring something."""
    machine(at, patch, **programs)
    patch.setattr(os, "getuid", lambda: uid)
    patch.setattr(packages, "candidates", lambda names: set(names))
    packages.Install(["xset"], SCREEN).apply()


def homeless(at: Path, patch: pytest.MonkeyPatch) -> None:
    """An account of another user, whose home folder is not there."""
    entry = pwd.struct_passwd(("ada", "x", 4711, 4711, "", f"{at}/her home", "/bin/sh"))
    patch.setattr(pwd, "getpwnam", lambda name: entry)
    patch.setattr(os, "getuid", lambda: 0)
    person.find("ada")


def without_apt(at: Path, patch: pytest.MonkeyPatch) -> None:
    machine(at, patch)
    packages.Install(["xset"], SCREEN).demand()


def a_folder(at: Path) -> None:
    (at / "passwd").mkdir()
    files.look(me(at), at / "passwd")


def vino(at: Path) -> None:
    """A Vino whose settings do not stay as they were written."""
    dconf = SimpleNamespace(
        dump=str, read=dict, keys=lambda: ["network-interface"], load=lambda _: None, reset=lambda _: None
    )
    receipt = SimpleNamespace(entry={}, note=lambda **_: None)
    mirror.Settings(receipt, dconf, 5900, "password", False).apply()  # type: ignore[arg-type]


def rule(at: Path, patch: pytest.MonkeyPatch, **programs: str) -> None:
    """Set the firewall rule on a machine of this kind."""
    machine(at, patch, **programs)
    patch.setattr(rdp, "RULES", at / "etc" / "rules")
    patch.setattr(rdp, "UNIT", at / "etc" / "colab-local-rdp.service")
    (at / "etc").mkdir()
    rdp.Firewall(SimpleNamespace(note=lambda **_: None), keyring.RDP).apply()  # type: ignore[arg-type]


def off(patch: pytest.MonkeyPatch, uid: int) -> None:
    """Switch RDP off while it still listens."""
    patch.setattr(os, "getuid", lambda: uid)
    patch.setattr(rdp, "disable", lambda _: None)
    patch.setattr(look, "still_open", lambda _: True)
    patch.setattr(network, "listeners", lambda ports: [network.Listener("0.0.0.0", ports[0], 1, 61234)])  # noqa: S104
    ada = SimpleNamespace(name="ada", uid=61234)
    rdp.Unshare(SimpleNamespace(person=ada, entry={"rdp": True})).apply()  # type: ignore[arg-type]


def stubborn(patch: pytest.MonkeyPatch) -> None:
    """A server of the screen that heeds no signal."""
    patch.setattr(mirror, "stop", lambda _: None)
    patch.setattr(mirror, "server", lambda *_: SimpleNamespace(pid=4711))
    receipt = SimpleNamespace(person=None, entry={"screen": ":0", "how": "x11vnc"})
    mirror.StopServer(receipt).apply()  # type: ignore[arg-type]


def inside(at: Path, patch: pytest.MonkeyPatch) -> None:
    """The terminal of the tests is one of the desktop."""
    here: Any = SimpleNamespace(pid=os.getpid())
    patch.setattr(owned, "find", lambda *_: ([owned.Seen(here)], []))
    owned.demand_outside(me(at), 1)


def no_port(at: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "listeners", lambda ports: [network.Listener("127.0.0.1", ports[0], 1)])
    mirror.choose_port(me(at), ":77", "x11vnc", None)


def no_display(at: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(virtual, "taken_by", lambda *_: "a process holds it")
    virtual.choose_display(None, None, me(at))


def moved(at: Path, patch: pytest.MonkeyPatch, make: Callable[[Path], object]) -> str:
    """What the hint says puts the thing out of the way."""
    make(at / "my vnc")
    said = told(lambda: files.look(me(at), at / "my vnc" / "x"))
    paste(said)
    assert files.look(me(at), at / "my vnc" / "x") is None
    return said


def kept(who: person.Person) -> None:
    keyring.store(who, keyring.RDP, True, "secret12")


NFT = """case "$1" in
list) echo 'iifname != "lo" tcp dport 3389-3399 drop';;
esac"""
MOVE = "mv '{at}/my vnc' '{at}/my vnc'.orig"
APT = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends x11-xserver-utils"
# What is done in a folder, `at`; a part of the error, and the whole hint.
SAID: list[Row] = [
    (lambda at, patch: moved(at, patch, Path.touch), "{at}/my vnc is no folder (found something else)", MOVE),
    (
        lambda at, patch: moved(at, patch, lambda path: path.symlink_to("/etc")),
        "{at}/my vnc is no folder (found a symbolic link to /etc",
        MOVE,
    ),
    (
        lambda at, _: told(lambda: a_folder(at)),
        "{at}/passwd is no file (found something else)",
        "mv {at}/passwd {at}/passwd.orig",
    ),
    (
        lambda at, _: told(lambda: strangers(at)),
        "{at}/.vnc belongs to another user (found uid ",
        "sudo chown {me} {at}/.vnc",
    ),
    (
        lambda at, _: typed(
            bootstrap, "--desktop", "virtual", "--vnc-password-file", at / "my pw", "--prefix", at / "h"
        ),
        "the password file cannot be read (No such file or directory: {at}/my pw)",
        "ls -l '{at}/my pw'",
    ),
    (
        lambda at, _: typed(bootstrap, "--desktop", "virtual", "--desktop-user", "nobody-here"),
        "no user nobody-here on this machine",
        "getent passwd",
    ),
    (
        lambda at, patch: told(lambda: homeless(at, patch)),
        "the home folder of ada is missing (found no {at}/her home)",
        "sudo install -d -o ada -m 700 '{at}/her home'",
    ),
    (
        lambda at, patch: told(
            lambda: machine(at, patch, slow="exec /bin/sleep 9").run(["slow", "a b"], timeout=0.1)
        ),
        "slow a b gave no answer (waited 0.1 s)",
        "slow 'a b'",
    ),
    (
        lambda at, patch: told(lambda: without_apt(at, patch)),
        "programs are missing (found no xset)",
        "install what your distribution calls these Debian packages: x11-xserver-utils",
    ),
    (
        lambda at, patch: told(lambda: installing(at, patch, 7, apt_get="exit 9")),
        "sudo is not installed",
        "apt-get install -y --no-install-recommends x11-xserver-utils   # as root",
    ),
    (
        lambda at, patch: told(
            lambda: installing(
                at, patch, 7, apt_get="exit 9", sudo='[ "$1" = -n ] && shift; exec "$@"', env='exec /usr/bin/env "$@"'
            )
        ),
        "apt-get failed with code 9",
        "sudo env " + APT,
    ),
    (
        lambda at, patch: told(lambda: installing(at, patch, apt_get="exit 9", env='exec /usr/bin/env "$@"')),
        "apt-get failed with code 9",
        "env " + APT,
    ),
    (
        lambda at, patch: told(lambda: installing(at, patch, apt_get="exit 0", env='exec /usr/bin/env "$@"')),
        "apt-get succeeded, but something is still missing",
        "install what brings xset",
    ),
    (
        lambda at, patch: told(
            lambda: service.wait_for_manager(replace(machine(at, patch, systemctl="exit 1"), name="ada"), 0)
        ),
        "the systemd of ada does not answer (waited 0 s)",
        "sudo loginctl enable-linger ada   # or log in as ada itself, not with su",
    ),
    (
        lambda at, patch: told(lambda: no_display(at, patch)),
        "no display number is free (looked at :1 to :63)",
        "ls /tmp/.X11-unix",
    ),
    (
        lambda at, patch: told(lambda: virtual.encode(machine(at, patch, vncpasswd="echo no"), "password")),
        "vncpasswd made no password (found 3 bytes, need 8)",
        "echo password | vncpasswd -f | wc -c   # has to say 8",
    ),
    (
        lambda at, patch: told(lambda: inside(at, patch)),
        "this terminal is inside the desktop that is to be ended (display :1)",
        "log in over ssh and run the same command there",
    ),
    (
        lambda at, _: told(lambda: mirror.screen(me(at), 61)),
        "there is no X11 screen :61 (found ",
        "python3 bootstrap.py --desktop virtual",
    ),
    (
        lambda at, patch: told(lambda: no_port(at, patch)),
        "no port is free (looked at 5900 and 5950 to 5999)",
        "ss -ltn",
    ),
    (
        lambda at, _: told(lambda: vino(at)),
        "Vino's settings did not take (read back another network-interface)",
        f"dconf dump {mirror.DCONF}   # an administrator may have locked some; --desktop virtual needs none of them",
    ),
    (
        lambda _, patch: told(lambda: stubborn(patch)),
        "the server of display :0 did not end (process 4711)",
        "kill -KILL 4711   # then the same command again",
    ),
    (
        lambda at, patch: told(lambda: kept(machine(at, patch, grdctl="exit 1"))),
        "the password could not be kept (grdctl rdp set-credentials",
        "grdctl status",
    ),
    (
        lambda at, patch: told(lambda: rule(at, patch, nft="echo 'Operation not supported' >&2; exit 1")),
        "the firewall rule could not be set (Operation not supported)",
        rdp.FALLBACK,
    ),
    (
        lambda at, patch: told(lambda: rule(at, patch, nft=NFT, systemctl="echo no >&2; exit 1")),
        "systemctl daemon-reload failed: no",
        "systemctl status daemon-reload",
    ),
    (
        lambda _, patch: told(lambda: off(patch, 1000)),
        "removing the firewall rule needs root",
        "sudo python3 bootstrap.py",
    ),
    (
        lambda _, patch: told(lambda: off(patch, 0)),
        "RDP still listens, so its firewall rule stays",
        "systemctl --user stop " + rdp.SERVICE + "   # as ada, not as root",
    ),
]


@each(SAID)
def test_what_is_said(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(row, tmp_path, monkeypatch)
