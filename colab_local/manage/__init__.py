"""What is installed: list it, switch back, remove it, verify it, keep it running."""
