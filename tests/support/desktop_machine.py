"""A machine with users and desktops for the desktop tests: a lab host with its own /tmp, accounts and programs.

What the tests hide (fonts, a server) is hidden on that machine alone, by an overlay mount in its mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from vncdotool.rfb import _vnc_des, des_encrypt  # type: ignore[import-untyped]

from tests.support.hosts import Lab, Machine, wait_for

REPO = Path(__file__).resolve().parent.parent.parent
# Any Python >= 3.8 will do for the product; the distribution's own is one that other users may run, too.
PYTHON = "/usr/bin/python3"
NEEDED = (
    "Xtigervnc",
    "Xtightvnc",
    "tightvncpasswd",
    "xauth",
    "xset",
    "xfce4-session",
    "xfwm4",
    "xfdesktop",
    "openbox",
    "lxpanel",
    "lxterminal",
    "gnome-panel",
    "metacity",
    "gnome-terminal",
    "sudo",
    "Xvfb",
    "x0tigervncserver",
    "x11vnc",
    "dconf",
    "dbus-run-session",
    "nft",
    PYTHON,
)


def missing_programs() -> list[str]:
    """Return what these tests need and this machine lacks."""
    return [name for name in NEEDED if not shutil.which(name)] + [
        path for path in ("/usr/libexec/vino-server",) if not Path(path).exists()
    ]


@dataclass
class Done:
    """What a run on a terminal did. code: exit code; out, err: its pipes; terminal: what it wrote to /dev/tty."""

    code: int
    out: str
    err: str
    terminal: str = ""


@dataclass
class User:
    """An account on a desktop machine. home: may hold spaces."""

    machine: DesktopMachine
    name: str
    uid: int
    home: Path

    def command(self, argv: Sequence[str], **env: str) -> list[str]:
        """Return the command that runs argv as this user with a fresh log-in's environment and no session bus."""
        path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        pairs = {"HOME": str(self.home), "USER": self.name, "PATH": path, "LANG": "C.UTF-8", **env}
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"] if self.uid else []
        return self.machine.host.enter([*become, "env", "-i", *(f"{k}={v}" for k, v in pairs.items()), *argv])

    def run(self, argv: Sequence[str], check: bool = True, timeout: float = 120, feed: str = "", **env: str) -> str:
        """Run argv as this user; return its standard output."""
        done = subprocess.run(
            self.command(argv, **env), input=feed, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{argv} exited {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def desktop(self, *options: str, feed: str = "", terminal: bool = False, sudo: bool = False) -> Done:
        """Run `bootstrap.py --desktop ...`; with a controlling terminal of its own if `terminal`, or by `sudo`."""
        argv = [PYTHON, str(self.machine.repo / "bootstrap.py"), "--desktop", *options]
        argv = ["sudo", "-n", *argv] if sudo else argv
        command = self.command(argv)
        if not terminal:
            done = subprocess.run(
                command, input=feed, capture_output=True, text=True, timeout=180, start_new_session=True, check=False
            )
            return Done(done.returncode, done.stdout, done.stderr)
        leader, follower = pty.openpty()
        # setsid -c makes the pty the controlling terminal; output goes to pipes, as in `bootstrap.py | tee`.
        quoted = " ".join(shlex.quote(word) for word in command)
        tty = os.ttyname(follower)
        child = subprocess.Popen(
            ["setsid", "-w", "sh", "-c", f"exec 3<{tty}; exec {quoted}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(leader, seen, child))
        reader.start()
        try:
            out, err = child.communicate(timeout=180)
        finally:
            child.kill()
            reader.join()
            os.close(leader)
            os.close(follower)
        return Done(child.returncode, out, err, b"".join(seen).decode(errors="replace"))

    def spawn(self, argv: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a program of this user in the background; it dies with the machine."""
        return subprocess.Popen(
            self.command(argv, **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self) -> dict[int, str]:
        """Return {process id on the machine: command line} of this user."""
        text = self.machine.host.run(["ps", "-o", "pid=,args=", "-ww", "-U", str(self.uid)], check=False).stdout
        pairs = (line.strip().split(None, 1) for line in text.splitlines())
        return {int(pid): command for pid, command in pairs if not command.startswith("ps -o")}

    def pids(self, part: str) -> list[int]:
        """Return the processes of this user whose command line begins with, or contains, `part`."""
        return [pid for pid, command in self.processes().items() if part in command]


def _drain(leader: int, seen: list[bytes], child: subprocess.Popen[str]) -> None:
    while child.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                seen.append(os.read(leader, 4096))


@dataclass
class DesktopMachine:
    """A lab host with a private /tmp and accounts. repo: the repository as this machine sees it."""

    host: Machine
    users: dict[str, User] = field(default_factory=dict)

    @property
    def repo(self) -> Path:
        """Where the repository is mounted: readable by every user, and not below /tmp."""
        return self.host.folder / "repo"

    def prepare(self) -> DesktopMachine:
        """Mount the repository read-only, then a /tmp of its own (X servers keep locks and sockets there)."""
        self.repo.mkdir(exist_ok=True)
        self.host.run(["mount", "--bind", str(REPO), str(self.repo)])
        self.host.run(["mount", "-o", "remount,bind,ro", str(self.repo)])
        self.host.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"])
        self.users["root"] = User(self, "root", 0, self.host.home)
        return self

    def user(self, name: str, uid: int, home: str | None = None) -> User:
        """Add an account. home: the name of its folder, spaces welcome."""
        folder = self.host.folder / "homes" / (home or name)
        folder.mkdir(parents=True)
        with (self.host.folder / "etc/passwd").open("a") as passwd:
            passwd.write(f"{name}:x:{uid}:{uid}::{folder}:/bin/bash\n")
        with (self.host.folder / "etc/shadow").open("a") as shadow:
            shadow.write(f"{name}:*:19000:0:99999:7:::\n")
        keys = folder / ".ssh"
        keys.mkdir(mode=0o700)
        shutil.copy(self.host.lab.user_key.with_suffix(".pub"), keys / "authorized_keys")
        folder.chmod(0o700)
        for path in (folder, keys, keys / "authorized_keys"):
            os.chown(path, uid, uid)
        self.users[name] = User(self, name, uid, folder)
        return self.users[name]

    def own(self, folder: str) -> None:
        """Make changes in a folder of the system stay on this machine alone."""
        layer = self.host.folder / "layers" / folder.strip("/").replace("/", "-")
        if not layer.exists():
            (layer / "upper").mkdir(parents=True)
            (layer / "work").mkdir()
            options = f"lowerdir={folder},upperdir={layer}/upper,workdir={layer}/work"
            self.host.run(["mount", "-t", "overlay", "overlay", "-o", options, folder])

    def hide(self, *paths: str) -> None:
        """Make files or folders of the system disappear on this machine alone."""
        for path in paths:
            self.own(str(Path(path).parent))
            self.host.run(["rm", "-rf", path])

    def allow_sudo(self) -> None:
        """Let every user of this machine become root by sudo without a password."""
        rules = self.host.folder / "etc/sudoers"
        rules.write_text("Defaults env_reset\nALL ALL=(ALL) NOPASSWD: ALL\n")
        rules.chmod(0o440)
        self.host.run(["mount", "--bind", str(rules), "/etc/sudoers"])

    def sabotage(self, path: str, script: str) -> None:
        """Put a script in the place of a program, on this machine alone; the real one becomes PATH.real."""
        self.own(str(Path(path).parent))
        replace = f"[ -e {path}.real ] || mv {path} {path}.real; cat >{path}; chmod 755 {path}"
        self.host.run(["sh", "-c", replace], input=script)

    def listeners(self) -> set[tuple[str, int]]:
        """Return (address, port) of every listening TCP socket, as this machine's kernel has them now."""
        return parse_listeners(self.host.pid)

    @contextlib.contextmanager
    def watched(self, display: int = 1) -> Iterator[set[tuple[str, int]]]:
        """Within it, collect every listener but sshd's, looking as often as this machine can (about 1 ms apart)."""
        seen: set[tuple[str, int]] = set()
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                seen.update(found for found in parse_listeners(self.host.pid) if found[1] != 22)
                time.sleep(0.0005)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()


def parse_listeners(pid: int) -> set[tuple[str, int]]:
    """Return (address, port) of the listening TCP sockets in a process's network, not read by the code under test."""
    found = set()
    for name, loopback, everything in (
        ("tcp", "0100007F", "00000000"),
        ("tcp6", "00000000000000000000000001000000", "0" * 32),
    ):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                meaning = {loopback: "loopback", everything: "everywhere"}.get(address, address)
                found.add((meaning, int(port, 16)))
    return found


@contextlib.contextmanager
def desktop_lab() -> Iterator[Lab]:
    """A lab outside /tmp: the machines get a /tmp of their own, and TightVNC treats a HOME there differently."""
    folder = Path(tempfile.mkdtemp(prefix="desktop-lab-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with Lab(folder) as lab:
            yield lab
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Tunnel:
    """The printed ssh line, typed on the laptop."""

    def __init__(self, lab: Lab, line: str) -> None:
        words = shlex.split(line)
        assert words[0] == "ssh", line
        self.local = int(words[words.index("-L") + 1].split(":")[1])
        self.lab = lab
        extra = ["-T", "-F", str(lab.laptop.home / ".ssh/config"), "-o", "BatchMode=yes"]
        self.process = subprocess.Popen(
            lab.laptop.enter(["ssh", *extra, *words[1:]]),
            stdin=subprocess.PIPE,  # the shell that the line opens there lives until it is closed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Tunnel:
        wait_for(lambda: self.lab.laptop.listens(self.local) or self.process.poll() is not None, 30, "the tunnel")
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)


def vncdo(machine: Machine, port: int, password: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run vncdotool, a real VNC client, on `machine` against its own localhost:port."""
    program = str(Path(sys.executable).parent / "vncdo")
    argv = [program, "-s", f"127.0.0.1::{port}", "-t", "30", "-p", password, *words]
    return subprocess.run(
        machine.enter(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False
    )


def vncdo_in(leader: int, where: int | Path, password: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run vncdotool in the network of the process `leader` against its localhost:port, or a Unix socket."""
    program = str(Path(sys.executable).parent / "vncdo")
    server = str(where) if isinstance(where, Path) else f"127.0.0.1::{where}"
    argv = ["nsenter", f"--target={leader}", "--net", "--", program, "-s", server, "-t", "30"]
    return subprocess.run(
        [*argv, "-p", password, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )


@contextlib.contextmanager
def viewer(port: int, password: str) -> Iterator[socket.socket]:
    """Log in to a VNC server at localhost:port as a viewer does that asks for no pictures (RFC 6143, 7.1 to 7.3)."""
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        stream.settimeout(30)
        stream.sendall(read(stream, 12))
        read(stream, read(stream, 1)[0])
        stream.sendall(b"\x02")
        stream.sendall(des_encrypt(_vnc_des(password), read(stream, 16)))
        assert read(stream, 4) == bytes(4), "it does not let us in"
        stream.sendall(b"\x01")
        *_, length = struct.unpack(">HH16sI", read(stream, 24))
        read(stream, length)
        yield stream


def read(stream: socket.socket, count: int) -> bytes:
    """Read exactly so many bytes."""
    data = b""
    while len(data) < count:
        chunk = stream.recv(count - len(data))
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


def copy(stream: socket.socket, text: str) -> None:
    """Tell a VNC server what was copied here: ClientCutText."""
    stream.sendall(struct.pack(">BxxxI", 6, len(text)) + text.encode("latin-1"))


def copied(stream: socket.socket) -> Iterator[str]:
    """Yield what a VNC server says was copied there: ServerCutText. It is asked for nothing else."""
    while True:
        kind = read(stream, 1)
        if kind == b"\x03":
            yield read(stream, struct.unpack(">xxxI", read(stream, 7))[0]).decode("latin-1")
        else:
            assert kind == b"\x02", f"an unexpected message ({kind!r})"  # a bell


# Chooses type 1 (None) although it was not offered, by hand: no VNC program does that. $1 port.
CHOOSE_NONE = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
version = s.recv(12); s.sendall(version)
types = s.recv(64)
s.sendall(b"\\x01")
try:
    answer = s.recv(4)
    if answer == bytes(4):
        s.sendall(b"\\x01")
        print("let in", s.recv(24))
    else:
        print("refused")
except OSError:
    print("refused")
"""


def check_refusals(machine: Machine, port: int, folder: Path) -> None:
    """Empty and wrong passwords and no password at all are refused; folder: for a picture that must not come."""
    picture = folder / "no.png"
    for wrong in ("", "nope1234"):
        done = vncdo(machine, port, wrong, "capture", str(picture))
        assert done.returncode != 0 and not picture.exists(), (wrong, done)
    assert machine.run([PYTHON, "-c", CHOOSE_NONE, str(port)]).stdout == "refused\n"


def check_picture(path: Path, size: tuple[int, int], most: float = 0.9) -> str | None:
    """Return why a screenshot is not one of a desktop (empty, grey, black, another size), or None.

    most: the share of it that may have one colour.
    """
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    if rgb.size != size:
        return f"size {rgb.size}"
    counts = sorted((count for count, _ in rgb.getcolors(maxcolors=1 << 24) or []), reverse=True)
    if len(counts) < 100:
        return f"{len(counts)} colours only"
    share = counts[0] / (size[0] * size[1])
    return f"{share:.0%} of it in one colour" if share > most else None
