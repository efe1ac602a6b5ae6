"""Projects that come and go as integrations, without a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.domain import (
    BackendEvent,
    Capability,
    ChatCall,
    EmbedCall,
    Embeddings,
    IntegrationState,
    Model,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations import registry as registry_module
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry

REFUSED = Failure(Reason.BACKEND_UNAVAILABLE, 'integration "farm": connection refused')
LONG_S = 3600.0  # no test waits for it
SOON_S = 5.0  # nor for this, unless it fails


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What an operator is warned of."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


class Backend(LanguageOnly):
    """Lists one model, and says whether it was closed."""

    endpoints = ("farm.test:1",)

    def __init__(self) -> None:
        self.closed = False

    async def models(self) -> tuple[Model, ...]:
        return (Model("m"),)

    def is_cold(self, model: str) -> bool:
        return False

    async def warm(self, model: str) -> None:
        raise AssertionError

    def lists_all_models(self, capability: Capability) -> bool:
        return True

    async def aclose(self) -> None:
        self.closed = True

    def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        raise NotImplementedError

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        raise NotImplementedError


class Namespace:
    """Lists the projects that it is told to, fails, or hangs."""

    endpoints = ("farm.test:1",)

    def __init__(self, *names: str) -> None:
        self.names: tuple[str, ...] = names
        self.failure: Failure | None = None
        self.hangs = False
        self.asked = 0
        self.seen = asyncio.Event()
        self.closed = False

    async def projects(self) -> tuple[str, ...]:
        self.asked += 1
        self.seen.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return self.names

    async def aclose(self) -> None:
        self.closed = True


class Farm:
    """A discovery, what it looks at, and all that it ever made, by project."""

    def __init__(self, *names: str) -> None:
        self.namespace = Namespace(*names)
        self.backends: dict[str, Backend] = {}
        self.discovery = Discovery("farm", "llamafarm", self.namespace, self._make)

    def _make(self, integration_id: str, project: str) -> Integration:
        self.backends[project] = Backend()
        return Integration(IntegrationSpec(integration_id, "llamafarm"), self.backends[project])

    async def look(self, *names: str) -> tuple[list[str], list[str]]:
        """The ids of what is new and of what is gone, when there are these projects."""
        self.namespace.names = names
        new, gone = await self.discovery.look(SOON_S)
        return [item.spec.id for item in new], [item.spec.id for item in gone]


@asynccontextmanager
async def probing(farm: Farm) -> AsyncIterator[tuple[Registry, asyncio.Queue[None]]]:
    """A registry that has looked at everything, and a mark for each further look."""
    changes: asyncio.Queue[None] = asyncio.Queue()
    registry = Registry([farm.discovery], lambda: changes.put_nowait(None))
    registry.start(LONG_S)
    try:
        async with asyncio.timeout(SOON_S):
            while not registry.looked_at:
                await changes.get()
            yield registry, changes
    finally:
        await registry.aclose()


async def look_again(
    farm: Farm, registry: Registry, changes: asyncio.Queue[None], *names: str
) -> None:
    """Has it looked for projects when there are these, and at those that are new."""
    farm.namespace.names = names
    looks = farm.namespace.asked
    registry.wake("farm")
    while farm.namespace.asked == looks or not registry.looked_at:
        await changes.get()


# --- a look ------------------------------------------------------------------------------------


async def test_what_is_new_is_made_once_and_what_is_gone_is_given_back() -> None:
    farm = Farm()
    assert await farm.look("one", "two") == (["farm.one", "farm.two"], [])
    first = farm.backends["one"]
    assert await farm.look("one", "two") == ([], [])
    assert await farm.look("three", "one") == (["farm.three"], ["farm.two"])
    assert [item.spec.id for item in farm.discovery.found.values()] == ["farm.one", "farm.three"]
    assert farm.backends["one"] is first


async def test_a_project_that_comes_back_is_a_new_integration() -> None:
    farm = Farm()
    await farm.look("one")
    first = farm.backends["one"]
    assert await farm.look() == ([], ["farm.one"])
    assert await farm.look("one") == (["farm.one"], [])
    assert farm.backends["one"] is not first


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "a/b", "a b", "", "ä", "a\n", "a?b", "a#b", "%2e%2e", "x" * 65]
)
async def test_a_name_that_could_lead_elsewhere_is_left_out_and_told_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    farm = Farm()
    assert await farm.look(name, "ok") == (["farm.ok"], [])
    assert await farm.look(name, "ok") == ([], [])
    (record,) = warnings(caplog)
    assert record.levelno == logging.WARNING
    told = f"farm: a project with the name {repr(name)[:80]} is left out: "
    assert record.getMessage() == told + "it cannot be a part of an id"


async def test_of_two_that_differ_in_case_the_first_is_an_integration_as_long_as_it_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    farm = Farm()
    assert await farm.look("Two", "two") == (["farm.two"], [])
    assert await farm.look("two", "Two") == ([], [])
    assert list(farm.backends) == ["Two"]
    assert len(warnings(caplog)) == 1
    assert "'two' is left out: it differs from Two only in case" in caplog.text
    assert await farm.look("two") == (["farm.two"], ["farm.two"])
    assert list(farm.backends) == ["Two", "two"]


async def test_before_the_first_look_it_says_that_it_has_not_looked() -> None:
    status = Farm().discovery.status
    assert (status.state, status.reason) == (IntegrationState.UNKNOWN, Reason.BACKEND_UNAVAILABLE)
    assert status.error == 'integration "farm": its projects were not looked for yet'


async def test_one_that_cannot_be_listed_keeps_what_it_found_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    farm = Farm()
    await farm.look("one")
    farm.namespace.failure = REFUSED
    assert await farm.look() == ([], [])
    assert await farm.look() == ([], [])
    assert [item.spec.id for item in farm.discovery.found.values()] == ["farm.one"]
    assert farm.discovery.status.error == REFUSED.message
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        REFUSED.message
    ]
    farm.namespace.failure = None
    assert await farm.look("one") == ([], [])
    status = farm.discovery.status
    assert (status.state, status.error, status.reason) == (IntegrationState.UP, "", None)


async def test_one_that_does_not_answer_in_time_is_down() -> None:
    farm = Farm()
    farm.namespace.hangs = True
    assert await farm.discovery.look(0.01) == ([], [])
    status = farm.discovery.status
    assert (status.state, status.reason) == (IntegrationState.DOWN, Reason.BACKEND_UNAVAILABLE)
    assert status.error == 'integration "farm": no answer within 0.01 s – is it overloaded?'
    assert status.latency_ms >= 10


# --- a registry with one -----------------------------------------------------------------------


async def test_what_is_found_stands_where_the_discovery_does() -> None:
    first, last = (
        Integration(IntegrationSpec(name, "openai"), Backend()) for name in ("first", "last")
    )
    farm = Farm()
    registry = Registry([first, farm.discovery, last])
    assert [item.spec.id for item in registry] == ["first", "last"]
    await farm.look("b", "a")
    assert [item.spec.id for item in registry] == ["first", "farm.b", "farm.a", "last"]


@pytest.mark.parametrize("integration_id", ["farm", "farm.one"])
async def test_what_may_be_there_when_it_can_be_listed_again_is_not_called_unknown(
    integration_id: str,
) -> None:
    farm = Farm()
    farm.namespace.failure = REFUSED
    registry = Registry([farm.discovery])
    for why in (farm.discovery.status.error, REFUSED.message):
        with pytest.raises(Failure) as caught:
            registry.get(integration_id)
        assert (caught.value.reason, caught.value.message) == (Reason.BACKEND_UNAVAILABLE, why)
        await farm.look()


@pytest.mark.parametrize("integration_id", ["farm", "farm.none", "farmer", "other"])
async def test_what_is_not_there_is_called_unknown_once_others_are(integration_id: str) -> None:
    farm = Farm()
    await farm.look("one")
    with pytest.raises(Failure) as caught:
        Registry([farm.discovery]).get(integration_id)
    assert caught.value.reason is Reason.INTEGRATION_NOT_FOUND
    assert "known are farm.one" in caught.value.message


async def test_an_empty_namespace_is_not_called_unconfigured() -> None:
    farm = Farm()
    await farm.look()
    with pytest.raises(Failure, match=r'no integration "farm"; no project was found yet$'):
        Registry([farm.discovery]).get("farm")


async def test_an_id_that_only_begins_alike_is_unknown_while_it_cannot_be_listed() -> None:
    farm = Farm()
    farm.namespace.failure = REFUSED
    await farm.look()
    with pytest.raises(Failure) as caught:
        Registry([farm.discovery]).get("farmer")
    assert caught.value.reason is Reason.INTEGRATION_NOT_FOUND


async def test_what_is_found_is_probed_and_what_is_gone_no_more() -> None:
    farm = Farm("one")
    async with probing(farm) as (registry, changes):
        assert registry.get("farm.one").state is IntegrationState.UP
        await look_again(farm, registry, changes, "two")
        assert registry.get("farm.two").state is IntegrationState.UP
        assert {name for name in task_names() if name.startswith("probe farm")} == {
            "probe farm",
            "probe farm.two",
        }
        assert (farm.backends["one"].closed, farm.backends["two"].closed) == (True, False)


async def test_one_that_takes_the_id_of_another_is_probed_in_its_place() -> None:
    farm = Farm("Two")
    async with probing(farm) as (registry, changes):
        await look_again(farm, registry, changes, "two")
        item = registry.get("farm.two")
        assert farm.backends["two"] in [endpoint.backend for endpoint in item.endpoints]
        assert item.state is IntegrationState.UP
        registry.wake("farm.two")
        await changes.get()
    assert farm.backends["two"].closed


async def test_one_that_is_gone_is_closed_only_after_its_last_call() -> None:
    farm = Farm("one")
    async with probing(farm) as (registry, changes):
        item = registry.get("farm.one")
        with item.limiter.turn():
            await look_again(farm, registry, changes)
            assert list(registry) == []
            assert "retire farm.one" in task_names()
            assert not farm.backends["one"].closed
        await ended("retire farm.one")
        assert farm.backends["one"].closed


async def test_closing_ends_everything_also_what_waits_for_a_last_call() -> None:
    farm = Farm("one", "two")
    async with probing(farm) as (registry, changes):
        turn = registry.get("farm.one").limiter.turn()
        turn.__enter__()  # of a call that does not end
        await look_again(farm, registry, changes, "two")
        assert not farm.backends["one"].closed
        await registry.aclose()
        assert farm.backends["one"].closed
    assert farm.backends["two"].closed
    assert farm.namespace.closed
    assert not {name for name in task_names() if name.startswith(("probe farm", "retire farm"))}


async def test_closing_ends_a_look_that_waits_for_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "PROBE_TIMEOUT_S", LONG_S)
    farm = Farm()
    farm.namespace.hangs = True
    registry = Registry([farm.discovery])
    registry.start(LONG_S)
    async with asyncio.timeout(SOON_S):
        await farm.namespace.seen.wait()
        await registry.aclose()
    assert farm.namespace.closed
    assert "probe farm" not in task_names()
    assert farm.discovery.status.state is IntegrationState.UNKNOWN


def task_names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


async def ended(name: str) -> None:
    """Waits until a task has ended."""
    async with asyncio.timeout(SOON_S):
        await asyncio.gather(*(t for t in asyncio.all_tasks() if t.get_name() == name))
