"""Prove that a new environment works, and leave it warm: bootstrap.py runs this with the environment's Python.

    PREFIX/bin/python smoke_test.py compute cpu|gpu NAME ...   imports, a TensorFlow function under XLA
    PREFIX/bin/python smoke_test.py serve                      Jupyter loads Colab's server extensions

cpu or gpu is what the environment is for; the names are those of the lock. Both print one JSON line; exit status 1
and one line on stderr when something is wrong. Whatever they import is byte-compiled on the way, which makes the
first cell and Jupyter's first start quick.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from typing import Any

# What a first cell and Jupyter's start import, by the name of the locked package that brings it.
WARM = {
    "numpy": "numpy",
    "pandas": "pandas",
    "matplotlib": "matplotlib.pyplot",
    "ipywidgets": "ipywidgets",
    "ipykernel": "ipykernel.kernelapp",
    "tqdm": "tqdm.notebook",
    "tensorboard": "tensorboard.main",  # it imports pkg_resources, which setuptools had up to 81
}


def tell(number: int, parts: int, what: str) -> None:
    """Say how far it is: whoever waits sees the newest line of stderr."""
    print(f"{number} of {parts}: {what}", file=sys.stderr, flush=True)


def compute(accelerator: str, names: set[str]) -> dict[str, Any]:
    """Import what is locked, run a function that XLA compiles and one step of Keras, all on the CPU.

    accelerator: of the environment. A CPU environment may have TensorFlow's build for CUDA, without CUDA.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(KERAS_HOME=folder, MPLCONFIGDIR=folder)  # nothing is written outside the environment
        os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # debugpy would warn of what nobody does here
        return _compute(accelerator, names)


def _compute(accelerator: str, names: set[str]) -> dict[str, Any]:
    modules = [module for name, module in WARM.items() if name in names]
    has_tensorflow = bool(names & {"tensorflow", "tensorflow-cpu"})
    parts = len(modules) + (3 if has_tensorflow else 0)
    for number, module in enumerate(modules, 1):
        tell(number, parts, f"import {module}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations are their authors' business, not the user's
            importlib.import_module(module)
    show(names)
    if not has_tensorflow:
        return {"tensorflow": None}
    tell(parts - 2, parts, "import tensorflow")
    import keras
    import tensorflow as tf

    tell(parts - 1, parts, "compile with XLA")
    double = tf.function(lambda x: x @ x * 2.0, jit_compile=True)  # where ptxas or libdevice are missing, this fails
    if double(tf.ones((2, 2))).numpy().tolist() != [[4.0, 4.0], [4.0, 4.0]]:
        raise SystemExit("TensorFlow computes wrong results on this machine")
    tell(parts, parts, "train with Keras")
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(tf.ones((2, 2)), tf.ones((2, 1)), verbose=0)
    if accelerator == "gpu" and tf.test.is_built_with_cuda():
        from colab_local_jupyter.gpu import libraries_found

        if not libraries_found(tf):
            raise SystemExit("TensorFlow does not find its CUDA libraries")
    return {"tensorflow": tf.__version__}


def show(names: set[str]) -> None:
    """Make what a notebook shows first: a picture of a plot, a table, a slider."""
    if "matplotlib" in names:
        from matplotlib.figure import Figure

        picture = io.BytesIO()
        Figure().savefig(picture, format="png")
        if not picture.getvalue().startswith(b"\x89PNG"):
            raise SystemExit("matplotlib draws no picture")
    if "pandas" in names:
        import pandas

        if "<table" not in str(pandas.DataFrame({"a": [1]}).to_html()):
            raise SystemExit("pandas makes no table")
    if "ipywidgets" in names:
        import ipywidgets

        ipywidgets.IntSlider(value=1)


def serve() -> dict[str, Any]:
    """Set Jupyter up as the printed command does, on any free port of loopback, and look for both extensions."""
    from colab_local_jupyter.__main__ import main as make_ready

    if make_ready():  # it has said on stderr what would keep Colab out
        raise SystemExit(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            os.environ[name] = folder  # nothing of the user's is read or written
        from notebook.notebookapp import NotebookApp

        app = NotebookApp(log_level=logging.ERROR)
        app.initialize(["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", "--notebook-dir=" + folder])
        app.http_server.stop()
        loaded = [name for name, on in app.nbserver_extensions.items() if on and name in sys.modules]
    for name in ("jupyter_http_over_ws", "colab_local_jupyter"):
        if name not in loaded:
            raise SystemExit(f"the server extension {name} did not load")
    os.environ["COLAB_LOCAL_GOOGLE_COLAB"] = "on"  # it must work, even if this user has switched it off
    for module in ("colab_local_jupyter.kernel", "google.colab"):  # what each kernel loads, and what cells import
        importlib.import_module(module)
    return {"extensions": sorted(loaded)}


if __name__ == "__main__":
    result = serve() if sys.argv[1] == "serve" else compute(sys.argv[2], set(sys.argv[3:]))
    print(json.dumps(result))
