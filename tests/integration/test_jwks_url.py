"""Keys of an identity provider, fetched from a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.access.signing_keys import MAX_BYTES, fetched
from tests.access.issuer import AUDIENCE, ISSUER, jwks, token
from tests.fakes import FakeServer, Reply, Send
from tests.integration.conftest import openai, serving
from tests.integration.test_auth import RPCS, bearer

PATH = "/jwks.json"


async def test_a_server_fetches_the_keys_once_and_lets_tokens_in(
    tmp_path: Path, fake: FakeServer
) -> None:
    async with FakeServer() as provider:
        provider.always(PATH, Reply.body(jwks("ES256-1"), content_type="application/json"))
        auth: dict[str, Any] = {
            "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"{provider.url}{PATH}"}
        }
        async with serving(tmp_path, openai(fake.base_url), auth=auth) as served:
            calls = [RPCS["Route"](served, bearer(token())) for _ in range(20)]
            assert await asyncio.gather(*calls) == [None] * 20
            failure = await RPCS["Route"](served, bearer(token("ES256-2")))
            assert failure is not None
            assert failure.reason == "UNAUTHENTICATED"
        assert [item.path for item in provider.requests] == [PATH]


async def test_a_redirect_is_not_followed(fake: FakeServer) -> None:
    async with FakeServer() as elsewhere:
        fake.always(PATH, Reply.body("", 302, headers={"Location": elsewhere.url}))
        with pytest.raises(OSError, match="302"):
            await asyncio.to_thread(fetched, f"{fake.url}{PATH}")
        assert elsewhere.connections == 0


async def test_a_document_without_end_is_broken_off(fake: FakeServer) -> None:
    endless = Send(b" " * 65536, times=MAX_BYTES // 65536 + 1)
    fake.always(PATH, Reply.until_eof(endless))
    with pytest.raises(ValueError, match="larger than"):
        await asyncio.to_thread(fetched, f"{fake.url}{PATH}")
