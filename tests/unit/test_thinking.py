"""Reasoning parted from an answer, however its text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.backends.thinking import ThinkSplitter

Texts = st.one_of(
    st.text(alphabet=" \n<>/thinkAn.", max_size=40),
    st.builds(
        "{}<think>{}</think>{}".format,
        st.text(alphabet=" \n", max_size=3),
        st.text(alphabet="<>/thinka \n", max_size=12),
        st.text(alphabet="<>/thinka \n", max_size=12),
    ),
)


def split(*pieces: str) -> tuple[str, str]:
    """Answer and reasoning of a text that comes in pieces."""
    splitter = ThinkSplitter()
    parts = [*map(splitter.feed, pieces), splitter.flush()]
    return "".join(content for content, _ in parts), "".join(reason for _, reason in parts)


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("Two.", "Two.", ""),
        ("", "", ""),
        ("<think>Hm.</think>Two.", "Two.", "Hm."),
        ("\n <think>Hm.</think>\n\nTwo.", "Two.", "Hm."),
        ("<think></think>Two.", "Two.", ""),
        ("<think>Hm.</think>", "", "Hm."),
        ("<think>Hm.", "", "Hm."),
        ("<think>Hm.</thi", "", "Hm.</thi"),
        ("<think>a</b></think>c", "c", "a</b>"),
        ("<thin", "<thin", ""),
        ("<b>Two.</b>", "<b>Two.</b>", ""),
        ("So: <think>Hm.</think>", "So: <think>Hm.</think>", ""),
        ("<think>a</think>b<think>c</think>", "b<think>c</think>", "a"),
        ("  Two.", "  Two.", ""),
    ],
)
def test_what_an_answer_begins_with_is_reasoning(text: str, content: str, reasoning: str) -> None:
    assert split(text) == (content, reasoning)
    assert split(*text) == (content, reasoning)


@given(Texts, st.lists(st.integers(0, 60), max_size=8))
def test_any_cutting_gives_the_same(text: str, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert split(*pieces) == split(text)


@given(st.text(max_size=60))
def test_an_answer_without_the_tag_is_left_as_it_is(text: str) -> None:
    if not text.lstrip().startswith("<think>"):
        assert split(*text) == (text, "")
