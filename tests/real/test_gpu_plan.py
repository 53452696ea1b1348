"""What bootstrap.py --gpu says and decides before it downloads: the program itself, on machines that are played."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_MACHINE
from colab_local.install.gpu_answers import read_needs
from colab_local.install.lockfiles import read_index
from tests.conftest import REPO, clean_environment
from tests.support.gpu_machines import Case, cases, make_libcuda, make_nvidia_smi

RECORDED = {case.name: case for case in cases()}


def plan(folder: Path, case: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run bootstrap.py --gpu --dry-run where nvidia-smi answers as recorded."""
    recorded = RECORDED[case]
    tools = make_nvidia_smi(recorded, folder / "bin")
    argv = [sys.executable, str(REPO / "bootstrap.py"), "--gpu", "--dry-run", "--engine", "host"]
    env = clean_environment(folder) | {"PATH": f"{tools}:/usr/bin:/bin"} | recorded.environment | environment
    return subprocess.run(
        [*argv, "--prefix", str(folder / "home"), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "name", ["rtx3060-580", "infor-corrupt", "a10-t4-mixed", "v100-555", "visible-empty", "vgpu-na"]
)
def test_a_machine_that_fits(tmp_path: Path, name: str) -> None:
    done = plan(tmp_path, name, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cards = RECORDED[name].answers["name,driver_version,memory.total,compute_cap"].splitlines()
    assert [card["name"] for card in told["gpus"]] == [c.split(",")[0] for c in cards if "WARNING" not in c]
    assert any(told["gpus"][0]["name"] in notice for notice in told["notices"])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "name", ["rtx5060ti-590", "h100-535", "k80-418", "mismatch", "garbage-bytes", "absent", "exec-format"]
)
def test_a_machine_that_does_not_fit_is_told_in_two_lines(tmp_path: Path, name: str) -> None:
    done = plan(tmp_path, name)
    assert done.returncode == EXIT_MACHINE
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert ("--env gpu-forge" if name == "rtx5060ti-590" else "--cpu") in error + hint
    assert not (tmp_path / "home").exists()


def test_cards_that_can_not_be_used_are_in_the_document_too(tmp_path: Path) -> None:
    done = plan(tmp_path, "b200", "--json")
    told = json.loads(done.stdout)
    assert told["ok"] is False and len(told["gpus"]) == 8 and not told["gpus"][0]["usable"]
    assert done.stderr.count("B200") == 1  # equal cards are counted


def test_a_sign_of_life_comes_before_anyone_wonders(tmp_path: Path) -> None:
    tools = make_nvidia_smi(RECORDED["hang"], tmp_path / "bin")
    argv = [sys.executable, str(REPO / "bootstrap.py"), "--gpu", "--dry-run", "--prefix", str(tmp_path / "home")]
    env = clean_environment(tmp_path) | {"PATH": f"{tools}:/usr/bin:/bin"}
    begun = time.monotonic()
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr
        first = child.stderr.readline()
        assert "Waiting for the NVIDIA driver" in first and time.monotonic() - begun < 5
        rest = child.stderr.read()
    assert child.returncode == EXIT_MACHINE and time.monotonic() - begun < 45
    assert "error: the NVIDIA driver does not answer" in rest


def test_on_ubuntu_an_old_driver_is_updated_with_ubuntus_own_command(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ubuntu-drivers").write_text("#!/bin/sh\n")
    (tools / "ubuntu-drivers").chmod(0o755)
    done = plan(tmp_path, "rtx3080-515")
    assert done.stderr.splitlines()[1] == "hint: sudo ubuntu-drivers install && sudo reboot"


def test_the_driver_knows_better_than_an_old_nvidia_smi(tmp_path: Path) -> None:
    library = make_libcuda(tmp_path / "cuda")
    card = "NVIDIA RTX PRO 1000 Blackwell Generation Laptop GPU|12|0|8151|8000|0"
    done = plan(tmp_path, "rtxpro-snap470", LD_LIBRARY_PATH=str(library), FAKE_DEVICES=card, FAKE_CUDA="13000")
    assert done.returncode == EXIT_MACHINE and "no code for compute capability 12.0" in done.stderr
    assert plan(tmp_path, "rtxpro-snap470").returncode == 0


def test_an_environment_for_a_gpu_on_another_platform() -> None:
    code = (
        "import platform, runpy, sys; platform.machine = lambda: {!r}; platform.system = lambda: {!r}\n"
        "sys.argv = ['bootstrap.py', '--gpu', '--dry-run']; runpy.run_path({!r}, run_name='__main__')"
    )
    for machine, system, said in (
        ("aarch64", "Linux", "nvcr.io/nvidia/tensorflow"),
        ("arm64", "Darwin", "no tensorflow-metal"),
    ):
        argv = [sys.executable, "-c", code.format(machine, system, str(REPO / "bootstrap.py"))]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == EXIT_MACHINE and said in done.stderr, done.stderr
        assert "--cpu" in done.stderr.splitlines()[-1]


def test_the_lock_says_for_every_card_what_it_needs() -> None:
    requires = read_index(REPO / "lockfiles")["environments"]["gpu"]["platforms"]["linux-64"]["requires"]
    needs = read_needs(requires)
    assert {"6.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0"} <= set(needs) and "12.0" not in needs
    assert needs["9.0"].driver == "555.42.02" and needs["8.6"].driver == "525.60.13"
    assert "driver" not in requires and "compute_capability" not in requires


def test_recorded_cases_are_whole() -> None:
    assert len(RECORDED) == 40 and all(isinstance(case, Case) and case.right for case in RECORDED.values())
