"""The backend of mock.c in Python, for where that cannot be compiled: the same words, slower."""

from __future__ import annotations

import asyncio
import json
import sys

#: By name: how many tokens, and the seconds between two.
MODES = {
    "instant": (1, 0.0),
    "burst64": (64, 0.0),
    "paced": (64, 0.005),
    "slow": (30, 1.0),
    "pair": (2, 0.02),
}
WORDS = 64
USAGE = {"prompt_tokens": 8, "completion_tokens": WORDS, "total_tokens": 8 + WORDS}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return _chunk(f"data: {json.dumps({'id': 'bench', 'model': 'bench', 'choices': choices})}\n\n")


def _json(answer: object) -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


MODELS = _json({"object": "list", "data": [{"id": name, "object": "model"} for name in MODES]})
VECTOR = _json({"data": [{"index": 0, "embedding": [0.5] * 4}], "model": "bench", "usage": USAGE})
ENDING = (
    _event({}, "stop")
    + _chunk(f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n")
    + _chunk("data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


async def _stream(writer: asyncio.StreamWriter, tokens: int, pace_s: float) -> None:
    loop = asyncio.get_running_loop()
    writer.write(HEAD)
    due = loop.time()
    for i in range(tokens):
        writer.write(_event({"content": "token " * (WORDS if tokens == 1 else 1)}))
        if pace_s and i < tokens - 1:
            due += pace_s
            await asyncio.sleep(due - loop.time())
    writer.write(ENDING)


async def _answer(writer: asyncio.StreamWriter, line: bytes, body: bytes) -> None:
    if line.startswith(b"GET"):
        writer.write(MODELS)
    elif b"/embeddings" in line:
        writer.write(VECTOR)
    else:
        asked = json.loads(body)
        named = asked.get("user")
        tokens, pace_s = MODES[named if named in MODES else asked["model"]]
        if asked.get("stream"):
            await _stream(writer, tokens, pace_s)
        else:
            message = {
                "role": "assistant",
                "content": "token " * (WORDS if tokens == 1 else tokens),
            }
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            writer.write(_json({"id": "bench", "choices": [choice], "usage": USAGE}))
    await writer.drain()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            await _answer(writer, head.split(b"\r\n")[0], await reader.readexactly(length))
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def main() -> None:
    """Prints its port, and serves until stdin ends."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
