"""Engines: who makes an environment, and the one place that chooses between them."""

from __future__ import annotations

import re
from typing import Any

from colab_local.base import documents
from colab_local.base.downloads import is_reachable, rewrite
from colab_local.base.errors import EXIT_MACHINE, EXIT_USAGE, Failure
from colab_local.install.engines.conda import FoundConda, OwnConda, demand_conda, find_conda
from colab_local.install.engines.engine import Engine, Job
from colab_local.install.engines.host import Host, find_python
from colab_local.install.engines.pixi import Pixi
from colab_local.install.engines.tool import MARK_SHAPE
from colab_local.install.lockfiles import parse_explicit, pythons_of, read_lock_file

__all__ = ["Engine", "Job", "choose_engine", "demand_conda_layer", "make_engine"]


def make_engine(name: str, job: Job, python: str = "") -> Engine:
    """Return the engine of that name; python: the interpreter that the host engine was told to use."""
    if name in ("miniforge", "anaconda"):
        return OwnConda(job, name)
    if name == "pixi":
        return Pixi(job)
    if name == "conda":
        return FoundConda(job, demand_conda(job.screen))
    return Host(job, *find_python(python, pythons_of(job.index, job.env), job.screen))


def choose_engine(wanted: str, python: str, job: Job) -> tuple[Engine, list[str]]:
    """Return the engine for --engine `wanted` on this machine, and what the user should know about it."""
    if python and wanted not in ("auto", "host"):
        raise Failure(
            f"--python is for --engine host; {wanted} brings a Python of its own",
            f"python3 bootstrap.py !--python --engine {wanted}",
            EXIT_USAGE,
        )
    if python or wanted != "auto":
        name = "host" if python else wanted
        demand_conda_layer(name, job.index, job.env, "python3 bootstrap.py !--python --engine miniforge")
        return make_engine(name, job, python), []
    name, notices = what_auto_means(job)
    mirror = "https://conda.anaconda.org/=https://mirror.example.org/conda/"
    demand_conda_layer(name, job.index, job.env, f"python3 bootstrap.py --mirror {mirror}", *notices)
    try:
        engine = make_engine(name, job)
        if name == "host":
            locked = job.index["environments"][job.env]["python"]
            notices = [
                f"{notice} (Python {engine.layer.partition('-')[2]} instead of {locked})" for notice in notices
            ]
        engine.spares = [make_engine(other, job) for other in spare_names(name, job)]
        return engine, notices
    except Failure as problem:  # the reason for the engine belongs to the reason why it can't be
        raise Failure("; ".join([*notices, problem.what]), problem.hint, problem.code) from problem


def demand_conda_layer(engine: str, index: dict[str, Any], env: str, hint: str, *notices: str) -> None:
    """Raise Failure where the host engine was chosen for an environment whose TensorFlow is a conda package.

    notices: why it was chosen.
    """
    if engine == "host" and index["environments"][env].get("needs_conda"):
        why = "".join(notice.partition(": ")[0] + ", and " for notice in notices)
        what = (
            f"{why}TensorFlow and CUDA of {env} are conda-forge's packages: this machine's own Python can't have them"
        )
        raise Failure(what, hint, EXIT_MACHINE if notices else EXIT_USAGE)


def spare_names(name: str, job: Job) -> list[str]:
    """Return the engines that do what the named one should have done, the best first; none for the host engine.

    Only those with an installer for this platform, and none whose place somebody else's program has.
    """
    names = [other for other in ("miniforge", "pixi") if name != "host" and other != name]
    names = [other for other in names if job.platform in job.index["installers"][other]["files"]]
    return [other for other in names if can_work(make_engine(other, job))]


def can_work(engine: Engine) -> bool:
    """Return whether an engine says that it can work on this machine."""
    try:
        engine.check()
    except Failure:
        return False
    return True


def what_auto_means(job: Job) -> tuple[str, list[str]]:
    """Return the name of the engine that `auto` means on this machine, and what the user should know about it."""
    try:  # ours from an earlier run stays what it is
        return str(documents.read(job.home / "conda" / ".colab-local.json", MARK_SHAPE)["engine"]), []
    except (OSError, ValueError):
        pass
    if find_conda(job.screen):
        return "conda", []
    # Miniforge's installer refuses a path with a blank in it; pixi does not mind.
    name = "pixi" if re.search(r"\s", str(job.home)) else "miniforge"
    entry = job.index["installers"][name]["files"].get(job.platform)
    explicit = job.index["environments"][job.env]["platforms"][job.platform]
    packages = parse_explicit(read_lock_file(job.lockfiles, explicit["file"], explicit["sha256"]))
    for url in [*([entry["url"]] if entry else []), *(url for url, _ in packages[:1])]:
        source = rewrite(url, job.rules)
        if not is_reachable(source):
            host = re.sub(r"^\w+://([^/]*@)?([^/]+).*", r"\2", source)
            return "host", [f"{host} can't be reached: no conda layer, this machine's own Python is used"]
    return name, []
