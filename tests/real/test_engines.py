"""The engines, each from nothing to a Jupyter that starts, against a mirror on loopback; and all that can go wrong.

The packages, the checks of their hashes and the prefixes are real; the installers, conda and pixi are stand-ins
(standins/README.md). One test installs the whole Python layer, TensorFlow included; the others leave TensorFlow
out: what they show lies before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, free_port, supported_python
from tests.support.mirror import (
    MINIFORGE,
    Cut,
    Mirror,
    Redirect,
    Slow,
    Status,
    Tamper,
    changes,
    find_interpreter,
    sha256,
    snapshot,
)
from tests.support.trials import HOSTILE, LIGHT, WHOLE, Trial, oldest_python

pytestmark = pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until the condition holds; fail with `what` when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.02)


def end_group(child: subprocess.Popen[str], number: int) -> int:
    """Send a signal to a started run and all its children, as a terminal or a power cut does; return its status."""
    os.killpg(child.pid, number)
    return child.wait(60)


def group_is_empty(group: int) -> bool:
    """Return whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def check_prefix(trial: Trial, prefix: Path) -> None:
    """Assert that the prefix holds the locked packages, patched for where it lies, and a Python that works."""
    world = trial.mirror.world
    records = {path.name: json.loads(path.read_text()) for path in (prefix / "conda-meta").glob("*.json")}
    found = {(r["name"], r["version"], r["sha256"]) for r in records.values()}
    locked = zip(world.records, world.packages, strict=True)
    assert found == {(record.name.normalized, str(record.version), sha256(path)) for record, path in locked}
    real = str(prefix.resolve())
    shown = subprocess.run([prefix / "bin" / "where-am-i"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == real
    binary = (prefix / "lib" / "libprefix.bin").read_bytes()
    assert binary.startswith(b"\x7fELF\0\1" + real.encode() + b"/share\0") and binary.endswith(b"\0tail\0")
    paths = next(r for r in records.values() if r["name"] == "prefixed")["paths_data"]["paths"]
    placeholder = next(entry["prefix_placeholder"] for entry in paths if entry["_path"] == "lib/libprefix.bin")
    assert len(binary) == len(b"\x7fELF\0\1" + placeholder.encode() + b"/share\0tail\0")
    code = "import os, sys, ssl, sqlite3, ctypes, pip, notebook; print(os.path.realpath(sys.prefix)); print(notebook)"
    ran = subprocess.run([prefix / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[0] == real
    assert "/site-packages/notebook/" in ran.stdout


def check_second_run(trial: Trial, *options: str) -> None:
    """Assert that the same command again asks nobody for anything and changes nothing."""
    trial.mirror.reset()
    before = snapshot(trial.home / "receipts")
    again = trial.run(*options, "--json")
    assert (again.code, again.document["changed"], again.document["plan"]) == (0, False, [])
    assert trial.mirror.requests == []
    assert snapshot(trial.home / "receipts") == before


def check_downloads_once(trial: Trial, engine: str) -> None:
    """Assert that the mirror sent each file's bytes exactly once, of nothing but what the lock names."""
    world = trial.mirror.world
    wanted = [world.installer(engine)] if engine in ("miniforge", "anaconda", "pixi") else []
    wanted += world.packages
    for path in wanted:
        assert trial.mirror.sent(path.name) == path.stat().st_size, path.name
    assert trial.mirror.sent() == sum(path.stat().st_size for path in wanted)


# ---------------------------------------------------------------------------------------------------------
# Each engine, end to end


def test_miniforge_makes_the_whole_environment_and_touches_nothing_else(tmp_path: Path, mirror: Mirror) -> None:
    trial = Trial(tmp_path, mirror, pypi=WHOLE, python=oldest_python())
    before = snapshot(trial.user)
    done = trial.run("--engine", "miniforge", environ={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.code == 0, done.err
    check_prefix(trial, trial.prefix)
    check_downloads_once(trial, "miniforge")
    for package in ("tensorflow", "keras", "ipykernel", "notebook"):  # warm, whatever the shell says
        assert list(trial.prefix.glob(f"lib/python3*/site-packages/{package}/__pycache__/__init__.*.pyc")), package
    (receipt,) = trial.receipts()
    assert (receipt["engine"], receipt["layer"], receipt["env"]) == ("miniforge", "conda", "cpu")
    assert receipt["python"] == mirror.world.python
    assert (trial.home / "conda" / "bin" / "conda").exists()
    assert changes(before, snapshot(trial.user)) == []
    # what the smoke test tried is what the user gets
    code = "import tensorflow as tf; print(int(tf.reduce_sum(tf.ones((3, 3)))))"
    ran = subprocess.run(
        [trial.prefix / "bin/python", "-c", code], capture_output=True, text=True, env=trial.environ, timeout=300
    )
    assert ran.stdout.strip() == "9", ran.stderr
    check_second_run(trial, "--engine", "miniforge")
    check_second_run(trial)  # auto: what is there stays


def test_pixi_under_a_path_with_blanks_and_letters_beyond_ascii(tmp_path: Path, mirror: Mirror) -> None:
    trial = Trial(tmp_path, mirror, home_name="mein Ordner für 機械学習", python=oldest_python())
    before = snapshot(trial.user)
    done = trial.run("--engine", "pixi")
    assert done.code == 0, done.err
    (receipt,) = trial.receipts()
    assert receipt["engine"] == "pixi"
    assert trial.prefix.resolve() == trial.home / "envs" / receipt["name"] / ".pixi" / "envs" / "cpu"
    check_prefix(trial, trial.prefix)
    check_downloads_once(trial, "pixi")
    assert changes(before, snapshot(trial.user)) == []
    assert (trial.home / "bin" / "pixi").stat().st_mode & 0o111
    check_second_run(trial, "--engine", "pixi")


def test_anaconda_through_a_proxy_and_a_bad_line(tmp_path: Path, mirror: Mirror) -> None:
    """All bytes through the user's proxy; cut, redirected and refused downloads are each paid for once."""
    trial = Trial(tmp_path, mirror, extra={"http_proxy": f"http://127.0.0.1:{mirror.port}", "no_proxy": ""})
    python, uv = mirror.world.package("python"), mirror.world.package("uv")
    mirror.fault("Anaconda3", Cut(after=1_234_567))
    mirror.fault(python.name, Status(503))
    mirror.fault(python.name, Cut(after=3_000_000))
    mirror.fault(uv.name, Redirect())
    # a name that only the proxy can resolve
    rules = [word for a, b in mirror.rules("http://mirror.invalid") for word in ("--mirror", f"{a}={b}")]
    argv = [word for word in trial.argv("--engine", "anaconda") if word not in mirror.options] + rules
    misleading = dict.fromkeys(("PYTHONPATH", "CONDA_PREFIX", "CONDARC", "VIRTUAL_ENV", "PIP_TARGET"), "/trap")
    done = trial.run(argv=argv, environ=misleading)
    assert done.code == 0, done.err
    (receipt,) = trial.receipts()
    assert receipt["engine"] == "anaconda"
    assert "/trap" not in (trial.home / "conda" / "installed-with.txt").read_text()
    check_prefix(trial, trial.prefix)
    assert [(r.status, r.first) for r in mirror.gets("Anaconda3")] == [(200, 0), (206, 1_234_567)]
    assert [(r.status, r.first) for r in mirror.gets(python.name)] == [(503, 0), (200, 0), (206, 3_000_000)]
    assert [r.status for r in mirror.gets(uv.name)] == [302, 200]
    check_downloads_once(trial, "anaconda")
    assert "Trying again in" in done.err


def test_an_existing_conda_is_used_as_it_is_whatever_the_shell_says(trial: Trial, conda: Path) -> None:
    """--engine conda by CONDA_EXE, with every variable set that could mislead it; the conda stays as it was."""
    trap = trial.folder / "trap"
    trap.mkdir()
    for name in ("conda", "rattler", "pip", "tornado", "notebook", "tensorflow", "sitecustomize"):
        (trap / f"{name}.py").write_text("raise RuntimeError('the trap was imported')\n")
    for version in ("3.11", "3.12", "3.13"):
        if not supported_python().endswith(version):  # bootstrap.py itself has to start
            (trap / f"libpython{version}.so.1.0").write_text("no library\n")
    theirs = trap / "theirs"
    (trap / "condarc").write_text(f"pkgs_dirs: [{theirs}]\noffline: true\n")
    (trial.user / ".condarc").write_text(f"pkgs_dirs: [{theirs}]\nregister_envs: true\nchannels: [nowhere]\n")
    hostile = {name: value.format(trap=trap) for name, value in HOSTILE.items()}
    calls = conda.parent.parent / "calls.jsonl"
    calls.write_text("")
    watched = (conda.parent.parent, trial.user, trap)
    before = [snapshot(folder) for folder in watched]
    done = trial.run("--engine", "conda", environ=hostile | {"CONDA_EXE": str(conda)})
    assert done.code == 0, done.err
    check_prefix(trial, trial.prefix)
    check_downloads_once(trial, "conda")
    seen = [json.loads(line) for line in calls.read_text().splitlines()]
    create = next(call for call in seen if "create" in call["argv"])
    for name, value in hostile.items():
        assert create["environ"].get(name) != value, name
    calls.write_text("")
    assert [changes(old, snapshot(folder)) for old, folder in zip(before, watched, strict=True)] == [[], [], []]
    assert not (trial.home / "conda").exists()
    check_second_run(trial, "--engine", "conda")


# ---------------------------------------------------------------------------------------------------------
# Damaged files, servers that fail


@pytest.mark.parametrize(
    ("engine", "part"),
    [("miniforge", "Miniforge3"), ("anaconda", "Anaconda3"), ("pixi", "pixi-"), ("miniforge", "/python-")],
)
def test_a_file_with_another_hash_stops_the_run_and_is_not_kept(trial: Trial, engine: str, part: str) -> None:
    trial.mirror.fault(part, Tamper())
    done = trial.run("--engine", engine)
    assert done.code == 4, done.err
    path = next(
        p for p in trial.mirror.world.root.rglob("*") if part in "/" + p.name and p.suffix in (".sh", ".gz", ".conda")
    )
    errors = [line for line in done.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(errors) == 2 and path.name in errors[0] and sha256(path) in errors[0]
    assert "Traceback" not in done.err
    assert trial.left() == []
    assert not list(trial.home.rglob(path.name + "*"))
    assert len(trial.mirror.gets(path.name)) == 1  # a wrong file isn't asked for again and again


def test_a_package_that_is_not_the_locked_one_stops_pixi_too(trial: Trial) -> None:
    trial.mirror.fault("/python-", Tamper(), times=10)
    done = trial.run("--engine", "pixi")
    assert done.code == 4 and "Traceback" not in done.err
    assert "error: " in done.err and "is not the file that the lock names" in done.err, done.err
    assert not list(trial.home.glob("envs/*")) and not list(trial.home.glob("current/*"))


def test_a_lock_whose_package_hash_was_changed_is_refused(trial: Trial) -> None:
    """By hand in the explicit file: index.json notices. In both: the package is not the one that is served."""
    explicit = trial.lockfiles / "cpu" / f"{trial.mirror.world.platform}.txt"
    text = explicit.read_text()
    changed = text[:-2] + ("0" if text[-2] != "0" else "1") + "\n"
    explicit.write_text(changed)
    done = trial.run("--engine", "miniforge")
    assert done.code == 4 and "changed after it was generated" in done.err
    assert trial.mirror.requests == [] and not trial.home.exists()
    index = json.loads((trial.lockfiles / "index.json").read_text())
    index["environments"]["cpu"]["platforms"][trial.mirror.world.platform]["sha256"] = sha256(explicit)
    (trial.lockfiles / "index.json").write_text(json.dumps(index))
    done = trial.run("--engine", "miniforge")
    assert done.code == 4 and "is not the file that the lock names" in done.err
    assert trial.left() == []


QUICK = (
    "import sys; sys.path.insert(0, sys.argv[1]); import bootstrap; from colab_local.base import downloads;"
    "downloads.FIRST_PAUSE_S = 0.01;"
    "sys.exit(bootstrap.main(sys.argv[2:]))"
)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 5), (503, 5)])
def test_a_server_that_fails_for_good_is_named_with_what_to_do(trial: Trial, status: int, tries: int) -> None:
    """A 5xx is tried again with pauses (shortened here), a 4xx is not."""
    trial.mirror.fault("Miniforge3", Status(status), times=100)
    argv = trial.argv("--engine", "miniforge")
    done = trial.run(argv=[argv[0], "-c", QUICK, str(REPO), *argv[2:]])
    assert done.code == 5, done.err
    (error,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert f"HTTP {status}" in error and f"Miniforge3-{MINIFORGE}" in error
    assert "hint:" in done.err and "--mirror" in done.err and "Traceback" not in done.err
    assert len(trial.mirror.gets("Miniforge3")) == tries
    assert trial.left() == []


def test_a_server_that_is_not_there(trial: Trial) -> None:
    closed = free_port()
    argv = trial.argv(
        "--engine", "miniforge", "--mirror", f"https://github.com/conda-forge/=http://127.0.0.1:{closed}/"
    )
    done = trial.run(argv=[argv[0], "-c", QUICK, str(REPO), *argv[2:]])
    assert done.code == 5 and f"127.0.0.1:{closed}" in done.err and "refused" in done.err
    assert trial.left() == []


def test_an_installer_that_fails_leaves_nothing(trial: Trial) -> None:
    """The real ones leave a partial prefix behind; here the hash is right and the payload is broken."""
    name = trial.mirror.world.installer("miniforge").name
    whole = trial.mirror.world.installer("miniforge").read_bytes()
    broken = trial.folder / name
    broken.write_bytes(whole[:-1_000_000])
    index = json.loads((trial.lockfiles / "index.json").read_text())
    (entry,) = index["installers"]["miniforge"]["files"].values()
    rule = f"{entry['url']}={broken.as_uri()}"
    entry["sha256"] = sha256(broken)
    (trial.lockfiles / "index.json").write_text(json.dumps(index))
    done = trial.run("--engine", "miniforge", "--mirror", rule)
    assert done.code == 1 and "error: bash failed" in done.err, done.err
    assert trial.left() == [] and not (trial.home / "conda").exists()


# ---------------------------------------------------------------------------------------------------------
# Interrupted, killed, twice at once


def test_killed_at_every_stage_the_next_run_goes_on_from_there(trial: Trial, conda: Path) -> None:
    """SIGKILL while downloading, while conda links, while uv installs: nothing wrong is left, no byte lost."""
    trial.environ["CONDA_EXE"] = str(conda)
    uv = trial.mirror.world.package("uv")

    trial.mirror.fault(uv.name, Slow(rate=6_000_000))
    child = trial.start("--engine", "conda")
    part = next_part(trial, uv.name)
    wait_for(lambda: part.exists() and part.stat().st_size > 2_000_000, "a part of uv's package")
    assert end_group(child, signal.SIGKILL) == -signal.SIGKILL
    kept = part.stat().st_size
    assert not (trial.home / "current").exists()

    hold = conda.parent.parent / "hold"
    hold.touch()
    trial.mirror.reset()
    child = trial.start("--engine", "conda")
    wait_for(lambda: list(trial.home.glob("envs/*/conda-meta/*.json")), "half of the conda packages")
    (again,) = trial.mirror.gets(uv.name)
    assert (again.status, again.first) == (206, kept)
    assert end_group(child, signal.SIGKILL) == -signal.SIGKILL
    hold.unlink()
    assert not trial.receipts()

    trial.mirror.reset()
    child = trial.start("--engine", "conda")
    wait_for(lambda: list(trial.home.glob("envs/*/lib/python*/site-packages/*/*")), "some of the Python packages")
    assert end_group(child, signal.SIGKILL) == -signal.SIGKILL
    assert not trial.receipts() and not trial.prefix.exists()
    (half,) = trial.home.glob("envs/*")
    (half / "lib" / "half-written").write_text("an environment that was not finished is not built upon\n")

    done = trial.run("--engine", "conda")
    assert done.code == 0, done.err
    assert trial.mirror.requests == []  # everything had come before
    check_prefix(trial, trial.prefix)
    assert len(list(trial.home.glob("envs/*"))) == len(trial.receipts()) == 1
    assert not (half / "lib" / "half-written").exists()
    assert not list(trial.home.rglob("*.part")) + list(trial.home.rglob("*.tmp"))


def next_part(trial: Trial, name: str) -> Path:
    """Return where a run keeps the unfinished part of a conda package, once it does."""
    wait_for(lambda: list(trial.home.glob(f"cache/**/{name}.part")), f"{name}.part")
    return next(trial.home.glob(f"cache/**/{name}.part"))


def test_killed_while_the_installer_unpacks_the_next_run_installs_it_anew(trial: Trial) -> None:
    child = trial.start("--engine", "miniforge")
    wait_for(lambda: (trial.home / "conda").exists(), "the installer's folder")
    end_group(child, signal.SIGKILL)
    (trial.home / "conda" / "bin").mkdir(parents=True, exist_ok=True)
    (trial.home / "conda" / "bin" / "conda").write_text("half a conda\n")
    done = trial.run("--engine", "miniforge")
    assert done.code == 0, done.err
    check_prefix(trial, trial.prefix)


@pytest.mark.parametrize("stage", ["download", "create", "try"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_soon_and_leaves_no_half_environment(
    trial: Trial, conda: Path, stage: str, number: signal.Signals
) -> None:
    """Ctrl-C reaches the whole group, SIGTERM (a service manager, a closed window) the program alone."""
    trial.environ["CONDA_EXE"] = str(conda)
    uv = trial.mirror.world.package("uv")
    if stage == "download":
        trial.mirror.fault(uv.name, Slow(rate=50_000))  # minutes, if it waited
        child = trial.start("--engine", "conda")
        next_part(trial, uv.name)
    elif stage == "try":
        child = trial.start("--engine", "conda")
        wait_for(
            lambda: "Warm up" in trial.words().partition("Warm up")[2], "the step itself, after its announcement"
        )
    else:
        (conda.parent.parent / "hold").touch()
        child = trial.start("--engine", "conda")
        wait_for(lambda: list(trial.home.glob("envs/*/conda-meta/*.json")), "half of the conda packages")
    asked = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    assert child.wait(60) == 130, trial.words()
    assert time.monotonic() - asked < 45
    wait_for(lambda: group_is_empty(child.pid), "the children's end")
    assert "error: interrupted" in trial.words() and "Traceback" not in trial.words()
    assert trial.left() == []


def test_two_runs_at_once_and_a_new_lock_that_does_not_work(trial: Trial, conda: Path) -> None:
    """The second waits and finds the work done; later a broken lock leaves the environment in use as it is."""
    trial.environ["CONDA_EXE"] = str(conda)
    (conda.parent.parent / "hold").touch()
    first = trial.start("--engine", "conda")
    wait_for(lambda: list(trial.home.glob("envs/*/conda-meta/*.json")), "the first run in the middle of its work")
    second = subprocess.Popen(
        trial.argv("--engine", "conda", "--json"),
        env=trial.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr and second.stdout
    said: list[str] = []
    for line in second.stderr:
        said.append(line)
        if "waiting for it" in line:
            break
    assert str(first.pid) in said[-1], said
    (conda.parent.parent / "hold").unlink()
    out, _ = second.communicate(timeout=300)
    assert first.wait(60) == 0, trial.words()
    assert second.returncode == 0 and json.loads(out)["changed"] is False
    check_downloads_once(trial, "conda")
    calls = (conda.parent.parent / "calls.jsonl").read_text()
    assert calls.count('"create"') == 1
    check_prefix(trial, trial.prefix)

    old = trial.prefix.resolve()
    broken = LIGHT.replace("jupyter-http-over-ws==", "# jupyter-http-over-ws==").split("# jupyter-http-over-ws==")
    rest = broken[1].split("\n")
    keep = next(n for n, line in enumerate(rest) if n and line and not line.startswith((" ", "#")))
    trial.lockfiles = trial.mirror.world.write_lockfiles(trial.folder / "broken", broken[0] + "\n".join(rest[keep:]))
    trial.mirror.reset()
    done = trial.run("--engine", "conda")
    assert done.code == 1 and "jupyter_http_over_ws" in done.err, done.err
    assert trial.mirror.requests == []  # the conda layer is the same
    assert trial.prefix.resolve() == old and len(list(trial.home.glob("envs/*"))) == 1
    assert len(trial.receipts()) == 1


# ---------------------------------------------------------------------------------------------------------
# Choosing


def plan(trial: Trial, *options: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the plan that a dry run shows as JSON; nothing may be written."""
    done = trial.run("--dry-run", "--json", *options, environ=environ)
    assert done.code == 0, done.err
    assert not trial.home.exists()
    return done.document


def test_what_auto_chooses(trial: Trial, conda: Path) -> None:
    """A conda that is there; else Miniforge, or pixi where its installer refuses the path; else this Python.

    And --python means this machine's; COLAB_LOCAL_MIRROR is as good as --mirror.
    """
    where = {"PATH": f"{conda.parent}:{trial.environ['PATH']}"}
    assert plan(trial, environ={"CONDA_EXE": str(conda)})["engine"] == "conda"
    assert plan(trial, environ=where)["engine"] == "conda"
    assert plan(trial)["engine"] == "miniforge"
    assert {r.method for r in trial.mirror.requests} == {"HEAD"}
    assert plan(trial, "--python", supported_python())["engine"] == "host"
    told = {"COLAB_LOCAL_MIRROR": " ".join(word for word in trial.mirror.options if word != "--mirror")}
    trial.mirror.reset()
    argv = [word for word in trial.argv("--dry-run", "--json") if word not in trial.mirror.options]
    by_variable = trial.run(argv=argv, environ=told)
    assert by_variable.document["engine"] == "miniforge" and len(trial.mirror.requests) == 2
    assert plan(trial, "--prefix", str(trial.folder / "with blanks"))["engine"] == "pixi"
    (conda.parent.parent / "version").write_text("4.12.0\n")
    (conda.parent.parent / "mamba-version").write_text("2.0.6\n")  # it drops `#sha256:` in silence
    assert plan(trial, environ=where)["engine"] == "miniforge"  # it would not check hashes
    done = trial.run("--engine", "conda", environ=where)
    assert done.code == 3 and "found conda 4.12.0, need 24.9" in done.err
    closed = f"https://conda.anaconda.org/=http://127.0.0.1:{free_port()}/"
    argv = ["--mirror", closed, "--mirror", closed.replace("conda.anaconda.org", "github.com")]
    blocked = Trial(trial.folder / "blocked", trial.mirror)
    blocked_argv = [word for word in blocked.argv("--dry-run", "--json") if word not in trial.mirror.options]
    done = blocked.run(argv=blocked_argv + argv)
    assert done.code == 0, done.err
    assert done.document["engine"] == "host"
    (notice,) = done.document["notices"]
    assert "can't be reached" in notice and "this machine's own Python is used" in notice
    assert not blocked.home.exists()


def test_a_folder_of_the_users_is_never_taken_for_ours(trial: Trial) -> None:
    """--prefix names a folder in which the user has a conda or a pixi of their own: it stays, the run says so."""
    (trial.home / "conda" / "conda-meta").mkdir(parents=True)
    (trial.home / "conda" / "conda-meta" / "history").write_text("==> 2024-02-03 <==\n")
    (trial.home / "bin").mkdir()
    (trial.home / "bin" / "pixi").write_text("#!/bin/sh\n")
    before = snapshot(trial.home)
    for engine, path in (("miniforge", "conda"), ("anaconda", "conda"), ("pixi", "bin/pixi")):
        done = trial.run("--engine", engine)
        assert done.code == 2, (engine, done.err)
        assert str(trial.home / path) in done.err and "hint: " in done.err
        assert changes(before, snapshot(trial.home)) == [], engine
    assert trial.mirror.gets() == []


def test_blanks_are_refused_where_the_installer_refuses_them(trial: Trial) -> None:
    """Both installers end with an error then; bootstrap.py says so before it downloads them."""
    for engine in ("miniforge", "anaconda"):
        done = trial.run("--engine", engine, "--prefix", str(trial.folder / "a b"))
        assert done.code == 2 and "--engine pixi" in done.err and not (trial.folder / "a b").exists()
    refused = subprocess.run(
        ["bash", trial.mirror.world.installer("miniforge"), "-b", "-p", trial.folder / "a b"],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1 and "spaces" in refused.stderr
    assert trial.mirror.requests == []
