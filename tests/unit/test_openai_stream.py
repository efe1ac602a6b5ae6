"""Chunks of an answer put together, with every liberty that servers take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from atmosphere_grpc.backends.events import SSEParser
from atmosphere_grpc.backends.openai_schema import MALFORMED, UsageChunk, chunk_decoder
from atmosphere_grpc.backends.openai_stream import Assembly, usage
from atmosphere_grpc.domain import (
    Delta,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageSource,
)
from tests.fakes import chunk, completion, recordings, text, tool_call
from tests.fakes import usage as usage_chunk

FORCED_TOOLS = "llama-cpp-server/tools_template/prefill_single_stream_true.resp.txt"
RECORDED = {
    "llama-cpp-server/chat_stream.resp.txt": ("Hello, welcome to my little corner of", "length"),
    "llama-cpp-server/chat_stream_usage.resp.txt": (
        "Hello, welcome to my little corner of",
        "length",
    ),
    "llama-cpp-server/stream_with_ping.body.txt": ("I'm sorry", "length"),
    "llama-cpp-server/chat_stream_logprobs.resp.txt": ("Hello!", "length"),
    FORCED_TOOLS: ("", "tool_calls"),
}


def assembled(*chunks: Any, assembly: Assembly | None = None) -> Assembly:
    """An assembly of these chunks, as JSON."""
    assembly = assembly or Assembly()
    for value in chunks:
        assembly.add(chunk_decoder.decode(json.dumps(value)))
    return assembly


def delta_of(*chunks: Any) -> Delta:
    delta = assembled(*chunks).take()
    assert delta is not None
    return delta


def deltas_of(*reads: Iterable[Any]) -> list[Delta | None]:
    """What each read of some chunks gives."""
    assembly = Assembly()
    return [assembled(*read, assembly=assembly).take() for read in reads]


def tool_calls_of(*chunks: Any) -> list[tuple[int, str, str, str]]:
    """The calls of an answer whose chunks come one by one, as a client puts them together."""
    calls: dict[int, list[str]] = {}
    for delta in deltas_of(*([value] for value in chunks)):
        for piece in delta.tool_calls if delta else ():
            call = calls.setdefault(piece.index, ["", "", ""])
            for i, value in enumerate((piece.id, piece.name, piece.arguments)):
                call[i] += value
    return [(index, *call) for index, call in calls.items()]  # type: ignore[misc]


def end_of(*chunks: Any) -> Finished:
    return assembled(*chunks).end()


# --- text --------------------------------------------------------------------------------------


def test_what_came_together_leaves_together() -> None:
    assert deltas_of([text("a"), text("b")], [text("c")]) == [Delta("ab"), Delta("c")]


@pytest.mark.parametrize(
    "nothing",
    [
        chunk({"role": "assistant", "content": None}),
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "", "reasoning_content": "", "tool_calls": []}),
        chunk(finish="stop"),
        chunk(choices=[]),
        chunk(choices=None),
        chunk(choices=[{"index": 0, "finish_reason": None}]),
        chunk(choices=[{"index": 0, "delta": None, "logprobs": None}]),
        chunk(choices=[{"index": 0, "delta": {}, "logprobs": {"content": None}}]),
        usage_chunk(),
        {},
        {"x_cache": {"hit": True}},
    ],
)
def test_a_chunk_without_text_makes_no_delta(nothing: Any) -> None:
    assert assembled(nothing).take() is None


def test_a_delta_is_given_once() -> None:
    assembly = assembled(text("a"))
    assert assembly.take() == Delta("a")
    assert assembly.take() is None


def test_a_role_repeated_in_each_delta_changes_nothing() -> None:
    pieces = [chunk({"role": "assistant", "content": piece}) for piece in ("a", "b")]
    assert delta_of(*pieces) == Delta("ab")


def test_the_last_text_may_come_with_the_finish_reason() -> None:
    assembly = assembled(text("a"), chunk({"content": "b"}, "stop"))
    assert assembly.take() == Delta("ab")
    assert assembly.end().finish_reason is FinishReason.STOP


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_has_its_own_field_under_each_of_its_names(name: str) -> None:
    assert delta_of(chunk({name: "Hm", "content": None}), chunk({name: ".", "content": "Hi"})) == (
        Delta("Hi", "Hm.")
    )


def test_a_refusal_is_the_answer() -> None:
    assert delta_of(chunk({"refusal": "No."})) == Delta("No.")


def test_other_choices_are_not_mixed_in() -> None:
    other = {"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}
    first = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
    assembly = assembled(chunk(choices=[other, first]))
    assert assembly.take() == Delta("a")
    assert not assembly.finished


def test_a_choice_without_an_index_is_the_first() -> None:
    for choice in ({"delta": {"content": "a"}}, {"index": None, "delta": {"content": "a"}}):
        assert delta_of(chunk(choices=[choice])) == Delta("a")


def test_a_whole_answer_is_one_chunk() -> None:
    assembly = assembled(completion({"content": "Hello", "reasoning_content": "Hm."}))
    assert assembly.take() == Delta("Hello", "Hm.")
    assert assembly.end().finish_reason is FinishReason.STOP
    assert assembly.whole


@pytest.mark.parametrize(
    "wrong",
    [
        chunk({"content": 7}),
        chunk({"content": ["a"]}),
        chunk(choices={"0": {}}),
        chunk(finish=3),  # type: ignore[arg-type]
        chunk(choices=[], usage={"prompt_tokens": "many"}),
        chunk({"tool_calls": [{"index": "0"}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": {"city": "Paris"}}}]}),
        chunk(choices=[{"logprobs": {"content": [{"token": "a", "logprob": 0, "bytes": [256]}]}}]),
        chunk(choices=[{"logprobs": {"content": [{"token": "a", "logprob": 0, "bytes": [-1]}]}}]),
        [],
        None,
        "text",
    ],
)
def test_a_chunk_of_a_wrong_type_is_refused_rather_than_misread(wrong: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        chunk_decoder.decode(json.dumps(wrong))


@pytest.mark.parametrize("wrong", [b'{"id": "\xff"}', b'{"x": ' + b"[" * 60_000, b"", b"[DONE"])
def test_what_is_no_json_is_malformed(wrong: bytes) -> None:
    with pytest.raises(MALFORMED):
        chunk_decoder.decode(wrong)


# --- tool calls --------------------------------------------------------------------------------


def test_the_first_piece_of_a_tool_call_has_its_id_and_name_and_the_others_do_not() -> None:
    pieces = [tool_call("{", index=0, call_id="c1", name="now"), tool_call("}", index=0)]
    first, second = deltas_of(*([piece] for piece in pieces))
    assert first == Delta(tool_calls=(ToolCallDelta(0, "c1", "now", "{"),))
    assert second == Delta(tool_calls=(ToolCallDelta(0, "", "", "}"),))


def test_pieces_that_came_together_are_one_piece_a_call() -> None:
    delta = delta_of(
        tool_call(index=0, call_id="c1", name="now"),
        tool_call("{", index=0),
        tool_call("{", index=1, call_id="c2", name="then"),
        tool_call("}", index=0),
        tool_call("}", index=1),
    )
    assert delta.tool_calls == (
        ToolCallDelta(0, "c1", "now", "{}"),
        ToolCallDelta(1, "c2", "then", "{}"),
    )


def test_ids_and_names_repeated_in_each_chunk_are_passed_on_once() -> None:
    pieces = [tool_call(part, index=0, call_id="c1", name="now") for part in ("{", "}")]
    assert tool_calls_of(*pieces) == [(0, "c1", "now", "{}")]
    assert delta_of(*pieces).tool_calls == (ToolCallDelta(0, "c1", "now", "{}"),)


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    assert tool_calls_of(
        tool_call("{", call_id="c1", name="now"),
        tool_call("}"),
        tool_call("{", call_id="c2", name="then"),
        tool_call("}", call_id="c2"),
        tool_call(" ", call_id="c1"),
    ) == [(0, "c1", "now", "{} "), (1, "c2", "then", "{}")]


def test_several_calls_in_one_chunk_without_an_index_are_several() -> None:
    calls = [
        {"id": f"c{i}", "function": {"name": "now", "arguments": json.dumps({"n": i})}}
        for i in (1, 2)
    ]
    assert tool_calls_of(chunk({"tool_calls": calls})) == [
        (0, "c1", "now", '{"n": 1}'),
        (1, "c2", "now", '{"n": 2}'),
    ]


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    """Ollama's `/v1` gives each call of an answer index 0 (ollama#15457)."""
    assert tool_calls_of(
        tool_call('{"n": 1}', index=0, call_id="c1", name="now"),
        tool_call('{"n": 2}', index=0, call_id="c2", name="now"),
        tool_call('{"n": 3', index=0, call_id="c3", name="now"),
        tool_call("}", index=0),
    ) == [
        (0, "c1", "now", '{"n": 1}'),
        (1, "c2", "now", '{"n": 2}'),
        (2, "c3", "now", '{"n": 3}'),
    ]


def test_a_new_id_in_each_piece_of_one_call_begins_no_other() -> None:
    """Some servers make up an id for each delta; only a name begins a call."""
    assert tool_calls_of(
        tool_call("{", index=0, call_id="r1", name="now"), tool_call("}", index=0, call_id="r2")
    ) == [(0, "r1", "now", "{}")]


def test_calls_that_share_the_greatest_index_keep_within_the_contracts_numbers() -> None:
    top = 2**30 - 1
    calls = [tool_call("{}", index=top, call_id=f"c{i}", name="now") for i in range(4)]
    assert [index for index, *_ in tool_calls_of(*calls)] == [top, top + 1, top + 2, top + 3]
    with pytest.raises(msgspec.ValidationError):
        tool_calls_of(tool_call("{}", index=top + 1, call_id="c", name="now"))


def test_one_id_for_calls_of_different_indexes_does_not_join_them() -> None:
    calls = [tool_call("{}", index=i, call_id="same", name="now") for i in (0, 1)]
    assert tool_calls_of(*calls) == [(0, "same", "now", "{}"), (1, "same", "now", "{}")]


def test_a_call_without_an_id_gets_one() -> None:
    calls = [tool_call("{}", index=i, name="now") for i in (0, 1)]
    assert tool_calls_of(*calls) == [(0, "call_0", "now", "{}"), (1, "call_1", "now", "{}")]


def test_a_call_without_function_or_arguments_is_still_begun() -> None:
    bare = chunk({"tool_calls": [{"index": 0, "id": "c1"}]})
    empty = chunk({"tool_calls": [{"index": 0, "function": {"name": None, "arguments": None}}]})
    assert tool_calls_of(bare, empty, tool_call("{}", index=0)) == [(0, "c1", "", "{}")]


def test_a_recorded_answers_two_calls_are_put_together() -> None:
    (calls,) = [tool_calls_of(*decoded(recordings.body(FORCED_TOOLS)))]
    assert [(index, name, json.loads(arguments)) for index, _, name, arguments in calls] == [
        (0, "get_weather", {"city": "Paris"}),
        (1, "get_weather", {"city": "Paris"}),
    ]
    assert len({call_id for _, call_id, _, _ in calls}) == 2


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("insufficient_system_resource", FinishReason.OTHER),
    ],
)
def test_a_finish_reason_that_is_not_known_is_another(said: str, meant: FinishReason) -> None:
    assert end_of(chunk(finish=said)).finish_reason is meant


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_answer_without_a_finish_reason_is_not_finished(nothing: str | None) -> None:
    assembly = assembled(text("a"), chunk(finish=nothing), usage_chunk())
    assert not assembly.finished
    assert not assembly.whole


def test_an_answer_is_whole_with_its_finish_reason_and_usage_only() -> None:
    assembly = assembled(text("a"), chunk(finish="stop"))
    assert assembly.finished
    assert not assembly.whole  # the usage may be yet to come
    assert assembled(usage_chunk(), assembly=assembly).whole


def test_reported_usage_is_passed_on_with_its_details() -> None:
    numbers = {
        "prompt_tokens": 40,
        "completion_tokens": 8,
        "total_tokens": 48,
        "prompt_tokens_details": {"cached_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    assert end_of(text("a"), usage_chunk(numbers)).usage == (
        Usage(40, 8, 48, 30, 5, UsageSource.REPORTED)
    )


@pytest.mark.parametrize("details", [{}, {"prompt_tokens_details": None}])
def test_usage_without_details_has_zeros(details: Any) -> None:
    numbers = {"prompt_tokens": 4, "completion_tokens": 1, **details}
    assert end_of(text("a"), usage_chunk(numbers)).usage == (
        Usage(4, 1, 5, source=UsageSource.REPORTED)
    )


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(None, id="null"),
        pytest.param({}, id="empty"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, id="zero"),
        pytest.param({"prompt_tokens": None, "completion_tokens": None}, id="nulls"),
    ],
)
def test_usage_that_says_nothing_is_missing(numbers: Any) -> None:
    assert end_of(text("a"), usage_chunk(numbers)).usage == Usage(source=UsageSource.MISSING)
    assert end_of(text("a")).usage.source is UsageSource.MISSING


def test_tokens_that_the_server_did_not_count_are_estimated() -> None:
    """Universal Runtime always says 0 completion tokens."""
    numbers = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    pieces = [
        text("a"),
        chunk({"reasoning": "b"}),
        tool_call("{}", index=0),
        chunk({"content": ""}),
    ]
    assert end_of(*pieces, usage_chunk(numbers)).usage == (
        Usage(7, 3, 10, source=UsageSource.ESTIMATED)
    )


def test_an_answer_of_no_tokens_is_reported_as_such() -> None:
    numbers = {"prompt_tokens": 7, "completion_tokens": 0}
    assert end_of(chunk(finish="stop"), usage_chunk(numbers)).usage == (
        Usage(7, 0, 7, source=UsageSource.REPORTED)
    )


def test_the_last_usage_counts() -> None:
    early = text("a", usage={"prompt_tokens": 7, "completion_tokens": 1})
    assert end_of(early, usage_chunk({"prompt_tokens": 7, "completion_tokens": 2})).usage == (
        Usage(7, 2, 9, source=UsageSource.REPORTED)
    )


def test_embeddings_usage_has_no_completion() -> None:
    assert usage(UsageChunk(prompt_tokens=5, total_tokens=5)) == (
        Usage(5, 0, 5, source=UsageSource.REPORTED)
    )


# --- log probabilities -------------------------------------------------------------------------


def test_log_probabilities_come_with_their_text_and_alternatives() -> None:
    info = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -1, "bytes": None}],
    }
    choice = {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [info]}}
    assert delta_of(chunk(choices=[choice])) == Delta(
        "é", logprobs=(TokenLogprob("é", -0.5, b"\xc3\xa9", (TokenLogprob("e", -1.0),)),)
    )


def test_recorded_log_probabilities_are_those_of_the_text() -> None:
    delta = delta_of(*decoded(recordings.body("llama-cpp-server/chat_stream_logprobs.resp.txt")))
    assert "".join(info.token for info in delta.logprobs) == delta.content
    assert all(info.token_bytes == info.token.encode() for info in delta.logprobs)
    assert [len(info.top) for info in delta.logprobs] == [2, 2]
    assert delta.logprobs[0].logprob == pytest.approx(-2.0360865592956543)


# --- recordings --------------------------------------------------------------------------------


def decoded(stream: bytes) -> list[Any]:
    """The chunks of a recorded stream."""
    parser = SSEParser(1 << 20)
    data = [event.data for event in [*parser.feed(stream), *parser.flush()]]
    return [json.loads(value) for value in data if value != b"[DONE]"]


def replayed(stream: bytes, size: int) -> tuple[str, Finished, list[Delta]]:
    """The text, the end and the deltas of a stream that comes in reads of `size` bytes."""
    parser, assembly, deltas = SSEParser(1 << 20), Assembly(), []
    for start in range(0, len(stream), size):
        for event in parser.feed(stream[start : start + size]):
            if event.data != b"[DONE]":
                assembly.add(chunk_decoder.decode(event.data))
        if delta := assembly.take():
            deltas.append(delta)
    assert parser.flush() == []
    return "".join(delta.content for delta in deltas), assembly.end(), deltas


@pytest.mark.parametrize(("name", "said"), RECORDED.items())
def test_a_recorded_answer_is_the_same_in_reads_of_any_size(
    name: str, said: tuple[str, str]
) -> None:
    stream = recordings.body(name)
    content, finish = said
    whole = replayed(stream, len(stream))
    assert whole[0] == content
    assert whole[1].finish_reason.value == finish
    assert len(whole[2]) == 1  # one read, one delta
    sizes = [*range(1, 40), *range(40, len(stream), 97)]
    for size in sizes:
        assert replayed(stream, size)[:2] == whole[:2], f"reads of {size} bytes"


def test_a_recorded_stream_reports_the_usage_that_was_asked_for() -> None:
    stream = recordings.body("llama-cpp-server/chat_stream_usage.resp.txt")
    assert replayed(stream, 100)[1].usage == Usage(36, 8, 44, 35, 0, UsageSource.REPORTED)


def test_a_recorded_stream_without_usage_has_none() -> None:
    stream = recordings.body("llama-cpp-server/chat_stream.resp.txt")
    assert replayed(stream, 100)[1].usage.source is UsageSource.MISSING


def test_a_recorded_answer_with_characters_of_several_bytes_is_whole_byte_by_byte() -> None:
    stream = recordings.body("llama-cpp-server/chat_tools_required_stream.resp.txt")
    content = replayed(stream, 1)[0]
    assert "°" in content
    assert content == replayed(stream, len(stream))[0]


def test_a_recorded_stream_of_a_killed_server_is_not_finished() -> None:
    stream = recordings.body("llama-cpp-server/lifecycle/server_killed_midstream.resp.txt")
    assembly = assembled(*decoded(stream))
    delta = assembly.take()
    assert delta is not None
    assert delta.content.startswith("In a small,")
    assert not assembly.finished


@pytest.mark.parametrize("name", ["llama-cpp-server/chat_basic", "llamafarm-2025-08/chat_stream"])
def test_a_recorded_whole_answer_is_put_together_alike(name: str) -> None:
    answer = json.loads(recordings.body(name + ".resp.txt"))
    assembly = assembled(answer)
    assert assembly.take() == Delta(answer["choices"][0]["message"]["content"])
    assert assembly.finished
    assert assembly.whole is (answer["usage"] is not None)
