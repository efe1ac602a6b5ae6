"""Server-sent events out of bytes, whatever their form and however they are cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.backends.events import Event, EventTooLarge, SSEParser
from tests.fakes import recordings

LIMIT = 1_000
RECORDED = [
    "llama-cpp-server/chat_stream.resp.txt",
    "llama-cpp-server/chat_tools_required_stream.resp.txt",
    "llama-cpp-server/lifecycle/server_killed_midstream.resp.txt",
]


def parse(*reads: bytes, limit: int = LIMIT) -> list[Event]:
    """All events of a stream that comes in these reads."""
    parser = SSEParser(limit)
    events = [event for read in reads for event in parser.feed(read)]
    return events + parser.flush()


def data_of(*reads: bytes) -> list[bytes]:
    return [event.data for event in parse(*reads)]


def by_the_standard(stream: bytes) -> list[Event]:
    """The HTML standard's section 9.2.6, line by line; the unfinished event is kept."""
    events: list[Event] = []
    kind, data, ended = b"", b"", False
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    for i, line in enumerate([*lines, b""]):
        ended = i < len(lines) - 1
        if line == b"":
            if data:
                events.append(Event(kind, data.removesuffix(b"\n"), ended))
            kind, data = b"", b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            kind = value
        elif field == b"data":
            data += value + b"\n"
    return events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def outcome(reads: list[bytes], limit: int) -> list[Event] | None:
    """The events; None where one is too large."""
    try:
        return parse(*reads, limit=limit)
    except EventTooLarge:
        return None


values = st.text(st.sampled_from(" :adtè€😀\0"), max_size=6).map(str.encode)
lines = st.one_of(
    st.just(b""),
    st.builds(lambda value: b"data:" + value, values),
    st.builds(lambda value: b"data: " + value, values),
    st.builds(lambda value: b"event: " + value, values),
    st.builds(lambda value: b":" + value, values),
    st.sampled_from([b"data", b"id: 7", b"retry: 10", b"datax: y", b" data: y", b"DATA: y"]),
)
endings = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.builds(
    lambda start, parts, end: start + b"".join(itertools.chain.from_iterable(parts)) + end,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(lines, endings), min_size=1, max_size=12),
    lines,
)
cuts = st.lists(st.integers(0, 500), max_size=30)


def test_an_event_ends_with_a_blank_line() -> None:
    parser = SSEParser(LIMIT)
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [Event(b"", b"a")]


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_lf_crlf_or_cr(eol: bytes) -> None:
    assert data_of(b"data: a" + eol * 2 + b"data: b" + eol * 2) == [b"a", b"b"]


def test_a_crlf_split_between_two_reads_is_one_line_end() -> None:
    assert data_of(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [b"a\nb"]


def test_an_empty_read_between_cr_and_lf_changes_nothing() -> None:
    assert data_of(b"data: a\r", b"", b"\ndata: b\n\n") == [b"a\nb"]


def test_several_events_in_one_read_come_together() -> None:
    parser = SSEParser(LIMIT)
    events = parser.feed(b"data: a\n\ndata: b\n\ndata: c")
    assert [event.data for event in events] == [b"a", b"b"]


def test_several_data_lines_are_joined_by_lf() -> None:
    assert data_of(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']


def test_only_one_space_after_the_colon_is_dropped_and_none_is_needed() -> None:
    assert data_of(b"data:a\n\n", b"data:  b\n\n", b"data:\tc\n\n") == [b"a", b" b", b"\tc"]


def test_comments_are_dropped_within_and_between_events() -> None:
    assert data_of(b": ping\n\n", b":\n", b"data: a\n: ping\ndata: b\n\n") == [b"a\nb"]


def test_an_event_has_its_type_and_the_next_one_the_default() -> None:
    events = parse(b"event: error\ndata: a\n\ndata: b\n\n")
    assert events == [Event(b"error", b"a"), Event(b"", b"b")]


def test_a_type_without_data_is_no_event_and_is_forgotten() -> None:
    assert parse(b"event: x_cache\n\ndata: a\n\n") == [Event(b"", b"a")]


def test_fields_that_are_not_known_are_ignored() -> None:
    assert data_of(b"id: 1\nretry: 5\nnonsense\nData: x\ndata: a\n\n") == [b"a"]


def test_data_without_a_colon_is_empty_data() -> None:
    assert data_of(b"data\n\n", b"data\ndata\n\n") == [b"", b"\n"]


def test_a_byte_order_mark_at_the_start_only_is_dropped() -> None:
    assert data_of(b"\xef\xbb", b"\xbfdata: a\n\n", b"\xef\xbb\xbfdata: b\n\n") == [b"a"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_byte_order_mark_is_dropped_however_it_is_cut_and_is_no_part_of_the_size(
    size: int,
) -> None:
    stream = b"\xef\xbb\xbfdata: a"
    reads = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert parse(*reads, limit=len("data: a")) == [Event(b"", b"a", ended=False)]


@pytest.mark.parametrize("start", [b"\xef", b"\xef\xbb"])
def test_what_only_begins_like_a_byte_order_mark_is_none(start: bytes) -> None:
    assert data_of(start, b"data: a\n", b"data: b\n\n") == [b"b"]
    assert data_of(start) == []


def test_a_character_split_between_two_reads_is_whole() -> None:
    whole = "data: 22 °C 😀\n\n".encode()
    for place in range(len(whole)):
        assert data_of(whole[:place], whole[place:]) == ["22 °C 😀".encode()]


def test_what_the_end_of_the_stream_breaks_off_is_told_and_marked() -> None:
    assert parse(b"data: a\n\ndata: [DONE]") == [
        Event(b"", b"a"),
        Event(b"", b"[DONE]", ended=False),
    ]
    assert parse(b"event: x\ndata: a\ndata: b\n") == [Event(b"x", b"a\nb", ended=False)]


def test_an_end_after_a_whole_event_a_comment_or_nothing_leaves_nothing() -> None:
    for stream in (b"", b"data: a\n\n", b": ping", b"event: x", b"\n", b"data: a\r\n\r"):
        parser = SSEParser(LIMIT)
        parser.feed(stream)
        assert parser.flush() == []


def test_a_flushed_parser_has_nothing_more() -> None:
    parser = SSEParser(LIMIT)
    parser.feed(b"data: a")
    assert len(parser.flush()) == 1
    assert parser.flush() == []


@pytest.mark.parametrize("event", [b"data: " + b"x" * 94, b"data:\n" * 20, b"data\n" * 25])
def test_an_event_of_the_limits_size_passes(event: bytes) -> None:
    assert len(parse(event + b"\n\n", limit=100)) == 1


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * 95 + b"\n\n", id="one line"),
        pytest.param(b"data: " + b"x" * 95, id="a line that does not end"),
        pytest.param(b"data: 12345678\n" * 8, id="many lines"),
        pytest.param(b"data\n" * 26, id="many empty lines"),
        pytest.param(b": " + b"x" * 99, id="a comment that does not end"),
    ],
)
def test_what_is_larger_than_the_limit_is_refused_also_byte_by_byte(stream: bytes) -> None:
    assert outcome([stream], 100) is None
    assert outcome([stream[i : i + 1] for i in range(len(stream))], 100) is None


def test_the_limit_is_of_one_event_not_of_the_stream() -> None:
    assert (
        len(parse(b"data: " + b"x" * 50 + b"\n\n", *[b"data: y\n\n: ping\n"] * 50, limit=60)) == 51
    )


@settings(deadline=None, max_examples=300)
@given(streams, cuts)
def test_however_a_stream_is_cut_its_events_are_those_of_the_standard(
    stream: bytes, places: list[int]
) -> None:
    assert parse(*cut(stream, places)) == parse(stream) == by_the_standard(stream)


@settings(deadline=None, max_examples=300)
@given(streams, cuts, st.integers(1, 40))
def test_however_a_stream_is_cut_the_limit_is_the_same(
    stream: bytes, places: list[int], limit: int
) -> None:
    assert outcome(cut(stream, places), limit) == outcome([stream], limit)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=40) | streams, max_size=8), st.integers(1, 100))
def test_whatever_the_bytes_only_their_size_can_be_refused(reads: list[bytes], limit: int) -> None:
    outcome(reads, limit)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
def test_a_recorded_stream_has_the_same_events_in_reads_of_any_size(name: str, size: int) -> None:
    stream = recordings.body(name)
    assert parse(*(stream[i : i + size] for i in range(0, len(stream), size))) == parse(stream)
    assert parse(stream) == by_the_standard(stream)
