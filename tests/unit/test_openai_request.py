"""Every field of a call, as JSON of the OpenAI dialect."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from typing import Any

import pytest

from atmosphere_grpc.backends.openai_request import (
    OWN_CHAT_FIELDS,
    OWN_EMBED_FIELDS,
    chat_body,
    embed_body,
)
from atmosphere_grpc.backends.parameters import Dialect
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
    ToolCall,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason

HI = Message("user", "Hi")
CALL = ChatCall(Target(), (HI,))
EMBED = EmbedCall(Target(), ("a", "b"))
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}}
SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "max_tokens": 16,
    "top_k": 40,
    "seed": 2**62 + 1,
    "stop": ("###", "\n"),
    "logprobs": True,
    "top_logprobs": 3,
}


def body(call: ChatCall = CALL, **changes: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(chat_body(Dialect.OPENAI, "m", replace(call, **changes)))
    return decoded


def message(sent: Message) -> Any:
    return body(messages=(sent,))["messages"][0]


def test_a_call_with_nothing_set_sends_nothing_but_the_stream_and_its_usage() -> None:
    assert body() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_there_is_a_value_for_each_way_of_sampling() -> None:
    assert SAMPLING.keys() == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sampling_option_is_sent_under_its_name_and_no_other(name: str) -> None:
    value = SAMPLING[name]
    sent = body(sampling=Sampling(**{name: value}))
    assert {key: sent[key] for key in sent.keys() - body().keys()} == {
        name: list(value) if name == "stop" else value
    }


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "seed", "top_k"])
def test_zero_is_a_value(name: str) -> None:
    zero: Any = 0
    assert body(sampling=Sampling(**{name: zero}))[name] == 0


def test_false_is_a_value() -> None:
    assert body(sampling=Sampling(logprobs=False))["logprobs"] is False


def test_numbers_keep_their_kind_and_all_their_digits() -> None:
    sampling = Sampling(temperature=0.7, max_tokens=16, seed=2**62 + 1, top_k=1)
    text = chat_body(
        Dialect.OPENAI, "m", replace(CALL, sampling=sampling, extra={"n_ctx": 4096, "x": 0.1})
    )
    for part in (
        b'"temperature":0.7,',
        b'"max_tokens":16,',
        b'"seed":4611686018427387905',
        b'"n_ctx":4096,',
        b'"x":0.1',
        b'"top_k":1,',
    ):
        assert part in text


def test_a_conversation_keeps_its_order_roles_names_and_characters() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("developer", "Be kind."),
        Message("user", "Grüße 😀\0\n", name="ada"),
        Message("assistant", ""),
    )
    assert body(messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Grüße 😀\0\n", "name": "ada"},
        {"role": "assistant", "content": ""},
    ]


def test_texts_and_images_are_parts_and_an_images_bytes_a_data_url() -> None:
    picture = b"\x89PNG\xff\xfe"
    parts = ("What is", Image(data=picture, media_type="image/png"), Image(url="https://x/y.jpg"))
    data_url = "data:image/png;base64," + base64.b64encode(picture).decode()
    assert message(Message("user", parts=parts)) == {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is"},
            {"type": "image_url", "image_url": {"url": data_url}},
            {"type": "image_url", "image_url": {"url": "https://x/y.jpg"}},
        ],
    }


def test_an_assistants_tool_calls_have_null_content_and_arguments_as_the_model_wrote_them() -> None:
    calls = (ToolCall("c1", "now", "{}"), ToolCall("c2", "weather", '{"city": "Paris"'))
    assert message(Message("assistant", tool_calls=calls)) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            {
                "id": "c2",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Paris"'},
            },
        ],
    }


def test_an_assistants_words_beside_its_tool_calls_are_kept() -> None:
    sent = message(Message("assistant", "Wait.", tool_calls=(ToolCall("c1", "now", "{}"),)))
    assert sent["content"] == "Wait."
    assert len(sent["tool_calls"]) == 1


def test_a_tools_answer_names_its_call_and_may_be_empty() -> None:
    assert message(Message("tool", "", tool_call_id="c1")) == {
        "role": "tool",
        "content": "",
        "tool_call_id": "c1",
    }


def test_a_tool_has_its_schema_as_it_was_and_only_what_is_set() -> None:
    tools = (Tool("now"), Tool("count", "Counts.", SCHEMA), Tool("none", parameters={}))
    assert body(tools=tools)["tools"] == [
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "function",
            "function": {"name": "count", "description": "Counts.", "parameters": SCHEMA},
        },
        {"type": "function", "function": {"name": "none", "parameters": {}}},
    ]
    assert b'"maximum":5}' in chat_body(Dialect.OPENAI, "m", replace(CALL, tools=tools))


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolMode.AUTO, "auto"),
        (ToolMode.NONE, "none"),
        (ToolMode.REQUIRED, "required"),
        (NamedTool("now"), {"type": "function", "function": {"name": "now"}}),
    ],
)
def test_a_tool_choice_is_a_word_or_a_name(choice: ToolMode | NamedTool, sent: Any) -> None:
    assert body(tools=(Tool("now"),), tool_choice=choice)["tool_choice"] == sent


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        (JsonObjectFormat(), {"type": "json_object"}),
        (
            JsonSchemaFormat("n", SCHEMA),
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        ),
        (
            JsonSchemaFormat("n", SCHEMA, strict=False),
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMA, "strict": False},
            },
        ),
    ],
)
def test_a_response_format_is_sent_with_its_schema(
    form: JsonObjectFormat | JsonSchemaFormat, sent: Any
) -> None:
    assert body(response_format=form)["response_format"] == sent


def test_extra_fields_are_sent_as_they_are() -> None:
    extra = {"cache_prompt": True, "variables": {"n": 3, "list": [1, 2.5, None]}}
    assert body(extra=extra).items() >= extra.items()


@pytest.mark.parametrize("name", sorted(OWN_CHAT_FIELDS))
def test_extra_cannot_set_a_field_of_the_chat_itself(name: str) -> None:
    with pytest.raises(Failure) as caught:
        chat_body(Dialect.OPENAI, "m", replace(CALL, extra={name: 1, "fine": 2}))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [f"extra.{name}"]


def test_every_field_that_a_chat_can_send_is_guarded_against_extra() -> None:
    everything = replace(
        CALL,
        sampling=Sampling(**SAMPLING),
        tools=(Tool("now"),),
        tool_choice=ToolMode.AUTO,
        response_format=JsonObjectFormat(),
    )
    assert body(everything).keys() <= OWN_CHAT_FIELDS


def test_all_conflicts_of_extra_are_told_at_once() -> None:
    with pytest.raises(Failure) as caught:
        chat_body(Dialect.OPENAI, "m", replace(CALL, extra={"stream": False, "model": "x"}))
    fields_at_fault = [violation.field for violation in caught.value.violations]
    assert fields_at_fault == ["extra.model", "extra.stream"]
    assert "extra.model" in caught.value.message


def test_a_session_is_rejected_rather_than_forgotten() -> None:
    with pytest.raises(Failure) as caught:
        chat_body(Dialect.OPENAI, "m", replace(CALL, session_id="s1"))
    assert caught.value.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in caught.value.violations] == ["session_id"]


def test_texts_are_embedded_as_a_list_of_floats() -> None:
    assert json.loads(embed_body(Dialect.OPENAI, "m", EMBED)) == {
        "model": "m",
        "input": ["a", "b"],
        "encoding_format": "float",
    }


def test_dimensions_and_extra_fields_of_an_embedding_are_sent() -> None:
    sent = json.loads(
        embed_body(Dialect.OPENAI, "m", replace(EMBED, dimensions=64, extra={"truncate": True}))
    )
    assert sent["dimensions"] == 64
    assert sent["truncate"] is True


@pytest.mark.parametrize("name", sorted(OWN_EMBED_FIELDS))
def test_extra_cannot_set_a_field_of_the_embedding_itself(name: str) -> None:
    with pytest.raises(Failure) as caught:
        embed_body(Dialect.OPENAI, "m", replace(EMBED, extra={name: 1}))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [f"extra.{name}"]


def test_every_field_of_an_embedding_is_guarded_against_extra() -> None:
    assert (
        json.loads(embed_body(Dialect.OPENAI, "m", replace(EMBED, dimensions=1))).keys()
        <= OWN_EMBED_FIELDS
    )


def test_every_field_of_a_call_is_one_that_these_tests_know() -> None:
    """A field that is added needs its JSON, and a test here."""
    assert {field.name for field in fields(ChatCall)} == {
        *("target", "messages", "sampling", "tools", "tool_choice", "response_format"),
        *("session_id", "extra"),
        *("extra_path", "sampling_fields"),  # of no backend: where the request has them
        *("messages_path", "messages_before"),  # likewise
    }
    assert {field.name for field in fields(Message)} == {
        *("role", "content", "parts", "name", "tool_calls", "tool_call_id"),
        "reasoning",  # of answers only: the codec rejects it in a request
    }
    assert {field.name for field in fields(EmbedCall)} == {
        *("target", "input", "dimensions", "extra", "extra_path")
    }
