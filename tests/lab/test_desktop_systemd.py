"""The virtual desktop under a real systemd: crash, log-out, reboot with nobody there, a lost password, removal."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence

import pytest

from colab_local.install import servers
from tests.conftest import REPO
from tests.support.booted import PREPARE, UID, USER, Booted
from tests.support.desktop_machine import PYTHON, missing_programs, parse_listeners
from tests.support.hosts import needs_root, wait_for

pytestmark = [needs_root, pytest.mark.timeout(400)]
UNIT = "vnc-desktop@1.service"
HOME = f"/home/{USER} of gpubox"  # with spaces, as anywhere
VNC = f"{HOME}/.vnc"
PASSWORD = "s3cret88"
PASSWORD_FILE = "/srv/password"  # root's alone, in the container

SESSION_TYPES = (
    "loginctl list-sessions --no-legend | while read n _; do loginctl show-session $n -p Type --value; done"
)
# At boot systemd empties /tmp file by file, and this machine's may hold a great many.
MORE = f"""
case '{REPO}' in /tmp/*) ;; *) mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" ;; esac
mv "$1/home/{USER}" "$1{HOME}"
ln -s "{HOME}" "$1/home/{USER}"
sed -i 's#:/home/{USER}:#:{HOME}:#' "$1/etc/passwd"
"""
# In a login session of root: write the firewall rule and its unit, as `--desktop mirror` does before it enables RDP.
FIREWALL = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from colab_local.base.terminal import Screen
from colab_local.desktop import keyring, person, plan, rdp
receipt = plan.Receipt(Path("/srv/receipt"), person.find("root"), "mirror", Screen())
todo = plan.pending([rdp.Firewall(receipt, keyring.RDP)]) if sys.argv[1] == "on" else plan.pending(rdp.undo(receipt))
plan.carry_out(todo)
print(len(todo), rdp.firewall_is_up(keyring.RDP))
"""


# The Jupyter service of root, with another program in Jupyter's place.
SERVICE = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from colab_local.base.terminal import Screen
from colab_local.manage import service
home = Path("/srv/both")
if sys.argv[1] == "on":
    (home / "receipts").mkdir(parents=True, exist_ok=True)
    token = home / "run" / "jupyter-token"
    service.install(service.find_manager(Screen()), home, "cpu", ["/usr/bin/sleep", "600"], token, 8899)
else:
    service.uninstall(home, False, Screen())
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    assert not missing_programs(), f"install what ci/apt-packages.txt names: {missing_programs()}"
    assert shutil.which("systemd-nspawn"), "no systemd-nspawn: install systemd-container"
    prepare = PREPARE.format(user=USER, uid=UID, home="/nonexistent", opened=f"'{REPO}'") + MORE
    booted = Booted(tmp_path_factory.mktemp("desktop") / "m", prepare, [str(REPO)])
    try:
        wait_for(booted.is_up, 120, f"systemd, see {booted.log}")
        booted.run(["sh", "-c", f"umask 077; echo {PASSWORD} >{PASSWORD_FILE}"])
        yield booted
    finally:
        booted.close()


def desktop(machine: Booted, *options: str, code: int = 0) -> str:
    """Run bootstrap.py as sudo of an ordinary user does; return what it said."""
    sudo = ["env", f"SUDO_USER={USER}", "HOME=/root", "PYTHONDONTWRITEBYTECODE=1"]
    done = machine.run([*sudo, PYTHON, str(REPO / "bootstrap.py"), "--desktop", *options], check=False)
    assert done.returncode == code, f"{done.stdout}{done.stderr}\n{journal(machine)}"
    return done.stdout + done.stderr


def journal(machine: Booted) -> str:
    return machine.run(["sh", "-c", f"journalctl --no-pager -n 40; cat '{VNC}'/*.log"], check=False).stdout


def ask(machine: Booted, *words: str) -> str:
    """What the user's own systemd says."""
    become = [
        "setpriv",
        f"--reuid={UID}",
        f"--regid={UID}",
        "--clear-groups",
        "env",
        f"XDG_RUNTIME_DIR=/run/user/{UID}",
    ]
    return machine.run([*become, "systemctl", "--user", *words], check=False).stdout.strip()


def pids(machine: Booted, program: str) -> list[int]:
    return [int(w) for w in machine.run(["pgrep", "-u", USER, "-x", program], check=False).stdout.split()]


def open_ports(machine: Booted) -> set[tuple[str, int]]:
    """Every listening socket of the container."""
    try:
        return parse_listeners(machine.leader)
    except OSError:  # between two boots
        return set()


def is_up(machine: Booted, but: Sequence[int] = ()) -> bool:
    """Whether the desktop runs with another X server than the ones named."""
    servers = pids(machine, "Xtigervnc")
    return ("loopback", 5901) in open_ports(machine) and bool(servers) and not set(servers) & set(but)


def test_the_desktop_survives_crash_logout_and_reboot_and_goes_without_trace(machine: Booted) -> None:
    before = machine.run(["find", HOME]).stdout
    said = desktop(machine, "virtual", "--session", "openbox", "--vnc-password-file", PASSWORD_FILE)
    assert f"start the desktop on display :1 ({UNIT})" in said and "enable-linger" in said
    assert "openbox has been running for 5 s" in said
    assert (ask(machine, "is-enabled", UNIT), ask(machine, "is-active", UNIT)) == ("enabled", "active")
    assert machine.run(["find", HOME, "!", "-user", USER]).stdout == ""
    assert (
        machine.run(["sh", "-c", "ls -d ~root/.vnc ~root/.local/share/colab-local 2>/dev/null"], check=False).stdout
        == ""
    )
    assert open_ports(machine) == {("loopback", 5901)}
    assert PASSWORD not in journal(machine)
    assert "Nothing to do" in desktop(machine, "virtual")

    # Nobody has logged in so far. kill -9 of the X server, then the end of the desktop: both come back.
    first = pids(machine, "Xtigervnc")
    machine.run(["kill", "-KILL", *map(str, first)])
    wait_for(lambda: is_up(machine, but=first), 60, "the restart after kill -9")
    second = pids(machine, "Xtigervnc")
    wait_for(lambda: bool(pids(machine, "openbox")), 30, "its desktop")
    machine.run(["pkill", "-u", USER, "-x", "openbox"])
    wait_for(lambda: is_up(machine, but=second), 60, "the restart after the desktop ended")
    # One of each: nothing of the earlier ones is left.
    assert len(pids(machine, "Xtigervnc")) == 1 and len(pids(machine, "vnc-session")) == 1

    # The firewall in front of RDP is set at every boot, too.
    assert machine.run([PYTHON, "-B", "-c", FIREWALL, "on"]).stdout.split() == ["1", "True"]
    assert machine.run([PYTHON, "-B", "-c", FIREWALL, "on"]).stdout.split() == ["0", "True"]

    # A reboot; nobody logs in, and nothing is open to the network while it starts.
    leader, seen = machine.leader, set()
    machine.run(["systemctl", "reboot"], check=False)
    wait_for(lambda: machine.leader not in (0, leader), 120, "the reboot")
    deadline = time.monotonic() + 120
    while not (("loopback", 5901) in seen and machine.is_up()):
        assert time.monotonic() < deadline, journal(machine)
        seen |= open_ports(machine)
        time.sleep(0.01)
    assert seen == {("loopback", 5901)}
    assert "drop" in machine.run(["nft", "list", "ruleset"]).stdout
    assert machine.run([PYTHON, "-B", "-c", FIREWALL, "off"]).stdout.split() == ["2", "False"]
    assert "drop" not in machine.run(["nft", "list", "ruleset"]).stdout

    # A password file that others can read: it does not start, and nothing listens. The next run mends it.
    wait_for(lambda: is_up(machine), 60, "the desktop")
    machine.run(["chmod", "644", f"{VNC}/passwd"])
    ask(machine, "restart", UNIT)
    wait_for(lambda: ask(machine, "is-active", UNIT) != "active" and not open_ports(machine), 60, "the refusal")
    assert "must have mode 600" in machine.run(["cat", f"{VNC}/session-1.log"]).stdout
    mended = desktop(machine, "virtual")
    assert "write the VNC password" in mended and "a wrong password was refused" in mended
    assert is_up(machine)

    dry = desktop(machine, "virtual", "--uninstall", "--dry-run")
    assert "stop the desktop on display :1" in dry and is_up(machine)
    desktop(machine, "virtual", "--uninstall")
    assert not open_ports(machine)
    assert ask(machine, "is-enabled", UNIT) != "enabled"
    assert machine.run(["ls", "/var/lib/systemd/linger"]).stdout == ""
    wait_for(
        lambda: not pids(machine, "Xtigervnc") and not pids(machine, "vnc-session"), 30, "the end of all processes"
    )
    # What programs of the desktop keep of their own accord is the user's; of ours nothing is left.
    after = set(machine.run(["find", HOME]).stdout.splitlines()) - set(before.splitlines())
    assert [path for path in after if re.search(r"vnc|systemd|colab-local", path)] == []


def test_lingering_stays_for_the_one_that_is_left_and_then_is_as_it_was(machine: Booted) -> None:
    def lingers() -> bool:
        return machine.run(["test", "-e", "/var/lib/systemd/linger/root"], check=False).returncode == 0

    def service(state: str) -> str:
        return machine.run(["env", "HOME=/root", PYTHON, "-B", "-c", SERVICE, state]).stdout

    def virtual(state: str) -> str:
        said = ["--session", "openbox", "--vnc-password-file", PASSWORD_FILE] if state == "on" else ["--uninstall"]
        argv = [PYTHON, "-B", str(REPO / "bootstrap.py"), "--prefix", "/srv/both", "--desktop", "virtual", *said]
        return machine.run(["env", "HOME=/root", *argv]).stdout

    def runs(unit: str) -> bool:
        ask = ["env", "XDG_RUNTIME_DIR=/run/user/0", "systemctl", "--user", "is-active", unit]
        return machine.run(ask, check=False).stdout.strip() == "active"

    for first, second, unit in ((virtual, service, servers.UNIT), (service, virtual, UNIT)):
        assert not lingers()
        first("on")
        second("on")
        assert lingers()
        assert "lingering of root stays on for the" in first("off")
        assert lingers() and runs(unit)
        second("off")
        assert not lingers()


def test_a_server_that_is_not_safe_is_stopped_and_disabled(machine: Booted) -> None:
    program = "/usr/bin/Xtigervnc"
    script = f'#!/bin/sh\nexec {program}.real "$@" -SecurityTypes=None,VncAuth\n'
    machine.run(["sh", "-c", f"mv {program} {program}.real; printf '%s' '{script}' >{program}; chmod 755 {program}"])
    try:
        options = ["--session", "openbox", "--vnc-password-file", PASSWORD_FILE]
        said = desktop(machine, "virtual", *options, code=1)
    finally:
        machine.run(["mv", f"{program}.real", program])
    assert "stopped and disabled: it lets everybody in without a password" in said
    assert (ask(machine, "is-enabled", UNIT), ask(machine, "is-active", UNIT)) == ("disabled", "inactive")
    assert not open_ports(machine)
    desktop(machine, "virtual", "--uninstall")


def test_a_wayland_session_is_seen_by_logind_and_refused(machine: Booted) -> None:
    """A session as logind lists GNOME's own; no process of it tells by its environment."""
    argv = [PYTHON, "-B", str(REPO / "bootstrap.py"), "--desktop", "mirror"]
    session = ["--unit=wayland", f"--uid={USER}", "--property=PAMName=login", "--setenv=XDG_SESSION_TYPE=wayland"]
    machine.run(["systemd-run", "--quiet", *session, "env", "-u", "XDG_SESSION_TYPE", "sleep", "60"])
    wait_for(lambda: "wayland" in machine.run(["sh", "-c", SESSION_TYPES]).stdout, 20, "the session")
    try:
        done = machine.run([*argv, "--desktop-user", USER], check=False)
    finally:
        machine.run(["systemctl", "stop", "wayland"])
    assert done.returncode == 3 and "only GNOME's Wayland screens can be shared" in done.stderr, done
    assert "--desktop virtual" in done.stderr
    assert not open_ports(machine)


def test_an_ordinary_user_in_a_login_session_is_told_about_lingering(machine: Booted) -> None:
    machine.run(["install", "-o", USER, "-m", "600", PASSWORD_FILE, f"{HOME}/password"])
    argv = [PYTHON, "-B", str(REPO / "bootstrap.py"), "--desktop", "virtual", "--session", "openbox"]
    done = machine.run([*argv, "--vnc-password-file", f"{HOME}/password"], user=True)
    assert "openbox has been running for 5 s" in done.stdout
    lingers = machine.run(["ls", "/var/lib/systemd/linger"]).stdout.strip() == USER
    assert lingers or f"sudo loginctl enable-linger {USER}" in done.stdout
    # Without lingering the log-out (each run is a session of its own) ends it, as was said.
    wait_for(lambda: is_up(machine) == lingers, 60, f"lingering {lingers}")
    gone = machine.run([*argv[:5], "--uninstall"], user=True)
    assert gone.returncode == 0
    assert not open_ports(machine)
