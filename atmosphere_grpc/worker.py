"""The program of one of several processes that serve on a port; its parent tells it what to do.

Run as `python -m atmosphere_grpc.worker`. Its stdin is a socket to the parent: the orders come by
it, then questions, other settings, and the word to stop. It ends with its parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import msgspec

from atmosphere_grpc import config
from atmosphere_grpc.admission import counted_apart
from atmosphere_grpc.composition import Composition
from atmosphere_grpc.config import ConfigError, Settings
from atmosphere_grpc.embedded.backend import INTEGRATION_ID, EmbeddedBackend
from atmosphere_grpc.embedded.child import die_with_parent
from atmosphere_grpc.embedded.remote import ChildState, RemoteChild
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.log import to_stderr
from atmosphere_grpc.server import Server, Share
from atmosphere_grpc.signals import unless
from atmosphere_grpc.telemetry.shared import count_in
from atmosphere_grpc.workers.channel import MAX_LINE, Channel
from atmosphere_grpc.workers.messages import (
    Answer,
    Ask,
    Children,
    Failed,
    Leave,
    Orders,
    Ready,
    Reload,
    ToWorker,
)

log = logging.getLogger(__name__)

#: Exit status of a worker that cannot serve.
CANNOT_SERVE = 2


def main() -> NoReturn:
    """Serves until its parent says that it is enough, or is gone."""
    die_with_parent()
    # A terminal and a service manager signal the whole group: when to stop is the parent's
    # decision.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    work = _work(connection)
    try:
        import uvloop
    except ImportError:
        sys.exit(asyncio.run(work))
    sys.exit(uvloop.run(work))


async def _work(connection: socket.socket) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_LINE)
    channel: Channel[ToWorker] = Channel(reader, writer, msgspec.json.Decoder(ToWorker))
    orders = await channel.receive()
    if not isinstance(orders, Orders) or os.getppid() != orders.parent_pid:
        return 0  # the parent died meanwhile
    try:
        return await _serve(channel, orders)
    except (ConfigError, StartError, OSError) as error:
        channel.send(Failed(str(error)))
        return CANNOT_SERVE
    finally:
        await channel.aclose()


async def _serve(channel: Channel[ToWorker], orders: Orders) -> int:
    settings = config.load(None, orders.settings)
    to_stderr(settings.log_level, settings.log_format, orders.worker)
    if orders.metrics_folder is not None:
        count_in(orders.metrics_folder, orders.worker)
    worker = Worker(settings, orders)
    leave, stop = asyncio.Event(), asyncio.Event()
    hearing = asyncio.create_task(_hear(channel, worker, leave, stop), name="hear")
    try:
        if await unless(leave, worker.start()):
            channel.send(Ready(worker.integrations))
            await leave.wait()
            await unless(stop, worker.server.drain())
    finally:
        hearing.cancel()
        await worker.server.stop()
    return 0


async def _hear(
    channel: Channel[ToWorker], worker: Worker, leave: asyncio.Event, stop: asyncio.Event
) -> None:
    """Does what the parent says, until it says no more."""
    while (message := await channel.receive()) is not None:
        match message:
            case Ask(number, "alive"):
                channel.send(Answer(number))
            case Ask(number, _):
                gauges = [(name, list(labels), value) for name, labels, value in worker.gauges()]
                channel.send(Answer(number, gauges=gauges))
            case Reload(number, document, apply):
                channel.send(Answer(number, worker.reload(document, apply=apply)))
            case Children(children):
                worker.update(children)
            case Leave(drain):
                if not drain:
                    stop.set()
                leave.set()
            case Orders():
                raise AssertionError("orders come once")
    stop.set()  # without its parent it is nothing
    leave.set()


class Worker:
    """A server as one of several.

    Args:
        settings: How and what it serves.
        orders: What it was told first.

    Attributes:
        server: The server.
    """

    def __init__(self, settings: Settings, orders: Orders) -> None:
        self._composition = Composition()
        self._children = {state.model_id: RemoteChild(state) for state in orders.children or ()}
        self._extra: list[Integration] = []
        if orders.children is not None:
            spec = IntegrationSpec(INTEGRATION_ID, "embedded")
            backend = EmbeddedBackend([*self._children.values()])
            self._extra.append(Integration(spec, backend))
        entries = self._composition.of(settings.effective_integrations)
        self._registry = Registry([*entries, *self._extra])
        share = Share(orders.address, orders.http, orders.node_id, orders.worker)
        self.server = Server(settings, self._registry, share)
        self._tells = orders.worker == 1  # what is the same for all
        self._limits = ""
        self._tell_limits(settings)

    @property
    def integrations(self) -> dict[str, str]:
        """How each integration is doing."""
        return {item.spec.id: item.status.state.value for item in self._registry}

    def gauges(self) -> list[tuple[str, tuple[str, ...], float]]:
        """How things are, as the metrics tell it."""
        return self.server.gauges()

    async def start(self) -> bool:
        """Looks at the integrations, then takes calls, so that the first finds all ready; True.

        Raises:
            StartError: The address cannot be shared.
        """
        await self.server.look()
        try:
            self.server.bind()
            self.server.bind_http()
        except RuntimeError as error:
            raise StartError(f"listen: cannot share the address ({error})") from None
        await self.server.start()
        return True

    def reload(self, document: dict[str, Any], *, apply: bool) -> str:
        """Serves by other settings, or only looks at them; what is wrong with them, if anything."""
        try:
            settings = config.load(None, document)
            self.server.check(settings)
            if apply:
                entries = self._composition.of(settings.effective_integrations)
                self.server.apply(settings, [*entries, *self._extra])
                self._tell_limits(settings)
            else:
                for integration in settings.effective_integrations:
                    integration.read_headers()
                    integration.tls_context()
        except (ConfigError, OSError) as error:
            return str(error)
        return ""

    def update(self, children: list[ChildState]) -> None:
        """Takes over how the embedded models' children are doing now."""
        for state in children:
            self._children[state.model_id].update(state)
        self._registry.wake(INTEGRATION_ID)

    def _tell_limits(self, settings: Settings) -> None:
        """Tells of limits that each worker counts for itself, once."""
        limits = counted_apart(settings)
        if self._tells and limits and limits != self._limits:
            log.warning("%s", limits)
        self._limits = limits


if __name__ == "__main__":
    main()
