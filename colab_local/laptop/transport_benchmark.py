"""Measure both of Colab's transports in one run: the time that a cell takes, and how quickly output arrives.

    python3 -m colab_local.laptop.transport_benchmark http://localhost:8888/?token=...
    python3 -m colab_local.laptop.transport_benchmark --megabytes 50 --cells 50 -      the address from standard input

Round trip: the median over many cells of the time from sending `1` until the kernel is idle again. Throughput: the
best of a few cells that print so many megabytes. The transports take turns, so that a busy machine hurts both alike.
Standard library only; scripts/benchmark.py uses the functions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from typing import NamedTuple, Sequence

from colab_local.laptop.colab_page import TRANSPORTS, Notebook, Runtime, open_transport, parse_url


class Measured(NamedTuple):
    """What one transport gave: seconds of a trivial cell's round trip (median), megabytes per second of output."""

    round_trip: float
    throughput: float


def time_cell(notebook: Notebook, code: str, printed: int, timeout: float = 300.0) -> float:
    """Return the seconds that the cell `code` takes; raises ValueError unless it prints `printed` characters."""
    started = time.perf_counter()
    output = notebook.run(code, timeout)
    seconds = time.perf_counter() - started
    if len(output) != printed:
        raise ValueError(f"the cell printed {len(output)} characters instead of {printed}")
    return seconds


def median_cell(url: str, cells: int = 60) -> float:
    """Return the median of the seconds that a trivial cell takes over the direct transport to the address `url`."""
    with Notebook(open_transport(parse_url(url), "direct")) as notebook:
        return statistics.median(time_cell(notebook, "1", 2) for _ in range(cells))


def measure(
    runtimes: dict[str, Runtime], cells: int = 30, megabytes: int = 50, repeats: int = 3
) -> dict[str, Measured]:
    """Measure every transport to every runtime, in turns.

    runtimes: by label, e.g. {"": straight, "ssh": through a tunnel}; the result's keys are "direct", "direct ssh" ...
    cells: trivial cells per transport; megabytes: printed by one cell (10**6 bytes each); repeats: of that cell.
    Raises OSError and colab_page's exceptions where a connection fails.
    """
    trips: dict[str, list[float]] = {}
    floods: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        notebooks = {}
        for label, runtime in runtimes.items():
            for name in TRANSPORTS:
                transport = open_transport(runtime, name)
                stack.callback(transport.close)
                notebooks[f"{name} {label}".strip()] = stack.enter_context(Notebook(transport))
        for notebook in notebooks.values():
            time_cell(notebook, "1", 2)  # the kernel's first cell is slower
        for _ in range(cells):
            for key, notebook in notebooks.items():
                trips.setdefault(key, []).append(time_cell(notebook, "1", 2))
        flood = f"print('x' * {megabytes * 10**6})"
        for _ in range(repeats):
            for key, notebook in notebooks.items():
                floods.setdefault(key, []).append(time_cell(notebook, flood, megabytes * 10**6 + 1))
    return {key: Measured(statistics.median(trips[key]), megabytes / min(floods[key])) for key in trips}


def ratios(measured: dict[str, Measured]) -> dict[str, float]:
    """Return how many times as long http_over_ws takes as the direct way, for the round trip and for output."""
    direct, proxied = measured["direct"], measured["http_over_ws"]
    return {
        "round_trip": proxied.round_trip / direct.round_trip,
        "output": direct.throughput / proxied.throughput,
    }


def table(measured: dict[str, Measured]) -> str:
    """Return the measurements as a Markdown table."""
    rows = [f"| {k} | {m.round_trip * 1e3:.1f} | {m.throughput:.0f} |" for k, m in measured.items()]
    return "\n".join(["| transport | round trip, ms | output, MB/s |", "|---|---|---|", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit code."""
    intro, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="transport_benchmark.py",
        description=intro,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the address as pasted into Colab; - reads it from standard input")
    parser.add_argument("--cells", type=int, default=30, help="trivial cells per transport; default 30")
    parser.add_argument("--megabytes", type=int, default=50, help="printed by one cell; default 50")
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of a table")
    args = parser.parse_args(argv)
    try:
        runtime = parse_url(sys.stdin.readline().strip() if args.url == "-" else args.url)
    except ValueError as error:
        parser.error(str(error))
    try:
        measured = measure({"": runtime}, args.cells, args.megabytes)
    except Exception as error:
        print(f"error: {error}\nhint: python3 scripts/doctor.py says why", file=sys.stderr)
        return 1
    if args.json:
        document = {key: value._asdict() for key, value in measured.items()}
        print(json.dumps({"measured": document, "http_over_ws / direct": ratios(measured)}, indent=2))
        return 0
    print(table(measured))
    for what, ratio in ratios(measured).items():
        print("http_over_ws / direct, {}: {:.2f}".format(what.replace("_", " "), ratio))
    return 0


if __name__ == "__main__":
    sys.exit(main())
