"""scripts/lock.py: what it locks, that it locks the same bytes each time, and what it says when it can't."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import rattler
import requests
import yaml
from conda_lock.models.channel import Channel  # type: ignore[import-untyped]
from conda_lock.src_parser.environment_yaml import parse_environment_file  # type: ignore[import-untyped]
from conda_lock.virtual_package import virtual_package_repo_from_specification  # type: ignore[import-untyped]
from packaging.markers import Marker

from colab_local.base.errors import EXIT_DIFFERS, EXIT_INTEGRITY, EXIT_INTERRUPTED, Failure
from colab_local.base.files import sha256_of
from colab_local.base.programs import child_environment
from colab_local.install.bundling import find_uv
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.lockfiles import parse_explicit, read_index
from colab_local.locking.build import brought_by, locked_requirements
from colab_local.locking.conda import read_pixi_lock
from colab_local.locking.gpu_code import SMALLEST_LIBRARY
from colab_local.locking.pypi import solve_python
from colab_local.locking.render import pixi_toml_text
from colab_local.locking.specs import (
    PYTHONS,
    Target,
    constraints,
    platform_marker,
    read_exceptions,
    read_pins,
    read_specs,
)
from colab_local.locking.wheels import (
    RemoteFile,
    Wheel,
    best_wheel,
    read_wheel,
    wheel_tags,
)
from tests.support.gpu_code import fat, sass
from tests.support.lock_lab import FILES, PLATFORMS, REPO, UV, Lab, QuietHandler, conda_package, record, served

ENVIRONMENTS = REPO / "environments"
LOCKFILES = REPO / "lockfiles"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab whose environments are locked; tests that change anything take `lab`."""
    lab = Lab(tmp_path_factory.mktemp("lock")).fill()
    done = lab.lock()
    assert done.returncode == 0, done.stderr
    return lab


# --- what is locked


def test_declared_machine_decides_not_this_one(made: Lab) -> None:
    """python 3.13.2 needs a newer glibc (or macOS) than is declared; the machine that solves may have it."""
    for platform in PLATFORMS:
        text = (made.lockfiles / "cpu" / f"{platform}.txt").read_text()
        assert f"/{platform}/python-3.13.1-0.conda#sha256:" in text
        assert f"/{platform}/openssl-3.6.0-0.conda#sha256:" in text
        assert "needless" not in text
        urls = [line for line in text.splitlines() if line.startswith("http")]
        assert all(url.startswith("https://conda.anaconda.org/conda-forge/") for url in urls)
        names = [url.rsplit("/", 1)[1].split("-")[0] for url in urls]
        assert names.index("openssl") < names.index("python") < names.index("pip"), "linked before what they need"


def test_one_wheel_per_platform_and_python_and_hosted_versions(made: Lab) -> None:
    """markupsafe has a wheel per platform and Python; psutil is followed but where it has no wheel; six is not."""
    text = (made.lockfiles / "cpu/pypi.txt").read_text()
    blocks = {block.split(" ")[0]: block for block in text.split("\n") if block and block[0] != " "}
    assert "markupsafe==3.0.2" in blocks
    assert "six==1.16.0" not in text
    assert "psutil==5.9.5 ; platform_machine != 'aarch64' \\" in text
    newer = next(line for line in text.splitlines() if line.startswith("psutil==") and "5.9.5" not in line)
    assert newer.endswith(" ; sys_platform == 'linux' and platform_machine == 'aarch64' \\")
    markupsafe = text.partition("markupsafe==")[2].split("\n\n")[0].split("\npsutil")[0]
    assert markupsafe.count("--hash=sha256:") == len(PLATFORMS) * len(PYTHONS)


def test_index_has_what_bootstrap_needs(made: Lab) -> None:
    """The schema that bootstrap.py reads, and its own reader takes it."""
    index = read_index(made.lockfiles)
    assert index["schema"] == 1 and index["python"] == ["3.11", "3.12", "3.13"]
    assert index["uv"]["version"] == UV
    assert sorted(index["installers"]) == ["anaconda", "miniforge", "pixi"]
    assert sorted(index["jupyter"]) == ["prefix/etc/settings.json", "site-packages/extension/__init__.py"]
    linux = index["environments"]["cpu"]["platforms"]["linux-64"]
    assert linux["requires"] == {"cpu": ["avx"], "glibc": "2.28"}
    assert index["environments"]["cpu"]["platforms"]["osx-arm64"]["requires"] == {"macos": "12.0"}
    gpu = index["environments"]["gpu"]["platforms"]["linux-64"]["requires"]
    assert gpu == {"compute_capability": "6.0", "cpu": ["avx"], "driver": "525.60.13", "glibc": "2.28"}
    assert linux["bytes"]["conda_download"] == 5 * 1000  # five records of 1000 bytes
    assert 0 < linux["bytes"]["pypi_download"] < linux["bytes"]["pypi_installed"]
    for name, entry in index["environments"].items():
        assert entry["python"] == "3.13.1"
        for file in [entry["pypi"], *entry["platforms"].values()]:
            assert sha256_of(made.lockfiles / file["file"]) == file["sha256"], name


def test_pixi_lock_reads_back_the_same_packages(made: Lab) -> None:
    """py-rattler's reader, pixi.lock against the explicit files; pixi.toml has the specs."""
    content = rattler.LockFile.from_path(made.lockfiles / "pixi.lock")
    seen = 0
    for name, environment in content.environments():
        for platform in environment.platforms():
            packages = environment.conda_repodata_records_for_platform(platform) or []
            found = {record.url: record.sha256.hex() for record in packages if record.sha256}
            folder = "cpu" if name == "default" else name
            explicit = (made.lockfiles / folder / f"{platform.name}.txt").read_text()
            assert found == dict(parse_explicit(explicit))
            seen += 1
    assert seen == 7
    manifest = tomllib.loads((made.lockfiles / "pixi.toml").read_text())
    assert manifest["feature"]["gpu"]["platforms"] == ["linux-64"]
    assert manifest["feature"]["cpu"]["dependencies"] == {"python": "3.13.*", "pip": "*", "uv": ">=0.9"}
    assert "--require-hashes -r $COLAB_LOCAL_ENV/pypi.txt" in manifest["tasks"]["install"]
    assert {
        name: feature["activation"]["env"]["COLAB_LOCAL_ENV"] for name, feature in manifest["feature"].items()
    } == {
        "cpu": "cpu",
        "gpu": "gpu",
    }
    # one task for all, of which pixi knows whose it is; and the least machine, that of virtual-packages.yml
    assert manifest["environments"] == {"default": ["cpu"], "cpu": ["cpu"], "gpu": ["gpu"]}
    least = {"linux": "4.18", "libc": {"family": "glibc", "version": "2.28"}}
    assert manifest["feature"]["cpu"]["system-requirements"] == least | {"macos": "12.0"}
    assert manifest["feature"]["gpu"]["system-requirements"] == least | {"cuda": "12.0"}


def test_packages_txt_is_for_people(made: Lab) -> None:
    """Version, licence, size and how a package stands to hosted Colab's."""
    lines = (made.lockfiles / "cpu/packages.txt").read_text().splitlines()
    rows = {line.split()[0]: line for line in lines if line and not line.startswith(("#", " "))}
    assert "followed" in rows["markupsafe"] and "BSD" in rows["markupsafe"] and " kB" in rows["markupsafe"]
    assert "newer than 1.16.0" in rows["six"] and "MIT" in rows["six"]
    assert any("1 newer" in line or "2 newer" in line for line in lines)
    assert any("Python 3.13.1: older than 3.13.15." in line for line in lines)
    assert any(line == "  six: a test" for line in lines)


# --- same inputs, same bytes


def test_same_bytes_whatever_the_machine_says(made: Lab, lab: Lab) -> None:
    """Another time zone, language, hash seed and folder; from the folder and over HTTP, as from a mirror."""
    shutil.rmtree(lab.lockfiles)
    odd = {
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "COLUMNS": "20",
        "CONDA_OVERRIDE_GLIBC": "2.99",
    }
    with served(lab.channel.parent) as url:
        done = lab.lock(channel=f"{url}/conda-forge", **odd)
    assert done.returncode == 0, done.stderr
    assert lab.tree() == made.tree()
    times = {path: path.stat().st_mtime_ns for path in lab.lockfiles.rglob("*")}
    again = lab.lock()
    assert again.returncode == 0 and "nothing to change" in again.stdout
    assert times == {path: path.stat().st_mtime_ns for path in lab.lockfiles.rglob("*")}, "written without cause"


def test_gpu_code_of_conda_packages_is_read_where_the_channel_has_them(lab: Lab) -> None:
    """From a folder and over HTTP alike; a folder of records alone leaves it to what their builders say."""
    path = lab.environments / "gpu.yml"
    path.write_text(path.read_text().replace("  - pip\n", "  - libcudnn\n  - pip\n", 1))
    build, place = "h0_0", "linux-64/libcudnn-9.1.0-h0_0.conda"
    library = fat(*sass(60, 70, 75, 80, 90)).ljust(SMALLEST_LIBRARY, b"\0")
    package = conda_package(lab.channel / place, {"lib/libcudnn_ops.so.9": library})
    sha256, packages = sha256_of(package), lab.read_subdir("linux-64")
    told = {"build": build, "sha256": sha256, "size": package.stat().st_size}
    packages.update([record("libcudnn", "9.1.0", "linux-64", [], **told)])
    lab.write_subdir("linux-64", packages)
    (lab.environments / "gpu-recipes.yml").write_text(
        f"gpu:\n  packages:\n    libcudnn-9.1.0-{build}: {{code: '90', source: their word}}\n"
    )

    def read(channel: str = "") -> tuple[dict[str, Any], list[str], bool]:
        shutil.rmtree(lab.lockfiles, ignore_errors=True)
        done = lab.lock(channel=channel)
        assert done.returncode == 0, done.stderr
        found = json.loads((lab.lockfiles / "gpu/gpu-code.json").read_text())["wheels"][sha256]
        entry = json.loads((lab.lockfiles / "index.json").read_text())["environments"]["gpu"]
        cards = entry["platforms"]["linux-64"]["requires"]["gpu"]
        return found, sorted(cards), "note" in next(iter(cards.values()))

    itself = {"file": Path(place).name, "libraries": {"libcudnn_ops.so.9": {"60 70 75 80 90": 1}}}
    cards = ["6.0", "6.1", "6.2", "7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0"]
    assert read() == (itself, cards, False)
    with served(lab.channel.parent) as url:
        assert read(f"{url}/conda-forge") == (itself, cards, False)
    locked = lab.tree()
    content = package.read_bytes()
    package.unlink()
    assert lab.lock("--check").returncode == 0 and lab.tree() == locked, "what was read once is known"
    by_word, cards, noted = read()
    assert by_word["libraries"] == {"their word": {"90": 1}} and noted
    package.write_bytes(content[:-1] + b"x")
    done = lab.lock()
    assert done.returncode == EXIT_INTEGRITY and "is not the file that the lock names" in done.stderr


def test_check_is_quiet_about_newer_packages_and_a_full_run_takes_them(lab: Lab) -> None:
    """Something newer is no reason for --check to fail; solving anew takes it."""
    before = lab.tree()
    for platform in PLATFORMS:
        packages = lab.read_subdir(platform)
        packages.update([record("openssl", "3.7.0", platform, [])])
        packages["openssl-3.6.0-0.conda"] |= {"license": "Apache-2.0", "depends": []}  # mended, as channels do
        lab.write_subdir(platform, packages)
    assert lab.lock("--check").returncode == 0
    one = lab.lock("cpu/linux-aarch64")
    assert one.returncode == 0, one.stderr
    changed = {path for path, content in lab.tree().items() if content != before[path]}
    assert changed == {"cpu/linux-aarch64.txt", "cpu/conda-lock.yml", "cpu/packages.txt", "pixi.lock", "index.json"}
    assert "openssl: 3.6.0 0 -> 3.7.0 0" in one.stdout
    gpu = lab.lock("gpu")
    assert gpu.returncode == 0 and "gpu/linux-64.txt" in gpu.stdout and "cpu/" not in gpu.stdout
    whole = lab.lock()
    assert "cpu/osx-arm64.txt" in whole.stdout and "gpu/" not in whole.stdout


def test_check_says_what_no_longer_fits_and_writes_nothing(lab: Lab) -> None:
    """A changed spec in each layer, a package that was taken back, and one whose file was replaced."""
    before = lab.tree()
    (lab.environments / "gpu.yml").write_text(FILES["gpu.yml"].replace("- pip\n", "- pip\n  - openssl <3.6\n"))
    done = lab.lock("--check")
    assert done.returncode == 1 and "openssl: 3.6.0 0 -> 3.5.0 0" in done.stdout
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: the lock doesn't match its specs: see above"
    assert hint.startswith("hint: ") and hint.endswith("scripts/lock.py")
    (lab.environments / "gpu.yml").write_text(FILES["gpu.yml"].replace("- six", "- six ==1.15.0\n      - toolz"))
    done = lab.lock("--check")
    assert done.returncode == 1
    assert " -> 1.15.0" in done.stdout and "toolz: absent -> " in done.stdout
    (lab.environments / "gpu.yml").write_text(FILES["gpu.yml"])
    packages = lab.read_subdir("linux-aarch64")
    gone = packages.pop("openssl-3.6.0-0.conda")
    lab.write_subdir("linux-aarch64", packages)
    assert "openssl: 3.6.0 0 -> 3.5.0 0" in lab.lock("--check").stdout
    lab.write_subdir("linux-aarch64", {**packages, "openssl-3.6.0-0.conda": {**gone, "sha256": "0" * 64}})
    done = lab.lock("--check")
    assert done.returncode == 1 and "0" * 64 in done.stdout
    assert lab.tree() == before


def test_index_only_follows_the_jupyter_files(lab: Lab) -> None:
    """Changed settings change index.json alone, in a second and without a network."""
    (lab.environments / "jupyter/prefix/etc/settings.json").write_text('{"a": 1}\n')
    (lab.environments / "jupyter/site-packages/__pycache__").mkdir()
    (lab.environments / "jupyter/site-packages/__pycache__/x.pyc").write_text("")
    before = lab.tree()
    check = lab.lock("--index-only", "--check", UV_OFFLINE="1")
    assert check.returncode == 1 and "index.json" in check.stdout
    assert lab.lock("--index-only", UV_OFFLINE="1").returncode == 0
    assert {path for path, content in lab.tree().items() if content != before[path]} == {"index.json"}
    assert lab.lock("--index-only", "--check").returncode == 0


def test_follow_takes_hosted_colabs_versions(lab: Lab) -> None:
    """From a freeze only the names that are in the locks are kept; the next lock follows them."""
    freeze = lab.root / "freeze.txt"
    freeze.write_text("MarkupSafe==3.0.3\ntorch==2.0+cu128\nsix==1.16.0\npsutil==5.9.5\nunheard @ file:///x\n")
    done = lab.lock("--follow", str(freeze), "--date", "2026-11-01")
    assert done.returncode == 0, done.stderr
    pins = (lab.environments / "colab-pins.txt").read_text()
    assert "2026-11-01" in pins.splitlines()[0]
    names = [line for line in pins.splitlines() if not line.startswith("#")]
    assert names == ["markupsafe==3.0.3", "psutil==5.9.5", "python==3.13.15", "six==1.16.0"]
    assert "markupsafe: 3.0.2 -> 3.0.3" in done.stdout


# --- what it says when it can't


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["nosuch"],
            2,
            "no environment or platform 'nosuch' (there are: cpu, gpu, linux-64, linux-aarch64, osx-arm64)",
        ),
        (["--channel", "/nonexistent"], 1, "no conda channel in /nonexistent"),
        (["--channel", "http://127.0.0.1:9/conda-forge"], 5, "can't be read"),
        (["--follow", "/nonexistent", "--date", "2026-11-01"], 5, "/nonexistent can't be read"),
        (["--follow", "/nonexistent"], 2, "--follow needs the date"),
        (["--environments", "/nonexistent"], 1, "can't read /nonexistent/virtual-packages.yml"),
    ],
)
def test_bad_input_is_one_error_line(lab: Lab, arguments: list[str], code: int, says: str) -> None:
    """Exit code and one line, no traceback; lockfiles stay."""
    before = lab.tree()
    argv = [sys.executable, str(REPO / "scripts/lock.py"), "--environments", str(lab.environments)]
    argv += ["--channel", str(lab.channel), "--lockfiles", str(lab.lockfiles), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and says in errors[0] and "Traceback" not in done.stderr
    assert lab.tree() == before


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("gpu.yml", "python 3.13.*", "python 3.77.*", "gpu/linux-64 has no solution: "),
        ("gpu.yml", "- six", "- six ==99", "there is no version of six==99"),
        ("gpu.yml", "- six", "- http_over_ws_no_such_package_here", "not found in the package registry"),
        # the only release is a source archive
        ("gpu.yml", "- six", "- docopt ==0.6.2", "docopt"),
        ("gpu.yml", "- six", "- six >>> 3", "gpu.yml has a requirement that can't be read: six >>> 3"),
        ("gpu.yml", "conda-forge", "bioconda", "gpu.yml must name one channel, conda-forge"),
        ("gpu.yml", "dependencies:", "dependencies: [", "gpu.yml is no YAML"),
        (
            "platforms.yml",
            "linux-aarch64",
            "linux-riscv64",
            "a platform without virtual packages (found linux-riscv64)",
        ),
        ("colab-pins.txt", "six==", "six=", "colab-pins.txt, line 5: need name==version (found 'six=1.16.0')"),
        ("gpu.yml", "channels:", "canals:", "gpu.yml/channels is missing or malformed"),
        ("gpu.yml", "- pip:", "- pop:", "conda specs and one list of requirements under pip:"),
        ("platforms.yml", "accelerator: gpu", "accelerator: tpu", "platforms.yml/gpu/accelerator is missing or malf"),
        ("colab-exceptions.yml", "reason: a test", "cause: a test", "colab-exceptions.yml/six/reason is missing"),
        ("virtual-packages.yml", "subdirs:", "folders:", "virtual-packages.yml/subdirs is missing or malformed"),
        ("installers.json", "{", "[", "installers.json is no YAML"),
    ],
)
def test_specs_that_cannot_be_locked(lab: Lab, file: str, old: str, new: str, says: str) -> None:
    """The error names the file or the package; nothing is written."""
    path = lab.environments / file
    path.write_text(path.read_text().replace(old, new, 1))
    before = lab.tree()
    done = lab.lock("gpu")
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and says in errors[0] and "Traceback" not in done.stderr
    assert lab.tree() == before


def test_a_damaged_lock_is_solved_anew_in_full_and_refused_in_part(made: Lab, lab: Lab) -> None:
    """What is there is needed only where something is to stay as it is."""
    for name in ("index.json", "pixi.lock"):
        content = (lab.lockfiles / name).read_bytes()
        (lab.lockfiles / name).write_bytes(content[: len(content) // 2] + b"\xff")
        done = lab.lock("gpu")
        assert done.returncode != 0 and name in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 2 and done.stderr.startswith("error: "), done.stderr
        assert lab.lock().returncode == 0 and lab.tree() == made.tree()


def test_a_package_without_sha256_is_refused(lab: Lab) -> None:
    """An old channel gives md5 alone; a lock of such a package would vouch for nothing."""
    packages = lab.read_subdir("linux-64")
    del packages["openssl-3.6.0-0.conda"]["sha256"]
    lab.write_subdir("linux-64", packages)
    done = lab.lock("gpu")
    assert done.returncode == 1 and "openssl-3.6.0-0.conda has no sha256 in the channel" in done.stderr


@pytest.mark.parametrize("module", ["rattler", "packaging", "yaml", "requests", "tqdm"])
def test_missing_python_package_is_one_line_with_a_cure(module: str) -> None:
    """Not an ImportError's traceback."""
    code = (
        f"import sys, runpy; sys.modules[{module!r}] = None; runpy.run_path('scripts/lock.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: scripts/lock.py needs the Python package {module!r}",
        f"hint: {shlex.quote(sys.executable)} -m pip install uv py-rattler packaging pyyaml requests tqdm",
    ]


def test_missing_uv_is_one_line_with_a_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """uv is looked for beside Python, on PATH, and in what is installed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="needs uv") as caught:
        find_uv()
    assert caught.value.hint == f"{tmp_path}/python -m pip install uv"


def test_interrupted_leaves_everything_as_it_was(lab: Lab) -> None:
    """Ctrl-C while the channel keeps us waiting: one line, code 130, no file written, no temporary folder left."""

    class Slow(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(3)
            super().do_GET()

        do_HEAD = do_GET

    asked: list[str] = []
    before = lab.tree()
    (lab.root / "tmp").mkdir()
    with served(lab.channel.parent, Slow) as url:
        argv = [sys.executable, str(REPO / "scripts/lock.py"), "--channel", f"{url}/conda-forge"]
        argv += ["--environments", str(lab.environments), "--lockfiles", str(lab.lockfiles)]
        env = {**os.environ, "RATTLER_CACHE_DIR": str(lab.root / "rattler"), "TMPDIR": str(lab.root / "tmp")}
        with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as child:
            deadline = time.monotonic() + 60
            while not asked and time.monotonic() < deadline:
                time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=60)
    assert child.returncode == EXIT_INTERRUPTED
    assert said.splitlines()[-2:] == ["error: interrupted", "hint: git status lockfiles"]
    assert lab.tree() == before
    assert not list((lab.root / "tmp").iterdir())


# --- pure parts


def test_best_wheel_is_that_of_the_least_machine() -> None:
    """Neither one that the least machine can't use nor a generic one where there is a better."""
    virtual = {"linux-64": {"__glibc": "2.28"}, "osx-arm64": {"__osx": "12.0"}}

    def chosen(target: Target, *tags: str) -> str:
        wheels = [Wheel(f"x-1-{tag}.whl", "", tag, 1) for tag in tags]
        found = best_wheel(wheels, wheel_tags(target, virtual[target[0]]))
        return found.sha256 if found else ""

    linux, mac = ("linux-64", "3.13"), ("osx-arm64", "3.13")
    old, new, newest = (f"cp313-cp313-manylinux_2_{glibc}_x86_64" for glibc in (17, 28, 34))
    assert chosen(linux, old, new, newest) == new
    assert chosen(linux, newest) == ""
    assert chosen(linux, "py3-none-any", "cp311-abi3-manylinux2014_x86_64") == "cp311-abi3-manylinux2014_x86_64"
    assert chosen(linux, "cp313-cp313t-manylinux_2_17_x86_64", "cp313-cp313-musllinux_1_2_x86_64") == ""
    assert chosen(linux, "cp312-cp312-manylinux_2_17_x86_64", "cp313-cp313-manylinux_2_17_aarch64") == ""
    assert chosen(linux, "py2.py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64") != ""
    mac12, mac14 = "cp313-cp313-macosx_12_0_arm64", "cp313-cp313-macosx_14_0_arm64"
    assert chosen(mac, mac12, mac14, "cp313-cp313-macosx_10_13_universal2") == mac12
    assert chosen(mac, mac14, "cp313-cp313-macosx_12_0_x86_64") == ""


class RangeHandler(QuietHandler):
    """A file server that knows ranges, as package indexes do, and counts what it sends."""

    sent = 0

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        type(self).sent += len(part)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.mark.parametrize("handler", [RangeHandler, QuietHandler])
def test_a_wheel_is_read_without_downloading_it(tmp_path: Path, handler: type[SimpleHTTPRequestHandler]) -> None:
    """Size on disk and licence come from the archive's end; a server without ranges is read all the same."""
    path = tmp_path / "big-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("big/data.bin", os.urandom(3 << 20))
        archive.writestr("big/__init__.py", "x = 1\n" * 1000, zipfile.ZIP_DEFLATED)
        archive.writestr("big-1.dist-info/METADATA", "Name: big\nLicense-Expression: MIT\n")
    with served(tmp_path, handler) as url:
        wheel = Wheel(path.name, f"{url}/{path.name}", "", path.stat().st_size)
        with requests.Session() as session:
            about = read_wheel(session, wheel)
    assert about.licence == "MIT"
    assert about.installed == (3 << 20) + 6000 + len("Name: big\nLicense-Expression: MIT\n")
    if handler is RangeHandler:
        assert 0 < RangeHandler.sent < 200_000


def test_remote_file_reads_like_a_file(tmp_path: Path) -> None:
    """Every way in which zipfile may read, against the same bytes in memory."""
    content = os.urandom(300_001)
    (tmp_path / "x").write_bytes(content)
    with served(tmp_path, RangeHandler) as url, requests.Session() as session:
        remote, local = RemoteFile(session, f"{url}/x", len(content)), io.BytesIO(content)
        moves = [
            (0, 2, -1),
            (-100, 2, 50),
            (65_536, 0, 65_536),
            (10, 1, 200_000),
            (5, 0, 0),
            (0, 2, 10),
            (300_000, 0, 9),
        ]
        for offset, whence, count in moves:
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            assert remote.read(count) == local.read(count)
            assert remote.tell() == local.tell()


# --- the repository's own specs and lock


def test_specs_are_ordinary_files_of_their_kind(tmp_path: Path) -> None:
    """conda-lock's own parsers take them; every bound in the pip section has a reason beside it."""
    specs = read_specs(ENVIRONMENTS)
    platforms = {name: sorted(spec.platforms) for name, spec in specs.items()}
    assert platforms["cpu"] == sorted(PLATFORMS) and platforms["gpu"] == ["linux-64"]
    (tmp_path / "names.json").write_text("{}")  # conda-lock would download what conda calls Python's packages
    reasoned: set[str] = set()
    for name, spec in sorted(specs.items(), key=lambda item: item[0] != "cpu"):
        path = ENVIRONMENTS / f"{name}.yml"
        if not path.exists():  # a runtime: the packages of another file, with other versions
            continue
        assert set(yaml.safe_load(path.read_text())) == {"name", "channels", "dependencies"}
        parsed = parse_environment_file(path, list(spec.platforms), mapping_url=(tmp_path / "names.json").as_uri())
        assert Channel.from_string("conda-forge") in parsed.channels
        for platform in spec.platforms:
            names = {dependency.name for dependency in parsed.dependencies[platform]}
            assert {"python", "pip", "uv", "keras", "notebook", "jupyter-http-over-ws"} <= names, name
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if any(sign in line for sign in ("==", ">=", "<", "3.13.*")) and not line.strip().startswith("#"):
                if line.partition("#")[0].strip() in reasoned:  # cpu.yml says it
                    continue
                above = next(text for text in reversed(lines[:number]) if " ==" not in text and " >=" not in text)
                assert "# " in line or above.strip().startswith("#"), f"{path.name}: no reason: {line}"
                if name == "cpu":
                    reasoned.add(line.partition("#")[0].strip())
    repository = virtual_package_repo_from_specification(ENVIRONMENTS / "virtual-packages.yml")
    assert {package.name for package in repository.packages_by_subdir} >= {"__glibc", "__osx", "__cuda", "__unix"}
    assert "__cuda" not in specs["cpu"].virtual["linux-64"] and "__cuda" in specs["gpu"].virtual["linux-64"]


def test_pins_are_our_own_list_of_what_we_lock() -> None:
    """Every pin has its version in each lock that follows its file, but for the exceptions, which have reasons."""
    exceptions = read_exceptions(ENVIRONMENTS)
    every_pin: set[str] = set()
    locked: dict[str, dict[str, set[str]]] = {}  # the file with the pins -> {package: versions in its locks}
    for name, spec in read_specs(ENVIRONMENTS).items():
        for line in locked_requirements(LOCKFILES / name / "pypi.txt"):
            package, _, version = line.partition(" ")[0].partition("==")
            locked.setdefault(spec.pins, {}).setdefault(package, set()).add(version)
    for file, versions in locked.items():
        pins = read_pins(ENVIRONMENTS, file)
        every_pin |= set(pins)
        for package, version in pins.items():
            if package in versions and package not in exceptions:
                assert versions[package] == {version}, f"{package} in {file}"
    assert set(exceptions) <= every_pin and all(entry["reason"] for entry in exceptions.values())
    pins, versions = read_pins(ENVIRONMENTS), locked["colab-pins.txt"]
    assert set(pins) - set(exceptions) - {"python"} <= set(versions)  # the list holds what we lock, and no more
    assert versions["tensorflow"] == versions["tensorflow-cpu"] == {pins["tensorflow"]}


def test_installers_are_the_projects_own_releases() -> None:
    """Each from its project's own server, by version, with a SHA-256; a platform for each that we lock."""
    index = json.loads((LOCKFILES / "index.json").read_text())
    at = {
        "miniforge": "https://github.com/conda-forge/miniforge/releases/download/{version}/",
        "anaconda": "https://repo.anaconda.com/archive/Anaconda3-{version}-",
        "pixi": "https://github.com/prefix-dev/pixi/releases/download/v{version}/",
    }
    for name, release in index["installers"].items():
        for platform, file in release["files"].items():
            assert file["url"].startswith(at[name].format(version=release["version"])), platform
            assert len(bytes.fromhex(file["sha256"])) == 32
    assert (
        set(index["installers"]["miniforge"]["files"]) == set(index["installers"]["pixi"]["files"]) == set(PLATFORMS)
    )


def test_newest_machines_choose_the_locked_wheels_too() -> None:
    """For no package are two locked wheels such that a newer glibc or macOS would make an installer choose otherwise.

    uv's own answer for the least machine is in ci/check_lockfiles.py; this is about the others.
    """
    newest = {"__glibc": "2.60", "__osx": "30.0"}
    checked, conda = 0, read_pixi_lock(LOCKFILES / "pixi.lock")
    for name, spec in read_specs(ENVIRONMENTS).items():
        pins = constraints(read_pins(ENVIRONMENTS, spec.pins), read_exceptions(ENVIRONMENTS))
        locked = locked_requirements(LOCKFILES / name / "pypi.txt")
        order = {target: wheel_tags(target, newest) for target in spec.targets}
        for package in solve_python(spec, [*pins, *locked], brought_by(spec, conda[name])):
            choose = partial(best_wheel, set(package.wheels.values()))
            for target, wheel in package.wheels.items():
                assert choose(order[target]) == wheel, f"{package.name} on {target}"
                checked += 1
    assert checked > 1000


def test_pixi_task_installs_the_python_layer(tmp_path: Path) -> None:
    """`pixi run install` in an environment like pixi's, by deno_task_shell, as pixi runs it.

    pixi itself is not to be had from a package registry; deno, for whose tasks the library was written, is.
    """

    def run(task: str) -> str:
        argv = ["deno", "task", "--quiet", "--eval", task]
        done = subprocess.run(argv, cwd=LOCKFILES, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    series = f"{sys.version_info.major}.{sys.version_info.minor}"
    specs = read_specs(ENVIRONMENTS)
    manifest = tomllib.loads(pixi_toml_text(specs, dict.fromkeys(specs, series)))
    prefix = tmp_path / "my envs" / "cpu"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(prefix)], check=True)
    path = f"{Path(find_uv()).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        **child_environment(),
        "CONDA_PREFIX": str(prefix),
        **manifest["feature"]["cpu"]["activation"]["env"],
        "PATH": path,
        "DENO_DIR": str(tmp_path / "deno"),
    }
    tasks = manifest["tasks"]
    for _ in range(2):  # `jupyter` depends on it, so it runs each time
        run(tasks["install"])
    code = "import importlib.metadata as m, colab_local_jupyter; print(m.version('notebook'), m.version('keras'))"
    shown = subprocess.run([prefix / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout
    pins = read_pins(ENVIRONMENTS)
    assert shown.split() == [pins["notebook"], pins["keras"]]
    if Marker(platform_marker(["linux-64"])).evaluate():
        # it has a wheel for glibc 2.31 too, which uv would choose here if the lock let it
        (wheel,) = prefix.glob("lib/python3*/site-packages/tensorboard_data_server-*.dist-info/WHEEL")
        assert "Tag: py3-none-any" in wheel.read_text()
    overlay = ENVIRONMENTS / "jupyter/prefix"
    for file in overlay.rglob("*"):
        assert (prefix / file.relative_to(overlay)).exists()
    # and that is all that Colab needs: the command of the other task is bootstrap.py's, with both extensions loaded
    assert tasks["jupyter"]["depends-on"] == ["install"]
    words = run(f"printf '%s\\n' {tasks['jupyter']['cmd']}").splitlines()
    assert words == jupyter_argv(str(prefix), notebook_dir=env["HOME"])
    tried = subprocess.run(
        [prefix / "bin/python", REPO / "colab_local/install/smoke_test.py", "serve"], env=env, capture_output=True
    )
    assert b"colab_local_jupyter" in tried.stdout, tried.stderr


# --- how old it is


def test_age_names_what_is_behind_and_fails_for_it(lab: Lab) -> None:
    """A newer openssl in the channel; Python is kept by the specs, whatever the channel has."""
    well = lab.lock("--age")
    assert well.returncode == 0 and "openssl 3.6.0: the newest" in well.stdout, well.stderr
    assert "The newest conda package in the lock is of 2026-05-" in well.stdout
    assert "Age: its newest conda package is " in (lab.lockfiles / "cpu/packages.txt").read_text()
    before = lab.tree()
    for subdir in ("linux-64", "linux-aarch64"):
        packages = lab.read_subdir(subdir)
        newer = {**packages["openssl-3.6.0-0.conda"], "version": "3.6.9"}
        lab.write_subdir(subdir, {**packages, "openssl-3.6.9-0.conda": newer})
    late = lab.lock("--age")
    assert late.returncode == EXIT_DIFFERS
    assert "openssl 3.6.0: behind, the newest is 3.6.9" in late.stdout
    assert "error: behind the channel: openssl" in late.stderr and "python 3.14" not in late.stdout
    assert lab.tree() == before  # it only says so
