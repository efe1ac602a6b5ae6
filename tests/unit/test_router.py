"""Which integration and model a call goes to, and what is said about it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.domain import (
    Capability,
    IntegrationState,
    Model,
    RouteDecision,
    RouteMethod,
    Target,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing.router import Candidate, capability_of, decide

CHAT, EMBED = Capability.CHAT, Capability.EMBED
UP, DOWN = IntegrationState.UP, IntegrationState.DOWN
STARTING, UNKNOWN = IntegrationState.STARTING, IntegrationState.UNKNOWN


def candidate(
    id: str,  # noqa: A002 - as the class has it
    *models: str | Model,
    state: IntegrationState = UP,
    default: str | None = None,
    error: str = "",
) -> Candidate:
    known = tuple(Model(item) if isinstance(item, str) else item for item in models)
    first = known[0].id if known else ""
    return Candidate(id, state, known, first if default is None else default, bool(known), error)


def where(decision: RouteDecision) -> tuple[str, str]:
    return decision.integration_id, decision.model


def failure(target: Target, *candidates: Candidate, capability: Capability = CHAT) -> Failure:
    with pytest.raises(Failure) as caught:
        decide(target, capability, candidates)
    return caught.value


A, B = candidate("a", "llama", "qwen"), candidate("b", "gemma")


def test_a_call_that_names_nothing_goes_to_the_first_ones_default() -> None:
    decision = decide(Target(), CHAT, [A, B])
    assert decision == RouteDecision(
        CHAT,
        RouteMethod.DEFAULT,
        "a",
        "llama",
        "capability chat is the default; integration a is the first usable one that can chat; "
        "model llama is its default",
    )


NAMED = [
    (Target(capability="chat"), ("a", "llama"), "the request names capability chat; "),
    (Target(integration_id="a"), ("a", "llama"), "the request names integration a; "),
    (Target(model="gemma"), ("b", "gemma"), "the request names model gemma; "),
    (Target("chat", "a", "qwen"), ("a", "qwen"), "the request names capability chat and "),
]


@pytest.mark.parametrize(("target", "goes_to", "says"), NAMED)
def test_what_a_call_names_is_explicit(target: Target, goes_to: tuple[str, str], says: str) -> None:
    decision = decide(target, CHAT, [A] if target.integration_id else [A, B])
    assert decision.method is RouteMethod.EXPLICIT
    assert where(decision) == goes_to
    assert decision.explanation.startswith(says)


def test_all_that_a_call_names_is_all_that_is_said() -> None:
    decision = decide(Target("chat", "a", "qwen"), CHAT, [A])
    assert decision.explanation == (
        "the request names capability chat and integration a and model qwen"
    )


@pytest.mark.parametrize("order", [*itertools.permutations(IntegrationState)])
def test_the_usable_go_before_the_rest_whatever_their_order(
    order: tuple[IntegrationState, ...],
) -> None:
    candidates = [candidate(state.value, "m", state=state) for state in order]
    seen = []
    while candidates:
        chosen, _ = where(decide(Target(), CHAT, candidates))
        seen.append(chosen)
        candidates = [item for item in candidates if item.id != chosen]
    assert seen == ["up", "starting", "unknown", "down"]


def test_of_two_in_the_same_state_the_first_is_taken() -> None:
    for state in IntegrationState:
        pair = [candidate("a", "m", state=state), candidate("b", "m", state=state)]
        assert decide(Target(), CHAT, pair).integration_id == "a"
        assert decide(Target(), CHAT, pair[::-1]).integration_id == "b"


def test_an_integration_that_is_down_is_tried_when_it_is_named() -> None:
    down = candidate("a", state=DOWN, default="llama", error="refused")
    assert where(decide(Target(integration_id="a"), CHAT, [down])) == ("a", "llama")
    unknown = candidate("a", state=DOWN, default="", error="refused")
    assert where(decide(Target(integration_id="a", model="m"), CHAT, [unknown])) == ("a", "m")


def test_a_model_is_found_on_the_second_integration() -> None:
    decision = decide(Target(model="gemma"), CHAT, [A, B])
    assert where(decision) == ("b", "gemma")
    assert decision.explanation == (
        "the request names model gemma; capability chat is the default; "
        "integration b is the first usable one that has it"
    )


def test_an_integration_that_has_the_model_and_is_down_goes_before_none() -> None:
    down = candidate("b", "gemma", state=DOWN)
    decision = decide(Target(model="gemma"), CHAT, [A, down])
    assert where(decision) == ("b", "gemma")
    assert decision.explanation.endswith(
        "integration b is the first that has it, though its state is down"
    )


def test_an_integration_that_lists_no_models_may_have_any() -> None:
    decision = decide(Target(model="gemma"), CHAT, [A, candidate("b", state=UNKNOWN)])
    assert where(decision) == ("b", "gemma")
    assert decision.explanation.endswith("that may have it, though its state is unknown")


def test_a_configured_default_that_is_not_listed_is_used() -> None:
    odd = candidate("a", "llama", default="hidden")
    assert where(decide(Target(), CHAT, [odd])) == ("a", "hidden")
    assert where(decide(Target(model="hidden"), CHAT, [odd])) == ("a", "hidden")


def test_an_unknown_model_is_not_found_and_the_nearest_are_listed() -> None:
    failed = failure(Target(model="lama"), A, B)
    assert failed.reason is Reason.MODEL_NOT_FOUND
    assert failed.message == 'model: there is no model "lama"; the nearest are llama, gemma'
    assert failed.metadata == {"nearest": "llama, gemma"}


def test_a_model_that_the_named_integration_lacks_is_not_found_there() -> None:
    failed = failure(Target(integration_id="b", model="xyzzy"), B)
    assert failed.reason is Reason.MODEL_NOT_FOUND
    assert failed.message == ('model: integration "b" has no model "xyzzy"; the nearest are gemma')


def test_a_long_name_is_not_repeated_in_full() -> None:
    assert len(failure(Target(model="x" * 10_000), A).message) < 300


TEXTS = Model("minilm", capabilities=("embed",))
CHATS = Model("llama", capabilities=("chat",))


def test_an_integration_that_cannot_is_passed_over() -> None:
    candidates = [candidate("a", CHATS), candidate("b", CHATS, TEXTS, default="minilm")]
    decision = decide(Target(), EMBED, candidates)
    assert where(decision) == ("b", "minilm")
    assert "integration b is the first usable one that can embed" in decision.explanation


def test_a_model_is_taken_where_it_can() -> None:
    candidates = [
        candidate("a", Model("m", capabilities=("chat",))),
        candidate("b", Model("m", capabilities=("chat", "embed"))),
    ]
    assert where(decide(Target(model="m"), EMBED, candidates)) == ("b", "m")


def test_a_model_that_cannot_is_unsupported() -> None:
    failed = failure(Target(model="llama"), candidate("a", CHATS), capability=EMBED)
    assert failed.reason is Reason.CAPABILITY_UNSUPPORTED
    assert 'model "llama" cannot embed' in failed.message


def test_integrations_that_cannot_are_named_and_those_that_did_not_say_are_not() -> None:
    silent = candidate("c", state=DOWN, error="refused")
    cannot = candidate("a", CHATS, default=""), candidate("b", CHATS, default="")
    failed = failure(Target(), *cannot, silent, capability=EMBED)
    assert failed.reason is Reason.CAPABILITY_UNSUPPORTED
    assert failed.message.startswith('integration "a", "b" cannot embed')


@pytest.mark.parametrize("target", [Target(), Target("chat"), Target(model="m")])
def test_no_integration_at_all_is_said_so(target: Target) -> None:
    failed = failure(target)
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert failed.message == "no integration is configured"


def test_when_all_are_down_each_is_named_with_its_remedy() -> None:
    failed = failure(
        Target(),
        candidate("a", state=DOWN, error='integration "a": refused – start it'),
        candidate("b", state=DOWN, error='integration "b": no answer within 5 s'),
        candidate("c", state=UP),
    )
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert failed.message == (
        'integration "c" lists no model – name one in model, or set its default_model; '
        'integration "a": refused – start it; '
        'integration "b": no answer within 5 s'
    )


def test_a_capability_is_read_by_its_name() -> None:
    assert capability_of(Target("embed"), CHAT) is EMBED
    assert capability_of(Target(), CHAT) is CHAT
    assert capability_of(Target(), EMBED) is EMBED


@pytest.mark.parametrize("name", ["Chat", "chat ", "paint", "x" * 1000])
def test_an_unknown_capability_is_not_found_and_the_known_are_listed(name: str) -> None:
    with pytest.raises(Failure) as caught:
        capability_of(Target(name), CHAT)
    assert caught.value.reason is Reason.CAPABILITY_NOT_FOUND
    assert caught.value.message.endswith(f"known are {', '.join(Capability)}")
    assert len(caught.value.message) < 200


Models = st.builds(
    Model,
    st.sampled_from("mno"),
    capabilities=st.sampled_from(
        [(), ("chat",), ("embed",), ("chat", "embed"), ("classify",), ("embed", "anomaly")]
    ),
    accepts_images=st.sampled_from([None, True, False]),
)
Candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcd"),
        st.sampled_from(IntegrationState),
        st.lists(Models, max_size=3, unique_by=lambda m: m.id).map(tuple),
        st.sampled_from(["", "m", "n"]),
        st.booleans(),
        offers=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda item: item.id,
)


@given(Candidates, st.sampled_from(["", "m", "n", "z"]), st.sampled_from(Capability))
def test_a_decision_is_possible_and_what_it_says_is_true(
    candidates: list[Candidate], model: str, capability: Capability
) -> None:
    target = Target(model=model)
    try:
        decision = decide(target, capability, candidates)
    except Failure:
        candidates = [c for c in candidates if c.offers]
        listed = any(c.models for c in candidates)
        has = Candidate.known_to_have if listed else Candidate.has
        able = [c for c in candidates if (model or c.default) and (not model or has(c, model))]
        assert all(c.lacks(capability, model or c.default) for c in able)
        return
    (chosen,) = [item for item in candidates if item.id == decision.integration_id]
    assert decision.model == (model or chosen.default)
    assert not chosen.lacks(capability, decision.model)
    assert chosen.has(decision.model) or not model
    assert ("usable" in decision.explanation) is (chosen.state is UP)
    assert ("that has it" in decision.explanation) is bool(model and chosen.lists(model))
    better = [item for item in candidates if item.state is chosen.state and item.lists(model)]
    if model and not chosen.lists(model):
        assert all(item.lacks(capability, model) for item in better)


def test_a_mistyped_model_is_not_looked_for_where_nobody_answers() -> None:
    silent = candidate("far", state=DOWN, error="connection refused")
    failed = failure(Target(model="lama"), silent, A)
    assert failed.reason is Reason.MODEL_NOT_FOUND
    assert "the nearest are llama" in failed.message
    assert 'integration "far" could not be asked' in failed.message


def test_a_model_is_looked_for_there_when_it_is_that_ones_default() -> None:
    silent = candidate("far", state=DOWN, default="mine")
    assert where(decide(Target(model="mine"), CHAT, [silent, A])) == ("far", "mine")


@pytest.mark.parametrize("capability", Capability)
def test_a_capability_that_the_call_itself_implies_is_neither_named_nor_a_default(
    capability: Capability,
) -> None:
    able = candidate("a", Model("llama", capabilities=("chat", "embed", "classify", "anomaly")))
    decision = decide(Target(implied=True), capability, [able])
    assert decision.method is RouteMethod.DEFAULT
    assert "capability" not in decision.explanation
    assert decide(Target(model="llama", implied=True), capability, [able]).method is (
        RouteMethod.EXPLICIT
    )
