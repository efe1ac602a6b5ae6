"""How an integration is doing, by what it says when it is asked."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

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
from atmosphere_grpc.integrations.integration import (
    Integration,
    IntegrationSpec,
    looks_like_embedding,
)
from atmosphere_grpc.integrations.registry import Registry

CHAT, EMBED = Capability.CHAT, Capability.EMBED
REFUSED = Failure(
    Reason.BACKEND_UNAVAILABLE,
    'integration "a": connection refused',
    detail="errno 111",
)
LLAMA, MINILM = Model("llama"), Model("all-minilm")
LONG_S = 3600.0  # no test waits for it
SOON_S = 5.0  # nor for this, unless it fails


class Backend(LanguageOnly):
    """Lists what it is told to: models, a failure, or nothing until it is released."""

    endpoints: tuple[str, ...] = ("backend.test:1",)

    def __init__(self, *answers: Model | Failure) -> None:
        self.answers: tuple[Model | Failure, ...] = answers
        self.hangs: asyncio.Event | None = None
        self.asked = 0
        self.seen = asyncio.Event()
        self.closed = False

    async def models(self) -> tuple[Model, ...]:
        self.asked += 1
        self.seen.set()
        if self.hangs is not None:
            await self.hangs.wait()
        models = []
        for answer in self.answers:
            if isinstance(answer, Failure):
                raise answer
            models.append(answer)
        return tuple(models)

    def is_cold(self, model: str) -> bool:
        return False

    async def warm(self, model: str) -> None:
        raise AssertionError

    def lists_all_models(self, capability: Capability) -> bool:
        return bool(self.answers)

    async def aclose(self) -> None:
        self.closed = True

    async def asked_again(self) -> None:
        self.seen.clear()
        async with asyncio.timeout(SOON_S):
            await self.seen.wait()

    def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        raise NotImplementedError

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        raise NotImplementedError


def integration(backend: Backend, id: str = "a", **spec: Any) -> Integration:  # noqa: A002
    return Integration(IntegrationSpec(id, "openai", **spec), backend)


@asynccontextmanager
async def probing(
    *items: Integration, on_change: Callable[[], None] = lambda: None, interval_s: float = LONG_S
) -> AsyncIterator[Registry]:
    registry = Registry(items, on_change)
    registry.start(interval_s)
    try:
        yield registry
    finally:
        await registry.aclose()


def test_what_was_never_asked_is_unknown() -> None:
    status = integration(Backend(LLAMA)).status
    assert status.state is IntegrationState.UNKNOWN
    assert (status.id, status.kind, status.endpoints) == ("a", "openai", ("backend.test:1",))
    assert (status.last_probe, status.latency_ms, status.default_model) == (0, 0, "")
    assert (status.capabilities, status.error, status.reason) == ((), "", None)


async def test_one_that_answers_is_up() -> None:
    item = integration(Backend(LLAMA, MINILM))
    assert await item.refresh(SOON_S) == item.models == (LLAMA, MINILM)
    status = item.status
    assert status.state is item.state is IntegrationState.UP
    assert status.last_probe > 0
    assert status.latency_ms > 0
    assert status.default_model == "llama"
    assert status.capabilities == ("chat", "embed", "generate", "vision")


async def test_one_that_fails_is_down_and_keeps_what_it_said_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Backend(LLAMA)
    item = integration(backend)
    await item.refresh(SOON_S)
    backend.answers = (REFUSED,)
    for _ in range(3):
        with pytest.raises(Failure) as caught:
            await item.refresh(SOON_S)
        assert caught.value is REFUSED
    assert item.state is IntegrationState.DOWN
    assert item.models == (LLAMA,)
    assert (item.status.error, item.status.reason) == (REFUSED.message, REFUSED.reason)
    assert "errno" not in item.status.error
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == ['integration "a": connection refused [errno 111]']  # once, and for the log only


async def test_one_that_recovers_is_up_and_its_error_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    backend = Backend(REFUSED)
    item = integration(backend)
    with pytest.raises(Failure):
        await item.refresh(SOON_S)
    backend.answers = (MINILM,)
    await item.refresh(SOON_S)
    assert item.status.state is IntegrationState.UP
    assert (item.status.error, item.status.reason) == ("", None)
    assert item.models == (MINILM,)
    assert 'integration "a" is up at backend.test:1: 1 models' in caplog.messages


async def test_one_that_does_not_answer_in_time_is_down() -> None:
    backend = Backend(LLAMA)
    backend.hangs = asyncio.Event()
    item = integration(backend)
    with pytest.raises(Failure) as caught:
        await item.refresh(0.01)
    assert caught.value.reason is Reason.BACKEND_UNAVAILABLE
    assert caught.value.message == ('integration "a": no answer within 0.01 s – is it overloaded?')
    assert item.status.error == caught.value.message
    assert item.status.latency_ms >= 10


async def test_being_cancelled_says_nothing_about_the_integration() -> None:
    backend = Backend(LLAMA)
    backend.hangs = asyncio.Event()
    item = integration(backend)
    task = asyncio.create_task(item.refresh(LONG_S))
    await backend.asked_again()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert item.state is IntegrationState.UNKNOWN


def both(*models: Model, **spec: str) -> tuple[str, str]:
    """The models for a chat and for an embedding that name none."""
    item = integration(Backend(), **spec)
    item.endpoints[0].models = models
    return item.model_for(CHAT), item.model_for(EMBED)


CHATS, EMBEDS = Model("x", capabilities=("chat",)), Model("y", capabilities=("embed",))


@pytest.mark.parametrize(
    ("models", "chat", "embed"),
    [
        ((), "", ""),
        ((LLAMA,), "llama", "llama"),  # its server does not say that it cannot
        ((LLAMA, MINILM), "llama", "all-minilm"),
        ((MINILM, LLAMA), "llama", "all-minilm"),
        ((MINILM,), "all-minilm", "all-minilm"),
        ((EMBEDS, CHATS), "x", "y"),
        ((CHATS,), "x", ""),
        ((EMBEDS,), "", "y"),
        ((Model("minilm-chat", capabilities=("chat",)), LLAMA), "llama", "llama"),
    ],
)
def test_the_default_model_is_the_first_that_fits(
    models: tuple[Model, ...], chat: str, embed: str
) -> None:
    assert both(*models) == (chat, embed)


def test_a_configured_default_wins_also_when_it_is_not_listed() -> None:
    assert both(LLAMA, MINILM, default_model="q") == ("q", "all-minilm")
    assert both(LLAMA, MINILM, default_embed_model="q") == ("llama", "q")
    assert both(default_model="q", default_embed_model="r") == ("q", "r")


@pytest.mark.parametrize(
    ("name", "embeds"),
    [
        ("nomic-embed-text:latest", True),
        ("mxbai-embed-large", True),
        ("text-embedding-3-small", True),
        ("All-MiniLM-L6-v2", True),
        ("BAAI/bge-m3", True),
        ("gte-small", True),
        ("intfloat/e5-base", True),
        ("llama3.2:latest", False),
        ("qwen2.5-coder", False),
        ("gemma", False),
    ],
)
def test_an_embedding_model_is_known_by_its_name(name: str, embeds: bool) -> None:
    assert looks_like_embedding(name) is embeds


def test_what_a_model_can_is_assumed_where_its_server_does_not_say() -> None:
    assert LLAMA.can(CHAT)
    assert LLAMA.can(EMBED)
    assert CHATS.can(CHAT)
    assert not CHATS.can(EMBED)


def registry_of(*ids: str) -> Registry:
    return Registry([integration(Backend(), name) for name in ids])


def test_a_registry_keeps_its_order_and_finds_by_id() -> None:
    registry = registry_of("zeta", "alpha")
    assert [item.spec.id for item in registry] == ["zeta", "alpha"]
    assert registry.get("alpha").spec.id == "alpha"


@pytest.mark.parametrize(
    ("ids", "asked", "says"),
    [
        (("llamafarm", "ollama"), "olama", 'there is no integration "olama"; known are ollama'),
        (("llamafarm", "ollama"), "xyz", "known are llamafarm, ollama"),
        (("a",), "A", "known are a"),
        ((), "a", "none is configured"),
        (("a",), "x" * 1000, f'"{"x" * 64}"'),
    ],
)
def test_an_unknown_id_is_not_found_and_the_nearest_are_listed(
    ids: tuple[str, ...], asked: str, says: str
) -> None:
    with pytest.raises(Failure) as caught:
        registry_of(*ids).get(asked)
    assert caught.value.reason is Reason.INTEGRATION_NOT_FOUND
    assert says in caught.value.message
    assert caught.value.message.startswith("integration_id: ")


async def test_one_that_fails_does_not_hide_the_others() -> None:
    up, down = integration(Backend(LLAMA)), integration(Backend(REFUSED), "b")
    registry = Registry([down, up])
    assert not registry.usable
    assert await registry.refresh([down, up]) == [REFUSED, None]
    assert registry.usable


async def test_all_are_asked_at_the_same_time() -> None:
    backends = [Backend(LLAMA), Backend(LLAMA)]
    for backend in backends:
        backend.hangs = asyncio.Event()
    registry = Registry([integration(b, str(i)) for i, b in enumerate(backends)])
    task = asyncio.create_task(registry.refresh([*registry]))
    async with asyncio.timeout(SOON_S):
        for backend in backends:
            await backend.seen.wait()  # both, while neither has answered
        for backend in backends:
            assert backend.hangs is not None
            backend.hangs.set()
        assert await task == [None, None]


async def test_a_probe_gives_up_on_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "PROBE_TIMEOUT_S", 0.01)
    backend = Backend()
    backend.hangs = asyncio.Event()
    item = integration(backend)
    (failure,) = await Registry([item]).refresh([item])
    assert failure is not None
    assert failure.reason is Reason.BACKEND_UNAVAILABLE


async def test_every_integration_is_probed_at_the_start_and_when_woken() -> None:
    first, second = Backend(LLAMA), Backend(REFUSED)
    changes: asyncio.Queue[None] = asyncio.Queue()
    items = integration(first), integration(second, "b")
    async with (
        probing(*items, on_change=lambda: changes.put_nowait(None)) as registry,
        asyncio.timeout(SOON_S),
    ):
        await changes.get()
        await changes.get()
        assert (items[0].state, items[1].state) == (IntegrationState.UP, IntegrationState.DOWN)
        second.answers = (LLAMA,)
        registry.wake("b")
        await changes.get()
        assert items[1].state is IntegrationState.UP
        assert (first.asked, second.asked) == (1, 2)  # the other was left in peace
        assert changes.empty()
    assert first.closed
    assert second.closed


async def test_a_wake_during_a_probe_is_not_lost() -> None:
    backend = Backend(LLAMA)
    backend.hangs = asyncio.Event()
    async with probing(integration(backend)) as registry:
        await backend.asked_again()
        registry.wake("a")
        backend.hangs.set()
        await backend.asked_again()
        assert backend.asked == 2


async def test_probes_go_on_by_themselves_also_after_a_failure() -> None:
    backend = Backend(REFUSED)
    async with probing(integration(backend), interval_s=0.001), asyncio.timeout(SOON_S):
        while backend.asked < 4:
            await backend.asked_again()


async def test_a_pause_between_two_probes_varies_and_is_never_longer_than_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds: list[tuple[float, float]] = []

    def longest(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", longest)
    backend = Backend(LLAMA)
    async with probing(integration(backend), interval_s=0.001):
        await backend.asked_again()
        await backend.asked_again()
    assert all(low < high <= 1 for low, high in bounds)
    assert bounds


async def test_closing_stops_a_probe_that_waits_for_its_answer() -> None:
    backend = Backend(LLAMA)
    backend.hangs = asyncio.Event()
    async with probing(integration(backend)):
        await backend.asked_again()
    assert backend.closed
    assert not any(task.get_name() == "probe a" for task in asyncio.all_tasks())
