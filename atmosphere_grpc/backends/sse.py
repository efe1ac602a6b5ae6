"""Server-sent events out of raw bytes, however those are cut.

Follows the event-stream grammar of the HTML standard (section 9.2.6): LF, CRLF
and CR end lines, comments are dropped, several `data` lines are joined by LF, a
blank line ends an event. Bytes are decoded by whoever reads the data, so that a
character may be split between two reads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its type (empty for the default one) and its data.

    `ended` is False when the stream broke off before the blank line that ends it.
    """

    type: bytes
    data: bytes
    ended: bool = True


class EventTooLarge(ValueError):
    """An event is larger than the parser's limit."""


class SSEParser:
    """Turns reads into events.

    Args:
        max_event_bytes: The most bytes an event may have before it is refused.
    """

    __slots__ = ("_data", "_max", "_pending", "_size", "_skip_lf", "_start", "_type")

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._pending = b""  # the line that has begun
        self._data: list[bytes] = []
        self._size = 0
        self._type = b""
        self._skip_lf = False  # the last read ended in CR: an LF that follows belongs to it
        self._start = True

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes.

        Raises:
            EventTooLarge: An event grew over the limit.
        """
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._pending + chunk).split(b"\n")
        self._pending = lines.pop()
        events: list[Event] = []
        for line in lines:
            if self._start:
                self._start = False
                line = line.removeprefix(b"\xef\xbb\xbf")
            self._line(line, events)
        if self._size + len(self._pending) > self._max:
            raise EventTooLarge
        return events

    def flush(self) -> list[Event]:
        """The event that the end of the stream leaves unfinished, if any.

        The grammar would drop it; servers exist that leave the last blank line out.
        """
        events: list[Event] = []
        self._line(self._pending, events)
        self._pending = b""
        self._line(b"", events)
        return [Event(event.type, event.data, ended=False) for event in events]

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._size + len(line) > self._max:
            raise EventTooLarge
        if not line:
            if self._data:
                events.append(Event(self._type, b"\n".join(self._data)))
                self._data = []
                self._size = 0
            self._type = b""
            return
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._size += len(line)  # with the name, so that empty lines count too
            self._data.append(value)
        elif name == b"event":
            self._type = value
