"""Around every call: its record, its last bound, what came of it, who is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from atmosphere_grpc.calls.arrival import Arrival, request_id_of, trace_of
from atmosphere_grpc.calls.in_flight import InFlight
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.budget import Deadlines
from atmosphere_grpc.log import failed
from atmosphere_grpc.log import request_id as current_request_id
from atmosphere_grpc.record import CANCELLED, OK, CallRecord, HttpRecord, Sink, opened

log = logging.getLogger(__name__)
T = TypeVar("T")

#: A call's own budget tells more than this last bound, so it goes first.
LAST_BOUND_S = 0.25


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What came of a call.

    Attributes:
        request_id: Its id.
        response: The answer; None where it failed, or was sent on the way.
        failure: Why it failed; None: it did not.
    """

    request_id: str
    response: T | None = None
    failure: Failure | None = None


class Envelope:
    """What every call runs in.

    Args:
        in_flight: Where calls are counted.
        deadlines: What bounds a call whose caller set no deadline and reads nothing.
        sinks: What is told of each call.
    """

    def __init__(
        self, in_flight: InFlight, deadlines: Deadlines, sinks: Sequence[Sink] = ()
    ) -> None:
        self._in_flight = in_flight
        self.deadlines = deadlines
        self._sinks = tuple(sinks)

    async def run(
        self,
        method: str,
        arrival: Arrival,
        handle: Callable[[], Awaitable[T]],
        http: HttpRecord | None = None,
    ) -> Outcome[T]:
        """Runs a call of an RPC; whatever goes wrong is in the outcome, but for a cancellation.

        Args:
            method: The RPC's name.
            arrival: What the call brought along.
            handle: Answers it.
            http: What HTTP has of it; None: it came by gRPC.
        """
        request_id = request_id_of(arrival)
        current_request_id.set(request_id)
        record = CallRecord(method, request_id, arrival.peer(), trace_of(arrival), http=http)
        opened(record)
        self._opened(record)
        failure: Failure | None = None
        code = CANCELLED
        response = None
        try:
            self._in_flight.enter(method, arrival)
            bound_s = self.deadlines.total_s(arrival.time_remaining()) + LAST_BOUND_S
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
            log.exception("fault in %s", method)
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
        return Outcome(request_id, response, failure)

    def _opened(self, record: CallRecord) -> None:
        for sink in self._sinks:
            try:
                sink.opened(record)
            except Exception:  # noqa: BLE001 - it is logged
                _at_fault(sink)

    def _closed(self, record: CallRecord) -> None:
        for sink in self._sinks:
            try:
                sink.closed(record)
            except Exception:  # noqa: BLE001 - it is logged
                _at_fault(sink)


def _at_fault(sink: Sink) -> None:
    """Logs what is wrong with a sink, which is not the call's."""
    log.exception("fault in %s", type(sink).__name__)
