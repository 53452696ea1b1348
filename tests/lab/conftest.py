"""Fixtures that several tests in this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Installed
from tests.support.booted import machine
from tests.support.connecting import install
from tests.support.hosts import Lab

__all__ = ["lab", "machine"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, installed: Installed) -> Iterator[Lab]:
    """A laptop and one host with colab-local."""
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        install(installed, made.host("gpubox"))
        yield made
