"""The words of texts as sparse vectors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.routing.words import Words

TEXTS = ("translate this letter", "translate this", "write a letter", "write a poem", "hello")


def test_a_word_or_pair_counts_that_is_in_two_texts_at_least() -> None:
    words = Words(TEXTS)
    kept = ("translate", "this", "letter", "write", "a", "translate this", "write a")
    assert len(words) == len(kept)
    assert len(words.of("translate this")) == 3  # both words, and the pair
    assert len(words.of("this translate")) == 2
    assert words.of("poem hello") == {}


def test_words_are_told_apart_by_neither_case_nor_what_stands_between() -> None:
    words = Words(TEXTS)
    assert words.of("Translate, THIS!") == words.of("translate this")


def test_a_rarer_word_weighs_more() -> None:
    words = Words(["the cat", "the dog", "the cat sat", "the end"])
    (the,), (cat,) = words.of("the"), words.of("cat")
    weights = words.of("cat the")
    assert weights[cat] > weights[the]


def test_a_word_that_is_said_again_weighs_more_but_not_twice_as_much() -> None:
    words = Words(["red", "blue", "red", "blue"])
    once, twice = words.of("red blue"), words.of("red red blue")
    red, blue = sorted(once)
    assert once[red] == once[blue]
    assert 1 < twice[red] / twice[blue] < 2


@settings(deadline=None)
@given(st.text(), st.lists(st.text(max_size=20), max_size=8))
def test_a_text_has_length_1_or_no_known_word(text: str, others: list[str]) -> None:
    weights = Words([*others, text, text]).of(text)
    if weights:
        assert math.hypot(*weights.values()) == pytest.approx(1)
    else:
        assert Words([text, text]).of(text) == {}


def test_terms_are_numbered_in_the_order_in_which_they_come() -> None:
    words = Words(["one two three", "one two three"])
    assert [*words.of("one"), *words.of("two"), *words.of("three")] == [0, 1, 2]


def test_of_no_texts_there_is_no_vocabulary() -> None:
    words = Words([])
    assert len(words) == 0
    assert words.of("hello") == {}


def test_a_text_may_be_of_another_length() -> None:
    weights = Words(TEXTS, 0.5).of("translate this")
    assert math.hypot(*weights.values()) == pytest.approx(0.5)
