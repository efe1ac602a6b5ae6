"""A backend that costs as little as it can: canned bytes, in a process of its own.

It stands for a model server whose time is not what is measured, and says nothing of one. Its
model `bench` answers at once, `paced` a token every 5 ms; each token is an HTTP chunk, as those
of llama.cpp are.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

TOKENS = 64
#: Between two tokens of the model `paced`, in seconds.
PACE_S = 0.005
WHOLE, PACED = "bench", "paced"

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: dict[str, object], reason: str | None = None) -> bytes:
    chunk = {
        "id": "bench",
        "model": "bench",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
    return _chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _end() -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}
    last = json.dumps({"choices": [], "usage": usage}).encode()
    return (
        _event({}, "stop")
        + _chunk(b"data: " + last + b"\n\n")
        + _chunk(b"data: [DONE]\n\n")
        + _chunk(b"")
    )


def _models() -> bytes:
    body = json.dumps({"data": [{"id": WHOLE}, {"id": PACED}]}).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


TOKEN = _event({"content": "token "})
END = _end()
STREAM = HEAD + TOKEN * TOKENS + END
MODELS = _models()


class Backend(asyncio.Protocol):
    """Answers each request that has arrived whole."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        # No assertion: those of uvloop are of no type of asyncio.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Takes bytes in, and answers when a request is whole."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self._received = body[length:]
        if head.startswith(b"GET"):
            self._transport.write(MODELS)
        elif b'"paced"' in body:
            self._transport.write(HEAD)
            self._pace(TOKENS, self._loop.time() + PACE_S)
        else:
            self._transport.write(STREAM)

    def _pace(self, left: int, due: float) -> None:
        if self._transport.is_closing():
            return
        if not left:
            self._transport.write(END)
            return
        self._transport.write(TOKEN)
        self._loop.call_at(due, self._pace, left - 1, due + PACE_S)


async def main() -> None:
    """Serves until stdin ends, that is until its parent does."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:  # it has no wheel for Windows
        asyncio.run(main())
    else:
        uvloop.run(main())
