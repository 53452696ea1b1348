"""--list, --rollback, --prune and --uninstall, on real installations: what was made goes, all else stays."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from colab_local.base.errors import EXIT_BUSY, EXIT_FAILED, EXIT_USAGE
from colab_local.install.home import current_receipt
from colab_local.install.jupyter import jupyter_argv
from tests.conftest import REPO, supported_python
from tests.support.homes import LIGHT, Home, hinted, port, without, write_lockfiles
from tests.support.mirror import Mirror, World, build_world, find_interpreter, own_environment, snapshot
from tests.support.receipts import write_receipt


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three locks that differ by a package."""
    folder = tmp_path_factory.mktemp("locks")
    texts = [LIGHT, without(LIGHT, "wheel"), without(without(LIGHT, "wheel"), "webcolors")]
    return [write_lockfiles(folder / str(number), text) for number, text in enumerate(texts)]


def install(home: Home, lock: Path) -> str:
    """Install from a lock with the host engine and return the environment's name."""
    home.run("--engine", "host", "--lockfiles", lock, cwd=home.user)
    return home.prefix.name


def states(home: Home) -> dict[str, str]:
    """Return {name of environment: state} as --list --json tells them."""
    rows = json.loads(home.run("--list", "--json").stdout)["environments"]
    return {row["name"]: row["state"] for row in rows}


def use(home: Home) -> None:
    """Do with the environment what its user would: start Jupyter as printed, ask it, stop it."""
    code = "import jupyter_client, sys; print(sys.prefix)"
    env = own_environment(home.user)
    assert subprocess.run([home.prefix / "bin" / "python", "-c", code], env=env, check=True).returncode == 0
    argv = jupyter_argv(str(home.path / "current" / "cpu"), port(), str(home.user), os.geteuid() == 0)
    server = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert server.stderr
    for line in server.stderr:
        if f"http://localhost:{port()}/?token=" in line or f"http://127.0.0.1:{port()}/?token=" in line:
            break
    busy = home.run("--uninstall", "--yes", check=False)
    server.terminate()
    rest = server.stderr.read()
    server.wait(30)
    assert busy.returncode == EXIT_BUSY, busy.stderr + rest
    assert f"({server.pid})" in busy.stderr and "hint: kill" in busy.stderr


def test_install_use_uninstall_install_again(
    tmp_path: Path, locks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards the file system is as before; what the user put into the folder stays, and is named.

    The prefix has whatever a shell, a URL or a launcher's first line could trip over. The current folder has modules
    by the names of those that the Pythons are asked for, as a stranger may put them into a shared folder.
    """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    folder = "it's a cölab $HOME 機械"
    home = Home(tmp_path / "user" / folder, tmp_path / "user")
    home.user.mkdir()
    (home.user / "notes.txt").write_text("mine")
    (home.user / ".bashrc").write_text("alias ll='ls -l'\n")
    (home.user / "link").symlink_to("nowhere")
    for name in ("sysconfig", "platform", "venv", "ensurepip", "pip", "json"):
        (home.user / f"{name}.py").write_text("raise SystemExit('code of the current folder was run')")
    before = snapshot(home.user)
    install(home, locks[0])
    made = {name.split("/")[0] for name in set(snapshot(home.user)) - set(before)}
    assert made == {folder}, "nothing is written outside the prefix"
    use(home)
    # What Jupyter itself keeps of its user's sessions is the user's, as with any Jupyter; nothing else is new.
    jupyters = r"\.local(/share(/jupyter(/.*)?)?)?|\.jupyter(/.*)?|\.ipython(/.*)?"
    for new in sorted(set(snapshot(home.user)) - set(before)):
        assert new.startswith(folder) or re.fullmatch(jupyters, new), new
    for name in (".local", ".jupyter", ".ipython"):
        shutil.rmtree(home.user / name, ignore_errors=True)
    dry = home.run("--uninstall", "--dry-run")
    assert f" this from {home.path}:\n" in dry.stdout and f"  envs/{home.prefix.name}\n" in dry.stdout
    assert home.prefix.is_dir()
    refused = home.run("--uninstall", check=False)
    assert refused.returncode == EXIT_USAGE and home.prefix.is_dir()
    command = [str(REPO / "bootstrap.py"), "--prefix", str(home.path), "--uninstall", "--yes"]
    assert hinted(refused) == command, "as it was typed, with a prefix that a shell could trip over"
    done = home.run("--uninstall", "--yes")
    assert re.search(r"Removed \d+ MB from", done.stdout)
    assert snapshot(home.user) == before
    assert "Nothing to do" in home.run("--uninstall", "--yes").stdout
    assert snapshot(home.user) == before

    name = install(home, locks[0])
    assert states(home) == {name: "in use"}
    mine = [home.path / "notebooks" / "a.ipynb", home.path / "bin" / "tool", home.path / "cache" / "other" / "file"]
    mine += [
        home.path / "conda" / "bin" / "conda",
        home.path / "envs" / "theirs" / "file",
        home.path / "logs" / "my.log",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    done = home.run("--uninstall", "--yes", "--json")
    left = json.loads(done.stdout)["left"]
    assert sorted(left) == sorted(path.relative_to(home.path).as_posix() for path in mine)
    assert "Left, because colab-local did not make it" in done.stderr
    files = {path for path in home.path.rglob("*") if not path.is_dir()} - {home.path / ".lock"}
    assert files == set(mine)
    assert not list(temporary.iterdir())


def test_side_by_side_rollback_and_prune(tmp_path: Path, locks: list[Path]) -> None:
    home = Home(tmp_path / "home", tmp_path / "user")
    none = home.run("--rollback", check=False)
    assert none.returncode == EXIT_FAILED and "no previous cpu environment" in none.stderr
    assert "No environment is installed" in home.run("--list").stdout
    first = install(home, locks[0])
    second = install(home, locks[1])
    assert states(home) == {second: "in use", first: "previous"}
    listed = home.run("--list").stdout
    assert re.search(rf"in use +\d+ MB +cpu +{second[-12:]} +host +20\d\d-", listed), listed

    dry = home.run("--rollback", "--dry-run")
    assert first in dry.stdout and home.prefix.name == second
    home.run("--rollback")
    assert states(home) == {first: "in use", second: "previous"}
    home.run("--rollback")
    assert states(home) == {second: "in use", first: "previous"}
    assert home.run("--prune", "--yes").stdout.startswith("Nothing to do")

    third = install(home, locks[2])
    half_made = home.path / "envs" / f"cpu-{'0' * 12}"
    (half_made / "bin").mkdir(parents=True)
    (half_made / "bin" / "python").write_text("")
    half_made.joinpath("bin").chmod(0o555)
    assert states(home) == {third: "in use", second: "previous", first: "unused", half_made.name: "half-made"}
    refused = home.run("--prune", check=False)
    assert refused.returncode == EXIT_USAGE and first in states(home)
    assert f"  envs/{first}\n" in home.run("--prune", "--dry-run").stdout
    done = json.loads(home.run("--prune", "--yes", "--json").stdout)
    assert sorted(done["removed"]) == sorted([first, half_made.name]) and done["bytes"] > 10_000_000
    assert states(home) == {third: "in use", second: "previous"}
    assert not list(home.path.glob(f"*/{first}"))

    # An environment that somebody has deleted by hand counts as gone, and is no target.
    shutil.rmtree(home.path / "envs" / second)
    assert states(home) == {third: "in use", second: "gone"}
    assert home.run("--rollback", check=False).returncode == EXIT_FAILED
    home.run("--prune", "--yes")
    assert states(home) == {third: "in use"}


def answer(home: Home, text: str) -> tuple[int, str]:
    """Run --uninstall on a terminal and type an answer; return exit status and output."""
    argv = [supported_python(), str(REPO / "bootstrap.py"), "--uninstall", "--prefix", str(home.path)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, own_environment(home.user))  # noqa: S606 - the child of a pty
    output = b""
    try:
        while b"[y/N]" not in output:
            output += os.read(terminal, 4096)
        os.write(terminal, text.encode())
        while True:
            chunk = os.read(terminal, 4096)
            if not chunk:
                break
            output += chunk
    except OSError as problem:  # Linux: the other side has closed
        assert problem.errno == errno.EIO
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), output.decode()


def test_a_copied_home_speaks_for_itself_alone(tmp_path: Path) -> None:
    """Its receipts name the folders of the first home, which nothing done to the copy may touch."""
    first, copy = tmp_path / "first", Home(tmp_path / "copy", tmp_path / "user")
    name = "cpu-0123456789ab"
    root = first / "envs" / name
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").symlink_to(supported_python())
    write_receipt(first)
    (first / "current").mkdir()
    (first / "current" / "cpu").symlink_to(f"../envs/{name}")
    assert current_receipt(first, "cpu")
    shutil.copytree(first, copy.path, symlinks=True)
    before = snapshot(first)
    assert "no cpu environment is installed" in copy.run("--verify", check=False).stderr
    copy.run("--uninstall", "--yes")
    assert not copy.path.exists() and snapshot(first) == before


def test_it_asks_on_a_terminal(tmp_path: Path) -> None:
    """An empty answer means no, Ctrl-C and Ctrl-D, too. What a killed installation left can be removed."""
    home = Home(tmp_path / "home", tmp_path)
    (home.path / "envs" / f"cpu-{'1' * 12}" / "bin").mkdir(parents=True)
    for word in ("\n", "n\n", "\x03", "\x04"):
        status, output = answer(home, word)
        assert status == 0 and home.path.is_dir()
        question, *rest = output.replace("\r", "").split("Remove all this?")[1].split("\n")
        assert (question.strip(" ^CDny/N[]"), rest) == ("", ["Nothing was removed.", ""]), word
    status, output = answer(home, "y\n")
    assert status == 0 and "Removed" in output, output
    assert not home.path.exists()


def test_the_service_and_its_users_changes(tmp_path: Path) -> None:
    """--uninstall calls the service's own removal; a unit that the user has changed is not lost."""
    home = Home(tmp_path / "home", tmp_path / "user")
    units = home.user / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    unit, token = units / "colab-local.service", home.path / "run" / "jupyter-token"
    for path in (token, home.path / "receipts" / "service.json"):
        path.parent.mkdir(parents=True)
    token.write_text("secret")
    written = "[Service]\nExecStart=/bin/true\n"
    unit.write_text(written + "# my own line\n")
    receipt = {
        "schema": 1, "kind": "systemd", "env": "cpu", "file": str(unit),
        "sha256": hashlib.sha256(written.encode()).hexdigest(),
        "token_file": str(token), "made": [], "lingering": False,
    }  # fmt: skip
    (home.path / "receipts" / "service.json").write_text(json.dumps(receipt))
    dry = home.run("--uninstall", "--dry-run")
    assert str(unit) in dry.stdout and unit.is_file() and token.is_file()
    home.run("--uninstall", "--yes")
    assert not home.path.exists() and not unit.exists()
    (kept,) = units.iterdir()
    assert "# my own line" in kept.read_text()


@pytest.mark.skipif(
    find_interpreter() is None, reason="no Python 3.11-3.13 but Debian's own to make a conda package of"
)
@pytest.mark.parametrize("engine", ["miniforge", "pixi"])
def test_conda_engines_leave_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, engine: str) -> None:
    world: World = build_world(tmp_path_factory.getbasetemp() / "world")
    home = Home(tmp_path / "home", tmp_path / "user")
    home.user.mkdir()
    before = snapshot(home.user)
    with Mirror(world) as mirror:
        home.run(
            "--engine", engine, "--lockfiles", world.write_lockfiles(tmp_path / "lockfiles", LIGHT), *mirror.options
        )
    done = home.run("--uninstall", "--yes")
    assert not home.path.exists(), done.stdout
    assert snapshot(home.user) == before


def test_a_folder_that_was_named_is_kept_and_stays(tmp_path: Path, locks: list[Path]) -> None:
    """Chosen at the installation, then another one, which the installation itself had made and which is empty."""
    home = Home(tmp_path / "made" / "home", tmp_path / "user")
    books = home.user / "books"
    books.mkdir(parents=True)
    plain = ["--engine", "host", "--lockfiles", str(locks[0])]
    assert f"--notebook-dir={books}" in home.run(*plain, "--notebook-dir", books).stdout
    again = home.run(*plain).stdout
    assert "Nothing to do" in again and f"--notebook-dir={books}" in again
    other = home.run(*plain, "--notebook-dir", home.path.parent).stdout
    assert f"Remember for later runs: --notebook-dir {home.path.parent} " in " ".join(other.split())
    refused = home.run(*plain, "--notebook-dir", home.path / "logs", check=False)
    assert refused.returncode == EXIT_USAGE and "is in a folder that --uninstall removes" in refused.stderr
    assert f"--notebook-dir={home.path.parent}" in home.run(*plain).stdout, "a refusal changes nothing"
    home.run("--uninstall", "--yes")
    assert home.path.parent.is_dir() and books.is_dir() and not home.path.exists()
