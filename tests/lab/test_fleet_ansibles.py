"""The playbooks with the oldest Ansible that we support and with the newest, and hosts that lie to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import supported_python
from tests.support.fleet_lab import ANSIBLES, Checkout, Fleet, make_ansible, make_checkout, small_layer
from tests.support.hosts import needs_root

pytestmark = [needs_root, pytest.mark.timeout(1200)]
BOTH = {"node1", "node2"}

# A Python of a host that was taken over: as colab_local_python it answers for bootstrap.py. $LIE says how.
LIAR = """\
#!{python}
import json, os, sys
if "execvp" not in sys.argv[2]:  # not bootstrap.py: the probe, which it answers well
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
asked = json.load(sys.stdin)["argv"]
lie = json.load(open({folder!r} + "/lie"))
if "--dry-run" in asked:
    plan = dict(environment="cpu", platform="linux-64", engine="host", lock="0" * 64, plan=[], changed=False)
    print(json.dumps(dict(plan, **lie.get("plan", {{}}))))
elif "--list" in asked:
    print(json.dumps(lie.get("list", dict(environments=[]))))
else:
    print(lie.get("stderr", ""), file=sys.stderr)
    print(json.dumps(dict(json.load(open({folder!r} + "/good")), **lie.get("verify", {{}}))))
    sys.exit(lie.get("rc", 0))
"""


@dataclass
class Site:
    """A fleet of three hosts, of which node3 is to lie. pwned: the file that every attack tries to make here."""

    fleet: Fleet
    checkout: Checkout
    pwned: Path

    def controller(self) -> set[str]:
        """Return the files on the controller that an attack could have written."""
        places = [self.fleet.inventory, self.fleet.records, self.fleet.lab.laptop.home / ".cache"]
        return {str(path) for place in places for path in place.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=sorted(ANSIBLES))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(f"site-{request.param}")
    checkout = make_checkout(folder / "checkout", small_layer()).with_bundle()
    with Fleet(folder / "fleet", count=3, ansible=make_ansible(request.param, folder)) as fleet:
        fleet.roll_out(checkout)
        yield Site(fleet, checkout, folder / "pwned")


def test_from_the_first_look_to_the_removal(site: Site) -> None:
    """Every playbook, with a folder as inventory; nothing is left when it is over."""
    fleet = site.fleet
    hosts = ("--limit", "node1,node2")
    assert fleet.play("deploy.yml", "--check", *hosts).hosts("changed") == BOTH
    assert not any(fleet.work(number).exists() or fleet.home(number).exists() for number in (1, 2))
    fleet.play("preflight.yml", *hosts)
    made = fleet.play("deploy.yml", *hosts)
    assert made.hosts("changed") == BOTH
    assert "on 2: node1, node2" in made.flat
    again = fleet.play("deploy.yml", *hosts)
    assert not again.hosts("changed")
    assert "WARNING" not in again.output, again.output
    assert not fleet.play("deploy.yml", "--check", *hosts).hosts("changed")
    for playbook in ("verify.yml", "status.yml", "prune.yml"):
        assert not fleet.play(playbook, *hosts).hosts("changed"), playbook
    (record,) = fleet.records.glob("*.json")
    (site.pwned.parent / "good").write_text(record.read_text())


def evil(site: Site) -> str:
    """Return a template that Ansible would run here, if it took it for one."""
    return "{{ lookup('pipe', 'touch " + str(site.pwned) + "') }}"


@pytest.mark.parametrize("site", ["newest"], indirect=True)  # what is believed is decided in our own plugins
@pytest.mark.parametrize(
    "lie",
    ["keys", "path", "newline", "name", "difference", "error", "plan", "list", "nothing", "long", "environment"],
)
def test_nothing_that_a_host_says_is_obeyed(site: Site, lie: str) -> None:
    """What it answers becomes no command, no file and no variable here, and the others are told the truth."""
    folder, fleet = site.pwned.parent, site.fleet
    if not (folder / "good").exists():
        fleet.play("deploy.yml", "--limit", "node1,node2")
        (folder / "good").write_text(next(fleet.records.glob("*.json")).read_text())
    good = json.loads((folder / "good").read_text())
    command = {
        "vars": {"ansible_ssh_extra_args": f"-o ProxyCommand='touch {site.pwned}'", "ansible_host": evil(site)}
    }
    lies = {
        "keys": {
            "verify": {"colab_local": command, "all": command, "_meta": {"hostvars": {"node1": command["vars"]}}}
        },
        "path": {"verify": {"fingerprint": "../inventory/group_vars/all.yml"}},
        "newline": {"verify": {"fingerprint": good["fingerprint"] + "\n"}},
        "name": {"verify": {"packages": [{**good["packages"][0], "name": evil(site)}]}},
        "difference": {"verify": {"differences": [dict.fromkeys(("kind", "package", "path", "found"), evil(site))]}},
        "error": {"stderr": f"error: \x1b[2J{evil(site)}", "rc": 1},
        "plan": {"plan": {"plan": [{"name": evil(site)}], "platform": "../../x"}},
        "list": {"list": {"environments": [{"env": evil(site), "state": evil(site), "bytes": 1, "lock": "0" * 64}]}},
        "nothing": {"verify": {"packages": None, "lock": None}},
        "long": {"verify": {"notes": "x" * (17 << 20)}},
        "environment": {"verify": {"environment": "gpu", "fingerprint": good["fingerprint"].replace("cpu", "gpu")}},
    }
    (folder / "lie").write_text(json.dumps(lies[lie]))
    liar = folder / "python"
    liar.write_text(LIAR.format(python=supported_python(), folder=str(folder)))
    liar.chmod(0o755)
    variables = fleet.inventory / "host_vars" / "node3.yml"
    variables.parent.mkdir(exist_ok=True)
    variables.write_text(json.dumps({"colab_local_python": str(liar)}))
    before = site.controller() - {str(variables)}
    try:
        playbook = "status.yml" if lie == "list" else "verify.yml"
        run = fleet.play(playbook, check=False)
        # What it left would be read now.
        more = fleet.play("deploy.yml", "--check", check=False) if lie in ("keys", "path", "plan") else run
    finally:
        variables.unlink()
    assert not site.pwned.exists(), run.output + more.output
    assert site.controller() == before
    assert "\x1b[2J" not in run.output
    assert run.hosts("ok") == {*BOTH, "node3"}
    assert run.hosts("failed") <= {"node3"}
    if lie not in ("keys", "difference", "plan"):  # the others are no verified answers at all
        assert run.hosts("failed") == {"node3"}
        assert "node3 has none: error: " in run.flat
    if lie == "plan":
        assert more.hosts("failed") == {"node3"}
