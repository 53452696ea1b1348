"""The virtual desktop with the real TightVNC and TigerVNC servers, Xfce, ssh and a real VNC client.

Each test machine has its own network, processes and /tmp (see hosts.py and desktop_machine.py). The tests of one
machine follow each other in the order of this file: start, look, crash, uninstall.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from colab_local.desktop import virtual
from tests.support.browsers import Chromium
from tests.support.desktop_machine import (
    PYTHON,
    REPO,
    DesktopMachine,
    Done,
    Tunnel,
    User,
    check_picture,
    check_refusals,
    copied,
    copy,
    desktop_lab,
    missing_programs,
    viewer,
    vncdo,
)
from tests.support.hosts import Lab, needs_root, wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]
PASSWORD = "s3cret88"
OWN_XSTARTUP = "#!/bin/sh\n# my own\nexec my-desktop\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    assert not missing_programs(), f"install what ci/apt-packages.txt names: {missing_programs()}"
    with desktop_lab() as made:
        yield made


@dataclass
class Started:
    """A virtual desktop as the first run left it. seen: what listened at any moment of the start."""

    user: User
    first: Done
    seen: set[tuple[str, int]]
    password: str
    innocent: int = 0

    @property
    def line(self) -> str:
        """The printed ssh line."""
        found = re.search(r"ssh -o Exit.*", self.first.out)
        assert found, self.first
        return found.group()


@pytest.fixture(scope="module")
def tiger(lab: Lab) -> Started:
    """TigerVNC in a HOME with spaces, random password, nobody's session bus."""
    machine = DesktopMachine(lab.host("tigerbox")).prepare()
    user = machine.user("alice", 4001, "home of alice")
    with machine.watched() as seen:
        done = user.desktop("virtual", terminal=True)
    assert done.code == 0, done
    found = re.search(r"shown this once\): (\S{8})\s", done.terminal)
    assert found, done
    return Started(user, done, set(seen), found.group(1))


@pytest.fixture(scope="module")
def tight(lab: Lab) -> Started:
    """TightVNC where everything that can lie about is lying about.

    A stale lock and socket of a dead X server, a pid file that names an innocent process, an xstartup of the
    user's own that is not executable, a ~/.vnc that others may read.
    """
    machine = DesktopMachine(lab.host("tightbox")).prepare()
    user = machine.user("bob", 4002)
    user.spawn(["sleep", "7777"])
    wait_for(lambda: len(user.pids("sleep 7777")) == 1, 10, "the innocent process")
    [innocent] = user.pids("sleep 7777")
    user.run(["sh", "-c", "mkdir -m 755 ~/.vnc; cat >~/.vnc/xstartup; chmod 644 ~/.vnc/xstartup"], feed=OWN_XSTARTUP)
    user.run(["sh", "-c", f"echo {innocent} >~/.vnc/tightbox:1.pid"])
    user.run(["sh", "-c", "sleep 0 & pid=$!; wait; printf '%10d\\n' $pid >/tmp/.X1-lock"])
    server = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/.X11-unix/X1')"
    machine.host.run(["mkdir", "-m", "1777", "/tmp/.X11-unix"])
    user.run(["/usr/bin/python3", "-c", server])
    with machine.watched() as seen:
        done = user.desktop("virtual", "--vnc", "tight", "--vnc-password-file", "-", feed=PASSWORD + "\n")
    assert done.code == 0, done
    return Started(user, done, set(seen), PASSWORD, innocent)


@pytest.fixture(params=["tiger", "tight"])
def started(request: pytest.FixtureRequest) -> Started:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Started)
    return found


def server_of(started: Started) -> int:
    """The process id of the user's VNC server."""
    [pid] = [pid for pid, line in started.user.processes().items() if re.match(r"Xti(ger|ght)vnc :1 ", line)]
    return pid


def test_nothing_was_open_to_the_network_at_any_moment_of_the_start(started: Started) -> None:
    assert started.seen == {("loopback", 5901)}
    assert started.user.machine.listeners() == {("everywhere", 22), ("loopback", 5901)}


def test_the_password_is_shown_on_the_terminal_only(tiger: Started) -> None:
    assert tiger.first.terminal.count(tiger.password) == 1
    assert tiger.password not in tiger.first.out + tiger.first.err
    user = tiger.user
    everything = user.run(["sh", "-c", "cat ~/.vnc/*.log ~/.vnc/*.conf ~/.local/share/colab-local/receipts/*"])
    assert "5901" in everything  # the log and the receipt were read
    assert tiger.password not in everything
    assert all(tiger.password not in line for line in user.processes().values())
    environments = user.run(["sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null || :"])
    assert "VNCDESKTOP=:1" in environments
    assert tiger.password not in environments


def test_modes_are_private_and_files_the_users(started: Started) -> None:
    text = started.user.run(["sh", "-c", "cd ~/.vnc && stat -c '%a %u %n' . *"])
    found = {name: (mode, int(uid)) for mode, uid, name in (line.split(" ", 2) for line in text.splitlines())}
    uid = started.user.uid
    assert found["."] == ("700", uid)
    assert found["passwd"] == ("600", uid)
    assert found["xstartup"] == ("700", uid)
    assert found["vnc-session"] == ("700", uid)
    assert found["Xauthority-1"] == ("600", uid)
    assert {owner for _, owner in found.values()} == {uid}


def test_log_in_through_the_printed_ssh_line_shows_a_desktop(lab: Lab, started: Started, tmp_path: Path) -> None:
    picture = tmp_path / "desktop.png"
    with Tunnel(lab, started.line) as tunnel:
        assert tunnel.local == 55901

        def drawn() -> bool:
            done = vncdo(lab.laptop, tunnel.local, started.password, "capture", str(picture))
            assert done.returncode == 0, done
            return check_picture(picture, (1600, 900)) is None

        # Panel and wallpaper take a moment after the session is up.
        wait_for(
            drawn,
            60,
            f"a desktop in the picture, not: {check_picture(picture, (1600, 900)) if picture.exists() else ''}",
        )


def test_text_is_copied_both_ways_and_letters_have_one_size(lab: Lab, started: Started) -> None:
    """TightVNC knows X's cut buffer alone: autocutsel carries between that and what programs use."""
    user = started.user
    inside = ["env", "DISPLAY=:1", f"XAUTHORITY={user.home}/.vnc/Xauthority-1"]
    assert "resolution:    96x96 dots per inch" in user.run([*inside, "xdpyinfo"])
    assert re.search(r"^Xft.dpi:\s+96$", user.run([*inside, "xrdb", "-query"]), re.MULTILINE)

    def is_there(selection: str) -> bool:
        paste = [*inside, "timeout", "5", "xclip", "-o", "-selection", selection]
        return user.run(paste, check=False) == "copied on the laptop"

    with Tunnel(lab, started.line) as tunnel, lab.laptop.network(), viewer(tunnel.local, started.password) as rfb:
        copy(rfb, "copied on the laptop")
        for selection in ("clipboard", "primary"):
            wait_for(partial(is_there, selection), 15, f"the text in {selection}")
        keep = "xclip -selection clipboard >/dev/null 2>&1"
        user.run([*inside, "sh", "-c", keep], feed="copied on the desktop")
        assert "copied on the desktop" in copied(rfb)


# What is on noVNC's canvas: its width and height, and how many colours.
CANVAS = """(() => {
    const shown = document.querySelector("#noVNC_container canvas");
    if (!shown || !shown.width) return null;
    const pixels = new Uint32Array(shown.getContext("2d").getImageData(0, 0, shown.width, shown.height).data.buffer);
    return [shown.width, shown.height, new Set(pixels).size];
})()"""


def check_in_browser(lab: Lab, user: User, password: str, folder: Path, at_socket: bool = False) -> None:
    """Do what the chapter "In the browser" of docs/desktop.md says, its lines as they stand there."""
    chapter = (REPO / "docs/desktop.md").read_text().partition("## In the browser")[2].partition("\n## ")[0]
    lines = [found.split("   ")[0] for found in re.findall(r"^(?:websockify|ssh) .*", chapter, re.MULTILINE)]
    [serve] = [line for line in lines if "websockify" in line and ("--unix-target" in line) == at_socket]
    before = user.machine.listeners()
    server = user.spawn(["sh", "-c", "exec " + serve])
    try:
        wait_for(lambda: ("loopback", 6080) in user.machine.listeners(), 30, "websockify")
        assert user.machine.listeners() - before == {("loopback", 6080)}
        line = lines[-1].replace("ada@gpubox", f"{user.name}@{user.machine.host.name}")
        with Tunnel(lab, line), lab.laptop.network():
            browser = Chromium(folder, 1)
            try:
                browser.open("http://localhost:6080/vnc.html")
                browser.evaluate('document.getElementById("noVNC_connect_button").click()')
                asked = 'document.getElementById("noVNC_credentials_dlg").classList.contains("noVNC_open")'
                wait_for(lambda: bool(browser.evaluate(asked)), 30, "the question for the password")
                browser.evaluate(f'document.getElementById("noVNC_password_input").value = "{password}"')
                browser.evaluate('document.getElementById("noVNC_credentials_button").click()')

                def shown() -> bool:
                    width, height, colours = browser.evaluate(CANVAS) or (0, 0, 0)
                    return (width, height) == (1600, 900) and colours > 100

                wait_for(shown, 60, "the desktop in the browser")
            finally:
                browser.close()
    finally:
        user.run(["pkill", "-f", "websockify"], check=False)
        server.wait(30)


def test_a_browser_on_the_laptop_shows_the_desktop(lab: Lab, tiger: Started, tmp_path: Path) -> None:
    check_in_browser(lab, tiger.user, tiger.password, tmp_path)


def test_a_terminal_opens_and_takes_what_is_typed(lab: Lab, tiger: Started) -> None:
    with Tunnel(lab, tiger.line) as tunnel:
        keys = ["key", "ctrl-alt-t", "pause", "4", "typefile", str(typed(lab)), "key", "enter", "pause", "1"]
        for _ in range(3):  # the first key may come before Xfce has grabbed it
            done = vncdo(lab.laptop, tunnel.local, tiger.password, *keys)
            assert done.returncode == 0, done
            if "typed-here" in tiger.user.run(["sh", "-c", "ls ~"]):
                return
    pytest.fail(f"nothing was typed: {list(tiger.user.processes().values())}")


def typed(lab: Lab) -> Path:
    """A file with the command to type."""
    path = lab.folder / "typed"
    path.write_text("touch typed-here")
    return path


def test_a_second_run_changes_nothing(lab: Lab, started: Started) -> None:
    user = started.user
    before = user.run(
        ["sh", "-c", "cd ~ && find .vnc .local -type f ! -name '*.log' -exec stat -c '%n %i %Y %a' {} + | sort"]
    )
    pid = server_of(started)
    done = user.desktop("virtual")
    assert done.code == 0, done
    assert "Nothing to do" in done.out
    assert (
        user.run(
            ["sh", "-c", "cd ~ && find .vnc .local -type f ! -name '*.log' -exec stat -c '%n %i %Y %a' {} + | sort"]
        )
        == before
    )
    assert server_of(started) == pid
    dry = user.desktop("virtual", "--dry-run")
    assert dry.code == 0 and "Nothing to do" in dry.out
    # Nor does the server take our looks for attacks: TigerVNC shuts everybody out after five.
    for _ in range(6):
        assert user.desktop("virtual").code == 0
    with Tunnel(lab, started.line) as tunnel:
        login = vncdo(lab.laptop, tunnel.local, started.password, "capture", str(lab.folder / "again.png"))
        assert login.returncode == 0, login


def test_a_new_password_holds_at_once_and_the_old_one_no_more(lab: Lab, tiger: Started) -> None:
    pid, old = server_of(tiger), tiger.password
    done = tiger.user.desktop("virtual", "--reset-vnc-password", terminal=True)
    found = re.search(r"shown this once\): (\S{8})\s", done.terminal)
    assert done.code == 0 and found, done
    tiger.password = found.group(1)
    assert tiger.password != old and server_of(tiger) == pid
    with Tunnel(lab, tiger.line) as tunnel:
        refused = vncdo(lab.laptop, tunnel.local, old, "capture", str(lab.folder / "old.png"))
        assert "Authentication failure" in refused.stderr, refused
        login = vncdo(lab.laptop, tunnel.local, tiger.password, "capture", str(lab.folder / "new.png"))
        assert login.returncode == 0, login


def test_wrong_empty_and_no_passwords_are_refused(lab: Lab, started: Started) -> None:
    with Tunnel(lab, started.line) as tunnel:
        check_refusals(lab.laptop, tunnel.local, lab.folder)


def test_other_machines_cannot_connect(lab: Lab, started: Started) -> None:
    address = started.user.machine.host.address
    for port in (5901, 6001):
        argv = ["/usr/bin/python3", "-c", f"import socket; socket.create_connection(({address!r}, {port}), 5)"]
        done = lab.laptop.run(argv, check=False)
        assert "ConnectionRefusedError" in done.stderr, (port, done.stderr)


def test_the_innocent_process_lives_and_the_users_xstartup_is_kept(tight: Started) -> None:
    assert tight.user.pids("sleep 7777") == [tight.innocent]
    text = tight.user.run(["sh", "-c", "cat ~/.vnc/xstartup.orig-*; ls ~/.vnc"])
    assert text.startswith(OWN_XSTARTUP)
    assert "tightbox:1.pid" in text  # not ours: neither trusted nor removed


def test_a_change_of_settings_waits_until_the_user_restarts(tight: Started) -> None:
    pid = server_of(tight)
    dry = tight.user.desktop("virtual", "--geometry", "1280x720", "--dry-run")
    assert "-VNC_GEOMETRY=1600x900" in dry.out and "+VNC_GEOMETRY=1280x720" in dry.out
    for options in (["--session", "openbox"], ["--session", "xfce", "--geometry", "1280x720"]):
        done = tight.user.desktop("virtual", *options)
        assert done.code == 0 and "keeps its old settings until" in done.out, done
        assert server_of(tight) == pid


def test_the_server_comes_back_after_kill_9(lab: Lab, tight: Started, tmp_path: Path) -> None:
    user = tight.user
    old = server_of(tight)
    user.run(["kill", "-9", str(old)])
    wait_for(lambda: not user.pids("vnc-session 1"), 20, "the session ends with its server")
    # What a killed server leaves behind: the tightvncserver wrapper refuses to start over it.
    assert user.run(["sh", "-c", "ls /tmp/.X1-lock /tmp/.X11-unix/X1"]).split() == [
        "/tmp/.X1-lock",
        "/tmp/.X11-unix/X1",
    ]
    with user.machine.watched() as seen:
        done = user.desktop("virtual", "--geometry", "1280x720")
    assert done.code == 0 and "start the desktop on display :1" in done.out, done
    assert set(seen) == {("loopback", 5901)}
    assert server_of(tight) != old
    assert user.pids("sleep 7777") == [tight.innocent]
    picture = tmp_path / "desktop.png"
    with Tunnel(lab, tight.line) as tunnel:
        assert vncdo(lab.laptop, tunnel.local, PASSWORD, "pause", "2", "capture", str(picture)).returncode == 0
    assert check_picture(picture, (1280, 720)) is None


@pytest.mark.parametrize(
    ("number", "line"),
    [(7, "tightvncserver :7 -localhost -nolisten tcp"), (8, "tigervncserver :8 -localhost yes")],
)
def test_by_hand_the_wrapper_scripts_run_the_same_xstartup(
    lab: Lab, tight: Started, tmp_path: Path, number: int, line: str
) -> None:
    """The article's command in the right order, as README.md gives it. TigerVNC's ends with a script that ends."""
    user, machine = tight.user, tight.user.machine
    before = machine.listeners()
    picture = tmp_path / "byhand.png"
    with machine.watched() as seen:
        user.run(["sh", "-c", f"{line} >/dev/null 2>&1 </dev/null"])
        with Tunnel(lab, f"ssh -L localhost:{55900 + number}:localhost:{5900 + number} bob@tightbox") as tunnel:
            wait_for(
                lambda: (
                    vncdo(lab.laptop, tunnel.local, PASSWORD, "capture", str(picture)).returncode == 0
                    and check_picture(picture, Image.open(picture).size) is None
                ),
                60,
                "a desktop in the picture",
            )
    assert seen - before == {("loopback", 5900 + number)}
    user.run(["sh", "-c", f"{line.split()[0]} -kill :{number}; rm ~/.vnc/tightbox:{number}.*"])
    wait_for(lambda: machine.listeners() == before, 20, "its end")


def test_a_second_user_gets_the_next_display(lab: Lab, tight: Started) -> None:
    machine = tight.user.machine
    second = machine.user("eve", 4003)
    # Somebody else's dead lock on :2, and a server without a lock on the port of :3.
    tight.user.run(["sh", "-c", "sleep 0 & pid=$!; wait; printf '%10d\\n' $pid >/tmp/.X2-lock"])
    tight.user.spawn(["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "5903"])
    wait_for(lambda: ("loopback", 5903) in machine.listeners(), 20, "the server on 5903")
    taken = second.desktop("virtual", "--display", "1", "--session", "openbox")
    assert taken.code == 6 and "display :1 is taken" in taken.err and "--display 4" in taken.err, taken
    done = second.desktop("virtual", "--session", "openbox", "--vnc-password-file", "-", "--json", feed="evespass\n")
    assert done.code == 0, done
    result = json.loads(done.out)
    assert (result["display"], result["port"], result["local_port"]) == (4, 5904, 55904)
    # X itself is open to whoever has the cookie, and nobody else has it.
    theirs = second.run(["sh", "-c", "DISPLAY=:1 xset q 2>&1 || :"])
    assert "unable to open display" in theirs
    with Tunnel(lab, result["ssh"]) as tunnel:
        mine = vncdo(lab.laptop, tunnel.local, "evespass", "capture", str(lab.folder / "eve.png"))
        assert mine.returncode == 0, mine
        refused = vncdo(lab.laptop, tunnel.local, PASSWORD, "capture", str(lab.folder / "no.png"))
        assert refused.returncode != 0
    said = second.run([PYTHON, str(machine.repo / "bootstrap.py"), "--uninstall", "--yes"])  # everything of theirs
    assert "stop the desktop on display :4" in said and not second.pids("vnc")
    assert second.run(["sh", "-c", "ls -d ~/.vnc ~/.local/share/colab-local 2>/dev/null || :"]) == ""
    assert tight.user.pids("vnc-session 1"), "the other user's desktop lives on"


def test_uninstall_stops_it_and_puts_the_users_files_back(started: Started) -> None:
    user = started.user
    user.run(["sh", "-c", "echo notes >~/.vnc/my-notes"])
    dry = user.desktop("virtual", "--uninstall", "--dry-run")
    assert dry.code == 0 and "stop the desktop on display :1" in dry.out
    assert user.pids("vnc-session 1")
    done = user.desktop("virtual", "--uninstall")
    assert done.code == 0, done
    assert user.machine.listeners() - {("loopback", 5903)} == {("everywhere", 22)}

    def left() -> list[str]:
        # A gpg-agent belongs to the account, whoever asked for it first.
        return [line for line in user.processes().values() if "gpg-agent" not in line and "http.server" not in line]

    # ssh-agent looks every 10 s whether its desktop is still there.
    wait_for(lambda: left() == (["sleep 7777"] if started.innocent else []), 25, f"all processes ended, not {left()}")
    names = set(user.run(["sh", "-c", "ls -A ~/.vnc"]).split())
    ours = user.run(["sh", "-c", "test -e ~/.local/share/colab-local && ls -RA ~/.local/share/colab-local || :"])
    assert ours == ""
    if started.innocent:
        assert names == {"my-notes", "tightbox:1.pid", "xstartup"}
        assert (
            user.run(["sh", "-c", "cat ~/.vnc/xstartup; stat -c %a ~/.vnc ~/.vnc/xstartup"])
            == OWN_XSTARTUP + "755\n644\n"
        )
    else:
        assert names == {"my-notes"}
    again = user.desktop("virtual", "--uninstall")
    assert again.code == 0 and "Nothing to do" in again.out


@pytest.fixture(scope="module")
def other(lab: Lab) -> User:
    return DesktopMachine(lab.host("otherbox")).prepare().user("olga", 4005)


@pytest.mark.parametrize(
    ("session", "vnc", "program"),
    [
        ("lxde", "tiger", "lxpanel"),
        ("lxde", "tight", "lxpanel"),
        ("gnome-flashback", "tiger", "gnome-panel"),
        ("gnome-flashback", "tight", "gnome-panel"),
        ("openbox", "tight", "openbox"),
    ],
)
def test_other_desktops_and_both_servers(
    lab: Lab, other: User, tmp_path: Path, session: str, vnc: str, program: str
) -> None:
    done = other.desktop("virtual", "--session", session, "--vnc", vnc, "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 0, done
    found = re.search(r"ssh -o Exit.*", done.out)
    assert found
    picture = tmp_path / f"{session}.png"
    with Tunnel(lab, found.group()) as tunnel:

        def drawn() -> bool:
            vncdo(lab.laptop, tunnel.local, PASSWORD, "capture", str(picture))
            return check_picture(picture, (1600, 900), most=0.98) is None  # panels and an empty desktop

        wait_for(drawn, 30, f"panels or windows of {session}")
    assert other.pids(program)
    assert other.desktop("virtual", "--uninstall").code == 0
    wait_for(lambda: not other.pids(program) and not other.pids("vnc"), 20, "the end of all processes")


def test_nothing_survives_whatever_dies_first(other: User) -> None:
    """Without systemd: the X server is killed, then the session; jobs that were detached go on."""
    options = ["--session", "xfce", "--vnc", "tiger", "--vnc-password-file", "-"]
    assert other.desktop("virtual", *options, feed=PASSWORD).code == 0
    [session] = other.pids("xfce4-session")
    environ = other.run(["cat", f"/proc/{session}/environ"]).split("\0")
    inside = ["env", "-i", *(pair for pair in environ if "=" in pair)]
    other.run([*inside, "sh", "-c", "setsid nohup sleep 4321 >/dev/null 2>&1 </dev/null &"])
    [job] = other.pids("sleep 4321")

    def left() -> dict[int, str]:
        return {pid: words for pid, words in other.processes().items() if "gpg-agent" not in words}

    wait_for(lambda: bool(other.pids("xfconfd")), 20, "what the private bus starts")
    other.run(["pkill", "-KILL", "-U", str(other.uid), "-x", "Xtigervnc"])
    wait_for(lambda: set(left()) == {job}, 30, f"the end of all but the job, not {left()}")

    assert other.desktop("virtual").code == 0
    old = set(left()) - {job}
    other.run(["pkill", "-KILL", "-U", str(other.uid), "-x", "vnc-session"])
    assert other.pids("Xtigervnc"), "it holds the display and the port"
    again = other.desktop("virtual", "--display", "1")
    assert again.code == 0 and "start the desktop on display :1" in again.out, again
    assert not old & set(left()), left()
    other.run(["pkill", "-KILL", "-U", str(other.uid), "-x", "vnc-session"])
    gone = other.desktop("virtual", "--uninstall")
    assert gone.code == 0 and f"{job} sleep" in gone.out, gone
    assert set(left()) == {job}, left()
    assert other.machine.listeners() == {("everywhere", 22)}
    assert other.run(["sh", "-c", "ls -d ~/.vnc ~/.local/share/colab-local 2>/dev/null || :"]) == ""
    other.run(["kill", str(job)])


def test_what_would_not_end_keeps_its_files_and_its_list(other: User) -> None:
    """A process that holds the port and hides from its own user: then uninstall says so, and removes nothing."""
    assert other.desktop("virtual", "--session", "openbox", "--vnc-password-file", "-", feed=PASSWORD).code == 0
    hide = (
        "import ctypes, signal, socket, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); s = socket.socket(); "
        "s.setsockopt(1, 2, 1); s.setsockopt(1, 15, 1)\n"
        "while True:\n try: s.bind(('127.0.0.1', 5901)); break\n except OSError: time.sleep(0.05)\n"
        "s.listen(); time.sleep(600)"
    )
    holder = other.spawn([PYTHON, "-c", hide])
    other.run(["pkill", "-TERM", "-U", str(other.uid), "-x", "vnc-session"])
    wait_for(lambda: not other.pids("Xtigervnc :"), 20, "the end of the desktop")
    wait_for(lambda: ("loopback", 5901) in other.machine.listeners(), 20, "the other one on its port")
    done = other.desktop("virtual", "--uninstall")
    assert done.code == 1 and "port 5901" in done.err and "Nothing was removed" in done.err, done
    assert other.run(["sh", "-c", "ls ~/.vnc/passwd ~/.local/share/colab-local/receipts/desktop.json"])
    holder.kill()
    holder.wait()
    other.run(["pkill", "-KILL", "-U", str(other.uid), "-f", "prctl"], check=False)
    assert other.desktop("virtual", "--uninstall").code == 0


def test_programs_of_a_conda_environment_do_not_take_the_systems_place(other: User) -> None:
    """conda's dbus-run-session and xrdb, first on PATH (OSC/ondemand issue 700)."""
    for name in ("dbus-run-session", "xrdb", "xset", "xauth", "openbox", "dbus-daemon"):
        script = (
            f'mkdir -p ~/miniconda3/bin; printf "#!/bin/sh\ntouch ~/conda-ran\nexit 1\n" >~/miniconda3/bin/{name}'
        )
        other.run(["sh", "-c", f"{script}; chmod 755 ~/miniconda3/bin/{name}"])
    argv = [PYTHON, str(other.machine.repo / "bootstrap.py"), "--desktop", "virtual", "--session", "openbox"]
    path = f"{other.home}/miniconda3/bin:/usr/bin:/bin"
    said = other.run([*argv, "--vnc-password-file", "-"], feed=PASSWORD, PATH=path)
    assert "openbox has been running for 5 s" in said
    assert other.run(["sh", "-c", "ls ~/conda-ran 2>/dev/null || :"]) == ""
    assert other.desktop("virtual", "--uninstall").code == 0
    other.run(["sh", "-c", "rm -r ~/miniconda3"])


# --- a Unix socket instead of a port ---------------------------------------------------------------------


def test_a_desktop_without_any_port(lab: Lab, tmp_path: Path) -> None:
    machine = DesktopMachine(lab.host("silentbox")).prepare()
    user, stranger = machine.user("carl", 4005, "home of carl"), machine.user("nosy", 4006)
    options = ["--vnc-listen", "socket", "--session", "openbox", "--vnc-password-file", "-"]
    with machine.watched() as seen:
        done = user.desktop("virtual", *options, feed=PASSWORD)
    assert done.code == 0, done
    path = f"{user.home}/.vnc/rfb-1.sock"
    assert seen == set() and machine.listeners() == {("everywhere", 22)}
    assert user.run(["stat", "-c", "%A %U", path]) == "srw------- carl\n"
    assert f"{path} listens, open to carl alone" in done.out and "a wrong password was refused" in done.out
    line = next(line.strip() for line in done.out.splitlines() if "ssh -o" in line)
    assert f"-L 'localhost:55901:{path}'" in line
    dial = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(12))"
    assert "RFB 003.008" in user.run([PYTHON, "-c", dial, path])
    user.run(["sh", "-c", "chmod 755 ~ ~/.vnc"])  # not even if its folder were open
    assert "PermissionError" in stranger.run(["sh", "-c", f'{PYTHON} -c "$0" "$1" 2>&1 || :', dial, path])
    user.run(["sh", "-c", "chmod 700 ~ ~/.vnc"])

    picture = tmp_path / "desktop.png"
    with Tunnel(lab, line) as tunnel:
        assert tunnel.local == 55901
        assert vncdo(lab.laptop, tunnel.local, PASSWORD, "pause", "1", "capture", str(picture)).returncode == 0
        check_refusals(lab.laptop, tunnel.local, lab.folder)
    assert Image.open(picture).size == (1600, 900)
    check_in_browser(lab, user, PASSWORD, tmp_path, at_socket=True)
    # What connect.py's agent makes of the receipt.
    ask = "from colab_local.laptop import agent; print(agent.desktops({'home': None, 'ports': []}))"
    assert (
        user.run(["env", f"PYTHONPATH={machine.repo}", PYTHON, "-Bc", ask]) == f"{{'places': {{'{path}': True}}}}\n"
    )
    again = user.desktop("virtual")
    assert again.code == 0 and "Nothing to do" in again.out and line in again.out, again

    [pid], [leader] = user.pids("Xtigervnc :1 "), user.pids("vnc-session 1")
    tight = user.desktop("virtual", "--vnc", "tight")
    assert tight.code == 2 and "TightVNC cannot listen at a Unix socket" in tight.err, tight
    port = user.desktop("virtual", "--vnc-listen", "port")
    assert port.code == 6 and f"kill {leader}   # closes its programs" in port.err, port
    assert user.pids("Xtigervnc :1 ") == [pid]

    # A server that was killed leaves its file, which is in nobody's way.
    user.run(["kill", "-9", str(pid)])
    wait_for(lambda: not user.pids("vnc-session 1"), 20, "the session ends with its server")
    assert user.run(["stat", "-c", "%F", path]) == "socket\n"
    with machine.watched() as seen:
        assert user.desktop("virtual").code == 0
    assert seen == set() and user.pids("Xtigervnc :1 ")

    user.run(["kill", "-9", *map(str, user.pids("Xtigervnc :1 "))])
    gone = user.desktop("virtual", "--uninstall")
    assert gone.code == 0 and not user.pids("vnc"), gone
    assert user.run(["sh", "-c", "ls -d ~/.vnc ~/.local/share/colab-local"], check=False) == ""


# --- runs that must fail ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box(lab: Lab) -> DesktopMachine:
    """A machine on which nothing is set up."""
    return DesktopMachine(lab.host("box")).prepare()


def untouched(user: User) -> bool:
    """Whether a user's home is as it was made."""
    return user.run(["sh", "-c", "ls -A ~"]).split() == [".ssh"]


def test_bad_passwords_and_no_terminal_leave_nothing_behind(box: DesktopMachine) -> None:
    user = box.user("una", 4010)
    for password, length in (("x", 1), ("forty characters are no better than 8 ch", 40)):
        done = user.desktop("virtual", "--vnc-password-file", "-", feed=password + "\n")
        assert done.code == 2, done
        assert f"found {length} characters, need 6 to 8" in done.err
        assert "Traceback" not in done.err and (length < 8 or password not in done.err + done.out)
    done = user.desktop("virtual")  # a random password needs a terminal to be shown on
    assert done.code == 2 and "there is no terminal" in done.err and "--vnc-password-file -" in done.err, done
    assert untouched(user)
    assert box.listeners() == {("everywhere", 22)}


def test_it_comes_beside_an_environment(box: DesktopMachine) -> None:
    user = box.user("eva", 4017)
    options = ["--cpu", "--engine", "host", "--dry-run", "--json", "--vnc-password-file", "-"]
    both = user.desktop("virtual", *options, feed=PASSWORD)
    assert both.code == 0, both
    result = json.loads(both.out)
    alone = user.desktop("virtual", *options[3:], feed=PASSWORD).out
    assert json.loads(alone)["plan"] == result["desktop"]["plan"]
    assert result["environment"] == "cpu" and result["plan"]
    assert result["desktop"]["port"] == 5901 and "start the desktop on display :1" in result["desktop"]["plan"]
    assert untouched(user)


def test_missing_fonts_are_named_before_anything_is_written(
    box: DesktopMachine, request: pytest.FixtureRequest
) -> None:
    user = box.user("finn", 4011)
    box.hide("/usr/share/fonts/X11/misc")
    request.addfinalizer(lambda: box.host.run(["umount", "/usr/share/fonts/X11"]) and None)
    dry = user.desktop("virtual", "--vnc", "tight", "--dry-run")
    assert dry.code == 0 and "install system packages: xfonts-base" in dry.out, dry
    done = user.desktop("virtual", "--vnc", "tight", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 3, done
    assert "hint: sudo apt-get install -y --no-install-recommends xfonts-base" in done.err
    assert untouched(user)


def test_a_linked_vnc_folder_is_refused(box: DesktopMachine) -> None:
    user = box.user("lena", 4012)
    user.run(["sh", "-c", "mkdir ~/real; ln -s real ~/.vnc"])
    done = user.desktop("virtual", "--vnc", "tiger", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 1 and "symbolic link" in done.err, done
    assert user.run(["sh", "-c", "ls -A ~/real"]) == ""


@pytest.fixture(scope="module")
def broken(lab: Lab) -> DesktopMachine:
    """A machine whose programs misbehave."""
    return DesktopMachine(lab.host("brokenbox")).prepare()


def test_a_desktop_that_dies_is_found_out_stopped_and_its_log_shown(broken: DesktopMachine) -> None:
    user = broken.user("dora", 4020)
    broken.sabotage("/usr/bin/openbox", "#!/bin/sh\necho openbox: no theme found >&2\nexit 1\n")
    done = user.desktop("virtual", "--session", "openbox", "--vnc-password-file", "-", feed=PASSWORD)
    assert done.code == 1, done
    assert "did not pass its check, so it was stopped and disabled" in done.err
    assert "openbox: no theme found" in done.err
    assert broken.listeners() == {("everywhere", 22)}
    assert not user.pids("vnc")
    broken.host.run(["mv", "/usr/bin/openbox.real", "/usr/bin/openbox"])
    assert user.desktop("virtual").code == 0
    assert user.desktop("virtual", "--uninstall").code == 0


# As the article starts it: X itself on 0.0.0.0:6001.
ARTICLE = """#!/bin/sh
for a; do shift; [ "$a" = -nolisten ] && a=-listen; set -- "$@" "$a"; done
exec Xtigervnc.real "$@"
"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (ARTICLE, "6001"),
        ('#!/bin/sh\nexec Xtigervnc.real "$@" -localhost=0\n', "beyond loopback"),
        ('#!/bin/sh\nexec Xtigervnc.real "$@" -SecurityTypes=None,VncAuth\n', "without a password"),
        ('#!/bin/sh\nexec Xtigervnc.real "$@" -SecurityTypes=TLSVnc\n', "no VNC password log-in"),
        ('#!/bin/sh\nexec Xtigervnc.real "$@" -rfbport=5901\n', "listens on TCP as well"),
        ('#!/bin/sh\nexec Xtigervnc.real "$@" -rfbunixmode=0666\n', "is not private (found mode 0666"),
    ],
)
def test_a_server_that_is_not_safe_is_found_out_and_stopped(broken: DesktopMachine, script: str, words: str) -> None:
    user = broken.users.get("rob") or broken.user("rob", 4021)
    broken.sabotage("/usr/bin/Xtigervnc", script)
    listen = "socket" if "-rfb" in script else "port"
    options = ["--vnc-listen", listen, "--session", "openbox", "--vnc-password-file", "-"]
    done = user.desktop("virtual", *options, feed=PASSWORD)
    assert done.code == 1 and words in done.err, done
    assert broken.listeners() == {("everywhere", 22)}
    wait_for(lambda: not user.pids("Xtigervnc"), 10, "the server is gone")


def test_ctrl_c_before_the_checks_leaves_nothing_running(box: DesktopMachine) -> None:
    user = box.user("ivo", 4014)
    argv = [PYTHON, str(box.repo / "bootstrap.py"), "--desktop", "virtual", "--session", "openbox", "--vnc", "tiger"]
    child = subprocess.Popen(
        user.command([*argv, "--vnc-password-file", "-"]), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None and child.stderr is not None
    child.stdin.write(PASSWORD.encode() + b"\n")
    child.stdin.close()
    wait_for(lambda: bool(user.pids("Xtigervnc :")), 30, "the server")
    [bootstrap] = user.pids("bootstrap.py")
    user.run(["kill", "-INT", str(bootstrap)])
    assert child.wait(30) == 130
    assert b"interrupted" in child.stderr.read()
    wait_for(lambda: not user.pids("vnc"), 20, "the end of all processes")
    assert box.listeners() == {("everywhere", 22)}
    assert user.desktop("virtual", "--uninstall").code == 0


@pytest.mark.parametrize("program", ["tigervncpasswd", "tightvncpasswd"])
def test_both_servers_write_the_empty_password_as_we_know_it(box: DesktopMachine, program: str) -> None:
    made = box.users["root"].run(["sh", "-c", f"echo | {program} -f | od -An -tx1"])
    assert bytes.fromhex(made) == virtual.EMPTY


# --- sudo and apt ----------------------------------------------------------------------------------------


def test_under_sudo_everything_belongs_to_the_desktop_user(box: DesktopMachine) -> None:
    user, root = box.user("sue", 4013), box.users["root"]
    box.allow_sudo()
    options = ["--session", "openbox", "--vnc", "tiger", "--vnc-password-file", "-"]
    done = user.desktop("virtual", *options, feed=PASSWORD, sudo=True)
    assert done.code == 0, done
    assert user.run(["sh", "-c", "find ~ ! -user sue"]) == ""
    assert user.pids("Xtigervnc :1 ") and not root.pids("Xtigervnc")
    assert not (root.home / ".vnc").exists() and not (root.home / ".local").exists()
    receipt = json.loads(user.run(["sh", "-c", "cat ~/.local/share/colab-local/receipts/desktop.json"]))
    assert receipt["desktops"][0]["user"] == "sue"
    stranger = user.desktop("virtual", "--desktop-user", "root")
    assert stranger.code == 2 and "another user needs root" in stranger.err, stranger
    gone = root.desktop("virtual", "--uninstall", "--desktop-user", "sue")
    assert gone.code == 0, gone
    assert not user.pids("vnc") and user.run(["sh", "-c", "ls -d ~/.vnc"], check=False) == ""


def test_the_real_apt_installs_what_is_missing_and_nothing_else(lab: Lab) -> None:
    machine = DesktopMachine(lab.host("aptbox")).prepare()
    folder = machine.host.folder
    fetched = subprocess.run(["apt-get", "download", "xauth"], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"apt-get download: {fetched.stderr}")
    machine.allow_sudo()
    user = machine.user("ann", 4016)
    for changed in ("/usr", "/var/lib", "/var/cache", "/var/log"):
        machine.own(changed)
    # The machine has no network: apt finds the package in its cache.
    machine.host.run(["sh", "-c", f"cp {folder}/xauth_*.deb /var/cache/apt/archives/"])
    installed = machine.host.run(["dpkg-query", "-W"]).stdout
    machine.host.run(["dpkg", "--purge", "--force-depends", "xauth"])
    options = ["--session", "openbox", "--vnc", "tiger", "--vnc-password-file", "-"]
    refused = user.desktop("virtual", *options, feed=PASSWORD)
    command = "sudo apt-get install -y --no-install-recommends xauth"
    assert refused.code == 3 and f"hint: {command}   # or add --install-packages" in refused.err, refused
    assert untouched(user)
    done = user.desktop("virtual", *options, "--install-packages", feed=PASSWORD)
    assert done.code == 0 and "openbox has been running" in done.out, done
    assert machine.host.run(["dpkg-query", "-W"]).stdout == installed
    assert user.run(["sh", "-c", "find ~ ! -user ann"]) == ""
