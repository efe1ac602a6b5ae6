"""Which of the shipped requests are akin to a route, by where the route's own texts lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from atmosphere_grpc.routing.requests import Group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]

#: The least cosine of a text and the middle of the group that it lies in.
LIES_IN = 0.3
#: Which share of a route's texts must lie in an area that the route is about, and how many.
AGREEING_SHARE, AGREEING = 0.6, 3
#: From this cosine on, a request is too near to a route's own text to count against it.
SAME = 0.6


@dataclass(frozen=True, slots=True)
class Kin:
    """What of the shipped requests is akin to the routes.

    Attributes:
        route_of: The number of the route that a group counts for, by the group's number.
        unclear: Groups that count neither for a route nor against any.
        own: The vectors of all routes' own texts, as rows.
    """

    route_of: Mapping[int, int]
    unclear: frozenset[int]
    own: NDArray[np.float32]

    def apart(self, texts: Sequence[str], vectors: Vectors) -> list[str]:
        """Those texts that may be no route's."""
        if not texts:
            return []
        nearest = (np.stack([vectors[text] for text in texts]) @ self.own.T).max(axis=1)
        return [text for text, near in zip(texts, nearest, strict=True) if near < SAME]


def kin_of(routes: Mapping[str, Sequence[str]], vectors: Vectors, groups: Sequence[Group]) -> Kin:
    """Which groups are akin to which routes.

    A route is about an area where most of its texts lie in the area's groups. It has the whole
    area when its texts lie in several of the groups and no other route is about it, else only the
    groups that they lie in.
    """
    if not groups:
        return Kin({}, frozenset(), _own(routes, vectors))
    middles = np.stack([_middle(group, vectors) for group in groups])
    lies_in = [[_nearest(vectors[text], middles) for text in texts] for texts in routes.values()]
    about: dict[int, str] = {}
    for route, places in enumerate(lies_in):
        areas = Counter(groups[place].area for place in places if place is not None)
        for area, votes in areas.most_common(1):
            if votes >= max(AGREEING, AGREEING_SHARE * len(places)):
                about[route] = area
    claims: dict[int, set[int]] = {}
    for route, area in about.items():
        own = {i for i in lies_in[route] if i is not None and groups[i].area == area}
        contested = sum(other == area for other in about.values()) > 1
        if len(own) > 1 and not contested:
            own = {number for number, group in enumerate(groups) if group.area == area}
        for number in own:
            claims.setdefault(number, set()).add(route)
    route_of = {number: next(iter(by)) for number, by in claims.items() if len(by) == 1}
    touched = {place for places in lies_in for place in places if place is not None}
    near = {n for n, group in enumerate(groups) if group.area in about.values()} | touched
    return Kin(route_of, frozenset(near - route_of.keys()), _own(routes, vectors))


def _own(routes: Mapping[str, Sequence[str]], vectors: Vectors) -> NDArray[np.float32]:
    return np.stack([vectors[text] for texts in routes.values() for text in texts])


def _middle(group: Group, vectors: Vectors) -> NDArray[np.float32]:
    mean = np.mean([vectors[text] for text in group.requests], axis=0)
    middle: NDArray[np.float32] = mean / np.linalg.norm(mean)
    return middle


def _nearest(vector: NDArray[np.float32], middles: NDArray[np.float32]) -> int | None:
    """The number of the group that a text lies in; None for none."""
    near = middles @ vector
    best = int(near.argmax())
    return best if near[best] >= LIES_IN else None
