"""Every cell of the table of parameters, against the request that its dialect makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pytest

from atmosphere_grpc.backends import llamafarm, ollama_request, openai_request
from atmosphere_grpc.backends.extra import LLAMAFARM_CHAT, RUNTIME_CHAT
from atmosphere_grpc.backends.parameters import (
    MATRIX,
    Dialect,
    Honoured,
    Parameter,
    Refused,
    Sent,
)
from atmosphere_grpc.domain import (
    ChatCall,
    EmbedCall,
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Target,
    Tool,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason

PLAIN = ChatCall(Target(), (Message("user", "Hi"),))
TEXTS = EmbedCall(Target(), ("a",))
TOOLS = (Tool("weather", "Tells it.", {"type": "object"}),)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
PICTURE = Image(data=b"\x89PNG", media_type="image/png")
FAR = Image(url="https://x.test/a.png")
P = Parameter


def seeing(image: Image) -> ChatCall:
    return replace(PLAIN, messages=(Message("user", parts=("See", image)),))


def calling(choice: ToolMode | NamedTool) -> ChatCall:
    return replace(PLAIN, tools=TOOLS, tool_choice=choice)


@dataclass(frozen=True)
class Sample:
    """A call with one parameter, the path by which a caller gives that, and what is sent of it.

    `before` is the same call without the parameter.
    """

    call: ChatCall | EmbedCall
    field: str
    value: Any
    before: ChatCall | EmbedCall = PLAIN


def sampled(parameter: Parameter, value: Any) -> Sample:
    name = parameter.value
    sent = list(value) if isinstance(value, tuple) else value
    sampling = Sampling(**{name: value})
    return Sample(replace(PLAIN, sampling=sampling), f"sampling.{name}", sent)


TOOL_BODIES = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells it.",
            "parameters": {"type": "object"},
        },
    }
]
NAMED = {"type": "function", "function": {"name": "weather"}}
DESCRIBED = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
WITH_TOOLS = replace(PLAIN, tools=TOOLS)
AS_SCHEMA = replace(PLAIN, response_format=JsonSchemaFormat("n", SCHEMA))
DATA_URL = "data:image/png;base64,iVBORw=="

SAMPLES: Mapping[Parameter, Sample] = {
    P.TEMPERATURE: sampled(P.TEMPERATURE, 0.25),
    P.TOP_P: sampled(P.TOP_P, 0.5),
    P.TOP_K: sampled(P.TOP_K, 7),
    P.MAX_TOKENS: sampled(P.MAX_TOKENS, 9),
    P.SEED: sampled(P.SEED, 2**53 + 1),
    P.STOP: sampled(P.STOP, ("END", "STOP")),
    P.PRESENCE_PENALTY: sampled(P.PRESENCE_PENALTY, -0.5),
    P.FREQUENCY_PENALTY: sampled(P.FREQUENCY_PENALTY, 1.5),
    P.LOGPROBS: sampled(P.LOGPROBS, True),
    P.TOP_LOGPROBS: sampled(P.TOP_LOGPROBS, 0),
    P.TOOLS: Sample(WITH_TOOLS, "tools", TOOL_BODIES),
    P.TOOL_CHOICE_AUTO: Sample(calling(ToolMode.AUTO), "tool_choice", "auto", WITH_TOOLS),
    P.TOOL_CHOICE_NONE: Sample(calling(ToolMode.NONE), "tool_choice", "none", WITH_TOOLS),
    P.TOOL_CHOICE_REQUIRED: Sample(
        calling(ToolMode.REQUIRED), "tool_choice", "required", WITH_TOOLS
    ),
    P.TOOL_CHOICE_NAME: Sample(calling(NamedTool("weather")), "tool_choice", NAMED, WITH_TOOLS),
    P.JSON_OBJECT: Sample(
        replace(PLAIN, response_format=JsonObjectFormat()),
        "response_format",
        {"response_format": {"type": "json_object"}, "format": "json"},
    ),
    P.JSON_SCHEMA: Sample(
        AS_SCHEMA, "response_format", {"response_format": DESCRIBED, "format": SCHEMA}
    ),
    P.STRICT: Sample(
        replace(PLAIN, response_format=JsonSchemaFormat("n", SCHEMA, strict=True)),
        "response_format.json_schema.strict",
        True,
        AS_SCHEMA,
    ),
    P.IMAGE_DATA: Sample(
        seeing(PICTURE),
        "messages[0].parts[1].image",
        {"messages[].content[].image_url.url": DATA_URL, "messages[].images": ["iVBORw=="]},
    ),
    P.IMAGE_URL: Sample(seeing(FAR), "messages[0].parts[1].image", FAR.url),
    P.NAME: Sample(
        replace(PLAIN, messages=(Message("user", "Hi", name="ann"),)), "messages[0].name", "ann"
    ),
    P.SESSION_ID: Sample(replace(PLAIN, session_id="s-1"), "session_id", "s-1"),
    P.DIMENSIONS: Sample(replace(TEXTS, dimensions=64), "dimensions", 64, TEXTS),
}
CELLS = [(parameter, dialect) for parameter in Parameter for dialect in Dialect]


def body(dialect: Dialect, call: ChatCall | EmbedCall) -> Any:
    """The JSON that a dialect's backend sends for a call."""
    if dialect is Dialect.OLLAMA:
        if isinstance(call, EmbedCall):
            return json.loads(ollama_request.embed_body("m", call, None))
        return json.loads(ollama_request.chat_body("m", call, None))
    add = openai_request.add_as_it_is
    if dialect is not Dialect.OPENAI:
        add = partial(llamafarm._add_extra, dialect)
    if isinstance(call, EmbedCall):
        return json.loads(openai_request.embed_body(dialect, "m", call, add))
    return json.loads(openai_request.chat_body(dialect, "m", call, add))


def found(place: Any, path: str) -> list[Any]:
    """What a request holds at a path such as `messages[].content[].text`."""
    places = [place]
    for part in path.split("."):
        name = part.removesuffix("[]")
        places = [item[name] for item in places if isinstance(item, dict) and name in item]
        if part.endswith("[]"):
            places = [item for items in places if isinstance(items, list) for item in items]
    return places


def refused(dialect: Dialect, call: ChatCall | EmbedCall) -> Failure:
    with pytest.raises(Failure) as caught:
        body(dialect, call)
    return caught.value


def refusals(dialect: Dialect, call: ChatCall | EmbedCall) -> list[str]:
    """The fields of a call that a dialect refuses; empty for none."""
    try:
        body(dialect, call)
    except Failure as failure:
        return [bad.field for bad in failure.violations]
    return []


@pytest.mark.parametrize(("parameter", "dialect"), CELLS)
def test_a_parameter_is_sent_or_honoured_or_refused(parameter: Parameter, dialect: Dialect) -> None:
    rule, sample = MATRIX[parameter][dialect], SAMPLES[parameter]
    match rule:
        case Refused(remedy):
            failure = refused(dialect, sample.call)
            assert failure.reason is Reason.UNSUPPORTED_PARAMETER
            before = refusals(dialect, sample.before)
            assert [bad.field for bad in failure.violations] == [*before, sample.field]
            assert failure.message.endswith(
                f"{sample.field}: not supported by a backend of kind {dialect} – {remedy}"
            )
        case Sent("header X-Session-ID"):
            assert isinstance(sample.call, ChatCall)
            assert llamafarm._session_headers(sample.call) == {"x-session-id": sample.value}
            assert "x-session-id" not in llamafarm._session_headers(PLAIN)
            assert body(dialect, sample.call) == body(dialect, sample.before)
        case Sent(path):
            value = sample.value
            if isinstance(value, dict) and path in value:
                value = value[path]
            assert found(body(dialect, sample.call), path) == [value]
            assert found(body(dialect, sample.before), path) == []
        case Honoured():
            sent = body(dialect, sample.call)
            assert "tool_choice" not in sent
            assert "dimensions" not in sent
            assert ("tools" in sent) is (parameter is P.TOOL_CHOICE_AUTO)


@pytest.mark.parametrize("dialect", Dialect)
def test_everything_that_is_refused_is_told_at_once(dialect: Dialect) -> None:
    sampling = Sampling(seed=1, top_k=2, presence_penalty=0.5)
    call = replace(PLAIN, sampling=sampling, session_id="s")
    wanted = {
        f"sampling.{name}"
        for name in ("seed", "top_k", "presence_penalty")
        if isinstance(MATRIX[Parameter(name)][dialect], Refused)
    }
    if isinstance(MATRIX[P.SESSION_ID][dialect], Refused):
        wanted.add("session_id")
    assert {bad.field for bad in refused(dialect, call).violations} == wanted


def test_a_parameter_is_told_by_the_path_that_the_caller_used() -> None:
    call = replace(PLAIN, sampling=Sampling(seed=1, stop=("x",)), sampling_fields=("kwargs.seed",))
    failure = refused(Dialect.LLAMAFARM, call)
    assert [bad.field for bad in failure.violations] == ["kwargs.seed", "sampling.stop"]


def test_a_wrong_field_is_told_before_one_that_is_not_supported() -> None:
    call = replace(PLAIN, sampling=Sampling(seed=1), extra={"rag_top_k": "three"})
    failure = refused(Dialect.LLAMAFARM, call)
    assert failure.reason is Reason.INVALID_FIELD
    assert failure.message == "extra.rag_top_k: must be `int`, not `str`"


def test_the_table_has_every_parameter_and_every_dialect() -> None:
    assert set(MATRIX) == set(Parameter) == set(SAMPLES)
    for row in MATRIX.values():
        assert set(row) == set(Dialect)


def test_every_way_to_sample_and_to_call_is_in_the_table() -> None:
    assert {field.name for field in fields(Sampling)} <= {item.value for item in Parameter}
    for mode in ToolMode:
        assert f"TOOL_CHOICE_{mode.name}" in Parameter.__members__


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("name", ["messages", "model", "stream", "tools"])
def test_what_this_service_writes_itself_cannot_be_written_over(
    dialect: Dialect, name: str
) -> None:
    failure = refused(dialect, replace(PLAIN, extra={name: 1}))
    assert failure.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failure.violations] == [f"extra.{name}"]


@pytest.mark.parametrize("dialect", [Dialect.LLAMAFARM, Dialect.RUNTIME, Dialect.OLLAMA])
def test_a_field_that_is_not_known_is_refused(dialect: Dialect) -> None:
    failure = refused(dialect, replace(PLAIN, extra={"quux": 1}))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failure.violations] == ["extra.quux"]
    embedding = refused(dialect, replace(TEXTS, extra={"quux": 1}))
    assert embedding.reason is Reason.UNSUPPORTED_PARAMETER


def test_a_field_that_only_the_other_kind_of_llamafarm_knows_is_refused() -> None:
    for name in LLAMAFARM_CHAT.keys() ^ RUNTIME_CHAT.keys():
        other = Dialect.RUNTIME if name in LLAMAFARM_CHAT else Dialect.LLAMAFARM
        failure = refused(other, replace(PLAIN, extra={name: True}))
        assert [bad.field for bad in failure.violations] == [f"extra.{name}"]


def test_any_field_goes_through_to_a_server_of_the_openai_dialect() -> None:
    assert body(Dialect.OPENAI, replace(PLAIN, extra={"quux": [1, {"a": None}]}))["quux"] == [
        1,
        {"a": None},
    ]
