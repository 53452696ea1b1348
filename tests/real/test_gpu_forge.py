"""gpu-forge: TensorFlow from the conda layer, from the choice before the download to the bundle.

conda-forge's packages of 2.3 GB can't be had in the tests: stand-ins of them come from a mirror on loopback. The lock
is the real one where what is said of a machine's cards is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE
from colab_local.install.home import current_receipt
from colab_local.manage import card, verify
from tests.conftest import HARDWARE, REPO, SCREEN
from tests.support.gpu_machines import Case, cases, make_nvidia_smi
from tests.support.homes import LIGHT, Home, hinted, run_script
from tests.support.mirror import Mirror, World, build_world, find_interpreter, with_tensorflow

pytestmark = [
    pytest.mark.skipif(
        os.uname().sysname != "Linux" or os.uname().machine != "x86_64", reason=HARDWARE + "Linux on x86_64"
    ),
    pytest.mark.skipif(
        find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
    ),
]
BLACKWELL = next(case for case in cases() if case.name == "rtx5060ti-590")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return with_tensorflow(build_world(tmp_path_factory.getbasetemp() / "world"))


@pytest.fixture(scope="module")
def lockfiles(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_lockfiles(tmp_path_factory.mktemp("forge") / "lockfiles", LIGHT)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "user")


def path_with(case: Case, folder: Path) -> str:
    """Return a PATH on which nvidia-smi answers as recorded."""
    return f"{make_nvidia_smi(case, folder)}:{os.environ['PATH']}"


def test_made_by_conda_verified_and_bundled(home: Home, mirror: Mirror, lockfiles: Path, tmp_path: Path) -> None:
    """From nothing: kept aside while the GPU does not compute, taken as it is, checked, and again from one tar."""
    options = ["--env", "gpu-forge", "--lockfiles", str(lockfiles), "--engine", "miniforge", *mirror.options]
    path = path_with(BLACKWELL, tmp_path / "bin")
    failed = home.run(*options, check=False, PATH=path)
    assert failed.returncode == EXIT_MACHINE, failed.stdout + failed.stderr
    assert "its libraries were not read; not proven on this card is what XLA compiles" in failed.stdout
    assert "Your GPU is not used: the NVIDIA driver is not here" in failed.stderr
    assert "the environment is kept" in failed.stderr and hinted(failed)[-1] == "--no-gpu-check"
    mirror.reset()
    done = home.run(*options, "--no-gpu-check")
    assert "CUDA's libraries are found, nothing ran on a GPU yet" in done.stdout and not mirror.requests
    receipt = current_receipt(home.path, "gpu-forge")
    assert receipt and receipt["engine"] == "miniforge" and receipt["accelerator"] == "gpu"
    found = verify.check(receipt, SCREEN)
    assert not found.differences and found.fingerprint.startswith("colab-local gpu-forge linux-64 sha256:")
    assert card.versions(home.path, receipt).startswith("TensorFlow 2.19.1, Notebook 6.5.7")
    listed = home.run("--list").stdout
    assert "gpu-forge" in listed
    prefix = home.path / "current" / "gpu-forge"
    asked = subprocess.run(
        [prefix / "bin" / "python", "-I", "-m", "colab_local_jupyter.gpu"], capture_output=True, text=True, check=True
    )
    told = json.loads(asked.stdout.splitlines()[-1])
    assert told["cuda"] and told["sentence"].startswith("Your GPU is not used: the NVIDIA driver is not here")
    (prefix / "lib" / "libcudnn.so.9").write_text("damaged")
    damaged = home.run("--verify", "--env", "gpu-forge", check=False)
    assert damaged.returncode == 7 and "libcudnn.so.9" in damaged.stdout + damaged.stderr

    bundle = tmp_path / "bundle.tar"
    wanted = ["--env", "gpu-forge", "--engine", "miniforge", "--lockfiles", str(lockfiles), "--output", str(bundle)]
    made = run_script("bundle.py", *wanted, *mirror.options)
    assert made.returncode == 0, made.stderr
    again = Home(tmp_path / "elsewhere", tmp_path / "user")
    offline = ["--env", "gpu-forge", "--no-gpu-check", "--offline", str(bundle)]
    refused = again.run(*offline, check=False)
    lock = refused.stderr.split("--bundle-lock ")[-1].split()[0]
    mirror.reset()
    again.run(*offline, "--bundle-lock", lock)
    second = verify.check(current_receipt(again.path, "gpu-forge") or {}, SCREEN)
    assert not second.differences and second.fingerprint == found.fingerprint and not mirror.requests


def test_without_a_conda_layer_it_can_not_be_made(home: Home, mirror: Mirror, lockfiles: Path) -> None:
    """One true sentence before anything is written, whoever asks for this machine's Python, and why."""
    options = ["--env", "gpu-forge", "--lockfiles", str(lockfiles), "--no-gpu-check", "--dry-run"]
    told = home.run(*options, "--engine", "host", *mirror.options, check=False)
    assert told.returncode == EXIT_USAGE
    assert "TensorFlow and CUDA of gpu-forge are conda-forge's packages" in told.stderr
    words = hinted(told)
    assert words[-2:] == ["--engine", "miniforge"] and "host" not in words
    assert home.run(*words[1:]).returncode == 0  # the hint works as it stands
    unreachable = [
        f"--mirror={url}=http://127.0.0.1:9/" for url in ("https://github.com/", "https://conda.anaconda.org/")
    ]
    auto = home.run(*options, *unreachable, check=False, PATH="/usr/bin:/bin")
    assert auto.returncode == EXIT_MACHINE and "can't be reached, and TensorFlow and CUDA of gpu-forge" in auto.stderr
    bundle = run_script("bundle.py", "--env", "gpu-forge", "--engine", "host")
    assert bundle.returncode == EXIT_USAGE and "conda-forge's packages" in bundle.stderr
    assert not home.path.exists()


def test_gpu_names_it_before_the_download_where_the_wheels_have_no_code(home: Home, tmp_path: Path) -> None:
    """An RTX 5060 Ti: --gpu refuses, its hint chooses gpu-forge as it stands, and says what is not proven."""
    path = path_with(BLACKWELL, tmp_path / "bin")
    refused = home.run("--gpu", "--engine", "host", "--dry-run", check=False, PATH=path)
    assert refused.returncode == EXIT_MACHINE and "the environment gpu-forge has code for it" in refused.stderr
    assert "not proven on this card is what XLA compiles (jit_compile=True)" in refused.stderr
    words = hinted(refused)
    assert words[words.index("--env") + 1] == "gpu-forge" and not {"--gpu", "--engine", "host"} & set(words)
    assert not home.path.exists()


def test_it_is_no_runtime_of_hosted_colab(home: Home) -> None:
    """Its TensorFlow is conda-forge's: --runtime would promise hosted Colab's versions."""
    done = home.run("--env", "gpu-forge", "--runtime", "2026.08", "--dry-run", check=False)
    assert done.returncode == EXIT_USAGE and "no runtime '2026.08' of Colab's for gpu-forge" in done.stderr


def test_a_processor_without_avx2(home: Home) -> None:
    """conda-forge builds it for x86_64_v3 alone: said before the download."""
    code = (
        "import runpy, sys; from pathlib import Path; real = Path.read_text\n"
        "Path.read_text = lambda self, *a, **k: 'flags : fpu sse avx\\n' if str(self) == '/proc/cpuinfo' "
        "else real(self, *a, **k)\n"
        "sys.argv = ['bootstrap.py', '--env', 'gpu-forge', '--dry-run', '--prefix', {!r}]\n"
        "sys.path.insert(0, {!r}); runpy.run_path({!r}, run_name='__main__')"
    )
    program = code.format(str(home.path), str(REPO), str(REPO / "bootstrap.py"))
    done = subprocess.run(["python3", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_MACHINE and "this CPU lacks avx2" in done.stderr, done.stderr


def test_what_a_notebook_needs_is_found_in_both_layers(tmp_path: Path) -> None:
    notebook = tmp_path / "a.ipynb"
    cell = {"cell_type": "code", "source": ["import tensorflow, matplotlib.pyplot, ipywidgets"], "metadata": {}}
    notebook.write_text(json.dumps({"cells": [cell], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    done = Home(tmp_path / "home", tmp_path / "user").run("--check", notebook, "--env", "gpu-forge", "--json")
    has = json.loads(done.stdout)["environments"]["gpu-forge"]["has"]
    assert has["tensorflow"] == "2.19.1" and has["matplotlib"].startswith("3.") and has["ipywidgets"] == "7.7.1"
