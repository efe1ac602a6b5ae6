"""Around every call: its request id, the one place that aborts, and its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
from grpc.aio import ServerInterceptor, ServicerContext

from atmosphere_grpc.codec.failures import encode_failure
from atmosphere_grpc.codec.requests import decode_bytes
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.budget import Deadlines
from atmosphere_grpc.interceptors.in_flight import InFlight
from atmosphere_grpc.log import failed
from atmosphere_grpc.log import request_id as current_request_id

log = logging.getLogger(__name__)
access_log = logging.getLogger("atmosphere_grpc.access")

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
#: A call's own budget tells more than this last bound, so it goes first.
LAST_BOUND_S = 0.25

Context = ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Parse = Callable[[bytes], Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncGenerator[Any, None]]


class Envelope(ServerInterceptor):
    """Wraps the methods of one service; others (health, reflection) are left alone.

    Args:
        service: The service's full name.
        in_flight: Where calls are counted.
        deadlines: What bounds a call whose caller set no deadline and reads nothing.
    """

    def __init__(self, service: str, in_flight: InFlight, deadlines: Deadlines) -> None:
        self._prefix = f"/{service}/"
        self._in_flight = in_flight
        self.deadlines = deadlines

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
        name = method.removeprefix(self._prefix)
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
        began = time.perf_counter()
        request_id = _request_id(context)
        current_request_id.set(request_id)
        failure: Failure | None = None
        code = "CANCELLED"
        response = None
        try:
            self._in_flight.enter(context)
            bound_s = self.deadlines.total_s(context.time_remaining()) + LAST_BOUND_S
            async with asyncio.timeout(bound_s):
                response = await handle()
            code = "OK"
        except Failure as error:
            failure = error
        except TimeoutError:
            failure = Failure.out_of_time(
                Phase.TOTAL, "the call's time was used up – did the caller stop reading?"
            )
        except Exception:
            log.exception("fault in %s", name)
            failure = Failure(
                Reason.INTERNAL, "a fault of this server – report it with the request id"
            )
        finally:
            code = failure.code.name if failure else code
            _log_call(name, code, failure, (time.perf_counter() - began) * 1000)
        if failure is not None:
            # Not inside a handler above: abort raises, and must not be caught and done twice.
            await _abort(context, failure, request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        return response


async def end(context: Context, failure: Failure) -> None:
    """Ends a call of a service that has no envelope, such as reflection; raises."""
    request_id = _request_id(context)
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


def _request_id(context: Context) -> str:
    """The caller's own, when it is one that can be logged; else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _log_call(name: str, code: str, failure: Failure | None, duration_ms: float) -> None:
    reason = f" reason={failure.reason.value}" if failure else ""
    access_log.info("%s code=%s%s duration_ms=%.1f", name, code, reason, duration_ms)
    if failure is not None:
        failed(log, failure)
