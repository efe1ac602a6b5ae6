"""Requests, channels and calls from the arguments of the Python client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from atmosphere_client import AtmosphereClient
from atmosphere_client import _messages as convert
from atmosphere_client._call import CallOptions, GenerateOptions, prepare
from atmosphere_client._connection import Connection, connection, is_loopback
from atmosphere_client._request import chat, embed, intent
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

CONNECTION: dict[str, Any] = {
    "tls": False,
    "ca_certificate": None,
    "client_certificate": None,
    "client_key": None,
    "token": None,
    "allow_insecure_token": False,
    "options": None,
    "brings_channel": False,
}
CHAT: dict[str, Any] = {
    "model": "",
    "integration": "",
    "tools": (),
    "tool_choice": None,
    "response_format": None,
    "session_id": "",
    "max_delay_ms": 0,
    "extra": None,
    "options": {},
}
BEARER = "hush-hush"
INTENT: dict[str, Any] = {
    "kwargs": None,
    "capability": "",
    "integration": "",
    "model": "",
    "route": "",
    "options": {},
}


def connect(target: str = "127.0.0.1:1", **changed: Any) -> Connection:
    return connection(target, **{**CONNECTION, **changed})


def ask(messages: Any = "hi", **changed: Any) -> chat_pb2.ChatRequest:
    return chat(messages, **{**CHAT, **changed})


def as_dict(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


# Messages


def test_a_string_is_what_the_user_says() -> None:
    assert list(ask("hi").messages) == [chat_pb2.Message(role="user", content="hi")]


def test_messages_may_be_dictionaries_or_protobuf() -> None:
    proto = chat_pb2.Message(role="user", content="b")
    assert list(ask([{"role": "system", "content": "a"}, proto]).messages) == [
        chat_pb2.Message(role="system", content="a"),
        proto,
    ]


def test_a_single_message_needs_no_list() -> None:
    assert as_dict(ask({"role": "user", "content": "a"}))["messages"] == [
        {"role": "user", "content": "a"}
    ]


def test_a_conversation_with_tools_in_openais_shape_is_understood() -> None:
    messages = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "2", "name": "g", "arguments": {"b": "ü"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42", "name": "f"},
    ]
    assert as_dict(ask(messages))["messages"] == [
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "name": "f", "arguments_json": '{"a":1}'},
                {"id": "2", "name": "g", "arguments_json": '{"b": "ü"}'},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42", "name": "f"},
    ]


def test_a_content_may_have_parts() -> None:
    image = chat_pb2.Image(data=b"png", media_type="image/png")
    content = [
        "a",
        {"text": "b"},
        {"type": "text", "text": "c"},
        {"image": {"data": b"png", "media_type": "image/png"}},
        {"image": image},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"image": "https://x/y.png"},
        chat_pb2.ContentPart(text="d"),
    ]
    by_url = chat_pb2.ContentPart(image=chat_pb2.Image(url="https://x/y.png"))
    assert list(ask([{"role": "user", "content": content}]).messages[0].parts) == [
        chat_pb2.ContentPart(text="a"),
        chat_pb2.ContentPart(text="b"),
        chat_pb2.ContentPart(text="c"),
        chat_pb2.ContentPart(image=image),
        chat_pb2.ContentPart(image=image),
        by_url,
        by_url,
        chat_pb2.ContentPart(text="d"),
    ]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "contents": "a"}, "messages[0].contents"),
        ({"role": "user", "content": [{"text": "a", "x": 1}]}, "messages[0].content[0].x"),
        ({"role": "user", "content": [{"type": "audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "image": "u"}]}, "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"image_url": {"url": "u", "detail": "low"}}]},
            "messages[0].content[0].image_url.detail",
        ),
        ({"role": "user", "content": [{"image": {}}]}, "messages[0].content[0].image"),
        ({"role": "user", "content": ["a"], "parts": ["b"]}, "messages[0]"),
        ({"role": "a", "tool_calls": [{"nam": "f"}]}, "messages[0].tool_calls[0].nam"),
        (
            {"role": "a", "tool_calls": [{"type": "x", "function": {}}]},
            "messages[0].tool_calls[0].type",
        ),
    ],
)
def test_what_is_not_known_in_a_message_is_named(message: Any, named: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 – the text is checked below
        ask([message])
    assert str(error.value).startswith(f"{named}:")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("hi", "messages[0]"),
        ({"role": 1}, "messages[0].role"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": b"x"}, "messages[0].content"),
        ({"role": "user", "content": [{"image": {"data": "x"}}]}, "messages[0].content[0].image"),
        ({"role": "a", "tool_calls": [{"arguments": 1}]}, "messages[0].tool_calls[0].arguments"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(message: Any, named: str) -> None:
    with pytest.raises(TypeError) as error:
        ask([message])
    assert str(error.value).startswith(named)


# Tools and formats


def test_tools_may_be_dictionaries_or_protobuf() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    flat = {"name": "f", "description": "d", "parameters": schema}
    proto = chat_pb2.Tool(
        name="f",
        description="d",
        parameters_json='{"type": "object", "properties": {"n": {"type": "integer",'
        ' "minimum": 1}}}',
    )
    assert list(ask(tools=[flat, {"type": "function", "function": flat}, proto]).tools) == [
        proto,
        proto,
        proto,
    ]


def test_an_unknown_key_of_a_tool_is_named() -> None:
    with pytest.raises(ValueError, match=r"tools\[0\]\.stricter: not known"):
        ask(tools=[{"name": "f", "stricter": True}])


def test_a_tool_says_whether_it_is_strict() -> None:
    for strict in (True, False):
        assert ask(tools=[{"name": "f", "strict": strict}]).tools[0].strict is strict
    assert not ask(tools=[{"name": "f"}]).tools[0].HasField("strict")
    with pytest.raises(TypeError, match=r"tools\[0\]\.strict: expected a bool"):
        ask(tools=[{"name": "f", "strict": "yes"}])


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("auto", chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO)),
        ("none", chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NONE)),
        ("required", chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED)),
        ({"name": "auto"}, chat_pb2.ToolChoice(name="auto")),
        ({"type": "function", "function": {"name": "f"}}, chat_pb2.ToolChoice(name="f")),
    ],
)
def test_a_tool_choice_is_a_mode_or_a_tool(value: Any, choice: chat_pb2.ToolChoice) -> None:
    assert ask(tool_choice=value).tool_choice == choice


def test_an_unknown_tool_choice_says_how_to_name_a_tool() -> None:
    with pytest.raises(ValueError, match=r"'f' is not one of auto, none, required"):
        convert.tool_choice("f")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", {"text": {}}),
        ({"type": "text"}, {"text": {}}),
        ("json_object", {"json_object": {}}),
        ({"type": "json_object"}, {"json_object": {}}),
        (
            {"type": "object"},
            {"json_schema": {"name": "response", "schema_json": '{"type": "object"}'}},
        ),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": False},
            },
            {"json_schema": {"name": "n", "schema_json": '{"type": "array"}', "strict": False}},
        ),
    ],
)
def test_a_response_format_is_a_word_a_schema_or_openais_shape(value: Any, expected: Any) -> None:
    assert as_dict(ask(response_format=value).response_format) == expected


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("yaml", "response_format"),
        ({"type": "text", "x": 1}, "response_format.x"),
        ({"type": "json_schema", "schema": {}}, "response_format.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "description": ""}},
            "response_format.json_schema.description",
        ),
    ],
)
def test_what_is_not_known_in_a_format_is_named(value: Any, named: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 – the text is checked below
        ask(response_format=value)
    assert str(error.value).startswith(f"{named}:")


# Whole requests


def test_what_is_not_given_is_not_sent() -> None:
    assert as_dict(ask()) == {"messages": [{"role": "user", "content": "hi"}]}
    assert not intent(execution_pb2.ExecuteRequest, "", **INTENT).ListFields()


def test_a_chat_carries_all_that_is_given() -> None:
    request = ask(
        model="m",
        integration="i",
        session_id="s",
        max_delay_ms=20,
        extra={"mirostat": 2, "nested": {"list": [1, "a", None, True]}},
    )
    assert as_dict(request) == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "m",
        "integration_id": "i",
        "session_id": "s",
        "stream": {"max_delay_ms": 20},
        "extra": {"mirostat": 2.0, "nested": {"list": [1.0, "a", None, True]}},
    }


def test_sampling_keeps_zero_and_leaves_none_out() -> None:
    options = {
        "temperature": 0,
        "seed": 0,
        "stop": "x",
        "logprobs": False,
        "max_tokens": None,
        "timeout": 3,
    }
    sampling = ask(options=options).sampling
    assert {field.name for field, _ in sampling.ListFields()} == {
        "temperature",
        "seed",
        "stop",
        "logprobs",
    }
    assert list(sampling.stop) == ["x"]


def test_sampling_takes_all_that_the_contract_has() -> None:
    values: dict[str, Any] = dict.fromkeys(chat_pb2.SamplingOptions.DESCRIPTOR.fields_by_name, 1)
    values |= {"stop": ["a", "b"], "logprobs": True}
    sampling = ask(options=values).sampling
    assert {field.name: value for field, value in sampling.ListFields()} == values


@pytest.mark.parametrize(
    ("options", "named"),
    [({"temperature": "hot"}, "temperature"), ({"max_tokens": 2**40}, "max_tokens")],
)
def test_a_bad_sampling_value_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{named}: "):
        ask(options=options)


@pytest.mark.parametrize("kind", [execution_pb2.ExecuteRequest, execution_pb2.RouteRequest])
def test_execute_and_route_carry_the_same(kind: Any) -> None:
    request = intent(
        kind,
        "sum up",
        kwargs={"text": "long", "max_tokens": 5},
        capability="chat",
        integration="i",
        model="m",
        route="r",
        options={"top_k": 3},
    )
    assert as_dict(request) == {
        "intent": "sum up",
        "kwargs": {"text": "long", "max_tokens": 5.0},
        "capability": "chat",
        "integration_id": "i",
        "model": "m",
        "sampling": {"top_k": 3},
        "route": "r",
    }


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [0, {"b": 2**53 + 1}]}, "kwargs.a[1].b"),
        ({"a": float("nan")}, "kwargs.a"),
        ({"a": b"x"}, "kwargs.a"),
        ({"a": object()}, "kwargs.a"),
        ({1: "x"}, "kwargs"),
    ],
)
def test_what_json_cannot_carry_exactly_is_named(value: Any, named: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        intent(execution_pb2.ExecuteRequest, "", **{**INTENT, "kwargs": value})
    assert str(error.value).startswith(f"{named}:")


def test_one_text_or_several_are_embedded() -> None:
    options: dict[str, Any] = {"model": "", "integration": "", "dimensions": None}
    assert list(embed("a", **options).input) == ["a"]
    assert list(embed(("a", "b"), **options).input) == ["a", "b"]
    assert not embed("a", **options).HasField("dimensions")


# The channel


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:50051",
        "127.9.9.9",
        "localhost:50051",
        "LocalHost",
        "[::1]:50051",
        "::1",
        "unix:/run/a.sock",
        "unix:///run/a.sock",
        "unix-abstract:a",
        "dns:localhost:1",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
    ],
)
def test_a_target_on_this_machine_is_known(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:50051",
        "0.0.0.0:1",
        "example.org:443",
        "localhost.example.org:1",
        "127.0.0.1.example.org:1",
        "dns:///example.org:1",
        "dns://10.0.0.1/localhost:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "[::2]:1",
        "xds:///localhost",
        "",
    ],
)
def test_a_target_elsewhere_is_known(target: str) -> None:
    assert not is_loopback(target)


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ValueError, match=r"in the clear to example\.org:1; set tls=True"):
        AtmosphereClient("example.org:1", token=BEARER)
    for allowed in ({"tls": True}, {"allow_insecure_token": True}):
        assert connect("example.org:1", token=BEARER, **allowed).metadata == (
            ("authorization", f"Bearer {BEARER}"),
        )


def test_an_api_key_is_sent_by_its_own_name() -> None:
    assert connect("localhost:1", api_key=BEARER).metadata == (("x-api-key", BEARER),)
    with pytest.raises(ValueError, match=r"^api_key: would be sent in the clear to example\.org:1"):
        AtmosphereClient("example.org:1", api_key=BEARER)
    with pytest.raises(ValueError, match="token and api_key exclude each other"):
        connect(token=BEARER, api_key=BEARER)
    with pytest.raises(ValueError, match=r"^api_key: must be printable") as error:
        connect(api_key=f"{BEARER}\n")
    assert BEARER not in str(error.value)


@pytest.mark.parametrize("token", ["", "secret\n", "sec ret", "sécret"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^token: ") as error:
        connect(token=token)
    assert not token or token not in str(error.value)


def test_a_connection_does_not_show_its_token() -> None:
    made = connect(token=BEARER)
    call = prepare({}, CallOptions, timeout=None, metadata=made.metadata)
    assert BEARER not in repr(made) + repr(call)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ca_certificate": b"x"}, "tls is off"),
        ({"tls": True, "client_key": b"x"}, "go together"),
        ({"brings_channel": True, "tls": True}, "channel: it brings its own"),
        ({"brings_channel": True, "options": {}}, "channel: it brings its own"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        connect(**changed)


def test_a_url_is_no_target() -> None:
    with pytest.raises(ValueError, match="is a URL; give host:port"):
        connect("http://localhost:50051")


def test_a_certificate_is_read_from_its_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(tls=True, ca_certificate=tmp_path / "missing.pem")
    (tmp_path / "ca.pem").write_bytes(b"pem")
    assert connect(tls=True, ca_certificate=str(tmp_path / "ca.pem")).credentials is not None


def test_options_of_the_caller_win() -> None:
    options = dict(connect(options={"grpc.keepalive_time_ms": 7, "grpc.x": 1}).options)
    assert (options["grpc.keepalive_time_ms"], options["grpc.x"]) == (7, 1)
    assert options["grpc.max_receive_message_length"] == 16 * 1024 * 1024


def test_the_service_config_has_no_timeout_and_repeats_nothing_that_generates() -> None:
    config = str(dict(connect().options)["grpc.service_config"])
    assert "timeout" not in config
    assert all(name not in config for name in ("Chat", "Execute", "TestIntegration"))


# What a call carries


def test_a_call_falls_back_on_the_clients_timeout() -> None:
    def timeout(options: CallOptions) -> float | None:
        call = prepare(options, CallOptions, timeout=5, metadata=())
        return call.arguments().get("timeout")

    assert timeout({}) == pytest.approx(5, abs=1)
    assert timeout({"timeout": 60}) == pytest.approx(60, abs=1)
    assert timeout({"timeout": None}) is None


def test_metadata_of_a_call_wins_over_the_clients() -> None:
    call = prepare(
        {"metadata": {"Authorization": "Bearer b", "x-bin": b"\0"}, "request_id": "r"},
        GenerateOptions,
        timeout=None,
        metadata=(("authorization", "Bearer a"), ("x-a", "1")),
    )
    assert call.arguments() == {
        "metadata": (
            ("x-a", "1"),
            ("authorization", "Bearer b"),
            ("x-bin", b"\0"),
            ("x-request-id", "r"),
        )
    }


@pytest.mark.parametrize(
    "metadata",
    [{"a b": "x"}, {"a": "line\nbreak"}, {"a": b"bytes"}, {"a-bin": "text"}, [("", "x")]],
)
def test_metadata_that_cannot_be_sent_is_refused(metadata: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="metadata: "):
        prepare({"metadata": metadata}, CallOptions, timeout=None, metadata=())


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        prepare({"temprature": 1}, GenerateOptions, timeout=None, metadata=())


# What it depends on


def test_the_client_needs_only_grpc_and_protobuf() -> None:
    program = """
import sys, atmosphere_client
unwanted = "httpx", "pydantic", "aiohttp", "typer", "google.rpc", "grpc_health.", "yaml", "msgspec"
found = [name for name in sys.modules if name.startswith(unwanted)]
found += [n for n in sys.modules if n.startswith("atmosphere_grpc.") and ".v1" not in n]
print(*found)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
