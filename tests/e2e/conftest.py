"""A server on the embedded models, shared by the tests that only call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.processes import Serving, serving


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("embedded"), "--embedded") as server:
        assert server.address, server.log
        yield server
