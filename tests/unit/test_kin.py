"""Which of the shipped requests are akin to a route: by where its own texts lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from atmosphere_grpc.routing.kin import LIES_IN, SAME, Kin, kin_of
from atmosphere_grpc.routing.requests import Group

#: A direction for each group's topic, and further ones.
TOPICS = ("python", "java", "letters", "poems", "weather", "elsewhere", "nowhere")
SIZE = 16


class World:
    """Texts with vectors: each near the direction of its topic, or between two of them."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(7)
        self.vectors: dict[str, NDArray[np.float32]] = {}

    def texts(self, *topics: str, count: int = 4) -> list[str]:
        """So many new texts about topics, in equal parts."""
        made = []
        for _ in range(count):
            vector = self._random.normal(scale=0.02, size=SIZE)
            for topic in topics:
                vector[TOPICS.index(topic)] += 1
            text = f"{'+'.join(topics)} {len(self.vectors)}"
            self.vectors[text] = (vector / np.linalg.norm(vector)).astype(np.float32)
            made.append(text)
        return made

    def group(self, area: str, name: str) -> Group:
        return Group(area, name, tuple(self.texts(name, count=6)))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def groups(world: World) -> list[Group]:
    """Two areas of two groups each, and one of a single group."""
    named = [("code", "python"), ("code", "java"), ("writing", "letters"), ("writing", "poems")]
    return [world.group(area, name) for area, name in [*named, ("weather", "weather")]]


def claimed(kin: Kin, groups: Sequence[Group]) -> dict[str, int]:
    """The number of the route that each group counts for."""
    return {groups[number].name: route for number, route in kin.route_of.items()}


def unclear(kin: Kin, groups: Sequence[Group]) -> set[str]:
    return {groups[number].name for number in kin.unclear}


def test_a_route_about_several_groups_of_an_area_has_the_whole_area(
    world: World, groups: list[Group]
) -> None:
    texts = [*world.texts("python", count=2), *world.texts("java", count=2)]
    more = [*groups, Group("code", "elsewhere", tuple(world.texts("elsewhere")))]
    kin = kin_of({"code": texts}, world.vectors, more)
    assert claimed(kin, more) == {"python": 0, "java": 0, "elsewhere": 0}
    assert unclear(kin, more) == set()


def test_a_route_about_one_group_has_that_and_the_rest_of_the_area_is_unclear(
    world: World, groups: list[Group]
) -> None:
    kin = kin_of({"snakes": world.texts("python")}, world.vectors, groups)
    assert claimed(kin, groups) == {"python": 0}
    assert unclear(kin, groups) == {"java"}


@pytest.mark.parametrize(
    ("inside", "outside", "is_about"), [(3, 0, True), (3, 2, True), (3, 3, False), (2, 0, False)]
)
def test_an_area_is_a_routes_where_most_of_its_texts_lie_in_it_and_three_at_least(
    world: World, groups: list[Group], inside: int, outside: int, is_about: bool
) -> None:
    texts = [*world.texts("python", count=inside), *world.texts("nowhere", count=outside)]
    kin = kin_of({"route": texts}, world.vectors, groups)
    assert claimed(kin, groups) == ({"python": 0} if is_about else {})
    # What one of its texts lies in is held against it in no case.
    assert "python" not in {group.name for i, group in enumerate(groups) if counts(kin, i)}


def counts(kin: Kin, number: int) -> bool:
    """Whether a group counts against all routes."""
    return number not in kin.route_of and number not in kin.unclear


def test_two_routes_in_one_area_have_their_own_groups_only(
    world: World, groups: list[Group]
) -> None:
    more = [*groups, Group("code", "elsewhere", tuple(world.texts("elsewhere")))]
    routes = {
        "snakes": [*world.texts("python", count=3), *world.texts("elsewhere", count=1)],
        "coffee": world.texts("java"),
    }
    kin = kin_of(routes, world.vectors, more)
    assert claimed(kin, more) == {"python": 0, "elsewhere": 0, "java": 1}


def test_a_group_that_two_routes_lie_in_is_neithers(world: World, groups: list[Group]) -> None:
    routes = {"one": world.texts("python"), "two": world.texts("python")}
    kin = kin_of(routes, world.vectors, groups)
    assert claimed(kin, groups) == {}
    assert unclear(kin, groups) == {"python", "java"}


def test_routes_in_areas_of_their_own_have_them_each(world: World, groups: list[Group]) -> None:
    routes = {
        "writing": [*world.texts("letters", count=2), *world.texts("poems", count=2)],
        "code": [*world.texts("python", count=2), *world.texts("java", count=2)],
    }
    kin = kin_of(routes, world.vectors, groups)
    assert claimed(kin, groups) == {"letters": 0, "poems": 0, "python": 1, "java": 1}
    assert counts(kin, 4)  # the weather is neither's


def test_a_text_that_is_near_no_group_lies_in_none(world: World, groups: list[Group]) -> None:
    kin = kin_of({"route": world.texts("nowhere")}, world.vectors, groups)
    assert claimed(kin, groups) == {}
    assert unclear(kin, groups) == set()
    assert 0 < LIES_IN < 1


def test_without_shipped_requests_nothing_is_akin(world: World) -> None:
    kin = kin_of({"route": world.texts("python")}, world.vectors, [])
    assert (kin.route_of, kin.unclear) == ({}, frozenset())


def test_a_request_that_is_too_near_to_a_routes_own_is_not_held_against_it(
    world: World, groups: list[Group]
) -> None:
    kin = kin_of({"route": world.texts("python")}, world.vectors, groups)
    same, half = world.texts("python"), world.texts("python", "weather")  # 1, and 0.71
    quarter = world.texts("python", "weather", "poems", "letters")  # 0.5
    far = world.texts("weather")
    assert kin.apart([*same, *half, *quarter, *far], world.vectors) == [*quarter, *far]
    assert 0.5 < SAME < 0.71
    assert kin.apart([], world.vectors) == []
