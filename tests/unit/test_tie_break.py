"""A chat model that chooses between routes which are close together."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

import pytest

from atmosphere_grpc.composition import route_of
from atmosphere_grpc.config.routing import Route as RouteSettings
from atmosphere_grpc.domain import (
    Begun,
    Delta,
    ExecuteCall,
    Finished,
    FinishReason,
    JsonSchemaFormat,
    Model,
    RouteMethod,
    Target,
    Usage,
)
from atmosphere_grpc.errors import Reason
from atmosphere_grpc.execution import tie_break as module
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.execution.plan import Planner
from atmosphere_grpc.execution.tie_break import TieBreak, TieBreakSettings
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.routing.intents import Chosen, IntentRouter
from atmosphere_grpc.routing.ranking import Bar, Ranking
from atmosphere_grpc.routing.reader import Reader, Reading
from atmosphere_grpc.routing.routes import Routes
from tests.unit.test_execution import REFUSED, Backend, budget, failure

SEMANTIC, DEFAULT = RouteMethod.SEMANTIC, RouteMethod.DEFAULT
ROUTES = Routes(
    route_of(RouteSettings.model_validate(settings))
    for settings in (
        {
            "name": "code",
            "description": "Writing programs.",
            "examples": ["Fix this bug", "Write a class", "Review it", "A fourth example"],
        },
        {"name": "maths", "description": "Calculating.", "examples": ["What is 1 + 1?"]},
        {"name": "cook", "examples": ["A recipe for soup"]},
    )
)
CLOSE = Ranking((("code", 0.45), ("maths", 0.4), ("cook", 0.05)), Bar(0.5))
CLEAR = Ranking((("code", 0.9), ("maths", 0.05), ("cook", 0.01)), Bar(0.5))
TEXT = "Write a program that adds"


def answering(*pieces: str) -> Backend:
    """A backend whose model says this."""
    done = Finished(FinishReason.STOP, Usage())
    return Backend("judge", script=(Begun(), *map(Delta, pieces), done))


def choosing(name: object) -> Backend:
    return answering(json.dumps({"route": name}))


def tie_break(backend: Backend, **settings: Any) -> TieBreak:
    registry = Registry([Integration(IntegrationSpec("j", "openai"), backend)])
    return TieBreak(registry, TieBreakSettings("j", **{"model": "judge", **settings}))


def chosen(ranking: Ranking | None = CLOSE) -> Chosen:
    """What meaning chose."""
    if ranking is None or not ranking.sure:
        return Chosen(DEFAULT, None, "nobody is sure", ranking)
    return Chosen(SEMANTIC, ROUTES.get(ranking.best), "by meaning", ranking)


async def settled(
    of: TieBreak, before: Chosen, seconds: float = 60, text: str = TEXT
) -> tuple[RouteMethod, str, list[Reason | None]]:
    """How the route is chosen then, which it is, and how the attempts at a model ended."""
    made, tried = await of.settled(before, text, ROUTES, budget(seconds))
    return made.method, made.route.name if made.route else "", [item.reason for item in tried]


# --- when it is asked -------------------------------------------------------------------------


async def test_what_is_close_is_chosen_by_the_model() -> None:
    backend = choosing("maths")
    made, (attempt,) = await tie_break(backend).settled(chosen(), TEXT, ROUTES, budget())
    assert (made.method, made.route) == (SEMANTIC, ROUTES.get("maths"))
    assert made.why.endswith("; so close that a model chose: maths")
    assert (attempt.integration_id, attempt.model, attempt.reason) == ("j", "judge", None)
    assert len(backend.chats) == 1


@pytest.mark.parametrize(
    ("ranking", "is_asked"),
    [
        (CLOSE, True),
        (CLEAR, False),
        (Ranking((("code", 0.6), ("maths", 0.39)), Bar(0.5)), False),  # far enough ahead
        (Ranking((("code", 0.6), ("maths", 0.41)), Bar(0.5)), True),
        (Ranking((("code", 0.25), ("maths", 0.24)), Bar(0.5)), False),  # neither is likely
        (Ranking((("code", 0.25), ("maths", 0.25)), Bar(0.5)), True),
        (Ranking((("code", 0.2), ("maths", 0.2), ("cook", 0.2)), Bar(0.5)), True),
        (Ranking((("code", 0.1),), Bar(0.05)), False),  # there is no other
        (None, False),  # nothing was compared
    ],
)
async def test_it_is_asked_only_where_two_are_close_and_one_of_them_likely(
    ranking: Ranking | None, is_asked: bool
) -> None:
    backend, before = choosing("code"), chosen(ranking)
    made, tried = await tie_break(backend, margin=0.2).settled(before, TEXT, ROUTES, budget())
    assert len(backend.chats) == len(tried) == is_asked
    if not is_asked:
        assert made is before


@pytest.mark.parametrize(("seconds", "is_asked"), [(5.0, False), (7.0, True)])
async def test_it_is_asked_only_with_twice_its_time_left(seconds: float, is_asked: bool) -> None:
    backend = choosing("maths")
    made = await settled(tie_break(backend, timeout_s=3.0), chosen(), seconds)
    assert made == ((SEMANTIC, "maths", [None]) if is_asked else (DEFAULT, "", []))


async def test_a_request_that_names_its_route_is_asked_nothing() -> None:
    backend = choosing("maths")
    named = Chosen(RouteMethod.EXPLICIT, ROUTES.get("code"))
    assert await settled(tie_break(backend), named) == (RouteMethod.EXPLICIT, "code", [])
    assert backend.chats == []


# --- what it is asked -------------------------------------------------------------------------


async def test_it_is_shown_the_close_routes_and_may_choose_no_other() -> None:
    backend = choosing("code")
    await tie_break(backend).settled(chosen(), TEXT, ROUTES, budget())
    ((model, chat),) = backend.chats
    assert model == "judge"
    system, user = chat.messages
    assert (system.role, user.role) == ("system", "user")
    assert "- code: Writing programs. Such as: Fix this bug; Write a class; Review it\n" in (
        system.content
    )
    assert "- maths: Calculating. Such as: What is 1 + 1?\n- NONE: none of these" in system.content
    assert "cook" not in system.content
    assert user.content == f"The request:\n{TEXT}"
    assert isinstance(chat.response_format, JsonSchemaFormat)
    assert chat.response_format.strict
    assert chat.response_format.schema == {
        "type": "object",
        "properties": {"route": {"enum": ["code", "maths", "NONE"]}},
        "required": ["route"],
        "additionalProperties": False,
    }
    assert (chat.sampling.temperature, chat.sampling.max_tokens) == (0, 64)


async def test_an_unnamed_model_is_the_integrations_own_for_chats() -> None:
    backend = choosing("maths")
    backend.listed = (Model("minilm"), Model("talker"))
    of = tie_break(backend, model="")
    await of._registry.refresh([*of._registry])
    assert await settled(of, chosen()) == (SEMANTIC, "maths", [None])
    assert backend.chats[0][0] == "talker"


# --- what it says -----------------------------------------------------------------------------


async def test_none_of_them_is_the_default() -> None:
    before = chosen(Ranking((("code", 0.6), ("maths", 0.5)), Bar(0.5)))
    assert before.route is not None
    assert await settled(tie_break(choosing("NONE")), before) == (DEFAULT, "", [None])


async def test_another_one_than_meaning_chose_is_taken_with_its_own_score() -> None:
    before = chosen(Ranking((("code", 0.6), ("maths", 0.5)), Bar(0.5)))
    made, _ = await tie_break(choosing("maths")).settled(before, TEXT, ROUTES, budget())
    place = await execution_of().planner.of(Target(), made.capability(CALL), budget())
    decision = made.evidence(place.decision)
    assert (decision.route, decision.method, decision.score) == ("maths", SEMANTIC, 0.5)
    assert (decision.runner_up, decision.runner_up_score) == ("code", 0.6)


CALL = ExecuteCall(Target(), TEXT)
NONSENSE = [
    *("", "maths", "I think that it is maths.", '{"route": "cook"}', '{"route": "other"}'),
    *('{"route": 7}', '{"kind": "maths"}', "[]", '{"route": "maths"', "```json\n{}\n```"),
]


@pytest.mark.parametrize("said", NONSENSE)
@pytest.mark.parametrize("sure", [True, False])
async def test_nonsense_leaves_what_was_chosen_before(said: str, sure: bool) -> None:
    before = chosen(Ranking((("code", 0.6), ("maths", 0.5)), Bar(0.5 if sure else 0.7)))
    backend = answering(said)
    made, (attempt,) = await tie_break(backend).settled(before, TEXT, ROUTES, budget())
    assert made == replace(before, why=made.why)
    assert made.why == f"{before.why}; a model was asked, and did not choose (BACKEND_CONTRACT)"
    assert attempt.reason is Reason.BACKEND_CONTRACT


async def test_an_answer_in_pieces_and_with_white_space_is_one() -> None:
    backend = answering('\n { "rou', 'te": "ma', 'ths"}\n')
    assert await settled(tie_break(backend), chosen()) == (SEMANTIC, "maths", [None])


@pytest.mark.parametrize("before", [(), (Begun(), Delta('{"route"'))])
async def test_a_model_that_fails_leaves_what_was_chosen_before(
    before: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend("judge", script=(*before, REFUSED))
    assert await settled(tie_break(backend), chosen()) == (DEFAULT, "", [REFUSED.reason])
    assert f"no model chose between routes: {REFUSED.message}" in caplog.text


async def test_a_model_that_does_not_answer_in_time_is_left_and_told() -> None:
    backend = Backend("judge", script=(None,))
    of = tie_break(backend, timeout_s=0.01)
    assert await settled(of, chosen()) == (DEFAULT, "", [Reason.DEADLINE_EXCEEDED])
    assert backend.closed == 1


async def test_an_integration_that_is_none_or_has_no_model_is_left() -> None:
    of = TieBreak(Registry([]), TieBreakSettings("j"))
    assert await settled(of, chosen()) == (DEFAULT, "", [])
    of = tie_break(Backend(), model="")
    assert await settled(of, chosen()) == (DEFAULT, "", [Reason.BACKEND_UNAVAILABLE])


async def test_a_cancelled_call_stops_the_model() -> None:
    backend = Backend("judge", script=(None,))
    work = tie_break(backend).settled(chosen(), TEXT, ROUTES, budget())
    call = asyncio.create_task(work)
    await backend.waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert backend.closed == 1


# --- what is remembered -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [("maths", SEMANTIC), ("NONE", DEFAULT)])
async def test_it_is_asked_once_for_an_intent(name: str, method: RouteMethod) -> None:
    backend = choosing(name)
    of = tie_break(backend)
    taken = name if name != "NONE" else ""
    assert await settled(of, chosen()) == (method, taken, [None])
    assert await settled(of, chosen()) == (method, taken, [])
    assert await settled(of, chosen(), seconds=1) == (method, taken, [])  # it takes no time
    assert len(backend.chats) == 1


async def test_another_intent_or_other_scores_are_another_question() -> None:
    backend = choosing("maths")
    of = tie_break(backend)
    other = Ranking((("code", 0.46), ("maths", 0.4)), Bar(0.5))
    await settled(of, chosen())
    await settled(of, chosen(other))
    await settled(of, chosen(), text="Another")
    assert len(backend.chats) == 3


async def test_what_was_no_choice_is_not_remembered() -> None:
    backend = answering("nonsense")
    of = tie_break(backend)
    for _ in range(2):
        assert await settled(of, chosen()) == (DEFAULT, "", [Reason.BACKEND_CONTRACT])


async def test_no_more_is_remembered_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    backend = choosing("maths")
    of = tie_break(backend)
    for text in ("one", "two", "two", "three", "three", "one"):
        await settled(of, chosen(), text=text)
    assert len(backend.chats) == 4


# --- in a call --------------------------------------------------------------------------------


class Torn:
    """Reads every intent as one that is close."""

    async def read(
        self, text: str, within_s: float, names: tuple[str, ...] | None = None
    ) -> Reading:
        return Reading(SEMANTIC, CLOSE)


def execution_of(judge: Backend | None = None) -> Execution:
    backends = {"a": Backend("llama"), "j": judge or choosing("maths")}
    registry = Registry(
        [Integration(IntegrationSpec(name, "openai"), each) for name, each in backends.items()]
    )
    router = IntentRouter(ROUTES, cast(Reader, Torn()))
    breaker = TieBreak(registry, TieBreakSettings("j", "judge", timeout_s=1))
    return Execution(registry, planner=Planner(registry, router, breaker))


async def test_the_choice_is_an_attempt_of_the_call_before_its_own() -> None:
    result = await execution_of().execute(CALL, budget())
    assert (result.route.route, result.route.method) == ("maths", SEMANTIC)
    assert [(item.integration_id, item.reason) for item in result.routing] == [("j", None)]


async def test_route_asks_and_execute_then_does_the_same() -> None:
    judge = choosing("maths")
    of = execution_of(judge)
    routed = await of.route(CALL, budget())
    result = await of.execute(CALL, budget())
    assert (result.route, result.routing) == (routed, ())
    assert len(judge.chats) == 1


async def test_a_choice_that_failed_is_an_attempt_too() -> None:
    result = await execution_of(answering("nonsense")).execute(CALL, budget())
    assert (result.route.route, result.route.method) == ("", DEFAULT)
    assert [item.reason for item in result.routing] == [Reason.BACKEND_CONTRACT]


async def test_a_call_without_the_time_for_it_goes_without() -> None:
    judge = choosing("maths")
    made = await execution_of(judge).route(CALL, budget(1.5))
    assert (made.route, made.runner_up) == ("", "code")
    assert judge.chats == []


async def test_a_route_that_is_none_is_told_before_anything_is_asked() -> None:
    judge = choosing("maths")
    named = ExecuteCall(Target(route="math"), TEXT)
    failed = await failure(execution_of(judge).route(named, budget()))
    assert failed.reason is Reason.ROUTE_NOT_FOUND
    assert judge.chats == []
