"""The RPCs of `atmosphere.v1.Execution`: decode, execute, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from atmosphere_grpc.codec.requests import (
    decode_chat,
    decode_embed,
    decode_execute,
    decode_list_models,
    decode_test,
    max_delay_s,
    wants_progress,
)
from atmosphere_grpc.codec.responses import (
    encode_chat,
    encode_embed,
    encode_execute,
    encode_integrations,
    encode_models,
    encode_route,
    encode_test,
)
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionServicer


class Context(Protocol):
    """What the RPCs must know of a call, whichever way it came."""

    def time_remaining(self) -> float | None:
        """Seconds until its caller's deadline; None: there is none."""
        ...


class Servicer(ExecutionServicer):
    """Serves an `Execution`. A `Failure` goes through to the interceptor that tells it."""

    def __init__(self, execution: Execution, deadlines: Deadlines, node_id: str) -> None:
        self._execution = execution
        self.deadlines = deadlines
        self._node_id = node_id

    async def Execute(  # noqa: D102 - the contract documents the RPCs
        self, request: execution_pb2.ExecuteRequest, context: Context
    ) -> execution_pb2.ExecuteResponse:
        result = await self._execution.execute(decode_execute(request), self._budget(context))
        return encode_execute(result, self._node_id)

    async def TestIntegration(  # noqa: D102
        self, request: execution_pb2.TestIntegrationRequest, context: Context
    ) -> execution_pb2.TestIntegrationResponse:
        result = await self._execution.test(decode_test(request), self._budget(context))
        return encode_test(result)

    async def ListModels(  # noqa: D102
        self, request: execution_pb2.ListModelsRequest, context: Context
    ) -> execution_pb2.ListModelsResponse:
        page, size = decode_list_models(request)
        listed = await self._execution.list_models(request.integration_id, self._budget(context))
        return encode_models(listed, request.integration_id, page, size)

    def Chat(  # noqa: D102
        self, request: chat_pb2.ChatRequest, context: Context
    ) -> AsyncGenerator[chat_pb2.ChatResponse, None]:
        return self.chat(request, context)

    async def chat(
        self,
        request: chat_pb2.ChatRequest,
        context: Context,
        *,
        routed: bool = False,
        undo: Callable[[], None] | None = None,
    ) -> AsyncGenerator[chat_pb2.ChatResponse, None]:
        """The events of a chat; `routed` and `undo` as of an `Execution`."""
        chat = self._execution.chat(
            decode_chat(request),
            self._budget(context),
            progress=wants_progress(request),
            routed=routed,
            undo=undo,
            max_delay_s=max_delay_s(request),
        )
        async with aclosing(chat) as events:
            async for event in events:
                yield encode_chat(event)

    async def Embed(  # noqa: D102
        self, request: execution_pb2.EmbedRequest, context: Context
    ) -> execution_pb2.EmbedResponse:
        result = await self._execution.embed(decode_embed(request), self._budget(context))
        return encode_embed(result)

    async def ListIntegrations(  # noqa: D102
        self, request: execution_pb2.ListIntegrationsRequest, context: Context
    ) -> execution_pb2.ListIntegrationsResponse:
        return encode_integrations(self._execution.list_integrations())

    async def Route(  # noqa: D102
        self, request: execution_pb2.RouteRequest, context: Context
    ) -> execution_pb2.RouteResponse:
        route = await self._execution.route(decode_execute(request), self._budget(context))
        return encode_route(route)

    def _budget(self, context: Context) -> Budget:
        return Budget(context.time_remaining(), self.deadlines)
