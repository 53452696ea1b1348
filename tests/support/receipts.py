"""A receipt as bootstrap.py writes one, for tests that need no environment behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colab_local.install.home import RECEIPT_SCHEMA

NAME = "cpu-0123456789ab"
RECEIPT: dict[str, Any] = {
    "schema": RECEIPT_SCHEMA,
    "name": NAME,
    "env": "cpu",
    "platform": "linux-64",
    "engine": "host",
    "layer": "host-3.11",
    "python": "3.11.7",
    "lock": {"digest": "0" * 64, "files": {"pypi.txt": "1" * 64}, "jupyter": {}},
    "port": 8888,
    "notebook_dir": "/",
    "created": "2026-11-25T00:00:00Z",
}


def write_receipt(home: Path, receipt: Any = None, **more: Any) -> None:
    """Write a receipt into a home, by default a good one of that home; a text is written as it stands."""
    folder = home / "receipts" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**RECEIPT, "home": str(home), **more} if receipt is None else receipt
    (folder / "receipt.json").write_text(whole if isinstance(whole, str) else json.dumps(whole))
