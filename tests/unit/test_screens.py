"""The last screen and the card of --launch: short, narrow, and every command can be pasted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from colab_local.base.terminal import Screen, folded
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.next_steps import next_steps
from colab_local.manage.card import WIDTH, card, gpu_text, known_fingerprint, versions

RECEIPT = {
    "name": "gpu-0123456789ab",
    "env": "gpu",
    "platform": "linux-aarch64",
    "engine": "miniforge",
    "accelerator": "gpu",
    "python": "3.13.15",
    "lock": {"digest": "0" * 64},
}


def test_the_last_screen_fits_an_ordinary_terminal() -> None:
    argv = jupyter_argv("/home/ada/.local/share/colab-local/current/cpu", 8888, "/home/ada")
    lines = next_steps(argv, 8888, "ada", "192.0.2.17", 22, str)
    assert len(lines) <= 20
    assert [line for line in lines if len(line) > 80] == [" ".join(argv)], "only the one command may be longer"
    text = "\n".join(lines)
    for part in ("http://localhost:8888/?token=...", "--launch", "Ctrl-C", "scripts/doctor.py", "--help", "Allow"):
        assert part in text


def test_another_port_of_ssh_and_odd_names_are_in_both_lines() -> None:
    lines = next_steps(["jupyter"], 8889, "ada lovelace", "box", 2222, lambda hint: hint.replace("python3 ", "py "))
    connect, tunnel = (shlex.split(line) for line in lines if "ada lovelace" in line)
    assert connect == ["python3", "scripts/connect.py", "-p", "2222", "ada lovelace@box"], (
        "typed on the other machine"
    )
    assert tunnel[-3:] == ["-p", "2222", "ada lovelace@box"]
    assert "py bootstrap.py --launch" in lines, "typed here"


def test_the_card_has_at_most_80_columns() -> None:
    gpus = [{"name": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"}] * 8 + [{"name": "NVIDIA T400"}]
    token = "f" * 48
    packages = "TensorFlow 2.20.0, Keras 3.13.2, Notebook 6.5.7, Python 3.13.15"
    lines = card(RECEIPT, 65535, token, packages, gpus, "colab-local gpu linux-aarch64 sha256:" + "a" * 64)
    assert max(map(len, lines)) <= WIDTH == 80
    assert f"http://localhost:65535/?token={token}" in lines, "alone on its line, to be copied whole"
    text = " ".join(line.strip() for line in lines)
    for part in (packages, "8 x NVIDIA RTX PRO 6000 Blackwell", ", NVIDIA T400", "sha256:" + "a" * 64):
        assert part in text


def test_what_is_said_of_gpus() -> None:
    assert gpu_text(dict(RECEIPT, accelerator="cpu"), []) == "none is used: this is a CPU environment"
    assert gpu_text(RECEIPT, []) == "not looked for (--no-gpu-check)"
    assert gpu_text(RECEIPT, [{"name": "A"}, {"name": "B"}, {"name": "A"}]) == "2 x A, B"


def test_the_fingerprint_of_the_last_check_is_used_for_its_own_lock_alone(tmp_path: Path) -> None:
    folder = tmp_path / "receipts" / "gpu-0123456789ab"
    (folder / "lock").mkdir(parents=True)
    (folder / "lock" / "pypi.txt").write_text("tensorflow==2.20.0 ; x\ntensorflow-cpu==2.20.0 ; y\nkeras==3.13.2\n")
    assert versions(tmp_path, RECEIPT) == "TensorFlow 2.20.0, Keras 3.13.2, Python 3.13.15"
    line = f"colab-local gpu linux-64 sha256:{'1' * 64}"
    (folder / "fingerprint.json").write_text(json.dumps({"lock": "0" * 64, "fingerprint": line}))
    assert known_fingerprint(tmp_path, RECEIPT, Screen()) == line


SAID = "port 80 is taken by another program that has it: the next steps use 8888, which is free"


@pytest.mark.parametrize(
    "word", ["error:", "hint:", "hint: Start", "note:", "warning:", "Nothing", "/a/jupyter", "[3/7]"]
)
def test_sentences_are_folded_between_words_and_hints_are_not(word: str) -> None:
    text = f"{word} {SAID} {SAID}"
    lines = folded(text, 79).split("\n")
    assert " ".join(line.strip() for line in lines) == text
    assert (len(lines) > 1) == (word in ("error:", "hint: Start", "note:", "warning:", "Nothing"))
    assert len(lines) == 1 or max(map(len, lines)) <= 79
