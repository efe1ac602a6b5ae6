"""The targets, and whether a run met them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import number, ratio
from benchmarks.rounds import FLOOR, OURS

HOUR_S = 3600.0


@dataclass(frozen=True)
class Bound:
    """One bound of a target.

    Attributes:
        text: What it asks for.
        value: What was measured, in its own terms; None where it was not.
        limit: What it may be at most.
        unit: What is written behind the value.
    """

    text: str
    value: float | None
    limit: float
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        """Whether it is; None where it was not measured."""
        return None if self.value is None else self.value <= self.limit

    def told(self) -> str:
        """In words, with what was measured."""
        if self.value is None:
            return f"{self.text}: not measured"
        return f"{self.text}: {'met' if self.met else 'missed'} ({number(self.value)}{self.unit})"


@dataclass(frozen=True)
class Target:
    """What is to be reached.

    Attributes:
        what: Of which figure.
        must: Every bound that must hold.
        stretch: Those that would be fine.
    """

    what: str
    must: Sequence[Bound]
    stretch: Sequence[Bound]


def verdict(bounds: Sequence[Bound]) -> str:
    """`met` when all are, `missed` when one is missed, else `not measured`."""
    states = [bound.met for bound in bounds]
    if False in states:
        return "missed"
    return "not measured" if None in states or not states else "met"


def targets(run: Mapping[str, Any]) -> Sequence[Target]:
    """The targets, with what a run measured."""
    figures: Mapping[str, Mapping[str, float]] = {
        name: item["figures"] for name, item in run["servers"].items()
    }

    def of(name: str, figure: str) -> float | None:
        return figures.get(name, {}).get(figure)

    def times(text: str, figure: str, name: str, limit: float, theirs: str = "") -> Bound:
        value = ratio(of(OURS, figure), of(name, theirs or figure))
        return Bound(text, value, limit, f" × {name}")

    burst = times("≤ 0.8 × the floor's own", "a32_us", FLOOR, 0.8)
    return (
        Target(
            "unary CPU a call, 32 at a time",
            (
                times("≤ 4 × the floor", "u32_us", FLOOR, 4),
                times("≤ 1/15 of LiteLLM", "u32_us", "LiteLLM", 1 / 15),
                times("≤ 1/2 of Portkey", "u32_us", "Portkey", 1 / 2),
            ),
            (
                times("≤ 2.5 × the floor", "u32_us", FLOOR, 2.5),
                times("≤ 3 × SMG", "u32_us", "SMG", 3),
            ),
        ),
        Target(
            "CPU a token, 32 paced streams, joined for 20 ms",
            (
                times("≤ 1/12 of LiteLLM", "b32_joined_us", "LiteLLM", 1 / 12, "b32_us"),
                times("≤ 1/2 of Portkey", "b32_joined_us", "Portkey", 1 / 2, "b32_us"),
            ),
            (times("≤ 1 × SMG", "b32_joined_us", "SMG", 1, "b32_us"),),
        ),
        Target("CPU a token, 32 bursts", (burst,), (times("≤ SMG", "a32_us", "SMG", 1),)),
        Target(
            "added latency, one call at a time",
            (
                times("≤ 1/15 of LiteLLM", "added_ms", "LiteLLM", 1 / 15),
                times("≤ 1/2 of Portkey", "added_ms", "Portkey", 1 / 2),
            ),
            (Bound("≤ 0.5 ms", of(OURS, "added_ms"), 0.5, " ms"),),
        ),
        Target(
            "added time to the first token",
            (times("≤ 1/5 of LiteLLM", "first_ms", "LiteLLM", 1 / 5),),
            (times("≤ 1.5 × SMG", "first_ms", "SMG", 1.5),),
        ),
        _streams(run["streams"]),
        _soak(run["soak"]),
    )


def _streams(runs: Sequence[Mapping[str, Any]]) -> Target:
    def bounds(count: int) -> Sequence[Bound]:
        of: Mapping[str, Any] | None = next((r for r in runs if r["streams"] >= count), None)
        limit = 60 + 0.040 * (of["at_once"] if of else count)
        # Starved: nothing for three times as long as between two of its tokens.
        starving = 3 * of["pace_ms"] if of else 0.0
        missing = of["streams"] - min(of["whole"], of["at_once"]) if of else None
        return (
            Bound(
                "RSS ≤ 60 MB + 40 KB for each that is open",
                of["peak_mb"] if of else None,
                limit,
                " MB",
            ),
            Bound(
                "none starved: no pause over 3 × its pace",
                of["max_gap_ms"] if of else None,
                starving,
                " ms",
            ),
            Bound(f"all {count:,} whole and open at once", missing, 0, " missing"),
        )

    return Target("2,000 slow streams at a time; stretch: 10,000", bounds(2000), bounds(10_000))


def _soak(soak: Mapping[str, Any] | None) -> Target:
    """An hour is asked for: a shorter run can miss a bound, but not meet it."""
    grown: float | None = None if soak is None or soak["growth"] is None else soak["growth"] * 100
    held: float | None = None if soak is None else sum(soak["left"].values())
    failed: float | None = None if soak is None else soak["failed"]
    whole_hour = soak is not None and soak["seconds"] >= HOUR_S

    def bound(text: str, value: float | None, limit: float, unit: str) -> Bound:
        if not whole_hour and value is not None and value <= limit:
            return Bound(f"{text} over an hour", None, limit, unit)
        return Bound(text, value, limit, unit)

    return Target(
        "an hour of traffic, 30 % cancelled",
        (
            bound("RSS grows < 5 %", grown, 5, " %"),
            bound("no permit lost", held, 0, " held"),
            bound("no call failed", failed, 0, " failed"),
        ),
        (bound("RSS grows < 1 %", grown, 1, " %"),),
    )
