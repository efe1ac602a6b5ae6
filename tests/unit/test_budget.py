"""The time a call has, and which phase is told when it is used up."""

from __future__ import annotations

import asyncio

import pytest

from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.budget import REPLY_RESERVE_S, Budget, Deadlines

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
