"""OpenAI's requests as the contract's, the contract's answers as OpenAI's, and the errors."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.codec.failures_json import failure_document, openai_error
from atmosphere_grpc.codec.openai_paths import in_openai_terms
from atmosphere_grpc.codec.openai_requests import (
    decode_openai_chat,
    decode_openai_embeddings,
)
from atmosphere_grpc.codec.openai_responses import (
    Chunks,
    openai_completion,
    openai_embeddings,
    openai_models,
)
from atmosphere_grpc.codec.requests import decode_chat
from atmosphere_grpc.domain import Image, JsonSchemaFormat, NamedTool, ToolMode
from atmosphere_grpc.errors import HTTP_STATUS, TABLE, Failure, Reason, Violation, http_status
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
PIXEL = "data:image/png;base64,aaaa"


def chat(**fields: Any) -> Any:
    return decode_openai_chat({"messages": USER, **fields})


def refused(decode: Any, document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Failure) as caught:
        decode(document)
    return {item.field: item.description for item in caught.value.violations}


# --- requests ----------------------------------------------------------------------------------


def test_a_chat_with_all_that_the_contract_has() -> None:
    asked = chat(
        model="m",
        stream=True,
        stream_options={"include_usage": True},
        temperature=1,
        top_p=0.5,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        max_completion_tokens=7,
        top_k=3,
        seed=2**53 + 1,
        stop="end",
        logprobs=True,
        top_logprobs=2,
        n=1,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        integration_id="ollama",
        session_id="s1",
        think=False,
        user=None,
    )
    assert (asked.stream, asked.include_usage, asked.routed) == (True, True, False)
    call = decode_chat(asked.request)
    assert (call.target.model, call.target.integration_id) == ("m", "ollama")
    sampling = call.sampling
    assert (sampling.max_tokens, sampling.seed, sampling.stop) == (7, 2**53 + 1, ("end",))
    assert (sampling.top_k, sampling.logprobs, sampling.top_logprobs) == (3, True, 2)
    assert call.tools[0].parameters == {"type": "object"}
    assert call.tool_choice == NamedTool("add")
    assert call.response_format == JsonSchemaFormat("s", {"type": "object"}, True)
    assert call.session_id == "s1"
    assert call.extra == {"think": False}


def test_a_number_that_no_double_holds_is_told() -> None:
    told = refused(decode_openai_chat, {"messages": USER, "mine": {"a": 10**400}})
    assert told == {"mine.a": "must be a number that a double can hold"}


def test_messages_of_every_kind() -> None:
    function = {"name": "add", "arguments": "{}"}
    asked = decode_openai_chat(
        {
            "messages": [
                {"role": "developer", "content": "be terse"},
                {
                    "role": "user",
                    "name": "ann",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "reasoning_content": "hm",
                    "tool_calls": [{"id": "c1", "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "4"},
            ]
        }
    )
    call = decode_chat(asked.request)
    assert call.messages[1].parts == ("look", Image(PIXEL))
    assert call.messages[2].tool_calls[0].arguments_json == "{}"
    assert call.messages[3].tool_call_id == "c1"


@pytest.mark.parametrize(
    ("given_", "mode"),
    [("auto", ToolMode.AUTO), ("none", ToolMode.NONE), ("required", ToolMode.REQUIRED)],
)
def test_choices_of_a_tool(given_: str, mode: ToolMode) -> None:
    assert decode_chat(chat(tools=[TOOL], tool_choice=given_).request).tool_choice is mode


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]},
            "tools[0].function.strict",
        ),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "audio": {}}]}, "messages[0].audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "assistant", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_what_cannot_be_said_to_a_backend_is_refused(fields: dict[str, Any], field: str) -> None:
    assert field in refused(decode_openai_chat, {"messages": USER, **fields})


def test_auto_lets_the_router_decide_unless_the_integration_is_named() -> None:
    assert chat(model="auto").routed
    assert not chat(model="auto").request.model
    assert not chat(model="auto", integration_id="a").routed
    assert not chat().routed


@settings(deadline=None)  # other tests run beside
@given(
    st.dictionaries(
        st.sampled_from(
            "messages model stream stream_options tools tool_choice response_format stop n seed "
            "temperature max_tokens logprobs x".split()
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from("role content type function name url text x".split()), inner
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_comes_is_a_chat_or_a_failure(document: dict[str, Any]) -> None:
    try:
        decode_chat(decode_openai_chat(document).request)
    except Failure as failure:
        assert failure.reason == "INVALID_FIELD"  # noqa: PT017 - most of what comes is wrong


def test_embeddings_are_asked_for_one_text_or_several() -> None:
    assert list(decode_openai_embeddings({"input": "a"}).request.input) == ["a"]
    asked = decode_openai_embeddings({"input": ["a", "b"], "encoding_format": "base64"})
    assert list(asked.request.input) == ["a", "b"]
    assert asked.base64


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"input": [1, 2]}, "input"),
        ({"input": [[1]]}, "input"),
        ({"input": 1}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "user": "me"}, "user"),
        ({"input": "a", "dimensions": "x"}, "dimensions"),
    ],
)
def test_wrong_embeddings_are_refused(document: dict[str, Any], field: str) -> None:
    assert field in refused(decode_openai_embeddings, document)


# --- answers -----------------------------------------------------------------------------------


def events() -> list[chat_pb2.ChatResponse]:
    usage = chat_pb2.Usage(
        prompt_tokens=1, completion_tokens=2, total_tokens=3, source=chat_pb2.USAGE_SOURCE_REPORTED
    )
    call = chat_pb2.ToolCallDelta
    token = chat_pb2.TokenLogprob(token="a", logprob=-0.5, token_bytes=b"a")
    return [
        chat_pb2.ChatResponse(started=chat_pb2.Started(id="i", model="m", integration_id="x")),
        chat_pb2.ChatResponse(progress=chat_pb2.Progress()),
        chat_pb2.ChatResponse(delta=chat_pb2.Delta(reasoning="hm", logprobs=[token])),
        chat_pb2.ChatResponse(delta=chat_pb2.Delta(content="He")),
        chat_pb2.ChatResponse(
            delta=chat_pb2.Delta(
                content="y",
                tool_calls=[call(index=0, id="c", name="f", arguments_json_fragment="{")],
            )
        ),
        chat_pb2.ChatResponse(
            delta=chat_pb2.Delta(tool_calls=[call(index=0, arguments_json_fragment="}")])
        ),
        chat_pb2.ChatResponse(
            completed=chat_pb2.Completed(
                finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS, usage=usage
            )
        ),
    ]


def test_a_whole_answer() -> None:
    told = openai_completion(events())
    (choice,) = told["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hey",
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert choice["logprobs"]["content"][0]["bytes"] == [97]
    assert told["usage"]["total_tokens"] == 3
    assert told["atmosphere"]["integration_id"] == "x"
    assert told["atmosphere"]["usage_source"] == "USAGE_SOURCE_REPORTED"
    msgspec.json.encode(told)


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_pieces_of_an_answer(include_usage: bool) -> None:
    chunks = Chunks(include_usage=include_usage)
    told = [chunk for event in events() for chunk in chunks.of(event)]
    assert {chunk["object"] for chunk in told} == {"chat.completion.chunk"}
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = [chunk["choices"][0]["delta"].get("content", "") for chunk in told if chunk["choices"]]
    assert "".join(text) == "Hey"
    ends = [c["choices"][0]["finish_reason"] for c in told if c["choices"]]
    assert [item for item in ends if item] == ["tool_calls"]
    assert (told[-1]["choices"] == []) is include_usage
    assert all(("usage" in chunk) is include_usage for chunk in told)
    facts = [chunk["atmosphere"] for chunk in told if "atmosphere" in chunk]
    assert [item["usage_source"] for item in facts] == ["USAGE_SOURCE_REPORTED"]
    if include_usage:
        assert told[-1]["usage"]["completion_tokens"] == 2


def test_vectors_as_numbers_and_as_base64() -> None:
    response = execution_pb2.EmbedResponse(
        embeddings=[execution_pb2.Embedding(values=[0.5, -1.0])],
        model="m",
        usage=chat_pb2.Usage(source=chat_pb2.USAGE_SOURCE_ESTIMATED),
    )
    told = openai_embeddings(response, as_base64=False)
    assert told["atmosphere"]["usage_source"] == "USAGE_SOURCE_ESTIMATED"
    (plain,) = told["data"]
    assert plain["embedding"] == [0.5, -1.0]
    (packed,) = openai_embeddings(response, as_base64=True)["data"]
    assert struct.unpack("<2f", base64.b64decode(packed["embedding"])) == (0.5, -1.0)


def test_models_are_told_in_both_shapes_and_each_name_once() -> None:
    models = [execution_pb2.Model(id="a", integration_id=item) for item in ("x", "y")]
    told = openai_models(execution_pb2.ListModelsResponse(models=models))
    assert [item["owned_by"] for item in told["data"]] == ["x"]
    assert [item["integration_id"] for item in told["models"]] == ["x", "y"]


# --- errors ------------------------------------------------------------------------------------


def test_every_reason_has_a_status() -> None:
    assert {rule.code for rule in TABLE.values()} <= set(HTTP_STATUS)
    assert http_status(Reason.INTERNAL) == 500
    assert http_status(Reason.BACKEND_ERROR) == 502
    assert http_status(Reason.RATE_LIMITED) == 429


def test_a_failure_is_told_in_both_shapes() -> None:
    failure = Failure(
        Reason.INVALID_FIELD,
        "sampling.top_p: is \x00 wrong",
        violations=[Violation("sampling.top_p", "is wrong")],
        metadata={"a": "b"},
    )
    plain = failure_document(failure, "id-1")
    assert plain["success"] is False
    assert plain["error"] == "sampling.top_p: is   wrong"
    assert (plain["reason"], plain["code"]) == ("INVALID_FIELD", "INVALID_ARGUMENT")
    assert plain["violations"] == [{"field": "sampling.top_p", "description": "is wrong"}]
    assert (plain["metadata"], plain["request_id"]) == ({"a": "b"}, "id-1")
    error = openai_error(failure, "id-1")["error"]
    assert error["metadata"] == {"a": "b"}  # what was tried, for one
    assert error["message"] == "top_p: is   wrong"
    assert (error["param"], error["type"]) == ("top_p", "invalid_request_error")


@pytest.mark.parametrize(
    ("reason", "code", "kind"),
    [
        (Reason.CONTEXT_OVERFLOW, "context_length_exceeded", "invalid_request_error"),
        (Reason.UNAUTHENTICATED, "invalid_api_key", "authentication_error"),
        (Reason.RATE_LIMITED, "rate_limit_exceeded", "rate_limit_error"),
        (Reason.MODEL_NOT_FOUND, "model_not_found", "invalid_request_error"),
        (Reason.BACKEND_ERROR, "backend_error", "server_error"),
    ],
)
def test_openais_names_are_used_where_it_has_one(reason: Reason, code: str, kind: str) -> None:
    error = openai_error(Failure(reason, "no"), "id")["error"]
    assert (error["code"], error["type"]) == (code, kind)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sampling.max_tokens", "max_tokens"),
        ("extra.think", "think"),
        ("messages[1].parts[0].image.url", "messages[1].content[0].image_url.url"),
        ("messages[1].parts[0].text", "messages[1].content[0].text"),
        ("messages[0].tool_calls[2].name", "messages[0].tool_calls[2].function.name"),
        ("tools[0].parameters_json", "tools[0].function.parameters"),
        ("tool_choice.name", "tool_choice.function.name"),
        ("response_format.json_schema.schema_json", "response_format.json_schema.schema"),
        ("model", "model"),
    ],
)
def test_fields_are_called_as_the_request_called_them(path: str, told: str) -> None:
    assert in_openai_terms(path) == told
