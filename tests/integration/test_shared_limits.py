"""Limits that several servers count together, in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.access.caller import Caller
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.access.redis import redis_limits
from atmosphere_grpc.errors import Failure
from tests.access.redis_server import PASSWORD, redis_server
from tests.fakes import FakeServer
from tests.integration.conftest import openai, serving
from tests.integration.test_auth import RPCS

pytestmark = pytest.mark.xdist_group("redis")


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
async def servers(redis: str) -> AsyncIterator[list[Limits]]:
    """What two servers count with."""
    made = [redis_limits(redis, PASSWORD) for _ in range(2)]
    yield made
    for limits in made:
        await limits.aclose()


def caller(name: str, **limits: int) -> Caller:
    policy = Policy(**limits)  # type: ignore[arg-type]
    return Caller(name, name, policy, Permit(policy))


async def let_in(limits: Limits, who: Caller, tokens: int = 0) -> bool:
    try:
        async with limits.call(who) as bill:
            bill.tokens = tokens
    except Failure:
        return False
    return True


async def test_as_many_calls_are_let_in_by_all_servers_as_are_allowed(
    servers: list[Limits], caplog: pytest.LogCaptureFixture
) -> None:
    who = caller("exact", requests_per_minute=50)
    calls = [let_in(servers[i % 2], who) for i in range(300)]
    assert sum(await asyncio.gather(*calls)) == 50
    assert "counts for itself" not in caplog.text


async def test_tokens_are_charged_to_the_last_one(servers: list[Limits]) -> None:
    who = caller("tokens", tokens_per_minute=1000)
    assert all(await asyncio.gather(*(let_in(servers[i % 2], who, 10) for i in range(99))))
    assert await let_in(servers[0], who, 9)
    assert await let_in(servers[1], who, 1)
    assert not await let_in(servers[0], who)
    assert not await let_in(servers[1], who)


async def test_a_wrong_password_is_told_without_it(
    redis: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = redis_limits(redis, "canary-wrong")
    assert await let_in(limits, caller("wrong", requests_per_minute=1))
    await limits.aclose()
    assert "auth.limits_storage cannot be used" in caplog.text
    assert "canary" not in caplog.text


async def test_two_servers_serve_by_one_count(
    redis: str, tmp_path: Path, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    auth: dict[str, Any] = {
        "limits_storage": redis,
        "limits_password": {"env": "REDIS_PASSWORD"},
        "default": {"requests_per_minute": 7},
    }
    async with (
        serving(tmp_path, openai(fake.base_url), auth=auth) as one,
        serving(tmp_path, openai(fake.base_url), auth=auth) as two,
    ):
        calls = [RPCS["Route"]((one, two)[i % 2], ()) for i in range(30)]
        failures = await asyncio.gather(*calls)
    assert failures.count(None) == 7
    assert {item.reason for item in failures if item is not None} == {"RATE_LIMITED"}


async def test_a_redis_that_goes_away_stops_no_call(caplog: pytest.LogCaptureFixture) -> None:
    who = caller("gone", requests_per_minute=3)
    with redis_server() as url:
        limits = redis_limits(url, PASSWORD)
        assert await let_in(limits, who)
    let = [await let_in(limits, who) for _ in range(5)]
    await limits.aclose()
    assert let == [True, True, True, False, False]
    assert "this server counts for itself" in caplog.text


async def test_a_changed_limit_forgets_nothing(servers: list[Limits]) -> None:
    for server in servers:
        assert await let_in(server, caller("changed", requests_per_minute=5), 0)
        assert await let_in(server, caller("changed", tokens_per_minute=50), 10)
    assert not await let_in(servers[0], caller("changed", requests_per_minute=2))
    assert not await let_in(servers[0], caller("changed", tokens_per_minute=20))
