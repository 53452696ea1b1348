"""Say at the end of a run why each host failed, also when all did: Ansible's own recap has numbers alone.

Ansible loads it by itself, because it lies beside the playbooks of this collection.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.colab_local.fleet.plugins.filter.hosts import failure

DOCUMENTATION = """
name: colab_local_summary
type: aggregate
author: colab-local
short_description: Name each host that failed, with its reason
description:
  - After the recap, one line for each host that failed or could not be reached.
"""


class CallbackModule(CallbackBase):
    """Remembers each host's last problem."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "colab_local_summary"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problems: dict[str, str] = {}

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Remember what a task said when it failed."""
        if not ignore_errors:
            host = result._host.get_name()
            self.problems[host] = failure(result._result).removeprefix(f"{host}: ")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Remember what ssh said."""
        self.problems[result._host.get_name()] = f"unreachable ({failure(result._result)})"

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print a line for each host that failed in the end."""
        failed = sorted({*stats.failures, *stats.dark})
        for host in failed:
            said = self.problems.get(host, "a task failed")
            line = said if said.startswith(f"{host} ") else f"{host} has none: {said}"
            self._display.display(line, color="red")
