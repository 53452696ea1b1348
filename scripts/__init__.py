"""Tools around bootstrap.py; each module says in its first lines who runs it and what it may import."""
