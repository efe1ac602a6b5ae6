"""The least that a grpc.aio server can cost: the same messages, answered from memory."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from atmosphere_grpc.server import OPTIONS, SERVICE
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from benchmarks.backend import PACE_S, PACED, TOKENS

ANSWER = execution_pb2.ExecuteResponse(
    success=True,
    data=execution_pb2.ExecutionData(message=chat_pb2.Message(content="token " * TOKENS)),
)
TOKEN = chat_pb2.ChatResponse(delta=chat_pb2.Delta(content="token "))


async def execute(request: execution_pb2.ExecuteRequest, context: object) -> Any:
    """The answer, whatever is asked."""
    return ANSWER


async def chat(request: chat_pb2.ChatRequest, context: object) -> AsyncIterator[Any]:
    """The same answer, a token a message; paced where that model is asked for."""
    loop = asyncio.get_running_loop()
    due = loop.time() + PACE_S
    for _ in range(TOKENS):
        yield TOKEN
        if request.model == PACED:
            await asyncio.sleep(due - loop.time())
            due += PACE_S


async def main() -> None:
    """Serves until stdin ends."""
    server = grpc.aio.server(options=OPTIONS)
    unary = grpc.unary_unary_rpc_method_handler(
        execute,
        execution_pb2.ExecuteRequest.FromString,
        execution_pb2.ExecuteResponse.SerializeToString,
    )
    streaming = grpc.unary_stream_rpc_method_handler(
        chat, chat_pb2.ChatRequest.FromString, chat_pb2.ChatResponse.SerializeToString
    )
    handlers = {"Execute": unary, "Chat": streaming}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port} ", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(main())
