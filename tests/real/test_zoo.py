"""The settings zoo: homes and variables as years of other software leave them, and the environment used in each.

One case is one entry of CASES: it is written into a new home, the command that bootstrap.py prints is started there,
the doctor looks (both of Colab's transports, TensorFlow imported in a cell), and what the user is to be told is
looked for. The cases come from public bug reports. `python -m tests.real.test_zoo` prints the table of docs/zoo.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colab_local.install.jupyter import jupyter_argv
from tests.conftest import REPO, Installed, free_port
from tests.support.jupyter_servers import noise, start

LIFE = 2  # servers at a time: as many as the smallest machine of the checks has cores


@dataclass(frozen=True)
class Case:
    """One home. files: {path in the home: text}; environ: variables, {home} is the home; says: in Jupyter's log."""

    why: str
    files: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    says: str = ""
    broken: bool = False  # the home, with the variable or file that `says` names: Jupyter has to refuse


FOREIGN = "raise ImportError('this is another Python\\'s numpy')\n"
GONE = json.dumps({"argv": ["/opt/gone/bin/python", "-m", "ipykernel_launcher"], "display_name": "Python 3"})
SITES = [f".local/lib/python3.{minor}/site-packages" for minor in (11, 12, 13)]
HOOKS = {"usercustomize.py": "raise SystemExit('no')\n", "old.pth": "import sys; sys.exit('no')\n"}
CASES = {
    "clean": Case("a new user's home"),
    "keras.json of 2017": Case(
        "Theano was Keras's backend then; Keras 3 does not know it",
        {".keras/keras.json": '{\n  "image_dim_ordering": "th",\n  "epsilon": 1,\n  "backend": "theano"\n}\n'},
        says=".keras/keras.json, line 4",
    ),
    "variables of another Python": Case(
        "environment modules, conda and IDEs export them",
        {"other/numpy/__init__.py": FOREIGN, "other/tensorflow.py": FOREIGN},
        {
            "PYTHONPATH": "{home}/other",
            "PYTHONHOME": "/opt/python2",
            "PYTHONOPTIMIZE": "2",
            "PYTHONWARNINGS": "error",
            "PYTHONSTARTUP": "{home}/other/tensorflow.py",
            "VIRTUAL_ENV": "/opt/venv",
            "CONDA_PREFIX": "/opt/conda",
        },
    ),
    "a Python that is told to be another": Case(
        "sitecustomize.py of a company, debugging left on",
        {"other/sitecustomize.py": "raise SystemExit('no')\n", "other/usercustomize.py": "raise SystemExit('no')\n"},
        {
            "PYTHONPATH": "{home}/other",
            "PYTHONUSERBASE": "{home}/other",
            "PYTHONDEVMODE": "1",
            "PYTHONINSPECT": "1",
            "PYTHONIOENCODING": "nonsense",
            "PYTHONMALLOC": "nonsense",
            "PYTHONSAFEPATH": "1",
            "PYTHONVERBOSE": "1",
        },
    ),
    "packages in ~/.local": Case(
        "`pip install --user` of years ago, for the same Python",
        {
            f"{site}/{name}": text
            for site in SITES
            for name, text in {**HOOKS, "numpy/__init__.py": FOREIGN, "tensorflow.py": FOREIGN}.items()
        },
    ),
    "kernels of another Python": Case(
        "`ipython kernel install --user` of years ago; settings elsewhere, damaged",
        {
            ".local/share/jupyter/kernels/python3/kernel.json": GONE,
            "more/kernels/python3/kernel.json": GONE,
            "settings/jupyter_notebook_config.json": '{"NotebookApp": 1,}',
            "settings/jupyter_server_config.py": "raise SystemExit\n",
        },
        {
            "JUPYTER_PATH": "{home}/more",
            "JUPYTER_CONFIG_DIR": "{home}/settings",
            "JUPYTER_CONFIG_PATH": "{home}/settings",
            "JUPYTER_PREFER_ENV_PATH": "0",
        },
        says="settings/jupyter_notebook_config.json",
    ),
    "a shell with odd settings": Case(
        "a locale that is not there, folders that are gone, a proxy of another network",
        environ={
            "LC_ALL": "xx_XX.UTF-8",
            "TMPDIR": "/gone",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
            "SSL_CERT_FILE": "/gone.pem",
            "TERM": "xx",
            "COLUMNS": "0",
            "CUDA_HOME": "/gone",
            "MPLCONFIGDIR": "/proc",
        },
    ),
    "a proxy for everything": Case(
        "of another network, in capitals and small letters, localhost not left out",
        environ={
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9"),
            "NO_PROXY": "example.org",
        },
    ),
    "variables of Keras and Matplotlib": Case(
        "set for another project",
        environ={"KERAS_BACKEND": "theano", "TF_USE_LEGACY_KERAS": "1", "MPLBACKEND": "TkAgg"},
    ),
    "libraries of other software": Case(
        "CUDA, MATLAB and conda export LD_LIBRARY_PATH",
        {"lib/libstdc++.so.6": "not a library", "lib/libz.so.1": "not a library", "lib/libffi.so.8": "none either"},
        {"LD_LIBRARY_PATH": "{home}/lib"},
    ),
    "Jupyter's variables": Case(
        "for another Jupyter",
        environ={"JUPYTER_TOKEN": "mysecret", "JUPYTER_NO_CONFIG": "1", "JUPYTER_CONFIG_DIR": "/nowhere"},
    ),
    "a public server's settings": Case(
        "as Jupyter's own page on public servers has them",
        {
            ".jupyter/jupyter_notebook_config.py": "c.NotebookApp.certfile = '/x.pem'\nc.NotebookApp.keyfile = '/x'\n"
            "c.NotebookApp.ip = '*'\nc.NotebookApp.port = 9999\nc.NotebookApp.password = 'sha1:1:1'\n"
            "c.NotebookApp.open_browser = True\nc.NotebookApp.kernel_spec_manager_class = 'nb_conda_kernels.X'\n"
        },
        says=".jupyter/jupyter_notebook_config.py",
    ),
    "settings that are damaged": Case(
        "a comma too many, Python 2",
        {
            ".jupyter/jupyter_notebook_config.json": '{"NotebookApp": {"a": 1,}}',
            ".jupyter/jupyter_config.py": "print 'hello'\n",
        },
        says=".jupyter/jupyter_notebook_config.json",
    ),
    "extensions of the past": Case(
        "35 lines of traceback at each start",
        {
            ".jupyter/jupyter_notebook_config.json": json.dumps(
                {"NotebookApp": {"nbserver_extensions": {"nb_conda": True, "jupyter_tensorboard": True}}}
            ),
            ".jupyter/jupyter_notebook_config.d/lab.json": '{"NotebookApp": {"nbserver_extensions": {"gone": true}}}',
        },
        says=".jupyter/jupyter_notebook_config.json",
    ),
    "pip's settings": Case(
        "what `!pip` in a cell would obey",
        {".config/pip/pip.conf": "[install]\nuser = true\n[global]\nrequire-virtualenv = true\n"},
        {"PIP_TARGET": "/nowhere", "PIP_USER": "1"},
    ),
    "a home with an odd name": Case("blanks, quotes and umlauts", environ={"XDG_DATA_HOME": "{home}/d'ä t\"a"}),
    "a runtime folder that is not ours": Case(
        "left to root by `sudo jupyter`",
        {".local/share/jupyter/runtime": "a file where Jupyter's folder should be"},
        says=".local/share/jupyter/runtime",
        broken=True,
    ),
}


def make_home(folder: Path, case: Case) -> dict[str, str]:
    """Write a case's files into a new home and return its variables."""
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {name: value.format(home=folder) for name, value in case.environ.items()}


def use(prefix: Path, home: Path, case: Case) -> str:
    """Start Jupyter in a case's home, have the doctor look, and return what is wrong; "" where all is well."""
    environ = make_home(home, case)
    port = free_port()
    argv = jupyter_argv(str(prefix), port, str(home), os.geteuid() == 0)
    if case.broken:
        done = subprocess.run(argv, env={"HOME": str(home), "PATH": os.defpath}, capture_output=True, text=True)
        lines = done.stderr.splitlines()
        told = len(lines) == 2 and lines[0].startswith("error: ") and case.says in lines[0] and "hint: " in lines[1]
        return "" if done.returncode and told else done.stderr or "it started"
    runtime = Path(environ.get("XDG_DATA_HOME", home / ".local/share")) / "jupyter" / "runtime"
    variables = dict(environ, JUPYTER_RUNTIME_DIR=str(runtime))
    with start(argv, home, port, variables) as running:
        deadline = time.monotonic() + 30  # the address is shown a moment after the runtime file is there
        while f"http://localhost:{port}/?token={running.token}" not in running.log and time.monotonic() < deadline:
            time.sleep(0.1)
        if f"http://localhost:{port}/?token={running.token}" not in running.log:
            return "Jupyter shows no address that can be pasted:\n" + running.log
        doctor = [sys.executable, "-I", str(REPO / "scripts/doctor.py"), "--json", "--timeout", "60", "-"]
        asked = subprocess.run(
            doctor,
            env={"HOME": str(home), "PATH": os.defpath, **{k: v for k, v in environ.items() if k[:3] in ("XDG",)}},
            input=running.url,
            capture_output=True,
            text=True,
        )
        said = json.loads(asked.stdout)
        cells = [step for step in said["steps"] if step["title"] == "run a cell"]
        if not said["ok"] or len(cells) != 2 or not all("TensorFlow" in step["detail"] for step in cells):
            return f"the doctor: {asked.stdout}{asked.stderr}\n{running.log}"
        # The doctor tries a wrong token on purpose.
        expected = re.compile(r"note: |\[W .*(Forbidden|403 GET /api/kernelspecs)")
        notes = [line for line in noise(running.log) if not expected.match(line)]
        if notes:
            return "Jupyter's log is not quiet:\n" + "\n".join(notes)
        if case.says not in running.log or running.log.count("note: ") != bool(case.says):
            return f"{case.says!r} is not what the user is told:\n{running.log}"
    return ""


@pytest.fixture(scope="module")
def results(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each case, some at a time: starting Jupyter and TensorFlow takes longest."""

    def one(name: str) -> str:
        home = tmp_path_factory.mktemp("zoo") / "home"
        home.mkdir()
        try:
            return use(installed.prefix, home, CASES[name])
        except (RuntimeError, OSError, ValueError) as problem:
            return str(problem)

    with ThreadPoolExecutor(LIFE) as pool:
        return dict(zip(CASES, pool.map(one, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_zoo(results: dict[str, str], name: str) -> None:
    assert results[name] == ""


def table() -> str:
    """Return the table of docs/zoo.md."""
    rows = []
    for name, case in CASES.items():
        told = f"named: `{case.says}`" if case.says else "nothing to see"
        rows.append(f"| {name} | {case.why} | {'refused, ' if case.broken else 'works, '}{told} |")
    return "\n".join(["| home | why | what happens |", "|---|---|---|", *rows]) + "\n"


def test_the_table_in_the_documents_is_this_one() -> None:
    assert table() in (REPO / "docs" / "zoo.md").read_text()


if __name__ == "__main__":
    print(table(), end="")
