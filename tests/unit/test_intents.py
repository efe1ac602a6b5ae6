"""Which route an intent takes, by what, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from atmosphere_grpc.composition import route_of
from atmosphere_grpc.config.routing import Route as RouteSettings
from atmosphere_grpc.domain import (
    Capability,
    ExecuteCall,
    Image,
    Message,
    RouteDecision,
    RouteMethod,
    Target,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing.intents import Chosen, IntentRouter, in_words
from atmosphere_grpc.routing.ranking import Bar, Ranking
from atmosphere_grpc.routing.reader import Reader, Reading
from atmosphere_grpc.routing.routes import Route, Routes

EXPLICIT, RULE, DEFAULT = RouteMethod.EXPLICIT, RouteMethod.RULE, RouteMethod.DEFAULT
SEMANTIC, LEXICAL = RouteMethod.SEMANTIC, RouteMethod.LEXICAL


def route(name: str, *rules: str, **settings: Any) -> Route:
    return route_of(RouteSettings.model_validate({"name": name, "rules": [*rules], **settings}))


ROUTES = Routes(
    [
        route("code", "pull request", examples=["Fix this bug"]),
        route("maths", examples=["What is 1 + 1?"], integration="b"),
        route("index", "index this", capability="embed", examples=["Index this"]),
    ]
)
SURE = Ranking((("maths", 0.8), ("code", 0.15), ("index", 0.0)), Bar(0.5))
UNSURE = Ranking((("maths", 0.4), ("code", 0.15), ("index", 0.0)), Bar(0.5))
CLOSE = Ranking((("maths", 0.6), ("code", 0.5), ("index", 0.0)), Bar(0.5, 0.2))


class Reads:
    """Reads one and the same of every intent, and notes which."""

    def __init__(
        self, ranking: Ranking = SURE, method: RouteMethod = SEMANTIC, note: str = ""
    ) -> None:
        self.reading = Reading(method, ranking, note)
        self.asked: list[tuple[str, float]] = []
        self.among: tuple[str, ...] | None = None

    async def read(
        self, text: str, within_s: float, names: tuple[str, ...] | None = None
    ) -> Reading:
        self.asked.append((text, within_s))
        self.among = names
        return self.reading


def router(reads: Reads | None = None, **options: Any) -> IntentRouter:
    return IntentRouter(ROUTES, cast("Reader | None", reads), **options)


def call(intent: str = "What is 2 + 2?", target: Target = Target(), **fields: Any) -> ExecuteCall:  # noqa: B008 - frozen
    return ExecuteCall(target, intent, **fields)


async def chosen(of: IntentRouter, sent: ExecuteCall) -> tuple[RouteMethod, str]:
    """How a route is chosen, and which; empty for none."""
    made = await of.choose(sent, 1.0)
    return made.method, made.route.name if made.route else ""


# --- the order --------------------------------------------------------------------------------


async def test_what_a_request_names_comes_first() -> None:
    reads = Reads()
    named = call("Review the pull request", Target(route="maths"))
    assert await chosen(router(reads), named) == (EXPLICIT, "maths")
    for target in (Target("chat"), Target(integration_id="a"), Target(model="m")):
        assert await chosen(router(reads), call("Review the pull request", target)) == (
            EXPLICIT,
            "",
        )
    assert reads.asked == []


async def test_then_rules() -> None:
    reads = Reads()
    made = await router(reads).choose(call("Review the Pull  Request"), 1.0)
    assert (made.method, made.route) == (RULE, ROUTES.get("code"))
    assert made.why == "route code by its rule pull request"
    assert reads.asked == []


async def test_then_what_the_intent_means() -> None:
    reads = Reads()
    made = await router(reads).choose(call(), 0.7)
    assert (made.method, made.route) == (SEMANTIC, ROUTES.get("maths"))
    assert made.why == "route maths with 0.80 (from 0.50 on), before code with 0.15"
    assert reads.asked == [("What is 2 + 2?", 0.7)]


async def test_or_how_it_is_spelt_with_the_reason() -> None:
    made = await router(Reads(method=LEXICAL, note="it is down")).choose(call(), 1.0)
    assert (made.method, made.route) == (LEXICAL, ROUTES.get("maths"))
    assert made.why.endswith(", before code with 0.15, by letters, since it is down")


@pytest.mark.parametrize("ranking", [UNSURE, CLOSE])
async def test_then_the_default(ranking: Ranking) -> None:
    made = await router(Reads(ranking)).choose(call(), 1.0)
    assert (made.method, made.route, made.ranking) == (DEFAULT, None, ranking)
    assert made.why.startswith("no route is sure: ")


async def test_without_one_who_reads_it_is_the_default_at_once() -> None:
    made = await router().choose(call(), 1.0)
    assert (made.method, made.route, made.ranking, made.why) == (DEFAULT, None, None, "")


async def test_what_says_nothing_is_not_read() -> None:
    reads = Reads()
    rows = call("", data=([1.0],))
    assert await chosen(router(reads), rows) == (DEFAULT, "")
    assert reads.asked == []


async def test_an_image_is_seen_whatever_is_said() -> None:
    shown = (Message("user", parts=("2 + 2?", Image(url="https://x.test/a.png"))),)
    made = await router(Reads()).choose(call("", messages=shown), 1.0)
    assert (made.method, made.route) == (RULE, ROUTES.get("vision"))
    assert made.why == "route vision by its rule an image in messages"


async def test_a_route_that_is_named_and_is_none_is_told() -> None:
    with pytest.raises(Failure, match="known are maths") as caught:
        await router(Reads()).choose(call(target=Target(route="math")), 1.0)
    assert caught.value.reason is Reason.ROUTE_NOT_FOUND


async def test_only_so_much_is_read_as_is_allowed() -> None:
    reads = Reads()
    of = router(reads, max_chars=100)
    await of.choose(call(f"What is 2 + 2? {'x ' * 10_000} – in brief"), 1.0)
    ((text, _),) = reads.asked
    assert len(text) == 100
    assert text.startswith("What is 2 + 2?")
    assert text.endswith("in brief")


# --- whose routes there are -------------------------------------------------------------------


def all_but(*names: str) -> Callable[[Route], bool]:
    """What a caller may use who is kept from a few routes."""
    return lambda route: route.name not in names


async def test_a_route_that_is_not_for_the_caller_is_not_compared() -> None:
    reads = Reads()
    await router(reads).choose(call(), 1.0, all_but("code"))
    assert reads.among == ("maths", "index")


async def test_a_rule_of_a_route_that_is_not_for_the_caller_is_none() -> None:
    made = await router(Reads()).choose(call("my pull request"), 1.0, all_but("code"))
    assert (made.method, made.route) == (SEMANTIC, ROUTES.get("maths"))


async def test_a_named_route_that_is_not_for_the_caller_is_not_there() -> None:
    told = []
    for name in ("code", "cod"):
        named = call(target=Target(route=name))
        with pytest.raises(Failure) as caught:
            await router().choose(named, 1.0, all_but("code", "chat", "embed"))
        assert caught.value.reason is Reason.ROUTE_NOT_FOUND
        told.append(caught.value.message.replace(f'"{name}"', "…"))
    assert told[0] == told[1]
    assert "code" not in told[0]


async def test_where_none_that_is_described_is_for_the_caller_nothing_is_read() -> None:
    reads = Reads()
    made = await router(reads).choose(call(), 1.0, all_but("code", "maths", "index"))
    assert (made.method, made.ranking, reads.asked) == (DEFAULT, None, [])


# --- what is done -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "capability"),
    [
        (Target(route="index"), Capability.EMBED),
        (Target("embed", route="index"), Capability.EMBED),
        (Target(route="code"), Capability.CHAT),
        (Target("chat", route="code"), Capability.CHAT),
        (Target("chat", "a", "m", route="code"), Capability.CHAT),
        (Target("rag"), Capability.RAG),
        (Target(model="m"), Capability.CHAT),
        (Target(route="anomaly"), Capability.ANOMALY),
    ],
)
async def test_a_route_says_what_is_done_and_a_request_may_say_it_too(
    target: Target, capability: Capability
) -> None:
    sent = call(target=target)
    assert (await router().choose(sent, 1.0)).capability(sent) is capability


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chat", 'is chat, but route "index" is for embed'),
        ("rag", 'is rag, but route "index" is for embed'),
    ],
)
async def test_a_capability_that_is_not_the_named_routes_is_a_contradiction(
    name: str, says: str
) -> None:
    sent = call(target=Target(name, route="index"))
    made = await router().choose(sent, 1.0)
    with pytest.raises(Failure) as caught:
        made.capability(sent)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in caught.value.violations] == ["capability"]
    assert says in caught.value.message


async def test_a_capability_that_is_none_is_told_with_a_route_too() -> None:
    sent = call(target=Target("paint", route="index"))
    made = await router().choose(sent, 1.0)
    with pytest.raises(Failure) as caught:
        made.capability(sent)
    assert caught.value.reason is Reason.CAPABILITY_NOT_FOUND


# --- what is told -----------------------------------------------------------------------------

PLACED = RouteDecision(Capability.CHAT, EXPLICIT, "a", "m", "model m is its default")
UNNAMED = RouteDecision(Capability.CHAT, DEFAULT, "a", "m", "capability chat is the default")


async def told(of: IntentRouter, sent: ExecuteCall, placed: RouteDecision) -> RouteDecision:
    return (await of.choose(sent, 1.0)).evidence(placed)


async def test_a_named_route_is_told_without_scores() -> None:
    decision = await told(router(Reads()), call(target=Target(route="code")), PLACED)
    assert decision == RouteDecision(
        Capability.CHAT,
        EXPLICIT,
        "a",
        "m",
        "the request names route code; model m is its default",
        route="code",
    )


async def test_a_rule_is_told_without_scores() -> None:
    decision = await told(router(Reads()), call("my pull request"), PLACED)
    assert (decision.method, decision.route) == (RULE, "code")
    assert (decision.score, decision.threshold, decision.runner_up) == (0, 0, "")
    assert decision.explanation == "route code by its rule pull request; model m is its default"


@pytest.mark.parametrize("method", [SEMANTIC, LEXICAL])
async def test_a_route_that_was_found_is_told_with_its_score_and_the_next(
    method: RouteMethod,
) -> None:
    decision = await told(router(Reads(method=method)), call(), PLACED)
    assert (decision.method, decision.route) == (method, "maths")
    assert (decision.score, decision.threshold) == (0.8, 0.5)
    assert (decision.runner_up, decision.runner_up_score) == ("code", 0.15)
    assert decision.explanation.startswith("route maths with 0.80")
    assert decision.explanation.endswith("; model m is its default")


async def test_the_default_is_told_with_the_nearest_that_was_not_sure() -> None:
    decision = await told(router(Reads(UNSURE)), call(), UNNAMED)
    assert (decision.method, decision.route, decision.score) == (DEFAULT, "", 0)
    assert (decision.runner_up, decision.runner_up_score) == ("maths", 0.4)
    assert decision.threshold == 0.5
    assert decision.explanation == (
        "no route is sure: the nearest is maths with 0.40, which takes 0.50; "
        "capability chat is the default"
    )


async def test_the_default_for_want_of_routes_is_told_as_ever() -> None:
    assert await told(router(), call(), UNNAMED) == UNNAMED


async def test_what_a_request_names_without_a_route_is_told_as_ever() -> None:
    assert await told(router(Reads()), call(target=Target(model="m")), PLACED) == PLACED


async def test_one_route_alone_has_no_runner_up() -> None:
    alone = Ranking((("maths", 0.9),), Bar(0.5))
    decision = await told(router(Reads(alone)), call(), PLACED)
    assert (decision.score, decision.runner_up, decision.runner_up_score) == (0.9, "", 0)
    assert decision.explanation.startswith("route maths with 0.90 (from 0.50 on); ")


def test_a_route_that_is_given_up_leaves_the_default_and_the_reason() -> None:
    found = Chosen(SEMANTIC, ROUTES.get("maths"), in_words(SURE), SURE)
    decision = found.given_up("it is not for this caller").evidence(UNNAMED)
    assert (decision.method, decision.route, decision.score) == (DEFAULT, "", 0)
    assert decision.explanation.startswith("it is not for this caller; ")
    assert decision.runner_up == "maths"


@pytest.mark.parametrize(
    ("ranking", "says"),
    [
        (SURE, "route maths with 0.80 (from 0.50 on), before code with 0.15"),
        (UNSURE, "no route is sure: the nearest is maths with 0.40, which takes 0.50"),
        (
            CLOSE,
            "no route is sure: maths with 0.60 is less than 0.20 before code with 0.50",
        ),
    ],
)
def test_a_ranking_in_words(ranking: Ranking, says: str) -> None:
    assert in_words(ranking) == says
