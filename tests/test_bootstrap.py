"""bootstrap.py's decisions, from recorded machines, and its answers to bad input, from the real program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bootstrap
from tests.conftest import REPO, Installed, clean_environment, free_port, supported_python

LOCKFILES = REPO / "lockfiles"
INDEX = json.loads((LOCKFILES / "index.json").read_text())


def recorded(system: str, machine: str, libc: str = "", version: str = "", macos: str = "") -> bootstrap.Host:
    """Return a machine as inspect_host() records it, with a CPU that has every flag asked for."""
    return bootstrap.Host(system, machine, libc, version, macos, {"sse4_2", "avx", "avx2", "fma"})


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
def test_which_machines_are_refused(host: bootstrap.Host, env: str, refused_for: str | None) -> None:
    refusal = bootstrap.machine_refusal(host, env, INDEX["environments"][env]["platforms"])
    if refused_for is None:
        assert refusal is None
    else:
        assert refusal is not None and refused_for in refusal.what
        assert refusal.code == bootstrap.EXIT_MACHINE


def test_windows_users_are_pointed_at_wsl() -> None:
    refusal = bootstrap.machine_refusal(
        recorded("Windows", "AMD64"), "cpu", INDEX["environments"]["cpu"]["platforms"]
    )
    assert refusal is not None and "wsl" in refusal.hint


@pytest.mark.parametrize(
    ("host", "platform", "miniforge", "pixi"),
    [
        (UBUNTU, "linux-64", "Linux-x86_64.sh", "x86_64-unknown-linux-musl"),
        (RASPBERRY, "linux-aarch64", "Linux-aarch64.sh", "aarch64-unknown-linux-musl"),
        (MACBOOK, "osx-arm64", "MacOSX-arm64.sh", "aarch64-apple-darwin"),
    ],
)
def test_every_platform_gets_its_own_lock_and_installer(
    host: bootstrap.Host, platform: str, miniforge: str, pixi: str
) -> None:
    subdir = bootstrap.conda_platform(host.system, host.machine)
    assert subdir == platform
    assert INDEX["installers"]["miniforge"]["files"][subdir]["url"].endswith(miniforge)
    assert pixi in INDEX["installers"]["pixi"]["files"][subdir]["url"]
    lock = bootstrap.make_lock(INDEX, LOCKFILES, "cpu", subdir, "conda")
    assert all(f"/{subdir}/" in url or "/noarch/" in url for url, _ in bootstrap.parse_explicit(lock.conda))


# `nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader,nounits`
RTX_4090 = "NVIDIA GeForce RTX 4090, 550.54.14, 24564, 8.9\n"
TWO_V100 = "Tesla V100-SXM2-16GB, 535.161.08, 16384, 7.0\nTesla V100-SXM2-16GB, 535.161.08, 16384, 7.0\n"
GTX_980 = "NVIDIA GeForce GTX 980, 535.183.01, 4096, 5.2\n"
OLD_DRIVER = "Tesla T4, 470.256.02, 15360, 7.5\n"
BEFORE_COMPUTE_CAP = "Tesla K80, 418.226.00, 11441\n"
MIXED = GTX_980 + RTX_4090.replace("550.54.14", "535.183.01")


@pytest.mark.parametrize(
    ("output", "count", "refused_for"),
    [
        (RTX_4090, 1, None),
        (TWO_V100, 2, None),
        (MIXED, 2, None),  # one card that fits is enough
        (GTX_980, 1, "found NVIDIA GeForce GTX 980 5.2, need compute capability 6.0"),
        (OLD_DRIVER, 1, "driver is too old (found 470.256.02, need 5"),
        (BEFORE_COMPUTE_CAP, 1, "driver is too old (found 418.226.00"),
    ],
)
def test_recorded_drivers_and_cards(output: str, count: int, refused_for: str | None) -> None:
    gpus = bootstrap.parse_nvidia_smi(output)
    assert len(gpus) == count
    refusal = bootstrap.gpu_refusal(gpus, INDEX["environments"]["gpu"]["platforms"]["linux-64"]["requires"])
    if refused_for is None:
        assert refusal is None
    else:
        assert refusal is not None and refused_for in refusal.what and refusal.hint


def fake_nvidia_smi(folder: Path, script: str) -> Path:
    """Put a program into `folder` that answers as nvidia-smi was recorded to answer."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            "could not communicate",
        ),
        ("echo 'No devices were found'; exit 6", "No devices were found"),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "Driver/library version mismatch",
        ),
        (None, "nvidia-smi is not there"),
    ],
)
def test_gpu_without_a_gpu_names_cpu_and_the_override(tmp_path: Path, script: str | None, said: str) -> None:
    folder = fake_nvidia_smi(tmp_path / "bin", script) if script else tmp_path
    env = clean_environment(tmp_path) | {"PATH": f"{folder}:/usr/bin:/bin"}
    done = bootstrap_run(["--gpu", "--dry-run", "--engine", "host", "--prefix", str(tmp_path / "home")], env=env)
    assert done.returncode == bootstrap.EXIT_MACHINE
    assert said in done.stderr and "--cpu" in done.stderr and "--no-gpu-check" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_gpu_that_fits_is_named_in_the_plan(tmp_path: Path) -> None:
    folder = fake_nvidia_smi(tmp_path / "bin", f"printf '{RTX_4090}'".replace("\n", "\\n"))
    env = clean_environment(tmp_path) | {"PATH": f"{folder}:/usr/bin:/bin"}
    done = bootstrap_run(
        ["--gpu", "--dry-run", "--json", "--engine", "host", "--prefix", str(tmp_path / "home")], env=env
    )
    assert done.returncode == 0, done.stderr
    assert "NVIDIA GeForce RTX 4090, driver 550.54.14, compute capability 8.9" in json.loads(done.stdout)["notices"]


def bootstrap_run(
    arguments: list[str], env: dict[str, str] | None = None, python: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real bootstrap.py to its end."""
    argv = [python or supported_python(), str(REPO / "bootstrap.py"), *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_an_old_python_is_told_in_one_line(version: str, tmp_path: Path) -> None:
    found = next(iter(sorted((Path.home() / ".pyenv" / "versions").glob(version + ".*/bin/python"))), None)
    python = str(found) if found else shutil.which("python" + version)
    if python is None:
        # The same check, read by this Python: what an old one does with it is that it parses and compares.
        source = (REPO / "bootstrap.py").read_text()
        check = source[source.index("import sys\n") : source.index("import argparse")]
        patched = check.replace("sys.version_info", f"({version.replace('.', ', ')})")
        done = subprocess.run([sys.executable, "-c", patched], capture_output=True, text=True, check=False)
    else:
        done = bootstrap_run([], env=clean_environment(tmp_path), python=python)
    assert done.returncode == bootstrap.EXIT_MACHINE
    assert done.stderr.splitlines()[0] == f"error: bootstrap.py needs Python 3.8 or newer (found {version})"
    assert done.stdout == ""


def test_bootstrap_keeps_to_syntax_that_python_2_parses() -> None:
    """Where no Python 2.7 is at hand, this is what breaks first: f-strings, annotations, keyword-only arguments."""
    import ast

    for node in ast.walk(ast.parse((REPO / "bootstrap.py").read_text())):
        assert not isinstance(node, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.AsyncFunctionDef))
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None and not node.args.kwonlyargs and not node.args.posonlyargs
        if isinstance(node, ast.Raise):
            assert node.cause is None


def test_bootstrap_imports_the_standard_library_alone() -> None:
    import ast

    names = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
        for node in ast.walk(ast.parse((REPO / "bootstrap.py").read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert names - set(sys.stdlib_module_names) <= {"scripts", "tqdm"}


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
    return {
        "unknown environment": (
            ["--env", "tpu"],
            bootstrap.EXIT_USAGE,
            "unknown environment 'tpu' (there are: cpu, gpu)",
        ),
        "port zero": (["--port", "0"], bootstrap.EXIT_USAGE, "--port takes 1 to 65535 (found 0)"),
        "port too high": (["--port", "65536"], bootstrap.EXIT_USAGE, "(found 65536)"),
        "port in words": (["--port", "http"], bootstrap.EXIT_USAGE, "invalid int value: 'http'"),
        "mirror rule": (["--mirror", "example.org"], bootstrap.EXIT_USAGE, "--mirror takes FROM=TO"),
        "file as prefix": (
            ["--prefix", str(tmp_path / "a file" / "x")],
            bootstrap.EXIT_USAGE,
            "is a file where a folder",
        ),
        "prefix in /proc": (["--prefix", "/proc/colab-local"], -1, "/proc"),
        "damaged index": (["--lockfiles", str(damaged)], bootstrap.EXIT_INTEGRITY, "index.json is damaged"),
        "no index": (["--lockfiles", str(missing)], bootstrap.EXIT_INTEGRITY, "can't read"),
        "other schema": (["--lockfiles", str(other)], bootstrap.EXIT_INTEGRITY, "has schema 99 (need 1)"),
        "changed lockfile": (
            ["--lockfiles", str(changed)],
            bootstrap.EXIT_INTEGRITY,
            "changed after it was generated",
        ),
        "no such python": (
            ["--python", str(tmp_path / "nowhere")],
            bootstrap.EXIT_MACHINE,
            "no Python that the lock covers",
        ),
        "no such bundle": (["--offline", str(tmp_path / "nowhere.tar")], -1, "nowhere.tar"),
    }


def test_bad_input_gets_one_line_a_hint_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = clean_environment(tmp_path)
    for what, (arguments, code, said) in bad_inputs(tmp_path).items():
        prefix = [] if "--prefix" in arguments else ["--prefix", str(home)]
        done = bootstrap_run(["--engine", "host", *prefix, *arguments], env=env)
        assert done.returncode not in (0, bootstrap.EXIT_INTERRUPTED), what
        assert code in (-1, done.returncode), (what, done.stderr)
        assert "Traceback" not in done.stderr, what
        errors = [line for line in done.stderr.splitlines() if "error: " in line]
        assert len(errors) == 1 and said in errors[0], (what, done.stderr)
        assert not home.exists(), what


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        done = bootstrap_run(["--engine", "host", "--prefix", str(folder / "home")], env=clean_environment(tmp_path))
    else:  # root may write anywhere: become somebody who may not, in a child
        code = (
            "import os, sys, runpy; os.setgid(65534); os.setuid(65534); sys.argv = sys.argv[1:];"
            "sys.path.insert(0, os.path.dirname(sys.argv[0])); import bootstrap, pathlib;"
            "\ntry: bootstrap.check_home(pathlib.Path(sys.argv[1]))"
            "\nexcept bootstrap.Failure as problem: sys.exit(bootstrap.fail(problem))"
        )
        shutil.copy(REPO / "bootstrap.py", "/tmp/")
        try:
            done = subprocess.run(
                ["/usr/bin/python3", "-c", code, "/tmp/bootstrap.py", "/usr/share/colab-local"],
                capture_output=True,
                text=True,
                check=False,
                env=clean_environment(tmp_path),
            )
        finally:
            Path("/tmp/bootstrap.py").unlink()
    assert done.returncode == bootstrap.EXIT_MACHINE, done.stderr
    assert "can't be written by" in done.stderr and "--prefix" in done.stderr


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


def test_a_disk_that_is_too_small_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_500_000_000))
    with pytest.raises(bootstrap.Failure, match=r"found 1\.5 GB, need 2\.4 GB"):
        bootstrap.check_disk(tmp_path / "home" / "of" / "mine", 2_400_000_000)


def test_a_port_in_use_is_told_with_a_free_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        home = tmp_path / "home"
        done = bootstrap_run(
            ["--engine", "host", "--port", str(port), "--prefix", str(home)], env=clean_environment(tmp_path)
        )
    assert done.returncode == bootstrap.EXIT_MACHINE
    assert f"port {port} is taken" in done.stderr and "hint: python3 bootstrap.py --port" in done.stderr
    assert not home.exists()


def test_urls_are_rewritten_by_the_longest_rule() -> None:
    rules = bootstrap.parse_rules(
        ["https://conda.anaconda.org/=http://mirror/all/", "https://conda.anaconda.org/conda-forge/=file:///cf/"]
    )
    assert (
        bootstrap.rewrite("https://conda.anaconda.org/conda-forge/noarch/a.conda", rules)
        == "file:///cf/noarch/a.conda"
    )
    assert bootstrap.rewrite("https://conda.anaconda.org/x/a.conda", rules) == "http://mirror/all/x/a.conda"
    assert bootstrap.rewrite("https://github.com/x", rules) == "https://github.com/x"


def test_a_lockfile_without_a_hash_is_refused() -> None:
    with pytest.raises(bootstrap.Failure, match="has no sha256"):
        bootstrap.parse_explicit("@EXPLICIT\nhttps://conda.anaconda.org/conda-forge/noarch/a-1-0.conda\n")


def test_one_package_is_taken_out_of_the_lock_with_its_hashes() -> None:
    text = (LOCKFILES / INDEX["uv"]["file"]).read_text()
    entry = bootstrap.locked_entry(text, "uv")
    assert bootstrap.locked_names(entry) == {"uv": INDEX["uv"]["version"]}
    assert entry.count("--hash=sha256:") == len(INDEX["environments"]["cpu"]["platforms"]) and entry in text
    with pytest.raises(bootstrap.Failure, match="conda is not in the lock"):
        bootstrap.locked_entry(text, "conda")


def test_secrets_are_masked_wherever_text_is_shown() -> None:
    assert bootstrap.mask("get https://me:secret@host/x?token=abc&y=1") == "get https://***@host/x?token=***&y=1"


@pytest.mark.parametrize(
    ("environ", "texts", "url"),
    [
        ({}, [], ""),
        ({}, ["[global]\nindex-url = https://a.example/simple\n"], "https://a.example/simple"),
        (
            {},
            ["[global]\nindex-url = https://a.example/\n", "[install]\nindex-url=https://b.example/"],
            "https://b.example/",
        ),
        (
            {"PIP_INDEX_URL": "https://env.example/"},
            ["[global]\nindex-url = https://a.example/\n"],
            "https://env.example/",
        ),
        ({}, ["index-url = no section\n"], ""),
    ],
)
def test_pips_own_index_is_what_uv_gets(environ: dict[str, str], texts: list[str], url: str) -> None:
    assert bootstrap.pip_index_url(environ, texts) == url


@pytest.mark.parametrize(
    ("out", "err", "line"),
    [
        (
            "",
            "Traceback\n  File\nModuleNotFoundError: No module named 'x'\n",
            "ModuleNotFoundError: No module named 'x'",
        ),
        ("", "Using Python\nerror: Failed to fetch\n  Caused by: refused\n", "error: Failed to fetch"),
        ("working\ngave up\n", "", "gave up"),
    ],
)
def test_of_a_failed_programs_output_the_telling_line_is_shown(out: str, err: str, line: str) -> None:
    assert bootstrap.telling_line(out, err, 1) == f"{line} (exit status 1)"


def test_the_jupyter_command_is_exact() -> None:
    assert bootstrap.jupyter_argv("/p", 8890, "/nb") == [
        "/p/bin/jupyter-notebook",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=8890",
        "--NotebookApp.port_retries=0",
        "--NotebookApp.allow_origin=https://colab.research.google.com",
        "--NotebookApp.allow_credentials=True",
        "--notebook-dir=/nb",
    ]
    assert bootstrap.jupyter_argv("/p", as_root=True)[-1] == "--allow-root"


def test_children_see_no_other_python_or_conda(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CONDARC", "CONDA_PREFIX", "VIRTUAL_ENV"}
    kept = {"PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CACHE_DIR", "https_proxy", "SSL_CERT_FILE"}
    for name in hostile | kept | {"PIP_TARGET", "PIP_USER", "UV_PYTHON", "JUPYTER_CONFIG_DIR"}:
        monkeypatch.setenv(name, "x")
    found = bootstrap.child_environment(EXTRA="1")
    assert kept <= set(found) and found["EXTRA"] == "1"
    assert not {*hostile, "PIP_TARGET", "PIP_USER", "UV_PYTHON", "JUPYTER_CONFIG_DIR"} & set(found)


def snapshot(folder: Path) -> set[tuple[str, float]]:
    """Return every path below a folder with its time of change."""
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_second_run_does_nothing_and_says_how_to_start(installed: Installed, tmp_path: Path) -> None:
    before = snapshot(installed.home)
    arguments = ["--prefix", str(installed.home), "--port", str(free_port())]
    done = bootstrap_run(arguments, env=clean_environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout
    assert str(installed.prefix / "bin" / "jupyter-notebook") in done.stdout
    assert snapshot(installed.home) == before


def test_every_printed_command_is_one_line_that_can_be_pasted(installed: Installed, tmp_path: Path) -> None:
    env = clean_environment(tmp_path) | {"SSH_CONNECTION": "192.0.2.9 50000 192.0.2.7 2222"}
    done = bootstrap_run(["--prefix", str(installed.home), "--port", "8899"], env=env)
    lines = done.stdout.splitlines()
    assert all(line.isascii() and not line.endswith("\\") for line in lines)
    ssh = next(line for line in lines if line.startswith("ssh "))
    assert "-L 8899:localhost:8899 -p 2222 " in ssh and ssh.endswith("@192.0.2.7")


def test_the_receipt_tells_what_was_made_and_only_the_owner_reads_logs(installed: Installed) -> None:
    receipt = bootstrap.current_receipt(installed.home, "cpu")
    assert receipt is not None
    for name, digest in receipt["lock"]["files"].items():
        assert bootstrap.sha256_of(installed.home / "receipts" / receipt["name"] / "lock" / name) == digest
    for path, digest in receipt["lock"]["jupyter"].items():
        assert bootstrap.sha256_of(Path(receipt["prefix"]) / path) == digest
    assert all((log.stat().st_mode & 0o077) == 0 for log in (installed.home / "logs").glob("*.log"))


def test_progress_shows_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar: Any = bootstrap.Progress("Downloading x", 10)
    bar.advance(10)
    bar.close()
    assert capsys.readouterr().err == "Downloading x (0 MB)\n"


def test_a_python_without_pip_is_told_which_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_succeeds", lambda argv: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(bootstrap.Failure) as caught:
        bootstrap.check_host_python(sys.executable)
    assert caught.value.hint == "sudo apt-get install python{}.{}-venv".format(*sys.version_info[:2])


def on_a_terminal(code: str) -> str:
    """Run Python code that may `import bootstrap` on a pseudo-terminal; return what the terminal got."""
    import pty

    argv = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO)!r}); import bootstrap\n{code}"]
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
        "with bootstrap.Waiting('[1/1] Long work'):\n    bootstrap.run(['sh', '-c', 'echo half way >&2; sleep 1.2'])"
    )
    assert "[1/1] Long work  1 s  half way" in seen
    assert (
        seen.replace("\r", "\n").split("\n")[-2].strip() == "[1/1] Long work  1 s"
        or "[1/1] Long work  1 s\r\n" in seen
    )


def test_on_a_terminal_a_download_draws_a_bar(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    url = (tmp_path / "file").as_uri()
    code = f"sys.modules['tqdm'] = None\nbootstrap.download({url!r}, {str(tmp_path / 'copy')!r}, size=5_000_000)"
    assert "Downloading copy:" in on_a_terminal(code) and (tmp_path / "copy").stat().st_size == 5_000_000
