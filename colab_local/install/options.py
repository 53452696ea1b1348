"""What was asked of an installation: the part of the command line that goes down to the steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ENGINES = ("auto", "miniforge", "anaconda", "conda", "pixi", "host")


class Options(NamedTuple):
    """How an environment is wanted.

    env: its name in lockfiles/index.json; home: where everything lands; lockfiles: their folder; engine: one of
    ENGINES; python: the host engine's interpreter, "" for the machine's; mirrors: FROM=TO rules; offline: a bundle,
    "" for none; bundle_lock: the sha256 of the lockfiles/index.json that it must have, "" for the checkout's;
    bundle_signers: who may have signed it, an allowed signers file, "" for anybody; port: Jupyter's, on loopback;
    notebook_dir: what Colab's file pane shows; gpu_check: look for a GPU; starts: Jupyter is started at the end,
    here or as a service; lab: JupyterLab is, and not Notebook 6.
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
    starts: bool
    lab: bool = False
    bundle_lock: str = ""
    bundle_signers: str = ""
