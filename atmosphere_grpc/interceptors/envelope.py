"""Around every call: its request id and record, the one place that aborts, who is told of it."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
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
from atmosphere_grpc.record import CANCELLED, NOTHING, OK, CallRecord, Sink, opened

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
#: W3C Trace Context, level 1: what is not of this form is as good as not sent.
TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
_TRACE_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACE_STATE = re.compile(r"[\x20-\x7e]{1,512}")
#: A call's own budget tells more than this last bound, so it goes first.
LAST_BOUND_S = 0.25

FAULT = "fault in %s"

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
        sinks: What is told of each call.
    """

    def __init__(
        self, service: str, in_flight: InFlight, deadlines: Deadlines, sinks: Sequence[Sink] = ()
    ) -> None:
        self._prefix = f"/{service}/"
        self._in_flight = in_flight
        self.deadlines = deadlines
        self._sinks = tuple(sinks)
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
        request_id, trace = _sent_along(context)
        current_request_id.set(request_id)
        record = CallRecord(name, request_id, context.peer(), trace)
        opened(record)
        self._opened(record)
        failure: Failure | None = None
        code = CANCELLED
        response = None
        try:
            self._in_flight.enter(name, context)
            bound_s = self.deadlines.total_s(context.time_remaining()) + LAST_BOUND_S
            async with asyncio.timeout(bound_s):
                response = await handle()
            code = OK
        except Failure as error:
            failure = error
        except TimeoutError:
            failure = Failure.out_of_time(
                Phase.TOTAL, "the call's time was used up – did the caller stop reading?"
            )
        except Exception:
            log.exception(FAULT, name)
            failure = Failure(
                Reason.INTERNAL, "a fault of this server – report it with the request id"
            )
        finally:
            if failure is None:
                record.close(code)
            else:
                record.close(failure.code.name, failure.reason)
            self._closed(record)
            if failure is not None:
                failed(log, failure)
        if failure is not None:
            # Not inside a handler above: abort raises, and must not be caught and done twice.
            await _abort(context, failure, request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        return response

    def _opened(self, record: CallRecord) -> None:
        for sink in self._sinks:
            try:
                sink.opened(record)
            except Exception:
                log.exception(FAULT, type(sink).__name__)  # is not the call's

    def _closed(self, record: CallRecord) -> None:
        for sink in self._sinks:
            try:
                sink.closed(record)
            except Exception:
                log.exception(FAULT, type(sink).__name__)  # is not the call's


async def end(context: Context, failure: Failure) -> None:
    """Ends a call of a service that has no envelope, such as reflection; raises."""
    request_id, _ = _sent_along(context)
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


def _sent_along(context: Context) -> tuple[str, Mapping[str, str]]:
    """The call's request id, and what its caller sent of a trace.

    The id is the caller's own, when it is one that can be logged; else a new one.
    """
    request_id, parent, states = "", "", []
    for key, value in context.invocation_metadata() or ():
        if not isinstance(value, str):
            continue
        if key == REQUEST_ID_KEY and not request_id and _REQUEST_ID.fullmatch(value):
            request_id = value
        elif key == TRACE_PARENT and _TRACE_PARENT.fullmatch(value):
            parent = value
        elif key == TRACE_STATE:
            states.append(value)
    trace: Mapping[str, str] = NOTHING
    if parent:
        state = ",".join(states)
        trace = {TRACE_PARENT: parent}
        if _TRACE_STATE.fullmatch(state):
            trace = {TRACE_PARENT: parent, TRACE_STATE: state}
    # Nobody must be unable to guess it, so that a system call is not needed.
    return request_id or f"{random.getrandbits(128):032x}", trace
