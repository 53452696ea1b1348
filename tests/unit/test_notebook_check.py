"""`--check`: what a notebook needs is read, never run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.terminal import Screen
from colab_local.manage import notebook
from tests.conftest import REPO

LOCKFILES = REPO / "lockfiles"


def write(path: Path, *cells: str | list[str], **more: Any) -> Path:
    """Write a notebook with these code cells."""
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": cell} for cell in cells
    ]
    markdown = {"cell_type": "markdown", "source": "import nothing"}
    path.write_text(json.dumps({"cells": [*made, markdown], "metadata": {}, "nbformat": 4, **more}))
    return path


def needs(tmp_path: Path, *cells: str | list[str]) -> notebook.Needs:
    return notebook.needs_of(notebook.cells_of(notebook.read_notebook(write(tmp_path / "a.ipynb", *cells))), tmp_path)


def wanted(tmp_path: Path, *cells: str | list[str]) -> list[str]:
    return sorted(notebook.wanted_packages(needs(tmp_path, *cells)))


@pytest.mark.parametrize(
    ("cell", "packages"),
    [
        ("import os, sys, json", []),
        ("import numpy as np\nfrom sklearn.svm import SVC", ["numpy", "scikit-learn"]),
        (["import cv2\n", "from PIL import Image"], ["opencv-python", "pillow"]),
        ("def f():\n    import yaml", ["pyyaml"]),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", ["torch"]),
        ("import absl, attr, weaviate", ["absl-py", "attrs", "weaviate-client"]),
        ("import tomllib, zoneinfo", []),
        ("!wget \\\n   https://example.org/x.zip \\\n  -O x.zip\nimport pandas", ["pandas"]),
        ("  import pandas\n  if True:\n    import seaborn", ["pandas", "seaborn"]),
        ("x = (1,  # why?\n  2)\nimport pandas", ["pandas"]),
        ("text = '%s' % (\n  7\n  % 4)\nimport pandas", ["pandas"]),
        ("pip install polars\nimport pandas", ["pandas"]),
        ("%%capture\n!pip install polars\nimport pandas", ["pandas"]),
        ("import person_pb2", []),
        ("pandas.concat?\n?pandas\n%timeit?\nimport pandas", ["pandas"]),
        ("%matplotlib inline\n!ls\nfiles = !ls\nnumpy?\nimport pandas", ["pandas"]),
        ("if True:\n    !pip list\n    %time import seaborn", []),
        ("%%time\nimport seaborn", ["seaborn"]),
        ("%%bash\nimport seaborn", []),
        ("%%writefile mine.py\nimport seaborn", []),
        ("%%writefile mine.py\nx = 1", []),
        ("from google.colab import files, drive", []),
        ("from google.cloud import storage", ["google-cloud-storage"]),
        ("from google import genai", ["google-genai"]),
        ("from . import mine", []),
        ("import numpy as np\nprint 'Python 2'", ["numpy"]),
        ("import tensorflow.keras.layers as L", ["tensorflow"]),
        ("import distutils.version", []),
    ],
)
def test_imports_of_a_cell(tmp_path: Path, cell: str | list[str], packages: list[str]) -> None:
    assert wanted(tmp_path, cell) == packages


def test_own_modules_are_no_packages(tmp_path: Path) -> None:
    (tmp_path / "beside.py").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").touch()
    assert wanted(tmp_path, "%%writefile mine.py\nx=1", "import mine, beside, folder.part, other") == ["other"]


def test_modules_that_the_notebook_fetches_or_finds_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "theirs.py").touch()
    cells = ("!wget -q https://example.org/extras/helper_functions.py", "%%file other.py\nx = 1")
    (tmp_path / "book").mkdir()
    found = needs(
        tmp_path / "book", *cells, "import sys\nsys.path.insert(0, '../lib')", "import theirs, other, foreign"
    )
    assert {"helper_functions", "other", "theirs"} <= found.own
    assert sorted(notebook.wanted_packages(found)) == ["foreign"]
    assert "git clone" in " ".join(needs(tmp_path, "!git clone https://example.org/x").habits)


def test_an_import_that_may_fail_is_not_missing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ipynb",
        "try:\n    import no_such_a, cPickle\nexcept (ImportError, OSError):\n    import no_such_b",
        "try:\n    import no_such_c\nexcept KeyError:\n    pass",
        "try:\n    import no_such_d\nexcept:\n    pass",
        "import no_such_d.part",
    )
    found = notebook.examine(path, LOCKFILES)
    cpu = found["environments"]["cpu"]
    assert (cpu["missing"], cpu["gone"]) == (["no-such-c", "no-such-d"], [])
    assert found["optional"] == ["no-such-a", "no-such-b"]
    lines = list(notebook.lines_of(found, "cpu", str))
    assert any("no-such-a" in line and "(goes on without it)" in line for line in lines)


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({}, ""),
        (None, ""),
        ({"kernelspec": {"name": "conda-env-x", "language": "python"}}, ""),
        ({"kernelspec": {"name": "ir", "display_name": "R"}}, "R"),
        ({"kernelspec": {"name": "julia-1.9", "display_name": "Julia"}}, "Julia"),
        ({"kernelspec": {"name": "swift", "display_name": "Swift"}}, "Swift"),
        ({"language_info": {"name": "scala"}, "kernelspec": 5}, "scala"),
        ({"language_info": {"name": "\x1b[2Jbad"}}, "2Jbad"),
    ],
)
def test_other_languages_have_no_kernel_here(tmp_path: Path, metadata: Any, language: str) -> None:
    """Swift's `import TensorFlow` is no Python package."""
    path = write(tmp_path / "a.ipynb", "import numpy", metadata=metadata)
    missing = notebook.examine(path, LOCKFILES)["environments"]["colab"]["missing"]
    assert missing == ([f"a kernel for {language}"] if language else [])
    assert notebook.command([path], "colab", LOCKFILES, Screen()) == (EXIT_DIFFERS if language else EXIT_OK)


def test_python_2_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "import urllib2\nprint 1", metadata={"kernelspec": {"name": "python2"}})
    found = notebook.examine(path, LOCKFILES)
    assert "it was written for Python 2" in found["habits"]
    assert found["environments"]["cpu"]["gone"] == ["urllib2"]


def test_outputs_are_nobodys_fault(tmp_path: Path) -> None:
    """Plots hold NaN, cut text holds half a character, Windows writes a byte order mark, films are large."""
    path = tmp_path / "a.ipynb"
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    outputs = {"nan": float("nan"), "half": "\ud83d", "film": "x" * (70 << 20), "deep": deep}
    cell = {"cell_type": "code", "source": "import pandas", "outputs": [outputs]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"cells": [cell], "nbformat": 4}).encode())
    assert notebook.examine(path, LOCKFILES)["needs"] == {"pandas": 1}


def test_a_package_under_another_name_is_installed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "!pip install faiss-gpu", "import faiss")
    assert notebook.examine(path, LOCKFILES)["environments"]["cpu"]["missing"] == []


@pytest.mark.parametrize(
    ("line", "installs"),
    [
        ("!pip install -q transformers", {"transformers": ""}),
        ("%pip install 'torch==2.5.0' \"accelerate>=1,<2\"  # both", {"torch": "==2.5.0", "accelerate": ">=1,<2"}),
        ("!pip install -U tf_keras[extra]==2.20", {"tf-keras": "==2.20"}),
        ("!pip install 'wandb[media, sweeps]' 'jax [cpu] >= 0.5, <1'", {"wandb": "", "jax": ">=0.5,<1"}),
        ("!pip install polars > log.txt", {"polars": ""}),
        ("!python -m pip install git+https://example.org/x.git", {"x": ""}),
        ("!pip install git+https://example.org/docs@main#egg=tensorflow-docs", {"tensorflow-docs": ""}),
        ("!uv pip install polars", {"polars": ""}),
        ("!pip install -r requirements.txt -i https://example.org/simple torch", {"torch": ""}),
        ("!pip install -e . && pip install a; pip install b | tail -1", {"a": "", "b": ""}),
        ("!pip install -q \\\n    polars \\\n    duckdb", {"polars": "", "duckdb": ""}),
        (
            "%%bash\nset -e\npip install polars  # quick\npython -m pip install \\\n  duckdb",
            {"polars": "", "duckdb": ""},
        ),
        ("pip install polars", {"polars": ""}),
        ("!pip install {wheel} $other polars", {"polars": ""}),
        ("print('pip install x')", {}),
        ('"""\npip install x\n!pip install y\n"""', {}),
        ("# !pip install x\n!ls", {}),
    ],
)
def test_installs_of_a_cell(tmp_path: Path, line: str, installs: dict[str, str]) -> None:
    found = needs(tmp_path, line)
    assert found.installs == installs
    unknown = any(word in line for word in ("git+", " -e ", "{", "log.txt"))
    assert ("it installs from an address or a file" in " ".join(found.habits)) is unknown


@pytest.mark.parametrize(
    "how", ["-r needs/a.txt", "-rneeds/a.txt", "--requirement=needs/a.txt", "--requirement needs/a.txt"]
)
def test_a_list_of_requirements_beside_the_notebook_is_read(tmp_path: Path, how: str) -> None:
    (tmp_path / "needs").mkdir()
    lines = "# all\n-i https://example.org/simple\npolars[gpu] < 2  # quick\nwandb == 0.2 ; python_version > '3'\n"
    (tmp_path / "needs" / "a.txt").write_text(lines + "tqdm \\\n  --hash=sha256:00\n-r a.txt\n-r more.txt\n-e .\n")
    found = needs(tmp_path, f"!pip install {how}\nimport polars, wandb")
    assert found.installs == {"polars": "<2", "wandb": "==0.2", "tqdm": ""}
    assert "it installs what more.txt lists, which is not beside the notebook" in found.habits


@pytest.mark.parametrize("name", ["requirements.txt", "folder", "a.txt"])
def test_a_list_of_requirements_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    found = needs(tmp_path, f"!pip install -r {name} polars")
    assert (found.installs, len(found.habits)) == ({"polars": ""}, 1)
    assert f"it installs what {name} lists" in found.habits[0]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "https://example.org/a.txt", "{name}", "\x1b[2J"])
def test_a_list_of_requirements_elsewhere_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("polars")
    (tmp_path / "book").mkdir()
    found = needs(tmp_path / "book", f"!pip install -r {name}")
    assert found.installs == {}
    assert found.habits == ["it installs from an address or a file: what that brings is not known here"]


def test_what_means_something_else_here(tmp_path: Path) -> None:
    cell = "!apt-get install -y ffmpeg\nfrom google.colab import drive, ai\ndrive.mount('/content/drive')"
    said = " ".join(needs(tmp_path, cell).habits)
    for word in ("apt", "drive.mount", "/content", "ai and sheets"):
        assert word in said
    assert needs(tmp_path, "x = 'aptitude'").habits == []


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = write(tmp_path / "a.ipynb", f"open({str(mark)!r}, 'w')\n!touch {mark}")
    notebook.command([path], "cpu", LOCKFILES, Screen())
    assert not mark.exists()


def test_answer_for_each_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.ipynb", "import tensorflow, numpy, matplotlib.pyplot", "import google.colab")
    assert notebook.command([good], "cpu", LOCKFILES, Screen()) == EXIT_OK
    assert "has all that it imports" in capsys.readouterr().out
    bad = write(tmp_path / "bad.ipynb", "import no_such_thing_x\nimport imp, cgi", "!pip install numpy==1.0")
    assert notebook.command([bad], "cpu", LOCKFILES, Screen()) == EXIT_DIFFERS
    said = capsys.readouterr().out
    assert "lacks: no-such-thing-x, cgi, imp" in said
    assert "imp: left Python with 3.12" in said
    assert "it installs numpy 1.0 over " in said
    found = notebook.examine(bad, LOCKFILES)
    assert found["environments"]["gpu"]["missing"] == ["no-such-thing-x"]
    assert found["needs"] == {"no-such-thing-x": 1}
    more = write(tmp_path / "more.ipynb", "import transformers, numpy")
    assert notebook.command([more], "cpu", LOCKFILES, Screen()) == EXIT_DIFFERS
    said = capsys.readouterr().out
    assert re.search(r"^  needs +cpu +notebooks +colab  first", said, re.M), "no old months where new ones are"
    assert said.endswith("The notebooks environment has all:\npython3 bootstrap.py --env notebooks\n"), "the smallest"


def test_installed_by_itself_is_not_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "!pip install no-such-thing", "import no_such_thing")
    assert notebook.examine(path, LOCKFILES)["environments"]["cpu"]["missing"] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        '{"cells": {}, "nbformat": 4}',
        '{"cells": [], "nbformat": 2}',
        '{"nbformat": 4}',
        '{"worksheets": 5, "nbformat": 3}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_notebook(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Failure) as caught:
        notebook.command([path], "cpu", LOCKFILES, Screen())
    assert caught.value.code == EXIT_USAGE


def test_missing_file_and_unknown_environment(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="can't read"):
        notebook.command([tmp_path / "none.ipynb"], "cpu", LOCKFILES, Screen())
    with pytest.raises(Failure, match="unknown environment 'x'"):
        notebook.command([write(tmp_path / "a.ipynb")], "x", LOCKFILES, Screen())


@pytest.mark.parametrize("cells", [[None, 1, "x"], [{"cell_type": "code"}], [{"cell_type": "code", "source": 5}]])
def test_odd_cells_are_read_as_nothing(tmp_path: Path, cells: list[Any]) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert notebook.examine(path, LOCKFILES)["needs"] == {}


def test_old_notebooks_have_their_cells_on_worksheets(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    cell = {"cell_type": "code", "input": ["import seaborn\n", "print 'Python 2'"]}
    path.write_text(json.dumps({"worksheets": [{"cells": [cell]}], "nbformat": 3}))
    assert notebook.examine(path, LOCKFILES)["needs"] == {"seaborn": 1}


def test_hostile_notebooks_end_in_a_sentence(tmp_path: Path) -> None:
    path = write(
        tmp_path / "deep.ipynb", "(" * 100_000, "x = " + "-" * 50_000 + "1", "import numpy\0", "import pandas"
    )
    assert notebook.examine(path, LOCKFILES)["needs"]["pandas"] == 4
    path.write_text('{"cells": ' + "[" * 100_000 + "]" * 100_000 + ', "nbformat": 4}')
    with pytest.raises(Failure, match="nested too deeply"):
        notebook.examine(path, LOCKFILES)


def test_what_differs_from_hosted_colab_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.ipynb", "import setuptools, numpy")
    hosted = notebook.hosted_versions("cpu")["setuptools"]
    assert notebook.command([path], "cpu", LOCKFILES, Screen()) == EXIT_OK
    said = capsys.readouterr().out
    assert f"here, {hosted} in hosted Colab" in said
    assert "  numpy: " not in said, "that one has Colab's version"
    months = notebook.examine(path, LOCKFILES)["environments"]
    assert months["cpu-2026-04"]["differs"].get("numpy") is None


def test_several_notebooks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "good.ipynb", "import numpy"), write(tmp_path / "bad.ipynb", "import no_such_x")
    assert notebook.command([good, good], "cpu", LOCKFILES, Screen()) == EXIT_OK
    assert notebook.command([bad, good], "cpu", LOCKFILES, Screen()) == EXIT_DIFFERS
    capsys.readouterr()
    with pytest.raises(Failure, match=r"none\.ipynb"):
        notebook.command([tmp_path / "none.ipynb", good], "cpu", LOCKFILES, Screen())
    assert "good.ipynb" in capsys.readouterr().out, "the others are looked at all the same"
