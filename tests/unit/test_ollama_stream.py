"""Lines of Ollama's own API put together, with every liberty that its versions take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from atmosphere_grpc.backends.ollama_schema import line_decoder
from atmosphere_grpc.backends.ollama_stream import MAX_CHARACTERS_PER_TOKEN, Answer
from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.domain import (
    ChatCall,
    Delta,
    Finished,
    FinishReason,
    Image,
    Message,
    Sampling,
    Target,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageSource,
)
from atmosphere_grpc.errors import Failure, Reason
from tests.fakes.ollama import line, tool_call_message

CALL = ChatCall(Target(), (Message("user", "Hi"),))
END = line(done="stop")


def assembled(
    *lines: bytes, call: ChatCall = CALL, num_ctx: int | None = None, answer: Answer | None = None
) -> Answer:
    answer = answer or Answer(call, num_ctx)
    for one in lines:
        answer.add(line_decoder.decode(one))
    return answer


def said(content: str, **fields: Any) -> bytes:
    return line({"content": content}, **fields)


def thought(text: str) -> bytes:
    return line({"thinking": text})


def called(name: str, arguments: Any = None, **fields: Any) -> bytes:
    return line(tool_call_message(name, arguments or {}, **fields))


def delta_of(*lines: bytes) -> Delta:
    delta = assembled(*lines).take()
    assert delta is not None
    return delta


def deltas_of(*reads: Iterable[bytes]) -> list[Delta | None]:
    """What each read of some lines gives."""
    answer = Answer(CALL, None)
    return [assembled(*read, answer=answer).take() for read in reads]


def end_of(*lines: bytes, call: ChatCall = CALL, num_ctx: int | None = None) -> Finished:
    return assembled(*lines, call=call, num_ctx=num_ctx).end()


# --- text --------------------------------------------------------------------------------------


def test_what_came_together_leaves_together() -> None:
    assert deltas_of([said("a"), said("b")], [said("c")]) == [Delta("ab"), Delta("c")]


def test_a_delta_is_given_once() -> None:
    answer = assembled(said("a"))
    assert answer.take() == Delta("a")
    assert answer.take() is None


@pytest.mark.parametrize(
    "nothing",
    [
        b"{}",
        b'{"message": null}',
        b'{"message": {"role": "assistant", "content": null, "tool_calls": null}}',
        b'{"message": {"content": "", "thinking": "", "tool_calls": []}, "logprobs": []}',
        line(),
        END,
        line(done="load"),
    ],
)
def test_a_line_without_text_makes_no_delta(nothing: bytes) -> None:
    assert assembled(nothing).take() is None


def test_thinking_is_reasoning_apart_from_the_answer() -> None:
    assert deltas_of([thought("Hm"), thought("m.")], [thought("!"), said("Yes")]) == [
        Delta(reasoning="Hmm."),
        Delta("Yes", "!"),
    ]


def test_the_last_line_may_hold_text() -> None:
    answer = assembled(said("a"), said("b", done="stop"))
    assert answer.finished
    assert answer.take() == Delta("ab")


def test_an_answer_is_not_finished_before_its_last_line() -> None:
    assert not assembled(said("a"), b'{"done_reason": "stop"}').finished


# --- tool calls --------------------------------------------------------------------------------


def test_a_tool_call_is_whole_and_its_arguments_are_json_text() -> None:
    delta = delta_of(called("weather", {"city": "Köln", "days": [1, 2.5]}, call_id="call_x"))
    (call,) = delta.tool_calls
    assert (call.index, call.id, call.name) == (0, "call_x", "weather")
    assert json.loads(call.arguments) == {"city": "Köln", "days": [1, 2.5]}


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": {}}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "now", **arguments}}
    sent = json.dumps({"message": {"tool_calls": [call]}}).encode()
    assert delta_of(sent).tool_calls == (ToolCallDelta(0, "call_0", "now", "{}"),)


def test_calls_are_counted_through_and_get_ids_where_they_have_none() -> None:
    """Some versions give each call of an answer index 0, and old ones no id."""
    two = json.dumps({"message": {"tool_calls": [{"function": {"name": n}} for n in "bc"]}})
    first, second, third = deltas_of(
        [called("a", index=0)], [two.encode()], [called("d", call_id="own", index=0)]
    )
    assert first
    assert second
    assert third
    calls = [*first.tool_calls, *second.tool_calls, *third.tool_calls]
    assert [(call.index, call.id, call.name) for call in calls] == [
        (0, "call_0", "a"),
        (1, "call_1", "b"),
        (2, "call_2", "c"),
        (3, "own", "d"),
    ]


def test_calls_that_came_together_leave_together() -> None:
    delta = delta_of(said("Wait."), called("a"), called("b"))
    assert delta.content == "Wait."
    assert [call.name for call in delta.tool_calls] == ["a", "b"]


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"arguments": {}}},
        {"function": {"name": "now", "arguments": "{}"}},
        {"function": {"name": "now", "arguments": []}},
        {"id": 7, "function": {"name": "now"}},
        {},
    ],
)
def test_a_call_of_another_shape_is_not_guessed_at(call: Any) -> None:
    with pytest.raises(MALFORMED):
        line_decoder.decode(json.dumps({"message": {"tool_calls": [call]}}))


# --- log probabilities -------------------------------------------------------------------------

HELLO = {"token": "Hé", "logprob": -0.5, "bytes": list("Hé".encode())}
ASKED = replace(CALL, sampling=Sampling(logprobs=True))


def test_log_probabilities_have_their_alternatives_and_bytes() -> None:
    others = [HELLO, {"token": "Yo", "logprob": -2.0}]
    sent = said("Hé", logprobs=[{**HELLO, "top_logprobs": others}])
    known = TokenLogprob("Hé", -0.5, "Hé".encode())
    assert delta_of(sent).logprobs == (replace(known, top=(known, TokenLogprob("Yo", -2.0))),)


def test_log_probabilities_may_come_before_the_text_they_belong_to() -> None:
    """So they do while a tool call is being put together."""
    delta = delta_of(line(logprobs=[HELLO]))
    assert delta == Delta(logprobs=(TokenLogprob("Hé", -0.5, "Hé".encode()),))


def test_an_old_server_that_leaves_them_out_is_told_as_such() -> None:
    with pytest.raises(Failure) as caught:
        end_of(said("a"), END, call=ASKED)
    assert caught.value.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in caught.value.violations] == ["sampling.logprobs"]
    assert "0.12.11" in caught.value.message


@pytest.mark.parametrize(
    ("lines", "call"),
    [
        pytest.param([said("a", logprobs=[HELLO]), END], ASKED, id="given"),
        pytest.param([said("a", logprobs=[HELLO]), said("b"), END], ASKED, id="given once"),
        pytest.param([END], ASKED, id="an empty answer has none"),
        pytest.param([said("a"), END], CALL, id="not asked for"),
        pytest.param(
            [said("a"), END], replace(CALL, sampling=Sampling(logprobs=False)), id="declined"
        ),
    ],
)
def test_otherwise_an_answer_ends_well(lines: list[bytes], call: ChatCall) -> None:
    assert end_of(*lines, call=call).finish_reason is FinishReason.STOP


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("load", FinishReason.OTHER),
        ("unload", FinishReason.OTHER),
        ("", FinishReason.OTHER),
        ("a new one", FinishReason.OTHER),
    ],
)
def test_the_end_has_a_reason(word: str, reason: FinishReason) -> None:
    assert end_of(said("a"), line(done=word)).finish_reason is reason


@pytest.mark.parametrize("reason", [{}, {"done_reason": None}])
def test_an_end_without_a_reason_is_another_one(reason: Any) -> None:
    last = json.dumps({"done": True, **reason}).encode()
    assert end_of(said("a"), last).finish_reason is FinishReason.OTHER


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.TOOL_CALLS),
        ("", FinishReason.TOOL_CALLS),
        ("length", FinishReason.LENGTH),
    ],
)
def test_an_answer_with_calls_ended_for_them_unless_it_was_cut(
    word: str, reason: FinishReason
) -> None:
    assert end_of(called("now"), line(done=word)).finish_reason is reason


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        pytest.param((7, 3), Usage(7, 3, 10, source=UsageSource.REPORTED), id="reported"),
        pytest.param((7, None), Usage(7, 2, 9, source=UsageSource.ESTIMATED), id="no answer's"),
        pytest.param((7, 0), Usage(7, 2, 9, source=UsageSource.ESTIMATED), id="a zero"),
        pytest.param((None, 3), Usage(0, 3, 3, source=UsageSource.REPORTED), id="no prompt's"),
        pytest.param((None, None), Usage(source=UsageSource.MISSING), id="none"),
        pytest.param((0, 0), Usage(source=UsageSource.MISSING), id="zeros"),
    ],
)
def test_the_usage_says_what_its_numbers_are_worth(
    counts: tuple[int | None, int | None], usage: Usage
) -> None:
    last = line(done="stop", prompt_eval_count=counts[0], eval_count=counts[1])
    assert end_of(thought("Hm"), said("a"), last).usage == usage


# --- prompts cut short -------------------------------------------------------------------------


def truncated(characters: int, read: int | None, num_ctx: int | None = None) -> bool:
    call = replace(CALL, messages=(Message("user", "x" * characters),))
    last = line(done="stop", prompt_eval_count=read)
    return end_of(last, call=call, num_ctx=num_ctx).prompt_truncated


@pytest.mark.parametrize(
    ("read", "num_ctx", "cut"),
    [(99, 100, False), (100, 100, True), (101, 100, True), (100, None, False), (100, 4096, False)],
)
def test_a_prompt_that_fills_the_context_was_cut(read: int, num_ctx: int | None, cut: bool) -> None:
    assert truncated(read, read, num_ctx) is cut


@pytest.mark.parametrize(("more", "cut"), [(0, False), (1, True)])
def test_a_prompt_of_more_characters_than_its_tokens_can_hold_was_cut(more: int, cut: bool) -> None:
    assert truncated(10 * MAX_CHARACTERS_PER_TOKEN + more, 10) is cut


@pytest.mark.parametrize("read", [None, 0])
def test_nothing_is_said_of_a_prompt_whose_tokens_are_not_told(read: int | None) -> None:
    assert not truncated(100_000, read, 4096)


def test_the_characters_are_those_of_all_texts_and_of_no_picture() -> None:
    size = MAX_CHARACTERS_PER_TOKEN
    picture = Image(data=b"x" * 100_000, media_type="image/png")
    messages = (
        Message("system", "x" * size),
        Message("user", parts=("x" * size, picture, "x" * size)),
    )
    call = replace(CALL, messages=messages)
    assert not end_of(line(done="stop", prompt_eval_count=3), call=call).prompt_truncated
    assert end_of(line(done="stop", prompt_eval_count=2), call=call).prompt_truncated


# --- other shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"message": "Hi"}',
        b'{"message": {"content": 7}}',
        b'{"done": "yes"}',
        b'{"prompt_eval_count": "7"}',
        b'{"logprobs": [{"token": "a"}]}',
        b'{"logprobs": [{"token": "a", "logprob": -1, "bytes": [256]}]}',
        b'{"message": {"content": "\xff"}}',
        b"[]",
        b"7",
        b"null",
        b'{"message": ' + b"[" * 60_000,
    ],
)
def test_what_is_no_line_is_malformed(data: bytes) -> None:
    with pytest.raises(MALFORMED):
        line_decoder.decode(data)


def test_what_is_not_known_is_left_aside() -> None:
    sent = b'{"remote_model": "x", "created_at": "?", "message": {"role": "x", "content": "a"}}'
    assert delta_of(sent) == Delta("a")
