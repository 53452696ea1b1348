"""The lookup that packs what goes to the hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.colab_local.fleet.plugins.plugin_utils import judge

DOCUMENTATION = """
name: program
author: colab-local
short_description: Pack bootstrap.py of a checkout for the hosts
description:
  - Packs the program and the lockfiles of a checkout of colab-local into one file in the user's cache folder.
  - Runs as the user who started Ansible, never as another one.
options:
  _terms:
    description: One term, the checkout. If it is empty, the one that this collection lies in.
    type: list
    elements: str
    required: true
"""
EXAMPLES = """
- name: Say what goes to the hosts
  ansible.builtin.debug:
    msg: "{{ lookup('colab_local.fleet.program', '/srv/colab-local') }}"
"""
RETURN = """
_raw:
  description: The pack's path and digest, the checkout, its lockfiles/index.json with its sha256; or a problem.
  type: list
  elements: dict
"""


def own_checkout() -> str:
    """Return the checkout that this file lies in, "" if it was installed elsewhere."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "bootstrap.py").is_file() and (folder / "lockfiles" / "index.json").is_file():
            return str(folder)
    return ""


class LookupModule(LookupBase):
    """Packs a checkout."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the pack; {"problem": why} if there is none, so that each host can say it."""
        checkout = str(terms[0] if terms else "") or own_checkout()
        nothing: dict[str, Any] = {"index": {"environments": {}}, "checkout": checkout}
        if not checkout:
            problem = "error: no checkout of colab-local is known here; hint: set colab_local_checkout to its folder"
            return [{**nothing, "problem": problem}]
        checkout = str(Path(checkout).expanduser().absolute())
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        packer = Path(checkout) / "scripts" / "fleet" / "pack.py"
        argv = [sys.executable, "-I", str(packer), checkout, str(Path(cache) / "colab-local-fleet")]
        packed = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        if packed.returncode:
            hint = "hint: set colab_local_checkout to a checkout of colab-local"
            said = packed.stderr.strip().splitlines()
            first = next((line for line in said if line.startswith("error: ")), f"error: can't pack {checkout}")
            return [{**nothing, "problem": f"{first}; {hint}"}]
        index, digest = judge.read_index(checkout), judge.index_digest(checkout)
        repairs = '"--repair"' in (Path(checkout) / "bootstrap.py").read_text(encoding="utf-8")
        found = {"checkout": checkout, "index": index, "lock": digest, "repairs": repairs, "problem": ""}
        return [{**json.loads(packed.stdout), **found}]
