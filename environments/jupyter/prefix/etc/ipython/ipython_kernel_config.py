"""Settings of this environment's kernels; IPython reads this file before it reads the user's own.

`extra_extensions` comes after the user's own list of extensions and leaves it as it is.
"""

c = get_config()  # noqa: F821  (IPython defines get_config while it reads this file)
c.IPKernelApp.extra_extensions = ["colab_local_jupyter.kernel"]
