"""What a fake server does on a connection, one step after the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class ColdModel:
    """A model that is loaded when it is first asked for, as Ollama does.

    A request for it gets no headers until it is loaded, and when the requester
    leaves, the load is given up: the next one starts from nothing.

    Attributes:
        loaded: Whether it is in memory.
        begun: How many loads were begun.
        aborted: How many of those were given up.

    Args:
        load_s: How long a load takes; None: until `finish` is called.
    """

    def __init__(self, load_s: float | None = None) -> None:
        self.loaded = False
        self.begun = 0
        self.aborted = 0
        self._load_s = load_s
        self._finish = asyncio.Event()

    def finish(self) -> None:
        """Lets the load end."""
        self._finish.set()

    async def load(self) -> None:
        """Returns when the model is in memory."""
        if self.loaded:
            return
        self.begun += 1
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._finish.wait(), self._load_s)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        self.loaded = True


@dataclass(frozen=True, slots=True)
class Send:
    """Writes `data`, in pieces of `size` bytes where that is not 0, `times` times over."""

    data: bytes
    size: int = 0
    times: int = 1

    def pieces(self) -> Iterator[bytes]:
        """What is written at once, once through."""
        size = self.size or len(self.data) or 1
        for start in range(0, len(self.data), size):
            yield self.data[start : start + size]


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits for a time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Until:
    """Waits for an event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Load:
    """Waits for a model to be loaded."""

    model: ColdModel


@dataclass(frozen=True, slots=True)
class Stall:
    """Does nothing more, until the client goes away."""


@dataclass(frozen=True, slots=True)
class Close:
    """Closes the connection after all that was written."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Breaks the connection off with a TCP RST."""


Step = Send | Pause | Until | Load | Stall | Close | Reset


async def play(steps: Iterable[Step], writer: asyncio.StreamWriter) -> bool:
    """Takes the steps; whether the connection can be used again."""
    for step in steps:
        match step:
            case Send():
                for _ in range(step.times):
                    for piece in step.pieces():
                        writer.write(piece)
                        await writer.drain()
                        if step.size:
                            await _let_client_read()
                await _let_client_read()
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Until(event):
                await event.wait()
            case Load(model):
                await model.load()
            case Stall():
                await asyncio.Event().wait()
            case Close():
                writer.close()
                return False
            case Reset():
                linger_0 = struct.pack("ii", 1, 0)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
                writer.transport.abort()
                return False
    return True


async def _let_client_read() -> None:
    """Lets a client of the same event loop read what was written before more is.

    One turn of the loop would let this task write before the client's socket is looked at.
    """
    for _ in range(3):
        await asyncio.sleep(0)
