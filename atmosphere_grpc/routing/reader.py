"""Reads intents: by their meaning where an embedding model answers, else by their letters."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from atmosphere_grpc.domain import RouteMethod
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.routing import requests
from atmosphere_grpc.routing.lexical import Lexical
from atmosphere_grpc.routing.ranking import Ranking

if TYPE_CHECKING:
    from atmosphere_grpc.routing.head import Head

log = logging.getLogger(__name__)

#: How many intents are remembered.
REMEMBERED = 4096

Vector = Sequence[float]


class Embedder(Protocol):
    """Turns texts into vectors."""

    def identity(self) -> str:
        """What makes the vectors: others than those of another identity.

        Raises:
            Failure: It is not known yet.
        """
        ...

    async def embed(self, texts: Sequence[str], within_s: float) -> Sequence[Vector]:
        """A vector for each text, all of one length.

        Raises:
            Failure: It cannot, or not in time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of an intent.

    Attributes:
        method: SEMANTIC or LEXICAL.
        ranking: The routes for it.
        note: Why it was gone by its letters, though there is an embedder; empty otherwise.
    """

    method: RouteMethod
    ranking: Ranking
    note: str = ""


class Reader:
    """Reads intents for a set of routes.

    Args:
        routes: The texts of each route, by name; at least one.
        false_rate: Which share of the intents of no route may be routed at most.
        embedder: Reads their meaning; None: they are gone by their letters.
        timeout_s: How long the embedder may take for one intent, in seconds.
        store: The folder where vectors are kept from start to start; None for nowhere.
    """

    def __init__(
        self,
        routes: Mapping[str, Sequence[str]],
        false_rate: float,
        embedder: Embedder | None,
        timeout_s: float = 1.0,
        store: Path | None = None,
    ) -> None:
        self._routes = routes
        self._false_rate = false_rate
        self._embedder = embedder
        self._timeout_s = timeout_s
        self._store = store
        self._lexical = Lexical(routes, requests.background(), false_rate)
        self._head: Head | None = None
        self._why_not = "the routes are still being read"
        self._remembered: OrderedDict[tuple[str, tuple[str, ...]], Ranking] = OrderedDict()
        self._outdated = asyncio.Event()
        #: Set once the embedder has read the routes, or failed to for the first time.
        self.tried = asyncio.Event()
        if embedder is None:
            self.tried.set()

    async def read(
        self, text: str, within_s: float, names: tuple[str, ...] | None = None
    ) -> Reading:
        """The routes for an intent.

        Args:
            text: The intent, or as much of it as is read.
            within_s: How long it may take, in seconds.
            names: Which routes are compared; None for all.
        """
        if names is None or len(names) == len(self._routes):
            names = tuple(self._routes)

        def by_letters(note: str = "") -> Reading:
            return Reading(RouteMethod.LEXICAL, self._lexical.rank(text, names), note)

        if self._embedder is None:
            return by_letters()
        if (ranking := self._remembered.get((text, names))) is not None:
            self._remembered.move_to_end((text, names))
            return Reading(RouteMethod.SEMANTIC, ranking)
        if (head := self._head) is None:
            return by_letters(self._why_not)
        try:
            (vector,) = await self._embedder.embed([text], min(self._timeout_s, within_s))
            ranking = head.rank(vector, text, names)
        except Failure as failure:
            return by_letters(failure.message)
        except ValueError as error:  # another model answers under the name
            self._outdated.set()
            return by_letters(str(error))
        if head is self._head:
            self._remembered[text, names] = ranking
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return Reading(RouteMethod.SEMANTIC, ranking)

    async def keep_prepared(self, retry_s: float) -> None:
        """Has the embedder read the routes, again after `retry_s` seconds as long as it fails."""
        if self._embedder is None:
            return
        told = ""
        while True:
            try:
                await self._prepare(self._embedder)
            except Failure as failure:
                self._why_not = failure.message
                if failure.message != told:
                    told = failure.message
                    log.warning("intents are gone by their letters: %s", told)
                self.tried.set()
                await asyncio.sleep(retry_s)
            else:
                told = ""
                self.tried.set()
                await self._outdated.wait()

    async def _prepare(self, embedder: Embedder) -> None:
        from atmosphere_grpc.routing import head, vectors

        self._outdated.clear()
        self._head = None
        groups, background = requests.groups(), requests.background()
        own = [text for texts in self._routes.values() for text in texts]
        shipped = [text for group in groups for text in group.requests]
        known = await vectors.of([*own, *shipped, *background], embedder, self._store)
        self._head = await asyncio.to_thread(
            head.train, self._routes, known, groups, background, self._false_rate
        )
        self._remembered.clear()
        log.info("%d routes are told by %s", len(self._routes), embedder.identity())
