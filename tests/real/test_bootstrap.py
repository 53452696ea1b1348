"""bootstrap.py's decisions, from recorded machines, and its answers to bad input, from the real program."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from colab_local.base.command_line import catch_signals
from colab_local.base.downloads import (
    PARALLEL_DOWNLOADS,
    Download,
    download,
    download_all,
    is_reachable,
)
from colab_local.base.errors import EXIT_FAILED, EXIT_INTEGRITY, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.base.files import sha256_of
from colab_local.base.network import free_port
from colab_local.base.terminal import Screen
from colab_local.install.home import current_receipt
from colab_local.install.installation import Installation, Step
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.lockfiles import (
    INDEX_SHAPE,
    conda_platform,
    locked_entry,
    locked_names,
    make_lock,
    parse_explicit,
    read_index,
)
from colab_local.install.machine import Host, machine_refusal
from tests.conftest import REPO, SCREEN, Installed, clean_environment, supported_python
from tests.support import pythons

LOCKFILES = REPO / "lockfiles"
INDEX = json.loads((LOCKFILES / "index.json").read_text())


def recorded(system: str, machine: str, libc: str = "", version: str = "", macos: str = "") -> Host:
    """Return a machine as inspect_host() records it, with a CPU that has every flag asked for."""
    return Host(system, machine, libc, version, macos, {"sse4_2", "avx", "avx2", "fma"})


UBUNTU = recorded("Linux", "x86_64", "glibc", "2.39")
RASPBERRY = recorded("Linux", "aarch64", "glibc", "2.36")
MACBOOK = recorded("Darwin", "arm64", macos="14.5")
OLD_MACBOOK = recorded("Darwin", "x86_64", macos="13.6")


@pytest.mark.parametrize(
    ("host", "env", "refused_for"),
    [
        (UBUNTU, "cpu", None),
        (UBUNTU, "gpu", None),
        (RASPBERRY, "cpu", None),
        (MACBOOK, "cpu", None),
        (RASPBERRY, "gpu", "no lock for this machine (found Linux aarch64"),
        (MACBOOK, "gpu", "no lock for this machine (found Darwin arm64"),
        (OLD_MACBOOK, "cpu", "macOS on Intel"),
        (recorded("Windows", "AMD64"), "cpu", "native Windows"),
        (recorded("Linux", "x86_64", "musl"), "cpu", "musl"),
        (recorded("Linux", "x86_64", "glibc", "2.12"), "cpu", "too old: glibc 2.12 (need "),
        (recorded("Linux", "riscv64", "glibc", "2.39"), "cpu", "found Linux riscv64"),
        (recorded("Darwin", "arm64", macos="10.15"), "cpu", "macOS is too old: 10.15 (need "),
        (UBUNTU._replace(cpu={"sse4_2"}), "cpu", "this CPU lacks avx"),
    ],
)
def test_which_machines_are_refused(host: Host, env: str, refused_for: str | None) -> None:
    refusal = machine_refusal(host, env, INDEX["environments"][env]["platforms"])
    if refused_for is None:
        assert refusal is None
    else:
        assert refusal is not None and refused_for in refusal.what
        assert refusal.code == EXIT_MACHINE


@pytest.mark.parametrize(
    ("system", "machine", "said"),
    [
        (
            "Windows",
            "AMD64",
            ["error: native Windows is not supported (need Linux: WSL2 has it)", "hint: wsl --install"],
        ),
        (
            "Darwin",
            "x86_64",
            [
                "error: macOS on Intel is not supported: TensorFlow ended its builds for it with 2.16",
                "hint: on Apple silicon start a Python for arm64",
            ],
        ),
    ],
)
def test_a_foreign_system_is_refused_by_the_program_itself(
    system: str, machine: str, said: list[str], tmp_path: Path
) -> None:
    """Where Python lacks what other systems have (locks, user numbers, signals), the refusal comes all the same."""
    code = (
        "import os, platform, signal, sys; sys.path.insert(0, sys.argv.pop(1)); sys.modules['fcntl'] = None;"
        "del os.geteuid, os.getuid, os.confstr, signal.SIGHUP; sys.modules['pwd'] = None;"
        f"platform.system = lambda: {system!r}; platform.machine = lambda: {machine!r};"
        "import bootstrap; sys.exit(bootstrap.main())"
    )
    argv = [sys.executable, "-c", code, str(REPO), "--prefix", str(tmp_path / "home")]
    done = subprocess.run(argv, env=clean_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_MACHINE
    lines = done.stderr.splitlines()
    assert len(lines) == len(said) and all(line.startswith(start) for line, start in zip(lines, said, strict=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "platform", "miniforge", "pixi"),
    [
        (UBUNTU, "linux-64", "Linux-x86_64.sh", "x86_64-unknown-linux-musl"),
        (RASPBERRY, "linux-aarch64", "Linux-aarch64.sh", "aarch64-unknown-linux-musl"),
        (MACBOOK, "osx-arm64", "MacOSX-arm64.sh", "aarch64-apple-darwin"),
    ],
)
def test_every_platform_gets_its_own_lock_and_installer(host: Host, platform: str, miniforge: str, pixi: str) -> None:
    subdir = conda_platform(host.system, host.machine)
    assert subdir == platform
    assert INDEX["installers"]["miniforge"]["files"][subdir]["url"].endswith(miniforge)
    assert pixi in INDEX["installers"]["pixi"]["files"][subdir]["url"]
    lock = make_lock(INDEX, LOCKFILES, "cpu", subdir, "conda")
    assert all(f"/{subdir}/" in url or "/noarch/" in url for url, _ in parse_explicit(lock.conda))


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has seen enough
    argv = [
        sys.executable,
        str(REPO / "bootstrap.py"),
        "--dry-run",
        "--engine",
        "host",
        "--prefix",
        str(tmp_path / "home"),
    ]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (EXIT_FAILED, "")


def bootstrap_run(
    arguments: list[str], env: dict[str, str] | None = None, python: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real bootstrap.py to its end."""
    argv = [python or supported_python(), "bootstrap.py", *arguments]  # as hints name it
    return subprocess.run(argv, cwd=REPO, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_an_old_python_is_told_in_two_lines(version: str, tmp_path: Path) -> None:
    done = bootstrap_run([], env=clean_environment(tmp_path), python=pythons.demand(version))
    assert done.returncode == EXIT_MACHINE
    first, second = done.stderr.splitlines()
    assert first == f"error: bootstrap.py needs Python 3.8 or newer (found {version})"
    assert second.startswith("hint: python3.11 bootstrap.py")
    assert done.stdout == ""


def test_pythons_from_before_annotations_show_the_line_that_says_what_to_type(tmp_path: Path) -> None:
    done = bootstrap_run([], env=clean_environment(tmp_path), python=pythons.demand("2.7"))
    assert done.returncode == 1 and done.stdout == ""
    assert "needs Python 3.8 or newer. Type: python3.11 bootstrap.py" in done.stderr


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_every_python_that_is_promised_makes_the_plan(version: str, tmp_path: Path) -> None:
    """What the environment's Python is does not depend on it: the plan is that of the Python which runs the tests."""
    python = pythons.demand(version)
    arguments = ["--dry-run", "--json", "--python", supported_python(), "--prefix", str(tmp_path / "home")]
    plans = [bootstrap_run(arguments, env=clean_environment(tmp_path), python=one) for one in (python, None)]
    assert plans[0].returncode == 0, plans[0].stderr
    assert json.loads(plans[0].stdout) == json.loads(plans[1].stdout)


def copy_of_lockfiles(folder: Path) -> Path:
    """Return a copy of the lockfiles that a test may damage."""
    return Path(shutil.copytree(LOCKFILES, folder / "lockfiles"))


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    """Return {what is bad: (arguments, exit code, part of the error)}."""
    (tmp_path / "a file").write_text("not a folder")
    damaged, changed, missing, other = (copy_of_lockfiles(tmp_path / name) for name in "abcd")
    (damaged / "index.json").write_text((damaged / "index.json").read_text()[:-40])
    with (changed / "cpu" / "pypi.txt").open("a") as stream:
        stream.write("# one byte more\n")
    (missing / "index.json").unlink()
    (other / "index.json").write_text(json.dumps(INDEX | {"schema": 99}))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "envs").write_text("not a folder")
    return {
        "unknown environment": (
            ["--env", "tpu"],
            EXIT_USAGE,
            "unknown environment 'tpu' (there are: colab, cpu, ",
        ),
        "empty environment": (["--env", ""], EXIT_USAGE, "unknown environment ''"),
        "port zero": (["--port", "0"], EXIT_USAGE, "--port: need 1 to 65535 (found '0')"),
        "port too high": (["--port", "65536"], EXIT_USAGE, "(found '65536')"),
        "port in words": (["--port", "http"], EXIT_USAGE, "(found 'http')"),
        "no such option": (["--gpus"], EXIT_USAGE, "unknown option: --gpus"),
        "two environments": (["--cpu", "--gpu"], EXIT_USAGE, "--gpu and --cpu can't be given together"),
        "empty prefix": (["--prefix", ""], EXIT_USAGE, "--prefix needs a folder"),
        "colon in prefix": (["--prefix", str(tmp_path / "a:b")], EXIT_USAGE, "can't have a colon"),
        "bytes in prefix": (["--prefix", str(tmp_path / "\udcff")], EXIT_USAGE, "udcff"),
        "link to nothing": (["--prefix", str(tmp_path / "link")], EXIT_USAGE, "link is a file where"),
        "file in prefix": (["--prefix", str(tmp_path / "ours")], EXIT_USAGE, "envs is a file where"),
        "no notebooks": (["--notebook-dir", "/nowhere"], EXIT_USAGE, "there is no folder /nowhere"),
        "python and engine": (
            ["--engine", "pixi", "--python", "python3"],
            EXIT_USAGE,
            "--python is for --engine host",
        ),
        "mirror rule": (["--mirror", "example.org"], EXIT_USAGE, "--mirror takes FROM=TO"),
        "file as prefix": (
            ["--prefix", str(tmp_path / "a file" / "x")],
            EXIT_USAGE,
            "is a file where a folder",
        ),
        "prefix in /proc": (["--prefix", "/proc/colab-local"], -1, "/proc"),
        "damaged index": (["--lockfiles", str(damaged)], EXIT_INTEGRITY, "index.json is damaged"),
        "no index": (["--lockfiles", str(missing)], EXIT_INTEGRITY, "can't read"),
        "other schema": (["--lockfiles", str(other)], EXIT_INTEGRITY, "has schema 99 (need 1)"),
        "changed lockfile": (
            ["--lockfiles", str(changed)],
            EXIT_INTEGRITY,
            "changed after it was generated",
        ),
        "no such python": (
            ["--python", str(tmp_path / "nowhere")],
            EXIT_MACHINE,
            "no Python that the lock covers",
        ),
        "no such bundle": (["--offline", str(tmp_path / "nowhere.tar")], -1, "nowhere.tar"),
    }


def test_bad_input_gets_one_line_a_hint_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = clean_environment(tmp_path)
    for what, (arguments, code, said) in bad_inputs(tmp_path).items():
        before = snapshot(tmp_path)
        prefix = [] if "--prefix" in arguments else ["--prefix", str(home)]
        done = bootstrap_run(["--engine", "host", *prefix, *arguments, "--json"], env=env)
        assert done.returncode not in (0, EXIT_INTERRUPTED), what
        assert code in (-1, done.returncode), (what, done.stderr)
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: ") and said in error and hint.startswith("hint: "), (what, done.stderr)
        told = {
            "schema": 1,
            "ok": False,
            "error": error[len("error: ") :],
            "hint": hint[len("hint: ") :],
            "code": done.returncode,
        }
        assert json.loads(done.stdout) == told, what
        assert snapshot(tmp_path) == before, what


def parts(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every value in nested JSON objects."""
    if not isinstance(value, dict):
        return [path]
    return [path, *(found for key in value for found in parts(value[key], (*path, key)))]


def test_whatever_is_damaged_in_index_json_is_an_error(tmp_path: Path) -> None:
    """Each value replaced by one that makes no sense there, and each part gone: never a traceback later on."""
    told = [path for path in parts(INDEX) if path and path[0] != "_" and path[::2] != ("installers", "version")]
    damages: list[tuple[tuple[str, ...], Any]] = [
        (path, damage)
        for path in told
        for damage in (7.5, "../x", ["../x"])
        if not (path[-1] == "note" and damage == "../x")  # words, shown as they are
    ]
    damages += [((key,), None) for key in INDEX if key in INDEX_SHAPE]  # others may be missing
    for path, damage in damages:
        index = json.loads(json.dumps(INDEX))
        inner = index
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = damage
        if damage is None:
            del inner[path[-1]]
        (tmp_path / "index.json").write_text(json.dumps(index))
        with pytest.raises(Failure, match="is damaged") as caught:
            read_index(tmp_path)
        assert caught.value.code == EXIT_INTEGRITY and caught.value.hint, (path, damage)


def run_as(user: int, arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run bootstrap.py as a user who has no entry in the user database, which only root can."""
    code = (  # the repository may lie where this user may not read
        "import os, sys; sys.path.insert(0, sys.argv.pop(1)); import bootstrap;"
        "i = bootstrap.read_index(bootstrap.REPOSITORY / 'lockfiles'); bootstrap.read_index = lambda folder: i;"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user}); sys.exit(bootstrap.main())"
    )
    argv = ["/usr/bin/python3", "-c", code, str(REPO), *arguments]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    arguments, env = ["--engine", "host", "--prefix", str(folder / "home")], clean_environment(tmp_path)
    done = bootstrap_run(arguments, env=env) if os.geteuid() else run_as(12345, arguments, env)
    assert done.returncode == EXIT_MACHINE, done.stderr
    error, hint = done.stderr.splitlines()
    assert "can't be written by" in error and re.match(r"hint: \S+ bootstrap.py --engine host --prefix ", hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder takes root to make")
def test_another_users_folder_is_no_home(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chown(folder, 23456, -1)
        os.chmod(folder, 0o777)  # noqa: PTH101, S103
        done = run_as(12345, ["--dry-run", "--engine", "host", "--prefix", folder], clean_environment(tmp_path))
    assert done.returncode == EXIT_MACHINE
    assert "another user can change" in done.stderr and "found uid 23456, mode 777; need uid 12345" in done.stderr


def test_a_dry_run_writes_nothing_and_shows_the_steps_that_a_real_run_takes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = bootstrap_run(
        ["--dry-run", "--json", "--engine", "host", "--prefix", str(home)], env=clean_environment(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [step["name"] for step in plan["plan"]] == [
        "uv",
        "create",
        "packages",
        "jupyter",
        "try",
        "receipt",
        "switch",
    ]
    assert plan["changed"] is False
    assert not home.exists()


def test_a_port_in_use_is_told_with_a_free_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home = tmp_path / "home"
        argv = ["--engine", "host", "--port", str(port), "--prefix", str(home)]
        done = bootstrap_run([*argv, "--launch"], env=clean_environment(tmp_path))
        planned = bootstrap_run([*argv, "--dry-run"], env=clean_environment(tmp_path))
    assert done.returncode == EXIT_MACHINE
    assert f"port {port} is taken" in done.stderr
    assert re.search(rf"hint: \S+ bootstrap\.py --engine host --prefix {home} --launch --port \d+\n", done.stderr)
    assert f"note: port {port} is taken by another program: the next steps use" in planned.stdout, (
        "no reason to refuse"
    )
    assert not home.exists()


def test_several_files_are_downloaded_at_once(tmp_path: Path) -> None:
    """The server answers each only when all have been asked for."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    together = threading.Barrier(PARALLEL_DOWNLOADS, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            together.wait()
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, format: str, *args: object) -> None:
            pass

    digest = hashlib.sha256(b"x").hexdigest()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        files = [Download(f"{url}{n}", tmp_path / str(n), digest) for n in range(PARALLEL_DOWNLOADS)]
        download_all(files, SCREEN)
        server.shutdown()
    assert all(wanted.target.read_bytes() == b"x" for wanted in files)


class Guarded(http.server.BaseHTTPRequestHandler):
    """Wants a password, then sends on to the same port under another name; notes who was told what."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        name, _, port = self.headers["Host"].partition(":")
        login = self.headers.get("Authorization")
        self.seen.append((name, login))
        away = name == "127.0.0.1"
        self.send_response(302 if away and login else 401 if away else 200)
        if away and login:
            self.send_header("Location", f"http://localhost:{port}/file")
        self.send_header("Content-Length", "0" if away else "4")
        self.end_headers()
        self.wfile.write(b"" if away else b"file")

    do_HEAD = do_GET


def test_a_mirrors_password_goes_to_the_mirror_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        rules = [("https://conda.example.org/", f"http://me:s%40cret@127.0.0.1:{port}/")]
        digest = hashlib.sha256(b"file").hexdigest()
        download(Download("https://conda.example.org/x", tmp_path / "x", digest), SCREEN, rules)
        assert is_reachable(rules[0][1])
        with pytest.raises(Failure, match="HTTP 401"):
            download(Download(f"http://127.0.0.1:{port}/x", tmp_path / "y", digest), SCREEN)
        server.shutdown()
    login = "Basic " + base64.b64encode(b"me:s@cret").decode()
    assert Guarded.seen == [("127.0.0.1", login), ("localhost", None)] * 2 + [("127.0.0.1", None)]
    said = capsys.readouterr()
    assert "cret" not in said.out + said.err


def test_a_mirrors_password_is_in_nothing_that_the_plan_says(tmp_path: Path) -> None:
    """pixi gets files that we have fetched: it never sees the mirror."""
    rule = "https://conda.anaconda.org/=https://me:s3cret@mirror.example.org/"
    arguments = ["--dry-run", "--engine", "pixi", "--mirror", rule, "--prefix", str(tmp_path / "home")]
    done = bootstrap_run(arguments, env=clean_environment(tmp_path))
    assert done.returncode == 0 and "s3cret" not in done.stdout + done.stderr


def test_one_package_is_taken_out_of_the_lock_with_its_hashes() -> None:
    text = (LOCKFILES / INDEX["uv"]["file"]).read_text()
    entry = locked_entry(text, "uv")
    assert locked_names(entry) == {"uv": INDEX["uv"]["version"]}
    assert entry.count("--hash=sha256:") == len(INDEX["environments"]["cpu"]["platforms"]) and entry in text
    with pytest.raises(Failure, match="conda is not in the lock"):
        locked_entry(text, "conda")


def test_the_jupyter_command_is_exact() -> None:
    assert jupyter_argv("/p", 8890, "/nb") == [
        "/p/colab/jupyter-notebook",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=8890",
        "--NotebookApp.port_retries=0",
        "--NotebookApp.allow_origin=https://colab.research.google.com",
        "--NotebookApp.allow_credentials=True",
        "--notebook-dir=/nb",
    ]
    assert jupyter_argv("/p", as_root=True)[-1] == "--allow-root"


def snapshot(folder: Path) -> set[tuple[str, float]]:
    """Return every path below a folder with its time of change; bytecode may come from whoever uses it meanwhile."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {(str(path), path.lstat().st_mtime_ns) for path in paths if path.is_symlink() or not path.is_dir()}


def test_a_second_run_does_nothing_and_says_how_to_start(installed: Installed, tmp_path: Path) -> None:
    before = snapshot(installed.home)
    done = bootstrap_run(["--prefix", str(installed.home)], env=clean_environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    assert str(installed.prefix / "colab" / "jupyter-notebook") in done.stdout
    assert sorted(snapshot(installed.home) ^ before) == []


@pytest.mark.usefixtures("choices_kept")
def test_every_printed_command_is_one_line_that_can_be_pasted(installed: Installed, tmp_path: Path) -> None:
    env = clean_environment(tmp_path) | {"SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 2222"}
    notebooks = tmp_path / 'my "$(books)" & it\'s `'
    notebooks.mkdir()
    arguments = ["--prefix", str(installed.home), "--port", "8899", "--notebook-dir", str(notebooks)]
    done = bootstrap_run(arguments, env=env)
    lines = done.stdout.splitlines()
    (jupyter,) = [line for line in lines if "jupyter-notebook" in line]
    for shell in ("bash", "sh", "zsh", "fish"):
        if shutil.which(shell):
            read = subprocess.run(
                [shell, "-c", f"printf '%s\\n' {jupyter}"], capture_output=True, text=True, check=True
            )
            as_root = os.geteuid() == 0
            assert read.stdout.splitlines() == jupyter_argv(str(installed.prefix), 8899, str(notebooks), as_root), (
                shell
            )
    assert all(line.isascii() and not line.endswith("\\") for line in lines)
    ssh = next(line for line in lines if line.startswith("ssh "))
    assert "-L 8899:localhost:8899 -p 2222 " in ssh and ssh.endswith("@192.0.2.7")
    said = " ".join(done.stdout.split())
    assert "Connect to a local runtime, paste the URL (http://localhost:8899/?token=...), Connect." in said
    assert "Chrome: click Allow. Firefox: tick Remember my choice for this site, click Allow." in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "error: you have no home folder here (HOME is not set)"),
        ({"HOME": ""}, "error: you have no home folder here (HOME is not set)"),
        ({"HOME": "/nowhere"}, "error: / can't be written by 12345"),
    ],
)
def test_a_user_without_a_home_or_a_name(environ: dict[str, str], said: str) -> None:
    """As in a container that runs as a number: no entry in the user database."""
    done = run_as(12345, ["--dry-run", "--python", "/usr/bin/python3"], environ | {"PATH": os.defpath})
    assert (done.returncode, done.stdout) == (EXIT_MACHINE, "")
    error, hint = done.stderr.splitlines()
    assert error == said and hint.startswith("hint: ")


def test_the_receipt_tells_what_was_made_and_only_the_owner_reads_logs(installed: Installed) -> None:
    receipt = current_receipt(installed.home, "cpu")
    assert receipt is not None
    for name, digest in receipt["lock"]["files"].items():
        assert sha256_of(installed.home / "receipts" / receipt["name"] / "lock" / name) == digest
    for path, digest in receipt["lock"]["jupyter"].items():
        assert sha256_of(Path(receipt["prefix"]) / path) == digest
    assert all((log.stat().st_mode & 0o077) == 0 for log in (installed.home / "logs").glob("*.log"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_python_loses_ends_the_run_before_the_next_step(tmp_path: Path) -> None:
    """An exception within a finalizer goes no further; nor must the run."""

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    done: list[str] = []

    def first() -> None:
        Finalized()
        done.append("first")

    steps = [Step(name, name, Path(), action) for name, action in [("1", first), ("2", lambda: done.append("2"))]]
    screen = Screen()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    catch_signals(screen)
    try:
        with pytest.raises(KeyboardInterrupt):
            Installation.apply(SimpleNamespace(is_made=lambda: True, seconds={}, screen=screen, home=tmp_path), steps)  # type: ignore[arg-type]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == ["first"]


def test_what_nohup_has_settled_stays() -> None:
    code = (
        "import signal, bootstrap; signal.signal(signal.SIGHUP, signal.SIG_IGN); bootstrap.main(['--env', 'x']);"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "True interrupt\n"


def test_a_dry_run_of_launch_says_what_would_start(tmp_path: Path) -> None:
    port, home = free_port(28900), tmp_path / "home"
    argv = ["--dry-run", "--launch", "--engine", "host", "--port", str(port), "--prefix", str(home)]
    done = bootstrap_run(argv, env=clean_environment(tmp_path))
    assert done.returncode == 0 and f"Then it would start Jupyter on port {port}" in done.stdout, done
    assert not (tmp_path / "home").exists()


def test_a_terminal_that_lacks_letters_gets_their_numbers(tmp_path: Path) -> None:
    env = clean_environment(tmp_path) | {"PYTHONIOENCODING": "ascii"}
    done = bootstrap_run(["--dry-run", "--engine", "host", "--prefix", str(tmp_path / "\u6a5f")], env=env)
    assert done.returncode == 0 and "\\u6a5f" in done.stdout, done.stderr


def on_a_terminal(code: str) -> str:
    """Run Python code that uses base/ on a pseudo-terminal; return what the terminal got."""
    import pty

    head = f"import sys; sys.path.insert(0, {str(REPO)!r}); from pathlib import Path\n"
    head += "".join(
        f"from colab_local.base.{name} import *\n" for name in ("terminal", "progress", "programs", "downloads")
    )
    argv = [sys.executable, "-c", head + code]
    ours, theirs = pty.openpty()
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux: the other side has been closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert child.wait(60) == 0, seen.decode()
    return seen.decode()


def test_on_a_terminal_a_long_step_shows_time_and_the_programs_newest_line() -> None:
    seen = on_a_terminal(
        "s = Screen()\nwith Waiting(s, '[1/1] Long work'):\n    run(['sh', '-c', 'echo half way >&2; sleep 1.2'], s)"
    )
    assert "[1/1] Long work: 1 s, half way" in seen
    assert "[1/1] Long work  1 s\r\n" in seen


def test_on_a_terminal_a_download_shows_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    url = (tmp_path / "file").as_uri()
    digest = hashlib.sha256(b"x" * 5_000_000).hexdigest()
    wanted = f"Download({url!r}, Path({str(tmp_path / 'copy')!r}), {digest!r}, 5_000_000)"
    code = f"from colab_local.base import progress; progress.DRAW_S = 0.001\ndownload({wanted}, Screen())"
    assert "Downloading copy (5 MB)" in on_a_terminal(code) and (tmp_path / "copy").stat().st_size == 5_000_000
