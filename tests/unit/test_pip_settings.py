"""colab_local/install/sources.py: each of pip's settings is mapped to uv, decides nothing, or is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pip
import pytest
from pip._internal.commands import create_command

from colab_local.base import certificates
from colab_local.base.errors import Failure
from colab_local.install import sources
from tests.conftest import REPO

FILE = "/home/me/.config/pip/pip.conf"
TABLES: tuple[set[str], ...] = (set(sources.MAPPED), set(sources.FOR_PIP_ALONE), set(sources.DECIDE_NOTHING))

# pip's option: (value in pip.conf, what uv is told). Of `cert`, base/certificates.py tells uv.
MAPPED = {
    "index-url": ("https://a.example/simple", {"UV_DEFAULT_INDEX": "https://a.example/simple"}),
    "extra-index-url": (
        "https://b.example\n  https://c.example",
        {"UV_INDEX": "https://b.example https://c.example", "UV_INDEX_STRATEGY": "unsafe-best-match"},
    ),
    "find-links": ("/wheels https://d.example/", {"UV_FIND_LINKS": "/wheels,https://d.example/"}),
    "no-index": ("true", {}),
    "trusted-host": ("a.example b.example:8", {"UV_INSECURE_HOST": "a.example b.example:8"}),
    "cert": ("/ca.pem", {}),
    "client-cert": ("/me.pem", {"SSL_CLIENT_CERT": "/me.pem"}),
    "proxy": ("p.example:3128", dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://p.example:3128")),
    "retries": ("0", {"UV_HTTP_RETRIES": "0"}),
    "timeout": ("1.5", {"UV_HTTP_TIMEOUT": "2"}),
    "keyring-provider": ("subprocess", {"UV_KEYRING_PROVIDER": "subprocess"}),
}


def parse(text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    found = sources.parse_pip([(FILE, text)], environ or {})
    return {name: setting.value for name, setting in found.items()}


def notes(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sources, "pip_texts", lambda: [(FILE, text)])
    return sources.notes()


def test_every_option_of_pip_is_in_one_table() -> None:
    """Of the pip that is here; the tables have those of other versions, too."""
    assert len(set().union(*TABLES)) == sum(map(len, TABLES))
    assert set(MAPPED) == set(sources.MAPPED)
    for command in ("install", "download"):
        options = create_command(command).parser.option_list_all
        names = {name.removeprefix("--") for option in options for name in option._long_opts}
        assert names - {"help", "version"} - set(sources.ALIASES) - set().union(*TABLES) == set(), (
            "new in pip: is it mapped, named, or does it decide nothing?"
        )


@pytest.mark.parametrize("option", sorted(MAPPED))
def test_mapped(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    value, told = MAPPED[option]
    text = f"[global]\n{option} = {value}\n"
    assert sources.to_uv(parse(text), keeps_own_index=False) == told
    assert notes(monkeypatch, text) == []
    variable = "PIP_" + option.upper().replace("-", "_")
    assert sources.to_uv(parse("", {variable: value}), keeps_own_index=False) == told


@pytest.mark.parametrize("option", sorted(sources.DECIDE_NOTHING))
def test_decides_nothing(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    text = f"[global]\n{option} = true\n"
    assert sources.to_uv(parse(text), keeps_own_index=False) == {}
    assert notes(monkeypatch, text) == []
    assert option not in sources.SOURCES, "our own calls of pip do not get it"


@pytest.mark.parametrize("option", [*sorted(sources.FOR_PIP_ALONE), "of-tomorrow"])
def test_named_with_its_file(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    (note,) = notes(monkeypatch, f"[install]\n{option} = true\n")
    assert note.startswith(f"{FILE}: pip's {option} is for pip alone; ")
    monkeypatch.setenv("PIP_" + option.upper().replace("-", "_"), "1")
    monkeypatch.setattr(sources, "pip_texts", lambda: [])
    (note,) = sources.notes()
    assert note.startswith("PIP_" + option.upper().replace("-", "_"))


def test_what_uv_cant_read_is_named_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[global]\ntimeout = soon\nno-cache-dir = off\n"
    assert sources.to_uv(parse(text), keeps_own_index=False) == {}
    (note,) = notes(monkeypatch, text)
    assert "timeout" in note


@pytest.mark.parametrize(
    ("text", "environ", "asks_none"),
    [
        ("[global]\nno-index = true\n", {}, True),
        ("[install]\nno_index = YES\n", {}, True),
        ("[download]\nno-index = 1\n", {}, True),
        ("[wheel]\nno-index = on\n", {}, True),
        ("", {"PIP_NO_INDEX": "1"}, True),
        ("[global]\nno-index = perhaps\n", {}, True),
        ("[download]\nno-index = 0\n[global]\nno-index = 1\n", {}, True),
        ("[global]\nno-index = false\n", {}, False),
        ("[list]\nno-index = true\n", {}, False),
        ("[global]\nno-index = true\n", {"PIP_NO_INDEX": "0"}, False),
    ],
)
def test_no_index_wherever_it_is_said(text: str, environ: dict[str, str], asks_none: bool) -> None:
    assert sources.asks_no_index(parse(text, environ)) == asks_none


def test_a_damaged_file_is_an_error_and_not_silence() -> None:
    with pytest.raises(Failure) as caught:
        parse("[global]\nno-index\n")
    assert FILE in caught.value.what and caught.value.hint == f"nano +2 {FILE}"


ASK = (
    "import json, os; from colab_local.install import sources;"
    "print(json.dumps({k: v.value for k, v in sources.parse_pip(sources.pip_texts(), os.environ).items()}))"
)


@pytest.mark.parametrize("variant", ["all levels", "PIP_CONFIG_FILE", "no PIP_CONFIG_FILE there", "none"])
def test_the_levels_are_pips_own(tmp_path: Path, variant: str) -> None:
    """Which file counts more: asked of pip itself, in a virtual environment with a pip.conf of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    order = [
        "etc-b/pip/pip.conf",
        "etc-a/pip/pip.conf",
        ".pip/pip.conf",
        ".config/pip/pip.conf",
        "venv/pip.conf",
        "named",
    ]
    for number, name in enumerate(order):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        values = "".join(f"timeout-{level} = {number}\n" for level in range(len(order)) if level != number)
        (tmp_path / name).write_text(
            f"[global]\ntimeout = {number}\nretries = {number}\n{values}[install]\ncert = {number}\n"
        )
    environ = {"HOME": str(tmp_path), "PATH": os.defpath, "XDG_CONFIG_DIRS": f"{tmp_path}/etc-a:{tmp_path}/etc-b"}
    environ["PIP_RETRIES"] = "77"
    named = {"PIP_CONFIG_FILE": "named", "no PIP_CONFIG_FILE there": "gone"}.get(variant)
    if named:
        environ["PIP_CONFIG_FILE"] = str(tmp_path / named)
    if variant == "none":
        environ["PIP_CONFIG_FILE"] = os.devnull
    python = tmp_path / "venv" / "bin" / "python"

    def ask(path: Path, *argv: str) -> str:
        env = dict(environ, PYTHONPATH=str(path))
        return subprocess.run([python, *argv], env=env, capture_output=True, text=True, check=True).stdout

    theirs: dict[str, str] = {}
    rows = [
        line.partition("=") for line in ask(Path(pip.__file__).parents[1], "-m", "pip", "config", "list").splitlines()
    ]
    for section in ("global", "install", ":env:"):
        for name, _, value in rows:
            found = re.match(re.escape(section) + r"\.(.+)", name)
            if found and found.group(1) != "config-file":
                theirs[found.group(1)] = value.strip("'")
    assert json.loads(ask(REPO, "-c", ASK)) == theirs


def test_certificates_that_condas_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").touch()
    for text, there in (
        ("ssl_verify: ~/ca.pem", True),
        ("ssl_verify: '~/ca.pem'  # ours", True),
        ("ssl_verify: false", False),
    ):
        (tmp_path / ".condarc").write_text(f"channels: []\n{text}\n")
        assert (tmp_path / "ca.pem" in certificates.named_files().values()) == there
