"""What is decided of a machine's GPUs before anything is downloaded, against recorded answers of nvidia-smi."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colab_local.install import gpu, gpu_questions, gpu_reasons
from colab_local.install.gpu_answers import (
    DriverAnswer,
    Gpu,
    Need,
    Situation,
    SmiAnswer,
    capability_by_name,
    hides_all,
    read_needs,
)
from colab_local.install.lockfiles import read_index
from tests.conftest import REPO
from tests.support.gpu_machines import Case, cases, make_nvidia_smi

SASS = {"cuda": "12.0", "driver": "525.60.13"}
LOCK = {
    "gpu": dict.fromkeys(["6.0", "6.1", "6.2", "7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9"], SASS)
    | {"9.0": {"cuda": "12.5", "driver": "555.42.02", "ptx": "8.5 sm_90a"}}
}
NEEDS = read_needs(LOCK)
BARE = Situation(hostname="box")


def decide_for(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Decision:
    """Return what is decided on a machine whose nvidia-smi answers so, and which has no libcuda."""
    monkeypatch.setenv("PATH", str(make_nvidia_smi(case, folder)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu_questions, "find_libcuda", lambda: "libcuda-that-is-not-there.so.1")
    said: list[str] = []
    assert gpu_questions.FIRST_WORD_S <= 5, "nobody waits longer without a word"
    monkeypatch.setattr(gpu_questions, "FIRST_WORD_S", 0.2 if case.behave == "hang" else 25.0)
    driver, smi = gpu_questions.ask(NEEDS, said.append, 0.7 if case.behave == "hang" else 30.0)
    assert bool(said) == (case.behave == "hang")
    return gpu.decide(
        NEEDS, driver, smi, Situation(hostname="box", visible=case.environment.get("CUDA_VISIBLE_DEVICES"))
    )


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_recorded_answer(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = gpu_reasons.other_platform("Darwin" if case.machine == "darwin" else "Linux", case.machine)
    if platform:
        assert case.right == "refuse" and "--cpu" in platform.hint
        return
    found = decide_for(case, tmp_path / "bin", monkeypatch)
    assert (found.refusal is not None) == (case.right == "refuse"), found
    if found.refusal:
        assert found.refusal.hint and "\n" not in found.refusal.what and found.refusal.code == 3
    if case.right == "accept+note":
        assert len(found.notices) > 2  # the card, the missing libcuda, and what there is to know
    json.dumps(found.gpus)


WHY = {  # the sentence and the hint: each cause has its own
    "mismatch": ("updated under the running kernel module", "sudo reboot"),
    "cant-communicate": ("Secure Boot refuses an unsigned module (mokutil --sb-state)", "sudo reboot"),
    "no-devices": ("finds no card", "sudo dmesg | grep NVRM"),
    "wsl-blocked": ("no Linux driver inside", "wsl.exe --update"),
    "unknown-error": ("a container must restart", "sudo reboot"),
    "no-libnvidia-ml": ("--gpus all", gpu_reasons.CPU),
    "gpu-lost": ("needs a reset", "sudo reboot"),
    "hang": ("nvidia-smi did not come back", "sudo reboot"),
    "absent": ("--gpus all", gpu_reasons.CPU),
    "exec-format": ("can't be run", "command -v nvidia-smi"),
    "k80-418": ("no newer driver helps, the last one for it is 470", gpu_reasons.CPU),
    "gt640-470": ("no newer driver helps, the last one for it is 470", gpu_reasons.CPU),
    "gtx960m-535": ("no code for compute capability 5.0", gpu_reasons.CPU),
    "titan-xp-450": ("NVIDIA's last series for this card is 580", gpu_reasons.CPU),
    "h100-535": ("found 535.104.05, need 555.42.02 or newer", gpu_reasons.CPU),
    "rtx5060ti-590": ("no code for compute capability 12.0", gpu_reasons.CPU),
    "b200": ("8 x the locked packages have no code for compute capability 10.0", gpu_reasons.CPU),
}


@pytest.mark.parametrize("name", WHY)
def test_each_cause_has_its_own_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = decide_for(next(case for case in cases() if case.name == name), tmp_path / "bin", monkeypatch).refusal
    assert found and WHY[name][0] in found.what and found.hint == WHY[name][1]


# Kin of the recorded ones: (what nvidia-smi prints, its exit status, the decision, a word of the reason or the note).
KIN = {
    "windows-line-ends": ("NVIDIA GeForce RTX 3090, 551.76, 24576, 8.6\r\n", 0, "accept", "RTX 3090, driver 551.76"),
    "units-and-head": (
        "name, driver_version, memory.total [MiB], compute_cap\nTesla T4, 535.54.03, 15360 MiB, 7.5\n",
        0,
        "accept",
        "Tesla T4",
    ),
    "warning-first": (
        "WARNING: infoROM is corrupted at gpu 0000:B3:00.0\nTesla T4, 525.60.13, 15360, 7.5\n",
        14,
        "accept",
        "Tesla T4, driver 525.60.13",
    ),
    "one-lost": (
        "NVIDIA A10, 535.54.03, 23028, 8.6\n[GPU is lost], [GPU is lost], [GPU is lost], [GPU is lost]\n",
        15,
        "accept",
        "1 more card is lost",
    ),
    "one-to-reset": (
        "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 9.0\n"
        "[GPU requires reset], [GPU requires reset], [GPU requires reset], [GPU requires reset]\n",
        15,
        "accept",
        "1 more card is lost",
    ),
    "one-without-handle": (
        "NVIDIA A10, 535.54.03, 23028, 8.6\n"
        "Unable to determine the device handle for GPU0000:0B:00.0: Unknown Error\n",
        255,
        "accept",
        "1 more card is lost",
    ),
    # https://github.com/NVIDIA/dcgm-exporter/issues/319: the driver's version is told for a lost card, too
    "one-that-tells-no-name": (
        "NVIDIA A10G, 535.161.08, 23028, 8.6\nERR!, 535.161.08, ERR!, ERR!\n",
        0,
        "accept",
        "1 more card is lost",
    ),
    "lost-with-its-driver": ("[GPU is lost], 535.161.08, [GPU is lost], [GPU is lost]\n", 15, "refuse", "is lost"),
    "lost-with-its-name": ("NVIDIA A10G, 535.161.08, [GPU is lost], [GPU is lost]\n", 15, "refuse", "is lost"),
    "reset-with-its-name": (
        "NVIDIA A10G, 535.161.08, 23028, 8.6\nNVIDIA A10G, 535.161.08, [GPU requires reset], [GPU requires reset]\n",
        15,
        "accept",
        "1 more card is lost",
    ),
    # https://github.com/NVIDIA/nvidia-docker/issues/464
    "unknown-error-for-a-name": ("[Unknown Error], 535.54.03, 11172, [Unknown Error]\n", 0, "refuse", "is lost"),
    # https://github.com/jamesstringer90/Easy-GPU-PV/issues/276
    "detect-the-handle": (
        "Unable to detect the device handle for GPU0000:B1:00.0: Unknown Error\n",
        255,
        "refuse",
        "is lost",
    ),
    # https://github.com/AlexeyAB/darknet/issues/86
    "handle-in-two-lines": (
        "Unable to determine the device handle for GPU 0000:03:00.0: GPU is lost.  Reboot\n"
        " the system to recover this GPU\n",
        15,
        "refuse",
        "is lost",
    ),
    "no-version": ("NVIDIA GeForce RTX 3060, [N/A], 12288, 8.6\n", 0, "accept", "compute capability 8.6"),
    "just-too-old": ("Tesla T4, 525.60.11, 15360, 7.5\n", 0, "refuse", "found 525.60.11, need 525.60.13"),
    "h100-just-new-enough": ("NVIDIA H100 80GB HBM3, 555.42.02, 81559, 9.0\n", 0, "accept", "H100"),
    "h200": ("NVIDIA H200, 550.54.15, 143771, 9.0\n", 0, "refuse", "need 555.42.02 or newer"),
    "errors-in-fields": ("NVIDIA A100-SXM4-40GB, 535.104.05, ERR!, [Unknown Error]\n", 0, "accept", "does not tell"),
    "new-beside-old": (
        "NVIDIA GeForce RTX 5090, 570.86.10, 32607, 12.0\nNVIDIA GeForce RTX 3090, 570.86.10, 24576, 8.6\n",
        0,
        "accept",
        "CUDA_VISIBLE_DEVICES=1",
    ),
    "maxwell-beside-pascal": (
        "NVIDIA GeForce GTX 980 Ti, 535.1, 6144, 5.2\nNVIDIA GeForce GTX 1080 Ti, 535.1, 11264, 6.1\n",
        0,
        "accept",
        "capability 5.2 of NVIDIA GeForce GTX 980 Ti",
    ),
    "m60": ("Tesla M60, 535.54.03, 7680, 5.2\n", 0, "refuse", "no newer driver helps"),
    "p100": ("Tesla P100-PCIE-16GB, 535.54.03, 16384, 6.0\n", 0, "accept", "compute capability 6.0"),
    "unnamed": (
        "NVIDIA Graphics Device, 570.86.10, 32607, 12.0\n",
        0,
        "refuse",
        "no code for compute capability 12.0",
    ),
    "future": ("NVIDIA Rubin, 690.10, 288000, 14.0\n", 0, "refuse", "no code for compute capability 14.0"),
    "no-handle": (
        "Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error\n",
        255,
        "refuse",
        "lost",
    ),
    "no-permission": ("Failed to initialize NVML: Insufficient Permissions\n", 255, "refuse", "may not use"),
    "not-loaded": ("Failed to initialize NVML: Driver Not Loaded\n", 9, "refuse", "module is not loaded"),
    "nothing": ("", 0, "refuse", "nvidia-smi says: nothing"),
    "killed": ("", 139, "refuse", "nvidia-smi says: nothing"),
    # https://github.com/wutzebaer/tensorflow-5090/issues/1: the name alone looks like an RTX 5090's kin
    "quadro-rtx5000": ("Quadro RTX 5000, 440.64, 16125\n", 0, "refuse", "driver is too old for Quadro RTX 5000"),
    # https://github.com/akash-network/provider-configs/pull/12
    "quadro-rtx4000": ("Quadro RTX 4000, 535.129.03, 8192, [N/A]\n", 0, "accept", "Quadro RTX 4000"),
    # https://github.com/tensorflow/tensorflow/issues/36853: Maxwell's, not Pascal's
    "gtx-titan-x": ("GeForce GTX TITAN X, 440.82, 12212\n", 0, "refuse", "no newer driver helps"),
    # https://github.com/tensorflow/tensorflow/issues/8352
    "titan-x-pascal": ("TITAN X (Pascal), 375.26, 12189\n", 0, "refuse", "last series for this card is 580"),
    # https://github.com/NVIDIA/nvidia-docker/issues/688
    "quadro-m1000m": ("Quadro M1000M, 375.82, 1994\n", 0, "refuse", "no newer driver helps"),
    # https://github.com/cloud-hypervisor/cloud-hypervisor/issues/4353: Maxwell with a Kepler's letter
    "quadro-k620": ("Quadro K620, 515.48.07, 2000, [N/A]\n", 0, "refuse", "capability 5.0 of Quadro K620"),
    # https://github.com/1Panel-dev/1Panel/issues/9504
    "geforce-410m": ("GeForce 410M, 390.157, 963\n", 0, "refuse", "no newer driver helps"),
    # https://github.com/CFSworks/nvml_fix/issues/36: Kepler beside the 930M, which is Maxwell
    "geforce-920m": ("GeForce 920M, 418.152.00, 2004\n", 0, "refuse", "the last one for it is 470"),
    # https://github.com/tutulino/Megaminer/issues/235
    "not-supported": ("GeForce GTX 770, 390.77, [Not Supported]\n", 0, "refuse", "the last one for it is 470"),
    # https://github.com/dartraiden/NVIDIA-patcher/issues/73
    "cmp-170hx": ("NVIDIA CMP 170HX, 580.95.05, 8192, [N/A]\n", 0, "accept", "NVIDIA CMP 170HX"),
    # https://github.com/DualCoder/vgpu_unlock/issues/70: NVIDIA's list says "CUDA enabled: 0x0"
    "grid-p40-8a": ("GRID P40-8A, 535.129.03, 8192, 6.1\n", 0, "refuse", "for graphics alone"),
    # https://github.com/InternLM/lmdeploy/issues/2414
    "grid-v100d-32c": ("GRID V100D-32C, 535.129.03, 32768, 7.0\n", 0, "accept", "GRID V100D-32C"),
    "capability-by-name": ("GRID T4-16Q, 535.183.06, [N/A], [N/A]\n", 0, "accept", "by its name it is 7.5"),
    # https://github.com/NVIDIA/nvidia-docker/issues/393: a wrapper that prints the table, whatever it is asked
    "table-k80": (
        "| NVIDIA-SMI 361.21     Driver Version: 361.21         |\n"
        "| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |\n"
        "|   0  Tesla K80           On   | 0000:04:00.0     Off |                    0 |\n"
        "| N/A   32C    P8    28W / 149W |     22MiB / 11519MiB |      0%   E. Process |\n",
        0,
        "refuse",
        "the last one for it is 470",
    ),
    # https://github.com/ethanwharris/gnome-nvidia-extension/pull/221
    "table-3080": (
        "| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |\r\n"
        "| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |\r\n"
        "|   0  NVIDIA GeForce RTX 3080        Off |   00000000:09:00.0  On |                  N/A |\r\n"
        "| 50%   41C    P8             25W /  320W |   18307MiB /  20480MiB |     31%      Default |\r\n"
        "|    0   N/A  N/A            1676      G   /usr/lib/xorg/Xorg                       25MiB |\r\n",
        0,
        "accept",
        "NVIDIA GeForce RTX 3080, driver 580.95.05",
    ),
    "table-b200-610": (
        "| NVIDIA-SMI 610.43.02              KMD Version: 610.43.02     CUDA UMD Version: 13.3     |\n"
        "|   0  NVIDIA B200                    On  |   00000000:63:00.0 Off |                    0 |\n"
        "| N/A   26C    P0            139W / 1000W |       0MiB / 183359MiB |      0%      Default |\n",
        0,
        "accept",
        "seems to be compute capability 10.0 of NVIDIA B200",
    ),
    # https://github.com/sgl-project/sglang/issues/27487: the header says KMD Version now, the query is as it was
    "b200-610": ("NVIDIA B200, 610.43.02, 183359, 10.0\n", 0, "refuse", "no code for compute capability 10.0"),
    # https://github.com/gkyle/startrails/pull/18
    "ada-610": ("NVIDIA GeForce RTX 4070, 610.47, 12282, 8.9\r\n", 0, "accept", "driver 610.47"),
    "help-text": (
        "Option --query-gpu is not recognized. Please run 'nvidia-smi -h'.\n",
        1,
        "refuse",
        "is not recognized",
    ),
}


def test_an_old_driver_says_why_without_compute_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer is about the field, whatever else is wrong: https://github.com/NVIDIA/nvidia-docker/issues/464"""
    answers = ['Field "compute_cap" is not a valid field to query.\n', "[Unknown Error], 375.26, 11172\n"]
    case = Case("old", "x86_64", 2, "print", {}, "refuse", dict(zip(gpu_questions.FIELDS, answers, strict=True)))
    found = decide_for(case, tmp_path / "bin", monkeypatch).refusal
    assert found and "the card is lost" in found.what and "valid field" not in found.what


@pytest.mark.parametrize("name", KIN)
def test_kin_of_the_recorded_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, status, right, word = KIN[name]
    answers = dict.fromkeys(gpu_questions.FIELDS, text)
    found = decide_for(Case(name, "x86_64", status, "print", {}, right, answers), tmp_path / "bin", monkeypatch)
    assert (found.refusal is not None) == (right == "refuse"), found
    assert word in (found.refusal.what if found.refusal else "\n".join(found.notices))


def test_a_virtual_gpu_without_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases() if case.name == "vgpu-na")
    program = make_nvidia_smi(case, tmp_path / "bin") / "nvidia-smi"
    licence = "    vGPU Software Licensed Product\\n        License Status : Unlicensed (Restricted)\\n"
    program.write_text(program.read_text().replace('case "$1" in', f'case "$1" in\n-q) printf "{licence}"; exit;;'))
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(gpu_questions, "find_libcuda", lambda: "libcuda-that-is-not-there.so.1")
    driver, smi = gpu_questions.ask(NEEDS, lambda _: None)
    found = gpu.decide(NEEDS, driver, smi, BARE)
    assert smi.unlicensed and found.refusal is None and any("has no licence" in notice for notice in found.notices)


def test_equal_cards_are_counted() -> None:
    cards = tuple(Gpu("NVIDIA A10", "570.1", "8.6", 23028) for _ in range(8))
    found = gpu.decide(NEEDS, DriverAnswer("libcuda.so.1", "12.8", gpus=cards), SmiAnswer(), BARE)
    assert found.notices == ("8 x NVIDIA A10, driver 570.1, compute capability 8.6",)
    assert len(found.gpus) == 8 and found.gpus[0]["usable"]


OLD_INDEX = {"driver": "525.60.13", "compute_capability": "6.0", "glibc": "2.28"}


def test_an_index_of_before_says_where_cards_begin() -> None:
    needs = read_needs(OLD_INDEX)
    assert needs["6.0"] == Need("", "525.60.13") and "5.2" not in needs and "9.0" in needs
    assert read_needs({"glibc": "2.28"}) == {}


SITUATIONS = {  # the same answer means another thing in a container, under WSL, with Secure Boot ...
    "container-mismatch": (
        "mismatch",
        Situation(container=True, hostname="c0ffee"),
        "docker restart c0ffee",
        gpu_reasons.CPU,
    ),
    "container-absent": ("absent", Situation(container=True), "started with --gpus all", gpu_reasons.CPU),
    "amd": ("absent", Situation(vendors=("amd", "intel")), "is AMD's", gpu_reasons.CPU),
    "intel": ("absent", Situation(vendors=("intel",)), "is Intel's", gpu_reasons.CPU),
    "nouveau": (
        "absent",
        Situation(vendors=("nvidia",), nouveau=True, ubuntu_drivers=True),
        "nouveau has it",
        "sudo ubuntu-drivers install && sudo reboot",
    ),
    "wsl-absent": ("absent", Situation(wsl=True), "no Linux driver inside", "wsl.exe --update"),
    "secure-boot": ("cant-communicate", Situation(secure_boot=True), "Secure Boot is on", "sudo modprobe nvidia"),
    "laptop": ("no-devices", Situation(prime_select=True), "switched off", "sudo prime-select nvidia && sudo reboot"),
    "old-card-new-driver": (
        "no-devices",
        Situation(old_cards_only=True, module="590.48.01"),
        "last series for it is 580",
        gpu_reasons.CPU,
    ),
    "container-unknown": (
        "unknown-error",
        Situation(container=True),
        "this container has lost its GPU",
        gpu_reasons.CPU,
    ),
    # https://github.com/canonical/nvidia-prime/issues/20
    "laptop-not-loaded": (
        "cant-communicate",
        Situation(prime_select=True, vendors=("intel",), no_card=True),
        "a laptop may have it switched off",
        "sudo prime-select nvidia && sudo reboot",
    ),
    # https://github.com/JackHack96/dell-xps-9570-ubuntu-respin/issues/125: switched off, and still listed
    "laptop-listed": (
        "no-devices",
        Situation(prime_select=True, vendors=("intel", "nvidia")),
        "switched off",
        "sudo prime-select nvidia && sudo reboot",
    ),
    "desktop-with-prime": (
        "no-devices",
        Situation(prime_select=True, vendors=("nvidia",)),
        "the kernel's log says why",
        "sudo dmesg | grep NVRM",
    ),
    # https://github.com/NVIDIA/DIGITS/issues/1628: a cloud's machine that came back without its card
    "no-card": ("cant-communicate", Situation(no_card=True), "the kernel sees no NVIDIA card", "sudo reboot"),
    # https://github.com/zzzhouuu/truenas-nvidia-drivers/issues/20
    "pascal-open-module": (
        "no-devices",
        Situation(old_cards_only=True, module="580.178.04", open_module=True, vendors=("nvidia",)),
        "open kernel modules don't serve this card",
        gpu_reasons.CPU,
    ),
    # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/872
    "blackwell-closed-module": (
        "no-devices",
        Situation(new_cards_only=True, module="575.51.03", vendors=("nvidia",), ubuntu_drivers=True),
        "needs NVIDIA's open kernel modules",
        "sudo apt install nvidia-driver-575-open",
    ),
    # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/935: the open module is there, the log knows why
    "blackwell-open-module": (
        "no-devices",
        Situation(new_cards_only=True, module="580.82.09", open_module=True, vendors=("nvidia",)),
        "finds no card",
        "sudo dmesg | grep NVRM",
    ),
    "container-no-devices": ("no-devices", Situation(container=True), "container was given none", gpu_reasons.CPU),
    "wsl-no-devices": (
        "no-devices",
        Situation(wsl=True, no_card=True),
        "Windows gives WSL no GPU",
        "wsl.exe --update",
    ),
    "wsl-mismatch": ("mismatch", Situation(wsl=True), "or a Linux driver is installed inside", "wsl.exe --shutdown"),
    "wsl-no-libnvidia-ml": ("no-libnvidia-ml", Situation(wsl=True), "no Linux driver inside", "wsl.exe --update"),
    # https://github.com/charmed-kubernetes/bundle/issues/284
    "container-two-drivers": ("mismatch", Situation(container=True), "libraries of another driver", gpu_reasons.CPU),
    "wsl-old-driver": ("rtx3080-515", Situation(wsl=True), "under WSL the driver is Windows'", gpu_reasons.CPU),
    "ubuntu-old-driver": (
        "rtx3080-515",
        Situation(ubuntu_drivers=True),
        "newer ones",
        "sudo ubuntu-drivers install && sudo reboot",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_machine_explains_the_answer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, situation, word, hint = SITUATIONS[name]
    case = next(case for case in cases() if case.name == recorded)
    monkeypatch.setenv("PATH", str(make_nvidia_smi(case, tmp_path / "bin")))
    monkeypatch.setattr(gpu_questions, "find_libcuda", lambda: "libcuda-that-is-not-there.so.1")
    driver, smi = gpu_questions.ask(NEEDS, lambda _: None)
    found = gpu.decide(NEEDS, driver, smi, situation).refusal
    assert found and word in found.what and found.hint == hint


def test_another_environment_is_named_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu("NVIDIA GeForce RTX 5090", "580.95.05", "12.0", 32607)
    driver = DriverAnswer("libcuda.so.1", "13.0", gpus=(card,))
    forge = {"12.0": Need("12.9", "575.51.03")}
    found = gpu.decide(NEEDS, driver, SmiAnswer(), BARE, {"gpu-forge": forge}).refusal
    assert found and "gpu-forge has code for it" in found.what and found.hint.endswith(" --env gpu-forge")


def test_an_old_driver_is_updated_and_an_older_environment_is_the_second_way() -> None:
    card = Gpu("NVIDIA H100 PCIe", "550.127.08", "9.0", 81559)
    driver = DriverAnswer("libcuda.so.1", "12.4", gpus=(card,))
    found = gpu.decide(NEEDS, driver, SmiAnswer(), BARE, {"gpu-2025-07": {"9.0": Need("12.3", "545.23.06")}}).refusal
    assert found and "need 12.5 or newer" in found.what and found.what.count("the environment gpu-2025-07") == 1
    assert found.hint == gpu_reasons.CPU


def locked_needs(name: str) -> dict[str, Need]:
    """Return what the repository's own lock needs of each card."""
    entry = read_index(REPO / "lockfiles")["environments"][name]
    return read_needs(entry["platforms"]["linux-64"]["requires"])


FORGE = "python3 bootstrap.py !--engine !--python --env gpu-forge"
LOCKED = {  # (card, CUDA of its driver, what was asked for, words of the refusal or the notes, the hint: "" for none)
    "blackwell": (
        Gpu("NVIDIA GeForce RTX 5090", "580.95.05", "12.0", 32607),
        "13.0",
        "gpu",
        [
            "no code for compute capability 12.0",
            "gpu-forge has code for it",
            "libraries were not read",
            "jit_compile",
        ],
        FORGE,
    ),
    "b200": (Gpu("NVIDIA B200", "570.133.20", "10.0", 183359), "12.8", "gpu", ["gpu-forge has code for it"], FORGE),
    "blackwell-old-driver": (
        Gpu("NVIDIA GeForce RTX 5060 Ti", "570.10", "12.1", 16311),
        "12.8",
        "gpu",
        ["gpu-forge has code for it, but the NVIDIA driver is too old", "575.51.03 or newer"],
        gpu_reasons.CPU,
    ),
    "blackwell-forge": (
        Gpu("NVIDIA GeForce RTX 5090", "580.95.05", "12.0", 32607),
        "13.0",
        "gpu-forge",
        ["RTX 5090, driver 580.95.05", "libraries were not read", "not proven on this card"],
        "",
    ),
    "pascal": (Gpu("Tesla P100", "535.54.03", "6.0", 16384), "12.2", "gpu", ["compute capability 6.0"], ""),
    "pascal-forge": (
        Gpu("NVIDIA GeForce GTX 1080 Ti", "535.54.03", "6.1", 11264),
        "12.2",
        "gpu-forge",
        ["libraries were not read"],
        "",
    ),
    "pascal-forge-old-driver": (
        Gpu("NVIDIA GeForce GTX 1080 Ti", "470.256.02", "6.1", 11264),
        "11.4",
        "gpu-forge",
        ["runs CUDA 11.4, need 12.0 or newer", "last series for this card is 580"],
        gpu_reasons.CPU,
    ),
    "kepler": (
        Gpu("Tesla K80", "470.256.02", "3.7", 11441),
        "11.4",
        "gpu",
        ["no newer driver helps"],
        gpu_reasons.CPU,
    ),
    "kepler-forge": (
        Gpu("Tesla K80", "470.256.02", "3.7", 11441),
        "11.4",
        "gpu-forge",
        ["no code for compute capability 3.7", "no newer driver helps"],
        gpu_reasons.CPU,
    ),
    "h100-old-driver": (
        Gpu("NVIDIA H100 80GB HBM3", "535.104.05", "9.0", 81559),
        "12.2",
        "gpu",
        [
            "it runs CUDA 12.2, need 12.5 or newer",
            "this driver takes the code of the environment gpu-forge",
            "were not read",
        ],
        gpu_reasons.CPU,
    ),
    "h100-old-driver-forge": (
        Gpu("NVIDIA H100 80GB HBM3", "535.104.05", "9.0", 81559),
        "12.2",
        "gpu-forge",
        ["libraries were not read"],
        "",
    ),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_the_two_locks_serve(name: str) -> None:
    card, cuda, asked, words, hint = LOCKED[name]
    needs = {env: locked_needs(env) for env in ("gpu", "gpu-forge")}
    driver = DriverAnswer("libcuda.so.1", cuda, gpus=(card,))
    found = gpu.decide(needs.pop(asked), driver, SmiAnswer(), BARE, needs)
    said = found.refusal.what if found.refusal else "\n".join(found.notices)
    assert all(word in said for word in words), said
    assert (found.refusal.hint if found.refusal else "") == hint
    assert ("gpu-forge" in said) == (hint == FORGE or "but the NVIDIA driver" in said or "this driver takes" in said)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA RTX 5000 Ada Generation", "8.9"),  # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/901
        ("NVIDIA GeForce RTX 5090 D", "12.0"),  # https://github.com/NVIDIA/open-gpu-kernel-modules/issues/862
        ("Quadro RTX 3000 with Max-Q Design", "7.5"),
        ("GRID RTX6000-24Q", "7.5"),  # https://github.com/openstack/charm-nova-compute-nvidia-vgpu
        ("NVIDIA B300 SXM6 AC", "10.3"),  # https://github.com/spectral-compute/scale-docs/issues/15
        ("NVIDIA GB10", "12.1"),
        ("NVIDIA TITAN Xp COLLECTORS EDITION", "6.1"),
        ("P106-100", "6.1"),  # https://github.com/dartraiden/NVIDIA-patcher/issues/54
        ("GRID V100D-32C", "7.0"),  # https://github.com/InternLM/lmdeploy/issues/2414
        ("NVIDIA A10G", "8.6"),  # https://github.com/NVIDIA/dcgm-exporter/issues/319
        ("Tesla M2090", "2.0"),
        ("Tesla K40m", "3.5"),  # https://github.com/NVIDIA/DIGITS/issues/2005
        ("Quadro K1100M", "3.5"),
        ("GeForce 940MX", "5.0"),  # https://github.com/Askannz/optimus-manager/issues/295
        ("NVIDIA Thor", ""),
    ],
)
def test_a_name_tells_the_capability(name: str, capability: str) -> None:
    assert capability_by_name(name) == capability


@pytest.mark.parametrize(
    ("visible", "count", "hidden"),
    [
        (None, 1, False),
        ("", 1, True),
        ("-1", 1, True),
        ("0", 1, False),
        ("1", 1, True),
        ("1,0", 2, False),
        ("NoDevFiles", 4, True),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1, False),
        ("MIG-x", 1, False),
    ],
)
def test_cuda_visible_devices(visible: str | None, count: int, hidden: bool) -> None:
    assert hides_all(visible, count) == hidden
