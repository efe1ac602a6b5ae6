"""The integrations in their order, and the probes that keep looking at them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import random
from collections.abc import Callable, Iterator, Sequence

from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.integration import Integration

#: How long an integration may take to answer a probe, in seconds.
PROBE_TIMEOUT_S = 5.0


class Registry:
    """The integrations, the preferred one first.

    Args:
        integrations: In the order of the configuration.
        on_change: Called after each probe.
    """

    def __init__(
        self,
        integrations: Sequence[Integration],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._integrations = {item.spec.id: item for item in integrations}
        self._wake = {item.spec.id: asyncio.Event() for item in integrations}
        self.on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []

    def __iter__(self) -> Iterator[Integration]:
        return iter(self._integrations.values())

    @property
    def usable(self) -> bool:
        """Whether at least one integration is up."""
        return any(item.state is IntegrationState.UP for item in self)

    def get(self, integration_id: str) -> Integration:
        """The integration of that id.

        Raises:
            Failure: INTEGRATION_NOT_FOUND, with the nearest ids.
        """
        if (found := self._integrations.get(integration_id)) is not None:
            return found
        known = list(self._integrations)
        near = difflib.get_close_matches(integration_id, known, n=3) or known[:10]
        raise Failure(
            Reason.INTEGRATION_NOT_FOUND,
            f'integration_id: there is no integration "{integration_id[:64]}"; '
            + (f"known are {', '.join(near)}" if near else "none is configured"),
        )

    async def refresh(self, items: Sequence[Integration]) -> list[Failure | None]:
        """Asks integrations for their models at the same time; says how each failed, if it did."""
        return await asyncio.gather(*(self._ask(item) for item in items))

    def wake(self, integration_id: str) -> None:
        """Has an integration probed at once, since something may have changed."""
        self._wake[integration_id].set()

    def start(self, interval_s: float) -> None:
        """Begins to probe every integration, now and then every `interval_s` or so."""
        self._tasks = [
            asyncio.create_task(self._probe(item, interval_s), name=f"probe {item.spec.id}")
            for item in self
        ]

    async def aclose(self) -> None:
        """Ends the probes and closes the backends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for item in self:
            await item.backend.aclose()

    async def _probe(self, item: Integration, interval_s: float) -> None:
        wake = self._wake[item.spec.id]
        while True:
            wake.clear()
            await self._ask(item)
            self.on_change()
            # Jittered, so that several servers do not ask a backend in step.
            pause = interval_s * random.uniform(0.8, 1.2)  # noqa: S311 - not for secrecy
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()

    async def _ask(self, item: Integration) -> Failure | None:
        try:
            await item.refresh(PROBE_TIMEOUT_S)
        except Failure as failure:
            return failure
        return None
