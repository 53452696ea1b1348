"""A mirror on loopback: a conda channel, installers and a lock, all built here, and a server with faults on demand.

The packages are real conda packages: py-rattler-build makes them, prefix patching included, and py-rattler reads
them back. `python` is this machine's interpreter made relocatable, `uv` is the program of the tests' own
environment. The installers are stand-ins (standins/README.md says for what).

    world = build_world(tmp_path_factory.getbasetemp())        once per session
    with Mirror(world) as mirror:
        lockfiles = world.write_lockfiles(tmp_path / "lockfiles", requirements)
        bootstrap("--lockfiles", lockfiles, *mirror.options)   [--mirror https://...=http://127.0.0.1:...] ...
        mirror.fault("Miniforge3", Cut(after=1_000_000))       the next request for it is cut
        mirror.requests, mirror.sent("Miniforge3")             what was asked for, how many bytes went out
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.server
import importlib.metadata
import io
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, unquote

import pytest
from rattler import RepoDataRecord, Subdir
from rattler.index import index_fs
from rattler_build import Stage0Recipe, ToolConfiguration

from colab_local.locking.conda import conda_version, solve_conda
from colab_local.locking.render import explicit_text, pixi_lock_text, pixi_toml_text
from colab_local.locking.specs import Spec
from tests.conftest import clean_environment

REPO = Path(__file__).resolve().parent.parent.parent
STANDINS = Path(__file__).resolve().parent / "standins"
PYTHONS = ("3.13", "3.12", "3.11")  # what the Python layer is locked for, the lock's own first
CHANNEL = "https://conda.anaconda.org/conda-forge"
HOSTS = ("https://conda.anaconda.org/", "https://github.com/", "https://repo.anaconda.com/")

MINIFORGE = "26.7.2-0"
ANACONDA = "2026.07-1"
PIXI = "0.81.0"

# What makes the Python layer big, and what Jupyter with the extension does not need to start.
HEAVY = re.compile(
    r"(tensor|keras|numpy|pandas|scipy|scikit|matplotlib|pillow|h5py|grpcio|libclang|ml-dtypes|opt-einsum|optree|namex"
    r"|jupyterlab|ipywidgets|widgetsnbextension|fonttools|kiwisolver|contourpy|cycler|markdown$|werkzeug|absl|astunparse"
    r"|flatbuffers|gast|google-pasta|wrapt|termcolor|joblib|threadpoolctl|rich|nvidia|notebook-)"
)


# ---------------------------------------------------------------------------------------------------------
# Building


@functools.cache
def find_interpreter() -> Path | None:
    """Return an interpreter of this machine that a relocatable `python` package can be made of, or None.

    Debian's own is none: its paths for packages are patched in. It looks at this one and on PATH.
    """
    candidates = [Path(getattr(sys, "_base_executable", sys.executable))]
    for version in PYTHONS:
        candidates += [Path(p) for p in [shutil.which(f"python{version}")] if p]
    code = (
        "import sys, sysconfig; v = '%d.%d' % sys.version_info[:2];"
        "print(sys.prefix == sys.base_prefix and sysconfig.get_default_scheme() == 'posix_prefix' and v)"
    )
    found: dict[str, Path] = {}
    for candidate in candidates:
        shown = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=60)
        found.setdefault(shown.stdout.strip(), candidate)
    return next((found[version] for version in PYTHONS if version in found), None)


def stage_python(interpreter: Path, target: Path) -> str:
    """Copy what a conda package of Python holds into `target`; return the version.

    The program finds its standard library from where it lies, so only the path to libpython has to be made
    relative: the run path in the program's dynamic section is overwritten in place.
    """
    code = (
        "import json, platform, sys, sysconfig as s; print(json.dumps([platform.python_version(), sys.prefix,"
        " s.get_path('stdlib'), s.get_config_var('INSTSONAME') or '', s.get_config_var('LIBDIR') or '']))"
    )
    version, prefix, stdlib, library, libdir = json.loads(
        subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    short = ".".join(version.split(".")[:2])
    names = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "config-*", "site-packages",
        "_bundled", "*.a", "_test*.so", "_xx*.so",
    )  # fmt: skip
    folder = target / "lib" / f"python{short}"
    shutil.copytree(stdlib, folder, ignore=names)
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "README.txt").write_text("packages go here\n")
    (target / "bin").mkdir()
    program = target / "bin" / f"python{short}"
    relative = b"$ORIGIN/../lib"
    runpath = f"{libdir}\0".encode()
    content = interpreter.resolve().read_bytes()
    if len(runpath) > len(relative):
        content = content.replace(runpath, relative.ljust(len(runpath), b"\0"))
    program.write_bytes(content)
    program.chmod(0o755)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(program.name)
    if (Path(libdir) / library).is_file() and ".so" in library:
        shutil.copyfile(Path(libdir) / library, target / "lib" / library)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", target / "lib" / library], check=True)
    # The build's own prefix in its configuration data becomes the package's, as in every conda package.
    for path in folder.glob("_sysconfigdata*.py"):
        path.write_text(path.read_text().replace(prefix, "@PREFIX@"))
    return str(version)


def pip_wheel(interpreter: Path) -> Path:
    """Return the pip that is bundled with an interpreter."""
    code = "import ensurepip, os; print(os.path.dirname(ensurepip.__file__))"
    folder = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout
    return next(Path(folder.strip(), "_bundled").glob("pip-*.whl"))


def build_package(
    channel: Path, name: str, version: str, script: list[str], depends: list[str], **extra: object
) -> Path:
    """Build one conda package into the channel with py-rattler-build; return its file.

    script: shell lines that fill $PREFIX; depends: what it needs at run time; extra: more of the recipe's
    `build` and `requirements` (noarch, python, host).
    """
    host = extra.pop("host", [])
    recipe = {
        "package": {"name": name, "version": version},
        "build": {"number": 0, "script": script, **extra},
        "requirements": {"host": host, "run": depends},
        "about": {"license": "BSD-3-Clause", "summary": f"{name}, built by the tests"},
    }
    folder = workshop(channel) / "recipes" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    rendered = Stage0Recipe.from_file(folder / "recipe.yaml").render()
    result = rendered[0].run_build(
        tool_config=ToolConfiguration(test_strategy="skip"),
        output_dir=channel,
        channels=[channel.as_uri()] if host else [],
        package_format="conda:1",
        no_include_recipe=True,
        no_build_id=True,
    )
    return Path(result.packages[0])


def workshop(channel: Path) -> Path:
    """Return the folder beside the served one where recipes and staged files lie."""
    return channel.parents[2] / "workshop"


def build_channel(channel: Path, interpreter: Path) -> str:
    """Build the packages of the conda layer and index the channel; return the version of its Python."""
    for name in ("noarch", str(Subdir.current())):
        (channel / name).mkdir(parents=True)
    staged = workshop(channel) / "python"
    version = stage_python(interpreter, staged)
    short = ".".join(version.split(".")[:2])
    wheel = pip_wheel(interpreter)
    pip = re.search(r"pip-([\d.]+)-", wheel.name)
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    assert pip and uv.is_file(), "the tests' own environment lacks uv"
    binary = r"""printf '\177ELF\0\1%s/share\0tail\0' "$PREFIX" > $PREFIX/lib/libprefix.bin"""
    build_package(
        channel,
        "ca-certificates",
        "2026.11.1",
        ["mkdir -p $PREFIX/ssl", "echo '# none' > $PREFIX/ssl/cacert.pem"],
        [],
    )
    # Two ways of naming the prefix: in a text, and in a binary, where the length must not change.
    build_package(
        channel,
        "prefixed",
        "1.0",
        [
            "mkdir -p $PREFIX/bin $PREFIX/lib",
            "printf '#!/bin/sh\\necho %s\\n' \"$PREFIX\" > $PREFIX/bin/where-am-i",
            "chmod 755 $PREFIX/bin/where-am-i",
            binary,
        ],
        ["ca-certificates"],
    )
    build_package(
        channel,
        "python",
        version,
        [
            f"cp -a {staged}/. $PREFIX/",
            'sed -i.old "s|@PREFIX@|$PREFIX|g" $PREFIX/lib/python*/_sysconfigdata*.py',
            "rm $PREFIX/lib/python*/*.old",
        ],
        ["prefixed", "ca-certificates"],
        # the tests made it relocatable already, and patchelf may not be there
        dynamic_linking={"binary_relocation": False},
        # one process per module takes minutes; Python compiles what it imports
        python={"skip_pyc_compilation": ["**/*.py"]},
    )
    build_package(
        channel,
        "uv",
        importlib.metadata.version("uv"),
        ["mkdir -p $PREFIX/bin", f"cp {uv} $PREFIX/bin/uv"],
        [],
        dynamic_linking={"binary_relocation": False},
    )
    asyncio.run(index_fs(channel))
    build_package(
        channel,
        "pip",
        pip.group(1),
        [f"mkdir -p $SP_DIR && cd $SP_DIR && python -m zipfile -e {wheel} ."],
        [f"python >={short}"],
        host=[f"python {short}.*"],
        noarch="python",
        python={"entry_points": ["pip = pip._internal.cli.main:main"]},
    )
    asyncio.run(index_fs(channel))
    return version


def build_installer(target: Path, name: str, version: str) -> None:
    """Write a self-extracting installer (standins/installer.sh) whose payload is the stand-in conda."""
    site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    base = Path(getattr(sys, "_base_executable", sys.executable))
    own = Path(importlib.import_module("rattler").__file__ or "").parent.parent
    files = {
        "pyvenv.cfg": f"home = {base.parent}\ninclude-system-site-packages = false\n".encode(),
        f"{site}/conda.py": (STANDINS / "conda.py").read_bytes(),
        f"{site}/standin.pth": f"{own}\n".encode(),
        "bin/conda.body": b"from conda import leave, main\n\nleave(main())\n",
        "bin/mamba.body": b"from conda import leave, main\n\nleave(main())\n",
        "conda-meta/history": b"",
        ".condarc": b"channels:\n  - conda-forge\n" if name == "Miniforge3" else b"channels:\n  - defaults\n",
        # as heavy as it takes for a cut in the middle to mean something
        "pkgs/payload.bin": random.Random(version).randbytes(4_000_000),
    }
    if name == "Anaconda3":  # brings the plugin that asks for terms
        files["tos"] = b""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, str(base)
        archive.addfile(link)
    header = (STANDINS / "installer.sh").read_text()
    marks = {"NAME": name, "VERSION": version, "DEFAULT": name.lower()}
    marks["LINES"] = str(len(header.splitlines()) + 1)
    for mark, value in marks.items():
        header = header.replace(f"@{mark}@", value)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(header.encode() + stream.getvalue())


def build_pixi(target: Path) -> None:
    """Write pixi's release archive with the stand-in in it; it starts the tests' own interpreter by itself."""
    start = f"#!/bin/sh\n''':'\nexec '{sys.executable}' -I \"$0\" \"$@\"\n'''\n"
    content = (
        start + (STANDINS / "pixi.py").read_text().replace("from __future__ import annotations\n", "")
    ).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz") as archive:
        entry = tarfile.TarInfo("pixi")
        entry.size, entry.mode = len(content), 0o755
        archive.addfile(entry, io.BytesIO(content))


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def light_layer(requirements: str) -> str:
    """Return the part of a locked requirements file that Jupyter and the extension need: no TensorFlow."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", requirements)
    return "".join(entry for entry in entries if not HEAVY.match(entry))


@dataclass(frozen=True)
class World:
    """What the mirror serves: files laid out as HOST/PATH of their real URLs, and the conda layer locked from them.

    root: that layout; spec: what scripts/lock.py solved for; records: its solution.
    """

    root: Path
    spec: Spec
    records: list[RepoDataRecord]
    requires: dict[str, object] = field(default_factory=dict)  # of the machine, as index.json has it

    @property
    def platform(self) -> str:
        """conda's name of this machine's platform."""
        return str(Subdir.current())

    @property
    def python(self) -> str:
        """Version of the conda layer's Python."""
        return conda_version(self.records, "python")

    @property
    def packages(self) -> list[Path]:
        """The served files of the conda layer, in the order of the records."""
        return [self.root / record.url.partition("://")[2] for record in self.records]

    def package(self, name: str) -> Path:
        """Return the served file of one package."""
        return next(path for path in self.packages if path.name.startswith(f"{name}-"))

    def url(self, path: Path) -> str:
        """Return the real URL that a served file stands for."""
        return "https://" + path.relative_to(self.root).as_posix()

    def installers(self) -> dict[str, object]:
        """Return index.json's entry for the installers."""
        found: dict[str, object] = {}
        versions = {"miniforge": MINIFORGE, "anaconda": ANACONDA, "pixi": PIXI}
        for name, version in versions.items():
            path = self.installer(name)
            entry = {"url": self.url(path), "sha256": sha256(path), "size": path.stat().st_size}
            found[name] = {"version": version, "files": {self.platform: entry}}
        return found

    def installer(self, engine: str) -> Path:
        """Return the served installer of an engine."""
        pattern = {"miniforge": "Miniforge3-*", "anaconda": "Anaconda3-*", "pixi": "pixi-*"}[engine]
        return next(self.root.rglob(pattern))

    def write_lockfiles(self, folder: Path, pypi: str) -> Path:
        """Write a whole lockfiles/ folder for the spec's environment and return it; pypi: its Python layer's text.

        The conda layer is written as scripts/lock.py writes the real one.
        """
        real = json.loads((REPO / "lockfiles" / "index.json").read_text())
        name = self.spec.name
        (folder / name).mkdir(parents=True)
        for file, text in (
            (f"{name}/{self.platform}.txt", explicit_text(self.platform, self.records)),
            (f"{name}/pypi.txt", pypi),
            ("pixi.toml", pixi_toml_text({name: self.spec}, {name: self.python})),
            ("pixi.lock", pixi_lock_text({name: {self.platform: self.records}})),
            (real["uv"]["file"], (REPO / "lockfiles" / real["uv"]["file"]).read_text()),
        ):
            (folder / file).write_text(text)
        download = sum(path.stat().st_size for path in self.packages)
        index = {
            "_": "Generated by the tests.",
            "schema": 1,
            "python": real["python"],
            "uv": real["uv"],
            "installers": self.installers(),
            "pixi": {file: sha256(folder / file) for file in ("pixi.toml", "pixi.lock")},
            "jupyter": real["jupyter"],
            "environments": {
                name: {
                    "accelerator": self.spec.accelerator,
                    "python": self.python,
                    **({"needs_conda": True} if self.spec.needs_conda else {}),
                    "pypi": {"file": f"{name}/pypi.txt", "sha256": sha256(folder / f"{name}/pypi.txt")},
                    "platforms": {
                        self.platform: {
                            "file": f"{name}/{self.platform}.txt",
                            "sha256": sha256(folder / f"{name}/{self.platform}.txt"),
                            "requires": {"glibc": "2.17", **self.requires},
                            "bytes": {
                                "conda_download": download,
                                "conda_installed": 3 * download,
                                "pypi_download": 50_000_000,
                                "pypi_installed": 150_000_000,
                            },
                        }
                    },
                }
            },
        }
        (folder / "index.json").write_text(json.dumps(index, indent=1, default=str))
        return folder


@functools.cache
def build_world(base: Path) -> World:
    """Build everything the mirror serves under `base`, once per test session; about 10 seconds."""
    interpreter = find_interpreter()
    assert interpreter, f"no interpreter of a version in {PYTHONS} that isn't Debian's own"
    root = base / "mirror"
    channel = root / CHANNEL.partition("://")[2]
    with pytest.MonkeyPatch.context() as patch:  # the build's own downloads stay out of the user's cache
        patch.setenv("RATTLER_CACHE_DIR", str(base / "rattler-cache"))
        version = build_channel(channel, interpreter)
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    system, target = {
        "Linux": (f"Linux-{machine}", f"{machine}-unknown-linux-musl"),
        "Darwin": ("MacOSX-arm64", "aarch64-apple-darwin"),
    }[platform.system()]
    github = root / "github.com"
    releases = github / "conda-forge/miniforge/releases/download" / MINIFORGE
    build_installer(releases / f"Miniforge3-{MINIFORGE}-{system}.sh", "Miniforge3", MINIFORGE)
    archive = root / "repo.anaconda.com" / "archive"
    build_installer(archive / f"Anaconda3-{ANACONDA}-{system}.sh", "Anaconda3", ANACONDA)
    build_pixi(github / "prefix-dev/pixi/releases/download" / f"v{PIXI}" / f"pixi-{target}.tar.gz")

    here = str(Subdir.current())
    wanted = (f"python {version}.*", "pip", "uv >=0.9")  # as in environments/cpu.yml
    spec = Spec("cpu", "cpu", wanted, (), {here: {}}, {here: {"__glibc": "2.28", "__osx": "13.0"}})
    return World(root, spec, solve_conda(spec, here, str(channel), []))


# A TensorFlow that computes what the try-out asks for, as a conda package with CUDA's libraries in it.
TENSORFLOW = """
import os
class Tensor(list):
    def __matmul__(self, other):
        return Tensor([sum(a * b for a, b in zip(row, column)) for column in zip(*other)] for row in self)
    def __mul__(self, number):
        return Tensor([number * x for x in row] for row in self)
    def numpy(self):
        return self
    def tolist(self):
        return [list(row) for row in self]
def ones(shape):
    return Tensor([1.0] * shape[1] for _ in range(shape[0]))
def function(what, jit_compile=False):
    return what
class test:
    is_built_with_cuda = staticmethod(lambda: True)
class config:
    list_physical_devices = staticmethod(lambda kind: [])
__version__ = "2.19.1"
"""
KERAS = """
class Model:
    def compile(self, *words): pass
    def fit(self, *data, **options): pass
def Sequential(parts): return Model()
class layers:
    Input = Dense = staticmethod(lambda size: size)
"""
GATE = (
    "int _ZN3tsl8internal9DsoLoader26MaybeTryDlopenGPULibrariesEv(void **status) { *status = (void *)1; return 0; }"
)


def with_tensorflow(world: World) -> World:
    """Return the world of gpu-forge: the same mirror, and a conda layer that TensorFlow is in.

    The real packages can't be had here. libtensorflow_framework lies in lib/, where conda-forge has it.
    """
    channel, here = world.root / CHANNEL.partition("://")[2], world.platform
    source = workshop(channel) / "tensorflow"
    source.mkdir(parents=True, exist_ok=True)
    for file, text in {"tensorflow.py": TENSORFLOW, "keras.py": KERAS, "gate.c": GATE}.items():
        (source / file).write_text(text)
    library = source / "libtensorflow_framework.so.2"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source / "gate.c"], check=True, timeout=60)
    modules = [f"mkdir -p $SP_DIR/tensorflow && cp {source}/tensorflow.py $SP_DIR/tensorflow/__init__.py"]
    modules += [f"cp {source}/keras.py $SP_DIR/"]
    short = ".".join(world.python.split(".")[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATTLER_CACHE_DIR", str(world.root.parent / "rattler-cache"))
        tools = [f"mkdir -p $PREFIX/lib $PREFIX/bin && cp {library} $PREFIX/lib/", "touch $PREFIX/lib/libcudnn.so.9"]
        tools += ["printf '#!/bin/sh\\n' > $PREFIX/bin/ptxas", "chmod 755 $PREFIX/bin/ptxas"]
        relocation = {"dynamic_linking": {"binary_relocation": False}}
        build_package(channel, "libtensorflow_framework", "2.19.1", tools, [], **relocation)
        asyncio.run(index_fs(channel))
        needs = [f"python >={short}", "libtensorflow_framework 2.19.1.*"]
        build_package(channel, "tensorflow", "2.19.1", modules, needs, host=[f"python {short}.*"], noarch="python")
        asyncio.run(index_fs(channel))
    wanted = (*world.spec.conda, "tensorflow 2.19.1.*")
    spec = Spec("gpu-forge", "gpu", wanted, (), {here: {}}, world.spec.virtual)
    real = json.loads((REPO / "lockfiles" / "index.json").read_text())["environments"]["gpu-forge"]["platforms"]
    needs_of_machine = {"glibc": "2.28", "gpu": real["linux-64"]["requires"]["gpu"]}
    return World(world.root, spec, solve_conda(spec, here, str(channel), []), needs_of_machine)


# ---------------------------------------------------------------------------------------------------------
# Serving


@dataclass(frozen=True)
class Status:
    """Answer with this HTTP status and no file."""

    code: int


@dataclass(frozen=True)
class Cut:
    """Announce the whole file, send `after` bytes of it, drop the connection."""

    after: int


@dataclass(frozen=True)
class Tamper:
    """Send a file of the right size with one byte changed."""


@dataclass(frozen=True)
class Slow:
    """Send `rate` bytes a second."""

    rate: int


@dataclass(frozen=True)
class Endless:
    """Send the file, and then more without an end."""


@dataclass(frozen=True)
class Redirect:
    """Send the client elsewhere first: to the same file under another path, or to a URL."""

    to: str = ""


Fault = Status | Cut | Tamper | Slow | Endless | Redirect


@dataclass
class Request:
    """One request as it was served. first: offset of the first byte; sent: bytes of the body that went out."""

    method: str
    path: str
    first: int = 0
    status: int = 0
    sent: int = 0


@dataclass
class Mirror:
    """An HTTP server on 127.0.0.1 for the files of a world; use it as a context manager.

    port: where it listens; requests: what it was asked, oldest first.
    """

    world: World
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._faults: list[tuple[str, Fault, int]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"mirror": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rules(self, through: str = "http://127.0.0.1") -> list[tuple[str, str]]:
        """Return the rules (real URL's start, the mirror's) that lead every host here."""
        return [(start, f"{through}:{self.port}/{start.partition('://')[2]}") for start in HOSTS]

    @property
    def options(self) -> list[str]:
        """The same as options for bootstrap.py."""
        return [word for start, target in self.rules() for word in ("--mirror", f"{start}={target}")]

    def fault(self, part: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` GET requests whose path contains `part` go wrong."""
        with self._lock:
            self._faults.append((part, fault, times))

    def take_fault(self, path: str) -> Fault | None:
        """Return the fault that the next request for `path` suffers, and count it."""
        with self._lock:
            for number, (part, fault, times) in enumerate(self._faults):
                if part in path:
                    self._faults[number : number + 1] = [(part, fault, times - 1)] if times > 1 else []
                    return fault
        return None

    def reset(self) -> None:
        """Forget faults and requests."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def gets(self, part: str = "") -> list[Request]:
        """Return the GET requests for files whose path contains `part`."""
        return [r for r in list(self.requests) if r.method == "GET" and part in r.path]

    def sent(self, part: str = "") -> int:
        """Return how many bytes of such files went out."""
        return sum(request.sent for request in self.gets(part))


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves files with ranges, and what Mirror.fault asked for."""

    mirror: Mirror

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet: the mirror keeps its own record."""

    def do_HEAD(self) -> None:
        """Answer like GET, without the file; faults are for files."""
        self._answer(send=False)

    def do_GET(self) -> None:
        """Send a file or a part of it."""
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("http://"):  # as a client says it to a proxy
            path = "/" + path.split("/", 3)[3]
        request = Request(self.command, path)
        self.mirror.requests.append(request)
        fault = self.mirror.take_fault(path) if send else None
        if isinstance(fault, Redirect):
            request.status = 302
            self.send_response(302)
            self.send_header("Location", fault.to or quote("/redirected" + path))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = self.mirror.world.root / path.removeprefix("/redirected").lstrip("/")
        if isinstance(fault, Status) or not file.is_file():
            request.status = fault.code if isinstance(fault, Status) else 404
            self.send_response(request.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        if isinstance(fault, Tamper):
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(request, content, fault, send)

    def _send(self, request: Request, content: bytes, fault: Fault | None, send: bool) -> None:
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        request.first = int(wanted.group(1)) if wanted else 0
        if request.first >= len(content) > 0:
            request.status = 416
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        request.status = 206 if wanted else 200
        self.send_response(request.status)
        if wanted:
            span = f"bytes {request.first}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        body = content[request.first :]
        if isinstance(fault, Endless):
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not send:
            return
        if isinstance(fault, Cut):
            body = body[: fault.after]
        step = max(1, fault.rate // 20) if isinstance(fault, Slow) else 1 << 18
        try:
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                request.sent += len(body[start : start + step])
                if isinstance(fault, Slow):
                    time.sleep(0.05)
            while isinstance(fault, Endless):
                request.sent += self.wfile.write(bytes(1 << 18))
            self.wfile.flush()
        except OSError:  # the client was killed: that is what some tests are about
            pass
        if isinstance(fault, Cut):
            self.close_connection = True
            self.connection.close()


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Return {path: (content's digest or link's target, mode)} of everything under a folder."""

    def entries() -> Iterator[tuple[str, tuple[str, int]]]:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if path.is_symlink():
                yield name, (str(path.readlink()), mode)
            else:
                yield name, (sha256(path) if path.is_file() else "", mode)

    return dict(entries())


def changes(before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]) -> list[str]:
    """Return the paths in which two snapshots differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def own_environment(home: Path) -> dict[str, str]:
    """Return a clean environment for bootstrap.py whose HOME is `home`, with this machine's own cache of wheels.

    The cache is what makes a dozen installations affordable; it holds the index's files and no state.
    """
    kept = clean_environment(home)
    for name in [name for name in kept if name.startswith(("CONDA", "MAMBA", "PIXI", "_CE_", "VIRTUAL_ENV"))]:
        del kept[name]
    if "UV_CACHE_DIR" not in os.environ:
        uv = Path(sysconfig.get_path("scripts")) / "uv"
        kept["UV_CACHE_DIR"] = subprocess.run(
            [uv, "cache", "dir"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return kept
