"""Reads intents: by their meaning where an embedding model answers, else by their letters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from atmosphere_grpc.domain import RouteMethod
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.record import aside
from atmosphere_grpc.routing import requests
from atmosphere_grpc.routing.lexical import Lexical
from atmosphere_grpc.routing.ranking import Bar, Ranking

if TYPE_CHECKING:
    from atmosphere_grpc.routing.head import Head

log = logging.getLogger(__name__)

#: How many intents are remembered.
REMEMBERED = 4096
#: How many requests for the vectors of intents are under way at most, and of how many texts each.
REQUESTS = 2
TEXTS = 64
#: With how many texts the first are made: how many the embedder manages in time is found out.
TEXTS_AT_FIRST = 16
#: After how many requests in a row that ran out of time the embedder is left alone, and for how
#: long, in seconds; then one intent tries it again.
GIVEN_UP_AFTER = 3
GIVEN_UP_S = 5.0
#: How often it is looked at whether the model still gives the vectors that it gave, in seconds.
LOOK_S = 60.0
#: The longest pause before routes are read anew that had to be before, in seconds.
LONGEST_PAUSE_S = 300.0
UNREAD = "the routes are still being read"

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


class Asking:
    """Asks an embedder for the vectors of intents: of those that come while it is busy, together.

    The first goes at once. A text that is being asked for is not asked for twice.

    Args:
        embedder: Who is asked.
        timeout_s: How long it may take for one request, in seconds.
    """

    def __init__(self, embedder: Embedder, timeout_s: float) -> None:
        self._embedder = embedder
        self._timeout_s = timeout_s
        self._wanted: dict[str, _Wanted] = {}
        self._queue: deque[_Wanted] = deque()
        self._running: dict[asyncio.Task[None], Sequence[_Wanted]] = {}
        self._most = TEXTS_AT_FIRST
        self._late = 0  # how many requests in a row ran out of time
        self._again_at = 0.0
        self._closed = False

    async def vector(
        self, text: str, within_s: float, afterwards: Callable[[Vector], object]
    ) -> Vector:
        """The vector of an intent.

        Args:
            text: The intent.
            within_s: How long its caller waits, in seconds.
            afterwards: Is given the vector if it comes later than that.

        Raises:
            Failure: The embedder cannot, or not in time, or did not for several times.
        """
        wanted = self._wanted.get(text)
        if wanted is None:
            self._check()
            wanted = self._wanted[text] = _Wanted(text)
            self._queue.append(wanted)
            self._start()
        wanted.callers += 1
        in_time = True
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(wanted.vector)
        except TimeoutError:
            in_time = False
            wanted.afterwards.append(afterwards)
            raise Failure.out_of_time(
                Phase.FIRST_TOKEN,
                f"the embedder gave no vector within its share of the call, {within_s:.3g} s",
            ) from None
        finally:
            wanted.callers -= 1
            if not wanted.callers:
                self._leave(wanted, given_up=not in_time)

    def forget(self) -> None:
        """Lets nobody join what is under way: the model has changed meanwhile."""
        self._wanted = {wanted.text: wanted for wanted in self._queue}

    def close(self) -> None:
        """What nobody waits for any more is left, now and from now on."""
        self._closed = True
        for task, batch in self._running.items():
            if not any(wanted.callers for wanted in batch):
                task.cancel()

    def _check(self) -> None:
        """That the embedder is not hung, as far as is known; every so often one may find out."""
        if self._late < GIVEN_UP_AFTER:
            return
        now = time.monotonic()
        if now < self._again_at:
            raise self._given_up()
        self._again_at = now + GIVEN_UP_S

    def _given_up(self) -> Failure:
        return Failure(
            Reason.DEADLINE_EXCEEDED,
            f"the embedder ran out of time {self._late} times in a row (routing.embedder.timeout), "
            "and is left alone for a while",
        )

    def _start(self) -> None:
        while self._queue and len(self._running) < REQUESTS:
            batch = [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]
            # As the first of them would: by its caller's turn, and within its trace.
            context = batch[0].context
            task = asyncio.create_task(self._ask(batch), name="read intents", context=context)
            self._running[task] = batch
            task.add_done_callback(self._ended)

    async def _ask(self, batch: Sequence[_Wanted]) -> None:
        began = time.monotonic()
        try:
            texts = [wanted.text for wanted in batch]
            vectors = await self._embedder.embed(texts, self._timeout_s)
            if len(vectors) != len(batch):
                raise Failure(
                    Reason.BACKEND_CONTRACT,
                    f"the embedder gives {len(vectors)} vectors for {len(batch)} texts",
                )
        except Exception as error:  # noqa: BLE001 - each that waits for it raises it
            self._failed(batch, error)
            return
        self._late = 0
        took_s = time.monotonic() - began
        if took_s > self._timeout_s / 2:
            self._most = max(1, min(self._most, len(batch)) // 2)
        elif took_s < self._timeout_s / 4 and len(batch) == self._most:
            self._most = min(TEXTS, self._most * 2)
        for wanted, vector in zip(batch, vectors, strict=True):
            if not wanted.vector.done():
                wanted.vector.set_result(vector)
            for afterwards in wanted.afterwards:
                afterwards(vector)

    def _failed(self, batch: Sequence[_Wanted], error: Exception) -> None:
        if isinstance(error, Failure) and error.reason is Reason.DEADLINE_EXCEEDED:
            self._late += 1
            self._most = max(1, min(self._most, len(batch)) // 2)
            if error.metadata.get("limit") == "call":
                error.message = f"routing.embedder.timeout: {error.message}"
        else:
            self._late = 0
        for wanted in batch:
            wanted.fail(error)
        if self._late >= GIVEN_UP_AFTER:
            self._again_at = time.monotonic() + GIVEN_UP_S
            while self._queue:
                self._drop(wanted := self._queue.popleft())
                wanted.fail(self._given_up())

    def _ended(self, task: asyncio.Task[None]) -> None:
        for wanted in self._running.pop(task):
            self._drop(wanted)
            wanted.vector.cancel()  # unless it is there
        self._start()

    def _leave(self, wanted: _Wanted, *, given_up: bool) -> None:
        """Leaves what nobody waits for.

        A call that has given up goes on by letters: what is under way for it helps the next.
        """
        if wanted in self._queue:
            self._queue.remove(wanted)
            self._drop(wanted)
        elif not given_up or self._closed:
            for task, batch in self._running.items():
                if wanted in batch and not any(other.callers for other in batch):
                    task.cancel()
                    for other in batch:
                        self._drop(other)

    def _drop(self, wanted: _Wanted) -> None:
        if self._wanted.get(wanted.text) is wanted:
            del self._wanted[wanted.text]


@dataclass(eq=False, slots=True)
class _Wanted:
    """An intent whose vector is wanted.

    Attributes:
        text: The intent.
        vector: Its vector, once it is there.
        callers: How many wait for it.
        afterwards: Those that do not wait any more, but want it.
        context: That of the first that asked for it.
    """

    text: str
    vector: asyncio.Future[Vector] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    callers: int = 0
    afterwards: list[Callable[[Vector], object]] = field(default_factory=list)
    context: Context = field(default_factory=copy_context)

    def fail(self, error: Exception) -> None:
        """There will be no vector."""
        if not self.vector.done():
            self.vector.set_exception(error)
            self.vector.exception()  # it is no loss if nobody waits for it


class Reader:
    """Reads intents for a set of routes; none before `keep_prepared` has begun to.

    Args:
        routes: The texts of each route, by name; at least one.
        false_rate: Which share of the intents of no route may be routed at most.
        embedder: Reads their meaning; None: they are gone by their letters.
        timeout_s: How long the embedder may take for one request, in seconds.
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
        self._asking = Asking(embedder, timeout_s) if embedder is not None else None
        self._store = store
        self._lexical: Lexical | None = None
        self._head: Head | None = None
        self._sample: tuple[str, Vector] = "", ()  # a text, and its vector by the model of `_head`
        self._why_not = UNREAD
        self._remembered: OrderedDict[tuple[str, tuple[str, ...]], Ranking] = OrderedDict()
        self._outdated = asyncio.Event()
        #: Set once intents are gone by their letters, and the embedder, where there is one, has
        #: read the routes, or failed to for the first time.
        self.tried = asyncio.Event()

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
        if self._asking is None:
            return self._by_letters(text, names)
        if (ranking := self._remembered.get((text, names))) is not None:
            self._remembered.move_to_end((text, names))
            return Reading(RouteMethod.SEMANTIC, ranking)
        if (head := self._head) is None:
            return self._by_letters(text, names, self._why_not)

        def ranked(vector: Vector) -> Ranking:
            ranking = head.rank(vector, text, names)
            if head is self._head:
                self._remembered[text, names] = ranking
                if len(self._remembered) > REMEMBERED:
                    self._remembered.popitem(last=False)
            return ranking

        def late(vector: Vector) -> None:
            try:
                ranked(vector)
            except ValueError:
                self._outdated.set()

        try:
            with aside():
                vector = await self._asking.vector(text, within_s, late)
            return Reading(RouteMethod.SEMANTIC, ranked(vector))
        except Failure as failure:
            return self._by_letters(text, names, failure.message)
        except ValueError as error:  # another model answers under the name
            self._outdated.set()
            return self._by_letters(text, names, str(error))

    def _by_letters(self, text: str, names: tuple[str, ...], note: str = "") -> Reading:
        if self._lexical is None:  # nothing is known of any route: none is sure
            return Reading(RouteMethod.LEXICAL, Ranking(((names[0], 0.0),), Bar(1.0)), UNREAD)
        return Reading(RouteMethod.LEXICAL, self._lexical.rank(text, names), note)

    async def keep_prepared(self, retry_s: float) -> None:
        """Learns the routes' letters, and has the embedder read the routes.

        That is done again after `retry_s` seconds as long as it fails, and when another model
        answers. What costs a request for each text is done less and less often.
        """
        self._lexical = await asyncio.to_thread(
            lambda: Lexical(self._routes, requests.background(), self._false_rate)
        )
        if self._embedder is None or self._asking is None:
            self.tried.set()
            return
        try:
            await self._keep_read(self._embedder, retry_s)
        finally:
            self._asking.close()

    async def _keep_read(self, embedder: Embedder, retry_s: float) -> None:
        told = ""
        pause_s = 0.0  # before they are read anew, where that has to be again and again
        while True:
            try:
                await self._prepare(embedder)
            except Failure as failure:
                self._why_not = failure.message
                if failure.message != told:
                    told = failure.message
                    log.warning("intents are gone by their letters: %s", told)
                self.tried.set()
                costly = failure.reason is Reason.BACKEND_CONTRACT
                pause_s = longer(pause_s, retry_s) if costly else 0.0
                await asyncio.sleep(max(pause_s, retry_s))
                continue
            except Exception:  # a fault of ours is no reason to give up for good
                log.exception("fault in reading the routes")
                self._why_not = "of a fault of this server, which its log has"
                self.tried.set()
                await asyncio.sleep(max(LONGEST_PAUSE_S / 10, retry_s))
                continue
            told = ""
            self.tried.set()
            began = time.monotonic()
            await self._watch(embedder)
            self._head = None
            if time.monotonic() - began >= LONGEST_PAUSE_S:
                pause_s = 0.0
            if pause_s:
                self._why_not = f"the vectors changed again; the routes are read in {pause_s:.0f} s"
                log.warning("intents are gone by their letters: %s", self._why_not)
                await asyncio.sleep(pause_s)
            else:
                self._why_not = UNREAD
            pause_s = longer(pause_s, retry_s)

    async def _watch(self, embedder: Embedder) -> None:
        """Waits until another model answers under the name."""
        from atmosphere_grpc.routing import vectors

        while not self._outdated.is_set():
            try:
                await asyncio.wait_for(self._outdated.wait(), LOOK_S)
            except TimeoutError:
                try:
                    same = await vectors.still_holds(*self._sample, embedder)
                except Failure:  # the intents that come meanwhile are told the same
                    continue
                if not same:
                    log.info("%s gives other vectors than before", embedder.identity())
                    return

    async def _prepare(self, embedder: Embedder) -> None:
        await asyncio.to_thread(_import)  # which takes a second for scikit-learn
        from atmosphere_grpc.routing import head, vectors

        self._outdated.clear()
        self._head = None
        groups, background = requests.groups(), requests.background()
        own = [text for texts in self._routes.values() for text in texts]
        shipped = [text for group in groups for text in group.requests]
        known = await vectors.of([*own, *shipped, *background], embedder, self._store)
        trained = await asyncio.to_thread(
            head.train, self._routes, known, groups, background, self._false_rate
        )
        self._remembered.clear()
        if self._asking is not None:
            self._asking.forget()
        self._head, self._sample = trained, (own[0], known[own[0]].tolist())
        log.info("%d routes are told by %s", len(self._routes), embedder.identity())


def longer(pause_s: float, least_s: float) -> float:
    """The pause after one of so many seconds: twice as long, within bounds."""
    return min(max(2 * pause_s, least_s), LONGEST_PAUSE_S)


def _import() -> None:
    """What reading meaning takes, and the texts that ship with it."""
    from atmosphere_grpc.routing import head, vectors  # noqa: F401

    requests.groups()
    requests.background()
