"""The action that writes down, on the controller, what a fingerprint stands for."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.colab_local.fleet.plugins.plugin_utils import judge, words

DOCUMENTATION = """
name: record
author: colab-local
short_description: Write down on the controller what a fingerprint stands for
description:
  - The file's name comes from the fingerprint, which must be one wholly; only fields that bootstrap.py prints are
    written. Runs as the user who started Ansible, without a connection, and becomes nobody else.
  - The folder is never one of an inventory, because Ansible would read the file as hosts and variables.
options:
  document:
    description: What --verify said, as the filter answer returned it.
    type: dict
    required: true
  folder:
    description: The folder for records.
    type: str
    required: true
"""


class ActionModule(ActionBase):
    """Writes one record."""

    _requires_connection = False
    _VALID_ARGS = frozenset(("document", "folder"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the record; the answer is read once more, as if it came from the host just now."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args["document"]
        try:
            document = words.verified(json.dumps(given), str(given["environment"]))
            name = judge.record_name(document["fingerprint"])
        except (words.Unreadable, KeyError, TypeError) as wrong:
            raise AnsibleActionFail(f"error: this host can't be believed: {wrong}") from None
        folder = Path(str(self._task.args["folder"])).expanduser()
        variables = task_vars or {}
        for source in variables.get("ansible_inventory_sources") or []:
            inventory = Path(str(source)).absolute()
            inside = inventory if inventory.is_dir() else inventory.parent
            if folder.absolute() == inside or inside in folder.absolute().parents:
                raise AnsibleActionFail(
                    f"error: records in an inventory would be read as hosts (found {folder} in {inside}); "
                    "hint: set colab_local_records to another folder"
                )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1) + "\n")
        Path(temporary).replace(folder / name)
        return {**result, "changed": False, "path": str(folder / name)}
