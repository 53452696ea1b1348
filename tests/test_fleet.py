"""The Ansible role over real ssh: eight hosts, of which one is broken and one can't be reached.

All tests share one fleet; each brings it to the state that it needs, which costs nothing after the one before. The
lock is the repository's without TensorFlow and its like.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.fleet_lab import FLEET, Checkout, Fleet, Play, make_checkout, small_layer, without
from tests.hosts import needs_root

GOOD = {f"node{number}" for number in range(1, 7)}
BROKEN, UNREACHABLE = "node7", "node8"
PLAYBOOKS = ("deploy.yml", "verify.yml", "rollback.yml", "uninstall.yml")


@dataclass(frozen=True)
class Versions:
    """Two versions to roll out, each with its bundle: the new one lacks a package."""

    old: Checkout
    new: Checkout


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    folder = tmp_path_factory.mktemp("versions")
    layer = small_layer()
    return Versions(
        make_checkout(folder / "old", layer).with_bundle(),
        make_checkout(folder / "new", without(layer, "tqdm")).with_bundle(),
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, versions: Versions) -> Iterator[Fleet]:
    """Eight hosts without a network but the lab's; a file lies where node7's home should be, node8's cable is cut."""
    with Fleet(tmp_path_factory.mktemp("fleet"), count=8) as made:
        made.roll_out(versions.old)
        made.home(7).parent.mkdir(parents=True)
        made.home(7).write_text("not a folder\n")
        made.node(8).cut()
        yield made


def good(fleet: Fleet, playbook: str, *options: str, check: bool = True, **variables: object) -> Play:
    """Run a playbook on the hosts that work."""
    return fleet.play(playbook, "--limit", f"!{BROKEN}:!{UNREACHABLE}", *options, check=check, **variables)


def running(fleet: Fleet, checkout: Checkout) -> set[str]:
    """Return the hosts whose environment in use is the one of this checkout."""
    lock = (checkout.folder / "lockfiles" / "cpu" / "pypi.txt").read_text()
    found = set()
    for node in fleet.nodes[:6]:
        root = (fleet.home(node) / "current" / "cpu").resolve()
        used = fleet.home(node) / "receipts" / root.name / "lock" / "pypi.txt"
        if used.is_file() and used.read_text() == lock:
            found.add(node.name)
    return found


def bring(fleet: Fleet, checkout: Checkout) -> None:
    """See to it that the hosts that work run this checkout, and that the next plays are about it."""
    fleet.roll_out(checkout)
    if running(fleet, checkout) != GOOD:
        good(fleet, "deploy.yml")


def test_playbooks_are_sound(tmp_path: Path) -> None:
    """Ansible accepts the playbooks with the example inventory; ansible-lint is content in its strictest profile."""
    tools = Path(sys.executable).parent
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    copy = tmp_path / "fleet"
    shutil.copytree(FLEET, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / argv[0], *argv[1:]], cwd=copy, env=env, capture_output=True, text=True, timeout=300
        )

    for playbook in PLAYBOOKS:
        done = run("ansible-playbook", "-i", "inventory.example", playbook, "--syntax-check")
        assert done.returncode == 0, done.stderr
    listed = run("ansible-inventory", "-i", "inventory.example", "--list")
    variables = json.loads(listed.stdout)["_meta"]["hostvars"]
    assert variables["lab07.example.org"]["colab_local_env"] == "cpu"
    assert variables["gpu5.example.org"]["colab_local_env"] == "gpu"
    lint = run("ansible-lint", "--offline", "--profile", "production", ".")
    assert lint.returncode == 0, lint.stdout + lint.stderr


@needs_root
def test_check_mode_says_what_would_change_and_leaves_no_trace(fleet: Fleet) -> None:
    run = fleet.play("deploy.yml", "--check", check=False)
    assert run.hosts("changed") == GOOD, run.output
    assert run.hosts("failed") == {BROKEN}
    assert run.hosts("unreachable") == {UNREACHABLE}
    for node in fleet.nodes[:6]:
        made = {path.name for path in node.home.iterdir()} - {".ssh", ".ansible"}
        assert not made, f"check mode made {made} on {node.name}"


@needs_root
def test_roll_out_finishes_where_it_can_and_names_the_others(fleet: Fleet, versions: Versions) -> None:
    run = fleet.play("deploy.yml", check=False)
    assert run.status != 0
    assert run.hosts("changed") >= GOOD
    assert run.hosts("failed") == {BROKEN}, run.output
    assert run.hosts("unreachable") == {UNREACHABLE}
    assert f"{BROKEN} has none: error: {fleet.home(7)} is a file where a folder should be" in run.flat
    assert f"{UNREACHABLE} has none: unreachable" in run.flat
    assert f"on 6: {', '.join(sorted(GOOD))}" in run.flat
    assert running(fleet, versions.old) == GOOD
    for node in fleet.nodes[:6]:
        jupyter = fleet.home(node) / "current" / "cpu" / "bin" / "jupyter-notebook"
        assert node.run([str(jupyter), "--version"]).stdout.startswith("6.5.")


@needs_root
def test_second_run_changes_nothing_and_sends_nothing(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    bundles = [fleet.work(node) / "bundle.tar" for node in fleet.nodes[:6]]
    before = [path.stat().st_mtime_ns for path in bundles]
    run = good(fleet, "deploy.yml")
    assert run.hosts("ok") == GOOD
    assert not run.hosts("changed"), run.output
    assert [path.stat().st_mtime_ns for path in bundles] == before
    assert not good(fleet, "deploy.yml", "--check").hosts("changed")


@needs_root
def test_environment_comes_back_from_the_bundle_that_the_host_has(fleet: Fleet, versions: Versions) -> None:
    """No byte is paid for twice: the bundle is not copied again when it is needed again."""
    bring(fleet, versions.old)
    bundle = fleet.work(2) / "bundle.tar"
    before = bundle.stat().st_mtime_ns
    shutil.rmtree(fleet.home(2))
    run = fleet.play("deploy.yml", "--limit", "node2")
    assert run.hosts("changed") == {"node2"}
    assert bundle.stat().st_mtime_ns == before
    assert running(fleet, versions.old) == GOOD


@needs_root
def test_host_with_an_altered_file_is_named(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    altered = next((fleet.home(3) / "current" / "cpu").glob("lib/python3*/site-packages/notebook/notebookapp.py"))
    content = altered.read_bytes()
    altered.unlink()  # not written in place: the file is a link to uv's cache, which all hosts share here
    altered.write_bytes(content + b"# altered\n")
    try:
        run = good(fleet, "verify.yml", check=False)
    finally:
        altered.unlink()
        altered.write_bytes(content)
    assert run.status != 0
    assert run.hosts("failed") == {"node3"}, run.output
    assert "node3 has none:" in run.flat
    assert "notebook/notebookapp.py" in run.flat
    assert "on 5: node1, node2, node4, node5, node6" in run.flat


@needs_root
def test_host_with_another_lock_is_named_and_the_difference_explained(fleet: Fleet, versions: Versions) -> None:
    """node4 is whole, but of another lock: nothing is wrong with it but that it differs from the others."""
    bring(fleet, versions.old)
    fleet.roll_out(versions.new)
    fleet.play("deploy.yml", "--limit", "node4")
    run = fleet.play("verify.yml", "--limit", "node1,node2,node4", check=False)
    assert run.status != 0
    assert run.hosts("failed") == {"node4"}, run.output
    assert "node4 differs: colab-local cpu" in run.flat
    assert "on 2: node1, node2" in run.flat
    _, _, hint = run.flat.partition("hint: python3 scripts/compare.py ")
    records = hint.split()[:2]
    compare = subprocess.run(
        [sys.executable, REPO / "scripts" / "compare.py", *records], capture_output=True, text=True, timeout=60
    )
    assert compare.returncode == 7, compare.stderr
    assert "tqdm" in compare.stdout
    # With a fingerprint that is expected, it decides, not the majority.
    expected = json.loads(Path(records[1]).read_text())["fingerprint"]
    run = fleet.play("verify.yml", "--limit", "node1,node2,node4", check=False, colab_local_expected=expected)
    assert run.hosts("failed") == {"node1", "node2"}, run.output


@needs_root
def test_bundle_of_another_lock_is_refused_before_anything_is_installed(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    fleet.roll_out(versions.new)
    run = fleet.play("deploy.yml", "--limit", "node1", check=False, colab_local_bundle=str(versions.old.bundle))
    assert run.hosts("failed") == {"node1"}
    assert "the bundle was made from other lockfiles" in run.flat
    assert "node1" in running(fleet, versions.old)


@needs_root
def test_serial_roll_out_stops_before_the_next_batch_and_goes_on_later(fleet: Fleet, versions: Versions) -> None:
    """Batches node1-2, node3-4, node5-6: node3 breaks, so node5 and node6 keep what they have."""
    bring(fleet, versions.old)
    fleet.roll_out(versions.new)
    lost = fleet.home(3).rename(fleet.home(3).with_name("lost"))
    fleet.home(3).write_text("not a folder\n")
    try:
        run = good(fleet, "deploy.yml", "-e", '{"colab_local_serial": [2, 2, 2]}', check=False)
    finally:
        fleet.home(3).unlink()
        lost.rename(fleet.home(3))
    assert run.status != 0
    assert run.hosts("failed") == {"node3"}
    assert not run.hosts("ok") & {"node5", "node6"}, run.output
    assert running(fleet, versions.new) >= {"node1", "node2"}
    assert running(fleet, versions.old) == {"node3", "node5", "node6"} | ({"node4"} & running(fleet, versions.old))
    rest = good(fleet, "deploy.yml", "-e", '{"colab_local_serial": [2, "100%"]}')
    assert rest.hosts("changed") >= {"node3", "node5", "node6"}
    assert not rest.hosts("changed") & {"node1", "node2"}
    assert running(fleet, versions.new) == GOOD


@needs_root
def test_rollback_returns_to_the_version_before_and_only_once(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    bring(fleet, versions.new)
    assert good(fleet, "rollback.yml", "--check").hosts("changed") == GOOD
    assert running(fleet, versions.new) == GOOD
    assert good(fleet, "rollback.yml").hosts("changed") == GOOD
    assert running(fleet, versions.old) == GOOD
    assert not good(fleet, "rollback.yml").hosts("changed")
    assert running(fleet, versions.old) == GOOD


@needs_root
def test_packages_by_url_and_from_an_index_with_a_password(fleet: Fleet, versions: Versions, tmp_path: Path) -> None:
    """node5 fetches the bundle from a web server, once; node6 has an index, whose password stays hidden."""
    bring(fleet, versions.old)
    for number in (5, 6):
        shutil.rmtree(fleet.home(number))
        shutil.rmtree(fleet.work(number))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "cpu.tar").hardlink_to(versions.old.bundle)
    by_url = {
        "colab_local_bundle": "",
        "colab_local_bundle_url": fleet.serve(shared) + "cpu.tar",
        "colab_local_bundle_sha256": hashlib.sha256(versions.old.bundle.read_bytes()).hexdigest(),
    }
    fleet.play("deploy.yml", "--limit", "node5", **by_url)
    assert not fleet.play("deploy.yml", "--limit", "node5", **by_url).hosts("changed")
    shutil.rmtree(fleet.home(5))
    fleet.play("deploy.yml", "--limit", "node5", **by_url)
    assert (tmp_path / "shared.log").read_text().count("GET /cpu.tar") == 1
    wrong = fleet.play(
        "verify.yml", "--limit", "node5", check=False, **{**by_url, "colab_local_expected": "colab-local cpu other"}
    )
    assert wrong.hosts("failed") == {"node5"}

    index = tmp_path / "index"
    with tarfile.open(versions.old.bundle) as archive:
        for member in archive:
            if "/wheels/" in member.name:
                name = Path(member.name).name
                folder = index / re.sub(r"[-_.]+", "-", name.split("-")[0]).lower()
                folder.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
    environment = {**fleet.environment, "PIP_TRUSTED_HOST": fleet.lab.laptop.address}
    environment.pop("UV_CACHE_DIR")
    run = fleet.play(
        *("deploy.yml", "--limit", "node6", "-vvv"),
        colab_local_bundle="",
        colab_local_index_url=fleet.serve(index, login="reader:s3cret-word"),
        colab_local_environment=environment,
    )
    assert run.hosts("changed") == {"node6"}
    assert "s3cret-word" not in run.output
    config = fleet.work(6) / "pip.conf"
    assert "s3cret-word" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    logs = list(fleet.home(6).glob("logs/*"))
    assert logs
    assert all("s3cret-word" not in log.read_text() for log in logs)
    assert running(fleet, versions.old) == GOOD
    assert good(fleet, "verify.yml").hosts("ok") == GOOD


@needs_root
def test_uninstall_leaves_the_homes_as_they_were(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    run = good(fleet, "uninstall.yml", "--check")
    assert run.hosts("changed") == GOOD
    good(fleet, "uninstall.yml")
    for node in fleet.nodes[:6]:
        assert not fleet.home(node).exists()
        assert not fleet.work(node).exists()
    assert not good(fleet, "uninstall.yml").hosts("changed")
