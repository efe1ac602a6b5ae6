"""Reading intents: by their meaning where an embedder answers, else by their letters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atmosphere_grpc.domain import RouteMethod
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.routing import reader as module
from atmosphere_grpc.routing import requests
from atmosphere_grpc.routing.lexical import Lexical
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


async def idle(embedder: Embedder) -> None:
    """Waits until nothing is asked of an embedder."""
    for _ in range(100):
        if not embedder.running:
            return
        await asyncio.sleep(0)
    raise AssertionError("something is still asked")


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
    await reader.keep_prepared(5)  # which ends: there is nothing more to prepare
    assert reader.tried.is_set()
    reading = await reader.read("Please write a Python function", 1)
    assert (reading.method, reading.note) == (LEXICAL, "")
    assert (reading.ranking.best, reading.ranking.sure) == ("code", True)


@pytest.mark.parametrize("embedder", [None, Embedder()])
async def test_before_anything_is_learned_no_route_is_sure(embedder: Embedder | None) -> None:
    reader = reader_of(embedder)
    reading = await reader.read("Please write a Python function", 1, ("cook",))
    assert (reading.method, reading.note) == (LEXICAL, "the routes are still being read")
    assert (reading.ranking.best, reading.ranking.sure) == ("cook", False)


async def test_letters_are_learned_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    on: list[str] = []

    class Learning(Lexical):
        def __init__(self, *given: Any) -> None:
            on.append(threading.current_thread().name)
            super().__init__(*given)

    monkeypatch.setattr(module, "Lexical", Learning)
    await reader_of(None).keep_prepared(5)
    assert on != [threading.main_thread().name]


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


async def test_an_embedder_has_its_own_time_and_an_intent_what_the_call_leaves() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder, timeout_s=3)):
        embedder.stall = asyncio.Event()
        reading = await reader.read("Fix this bug", 0.01)
        assert embedder.within[-1] == 3
        assert (reading.method, reading.ranking.best) == (LEXICAL, "code")
        assert reading.note == ("the embedder gave no vector within its share of the call, 0.01 s")


async def test_a_vector_that_comes_too_late_is_there_for_the_next_call() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        stall = embedder.stall = asyncio.Event()
        assert (await reader.read("Fix this bug", 0.01)).method is LEXICAL
        embedder.stall = None
        stall.set()
        await idle(embedder)
        asked = len(embedder.asked)
        assert (await reader.read("Fix this bug", 0)).method is SEMANTIC
        assert len(embedder.asked) == asked


async def test_what_ran_out_of_time_names_the_setting() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.down = Failure.out_of_time(Phase.FIRST_TOKEN, "1 s was used up", limit="call")
        reading = await reader.read("Bake a cake", 9)
        assert reading.note == "routing.embedder.timeout: 1 s was used up"


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
    await (reader := reader_of(None)).keep_prepared(5)
    reading = await reader.read("Please fix this bug", 1, ("cook",))
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
        await idle(embedder)


async def test_a_cancelled_call_takes_nothing_from_others() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        stall = embedder.stall = asyncio.Event()
        calls = [asyncio.create_task(reader.read("Fix this bug", 9)) for _ in range(2)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        await asyncio.sleep(0.01)
        assert embedder.running == 1
        stall.set()
        assert (await calls[1]).method is SEMANTIC


async def test_an_intent_of_a_request_that_was_left_is_asked_for_anew() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.stall = asyncio.Event()
        call = asyncio.create_task(reader.read("Fix this bug", 9))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0)
        embedder.stall = None
        assert (await reader.read("Fix this bug", 9)).method is SEMANTIC


async def test_what_nobody_waits_for_ends_with_the_reader() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        embedder.stall = asyncio.Event()
        assert (await reader.read("Fix this bug", 0.01)).method is LEXICAL
        assert embedder.running == 1
    await idle(embedder)


# --- many at once -----------------------------------------------------------------------------


async def test_intents_that_come_while_the_embedder_is_busy_are_asked_for_together() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        before = len(embedder.asked)
        stall = embedder.stall = asyncio.Event()
        texts = [f"Fix the bug of number {number}" for number in range(12)]
        calls = [asyncio.create_task(reader.read(text, 9)) for text in (*texts, *texts)]
        await asyncio.sleep(0.01)
        assert embedder.asked[before:] == [[texts[0]], [texts[1]]]
        embedder.stall = None
        stall.set()
        readings = await asyncio.gather(*calls)
        assert {item.method for item in readings} == {SEMANTIC}
        assert embedder.asked[before + 2 :] == [texts[2:]]


async def test_a_request_holds_as_many_texts_as_the_embedder_manages() -> None:
    class Slow(Embedder):
        slow = False

        async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
            if self.slow and len(texts) > 4:
                self.asked.append([*texts])
                raise Failure(Reason.DEADLINE_EXCEEDED, "too many")
            return await super().embed(texts, within_s)

    embedder = Slow()
    async with prepared(reader := reader_of(embedder)):
        before = len(embedder.asked)
        await asyncio.gather(*(reader.read(f"one {number}", 9) for number in range(400)))
        assert max(map(len, embedder.asked[before:])) == module.TEXTS
        embedder.slow = True
        for turn in range(3):
            await asyncio.gather(*(reader.read(f"{turn} {number}", 9) for number in range(12)))
        assert {len(texts) for texts in embedder.asked[-2:]} <= {1, 2, 3, 4, 5, 6}


async def test_vectors_that_are_too_few_are_told() -> None:
    class Few(Embedder):
        async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Sequence[float]]:
            made = await super().embed(texts, within_s)
            return made[1:] if "odd" in texts else made

    async with prepared(reader := reader_of(Few())):
        assert (await reader.read("odd", 1)).note == "the embedder gives 0 vectors for 1 texts"


# --- one that hangs ---------------------------------------------------------------------------


async def test_an_embedder_that_hangs_is_left_alone_until_one_intent_finds_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        before = len(embedder.asked)
        embedder.down = Failure(Reason.DEADLINE_EXCEEDED, "slow")
        notes = [(await reader.read(f"Fix bug {number}", 1)).note for number in range(5)]
        assert len(embedder.asked) == before + 3
        assert notes[:3] == ["slow"] * 3
        assert "ran out of time 3 times in a row (routing.embedder.timeout)" in notes[4]
        now += module.GIVEN_UP_S
        assert (await reader.read("Fix it", 1)).note == "slow"
        assert "4 times in a row" in (await reader.read("Fix that", 1)).note
        now += module.GIVEN_UP_S
        embedder.down = None
        for text in ("Fix it", "Fix that"):
            assert (await reader.read(text, 1)).method is SEMANTIC


async def test_those_that_wait_behind_a_request_that_hangs_are_told_too() -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        for number in range(2):
            embedder.down = Failure(Reason.DEADLINE_EXCEEDED, "slow")
            await reader.read(f"before {number}", 1)
        stall = embedder.stall = asyncio.Event()
        calls = [asyncio.create_task(reader.read(f"now {number}", 9)) for number in range(4)]
        await asyncio.sleep(0.01)
        asked = len(embedder.asked)
        stall.set()
        notes = [reading.note for reading in await asyncio.gather(*calls)]
        assert notes[:2] == ["slow", "slow"]
        assert all("in a row" in note for note in notes[2:])
        assert len(embedder.asked) == asked


# --- another model ----------------------------------------------------------------------------


async def test_a_model_that_changes_under_its_name_is_noticed_while_it_is_used(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)

    class Changing(Embedder):
        sign = 1.0

        def vector(self, text: str) -> list[float]:
            return [self.sign * value for value in super().vector(text)]

    embedder = Changing()
    async with prepared(reader := reader_of(embedder)):
        await log.line(READ)
        embedder.down = DOWN  # tells nothing of which model it is
        await asyncio.sleep(0.05)
        embedder.down = None
        assert (await reader.read("Fix the bug", 1)).method is SEMANTIC
        embedder.sign = -1.0
        await log.line("gives other vectors than before")
        await log.line(READ)
        assert (await reader.read("Fix the bug", 1)).ranking.best == "code"


async def test_a_model_that_changes_again_and_again_is_read_less_and_less_often(
    pauses: Pauses, log: Log
) -> None:
    embedder = Embedder()
    async with prepared(reader := reader_of(embedder)):
        for turn, pause_s in enumerate([0, 5, 10]):
            await log.line(READ)
            embedder.size = 20 + turn
            await reader.read(f"Fix {turn}", 1)
            if pause_s:
                assert await pauses.asked.get() == pause_s
                note = (await reader.read("Fix", 1)).note
                assert note == f"the vectors changed again; the routes are read in {pause_s} s"
                pauses.end()
    assert module.longer(300, 5) == module.longer(200, 5) == 300


async def test_vectors_that_are_wrong_are_asked_for_less_and_less_often(pauses: Pauses) -> None:
    embedder = Embedder()
    embedder.down = Failure(Reason.BACKEND_CONTRACT, "nonsense")
    async with prepared(reader_of(embedder)):
        for pause_s in (5, 10, 20):
            assert await pauses.asked.get() == pause_s
            pauses.end()


async def test_a_server_that_stops_leaves_nothing_running() -> None:
    embedder = Embedder()
    embedder.stall = asyncio.Event()
    preparing = asyncio.create_task(reader_of(embedder).keep_prepared(5))
    await embedder.waiting.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert embedder.running == 0
