"""Answers of a fake server: bytes of HTTP/1.1, and when they are sent."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tests.fakes import recordings
from tests.fakes.steps import Close, Send, Step

#: The end of a chunked body.
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server does when a request has come. Make one by a class method."""

    steps: tuple[Step, ...]

    @classmethod
    def raw(cls, *parts: bytes | Step) -> Self:
        """Bytes as they are, each part in one write, and steps."""
        return cls(tuple(Send(part) if isinstance(part, bytes) else part for part in parts))

    @classmethod
    def body(
        cls,
        body: bytes | str,
        status: int = 200,
        *,
        content_type: str = "text/plain",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """A whole answer, in one write."""
        data = body.encode() if isinstance(body, str) else body
        framing = {"Content-Type": content_type, "Content-Length": str(len(data))}
        return cls.raw(head(status, {**framing, **(headers or {})}) + data)

    @classmethod
    def json(
        cls, value: Any, status: int = 200, *, headers: Mapping[str, str] | None = None
    ) -> Self:
        """A whole answer of JSON."""
        return cls.body(json.dumps(value), status, content_type="application/json", headers=headers)

    @classmethod
    def html(cls, status: int = 200) -> Self:
        """A web page."""
        page = "<!doctype html><html><title>An app</title></html>"
        return cls.body(page, status, content_type="text/html; charset=utf-8")

    @classmethod
    def stream(
        cls,
        *parts: bytes | Step,
        content_type: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """A chunked answer: headers at once, then each part as a chunk in its own write.

        The bytes of a `Send` are framed too: each piece becomes a chunk. The body's end
        follows the last part in a write of its own, unless a step ended the connection.
        """
        framing = {"Content-Type": content_type, "Transfer-Encoding": "chunked"}
        steps: list[Step] = [Send(head(200, {**framing, **(headers or {})}))]
        for part in parts:
            match part:
                case bytes():
                    steps.append(Send(_chunk(part)))
                case Send(data, size=0, times=times):
                    steps.append(Send(_chunk(data), times=times))
                case Send(times=times):
                    steps += [Send(_chunk(piece)) for piece in part.pieces()] * times
                case step:
                    steps.append(step)
        return cls((*steps, Send(LAST_CHUNK)))

    @classmethod
    def until_eof(cls, *parts: bytes | Step, content_type: str = "text/event-stream") -> Self:
        """A stream without framing, that only the connection's end ends."""
        framing = {"Content-Type": content_type, "Connection": "close"}
        return cls.raw(head(200, framing), *parts, Close())

    @classmethod
    def replay(cls, path: str | Path) -> Self:
        """A recorded answer, byte by byte as it was; broken off where that was.

        Args:
            path: A file, or the name of one in `tests/data/wire`. What a `.body.txt`
                holds is the body of an event stream only.
        """
        data = recordings.read(path)
        if str(path).endswith(".body.txt"):
            return cls.stream(data)
        return cls.raw(data) if recordings.is_whole(data) else cls.raw(data, Close())

    def after(self, *steps: Step) -> Self:
        """The same, when these steps were taken."""
        return replace(self, steps=(*steps, *self.steps))

    def dripped(self, size: int = 1) -> Self:
        """The same in writes of `size` bytes, headers and framing included."""
        steps = (
            replace(step, size=size) if isinstance(step, Send) else step for step in self.steps
        )
        return replace(self, steps=tuple(steps))


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """A status line, headers and the blank line."""
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
