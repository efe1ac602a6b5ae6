"""The integrations in their order, and the probes that keep looking at them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

from atmosphere_grpc.domain import IntegrationState, IntegrationStatus
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.integration import Integration

#: How long an integration may take to answer a probe, in seconds.
PROBE_TIMEOUT_S = 5.0


class Registry:
    """The integrations, the preferred one first.

    Args:
        entries: In the order of the configuration; a discovery stands where what it finds goes.
        on_change: Called after each probe.
    """

    def __init__(
        self,
        entries: Sequence[Integration | Discovery],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._entries = tuple(entries)
        self.on_change = on_change
        self._interval_s = 0.0
        self._wake: dict[str, asyncio.Event] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._retiring: dict[asyncio.Task[None], Integration | Discovery] = {}

    def __iter__(self) -> Iterator[Integration]:
        for entry in self._entries:
            if isinstance(entry, Discovery):
                yield from entry.found.values()
            else:
                yield entry

    @property
    def usable(self) -> bool:
        """Whether at least one integration is up."""
        return any(item.state is IntegrationState.UP for item in self)

    @property
    def looked_at(self) -> bool:
        """Whether everything was probed at least once."""
        states = [
            *(item.state for item in self),
            *(item.status.state for item in self._discoveries),
        ]
        return IntegrationState.UNKNOWN not in states

    @property
    def unfound(self) -> tuple[IntegrationStatus, ...]:
        """The discoveries that have found nothing yet, and why."""
        return tuple(item.status for item in self._discoveries if not item.found)

    @property
    def _discoveries(self) -> list[Discovery]:
        return [entry for entry in self._entries if isinstance(entry, Discovery)]

    def get(
        self, integration_id: str, shown: Callable[[str], bool] = lambda _: True
    ) -> Integration:
        """The integration of that id.

        Args:
            integration_id: The id.
            shown: Which others may be named where there is none.

        Raises:
            Failure: INTEGRATION_NOT_FOUND, with the nearest ids; or why nothing was found
                under that id.
        """
        known = {item.spec.id: item for item in self if shown(item.spec.id)}
        if (found := known.get(integration_id)) is not None:
            return found
        for status in self.unfound:
            asked = integration_id == status.id or integration_id.startswith(f"{status.id}.")
            if asked and status.reason is not None:
                raise Failure(status.reason, status.error)
        near = difflib.get_close_matches(integration_id, known, n=3) or list(known)[:10]
        if near:
            remedy = f"known are {', '.join(near)}"
        else:
            remedy = "no project was found yet" if self.unfound else "none is configured"
        raise Failure(
            Reason.INTEGRATION_NOT_FOUND,
            f'integration_id: there is no integration "{integration_id[:64]}"; {remedy}',
        )

    def find(self, integration_id: str) -> Integration | None:
        """The integration of that id; None where there is none."""
        return next((item for item in self if item.spec.id == integration_id), None)

    async def refresh(self, items: Sequence[Integration]) -> list[Failure | None]:
        """Asks integrations for their models at the same time; says how each failed, if it did."""
        return await asyncio.gather(*(self._ask(item) for item in items))

    def wake(self, integration_id: str) -> None:
        """Has an integration probed at once, since something may have changed."""
        if (wake := self._wake.get(integration_id)) is not None:
            wake.set()

    def start(self, interval_s: float) -> None:
        """Begins to probe every integration, now and then every `interval_s` or so."""
        self._interval_s = interval_s
        for entry in self._entries:
            self._begin(entry)

    def replace(self, entries: Sequence[Integration | Discovery], interval_s: float) -> None:
        """Has other entries from now on; those that stay keep what is known of them.

        Calls that are under way go on: what is no more is closed after its last one.
        """
        old, self._entries = self._entries, tuple(entries)
        self._interval_s = interval_s
        for entry in old:
            if entry not in self._entries:
                self._end(entry)
        new = [entry for entry in self._entries if entry not in old]
        for entry in new:
            self._begin(entry)
        if not new:  # else the first look at one of them tells
            self.on_change()

    def _begin(self, entry: Integration | Discovery) -> None:
        if isinstance(entry, Discovery):
            self._watch(entry.id, partial(self._discover, entry))
        else:
            self._watch(entry.spec.id, partial(self._ask, entry))

    def _end(self, entry: Integration | Discovery) -> None:
        if isinstance(entry, Discovery):
            for item in entry.found.values():
                self._end(item)
            self._unwatch(entry.id)
            self._retire(entry.id, entry, entry.aclose())
        else:
            self._unwatch(entry.spec.id)
            self._retire(entry.spec.id, entry, entry.retire())

    async def aclose(self) -> None:
        """Ends the probes and closes the backends."""
        tasks = [*self._probes.values(), *self._retiring]
        items = [*self, *self._discoveries, *self._retiring.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for item in items:
            await item.aclose()

    def _watch(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        self._wake[name] = asyncio.Event()
        self._probes[name] = asyncio.create_task(
            self._keep_looking(name, look), name=f"probe {name}"
        )

    async def _keep_looking(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        wake = self._wake[name]
        while True:
            wake.clear()
            await look()
            self.on_change()
            # Jittered, so that several servers do not ask a backend in step; never longer, since
            # one that comes up is to be found within the interval.
            pause = self._interval_s * random.uniform(0.7, 1.0)  # noqa: S311 - not for secrecy
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()

    async def _ask(self, item: Integration) -> Failure | None:
        try:
            await item.refresh(PROBE_TIMEOUT_S)
        except Failure as failure:
            return failure
        return None

    async def _discover(self, entry: Discovery) -> None:
        new, gone = await entry.look(PROBE_TIMEOUT_S)
        for item in gone:  # first: a new one may have the id of one that is gone
            self._end(item)
        for item in new:
            self._begin(item)

    def _unwatch(self, name: str) -> None:
        self._probes.pop(name).cancel()
        self._wake.pop(name)

    def _retire(
        self, name: str, entry: Integration | Discovery, closing: Coroutine[Any, Any, None]
    ) -> None:
        task = asyncio.create_task(closing, name=f"retire {name}")
        self._retiring[task] = entry
        task.add_done_callback(self._retiring.pop)
