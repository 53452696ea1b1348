"""Causes that one sentence of nvidia-smi or one number of CUDA's does not tell by itself: where it is said counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from colab_local.install import gpu, gpu_questions, gpu_reasons
from colab_local.install.gpu_answers import DriverAnswer, Gpu, Need, Situation, SmiAnswer, lost_cards, readable
from tests.support.gpu_machines import Case, make_nvidia_smi

NEEDS = dict.fromkeys(["7.0", "7.5", "8.0", "8.6", "8.9"], Need("12.0", "525.60.13"))
BARE = Situation(hostname="box")

SAYS = {  # what nvidia-smi says, where, a word of the reason, the hint
    # https://github.com/microsoft/WSL/issues/11755
    "wsl-na": (
        "Failed to initialize NVML: N/A\nFailed to properly shut down NVML: N/A",
        Situation(wsl=True),
        "Windows gives WSL no GPU",
        "wsl.exe --update",
    ),
    # https://github.com/microsoft/WSL/issues/9134
    "wsl-not-loaded": (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running.\n\nFailed to properly shut down NVML: Driver Not Loaded",
        Situation(wsl=True),
        "Windows gives WSL no GPU",
        "wsl.exe --update",
    ),
    "permission-and-driver": (
        "NVIDIA: could not open the device file /dev/nvidiactl (Permission denied).\n"
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        BARE,
        "this user may not use the GPU's devices",
        "ls -l /dev/nvidia*",
    ),
    "permission-for-one": (
        "Unable to determine the device handle for GPU 0000:D8:00.0: Insufficient Permissions",
        BARE,
        "this user may not use the GPU's devices",
        "ls -l /dev/nvidia*",
    ),
    # https://github.com/NVIDIA/nvidia-container-toolkit/issues/268
    "podman": (
        "Failed to initialize NVML: Insufficient Permissions",
        Situation(container=True),
        "label=disable",
        "ls -l /dev/nvidia*",
    ),
    # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/259
    "volta-open-module": (
        "Unable to determine the device handle for GPU 0000:D8:00.0: Not Found",
        Situation(old_cards_only=True, module="515.43.04", open_module=True, ubuntu_drivers=True),
        "open kernel modules don't serve this card",
        "sudo apt install nvidia-driver-580",
    ),
    # https://github.com/NVIDIA/nvidia-docker/issues/584
    "function-not-found": (
        "Failed to initialize NVML: Function Not Found",
        Situation(ubuntu_drivers=True),
        "are of two versions",
        "sudo ubuntu-drivers install && sudo reboot",
    ),
    "function-not-found-container": (
        "Failed to initialize NVML: Function Not Found",
        Situation(container=True),
        "the image must not bring its own",
        gpu_reasons.CPU,
    ),
    "function-not-found-wsl": (
        "Failed to initialize NVML: Function Not Found",
        Situation(wsl=True),
        "no Linux driver inside",
        "wsl.exe --update",
    ),
    "power": ("Failed to initialize NVML: Insufficient External Power", BARE, "power cables", gpu_reasons.CPU),
    # https://github.com/Project-HAMi/HAMi/issues/248: a library that shares the card speaks first
    "hami": (
        "[4pdvGPU Warn(28:140476096096064:util.c:135)]: NVML error at line 135: 1\n"
        "Failed to initialize NVML: Unknown Error",
        Situation(container=True),
        "this container has lost its GPU",
        gpu_reasons.CPU,
    ),
    # https://github.com/NVIDIA/nvidia-container-toolkit/issues/69
    "handle-in-a-container": (
        "Unable to determine the device handle for GPU0000:65:00.0: Unknown Error",
        Situation(container=True, hostname="c0ffee"),
        "docker restart c0ffee",
        gpu_reasons.CPU,
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_other_words_and_where_they_are_said(name: str) -> None:
    words, situation, word, hint = SAYS[name]
    smi = SmiAnswer("nvidia-smi", words=readable(words.encode()), lost=lost_cards(words))
    found = gpu.decide(NEEDS, DriverAnswer(), smi, situation).refusal
    assert found and word in found.what and found.hint == hint and found.code == 3


A100 = Gpu("NVIDIA A100 80GB PCIe", "535.183.06", "8.0", 81920)
CUDA = {  # cuInit's answer, what nvidia-smi shows, where, a word of the reason, the hint
    # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/947
    "hmm-container": (3, SmiAnswer("x", (A100,)), Situation(container=True), "(on the host)", gpu_reasons.CPU),
    "3-wsl": (3, SmiAnswer("x", (A100,)), Situation(wsl=True), "does not start", "wsl.exe --shutdown"),
    # https://github.com/mistralai/mistral-inference/issues/144
    "compat": (804, SmiAnswer("x", (A100,)), BARE, "or LD_LIBRARY_PATH leads to a newer libcuda", "sudo reboot"),
    # https://github.com/AIR-DISCOVER/ICRA2024-Sim2Real-AXS/issues/5: cured by a newer driver on the host
    "compat-container": (
        804,
        SmiAnswer("x", (A100,)),
        Situation(container=True),
        "update the driver on the host",
        gpu_reasons.CPU,
    ),
    # https://github.com/NVIDIA/nvtrust/issues/56
    "fabric-container": (802, SmiAnswer("x", (A100,)), Situation(container=True), "conf-compute", gpu_reasons.CPU),
    # https://github.com/wilicc/gpu-burn/issues/36
    "mig-without-instance": (
        100,
        SmiAnswer("x", (A100,), mig=True),
        BARE,
        "split into instances (MIG)",
        "sudo nvidia-smi mig -cgi 0 -C",
    ),
    "mig-container": (
        100,
        SmiAnswer("x", (A100,), mig=True),
        Situation(container=True),
        "split into instances (MIG)",
        gpu_reasons.CPU,
    ),
    # https://github.com/NVIDIA/gpu-operator/issues/600
    "graphics-profile": (
        100,
        SmiAnswer("x", (Gpu("NVIDIA A2-1B", "535.104.06", "8.6", 1024),)),
        BARE,
        "for graphics alone",
        gpu_reasons.CPU,
    ),
    # `unset CUDA_VISIBLE_DEVICES` was tried, and CUDA has no device without it either
    "visible-is-not-the-cause": (
        100,
        SmiAnswer("x", (A100,)),
        Situation(visible="0"),
        "no device",
        "ls -l /dev/nvidia*",
    ),
    # https://github.com/tensorflow/tensorflow/issues/255
    "not-loaded": (
        999,
        SmiAnswer("x", words="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        BARE,
        "kernel module is not loaded",
        "sudo reboot",
    ),
    # https://github.com/ggml-org/llama.cpp/issues/7218
    "uvm-not-loaded": (
        999,
        SmiAnswer("x", (A100,)),
        BARE,
        "nvidia_uvm is not loaded",
        "sudo rmmod nvidia_uvm; sudo modprobe nvidia_uvm",
    ),
}


@pytest.mark.parametrize("name", CUDA)
def test_cuda_that_does_not_start(name: str) -> None:
    status, smi, situation, word, hint = CUDA[name]
    found = gpu.decide(NEEDS, DriverAnswer("libcuda.so.1", "12.2", status), smi, situation).refusal
    assert found and word in found.what and found.hint == hint and found.code == 3


@pytest.mark.parametrize(
    ("answer", "status", "context", "modes"),
    [
        ("Enabled, Default", 100, 0, (True, False)),
        ("[N/A], Prohibited", 0, 101, (False, True)),
        ("Disabled, Prohibited\nDisabled, Exclusive_Process", 0, 46, (False, False)),
        ('Field "mig.mode.current" is not a valid field to query.', 100, 0, (False, False)),
        ("Enabled, Prohibited", 0, 0, (False, False)),  # CUDA takes the card: nobody asks
    ],
)
def test_modes_are_asked_where_cuda_does_not_take_a_card(
    answer: str, status: int, context: int, modes: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "NVIDIA A100 80GB PCIe, 535.183.06, 81920, 8.0\n"
    case = Case("modes", "x86_64", 0, "print", {}, "", {gpu_questions.FIELDS[0]: text, gpu_questions.MODES: answer})
    monkeypatch.setenv("PATH", str(make_nvidia_smi(case, tmp_path / "bin")))
    cards = () if status else (replace(A100, context=context),)
    monkeypatch.setattr(
        gpu_questions, "read_driver", lambda _: DriverAnswer("libcuda.so.1", "12.2", status, gpus=cards)
    )
    driver, smi = gpu_questions.ask(NEEDS, lambda _: None)
    assert (smi.mig, smi.prohibited) == modes
    refusal = gpu.decide(NEEDS, driver, smi, BARE).refusal
    assert bool(refusal) == (status == 100 or modes[1])
    if refusal and modes[1]:
        assert "(Prohibited)" in refusal.what and refusal.hint == "sudo nvidia-smi -c DEFAULT"


def test_a_virtual_gpu_that_lets_nobody_compute() -> None:
    card = Gpu("GRID V100D-32C", "535.129.03", "7.0", 32768, context=801)
    found = gpu.decide(NEEDS, DriverAnswer("libcuda.so.1", "12.2", gpus=(card,)), SmiAnswer(), BARE).refusal
    assert found and "profile or host forbids it" in found.what and found.hint == gpu_reasons.CPU


def test_windows_brings_wsls_library() -> None:
    smi = SmiAnswer("nvidia-smi", (Gpu("NVIDIA GeForce RTX 4070", "610.47", "8.9", 12282),))
    notices = gpu.decide(NEEDS, DriverAnswer(), smi, Situation(wsl=True)).notices
    assert any("no Linux driver inside WSL" in notice for notice in notices)


MACHINES = {  # (PCI ids as vendor, device, class; /proc/driver/nvidia/version; what follows)
    "none": ([], "", (False, False, False, False)),
    "virtual-screen": ([("0x1234", "0x1111", "0x030000")], "", (True, False, False, False)),
    "p4-open": (
        [("0x10de", "0x1bb3", "0x030200")],
        "Open Kernel Module for x86_64  580.178.04",
        (False, True, False, True),
    ),
    "rtx5090": ([("0x10de", "0x2b85", "0x030000")], "x86_64 Kernel Module  575.51.03", (False, False, True, False)),
    "b200": (
        [("0x10de", "0x2901", "0x030200")],
        "Open Kernel Module for x86_64  580.95.05",
        (False, False, True, True),
    ),
    "h100": ([("0x10de", "0x2330", "0x030200")], "x86_64 Kernel Module  550.54.15", (False, False, False, False)),
    "5090-and-1080": (
        [("0x10de", "0x2b85", "0x030000"), ("0x10de", "0x1b80", "0x030000")],
        "x86_64 Kernel Module  580.95.05",
        (False, False, False, False),
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_the_kernel_tells_of_cards_and_module(name: str, tmp_path: Path) -> None:
    cards, module, right = MACHINES[name]
    for number, card in enumerate(cards):
        folder = tmp_path / f"sys/bus/pci/devices/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        for file, text in zip(("vendor", "device", "class"), card, strict=True):
            (folder / file).write_text(text + "\n")
    if module:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(f"NVRM version: NVIDIA UNIX {module}  Release Build\n")
    found = gpu_questions.inspect(tmp_path, {})
    assert (found.no_card, found.old_cards_only, found.new_cards_only, found.open_module) == right
    assert found.module in module and bool(found.module) == bool(module)


@pytest.mark.parametrize(
    ("files", "environ", "container", "wsl"),
    [
        ({}, {}, False, False),
        ({"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2"}, {}, False, True),
        ({"dev/dxg": "", "run/systemd/container": "wsl"}, {"container": "wsl"}, False, True),
        # https://github.com/docker/for-win/issues/10524: Docker Desktop's container without --gpus all
        ({"proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2", ".dockerenv": ""}, {}, True, False),
        ({".singularity.d/env": ""}, {}, True, False),
        ({"run/.containerenv": ""}, {}, True, False),
        ({}, {"container": "lxc"}, True, False),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, False),
    ],
)
def test_containers_and_wsl(
    files: dict[str, str], environ: dict[str, str], container: bool, wsl: bool, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = gpu_questions.inspect(tmp_path, environ)
    assert (found.container, found.wsl) == (container, wsl)
