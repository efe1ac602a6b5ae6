"""Routes told by the letters of an intent, where no embedding model reads it.

Texts are compared by their character n-grams (3 to 5 letters, within words), weighed by how rare
they are (tf-idf), as the cosine with a route's nearest example. It knows no meaning: a paraphrase
without a common word is not recognised, so that it abstains more often than a model would.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from atmosphere_grpc.routing.ranking import Bar, Ranking, ranked, threshold_for

#: Lengths of n-grams.
LENGTHS = (3, 4, 5)
#: What a score must reach in any case: below, a few common letters decide.
LEAST = 0.1
_WORD = re.compile(r"\w+")


def grams(text: str) -> Counter[str]:
    """The n-grams of a text's words; each word has a space at either end."""
    found: Counter[str] = Counter()
    for word in _WORD.findall(text.lower()):
        padded = f" {word} "
        for length in LENGTHS:
            found.update(padded[i : i + length] for i in range(len(padded) - length + 1))
    return found


class Lexical:
    """Ranks routes by the letters of an intent.

    Args:
        routes: The texts of each route, by name; at least one.
        background: Intents of no route.
        false_rate: Which share of the background may be routed at most.
    """

    def __init__(
        self, routes: Mapping[str, Sequence[str]], background: Sequence[str], false_rate: float
    ) -> None:
        self._names = tuple(routes)
        counted = [(i, grams(text)) for i, texts in enumerate(routes.values()) for text in texts]
        others = [grams(text) for text in background]
        frequency = Counter(gram for _, text in counted for gram in text)
        frequency.update(gram for text in others for gram in text)
        total = len(counted) + len(others)
        self._weight = {gram: math.log((1 + total) / (1 + n)) for gram, n in frequency.items()}
        self._rarest = math.log(1 + total)
        # By gram: in which texts it is, and how much of them it makes.
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._route_of = [route for route, _ in counted]
        for number, (_, text) in enumerate(counted):
            for gram, weight in self._unit(text).items():
                self._postings[gram].append((number, weight))
        self._bars = (Bar(),) * len(self._names)
        self._bars = self._learned([self._rank(text) for text in others], false_rate)

    def rank(self, text: str, names: Sequence[str] | None = None) -> Ranking:
        """The routes for an intent, by cosine; of all of them, or of some."""
        return self._rank(grams(text), names)

    def _rank(self, text: Counter[str], names: Sequence[str] | None = None) -> Ranking:
        near = [0.0] * len(self._route_of)
        for gram, weight in self._unit(text).items():
            for number, other in self._postings.get(gram, ()):
                near[number] += weight * other
        scores = [0.0] * len(self._names)
        for route, score in zip(self._route_of, near, strict=True):
            scores[route] = max(scores[route], min(score, 1.0))  # rounding may go beyond
        return ranked(self._names, scores, self._bars, names)

    def _unit(self, text: Counter[str]) -> dict[str, float]:
        """A text as a vector of length 1."""
        weights = {
            gram: (1 + math.log(n)) * self._weight.get(gram, self._rarest)
            for gram, n in text.items()
        }
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {gram: weight / norm for gram, weight in weights.items()}

    def _learned(self, background: Sequence[Ranking], false_rate: float) -> tuple[Bar, ...]:
        """A threshold for each route, by the background that it is the best one for.

        The share that is allowed is that of the whole background, split evenly among the routes.
        """
        allowed = int(false_rate * len(background) / len(self._names))
        by_name = {name: [r.score for r in background if r.best == name] for name in self._names}
        thresholds = (threshold_for(scores, allowed) for scores in by_name.values())
        return tuple(Bar(max(LEAST, threshold)) for threshold in thresholds)
