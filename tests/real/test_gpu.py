"""The GPU environment, as far as it goes without a GPU: installed for real, CUDA found by TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import EXIT_MACHINE
from colab_local.base.network import free_port, listens
from colab_local.install.jupyter import TOKEN_FILE, jupyter_argv
from tests.conftest import HARDWARE, REPO, clean_environment, supported_python
from tests.support.gpu_machines import cases, make_libcuda, make_nvidia_smi

HAS_GPU = shutil.which("nvidia-smi") is not None
pytestmark = pytest.mark.skipif(
    os.uname().sysname != "Linux" or os.uname().machine != "x86_64", reason=HARDWARE + "Linux on x86_64"
)


def bootstrap(home: Path, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run bootstrap.py --gpu; path: a folder with an nvidia-smi that is found first."""
    argv = [supported_python(), str(REPO / "bootstrap.py"), "--gpu", "--engine", "host", "--prefix", str(home)]
    env = dict(os.environ, PATH=f"{path}{os.pathsep if path else ''}{os.environ['PATH']}")
    return subprocess.run([*argv, *options], env=env, capture_output=True, text=True, timeout=1500, check=False)


@pytest.fixture(scope="module")
def gpu_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The gpu environment, made where nvidia-smi shows a card and CUDA does not: kept aside, then taken as it is.

    3.4 GB to download, once.
    """
    folder = tmp_path_factory.mktemp("gpu")
    home = folder / "home"
    if not HAS_GPU:
        smi = str(make_nvidia_smi(next(case for case in cases() if case.name == "rtx3060-580"), folder / "bin"))
        done = bootstrap(home, path=smi)
        assert done.returncode == EXIT_MACHINE, done.stderr
        error, hint = done.stderr.splitlines()[-2:]
        assert "Your GPU is not used: the NVIDIA driver is not here (libcuda.so.1 can't be loaded)" in error
        assert "the environment is kept" in error and hint.endswith("--no-gpu-check")
        assert not (home / "current" / "gpu").exists()
        plan = json.loads(bootstrap(home, "--dry-run", "--json", path=smi).stdout)["plan"]
        assert [step["name"] for step in plan] == ["try", "receipt", "switch"]
        again = bootstrap(home, path=smi)
        assert again.returncode == EXIT_MACHINE and "Download" not in again.stderr
    done = bootstrap(home, "--no-gpu-check")
    assert done.returncode == 0, done.stderr
    assert "CUDA's libraries are found" in done.stdout
    assert bootstrap(home, "--no-gpu-check", "--dry-run", "--json").stdout.count('"plan": []') == 1
    assert not list(home.glob("receipts/*/aside.json"))
    yield home / "current" / "gpu"
    shutil.rmtree(folder)  # 6 GB


def prove(prefix: Path, home: Path, **environment: str) -> dict[str, Any]:
    """Return what an environment says of its GPU."""
    argv = [str(prefix / "bin" / "python"), "-I", "-m", "colab_local_jupyter.gpu"]
    env = clean_environment(home) | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_missing_cuda_library_is_found_out(gpu_environment: Path, tmp_path: Path) -> None:
    library = next(gpu_environment.resolve().glob("lib/python3.*/site-packages/nvidia/cufft/lib/libcufft.so.11"))
    program = str(REPO / "colab_local" / "install" / "smoke_test.py")
    argv = [str(gpu_environment / "bin" / "python"), "-I", program, "compute", "gpu", "tensorflow"]
    aside = library.with_name("aside")
    library.rename(aside)
    try:
        env = clean_environment(tmp_path) | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    finally:
        aside.rename(library)
    assert done.returncode == 1 and "TensorFlow does not find its CUDA libraries" in done.stderr


@pytest.mark.skipif(HAS_GPU, reason="here is a GPU: the test below is the one")
def test_why_the_gpu_is_not_used(gpu_environment: Path, tmp_path: Path) -> None:
    assert prove(gpu_environment, tmp_path)["sentence"].endswith("(libcuda.so.1 can't be loaded)")
    library = str(make_libcuda(tmp_path / "cuda"))
    hidden = prove(gpu_environment, tmp_path, LD_LIBRARY_PATH=library, CUDA_VISIBLE_DEVICES="-1")
    assert hidden["hidden"] and hidden["sentence"] == "Your GPU is not used: CUDA_VISIBLE_DEVICES=-1 hides every GPU"
    broken = prove(gpu_environment, tmp_path, LD_LIBRARY_PATH=library, FAKE_STATUS="999")
    assert broken["sentence"] == "Your GPU is not used: the NVIDIA driver does not start (CUDA error 999)"


def test_the_locks_own_tools_come_first(gpu_environment: Path, tmp_path: Path) -> None:
    code = (
        "import os, shutil, sys; from pathlib import Path; from colab_local_jupyter import settings\n"
        "settings.prepare_kernel_environment(os.environ, Path(sys.prefix)); import tensorflow as tf\n"
        "f = tf.function(lambda x: x @ x, jit_compile=True); assert f(tf.ones((2, 2))).numpy().max() == 2\n"
        "print(shutil.which('ptxas')); print(os.environ['XLA_FLAGS']); print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    )
    argv = [str(gpu_environment / "bin" / "python"), "-I", "-c", code]
    env = clean_environment(tmp_path) | {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": "--xla_dump_max_hlo_modules=1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ptxas, flags, growth = done.stdout.splitlines()
    root = next(gpu_environment.resolve().glob("lib/python3.*/site-packages/nvidia/cuda_nvcc"))
    assert Path(ptxas).resolve() == root / "bin" / "ptxas" and growth == "true"
    assert flags.startswith("--xla_dump_max_hlo_modules=1 --xla_gpu_cuda_data_dir=")
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 12.8" in said


def test_the_doctor_asks_in_a_kernel_of_the_running_server(gpu_environment: Path, tmp_path: Path) -> None:
    port, token = free_port(20000), "not-secret"
    (tmp_path / "token").write_text(token)
    argv = jupyter_argv(str(gpu_environment), port, str(tmp_path), os.geteuid() == 0)
    env = clean_environment(tmp_path) | {TOKEN_FILE: str(tmp_path / "token")}
    with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while not listens(port) and time.monotonic() < deadline:
                time.sleep(0.2)
            doctor = [sys.executable, str(REPO / "scripts" / "doctor.py"), f"http://localhost:{port}/?token={token}"]
            done = subprocess.run(
                [*doctor, "--json"], env=env, capture_output=True, text=True, timeout=300, check=False
            )
        finally:
            server.terminate()
    told = json.loads(done.stdout)
    assert done.returncode == 0 and not told["faults"], done.stdout + done.stderr
    if HAS_GPU:
        assert told["gpu"]["ok"] and "Your GPU" in told["steps"][-1]["detail"]
    else:
        (warning,) = [one for one in told["warnings"] if one["code"] == "gpu-not-used"]
        assert warning["what"].startswith("Your GPU is not used: the NVIDIA driver is not here")


@pytest.mark.skipif(not HAS_GPU, reason=HARDWARE + "an NVIDIA GPU")
def test_a_gpu_computes(gpu_environment: Path, tmp_path: Path) -> None:
    found = prove(gpu_environment, tmp_path)
    assert found["ok"] and found["devices"] and found["sentence"].startswith("Your GPU"), found
