"""Around every gRPC call: the envelope that all calls run in, and the one place that aborts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
from grpc.aio import ServerInterceptor, ServicerContext

from atmosphere_grpc.calls.arrival import REQUEST_ID_KEY, Arrival, request_id_of
from atmosphere_grpc.calls.envelope import Envelope
from atmosphere_grpc.codec.failures import encode_failure
from atmosphere_grpc.codec.requests import decode_bytes
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.log import failed
from atmosphere_grpc.log import request_id as current_request_id

log = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Parse = Callable[[bytes], Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncGenerator[Any, None]]


class Enveloping(ServerInterceptor):
    """Wraps the methods of one service; others (health, reflection) are left alone.

    Args:
        service: The service's full name.
        envelope: What their calls run in.
    """

    def __init__(self, service: str, envelope: Envelope) -> None:
        self._prefix = f"/{service}/"
        self._envelope = envelope
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
        if handler is None or not method.startswith(self._prefix):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            name = method.removeprefix(self._prefix)
            known = self._wrapped[method] = (handler, self._wrap(name, handler))
        return known[1]

    def _wrap(self, name: str, handler: Handler) -> Handler:
        # Requests are decoded inside: gRPC would tell the caller our exception, with code UNKNOWN.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(name, handler), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(name, handler), None, handler.response_serializer
        )

    def _unary(self, name: str, handler: Handler) -> Unary:
        parse, handle = cast(Parse, handler.request_deserializer), cast(Unary, handler.unary_unary)

        async def wrapped(data: bytes, context: Context) -> Any:
            async def answer() -> Any:
                return await handle(decode_bytes(parse, data), context)

            return await self._run(name, context, answer)

        return wrapped

    def _streaming(self, name: str, handler: Handler) -> Unary:
        parse = cast(Parse, handler.request_deserializer)
        handle = cast(Streaming, handler.unary_stream)

        # A coroutine that writes, not a generator: a cancelled call then interrupts the write
        # itself and closes the generator at once. A generator parked in `yield` would only be
        # finalised when it is collected.
        async def wrapped(data: bytes, context: Context) -> None:
            async def write_all() -> None:
                request = decode_bytes(parse, data)
                async with aclosing(handle(request, context)) as responses:
                    async for response in responses:
                        await _sent(context.write(response))

            await self._run(name, context, write_all)

        return wrapped

    async def _run(self, name: str, context: Context, handle: Callable[[], Awaitable[Any]]) -> Any:
        outcome = await self._envelope.run(name, arrival_of(context), handle)
        if outcome.failure is not None:
            await _abort(context, outcome.failure, outcome.request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, outcome.request_id),))
        return outcome.response


def arrival_of(context: Context) -> Arrival:
    """A call's context as what its stages know of it."""
    # The stubs ask for a type of callbacks that no function has.
    return cast(Arrival, context)


async def end(context: Context, failure: Failure) -> None:
    """Ends a call of a service that has no envelope, such as reflection; raises."""
    request_id = request_id_of(arrival_of(context))
    current_request_id.set(request_id)
    failed(log, failure)
    await _abort(context, failure, request_id)


async def _abort(context: Context, failure: Failure, request_id: str) -> None:
    status = encode_failure(failure, request_id)
    trailers: tuple[tuple[str, str | bytes], ...] = (
        (REQUEST_ID_KEY, request_id),
        ("grpc-status-details-bin", status.SerializeToString()),
    )
    await _sent(context.abort(failure.code, status.message, trailing_metadata=trailers))


async def _sent(sending: Awaitable[None]) -> None:
    """Ends the call as cancelled when gRPC cannot send to a caller that has gone.

    That may fail a moment before the call's task is cancelled, and is no fault of this server.
    """
    try:
        await sending
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
