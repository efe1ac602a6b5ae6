"""Keys of an identity provider, fetched from a real server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.access.fetch import MAX_BYTES, fetched
from tests.access.issuer import AUDIENCE, ISSUER, jwks, token
from tests.fakes import FakeServer, Pause, Reply, Send
from tests.integration.conftest import openai, serving
from tests.integration.test_auth import RPCS, bearer

PATH = "/jwks.json"
DRIPPING = (Send(b" "), Pause(0.05)) * 200


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
            await asyncio.to_thread(fetched, f"{fake.url}{PATH}", 5.0)
        assert elsewhere.connections == 0


async def test_a_document_without_end_is_broken_off(fake: FakeServer) -> None:
    endless = Send(b" " * 65536, times=MAX_BYTES // 65536 + 1)
    fake.always(PATH, Reply.until_eof(endless))
    with pytest.raises(ValueError, match="larger than"):
        await asyncio.to_thread(fetched, f"{fake.url}{PATH}", 5.0)


async def test_bytes_that_come_one_by_one_have_an_end(fake: FakeServer) -> None:
    fake.always(PATH, Reply.until_eof(*DRIPPING))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(fetched, f"{fake.url}{PATH}", 0.5)
    assert time.monotonic() - began < 2


async def test_who_has_a_known_key_never_waits_for_an_address_that_hangs(
    tmp_path: Path, fake: FakeServer
) -> None:
    async with FakeServer() as provider:
        provider.always(PATH, Reply.body(jwks("ES256-1"), content_type="application/json"))
        url = f"{provider.url}{PATH}"
        jwt = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": url, "refresh": "100ms"}
        async with serving(tmp_path, openai(fake.base_url), auth={"jwt": jwt}) as served:
            assert await RPCS["Route"](served, bearer(token())) is None
            provider.always(PATH, Reply.until_eof(*DRIPPING))
            served.server._entrance.gate.tokens._keys._over_at = float("-inf")  # type: ignore[union-attr]
            await asyncio.sleep(0.15)
            began = time.monotonic()
            assert await RPCS["Route"](served, bearer(token())) is None
            assert time.monotonic() - began < 1
            assert len(provider.requests) <= 2


async def test_keys_outlive_a_reload(tmp_path: Path, fake: FakeServer) -> None:
    async with FakeServer() as provider:
        provider.always(PATH, Reply.body(jwks("ES256-1"), content_type="application/json"))
        jwt = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"{provider.url}{PATH}"}
        async with serving(tmp_path, openai(fake.base_url), auth={"jwt": jwt}) as served:
            assert await RPCS["Route"](served, bearer(token())) is None
            provider.always(PATH, Reply.body("", 500))
            server = served.server
            server._entrance.gate = server._gate(server._settings)
            assert await RPCS["Route"](served, bearer(token())) is None
