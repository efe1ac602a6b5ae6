"""A stream of bytes gives the same events and the same answer however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.backends.events import (
    Event,
    EventTooLarge,
    NDJSONParser,
    Parser,
    SSEParser,
)
from atmosphere_grpc.backends.ollama_schema import line_decoder
from atmosphere_grpc.backends.ollama_stream import Answer
from atmosphere_grpc.backends.openai_schema import chunk_decoder
from atmosphere_grpc.backends.openai_stream import Assembly
from atmosphere_grpc.backends.thinking import ThinkSplitter
from atmosphere_grpc.domain import ChatCall, Delta, Finished, Target
from tests.fakes import chunks, ollama, recordings

LIMIT = 64
Kind = Callable[[int], Parser]
KINDS: Sequence[Kind] = (SSEParser, NDJSONParser)
#: Bytes with everything that either grammar gives a meaning to.
Streams = st.lists(
    st.sampled_from(
        [
            *(b"data: a", b"data:b", b"data", b": ping", b"event: x", b"event:", b"id: 7"),
            *(b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r", b" ", b""),
            *('{"a": "ä€😀"}'.encode(), "ä".encode(), b"\xef\xbb\xbf", b"\xff", b"\x00", b"{}"),
        ]
    ),
    max_size=14,
).map(b"".join)
Cuts = st.lists(st.integers(0, 120), max_size=10)


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Data cut at some places; where one is given twice, with nothing between."""
    ends = sorted(min(cut, len(data)) for cut in cuts)
    return [data[start:end] for start, end in pairwise([0, *ends, len(data)])]


def parsed(kind: Kind, parts: Sequence[bytes], limit: int = 10_000) -> list[Event] | None:
    """All events of a stream that comes in parts; None where one of them is too large."""
    parser = kind(limit)
    try:
        events = [event for part in parts for event in parser.feed(part)]
        return events + parser.flush()
    except EventTooLarge:
        return None


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=Streams, cuts=Cuts)
def test_any_cutting_gives_the_same_events(kind: Kind, data: bytes, cuts: list[int]) -> None:
    whole = parsed(kind, [data])
    assert whole is not None
    assert parsed(kind, pieces(data, cuts)) == whole
    assert parsed(kind, [data[i : i + 1] for i in range(len(data))]) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(size=st.integers(1, 2 * LIMIT), cuts=Cuts)
def test_an_event_is_too_large_however_it_is_cut(kind: Kind, size: int, cuts: list[int]) -> None:
    name = b"data:" if kind is SSEParser else b""
    line = name + b"x" * max(size - len(name), 0)
    end = b"\n\n" if kind is SSEParser else b"\n"
    fits = len(line) <= LIMIT
    assert (parsed(kind, pieces(line + end, cuts), LIMIT) is not None) is fits
    assert (parsed(kind, pieces(line, cuts), LIMIT) is not None) is fits


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=Streams, cuts=Cuts, limit=st.integers(1, 40))
def test_among_others_an_event_is_too_large_however_it_is_cut(
    kind: Kind, data: bytes, cuts: list[int], limit: int
) -> None:
    assert parsed(kind, pieces(data, cuts), limit) == parsed(kind, [data], limit)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line), max_size=6))
def test_lines_come_out_as_they_went_in(lines: list[bytes]) -> None:
    events = parsed(NDJSONParser, [b"".join(line + b"\n" for line in lines)])
    assert events == [Event(b"", line) for line in lines if line.strip()]


def test_a_last_line_without_its_end_is_told_as_such() -> None:
    assert parsed(NDJSONParser, [b"{}\n{", b"}"]) == [
        Event(b"", b"{}"),
        Event(b"", b"{}", ended=False),
    ]


# --- whole answers -----------------------------------------------------------------------------

OPENAI = {
    "text": "llama-cpp-server/chat_stream_usage.resp.txt",
    "logprobs": "llama-cpp-server/chat_stream_logprobs.resp.txt",
    "pings": "llama-cpp-server/stream_with_ping.body.txt",
    "calls": "llama-cpp-server/tools_template/prefill_single_stream_true.resp.txt",
    "killed": "llama-cpp-server/lifecycle/server_killed_midstream.resp.txt",
}
THOUGHT = b"".join(chunks.answer_events(["<th", "ink>Hm", ".</thi", "nk>\n\nTw", "o – ä€😀."]))
TOOLS = b"".join(
    map(
        chunks.event,
        [
            chunks.tool_call(index=0, call_id="a", name="weather", arguments=""),
            chunks.tool_call(index=0, arguments='{"city":'),
            chunks.tool_call(index=1, call_id="b", name="time", arguments="{}"),
            chunks.tool_call(index=0, arguments=' "Köln"}'),
            chunks.chunk(finish="tool_calls"),
        ],
    )
)
NATIVE = b"".join(
    [
        ollama.line({"thinking": "Hm – ä"}),
        ollama.line({"content": "Two €"}),
        ollama.line({"content": "😀."}),
        ollama.line(ollama.tool_call_message("weather", {"city": "Köln", "days": 2})),
        ollama.line(done="stop"),
    ]
)


def answer_of_openai(parts: Sequence[bytes]) -> Any:
    assembly = Assembly(ThinkSplitter())
    deltas: list[Delta] = []
    parser = SSEParser(10_000)
    for part in parts:
        for event in parser.feed(part):
            if event.data != b"[DONE]":
                assembly.add(chunk_decoder.decode(event.data))
        if delta := assembly.take():
            deltas.append(delta)
    return joined(deltas, assembly.end())


def answer_of_ollama(parts: Sequence[bytes]) -> Any:
    answer = Answer(ChatCall(Target(), ()), None)
    deltas: list[Delta] = []
    parser = NDJSONParser(10_000)
    for part in parts:
        for event in parser.feed(part):
            answer.add(line_decoder.decode(event.data))
        if delta := answer.take():
            deltas.append(delta)
    return joined(deltas, answer.end())


def joined(deltas: Sequence[Delta], end: Finished) -> Any:
    """What an answer comes to, without how it was cut."""
    calls: dict[int, str] = {}
    for delta in deltas:
        for piece in delta.tool_calls:
            calls.setdefault(piece.index, "")
            calls[piece.index] += piece.id + piece.name + piece.arguments
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        calls,
        [item for delta in deltas for item in delta.logprobs],
        end,
    )


@pytest.mark.parametrize("data", [*map(recordings.body, OPENAI.values()), THOUGHT, TOOLS])
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 6000), max_size=12))
def test_any_cutting_of_a_recorded_stream_gives_the_same_answer(
    data: bytes, cuts: list[int]
) -> None:
    assert answer_of_openai(pieces(data, cuts)) == answer_of_openai([data])


def test_the_recorded_streams_hold_what_is_cut() -> None:
    text, logprobs, pings, calls, killed = (
        answer_of_openai([recordings.body(name)]) for name in OPENAI.values()
    )
    assert text[0]
    assert logprobs[3]
    assert pings[0]
    assert calls[2]
    assert killed[0]
    assert answer_of_openai([TOOLS])[2] == {0: 'aweather{"city": "Köln"}', 1: "btime{}"}
    assert answer_of_openai([THOUGHT])[:2] == ("Two – ä€😀.", "Hm.")


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 1200), max_size=12))
def test_any_cutting_of_ollamas_lines_gives_the_same_answer(cuts: list[int]) -> None:
    whole = answer_of_ollama([NATIVE])
    assert whole[:2] == ("Two €😀.", "Hm – ä")
    assert whole[2] == {0: 'call_0weather{"city":"Köln","days":2}'}
    assert answer_of_ollama(pieces(NATIVE, cuts)) == whole
