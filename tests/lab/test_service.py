"""bootstrap.py --service under a real systemd: booted in a container of its own, rebooted, crashed, removed."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import os
import platform
import plistlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_MACHINE, EXIT_OK, Failure
from colab_local.install import servers
from colab_local.install.jupyter import jupyter_argv
from colab_local.manage import service
from tests.conftest import REPO, Installed, free_port
from tests.support.colab_client import connect
from tests.support.hosts import in_network_of, needs_root, wait_for

USER, UID = "ada", 61234
PORT = 8888

# Makes a throw-away copy-on-write view of this machine and boots it. $1 work folder, $2... folders that have to be
# there (overlaid too, since they may be mounts). Mounts vanish with the process. systemd-nspawn exits with 133
# when the container reboots.
BOOT = r"""
set -e
work=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$work"
root=$work/root
lay() {  # what where
    mkdir -p "$2"
    up=$(mktemp -d "$work/up.XXXX"); mkdir "$up/up" "$up/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$up/up,workdir=$up/work" "$2"
}
lay / "$root"
for folder do lay "$folder" "$root$folder"; done
sh "$work.prepare" "$root"
for base in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -e $base/cgroup.procs ] || { mkdir "$base/$NAME"; echo $$ >"$base/$NAME/cgroup.procs"; }
done
while
    systemd-nspawn --quiet --directory="$root" --private-network --register=no --keep-unit --boot \
        --machine="$NAME" --hostname=gpubox --console=pipe --link-journal=no --resolv-conf=off --timezone=off ||
        [ $? = 133 ]
do :; done
"""

# Only logind and D-Bus start, none of this machine's own services. $1 the container's root.
PREPARE = """
set -e
rm -rf "$1"/etc/systemd/system/* "$1"/var/lib/systemd/linger
ln -sf /dev/null "$1/etc/tmpfiles.d/tmp.conf"  # else it takes a minute to whiten out what is in /tmp
: >"$1/etc/fstab"; : >"$1/etc/machine-id"
sed -i '/^{user}:/d' "$1/etc/passwd" "$1/etc/group" "$1/etc/shadow"; rm -rf "$1/home/{user}"  # this machine's own
echo '{user}:x:{uid}:{uid}::/home/{user}:/bin/bash' >>"$1/etc/passwd"
echo '{user}:x:{uid}:' >>"$1/etc/group"
echo '{user}:*:19000:0:99999:7:::' >>"$1/etc/shadow"
install -d -o {uid} -g {uid} "$1/home/{user}"
for path in {opened}; do
    while [ "$path" != / ]; do chmod o+rx "$1$path"; path=$(dirname "$path"); done
done
for name in . .lock current receipts run logs; do
    path="$1{home}/$name"
    [ ! -e "$path" ] || chown {uid}:{uid} "$path"
done
"""


class Booted:
    """A booted container: this machine's files, its own systemd, users, network."""

    def __init__(self, work: Path, prepare: str, folders: Sequence[str]) -> None:
        work.mkdir()
        work.with_name(work.name + ".prepare").write_text(prepare)
        self.log = work.with_name(work.name + ".log")
        self.name = f"colab{os.getpid()}x{time.monotonic_ns() % 100000}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
                    *("--pid", "--fork", "--kill-child", "--mount-proc"),  # whatever happens, all die together
                    *("sh", "-c", BOOT, "sh", str(work), *folders),
                ],
                env={**os.environ, "NAME": self.name, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def leader(self) -> int:
        """The container's first process, 0 while there is none."""
        descendants = [self.process.pid]
        for _ in ("sh", "systemd-nspawn", "systemd"):
            descendants = [child for pid in descendants for child in children(pid)]
        return next(iter(descendants), 0)

    def run(
        self, argv: Sequence[str], user: bool = False, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run argv in the container, as root or in a login session of the ordinary user (PAM and all)."""
        if user:
            as_user = [f"--uid={USER}", "--property=PAMName=login", f"--working-directory=/home/{USER}"]
            argv = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *as_user, *argv]
        space = f"--target={self.leader}"
        done = subprocess.run(
            ["nsenter", space, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, f"{list(argv)} exited {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def is_up(self) -> bool:
        """Whether systemd has started everything."""
        if not self.leader:
            assert self.process.poll() is None, self.log.read_text()
            return False
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in ("running", "degraded")

    def answers(self, token: str = "") -> bool:
        """Whether Jupyter answers on its port."""
        try:
            with in_network_of(self.leader):
                servers.api(PORT, token, "GET", "/api/status")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def close(self) -> None:
        """Switch it off: with its first process all die."""
        self.process.kill()
        self.process.wait()
        for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            group = Path(base) / self.name
            wait_for(functools.partial(remove_cgroup, group), 30, f"the end of the processes in {group}")


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that still run."""
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in shown.stdout.split()]


def remove_cgroup(group: Path) -> bool:
    """Remove a control group with those below it; return whether it is gone (it isn't while processes are in it)."""
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not group.exists()


@pytest.fixture(scope="module")
def machine(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    if not shutil.which("systemd-nspawn"):
        pytest.fail("no systemd-nspawn: install systemd-container")
    home = installed.home.resolve()
    python = (installed.prefix / "bin" / "python").resolve()
    prepare = PREPARE.format(user=USER, uid=UID, home=home, opened=f"'{REPO}' '{home}' '{python.parent}'")
    booted = Booted(tmp_path_factory.mktemp("machine") / "m", prepare, [str(REPO), str(home)])
    try:
        wait_for(booted.is_up, 240, f"systemd, see {booted.log}")
        yield booted
    finally:
        booted.close()


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
        show = ["systemctl", "--user", "show", "-p", "MainPID", "--value", service.UNIT]
        return int(machine.run([*as_user, *show], check=False).stdout.strip() or 0)

    killed = main_pid()
    assert killed
    machine.run(["kill", "-KILL", str(killed)])
    wait_for(lambda: main_pid() not in (0, killed) and machine.answers(token), 180, "the restart after kill -9")

    # connect.py's agent stops and starts it as the service that it is.
    agent = "import json; from scripts import connect_agent as a; print(json.dumps(a.{}({{'home': {!r}}})))"
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
    code = f"from scripts import service; raise SystemExit(service.uninstall({str(home)!r}, dry_run={{}}))"
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
    show = "import json,os,sys; json.dump([sys.argv[1:], os.environ['JUPYTER_TOKEN_FILE']], open('/run/seen', 'w'))"
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
    receipt = home / "receipts" / "cpu-0123456789ab" / "receipt.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text(
        json.dumps({"schema": 1, "env": "cpu", "root": str(prefix), "prefix": str(prefix), "created": "2026"})
    )
    return home


def options(home: Path) -> argparse.Namespace:
    return argparse.Namespace(home=str(home), env="cpu", port=free_port(), notebook_dir=str(home), dry_run=False)


def test_without_a_service_manager_it_says_so_and_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = prepared_home(tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    args = options(home)
    with pytest.raises(Failure, match="needs systemd") as failure:
        service.command(args)
    jupyter = home / "current" / "cpu" / "bin" / "jupyter-notebook"
    jupyter.parent.mkdir()
    seen = tmp_path / "seen"
    jupyter.write_text(f'#!/bin/sh\ncat "$JUPYTER_TOKEN_FILE" >"{seen}"\necho " $*" >>"{seen}"\n')
    jupyter.chmod(0o755)
    hint = failure.value.hint.partition("start it by hand: ")[2]
    subprocess.run(["bash", "-c", hint], check=True)
    wait_for(lambda: seen.exists() and "--ip=127.0.0.1" in seen.read_text(), 30, "the hint's command")
    assert seen.read_text().split()[0] == (home / "run" / "jupyter-token").read_text()
    assert not (home / "receipts" / "service.json").exists()


LAUNCHCTL = """#!/bin/sh
# Stands in for macOS's launchctl: notes what it is asked and remembers whether the agent is loaded.
echo "$*" >>"{folder}/asked"
case $1 in
bootstrap) [ -e "$3" ] && : >"{folder}/loaded" ;;
bootout) [ -e "{folder}/loaded" ] && rm "{folder}/loaded" ;;
print) [ -e "{folder}/loaded" ] ;;
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


def install_on_mac(home: Path, args: argparse.Namespace) -> bool:
    argv = jupyter_argv(str(home / "current/cpu"), args.port, args.notebook_dir)
    return service.install(service.Launchd(), home, "cpu", argv, servers.token_file(home), args.port)


def test_launchd_agent_is_made_once_and_removed(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    args = options(home)
    manager = service.find_manager()
    assert isinstance(manager, service.Launchd)
    assert install_on_mac(home, args)
    agent = plistlib.loads(manager.path.read_bytes())
    token_file = Path(agent["EnvironmentVariables"]["JUPYTER_TOKEN_FILE"])
    assert agent["Label"] == manager.path.stem == "org.colab-local.jupyter"
    assert agent["ProgramArguments"][0] == str(home / "current/cpu/bin/jupyter-notebook")
    assert f"--port={args.port}" in agent["ProgramArguments"]
    assert agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert token_file.read_text() not in manager.path.read_text()
    assert f"bootstrap gui/{os.getuid()} {manager.path}" in (mac / "asked").read_text()
    assert not install_on_mac(home, args), "the second run must find nothing to do"

    assert service.uninstall(home, dry_run=True) == 0
    assert manager.path.exists()
    assert service.uninstall(home) == 0
    assert not (mac / "loaded").exists()
    assert not (tmp_path / "user").exists(), "folders it made are gone"
    assert not token_file.exists()
    assert not (home / "receipts" / "service.json").exists()
    assert service.uninstall(home) == 0, "nothing there: nothing to do"


def test_what_the_user_changed_is_kept(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    assert install_on_mac(home, options(home))
    path = service.Launchd().path
    path.write_text(path.read_text() + "<!-- mine -->")
    service.uninstall(home)
    assert not path.exists()
    assert "<!-- mine -->" in path.with_name(path.name + ".yours").read_text()


def test_the_service_of_another_home_outlives_a_copy_of_it(tmp_path: Path, mac: Path) -> None:
    home, copy = prepared_home(tmp_path), tmp_path / "copy"
    assert install_on_mac(home, options(home))
    shutil.copytree(home, copy, symlinks=True)
    assert service.uninstall(copy) == 0
    assert not (copy / "receipts" / "service.json").exists()
    assert service.Launchd().path.exists() and (mac / "loaded").exists()
    assert servers.token_file(home).exists()


def test_a_strangers_service_is_left_alone(tmp_path: Path, mac: Path) -> None:
    home = prepared_home(tmp_path)
    path = service.Launchd().path
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
        args = options(home)
        args.port = taken.getsockname()[1]
        with pytest.raises(Failure, match=f"port {args.port} is taken") as failure:
            install_on_mac(home, args)
    assert failure.value.code == EXIT_MACHINE
    assert "--port" in failure.value.hint
    assert not (tmp_path / "user").exists()


def test_a_dry_run_names_the_service_and_makes_nothing(
    mac: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options(prepared_home(tmp_path))
    args.dry_run = True
    before = sorted(tmp_path.rglob("*"))
    assert service.command(args) == EXIT_OK
    assert str(service.Launchd().path) in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
