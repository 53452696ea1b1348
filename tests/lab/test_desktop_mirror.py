"""Sharing the screen that is there: the real Vino, x0tigervncserver and x11vnc on a real X server (Xvfb), over ssh.

Each test machine has its own network, processes and /tmp (see hosts.py and desktop_machine.py).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.desktop_machine import (
    DesktopMachine,
    Done,
    Tunnel,
    User,
    check_picture,
    check_refusals,
    desktop_lab,
    missing_programs,
    vncdo,
)
from tests.support.hosts import Lab, needs_root, wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]
PATH = "/org/gnome/desktop/remote-access/"
SIZE = (1280, 800)
PASSWORD = "s3cret88"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    assert not missing_programs(), f"install what ci/apt-packages.txt names: {missing_programs()}"
    with desktop_lab() as made:
        yield made


def screen(user: User, session: str, bus: bool = True, tcp: bool = False) -> None:
    """Log the user in: an X server on :0 with a desktop in it, with or without a session bus or X over TCP."""
    listen = "-listen" if tcp else "-nolisten"
    user.spawn(["Xvfb", ":0", "-screen", "0", "{}x{}x24".format(*SIZE), listen, "tcp"])
    probe = ["sh", "-c", "DISPLAY=:0 xset q >/dev/null && echo up || :"]
    wait_for(lambda: "up" in user.run(probe, check=False), 30, "Xvfb")
    user.spawn([*(["dbus-run-session", "--"] if bus else []), session], DISPLAY=":0", XDG_SESSION_TYPE="x11")
    wait_for(lambda: bool(user.pids("xfdesktop" if session == "startxfce4" else session)), 60, session)


def dconf(user: User) -> dict[str, str]:
    """Vino's settings as they are on disk, keys and values."""
    lines = user.run(["dconf", "dump", PATH]).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def line_of(done: Done) -> str:
    found = re.search(r"ssh -o Exit.*", done.out)
    assert found, done
    return found.group()


def try_it(lab: Lab, line: str, password: str, picture: Path) -> None:
    """Log in through the tunnel, look at the picture; then be refused with other passwords and without one."""
    with Tunnel(lab, line) as tunnel:

        def drawn() -> bool:
            done = vncdo(lab.laptop, tunnel.local, password, "capture", str(picture))
            assert done.returncode == 0, done
            return check_picture(picture, SIZE) is None

        wait_for(drawn, 60, "a desktop in the picture")
        check_refusals(lab.laptop, tunnel.local, picture.parent)


def test_vino_with_a_session_bus(lab: Lab, tmp_path: Path) -> None:
    machine = DesktopMachine(lab.host("vinobox")).prepare()
    user = machine.user("vera", 4101, "home of vera")
    nobody = user.desktop("mirror", "--dry-run")
    assert nobody.code == 3 and "not logged in at this machine's screen" in nobody.err, nobody

    screen(user, "startxfce4")
    # The user's own settings and autostart entry must come back one day.
    own = "[/]\nalternative-port=uint16 5999\nnotify-on-connect=false\nvnc-password='keyring'\n"
    user.run(["dbus-run-session", "--", "dconf", "load", PATH], feed=own)
    before = dconf(user)
    assert before == {"alternative-port": "uint16 5999", "notify-on-connect": "false", "vnc-password": "'keyring'"}
    user.run(["sh", "-c", "mkdir -p ~/.config/autostart; echo '# mine' >~/.config/autostart/vino-server.desktop"])

    dry = user.desktop("mirror", "--dry-run")
    assert dry.code == 0, dry
    assert "-vnc-password='********'" not in dry.out.replace(" ", "") or "keyring" not in dry.out
    assert "+network-interface='lo'" in dry.out and "+authentication-methods=['vnc']" in dry.out
    assert dconf(user) == before

    with machine.watched() as seen:
        done = user.desktop("mirror", terminal=True)
    assert done.code == 0, done
    # Vino itself opens 0.0.0.0 and [::] for a moment; the next test shows that.
    assert seen == {("loopback", 5900)}
    found = re.search(r"shown this once\): (\S{8})\s", done.terminal)
    assert found, done
    password = found.group(1)
    assert password not in done.out + done.err
    assert all(password not in command for command in user.processes().values())
    receipt = user.run(["sh", "-c", "cat ~/.local/share/colab-local/receipts/desktop.json"])
    assert dconf(user)["vnc-password"].strip("'") not in receipt and password not in receipt
    assert user.run(["sh", "-c", "stat -c %a ~/.config/dconf"]).strip() == "700"

    try_it(lab, line_of(done), password, tmp_path / "vino.png")
    for port in (5900, 6000):
        argv = ["/usr/bin/python3", "-c", f"import socket; socket.create_connection(('vinobox', {port}), 5)"]
        assert "ConnectionRefusedError" in lab.laptop.run(argv, check=False).stderr

    again = user.desktop("mirror")
    assert again.code == 0 and "Nothing to do" in again.out, again

    # After the next log-in it is there again: the desktop itself starts it, as guarded as before.
    [session] = [pid for pid, line in user.processes().items() if "xfce4-session" in line.split()[0]]
    with machine.watched() as seen:
        user.run(["kill", str(session)])
        wait_for(lambda: not user.pids("xfce4-session") and not user.pids("vino-server"), 30, "the log-out")
        user.spawn(["dbus-run-session", "--", "startxfce4"], DISPLAY=":0", XDG_SESSION_TYPE="x11")
        wait_for(lambda: ("loopback", 5900) in machine.listeners(), 60, "Vino after the next log-in")
        again = user.desktop("mirror")
    assert again.code == 0 and "Nothing to do" in again.out, again
    assert seen == {("loopback", 5900)}

    # Even with its settings undone behind our back, Vino cannot open the port to the network any more.
    bus = user.run(["sh", "-c", "tr '\\0' '\\n' </proc/$(pgrep -u vera -x vino-server)/environ"])
    address = next(line.split("=", 1)[1] for line in bus.splitlines() if line.startswith("DBUS_SESSION_BUS_ADDRESS="))
    with machine.watched() as seen:
        user.run(["dconf", "reset", PATH + "network-interface"], DBUS_SESSION_BUS_ADDRESS=address)
        wait_for(lambda: ("loopback", 5900) not in machine.listeners(), 20, "Vino heard of the change")
        mended = user.desktop("mirror")
    assert mended.code == 0 and "set Vino's settings" in mended.out, mended
    assert seen == {("loopback", 5900)}

    gone = user.desktop("mirror", "--uninstall")
    assert gone.code == 0, gone
    assert dconf(user) == before
    assert user.run(
        ["sh", "-c", "cat ~/.config/autostart/*; ls -A ~/.config/autostart ~/.vnc 2>&1 | wc -l"]
    ).startswith("# mine")
    assert not user.pids("vino-server") and machine.listeners() == {("everywhere", 22)}


def test_vino_alone_opens_the_network_for_a_moment_and_ours_does_not(lab: Lab) -> None:
    """The reason for vino-loopback: with the very same settings, only the unguarded start shows 0.0.0.0."""
    machine = DesktopMachine(lab.host("rawbox")).prepare()
    user = machine.user("otto", 4102)
    screen(user, "openbox", bus=False)
    settings = "[/]\nauthentication-methods=['vnc']\nvnc-password='c2VjcmV0Nzg='\nnetwork-interface='lo'\n"
    user.run(["dbus-run-session", "--", "dconf", "load", PATH], feed=settings + "prompt-enabled=false\n")
    guard = str(machine.repo / "colab_local/desktop/templates/vino-loopback")
    vino = "/usr/libexec/vino-server"
    for start, expected in (
        ([vino], {("everywhere", 5900), ("loopback", 5900)}),
        (["/usr/bin/python3", guard, "5900", vino], {("loopback", 5900)}),
    ):
        with machine.watched() as seen:
            user.spawn(["dbus-run-session", "--", *start], DISPLAY=":0")
            wait_for(lambda: ("loopback", 5900) in machine.listeners(), 30, "Vino listens")
        assert seen == expected, start
        [pid] = [pid for pid, line in user.processes().items() if line.startswith(vino)]
        user.run(["kill", str(pid)])
        wait_for(lambda: not machine.listeners() - {("everywhere", 22)}, 20, "Vino ended")


def test_vino_without_a_bus_and_with_its_port_taken(lab: Lab, tmp_path: Path) -> None:
    machine = DesktopMachine(lab.host("buslessbox")).prepare()
    user, other = machine.user("nora", 4103), machine.user("olaf", 4104)
    other.spawn(["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "5900"])
    screen(user, "openbox", bus=False)
    user.run(["sh", "-c", "DISPLAY=:0 xterm -e sleep 600 >/dev/null 2>&1 &"])
    with machine.watched() as seen:
        done = user.desktop("mirror", "--display", "0", "--vnc-password-file", "-", "--json", feed=PASSWORD)
    assert done.code == 0, done
    result = json.loads(done.out)
    assert (result["how"], result["port"], result["local_port"]) == ("vino", 5950, 55950)
    assert seen == {("loopback", 5900), ("loopback", 5950)}  # the first is the other user's
    with Tunnel(lab, result["ssh"]) as tunnel:
        picture = tmp_path / "vino.png"
        assert vncdo(lab.laptop, tunnel.local, PASSWORD, "capture", str(picture)).returncode == 0
    again = user.desktop("mirror", "--display", "0")
    assert again.code == 0 and "Nothing to do" in again.out, again
    assert user.desktop("mirror", "--uninstall").code == 0
    assert dconf(user) == {} and not user.pids("vino-server")


def test_a_vino_that_is_open_to_all_is_tamed(lab: Lab) -> None:
    """Somebody's Vino as the article leaves it: every address, no password."""
    machine = DesktopMachine(lab.host("openbox1")).prepare()
    user = machine.user("ludo", 4105)
    screen(user, "openbox", bus=False, tcp=True)
    own = "[/]\nauthentication-methods=['none']\nprompt-enabled=false\nrequire-encryption=false\n"
    user.run(["dbus-run-session", "--", "dconf", "load", PATH], feed=own)
    user.spawn(["dbus-run-session", "--", "/usr/libexec/vino-server"], DISPLAY=":0")
    wait_for(lambda: ("everywhere", 5900) in machine.listeners(), 30, "Vino on every address")
    done = user.desktop("mirror", "--display", "0", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 0, done
    # The port of X itself is the display manager's, so it is told and not closed.
    assert machine.listeners() == {("everywhere", 22), ("loopback", 5900), ("everywhere", 6000)}
    assert re.search(r"note: the screen's own X server listens on TCP \(.*:6000\)", done.out), done
    assert "password log-in is offered, log-in without one is not" in done.out


def test_settings_that_an_administrator_has_locked_are_an_error_and_nothing_is_shared(lab: Lab) -> None:
    machine = DesktopMachine(lab.host("lockbox")).prepare()
    machine.own("/etc/dconf")
    locks = """
umask 022; cd /etc/dconf; mkdir -p profile db/local.d/locks
printf 'user-db:user\\nsystem-db:local\\n' >profile/user
printf "[org/gnome/desktop/remote-access]\\nnetwork-interface=''\\n" >db/local.d/vino
echo /org/gnome/desktop/remote-access/network-interface >db/local.d/locks/vino
dconf update
"""
    machine.host.run(["sh", "-ec", locks])
    user = machine.user("lucy", 4110)
    screen(user, "openbox", bus=False)
    before = dconf(user)
    done = user.desktop("mirror", "--display", "0", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 1 and "Vino's settings could not be written" in done.err, done
    assert "non-writable" in done.err and "hint: dconf dump" in done.err
    assert dconf(user) == before
    assert machine.listeners() == {("everywhere", 22)}


@pytest.mark.parametrize(
    ("server", "hidden"),
    [
        ("x0tigervncserver", ["/usr/libexec/vino-server"]),
        ("x11vnc", ["/usr/libexec/vino-server", "/usr/bin/x0tigervncserver"]),
    ],
)
def test_other_servers_where_there_is_no_vino(lab: Lab, tmp_path: Path, server: str, hidden: list[str]) -> None:
    machine = DesktopMachine(lab.host(f"{server}box")).prepare()
    machine.hide(*hidden)
    user = machine.user("xeno", 4106, "x e n o")
    screen(user, "startxfce4")
    with machine.watched() as seen:
        done = user.desktop("mirror", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 0, (done, user.run(["sh", "-c", "cat ~/.vnc/mirror.log; ps aux"], check=False))
    assert f"{server} has been running" in done.out
    assert seen == {("loopback", 5900)}
    try_it(lab, line_of(done), PASSWORD, tmp_path / "mirror.png")
    # What the desktop would start at the next log-in is what runs now.
    entry = user.run(["sh", "-c", "cat ~/.config/autostart/vnc-mirror.desktop"])
    assert f'Exec="{user.home}/.vnc/vnc-mirror" 5900' in entry
    again = user.desktop("mirror")
    assert again.code == 0 and "Nothing to do" in again.out, again
    gone = user.desktop("mirror", "--uninstall")
    assert gone.code == 0 and machine.listeners() == {("everywhere", 22)}, gone
    assert user.run(["sh", "-c", "ls -d ~/.vnc ~/.config/autostart 2>/dev/null || :"]) in (
        "",
        f"{user.home}/.config/autostart\n",
    )


def test_a_mirror_that_is_open_to_the_network_is_found_out_stopped_and_not_started_again(lab: Lab) -> None:
    machine = DesktopMachine(lab.host("leakybox")).prepare()
    machine.hide("/usr/libexec/vino-server", "/usr/bin/x0tigervncserver", "/usr/bin/X0tigervnc")
    leaky = '#!/bin/bash\nfor a; do shift; [ "$a" = -localhost ] || set -- "$@" "$a"; done\n'
    machine.sabotage("/usr/bin/x11vnc", leaky + 'exec -a x11vnc x11vnc.real "$@"\n')
    user = machine.user("lea", 4109)
    screen(user, "openbox", bus=False)
    done = user.desktop("mirror", "--display", "0", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 1 and "listens beyond loopback (0.0.0.0:5900" in done.err, done
    assert "STILL OPEN" not in done.err
    assert machine.listeners() == {("everywhere", 22)}
    assert user.run(["sh", "-c", "ls ~/.config/autostart"]) == ""


# --- Wayland ----------------------------------------------------------------------------------------------


def test_a_wayland_session_is_refused_without_a_firewall_and_the_reason_said(lab: Lab) -> None:
    machine = DesktopMachine(lab.host("waylandbox")).prepare()
    user = machine.user("wim", 4107)
    user.spawn(["sleep", "600"], XDG_SESSION_TYPE="wayland", WAYLAND_DISPLAY="wayland-0", XDG_CURRENT_DESKTOP="GNOME")
    wait_for(lambda: bool(user.pids("sleep 600")), 10, "the session")
    done = user.desktop("mirror", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 3, done
    assert re.search(r"error: .*(only as an argument|cannot be bound to loopback|found none)", done.err), done
    assert "--desktop virtual" in done.err
    assert user.run(["sh", "-c", "ls -A ~"]).split() == [".ssh"]


RDP = """
import sys
sys.path.insert(0, sys.argv[1])
import bootstrap
from colab_local.desktop import keyring, look, rdp
protocol = keyring.VNC if sys.argv[2] == "5900" else keyring.RDP
assert not rdp.firewall_is_up(protocol)
rdp.load_firewall(protocol)
rdp.load_firewall(protocol)   # a second time changes nothing
assert rdp.firewall_is_up(protocol)
print("up")
try:
    look.refused_from_outside(int(sys.argv[2]))  # it still answers: from here, the way is loopback
except look.Problem as problem:
    print(problem)
"""


@pytest.mark.parametrize("port", [3389, 5900])
def test_the_firewall_rule_lets_loopback_in_and_nobody_else(lab: Lab, port: int) -> None:
    """The rule in front of RDP or VNC, in the real kernel: a server on all addresses, tried from both sides."""
    name = f"box{port}"
    machine = DesktopMachine(lab.host(name)).prepare()
    machine.users["root"].spawn(["/usr/bin/python3", "-m", "http.server", "--bind", "0.0.0.0", str(port)])  # noqa: S104
    wait_for(lambda: ("everywhere", port) in machine.listeners(), 20, f"a server on {port}")
    outside = [
        "/usr/bin/python3",
        "-c",
        f"import socket; socket.create_connection(('{name}', {port}), 3); print('in')",
    ]
    assert "in" in lab.laptop.run(outside, check=False).stdout  # without the rule it is open
    said = machine.users["root"].run(["/usr/bin/python3", "-c", RDP, str(machine.repo), str(port)])
    assert said == f"up\nit accepts connections at this machine's network address {machine.host.address}\n"
    closed = lab.laptop.run(outside, check=False)
    assert "in" not in closed.stdout and "timed out" in closed.stderr.lower(), closed
    assert machine.host.listens(port)
    listed = machine.host.run(["nft", "list", "ruleset"]).stdout
    assert listed.count("drop") == 1


def test_a_kernel_that_refuses_the_rule_keeps_rdp_off(lab: Lab) -> None:
    machine = DesktopMachine(lab.host("nonftbox")).prepare()
    user = machine.user("ned", 4108)  # no root, no rule
    argv = user.command(["/usr/bin/python3", "-c", RDP, str(machine.repo), "3389"])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "the firewall rule could not be set" in done.stderr and "stays off" in done.stderr
