"""`POST /v1/chat/completions`: a chat by OpenAI's API, whole or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from starlette.types import Send

from atmosphere_grpc.calls.arrival import REQUEST_ID_KEY
from atmosphere_grpc.codec.failures_json import openai_error
from atmosphere_grpc.codec.messages_json import json_object
from atmosphere_grpc.codec.openai_requests import OpenAIChat, decode_openai_chat
from atmosphere_grpc.codec.openai_responses import Chunks, openai_completion
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.http.answers import Events, send_json
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.endpoint import Endpoint, Note, stopped
from atmosphere_grpc.http.surface import Surface
from atmosphere_grpc.v1 import chat_pb2

DONE = b"data: [DONE]\n\n"
#: How long a stream may be silent before its first piece, in seconds. What stands between gives up
#: a silent connection after 60 as a rule; until then a failure can still have a status of its own.
SILENT_S = 15.0
_WAITING = {
    chat_pb2.Progress.PHASE_QUEUED: "queued",
    chat_pb2.Progress.PHASE_CONNECTING: "connecting",
    chat_pb2.Progress.PHASE_WAITING_FIRST_TOKEN: "waiting for the first token",
}


class Chat(Endpoint[OpenAIChat]):
    """Continues a conversation.

    A stream's status is that of its first piece, or of its first sign of life: what fails before
    has a status of its own, what fails after it is the last event, an error.

    Args:
        surface: What is served.
    """

    def __init__(self, surface: Surface) -> None:
        super().__init__(surface, "Chat", _read, openai_error)

    async def _run(self, call: HttpCall, send: Send) -> None:
        events = Events(send, {REQUEST_ID_KEY: call.request_id})

        async def answer() -> dict[str, Any] | None:
            async with self._let_in(call) as (asked, note):
                if not asked.stream:
                    return await self._whole(call, asked, note)
                try:
                    await self._stream(call, asked, events, note)
                finally:
                    if events.begun:
                        call.http.status = 200  # whatever comes of it
                return None

        try:
            outcome = await self._surface.envelope.run(self._rpc, call, answer, call.http)
        except asyncio.CancelledError:
            await self._break_off(call, send, events, stopped())
            raise
        if outcome.failure is not None:
            await self._break_off(call, send, events, outcome.failure)
        elif outcome.response is not None:
            await send_json(send, 200, outcome.response, {REQUEST_ID_KEY: call.request_id})

    async def _stream(self, call: HttpCall, asked: OpenAIChat, events: Events, note: Note) -> None:
        chunks = Chunks(include_usage=asked.include_usage)
        chat = self._surface.servicer.chat(asked.request, call, routed=asked.routed)
        async with aclosing(chat) as responses:
            async for response in responses:
                if response.HasField("progress"):
                    if response.progress.elapsed_ms >= SILENT_S * 1000:
                        await events.alive(_WAITING[response.progress.phase])
                    continue
                note(response)
                await events.send(chunks.of(response))
        await events.end(DONE)

    async def _whole(self, call: HttpCall, asked: OpenAIChat, note: Note) -> dict[str, Any]:
        heard: list[chat_pb2.ChatResponse] = []
        servicer = self._surface.servicer
        chat = servicer.chat(asked.request, call, routed=asked.routed, undo=heard.clear)
        async with aclosing(chat) as responses:
            async for response in responses:
                heard.append(response)  # noqa: PERF401 - `undo` clears what came so far
        # Only now: an answer that broke off was not sent, and costs nothing.
        for response in heard:
            note(response)
        return openai_completion(heard)

    async def _break_off(
        self, call: HttpCall, send: Send, events: Events, failure: Failure
    ) -> None:
        if not events.begun:
            await self._fail(call, send, failure)
            return
        await events.send([openai_error(failure, call.request_id)])
        await events.end()


async def _read(call: HttpCall) -> Callable[[], OpenAIChat]:
    body = await call.json_body()
    return lambda: decode_openai_chat(json_object(body))
