"""What --launch shows: the address to paste, what runs there, and the fingerprint of its files."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any, Sequence

from colab_local.base import documents
from colab_local.base.files import write_atomically
from colab_local.base.terminal import Screen
from colab_local.install.home import current_receipt
from colab_local.install.lockfiles import conda_names, locked_names
from colab_local.manage import verify

WIDTH = 80  # columns: no line of the card is longer, and the address stands alone on its own
PACKAGES = (("TensorFlow", ("tensorflow", "tensorflow-cpu")), ("Keras", ("keras",)), ("Notebook", ("notebook",)))


def show_card(home: Path, env: str, port: int, token: str, gpus: Sequence[dict[str, Any]], screen: Screen) -> None:
    """Print the card of the environment in use.

    port, token: Jupyter's; gpus: those that the driver showed, as --json has them.
    """
    receipt = current_receipt(home, env)
    if receipt is None:
        return
    for line in card(receipt, port, token, versions(home, receipt), gpus, known_fingerprint(home, receipt, screen)):
        screen.say(line)


def card(
    receipt: dict[str, Any], port: int, token: str, packages: str, gpus: Sequence[dict[str, Any]], fingerprint: str
) -> list[str]:
    """Return the lines of the card, each of at most WIDTH columns."""
    address = f"http://localhost:{port}/?token={token}"
    rows = [
        ("runs", packages),
        ("GPU", gpu_text(receipt, gpus)),
        ("files", f"{receipt['name']}, {receipt['platform']}, by {receipt['engine']}"),
        ("", fingerprint[fingerprint.find("sha256:") :] if "sha256:" in fingerprint else fingerprint),
        ("stop", "Ctrl-C, twice"),
    ]
    lines = ["In Colab: Connect > Connect to a local runtime; in some seconds, paste this:", address, ""]
    for name, text in rows:
        begin = f"  {name:<7}"
        lines += textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin))
    return lines


def versions(home: Path, receipt: dict[str, Any]) -> str:
    """Return what runs in an environment, as its receipt and the lock beside it say."""
    names: dict[str, str] = {}
    for file in sorted((home / "receipts" / str(receipt["name"]) / "lock").glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        names.update(conda_names(text) if "@EXPLICIT" in text else locked_names(text))
    found = []
    for title, spellings in PACKAGES:  # of TensorFlow's two, a lock for all platforms names both
        found += [f"{title} {names[name]}" for name in spellings if name in names][:1]
    return ", ".join([*found, f"Python {receipt['python']}"])


def gpu_text(receipt: dict[str, Any], gpus: Sequence[dict[str, Any]]) -> str:
    """Return one line on the GPUs that TensorFlow will use; equal cards are counted."""
    if receipt.get("accelerator") != "gpu":
        return "none is used: this is a CPU environment"
    names = [str(gpu.get("name", "GPU")) for gpu in gpus]
    counted = [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    return ", ".join(counted) or "not looked for (--no-gpu-check)"


def known_fingerprint(home: Path, receipt: dict[str, Any], screen: Screen) -> str:
    """Return an environment's fingerprint: from its last check, else of one that is made now, in some seconds."""
    path = home / "receipts" / str(receipt["name"]) / "fingerprint.json"
    try:
        kept = documents.read(path, {"lock": str, "fingerprint": r"colab-local [\w. -]+ sha256:[0-9a-f]{64}"})
        if kept["lock"] == receipt["lock"]["digest"]:
            return str(kept["fingerprint"])
    except (OSError, ValueError):
        pass
    found = verify.check(receipt, screen)
    if found.differences:
        return "altered since it was installed: python3 bootstrap.py --verify"
    if os.access(path.parent, os.W_OK):
        write_atomically(
            path, json.dumps({"lock": receipt["lock"]["digest"], "fingerprint": found.fingerprint}) + "\n"
        )
    return found.fingerprint
