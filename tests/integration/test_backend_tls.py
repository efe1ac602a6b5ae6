"""An `https` backend: whose certificate is trusted, and what is said of one that is not."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.integrations.integration import Integration
from tests.fakes import FakeServer
from tests.integration.conftest import chat_request, content, read, serving

AUTHORITY = trustme.CA()


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    """A backend with a certificate of an authority of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    async with FakeServer(tls=context) as server:
        yield server


async def chat(tmp_path: Path, fake: FakeServer, tls: dict[str, Any]) -> tuple[str, str, str]:
    """The answer, or the reason and message of a failure."""
    made = integration_of(
        Settings.model_validate(
            {"id": "x", "base_urls": [fake.base_url], "default_model": "fake-model", "tls": tls}
        )
    )
    assert isinstance(made, Integration)
    async with serving(tmp_path, made) as served:
        events, failure = await read(served.stub.Chat(chat_request()))
    return content(events), failure.reason if failure else "", failure.message if failure else ""


async def test_a_certificate_of_a_trusted_authority_is_accepted(
    tmp_path: Path, fake: FakeServer
) -> None:
    path = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    assert await chat(tmp_path, fake, {"ca_file": str(path)}) == ("Hello world", "", "")


@pytest.mark.parametrize("other", [False, True], ids=["public authorities", "another authority"])
async def test_a_certificate_of_any_other_is_not(
    tmp_path: Path, fake: FakeServer, other: bool
) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    said, reason, message = await chat(tmp_path, fake, {"ca_file": str(path)} if other else {})
    assert (said, reason) == ("", "BACKEND_UNAVAILABLE")
    assert "the TLS handshake failed at 127.0.0.1:" in message
    assert "is its certificate one that tls.ca_file trusts?" in message


async def test_a_certificate_that_is_not_checked_is_accepted(
    tmp_path: Path, fake: FakeServer
) -> None:
    assert (await chat(tmp_path, fake, {"verify": False}))[0] == "Hello world"
