"""Keeps calls from an endpoint that fails again and again, and tries it anew from time to time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """After how many failures in a row an endpoint is left alone, and for how many seconds."""

    failures: int = 5
    cooldown_s: float = 10.0


class BreakerState(Enum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Of one endpoint. Open, it lets nothing through; after the cooldown, one call at a time.

    It only says what it would do: an endpoint without an alternative is asked all the same.
    """

    __slots__ = ("_failures", "_opened", "_settings", "_trying")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened: float | None = None
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """Whether calls go through now."""
        if self._opened is None:
            return BreakerState.CLOSED
        cooled = time.monotonic() - self._opened >= self._settings.cooldown_s
        return BreakerState.HALF_OPEN if cooled else BreakerState.OPEN

    @property
    def allows(self) -> bool:
        """Whether a call may go through."""
        state = self.state
        return state is BreakerState.CLOSED or (
            state is BreakerState.HALF_OPEN and not self._trying
        )

    def begin(self) -> None:
        """Notes that a call goes through."""
        if self._opened is not None:
            self._trying = True

    def end(self, *, failed: bool | None) -> None:
        """Notes how a call ended; None for one that says nothing of the endpoint's health."""
        self._trying = False
        if failed is None:
            return
        if not failed:
            self.close()
            return
        self._failures += 1
        if self._opened is not None or self._failures >= self._settings.failures:
            self._opened = time.monotonic()

    def close(self) -> None:
        """Lets calls through again: the endpoint is well."""
        self._failures = 0
        self._opened = None
