"""Machines for tests: a laptop and any number of hosts, each with its own network, sshd, HOME and keys.

    with Lab(tmp_path) as lab:
        gpubox = lab.host("gpubox")                          # on the laptop's network
        login = lab.host("login", networks=("outer", "inner"))
        node = lab.host("node", networks=("inner",))         # reached through login alone
        lab.laptop.run(["ssh", "gpubox", "hostname"])        # key login, known host key, name resolved
        gpubox.cut(); gpubox.restore()                       # the cable
        subprocess.run([*lab.ssh(gpubox), "true"])           # from outside the lab, by ProxyCommand

A machine is a set of Linux namespaces (network, mount, host name, and for hosts processes), not a container:
it sees this file system, but its own /etc (so that `~` is a folder of the test), /run, processes and ports. On one
machine alone, a server that dials the *client's* port finds ssh's own listener there and the fault hides; here it
doesn't.

Nothing is left behind, even if the test run is killed: namespaces have no names, they live as long as their
first process, and that one dies with the thread that made it. Two test runs never meet. Needs root: see
`needs_root`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

PROGRAMS = ("ip", "nsenter", "setpriv", "socat", "ssh", "ssh-keygen", "unshare")
CLONE_NEWNET = 0x40000000  # from <linux/sched.h>
SUBNET = "10.77"  # exists in the lab's own namespaces only

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

# The first process of a machine. $1 its folder, $2 host name, $3 sshd's path or "" (a laptop has none).
FIRST_PROCESS = """
set -e
mount --make-rprivate /
hostname "$2"
ip link set lo up
mount --bind "$1/etc" /etc
mount -t tmpfs tmpfs /run
mkdir /run/sshd
echo ready
if [ -n "$3" ]; then exec "$3" -D -f "$1/etc/sshd_config" -E "$1/sshd.log"; fi
exec sleep infinity
"""

SSHD_CONFIG = """\
Port 22
HostKey {folder}/etc/host_key
AuthorizedKeysFile .ssh/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication {password}
KbdInteractiveAuthentication no
AllowTcpForwarding yes
MaxStartups 100
PrintMotd no
"""


def sshd_path() -> str:
    """Return sshd's absolute path: it insists on one, and users' PATH often lacks sbin."""
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    assert found, "no sshd: install openssh-server"
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until condition() holds; AssertionError naming `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def in_network_of(pid: int) -> Iterator[None]:
    """Within it, sockets that the calling thread (and its children) makes are in that process's network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as outside, Path(f"/proc/{pid}/ns/net").open() as inside:
        assert libc.setns(inside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(outside.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def _hashed(password: str) -> str:
    return subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=password, check=True, capture_output=True, text=True
    ).stdout.strip()


class Machine:
    """One set of namespaces. Made by Lab, not directly.

    name: host name, known to all machines of the lab; folder: holds etc/ and home/; home: HOME of its user
    `root`; addresses: one per network it is on; has_sshd: a host, not a laptop.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        networks: Sequence[str],
        sshd_options: str | None = None,
        password: str | None = None,
        home: Path | None = None,
    ) -> None:
        self.lab = lab
        self.name = name
        self.networks = tuple(networks)
        self.folder = lab.folder / name
        self.home = home or self.folder / "home"
        self.addresses = [lab.new_address(network) for network in networks]
        self.has_sshd = sshd_options is not None
        self._process: subprocess.Popen[str] | None = None
        self._prepare(sshd_options or "", password)

    def _prepare(self, sshd_options: str, password: str | None) -> None:
        # All of /etc is the machine's own. A mount over /etc/passwd alone is lost as soon as anybody on this system
        # makes an account: useradd renames a new file over it, and with that the kernel drops the mount.
        etc, ssh = self.folder / "etc", self.home / ".ssh"
        etc.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "/etc", str(etc)], check=True, stdin=subprocess.DEVNULL)
        ssh.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.set_shell("/bin/bash")
        (etc / "shadow").write_text(f"root:{_hashed(password) if password else '*'}:19000:0:99999:7:::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "hosts").touch()
        settings = SSHD_CONFIG.format(folder=self.folder, password="yes" if password else "no")
        (etc / "sshd_config").write_text(f"{sshd_options}\n{settings}")  # the first value of an option counts
        if self.has_sshd:
            shutil.copy(self.lab.host_key, etc / "host_key")
            shutil.copy(self.lab.host_key.with_suffix(".pub"), etc / "host_key.pub")
        if not password:
            shutil.copy(self.lab.user_key.with_suffix(".pub"), ssh / "authorized_keys")

    def set_shell(self, path: str) -> None:
        """Give its user another log-in shell."""
        ours = f"root:x:0:0:root:{self.home}:{path}\n"
        system = Path("/etc/passwd").read_text().splitlines(keepends=True)
        others = "".join(line for line in system if not line.startswith("root:"))
        (self.folder / "etc/passwd").write_text(ours + others)

    @property
    def address(self) -> str:
        """Its address on the first of its networks."""
        return self.addresses[0]

    def address_for(self, other: Machine) -> str:
        """Return its address on a network that `other` is on too; if there is none, its first."""
        own = dict(zip(self.networks, self.addresses, strict=True))
        return next((own[network] for network in other.networks if network in own), self.address)

    @property
    def pid(self) -> int:
        """The process that holds the namespaces, as this machine numbers it."""
        assert self._process is not None, f"{self.name} is off"
        return self._process.pid

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self._process is not None

    def start(self) -> None:
        """Switch it on and wait until its sshd listens."""
        unshare = ["unshare", "--net", "--mount", "--uts"]
        if self.has_sshd:  # with its own process table: when the first process dies, all die, daemons included
            unshare += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", FIRST_PROCESS, "sh"),
                *(str(self.folder), self.name, sshd_path() if self.has_sshd else ""),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for pytest, which then cleans up
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", f"{self.name} did not start"
        for number, (network, address) in enumerate(zip(self.networks, self.addresses, strict=True)):
            self.lab.plug(self, number, network, address)
        if self.has_sshd:
            wait_for(lambda: self.listens(22), 30, f"sshd of {self.name}, see {self.folder}/sshd.log")

    def stop(self) -> None:
        """Switch it off: every process on it is killed, its files stay."""
        if self._process is None:
            return
        inhabitants = self.inhabitants()
        self._process.kill()
        self._process.wait()
        for pid in inhabitants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def inhabitants(self) -> list[int]:
        """Return the processes in this machine's network: the test started them, nobody else can have."""
        mine = Path(f"/proc/{self.pid}/ns/net").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in (self.pid, os.getpid()):
                with contextlib.suppress(OSError):
                    if (entry / "ns/net").stat().st_ino == mine:
                        found.append(int(entry.name))
        return found

    def enter(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs argv on this machine as its root, given no ssh."""
        space = f"/proc/{self.pid}/ns"
        pid = [f"--pid={space}/pid_for_children"] if self.has_sshd else []
        return [
            *("nsenter", f"--net={space}/net", f"--mount={space}/mnt", f"--uts={space}/uts", *pid, "--"),
            *("env", f"HOME={self.home}", *argv),
        ]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run argv on this machine and return what it did; text captured, stdin empty unless given."""
        done = subprocess.run(
            self.enter(argv), capture_output=True, text=True, timeout=timeout, input=input or "", env=env
        )
        if check:
            assert done.returncode == 0, (
                f"on {self.name}: {argv} exited {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def listens(self, port: int) -> bool:
        """Whether a TCP connection to 127.0.0.1:port succeeds on this machine."""
        with self.network():
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                return False
            return True

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Within it, sockets that the calling thread (and its children) makes are this machine's."""
        with in_network_of(self.pid):
            yield

    def cut(self) -> None:
        """Pull its cables: packets vanish, nobody is told (as when a laptop changes Wi-Fi)."""
        self.lab.switch_ports(self, "down")

    def restore(self) -> None:
        """Put its cables back."""
        self.lab.switch_ports(self, "up")


class Lab:
    """A laptop, hosts, and the switches between them. Use as a context manager.

    folder: an empty or new folder for all files; keep it on a local disk.
    """

    def __init__(self, folder: Path) -> None:
        missing = [program for program in PROGRAMS if not shutil.which(program)]
        assert not missing, f"missing programs: {missing}"
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.machines: dict[str, Machine] = {}
        self._networks: dict[str, int] = {}
        self._used = 10
        self._lock = threading.Lock()
        self.host_key = self._key("host_key")
        self.user_key = self._key("user_key")
        self.ssh_config = self.folder / "ssh_config"
        self.known_hosts = self.folder / "known_hosts"
        self._switch: subprocess.Popen[str] | None = None
        self.laptop: Machine

    def _key(self, name: str) -> Path:
        path = self.folder / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return path

    def __enter__(self) -> Lab:
        try:
            self._switch = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--net",
                    "sh",
                    "-c",
                    "echo ready; exec sleep infinity",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._switch.stdout is not None
            assert self._switch.stdout.readline() == "ready\n"
            self.laptop = self._add("laptop", ("outer",))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Switch everything off. Files stay for whoever wants to read the logs."""
        for machine in self.machines.values():
            machine.stop()
        if self._switch:
            self._switch.kill()
            self._switch.wait()
            assert self._switch.stdout is not None
            self._switch.stdout.close()
            self._switch = None

    def host(
        self,
        name: str,
        networks: Sequence[str] = ("outer",),
        password: str | None = None,
        home: Path | None = None,
        sshd_options: str = "",
    ) -> Machine:
        """Add a host with a running sshd and return it.

        networks: the switches it is on; the laptop is on "outer". password: log in with it instead of a key.
        home: another host's, as on a cluster with a shared file system; default its own.
        sshd_options: first lines of its sshd_config.
        """
        return self._add(name, networks, sshd_options, password, home)

    def hosts(self, count: int, prefix: str = "node") -> list[Machine]:
        """Add `count` hosts, node1 to nodeN."""
        return [self.host(f"{prefix}{number}") for number in range(1, count + 1)]

    def _add(
        self,
        name: str,
        networks: Sequence[str],
        sshd_options: str | None = None,
        password: str | None = None,
        home: Path | None = None,
    ) -> Machine:
        assert name not in self.machines, f"two machines named {name}"
        machine = self.machines[name] = Machine(self, name, networks, sshd_options, password, home)
        machine.start()
        self._introduce()
        return machine

    def _introduce(self) -> None:
        """Tell every machine every name and host key, and write the ssh configurations."""
        hosts = [machine for machine in self.machines.values() if machine.has_sshd]
        key = " ".join(self.host_key.with_suffix(".pub").read_text().split()[:2])
        self.known_hosts.write_text("".join(f"{','.join([h.name, *h.addresses])} {key}\n" for h in hosts))
        common = f"IdentityFile {self.user_key}\nIdentitiesOnly yes\nUserKnownHostsFile {self.known_hosts}\n"
        for machine in self.machines.values():
            names = "".join(f"{other.address_for(machine)} {other.name}\n" for other in self.machines.values())
            (machine.folder / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
            (machine.home / ".ssh/config").write_text(f"Host *\nUser root\n{common}")
        self.ssh_config.write_text(
            "".join(
                f"Host {host.name}\nHostName {host.address}\nProxyCommand {self.proxy_command(host)}\n"
                for host in hosts
                if host.is_on
            )
            + f"Host *\nUser root\n{common}StrictHostKeyChecking yes\nBatchMode yes\n"
        )

    def proxy_command(self, host: Machine) -> str:
        """Return an ssh ProxyCommand that reaches the host's sshd from outside the lab.

        It starts on the laptop, so that cut cables count.
        """
        return f"nsenter --net=/proc/{self.laptop.pid}/ns/net socat - TCP:{host.address}:22"

    def ssh(self, host: Machine) -> list[str]:
        """Return the start of an ssh command that reaches the host from outside the lab."""
        return ["ssh", "-F", str(self.ssh_config), host.name]

    def new_address(self, network: str) -> str:
        """Return the next free address of a network."""
        with self._lock:
            if network not in self._networks:
                self._networks[network] = len(self._networks)
                self._ip(f"link add {network} type bridge", f"link set {network} up")
            self._used += 1
            return f"{SUBNET}.{self._networks[network]}.{self._used}"

    def plug(self, machine: Machine, number: int, network: str, address: str) -> None:
        """Lay a cable from the machine's eth<number> to the network's switch."""
        assert self._switch is not None
        port, card = self._port(address), f"eth{number}"
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))  # survives a restart
        with contextlib.suppress(subprocess.CalledProcessError):
            self._ip(f"link delete {port}")  # the cable of a machine just switched off can linger
        self._ip(
            f"link add {port} type veth peer name {card} address {mac} netns {machine.pid}",
            f"link set {port} master {network} up",
        )
        subprocess.run(
            ["nsenter", f"--net=/proc/{machine.pid}/ns/net", "ip", "-batch", "-"],
            input=f"addr add {address}/24 dev {card}\nlink set {card} up\n",
            text=True,
            check=True,
        )

    def switch_ports(self, machine: Machine, state: str) -> None:
        """Set the switch's side of all cables of a machine "up" or "down"."""
        self._ip(*(f"link set {self._port(address)} {state}" for address in machine.addresses))

    @staticmethod
    def _port(address: str) -> str:
        """Return a cable's name at the switch (at most 15 characters)."""
        return "p" + address.replace(".", "-")[len(SUBNET) :]

    def _ip(self, *commands: str) -> None:
        assert self._switch is not None
        subprocess.run(
            ["nsenter", f"--net=/proc/{self._switch.pid}/ns/net", "ip", "-batch", "-"],
            input="".join(command + "\n" for command in commands),
            text=True,
            check=True,
            capture_output=True,
        )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab with a laptop, for one test (import it where it is used: `from hosts import lab`)."""
    with Lab(tmp_path / "lab") as made:
        yield made
