"""What the user's own machine and home may be like: refused before anything is downloaded, or named with its line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colab_local.base import network
from colab_local.base.errors import EXIT_MACHINE, Failure
from colab_local.install import home, surroundings
from colab_local.install.engines.host import find_python, other_python
from colab_local.install.machine import folder_refusal, memory_limit, memory_refusal
from colab_local.install.servers import demand_alone
from tests.conftest import REPO, SCREEN

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount of its own")


@needs_root
def test_a_prefix_where_nothing_can_be_run_is_refused_before_the_download(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    code = "import sys; from pathlib import Path; from colab_local.install.machine import folder_refusal as f\n"
    code += "from colab_local.base.terminal import Screen; Screen().fail(f(Path(sys.argv[1])))"
    shell = f'mount -t tmpfs -o noexec none "{tmp_path}/disk" && exec "{sys.executable}" -c "$0" "{tmp_path}/disk"'
    argv = ["unshare", "--mount", "sh", "-c", shell, code]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=True)
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: no program can be run from {tmp_path}/disk: it is mounted noexec")
    assert hint.startswith("hint: python3 bootstrap.py --prefix /a/folder/on/another/disk   # findmnt -T ")
    assert folder_refusal(Path("/")) is None


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory_limit(tmp_path) == 0
    write("proc/meminfo", "MemTotal:        1000000 kB\nMemFree: 5 kB\nSwapTotal:  1000 kB\n")
    assert memory_limit(tmp_path) == 1001000 << 10
    write("proc/self/cgroup", "0::/jobs/one\n")
    write("sys/fs/cgroup/jobs/one/memory.max", "max\n")
    assert memory_limit(tmp_path) == 1001000 << 10
    write("sys/fs/cgroup/jobs/one/memory.max", f"{160 << 20}\n")
    assert memory_limit(tmp_path) == 160 << 20
    refusal = memory_refusal(160 << 20)
    assert refusal is not None
    assert (refusal.code, "found 160 MB, need 400 MB" in refusal.what) == (EXIT_MACHINE, True)
    assert memory_refusal(0) is memory_refusal(420 << 20) is None
    assert memory_limit() > 0


def test_a_python_that_was_built_without_something_is_passed_over(tmp_path: Path) -> None:
    """As one of pyenv's is where a header was missing: the module's file is there, and what it imports is not."""
    version = "{}.{}".format(*sys.version_info[:2])
    python = tmp_path / "python"
    hide = "import os, sys; sys.modules.update(_sqlite3=None, _lzma=None); exec(os.environ['CODE'])"
    python.write_text(f'#!/bin/sh\nCODE=$3 exec "{sys.executable}" -I -c "{hide}"\n')
    python.chmod(0o755)
    with pytest.raises(Failure) as caught:
        find_python(str(python), [version], SCREEN)
    assert f"{python} was built without sqlite3, lzma" in caught.value.what
    assert caught.value.code == EXIT_MACHINE
    assert caught.value.hint == "python3 bootstrap.py !--python --engine host", "this one has all"
    assert find_python(sys.executable, [version], SCREEN)[1] == version


def test_a_python_that_the_distribution_lacks_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.13 on Debian 12: apt-get could not install it."""
    (tmp_path / "apt-cache").write_text('#!/bin/sh\n[ "$2" = python3.12 ]\n')
    (tmp_path / "apt-get").touch()
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert other_python("3.8", ["3.11", "3.12", "3.13"], SCREEN) == (
        "sudo apt-get install python3.12 python3.12-venv && python3 bootstrap.py --python python3.12"
    )
    assert other_python("3.8", ["3.13"], SCREEN).startswith("python3 scripts/bundle.py --help ")


# What is in the home: (file, text, the line that is named, does it break something).
NAMED = (
    (".keras/keras.json", '{\n "floatx": "float32",\n "backend": "theano"\n}', 3, False),
    (".jupyter/jupyter_notebook_config.py", "# x\nc.NotebookApp.certfile = '/x'\n", 2, False),
    (".jupyter/jupyter_notebook_config.json", '{"a": 1,\n}', 2, False),
    (".ipython/profile_default/startup/00.py", "x = 1\nprint 'hello'\n", 2, True),
    (".ipython/profile_default/ipython_config.py", "c.a = (\n", 1, True),
    (".ipython/profile_default/ipython_kernel_config.json", '{"a": 1,\n}', 2, True),
    (".config/pip/pip.conf", "[global]\ntarget = /x\n", 2, True),
    (".config/pip/pip.conf", "[global]\nno equals sign\n", 2, True),
    (".config/pip/pip.conf", "[global]\n\ncert = /gone.pem\n", 3, True),
    (".config/uv/uv.toml", '\nrequired-version = ">=99"\n', 2, False),
    (".config/matplotlib/matplotlibrc", "text.usetex: True\n", 1, True),
    (".bashrc", "alias a=b\nexec fish\n", 2, True),
    (".bashrc", "exec tmux\n", 1, True),
    (".zshrc", "\ntmux attach\n", 2, True),
    (".bashrc", "ulimit -n 40\n", 1, True),
    (".profile", "export PYTHONHOME=/opt/python2\n", 1, True),
    (".bashrc", "read -r project\n", 1, True),
    (".zshenv", "\nexport SSL_CERT_FILE='/gone.pem'  # company\n", 2, True),
    (".bashrc", "[ -t 0 ] || return\n  export PYTHONHOME=/opt/python2\n", 2, True),
    (".config/fish/config.fish", "set -gx PIP_CERT /gone.pem\n", 1, True),
    (".cshrc", "setenv REQUESTS_CA_BUNDLE ~/gone.pem\n", 1, True),
    (".config/environment.d/50-gpu.conf", "A=b\nXLA_FLAGS=xla_gpu=1\n", 2, True),
    (".pam_environment", "SSL_CERT_FILE DEFAULT=@{HOME}/gone.pem\n", 1, True),
    (".ssh/environment", "PYTHONPATH=/opt/ros/lib\n", 1, False),
    (".bashrc", "case $- in *i*) ;; *) return;; esac\n[ -d /x ] && export A=1 PYTHONHOME=/opt/python2\n", 2, True),
    (".bash_profile", "if [ -d /x ]; then export SSL_CERT_FILE=/gone.pem; fi\n", 1, True),
    (".xsessionrc", "export LD_LIBRARY_PATH=$CUDA/lib64:$LD_LIBRARY_PATH\n", 1, False),
)


@pytest.mark.parametrize(("name", "text", "line", "breaks"), NAMED)
def test_a_dot_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, line: int, breaks: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    found = [finding for finding in surroundings.look(tmp_path, {}) if str(tmp_path) in finding.where]
    assert [(one.where, one.breaks) for one in found] == [(f"{tmp_path / name}:{line}", breaks)]
    assert found[0].hint


HARMLESS = (
    (".bashrc", "case $- in\n *i*) ;;\n *) return;;\nesac\nexec fish\n"),
    (".bashrc", '[ -z "$PS1" ] && return\nexec tmux\n'),
    (".bashrc", "if [ -t 1 ]; then\n  exec zsh\nfi\n# exec fish\nexport PATH=$HOME/bin:$PATH\nulimit -n 4096\n"),
    (".keras/keras.json", '{"backend": "tensorflow", "floatx": "float32", "epsilon": 1e-07}'),
    (".keras/keras.json", "[1]"),
    (".config/pip/pip.conf", "[global]\nindex-url = https://a.example/\n"),
    (".jupyter/jupyter_notebook_config.json", "{}"),
    (".profile", 'unset PYTHONPATH\nexport EDITOR=nano SSL_CERT="x\n# export PYTHONHOME=/x\nunset PYTHONHOME\n'),
    (".bashrc", "alias p='PYTHONHOME=/x python2'\nPYTHONHOME=/x python2 -V\nexport A='\nPYTHONHOME=/x'\n"),
    (".ssh/environment", "SSL_CERT_FILE=$COMPANY/ca.pem\nXLA_FLAGS=\n"),
)


@pytest.mark.parametrize(("name", "text"), HARMLESS)
def test_ordinary_dot_files_are_not_complained_of(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert [str(one) for one in surroundings.look(tmp_path, {}) if str(tmp_path) in one.where] == []


@pytest.mark.parametrize(
    "name", ["environment", "profile.d/cuda.sh", "environment.d/90.conf", "security/pam_env.conf"]
)
def test_what_is_set_for_every_user_is_named_too(tmp_path: Path, name: str) -> None:
    file = tmp_path / "etc" / name
    file.parent.mkdir(parents=True)
    file.write_text("A=1\n" + ("XLA_FLAGS DEFAULT=fast\n" if "pam" in name else "XLA_FLAGS=fast\n"))
    (found,) = surroundings.variables_in_files(tmp_path / "home", tmp_path / "etc")
    assert (found.where, found.breaks) == (f"{file}:2", True)


@pytest.mark.parametrize(
    ("own", "hint"), [("/dev/null", "/a/folder/of/yours"), ("/proc/1", "/a/folder/of/yours"), ("", "")]
)
def test_a_hint_names_a_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, hint: str
) -> None:
    """A daemon's home is /dev/null, /nonexistent or root's: there is no room in it."""
    monkeypatch.setenv("HOME", own or str(tmp_path))
    folder = hint or str(tmp_path / "colab-local")
    assert home.in_another_folder() == f"python3 bootstrap.py --prefix {folder}"


def test_a_home_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(Failure, match="HOME is relative"):
        home.user_home()


def test_variables_are_named_and_a_token_is_not_shown(tmp_path: Path) -> None:
    found = surroundings.look(
        tmp_path, {"PYTHONHOME": "/opt/python2", "JUPYTER_TOKEN": "mysecret", "PIP_CERT": "/no"}
    )
    said = "\n".join(map(str, found))
    assert "PYTHONHOME" in said and "JUPYTER_TOKEN" in said
    assert "mysecret" not in said
    assert [one.where for one in found if one.breaks] == ["PIP_CERT"]


def test_a_module_in_the_notebooks_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("")
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("")
    found = surroundings.look(tmp_path / "home", {}, tmp_path)
    assert {one.where for one in found} >= {str(tmp_path / "random.py"), str(tmp_path / "keras" / "__init__.py")}


def test_two_programs_at_localhosts_two_addresses_are_told_from_one() -> None:
    """One process with both, as ssh and our Jupyter have them, is no rival of itself."""
    with socket.create_server(("127.0.0.1", 0)) as four:
        port = four.getsockname()[1]
        assert network.rivals(port) is None
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            assert network.rivals(port) is None
            assert network.holds_port(os.getpid(), port)
        code = f"import socket; s = socket.create_server(('::1', {port}), family=socket.AF_INET6); print(1); input()"
        with subprocess.Popen(
            [sys.executable, "-uc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            found = network.rivals(port)
            assert found is not None
            assert [str(one) for one in found] == [f"127.0.0.1:{port}", f"[::1]:{port}"]
            assert not network.port_is_free(port)
            with pytest.raises(Failure, match="two programs listen on port"):
                demand_alone(port)
            other.kill()


def test_the_launcher_keeps_a_drivers_libraries_and_drops_all_others(tmp_path: Path) -> None:
    """Kubernetes and some WSL bring libcuda in a folder of LD_LIBRARY_PATH."""
    launcher = tmp_path / "env" / "colab" / "jupyter-notebook"
    launcher.parent.mkdir(parents=True)
    shutil.copy(REPO / "environments/jupyter/prefix/colab/jupyter-notebook", launcher)
    (tmp_path / "env" / "bin").mkdir()
    python = tmp_path / "env" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$LD_PRELOAD|$@"\n')
    python.chmod(0o755)
    for folder, files in {
        "driver": ["libcuda.so.1"],
        "conda": ["libcuda.so.1", "libstdc++.so.6"],
        "matlab": [],
    }.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).touch()
    (tmp_path / "current").symlink_to(tmp_path / "env")
    path = ":".join(str(tmp_path / name) for name in ("matlab", "driver", "conda"))
    done = subprocess.run(
        [str(tmp_path / "current" / "colab" / "jupyter-notebook"), "--port=1", "a b"],
        env={"PATH": os.defpath, "LD_LIBRARY_PATH": path, "CDPATH": "/", "LD_PRELOAD": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    real = tmp_path / "env"
    assert done.stdout == f"{tmp_path}/driver||-I {real}/colab/jupyter-notebook --port=1 a b\n"
