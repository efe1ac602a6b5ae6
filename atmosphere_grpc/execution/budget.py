"""The time a call has: one budget that every stage draws on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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
        if self._limit != "call":
            whose = "its limit of" if self._limit == "integration" else "its share of the time,"
            return Failure.out_of_time(
                self._phase,
                f"no sign of {self._what} within {whose} {self._given_s:.3g} s",
                limit=self._limit,
            )
        # Between two tokens of a live stream it is the whole that ran out, not the wait.
        phase = Phase.TOTAL if self._phase is Phase.IDLE else self._phase
        return Failure.out_of_time(
            phase,
            f"{self._budget.set_by} of {self._budget.given_s:.3g} s was used up while waiting for "
            f"{self._what}",
            limit="call",
        )
