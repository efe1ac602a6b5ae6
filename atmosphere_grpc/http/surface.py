"""What HTTP serves: the service, and what its calls run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from atmosphere_grpc.calls.entrance import Entrance
from atmosphere_grpc.calls.envelope import Envelope
from atmosphere_grpc.servicer import Servicer


@dataclass(frozen=True, slots=True)
class Surface:
    """What HTTP serves.

    Attributes:
        envelope: What every call runs in.
        entrance: Where its caller is let in.
        servicer: What answers it.
        serving: Whether this server is of use now: whether it is healthy.
        running: The calls that run, each in a task of its own.
    """

    envelope: Envelope
    entrance: Entrance
    servicer: Servicer
    serving: Callable[[], bool]
    running: set[asyncio.Task[None]] = field(default_factory=set)
