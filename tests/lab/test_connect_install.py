"""connect.py --install: a bare host, a line that drops in the middle, errors of the far machine."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colab_local.install import program
from tests.conftest import REPO, supported_python
from tests.support import connecting
from tests.support.colab_client import TRANSPORTS, connect
from tests.support.connecting import DEFAULT_HOME, QUICK, Running, running
from tests.support.hosts import Lab, needs_root
from tests.support.mirror import light_layer

pytestmark = needs_root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program whose lock has no TensorFlow, so that a host is installed in seconds."""
    folder = tmp_path_factory.mktemp("checkout") / "colab-local"
    with tarfile.open(fileobj=io.BytesIO(program.pack(REPO))) as archive:
        archive.extractall(folder, filter="data")
    index_file = folder / "lockfiles" / "index.json"
    index = json.loads(index_file.read_text())
    pypi = str(light_layer((REPO / "lockfiles" / "cpu" / "pypi.txt").read_text()))
    (folder / "lockfiles" / "cpu" / "pypi.txt").write_text(pypi)
    index["environments"] = {"cpu": index["environments"]["cpu"]}
    index["environments"]["cpu"]["pypi"]["sha256"] = hashlib.sha256(pypi.encode()).hexdigest()
    for platform in index["environments"]["cpu"]["platforms"].values():
        platform["bytes"] = {"pypi_download": 70_000_000, "pypi_installed": 250_000_000}
    index_file.write_text(json.dumps(index, indent=1))
    return folder


@pytest.fixture(scope="module")
def bundle(checkout: Path) -> Path:
    """A bundle of its environment: the lab has no way out."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([supported_python(), "-c", code], capture_output=True, text=True, check=True).stdout
    target = checkout.with_suffix(".tar")
    argv = [sys.executable, str(checkout / "scripts" / "bundle.py"), "--env", "cpu", "--engine", "host"]
    subprocess.run([*argv, "--python", version.strip(), "--output", str(target)], check=True, timeout=300)
    return target


@pytest.fixture
def lab(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A laptop with the copy, and a host on which there is nothing."""
    monkeypatch.setattr(connecting, "SCRIPT", str(checkout / "scripts" / "connect.py"))
    with Lab(tmp_path / "lab") as made:
        made.host("fresh")
        yield made


def next_event(link: Running) -> dict[str, Any]:
    """Return the next event, whatever it is."""
    assert link.process.stdout is not None
    line = link.process.stdout.readline()
    assert line, link.said
    event: dict[str, Any] = json.loads(line)
    return event


def test_a_line_that_drops_does_not_end_the_installation(lab: Lab, bundle: Path) -> None:
    fresh, lines, names, is_cut = lab.machines["fresh"], [], [], False
    options = f"--bootstrap=--engine host --python {supported_python()} --offline {bundle}"
    with running(lab, *QUICK, "--install", options, "fresh") as link:
        while "installed" not in names:
            event = next_event(link)
            names.append(event["event"])
            lines += [event["line"]] if event["event"] == "installing" else []
            if not is_cut and lines and re.match(r"\[\d/\d\] Install the locked Python packages", lines[-1]):
                fresh.cut()
                is_cut = True
            if event["event"] == "dropped":
                link.says("the installation goes on there")
                fresh.restore()
        assert names.count("dropped") == 1, "the line was cut in the middle"
        steps = [line for line in lines if re.fullmatch(r"\[\d/\d\] [^:]+", line) and "  " not in line]
        numbers = [int(step[1]) for step in steps]
        assert numbers == list(range(1, numbers[-1] + 1)), "every step is shown, and none of them twice"
        assert not [line for line in lines if line.startswith(("Next steps", "error:", "hint:"))]
        connected = link.event("connected")
        assert connected["host"] == "fresh"
        with lab.laptop.network():
            for transport in TRANSPORTS:
                with connect(connected["url"], transport) as colab:
                    assert colab.run("6 * 7").result == "42"
                    assert connecting.run(lab, "--status", "fresh").returncode == 0
        assert link.end() == 0
    again = connecting.run(lab, "--install", options, "--status", "fresh")
    assert again.returncode == 0, "it runs"
    stopped = connecting.run(lab, "--stop", "fresh").stdout
    assert re.fullmatch(r"stopped Jupyter on fresh; \d kernels? ended\n", stopped)
    program = fresh.home / DEFAULT_HOME / "program" / "bootstrap.py"
    fresh.run([supported_python(), str(program), "--uninstall", "--yes"])
    assert not (fresh.home / DEFAULT_HOME).exists(), "nothing is left, the program included"


def test_what_fails_there_is_said_with_a_hint_that_is_true_there(lab: Lab, tmp_path: Path) -> None:
    missing = tmp_path / "nope.tar"
    done = connecting.run(lab, "--install", f"--bootstrap=--offline {missing}", "root@fresh")
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: on fresh: ") and "nope.tar" in error
    assert hint.startswith("hint: on fresh: ")
    assert done.returncode == 2
    # The hint's command, typed there, removes the cause.
    folder = tmp_path / "notebooks"
    done = connecting.run(lab, "--install", f"--bootstrap=--notebook-dir {folder}", "root@fresh")
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: on fresh: --notebook-dir: there is no folder {folder} (Jupyter would not start)"
    lab.machines["fresh"].run(["sh", "-c", hint.partition("hint: on fresh: ")[2]])
    assert folder.is_dir()


def test_ctrl_c_leaves_the_installation_at_work(lab: Lab, bundle: Path) -> None:
    options = f"--bootstrap=--engine host --python {supported_python()} --offline {bundle}"
    with running(lab, "--install", options, "fresh") as link:
        while next_event(link)["event"] != "installing":
            pass
        assert link.end() == 0
        link.says("the installation on fresh goes on")
    with running(lab, "--install", options, "fresh") as link:
        names = []
        while "connected" not in names:
            names.append(next_event(link)["event"])
        assert "installed" in names
        assert link.end() == 0


def test_options_of_bootstrap_without_install_are_an_error(lab: Lab) -> None:
    done = connecting.run(lab, "--bootstrap=--engine host", "fresh")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)
    assert shlex.split(done.stderr.splitlines()[1].partition("hint: ")[2])[-1] == "--help"
