"""Routes told by the letters of an intent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.routing import requests
from atmosphere_grpc.routing.lexical import LEAST, Lexical, grams
from atmosphere_grpc.routing.routes import excerpt

ROUTES = {
    "translate": ["Translate this letter into French", "English to Spanish, please"],
    "maths": ["Solve x squared minus 5x plus 6 = 0", "What is 17 percent of 230?"],
    "code": ["Write a Python function that reverses a string", "Review this pull request"],
}
RATE = 0.05


@pytest.fixture(scope="module")
def lexical() -> Lexical:
    return Lexical(ROUTES, requests.background(), RATE)


def test_the_letters_of_words_are_counted_within_each_word() -> None:
    assert set(grams("Hi, A")) == {" hi", "hi ", " hi ", " a "}
    assert grams("na na")[" na"] == 2
    assert grams("?!") == {}


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("Translate this letter into French", "translate"),
        ("please translate my letter into french!", "translate"),
        ("Write a Python function that sorts a list", "code"),
        ("reveiw this pull reqest", "code"),  # mistyped
        ("what is 20 percent of 80", "maths"),
    ],
)
def test_what_is_said_in_the_words_of_an_example_is_told(
    lexical: Lexical, text: str, route: str
) -> None:
    ranking = lexical.rank(text)
    assert ranking.best == route
    assert ranking.sure


@pytest.mark.parametrize("text", ["How do Germans say good night?", "Debugging my code", "Hello"])
def test_it_knows_no_meaning_and_does_not_guess(lexical: Lexical, text: str) -> None:
    assert not lexical.rank(text).sure


def test_of_some_routes_no_other_is_compared(lexical: Lexical) -> None:
    ranking = lexical.rank("Write a Python function", ["translate", "maths"])
    assert {name for name, _ in ranking.scores} == {"translate", "maths"}
    assert not ranking.sure


def test_an_example_itself_is_as_like_as_can_be(lexical: Lexical) -> None:
    for name, texts in ROUTES.items():
        for text in texts:
            ranking = lexical.rank(text)
            assert ranking.best == name
            assert 1 - 1e-9 < ranking.score <= 1


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_no_more_of_the_background_is_routed_than_is_allowed(rate: float) -> None:
    background = requests.background()
    made = Lexical(ROUTES, background, rate)
    routed = sum(made.rank(text).sure for text in background)
    assert routed <= rate * len(background)


def test_a_higher_rate_lets_more_through() -> None:
    background = requests.background()
    strict, lax = (Lexical(ROUTES, background, rate) for rate in (0.005, 0.05))
    sure = [[made.rank(text).sure for text in background] for made in (strict, lax)]
    assert sum(sure[0]) < sum(sure[1])


def test_a_few_common_letters_never_decide() -> None:
    made = Lexical({"a": ["abcdef"]}, [], RATE)
    assert made.rank("abcdef").bar.threshold == LEAST
    assert not made.rank("zzzzzz").sure


@pytest.mark.parametrize("text", ["", " ", "?!", "🙂"])
def test_a_text_without_a_word_is_like_none(lexical: Lexical, text: str) -> None:
    ranking = lexical.rank(text)
    assert ranking.score == 0
    assert not ranking.sure


def test_of_a_long_text_what_is_read_is_what_is_ranked(lexical: Lexical) -> None:
    text = f"Translate this letter into French: {'lorem ipsum dolor ' * 1_200}"
    assert len(text) > 20_000
    read = excerpt(text, 200)
    assert len(read) == 200
    assert lexical.rank(read).best == "translate"
    assert lexical.rank(read).score > lexical.rank(text).score


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_scores_are_shares_in_order(lexical: Lexical, text: str) -> None:
    scores = [score for _, score in lexical.rank(text).scores]
    assert len(scores) == len(ROUTES)
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
