"""A call as it arrives: what it brings along, whichever way it came."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from atmosphere_grpc.access.caller import Credentials
from atmosphere_grpc.record import NOTHING

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
#: W3C Trace Context, level 1: what is not of this form is as good as not sent.
TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
_TRACE_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACE_STATE = re.compile(r"[\x20-\x7e]{1,512}")


class Arrival(Protocol):
    """A call's context: that of gRPC, or what stands for it elsewhere."""

    def peer(self) -> str:
        """Where it comes from, such as `ipv4:127.0.0.1:40000`."""
        ...

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names in its caller's certificate, which has been checked."""
        ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Its metadata, or headers; names in lower case."""
        ...

    def time_remaining(self) -> float | None:
        """Seconds until its caller's deadline; None: there is none."""
        ...

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Has something called once its answer is sent, or nobody waits for it."""
        ...


def request_id_of(arrival: Arrival) -> str:
    """A call's request id: its caller's own, when it is one that can be logged; else a new one."""
    for key, value in arrival.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    # Nobody must be unable to guess it, so that a system call is not needed.
    return f"{random.getrandbits(128):032x}"


def trace_of(arrival: Arrival) -> Mapping[str, str]:
    """What a call's caller sent of a trace."""
    parent, states = "", []
    for key, value in arrival.invocation_metadata() or ():
        if not isinstance(value, str):
            continue
        if key == TRACE_PARENT and _TRACE_PARENT.fullmatch(value):
            parent = value
        elif key == TRACE_STATE:
            states.append(value)
    if not parent:
        return NOTHING
    state = ",".join(states)
    if not _TRACE_STATE.fullmatch(state):
        return {TRACE_PARENT: parent}
    return {TRACE_PARENT: parent, TRACE_STATE: state}


def credentials_of(arrival: Arrival) -> Credentials:
    """What a call says of who makes it."""
    authorization, api_keys = [], []
    for key, value in arrival.invocation_metadata() or ():
        if isinstance(value, str):
            if key == "authorization":
                authorization.append(value)
            elif key == "x-api-key":
                api_keys.append(value)
    identities = arrival.peer_identities() or ()
    return Credentials(
        tuple(authorization),
        tuple(api_keys),
        tuple(item.decode(errors="replace") for item in identities),
        arrival.peer() or "",
    )
