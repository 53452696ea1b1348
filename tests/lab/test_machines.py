"""The lab's machines: what one of them does to its /etc stays there."""

from __future__ import annotations

from pathlib import Path

from tests.support.hosts import Lab, lab, needs_root

__all__ = ["lab"]
pytestmark = needs_root


def test_an_account_is_made_on_one_machine_alone(lab: Lab) -> None:
    """useradd renames a new /etc/passwd over the old one: a mount over the file alone would be lost by that."""
    one, two = lab.hosts(2)
    before = Path("/etc/passwd").read_bytes()
    for machine in (one, two):
        mounted = machine.run(["findmnt", "--noheadings", "--output", "TARGET", "--target", "/etc/passwd"])
        assert mounted.stdout.strip() == "/etc"
    one.run(["useradd", "--no-create-home", "newcomer"])
    assert one.run(["id", "newcomer"]).returncode == 0
    assert two.run(["id", "newcomer"], check=False).returncode != 0
    assert Path("/etc/passwd").read_bytes() == before
    for machine in (one, two):
        assert lab.laptop.run(["ssh", machine.name, "sh -c 'cd ~ && pwd'"]).stdout.strip() == str(machine.home)
