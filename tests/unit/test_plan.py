"""What is done for an intent, and where; `Route` says what `Execute` does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.composition import route_of
from atmosphere_grpc.config.routing import Route as RouteSettings
from atmosphere_grpc.domain import (
    Anomalies,
    Anomaly,
    AnomalyCall,
    BackendEvent,
    Call,
    Capability,
    ChatCall,
    Classification,
    Classifications,
    ClassifyCall,
    EmbedCall,
    Embeddings,
    ExecuteCall,
    Image,
    Message,
    Model,
    ModelState,
    RouteDecision,
    RouteMethod,
    Sampling,
    Target,
)
from atmosphere_grpc.errors import Failure, Reason, Violation
from atmosphere_grpc.execution.attempts import AttemptSettings
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.execution.plan import Planner, PlanSettings
from atmosphere_grpc.integrations.integration import Fallback, Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.routing.intents import IntentRouter
from atmosphere_grpc.routing.reader import Reader
from atmosphere_grpc.routing.routes import Route, Routes
from tests.unit.test_execution import REFUSED, Backend, budget, failure, outcome

LOADED, AVAILABLE = ModelState.LOADED, ModelState.AVAILABLE
PICTURE = Message("user", parts=("See", Image(url="https://x.test/a.png")))
NAMELESS = Target()
#: More time than a call may have that would rather not wait for a model to be loaded.
PATIENT = 100.0


class Server(Backend):
    """Can do everything, unless it is told otherwise; refuses `extra`, where it is told to."""

    def __init__(self, *models: str | Model, refuses_extra: bool = False, **fields: Any) -> None:
        super().__init__(*models, **fields)
        self.refuses_extra = refuses_extra
        self.lists_all = self.offers_all = True

    def offers(self, capability: Capability) -> bool:
        return self.offers_all or super().offers(capability)

    def lists_all_models(self, capability: Capability) -> bool:
        return self.lists_all and super().lists_all_models(capability)

    def check(self, model: str, call: Call) -> None:
        if self.refuses_extra and call.extra:
            what = Violation(call.extra_path, "is unknown here")
            raise Failure(Reason.UNSUPPORTED_PARAMETER, "extra: no", violations=[what])

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        self.check(model, call)
        async for event in super().chat(model, call, connect_s=connect_s):
            yield event

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        self.check(model, call)
        return await super().embed(model, call, connect_s=connect_s)

    async def classify(
        self, model: str, call: ClassifyCall, *, connect_s: float
    ) -> Classifications:
        self.check(model, call)
        return Classifications(tuple(Classification("a", 1.0) for _ in call.texts), model)

    async def anomalies(self, model: str, call: AnomalyCall, *, connect_s: float) -> Anomalies:
        self.check(model, call)
        return Anomalies(tuple(Anomaly(0.0, False, 0.0) for _ in call.rows), model)


def route(name: str, *rules: str, **given: Any) -> Route:
    return route_of(RouteSettings.model_validate({"name": name, "rules": [*rules], **given}))


def execution(
    *routes: Route,
    fallback: Mapping[str, tuple[Fallback, ...]] | None = None,
    reader: Reader | None = None,
    **backends: Backend,
) -> Execution:
    """Integrations as nothing has looked at them yet, and routes."""
    registry = Registry(
        [
            Integration(IntegrationSpec(name, "openai", fallback=(fallback or {}).get(name, ())), b)
            for name, b in backends.items()
        ]
    )
    router = IntentRouter(Routes(routes), reader)
    planner = Planner(registry, router, settings=PlanSettings(resident_below_s=20))
    return Execution(registry, AttemptSettings(backoff_s=0.001), planner=planner)


async def looked_at(of: Execution) -> Execution:
    """As a server has it that has started."""
    await of.list_models("", budget())
    return of


async def decision(
    of: Execution, intent: str, target: Target = NAMELESS, seconds: float = PATIENT, **fields: Any
) -> RouteDecision:
    """Where an intent goes, which is where `execute` sends it."""
    sent = ExecuteCall(target, intent, **fields)
    made = await of.route(sent, budget(seconds))
    assert (await of.execute(sent, budget(seconds))).route == made
    return made


@contextlib.contextmanager
def allowed(**patterns: Any) -> Iterator[None]:
    """Calls of a caller who may not use everything."""
    token = permit.set(Permit(Policy(**patterns)))
    try:
        yield
    finally:
        permit.reset(token)


def where(made: RouteDecision) -> tuple[str, str, str]:
    return made.route, made.integration_id, made.model


# --- a route's models -------------------------------------------------------------------------

CODE = route("code", "fix", models=["big", "medium", "small"])


@pytest.mark.parametrize(
    ("models", "taken"),
    [
        (["small", "medium", "big"], "big"),
        (["other", "small", "medium"], "medium"),
        (["other", "small"], "small"),
    ],
)
async def test_the_first_model_that_is_available_is_taken(models: list[str], taken: str) -> None:
    of = await looked_at(execution(CODE, a=Server("other"), b=Server(*models)))
    made = await decision(of, "Fix it")
    assert where(made) == ("code", "b", taken)
    assert made.method is RouteMethod.RULE
    assert "route code names capability chat and model" in made.explanation


async def test_a_model_that_is_listed_comes_before_one_that_may_be_there() -> None:
    knows_more = Server("other")
    knows_more.lists_all = False
    of = await looked_at(execution(CODE, a=knows_more, b=Server("small")))
    assert where(await decision(of, "Fix it")) == ("code", "b", "small")
    of = await looked_at(execution(CODE, a=knows_more))
    assert where(await decision(of, "Fix it")) == ("code", "a", "big")


@pytest.mark.parametrize(("seconds", "taken"), [(PATIENT, "big"), (15.0, "small")])
async def test_a_model_in_memory_comes_first_where_the_time_is_short(
    seconds: float, taken: str
) -> None:
    backend = Server(Model("big", state=AVAILABLE), Model("small", state=LOADED))
    of = await looked_at(execution(CODE, a=backend))
    assert (await decision(of, "Fix it", seconds=seconds)).model == taken


@pytest.mark.parametrize("states", [(AVAILABLE, AVAILABLE), (LOADED, LOADED)])
async def test_of_models_alike_the_first_is_taken_however_short_the_time(
    states: tuple[ModelState, ModelState],
) -> None:
    models = [
        Model(name, state=state) for name, state in zip(("small", "big"), states, strict=True)
    ]
    of = await looked_at(execution(CODE, a=Server(*models)))
    assert (await decision(of, "Fix it", seconds=15.0)).model == "big"


async def test_where_none_is_available_a_found_route_gives_way_and_says_why() -> None:
    of = await looked_at(execution(CODE, a=Server("other")))
    made = await decision(of, "Fix it")
    assert where(made) == ("", "a", "other")
    assert made.method is RouteMethod.DEFAULT
    assert made.explanation.startswith(
        "route code was found, but cannot carry the request: route code: model: there is no model"
    )


async def test_where_none_is_available_the_first_is_told_with_a_named_route() -> None:
    of = await looked_at(execution(CODE, a=Server("other")))
    sent = ExecuteCall(Target(route="code"), "Fix it")
    for method in (of.route, of.execute):
        failed = await failure(method(sent, budget()))
        assert failed.reason is Reason.MODEL_NOT_FOUND
        assert failed.message.startswith('route code: model: there is no model "big"; ')


async def test_a_model_that_has_come_since_is_found() -> None:
    backend = Server("other")
    of = await looked_at(execution(CODE, a=backend))
    backend.listed = (Model("small"),)
    assert where(await decision(of, "Fix it")) == ("code", "a", "small")


async def test_a_model_that_the_request_names_comes_before_the_routes() -> None:
    of = await looked_at(execution(CODE, a=Server("big", "other")))
    made = await decision(of, "Hello", Target(route="code", model="other"))
    assert where(made) == ("code", "a", "other")
    assert made.method is RouteMethod.EXPLICIT
    assert made.explanation.startswith("the request names route code; the request, or its route")


# --- a route's integration --------------------------------------------------------------------

PRIVATE = route("private", "secret", integration="b", models=["m", "n"])


async def test_a_route_goes_to_its_integration() -> None:
    of = await looked_at(execution(PRIVATE, a=Server("m"), b=Server("n")))
    made = await decision(of, "a secret")
    assert where(made) == ("private", "b", "n")
    assert "integration b" in made.explanation


async def test_an_integration_that_the_request_names_comes_before_the_routes() -> None:
    of = await looked_at(execution(PRIVATE, a=Server("m"), b=Server("n")))
    assert where(await decision(of, "", Target("", "a", route="private"), prompt="Hi")) == (
        "private",
        "a",
        "m",
    )


async def test_a_routes_integration_that_fails_has_its_fallbacks() -> None:
    a, b = Server("x", "n"), Server("m", script=(REFUSED,))
    of = execution(PRIVATE, fallback={"b": (Fallback("a"),)}, a=a, b=b)
    result = await (await looked_at(of)).execute(ExecuteCall(Target(), "a secret"), budget())
    assert where(result.route) == ("private", "b", "m")
    assert [model for model, _ in b.chats] == ["m"]
    assert [model for model, _ in a.chats] == ["n"]  # another one of the route's models


async def test_a_call_that_names_its_integration_stays_there() -> None:
    a, b = Server("m"), Server("m", script=(REFUSED,))
    of = execution(PRIVATE, fallback={"b": (Fallback("a"),)}, a=a, b=b)
    sent = ExecuteCall(Target(integration_id="b", route="private"), "Hi")
    failed = await failure((await looked_at(of)).execute(sent, budget()))
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert a.chats == []


async def test_a_routes_integration_that_is_down_is_told_with_its_route() -> None:
    down = Server()
    down.down = REFUSED
    of = await looked_at(execution(route("private", "secret", integration="b"), b=down))
    failed = await failure(of.route(ExecuteCall(Target(), "a secret"), budget()))
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert failed.message == f"route private: {REFUSED.message}"


# --- what a route gives -----------------------------------------------------------------------


async def test_what_a_route_gives_reaches_the_backend() -> None:
    parameters = {"system": "Be brief.", "temperature": 0.2, "extra": {"min_p": 0.1, "n": 1}}
    backend = Server("m")
    of = await looked_at(execution(route("code", "fix", parameters=parameters), a=backend))
    sent = ExecuteCall(Target(), "Fix it", sampling=Sampling(top_k=3), extra={"n": 2})
    await of.execute(sent, budget())
    ((_, chat),) = backend.chats
    assert chat.messages == (Message("system", "Be brief."), Message("user", "Fix it"))
    assert chat.sampling == Sampling(temperature=0.2, top_k=3)
    assert chat.extra == {"min_p": 0.1, "n": 2}


async def test_a_route_for_vectors_makes_them_with_its_extra() -> None:
    backend = Server("minilm")
    index = route("index", "index this", capability="embed", parameters={"extra": {"x": 1}})
    of = await looked_at(execution(index, a=backend))
    made = await decision(of, "index this: cats")
    assert made.capability is Capability.EMBED
    ((_, embed),) = backend.embeds
    assert (embed.input, embed.extra) == (("index this: cats",), {"x": 1})


# --- routes that cannot carry a request -------------------------------------------------------


async def test_a_found_route_that_cannot_carry_the_request_gives_way() -> None:
    of = await looked_at(execution(a=Server("m")))
    made = await decision(of, "", prompt="embed: this")
    assert where(made) == ("", "a", "m")
    assert (made.capability, made.method) == (Capability.CHAT, RouteMethod.DEFAULT)
    assert made.explanation.startswith(
        "route embed was found, but cannot carry the request: kwargs.prompt: "
    )


async def test_a_named_one_fails() -> None:
    of = await looked_at(execution(a=Server("m")))
    sent = ExecuteCall(Target(route="embed"), "", prompt="this")
    failed = await failure(of.route(sent, budget()))
    assert failed.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failed.violations] == ["kwargs.prompt"]


async def test_what_nobody_can_carry_fails_as_it_would_without_the_route() -> None:
    of = await looked_at(execution(a=Server("m")))
    sent = ExecuteCall(Target(), "embed: this", data=([1.0],))
    failed = await failure(of.route(sent, budget()))
    assert failed.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failed.violations] == ["kwargs.data"]


async def test_what_a_named_route_cannot_use_of_itself_is_told_by_its_setting() -> None:
    """Only by code: the settings refuse such a route."""
    wrong = Route("index", capability=Capability.EMBED, sampling=Sampling(seed=7))
    of = await looked_at(execution(wrong, a=Server("m")))
    failed = await failure(of.route(ExecuteCall(Target(route="index"), "x"), budget()))
    assert [bad.field for bad in failed.violations] == ["routing.routes[index].parameters.seed"]


# --- permissions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patterns", [{"integrations": ("a",)}, {"models": ("x",)}, {"models": ("x", "other")}]
)
async def test_a_found_route_that_is_not_for_the_caller_is_none(patterns: dict[str, Any]) -> None:
    a, b = Server("x"), Server("m")
    of = await looked_at(execution(PRIVATE, a=a, b=b))
    with allowed(**patterns):
        made = await decision(of, "a secret")
    assert where(made) == ("", "a", "x")
    assert made.method is RouteMethod.DEFAULT
    assert "private" not in made.explanation
    assert "integration b" not in made.explanation
    assert b.chats == []


async def test_of_a_routes_models_those_are_taken_that_the_caller_may_use() -> None:
    of = await looked_at(execution(CODE, a=Server("big", "medium", "small")))
    with allowed(models=("small", "other")):
        assert where(await decision(of, "Fix it")) == ("code", "a", "small")


async def test_a_named_route_that_is_not_for_the_caller_is_not_there() -> None:
    of = await looked_at(execution(PRIVATE, a=Server("x"), b=Server("m")))
    without = await looked_at(execution(a=Server("x")))
    told = []
    with allowed(integrations=("a",)):
        for each in (of, without):
            sent = ExecuteCall(Target(route="private"), "Hi")
            failed = await failure(each.route(sent, budget()))
            told.append((failed.reason, failed.message))
    assert told[0] == told[1]  # whether there is such a route cannot be told
    assert told[0][0] is Reason.ROUTE_NOT_FOUND


async def test_a_fallback_that_the_caller_may_not_use_is_none() -> None:
    a, b = Server("n"), Server("m", script=(REFUSED,))
    of = await looked_at(execution(PRIVATE, fallback={"b": (Fallback("a"),)}, a=a, b=b))
    with allowed(integrations=("b",)):
        await failure(of.execute(ExecuteCall(Target(), "a secret"), budget()))
    assert a.chats == []


# --- Route and Execute ------------------------------------------------------------------------

ROUTES = (
    route("code", "pull request", examples=["Fix the bug in my program"], models=["big", "llama"]),
    route("private", "secret", integration="b", models=["mood", "both", "llama"]),
    route("far", "far away", integration="c"),
    route("index", "index this", capability="embed", models=["minilm", "both"]),
    route(
        "translate",
        examples=["Translate this letter into French", "English to Spanish, please"],
        parameters={"system": "Translate.", "temperature": 0, "extra": {"n": 1}},
    ),
)
READER = Reader({item.name: item.texts for item in ROUTES if item.texts}, 0.05, None)
asyncio.run(READER.keep_prepared(1))

INTENTS = (
    *("", "Hello", "embed: a cat", "Review my pull request", "a secret", "index this", "far away"),
    *("Translate this letter into French, please", "Fix the bug in my programme", "z" * 5000),
)
Messages = st.lists(
    st.sampled_from(
        [Message("system", "S"), Message("user", "A secret"), Message("assistant", "B"), PICTURE]
    ),
    min_size=1,
    max_size=3,
).map(tuple)
Data = st.sampled_from([("a text",), ([1.0, 2.0], [3.0, 4.0]), ({"x": 1.0},), ("", 1)])
Samplings = st.sampled_from(
    [
        (Sampling(), ()),
        (Sampling(temperature=0.5), ("sampling.temperature",)),
        (Sampling(seed=7, stop=("x",)), ("kwargs.seed", "kwargs.stop")),
    ]
)
Extras: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"n": 2}, {"rag_enabled": False}]
)


def rarely(*values: str) -> st.SearchStrategy[str]:
    """Mostly nothing, else one of the values."""
    return st.sampled_from([*[""] * 3 * len(values), *values])


CallTargets = st.builds(
    Target,
    rarely(*(item.value for item in Capability), "paint"),
    rarely("a", "b", "c", "nobody"),
    rarely("llama", "minilm", "both", "mood", "big", "lama"),
    route=rarely(*(item.name for item in ROUTES), "vision", "embed", "cod"),
)


@st.composite
def calls(draw: st.DrawFn) -> ExecuteCall:
    """Any call that the contract lets through, or that execution itself refuses."""
    sampling, fields = draw(Samplings)
    names = ["prompt", "messages", "text", "data", "system"]
    given = draw(st.sets(st.sampled_from(names), max_size=2))
    if "prompt" in given:
        given.discard("messages")  # which the contract excludes
    values: dict[str, st.SearchStrategy[Any]] = {
        "prompt": st.sampled_from(INTENTS[1:]),
        "messages": Messages,
        "text": st.sampled_from(INTENTS[1:]),
        "data": Data,
        "system": st.just("Be brief."),
    }
    said = {name: draw(values[name]) for name in sorted(given) if draw(st.booleans())}
    return ExecuteCall(
        draw(CallTargets),
        draw(st.sampled_from(INTENTS)),
        sampling=sampling,
        sampling_fields=fields,
        extra=draw(Extras),
        **said,
    )


MODELS = (
    Model("llama", capabilities=("chat",), accepts_images=False, state=AVAILABLE),
    Model("both", state=LOADED),
    Model("minilm", capabilities=("embed",)),
    Model("mood", capabilities=("classify",)),
    Model("big", capabilities=("chat",), accepts_images=True),
)


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    """What makes two or three integrations, in any state."""
    names = ["a", "b", "c"][: draw(st.integers(2, 3))]
    return {
        "probed": draw(st.booleans()),
        "fallback": draw(st.booleans()),
        "integrations": {
            name: {
                "models": draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=4)),
                "since": draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=4)),
                "down": draw(st.sampled_from([False, False, True])),
                "refuses_extra": draw(st.booleans()),
                "lists_all": draw(st.booleans()),
                "offers_all": draw(st.booleans()),
            }
            for name in names
        },
    }


async def fleet(drawn: dict[str, Any]) -> Execution:
    backends: dict[str, Server] = {}
    for name, item in drawn["integrations"].items():
        backend = Server(*item["models"], refuses_extra=item["refuses_extra"])
        backend.lists_all, backend.offers_all = item["lists_all"], item["offers_all"]
        backend.down = REFUSED if item["down"] else None
        backends[name] = backend
    names = [*backends]
    fallback = {name: (Fallback(other),) for name, other in pairwise(names)}
    of = execution(
        *ROUTES, fallback=fallback if drawn["fallback"] else None, reader=READER, **backends
    )
    if drawn["probed"]:
        await looked_at(of)
        for name, backend in backends.items():  # what was known may be old
            backend.listed = tuple(drawn["integrations"][name]["since"]) or backend.listed
    return of


PERMITS = (
    *(Policy(),) * 3,
    Policy(integrations=("a",)),
    Policy(models=("both", "minilm", "b*")),
    Policy(integrations=("nobody",)),
)


def test_a_route_is_what_execute_then_does() -> None:
    """After it, and in its place; and every outcome was among what was drawn."""
    seen: set[object] = set()

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(calls(), fleets(), st.sampled_from(PERMITS), st.sampled_from([None, PATIENT]))
    def same(
        sent: ExecuteCall, drawn: dict[str, Any], policy: Policy, seconds: float | None
    ) -> None:
        async def all_three() -> list[Any]:
            permit.set(Permit(policy))
            of, other = await fleet(drawn), await fleet(drawn)
            return [
                await outcome(of.route(sent, budget(seconds))),
                await outcome(of.execute(sent, budget(seconds))),
                await outcome(other.execute(sent, budget(seconds))),
            ]

        routed, then, instead = map(said, asyncio.run(all_three()))
        assert routed == then == instead
        seen.add(routed.method if isinstance(routed, RouteDecision) else routed)

    same()
    assert seen >= {
        *(RouteMethod.EXPLICIT, RouteMethod.RULE, RouteMethod.LEXICAL, RouteMethod.DEFAULT),
        *(Reason.INVALID_FIELD, Reason.CAPABILITY_NOT_FOUND, Reason.INTEGRATION_NOT_FOUND),
        *(Reason.MODEL_NOT_FOUND, Reason.ROUTE_NOT_FOUND, Reason.PERMISSION_DENIED),
        *(Reason.UNSUPPORTED_PARAMETER, Reason.CAPABILITY_UNSUPPORTED),
    }


def said(of: RouteDecision | tuple[Reason, str]) -> RouteDecision | Reason:
    """A decision, or why there is none."""
    return of if isinstance(of, RouteDecision) else of[0]
