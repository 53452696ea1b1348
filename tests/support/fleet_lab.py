"""A fleet for tests: hosts in network namespaces, checkouts to roll out, and Ansible on the laptop.

    with Fleet(tmp_path, count=8) as fleet:
        fleet.roll_out(make_checkout(folder, small_layer()).with_bundle())
        run = fleet.play("deploy.yml", "--check")      ansible-playbook on the laptop, over ssh
        run.hosts("changed"), run.output               what the recap says

The checkouts are real ones with a small lock (Jupyter and the extensions, no TensorFlow), so that eight
installations take seconds. The hosts have no network but the lab's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.conftest import REPO, free_port, supported_python
from tests.support.hosts import Lab, Machine, wait_for
from tests.support.mirror import light_layer

FLEET = REPO / "scripts" / "fleet"


@dataclass(frozen=True)
class Checkout:
    """A version to roll out. folder: the checkout; bundle: a bundle of its cpu environment, once it is made."""

    folder: Path

    @property
    def bundle(self) -> Path:
        """Where with_bundle() puts the bundle."""
        return self.folder.with_suffix(".tar")

    def with_bundle(self) -> Checkout:
        """Make the bundle for the host engine and the Python that the hosts use; return self."""
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.run([supported_python(), "-c", code], capture_output=True, text=True, check=True)
        argv = [sys.executable, str(self.folder / "scripts" / "bundle.py"), "--env", "cpu", "--engine", "host"]
        argv += ["--python", version.stdout.strip(), "--output", str(self.bundle)]
        subprocess.run(argv, check=True, timeout=300)
        return self


def make_checkout(folder: Path, pypi: str) -> Checkout:
    """Copy the program into `folder` with lockfiles whose cpu environment has the Python layer `pypi`."""
    for part in ("environments", "scripts", "lockfiles", "colab_local"):
        shutil.copytree(REPO / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(REPO / "bootstrap.py", folder)
    index_path = folder / "lockfiles" / "index.json"
    index = json.loads(index_path.read_text())
    (folder / "lockfiles" / "cpu" / "pypi.txt").write_text(pypi)
    index["environments"] = {"cpu": index["environments"]["cpu"]}
    cpu = index["environments"]["cpu"]
    cpu["pypi"]["sha256"] = hashlib.sha256(pypi.encode()).hexdigest()
    for platform in cpu["platforms"].values():
        platform["bytes"] = {"pypi_download": 70_000_000, "pypi_installed": 250_000_000}
    index_path.write_text(json.dumps(index, indent=1))
    return Checkout(folder)


# Who uses Ansible has what a distribution ships: the oldest that we support, and today's. Each is made on demand.
ANSIBLES = {"oldest": ("ansible-core==2.16.*", (3, 10), (3, 12)), "newest": ("ansible-core", (3, 12), (3, 99))}


def make_ansible(which: str, folder: Path) -> Path:
    """Install an Ansible ("oldest" or "newest") with uv into a venv of its own; return the venv's bin folder.

    The newest is the newest that takes one of this machine's Pythons.
    """
    requirement, least, most = ANSIBLES[which]
    names = [f"python3.{minor}" for minor in range(most[1] if most[1] < 20 else 14, least[1] - 1, -1)]
    candidates = [*(path for name in names if (path := shutil.which(name))), supported_python()]
    code = "import sys; print(*sys.version_info[:2])"
    for python in candidates:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and least <= tuple(map(int, asked.stdout.split())) <= most:
            break
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    target = folder / f"ansible-{which}"
    subprocess.run([uv, "venv", "--quiet", "--python", python, str(target)], check=True, timeout=120)
    pip = [uv, "pip", "install", "--quiet", "--python", str(target), requirement]
    subprocess.run(pip, check=True, timeout=600)
    return target / "bin"


def without(requirements: str, package: str) -> str:
    """Return a locked requirements file less one package."""
    return re.sub(rf"(?m)^{re.escape(package)}==.*(\n[ \t].*)*\n", "", requirements)


def small_layer() -> str:
    """Return the repository's Python layer without what is big."""
    return str(light_layer((REPO / "lockfiles" / "cpu" / "pypi.txt").read_text()))


@dataclass(frozen=True)
class Play:
    """What one run of ansible-playbook did: exit status, output, and its recap per host."""

    status: int
    output: str
    seconds: float
    recap: dict[str, dict[str, int]] = field(default_factory=dict)

    def hosts(self, what: str) -> set[str]:
        """Return the hosts whose recap counts any `what`: changed, failed, unreachable, ok."""
        return {host for host, counts in self.recap.items() if counts[what]}

    @property
    def flat(self) -> str:
        """The output on one line: Ansible wraps long messages."""
        return " ".join(self.output.split())


def read_recap(output: str) -> dict[str, dict[str, int]]:
    """Return {host: {"ok": 3, "changed": 0, ...}} of ansible-playbook's last lines."""
    _, _, recap = output.partition("PLAY RECAP")
    return {
        line.split(":")[0].strip(): {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)}
        for line in recap.splitlines()
        if "ok=" in line
    }


class Fleet:
    """A laptop with Ansible and `count` hosts, node1 to nodeN. Use as a context manager."""

    def __init__(self, folder: Path, count: int, ansible: Path | None = None) -> None:
        self.folder = folder
        self.ansible = ansible or Path(sys.executable).parent
        self.lab = Lab(folder / "lab")
        self.count = count
        self.nodes: list[Machine] = []
        self.servers: list[subprocess.Popen[bytes]] = []
        self.inventory = folder / "inventory"  # a folder, as the README says
        # All hosts lie on one disk here: what one has unpacked the others link.
        self.environment = {"UV_CACHE_DIR": str(folder / "uv-cache")}
        self.variables: dict[str, object] = {
            "ansible_python_interpreter": supported_python(),
            "colab_local_python": supported_python(),
            "colab_local_engine": "host",
            "colab_local_port": free_port(),
            "colab_local_environment": self.environment,
        }

    def __enter__(self) -> Fleet:
        self.lab.__enter__()
        try:
            self.nodes = self.lab.hosts(self.count)
            for node in self.nodes:  # Ansible copies files by sftp, which every distribution's sshd offers
                with (node.folder / "etc" / "sshd_config").open("a") as config:
                    config.write("Subsystem sftp internal-sftp\n")
                node.stop()
                node.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the servers, then the hosts."""
        for server in self.servers:
            server.kill()
            server.wait()
        self.lab.close()
        for node in self.nodes:  # 5 GB of environments; the logs stay
            shutil.rmtree(node.home, ignore_errors=True)

    def node(self, which: int | Machine) -> Machine:
        """Return node<which>."""
        return which if isinstance(which, Machine) else self.nodes[which - 1]

    def home(self, which: int | Machine) -> Path:
        """Return where a node's environments land."""
        return self.node(which).home / ".local" / "share" / "colab-local"

    def work(self, which: int | Machine) -> Path:
        """Return where a node's program and bundle lie."""
        return self.node(which).home / ".cache" / "colab-local-fleet"

    @property
    def records(self) -> Path:
        """Where the controller writes down what fingerprints stand for."""
        return self.lab.laptop.home / ".local" / "state" / "colab-local-fleet"

    def roll_out(self, checkout: Checkout) -> None:
        """Let the next plays be about this checkout and its bundle."""
        self.variables.update(colab_local_checkout=str(checkout.folder), colab_local_bundle=str(checkout.bundle))

    def serve(self, folder: Path, login: str = "", machine: Machine | None = None) -> str:
        """Serve a folder over HTTP on the lab's network; return its URL, the login in it.

        login: USER:PASSWORD that is asked for, or ""; machine: where the server runs, the laptop by default. What was
        asked for is in folder.log, beside the folder.
        """
        machine = machine or self.lab.laptop
        port = free_port()
        argv = [
            sys.executable,
            str(REPO / "tests" / "support" / "web.py"),
            str(folder),
            machine.address,
            str(port),
            login,
        ]
        with folder.with_suffix(".log").open("wb") as log:
            self.servers.append(
                subprocess.Popen(machine.enter(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
        wait_for(lambda: b"serving" in folder.with_suffix(".log").read_bytes(), 30, "the web server")
        return f"http://{login}{'@' if login else ''}{machine.address}:{port}/"

    def processor_seconds(self) -> float:
        """Return the processor time that Ansible and its ssh have taken on the laptop until now.

        Its children that have ended count by themselves. The masters of ssh's connections do not: they outlive the
        play by a minute, and they are the ones that encrypt.
        """
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = ended.ru_utime + ended.ru_stime
        for pid in self.lab.laptop.inhabitants():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def play(self, playbook: str, *options: str, check: bool = True, **variables: object) -> Play:
        """Run a playbook of scripts/fleet on the laptop with `variables` for all hosts; return what it did.

        check: that it succeeded.
        """
        hosts: dict[str, object] = {node.name: {} for node in self.nodes}
        together = {**self.variables, **variables}
        (self.inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.inventory / "hosts.yml").write_text(json.dumps({"colab_local": {"hosts": hosts}}))
        (self.inventory / "group_vars" / "colab_local.yml").write_text(json.dumps(together))
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANSIBLE", "XDG_", "UV_", "PIP_"))
        }
        env.update(ANSIBLE_CONFIG=str(FLEET / "ansible.cfg"), ANSIBLE_TIMEOUT="5", ANSIBLE_NOCOLOR="1")
        started = time.monotonic()
        done = self.lab.laptop.run(
            [
                str(self.ansible / "ansible-playbook"),
                "-i",
                str(self.inventory),
                str(FLEET / playbook),
                *options,
            ],
            check=False,
            timeout=1200,
            env=env,
        )
        output = done.stdout + done.stderr
        (self.folder / "ansible.log").open("a").write(f"$ {playbook} {options}\n{output}\n")
        assert done.returncode == 0 or not check, output
        return Play(done.returncode, output, time.monotonic() - started, read_recap(output))
