"""The named arguments of Execute: every one is used or rejected, none is dropped."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.codec.kwargs import KEYS
from atmosphere_grpc.codec.requests import decode_execute
from atmosphere_grpc.domain import ExecuteCall, Image, Message, Sampling, Target
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def request(kwargs: dict[str, Any], **fields: Any) -> execution_pb2.ExecuteRequest:
    struct = Struct()
    struct.update(kwargs)
    return execution_pb2.ExecuteRequest(intent="Say hello", kwargs=struct, **fields)


def decode(kwargs: dict[str, Any], **fields: Any) -> ExecuteCall:
    return decode_execute(request(kwargs, **fields))


def faults(kwargs: dict[str, Any], **fields: Any) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(Failure) as caught:
        decode(kwargs, **fields)
    assert caught.value.reason is Reason.INVALID_FIELD
    return {bad.field: bad.description for bad in caught.value.violations}


def outcome(kwargs: dict[str, Any]) -> ExecuteCall | Failure:
    try:
        return decode(kwargs)
    except Failure as failure:
        return failure


RIGHT: dict[str, list[tuple[Any, Any]]] = {  # what is sent, and the attributes that it sets
    "prompt": [("Hi", {"prompt": "Hi"})],
    "messages": [
        (MESSAGES, {"messages": (Message("system", "Be brief."), Message("user", "Hello"))}),
        (
            [{"role": "user", "content": "Hello", "name": "Ada"}],
            {"messages": (Message("user", "Hello", name="Ada"),)},
        ),
    ],
    "text": [("Hi", {"text": "Hi"})],
    "data": [
        (["a", "b"], {"data": ("a", "b")}),
        ([[1, 2.5]], {"data": ([1, 2.5],)}),
        ([{"ms": 7}], {"data": ({"ms": 7},)}),
        ([None], {"data": (None,)}),  # what it may hold is for the capability to say
    ],
    "model": [("llama3.2:latest", {"target": Target(model="llama3.2:latest")})],
    "temperature": [
        (0.7, {"sampling": Sampling(temperature=0.7)}),
        (0, {"sampling": Sampling(temperature=0)}),
        (2, {"sampling": Sampling(temperature=2)}),
    ],
    "top_p": [(0.9, {"sampling": Sampling(top_p=0.9)}), (1, {"sampling": Sampling(top_p=1)})],
    "max_tokens": [(4096, {"sampling": Sampling(max_tokens=4096)})],
    "stop": [
        ("END", {"sampling": Sampling(stop=("END",))}),
        (["a", "b"], {"sampling": Sampling(stop=("a", "b"))}),
        ([], {"sampling": Sampling()}),
    ],
    "seed": [(-7, {"sampling": Sampling(seed=-7)}), (0, {"sampling": Sampling(seed=0)})],
    "system": [("Be brief.", {"system": "Be brief."})],
    "extra": [
        ({"n_ctx": 4096, "mirostat": 0.5}, {"extra": {"n_ctx": 4096, "mirostat": 0.5}}),
        ({}, {"extra": {}}),
    ],
}
WRONG: dict[str, list[tuple[Any, str]]] = {
    "prompt": [(7, "a text, not the number 7"), ("", "empty"), (None, "null"), ([], "a list")],
    "messages": [({}, "a list of messages, not an object"), ("Hi", "a text"), ([], "at least one")],
    "text": [(True, "a text, not a truth value"), ("", "empty")],
    "data": [("a", "a list of texts or of rows, not a text"), ({}, "an object"), ([], "empty")],
    "model": [(1, "a text, not the number 1"), ("", "empty")],
    "temperature": [
        ("0.7", "a number, not a text"),
        (True, "a number, not a truth value"),
        (None, "a number, not null"),
        (2.5, "at most 2, not 2.5"),
        (-1, "at least 0"),
    ],
    "top_p": [(False, "a number, not a truth value"), (0, "more than 0"), (1.5, "at most 1")],
    "max_tokens": [
        (4096.5, "a whole number, not the number 4096.5"),
        (True, "a whole number, not a truth value"),
        ("4096", "a whole number, not a text"),
        (0, "at least 1"),
    ],
    "stop": [(7, "a text or a list"), (["a", 7], "a text or a list"), ({}, "a text or a list")],
    "seed": [(1.5, "a whole number"), (False, "a whole number"), ([1], "a whole number")],
    "system": [({}, "a text, not an object"), ("", "empty")],
    "extra": [("{}", "an object, not a text"), ([], "an object, not a list"), (None, "null")],
}


def test_the_tables_have_every_argument() -> None:
    assert RIGHT.keys() == WRONG.keys() == set(KEYS)


@pytest.mark.parametrize(
    ("name", "value", "sets"), [(name, *case) for name, cases in RIGHT.items() for case in cases]
)
def test_an_argument_arrives_in_its_place(name: str, value: Any, sets: dict[str, Any]) -> None:
    call = decode({name: value})
    for attribute, expected in sets.items():
        assert getattr(call, attribute) == expected
    sampled = name in ("temperature", "top_p", "max_tokens", "stop", "seed")
    assert call.sampling_fields == ((f"kwargs.{name}",) if sampled else ())
    assert call.intent == "Say hello"


@pytest.mark.parametrize(
    ("name", "value", "says"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_value_is_told_with_its_path(name: str, value: Any, says: str) -> None:
    (told,) = faults({name: value}).items()
    assert told[0] == f"kwargs.{name}"
    assert says in told[1]


def test_whole_numbers_are_whole_again() -> None:
    call = decode({"max_tokens": 4096.0, "seed": 2**53, "extra": {"n_ctx": 4096}})
    assert type(call.sampling.max_tokens) is int
    assert type(call.sampling.seed) is int
    assert type(call.extra["n_ctx"]) is int


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_token", "did you mean max_tokens?"),
        ("Temperature", "did you mean temperature?"),
        ("promt", "did you mean prompt?"),
        ("top_k", "did you mean top_p?"),
        ("xyzzy", "known are prompt, messages, text, data, model,"),
    ],
)
def test_an_unknown_argument_is_told_with_the_nearest(name: str, hint: str) -> None:
    ((field, description),) = faults({name: 1}).items()
    assert field == f"kwargs.{name}"
    assert "is unknown" in description
    assert hint in description
    assert "extra" in description


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("temperature", 0.5, 0.5),
        ("temperature", 0.5, 0.0),
        ("top_p", 0.5, 0.9),
        ("max_tokens", 5, 7),
        ("seed", 5, 0),
        ("stop", "a", ["b"]),
        ("stop", [], ["b"]),
    ],
)
def test_a_value_given_in_sampling_too_is_rejected(name: str, value: Any, typed: Any) -> None:
    told = faults({name: value}, sampling=chat_pb2.SamplingOptions(**{name: typed}))
    assert told == {f"kwargs.{name}": f"is given in sampling.{name} too; give one of the two"}


def test_both_places_are_joined_where_they_say_different_things() -> None:
    call = decode({"top_p": 0.9}, sampling=chat_pb2.SamplingOptions(temperature=0.7, top_k=3))
    assert call.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=3)
    assert call.sampling_fields == ("sampling.temperature", "sampling.top_k", "kwargs.top_p")


def test_a_model_given_twice_is_rejected_even_when_it_is_the_same() -> None:
    assert list(faults({"model": "a"}, model="a")) == ["kwargs.model"]
    assert decode({}, model="a").target.model == "a"


def test_a_prompt_beside_messages_is_rejected() -> None:
    assert list(faults({"prompt": "Hi", "messages": MESSAGES})) == ["kwargs.prompt"]


def test_all_faults_of_a_request_are_told_at_once() -> None:
    told = faults(
        {"temprature": 1, "top_p": "x", "messages": [{"role": "x"}], "model": "b"},
        model="a",
        sampling=chat_pb2.SamplingOptions(max_tokens=0),
    )
    assert set(told) == {
        "kwargs.temprature",
        "kwargs.top_p",
        "kwargs.messages[0].role",
        "kwargs.messages[0].content",
        "kwargs.model",
        "sampling.max_tokens",
    }


@pytest.mark.parametrize(
    ("messages", "field", "says"),
    [
        (["Hi"], "kwargs.messages[0]", "an object with role and content, not a text"),
        ([MESSAGES[0], None], "kwargs.messages[1]", "not null"),
        ([{"content": "x"}], "kwargs.messages[0].role", "is unset"),
        ([{"role": "robot", "content": "x"}], "kwargs.messages[0].role", "not 'robot'"),
        ([{"role": "user"}], "kwargs.messages[0].content", "empty"),
        ([{"role": "user", "content": ""}], "kwargs.messages[0].content", "empty"),
        ([{"role": "user", "content": None}], "kwargs.messages[0].content", "not null"),
        ([{"role": "user", "content": []}], "kwargs.messages[0].content", "empty"),
        ([{"role": "user", "content": 7}], "kwargs.messages[0].content", "a list of parts"),
        ([{"role": 1, "content": "x"}], "kwargs.messages[0].role", "not the number 1"),
        (
            [{"role": "user", "content": "x", "tool_calls": []}],
            "kwargs.messages[0].tool_calls",
            "known are role, content, name; Chat has more",
        ),
    ],
)
def test_a_message_of_another_shape_is_told_with_its_path(
    messages: list[Any], field: str, says: str
) -> None:
    ((told, description),) = faults({"messages": messages}).items()
    assert told == field
    assert says in description


def seen(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("url", ["https://x.test/a.png", "data:image/png;base64,AAAA"])
def test_a_message_may_hold_images_in_openais_shape(url: str) -> None:
    call = decode(seen({"type": "text", "text": "See"}, image(url)))
    assert call.messages == (Message("user", parts=("See", Image(url))),)


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        (image("file:///etc/passwd"), ".image_url.url", "must begin with http://, https://, data:"),
        ({"type": "text", "text": ""}, ".text", "must not be empty"),
        ({"text": "x"}, "", 'must be {"type": "text", "text": …} or {"type": "image_url"'),
        ("x", "", "must be"),
        (image("https://x.test/") | {"detail": "low"}, "", "and hold nothing else"),
        ({"type": "image_url", "image_url": "https://x.test/"}, "", "must be"),
        (
            {"type": "image_url", "image_url": {"url": "https://x.test/", "detail": "low"}},
            "",
            "and hold nothing else",
        ),
    ],
)
def test_a_part_of_another_shape_is_told_with_its_path(part: Any, field: str, says: str) -> None:
    ((told, description),) = faults(seen(image("https://x.test/a.png"), part)).items()
    assert told == f"kwargs.messages[0].content[1]{field}"
    assert says in description


@pytest.mark.parametrize("stop", ["", ["a", ""]])
def test_an_empty_stop_text_is_rejected(stop: Any) -> None:
    (field,) = faults({"stop": stop})
    assert field == ("kwargs.stop[1]" if stop else "kwargs.stop[0]")


@pytest.mark.parametrize("name", [*KEYS, "else"])
def test_a_number_that_json_cannot_say_is_rejected_wherever_it_stands(name: str) -> None:
    assert list(faults({name: math.nan})) == [f"kwargs.{name}"]
    assert list(faults({name: [{"a": math.inf}]})) == [f"kwargs.{name}[0].a"]


def test_a_route_request_is_read_as_an_execute_request_is() -> None:
    sent = request({"prompt": "Hi", "seed": 7}, capability="chat", integration_id="a", model="m")
    same = execution_pb2.RouteRequest.FromString(sent.SerializeToString())
    assert decode_execute(same) == decode_execute(sent)
    assert decode_execute(same).target == Target("chat", "a", "m")


Number = st.floats(allow_nan=False, allow_infinity=False).filter(lambda n: not n.is_integer())
Scalar = st.none() | st.booleans() | st.text(max_size=5) | st.integers(-(2**53), 2**53) | Number
Json = st.recursive(
    Scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
Named = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), Json | st.floats())


@given(st.dictionaries(st.text(max_size=5), Json))
def test_whatever_extra_holds_arrives_unchanged(extra: dict[str, Any]) -> None:
    arrived = decode({"extra": extra}).extra
    assert json.dumps(arrived, sort_keys=True) == json.dumps(extra, sort_keys=True)


@given(Named)
def test_no_arguments_raise_anything_but_a_failure_nor_are_dropped(kwargs: dict[str, Any]) -> None:
    result = outcome(kwargs)
    if isinstance(result, Failure):
        assert result.reason is Reason.INVALID_FIELD
        assert all(bad.field.startswith("kwargs") for bad in result.violations)
        return
    assert kwargs.keys() <= set(KEYS)
    for name in kwargs.keys() & {"prompt", "text", "system", "extra"}:
        assert getattr(result, name) == kwargs[name]
