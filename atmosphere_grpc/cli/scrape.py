"""A server's metrics as its endpoint gives them, and what `top` makes of two readings."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

#: How long the endpoint may take, in seconds.
LIMIT_S = 5.0

Labels = tuple[tuple[str, str], ...]


class ScrapeError(Exception):
    """The metrics cannot be read; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """A reading: the value of each series, by its name and labels, and when that was."""

    at: float = 0.0
    series: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def values(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The series of a name that have some labels."""
        for key, value in self.series.get(name, {}).items():
            own = dict(key)
            if all(own.get(label) == wanted for label, wanted in labels.items()):
                yield own, value

    def total(self, name: str, **labels: str) -> float:
        """What the series of a name that have some labels come to."""
        return sum(value for _, value in self.values(name, **labels))

    def known(self, name: str, label: str) -> list[str]:
        """The values that a label has in the series of a name, in their order."""
        return list(dict.fromkeys(own[label] for own, _ in self.values(name)))


def scrape(address: str) -> Scrape:
    """Reads the metrics at a host and port.

    Raises:
        ScrapeError: They are not there.
    """
    remedy = "does a server run there, and are its metrics on? (metrics.listen, metrics.enabled)"
    try:
        # An environment's proxies are for other addresses than a server's own.
        with httpx.Client(trust_env=False, timeout=LIMIT_S) as client:
            response = client.get(f"http://{address}/metrics")
        text = response.content.decode()
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeDecodeError) as error:
        why = str(error) or type(error).__name__
        raise ScrapeError(f"no metrics at {address} ({why}) – {remedy}") from None
    if response.status_code != httpx.codes.OK:
        raise ScrapeError(f"no metrics at {address} (HTTP {response.status_code}) – {remedy}")
    series: dict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series[sample.name][tuple(sample.labels.items())] = sample.value
    except ValueError as error:
        raise ScrapeError(f"what {address} says are no metrics ({error}) – {remedy}") from None
    return Scrape(time.monotonic(), dict(series))


@dataclass(frozen=True, slots=True)
class Interval:
    """What was counted between two readings; without an earlier one, since the server began."""

    now: Scrape
    before: Scrape | None = None

    def counted(self, name: str, **labels: str) -> float:
        """How much more there is of a name; from 0 on, where the server was begun anew."""
        now = self.now.total(name, **labels)
        before = self.before.total(name, **labels) if self.before else 0.0
        return now - before if now >= before else now

    def a_second(self, name: str, **labels: str) -> float | None:
        """The same, a second; None without an earlier reading."""
        if self.before is None:
            return None
        return self.counted(name, **labels) / max(1e-9, self.now.at - self.before.at)

    def quantile(self, share: float, histogram: str, **labels: str) -> float | None:
        """Below which bound a share of what was observed lies, in between by proportion.

        None when nothing was observed. Beyond the last finite bound, that one.
        """
        bounds = sorted(map(float, self.now.known(f"{histogram}_bucket", "le")))
        below, last = 0.0, 0.0
        total = self.counted(f"{histogram}_bucket", le="+Inf", **labels)
        if not total:
            return None
        wanted = share * total
        for bound in bounds:
            if math.isinf(bound):
                return last
            # As the label has it: a float's own form.
            count = self.counted(f"{histogram}_bucket", le=repr(bound), **labels)
            if count >= wanted:
                return last + (bound - last) * (wanted - below) / (count - below)
            below, last = count, bound
        return last
