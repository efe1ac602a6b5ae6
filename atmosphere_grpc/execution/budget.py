"""The time a call has: one budget that every stage draws on."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from atmosphere_grpc.errors import Failure, Phase

#: Kept back of a caller's deadline, so that the answer that names the phase still arrives in time:
#: a tenth of what remains, at most this, in seconds.
REPLY_RESERVE_S = 0.025


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a call may take in all, in seconds: without a deadline, and with any."""

    default_s: float = 600.0
    maximum_s: float = 3600.0

    def total_s(self, remaining_s: float | None) -> float:
        """What a call has, whose caller gave it `remaining_s` (None: no deadline)."""
        return self.default_s if remaining_s is None else min(remaining_s, self.maximum_s)


class Budget:
    """How long a call may still take.

    Args:
        remaining_s: The caller's deadline, in seconds from now; None for none.
        deadlines: What holds without one, and at most.
    """

    __slots__ = ("_started", "deadline", "given_s", "set_by")

    def __init__(self, remaining_s: float | None, deadlines: Deadlines) -> None:
        self._started = time.monotonic()
        self.given_s = max(0.0, deadlines.total_s(remaining_s))
        reserve_s = 0.0
        if remaining_s is None:
            self.set_by = "the server's default deadline"
        elif remaining_s > deadlines.maximum_s:
            self.set_by = "the server's maximum deadline"
        else:
            self.set_by = "the caller's deadline"
            reserve_s = min(REPLY_RESERVE_S, self.given_s / 10)
        #: When the time is used up, by `time.monotonic()`.
        self.deadline = self._started + self.given_s - reserve_s

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative when the time is used up."""
        return self.deadline - time.monotonic()

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the call arrived."""
        return (time.monotonic() - self._started) * 1000

    def within(
        self, phase: Phase, limit_s: float, what: str, *, share: float = 1.0, keep_s: float = 0.0
    ) -> PhaseLimit:
        """Bounds a wait by a phase's own limit and by what is left of the whole.

        Args:
            phase: What is waited for.
            limit_s: The phase's own limit, in seconds.
            what: The same in words, such as `the first token of "ollama"`.
            share: How much of what is left it may take, so that another backend can be asked.
            keep_s: How much of that must be left for what follows, in seconds.
        """
        return PhaseLimit(self, phase, limit_s, what, share, keep_s)

    def watch(self, phase: Phase, limit_s: float, what: str) -> Watch:
        """Bounds a wait that comes again and again, each time anew; as `within`."""
        return Watch(self, phase, limit_s, what)


class PhaseLimit:
    """A bounded wait: `async with` it; raises a `Failure` that names the phase.

    Where that cannot be, since something is to be done while it waits: `left_s` and `failure`.
    """

    __slots__ = ("_budget", "_end", "_given_s", "_limit", "_phase", "_timeout", "_what")

    def __init__(
        self, budget: Budget, phase: Phase, limit_s: float, what: str, share: float, keep_s: float
    ) -> None:
        self._budget = budget
        self._phase = phase
        self._what = what
        left_s = budget.remaining_s * share - keep_s
        self._given_s = min(limit_s, left_s)
        self._end = time.monotonic() + self._given_s
        if limit_s < left_s:
            self._limit = "integration"
        else:
            self._limit = "call" if share == 1.0 else "attempt"

    @property
    def left_s(self) -> float:
        """Seconds that the wait may still take; negative when it took too long."""
        return self._end - time.monotonic()

    async def __aenter__(self) -> Self:
        self._timeout = asyncio.timeout(self.left_s)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise self.failure() from None

    def failure(self) -> Failure:
        """What a wait that took too long is told as; `metadata.limit` says whose limit it was."""
        return _too_late(self._budget, self._phase, self._limit, self._given_s, self._what)


class Watch:
    """A wait that comes again and again, such as that for the next token.

    Its one timer looks, when it is due, whether it still is: a timer for each token took a tenth of
    what a token cost. `close` it at the end.
    """

    __slots__ = (
        *("_armed", "_at", "_budget", "_cancelling", "_end", "_expired", "_limit_s", "_own"),
        *("_phase", "_task", "_timer", "_what"),
    )

    def __init__(self, budget: Budget, phase: Phase, limit_s: float, what: str) -> None:
        self._budget = budget
        self._phase = phase
        self._limit_s = limit_s
        self._what = what
        self._end = self._at = math.inf
        self._armed = self._expired = self._own = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def later(self, grace_s: float) -> Self:
        """`with` it, a wait: it may take so much longer than the limit.

        Raises:
            Failure: The wait took too long.
        """
        own = time.monotonic() + self._limit_s + grace_s
        self._own = own < self._budget.deadline
        self._end = own if self._own else self._budget.deadline
        return self

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._armed = True
        if self._end < self._at:
            self._set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._armed = False
        if not self._expired or self._task is None:
            return
        self._expired = False
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            limit, given_s = ("integration", self._limit_s) if self._own else ("call", 0.0)
            raise _too_late(self._budget, self._phase, limit, given_s, self._what) from None

    def close(self) -> None:
        """Ends it."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        self.close()
        self._at = self._end
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._end - time.monotonic()), self._look)

    def _look(self) -> None:
        self._timer, self._at = None, math.inf
        if not self._armed or self._task is None:
            return  # the next wait sets it
        if time.monotonic() < self._end:
            self._set()
            return
        self._expired = True
        self._task.cancel()


def _too_late(budget: Budget, phase: Phase, limit: str, given_s: float, what: str) -> Failure:
    if limit != "call":
        whose = "its limit of" if limit == "integration" else "its share of the time,"
        return Failure.out_of_time(
            phase, f"no sign of {what} within {whose} {given_s:.3g} s", limit=limit
        )
    # Between two tokens of a live stream it is the whole that ran out, not the wait.
    phase = Phase.TOTAL if phase is Phase.IDLE else phase
    return Failure.out_of_time(
        phase,
        f"{budget.set_by} of {budget.given_s:.3g} s was used up while waiting for {what}",
        limit="call",
    )
