"""Reading intents: by their meaning where an embedder answers, else by their letters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atmosphere_grpc.domain import RouteMethod
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing import reader as module
from atmosphere_grpc.routing import requests
from atmosphere_grpc.routing.reader import REMEMBERED, Reader

SEMANTIC, LEXICAL = RouteMethod.SEMANTIC, RouteMethod.LEXICAL
ROUTES = {
    "code": ["Write a Python function", "Fix this bug", "Review my class", "Compile the kernel"],
    "cook": ["A recipe for soup", "Bake a cake", "How long to boil eggs?", "Grill the fish"],
}
#: What stands for meaning here: each word has a place in it.
MEANINGS = {
    "code": ("python", "bug", "class", "kernel", "function", "programme"),
    "cook": ("recipe", "cake", "eggs", "fish", "soup", "dinner"),
}
BACKGROUND = tuple(f"Background request of number {i}" for i in range(60))
DOWN = Failure(Reason.BACKEND_UNAVAILABLE, 'integration "a": refused – is it running?')


class Embedder:
    """Knows a few words; does not answer as long as it is told so, or at all."""

    def __init__(self, size: int = 12) -> None:
        self.size = size
        self.down: Failure | None = None
        self.stall: asyncio.Event | None = None
        self.asked: list[list[str]] = []
        self.within: list[float] = []
        self.waiting = asyncio.Event()
        self.running = 0

    def identity(self) -> str:
        return f"openai a {self.size}"

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
        self.asked.append([*texts])
        self.within.append(within_s)
        self.running += 1
        try:
            if self.stall is not None:
                self.waiting.set()
                await self.stall.wait()
            if self.down is not None:
                raise self.down
            return [self.vector(text) for text in texts]
        finally:
            self.running -= 1

    def vector(self, text: str) -> list[float]:
        made = np.random.default_rng([*text.encode()]).normal(scale=0.1, size=self.size)
        for number, words in enumerate(MEANINGS.values()):
            made[number] += any(word in text.lower() for word in words)
        made[2] += text in BACKGROUND
        return [float(value) for value in made]


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to learn from, so that a test takes no time."""
    monkeypatch.setattr(requests, "background", lambda: BACKGROUND)
    monkeypatch.setattr(requests, "groups", lambda: ())


class Log(logging.Handler):
    """The lines that the reader logs, as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put_nowait(record.getMessage())

    async def line(self, part: str) -> None:
        """Waits for the next line that holds a part."""
        async with asyncio.timeout(30):
            while part not in await self._lines.get():
                pass


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    caplog.set_level(logging.INFO)
    made = Log()
    module.log.addHandler(made)
    yield made
    module.log.removeHandler(made)


READ = "routes are told by"


class Pauses:
    """What stands for waiting between two tries: each lasts until the test ends it."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self._ended: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        self.asked.put_nowait(seconds)
        await self._ended.get()

    def end(self) -> None:
        self._ended.put_nowait(None)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    made = Pauses()

    class Clock:
        """`asyncio` as the reader sees it."""

        sleep = made.sleep

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

    monkeypatch.setattr(module, "asyncio", Clock())
    return made


def reader_of(embedder: Embedder | None, **fields: Any) -> Reader:
    return Reader(ROUTES, 0.05, embedder, **fields)


@contextlib.asynccontextmanager
async def prepared(reader: Reader) -> AsyncIterator[asyncio.Task[None]]:
    """A reader that has tried to have the routes read, and goes on to."""
    task = asyncio.create_task(reader.keep_prepared(5))
    try:
        await reader.tried.wait()
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- by letters -------------------------------------------------------------------------------


async def test_without_an_embedder_letters_are_gone_by() -> None:
    reader = reader_of(None)
    assert reader.tried.is_set()
    await reader.keep_prepared(5)  # there is nothing to prepare
    reading = await reader.read("Please write a Python function", 1)
    assert (reading.method, reading.note) == (LEXICAL, "")
    assert (reading.ranking.best, reading.ranking.sure) == ("code", True)


async def test_before_the_routes_are_read_letters_are_gone_by_and_nobody_waits() -> None:
    embedder = Embedder()
    embedder.stall = asyncio.Event()
    reader = reader_of(embedder)
    preparing = asyncio.create_task(reader.keep_prepared(5))
    await embedder.waiting.wait()
    reading = await reader.read("Please write a Python function", 1)
    assert (reading.method, reading.note) == (LEXICAL, "the routes are still being read")
    assert reading.ranking.best == "code"
    assert not reader.tried.is_set()
    embedder.stall.set()
    await reader.tried.wait()
    assert (await reader.read("Please write a Python function", 1)).method is SEMANTIC
    preparing.cancel()


# --- by meaning -------------------------------------------------------------------------------


async def test_once_they_are_read_meaning_decides(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with prepared(reader := reader_of(Embedder())):
        reading = await reader.read("something for dinner", 1)
        assert (reading.method, reading.note) == (SEMANTIC, "")
        assert (reading.ranking.best, reading.ranking.sure) == ("cook", True)
        assert not (await reader.read(BACKGROUND[7], 1)).ranking.sure
    assert "2 routes are told by openai a 12" in caplog.text


async def test_an_embedder_that_fails_is_told_and_letters_are_gone_by() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.down = DOWN
        reading = await reader.read("Please fix this bug", 1)
        assert (reading.method, reading.note) == (LEXICAL, DOWN.message)
        assert reading.ranking.best == "code"
        embedder.down = None
        assert (await reader.read("Please fix this bug", 1)).method is SEMANTIC


@pytest.mark.parametrize(("timeout_s", "within_s"), [(0.5, 3.0), (3.0, 0.5)])
async def test_an_intent_has_the_time_of_the_embedder_or_what_the_call_leaves(
    timeout_s: float, within_s: float
) -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder, timeout_s=timeout_s)):
        await reader.read("Fix it", within_s)
        assert embedder.within[-1] == 0.5


async def test_an_embedder_that_is_too_slow_is_told_with_how_long_it_had() -> None:
    """How long it may take is the embedder's own to watch over, who fails then."""
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        slow = "no sign of the vectors within 1 s"
        embedder.down = Failure(Reason.DEADLINE_EXCEEDED, slow)
        reading = await reader.read("Bake a cake", 9)
        assert (reading.method, reading.note) == (LEXICAL, slow)


# --- again ------------------------------------------------------------------------------------


async def test_what_failed_is_tried_again_after_a_pause_and_told_once(
    pauses: Pauses, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder()
    embedder.down = DOWN
    async with prepared(reader := reader_of(embedder)):
        for turn in range(3):
            assert await pauses.asked.get() == 5
            assert len(embedder.asked) == turn + 1
            reading = await reader.read("Fix this bug", 1)
            assert (reading.method, reading.note) == (LEXICAL, DOWN.message)
            pauses.end()
        await pauses.asked.get()
        told = [line for line in caplog.messages if "gone by their letters" in line]
        assert told == [f"intents are gone by their letters: {DOWN.message}"]
        embedder.down = Failure(Reason.BACKEND_CONTRACT, "nonsense")  # another reason is news
        pauses.end()
        await pauses.asked.get()
        assert "nonsense" in caplog.messages[-1]
        embedder.down = None
        pauses.end()
        await log.line(READ)
        assert (await reader.read("Fix this bug", 1)).method is SEMANTIC


async def test_vectors_of_another_length_have_the_routes_read_anew(log: Log) -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        await log.line(READ)
        assert (await reader.read("Fix the bug", 1)).method is SEMANTIC
        embedder.size = 9
        reading = await reader.read("Fix the other bug", 1)
        assert reading.method is LEXICAL
        assert reading.note == "the embedder gives 9 dimensions, not 12 as before"
        await log.line(READ)
        before = len(embedder.asked)
        await reader.read("Fix the bug", 1)  # what was remembered was of the other model
        assert len(embedder.asked) == before + 1


# --- what is remembered -----------------------------------------------------------------------


async def test_an_intent_is_read_once() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        first = await reader.read("Fix this bug", 1)
        asked = len(embedder.asked)
        embedder.down = DOWN
        assert await reader.read("Fix this bug", 1) == first
        assert len(embedder.asked) == asked


async def test_an_intent_is_read_anew_among_other_routes() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        before = len(embedder.asked)
        among: list[tuple[str, ...] | None] = [None, ("code", "cook"), ("cook",), ("cook",)]
        readings = [await reader.read("Fix this bug", 1, names) for names in among]
        assert [item.ranking.best for item in readings] == ["code", "code", "cook", "cook"]
        assert [item.ranking.sure for item in readings] == [True, True, False, False]
        assert len(embedder.asked) == before + 2


async def test_letters_too_are_compared_with_some_routes_only() -> None:
    reading = await reader_of(None).read("Please fix this bug", 1, ("cook",))
    assert [name for name, _ in reading.ranking.scores] == ["cook"]


async def test_two_intents_that_begin_alike_are_two() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        start = "x" * 100
        one = await reader.read(f"{start} bug", 1)
        other = await reader.read(f"{start} cake", 1)
        assert (one.ranking.best, other.ranking.best) == ("code", "cook")
        assert embedder.asked[-2:] == [[f"{start} bug"], [f"{start} cake"]]


async def test_what_was_gone_by_letters_is_not_remembered() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.down = DOWN
        assert (await reader.read("Fix this bug", 1)).method is LEXICAL
        embedder.down = None
        assert (await reader.read("Fix this bug", 1)).method is SEMANTIC


async def test_what_was_not_asked_for_the_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 1000 <= REMEMBERED <= 100_000
    monkeypatch.setattr(module, "REMEMBERED", 2)
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        before = len(embedder.asked)
        for text in ("one", "two", "one", "three", "one", "two"):
            await reader.read(text, 1)
        assert embedder.asked[before:] == [["one"], ["two"], ["three"], ["two"]]


async def test_an_intent_that_is_read_by_routes_that_are_no_more_is_not_remembered(
    log: Log,
) -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        await log.line(READ)
        old = embedder.stall = asyncio.Event()
        embedder.waiting.clear()
        late = asyncio.create_task(reader.read("Fix this bug", 1))
        await embedder.waiting.wait()
        embedder.stall = None
        embedder.size = 9
        assert (await reader.read("Another", 1)).method is LEXICAL  # the routes are read anew
        await log.line(READ)
        embedder.size = 12
        old.set()
        assert (await late).method is SEMANTIC  # by the routes that it began with
        embedder.size = 9
        before = len(embedder.asked)
        await reader.read("Fix this bug", 1)
        assert len(embedder.asked) == before + 1


# --- the vectors of the routes ----------------------------------------------------------------


async def test_what_was_read_is_kept_for_the_next_start(tmp_path: Path) -> None:
    async with prepared(reader_of(Embedder(), store=tmp_path)):
        pass
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder, store=tmp_path)):
        assert len(embedder.asked) == 1  # whether it is the same model still
        assert (await reader.read("something for dinner", 1)).ranking.best == "cook"


# --- cancellation -----------------------------------------------------------------------------


async def test_a_cancelled_call_leaves_nothing_running() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.stall = asyncio.Event()
        embedder.waiting.clear()
        call = asyncio.create_task(reader.read("Fix this bug", 1))
        await embedder.waiting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert embedder.running == 0


async def test_a_server_that_stops_leaves_nothing_running() -> None:
    embedder = Embedder()
    embedder.stall = asyncio.Event()
    preparing = asyncio.create_task(reader_of(embedder).keep_prepared(5))
    await embedder.waiting.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert embedder.running == 0
