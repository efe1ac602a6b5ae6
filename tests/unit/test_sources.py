"""What was retrieved, in whatever shape it comes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.backends.sources import MAX_SOURCES, read_sources
from atmosphere_grpc.domain import Source
from atmosphere_grpc.v1 import chat_pb2

NAMES = ["content", "source", "score", "metadata", "sources", "x"]
Json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("item", "source"),
    [
        ({"content": "Tea.", "source": "a.md", "score": 0.5}, Source("Tea.", "a.md", 0.5)),
        ({"text": "Tea.", "title": "A", "similarity": 1}, Source("Tea.", "A", 1)),
        (
            {"content": "Tea.", "metadata": {"source": "a.md", "page": 3}},
            Source("Tea.", "a.md", None, {"page": 3}),
        ),
        ({"content": 7, "score": True}, Source(metadata={"content": 7, "score": True})),
        ({"metadata": "x"}, Source()),
        ({"score": 10**400, "similarity": 0.5}, Source(score=0.5, metadata={"score": 10**400})),
        ({"metadata": {"page": 3}, "page": 4}, Source(metadata={"page": 4})),
        ("a.md", Source(document="a.md")),
        ({}, Source()),
    ],
)
def test_names_in_common_use_are_known_and_the_rest_is_kept(item: Any, source: Source) -> None:
    assert list(read_sources([item])) == [source]
    assert list(read_sources({"sources": [item]})) == [source]


@pytest.mark.parametrize("value", [None, 7, "text", {}, {"sources": 7}, [], [7, None, []]])
def test_what_holds_none_gives_none(value: Any) -> None:
    assert list(read_sources(value)) == []


def test_there_are_never_more_than_the_most() -> None:
    assert len(list(read_sources(["x"] * (MAX_SOURCES + 1)))) == MAX_SOURCES


@given(Json | st.lists(st.dictionaries(st.sampled_from(NAMES), Json, max_size=4), max_size=3))
def test_any_json_is_read_without_a_fault_and_can_be_told_again(value: Any) -> None:
    for source in read_sources(value):
        told = chat_pb2.Source(content=source.content, document=source.document, score=source.score)
        assert told.HasField("score") is (source.score is not None)
        assert msgspec.json.decode(msgspec.json.encode(source.metadata)) == source.metadata
