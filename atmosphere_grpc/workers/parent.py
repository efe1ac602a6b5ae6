"""The parent of several processes that serve on one port: what it starts, signals, reload.

It runs what all of them share: the port, the embedded models, the metrics' address, the note by
which `config reload` finds the server. Nothing here imports gRPC: a parent stays small, and has no
threads of gRPC's when it spawns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from atmosphere_grpc.config import ConfigError, Settings, document, held
from atmosphere_grpc.control import Note, Reloaded
from atmosphere_grpc.embedded import start as embedded
from atmosphere_grpc.embedded.remote import ChildState, state_of
from atmosphere_grpc.embedded.supervisor import LlamaServer
from atmosphere_grpc.listening import (
    Addresses,
    StartError,
    check_exposure,
    http_taken,
    metrics_taken,
    share,
    taken,
)
from atmosphere_grpc.node import node_id
from atmosphere_grpc.signals import Signals
from atmosphere_grpc.telemetry.shared import SharedMetrics, metrics_folder
from atmosphere_grpc.workers.messages import Children, Orders
from atmosphere_grpc.workers.slot import Slot

log = logging.getLogger(__name__)

#: How much longer than its grace a worker's drain may take, in seconds.
DRAIN_MARGIN_S = 10.0
#: How long a worker may take to look at other settings, in seconds.
RELOAD_S = 10.0


async def serve(
    load: Callable[[], Settings],
    *,
    ready: Callable[[Addresses, str, dict[str, str]], None],
    progress: Callable[[str], None],
) -> int:
    """Serves by several processes until SIGTERM or SIGINT, then drains them together.

    A second signal stops at once; SIGHUP has the settings loaded anew, by all or by none.

    Args:
        load: Loads the settings, how and what they serve.
        ready: Called with the addresses, the node's id and how each integration is doing, once
            all of them serve.
        progress: Told, in a few words, what takes time before that; "" when nothing does.

    Returns:
        The exit status: 0 after a drain, 1 when a second signal cut it short.

    Raises:
        StartError: They cannot start.
        EmbeddedError: The embedded default cannot.
        ConfigError: The settings are wrong, or a secret is not where they say.
    """
    settings = load()
    signals = Signals()
    async with contextlib.AsyncExitStack() as stack:
        parent = Parent(settings)
        addresses = await signals.unless_first(parent.start(stack, progress))
        if addresses is None:
            return 0
        note = Note.of(settings.state_dir, addresses.grpc, stack)
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = asyncio.create_task(_reload(parent, load, note), name="reload")
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        progress("")
        ready(addresses, parent.node_id, parent.integrations)
        await signals.first.wait()
        drained = await signals.unless_second(parent.drain())
    return 0 if drained else 1


async def _reload(parent: Parent, load: Callable[[], Settings], note: Note | None) -> None:
    result = await parent.reload(load)
    if result.error:
        log.error("the settings are wrong, and those from before go on: %s", result.error)
    else:
        log.info("the settings were loaded anew by %d workers", parent.count)
    for line in result.notes:
        log.warning("%s", line)
    if note is not None:
        note.reloaded(result)


class Parent:
    """The workers, and what they share.

    Args:
        settings: How and what they serve.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: Sequence[LlamaServer] = ()
        self._address = ""
        self._http: str | None = None
        self._folder: str | None = None
        self._slots: tuple[Slot, ...] = ()
        self._reloading = asyncio.Lock()
        self.node_id = ""

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self._slots)

    @property
    def integrations(self) -> dict[str, str]:
        """How each integration is doing, as a worker saw it when it began to serve."""
        return next((slot.ready.integrations for slot in self._slots if slot.ready), {})

    async def start(
        self, stack: contextlib.AsyncExitStack, progress: Callable[[str], None]
    ) -> Addresses:
        """Starts all; gives the addresses once every worker serves. Stopped with the stack.

        Raises:
            StartError: They cannot start.
            EmbeddedError: The embedded default cannot.
        """
        settings = self._settings
        if sys.platform != "linux":
            raise StartError(
                f"workers = {settings.workers}: only Linux spreads the connections to a port over "
                "processes – set workers to 1, and start several servers on ports of their own"
            )
        if settings.embedded.enabled:
            section = settings.embedded
            self._children = await embedded.find_children(
                section.chat_model, section.embed_model, section.threads, progress
            )
        # First: a port that is taken is told before seconds are spent on loading models.
        self._address = self._take_port(stack)
        self._http = self._take_http(stack)
        metrics = self._take_metrics(stack)
        if self._children:
            progress(f"loading {' and '.join(child.model.id for child in self._children)}")
        await stack.enter_async_context(embedded.running(self._children))
        self.node_id = node_id(settings.node_id, settings.state_dir)
        self._slots = tuple(
            Slot(number, self._orders, settings.worker_timeout)
            for number in range(1, settings.workers + 1)
        )
        stack.push_async_callback(self._stop)
        for child in self._children:
            child.on_change = self._tell_children
        progress(f"starting {settings.workers} workers")
        starting = [asyncio.create_task(slot.start()) for slot in self._slots]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
        if metrics is not None:
            await metrics.start()
        return Addresses(self._address, self._http, metrics.address if metrics else None)

    async def reload(self, load: Callable[[], Settings]) -> Reloaded:
        """Has all workers serve by what the settings say now, or none."""
        async with self._reloading:
            try:
                settings, notes = held(self._settings, load())
            except (ConfigError, OSError) as error:
                return Reloaded(str(error), ())
            for apply in (False, True):
                if fault := await self._reload(document(settings), apply=apply):
                    return Reloaded(fault, ())
            self._settings = settings
            logging.getLogger().setLevel(settings.log_level.upper())
            return Reloaded("", notes)

    async def drain(self) -> None:
        """Has all workers stop as calls allow."""
        grace_s = self._settings.drain_grace + DRAIN_MARGIN_S
        await asyncio.gather(*(slot.drain(grace_s) for slot in self._slots))

    async def _reload(self, settings: dict[str, Any], *, apply: bool) -> str:
        """What the first worker has against settings; empty: nothing.

        One that says nothing is about to be replaced, and its successor is told by its orders.
        """
        answers = await asyncio.gather(
            *(slot.reload(settings, apply=apply, limit_s=RELOAD_S) for slot in self._slots)
        )
        return next((answer.error for answer in answers if answer and answer.error), "")

    async def _stop(self) -> None:
        await asyncio.gather(*(slot.stop() for slot in self._slots))

    def _orders(self, number: int) -> Orders:
        return Orders(
            number,
            document(self._settings),
            self._address,
            self._http,
            self.node_id,
            os.getpid(),
            self._folder,
            self._states() if self._settings.embedded.enabled else None,
        )

    def _states(self) -> list[ChildState]:
        return [state_of(child) for child in self._children]

    def _tell_children(self) -> None:
        for slot in self._slots:
            slot.tell(Children(self._states()))

    def _take_port(self, stack: contextlib.AsyncExitStack) -> str:
        """The address, with a port that is this server's alone."""
        check_exposure(self._settings)
        listen = self._settings.listen
        host, _, port = listen.rpartition(":")
        try:
            bound, sockets = share(host.strip("[]"), int(port))
        except (OSError, socket.gaierror) as error:
            raise taken(listen, error) from None
        for item in sockets:
            stack.callback(item.close)
        return f"{host}:{bound}"

    def _take_http(self, stack: contextlib.AsyncExitStack) -> str | None:
        """The address of HTTP, with a port that is this server's alone; None where it is off."""
        if not self._settings.http.on:
            return None
        listen = self._settings.http.listen
        host, _, port = listen.rpartition(":")
        loopback = host in ("127.0.0.1", "localhost")  # programs take the name for either address
        try:
            bound, sockets = share("localhost" if loopback else host.strip("[]"), int(port))
        except (OSError, socket.gaierror) as error:
            raise http_taken(listen, error) from None
        for item in sockets:
            stack.callback(item.close)
        return f"{host}:{bound}"

    def _take_metrics(self, stack: contextlib.AsyncExitStack) -> SharedMetrics | None:
        settings = self._settings
        if not settings.metrics.enabled:
            return None
        try:
            self._folder = stack.enter_context(metrics_folder(settings.state_dir))
        except OSError as error:
            raise StartError(
                f"state_dir = {settings.state_dir}: there is no place for what the workers count "
                f"({error.strerror}) – give a directory that can be written (or TMPDIR), or set "
                "metrics.enabled to false"
            ) from None
        metrics = SharedMetrics(self._folder, lambda: self._slots)
        try:
            metrics.bind(settings.metrics.listen)
        except OSError as error:
            raise metrics_taken(settings.metrics.listen, error) from None
        stack.push_async_callback(metrics.stop)
        return metrics
