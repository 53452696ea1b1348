"""What every start of Jupyter, and the try-out, get for the GPU: pure functions and the launcher's shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colab_local.install.tryout import gpu_environment
from colab_local.manage import service
from tests.conftest import REPO

sys.path.insert(0, str(REPO / "environments" / "jupyter" / "site-packages"))

from colab_local_jupyter import gpu

LAUNCHER = REPO / "environments" / "jupyter" / "prefix" / "colab" / "jupyter-notebook"


def tools(root: Path) -> Path:
    """Make what CUDA's compiler package has."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "ptxas").touch()
    (root / "nvvm" / "libdevice").mkdir(parents=True)
    return root


def test_the_locks_own_tools_and_colabs_memory_growth(tmp_path: Path) -> None:
    root = tools(tmp_path / "packages" / "nvidia" / "cuda_nvcc")
    environ = {"PATH": "/usr/local/cuda/bin:/usr/bin", "XLA_FLAGS": "--xla_a=1"}
    for _ in range(2):  # a kernel's child gets it again
        gpu.prepare_environment(environ, tmp_path / "packages", tmp_path / "prefix")
    assert environ == {
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "PATH": f"{root}/bin:/usr/local/cuda/bin:/usr/bin",
        "XLA_FLAGS": f"--xla_a=1 --xla_gpu_cuda_data_dir={root}",
    }


def test_the_user_knows_better(tmp_path: Path) -> None:
    tools(tmp_path / "prefix")
    flags = "--xla_gpu_cuda_data_dir=/opt/cuda"
    environ = {"PATH": "/bin", "XLA_FLAGS": flags, "TF_FORCE_GPU_ALLOW_GROWTH": "false"}
    gpu.prepare_environment(environ, tmp_path / "packages", tmp_path / "prefix")
    assert environ["XLA_FLAGS"] == flags and environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"
    assert environ["PATH"] == f"{tmp_path}/prefix/bin:/bin"


def test_an_environment_without_cuda_gets_no_flags(tmp_path: Path) -> None:
    environ = {"PATH": "/bin"}
    gpu.prepare_environment(environ, tmp_path, tmp_path)
    assert environ == {"PATH": "/bin", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([{"name": "A10", "ms": 4.0}], "Your GPU is used: A10, 10x the CPU"),
        ([{"name": "A10", "ms": 4.0}] * 2, "Your GPUs are used: 2 x A10, 10x the CPU"),
        ([{"name": "A10", "ms": 4.0}, {"name": "V", "error": "bad"}], "Your GPU is not used: V fails (bad)"),
        ([], "Your GPU is not used: no driver"),
    ],
)
def test_the_one_line(devices: list[dict[str, object]], said: str) -> None:
    assert gpu.sentence(devices, 40.0, "no driver") == said


def test_the_try_out_obeys_what_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/lib64")
    chosen = {"CUDA_VISIBLE_DEVICES": "GPU-1", "TF_XLA_FLAGS": "x", "XLA_FLAGS": "y", "HOME": "/h"}
    env = gpu_environment(Path("/p"), chosen, [{"usable": True, "uuid": "GPU-1"}])
    assert {name: env[name] for name in ("CUDA_VISIBLE_DEVICES", "TF_XLA_FLAGS", "XLA_FLAGS")} == {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "TF_XLA_FLAGS": "x",
        "XLA_FLAGS": "y",
    }
    assert "LD_LIBRARY_PATH" not in env
    mixed = [{"usable": True, "uuid": "GPU-1"}, {"usable": False, "uuid": "GPU-2"}]
    assert gpu_environment(Path("/p"), {}, mixed)["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "CUDA_VISIBLE_DEVICES" not in gpu_environment(Path("/p"), {}, [])


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_of_library_folders_the_drivers_alone_stay(tmp_path: Path) -> None:
    folders = {
        "driver": ["libcuda.so.1"],  # Kubernetes: /usr/local/nvidia/lib64
        "driver-and-cuda": ["libcuda.so.1", "libcudart.so.12"],
        "cuda": ["libcudart.so.12", "libnvJitLink.so.12"],
        "matlab": ["libstdc++.so.6"],
    }
    for name, files in folders.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    (tmp_path / "env" / "colab").mkdir(parents=True)
    (tmp_path / "env" / "bin").mkdir()
    program = tmp_path / "env" / "colab" / "jupyter-notebook"
    program.write_text(LAUNCHER.read_text())
    program.chmod(0o755)
    python = tmp_path / "env" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$CUDA_VISIBLE_DEVICES|$@"\n')
    python.chmod(0o755)
    env = {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": ":".join(str(tmp_path / name) for name in folders),
        "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    }
    done = subprocess.run([str(program), "--port=1"], env=env, capture_output=True, text=True, timeout=30, check=True)
    libraries, visible, arguments = done.stdout.strip().split("|")
    assert libraries == str(tmp_path / "driver") and visible == env["CUDA_VISIBLE_DEVICES"]
    assert arguments.endswith("--port=1")


def test_a_service_keeps_the_devices_that_were_chosen() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "TF_CPP_MIN_LOG_LEVEL": "0", "HOME": "/h", "CUDA": "no"}
    choices = service.chosen_devices(environ)
    text = service.unit_text(["/env/jupyter"], "gpu", Path("/home"), Path("/home/token"), choices)
    lines = [line for line in text.splitlines() if line.startswith("Environment=")]
    assert lines == [
        'Environment="COLAB_LOCAL_TOKEN_FILE=/home/token"',
        'Environment="CUDA_VISIBLE_DEVICES=GPU-1,GPU-2"',
        'Environment="TF_CPP_MIN_LOG_LEVEL=0"',
    ]
