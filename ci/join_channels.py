#!/usr/bin/env python3
"""Join folders with conda channels into one; of what two of them have, the later one's record counts.

    python3 ci/join_channels.py TARGET FOLDER FOLDER ...
    python3 scripts/lock.py gpu-forge --channel gpu-forge=TARGET

For records that were collected at several times: conda-forge itself has all of them in one place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def join(target: Path, folders: list[Path]) -> None:
    """Write the channel `target` of the subdirs linux-64 and noarch."""
    for subdir in ("linux-64", "noarch"):
        joined: dict[str, dict[str, object]] = {"packages": {}, "packages.conda": {}}
        for folder in folders:
            content = json.loads((folder / "conda-forge" / subdir / "repodata.json").read_text(encoding="utf-8"))
            for kind, records in joined.items():
                records.update(content.get(kind, {}))
        path = target / "conda-forge" / subdir / "repodata.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"info": {"subdir": subdir}, **joined, "repodata_version": 1}), encoding="utf-8")


if __name__ == "__main__":
    join(Path(sys.argv[1]), [Path(text) for text in sys.argv[2:]])
