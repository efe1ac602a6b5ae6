"""Messages over a stream: one a line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Generic, TypeVar

import msgspec

log = logging.getLogger(__name__)
T = TypeVar("T")

#: The most bytes of a message.
MAX_LINE = 64 * 1024 * 1024


class Channel(Generic[T]):
    """One end of a connection between two processes.

    Args:
        reader: Where the other's messages come from.
        writer: Where this one's go.
        decoder: Reads what the other says.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: msgspec.json.Decoder[T],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    def send(self, message: msgspec.Struct) -> None:
        """Says something; nothing is heard where the other has gone."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> T | None:
        """What the other says next; None at its end."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):  # ValueError: longer than any message
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError:  # the message of another release, installed meanwhile
            log.exception("what the other process says is not understood")
            return None

    async def aclose(self) -> None:
        """Says no more; what was said is heard."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
