"""Lets a call in, or not: who makes it, what that caller may do, and how much of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
from grpc.aio import ServerInterceptor, ServicerContext

from atmosphere_grpc.access.caller import Caller, Credentials
from atmosphere_grpc.access.gate import Gate
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.access.policy import denied
from atmosphere_grpc.codec.costs import Meter
from atmosphere_grpc.codec.requests import decode_bytes
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.execution.caller import caller as current_caller
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.interceptors.envelope import end
from atmosphere_grpc.record import current

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
        gate: Who calls.
        limits: How much each caller may do.
        reflection_open: Whether reflection answers everybody.
    """

    def __init__(
        self, service: str, gate: Gate, limits: Limits, *, reflection_open: bool = True
    ) -> None:
        self._prefix = f"/{service}/"
        self.gate = gate
        self.limits = limits
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

        async def wrapped(data: bytes, context: Context) -> Any:
            caller = await self._admit(name, context)
            async with self._charged(caller, lambda: decode_bytes(parse, data)) as (request, note):
                response = await handle(request, context)
                note(response)
                return response

        return wrapped

    def _streaming(self, name: str, handler: Handler) -> Streaming:
        parse = cast(Parse, handler.request_deserializer)
        handle = cast(Streaming, handler.unary_stream)

        async def wrapped(data: bytes, context: Context) -> AsyncGenerator[Any, None]:
            caller = await self._admit(name, context)
            async with (
                self._charged(caller, lambda: decode_bytes(parse, data)) as (request, note),
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
                    await self.gate.caller(_credentials(context))
                except Failure as failure:
                    await end(context, failure)
            async with aclosing(reflect(requests, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )

    async def _admit(self, name: str, context: Context) -> Caller:
        """The caller, who may call this RPC; from now on the call is known to be theirs.

        Raises:
            Failure: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        caller = await self.gate.caller(_credentials(context))
        current_caller.set(caller.name)
        current().caller = caller.name
        permit.set(caller.permit)
        if not caller.permit.rpc(name):
            raise denied(f"{caller.name}: RPC {name}")
        return caller

    @asynccontextmanager
    async def _charged(
        self, caller: Caller, decode: Callable[[], Any]
    ) -> AsyncIterator[tuple[Any, Callable[[Any], None]]]:
        """Has a call counted, and charged for what it says that it sent."""
        async with self.limits.call(caller) as bill:
            request = decode()
            if caller.policy.tokens_per_minute is None:
                yield request, _nothing
                return
            meter = Meter(request)
            failed = False
            try:
                yield request, meter.sent
            except Failure:
                failed = True
                raise
            finally:
                bill.tokens = meter.tokens(failed=failed)


def _nothing(_: Any) -> None:
    """Of a call whose tokens nobody counts."""


def _credentials(context: Context) -> Credentials:
    authorization, api_keys = [], []
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            if key == "authorization":
                authorization.append(value)
            elif key == "x-api-key":
                api_keys.append(value)
    identities = context.peer_identities() or ()
    return Credentials(
        tuple(authorization),
        tuple(api_keys),
        tuple(item.decode(errors="replace") for item in identities),
        context.peer() or "",
    )
