"""Every field of a call, as JSON of Ollama's own API."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from typing import Any

import pytest

from atmosphere_grpc.backends.ollama_request import (
    CHAT_FIELDS,
    EMBED_FIELDS,
    LOAD_OPTIONS,
    OPTIONS,
    OWN_FIELDS,
    SHARED_FIELDS,
    TYPED_OPTIONS,
    chat_body,
    embed_body,
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
    ToolCall,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason

HI = Message("user", "Hi")
CALL = ChatCall(Target(), (HI,))
EMBED = EmbedCall(Target(), ("a", "b"))
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}}
PICTURE = b"\x89PNG\xff\xfe"
PICTURE_64 = base64.b64encode(PICTURE).decode()
#: A value of each way of sampling, and where it goes.
SAMPLING: dict[str, tuple[Any, str]] = {
    "temperature": (0.7, "options.temperature"),
    "top_p": (0.9, "options.top_p"),
    "presence_penalty": (-0.5, "options.presence_penalty"),
    "frequency_penalty": (0.25, "options.frequency_penalty"),
    "max_tokens": (16, "options.num_predict"),
    "top_k": (40, "options.top_k"),
    "seed": (2**62 + 1, "options.seed"),
    "stop": (("###", "\n"), "options.stop"),
    "logprobs": (True, "logprobs"),
    "top_logprobs": (3, "top_logprobs"),
}


def body(call: ChatCall = CALL, num_ctx: int | None = None, **changes: Any) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(chat_body("m", replace(call, **changes), num_ctx))
    return sent


def embed(num_ctx: int | None = None, **changes: Any) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(embed_body("m", replace(EMBED, **changes), num_ctx))
    return sent


def message(sent: Message) -> Any:
    return body(messages=(sent,))["messages"][0]


def added(sent: dict[str, Any]) -> dict[str, Any]:
    """What a chat's body has beside what each has."""
    return {key: value for key, value in sent.items() if key not in body()}


def refused(**changes: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        body(**changes)
    return caught.value


def at_fault(failure: Failure) -> list[str]:
    return [violation.field for violation in failure.violations]


def test_a_call_with_nothing_set_is_a_stream_that_cuts_no_prompt_and_nothing_else() -> None:
    assert body() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "truncate": False,
    }


# --- sampling ----------------------------------------------------------------------------------


def test_there_is_a_value_for_each_way_of_sampling() -> None:
    assert SAMPLING.keys() == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_way_of_sampling_goes_to_its_own_place_and_to_no_other(name: str) -> None:
    value, path = SAMPLING[name]
    *parents, last = path.split(".")
    expected: Any = {last: list(value) if name == "stop" else value}
    for parent in parents:
        expected = {parent: expected}
    assert added(body(sampling=Sampling(**{name: value}))) == expected


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "seed"])
def test_zero_is_a_value(name: str) -> None:
    zero: Any = 0
    assert body(sampling=Sampling(**{name: zero}))["options"] == {name: 0}


def test_false_is_a_value() -> None:
    assert body(sampling=Sampling(logprobs=False))["logprobs"] is False


def test_numbers_keep_their_kind_and_all_their_digits() -> None:
    text = chat_body(
        "m", replace(CALL, sampling=Sampling(temperature=0.7, max_tokens=16, seed=2**62 + 1)), 4096
    )
    for part in (
        b'"temperature":0.7',
        b'"num_predict":16',
        b'"seed":4611686018427387905',
        b'"num_ctx":4096',
    ):
        assert part in text


def test_the_context_goes_with_the_options() -> None:
    assert added(body(num_ctx=8192)) == {"options": {"num_ctx": 8192}}
    sent = body(num_ctx=8192, sampling=Sampling(seed=1), extra={"options": {"min_p": 0.1}})
    assert sent["options"] == {"seed": 1, "num_ctx": 8192, "min_p": 0.1}


# --- messages ----------------------------------------------------------------------------------


def test_a_conversation_keeps_its_order_and_characters_and_a_developer_is_the_system() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("developer", "Be kind."),
        Message("user", "Grüße 😀\0\n"),
        Message("assistant", ""),
    )
    assert body(messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Grüße 😀\0\n"},
        {"role": "assistant", "content": ""},
    ]


def test_a_messages_name_is_refused() -> None:
    failure = refused(messages=(HI, Message("user", "Hi", name="ada")))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["messages[1].name"]


def test_texts_are_joined_by_lines_and_images_are_base64_of_their_own() -> None:
    parts = (
        "What is",
        Image(data=PICTURE, media_type="image/png"),
        "this?",
        Image(url=f"data:image/png;base64,{PICTURE_64}"),
    )
    assert message(Message("user", parts=parts)) == {
        "role": "user",
        "content": "What is\nthis?",
        "images": [PICTURE_64, PICTURE_64],
    }


def test_a_picture_alone_has_no_words() -> None:
    sent = message(Message("user", parts=(Image(data=PICTURE, media_type="image/png"),)))
    assert sent == {"role": "user", "content": "", "images": [PICTURE_64]}


def test_a_pictures_address_is_refused_since_ollama_fetches_none() -> None:
    failure = refused(messages=(Message("user", parts=("a", Image(url="https://x/y.jpg"))),))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["messages[0].parts[1].image"]
    assert "data" in failure.message


@pytest.mark.parametrize(
    "url", ["data:image/png,%89PNG", "data:,", "data:", "data:image/svg+xml;utf8,<svg/>"]
)
def test_a_data_url_that_is_not_base64_is_rejected_rather_than_sent_as_if_it_were(
    url: str,
) -> None:
    failure = refused(messages=(HI, Message("user", parts=("a", Image(url=url)))))
    assert failure.reason is Reason.INVALID_FIELD
    assert at_fault(failure) == ["messages[1].parts[1].image"]


# --- tool calls --------------------------------------------------------------------------------


def test_a_tool_call_has_its_arguments_as_an_object() -> None:
    calls = (ToolCall("c1", "now", ""), ToolCall("c2", "weather", '{"city": "Paris", "n": [1.0]}'))
    assert message(Message("assistant", "Wait.", tool_calls=calls)) == {
        "role": "assistant",
        "content": "Wait.",
        "tool_calls": [
            {"id": "c1", "function": {"name": "now", "arguments": {}}},
            {
                "id": "c2",
                "function": {"name": "weather", "arguments": {"city": "Paris", "n": [1.0]}},
            },
        ],
    }


@pytest.mark.parametrize("text", ["[]", '"a"', "7", "null", '{"city": ', "Paris", "[" * 60_000])
def test_arguments_that_are_no_object_are_rejected_by_name(text: str) -> None:
    calls = (ToolCall("c1", "now", "{}"), ToolCall("c2", "weather", text))
    failure = refused(messages=(HI, Message("assistant", tool_calls=calls)))
    assert failure.reason is Reason.INVALID_FIELD
    assert at_fault(failure) == ["messages[1].tool_calls[1].arguments_json"]


def test_all_arguments_that_are_no_object_are_told_at_once() -> None:
    bad = Message("assistant", tool_calls=(ToolCall("c1", "a", "1"), ToolCall("c2", "b", "2")))
    assert at_fault(refused(messages=(bad, HI, bad))) == [
        f"messages[{i}].tool_calls[{j}].arguments_json" for i in (0, 2) for j in (0, 1)
    ]


def test_a_tools_answer_names_its_call_and_its_tool_and_may_be_empty() -> None:
    calls = (ToolCall("c1", "now", "{}"), ToolCall("c2", "weather", "{}"))
    messages = (
        Message("assistant", tool_calls=calls),
        Message("tool", "22 °C", tool_call_id="c2"),
        Message("tool", "", tool_call_id="c1"),
    )
    assert body(messages=messages)["messages"][1:] == [
        {"role": "tool", "content": "22 °C", "tool_call_id": "c2", "tool_name": "weather"},
        {"role": "tool", "content": "", "tool_call_id": "c1", "tool_name": "now"},
    ]


def test_an_id_that_two_turns_share_names_the_tool_of_its_own_turn() -> None:
    """Ids made for servers that give none begin anew with each answer: `call_0`."""
    messages = (
        Message("assistant", tool_calls=(ToolCall("call_0", "now", "{}"),)),
        Message("tool", "noon", tool_call_id="call_0"),
        Message("assistant", tool_calls=(ToolCall("call_0", "weather", "{}"),)),
        Message("tool", "22 °C", tool_call_id="call_0"),
    )
    sent = body(messages=messages)["messages"]
    assert [sent[1]["tool_name"], sent[3]["tool_name"]] == ["now", "weather"]


def test_an_answer_to_a_call_that_is_not_there_has_no_tools_name() -> None:
    assert not message(Message("tool", "x", tool_call_id="c9"))["tool_name"]


def test_a_tool_has_its_schema_as_it_was_and_only_what_is_set() -> None:
    tools = (Tool("now"), Tool("count", "Counts.", SCHEMA))
    assert body(tools=tools)["tools"] == [
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "function",
            "function": {"name": "count", "description": "Counts.", "parameters": SCHEMA},
        },
    ]


def test_the_choice_of_tools_has_no_field_automatic_needs_none_and_none_leaves_them_out() -> None:
    tools = (Tool("now"),)
    assert added(body(tools=tools, tool_choice=ToolMode.AUTO)).keys() == {"tools"}
    assert added(body(tools=tools, tool_choice=ToolMode.NONE)) == {}


@pytest.mark.parametrize("choice", [ToolMode.REQUIRED, NamedTool("now")])
def test_a_call_cannot_be_demanded(choice: ToolMode | NamedTool) -> None:
    failure = refused(tools=(Tool("now"),), tool_choice=choice)
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["tool_choice"]


# --- formats and sessions ----------------------------------------------------------------------


def test_a_format_is_the_word_json_or_the_schema_itself() -> None:
    assert added(body(response_format=JsonObjectFormat())) == {"format": "json"}
    assert added(body(response_format=JsonSchemaFormat("n", SCHEMA))) == {"format": SCHEMA}


@pytest.mark.parametrize("strict", [True, False])
def test_how_strict_a_schema_is_cannot_be_said(strict: bool) -> None:
    failure = refused(response_format=JsonSchemaFormat("n", SCHEMA, strict=strict))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["response_format.json_schema.strict"]


def test_a_session_is_refused_rather_than_forgotten() -> None:
    failure = refused(session_id="s1")
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["session_id"]


# --- extra -------------------------------------------------------------------------------------


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max"])
def test_whether_and_how_much_to_think_is_sent_as_it_is(think: Any) -> None:
    assert added(body(extra={"think": think})) == {"think": think}


def test_cutting_the_prompt_can_be_allowed() -> None:
    assert body(extra={"truncate": True})["truncate"] is True
    assert embed(extra={"truncate": True})["truncate"] is True


def test_options_without_a_typed_field_are_sent_among_the_options() -> None:
    options = {
        "min_p": 0.05,
        "num_keep": 4,
        "repeat_last_n": -1,
        "repeat_penalty": 1.1,
        "typical_p": 0.9,
    }
    assert options.keys() == OPTIONS.keys()
    assert added(body(extra={"options": options})) == {"options": options}
    assert body(extra={"options": {}}) == body()


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"think": "much"}, "extra.think"),
        ({"think": 1}, "extra.think"),
        ({"think": None}, "extra.think"),
        ({"truncate": "yes"}, "extra.truncate"),
        ({"options": []}, "extra.options"),
        ({"options": None}, "extra.options"),
        ({"options": {"min_p": 2}}, "extra.options.min_p"),
        ({"options": {"num_keep": "4"}}, "extra.options.num_keep"),
        ({"options": {"temperature": 1}}, "extra.options.temperature"),
        ({"model": "x"}, "extra.model"),
    ],
)
def test_what_extra_gets_wrong_is_rejected_by_name(extra: Any, field: str) -> None:
    failure = refused(extra=extra)
    assert failure.reason is Reason.INVALID_FIELD
    assert at_fault(failure) == [field]


@pytest.mark.parametrize("make", [body, embed])
@pytest.mark.parametrize("name", sorted(OWN_FIELDS))
def test_extra_cannot_set_a_field_of_the_request_itself(name: str, make: Any) -> None:
    with pytest.raises(Failure) as caught:
        make(extra={name: 1})
    assert caught.value.reason is Reason.INVALID_FIELD
    assert at_fault(caught.value) == [f"extra.{name}"]


@pytest.mark.parametrize("name", sorted(TYPED_OPTIONS))
def test_options_cannot_set_what_has_a_typed_field(name: str) -> None:
    failure = refused(extra={"options": {name: 1}})
    assert failure.reason is Reason.INVALID_FIELD
    assert at_fault(failure) == [f"extra.options.{name}"]
    assert "typed field" in failure.message


def test_every_typed_option_is_known_as_such() -> None:
    places = {path.removeprefix("options.") for _, path in SAMPLING.values() if "options." in path}
    assert places == TYPED_OPTIONS


@pytest.mark.parametrize("name", sorted(SHARED_FIELDS))
def test_what_would_hold_for_everybody_is_refused(name: str) -> None:
    failure = refused(extra={name: 0})
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == [f"extra.{name}"]
    assert "everybody" in failure.message


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
def test_what_would_have_the_model_loaded_anew_is_refused(name: str) -> None:
    failure = refused(extra={"options": {name: 1}})
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == [f"extra.options.{name}"]
    assert ("context_length" if name == "num_ctx" else "Modelfile") in failure.message


def test_a_name_that_is_unknown_is_refused_with_the_nearest_and_never_left_out() -> None:
    failure = refused(extra={"thinks": True, "options": {"minp": 0.1}})
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert at_fault(failure) == ["extra.thinks", "extra.options.minp"]
    assert "did you mean think?" in failure.message
    assert "did you mean min_p?" in failure.message


def test_an_embedding_does_not_think() -> None:
    with pytest.raises(Failure) as caught:
        embed(extra={"think": True})
    assert at_fault(caught.value) == ["extra.think"]


def test_faults_are_told_by_where_the_caller_wrote_them() -> None:
    failure = refused(extra={"options": {"num_ctx": 1}, "shift": True}, extra_path="kwargs")
    assert at_fault(failure) == ["kwargs.shift", "kwargs.options.num_ctx"]


def test_every_field_that_a_chat_can_send_is_known_to_extra() -> None:
    everything = replace(
        CALL,
        sampling=Sampling(**{name: value for name, (value, _) in SAMPLING.items()}),
        tools=(Tool("now"),),
        response_format=JsonObjectFormat(),
    )
    assert body(everything, 1).keys() <= OWN_FIELDS | CHAT_FIELDS.keys() | {"options"}
    assert embed(1, dimensions=1).keys() <= OWN_FIELDS | EMBED_FIELDS.keys() | {"options"}


# --- embeddings --------------------------------------------------------------------------------


def test_texts_are_embedded_as_a_list_and_not_cut() -> None:
    assert embed() == {"model": "m", "input": ["a", "b"], "truncate": False}


def test_dimensions_the_context_and_options_of_an_embedding_are_sent() -> None:
    sent = embed(512, dimensions=64, extra={"options": {"num_keep": 1}})
    assert (sent["dimensions"], sent["options"]) == (64, {"num_keep": 1, "num_ctx": 512})


def test_every_field_of_a_call_is_one_that_these_tests_know() -> None:
    """A field that is added needs its JSON, and a test here."""
    assert {field.name for field in fields(ChatCall)} == {
        *("target", "messages", "sampling", "tools", "tool_choice", "response_format"),
        *("session_id", "extra", "extra_path", "sampling_fields"),
        *("messages_path", "messages_before"),
    }
    assert {field.name for field in fields(Message)} == {
        *("role", "content", "parts", "name", "tool_calls", "tool_call_id"),
        "reasoning",  # of answers only: the codec rejects it in a request
    }
    assert {field.name for field in fields(EmbedCall)} == {
        *("target", "input", "dimensions", "extra", "extra_path")
    }
