"""Where the attempts of a call go, how long is waited between them, and what is told at the end."""

from __future__ import annotations

import time
from typing import cast

import pytest

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.domain import Capability, IntegrationState
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.attempts import (
    SHARE,
    Attempts,
    AttemptSettings,
    Choice,
)
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec


class Server(LanguageOnly):
    def __init__(self, address: str) -> None:
        self.endpoints = (address,)

    def lists_all_models(self, capability: Capability) -> bool:
        return False


def integration(name: str, *addresses: str) -> Integration:
    servers = [cast(Backend, Server(address)) for address in addresses or (f"{name}:1",)]
    made = Integration(IntegrationSpec(name, "openai"), *servers)
    for item in made.endpoints:
        item.state = IntegrationState.UP
    return made


def attempts(
    *integrations: Integration, maximum: int = 3, remaining_s: float | None = None
) -> Attempts:
    choices = [Choice(item, "m") for item in integrations]
    budget = Budget(remaining_s, Deadlines())
    return Attempts(choices, Capability.CHAT, AttemptSettings(maximum), budget)


def fail(of: Attempts, failure: Failure, *, begun: bool = False) -> float:
    """Makes the next attempt, which fails; gives how long to wait before another."""
    trial = of.next()
    trial.begin(Capability.CHAT, of.tried)
    return of.failed(trial, failure, begun=begun)


def told(of: Attempts, failure: Failure, *, begun: bool = False) -> Failure:
    """Likewise, but it is the last."""
    with pytest.raises(Failure) as caught:
        fail(of, failure, begun=begun)
    return caught.value


def unavailable(what: str = "down") -> Failure:
    return Failure(Reason.BACKEND_UNAVAILABLE, what)


def where(of: Attempts) -> list[str]:
    return [item.endpoint for item in of.made]


def test_another_endpoint_then_a_fallback_then_nothing() -> None:
    of = attempts(integration("a", "a:1", "a:2"), integration("b"))
    assert fail(of, Failure(Reason.BACKEND_ERROR, "x")) == 0
    assert fail(of, Failure(Reason.BACKEND_ERROR, "x")) == 0
    told(of, Failure(Reason.BACKEND_ERROR, "x"))
    assert sorted(where(of)[:2]) == ["a:1", "a:2"]
    assert where(of)[2] == "b:1"


def test_what_cannot_be_otherwise_there_is_not_tried_there_again() -> None:
    for reason in (Reason.BACKEND_ERROR, Reason.BACKEND_AUTH, Reason.CAPABILITY_UNSUPPORTED):
        assert told(attempts(integration("a")), Failure(reason, "x")).reason is reason


def test_a_full_queue_is_told_at_once_unless_there_is_another_integration() -> None:
    full = Failure(Reason.QUEUE_FULL, "x", retry_after_s=0.1)
    assert told(attempts(integration("a")), full).reason is Reason.QUEUE_FULL
    assert fail(attempts(integration("a"), integration("b")), full) == 0


def test_what_is_the_callers_fault_is_told_at_once() -> None:
    for reason in (Reason.INVALID_FIELD, Reason.BACKEND_REJECTED, Reason.INTERNAL):
        of = attempts(integration("a"), integration("b"))
        assert told(of, Failure(reason, "x")).reason is reason


def test_the_same_place_is_tried_again_after_a_pause_that_may_double() -> None:
    pauses: list[list[float]] = [[], []]
    for _ in range(200):
        of = attempts(integration("a"))
        for found in pauses:
            found.append(fail(of, unavailable()))
    assert 0 <= min(pauses[0]) <= max(pauses[0]) <= 0.1
    assert 0.1 < max(pauses[1]) <= 0.2
    assert len(set(pauses[0])) > 100  # jittered


@pytest.mark.parametrize("maximum", [1, 2, 5])
def test_there_are_never_more_than_the_most(maximum: int) -> None:
    of = attempts(integration("a"), maximum=maximum)
    for _ in range(maximum - 1):
        fail(of, unavailable())
    told(of, unavailable())
    assert len(of.made) == maximum


def test_the_time_that_a_backend_asks_for_is_waited_unless_it_is_too_long() -> None:
    busy = Failure(Reason.BACKEND_BUSY, "x", retry_after_s=7)
    assert fail(attempts(integration("a")), busy) == 7
    told(attempts(integration("a"), remaining_s=5), busy)
    told(attempts(integration("a")), Failure(Reason.BACKEND_BUSY, "x", retry_after_s=11))
    # Another integration is no reason to wait.
    assert fail(attempts(integration("a"), integration("b")), busy) == 0


def test_no_attempt_is_begun_that_cannot_end() -> None:
    slow = integration("a")
    slow.limiter._observe(3.0)
    assert told(attempts(slow, remaining_s=2), unavailable()).reason is Reason.BACKEND_UNAVAILABLE
    assert fail(attempts(slow, remaining_s=9), unavailable()) < 1


def test_once_the_calls_time_is_used_up_there_is_no_other_attempt() -> None:
    of = attempts(integration("a"), integration("b"))
    failure = Failure.out_of_time(Phase.FIRST_TOKEN, "x", limit="call")
    assert told(of, failure).reason is Reason.DEADLINE_EXCEEDED
    for limit in ("integration", "attempt"):
        of = attempts(integration("a"), integration("b"))
        assert fail(of, Failure.out_of_time(Phase.FIRST_TOKEN, "x", limit=limit)) == 0


def test_a_connection_that_is_not_made_in_time_is_the_integrations_fault() -> None:
    of = attempts(integration("a"), integration("b"))
    assert fail(of, Failure.out_of_time(Phase.CONNECT, "x")) == 0


def test_an_answer_that_has_begun_is_not_begun_anew() -> None:
    of = attempts(integration("a", "a:1", "a:2"), integration("b"))
    fail(of, unavailable())
    failure = told(of, Failure(Reason.STREAM_TRUNCATED, "broke"), begun=True)
    # It is told itself, whatever came before.
    assert failure.reason is Reason.STREAM_TRUNCATED


def test_as_long_as_there_is_another_an_attempt_has_a_share_of_the_time() -> None:
    of = attempts(integration("a"), integration("b"), remaining_s=10)
    assert of.next().share == SHARE
    fail(of, unavailable())
    assert of.next().share == 1
    assert attempts(integration("a"), integration("b"), maximum=1).next().share == 1
    trial = attempts(integration("a"), integration("b"), remaining_s=10).next()
    limit = trial.first_token_limit(Budget(10, Deadlines()))
    assert limit.left_s == pytest.approx(5, abs=0.1)
    assert limit.failure().metadata["limit"] == "attempt"


def test_what_a_retry_can_mend_is_told_with_all_that_was_tried() -> None:
    of = attempts(integration("a"), integration("b"), maximum=2)
    fail(of, Failure(Reason.BACKEND_ERROR, "a failed"))
    failure = told(of, unavailable("b is down"))
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert failure.message == "b is down; tried as well: a failed"
    assert failure.metadata["integration_id"] == "b"
    first, second = failure.metadata["attempts"].split("; ")
    assert first.startswith("a@a:1 m BACKEND_ERROR ")
    assert second.startswith("b@b:1 m BACKEND_UNAVAILABLE ")


def test_without_one_the_first_is_told() -> None:
    of = attempts(integration("a"), integration("b"), maximum=2)
    fail(of, Failure(Reason.UNSUPPORTED_PARAMETER, "a has no seed"))
    assert told(of, Failure(Reason.BACKEND_ERROR, "b failed")).message == (
        "a has no seed; tried as well: b failed"
    )


def test_an_attempts_time_is_its_own() -> None:
    of = attempts(integration("a"))
    trial = of.next()
    time.sleep(0.02)  # its turn was waited for: that is not the attempt's
    trial.begin(Capability.CHAT, of.tried)
    assert trial.ended().latency_ms < 15
