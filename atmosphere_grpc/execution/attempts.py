"""The tries of a call: how many, where each goes, what remains to be told when none succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_random_exponential

from atmosphere_grpc.domain import Attempt, Capability
from atmosphere_grpc.errors import TABLE, Failure, Phase, Reason
from atmosphere_grpc.execution.attempt import Trial
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.integrations.endpoint import Endpoint
from atmosphere_grpc.integrations.integration import Integration

#: With less time left than this, in seconds, no attempt is begun.
LEAST_S = 0.02
#: How much of the time that is left an attempt may wait for its first token, with another
#: integration to turn to.
SHARE = 0.5
#: How much of a model's name is told of each attempt.
MODEL_SHOWN = 32


@dataclass(frozen=True, slots=True)
class AttemptSettings:
    """How many attempts a call has, and how long is waited between two at the same place.

    Attributes:
        maximum: The most attempts, retries and fallbacks together.
        backoff_s: The most seconds before the first retry; twice as many before each further one.
        max_backoff_s: The most seconds in any case.
        max_retry_after_s: The longest `Retry-After` that is waited for; beyond, the caller is told.
    """

    maximum: int = 3
    backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    max_retry_after_s: float = 10.0


#: Of a call that must say how one integration is doing.
ONCE = AttemptSettings(maximum=1)


@dataclass(frozen=True, slots=True)
class Choice:
    """An integration that a call may go to, and what its model is called there."""

    integration: Integration
    model: str


class Attempts:
    """The attempts of one call, one after another.

    Args:
        choices: Where it may go, the preferred one first; at least one.
        capability: What is to be done.
        settings: How many there may be.
        budget: The call's time.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        capability: Capability,
        settings: AttemptSettings,
        budget: Budget,
    ) -> None:
        self._choices = list(choices)
        self._capability = capability
        self._settings = settings
        self._budget = budget
        self._failures: list[tuple[Trial, Failure]] = []
        self._retries = 0
        #: Which endpoints failed.
        self.tried: set[Endpoint] = set()
        #: What was tried, in order.
        self.made: list[Attempt] = []

    def next(self) -> Trial:
        """The next attempt."""
        choice = self._choices[0]
        last = len(self.made) + 1 >= self._settings.maximum
        share = SHARE if len(self._choices) > 1 and not last else 1.0
        return Trial(choice.integration, choice.model, share)

    def failed(self, trial: Trial, failure: Failure, *, begun: bool = False) -> float:
        """Notes a failure; gives how many seconds to wait before the next attempt.

        Args:
            trial: What failed.
            failure: Why.
            begun: Whether the caller has had a part of the answer.

        Raises:
            Failure: There is no further attempt; it says what all came to.
        """
        _label_connect(trial, failure)
        failure.metadata.setdefault("integration_id", trial.integration.spec.id)
        failure.metadata.setdefault("model", trial.model[:128])
        self.made.append(trial.ended(failure.reason))
        self._failures.append((trial, failure))
        if trial.endpoint is not None:
            self.tried.add(trial.endpoint)
        pause_s = None
        if not begun and len(self.made) < self._settings.maximum:
            pause_s = self._pause_s(trial, failure)
        if pause_s is None or pause_s + self._least_s() > self._budget.remaining_s:
            raise self._told(begun=begun) from None
        return pause_s

    def _pause_s(self, trial: Trial, failure: Failure) -> float | None:
        """How long to wait before the next attempt, in seconds; None where there is none."""
        rule = TABLE[failure.reason]
        if not rule.elsewhere or failure.metadata.get("limit") == "call":
            return None
        same = trial.integration
        if failure.reason in _OF_AN_ENDPOINT and same.has_untried(
            trial.model, self._capability, self.tried
        ):
            return 0.0
        if len(self._choices) > 1:
            self._choices.pop(0)
            return 0.0
        # A full queue is not to be made longer by calls that come again and again.
        if not rule.retryable or failure.reason is Reason.QUEUE_FULL:
            return None
        if failure.retry_after_s is not None:
            long = failure.retry_after_s > self._settings.max_retry_after_s
            return None if long else failure.retry_after_s
        self._retries += 1
        return self._backoff_s(self._retries)

    def _backoff_s(self, retries: int) -> float:
        """Full jitter: anything up to a bound that doubles."""
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = retries
        settings = self._settings
        return wait_random_exponential(settings.backoff_s, settings.max_backoff_s)(state)

    def _least_s(self) -> float:
        return max(LEAST_S, self._choices[0].integration.limiter.fastest_s)

    def _told(self, *, begun: bool) -> Failure:
        """The failure of the whole call: the first that a retry can mend, else the first.

        One that broke off an answer is told itself, whatever came before.
        """
        trial, told = self._failures[-1]
        if not begun:
            mendable = [item for item in self._failures if TABLE[item[1].reason].retryable]
            trial, told = (mendable or self._failures)[0]
        others = {
            other.integration.spec.id: failure.message
            for other, failure in self._failures
            if other.integration is not trial.integration
        }
        if others:
            told.message += f"; tried as well: {'; '.join(others.values())}"
        told.metadata["attempts"] = "; ".join(map(_shown, self.made))
        return told


#: Failures that may be those of one endpoint, so that another one of the integration is asked.
_OF_AN_ENDPOINT = frozenset(
    {
        Reason.BACKEND_BUSY,
        Reason.BACKEND_UNAVAILABLE,
        Reason.BACKEND_ERROR,
        Reason.BACKEND_CONTRACT,
        Reason.STREAM_TRUNCATED,
        Reason.DEADLINE_EXCEEDED,
        Reason.MODEL_NOT_FOUND,
    }
)


def _label_connect(trial: Trial, failure: Failure) -> None:
    """Says whose limit a connection that was not made in time ran into."""
    if failure.metadata.get("phase") == Phase.CONNECT and "limit" not in failure.metadata:
        failure.metadata["limit"] = "integration"


def _shown(attempt: Attempt) -> str:
    where = (
        f"{attempt.integration_id}@{attempt.endpoint}"
        if attempt.endpoint
        else (attempt.integration_id)
    )
    reason = attempt.reason.value if attempt.reason else "OK"
    return f"{where} {attempt.model[:MODEL_SHOWN]} {reason} {attempt.latency_ms:.0f} ms"
