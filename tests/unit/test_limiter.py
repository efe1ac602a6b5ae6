"""How many calls run at a time, who waits, and whose turn it is next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations import limiter as limiters
from atmosphere_grpc.integrations.limiter import Limiter, Turn


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(limiters, "time", made)
    return made


#: What gives turns back, held on to: one that is collected would do so.
held: list[ExitStack] = []


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    held.clear()


def taken(limiter: Limiter, caller: str = "") -> tuple[Turn, ExitStack]:
    """A turn, and what gives it back."""
    stack = ExitStack()
    held.append(stack)
    return stack.enter_context(limiter.turn(caller)), stack


async def test_calls_run_at_once_until_there_are_as_many_as_may() -> None:
    limiter = Limiter("x", max_concurrency=2, max_queue=2)
    (one, end_one), (two, _), (three, _) = (taken(limiter) for _ in range(3))
    assert [turn.granted.done() for turn in (one, two, three)] == [True, True, False]
    assert (limiter.active, limiter.waiting) == (2, 1)
    end_one.close()
    assert three.granted.done()
    assert (limiter.active, limiter.waiting) == (2, 0)


async def test_one_more_than_may_wait_is_refused() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=1)
    taken(limiter), taken(limiter)
    with pytest.raises(Failure) as caught:
        taken(limiter)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert "of its calls 1 run and 1 wait" in caught.value.message
    assert caught.value.retry_after_s is None  # nothing is known of how long a call takes


async def test_without_a_queue_nobody_waits() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=0)
    taken(limiter)
    with pytest.raises(Failure):
        taken(limiter)


async def test_who_is_refused_is_told_when_there_should_be_room(clock: Clock) -> None:
    limiter = Limiter("x", max_concurrency=2, max_queue=0)
    for seconds in (4.0, 4.0):
        with limiter.turn() as turn:
            clock.now += seconds
            turn.done()
    taken(limiter), taken(limiter)
    with pytest.raises(Failure) as caught:
        taken(limiter)
    assert caught.value.retry_after_s == pytest.approx(2.0)  # one of two ends every 2 s


async def test_callers_have_their_turns_by_turns() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=10)
    _, end = taken(limiter)
    order = ["a", "a", "a", "b", "c", "b"]
    queued = [(caller, *taken(limiter, caller)) for caller in order]
    assert [limiter.ahead(turn) for _, turn, _ in queued] == [0, 3, 5, 1, 2, 4]
    served = []
    end.close()
    while queued:
        caller, turn, stop = next(item for item in queued if item[1].granted.done())
        served.append(caller)
        queued.remove((caller, turn, stop))
        stop.close()
    assert served == ["a", "b", "c", "a", "b", "a"]
    assert (limiter.active, limiter.waiting) == (0, 0)


async def test_a_turn_is_given_back_however_its_call_ends() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=1)
    with pytest.raises(ValueError, match="broken"), limiter.turn():
        raise ValueError("broken")
    _, end = taken(limiter)
    _, gives_up = taken(limiter)
    gives_up.close()
    assert (limiter.active, limiter.waiting) == (1, 0)
    end.close()
    await asyncio.wait_for(limiter.idle(), 1)


async def test_the_least_wait_is_by_the_fastest_call_seen_lately(clock: Clock) -> None:
    limiter = Limiter("x", max_concurrency=2, max_queue=9)
    assert limiter.fastest_s == 0
    for seconds in (3.0, 1.0, 2.0):
        with limiter.turn() as turn:
            clock.now += seconds
            turn.done()
    with limiter.turn():  # one that failed says nothing of how long a call takes
        clock.now += 0.1
    assert limiter.fastest_s == pytest.approx(1.0)
    turns = [taken(limiter)[0] for _ in range(7)]
    assert [limiter.least_wait_s(turn) for turn in turns] == pytest.approx([0, 0, 0, 0, 1, 1, 2])


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 6))
async def test_no_turn_is_ever_lost_or_given_twice(seed: int, most: int, queue: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrecy
    limiter = Limiter("x", most, queue)
    live: list[tuple[Turn, ExitStack]] = []
    for _ in range(60):
        if live and chance.random() < 0.5:
            live.pop(chance.randrange(len(live)))[1].close()
        else:
            try:
                live.append(taken(limiter, chance.choice("abc")))
            except Failure:
                assert limiter.waiting == queue
                assert limiter.active == most
        granted = sum(turn.granted.done() for turn, _ in live)
        assert limiter.active == granted == min(most, len(live))
        assert limiter.waiting == len(live) - granted
        places = sorted(limiter.ahead(turn) for turn, _ in live if not turn.granted.done())
        assert places == list(range(limiter.waiting))
    for _, stop in live:
        stop.close()
    assert (limiter.active, limiter.waiting) == (0, 0)
    await asyncio.wait_for(limiter.idle(), 1)
