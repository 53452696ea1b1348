"""google.colab, Colab's API and JupyterLab in a small environment with real servers, over both transports.

A stand-in of Colab's page answers what google.colab asks: tests/support/colab_client.py speaks the facts that are
known of the page.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tests.support.colab_client import TRANSPORTS, Colab, Outputs, Server, connect, open_transport
from tests.support.jupyter_servers import JUPYTER, Running, make_environment, noise, pythons, serve, serve_lab

PACKAGES = ("jupyter", "ipywidgets", "pandas", "pillow", "tensorboard", "widgetsnbextension", "jupyterlab-widgets")
NEWEST = list(pythons())[-1]
SERVERS: dict[str, Callable[[Path, Path], AbstractContextManager[Running]]] = {"notebook": serve, "lab": serve_lab}
LOCAL = "http://localhost:{}"  # the origin of Jupyter's own page


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what notebooks use, without TensorFlow."""
    return make_environment(tmp_path_factory.mktemp("environment") / "env", pythons()[NEWEST], *JUPYTER, *PACKAGES)


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(request: Any, prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Notebook 6 and JupyterLab 4, one after the other."""
    with SERVERS[request.param](prefix, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def notebook(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(prefix, tmp_path_factory.mktemp("home")) as running:
        yield running


class Page:
    """What Colab's page knows and does for its user."""

    def __init__(self, **secrets: Any) -> None:
        """secrets: by name; None for one that this notebook may not read."""
        self.secrets = secrets
        self.scripts: list[str] = []
        self.pieces: Iterator[dict[str, str]] = iter(())

    def pick(self, name: str, content: bytes, size: int = 4) -> None:
        """Let the user pick a file at the next upload."""
        parts = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
        steps = [{"action": "append", "file": name, "data": base64.b64encode(part).decode()} for part in parts]
        self.pieces = iter([{"action": "starting"}, *steps, {"action": "complete"}])

    def __call__(self, kind: str, body: Any) -> Any:
        if kind == "GetSecret":
            value = self.secrets.get(body["key"])
            exists = body["key"] in self.secrets
            return {"exists": exists, "access": value is not None, "payload": value}
        assert kind == "cell_javascript_eval", kind
        script = body["script"]
        self.scripts.append(script)
        if "google.colab._files._uploadFiles" in script:
            return next(self.pieces)
        if script == "throw":
            raise RuntimeError("ReferenceError: throw")
        return 42 if script == "6*7" else None


def run(running: Running, code: str, page: Any = None, transport: str = "direct", **options: Any) -> Outputs:
    """Run one cell in a new kernel, as Colab's page does."""
    with connect(running.url, transport, answer=page, **options) as colab:
        return colab.run(code)


@pytest.fixture
def own_page(notebook: Running) -> Iterator[Colab]:
    """A cell that is run by Jupyter's own page: same origin, and nobody answers google.colab."""
    page = Colab(open_own(notebook))
    yield page
    page.close()


def open_own(running: Running) -> Any:
    """Return a transport that is Jupyter's own page."""

    class Own:
        def __init__(self) -> None:
            self.server = Server(running.url, LOCAL.format(running.port))

        def request(self, method: str, path: str, body: Any = None) -> Any:
            content = None if body is None else json.dumps(body).encode()
            return self.server.http(method, f"{path}?token={running.token}", {}, content)

        def channels(self, path: str, session: str) -> Any:
            return self.server.websocket(path, {"session_id": session, "token": running.token})

        def close(self) -> None:
            pass

    return Own()


# --- Colab's API --------------------------------------------------------------------------------------------


def test_colab_api_is_for_those_who_are_logged_in(server: Running) -> None:
    for name in ("build-info", "resources", "drive"):
        strangers = (f"/api/colab/{name}", f"/api/colab/{name}?token=wrong")
        for path in strangers:
            answer = Server(server.url).http("GET", path, {}, None)
            assert answer.status == 403, path
            assert set(answer.body) <= {"message", "colab_local_jupyter"}
    for transport in TRANSPORTS:
        opened = open_transport(Server(server.url), transport)
        known = {name: opened.request("GET", f"/api/colab/{name}") for name in ("build-info", "resources", "drive")}
        opened.close()
        assert {answer.status for answer in known.values()} == {200}
        assert known["build-info"].body["release_tag"].startswith("colab-local-")
        assert known["drive"].body == {"dfs": []}
        found = known["resources"].body
        assert 0 < found["memory"]["freeBytes"] < found["memory"]["totalBytes"]
        (disk,) = (one["filesystem"] for one in found["disks"])
        assert 0 < disk["usedBytes"] < disk["totalBytes"]
        assert isinstance(found["gpus"], list)


def test_answers_begin_as_colab_wants_them(notebook: Running) -> None:
    import urllib.request

    address = f"http://localhost:{notebook.port}/api/colab/resources?token={notebook.token}"
    with urllib.request.urlopen(address) as said:
        assert said.read().startswith(b")]}'\n{")


def test_kernels_count_in_resources(notebook: Running) -> None:
    with connect(notebook.url) as colab:
        found = colab.transport.request("GET", "/api/colab/resources").body["memory"]["kernels"]
        used = {one["uuid"]: one["usedBytes"] for one in found}
        assert used[colab.session["kernel"]["id"]] > 10_000_000


# --- on Colab's page ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_requests_are_what_the_page_expects(server: Running, transport: str) -> None:
    page = Page(KEY="värde", MINE=None)
    with connect(server.url, transport, answer=page) as colab:
        told = colab.run("from google.colab import userdata; userdata.get('KEY')")
        assert (told.result, told.error) == ("'värde'", "")
        ((metadata, content),) = told.asked
        assert metadata["colab_request_type"] == "GetSecret"
        assert type(metadata["colab_msg_id"]) is int
        assert content == {"request": {"key": "KEY"}}
        assert colab.run("userdata.get('MINE')").error.startswith("NotebookAccessError")
        assert colab.run("userdata.get('NONE')").error.startswith("SecretNotFoundError")
        assert colab.run("userdata.get('a b')").error.startswith("ValueError")
        script = "from google.colab import output; output.eval_js('6*7')"
        assert colab.run(script).result == "42"
        assert colab.run("output.eval_js('throw')").error == "MessageError: ReferenceError: throw"
        ignored = colab.run("output.eval_js('6*7', ignore_result=True)")
        assert (ignored.result, len(ignored.asked)) == ("", 1)
        called = "output.register_callback('f', lambda a, b=0: a + b)"
        assert colab.run(called + "; output._js._invoke_function('f', '[1]', '{\"b\": 2}')").result == "3"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_files_go_through_the_page(server: Running, transport: str) -> None:
    page = Page()
    with connect(server.url, transport, answer=page) as colab:
        colab.run("import os, tempfile; os.chdir(tempfile.mkdtemp())")
        page.pick("../data.csv", b"a,b\n1,2\n")
        told = colab.run("from google.colab import files; files.upload()")
        assert (told.result, told.error) == ("{'data.csv': b'a,b\\n1,2\\n'}", "")
        assert "Saving data.csv to data.csv" in told.stdout
        page.pick("data.csv", b"")
        assert colab.run("files.upload('new')").result == "{'new/data.csv': b''}"
        page.pick("data.csv", b"other")
        assert colab.run("list(files.upload())").result == "['data (1).csv']"
        page.pick("x", b"1")
        assert "Saved x to" in colab.run("files.upload_file('y')").stdout
        shown = colab.run("open('big', 'wb').write(bytes(range(256)) * 10000); files.download('big')")
        script = shown.data[0]["application/javascript"]
        target = script[script.rindex("download_") :].split('"')[0]
        assert f'"{target}", "big", 2560000' in script
        pieces = colab.download(target)
        assert [len(piece) for piece in pieces] == [1024**2, 1024**2, 2560000 - 2 * 1024**2]
        assert b"".join(pieces) == bytes(range(256)) * 10000
        assert colab.run("files.download('none')").error.startswith("FileNotFoundError")


def test_what_the_page_draws_itself(notebook: Running) -> None:
    with connect(notebook.url, answer=Page()) as colab:
        widget = colab.run(
            "from google.colab import output; output.enable_custom_widget_manager(); import ipywidgets; "
            "ipywidgets.IntSlider()"
        )
        shown = widget.metadata[-1]["application/vnd.jupyter.widget-view+json"]
        assert shown["colab"]["custom_widget_manager"]["url"].startswith("https://ssl.gstatic.com/")
        off = colab.run("output.disable_custom_widget_manager(); ipywidgets.IntSlider()")
        assert off.metadata[-1] == {}
        table = colab.run(
            "import pandas; from google.colab import data_table\n"
            "data_table.DataTable(pandas.DataFrame({'n': [1, float('nan')], 's': ['</script>', 'é']}))"
        )
        script = table.data[-1]["application/vnd.google.colaboratory.module+javascript"]
        assert "</script>" not in script
        assert "<table" in table.data[-1]["text/html"]
        options = json.loads(script[script.index("(") + 1 : script.rindex(")")].replace("<\\/", "</"))
        assert options["columns"] == [["number", "index"], ["number", "n"], ["string", "s"]]
        assert options["data"][1] == [{"v": 1, "f": "1"}, {"v": None, "f": "nan"}, "é"]
        assert colab.run("data_table.enable_dataframe_formatter()").error == ""
        kinds = set(colab.run("pandas.DataFrame({'a': [1]})").data[-1])
        assert kinds == {"text/plain", "text/html", "application/vnd.google.colaboratory.module+javascript"}
        assert set(colab.run("data_table.disable_dataframe_formatter(); pandas.DataFrame({'a': [1]})").data[-1]) == {
            "text/plain",
            "text/html",
        }
        tags = colab.run("with output.use_tags('t'):\n    print(1)")
        assert [one["outputarea"]["add_tags"] for one in tags.metadata] == [["t"], []]


def test_a_page_that_stays_silent_is_given_up(notebook: Running) -> None:
    told = run(notebook, "from google.colab import userdata; userdata.get('KEY')", page=None)
    assert told.error == "TimeoutException: Requesting secret KEY timed out: Colab's page did not answer in 10 s."


def test_an_interrupt_ends_a_wait(notebook: Running) -> None:
    """A user who never picks a file can still stop the cell."""
    waiting = "import _thread, threading\nfrom google.colab import output\n"
    waiting += "threading.Timer(1, _thread.interrupt_main).start()\noutput.eval_js('never')"
    assert run(notebook, waiting, page=None).error.startswith("KeyboardInterrupt")


# --- on another page ----------------------------------------------------------------------------------------


def test_secrets_of_this_machine(own_page: Colab, notebook: Running) -> None:
    secrets = notebook.home / ".config" / "colab-local" / "secrets"
    get = "from google.colab import userdata; userdata.get('KEY')"
    missing = own_page.run(get).error
    assert missing.startswith("SecretNotFoundError: Secret KEY does not exist.")
    assert f"{secrets} (chmod 600)" in missing
    secrets.parent.mkdir(parents=True)
    secrets.write_text("OTHER=1\nKEY = a=b \n")
    secrets.chmod(0o644)
    assert own_page.run(get).error == (
        f"SecretsFileError: Other users can read {secrets}. Run in a terminal: chmod 600 '{secrets}'"
    )
    secrets.chmod(0o600)
    assert own_page.run(get).result == "'a=b'"
    # On Colab's page: what it has comes first, and what it refuses is not taken from the file either.
    assert run(notebook, get, Page(KEY="page")).result == "'page'"
    assert run(notebook, get, Page()).result == "'a=b'"
    assert run(notebook, get, Page(KEY=None)).error.startswith("NotebookAccessError")
    secrets.unlink()


def test_nothing_waits_for_a_page_that_is_not_there(own_page: Colab) -> None:
    assert "needs Colab's page" in own_page.run("from google.colab import output; output.eval_js('1')").error
    assert own_page.run("output.eval_js('1', ignore_result=True)").data[0]["application/javascript"] == "1"
    asked = own_page.run("from google.colab import files; files.upload()")
    assert "has nobody to ask here" in asked.error  # this client takes no questions
    shown = own_page.run("open('f.txt', 'w').close(); files.download('f.txt')")
    assert "The file is on this machine: " in shown.stdout
    assert '<a href="f.txt" download>' in shown.data[0]["text/html"]
    assert own_page.run("from google.colab import snippets; snippets.register('x')").error == ""
    assert own_page.run("with output.use_tags('t'), output.redirect_to_element('#x'):\n    print(1)").data == []
    frame = own_page.run("output.serve_kernel_port_as_iframe(8123, '/a')")
    assert 'src="http://localhost:8123/a"' in frame.data[0]["text/html"]
    assert "ssh -L 8123:localhost:8123" in frame.stdout


def test_drive_is_a_link_to_a_folder_that_the_user_names(own_page: Colab, notebook: Running, tmp_path: Path) -> None:
    mount = f"from google.colab import drive; drive.mount('{tmp_path}/drive')"
    settings = notebook.home / ".config" / "colab-local" / "google-colab.ini"
    assert f"{settings} as the lines\n[google.colab]\ndrive = " in own_page.run(mount).error
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"[google.colab]\ndrive = {tmp_path}/My Folder\n")
    assert "does not exist" in own_page.run(mount).error
    (tmp_path / "My Folder").mkdir()
    said = own_page.run(mount).stdout
    assert said.startswith(f"Mounted at {tmp_path}/drive: MyDrive is the folder {tmp_path}/My Folder of this machine")
    own_page.run(f"open('{tmp_path}/drive/MyDrive/x', 'w').close()")
    assert (tmp_path / "My Folder" / "x").exists()
    assert own_page.run(mount).stdout.startswith("Drive already mounted")
    assert own_page.run(mount[:-1] + ", force_remount=True)").stdout.startswith("Mounted")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    assert "must not already contain files" in own_page.run(f"drive.mount('{full}')").error
    assert (full / "mine").exists()
    settings.unlink()


def test_login_says_what_to_do(own_page: Colab, tmp_path: Path) -> None:
    login = "from google.colab import auth; auth.authenticate_user(project_id='p')"
    assert "gcloud auth application-default login" in own_page.run(login).error
    key = tmp_path / "key.json"
    key.write_text('{"type": "service_account"}')
    own_page.run(f"%env GOOGLE_APPLICATION_CREDENTIALS={key}")
    assert str(key) in own_page.run(login).stdout
    assert str(key) in own_page.run("auth.authenticate_service_account()").stdout
    assert own_page.run("import os; os.environ['GOOGLE_CLOUD_PROJECT']").result == "'p'"


def test_what_hosted_colab_alone_has_is_refused_politely(own_page: Colab) -> None:
    left = own_page.run("from google.colab import runtime; runtime.unassign()")
    assert (left.error, left.stdout[:25]) == ("", "runtime.unassign() does n")
    assert "hosted runtimes only" in own_page.run("from google.colab import ai; ai.generate_text('x')").error
    assert "gspread" in own_page.run("from google.colab import sheets; sheets.InteractiveSheet()").error


def test_magics_and_pictures(own_page: Colab) -> None:
    assert "no effect" in own_page.run("%tensorflow_version 2.x").stdout
    assert own_page.run("%tensorflow_version 1.x").error.startswith("ValueError: TensorFlow 1")
    assert own_page.run("%%shell\necho a; echo b >&2").stdout == "a\nb\n"
    assert own_page.run("%%shell\nexit 3").error.startswith("CalledProcessError")
    picture = own_page.run(
        "import io, numpy, PIL.Image; from google.colab.patches import cv2_imshow\n"
        "cv2_imshow(numpy.full((2, 3, 3), (300, 0, 0)))"
    )
    assert picture.data[0]["text/plain"] == "<PIL.Image.Image image mode=RGB size=3x2>"
    read = "import base64, io, PIL.Image; print(PIL.Image.open(io.BytesIO(base64.b64decode('{}'))).getpixel((0, 0)))"
    assert own_page.run(read.format(picture.data[0]["image/png"].strip())).stdout == "(0, 0, 255)\n"


# --- which page, and no page --------------------------------------------------------------------------------


def test_without_a_mark_the_page_is_asked(prefix: Path, tmp_path: Path) -> None:
    """nbconvert, papermill: nobody answers, and local meanings follow after one question."""
    code = "from google.colab import files\nopen('f', 'w').close()\nfiles.download('f')\nfiles.download('f')"
    cell: dict[str, Any] = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cell["source"] = code
    spec = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": spec, "nbformat": 4, "nbformat_minor": 4}))
    done = subprocess.run(
        [prefix / "bin" / "jupyter-nbconvert", "--to=markdown", "--execute", "--stdout", path],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.defpath, "HOME": str(tmp_path)},
    )
    assert done.stdout.count(f"The file is on this machine: {tmp_path}/f") == 2, done.stderr


def test_a_program_is_no_page_and_is_not_asked(server: Running, tmp_path: Path) -> None:
    """VS Code's library in Deno: the printed address and token are enough, and local meanings follow at once."""
    code = (
        "import time; from google.colab import userdata; began = time.monotonic()\n"
        "try: userdata.get('NONE')\n"
        "except userdata.SecretNotFoundError as e: print(e, time.monotonic() - began < 4)"
    )
    client = [str(REPO / "tests/support/services_client.mjs"), f"http://localhost:{server.port}/", server.token, code]
    done = subprocess.run(
        ["deno", "run", "--quiet", "--allow-all", "--no-lock", "--no-config", *client],
        env={**os.environ, "DENO_DIR": str(tmp_path / "deno")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = r"said: Secret NONE does not exist\. Add it as a line NONE=\.\.\. in \S+/secrets \(chmod 600\)\. True\n"
    assert re.search(said, done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize("how", ["variable", "file"])
def test_switched_off_it_is_as_if_it_were_not_there(prefix: Path, tmp_path: Path, how: str) -> None:
    """A notebook that tests for Colab by any of the usual ways then finds none."""
    home = tmp_path / "home"
    env = {"COLAB_LOCAL_GOOGLE_COLAB": "off"} if how == "variable" else {}
    if how == "file":
        (home / ".config" / "colab-local").mkdir(parents=True)
        (home / ".config" / "colab-local" / "google-colab.ini").write_text("[google.colab]\nenabled = no\n")
    with serve(prefix, home, env=env) as running, connect(running.url) as colab:
        assert colab.run("import google.colab").error == "ModuleNotFoundError: No module named 'google.colab'"
        assert colab.run("import importlib.util; importlib.util.find_spec('google.colab')").result == ""
        assert "not found" in colab.run("%tensorflow_version 2.x").stderr
        assert "ModuleNotFoundError" in colab.run("!python -c 'import google.colab'").stdout


def test_the_hosted_machine_is_not_imitated(notebook: Running) -> None:
    """What tells that a notebook runs on Google's machine, where apt and /content are, says no here."""
    tests = (
        "import os, sys; ('google.colab' in sys.modules, 'google.colab' in str(get_ipython()), "
        "[v for v in os.environ if v.startswith('COLAB_')])"
    )
    assert run(notebook, tests).result == "(False, False, [])"


@pytest.mark.parametrize(("page", "context"), [("colab", "_CONTEXT_COLAB"), ("own", "_CONTEXT_IPYTHON")])
def test_tensorboard_draws_for_the_page_that_is_there(
    notebook: Running, own_page: Colab, page: str, context: str
) -> None:
    """TensorBoard takes an import of google.colab for Colab's page, and would draw nothing on another."""
    code = "%load_ext tensorboard\nimport google.colab; from tensorboard import notebook as n\n"
    code += f"print(n._get_context() == n.{context})"
    told = run(notebook, code) if page == "colab" else own_page.run(code)
    assert (told.stdout, told.error) == ("True\n", "")


def test_pip_takes_it_for_installed(prefix: Path) -> None:
    """The package of that name in the index is of 2018 and would replace half of the environment."""
    dry = [str(prefix / "bin" / "pip"), "install", "--dry-run", "--no-index", "google-colab"]
    assert "already satisfied: google-colab" in subprocess.run(dry, capture_output=True, text=True, check=True).stdout


def test_lab_is_as_quiet_as_notebook(prefix: Path, tmp_path: Path) -> None:
    with serve_lab(prefix, tmp_path / "home") as running, connect(running.url, "http_over_ws") as colab:
        assert colab.run("1 + 1").result == "2"
    assert [line for line in noise(running.log) if "_dbg" not in line] == []


# What notebooks call (googlecolab/colabtools).
NAMES = """
auth.authenticate_user drive.mount drive.flush_and_unmount files.upload files.download files.view output.clear
output.eval_js output.register_callback output.no_vertical_scroll output.to_footer_area output.temporary
output.serve_kernel_port_as_iframe output.serve_kernel_port_as_window runtime.unassign userdata.get
userdata.NotebookAccessError userdata.SecretNotFoundError userdata.TimeoutException data_table.DataTable
data_table.load_ipython_extension patches.cv2_imshow widgets.TabBar widgets.Grid syntax.html snippets.register
autoviz.quickchart errors.AuthorizationError
"""


def test_every_name_of_colabs_own_package_is_there(prefix: Path) -> None:
    code = f"import google.colab\nfor name in {NAMES!r}.split(): eval('google.colab.' + name)"
    subprocess.run([str(prefix / "bin" / "python"), "-c", code], check=True)


def test_numbers_of_requests_differ(notebook: Running) -> None:
    code = "from google.colab import output; [output.eval_js('6*7') for _ in range(3)]"
    asked = run(notebook, code, Page()).asked
    numbers = [metadata["colab_msg_id"] for metadata, _ in asked]
    assert all(first < second for first, second in itertools.pairwise(numbers))
