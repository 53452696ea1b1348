"""ci/check_lockfiles.py on the repository's own lock: whatever is damaged in it is seen, without a network.

After each damage index.json is made to vouch for the file again: it is not its digest that gives it away.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ci import check_lockfiles as check
from colab_local.base.files import sha256_of
from colab_local.install.lockfiles import DEFAULT_ENVIRONMENT
from colab_local.locking.build import refresh_index
from colab_local.locking.conda import read_pixi_lock
from tests.support.lock_lab import REPO, Lab

Edit = Callable[[str], str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A copy of the repository's lock, and of its conda records as a channel; gpu-forge's are one of their own."""
    root = tmp_path_factory.mktemp("made")
    for name in ("environments", "lockfiles"):
        shutil.copytree(REPO / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".pixi"))
    found: dict[tuple[Lab, str], dict[str, Any]] = {}
    for name, environment in read_pixi_lock(REPO / "lockfiles/pixi.lock").items():
        channel = Lab(root / "forge" if name == "gpu-forge" else root)
        for records in environment.values():
            for record in records:
                packages = found.setdefault((channel, record.url.split("/")[-2]), {})
                packages[record.file_name] = json.loads(record.to_json())
    for (channel, subdir), packages in found.items():
        channel.write_subdir(subdir, packages)
    return Lab(root)


@pytest.fixture
def lab(made: Lab, tmp_path: Path) -> Lab:
    """A copy of it, to be changed at will."""
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)


def channels(lab: Lab) -> list[str]:
    """Return the options that name a lab's channels."""
    return ["--channel", str(lab.channel), "--channel", f"gpu-forge={Lab(lab.root / 'forge').channel}"]


def problems(lab: Lab, *options: str) -> list[str]:
    """Return what the check finds without a network, against the lock's own records as a channel."""
    argv = ["--environments", str(lab.environments), "--lockfiles", str(lab.lockfiles), "--offline", *options]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = check.main([*argv, *channels(lab)])
    found = [line.strip() for line in out.getvalue().splitlines() if line.startswith("       ")]
    assert (code != 0) == bool(found or err.getvalue())
    return found or err.getvalue().splitlines()


def is_seen(lab: Lab) -> bool:
    """Return whether the check finds anything: by one environment if it can, which takes a third of the time."""
    return bool(problems(lab, DEFAULT_ENVIRONMENT) or problems(lab))


def vouch(lab: Lab) -> None:
    """Make index.json vouch for all files as they are, byte for byte."""
    files = refresh_index(lab.environments, lab.lockfiles)
    (lab.lockfiles / "index.json").write_bytes(files["index.json"].encode())


def damage(lab: Lab, path: str, edit: Edit) -> None:
    """Change one file, path: below the lab; index.json then vouches for it."""
    file = lab.root / path
    before = file.read_bytes().decode()
    after = edit(before)
    assert after != before, "nothing to damage"
    file.write_bytes(after.encode())
    if path != "lockfiles/index.json":
        with contextlib.suppress(Exception):  # some damage can't be read any more
            vouch(lab)


def swap(one: str, two: str, after: str = "", count: int = 1) -> Edit:
    """Return an edit that replaces a text, the first one after `after`."""

    def edit(text: str) -> str:
        at = text.index(after)
        return text[:at] + text[at:].replace(one, two, count)

    return edit


def sub(pattern: str, replacement: str, after: str = "") -> Edit:
    """Return an edit by a regular expression, the first match after `after`."""

    def edit(text: str) -> str:
        at = text.index(after)
        return text[:at] + re.sub(pattern, replacement, text[at:], count=1, flags=re.MULTILINE)

    return edit


def another_environment(text: str) -> str:
    """Add an environment to pixi.lock: the first one's packages under another name."""
    block = re.search(r"(?ms)^environments:\n  \w+:\n(.*?)^  \w+:\n", text)
    assert block
    return text.replace("environments:\n", f"environments:\n  another:\n{block.group(1)}", 1)


def another_platform(text: str) -> str:
    """Add a platform to the environment gpu in pixi.lock."""
    at = text.index("  gpu:\n")
    block = re.search(r"(?m)^      linux-64:\n((?:      - .*\n)+)", text[at:])
    assert block
    return text[: at + block.end()] + f"      linux-aarch64:\n{block.group(1)}" + text[at + block.end() :]


def unused_record(text: str) -> str:
    """Add a record to pixi.lock that no environment names."""
    block = re.search(r"(?ms)^packages:\n(- conda: .*?)(?=^- conda: )", text)
    assert block
    return text + block.group(1).replace("_openmp_mutex-", "_openmp_mutexes-")


LOCK, TOML, INDEX = "lockfiles/pixi.lock", "lockfiles/pixi.toml", "lockfiles/index.json"
PYPI, SHOWN, YML = "lockfiles/cpu/pypi.txt", "lockfiles/cpu/packages.txt", "lockfiles/cpu/conda-lock.yml"
EXPLICIT, INSTALLERS, HOST = "lockfiles/cpu/linux-64.txt", "environments/installers.json", "lockfiles/host.txt"
CHANNEL = "https://conda.anaconda.org/conda-forge/"
DAMAGES: dict[str, tuple[str, Edit]] = {
    # installers
    "installer: another project": (
        INSTALLERS,
        swap("conda-forge/miniforge/releases/download", "x/miniforge/releases/x"),
    ),
    "installer: http": (
        INSTALLERS,
        swap('"https://github.com/conda-forge', '"http://github.com/conda-forge', '"url"'),
    ),
    "installer: version": (INSTALLERS, sub(r'"version": "\d', '"version": "9', '"miniforge"')),
    "installer: platform": (INSTALLERS, swap("-Linux-aarch64.sh", "-Linux-x86_64.sh")),
    "installer: pixi's target": (INSTALLERS, swap("aarch64-apple-darwin", "x86_64-apple-darwin")),
    "installer: size": (INSTALLERS, sub(r'"size": \d+', '"size": 12')),
    "installer: no hash": (INSTALLERS, sub(r'"sha256": "[0-9a-f]{64}"', '"sha256": "0000"')),
    "installer: source": (INSTALLERS, swap("repo.anaconda.com/archive", "repo.anaconda.com/miniconda", '"source"')),
    "installer: hash in index.json": (INDEX, sub(r'"sha256": "[0-9a-f]', '"sha256": "g', '"installers"')),
    "installer: size in index.json": (INDEX, sub(r'"size": \d+', '"size": 7', '"installers"')),
    # pixi.lock
    "pixi.lock: another channel": (LOCK, swap(f"- url: {CHANNEL}", "- url: https://conda.anaconda.org/bioconda/")),
    "pixi.lock: an extra channel": (LOCK, swap(f"- url: {CHANNEL}\n", f"- url: {CHANNEL}\n    - url: {CHANNEL}x/\n")),
    "pixi.lock: an extra platform": (LOCK, another_platform),
    "pixi.lock: an extra environment": (LOCK, another_environment),
    "pixi.lock: no default": (LOCK, swap("  default:\n", "  defaults:\n")),
    "pixi.lock: an unused record": (LOCK, unused_record),
    "pixi.lock: licence": (LOCK, sub(r"^  license: .*$", "  license: MIT-0", "/openssl-")),
    "pixi.lock: timestamp": (LOCK, sub(r"^  timestamp: \d+", "  timestamp: 1700000000000", "packages:\n- conda")),
    "pixi.lock: size": (LOCK, sub(r"^  size: \d", "  size: 77", "packages:\n- conda")),
    "pixi.lock: md5": (LOCK, sub(r"^  md5: [0-9a-f]{4}", "  md5: 0000", "packages:\n- conda")),
    "pixi.lock: version of the format": (LOCK, swap("version: 6", "version: 5")),
    "pixi.lock: a package less": (LOCK, sub(r"^      - conda: .*\n", "", "linux-64:")),
    "pixi.toml: __cuda": (TOML, sub(r"^cuda = .*$", 'cuda = "11.8"')),
    "pixi.toml: __glibc": (TOML, swap('"2.28"', '"2.17"')),
    "pixi.toml: another task": (TOML, swap("--require-hashes ", "")),
    # line ends
    "CRLF in the explicit file": (EXPLICIT, lambda text: text.replace("\n", "\r\n")),
    "CRLF in pypi.txt": (PYPI, lambda text: text.replace("\n", "\r\n")),
    "CRLF in one line": (SHOWN, swap("\n", "\r\n", "conda layer")),
    "CRLF in index.json": (INDEX, lambda text: text.replace("\n", "\r\n")),
    # packages.txt
    "packages.txt: licence of a conda package": (SHOWN, sub(r"^(openssl .*kB +)\S+", r"\1MIT-0", "conda layer")),
    "packages.txt: hosted Colab": (SHOWN, sub(r"^(absl-py +\S+ +)followed", r"\1absent  ")),
    "packages.txt: counts": (SHOWN, sub(r"(\d+) followed", "7 followed")),
    "packages.txt: a number of packages": (SHOWN, sub(r"conda layer of linux-64: \d+", "conda layer of linux-64: 3")),
    "packages.txt: age": (SHOWN, sub(r"^Age: .*$", "Age: new.")),
    "packages.txt: reason": (SHOWN, sub(r"^  setuptools: .*$", "  setuptools: because.")),
    "packages.txt: size": (SHOWN, sub(r"^(numpy .*? )\d", r"\g<1>99999")),
    "packages.txt: where": (SHOWN, sub(r"^(absl-py .*)everywhere", r"\1linux-64")),
    # pypi.txt and host.txt
    "pypi.txt: version": (PYPI, sub(r"^requests==\S+", "requests==2.0.0")),
    "pypi.txt: marker": (PYPI, swap("platform_machine != 'aarch64'", "platform_machine == 'aarch64'", "psutil")),
    "pypi.txt: a package less": (PYPI, sub(r"(?m)^six==.*\n(?: .*\n)+", "")),
    "pypi.txt: a hash twice": (PYPI, sub(r"(    --hash=sha256:\w+) \\\n", r"\1 \\\n\1 \\\n")),
    "pypi.txt: an option": (PYPI, swap("\nabsl-py", "\n--pre\nabsl-py")),
    "host.txt: version": (HOST, sub(r"^uv==\S+", "uv==0.1.0")),
    # conda-lock.yml and the explicit file
    "conda-lock.yml: channel": (YML, swap("url: conda-forge", "url: bioconda")),
    "conda-lock.yml: sources": (YML, swap("environments/cpu.yml", "environments/gpu.yml")),
    "conda-lock.yml: dependency": (YML, sub(r"^    openssl: .*$", "    openssl: '>=1'", "name: python\n")),
    "explicit: http": (EXPLICIT, swap("https://conda", "http://conda")),
    "explicit: order": (EXPLICIT, lambda text: "\n".join([*text.splitlines()[:3], *text.splitlines()[:2:-1]]) + "\n"),
    # index.json
    "index.json: pypi_download": (INDEX, sub(r'"pypi_download": \d', '"pypi_download": 77', '"cpu": {')),
    "index.json: indented otherwise": (INDEX, lambda text: json.dumps(json.loads(text), indent=2) + "\n"),
    "index.json: an extra entry": (INDEX, swap('"schema": 1,', '"schema": 1,\n "more": 1,')),
}


def test_the_lock_itself_is_well(lab: Lab) -> None:
    assert problems(lab, DEFAULT_ENVIRONMENT) == problems(lab) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen_without_a_network(lab: Lab, name: str) -> None:
    path, edit = DAMAGES[name]
    damage(lab, path, edit)
    assert is_seen(lab), name


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("environments/jupyter/prefix/etc/jupyter/.hidden.json", lambda file: file.write_text("{}")),
        ("environments/jupyter/.nothing", lambda file: file.write_text("")),
        ("lockfiles/cpu/.pypi.txt.swp", lambda file: file.write_text("")),
        ("lockfiles/cpu/pypi.txt", lambda file: file.chmod(0o755)),
        ("environments/cpu.yml", lambda file: file.chmod(0o666)),
        ("environments/jupyter/prefix/colab/jupyter-notebook", lambda file: file.chmod(0o644)),
        ("lockfiles/gpu/pypi.txt", lambda file: (file.unlink(), file.symlink_to("../cpu/pypi.txt"))),
    ],
    ids=["dot file", "dot file above", "swap file", "executable", "anybody's", "no program", "link"],
)
def test_files_of_a_wrong_kind_are_seen(lab: Lab, path: str, make: Callable[[Path], Any]) -> None:
    make(lab.root / path)
    with contextlib.suppress(Exception):
        vouch(lab)
    assert is_seen(lab)


def test_both_sides_hash_the_same_bytes(lab: Lab) -> None:
    """A file with the line ends of Windows: what vouches for it is the digest that bootstrap.py compares."""
    damage(lab, EXPLICIT, lambda text: text.replace("\n", "\r\n"))
    index = json.loads((lab.lockfiles / "index.json").read_text())
    told = index["environments"][DEFAULT_ENVIRONMENT]["platforms"]["linux-64"]["sha256"]
    assert told == sha256_of(lab.root / EXPLICIT)


@pytest.mark.parametrize(
    ("path", "edit", "named"),
    [
        (INSTALLERS, sub(r'"sha256": "[0-9a-f]{8}', '"sha256": "00000000', '"miniforge"'), "installers"),
        (INDEX, sub(r'"pypi_installed": \d', '"pypi_installed": 9', '"cpu": {'), "pypi_installed"),
        (SHOWN, sub(r"^(absl-py .* kB +)Apache 2.0", r"\1Apache-2.0"), "licences of wheels"),
        (PYPI, sub(r"(--hash=sha256:)[0-9a-f]{4}", r"\g<1>0000"), "hashes, sizes and licences of wheels"),
    ],
    ids=["installer's hash", "pypi_installed", "licence of a wheel", "hash of a wheel"],
)
def test_what_only_a_network_shows_is_named(
    lab: Lab, capsys: pytest.CaptureFixture[str], path: str, edit: Edit, named: str
) -> None:
    """Nothing in the repository contradicts it; the end of the run says that it was not looked at."""
    damage(lab, path, edit)
    argv = ["--environments", str(lab.environments), "--lockfiles", str(lab.lockfiles), "--offline"]
    code = check.main([*argv, *channels(lab)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert any(line.startswith("not ") and named in line for line in said.splitlines())
