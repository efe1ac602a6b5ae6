"""What a backend says it retrieved, out of whatever shape that has.

LlamaFarm documents that sources come, not how; so names in common use are looked for, and what is
not understood is kept as metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atmosphere_grpc.domain import Source

CONTENT_NAMES = ("content", "text", "snippet", "page_content")
DOCUMENT_NAMES = ("document", "source", "file", "filename", "file_name", "title", "name")
SCORE_NAMES = ("score", "similarity", "relevance_score")
#: The most sources of an answer; LlamaFarm's own limit is 50.
MAX_SOURCES = 100


def read_sources(value: Any) -> Iterator[Source]:
    """The sources in a decoded JSON value: a list of them, or an object with one in `sources`."""
    if isinstance(value, Mapping):
        value = value.get("sources")
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value[:MAX_SOURCES]:
            if isinstance(item, Mapping):
                yield _source(item)
            elif isinstance(item, str):
                yield Source(document=item)


def _source(item: Mapping[str, Any]) -> Source:
    left = dict(item)
    metadata = left.pop("metadata", None)
    if isinstance(metadata, Mapping):
        left = {**metadata, **left}
    content = _take(left, CONTENT_NAMES, _is_text)
    document = _take(left, DOCUMENT_NAMES, _is_text)
    score = _take(left, SCORE_NAMES, _is_number)
    return Source(content or "", document or "", score, left)


def _take(left: dict[str, Any], names: Sequence[str], fits: Callable[[Any], bool]) -> Any:
    """The first of some names that has a fitting value, which is removed."""
    for name in names:
        if fits(left.get(name)):
            return left.pop(name)
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Whether it is a number that a double holds: JSON has larger ones."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
