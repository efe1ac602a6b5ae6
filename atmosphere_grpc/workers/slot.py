"""One worker's place: a process, and another one whenever it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable

import msgspec

from atmosphere_grpc.embedded.supervisor import Backoff
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.workers.channel import MAX_LINE, Channel
from atmosphere_grpc.workers.messages import (
    Answer,
    Ask,
    Failed,
    FromWorker,
    Leave,
    Orders,
    Ready,
    Reload,
)

log = logging.getLogger(__name__)

#: How long a process may take to load what it needs, until it answers at all, in seconds.
LOAD_S = 60.0
#: Between two questions whether a worker is there, in seconds.
ASK_S = 1.0
#: How long a worker that is told to stop at once may take, in seconds.
STOP_S = 3.0

_SIGNALS = {number.value: number.name for number in signal.Signals}


class Slot:
    """A worker, started anew whenever it dies or does not answer.

    Args:
        number: Which it is, from 1.
        orders: What a process is told first, as it is then.
        timeout_s: How long it may not answer.
        backoff: The waits before it is started anew.

    Attributes:
        ready: What it said when it last began to serve; None while it does not.
        restarts: How often a process was started in place of another.
    """

    def __init__(
        self,
        number: int,
        orders: Callable[[int], Orders],
        timeout_s: float,
        backoff: Backoff | None = None,
    ) -> None:
        self.number = number
        self.ready: Ready | None = None
        self.restarts = 0
        self._orders = orders
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._name = f"worker {number}"
        self._process: Process | None = None
        self._channel: Channel[FromWorker] | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._leaving = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it, and waits until it serves.

        Raises:
            StartError: It cannot; there is no second try, since that is a fault of the set-up.
        """
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(served), name=self._name)
        await asyncio.wait({served, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
            raise StartError(f"{self._name} was stopped while it was starting")

    def tell(self, message: msgspec.Struct) -> None:
        """Tells it something, if it is there; one that comes is told by its orders."""
        if self._channel is not None:
            self._channel.send(message)

    async def gauges(self, limit_s: float) -> Answer | None:
        """How things are in it; None when it does not say in time."""
        return await self._ask(lambda number: Ask(number, "gauges"), limit_s)

    async def reload(
        self, settings: dict[str, object], *, apply: bool, limit_s: float
    ) -> Answer | None:
        """What it says to other settings; None when it says nothing in time."""
        return await self._ask(lambda number: Reload(number, settings, apply), limit_s)

    async def drain(self, grace_s: float) -> None:
        """Has it stop as calls allow, and waits for its end; kills it after the grace."""
        self._leaving = True
        self.tell(Leave(drain=True))
        await self._ended(grace_s)

    async def stop(self) -> None:
        """Has it stop at once, and waits for its end; harmless at any time."""
        self._leaving = True
        self.tell(Leave(drain=False))
        await self._ended(STOP_S)

    async def _ended(self, limit_s: float) -> None:
        if self._task is None:
            return
        if self._process is None:  # between two processes
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=limit_s)
        if not self._task.done():
            if self._process is not None:
                log.warning("%s does not end: it is killed", self._name)
            self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # `start` has told it

    async def _ask(
        self, question: Callable[[int], msgspec.Struct], limit_s: float
    ) -> Answer | None:
        channel = self._channel
        if channel is None:
            return None
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            channel.send(question(number))
            await asyncio.wait({answer}, timeout=limit_s)
            return answer.result() if answer.done() and not answer.cancelled() else None
        finally:
            self._asked.pop(number, None)

    async def _supervise(self, served: asyncio.Future[None]) -> None:
        failures = 0
        while True:
            problem, served_s = await self._live(served)
            if self._leaving:
                return
            if not served.done():
                raise StartError(problem)
            failures = 1 if served_s >= self._backoff.healthy_s else failures + 1
            delay_s = self._backoff.delay_s(failures)
            log.warning("%s; another one starts in %.1f s", problem, delay_s)
            await asyncio.sleep(delay_s)
            self.restarts += 1

    async def _live(self, served: asyncio.Future[None]) -> tuple[str, float]:
        """The life of one process: why it ended, and for how many seconds it had served."""
        loop = asyncio.get_running_loop()
        since, why = 0.0, ""
        hung = asyncio.Event()
        async with self._spawned() as (process, channel):
            channel.send(self._orders(self.number))
            watching = asyncio.create_task(self._watch(process, hung), name=f"watch {self._name}")
            try:
                while (message := await channel.receive()) is not None:
                    match message:
                        case Ready():
                            since, self.ready = loop.time(), message
                            log.info("%s serves (process %d)", self._name, process.pid)
                            if not served.done():
                                served.set_result(None)
                        case Failed():
                            why = message.why
                        case Answer():
                            if (asked := self._asked.get(message.id)) and not asked.done():
                                asked.set_result(message)
                # A process that has closed its end, and goes on, is of no more use.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await process.wait()
            finally:
                watching.cancel()
                self.ready = None
        if hung.is_set():
            why = f"{self._name} did not answer for {self._timeout_s:g} s and was killed"
        ending = _ending(process.returncode or 0)
        return why or f"{self._name} {ending}", loop.time() - since if since else 0.0

    @contextlib.asynccontextmanager
    async def _spawned(self) -> AsyncIterator[tuple[Process, Channel[FromWorker]]]:
        """A new process and the channel to it; however the block is left, it is dead."""
        own, others = socket.socketpair()
        with others:
            try:
                process = await asyncio.create_subprocess_exec(
                    # -P: a file in the working directory must not stand in for a module.
                    *(sys.executable, "-P", "-m", "atmosphere_grpc.worker", str(self.number)),
                    stdin=others.fileno(),
                    stdout=2,  # only the parent has something to say on stdout
                    # It finds what this process finds, however that came to be importable.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except BaseException:
                own.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=own, limit=MAX_LINE)
        channel: Channel[FromWorker] = Channel(reader, writer, _DECODER)
        self._process, self._channel = process, channel
        try:
            yield process, channel
        finally:
            self._process = self._channel = None
            for asked in self._asked.values():
                asked.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            await channel.aclose()

    async def _watch(self, process: Process, hung: asyncio.Event) -> None:
        """Kills a process whose event loop does not answer."""
        limit_s = LOAD_S
        while True:
            # Twice: if this process was held up itself, the answer to the first may lie here.
            for wait_s in (limit_s, ASK_S):
                if await self._ask(lambda number: Ask(number, "alive"), wait_s) is not None:
                    break
            else:
                hung.set()
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return
            limit_s = self._timeout_s
            await asyncio.sleep(ASK_S)


_DECODER = msgspec.json.Decoder(FromWorker)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {_SIGNALS.get(-status, f'signal {-status}')}"
