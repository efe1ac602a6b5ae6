"""A backend that costs as little as it can: canned bytes, in a process of its own.

It stands for a model server whose time is not what is measured, and says nothing of one.
"""

from __future__ import annotations

import asyncio
import json
import sys

TOKENS = 64


def _event(delta: dict[str, object], reason: str | None = None) -> bytes:
    chunk = {
        "id": "bench",
        "model": "bench",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _stream() -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}
    last = json.dumps({"choices": [], "usage": usage}).encode()
    body = b"".join(_event({"content": "token "}) for _ in range(TOKENS))
    body += _event({}, "stop") + b"data: " + last + b"\n\ndata: [DONE]\n\n"
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _models() -> bytes:
    body = json.dumps({"data": [{"id": "bench"}]}).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


STREAM = _stream()
MODELS = _models()


class Backend(asyncio.Protocol):
    """Answers each request that has arrived whole."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

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
        self._transport.write(MODELS if head.startswith(b"GET") else STREAM)


async def main() -> None:
    """Serves until stdin ends, that is until its parent does."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
