"""What was asked of an installation: the part of the command line that goes down to the steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ENGINES = ("auto", "miniforge", "anaconda", "conda", "pixi", "host")


class Options(NamedTuple):
    """How an environment is wanted.

    env: its name in lockfiles/index.json; home: where everything lands; lockfiles: their folder; engine: one of
    ENGINES; python: the host engine's interpreter, "" for the machine's; mirrors: FROM=TO rules; offline: a bundle,
    "" for none; port: Jupyter's, on loopback; notebook_dir: what Colab's file pane shows; gpu_check: look for a GPU;
    launch: Jupyter is started at the end.
    """

    env: str
    home: Path
    lockfiles: Path
    engine: str
    python: str
    mirrors: tuple[str, ...]
    offline: str
    port: int
    notebook_dir: Path
    gpu_check: bool
    launch: bool
