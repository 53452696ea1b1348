"""Settings of this environment's JupyterLab (jupyter_server 2); Jupyter reads this file before the user's own.

What each setting is for stands in colab_local_jupyter/settings.py.
"""

from colab_local_jupyter import settings

settings.apply(get_config())  # noqa: F821  (Jupyter defines get_config while it reads this file)
