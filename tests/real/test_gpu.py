"""The GPU environment, as far as it goes without a GPU: installed for real, CUDA found by TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import HARDWARE, REPO, clean_environment, supported_python

pytestmark = pytest.mark.skipif(
    os.uname().sysname != "Linux" or os.uname().machine != "x86_64", reason=HARDWARE + "Linux on x86_64"
)


@pytest.fixture(scope="module")
def gpu_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gpu environment, made as for an image: bootstrap.py --gpu --no-gpu-check. 3.4 GB to download, once."""
    home = tmp_path_factory.mktemp("gpu") / "home"
    argv = [supported_python(), str(REPO / "bootstrap.py"), "--gpu", "--no-gpu-check", "--engine", "host"]
    done = subprocess.run([*argv, "--prefix", str(home)], capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert "CUDA's libraries are found" in done.stdout or shutil.which("nvidia-smi")
    return home / "current" / "gpu"


def try_out(prefix: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what bootstrap.py tries a new environment out with."""
    argv = [
        str(prefix / "bin" / "python"),
        str(REPO / "colab_local" / "install" / "smoke_test.py"),
        "compute",
        "tensorflow",
        *arguments,
    ]
    env = clean_environment(home) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_a_missing_cuda_library_is_found_out(gpu_environment: Path, tmp_path: Path) -> None:
    library = next(gpu_environment.resolve().glob("lib/python3.*/site-packages/nvidia/cufft/lib/libcufft.so.11"))
    aside = library.with_name("aside")
    library.rename(aside)
    try:
        done = try_out(gpu_environment, tmp_path)
    finally:
        aside.rename(library)
    if shutil.which("nvidia-smi") is None:
        assert done.returncode == 1 and "TensorFlow does not find its CUDA libraries" in done.stderr
    else:
        assert done.returncode != 0


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="here is a GPU: the test below is the one")
def test_a_gpu_that_tensorflow_does_not_see_is_an_error(gpu_environment: Path, tmp_path: Path) -> None:
    done = try_out(gpu_environment, tmp_path, "--expect-gpu")
    assert done.returncode == 1 and "TensorFlow sees no GPU" in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason=HARDWARE + "an NVIDIA GPU")
def test_a_gpu_computes(gpu_environment: Path, tmp_path: Path) -> None:
    done = try_out(gpu_environment, tmp_path, "--expect-gpu")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["gpus"]
