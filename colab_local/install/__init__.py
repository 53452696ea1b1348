"""One environment from its lock: what runs on a bare machine."""
