"""Measure how the time of a roll-out grows with the number of hosts: the numbers in scripts/fleet/README.md.

    python -m tests.support.fleet_scaling [--full] [--hosts 1,2,4,8]

For each number, hosts in network namespaces of their own are made, and deploy.yml runs: a first installation
from a bundle that is pushed, a second run that finds nothing to do, and an installation on hosts that have lost
all, from a bundle that a web server on the first of them has. For each, the time and the processor time on the
controller, ssh's masters included, which encrypt what is pushed. All hosts share this machine's cores and disk,
and each has a package cache of its own, so the time per host is that of one machine doing the work of all.
--full: the whole cpu environment, otherwise without TensorFlow and its like. Needs root, as the tests do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPO
from tests.support.fleet_lab import Checkout, Fleet, make_checkout, small_layer


def measured(fleet: Fleet, **variables: Any) -> tuple[float, float]:
    """Run deploy.yml; return its seconds, and those of the controller's processor."""
    before = fleet.processor_seconds()
    seconds = fleet.play("deploy.yml", **variables).seconds
    return seconds, fleet.processor_seconds() - before


def measure(folder: Path, checkout: Checkout, count: int) -> list[tuple[float, float]]:
    """Return what was measured of a first run, of one with nothing to do, and of one through a relay."""
    with Fleet(folder, count) as fleet:
        fleet.roll_out(checkout)
        fleet.environment.pop("UV_CACHE_DIR")
        found = [measured(fleet), measured(fleet)]
        for node in fleet.nodes:
            shutil.rmtree(fleet.home(node))
            shutil.rmtree(fleet.work(node))
        started, before = time.monotonic(), fleet.processor_seconds()
        relay = fleet.nodes[0]
        shared = relay.home / "shared"
        shared.mkdir()
        fleet.lab.laptop.run(["scp", "-q", str(checkout.bundle), f"{relay.name}:shared/cpu.tar"])
        sent, cost = time.monotonic() - started, fleet.processor_seconds() - before
        seconds, more = measured(
            fleet,
            colab_local_bundle="",
            colab_local_bundle_url=fleet.serve(shared, machine=relay) + "cpu.tar",
            colab_local_bundle_sha256=hashlib.sha256(checkout.bundle.read_bytes()).hexdigest(),
        )
        return [*found, (sent + seconds, cost + more)]


def main() -> None:
    """Print one line per number of hosts."""
    parser = argparse.ArgumentParser(description="Measure a roll-out from 1 to 8 hosts.")
    parser.add_argument("--full", action="store_true", help="with TensorFlow")
    parser.add_argument("--hosts", default="1,2,4,8", help="numbers of hosts (default: 1,2,4,8)")
    args = parser.parse_args()
    layer = (REPO / "lockfiles" / "cpu" / "pypi.txt").read_text() if args.full else small_layer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout = make_checkout(folder / "checkout", layer).with_bundle()
        size = checkout.bundle.stat().st_size
        print(f"{os.cpu_count()} cores, bundle of {size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}", flush=True)
        print("hosts   first run, pushed (processor)   nothing to do   through a relay   load")
        for count in map(int, args.hosts.split(",")):
            found = measure(folder / f"fleet{count}", checkout, count)
            shown = "   ".join(f"{seconds:7.1f} s ({cost:5.1f} s)" for seconds, cost in found)
            print(f"{count:5}   {shown}   {os.getloadavg()[0]:.1f}", flush=True)
            shutil.rmtree(folder / f"fleet{count}")


if __name__ == "__main__":
    main()
