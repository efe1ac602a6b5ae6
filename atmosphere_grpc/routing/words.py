"""The words of texts as sparse vectors: what a model of meaning blurs, such as `translate`.

A text is its words and pairs of words, weighed by how rare they are (tf-idf).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

_WORD = re.compile(r"\w+")
#: In how many texts a word or pair must be to count.
LEAST_TEXTS = 2


class Words:
    """The vocabulary of a set of texts.

    Args:
        texts: The texts.
        length: How long a text is as a vector, unless it has no known word.
    """

    def __init__(self, texts: Sequence[str], length: float = 1.0) -> None:
        self._length = length
        frequency = Counter(term for text in texts for term in dict.fromkeys(_terms(text)))
        kept = [term for term, count in frequency.items() if count >= LEAST_TEXTS]
        self._index = {term: number for number, term in enumerate(kept)}
        total = len(texts)
        self._rarity = [1 + math.log((1 + total) / (1 + frequency[term])) for term in kept]

    def __len__(self) -> int:
        return len(self._rarity)

    def of(self, text: str) -> Mapping[int, float]:
        """A text as weights by the number of the term; empty where it has no known one."""
        counts = Counter(
            number for term in _terms(text) if (number := self._index.get(term)) is not None
        )
        weights = {n: (1 + math.log(count)) * self._rarity[n] for n, count in counts.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {n: weight / norm * self._length for n, weight in weights.items()}


def _terms(text: str) -> Iterable[str]:
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))
