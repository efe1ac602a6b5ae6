"""A Chat request as the call that it stands for, and every way in which it can be wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from atmosphere_grpc.codec.requests import decode_chat
from atmosphere_grpc.domain import (
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Target,
    Tool,
    ToolCall,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.v1 import chat_pb2

USER = chat_pb2.Message(role="user", content="Hello")
TOOL = chat_pb2.Tool(name="weather", parameters_json='{"type": "object"}')


def chat(*messages: chat_pb2.Message, **fields: Any) -> chat_pb2.ChatRequest:
    """A request that is valid but for what is given."""
    return chat_pb2.ChatRequest(messages=messages or [USER], **fields)


def sampling(**fields: Any) -> chat_pb2.ChatRequest:
    return chat(sampling=chat_pb2.SamplingOptions(**fields))


def part(**fields: Any) -> chat_pb2.ChatRequest:
    """A request whose second part is the one given."""
    parts = [chat_pb2.ContentPart(text="See"), chat_pb2.ContentPart(**fields)]
    return chat(chat_pb2.Message(role="user", parts=parts))


def schema(name: str = "person", text: str = "{}") -> chat_pb2.ChatRequest:
    described = chat_pb2.ResponseFormat.JsonSchema(name=name, schema_json=text)
    return chat(response_format=chat_pb2.ResponseFormat(json_schema=described))


def tools(*given: chat_pb2.Tool, **choice: Any) -> chat_pb2.ChatRequest:
    return chat(tools=given, tool_choice=chat_pb2.ToolChoice(**choice) if choice else None)


def extra(value: Any) -> Any:
    """What arrives of a value that is sent as `extra.it`."""
    struct = Struct()
    struct.update({"it": value})
    return decode_chat(chat(extra=struct)).extra["it"]


def failure(request: chat_pb2.ChatRequest) -> Failure:
    with pytest.raises(Failure) as caught:
        decode_chat(request)
    assert caught.value.reason is Reason.INVALID_FIELD
    return caught.value


def message(**fields: Any) -> chat_pb2.Message:
    return chat_pb2.Message(**fields)


CALL = chat_pb2.ToolCall(id="1", name="weather", arguments_json="{}")
Call, Choice, Named = chat_pb2.ToolCall, chat_pb2.ToolChoice, chat_pb2.Tool
Picture, Part, Stream = chat_pb2.Image, chat_pb2.ContentPart, chat_pb2.StreamOptions
SCHEMA = "response_format.json_schema.schema_json"

MESSAGE_FAULTS = {  # the message, and which of its fields is at fault
    "no role": (message(content="x"), "role", "is unset"),
    "a strange role": (message(role="User", content="x"), "role", "'User'"),
    "no content": (message(role="user"), "content", "empty"),
    "content and parts": (
        message(role="user", content="x", parts=[Part(text="y")]),
        "parts",
        "one of the two",
    ),
    "reasoning": (message(role="assistant", content="x", reasoning="y"), "reasoning", "answers"),
    "a user's tool call": (message(role="user", tool_calls=[CALL]), "tool_calls", "assistant"),
    "a tool call without an id": (
        message(role="assistant", tool_calls=[CALL, Call(name="weather")]),
        "tool_calls[1].id",
        "required",
    ),
    "a tool call without a name": (
        message(role="assistant", tool_calls=[Call(id="1")]),
        "tool_calls[0].name",
        "required",
    ),
    "a tool's answer to no call": (
        message(role="tool", content="12 °C"),
        "tool_call_id",
        "required with role tool",
    ),
    "a user's tool_call_id": (
        message(role="user", content="x", tool_call_id="1"),
        "tool_call_id",
        "role tool only",
    ),
}
IMAGE_FAULTS = {
    "a file's URL": (Picture(url="file:///x"), "url", "https://"),
    "a URL of nothing": (Picture(url=""), "url", "https://"),
    "a URL with a type": (
        Picture(url="https://x.test/a.png", media_type="image/png"),
        "media_type",
        "goes with data only",
    ),
    "no data": (Picture(data=b"", media_type="image/png"), "data", "empty"),
    "data of no type": (Picture(data=b"x"), "media_type", "image/png"),
    "data that is a text": (Picture(data=b"x", media_type="text/html"), "media_type", "image type"),
}
FAULTS: dict[str, tuple[chat_pb2.ChatRequest, str, str]] = {
    **{
        name: (chat(USER, USER, said), f"messages[2].{field}", says)
        for name, (said, field, says) in MESSAGE_FAULTS.items()
    },
    **{
        name: (part(image=image), f"messages[0].parts[1].image.{field}", says)
        for name, (image, field, says) in IMAGE_FAULTS.items()
    },
    "no message": (chat_pb2.ChatRequest(), "messages", "at least one"),
    "an empty part": (part(), "messages[0].parts[1]", "text or image"),
    "an empty text": (part(text=""), "messages[0].parts[1].text", "empty"),
    "an image of nothing": (part(image=Picture()), "messages[0].parts[1].image", "url or data"),
    "a tool without a name": (tools(Named()), "tools[0].name", "1 to 64"),
    "a tool's name too long": (tools(Named(name="x" * 65)), "tools[0].name", "1 to 64"),
    "a tool's name with a line": (tools(Named(name="x\n")), "tools[0].name", "1 to 64"),
    "two tools of a name": (tools(TOOL, TOOL), "tools[1].name", '"weather" is taken'),
    "too many tools": (
        tools(*(Named(name=f"t{i}") for i in range(129))),
        "tools",
        "at most 128 items, not 129",
    ),
    "parameters that are no JSON": (
        tools(Named(name="t", parameters_json="{type: object}")),
        "tools[0].parameters_json",
        "is not JSON",
    ),
    "parameters that are a list": (
        tools(Named(name="t", parameters_json="[1]")),
        "tools[0].parameters_json",
        "a JSON object, not a list",
    ),
    "a choice of REQUIRED without tools": (
        tools(mode=Choice.MODE_REQUIRED),
        "tool_choice.mode",
        "needs tools",
    ),
    "a choice that no contract knows": (tools(TOOL, mode=77), "tool_choice.mode", "77"),
    "a choice of an unknown tool": (tools(TOOL, name="wether"), "tool_choice.name", '"wether"'),
    "a schema without a name": (schema(""), "response_format.json_schema.name", "1 to 64"),
    "no schema": (schema(text=""), SCHEMA, "is not JSON"),
    "a schema that is true": (schema(text="true"), SCHEMA, "not a truth value"),
    "a long session id": (
        chat(session_id="x" * 129),
        "session_id",
        "at most 128 characters, not 129",
    ),
    "a negative delay": (chat(stream=Stream(max_delay_ms=-1)), "stream.max_delay_ms", "not -1"),
    "a long delay": (chat(stream=Stream(max_delay_ms=1001)), "stream.max_delay_ms", "at most 1000"),
    "an empty stop text": (sampling(stop=["a", ""]), "sampling.stop[1]", "empty"),
    "too many stop texts": (sampling(stop="abcdefghijklmnopq"), "sampling.stop", "at most 16"),
    "top_logprobs": (sampling(top_logprobs=2), "sampling.top_logprobs", "needs sampling.logprobs"),
}


@pytest.mark.parametrize(("sent", "field", "says"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_with_its_field(sent: chat_pb2.ChatRequest, field: str, says: str) -> None:
    failed = failure(sent)
    assert [bad.field for bad in failed.violations] == [field]
    assert says in failed.violations[0].description
    assert failed.message == f"{field}: {failed.violations[0].description}"


def test_all_faults_are_told_at_once() -> None:
    request = chat(
        message(content="x"),
        message(role="user"),
        session_id="x" * 200,
        sampling=chat_pb2.SamplingOptions(temperature=3, max_tokens=0),
        tools=[chat_pb2.Tool(name="a b", parameters_json="7")],
        tool_choice=chat_pb2.ToolChoice(name="c"),
        response_format=schema("", "[").response_format,
        stream=chat_pb2.StreamOptions(max_delay_ms=5000),
    )
    assert {bad.field for bad in failure(request).violations} == {
        "session_id",
        "stream.max_delay_ms",
        "messages[0].role",
        "messages[1].content",
        "sampling.temperature",
        "sampling.max_tokens",
        "tools[0].name",
        "tools[0].parameters_json",
        "tool_choice.name",
        "response_format.json_schema.name",
        SCHEMA,
    }


NAN, INF = math.nan, math.inf
RANGES: dict[str, tuple[list[float], list[float]]] = {  # in it, and outside
    "temperature": ([0, -0.0, 0.7, 2], [-0.001, 2.001, NAN, INF, -INF]),
    "top_p": ([1e-9, 0.5, 1], [0, -0.1, 1.001, NAN, INF]),
    "presence_penalty": ([-2, 0, 2], [-2.001, 2.001, NAN, INF]),
    "frequency_penalty": ([-2, 0, 2], [-2.001, 2.001, NAN, -INF]),
    "max_tokens": ([1, 2**31 - 1], [0, -1]),
    "top_k": ([1, 2**31 - 1], [0, -1]),
    "seed": ([-(2**63), 0, 2**63 - 1], []),
    "top_logprobs": ([0, 20], [-1, 21]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (good, _) in RANGES.items() for value in good]
)
def test_a_value_within_its_range_arrives_as_it_was_sent(name: str, value: float) -> None:
    decoded = decode_chat(sampling(**{name: value}, logprobs=True)).sampling
    assert decoded == Sampling(**{name: value}, logprobs=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, bad) in RANGES.items() for value in bad]
)
def test_a_value_outside_its_range_is_rejected(name: str, value: float) -> None:
    (bad,) = failure(sampling(**{name: value}, logprobs=True)).violations
    assert bad.field == f"sampling.{name}"
    assert bad.description.endswith(f"not {value:g}")


def test_what_is_unset_stays_unset() -> None:
    call = decode_chat(chat())
    assert call.sampling == Sampling()
    assert call.target == Target(implied=True)
    assert (call.tools, call.tool_choice, call.response_format) == ((), None, None)
    assert (call.session_id, call.extra) == ("", {})


def test_a_whole_request_is_decoded() -> None:
    request = chat_pb2.ChatRequest(
        model="llama3.2:latest",
        integration_id="ollama",
        session_id="s" * 128,
        messages=[
            message(role="system", content="Be brief."),
            message(role="developer", content="Very."),
            message(
                role="user",
                name="Ada",
                parts=[
                    chat_pb2.ContentPart(text="What is this?"),
                    chat_pb2.ContentPart(image=chat_pb2.Image(url="data:image/png;base64,AA==")),
                    chat_pb2.ContentPart(
                        image=chat_pb2.Image(data=b"\x00", media_type="image/png")
                    ),
                ],
            ),
            message(role="assistant", tool_calls=[CALL]),
            message(role="tool", tool_call_id="1"),  # a tool may have nothing to say
        ],
        sampling=chat_pb2.SamplingOptions(
            temperature=0.7, max_tokens=5, stop=["a", "b"], logprobs=True, top_logprobs=2
        ),
        tools=[chat_pb2.Tool(name="now", description="The time."), TOOL],
        tool_choice=chat_pb2.ToolChoice(name="weather"),
        stream=chat_pb2.StreamOptions(max_delay_ms=1000),
    )
    call = decode_chat(request)
    assert call.target == Target("", "ollama", "llama3.2:latest", implied=True)
    assert call.session_id == "s" * 128
    assert call.messages == (
        Message("system", "Be brief."),
        Message("developer", "Very."),
        Message(
            "user",
            parts=(
                "What is this?",
                Image(url="data:image/png;base64,AA=="),
                Image(data=b"\x00", media_type="image/png"),
            ),
            name="Ada",
        ),
        Message("assistant", tool_calls=(ToolCall("1", "weather", "{}"),)),
        Message("tool", tool_call_id="1"),
    )
    assert call.image_path == "messages[2].parts[1].image"
    assert call.sampling == Sampling(
        0.7, max_tokens=5, stop=("a", "b"), logprobs=True, top_logprobs=2
    )
    assert call.tools == (Tool("now", "The time."), Tool("weather", "", {"type": "object"}))
    assert call.tool_choice == NamedTool("weather")


@pytest.mark.parametrize(
    ("mode", "with_tools", "without"),
    [
        (chat_pb2.ToolChoice.MODE_UNSPECIFIED, ToolMode.AUTO, None),
        (chat_pb2.ToolChoice.MODE_AUTO, ToolMode.AUTO, None),
        (chat_pb2.ToolChoice.MODE_NONE, ToolMode.NONE, None),
        (chat_pb2.ToolChoice.MODE_REQUIRED, ToolMode.REQUIRED, "rejected"),
    ],
)
def test_a_tool_mode_is_passed_on_where_there_are_tools(
    mode: chat_pb2.ToolChoice.Mode, with_tools: ToolMode, without: str | None
) -> None:
    assert decode_chat(tools(TOOL, mode=mode)).tool_choice is with_tools
    if without is None:
        assert decode_chat(tools(mode=mode)).tool_choice is None


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_decoded_number_by_number(strict: bool | None) -> None:
    described = chat_pb2.ResponseFormat.JsonSchema(
        name="person", schema_json='{"maxLength": 5, "multipleOf": 0.5}', strict=strict
    )
    decoded = decode_chat(chat(response_format=chat_pb2.ResponseFormat(json_schema=described)))
    expected = {"maxLength": 5, "multipleOf": 0.5}
    assert decoded.response_format == JsonSchemaFormat("person", expected, strict)
    assert isinstance(decoded.response_format, JsonSchemaFormat)
    assert type(decoded.response_format.schema["maxLength"]) is int


def test_the_other_formats_are_decoded() -> None:
    anything = chat_pb2.ResponseFormat(json_object=chat_pb2.ResponseFormat.JsonObject())
    text = chat_pb2.ResponseFormat(text=chat_pb2.ResponseFormat.Text())
    assert decode_chat(chat(response_format=anything)).response_format == JsonObjectFormat()
    assert decode_chat(chat(response_format=text)).response_format is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(r'{"a": "\ud800"}', id="half a character"),
        pytest.param('{"a": 1e999}', id="a number that is none"),
        pytest.param('{"a": NaN}', id="no number"),
        pytest.param('{"a": 1} x', id="more than one value"),
        pytest.param('{"a":' * 5000 + "1" + "}" * 5000, id="a deep nest"),
        pytest.param("\x00", id="a control character"),
    ],
)
def test_text_that_could_not_be_passed_on_is_not_json(text: str) -> None:
    (bad,) = failure(schema(text=text)).violations
    assert bad.field == SCHEMA
    assert bad.description.startswith("is not JSON: ")


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (4096, 4096),
        (-3, -3),
        (4096.0, 4096),  # a Struct does not know the difference
        (0.5, 0.5),
        (0.7, 0.7),
        (2**53, 2**53),
        (2.0**53 + 2, 2.0**53 + 2),
        (1e300, 1e300),
        (True, True),
        (None, None),
        ("4096", "4096"),
        ([1, [2, 0.5, [3]], {"a": 4}], [1, [2, 0.5, [3]], {"a": 4}]),
        ({"a": {"b": [5]}}, {"a": {"b": [5]}}),
    ],
)
def test_a_value_in_extra_arrives_as_json_would_have_it(sent: Any, arrives: Any) -> None:
    assert json.dumps(extra(sent)) == json.dumps(arrives)  # 4096 is not 4096.0 here


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_number_in_extra_that_json_cannot_say_is_told_with_its_path(number: float) -> None:
    struct = Struct()
    struct.update({"a": [1, {"b": number}]})
    (bad,) = failure(chat(extra=struct)).violations
    assert bad.field == "extra.a[1].b"
