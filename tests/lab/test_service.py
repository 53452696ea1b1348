"""bootstrap.py --service under a real systemd: booted in a container of its own, rebooted, crashed, removed."""

from __future__ import annotations

import json
import os
import platform
import plistlib
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_MACHINE, EXIT_OK, Failure
from colab_local.install import servers
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.options import Options
from colab_local.manage import service
from tests.conftest import REPO, SCREEN, Installed, free_port
from tests.support.booted import UID, USER, Booted
from tests.support.booted import machine as machine
from tests.support.colab_client import connect
from tests.support.hosts import in_network_of, needs_root, wait_for
from tests.support.receipts import write_receipt


@needs_root
def test_service_survives_crash_logout_and_reboot_and_goes_without_trace(
    machine: Booted, installed: Installed
) -> None:
    home = installed.home.resolve()
    python = str((installed.prefix / "bin" / "python").resolve())
    bootstrap_py = [python, str(REPO / "bootstrap.py"), "--prefix", str(home), "--notebook-dir", f"/home/{USER}"]
    before = machine.run(["find", f"/home/{USER}", str(home / "receipts"), str(home / "run")], check=False).stdout

    # An ordinary user installs it, in a login session.
    first = machine.run([*bootstrap_py, "--service"], user=True)
    assert "Done: Jupyter runs as a systemd service" in first.stdout
    url = first.stdout.partition("Paste into Colab:")[2].split()[0]
    token = url.partition("token=")[2]
    assert len(token) == 48
    if "enable-linger" in first.stderr:  # not permitted for oneself here: then the administrator is asked
        hint = first.stderr.partition("hint: sudo ")[2].splitlines()[0]
        assert hint == f"loginctl enable-linger {USER}"
        machine.run(hint.split())
    again = machine.run([*bootstrap_py, "--service"], user=True)
    assert "Nothing to do: Jupyter runs as a systemd service" in again.stdout
    assert "linger" not in again.stderr

    # A cell over both transports; the token is where it may be and nowhere else.
    with in_network_of(machine.leader):
        for transport in ("direct", "http_over_ws"):
            with connect(url, transport) as colab:
                assert colab.run("import getpass; print(getpass.getuser())").stdout == f"{USER}\n"
    token_file = json.loads(machine.run(["cat", str(home / "receipts/service.json")]).stdout)["token_file"]
    assert machine.run(["stat", "-c", "%a %U", token_file]).stdout == f"600 {USER}\n"
    shown = machine.run(["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; journalctl --no-pager"])
    assert "jupyter-notebook" in shown.stdout
    assert token not in shown.stdout

    # Logged out (each of the runs above was a session of its own), it runs. Killed, it comes back.
    def main_pid() -> int:
        ours = f"/run/user/{UID}"
        as_user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", f"XDG_RUNTIME_DIR={ours}"]
        show = ["systemctl", "--user", "show", "-p", "MainPID", "--value", servers.UNIT]
        return int(machine.run([*as_user, *show], check=False).stdout.strip() or 0)

    killed = main_pid()
    assert killed
    machine.run(["kill", "-KILL", str(killed)])
    wait_for(lambda: main_pid() not in (0, killed) and machine.answers(token), 180, "the restart after kill -9")

    # connect.py's agent stops and starts it as the service that it is.
    agent = "import json; from colab_local.laptop import agent as a; print(json.dumps(a.{}({{'home': {!r}}})))"
    ask = ["env", f"PYTHONPATH={REPO}", python, "-B", "-c"]
    assert json.loads(machine.run([*ask, agent.format("stop", str(home))], user=True).stdout)["stopped"]
    assert main_pid() == 0
    assert not machine.answers(token)
    shown = machine.run([*ask, agent.format("serve", str(home))], user=True)
    served = json.loads(shown.stdout)
    assert (served["started"], served["pid"], served["token"]) == (True, main_pid(), token)

    # The machine reboots; nobody logs in.
    leader = machine.leader
    machine.run(["systemctl", "reboot"], check=False)
    wait_for(lambda: machine.leader not in (0, leader) and machine.is_up(), 240, "the reboot")
    wait_for(lambda: machine.answers(token), 180, "Jupyter after the reboot, with the same token")

    # Gone, and nothing else with it.
    code = (
        "from pathlib import Path; from colab_local.base.terminal import Screen; "
        "from colab_local.manage import service; "
        f"raise SystemExit(service.uninstall(Path({str(home)!r}), {{}}, Screen()))"
    )
    dry = machine.run([*ask, code.format(True)], user=True)
    assert "would stop" in dry.stdout
    assert machine.answers(token)
    assert "removed the systemd service" in machine.run([*ask, code.format(False)], user=True).stdout
    wait_for(lambda: not machine.answers(token), 30, "Jupyter's end")
    jupyters_own = (".ipython", ".jupyter", "/.local", "connect.lock", "/.cache", "/.config/matplotlib", "/.keras")
    after = machine.run(["find", f"/home/{USER}", str(home / "receipts"), str(home / "run")], check=False).stdout
    new = set(after.splitlines()) - set(before.splitlines()) - {str(home / "run")}
    assert [path for path in new if not any(word in path for word in jupyters_own)] == []


@needs_root
def test_systemd_reads_the_command_as_it_was_meant(machine: Booted) -> None:
    """Blanks, quotes, %, $, backslashes and other letters arrive unharmed, in the environment too."""
    odd = ["a b", "50%", "$HOME", "${X}", "q\"uo'te", "back\\slash", "line\n[Service]", "süß", ""]
    token_file = Path('/tmp/k %n $X "ö"')
    seen = "[sys.argv[1:], os.environ['COLAB_LOCAL_TOKEN_FILE']]"
    show = f"import json,os,sys; json.dump({seen}, open('/run/seen', 'w'))"
    text = service.unit_text(["/usr/bin/python3", "-c", show, *odd], "cpu", Path("/"), token_file)
    machine.run(["sh", "-c", 'printf %s "$1" >/run/systemd/system/odd.service', "sh", text])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", "odd.service"])
    wait_for(lambda: machine.run(["test", "-s", "/run/seen"], check=False).returncode == 0, 30, "the odd command")
    assert json.loads(machine.run(["cat", "/run/seen"]).stdout) == [odd, str(token_file)]


def prepared_home(tmp_path: Path) -> Path:
    """Return a home folder that bootstrap.py might have made, with one (empty) environment."""
    home = tmp_path / "home of süß"
    prefix = home / "envs" / "cpu-0123456789ab"
    prefix.mkdir(parents=True)
    (home / "current").mkdir()
    (home / "current" / "cpu").symlink_to(prefix)
    write_receipt(home)
    return home


def options(home: Path) -> Options:
    return Options("cpu", home, home, "auto", "", (), "", free_port(), home, True, False)


def test_without_a_service_manager_it_says_so_and_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = prepared_home(tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    args = options(home)
    with pytest.raises(Failure, match="needs systemd") as failure:
        service.check(args, SCREEN)
    jupyter = home / "current" / "cpu" / "colab" / "jupyter-notebook"
    jupyter.parent.mkdir()
    seen = tmp_path / "seen"
    jupyter.write_text(f'#!/bin/sh\ncat "$COLAB_LOCAL_TOKEN_FILE" >"{seen}"\necho " $*" >>"{seen}"\n')
    jupyter.chmod(0o755)
    subprocess.run(["bash", "-c", failure.value.hint], check=True)
    wait_for(lambda: seen.exists() and "--ip=127.0.0.1" in seen.read_text(), 30, "the hint's command")
    assert seen.read_text().split()[0] == (home / "run" / "jupyter-token").read_text()
    assert not (home / "receipts" / "service.json").exists()


LAUNCHCTL = """#!/bin/sh
# Stands in for macOS's launchctl as public issues describe it: bootout returns while the service is still going
# (headroom issue 1289), bootstrap fails of that with code 5 (tuist issue 10143), "loaded" is not "running", over ssh
# with nobody at the screen the domain is refused, and there is no `start` in a domain.
cd "{folder}" || exit 1
echo "$*" >>asked
[ ! -e going ] || [ $(($(date +%s) - $(cat going))) -lt 1 ] || rm -f going loaded running
case $1 in
bootstrap)
    [ ! -e nobody ] || {{ echo "Bootstrap failed: 125: Domain does not support specified action" >&2; exit 125; }}
    [ ! -e loaded ] || {{ echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }}
    [ -e "$3" ] || exit 1
    : >loaded; [ -e dies ] || : >running ;;
bootout)
    [ -e loaded ] || {{ echo "Boot-out failed: 3: No such process" >&2; exit 3; }}
    [ -e going ] || date +%s >going ;;
kickstart) [ -e loaded ] || exit 113; : >running ;;
kill) [ -e running ] || exit 3; rm running ;;
enable | disable) ;;
print)
    [ -e loaded ] || {{ echo "Could not find service" >&2; exit 113; }}
    [ -e running ] && echo "	state = running" || echo "	state = not running" ;;
*) echo "Unrecognized subcommand: $1" >&2; exit 64 ;;
esac
"""


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A macOS for service.py, as far as it can be had elsewhere; the folder where the stand-in keeps its notes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "launchctl").write_text(LAUNCHCTL.format(folder=folder))
    (folder / "launchctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return folder


def install_on_mac(home: Path, args: Options) -> bool:
    argv = jupyter_argv(str(home / "current/cpu"), args.port, str(args.notebook_dir))
    return service.install(service.Launchd(SCREEN), home, "cpu", argv, servers.token_file(home), args.port)


def test_launchd_agent_is_made_once_and_removed(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    args = options(home)
    manager = service.find_manager(SCREEN)
    assert isinstance(manager, service.Launchd)
    assert install_on_mac(home, args)
    agent = plistlib.loads(manager.path.read_bytes())
    token_file = Path(agent["EnvironmentVariables"]["COLAB_LOCAL_TOKEN_FILE"])
    assert agent["Label"] == manager.path.stem == "org.colab-local.jupyter"
    assert agent["ProgramArguments"][0] == str(home / "current/cpu/colab/jupyter-notebook")
    assert f"--port={args.port}" in agent["ProgramArguments"]
    assert agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert token_file.read_text() not in manager.path.read_text()
    assert f"bootstrap gui/{os.getuid()} {manager.path}" in (mac / "asked").read_text()
    assert not install_on_mac(home, args), "the second run must find nothing to do"

    assert service.uninstall(home, True, SCREEN) == 0
    assert manager.path.exists()
    assert service.uninstall(home, False, SCREEN) == 0
    assert not (mac / "loaded").exists()
    assert not (tmp_path / "user").exists(), "folders it made are gone"
    assert not token_file.exists()
    assert not (home / "receipts" / "service.json").exists()
    assert service.uninstall(home, False, SCREEN) == 0, "nothing there: nothing to do"


def test_launchd_is_waited_for_and_loaded_is_not_running(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    args = options(home)
    assert install_on_mac(home, args)
    manager = service.Launchd(SCREEN)
    assert manager.is_active()
    subprocess.run(manager.command("stop"), check=True)
    assert not manager.is_active(), "it is still loaded"
    subprocess.run(manager.command("start"), check=True)
    assert manager.is_active()
    subprocess.run(manager.command("stop"), check=True)
    # New settings: the older version has to go first, and that takes a moment.
    assert install_on_mac(home, args._replace(port=free_port()))
    assert (mac / "running").exists()
    asked = (mac / "asked").read_text().splitlines()
    boots = [line.split()[0] for line in asked if line.split()[0] in ("bootout", "bootstrap")]
    assert boots[-2:] == ["bootout", "bootstrap"], "and not bootstrap again and again"


def test_over_ssh_with_nobody_at_the_screen_macos_refuses_and_that_is_explained(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    (mac / "nobody").touch()
    with pytest.raises(Failure, match="only while that user is logged in at the Mac's screen") as refusal:
        install_on_mac(home, options(home))
    assert "125" in refusal.value.what and refusal.value.code == EXIT_MACHINE
    (mac / "nobody").unlink()
    assert install_on_mac(home, options(home)), "the same command again"


def test_a_running_service_of_another_environment_is_not_restarted_unasked(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    assert install_on_mac(home, options(home))
    path = service.Launchd(SCREEN).path
    before, asked = path.read_bytes(), (mac / "asked").read_text()
    argv = jupyter_argv(str(home / "current/gpu"), free_port(), str(home))
    again = (service.Launchd(SCREEN), home, "gpu", argv, servers.token_file(home), free_port())
    with pytest.raises(Failure, match=r"with environment cpu \(need gpu\): it is not restarted") as refusal:
        service.install(*again)
    assert path.read_bytes() == before
    new = (mac / "asked").read_text().removeprefix(asked)
    assert not re.search("bootout|bootstrap|kill|kickstart", new), new
    # What the hint says does it.
    subprocess.run(refusal.value.hint.partition("   ")[0].split(), check=True)
    assert service.install(*again)
    assert "current/gpu" in path.read_text()


def test_new_settings_wait_while_kernels_run(tmp_path: Path, mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = prepared_home(tmp_path)
    args = options(home)
    assert install_on_mac(home, args)
    monkeypatch.setattr(service, "find_server", lambda home, env: {"port": 1, "token": "t"})
    monkeypatch.setattr(service, "api", lambda port, token, method, path: [{}, {}])
    with pytest.raises(Failure, match="2 kernels run in it"):
        install_on_mac(home, args._replace(port=free_port()))
    monkeypatch.setattr(service, "api", lambda port, token, method, path: [])
    assert install_on_mac(home, args._replace(port=free_port()))


def test_what_the_user_changed_is_kept(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    assert install_on_mac(home, options(home))
    path = service.Launchd(SCREEN).path
    path.write_text(path.read_text() + "<!-- mine -->")
    service.uninstall(home, False, SCREEN)
    assert not path.exists()
    assert "<!-- mine -->" in path.with_name(path.name + ".yours").read_text()


def test_the_service_of_another_home_outlives_a_copy_of_it(tmp_path: Path, mac: Path) -> None:
    home, copy = prepared_home(tmp_path), tmp_path / "copy"
    assert install_on_mac(home, options(home))
    shutil.copytree(home, copy, symlinks=True)
    assert service.uninstall(copy, False, SCREEN) == 0
    assert not (copy / "receipts" / "service.json").exists()
    assert service.Launchd(SCREEN).path.exists() and (mac / "loaded").exists()
    assert servers.token_file(home).exists()


def test_a_strangers_service_is_left_alone(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    path = service.Launchd(SCREEN).path
    path.parent.mkdir(parents=True)
    path.write_text("not ours")
    with pytest.raises(Failure, match="there is a service of that name already"):
        install_on_mac(home, options(home))
    assert path.read_text() == "not ours"
    assert not (mac / "asked").exists()


def test_a_port_in_use_is_an_error_before_anything_is_written(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = options(home)._replace(port=taken.getsockname()[1])
        with pytest.raises(Failure, match=f"port {args.port} is taken") as failure:
            install_on_mac(home, args)
    assert failure.value.code == EXIT_MACHINE
    assert "--port" in failure.value.hint
    assert not (tmp_path / "user").exists()


def test_a_dry_run_names_the_service_and_makes_nothing(
    mac: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options(prepared_home(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert service.command(args, True, SCREEN) == EXIT_OK
    assert str(service.Launchd(SCREEN).path) in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
