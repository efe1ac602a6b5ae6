"""The routes by themselves: rules, the built-in ones, and what a route adds to a request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.composition import route_of
from atmosphere_grpc.config.routing import Route as RouteSettings
from atmosphere_grpc.domain import Capability, ExecuteCall, Image, Message, Sampling, Target
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.routing.routes import BUILT_IN, Route, Routes, excerpt, read_text

PICTURE = Image(url="https://x.test/a.png")
SHOWN = (Message("user", parts=("What is this?", PICTURE)),)


def configured(name: str = "code", *rules: Any, **settings: Any) -> Route:
    """A route as a configuration has it."""
    return route_of(RouteSettings.model_validate({"name": name, "rules": [*rules], **settings}))


def intent(text: str = "", **fields: Any) -> ExecuteCall:
    return ExecuteCall(Target(), text, **fields)


def found(routes: Routes, text: str = "", **fields: Any) -> str:
    """The name of the route that a request takes by a rule; empty for none."""
    chosen = routes.by_rule(intent(text, **fields), text)
    return chosen[0].name if chosen else ""


# --- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "pull request",
        "Review this PULL Request, please",
        "my pull\n\t  request",
        "(pull request)",
        "pull request: the second",
    ],
)
def test_words_hold_in_any_case_and_with_any_white_space_between(text: str) -> None:
    assert found(Routes([configured("code", "Pull request")]), text) == "code"


@pytest.mark.parametrize(
    "text", ["pull requests", "spull request", "pull-request", "pullrequest", "request pull", ""]
)
def test_words_hold_only_whole_and_in_their_order(text: str) -> None:
    assert found(Routes([configured("code", "pull request")]), text) == ""


@pytest.mark.parametrize("text", ["a C++ class", "C++", "use (c++)"])
def test_words_may_end_in_what_is_no_letter(text: str) -> None:
    assert found(Routes([configured("code", "C++")]), text) == "code"
    assert found(Routes([configured("code", "C++")]), "C++11") == ""


@pytest.mark.parametrize(("text", "name"), [("Ticket ABC-12", "code"), ("Ticket 12", "")])
def test_a_pattern_holds_anywhere_and_in_any_case(text: str, name: str) -> None:
    assert found(Routes([configured("code", {"pattern": r"\b[a-z]{3}-\d+"})]), text) == name


def test_a_rule_is_told_in_its_own_words_and_a_pattern_as_one() -> None:
    routes = Routes([configured("code", "pull  request", {"pattern": "^fix"})])
    for text, rule in (("the pull request", "pull  request"), ("Fix it", "/^fix/")):
        chosen = routes.by_rule(intent(text), text)
        assert chosen is not None
        assert chosen[1] == rule


def test_the_first_route_with_a_rule_that_holds_is_taken() -> None:
    first, second = configured("one", "invoice"), configured("two", "invoice", "receipt")
    assert found(Routes([first, second]), "The receipt and the invoice") == "one"
    assert found(Routes([second, first]), "The receipt and the invoice") == "two"
    assert found(Routes([first, second]), "The receipt") == "two"


def test_a_configured_rule_comes_before_a_built_in_one() -> None:
    routes = Routes([configured("notes", "embed: this")])
    assert found(routes, "embed: this") == "notes"
    assert found(routes, "embed: that") == "embed"


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_words_hold_wherever_they_stand_alone(before: str, after: str) -> None:
    routes = Routes([configured("code", "pull request")])
    assert found(routes, f"{before} pull request {after}") == "code"
    assert found(routes, f"{before}xpull requestx{after}") == found(routes, before + after)


# --- built-in routes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "embed: the cat sat on the mat",
        "  Please EMBED : this",
        "vectorize: cats",
        "vectorise: cats",
        "Create an embedding of this sentence",
        "please compute the embeddings for these two lines",
        "Generate a sentence embedding for: I am here",
        "get vectors of the following words",
        "Give me a text embedding of this",
    ],
)
def test_what_says_that_it_is_to_be_embedded_is(text: str) -> None:
    assert found(Routes(), text) == "embed"


@pytest.mark.parametrize(
    "text",
    [
        "embed a video in my page",
        "How do I embed: inline or as an object?",
        "explain embeddings",
        "What is an embedding of a graph in the plane?",
        "create an embeddable widget for my page",
        "Make vector graphics of our logo",
        "I want to create an embedding of YouTube clips in my blog",
        "embedding: what does it mean?",
        "get vector clocks right",
        "Say hello",
        "",
    ],
)
def test_what_only_speaks_of_it_is_not(text: str) -> None:
    assert found(Routes(), text) == ""


def test_a_request_with_an_image_is_one_to_see_it() -> None:
    assert found(Routes(), messages=SHOWN) == "vision"
    assert found(Routes(), messages=(*SHOWN, Message("user", "And?"))) == "vision"
    assert found(Routes(), messages=(Message("user", "An image"),)) == ""


def test_a_configured_route_takes_the_place_of_the_built_in_one_of_its_name() -> None:
    routes = Routes([configured("embed", "index this", capability="chat"), configured("vision")])
    assert routes.get("embed").capability is Capability.CHAT
    assert found(routes, "embed: this") == ""
    assert found(routes, "Index this") == "embed"
    assert found(routes, messages=SHOWN) == ""


def test_every_capability_has_a_built_in_route_of_its_name() -> None:
    assert {route.name: route.capability.value for route in BUILT_IN} == {
        item.value: item.value for item in Capability
    }
    assert Routes().get("rag").capability is Capability.RAG


@pytest.mark.parametrize(
    ("name", "near"),
    [("cod", "known are code"), ("vison", "known are vision"), ("zzz", "known are code, chat, ")],
)
def test_a_name_that_is_none_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(Failure) as caught:
        Routes([configured("code")]).get(name)
    assert caught.value.reason is Reason.ROUTE_NOT_FOUND
    assert caught.value.message.startswith(f'route: there is no route "{name}"; {near}')


def test_a_route_that_may_not_be_used_is_not_there() -> None:
    routes = Routes([configured("code", "fix"), configured("coder", "fix it")])

    def may_use(route: Route) -> bool:
        return route.name != "code"

    with pytest.raises(Failure, match=r"known are coder$"):
        routes.get("code", may_use)
    assert routes.get("coder", may_use).name == "coder"
    taken = routes.by_rule(intent("fix it"), "fix it", may_use)
    assert taken == (routes.get("coder"), "fix it")
    assert routes.by_rule(intent("fix"), "fix", may_use) is None


def test_a_long_name_that_is_none_is_not_repeated_whole() -> None:
    with pytest.raises(Failure) as caught:
        Routes().get("x" * 10_000)
    assert len(caught.value.message) < 300


def test_a_route_is_told_by_its_description_and_its_examples_if_it_has_any() -> None:
    described = configured("a", description="About a.", examples=["One", "Two"])
    assert described.texts == ("About a.", "One", "Two")
    assert configured("b", description="About b.").texts == ("About b.",)
    assert configured("c", examples=["One"]).texts == ("One",)
    ruled = configured("d", "words")
    assert ruled.texts == ()
    assert Routes([ruled, described]).described == (described,)


# --- what a route adds ------------------------------------------------------------------------

GIVING = configured(
    "code",
    parameters={
        "system": "You are a programmer.",
        "temperature": 0.2,
        "seed": 0,
        "stop": ["END"],
        "extra": {"min_p": 0.1, "mirostat": 2},
    },
)


def test_a_request_that_says_nothing_has_what_its_route_gives() -> None:
    made = GIVING.applied(intent("Hi"))
    assert made.system == "You are a programmer."
    assert made.sampling == Sampling(temperature=0.2, seed=0, stop=("END",))
    assert made.extra == {"min_p": 0.1, "mirostat": 2}
    where = "routing.routes[code].parameters"
    assert made.sampling_fields == (f"{where}.temperature", f"{where}.seed", f"{where}.stop")


def test_what_a_request_says_itself_holds() -> None:
    made = GIVING.applied(
        intent(
            "Hi",
            system="Be a poet.",
            sampling=Sampling(temperature=0.0, top_p=0.5, stop=("STOP",)),
            sampling_fields=("sampling.temperature", "kwargs.top_p", "kwargs.stop"),
            extra={"mirostat": 0, "n": 1},
        )
    )
    assert made.system == "Be a poet."
    assert made.sampling == Sampling(temperature=0.0, top_p=0.5, seed=0, stop=("STOP",))
    assert made.extra == {"min_p": 0.1, "mirostat": 0, "n": 1}
    assert made.sampling_fields == (
        *("sampling.temperature", "kwargs.top_p", "kwargs.stop"),
        "routing.routes[code].parameters.seed",
    )


def test_a_conversation_with_a_system_prompt_of_its_own_is_given_no_other() -> None:
    own = (Message("system", "Be a poet."), Message("user", "Hi"))
    assert GIVING.applied(intent(messages=own)).system is None
    assert GIVING.applied(intent(messages=own[1:])).system == "You are a programmer."


def test_a_route_that_gives_nothing_leaves_a_request_as_it_is() -> None:
    call = intent("Hi", sampling=Sampling(top_k=3), sampling_fields=("sampling.top_k",))
    assert configured("plain").applied(call) == call


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"intent": "Hello", "prompt": "P"}, "Hello"),
        ({"prompt": "P"}, "P"),
        ({"text": "T"}, "T"),
        ({"messages": (Message("user", "A"), Message("assistant", "B"))}, "A"),
        ({"messages": (Message("user", "A"), Message("user", "B"))}, "B"),
        ({"messages": SHOWN}, "What is this?"),
        ({"messages": (Message("user", parts=("One", PICTURE, "two")),)}, "One two"),
        ({"messages": (Message("system", "A"),)}, ""),
        ({"data": ([1.0],)}, ""),
        ({}, ""),
    ],
)
def test_the_intent_is_read_or_what_takes_its_place(fields: dict[str, Any], read: str) -> None:
    assert read_text(ExecuteCall(Target(), **{"intent": "", **fields})) == read


def test_the_beginning_and_the_end_of_a_long_text_are_read() -> None:
    text = f"Translate this into French: {'x' * 20_000} – and keep it short"
    read = excerpt(text, 64)
    assert len(read) == 64
    assert read.startswith("Translate this into French: ")
    assert read.endswith(" keep it short")


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(64, 200))
def test_never_more_is_read_than_is_allowed_and_a_short_text_whole(text: str, most: int) -> None:
    read = excerpt(text, most)
    assert len(read) <= most
    stripped = text.strip()
    if len(stripped) <= most:
        assert read == stripped
    else:
        assert stripped.startswith(read[: most - most // 4 - 1])
        assert stripped.endswith(read[-(most // 4) :])
