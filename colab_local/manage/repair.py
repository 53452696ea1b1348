"""Put an installed environment right: exactly what --verify found, from the lock, and checked again afterwards.

    python3 bootstrap.py --repair              the environment in use; --env NAME for another one
    python3 bootstrap.py --repair --dry-run    what would be put right
    python3 bootstrap.py --repair --offline BUNDLE    with what lies in a bundle of the same lock, without a network

Packages of the Python layer are fetched again and installed by the locked uv, which checks their hashes. Files of the
conda layer (with the host engine: of the venv) are taken from a prefix that is created afresh, from checked package
files, in the environment's own place, because conda writes that place into them. Files of environments/jupyter are
written again. What does not belong to the environment is moved to HOME/kept/, not removed. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, Iterator

from colab_local.base.downloads import parse_rules
from colab_local.base.errors import EXIT_DIFFERS, EXIT_OK, EXIT_USAGE, Failure
from colab_local.base.files import remove_tree, sha256_of, write_atomically
from colab_local.base.progress import Waiting
from colab_local.base.terminal import Screen
from colab_local.install import home as homes
from colab_local.install import offline
from colab_local.install.engines import Job, make_engine
from colab_local.install.installation import Installation
from colab_local.install.jupyter import add_jupyter
from colab_local.install.lockfiles import Lock, make_lock, read_index
from colab_local.install.offline import Offline
from colab_local.install.options import Options
from colab_local.install.packages import install_again
from colab_local.install.records import Difference, Package, read_conda
from colab_local.install.requirements import normalise
from colab_local.install.seal import close_to_others
from colab_local.manage import environments, verify


class Plan:
    """What is to be done about the differences that a check found.

    packages: names of the Python layer, to be installed again; fresh: paths of the conda layer or the venv, to be
    taken from a fresh prefix; aside: paths that belong to nothing; loose: paths that others can write to; modes:
    {path: whether it has to be executable}; ours: environments/jupyter is to be written again; locks: names of the
    receipt's copies of lock files; left: differences that are not the environment's.
    """

    def __init__(self, checker: verify.Check, differences: list[Difference]) -> None:
        self.packages: set[str] = set()
        self.fresh: set[str] = set()
        self.aside: set[str] = set()
        self.loose: list[str] = []
        self.modes: dict[str, bool] = {}
        self.ours = False
        self.locks: set[str] = set()
        self.left: list[Difference] = []
        self.by_path: dict[str, Package] = {e.path: p for p in checker.packages for e in p.entries}
        self.by_name: dict[str, list[Package]] = {}
        for package in checker.packages:
            self.by_name.setdefault(package.name, []).append(package)
        self.site = checker.site
        for difference in differences:
            self.add(difference, checker)

    def __bool__(self) -> bool:
        return bool(self.packages or self.fresh or self.aside or self.loose or self.modes or self.ours or self.locks)

    def add(self, found: Difference, checker: verify.Check) -> None:
        """Decide about one difference."""
        path, name = found.path, normalise(found.package.split(" ")[0])
        owner = self.by_path.get(path)
        info = re.match(re.escape(self.site) + r"/([^/]+)-[^/-]+\.dist-info/", path) if self.site else None
        if found.package == "lock":
            self.locks.add(Path(path).name)
        elif found.kind == "open":
            self.loose.append(path)
        elif found.package == "this machine's Python":
            self.fresh |= {
                "bin/python",
                "bin/python3",
                "bin/python" + str(checker.receipt["layer"]).partition("-")[2],
            }
        elif found.kind in ("disabled", "outside"):
            own = found.kind == "disabled" and path.startswith(str(checker.prefix))
            self.ours = self.ours or own
            self.left += [] if own else [found]
        elif found.kind == "mode" and path:
            self.modes[path] = "not" in found.found
        elif found.kind == "extra" and path:
            self.aside.add(path)
        elif found.kind == "extra":
            for package in self.by_name.get(name, []):
                if package.version == found.found and package.layer == "python":
                    self.aside |= {entry.path for entry in package.entries}
        elif owner is not None and owner.layer == "jupyter":
            self.ours = True
        elif owner is not None and owner.layer == "python":
            self.packages.add(name if name in self.by_name else owner.name)  # each one that brings it says so
        elif owner is not None:
            self.fresh.add(path)
        elif info and not path.startswith("conda-meta"):
            self.packages.add(normalise(info.group(1)))
        elif path:
            self.fresh.add(path)
        else:  # a whole package: of the conda layer if the lock has it there
            (self.fresh if self.is_conda(name, checker) else self.packages).add(name)

    def is_conda(self, name: str, checker: verify.Check) -> bool:
        """Return whether a package is one of the locked conda layer."""
        text = checker.lock_text(str(checker.receipt["platform"]) + ".txt") or ""
        return bool(re.search(rf"(?m)/{re.escape(name)}-[^/]+-[^/-]+\.(conda|tar\.bz2)#", text))

    def lines(self) -> list[str]:
        """Return what is to be done, for people."""
        said = [
            (len(self.packages), "Python package", f"install again: {', '.join(sorted(self.packages)[:6])}"),
            (len(self.fresh), "file or package", "take from a fresh prefix"),
            (len(self.aside), "file", "belongs to nothing: move aside"),
            (len(self.loose), "file or folder", "close to other users"),
            (len(self.modes), "program", "set its mode"),
            (int(self.ours), "set", "write environments/jupyter again"),
            (len(self.locks), "lock file", "copy again"),
        ]
        return [f"{count} {what}{'' if count == 1 else 's'}: {deed}" for count, what, deed in said if count]


class Repair:
    """The repair of one environment. kept: where goes what is not ours."""

    def __init__(
        self, options: Options, receipt: dict[str, Any], screen: Screen, bundle: Offline | None = None
    ) -> None:
        self.bundle = bundle
        self.options, self.receipt, self.screen = options, receipt, screen
        self.home, self.name = options.home, str(receipt["name"])
        self.root, self.prefix = Path(receipt["root"]), Path(receipt["prefix"])
        self.receipts = self.home / "receipts" / self.name
        self.kept = self.home / "kept" / f"{self.name}-{time.strftime('%Y%m%dT%H%M%S')}"

    def lock(self) -> Lock:
        """Return what the environment was made from: the receipt's copies, each as its hash says.

        Raises:
            Failure: this copy of colab-local has another lock, and the receipt's own is damaged.
        """
        receipt, index = self.receipt, read_index(self.options.lockfiles)
        current = make_lock(
            index, self.options.lockfiles, str(receipt["env"]), str(receipt["platform"]), str(receipt["layer"])
        )
        texts = dict(current.texts())
        for name, sha256 in receipt["lock"]["files"].items():
            copy = self.receipts / "lock" / name
            if copy.is_file() and not copy.is_symlink() and sha256_of(copy) == sha256:
                texts[name] = copy.read_text(encoding="utf-8")
            elif current.digest != receipt["lock"]["digest"]:
                raise Failure(
                    f"{copy} is damaged, and this copy of colab-local has another lock than the environment",
                    f"python3 bootstrap.py --env {receipt['env']}",
                    EXIT_DIFFERS,
                )
        return current._replace(
            conda=texts.get(f"{receipt['platform']}.txt", "") if receipt["layer"] == "conda" else "",
            pypi=texts.get("pypi.txt", ""),
            host=texts.get("host.txt", "") if receipt["layer"] != "conda" else "",
            digest=str(receipt["lock"]["digest"]),
        )

    def installation(self, lock: Lock) -> Installation:
        """Return who makes such an environment."""
        receipt, options = self.receipt, self.options
        rules, wheels = parse_rules(options.mirrors), None
        if self.bundle:
            rules, wheels = [*self.bundle.rules, *rules], self.bundle.wheels
        index = read_index(options.lockfiles)
        job = Job(self.home, lock.env, lock.platform, index, options.lockfiles, rules, wheels, self.screen)
        python = ""
        if receipt["engine"] == "host":  # the one that made it, where it is still there
            own = os.path.realpath(str(self.prefix / "bin" / "python3"))
            named = "python" + str(receipt["layer"]).partition("-")[2]
            python = own if os.access(own, os.X_OK) and not own.startswith(str(self.root)) else named
        maker = make_engine(str(receipt["engine"]), job, options.python or python)
        return Installation(options, lock, maker.name, self.screen, maker, wheels)

    # -- the parts, in their order

    def copy_locks(self, lock: Lock) -> int:
        """Write the receipt's copies of the lock files again where they are damaged; return how many were."""
        texts, count = lock.texts(), 0
        for name, sha256 in self.receipt["lock"]["files"].items():
            copy = self.receipts / "lock" / name
            if not copy.is_file() or copy.is_symlink() or sha256_of(copy) != sha256:
                remove_tree(copy)
                write_atomically(copy, texts[name])
                count += 1
        return count

    def move_aside(self, paths: set[str]) -> None:
        """Move what belongs to nothing to HOME/kept/."""
        for path in sorted(paths):
            source, target = self.prefix / path, self.kept / path
            if os.path.lexists(str(source)):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(str(source), str(target))  # noqa: PTH104 - a link is moved as it is
                prune_empty(source.parent, self.prefix)

    def take_fresh(self, wanted: set[str], made: Installation) -> None:
        """Create the first layer in the environment's place, take what is wanted from it, and put all else back."""
        assert made.maker is not None
        made.download()
        if made.maker.tool():
            made.maker.install_tool(made.lock)
        waiting, fresh = aside_of(self.root), self.root.with_name(self.root.name + ".fresh")
        remove_tree(fresh)
        self.root.rename(waiting)
        try:
            made.create()
            self.root.rename(fresh)
        finally:
            put_back(self.root)
        inner = self.prefix.relative_to(self.root)
        try:
            for path in sorted(self.files_of(wanted, fresh / inner)):
                copy_over(fresh / inner / path, self.prefix / path)
        finally:
            remove_tree(fresh)

    def files_of(self, wanted: set[str], fresh: Path) -> set[str]:
        """Return the paths to be taken: those wanted, and all of the packages that are wanted by name or record."""
        packages = {package.name: package for package in read_conda(fresh)[0]}
        found = {path for path in wanted if os.path.lexists(str(fresh / path))}
        for name, package in packages.items():
            files = fresh.glob(f"conda-meta/{name}-{package.version}-*.json")
            records = {path.relative_to(fresh).as_posix() for path in files}
            if name in wanted or records & wanted:
                found |= records | {entry.path for entry in package.entries}
        return found

    def seal_again(self, names: set[str]) -> None:
        """Note the RECORDs that uv has just written: they also say where a wheel came from, a bundle or an index."""
        seal: dict[str, str] = self.receipt.get("seal", {})
        for path in seal:
            found = re.match(r".*/([^/-]+)-[^/]*\.dist-info/RECORD$", path)
            if found and normalise(found.group(1)) in names and (self.prefix / path).is_file():
                seal[path] = sha256_of(self.prefix / path)
        kept = {name: value for name, value in self.receipt.items() if name not in ("root", "prefix")}
        write_atomically(self.receipts / "receipt.json", json.dumps(kept, indent=1) + "\n")

    def write_ours(self, lock: Lock) -> None:
        """Write environments/jupyter again; raise Failure where this copy of colab-local has another one."""
        if sorted(lock.jupyter.values()) != sorted(self.receipt["lock"]["jupyter"].values()):
            raise Failure(
                "this copy of colab-local has another Jupyter extension than the environment",
                f"python3 bootstrap.py --env {lock.env}",
                EXIT_DIFFERS,
            )
        for path in self.receipt["lock"]["jupyter"]:
            target = self.prefix / path
            if os.path.lexists(str(target)):
                target.unlink()
        add_jupyter(self.prefix, lock, self.screen)

    def apply(self, plan: Plan) -> None:
        """Put everything right."""
        lock = self.lock()
        made = self.installation(lock)
        assert made.maker is not None
        self.move_aside(plan.aside)
        close_to_others(self.prefix, [path for path in plan.loose if (self.prefix / path).exists()])
        if plan.fresh:
            with Waiting(self.screen, f"Create a fresh prefix with {made.maker.describe()}"):
                self.take_fresh(plan.fresh, made)
        if plan.packages:
            uv = made.maker.uv(self.prefix)
            if not uv.exists():
                made.maker.install_tool(lock)
            with Waiting(self.screen, f"Install {', '.join(sorted(plan.packages)[:6])} again"):
                names = sorted(plan.packages)
                install_again(uv, self.prefix, names, lock, self.home / "cache", made.wheels, self.screen)
                self.seal_again(plan.packages)
        if plan.ours:
            self.write_ours(lock)
        for path, executable in plan.modes.items():
            target = self.prefix / path
            if target.is_file() and not target.is_symlink():
                mode = target.stat().st_mode
                target.chmod(mode | 0o111 if executable else mode & ~0o111)
        checker = verify.Check(self.prefix, self.receipt, self.screen)
        close_to_others(self.prefix, checker.tree.open)


def aside_of(root: Path) -> Path:
    """Return where an environment waits while a fresh prefix is made in its place."""
    return root.with_name(root.name + ".aside")


def put_back(root: Path) -> None:
    """Put an environment back into its place, where a repair that was killed has left it aside."""
    waiting = aside_of(root)
    if waiting.is_dir() and not waiting.is_symlink():
        remove_tree(root)
        waiting.rename(root)


def copy_over(source: Path, target: Path) -> None:
    """Put a file or link in the place of another in one step: the other may share its bytes with a package cache."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        remove_tree(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    remove_tree(temporary)
    shutil.copy2(str(source), str(temporary), follow_symlinks=False)
    temporary.replace(target)


def prune_empty(folder: Path, top: Path) -> None:
    """Remove a folder and those above it, up to `top`, that hold nothing."""
    while folder not in (top, *top.parents):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def find_receipt(home: Path, env: str) -> dict[str, Any]:
    """Return the receipt of the environment in use, else of the newest; raise Failure where there is none."""
    for root in sorted((home / "envs").glob("*.aside")):
        if homes.is_half_made(home, root.name[: -len(".aside")]):
            put_back(root.with_name(root.name[: -len(".aside")]))
    return homes.demand_receipt(home, env)


@contextlib.contextmanager
def open_bundle(options: Options, receipt: dict[str, Any], screen: Screen) -> Iterator[Offline]:
    """Give the bundle that --offline names; raise Failure unless it has what the environment was made from."""
    env, platform, layer, engine = (str(receipt[name]) for name in ("env", "platform", "layer", "engine"))
    where = Path(options.offline), options.home, env, platform
    with offline.open_bundle(*where, screen, options.bundle_lock, options.bundle_signers) as bundle:
        digest = make_lock(read_index(bundle.lockfiles), bundle.lockfiles, env, platform, layer).digest
        for what, found, need in (
            ("engine", engine if bundle.has(engine) else bundle.engine, engine),
            ("Python", f"host-{bundle.python}" if bundle.engine == "host" else layer, layer),
            ("lock", digest, str(receipt["lock"]["digest"])),
        ):
            if found != need:
                raise Failure(
                    f"the bundle is of another {what} than the environment (found {found[:12]}, need {need[:12]})",
                    "choose the bundle that the environment was made from, or one of the same lock",
                    EXIT_USAGE,
                )
        yield bundle


def command(options: Options, dry_run: bool, screen: Screen) -> int:
    """Carry out --repair and return the exit code.

    Raises:
        Failure: no such environment is installed, it is in use, or what it needs can't be had.
    """
    home = options.home
    homes.check_home(home)
    if not home.is_dir():
        raise homes.not_installed(home, options.env)
    with contextlib.ExitStack() as held:
        held.enter_context(homes.hold_lock(home, screen, inherited=True))
        receipt, bundle = find_receipt(home, options.env), None
        if options.offline:
            offline.check_fits(Path(options.offline), options.env, str(receipt["platform"]), " --repair")
        if options.offline and not dry_run:
            bundle = held.enter_context(open_bundle(options, receipt, screen))
            options = options._replace(lockfiles=bundle.lockfiles)
        work = Repair(options, receipt, screen, bundle)
        verify.demand_there(receipt)
        copied = 0 if dry_run else work.copy_locks(work.lock())  # first: what belongs there is read from them
        result: dict[str, Any] = {"ok": True, "environment": options.env, "changed": copied > 0, "kept": ""}
        checker = verify.Check(work.prefix, receipt, screen)
        found = checker.run()
        plan = Plan(checker, found.differences)
        if plan.locks:  # of a dry run: without them, what else differs can't be known
            plan = Plan(checker, [one for one in found.differences if one.package == "lock"])
        for line in plan.lines():
            screen.say(f"{'Would do' if dry_run else 'Repair'}: {line}")
        if plan and not dry_run:
            screen.open_log(home / "logs")
            environments.demand_unused([work.root])
            work.apply(plan)
            result["changed"] = True
            found = verify.check(receipt, screen)
    if work.kept.is_dir():
        result["kept"] = str(work.kept)
        screen.say(f"What belongs to no package was moved to {work.kept}")
    for difference in found.differences:
        screen.say(difference.line())
    result.update(ok=not found.differences, differences=[item._asdict() for item in found.differences])
    screen.show_document(result)
    if not found.differences:
        screen.say(f"{'Repaired' if result['changed'] else 'Nothing to do'}: all as locked.")
        screen.say(found.fingerprint)
        return EXIT_OK
    if not dry_run:
        screen.report(f"error: {len(found.differences)} differences are left: they are not the environment's own")
        where = plan.left[0].path if plan.left else str(work.prefix)
        screen.report(f"hint: look at {shlex.quote(where)}")
    return EXIT_DIFFERS
