"""How routes compare: which is the best, whether it is sure, and where a threshold lies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.routing.ranking import Bar, Ranking, ranked, threshold_for

NAMES = ("a", "b", "c", "d")
LOW = (Bar(),) * len(NAMES)
Scores = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def test_the_best_three_are_kept_in_their_order_with_the_bar_of_the_best() -> None:
    bars = [Bar(number / 10) for number in range(4)]
    ranking = ranked(NAMES, [0.1, 0.2, 0.5, 0.4], bars)
    assert ranking.scores == (("c", 0.5), ("d", 0.4), ("b", 0.2))
    assert ranking.bar == Bar(0.2)
    assert (ranking.best, ranking.score, ranking.runner_up) == ("c", 0.5, ("d", 0.4))


def test_of_equal_scores_the_first_configured_is_the_better() -> None:
    assert ranked(NAMES, [0.1, 0.5, 0.5, 0.1], LOW).scores == (("b", 0.5), ("c", 0.5), ("a", 0.1))


def test_of_some_routes_no_other_is_compared() -> None:
    bars = [Bar(number / 10) for number in range(4)]
    ranking = ranked(NAMES, [0.4, 0.2, 0.5, 0.1], bars, ["d", "b"])
    assert ranking.scores == (("b", 0.2), ("d", 0.1))
    assert ranking.bar == Bar(0.1)
    assert ranked(NAMES, [0.4, 0.2, 0.5, 0.1], bars, NAMES).best == "c"


def test_one_route_alone_has_none_behind_it() -> None:
    ranking = ranked(["a"], [0.75], [Bar()])
    assert (ranking.runner_up, ranking.ahead) == (("", 0.0), 0.75)


def test_a_score_that_reaches_its_threshold_is_sure() -> None:
    assert Ranking((("a", 0.5), ("b", 0.0)), Bar(0.5)).sure
    assert not Ranking((("a", 0.4999), ("b", 0.0)), Bar(0.5)).sure


def test_one_that_is_not_far_enough_ahead_is_not() -> None:
    scores = (("a", 0.75), ("b", 0.5))
    assert Ranking(scores, Bar(0.5, 0.25)).sure
    assert not Ranking(scores, Bar(0.5, 0.2501)).sure


@settings(deadline=None)
@given(Scores)
def test_a_ranking_is_in_order_and_its_best_is_the_greatest(scores: list[float]) -> None:
    ranking = ranked(NAMES, scores, LOW)
    listed = [score for _, score in ranking.scores]
    assert listed == sorted(scores, reverse=True)[:3]
    assert all(scores[NAMES.index(name)] == score for name, score in ranking.scores)
    assert ranking.sure


def test_a_threshold_lets_as_many_of_the_others_through_as_are_allowed() -> None:
    false = [0.1, 0.9, 0.5, 0.7]
    for allowed in range(4):
        threshold = threshold_for(false, allowed)
        assert sum(score >= threshold for score in false) == allowed


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, 40))
def test_a_threshold_never_lets_more_through_and_is_the_lowest_that_does_not(
    false: list[float], allowed: int
) -> None:
    threshold = threshold_for(false, allowed)
    assert sum(score >= threshold for score in false) <= allowed
    below = [score for score in false if score < threshold]
    if below:  # any lower, and the next would pass as well
        assert sum(score >= max(below) for score in false) > allowed


def test_a_threshold_of_no_others_keeps_nothing_out() -> None:
    assert threshold_for([], 0) == 0.0
