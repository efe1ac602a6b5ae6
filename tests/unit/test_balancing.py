"""Which endpoint a call goes to, and when one is left alone."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.domain import Capability, IntegrationState, Model
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations import breaker as breakers
from atmosphere_grpc.integrations.balancing import Balancer, Balancing
from atmosphere_grpc.integrations.breaker import Breaker, BreakerSettings, BreakerState
from atmosphere_grpc.integrations.endpoint import Endpoint
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec

SETTINGS = BreakerSettings(failures=3, cooldown_s=10)


class Server(LanguageOnly):
    """A backend that is only an address and a list of models."""

    def __init__(self, address: str, *models: str) -> None:
        self.endpoints = (address,)
        self.listed = models

    def lists_all_models(self, capability: Capability) -> bool:
        return bool(self.listed)


def endpoint(address: str, *models: str, weight: float = 1.0) -> Endpoint:
    made = Endpoint("x", cast(Backend, Server(address, *models)), weight, SETTINGS)
    made.models = tuple(map(Model, models))
    return made


def three() -> list[Endpoint]:
    return [endpoint(address) for address in "abc"]


@pytest.mark.parametrize("how", Balancing)
def test_an_only_endpoint_has_every_call(how: Balancing) -> None:
    only = endpoint("a")
    assert Balancer(how).pick([only]) is only


def test_by_turns_each_has_as_many() -> None:
    balancer, endpoints = Balancer(Balancing.ROUND_ROBIN), three()
    assert [balancer.pick(endpoints).address for _ in range(6)] == [*"abcabc"]


def test_the_one_with_the_most_to_do_is_given_nothing_more() -> None:
    balancer, endpoints = Balancer(Balancing.LEAST_OUTSTANDING), three()
    endpoints[1].active = 9
    picked = Counter(balancer.pick(endpoints).address for _ in range(300))
    assert picked["b"] == 0  # whichever other one it is drawn with has less to do
    assert min(picked["a"], picked["c"]) > 50


def test_one_that_can_do_more_counts_as_having_less_to_do() -> None:
    strong, weak = endpoint("a", weight=4.0), endpoint("b")
    strong.active, weak.active = 5, 1
    balancer = Balancer(Balancing.LEAST_OUTSTANDING)
    assert {balancer.pick([strong, weak]).address for _ in range(20)} == {"a"}


def test_by_weight_each_has_its_share() -> None:
    endpoints = [endpoint("a", weight=3.0), endpoint("b")]
    balancer = Balancer(Balancing.WEIGHTED)
    picked = Counter(balancer.pick(endpoints).address for _ in range(2000))
    assert 0.65 < picked["a"] / 2000 < 0.85


@pytest.mark.parametrize("how", Balancing)
@given(session=st.text(min_size=1, max_size=20))
def test_a_session_stays_where_it_is_when_another_endpoint_goes(
    how: Balancing, session: str
) -> None:
    balancer, endpoints = Balancer(how), three()
    chosen = balancer.pick(endpoints, session)
    assert all(balancer.pick(endpoints, session) is chosen for _ in range(3))
    others = [item for item in endpoints if item is not chosen]
    for left in ([chosen, others[0]], [others[1], chosen]):
        assert balancer.pick(left, session) is chosen


def test_sessions_are_spread() -> None:
    balancer, endpoints = Balancer(Balancing.ROUND_ROBIN), three()
    picked = Counter(balancer.pick(endpoints, f"s{i}").address for i in range(300))
    assert min(picked.values()) > 60


# --- what an integration picks from ------------------------------------------------------------


def integration(*servers: Server) -> Integration:
    made = Integration(IntegrationSpec("x", "openai"), *(cast(Backend, item) for item in servers))
    for item, server in zip(made.endpoints, servers, strict=True):
        item.models = tuple(map(Model, server.listed))
        item.state = IntegrationState.UP
    return made


def picked(made: Integration, model: str = "m", tried: tuple[Endpoint, ...] = ()) -> set[str]:
    return {made.pick(model, Capability.CHAT, tried).address for _ in range(40)}


def test_a_call_goes_where_its_model_is() -> None:
    made = integration(Server("a", "m"), Server("b", "n"), Server("c"))
    assert picked(made) == {"a", "c"}  # c may have it: it lists none
    assert picked(made, "n") == {"b", "c"}


def test_one_that_is_down_or_was_tried_is_left_out_as_long_as_there_is_another() -> None:
    made = integration(Server("a", "m"), Server("b", "m"), Server("c", "m"))
    a, b, c = made.endpoints
    a.state = IntegrationState.DOWN
    assert picked(made) == {"b", "c"}
    assert picked(made, tried=(b,)) == {"c"}
    assert made.has_untried("m", Capability.CHAT, (b,))
    assert not made.has_untried("m", Capability.CHAT, (b, c))
    assert picked(made, tried=(b, c)) == {"a"}  # down, but the only one that was not tried
    assert picked(made, tried=(a, b, c)) == {"b", "c"}


def test_when_all_are_down_they_are_asked_all_the_same() -> None:
    made = integration(Server("a", "m"), Server("b", "m"))
    for item in made.endpoints:
        item.state = IntegrationState.DOWN
    assert picked(made) == {"a", "b"}


def test_the_models_of_all_endpoints_are_its_models() -> None:
    made = integration(Server("a", "m", "n"), Server("b", "n", "o"))
    assert [model.id for model in made.models] == ["m", "n", "o"]


# --- the breaker -------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(breakers, "time", made)
    return made


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.begin()
        breaker.end(failed=True)


def test_it_opens_after_failures_in_a_row_only(clock: Clock) -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 2)
    breaker.begin()
    breaker.end(failed=False)
    fail(breaker, 2)
    assert breaker.allows
    breaker.begin()
    breaker.end(failed=None)  # says nothing
    fail(breaker)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allows


def test_after_the_cooldown_one_call_at_a_time_tries_it(clock: Clock) -> None:
    breaker = Breaker(SETTINGS)
    fail(breaker, 3)
    clock.now += 10
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.allows
    breaker.begin()
    assert not breaker.allows
    breaker.end(failed=True)
    assert breaker.state is BreakerState.OPEN
    clock.now += 10
    breaker.begin()
    breaker.end(failed=None)  # it was cancelled: another may try
    assert breaker.allows
    breaker.begin()
    breaker.end(failed=False)
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("failure", "counts"),
    [
        (Failure(Reason.BACKEND_ERROR, "x"), True),
        (Failure(Reason.BACKEND_UNAVAILABLE, "x"), True),
        (Failure(Reason.STREAM_TRUNCATED, "x"), True),
        (Failure(Reason.BACKEND_BUSY, "x"), False),
        (Failure(Reason.BACKEND_REJECTED, "x"), False),
        (Failure(Reason.UNSUPPORTED_PARAMETER, "x"), False),
        (Failure(Reason.DEADLINE_EXCEEDED, "x", metadata={"limit": "integration"}), True),
        (Failure(Reason.DEADLINE_EXCEEDED, "x", metadata={"limit": "call"}), False),
    ],
)
def test_only_what_is_the_endpoints_own_fault_counts(failure: Failure, counts: bool) -> None:
    item = endpoint("a")
    for _ in range(SETTINGS.failures):
        with pytest.raises(Failure), item.call():
            raise failure
    assert item.usable is not counts
    assert item.active == 0
