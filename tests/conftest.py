"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A server that a test starts or reloads sets the level of the whole process's log."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
