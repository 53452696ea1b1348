"""What the NVIDIA driver, nvidia-smi and an index say, in shapes that can be reasoned about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Mapping

# Capabilities that cards have had (NVIDIA: CUDA GPU compute capability). For an index of before 2026-12 alone, which
# said only where they begin.
CAPABILITIES = ("6.0", "6.1", "6.2", "7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0")

# What a card's name tells of its capability where nvidia-smi is too old to tell (before 510). Sources: NVIDIA's pages
# "CUDA GPU Compute Capability" and "Legacy CUDA GPU Compute Capability".
NAMES = (  # the first that fits: TITAN X is Maxwell's or Pascal's, RTX 5000 Turing's or Ada's
    ("12.1", r"\bGB10\b"),
    ("12.0", r"RTX 50[5-9]0|Blackwell"),
    ("10.3", r"\bG?B300\b"),
    ("10.0", r"\bG?B[12]00\b"),
    ("9.0", r"\b(GH|H)\d{2,3}\b"),
    ("8.9", r"RTX 40[5-9]0|\bL(2|4|20|40[GS]?)\b|\bAda\b"),
    ("8.0", r"\bA(100|800|30)X?\b|CMP 170HX"),
    ("8.6", r"RTX 30[5-9]0|\bA(2|10|10[GM]|16|40)\b|RTX ?A\d{3,4}|MX570|CMP [79]0HX"),
    ("7.5", r"RTX 20[5-8]0|GTX 16\d\d|\bT4G?\b|TITAN RTX|(Quadro|GRID) RTX ?\d|\bT\d{2,4}\b|MX[45]50|CMP [3-5]0HX"),
    ("7.0", r"\bV100|TITAN V|GV100|CMP 100"),
    ("2.0", r"GTX? ?[45]\d\d|GeForce [4-8][12]\dM|\b[CM]20[579][05]\b|Quadro (600|[1-7]000M?)$"),
    (
        "5.0",
        r"GTX (745|750|8[56]0M|9\d\d)|GTX TITAN X|\bM\d{1,4}M?\b|\bK(620|[12]200)M?\b"
        r"|GeForce (8[34]0M|920MX|9[34]0M)|MX1[13]0",
    ),
    ("6.0", r"\bP100\b|GP100"),
    ("6.1", r"GTX 10\d\d|GT 10[13]0|TITAN (Xp\b|X$|X \(Pascal)|\bP\d{1,4}\b|MX(150|230|250|330|350)"),
    ("3.5", r"\bK\d{1,4}[a-z]?M?\b|GTX? ?[67]\d\d|GTX 8[78]0M|GeForce 9[12]0M|GTX TITAN|NVS 510|GRID K"),
)

UNTOLD = re.compile(r"\[[\w/ ]+\]")  # what nvidia-smi prints for a field that it can't tell: [N/A], [Not Supported]

# cuInit's and the others' answers (cuda.h, CUresult).
OUT_OF_MEMORY, NOT_INITIALIZED, STUB, BUSY = 2, 3, 34, 46
NO_DEVICE, BAD_DEVICE, UNLICENSED, ECC = 100, 101, 102, 214
NO_CODE, BAD_PTX, NO_JIT, NEWER_PTX, OS_CALL = 209, 218, 221, 222, 304
NOT_SUPPORTED, FABRIC, MISMATCH, COMPAT, UNKNOWN = 801, 802, 803, 804, 999
MPS = range(805, 810)  # CUDA_ERROR_MPS_...


@dataclass(frozen=True)
class Gpu:
    """One card, as far as anything told about it.

    driver: of the kernel module, "" if not told; compute_capability: like 8.9, "" if not told; memory_mib, free_mib:
    0 and -1 if not told; context, ptx: the driver's answer to a context and to the lock's PTX, 0 for yes.
    """

    name: str
    driver: str = ""
    compute_capability: str = ""
    memory_mib: int = 0
    free_mib: int = -1
    uuid: str = ""
    context: int = 0
    ptx: int = 0


@dataclass(frozen=True)
class Need:
    """What a card of one capability needs: CUDA of the driver, Linux driver, and PTX that the driver must read.

    note: what is not proven of the packages on such a card.
    """

    cuda: str = ""
    driver: str = "0"
    ptx: str = ""
    note: str = ""


@dataclass(frozen=True)
class DriverAnswer:
    """What libcuda.so.1 said.

    library: the file that was loaded, "" if there is none; cuda: the newest CUDA that the driver runs, like 12.4;
    status: of cuInit; silent_in: the function that did not come back, "" if all did; died: the signal that ended it;
    hidden: CUDA_VISIBLE_DEVICES hides all these cards.
    """

    library: str = ""
    cuda: str = ""
    status: int = 0
    status_name: str = ""
    gpus: tuple[Gpu, ...] = ()
    silent_in: str = ""
    died: int = 0
    hidden: bool = False


@dataclass(frozen=True)
class SmiAnswer:
    """What nvidia-smi said.

    program: its path, "" if it is not there; problem: why it could not be asked; words: what it said beside cards;
    lost: lines of cards that do not answer; unlicensed: a virtual GPU without its licence; mig: a card is split into
    instances; prohibited: no card may be used for computing (its compute mode). The last two are asked where CUDA
    does not take the cards.
    """

    program: str = ""
    gpus: tuple[Gpu, ...] = ()
    words: str = ""
    problem: str = ""
    lost: int = 0
    unlicensed: bool = False
    mig: bool = False
    prohibited: bool = False


@dataclass(frozen=True)
class Situation:
    """What else of the machine explains an answer.

    vendors: of the display controllers, as PCI names them: nvidia, amd, intel; no_card: PCI lists devices, but no
    NVIDIA card; old_cards_only: all NVIDIA cards are from before Turing, new_cards_only: from Blackwell on; module:
    version of the loaded NVIDIA kernel module, "" if none is; open_module: it is the open one; visible:
    CUDA_VISIBLE_DEVICES, None if it is not set.
    """

    wsl: bool = False
    container: bool = False
    hostname: str = ""
    vendors: tuple[str, ...] = ()
    no_card: bool = False
    old_cards_only: bool = False
    new_cards_only: bool = False
    module: str = ""
    open_module: bool = False
    nouveau: bool = False
    secure_boot: bool = False
    ubuntu_drivers: bool = False
    prime_select: bool = False
    visible: str | None = None


def number(text: str) -> tuple[int, ...]:
    """Return the numbers a version begins with, () for none: "[N/A]", "" ..."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`.

    A line is `name, driver_version, memory.total, compute_cap`; drivers before about 510 have no compute_cap, and
    what a card does not tell is `[N/A]`, `[Insufficient Permissions]`, `ERR!` ... Other lines are warnings, or cards
    that are lost.
    """
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 3 or not re.search("[A-Za-z]", fields[0]) or is_lost(line):
            continue
        capability = fields[3] if len(fields) > 3 and re.fullmatch(r"\d+\.\d+", fields[3]) else ""
        driver = fields[1] if re.fullmatch(r"\d+\.\d+(\.\d+)?", fields[1]) else ""
        if driver or (capability and UNTOLD.fullmatch(fields[1])):
            memory = int(number(fields[2])[0]) if number(fields[2]) else 0
            gpus.append(Gpu(fields[0], driver, capability, memory))
    return gpus or parse_table(text)


def parse_table(text: str) -> list[Gpu]:
    """Return the GPUs in nvidia-smi's table, which a wrapper around it prints whatever it is asked for.

    The driver's version is called KMD Version from 610 on; long names end in dots before 530.
    """
    head = re.search(r"NVIDIA-SMI.*(?:Driver|KMD) Version: *(\d+\.\d+(?:\.\d+)?)", text)
    rows = re.findall(r"(?m)^\| +\d+ +([A-Z]\w.*?) +(?:On|Off|N/A|WDDM|TCC|MCDM) *\| +[\dA-Fa-f]{4,8}:.*\n(.*)", text)
    memory = [re.search(r"/ *(\d+)MiB", second) for _, second in rows]
    return [
        Gpu(name, head.group(1), "", int(found.group(1)) if found else 0)
        for (name, _), found in zip(rows, memory)
        if head and name != "ERR!"
    ]


def read_modes(text: str) -> tuple[bool, bool]:
    """Return whether a card is in MIG mode, and whether all are prohibited: `mig.mode.current,compute_mode`."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.count(",") == 1]
    return any(row[0] == "Enabled" for row in rows), bool(rows) and all(row[1] == "Prohibited" for row in rows)


def without_cuda(name: str) -> bool:
    """Return whether this is a virtual GPU whose profile is for graphics alone: GRID P40-8A, T4-2B4, not 8Q or 8C.

    NVIDIA's vGPU manager lists them with "CUDA enabled: 0x0": https://github.com/DualCoder/vgpu_unlock/issues/70
    """
    return bool(re.search(r"-\d+[AB]\d?$", name))


def is_lost(line: str) -> bool:
    """Return whether a line of nvidia-smi shows a card that fell off the bus, or needs a reset (NVML's words).

    The driver's version is told for such a card, too, and sometimes its name. A card that does not even tell its
    name is one of them: https://github.com/NVIDIA/nvidia-docker/issues/464
    """
    lost = r"\[?(?:GPU is lost|GPU requires reset)\b"
    handle = r"Unable to (?:determine|detect) the device handle(?!.*(?:Permission|Not Found|Not Supported))"
    return bool(re.match(rf"{handle}|{lost}|(?:\[Unknown Error\]|ERR!),|.*, *{lost}", line))


def lost_cards(text: str) -> int:
    """Return how many cards nvidia-smi shows as lost."""
    return sum(is_lost(line) for line in text.splitlines())


def readable(raw: bytes) -> str:
    """Return a program's output as one line for people: whatever bytes it wrote."""
    text = raw.decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def read_needs(requires: Mapping[str, Any]) -> dict[str, Need]:
    """Return {capability: what it needs} of an index's `requires`, in today's and in the older shape."""
    if "gpu" in requires:
        return {
            capability: Need(need.get("cuda", ""), need.get("driver", "0"), need.get("ptx", ""), need.get("note", ""))
            for capability, need in requires["gpu"].items()
        }
    least = number(requires.get("compute_capability", ""))
    if not least:
        return {}
    driver = requires.get("driver", "0")
    return {capability: Need("", driver) for capability in CAPABILITIES if number(capability) >= least}


def capability_by_name(name: str) -> str:
    """Return the capability that a card's name stands for, "" if it stands for none that we know."""
    return next((capability for capability, pattern in NAMES if re.search(pattern, name)), "")


def hides_all(visible: str | None, count: int) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves no card visible; count: how many the machine has.

    CUDA takes the list up to the first entry that is no card (CUDA C++ Programming Guide, environment variables).
    """
    if visible is None:
        return False
    first = visible.split(",")[0].strip()
    if re.match(r"(GPU|MIG)-", first):
        return False
    return not first.isdigit() or int(first) >= count
