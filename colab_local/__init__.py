"""A machine as a Google Colab local runtime, exact to the hash: the library under bootstrap.py and scripts/.

Floors, each of which imports only those below it: base, install, then manage, desktop, laptop and locking side by
side, then bootstrap.py and the programs in scripts/.
"""

VERSION = "2026.11.0"  # calendar versioning: year, month, number of the release in it
