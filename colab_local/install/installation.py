"""One environment in the making: where it goes, the steps that make it, and the switch to it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

from colab_local.base import documents
from colab_local.base.downloads import download_all
from colab_local.base.errors import EXIT_FAILED, EXIT_USAGE, Failure
from colab_local.base.files import (
    disk_failure,
    is_full,
    link_atomically,
    remove_tree,
    sha256_of,
    write_atomically,
)
from colab_local.base.programs import run
from colab_local.base.progress import Waiting
from colab_local.base.terminal import Screen
from colab_local.install import home as homes
from colab_local.install.engines import Engine
from colab_local.install.jupyter import add_jupyter, jupyter_argv
from colab_local.install.lockfiles import Lock, parse_explicit
from colab_local.install.options import Options
from colab_local.install.packages import install_again, install_packages
from colab_local.install.tryout import Damage, GpuFailure, try_out

ASIDE = "aside.json"  # beside the lock's copies: what the receipt will need of an environment that is kept aside


class Step(NamedTuple):
    """A step of a plan: a dry run prints it, a real run applies it. where: the folder that it writes to."""

    name: str
    title: str
    where: Path
    apply: Callable[[], None]


class Installation:
    """What the steps share.

    options: what was asked for; lock: what is to be installed; engine: the name of who makes the prefix; maker: the
    engine itself, None where the environment is made already; wheels: a bundle's folder of wheels, or None.
    """

    def __init__(
        self,
        options: Options,
        lock: Lock,
        engine: str,
        screen: Screen,
        maker: Engine | None = None,
        wheels: Path | None = None,
    ) -> None:
        self.options, self.lock, self.engine, self.screen = options, lock, engine, screen
        self.maker, self.wheels = maker, wheels
        self.home = options.home
        self.port = options.port  # in the next steps; another one where a stranger has it
        self.root = homes.environment_root(self.home, lock.name)
        self.prefix = homes.environment_prefix(self.root, lock.env, engine)
        self.receipts = self.home / "receipts" / lock.name
        self.link = self.home / "current" / lock.env
        self.new_parents = sum(not path.exists() for path in self.home.parents)
        self.notices: list[str] = []
        self.gpus: list[dict[str, Any]] | None = None  # what was found, None where nobody looked
        self.seconds: dict[str, float] = {}
        self.overlay: dict[str, str] = {}
        self.seal: dict[str, str] = {}
        self.gpu_line = ""  # how the GPU did, for the end

    def is_made(self) -> bool:
        """Return whether the environment is whole: it has a receipt, which is written last."""
        return bool(homes.read_receipt(self.home, self.lock.name)) and (self.prefix / "bin" / "python").exists()

    def is_aside(self) -> bool:
        """Return whether the environment is whole but for its GPU part: it was kept, only the try-out is repeated."""
        return (self.receipts / ASIDE).exists() and (self.prefix / "bin" / "python").exists()

    def is_current(self) -> bool:
        """Return whether current/<env> points at it."""
        return self.link.exists() and self.link.resolve() == self.prefix.resolve()

    def room(self) -> tuple[int, int]:
        """Return the bytes that its layers have to download at the most, and those that they take on the disk."""
        layers = ["conda", "pypi"] if self.lock.layer == "conda" else ["pypi"]
        fetched = [] if self.options.offline else layers
        sizes = self.lock.bytes
        return (
            sum(sizes.get(f"{layer}_download") or 0 for layer in fetched),
            sum(sizes.get(f"{layer}_installed") or 0 for layer in layers),
        )

    def jupyter_argv(self) -> list[str]:
        """Return the command that the user is given: through current/, so that it outlives updates."""
        return jupyter_argv(
            str(self.link), self.port, str(self.options.notebook_dir), os.geteuid() == 0, self.options.lab
        )

    # -- the plan

    def steps(self) -> list[Step]:
        """Return what has to be done; empty when nothing has."""
        switch = Step("switch", "Switch to the new environment", self.link, self.switch)
        if self.is_made():
            words = self.new_choices()
            choice = Step("choices", f"Remember for later runs: {words}", self.receipts, self.remember)
            return [*([] if self.is_current() else [switch]), *([choice] if words else [])]
        tried = [
            Step("try", "Warm up and try out (TensorFlow, XLA, extension)", self.root, self.try_out),
            Step("receipt", "Write the receipt", self.receipts, self.write_receipt),
            switch,
        ]
        if self.is_aside():
            return tried
        assert self.maker is not None
        return [
            *self.tool_steps(self.maker),
            Step("create", f"Create the environment with {self.maker.describe()}", self.root, self.create),
            Step("packages", "Install the locked Python packages", self.root, self.install_packages),
            Step("jupyter", "Add the server extension and settings", self.root, self.add_jupyter),
            *tried,
        ]

    def tool_steps(self, maker: Engine) -> list[Step]:
        """Return the steps that bring the engine and its packages."""
        steps = []
        files, tool = maker.needs(self.lock), maker.tool()
        if files:
            packages = len(parse_explicit(self.lock.conda))
            what = [maker.name] if len(files) > packages else []
            what += [f"{packages} conda packages"] if packages else []
            title = "Download and check " + ", ".join(what)
            steps.append(Step("download", title, self.home / "cache", self.download))
        if tool:
            steps.append(Step(maker.tool_step, maker.tool_title(), tool, self.install_tool))
        return steps

    # -- the steps, in their order; every one finds out by itself what is left to do

    def download(self) -> None:
        """Bring what the engine needs, several files at a time, each checked against the lock."""
        assert self.maker is not None
        download_all(self.maker.needs(self.lock), self.screen, self.maker.job.rules)

    def install_tool(self) -> None:
        """Install the engine's program."""
        assert self.maker is not None
        try:
            self.maker.install_tool(self.lock)
        except Failure as problem:
            self.fall_back(problem)

    def create(self) -> None:
        """Make the prefix."""
        assert self.maker is not None
        try:
            self.maker.create(self.lock, self.root)
        except Failure as problem:
            self.fall_back(problem)
            self.create()

    def fall_back(self, problem: Failure) -> None:
        """Take the next engine that --engine auto would take, whole; raise the failure where there is none.

        A file that is not the locked one, or that can't be had, is no fault of the engine's.
        """
        maker = self.maker
        spare = maker.spare() if maker and problem.code == EXIT_FAILED else None
        if maker is None or spare is None:
            raise problem
        notice = f"{maker.describe()} failed, {spare.describe()} is used instead: {problem.what}"
        self.screen.report(f"note: {notice}")
        self.notices.append(notice)
        remove_tree(self.root)
        self.maker, self.engine = spare, spare.name
        self.prefix = homes.environment_prefix(self.root, self.lock.env, self.engine)
        spare.check()
        self.download()
        if spare.tool():
            self.install_tool()

    def install_packages(self) -> None:
        """Install the Python layer."""
        assert self.maker is not None
        uv = self.maker.uv(self.prefix)
        install_packages(uv, self.prefix, self.lock, self.receipts / "lock", self.wheels, self.screen)

    def add_jupyter(self) -> None:
        """Add environments/jupyter."""
        self.overlay = add_jupyter(self.prefix, self.lock, self.screen)

    def try_out(self) -> None:
        """Prove the environment and leave it warm; meanwhile its seal is taken."""
        if self.is_aside():
            self.overlay = documents.read(self.receipts / ASIDE, {"jupyter": {"*": str}})["jupyter"]
        checks_gpu = self.lock.accelerator == "gpu" and self.options.gpu_check
        cards = (self.gpus or []) if checks_gpu else None
        names = sorted(self.lock.packages())
        try:
            found = try_out(self.prefix, self.lock.accelerator, names, cards, self.screen)
        except Damage as damage:
            assert self.maker is not None
            self.screen.report(f"note: {damage.what}: they are installed again, not from uv's cache")
            uv = self.maker.uv(self.prefix)
            install_again(uv, self.prefix, damage.packages, self.lock, self.home / "cache", self.wheels, self.screen)
            found = try_out(self.prefix, self.lock.accelerator, names, cards, self.screen)
        self.notices += found.notices
        if self.lock.accelerator == "gpu" and cards is None:
            self.notices.append("tried out without a GPU: CUDA's libraries are found, nothing ran on a GPU yet")
        self.seal, self.gpu_line = found.seal, found.gpu

    def write_receipt(self) -> None:
        """Write down what was made: from now on the environment counts as whole."""
        code = "import platform; print(platform.python_version())"
        receipt = {
            "schema": homes.RECEIPT_SCHEMA,
            "name": self.lock.name,
            "env": self.lock.env,
            "platform": self.lock.platform,
            "accelerator": self.lock.accelerator,
            "engine": self.engine,
            "layer": self.lock.layer,
            "python": run([self.prefix / "bin" / "python", "-I", "-c", code], self.screen).strip(),
            "lock": {
                "digest": self.lock.digest,
                "files": {name: sha256_of(self.receipts / "lock" / name) for name in self.lock.texts()},
                "jupyter": self.overlay,
            },
            **self.choices(),
            "seal": self.seal,
            "home": str(self.home),  # only ever compared: a copied home is another one
            "parents": self.new_parents,  # how many folders above the home were made for it
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "notices": self.notices,
            **({"bundle": Path(self.options.offline).absolute().name} if self.options.offline else {}),
        }
        write_atomically(self.receipts / "receipt.json", json.dumps(receipt, indent=1) + "\n")
        remove_tree(homes.begun_mark(self.home, self.lock.name))
        with contextlib.suppress(FileNotFoundError):
            (self.receipts / ASIDE).unlink()

    def choices(self) -> dict[str, Any]:
        """Return what the receipt holds of the options: every start of Jupyter asks it."""
        folder = self.options.notebook_dir
        own = folder != homes.user_home()  # else it is the home folder of whoever starts
        return {"port": self.options.port, "notebook_dir": str(folder), "own_folder": own, "lab": self.options.lab}

    def new_choices(self) -> str:
        """Return the options that the receipt does not hold yet, as one types them; empty when it holds them all."""
        known, now = homes.read_receipt(self.home, self.lock.name) or {}, self.choices()
        before = known.get("notebook_dir") if known.get("own_folder") else None
        folder = now["notebook_dir"] if now["own_folder"] else None
        words = {
            f"--port {now['port']}": known.get("port") != now["port"],
            f"--notebook-dir {shlex.quote(folder) if folder else '~'}": before != folder,
            "--lab" if now["lab"] else "--no-lab": bool(known.get("lab")) != now["lab"],
        }
        return " ".join(word for word, new in words.items() if new)

    def remember(self) -> None:
        """Write down what was chosen for Jupyter."""
        path = self.receipts / "receipt.json"
        receipt = documents.read(path, homes.RECEIPT_SHAPE)
        write_atomically(path, json.dumps({**receipt, **self.choices()}, indent=1) + "\n")

    def set_aside(self) -> None:
        """Keep an environment whose GPU part alone has failed: 3 GB need not come again when the driver is well."""
        self.receipts.mkdir(parents=True, exist_ok=True)
        write_atomically(self.receipts / ASIDE, json.dumps({"jupyter": self.overlay}) + "\n")

    def switch(self) -> None:
        """Make it the environment in use; the one before stays, for --rollback."""
        if self.link.exists() and not self.is_current():
            link_atomically(self.home / "previous" / self.lock.env, self.link.resolve())
        link_atomically(self.link, self.prefix)

    # -- all of them

    def apply(self, steps: list[Step]) -> None:
        """Execute the plan; an environment that is not whole at the end is removed, one without a GPU kept aside."""
        homes.demand_ours(self.home)  # again: the folder may have been made by another since we looked
        if not self.is_made() and not self.is_aside():
            self.begin()
        try:
            for number, step in enumerate(steps, 1):
                if self.screen.interrupted:
                    raise KeyboardInterrupt
                started = time.monotonic()
                with Waiting(self.screen, f"[{number}/{len(steps)}] {step.title}"):
                    step.apply()
                self.seconds[step.name] = time.monotonic() - started
        except GpuFailure as failure:
            self.set_aside()
            what = (
                f"{failure.what}; the environment is kept: the same command, typed again, repeats the try-out alone"
            )
            raise Failure(
                what, f"python3 bootstrap.py --env {self.lock.env} --no-gpu-check", failure.code
            ) from failure
        except BaseException as problem:
            if not self.is_made() and not self.is_aside():
                self.remove()
            if is_full(problem) or is_full(problem.__cause__):
                raise disk_failure(self.home) from problem
            raise

    def begin(self) -> None:
        """Remove what a killed run has left, and mark what this one makes as ours; raise Failure if it is not."""
        if os.path.lexists(str(self.root)) and not homes.is_half_made(self.home, self.lock.name):
            raise Failure(
                f"{self.root} is there and has no receipt of ours: it is left alone",
                f"mv {shlex.quote(str(self.root))} {shlex.quote(str(self.root))}.yours",
                EXIT_USAGE,
            )
        self.remove()
        write_atomically(homes.begun_mark(self.home, self.lock.name), f"{os.getpid()}\n")

    def remove(self) -> None:
        """Remove the environment, then its receipt: as long as that is there, what is left counts as ours."""
        remove_tree(self.root)
        remove_tree(self.receipts)

    def result(self, steps: list[Step]) -> dict[str, Any]:
        """Return what --json prints of a plan before anything is done."""
        return {
            "environment": self.lock.env,
            "platform": self.lock.platform,
            "engine": self.engine,
            "home": str(self.home),
            "prefix": str(self.link),
            "lock": self.lock.digest,
            "plan": [{"name": step.name, "title": step.title, "where": str(step.where)} for step in steps],
            "changed": False,
            "notices": self.notices,
            "jupyter_argv": self.jupyter_argv(),
            **({} if self.gpus is None else {"gpus": self.gpus}),
        }
