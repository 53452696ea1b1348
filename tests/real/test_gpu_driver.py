"""The driver is asked through a libcuda.so.1 that is loaded for real: compiled here, answering as cuda.h says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colab_local.install import gpu, gpu_questions
from colab_local.install.gpu_answers import DriverAnswer, Need, Situation, SmiAnswer
from tests.support.gpu_machines import make_libcuda

NEEDS = {
    "8.6": Need("12.0", "525.60.13"),
    "8.9": Need("12.0", "525.60.13"),
    "9.0": Need("12.5", "555.42.02", "8.5 sm_90a"),
}
ADA = "NVIDIA GeForce RTX 4090|8|9|24564|23000|0"
HOPPER = "NVIDIA H100 80GB HBM3|9|0|81559|80000|0"
BLACKWELL = "NVIDIA GeForce RTX 5090|12|0|32607|32000|0"
BARE = Situation(hostname="box")

Ask = Callable[..., tuple[DriverAnswer, SmiAnswer]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_libcuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def ask(library: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask a machine with this driver; nvidia-smi is not there."""

    def asked(devices: str = ADA, limit_s: float = 20.0, say: list[str] | None = None, **told: str):  # type: ignore[no-untyped-def]
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("FAKE_DEVICES", devices)
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        return gpu_questions.ask(NEEDS, (say if say is not None else []).append, limit_s)

    return asked


def test_a_card_that_works(ask: Ask) -> None:
    begun = time.monotonic()
    driver, smi = ask()
    assert time.monotonic() - begun < 2
    assert (driver.cuda, driver.status, driver.library) == ("12.8", 0, "libcuda.so.1")
    (card,) = driver.gpus
    assert (card.name, card.compute_capability, card.memory_mib, card.free_mib) == (
        "NVIDIA GeForce RTX 4090",
        "8.9",
        24564,
        23000,
    )
    assert card.uuid == "GPU-00000000-0000-0000-0000-000000000001"
    found = gpu.decide(NEEDS, driver, smi, BARE)
    assert found.refusal is None and len(found.notices) == 1 and found.gpus[0]["free_mib"] == 23000


STATUS = {
    "802": ("NVSwitch is not ready", "sudo systemctl restart nvidia-fabricmanager"),
    "803": ("updated under the running kernel module", "sudo reboot"),
    "804": ("updated under the running kernel module", "sudo reboot"),
    "999": (
        "in a bad state (CUDA error 999 CUDA_ERROR_UNKNOWN)",
        "sudo rmmod nvidia_uvm; sudo modprobe nvidia_uvm",
    ),
    "304": ("may not use the GPU's devices", "ls -l /dev/nvidia*"),
    "100": ("finds no card", "sudo dmesg | grep NVRM"),
    "34": ("is CUDA's stub", "unset LD_LIBRARY_PATH"),
    "214": ("can't be corrected", "sudo reboot"),
    "3": (
        "does not start (CUDA error 3",
        "echo options nvidia_uvm uvm_disable_hmm=1 | sudo tee /etc/modprobe.d/nvidia-uvm.conf && sudo reboot",
    ),
    "805": ("MPS", "nvidia-cuda-mps-control -d"),
    "2": ("ulimit -v", "free -m; ulimit -v"),
    "102": ("no licence", "nvidia-smi -q | grep -i license"),
    "719": ("does not start (CUDA error 719", "sudo reboot"),
}


@pytest.mark.parametrize("status", STATUS)
def test_cuinit_that_fails(ask: Ask, status: str) -> None:
    driver, smi = ask(FAKE_STATUS=status)
    found = gpu.decide(NEEDS, driver, smi, BARE).refusal
    assert found and STATUS[status][0] in found.what and found.hint == STATUS[status][1] and found.code == 3


@pytest.mark.parametrize("function", ["cuDriverGetVersion", "cuInit", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_hangs_is_left_behind(ask: Ask, function: str) -> None:
    said: list[str] = []
    begun = time.monotonic()
    driver, smi = ask(limit_s=4.0, say=said, FAKE_HANG=function)
    assert time.monotonic() - begun < 6 and len(said) == 1 and "Waiting for the NVIDIA driver" in said[0]
    found = gpu.decide(NEEDS, driver, smi, BARE).refusal
    assert found and f"{function} of libcuda.so.1 did not come back" in found.what


def test_a_driver_that_crashes(ask: Ask) -> None:
    driver, smi = ask(FAKE_CRASH="cuInit")
    found = gpu.decide(NEEDS, driver, smi, BARE).refusal
    assert found and "crashed (signal 6)" in found.what


@pytest.mark.parametrize("visible", ["", "-1", "7", "NoDevFiles"])
def test_hidden_cards_are_told_and_looked_at(ask: Ask, visible: str) -> None:
    driver, smi = ask(CUDA_VISIBLE_DEVICES=visible)
    found = gpu.decide(NEEDS, driver, smi, Situation(visible=visible))
    assert found.refusal is None and any(
        f"CUDA_VISIBLE_DEVICES={visible} hides every GPU" in n for n in found.notices
    )


def test_only_the_visible_card_counts(ask: Ask) -> None:
    both = f"{BLACKWELL};{ADA}"
    found = gpu.decide(NEEDS, *ask(both, CUDA_VISIBLE_DEVICES="0"), Situation(visible="0"))
    assert found.refusal and "no code for compute capability 12.0" in found.refusal.what
    for visible in ("1", "GPU-00001-slurm"):
        found = gpu.decide(NEEDS, *ask(both, CUDA_VISIBLE_DEVICES=visible), Situation(visible=visible))
        assert found.refusal is None and [card["name"] for card in found.gpus] == ["NVIDIA GeForce RTX 4090"]


def test_code_that_the_driver_must_translate(ask: Ask) -> None:
    assert gpu.decide(NEEDS, *ask(HOPPER, FAKE_CUDA="12050"), BARE).refusal is None
    found = gpu.decide(NEEDS, *ask(HOPPER, FAKE_CUDA="12040"), BARE).refusal
    assert found and "it runs CUDA 12.4, need 12.5 or newer (driver 555.42.02 or newer)" in found.what
    driver, _ = ask(HOPPER, FAKE_CUDA="12040")
    assert driver.gpus[0].ptx == 222  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the driver was really given the text


def test_a_card_in_use_is_no_reason_to_refuse(ask: Ask) -> None:
    for status in ("2", "46"):
        found = gpu.decide(NEEDS, *ask(f"NVIDIA A10|8|6|23028|0|{status}"), BARE)
        assert found.refusal is None and any("taken by another program" in notice for notice in found.notices)
    found = gpu.decide(NEEDS, *ask("NVIDIA A10|8|6|23028|0|719"), BARE)
    assert found.refusal and "does not work (CUDA error 719" in found.refusal.what


def test_no_libcuda(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_questions, "find_libcuda", lambda: str(tmp_path / "libcuda.so.1"))
    driver, _ = ask()
    assert driver == DriverAnswer()
