"""A small linear classifier over an intent's vector and words: which route, or none, and how sure.

It learns from the routes' own texts and from the requests that ship with the package: those of an
area that a route is about count for the route, all others for none. How sure it is, is calibrated
on intents that it has not seen, by cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from atmosphere_grpc.routing.kin import Kin, kin_of
from atmosphere_grpc.routing.ranking import Bar, Ranking, ranked, threshold_for
from atmosphere_grpc.routing.requests import Group
from atmosphere_grpc.routing.words import Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = "NDArray[np.float64]"
    Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]

#: How much words weigh beside the vector, which has length 1: where no route has shipped requests
#: to learn words from, and where every route has.
WORDS_WEIGHTS = (0.5, 2.0)
#: How much a route's own text weighs beside a request that ships.
OWN_WEIGHT = 3.0
#: How much none weighs beside a route.
NONE_WEIGHT = 2.0
#: The inverse of how strongly weights are kept small.
STRENGTH = 2.0
#: When learning stops: the steepest slope that is left.
TOLERANCE = 1e-3
#: How many dimensions of the vectors are learned on: those in which the texts differ most. Others
#: cost time at start-up and change nothing that can be measured.
DIMENSIONS = 192
#: In how many parts what it learns from is cut, each predicted by the others.
FOLDS = 3
#: The part of what is always learned from: the one text of a route that has no other.
ALWAYS = FOLDS
#: Of how many stretches of the background each part has.
STRETCHES = 5
#: The logit of a route that nothing was learned of.
NEVER = -30.0
#: Which share of all intents is taken to belong to no route. The bound on false routes holds
#: whatever it is; how sure a score sounds depends on it.
NONE_SHARE = 0.3
#: Which share of a route's texts may be others', before it must be ahead of the next by a margin.
WRONG_SHARE = 0.1
#: How strongly what is added to each route's logit is kept small.
SHRINKAGE = 1e-4
#: What a score must reach in any case: where texts are easy to tell apart, the least would do.
LEAST = 0.01
#: How far a route's threshold may be from the one that would do for all.
APART = 0.1
#: How many texts a route is taken to have, where one threshold is weighed against another.
TYPICAL = 100


@dataclass(frozen=True, slots=True)
class Lesson:
    """One text to learn from.

    Attributes:
        text: The text.
        route: The number of its route; that of none comes after the last.
        fold: In which part it is.
        weight: How much it counts.
        tells: Whether it tells how sure a score is: like the intents that come, and of a route with
            others to learn it from. Shipped requests of a kind of their own are not: a route may
            well have them.
    """

    text: str
    route: int
    fold: int
    weight: float = 1.0
    tells: bool = True


class Head:
    """A trained classifier.

    Args:
        names: The routes.
        words: The vocabulary.
        of_vector: One row a dimension of the vector; one column a route, then that of none.
        of_words: One row a term, and the same columns.
        bias: One number a column.
        bars: What each route's score must reach.
    """

    def __init__(
        self,
        names: Sequence[str],
        words: Words,
        of_vector: Floats,
        of_words: Floats,
        bias: Floats,
        bars: Sequence[Bar],
    ) -> None:
        self._names = tuple(names)
        self._words = words
        self._of_vector = np.ascontiguousarray(of_vector)
        self._of_words = np.ascontiguousarray(of_words)
        self._bias = bias
        self._bars = tuple(bars)

    def rank(
        self, vector: Sequence[float], text: str, names: Sequence[str] | None = None
    ) -> Ranking:
        """The routes for an intent, by how likely each is right; of all of them, or of some.

        Raises:
            ValueError: The vector is not of the length that it was trained on.
        """
        row = np.asarray(vector, np.float64)
        size = len(self._of_vector)
        if row.shape != (size,):
            raise ValueError(f"the embedder gives {row.size} dimensions, not {size} as before")
        length = float(np.linalg.norm(row)) or 1.0
        logits = self._bias + row / length @ self._of_vector
        if terms := self._words.of(text):
            logits = logits + np.fromiter(terms.values(), float) @ self._of_words[list(terms)]
        likely = np.exp(logits - logits.max())
        likely /= likely.sum()
        ranking = ranked(self._names, likely[:-1].tolist(), self._bars, names)
        none = float(likely[-1])
        if none <= ranking.bar.threshold:
            return ranking
        # Whatever was learned of a few texts: a route less likely than none is not taken.
        return replace(ranking, bar=Bar(none, ranking.bar.margin))


def train(
    routes: Mapping[str, Sequence[str]],
    vectors: Vectors,
    groups: Sequence[Group],
    background: Sequence[str],
    false_rate: float,
) -> Head:
    """A classifier for routes.

    Args:
        routes: The texts of each route, by name; at least one.
        vectors: The vectors of all texts, of length 1.
        groups: Requests that ship, which may be akin to a route.
        background: Requests of no route.
        false_rate: Which share of the intents of no route may be routed at most.
    """
    with threadpool_limits(1):  # several threads for so little only wait for each other
        return _trained(routes, vectors, groups, background, false_rate)


def _trained(
    routes: Mapping[str, Sequence[str]],
    vectors: Vectors,
    groups: Sequence[Group],
    background: Sequence[str],
    false_rate: float,
) -> Head:
    kin = kin_of(routes, vectors, groups)
    lessons = _lessons(routes, kin, vectors, groups, background)
    texts = [lesson.text for lesson in lessons]
    least, most = WORDS_WEIGHTS
    share = len(set(kin.route_of.values())) / len(routes)
    words = Words(texts, least + share * (most - least))
    rows = np.stack([vectors[text] for text in texts]).astype(np.float64)
    axes = _main_axes(rows)
    features = _features(texts, rows @ axes, words)
    classes = np.array([lesson.route for lesson in lessons])
    weights = np.array([lesson.weight for lesson in lessons])
    folds = np.array([lesson.fold for lesson in lessons])
    count = len(routes)
    unseen = np.zeros((len(lessons), count + 1))
    for fold in range(FOLDS):
        out = folds == fold
        fitted = _fit(features[~out], classes[~out], weights[~out])
        learned, offset = _columns(fitted, count)
        unseen[out] = features[out] @ learned + offset
    telling = np.array([lesson.tells for lesson in lessons])
    unseen, told = unseen[telling], classes[telling]
    heat, added = _calibrated(unseen, told, _shares(told, count))
    bars = _bars(unseen / heat + added, told, false_rate)
    learned, offset = _columns(_fit(features, classes, weights), count)
    learned, offset = learned / heat, offset / heat + added
    size = axes.shape[1]
    return Head(tuple(routes), words, axes @ learned[:size], learned[size:], offset, bars)


def _lessons(
    routes: Mapping[str, Sequence[str]],
    kin: Kin,
    vectors: Vectors,
    groups: Sequence[Group],
    background: Sequence[str],
) -> list[Lesson]:
    """What is learned from; shipped requests that are too near to a route's own are left out."""
    lessons = [
        Lesson(text, number, i % FOLDS if len(texts) > 1 else ALWAYS, OWN_WEIGHT, len(texts) > 1)
        for number, texts in enumerate(routes.values())
        for i, text in enumerate(texts)
    ]
    for number, group in enumerate(groups):
        route = kin.route_of.get(number)
        if route is not None:
            lessons += [Lesson(t, route, i % FOLDS) for i, t in enumerate(group.requests)]
        elif number not in kin.unclear:
            requests = kin.apart(group.requests, vectors)
            lessons += [Lesson(t, len(routes), number % FOLDS, tells=False) for t in requests]
    others = kin.apart(background, vectors)
    # Whole stretches, which are about one topic each: others' intents are of unseen topics, too.
    lessons += [
        Lesson(text, len(routes), i * STRETCHES * FOLDS // len(others) % FOLDS)
        for i, text in enumerate(others)
    ]
    return lessons


def _main_axes(rows: Floats) -> Floats:
    """The directions in which rows differ most, as columns of length 1."""
    _, axes = np.linalg.eigh(rows.T @ rows)
    most: Floats = axes[:, ::-1][:, :DIMENSIONS]
    return most


def _features(texts: Sequence[str], vectors: Floats, words: Words) -> Any:
    rows = [words.of(text) for text in texts]
    data = [weight for row in rows for weight in row.values()]
    columns = [number for row in rows for number in row]
    ends = np.cumsum([0, *map(len, rows)])
    sparse = csr_matrix((data, columns, ends), shape=(len(texts), len(words)))
    return hstack([csr_matrix(vectors), sparse]).tocsr()


def _fit(features: Any, classes: NDArray[np.int64], weights: Floats) -> LogisticRegression:
    """Each route weighs as much as any other, however many texts it has; none weighs more."""
    total = np.bincount(classes, weights)
    share = 1 / np.maximum(total, 1)
    share[-1] *= NONE_WEIGHT
    balanced = weights * (share / share.mean())[classes]
    balanced *= len(classes) / balanced.sum()
    model = LogisticRegression(C=STRENGTH, max_iter=300, tol=TOLERANCE)
    return model.fit(features, classes, sample_weight=balanced)


def _columns(model: LogisticRegression, count: int) -> tuple[Floats, Floats]:
    """Weights and bias with a column for every route and for none, whatever the model learned of.

    Of two classes, scikit-learn gives one column: that of the second.
    """
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] == 1:
        weights, bias = np.hstack([-weights, weights]) / 2, np.array([-bias[0], bias[0]]) / 2
    all_weights = np.zeros((len(weights), count + 1))
    all_bias = np.full(count + 1, NEVER)
    all_weights[:, model.classes_], all_bias[model.classes_] = weights, bias
    return all_weights, all_bias


def _shares(classes: NDArray[np.int64], count: int) -> Floats:
    """How much each text counts, so that routes have equal shares beside that of none."""
    sizes = np.bincount(classes, minlength=count + 1)
    each = np.full(count + 1, (1 - NONE_SHARE) / count)
    each[count] = NONE_SHARE
    return (each / np.maximum(sizes, 1))[classes]


def _calibrated(logits: Floats, classes: NDArray[np.int64], share: Floats) -> tuple[float, Floats]:
    """By what logits are divided, and what is added to each column, so that they are honest.

    Vector scaling (Guo et al., On Calibration of Modern Neural Networks, 2017). A route of a few
    texts knows less of its intents than one with many, and would lose to it every time. To one that
    no unseen text tells of, nothing is added; where that is so of all, nothing is known.
    """
    rows = np.arange(len(classes))
    told_of = np.bincount(classes, minlength=logits.shape[1]) > 0
    if not told_of[:-1].any():
        return 1.0, np.zeros(logits.shape[1])

    def loss(given: Floats) -> float:
        shifted = logits / np.exp(given[0]) + given[1:] * told_of
        top = shifted.max(axis=1)
        total = top + np.log(np.exp(shifted - top[:, None]).sum(axis=1))
        told = float((share * (total - shifted[rows, classes])).sum())
        return told + SHRINKAGE * float((given[1:-1] ** 2).sum())

    found = minimize(loss, np.zeros(logits.shape[1] + 1), method="L-BFGS-B")
    return float(np.exp(found.x[0])), found.x[1:] * told_of


def _bars(logits: Floats, classes: NDArray[np.int64], false_rate: float) -> list[Bar]:
    """What each route's score must reach, by unseen texts.

    Of all thresholds that keep the false routes within the bound, those that let the most texts of
    the routes through: a route that few others are mistaken for needs a lower one. Where too many
    texts of other routes pass, a route must be ahead of the next by a margin.
    """
    count = logits.shape[1] - 1
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    likely = (likely / likely.sum(axis=1, keepdims=True))[:, :count]
    rows = np.arange(len(likely))
    best = likely.argmax(axis=1)
    score = likely[rows, best]
    others = likely.copy()
    others[rows, best] = 0
    ahead = score - others.max(axis=1)
    none, right = classes == count, classes == best
    wrong = ~none & ~right
    allowed = int(false_rate * none.sum())
    base = threshold_for(score[none].tolist(), allowed)
    by_route = [
        (score[none & (best == route)], score[right & (best == route)]) for route in range(count)
    ]
    thresholds = _cheapest(by_route, allowed, base)
    passed = score >= np.array(thresholds)[best]
    margins = [
        threshold_for(
            ahead[wrong & passed & (best == route)].tolist(),
            int(WRONG_SHARE * (~none & (best == route)).sum()),
        )
        for route in range(count)
    ]
    return [Bar(max(LEAST, each), margin) for each, margin in zip(thresholds, margins, strict=True)]


def _cheapest(by_route: Sequence[tuple[Floats, Floats]], allowed: int, base: float) -> list[float]:
    """Thresholds that let the most right texts through, and at most `allowed` others in all.

    Args:
        by_route: For each route the scores of others' texts, and of its own.
        allowed: How many of the others' may pass.
        base: The threshold that would do for all routes alike.
    """
    low, high = 0.0, 1000.0
    found = [base] * len(by_route)
    for _ in range(30):
        price = (low + high) / 2
        tried = [_best(false, right, price, base) for false, right in by_route]
        passing = sum(
            int((false >= threshold).sum())
            for (false, _), threshold in zip(by_route, tried, strict=True)
        )
        if passing <= allowed:
            found, high = tried, price
        else:
            low = price
    return found


def _best(false: Floats, right: Floats, price: float, base: float) -> float:
    """The threshold near `base` that is worth most, where each false text costs `price` right."""
    near = np.concatenate([right, [base]])
    near = near[np.abs(near - base) <= APART]
    worth = [
        (right >= threshold).sum() / max(1, len(right)) * TYPICAL
        - price * (false >= threshold).sum()
        for threshold in near
    ]
    return float(near[int(np.argmax(worth))])
