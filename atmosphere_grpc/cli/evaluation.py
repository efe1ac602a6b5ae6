"""How well intents are routed: what is right, what is wrong, and what a score is worth."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: What stands for no route.
NONE = "(none)"
#: In how many bins of equal width scores are compared with how often they are right.
BINS = 10


class EvaluationError(Exception):
    """A file of labelled intents is wrong; the text says where."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An intent, and the route that is right for it; empty for none."""

    intent: str
    route: str


@dataclass(frozen=True, slots=True)
class Routed:
    """What was decided for a labelled intent.

    Attributes:
        expected: The right route; empty for none.
        taken: The route taken; empty for none.
        nearest: The best route, whether it was taken or not; empty where routes were not compared.
        score: How sure that one was.
    """

    expected: str
    taken: str
    nearest: str
    score: float


@dataclass(frozen=True, slots=True)
class Report:
    """The figures; shares are from 0 to 1, and 0 of nothing.

    Attributes:
        intents: How many there were.
        in_scope: How many of them belong to a route.
        forced: Which share of those has the right route as the nearest, sure or not.
        right: Which share of those took the right route.
        wrong: Which share of those took another.
        abstained: Which share of those took none.
        false_routes: Which share of the others took any.
        calibration_error: By how much scores are off, in the mean over all intents, bin by bin
            (expected calibration error).
        confusion: How often which route was taken, by the right one.
    """

    intents: int
    in_scope: int
    forced: float
    right: float
    wrong: float
    abstained: float
    false_routes: float
    calibration_error: float
    confusion: dict[str, dict[str, int]]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bin:
    """Intents of about one score: how many, their mean score, and which share was right."""

    count: int
    score: float
    right: float


def read(path: Path) -> list[Labelled]:
    """The intents of a file: a JSON object a line, with `intent` and `route` ("" for none).

    Raises:
        EvaluationError: It cannot be read, or a line is not such an object.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise EvaluationError(f"{path}: cannot be read ({reason})") from None
    labelled = [_labelled(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not labelled:
        raise EvaluationError(f"{path}: holds no intents")
    return labelled


def _labelled(path: Path, number: int, line: str) -> Labelled:
    try:
        row = json.loads(line)
        intent, route = row["intent"], row["route"]
        if not (isinstance(intent, str) and intent.strip() and isinstance(route, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EvaluationError(
            f'{path}:{number}: must be {{"intent": "…", "route": "…"}}, with "" for no route'
        ) from None
    return Labelled(intent, route)


def report(routed: Sequence[Routed]) -> Report:
    """The figures of what was decided."""
    inside = [item for item in routed if item.expected]
    outside = [item for item in routed if not item.expected]
    confusion: dict[str, Counter[str]] = {}
    for item in routed:
        confusion.setdefault(item.expected or NONE, Counter())[item.taken or NONE] += 1
    return Report(
        intents=len(routed),
        in_scope=len(inside),
        forced=_share(item.nearest == item.expected for item in inside),
        right=_share(item.taken == item.expected for item in inside),
        wrong=_share(item.taken not in ("", item.expected) for item in inside),
        abstained=_share(not item.taken for item in inside),
        false_routes=_share(bool(item.taken) for item in outside),
        calibration_error=sum(
            each.count * abs(each.score - each.right) for each in reliability(routed)
        )
        / max(1, len(routed)),
        confusion={name: dict(row) for name, row in confusion.items()},
    )


def reliability(routed: Sequence[Routed]) -> list[Bin]:
    """How often scores are right, by bins of equal width; empty bins are left out."""
    bins: list[list[Routed]] = [[] for _ in range(BINS)]
    for item in routed:
        bins[min(int(item.score * BINS), BINS - 1)].append(item)
    return [
        Bin(
            len(items),
            sum(item.score for item in items) / len(items),
            _share(item.nearest == item.expected for item in items),
        )
        for items in bins
        if items
    ]


def plot(routed: Sequence[Routed], path: Path) -> None:
    """Draws how often scores are right as a PNG.

    Raises:
        EvaluationError: What draws is not installed, or the file cannot be written.
    """
    try:
        figure_of = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise EvaluationError(
            "the plot needs matplotlib – pip install 'atmosphere-grpc[eval]', or leave --plot out"
        ) from None
    bins = reliability(routed)
    figure = figure_of.Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as sure as right")
    scores = [each.score for each in bins]
    axes.plot(scores, [each.right for each in bins], marker="o", label="measured")
    for each in bins:
        axes.annotate(
            str(each.count), (each.score, each.right), xytext=(4, -12), textcoords="offset points"
        )
    error = report(routed).calibration_error
    axes.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"{len(routed)} intents, calibration error {error:.1%}")
    axes.legend(loc="upper left")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as failed:
        raise EvaluationError(f"{path}: cannot be written ({failed.strerror})") from None


def _share(hits: Any) -> float:
    counted = [bool(hit) for hit in hits]
    return sum(counted) / len(counted) if counted else 0.0
