"""The classifier, on made-up vectors: what it tells apart, and what it keeps out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from atmosphere_grpc.routing.head import LEAST, Head, train
from atmosphere_grpc.routing.requests import Group

#: Topics are directions in a space of so many dimensions.
SIZE = 24
TOPICS = ("code", "letters", "maths", "weather", "sport", "cooking", "travel")
RATE = 0.05


class World:
    """Texts about topics, with vectors that scatter around each topic's direction."""

    def __init__(self, scatter: float = 0.12) -> None:
        self._random = np.random.default_rng(11)
        self._scatter = scatter
        self.vectors: dict[str, NDArray[np.float32]] = {}

    def texts(self, topic: str, count: int) -> list[str]:
        # Without a word in common: what is learned is learned of the vectors.
        made = [f"text{len(self.vectors) + i}" for i in range(count)]
        self.vectors.update({text: self.vector(topic) for text in made})
        return made

    def vector(self, topic: str) -> NDArray[np.float32]:
        raw = self._random.normal(scale=self._scatter, size=SIZE)
        raw[TOPICS.index(topic)] += 1
        return (raw / np.linalg.norm(raw)).astype(np.float32)

    def background(self, count: int = 240) -> list[str]:
        """Texts of no route, topic by topic."""
        others = TOPICS[3:]
        return [text for topic in others for text in self.texts(topic, count // len(others))]


def trained(
    world: World,
    routes: Mapping[str, Sequence[str]],
    groups: Sequence[Group] = (),
    rate: float = RATE,
) -> Head:
    return train(routes, world.vectors, groups, world.background(), rate)


def right(head: Head, world: World, topic: str, count: int = 50) -> float:
    """Which share of new intents of a topic is routed to the route of its name."""
    rankings = [head.rank(world.vector(topic).tolist(), "") for _ in range(count)]
    return sum(item.sure and item.best == topic for item in rankings) / count


def routed(head: Head, world: World, topic: str, count: int = 100) -> float:
    """Which share of new intents of a topic is routed at all."""
    rankings = [head.rank(world.vector(topic).tolist(), "") for _ in range(count)]
    return sum(item.sure for item in rankings) / count


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def head(world: World) -> Head:
    """Three routes of six texts each."""
    return trained(world, {topic: world.texts(topic, 6) for topic in TOPICS[:3]})


@pytest.mark.parametrize("topic", TOPICS[:3])
def test_routes_that_lie_apart_are_told_apart(world: World, head: Head, topic: str) -> None:
    assert right(head, world, topic) >= 0.9


@pytest.mark.parametrize("topic", TOPICS[3:])
def test_what_is_like_the_background_is_none_of_them(world: World, head: Head, topic: str) -> None:
    assert routed(head, world, topic) <= RATE


def test_scores_are_how_likely_each_route_is(world: World, head: Head) -> None:
    for topic in TOPICS:
        ranking = head.rank(world.vector(topic).tolist(), "a text")
        scores = [score for _, score in ranking.scores]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert sum(scores) <= 1 + 1e-9  # the rest is that it is none


def test_of_some_routes_no_other_is_compared(world: World, head: Head) -> None:
    ranking = head.rank(world.vector("code").tolist(), "", ["letters", "maths"])
    assert {name for name, _ in ranking.scores} == {"letters", "maths"}
    assert not ranking.sure  # it is no likelier one of them for that


def test_an_intent_of_a_route_is_likely_one_and_others_are_likely_none(
    world: World, head: Head
) -> None:
    inside = [head.rank(world.vector("code").tolist(), "").score for _ in range(50)]
    outside = [head.rank(world.vector("sport").tolist(), "").score for _ in range(50)]
    assert np.median(inside) > 0.7
    assert np.median(outside) < 0.3


def test_the_length_of_a_vector_is_nothing(world: World, head: Head) -> None:
    vector = world.vector("code")
    once, longer = (head.rank((vector * length).tolist(), "") for length in (1, 17))
    assert dict(longer.scores) == pytest.approx(dict(once.scores))


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1])
def test_a_vector_of_another_length_is_told(head: Head, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} dimensions, not {SIZE} as before"):
        head.rank([0.1] * size, "")


def test_one_route_alone_is_told_from_none() -> None:
    world = World()
    head = trained(world, {"code": world.texts("code", 5)})
    assert right(head, world, "code") >= 0.9
    assert routed(head, world, "weather") <= RATE
    assert head.rank(world.vector("code").tolist(), "").runner_up == ("", 0.0)


@pytest.mark.parametrize("examples", [0, 5])
def test_a_route_of_a_description_alone_is_told(examples: int) -> None:
    """It has no other text to be learned from, so that it tells nothing of how sure a score is."""
    world = World()
    routes = {"code": world.texts("code", 1), "maths": world.texts("maths", 1 + examples)}
    head = trained(world, routes)
    assert right(head, world, "code") >= 0.9
    assert right(head, world, "maths") >= 0.9
    assert routed(head, world, "sport") <= RATE


def test_one_route_of_a_description_alone_is_told_from_none() -> None:
    world = World()
    head = trained(world, {"code": world.texts("code", 1)})
    assert right(head, world, "code") >= 0.9
    assert routed(head, world, "sport") <= RATE


def test_words_tell_where_vectors_do_not() -> None:
    world = World()
    ask, tell = [f"please solve {i}" for i in range(6)], [f"now draw {i}" for i in range(6)]
    world.vectors.update({text: world.vector("code") for text in [*ask, *tell]})
    head = trained(world, {"ask": ask, "tell": tell})
    vector = world.vector("code").tolist()
    assert head.rank(vector, "Solve this, please").best == "ask"
    assert head.rank(vector, "Draw this, now").best == "tell"


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_of_unseen_intents_of_none_no_more_are_routed_than_the_bound_says(rate: float) -> None:
    """They scatter so much here that a part of them looks like those of a route."""
    world = World(scatter=0.3)
    head = trained(world, {t: world.texts(t, 8) for t in TOPICS[:3]}, rate=rate)
    unseen = [routed(head, world, topic, 250) for topic in TOPICS[3:]]
    deviation = (rate * (1 - rate) * (1 / 1000 + 1 / 240)) ** 0.5  # of both samples
    assert np.mean(unseen) <= rate + 2 * deviation


def test_a_higher_bound_lets_more_of_a_routes_own_through() -> None:
    through = []
    for rate in (0.01, 0.3):
        world = World(scatter=0.3)
        head = trained(world, {t: world.texts(t, 8) for t in TOPICS[:3]}, rate=rate)
        through.append(sum(right(head, world, topic, 200) for topic in TOPICS[:3]))
    assert through[0] < through[1]


def test_shipped_requests_of_its_area_count_for_a_route_and_others_for_none() -> None:
    world = World(scatter=0.25)
    groups = [
        Group("code", "code", tuple(world.texts("code", 40))),
        Group("maths", "maths", tuple(world.texts("maths", 40))),
    ]
    own = {"code": world.texts("code", 4)}
    with_them, without = trained(world, own, groups), trained(world, own)
    assert right(with_them, world, "code", 200) > 0.8
    assert routed(with_them, world, "maths") < 0.1
    assert routed(with_them, world, "maths", 200) <= routed(without, world, "maths", 200)


def test_a_route_that_is_as_good_as_ruled_out_is_never_taken() -> None:
    """Where all texts are easy to tell apart, the least score would keep the bound."""
    world = World(scatter=0.01)
    head = trained(world, {topic: world.texts(topic, 6) for topic in TOPICS[:2]})
    for topic in TOPICS[2:]:
        ranking = head.rank(world.vector(topic).tolist(), "")
        assert not ranking.sure
        assert ranking.bar.threshold >= LEAST > 0
    assert right(head, world, "code") == 1


def test_the_same_texts_make_the_same_classifier() -> None:
    made = []
    for _ in range(2):
        world = World()
        head = trained(world, {t: world.texts(t, 5) for t in TOPICS[:2]})
        made.append(head.rank(world.vector("code").tolist(), "text3"))
    assert made[0] == made[1]


def test_where_everything_is_too_near_to_a_route_there_is_no_none_to_learn() -> None:
    world = World(scatter=0.01)
    own = {"code": world.texts("code", 4), "maths": world.texts("maths", 4)}
    head = train(own, world.vectors, [], world.texts("code", 30), RATE)
    assert head.rank(world.vector("maths").tolist(), "").best == "maths"
