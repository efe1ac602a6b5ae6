"""Lets gRPC calls in, or not, inside of their envelope."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
from grpc.aio import ServerInterceptor, ServicerContext

from atmosphere_grpc.calls.arrival import credentials_of
from atmosphere_grpc.calls.entrance import Entrance
from atmosphere_grpc.codec.requests import decode_bytes
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.interceptors.envelope import arrival_of, end

Context = ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Parse = Callable[[bytes], Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncGenerator[Any, None]]

REFLECTION = "/grpc.reflection."


class Auth(ServerInterceptor):
    """Lets callers into the methods of one service, inside of its envelope, and into reflection.

    Health is open to all.

    Args:
        service: The service's full name.
        entrance: Where callers are let in.
        reflection_open: Whether reflection answers everybody.
    """

    def __init__(self, service: str, entrance: Entrance, *, reflection_open: bool = True) -> None:
        self._prefix = f"/{service}/"
        self._entrance = entrance
        self.reflection_open = reflection_open
        # Made once a method, not once a call.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler, by its arity."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if method.startswith(REFLECTION) and handler.stream_stream is not None:
            return self._reflecting(handler)
        if not method.startswith(self._prefix):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            name = method.removeprefix(self._prefix)
            known = self._wrapped[method] = (handler, self._wrap(name, handler))
        return known[1]

    def _wrap(self, name: str, handler: Handler) -> Handler:
        # A request is not even decoded before its caller is let in.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(name, handler), bytes, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(name, handler), bytes, handler.response_serializer
        )

    def _unary(self, name: str, handler: Handler) -> Unary:
        parse, handle = cast(Parse, handler.request_deserializer), cast(Unary, handler.unary_unary)
        entrance = self._entrance

        async def wrapped(data: bytes, context: Context) -> Any:
            caller = await entrance.admit(name, arrival_of(context))
            decode = entrance.charged(caller, lambda: decode_bytes(parse, data))
            async with decode as (request, note):
                response = await handle(request, context)
                note(response)
                return response

        return wrapped

    def _streaming(self, name: str, handler: Handler) -> Streaming:
        parse = cast(Parse, handler.request_deserializer)
        handle = cast(Streaming, handler.unary_stream)
        entrance = self._entrance

        async def wrapped(data: bytes, context: Context) -> AsyncGenerator[Any, None]:
            caller = await entrance.admit(name, arrival_of(context))
            async with (
                entrance.charged(caller, lambda: decode_bytes(parse, data)) as (request, note),
                aclosing(handle(request, context)) as responses,
            ):
                async for response in responses:
                    note(response)
                    yield response

        return wrapped

    def _reflecting(self, handler: Handler) -> Handler:
        reflect = cast(Any, handler.stream_stream)

        async def wrapped(requests: Any, context: Context) -> AsyncGenerator[Any, None]:
            if not self.reflection_open:
                try:
                    await self._entrance.gate.caller(credentials_of(arrival_of(context)))
                except Failure as failure:
                    await end(context, failure)
            async with aclosing(reflect(requests, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )
