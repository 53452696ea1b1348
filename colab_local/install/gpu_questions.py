"""What the NVIDIA driver, nvidia-smi and the machine say of the GPUs here.

Both are asked at the same time, each in a process of its own, within a time limit. A broken card can hang a process
so that it can't even be killed (it waits in the kernel): such a process is left behind, never waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Sequence

from colab_local.base.terminal import Screen
from colab_local.install import gpu, gpu_answers
from colab_local.install.gpu import Decision
from colab_local.install.gpu_answers import BAD_DEVICE, BUSY, NO_DEVICE, DriverAnswer, Gpu, Need, Situation, SmiAnswer

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIMIT_S = 30.0  # eight cards without nvidia-persistenced take 10 to 20 s to wake up
FIRST_WORD_S, EVERY_S = 3.0, 5.0
FIELDS = ("name,driver_version,memory.total,compute_cap", "name,driver_version,memory.total")
MODES = "mig.mode.current,compute_mode"
WSL_FOLDER, NIXOS_FOLDER = "/usr/lib/wsl/lib", "/run/opengl-driver/lib"
VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
TURING, BLACKWELL = 0x1E00, 0x2900  # PCI device ids: they begin with 1e02 and 2901, what came before has lower ones
VIRTUAL_GPU = re.compile(r"^GRID |-\d+[QCAB]$")


class Question:
    """A program that runs beside us and writes its answer into a file: a pipe would tie us to one that hangs.

    problem: why it could not be started; late: it had not ended when its time was over.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the question
        self.problem, self.late = "", False
        self.child: subprocess.Popen[bytes] | None = None
        try:
            self.child = subprocess.Popen(
                list(argv),
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as problem:
            self.problem = problem.strerror or str(problem)

    def done(self) -> bool:
        """Return whether it has ended."""
        return self.child is None or self.child.poll() is not None

    def status(self) -> int:
        """Return its exit status; negative: the signal that ended it."""
        return self.child.returncode or 0 if self.child is not None else 0

    def answer(self) -> bytes:
        """Return what it has written so far."""
        self.output.seek(0)
        return self.output.read(1 << 20)

    def give_up(self) -> None:
        """End it if it can be ended; don't wait for one that can't."""
        self.late = not self.done()
        if self.child is None or not self.late:
            return
        with contextlib.suppress(OSError):
            os.killpg(self.child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(0.5)
        if self.child.returncode is None:  # else Popen would complain that it leaves a child behind
            self.child.returncode = -signal.SIGKILL


def wait_for(questions: Sequence[Question], seconds: float, say: Callable[[str], None]) -> None:
    """Wait until all have ended or their time is over; say that we wait, before people wonder."""
    begun = time.monotonic()
    next_word = begun + FIRST_WORD_S
    while not all(question.done() for question in questions):
        now = time.monotonic()
        if now - begun >= seconds:
            break
        if now >= next_word:
            say(f"Waiting for the NVIDIA driver to answer: {now - begun:.0f} s (up to {seconds:.0f} s)")
            next_word = now + EVERY_S
        time.sleep(0.02)
    for question in questions:
        question.give_up()


def find_libcuda(folders: Sequence[str] = (WSL_FOLDER, NIXOS_FOLDER)) -> str:
    """Return how libcuda.so.1 is opened: by its path in one of these folders, else as the loader knows it."""
    paths = [Path(folder, "libcuda.so.1") for folder in folders]
    return next((str(path) for path in paths if path.exists()), "libcuda.so.1")


def find_nvidia_smi() -> str:
    """Return nvidia-smi's path or ""; WSL2 keeps it off root's PATH."""
    found = shutil.which("nvidia-smi")
    wsl = Path(WSL_FOLDER, "nvidia-smi")
    return found or (str(wsl) if wsl.exists() else "")


def driver_question(needs: Mapping[str, Need], environment: Mapping[str, str]) -> Question:
    """Return libcuda being asked."""
    ptx = {capability: need.ptx for capability, need in needs.items() if need.ptx}
    probe = Path(__file__).with_name("cuda_probe.py")
    return Question([sys.executable, "-I", str(probe), find_libcuda(), json.dumps(ptx)], environment)


def read_driver(question: Question) -> DriverAnswer:
    """Return libcuda's answer from the lines that cuda_probe.py wrote."""
    facts: dict[str, Any] = {}
    devices: list[Gpu] = []
    step = ""
    for line in question.answer().decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            entry = json.loads(line)
            step = entry.get("step", step)
            facts.update(
                {name: entry[name] for name in ("library", "cuda", "status", "status_name") if name in entry}
            )
            if "device" in entry:
                devices.append(Gpu(**entry["device"]))
    crashed = not question.late and question.status() < 0
    return DriverAnswer(
        library=facts.get("library", ""),
        cuda=facts.get("cuda", ""),
        status=facts.get("status", 0),
        status_name=facts.get("status_name", ""),
        gpus=tuple(devices),
        silent_in=step if question.late else "",
        died=-question.status() if crashed else 0,
    )


def smi_question(program: str, fields: str) -> Question:
    """Return nvidia-smi being asked for these fields of every card."""
    return Question([program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"])


def read_smi(program: str, question: Question) -> SmiAnswer:
    """Return nvidia-smi's answer."""
    raw = question.answer()
    text = raw.decode("utf-8", "replace")
    problem = question.problem or ("silent" if question.late else "")
    return SmiAnswer(
        program,
        tuple(gpu_answers.parse_nvidia_smi(text)),
        gpu_answers.readable(raw),
        problem,
        gpu_answers.lost_cards(text),
    )


def ask(
    needs: Mapping[str, Need], say: Callable[[str], None], limit_s: float = LIMIT_S
) -> tuple[DriverAnswer, SmiAnswer]:
    """Return what libcuda and nvidia-smi say; say: gets a line when it takes long."""
    program = find_nvidia_smi()
    first = driver_question(needs, os.environ)
    smi = smi_question(program, FIELDS[0]) if program else None
    wait_for([first, *([smi] if smi else [])], limit_s, say)
    driver, cards = read_driver(first), SmiAnswer()
    if driver.status == NO_DEVICE and VISIBLE in os.environ:
        driver = _unhidden(needs, driver, say, limit_s)
    if smi:
        cards = read_smi(program, smi)
        if not cards.gpus and not cards.problem:  # before driver 510 compute_cap was no field
            older = smi_question(program, FIELDS[1])
            wait_for([older], limit_s, say)
            second = read_smi(program, older)
            cards = second if second.gpus or "not a valid field" in cards.words else cards
        if any(VIRTUAL_GPU.search(card.name) for card in cards.gpus):
            licence = Question([program, "-q"])
            wait_for([licence], limit_s, say)
            cards = replace(cards, unlicensed=bool(re.search(rb"License Status\s*:\s*Unlicensed", licence.answer())))
    if cards.gpus and (driver.status == NO_DEVICE or any(card.context in (BUSY, BAD_DEVICE) for card in driver.gpus)):
        modes = smi_question(program, MODES)
        wait_for([modes], limit_s, say)
        mig, prohibited = gpu_answers.read_modes(modes.answer().decode("utf-8", "replace"))
        cards = replace(cards, mig=mig, prohibited=prohibited)
    version = next((card.driver for card in cards.gpus if card.driver), "") or module_version()
    asked, shown = (tuple(replace(card, driver=version) for card in found) for found in (driver.gpus, cards.gpus))
    return replace(driver, gpus=asked), replace(cards, gpus=shown)


def _unhidden(
    needs: Mapping[str, Need], driver: DriverAnswer, say: Callable[[str], None], limit_s: float
) -> DriverAnswer:
    """Return what libcuda says without CUDA_VISIBLE_DEVICES, which left no card; the first answer if nothing else."""
    again = driver_question(needs, {name: value for name, value in os.environ.items() if name != VISIBLE})
    wait_for([again], limit_s, say)
    found = read_driver(again)
    return replace(found, hidden=True) if found.gpus else driver


# ---------------------------------------------------------------------------------------------------------
# The machine around the driver


def read_line(path: Path) -> str:
    """Return a small file's text, "" if it can't be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()[:4096].decode("utf-8", "replace").strip()
    return ""


def module_version(root: Path = Path("/")) -> str:
    """Return the version of the loaded NVIDIA kernel module, "" if none is loaded."""
    loaded = read_line(root / "sys/module/nvidia/version")
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", read_line(root / "proc/driver/nvidia/version"))
    return loaded or (found.group() if found else "")


def display_controllers(root: Path = Path("/")) -> list[tuple[str, int]]:
    """Return (vendor, PCI device id) of the display controllers and accelerators that the kernel lists."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor = VENDORS.get(read_line(folder / "vendor"), "")
        if vendor and read_line(folder / "class").startswith(("0x03", "0x1200")):
            with contextlib.suppress(ValueError):
                found.append((vendor, int(read_line(folder / "device"), 16)))
    return found


def secure_boot(root: Path = Path("/")) -> bool:
    """Return whether UEFI Secure Boot is on; the variable's fifth byte says it (UEFI specification, 3.3)."""
    for path in (root / "sys/firmware/efi/efivars").glob("SecureBoot-*"):
        with contextlib.suppress(OSError):
            return path.read_bytes()[4:5] == b"\x01"
    return False


def in_container(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is a container: what Docker, Podman, LXC, Apptainer, Kubernetes and systemd leave to see.

    systemd calls WSL a container, too.
    """
    marks = (root / ".dockerenv", root / "run/.containerenv", root / ".singularity.d")
    kinds = {environ.get("container", ""), read_line(root / "run/systemd/container")}
    return "KUBERNETES_SERVICE_HOST" in environ or bool(kinds - {"", "wsl"}) or any(mark.exists() for mark in marks)


def inspect(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Situation:
    """Return what else of this machine explains an answer; root: where the system is, for tests."""
    cards = display_controllers(root)
    nvidia = [device for vendor, device in cards if vendor == "nvidia"]
    container = in_container(root, environ)
    wsl = "microsoft" in read_line(root / "proc/sys/kernel/osrelease").lower() or (root / "dev/dxg").exists()
    return Situation(
        wsl=wsl and not container,  # Docker Desktop's containers have WSL's kernel, but none of its programs
        container=container,
        hostname=platform.node(),
        vendors=tuple(sorted({vendor for vendor, _ in cards})),
        no_card=not nvidia and any((root / "sys/bus/pci/devices").glob("*")),
        old_cards_only=bool(nvidia) and max(nvidia) < TURING,
        new_cards_only=bool(nvidia) and min(nvidia) >= BLACKWELL,
        module=module_version(root),
        open_module="Open Kernel Module" in read_line(root / "proc/driver/nvidia/version"),
        nouveau=(root / "sys/module/nouveau").exists(),
        secure_boot=secure_boot(root),
        ubuntu_drivers=shutil.which("ubuntu-drivers") is not None,
        prime_select=shutil.which("prime-select") is not None,
        visible=environ.get(VISIBLE),
    )


def look(needs: Mapping[str, Need], others: Mapping[str, Mapping[str, Need]], screen: Screen) -> Decision:
    """Return what there is and what to say of it; raise Failure where a lock can't be used with this machine's GPUs.

    needs: of the environment that was asked for; others: of the other environments for a GPU, by name.
    """
    driver, smi = ask(needs, screen.report)
    found = gpu.decide(needs, driver, smi, inspect(), others)
    if found.refusal:
        found.refusal.details["gpus"] = list(found.gpus)
        raise found.refusal
    return found
