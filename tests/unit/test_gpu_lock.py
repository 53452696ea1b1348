"""A relock that serves other cards, or reads other wheels, is found by CI before anyone installs it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from ci import check_lockfiles
from colab_local.locking.specs import card_differences
from tests.conftest import REPO


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of environments/ and lockfiles/, to be altered."""
    for name in ("environments", "lockfiles"):
        shutil.copytree(REPO / name, tmp_path / name)
    return tmp_path / "environments", tmp_path / "lockfiles"


def problems(copies: tuple[Path, Path]) -> list[str]:
    return list(check_lockfiles.check_gpu_code(check_lockfiles.Lockfiles(*copies), "gpu"))


def test_the_lock_serves_what_was_approved(copies: tuple[Path, Path]) -> None:
    assert problems(copies) == []


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
