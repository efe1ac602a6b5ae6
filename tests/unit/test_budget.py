"""The time a call has, and which phase is told when it is used up."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.budget import REPLY_RESERVE_S, Budget, Deadlines, Watch

DEADLINES = Deadlines(default_s=100.0, maximum_s=1000.0)


@pytest.mark.parametrize(
    ("remaining_s", "given_s", "set_by"),
    [
        (None, 100, "the server's default deadline"),
        (50.0, 50, "the caller's deadline"),
        (5000.0, 1000, "the server's maximum deadline"),
        (-1.0, 0, "the caller's deadline"),
    ],
)
def test_a_call_has_what_its_caller_or_the_server_gives(
    remaining_s: float | None, given_s: float, set_by: str
) -> None:
    budget = Budget(remaining_s, DEADLINES)
    assert (budget.given_s, budget.set_by) == (given_s, set_by)


def test_a_part_of_the_callers_deadline_is_kept_for_the_answer() -> None:
    assert 50 - REPLY_RESERVE_S - 1 < Budget(50.0, DEADLINES).remaining_s <= 50 - REPLY_RESERVE_S
    assert Budget(0.1, DEADLINES).remaining_s <= 0.1 * 0.9
    assert Budget(None, DEADLINES).remaining_s > 100 - REPLY_RESERVE_S


async def failure_of(budget: Budget, phase: Phase, limit_s: float) -> Failure:
    with pytest.raises(Failure) as caught:
        async with budget.within(phase, limit_s, "a sign"):
            await asyncio.Event().wait()
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    return caught.value


@pytest.mark.parametrize("phase", Phase)
async def test_a_phases_own_limit_is_told_as_that_phase(phase: Phase) -> None:
    failure = await failure_of(Budget(None, DEADLINES), phase, 0.01)
    assert failure.metadata["phase"] == phase.value
    assert "a sign within its limit of 0.01 s" in failure.message


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        (Phase.CONNECT, Phase.CONNECT),
        (Phase.FIRST_TOKEN, Phase.FIRST_TOKEN),
        (Phase.IDLE, Phase.TOTAL),
    ],
)
async def test_the_whole_is_told_as_what_was_waited_for(phase: Phase, told: Phase) -> None:
    failure = await failure_of(Budget(0.02, DEADLINES), phase, 10)
    assert failure.metadata["phase"] == told.value
    assert failure.message.startswith("the caller's deadline of 0.02 s was used up")


async def test_a_budget_that_is_used_up_does_not_wait() -> None:
    async with asyncio.timeout(5):
        await failure_of(Budget(0.0, DEADLINES), Phase.FIRST_TOKEN, 10)


async def test_a_wait_that_ends_in_time_is_let_through() -> None:
    async with Budget(10.0, DEADLINES).within(Phase.IDLE, 10, "a sign"):
        await asyncio.sleep(0)


async def test_what_fails_inside_goes_through_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Budget(10.0, DEADLINES).within(Phase.IDLE, 10, "a sign"):
            raise ZeroDivisionError


async def test_a_cancelled_wait_is_no_failure() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        async with Budget(10.0, DEADLINES).within(Phase.IDLE, 10, "a sign"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def waits(watch: Watch, *waits_s: float, grace_s: float = 0.0) -> Failure | None:
    """What became of waits, one after the other."""
    try:
        with closing(watch):
            for wait_s in waits_s:
                with watch.later(grace_s):
                    await asyncio.sleep(wait_s)
    except Failure as failure:
        return failure
    return None


async def test_a_watch_bounds_each_wait_and_not_their_sum() -> None:
    watch = Budget(None, Deadlines()).watch(Phase.IDLE, 0.05, "the next token")
    assert await waits(watch, *[0.02] * 6) is None


async def test_a_watch_tells_the_wait_that_took_too_long() -> None:
    watch = Budget(None, Deadlines()).watch(Phase.IDLE, 0.05, "the next token")
    failure = await waits(watch, 0.02, 0.02, 5.0)
    assert failure is not None
    assert failure.message == "no sign of the next token within its limit of 0.05 s"
    assert (failure.metadata["phase"], failure.metadata["limit"]) == ("IDLE", "integration")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_watch_gives_grace_for_what_is_held_back() -> None:
    watch = Budget(None, Deadlines()).watch(Phase.IDLE, 0.02, "the next token")
    assert await waits(watch, 0.04, grace_s=0.2) is None


async def test_a_watch_ends_with_the_calls_time() -> None:
    watch = Budget(0.1, Deadlines()).watch(Phase.IDLE, 30.0, "the next token")
    failure = await waits(watch, 0.02, 5.0)
    assert failure is not None
    assert (failure.metadata["phase"], failure.metadata["limit"]) == ("TOTAL", "call")


async def test_a_watch_leaves_what_is_between_the_waits_alone() -> None:
    watch = Budget(None, Deadlines()).watch(Phase.IDLE, 0.02, "the next token")
    with closing(watch):
        for _ in range(2):
            with watch.later(0.0):
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)


async def test_a_wait_that_is_cancelled_is_no_failure_of_its_watch() -> None:
    watch = Budget(None, Deadlines()).watch(Phase.IDLE, 5.0, "the next token")
    task = asyncio.create_task(waits(watch, 5.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
