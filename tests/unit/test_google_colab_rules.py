"""The parts of the server extension and of google.colab that need no Jupyter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "environments" / "jupyter" / "site-packages"))

from colab_local_jupyter import kernel, magics, page, resources, user_settings

COLAB = "https://colab.research.google.com"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("COLAB_LOCAL_GOOGLE_COLAB", "COLAB_LOCAL_DRIVE", "COLAB_LOCAL_SECRETS"):
        monkeypatch.delenv(name, raising=False)


def write_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "colab-local").mkdir(exist_ok=True)
    (tmp_path / "colab-local" / "google-colab.ini").write_text(text)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": COLAB, "Host": "localhost:8888"}, page.COLAB),
        ({"Origin": "https://colab.sandbox.google.com", "Host": "localhost:8888"}, page.COLAB),
        ({"Origin": "http://localhost:8888", "Host": "localhost:8888"}, page.LOCAL),
        ({"Origin": "http://localhost:8889", "Host": "localhost:8888"}, ""),
        ({"Origin": COLAB + ".evil.example", "Host": "localhost:8888"}, ""),
        # VS Code 1.139.1's Jupyter extension and Node's @jupyterlab/services send none: seen in docs/notebooks.md
        ({"Host": "localhost:8888"}, page.LOCAL),
    ],
)
def test_page_is_known_by_its_origin(headers: dict[str, str], expected: str) -> None:
    assert page.page_of(headers) == expected


class Session:
    """Stands for jupyter_client's Session: keeps what it is told to send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, stream: Any, message: Any) -> None:
        self.sent.append(message)

    def send_raw(self, stream: Any, parts: list[bytes]) -> None:
        self.sent.append(parts)


def test_messages_are_marked_in_both_forms() -> None:
    session = Session()
    page._mark_sent(session, page.COLAB)
    session.send(None, {"metadata": {"a": 1, page.MARK: "forged"}})
    session.send(None, {"metadata": None})
    session.send_raw(None, [b"{}", b"{}", b'{"a": 1}', b"{}", b"buffer"])
    assert session.sent[0]["metadata"] == {"a": 1, page.MARK: page.COLAB}
    assert session.sent[1]["metadata"] == {page.MARK: page.COLAB}
    assert session.sent[2] == [b"{}", b"{}", b'{"a": 1, "colab_local_page": "colab"}', b"{}", b"buffer"]


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no", "false"])
def test_switched_off_by_variable_or_file(word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_settings.switched_on()
    write_settings(tmp_path, f"[google.colab]\nenabled = {word}\n")
    assert not user_settings.switched_on()
    monkeypatch.setenv("COLAB_LOCAL_GOOGLE_COLAB", "on")  # the variable is stronger
    assert user_settings.switched_on()
    (tmp_path / "colab-local" / "google-colab.ini").unlink()
    monkeypatch.setenv("COLAB_LOCAL_GOOGLE_COLAB", word)
    assert not user_settings.switched_on()


def test_folder_for_drive_keeps_blanks_and_percent_signs(tmp_path: Path) -> None:
    write_settings(tmp_path, "[google.colab]\ndrive = /home/me/My Drive 100%\n")
    assert user_settings.drive() == "/home/me/My Drive 100%"


@pytest.mark.parametrize(
    "text", ["no section", "[google.colab", "[google.colab]\nenabled\n", "\0", "[other]\nenabled=no"]
)
def test_damaged_settings_leave_the_package_on(tmp_path: Path, text: str) -> None:
    write_settings(tmp_path, text)
    assert user_settings.switched_on()
    assert user_settings.drive() == ""


def test_secrets_file_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_settings.secrets() == tmp_path / "colab-local" / "secrets"
    monkeypatch.setenv("COLAB_LOCAL_SECRETS", str(tmp_path / "other"))
    assert user_settings.secrets() == tmp_path / "other"


def test_gpus_as_nvidia_smi_prints_them() -> None:
    said = "0, NVIDIA H100 80GB HBM3, 512, 81559, 37, 4\n1, Tesla T4, 0, 15360, [N/A], [Not Supported]\n"
    first, second = resources.parse_gpus(said)
    assert first == {
        "name": "NVIDIA H100 80GB HBM3",
        "memoryUsedBytes": 512 * 1024**2,
        "memoryTotalBytes": 81559 * 1024**2,
        "gpuUtilization": 0.37,
        "memoryUtilization": 0.04,
        "everUsed": True,
    }
    assert (second["gpuUtilization"], second["everUsed"]) == (0.0, False)
    assert resources.parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the driver\n") == []


def test_shell_shows_all_and_knows_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    result = magics.shell_cell("--ignore-errors", "echo out; echo err >&2; printf 'ü'; exit 3")
    assert (result.returncode, result.output) == (3, "out\nerr\nü")
    assert capsys.readouterr().out == "out\nerr\nü"
    with pytest.raises(Exception, match="exit status 3"):
        magics.shell_line("exit 3")


def test_tensorflow_version(capsys: pytest.CaptureFixture[str]) -> None:
    magics.tensorflow_version("2.x")
    magics.tensorflow_version("")
    assert capsys.readouterr().out.count("no effect") == 2
    with pytest.raises(ValueError, match="TensorFlow 1"):
        magics.tensorflow_version(" 1.x")


def test_hidden_package_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert importlib.util.find_spec("google.colab") is not None
    kernel.watch(kernel.Hidden)
    assert importlib.util.find_spec("google.colab") is None
    assert importlib.util.find_spec("json") is not None
