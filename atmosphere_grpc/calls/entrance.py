"""Lets a call in, or not: who makes it, what that caller may do, and how much of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from atmosphere_grpc.access.caller import Caller
from atmosphere_grpc.access.gate import Gate
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.access.policy import denied
from atmosphere_grpc.calls.arrival import Arrival, credentials_of
from atmosphere_grpc.codec.costs import Meter
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.execution.caller import caller as current_caller
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.record import current

Request = TypeVar("Request")


class Entrance:
    """Where callers are let in.

    Args:
        gate: Who calls.
        limits: How much each caller may do.
    """

    def __init__(self, gate: Gate, limits: Limits) -> None:
        self.gate = gate
        self.limits = limits

    async def admit(self, method: str, arrival: Arrival) -> Caller:
        """The caller, who may call this RPC; from now on the call is known to be theirs.

        Raises:
            Failure: UNAUTHENTICATED or PERMISSION_DENIED.
        """
        caller = await self.gate.caller(credentials_of(arrival))
        current_caller.set(caller.name)
        current().caller = caller.name
        permit.set(caller.permit)
        if not caller.permit.rpc(method):
            raise denied(f"{caller.name}: RPC {method}")
        return caller

    @asynccontextmanager
    async def charged(
        self, caller: Caller, decode: Callable[[], Request]
    ) -> AsyncIterator[tuple[Request, Callable[[Any], None]]]:
        """Has a call counted, and charged for what it says that it sent.

        Raises:
            Failure: RATE_LIMITED, or what decoding raises.
        """
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
