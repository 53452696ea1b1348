"""`python3 scripts/desktop virtual ...` means `python3 bootstrap.py --desktop virtual ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bootstrap

KINDS = ("virtual", "mirror")

if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0] not in KINDS:
        print(__doc__)
        print("usage: python3 scripts/desktop {virtual,mirror} [options]   options: python3 bootstrap.py --help")
        sys.exit(bootstrap.EXIT_OK if words[:1] in (["-h"], ["--help"]) else bootstrap.EXIT_USAGE)
    sys.exit(bootstrap.main(["--desktop", *words]))
