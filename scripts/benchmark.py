#!/usr/bin/env python3
"""Measure colab-local on this machine: python3 scripts/benchmark.py install|train|transports|verify

    install     cold installation against `uv pip install` of the same file, second run, peak memory
    train       the 2018 article's CIFAR-10 network, CPU against GPU where there is one
    transports  a cell's round trip and a 50 MB output: direct, over jupyter_http_over_ws, both through ssh
    verify      --verify against sha256sum over the same files

Every comparison is made in one run, whole processes, and reported as a ratio: absolute seconds depend on the machine
and on the link. Nothing is installed outside a temporary folder. Standard library; `train` and `transports` run in an
environment that bootstrap.py made (--home); `transports` starts a Jupyter and an sshd of its own on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colab_local.base.command_line import Parser, run_program
from colab_local.base.errors import EXIT_OK, Failure
from colab_local.base.network import free_port, listens
from colab_local.base.programs import child_environment
from colab_local.base.terminal import Screen
from colab_local.install.home import default_home, is_current, not_installed, read_receipts
from colab_local.install.jupyter import jupyter_argv
from colab_local.install.lockfiles import DEFAULT_ENVIRONMENT, REPOSITORY, read_index
from colab_local.install.tryout import CHOICES
from colab_local.laptop import transport_benchmark
from colab_local.laptop.colab_page import parse_url
from colab_local.manage import verify

# The article's network (Keras' cifar10_cnn example of 2018): 1,250,858 parameters. Random pictures of the same shape
# cost the same to train on, and need no download.
TRAIN = r"""
import json, os, sys, time
from pathlib import Path
from colab_local_jupyter import settings

settings.prepare_kernel_environment(os.environ, Path(sys.prefix))  # as a cell has it
import keras, numpy as np, tensorflow as tf

class Alive(keras.callbacks.Callback):
    said = time.monotonic()
    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - Alive.said > 4:
            Alive.said = time.monotonic()
            print(f"  {device}: step {batch + 1} of {steps}", file=sys.stderr, flush=True)

L = keras.layers
def network():
    return keras.Sequential([
        L.Input((32, 32, 3)), L.Conv2D(32, 3, padding="same", activation="relu"), L.Conv2D(32, 3, activation="relu"),
        L.MaxPooling2D(), L.Dropout(0.25), L.Conv2D(64, 3, padding="same", activation="relu"),
        L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(), L.Dropout(0.25), L.Flatten(),
        L.Dense(512, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax")])
steps = int(sys.argv[1])
pictures = np.random.rand(32 * steps, 32, 32, 3).astype("float32")
labels = np.random.randint(0, 10, 32 * steps)
found = {"parameters": network().count_params()}
for device in ["CPU:0"] + (["GPU:0"] if tf.config.list_physical_devices("GPU") else []):
    print(f"Training on {device} ...", file=sys.stderr, flush=True)
    with tf.device("/" + device):
        model = network()
        model.compile("rmsprop", "sparse_categorical_crossentropy")
        model.fit(pictures[:320], labels[:320], batch_size=32, verbose=0)  # compiled and warm
        started = time.perf_counter()
        model.fit(pictures, labels, batch_size=32, verbose=0, callbacks=[Alive()])
        found[device] = (time.perf_counter() - started) / steps * 1000
print(json.dumps(found))
"""


def timed(argv: list[str], env: dict[str, str]) -> tuple[float, int]:
    """Run a program; return its wall time in seconds and its own peak memory in bytes (VmHWM; 0 without /proc)."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while child.poll() is None:
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
                peak = max(peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line))
            except (OSError, TypeError):  # it has just ended, or there is no /proc
                pass
            time.sleep(0.02)
        if child.returncode:
            output.seek(0)
            raise SystemExit(f"error: {argv[0]} failed ({child.returncode}):\n{output.read()[-2000:]}")
    return time.perf_counter() - started, peak


def install(rounds: int) -> None:
    """Compare a cold bootstrap.py (host engine) with uv installing the same file into an empty venv.

    Each starts with an empty package cache. Warm-up and smoke test ("try") are reported apart: uv does not do them.
    """
    python = getattr(sys, "_base_executable", sys.executable)
    index = read_index(REPOSITORY / "lockfiles")
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(prefix="colab-local-benchmark-") as name:
            folder = Path(name)
            env = child_environment(HOME=name)
            home = folder / "home"
            cold = env | {"UV_CACHE_DIR": str(folder / "cache-a"), "PIP_CACHE_DIR": str(folder / "pip-a")}
            argv = [python, str(REPOSITORY / "bootstrap.py"), "--cpu", "--engine", "host", "--prefix", str(home)]
            argv += ["--port", "48888"]
            whole, peak = timed(argv, cold)
            receipt = read_receipts(home)[0]
            tried = receipt["seconds"]["try"]
            uv = home / "tools" / f"uv-{index['uv']['version']}" / "bin" / "uv"
            bare = folder / "bare"
            subprocess.run([python, "-m", "venv", "--without-pip", str(bare)], check=True, env=env)
            requirements = home / "receipts" / receipt["name"] / "lock" / "pypi.txt"
            into = [
                "--python",
                str(bare / "bin" / "python"),
                "--no-deps",
                "--require-hashes",
                "-r",
                str(requirements),
            ]
            reference, _ = timed([str(uv), "pip", "install", *into], env | {"UV_CACHE_DIR": str(folder / "cache-b")})
            second = min(timed(argv, cold)[0] for _ in range(5))
        print(f"round {number}: uv alone {reference:.1f} s, bootstrap.py {whole - tried:.1f} s", end=" ")
        print(f"(ratio {(whole - tried) / reference:.2f}) + warm-up and smoke test {tried:.1f} s;", end=" ")
        print(f"second run {second:.2f} s; bootstrap.py's own peak memory {peak / 1e6:.0f} MB")


def environment_in_use(home: Path, wanted: str | None) -> str:
    """Return the name of the environment to measure: the wanted one, else one for a GPU, else the newest in use."""
    used = [receipt for receipt in read_receipts(home) if is_current(home, receipt)]
    names = [receipt["env"] for receipt in used]
    if wanted in names:
        return str(wanted)
    if wanted or not names:
        raise not_installed(home, wanted or DEFAULT_ENVIRONMENT)
    return next((str(r["env"]) for r in used if r.get("accelerator") == "gpu"), str(names[0]))


def train(home: Path, env: str, steps: int) -> None:
    """Train the article's network on random pictures, on the CPU and on the GPU if TensorFlow sees one."""
    python = str(home / "current" / env / "bin" / "python")
    choices = {name: value for name, value in os.environ.items() if CHOICES.match(name)}
    quiet = child_environment(TF_CPP_MIN_LOG_LEVEL="3") | choices
    argv = [python, "-I", "-c", TRAIN, str(steps)]
    done = subprocess.run(argv, env=quiet, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failure(
            f"training in the environment {env} failed: see above", f"python3 bootstrap.py --env {env} --verify"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"CIFAR-10 network, {found['parameters']} parameters, batch 32, {steps} steps on {os.cpu_count()} CPUs")
    print(f"CPU {found['CPU:0']:.1f} ms/step")
    if "GPU:0" in found:
        print(f"GPU {found['GPU:0']:.2f} ms/step: {found['CPU:0'] / found['GPU:0']:.1f} times faster")
    else:
        print(f"GPU: TensorFlow sees none in the environment {env}")


def wait_until(ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as `ready` is true; end the program when it isn't after so many seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} did not start within {seconds:.0f} s")
        time.sleep(0.1)


@contextlib.contextmanager
def running(argv: list[str], **options: Any) -> Iterator[None]:
    """Run a server while the block lasts."""
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(argv, **(quiet | options))
    try:
        yield
    finally:
        child.terminate()
        child.wait()


@contextlib.contextmanager
def tunnel(folder: Path, port: int) -> Iterator[int]:
    """Yield a port that leads through ssh, by an sshd of our own on loopback, to `port`.

    With a session, as connect.py and the printed line have one: see ssh_line.
    """
    sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if sshd is None:
        raise SystemExit("error: there is no sshd to measure with\nhint: sudo apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks itself up; its package makes it at boot
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    there, here = free_port(20000), free_port(20000)
    settings = {"ListenAddress": f"127.0.0.1:{there}", "HostKey": folder / "host", "PidFile": "none", "UsePAM": "no"}
    settings |= {"AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no", "PasswordAuthentication": "no"}
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    ssh = ["ssh", "-F", "none", "-i", str(folder / "user"), "-p", str(there), "-o", "StrictHostKeyChecking=no"]
    ssh += ["-o", f"UserKnownHostsFile={folder}/known_hosts", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
    with running([sshd, "-D", "-f", str(folder / "sshd_config")]):
        wait_until(lambda: listens(there), "sshd")
        with running([*ssh, "-L", f"{here}:127.0.0.1:{port}", "127.0.0.1", "cat"], stdin=subprocess.PIPE):
            wait_until(lambda: listens(here), "the tunnel")
            yield here


def transports(home: Path, env: str) -> None:
    """Measure both transports to one Jupyter, straight and through ssh, in turns."""
    with tempfile.TemporaryDirectory(prefix="colab-local-benchmark-") as name:
        folder, port, token = Path(name), free_port(20000), secrets.token_hex(24)
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(token)
        argv = jupyter_argv(str(home / "current" / env), port, name, os.geteuid() == 0)
        quiet = child_environment(HOME=name, JUPYTER_TOKEN_FILE=str(folder / "token"))
        with running(argv, env=quiet, stdout=subprocess.DEVNULL), tunnel(folder, port) as through:
            wait_until(lambda: listens(port), "Jupyter")
            runtimes = {
                label: parse_url(f"http://localhost:{at}/?token={token}")
                for label, at in (("", port), ("through ssh", through))
            }
            measured = transport_benchmark.measure(runtimes)
    print(transport_benchmark.table(measured))
    for what, ratio in transport_benchmark.ratios(measured).items():
        print(f"http_over_ws / direct, {what.replace('_', ' ')}: {ratio:.2f}")
    for way in ("direct", "http_over_ws"):
        straight, far = measured[way], measured[f"{way} through ssh"]
        trip, output = far.round_trip / straight.round_trip, straight.throughput / far.throughput
        print(f"through ssh / straight, {way}: round trip {trip:.2f}, output {output:.2f}")


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(prog="benchmark.py", description=__doc__)
    parser.add_argument("what", choices=["install", "train", "transports", "verify"])
    parser.add_argument("--home", type=Path, default=default_home(), help="where colab-local is installed")
    parser.add_argument("--env", help="environment to measure (default: the one in use, one for a GPU first)")
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure (default: 3)")
    parser.add_argument("--steps", type=int, default=200, help="of training (default: 200)")
    return parser


def measure(args: argparse.Namespace, screen: Screen) -> int:
    """Measure what was asked for."""
    if args.what == "install":
        install(args.rounds)
        return EXIT_OK
    env = environment_in_use(args.home, args.env)
    if args.what == "train":
        train(args.home, env, args.steps)
    elif args.what == "transports":
        transports(args.home, env)
    else:
        found = verify.measure(args.home, env, screen, args.rounds)
        print(", ".join(f"{name} {value}" for name, value in found.items()))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmark.py with the given arguments and return its exit code."""
    return run_program(make_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
