"""For which cards a library holds code, read from libraries that are written here byte by byte."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from colab_local.base.errors import Failure
from colab_local.locking import gpu_code
from colab_local.locking.wheels import Wheel
from tests.conftest import SCREEN
from tests.support.gpu_code import entry, fat, ptx, sass
from tests.support.lock_lab import conda_package


@pytest.mark.parametrize("packed", [False, True])
def test_the_real_target_is_in_the_text(tmp_path: Path, packed: bool) -> None:
    library = tmp_path / "libx.so"
    kernels = fat(*sass(60, 70, 80, 89), ptx("90a", "8.5", packed))
    library.write_bytes(bytes(1000) + kernels * 3 + b"other" + fat(*sass(100)) + gpu_code.MAGIC + bytes(80))
    assert gpu_code.library_code(library) == {"60 70 80 89 90a@8.5": 3, "100": 1}


def test_what_can_not_be_read_is_taken_for_that_card_alone() -> None:
    unreadable = entry(1, 120, b"\x28\xb5\x2f\xfd" + bytes(60), (8, 7), 0x8000)
    assert list(gpu_code.fat_binaries(fat(unreadable).ljust(400, b"\0"))) == [("120?@8.7",)]
    assert gpu_code.runs("120?@8.7", "12.0", "12.8") and not gpu_code.runs("120?@8.7", "12.1", "13.0")


def test_a_truncated_library_is_no_error() -> None:
    whole = fat(*sass(60, 70), ptx("90", "8.3", True))
    for length in range(len(whole)):
        list(gpu_code.fat_binaries(whole[:length]))


@pytest.mark.parametrize(
    ("kind", "capability", "cuda", "how"),
    [
        ("60 70 80 89 90a@8.5", "8.6", "12.0", "sass"),
        ("60 70 80 89 90a@8.5", "6.1", "12.0", "sass"),
        ("60 70 80 89 90a@8.5", "7.5", "12.0", "sass"),
        ("75", "7.0", "13.0", ""),
        ("60 70 80 89 90a@8.5", "9.0", "12.4", ""),
        ("60 70 80 89 90a@8.5", "9.0", "12.5", "90a@8.5"),
        ("60 70 80 89 90a@8.5", "12.0", "13.0", ""),  # the letter: no other card takes it
        ("60 70 80 89 90a@8.5", "10.0", "13.0", ""),
        ("60 90@8.3", "12.0", "12.8", "90@8.3"),
        ("80", "9.0", "13.0", ""),
    ],
)
def test_how_a_card_runs_a_fat_binary(kind: str, capability: str, cuda: str, how: str) -> None:
    assert gpu_code.runs(kind, capability, cuda) == how


TENSORFLOW = {"60 70 80 89 90a@8.5": 1149, "60 70 80 89 90 90@8.3": 248}
CUDNN_NEW = {"75 80 86 90 100 120 121 121@8.8": 10, "75": 2}
CUDNN_OLD = {"50 60 61 70 75 80 86 90 100 120 120@8.8": 10, "70 75": 2}


def test_the_locks_of_2026_11_and_after() -> None:
    new = gpu_code.needs({"libtensorflow_cc.so.2": TENSORFLOW, "libcudnn_cnn.so.9": CUDNN_NEW})
    assert list(new) == ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0"]
    old = gpu_code.needs({"libtensorflow_cc.so.2": TENSORFLOW, "libcudnn_cnn.so.9": CUDNN_OLD})
    assert {"6.0", "6.1", "7.0"} <= set(old) and not {"5.2", "10.0", "12.0"} & set(old)
    assert old["8.9"].entry() == {"cuda": "12.0", "driver": "525.60.13"}
    assert old["9.0"].entry() == {"cuda": "12.5", "driver": "555.42.02", "ptx": "8.5 sm_90a"}
    assert gpu_code.missing({"a": TENSORFLOW, "b": CUDNN_NEW}, "7.0") == ["b"]
    assert gpu_code.needs({}) == {}


def test_a_library_of_variants_needs_some_code_alone() -> None:
    variants = {"80": 400, "90": 1500, "50 60 70": 90}
    assert gpu_code.serves("libcublasLt.so.12", variants, "7.0", "12.0")
    assert not gpu_code.serves("libcublasLt.so.12", variants, "12.0", "13.0")
    assert gpu_code.serves("libcufftw.so.11", {"52": 1}, "12.0", "12.8")  # an empty kernel for one card says nothing


@pytest.mark.parametrize("name", ["libx-1-h0_0.conda", "libx-1-h0_0.tar.bz2"])
def test_a_conda_package(tmp_path: Path, name: str) -> None:
    path = conda_package(
        tmp_path / name,
        {
            "lib/libx.so.1.2": fat(*sass(60, 70)).ljust(gpu_code.SMALLEST_LIBRARY, b"\0"),
            "lib/libx.so.1": Path("libx.so.1.2"),  # a link: the same once more
            "lib/small.so": fat(*sass(60, 70)),
        },
    )
    assert gpu_code.package_code(path) == {"libx.so.1.2": {"60 70": 1}}
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_wheel_and_the_file_in_lockfiles(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nvidia/x/lib/libx.so.1", fat(*sass(60, 70)).ljust(gpu_code.SMALLEST_LIBRARY, b"\0"))
        archive.writestr("nvidia/x/lib/small.so", fat(*sass(60, 70)))
        archive.writestr("nvidia/x/__init__.py", "")
    locked = Wheel(wheel.name, wheel.as_uri(), hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size)
    [(name, code)] = gpu_code.read_code([locked], {}, SCREEN).values()
    assert name == wheel.name
    with pytest.raises(Failure, match="is not the file that the lock names"):
        gpu_code.read_code([dataclasses.replace(locked, sha256="0" * 64)], {}, SCREEN)
    assert code == {"libx.so.1": {"60 70": 1}}
    text = gpu_code.code_text({"ab": (wheel.name, code)})
    assert gpu_code.parse_code(text) == {"ab": (wheel.name, code)} and gpu_code.parse_code("") == {}
    assert gpu_code.joined([(wheel.name, code)]) == {f"libx.so.1 ({wheel.name})": {"60 70": 1}}
