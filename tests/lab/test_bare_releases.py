"""The virtual desktop and GNOME's own server on bare Debian 12, 13 and sid: with what the product installs alone.

A real systemd of each release, the real desktop in it, its picture looked at, its icons clicked, its browser used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageGrab

from colab_local.install import servers
from colab_local.manage import service
from tests.support.bareroots import RELEASES, UID, USER, Bare, installed, with_packages
from tests.support.desktop_machine import parse_listeners, vncdo_in
from tests.support.hosts import in_network_of, needs_root, wait_for

pytestmark = [needs_root, pytest.mark.timeout(900)]
PASSWORD = "s3cret88"
UNIT = "vnc-desktop@1.service"
PASSWORD_FILE = "/run/vnc-password"  # of the machine that the test has booted
VNC = f"/home/{USER}/.vnc"
# Xfce's dock at the bottom of a screen of 1600x900: where its icons are, and the class of the window that each opens.
DOCK = {(728, 876): "Xfce4-terminal", (776, 876): "Thunar", (823, 876): "firefox", (872, 876): "Xfce4-appfinder"}
GNOME = (
    *("gnome-shell", "gnome-remote-desktop", "gnome-keyring", "dbus-user-session"),
    *("openssl", "nftables", "libglib2.0-bin"),
)
# A page like Jupyter's: $1 port. Says which address the browser asked for.
PAGE = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        body = "<title>colab-local page</title><h1>\\u3053\\u3093\\u306b\\u3061\\u306f</h1>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def roots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the roots of the tests that were chosen beside each other; each test waits for its own."""
    assert shutil.which("mmdebstrap") and shutil.which("systemd-nspawn"), "install mmdebstrap, systemd-container"
    chosen = " ".join(item.name for item in request.session.items if item.path == request.path)
    releases = [release for release in RELEASES if f"[{release}]" in chosen]
    makers = [threading.Thread(target=_quietly, args=(installed, release, "xfce")) for release in releases]
    if "gnome" in chosen:
        makers.append(threading.Thread(target=_quietly, args=(with_packages, "trixie", "gnome", GNOME)))
    for maker in makers:
        maker.start()
    yield
    for maker in makers:
        maker.join()


def _quietly(make: Callable[..., Path], *args: object) -> None:
    with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):  # the test itself will tell
        make(*args)


class Desktop:
    """A booted bare machine and what is done on it."""

    def __init__(self, machine: Bare, release: str) -> None:
        self.machine, self.release, self.said = machine, release, ""
        machine.run(["sh", "-c", f"umask 077; echo {PASSWORD} >{PASSWORD_FILE}"])

    def product(self, *options: str, code: int = 0) -> str:
        """Run bootstrap.py --desktop as sudo of the ordinary user does; return what it said."""
        sudo = ["env", f"SUDO_USER={USER}", "HOME=/root", "PYTHONDONTWRITEBYTECODE=1"]
        done = self.machine.run([*sudo, "python3", "/repo/bootstrap.py", "--desktop", *options], check=False)
        assert done.returncode == code, f"{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout + done.stderr

    def log(self) -> str:
        show = f"journalctl --no-pager -n 40; tail -n 40 {VNC}/*.log"
        return self.machine.run(["sh", "-c", show], check=False).stdout

    def processes(self) -> dict[int, str]:
        """The user's processes, but for systemd's own, the bus and gpg's agent, which belong to the account."""
        shown = self.machine.run(["ps", "-o", "pid=,args=", "-ww", "-U", USER], check=False).stdout
        pairs = (line.strip().split(None, 1) for line in shown.splitlines())
        theirs = ("systemd --user", "(sd-pam)", "dbus-daemon --session --address=systemd:", "gpg-agent")
        return {int(pid): args for pid, args in pairs if not any(word in args for word in theirs)}

    def ports(self) -> set[tuple[str, int]]:
        """What listens, but for an sshd."""
        return parse_listeners(self.machine.leader) - {("everywhere", 22)}

    def pids(self, name: str) -> list[int]:
        return [int(word) for word in self.machine.run(["pgrep", "-u", USER, "-x", name], check=False).stdout.split()]

    def inside(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program as one of the desktop's own: with the environment that its session has."""
        [session, *_] = self.pids("xfce4-session")
        environ = self.machine.run(["cat", f"/proc/{session}/environ"]).stdout
        pairs = [pair for pair in environ.split("\0") if "=" in pair]
        become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i", *pairs]
        return self.machine.run([*become, *argv], check=False)

    def windows(self) -> list[str]:
        """The windows that can be seen: what xwininfo says of each. Most are small, hidden helpers."""
        listed = self._x(["xwininfo", "-root", "-tree"])
        return [line.strip() for line in listed.splitlines() if re.search(r"\)\s+\d{3,}x\d{3,}\+", line)]

    def shows(self, words: str) -> bool:
        """Whether a window's title or class has these words."""
        return any(words.lower() in line.lower() for line in self.windows())

    def _x(self, argv: list[str]) -> str:
        """Run a program of the X server's machine; its socket is in that machine's network, by an abstract name."""
        cookie = self.machine.work / "cookie"
        cookie.write_bytes(
            subprocess.run(self.machine.enter(["cat", f"{VNC}/Xauthority-1"]), capture_output=True).stdout
        )
        env = {**os.environ, "DISPLAY": ":1", "XAUTHORITY": str(cookie)}
        with in_network_of(self.machine.leader):
            return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=30).stdout

    def picture(self, path: Path) -> Image.Image:
        """What is on the screen, from the X server itself."""
        self.windows()  # fetches the cookie
        os.environ["XAUTHORITY"] = str(self.machine.work / "cookie")
        with in_network_of(self.machine.leader):
            shown = ImageGrab.grab(xdisplay=":1").convert("RGB")
        shown.save(path)
        return shown


@contextlib.contextmanager
def booted(root: Path, folder: Path, release: str) -> Iterator[Desktop]:
    machine = Bare(root, folder)
    try:
        wait_for(machine.is_up, 120, f"systemd, see {machine.log}")
        yield Desktop(machine, release)
    finally:
        machine.close()


@pytest.fixture(scope="module", params=RELEASES)
def desktop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    release: str = request.param
    with booted(installed(release, "xfce"), tmp_path_factory.mktemp(release) / "m", release) as made:
        made.said = made.product("virtual", "--vnc-password-file", PASSWORD_FILE)
        yield made


def keep(picture: Image.Image, name: str) -> None:
    """Keep a small picture for docs/ where a folder for it is named."""
    folder = os.environ.get("COLAB_LOCAL_PICTURES")
    if folder:
        picture.resize((480, 270)).quantize(64).save(Path(folder) / f"{name}.png", optimize=True)


def test_the_desktop_is_whole(desktop: Desktop, tmp_path: Path) -> None:
    said = desktop.said
    assert "xfce4-session has been running for 5 s" in said and "the screen shows a desktop" in said
    assert "session bus" not in said, "it is the user's own"
    assert "install system packages" not in said
    assert desktop.ports() == {("loopback", 5901)}
    shown = desktop.picture(tmp_path / "desktop.png")
    assert shown.size == (1600, 900)
    keep(shown, f"desktop-{desktop.release}")
    colours = sorted(((n, c) for n, c in shown.getcolors(1 << 24) or []), reverse=True)
    assert len(colours) > 500 and colours[0][0] < 0.9 * 1600 * 900
    # The panel: a light bar across the top, and the wallpaper below it.
    bar = shown.crop((200, 4, 1000, 20)).resize((1, 1)).getpixel((0, 0))
    assert isinstance(bar, tuple) and min(bar) > 200, bar
    assert desktop.machine.run(["fc-list", ":lang=ja", "family"]).stdout.strip()
    assert desktop.inside("systemctl", "--user", "is-system-running").stdout.strip() in ("running", "degraded")
    # What snap and podman need: systemd makes them a scope through the session's bus.
    scope = desktop.inside("systemd-run", "--user", "--scope", "--quiet", "cat", "/proc/self/cgroup")
    assert ".scope" in scope.stdout, scope


def test_a_real_viewer_clicks_each_icon_of_the_dock(desktop: Desktop) -> None:
    for (x, y), window in DOCK.items():
        assert not desktop.shows(window), desktop.windows()
        words = ["move", str(x), str(y), "pause", "0.3", "click", "1"]
        done = vncdo_in(desktop.machine.leader, 5901, PASSWORD, *words)
        assert done.returncode == 0, done
        wait_for(functools.partial(desktop.shows, window), 60, f"a window of {window}")


def test_the_printed_address_opens_in_the_browser(desktop: Desktop, tmp_path: Path) -> None:
    server = subprocess.Popen(
        desktop.machine.enter(["python3", "-c", PAGE, "8888"]), stdout=subprocess.PIPE, text=True
    )
    try:
        asked: list[str] = []
        assert server.stdout is not None
        reader = threading.Thread(target=lambda out=server.stdout: asked.extend(iter(out.readline, "")), daemon=True)
        reader.start()
        wait_for(lambda: ("loopback", 8888) in desktop.ports(), 20, "the page's server")
        url = "http://localhost:8888/?token=0123456789abcdef"
        desktop.inside("sh", "-c", f"setsid xdg-open '{url}' >/dev/null 2>&1 &")
        wait_for(lambda: "/?token=0123456789abcdef\n" in asked, 60, "the browser asks for the page")
        wait_for(lambda: desktop.shows("colab-local page"), 60, "its title")
        time.sleep(1)
        keep(desktop.picture(tmp_path / "browser.png"), f"browser-{desktop.release}")
    finally:
        desktop.machine.run(["pkill", "-KILL", "-f", "http.server"])
        server.wait(30)


def test_a_crash_leaves_nothing_and_long_jobs_go_on(desktop: Desktop) -> None:
    desktop.inside("sh", "-c", "setsid nohup sleep 4321 >/dev/null 2>&1 </dev/null &")

    def jobs() -> list[int]:
        return [pid for pid, args in desktop.processes().items() if args == "sleep 4321"]

    wait_for(lambda: bool(jobs()), 20, "the job, which setsid starts in a moment")
    [job] = jobs()
    for victim in ("Xtigervnc", "vnc-session"):
        before = set(desktop.processes()) - {job}
        desktop.machine.run(["pkill", "-KILL", "-u", USER, "-x", victim])

        def again(gone: set[int] = before) -> bool:
            # One of each: what sweeps up after the old desktop is called vnc-session, too, and so are its subshells.
            parts = [set(desktop.pids(name)) for name in ("vnc-session", "Xtigervnc", "xfce4-panel")]
            return all(len(part) == 1 and not part & gone for part in parts)

        wait_for(again, 60, f"another desktop after kill -9 of {victim}")
        assert not before & set(desktop.processes()), desktop.processes()
        assert job in desktop.processes()


def test_nothing_survives_the_uninstall(desktop: Desktop) -> None:
    jobs = {pid for pid, args in desktop.processes().items() if args == "sleep 4321"}
    ask = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"XDG_RUNTIME_DIR=/run/user/{UID}"]
    desktop.machine.run([*ask, "systemctl", "--user", "disable", UNIT])
    desktop.machine.run(["pkill", "-KILL", "-u", USER, "-x", "vnc-session"])  # the worst moment: all else still runs
    said = desktop.product("virtual", "--uninstall")
    assert "stop the desktop on display :1" in said
    wait_for(lambda: set(desktop.processes()) == jobs, 15, "the end of the user's systemd, which nobody needs now")
    assert desktop.ports() == set()
    left = desktop.machine.run(["sh", "-c", f"ls -d {VNC} /home/{USER}/.local/share/colab-local"], check=False)
    assert left.stdout == ""
    assert desktop.machine.run(["ls", "/var/lib/systemd/linger"], check=False).stdout == ""
    desktop.machine.run(["pkill", "-u", USER, "-x", "sleep"], check=False)
    at_a_socket(desktop)
    if desktop.release == "trixie":
        logged_in_at_the_screen(desktop)
        hardened(desktop)


def at_a_socket(desktop: Desktop) -> None:
    """This release's TigerVNC without a port, after a crash, too."""
    options = ["--vnc-listen", "socket", "--vnc-password-file", PASSWORD_FILE]
    said = desktop.product("virtual", *options)
    path = f"{VNC}/rfb-1.sock"
    assert f"{path} listens, open to {USER} alone" in said and f"-L localhost:55901:{path} " in said
    viewer = Path(f"/proc/{desktop.machine.leader}/root{path}")
    assert desktop.ports() == set() and stat.S_IMODE(viewer.stat().st_mode) == 0o600
    assert vncdo_in(desktop.machine.leader, viewer, PASSWORD, "mousemove", "9", "9").returncode == 0
    before = desktop.pids("Xtigervnc")
    desktop.machine.run(["pkill", "-KILL", "-u", USER, "-x", "Xtigervnc"])
    wait_for(lambda: len(desktop.pids("Xtigervnc")) == 1 and desktop.pids("Xtigervnc") != before, 60, "another one")

    def shown() -> bool:
        done = vncdo_in(desktop.machine.leader, viewer, PASSWORD, "mousemove", "9", "9")
        return done.returncode == 0

    wait_for(shown, 30, "the viewer is let in again")
    assert desktop.ports() == set()
    desktop.product("virtual", "--uninstall")
    assert desktop.machine.run(["ls", "-d", VNC], check=False).stdout == ""


def logged_in_at_the_screen(desktop: Desktop) -> None:
    """Somebody who sits there has their own desktop on the bus: then this one gets its own, and that is said."""
    session = ["--unit=local", f"--uid={USER}", "--property=PAMName=login", "--setenv=XDG_SESSION_TYPE=x11"]
    desktop.machine.run(["systemd-run", "--quiet", *session, "sleep", "300"])
    types = "loginctl list-sessions --no-legend | while read n _; do loginctl show-session $n -p Type --value; done"
    wait_for(lambda: "x11" in desktop.machine.run(["sh", "-c", types]).stdout, 20, "the session")
    said = desktop.product("virtual", "--vnc-password-file", PASSWORD_FILE, "--vnc", "tiger")
    assert re.search(r"note: this desktop has a session bus of its own.*snap programs and podman do not start", said)
    [panel, *_] = desktop.pids("xfce4-panel")
    environ = desktop.machine.run(["cat", f"/proc/{panel}/environ"]).stdout
    assert f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{UID}/bus" not in environ
    # With a bus of its own, too, X dying first leaves no bus and no xfconfd behind.
    desktop.machine.run(["pkill", "-KILL", "-u", USER, "-x", "Xtigervnc"])
    desktop.product("virtual", "--uninstall")
    desktop.machine.run(["systemctl", "stop", "local"])
    assert desktop.processes() == {}, desktop.processes()


def hardened(desktop: Desktop) -> None:
    """systemd-analyze's opinion of the Jupyter service's unit, printed."""
    text = service.unit_text(["/usr/bin/sleep", "60"], "cpu", Path("/"), Path("/tmp/token"))
    desktop.machine.run(["sh", "-c", 'printf %s "$1" >/etc/systemd/user/colab-local.service', "sh", text])
    # It wants a runtime folder of the one who asks, and there is none for root.
    ask = ["env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "--user", "--offline=true", "security", servers.UNIT]
    analysed = desktop.machine.run(ask, check=False)
    print(analysed.stdout)
    verdict = re.search(r"Overall exposure level for .*: ([\d.]+)", analysed.stdout)
    assert verdict, analysed
    assert "✓ NoNewPrivileges=" in analysed.stdout


def test_gnomes_own_server_is_shared_by_the_real_grdctl(tmp_path: Path) -> None:
    """The real gnome-remote-desktop 48 under a headless GNOME Shell: keyring missing, open and locked in turn."""
    with booted(with_packages("trixie", "gnome", GNOME), tmp_path / "m", "trixie") as screen:
        machine = screen.machine
        session = ["--unit=shell", f"--uid={USER}", "--property=PAMName=login", "--setenv=XDG_SESSION_TYPE=wayland"]
        shell = ["--setenv=XDG_CURRENT_DESKTOP=GNOME", "gnome-shell", "--headless", "--virtual-monitor", "1280x720"]
        machine.run(["systemd-run", "--quiet", *session, *shell])
        become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"HOME=/home/{USER}"]
        bus = [f"XDG_RUNTIME_DIR=/run/user/{UID}", f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{UID}/bus"]
        wait_for(
            lambda: machine.run(["test", "-S", f"/run/user/{UID}/bus"], check=False).returncode == 0, 30, "the bus"
        )

        def user(command: str, check: bool = True) -> str:
            done = machine.run([*become, *bus, "sh", "-c", command], check=check)
            return done.stdout + done.stderr

        def state() -> str:
            files = f"ls -d /etc/colab-local /etc/systemd/system/colab-local* /home/{USER}/.local/share/colab-local*"
            return machine.run(["sh", "-c", f"{files}; nft list ruleset"], check=False).stdout

        keyring = "printf login | gnome-keyring-daemon --unlock --components=secrets --daemonize"
        stop = "systemctl --user mask --now gnome-keyring-daemon.socket gnome-keyring-daemon.service; pkill -x"
        assert "48" in machine.run(["dpkg-query", "-W", "-f", "${Version}", "gnome-remote-desktop"]).stdout
        none = screen.product("mirror", "--vnc-password-file", PASSWORD_FILE, code=1)
        assert "has no log-in keyring" in none and "This will be done" not in none
        user(f"{stop} gnome-keyring-d; {keyring}")
        time.sleep(1)
        before = user("gsettings list-recursively org.gnome.desktop.remote-desktop.rdp")
        said = screen.product("mirror", "--vnc-password-file", PASSWORD_FILE)
        assert "port 3389 listens, and the firewall lets nothing but loopback reach it" in said
        status = user("grdctl status --show-credentials")
        for line in ("Status: enabled", f"Username: {USER}", f"Password: {PASSWORD}", "Negotiate port: no"):
            assert line in status, status
        assert PASSWORD not in machine.run(["sh", "-c", "cat /home/*/.local/share/colab-local/receipts/*"]).stdout
        screen.product("mirror", "--uninstall")
        assert state() == ""
        assert user("gsettings list-recursively org.gnome.desktop.remote-desktop.rdp") == before
        assert PASSWORD not in user("grdctl status --show-credentials")
        assert screen.ports() == set()

        # A step that fails takes back what the run had written.
        failing = '#!/bin/sh\\n[ "$2" != enable ] || { echo boom >&2; exit 3; }\\nexec grdctl.real "$@"\\n'
        replace = f"mv /usr/bin/grdctl /usr/bin/grdctl.real; printf '{failing}' >/usr/bin/grdctl"
        machine.run(["sh", "-c", f"{replace}; chmod 755 /usr/bin/grdctl"])
        assert "boom" in screen.product("mirror", "--vnc-password-file", PASSWORD_FILE, code=1)
        machine.run(["mv", "/usr/bin/grdctl.real", "/usr/bin/grdctl"])
        assert state() == ""
        assert user("gsettings list-recursively org.gnome.desktop.remote-desktop.rdp") == before
        assert PASSWORD not in user("grdctl status --show-credentials")

        user("pkill -x gnome-keyring-d", check=False)
        user("gnome-keyring-daemon --start --components=secrets --daemonize")
        locked = screen.product("mirror", "--vnc-password-file", PASSWORD_FILE, code=1)
        assert "is locked" in locked
        assert state() == ""
