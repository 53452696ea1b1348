"""Where packages come from: pip's and uv's settings as users have them; real pip, real uv, a company's index."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pwd
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from colab_local.base import certificates, temporary
from colab_local.base.downloads import Download, download
from colab_local.base.errors import EXIT_NETWORK, Failure
from colab_local.base.programs import failure_of
from colab_local.install import sources
from colab_local.locking import installers
from colab_local.locking.wheels import Wheel, read_wheels, web
from tests.conftest import SCREEN
from tests.support.jupyter_servers import pythons, uv
from tests.support.web import WHEEL, make_wheel


@dataclass
class Index:
    """A package index over https. url: of it, whose certificate is the company's own; asked: the paths asked for."""

    url: str
    wheel: Path
    authority: Path
    asked: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of its one wheel."""
        return hashlib.sha256(self.wheel.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index at https://localhost with one wheel; /empty/ is another one, which has nothing."""
    folder = tmp_path_factory.mktemp("index")
    wheel = make_wheel(folder / "simple" / "tiny")
    (folder / "simple" / "tiny" / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "company.pem"))
    made = Index("", wheel, folder / "company.pem")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(Handler, directory=str(folder))
    ) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.url = f"https://localhost:{server.server_address[1]}/simple/"
        yield made
        server.shutdown()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index) -> Iterator[Path]:
    """A new user's home, in a folder of its own; none of this machine's own settings count."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "XDG_")) or name in certificates.VARIABLES or "proxy" in name.lower():
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(certificates, "pip_files", functools.partial(own_pip_files, tmp_path / "home"))
    index.asked.clear()
    certificates.bundle.cache_clear()
    yield tmp_path / "home"
    certificates.bundle.cache_clear()
    temporary.clean_up()


def own_pip_files(home: Path) -> list[Path]:
    """Return pip's file in a home; /etc/pip.conf is the machine's that runs the tests."""
    path = home / ".config" / "pip" / "pip.conf"
    return [path] if path.is_file() else []


def write(home: Path, name: str, text: str) -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run_uv(folder: Path, index: Index) -> subprocess.CompletedProcess[str]:
    """Install the wheel by its hash with uv, in the environment that bootstrap.py gives it."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"tiny==1.0 --hash=sha256:{index.sha256}\n")
    argv = [uv(), "pip", "install", "--python", sys.executable, "--target", str(folder / "by-uv"), "--no-deps"]
    return subprocess.run(
        [*argv, "--require-hashes", "-r", str(wanted)],
        env=sources.uv_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_pip(folder: Path, index: Index, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Install the wheel by its hash with pip, in the environment that bootstrap.py gives it."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"tiny==1.0 --hash=sha256:{index.sha256}\n")
    argv = [python, "-I", "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(wanted)]
    return subprocess.run(
        [*argv, "--target", str(folder / "by-pip"), "--no-cache-dir"],
        env=sources.pip_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("named_by", [*certificates.VARIABLES, "pip.conf"])
def test_a_companys_certificate_counts_on_every_path(
    index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    conf = f"[global]\nindex-url = {index.url}\n"
    if named_by == "pip.conf":
        conf += f"cert = {index.authority}\n"
    else:
        monkeypatch.setenv(named_by, str(index.authority))
    write(home, ".config/pip/pip.conf", conf)
    for done in (run_pip(home, index), run_uv(home, index)):
        assert done.returncode == 0, done.stderr
    assert (home / "by-pip" / "tiny.py").exists()
    assert (home / "by-uv" / "tiny.py").exists()
    url = f"{index.url}tiny/{WHEEL}"
    download(Download(url, home / "by-us", index.sha256), SCREEN)
    with web() as session:
        assert session.get(url, timeout=30).ok
    assert "tiny" in installers.read(f"{index.url}tiny/")
    system = certificates.system_store()
    assert system is None or system.read_bytes()[:200] in Path(str(certificates.bundle())).read_bytes()


@pytest.mark.parametrize("version", ["20.0.2", "23.0.1"])
def test_an_old_pip_with_a_company_that_only_the_systems_store_knows(
    index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Ubuntu 20.04's and Debian 12's pip trust a list of their own: nothing but --cert or PIP_CERT helps them."""
    system = certificates.system_store()
    store = write(home, "store.crt", (system.read_text() if system else "") + index.authority.read_text())
    monkeypatch.setattr(certificates, "SYSTEM_STORES", (str(store),))
    python = old_pip(home, version)
    write(home, ".config/pip/pip.conf", f"[global]\nindex-url = {index.url}\nretries = 0\n")
    alone = subprocess.run(
        [python, "-I", "-m", "pip", "download", "--no-deps", "tiny"], capture_output=True, text=True, cwd=home
    )
    assert alone.returncode and "certificate" in (alone.stdout + alone.stderr).lower()
    for done in (run_pip(home, index, python), run_uv(home, index)):
        assert done.returncode == 0, done.stderr
    assert (home / "by-pip" / "tiny.py").exists() and (home / "by-uv" / "tiny.py").exists()


def old_pip(folder: Path, version: str) -> str:
    """Return the Python of a new virtual environment with this pip, found by the tests' own settings."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    mine["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    python = str(folder / "venv" / "bin" / "python")
    oldest = pythons()[min(pythons(), key=lambda one: int(one.split(".")[1]))]
    for argv in (
        ["venv", "-q", "--python", oldest, str(folder / "venv")],
        ["pip", "install", "-q", "--python", python, f"pip=={version}"],
    ):
        subprocess.run([uv(), *argv], check=True, env=mine, timeout=120)
    return python


def test_without_it_nothing_is_fetched(index: Index, home: Path) -> None:
    write(home, ".config/pip/pip.conf", f"[global]\nindex-url = {index.url}\nretries = 0\n")
    assert "certificate" in run_uv(home, index).stderr.lower()
    assert run_pip(home, index).returncode
    assert index.asked == []


AUTHORITY = "export SSL_CERT_FILE=/the/certificate/of/your/proxy.pem"
LAST_WEEK, NEXT_WEEK = (datetime.now(UTC) + timedelta(days) for days in (-7, 7))


@pytest.mark.parametrize(
    ("name", "begins", "ends", "hint"),
    [
        ("localhost", NEXT_WEEK, None, "date   # is that today?"),
        ("localhost", datetime(2010, 1, 1), LAST_WEEK, "date   # is that today?"),
        ("wifi.example", None, None, "open the address in a browser"),
        ("", None, None, AUTHORITY),
    ],
    ids=["clock behind", "run out", "log-in page", "unknown"],
)
def test_what_to_type_is_true_for_the_fault_of_the_certificate(
    index: Index, home: Path, name: str, begins: datetime | None, ends: datetime | None, hint: str
) -> None:
    """Our downloads, lock.py, pip and uv, each in its own words: an authority helps against one fault alone."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(home / "known.pem"))
    with http.server.ThreadingHTTPServer(("localhost", 0), http.server.SimpleHTTPRequestHandler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued = authority.issue_cert(name or "localhost", not_before=begins, not_after=ends)
        issued.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = Index(f"https://localhost:{server.server_address[1]}/simple/", index.wheel, index.authority)
        known = f"cert = {home}/known.pem\n" if name else ""
        write(home, ".config/pip/pip.conf", f"[global]\nindex-url = {other.url}\nretries = 0\n{known}")
        with pytest.raises(Failure) as caught:
            download(Download(f"{other.url}tiny/{WHEEL}", home / "by-us", index.sha256), SCREEN)
        said = [caught.value]
        wheel = Wheel(WHEEL, f"{other.url}tiny/{WHEEL}", index.sha256, 1000)
        for look in (lambda: installers.read(other.url), lambda: read_wheels([wheel])):
            with pytest.raises(Failure) as caught:
                look()
            said.append(caught.value)
        for program, done in (("pip", run_pip(home, other)), ("uv", run_uv(home, other))):
            said.append(failure_of(program, done.stdout, done.stderr, done.returncode, ".", False))
        server.shutdown()
    assert [one.hint[: len(hint)] for one in said] == [hint] * 5, [one.what for one in said]
    assert {one.code for one in said} == {EXIT_NETWORK}


# Settings that decide what or where, and must not: (file in the home or the current folder, text).
DECIDE_NOTHING = {
    "pip installs for the user": (".config/pip/pip.conf", "[install]\nuser = true\n"),
    "pip's target": (".config/pip/pip.conf", "[install]\ntarget = /nowhere\nno-binary = :all:\n"),
    "pip's virtual environments": (".config/pip/pip.conf", "[global]\nrequire-virtualenv = true\n"),
    "uv's newest date": (".config/uv/uv.toml", 'exclude-newer = "2001-01-01T00:00:00Z"\n'),
    "uv's version": (".config/uv/uv.toml", 'required-version = ">=99"\n'),
    "uv's pip": (".config/uv/uv.toml", '[pip]\ntarget = "/nowhere"\nno-binary = [\n  ":all:",\n]\n'),
    "a project": ("../work/pyproject.toml", '[tool.uv]\nexclude-newer = "2001-01-01T00:00:00Z"\nno-index = true\n'),
    "a damaged project": ("../work/pyproject.toml", "[tool.uv\n"),
    "a folder's uv.toml": ("../work/uv.toml", 'required-version = ">=99"\n[pip]\nprefix = "/nowhere"\n'),
    "a damaged uv.toml": ("../work/uv.toml", "index-url = \n"),
    "a folder above": ("../uv.toml", '[[index]]\nurl = "https://localhost:1/"\ndefault = true\n'),
}


@pytest.mark.parametrize("case", DECIDE_NOTHING)
def test_what_and_where_are_decided_by_the_lock(
    index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, text = DECIDE_NOTHING[case]
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_CERT", str(index.authority))
    write(home, name, text)
    for done in (run_pip(home, index), run_uv(home, index)):
        assert done.returncode == 0, done.stderr
    assert (home / "by-pip" / "tiny.py").exists()
    assert (home / "by-uv" / "tiny.py").exists()


@pytest.mark.parametrize("how", ["pip.conf", "variable"])
def test_no_index_is_a_policy(index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("PIP_CERT", str(index.authority))
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)  # uv's own does not outweigh it
    conf = f"[global]\nindex-url = {index.url}\n" + ("no-index = true\n" if how == "pip.conf" else "")
    if how == "variable":
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    write(home, ".config/pip/pip.conf", conf)
    write(home, ".config/uv/uv.toml", f'no-index = false\n[[index]]\nurl = "{index.url}"\n')
    assert run_uv(home, index).returncode
    assert run_pip(home, index).returncode
    assert index.asked == []
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.wheel.parent))
    for done in (run_pip(home, index), run_uv(home, index)):
        assert done.returncode == 0, done.stderr
    assert index.asked == []


def test_an_extra_index_has_what_the_first_lacks(index: Index, home: Path) -> None:
    empty = index.url.replace("/simple/", "/empty/")
    conf = f"[global]\nindex-url = {empty}\nextra-index-url =\n    {index.url}\ncert = {index.authority}\n"
    write(home, ".config/pip/pip.conf", conf)
    for done in (run_pip(home, index), run_uv(home, index)):
        assert done.returncode == 0, done.stderr


def test_damaged_settings_are_named_with_their_line(home: Path) -> None:
    file = write(home, ".config/uv/uv.toml", 'offline = false\nindex-url = "\n')
    with pytest.raises(Failure) as caught:
        sources.uv_environment()
    assert f"{file}, line 2" in caught.value.what
    file.unlink()
    file = write(home, ".config/pip/pip.conf", "[global]\ntimeout = 3\nindex-url\n")
    with pytest.raises(Failure) as caught:
        sources.pip_environment()
    assert str(file) in caught.value.what
    assert caught.value.hint.startswith("nano +")


def test_pips_other_words_reach_uv(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        home,
        ".config/pip/pip.conf",
        "[global]\nproxy = proxy.example:3128\ntimeout = 60\nretries = 2\ntrusted-host =\n  a.example\n  b.example\n"
        "keyring-provider = subprocess\nclient-cert = /c.pem\n[install]\ntimeout = 90\n",
    )
    monkeypatch.setenv("PIP_RETRIES", "7")
    found = sources.uv_environment()
    assert found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert (found["UV_HTTP_TIMEOUT"], found["UV_HTTP_RETRIES"]) == ("90", "7")
    assert found["UV_INSECURE_HOST"] == "a.example b.example"
    assert (found["UV_KEYRING_PROVIDER"], found["SSL_CLIENT_CERT"]) == ("subprocess", "/c.pem")
    monkeypatch.setenv("https_proxy", "http://mine.example:1")
    assert "HTTPS_PROXY" not in sources.uv_environment()


UV_TOML = """\
# company
exclude-newer = "2024-01-01T00:00:00Z"  # [not a table]
index-url = "https://a.example/simple"
no-binary = [
  "numpy",  # ]
]
[[index]]
name = "b"
url = "https://b.example/"
[pip]
target = "/x"
find-links = ["/w"]
extra = \"\"\"
index-url = no
\"\"\"
[tool.other]
index-url = "https://c.example/"
"""


MACHINES = """\
no-index = true  # policy
extra-index-url = ["https://d.example/"]
offline = true
[[index]]
name = "b"
url = "https://other.example/"
[[index]]
url = "https://e.example/"
default = true
[pip]
find-links = ["/v", # more
]
"""
USERS = """\
extra-index-url = ["https://c.example/#a",]
pip.find-links = []
offline = false
"""


def test_the_machines_settings_of_uv_count_below_the_users() -> None:
    merged = tomllib.loads(sources.sources_of_uv(USERS, UV_TOML, MACHINES))
    assert merged == {
        "no-index": True,
        "offline": False,
        "extra-index-url": ["https://c.example/#a", "https://d.example/"],
        "index-url": "https://a.example/simple",
        "index": [
            {"name": "b", "url": "https://b.example/"},
            {"url": "https://e.example/", "default": True},
        ],
        "pip": {"find-links": ["/w", "/v"]},
    }


def test_a_list_of_indexes_and_tables_of_them_go_together() -> None:
    user = 'index = [{name = "a", url = "https://a.example/"}]  # mine\n'
    machine = (
        '[[index]]\nname="b"  # theirs\nurl = "https://b.example/#x"\n[[index]]\nname = \'b\'\nurl = "https://c/"\n'
    )
    for texts in ((user, machine), (machine, user)):
        found = tomllib.loads(sources.sources_of_uv(*texts))["index"]
        assert {one["name"]: one["url"] for one in found} == {"a": "https://a.example/", "b": "https://b.example/#x"}


@pytest.mark.parametrize("users", ["", "[pip]\nsystem = true\n", "http-timeout = 5\n", None])
def test_no_index_of_the_machine_is_a_policy_of_uv(
    index: Index, home: Path, monkeypatch: pytest.MonkeyPatch, users: str | None
) -> None:
    """Whatever else the user has; uv itself, asked the same, refuses too."""
    write(home, ".config/pip/pip.conf", f"[global]\nindex-url = {index.url}\ncert = {index.authority}\n")
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{home}/none:{home}/etc/xdg")
    assert run_uv(home, index).returncode == 0
    shutil.rmtree(home / "by-uv")
    index.asked.clear()
    write(home, "etc/xdg/uv/uv.toml", "no-index = true\n")
    if users is not None:
        write(home, ".config/uv/uv.toml", users)
    done = run_uv(home, index)
    assert done.returncode and index.asked == [], done


def test_of_uvs_settings_only_sources_stay() -> None:
    assert sources.sources_of_uv(UV_TOML).split("\n") == [
        'index-url = "https://a.example/simple"',
        "[[index]]",
        'name = "b"',
        'url = "https://b.example/"',
        "[pip]",
        'find-links = ["/w"]',
        "",
    ]
