"""A relock that serves other cards, or reads other wheels, is found by CI before anyone installs it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from colab_local.install.lockfiles import conda_names, locked_names
from colab_local.locking import checks
from colab_local.locking.specs import card_differences
from tests.conftest import REPO


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of environments/ and lockfiles/, to be altered."""
    for name in ("environments", "lockfiles"):
        shutil.copytree(REPO / name, tmp_path / name)
    return tmp_path / "environments", tmp_path / "lockfiles"


def problems(copies: tuple[Path, Path], env: str = "gpu") -> list[str]:
    return list(checks.check_gpu_code(checks.Lockfiles(*copies), env))


@pytest.mark.parametrize("env", ["gpu", "gpu-forge"])
def test_the_lock_serves_what_was_approved(copies: tuple[Path, Path], env: str) -> None:
    assert problems(copies, env) == []


def test_of_conda_packages_somebody_has_to_say_which_cards_they_serve(copies: tuple[Path, Path]) -> None:
    path = copies[0] / "gpu-recipes.yml"
    text = path.read_text()
    path.write_text(text.replace("libtensorflow_cc-2.19.1-", "libtensorflow_cc-2.19.2-"))
    (problem,) = problems(copies, "gpu-forge")
    assert "libtensorflow_cc-2.19.2-cuda129h19f333e_252, which is not locked" in problem
    path.write_text(text.replace("90 100 120 120@8.8", "90", 1))
    (problem,) = problems(copies, "gpu-forge")
    assert "libtensorflow_cc-2.19.1-cuda129h19f333e_252 what gpu-recipes.yml says" in problem


def test_what_is_not_proven_is_in_the_index_for_each_card() -> None:
    index = json.loads((REPO / "lockfiles/index.json").read_text())["environments"]
    cards = index["gpu-forge"]["platforms"]["linux-64"]["requires"]["gpu"]
    assert all("libraries were not read" in need["note"] for need in cards.values())
    assert {name for name, need in cards.items() if "jit_compile" in need["note"]} == {"10.0", "10.3", "12.0", "12.1"}
    assert cards["12.0"]["driver"] == "570.26" and cards["6.0"]["driver"] == "525.60.13"
    assert not any("note" in need for need in index["gpu"]["platforms"]["linux-64"]["requires"]["gpu"].values())


def test_no_python_package_is_locked_in_both_layers() -> None:
    layers = REPO / "lockfiles" / "gpu-forge"
    conda = conda_names((layers / "linux-64.txt").read_text())
    python = locked_names((layers / "pypi.txt").read_text())
    assert conda["tensorflow"] == "2.19.1" and conda["matplotlib"] and "notebook" in python
    assert not set(conda) & set(python)


def test_cards_that_nobody_approved(copies: tuple[Path, Path]) -> None:
    path = copies[0] / "gpu-cards.yml"
    path.write_text(re.sub(r'(?m)^  "7\.0".*\n', "", path.read_text()).replace('"9.0": "12.5"', '"9.0": "12.0"'))
    assert problems(copies) == [
        "cards of compute capability 7.0 need CUDA 12.0; approved is none",
        "cards of compute capability 9.0 need CUDA 12.5; approved is 12.0",
    ]


def test_another_cudnn_shuts_old_cards_out(copies: tuple[Path, Path]) -> None:
    path = copies[1] / "gpu" / "gpu-code.json"
    code = json.loads(path.read_text())
    libraries = next(told["libraries"] for told in code["wheels"].values() if "cudnn" in told["file"])
    libraries["libcudnn_cnn.so.9"] = {"75 80 86 90 100 120 121 121@8.8": 10, "75": 2}  # as 9.19 has it
    path.write_text(json.dumps(code))
    found = problems(copies)
    assert len(found) == 5 and found[0] == "cards of compute capability 6.0 are not served; approved is 12.0"


def test_code_of_other_wheels_than_the_locked_ones(copies: tuple[Path, Path]) -> None:
    path = copies[1] / "gpu" / "gpu-code.json"
    code = json.loads(path.read_text())
    gone = next(sha256 for sha256, told in code["wheels"].items() if "nccl" in told["file"])
    code["wheels"]["0" * 64] = code["wheels"].pop(gone)
    path.write_text(json.dumps(code))
    assert len([problem for problem in problems(copies) if "don't both have" in problem]) == 2


def test_without_a_list_nothing_is_approved() -> None:
    assert list(card_differences({}, {"8.0": {"cuda": "12.0"}})) == [
        "cards of compute capability 8.0 need CUDA 12.0; approved is none"
    ]
