"""The requests that ship, and the labelled intents that they are measured with: kept apart."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from atmosphere_grpc.routing import requests, vectors

DATA = Path(__file__).parents[1] / "data"
ROUTES = yaml.safe_load((DATA / "routes.yaml").read_text())["routing"]["routes"]
#: The most of their words that two texts may have in common: the share of those of both.
LIKE = 0.6


class Labelled(NamedTuple):
    intent: str
    route: str
    split: str
    kind: str


def labelled(split: str = "") -> list[Labelled]:
    rows = map(json.loads, (DATA / "intents.jsonl").read_text("utf-8").splitlines())
    return [Labelled(**row) for row in rows if split in ("", row["split"])]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def like(texts: Iterable[str], others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The pairs whose words are nearly the same (their Jaccard index is above `LIKE`)."""
    known = [(text, words(text)) for text in others]
    common = Counter(word for _, own in known for word in own)

    def rarest(own: frozenset[str]) -> list[str]:
        """As many words of a text that one so like it must have one of them."""
        ordered = sorted(own, key=lambda word: (common[word], word))
        return ordered[: len(own) - math.ceil(LIKE * len(own)) + 1]

    having: defaultdict[str, list[int]] = defaultdict(list)
    for number, (_, own) in enumerate(known):
        for word in rarest(own):
            having[word].append(number)
    for text in texts:
        own = words(text)
        for number in {number for word in rarest(own) for number in having.get(word, ())}:
            other, others_own = known[number]
            if len(own & others_own) > LIKE * len(own | others_own):
                yield text, other


def test_texts_of_nearly_the_same_words_are_found() -> None:
    pairs = like(["Turn the light off", "Play a song"], ["turn the light on, the light!", "A song"])
    assert [*pairs] == [("Play a song", "A song")]  # 2 of 3 words; 3 of 5 is not above


# --- what ships -------------------------------------------------------------------------------


def test_every_heading_names_an_area_and_a_group() -> None:
    text = files("atmosphere_grpc.routing").joinpath("requests.txt").read_text("utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert all(re.fullmatch(r"# [^/#]+[^/# ] / [^/# ][^/#]+", line) for line in headings)
    assert len(headings) == len(set(headings)) == len(requests.groups())
    assert text.startswith("# ")


def test_every_group_holds_requests_of_the_area_that_it_is_in() -> None:
    groups = requests.groups()
    assert all(len(group.requests) >= 5 for group in groups)
    areas = Counter(group.area for group in groups)
    assert sum(count > 1 for count in areas.values()) >= 8  # such as may be a route's
    order = [group.area for group in groups]
    assert order == sorted(order, key=order.index)  # area by area


def test_no_request_ships_twice() -> None:
    every = [*requests.background()]
    every += [text for group in requests.groups() for text in group.requests]
    assert [text for text, count in Counter(every).items() if count > 1] == []
    assert requests.texts() == tuple(every)
    assert all(text == text.strip() != "" for text in every)


def test_no_shipped_request_is_a_labelled_intent_in_nearly_the_same_words() -> None:
    assert [*like(requests.texts(), [item.intent for item in labelled()])] == []


def test_the_shipped_vectors_are_those_of_the_shipped_requests() -> None:
    shipped = vectors.shipped()
    assert [*shipped] == [*requests.texts()], "run tools/vectors.py"
    rows = np.stack([*shipped.values()])
    assert rows.shape == (len(requests.texts()), 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


# --- what it is measured with -----------------------------------------------------------------


def test_enough_is_held_out_of_every_route_and_of_none() -> None:
    test = Counter(item.route for item in labelled("test"))
    names = {route["name"] for route in ROUTES}
    assert test.keys() - {""} == names
    assert len(names) >= 8
    assert test.total() - test[""] >= 300
    assert test[""] >= 60
    assert min(test.values()) >= 25
    assert Counter(item.route for item in labelled("dev")).keys() == test.keys()


def test_every_labelled_intent_is_of_a_split_and_a_kind() -> None:
    every = labelled()
    assert {item.split for item in every} == {"dev", "test"}
    assert len({item.intent for item in every}) == len(every)
    for item in every:
        assert item.intent.strip()
        # A near miss looks like one of a route, and is one of another or of none.
        assert item.kind in ({"plain", "paraphrase"} if item.route else {"out_of_scope"}) | {
            "near_miss"
        }


def intents(split: str) -> Sequence[str]:
    return [item.intent for item in labelled(split)]


def test_what_was_tuned_on_and_what_is_held_out_are_apart() -> None:
    assert [*like(intents("dev"), intents("test"))] == []


def test_the_routes_own_examples_are_apart_from_both() -> None:
    own = [text for route in ROUTES for text in (route["description"], *route["examples"])]
    assert [*like(own, [*intents("dev"), *intents("test")])] == []
