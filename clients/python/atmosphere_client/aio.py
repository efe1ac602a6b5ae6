"""The client for asyncio. What the methods do and take is told in `client`."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from atmosphere_grpc.v1 import execution_pb2, execution_pb2_grpc

from . import _connection, _request
from ._call import Call, CallOptions, GenerateOptions, prepare
from ._listing import Models, Pages
from ._wire import HealthCheckRequest, HealthCheckResponse, serving_status
from .chat import AsyncChatStream
from .errors import broken, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from atmosphere_grpc.v1 import chat_pb2

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncAtmosphereClient:
    """A client of `atmosphere.v1.Execution` for asyncio.

        async with AsyncAtmosphereClient() as client:
            response = await client.execute("Why is the sky blue?")
            print(response.data.message.content)

    It may be made anywhere, and belongs to the event loop of its first call. Methods and
    arguments are those of `AtmosphereClient`. Cancelling the task that awaits a call
    cancels the call, and with it the model's work.
    """

    def __init__(
        self,
        target: str = _connection.DEFAULT_TARGET,
        *,
        tls: bool = False,
        ca_certificate: _connection.Pem | None = None,
        client_certificate: _connection.Pem | None = None,
        client_key: _connection.Pem | None = None,
        token: str | None = None,
        api_key: str | None = None,
        allow_insecure_token: bool = False,
        timeout: float | None = None,
        options: _connection.ChannelOptions | None = None,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._connection = _connection.connection(
            target,
            tls=tls,
            ca_certificate=ca_certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            token=token,
            api_key=api_key,
            allow_insecure_token=allow_insecure_token,
            options=options,
            brings_channel=channel is not None,
        )
        self._timeout = timeout
        self._owns_channel = channel is None
        self._channel = channel
        self._stub: execution_pb2_grpc.ExecutionAsyncStub | None = None
        # grpc.aio 1.75 does not end a stream that is being read when its channel closes.
        self._streams: weakref.WeakSet[AsyncChatStream] = weakref.WeakSet()
        self._closed = False

    async def execute(
        self,
        intent: str,
        *,
        kwargs: Mapping[str, Any] | None = None,
        capability: str = "",
        integration: str = "",
        model: str = "",
        route: str = "",
        **options: Unpack[GenerateOptions],
    ) -> execution_pb2.ExecuteResponse:
        """Routes an intent to a capability, runs it, and says what happened."""
        request = _request.intent(
            execution_pb2.ExecuteRequest,
            intent,
            kwargs=kwargs,
            capability=capability,
            integration=integration,
            model=model,
            route=route,
            options=options,
        )
        call = self._call(options, GenerateOptions)
        return await self._unary(self._rpc.Execute, request, call)

    def chat(
        self,
        messages: _request.Messages,
        *,
        model: str = "",
        integration: str = "",
        tools: Sequence[_request.ToolLike] = (),
        tool_choice: _request.ToolChoiceLike | None = None,
        response_format: _request.ResponseFormatLike | None = None,
        session_id: str = "",
        max_delay_ms: int = 0,
        extra: Mapping[str, Any] | None = None,
        on_progress: Callable[[chat_pb2.Progress], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncChatStream:
        """Continues a conversation. The call begins at once; its answer streams in."""
        request = _request.chat(
            messages,
            model=model,
            integration=integration,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            session_id=session_id,
            max_delay_ms=max_delay_ms,
            extra=extra,
            options=options,
        )
        call = self._call(options, GenerateOptions)
        with translated():
            stream = AsyncChatStream(self._rpc.Chat(request, **call.arguments()), on_progress)
        self._streams.add(stream)
        return stream

    async def embed(
        self,
        input: str | Sequence[str],  # noqa: A002 – the name that it has everywhere
        *,
        model: str = "",
        integration: str = "",
        dimensions: int | None = None,
        **options: Unpack[CallOptions],
    ) -> execution_pb2.EmbedResponse:
        """Turns texts into vectors, one each, in their order."""
        request = _request.embed(input, model=model, integration=integration, dimensions=dimensions)
        return await self._unary(self._rpc.Embed, request, self._call(options))

    async def models(self, integration: str = "", **options: Unpack[CallOptions]) -> Models:
        """Lists the models of all integrations, or of one."""
        call = self._call(options)
        pages = Pages(integration)
        while pages.request is not None:
            pages.add(await self._unary(self._rpc.ListModels, pages.request, call))
        return pages.result()

    async def integrations(self, **options: Unpack[CallOptions]) -> list[execution_pb2.Integration]:
        """Lists the integrations and how they are doing."""
        request = execution_pb2.ListIntegrationsRequest()
        response = await self._unary(self._rpc.ListIntegrations, request, self._call(options))
        return list(response.integrations)

    async def test_integration(
        self,
        integration: str,
        prompt: str = "",
        model: str = "",
        **options: Unpack[CallOptions],
    ) -> execution_pb2.TestIntegrationResponse:
        """Prompts one integration, without retry or fallback."""
        request = execution_pb2.TestIntegrationRequest(
            integration_id=integration, prompt=prompt, model=model
        )
        return await self._unary(self._rpc.TestIntegration, request, self._call(options))

    async def route(
        self,
        intent: str,
        *,
        kwargs: Mapping[str, Any] | None = None,
        capability: str = "",
        integration: str = "",
        model: str = "",
        route: str = "",
        **options: Unpack[GenerateOptions],
    ) -> chat_pb2.RouteDecision:
        """Says what `execute` would do with the same arguments, and has nothing generated."""
        request = _request.intent(
            execution_pb2.RouteRequest,
            intent,
            kwargs=kwargs,
            capability=capability,
            integration=integration,
            model=model,
            route=route,
            options=options,
        )
        call = self._call(options, GenerateOptions)
        return (await self._unary(self._rpc.Route, request, call)).route

    async def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Returns the health of a service, such as ``SERVING`` or ``NOT_SERVING``."""
        call = self._call(options)
        check: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self._opened().unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        return serving_status(await self._unary(check, HealthCheckRequest(service=service), call))

    async def close(self) -> None:
        """Closes the channel, unless it was brought; calls under way are cancelled."""
        self._closed = True
        if self._owns_channel and self._channel is not None:
            for stream in list(self._streams):
                stream.cancel()
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _rpc(self) -> execution_pb2_grpc.ExecutionAsyncStub:
        asyncio.get_running_loop()  # says so where there is none; grpc.aio would just hang
        if self._stub is None:
            self._stub = execution_pb2_grpc.ExecutionStub(self._opened())
        return self._stub

    def _opened(self) -> grpc.aio.Channel:
        # Not before the first call: grpc.aio binds a channel to the loop that runs now.
        if self._channel is None:
            self._channel = self._connection.open_aio()
        return self._channel

    def _call(self, options: Mapping[str, Any], allowed: type = CallOptions) -> Call:
        if self._closed:
            raise RuntimeError("the client is closed")
        metadata = self._connection.metadata
        return prepare(options, allowed, timeout=self._timeout, metadata=metadata)

    async def _unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        call: Call,
    ) -> Response:
        with translated():
            response = await method(request, **call.arguments())
        if response is None:  # grpc.aio's answer to a message that it cannot decode
            raise broken("RESPONSE_UNREADABLE", "the response cannot be decoded")
        return response
