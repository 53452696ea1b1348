"""connect.py and what stands between a log-in and our program: start-up files, forced commands, odd settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colab_local.laptop import ssh as ssh_module
from tests.conftest import Installed
from tests.support.connecting import TYPED, install, run, run_hurried, running
from tests.support.hosts import Lab, Machine, needs_root

pytestmark = needs_root


@pytest.fixture
def gpubox(lab: Lab) -> Iterator[Machine]:
    """The host; its start-up file is gone again afterwards."""
    host = lab.machines["gpubox"]
    yield host
    (host.home / ".bashrc").unlink(missing_ok=True)
    host.set_shell("/bin/bash")


STATUS = (1, "no Jupyter of colab-local runs on gpubox\n")
ORDERS = ("--status", "--stop", "--install")  # of what is refused, each is tried by one

# Lines of the laptop's ssh configuration that leave a session without a shell, without input, silent.
CONFIGURATIONS = (
    "SessionType none",
    "SessionType subsystem",
    "StdinNull yes",
    "ForkAfterAuthentication yes",
    "RequestTTY force\nRemoteCommand tmux",
    "LogLevel QUIET",
    "PermitLocalCommand yes\nLocalCommand sleep 600",
    "LocalForward 22 localhost:80\nDynamicForward 22\nExitOnForwardFailure yes",
    "ControlMaster ask\nControlPath /dev/null\nControlPersist yes",
)


@pytest.mark.parametrize("lines", CONFIGURATIONS)
def test_what_the_laptops_configuration_may_say(lab: Lab, gpubox: Machine, tmp_path: Path, lines: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host gpubox\n{lines}\n" + (lab.laptop.home / ".ssh/config").read_text())
    done = run(lab, "--status", "-F", str(config), "gpubox", timeout=60)
    assert (done.returncode, done.stdout) == STATUS, done.stderr


def test_silence_is_no_reason_to_say_nothing(lab: Lab, gpubox: Machine) -> None:
    no_key = ["-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"]
    done = run(lab, "--status", "-o", "LogLevel=QUIET", *no_key, "gpubox", timeout=60)
    assert done.stderr.startswith("error: gpubox does not let you in"), done.stderr


# Start-up files that set what breaks Python there, and do no harm.
HARMLESS = (
    "export PYTHONHOME=/opt/python2 PYTHONPATH=/opt/lib",
    "export LD_LIBRARY_PATH={home}/lib",
    "export PYTHONWARNINGS=error PYTHONOPTIMIZE=2",
    "set -eu",
    "ulimit -n 64",
    "echo 'colab-local>{{\"ok\": 3}}'; echo 'colab-local>[1]'",
    'echo \'colab-local>{{"ok": true, "hello": "gpubox"}}\'',
    "mkdir {home}/gone; cd {home}/gone; rmdir {home}/gone",
    "export PATH=/no/such",
    "unset PATH",
    "exec() {{ echo no; }}; sh() {{ echo no; }}; export -f sh",
    "read -t 1 -r project",
    "head -c 10000000 /dev/zero",
    "yes | head -c 10000000 >&2",
    "printf '\\033[2J\\033]0;title\\007no newline'",
    "export LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=latin-1:strict",
    "set -fx; IFS=/; CDPATH=/; umask 777; ulimit -f 0; stty sane; bind x",
    "trap 'echo bye' EXIT; exec 2>&-",
    "export PYTHONSTARTUP=/etc/passwd PYTHONINSPECT=1 BASH_ENV=/etc/passwd LC_ALL=xx_YY TMPDIR=/no/such",
    "mkdir -p {home}/lib; echo 1/0 >{home}/lib/json.py; export PYTHONPATH={home}/lib",
)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_the_hosts_start_up_files_may_do(lab: Lab, gpubox: Machine, line: str) -> None:
    (gpubox.home / "lib").mkdir(exist_ok=True)
    (gpubox.home / "lib" / "libz.so.1").write_text("not a library")
    (gpubox.home / ".bashrc").write_text(line.format(home=gpubox.home) + "\n")
    done = run(lab, "--status", "gpubox", timeout=60)
    assert (done.returncode, done.stdout) == STATUS, done.stderr


# Start-up files that take the line from us: (line, what has to be said).
TAKEN = {
    "waits": ("exec sleep 600", "nothing came within"),
    "another shell": ("exec cat", "nothing came within"),
    "reads": ("echo Project?; read -r project", "it said: Project?"),
    "runs what it hears": ("exec zsh", "nothing came within"),
    "tmux": ("exec tmux", "needs a terminal"),
    "ends": ("echo 'This account is currently not available.'; exit 1", "runs no programs for you"),
    "says why": ("echo 'quota exceeded'; exit 1", "it said: quota exceeded"),
    "says nothing": ("exit 3", "ended the session (exit status 3)"),
    "other words than ssh's": ("exec ssh nosuch", "it said: ssh: Could not resolve hostname nosuch"),
    "runs nothing": ("set -n", "ended the session (exit status 0)"),
    "says it elsewhere": ("exec >/dev/null", "nothing came within"),
    "no input": ("exec 0</dev/null", "it said: its input is closed"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_start_up_files_that_take_the_line_are_named(lab: Lab, gpubox: Machine, case: str) -> None:
    line, words = TAKEN[case]
    (gpubox.home / ".bashrc").write_text(line + "\n")
    done = run_hurried(lab, ORDERS[list(TAKEN).index(case) % 3], "gpubox")
    error, hint = done.stderr.splitlines()
    assert done.returncode == 1
    assert words in error
    assert hint.startswith("hint: ")
    assert "~/.bashrc" in error or case == "ends"
    assert "import" not in error, "our program was taken for commands"


@pytest.mark.parametrize("kind", ["start-up files", "configuration"])
def test_an_installation_and_a_stop_go_through_all_that_is_harmless(
    lab: Lab, gpubox: Machine, tmp_path: Path, kind: str
) -> None:
    """All at once: it takes the program there, has it run, and brings its words back."""
    config = tmp_path / "config"
    config.write_text((lab.laptop.home / ".ssh/config").read_text())
    if kind == "configuration":
        lines = "".join(f"Host gpubox\n{lines}\n" for lines in CONFIGURATIONS)
        config.write_text(lines + config.read_text())
    else:
        (gpubox.home / "lib").mkdir(exist_ok=True)
        settings = ("export", "set", "unset")  # last: the others run programs
        kept = [line for line in HARMLESS if "umask" not in line]  # with that nothing can be installed
        ordered = sorted(kept, key=lambda line: line.startswith(settings))
        (gpubox.home / ".bashrc").write_text("\n".join(ordered).format(home=gpubox.home) + "\n")
    there = ["-F", str(config), "gpubox"]
    assert run(lab, "--stop", *there, timeout=60).stdout == "nothing to stop on gpubox\n"
    home = str(gpubox.home / "fresh")
    done = run(lab, "--install", "--bootstrap=--offline /no/such.tar", "--home", home, *there, timeout=120)
    assert "error: on gpubox: " in done.stderr and "/no/such.tar" in done.stderr, done.stderr


# Log-in shells: (shell, what has to be said; nothing where it works).
SHELLS = {
    **dict.fromkeys(("/bin/sh", "/bin/dash", "/bin/zsh", "/usr/bin/fish", "/bin/tcsh"), ""),
    "/bin/rbash": "gpubox gives you a restricted shell",
    "/bin/false": "ended the session (exit status 1)",
    "/usr/sbin/nologin": "gpubox lets you log in and runs no programs for you",
    "/bin/cat": "or its log-in shell, ended the session (exit status 1); it said: ",
    sys.executable: "or its log-in shell, ended the session (exit status 1); it said: SyntaxError",
    "/no/such/shell": "gpubox does not let you in",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_log_in_shells(lab: Lab, gpubox: Machine, shell: str) -> None:
    gpubox.set_shell(shell)
    done = run(lab, "--status", "gpubox", timeout=60)
    if not SHELLS[shell]:
        assert (done.returncode, done.stdout) == STATUS, done.stderr
    else:
        assert SHELLS[shell] in done.stderr
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


# An sshd that lets people in and runs no programs of theirs: (its lines, what has to be said).
SERVERS = {
    "files only": ("ForceCommand internal-sftp", "runs no programs for you; it said: This service allows sftp"),
    "forced": ("ForceCommand echo no", "ended the session (exit status 0); it said: no"),
    "no session": ("MaxSessions 0", "opens no session for you (MaxSessions"),
    "cage": ("ChrootDirectory /var/empty", "let you in, and the line was lost at once"),
    "wraps": ('ForceCommand echo hi >&2; exec sh -c "$SSH_ORIGINAL_COMMAND"', ""),
    "sets": ("SetEnv PYTHONHOME=/no PATH=/no LD_PRELOAD=/no", ""),
}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_that_run_no_programs_for_you(lab: Lab, installed: Installed, name: str) -> None:
    options, words = SERVERS[name]
    host = lab.host(name.replace(" ", "-"), sshd_options=options)
    install(installed, host)
    done = run(lab, "--status" if not words else ORDERS[len(name) % 3], host.name, timeout=60)
    if not words:
        assert (done.returncode, done.stdout) == (1, f"no Jupyter of colab-local runs on {host.name}\n"), done.stderr
        assert run(lab, "--stop", host.name, timeout=60).stdout == f"nothing to stop on {host.name}\n"
    else:
        assert words in done.stderr
        assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


# What is typed for the host: (words, exit code, what has to be said).
DESTINATIONS = {
    "ssh://root@gpubox:22": (1, "no Jupyter of colab-local runs on gpubox"),
    "GPUBOX": (1, "no Jupyter of colab-local runs on GPUBOX"),
    "gpubox:2222": (5, "no machine is known by the name gpubox:2222\nhint: {typed} -p 2222 gpubox\n"),
    "-J nosuch gpubox": (5, "no machine is known by the name nosuch\n"),
    "-J gpubox:23 gpubox": (5, "gpubox is there, but no ssh server listens"),
    "-o ProxyCommand=false gpubox": (5, "the jump host or ProxyCommand on the way to gpubox failed"),
    "-o Port=99999 gpubox": (2, "ssh does not take these options (command-line line 0: Bad port"),
    "-o Ciphers=none gpubox": (2, "ssh does not take these options (command-line line 0: Bad SSH2 cipher"),
    "-o KexAlgorithms=diffie-hellman-group1-sha1 gpubox": (1, "have nothing in common to encrypt with"),
    "'a host'": (2, "a host can't be named 'a host'"),
    "''": (2, "a host can't be named ''"),
    "--ssh /no/such gpubox": (1, "/no/such can't be run (No such file or directory), and --ssh names it"),
    "--home /no/such gpubox": (1, "(looked in /no/such)\nhint: {typed} --install --home /no/such gpubox\n"),
}


@pytest.mark.parametrize("words", DESTINATIONS)
def test_how_a_host_may_be_named(lab: Lab, gpubox: Machine, words: str) -> None:
    code, said = DESTINATIONS[words]
    done = run(lab, "--status", *shlex.split(words), timeout=60)
    assert done.returncode == code, done.stderr
    assert said.format(typed=TYPED) in done.stdout + done.stderr


def test_a_forced_command_is_named(lab: Lab, installed: Installed) -> None:
    lab.host("bastion", sshd_options="ForceCommand /bin/bash -l")
    for order in ORDERS:
        done = run_hurried(lab, order, "bastion")
        assert (done.returncode, "ForceCommand" in done.stderr) == (1, True), done.stderr


def test_permit_open_by_name(lab: Lab, installed: Installed) -> None:
    """sshd compares the text of the address that is asked for."""
    named = lab.host("named", sshd_options="PermitOpen localhost:8888")
    install(installed, named)
    closed = lab.host("closed", sshd_options="PermitOpen localhost:1")
    install(installed, closed)
    for name, code, words in (("named", 0, "Paste this into Colab"), ("closed", 1, "PermitOpen")):
        shown = lab.laptop.run(
            [
                "timeout",
                "-s",
                "INT",
                "40",
                "python3",
                str(Path(ssh_module.__file__).parents[2] / "scripts/connect.py"),
                "--remote-port",
                "8888",
                name,
            ],
            check=False,
            timeout=120,
        )
        assert words in shown.stdout + shown.stderr, shown
        assert (shown.returncode in (0, 124)) == (code == 0), shown
        run(lab, "--stop", name)


def test_a_line_that_drops_after_the_first_word_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/sh\nprintf 'colab-local>{\"ready\": true}\\n'\nread -r program\n"
        'printf \'colab-local>{"ok": true, "hello": "gpubox"}\\n\'\nexit 255\n'
    )
    ssh.chmod(0o755)
    for option in ("--status", "--stop"):
        done = run(lab, "--ssh", str(ssh), option, "gpubox", timeout=30)
        assert done.returncode == 5, done.stderr
        assert done.stderr.startswith("error: the line to gpubox dropped before the answer")
        assert len(done.stderr.splitlines()) == 2


# Disks of the host that take nothing more: (what makes its ~/.local so, what is said).
DISKS = {
    "full": ("dd if=/dev/zero of={home}/.local/x bs=1k 2>/dev/null", "No space left on device on full ("),
    "many files": (
        "seq -f {home}/.local/%g 2000 | xargs touch 2>/dev/null",
        "No space left on device on many-files (",
    ),
    "read only": ("mount -o remount,ro {home}/.local", "Read-only file system on read-only ("),
}


@pytest.mark.parametrize("case", DISKS)
def test_a_disk_there_that_takes_nothing_more_is_named(lab: Lab, installed: Installed, case: str) -> None:
    spoil, words = DISKS[case]
    host = lab.host(case.replace(" ", "-"))
    install(installed, host)
    make = (
        "cp -a {home}/.local /run/local; mount -t tmpfs -o size=1M,nr_inodes=200 tmpfs {home}/.local; "
        "cp -a /run/local/. {home}/.local; "
    )
    host.run(["sh", "-c", (make + spoil).format(home=host.home) + "; true"])
    for order in ("", "--install"):
        done = run(lab, *filter(None, [order]), host.name, timeout=60)
        error, hint = done.stderr.splitlines()[-2:]
        assert words in error, done.stderr
        assert hint.startswith("hint: ssh " + host.name + (" df -i" if case == "many files" else " "))
    for order, said in (("--status", "no Jupyter of colab-local runs on "), ("--stop", "nothing to stop on ")):
        assert run(lab, order, host.name, timeout=60).stdout == said + host.name + "\n", "looking needs no disk"
    host.stop()


@pytest.mark.parametrize("options", ["size=4k,nr_inodes=20", "noexec", "ro"])
def test_the_hosts_tmp_is_not_needed(lab: Lab, installed: Installed, options: str) -> None:
    host = lab.host("tmp-" + options[:2])
    install(installed, host)
    places = (lab.folder, installed.home.resolve(), (installed.prefix / "bin/python").resolve().parents[1])
    kept = [str(place)[4:] for place in places if str(place).startswith("/tmp/")]
    make = "mkdir /run/t && mount -t tmpfs -o size=4k tmpfs /run/t && "
    make += "".join(f"mkdir -p /run/t{one} && mount --bind /tmp{one} /run/t{one} && " for one in kept)
    make += f"(dd if=/dev/zero of=/run/t/x bs=1k count=9 2>&1; mount -o remount,{options} /run/t) && "
    host.run(["sh", "-c", make + "mount --move /run/t /tmp"])
    with running(lab, host.name) as link:
        assert link.event("connected")["host"] == host.name
        assert link.end() == 0
    assert run(lab, "--stop", host.name).stdout.startswith(f"stopped Jupyter on {host.name}")
    host.stop()
