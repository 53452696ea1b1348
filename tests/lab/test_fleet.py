"""The Ansible role over real ssh: eight hosts, of which one is broken and one can't be reached.

All tests share one fleet; each brings it to the state that it needs, which costs nothing after the one before. The
lock is the repository's without TensorFlow and its like.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPO, supported_python
from tests.support.fleet_lab import FLEET, Checkout, Fleet, Play, make_checkout, small_layer, without
from tests.support.hosts import needs_root

pytestmark = pytest.mark.timeout(1800)  # eight hosts on one machine, which other tests may share

GOOD = {f"node{number}" for number in range(1, 7)}
FEW = {"node1", "node2", "node3"}  # enough where the number doesn't matter: an installation costs some seconds
BROKEN, UNREACHABLE = "node7", "node8"
PLAYBOOKS = ("preflight", "deploy", "verify", "status", "rollback", "prune", "uninstall")
COLLECTION = FLEET / "collections" / "ansible_collections" / "colab_local" / "fleet"


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


def unpack_index(bundle: Path, folder: Path) -> Path:
    """Lay a bundle's wheels out as an index of packages (PEP 503); return its folder."""
    with tarfile.open(bundle) as archive:
        for member in archive:
            if "/wheels/" in member.name:
                name = Path(member.name).name
                project = folder / re.sub(r"[-_.]+", "-", name.split("-")[0]).lower()
                project.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                (project / name).write_bytes(content.read())
    return folder


@contextlib.contextmanager
def watched_arguments(word: str) -> Iterator[set[str]]:
    """Watch the arguments of all processes, on the hosts and here; give those that hold a word."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if word in line:
                        seen.add(line)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def few(fleet: Fleet, playbook: str, *options: str, check: bool = True) -> Play:
    """Run a playbook on some hosts that work."""
    return fleet.play(playbook, "--limit", ",".join(sorted(FEW)), *options, check=check)


def bring(fleet: Fleet, checkout: Checkout, hosts: set[str] = FEW) -> None:
    """See to it that these hosts run a checkout, and that the next plays are about it."""
    fleet.roll_out(checkout)
    if not hosts <= running(fleet, checkout):
        fleet.play("deploy.yml", "--limit", ",".join(sorted(hosts)))


def test_playbooks_are_sound(tmp_path: Path) -> None:
    """Ansible accepts the playbooks with the example inventory; ansible-lint is content in its strictest profile."""
    tools = Path(sys.executable).parent
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    copy = tmp_path / "fleet"
    shutil.copytree(FLEET, copy, ignore=shutil.ignore_patterns("__pycache__", ".ansible", ".cache"))

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / argv[0], *argv[1:]], cwd=copy, env=env, capture_output=True, text=True, timeout=300
        )

    for playbook in PLAYBOOKS:
        done = run("ansible-playbook", "-i", "inventory.example", f"{playbook}.yml", "--syntax-check")
        assert done.returncode == 0, done.stderr
    listed = run("ansible-inventory", "-i", "inventory.example", "--list")
    variables = json.loads(listed.stdout)["_meta"]["hostvars"]
    assert variables["lab07.example.org"]["colab_local_env"] == "cpu"
    assert variables["gpu5.example.org"]["colab_local_env"] == "gpu"
    lint = run("ansible-lint", "--offline", "--profile", "production", ".")
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_what_is_said_of_the_settings_is_true() -> None:
    """Argument specification, defaults and the role's README name the same settings with the same defaults."""
    role = COLLECTION / "roles" / "colab_local"
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    readme = (role / "README.md").read_text()
    for spec in specs.values():
        assert {name: entry["default"] for name, entry in spec["options"].items()} == defaults
    for name, value in defaults.items():
        assert f"| `{name}` | `{json.dumps(value)}` | {specs['main']['options'][name]['description']} |" in readme
    entrances = {path.stem for path in (role / "tasks").glob("*.yml")}
    assert set(specs) <= entrances


def test_collection_is_built_and_works_in_another_project(tmp_path: Path) -> None:
    """Built by ansible-galaxy, installed elsewhere: its playbooks and its role are found by their full names."""
    tools = Path(sys.executable).parent
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    env["ANSIBLE_COLLECTIONS_PATH"] = str(tmp_path / "collections")
    copy = tmp_path / "source"
    shutil.copytree(COLLECTION, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / str(argv[0]), *argv[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )

    built = run("ansible-galaxy", "collection", "build", copy, "--output-path", tmp_path)
    assert built.returncode == 0, built.stderr
    archive = next(tmp_path.glob("colab_local-fleet-*.tar.gz"))
    made = run("ansible-galaxy", "collection", "install", archive, "-p", tmp_path / "collections")
    assert made.returncode == 0, made.stderr
    (tmp_path / "site.yml").write_text(
        "- hosts: colab_local\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.import_role: {name: colab_local.fleet.colab_local, tasks_from: preflight}\n"
    )
    (tmp_path / "hosts.yml").write_text(
        json.dumps({"colab_local": {"hosts": {"here": {"ansible_connection": "local"}}}})
    )
    python = f"ansible_python_interpreter={sys.executable}"
    for what in ("colab_local.fleet.preflight", tmp_path / "site.yml"):
        done = run("ansible-playbook", "-i", tmp_path / "hosts.yml", what, "-e", python)
        assert "here: error: no checkout of colab-local is known here; hint: set colab_local_checkout" in " ".join(
            done.stdout.split()
        ), done.stdout + done.stderr
        options: tuple[str, ...] = (
            "-e",
            python,
            "-e",
            f"colab_local_checkout={REPO}",
            "-e",
            "colab_local_engine=host",
        )
        options += ("-e", f"colab_local_python={supported_python()}", "-e", f"colab_local_work={tmp_path}/work")
        options += ("-e", f"colab_local_home={tmp_path}/home")
        done = run("ansible-playbook", "-i", tmp_path / "hosts.yml", what, *options)
        assert done.returncode == 0, done.stdout + done.stderr


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
        jupyter = fleet.home(node) / "current" / "cpu" / "colab" / "jupyter-notebook"
        assert node.run([str(jupyter), "--version"]).stdout.startswith("6.5.")


@needs_root
def test_second_run_changes_nothing_and_sends_nothing(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old, GOOD)
    bundles = [next(fleet.work(node).glob("bundle-*.tar")) for node in fleet.nodes[:6]]
    before = [path.stat().st_mtime_ns for path in bundles]
    run = good(fleet, "deploy.yml")
    assert run.hosts("ok") == GOOD
    assert not run.hosts("changed"), run.output
    assert [path.stat().st_mtime_ns for path in bundles] == before
    assert not fleet.play("deploy.yml", "--check", "--limit", "node1").hosts("changed")


@needs_root
def test_bundle_of_another_lock_is_refused_and_a_bundle_that_is_there_not_copied(
    fleet: Fleet, versions: Versions
) -> None:
    """node1 lacks the new version, but is given the old one's bundle, which it has: no byte is paid for twice."""
    bring(fleet, versions.old)
    fleet.roll_out(versions.new)
    (bundle,) = fleet.work(1).glob("bundle-*.tar")
    before = bundle.stat().st_mtime_ns
    run = fleet.play("deploy.yml", "--limit", "node1", check=False, colab_local_bundle=str(versions.old.bundle))
    assert run.hosts("failed") == {"node1"}
    assert "the bundle was made for something else" in run.flat
    found = r"found cpu, engine host, lockfiles (\w{12}), need cpu, engine host, lockfiles (?!\1)"
    assert re.search(found, run.flat)
    assert "or set colab_local_checkout to a checkout of the bundle's lock" in run.flat
    assert bundle.stat().st_mtime_ns == before
    assert "node1" in running(fleet, versions.old)


@needs_root
def test_a_drifted_host_is_named_and_repaired(fleet: Fleet, versions: Versions) -> None:
    """verify.yml names it, deploy.yml --check calls it changed and changes nothing, deploy.yml repairs it."""
    bring(fleet, versions.old)
    altered = next((fleet.home(3) / "current" / "cpu").glob("lib/python3*/site-packages/notebook/notebookapp.py"))
    content = altered.read_bytes()
    altered.unlink()  # not written in place: the file is a link to uv's cache, which all hosts share here
    altered.write_bytes(content + b"# altered\n")
    run = few(fleet, "verify.yml", check=False)
    assert run.status != 0
    assert run.hosts("failed") == {"node3"}, run.output
    assert "node3 has none:" in run.flat
    assert "notebook/notebookapp.py" in run.flat
    assert "hint: deploy.yml repairs it" in run.flat
    assert "rm -r" not in run.output
    assert "on 2: node1, node2" in run.flat
    assert few(fleet, "deploy.yml", "--check").hosts("changed") == {"node3"}
    assert altered.read_bytes() != content
    python = fleet.home(3) / "current" / "cpu" / "bin" / "python"
    argv = fleet.node(3).enter([str(python), "-c", "import time; time.sleep(600)"])
    busy = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        run = few(fleet, "deploy.yml", check=False)
        assert run.hosts("failed") == {"node3"}, "nothing is taken from under a running Jupyter"
        assert re.search(r"node3 has none: error: .*(runs|in use)", run.flat)
    finally:
        fleet.node(3).run(["pkill", "-f", "time.sleep.600"])
        busy.wait(60)
    assert few(fleet, "deploy.yml").hosts("changed") == {"node3"}
    assert altered.read_bytes() == content
    assert not few(fleet, "deploy.yml").hosts("changed")


@needs_root
def test_serial_roll_out_stops_before_the_next_batch(fleet: Fleet, versions: Versions) -> None:
    """One host a batch, node2 breaks: node1 has the new version, node3 keeps the old one."""
    bring(fleet, versions.old)
    fleet.roll_out(versions.new)
    lost = fleet.home(2).rename(fleet.home(2).with_name("lost"))
    fleet.home(2).write_text("not a folder\n")
    try:
        run = few(fleet, "deploy.yml", "-e", '{"colab_local_serial": [1, 1, 1]}', check=False)
    finally:
        fleet.home(2).unlink()
        lost.rename(fleet.home(2))
    assert run.status != 0
    assert run.hosts("failed") == {"node2"}
    assert "node3" not in run.hosts("ok"), run.output
    assert running(fleet, versions.new) & FEW == {"node1"}
    assert running(fleet, versions.old) >= {"node2", "node3"}


@needs_root
def test_hosts_are_judged_by_this_checkout_and_not_by_their_number(fleet: Fleet, versions: Versions) -> None:
    """node1 alone has the lock of the checkout that is on the controller: the two others are wrong, not it."""
    bring(fleet, versions.old, {"node2", "node3"})
    bring(fleet, versions.new, {"node1"})
    run = few(fleet, "verify.yml", check=False)
    assert run.status != 0
    assert run.hosts("failed") == {"node2", "node3"}, run.output
    assert "another lock than this checkout's (pypi.txt: found" in run.flat
    assert "run deploy.yml from this checkout" in run.flat
    _, _, hint = run.flat.partition("what differs: python3 scripts/compare.py ")
    records = [word.strip("'") for word in hint.split()[:2]]
    compare = subprocess.run(
        [sys.executable, REPO / "scripts" / "compare.py", *records], capture_output=True, text=True, timeout=60
    )
    assert compare.returncode == 7, compare.stderr
    assert "tqdm" in compare.stdout
    # From the other checkout it is the other way round; and so says the fingerprint that is expected.
    fleet.roll_out(versions.old)
    assert few(fleet, "verify.yml", check=False).hosts("failed") == {"node1"}
    expected = json.loads(Path(records[0]).read_text())["fingerprint"]
    fleet.roll_out(versions.new)
    run = few(fleet, "verify.yml", "-e", json.dumps({"colab_local_expected": expected}), check=False)
    assert run.hosts("failed") == {"node2", "node3"}, run.output


@needs_root
def test_status_says_what_each_host_runs(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old, {"node2"})
    bring(fleet, versions.new, {"node1"})
    shutil.rmtree(fleet.home(3), ignore_errors=True)
    run = few(fleet, "status.yml")
    assert re.search(
        r"node1: cpu, lock \w{12} \(this checkout''?s lock\), made \S{10}, 0.\d GB; \d+ GB free", run.flat
    )
    assert re.search(r"node2: cpu, lock \w{12} \(another lock\)", run.flat)
    assert re.search(r"node3: no environment, \d+ GB free", run.flat)
    assert not run.hosts("changed")


@needs_root
def test_prune_leaves_what_is_used(fleet: Fleet, versions: Versions) -> None:
    """The environment before stays, for rollback.yml; programs and bundles of other checkouts stay a week."""
    bring(fleet, versions.old, {"node1"})
    bring(fleet, versions.new, {"node1"})
    old_program = fleet.work(1) / "program-0123456789ab"
    old_program.mkdir()
    recent = {path.name for path in fleet.work(1).glob("program-*")}
    os.utime(old_program, (0, 0))
    unused = fleet.home(1) / "envs" / "cpu-0123456789ab"  # as an interrupted run leaves one
    (unused / "bin").mkdir(parents=True)
    tried = fleet.play("prune.yml", "--check", "--limit", "node1")
    assert tried.hosts("changed") == {"node1"}
    assert re.search(r"would remove environments: 1 \(\d+\.\d GB\); old programs and bundles: 1\b", tried.flat)
    assert old_program.is_dir() and unused.is_dir()
    fleet.play("prune.yml", "--limit", "node1")
    assert not unused.exists()
    assert {path.name for path in fleet.work(1).glob("program-*")} == recent - {old_program.name}
    assert "node1" in running(fleet, versions.new)
    assert fleet.play("rollback.yml", "--limit", "node1").hosts("changed") == {"node1"}
    assert "node1" in running(fleet, versions.old)
    assert not fleet.play("prune.yml", "--limit", "node1").hosts("changed")


@needs_root
def test_two_checkouts_leave_each_other_alone(fleet: Fleet, versions: Versions) -> None:
    """A run from the one does not remove the program that a run from the other is using."""
    for checkout in (versions.old, versions.new, versions.old):
        fleet.roll_out(checkout)
        (checkout.folder / "scripts" / "slurm" / "colab-local.sbatch").open("a").write(f"# {checkout.folder.name}\n")
        fleet.play("preflight.yml", "--limit", "node1")
    assert len([path for path in fleet.work(1).glob("program-*") if path.is_dir()]) >= 3


@needs_root
def test_what_can_be_judged_here_is_judged_before_anything_is_sent(fleet: Fleet, versions: Versions) -> None:
    """A bundle for another Python, no bundle, an old Python: named before a bundle is copied, for every host."""
    fleet.roll_out(versions.new)
    for number in (1, 2):
        shutil.rmtree(fleet.home(number), ignore_errors=True)
        shutil.rmtree(fleet.work(number), ignore_errors=True)
    wrongs: dict[str, dict[str, object]] = {
        "the bundle /nowhere.tar can't be used": {"colab_local_bundle": "/nowhere.tar"},
        "this checkout has no environment moon": {"colab_local_env": "moon"},
        "/nowhere/python does not run there": {"colab_local_python": "/nowhere/python"},
        "must not hold a password": {"colab_local_mirrors": ["https://a.example/=https://me:pw@b.example/"]},
    }
    for said, variables in wrongs.items():
        run = fleet.play("preflight.yml", "--limit", "node1,node2", check=False, **variables)
        assert run.hosts("failed") == {"node1", "node2"}, run.output
        for host in ("node1", "node2"):  # every host failed: the summary still names each
            assert re.search(rf"{host} has none: [^\n]*{re.escape(said)}", run.output), run.output
    run = fleet.play("preflight.yml", "--limit", "node1,node2")
    assert re.search(r"2 hosts fetch 0.\d GB through this machine''?s line: [\d.]+ min at 100 MB/s", run.flat)
    assert not any(list(fleet.work(number).glob("bundle-*")) for number in (1, 2))


@needs_root
def test_nothing_becomes_root_on_the_controller(fleet: Fleet, versions: Versions, tmp_path: Path) -> None:
    """With become for everything, as an option and as a variable, sudo is called on the host and never here."""
    bring(fleet, versions.old, {"node1"})
    shutil.rmtree(fleet.records, ignore_errors=True)
    log, sudo = tmp_path / "log", tmp_path / "sudo"
    sudo.write_text(f'#!/bin/sh\nhostname >>{log}\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@"\n')
    sudo.chmod(0o755)
    everybody = json.dumps({"ansible_become": True, "ansible_become_exe": str(sudo)})
    fleet.play("deploy.yml", "--limit", "node1", "--become", "-e", everybody)
    assert set(log.read_text().split()) == {"node1"}
    assert list(fleet.records.glob("*.json")), "what the controller has to do is done"


@needs_root
def test_serial_roll_out_goes_on_with_those_that_lack_it(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old, {"node2", "node3"})
    bring(fleet, versions.new, {"node1"})
    run = few(fleet, "deploy.yml", "-e", '{"colab_local_serial": [1, "100%"]}')
    assert run.hosts("changed") == {"node2", "node3"}
    assert running(fleet, versions.new) >= FEW


@needs_root
def test_rollback_returns_to_the_version_before_and_only_once(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    bring(fleet, versions.new)
    assert fleet.play("rollback.yml", "--check", "--limit", "node1").hosts("changed") == {"node1"}
    assert running(fleet, versions.new) >= FEW
    assert few(fleet, "rollback.yml").hosts("changed") == FEW
    assert running(fleet, versions.old) >= FEW
    assert not few(fleet, "rollback.yml").hosts("changed")
    assert running(fleet, versions.old) >= FEW


@needs_root
def test_bundle_by_url_is_fetched_once_and_checked(fleet: Fleet, versions: Versions, tmp_path: Path) -> None:
    """A wrong lock, then a wrong hash, then the right one of both: two downloads, one installation."""
    for folder in (fleet.home(5), fleet.work(5)):
        shutil.rmtree(folder, ignore_errors=True)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "cpu.tar").hardlink_to(versions.old.bundle)
    url = fleet.serve(shared) + "cpu.tar"

    def deploy(sha256: str, keep: bool = True) -> Play:
        return fleet.play(
            *("deploy.yml", "--limit", "node5"),
            check=False,
            colab_local_bundle="",
            colab_local_bundle_url=url,
            colab_local_bundle_sha256=sha256,
            colab_local_keep_bundle=keep,
        )

    def downloads() -> int:
        return (tmp_path / "shared.log").read_text().count(f"{fleet.node(5).address} - - [")

    sha256 = hashlib.sha256(versions.old.bundle.read_bytes()).hexdigest()
    fleet.roll_out(versions.new)
    refused = deploy(sha256)
    assert refused.hosts("failed") == {"node5"}
    assert "the bundle was made for something else" in refused.flat
    assert downloads() == 0, "its first bytes, read on the controller, were enough"
    fleet.roll_out(versions.old)
    damaged = deploy("0" * 64)
    assert damaged.hosts("failed") == {"node5"}
    assert "can't fetch the bundle" in damaged.flat
    assert downloads() == 1
    assert not fleet.home(5).exists()
    assert not deploy(sha256, keep=False).hosts("failed")
    assert "node5" in running(fleet, versions.old)
    assert downloads() == 2
    assert not list(fleet.work(5).glob("bundle-*.tar"))


@needs_root
def test_index_with_a_password_is_used_and_the_password_not_shown(
    fleet: Fleet, versions: Versions, tmp_path: Path
) -> None:
    fleet.roll_out(versions.old)
    for folder in (fleet.home(6), fleet.work(6)):
        shutil.rmtree(folder, ignore_errors=True)
    index = unpack_index(versions.old.bundle, tmp_path / "index")
    with watched_arguments("s3cret-word") as seen:
        run = fleet.play(
            *("deploy.yml", "--limit", "node6", "-vvv"),
            colab_local_bundle="",
            colab_local_index_url=fleet.serve(index, login="reader:s3cret-word"),
            colab_local_environment={
                "PIP_TRUSTED_HOST": fleet.lab.laptop.address,
                "MY_OWN_TOKEN": "s3cret-word",
            },
        )
    # The web server here is told its password by its arguments.
    assert not [line for line in seen if "web.py" not in line], "a password in a list of processes"
    assert "node6" in running(fleet, versions.old)
    assert "s3cret-word" not in run.output
    config = fleet.work(6) / "pip.conf"
    assert "s3cret-word" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    logs = list(fleet.home(6).glob("logs/*"))
    assert logs
    assert all("s3cret-word" not in log.read_text() for log in logs)


@needs_root
def test_uninstall_leaves_the_homes_as_they_were(fleet: Fleet, versions: Versions) -> None:
    bring(fleet, versions.old)
    assert fleet.play("uninstall.yml", "--check", "--limit", "node1").hosts("changed") == {"node1"}
    assert running(fleet, versions.old) >= FEW
    few(fleet, "uninstall.yml")
    for number in (1, 2, 3):
        assert not fleet.home(number).exists()
        assert not fleet.work(number).exists()
    assert not few(fleet, "uninstall.yml").hosts("changed")


@needs_root
def test_cloud_machine_installs_at_its_first_boot(fleet: Fleet, versions: Versions, tmp_path: Path) -> None:
    """The script in the user-data, run as cloud-init runs it. First the URL brings another file."""
    node, home = fleet.node(4), fleet.home(4)
    shutil.rmtree(home, ignore_errors=True)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "cpu.tar").write_bytes(b"another file")
    sha256 = hashlib.sha256(versions.old.bundle.read_bytes()).hexdigest()
    argv = [sys.executable, str(FLEET / "cloud_init.py"), "--bundle-url", fleet.serve(shared) + "cpu.tar"]
    argv += ["--bundle-sha256", sha256, "--set", f"UV_CACHE_DIR={fleet.environment['UV_CACHE_DIR']}"]
    argv += ["--", "--engine", "host"]
    made = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    script = tmp_path / "install"
    script.write_text(yaml.safe_load(made.stdout)["write_files"][0]["content"])
    (tmp_path / "python3").symlink_to(supported_python())  # the bundle's wheels are for this one
    boot = ["env", f"PATH={tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin", "sh", str(script)]

    refused = node.run(boot, check=False)
    assert refused.returncode == 4
    assert "error: the URL of the bundle brings another file" in refused.stderr
    assert not home.exists()
    (shared / "cpu.tar").unlink()
    (shared / "cpu.tar").hardlink_to(versions.old.bundle)
    assert "jupyter-notebook --no-browser" in node.run(boot, timeout=300).stdout
    assert "node4" in running(fleet, versions.old)
    again = node.run(boot)
    assert "Nothing to do" in again.stdout
    assert (tmp_path / "shared.log").read_text().count("GET /cpu.tar") == 2  # the other file, then this one
