"""Integrations that are not configured one by one, but found: the projects of a namespace."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from atmosphere_grpc.domain import IntegrationState, IntegrationStatus
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.integration import Integration

log = logging.getLogger(__name__)

#: What a project must be called to become an integration: its name is a part of an address.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class Namespace(Protocol):
    """Where projects are found."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The servers' addresses, each a host and port."""
        ...

    async def projects(self) -> tuple[str, ...]:
        """The names of the projects that there are now.

        Raises:
            Failure: They cannot be listed.
        """
        ...

    async def aclose(self) -> None:
        """Closes every connection."""
        ...


class Discovery:
    """A configured integration that stands for many.

    Args:
        integration_id: Its id, which those of the integrations found begin with.
        kind: Its kind.
        namespace: Where projects are found.
        make: Makes an integration of its id and its project's name.
    """

    def __init__(
        self,
        integration_id: str,
        kind: str,
        namespace: Namespace,
        make: Callable[[str, str], Integration],
    ) -> None:
        self.id = integration_id
        self.found: dict[str, Integration] = {}  # by the names of their projects
        self._namespace = namespace
        self._make = make
        self._left_out: set[str] = set()
        self.status = IntegrationStatus(
            integration_id,
            kind,
            IntegrationState.UNKNOWN,
            namespace.endpoints,
            error=f'integration "{integration_id}": its projects were not looked for yet',
            reason=Reason.BACKEND_UNAVAILABLE,
        )

    async def look(self, timeout_s: float) -> tuple[list[Integration], list[Integration]]:
        """Looks for projects; gives the integrations that are new, and those that are no more.

        While the projects cannot be listed, those known are kept.
        """
        began = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                names = await self._namespace.projects()
        except (Failure, TimeoutError) as error:
            text = f'integration "{self.id}": no answer within {timeout_s:g} s'
            failure = (
                error
                if isinstance(error, Failure)
                else Failure(Reason.BACKEND_UNAVAILABLE, f"{text} – is it overloaded?")
            )
            if self.status.state is not IntegrationState.DOWN:
                log.warning("%s", failure.message)
            self._note(IntegrationState.DOWN, began, failure)
            return [], []
        self._note(IntegrationState.UP, began, None)
        wanted = self._fitting(names)
        gone = [self.found.pop(name) for name in [*self.found] if name not in wanted]
        new = {name: self._make(wanted[name], name) for name in wanted if name not in self.found}
        self.found |= new
        for item in gone:
            log.info('integration "%s" is no more', item.spec.id)
        for item in new.values():
            log.info('integration "%s" was found', item.spec.id)
        return [*new.values()], gone

    async def aclose(self) -> None:
        """Closes every connection to where projects are found."""
        await self._namespace.aclose()

    def _fitting(self, names: Sequence[str]) -> dict[str, str]:
        """The ids of those projects that can be integrations, by the projects' names.

        Of two that differ only in case, that is the one that is known, else the first.
        """
        names_by_id: dict[str, str] = {}
        for name in sorted(names, key=lambda name: name not in self.found):
            if not _NAME.fullmatch(name):
                self._leave_out(name, "it cannot be a part of an id")
            elif (other := names_by_id.setdefault(f"{self.id}.{name.lower()}", name)) != name:
                self._leave_out(name, f"it differs from {other} only in case")
        return {name: key for key, name in names_by_id.items()}

    def _leave_out(self, name: str, why: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            log.warning("%s: a project with the name %.80r is left out: %s", self.id, name, why)

    def _note(self, state: IntegrationState, began: float, failure: Failure | None) -> None:
        self.status = replace(
            self.status,
            state=state,
            last_probe=time.time(),
            latency_ms=(time.perf_counter() - began) * 1000,
            error=failure.message if failure else "",
            reason=failure.reason if failure else None,
        )
