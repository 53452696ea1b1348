"""Measure how the time of a roll-out grows with the number of hosts: the numbers in scripts/fleet/README.md.

    python -m tests.support.fleet_scaling [--full] [--hosts 1,2,4,8]

For each number, hosts in network namespaces of their own are made, and deploy.yml runs three times: a first
installation from a bundle, a second run that finds nothing to do, and the same again on hosts that have lost their
environments but not their bundles. All hosts share this machine's cores and disk, and each has a package cache of
its own, so the time per host is that of one machine doing the work of all. --full: the whole cpu environment,
otherwise without TensorFlow and its like. Needs root, as the tests do.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
from pathlib import Path

from tests.conftest import REPO
from tests.support.fleet_lab import Checkout, Fleet, make_checkout, small_layer


def measure(folder: Path, checkout: Checkout, count: int) -> tuple[float, float, float, float]:
    """Return the seconds of a first run, of a run without anything to do, and of an installation anew.

    The last number is the processor time, in seconds, that Ansible and ssh took for the run without anything to do.
    """
    with Fleet(folder, count) as fleet:
        fleet.roll_out(checkout)
        fleet.environment.pop("UV_CACHE_DIR")
        first = fleet.play("deploy.yml").seconds
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        second = fleet.play("deploy.yml").seconds
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        for node in fleet.nodes:
            shutil.rmtree(fleet.home(node))
        anew = fleet.play("deploy.yml").seconds
        return first, second, anew, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


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
        print("hosts   first run   nothing to do (its cost here)   installed anew   load")
        for count in map(int, args.hosts.split(",")):
            first, second, anew, cost = measure(folder / f"fleet{count}", checkout, count)
            load = os.getloadavg()[0]
            print(
                f"{count:5} {first:9.1f} s {second:13.1f} s ({cost:11.1f} s) {anew:14.1f} s {load:6.1f}", flush=True
            )
            shutil.rmtree(folder / f"fleet{count}")


if __name__ == "__main__":
    main()
