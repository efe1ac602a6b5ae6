"""How the routes compare for one intent, and what makes the best of them sure enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """What a route's score must reach, and how far it must be ahead of the next one's."""

    threshold: float = 0.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """The routes for an intent, the best first.

    Attributes:
        scores: Names and scores (0 to 1) of the best three routes, or of as many as there are.
        bar: What the best one must reach.
    """

    scores: tuple[tuple[str, float], ...]
    bar: Bar

    @property
    def best(self) -> str:
        """The best route's name."""
        return self.scores[0][0]

    @property
    def score(self) -> float:
        """Its score."""
        return self.scores[0][1]

    @property
    def runner_up(self) -> tuple[str, float]:
        """The next one's name and score; empty and 0 where there is none."""
        return self.scores[1] if len(self.scores) > 1 else ("", 0.0)

    @property
    def ahead(self) -> float:
        """How far the best is ahead of the next."""
        return self.score - self.runner_up[1]

    @property
    def sure(self) -> bool:
        """Whether the best one reaches its bar."""
        return self.score >= self.bar.threshold and self.ahead >= self.bar.margin


def ranked(
    names: Sequence[str],
    scores: Sequence[float],
    bars: Sequence[Bar],
    only: Sequence[str] | None = None,
) -> Ranking:
    """The ranking by all routes' scores; of equal ones, the first configured is the better.

    With `only`, others than those, of which there is at least one, are left out.
    """
    compared = [*range(len(names))]
    if only is not None and len(only) < len(names):
        compared = [i for i in compared if names[i] in only]
    order = sorted(compared, key=lambda i: -scores[i])[:3]
    return Ranking(tuple((names[i], scores[i]) for i in order), bars[order[0]])


def threshold_for(false: Sequence[float], allowed: int) -> float:
    """The lowest threshold that at most `allowed` of the scores of others' intents reach."""
    ordered = sorted(false, reverse=True)
    if allowed >= len(ordered):
        return 0.0
    return math.nextafter(ordered[allowed], math.inf)
