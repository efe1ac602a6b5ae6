"""The arithmetic of the figures: what is made of what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def number(value: float | None) -> str:
    """A figure as it is written, with three digits; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(values: Sequence[float | None]) -> float | None:
    """The median of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(value: float | None, other: float | None) -> float | None:
    """How many times the other it is; None where one of them is missing or nothing."""
    if value is None or other is None or other <= 0:
        return None
    return value / other


def added(values: float | None, alone: float | None) -> float | None:
    """What a server adds to the backend's own time."""
    return None if values is None or alone is None else values - alone


def exponent(costs: Mapping[float, float]) -> float | None:
    """The k of cost ~ size^k that fits best; None where there are fewer than two sizes."""
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def growth(samples: Sequence[float], warm: float = 0.25, width: float = 0.1) -> float | None:
    """By which share the last samples lie above those at the end of the warming up."""
    count = max(1, int(len(samples) * width))
    first = int(len(samples) * warm)
    if first == 0 or len(samples) < first + 2 * count:
        return None
    before = statistics.median(samples[first : first + count])
    return statistics.median(samples[-count:]) / before - 1
