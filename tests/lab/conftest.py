"""Fixtures that several tests in this folder share."""

from tests.support.booted import machine

__all__ = ["machine"]
